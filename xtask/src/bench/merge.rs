//! Whole commands against llama.cpp's, interleaved in one run.

use crate::make_model;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `cargo xtask bench-merge`
#[derive(clap::Args)]
pub(crate) struct Merge {
    /// Folder of llama.cpp's programs (llama-export-lora, llama-quantize)
    #[arg(long)]
    llama_bin: PathBuf,
    /// Folder for the model and the outputs (some 8 GB)
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

/// How often the memory of a running program is read.
const POLL: Duration = Duration::from_millis(10);

impl Merge {
    pub(crate) fn run(self) -> Result<()> {
        let model = make_model(&self.dir)?;
        let threads = self.threads.to_string();
        let out = |name: &str| self.dir.join(name);
        let gguf_adapter = out("random-rank16.gguf");
        if !gguf_adapter.exists() {
            let mut convert = Command::new(&self.polylora);
            convert.arg("convert").arg(&model.adapter).arg("--base").arg(&model.q4_k_m);
            measure(convert.arg("-o").arg(&gguf_adapter))?;
        }

        println!("| run | ours: s | ours: peak of own memory, MiB | llama.cpp: s | times |");
        println!("|---|---|---|---|---|");
        let (mut ours, mut theirs, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for rep in 1..=self.reps {
            let merged = out("ours.gguf");
            let mut merge = Command::new(&self.polylora);
            merge.arg("merge").arg(&model.q4_k_m).arg("--adapter").arg(&model.adapter);
            merge.arg("-o").arg(&merged).args(["--force", "--threads", &threads]);
            let our = measure(&mut merge)?;

            let (exported, quantized) = (out("exported.gguf"), out("theirs.gguf"));
            let mut export = Command::new(self.llama_bin.join("llama-export-lora"));
            export.arg("-m").arg(&model.q4_k_m).arg("--lora").arg(&gguf_adapter);
            export.arg("-o").arg(&exported).args(["-t", &threads]);
            let first = measure(&mut export)?;
            let mut quantize = Command::new(self.llama_bin.join("llama-quantize"));
            quantize.arg("--allow-requantize").arg(&exported).arg(&quantized);
            let second = measure(quantize.args(["Q4_K_M", &threads]))?;
            let their = first.time + second.time;

            let (our_s, their_s) = (our.time.as_secs_f64(), their.as_secs_f64());
            println!(
                "| {rep} | {our_s:.2} | {:.0} | {their_s:.2} ({:.2} + {:.2}) | {:.1} |",
                our.own_memory_mib,
                first.time.as_secs_f64(),
                second.time.as_secs_f64(),
                their_s / our_s
            );
            ours.push(our_s);
            theirs.push(their_s);
            memory.push(our.own_memory_mib);
        }
        let ratios = ours.iter().zip(&theirs).map(|(our, their)| their / our).collect();
        println!(
            "| median | {:.2} | {:.0} | {:.2} | {:.1} |",
            median(ours),
            median(memory),
            median(theirs),
            median(ratios)
        );
        Ok(())
    }
}

struct Measured {
    time: Duration,
    /// Peak of anonymous memory: what the program holds beyond mapped files.
    own_memory_mib: f64,
}

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

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
