//! GGUF bytes put together by hand, so that each field can be wrong by itself.

use polylora_file::{Bytes, Error, Fault, Gguf};
use std::path::Path;

pub(crate) const F32: u32 = 0;
pub(crate) const Q4_0: u32 = 2;

pub(crate) const U8: u32 = 0;
pub(crate) const U16: u32 = 2;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

/// A string as it lies in a file.
pub(crate) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// An array as it lies in a file.
pub(crate) fn array(ty: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

/// A file, field by field.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Where these are `None` they are what is there.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Raw {
    /// A sound file with nothing in it.
    pub(crate) fn new() -> Raw {
        Raw {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    /// A sound file with some of everything.
    pub(crate) fn model() -> Raw {
        let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .chain([0; 8])
            .chain([0x00, 0x38])
            .chain([0xa7; 16])
            .collect();
        Raw::new()
            .entry("general.architecture", STRING, &string("llama"))
            .entry("general.alignment", U32, &32u32.to_le_bytes())
            .entry("yes", BOOL, &[1])
            .entry("tokens", ARRAY, &array(STRING, 2, &[string("a"), string([0xff])].concat()))
            .tensor("f", &[3, 2], F32, 0)
            .tensor("q", &[32], Q4_0, 32)
            .data(data)
    }

    pub(crate) fn entry(mut self, key: &str, ty: u32, value: &[u8]) -> Raw {
        self.entries.push([&string(key)[..], &ty.to_le_bytes(), value].concat());
        self
    }

    /// `ne` is columns first, as in a file.
    pub(crate) fn tensor(mut self, name: &str, ne: &[u64], ty: u32, offset: u64) -> Raw {
        let mut info = string(name);
        info.extend((ne.len() as u32).to_le_bytes());
        info.extend(ne.iter().flat_map(|size| size.to_le_bytes()));
        info.extend(ty.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.tensors.push(info);
        self
    }

    pub(crate) fn data(mut self, data: Vec<u8>) -> Raw {
        self.data = data;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Raw)) -> Raw {
        change(&mut self);
        self
    }

    /// Changes the only occurrence of some bytes among the metadata.
    pub(crate) fn replace(&mut self, old: &[u8], new: &[u8]) {
        let place = |entry: &mut Vec<u8>| {
            let at = entry.windows(old.len()).position(|window| window == old)?;
            entry.splice(at..at + old.len(), new.iter().copied());
            Some(())
        };
        assert_eq!(self.entries.iter_mut().filter_map(place).count(), 1);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn parse(&self) -> Result<Gguf, Error> {
        Gguf::parse(Path::new("test.gguf"), Bytes::from(self.bytes()))
    }

    pub(crate) fn fault(&self) -> Fault {
        let error = self.parse().expect_err("it is not sound");
        assert!(error.to_string().starts_with("test.gguf: "), "{error}");
        error.fault
    }
}

/// Whatever was read is whole: bytes as long as they should be, names once, arrays to their end.
pub(crate) fn check_whole(file: &Gguf) {
    for tensor in file.tensors() {
        assert_eq!(Some(tensor.bytes.len()), tensor.ty.row_bytes(tensor.elements()));
        assert_eq!(file.tensor(&tensor.name).unwrap().bytes.as_ptr(), tensor.bytes.as_ptr());
        assert_eq!(tensor.to_f32().is_ok(), tensor.ty.decodes());
    }
    for (key, value) in file.metadata().iter() {
        assert_eq!(file.metadata().get(key), Some(value));
        if let polylora_file::Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
}
