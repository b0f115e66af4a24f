//! The commands, one file each.

mod bench;
mod chats;
mod completions;
mod convert;
mod demo;
mod diff;
mod eval;
mod extract;
mod imatrix;
mod inspect;
mod loaded;
mod man;
mod merge;
#[cfg(feature = "hub")]
mod pull;
mod quantize;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;

use crate::source::{AdapterSource, Source};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use polylora_adapter::AdapterSpec;
use polylora_file::imatrix::Imatrix;
use polylora_file::{Gguf, WriteOptions};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// One row for each command.
#[derive(Subcommand)]
pub(crate) enum Command {
    Merge(merge::Merge),
    Run(run::Run),
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
    Eval(eval::Eval),
    Bench(bench::Bench),
    Tokenize(tokenize::Tokenize),
    Inspect(inspect::Inspect),
    Quantize(quantize::Quantize),
    Diff(diff::Diff),
    Extract(extract::Extract),
    Imatrix(imatrix::Imatrix),
    Convert(convert::Convert),
    #[cfg(feature = "hub")]
    Pull(pull::Pull),
    Demo(demo::Demo),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Command::Merge(command) => command.run(),
            Command::Run(command) => command.run(),
            #[cfg(feature = "serve")]
            Command::Serve(command) => command.run(),
            Command::Eval(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Tokenize(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Quantize(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::Extract(command) => command.run(),
            Command::Imatrix(command) => command.run(),
            Command::Convert(command) => command.run(),
            #[cfg(feature = "hub")]
            Command::Pull(command) => command.run(),
            Command::Demo(command) => command.run(),
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

/// Arguments that cannot be meant, found after clap has read them: exit code 2.
#[derive(Debug)]
pub(crate) struct WrongUse(pub(crate) String);

impl std::fmt::Display for WrongUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUse {}

/// What the commands that write a model share.
#[derive(Args)]
struct Work {
    /// Threads to work on [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Write parts of at most this size (500M, 4G), named OUT-00001-of-0000N.gguf
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    split_max_size: Option<u64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Work {
    /// Runs `job` on as many threads as were asked for.
    fn on_threads<R: Send>(&self, job: impl FnOnce() -> R + Send) -> Result<R> {
        on_threads(self.threads, job)
    }

    fn write_options(&self) -> WriteOptions {
        WriteOptions { overwrite: self.force, max_shard: self.split_max_size }
    }
}

/// Runs `job` on so many threads; on one for each processor, where no number is given.
fn on_threads<R: Send>(threads: Option<NonZeroUsize>, job: impl FnOnce() -> R + Send) -> Result<R> {
    let threads = threads.map_or(0, NonZeroUsize::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    Ok(pool.context("cannot start threads")?.install(job))
}

/// Opens a model, or says that the file is something else.
fn open_model(source: &Source) -> Result<Gguf> {
    Ok(Gguf::open_model(&source.fetch()?)?)
}

fn open_imatrix(source: &Source) -> Result<Imatrix> {
    Ok(Imatrix::open(&source.fetch()?)?)
}

/// The adapters, each where it lies.
fn fetch(adapters: &[AdapterSource]) -> Result<Vec<AdapterSpec>> {
    adapters.iter().map(AdapterSource::fetch).collect()
}

/// Refuses, early and whatever `--force` says, an output that is one of the inputs; and an output
/// that exists, without `--force`.
fn check_output(out: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    polylora_file::check_output(out, inputs.iter().copied())?;
    if !force && out.exists() {
        bail!("{} exists: choose another name, or --force to replace it", out.display());
    }
    Ok(())
}

/// The files of a model as inputs: every part of a split one.
fn parts(model: &Gguf) -> Vec<&Path> {
    model.parts().iter().map(PathBuf::as_path).collect()
}

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: u64 = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(format!("{text} is no size; write it as 500M or 4G")),
    };
    let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|&n| n > 0);
    size.ok_or_else(|| format!("{text} is no size; write it as 500M or 4G"))
}
