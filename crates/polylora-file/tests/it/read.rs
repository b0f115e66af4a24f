//! Sound files read as they should be.

use crate::raw::{ARRAY, F32, Q4_0, Raw, U32, array, check_whole, string};
use polylora_file::{Gguf, Value};
use polylora_quant::GgmlType;

#[test]
fn some_of_everything() {
    for version in [2, 3] {
        let file = Raw::model().with(|raw| raw.version = version).parse().unwrap();
        check_whole(&file);
        assert_eq!((file.version(), file.alignment()), (version, 32));
        assert_eq!(file.architecture(), Some("llama"));
        assert_eq!(file.metadata().get("yes"), Some(&Value::Bool(true)));
        // Tokens need not be UTF-8.
        let tokens = [Value::String(b"a".to_vec()), Value::String(vec![0xff])];
        assert_eq!(file.metadata().array("tokens").unwrap(), tokens);
        assert_eq!(file.parts(), ["test.gguf".as_ref()] as [&std::path::Path; 1]);

        let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["f", "q"]);
        let f = file.tensor("f").unwrap();
        // Columns come first in the file and last in a shape.
        assert_eq!((f.ty, &*f.shape), (GgmlType::F32, &[2, 3][..]));
        assert_eq!(f.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let q = file.tensor("q").unwrap().to_f32().unwrap();
        assert_eq!((q[0], q[31]), (-0.5, 1.0));
        assert!(file.tensor("none").is_none());
    }
}

#[test]
fn every_type_of_value() {
    let raw = Raw::new()
        .entry("u8", 0, &[0xfe])
        .entry("i8", 1, &[0xfe])
        .entry("u16", 2, &[0xfe, 0xff])
        .entry("i16", 3, &[0xfe, 0xff])
        .entry("u32", 4, &0xffff_fffeu32.to_le_bytes())
        .entry("i32", 5, &(-2i32).to_le_bytes())
        .entry("f32", 6, &1.5f32.to_le_bytes())
        .entry("bool", 7, &[0])
        .entry("string", 8, &string("text"))
        .entry("array", 9, &array(3, 2, &[1, 0, 0xff, 0xff]))
        .entry("u64", 10, &u64::MAX.to_le_bytes())
        .entry("i64", 11, &(-2i64).to_le_bytes())
        .entry("f64", 12, &(-0.5f64).to_le_bytes())
        .entry("nested", 9, &array(ARRAY, 2, &[array(0, 1, &[7]), array(8, 0, &[])].concat()));
    let file = raw.parse().unwrap();
    check_whole(&file);
    let get = |key: &str| file.metadata().get(key).unwrap().clone();
    assert_eq!(get("u8"), Value::U8(254));
    assert_eq!(get("i8"), Value::I8(-2));
    assert_eq!(get("u16"), Value::U16(65534));
    assert_eq!(get("i16"), Value::I16(-2));
    assert_eq!(get("u32"), Value::U32(u32::MAX - 1));
    assert_eq!(get("i32"), Value::I32(-2));
    assert_eq!(get("f32"), Value::F32(1.5));
    assert_eq!(get("bool"), Value::Bool(false));
    assert_eq!(get("string"), "text".into());
    assert_eq!(get("u64"), Value::U64(u64::MAX));
    assert_eq!(get("i64"), Value::I64(-2));
    assert_eq!(get("f64"), Value::F64(-0.5));
    assert_eq!(file.metadata().array("array").unwrap(), [Value::I16(1), Value::I16(-1)]);
    let nested = file.metadata().array("nested").unwrap();
    let Value::Array(inner) = &nested[0] else { panic!("{nested:?}") };
    assert_eq!(inner.iter().collect::<Vec<_>>(), [Value::U8(7)]);
}

#[test]
fn alignments_that_either_program_allows() {
    // 4: a power of two, no multiple of 8. 24: a multiple of 8, no power of two.
    for alignment in [1, 4, 8, 24, 64, 4096] {
        let offset = 8u64.next_multiple_of(alignment as u64);
        let file = Raw::new()
            .with(|raw| raw.alignment = alignment)
            .entry("general.alignment", U32, &(alignment as u32).to_le_bytes())
            .tensor("a", &[2], F32, 0)
            .tensor("b", &[1], F32, offset)
            .data([vec![0; offset as usize], 7.0f32.to_le_bytes().to_vec()].concat())
            .parse()
            .unwrap();
        assert_eq!(file.alignment(), alignment);
        assert_eq!(file.tensor("b").unwrap().to_f32().unwrap(), [7.0]);
    }
}

#[test]
fn tensors_in_any_order_with_gaps_and_without_bytes() {
    let file = Raw::new()
        .tensor("late", &[1], F32, 96)
        .tensor("early", &[1], F32, 0)
        .tensor("none", &[0, 3], F32, 0)
        .tensor("scalar", &[], F32, 32)
        .tensor("blocks", &[32, 1, 1, 0], Q4_0, 96)
        .data([[0; 96], [1; 96]].concat())
        .parse()
        .unwrap();
    check_whole(&file);
    assert_eq!(file.tensors()[0].name, "late");
    assert_eq!(&*file.tensor("late").unwrap().bytes, [1; 4]);
    assert_eq!(file.tensor("none").unwrap().shape, [3, 0]);
    assert!(file.tensor("scalar").unwrap().shape.is_empty());
}

#[test]
fn a_file_of_nothing() {
    let file = Raw::new().parse().unwrap();
    assert!(file.tensors().is_empty() && file.metadata().iter().next().is_none());
    assert_eq!((file.alignment(), file.architecture()), (32, None));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing.gguf")] {
        let error = Gguf::open(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: cannot read it: ", path.display())), "{error}");
    }
}
