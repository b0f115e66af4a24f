//! How models write the functions that they call: one row for each manner.
//!
//! A chat template shows a model its tools, and models answer in the form that they were trained
//! on. Which form that is, the template tells by the marks that it writes around earlier calls.

use serde_json::{Value, json};

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// A JSON schema of its arguments.
    pub(crate) parameters: Value,
}

/// A manner of writing calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manner {
    /// What the template's source holds.
    sign: &'static str,
    /// What comes before a call. Some vocabularies have a token for it which is no text, so it may
    /// be missing where [`Manner::opens_with`] tells.
    begin: &'static str,
    /// What comes after it; empty where it goes on to the end.
    end: &'static str,
    /// What an answer that is nothing but calls may begin with instead; empty: with nothing.
    opens_with: &'static str,
    /// The name of the arguments.
    arguments: &'static str,
    /// Whether calls stand in a list.
    is_list: bool,
}

/// Of which the first that fits counts.
const MANNERS: &[Manner] = &[
    // Hermes, Qwen: <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>
    Manner {
        sign: "<tool_call>",
        begin: "<tool_call>",
        end: "</tool_call>",
        opens_with: "",
        arguments: "arguments",
        is_list: false,
    },
    // Mistral: [TOOL_CALLS] [{"name": "f", "arguments": {}}]
    Manner {
        sign: "[TOOL_CALLS]",
        begin: "[TOOL_CALLS]",
        end: "",
        opens_with: "[",
        arguments: "arguments",
        is_list: true,
    },
    // Llama 3.1 and later: <|python_tag|>{"name": "f", "parameters": {}}
    Manner {
        sign: "\"parameters\": ",
        begin: "<|python_tag|>",
        end: "",
        opens_with: "{",
        arguments: "parameters",
        is_list: false,
    },
];

impl Manner {
    /// The manner of a chat template; none where it knows no tools, or none that is known here.
    pub(crate) fn of_template(source: &str) -> Option<&'static Manner> {
        let knows_tools = source.contains("tools");
        MANNERS.iter().find(|manner| knows_tools && source.contains(manner.sign))
    }

    /// What comes before a call that is not the model's choice: it goes on from there.
    pub(crate) fn prefix(&self) -> &'static str {
        // Where a call may stand alone it is simplest.
        if self.opens_with.is_empty() || self.is_list { self.begin } else { "" }
    }

    /// A JSON schema of what follows the prefix where one of `tools` must be called.
    pub(crate) fn schema(&self, tools: &[Tool]) -> Value {
        let calls: Vec<Value> = tools.iter().map(|tool| self.call_schema(tool)).collect();
        let call = json!({ "anyOf": calls });
        match self.is_list {
            true => json!({ "type": "array", "minItems": 1, "maxItems": 1, "items": call }),
            false => call,
        }
    }

    fn call_schema(&self, tool: &Tool) -> Value {
        let properties = json!({
            "name": { "const": tool.name },
            self.arguments: tool.parameters,
        });
        json!({
            "type": "object",
            "properties": properties,
            "required": ["name", self.arguments],
            "additionalProperties": false,
        })
    }

    /// The calls in a text that is nothing else; none where it is something else.
    fn calls(&self, text: &str) -> Option<Vec<Piece>> {
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let calls = match value {
            Value::Array(calls) if self.is_list => calls,
            call => vec![call],
        };
        let call = |call: Value| {
            let name = call.get("name")?.as_str()?.to_owned();
            let arguments = call.get(self.arguments)?;
            let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
            Some(Piece::Call { name, arguments })
        };
        calls.into_iter().map(call).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty())
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Call {
        name: String,
        /// JSON.
        arguments: String,
    },
}

/// Finds the calls in an answer, as it comes. How it is cut makes no difference.
pub(crate) struct Reader {
    manner: &'static Manner,
    held: String,
    /// Whether `held` is a call, what comes before it left out.
    is_call: bool,
    /// Whether nothing but space has come so far.
    is_start: bool,
}

impl Reader {
    /// Of an answer that may hold calls.
    pub(crate) fn new(manner: &'static Manner) -> Reader {
        Reader { manner, held: String::new(), is_call: false, is_start: true }
    }

    /// Of an answer that goes on after [`Manner::prefix`].
    pub(crate) fn forced(manner: &'static Manner) -> Reader {
        Reader { is_call: true, ..Reader::new(manner) }
    }

    /// Takes more text; gives what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held += text;
        let mut pieces = Vec::new();
        while self.take(&mut pieces) {}
        pieces
    }

    /// The rest, at the end of the answer.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if !std::mem::take(&mut self.is_call) {
            return text(held).into_iter().collect();
        }
        let calls = self.manner.calls(&held);
        calls.unwrap_or_else(|| text(held).into_iter().collect())
    }

    /// Takes one thing off what is held; whether there may be another.
    fn take(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Manner { begin, end, opens_with, .. } = self.manner;
        if self.is_call {
            let Some(at) = Some(end).filter(|end| !end.is_empty()).and_then(|e| self.held.find(*e))
            else {
                return false;
            };
            let rest = self.held.split_off(at + end.len());
            let call = std::mem::replace(&mut self.held, rest);
            let calls = self.manner.calls(&call[..at]);
            // One that cannot be read is given as it is, with the marks around it.
            pieces.extend(calls.unwrap_or_else(|| vec![Piece::Text(format!("{begin}{call}"))]));
            self.is_call = false;
            return true;
        }
        let start = self.held.trim_start();
        if self.is_start && start.is_empty() {
            return false;
        }
        if self.is_start && !opens_with.is_empty() && start.starts_with(opens_with) {
            let is_begin = start.starts_with(begin);
            // It may still become the mark, of which it is the beginning.
            if is_begin || !begin.starts_with(start) {
                let skipped =
                    self.held.len() - start.len() + if is_begin { begin.len() } else { 0 };
                self.held.drain(..skipped);
                self.is_call = true;
            }
            return false;
        }
        if let Some(at) = self.held.find(begin) {
            let rest = self.held.split_off(at);
            let before = std::mem::replace(&mut self.held, rest[begin.len()..].to_owned());
            // Space around calls is theirs.
            pieces.extend(text(before.trim_end().to_owned()));
            self.is_call = true;
            self.is_start = false;
            return true;
        }
        let certain = surely_text(&self.held, begin);
        if self.is_start && self.held[..certain].trim().is_empty() {
            return false;
        }
        let rest = self.held.split_off(certain);
        pieces.extend(text(std::mem::replace(&mut self.held, rest)));
        self.is_start = false;
        false
    }
}

fn text(text: String) -> Option<Piece> {
    (!text.is_empty()).then_some(Piece::Text(text))
}

/// How many bytes of a text come before anything that may begin `mark`, space before it included.
fn surely_text(text: &str, mark: &str) -> usize {
    let earliest = (text.len() + 1).saturating_sub(mark.len());
    let begins = (earliest..text.len())
        .filter(|&at| text.is_char_boundary(at))
        .find(|&at| mark.starts_with(&text[at..]));
    text[..begins.unwrap_or(text.len())].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call { name: name.into(), arguments: arguments.into() }
    }

    fn said(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    /// Neighbouring texts as one: how they are cut is nobody's business.
    fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut all: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (all.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(more)) => *before += &more,
                (_, piece) => all.push(piece),
            }
        }
        all
    }

    fn read(mut reader: Reader, pieces: &[&str]) -> Vec<Piece> {
        let mut found: Vec<Piece> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        found.extend(reader.finish());
        joined(found)
    }

    const HERMES: &Manner = &MANNERS[0];
    const MISTRAL: &Manner = &MANNERS[1];
    const LLAMA: &Manner = &MANNERS[2];

    #[test]
    fn calls_are_found_however_the_answer_is_cut() {
        let cases: &[(&'static Manner, &str, &[Piece])] = &[
            (HERMES, "Hello, 3 < 4.", &[said("Hello, 3 < 4.")]),
            (
                HERMES,
                "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n</tool_call>",
                &[said("I look."), call("f", "{\"a\":[1]}")],
            ),
            (
                HERMES,
                "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \
                 \"g\", \"arguments\": \"{}\"}</tool_call>",
                &[call("f", "{}"), call("g", "{}")],
            ),
            (
                HERMES,
                "<tool_call>{\"name\"</tool_call>x",
                &[said("<tool_call>{\"name\"</tool_call>x")],
            ),
            (HERMES, "<tool", &[said("<tool")]),
            (
                MISTRAL,
                "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"é\": 1}}]",
                &[call("f", "{\"é\":1}")],
            ),
            (MISTRAL, " [{\"name\": \"f\", \"arguments\": {}}]", &[call("f", "{}")]),
            (MISTRAL, "[1] is a footnote.", &[said("[1] is a footnote.")]),
            (MISTRAL, "a [TOOL_C", &[said("a [TOOL_C")]),
            (LLAMA, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", &[call("f", "{\"a\":1}")]),
            (LLAMA, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", &[call("f", "{}")]),
            (LLAMA, "{not json}", &[said("{not json}")]),
            (LLAMA, "Well, {1}", &[said("Well, {1}")]),
        ];
        for (manner, text, expected) in cases {
            assert_eq!(read(Reader::new(manner), &[text]), *expected, "{text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(read(Reader::new(manner), &chars), *expected, "{text} by characters");
            for (cut, _) in text.char_indices() {
                let (a, b) = text.split_at(cut);
                assert_eq!(read(Reader::new(manner), &[a, b]), *expected, "{a} and {b}");
            }
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_may_become_a_call() {
        let mut reader = Reader::new(HERMES);
        assert_eq!(reader.push("Hello <to"), [said("Hello")]);
        assert_eq!(reader.push("ast>"), [said(" <toast>")]);
        let mut reader = Reader::new(LLAMA);
        assert_eq!(reader.push("Hello"), [said("Hello")]);
    }

    #[test]
    fn a_forced_call_goes_on_after_the_prefix() {
        let rest = "{\"name\": \"f\", \"arguments\": {}}";
        assert_eq!(read(Reader::forced(HERMES), &[rest]), [call("f", "{}")]);
        assert_eq!(read(Reader::forced(HERMES), &["{\"name\": "]), [said("{\"name\": ")]);
        assert_eq!((HERMES.prefix(), LLAMA.prefix()), ("<tool_call>", ""));
        let parameters = json!({ "type": "object" });
        let tools = [Tool { name: "f".into(), parameters: parameters.clone() }];
        let schema = HERMES.schema(&tools);
        assert_eq!(schema["anyOf"][0]["properties"]["arguments"], parameters);
        assert_eq!(MISTRAL.schema(&tools)["items"], schema);
        assert_eq!(LLAMA.schema(&tools)["anyOf"][0]["required"], json!(["name", "parameters"]));
    }

    #[test]
    fn a_template_tells_its_manner() {
        assert_eq!(Manner::of_template("{% if tools %}<tool_call>"), Some(HERMES));
        assert_eq!(Manner::of_template("{{ tools }} [TOOL_CALLS]"), Some(MISTRAL));
        assert_eq!(Manner::of_template("tools '\"parameters\": '"), Some(LLAMA));
        assert_eq!(Manner::of_template("{{ messages }} <tool_call>"), None);
        assert_eq!(Manner::of_template("{{ tools }}"), None);
    }
}
