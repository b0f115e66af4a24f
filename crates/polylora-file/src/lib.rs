//! Files of tensors: GGUF read and written, safetensors and importance matrices read.
//!
//! Whatever is in a file, reading it ends in an error that names the file and the place, or in
//! tensors whose bytes fit their shapes; it never panics, and never allocates more than a small
//! multiple of the file's length. Files are mapped, not loaded. Written files appear under their
//! names whole, or not at all.
//!
//! ```
//! use polylora_file::{Gguf, GgufWriter, Metadata, TensorPlan, WriteOptions};
//! use polylora_quant::GgmlType;
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("small.gguf");
//! let mut metadata = Metadata::default();
//! metadata.insert("general.architecture", "llama".into());
//! let tensors =
//!     [TensorPlan { name: "output.weight".into(), ty: GgmlType::F32, shape: vec![2, 1] }];
//!
//! let writer = GgufWriter::create(&path, &metadata, &tensors, WriteOptions::default())?;
//! writer.write_at(0, 0, &1.0f32.to_le_bytes())?;
//! writer.write_at(0, 4, &2.0f32.to_le_bytes())?;
//! writer.finish()?;
//!
//! let file = Gguf::open(&path)?;
//! assert_eq!(file.architecture(), Some("llama"));
//! assert_eq!(file.tensor("output.weight").unwrap().to_f32()?, [1.0, 2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod bytes;
mod cursor;
mod digest;
mod error;
mod gguf;
pub mod imatrix;
pub mod safetensors;
mod tensor;

pub use atomic::{AtomicFile, check_output, same_file, write_file};
pub use bytes::Bytes;
pub use digest::sha256;
pub use error::{Error, Fault};
pub use gguf::limits;
pub use gguf::{
    Array, Gguf, GgufWriter, Metadata, MixedTypes, TensorPlan, Value, ValueType, WriteOptions,
    part_of_name,
};
pub use tensor::{ShapeError, Tensor};
