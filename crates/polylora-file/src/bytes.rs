//! Bytes of a file that need not be read to be had.

use memmap2::Mmap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A range of a mapped file, or of a vector: cheap to clone and to slice, kept alive by its users.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    /// Within the owner, always.
    range: Range<usize>,
}

enum Owner {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a whole file for reading.
    ///
    /// The file must stay as it is while it is in use: a change shows through, and a file that
    /// is cut short ends the process with `SIGBUS`. Replacing it by renaming another over it, as
    /// this crate does when it writes, is harmless.
    ///
    /// # Errors
    /// Where there is no such file, it may not be read, or it is not a regular file.
    pub fn map(path: &Path) -> io::Result<Bytes> {
        check_regular(path)?;
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        #[expect(unsafe_code, reason = "the only one here: mapping a file")]
        // SAFETY: the mapping is read-only and lives as long as this value, so only a change of
        // the file underneath can break the rules of a shared slice. That cannot be ruled out
        // from here: it is what the documentation above asks of the caller, and every reader of
        // mapped files. It is kept harmless as far as that goes: lengths and offsets are copied
        // out, then checked, then used; arrays of metadata are checked anew whenever they are
        // read; tensors are decoded as numbers, and any bytes are some. A page that is gone
        // raises a signal, it does not become other memory.
        let map = unsafe { Mmap::map(&file)? };
        let range = 0..map.len();
        Ok(Bytes { owner: Arc::new(Owner::Mapped(map)), range })
    }

    /// Reads a whole file into memory: for files that may change while they are in use.
    ///
    /// # Errors
    /// As [`Bytes::map`].
    pub fn read(path: &Path) -> io::Result<Bytes> {
        check_regular(path)?;
        fs::read(path).map(Bytes::from)
    }

    /// Bytes of memory that this keeps from being freed: all that were read, whatever part of them
    /// this is; none where the file is mapped.
    pub fn held(&self) -> usize {
        match &*self.owner {
            Owner::Mapped(_) => 0,
            Owner::Owned(vec) => vec.len(),
        }
    }

    /// A part of it; `None` where `range` reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        self.get(range.clone())?;
        let start = self.range.start + range.start;
        Some(Bytes { owner: Arc::clone(&self.owner), range: start..start + range.len() })
    }
}

/// Asked before opening, which would wait for ever on a pipe that nobody writes to.
fn check_regular(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { owner: Arc::new(Owner::Owned(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Mapped(map) => map,
            Owner::Owned(vec) => vec,
        };
        &all[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_stay_inside() {
        let bytes = Bytes::from(vec![0, 1, 2, 3, 4, 5]);
        let middle = bytes.slice(1..5).unwrap();
        assert_eq!(&*middle, [1, 2, 3, 4]);
        assert_eq!(&*middle.slice(1..4).unwrap(), [2, 3, 4]);
        assert!(middle.slice(4..4).unwrap().is_empty());
        assert!(middle.slice(1..5).is_none());
        assert!(middle.slice(5..usize::MAX).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "that is the test")]
        let reversed = middle.slice(3..2);
        assert!(reversed.is_none());
    }

    #[test]
    fn a_mapping_is_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for content in [&b""[..], b"some bytes"] {
            fs::write(&path, content).unwrap();
            assert_eq!(&*Bytes::map(&path).unwrap(), content);
        }
        assert!(Bytes::map(folder.path()).unwrap_err().to_string().contains("regular file"));
        assert!(Bytes::map(&folder.path().join("none")).is_err());
    }
}
