//! Files written, and what is left where that fails.

use crate::raw::{ARRAY, Raw, U16, U32, array, check_whole};
use polylora_file::{
    AtomicFile, Fault, Gguf, GgufWriter, Metadata, TensorPlan, WriteOptions, same_file, write_file,
};
use polylora_quant::GgmlType;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn plan(name: &str, ty: GgmlType, shape: &[usize]) -> TensorPlan {
    TensorPlan { name: name.to_owned(), ty, shape: shape.to_vec() }
}

fn plans_of(file: &Gguf) -> Vec<TensorPlan> {
    file.tensors().iter().map(|tensor| plan(&tensor.name, tensor.ty, &tensor.shape)).collect()
}

/// Writes what `file` has.
pub(crate) fn copy(file: &Gguf, path: &Path, options: WriteOptions) -> Vec<PathBuf> {
    let writer = GgufWriter::create(path, file.metadata(), &plans_of(file), options).unwrap();
    for (index, tensor) in file.tensors().iter().enumerate() {
        assert_eq!(writer.tensor_bytes(index), tensor.bytes.len() as u64);
        writer.write_at(index, 0, &tensor.bytes).unwrap();
    }
    let size = writer.size();
    let paths = writer.finish().unwrap();
    let written: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert_eq!(written, size);
    paths
}

pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const OVERWRITE: WriteOptions = WriteOptions { overwrite: true, max_shard: None };

#[test]
fn what_is_read_and_written_is_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    for alignment in [8, 24, 32, 128] {
        let ones = |count| vec![1; count];
        let second = 16usize.next_multiple_of(alignment);
        let third = (second + 18).next_multiple_of(alignment);
        let end = (third + 4).next_multiple_of(alignment);
        let mut data = vec![0; end];
        data[..16].copy_from_slice(&ones(16));
        data[second..second + 18].copy_from_slice(&ones(18));
        data[third..third + 4].copy_from_slice(&ones(4));
        let raw = Raw::new()
            .with(|raw| raw.alignment = alignment)
            .entry("general.alignment", U32, &(alignment as u32).to_le_bytes())
            .entry("nested", ARRAY, &array(ARRAY, 1, &array(U16, 2, &[1, 2, 3, 4])))
            .entry("nan", 6, &[1, 0, 192, 127])
            .tensor("f", &[2, 2], 0, 0)
            .tensor("q", &[32], 2, second as u64)
            .tensor("scalar", &[], 0, third as u64)
            .data(data);
        let read = raw.parse().unwrap();
        assert_eq!(copy(&read, &path, OVERWRITE), std::slice::from_ref(&path));
        assert_eq!(fs::read(&path).unwrap(), raw.bytes(), "alignment {alignment}");
        check_whole(&Gguf::open(&path).unwrap());
    }
    assert_eq!(names_in(folder.path()), ["out.gguf"]);
}

#[test]
fn tensors_come_in_pieces_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let plans = [plan("a", GgmlType::I8, &[1000, 10]), plan("b", GgmlType::I8, &[7])];
    let writer = GgufWriter::create(&path, &Metadata::default(), &plans, OVERWRITE).unwrap();
    writer.write_at(1, 0, &[7; 7]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..10u8 {
            let writer = &writer;
            scope.spawn(move || {
                writer.write_at(0, 1000 * u64::from(thread), &[thread; 1000]).unwrap();
            });
        }
    });
    writer.finish().unwrap();
    let file = Gguf::open(&path).unwrap();
    for (thread, part) in file.tensor("a").unwrap().bytes.chunks(1000).enumerate() {
        assert!(part.iter().all(|&byte| usize::from(byte) == thread));
    }
    assert_eq!(&*file.tensor("b").unwrap().bytes, [7; 7]);
}

fn fault_of(metadata: &Metadata, plans: &[TensorPlan]) -> Fault {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let error = GgufWriter::create(&path, metadata, plans, OVERWRITE).unwrap_err();
    assert_eq!(names_in(folder.path()), [""; 0]);
    assert_eq!(error.path, path);
    error.fault
}

#[test]
fn what_no_file_can_hold_is_refused() {
    let f32s = |name: &str, shape: &[usize]| plan(name, GgmlType::F32, shape);
    let fault = |plans: &[TensorPlan]| fault_of(&Metadata::default(), plans);
    assert!(matches!(fault(&[f32s("", &[1])]), Fault::Name { length: 0, .. }));
    assert!(matches!(fault(&[f32s(&"n".repeat(65536), &[1])]), Fault::Name { length: 65536, .. }));
    assert!(matches!(fault(&[f32s("t", &[1]), f32s("t", &[1])]), Fault::DuplicateTensor(_)));
    assert!(matches!(fault(&[f32s("t", &[1; 5])]), Fault::Dimensions { found: 5, .. }));
    assert!(matches!(fault(&[plan("t", GgmlType::Q4_0, &[31])]), Fault::Shape { .. }));
    assert!(matches!(fault(&[f32s("t", &[1 << 40, 1 << 40])]), Fault::Shape { .. }));
    let huge = [f32s("t", &[1 << 61]), f32s("u", &[1 << 61]), f32s("v", &[1 << 61])];
    assert!(matches!(fault(&huge), Fault::NoRoom { needed: u64::MAX, .. }));

    let mut metadata = Metadata::default();
    metadata.insert("", 1u32.into());
    assert!(matches!(fault_of(&metadata, &[]), Fault::Name { length: 0, .. }));
    let mut metadata = Metadata::default();
    metadata.insert("general.alignment", 12u32.into());
    assert!(matches!(fault_of(&metadata, &[]), Fault::Alignment(12)));
}

#[test]
fn writes_stay_within_their_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let plans = [plan("a", GgmlType::I8, &[8]), plan("b", GgmlType::I8, &[8])];
    let writer = GgufWriter::create(&path, &Metadata::default(), &plans, OVERWRITE).unwrap();
    for (offset, count) in [(0, 9), (8, 1), (1, 8), (u64::MAX, 1)] {
        let fault = writer.write_at(0, offset, &vec![0; count]).unwrap_err().fault;
        assert!(matches!(&fault, Fault::OutsideTensor { tensor, size: 8, .. } if tensor == "a"));
    }
    // An incomplete file is never given its name.
    writer.write_at(0, 0, &[0; 8]).unwrap();
    let fault = writer.finish().unwrap_err().fault;
    assert!(matches!(fault, Fault::Unfinished { written: 8, expected: 16 }), "{fault:?}");
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn nothing_has_the_name_before_the_end_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let plans = [plan("a", GgmlType::I8, &[8])];
    let writer = GgufWriter::create(&path, &Metadata::default(), &plans, OVERWRITE).unwrap();
    assert!(!path.exists());
    assert_eq!(names_in(folder.path()).len(), 1);
    drop(writer);
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn an_existing_file_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    write_file(&path, b"old", false).unwrap();
    let error = write_file(&path, b"new", false).unwrap_err();
    assert!(matches!(error.fault, Fault::Exists), "{error:?}");
    assert!(GgufWriter::create(&path, &Metadata::default(), &[], WriteOptions::default()).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    write_file(&path, b"new", true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");

    // The name is taken while the work goes on.
    let late = folder.path().join("late");
    let file = AtomicFile::create(&late, 1, false).unwrap();
    fs::write(&late, "other").unwrap();
    assert!(matches!(file.finish().unwrap_err().fault, Fault::Exists));
    assert_eq!(fs::read(&late).unwrap(), b"other");
    assert_eq!(names_in(folder.path()), ["late", "out"]);
}

#[test]
fn folders_and_devices_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let fault = write_file(folder.path(), b"", true).unwrap_err().fault;
    assert!(matches!(fault, Fault::NotAFile), "{fault:?}");
    #[cfg(unix)]
    {
        let fault = write_file(Path::new("/dev/null"), b"", true).unwrap_err().fault;
        assert!(matches!(fault, Fault::NotAFile), "{fault:?}");
    }
}

#[test]
fn a_missing_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = write_file(&folder.path().join("none/out"), b"", false).unwrap_err();
    assert!(matches!(error.fault, Fault::Io { doing: "create it", .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    write_file(&ours, b"", false).unwrap();
    fs::write(&plain, b"").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[test]
fn same_file_sees_through_names() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&a, "").unwrap();
    fs::write(&b, "").unwrap();
    assert!(same_file(&a, &a));
    assert!(same_file(&a, &folder.path().join(".").join("a")));
    assert!(!same_file(&a, &b));
    assert!(!same_file(&a, &folder.path().join("none")));
    assert!(!same_file(&folder.path().join("none"), &folder.path().join("none")));
    #[cfg(unix)]
    {
        let (symbolic, hard) = (folder.path().join("s"), folder.path().join("h"));
        std::os::unix::fs::symlink(&a, &symbolic).unwrap();
        fs::hard_link(&a, &hard).unwrap();
        assert!(same_file(&a, &symbolic) && same_file(&hard, &a) && !same_file(&b, &symbolic));
    }
}

#[cfg(unix)]
#[test]
fn more_than_the_disk_has_is_refused_at_once() {
    let needed = 1u64 << 52; // 4 PiB
    let plans = [plan("t", GgmlType::F32, &[1 << 10, 1 << 40])];
    let fault = fault_of(&Metadata::default(), &plans);
    assert!(
        matches!(fault, Fault::NoRoom { needed: n, free: Some(free) } if n > needed && free < n),
        "{fault:?}"
    );
    assert!(fault.to_string().contains("bytes are needed"), "{fault}");
}

/// Runs [`beyond_the_limit`] in a process whose files may not grow: to a writer it is as a disk
/// that is full, but for the number of the error.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Ignored, the signal becomes an error; a shell can see to both without unsafe code.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact --ignored \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg("write::beyond_the_limit")
        .env("POLYLORA_TEST_FOLDER", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "run by the test above, under a limit"]
fn beyond_the_limit() {
    let Some(folder) = std::env::var_os("POLYLORA_TEST_FOLDER") else { return };
    let path = Path::new(&folder).join("out");
    // Already when its room is reserved,
    let error = AtomicFile::create(&path, 1 << 20, false).unwrap_err();
    assert!(matches!(error.fault, Fault::FileTooLarge(1_048_576)), "{error:?}");
    // and, where that says nothing, when it is written.
    let file = AtomicFile::create(&path, 100, false).unwrap();
    file.write_at(0, &[0; 100]).unwrap();
    let error = file.write_at(1 << 20, &[0; 100]).unwrap_err();
    assert!(matches!(error.fault, Fault::FileTooLarge(100)), "{error:?}");
}
