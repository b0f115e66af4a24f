//! The program `polylora`: see `polylora --help`.

mod cmd;
#[cfg(feature = "hub")]
mod hub;
mod source;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

/// LoRA adapters on quantized language models: merge them into a GGUF, in its own types, or run
/// the model with them.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: cmd::Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 the job failed, 2 wrong use.
Environment: NO_COLOR turns colours off; POLYLORA_ISA names the instruction set to use.";

fn main() -> ExitCode {
    let cli = Cli::parse();
    terminal::catch_interrupts();
    match check_environment().and_then(|()| cli.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if terminal::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::print_error(&error);
            ExitCode::from(if error.is::<cmd::WrongUse>() { 2 } else { 1 })
        }
    }
}

/// A misspelt instruction set would otherwise be passed over in silence.
fn check_environment() -> anyhow::Result<()> {
    match std::env::var("POLYLORA_ISA") {
        Ok(name) => match name.parse::<polylora::quant::Isa>() {
            Ok(_) => Ok(()),
            Err(error) => Err(cmd::WrongUse(format!("POLYLORA_ISA: {error}")).into()),
        },
        Err(_) => Ok(()),
    }
}
