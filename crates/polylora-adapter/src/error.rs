//! What can be wrong with an adapter.

use polylora_quant::GgmlType;
use std::path::PathBuf;

/// An adapter cannot be read, or not be honoured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The adapter itself.
    #[error("{}: {fault}", path.display())]
    Adapter {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// A file that holds it, or that was to be written.
    #[error(transparent)]
    File(#[from] polylora_file::Error),
}

/// What is wrong with one adapter. Tensors are named as they are in the adapter.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nothing there that any format recognizes.
    #[error(
        "no adapter: expected {known}{}",
        if *.exists { "" } else { "; nothing exists at this path" }
    )]
    Unrecognized {
        /// What would be recognized.
        known: String,
        /// Whether there is anything at all.
        exists: bool,
    },
    /// The system refused.
    #[error("cannot read {what}: {error}")]
    Read {
        /// The file within the adapter.
        what: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file of the adapter is damaged.
    #[error(transparent)]
    File(#[from] polylora_file::Error),
    /// Weights in Python's pickle format.
    #[error(
        "{0} is a pickle, and loading a pickle can run any code: convert it to safetensors where \
         you trust its origin (PEFT does it on save_pretrained), then come back"
    )]
    Pickle(String),
    /// The folder has a configuration but no weights.
    #[error("the folder has no adapter_model.safetensors: is the download complete?")]
    NoWeights,
    /// The configuration is not JSON of the expected shape.
    #[error("{file} cannot be understood: {error}")]
    Json {
        /// The file within the adapter.
        file: &'static str,
        /// Why.
        error: serde_json::Error,
    },
    /// A method of fine-tuning other than LoRA.
    #[error("peft_type is {0:?}: only LORA can be applied")]
    PeftType(String),
    /// A field of the configuration that changes the arithmetic in a way not supported.
    #[error("adapter_config.json has {field} = {value}: {why}")]
    Field {
        /// The field.
        field: String,
        /// Its value, shortened.
        value: String,
        /// What that means here.
        why: String,
    },
    /// A pattern of the configuration is not a regular expression that is understood here.
    #[error(
        "adapter_config.json: the key {key:?} of {field} is no regular expression known here: \
         {error}"
    )]
    Pattern {
        /// The field.
        field: &'static str,
        /// The key.
        key: String,
        /// Why.
        error: regex_lite::Error,
    },
    /// The metadata of a GGUF says that it is something else.
    #[error("{key} is {found:?}, not {expected:?}: {why}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
        /// What follows from that.
        why: &'static str,
    },
    /// An activated LoRA works on some tokens only.
    #[error(
        "it is an activated LoRA (aLoRA), which changes the model only after its invocation \
         tokens: that cannot be merged"
    )]
    Activated,
    /// A base of an architecture whose names in Hugging Face's models are not in the table.
    #[error(
        "the names of architecture {found:?} are not known, so a PEFT adapter cannot be matched \
         to this base (a GGUF adapter can). Known are {known}"
    )]
    Architecture {
        /// The base's.
        found: String,
        /// All rows of the table.
        known: String,
    },
    /// A value of the base's metadata that the layout depends on.
    #[error("{key} of the base is missing or makes no sense for rows of {tensor}")]
    BaseMetadata {
        /// The key.
        key: String,
        /// The adapter's tensor.
        tensor: String,
    },
    /// A tensor whose role is not known: what it would do is not known either.
    #[error("tensor {0} has no known role: an adapter is applied wholly or not at all")]
    UnknownTensor(String),
    /// Two tensors claim one role.
    #[error("tensor {0} is there twice (does the folder hold two adapters?)")]
    Twice(String),
    /// Half of a pair.
    #[error("{module} has {present} but no {missing}: the adapter is incomplete")]
    Half {
        /// The module or tensor that it changes.
        module: String,
        /// What is there.
        present: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// A type that does not hold weights.
    #[error("tensor {tensor} is of type {ty}: save it as float32, float16 or bfloat16")]
    Type {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// A tensor of no elements.
    #[error(
        "tensor {0} is empty: it was saved from a sharded training (ZeRO-3, FSDP) without \
         gathering its parts first"
    )]
    Empty(String),
    /// NaN or infinity.
    #[error(
        "tensor {tensor} is {value} at index {index}: the training has diverged, or the file is damaged"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The first such element, counted through all dimensions.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The configuration and the tensor differ.
    #[error("tensor {tensor} has rank {stored}, but the configuration says {expected}")]
    Rank {
        /// The tensor.
        tensor: String,
        /// By its shape.
        stored: usize,
        /// By `r` or `rank_pattern`.
        expected: usize,
    },
    /// The two halves of a pair do not fit each other.
    #[error("tensors {a} {a_shape:?} and {b} {b_shape:?} do not fit each other")]
    Pair {
        /// `lora_A`.
        a: String,
        /// Its shape.
        a_shape: Vec<usize>,
        /// `lora_B`.
        b: String,
        /// Its shape.
        b_shape: Vec<usize>,
    },
    /// Experts whose two orders cannot be told apart.
    #[error(
        "{0} is as wide as it is high, so its two factors cannot be told apart: PEFT before \
         0.19.1 swapped them. Target gate_up_proj and down_proj together, or save it again"
    )]
    Square(String),
    /// Nothing to apply.
    #[error("it holds nothing that changes this base{}", first(.mismatches))]
    Nothing {
        /// What was left out because it does not fit.
        mismatches: Vec<crate::Mismatch>,
    },
    /// A scale that cannot be computed with.
    #[error(
        "what {0} is multiplied with is no finite number: the adapter's own scale times yours is \
         too large, or the length of a column is zero"
    )]
    Scale(String),
    /// A tensor of the base that has to be read for the adapter, and cannot be.
    #[error("tensor {tensor} of the base cannot be read: {error}")]
    Base {
        /// The tensor.
        tensor: String,
        /// Why.
        error: polylora_quant::RowError,
    },
    /// Does not fit the base: the shape.
    #[error("tensor {tensor} is {stored:?}, expected {expected:?}: is this the right base?")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        stored: Vec<usize>,
        /// What the base asks for.
        expected: Vec<usize>,
    },
    /// Does not fit the base: nothing there to change.
    #[error(
        "tensor {tensor} changes {target}, which the base does not have: is this the right base?"
    )]
    NoTarget {
        /// The tensor.
        tensor: String,
        /// Its name in the GGUF.
        target: String,
    },
    /// Does not fit the base: too few layers.
    #[error(
        "tensor {tensor} is for layer {layer}, but the base has {layers}: is this the right base?"
    )]
    Layer {
        /// The tensor.
        tensor: String,
        /// Its layer, from 0.
        layer: usize,
        /// Layers of the base.
        layers: usize,
    },
    /// Does not fit the base: no place for such a module.
    #[error("tensor {tensor} is for a module that {why}")]
    Module {
        /// The tensor.
        tensor: String,
        /// Why there is no place.
        why: String,
    },
}

/// The first of what was left out, as the end of a sentence.
fn first(mismatches: &[crate::Mismatch]) -> String {
    match mismatches {
        [] => String::new(),
        [first, ..] => {
            format!(": {} parts do not fit, the first because {}", mismatches.len(), first.why)
        }
    }
}

impl Fault {
    /// Whether the adapter is sound but this part of it does not fit the base, so that the part
    /// can be left out ([`crate::OnMismatch::Skip`]).
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(
            self,
            Fault::Shape { .. }
                | Fault::NoTarget { .. }
                | Fault::Layer { .. }
                | Fault::Module { .. }
        )
    }
}
