//! The tokens: their texts, kinds and special meanings, read from a file's metadata.

use super::error::TokenizerFault;
use super::strings::Strings;
use polylora_file::{Array, Metadata, Value, ValueType};
use std::collections::BTreeSet;

/// What kind a token is. Several may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// Stands for whatever is not in the vocabulary.
    pub(super) unknown: bool,
    /// An ordinary one.
    pub(super) normal: bool,
    /// Steers a model and is no text.
    pub(super) control: bool,
    /// Text that is always one token.
    pub(super) user: bool,
    /// One byte.
    pub(super) byte: bool,
    /// Takes white space before it along.
    pub(super) strip_left: bool,
    /// Takes white space after it along.
    pub(super) strip_right: bool,
}

/// Meanings that texts have by convention, as in llama.cpp: files seldom tell them. The first
/// token of these texts is taken where the file has no key for the meaning.
struct Meaning {
    /// Keys of the metadata, the last that is there counts.
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// Whether it ends what a model generates.
    is_end: bool,
}

const MEANINGS: &[Meaning] = &[
    Meaning {
        keys: &["tokenizer.ggml.eot_token_id"],
        texts: &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
        is_end: true,
    },
    Meaning { keys: &["tokenizer.ggml.eom_token_id"], texts: &["<|eom_id|>"], is_end: true },
    Meaning {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        is_end: false,
    },
    Meaning {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        is_end: false,
    },
    Meaning {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        is_end: false,
    },
    Meaning {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        is_end: true,
    },
    Meaning {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        is_end: true,
    },
    Meaning { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>"], is_end: true },
];

/// Texts that end what a model generates wherever a vocabulary has them, as in llama.cpp.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts that are shown to users though files call them control tokens, as in llama.cpp.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Where a vocabulary has one text of each list, an end by its text is none: lists, the end that
/// is none, and what it is instead.
const NO_ENDS: &[(&[&[&str]], &str, Traits)] = &[
    (&[&["<|return|>"], &["<|call|>", "<|calls|>"]], "<|end|>", USER),
    (&[&["<|flush|>"], &["<|call|>", "<|calls|>"]], "<|end|>", USER),
    (&[&["<|tool_response>", "<|plamo:eos|>"]], "</s>", NORMAL),
];

const NO_TRAITS: Traits = Traits {
    unknown: false,
    normal: false,
    control: false,
    user: false,
    byte: false,
    strip_left: false,
    strip_right: false,
};
const NORMAL: Traits = Traits { normal: true, ..NO_TRAITS };
const USER: Traits = Traits { user: true, ..NO_TRAITS };

/// The tokens of a model.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// The tokens' texts by their ids, then texts that only merges have.
    pub(super) strings: Strings,
    traits: Vec<Traits>,
    /// Begins a text.
    pub(super) bos: Option<u32>,
    /// Ends a text.
    pub(super) eos: Option<u32>,
    /// Stands for what has no token.
    pub(super) unknown: Option<u32>,
    ends: BTreeSet<u32>,
}

impl Vocabulary {
    /// Reads tokens and what they are; `defaults` are the ids of `bos`, `eos` and the unknown
    /// token where the file does not tell.
    pub(super) fn read(
        metadata: &Metadata,
        defaults: [Option<u32>; 3],
    ) -> Result<Vocabulary, TokenizerFault> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let tokens = array(metadata, TOKENS, &[ValueType::String], "an array of texts")?
            .ok_or(TokenizerFault::Missing { key: TOKENS })?;
        // Ids of llama.cpp are signed.
        let count = tokens.len();
        if count == 0 || i32::try_from(count).is_err() {
            return Err(TokenizerFault::Tokens(count));
        }
        let mut strings = Strings::with_capacity(count);
        for (id, text) in texts(tokens).enumerate() {
            // As in llama.cpp, so that texts are distinct.
            let empty = format!("[EMPTY_{id}]");
            let text = if text.is_empty() { empty.as_bytes() } else { text };
            let number = strings.add(text);
            if number as usize != id {
                let text = String::from_utf8_lossy(text).into_owned();
                let second = id as u32;
                return Err(TokenizerFault::Duplicate { text, first: number, second });
            }
        }
        let traits = read_traits(metadata, count)?;

        let mut vocabulary = Vocabulary {
            strings,
            traits,
            bos: None,
            eos: None,
            unknown: None,
            ends: BTreeSet::new(),
        };
        let [bos, eos, unknown] = defaults.map(|id| id.filter(|&id| (id as usize) < count));
        vocabulary.bos = read_id(metadata, "tokenizer.ggml.bos_token_id", count)?.or(bos);
        vocabulary.eos = read_id(metadata, "tokenizer.ggml.eos_token_id", count)?.or(eos);
        vocabulary.unknown =
            read_id(metadata, "tokenizer.ggml.unknown_token_id", count)?.or(unknown);
        vocabulary.find_ends(metadata)?;
        vocabulary.strip_spaces(metadata);
        Ok(vocabulary)
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> u32 {
        self.traits.len() as u32
    }

    /// The text of a token as the file has it. Ids must be below [`Vocabulary::len`].
    pub(super) fn text(&self, id: u32) -> &[u8] {
        self.strings.text(id)
    }

    pub(super) fn traits(&self, id: u32) -> Traits {
        self.traits[id as usize]
    }

    /// Whether a token ends what a model generates.
    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The token of a text.
    fn find(&self, text: &str) -> Option<u32> {
        self.strings.find(text.as_bytes()).filter(|&id| id < self.len())
    }

    fn traits_mut(&mut self, id: u32) -> &mut Traits {
        &mut self.traits[id as usize]
    }

    /// Collects the tokens that end what a model generates, by the file's keys and by texts, and
    /// corrects the kinds of tokens that are special by their texts.
    fn find_ends(&mut self, metadata: &Metadata) -> Result<(), TokenizerFault> {
        self.ends.extend(self.eos);
        for meaning in MEANINGS {
            let mut id = None;
            for key in meaning.keys {
                id = read_id(metadata, key, self.traits.len())?.or(id);
            }
            if id.is_none() {
                id = meaning.texts.iter().filter_map(|text| self.find(text)).min();
                if let Some(id) = id {
                    self.traits_mut(id).control = true;
                }
            }
            if meaning.is_end {
                self.ends.extend(id);
            }
        }
        for id in ENDS.iter().filter_map(|text| self.find(text)).collect::<Vec<_>>() {
            self.ends.insert(id);
            self.traits_mut(id).control = true;
        }
        for id in SHOWN.iter().filter_map(|text| self.find(text)).collect::<Vec<_>>() {
            *self.traits_mut(id) = USER;
        }
        for (lists, text, traits) in NO_ENDS {
            let is_end = |text: &&str| self.find(text).is_some_and(|id| self.is_end(id));
            if lists.iter().all(|texts| texts.iter().any(is_end))
                && let Some(id) = self.find(text)
                && self.ends.remove(&id)
            {
                *self.traits_mut(id) = *traits;
            }
        }
        Ok(())
    }

    /// White space beside special tokens, which files do not tell about: as llama.cpp knows some
    /// models.
    fn strip_spaces(&mut self, metadata: &Metadata) {
        let lower = |key| metadata.str(key).unwrap_or_default().to_lowercase();
        let has = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
        let name = lower("general.name");
        if has(&lower("tokenizer.ggml.pre"), &["jina-v2-de", "jina-v2-es", "jina-v2-code"]) {
            if let Some(id) = self.find("<mask>") {
                self.traits_mut(id).strip_left = true;
            }
        } else if has(&name, &["phi-3", "phi3"]) {
            let keep = ["<unk>", "<s>", "<|endoftext|>"].map(|text| self.find(text));
            for id in 0..self.len() {
                let traits = self.traits_mut(id);
                let special = traits.control || traits.user || traits.unknown;
                traits.strip_right = special && !keep.contains(&Some(id));
            }
            if let Some(id) = self.find("</s>") {
                self.traits_mut(id).strip_right = true;
            }
        } else if has(&name, &["modern-bert"])
            && let Some(id) = self.find("[MASK]")
        {
            self.traits_mut(id).strip_left = true;
        }
    }
}

/// The kinds of tokens; all are ordinary where the file does not tell.
fn read_traits(metadata: &Metadata, count: usize) -> Result<Vec<Traits>, TokenizerFault> {
    const TYPES: &str = "tokenizer.ggml.token_type";
    let Some(types) = array(metadata, TYPES, &[ValueType::I32], "an array of I32")? else {
        return Ok(vec![NORMAL; count]);
    };
    if types.len() < count {
        return Err(TokenizerFault::Count { key: TYPES, found: types.len(), tokens: count });
    }
    let traits = |ty: Value| match ty {
        Value::I32(1) => NORMAL,
        Value::I32(2) => Traits { unknown: true, ..NO_TRAITS },
        Value::I32(3) => Traits { control: true, ..NO_TRAITS },
        Value::I32(4) => USER,
        Value::I32(6) => Traits { byte: true, ..NO_TRAITS },
        // 5 is unused; others are not defined.
        _ => NO_TRAITS,
    };
    Ok(types.iter().take(count).map(traits).collect())
}

/// The scores of tokens; all are equal where the file does not tell.
pub(super) fn read_scores(metadata: &Metadata, count: usize) -> Result<Vec<f32>, TokenizerFault> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let types = [ValueType::F32, ValueType::I32];
    let Some(scores) = array(metadata, SCORES, &types, "an array of F32 or I32")? else {
        return Ok(vec![0.0; count]);
    };
    if scores.len() < count {
        return Err(TokenizerFault::Count { key: SCORES, found: scores.len(), tokens: count });
    }
    let score = |score: Value| match score {
        Value::I32(score) => score as f32,
        other => other.as_f32().unwrap_or(f32::NAN),
    };
    let scores: Vec<f32> = scores.iter().take(count).map(score).collect();
    match scores.iter().position(|score| score.is_nan()) {
        Some(id) => Err(TokenizerFault::Score(id)),
        None => Ok(scores),
    }
}

/// The array of a key, where the key is there.
pub(super) fn array<'a>(
    metadata: &'a Metadata,
    key: &'static str,
    types: &[ValueType],
    wanted: &'static str,
) -> Result<Option<&'a Array>, TokenizerFault> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(array)) if types.contains(&array.ty()) => Ok(Some(array)),
        Some(_) => Err(TokenizerFault::Type { key, wanted }),
    }
}

/// The elements of an array of texts.
pub(super) fn texts(array: &Array) -> impl Iterator<Item = &[u8]> {
    array.strings().into_iter().flatten()
}

/// The text of a key, where the key is there.
pub(super) fn read_text<'a>(
    metadata: &'a Metadata,
    key: &'static str,
) -> Result<Option<&'a str>, TokenizerFault> {
    let text = |value: &'a Value| value.as_str();
    let read = |value| text(value).ok_or(TokenizerFault::Type { key, wanted: "a text" });
    metadata.get(key).map(read).transpose()
}

/// The truth of a key, where the key is there.
pub(super) fn read_bool(
    metadata: &Metadata,
    key: &'static str,
) -> Result<Option<bool>, TokenizerFault> {
    match metadata.get(key) {
        None => Ok(None),
        Some(&Value::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(TokenizerFault::Type { key, wanted: "true or false" }),
    }
}

/// The token id of a key, where the key is there. Some converters write -1 for none.
fn read_id(
    metadata: &Metadata,
    key: &'static str,
    tokens: usize,
) -> Result<Option<u32>, TokenizerFault> {
    match metadata.get(key) {
        None | Some(Value::U32(u32::MAX) | Value::I32(-1)) => Ok(None),
        Some(value) => {
            let id = value.as_u64().ok_or(TokenizerFault::Type { key, wanted: "a token id" })?;
            match u32::try_from(id) {
                Ok(short) if id < tokens as u64 => Ok(Some(short)),
                _ => Err(TokenizerFault::Id { key, id, tokens }),
            }
        }
    }
}
