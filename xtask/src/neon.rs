//! NEON on a machine that has none: cross-compiled, and run by QEMU.

use crate::real_model::run;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `cargo xtask neon`
#[derive(clap::Args)]
pub(crate) struct Neon {
    /// The folder `library` of the compiler's own sources; the standard library is then built from
    /// it, where it cannot be had for the target
    #[arg(long, value_name = "FOLDER")]
    rust_src: Option<PathBuf>,
    /// Test the engine, too: emulated, its tests take a quarter of an hour
    #[arg(long)]
    engine: bool,
}

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// The emulator, with the libraries of Debian's cross compiler, and a CPU that has all there is.
const RUNNER: &str = "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu";

impl Neon {
    pub(crate) fn run(self, root: &Path) -> Result<()> {
        for program in [LINKER, "qemu-aarch64"] {
            let found = Command::new(program).arg("--version").output();
            found.with_context(|| {
                format!(
                    "cannot run {program}: on Debian it comes with the packages \
                     gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user"
                )
            })?;
        }
        let mut test = Command::new(env!("CARGO"));
        test.current_dir(root).arg("test").args(["--target", TARGET]);
        test.args(["--package", "polylora-quant", "--tests"]);
        if self.engine {
            test.args(["--package", "polylora-engine"]);
        }
        let variable = |name: &str| format!("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_{name}");
        test.env(variable("LINKER"), LINKER).env(variable("RUNNER"), RUNNER);
        // A test fails where this is not what runs.
        test.env("POLYLORA_ISA", "neon");
        if let Some(library) = self.rust_src {
            let library = std::path::absolute(library)?;
            test.arg("-Zbuild-std=std,panic_unwind,test").env("RUSTC_BOOTSTRAP", "1");
            // Where cargo looks for it otherwise is the toolchain's own folder.
            test.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
        } else if !has_target()? {
            bail!(
                "no standard library for {TARGET}: run `rustup target add {TARGET}`, or give \
                 --rust-src"
            );
        }
        run(&mut test)
    }
}

/// Whether the compiler has the target's standard library.
fn has_target() -> Result<bool> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "target-libdir", "--target", TARGET]).output()?;
    Ok(Path::new(String::from_utf8(output.stdout)?.trim()).exists())
}
