//! `adapter_config.json`: which arithmetic an adapter was trained with.
//!
//! PEFT adds fields with every version. A field that is not known here is refused unless its
//! value says that it is not in use: an adapter that is applied with a part of its arithmetic
//! missing looks fine and answers wrongly.

use crate::error::Fault;
use regex_lite::Regex;
use serde_json::{Map, Value};

/// Fields about how the adapter was trained, which does not show in what it computes.
const TRAINING: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Fields that say what the tensors say too: which modules were chosen, what each has.
const TENSORS_TELL: &[&str] = &[
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    // Says that the base keeps its weights transposed. A GGUF never does.
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "target_modules",
    "use_dora",
];

/// Fields that change the arithmetic in a way that cannot be honoured, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "alora_invocation_tokens",
        "an activated LoRA changes the model only after its invocation tokens, and cannot be merged",
    ),
    ("arrow_config", "Arrow chooses between adapters for each token, and cannot be merged"),
    ("enable_lora", "PEFT's old merged linear layers are not supported"),
    ("kasa_config", "KaSA also removes a part of the base's weights"),
    ("layer_replication", "the adapter is for a model with some layers of the base repeated"),
    ("monteclora_config", "MonteCLoRA's random part is not supported"),
    ("use_bdlora", "block-diagonal factors are not supported"),
    ("use_qalora", "QA-LoRA pools the inputs, which a full matrix in the base does not do"),
    ("velora_config", "VeLoRA is not supported"),
];

/// The ways to begin a training that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and
/// LoRA-GA instead take a part out of the base's weights, so their adapter belongs to a base that
/// is nobody's but the trainer's, unless it was converted on saving, which sets this to true.
const HARMLESS_BEGINNINGS: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// What matters of the configuration.
#[derive(Debug)]
pub(crate) struct Config {
    rank: usize,
    alpha: f64,
    rs: bool,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Parameters that were targeted by themselves: `mlp.experts.gate_up_proj`.
    pub(crate) target_parameters: Vec<String>,
    /// Tokens with an embedding of their own, for each module (`embed_tokens` where only a list
    /// is given).
    pub(crate) tokens: Vec<(String, Vec<usize>)>,
    /// The model that it was trained on.
    pub(crate) base: Option<String>,
    /// The fields in use that say what the adapter is, for [`crate::summarize`].
    pub(crate) fields: Vec<(String, String)>,
}

impl Config {
    /// Reads the configuration and refuses what it cannot honour.
    pub(crate) fn parse(json: &[u8]) -> Result<Config, Fault> {
        let mut fields: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| Fault::Json { file: super::CONFIG, error })?;
        fields.retain(|_, value| is_active(value));
        let peft_type = fields.get("peft_type").map_or("", |value| value.as_str().unwrap_or("?"));
        if peft_type != "LORA" {
            return Err(Fault::PeftType(peft_type.to_owned()));
        }

        let mut config = Config {
            // PEFT's defaults.
            rank: 8,
            alpha: 8.0,
            rs: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_parameters: Vec::new(),
            tokens: Vec::new(),
            base: None,
            fields: Vec::new(),
        };
        for (field, value) in &fields {
            config.take(field, value)?;
            if !TRAINING.contains(&&**field) {
                config.fields.push((field.clone(), shorten(value)));
            }
        }
        let base = fields.get("base_model_name_or_path").and_then(Value::as_str);
        config.base = base.filter(|base| !base.is_empty()).map(str::to_owned);
        Ok(config)
    }

    fn take(&mut self, field: &str, value: &Value) -> Result<(), Fault> {
        let wrong = |why: &str| Fault::Field {
            field: field.to_owned(),
            value: shorten(value),
            why: why.to_owned(),
        };
        match field {
            "peft_type" => {}
            "r" => self.rank = rank(value).ok_or_else(|| wrong("a rank is a positive integer"))?,
            "lora_alpha" => {
                self.alpha = finite(value).ok_or_else(|| wrong("expected a number"))?;
            }
            "use_rslora" => {
                self.rs = value.as_bool().ok_or_else(|| wrong("expected true or false"))?;
            }
            "rank_pattern" => {
                let numbers = patterns("rank_pattern", value)?;
                self.rank_pattern = numbers
                    .into_iter()
                    .map(|(regex, value)| Some((regex, rank(value)?)))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong("a rank is a positive integer"))?;
            }
            "alpha_pattern" => {
                let numbers = patterns("alpha_pattern", value)?;
                self.alpha_pattern = numbers
                    .into_iter()
                    .map(|(regex, value)| Some((regex, finite(value)?)))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong("expected numbers"))?;
            }
            "init_lora_weights" => match value {
                Value::Bool(_) => {}
                Value::String(way) if HARMLESS_BEGINNINGS.contains(&&**way) => {}
                _ => {
                    return Err(wrong(
                        "this way to begin also rewrites the base's weights; save the adapter \
                         with PEFT's path_initial_model_for_weight_conversion to make it a plain one",
                    ));
                }
            },
            "target_parameters" => {
                self.target_parameters =
                    strings(value).ok_or_else(|| wrong("expected a list of names"))?;
            }
            "trainable_token_indices" => {
                self.tokens = tokens(value).ok_or_else(|| wrong("expected token numbers"))?;
            }
            _ if TRAINING.contains(&field) || TENSORS_TELL.contains(&field) => {}
            _ => {
                let known = REFUSED.iter().find(|(name, _)| *name == field);
                return Err(wrong(known.map_or(
                    "this field is not known here, and may change what the adapter computes",
                    |&(_, why)| why,
                )));
            }
        }
        Ok(())
    }

    /// The rank and the scale of a module, by its name without PEFT's prefix.
    ///
    /// As PEFT does it: the first pattern that matches the name, or its end from a dot on, wins.
    pub(crate) fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let rank = first_match(&self.rank_pattern, module).unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let divisor = if self.rs { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / divisor)
    }
}

/// Whether a value says that something is in use.
fn is_active(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
    }
}

fn rank(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|&rank| rank > 0)
}

fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

fn tokens(value: &Value) -> Option<Vec<(String, Vec<usize>)>> {
    let list = |value: &Value| {
        let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
        value.as_array()?.iter().map(number).collect::<Option<Vec<_>>>()
    };
    match value {
        Value::Object(modules) => {
            modules.iter().map(|(module, value)| Some((module.clone(), list(value)?))).collect()
        }
        _ => Some(vec![("embed_tokens".to_owned(), list(value)?)]),
    }
}

/// The keys of a `*_pattern`, in the file's order, as PEFT matches them.
fn patterns<'a>(field: &'static str, value: &'a Value) -> Result<Vec<(Regex, &'a Value)>, Fault> {
    let Value::Object(entries) = value else {
        let (field, value) = (field.to_owned(), shorten(value));
        return Err(Fault::Field { field, value, why: "expected names and numbers".to_owned() });
    };
    let compile = |(key, value): (&String, &'a Value)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"));
        let regex = regex.map_err(|error| Fault::Pattern { field, key: key.clone(), error })?;
        Ok((regex, value))
    };
    entries.iter().map(compile).collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|&(_, value)| value)
}

/// A value as it stands in the file, cut where it is long.
fn shorten(value: &Value) -> String {
    /// Enough for the names of all linear layers.
    const ENOUGH: usize = 100;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Config, Fault> {
        Config::parse(format!(r#"{{"peft_type": "LORA", {fields}}}"#).as_bytes())
    }

    fn refused_field(fields: &str) -> String {
        match parse(fields) {
            Err(Fault::Field { field, .. }) => field,
            other => panic!("{fields}: {other:?}"),
        }
    }

    #[test]
    fn scales() {
        let plain = parse(r#""r": 16, "lora_alpha": 32"#).unwrap();
        assert_eq!(plain.rank_and_scale("model.layers.0.mlp.up_proj"), (16, 2.0));
        let rs = parse(r#""r": 16, "lora_alpha": 32, "use_rslora": true"#).unwrap();
        assert_eq!(rs.rank_and_scale("model.layers.0.mlp.up_proj"), (16, 8.0));
        let defaults = parse(r#""bias": "none""#).unwrap();
        assert_eq!(defaults.rank_and_scale("x"), (8, 1.0));
    }

    /// As PEFT 0.21's `get_pattern_key`: the end of the name from a dot on, whole.
    #[test]
    fn patterns_match_the_end_and_the_first_wins() {
        let config = parse(
            r#""r": 4, "lora_alpha": 4,
               "rank_pattern": {"k_proj": 2, "layers.1.self_attn.k_proj": 3,
                                "^model.layers.2.self_attn.q_proj": 5, "layers\\.[34]\\..*": 6},
               "alpha_pattern": {"self_attn.k_proj": 8}"#,
        )
        .unwrap();
        let check = |module, rank, scale| {
            assert_eq!(config.rank_and_scale(module), (rank, scale), "{module}");
        };
        check("model.layers.0.self_attn.k_proj", 2, 4.0);
        // The first key wins, not the longest.
        check("model.layers.1.self_attn.k_proj", 2, 4.0);
        check("model.layers.0.self_attn.no_k_proj", 4, 1.0);
        check("model.layers.0.self_attn.k_proj.inner", 4, 1.0);
        check("model.layers.2.self_attn.q_proj", 5, 0.8);
        check("other.model.layers.2.self_attn.q_proj", 4, 1.0);
        check("model.layers.3.mlp.up_proj", 6, 4.0 / 6.0);
        check("k_proj", 2, 2.0);
    }

    #[test]
    fn what_is_not_in_use_does_not_matter() {
        let unused = r#""kasa_config": null, "use_qalora": false, "layer_replication": [],
                        "something_new": {}, "another": null, "loftq_config": {}"#;
        assert!(parse(unused).is_ok());
    }

    #[test]
    fn arithmetic_that_cannot_be_honoured_is_refused() {
        for (field, value) in [
            ("kasa_config", r#"{"beta": 1}"#),
            ("use_qalora", "true"),
            ("use_bdlora", r#"{"nblocks": 2}"#),
            ("arrow_config", r#"{"top_k": 3}"#),
            ("velora_config", r#"{"num_groups": 64}"#),
            ("monteclora_config", r#"{"num_samples": 8}"#),
            ("layer_replication", "[[0, 2], [1, 3]]"),
            ("alora_invocation_tokens", "[1, 2]"),
            ("enable_lora", "[true, false]"),
            ("something_new", "true"),
            ("something_new", "0.5"),
        ] {
            assert_eq!(refused_field(&format!(r#""{field}": {value}"#)), field);
        }
        for way in ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "future"] {
            let field = format!(r#""init_lora_weights": "{way}""#);
            assert_eq!(refused_field(&field), "init_lora_weights");
        }
        for way in ["true", "false", r#""gaussian""#, r#""eva""#, r#""orthogonal""#] {
            assert!(parse(&format!(r#""init_lora_weights": {way}"#)).is_ok(), "{way}");
        }
        assert_eq!(refused_field(r#""r": 0"#), "r");
        assert_eq!(refused_field(r#""r": 1.5"#), "r");
        assert_eq!(refused_field(r#""lora_alpha": "16""#), "lora_alpha");
        assert_eq!(refused_field(r#""rank_pattern": {"q_proj": -1}"#), "rank_pattern");
        assert_eq!(refused_field(r#""alpha_pattern": 3"#), "alpha_pattern");
        let pattern = parse(r#""rank_pattern": {"(?=q_proj)": 1}"#);
        assert!(matches!(pattern, Err(Fault::Pattern { field: "rank_pattern", .. })));
    }

    #[test]
    fn other_kinds_are_refused() {
        for kind in [r#""IA3""#, r#""VERA""#, r#""ADALORA""#, "null", "7"] {
            let error = Config::parse(format!(r#"{{"peft_type": {kind}}}"#).as_bytes());
            assert!(matches!(error, Err(Fault::PeftType(_))), "{kind}");
        }
        assert!(matches!(Config::parse(b"[1]"), Err(Fault::Json { .. })));
        assert!(matches!(Config::parse(b"{"), Err(Fault::Json { .. })));
    }

    #[test]
    fn tokens_with_an_embedding_of_their_own() {
        let config = parse(r#""trainable_token_indices": [5, 3]"#).unwrap();
        assert_eq!(config.tokens, [("embed_tokens".to_owned(), vec![5, 3])]);
        let config = parse(r#""trainable_token_indices": {"lm_head": [1]}"#).unwrap();
        assert_eq!(config.tokens, [("lm_head".to_owned(), vec![1])]);
        assert_eq!(refused_field(r#""trainable_token_indices": [-1]"#), "trainable_token_indices");
    }
}
