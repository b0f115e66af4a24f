use super::loaded::{read_standard_input, read_text};
use super::open_model;
use crate::source::Source;
use crate::terminal::{self, Table};
use anyhow::{Context, Result};
use polylora_engine::Tokenizer;
use serde::Serialize;
use std::path::PathBuf;

/// Show the tokens that a model takes a text for
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Tokenize {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// The text [default: standard input]
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    text: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the numbers alone, on one line
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// Print the tokens as JSON
    #[arg(long)]
    json: bool,
    /// Leave out the tokens that the model wants before and after a text
    #[arg(long)]
    no_special: bool,
    /// Take <|im_end|> and its like for ordinary text
    #[arg(long)]
    no_parse_special: bool,
}

const EXAMPLES: &str = "\
Examples:
  polylora tokenize model.gguf 'Hello, world'
  polylora tokenize model.gguf --ids < prompt.txt";

/// A token, for programs. The bytes of one need not be text: a letter may be two tokens.
#[derive(Serialize)]
struct Row {
    id: u32,
    text: String,
    bytes: Vec<u8>,
}

impl Tokenize {
    pub(crate) fn run(self) -> Result<()> {
        let gguf = open_model(&self.model)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)
            .with_context(|| format!("cannot read the vocabulary of {}", self.model))?;
        let text = match (self.text, self.file) {
            (Some(text), _) => text,
            (None, Some(file)) => read_text(&file)?,
            (None, None) => read_standard_input()?,
        };
        let ids = tokenizer.encode(&text, !self.no_special, !self.no_parse_special);
        if self.ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            return terminal::print(&format!("{}\n", ids.join(" ")));
        }
        let rows = ids.into_iter().map(|id| {
            let bytes = tokenizer.token_bytes(id, true).into_owned();
            Row { id, text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
        });
        if self.json {
            return terminal::print_json(&rows.collect::<Vec<_>>());
        }
        let mut table = Table::new(&["token", "text"]);
        for row in rows {
            // Escaped: a line break must not break the table, nor a colour leak out of it.
            let text = match std::str::from_utf8(&row.bytes) {
                Ok(text) => format!("{text:?}"),
                Err(_) => format!("\"{}\"", row.bytes.escape_ascii()),
            };
            table.row([row.id.to_string(), text]);
        }
        terminal::print(&table.to_string())
    }
}
