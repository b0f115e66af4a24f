use super::{Work, check_output, open_imatrix, open_model, parts};
use crate::source::Source;
use crate::terminal::{self, Progress, percent, size};
use anyhow::{Context, Result};
use polylora_adapter::mixture::Recipe;
use polylora_adapter::rewrite::Plan;
use std::path::PathBuf;
use std::time::Instant;

/// Change a model's types: to one type, or to a mixture of llama.cpp by its name
///
/// The tensors are byte for byte what llama-quantize writes; f32 dequantizes.
#[derive(clap::Args)]
#[command(after_long_help = recipes())]
pub(crate) struct Quantize {
    /// The model to read
    #[arg(value_name = "IN.gguf")]
    input: Source,
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// A tensor type (q8_0, f16, f32, ...) or a mixture (Q4_K_M, Q5_K_S, ...)
    #[arg(value_name = "TYPE")]
    recipe: Recipe,
    /// Give every tensor that can be quantized the one type, without the mixture's exceptions
    #[arg(long)]
    pure: bool,
    /// Importance matrix of llama.cpp (GGUF or .dat), to weigh errors by when rounding
    #[arg(long, value_name = "FILE")]
    imatrix: Option<Source>,
    #[command(flatten)]
    work: Work,
}

/// Every TYPE with a line about it, for `--help`.
fn recipes() -> String {
    let lines = Recipe::all().map(|recipe| format!("  {:9}  {}\n", recipe.name(), recipe.about()));
    format!("Types and mixtures:\n{}", lines.collect::<String>())
}

impl Quantize {
    pub(crate) fn run(self) -> Result<()> {
        let start = Instant::now();
        let model = open_model(&self.input)?;
        check_output(&self.out, &parts(&model), self.work.force)?;
        let imatrix = self.imatrix.as_ref().map(open_imatrix).transpose()?;
        let types = self.recipe.tensor_types(&model, self.pure, imatrix.is_some())?;
        let plan = Plan::quantize(&model, &types, self.recipe.file_type(), imatrix.as_ref())?;

        let progress = Progress::bytes(plan.tensor_bytes(), "quantizing");
        let options = self.work.write_options();
        let report = self
            .work
            .on_threads(|| plan.write(&self.out, options, &progress))?
            .with_context(|| format!("cannot quantize into {}", self.out.display()))?;
        drop(progress);

        if self.work.json {
            return terminal::print_json(&report);
        }
        let counts = terminal::counts(plan.outputs().iter().map(|output| output.ty.name()));
        let mut text = format!(
            "Wrote {} as {}: {} of tensors ({}), {}\n",
            self.out.display(),
            self.recipe,
            size(report.tensor_bytes),
            counts,
            terminal::seconds(start.elapsed()),
        );
        if let Some(worst) = report.tensors.first().filter(|worst| worst.rounding > 0.0) {
            text += &format!(
                "Rounding is largest in {}: {} of the weights' norm\n",
                worst.name,
                percent(worst.rounding)
            );
        }
        terminal::print(&text)
    }
}
