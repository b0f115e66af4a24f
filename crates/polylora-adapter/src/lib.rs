//! LoRA adapters: PEFT folders and GGUF files, read directly and matched to a GGUF base.
//!
//! [`load`] reads an adapter of either kind and says what it does to each of the base's tensors,
//! in the base's own names and layout ([`Adapter`]); [`convert`] writes that as a GGUF adapter,
//! [`summarize`] looks at one without a base, [`inspect`] at whatever a file holds. What cannot be
//! honoured is refused by name.

mod adapter;
mod convert;
pub mod diff;
mod error;
mod factor;
mod fidelity;
mod format;
mod inspect;
pub mod merge;
pub mod mixture;
mod names;
pub mod report;
pub mod rewrite;
mod scales;
mod spec;
mod summary;

pub use adapter::{Adapter, Change, ChangeKind, Mismatch, OnMismatch, load, load_copy};
pub use convert::{ConvertError, ConvertReport, convert};
pub use error::{Error, Fault};
pub use factor::Factor;
pub use format::{Listed, adapters_among};
pub use inspect::{ImatrixEntry, ImatrixSummary, Inspection, ModelSummary, ModelTensor, inspect};
pub use scales::{ScaleError, Scales};
pub use spec::{AdapterSpec, SpecError};
pub use summary::{Summary, TensorSummary, summarize};
