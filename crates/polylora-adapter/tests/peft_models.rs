//! Merges into tiny models against PEFT's own, every value of every tensor: experts in all their
//! forms, fused projections, transposed layers, biases. `tools/reference/moe_fixture.py` makes
//! the cases.

use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_file::{Gguf, WriteOptions, safetensors};
use std::path::{Path, PathBuf};

/// Largest difference allowed, relative to the largest value of the tensor.
const TOLERANCE: f32 = 1e-6;

/// Every folder below `folder` that holds a case.
fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    if folder.join("expected.safetensors").exists() {
        found.push(folder.to_owned());
        return;
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            cases(&path, found);
        }
    }
}

fn check(case: &Path) {
    let base = Gguf::open(&case.join("base.gguf")).unwrap();
    let spec = AdapterSpec::new(case.join("adapter"));
    let adapters = [load(&spec, &base, OnMismatch::Fail).unwrap()];
    let rules = TypeRules::parse(&["keep"]).unwrap();
    let plan = Plan::merge(&base, &adapters, &rules, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("merged.gguf");
    plan.write(&out, WriteOptions::default(), &()).unwrap();
    let merged = Gguf::open(&out).unwrap();

    let expected = safetensors::open(&case.join("expected.safetensors")).unwrap().tensors;
    assert!(!expected.is_empty());
    for wanted in &expected {
        let at = format!("{}: {}", case.display(), wanted.name);
        let tensor = merged.tensor(&wanted.name).unwrap_or_else(|| panic!("{at} is missing"));
        assert_eq!(tensor.shape, wanted.shape, "{at}");
        let (found, wanted) = (tensor.to_f32().unwrap(), wanted.to_f32().unwrap());
        let largest = wanted.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!((found - wanted).abs() <= TOLERANCE * largest, "{at}[{i}]: {found}, {wanted}");
        }
    }
    for tensor in merged.tensors() {
        if !expected.iter().any(|wanted| wanted.name == tensor.name) {
            let source = base.tensor(&tensor.name).unwrap();
            assert_eq!(*tensor.bytes, *source.bytes, "{}: {}", case.display(), tensor.name);
        }
    }
}

#[test]
fn merges_equal_pefts() {
    let mut found = Vec::new();
    cases(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"), &mut found);
    assert!(found.len() >= 10, "cases are missing: {found:?}");
    let failed: Vec<_> =
        found.iter().filter(|case| std::panic::catch_unwind(|| check(case)).is_err()).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}
