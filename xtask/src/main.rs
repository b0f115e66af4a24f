//! Checks, models and benchmarks of this repository: `cargo xtask --help`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // What it prints is what it is for.

mod bench;
mod fidelity;
mod isas;
mod neon;
mod python;
mod real_model;
mod serve_clients;
mod tidy;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use polylora::synthetic::{Llama, TINY_LLAMA, quantize_file};
use std::path::{Path, PathBuf};

/// Checks, models and benchmarks of this repository.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the engine's tests on all instruction sets of this machine but the best, which
    /// `cargo test` takes
    Isas,
    /// Check the invariants of ARCHITECTURE.md that a compiler does not
    Tidy,
    /// Make a 1.1B model of random weights (F16 and Q4_K_M) and a rank-16 PEFT adapter
    Model {
        /// The folder to make them in
        dir: PathBuf,
    },
    /// Measure speed on the 1.1B model of random weights, against llama.cpp
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Measure what merges keep of adapters, on SmolLM2-135M-Instruct and the embedded model
    Fidelity(fidelity::Fidelity),
    /// Fetch SmolLM2-135M-Instruct once and run the tests that need it
    RealModel(real_model::RealModel),
    /// Test the kernels on NEON, cross-compiled and emulated
    Neon(neon::Neon),
    /// Build the Python package, install it in an environment of its own, and test it there
    Python,
    /// Try `polylora serve` with the official `openai` Python client and `litellm`
    ServeClients,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Isas => isas::test(&root()),
        Command::Tidy => tidy::run(&root()),
        Command::Model { dir } => make_model(&dir).map(|_| ()),
        Command::Bench(command) => command.run(),
        Command::Fidelity(command) => command.run(&root()),
        Command::RealModel(command) => command.run(&root()),
        Command::Neon(command) => command.run(&root()),
        Command::Python => python::check(&root()),
        Command::ServeClients => serve_clients::check(&root()),
    }
}

/// The repository.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask lies in the repository").to_owned()
}

/// What cargo is told so that all is built in the profile of this program. `cargo xtask` is of the
/// release profile; `.ci/run` has all in that of the tests, and spares another build.
const PROFILE: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };

/// Builds the program; where it lies then.
fn build_program(root: &Path) -> Result<PathBuf> {
    if cfg!(debug_assertions) {
        // It was built with this one.
        return Ok(std::env::current_exe()?.with_file_name("polylora"));
    }
    let mut build = std::process::Command::new(env!("CARGO"));
    build.current_dir(root).args(["build", "--release", "--package", "polylora"]);
    real_model::run(&mut build)?;
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/polylora"))
}

/// Where the 1.1B model and its adapter lie.
struct Model {
    f16: PathBuf,
    q4_k_m: PathBuf,
    adapter: PathBuf,
}

/// Rank of the adapter on all linear layers.
const RANK: usize = 16;

/// Makes the model in F16, of all its layers or fewer, if it is not there yet.
fn make_f16(dir: &Path, layers: usize) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name = match layers {
        all if all == TINY_LLAMA.layers => "random-1.1b-f16.gguf".to_owned(),
        some => format!("random-{some}-layers-f16.gguf"),
    };
    let path = dir.join(name);
    if !path.exists() {
        // With a vocabulary, so that it can also be asked over HTTP.
        Llama { layers, ..TINY_LLAMA }.write_f16_with_vocabulary(&path)?;
    }
    Ok(path)
}

/// Makes what of the model is not there yet.
fn make_model(dir: &Path) -> Result<Model> {
    let model = Model {
        f16: make_f16(dir, TINY_LLAMA.layers)?,
        q4_k_m: dir.join("random-1.1b-q4_k_m.gguf"),
        adapter: dir.join("random-rank16"),
    };
    if !model.q4_k_m.exists() {
        quantize_file(&model.f16, &model.q4_k_m, &"Q4_K_M".parse()?)?;
    }
    if !model.adapter.exists() {
        TINY_LLAMA.write_adapter(&model.adapter, RANK, 0.05)?;
    }
    Ok(model)
}
