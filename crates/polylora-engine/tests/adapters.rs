//! Adapters at run time against the same adapters merged into the weights, and both against PEFT,
//! on tiny models of single precision: fused projections, biases, DoRA, embeddings, trained tokens,
//! experts in all their forms; and the same with scales beside the weights. That the merges equal
//! PEFT's weight by weight is tested where merging is.

use polylora_adapter::report::{Report, TensorReport};
use polylora_adapter::rewrite::{Plan, PlanError, TypeRules};
use polylora_adapter::{
    Adapter, AdapterSpec, ConvertError, OnMismatch, ScaleError, Scales, convert, load,
};
use polylora_engine::{
    Engine, EngineOptions, Error, Input, LoadedAdapter, Logits, Model, Wanted, Way,
};
use polylora_file::{Gguf, GgufWriter, Tensor, TensorPlan, WriteOptions, safetensors};
use polylora_quant::{GgmlType, quantize};
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
    merged_by(&["f32"], gguf, adapters, folder).0
}

fn merged_by(rules: &[&str], gguf: &Gguf, adapters: &[Adapter], folder: &Path) -> (Gguf, Report) {
    let rules = TypeRules::parse(rules).unwrap();
    let out = folder.join("merged.gguf");
    let options = WriteOptions { overwrite: true, max_shard: None };
    let plan = Plan::merge(gguf, adapters, &rules, None).unwrap();
    let report = plan.write(&out, options, &()).unwrap();
    (Gguf::open(&out).unwrap(), report)
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

/// A copy of a model, its tensors written anew and others added: name, shape, type, bytes.
fn rewritten(
    gguf: &Gguf,
    anew: impl Fn(&Tensor) -> (GgmlType, Vec<u8>),
    added: Vec<(TensorPlan, Vec<u8>)>,
    path: &Path,
) -> Gguf {
    let mut all: Vec<(TensorPlan, Vec<u8>)> = Vec::new();
    for tensor in gguf.tensors() {
        let (ty, bytes) = anew(tensor);
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        all.push((TensorPlan { name, ty, shape }, bytes));
    }
    all.extend(added);
    let plans: Vec<TensorPlan> = all.iter().map(|(plan, _)| plan.clone()).collect();
    let options = WriteOptions { overwrite: true, max_shard: None };
    let writer = GgufWriter::create(path, gguf.metadata(), &plans, options).unwrap();
    for (i, (_, bytes)) in all.iter().enumerate() {
        writer.write_at(i, 0, bytes).unwrap();
    }
    writer.finish().unwrap();
    Gguf::open(path).unwrap()
}

fn encoded(ty: GgmlType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; ty.row_bytes(values.len()).unwrap()];
    quantize(ty, values, None, &mut bytes).unwrap();
    bytes
}

/// The same model, whose weights have scales beside them and are divided by these, of types that
/// `ty` gives by the number of columns.
fn with_scales(gguf: &Gguf, ty: impl Fn(usize) -> GgmlType, path: &Path) -> Gguf {
    let is_scaled = |tensor: &&Tensor| {
        let name = &tensor.name;
        tensor.shape.len() > 1 && name != "token_embd.weight" && !name.contains("ffn_gate_inp")
    };
    let scales_of = |tensor: &Tensor| -> Vec<f32> {
        let experts = if tensor.shape.len() == 3 { tensor.shape[0] } else { 1 };
        let number = gguf.tensors().iter().position(|other| other.name == tensor.name).unwrap();
        // From 0.3 to 2.5, every other one below zero.
        let scale = |i: usize| (0.3 + 0.37 * (i % 7) as f32) * if i % 2 == 1 { -1.0 } else { 1.0 };
        (0..experts).map(|expert| scale(5 * number + 3 * expert)).collect()
    };
    let scaled = gguf.tensors().iter().filter(is_scaled);
    let added = scaled.flat_map(|tensor| {
        let scales = scales_of(tensor);
        let plan = |name: &str, len| {
            let name = tensor.name.replace(".weight", name);
            TensorPlan { name, ty: GgmlType::F32, shape: vec![len] }
        };
        // The other is there to be passed over.
        [
            (plan(".scale", scales.len()), encoded(GgmlType::F32, &scales)),
            (plan(".input_scale", 1), encoded(GgmlType::F32, &[0.01])),
        ]
    });
    let anew = |tensor: &Tensor| {
        if !is_scaled(&tensor) {
            return (tensor.ty, tensor.bytes.to_vec());
        }
        let (scales, mut values) = (scales_of(tensor), tensor.to_f32().unwrap());
        let of_one = values.len() / scales.len();
        for (values, scale) in values.chunks_exact_mut(of_one).zip(scales) {
            values.iter_mut().for_each(|value| *value /= scale);
        }
        let ty = ty(tensor.columns());
        (ty, encoded(ty, &values))
    };
    rewritten(gguf, anew, added.collect(), path)
}

/// What a tensor's weights mean.
fn meant(gguf: &Gguf, tensor: &Tensor) -> Vec<f32> {
    let scales = Scales::find(gguf, &tensor.name, &tensor.shape).unwrap();
    let experts = if tensor.shape.len() == 3 { tensor.shape[0] } else { 1 };
    let mut values = tensor.to_f32().unwrap();
    let of_one = values.len() / experts;
    for (expert, values) in values.chunks_exact_mut(of_one).enumerate() {
        values.iter_mut().for_each(|value| *value *= scales.of_expert(expert));
    }
    values
}

#[test]
fn scales_beside_weights_change_nothing_but_the_weights() {
    let mut found = Vec::new();
    cases(&data(), &mut found);
    let folder = tempfile::tempdir().unwrap();
    for case in found {
        let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
        let scaled = with_scales(&gguf, |_| GgmlType::F32, &folder.path().join("scaled.gguf"));
        let with_adapter = |gguf: &Gguf| {
            let mut engine = engine(gguf, true, 2);
            let loaded = engine.load_adapter(&adapter(&case, gguf, 0.5)).unwrap();
            (run(&mut engine, &[]), run(&mut engine, &[loaded]))
        };
        let (base, want) = with_adapter(&gguf);
        let (same, at_run_time) = with_adapter(&scaled);
        let change = adapter(&case, &scaled, 0.5);
        let merged = merged(&scaled, &[change], folder.path());
        let merged = run(&mut engine(&merged, true, 2), &[]);
        for (what, want, found) in [
            ("base", &base, &same),
            ("at run time", &want, &at_run_time),
            ("merged", &want, &merged),
        ] {
            let error = distance(want, found);
            assert!(error <= 2e-5, "{}, {what}: {error}", case.display());
        }
    }
}

#[test]
fn what_is_merged_beside_a_scale_means_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for case in ["moe/mixtral_modules", "qwen2_embedding", "phi3", "moe/qwen3moe_modules"] {
        let case = data().join(case);
        let gguf = Gguf::open(&case.join("base.gguf")).unwrap();
        // Its rows of 32 are no whole blocks of the one, and all are of the other.
        let ty = |columns: usize| match columns % 64 {
            0 => GgmlType::NVFP4,
            _ => GgmlType::Q8_0,
        };
        let scaled = with_scales(&gguf, ty, &path("scaled.gguf"));
        let as_meant = |tensor: &Tensor| {
            let values = meant(&scaled, scaled.tensor(&tensor.name).unwrap());
            (GgmlType::F32, encoded(GgmlType::F32, &values))
        };
        let plain = rewritten(&gguf, as_meant, Vec::new(), &path("plain.gguf"));
        let change = adapter(&case, &plain, 1.0);
        let (want, plain_report) = merged_by(&["f32"], &plain, &[change], folder.path());
        let change = [adapter(&case, &scaled, 1.0)];
        let tolerance = |ty: GgmlType| match ty {
            GgmlType::F32 => 1e-6,
            GgmlType::Q8_0 => 0.01,
            _ => 0.12,
        };
        let has_down = change[0].changes.iter().any(|change| change.tensor.contains("ffn_down"));
        let own = ["f32", "ffn_down=nvfp4"];
        for rules in [&["keep"][..], &["f32"], if has_down { &own } else { &own[..1] }] {
            let (found, report) = merged_by(rules, &scaled, &change, folder.path());
            for tensor in &report.tensors {
                let at = format!("{}, {rules:?}: {}", case.display(), tensor.name);
                let stored = found.tensor(&tensor.name).unwrap();
                let want = want.tensor(&tensor.name).unwrap().to_f32().unwrap();
                let pairs = || want.iter().map(|&x| f64::from(x)).zip(meant(&found, stored));
                let error: f64 = pairs().map(|(a, b)| (a - f64::from(b)).powi(2)).sum();
                let norm: f64 = pairs().map(|(a, _)| a * a).sum();
                let error = (error / norm).sqrt();
                assert!(error < tolerance(stored.ty), "{at} as {}: {error}", stored.ty);
                let mut plain = plain_report.tensors.iter();
                let plain = plain.find(|plain| plain.name == tensor.name).unwrap();
                assert!((tensor.change / plain.change - 1.0).abs() < 1e-3, "{at}");
            }
            if rules == ["f32"] {
                let survival = report.adapter.unwrap();
                assert!(survival.relative_error < 1e-5, "{survival:?}");
            }
            let is_refused = report.notes.iter().any(|note| note.contains("llama.cpp"));
            let is_head = |tensor: &TensorReport| tensor.name == "output.weight";
            let has_head = report.tensors.iter().any(is_head);
            assert_eq!(is_refused, has_head && rules != ["keep"], "{:?}", report.notes);
        }
        let want = run(&mut engine(&want, true, 2), &[]);
        // The fast way rounds what weights read to eight bits.
        for (exact, tolerance) in [(true, 2e-5), (false, 0.2)] {
            let mut engine = engine(&scaled, exact, 2);
            let loaded = engine.load_adapter(&change[0]).unwrap();
            let error = distance(&want, &run(&mut engine, &[loaded]));
            assert!(error < tolerance, "{}, exact: {exact}: {error}", case.display());
        }
    }
}

#[test]
fn a_scale_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = Gguf::open(&data().join("qwen2/base.gguf")).unwrap();
    let path = folder.path().join("scaled.gguf");
    let beside = |ty: GgmlType, shape: &[usize], values: &[f32]| {
        let name = "blk.0.attn_q.scale".to_owned();
        let plan = TensorPlan { name, ty, shape: shape.to_vec() };
        let bytes = match ty {
            GgmlType::F32 => encoded(ty, values),
            _ => values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect(),
        };
        let gguf = rewritten(&base, |t| (t.ty, t.bytes.to_vec()), vec![(plan, bytes)], &path);
        let adapters = [adapter(&data().join("qwen2"), &gguf, 1.0)];
        let rules = TypeRules::default();
        let merged = Plan::merge(&gguf, &adapters, &rules, None).map(|_| ());
        (merged, Model::open(&gguf).map(|_| ()))
    };
    let refused = |found: (Result<(), PlanError>, Result<(), Error>)| {
        let (Err(PlanError::Scale(merging)), Err(Error::Scale(running))) = found else {
            panic!("{found:?}");
        };
        assert_eq!(merging.to_string(), running.to_string());
        assert!(merging.to_string().contains("blk.0.attn_q.scale"), "{merging}");
        merging
    };
    let found = refused(beside(GgmlType::F32, &[2], &[1.0, 1.0]));
    assert!(matches!(found, ScaleError::Count { found: 2, expected: 1, .. }), "{found}");
    let found = refused(beside(GgmlType::I32, &[1], &[1.0]));
    assert!(matches!(found, ScaleError::Type { ty: GgmlType::I32, .. }), "{found}");
    let found = refused(beside(GgmlType::F32, &[1], &[f32::NAN]));
    assert!(matches!(found, ScaleError::NotFinite { .. }), "{found}");
    let found = refused(beside(GgmlType::F32, &[1], &[f32::INFINITY]));
    assert!(matches!(found, ScaleError::NotFinite { .. }), "{found}");
    // Products may come to nothing, but no change can be in the weights of those.
    let (merging, running) = beside(GgmlType::F32, &[1], &[0.0]);
    running.unwrap();
    let error = merging.unwrap_err();
    assert!(matches!(error, PlanError::ZeroScale { .. }), "{error}");
    assert!(error.to_string().contains("blk.0.attn_q.scale"), "{error}");
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
