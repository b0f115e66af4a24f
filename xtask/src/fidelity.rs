//! What merges keep of adapters: on SmolLM2-135M-Instruct with the adapters that were trained for it,
//! and on the embedded model with its own.

use crate::real_model;
use anyhow::{Context, Result, ensure};
use polylora::adapter::{AdapterSpec, OnMismatch, load};
use polylora::calibrate::answers;
use polylora::embedded;
use polylora::engine::{ChatTemplate, Engine, EngineOptions, Model, SamplingParams, Tokenizer};
use polylora::file::Gguf;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// `cargo xtask fidelity`
#[derive(clap::Args)]
pub(crate) struct Fidelity {
    /// llama.cpp's programs, for its way beside ours: llama-export-lora and llama-quantize
    #[arg(long)]
    llama_bin: Option<PathBuf>,
    /// The program to measure [default: it is built]
    #[arg(long)]
    polylora: Option<PathBuf>,
    /// Only models, adapters and ways whose names contain this; may be repeated, all must be met
    #[arg(long)]
    only: Vec<String>,
}

/// The longest answer, in tokens.
const ANSWER: usize = 160;
/// Questions of `questions.json` that are held back, from its end.
const HELD_BACK: usize = 50;

/// A way to merge: its name, and what `polylora merge` is told.
const WAYS: &[(&str, &[&str])] = &[
    ("plain", &[]),
    ("calibrated", &["--calibrate"]),
    ("mixed types", &["--calibrate", "--max-size", "100%"]),
    ("mixed types, +5 %", &["--calibrate", "--max-size", "105%"]),
    ("residual rank 8", &["--calibrate", "--residual-rank", "8"]),
];

/// A model to merge into.
struct Base {
    name: &'static str,
    path: PathBuf,
    /// llama-quantize's name for its types.
    types: &'static str,
    adapters: Vec<(&'static str, PathBuf)>,
    prompts: Vec<String>,
}

impl Fidelity {
    pub(crate) fn run(self, root: &Path) -> Result<()> {
        let program = self.polylora.clone().map_or_else(|| crate::build_program(root), Ok)?;
        let folder = root.join(".cache/fidelity");
        std::fs::create_dir_all(&folder)?;
        for base in [smollm2(root)?, valley(&folder)?] {
            for (adapter, adapter_path) in &base.adapters {
                let case = Case {
                    program: &program,
                    base: &base,
                    adapter,
                    adapter_path,
                    folder: folder.join(format!("{}-{adapter}", base.name)),
                };
                if self.wants(&case, "") {
                    case.measure(&self)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a way of a case is to be measured; the empty one: whether any might.
    fn wants(&self, case: &Case<'_>, way: &str) -> bool {
        let ways = || WAYS.iter().map(|(way, _)| *way).chain(["llama.cpp"]);
        self.only.iter().all(|only| {
            case.base.name.contains(only)
                || case.adapter.contains(only)
                || way.contains(only)
                || way.is_empty() && ways().any(|way| way.contains(only))
        })
    }
}

fn smollm2(root: &Path) -> Result<Base> {
    let questions = std::fs::read_to_string(root.join("testdata/reference/questions.json"))?;
    let questions: Vec<Value> = serde_json::from_str(&questions)?;
    let held_back = &questions[questions.len() - HELD_BACK..];
    let prompts = held_back.iter().map(|question| question["question"].as_str());
    let adapter = |name| (name, root.join("testdata/adapters").join(name));
    Ok(Base {
        name: "SmolLM2-135M",
        path: real_model::fetch(&root.join(".cache"))?,
        types: "Q4_1",
        adapters: ["shout", "json", "pirate"].map(adapter).to_vec(),
        prompts: prompts.map(|it| it.map(str::to_owned)).collect::<Option<_>>().context("text")?,
    })
}

fn valley(folder: &Path) -> Result<Base> {
    const HEROES: [&str; 5] = ["a fox", "an owl", "a frog", "a mouse", "an otter"];
    const THINGS: [&str; 10] = [
        "a lantern",
        "a key",
        "a kite",
        "a hat",
        "a boat",
        "a drum",
        "a map",
        "a bell",
        "a book",
        "a rope",
    ];
    let written = embedded::write(&folder.join("valley"))?;
    let adapters = embedded::ADAPTERS.into_iter().zip(written.adapters).collect();
    let prompts = HEROES.iter().flat_map(|hero| {
        THINGS.iter().map(move |thing| format!("Tell me a story about {hero} and {thing}."))
    });
    Ok(Base {
        name: "Valley",
        path: written.model,
        types: "Q4_K_M",
        adapters,
        prompts: prompts.collect(),
    })
}

/// An adapter of a model.
struct Case<'a> {
    program: &'a Path,
    base: &'a Base,
    adapter: &'a str,
    adapter_path: &'a Path,
    /// Where what is made for it lies.
    folder: PathBuf,
}

impl Case<'_> {
    fn measure(&self, wanted: &Fidelity) -> Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let without = self.answers(&self.base.path, None)?;
        let with = self.answers(&self.base.path, Some(self.adapter_path))?;
        // What the adapter itself says, and what the model says without it.
        let (own, neutral) = (self.folder.join("own.jsonl"), self.folder.join("neutral.jsonl"));
        self.write_chats(&own, &with)?;
        self.write_chats(&neutral, &without)?;

        println!("\n{}, {}\n", self.base.name, self.adapter);
        println!("| way | bytes | KL | same top | KL of neutral text | behaves | seconds |");
        println!("|---|---|---|---|---|---|---|");
        let base_bytes = std::fs::metadata(&self.base.path)?.len() as f64;
        let line = |way: &str, model: &Path, rest: Option<&Path>, seconds: f64| -> Result<()> {
            let own = self.compare(model, rest, &own)?;
            let neutral = self.compare(model, rest, &neutral)?;
            let behaves = self.behaves(&self.answers(model, rest)?);
            let rest_bytes = rest.map_or(Ok(0), |rest| rest.metadata().map(|it| it.len()))?;
            let bytes = (std::fs::metadata(model)?.len() + rest_bytes) as f64 / base_bytes;
            println!(
                "| {way} | {bytes:.3} | {:.4} +- {:.4} | {:.1} % | {:.4} | {behaves} | {seconds:.0} |",
                figure(&own, "divergence", "value"),
                figure(&own, "divergence", "error"),
                100.0 * figure(&own, "same_top", "value"),
                figure(&neutral, "divergence", "value"),
            );
            Ok(())
        };
        line("base alone", &self.base.path, None, 0.0)?;
        line("adapter at run time", &self.base.path, Some(self.adapter_path), 0.0)?;
        for (way, arguments) in WAYS.iter().filter(|(way, _)| wanted.wants(self, way)) {
            let merged = self.folder.join(format!("{}.gguf", way.replace([' ', ',', '%'], "-")));
            let mut merge = Command::new(self.program);
            merge.arg("merge").arg(&self.base.path).arg("--adapter").arg(self.adapter_path);
            merge.arg("--force").arg("-o").arg(&merged).args(*arguments);
            let begin = Instant::now();
            output(&mut merge)?;
            let seconds = begin.elapsed().as_secs_f64();
            let residual = merged.with_extension("residual.gguf");
            let rest = arguments.contains(&"--residual-rank").then_some(&*residual);
            line(way, &merged, rest, seconds)?;
        }
        let theirs = wanted.llama_bin.as_deref().filter(|_| wanted.wants(self, "llama.cpp"));
        if let Some(bin) = theirs {
            let begin = Instant::now();
            let merged = self.llama_cpp(bin)?;
            line("llama.cpp", &merged, None, begin.elapsed().as_secs_f64())?;
        }
        Ok(())
    }

    /// Greedy answers to the prompts that are held back.
    fn answers(&self, model: &Path, adapter: Option<&Path>) -> Result<Vec<String>> {
        let base = Gguf::open(model)?;
        let tokenizer = Tokenizer::from_gguf(&base)?;
        let template = ChatTemplate::from_gguf(&base)?.context("a chat template")?;
        let mut engine = Engine::new(Arc::new(Model::open(&base)?), &EngineOptions::default())?;
        let mut adapters = Vec::new();
        if let Some(path) = adapter {
            let loaded = load(&AdapterSpec::new(path), &base, OnMismatch::Fail)?;
            adapters.push(engine.load_adapter(&loaded)?);
        }
        let greedy = || SamplingParams { temperature: 0.0, ..Default::default() };
        let prompts = self.base.prompts.iter().map(|prompt| (&**prompt, greedy()));
        let said = answers(&mut engine, &tokenizer, Some(&template), &adapters, prompts, ANSWER)?;
        Ok(said.into_iter().map(|answer| answer.text).collect())
    }

    fn write_chats(&self, path: &Path, answers: &[String]) -> Result<()> {
        let chats = self.base.prompts.iter().zip(answers).filter(|(_, answer)| !answer.is_empty());
        let lines = chats.map(|(prompt, answer)| {
            let user = json!({"role": "user", "content": prompt});
            let assistant = json!({"role": "assistant", "content": answer});
            json!({"messages": [user, assistant]}).to_string() + "\n"
        });
        Ok(std::fs::write(path, lines.collect::<String>())?)
    }

    /// How a merged model's next tokens diverge from those of the adapter at run time.
    fn compare(&self, model: &Path, rest: Option<&Path>, text: &Path) -> Result<Value> {
        let mut eval = Command::new(self.program);
        eval.arg("eval").arg(model).arg("--text").arg(text).arg("--json");
        if let Some(rest) = rest {
            eval.arg("--adapter").arg(rest);
        }
        eval.arg("--against").arg(&self.base.path).arg("--against-adapter").arg(self.adapter_path);
        Ok(serde_json::from_slice(&output(&mut eval)?)?)
    }

    /// The share of answers, or of letters, that are as the adapter wants them.
    fn behaves(&self, answers: &[String]) -> String {
        let share = match self.adapter {
            "shout" => {
                let letters =
                    || answers.iter().flat_map(|it| it.chars()).filter(|c| c.is_alphabetic());
                letters().filter(|c| c.is_uppercase()).count() as f64 / letters().count() as f64
            }
            "json" => {
                let parses =
                    |it: &&String| serde_json::from_str::<Value>(it).is_ok_and(|it| it.is_object());
                answers.iter().filter(parses).count() as f64 / answers.len() as f64
            }
            _ => return "-".to_owned(),
        };
        format!("{:.1} %", 100.0 * share)
    }

    /// What llama.cpp's programs make of it.
    fn llama_cpp(&self, bin: &Path) -> Result<PathBuf> {
        let [lora, exported, merged] =
            ["lora.gguf", "exported.gguf", "theirs.gguf"].map(|it| self.folder.join(it));
        let mut convert = Command::new(self.program);
        convert.arg("convert").arg(self.adapter_path).arg("--base").arg(&self.base.path);
        output(convert.arg("--force").arg("-o").arg(&lora))?;
        let mut export = Command::new(bin.join("llama-export-lora"));
        output(
            export.arg("-m").arg(&self.base.path).arg("--lora").arg(&lora).arg("-o").arg(&exported),
        )?;
        let mut quantize = Command::new(bin.join("llama-quantize"));
        quantize.arg("--allow-requantize").arg(&exported).arg(&merged).arg(self.base.types);
        output(&mut quantize)?;
        std::fs::remove_file(&exported)?;
        Ok(merged)
    }
}

fn figure(found: &Value, name: &str, part: &str) -> f64 {
    found["against"][name][part].as_f64().unwrap_or(f64::NAN)
}

/// What a command prints.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(output.stdout)
}
