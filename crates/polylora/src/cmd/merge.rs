mod page;

use super::loaded::read_text;
use super::{
    Work, WrongUse, chats, check_output, fetch, open_imatrix, open_model, parse_size, parts,
};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, Progress, Table, percent, size};
use anstyle::AnsiColor;
use anyhow::{Context, Result, bail, ensure};
use page::Heading;
use polylora_adapter::report::{Report, TensorReport, Verdict};
use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{Adapter, OnMismatch, convert, load};
use polylora_calibrate::{self as calibrate, BudgetError};
use polylora_engine::{ChatTemplate, Engine, EngineOptions, Model, Tokenizer};
use polylora_file::{Gguf, write_file};
use polylora_quant::GgmlType;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// Round by what layers read of a text: plain, or chats as JSON lines ({"messages": [...]});
    /// without FILE of what the model writes itself with the adapters
    #[arg(long, value_name = "FILE")]
    calibrate: Option<Option<PathBuf>>,
    /// Tokens to calibrate by, at most
    #[arg(long, value_name = "N", default_value_t = 16_384, requires = "calibrate")]
    calibration_tokens: usize,
    /// Keep what the types cannot hold as an adapter of this rank, OUT.residual.gguf, which is to be
    /// applied with the merged model
    #[arg(long, value_name = "R", requires = "calibrate")]
    residual_rank: Option<NonZeroUsize>,
    /// Choose the type of each changed tensor, so that the file's weights take so many bits on average
    /// and the answers differ least from the adapter's at run time: 4.75 or 4.75bpw
    #[arg(long, value_name = "BITS", value_parser = bits, requires = "calibrate", conflicts_with = "types")]
    budget: Option<f64>,
    /// The same for a file of this size at most: 90M or 4G, or 105% of the base's
    #[arg(long, value_name = "SIZE", value_parser = max_size, requires = "calibrate", conflicts_with_all = ["types", "budget"])]
    max_size: Option<MaxSize>,
    /// What to do with a part of an adapter that does not fit the base
    #[arg(long, value_name = "fail|skip", default_value = "fail", value_parser = on_mismatch)]
    on_mismatch: OnMismatch,
    /// Write the report as a page with plots, too
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
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
  polylora merge model.gguf --adapter a/ -o merged.gguf --type keep --type 'attn_v=q8_0'
  polylora merge model.gguf --adapter a/ -o merged.gguf --calibrate --report merged.html
  polylora merge model.gguf --adapter a/ -o merged.gguf --calibrate chats.jsonl --residual-rank 8
  polylora merge model.gguf --adapter a/ -o merged.gguf --calibrate --max-size 105%";

/// How many tensors the report shows to a person; JSON has all.
const WORST_SHOWN: usize = 8;

fn on_mismatch(text: &str) -> Result<OnMismatch, String> {
    match text {
        "fail" => Ok(OnMismatch::Fail),
        "skip" => Ok(OnMismatch::Skip),
        _ => Err("it is fail or skip".to_owned()),
    }
}

/// The value of `--max-size`.
#[derive(Clone, Copy)]
enum MaxSize {
    Bytes(u64),
    /// Of the base's file.
    Share(f64),
}

fn max_size(text: &str) -> Result<MaxSize, String> {
    match text.strip_suffix('%') {
        Some(percent) => positive(percent).map(|percent| MaxSize::Share(percent / 100.0)),
        None => parse_size(text).map(MaxSize::Bytes),
    }
}

fn bits(text: &str) -> Result<f64, String> {
    positive(text.strip_suffix("bpw").unwrap_or(text))
}

fn positive(text: &str) -> Result<f64, String> {
    let number =
        text.trim().parse().ok().filter(|&number: &f64| number > 0.0 && number.is_finite());
    number.ok_or_else(|| format!("{text} is no positive number"))
}

impl Merge {
    pub(crate) fn run(self) -> Result<()> {
        let rules = TypeRules::parse(&self.types).map_err(|error| WrongUse(error.to_string()))?;
        let start = Instant::now();
        let base = open_model(&self.base)?;
        let mut inputs = parts(&base);
        let specs = fetch(&self.adapter)?;
        inputs.extend(specs.iter().map(|spec| spec.path.as_path()));
        let replaces = self.work.force || self.dry_run;
        check_output(&self.out, &inputs, replaces)?;
        if self.residual_rank.is_some() {
            check_output(&self.residual_path(), &inputs, replaces)?;
        }
        if let Some(report) = &self.report {
            check_output(report, &inputs, replaces)?;
        }

        let imatrix = self.imatrix.as_ref().map(open_imatrix).transpose()?;
        let adapters = specs
            .iter()
            .map(|spec| load(spec, &base, self.on_mismatch))
            .collect::<Result<Vec<Adapter>, _>>()?;
        let plan = Plan::merge(&base, &adapters, &rules, imatrix.as_ref())?;
        if self.dry_run {
            return self.print_plan(&plan);
        }
        let report = match &self.calibrate {
            Some(file) => {
                let model =
                    Model::open(&base).with_context(|| format!("cannot run {}", self.base))?;
                let options =
                    EngineOptions { threads: self.work.threads, ..EngineOptions::default() };
                let mut engine = Engine::new(Arc::new(model), &options)?;
                let texts = self.texts(&base, &mut engine, &adapters, file.as_deref())?;
                let plan = match self.budget(&base, &plan) {
                    Some(budget) => {
                        let types = self.choose(&plan, &adapters, &mut engine, &texts, budget)?;
                        Plan::merge(&base, &adapters, &rules.with(types), imatrix.as_ref())?
                    }
                    None => plan,
                };
                self.calibrated(&base, &plan, &adapters, &mut engine, texts)?
            }
            None => {
                let progress = Progress::bytes(plan.tensor_bytes(), "merging");
                let options = self.work.write_options();
                self.work
                    .on_threads(|| plan.write(&self.out, options, &progress))?
                    .with_context(|| format!("cannot merge into {}", self.out.display()))?
            }
        };

        let names: Vec<&str> = adapters.iter().map(|adapter| &*adapter.name).collect();
        if let Some(path) = &self.report {
            let heading = Heading {
                base: &self.base.to_string(),
                adapters: &names,
                out: &self.out.display().to_string(),
                took: start.elapsed(),
            };
            write_file(path, page::page(&report, &heading).as_bytes(), true)?;
        }
        if self.work.json {
            return terminal::print_json(&Merged { verdict: report.verdict(), report: &report });
        }
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

    /// Bytes that all tensors may take, where types are to be chosen.
    fn budget(&self, base: &Gguf, plan: &Plan<'_>) -> Option<u64> {
        if let Some(bits) = self.budget {
            let weights: usize = plan.outputs().iter().map(|o| o.rows() * o.columns()).sum();
            return Some((bits * weights as f64 / 8.0) as u64);
        }
        let of_base: u64 =
            parts(base).iter().filter_map(|part| part.metadata().ok()).map(|it| it.len()).sum();
        let most = match self.max_size? {
            MaxSize::Bytes(bytes) => bytes,
            MaxSize::Share(share) => (share * of_base as f64) as u64,
        };
        // All but the tensors takes what it takes in the base, but for what aligns them.
        let tensors: usize = base.tensors().iter().map(|tensor| tensor.bytes.len()).sum();
        let aligning = plan.outputs().len() * (base.alignment() - 1);
        Some(most.saturating_add(tensors as u64).saturating_sub(of_base + aligning as u64))
    }

    /// Types for what changes, within the bytes that all tensors may take.
    fn choose(
        &self,
        plan: &Plan<'_>,
        adapters: &[Adapter],
        engine: &mut Engine,
        texts: &[Vec<u32>],
        budget: u64,
    ) -> Result<HashMap<String, GgmlType>> {
        let progress = Progress::share("choosing types");
        let types = self
            .work
            .on_threads(|| calibrate::choose(plan, adapters, engine, texts, budget, &progress))?;
        match types {
            Ok(types) => Ok(types),
            Err(BudgetError::TooSmall { least, budget }) => bail!(
                "the changed tensors can be made so small that all take {}, but not {}: allow more",
                size(least),
                size(budget)
            ),
            Err(BudgetError::Merge(error)) => Err(error.into()),
        }
    }

    /// Carries out the plan by what layers read of a text.
    fn calibrated(
        &self,
        base: &Gguf,
        plan: &Plan<'_>,
        adapters: &[Adapter],
        engine: &mut Engine,
        texts: Vec<Vec<u32>>,
    ) -> Result<Report> {
        let progress = Progress::share("merging");
        let residual_rank = self.residual_rank.map(NonZeroUsize::get);
        let options = calibrate::Options { write: self.work.write_options(), residual_rank };
        let merged = self.work.on_threads(|| {
            let out = (&*self.out, options);
            calibrate::merge(plan, adapters, engine, texts, out, &progress)
        })?;
        let mut merged =
            merged.with_context(|| format!("cannot merge into {}", self.out.display()))?;
        if let (Some(residual), Some(calibration)) =
            (&merged.residual, &mut merged.report.calibration)
        {
            let path = self.residual_path();
            convert(residual, base, &path, GgmlType::F16, true)
                .with_context(|| format!("cannot write {}", path.display()))?;
            calibration.residual = Some(path);
        }
        Ok(merged.report)
    }

    /// Where what the types cannot hold goes.
    fn residual_path(&self) -> PathBuf {
        self.out.with_extension("residual.gguf")
    }

    /// What to calibrate by, in tokens.
    fn texts(
        &self,
        base: &Gguf,
        engine: &mut Engine,
        adapters: &[Adapter],
        file: Option<&Path>,
    ) -> Result<Vec<Vec<u32>>> {
        let tokenizer = Tokenizer::from_gguf(base)
            .with_context(|| format!("cannot read the vocabulary of {}", self.base))?;
        let template = ChatTemplate::from_gguf(base)?;
        let most = self.calibration_tokens;
        let Some(file) = file else {
            let loaded = adapters.iter().map(|adapter| engine.load_adapter(adapter));
            let loaded = loaded.collect::<Result<Vec<_>, _>>()?;
            let progress = Progress::steps(most, "writing");
            let texts =
                calibrate::written(engine, &tokenizer, template.as_ref(), &loaded, most, |count| {
                    progress.at(count as u64)
                });
            return Ok(texts?);
        };
        let mut texts = if chats::are_in(file) {
            calibrate::from_chats(&tokenizer, &chats::template(base)?, &chats::read(file)?)?
        } else {
            calibrate::cut(&tokenizer, &read_text(file)?)
        };
        let mut left = most;
        texts.retain_mut(|text| {
            text.truncate(left);
            left -= text.len();
            !text.is_empty()
        });
        ensure!(!texts.is_empty(), "{} is empty: there is nothing to calibrate by", file.display());
        Ok(texts)
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
    text += &if report.calibration.is_some() { outputs(report) } else { weights(report) };
    if report.tensors.iter().any(|tensor| tensor.from.is_some_and(|from| from != tensor.to)) {
        let counts = terminal::counts(report.tensors.iter().map(|tensor| tensor.to));
        let _ = writeln!(text, "types of the changed tensors: {counts}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for mismatch in &report.mismatches {
        let _ = writeln!(text, "skipped: {}", mismatch.why);
    }
    if let (Some(outcome), Some(verdict)) = (report.outcome(), report.verdict()) {
        let color = match outcome {
            Verdict::Kept => AnsiColor::Green,
            Verdict::Weakened => AnsiColor::Yellow,
            Verdict::Lost => AnsiColor::Red,
        };
        let _ = writeln!(text, "{}", terminal::colored(color, &terminal::wrapped(&verdict)));
    }
    text
}

/// What became of the worst tensors' weights.
fn weights(report: &Report) -> String {
    let head = ["worst tensors", "type", "rank", "change", "survived", "error", "corr.", "codes"];
    let mut table = Table::new(&head);
    for tensor in report.tensors.iter().take(WORST_SHOWN) {
        let figures = tensor.survival.map_or([const { String::new() }; 3], |survival| {
            [
                percent(survival.survived),
                format!("{:.2}", survival.relative_error),
                format!("{:.2}", survival.correlation),
            ]
        });
        let codes = tensor.codes_changed.map_or(String::new(), percent);
        table.row(about(tensor).into_iter().chain(figures).chain([codes]));
    }
    format!(
        "{table}\n  change: ||delta|| / ||W||;  survived: the part of it that arrived;\n  \
         error: what rounding did, beside the delta;  corr.: of the change written\n  \
         with the change meant;  codes: share that differ from the base's\n\n"
    )
}

/// What the worst tensors give, where weights were moved so that it comes out right.
fn outputs(report: &Report) -> String {
    let mut tensors: Vec<_> = report.tensors.iter().collect();
    let error = |tensor: &TensorReport| tensor.output_error.unwrap_or(0.0);
    tensors.sort_by(|a, b| error(b).total_cmp(&error(a)));
    let mut table = Table::new(&["worst tensors", "type", "rank", "change", "output error"]);
    for tensor in tensors.into_iter().take(WORST_SHOWN) {
        let error = tensor.output_error.map_or(String::new(), percent);
        table.row(about(tensor).into_iter().chain([error]));
    }
    format!(
        "{table}\n  change: ||delta|| / ||W||;  output error: of what the layer gives, beside\n  \
         what the adapter changes of it\n\n"
    )
}

/// A tensor's name, type, rank and change.
fn about(tensor: &TensorReport) -> [String; 4] {
    let ty = match tensor.from {
        Some(from) if from != tensor.to => format!("{from} > {}", tensor.to),
        _ => tensor.to.to_owned(),
    };
    [tensor.name.clone(), ty, tensor.rank.to_string(), percent(tensor.change)]
}
