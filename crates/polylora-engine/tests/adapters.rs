//! Adapters at run time against the same adapters merged into the weights, and both against PEFT, on
//! tiny models of single precision: fused projections, biases, DoRA, embeddings, trained tokens,
//! experts in all their forms. That the merges equal PEFT's weight by weight is tested where merging is.

use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{Adapter, AdapterSpec, ConvertError, OnMismatch, convert, load};
use polylora_engine::{
    Engine, EngineOptions, Error, Input, LoadedAdapter, Logits, Model, Wanted, Way,
};
use polylora_file::{Gguf, WriteOptions, safetensors};
use polylora_quant::GgmlType;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOKENS: [u32; 12] = [3, 17, 5, 60, 22, 9, 9, 41, 0, 33, 7, 58];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../polylora-adapter/tests/data")
}

/// Every folder below `folder` that holds a base and an adapter of an architecture that runs.
fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let base = path.join("base.gguf");
        if base.exists() {
            let gguf = Gguf::open(&base).unwrap();
            if Model::architectures().any(|name| Some(name) == gguf.architecture()) {
                found.push(path);
            }
        } else if path.is_dir() {
            cases(&path, found);
        }
    }
}

fn engine(gguf: &Gguf, exact: bool, threads: usize) -> Engine {
    let options = EngineOptions {
        exact,
        threads: NonZeroUsize::new(threads),
        kv_type: "f32".parse().unwrap(),
    };
    Engine::new(Arc::new(Model::open(gguf).unwrap()), &options).unwrap()
}

fn adapter(case: &Path, gguf: &Gguf, scale: f32) -> Adapter {
    let spec = AdapterSpec { scale, ..AdapterSpec::new(case.join("adapter")) };
    load(&spec, gguf, OnMismatch::Fail).unwrap()
}

fn run(engine: &mut Engine, adapters: &[Arc<LoadedAdapter>]) -> Logits {
    let mut sequence = engine.sequence(TOKENS.len());
    let input = Input {
        sequence: &mut sequence,
        tokens: &TOKENS,
        adapters,
        logits: Wanted::All,
        way: Way::Many,
    };
    engine.forward(&mut [input]).unwrap()
}

/// The largest difference of two runs' logits.
fn distance(a: &Logits, b: &Logits) -> f32 {
    assert_eq!(a.len(), b.len());
    let rows = (0..a.len()).flat_map(|i| a.row(i).iter().zip(b.row(i)));
    rows.fold(0.0, |largest, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f32::NAN } else { largest.max(difference) }
    })
}

fn merged(gguf: &Gguf, adapters: &[Adapter], folder: &Path) -> Gguf {
    let rules = TypeRules::parse(&["f32"]).unwrap();
    let out = folder.join("merged.gguf");
    let options = WriteOptions { overwrite: true, max_shard: None };
    Plan::merge(gguf, adapters, &rules, None).unwrap().write(&out, options, &()).unwrap();
    Gguf::open(&out).unwrap()
}

#[test]
fn run_time_equals_merged() {
    let mut found = Vec::new();
    cases(&data(), &mut found);
    assert!(found.len() >= 13, "cases are missing: {found:?}");
    let folder = tempfile::tempdir().unwrap();
    for case in found {
        let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
        for scale in [1.0, 0.5] {
            let adapter = adapter(&case, &gguf, scale);
            let want = run(
                &mut engine(&merged(&gguf, std::slice::from_ref(&adapter), folder.path()), true, 2),
                &[],
            );
            let base = run(&mut engine(&gguf, true, 2), &[]);
            let effect = distance(&want, &base);
            assert!(effect > 0.05, "{}: the adapter changes only {effect}", case.display());
            // The fast way keeps factors in half precision.
            for (exact, tolerance) in [(true, 2e-5), (false, 4e-3)] {
                let mut engine = engine(&gguf, exact, 2);
                let loaded = engine.load_adapter(&adapter).unwrap();
                let error = distance(&want, &run(&mut engine, &[loaded]));
                let at = format!("{} at {scale}, exact: {exact}", case.display());
                assert!(error <= tolerance * effect.max(1.0), "{at}: {error} of {effect}");
            }
        }
    }
}

/// Before any merge, as `tools/reference` has it from PEFT.
fn pefts_logits(case: &Path) -> Vec<f32> {
    let file = safetensors::open(&case.join("logits.safetensors")).unwrap();
    let logits = file.tensors.iter().find(|tensor| tensor.name == "logits").unwrap();
    assert_eq!(logits.shape[0], TOKENS.len());
    logits.to_f32().unwrap()
}

#[test]
fn all_ways_equal_pefts() {
    /// Both sides compute in single precision, in different orders; logits are about 3.
    const TOLERANCE: f32 = 2e-5;
    let mut found = Vec::new();
    cases(&data(), &mut found);
    let folder = tempfile::tempdir().unwrap();
    let mut converted = Vec::new();
    for case in &found {
        let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
        let want = pefts_logits(case);
        let check = |way: &str, found: &Logits| {
            let found: Vec<f32> = (0..found.len()).flat_map(|i| found.row(i).to_vec()).collect();
            assert_eq!(found.len(), want.len());
            let pairs = found.iter().zip(&want);
            let error = pairs.fold(0.0_f32, |error, (a, b)| error.max((a - b).abs()));
            assert!(error <= TOLERANCE, "{}, {way}: {error}", case.display());
        };
        let adapter = adapter(case, &gguf, 1.0);
        let mut at_run_time = engine(&gguf, true, 2);
        let loaded = at_run_time.load_adapter(&adapter).unwrap();
        check("at run time", &run(&mut at_run_time, &[loaded]));

        let merged = merged(&gguf, std::slice::from_ref(&adapter), folder.path());
        check("merged", &run(&mut engine(&merged, true, 2), &[]));

        let path = folder.path().join("adapter.gguf");
        match convert(&adapter, &gguf, &path, GgmlType::F32, true) {
            Ok(_) => converted.push(case),
            Err(ConvertError::Inexpressible { .. }) => continue,
            Err(error) => panic!("{}: {error}", case.display()),
        }
        let again = load(&AdapterSpec::new(&path), &gguf, OnMismatch::Fail).unwrap();
        let loaded = at_run_time.load_adapter(&again).unwrap();
        check("converted", &run(&mut at_run_time, &[loaded]));
    }
    let with_experts = converted.iter().filter(|case| case.parent().unwrap().ends_with("moe"));
    assert_eq!(with_experts.count(), 7, "{converted:?}");
}

#[test]
fn adapters_stack() {
    // One adapter of the whole, another of embeddings; both of one base.
    let (one, two) = (data().join("qwen2"), data().join("qwen2_lora_bias"));
    let gguf = Gguf::open(&one.join("base.gguf")).unwrap();
    let adapters = [adapter(&one, &gguf, 0.7), adapter(&two, &gguf, -0.4)];
    let folder = tempfile::tempdir().unwrap();
    let want = run(&mut engine(&merged(&gguf, &adapters, folder.path()), true, 2), &[]);
    let mut engine = engine(&gguf, true, 2);
    let loaded: Vec<_> =
        adapters.iter().map(|adapter| engine.load_adapter(adapter).unwrap()).collect();
    let error = distance(&want, &run(&mut engine, &loaded));
    assert!(error < 1e-4, "{error}");
}

#[test]
fn each_row_of_a_batch_has_its_own() {
    for case in ["qwen2", "phi3", "moe/mixtral_modules", "qwen2_embedding"] {
        let case = data().join(case);
        let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
        let mut engine = engine(&gguf, true, 2);
        let mut sets = vec![vec![]];
        for scale in [1.0, -0.5, 0.25] {
            sets.push(vec![engine.load_adapter(&adapter(&case, &gguf, scale)).unwrap()]);
        }
        sets.push(vec![Arc::clone(&sets[1][0]), Arc::clone(&sets[2][0])]);
        let alone: Vec<Logits> = sets.iter().map(|set| run(&mut engine, set)).collect();

        // Prompts of different length, then the rest token by token, all in one batch.
        let mut sequences: Vec<_> = sets.iter().map(|_| engine.sequence(TOKENS.len())).collect();
        let mut at: Vec<usize> = (1..=sets.len()).collect();
        let mut from = vec![0; sets.len()];
        while from.iter().any(|&from| from < TOKENS.len()) {
            let mut inputs = Vec::new();
            let mut numbers = Vec::new();
            for (i, sequence) in sequences.iter_mut().enumerate() {
                if from[i] < at[i] {
                    let (tokens, adapters) = (&TOKENS[from[i]..at[i]], &sets[i][..]);
                    inputs.push(Input {
                        sequence,
                        tokens,
                        adapters,
                        logits: Wanted::Last,
                        way: Way::Many,
                    });
                    numbers.push(i);
                }
            }
            let logits = engine.forward(&mut inputs).unwrap();
            for (row, &i) in numbers.iter().enumerate() {
                let want = alone[i].row(at[i] - 1);
                let pairs = logits.row(row).iter().zip(want);
                let error = pairs.fold(0.0_f32, |error, (a, b)| error.max((a - b).abs()));
                assert!(error < 2e-5, "{}, input {i}, token {}: {error}", case.display(), at[i]);
                from[i] = at[i];
                at[i] = (at[i] + 1).min(TOKENS.len());
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let case = data().join("moe/mixtral_modules");
    let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
    let runs: Vec<Logits> = [1, 2, 5]
        .map(|threads| {
            let mut engine = engine(&gguf, false, threads);
            let loaded = engine.load_adapter(&adapter(&case, &gguf, 1.0)).unwrap();
            run(&mut engine, &[loaded])
        })
        .into();
    assert_eq!(distance(&runs[0], &runs[1]), 0.0);
    assert_eq!(distance(&runs[0], &runs[2]), 0.0);
}

#[test]
fn what_was_forgotten_can_be_said_again() {
    let gguf = Gguf::open(&data().join("qwen2/base.gguf")).unwrap();
    let mut engine = engine(&gguf, true, 2);
    let want = run(&mut engine, &[]);
    let mut sequence = engine.sequence(TOKENS.len());
    for (keep, tokens) in [(0, &TOKENS[..9]), (4, &TOKENS[4..])] {
        sequence.truncate(keep);
        let logits = Wanted::Last;
        let input =
            Input { sequence: &mut sequence, tokens, adapters: &[], logits, way: Way::Many };
        let found = engine.forward(&mut [input]).unwrap();
        let last = keep + tokens.len() - 1;
        let pairs = found.row(0).iter().zip(want.row(last));
        assert!(pairs.fold(0.0_f32, |error, (a, b)| error.max((a - b).abs())) < 2e-5);
        assert_eq!(sequence.len(), last + 1);
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let gguf = Gguf::open(&data().join("qwen2/base.gguf")).unwrap();
    let (mut one, other) = (engine(&gguf, false, 1), engine(&gguf, false, 1));
    let foreign = other.load_adapter(&adapter(&data().join("qwen2"), &gguf, 1.0)).unwrap();
    let mut sequence = other.sequence(4);
    let input = Input {
        sequence: &mut sequence,
        tokens: &[1],
        adapters: &[],
        logits: Wanted::Last,
        way: Way::Many,
    };
    assert!(matches!(one.forward(&mut [input]).unwrap_err(), Error::ForeignSequence));
    let mut sequence = one.sequence(4);
    let mut refused = |tokens: &[u32], adapters: &[_]| {
        let input = Input {
            sequence: &mut sequence,
            tokens,
            adapters,
            logits: Wanted::Last,
            way: Way::Many,
        };
        let error = one.forward(&mut [input]).unwrap_err();
        assert_eq!(sequence.len(), 0);
        error
    };
    assert!(matches!(refused(&[1], &[foreign]), Error::ForeignAdapter(_)));
    assert!(matches!(refused(&[], &[]), Error::NoTokens));
    assert!(matches!(refused(&[64], &[]), Error::Token { token: 64, vocabulary: 64 }));
    let full = refused(&[1; 5], &[]);
    assert!(matches!(full, Error::ContextFull { context: 4, used: 0, wanted: 5, model: 64 }));
    assert!(full.to_string().contains("4 tokens"), "{full}");
}
