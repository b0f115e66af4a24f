//! The types that recipes give the tensors of small models, against those that llama-quantize
//! gave them: `data/mixtures/*.json`, written by `tools/reference/mixtures.py`.

mod support;

use polylora_adapter::mixture::{Recipe, file_type_of};
use polylora_file::{Gguf, Value};
use polylora_quant::GgmlType;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use support::GgufFile;

#[derive(Deserialize)]
struct Reference {
    metadata: BTreeMap<String, Json>,
    /// Name and shape, columns first.
    tensors: Vec<(String, Vec<usize>)>,
    letters: HashMap<char, String>,
    types: BTreeMap<String, Option<String>>,
    needs: Vec<String>,
}

impl Reference {
    fn model(&self) -> Gguf {
        let number = |json: &Json| Value::from(json.as_u64().expect("a number") as u32);
        let architecture = self.metadata["general.architecture"].as_str().expect("a name");
        let mut file = GgufFile::new(architecture);
        for (key, value) in &self.metadata {
            file = match value {
                Json::String(_) => file,
                Json::Bool(value) => file.with(key, *value),
                Json::Number(value) if value.is_f64() => file.with(key, 0.0f32),
                Json::Array(values) => {
                    let values: Vec<Value> = values.iter().map(number).collect();
                    file.with(key, Value::Array(polylora_file::Array::new(&values).unwrap()))
                }
                value => file.with(key, number(value)),
            };
        }
        for (name, shape) in &self.tensors {
            let shape: Vec<usize> = shape.iter().rev().copied().collect();
            let zeros = vec![0.0; shape.iter().product()];
            file = file.tensor(name, &shape, GgmlType::F32, &zeros);
        }
        file.open()
    }

    /// What llama-quantize chose, `None` where it failed.
    fn types(&self, recipe: Recipe, option: &str) -> Option<Vec<GgmlType>> {
        let name = recipe.name();
        let spelled = self.types.get(&format!("{name} {option}")).unwrap_or(&self.types[name]);
        let ty = |letter| self.letters[&letter].parse().expect("a type");
        Some(spelled.as_ref()?.chars().map(ty).collect())
    }
}

fn references() -> Vec<(String, Reference)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mixtures");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let reference = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), reference)
    };
    let references: Vec<_> = fs::read_dir(folder).unwrap().map(read).collect();
    assert!(!references.is_empty());
    references
}

/// MXFP4 and NVFP4 by themselves are no recipes of llama-quantize.
fn llama_recipes() -> impl Iterator<Item = Recipe> {
    Recipe::all().filter(|recipe| !["MXFP4", "NVFP4"].contains(&recipe.name()))
}

#[test]
fn every_tensor_takes_the_type_that_llama_quantize_gives_it() {
    for (model, reference) in references() {
        let base = reference.model();
        let covered = reference.types.keys().filter(|name| !name.contains(' '));
        assert_eq!(covered.count(), llama_recipes().count(), "{model}: the same recipes");
        for recipe in llama_recipes() {
            for option in ["", "imatrix", "pure"] {
                let ours = recipe.tensor_types(&base, option == "pure", option == "imatrix");
                let theirs = reference.types(recipe, option);
                let (ours, theirs) = match (ours, theirs) {
                    (Ok(ours), Some(theirs)) => (ours, theirs),
                    (Err(_), None) => continue,
                    (ours, theirs) => {
                        panic!("{model} {recipe} {option}: {ours:?}, llama-quantize {theirs:?}")
                    }
                };
                for ((tensor, ours), theirs) in base.tensors().iter().zip(&ours).zip(&theirs) {
                    assert_eq!(ours, theirs, "{model} {recipe} {option}: {}", tensor.name);
                }
                assert_eq!(ours.len(), theirs.len());
            }
        }
    }
}

#[test]
fn it_is_known_when_llama_quantize_insists_on_an_importance_matrix() {
    for (model, reference) in references() {
        let base = reference.model();
        for recipe in llama_recipes() {
            let Ok(types) = recipe.tensor_types(&base, false, false) else { continue };
            let mut tensors = base.tensors().iter().zip(&types);
            let needs = tensors.any(|(tensor, ty)| recipe.needs_imatrix(&tensor.name, *ty));
            let expected = reference.needs.iter().any(|name| name == recipe.name());
            assert_eq!(needs, expected, "{model} {recipe}");
        }
    }
}

#[test]
fn what_no_recipe_changes_keeps_its_own_type() {
    let base = GgufFile::new("llama")
        .tensor("blk.0.ffn_gate_inp.weight", &[2, 256], GgmlType::F16, &[0.0; 512])
        .tensor("blk.0.attn_norm.weight", &[256], GgmlType::BF16, &[0.0; 256])
        .open();
    for recipe in Recipe::all() {
        let types = recipe.tensor_types(&base, false, false).unwrap();
        assert_eq!(types, [GgmlType::F16, GgmlType::BF16], "{recipe}");
    }
}

#[test]
fn a_recipe_goes_by_its_names_in_any_case() {
    for recipe in Recipe::all() {
        let again: Recipe = recipe.to_string().to_lowercase().parse().unwrap();
        assert_eq!(again.name(), recipe.name());
    }
    for (alias, name) in [("q3_k", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("q5_k", "Q5_K_M")] {
        assert_eq!(alias.parse::<Recipe>().unwrap().name(), name);
    }
    let message = "q4_k_xl".parse::<Recipe>().unwrap_err().to_string();
    assert!(message.contains("q4_k_xl"), "{message}");
    for recipe in Recipe::all() {
        assert!(message.contains(recipe.name()), "{message}");
    }
}

/// The numbers of `llama_ftype` in llama.h.
#[test]
fn file_types_are_those_of_llama_cpp() {
    let by_name = [
        ("F32", 0),
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q8_0", 7),
        ("Q5_0", 8),
        ("Q5_1", 9),
        ("Q2_K", 10),
        ("Q3_K_S", 11),
        ("Q3_K_M", 12),
        ("Q3_K_L", 13),
        ("Q4_K_S", 14),
        ("Q4_K_M", 15),
        ("Q5_K_S", 16),
        ("Q5_K_M", 17),
        ("Q6_K", 18),
        ("IQ2_XXS", 19),
        ("IQ2_XS", 20),
        ("Q2_K_S", 21),
        ("IQ3_XS", 22),
        ("IQ3_XXS", 23),
        ("IQ1_S", 24),
        ("IQ4_NL", 25),
        ("IQ3_S", 26),
        ("IQ3_M", 27),
        ("IQ2_S", 28),
        ("IQ2_M", 29),
        ("IQ4_XS", 30),
        ("IQ1_M", 31),
        ("BF16", 32),
        ("TQ1_0", 36),
        ("TQ2_0", 37),
        ("MXFP4", 38),
        ("MXFP4_MOE", 38),
        ("NVFP4", 39),
        ("Q1_0", 40),
        ("Q2_0", 41),
    ];
    assert_eq!(by_name.len(), Recipe::all().count());
    for (name, file_type) in by_name {
        assert_eq!(name.parse::<Recipe>().unwrap().file_type(), file_type, "{name}");
    }
    assert_eq!(file_type_of(GgmlType::Q4_K), Some(15), "the usual mixture");
    assert_eq!(file_type_of(GgmlType::IQ2_S), Some(28), "not that of the mixture made of it");
    assert_eq!(file_type_of(GgmlType::Q8_K), None, "activations only");
    assert_eq!(file_type_of(GgmlType::I32), None);
}

#[test]
fn rows_that_no_type_fits_are_an_error_that_names_the_tensor() {
    let base = GgufFile::new("llama").zeros("blk.0.ffn_up.weight", &[2, 96]).open();
    let recipe: Recipe = "Q1_0".parse().unwrap();
    let message = recipe.tensor_types(&base, false, false).unwrap_err().to_string();
    for part in ["blk.0.ffn_up.weight", "96", "Q1_0", "128"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn absurd_metadata_is_no_trouble() {
    let file = GgufFile::new("nanbeige")
        .with("nanbeige.block_count", Value::U64(u64::MAX))
        .with("nanbeige.num_loops", Value::U64(u64::MAX))
        .with("nanbeige.attention.head_count", Value::U64(u64::MAX))
        .with("nanbeige.attention.head_count_kv", 0u32)
        .with("nanbeige.expert_count", 2u32)
        .zeros("blk.99999999999999999999.ffn_down.weight", &[2, 256])
        .zeros("blk.18446744073709551615.ffn_down.weight", &[2, 256])
        .zeros("blk..ffn_up.weight", &[2, 256]);
    let without_architecture = GgufFile::new("").zeros("blk.0.attn_v.weight", &[2, 256]);
    for base in [file.open(), without_architecture.open()] {
        for recipe in Recipe::all() {
            assert!(recipe.tensor_types(&base, false, true).is_ok());
        }
    }
}
