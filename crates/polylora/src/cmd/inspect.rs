use crate::source::Source;
use crate::terminal::{self, Table, bold, size};
use anyhow::Result;
use polylora_adapter::{ImatrixSummary, Inspection, ModelSummary, Summary, inspect};
use std::collections::BTreeMap;
use std::fmt::Write;

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
        let found = inspect(&self.source.fetch()?)?;
        if self.json {
            return terminal::print_json(&found);
        }
        terminal::print(&match &found {
            Inspection::Adapter(summary) => adapter(summary),
            Inspection::Model(summary) => model(summary),
            Inspection::Imatrix(summary) => imatrix(summary),
        })
    }
}

fn model(report: &ModelSummary) -> String {
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

fn imatrix(report: &ImatrixSummary) -> String {
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
