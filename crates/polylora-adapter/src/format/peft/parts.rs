//! What each tensor of a PEFT folder is for, by its name.

use crate::error::Fault;
use polylora_file::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `lora_A.weight`
    Down,
    /// `lora_B.weight`
    Up,
    /// `lora_B.bias`
    UpBias,
    /// `lora_magnitude_vector`
    Magnitude,
    /// `lora_embedding_A`
    EmbeddingDown,
    /// `lora_embedding_B`
    EmbeddingUp,
    /// The whole weight of a module.
    Weight,
    /// The whole bias of a module.
    Bias,
    /// `token_adapter.trainable_tokens_delta`: rows of an embedding.
    Tokens,
}

impl Part {
    /// Its name where a half is missing.
    fn name(self) -> &'static str {
        match self {
            Part::Down => "lora_A",
            Part::Up => "lora_B",
            Part::UpBias => "lora_B.bias",
            Part::Magnitude => "lora_magnitude_vector",
            Part::EmbeddingDown => "lora_embedding_A",
            Part::EmbeddingUp => "lora_embedding_B",
            Part::Weight => "weight",
            Part::Bias => "bias",
            Part::Tokens => "trainable_tokens_delta",
        }
    }

    /// What a module with such a tensor has, for a summary.
    fn kind(self) -> &'static str {
        match self {
            Part::Down | Part::Up => "LoRA",
            Part::UpBias => "bias of LoRA",
            Part::Magnitude => "DoRA",
            Part::EmbeddingDown | Part::EmbeddingUp => "LoRA on embeddings",
            Part::Weight => "whole modules",
            Part::Bias => "biases",
            Part::Tokens => "embeddings of single tokens",
        }
    }
}

/// A module of the model, as the adapter names it without `base_model.model.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) module: String,
    /// How often `base_layer` stood behind the name: parameters of one module that were targeted
    /// by themselves are wrapped one around the other.
    pub(super) depth: usize,
}

/// Two halves that belong together: what takes the inputs, what gives the outputs.
type Pair<'a> = (&'a Arc<Tensor>, &'a Arc<Tensor>);

/// The tensors of a module.
#[derive(Debug, Default)]
pub(super) struct Parts(BTreeMap<Part, Arc<Tensor>>);

impl Parts {
    pub(super) fn get(&self, part: Part) -> Option<&Arc<Tensor>> {
        self.0.get(&part)
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = Arc<Tensor>> {
        self.0.values().cloned()
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().map(|part| part.kind())
    }

    /// Both or neither.
    pub(super) fn pair(&self, down: Part, up: Part) -> Result<Option<Pair<'_>>, Fault> {
        let half = |present: Part, missing: Part, tensor: &Tensor| Fault::Half {
            module: tensor.name.clone(),
            present: present.name(),
            missing: missing.name(),
        };
        match (self.get(down), self.get(up)) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (Some(a), None) => Err(half(down, up, a)),
            (None, Some(b)) => Err(half(up, down, b)),
            (None, None) => Ok(None),
        }
    }

    /// What means nothing without a pair.
    fn check(&self) -> Result<(), Fault> {
        self.pair(Part::Down, Part::Up)?;
        self.pair(Part::EmbeddingDown, Part::EmbeddingUp)?;
        let pair = self.get(Part::Down).or(self.get(Part::EmbeddingDown));
        for part in [Part::Magnitude, Part::UpBias] {
            if let (None, Some(tensor)) = (pair, self.get(part)) {
                let module = tensor.name.clone();
                return Err(Fault::Half { module, present: part.name(), missing: "lora_A" });
            }
        }
        Ok(())
    }
}

/// Brings the tensors of each module together.
///
/// # Errors
/// Where a tensor has no known role, comes twice, or lacks its other half.
pub(super) fn by_module(tensors: &[Arc<Tensor>]) -> Result<BTreeMap<Key, Parts>, Fault> {
    let mut modules: BTreeMap<Key, Parts> = BTreeMap::new();
    for tensor in tensors {
        match role(&tensor.name) {
            Role::Part(key, part) => {
                let parts = modules.entry(key).or_default();
                if parts.0.insert(part, Arc::clone(tensor)).is_some() {
                    return Err(Fault::Twice(tensor.name.clone()));
                }
            }
            Role::CopyOfBase => {}
            Role::Unknown => return Err(Fault::UnknownTensor(tensor.name.clone())),
        }
    }
    modules.values().try_for_each(Parts::check)?;
    Ok(modules)
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    Part(Key, Part),
    /// The base's own weight, which PEFT saves along with an embedding that is adapted.
    CopyOfBase,
    Unknown,
}

/// Reads a name such as `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`.
///
/// The adapter's name in PEFT (`default`) may stand behind `lora_A` and `modules_to_save`.
fn role(name: &str) -> Role {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let words: Vec<&str> = name.split('.').collect();
    let is_ours = |word: &&str| {
        word.starts_with("lora_")
            || ["modules_to_save", "original_module", "token_adapter"].contains(word)
    };
    let Some(at) = words.iter().position(is_ours) else { return saved(&words) };
    let (module, ours, rest) = (&words[..at], words[at], &words[at + 1..]);

    let part = match (ours, rest) {
        ("lora_A", ["weight"] | [_, "weight"]) => Part::Down,
        ("lora_B", ["weight"] | [_, "weight"]) => Part::Up,
        ("lora_B", ["bias"] | [_, "bias"]) => Part::UpBias,
        ("lora_embedding_A", [] | [_]) => Part::EmbeddingDown,
        ("lora_embedding_B", [] | [_]) => Part::EmbeddingUp,
        ("lora_magnitude_vector", [] | [_] | [_, "weight"]) => Part::Magnitude,
        ("modules_to_save", [_, "weight"]) => Part::Weight,
        ("modules_to_save", [_, "bias"]) => Part::Bias,
        ("token_adapter", ["trainable_tokens_delta"] | ["trainable_tokens_delta", _]) => {
            Part::Tokens
        }
        ("original_module", [_]) | ("token_adapter", ["base_layer", _]) => return Role::CopyOfBase,
        _ => return Role::Unknown,
    };
    Role::Part(key(module), part)
}

/// A tensor of the model itself.
fn saved(words: &[&str]) -> Role {
    match words {
        [module @ .., "bias"] if !module.is_empty() => Role::Part(key_outside(module), Part::Bias),
        [.., "base_layer", "weight"] => Role::CopyOfBase,
        [module @ .., "weight"] if !module.is_empty() => Role::Part(key(module), Part::Weight),
        _ => Role::Unknown,
    }
}

fn key(module: &[&str]) -> Key {
    let depth = module.iter().rev().take_while(|word| **word == "base_layer").count();
    Key { module: module[..module.len() - depth].join("."), depth }
}

/// A bias belongs to the module, however it is wrapped.
fn key_outside(module: &[&str]) -> Key {
    Key { depth: 0, ..key(module) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(module: &str, depth: usize, part: Part) -> Role {
        Role::Part(Key { module: module.to_owned(), depth }, part)
    }

    #[test]
    fn names_as_peft_writes_them() {
        let up = "model.layers.0.mlp.up_proj";
        for (suffix, expected) in [
            ("lora_A.weight", Part::Down),
            ("lora_A.default.weight", Part::Down),
            ("lora_B.weight", Part::Up),
            ("lora_B.default.weight", Part::Up),
            ("lora_B.bias", Part::UpBias),
            ("lora_B.default.bias", Part::UpBias),
            ("lora_magnitude_vector", Part::Magnitude),
            ("lora_magnitude_vector.weight", Part::Magnitude),
            ("lora_magnitude_vector.default.weight", Part::Magnitude),
            ("lora_embedding_A", Part::EmbeddingDown),
            ("lora_embedding_B.default", Part::EmbeddingUp),
            ("modules_to_save.default.weight", Part::Weight),
            ("weight", Part::Weight),
            ("bias", Part::Bias),
            ("base_layer.bias", Part::Bias),
            ("token_adapter.trainable_tokens_delta", Part::Tokens),
        ] {
            for prefix in ["base_model.model.", ""] {
                let name = format!("{prefix}{up}.{suffix}");
                assert_eq!(role(&name), part(up, 0, expected), "{name}");
            }
        }
        let inner = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight";
        assert_eq!(role(inner), part("model.layers.0.mlp.experts", 1, Part::Down));
    }

    #[test]
    fn copies_of_the_base_are_left_alone() {
        for name in [
            "base_model.model.model.embed_tokens.base_layer.weight",
            "base_model.model.lm_head.original_module.weight",
            "base_model.model.model.embed_tokens.token_adapter.base_layer.weight",
        ] {
            assert_eq!(role(name), Role::CopyOfBase, "{name}");
        }
    }

    #[test]
    fn anything_else_is_unknown() {
        for name in [
            "base_model.model.model.layers.0.mlp.up_proj.lora_diag",
            "base_model.model.model.layers.0.mlp.up_proj.lora_A",
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.a.b.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_E.weight",
            "base_model.model.prompt_embeddings",
            "weight",
            "bias",
            "",
        ] {
            assert_eq!(role(name), Role::Unknown, "{name}");
        }
    }
}
