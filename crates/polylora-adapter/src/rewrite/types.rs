//! Which type a changed tensor takes: the values of `--type`.

use polylora_quant::{GgmlType, UnknownType};
use regex_lite::Regex;
use std::collections::HashMap;

/// `keep`, or a type, for all; and exceptions by name, the first that matches.
#[derive(Clone, Debug, Default)]
pub struct TypeRules {
    /// `None`: each tensor keeps its own.
    all: Option<GgmlType>,
    patterns: Vec<(Regex, GgmlType)>,
    /// By whole names, before all others.
    exact: HashMap<String, GgmlType>,
}

/// A value of `--type` that means nothing.
#[derive(Debug, thiserror::Error)]
pub enum TypeRulesError {
    /// Not `keep` and no type.
    #[error("--type {rule}: {source} (or keep)")]
    Type {
        /// The value.
        rule: String,
        /// What is wrong with it.
        source: UnknownType,
    },
    /// Left of `=` stands no regular expression.
    #[error("--type {rule}: {source}")]
    Pattern {
        /// The value.
        rule: String,
        /// What is wrong with it.
        source: regex_lite::Error,
    },
    /// Two types for all.
    #[error(
        "--type {rule}: a type for all tensors was given before; name tensors with PATTERN=TYPE"
    )]
    Twice {
        /// The second of them.
        rule: String,
    },
}

impl TypeRules {
    /// From `keep`, `TYPE` and `PATTERN=TYPE`, the pattern a regular expression that is searched
    /// for in the tensor's name, as llama-quantize's `--tensor-type` does.
    ///
    /// # Errors
    /// An unknown type, a pattern that is no regular expression, two types for all.
    pub fn parse<R: AsRef<str>>(rules: &[R]) -> Result<TypeRules, TypeRulesError> {
        let mut parsed = TypeRules::default();
        let mut has_all = false;
        for rule in rules.iter().map(AsRef::as_ref) {
            let error = |source| TypeRulesError::Type { rule: rule.to_owned(), source };
            if let Some((pattern, ty)) = rule.rsplit_once('=') {
                let ty = ty.parse().map_err(error)?;
                let pattern = Regex::new(pattern)
                    .map_err(|source| TypeRulesError::Pattern { rule: rule.to_owned(), source })?;
                parsed.patterns.push((pattern, ty));
                continue;
            }
            if std::mem::replace(&mut has_all, true) {
                return Err(TypeRulesError::Twice { rule: rule.to_owned() });
            }
            if !rule.eq_ignore_ascii_case("keep") {
                parsed.all = Some(rule.parse().map_err(error)?);
            }
        }
        Ok(parsed)
    }

    /// With these for tensors of these names, before all other rules.
    pub fn with(self, exact: HashMap<String, GgmlType>) -> TypeRules {
        TypeRules { exact, ..self }
    }

    /// The type for a changed tensor. Vectors (norms, biases) keep theirs unless a pattern names
    /// them: programs expect them as F32.
    pub(super) fn choose(&self, name: &str, dimensions: usize, own: GgmlType) -> GgmlType {
        let matched = self.patterns.iter().find(|(pattern, _)| pattern.is_match(name));
        match (self.exact.get(name).or(matched.map(|(_, ty)| ty)), self.all) {
            (Some(ty), _) => *ty,
            (None, Some(ty)) if dimensions > 1 => ty,
            _ => own,
        }
    }

    /// A pattern that matches none of the names.
    pub(super) fn idle_pattern<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
    ) -> Option<(String, GgmlType)> {
        let names: Vec<&str> = names.collect();
        let idle = |pattern: &Regex| !names.iter().any(|name| pattern.is_match(name));
        let (pattern, ty) = self.patterns.iter().find(|(pattern, _)| idle(pattern))?;
        Some((pattern.to_string(), *ty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlType::*;

    #[test]
    fn the_first_pattern_wins_then_the_type_for_all_then_keep() {
        let rules = TypeRules::parse(&[r"blk\.0\.attn=q8_0", "attn_v=Q6_K", "f16"]).unwrap();
        assert_eq!(rules.choose("blk.0.attn_v.weight", 2, Q4_K), Q8_0);
        assert_eq!(rules.choose("blk.1.attn_v.weight", 2, Q4_K), Q6_K);
        assert_eq!(rules.choose("blk.1.ffn_up.weight", 2, Q4_K), F16);
        assert_eq!(rules.choose("output_norm.weight", 1, F32), F32);
        assert_eq!(TypeRules::parse(&["keep"]).unwrap().choose("x", 2, Q4_K), Q4_K);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let message = |rules: &[&str]| TypeRules::parse(rules).unwrap_err().to_string();
        assert!(message(&["q4_z"]).contains("q4_k"), "it lists what there is");
        assert!(message(&["attn=(=q8_0", "x"]).contains("attn=(=q8_0"));
        assert!(message(&["f16", "q8_0"]).contains("before"));
        let rules = TypeRules::parse(&["attn_w=q8_0"]).unwrap();
        assert_eq!(rules.idle_pattern(["attn_v"].into_iter()), Some(("attn_w".to_owned(), Q8_0)));
        assert_eq!(rules.idle_pattern(["attn_w"].into_iter()), None);
    }
}
