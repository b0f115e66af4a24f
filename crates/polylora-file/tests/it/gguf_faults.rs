//! One test for each way in which a GGUF file can be unsound.

use crate::raw::{ARRAY, BOOL, F32, Q4_0, Raw, STRING, U8, U16, U32, array, string};
use polylora_file::{Fault, ShapeError, ValueType};

/// Rows of: a test's name, a file, the reason for which it is refused, words that the message has.
macro_rules! refused {
    ($($name:ident: $raw:expr => $fault:pat $(if $guard:expr)?, $words:literal;)*) => {
        $(#[test]
        fn $name() {
            let fault = $raw.fault();
            assert!(matches!(&fault, $fault $(if $guard)?), "{fault:?}");
            assert!(fault.to_string().contains($words), "{fault}");
        })*
    };
}

// The first bytes.
refused! {
    magic: Raw::new().with(|raw| raw.magic = *b"ggjt")
        => Fault::Magic { found } if found == "ggjt", "not a GGUF file";
    big_endian: Raw::new().with(|raw| raw.version = 3u32.swap_bytes())
        => Fault::BigEndian, "gguf-convert-endian FILE little";
    version_1: Raw::new().with(|raw| raw.version = 1) => Fault::Version1, "make it anew";
    version_0: Raw::new().with(|raw| raw.version = 0) => Fault::Version(0), "version 0";
    version_4: Raw::new().with(|raw| raw.version = 4) => Fault::Version(4), "newer program";
    too_many_tensors: Raw::new().with(|raw| raw.tensor_count = Some(u64::MAX))
        => Fault::TooMany { what: "tensors", count: u64::MAX, .. }, "limit of 1048576";
    too_many_entries: Raw::new().with(|raw| raw.entry_count = Some(65537))
        => Fault::TooMany { what: "entries of metadata", count: 65537, .. }, "limit of 65536";
    fewer_entries_than_counted: unpadded().with(|raw| raw.entry_count = Some(1))
        => Fault::Truncated { reading: "the metadata", .. }, "Is the download complete?";
    fewer_tensors_than_counted: unpadded().with(|raw| raw.tensor_count = Some(1))
        => Fault::Truncated { reading: "the list of tensors", .. }, "within the list of tensors";
}

// Metadata.
refused! {
    empty_key: Raw::new().entry("", U8, &[0])
        => Fault::EmptyName { what: "a key", at: 24 }, "at byte 24";
    key_not_text: Raw::model().with(|raw| raw.replace(b"yes", b"\xffes"))
        => Fault::NotText { what: "a key", .. }, "not UTF-8";
    key_too_long: Raw::new().entry(&"k".repeat(65536), U8, &[0])
        => Fault::TooLong { what: "a key", at: 24, length: 65536, limit: 65535 },
        "65536 bytes long";
    key_twice: Raw::new().entry("k", U8, &[0]).entry("k", U8, &[0])
        => Fault::DuplicateKey(key) if key == "k", "k is there twice";
    unknown_value_type: Raw::new().entry("k", 13, &[])
        => Fault::ValueType { key, at: 33, id: 13 } if key == "k", "type 13";
    unknown_element_type: entry_array(99, 0, &[])
        => Fault::ValueType { at: 37, id: 99, .. }, "type 99";
    half_a_bool: Raw::new().entry("k", BOOL, &[2])
        => Fault::Bool { at: 37, found: 2, .. }, "neither 0 nor 1";
    half_a_bool_in_an_array: entry_array(BOOL, 3, &[0, 1, 7])
        => Fault::Bool { at: 51, found: 7, .. }, "neither 0 nor 1";
    string_too_long: Raw::new().entry("k", STRING, &(1u64 << 31).to_le_bytes())
        => Fault::TooLong { at: 37, length: 0x8000_0000, .. }, "more than the limit";
    string_beyond_the_end: Raw::new().entry("k", STRING, &1000u64.to_le_bytes())
        => Fault::Truncated { expected: 1045, .. }, "expected at least 1045 bytes, found 64";
    string_in_an_array_too_long: entry_array(STRING, 2, &[string("a"), vec![9; 8]].concat())
        => Fault::TooLong { at: 58, .. }, "a string in an array at byte 58";
    string_in_an_array_beyond_the_end: entry_array(STRING, 2, &[9, 0, 0, 0, 0, 0, 0, 0])
        => Fault::Truncated { .. }, "within the metadata";
    array_beyond_the_end: entry_array(U32, 1 << 20, &[])
        => Fault::Truncated { .. }, "within the metadata";
    array_of_overflowing_length: entry_array(U32, 1 << 62, &[])
        => Fault::Truncated { expected: u64::MAX, .. }, "within the metadata";
    array_of_endless_arrays: entry_array(ARRAY, u64::MAX, &array(U8, 0, &[]))
        => Fault::Truncated { .. }, "within the metadata";
    arrays_too_deep: Raw::new().entry("k", ARRAY, &nested(9))
        => Fault::ArrayDepth { limit: 8, .. }, "more than 8 deep";
    alignment_of_another_type: Raw::new().entry("general.alignment", U16, &[32, 0])
        => Fault::AlignmentType(ValueType::U16), "U32 is demanded";
    alignment_zero: aligned(0) => Fault::Alignment(0), "is 0";
    alignment_12: aligned(12) => Fault::Alignment(12), "neither a power of two";
    alignment_huge: aligned(1 << 22) => Fault::Alignment(0x40_0000), "huge page";
}

// Tensors.
refused! {
    empty_tensor_name: Raw::new().tensor("", &[1], F32, 0)
        => Fault::EmptyName { what: "a tensor's name", .. }, "a tensor's name";
    tensor_twice: Raw::new().tensor("t", &[0], F32, 0).tensor("t", &[0], F32, 0)
        => Fault::DuplicateTensor(name) if name == "t", "tensor t is there twice";
    five_dimensions: Raw::new().tensor("t", &[1; 5], F32, 0)
        => Fault::Dimensions { found: 5, limit: 4, .. }, "5 dimensions";
    unknown_tensor_type: Raw::new().tensor("t", &[1], 99, 0)
        => Fault::TensorType { .. }, "tensor t: tensor type 99 is unknown";
    removed_tensor_type: Raw::new().tensor("t", &[1], 4, 0)
        => Fault::TensorType { .. }, "was removed from ggml";
    rows_not_of_whole_blocks: Raw::new().tensor("t", &[31, 32], Q4_0, 0)
        => Fault::Shape { error: ShapeError::Columns { columns: 31, .. }, .. },
        "no whole blocks of Q4_0";
    shape_overflows: Raw::new().tensor("t", &[1 << 32, 1 << 32], F32, 0)
        => Fault::Shape { error: ShapeError::TooLarge(_), .. }, "impossibly large";
    bytes_overflow: Raw::new().tensor("t", &[1 << 62], F32, 0)
        => Fault::Shape { error: ShapeError::TooLarge(_), .. }, "impossibly large";
    misaligned: Raw::new().tensor("t", &[1], F32, 8).data(vec![0; 64])
        => Fault::Misaligned { offset: 8, alignment: 32, .. },
        "no multiple of the file's alignment 32";
    overlap: Raw::new().tensor("a", &[9], F32, 0).tensor("b", &[1], F32, 32).data(vec![0; 64])
        => Fault::Overlap { first, second, .. } if first == "a" && second == "b",
        "a and b overlap";
    overlap_out_of_order:
        Raw::new().tensor("b", &[1], F32, 32).tensor("a", &[9], F32, 0).data(vec![0; 64])
        => Fault::Overlap { first, second, .. } if first == "a" && second == "b",
        "a and b overlap";
    same_place: Raw::new().tensor("a", &[1], F32, 0).tensor("b", &[1], F32, 0).data(vec![0; 64])
        => Fault::Overlap { .. }, "overlap";
    out_of_range: Raw::new().tensor("t", &[1], F32, 1 << 40).data(vec![0; 64])
        => Fault::OutOfRange { offset: 0x100_0000_0000, bytes: 4, .. }, "beyond the file's end";
    out_of_range_by_overflow: Raw::new().tensor("t", &[9], F32, u64::MAX - 31).data(vec![0; 64])
        => Fault::OutOfRange { .. }, "tensor t";
    truncated_data:
        Raw::new().tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 32).data(vec![0; 63])
        => Fault::Truncated { reading: "the tensors", expected: 160, found: 159 },
        "expected at least 160 bytes, found 159. Is the download complete?";
    truncated_before_the_data: Raw::new().tensor("t", &[1 << 20], F32, 0)
        => Fault::Truncated { reading: "the tensors", .. }, "Is the download complete?";
}

fn unpadded() -> Raw {
    Raw::new().with(|raw| raw.alignment = 1)
}

fn entry_array(ty: u32, count: u64, values: &[u8]) -> Raw {
    unpadded().entry("k", ARRAY, &array(ty, count, values))
}

fn aligned(alignment: u32) -> Raw {
    Raw::new().entry("general.alignment", U32, &alignment.to_le_bytes())
}

/// An array in an array, `depth` deep.
fn nested(depth: usize) -> Vec<u8> {
    (1..depth).fold(array(U8, 0, &[]), |inner, _| array(ARRAY, 1, &inner))
}

#[test]
fn empty_file() {
    let fault = polylora_file::Gguf::parse("e".as_ref(), Vec::new().into()).unwrap_err().fault;
    assert!(matches!(fault, Fault::Truncated { expected: 4, found: 0, .. }), "{fault:?}");
}

#[test]
fn arrays_as_deep_as_allowed() {
    Raw::new().entry("k", ARRAY, &nested(8)).parse().unwrap();
}
