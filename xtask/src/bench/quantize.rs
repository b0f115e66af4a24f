use super::{Setting, measure, median, ratio};
use crate::make_f16;
use anyhow::{Result, ensure};
use polylora::file::Gguf;
use std::path::{Path, PathBuf};

/// `cargo xtask bench quantize`
#[derive(clap::Args)]
pub(crate) struct Quantize {
    #[command(flatten)]
    setting: Setting,
    /// What to quantize to
    #[arg(long = "types", value_delimiter = ',', default_value = "Q4_K_M")]
    types: Vec<String>,
    /// Layers of the model: some types take llama-quantize long
    #[arg(long, default_value_t = 22)]
    layers: usize,
    /// An importance matrix for both, which some types need
    #[arg(long)]
    imatrix: Option<PathBuf>,
}

impl Quantize {
    pub(super) fn run(self) -> Result<()> {
        let model = make_f16(&self.setting.dir, self.layers)?;
        println!("| type | ours: s | llama-quantize: s | times (each run's) |");
        println!("|---|---|---|---|");
        for ty in &self.types {
            self.measure(&model, ty)?;
        }
        println!("All tensors are the same, byte for byte.");
        Ok(())
    }

    fn measure(&self, model: &Path, ty: &str) -> Result<()> {
        let setting = &self.setting;
        let (our_file, their_file) =
            (setting.dir.join("ours.gguf"), setting.dir.join("theirs.gguf"));
        let imatrix = self.imatrix.iter().flat_map(|path| ["--imatrix".as_ref(), path.as_os_str()]);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..setting.reps {
            let mut our = setting.ours();
            our.arg("quantize").arg(model).arg(&our_file).arg(ty).args(imatrix.clone());
            let our = measure(our.args(["--force", "--threads", &setting.threads()]))?;
            let mut their = setting.theirs("llama-quantize");
            their.args(imatrix.clone()).arg(model).arg(&their_file).arg(ty);
            let their = measure(their.arg(setting.threads()))?;
            ours.push(our.time.as_secs_f64());
            theirs.push(their.time.as_secs_f64());
        }
        let each: Vec<String> =
            theirs.iter().zip(&ours).map(|(b, a)| format!("{:.1}", b / a)).collect();
        let (times, each) = (ratio(&theirs, &ours), each.join(" "));
        println!("| {ty} | {:.2} | {:.2} | {times:.1} ({each}) |", median(ours), median(theirs));
        same_tensors(&our_file, &their_file)
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
