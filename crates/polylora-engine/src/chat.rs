//! Chat templates: messages to the prompt that a model was trained with.
//!
//! A template is a program in Jinja, kept in the model's own file. It is run as `transformers`
//! runs it, whose environment and helpers templates are written for.

mod python;

use crate::Tokenizer;
use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use polylora_file::{Gguf, Metadata, Value as MetadataValue};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::{Path, PathBuf};

/// Steps that a template may take. A long chat takes some thousand a message; a template is a
/// stranger's program and might not end.
const FUEL: u64 = 10_000_000;

/// The key of the template, and of the one for chats with tools that some models have.
const TEMPLATE: &str = "tokenizer.chat_template";
const TOOL_TEMPLATE: &str = "tokenizer.chat_template.tool_use";

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; `null` is nothing.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// Whatever else the message has, for the template: `tool_calls`, `tool_call_id`, `name`, ..
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }
}

fn null_as_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Why a model's template cannot be used, or cannot be used for these messages.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The metadata is not as it should be.
    #[error("{}: {key} is not {wanted}: the file is damaged", .path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// The template is not Jinja, or uses something of it that is not known here.
    #[error("{}: the chat template in {key} cannot be read: {}", .path.display(), told(.error))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where the template is.
        key: &'static str,
        /// What is wrong with it.
        error: Error,
    },
    /// The template refuses the messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the model's chat template failed: {}", told(.0))]
    Failed(Error),
}

/// An error of a template with the errors that it comes from.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The reason that a template gives to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether there is another template for chats with tools.
    has_tool_template: bool,
    /// The texts of special tokens, by the names that templates know them by.
    special: Vec<(&'static str, String)>,
}

/// A chat in tokens. Some templates begin with the token that begins a text, some leave it to others.
fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = tokenizer.encode(text, false, true);
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    if let Some(begin) = begin.filter(|&begin| tokens.first() != Some(&begin)) {
        tokens.insert(0, begin);
    }
    tokens
}

impl ChatTemplate {
    /// The template in a model's metadata; none where the model has none.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn from_gguf(file: &Gguf) -> Result<Option<ChatTemplate>, ChatError> {
        let path = file.parts().first().map(PathBuf::as_path).unwrap_or("".as_ref());
        let metadata = file.metadata();
        let mut template = ChatTemplate {
            environment: environment(),
            has_tool_template: false,
            special: special_texts(metadata),
        };
        if !template.add(path, metadata, TEMPLATE)? {
            return Ok(None);
        }
        template.has_tool_template = template.add(path, metadata, TOOL_TEMPLATE)?;
        Ok(Some(template))
    }

    /// Adds the template of a key, where the key is there.
    fn add(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        key: &'static str,
    ) -> Result<bool, ChatError> {
        let Some(value) = metadata.get(key) else { return Ok(false) };
        let wanted = "a text";
        let source = value.as_str();
        let source = source.ok_or(ChatError::Metadata { path: path.to_owned(), key, wanted })?;
        match self.environment.add_template_owned(key, without_generation_marks(source)) {
            Ok(()) => Ok(true),
            Err(error) => Err(ChatError::Syntax { path: path.to_owned(), key, error }),
        }
    }

    /// The prompt for a chat. `tools` are descriptions of functions that the model may call, an
    /// array as in the OpenAI API; `add_generation_prompt` ends the prompt where the model is to
    /// answer. The prompt has all special tokens that it needs: encode it with special tokens
    /// parsed and none added.
    ///
    /// # Errors
    /// Where the template refuses the messages, or fails.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_at(messages, tools, add_generation_prompt, ZonedDateTime::now())
    }

    /// The source of the template that a chat with tools is rendered by.
    pub fn source_for_tools(&self) -> String {
        let name = if self.has_tool_template { TOOL_TEMPLATE } else { TEMPLATE };
        let template = self.environment.get_template(name);
        template.map(|template| template.source().to_owned()).unwrap_or_default()
    }

    /// The tokens of a chat, up to where the assistant speaks next; `tools` as for
    /// [`render`](ChatTemplate::render).
    ///
    /// # Errors
    /// Where the template refuses the messages, or fails.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
    ) -> Result<Vec<u32>, ChatError> {
        Ok(encode(tokenizer, &self.render(messages, tools, true)?))
    }

    /// The tokens of a chat that has ended.
    ///
    /// # Errors
    /// Where the template refuses the messages, or fails.
    pub fn tokens(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Vec<u32>, ChatError> {
        Ok(encode(tokenizer, &self.render(messages, None, false)?))
    }

    /// [`ChatTemplate::render`] at a time.
    fn render_at(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        now: ZonedDateTime,
    ) -> Result<String, ChatError> {
        let with_tools = self.has_tool_template && tools.is_some();
        let name = if with_tools { TOOL_TEMPLATE } else { TEMPLATE };
        let strftime_now = move |format: &str| {
            jiff::fmt::strtime::format(format, &now).map_err(|error| {
                Error::new(ErrorKind::InvalidOperation, "strftime_now failed").with_source(error)
            })
        };
        let special = self.special.iter().map(|(name, text)| (*name, Value::from(text.as_str())));
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => Value::from(Serde(tools)),
            documents => Value::from(()),
            add_generation_prompt,
            strftime_now => Value::from_function(strftime_now),
            ..Value::from_pairs(special)
        };
        let template = self.environment.get_template(name).map_err(ChatError::Failed)?;
        template.render(context).map_err(|error| {
            let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(error) = source {
                if let Some(Refusal(reason)) = error.downcast_ref() {
                    return ChatError::Refused(reason.clone());
                }
                source = error.source();
            }
            ChatError::Failed(error)
        })
    }
}

/// What `transformers` gives templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_fuel(Some(FUEL));
    // The names of templates are no files' names.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match python::display(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", to_json);
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
        Err(error.with_source(Refusal(reason)))
    });
    environment
}

/// Whether Python can loop over it; over nothing it cannot, over what is missing it can.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Bytes | Iterable | Map | Seq | String | Undefined)
}

/// Python's `json.dumps` as `transformers` calls it: with characters as they are, not escaped for
/// HTML.
fn to_json(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) => {
            let text = |index| pair.get_item_by_index(index).map(|text| text.to_string());
            Some((text(0)?, text(1)?))
        }
        None => None,
    };
    let style = python::JsonStyle {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii) == Some(true),
        indent: options.get::<Option<usize>>("indent")?.or(indent),
        separators,
        sort_keys: options.get::<Option<bool>>("sort_keys")? == Some(true),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "tojson cannot write this").with_source(error)
    })?;
    Ok(style.write(&value))
}

/// The template without the marks of what a model is trained to say, which mean nothing to a
/// prompt, and to Jinja nothing at all: `{% generation %}` and `{% endgeneration %}`.
fn without_generation_marks(source: &str) -> String {
    let marks = [(r"generation", "if true"), (r"endgeneration", "endif")];
    marks.iter().fold(source.to_owned(), |source, (mark, instead)| {
        let mark = regex::Regex::new(&format!(r"\{{%([-+]?)\s*{mark}\s*([-+]?)%\}}"));
        let mark = mark.expect("it is constant");
        mark.replace_all(&source, format!("{{%$1 {instead} $2%}}")).into_owned()
    })
}

/// The texts of the special tokens that templates use, of those that the model has.
fn special_texts(metadata: &Metadata) -> Vec<(&'static str, String)> {
    const KEYS: [(&str, &str); 4] = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ];
    let Some(MetadataValue::Array(tokens)) = metadata.get("tokenizer.ggml.tokens") else {
        return Vec::new();
    };
    let text = |key| {
        let id = usize::try_from(metadata.u64(key)?).ok()?;
        let text = tokens.strings()?.nth(id)?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    KEYS.iter().filter_map(|&(name, key)| Some((name, text(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of this template.
    fn model(template: &str) -> ChatTemplate {
        let mut template_of = ChatTemplate {
            environment: environment(),
            has_tool_template: false,
            special: vec![("bos_token", "<s>".into()), ("eos_token", "</s>".into())],
        };
        let mut metadata = Metadata::default();
        metadata.insert(TEMPLATE, template.into());
        assert!(template_of.add("model.gguf".as_ref(), &metadata, TEMPLATE).unwrap());
        template_of
    }

    /// A chat of the reference data.
    #[derive(Deserialize)]
    struct Chat {
        name: String,
        messages: Vec<Message>,
        tools: Option<serde_json::Value>,
        add_generation_prompt: bool,
    }

    /// What `tools/reference/chat_templates.py` got of Python's Jinja.
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Expected {
        Text(String),
        /// The reason given to `raise_exception`.
        Refused(String),
    }

    fn data(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat");
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn templates_give_what_python_s_jinja_gives() {
        use std::collections::BTreeMap;
        let chats: Vec<Chat> = serde_json::from_str(&data("chats.json")).unwrap();
        let expected: BTreeMap<String, BTreeMap<String, Expected>> =
            serde_json::from_str(&data("expected.json")).unwrap();
        let now = jiff::civil::date(2025, 3, 9).at(15, 4, 5, 0).in_tz("UTC").unwrap();
        assert!(expected.len() > 10);
        for (name, expected) in expected {
            let template = model(&data(&format!("{name}.jinja")));
            for chat in &chats {
                let Some(expected) = expected.get(&chat.name) else { continue };
                let Chat { messages, tools, add_generation_prompt, .. } = chat;
                let found = template.render_at(
                    messages,
                    tools.as_ref(),
                    *add_generation_prompt,
                    now.clone(),
                );
                let place = format!("{name}, {}", chat.name);
                match (found, expected) {
                    (Ok(found), Expected::Text(text)) => assert_eq!(found, *text, "{place}"),
                    (Err(ChatError::Refused(found)), Expected::Refused(reason)) => {
                        assert_eq!(found, *reason, "{place}");
                    }
                    (found, _) => panic!("{place}: {found:?}"),
                }
            }
        }
    }

    #[test]
    fn values_are_written_as_in_python() {
        let text = |template: &str| {
            let json = r#"{"role": "user", "content": null, "x": {"b": [1, 2.0, 1e16, null, true,
                "it's \"é\"\n"], "a": {}, "n": 1e-5}}"#;
            let message: Message = serde_json::from_str(json).unwrap();
            model(template).render(&[message], None, true).unwrap()
        };
        assert_eq!(
            text("{{ none }} {{ true }} {{ 1.0 }} {{ missing }}{{ [1,'a'] }}"),
            "None True 1.0 [1, 'a']"
        );
        assert_eq!(
            text("{{ none is iterable }} {{ missing is iterable }} {{ '' is iterable }}"),
            "False True True"
        );
        assert_eq!(text("{{ messages[0].content }}|{{ bos_token }}"), "|<s>");
        assert_eq!(
            text("{{ messages[0].x }}"),
            r#"{'b': [1, 2.0, 1e+16, None, True, 'it\'s "é"\n'], 'a': {}, 'n': 1e-05}"#
        );
        assert_eq!(
            text("{{ messages[0].x | tojson }}"),
            r#"{"b": [1, 2.0, 1e+16, null, true, "it's \"é\"\n"], "a": {}, "n": 1e-05}"#
        );
        assert_eq!(
            text(
                "{{ messages[0].x | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}"
            ),
            r#"{"a":{},"b":[1,2.0,1e+16,null,true,"it's \"\u00e9\"\n"],"n":1e-05}"#
        );
        assert_eq!(
            text("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
    }

    #[test]
    fn templates_that_go_wrong_are_errors() {
        let mut metadata = Metadata::default();
        let mut template = model("{{ raise_exception('no ' ~ messages[0].role) }}");
        let error = template.render(&[Message::new("tool", "")], None, true).unwrap_err();
        assert!(matches!(error, ChatError::Refused(reason) if reason == "no tool"));

        metadata.insert(TEMPLATE, "{% if %}".into());
        let error = template.add("model.gguf".as_ref(), &metadata, TEMPLATE).unwrap_err();
        assert!(error.to_string().starts_with("model.gguf: the chat template in tokenizer.chat"));
        metadata.insert(TEMPLATE, 1u32.into());
        let error = template.add("model.gguf".as_ref(), &metadata, TEMPLATE).unwrap_err();
        assert!(matches!(error, ChatError::Metadata { .. }));

        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(99) \
                       %}{% endfor %}{% endfor %}{% endfor %}";
        let error = model(endless).render(&[], None, true).unwrap_err();
        assert!(matches!(error, ChatError::Failed(error) if error.kind() == ErrorKind::OutOfFuel));
    }
}
