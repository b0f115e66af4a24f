use super::loaded::{EngineArgs, Loaded, Named, labels};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, Progress, Table, percent, rate};
use anyhow::{Result, ensure};
use polylora_engine::{Input, LoadedAdapter, Sequence, Wanted, Way};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

/// Measure how fast a model reads and writes, without and with adapters
///
/// ppN reads a prompt of N tokens; tgN writes N tokens in each of the sequences of a batch. Both
/// begin with an empty context or, with @dN, after N tokens. Of a batch, sequences take the adapters
/// in turn. Runs without and with adapters alternate, so that both meet the same machine.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// A PEFT folder or a GGUF LoRA; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// Tokens of a prompt; 0 for no such test
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to write in each sequence; 0 for no such test
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Sequences that write at the same time
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "1")]
    batch: Vec<NonZeroUsize>,
    /// Tokens of context before each test
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// How often each test is run, after a run to warm up
    #[arg(long, value_name = "N", default_value = "5")]
    reps: NonZeroUsize,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  polylora bench model.gguf --adapter my-lora/
  polylora bench model.gguf -d 0,4096
  polylora bench model.gguf -p 0 -b 1,8 --adapter a/ --adapter b/ --adapter c/";

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Test {
    pub(super) kind: Kind,
    pub(super) tokens: usize,
    pub(super) batch: usize,
    /// Tokens of context before them.
    pub(super) depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// Tokens a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Rates {
    pub(super) median: f64,
    min: f64,
    max: f64,
}

/// A row of the result.
#[derive(Serialize)]
pub(super) struct Measured {
    test: String,
    batch: usize,
    pub(super) tokens_per_second: Rates,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) with_adapters: Option<WithAdapters>,
}

#[derive(Serialize)]
pub(super) struct WithAdapters {
    pub(super) tokens_per_second: Rates,
    /// How much longer it takes: the median over pairs of runs, one right after the other.
    pub(super) cost: f64,
}

#[derive(Serialize)]
struct Benchmark {
    model: String,
    adapters: Vec<String>,
    repetitions: usize,
    tests: Vec<Measured>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        let mut loaded = Loaded::open(&self.model, &self.engine)?;
        let adapters = loaded.adapters(&self.adapter)?;
        terminal::tell(&format!("{}; adapters: {}\n", loaded.describe(), labels(&adapters)));

        let mut tests = Vec::new();
        for &depth in &self.depth {
            tests.push(Test { kind: Kind::Read, tokens: self.prompt, batch: 1, depth });
            tests.extend(self.batch.iter().map(|batch| Test {
                kind: Kind::Write,
                tokens: self.generate,
                batch: batch.get(),
                depth,
            }));
        }
        tests.retain(|test| test.tokens > 0);
        let context = loaded.engine.model().context_length();
        for test in &tests {
            let needed = test.depth.saturating_add(test.tokens);
            ensure!(
                needed <= context,
                "{} needs a context of {needed} tokens, the model was made for {context}",
                test.name(),
            );
        }

        let progress = Progress::steps(tests.len() * (self.reps.get() + 1), "warming up");
        let mut measured = Vec::new();
        for test in &tests {
            measured.push(test.measure(&mut loaded, &adapters, self.reps.get(), &progress)?);
        }
        drop(progress);
        let found = Benchmark {
            model: self.model.to_string(),
            adapters: adapters.iter().map(Named::label).collect(),
            repetitions: self.reps.get(),
            tests: measured,
        };
        if self.json { terminal::print_json(&found) } else { terminal::print(&render(&found)) }
    }
}

impl Test {
    /// Runs it `repetitions` times, and once before that, without and with the adapters; ticks
    /// `progress` for each.
    pub(super) fn measure(
        &self,
        loaded: &mut Loaded,
        adapters: &[Named],
        repetitions: usize,
        progress: &Progress,
    ) -> Result<Measured> {
        let none: Vec<Vec<Arc<LoadedAdapter>>> = vec![Vec::new(); self.batch];
        let in_turn = (0..self.batch)
            .map(|row| adapters.iter().cycle().skip(row).take(1))
            .map(|named| named.map(|named| Arc::clone(&named.adapter)).collect())
            .collect::<Vec<Vec<_>>>();
        let mut runs = [Runs::new(self, loaded, none), Runs::new(self, loaded, in_turn)];
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for repetition in 0..=repetitions {
            let base = self.run(loaded, &mut runs[0])?;
            let adapted =
                if adapters.is_empty() { None } else { Some(self.run(loaded, &mut runs[1])?) };
            // The first run warms up.
            if repetition > 0 {
                without.push(base);
                with.extend(adapted);
            }
            progress.step(format!("{} of {}", self.name(), self.batch));
        }
        let tokens = (self.tokens * self.batch) as f64;
        let with_adapters = (!with.is_empty()).then(|| {
            let costs = without.iter().zip(&with).map(|(without, with)| with / without - 1.0);
            WithAdapters {
                tokens_per_second: Rates::new(&with, tokens),
                cost: median(costs.collect()),
            }
        });
        Ok(Measured {
            test: self.name(),
            batch: self.batch,
            tokens_per_second: Rates::new(&without, tokens),
            with_adapters,
        })
    }

    /// `pp512`, `tg128`, `tg128@d4096`: as llama-bench calls them.
    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Read => "pp",
            Kind::Write => "tg",
        };
        let depth = if self.depth > 0 { format!("@d{}", self.depth) } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }

    /// Runs it once; returns the seconds that it took.
    fn run(&self, loaded: &mut Loaded, runs: &mut Runs) -> Result<f64> {
        let vocab = loaded.engine.model().vocab_size();
        // Any tokens will do, but all of one would find their embedding in the cache.
        let tokens: Vec<u32> =
            (0..self.depth + self.tokens).map(|i| (i * 7919 % vocab) as u32).collect();
        let (before, tokens) = tokens.split_at(self.depth);
        for sequence in &mut runs.sequences {
            sequence.truncate(self.depth);
        }
        // Only the first run finds its sequences empty.
        if runs.sequences.iter().all(|sequence| sequence.len() < self.depth) {
            for tokens in before.chunks(AT_ONCE) {
                runs.forward(loaded, tokens, Way::Many)?;
            }
        }
        let (at_once, way) = match self.kind {
            Kind::Read => (self.tokens, Way::Many),
            Kind::Write => (1, Way::of(self.batch)),
        };
        let start = Instant::now();
        for tokens in tokens.chunks(at_once) {
            runs.forward(loaded, tokens, way)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Tokens of context that are read at a time.
const AT_ONCE: usize = 512;

/// The sequences of a test, with the adapters of each.
struct Runs {
    sequences: Vec<Sequence>,
    adapters: Vec<Vec<Arc<LoadedAdapter>>>,
}

impl Runs {
    fn new(test: &Test, loaded: &Loaded, adapters: Vec<Vec<Arc<LoadedAdapter>>>) -> Runs {
        let context = test.depth + test.tokens;
        let sequences = adapters.iter().map(|_| loaded.engine.sequence(context)).collect();
        Runs { sequences, adapters }
    }

    /// Takes all sequences on by the same tokens.
    fn forward(&mut self, loaded: &mut Loaded, tokens: &[u32], way: Way) -> Result<()> {
        terminal::check_interrupt()?;
        let with_adapters = self.sequences.iter_mut().zip(&self.adapters);
        let mut inputs: Vec<Input<'_>> = with_adapters
            .map(|(sequence, adapters)| Input {
                sequence,
                tokens,
                adapters,
                logits: Wanted::Last,
                way,
            })
            .collect();
        loaded.engine.forward(&mut inputs)?;
        Ok(())
    }
}

impl Rates {
    /// Of runs of `tokens` that took these seconds.
    fn new(seconds: &[f64], tokens: f64) -> Rates {
        let rates: Vec<f64> = seconds.iter().map(|seconds| tokens / seconds).collect();
        Rates {
            min: rates.iter().copied().fold(f64::INFINITY, f64::min),
            max: rates.iter().copied().fold(0.0, f64::max),
            median: median(rates),
        }
    }

    fn range(&self) -> String {
        format!("{}..{}", rate(self.min), rate(self.max))
    }
}

/// Of one value or more.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => 0.5 * (values[middle - 1] + values[middle]),
        _ => values[middle],
    }
}

fn render(found: &Benchmark) -> String {
    let mut head = vec!["test", "batch", "tokens/s", "min..max"];
    if !found.adapters.is_empty() {
        head.extend(["with adapters", "min..max", "cost"]);
    }
    let mut table = Table::new(&head);
    for row in &found.tests {
        let base = row.tokens_per_second;
        let mut cells =
            vec![row.test.clone(), row.batch.to_string(), rate(base.median), base.range()];
        if let Some(with) = &row.with_adapters {
            let rates = with.tokens_per_second;
            cells.extend([rate(rates.median), rates.range(), percent(with.cost)]);
        }
        table.row(cells);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![7.0]), 7.0);
    }

    #[test]
    fn rates_are_tokens_by_seconds() {
        let rates = Rates::new(&[2.0, 1.0, 4.0], 8.0);
        assert_eq!((rates.min, rates.median, rates.max), (2.0, 4.0, 8.0));
    }
}
