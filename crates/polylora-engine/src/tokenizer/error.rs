//! What can be wrong with a vocabulary, one variant for each fault.

use std::path::{Path, PathBuf};

/// A file and why no tokenizer can be built of it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct TokenizerError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: TokenizerFault,
}

/// Why no tokenizer can be built of a file's metadata.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFault {
    /// A key that every vocabulary has is not there.
    #[error("the metadata has no {key}: the file holds no vocabulary that can be used")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of another type.
    #[error("{key} is not {wanted}: the file is damaged")]
    Type {
        /// The key.
        key: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// The vocabulary has no tokens, or more than ids can number.
    #[error("tokenizer.ggml.tokens has {0} elements, which is no vocabulary: the file is damaged")]
    Tokens(usize),
    /// An array that goes along with the tokens has too few elements.
    #[error("{key} has {found} elements for {tokens} tokens: the file is damaged")]
    Count {
        /// The key.
        key: &'static str,
        /// Elements it has.
        found: usize,
        /// Tokens there are.
        tokens: usize,
    },
    /// Two tokens have the same text.
    #[error("tokens {first} and {second} are both {text:?}: the file is damaged")]
    Duplicate {
        /// The text, made printable.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A score that cannot be compared with others.
    #[error("the score of token {0} is not a number: the file is damaged")]
    Score(usize),
    /// A special token that is not in the vocabulary.
    #[error("{key} is {id}, but there are {tokens} tokens: the file is damaged")]
    Id {
        /// The key.
        key: &'static str,
        /// The id.
        id: u64,
        /// Tokens there are.
        tokens: usize,
    },
    /// A merge that is not two texts with a space between them.
    #[error("merge {index}, {text:?}, is not a pair: the file is damaged")]
    Merge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// It, made printable.
        text: String,
    },
    /// The special tokens cannot be searched for.
    #[error("the special tokens are too many or too long to look for: the file is damaged")]
    Special(#[source] aho_corasick::BuildError),
    /// Another kind of vocabulary.
    #[error("the vocabulary is of the kind {found:?}; those that can be used: {known}")]
    Model {
        /// `tokenizer.ggml.model`
        found: String,
        /// The kinds that are known.
        known: String,
    },
    /// A way to cut text into words that is not known.
    #[error("tokenizer.ggml.pre is {found:?}, which is not known; those that are: {known}")]
    Pre {
        /// `tokenizer.ggml.pre`
        found: String,
        /// The names that are known.
        known: String,
    },
}

impl TokenizerFault {
    pub(super) fn at(self, path: &Path) -> TokenizerError {
        TokenizerError { path: path.to_owned(), fault: self }
    }
}
