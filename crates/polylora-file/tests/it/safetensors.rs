//! safetensors, whole and in shards.

use polylora_file::safetensors::{open, parse};
use polylora_file::{Error, Fault};
use polylora_quant::GgmlType;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// A file of these tensors, as the crate writes it.
fn file(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.to_string(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let metadata: HashMap<String, String> = metadata.collect();
    serialize(views, Some(metadata).filter(|metadata| !metadata.is_empty())).unwrap()
}

/// A file by its header's text and the number of its data's bytes.
fn by_hand(header: &str, data: usize) -> Result<(), Fault> {
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [&length[..], header.as_bytes(), &vec![0; data]].concat();
    parse(Path::new("f"), bytes.into()).map(drop).map_err(|error| error.fault)
}

pub(crate) fn adapter_file() -> Vec<u8> {
    file(
        &[
            ("a.lora_A.weight", Dtype::F32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]),
            ("a.lora_B.weight", Dtype::BF16, &[2, 1], &[128, 63, 0, 64]),
        ],
        &[("format", "pt")],
    )
}

#[test]
fn tensors_and_metadata() {
    let read = parse(Path::new("f"), adapter_file().into()).unwrap();
    assert_eq!(read.metadata.get("format").map(String::as_str), Some("pt"));
    let [a, b] = &read.tensors[..] else { panic!("{read:?}") };
    assert_eq!((&*a.name, a.ty, &*a.shape), ("a.lora_A.weight", GgmlType::F32, &[1, 2][..]));
    assert_eq!((&*b.name, b.ty, &*b.shape), ("a.lora_B.weight", GgmlType::BF16, &[2, 1][..]));
    assert_eq!((a.to_f32().unwrap(), b.to_f32().unwrap()), (vec![1.0, 2.0], vec![1.0, 2.0]));
}

#[test]
fn every_type_that_ggml_has() {
    let types = [
        (Dtype::F64, GgmlType::F64),
        (Dtype::F32, GgmlType::F32),
        (Dtype::F16, GgmlType::F16),
        (Dtype::BF16, GgmlType::BF16),
        (Dtype::I64, GgmlType::I64),
        (Dtype::I32, GgmlType::I32),
        (Dtype::I16, GgmlType::I16),
        (Dtype::I8, GgmlType::I8),
    ];
    for (dtype, ty) in types {
        let bytes = vec![0; 3 * ty.block_bytes()];
        let bytes = file(&[("t", dtype, &[3], &bytes)], &[]);
        assert_eq!(parse(Path::new("f"), bytes.into()).unwrap().tensors[0].ty, ty);
    }
    let bytes = file(&[("t", Dtype::F8_E4M3, &[3], &[0; 3])], &[]);
    let error = parse(Path::new("f"), bytes.into()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f: tensor t holds numbers of type F8_E4M3, which are not read here: save it as F32, F16 \
         or BF16"
    );
}

#[test]
fn faults() {
    let tensor = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    by_hand(tensor, 8).unwrap();
    let truncated = by_hand(tensor, 7).unwrap_err();
    let expected = (8 + tensor.len() + 8) as u64;
    assert!(
        matches!(truncated, Fault::Truncated { reading: "the tensors", expected: e, found }
            if (e, found) == (expected, expected - 1)),
        "{truncated:?}"
    );
    // Trailing bytes are no truncation.
    assert!(matches!(by_hand(tensor, 9).unwrap_err(), Fault::Safetensors(_)));

    for header in [
        "no JSON",
        "{\"t\": 7}",
        r#"{"t":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
        r#"{"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#,
        r#"{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#,
        r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "u":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
    ] {
        let fault = by_hand(header, 8).unwrap_err();
        assert!(matches!(fault, Fault::Safetensors(_)), "{header}: {fault:?}");
    }

    let whole = |bytes: &[u8]| parse(Path::new("f"), bytes.to_vec().into()).unwrap_err().fault;
    assert!(matches!(whole(&[1, 0, 0]), Fault::Truncated { expected: 8, found: 3, .. }));
    assert!(matches!(whole(&[20, 0, 0, 0, 0, 0, 0, 0]), Fault::Truncated { expected: 28, .. }));
    // A length beyond all measure is refused as such.
    assert!(matches!(whole(&[255; 8]), Fault::Safetensors(_)));
    // A scalar has one number.
    by_hand(r#"{"t":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4).unwrap();
}

struct Shards(tempfile::TempDir);

impl Shards {
    /// Two shards, `1` with tensor `a` and `2` with `b`, under an index of these pairs.
    fn new(index: &[(&str, &str)]) -> Shards {
        let folder = tempfile::tempdir().unwrap();
        for (shard, tensor) in [("1", "a"), ("2", "b")] {
            let bytes = file(&[(tensor, Dtype::F32, &[1], &[0; 4])], &[("shard", shard)]);
            fs::write(folder.path().join(shard), bytes).unwrap();
        }
        let map: HashMap<_, _> = index.iter().copied().collect();
        let index = serde_json::json!({"metadata": {"total_size": 8}, "weight_map": map});
        fs::write(folder.path().join("m.safetensors.index.json"), index.to_string()).unwrap();
        Shards(folder)
    }

    fn open(&self) -> Result<Vec<String>, Error> {
        let read = open(&self.0.path().join("m.safetensors.index.json"))?;
        assert_eq!(read.files.len(), 3);
        Ok(read.tensors.into_iter().map(|tensor| tensor.name).collect())
    }
}

#[test]
fn shards_are_one_file() {
    assert_eq!(Shards::new(&[("a", "1"), ("b", "2")]).open().unwrap(), ["a", "b"]);
}

#[test]
fn shards_and_index_must_agree() {
    let fault = |index: &[(&str, &str)]| Shards::new(index).open().unwrap_err().fault;
    // In the index, but not in its shard.
    let missing = fault(&[("a", "1"), ("b", "2"), ("c", "2")]);
    assert!(
        matches!(&missing, Fault::NotInShard { tensor, expected }
        if tensor == "c" && expected == "2"),
        "{missing:?}"
    );
    // In a shard, but not in the index, or elsewhere there.
    for index in [&[("a", "1"), ("c", "2")][..], &[("a", "1"), ("b", "1"), ("c", "2")]] {
        let stray = fault(index);
        assert!(
            matches!(&stray, Fault::NotInIndex { tensor, shard }
            if tensor == "b" && shard == "2"),
            "{stray:?}"
        );
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let shards = Shards::new(&[("a", "1"), ("b", "2")]);
    let both = file(&[("a", Dtype::F32, &[1], &[0; 4]), ("b", Dtype::F32, &[1], &[0; 4])], &[]);
    fs::write(shards.0.path().join("2"), both).unwrap();
    let fault = shards.open().unwrap_err().fault;
    assert!(matches!(&fault, Fault::NotInIndex { tensor, .. } if tensor == "a"), "{fault:?}");
}

#[test]
fn a_missing_shard_is_named() {
    let shards = Shards::new(&[("a", "1"), ("b", "2")]);
    fs::remove_file(shards.0.path().join("2")).unwrap();
    let error = shards.open().unwrap_err();
    assert!(matches!(error.fault, Fault::PartMissing { .. }), "{error:?}");
    assert_eq!(error.path, shards.0.path().join("2"));
    assert!(error.to_string().contains("m.safetensors.index.json refers to it"), "{error}");
}

#[test]
fn a_shard_lies_beside_its_index() {
    for name in ["../1", "/1", "x/1", ".", "..", "", "./1", "1/", "1/.", "..\\1"] {
        let fault = Shards::new(&[("a", name)]).open().unwrap_err().fault;
        assert!(matches!(&fault, Fault::ShardName(shard) if shard == name), "{fault:?}");
    }
}

#[test]
fn an_index_is_json() {
    let shards = Shards::new(&[]);
    for text in ["", "[]", "{}", "{\"weight_map\": 7}", "{\"weight_map\": {\"a\": 1}}"] {
        fs::write(shards.0.path().join("m.safetensors.index.json"), text).unwrap();
        let fault = shards.open().unwrap_err().fault;
        assert!(matches!(fault, Fault::Index(_)), "{text}: {fault:?}");
    }
}
