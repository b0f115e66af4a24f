//! Running a model from the command line: what goes to which stream, that adapters do what merged
//! weights do, and what is said when something is wrong.

use polylora::synthetic::Llama;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const SMALL: Llama = Llama { layers: 2, hidden: 256, ffn: 512, heads: 4, kv_heads: 2, vocab: 320 };

/// A folder with a model that has a vocabulary, and two adapters for it that change much.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        SMALL.write_f16_with_vocabulary(&folder.path("base.gguf")).unwrap();
        SMALL.write_adapter(&folder.path("adapter"), 4, 3.0).unwrap();
        SMALL.write_adapter(&folder.path("other"), 8, 3.0).unwrap();
        // All bytes and all merges, twenty chunks of 64.
        let text = "The man and the hand in the thin sand. Ünïcödé, and\tmore of the same.\n";
        std::fs::write(folder.path("text.txt"), text.repeat(20)).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// With `input` on standard input, or nothing.
    fn polylora(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_polylora"))
            .current_dir(self.0.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read it closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs what must work; returns standard output and standard error.
    fn both(&self, arguments: &[&str], input: &str) -> (String, String) {
        let output = self.polylora(arguments, input);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {error}");
        (String::from_utf8(output.stdout).unwrap(), error)
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.both(arguments, "").0
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs what must fail with `code`; returns the message.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.polylora(arguments, "");
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        message
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// The likeliest tokens, few of them.
const ANSWER: [&str; 8] = ["run", "base.gguf", "-p", "Hello", "--temp", "0", "-n", "12"];

fn answer<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ANSWER[..], more].concat()
}

#[test]
fn tokens_are_bytes_merges_and_special_ones() {
    let folder = Folder::new();
    let ids = |more: &[&str]| folder.ok(&[&["tokenize", "base.gguf", "--ids"], more].concat());
    // After 256 bytes: th, in, the, an, " the", and, " and"; then the special ones.
    assert_eq!(ids(&["a the<|im_end|>"]), "97 260 265\n");
    assert_eq!(ids(&["a<|im_end|>", "--no-parse-special"]).split(' ').count(), 11);
    assert_eq!(folder.both(&["tokenize", "base.gguf", "--ids"], "then").0, "258 110\n");

    let tokens = folder.json(&["tokenize", "base.gguf", "é the"]);
    assert_eq!(tokens[0]["bytes"], serde_json::json!([0xc3]));
    assert_eq!((&tokens[2]["text"], &tokens[2]["id"]), (&" the".into(), &260.into()));
    says(&folder.ok(&["tokenize", "base.gguf", "\n"]), &["10", r#""\n""#]);
}

#[test]
fn only_the_answer_goes_to_standard_output() {
    let folder = Folder::new();
    let (out, error) = folder.both(&ANSWER, "");
    says(&error, &["llama", "adapters: none", "answer 12 tokens", "tokens/s"]);
    let answer_alone = out.strip_suffix('\n').unwrap();
    let json = folder.json(&ANSWER);
    assert_eq!(json["text"], answer_alone);
    assert_eq!((&json["end"], &json["answer_tokens"]), (&"length".into(), &12.into()));
    assert!(json["prompt_tokens"].as_u64().unwrap() > "Hello".len() as u64, "a template: {json}");
}

#[test]
fn a_prompt_comes_from_a_flag_a_file_or_a_pipe() {
    let folder = Folder::new();
    let want = folder.ok(&ANSWER);
    std::fs::write(folder.path("prompt.txt"), "Hello\n").unwrap();
    let rest = ["--temp", "0", "-n", "12"];
    assert_eq!(folder.ok(&[&["run", "base.gguf", "-f", "prompt.txt"], &rest[..]].concat()), want);
    assert_eq!(folder.both(&[&["run", "base.gguf"], &rest[..]].concat(), "Hello\n").0, want);
    let other = folder.both(&[&["run", "base.gguf", "--raw"], &rest[..]].concat(), "Hello").0;
    assert_ne!(other, want, "--raw makes no difference");
    let system = folder.ok(&answer(&["--system", "Be brief."]));
    assert_ne!(system, want, "--system makes no difference");
}

#[test]
fn a_seed_gives_the_same_answer() {
    let folder = Folder::new();
    let with = |seed| {
        let sampling = ["--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
        folder
            .ok(&[&["run", "base.gguf", "-p", "a", "-n", "8", "--seed", seed], &sampling[..]]
                .concat())
    };
    assert_eq!(with("1"), with("1"));
    assert_ne!(with("1"), with("2"));
}

#[test]
fn adapters_change_the_answer_by_their_scale() {
    let folder = Folder::new();
    let base = folder.ok(&ANSWER);
    let with = |specs: &[&str]| {
        let flags: Vec<&str> = specs.iter().flat_map(|spec| ["--adapter", spec]).collect();
        folder.ok(&answer(&flags))
    };
    assert_eq!(with(&["adapter@0"]), base);
    let adapted = with(&["adapter"]);
    assert_ne!(adapted, base);
    assert_ne!(with(&["adapter", "other"]), adapted, "they do not stack");
    says(&folder.both(&answer(&["--adapter", "x=adapter@0.5"]), "").1, &["adapters: x@0.5"]);
}

#[test]
fn an_adapter_at_run_time_is_the_merged_model() {
    let folder = Folder::new();
    folder.ok(&[
        "merge",
        "base.gguf",
        "--adapter",
        "adapter",
        "-o",
        "merged.gguf",
        "--type",
        "f32",
    ]);
    let eval = ["eval", "merged.gguf", "--text", "text.txt", "--ctx", "64", "--exact"];
    let against = |more: &[&str]| {
        let found = folder.json(&[&eval[..], &["--against", "base.gguf"], more].concat());
        found["against"]["divergence"]["value"].as_f64().unwrap()
    };
    let (with, without) = (against(&["--against-adapter", "adapter"]), against(&[]));
    assert!(with < 1e-6 && without > 1e-3, "{with} with the adapter, {without} without");
}

#[test]
fn answers_follow_a_schema_a_grammar_and_stop_strings() {
    let folder = Folder::new();
    let schema = r#"{"type": "object", "properties": {"b": {"type": "boolean"}, "a": {"enum": [1]}},
        "required": ["b", "a"], "additionalProperties": false}"#;
    std::fs::write(folder.path("schema.json"), schema).unwrap();
    let run = ["run", "base.gguf", "-p", "x", "--seed", "3"];
    let json = folder.ok(&[&run[..], &["--json-schema", "schema.json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["b"].is_boolean() && json["a"] == 1, "{json}");

    std::fs::write(folder.path("grammar.lark"), "start: \"left\" | \"right\"\n").unwrap();
    let side = folder.ok(&[&run[..], &["--grammar", "grammar.lark"]].concat());
    assert!(["left\n", "right\n"].contains(&&*side), "{side}");
    let stop = ["--stop", "ght", "--stop", "ft"];
    let side = folder.ok(&[&run[..], &["--grammar", "grammar.lark"], &stop].concat());
    assert!(["le\n", "ri\n"].contains(&&*side), "{side}");
}

#[test]
fn a_full_context_is_said() {
    let folder = Folder::new();
    let run = ["run", "base.gguf", "-p", "Hi", "--temp", "0", "--raw", "--ctx", "8"];
    let never_end = ["--logit-bias", "265=-inf", "--logit-bias", "263=-inf"];
    let (_, error) = folder.both(&[&run[..], &never_end].concat(), "");
    says(&error, &["answer 7 tokens", "context of 8 tokens is full"]);
    let long = ["run", "base.gguf", "-p", "Hi there, you", "--ctx", "8"];
    says(&folder.fails(1, &long), &["tokens", "context holds 8", "--ctx"]);
}

#[test]
fn eval_scores_the_second_half_of_each_chunk() {
    let folder = Folder::new();
    let ids = folder.both(&["tokenize", "base.gguf", "--ids", "-f", "text.txt"], "").0;
    let chunks = ids.split(' ').count() / 64;
    let eval = ["eval", "base.gguf", "--text", "text.txt", "--ctx", "64"];
    let found = folder.json(&eval);
    assert_eq!(found["chunks"], chunks);
    assert_eq!(found["tokens"], chunks * 31);
    // Random weights know nothing: each token is as likely as any other.
    let perplexity = found["perplexity"]["value"].as_f64().unwrap();
    assert!((100.0..1000.0).contains(&perplexity), "{perplexity}");

    let against = [&eval[..], &["--chunks", "2", "--against", "./base.gguf"]].concat();
    let same = folder.json(&against);
    assert_eq!(same["against"]["divergence"]["value"], 0.0);
    assert_eq!(same["against"]["same_top"]["value"], 1.0);
    says(
        &folder.ok(&against),
        &["perplexity", "KL divergence, median", "same top token", "100.00 %"],
    );
    let adapter = folder.json(&[&eval[..], &["--against-adapter", "adapter"]].concat());
    assert!(adapter["against"]["divergence"]["value"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_says_what_adapters_cost() {
    let folder = Folder::new();
    let bench = ["bench", "base.gguf", "-p", "16", "-n", "4", "-b", "1,3", "--reps", "2"];
    let bench = [&bench[..], &["-d", "0,20"]].concat();
    let adapters = ["--adapter", "adapter", "--adapter", "other"];
    let found = folder.json(&[&bench[..], &adapters].concat());
    let tests: Vec<String> = found["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|test| format!("{} {}", test["test"].as_str().unwrap(), test["batch"]))
        .collect();
    let names = ["pp16 1", "tg4 1", "tg4 3", "pp16@d20 1", "tg4@d20 1", "tg4@d20 3"];
    assert_eq!(tests, names);
    for test in found["tests"].as_array().unwrap() {
        let rates = &test["with_adapters"]["tokens_per_second"];
        assert!(rates["min"].as_f64().unwrap() > 0.0, "{test}");
        assert!(test["with_adapters"]["cost"].is_number(), "{test}");
    }
    says(&folder.ok(&bench), &["pp16", "tg4@d20", "tokens/s"]);
    let too_deep = folder.fails(1, &["bench", "base.gguf", "-p", "16", "-n", "0", "-d", "999999"]);
    says(&too_deep, &["pp16@d999999", "1000015"]);
}

#[test]
fn what_cannot_be_is_said() {
    let folder = Folder::new();
    SMALL.write_f16(&folder.path("mute.gguf")).unwrap();
    let message = folder.fails(1, &["run", "mute.gguf", "-p", "x"]);
    says(&message, &["mute.gguf", "vocabulary"]);
    says(&folder.fails(2, &answer(&["--top-p", "2"])), &["top_p"]);
    says(&folder.fails(2, &answer(&["--logit-bias", "9999=1"])), &["9999"]);
    says(&folder.fails(2, &answer(&["--logit-bias", "x"])), &["ID=BIAS"]);
    says(&folder.fails(2, &answer(&["--kv-type", "q4_0"])), &["q8_0"]);
    says(&folder.fails(2, &answer(&["--raw", "--system", "x"])), &["--system"]);
    says(&folder.fails(2, &["run", "base.gguf", "--raw", "-p", ""]), &["prompt is empty"]);
    says(&folder.fails(1, &answer(&["--adapter", "absent"])), &["absent"]);
    std::fs::write(folder.path("bad.json"), "{").unwrap();
    says(&folder.fails(1, &answer(&["--json-schema", "bad.json"])), &["bad.json", "JSON"]);
    std::fs::write(folder.path("short.txt"), "short").unwrap();
    says(&folder.fails(1, &["eval", "base.gguf", "--text", "short.txt"]), &["5 tokens", "--ctx"]);
    std::fs::write(folder.path("bytes.txt"), b"\xff\xfe").unwrap();
    says(&folder.fails(2, &["run", "base.gguf", "-f", "bytes.txt"]), &["bytes.txt", "UTF-8"]);
}
