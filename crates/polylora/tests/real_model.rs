//! Merges of real adapters into SmolLM2-135M-Instruct (Q4_1) against PEFT's.
//!
//! The model is fetched by `cargo xtask real-model`, which runs these tests; `cargo test` alone
//! needs no network and leaves them out.

use polylora::adapter::rewrite::{Plan, TypeRules};
use polylora::adapter::{AdapterSpec, OnMismatch, load};
use polylora::file::{Gguf, WriteOptions, safetensors, sha256};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> PathBuf {
    repository().join(".cache/smollm2-135m-instruct-q4_1.gguf")
}

/// Samples that `tools/reference/peft_merge.py` takes: of a tensor of `n` values, value
/// `k * STRIDE mod n` for each `k` below the number of samples.
const STRIDE: u64 = 2_654_435_761;

/// Largest difference allowed, relative to the largest sample of the tensor.
const TOLERANCE: f32 = 1e-6;

/// Merges the adapter to F32 and compares every tensor that PEFT changed with its samples.
fn check(name: &str) {
    let base = Gguf::open(&model()).expect("run by cargo xtask real-model, which fetches it");
    let spec = AdapterSpec::new(repository().join("testdata/adapters").join(name));
    let adapters = [load(&spec, &base, OnMismatch::Fail).unwrap()];
    let rules = TypeRules::parse(&["f32"]).unwrap();
    let plan = Plan::merge(&base, &adapters, &rules, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("merged.gguf");
    plan.write(&out, WriteOptions { overwrite: false, max_shard: None }, &()).unwrap();
    let merged = Gguf::open(&out).unwrap();

    let samples = format!("crates/polylora-adapter/tests/data/peft/{name}.safetensors");
    let samples = safetensors::open(&repository().join(samples)).unwrap();
    assert_eq!(samples.metadata["base_sha256"], sha256([&*std::fs::read(model()).unwrap()]));
    assert!(!samples.tensors.is_empty());
    for sample in &samples.tensors {
        let tensor = merged.tensor(&sample.name);
        let tensor = tensor.unwrap_or_else(|| panic!("{} is not in the output", sample.name));
        let values = tensor.to_f32().unwrap();
        let wanted = sample.to_f32().unwrap();
        let largest = wanted.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
        for (k, wanted) in wanted.iter().enumerate() {
            let index = (k as u64 * STRIDE % values.len() as u64) as usize;
            let error = (values[index] - wanted).abs() / largest;
            assert!(
                error <= TOLERANCE,
                "{name}: {}[{index}] is {}, PEFT has {wanted}",
                sample.name,
                values[index]
            );
        }
    }

    // What PEFT left alone we left alone.
    let sampled = |name: &str| samples.tensors.iter().any(|sample| sample.name == name);
    for tensor in merged.tensors().iter().filter(|tensor| !sampled(&tensor.name)) {
        let source = base.tensor(&tensor.name).or_else(|| base.tensor("token_embd.weight"));
        assert_eq!(*tensor.bytes, *source.unwrap().bytes, "{name} changed {}", tensor.name);
    }
}

macro_rules! adapters {
    ($($test:ident $name:literal;)*) => {
        $(#[test]
        #[ignore = "needs the real model: cargo xtask real-model fetches it and runs this"]
        fn $test() {
            check($name);
        })*

        #[test]
        fn every_adapter_is_tested() {
            let tested = [$($name),*];
            for entry in std::fs::read_dir(repository().join("testdata/adapters")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(tested.contains(&&*name), "{name} has no test");
            }
        }
    };
}

adapters! {
    shout "shout";
    json "json";
    pirate "pirate";
    all_linear "all-linear-r8";
    dora "dora";
    embeddings "embeddings";
    lm_head "lm-head";
    lora_bias "lora-bias";
    patterns "patterns";
    plain "plain-qv";
    rslora "rslora";
    saved_norms "saved-norms";
}
