//! Split files, written and read.

use crate::raw::{F32, I32, Raw, U16, U32, check_whole};
use crate::write::{copy, names_in, plan};
use polylora_file::{Fault, Gguf, GgufWriter, Metadata, Value, WriteOptions};
use polylora_quant::GgmlType;
use std::fs;
use std::path::Path;

const PARTS: [&str; 3] =
    ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

/// Part `no`, from 0, with these tensors of one number each.
fn part(no: u16, count: u16, of_all: i32, tensors: &[&str]) -> Raw {
    let mut raw = Raw::new()
        .entry("part", U16, &no.to_le_bytes())
        .entry("split.no", U16, &no.to_le_bytes())
        .entry("split.count", U16, &count.to_le_bytes())
        .entry("split.tensors.count", I32, &of_all.to_le_bytes());
    for (index, tensor) in (0u64..).zip(tensors) {
        raw = raw.tensor(tensor, &[1], F32, 32 * index);
    }
    raw.data(vec![no as u8; 32 * tensors.len()])
}

/// A folder with a sound file in three parts.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (no, tensors) in (0u16..).zip([&["a", "b"][..], &["c"], &["d"]]) {
        let bytes = part(no, 3, 4, tensors).bytes();
        fs::write(folder.path().join(PARTS[usize::from(no)]), bytes).unwrap();
    }
    folder
}

#[test]
fn any_part_opens_the_whole() {
    let folder = folder();
    let paths: Vec<_> = PARTS.iter().map(|part| folder.path().join(part)).collect();
    for path in &paths {
        let file = Gguf::open(path).unwrap();
        check_whole(&file);
        assert_eq!(file.parts(), paths);
        let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!(&*file.tensor("d").unwrap().bytes, [2; 4]);
        assert_eq!(file.metadata().get("part"), Some(&Value::U16(0)));
    }
}

/// Replaces the second part, and opens the first.
fn with_second(change: impl FnOnce(&Path)) -> (Fault, String) {
    let folder = folder();
    change(&folder.path().join(PARTS[1]));
    let error = Gguf::open(&folder.path().join(PARTS[0])).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("m-0000"), "{text}");
    (error.fault, text)
}

#[test]
fn faults_of_parts() {
    let write = |raw: Raw| with_second(|path| fs::write(path, raw.bytes()).unwrap());

    let (fault, text) = with_second(|path| fs::remove_file(path).unwrap());
    assert!(matches!(fault, Fault::PartMissing { .. }), "{fault:?}");
    assert!(text.contains("m-00002-of-00003.gguf: this file is missing"), "{text}");
    assert!(text.contains("m-00001-of-00003.gguf refers to it"), "{text}");

    let (fault, text) = write(part(2, 3, 4, &["c"]));
    assert!(matches!(fault, Fault::PartDisagrees { no: 2, count: 3, found_no: 3, found_count: 3 }));
    assert!(text.contains("should be part 2 of 3, but its metadata say part 3 of 3"), "{text}");
    let (fault, _) = write(part(1, 2, 4, &["c"]));
    assert!(matches!(fault, Fault::PartDisagrees { found_count: 2, .. }), "{fault:?}");
    let (fault, _) = write(Raw::model());
    assert!(matches!(fault, Fault::PartDisagrees { found_no: 1, found_count: 1, .. }), "{fault:?}");

    let (fault, _) = write(part(1, 3, 4, &["a"]));
    assert!(matches!(&fault, Fault::DuplicateTensor(name) if name == "a"), "{fault:?}");
    let (fault, _) = write(part(1, 3, 4, &["c", "e"]));
    assert!(matches!(fault, Fault::PartTensors { expected: 4, found: 5 }), "{fault:?}");
}

#[test]
fn a_part_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let fault = |name: &str, raw: Raw| {
        let path = folder.path().join(name);
        fs::write(&path, raw.bytes()).unwrap();
        Gguf::open(&path).unwrap_err().fault
    };
    let misnamed = fault("m.gguf", part(1, 3, 4, &["c"]));
    assert!(matches!(misnamed, Fault::PartName { no: 2, count: 3 }), "{misnamed:?}");
    assert!(misnamed.to_string().contains("-00002-of-00003.gguf"), "{misnamed}");
    let beyond = fault("m-00004-of-00003.gguf", part(3, 3, 4, &["c"]));
    assert!(matches!(beyond, Fault::PartName { no: 4, count: 3 }), "{beyond:?}");
    let many = fault("m.gguf", Raw::new().entry("split.count", U32, &70_000u32.to_le_bytes()));
    assert!(matches!(many, Fault::TooMany { count: 70_000, .. }), "{many:?}");
    // Counts of one are no split at all.
    let one = folder.path().join("one.gguf");
    fs::write(&one, part(0, 1, 1, &["a"]).bytes()).unwrap();
    Gguf::open(&one).unwrap();
}

#[test]
fn written_as_one_it_says_nothing_of_parts() {
    let folder = folder();
    let out = folder.path().join("whole.gguf");
    copy(&Gguf::open(&folder.path().join(PARTS[0])).unwrap(), &out, WriteOptions::default());
    let whole = Gguf::open(&out).unwrap();
    assert_eq!(whole.metadata().iter().map(|(key, _)| key).collect::<Vec<_>>(), ["part"]);
    assert_eq!(whole.tensors().len(), 4);
}

#[test]
fn split_when_asked() {
    let folder = folder();
    let source = Gguf::open(&folder.path().join(PARTS[0])).unwrap();
    let mut metadata = source.metadata().clone();
    metadata.insert("general.alignment", 64u32.into());
    let shapes = [("small", 10), ("large", 1000), ("medium", 300), ("last", 10)];
    let plans = shapes.map(|(name, bytes)| plan(name, GgmlType::I8, &[bytes]));

    let out = tempfile::tempdir().unwrap();
    let options = WriteOptions { overwrite: false, max_shard: Some(700) };
    let path = out.path().join("out.gguf");
    let writer = GgufWriter::create(&path, &metadata, &plans, options).unwrap();
    for (index, (_, bytes)) in shapes.into_iter().enumerate() {
        writer.write_at(index, 0, &vec![index as u8; bytes]).unwrap();
    }
    let paths = writer.finish().unwrap();
    let names = ["out-00001-of-00003.gguf", "out-00002-of-00003.gguf", "out-00003-of-00003.gguf"];
    assert_eq!(paths, names.map(|name| out.path().join(name)));
    assert_eq!(names_in(out.path()), names);

    // Each as large as it may be, but for the one whose tensor alone is larger.
    let tensors: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let part = Gguf::parse(path, fs::read(path).unwrap().into()).unwrap();
            assert_eq!(part.alignment(), 64);
            // What is the model's is in the first part alone.
            assert_eq!(part.metadata().get("part").is_some(), path == &paths[0]);
            part.tensors().iter().map(|tensor| tensor.name.clone()).collect()
        })
        .collect();
    assert_eq!(tensors, [vec!["small"], vec!["large"], vec!["medium", "last"]]);
    let sizes: Vec<u64> = paths.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    assert!(sizes[0] <= 700 && sizes[1] > 700 && sizes[2] <= 700, "{sizes:?}");

    let whole = Gguf::open(&paths[1]).unwrap();
    check_whole(&whole);
    assert_eq!(whole.metadata().get("split.count"), Some(&Value::U16(3)));
    assert_eq!(whole.metadata().get("split.tensors.count"), Some(&Value::I32(4)));
    for (index, tensor) in whole.tensors().iter().enumerate() {
        assert!(tensor.bytes.iter().all(|&byte| usize::from(byte) == index));
    }

    // None is replaced unasked, whichever it is.
    fs::remove_file(&paths[0]).unwrap();
    let error = GgufWriter::create(&path, &metadata, &plans, options).unwrap_err();
    assert!(matches!(error.fault, Fault::Exists), "{error:?}");
    assert_eq!(error.path, paths[1]);
}

#[test]
fn the_largest_part_is_as_large_as_asked() {
    let plans: Vec<_> = (0..20).map(|no| plan(&format!("t{no}"), GgmlType::I8, &[100])).collect();
    for max in (300..900).step_by(31) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        let options = WriteOptions { overwrite: false, max_shard: Some(max) };
        let writer = GgufWriter::create(&path, &Metadata::default(), &plans, options).unwrap();
        for no in 0..20 {
            writer.write_at(no, 0, &[0; 100]).unwrap();
        }
        for path in writer.finish().unwrap() {
            let part = Gguf::parse(&path, fs::read(&path).unwrap().into()).unwrap();
            let size = fs::metadata(&path).unwrap().len();
            assert!(size <= max || part.tensors().len() == 1, "{size} of {max}");
        }
    }
}

#[test]
fn what_fits_one_file_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let options = WriteOptions { overwrite: false, max_shard: Some(1 << 20) };
    let paths = copy(&Raw::model().parse().unwrap(), &path, options);
    assert_eq!(paths, std::slice::from_ref(&path));
    assert!(Gguf::open(&path).unwrap().metadata().get("split.count").is_none());
}

#[test]
fn parts_that_cannot_have_their_names_are_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let plans = ["a", "b"].map(|name| plan(name, GgmlType::I8, &[100]));
    let options = WriteOptions { overwrite: false, max_shard: Some(1) };
    let path = folder.path().join("out.gguf");
    let writer = GgufWriter::create(&path, &Metadata::default(), &plans, options).unwrap();
    writer.write_at(0, 0, &[0; 100]).unwrap();
    writer.write_at(1, 0, &[0; 100]).unwrap();
    let first = folder.path().join("out-00001-of-00002.gguf");
    fs::write(&first, "in the way").unwrap();
    assert!(matches!(writer.finish().unwrap_err().fault, Fault::Exists));
    assert_eq!(names_in(folder.path()), ["out-00001-of-00002.gguf"]);
    assert_eq!(fs::read(&first).unwrap(), b"in the way");
}
