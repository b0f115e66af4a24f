use crate::source::Source;
use crate::terminal::{self, Table, bold, size};
use anyhow::Result;
use polylora_adapter::{Summary, summarize};
use polylora_file::imatrix::Imatrix;
use polylora_file::{Gguf, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Show what is in a model, an adapter of either kind, or an importance matrix
#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// A GGUF file, a PEFT folder, or an imatrix of either format
    #[arg(value_name = "FILE|DIR")]
    source: Source,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<()> {
        let path = self.source.fetch()?;
        if path.is_dir() {
            return self.print(&summarize(&path)?, adapter);
        }
        let gguf = match Gguf::open(&path) {
            Ok(gguf) => gguf,
            // The old imatrix format has no magic: where the file reads as one, it is one.
            Err(error) => match Imatrix::open(&path) {
                Ok(found) => return self.print(&MatrixReport::new(&path, &found), imatrix),
                Err(_) => return Err(error.into()),
            },
        };
        match gguf.metadata().str("general.type") {
            Some("adapter") => self.print(&summarize(&path)?, adapter),
            Some("imatrix") => {
                let found = Imatrix::open(&path)?;
                self.print(&MatrixReport::new(&path, &found), imatrix)
            }
            _ => self.print(&ModelReport::new(&gguf), model),
        }
    }

    fn print<T: Serialize>(&self, report: &T, text: fn(&T) -> String) -> Result<()> {
        if self.json { terminal::print_json(report) } else { terminal::print(&text(report)) }
    }
}

/// What `inspect` tells of a model.
#[derive(Serialize)]
struct ModelReport {
    files: Vec<PathBuf>,
    version: u32,
    alignment: usize,
    architecture: Option<String>,
    parameters: u64,
    tensor_bytes: u64,
    metadata: Vec<(String, serde_json::Value)>,
    tensors: Vec<TensorRow>,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    #[serde(rename = "type")]
    ty: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

impl ModelReport {
    fn new(gguf: &Gguf) -> ModelReport {
        let tensors = gguf.tensors().iter().map(|tensor| TensorRow {
            name: tensor.name.clone(),
            ty: tensor.ty.name(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len(),
        });
        let metadata = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), json(value)));
        ModelReport {
            files: gguf.parts().to_vec(),
            version: gguf.version(),
            alignment: gguf.alignment(),
            architecture: gguf.architecture().map(str::to_owned),
            parameters: gguf.tensors().iter().map(|tensor| tensor.elements() as u64).sum(),
            tensor_bytes: gguf.tensors().iter().map(|tensor| tensor.bytes.len() as u64).sum(),
            metadata: metadata.collect(),
            tensors: tensors.collect(),
        }
    }
}

/// A value of a GGUF's metadata. Long arrays (a vocabulary) are told by their beginning.
fn json(value: &Value) -> serde_json::Value {
    /// Elements of an array that are shown.
    const SHOWN: usize = 8;
    match value {
        Value::Array(array) => {
            let shown: Vec<serde_json::Value> =
                array.iter().take(SHOWN).map(|value| json(&value)).collect();
            if array.len() <= SHOWN {
                return shown.into();
            }
            serde_json::json!({ "length": array.len(), "first": shown })
        }
        Value::Bool(value) => (*value).into(),
        Value::String(text) => String::from_utf8_lossy(text).into(),
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F32(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
    }
}

fn model(report: &ModelReport) -> String {
    let mut text = String::new();
    for file in &report.files {
        let _ = writeln!(text, "{}", bold(&file.display().to_string()));
    }
    let _ = writeln!(
        text,
        "GGUF v{}, {}, {} parameters, {} of tensors\n",
        report.version,
        report.architecture.as_deref().unwrap_or("no architecture"),
        terminal::count(report.parameters),
        size(report.tensor_bytes)
    );
    let _ = writeln!(text, "{}", bold("metadata"));
    let width = report.metadata.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in &report.metadata {
        let _ = writeln!(text, "  {key:width$}  {}", short(value));
    }
    let mut table = Table::new(&["tensor", "dimensions", "type", "size"]);
    let mut by_type: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &report.tensors {
        let total = by_type.entry(tensor.ty).or_default();
        *total = (total.0 + 1, total.1 + tensor.bytes as u64);
        table.row([
            tensor.name.clone(),
            terminal::dimensions(&tensor.shape),
            tensor.ty.to_owned(),
            size(tensor.bytes as u64),
        ]);
    }
    let _ = writeln!(text, "\n{table}");
    let mut table = Table::new(&["type", "tensors", "size"]);
    for (ty, (count, bytes)) in by_type {
        table.row([ty.to_owned(), count.to_string(), size(bytes)]);
    }
    let _ = write!(text, "{table}");
    text
}

/// A value in one line of a terminal.
fn short(value: &serde_json::Value) -> String {
    /// Characters that are shown.
    const SHOWN: usize = 70;
    let text = match value {
        serde_json::Value::String(text) => format!("{text:?}"),
        serde_json::Value::Object(array) => {
            format!("{} elements: {}", array["length"], array["first"])
        }
        value => value.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

fn adapter(summary: &Summary) -> String {
    let mut text = format!("{}\n", bold(&summary.path.display().to_string()));
    let kinds: Vec<&str> = summary.kinds.iter().copied().collect();
    let _ = writeln!(text, "{}: {}", summary.format, kinds.join(", "));
    let fields = summary.config.iter().map(|(field, _)| field.len());
    let width = fields.max().unwrap_or(0).max("architecture".len());
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:width$}  {value}");
        }
    };
    line("base", summary.base.clone().unwrap_or_default());
    line("architecture", summary.architecture.clone().unwrap_or_default());
    let ranks = summary.ranks.iter().map(|(rank, modules)| format!("{rank} ({modules} modules)"));
    line("rank", ranks.collect::<Vec<_>>().join(", "));
    let scales = summary.scales.iter().map(|scale| format!("{scale:.6}"));
    line("scale", scales.collect::<Vec<_>>().join(", "));
    let targets = summary.targets.iter().map(|(target, count)| format!("{target} ({count})"));
    line("targets", targets.collect::<Vec<_>>().join(", "));
    line("parameters", terminal::count(summary.parameters as u64));
    line("size", size(summary.bytes as u64));
    line("sha256", summary.hash.clone());
    for (field, value) in &summary.config {
        line(field, value.clone());
    }
    let mut table = Table::new(&["tensor", "dimensions", "type"]);
    for tensor in &summary.tensors {
        let dimensions = terminal::dimensions(&tensor.shape);
        table.row([tensor.name.clone(), dimensions, tensor.ty.clone()]);
    }
    let _ = write!(text, "\n{table}");
    text
}

/// What `inspect` tells of an importance matrix.
#[derive(Serialize)]
struct MatrixReport {
    path: PathBuf,
    datasets: Vec<String>,
    chunks: Option<u64>,
    chunk_size: Option<u64>,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    tensor: String,
    values: usize,
    mean: f64,
    max: f32,
}

impl MatrixReport {
    fn new(path: &Path, imatrix: &Imatrix) -> MatrixReport {
        let entries = imatrix.entries().map(|(tensor, values)| Entry {
            tensor: tensor.to_owned(),
            values: values.len(),
            mean: values.iter().map(|&value| f64::from(value)).sum::<f64>()
                / values.len().max(1) as f64,
            max: values.iter().copied().fold(0.0, f32::max),
        });
        MatrixReport {
            path: path.to_owned(),
            datasets: imatrix.datasets().to_vec(),
            chunks: imatrix.chunks(),
            chunk_size: imatrix.chunk_size(),
            entries: entries.collect(),
        }
    }
}

fn imatrix(report: &MatrixReport) -> String {
    let mut text = format!("{}\n", bold(&report.path.display().to_string()));
    let chunks = report.chunks.map_or("?".to_owned(), |chunks| chunks.to_string());
    let _ = writeln!(
        text,
        "importance matrix of {} tensors, from {} ({chunks} chunks)\n",
        report.entries.len(),
        report.datasets.join(", "),
    );
    let mut table = Table::new(&["tensor", "values", "mean", "max"]);
    for entry in &report.entries {
        table.row([
            entry.tensor.clone(),
            entry.values.to_string(),
            format!("{:.3e}", entry.mean),
            format!("{:.3e}", entry.max),
        ]);
    }
    let _ = write!(text, "{table}");
    text
}
