//! The engine's tests on every instruction set.

use crate::real_model::run;
use anyhow::Result;
use polylora::quant::Isa;
use std::path::Path;
use std::process::Command;

/// Those in which kernels do the work. The kernels' own tests go through all instruction sets by
/// themselves.
const TESTS: &[&str] = &["adapters", "architectures", "embedded", "walk"];

/// Runs them on all but the best one of this machine, on which `cargo test` runs them.
pub(crate) fn test(root: &Path) -> Result<()> {
    let all = Isa::available();
    for isa in &all[..all.len() - 1] {
        println!("{}", isa.name());
        let mut test = Command::new(env!("CARGO"));
        test.current_dir(root).args(["test", "--quiet", "--workspace"]).args(crate::PROFILE);
        test.args(TESTS.iter().flat_map(|name| ["--test", name]));
        test.env("POLYLORA_ISA", isa.name());
        run(&mut test)?;
    }
    Ok(())
}
