//! How likely tokens were, as chats and completions tell it.

use polylora_engine::{Scored, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Number, Value};
use utoipa::ToSchema;

/// What stands for a probability of nothing: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// Of a chat's answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    #[schema(value_type = Option<Vec<TokenLogprob>>)]
    refusal: Option<()>,
}

/// A token of a chat's answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    token: Likelihood,
    top_logprobs: Vec<Likelihood>,
}

/// A token, and how likely it was.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Likelihood {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Likelihood {
    fn new(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Likelihood {
        let bytes = tokenizer.token_bytes(token, true).into_owned();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Likelihood { token: text, logprob: logprob.max(IMPOSSIBLE), bytes }
    }
}

impl ChatLogprobs {
    pub(super) fn new(tokenizer: &Tokenizer, scored: &[Scored]) -> ChatLogprobs {
        let content = scored.iter().map(|scored| TokenLogprob {
            token: Likelihood::new(tokenizer, scored.token, scored.logprob),
            top_logprobs: (scored.top.iter())
                .map(|&(token, logprob)| Likelihood::new(tokenizer, token, logprob))
                .collect(),
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }
}

/// Of a completion; the lists are as long as each other.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// None for a text's first token: nothing comes before it.
    token_logprobs: Vec<Option<f32>>,
    /// By the texts of the likeliest tokens.
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where in the text each begins, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds the first token of a text.
    pub(super) fn push_first(&mut self, tokenizer: &Tokenizer, token: u32, offset: &mut usize) {
        self.push_text(&text(tokenizer, token), offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Adds a token; `offset` goes on by its text.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, scored: &Scored, offset: &mut usize) {
        let own = text(tokenizer, scored.token);
        let mut top = Map::new();
        let mut insert = |text: String, logprob: f32| {
            let number = Number::from_f64(f64::from(logprob.max(IMPOSSIBLE)));
            // Two tokens may have the same text: the likelier one comes first, and stays.
            top.entry(text).or_insert(number.map_or(Value::Null, Value::Number));
        };
        for &(token, logprob) in &scored.top {
            insert(text(tokenizer, token), logprob);
        }
        insert(own.clone(), scored.logprob);
        self.push_text(&own, offset);
        self.token_logprobs.push(Some(scored.logprob.max(IMPOSSIBLE)));
        self.top_logprobs.push(Some(top));
    }

    fn push_text(&mut self, text: &str, offset: &mut usize) {
        self.tokens.push(text.to_owned());
        self.text_offset.push(*offset);
        *offset += text.chars().count();
    }
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(token, true)).into_owned()
}
