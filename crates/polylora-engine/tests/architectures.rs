//! Tiny models of every architecture, together in every weight type, against llama.cpp's logits.
//!
//! `tests/data/architectures/README.md` tells what the data is and how it was made.

#![allow(clippy::print_stdout)] // The figures are for who runs it with --nocapture.

use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_engine::{Engine, EngineOptions, Input, Model, Wanted, Way};
use polylora_file::{Gguf, safetensors};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run of a model, from `cases.json`.
#[derive(Deserialize)]
struct Case {
    name: String,
    architecture: String,
    model: PathBuf,
    adapter: Option<PathBuf>,
    scale: f32,
    context: usize,
    tokens: Vec<u32>,
    reference: PathBuf,
    /// Keys of the reference: of llama.cpp on the file, whose products round activations, and on
    /// the file with all weights in single precision.
    logits: String,
    logits_f32: String,
    /// The largest difference, and the root of the mean square of all.
    tolerance: f32,
    tolerance_rms: f32,
    tolerance_f32: f32,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/architectures")
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

/// The logits of all tokens, in steps of the given numbers of tokens.
fn run(case: &Case, exact: bool, steps: &[usize]) -> Vec<f32> {
    let gguf = Gguf::open(&folder().join(&case.model)).unwrap();
    let options =
        EngineOptions { exact, kv_type: "f32".parse().unwrap(), ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::new(Model::open(&gguf).unwrap()), &options).unwrap();
    let adapters: Vec<_> = case
        .adapter
        .iter()
        .map(|path| {
            let spec = AdapterSpec { scale: case.scale, ..AdapterSpec::new(folder().join(path)) };
            engine.load_adapter(&load(&spec, &gguf, OnMismatch::Fail).unwrap()).unwrap()
        })
        .collect();
    let mut sequence = engine.sequence(case.context);
    let mut logits = Vec::new();
    let mut rest = &case.tokens[..];
    for &step in steps.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let tokens = rest.split_off(..step.min(rest.len())).unwrap();
        let input = Input {
            sequence: &mut sequence,
            tokens,
            adapters: &adapters,
            logits: Wanted::All,
            way: Way::Many,
        };
        let found = engine.forward(&mut [input]).unwrap();
        (0..found.len()).for_each(|i| logits.extend_from_slice(found.row(i)));
    }
    logits
}

/// The largest difference, and the root of the mean square of all.
fn differences(found: &[f32], wanted: &[f32]) -> [f32; 2] {
    assert_eq!(found.len(), wanted.len());
    let each = found.iter().zip(wanted).map(|(found, wanted)| (found - wanted).abs());
    let largest = each.clone().fold(0.0, |a: f32, b| if b.is_nan() { b } else { a.max(b) });
    let squares: f32 = each.map(|difference| difference * difference).sum();
    [largest, (squares / found.len() as f32).sqrt()]
}

fn check(case: &Case) {
    let reference = safetensors::open(&folder().join(&case.reference)).unwrap();
    let wanted = |key: &str| {
        let tensor = reference.tensors.iter().find(|tensor| tensor.name == key).unwrap();
        tensor.to_f32().unwrap()
    };
    let name = &case.name;

    let exact = run(case, true, &[case.tokens.len()]);
    let [largest, _] = differences(&exact, &wanted(&case.logits_f32));
    println!("{name}: exact {largest:.1e} of {:.1e}", case.tolerance_f32);
    assert!(largest <= case.tolerance_f32, "{name}, exact: {largest}");

    let fast = run(case, false, &[case.tokens.len()]);
    let [largest, rms] = differences(&fast, &wanted(&case.logits));
    println!("{name}: fast {largest:.3} of {:.3}, rms {rms:.3}", case.tolerance);
    assert!(largest <= case.tolerance, "{name}, fast: {largest}");
    assert!(rms <= case.tolerance_rms, "{name}, fast, root mean square: {rms}");

    // A prompt in parts, and token by token, is the same prompt.
    for steps in [&[7, 1, 20][..], &[1]] {
        let [largest, _] = differences(&run(case, true, steps), &exact);
        assert!(largest <= 1e-4, "{name}, in steps of {steps:?}: {largest}");
    }
}

#[test]
fn logits_are_those_of_llama_cpp() {
    let failed: Vec<_> = cases()
        .iter()
        .filter(|case| std::panic::catch_unwind(|| check(case)).is_err())
        .map(|case| case.name.clone())
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn every_architecture_has_a_case() {
    let cases = cases();
    for architecture in Model::architectures() {
        let has = cases.iter().any(|case| case.architecture == architecture);
        assert!(has, "{architecture} is not compared with llama.cpp");
    }
}
