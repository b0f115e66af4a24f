//! Small bases and adapters, made on the spot.
#![allow(dead_code, reason = "each test file takes what it needs")]

use polylora_adapter::{Adapter, AdapterSpec, Change, ChangeKind, Error, Fault, OnMismatch, load};
use polylora_file::{Gguf, GgufWriter, Metadata, TensorPlan, Value, WriteOptions};
use polylora_quant::{GgmlType, quantize};
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A GGUF file to be: a base, or an adapter.
pub(crate) struct GgufFile {
    metadata: Metadata,
    /// A tensor without values is zero.
    tensors: Vec<(TensorPlan, Vec<f32>)>,
}

impl GgufFile {
    pub(crate) fn new(architecture: &str) -> GgufFile {
        let mut metadata = Metadata::default();
        metadata.insert("general.architecture", architecture.into());
        GgufFile { metadata, tensors: Vec::new() }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> GgufFile {
        self.metadata.insert(key, value.into());
        self
    }

    /// A tensor of zeros, of small blocks where rows are whole blocks: it is there to be changed.
    pub(crate) fn zeros(self, name: &str, shape: &[usize]) -> GgufFile {
        let columns = shape.last().copied().unwrap_or(1);
        let blocks = GgmlType::Q4_0.row_bytes(columns).is_some();
        self.tensor(name, shape, if blocks { GgmlType::Q4_0 } else { GgmlType::F32 }, &[])
    }

    pub(crate) fn tensor(
        mut self,
        name: &str,
        shape: &[usize],
        ty: GgmlType,
        values: &[f32],
    ) -> GgufFile {
        let plan = TensorPlan { name: name.to_owned(), ty, shape: shape.to_vec() };
        self.tensors.push((plan, values.to_vec()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> GgufFile {
        self.tensors.retain(|(plan, _)| plan.name != name);
        self
    }

    pub(crate) fn write(&self, path: &Path) {
        let plans: Vec<TensorPlan> = self.tensors.iter().map(|(plan, _)| plan.clone()).collect();
        let options = WriteOptions { overwrite: true, ..Default::default() };
        let writer = GgufWriter::create(path, &self.metadata, &plans, options).unwrap();
        for (i, (plan, values)) in self.tensors.iter().enumerate() {
            let mut bytes = vec![0; plan.ty.row_bytes(plan.shape.iter().product()).unwrap()];
            if !values.is_empty() {
                quantize(plan.ty, values, None, &mut bytes).unwrap();
            }
            writer.write_at(i, 0, &bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    /// The file, which is gone from the disk once it is no longer in use.
    pub(crate) fn open(&self) -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.gguf");
        self.write(&path);
        Gguf::open(&path).unwrap()
    }
}

/// Two layers of a llama: width 8, 2 heads of 4 (1 for keys and values), hidden width 12,
/// 10 tokens, head and embedding in one.
pub(crate) fn llama() -> GgufFile {
    small("llama")
}

/// [`llama`] under another name.
pub(crate) fn small(architecture: &str) -> GgufFile {
    decoder(architecture, 2, [2, 1], 4, 8, 12, 10)
}

/// The shape of SmolLM2-135M.
pub(crate) fn smollm2() -> GgufFile {
    decoder("llama", 30, [9, 3], 64, 576, 1536, 49152)
}

fn decoder(
    architecture: &str,
    layers: usize,
    heads: [u32; 2],
    head: usize,
    width: usize,
    hidden: usize,
    vocabulary: usize,
) -> GgufFile {
    let mut file = GgufFile::new(architecture)
        .with(&format!("{architecture}.attention.head_count"), heads[0])
        .with(&format!("{architecture}.attention.head_count_kv"), heads[1])
        .zeros("token_embd.weight", &[vocabulary, width])
        .zeros("output_norm.weight", &[width]);
    let [queries, keys] = heads.map(|heads| heads as usize * head);
    for layer in 0..layers {
        for (name, shape) in [
            ("attn_norm", &[width][..]),
            ("attn_q", &[queries, width]),
            ("attn_k", &[keys, width]),
            ("attn_v", &[keys, width]),
            ("attn_output", &[width, queries]),
            ("ffn_norm", &[width]),
            ("ffn_gate", &[hidden, width]),
            ("ffn_up", &[hidden, width]),
            ("ffn_down", &[width, hidden]),
        ] {
            file = file.zeros(&format!("blk.{layer}.{name}.weight"), shape);
        }
    }
    file
}

/// A PEFT folder to be.
pub(crate) struct PeftFolder {
    config: String,
    tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)>,
}

/// Values that are told apart: `first`, `first + 1`, ...
pub(crate) fn count_from(first: f32, shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product::<usize>()).map(|i| first + i as f32).collect()
}

impl PeftFolder {
    /// With these fields beside `peft_type`.
    pub(crate) fn new(fields: &str) -> PeftFolder {
        let comma = if fields.is_empty() { "" } else { ", " };
        let config = format!(r#"{{"peft_type": "LORA"{comma}{fields}}}"#);
        PeftFolder { config, tensors: Vec::new() }
    }

    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], values: &[f32]) -> PeftFolder {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), Dtype::F32, bytes));
        self
    }

    pub(crate) fn raw(
        mut self,
        name: &str,
        shape: &[usize],
        dtype: Dtype,
        bytes: &[u8],
    ) -> PeftFolder {
        self.tensors.push((name.to_owned(), shape.to_vec(), dtype, bytes.to_vec()));
        self
    }

    /// A pair for `base_model.model.model.layers.<module>`, its values counted from 1 and 101.
    pub(crate) fn pair(self, module: &str, rank: usize, columns: usize, rows: usize) -> PeftFolder {
        let name = format!("base_model.model.model.layers.{module}");
        let (a, b) = ([rank, columns], [rows, rank]);
        self.tensor(&format!("{name}.lora_A.weight"), &a, &count_from(1.0, &a)).tensor(
            &format!("{name}.lora_B.weight"),
            &b,
            &count_from(101.0, &b),
        )
    }

    pub(crate) fn weights(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, shape, dtype, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    pub(crate) fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), &self.config).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), self.weights()).unwrap();
        folder
    }

    pub(crate) fn load(&self, base: &GgufFile) -> Result<Adapter, Fault> {
        self.load_with(base, 1.0, OnMismatch::Fail)
    }

    pub(crate) fn load_with(
        &self,
        base: &GgufFile,
        scale: f32,
        on_mismatch: OnMismatch,
    ) -> Result<Adapter, Fault> {
        let folder = self.write();
        load_path(folder.path(), &base.open(), scale, on_mismatch)
    }

    /// What is wrong with it.
    pub(crate) fn fault(&self, base: &GgufFile) -> Fault {
        self.load(base).expect_err("refused")
    }
}

pub(crate) fn load_path(
    path: &Path,
    base: &Gguf,
    scale: f32,
    on_mismatch: OnMismatch,
) -> Result<Adapter, Fault> {
    let spec = AdapterSpec { scale, ..AdapterSpec::new(path) };
    load(&spec, base, on_mismatch).map_err(|error| match error {
        Error::Adapter { path: found, fault } => {
            assert_eq!(found, path);
            fault
        }
        other => panic!("{other}"),
    })
}

/// `scale * up @ down`, row after row.
pub(crate) fn product(change: &Change) -> Vec<f32> {
    let ChangeKind::LowRank { down, up, scale, .. } = &change.kind else {
        panic!("not a pair: {change:?}");
    };
    let (rank, columns) = (down.rows(), down.columns());
    assert_eq!(up.columns(), rank);
    assert_eq!(up.rows(), change.rows.len());
    let (down, up) = (down.to_f32(), up.to_f32());
    let row = |up: &[f32]| {
        let of = |j: usize| (0..rank).map(|k| up[k] * down[k * columns + j]).sum::<f32>() * scale;
        (0..columns).map(of).collect::<Vec<_>>()
    };
    up.chunks_exact(rank).flat_map(row).collect()
}

/// The same of two matrices given whole: `b` (rows, rank), `a` (rank, columns).
pub(crate) fn matmul(b: &[f32], a: &[f32], rank: usize) -> Vec<f32> {
    let columns = a.len() / rank;
    let row = |b: &[f32]| {
        let of = |j: usize| (0..rank).map(|k| b[k] * a[k * columns + j]).sum::<f32>();
        (0..columns).map(of).collect::<Vec<_>>()
    };
    b.chunks_exact(rank).flat_map(row).collect()
}

/// The values of a replacement or an addition.
pub(crate) fn values(change: &Change) -> Vec<f32> {
    match &change.kind {
        ChangeKind::Replace { values, .. } | ChangeKind::Add { values, .. } => values.to_f32(),
        _ => panic!("no values: {change:?}"),
    }
}

/// The one change of a tensor.
pub(crate) fn change_of<'a>(adapter: &'a Adapter, tensor: &str) -> &'a Change {
    let mut found = adapter.changes.iter().filter(|change| change.tensor == tensor);
    let change = found.next().unwrap_or_else(|| panic!("{tensor} in {adapter:#?}"));
    assert!(found.next().is_none(), "{tensor} twice");
    change
}

/// An adapter of the repository's test data.
pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/adapters").join(name)
}
