//! Any bytes as a safetensors file: an error, or tensors that are whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polylora_file::{Bytes, safetensors};
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::from(input.to_vec());
    let Ok(file) = safetensors::parse(Path::new("input"), bytes) else { return };
    for tensor in &file.tensors {
        assert_eq!(Some(tensor.bytes.len()), tensor.ty.row_bytes(tensor.elements()));
        assert_eq!(tensor.to_f32().is_ok(), tensor.ty.decodes());
    }
});
