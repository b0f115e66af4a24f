//! Text from tokens as they come.

use super::Tokenizer;

/// Turns tokens into text one at a time, without breaking characters that span several.
///
/// What it gives, put together, is [`Tokenizer::decode`] of all tokens.
#[derive(Clone, Debug)]
pub struct Utf8Stream {
    tokenizer: Tokenizer,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// Whether a space at the beginning of the next token is none.
    strip_space: bool,
}

impl Utf8Stream {
    pub(super) fn new(tokenizer: Tokenizer, strip_space: bool) -> Utf8Stream {
        Utf8Stream { tokenizer, pending: Vec::new(), strip_space }
    }

    /// Adds a token; gives the text that is complete with it, which may be empty. Bytes that can
    /// never become a character are U+FFFD. Special tokens give no text.
    pub fn push(&mut self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id, false);
        let strip = std::mem::take(&mut self.strip_space) && bytes.starts_with(b" ");
        self.pending.extend_from_slice(&bytes[usize::from(strip)..]);

        let mut complete = self.pending.len();
        if let Some(last) = self.pending.utf8_chunks().last()
            && is_beginning(last.invalid())
        {
            complete -= last.invalid().len();
        }
        let rest = self.pending.split_off(complete);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        text
    }

    /// The end: U+FFFD where a character is not complete, else nothing.
    #[must_use]
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether more bytes can make a character of these, which are none.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
