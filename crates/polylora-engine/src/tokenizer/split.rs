//! Cuts text into words, within which byte pairs are merged.

use super::pre::Step;
use regex::Regex;
use std::ops::Range;

/// The lookahead that the vocabularies' expressions have in common: white space leaves its last
/// character to the word that follows. An engine without lookahead is many times as fast, so what
/// it means is done here.
const LEAVES_LAST: &str = r"|\s+(?!\S)";

/// llama.cpp's tables of characters are of this version of Unicode; later characters are of no
/// kind.
const AGE: &str = r"\p{Age:15.1}";

/// The steps of one way, ready to run.
#[derive(Debug)]
pub(super) struct Splitter {
    steps: Vec<Run>,
}

#[derive(Debug)]
enum Run {
    Match {
        regex: Regex,
        /// Whether white space leaves its last character to the word that follows.
        leaves_last: bool,
        /// Whether white space that ends with a newline is a match of its own, and leaves none.
        keeps_newline: bool,
    },
    Thousands,
    GroupedNumbers(Regex),
    PowersOfTwo,
}

impl Splitter {
    pub(super) fn new(steps: &[Step]) -> Splitter {
        Splitter { steps: steps.iter().map(Run::new).collect() }
    }

    /// Cuts `text` into `words`, which together are all of it. `other` is for its use.
    pub(super) fn split(
        &self,
        text: &str,
        words: &mut Vec<Range<usize>>,
        other: &mut Vec<Range<usize>>,
    ) {
        words.clear();
        words.push(0..text.len());
        for step in &self.steps {
            other.clear();
            for piece in words.drain(..) {
                let start = piece.start;
                step.cut(&text[piece], |from, to| {
                    if from < to {
                        other.push(start + from..start + to);
                    }
                });
            }
            std::mem::swap(words, other);
        }
    }
}

impl Run {
    fn new(step: &Step) -> Run {
        match step {
            Step::Match(pattern) => {
                let leaves_last = pattern.contains(LEAVES_LAST);
                let keeps_newline = pattern.contains(r"\s*[\r\n]");
                let mut pattern = pattern.replace(LEAVES_LAST, "");
                // Where this is not there, a single one is between matches.
                if leaves_last && !pattern.ends_with(r"|\s+") {
                    pattern.push_str(r"|\s+");
                }
                Run::Match { regex: regex(&pattern), leaves_last, keeps_newline }
            }
            Step::Thousands => Run::Thousands,
            Step::GroupedNumbers => Run::GroupedNumbers(regex(r"\p{N}+")),
            Step::PowersOfTwo => Run::PowersOfTwo,
        }
    }

    /// Calls `add` with the place of each part of `piece`, in order; with empty ones too.
    fn cut(&self, piece: &str, mut add: impl FnMut(usize, usize)) {
        let mut done = 0;
        match self {
            Run::Match { regex, leaves_last, keeps_newline } => {
                while let Some(found) = regex.find_at(piece, done) {
                    add(done, found.start());
                    let mut end = found.end();
                    if *leaves_last && end < piece.len() {
                        end -= left_over(found.as_str(), *keeps_newline);
                    }
                    add(found.start(), end);
                    done = end;
                }
            }
            Run::Thousands => {
                let bytes = piece.as_bytes();
                for run in digit_runs(bytes) {
                    add(done, run.start);
                    done = run.start;
                    while done < run.end {
                        let end = done + first_group(run.end - done);
                        add(done, end);
                        done = end;
                    }
                }
            }
            Run::GroupedNumbers(regex) => {
                for run in regex.find_iter(piece) {
                    let total = run.as_str().chars().count();
                    let first = first_group(total);
                    for (index, (at, _)) in run.as_str().char_indices().enumerate() {
                        // The first group takes along what stands before the run.
                        if index >= first && (index - first).is_multiple_of(3) {
                            add(done, run.start() + at);
                            done = run.start() + at;
                        }
                    }
                    add(done, run.end());
                    done = run.end();
                }
            }
            Run::PowersOfTwo => {
                let spaces = piece.chars().all(char::is_whitespace);
                if spaces && !piece.ends_with(['\r', '\n']) {
                    let ends: Vec<usize> =
                        piece.char_indices().map(|(at, char)| at + char.len_utf8()).collect();
                    let mut left = &ends[..];
                    while !left.is_empty() {
                        let count = 1 << left.len().ilog2().min(9);
                        add(done, left[count - 1]);
                        done = left[count - 1];
                        left = &left[count..];
                    }
                }
            }
        }
        add(done, piece.len());
    }
}

/// Bytes that a match leaves where a word follows: the last character of two or more of white
/// space. In all expressions a match of something else has at most one at its beginning.
fn left_over(found: &str, keeps_newline: bool) -> usize {
    let mut chars = found.chars();
    let [Some(first), Some(second)] = [chars.next(), chars.next()] else { return 0 };
    let last = chars.next_back().unwrap_or(second);
    let newline = keeps_newline && matches!(last, '\r' | '\n');
    if first.is_whitespace() && second.is_whitespace() && !newline { last.len_utf8() } else { 0 }
}

/// How many of so many digits come first, so that whole groups of three follow.
fn first_group(digits: usize) -> usize {
    match digits % 3 {
        0 => 3,
        rest => rest,
    }
}

fn digit_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
        let length = bytes[start..].iter().position(|byte| !byte.is_ascii_digit());
        at = length.map_or(bytes.len(), |length| start + length);
        Some(start..at)
    })
}

/// The expression with llama.cpp's kinds of characters.
fn regex(pattern: &str) -> Regex {
    let mut pattern = pattern.to_owned();
    for kind in ["L", "M", "N", "P", "S"] {
        let kind = format!(r"\p{{{kind}}}");
        pattern = pattern.replace(&kind, &format!("[{kind}&&{AGE}]"));
    }
    Regex::new(&pattern).expect("the tests compile every expression")
}

#[cfg(test)]
mod tests {
    use super::super::pre::{PRE_TOKENIZERS, Pre};
    use super::*;

    fn words<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let named = |pre: &&Pre| pre.names.contains(&name);
        let pre = PRE_TOKENIZERS.iter().find(named).expect("a known name");
        let (mut words, mut other) = (Vec::new(), Vec::new());
        Splitter::new(pre.steps).split(text, &mut words, &mut other);
        words.into_iter().map(|word| &text[word]).collect()
    }

    #[test]
    fn every_way_keeps_all_of_the_text() {
        let text = "I'm 12345,  x\u{3000}\r\n\n ÄÖ'S 漢字かな, é\u{301} \u{1E5D0}\u{10D40}1 \t ";
        for name in PRE_TOKENIZERS.iter().flat_map(|pre| pre.names) {
            assert_eq!(words(name, text).concat(), text, "{name}");
            assert!(words(name, "").is_empty(), "{name}");
        }
    }

    #[test]
    fn white_space_leaves_its_last_character_to_a_word() {
        assert_eq!(words("gpt-2", "a  b \n c  "), ["a", " ", " b", " \n", " c", "  "]);
        assert_eq!(
            words("llama3", "a  b \n  c\n\n\nd  "),
            ["a", " ", " b", " \n", " ", " c", "\n\n\n", "d", "  "]
        );
        assert_eq!(words("gpt-2", "a\n\n\nd"), ["a", "\n\n", "\n", "d"]);
    }

    #[test]
    fn numbers_are_grouped_from_the_right() {
        assert_eq!(words("superbpe", "1234567 12"), ["1", "234", "567", " ", "12"]);
        assert_eq!(words("afmoe", "1234567"), ["1", "234", "567"]);
        // As llama.cpp does, not as the model was trained.
        assert_eq!(words("tiny_aya", "$1234"), ["$", "1", "234"]);
    }

    #[test]
    fn white_space_falls_into_powers_of_two() {
        let text = format!("a{}b", " ".repeat(700));
        let lengths: Vec<usize> = words("jais-2", &text).iter().map(|word| word.len()).collect();
        assert_eq!(lengths, [1, 512, 128, 32, 16, 8, 2, 1, 2]);
    }

    #[test]
    fn characters_later_than_llama_cpp_s_tables_are_no_letters() {
        assert_eq!(words("gpt-2", "a\u{1E5D0}b"), ["a", "\u{1E5D0}", "b"]);
        assert_eq!(words("gpt-2", "a\u{1E4D0}b"), ["a\u{1E4D0}b"]);
    }
}
