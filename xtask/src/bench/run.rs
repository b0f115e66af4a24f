use super::{Setting, machine, median, number, output, ratio};
use crate::{Model, make_model};
use anyhow::{Context, Result};
use polylora::file::Gguf;
use std::path::{Path, PathBuf};

/// `cargo xtask bench run`
#[derive(clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    setting: Setting,
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
    /// Tokens of context before the prompt and before one answer; with it there are no other tests
    #[arg(short, long, default_value_t = 0)]
    depth: usize,
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
    /// GB/s of plain reading.
    read: Vec<f64>,
    /// Thousand million products of bytes a second.
    peak: Vec<f64>,
}

impl Run {
    pub(super) fn run(self) -> Result<()> {
        let model = make_model(&self.setting.dir)?;
        println!(
            "| type | test | ours, tokens/s | llama.cpp | times | cost of adapters | of the machine |"
        );
        println!("|---|---|---|---|---|---|---|");
        let (mut read, mut peak) = (Vec::new(), Vec::new());
        for ty in &self.types {
            let file = self.quantized(&model, ty)?;
            let mut figures = Figures::default();
            for _ in 0..self.setting.reps {
                figures.read.push(machine::read_rate(self.setting.threads));
                figures.peak.extend(machine::int8_peak(self.setting.threads));
                self.measure(&file, &model.adapter, &mut figures)?;
            }
            self.print(ty, &Work::of(&file)?, &figures);
            read.extend(figures.read);
            peak.extend(figures.peak);
        }
        println!("plain reading: {:.1} GB/s", median(read));
        if !peak.is_empty() {
            println!("products of bytes: {:.0} thousand million a second", median(peak));
        }
        Ok(())
    }

    /// The model in a type, made by llama.cpp where it is not there yet.
    fn quantized(&self, model: &Model, ty: &str) -> Result<PathBuf> {
        if ty == "Q4_K_M" {
            return Ok(model.q4_k_m.clone());
        }
        let file = self.setting.dir.join(format!("random-1.1b-{}.gguf", ty.to_ascii_lowercase()));
        if !file.exists() {
            let mut quantize = self.setting.theirs("llama-quantize");
            quantize.arg("--pure").arg(&model.f16).arg(&file).arg(ty);
            output(&mut quantize)?;
        }
        Ok(file)
    }

    /// Measures everything once.
    fn measure(&self, file: &Path, adapter: &Path, figures: &mut Figures) -> Result<()> {
        let (prompt, generate) = (self.prompt.to_string(), self.generate.to_string());
        let (depth, rows) = (self.depth.to_string(), self.rows.to_string());
        let both = if self.depth > 0 { "1".to_owned() } else { format!("1,{rows}") };
        let arguments = ["-p", &prompt, "-n", &generate, "-d", &depth];
        let mut tests =
            self.setting.bench(file, &[&arguments[..], &["-b", &both]].concat(), &[adapter])?;
        let mut peers = self.setting.llama_bench(file, &arguments)?;
        if self.depth == 0 {
            let each = vec![adapter; self.rows];
            let arguments = ["-p", "0", "-n", &generate, "-b", &rows];
            tests.extend(self.setting.bench(file, &arguments, &each)?);
            let at_once = self.setting.llama_batched_bench(file, self.rows, self.generate)?;
            peers.extend([at_once; 2]);
        }
        for (at, (test, peer)) in tests.iter().zip(peers).enumerate() {
            figures.ours[at].push(number(&test["tokens_per_second"]["median"])?);
            figures.theirs[at].push(peer);
            figures.costs[at].push(number(&test["with_adapters"]["cost"])?);
        }
        Ok(())
    }

    fn print(&self, ty: &str, work: &Work, figures: &Figures) {
        let (read, peak) = (median(figures.read.clone()), median(figures.peak.clone()));
        for (at, test) in TESTS.into_iter().enumerate() {
            let (ours, theirs) = (&figures.ours[at], &figures.theirs[at]);
            if ours.is_empty() {
                continue;
            }
            let times = ratio(ours, theirs);
            let (ours, theirs) = (median(ours.clone()), median(theirs.clone()));
            let cost = 100.0 * median(figures.costs[at].clone());
            let of_machine = match at {
                0 if peak.is_nan() => String::new(),
                0 => format!("{:.0} % of int8", 100.0 * ours * work.products / 1e9 / peak),
                1 => format!("{:.0} % of reading", 100.0 * ours * work.bytes / 1e9 / read),
                _ => String::new(),
            };
            let depth =
                if self.depth > 0 { format!(" after {}", self.depth) } else { String::new() };
            println!(
                "| {ty} | {test}{depth} | {ours:.1} | {theirs:.1} | {times:.2} | {cost:.1} % | {of_machine} |"
            );
        }
    }
}

/// What a token asks of the machine.
struct Work {
    /// Products of a weight and an activation, for a token of a prompt but its last.
    products: f64,
    /// Bytes of weights, for a token of an answer.
    bytes: f64,
}

impl Work {
    fn of(file: &Path) -> Result<Work> {
        let gguf = Gguf::open(file)?;
        let mut work = Work { products: 0.0, bytes: 0.0 };
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.shape.len() > 1) {
            // Of the embedding, a token takes a row.
            if tensor.name == "token_embd.weight" {
                continue;
            }
            let weights = tensor.shape.iter().product::<usize>();
            let bytes = tensor.ty.row_bytes(weights).context("whole blocks")?;
            work.bytes += bytes as f64;
            if tensor.name != "output.weight" {
                work.products += weights as f64;
            }
        }
        Ok(work)
    }
}
