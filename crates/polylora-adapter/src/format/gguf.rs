//! A GGUF file of pairs, as llama.cpp reads it: `<tensor>.lora_a` (rank, in) and `<tensor>.lora_b`
//! (out, rank), named and laid out as the base.
//!
//! The one exception is `token_embd.weight`, whose rows are looked up instead of multiplied: its
//! `lora_a` is (vocabulary, rank), its `lora_b` (width, rank).

use super::Format;
use crate::adapter::{Change, ChangeKind, Matching, ReadFile, check_values};
use crate::error::Fault;
use crate::factor::Factor;
use crate::names::target;
use crate::summary::Summary;
use polylora_file::{Bytes, Gguf, Tensor, Value, sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

const ALPHA: &str = "adapter.lora.alpha";

pub(super) const FORMAT: Format = Format {
    expects: "a GGUF file of type adapter",
    recognizes,
    // A name does not tell an adapter from a model.
    among: |_| Vec::new(),
    read,
    summarize,
};

/// By its first bytes, or at least its name, so that a damaged file gets a fitting message.
fn recognizes(path: &Path) -> bool {
    let mut magic = [0; 4];
    let begins = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    let is_gguf = begins.is_ok() && magic == *b"GGUF";
    is_gguf || path.is_file() && path.extension().is_some_and(|extension| extension == "gguf")
}

/// What is in the file.
struct Contents {
    file: Gguf,
    alpha: f32,
    pairs: BTreeMap<String, Halves>,
    /// Whole norms, which llama.cpp's converter passes on (and llama.cpp passes over).
    norms: Vec<Arc<Tensor>>,
    hash: String,
}

#[derive(Default)]
struct Halves {
    a: Option<Arc<Tensor>>,
    b: Option<Arc<Tensor>>,
}

impl Halves {
    fn both(&self, name: &str) -> Result<(&Arc<Tensor>, &Arc<Tensor>), Fault> {
        let half = |present, missing| Fault::Half { module: name.to_owned(), present, missing };
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => Ok((a, b)),
            (None, _) => Err(half("lora_b", "lora_a")),
            (_, None) => Err(half("lora_a", "lora_b")),
        }
    }
}

impl Contents {
    fn open(path: &Path, read_file: ReadFile) -> Result<Contents, Fault> {
        let what = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let bytes = read_file(path).map_err(|error| Fault::Read { what, error })?;
        let hash = sha256([&*bytes]);
        let file = Gguf::parse(path, bytes)?;
        expect(&file, "general.type", "adapter", "a whole model is no adapter")?;
        expect(&file, "adapter.type", "lora", "only LoRA can be applied")?;
        if file.metadata().get("adapter.alora.invocation_tokens").is_some() {
            return Err(Fault::Activated);
        }
        let alpha = match file.metadata().get(ALPHA) {
            None => 0.0,
            Some(value) => {
                value.as_f32().filter(|alpha| alpha.is_finite()).ok_or_else(|| Fault::Metadata {
                    key: ALPHA,
                    found: shown(value),
                    expected: "a finite f32".to_owned(),
                    why: "it scales every tensor",
                })?
            }
        };

        let mut pairs: BTreeMap<String, Halves> = BTreeMap::new();
        let mut norms = Vec::new();
        for tensor in file.tensors() {
            let shared = Arc::new(tensor.clone());
            if let Some(name) = tensor.name.strip_suffix(".lora_a") {
                pairs.entry(name.to_owned()).or_default().a = Some(shared);
            } else if let Some(name) = tensor.name.strip_suffix(".lora_b") {
                pairs.entry(name.to_owned()).or_default().b = Some(shared);
            } else if tensor.name.ends_with("_norm.weight") {
                norms.push(shared);
            } else {
                return Err(Fault::UnknownTensor(tensor.name.clone()));
            }
        }
        Ok(Contents { file, alpha, pairs, norms, hash })
    }

    /// llama.cpp's: an alpha of zero stands for none.
    fn scale(&self, rank: usize) -> f64 {
        if self.alpha == 0.0 { 1.0 } else { f64::from(self.alpha / rank as f32) }
    }
}

fn expect(file: &Gguf, key: &'static str, expected: &str, why: &'static str) -> Result<(), Fault> {
    let found = file.metadata().str(key).unwrap_or_default();
    if found == expected {
        return Ok(());
    }
    Err(Fault::Metadata { key, found: found.to_owned(), expected: expected.to_owned(), why })
}

fn read(path: &Path, matching: &mut Matching<'_>) -> Result<String, Fault> {
    let contents = Contents::open(path, matching.read_file)?;
    let base = matching.base.architecture().unwrap_or_default();
    expect(&contents.file, "general.architecture", base, "it was made for another base")?;

    let tensors: Vec<_> = contents.file.tensors().iter().cloned().map(Arc::new).collect();
    check_values(&tensors)?;
    for (name, halves) in &contents.pairs {
        let (a, b) = halves.both(name)?;
        let changes = low_rank(&contents, name, a, b, matching);
        matching.settle(name, changes)?;
    }
    for norm in &contents.norms {
        let changes = saved_norm(norm, matching);
        matching.settle(&norm.name, changes)?;
    }
    Ok(contents.hash)
}

fn low_rank(
    contents: &Contents,
    name: &str,
    a: &Arc<Tensor>,
    b: &Arc<Tensor>,
    matching: &Matching<'_>,
) -> Result<Vec<Change>, Fault> {
    let shape_fault = |tensor: &Tensor, expected: Vec<usize>| Fault::Shape {
        tensor: tensor.name.clone(),
        stored: tensor.shape.clone(),
        expected,
    };
    let base = target(matching.base, name)
        .ok_or_else(|| Fault::NoTarget { tensor: a.name.clone(), target: name.to_owned() })?;
    let rank = b.columns();
    let scale = matching.scale(contents.scale(rank));
    let change = |rows, down, up| Change {
        tensor: name.to_owned(),
        rows,
        source: name.to_owned(),
        kind: ChangeKind::LowRank { down, up, scale, magnitude: None },
    };

    let (out, columns) = match *base.shape {
        [out, columns] | [_, out, columns] => (out, columns),
        _ => return Err(shape_fault(a, base.shape.clone())),
    };
    if name == "token_embd.weight" {
        if a.shape != [out, rank] {
            return Err(shape_fault(a, vec![out, rank]));
        }
        if b.shape != [columns, rank] {
            return Err(shape_fault(b, vec![columns, rank]));
        }
        let (down, up) = (Factor::whole(b).transposed(), Factor::whole(a));
        return Ok(vec![change(0..out, down, up)]);
    }

    let stack = |last: [usize; 2]| match *base.shape {
        [experts, _, _] => vec![experts, last[0], last[1]],
        _ => last.to_vec(),
    };
    if a.shape != stack([rank, columns]) {
        return Err(shape_fault(a, stack([rank, columns])));
    }
    if b.shape != stack([out, rank]) {
        return Err(shape_fault(b, stack([out, rank])));
    }
    let expert = |expert: usize| {
        let down = Factor::whole(a).select_rows(expert * rank, rank, 1);
        let up = Factor::whole(b).select_rows(expert * out, out, 1);
        change(expert * out..(expert + 1) * out, down, up)
    };
    let experts = if let [experts, _, _] = *base.shape { experts } else { 1 };
    Ok((0..experts).map(expert).collect())
}

fn saved_norm(norm: &Arc<Tensor>, matching: &Matching<'_>) -> Result<Vec<Change>, Fault> {
    let name = norm.name.clone();
    let Some(base) = matching.base.tensor(&name) else {
        return Err(Fault::NoTarget { tensor: name.clone(), target: name });
    };
    if norm.shape != base.shape {
        let (stored, expected) = (norm.shape.clone(), base.shape.clone());
        return Err(Fault::Shape { tensor: name, stored, expected });
    }
    let kind = ChangeKind::Replace { values: Factor::whole(norm), scale: matching.scale(1.0) };
    Ok(vec![Change { tensor: name.clone(), rows: 0..base.rows(), source: name, kind }])
}

fn summarize(path: &Path) -> Result<Summary, Fault> {
    let contents = Contents::open(path, Bytes::map)?;
    let tensors: Vec<_> = contents.file.tensors().iter().cloned().map(Arc::new).collect();
    let mut summary = Summary::new(path, "GGUF adapter", contents.hash.clone(), &tensors);
    summary.architecture = contents.file.architecture().map(str::to_owned);
    for (name, halves) in &contents.pairs {
        let (_, b) = halves.both(name)?;
        summary.low_rank(name, b.columns(), contents.scale(b.columns()));
        summary.kinds.insert("LoRA");
    }
    for norm in &contents.norms {
        summary.target(&norm.name);
        summary.kinds.insert("whole modules");
    }
    for (key, value) in contents.file.metadata().iter() {
        // What is long is a table of tokens, not a setting.
        if !matches!(value, Value::Array(_)) {
            summary.config.push((key.to_owned(), shown(value)));
        }
    }
    Ok(summary)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        _ => (value.as_str().map(str::to_owned))
            .or_else(|| value.as_u64().map(|number| number.to_string()))
            .or_else(|| value.as_f32().map(|number| number.to_string()))
            .unwrap_or_else(|| format!("{value:?}")),
    }
}
