use super::plot::{Chart, Series};
use super::{Setting, median, number};
use crate::make_model;
use anyhow::Result;
use polylora::synthetic::TINY_LLAMA;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `cargo xtask bench sweep`
#[derive(clap::Args)]
pub(crate) struct Sweep {
    #[command(flatten)]
    setting: Setting,
    /// Folder for the plots
    #[arg(long, default_value = "docs/plots")]
    plots: PathBuf,
    /// Tokens of each answer
    #[arg(short = 'n', default_value_t = 16)]
    generate: usize,
}

const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const DEPTHS: [usize; 5] = [0, 1024, 2048, 4096, 8192];
const RANKS: [usize; 5] = [4, 8, 16, 32, 64];
const ADAPTERS: [usize; 5] = [1, 2, 4, 8, 16];
/// Rows of the plots by rank and by number of adapters.
const MANY: usize = 16;

impl Sweep {
    pub(super) fn run(self) -> Result<()> {
        std::fs::create_dir_all(&self.plots)?;
        let model = make_model(&self.setting.dir)?;
        let (file, adapter) = (&*model.q4_k_m, &*model.adapter);
        self.by_rows(file, adapter)?;
        self.by_context(file)?;
        self.by_rank(file)?;
        self.by_adapters(file, adapter)
    }

    /// Tokens a second of `rows` answers at a time, without and with adapters in turn.
    fn write(&self, file: &Path, rows: usize, adapters: &[&Path]) -> Result<[f64; 2]> {
        let (generate, rows) = (self.generate.to_string(), rows.to_string());
        let arguments = ["-p", "0", "-n", &generate, "-b", &rows];
        let tests = self.setting.bench(file, &arguments, adapters)?;
        Ok([rate(&tests[0])?, rate(&tests[0]["with_adapters"])?])
    }

    fn by_rows(&self, file: &Path, adapter: &Path) -> Result<()> {
        let names = ["ours", "ours, one adapter", "ours, each its own", "llama.cpp"];
        let mut series = names.map(Series::new);
        for rows in ROWS {
            let mut found = [const { Vec::new() }; 4];
            for _ in 0..self.setting.reps {
                let [without, one] = self.write(file, rows, &[adapter])?;
                let [_, each] = self.write(file, rows, &vec![adapter; rows])?;
                let theirs = self.setting.llama_batched_bench(file, rows, self.generate)?;
                let all = [without, one, each, theirs];
                found.iter_mut().zip(all).for_each(|(found, rate)| found.push(rate));
            }
            for (series, found) in series.iter_mut().zip(found) {
                series.push(rows, median(found));
            }
        }
        self.draw("rows", "Answers written at the same time", "rows", "tokens/s of all", series)
    }

    fn by_context(&self, file: &Path) -> Result<()> {
        let names = ["ours", "llama.cpp"];
        let (mut prompts, mut answers) = (names.map(Series::new), names.map(Series::new));
        let generate = self.generate.to_string();
        for depth in DEPTHS {
            let mut found = [const { Vec::new() }; 4];
            for _ in 0..self.setting.reps {
                let depth = depth.to_string();
                let arguments = ["-p", "256", "-n", &generate, "-d", &depth];
                let ours = self.setting.bench(file, &arguments, &[])?;
                let theirs = self.setting.llama_bench(file, &arguments)?;
                let all = [rate(&ours[0])?, theirs[0], rate(&ours[1])?, theirs[1]];
                found.iter_mut().zip(all).for_each(|(found, rate)| found.push(rate));
            }
            let mut found = found.map(median).into_iter();
            for series in prompts.iter_mut().chain(&mut answers) {
                series.push(depth, found.next().expect("four figures"));
            }
        }
        let x = "tokens of context before them";
        self.draw("prompt-by-context", "256 tokens of a prompt", x, "tokens/s", prompts)?;
        self.draw("answer-by-context", "An answer", x, "tokens/s", answers)
    }

    fn by_rank(&self, file: &Path) -> Result<()> {
        let names = ["one row", "16 rows, one adapter", "16 rows, each its own"];
        let mut series = names.map(Series::new);
        for rank in RANKS {
            let adapter = self.setting.dir.join(format!("random-rank{rank}"));
            if !adapter.exists() {
                TINY_LLAMA.write_adapter(&adapter, rank, 0.05)?;
            }
            let adapter = &*adapter;
            let mut found = [const { Vec::new() }; 3];
            for _ in 0..self.setting.reps {
                let each = vec![adapter; MANY];
                let tests = [(1, &[adapter][..]), (MANY, &[adapter]), (MANY, &each)];
                for (found, (rows, adapters)) in found.iter_mut().zip(tests) {
                    let [without, with] = self.write(file, rows, adapters)?;
                    found.push(100.0 * (without / with - 1.0));
                }
            }
            for (series, found) in series.iter_mut().zip(found) {
                series.push(rank, median(found));
            }
        }
        self.draw("cost-by-rank", "Cost of adapters", "rank", "longer by, %", series)
    }

    fn by_adapters(&self, file: &Path, adapter: &Path) -> Result<()> {
        let mut series = ["without", "with"].map(Series::new);
        for adapters in ADAPTERS {
            let mut found = [const { Vec::new() }; 2];
            for _ in 0..self.setting.reps {
                let rates = self.write(file, MANY, &vec![adapter; adapters])?;
                found.iter_mut().zip(rates).for_each(|(found, rate)| found.push(rate));
            }
            for (series, found) in series.iter_mut().zip(found) {
                series.push(adapters, median(found));
            }
        }
        let x = "different adapters among 16 rows";
        self.draw("adapters", "16 answers at the same time", x, "tokens/s of all", series)
    }

    /// Writes the plot, and prints it as a table.
    fn draw<const N: usize>(
        &self,
        name: &str,
        title: &str,
        x: &str,
        y: &str,
        series: [Series; N],
    ) -> Result<()> {
        let chart = Chart { title, x, y, series: &series };
        println!("{}", chart.table());
        chart.write(&self.plots.join(format!("{name}.svg")))
    }
}

fn rate(test: &Value) -> Result<f64> {
    number(&test["tokens_per_second"]["median"])
}
