//! Any bytes as a GGUF file: an error, or tensors and metadata that are whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polylora_file::{Bytes, Gguf, Value};
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let Ok(file) = Gguf::parse(Path::new("input"), Bytes::from(input.to_vec())) else { return };
    for tensor in file.tensors() {
        assert_eq!(Some(tensor.bytes.len()), tensor.ty.row_bytes(tensor.elements()));
        assert_eq!(tensor.rows() * tensor.row_bytes(), tensor.bytes.len());
        let same = file.tensor(&tensor.name).expect("it has its name");
        assert_eq!(same.bytes.as_ptr(), tensor.bytes.as_ptr());
        assert_eq!(tensor.to_f32().is_ok(), tensor.ty.decodes());
    }
    for (key, value) in file.metadata().iter() {
        assert_eq!(file.metadata().get(key), Some(value));
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
});
