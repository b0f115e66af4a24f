//! What an adapter is, without a base to match it to.

use crate::error::Error;
use crate::format;
use polylora_file::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A description of an adapter.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Where it lies.
    pub path: PathBuf,
    /// `PEFT folder` or `GGUF adapter`.
    pub format: &'static str,
    /// See [`crate::Adapter::hash`].
    pub hash: String,
    /// The base that it was trained on, where it says so.
    pub base: Option<String>,
    /// The architecture of the bases that it fits, where it says so.
    pub architecture: Option<String>,
    /// What it consists of: `LoRA`, `DoRA`, `biases`, ...
    pub kinds: BTreeSet<&'static str>,
    /// How many modules have which rank.
    pub ranks: BTreeMap<usize, usize>,
    /// The scales of its modules (alpha / rank, or alpha / sqrt(rank)), each once, ascending.
    pub scales: Vec<f64>,
    /// The kinds of modules that it changes (`self_attn.q_proj`, `attn_q.weight`), and how many of each.
    pub targets: BTreeMap<String, usize>,
    /// Number of weights.
    pub parameters: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
    /// Settings in use: of the PEFT configuration or the GGUF's metadata.
    pub config: Vec<(String, String)>,
    /// Every tensor.
    pub tensors: Vec<TensorSummary>,
}

/// A tensor of an adapter.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct TensorSummary {
    /// Its name there.
    pub name: String,
    /// Its type, by ggml's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
}

/// Describes an adapter of any known format.
///
/// # Errors
/// Where it is none, or one that [`crate::load`] would refuse whatever the base.
pub fn summarize(path: &Path) -> Result<Summary, Error> {
    let found = format::recognize(path).and_then(|format| (format.summarize)(path));
    found.map_err(|fault| Error::Adapter { path: path.to_owned(), fault })
}

impl Summary {
    pub(crate) fn new(
        path: &Path,
        format: &'static str,
        hash: String,
        tensors: &[Arc<Tensor>],
    ) -> Summary {
        let summary = |tensor: &Arc<Tensor>| TensorSummary {
            name: tensor.name.clone(),
            ty: tensor.ty.to_string(),
            shape: tensor.shape.clone(),
        };
        Summary {
            path: path.to_owned(),
            format,
            hash,
            base: None,
            architecture: None,
            kinds: BTreeSet::new(),
            ranks: BTreeMap::new(),
            scales: Vec::new(),
            targets: BTreeMap::new(),
            parameters: tensors.iter().map(|tensor| tensor.elements()).sum(),
            bytes: tensors.iter().map(|tensor| tensor.bytes.len()).sum(),
            config: Vec::new(),
            tensors: tensors.iter().map(summary).collect(),
        }
    }

    /// Counts a module that has a pair.
    pub(crate) fn low_rank(&mut self, module: &str, rank: usize, scale: f64) {
        *self.ranks.entry(rank).or_default() += 1;
        if let Err(at) = self.scales.binary_search_by(|other| other.total_cmp(&scale)) {
            self.scales.insert(at, scale);
        }
        self.target(module);
    }

    /// Counts a module, by its name without the layer's number.
    pub(crate) fn target(&mut self, module: &str) {
        let in_layer =
            ["layers.", "h.", "blk."].iter().find_map(|layers| module.strip_prefix(layers));
        let kind = in_layer.and_then(|rest| rest.split_once('.')).map_or(module, |(_, kind)| kind);
        *self.targets.entry(kind.to_owned()).or_default() += 1;
    }
}
