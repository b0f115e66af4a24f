//! The Python package, as its users have it: a wheel, installed in an environment of its own.

use crate::real_model::run;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a type checker reads.
const TYPED: &str = "tests/typed.py";

/// `cargo xtask python`
pub(crate) fn check(root: &Path) -> Result<()> {
    let package = root.join("bindings/python");
    let environment = Environment::make(&root.join(".cache/python"))?;
    let pip = ["-m", "pip", "install", "--quiet"];
    environment.python(&package, &[&pip[..], &["-r", "tests/requirements.txt"]].concat())?;

    let wheels = root.join("target/wheels");
    if wheels.exists() {
        std::fs::remove_dir_all(&wheels).with_context(|| format!("{}", wheels.display()))?;
    }
    // Not as it is given out: that would take minutes more, and find nothing more.
    environment.run("maturin", &package, &["build", "--locked", "--out"], &[&wheels])?;
    let wheel = std::fs::read_dir(&wheels)?.next().context("maturin has built no wheel")??.path();
    let install = [&pip[..], &["--force-reinstall", "--no-deps"]].concat();
    environment.run("python", &package, &install, &[&wheel])?;

    environment.python(&package, &["-m", "pytest", "--quiet"])?;
    environment.python(&package, &["-m", "mypy", "--strict", TYPED])?;
    // The types that the wheel declares are those that it has.
    environment.run("stubtest", &package, &["polylora"], &[])
}

/// An environment for Python packages.
pub(crate) struct Environment(PathBuf);

impl Environment {
    /// Makes what of it is not there yet.
    pub(crate) fn make(folder: &Path) -> Result<Environment> {
        if !folder.join("bin/python").exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        }
        Ok(Environment(folder.to_owned()))
    }

    /// Its Python, in a folder.
    pub(crate) fn python(&self, package: &Path, arguments: &[&str]) -> Result<()> {
        self.run("python", package, arguments, &[])
    }

    /// A program of the environment, with paths after the other arguments.
    fn run(
        &self,
        program: &str,
        package: &Path,
        arguments: &[&str],
        paths: &[&Path],
    ) -> Result<()> {
        run(Command::new(self.0.join("bin").join(program))
            .current_dir(package)
            // maturin asks for the environment that it is to build for.
            .env("VIRTUAL_ENV", &self.0)
            .args(arguments)
            .args(paths))
    }
}
