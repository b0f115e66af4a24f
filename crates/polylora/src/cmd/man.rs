use crate::Cli;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::PathBuf;

/// Write the manual pages, polylora.1 and one for each command, for those who package the program
#[derive(clap::Args)]
#[command(hide = true)]
pub(crate) struct Man {
    /// The folder to write them in
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(self) -> Result<()> {
        let cannot = || format!("cannot write manual pages in {}", self.folder.display());
        std::fs::create_dir_all(&self.folder).with_context(cannot)?;
        clap_mangen::generate_to(Cli::command(), &self.folder).with_context(cannot)
    }
}
