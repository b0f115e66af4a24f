//! Chats in a file, as those who train adapters keep them: JSON lines of `{"messages": [...]}`.

use super::loaded::read_text;
use anyhow::{Context, Result, ensure};
use polylora_engine::{ChatTemplate, Message};
use polylora_file::Gguf;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// Whether a file's name says that it holds chats.
pub(super) fn are_in(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

/// The chats of a file; at least one, none of them empty.
pub(super) fn read(path: &Path) -> Result<Vec<Vec<Message>>> {
    let text = read_text(path)?;
    let mut chats = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("line {number} of {} is no chat", path.display());
        let chat: Chat = serde_json::from_str(line).with_context(place)?;
        ensure!(!chat.messages.is_empty(), "{}: it has no messages", place());
        chats.push(
            chat.messages.into_iter().map(|said| Message::new(said.role, said.content)).collect(),
        );
    }
    ensure!(!chats.is_empty(), "{} has no chats", path.display());
    Ok(chats)
}

/// The template that chats become text by.
pub(super) fn template(gguf: &Gguf) -> Result<ChatTemplate> {
    ChatTemplate::from_gguf(gguf)?.context("the model has no chat template to read chats by")
}
