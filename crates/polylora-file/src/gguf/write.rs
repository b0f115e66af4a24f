//! Writing GGUF: positioned writes into files that appear when they are whole.

use super::layout::Layout;
use super::metadata::Metadata;
use super::split::part_path;
use crate::atomic::{AtomicFile, check_room};
use crate::{Error, Fault};
use polylora_quant::GgmlType;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name in the file.
    pub name: String,
    /// The type of its blocks.
    pub ty: GgmlType,
    /// Slowest dimension first, columns last; at most four.
    pub shape: Vec<usize>,
}

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Replace what has the name already.
    pub overwrite: bool,
    /// Split into files of at most so many bytes, as far as tensors are not larger. Where one
    /// file is enough it is not split, and keeps its name.
    pub max_shard: Option<u64>,
}

/// A file being written, in one or in several parts.
///
/// Its size and every place in it are known from the beginning, so the tensors come in any order,
/// from any number of threads, and none is ever held whole. Until [`GgufWriter::finish`] there is
/// nothing under the file's name; dropped before, it leaves nothing at all.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    layout: Layout,
    names: Vec<String>,
    files: Vec<AtomicFile>,
    written: AtomicU64,
}

impl GgufWriter {
    /// Begins a file: reserves its room on the disk and writes all but the tensors.
    ///
    /// Tensors are aligned as `general.alignment` says. Keys about the parts of a split file are
    /// the writer's own: what `metadata` says of them is not written.
    ///
    /// # Errors
    /// Where the file exists and may not be replaced, has no room, or cannot be created; where
    /// metadata or tensors are such that no file can hold them.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[TensorPlan],
        options: WriteOptions,
    ) -> Result<GgufWriter, Error> {
        let layout = Layout::new(metadata, tensors, options.max_shard);
        let layout = layout.map_err(|fault| fault.at(path))?;
        let paths = match layout.parts.len() {
            1 => vec![path.to_owned()],
            count => (0..count).map(|no| part_path(path, no, count)).collect(),
        };
        // All parts together: each sees to its own.
        check_room(path, layout.size())?;
        let mut files = Vec::new();
        for (path, part) in paths.iter().zip(&layout.parts) {
            let file = AtomicFile::create(path, part.size, options.overwrite)?;
            file.write_at(0, &part.header)?;
            files.push(file);
        }
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let (path, written) = (path.to_owned(), AtomicU64::new(0));
        Ok(GgufWriter { path, layout, names, files, written })
    }

    /// Bytes of all files together.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// Bytes of a tensor.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub fn tensor_bytes(&self, tensor: usize) -> u64 {
        self.layout.places[tensor].bytes
    }

    /// Writes some bytes of a tensor, `offset` from its beginning. Each byte is to be written
    /// once.
    ///
    /// # Errors
    /// Where the bytes reach beyond the tensor, or cannot be written.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let place = &self.layout.places[tensor];
        let count = bytes.len() as u64;
        if offset.checked_add(count).is_none_or(|end| end > place.bytes) {
            let (tensor, size) = (self.names[tensor].clone(), place.bytes);
            let fault = Fault::OutsideTensor { tensor, offset, bytes: count, size };
            return Err(fault.at(&self.path));
        }
        self.files[place.part].write_at(place.start + offset, bytes)?;
        self.written.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the files their names, once they are safe on the disk, and returns these.
    ///
    /// # Errors
    /// Where not every byte was written, or a name was taken meanwhile and may not be replaced.
    pub fn finish(self) -> Result<Vec<PathBuf>, Error> {
        let (written, expected) = (self.written.into_inner(), self.layout.tensor_bytes());
        if written != expected {
            return Err(Fault::Unfinished { written, expected }.at(&self.path));
        }
        AtomicFile::finish_all(self.files)
    }
}
