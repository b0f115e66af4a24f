//! Importance matrices of both formats.

use crate::raw::{ARRAY, F32, Raw, STRING, U32, array, string};
use polylora_file::imatrix::Imatrix;
use polylora_file::{Bytes, Fault};
use std::path::Path;

fn floats(numbers: &[f32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

/// Sums and counts of one tensor, under these names.
fn gguf(names: [&str; 2], sums: &[f32], counts: &[f32]) -> Raw {
    let columns = (sums.len() / counts.len().max(1)) as u64;
    let offset = floats(sums).len() as u64;
    Raw::new()
        .entry("general.type", STRING, &string("imatrix"))
        .entry("imatrix.datasets", ARRAY, &array(STRING, 1, &string("wiki.txt")))
        .entry("imatrix.chunk_count", U32, &3u32.to_le_bytes())
        .entry("imatrix.chunk_size", U32, &512u32.to_le_bytes())
        .tensor(names[0], &[columns, counts.len() as u64], F32, 0)
        .tensor(names[1], &[1, counts.len() as u64], F32, offset)
        .data([floats(sums), floats(counts)].concat())
}

const NAMES: [&str; 2] = ["t.in_sum2", "t.counts"];

/// Two experts, the second of which saw nothing.
pub(crate) fn gguf_file() -> Vec<u8> {
    let raw = gguf(NAMES, &[1.0, 2.0, 5.0, 6.0], &[3.0, 0.0]);
    // Without the padding at the end, which need not be there.
    raw.clone().with(|raw| raw.data.truncate(raw.data.len() - 24)).bytes()
}

fn read(bytes: Vec<u8>) -> Result<Imatrix, Fault> {
    Imatrix::parse(Path::new("f"), Bytes::from(bytes)).map_err(|error| error.fault)
}

#[test]
fn means_of_each_expert() {
    let imatrix = read(gguf_file()).unwrap();
    assert_eq!(imatrix.get("t").unwrap(), [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
    assert_eq!(imatrix.get("u"), None);
    assert_eq!(imatrix.entries().map(|(name, _)| name).collect::<Vec<_>>(), ["t"]);
    assert_eq!(imatrix.datasets(), ["wiki.txt"]);
    assert_eq!((imatrix.chunks(), imatrix.chunk_size()), (Some(3), Some(512)));
}

#[test]
fn counts_are_rounded_as_llama_cpp_does() {
    // Halves away from zero; less than a half is nothing.
    for (count, mean) in [(2.5, 2.0), (2.4, 3.0), (0.4, 1.0), (-3.0, 1.0), (0.5, 6.0)] {
        let imatrix = read(gguf(NAMES, &[6.0], &[count]).bytes()).unwrap();
        assert_eq!(imatrix.get("t").unwrap(), [mean], "{count}");
    }
}

#[test]
fn gguf_faults() {
    let pair = read(gguf(["t.in_sum2", "u"], &[1.0], &[1.0]).bytes()).unwrap_err();
    assert_eq!(
        pair.to_string(),
        "t.counts is missing, without which the importance of t is not known"
    );
    let pair = read(gguf(["u", "t.counts"], &[1.0], &[1.0]).bytes()).unwrap_err();
    assert!(matches!(&pair, Fault::ImatrixPair { missing, .. } if missing == "t.in_sum2"));

    let model = read(Raw::model().bytes()).unwrap_err();
    assert!(matches!(model, Fault::NotImatrix(_)), "{model:?}");
    assert!(model.to_string().contains("without `.in_sum2` tensors"), "{model}");

    let integers = Raw::new()
        .tensor("t.in_sum2", &[1], 26, 0)
        .tensor("t.counts", &[1], F32, 32)
        .data(vec![0; 64]);
    assert!(matches!(read(integers.bytes()), Err(Fault::ImatrixType { .. })));

    let counts = Raw::new()
        .tensor("t.in_sum2", &[3], F32, 0)
        .tensor("t.counts", &[2], F32, 32)
        .data(vec![0; 64]);
    let fault = read(counts.bytes()).unwrap_err();
    assert!(matches!(fault, Fault::ImatrixCounts { sums: 3, counts: 2, .. }), "{fault:?}");
    let none = Raw::new()
        .tensor("t.in_sum2", &[3], F32, 0)
        .tensor("t.counts", &[0], F32, 32)
        .data(vec![0; 64]);
    assert!(matches!(read(none.bytes()), Err(Fault::ImatrixCounts { .. })));

    for (sum, count) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, f32::NAN), (f32::MAX, 0.6)] {
        let read = read(gguf(NAMES, &[sum], &[count]).bytes());
        assert_eq!(matches!(read, Err(Fault::NotFinite { .. })), sum != f32::MAX, "{read:?}");
    }
}

fn legacy_entry(name: &str, calls: i32, values: &[f32]) -> Vec<u8> {
    let mut bytes = (name.len() as i32).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(calls.to_le_bytes());
    bytes.extend((values.len() as i32).to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn legacy(entries: &[Vec<u8>]) -> Vec<u8> {
    [(entries.len() as i32).to_le_bytes().to_vec(), entries.concat()].concat()
}

/// A file, and the bytes that its entries take.
pub(crate) fn legacy_file() -> (Vec<u8>, usize) {
    let entries =
        legacy(&[legacy_entry("a", 3, &[1.0, 2.0]), legacy_entry("b", 0, &[1.5, 2.5, 3.5])]);
    let length = entries.len();
    let name = "wiki.txt";
    let end = [7i32.to_le_bytes(), (name.len() as i32).to_le_bytes()].concat();
    ([entries, end, name.as_bytes().to_vec()].concat(), length)
}

#[test]
fn the_older_format() {
    let (bytes, entries) = legacy_file();
    let imatrix = read(bytes.clone()).unwrap();
    assert_eq!(imatrix.get("a").unwrap(), [1.0 / 3.0, 2.0 / 3.0]);
    // Without calls the values are taken as they are.
    assert_eq!(imatrix.get("b").unwrap(), [1.5, 2.5, 3.5]);
    assert_eq!((imatrix.chunks(), imatrix.chunk_size()), (Some(7), None));
    assert_eq!(imatrix.datasets(), ["wiki.txt"]);

    let without_end = read(bytes[..entries].to_vec()).unwrap();
    assert_eq!((without_end.chunks(), without_end.datasets()), (None, &[][..]));
}

#[test]
fn older_faults() {
    let fault = |bytes: Vec<u8>| read(bytes).unwrap_err();
    for count in [0i32, -1, i32::MAX] {
        let fault = fault(count.to_le_bytes().to_vec());
        assert!(matches!(fault, Fault::NotImatrix(_)), "{fault:?}");
    }
    let twice = fault(legacy(&[legacy_entry("a", 1, &[1.0]), legacy_entry("a", 1, &[1.0])]));
    assert!(matches!(twice, Fault::DuplicateTensor(name) if name == "a"));
    let empty = fault(legacy(&[legacy_entry("", 1, &[1.0])]));
    assert!(matches!(empty, Fault::EmptyName { .. }));
    let long = fault(legacy(&[legacy_entry(&"n".repeat(65536), 1, &[1.0])]));
    assert!(matches!(long, Fault::TooLong { length: 65536, .. }), "{long:?}");
    let nan = fault(legacy(&[legacy_entry("a", 1, &[f32::NAN])]));
    assert!(matches!(nan, Fault::NotFinite { tensor } if tensor == "a"));

    // The first entry's numbers, each made wrong: name's length at 4, values at 13.
    let sound = legacy(&[legacy_entry("a", 1, &[1.0])]);
    let with = |at: usize, number: i32| {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        fault(bytes)
    };
    assert!(matches!(with(4, -1), Fault::Negative { at: 8, .. }));
    assert!(matches!(with(13, -1), Fault::Negative { at: 17, .. }));
    assert!(matches!(with(13, i32::MAX), Fault::Truncated { .. }));
    let mut not_text = sound.clone();
    not_text[8] = 0xff;
    assert!(matches!(fault(not_text), Fault::NotText { at: 4, .. }));
}
