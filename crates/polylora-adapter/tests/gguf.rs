//! GGUF adapters against small bases.

mod support;

use polylora_adapter::{Adapter, ChangeKind, Fault, OnMismatch, summarize};
use polylora_quant::GgmlType;
use std::fs;
use support::{GgufFile, change_of, count_from, llama, load_path, matmul, product, small, values};

fn adapter(architecture: &str) -> GgufFile {
    GgufFile::new(architecture)
        .with("general.type", "adapter")
        .with("adapter.type", "lora")
        .with("adapter.lora.alpha", 6.0f32)
}

/// A pair of `a` and `b` of these shapes, their values counted from 1 and 101.
fn with_pair(file: GgufFile, name: &str, ty: GgmlType, a: &[usize], b: &[usize]) -> GgufFile {
    file.tensor(&format!("{name}.lora_a"), a, ty, &count_from(1.0, a)).tensor(
        &format!("{name}.lora_b"),
        b,
        ty,
        &count_from(101.0, b),
    )
}

fn load(file: &GgufFile, base: &GgufFile, on_mismatch: OnMismatch) -> Result<Adapter, Fault> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    file.write(&path);
    load_path(&path, &base.open(), 1.0, on_mismatch)
}

fn fault(file: &GgufFile, base: &GgufFile) -> Fault {
    load(file, base, OnMismatch::Fail).expect_err("refused")
}

#[test]
fn pairs_are_taken_as_they_are() {
    let file = with_pair(adapter("llama"), "blk.0.attn_q.weight", GgmlType::F32, &[2, 8], &[8, 2]);
    let adapter = load(&file, &llama(), OnMismatch::Fail).unwrap();
    let change = change_of(&adapter, "blk.0.attn_q.weight");
    let (a, b) = (count_from(1.0, &[2, 8]), count_from(101.0, &[8, 2]));
    let expected: Vec<f32> = matmul(&b, &a, 2).iter().map(|value| value * 3.0).collect();
    assert_eq!(product(change), expected);
}

#[test]
fn an_architecture_need_not_be_known() {
    let file = with_pair(adapter("novel"), "blk.0.attn_q.weight", GgmlType::F32, &[2, 8], &[8, 2]);
    assert!(load(&file, &small("novel"), OnMismatch::Fail).is_ok());
}

#[test]
fn scale_is_alpha_by_rank_or_none() {
    let scale = |file: GgufFile| {
        let file = with_pair(file, "blk.0.ffn_up.weight", GgmlType::F32, &[4, 8], &[12, 4]);
        let adapter = load(&file, &llama(), OnMismatch::Fail).unwrap();
        match change_of(&adapter, "blk.0.ffn_up.weight").kind {
            ChangeKind::LowRank { scale, .. } => scale,
            _ => unreachable!(),
        }
    };
    assert_eq!(scale(adapter("llama")), 1.5);
    assert_eq!(scale(adapter("llama").with("adapter.lora.alpha", 0.0f32)), 1.0);
    let without =
        GgufFile::new("llama").with("general.type", "adapter").with("adapter.type", "lora");
    assert_eq!(scale(without), 1.0);
}

#[test]
fn embeddings_are_stored_the_other_way_round() {
    let file = with_pair(adapter("llama"), "token_embd.weight", GgmlType::F32, &[10, 2], &[8, 2]);
    let adapter = load(&file, &llama(), OnMismatch::Fail).unwrap();
    let change = change_of(&adapter, "token_embd.weight");
    let (a, b) = (count_from(1.0, &[10, 2]), count_from(101.0, &[8, 2]));
    let entry = |i: usize, j: usize| (a[i * 2] * b[j * 2] + a[i * 2 + 1] * b[j * 2 + 1]) * 3.0;
    let places = (0..10).flat_map(|i| (0..8).map(move |j| (i, j)));
    assert_eq!(product(change), places.map(|(i, j)| entry(i, j)).collect::<Vec<_>>());
    let linear =
        with_pair(adapter_of_llama(), "token_embd.weight", GgmlType::F32, &[2, 8], &[10, 2]);
    assert!(matches!(fault(&linear, &llama()), Fault::Shape { .. }));
}

fn adapter_of_llama() -> GgufFile {
    adapter("llama")
}

#[test]
fn a_head_of_its_own_may_be_new() {
    let file = with_pair(adapter("llama"), "output.weight", GgmlType::F32, &[2, 8], &[10, 2]);
    let adapter = load(&file, &llama(), OnMismatch::Fail).unwrap();
    assert_eq!(change_of(&adapter, "output.weight").rows, 0..10);
}

#[test]
fn experts_are_stacked() {
    let base = small("qwen3moe").zeros("blk.0.ffn_up_exps.weight", &[3, 6, 8]);
    let name = "blk.0.ffn_up_exps.weight";
    let file = with_pair(adapter("qwen3moe"), name, GgmlType::F32, &[3, 2, 8], &[3, 6, 2]);
    let adapter = load(&file, &base, OnMismatch::Fail).unwrap();
    let (a, b) = (count_from(1.0, &[3, 2, 8]), count_from(101.0, &[3, 6, 2]));
    for (e, change) in adapter.changes.iter().enumerate() {
        assert_eq!(change.rows, e * 6..(e + 1) * 6);
        let delta = matmul(&b[e * 12..][..12], &a[e * 16..][..16], 2);
        assert_eq!(product(change), delta.iter().map(|value| value * 3.0).collect::<Vec<_>>());
    }
    assert_eq!(adapter.changes.len(), 3);
    let fewer = with_pair(adapter_of_llama(), name, GgmlType::F32, &[2, 2, 8], &[2, 6, 2]);
    let base = llama().zeros(name, &[3, 6, 8]);
    assert!(matches!(fault(&fewer, &base), Fault::Shape { .. }));
}

#[test]
fn blocks_are_decoded() {
    let base = GgufFile::new("llama")
        .zeros("blk.0.ffn_up.weight", &[3, 64])
        .zeros("token_embd.weight", &[5, 64]);
    for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0] {
        let b = GgmlType::F32;
        let values = count_from(-8.0, &[32, 64]);
        let file = adapter("llama")
            .tensor("blk.0.ffn_up.weight.lora_a", &[32, 64], ty, &values)
            .tensor("blk.0.ffn_up.weight.lora_b", &[3, 32], b, &[1.0; 96])
            .tensor("token_embd.weight.lora_a", &[5, 32], ty, &count_from(0.0, &[5, 32]))
            .tensor("token_embd.weight.lora_b", &[64, 32], ty, &values);
        let adapter = load(&file, &base, OnMismatch::Fail).unwrap();
        let mut bytes = vec![0; ty.row_bytes(values.len()).unwrap()];
        polylora_quant::quantize(ty, &values, None, &mut bytes).unwrap();
        let mut decoded = vec![0.0; values.len()];
        polylora_quant::dequantize(ty, &bytes, &mut decoded).unwrap();

        let ChangeKind::LowRank { down, .. } = &change_of(&adapter, "blk.0.ffn_up.weight").kind
        else {
            unreachable!()
        };
        assert_eq!(down.to_f32(), decoded, "{ty}");
        assert_eq!(down.rows_f32(7..9), decoded[7 * 64..9 * 64], "{ty}");
        let ChangeKind::LowRank { down, .. } = &change_of(&adapter, "token_embd.weight").kind
        else {
            unreachable!()
        };
        let transposed = (0..32).flat_map(|i| (0..64).map(move |j| j * 32 + i));
        assert_eq!(down.to_f32(), transposed.map(|at| decoded[at]).collect::<Vec<_>>(), "{ty}");
    }
}

#[test]
fn whole_norms_replace() {
    let file = adapter("gemma").tensor("blk.0.attn_norm.weight", &[8], GgmlType::F32, &[2.0; 8]);
    let adapter = load(&file, &small("gemma"), OnMismatch::Fail).unwrap();
    // They come as the base stores them.
    assert_eq!(values(change_of(&adapter, "blk.0.attn_norm.weight")), [2.0; 8]);
    let long = adapter_of_llama().tensor("blk.0.attn_norm.weight", &[9], GgmlType::F32, &[2.0; 9]);
    assert!(matches!(fault(&long, &llama()), Fault::Shape { .. }));
}

#[test]
fn what_it_says_of_itself_must_fit() {
    let with_q = |file| with_pair(file, "blk.0.attn_q.weight", GgmlType::F32, &[2, 8], &[8, 2]);
    let key = |file| match fault(&with_q(file), &llama()) {
        Fault::Metadata { key, .. } => key,
        other => panic!("{other}"),
    };
    assert_eq!(key(GgufFile::new("llama")), "general.type");
    assert_eq!(key(adapter("llama").with("general.type", "model")), "general.type");
    assert_eq!(key(adapter("llama").with("adapter.type", "dora")), "adapter.type");
    assert_eq!(key(adapter("qwen2")), "general.architecture");
    assert_eq!(key(adapter("llama").with("adapter.lora.alpha", 16u32)), "adapter.lora.alpha");
    assert_eq!(key(adapter("llama").with("adapter.lora.alpha", f32::NAN)), "adapter.lora.alpha");
    let activated = with_q(adapter("llama").with("adapter.alora.invocation_tokens", 3u32));
    assert!(matches!(fault(&activated, &llama()), Fault::Activated));
}

#[test]
fn tensors_must_come_in_pairs_that_fit() {
    let name = "blk.0.ffn_up.weight";
    let pair = |a: &[usize], b: &[usize]| {
        fault(&with_pair(adapter("llama"), name, GgmlType::F32, a, b), &llama())
    };
    assert!(matches!(pair(&[2, 9], &[12, 2]), Fault::Shape { .. }));
    assert!(matches!(pair(&[2, 8], &[13, 2]), Fault::Shape { .. }));
    assert!(matches!(pair(&[2, 8], &[12, 3]), Fault::Shape { .. }));
    assert!(matches!(pair(&[8, 2], &[2, 12]), Fault::Shape { .. }));

    let a = adapter("llama").tensor(&format!("{name}.lora_a"), &[2, 8], GgmlType::F32, &[1.0; 16]);
    assert!(matches!(fault(&a, &llama()), Fault::Half { missing: "lora_b", .. }));
    let unknown = with_pair(adapter("llama"), name, GgmlType::F32, &[2, 8], &[12, 2]).tensor(
        "blk.0.ffn_up.bias",
        &[12],
        GgmlType::F32,
        &[1.0; 12],
    );
    assert!(matches!(fault(&unknown, &llama()), Fault::UnknownTensor(_)));
    let nan = adapter("llama")
        .tensor(&format!("{name}.lora_a"), &[2, 8], GgmlType::F32, &[f32::NAN; 16])
        .tensor(&format!("{name}.lora_b"), &[12, 2], GgmlType::F32, &[1.0; 24]);
    assert!(matches!(fault(&nan, &llama()), Fault::NotFinite { index: 0, .. }));
}

#[test]
fn what_does_not_fit_may_be_left_out() {
    let file = with_pair(adapter("llama"), "blk.0.ffn_up.weight", GgmlType::F32, &[2, 8], &[12, 2]);
    let file = with_pair(file, "blk.9.ffn_up.weight", GgmlType::F32, &[2, 8], &[12, 2]);
    assert!(matches!(fault(&file, &llama()), Fault::NoTarget { .. }));
    let adapter = load(&file, &llama(), OnMismatch::Skip).unwrap();
    assert_eq!((adapter.changes.len(), adapter.mismatches.len()), (1, 1));
    assert_eq!(adapter.mismatches[0].tensor, "blk.9.ffn_up.weight");
}

#[test]
fn a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    for content in [&b""[..], b"GGU", b"GGUF", b"PK\x03\x04 not a GGUF file at all"] {
        fs::write(&path, content).unwrap();
        let fault = load_path(&path, &llama().open(), 1.0, OnMismatch::Fail).unwrap_err();
        assert!(matches!(fault, Fault::File(_)), "{fault}");
    }
}

#[test]
fn a_summary_needs_no_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    let file = with_pair(adapter("llama"), "blk.0.ffn_up.weight", GgmlType::F16, &[2, 8], &[12, 2]);
    let file = with_pair(file, "blk.1.ffn_up.weight", GgmlType::F16, &[4, 8], &[12, 4]);
    file.write(&path);
    let summary = summarize(&path).unwrap();
    assert_eq!(summary.architecture.as_deref(), Some("llama"));
    assert_eq!(summary.ranks.into_iter().collect::<Vec<_>>(), [(2, 1), (4, 1)]);
    assert_eq!(summary.scales, [1.5, 3.0]);
    assert_eq!(summary.targets.into_iter().collect::<Vec<_>>(), [("ffn_up.weight".to_owned(), 2)]);
    assert_eq!((summary.parameters, summary.bytes), (16 + 24 + 32 + 48, 240));
    assert_eq!(summary.tensors[0].ty, "F16");
    assert!(summary.config.contains(&("adapter.lora.alpha".to_owned(), "6".to_owned())));
}
