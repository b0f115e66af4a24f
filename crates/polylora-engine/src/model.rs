//! A model: what its metadata says, and where its weights lie.

mod description;
mod gemma2;
mod gemma3;
mod granite;
mod keys;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3moe;
mod weights;

pub(crate) use description::{Activation, Description, Experts};
pub(crate) use weights::{FeedForward, Layer, Linear, Norm, SiteShape, Weights};

use crate::Error;
pub(crate) use keys::Keys;
use polylora_file::Gguf;

/// An architecture: one row of [`ARCHITECTURES`].
struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// Reads the metadata.
    describe: fn(&Keys<'_>) -> Result<Description, Error>,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", describe: llama::describe },
    Architecture { name: "granite", describe: granite::describe },
    Architecture { name: "qwen2", describe: qwen2::describe },
    Architecture { name: "qwen3", describe: qwen3::describe },
    Architecture { name: "qwen3moe", describe: qwen3moe::describe },
    Architecture { name: "gemma2", describe: gemma2::describe },
    Architecture { name: "gemma3", describe: gemma3::describe },
    Architecture { name: "phi3", describe: phi3::describe },
];

/// A model's weights, mapped, and what they mean.
#[derive(Clone, Debug)]
pub struct Model {
    architecture: &'static str,
    pub(crate) description: Description,
    pub(crate) weights: Weights,
}

impl Model {
    /// Reads the metadata and finds the weights. Nothing is copied but norms and biases.
    ///
    /// # Errors
    /// Where the architecture is not known, metadata or tensors are missing or contradict each
    /// other, or a tensor would go unused.
    pub fn open(gguf: &Gguf) -> Result<Model, Error> {
        let found = gguf.architecture().unwrap_or_default();
        let row = ARCHITECTURES.iter().find(|row| row.name == found);
        let architecture = row.ok_or_else(|| Error::Architecture {
            found: found.to_owned(),
            known: Model::architectures().collect::<Vec<_>>().join(", "),
        })?;
        let keys = Keys::new(architecture.name, gguf);
        let description = (architecture.describe)(&keys)?;
        let weights = Weights::find(architecture.name, &description, gguf)?;
        Ok(Model { architecture: architecture.name, description, weights })
    }

    /// The architectures that can be run.
    pub fn architectures() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|row| row.name)
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.architecture
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.weights.layers.len()
    }

    /// The number of tokens that the model was made for.
    pub fn context_length(&self) -> usize {
        self.description.context_length
    }

    /// Whether a tensor holds the weights of a linear layer of its own: a [walk](crate::Walk) comes to
    /// these.
    pub fn has_linear(&self, tensor: &str) -> bool {
        tensor != weights::EMBEDDING && self.weights.linears().any(|it| it.tensor.name == tensor)
    }

    /// The number of logits: tokens that it knows.
    pub fn vocab_size(&self) -> usize {
        self.weights.head().rows
    }
}
