//! Text to tokens and back, by the vocabulary in a GGUF file's own metadata.
//!
//! The criterion is llama.cpp: the same text gives the same ids, for adapters and models were
//! tried with it. So what it does differently from a model's original tokenizer is done here too.
//! It is why this is not built on the crate `tokenizers`, whose vocabularies are those originals:
//! llama.cpp finds special tokens longest first, merges SentencePiece by score, and cuts words by
//! expressions of its own.

mod bpe;
mod error;
mod pre;
mod special;
mod split;
mod spm;
mod stream;
mod strings;
mod vocabulary;

pub use error::{TokenizerError, TokenizerFault};
pub use stream::Utf8Stream;

use bpe::Bpe;
use polylora_file::{Gguf, Metadata, ValueType};
use pre::{DEFAULT, GEMMA, PRE_TOKENIZERS, Pre};
use special::{Fragment, SpecialTokens};
use spm::{SPACE, Spm};
use std::borrow::Cow;
use std::sync::Arc;
use vocabulary::Vocabulary;

/// A model's vocabulary, and how text becomes its tokens. Clones share it.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vocabulary: Vocabulary,
    special: SpecialTokens,
    kind: Kind,
    add_bos: bool,
    add_eos: bool,
    /// Text after a special token, or at the beginning, gets a space in front.
    add_space: bool,
    /// Spaces are [`SPACE`] in tokens.
    escape: bool,
}

/// How text becomes tokens.
#[derive(Debug)]
enum Kind {
    Spm(Box<Spm>),
    Bpe(Box<Bpe>),
}

/// The kinds of vocabularies, as `tokenizer.ggml.model` names them.
const MODELS: [&str; 3] = ["llama", "gpt2", "gemma4"];

impl Tokenizer {
    /// Builds it of a model's metadata.
    ///
    /// # Errors
    /// Where there is no vocabulary, one of a kind that is not known, or a damaged one.
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let path = file.parts().first().map(|path| path.as_path()).unwrap_or("".as_ref());
        let shared = Shared::read(file.metadata()).map_err(|fault| fault.at(path))?;
        Ok(Tokenizer(Arc::new(shared)))
    }

    /// The tokens of a text. `add_special` adds the tokens that begin and end one, where the
    /// model wants them; with `parse_special` the text of a special token is that token, which
    /// is for templates, not for what users wrote.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let Shared { vocabulary, special, kind, .. } = &*self.0;
        // Some three or four bytes a token.
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.0.add_bos {
            out.extend(vocabulary.bos);
        }
        let mut spm_scratch = spm::Scratch::default();
        let mut bpe_scratch = bpe::Scratch::default();
        let mut begins = true;
        for fragment in special.cut(text, parse_special, vocabulary) {
            let range = match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    begins = true;
                    continue;
                }
                Fragment::Text(range) => range,
            };
            let mut text = Cow::Borrowed(&text[range]);
            if std::mem::take(&mut begins) && self.0.add_space {
                text = Cow::Owned(format!(" {text}"));
            }
            if self.0.escape {
                text = Cow::Owned(text.replace(' ', SPACE));
            }
            match kind {
                Kind::Spm(spm) => {
                    spm.encode(&text, &vocabulary.strings, &mut spm_scratch, &mut out);
                }
                Kind::Bpe(bpe) => bpe.encode(
                    &text,
                    &vocabulary.strings,
                    vocabulary.len(),
                    &mut bpe_scratch,
                    &mut out,
                ),
            }
        }
        if add_special && self.0.add_eos {
            out.extend(vocabulary.eos);
        }
        out
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD. Special tokens are left out
    /// unless `render_special` is set. A space that [`Tokenizer::encode`] put in front is taken
    /// away.
    pub fn decode(&self, ids: &[u32], render_special: bool) -> String {
        let mut bytes = Vec::new();
        for (index, &id) in ids.iter().enumerate() {
            let token = self.token_bytes(id, render_special);
            let strip = index == 0 && self.0.add_space && token.starts_with(b" ");
            bytes.extend_from_slice(&token[usize::from(strip)..]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Decodes tokens as they come, which are a text of their own.
    pub fn stream(&self) -> Utf8Stream {
        Utf8Stream::new(self.clone(), self.0.add_space)
    }

    /// Decodes tokens as they come, which go on with a text: a space in front is part of it.
    pub fn stream_continuation(&self) -> Utf8Stream {
        Utf8Stream::new(self.clone(), false)
    }

    /// How many tokens there are.
    pub fn vocab_size(&self) -> u32 {
        self.0.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.vocabulary.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.vocabulary.eos
    }

    /// Whether [`Tokenizer::encode`] begins with [`Tokenizer::bos`] where asked for special
    /// tokens.
    pub fn adds_bos(&self) -> bool {
        self.0.add_bos && self.bos().is_some()
    }

    /// Whether a model that gives this token is done: it ends a text, a turn or a message.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.0.vocabulary.is_end(id)
    }

    /// What a token adds to the text, which need not be whole characters. Nothing for a special
    /// token unless `render_special` is set, or for an id that is not in the vocabulary.
    pub fn token_bytes(&self, id: u32, render_special: bool) -> Cow<'_, [u8]> {
        let Shared { vocabulary, kind, escape, .. } = &*self.0;
        if id >= vocabulary.len() {
            return Cow::Borrowed(&[]);
        }
        let (text, traits) = (vocabulary.text(id), vocabulary.traits(id));
        if traits.unknown || traits.control {
            return Cow::Borrowed(if render_special { text } else { &[] });
        }
        if traits.user {
            return Cow::Borrowed(text);
        }
        if traits.byte {
            return Cow::Owned(byte(text).into_iter().collect());
        }
        match kind {
            _ if !traits.normal => Cow::Borrowed(&[]),
            Kind::Bpe(_) if !escape => Cow::Owned(bpe::decode(text)),
            Kind::Spm(_) | Kind::Bpe(_) => unescape(text),
        }
    }

    /// A token as the vocabulary has it, for lists: with U+2581 or other characters in place of
    /// spaces and bytes. Empty for an id that is not in the vocabulary.
    pub fn token_text(&self, id: u32) -> Cow<'_, str> {
        if id >= self.vocab_size() {
            return Cow::Borrowed("");
        }
        String::from_utf8_lossy(self.0.vocabulary.text(id))
    }
}

impl Shared {
    fn read(metadata: &Metadata) -> Result<Shared, TokenizerFault> {
        const MODEL: &str = "tokenizer.ggml.model";
        let model = vocabulary::read_text(metadata, MODEL)?
            .ok_or(TokenizerFault::Missing { key: MODEL })?;
        let is_spm = match model {
            "llama" => true,
            "gpt2" | "gemma4" => false,
            other => {
                let (found, known) = (other.to_owned(), MODELS.join(", "));
                return Err(TokenizerFault::Model { found, known });
            }
        };
        let mut traits = pre::Traits::default();
        let mut vocabulary;
        let kind = if is_spm {
            vocabulary = Vocabulary::read(metadata, [Some(1), Some(2), Some(0)])?;
            let scores = vocabulary::read_scores(metadata, vocabulary.len() as usize)?;
            traits.add_bos = true;
            Kind::Spm(Box::new(Spm::new(scores, &vocabulary.strings, vocabulary.unknown)))
        } else {
            let pre = find_pre(metadata, model)?;
            traits = pre.traits;
            vocabulary = Vocabulary::read(metadata, [None; 3])?;
            Kind::Bpe(Box::new(read_bpe(metadata, pre, &mut vocabulary)?))
        };
        let flag = |key, default: bool| {
            vocabulary::read_bool(metadata, key).map(|value| value.unwrap_or(default))
        };
        let special = SpecialTokens::new(&vocabulary).map_err(TokenizerFault::Special)?;
        Ok(Shared {
            special,
            kind,
            add_bos: flag("tokenizer.ggml.add_bos_token", traits.add_bos)? || traits.gemma,
            add_eos: flag("tokenizer.ggml.add_eos_token", false)?,
            // llama.cpp reads it for byte pairs too, but uses it for their text nowhere.
            add_space: is_spm && flag("tokenizer.ggml.add_space_prefix", true)?,
            escape: is_spm || traits.plain,
            vocabulary,
        })
    }
}

/// How a vocabulary of byte pairs cuts words.
fn find_pre(metadata: &Metadata, model: &str) -> Result<&'static Pre, TokenizerFault> {
    let name = match model {
        GEMMA => GEMMA,
        _ => vocabulary::read_text(metadata, "tokenizer.ggml.pre")?.unwrap_or(DEFAULT),
    };
    let named = |pre: &&Pre| pre.names.contains(&name);
    PRE_TOKENIZERS.iter().find(named).ok_or_else(|| {
        let names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        TokenizerFault::Pre { found: name.to_owned(), known: names.join(", ") }
    })
}

fn read_bpe(
    metadata: &Metadata,
    pre: &'static Pre,
    vocabulary: &mut Vocabulary,
) -> Result<Bpe, TokenizerFault> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges = vocabulary::array(metadata, MERGES, &[ValueType::String], "an array of texts")?
        .ok_or(TokenizerFault::Missing { key: MERGES })?;
    Bpe::new(pre, vocabulary::texts(merges), &mut vocabulary.strings).map_err(|bad| {
        let text = vocabulary::texts(merges).nth(bad.0).unwrap_or_default();
        TokenizerFault::Merge { index: bad.0, text: String::from_utf8_lossy(text).into_owned() }
    })
}

/// The byte that a token such as `<0x0A>` is.
fn byte(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(digits, 16).ok()
}

/// A token's text with spaces for [`SPACE`]s.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    let mut parts = memchr::memmem::find_iter(text, SPACE).peekable();
    if parts.peek().is_none() {
        return Cow::Borrowed(text);
    }
    let (mut bytes, mut done) = (Vec::with_capacity(text.len()), 0);
    for at in parts {
        bytes.extend_from_slice(&text[done..at]);
        bytes.push(b' ');
        done = at + SPACE.len();
    }
    bytes.extend_from_slice(&text[done..]);
    Cow::Owned(bytes)
}
