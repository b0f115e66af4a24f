//! Byte pairs: words are cut into bytes or characters, which are merged in the order of a list.

use super::pre::Pre;
use super::split::Splitter;
use super::strings::Strings;
use hashbrown::HashMap;
use rayon::prelude::*;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// The character that stands for each byte in a vocabulary of byte pairs, as GPT-2 has it: itself
/// where it can be seen, else the next from U+0100.
const BYTE_CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        chars[byte] = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => byte as u8 as char,
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("below U+0144")
            }
        };
        byte += 1;
    }
    chars
};

/// The byte that a character stands for.
fn char_byte(char: char) -> Option<u8> {
    match char as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes that a token's text stands for; what stands for no byte is itself.
pub(super) fn decode(text: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(text) else { return text.to_vec() };
    let mut bytes = Vec::with_capacity(text.len());
    for char in text.chars() {
        match char_byte(char) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// What stands for a text that neither is a token nor takes part in a merge.
const UNKNOWN: u32 = u32::MAX;

/// What stands for a symbol that was merged into the one before it.
const MERGED: u32 = u32::MAX - 1;

/// No other symbol.
const END: usize = usize::MAX;

/// A merge of two texts, by their numbers.
#[derive(Clone, Copy, Debug)]
struct Merge {
    /// Its place in the list; lower ones come first.
    rank: u32,
    /// The number of the text that comes of it.
    whole: u32,
}

/// A vocabulary of byte pairs.
#[derive(Debug)]
pub(super) struct Bpe {
    merges: HashMap<(u32, u32), Merge>,
    splitter: Splitter,
    pre: &'static Pre,
    /// The number of each byte's character.
    byte_chars: [u32; 256],
    /// The token of a byte that nothing else stands for.
    byte_tokens: [Option<u32>; 256],
}

/// A merge whose text is not a pair: its place in the list.
pub(super) struct NoPair(pub(super) usize);

/// The two texts of a merge, and what they give together.
fn parts(merge: &[u8]) -> Option<[Cow<'_, [u8]>; 3]> {
    // The first may itself begin with a space.
    let space = merge.iter().skip(1).position(|&byte| byte == b' ')? + 1;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    Some([left.into(), right.into(), [left, right].concat().into()])
}

impl Bpe {
    /// Of a list of merges, each two texts with a space between; adds the texts that are no
    /// tokens to `strings`, which holds the tokens.
    pub(super) fn new<'a>(
        pre: &'static Pre,
        merges: impl Iterator<Item = &'a [u8]>,
        strings: &mut Strings,
    ) -> Result<Bpe, NoPair> {
        let tokens = strings.len();
        let merges: Vec<&[u8]> = merges.collect();
        // Looking up takes nearly all of the time, and nearly all is there.
        let found: Vec<_> = merges
            .par_iter()
            .enumerate()
            .map(|(index, merge)| {
                let texts = parts(merge).ok_or(NoPair(index))?;
                Ok(texts.map(|text| strings.find(&text)))
            })
            .collect::<Result<_, NoPair>>()?;
        let mut ranks = HashMap::with_capacity(merges.len());
        for (index, (merge, numbers)) in merges.into_iter().zip(found).enumerate() {
            let [left, right, whole] = match numbers {
                [Some(left), Some(right), Some(whole)] => [left, right, whole],
                _ => parts(merge).ok_or(NoPair(index))?.map(|text| strings.add(&text)),
            };
            let rank = u32::try_from(index).map_err(|_| NoPair(index))?;
            ranks.entry((left, right)).or_insert(Merge { rank, whole });
        }
        let number = |text: &[u8]| strings.find(text).unwrap_or(UNKNOWN);
        let token = |text: &[u8]| strings.find(text).filter(|&id| (id as usize) < tokens);
        Ok(Bpe {
            merges: ranks,
            splitter: Splitter::new(pre.steps),
            pre,
            byte_chars: BYTE_CHARS.map(|char| number(char.encode_utf8(&mut [0; 4]).as_bytes())),
            byte_tokens: std::array::from_fn(|byte| {
                if pre.traits.plain {
                    token(format!("<0x{byte:02X}>").as_bytes())
                } else {
                    token(&[byte as u8])
                }
            }),
        })
    }

    /// Appends the tokens of a text without special ones. `tokens` is how many of `strings` are
    /// tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        strings: &Strings,
        tokens: u32,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let Scratch { words, other, word, symbols, queue } = scratch;
        self.splitter.split(text, words, other);
        for range in words.iter() {
            self.fill(&text[range.clone()], strings, word, symbols);
            let traits = self.pre.traits;
            let newlines = traits.gemma && word.iter().all(|&byte| byte == b'\n');
            if (traits.whole_words || newlines)
                && let Some(id) = strings.find(word).filter(|&id| id < tokens)
            {
                out.push(id);
                continue;
            }
            self.merge(symbols, queue);
            for symbol in symbols.iter().filter(|symbol| symbol.number != MERGED) {
                if symbol.number < tokens {
                    out.push(symbol.number);
                } else {
                    // As in llama.cpp, what has no token is left out.
                    let bytes = word[symbol.text.clone()].iter();
                    out.extend(bytes.filter_map(|&byte| self.byte_tokens[byte as usize]));
                }
            }
        }
    }

    /// A word as the vocabulary writes it, and its symbols: bytes or characters.
    fn fill(&self, text: &str, strings: &Strings, word: &mut Vec<u8>, symbols: &mut Vec<Symbol>) {
        word.clear();
        symbols.clear();
        let mut add = |number: Option<u32>, char: char| {
            let start = word.len();
            word.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            let number = number.or_else(|| strings.find(&word[start..])).unwrap_or(UNKNOWN);
            let index = symbols.len();
            let before = index.checked_sub(1).unwrap_or(END);
            symbols.push(Symbol { number, text: start..word.len(), before, after: index + 1 });
        };
        if self.pre.traits.plain {
            text.chars().for_each(|char| add(None, char));
        } else {
            for byte in text.bytes() {
                add(Some(self.byte_chars[byte as usize]), BYTE_CHARS[byte as usize]);
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.after = END;
        }
    }

    /// Merges symbols, always the two whose merge comes first in the list, of equal ones the
    /// first in the word, until none is in the list.
    fn merge(&self, symbols: &mut [Symbol], queue: &mut BinaryHeap<Reverse<Candidate>>) {
        let candidate = |symbols: &[Symbol], left: usize| {
            let pair = (symbols[left].number, symbols[symbols[left].after].number);
            let &Merge { rank, whole } = self.merges.get(&pair)?;
            Some(Reverse(Candidate { rank, left, pair, whole }))
        };
        queue.clear();
        queue.extend((1..symbols.len()).filter_map(|right| candidate(symbols, right - 1)));
        while let Some(Reverse(Candidate { left, pair, whole, .. })) = queue.pop() {
            // Either of the two may have been merged with another since.
            let right = symbols[left].after;
            if symbols[left].number != pair.0 || right == END || symbols[right].number != pair.1 {
                continue;
            }
            let after = symbols[right].after;
            symbols[right].number = MERGED;
            symbols[left].number = whole;
            symbols[left].text.end = symbols[right].text.end;
            symbols[left].after = after;
            if after != END {
                symbols[after].before = left;
                queue.extend(candidate(symbols, left));
            }
            let before = symbols[left].before;
            if before != END {
                queue.extend(candidate(symbols, before));
            }
        }
    }
}

/// A part of a word.
#[derive(Debug)]
struct Symbol {
    /// The number of its text, [`UNKNOWN`] or [`MERGED`].
    number: u32,
    /// Its place in the word.
    text: Range<usize>,
    /// The one before it, or [`END`].
    before: usize,
    /// The one after it, or [`END`].
    after: usize,
}

/// Two neighbours that can be merged; ordered by what is merged first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    /// The numbers of both texts.
    pair: (u32, u32),
    whole: u32,
}

/// What merging needs, to be used again for the next text.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    words: Vec<Range<usize>>,
    other: Vec<Range<usize>>,
    word: Vec<u8>,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_and_every_character_its_byte() {
        for byte in 0..=255u8 {
            assert_eq!(char_byte(BYTE_CHARS[byte as usize]), Some(byte));
        }
        let bytes = ('\0'..=char::MAX).filter_map(char_byte);
        assert_eq!(bytes.count(), 256);
        assert_eq!(BYTE_CHARS[b' ' as usize], 'Ġ');
        assert_eq!(decode("Ġé漢".as_bytes()), b" \xE9\xE6\xBC\xA2");
        assert_eq!(decode(b"\xFF"), b"\xFF");
    }
}
