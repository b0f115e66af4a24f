use super::open_model;
use crate::source::Source;
use crate::terminal::{self, Progress, Table, percent};
use anyhow::Result;
use polylora_adapter::diff::{TensorDiff, diff};
use std::fmt::Write;

/// Compare two models tensor by tensor: type, largest and RMS difference, relative error, cosine
///
/// Weights are compared decoded, so the files may be of different types. Tensors that are the
/// same byte for byte are counted, not listed.
#[derive(clap::Args)]
pub(crate) struct Diff {
    /// The model to compare with
    #[arg(value_name = "A.gguf")]
    a: Source,
    /// The other model
    #[arg(value_name = "B.gguf")]
    b: Source,
    /// Print every tensor as JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(crate) fn run(self) -> Result<()> {
        let (a, b) = (open_model(&self.a)?, open_model(&self.b)?);
        let bytes = a.tensors().iter().map(|tensor| tensor.bytes.len() as u64).sum();
        let progress = Progress::bytes(bytes, "comparing");
        let found = diff(&a, &b, &progress)?;
        progress.done()?;
        if self.json {
            return terminal::print_json(&found);
        }

        let (same, differing): (Vec<&TensorDiff>, _) =
            found.tensors.iter().partition(|tensor| tensor.identical);
        let mut text = String::new();
        if !differing.is_empty() {
            let head = ["tensor", "type", "max", "rms", "rel. error", "cosine"];
            let mut table = Table::new(&head);
            for tensor in &differing {
                let ty = if tensor.type_a == tensor.type_b {
                    tensor.type_a.to_owned()
                } else {
                    format!("{} > {}", tensor.type_a, tensor.type_b)
                };
                table.row([
                    tensor.name.clone(),
                    ty,
                    format!("{:.3e}", tensor.max),
                    format!("{:.3e}", tensor.rms),
                    percent(tensor.relative_error),
                    format!("{:.6}", tensor.cosine),
                ]);
            }
            let _ = writeln!(text, "{table}");
        }
        for (name, a, b) in &found.reshaped {
            let (a, b) = (terminal::dimensions(a), terminal::dimensions(b));
            let _ = writeln!(text, "{name}: {a} in A, {b} in B");
        }
        for (file, names) in [("A", &found.only_a), ("B", &found.only_b)] {
            for name in names {
                let _ = writeln!(text, "{name}: only in {file}");
            }
        }
        if !found.metadata.is_empty() {
            let _ = writeln!(text, "metadata that differs: {}", found.metadata.join(", "));
        }
        let _ = writeln!(text, "{} tensors differ, {} are identical", differing.len(), same.len());
        terminal::print(&text)
    }
}
