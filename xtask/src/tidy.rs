//! The invariants of ARCHITECTURE.md that a compiler does not check.

use anyhow::{Context, Result, bail};
use polylora::quant::{GgmlType, Importance};
use regex_lite::Regex;
use std::path::{Path, PathBuf};

/// The crates from left to right: each may import those before it.
const CHAIN: &[&str] = &[
    "polylora-quant",
    "polylora-file",
    "polylora-adapter",
    "polylora-engine",
    "polylora-calibrate",
    "polylora-server",
    "polylora",
];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &[
    "crates/polylora-quant/src/isa/",
    "crates/polylora-file/src/bytes.rs",
    "crates/polylora-engine/src/pool.rs",
    "xtask/src/bench/machine.rs",
    "xtask/src/tidy.rs",
];

/// Where a format's name may stand besides its own file: the table, the policies that are lists
/// of formats by nature (llama.cpp's mixtures, what a budget may choose), and what stores floats by
/// definition.
const FORMAT_NAMES: &[&str] = &[
    "crates/polylora-quant/src/format.rs",
    "crates/polylora-quant/src/format/",
    "crates/polylora-quant/src/lib.rs",
    "crates/polylora-quant/src/row.rs",
    "crates/polylora-adapter/src/mixture",
    "crates/polylora-calibrate/src/budget.rs",
];

/// A source file seldom needs more; data and tests aside.
const MAX_LINES: usize = 900;

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The lines of code, numbered from 1: no comments, and nothing from the first
    /// `#[cfg(test)]` on, which ends a file here.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line));
        let code = lines.take_while(|(_, line)| line.trim() != "#[cfg(test)]");
        code.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut faults = Vec::new();
    for source in &sources {
        check_unsafe(source, &mut faults);
        check_format_names(source, &mut faults);
        check_length(source, &mut faults);
    }
    check_quant_is_pure(&sources, &mut faults);
    check_architecture_names(root, &sources, &mut faults)?;
    check_chain(root, &mut faults)?;
    check_versions(root, &mut faults)?;
    check_documents(root, &mut faults)?;
    for fault in &faults {
        println!("tidy: {fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults in {} files", faults.len(), sources.len());
    }
    println!("tidy: {} files are in order", sources.len());
    Ok(())
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let entries = std::fs::read_dir(folder);
        for entry in entries.with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut paths = Vec::new();
    for folder in ["crates", "xtask", "fuzz", "bindings"] {
        walk(&root.join(folder), &mut paths)?;
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let path = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        Ok(Source { path, text })
    };
    paths.into_iter().map(read).collect()
}

fn stands_in(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

/// Invariant 1: `unsafe` lives in few places.
fn check_unsafe(source: &Source, faults: &mut Vec<String>) {
    if stands_in(&source.path, UNSAFE) {
        return;
    }
    let word = Regex::new(r"\bunsafe\b|allow\(unsafe_code\)").expect("it is constant");
    for (line, code) in source.code().filter(|(_, code)| word.is_match(code)) {
        faults.push(format!("{}:{line}: unsafe has no place here: {}", source.path, code.trim()));
    }
}

/// Invariant 5: a quantization format is named in its own file and its row of the table alone.
fn check_format_names(source: &Source, faults: &mut Vec<String>) {
    let is_product = stands_in(&source.path, &["crates/", "bindings/"]);
    let is_product = is_product && source.path.contains("/src/");
    let is_test = source.path.ends_with("/tests.rs");
    if !is_product || is_test || stands_in(&source.path, FORMAT_NAMES) {
        return;
    }
    let name = Regex::new(r"\bGgmlType::(I?Q\d\w*|TQ\d\w*|\w*FP4)\b").expect("it is constant");
    for (line, code) in source.code().filter(|(_, code)| name.is_match(code)) {
        faults.push(format!("{}:{line}: names a format: {}", source.path, code.trim()));
    }
}

/// An architecture is named in its own file and its row of the table alone.
fn check_architecture_names(
    root: &Path,
    sources: &[Source],
    faults: &mut Vec<String>,
) -> Result<()> {
    const TABLE: &str = "crates/polylora-engine/src/model.rs";
    let table = std::fs::read_to_string(root.join(TABLE)).context(TABLE)?;
    let row = Regex::new(r#"Architecture \{ name: "(\w+)""#).expect("it is constant");
    let names: Vec<String> = row.captures_iter(&table).map(|row| row[1].to_owned()).collect();
    if names.is_empty() {
        faults.push(format!("{TABLE}: has no rows that are known here"));
    }
    let engine = sources.iter().filter(|source| {
        source.path.starts_with("crates/polylora-engine/src/")
            && !source.path.starts_with("crates/polylora-engine/src/tokenizer")
            && source.path != TABLE
    });
    for source in engine {
        for (line, code) in source.code() {
            if names.iter().any(|name| code.contains(&format!("\"{name}\""))) {
                let code = code.trim();
                faults.push(format!("{}:{line}: names an architecture: {code}", source.path));
            }
        }
    }
    Ok(())
}

fn check_length(source: &Source, faults: &mut Vec<String>) {
    let lines = source.text.lines().count();
    let is_data = source.path.contains("/codebook");
    if lines > MAX_LINES && !is_data {
        faults.push(format!("{}: {lines} lines: is it one thing?", source.path));
    }
}

/// Invariant 2: polylora-quant does no I/O, starts no threads, logs nothing.
fn check_quant_is_pure(sources: &[Source], faults: &mut Vec<String>) {
    let word =
        Regex::new(r"\bstd::(fs|io|net|thread|process)\b|\brayon\b|\blog::").expect("constant");
    for source in sources.iter().filter(|s| s.path.starts_with("crates/polylora-quant/src/")) {
        for (line, code) in source.code().filter(|(_, code)| word.is_match(code)) {
            faults.push(format!("{}:{line}: no I/O or threads here: {}", source.path, code.trim()));
        }
    }
}

/// The crates depend in one direction, and only the last two may know of an async runtime.
fn check_chain(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    for (at, name) in CHAIN.iter().enumerate() {
        let path = format!("crates/{name}/Cargo.toml");
        let manifest = std::fs::read_to_string(root.join(&path)).with_context(|| path.clone())?;
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or("");
        let dependencies = dependencies.split("\n[").next().unwrap_or("");
        for later in &CHAIN[at..] {
            if dependencies.lines().any(|line| {
                line.starts_with(&format!("{later}.")) || line.starts_with(&format!("{later} "))
            }) {
                faults.push(format!("{path}: {name} may not depend on {later}"));
            }
        }
        if dependencies.lines().any(|line| line.starts_with("tokio")) && at + 2 < CHAIN.len() {
            faults.push(format!("{path}: tokio has no place here"));
        }
    }
    Ok(())
}

/// The Python package, a workspace of its own, has the version of all else.
fn check_versions(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let version = |path: &str| -> Result<String> {
        let manifest = std::fs::read_to_string(root.join(path)).with_context(|| path.to_owned())?;
        let line = manifest.lines().find(|line| line.starts_with("version = "));
        line.map(str::to_owned).with_context(|| format!("{path} has no version"))
    };
    const PYTHON: &str = "bindings/python/Cargo.toml";
    let (ours, python) = (version("Cargo.toml")?, version(PYTHON)?);
    if ours != python {
        faults.push(format!("{PYTHON}: has {python}, where the workspace has {ours}"));
    }
    Ok(())
}

/// What the documents promise of the tree is there.
fn check_documents(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let readme = std::fs::read_to_string(root.join("README.md")).context("README.md")?;
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        if !readme.contains(command) {
            faults.push(format!("README.md: lacks `{command}`"));
        }
    }
    let types = types();
    if !readme.contains(&types) {
        faults.push(format!("README.md: lacks the table's line `{types}`"));
    }
    // Links from one document to another file of the repository.
    let link = Regex::new(r"\]\(([^)#:]+)\)").expect("it is constant");
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(name)).with_context(|| name.to_owned())?;
        for target in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if !root.join(&target).exists() {
                faults.push(format!("{name}: links to {target}, which is not there"));
            }
        }
    }
    Ok(())
}

/// The line of the README's table that tells the types of weights.
fn types() -> String {
    let weights = || GgmlType::ALL.iter().filter(|ty| ty.decodes());
    let names =
        |types: Vec<&GgmlType>| types.into_iter().map(|ty| ty.name()).collect::<Vec<_>>().join(" ");
    let written = weights().all(|ty| ty.encodes().is_some());
    assert!(written, "what cannot be written needs a line of its own");
    let needs = |ty: &&GgmlType| ty.encodes() == Some(Importance::Required);
    format!(
        "| tensor types, read and written | {}: decoded bit for bit and encoded byte for byte as ggml \
         does, with importance and without, which {} need |",
        names(weights().collect()),
        names(weights().filter(needs).collect()),
    )
}
