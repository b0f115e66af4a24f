use super::merge;
use crate::terminal::{self, Progress, bold, size};
use anyhow::{Context, Result};
use polylora::synthetic::{DEMO, quantize_file};
use polylora_adapter::rewrite::{Plan, TypeRules};
use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_file::{Gguf, WriteOptions};
use std::time::Instant;

/// Show a merge on a small model of random weights, made here and now
#[derive(clap::Args)]
pub(crate) struct Demo {}

/// A rank and a strength (`||delta|| / ||W||`) as trained adapters have them.
const RANK: usize = 8;
const STRENGTH: f32 = 0.05;

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let file = |name: &str| folder.path().join(name);

        terminal::print(&format!(
            "Making a llama of random weights ({} layers, hidden size {}) in Q4_K_M, and a \
             rank-{RANK} adapter ...\n",
            DEMO.layers, DEMO.hidden
        ))?;
        DEMO.write_f16(&file("f16.gguf"))?;
        quantize_file(&file("f16.gguf"), &file("base.gguf"), &"Q4_K_M".parse()?)?;
        DEMO.write_adapter(&file("adapter"), RANK, STRENGTH)?;

        let base = Gguf::open(&file("base.gguf"))?;
        let spec = AdapterSpec { name: "demo".to_owned(), path: file("adapter"), scale: 1.0 };
        let adapters = [load(&spec, &base, OnMismatch::Fail)?];
        for (ty, why) in
            [("keep", "Back to each tensor's own type"), ("q8_0", "The changed tensors in 8 bits")]
        {
            let plan = Plan::merge(&base, &adapters, &TypeRules::parse(&[ty])?, None)?;
            let progress = Progress::bytes(plan.tensor_bytes(), "merging");
            let start = Instant::now();
            let options = WriteOptions { overwrite: true, max_shard: None };
            let report = plan.write(&file("merged.gguf"), options, &progress)?;
            drop(progress);
            let headline = format!("{why}: polylora merge base.gguf --adapter adapter --type {ty}");
            terminal::print(&format!(
                "\n{}\n{}, {}; {}\n",
                bold(&headline),
                size(report.tensor_bytes),
                terminal::seconds(start.elapsed()),
                merge::render(&report).trim_end()
            ))?;
        }
        terminal::print(&format!(
            "\nWith your own files:  {}\n",
            bold("polylora merge MODEL.gguf --adapter FOLDER -o MERGED.gguf")
        ))
    }
}
