use crate::{Cli, terminal};
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completions of a shell: names of commands and options
///
/// Where they go, for example: bash, ~/.local/share/bash-completion/completions/polylora; zsh, a
/// file _polylora in a folder of $fpath; fish, ~/.config/fish/completions/polylora.fish.
#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "polylora", &mut text);
        terminal::print(&String::from_utf8(text)?)
    }
}
