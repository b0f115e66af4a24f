//! What can go wrong.

/// A model or adapter cannot be run, or a batch not be computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The architecture has no description here.
    #[error("the architecture {found:?} cannot be run; those known are {known}")]
    Architecture {
        /// `general.architecture`.
        found: String,
        /// All that are described.
        known: String,
    },
    /// The metadata lacks something, or says something that cannot be.
    #[error("{key} {why}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor is missing, or is not what the metadata asks for.
    #[error("the tensor {name} {why}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// What products are multiplied by is no such thing.
    #[error(transparent)]
    Scale(#[from] polylora_adapter::ScaleError),
    /// The model has tensors that its description does not use: what they are for would be lost.
    #[error(
        "the model has tensors that the architecture {architecture} is not known to use: {names}"
    )]
    UnusedTensors {
        /// `general.architecture`.
        architecture: String,
        /// The tensors, or the first of them.
        names: String,
    },
    /// The adapter changes something that cannot be changed at run time.
    #[error("the adapter {adapter} cannot be applied at run time: {tensor} {why}")]
    Adapter {
        /// Its name.
        adapter: String,
        /// The tensor that it changes.
        tensor: String,
        /// Why not.
        why: String,
    },
    /// Keys and values cannot be kept in this type.
    #[error("keys and values cannot be kept as {ty}: {why}")]
    KvType {
        /// The type.
        ty: polylora_quant::GgmlType,
        /// Why not.
        why: String,
    },
    /// The sequence has no room for all tokens.
    #[error(
        "the context is full: {used} of {context} tokens are taken, and {wanted} more were to \
         come; make it larger (the model was made for {model}) or the text shorter"
    )]
    ContextFull {
        /// Tokens that fit.
        context: usize,
        /// Tokens that are there.
        used: usize,
        /// Tokens that were to come.
        wanted: usize,
        /// Tokens that the model was made for.
        model: usize,
    },
    /// No such token.
    #[error("token {token} is not one of the model's {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// The number of tokens that the model knows.
        vocabulary: usize,
    },
    /// An input has no tokens.
    #[error("an input of a batch has no tokens")]
    NoTokens,
    /// The sequence belongs to another engine.
    #[error("a sequence of a batch was made by another engine")]
    ForeignSequence,
    /// The adapter was loaded for another model.
    #[error("the adapter {0} was loaded for another model")]
    ForeignAdapter(String),
    /// Threads could not be started.
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
}
