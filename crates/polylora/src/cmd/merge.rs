use super::{Work, WrongUse, check_output, fetch, open_imatrix, open_model, parts};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, Progress, Table, percent, size};
use anstyle::AnsiColor;
use anyhow::{Context, Result};
use polylora_adapter::report::{Report, Verdict};
use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{Adapter, OnMismatch, load};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Merge adapters into a model: W' = W + scale * (B @ A), back to each tensor's own type
///
/// Every tensor that no adapter touches is copied byte for byte; metadata, tokenizer and chat
/// template are kept. The report says what survived the way back to the type.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Merge {
    /// The model, quantized in any format (of a split one, any part)
    #[arg(value_name = "BASE.gguf")]
    base: Source,
    /// A PEFT folder or a GGUF LoRA, with a scale to multiply its own; may be repeated
    #[arg(long, required = true, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// The file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    out: PathBuf,
    /// Type of the changed tensors: keep (each its own), f32, f16, bf16, q8_0, ...; or
    /// PATTERN=TYPE for those whose name matches a regular expression; may be repeated
    #[arg(long = "type", value_name = "[PATTERN=]TYPE", default_value = "keep")]
    types: Vec<String>,
    /// Importance matrix of llama.cpp (GGUF or .dat), to weigh errors by when rounding
    #[arg(long, value_name = "FILE")]
    imatrix: Option<Source>,
    /// What to do with a part of an adapter that does not fit the base
    #[arg(long, value_name = "fail|skip", default_value = "fail", value_parser = on_mismatch)]
    on_mismatch: OnMismatch,
    /// Say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    work: Work,
}

const EXAMPLES: &str = "\
Examples:
  polylora merge model-Q4_K_M.gguf --adapter my-lora/ -o merged.gguf
  polylora merge model.gguf --adapter a/@0.5 --adapter b.gguf -o merged.gguf --type q8_0
  polylora merge model.gguf --adapter a/ -o merged.gguf --type keep --type 'attn_v=q8_0'";

/// How many tensors the report shows to a person; JSON has all.
const WORST_SHOWN: usize = 8;

fn on_mismatch(text: &str) -> Result<OnMismatch, String> {
    match text {
        "fail" => Ok(OnMismatch::Fail),
        "skip" => Ok(OnMismatch::Skip),
        _ => Err("it is fail or skip".to_owned()),
    }
}

impl Merge {
    pub(crate) fn run(self) -> Result<()> {
        let rules = TypeRules::parse(&self.types).map_err(|error| WrongUse(error.to_string()))?;
        let start = Instant::now();
        let base = open_model(&self.base)?;
        let mut inputs = parts(&base);
        let specs = fetch(&self.adapter)?;
        inputs.extend(specs.iter().map(|spec| spec.path.as_path()));
        check_output(&self.out, &inputs, self.work.force || self.dry_run)?;

        let imatrix = self.imatrix.as_ref().map(open_imatrix).transpose()?;
        let adapters = specs
            .iter()
            .map(|spec| load(spec, &base, self.on_mismatch))
            .collect::<Result<Vec<Adapter>, _>>()?;
        let plan = Plan::merge(&base, &adapters, &rules, imatrix.as_ref())?;
        if self.dry_run {
            return self.print_plan(&plan);
        }
        let progress = Progress::bytes(plan.tensor_bytes(), "merging");
        let options = self.work.write_options();
        let report = self
            .work
            .on_threads(|| plan.write(&self.out, options, &progress))?
            .with_context(|| format!("cannot merge into {}", self.out.display()))?;
        drop(progress);

        if self.work.json {
            return terminal::print_json(&Merged { verdict: report.verdict(), report: &report });
        }
        let names: Vec<&str> = adapters.iter().map(|adapter| &*adapter.name).collect();
        let mut text = format!(
            "Merged {} into {}: {}, {}\n",
            names.join(", "),
            self.out.display(),
            size(report.tensor_bytes),
            terminal::seconds(start.elapsed()),
        );
        text += &render(&report);
        terminal::print(&text)
    }

    fn print_plan(&self, plan: &Plan<'_>) -> Result<()> {
        if self.work.json {
            let touched: Vec<Planned<'_>> = plan.touched().map(Planned::new).collect();
            let tensor_bytes = plan.tensor_bytes();
            let mismatches = plan.mismatches().collect::<Vec<_>>();
            return terminal::print_json(&serde_json::json!({
                "tensor_bytes": tensor_bytes, "tensors": touched, "notes": plan.notes(),
                "mismatches": mismatches,
            }));
        }
        let mut table = Table::new(&["tensor", "dimensions", "from", "to", "rank"]);
        for output in plan.touched() {
            let planned = Planned::new(output);
            table.row([
                planned.name.to_owned(),
                terminal::dimensions(planned.shape),
                planned.from.unwrap_or("-").to_owned(),
                planned.to.to_owned(),
                planned.rank.to_string(),
            ]);
        }
        let mut text = table.to_string();
        let (touched, all) = (plan.touched().count(), plan.outputs().len());
        let _ = writeln!(
            text,
            "{touched} of {all} tensors would change; {} would be {} of tensors.",
            self.out.display(),
            size(plan.tensor_bytes())
        );
        for note in plan.notes() {
            let _ = writeln!(text, "note: {note}");
        }
        for mismatch in plan.mismatches() {
            let _ = writeln!(text, "skipped: {}", mismatch.why);
        }
        terminal::print(&text)
    }
}

/// The report with its verdict, for programs.
#[derive(Serialize)]
struct Merged<'a> {
    verdict: Option<String>,
    #[serde(flatten)]
    report: &'a Report,
}

/// A row of a dry run.
#[derive(Serialize)]
struct Planned<'a> {
    name: &'a str,
    shape: &'a [usize],
    from: Option<&'static str>,
    to: &'static str,
    rank: usize,
}

impl<'a> Planned<'a> {
    fn new(output: &'a polylora_adapter::rewrite::Output<'_>) -> Planned<'a> {
        Planned {
            name: &output.name,
            shape: &output.shape,
            from: output.source.map(|source| source.ty.name()),
            to: output.ty.name(),
            rank: output.rank(),
        }
    }
}

/// The report as a person reads it: the worst tensors, the notes, the verdict.
pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "{} tensors changed, {} copied as they are\n\n",
        report.tensors.len(),
        report.copied
    );
    let head = ["worst tensors", "type", "rank", "change", "survived", "error", "corr.", "codes"];
    let mut table = Table::new(&head);
    for tensor in report.tensors.iter().take(WORST_SHOWN) {
        let ty = match tensor.from {
            Some(from) if from != tensor.to => format!("{from} > {}", tensor.to),
            _ => tensor.to.to_owned(),
        };
        let figures = tensor.survival.map_or([const { String::new() }; 3], |survival| {
            [
                percent(survival.survived),
                format!("{:.2}", survival.relative_error),
                format!("{:.2}", survival.correlation),
            ]
        });
        let start = [tensor.name.clone(), ty, tensor.rank.to_string(), percent(tensor.change)];
        let codes = tensor.codes_changed.map_or(String::new(), percent);
        table.row(start.into_iter().chain(figures).chain([codes]));
    }
    let _ = writeln!(text, "{table}");
    text += "  change: ||delta|| / ||W||;  survived: the part of it that arrived;\n  \
             error: what rounding did, beside the delta;  corr.: of the change written\n  \
             with the change meant;  codes: share that differ from the base's\n\n";
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for mismatch in &report.mismatches {
        let _ = writeln!(text, "skipped: {}", mismatch.why);
    }
    if let (Some(survival), Some(verdict)) = (report.adapter, report.verdict()) {
        let color = match survival.verdict() {
            Verdict::Kept => AnsiColor::Green,
            Verdict::Weakened => AnsiColor::Yellow,
            Verdict::Lost => AnsiColor::Red,
        };
        let _ = writeln!(text, "{}", terminal::colored(color, &terminal::wrapped(&verdict)));
    }
    text
}
