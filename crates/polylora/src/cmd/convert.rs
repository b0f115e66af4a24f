use super::{check_output, open_model, parts};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, size};
use anyhow::Result;
use polylora_adapter::{OnMismatch, convert, load};
use polylora_quant::GgmlType;
use std::path::PathBuf;

/// Turn a PEFT adapter into a GGUF LoRA that llama.cpp applies correctly
///
/// Scales that llama.cpp does not know (rsLoRA, alpha_pattern, and a scale given here) are folded
/// into B. What such a file cannot hold (DoRA, biases, saved modules) is refused by name.
#[derive(clap::Args)]
pub(crate) struct Convert {
    /// The adapter: a PEFT folder, or a GGUF LoRA to change its type or scale
    #[arg(value_name = "[NAME=]ADAPTER[@SCALE]")]
    adapter: AdapterSource,
    /// The model that it is for, in any type
    #[arg(long, value_name = "BASE.gguf")]
    base: Source,
    /// The file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    out: PathBuf,
    /// Type of the factors: f32, f16, bf16 or q8_0
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    ty: GgmlType,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

impl Convert {
    pub(crate) fn run(self) -> Result<()> {
        let base = open_model(&self.base)?;
        let mut inputs = parts(&base);
        let spec = self.adapter.fetch()?;
        inputs.push(&spec.path);
        check_output(&self.out, &inputs, self.force)?;
        let adapter = load(&spec, &base, OnMismatch::Fail)?;
        let report = convert(&adapter, &base, &self.out, self.ty, self.force)?;
        if self.json {
            return terminal::print_json(&report);
        }
        let bytes = std::fs::metadata(&self.out).map_or(0, |metadata| metadata.len());
        let mut text = format!(
            "Wrote {}: an adapter of {} tensors in {}, {}\n",
            self.out.display(),
            report.tensors,
            self.ty,
            size(bytes),
        );
        if report.rescaled > 0 {
            text += &format!("{} tensors' own scale is folded into their B\n", report.rescaled);
        }
        if !report.fallback.is_empty() {
            let names = report.fallback.join(", ");
            text += &format!("As F16, having no whole blocks of {}: {names}\n", self.ty);
        }
        terminal::print(&text)
    }
}
