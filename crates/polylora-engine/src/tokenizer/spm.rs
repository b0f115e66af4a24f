//! SentencePiece: characters are merged as long as that gives a token, those of the highest score
//! first.

use super::strings::Strings;
use hashbrown::HashSet;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What a space is in these vocabularies: U+2581.
pub(super) const SPACE: &str = "\u{2581}";

/// No other symbol.
const END: usize = usize::MAX;

/// A vocabulary of SentencePiece.
#[derive(Debug)]
pub(super) struct Spm {
    /// Of each token; none is a NaN.
    scores: Vec<f32>,
    /// The token of each byte of a character that has none.
    byte_tokens: [Option<u32>; 256],
    /// Bytes of the longest token.
    longest: usize,
    /// The characters that some token has before a space. Behind all others a space begins what
    /// can be merged for itself, which keeps the queue short.
    before_space: HashSet<char>,
}

impl Spm {
    /// Of each token's score. `unknown` stands for bytes that have no token.
    pub(super) fn new(scores: Vec<f32>, strings: &Strings, unknown: Option<u32>) -> Spm {
        let mut before_space = HashSet::new();
        let mut longest = 0;
        for id in 0..strings.len() as u32 {
            let token = strings.text(id);
            longest = longest.max(token.len());
            // Others cannot be in text.
            let Ok(token) = std::str::from_utf8(token) else { continue };
            for (space, _) in token.match_indices(SPACE) {
                before_space.extend(token[..space].chars().next_back());
            }
        }
        Spm {
            scores,
            byte_tokens: std::array::from_fn(|byte| {
                let named = strings.find(format!("<0x{byte:02X}>").as_bytes());
                named.or_else(|| strings.find(&[byte as u8])).or(unknown)
            }),
            longest,
            before_space,
        }
    }

    /// Appends the tokens of a text without special ones, whose spaces are [`SPACE`]s.
    pub(super) fn encode(
        &self,
        text: &str,
        strings: &Strings,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut start = 0;
        for (space, _) in text.match_indices(SPACE) {
            let before = text[start..space].chars().next_back();
            if before.is_some_and(|char| !self.before_space.contains(&char)) {
                self.encode_part(&text[start..space], strings, scratch, out);
                start = space;
            }
        }
        self.encode_part(&text[start..], strings, scratch, out);
    }

    fn encode_part(
        &self,
        text: &str,
        strings: &Strings,
        Scratch { symbols, queue }: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        symbols.clear();
        symbols.extend(text.char_indices().enumerate().map(|(index, (start, char))| Symbol {
            start,
            end: start + char.len_utf8(),
            before: index.checked_sub(1).unwrap_or(END),
            after: index + 1,
        }));
        let Some(last) = symbols.last_mut() else { return };
        last.after = END;

        let candidate = |symbols: &[Symbol], left: usize| {
            let (start, end) = (symbols[left].start, symbols[symbols[left].after].end);
            if end - start > self.longest {
                return None;
            }
            let id = strings.find(&text.as_bytes()[start..end])?;
            let score = Score(self.scores[id as usize]);
            Some(Candidate { score, left: Reverse(left), end })
        };
        queue.clear();
        queue.extend((1..symbols.len()).filter_map(|right| candidate(symbols, right - 1)));
        while let Some(Candidate { left: Reverse(left), end, .. }) = queue.pop() {
            // Either of the two may have been merged with another since: an empty symbol is gone.
            let Symbol { start, end: middle, before, after: right } = symbols[left];
            if start == middle || right == END || symbols[right].end != end {
                continue;
            }
            let after = symbols[right].after;
            symbols[right].end = symbols[right].start;
            symbols[left].end = end;
            symbols[left].after = after;
            if after != END {
                symbols[after].before = left;
                queue.extend(candidate(symbols, left));
            }
            if before != END {
                queue.extend(candidate(symbols, before));
            }
        }
        for Symbol { start, end, .. } in symbols.iter().filter(|it| it.start < it.end) {
            let bytes = &text.as_bytes()[*start..*end];
            match strings.find(bytes) {
                Some(id) => out.push(id),
                None => {
                    out.extend(bytes.iter().filter_map(|&byte| self.byte_tokens[byte as usize]));
                }
            }
        }
    }
}

/// What merging needs, to be used again for the next text.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

/// A part of the text.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    end: usize,
    /// The one before it, or [`END`].
    before: usize,
    /// The one after it, or [`END`].
    after: usize,
}

/// Two neighbours that together are a token; ordered by what is merged last.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    score: Score,
    left: Reverse<usize>,
    /// Where the right one ends.
    end: usize,
}

/// A number that is not a NaN.
#[derive(Debug, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Score) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Score) -> Ordering {
        self.0.partial_cmp(&other.0).expect("no NaN is loaded")
    }
}
