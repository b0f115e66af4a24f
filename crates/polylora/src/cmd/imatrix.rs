use super::loaded::{EngineArgs, Loaded, handles, labels, read_text};
use super::{chats, check_output, parts};
use crate::source::{AdapterSource, Source};
use crate::terminal::{self, Progress};
use anyhow::{Context, Result, ensure};
use polylora_calibrate as calibrate;
use polylora_engine::{Engine, LoadedAdapter};
use polylora_file::imatrix::{Measured, Sums};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure which columns of a model's weights count: an importance matrix, as llama-imatrix does
///
/// The model reads a text, and the mean squares of what each linear layer is multiplied with are
/// written. quantize and merge, and llama.cpp's llama-quantize, weigh errors by them when they
/// round. The text should be such as the model will meet; a hundred chunks or more are usual.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Imatrix {
    /// The model, best in a type of many bits
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// The text; or chats as JSON lines ({"messages": [...]})
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    out: PathBuf,
    /// A PEFT folder or a GGUF LoRA, with a scale to multiply its own; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// Tokens of a chunk
    #[arg(long, value_name = "N", default_value_t = Engine::WALKED, value_parser = context)]
    ctx: usize,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  polylora imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf
  polylora quantize model-f16.gguf model-IQ3_XXS.gguf IQ3_XXS --imatrix imatrix.gguf
  polylora imatrix model.gguf --text chats.jsonl --adapter my-lora/ -o imatrix.gguf";

/// Chunks that go through the model together: what they are between two layers is kept in memory, 128
/// MB for chunks of 512 tokens and a model 4096 wide.
const TOGETHER: usize = 16;

fn context(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|tokens| (1..=Engine::WALKED).contains(tokens));
    parsed.ok_or_else(|| format!("a chunk is 1 to {} tokens", Engine::WALKED))
}

/// What was written.
#[derive(Serialize)]
struct Written<'a> {
    path: &'a PathBuf,
    tensors: usize,
    chunks: usize,
    chunk_size: usize,
    tokens: usize,
    /// Stacks of experts of which some read nothing, and how many of them.
    unseen_experts: Vec<(&'a str, usize)>,
}

impl Imatrix {
    pub(crate) fn run(self) -> Result<()> {
        let mut loaded = Loaded::open(&self.model, &self.engine)?;
        let adapters = loaded.adapters(&self.adapter)?;
        let mut inputs = parts(&loaded.gguf);
        inputs.push(&self.text);
        inputs.extend(adapters.iter().map(|named| named.spec.path.as_path()));
        check_output(&self.out, &inputs, self.force)?;
        let chunks = self.chunks(&loaded)?;
        terminal::tell(&format!("{}; adapters: {}\n", loaded.describe(), labels(&adapters)));

        let sums = gather(&mut loaded, &handles(&adapters), &chunks)?;
        let datasets = [self.text.display().to_string()];
        let measured = Measured {
            datasets: &datasets,
            chunks: u32::try_from(chunks.len()).context("the text has too many chunks")?,
            chunk_size: self.ctx as u32,
        };
        sums.write(&self.out, measured, self.force)?;
        let written = Written {
            path: &self.out,
            tensors: sums.tensors().count(),
            chunks: chunks.len(),
            chunk_size: self.ctx,
            tokens: chunks.iter().map(Vec::len).sum(),
            unseen_experts: sums.tensors().filter(|&(_, unseen)| unseen > 0).collect(),
        };
        if self.json { terminal::print_json(&written) } else { terminal::print(&render(&written)) }
    }

    /// What is read, in tokens.
    fn chunks(&self, loaded: &Loaded) -> Result<Vec<Vec<u32>>> {
        let tokenizer = loaded.tokenizer()?;
        if chats::are_in(&self.text) {
            let template = chats::template(&loaded.gguf)?;
            let chats = calibrate::from_chats(&tokenizer, &template, &chats::read(&self.text)?)?;
            let chunks = chats.iter().flat_map(|chat| chat.chunks(self.ctx));
            return Ok(chunks.map(<[u32]>::to_vec).collect());
        }
        let tokens = tokenizer.encode(&read_text(&self.text)?, true, false);
        let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let chunks = tokens.chunks(self.ctx).map(|chunk| {
            // As llama-imatrix has it, each begins as the model wants a text to begin.
            let mut tokens = chunk.to_vec();
            tokens[0] = begin.unwrap_or(tokens[0]);
            tokens
        });
        let chunks: Vec<Vec<u32>> = chunks.collect();
        let text = self.text.display();
        ensure!(!chunks.is_empty(), "{text} is empty: there is nothing to measure by");
        Ok(chunks)
    }
}

/// Takes the chunks through the model, and sums up what its linear layers read.
fn gather(
    loaded: &mut Loaded,
    adapters: &[Arc<LoadedAdapter>],
    chunks: &[Vec<u32>],
) -> Result<Sums> {
    let Loaded { gguf, engine, .. } = loaded;
    let progress = Progress::share("reading");
    let mut sums = Sums::default();
    let portions = chunks.chunks(TOGETHER);
    let count = portions.len() as f64;
    for (done, portion) in portions.enumerate() {
        let mut walk = engine.walk(portion.to_vec(), adapters)?;
        while !walk.is_through() {
            terminal::check_interrupt()?;
            for batch in 0..walk.batches() {
                engine.show_groups(&mut walk, batch, adapters, &mut |group| {
                    for name in group.tensors {
                        let tensor = gguf.tensor(name).expect("the engine runs the file's tensors");
                        sums.add(name, &tensor.shape, group.expert, &group.inputs);
                    }
                });
            }
            engine.advance_walk(&mut walk, adapters);
            progress.reached((done as f64 + walk.progress()) / count);
        }
    }
    Ok(sums)
}

fn render(written: &Written<'_>) -> String {
    let mut text = format!(
        "Wrote {}: the importance of the columns of {} tensors, from {} tokens in {} chunks\n",
        written.path.display(),
        written.tensors,
        written.tokens,
        written.chunks,
    );
    let unseen: usize = written.unseen_experts.iter().map(|&(_, unseen)| unseen).sum();
    if unseen > 0 {
        text += &format!(
            "{unseen} experts in {} tensors read nothing, so that their columns count alike: a \
             longer text reaches more of them\n",
            written.unseen_experts.len(),
        );
    }
    text
}
