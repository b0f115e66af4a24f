//! A conversation at a terminal.

use super::context_full;
use super::session::{Asked, End, Session};
use crate::cmd::loaded::{Named, labels};
use crate::terminal;
use anyhow::{Context, Result, bail, ensure};
use polylora_engine::Message;
use rustyline::error::ReadlineError;
use std::fmt::Write;
use std::sync::Arc;

const HELP: &str = "\
  /adapter          show the adapters, and which apply
  /adapter NAME     apply this one alone; A+B for several, none for none
  /scale X          multiply the adapters that apply by X
  /reset            forget the conversation
  /help             show this
  /quit             leave (so does Ctrl-D)
  Ctrl-C stops an answer.
";

pub(super) struct Chat {
    session: Session,
    asked: Asked,
    /// What was said; begins with the system's message, if there is one.
    messages: Vec<Message>,
    system: Option<Message>,
    adapters: Vec<Named>,
    /// Those of `adapters` that apply.
    active: Vec<usize>,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// To be said to the person, beside the model's words.
    Note(String),
    Quit,
}

impl Chat {
    /// All `adapters` apply at first.
    pub(super) fn new(
        session: Session,
        adapters: Vec<Named>,
        asked: Asked,
        system: Option<Message>,
    ) -> Result<Chat> {
        for (number, named) in adapters.iter().enumerate() {
            let name = &named.spec.name;
            let again = adapters[..number].iter().any(|other| other.spec.name == *name);
            ensure!(!again, "two adapters are called {name}: name them with --adapter NAME=PATH");
            ensure!(name != "none", "none means no adapter: name it with --adapter NAME=PATH");
        }
        let messages = system.clone().into_iter().collect();
        let active = (0..adapters.len()).collect();
        let mut chat = Chat { session, asked, messages, system, adapters, active };
        chat.apply();
        Ok(chat)
    }

    /// Asks for lines until the person leaves.
    pub(super) fn run(mut self) -> Result<()> {
        let mut editor =
            rustyline::DefaultEditor::new().context("cannot read from the terminal")?;
        if self.asked.continues {
            terminal::tell("Without a chat template each line is continued by itself. ");
        }
        terminal::tell("/help shows what can be done.\n");
        let mut leaving = false;
        loop {
            let line = match terminal::waiting(|| editor.readline("> ")) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) if !leaving => {
                    terminal::tell("Ctrl-C again, or Ctrl-D, to leave.\n");
                    leaving = true;
                    continue;
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            leaving = false;
            if line.trim().is_empty() {
                continue;
            }
            // Fails only where the history is full or off.
            let _ = editor.add_history_entry(line.as_str());
            // Pressed after an answer had ended by itself, it would stop the next one.
            terminal::forget_interrupt();
            match self.take(&line, terminal::stream) {
                Ok(Turn::Note(note)) => terminal::tell(&note),
                Ok(Turn::Quit) => return Ok(()),
                Err(error) => terminal::print_error(&error),
            }
        }
    }

    /// Does what a line says: a command, or something to answer.
    fn take(&mut self, line: &str, write: impl FnMut(&str) -> Result<()>) -> Result<Turn> {
        let Some(command) = line.trim().strip_prefix('/') else {
            return self.answer(line, write).map(Turn::Note);
        };
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = argument.trim();
        match name {
            "adapter" if argument.is_empty() => Ok(Turn::Note(self.list())),
            "adapter" => self.choose(argument).map(Turn::Note),
            "scale" => self.rescale(argument).map(Turn::Note),
            "reset" => {
                self.messages = self.system.clone().into_iter().collect();
                Ok(Turn::Note("The conversation is forgotten.\n".to_owned()))
            }
            "help" => Ok(Turn::Note(HELP.to_owned())),
            "quit" | "exit" => Ok(Turn::Quit),
            _ => bail!("there is no /{name}: /help shows what there is"),
        }
    }

    fn answer(&mut self, line: &str, mut write: impl FnMut(&str) -> Result<()>) -> Result<String> {
        self.messages.push(Message::new("user", line));
        let prompt = match self.asked.continues {
            true => Ok(self.session.tokenizer.encode(line, true, true)),
            false => self.session.conversation(&self.messages),
        };
        let answered =
            prompt.and_then(|prompt| self.session.answer(&prompt, &self.asked, &mut write));
        let answer = match answered {
            Ok(answer) => answer,
            Err(error) => {
                // As if it had not been asked.
                self.messages.pop();
                return Err(error);
            }
        };
        if answer.end == End::Interrupted && answer.answer_tokens == 0 {
            self.messages.pop();
            return Ok("[stopped before the answer began]\n".to_owned());
        }
        write("\n")?;
        let mut note = format!("[{}]\n", answer.statistics());
        match answer.end {
            End::ContextFull => {
                note += &context_full(self.session.context());
                note += "note: /reset begins anew\n";
            }
            End::Interrupted => note.insert_str(0, "[stopped] "),
            End::Stop | End::Length => {}
        }
        self.messages.push(Message::new("assistant", &answer.text));
        Ok(note)
    }

    fn list(&self) -> String {
        if self.adapters.is_empty() {
            return "No adapter is loaded: start with --adapter PATH.\n".to_owned();
        }
        let mut text = String::new();
        for (number, named) in self.adapters.iter().enumerate() {
            let mark = if self.active.contains(&number) { '*' } else { ' ' };
            let _ = writeln!(text, "{mark} {}  {}", named.label(), named.spec.path.display());
        }
        text
    }

    /// Applies the adapters of these names: `none`, `a`, `a+b`.
    fn choose(&mut self, names: &str) -> Result<String> {
        let find = |name: &str| self.adapters.iter().position(|named| named.spec.name == name);
        self.active = match (names, find(names)) {
            ("none", _) => Vec::new(),
            // A name may hold a plus itself.
            (_, Some(number)) => vec![number],
            _ => {
                let known = |name: &str| {
                    let all: Vec<&str> =
                        self.adapters.iter().map(|named| &*named.spec.name).collect();
                    find(name).with_context(|| {
                        format!("no adapter is called {name}: there are {}", all.join(", "))
                    })
                };
                names.split('+').map(|name| known(name.trim())).collect::<Result<_>>()?
            }
        };
        self.apply();
        Ok(self.applied())
    }

    /// Loads the adapters that apply once more, at another scale.
    fn rescale(&mut self, scale: &str) -> Result<String> {
        let parsed = scale.parse().ok().filter(|scale: &f32| scale.is_finite());
        let scale = parsed.with_context(|| format!("{scale:?} is no scale: write /scale 0.5"))?;
        ensure!(!self.active.is_empty(), "no adapter applies: choose one with /adapter NAME");
        let mut reloaded = Vec::new();
        for &number in &self.active {
            let mut spec = self.adapters[number].spec.clone();
            spec.scale = scale;
            reloaded.push(self.session.loaded.adapter(&spec)?);
        }
        for (&number, named) in self.active.iter().zip(reloaded) {
            self.adapters[number] = named;
        }
        self.apply();
        Ok(self.applied())
    }

    fn apply(&mut self) {
        let active = self.active.iter().map(|&number| Arc::clone(&self.adapters[number].adapter));
        self.session.set_adapters(active.collect());
    }

    fn applied(&self) -> String {
        let active = self.active.iter().map(|&number| &self.adapters[number]);
        format!("Adapters: {}\n", labels(active))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::loaded::{EngineArgs, Loaded};
    use clap::Parser;
    use polylora::synthetic::Llama;
    use polylora_engine::SamplingParams;
    use std::path::Path;

    const SMALL: Llama =
        Llama { layers: 2, hidden: 256, ffn: 512, heads: 4, kv_heads: 2, vocab: 320 };

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        engine: EngineArgs,
    }

    /// A chat with a random model and two adapters, `a` and `b`, that change much.
    fn chat(folder: &Path, system: Option<&str>) -> Chat {
        let model = folder.join("base.gguf");
        SMALL.write_f16_with_vocabulary(&model).unwrap();
        for (name, rank) in [("a", 4), ("b", 8)] {
            SMALL.write_adapter(&folder.join(name), rank, 3.0).unwrap();
        }
        let flags = Flags::parse_from(["", "--exact", "--threads", "1"]);
        let loaded = Loaded::open(&model.as_path().into(), &flags.engine).unwrap();
        let specs = ["a", "b"].map(|name| folder.join(name).to_str().unwrap().parse().unwrap());
        let adapters = loaded.adapters(&specs).unwrap();
        let session = Session::new(loaded, Some(512)).unwrap();
        let asked = Asked {
            params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            stop: Vec::new(),
            shape: None,
            continues: false,
            limit: Some(8),
        };
        Chat::new(session, adapters, asked, system.map(|text| Message::new("system", text)))
            .unwrap()
    }

    /// What the model says, and what is said of it.
    fn say(chat: &mut Chat, line: &str) -> (String, String) {
        let mut text = String::new();
        let write = |piece: &str| {
            text += piece;
            Ok(())
        };
        match chat.take(line, write).unwrap() {
            Turn::Note(note) => (text, note),
            Turn::Quit => panic!("{line} ends the chat"),
        }
    }

    fn refused(chat: &mut Chat, line: &str) -> String {
        format!("{:#}", chat.take(line, |_| Ok(())).unwrap_err())
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut chat = chat(folder.path(), Some("Be brief."));
        let (_, first) = say(&mut chat, "Hello");
        assert!(first.contains("answer 8 tokens") && !first.contains("known"), "{first}");
        let (with_memory, second) = say(&mut chat, "And now?");
        assert!(second.contains("more known"), "{second}");

        // The same conversation, read anew, has the same answer.
        chat.messages.truncate(chat.messages.len() - 2);
        say(&mut chat, "/adapter none");
        say(&mut chat, "/adapter a+b");
        let (anew, note) = say(&mut chat, "And now?");
        assert!(!note.contains("known"), "{note}");
        assert_eq!(anew, with_memory);
    }

    #[test]
    fn adapters_are_switched_by_name_and_scaled() {
        let folder = tempfile::tempdir().unwrap();
        let mut chat = chat(folder.path(), None);
        let mut answers = Vec::new();
        for names in ["none", "a", "b", "a+b"] {
            let (_, note) = say(&mut chat, &format!("/adapter {names}"));
            assert_eq!(note, format!("Adapters: {}\n", names.replace('+', " + ")));
            say(&mut chat, "/reset");
            answers.push(say(&mut chat, "Hello").0);
        }
        for (number, answer) in answers.iter().enumerate() {
            assert!(!answers[..number].contains(answer), "{answers:?}");
        }
        say(&mut chat, "/reset");
        assert_eq!(say(&mut chat, "/scale 0").1, "Adapters: a@0 + b@0\n");
        assert_eq!(say(&mut chat, "Hello").0, answers[0]);
        let (_, list) = say(&mut chat, "/adapter");
        assert!(list.contains("* a@0") && list.contains("* b@0"), "{list}");
    }

    #[test]
    fn what_cannot_be_is_said_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut chat = chat(folder.path(), None);
        assert!(refused(&mut chat, "/adapter a+c").contains("no adapter is called c"));
        assert_eq!(chat.active, [0, 1]);
        assert!(refused(&mut chat, "/scale much").contains("no scale"));
        assert!(refused(&mut chat, "/frobnicate").contains("/help"));
        say(&mut chat, "/adapter none");
        assert!(refused(&mut chat, "/scale 2").contains("/adapter NAME"));
        let long = "word ".repeat(600);
        assert!(refused(&mut chat, &long).contains("context holds 512"));
        assert!(chat.messages.is_empty());
        assert_eq!(chat.take("/quit", |_| Ok(())).unwrap(), Turn::Quit);
    }
}
