mod panes;

use super::bench::{Kind, Test};
use super::loaded::{EngineArgs, Loaded, Named};
use super::merge;
use crate::terminal::{self, Progress, Table, bold, count, percent, rate, size};
use anyhow::{Context, Result};
use panes::{Pane, Panes};
use polylora::embedded::{self, ADAPTERS};
use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_engine::{
    ChatTemplate, Completion, CompletionOptions, LoadedAdapter, Message, Row, SamplingParams,
    Tokenizer,
};
use polylora_file::WriteOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Show what PolyLoRA is for, on a small model that is in the program
///
/// One batch in which every row has another adapter, a merge with its report, and what it costs.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Leave the model and its adapters in this folder, to play with
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// What to ask
    #[arg(short, long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
}

const EXAMPLES: &str = "\
Examples:
  polylora demo
  polylora demo --prompt 'Tell me a story about an owl.'
  polylora demo --write valley/";

const PROMPT: &str = "Tell me a story about a frog and a boat.";
/// What the merged model is asked: its answer is short.
const QUESTION: &str = "What is a lantern?";
/// The adapter that is merged, by its place in [`ADAPTERS`].
const MERGED: usize = 0;

/// Between two tokens on a terminal: a pace that eyes can follow.
const PACE: Duration = Duration::from_millis(25);
/// Runs of which the costs are medians.
const REPETITIONS: usize = 7;

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
        let folder = self.write.as_deref().unwrap_or(temporary.path());
        let mut stage = Stage::open(folder)?;
        let gguf = &stage.base.loaded.gguf;
        let weights: usize = gguf.tensors().iter().map(|tensor| tensor.elements()).sum();
        say(&format!(
            "PolyLoRA merges and runs LoRA adapters on quantized models. Here it is at work on a \
             small model of its own: {} weights in Q4_K_M, {}, which tells stories of the animals \
             of a valley; and on three adapters that change its manner.",
            count(weights as u64),
            size(stage.model_bytes),
        ))?;
        stage.together(&self.prompt)?;
        let survived = stage.merge(temporary.path())?;
        stage.costs(survived)?;
        self.farewell()
    }

    fn farewell(&self) -> Result<()> {
        // As it was called: `cargo run` puts it into no PATH.
        let called = std::env::args().next().unwrap_or_else(|| "polylora".to_owned());
        let mut text = heading("Next, with files of your own");
        text += &format!(
            "  {called} run   MODEL.gguf --adapter FOLDER\n  \
               {called} merge MODEL.gguf --adapter FOLDER -o MERGED.gguf\n"
        );
        text += &match &self.write {
            Some(folder) => {
                let folder = folder.display();
                let model = embedded::MODEL_NAME;
                format!(
                    "or with what is in {folder} now:\n  \
                       {called} run {folder}/{model} --adapter {folder}/pirate\n"
                )
            }
            None => format!(
                "or with this model and its adapters, which this leaves in a folder:\n  \
                   {called} demo --write valley/\n"
            ),
        };
        terminal::print(&text)
    }
}

fn say(text: &str) -> Result<()> {
    terminal::print(&(terminal::wrapped(text) + "\n"))
}

fn heading(text: &str) -> String {
    format!("\n{}\n\n", bold(text))
}

/// The model and its adapters, ready to run.
struct Stage {
    base: Speaker,
    adapters: Vec<Named>,
    model_bytes: u64,
    adapter_bytes: u64,
}

impl Stage {
    fn open(folder: &Path) -> Result<Stage> {
        let written = embedded::write(folder)?;
        let base = Speaker::open(&written.model)?;
        let specs = written.adapters.iter().map(AdapterSpec::new);
        let adapters = specs.map(|spec| base.loaded.adapter(&spec)).collect::<Result<_>>()?;
        let weights = written.adapters[MERGED].join("adapter_model.safetensors");
        Ok(Stage {
            base,
            adapters,
            model_bytes: written.model.metadata()?.len(),
            adapter_bytes: weights.metadata()?.len(),
        })
    }

    /// The base and the adapters answer one prompt, in one batch.
    fn together(&mut self, prompt: &str) -> Result<()> {
        terminal::print(&heading("1. One batch, another adapter in every row"))?;
        say(&format!("> {prompt}\n"))?;
        let titles = std::iter::once("the base").chain(ADAPTERS);
        let mut panes: Vec<Pane> =
            titles.map(|title| Pane { title: title.to_owned(), text: String::new() }).collect();
        let with = std::iter::once(None).chain(self.adapters.iter().map(Some));
        let rows = with.map(|adapter| self.base.row(prompt, adapter));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;

        let mut view = Panes::new();
        let mut busy = Duration::ZERO;
        while rows.iter().any(|row| !row.is_done()) {
            terminal::check_interrupt()?;
            let start = Instant::now();
            self.base.loaded.engine.advance(&mut rows)?;
            let took = start.elapsed();
            busy += took;
            for (pane, row) in panes.iter_mut().zip(&mut rows) {
                row.take_failure().map_or(Ok(()), Err)?;
                pane.text += &row.take_text();
            }
            view.show(&panes)?;
            if view.is_live() {
                std::thread::sleep(PACE.saturating_sub(took));
            }
        }
        view.finish(&panes)?;
        let tokens: usize = rows.iter().map(|row| row.completion().tokens()).sum();
        let slowed = if view.is_live() { " (shown slower than that)" } else { "" };
        say(&format!(
            "{tokens} tokens in {:.2} s{slowed}: each step reads the quantized weights once for \
             all rows, and adds each row's own adapter inside the product. No weight is copied or \
             merged.",
            busy.as_secs_f64(),
        ))
    }

    /// An adapter goes into the file, in the file's own types; the file answers. Returns the share
    /// of the adapter that is in it.
    fn merge(&mut self, folder: &Path) -> Result<f64> {
        let name = ADAPTERS[MERGED];
        let out = folder.join(format!("{name}ing.gguf"));
        terminal::print(&heading("2. An adapter merged into the file, in the file's own types"))?;
        let model = embedded::MODEL_NAME;
        say(&format!("$ polylora merge {model} --adapter {name} -o {name}ing.gguf"))?;
        let base = &self.base.loaded.gguf;
        let adapters = [load(&self.adapters[MERGED].spec, base, OnMismatch::Fail)?];
        let plan = Plan::merge(base, &adapters, &TypeRules::parse(&["keep"])?, None)?;
        let progress = Progress::bytes(plan.tensor_bytes(), "merging");
        let options = WriteOptions { overwrite: true, max_shard: None };
        let report = plan.write(&out, options, &progress)?;
        drop(progress);
        terminal::print(&merge::render(&report))?;

        let of_base = self.base.answer(QUESTION, None)?;
        let at_run_time = self.base.answer(QUESTION, Some(&self.adapters[MERGED]))?;
        let in_file = Speaker::open(&out)?.answer(QUESTION, None)?;
        say(&format!(
            "\n> {QUESTION}\n\
             the base:         {of_base}\n\
             with the adapter: {at_run_time}\n\
             the merged file:  {in_file}"
        ))?;
        Ok(report.adapter.context("an adapter was merged")?.survived)
    }

    fn costs(&mut self, survived: f64) -> Result<()> {
        terminal::print(&heading("3. What it costs, on this machine and model"))?;
        let tests = [
            ("reading a prompt", Test { kind: Kind::Read, tokens: 256, batch: 1, depth: 0 }),
            ("writing one answer", Test { kind: Kind::Write, tokens: 64, batch: 1, depth: 0 }),
            (
                "writing six, adapters in turn",
                Test { kind: Kind::Write, tokens: 64, batch: 6, depth: 0 },
            ),
        ];
        let progress = Progress::steps(tests.len() * (REPETITIONS + 1), "measuring");
        let mut table = Table::new(&["tokens/s", "without", "with adapters", "cost"]);
        for (what, test) in tests {
            let loaded = &mut self.base.loaded;
            let measured = test.measure(loaded, &self.adapters, REPETITIONS, &progress)?;
            let with = measured.with_adapters.as_ref();
            table.row([
                what.to_owned(),
                rate(measured.tokens_per_second.median),
                with.map_or(String::new(), |with| rate(with.tokens_per_second.median)),
                with.map_or(String::new(), |with| percent(with.cost)),
            ]);
        }
        drop(progress);
        terminal::print(&format!("{table}\n"))?;
        let (adapter, model) = (size(self.adapter_bytes), size(self.model_bytes));
        say(&format!(
            "An adapter is {adapter} beside one model of {model}; merged, each would be a file of \
             {model}. Of this one, a strong one, {:.0} % arrives in the file's own types; of a \
             gentle one rounding can undo most, which the report says. Adapters cost the more, the \
             smaller the model: docs/performance.md has larger ones.",
            100.0 * survived,
        ))
    }
}

/// A model that answers questions.
struct Speaker {
    loaded: Loaded,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Speaker {
    fn open(path: &Path) -> Result<Speaker> {
        let loaded = Loaded::open(&path.into(), &EngineArgs::default())?;
        let template = ChatTemplate::from_gguf(&loaded.gguf)?;
        let template = template.context("the model has no chat template")?;
        Ok(Speaker { tokenizer: loaded.tokenizer()?, template, loaded })
    }

    /// A row that answers a question: the likeliest tokens, until the model ends.
    fn row(&self, question: &str, adapter: Option<&Named>) -> Result<Row> {
        let model = self.loaded.engine.model();
        let messages = [Message::new("user", question)];
        let prompt = self.template.prompt(&self.tokenizer, &messages, None)?;
        let options = CompletionOptions {
            params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            ..CompletionOptions::default()
        };
        let completion = Completion::new(&self.tokenizer, model.vocab_size(), &prompt, options)?;
        let sequence = self.loaded.engine.sequence(model.context_length());
        let adapters: Vec<Arc<LoadedAdapter>> =
            adapter.iter().map(|named| Arc::clone(&named.adapter)).collect();
        Ok(Row::new(sequence, prompt, adapters, completion))
    }

    fn answer(&mut self, question: &str, adapter: Option<&Named>) -> Result<String> {
        let mut row = self.row(question, adapter)?;
        while !row.is_done() {
            terminal::check_interrupt()?;
            self.loaded.engine.advance([&mut row])?;
        }
        row.take_failure().map_or(Ok(()), Err)?;
        Ok(row.take_text())
    }
}
