//! Reading prompts and writing answers against llama.cpp, interleaved in one run.

use crate::bench::median;
use crate::{Model, make_model};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// `cargo xtask bench-run`
#[derive(clap::Args)]
pub(crate) struct Run {
    /// Folder of llama.cpp's programs (llama-bench, llama-batched-bench, llama-quantize)
    #[arg(long)]
    llama_bin: PathBuf,
    /// Folder for the models (some 3 GB, and 1 GB for each type)
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// The program to measure
    #[arg(long, default_value = "target/release/polylora")]
    polylora: PathBuf,
    #[arg(long, default_value_t = 5)]
    reps: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// What to quantize the model to; what llama-quantize knows
    #[arg(long, value_delimiter = ',', default_value = "Q4_K_M")]
    types: Vec<String>,
    /// Tokens of the prompt
    #[arg(short, default_value_t = 256)]
    prompt: usize,
    /// Tokens of each answer
    #[arg(short = 'n', default_value_t = 32)]
    generate: usize,
    /// Answers that are written at the same time, in the last two tests
    #[arg(long, default_value_t = 8)]
    rows: usize,
}

/// What is measured, in this order.
const TESTS: [&str; 4] = ["prompt", "1 row", "rows, one adapter", "rows, each its own"];

/// One figure of each of [`TESTS`] for one type; the last two have the same rate without adapters.
#[derive(Default)]
struct Figures {
    ours: [Vec<f64>; TESTS.len()],
    theirs: [Vec<f64>; TESTS.len()],
    /// How much longer it takes with adapters.
    costs: [Vec<f64>; TESTS.len()],
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        let model = make_model(&self.dir)?;
        println!("| type | test | ours, tokens/s | llama.cpp | times | cost of adapters |");
        println!("|---|---|---|---|---|---|");
        let mut read = Vec::new();
        for ty in &self.types {
            let file = self.quantized(&model, ty)?;
            let mut figures = Figures::default();
            for _ in 0..self.reps {
                read.push(read_rate(self.threads));
                self.measure(&file, &model.adapter, &mut figures)?;
            }
            let Figures { ours, theirs, costs } = figures;
            let all = ours.into_iter().zip(theirs).zip(costs);
            for (test, ((ours, theirs), costs)) in TESTS.into_iter().zip(all) {
                let times = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
                let (ours, theirs, cost) = (median(ours), median(theirs), 100.0 * median(costs));
                let times = median(times);
                println!("| {ty} | {test} | {ours:.1} | {theirs:.1} | {times:.2} | {cost:.1} % |");
            }
        }
        println!("plain reading: {:.1} GB/s", median(read));
        Ok(())
    }

    /// The model in a type, made by llama.cpp where it is not there yet.
    fn quantized(&self, model: &Model, ty: &str) -> Result<PathBuf> {
        if ty == "Q4_K_M" {
            return Ok(model.q4_k_m.clone());
        }
        let file = self.dir.join(format!("random-1.1b-{}.gguf", ty.to_ascii_lowercase()));
        if !file.exists() {
            let mut quantize = Command::new(self.llama_bin.join("llama-quantize"));
            quantize.arg("--pure").arg(&model.f16).arg(&file).arg(ty);
            output(&mut quantize)?;
        }
        Ok(file)
    }

    /// Measures everything once.
    fn measure(&self, file: &Path, adapter: &Path, figures: &mut Figures) -> Result<()> {
        let (prompt, generate) = (self.prompt.to_string(), self.generate.to_string());
        let (threads, rows) = (self.threads.to_string(), self.rows.to_string());
        let ours = |prompt: &str, batch: &str, adapters: usize| -> Result<Value> {
            let mut bench = Command::new(&self.polylora);
            bench.arg("bench").arg(file).args(["--reps", "1", "--json", "--threads", &threads]);
            for number in 0..adapters {
                bench.arg("--adapter").arg(format!("{number}={}", adapter.display()));
            }
            json(&output(bench.args(["-p", prompt, "-n", &generate, "-b", batch]))?)
        };
        let one = ours(&prompt, &format!("1,{rows}"), 1)?;
        let each = ours("0", &rows, self.rows)?;

        let mut bench = Command::new(self.llama_bin.join("llama-bench"));
        bench.arg("-m").arg(file).args(["-p", &prompt, "-n", &generate, "-r", "1"]);
        let theirs = json(&output(bench.args(["-t", &threads, "-o", "json"]))?)?;
        let mut batched = Command::new(self.llama_bin.join("llama-batched-bench"));
        batched.arg("-m").arg(file).args(["-npp", "1", "-ntg", &generate, "-npl", &rows]);
        batched.args(["-c", "2048", "-t", &threads, "--output-format", "jsonl"]);
        let text = output(&mut batched)?;
        let line = text.lines().find(|line| line.starts_with('{')).context("no line of JSON")?;
        let at_once = number(&json(line)?["speed_tg"])?;

        let tests = [&one["tests"][0], &one["tests"][1], &one["tests"][2], &each["tests"][0]];
        let peers =
            [number(&theirs[0]["avg_ts"])?, number(&theirs[1]["avg_ts"])?, at_once, at_once];
        for (at, (test, peer)) in tests.into_iter().zip(peers).enumerate() {
            figures.ours[at].push(number(&test["tokens_per_second"]["median"])?);
            figures.theirs[at].push(peer);
            figures.costs[at].push(number(&test["with_adapters"]["cost"])?);
        }
        Ok(())
    }
}

/// Bytes that are read: far more than a cache holds.
const READ: usize = 256 << 20;

/// GB/s of plain reading by all threads at once.
fn read_rate(threads: usize) -> f64 {
    let words = vec![1_u64; READ / size_of::<u64>()];
    let part = words.len() / threads;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for words in words.chunks(part) {
            scope.spawn(move || {
                let mut sums = [0_u64; 32];
                for words in words.as_chunks::<32>().0 {
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                black_box(sums)
            });
        }
    });
    READ as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// What a program prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("a figure is missing in a program's JSON")
}
