//! The embedded model: against PEFT's log-probabilities, and its adapters in one batch.

#![allow(clippy::print_stdout)] // The figures are for who runs it with --nocapture.

mod peft;

use polylora_adapter::{AdapterSpec, OnMismatch, load};
use polylora_engine::{
    ChatTemplate, Completion, CompletionOptions, Engine, EngineOptions, Finish, LoadedAdapter,
    Message, Model, Row, SamplingParams, Tokenizer,
};
use polylora_file::Gguf;
use std::path::PathBuf;
use std::sync::Arc;

const ADAPTERS: [Option<&str>; 4] = [None, Some("shout"), Some("pirate"), Some("json")];

fn embedded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../polylora/embedded").join(name)
}

fn base() -> Gguf {
    Gguf::open(&embedded("valley-q4_k_m.gguf")).unwrap()
}

#[test]
fn log_probabilities_are_those_of_peft() {
    for adapter in ADAPTERS {
        let folder = embedded(adapter.unwrap_or("."));
        let references = folder.join("reference.json");
        peft::check(&base(), adapter.map(|_| &*folder), &references, peft::EXACT);
    }
}

/// The model with what it takes to answer.
struct Setup {
    engine: Engine,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// In the order of [`ADAPTERS`].
    adapters: Vec<Vec<Arc<LoadedAdapter>>>,
}

impl Setup {
    fn new() -> Setup {
        let gguf = base();
        let options = EngineOptions { exact: true, ..EngineOptions::default() };
        let engine = Engine::new(Arc::new(Model::open(&gguf).unwrap()), &options).unwrap();
        let adapter = |name: &str| {
            let spec = AdapterSpec::new(embedded(name));
            engine.load_adapter(&load(&spec, &gguf, OnMismatch::Fail).unwrap()).unwrap()
        };
        let adapters = ADAPTERS.map(|name| name.map(adapter).into_iter().collect()).to_vec();
        Setup {
            tokenizer: Tokenizer::from_gguf(&gguf).unwrap(),
            template: ChatTemplate::from_gguf(&gguf).unwrap().unwrap(),
            adapters,
            engine,
        }
    }

    fn row(&self, question: &str, adapter: usize, options: CompletionOptions) -> Row {
        let messages = [Message::new("user", question)];
        let prompt = self.template.prompt(&self.tokenizer, &messages, None).unwrap();
        let vocab_size = self.engine.model().vocab_size();
        let completion = Completion::new(&self.tokenizer, vocab_size, &prompt, options).unwrap();
        let sequence = self.engine.sequence(256);
        Row::new(sequence, prompt, self.adapters[adapter].clone(), completion)
    }

    /// What the rows write, together.
    fn answers(&mut self, mut rows: Vec<Row>) -> Vec<(String, Finish)> {
        while rows.iter().any(|row| !row.is_done()) {
            self.engine.advance(&mut rows).unwrap();
        }
        let answer = |row: &mut Row| (row.take_text(), row.completion().finished().unwrap());
        rows.iter_mut().map(answer).collect()
    }
}

/// The likeliest tokens, at most so many.
fn greedy(max_tokens: Option<usize>) -> CompletionOptions {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    CompletionOptions { params, max_tokens, ..CompletionOptions::default() }
}

#[test]
fn each_adapter_has_its_manner_in_one_batch() {
    let mut setup = Setup::new();
    for question in ["What is a lantern?", "Where does a bear live?", "Who are you?"] {
        let rows = (0..4).map(|adapter| setup.row(question, adapter, greedy(None))).collect();
        let answers = setup.answers(rows);
        let [base, shout, pirate, json] = [0, 1, 2, 3].map(|row| answers[row].0.as_str());
        assert!(answers.iter().all(|(_, finish)| *finish == Finish::Stop), "{answers:?}");
        assert!(base.chars().any(char::is_lowercase) && !base.contains('{'), "{base}");
        assert_eq!(shout.to_uppercase(), shout);
        assert!(["Arr!", "Ahoy!", "Yo ho", "Avast!"].iter().any(|word| pirate.contains(word)));
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(json["answer"].is_string(), "{json}");
    }
}

#[test]
fn rows_write_what_each_would_write_alone() {
    let mut setup = Setup::new();
    let questions = ["Tell me a story about an owl.", "Hello!", "What does a fox eat?"];
    let rows = |setup: &Setup| -> Vec<Row> {
        let all = questions.iter().flat_map(|question| (0..4).map(move |row| (*question, row)));
        all.map(|(question, adapter)| setup.row(question, adapter, greedy(Some(40)))).collect()
    };
    let together = rows(&setup);
    let together = setup.answers(together);
    let alone: Vec<_> = rows(&setup).into_iter().flat_map(|row| setup.answers(vec![row])).collect();
    assert_eq!(together, alone);
    assert!(together.iter().any(|(_, finish)| *finish == Finish::Length));
    assert!(together.iter().any(|(_, finish)| *finish == Finish::Stop));
}

#[test]
fn an_answer_ends_where_it_is_to() {
    let mut setup = Setup::new();
    let question = "Tell me a story about an owl.";
    let full = setup.row(question, 0, greedy(Some(30)));
    let (full, finish) = setup.answers(vec![full]).remove(0);
    assert_eq!(finish, Finish::Length);

    let word = full.split(' ').nth(8).unwrap().to_owned();
    let stopped = CompletionOptions { stop: vec![word.clone()], ..greedy(Some(30)) };
    let stopped = setup.row(question, 0, stopped);
    let (stopped, finish) = setup.answers(vec![stopped]).remove(0);
    assert_eq!(finish, Finish::Stop);
    assert_eq!(stopped, full[..full.find(&word).unwrap()]);

    let none = setup.row(question, 0, greedy(Some(0)));
    assert_eq!(setup.answers(vec![none]), [(String::new(), Finish::Length)]);
}

#[test]
fn a_full_context_ends_an_answer() {
    let mut setup = Setup::new();
    let messages = [Message::new("user", "Tell me a story about an owl.")];
    let prompt = setup.template.prompt(&setup.tokenizer, &messages, None).unwrap();
    let vocab_size = setup.engine.model().vocab_size();
    let completion = Completion::new(&setup.tokenizer, vocab_size, &prompt, greedy(None)).unwrap();
    let sequence = setup.engine.sequence(prompt.len() + 4);
    let row = Row::new(sequence, prompt, Vec::new(), completion);
    let (text, finish) = setup.answers(vec![row]).remove(0);
    assert_eq!(finish, Finish::ContextFull);
    assert!(!text.is_empty());
}
