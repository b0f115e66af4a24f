//! Reading prompts and writing answers against llama.cpp's llama-bench, interleaved in one run.

use crate::bench::median;
use crate::make_model;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// `cargo xtask bench-run`
#[derive(clap::Args)]
pub(crate) struct Run {
    /// Folder of llama.cpp's programs (llama-bench)
    #[arg(long)]
    llama_bin: PathBuf,
    /// Folder for the model (some 3 GB)
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// The program to measure
    #[arg(long, default_value = "target/release/polylora")]
    polylora: PathBuf,
    #[arg(long, default_value_t = 5)]
    reps: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of the prompt
    #[arg(short, default_value_t = 256)]
    prompt: usize,
    /// Tokens of the answer
    #[arg(short = 'n', default_value_t = 48)]
    generate: usize,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        let model = make_model(&self.dir)?;
        let (prompt, generate) = (self.prompt.to_string(), self.generate.to_string());
        let threads = self.threads.to_string();
        println!("| run | test | ours, tokens/s | llama.cpp | times | cost of an adapter |");
        println!("|---|---|---|---|---|---|");
        // Of prompt and answer: ours, llama.cpp's, their ratio, the cost.
        let mut all = [const { [const { Vec::new() }; 4] }; 2];
        for rep in 1..=self.reps {
            let mut ours = Command::new(&self.polylora);
            ours.arg("bench").arg(&model.q4_k_m).arg("--adapter").arg(&model.adapter);
            ours.args(["-p", &prompt, "-n", &generate, "-b", "1", "--reps", "1", "--json"]);
            let ours = output(ours.args(["--threads", &threads]))?;
            let mut theirs = Command::new(self.llama_bin.join("llama-bench"));
            theirs.arg("-m").arg(&model.q4_k_m).args(["-p", &prompt, "-n", &generate, "-r", "1"]);
            let theirs = output(theirs.args(["-t", &threads, "-o", "json"]))?;
            for (test, figures) in all.iter_mut().enumerate() {
                let our = &ours["tests"][test];
                let rate = number(&our["tokens_per_second"]["median"])?;
                let their = number(&theirs[test]["avg_ts"])?;
                let cost = number(&our["with_adapters"]["cost"])?;
                let name = our["test"].as_str().unwrap_or_default();
                row(&rep.to_string(), name, [rate, their, rate / their, cost]);
                for (figures, figure) in figures.iter_mut().zip([rate, their, rate / their, cost]) {
                    figures.push(figure);
                }
            }
        }
        for (test, figures) in ["prompt", "answer"].into_iter().zip(all) {
            row("median", test, figures.map(median));
        }
        Ok(())
    }
}

fn row(run: &str, test: &str, [ours, theirs, times, cost]: [f64; 4]) {
    let cost = 100.0 * cost;
    println!("| {run} | {test} | {ours:.1} | {theirs:.1} | {times:.2} | {cost:.1} % |");
}

/// The JSON that a program prints.
fn output(command: &mut Command) -> Result<Value> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no rate"))
}
