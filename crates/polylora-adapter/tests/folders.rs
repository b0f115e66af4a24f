//! The adapters of the test data, which PEFT 0.21 wrote, against the shape of their base.

mod support;

use polylora_adapter::{Adapter, ChangeKind, OnMismatch, summarize};
use polylora_file::Gguf;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use support::{load_path, smollm2, testdata};

static BASE: LazyLock<Gguf> = LazyLock::new(|| smollm2().open());

fn load(name: &str) -> Adapter {
    load_path(&testdata(name), &BASE, 1.0, OnMismatch::Fail)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// How many pairs have which rank and scale.
fn pairs(adapter: &Adapter) -> Vec<(usize, f32, usize)> {
    let mut counts = BTreeMap::new();
    for change in &adapter.changes {
        if let ChangeKind::LowRank { down, scale, .. } = &change.kind {
            *counts.entry((down.rows(), scale.to_bits())).or_default() += 1;
        }
    }
    counts.into_iter().map(|((rank, scale), n)| (rank, f32::from_bits(scale), n)).collect()
}

fn count(adapter: &Adapter, is: impl Fn(&ChangeKind) -> bool) -> usize {
    adapter.changes.iter().filter(|change| is(&change.kind)).count()
}

#[test]
fn ranks_and_scales() {
    for (name, expected) in [
        ("shout", &[(8, 2.0, 210)][..]),
        ("json", &[(16, 4.0, 210)]),
        ("pirate", &[(4, 4.0, 90)]),
        ("plain-qv", &[(4, 2.0, 60)]),
        ("all-linear-r8", &[(8, 2.0, 35)]),
        ("rslora", &[(16, 4.0, 9)]),
        ("patterns", &[(2, 5.0, 4), (4, 0.75, 1), (4, 2.0, 6), (6, 8.0 / 6.0, 1)]),
        ("dora", &[(4, 2.0, 9)]),
        ("lora-bias", &[(4, 2.0, 6)]),
        ("embeddings", &[(4, 2.0, 31)]),
        ("lm-head", &[(4, 2.0, 31)]),
        ("saved-norms", &[(4, 2.0, 2)]),
    ] {
        let adapter = load(name);
        assert_eq!(pairs(&adapter), expected, "{name}");
        assert_eq!(adapter.name, name);
        let order: Vec<_> = adapter.changes.iter().map(|change| &change.tensor).collect();
        let in_base = |name: &&String| BASE.tensors().iter().position(|t| t.name == **name);
        let places: Vec<_> = order.iter().filter_map(in_base).collect();
        assert!(places.is_sorted(), "{name} in the order of the base");
    }
}

#[test]
fn what_is_no_plain_pair() {
    let dora = load("dora");
    let has_magnitude = |kind: &_| matches!(kind, ChangeKind::LowRank { magnitude: Some(_), .. });
    assert_eq!(count(&dora, has_magnitude), 9);

    let biases = load("lora-bias");
    assert_eq!(count(&biases, |kind| matches!(kind, ChangeKind::Add { scale: 2.0, .. })), 6);

    let norms = load("saved-norms");
    assert_eq!(count(&norms, |kind| matches!(kind, ChangeKind::Replace { .. })), 61);

    let touches = |name: &str, tensor: &str| {
        load(name).changes.iter().filter(|change| change.tensor == tensor).count()
    };
    assert_eq!(touches("embeddings", "token_embd.weight"), 1);
    assert_eq!(touches("embeddings", "output.weight"), 0);
    assert_eq!(touches("lm-head", "output.weight"), 1);
    assert_eq!(touches("lm-head", "token_embd.weight"), 0);
}

#[test]
fn summaries() {
    let patterns = summarize(&testdata("patterns")).unwrap();
    assert_eq!(patterns.base.as_deref(), Some("HuggingFaceTB/SmolLM2-135M-Instruct"));
    assert_eq!(patterns.ranks.into_iter().collect::<Vec<_>>(), [(2, 4), (4, 7), (6, 1)]);
    assert_eq!(patterns.scales, [0.75, 8.0 / 6.0, 2.0, 5.0]);
    assert_eq!(patterns.targets["self_attn.k_proj"], 4);
    let fields: Vec<&str> = patterns.config.iter().map(|(field, _)| &**field).collect();
    assert!(fields.contains(&"rank_pattern") && !fields.contains(&"lora_dropout"), "{fields:?}");

    let kinds =
        |name: &str| summarize(&testdata(name)).unwrap().kinds.into_iter().collect::<Vec<_>>();
    assert_eq!(kinds("dora"), ["DoRA", "LoRA"]);
    assert_eq!(kinds("lora-bias"), ["LoRA", "bias of LoRA"]);
    assert_eq!(kinds("embeddings"), ["LoRA", "LoRA on embeddings"]);
    assert_eq!(kinds("saved-norms"), ["LoRA", "whole modules"]);
}

/// A file of the folder stands for the folder, and the hash can be had by hand:
/// `cat adapter_config.json adapter_model.safetensors | sha256sum`.
#[test]
fn hashes_are_of_the_content() {
    let folder = testdata("dora");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let content = [read("adapter_config.json"), read("adapter_model.safetensors")];
    let expected = polylora_file::sha256(content.iter().map(|part| &**part));
    for path in [folder.clone(), folder.join("adapter_model.safetensors")] {
        let adapter = load_path(&path, &BASE, 1.0, OnMismatch::Fail).unwrap();
        assert_eq!(adapter.hash, expected);
    }
}
