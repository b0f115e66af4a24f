//! Constrained decoding: only tokens that a JSON schema, a grammar or a regular expression allows.

use crate::Tokenizer;
use llguidance::api::{GrammarWithLexer, StopReason, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

mod schema;

/// Whitespace between the parts of JSON, at each place: a few spaces or tabs, or a line break or
/// two and an indentation. Without a bound, models that would rather not go on write blanks until
/// their context is full.
const JSON_WHITESPACE: &str = r"[ \t]{1,4}|\r?\n(\r?\n)?[ \t]{0,40}";

/// The longest token, in bytes, that the token trie can hold.
const LONGEST_TOKEN: usize = 1024;

/// Why there is no constraint, or why it cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The vocabulary cannot be used.
    #[error("no constraints with this vocabulary: {0}")]
    Vocabulary(String),
    /// A schema, grammar or expression is wrong, too large, or asks for something unsupported.
    #[error("{kind} cannot be followed: {reason}")]
    Unsupported {
        /// What was given: "the JSON schema", "the grammar", "the regular expression".
        kind: &'static str,
        /// What in it, and why.
        reason: String,
    },
    /// The token is not one of those that the constraint allows here.
    #[error("token {0} is not allowed here by the constraint")]
    Disallowed(u32),
    /// No token continues the text as it has to go on (the vocabulary lacks some bytes), or the
    /// grammar is too ambiguous to be followed any further.
    #[error("the constraint cannot go on: {0}")]
    Stuck(String),
}

/// One token of a vocabulary, as constraints need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VocabToken<'a> {
    /// The bytes of text that it stands for, as they are decoded in the middle of a text; the name
    /// of a special token. Empty: the token is never allowed.
    pub bytes: &'a [u8],
    /// Controls the model, rather than being text: never allowed but where a grammar names it.
    pub special: bool,
}

/// Makes constraints for one vocabulary. Made once a model (some tenths of a second for 128
/// thousand tokens), shared by all threads.
pub struct ConstraintFactory {
    parsers: ParserFactory,
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.parsers.tok_env().tok_trie().vocab_size();
        f.debug_struct("ConstraintFactory").field("tokens", &tokens).finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// `tokens` in the order of their ids; `ends`, at least one, are the tokens that may end a
    /// text (each is special, whatever `tokens` says): once the constraint is satisfied, all of
    /// them are allowed.
    ///
    /// `tokenize` gives the tokens of plain text: no special tokens, nothing added before or
    /// after. Where only one text can follow, its tokens are the only ones allowed, so that the
    /// model sees text cut as it was trained on. If they do not spell the text, the longest tokens
    /// that do take their place.
    pub fn new<'a>(
        tokens: impl IntoIterator<Item = VocabToken<'a>>,
        ends: &[u32],
        tokenize: impl Fn(&str) -> Vec<u32> + Send + Sync + 'static,
    ) -> Result<ConstraintFactory, ConstraintError> {
        let is_end = |id: usize| ends.iter().any(|&end| end as usize == id);
        let words: Vec<Vec<u8>> = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| word(token.bytes, token.special || is_end(id)))
            .collect();
        let Some(&end) = ends.first() else {
            return Err(ConstraintError::Vocabulary("it has no token that ends a text".into()));
        };
        if let Some(outside) = ends.iter().find(|&&end| end as usize >= words.len()) {
            return Err(ConstraintError::Vocabulary(format!(
                "it has {} tokens, but token {outside} is to end a text",
                words.len()
            )));
        }

        // The trie asserts its limits (millions of tokens and nodes).
        let parsers = catch_unwind(AssertUnwindSafe(|| {
            let info = TokRxInfo::new(u32::try_from(words.len())?, end);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
            let vocabulary: TokEnv = Arc::new(Vocabulary { trie, tokenize });
            let mut parsers = ParserFactory::new(
                &vocabulary,
                InferenceCapabilities::default(),
                &llguidance::earley::SlicedBiasComputer::general_slices(),
            )?;
            parsers.quiet().limits_mut().verbose_errors = false;
            Ok(parsers)
        }))
        .map_err(|error| ConstraintError::Vocabulary(reason(&error)))?;
        Ok(ConstraintFactory { parsers })
    }

    /// For the vocabulary of `tokenizer`.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<ConstraintFactory, ConstraintError> {
        let ids = 0..tokenizer.vocab_size();
        let ends: Vec<u32> = ids.clone().filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        let names: Vec<_> = ids.clone().map(|id| tokenizer.token_bytes(id, true)).collect();
        let tokens = ids.zip(&names).map(|(id, bytes)| {
            let special = tokenizer.token_bytes(id, false).is_empty();
            VocabToken { bytes, special }
        });
        let cut = tokenizer.clone();
        ConstraintFactory::new(tokens, &ends, move |text| cut.encode(text, false, false))
    }
}

/// A token's bytes in the form that the trie wants: special ones after a byte that no text has.
fn word(bytes: &[u8], special: bool) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let word = match bytes {
        // The byte 0xff of byte-level vocabularies. UTF-8 has no use for it.
        [MARKER, ..] if !special => Vec::new(),
        [_, ..] if special => [&[MARKER], bytes].concat(),
        _ => bytes.to_vec(),
    };
    if word.len() <= LONGEST_TOKEN { word } else { Vec::new() }
}

struct Vocabulary<T> {
    trie: TokTrie,
    tokenize: T,
}

impl<T: Fn(&str) -> Vec<u32> + Send + Sync> TokenizerEnv for Vocabulary<T> {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let tokens = self.trie.tokenize_with_greedy_fallback(bytes, |text| (self.tokenize)(text));
        if self.trie.decode_raw(&tokens) == bytes {
            tokens
        } else {
            self.trie.greedy_tokenize(bytes)
        }
    }
}

/// What the text of one sequence must look like, and how far it has come.
///
/// ```text
/// while !constraint.is_finished() {
///     constraint.mask(&mut logits)?;
///     let token = sampler.sample(&mut logits)?.token;
///     constraint.accept(token)?;
/// }
/// ```
pub struct Constraint {
    matcher: Matcher,
    vocabulary: TokEnv,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint")
            .field("stop_reason", &self.matcher.stop_reason())
            .finish_non_exhaustive()
    }
}

impl Constraint {
    /// JSON that is valid by `schema`.
    ///
    /// Properties come in the order in which the schema lists them; whitespace between the parts
    /// is bounded. A schema may choose otherwise by llguidance's `x-guidance`. `$ref` goes to
    /// places in the same schema (`#/$defs/name`). A keyword that cannot be honoured is an error
    /// that names it, and so is a schema that would take minutes to compile.
    pub fn json_schema(
        factory: &ConstraintFactory,
        schema: &Value,
    ) -> Result<Constraint, ConstraintError> {
        const KIND: &str = "the JSON schema";
        schema::check(schema)
            .map_err(|reason| ConstraintError::Unsupported { kind: KIND, reason })?;
        let mut schema = schema.clone();
        if let Some(fields) = schema.as_object_mut()
            && !fields.contains_key("x-guidance")
        {
            let options = json!({ "whitespace_pattern": JSON_WHITESPACE });
            fields.insert("x-guidance".into(), options);
        }
        Constraint::new(factory, KIND, GrammarWithLexer::from_json_schema(schema))
    }

    /// Any JSON object.
    pub fn json_object(factory: &ConstraintFactory) -> Result<Constraint, ConstraintError> {
        Constraint::json_schema(factory, &json!({ "type": "object" }))
    }

    /// Text by a context-free grammar, in llguidance's variant of Lark's syntax.
    pub fn lark(factory: &ConstraintFactory, grammar: &str) -> Result<Constraint, ConstraintError> {
        Constraint::new(factory, "the grammar", GrammarWithLexer::from_lark(grammar.into()))
    }

    /// Text that `regex`, in the syntax of Rust's `regex` crate, matches from its start to its end.
    pub fn regex(factory: &ConstraintFactory, regex: &str) -> Result<Constraint, ConstraintError> {
        Constraint::new(factory, "the regular expression", GrammarWithLexer::from_regex(regex))
    }

    fn new(
        factory: &ConstraintFactory,
        kind: &'static str,
        grammar: GrammarWithLexer,
    ) -> Result<Constraint, ConstraintError> {
        let grammar = TopLevelGrammar::from_grammar(grammar);
        let parser = factory
            .parsers
            .create_parser(grammar)
            .map_err(|error| ConstraintError::Unsupported { kind, reason: reason(&error) })?;
        let vocabulary = factory.parsers.tok_env().clone();
        Ok(Constraint { matcher: Matcher::new(Ok(parser)), vocabulary })
    }

    /// Sets the logits of all tokens that may not come next to minus infinity.
    ///
    /// Tokens that end the text are allowed as soon as what there is satisfies the constraint, and
    /// nothing else once it [is finished](Constraint::is_finished). Logits beyond the vocabulary
    /// (some models pad it) are never allowed.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| stuck(&error))?;
        let mut words = allowed.as_slice().iter();
        for chunk in logits.chunks_mut(u32::BITS as usize) {
            let bits = words.next().copied().unwrap_or(0);
            for (i, logit) in chunk.iter_mut().enumerate() {
                if bits >> i & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Goes on by the token that was sampled. One that is not allowed changes nothing.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let vocabulary = self.vocabulary.tok_trie();
        let accepted = if self.is_finished() {
            // An ending token may follow a complete text, and need not.
            vocabulary.eos_tokens().contains(&token)
        } else {
            (token as usize) < vocabulary.vocab_size()
                && self.matcher.try_consume_tokens(&[token]).map_err(|error| stuck(&error))? == 1
        };
        if accepted { Ok(()) } else { Err(ConstraintError::Disallowed(token)) }
    }

    /// Whether the text is complete and nothing can follow: it is closed, or an ending token was
    /// accepted. The text of the tokens so far satisfies the constraint.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}

fn stuck(error: &impl fmt::Display) -> ConstraintError {
    ConstraintError::Stuck(match reason(error) {
        none if none == StopReason::NoExtensionBias.to_string() => {
            "no token of the vocabulary may come next, and the text may not end here".into()
        }
        other => other,
    })
}

/// What llguidance says, without what it adds for its own debugging, and without the whole of a
/// long text that it quotes.
fn reason(error: &impl fmt::Display) -> String {
    const LONGEST: usize = 600;
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or(&text).trim();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplingParams};
    use serde_json::Map;

    /// Ids of the test vocabulary's odd tokens, after one for each byte.
    const END: u32 = 256;
    const OTHER_END: u32 = 257;
    const UNUSED: u32 = 258;
    const TOOL: u32 = 259;
    const PIECES: [&[u8]; 14] = [
        b"{\"",
        b"\":",
        b"\", \"",
        b"name",
        b"\"name",
        b"true",
        b"tr",
        b"  ",
        b"}]",
        b"]]}",
        b"12",
        b"\xc3",
        b"\xc3\xa9",
        b"a",
    ];
    const SIZE: usize = TOOL as usize + 1 + PIECES.len();

    fn tokens() -> Vec<(Vec<u8>, bool)> {
        let bytes = (0..=255).map(|b| (vec![b], false));
        let odd = [("<end>", false), ("<turn>", true), ("", false), ("<|tool|>", true)];
        bytes
            .chain(odd.map(|(name, special)| (name.into(), special)))
            .chain(PIECES.map(|piece| (piece.to_vec(), false)))
            .collect()
    }

    fn factory_with(
        tokenize: impl Fn(&str) -> Vec<u32> + Send + Sync + 'static,
    ) -> ConstraintFactory {
        let tokens = tokens();
        let tokens = tokens.iter().map(|(bytes, special)| VocabToken { bytes, special: *special });
        ConstraintFactory::new(tokens, &[END, OTHER_END], tokenize).unwrap()
    }

    /// Every text is cut into single bytes.
    fn factory() -> ConstraintFactory {
        factory_with(|text| text.bytes().map(u32::from).collect())
    }

    fn text(generated: &[u32]) -> String {
        let tokens = tokens();
        let bytes = generated.iter().flat_map(|&t| tokens[t as usize].0.clone()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// The tokens that may come next.
    fn allowed(constraint: &mut Constraint) -> Vec<u32> {
        // Padded, as some models' logits are.
        let mut logits = [0.0; SIZE + 40];
        constraint.mask(&mut logits).unwrap();
        (0..).zip(logits).filter(|(_, l)| *l == 0.0).map(|(t, _)| t).collect()
    }

    fn accept_bytes(constraint: &mut Constraint, text: &str) {
        for byte in text.bytes() {
            constraint.accept(byte.into()).unwrap();
        }
    }

    /// What comes out when every token is drawn with the same probability.
    fn random_text(mut constraint: Constraint, seed: u64) -> String {
        let params = SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(seed),
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, SIZE).unwrap();
        let mut generated = Vec::new();
        while !constraint.is_finished() {
            assert!(generated.len() < 10_000, "no end: {}", text(&generated));
            let mut logits = [0.0; SIZE];
            constraint.mask(&mut logits).unwrap();
            let token = sampler.sample(&mut logits).unwrap().token;
            constraint.accept(token).unwrap();
            if ![END, OTHER_END].contains(&token) {
                generated.push(token);
            }
        }
        text(&generated)
    }

    #[test]
    fn random_logits_give_json_by_the_schema() {
        let factory = factory();
        let schema = json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "maxLength": 12 },
                "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                "kind": { "const": "person" },
                "grid": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 3,
                    "items": { "type": "array", "items": { "enum": ["é", "ab", 7, null] } }
                },
                "parent": { "$ref": "#/$defs/parent" },
                "note": { "type": ["string", "null"], "pattern": "^[a-z]{2,5}$" }
            },
            "required": ["name", "age", "kind", "grid"],
            "additionalProperties": false,
            "$defs": {
                "parent": {
                    "anyOf": [
                        { "type": "boolean" },
                        {
                            "type": "object",
                            "properties": { "parent": { "$ref": "#/$defs/parent" } },
                            "required": ["parent"],
                            "additionalProperties": false
                        }
                    ]
                }
            }
        });
        let mut seen = Map::new();
        for seed in 0..40 {
            let out = random_text(Constraint::json_schema(&factory, &schema).unwrap(), seed);
            let value: Map<String, Value> =
                serde_json::from_str(&out).unwrap_or_else(|e| panic!("{out}: {e}"));
            assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{out}");
            assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{out}");
            assert_eq!(value["kind"], "person", "{out}");
            let grid = value["grid"].as_array().unwrap();
            assert!((1..=3).contains(&grid.len()), "{out}");
            for cell in grid.iter().flat_map(|row| row.as_array().unwrap()) {
                assert!([json!("é"), json!("ab"), json!(7), json!(null)].contains(cell), "{out}");
            }
            if let Some(note) = value.get("note").and_then(Value::as_str) {
                assert!((2..=5).contains(&note.len()), "{out}");
                assert!(note.bytes().all(|b| b.is_ascii_lowercase()), "{out}");
            }
            seen.extend(value);
        }
        // What may be left out did come at times.
        assert!(seen.contains_key("note") && seen.contains_key("parent"));
    }

    #[test]
    fn random_logits_give_any_json_object() {
        let factory = factory();
        for seed in 0..20 {
            let out = random_text(Constraint::json_object(&factory).unwrap(), seed);
            let value: Result<Map<String, Value>, _> = serde_json::from_str(&out);
            assert!(value.is_ok(), "{out}");
        }
    }

    #[test]
    fn random_logits_follow_expressions_and_grammars() {
        let factory = factory();
        for seed in 0..20 {
            let out =
                random_text(Constraint::regex(&factory, "(19|20)[0-9]{2}/é*x").unwrap(), seed);
            let (year, rest) = out.split_once('/').unwrap();
            assert!((1900..=2099).contains(&year.parse().unwrap()), "{out}");
            assert_eq!(rest.trim_start_matches('é'), "x", "{out}");

            let grammar = r#"
                start: sum
                sum: term ("+" term)*
                term: /[0-9]{1,3}/ | "(" sum ")"
            "#;
            let out = random_text(Constraint::lark(&factory, grammar).unwrap(), seed);
            let depth = out.chars().fold(0, |depth, c| match c {
                '(' => depth + 1,
                ')' if depth > 0 => depth - 1,
                '+' | '0'..='9' => depth,
                _ => panic!("{out}"),
            });
            assert_eq!(depth, 0, "{out}");
        }
    }

    #[test]
    fn every_ending_token_ends_what_may_end() {
        let factory = factory();
        for end in [END, OTHER_END] {
            let mut open = Constraint::regex(&factory, "b+").unwrap();
            assert_eq!(allowed(&mut open), [u32::from(b'b')]);
            assert_eq!(open.accept(end), Err(ConstraintError::Disallowed(end)));
            accept_bytes(&mut open, "bb");
            assert!(!open.is_finished());
            assert_eq!(allowed(&mut open), [u32::from(b'b'), END, OTHER_END]);
            open.accept(end).unwrap();
            assert!(open.is_finished());

            // Closed by its text: an ending token may follow, and nothing else.
            let mut closed = Constraint::regex(&factory, "bc").unwrap();
            accept_bytes(&mut closed, "bc");
            assert!(closed.is_finished());
            assert_eq!(allowed(&mut closed), [END, OTHER_END]);
            let b = b'b'.into();
            assert_eq!(closed.accept(b), Err(ConstraintError::Disallowed(b)));
            closed.accept(end).unwrap();
            assert!(closed.is_finished());
        }
    }

    #[test]
    fn a_token_that_is_not_allowed_changes_nothing() {
        let mut constraint = Constraint::regex(&factory(), "[bc]d").unwrap();
        for token in [u32::from(b'd'), END, UNUSED, TOOL, SIZE as u32, u32::MAX] {
            let refused = constraint.accept(token);
            assert_eq!(refused, Err(ConstraintError::Disallowed(token)));
        }
        assert!(!constraint.is_finished());
        accept_bytes(&mut constraint, "cd");
        assert!(constraint.is_finished());
    }

    #[test]
    fn text_that_must_come_is_cut_as_the_tokenizer_cuts_it() {
        let id = |piece: &[u8]| TOOL + 1 + PIECES.iter().position(|&p| p == piece).unwrap() as u32;
        let whole = id(b"true");
        let cut = factory_with(move |text| match text {
            "true" => vec![whole],
            _ => text.bytes().map(u32::from).collect(),
        });
        assert_eq!(allowed(&mut Constraint::regex(&cut, "true").unwrap()), [whole]);
        // A tokenizer that adds a token, or takes text for a special token, is not believed.
        for adds in [vec![TOOL], vec![END, whole], vec![u32::from(b' '), whole], vec![]] {
            let adding = factory_with(move |_| adds.clone());
            assert_eq!(allowed(&mut Constraint::regex(&adding, "true").unwrap()), [whole]);
        }
        // Where something else could come too, so may each way to cut the text.
        let mut either = Constraint::regex(&cut, "true|two").unwrap();
        assert_eq!(allowed(&mut either), [u32::from(b't'), whole, id(b"tr")]);
    }

    #[test]
    fn tokens_with_the_same_bytes_are_allowed_alike() {
        let again = TOOL + PIECES.len() as u32;
        let mut constraint = Constraint::regex(&factory(), "[ab]").unwrap();
        assert_eq!(allowed(&mut constraint), [b'a'.into(), b'b'.into(), again]);
        constraint.accept(again).unwrap();
        assert!(constraint.is_finished());
    }

    #[test]
    fn special_tokens_come_only_where_a_grammar_names_them() {
        let factory = factory();
        let mut anything = Constraint::regex(&factory, r"(?s:.*)").unwrap();
        let special = allowed(&mut anything);
        assert!([UNUSED, TOOL, 0xff].iter().all(|t| !special.contains(t)));
        assert!([END, OTHER_END, u32::from(b'<')].iter().all(|t| special.contains(t)));

        let mut named = Constraint::lark(&factory, r#"start: <|tool|> "b""#).unwrap();
        assert_eq!(allowed(&mut named), [TOOL]);
        named.accept(TOOL).unwrap();
        accept_bytes(&mut named, "b");
        assert!(named.is_finished());
    }

    #[test]
    fn whitespace_in_json_has_an_end() {
        let factory = factory();
        let mut constraint = Constraint::json_object(&factory).unwrap();
        accept_bytes(&mut constraint, "{    ");
        assert!(!allowed(&mut constraint).contains(&b' '.into()));
        accept_bytes(&mut constraint, "\"b\":\n\n  ");
        assert!(!allowed(&mut constraint).contains(&b'\n'.into()));

        let compact = json!({ "x-guidance": { "whitespace_flexible": false }, "type": "object" });
        let mut constraint = Constraint::json_schema(&factory, &compact).unwrap();
        accept_bytes(&mut constraint, "{");
        assert!(!allowed(&mut constraint).contains(&b' '.into()));
    }

    #[test]
    fn what_is_unsupported_is_named() {
        let factory = factory();
        let of_schema = |schema| Constraint::json_schema(&factory, &schema).unwrap_err();
        let of_regex = |regex| Constraint::regex(&factory, regex).unwrap_err();
        let of_lark = |grammar| Constraint::lark(&factory, grammar).unwrap_err();
        let overlapping = json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] });
        for (error, named) in [
            (of_schema(json!({ "type": "array", "uniqueItems": true })), "uniqueItems"),
            (of_schema(json!({ "properties": { "a": { "not": {} } } })), "not"),
            (of_schema(json!({ "$ref": "#/$defs/lost" })), "lost"),
            (of_schema(json!({ "$ref": "https://example.com/schema" })), "example.com"),
            (of_schema(json!({ "type": "strin" })), "strin"),
            (of_schema(json!(["type"])), "object"),
            (of_schema(overlapping), "oneOf"),
            (of_schema(json!({ "type": "integer", "multipleOf": 1_000_003 })), "1000003"),
            (of_regex("a(b"), "a(b"),
            (of_regex(r"(a)\1"), "back"),
            (of_lark("start: other"), "other"),
            (of_lark(""), "start"),
            (of_regex(&"(".repeat(5000)), "…"),
        ] {
            let text = error.to_string();
            assert!(matches!(error, ConstraintError::Unsupported { .. }), "{text}");
            assert!(text.contains(named) && !text.contains("</"), "{text}");
        }
    }

    #[test]
    fn a_text_that_the_vocabulary_cannot_spell_is_an_error() {
        let tokens = [b"a".as_slice(), b"<end>"].map(|bytes| VocabToken { bytes, special: false });
        let factory = ConstraintFactory::new(tokens, &[1], |_| Vec::new()).unwrap();
        for regex in ["ab", "[bc]"] {
            let mut constraint = Constraint::regex(&factory, regex).unwrap();
            let stuck = (0..3).find_map(|_| {
                let mut logits = [0.0; 2];
                let masked = constraint.mask(&mut logits);
                masked.and_then(|()| constraint.accept(0)).err()
            });
            assert!(stuck.is_some(), "{regex}");
            assert!(!constraint.is_finished(), "{regex}");
        }
        let endless = json!({ "$ref": "#" });
        let mut constraint = Constraint::json_schema(&factory, &endless).unwrap();
        let error = constraint.mask(&mut [0.0; 2]).unwrap_err().to_string();
        assert!(error.contains("no token"), "{error}");
    }

    #[test]
    fn vocabularies_that_cannot_be_used_are_refused() {
        let make = |bytes: &[&[u8]], ends: &[u32]| {
            let tokens = bytes.iter().map(|&bytes| VocabToken { bytes, special: false });
            ConstraintFactory::new(tokens, ends, |_| Vec::new()).map(|_| ())
        };
        let reason = |made: Result<(), ConstraintError>| made.unwrap_err().to_string();
        assert!(reason(make(&[b"a", b"b"], &[])).contains("no token that ends"));
        assert!(reason(make(&[b"a", b"b"], &[2])).contains("2 tokens, but token 2"));
        assert!(reason(make(&[], &[0])).contains("0 tokens, but token 0"));
        // Tokens too long for the trie are left out.
        for length in [1023, 1024, 1025, 5000] {
            assert_eq!(make(&[&vec![b'a'; length], b"b"], &[1]), Ok(()), "{length}");
            assert_eq!(make(&[b"b", &vec![b'a'; length]], &[1]), Ok(()), "{length}");
        }
    }

    #[test]
    fn constraints_go_from_thread_to_thread() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<ConstraintFactory>();
        sent::<Constraint>();
    }
}
