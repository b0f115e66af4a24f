//! `polylora extract`: what was merged comes out again, and what cannot is said.

mod support;

use polylora::file::{Gguf, GgufWriter, TensorPlan, WriteOptions};
use polylora::{embedded, synthetic::Llama};
use std::path::Path;
use support::Folder;

/// Of the embedded adapter.
const RANK: u64 = 8;
const NORM: &str = "output_norm.weight";

impl Folder {
    /// A folder with the embedded model, and the same with an adapter merged into it.
    fn new() -> Folder {
        let folder = Folder::empty();
        let written = embedded::write(folder.0.path()).unwrap();
        std::fs::rename(written.model, folder.path("base.gguf")).unwrap();
        let merge = ["merge", "base.gguf", "--adapter", "shout", "--type", "f32"];
        folder.ok(&[&merge[..], &["-o", "tuned.gguf"]].concat());
        folder
    }

    fn open(&self, name: &str) -> Gguf {
        Gguf::open(&self.path(name)).unwrap()
    }

    fn extract(&self, tuned: &str, out: &str, more: &[&str]) -> serde_json::Value {
        let arguments = ["extract", "base.gguf", tuned, "-o", out, "--json"];
        serde_json::from_str(&self.ok(&[&arguments[..], more].concat())).unwrap()
    }
}

/// `||b - a||`, squared, over all tensors.
fn distance(a: &Gguf, b: &Gguf) -> f64 {
    let tensors = a.tensors().iter().map(|tensor| {
        let (a, b) = (tensor.to_f32().unwrap(), b.tensor(&tensor.name).unwrap().to_f32().unwrap());
        a.iter().zip(&b).map(|(a, b)| f64::from(b - a).powi(2)).sum::<f64>()
    });
    tensors.sum()
}

/// A copy of a model with each value of its last norm raised.
fn with_another_norm(from: &Gguf, to: &Path) {
    let tensors = from.tensors().iter();
    let plans: Vec<TensorPlan> = tensors
        .map(|tensor| {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            TensorPlan { name, ty: tensor.ty, shape }
        })
        .collect();
    let writer = GgufWriter::create(to, from.metadata(), &plans, WriteOptions::default()).unwrap();
    for (i, tensor) in from.tensors().iter().enumerate() {
        let mut bytes = tensor.bytes.to_vec();
        if tensor.name == NORM {
            let values = tensor.to_f32().unwrap();
            bytes = values.iter().flat_map(|value| (value + 0.01).to_le_bytes()).collect();
        }
        writer.write_at(i, 0, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_merged_adapter_comes_out_again() {
    let folder = Folder::new();
    let report = folder.extract("tuned.gguf", "again.gguf", &["--rank", "16"]);
    assert!(report["held"].as_f64().unwrap() > 0.99, "{report}");
    assert_eq!(report["left_out"].as_array().unwrap().len(), 0);
    assert_eq!(report["written"]["tensors"], report["tensors"].as_array().unwrap().len());

    let merge = ["merge", "base.gguf", "--adapter", "again.gguf", "--type", "f32"];
    folder.ok(&[&merge[..], &["-o", "merged.gguf"]].concat());
    let [base, tuned, merged] = ["base.gguf", "tuned.gguf", "merged.gguf"].map(|f| folder.open(f));
    let off = (distance(&tuned, &merged) / distance(&base, &tuned)).sqrt();
    // Half precision has eleven bits.
    assert!(off < 1e-3, "{off}");

    // The share finds the rank that is really there.
    let report = folder.extract("tuned.gguf", "share.gguf", &["--energy", "0.9999"]);
    for tensor in report["tensors"].as_array().unwrap() {
        assert!(tensor["rank"].as_u64().unwrap() <= RANK, "{tensor}");
        assert!(tensor["held"].as_f64().unwrap() >= 0.9999, "{tensor}");
    }
    // And a rank that is too low says so, the worst first.
    let extract = ["extract", "base.gguf", "tuned.gguf", "-o", "one.gguf", "--rank", "1"];
    let said = folder.ok(&extract);
    for part in ["worst tensors", "The adapter holds", "A higher --rank holds"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn what_no_adapter_can_hold_is_named() {
    let folder = Folder::new();
    with_another_norm(&folder.open("tuned.gguf"), &folder.path("norm.gguf"));
    let report = folder.extract("norm.gguf", "out.gguf", &["--rank", "16"]);
    let left_out = &report["left_out"][0];
    assert_eq!(left_out["name"], NORM);
    let (held, share) = (report["held"].as_f64().unwrap(), left_out["share"].as_f64().unwrap());
    assert!(share > 0.0 && (held + share - 1.0).abs() < 1e-3, "{held} {share}");

    with_another_norm(&folder.open("base.gguf"), &folder.path("only.gguf"));
    for tuned in ["base.gguf", "only.gguf"] {
        let arguments = ["extract", "base.gguf", tuned, "--rank", "4", "-o", "none.gguf"];
        let message = folder.fails(1, &arguments);
        assert!(message.contains("no matrix that differs"), "{message}");
        assert!(!folder.path("none.gguf").exists());
    }
}

#[test]
fn models_must_match_and_one_measure_be_given() {
    let folder = Folder::new();
    let other = Llama { layers: 1, hidden: 256, ffn: 512, heads: 4, kv_heads: 2, vocab: 64 };
    other.write_f16(&folder.path("other.gguf")).unwrap();
    let extract = ["extract", "base.gguf", "other.gguf", "-o", "out.gguf"];
    let message = folder.fails(1, &[&extract[..], &["--rank", "4"]].concat());
    assert!(message.contains(".weight"), "{message}");
    for more in [&[][..], &["--rank", "4", "--energy", "0.9"], &["--energy", "1.5"]] {
        folder.fails(2, &[&extract[..], more].concat());
    }
}
