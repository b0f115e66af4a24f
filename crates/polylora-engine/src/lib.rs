//! Transformers over quantized weights, with LoRA adapters inside the matrix product.
//!
//! [`Model`] is what a GGUF says: hyperparameters and mapped weights, of one of the
//! [architectures](Model::architectures) known. [`Engine`] runs it: a batch of [`Input`]s, each
//! with a [`Sequence`] and [adapters](LoadedAdapter) of its own, goes through the layers at once.
//! No weight is copied, dequantized or merged for an adapter.

mod adapter;
mod attention;
mod batch;
mod chat;
mod completion;
mod constraint;
mod engine;
mod error;
mod feed_forward;
mod layer;
mod linear;
mod logprobs;
mod model;
mod pool;
mod prefix;
mod rope;
mod sampler;
mod sequence;
mod stop;
mod tokenizer;
mod walk;

pub use adapter::LoadedAdapter;
pub use chat::{ChatError, ChatTemplate, Message};
pub use completion::{Completion, CompletionError, CompletionOptions, Finish, Row, Scored, Step};
pub use constraint::{Constraint, ConstraintError, ConstraintFactory, VocabToken};
pub use engine::{AdapterLoader, Engine, EngineOptions, Input, Logits, Wanted};
pub use error::Error;
pub use logprobs::LogProbs;
pub use model::Model;
pub use polylora_quant::product::Way;
pub use prefix::PrefixCache;
pub use sampler::{InvalidParams, SampleError, Sampled, Sampler, SamplingParams};
pub use sequence::{PAGE, Sequence};
pub use stop::{Emitted, EmptyStop, StopStrings};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerFault, Utf8Stream};
pub use walk::{Group, Walk};
