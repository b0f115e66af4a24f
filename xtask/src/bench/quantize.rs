use super::{Setting, measure, median, ratio};
use crate::make_model;
use anyhow::{Result, ensure};
use polylora::file::Gguf;
use std::path::Path;

/// `cargo xtask bench quantize`
#[derive(clap::Args)]
pub(crate) struct Quantize {
    #[command(flatten)]
    setting: Setting,
    /// What to quantize to
    #[arg(long = "type", default_value = "Q4_K_M")]
    ty: String,
}

impl Quantize {
    pub(super) fn run(self) -> Result<()> {
        let setting = self.setting;
        let model = make_model(&setting.dir)?;
        let (our_file, their_file) =
            (setting.dir.join("ours.gguf"), setting.dir.join("theirs.gguf"));
        println!("| run | ours: s | llama-quantize: s | times |");
        println!("|---|---|---|---|");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for rep in 1..=setting.reps {
            let mut our = setting.ours();
            our.arg("quantize").arg(&model.f16).arg(&our_file).arg(&self.ty);
            let our = measure(our.args(["--force", "--threads", &setting.threads()]))?;
            let mut their = setting.theirs("llama-quantize");
            their.arg(&model.f16).arg(&their_file).arg(&self.ty);
            let their = measure(their.arg(setting.threads()))?;
            ours.push(our.time.as_secs_f64());
            theirs.push(their.time.as_secs_f64());
            let (our, their) = (ours[rep - 1], theirs[rep - 1]);
            println!("| {rep} | {our:.2} | {their:.2} | {:.1} |", their / our);
        }
        let times = ratio(&theirs, &ours);
        println!("| median | {:.2} | {:.2} | {times:.1} |", median(ours), median(theirs));
        same_tensors(&our_file, &their_file)?;
        println!("All tensors are the same, byte for byte.");
        Ok(())
    }
}

fn same_tensors(ours: &Path, theirs: &Path) -> Result<()> {
    let (ours, theirs) = (Gguf::open(ours)?, Gguf::open(theirs)?);
    let (mine, other) = (ours.tensors().len(), theirs.tensors().len());
    ensure!(mine == other, "{mine} tensors, not {other}");
    for tensor in ours.tensors() {
        let other = theirs.tensor(&tensor.name);
        let same =
            other.is_some_and(|other| other.ty == tensor.ty && *other.bytes == *tensor.bytes);
        ensure!(same, "{} is not the same", tensor.name);
    }
    Ok(())
}
