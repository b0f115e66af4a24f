//! Reading from front to back, never beyond the end.

use crate::{Bytes, Fault};

/// A place in bytes, and what is being read there.
pub(crate) struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
    /// For messages: "the list of tensors".
    pub(crate) reading: &'static str,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a Bytes, reading: &'static str) -> Cursor<'a> {
        Cursor { bytes, at: 0, reading }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Whether all is read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let bytes: &'a [u8] = self.bytes;
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let Some((end, taken)) = end.and_then(|end| Some((end, bytes.get(self.at..end)?))) else {
            return Err(Fault::Truncated {
                reading: self.reading,
                expected: (self.at as u64).saturating_add(count),
                found: bytes.len() as u64,
            });
        };
        self.at = end;
        Ok(taken)
    }

    /// What was read since it was at `start`.
    pub(crate) fn since(&self, start: usize) -> Bytes {
        self.bytes.slice(start..self.at).expect("both were reached")
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.take(N as u64)?.try_into().expect("as many as asked for"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Fault> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// The bytes of a string: their count as a `u64`, then they.
    pub(crate) fn string(&mut self, what: &'static str, limit: u64) -> Result<&'a [u8], Fault> {
        let at = self.at as u64;
        let length = self.u64()?;
        if length > limit {
            return Err(Fault::TooLong { what, at, length, limit });
        }
        self.take(length)
    }

    /// A string that names something, so is not empty, and text.
    pub(crate) fn name(&mut self, what: &'static str, limit: u64) -> Result<&'a str, Fault> {
        let at = self.at as u64;
        match std::str::from_utf8(self.string(what, limit)?) {
            Ok("") => Err(Fault::EmptyName { what, at }),
            Ok(name) => Ok(name),
            Err(_) => Err(Fault::NotText { what, at }),
        }
    }
}
