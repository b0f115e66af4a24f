//! Every prefix and every flipped bit of small sound files: an error, or something whole.

use crate::imatrix::{gguf_file, legacy_file};
use crate::raw::{Raw, check_whole};
use crate::safetensors::adapter_file;
use polylora_file::imatrix::Imatrix;
use polylora_file::{Bytes, Gguf, safetensors};
use std::path::Path;

/// Calls `read` with every prefix, which must be refused down from `needed` bytes, and with every
/// bit flipped.
fn sweep(bytes: &[u8], needed: usize, read: impl Fn(Bytes) -> bool) {
    assert!(read(bytes.to_vec().into()), "the file itself is sound");
    for length in 0..bytes.len() {
        let sound = read(bytes[..length].to_vec().into());
        assert_eq!(sound, length >= needed, "the first {length} bytes");
    }
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        read(flipped.into());
    }
}

#[test]
fn gguf() {
    let bytes = Raw::model().bytes();
    sweep(&bytes, bytes.len(), |bytes| match Gguf::parse(Path::new("f"), bytes) {
        Ok(file) => {
            check_whole(&file);
            true
        }
        Err(_) => false,
    });
}

#[test]
fn safetensors() {
    let bytes = adapter_file();
    sweep(&bytes, bytes.len(), |bytes| match safetensors::parse(Path::new("f"), bytes) {
        Ok(file) => {
            for tensor in file.tensors {
                assert_eq!(Some(tensor.bytes.len()), tensor.ty.row_bytes(tensor.elements()));
            }
            true
        }
        Err(_) => false,
    });
}

fn read_imatrix(bytes: Bytes) -> bool {
    match Imatrix::parse(Path::new("f"), bytes) {
        Ok(imatrix) => {
            assert!(imatrix.entries().all(|(_, values)| values.iter().all(|v| v.is_finite())));
            true
        }
        Err(_) => false,
    }
}

#[test]
fn imatrix() {
    let bytes = gguf_file();
    sweep(&bytes, bytes.len(), read_imatrix);
}

#[test]
fn legacy_imatrix() {
    let (bytes, entries) = legacy_file();
    // What follows the entries may be missing, but not in part.
    let optional = [entries, entries + 4];
    assert!(optional.iter().all(|&length| read_imatrix(bytes[..length].to_vec().into())));
    for length in (0..bytes.len()).filter(|length| !optional.contains(length)) {
        assert!(!read_imatrix(bytes[..length].to_vec().into()), "the first {length} bytes");
    }
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        read_imatrix(flipped.into());
    }
}
