mod chat;
mod sampling;
mod session;

use super::WrongUse;
use super::loaded::{EngineArgs, Loaded, handles, labels, read_standard_input, read_text};
use crate::source::{AdapterSource, Source};
use crate::terminal;
use anyhow::Result;
use chat::Chat;
use polylora_engine::Message;
use sampling::Sampling;
use session::{Asked, End, Session};
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Answer a prompt, or chat, with adapters applied as the model runs
///
/// The weights stay as they are, quantized; the adapters are added inside each product. The
/// answer goes to standard output, all else to standard error. Without a prompt, on a terminal,
/// it is a chat, in which adapters can be switched.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// A PEFT folder or a GGUF LoRA, with a scale to multiply its own; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// What to answer [default: standard input, where something is piped in]
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Write at most this many tokens [default: until the model ends, or the context is full]
    #[arg(short, value_name = "N")]
    number: Option<usize>,
    /// Tokens of prompt and answer that can be kept [default: as many as the model was made for]
    #[arg(long, value_name = "N")]
    ctx: Option<NonZeroUsize>,
    /// Print the answer with its statistics as JSON, when it is done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    sampling: Sampling,
}

const EXAMPLES: &str = "\
Examples:
  polylora run model.gguf --adapter my-lora/
  polylora run model.gguf --adapter a/@0.5 --adapter b.gguf -p 'Who are you?' --temp 0
  polylora run model.gguf --raw -n 64 < story.txt
  polylora run model.gguf -p 'A person, as JSON' --json-schema person.json";

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        let prompt = self.read_prompt()?;
        if prompt.is_none() && self.json {
            return Err(WrongUse("--json needs a prompt".to_owned()).into());
        }
        let loaded = Loaded::open(&self.model, &self.engine)?;
        let adapters = loaded.adapters(&self.adapter)?;
        let mut session = Session::new(loaded, self.ctx.map(NonZeroUsize::get))?;
        let asked = Asked {
            params: self.sampling.params(session.loaded.engine.model().vocab_size())?,
            stop: self.sampling.stop.clone(),
            shape: self.sampling.shape(&session.tokenizer)?,
            continues: self.raw || session.template.is_none(),
            limit: self.number,
        };
        if self.system.is_some() && session.template.is_none() {
            let model = &self.model;
            let why = format!("{model} has no chat template: there is no place for --system");
            return Err(WrongUse(why).into());
        }
        terminal::tell(&format!(
            "{}; context {}; adapters: {}\n",
            session.loaded.describe(),
            session.context(),
            labels(&adapters)
        ));
        let system = self.system.as_deref().map(|text| Message::new("system", text));
        let Some(prompt) = prompt else {
            return Chat::new(session, adapters, asked, system)?.run();
        };

        session.set_adapters(handles(&adapters));
        let tokens = if asked.continues {
            session.tokenizer.encode(&prompt, true, true)
        } else {
            let messages: Vec<_> =
                system.into_iter().chain([Message::new("user", &prompt)]).collect();
            session.conversation(&messages)?
        };
        let write = |piece: &str| if self.json { Ok(()) } else { terminal::stream(piece) };
        let answer = session.answer(&tokens, &asked, write)?;
        if self.json {
            terminal::print_json(&answer)?;
        } else {
            terminal::stream("\n")?;
            terminal::tell(&format!("{}\n", answer.statistics()));
        }
        match answer.end {
            End::Interrupted => terminal::check_interrupt(),
            End::ContextFull => {
                terminal::tell(&context_full(session.context()));
                Ok(())
            }
            End::Stop | End::Length => Ok(()),
        }
    }

    /// What to answer; none for a chat.
    fn read_prompt(&self) -> Result<Option<String>> {
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => return Ok(Some(text.clone())),
            (None, Some(path)) => read_text(path)?,
            (None, None) if std::io::stdin().is_terminal() => return Ok(None),
            (None, None) => read_standard_input()?,
        };
        // Editors and `echo` end a text with a line break that its writer does not mean.
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()))
    }
}

fn context_full(context: usize) -> String {
    format!("note: the context of {context} tokens is full: the answer ends here\n")
}
