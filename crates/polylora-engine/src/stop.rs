//! Stop strings in text that comes piece by piece.

/// Looks for stop strings, and holds text back while it may still become one.
///
/// How the text is cut into pieces makes no difference: of several stop strings the one that is
/// complete first ends the text, of those complete at the same character the one that began
/// first.
///
/// ```
/// # use polylora_engine::StopStrings;
/// let mut stops = StopStrings::new(vec!["\nUser:".into()])?;
/// assert_eq!(stops.push("Hello.\nUs").text, "Hello.");
/// let last = stops.push("er: and more");
/// assert_eq!((&*last.text, last.stopped), ("", Some(0)));
/// # Ok::<(), polylora_engine::EmptyStop>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Not emitted yet: it begins a stop string, or is one.
    held: String,
    stopped: Option<usize>,
}

/// What may be passed on after a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Text that surely belongs to no stop string; may be empty.
    pub text: String,
    /// Which of the stop strings ended the text, by its place in the list. Neither it nor anything
    /// after it is ever emitted.
    pub stopped: Option<usize>,
}

/// A stop string of no characters, which every text would contain at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stop string {0} is empty: leave it out, or give at least one character")]
pub struct EmptyStop(
    /// Its place in the list, from 0.
    pub usize,
);

impl StopStrings {
    /// Looks for `stops`, of which none may be empty; no stops at all are fine.
    pub fn new(stops: Vec<String>) -> Result<StopStrings, EmptyStop> {
        match stops.iter().position(String::is_empty) {
            Some(empty) => Err(EmptyStop(empty)),
            None => Ok(StopStrings { stops, held: String::new(), stopped: None }),
        }
    }

    /// Takes the next piece of text. After a stop, nothing more comes out.
    pub fn push(&mut self, text: &str) -> Emitted {
        if self.stopped.is_some() {
            return Emitted { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(text);

        let found = self.stops.iter().enumerate().filter_map(|(which, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, which))
        });
        if let Some((_, start, which)) = found.min() {
            self.stopped = Some(which);
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Emitted { text, stopped: self.stopped };
        }

        let kept = self.held.split_off(self.surely_text());
        Emitted { text: std::mem::replace(&mut self.held, kept), stopped: None }
    }

    /// The end of the text: what was held back, as no stop string came of it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// How many bytes of the held text come before anything that begins a stop string.
    fn surely_text(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = (self.held.len() + 1).saturating_sub(longest);
        (earliest..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| {
                let rest = &self.held[start..];
                self.stops.iter().any(|stop| stop.starts_with(rest))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes out when `pieces` go in, and what stopped it.
    fn run<'a>(
        stops: &[&str],
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, Option<usize>) {
        let mut stops = StopStrings::new(stops.iter().map(|s| s.to_string()).collect()).unwrap();
        let mut out = String::new();
        let mut stopped = None;
        for piece in pieces {
            let emitted = stops.push(piece);
            out += &emitted.text;
            stopped = emitted.stopped;
        }
        (out + &stops.finish(), stopped)
    }

    #[test]
    fn text_is_held_back_only_while_it_may_become_a_stop() {
        let mut stops = StopStrings::new(vec!["<end>".into()]).unwrap();
        let mut texts = Vec::new();
        for piece in ["a<", "e", "<en", "x", "<end", ">b"] {
            texts.push(stops.push(piece).text);
        }
        assert_eq!(texts, ["a", "", "<e", "<enx", "", ""]);
        assert_eq!(stops.push("more"), Emitted { text: String::new(), stopped: Some(0) });
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn the_end_releases_what_was_held() {
        assert_eq!(run(&["<end>"], ["a<en"]), ("a<en".into(), None));
        assert_eq!(run(&[], ["a", "b"]), ("ab".into(), None));
    }

    #[test]
    fn pieces_make_no_difference() {
        // Overlapping stops, one inside another, one that begins like another, repeated beginnings,
        // and characters of two to four bytes that share their first.
        let cases: &[(&[&str], &str, &str, Option<usize>)] = &[
            (&["abcd", "bc"], "xabcd", "xa", Some(1)),
            (&["bc", "abc"], "xabc", "x", Some(1)),
            (&["abc", "ab"], "xabc", "x", Some(1)),
            (&["aab"], "aaaab", "aa", Some(0)),
            (&["abab!"], "abababab!", "abab", Some(0)),
            (&["b", "a"], "xab", "x", Some(1)),
            (&["é!", "ê"], "caféé!", "café", Some(0)),
            (&["é!", "ê"], "caféxê", "caféx", Some(1)),
            (&["🙂🙃"], "a🙂🙂🙃", "a🙂", Some(0)),
            (&["🙂🙃"], "a🙂🙂", "a🙂🙂", None),
            (&["\n\n"], "one\ntwo\n\nthree", "one\ntwo", Some(0)),
        ];
        for &(stops, text, expected, stopped) in cases {
            let expected = (expected.to_string(), stopped);
            assert_eq!(run(stops, [text]), expected, "{text} at once");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(run(stops, chars.iter().map(|c| &**c)), expected, "{text} by characters");
            for (cut, _) in text.char_indices() {
                let (a, b) = text.split_at(cut);
                assert_eq!(run(stops, [a, "", b]), expected, "{a} and {b}");
            }
        }
    }

    #[test]
    fn an_empty_stop_is_refused() {
        let error = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
        assert_eq!(error, EmptyStop(1));
    }
}
