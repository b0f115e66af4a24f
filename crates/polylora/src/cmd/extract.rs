use super::{check_output, on_threads, open_model, parts};
use crate::source::Source;
use crate::terminal::{self, Progress, Table, percent, size};
use anyhow::Result;
use polylora_adapter::{ConvertReport, convert};
use polylora_calibrate::{self as calibrate, ExtractReport, Wanted};
use polylora_quant::GgmlType;
use serde::Serialize;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Take a GGUF LoRA out of the difference of two models
///
/// Each matrix's difference TUNED - BASE becomes a pair of low rank, found by singular values. What
/// rounding did is part of the difference, so give both models in the types with the most bits
/// that there are; the adapter then fits the base in any type.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Extract {
    /// The model that the adapter will be for
    #[arg(value_name = "BASE.gguf")]
    base: Source,
    /// The model that base and adapter are to give, of the same tensors
    #[arg(value_name = "TUNED.gguf")]
    tuned: Source,
    #[command(flatten)]
    much: Much,
    /// The file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    out: PathBuf,
    /// Type of the factors: f32, f16, bf16 or q8_0
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    ty: GgmlType,
    /// Threads to work on [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print what was extracted as JSON
    #[arg(long)]
    json: bool,
}

/// How much of the difference is wanted.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Much {
    /// Rank of each pair
    #[arg(long, value_name = "R")]
    rank: Option<NonZeroUsize>,
    /// Take for each matrix the lowest rank that holds this share of its change's squared norm
    #[arg(long, value_name = "SHARE", value_parser = share)]
    energy: Option<f64>,
}

const EXAMPLES: &str = "\
Examples:
  polylora extract base-f16.gguf tuned-f16.gguf --rank 32 -o adapter.gguf
  polylora extract base-f16.gguf tuned-f16.gguf --energy 0.99 -o adapter.gguf --type q8_0";

/// How many tensors a person is shown; JSON has all.
const WORST_SHOWN: usize = 8;
/// An adapter that holds less is told how to hold more: by then the change is visibly less.
const LITTLE: f64 = 0.9;

fn share(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|&share| share > 0.0 && share <= 1.0);
    parsed.ok_or_else(|| "a share is above 0 and at most 1, such as 0.99".to_owned())
}

/// What is printed for programs.
#[derive(Serialize)]
struct Extracted<'a> {
    #[serde(flatten)]
    report: &'a ExtractReport,
    /// About the file.
    written: &'a ConvertReport,
}

impl Extract {
    pub(crate) fn run(self) -> Result<()> {
        let (base, tuned) = (open_model(&self.base)?, open_model(&self.tuned)?);
        let inputs = [parts(&base), parts(&tuned)].concat();
        check_output(&self.out, &inputs, self.force)?;

        let progress = Progress::share("extracting");
        let wanted = self.much.wanted();
        let extract = || calibrate::extract(&base, &tuned, wanted, &progress);
        let (adapter, report) = on_threads(self.threads, extract)??;
        drop(progress);
        let written = convert(&adapter, &base, &self.out, self.ty, self.force)?;

        if self.json {
            return terminal::print_json(&Extracted { report: &report, written: &written });
        }
        terminal::print(&self.render(&report, &written))
    }

    fn render(&self, report: &ExtractReport, written: &ConvertReport) -> String {
        let bytes = std::fs::metadata(&self.out).map_or(0, |metadata| metadata.len());
        let mut text = format!(
            "Wrote {}: an adapter of {} tensors in {}, {}; {} tensors are the same in both models\n\n",
            self.out.display(),
            written.tensors,
            self.ty,
            size(bytes),
            report.equal,
        );
        let mut table = Table::new(&["worst tensors", "rank", "held", "of the change"]);
        for tensor in report.tensors.iter().take(WORST_SHOWN) {
            let (held, share) = (percent(tensor.held), percent(tensor.share));
            table.row([tensor.name.clone(), tensor.rank.to_string(), held, share]);
        }
        let _ = writeln!(text, "{table}");
        for tensor in &report.left_out {
            let (name, why, share) = (&tensor.name, tensor.why, percent(tensor.share));
            let _ = writeln!(text, "left out: {name}, {share} of the change: {why}");
        }
        if !written.fallback.is_empty() {
            let names = written.fallback.join(", ");
            let _ = writeln!(text, "As F16, having no whole blocks of {}: {names}", self.ty);
        }
        let _ = writeln!(text, "{}", terminal::wrapped(&self.much.verdict(report)));
        text
    }
}

impl Much {
    fn wanted(&self) -> Wanted {
        match (self.rank, self.energy) {
            (Some(rank), _) => Wanted::Rank(rank.get()),
            // clap has seen to it that one is there.
            (None, energy) => Wanted::Energy(energy.unwrap_or(1.0)),
        }
    }

    /// How much of the change the adapter holds, and what to do if that is little.
    fn verdict(&self, report: &ExtractReport) -> String {
        let mut text =
            format!("The adapter holds {} of the change (squared norm).", percent(report.held));
        let left_out: f64 = report.left_out.iter().map(|tensor| tensor.share).sum();
        if report.held >= LITTLE {
            return text;
        }
        if left_out > 0.5 {
            text +=
                " Most of it is in tensors that a LoRA cannot change: use the tuned model itself.";
        } else if self.rank.is_some() {
            text += " A higher --rank holds more; --energy 0.99 finds out how high.";
        } else {
            text += " A higher --energy holds more.";
        }
        text
    }
}
