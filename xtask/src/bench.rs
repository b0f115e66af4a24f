//! Speed against llama.cpp's programs: whole commands in turn in one run, medians.

mod load;
mod machine;
mod merge;
mod plot;
mod quantize;
mod run;
mod sweep;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `cargo xtask bench`
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// Merging an adapter: against llama-export-lora and llama-quantize
    Merge(Setting),
    /// Quantizing F16: against llama-quantize, whose tensors must be the same
    Quantize(quantize::Quantize),
    /// From nothing to the first token: against llama-completion
    Load(Setting),
    /// Prompts and answers, without and with adapters: against llama-bench and llama-batched-bench
    Run(run::Run),
    /// Plots of rates by rows, context, rank and number of adapters
    Sweep(sweep::Sweep),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Bench::Merge(setting) => merge::run(setting),
            Bench::Quantize(command) => command.run(),
            Bench::Load(setting) => load::run(setting),
            Bench::Run(command) => command.run(),
            Bench::Sweep(command) => command.run(),
        }
    }
}

/// What all of them take.
#[derive(clap::Args)]
pub(crate) struct Setting {
    /// Folder of llama.cpp's programs
    #[arg(long)]
    llama_bin: PathBuf,
    /// Folder for the models and the outputs (some 8 GB)
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// The program to measure
    #[arg(long, default_value = "target/release/polylora")]
    polylora: PathBuf,
    #[arg(long, default_value_t = 5)]
    reps: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

impl Setting {
    fn ours(&self) -> Command {
        Command::new(&self.polylora)
    }

    /// One of llama.cpp's programs.
    fn theirs(&self, name: &str) -> Command {
        Command::new(self.llama_bin.join(name))
    }

    fn threads(&self) -> String {
        self.threads.to_string()
    }

    /// Figures of `polylora bench`, once, with these arguments and adapters, which are told apart
    /// by their numbers.
    fn bench(&self, model: &Path, arguments: &[&str], adapters: &[&Path]) -> Result<Vec<Value>> {
        let mut bench = self.ours();
        bench.arg("bench").arg(model).args(["--reps", "1", "--json", "--threads"]);
        bench.arg(self.threads()).args(arguments);
        for (number, adapter) in adapters.iter().enumerate() {
            bench.arg("--adapter").arg(format!("{number}={}", adapter.display()));
        }
        let mut found = json(&output(&mut bench)?)?;
        let tests = found["tests"].as_array_mut().context("polylora bench tells of no tests")?;
        Ok(std::mem::take(tests))
    }

    /// Tokens a second of llama-bench, of the prompt and of the answer.
    fn llama_bench(&self, model: &Path, arguments: &[&str]) -> Result<Vec<f64>> {
        let mut bench = self.theirs("llama-bench");
        bench.arg("-m").arg(model).args(["-r", "1", "-o", "json", "-t", &self.threads()]);
        let found = json(&output(bench.args(arguments))?)?;
        let tests = found.as_array().context("llama-bench tells of no tests")?;
        tests.iter().map(|test| number(&test["avg_ts"])).collect()
    }

    /// Tokens a second of llama-batched-bench, of so many answers at a time.
    fn llama_batched_bench(&self, model: &Path, rows: usize, tokens: usize) -> Result<f64> {
        let mut bench = self.theirs("llama-batched-bench");
        let context = (rows * (tokens + 64)).max(2048).to_string();
        bench.arg("-m").arg(model).args(["-npp", "1", "-ntg", &tokens.to_string()]);
        bench.args(["-npl", &rows.to_string(), "-c", &context, "-t", &self.threads()]);
        let text = output(bench.args(["--output-format", "jsonl"]))?;
        let line = text.lines().find(|line| line.starts_with('{')).context("no line of JSON")?;
        number(&json(line)?["speed_tg"])
    }
}

struct Measured {
    time: Duration,
    /// Peak of anonymous memory: what the program holds beyond mapped files.
    own_memory_mib: f64,
}

/// How often the memory of a running program is read.
const POLL: Duration = Duration::from_millis(10);

/// Runs a whole command.
fn measure(command: &mut Command) -> Result<Measured> {
    let name = format!("{}", Path::new(command.get_program()).display());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let mut peak = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak = peak.max(anonymous_mib(child.id()).unwrap_or(0.0));
        std::thread::sleep(POLL);
    };
    let time = start.elapsed();
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(Measured { time, own_memory_mib: peak })
}

/// `RssAnon` of a process, as Linux tells it.
fn anonymous_mib(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// The median of each pair's ratio.
fn ratio(above: &[f64], below: &[f64]) -> f64 {
    median(above.iter().zip(below).map(|(above, below)| above / below).collect())
}
