//! Models and adapters of random weights, of true shapes: for the benchmarks and the tests, where
//! the numbers do not matter but their count and form do.

mod vocabulary;

use anyhow::{Context, Result, ensure};
use polylora_adapter::mixture::Recipe;
use polylora_adapter::rewrite::{Observer, Plan};
use polylora_file::{Gguf, GgufWriter, Metadata, TensorPlan, Value, WriteOptions};
use polylora_quant::{GgmlType, quantize};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// The shape of a model of the llama architecture.
#[derive(Clone, Copy, Debug)]
pub struct Llama {
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width within the feed-forward network.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
}

/// 1.1 billion weights: TinyLlama's shape.
pub const TINY_LLAMA: Llama =
    Llama { layers: 22, hidden: 2048, ffn: 5632, heads: 32, kv_heads: 4, vocab: 32000 };

/// A linear layer: PEFT's module name, GGUF's tensor name, outputs, inputs.
type Linear = (String, String, usize, usize);

impl Llama {
    fn linears(&self) -> Vec<Linear> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let of_layer = |layer: usize| {
            [
                ("self_attn.q_proj", "attn_q", self.hidden, self.hidden),
                ("self_attn.k_proj", "attn_k", kv, self.hidden),
                ("self_attn.v_proj", "attn_v", kv, self.hidden),
                ("self_attn.o_proj", "attn_output", self.hidden, self.hidden),
                ("mlp.gate_proj", "ffn_gate", self.ffn, self.hidden),
                ("mlp.up_proj", "ffn_up", self.ffn, self.hidden),
                ("mlp.down_proj", "ffn_down", self.hidden, self.ffn),
            ]
            .map(|(module, tensor, rows, columns)| {
                let module = format!("model.layers.{layer}.{module}");
                (module, format!("blk.{layer}.{tensor}.weight"), rows, columns)
            })
        };
        (0..self.layers).flat_map(of_layer).collect()
    }

    fn tensors(&self) -> Vec<TensorPlan> {
        let matrix = |name: &str, rows, columns| TensorPlan {
            name: name.to_owned(),
            ty: GgmlType::F16,
            shape: vec![rows, columns],
        };
        let norm = |name: String| TensorPlan { name, ty: GgmlType::F32, shape: vec![self.hidden] };
        let mut tensors = vec![
            matrix("token_embd.weight", self.vocab, self.hidden),
            matrix("output.weight", self.vocab, self.hidden),
            norm("output_norm.weight".to_owned()),
        ];
        for (_, name, rows, columns) in self.linears() {
            tensors.push(matrix(&name, rows, columns));
        }
        for layer in 0..self.layers {
            tensors.push(norm(format!("blk.{layer}.attn_norm.weight")));
            tensors.push(norm(format!("blk.{layer}.ffn_norm.weight")));
        }
        tensors
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        let mut text = |key: &str, value: &str| {
            metadata.insert(key, value.into());
        };
        text("general.architecture", "llama");
        text("general.name", "random weights");
        // llama.cpp loads a model without a vocabulary under this name.
        text("tokenizer.ggml.model", "none");
        let mut number = |key: &str, value: usize| {
            metadata.insert(&format!("llama.{key}"), Value::U32(value as u32));
        };
        number("block_count", self.layers);
        // More than TinyLlama's 2048, to measure what long contexts cost.
        number("context_length", 16_384);
        number("embedding_length", self.hidden);
        number("feed_forward_length", self.ffn);
        number("attention.head_count", self.heads);
        number("attention.head_count_kv", self.kv_heads);
        number("rope.dimension_count", self.hidden / self.heads);
        number("vocab_size", self.vocab);
        metadata.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        metadata.insert("general.file_type", Value::U32(1)); // mostly F16
        metadata
    }

    /// Writes a model in F16, without a vocabulary.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_f16(&self, path: &Path) -> Result<()> {
        self.write(path, &self.metadata())
    }

    /// Writes a model in F16 whose vocabulary is the bytes and a few tokens more, with a chat
    /// template.
    ///
    /// # Errors
    /// Where the vocabulary is too small for that, or the file cannot be written.
    pub fn write_f16_with_vocabulary(&self, path: &Path) -> Result<()> {
        let least = vocabulary::LEAST;
        ensure!(self.vocab >= least, "a vocabulary of bytes has at least {least} tokens");
        let mut metadata = self.metadata();
        vocabulary::describe(&mut metadata, self.vocab);
        self.write(path, &metadata)
    }

    fn write(&self, path: &Path, metadata: &Metadata) -> Result<()> {
        let tensors = self.tensors();
        let options = WriteOptions { overwrite: true, max_shard: None };
        let writer = GgufWriter::create(path, metadata, &tensors, options)?;
        for (index, tensor) in tensors.iter().enumerate() {
            let columns = *tensor.shape.last().expect("no tensor is a scalar");
            let rows: usize = tensor.shape.iter().rev().skip(1).product();
            let row_bytes = tensor.ty.row_bytes(columns).expect("floats come singly");
            (0..rows).into_par_iter().try_for_each(|row| -> Result<()> {
                let mut numbers = Random::new(index as u64, row as u64);
                let weights: Vec<f32> = if tensor.shape.len() == 1 {
                    vec![1.0; columns]
                } else {
                    (0..columns).map(|_| 0.02 * numbers.normal()).collect()
                };
                let mut bytes = vec![0; row_bytes];
                quantize(tensor.ty, &weights, None, &mut bytes)?;
                Ok(writer.write_at(index, (row * row_bytes) as u64, &bytes)?)
            })?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Writes a PEFT adapter on all linear layers, in F32. `strength` is about
    /// `||delta|| / ||W||`.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn write_adapter(&self, folder: &Path, rank: usize, strength: f32) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let config = serde_json::json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
            "target_modules": "all-linear",
        });
        std::fs::write(folder.join("adapter_config.json"), config.to_string())?;

        // ||B A|| is about sqrt(rank) * |b| * |a| a weight, and a weight's size is 0.02.
        let size = (strength * 0.02 / (rank as f32).sqrt()).sqrt();
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (index, (module, _, outputs, inputs)) in self.linears().iter().enumerate() {
            for (factor, shape) in [("lora_A", [rank, *inputs]), ("lora_B", [*outputs, rank])] {
                let mut numbers = Random::new(u64::MAX - index as u64, shape[0] as u64);
                let count = shape[0] * shape[1];
                let bytes = (0..count).flat_map(|_| (size * numbers.normal()).to_le_bytes());
                let name = format!("base_model.model.{module}.{factor}.weight");
                tensors.push((name, shape.to_vec(), bytes.collect()));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let path = folder.join("adapter_model.safetensors");
        safetensors::serialize_to_file(views, None, &path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Quantizes a model file, as `polylora quantize` does.
///
/// # Errors
/// Where the file cannot be read or written.
pub fn quantize_file(input: &Path, out: &Path, recipe: &Recipe) -> Result<()> {
    struct Unwatched;
    impl Observer for Unwatched {}

    let model = Gguf::open(input)?;
    let types = recipe.tensor_types(&model, false, false)?;
    let plan = Plan::quantize(&model, &types, recipe.file_type(), None)?;
    plan.write(out, WriteOptions { overwrite: true, max_shard: None }, &Unwatched)?;
    Ok(())
}

/// Random numbers that are the same everywhere: splitmix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn new(stream: u64, part: u64) -> Random {
        let mut seed = Random(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part);
        Random(seed.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, mean 0, variance 1: the sum of four uniform numbers of 16 bits, whose
    /// variance is 4/12.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 3.0_f32.sqrt()
    }
}
