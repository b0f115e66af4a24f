//! Any configuration and any weights as a PEFT folder, for a small base: a refusal, or changes
//! that stay inside the base and are made of finite numbers. The first two bytes are the length of
//! the configuration, the weights follow it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polylora_adapter::{AdapterSpec, ChangeKind, Factor, OnMismatch, load, summarize};
use polylora_file::{Gguf, GgufWriter, Metadata, TensorPlan, Value, WriteOptions};
use polylora_quant::GgmlType;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

/// One layer of a llama with experts, 4 wide, and a head that is its embedding.
static BASE: LazyLock<Gguf> = LazyLock::new(|| {
    let mut metadata = Metadata::default();
    metadata.insert("general.architecture", "llama".into());
    metadata.insert("llama.attention.head_count", Value::U32(2));
    let shapes: [(&str, &[usize]); 9] = [
        ("token_embd", &[5, 4]),
        ("output_norm", &[4]),
        ("blk.0.attn_q", &[4, 4]),
        ("blk.0.attn_k", &[4, 4]),
        ("blk.0.attn_norm", &[4]),
        ("blk.0.ffn_up", &[6, 4]),
        ("blk.0.ffn_gate_exps", &[2, 3, 4]),
        ("blk.0.ffn_up_exps", &[2, 3, 4]),
        ("blk.0.ffn_down_exps", &[2, 4, 3]),
    ];
    let plan = |&(name, shape): &(&str, &[usize])| TensorPlan {
        name: format!("{name}.weight"),
        ty: GgmlType::F32,
        shape: shape.to_vec(),
    };
    let plans: Vec<_> = shapes.iter().map(plan).collect();
    let path = FOLDER.path().join("base.gguf");
    let writer = GgufWriter::create(&path, &metadata, &plans, WriteOptions::default());
    let writer = writer.expect("a base");
    for (i, plan) in plans.iter().enumerate() {
        let bytes = vec![0; 4 * plan.shape.iter().product::<usize>()];
        writer.write_at(i, 0, &bytes).expect("room on the disk");
    }
    writer.finish().expect("a base");
    Gguf::open(&path).expect("a base")
});

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (config, weights) = rest.split_at(length);
    fs::write(FOLDER.path().join("adapter_config.json"), config).expect("room on the disk");
    fs::write(FOLDER.path().join("adapter_model.safetensors"), weights).expect("room on the disk");

    let _ = summarize(FOLDER.path());
    for on_mismatch in [OnMismatch::Fail, OnMismatch::Skip] {
        let Ok(adapter) = load(&AdapterSpec::new(FOLDER.path()), &BASE, on_mismatch) else {
            continue;
        };
        assert!(on_mismatch == OnMismatch::Skip || adapter.mismatches.is_empty());
        for change in &adapter.changes {
            let head = if change.tensor == "output.weight" { "token_embd.weight" } else { "" };
            let tensor = BASE.tensor(&change.tensor).or(BASE.tensor(head));
            let (rows, columns) = tensor.map_or((1, None), |t| (t.rows(), Some(t.columns())));
            assert!(change.rows.end <= rows);
            let fits = |factor: &Factor, rows: usize, columns: Option<usize>| {
                assert_eq!((factor.rows(), Some(factor.columns())), (rows, columns));
                assert!(factor.to_f32().iter().all(|value| value.is_finite()));
            };
            match &change.kind {
                ChangeKind::LowRank { down, up, magnitude, .. } => {
                    fits(down, down.rows(), columns);
                    fits(up, change.rows.len(), Some(down.rows()));
                    if let Some(magnitude) = magnitude {
                        fits(magnitude, change.rows.len(), Some(1));
                    }
                }
                ChangeKind::ScaleColumns { factors } => {
                    assert_eq!(Some(factors.len()), columns);
                    assert!(factors.iter().all(|factor| factor.is_finite()));
                }
                ChangeKind::Replace { values, .. } | ChangeKind::Add { values, .. } => {
                    fits(values, change.rows.len(), columns.or(Some(values.columns())));
                }
            }
        }
    }
});
