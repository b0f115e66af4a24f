//! GGUF: metadata and tensors in one file, or in the parts of a split one.
//!
//! ```text
//! "GGUF" | version: u32 | tensors: u64 | entries: u64
//! entries times:  key: string | type: u32 | value
//! tensors times:  name: string | dimensions: u32 | dimension: u64, columns first, .. |
//!                 type: u32 | offset: u64, from the beginning of the data
//! zeros up to a multiple of the alignment (general.alignment, else 32)
//! data: the tensors, each at a multiple of the alignment
//!
//! string: count of bytes: u64 | bytes        array: type: u32 | count: u64 | values
//! ```
//!
//! All little-endian. Versions 2 and 3 differ in name only, for the latter may be big-endian.

mod layout;
pub mod limits;
mod metadata;
mod read;
mod split;
mod write;

pub use metadata::{Array, Metadata, MixedTypes, Value, ValueType};
pub use split::part_of_name;
pub use write::{GgufWriter, TensorPlan, WriteOptions};

use crate::{Bytes, Error, Fault, Tensor};
use limits::MAX_ALIGNMENT;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The key of the alignment.
const ALIGNMENT: &str = "general.alignment";

/// The alignment of a file that names none.
const DEFAULT_ALIGNMENT: u32 = 32;

/// A model or an adapter: one file, or all parts of a split one as if they were one.
#[derive(Clone, Debug)]
pub struct Gguf {
    version: u32,
    alignment: usize,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    /// Of a tensor's name, its place in `tensors`.
    by_name: HashMap<String, usize>,
    parts: Vec<PathBuf>,
}

impl Gguf {
    /// Opens a file; of a split one any part, which finds the others beside it.
    ///
    /// # Errors
    /// Where a file cannot be read, is not sound, or a part is missing.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        split::open(path)
    }

    /// Opens a model, as [`Gguf::open`] does.
    ///
    /// # Errors
    /// Where it says that it is an adapter or an importance matrix, too.
    pub fn open_model(path: &Path) -> Result<Gguf, Error> {
        let model = Gguf::open(path)?;
        match model.metadata.str("general.type") {
            Some(kind @ ("adapter" | "imatrix")) => Err(Fault::NotAModel(kind.to_owned()).at(path)),
            _ => Ok(model),
        }
    }

    /// Reads a file's bytes; `path` is for messages. A part of a split file is taken for itself.
    ///
    /// # Errors
    /// Where the bytes are not a sound file.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Gguf, Error> {
        let read::Contents { version, alignment, metadata, tensors } =
            read::contents(&bytes).map_err(|fault| fault.at(path))?;
        let names = tensors.iter().enumerate();
        let by_name = names.map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        let parts = vec![path.to_owned()];
        Ok(Gguf { version, alignment, metadata, tensors, by_name, parts })
    }

    /// The version of the format, 2 or 3; of a split file, its first part's.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What the places of tensors are multiples of; of a split file, its first part's.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The metadata; of a split file, its first part's, where all but the parts' numbers are.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.str("general.architecture")
    }

    /// The file, or all parts in order.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }
}

/// What tensors are to be aligned to.
///
/// The specification wants a multiple of 8, ggml and gguf-py a power of two. Files of either kind
/// are read, and written as they were.
fn alignment(metadata: &Metadata) -> Result<usize, Fault> {
    let alignment = match metadata.get(ALIGNMENT) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(alignment)) => *alignment,
        Some(value) => return Err(Fault::AlignmentType(value.ty())),
    };
    let multiple = alignment.is_multiple_of(8) || alignment.is_power_of_two();
    if alignment == 0 || !multiple || alignment > MAX_ALIGNMENT {
        return Err(Fault::Alignment(alignment));
    }
    Ok(alignment as usize)
}
