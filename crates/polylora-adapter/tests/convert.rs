//! Adapters written as GGUF files: read back, they do the same.

mod support;

use polylora_adapter::{
    Adapter, AdapterSpec, ChangeKind, ConvertError, ConvertReport, OnMismatch, convert,
};
use polylora_file::Gguf;
use polylora_quant::GgmlType;
use std::path::Path;
use support::{GgufFile, PeftFolder, count_from, llama, load_path, product, small};

const LAYER: &str = "base_model.model.model.layers.0.";

fn written(
    folder: &PeftFolder,
    base: &GgufFile,
    ty: GgmlType,
    check: impl FnOnce(&Adapter, &Path, &Gguf, ConvertReport),
) {
    let adapter = folder.load(base).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("out.gguf");
    let base = base.open();
    let report = convert(&adapter, &base, &path, ty, false).unwrap();
    check(&adapter, &path, &base, report);
}

/// Read back, it changes the same rows by the same, within `tolerance` of the largest change.
fn same_after(folder: &PeftFolder, base: &GgufFile, ty: GgmlType, tolerance: f32) -> ConvertReport {
    let mut result = None;
    written(folder, base, ty, |adapter, path, base, report| {
        let back = load_path(path, base, 1.0, OnMismatch::Fail).unwrap();
        for change in &adapter.changes {
            let found = back
                .changes
                .iter()
                .find(|other| (&other.tensor, &other.rows) == (&change.tensor, &change.rows));
            let (expected, found) = (product(change), product(found.expect("the same change")));
            let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            for (expected, found) in expected.iter().zip(&found) {
                let difference = (expected - found).abs();
                assert!(
                    difference <= tolerance * largest,
                    "{expected} {found} in {}",
                    change.tensor
                );
            }
        }
        result = Some(report);
    });
    result.unwrap()
}

#[test]
fn a_plain_adapter_keeps_its_values() {
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 3"#)
        .pair("0.self_attn.q_proj", 2, 8, 8)
        .pair("0.self_attn.k_proj", 2, 8, 4)
        .pair("1.mlp.down_proj", 2, 12, 8);
    written(&folder, &llama(), GgmlType::F32, |adapter, path, _, report| {
        assert_eq!((report.tensors, report.alpha, report.rescaled), (3, 3.0, 0));
        assert!(report.fallback.is_empty());
        let file = Gguf::open(path).unwrap();
        let metadata = file.metadata();
        assert_eq!(metadata.str("general.type"), Some("adapter"));
        assert_eq!(metadata.str("general.architecture"), Some("llama"));
        assert_eq!(metadata.str("adapter.type"), Some("lora"));
        assert_eq!(metadata.f32("adapter.lora.alpha"), Some(3.0));
        assert_eq!(metadata.str("polylora.adapter.source_sha256"), Some(&*adapter.hash));
        let down = file.tensor("blk.1.ffn_down.weight.lora_a").unwrap();
        assert_eq!(down.shape, [2, 12]);
        assert_eq!(down.to_f32().unwrap(), count_from(1.0, &[2, 12]));
        assert_eq!(file.tensor("blk.0.attn_k.weight.lora_b").unwrap().shape, [4, 2]);
    });
    same_after(&folder, &llama(), GgmlType::F32, 0.0);
    same_after(&folder, &llama(), GgmlType::F16, 0.0);
    same_after(&folder, &llama(), GgmlType::BF16, 0.01);
}

#[test]
fn scales_of_their_own_go_into_b() {
    let folder = PeftFolder::new(
        r#""r": 2, "lora_alpha": 2, "use_rslora": true,
           "rank_pattern": {"k_proj": 4}, "alpha_pattern": {"v_proj": 7}"#,
    )
    .pair("0.self_attn.q_proj", 2, 8, 8)
    .pair("1.self_attn.q_proj", 2, 8, 8)
    .pair("0.self_attn.k_proj", 4, 8, 4)
    .pair("0.self_attn.v_proj", 2, 8, 4);
    let report = same_after(&folder, &llama(), GgmlType::F32, 1e-6);
    assert_eq!((report.tensors, report.rescaled), (4, 2));
    assert_eq!(report.alpha, (2.0 / 2f64.sqrt()) as f32 * 2.0);
}

#[test]
fn embeddings_turn_round_where_the_head_is_apart() {
    let name = "base_model.model.model.embed_tokens.";
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 3"#)
        .tensor(&format!("{name}lora_embedding_A"), &[2, 10], &count_from(1.0, &[2, 10]))
        .tensor(&format!("{name}lora_embedding_B"), &[8, 2], &count_from(5.0, &[8, 2]))
        .pair("0.mlp.up_proj", 2, 8, 12);
    let base = llama().zeros("output.weight", &[10, 8]);
    same_after(&folder, &base, GgmlType::F32, 0.0);
    written(&folder, &base, GgmlType::F32, |_, path, _, _| {
        let file = Gguf::open(path).unwrap();
        assert_eq!(file.tensor("token_embd.weight.lora_a").unwrap().shape, [10, 2]);
        assert_eq!(file.tensor("token_embd.weight.lora_b").unwrap().shape, [8, 2]);
    });
    refused(&folder, &llama(), "head");
}

#[test]
fn experts_are_stacked_and_filled_up() {
    let base = small("qwen3moe").zeros("blk.0.ffn_up_exps.weight", &[3, 6, 8]);
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 2, "rank_pattern": {"2.up_proj": 4}"#)
        .pair("0.mlp.experts.0.up_proj", 2, 8, 6)
        .pair("0.mlp.experts.2.up_proj", 4, 8, 6);
    let report = same_after(&folder, &base, GgmlType::F32, 1e-6);
    assert_eq!((report.tensors, report.rescaled), (1, 1));
    written(&folder, &base, GgmlType::F32, |_, path, base, _| {
        let back = load_path(path, base, 1.0, OnMismatch::Fail).unwrap();
        let untouched = back.changes.iter().find(|change| change.rows == (6..12)).unwrap();
        assert_eq!(product(untouched), [0.0; 48]);
    });
}

#[test]
fn rows_that_are_no_blocks_are_halves() {
    let base = GgufFile::new("llama").zeros("blk.0.ffn_up.weight", &[12, 64]);
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 2"#).pair("0.mlp.up_proj", 2, 64, 12);
    let report = same_after(&folder, &base, GgmlType::Q8_0, 0.01);
    assert_eq!(report.fallback, ["blk.0.ffn_up.weight.lora_b"]);
}

#[test]
fn the_users_scale_goes_along() {
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 3"#).pair("0.mlp.up_proj", 2, 8, 12);
    for (scale, rescaled) in [(0.5, 0), (-1.0, 0), (0.0, 1)] {
        let adapter = folder.load_with(&llama(), scale, OnMismatch::Fail).unwrap();
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("out.gguf");
        let base = llama().open();
        let report = convert(&adapter, &base, &path, GgmlType::F32, false).unwrap();
        assert_eq!(report.rescaled, rescaled, "{scale}");
        let back = load_path(&path, &base, 1.0, OnMismatch::Fail).unwrap();
        assert_eq!(product(&back.changes[0]), product(&adapter.changes[0]), "{scale}");
    }
}

fn refused(folder: &PeftFolder, base: &GgufFile, expected: &str) {
    let adapter = folder.load(base).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("out.gguf");
    let error = convert(&adapter, &base.open(), &path, GgmlType::F32, false).unwrap_err();
    assert!(matches!(error, ConvertError::Inexpressible { .. }), "{error}");
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(out.path().read_dir().unwrap().count(), 0, "nothing is written");
}

#[test]
fn what_llama_cpp_cannot_do_is_refused() {
    let new = || PeftFolder::new(r#""r": 2, "lora_alpha": 3"#);
    let up = || new().pair("0.mlp.up_proj", 2, 8, 12);
    let name = |part: &str| format!("{LAYER}mlp.up_proj.{part}");
    let magnitude = up().tensor(&name("lora_magnitude_vector"), &[12], &[1.0; 12]);
    refused(&magnitude, &llama(), "DoRA");
    refused(&up().tensor(&name("lora_B.bias"), &[12], &[1.0; 12]), &llama(), "bias");
    let norm = up().tensor("base_model.model.model.norm.weight", &[8], &[1.0; 8]);
    refused(&norm, &llama(), "replaces");
    let head = new().tensor("base_model.model.lm_head.lora_A.weight", &[2, 8], &[1.0; 16]).tensor(
        "base_model.model.lm_head.lora_B.weight",
        &[10, 2],
        &[1.0; 20],
    );
    refused(&head, &llama(), "head");
    let adapter = head.load(&llama().zeros("output.weight", &[10, 8])).unwrap();
    assert!(matches!(adapter.changes[0].kind, ChangeKind::LowRank { .. }));
}

#[test]
fn a_value_too_large_for_the_type() {
    let folder = PeftFolder::new(r#""r": 2"#)
        .tensor(&format!("{LAYER}mlp.up_proj.lora_A.weight"), &[2, 8], &[1e6; 16])
        .tensor(&format!("{LAYER}mlp.up_proj.lora_B.weight"), &[12, 2], &[1.0; 24]);
    let adapter = folder.load(&llama()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("out.gguf");
    let to = |ty| convert(&adapter, &llama().open(), &path, ty, true);
    let error = to(GgmlType::F16).unwrap_err();
    assert!(matches!(&error, ConvertError::Overflow { tensor, .. } if tensor.ends_with("lora_a")));
    assert!(to(GgmlType::BF16).is_ok());
}

#[test]
fn an_existing_file_is_kept() {
    let folder = PeftFolder::new(r#""r": 2"#).pair("0.mlp.up_proj", 2, 8, 12);
    written(&folder, &llama(), GgmlType::F32, |adapter, path, base, _| {
        let before = std::fs::read(path).unwrap();
        assert!(convert(adapter, base, path, GgmlType::F16, false).is_err());
        assert_eq!(std::fs::read(path).unwrap(), before);
        assert!(convert(adapter, base, path, GgmlType::F16, true).is_ok());
        assert_ne!(std::fs::read(path).unwrap(), before);
    });
}

#[test]
fn a_gguf_adapter_stays_what_it_is() {
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 3"#).pair("0.self_attn.q_proj", 2, 8, 8);
    written(&folder, &llama(), GgmlType::F32, |_, path, base, _| {
        let spec = AdapterSpec::new(path);
        let once = polylora_adapter::load(&spec, base, OnMismatch::Fail).unwrap();
        let again = path.with_extension("again");
        convert(&once, base, &again, GgmlType::F32, false).unwrap();
        let (first, second) = (Gguf::open(path).unwrap(), Gguf::open(&again).unwrap());
        for (a, b) in first.tensors().iter().zip(second.tensors()) {
            assert_eq!((&a.name, &*a.bytes), (&b.name, &*b.bytes));
        }
    });
}
