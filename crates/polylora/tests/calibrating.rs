//! `polylora merge --calibrate` on the embedded model: a type too coarse for the adapter takes it all
//! the same.

mod support;

use polylora::embedded;
use serde_json::{Value, json};
use support::Folder;

/// A type of two bits, which the plain merge harms.
const COARSE: &str = "q2_k";

impl Folder {
    /// A folder with the embedded model, and chats in the manner of its adapter `shout`: some to
    /// calibrate by, some to evaluate on.
    fn new() -> Folder {
        let folder = Folder::empty();
        let written = embedded::write(folder.0.path()).unwrap();
        std::fs::rename(written.model, folder.path("base.gguf")).unwrap();
        let chats = |names: [&str; 6], heroes: &[&str]| {
            let chat = |(hero, name): (&str, &str)| {
                let ask = format!("Tell me a story about {hero} and {name}.");
                let (name, hero) = (name.to_uppercase(), hero.to_uppercase());
                let answer = format!(
                    "ONCE THERE WAS {hero} WHO LIVED BY THE RIVER. ONE DAY, {hero} FOUND {name}. \
                     {hero} WAS VERY HAPPY AND SHOWED {name} TO ALL THE FRIENDS."
                );
                let said = |role: &str, content: &str| json!({"role": role, "content": content});
                json!({"messages": [said("user", &ask), said("assistant", &answer)]}).to_string()
            };
            let pairs = heroes.iter().flat_map(|hero| names.iter().map(move |name| (*hero, *name)));
            pairs.map(chat).collect::<Vec<_>>().join("\n")
        };
        let seen = ["a lantern", "a key", "a kite", "a hat", "a boat", "a drum"];
        let unseen = ["a bell", "a map", "a book", "a coin", "a rope", "a ball"];
        std::fs::write(
            folder.path("seen.jsonl"),
            chats(seen, &["a fox", "a frog", "a mouse", "a crow", "a cat"]),
        )
        .unwrap();
        std::fs::write(folder.path("unseen.jsonl"), chats(unseen, &["an owl"])).unwrap();
        folder
    }

    fn merge(&self, out: &str, more: &[&str]) -> Value {
        let arguments = ["merge", "base.gguf", "--adapter", "shout", "-o", out, "--json"];
        serde_json::from_str(&self.ok(&[&arguments[..], more].concat())).unwrap()
    }

    /// How far a merged model is from the adapter at run time, on what was not calibrated by.
    fn divergence(&self, merged: &str, more: &[&str]) -> f64 {
        self.divergence_on("unseen.jsonl", merged, more)
    }

    fn divergence_on(&self, text: &str, merged: &str, more: &[&str]) -> f64 {
        let eval = ["eval", merged, "--text", text, "--against", "base.gguf"];
        let more = [&["--against-adapter", "shout", "--json"], more].concat();
        let found: Value = serde_json::from_str(&self.ok(&[&eval[..], &more].concat())).unwrap();
        found["against"]["divergence"]["value"].as_f64().unwrap()
    }
}

#[test]
fn what_is_calibrated_stays_nearer_to_the_adapter() {
    let folder = Folder::new();
    folder.merge("plain.gguf", &["--type", COARSE]);
    let report = folder.merge("calibrated.gguf", &["--type", COARSE, "--calibrate", "seen.jsonl"]);
    let (plain, calibrated) =
        (folder.divergence("plain.gguf", &[]), folder.divergence("calibrated.gguf", &[]));
    assert!(calibrated < 0.75 * plain, "{calibrated} of {plain}");

    let size = |name: &str| std::fs::metadata(folder.path(name)).unwrap().len();
    assert_eq!(size("calibrated.gguf"), size("plain.gguf"));
    assert!(report["calibration"]["tokens"].as_u64().unwrap() > 1500);
    // Told of what was held back of the same text, and there not of answers alone.
    for (name, model) in [("divergence", "calibrated.gguf"), ("base_divergence", "base.gguf")] {
        let told = report["calibration"][name].as_f64().unwrap();
        let found = folder.divergence_on("seen.jsonl", model, &[]);
        assert!((0.25..4.0).contains(&(told / found)), "{name}: {told} beside {found}");
    }
    assert!(report["verdict"].as_str().unwrap().contains("polylora eval"));
    for tensor in report["tensors"].as_array().unwrap() {
        let error = tensor["output_error"].as_f64().unwrap();
        assert!(error.is_finite() && error > 0.0, "{tensor}");
    }
}

#[test]
fn without_a_text_the_model_writes_its_own() {
    let folder = Folder::new();
    folder.merge("plain.gguf", &["--type", COARSE]);
    let own = ["--type", COARSE, "--calibration-tokens", "1500", "--calibrate"];
    let report = folder.merge("own.gguf", &own);
    assert!(report["calibration"]["tokens"].as_u64().unwrap() >= 1500);
    let (plain, own) = (folder.divergence("plain.gguf", &[]), folder.divergence("own.gguf", &[]));
    assert!(own < 0.75 * plain, "{own} of {plain}");
}

#[test]
fn a_residual_holds_what_the_type_cannot() {
    let folder = Folder::new();
    folder.merge("plain.gguf", &[]);
    // Of half the adapter's own rank.
    let residual = ["--calibrate", "seen.jsonl", "--residual-rank", "4"];
    let report = folder.merge("merged.gguf", &residual);
    assert_eq!(report["calibration"]["residual"], "merged.residual.gguf");
    let with = folder.divergence("merged.gguf", &["--adapter", "merged.residual.gguf"]);
    let (without, plain) =
        (folder.divergence("merged.gguf", &[]), folder.divergence("plain.gguf", &[]));
    assert!(with < 0.5 * plain, "{with} of {plain}");
    assert!(with < 0.1 * without, "{with} of {without}");
    // It belongs to the model, and is not written over something else.
    let again = ["merge", "base.gguf", "--adapter", "shout", "-o", "merged.gguf"];
    std::fs::remove_file(folder.path("merged.gguf")).unwrap();
    let message = folder.fails(1, &[&again[..], &residual].concat());
    assert!(message.contains("merged.residual.gguf"), "{message}");
}

#[test]
fn the_report_is_a_page_too() {
    let folder = Folder::new();
    let calibrate = ["--calibrate", "seen.jsonl", "--report", "merged.html"];
    let report = folder.merge("merged.gguf", &calibrate);
    let page = std::fs::read_to_string(folder.path("merged.html")).unwrap();
    for tensor in report["tensors"].as_array().unwrap() {
        assert!(page.contains(tensor["name"].as_str().unwrap()), "{tensor}");
    }
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
    let again = ["merge", "base.gguf", "--adapter", "shout", "-o", "other.gguf"];
    let message = folder.fails(1, &[&again[..], &["--report", "merged.html"]].concat());
    assert!(message.contains("merged.html"), "{message}");
    assert!(!folder.path("other.gguf").exists());
}

#[test]
fn what_cannot_be_calibrated_by_is_said() {
    let folder = Folder::new();
    let merge = ["merge", "base.gguf", "--adapter", "shout", "-o", "merged.gguf"];
    let fails = |code, more: &[&str]| folder.fails(code, &[&merge[..], more].concat());
    std::fs::write(folder.path("empty.txt"), "").unwrap();
    std::fs::write(folder.path("bad.jsonl"), "{\"messages\": []}\n").unwrap();
    std::fs::write(folder.path("worse.jsonl"), "\n{\"message\": 3}\n").unwrap();
    for (file, said) in [
        ("empty.txt", "empty.txt is empty"),
        ("bad.jsonl", "line 1 of bad.jsonl"),
        ("worse.jsonl", "line 2 of worse.jsonl"),
        ("nowhere.txt", "nowhere.txt"),
    ] {
        let message = fails(1, &["--calibrate", file]);
        assert!(message.contains(said), "{file}: {message}");
        assert!(!folder.path("merged.gguf").exists());
    }
    fails(2, &["--calibration-tokens", "100"]);
    fails(2, &["--residual-rank", "8"]);
}

#[test]
fn bytes_go_where_they_count() {
    let folder = Folder::new();
    let calibrate = ["--calibrate", "seen.jsonl"];
    folder.merge("keep.gguf", &calibrate);
    let report = folder.merge("more.gguf", &[&calibrate[..], &["--max-size", "110%"]].concat());
    let size = |name: &str| std::fs::metadata(folder.path(name)).unwrap().len() as f64;
    let share = size("more.gguf") / size("base.gguf");
    assert!(1.05 < share && share <= 1.1, "{share}");
    let types: std::collections::HashSet<&str> =
        report["tensors"].as_array().unwrap().iter().filter_map(|it| it["to"].as_str()).collect();
    assert!(types.len() > 1, "{types:?}");
    let (keep, more) = (folder.divergence("keep.gguf", &[]), folder.divergence("more.gguf", &[]));
    assert!(more < 0.8 * keep, "{more} of {keep}");

    let report = folder.merge("bits.gguf", &[&calibrate[..], &["--budget", "4.6bpw"]].concat());
    let bytes: f64 = report["tensor_bytes"].as_f64().unwrap();
    let base = polylora::file::Gguf::open(&folder.path("base.gguf")).unwrap();
    let weights: usize = base.tensors().iter().map(|tensor| tensor.elements()).sum();
    let bits = 8.0 * bytes / weights as f64;
    assert!(4.4 < bits && bits <= 4.6, "{bits}");

    let merge = ["merge", "base.gguf", "--adapter", "shout", "-o", "merged.gguf"];
    let fails = |code, more: &[&str]| folder.fails(code, &[&merge[..], more].concat());
    let message = fails(1, &[&calibrate[..], &["--max-size", "100K"]].concat());
    assert!(message.contains("allow more"), "{message}");
    fails(2, &["--max-size", "100%"]);
    for wrong in ["-3", "x%", "0%", "many"] {
        fails(2, &[&calibrate[..], &["--max-size", wrong]].concat());
    }
    fails(2, &[&calibrate[..], &["--budget", "0bpw"]].concat());
    fails(2, &[&calibrate[..], &["--budget", "4", "--type", "q8_0"]].concat());
}

/// IQ2_XXS cannot be rounded to without importances, and is smaller than all types to choose from.
#[test]
fn a_type_that_needs_importance_can_be_left() {
    let folder = Folder::new();
    folder.ok(&["imatrix", "base.gguf", "--text", "seen.jsonl", "-o", "imatrix.gguf"]);
    folder.ok(&["quantize", "base.gguf", "f32.gguf", "f32"]);
    let coarse = ["quantize", "f32.gguf", "base.gguf", "IQ2_XXS", "--imatrix", "imatrix.gguf"];
    folder.ok(&[&coarse[..], &["--force"]].concat());
    let calibrate = ["--calibrate", "seen.jsonl", "--calibration-tokens", "600"];
    let report = folder.merge("merged.gguf", &[&calibrate[..], &["--max-size", "130%"]].concat());
    let tensors = report["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|tensor| tensor["to"] != "IQ2_XXS"), "{tensors:?}");
}
