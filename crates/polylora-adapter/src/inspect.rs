//! What is in a file: a model, an adapter of either kind, or an importance matrix.

use crate::error::Error;
use crate::summary::{Summary, summarize};
use polylora_file::imatrix::Imatrix;
use polylora_file::{Gguf, Value};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Elements of an array of metadata that are shown.
const SHOWN: usize = 8;

/// What was found. As JSON it is the one or the other, without a word on which: their fields
/// differ.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Inspection {
    /// A PEFT folder or a GGUF adapter.
    Adapter(Summary),
    /// Any other GGUF file.
    Model(ModelSummary),
    /// An importance matrix of either format.
    Imatrix(ImatrixSummary),
}

/// A description of a model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelSummary {
    /// The file, or the parts of a split one.
    pub files: Vec<PathBuf>,
    /// Of the format.
    pub version: u32,
    /// What the places of tensors are multiples of.
    pub alignment: usize,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// In the order of the file. Long arrays (a vocabulary) are told by their beginning.
    pub metadata: Vec<(String, serde_json::Value)>,
    /// In the order of the file.
    pub tensors: Vec<ModelTensor>,
}

/// A tensor of a model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelTensor {
    /// Its name.
    pub name: String,
    /// Its type, by ggml's name.
    #[serde(rename = "type")]
    pub ty: &'static str,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: usize,
}

/// A description of an importance matrix.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImatrixSummary {
    /// Where it lies.
    pub path: PathBuf,
    /// The texts that it was measured on.
    pub datasets: Vec<String>,
    /// How many chunks of text were used, where the file tells.
    pub chunks: Option<u64>,
    /// Tokens in a chunk, where the file tells.
    pub chunk_size: Option<u64>,
    /// By tensor.
    pub entries: Vec<ImatrixEntry>,
}

/// The importance of one tensor's columns.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImatrixEntry {
    /// The tensor.
    pub tensor: String,
    /// Number of columns.
    pub values: usize,
    /// Their mean.
    pub mean: f64,
    /// The largest.
    pub max: f32,
}

/// Describes whatever lies at `path`.
///
/// # Errors
/// Where it is nothing that is known, or damaged.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    if path.is_dir() {
        return summarize(path).map(Inspection::Adapter);
    }
    let gguf = match Gguf::open(path) {
        Ok(gguf) => gguf,
        // The old imatrix format has no magic: where the file reads as one, it is one.
        Err(error) => {
            let imatrix = Imatrix::open(path).map_err(|_| error)?;
            return Ok(Inspection::Imatrix(ImatrixSummary::new(path, &imatrix)));
        }
    };
    Ok(match gguf.metadata().str("general.type") {
        Some("adapter") => Inspection::Adapter(summarize(path)?),
        Some("imatrix") => Inspection::Imatrix(ImatrixSummary::new(path, &Imatrix::open(path)?)),
        _ => Inspection::Model(ModelSummary::new(&gguf)),
    })
}

impl ModelSummary {
    fn new(gguf: &Gguf) -> ModelSummary {
        let tensors = gguf.tensors().iter().map(|tensor| ModelTensor {
            name: tensor.name.clone(),
            ty: tensor.ty.name(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len(),
        });
        let metadata = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), json(value)));
        ModelSummary {
            files: gguf.parts().to_vec(),
            version: gguf.version(),
            alignment: gguf.alignment(),
            architecture: gguf.architecture().map(str::to_owned),
            parameters: gguf.tensors().iter().map(|tensor| tensor.elements() as u64).sum(),
            tensor_bytes: gguf.tensors().iter().map(|tensor| tensor.bytes.len() as u64).sum(),
            metadata: metadata.collect(),
            tensors: tensors.collect(),
        }
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Array(array) => {
            let shown: Vec<serde_json::Value> =
                array.iter().take(SHOWN).map(|value| json(&value)).collect();
            if array.len() <= SHOWN {
                return shown.into();
            }
            serde_json::json!({ "length": array.len(), "first": shown })
        }
        Value::Bool(value) => (*value).into(),
        Value::String(text) => String::from_utf8_lossy(text).into(),
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F32(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
    }
}

impl ImatrixSummary {
    fn new(path: &Path, imatrix: &Imatrix) -> ImatrixSummary {
        let entries = imatrix.entries().map(|(tensor, values)| ImatrixEntry {
            tensor: tensor.to_owned(),
            values: values.len(),
            mean: values.iter().map(|&value| f64::from(value)).sum::<f64>()
                / values.len().max(1) as f64,
            max: values.iter().copied().fold(0.0, f32::max),
        });
        ImatrixSummary {
            path: path.to_owned(),
            datasets: imatrix.datasets().to_vec(),
            chunks: imatrix.chunks(),
            chunk_size: imatrix.chunk_size(),
            entries: entries.collect(),
        }
    }
}
