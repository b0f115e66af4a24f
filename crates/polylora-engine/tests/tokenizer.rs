//! The tokenizer against llama.cpp: its own test cases, and texts that are hard to cut. What the
//! data is and where it comes from is told in `data/vocab/README.md`.

use polylora_engine::{Tokenizer, TokenizerFault};
use polylora_file::{Bytes, Gguf, GgufWriter, Metadata, Value, WriteOptions};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

const VOCABULARIES: &[&str] = &[
    "llama-spm",
    "llama-bpe",
    "gpt-2",
    "qwen2",
    "phi-3",
    "deepseek-coder",
    "falcon",
    "starcoder",
    "deepseek-llm",
    "mpt",
    "gemma-4",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vocab").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(data(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn vocabulary(name: &str) -> Gguf {
    let packed = std::fs::File::open(data(&format!("{name}.gguf.zst"))).unwrap();
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed).unwrap().read_to_end(&mut bytes).unwrap();
    Gguf::parse(Path::new(name), Bytes::from(bytes)).unwrap()
}

/// A file without tensors, of this metadata.
fn file(metadata: &Metadata) -> Gguf {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    GgufWriter::create(&path, metadata, &[], WriteOptions::default()).unwrap().finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    Gguf::parse(Path::new("vocabulary.gguf"), Bytes::from(bytes)).unwrap()
}

fn with_pre(vocabulary: &Gguf, pre: &str) -> Tokenizer {
    let mut metadata = vocabulary.metadata().clone();
    metadata.insert("tokenizer.ggml.pre", pre.into());
    Tokenizer::from_gguf(&file(&metadata)).unwrap()
}

/// llama.cpp's cases: texts and their ids.
fn check_cases(name: &str, inputs: &str, tokenizer: &Tokenizer) {
    let (inputs, outputs) = (read(inputs), read(&format!("{name}.out")));
    const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
    let inputs = inputs.strip_suffix(SEPARATOR).unwrap_or(&inputs);
    let texts: Vec<&str> = inputs.split(SEPARATOR).collect();
    let lines: Vec<&str> = outputs.lines().collect();
    assert_eq!(texts.len(), lines.len(), "{name}");
    assert!(texts.len() > 40, "{name}");
    for (text, line) in texts.into_iter().zip(lines) {
        let ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false, false), ids, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
    }
}

#[test]
fn llama_cpp_s_own_cases_give_its_ids() {
    for name in VOCABULARIES {
        let file = vocabulary(name);
        let inputs = if *name == "gemma-4" { "gemma-4.inp" } else { "llama.cpp.inp" };
        check_cases(name, inputs, &Tokenizer::from_gguf(&file).unwrap());
        if *name == "qwen2" {
            check_cases("qwen35", "qwen35.inp", &with_pre(&file, "qwen35"));
        }
    }
}

/// What llama.cpp says of a vocabulary and of the texts in `texts.json`.
#[derive(Deserialize)]
struct Reference {
    bos: i64,
    eos: i64,
    end_of_generation: Vec<u32>,
    /// Of each text, with special tokens added and parsed, and without.
    ids: Vec<[Vec<u32>; 2]>,
}

fn texts() -> Vec<String> {
    serde_json::from_str(&read("texts.json")).unwrap()
}

#[test]
fn hard_texts_and_special_tokens_give_llama_cpp_s_ids() {
    let texts = texts();
    for name in VOCABULARIES {
        let reference: Reference = serde_json::from_str(&read(&format!("{name}.json"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&vocabulary(name)).unwrap();
        assert_eq!(tokenizer.bos().map(i64::from), Some(reference.bos), "{name}");
        assert_eq!(tokenizer.eos().map(i64::from), Some(reference.eos), "{name}");
        let ends = |id: &u32| tokenizer.is_end_of_generation(*id);
        let ends: Vec<u32> = (0..tokenizer.vocab_size()).filter(ends).collect();
        assert_eq!(ends, reference.end_of_generation, "{name}");
        assert_eq!(texts.len(), reference.ids.len());
        for (text, [special, plain]) in texts.iter().zip(&reference.ids) {
            assert_eq!(tokenizer.encode(text, true, true), *special, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false, false), *plain, "{name}: {text:?}");
        }
    }
}

#[test]
fn every_way_to_cut_words_gives_llama_cpp_s_ids() {
    let ways: BTreeMap<String, Vec<Vec<u32>>> = serde_json::from_str(&read("pre.json")).unwrap();
    let (texts, gpt2) = (texts(), vocabulary("gpt-2"));
    assert!(ways.len() > 30);
    for (pre, reference) in ways {
        let tokenizer = with_pre(&gpt2, &pre);
        for (text, ids) in texts.iter().zip(reference) {
            assert_eq!(tokenizer.encode(text, false, false), ids, "{pre}: {text:?}");
        }
    }
}

#[test]
fn streams_never_break_characters() {
    let tokenizer = Tokenizer::from_gguf(&vocabulary("gpt-2")).unwrap();
    for text in texts() {
        let ids = tokenizer.encode(&text, false, true);
        let mut stream = tokenizer.stream();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        assert!(parts.concat().chars().filter(|&char| char == '\u{FFFD}').count() <= 1);
        assert_eq!(parts.concat() + &stream.finish(), tokenizer.decode(&ids, false));
    }
    // An emoji of four bytes is two tokens here; the first alone is no text, at the end it is a
    // character that is not complete.
    let ids = tokenizer.encode("🦙", false, false);
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    // What can no longer become a character does not hold up what follows.
    let mut stream = tokenizer.stream();
    stream.push(ids[0]);
    assert_eq!(stream.push(tokenizer.encode("a", false, false)[0]), "\u{FFFD}a");
}

#[test]
fn sentence_piece_s_first_space_is_not_text() {
    let tokenizer = Tokenizer::from_gguf(&vocabulary("llama-spm")).unwrap();
    let ids = tokenizer.encode("Hello world", true, false);
    assert_eq!(ids.first().copied(), tokenizer.bos());
    assert_eq!(tokenizer.decode(&ids[1..], false), "Hello world");
    assert_eq!(tokenizer.decode(&ids, true), "<s> Hello world");
    let read = |mut stream: polylora_engine::Utf8Stream| -> String {
        ids[1..].iter().map(|&id| stream.push(id)).collect()
    };
    assert_eq!(read(tokenizer.stream()), "Hello world");
    assert_eq!(read(tokenizer.stream_continuation()), " Hello world");
    assert_eq!(tokenizer.token_text(ids[1]), "▁Hello");
    assert_eq!(*tokenizer.token_bytes(ids[1], false), *b" Hello");
    assert_eq!(*tokenizer.token_bytes(13, false), *b"\n");
    assert_eq!(tokenizer.token_text(13), "<0x0A>");
    assert_eq!(tokenizer.decode(&[u32::MAX], true), "");
}

/// A vocabulary of byte pairs that is in order.
fn small() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert("general.architecture", "llama".into());
    metadata.insert("tokenizer.ggml.model", "gpt2".into());
    metadata.insert("tokenizer.ggml.pre", "gpt-2".into());
    let tokens = ["a", "b", "ab", "<end>", ""].map(Value::from);
    metadata.insert_array("tokenizer.ggml.tokens", &tokens).unwrap();
    let types = [1, 1, 1, 3, 1].map(|ty: i32| Value::from(ty));
    metadata.insert_array("tokenizer.ggml.token_type", &types).unwrap();
    metadata.insert_array("tokenizer.ggml.merges", &["a b".into()]).unwrap();
    metadata.insert("tokenizer.ggml.eos_token_id", 3u32.into());
    metadata.insert("tokenizer.ggml.bos_token_id", u32::MAX.into());
    metadata
}

#[test]
fn a_small_vocabulary() {
    let tokenizer = Tokenizer::from_gguf(&file(&small())).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (5, None, Some(3)));
    // A c has no token.
    assert_eq!(tokenizer.encode("aabcb<end>", true, true), [0, 2, 1, 3]);
    assert_eq!(tokenizer.encode("b<end>", true, false), [1]);
    assert_eq!(tokenizer.token_text(4), "[EMPTY_4]");
    assert!(tokenizer.is_end_of_generation(3));
}

#[test]
fn damage_is_told() {
    let fault = |change: &dyn Fn(&mut Metadata)| {
        let mut metadata = small();
        change(&mut metadata);
        let error = Tokenizer::from_gguf(&file(&metadata)).unwrap_err();
        assert_eq!(error.path, Path::new("vocabulary.gguf"));
        error.fault
    };
    let array = |key: &'static str, values: &[Value]| {
        let values = values.to_vec();
        move |metadata: &mut Metadata| metadata.insert_array(key, &values).unwrap()
    };
    use TokenizerFault::*;
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let found = fault(&|metadata| drop(metadata.remove(key)));
        assert!(matches!(found, Missing { key: found } if found == key));
        let found = fault(&|metadata| metadata.insert(key, 1u32.into()));
        assert!(matches!(found, Type { key: found, .. } if found == key));
    }
    assert!(matches!(fault(&array("tokenizer.ggml.tokens", &[])), Tokens(0)));
    let twice = ["a", "b", "a", "<end>"].map(Value::from);
    let found = fault(&array("tokenizer.ggml.tokens", &twice));
    assert!(matches!(found, Duplicate { first: 0, second: 2, .. }));
    let found = fault(&array("tokenizer.ggml.token_type", &[1i32.into()]));
    assert!(matches!(found, Count { found: 1, tokens: 5, .. }));
    let found = fault(&array("tokenizer.ggml.merges", &["a b".into(), "ab".into()]));
    assert!(matches!(found, Merge { index: 1, .. }));
    for bad in [5u32.into(), (1u64 << 32).into()] {
        let bad: Value = bad;
        let found = fault(&|metadata| metadata.insert("tokenizer.ggml.eos_token_id", bad.clone()));
        assert!(matches!(found, Id { tokens: 5, .. }));
    }
    let found = fault(&|metadata| metadata.insert("tokenizer.ggml.add_bos_token", "yes".into()));
    assert!(matches!(found, Type { key: "tokenizer.ggml.add_bos_token", .. }));
    let found = fault(&|metadata| metadata.insert("tokenizer.ggml.model", "bert".into()));
    assert_eq!(
        found.to_string(),
        "the vocabulary is of the kind \"bert\"; those that can be used: llama, gpt2, gemma4"
    );
    let found = fault(&|metadata| metadata.insert("tokenizer.ggml.pre", "new".into()));
    assert!(found.to_string().contains("llama-bpe, llama3"));
    let found = fault(&|metadata| {
        metadata.insert("tokenizer.ggml.model", "llama".into());
        let scores = [0.0, 0.0, f32::NAN, 0.0, 0.0].map(Value::from);
        metadata.insert_array("tokenizer.ggml.scores", &scores).unwrap();
    });
    assert!(matches!(found, Score(2)));
}
