//! The flags that say how tokens are chosen.

use crate::cmd::WrongUse;
use crate::cmd::loaded::read_text;
use anyhow::{Context, Result};
use polylora_engine::{Constraint, ConstraintFactory, Sampler, SamplingParams, Tokenizer};
use std::path::PathBuf;

/// Names and defaults are llama.cpp's.
#[derive(clap::Args)]
#[command(next_help_heading = "How tokens are chosen")]
pub(super) struct Sampling {
    /// Temperature; 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = SamplingParams::default().temperature)]
    temp: f32,
    /// Choose among this many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = SamplingParams::default().top_k)]
    top_k: i32,
    /// Choose among the likeliest tokens that make up this share of the probability
    #[arg(long, value_name = "P", default_value_t = SamplingParams::default().top_p)]
    top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = SamplingParams::default().min_p)]
    min_p: f32,
    /// Make tokens that were seen less likely, by this factor
    #[arg(long, value_name = "X", default_value_t = SamplingParams::default().repeat_penalty)]
    repeat_penalty: f32,
    /// How many of the last tokens the penalties look at; -1 for all
    #[arg(long, value_name = "N", default_value_t = SamplingParams::default().repeat_last_n)]
    #[arg(allow_negative_numbers = true)]
    repeat_last_n: i32,
    /// Take this off the logit of a token that was seen
    #[arg(long, value_name = "X", default_value_t = SamplingParams::default().presence_penalty)]
    #[arg(allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Take this off a token's logit once for every time that it was seen
    #[arg(long, value_name = "X", default_value_t = SamplingParams::default().frequency_penalty)]
    #[arg(allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add to a token's logit (-inf forbids it); may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same answer [default: a new one each time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "STR", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(super) stop: Vec<String>,
    /// Write only JSON that this schema allows
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    json_schema: Option<PathBuf>,
    /// Write only what this grammar allows (Lark, as llguidance reads it)
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| {
        let (id, bias) = (id.parse().ok()?, bias.parse::<f32>().ok()?);
        (!bias.is_nan()).then_some((id, bias))
    });
    parsed.ok_or_else(|| "write it as ID=BIAS: 198=-2.5".to_owned())
}

/// What answers must look like.
pub(super) struct Shape {
    what: Grammar,
    factory: ConstraintFactory,
}

enum Grammar {
    Schema(serde_json::Value),
    Lark(String),
}

impl Sampling {
    pub(super) fn params(&self, vocab_size: usize) -> Result<SamplingParams> {
        let params = SamplingParams {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed,
        };
        // A sampler checks more than `validate`: the biases' tokens, too.
        Sampler::new(params.clone(), vocab_size).map_err(|error| WrongUse(error.to_string()))?;
        Ok(params)
    }

    pub(super) fn shape(&self, tokenizer: &Tokenizer) -> Result<Option<Shape>> {
        let what = if let Some(path) = &self.json_schema {
            let schema = serde_json::from_str(&read_text(path)?)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            Grammar::Schema(schema)
        } else if let Some(path) = &self.grammar {
            Grammar::Lark(read_text(path)?)
        } else {
            return Ok(None);
        };
        let shape = Shape { what, factory: ConstraintFactory::for_tokenizer(tokenizer)? };
        // One that cannot be followed should be known before a model has read a long prompt.
        shape.constraint()?;
        Ok(Some(shape))
    }
}

impl Shape {
    /// For one answer.
    pub(super) fn constraint(&self) -> Result<Constraint> {
        Ok(match &self.what {
            Grammar::Schema(schema) => Constraint::json_schema(&self.factory, schema)?,
            Grammar::Lark(grammar) => Constraint::lark(&self.factory, grammar)?,
        })
    }
}
