//! Finds special tokens in text, before the rest is cut into words.

use super::vocabulary::Vocabulary;
use aho_corasick::AhoCorasick;
use memchr::memmem;
use std::ops::Range;

/// A part of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Fragment {
    /// Text, of which there is some.
    Text(Range<usize>),
    /// A special token.
    Token(u32),
}

/// The special tokens of a vocabulary, to be found in text.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// Longest first, then by id.
    tokens: Vec<Special>,
    /// Finds which of them a text has; by their places in `tokens`.
    any: AhoCorasick,
}

#[derive(Debug)]
struct Special {
    id: u32,
    /// Whether it is text to a user: found where special tokens are not to be parsed, too.
    is_text: bool,
    strip_left: bool,
    strip_right: bool,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<SpecialTokens, aho_corasick::BuildError> {
        let special = |id: &u32| {
            let traits = vocabulary.traits(*id);
            // Others cannot be in text; and might be found within a character.
            (traits.unknown || traits.control || traits.user)
                && std::str::from_utf8(vocabulary.text(*id)).is_ok()
        };
        let mut ids: Vec<u32> = (0..vocabulary.len()).filter(special).collect();
        ids.sort_by_key(|&id| std::cmp::Reverse(vocabulary.text(id).len()));
        let any = AhoCorasick::new(ids.iter().map(|&id| vocabulary.text(id)))?;
        let tokens = ids.into_iter().map(|id| {
            let traits = vocabulary.traits(id);
            Special {
                id,
                is_text: !traits.unknown && !traits.control,
                strip_left: traits.strip_left,
                strip_right: traits.strip_right,
            }
        });
        Ok(SpecialTokens { tokens: tokens.collect(), any })
    }

    /// Cuts `text` at special tokens: at all of the longest first, wherever they are, then at
    /// those of the next in what is left. Without `parse`, only at those that are text to a user.
    pub(super) fn cut(&self, text: &str, parse: bool, vocabulary: &Vocabulary) -> Vec<Fragment> {
        let mut found: Vec<usize> = Vec::new();
        let mut seen = vec![false; self.tokens.len()];
        for hit in self.any.find_overlapping_iter(text) {
            let index = hit.pattern().as_usize();
            if !seen[index] && (parse || self.tokens[index].is_text) {
                seen[index] = true;
                found.push(index);
            }
        }
        found.sort_unstable();

        let mut fragments = Vec::new();
        push_text(&mut fragments, 0..text.len());
        for index in found {
            let special = &self.tokens[index];
            let finder = memmem::Finder::new(vocabulary.text(special.id));
            let before = std::mem::take(&mut fragments);
            for fragment in before {
                match fragment {
                    Fragment::Token(_) => fragments.push(fragment),
                    Fragment::Text(range) => special.cut(&finder, text, range, &mut fragments),
                }
            }
        }
        fragments
    }
}

impl Special {
    /// Appends the fragments of a part of the text.
    fn cut(
        &self,
        finder: &memmem::Finder<'_>,
        text: &str,
        mut range: Range<usize>,
        out: &mut Vec<Fragment>,
    ) {
        let bytes = text.as_bytes();
        while let Some(at) = finder.find(&bytes[range.clone()]) {
            let (start, end) = (range.start + at, range.start + at + finder.needle().len());
            let mut left = range.start..start;
            if self.strip_left {
                left.end -= count(bytes[left.clone()].iter().rev());
            }
            push_text(out, left);
            out.push(Fragment::Token(self.id));
            range.start = end;
            if self.strip_right {
                range.start += count(bytes[range.clone()].iter());
            }
        }
        push_text(out, range);
    }
}

/// How many of the first bytes are white space, as C has it.
fn count<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes.take_while(|byte| matches!(byte, b' ' | b'\t'..=b'\r')).count()
}

fn push_text(out: &mut Vec<Fragment>, range: Range<usize>) {
    if !range.is_empty() {
        out.push(Fragment::Text(range));
    }
}
