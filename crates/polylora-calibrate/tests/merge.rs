//! Calibrated merges of tiny models: of experts, and of adapters that change what is no linear layer.

use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_calibrate::{Options, merge};
use polylora_engine::{Engine, EngineOptions, Model};
use polylora_file::{Gguf, WriteOptions};
use std::path::Path;
use std::sync::Arc;

/// Texts of so many tokens of a vocabulary of 64.
fn texts() -> Vec<Vec<u32>> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 26
    };
    (0..40).map(|_| (0..30).map(|_| next()).collect()).collect()
}

#[test]
fn what_is_merged_says_what_the_adapter_says() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../polylora-adapter/tests/data");
    let cases =
        ["qwen2", "qwen2_embedding", "qwen2_tokens", "moe/mixtral_modules", "moe/qwen3moe_gate_up"];
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        let base = Gguf::open(&data.join(case).join("base.gguf")).unwrap();
        let spec = AdapterSpec::new(data.join(case).join("adapter"));
        let adapters = [load(&spec, &base, OnMismatch::Fail).unwrap()];
        let rules = TypeRules::parse(&["q8_0"]).unwrap();
        let plan = Plan::merge(&base, &adapters, &rules, None).unwrap();
        let options = EngineOptions { exact: true, ..Default::default() };
        let mut engine = Engine::new(Arc::new(Model::open(&base).unwrap()), &options).unwrap();
        let out = folder.path().join("out.gguf");
        let write = WriteOptions { overwrite: true, max_shard: None };
        let options = Options { write, residual_rank: None };
        let merged = merge(&plan, &adapters, &mut engine, texts(), (&out, options), &()).unwrap();
        let found = merged.report.calibration.unwrap();
        let (off, all) = (found.divergence, found.base_divergence);
        assert!(all > 1e-4 && off < 0.01 * all, "{case}: {off} of {all}");
    }
}
