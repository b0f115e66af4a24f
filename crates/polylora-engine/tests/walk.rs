//! Texts that go through a model from linear layers to the next end where they do in one go.

use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{Adapter, AdapterSpec, OnMismatch, load};
use polylora_engine::{
    Engine, EngineOptions, Error, Input, LoadedAdapter, Model, Walk, Wanted, Way,
};
use polylora_file::{Gguf, WriteOptions};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Dense, fused, with experts, and with trained tokens and a head of its own.
const CASES: [&str; 5] =
    ["qwen2", "phi3", "llama_bias", "moe/mixtral_modules", "moe/qwen3moe_parameters"];

fn texts() -> Vec<Vec<u32>> {
    vec![vec![3, 17, 5, 60, 22, 9, 9, 41], vec![7], vec![33, 7, 58]]
}

/// A case's base with its adapter.
struct Setup {
    gguf: Gguf,
    engine: Engine,
    adapter: Adapter,
    loaded: Vec<Arc<LoadedAdapter>>,
}

impl Setup {
    fn new(case: &str) -> Setup {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../polylora-adapter/tests/data");
        let folder: PathBuf = data.join(case);
        let gguf = Gguf::open(&folder.join("base.gguf")).unwrap();
        let engine = engine(&gguf);
        let spec = AdapterSpec::new(folder.join("adapter"));
        let adapter = load(&spec, &gguf, OnMismatch::Fail).unwrap();
        let loaded = vec![engine.load_adapter(&adapter).unwrap()];
        Setup { gguf, engine, adapter, loaded }
    }
}

fn engine(gguf: &Gguf) -> Engine {
    let kv_type = "f32".parse().unwrap();
    let options = EngineOptions { exact: true, threads: NonZeroUsize::new(2), kv_type };
    Engine::new(Arc::new(Model::open(gguf).unwrap()), &options).unwrap()
}

/// What the engine makes of all tokens of all texts, one after the other.
fn in_one_go(
    engine: &mut Engine,
    adapters: &[Arc<LoadedAdapter>],
    run: impl Fn(&mut Engine, Input<'_>) -> Vec<f32>,
) -> Vec<f32> {
    let mut found = Vec::new();
    for tokens in texts() {
        let mut sequence = engine.sequence(tokens.len());
        let (sequence, tokens) = (&mut sequence, &tokens[..]);
        let (logits, way) = (Wanted::All, Way::Many);
        let input = Input { sequence, tokens, adapters, logits, way };
        found.extend(run(engine, input));
    }
    found
}

/// What the head reads.
fn hidden_states(engine: &mut Engine, input: Input<'_>) -> Vec<f32> {
    engine.hidden_states(&mut [input]).unwrap()
}

fn logits(engine: &mut Engine, input: Input<'_>) -> Vec<f32> {
    let logits = engine.forward(&mut [input]).unwrap();
    (0..logits.len()).flat_map(|i| logits.row(i).to_vec()).collect()
}

/// A group that was shown.
struct Shown {
    tensors: Vec<String>,
    inputs: Vec<f32>,
}

fn groups(engine: &mut Engine, walk: &mut Walk, adapters: &[Arc<LoadedAdapter>]) -> Vec<Shown> {
    let mut shown = Vec::new();
    engine.show_groups(walk, 0, adapters, &mut |group| {
        let tensors = group.tensors.into_iter().map(str::to_owned).collect();
        shown.push(Shown { tensors, inputs: group.inputs.into_owned() });
    });
    shown
}

/// Goes through a model; `change` may replace the weights of each group before it is passed.
fn walk(
    engine: &mut Engine,
    adapters: &[Arc<LoadedAdapter>],
    mut change: impl FnMut(&mut Walk, &[Shown]),
) -> Vec<Shown> {
    let mut walk = engine.walk(texts(), adapters).unwrap();
    assert_eq!(walk.batches(), 1);
    let mut all = Vec::new();
    let mut progress = 0.0;
    while !walk.is_through() {
        let groups = groups(engine, &mut walk, adapters);
        change(&mut walk, &groups);
        all.extend(groups);
        engine.advance_walk(&mut walk, adapters);
        assert!(walk.progress() >= progress);
        progress = walk.progress();
    }
    assert!(groups(engine, &mut walk, adapters).is_empty());
    all
}

fn assert_close(a: &[f32], b: &[f32], case: &str) {
    assert_eq!(a.len(), b.len(), "{case}");
    let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-5, "{case}: {far}");
}

#[test]
fn the_head_reads_what_it_reads_in_one_go() {
    for case in CASES {
        let mut setup = Setup::new(case);
        let groups = walk(&mut setup.engine, &setup.loaded, |_, _| {});
        let head = groups.last().unwrap();
        assert_eq!(head.tensors, ["output.weight"], "{case}");
        assert_close(
            &head.inputs,
            &in_one_go(&mut setup.engine, &setup.loaded, hidden_states),
            case,
        );
        assert!(
            in_one_go(&mut setup.engine, &[], hidden_states) != head.inputs,
            "{case}: the adapter does nothing"
        );
    }
}

#[test]
fn its_logits_are_those_of_one_go() {
    for case in CASES {
        let Setup { mut engine, loaded: adapters, .. } = Setup::new(case);
        let mut walk = engine.walk(texts(), &adapters).unwrap();
        while !walk.is_through() {
            engine.advance_walk(&mut walk, &adapters);
        }
        let walked = engine.walked_logits(&walk, 0, &adapters);
        let found = in_one_go(&mut engine, &adapters, logits);
        assert_close(&walked, &found, case);
    }
}

#[test]
fn every_linear_layer_is_shown() {
    for case in CASES {
        let mut setup = Setup::new(case);
        let groups = walk(&mut setup.engine, &[], |_, _| {});
        for tensor in setup.gguf.tensors() {
            let is_linear = tensor.shape.len() > 1 && tensor.name != "token_embd.weight";
            let shown = groups.iter().filter(|group| group.tensors.contains(&tensor.name));
            let rows: usize = shown.map(|group| group.inputs.len() / tensor.columns()).sum();
            let tokens: usize = texts().iter().map(Vec::len).sum();
            // Of a mixture, each token goes to two experts.
            let times = if tensor.shape.len() == 3 { 2 } else { 1 };
            let expected = if is_linear { times * tokens } else { 0 };
            assert_eq!(rows, expected, "{case}: {}", tensor.name);
        }
    }
}

#[test]
fn weights_that_are_replaced_on_the_way_are_those_that_run() {
    let folder = tempfile::tempdir().unwrap();
    for case in CASES {
        let mut setup = Setup::new(case);
        let out = folder.path().join("merged.gguf");
        let options = WriteOptions { overwrite: true, max_shard: None };
        let rules = TypeRules::parse(&["f32"]).unwrap();
        let plan = Plan::merge(&setup.gguf, std::slice::from_ref(&setup.adapter), &rules, None);
        plan.unwrap().write(&out, options, &()).unwrap();
        let merged = Gguf::open(&out).unwrap();

        // What is no linear layer stays with the adapter.
        let mut rest = setup.adapter.clone();
        rest.changes.retain(|change| {
            setup.gguf.tensor(&change.tensor).is_none_or(|tensor| tensor.shape.len() == 1)
        });
        let rest = vec![setup.engine.load_adapter(&rest).unwrap()];
        let groups = walk(&mut setup.engine, &rest, |walk, groups| {
            for name in groups.iter().flat_map(|group| &group.tensors) {
                walk.replace(merged.tensor(name).unwrap().clone()).unwrap();
            }
        });
        let expected = in_one_go(&mut engine(&merged), &[], hidden_states);
        assert_close(&groups.last().unwrap().inputs, &expected, case);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Setup { gguf, mut engine, .. } = Setup::new("qwen2");
    let mut walk = engine.walk(texts(), &[]).unwrap();
    let norm = gguf.tensor("output_norm.weight").unwrap().clone();
    assert!(matches!(walk.replace(norm), Err(Error::Tensor { .. })));
    let mut other = gguf.tensor("blk.0.ffn_down.weight").unwrap().clone();
    other.name = "blk.0.ffn_up.weight".to_owned();
    assert!(matches!(walk.replace(other), Err(Error::Tensor { .. })));
    assert!(matches!(
        engine.walk(vec![vec![1; Engine::WALKED + 1]], &[]),
        Err(Error::ContextFull { .. })
    ));
    assert!(matches!(engine.walk(vec![vec![1_000_000]], &[]), Err(Error::Token { .. })));
    assert!(matches!(engine.walk(vec![vec![]], &[]), Err(Error::NoTokens)));
}
