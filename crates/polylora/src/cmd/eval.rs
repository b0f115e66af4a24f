mod score;

use super::chats;
use super::loaded::{EngineArgs, Loaded, handles, labels, read_text};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, Progress, Table};
use anyhow::{Result, ensure};
use polylora_engine::{Input, LoadedAdapter, Logits, Sequence, Wanted, Way};
use score::{Compared, Comparison, Estimate, compare, surprise};
use serde::Serialize;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure how well a model foretells a text, and how far it is from another one
///
/// Perplexity as llama-perplexity has it: the text is cut into chunks of --ctx tokens, and the
/// second half of each is scored. With a reference P (another model, other adapters, or both)
/// also the Kullback-Leibler divergence KL(P || MODEL) of the next token's distribution.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Eval {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// The text; or chats as JSON lines ({"messages": [...]}), of which each is a chunk, and the last
    /// message is scored
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// A PEFT folder or a GGUF LoRA, with a scale to multiply its own; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// The reference [default with --against-adapter: the model itself]
    #[arg(long, value_name = "MODEL.gguf")]
    against: Option<Source>,
    /// An adapter of the reference; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    against_adapter: Vec<AdapterSource>,
    /// Tokens of a chunk
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = context)]
    ctx: usize,
    /// Score at most this many chunks
    #[arg(long, value_name = "N")]
    chunks: Option<NonZeroUsize>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  polylora eval model.gguf --text wiki.test.raw
  polylora eval model-q4.gguf --text wiki.test.raw --against model-f16.gguf
  polylora eval merged.gguf --text t.txt --against base.gguf --against-adapter my-lora/";

/// Logits of this many positions are kept at once: of a vocabulary of 150,000, 150 MB.
const SCORED_AT_ONCE: usize = 256;

fn context(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|&tokens| tokens >= 4);
    parsed.ok_or_else(|| "a chunk is 4 tokens or more".to_owned())
}

/// Tokens that are read together.
#[derive(PartialEq)]
struct Chunk {
    tokens: Vec<u32>,
    /// From here on it is scored what follows each token.
    first: usize,
}

/// A model with its adapters, and the chunk that it is reading.
struct Side {
    /// Which of the models.
    model: usize,
    adapters: Vec<Arc<LoadedAdapter>>,
    sequence: Sequence,
}

/// What `eval` found.
#[derive(Serialize)]
struct Evaluation {
    model: String,
    adapters: Vec<AdapterName>,
    chunks: usize,
    /// Tokens of a chunk; none where each is a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<usize>,
    /// Tokens scored.
    tokens: usize,
    perplexity: Estimate,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

#[derive(Serialize)]
struct Against {
    model: String,
    adapters: Vec<AdapterName>,
    #[serde(flatten)]
    comparison: Comparison,
}

#[derive(Serialize)]
struct AdapterName {
    name: String,
    scale: f32,
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        let mut models = vec![Loaded::open(&self.model, &self.engine)?];
        if let Some(other) = self.against.as_ref().filter(|other| !other.is_same(&self.model)) {
            models.push(Loaded::open(other, &self.engine)?);
        }
        let chunks = self.chunks(&models)?;
        let longest = chunks.iter().map(|chunk| chunk.tokens.len()).max().unwrap_or(0);
        let compares = self.against.is_some() || !self.against_adapter.is_empty();
        let mut sides = vec![self.side(&models, 0, &self.adapter, longest)?];
        if compares {
            sides.push(self.side(&models, models.len() - 1, &self.against_adapter, longest)?);
        }

        let progress = Progress::steps(chunks.len(), "reading");
        let mut surprises = Vec::new();
        let mut compared = Vec::new();
        for chunk in &chunks {
            terminal::check_interrupt()?;
            self.read(chunk, &mut models, &mut sides, |rows, next| match rows {
                [rows] => surprises.extend(surprise(rows, next)),
                [rows, reference] => compared.extend(compare(rows, reference, next)),
                _ => unreachable!("there are one or two sides"),
            })?;
            let so_far = self.perplexity(&surprises, &compared);
            progress.step(format!("perplexity {:.4}", so_far.value));
        }
        drop(progress);

        let found = Evaluation {
            model: self.model.to_string(),
            adapters: names(&self.adapter),
            chunks: chunks.len(),
            context: (!chats::are_in(&self.text)).then_some(self.ctx),
            tokens: surprises.len() + compared.len(),
            perplexity: self.perplexity(&surprises, &compared),
            against: compares.then(|| Against {
                model: self.against.as_ref().unwrap_or(&self.model).to_string(),
                adapters: names(&self.against_adapter),
                comparison: Comparison::new(&compared),
            }),
        };
        if self.json { terminal::print_json(&found) } else { terminal::print(&render(&found)) }
    }

    /// What is read, in tokens.
    fn chunks(&self, models: &[Loaded]) -> Result<Vec<Chunk>> {
        let mut cut: Vec<Vec<Chunk>> = Vec::new();
        for loaded in models {
            let mut chunks =
                if chats::are_in(&self.text) { self.chats(loaded)? } else { self.pieces(loaded)? };
            chunks.truncate(self.chunks.map_or(usize::MAX, NonZeroUsize::get));
            cut.push(chunks);
        }
        ensure!(
            cut.windows(2).all(|pair| pair[0] == pair[1]),
            "the two models take the text for different tokens: they cannot be compared"
        );
        let sizes: Vec<usize> =
            models.iter().map(|loaded| loaded.engine.model().vocab_size()).collect();
        if let [size, other] = sizes[..] {
            ensure!(
                size == other,
                "the two models know {size} and {other} tokens: they cannot be compared"
            );
        }
        Ok(cut.swap_remove(0))
    }

    /// Pieces of the text; each begins as the model wants a text to begin. The first half is context.
    fn pieces(&self, loaded: &Loaded) -> Result<Vec<Chunk>> {
        let tokenizer = loaded.tokenizer()?;
        let tokens = tokenizer.encode(&read_text(&self.text)?, true, false);
        let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        ensure!(
            tokens.len() >= self.ctx,
            "{} is {} tokens, less than a chunk of {}: take a longer text, or a smaller --ctx",
            self.text.display(),
            tokens.len(),
            self.ctx
        );
        let pieces = tokens.chunks_exact(self.ctx).map(|piece| {
            let mut tokens = piece.to_vec();
            tokens[0] = begin.unwrap_or(tokens[0]);
            Chunk { tokens, first: self.ctx / 2 }
        });
        Ok(pieces.collect())
    }

    /// Chats, of which the last messages are scored.
    fn chats(&self, loaded: &Loaded) -> Result<Vec<Chunk>> {
        let (tokenizer, template) = (loaded.tokenizer()?, chats::template(&loaded.gguf)?);
        let mut chunks = Vec::new();
        for chat in chats::read(&self.text)? {
            let (_, before) = chat.split_last().expect("chats have messages");
            let prompt = template.prompt(&tokenizer, before, None)?;
            let mut tokens = template.tokens(&tokenizer, &chat)?;
            tokens.truncate(loaded.engine.model().context_length());
            // A template may write a message otherwise than it asks for one.
            let common = tokens.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            if common > 0 && common < tokens.len() {
                chunks.push(Chunk { tokens, first: common - 1 });
            }
        }
        ensure!(!chunks.is_empty(), "{} has no answers to score", self.text.display());
        Ok(chunks)
    }

    fn side(
        &self,
        models: &[Loaded],
        model: usize,
        specs: &[AdapterSource],
        context: usize,
    ) -> Result<Side> {
        let loaded = &models[model];
        let adapters = loaded.adapters(specs)?;
        terminal::tell(&format!("{}; adapters: {}\n", loaded.describe(), labels(&adapters)));
        let sequence = loaded.sequence(context);
        Ok(Side { model, adapters: handles(&adapters), sequence })
    }

    /// Has each side read a chunk; hands the logits of each, and the tokens that follow, to
    /// `score`, a piece at a time.
    fn read(
        &self,
        Chunk { tokens: chunk, first }: &Chunk,
        models: &mut [Loaded],
        sides: &mut [Side],
        mut score: impl FnMut(&[Vec<&[f32]>], &[u32]),
    ) -> Result<()> {
        let first = *first;
        for side in &mut *sides {
            side.sequence.truncate(0);
            if first > 0 {
                side.forward(models, &chunk[..first], Wanted::None)?;
            }
        }
        // The last token has no successor to be scored by.
        let scored = &chunk[first..chunk.len() - 1];
        let next = &chunk[first + 1..];
        for (tokens, next) in scored.chunks(SCORED_AT_ONCE).zip(next.chunks(SCORED_AT_ONCE)) {
            let logits = sides
                .iter_mut()
                .map(|side| side.forward(models, tokens, Wanted::All))
                .collect::<Result<Vec<Logits>>>()?;
            let rows = |logits| (0..Logits::len(logits)).map(|row| logits.row(row)).collect();
            score(&logits.iter().map(rows).collect::<Vec<_>>(), next);
        }
        Ok(())
    }

    fn perplexity(&self, surprises: &[f64], compared: &[Compared]) -> Estimate {
        let compared = compared.iter().map(|at| at.surprise);
        Estimate::mean(surprises.iter().copied().chain(compared)).exp()
    }
}

impl Side {
    fn forward(&mut self, models: &mut [Loaded], tokens: &[u32], logits: Wanted) -> Result<Logits> {
        let input = Input {
            sequence: &mut self.sequence,
            tokens,
            adapters: &self.adapters,
            logits,
            way: Way::Many,
        };
        Ok(models[self.model].engine.forward(&mut [input])?)
    }
}

fn names(specs: &[AdapterSource]) -> Vec<AdapterName> {
    let name = |spec: &AdapterSource| AdapterName { name: spec.name.clone(), scale: spec.scale };
    specs.iter().map(name).collect()
}

fn render(found: &Evaluation) -> String {
    let number = |value: f64| format!("{value:.5}");
    let share = |value: f64| format!("{:.2} %", 100.0 * value);
    let chunks = match found.context {
        Some(context) => format!("chunks of {context}"),
        None => "chats".to_owned(),
    };
    let mut text = format!("{} tokens scored, in {} {chunks}\n\n", found.tokens, found.chunks);
    let mut table = Table::new(&["", "value", "+-"]);
    let mut row = |name: &str, estimate: Estimate, write: &dyn Fn(f64) -> String| {
        table.row([name.to_owned(), write(estimate.value), write(estimate.error)]);
    };
    row("perplexity", found.perplexity, &number);
    if let Some(against) = &found.against {
        let it = &against.comparison;
        row("perplexity of the reference", it.reference_perplexity, &number);
        row("ln(perplexity / reference)", it.log_ratio, &number);
        row("KL divergence, mean", it.divergence, &number);
        row("same top token", it.same_top, &share);
        for (name, value) in [("median", it.median), ("99 %", it.percentile), ("max", it.max)] {
            table.row([format!("KL divergence, {name}"), number(value)]);
        }
    }
    let _ = write!(text, "{table}");
    text
}
