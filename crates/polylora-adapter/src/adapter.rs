//! What an adapter is, once it is matched to a base.

use crate::error::{Error, Fault};
use crate::factor::Factor;
use crate::format;
use crate::spec::AdapterSpec;
use polylora_file::{Bytes, Gguf, Tensor};
use polylora_quant::GgmlType;
use rayon::prelude::*;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An adapter matched to a base: what it does to each of the base's tensors, by their GGUF names
/// and in their layout, whatever the adapter's own.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What to call it.
    pub name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// SHA-256 in hexadecimal: of the GGUF file, or of `adapter_config.json` followed by the
    /// files of weights.
    pub hash: String,
    /// The user's scale, already multiplied into the scales of `changes`.
    pub scale: f32,
    /// What it does, in the order of the base's tensors.
    pub changes: Vec<Change>,
    /// What does not fit the base and was left out, where [`OnMismatch::Skip`] allowed that.
    pub mismatches: Vec<Mismatch>,
}

impl Adapter {
    /// An adapter that was made here, and lies in no file yet.
    pub fn made(name: &str, changes: Vec<Change>) -> Adapter {
        Adapter {
            name: name.to_owned(),
            path: PathBuf::from(name),
            hash: String::new(),
            scale: 1.0,
            changes,
            mismatches: Vec::new(),
        }
    }
}

/// One thing done to rows of one tensor.
#[derive(Clone, Debug)]
pub struct Change {
    /// The tensor's name in the base. Two may not be there: `output.weight` in a base that uses
    /// its embedding as the head too, and a bias where the adapter brings one of its own.
    pub tensor: String,
    /// Rows count through all leading dimensions: those of expert `e` are `e * out .. (e + 1) * out`.
    /// A vector is one row.
    pub rows: Range<usize>,
    /// The tensor or module in the adapter, for messages.
    pub source: String,
    /// What is done.
    pub kind: ChangeKind,
}

/// What is done to rows `W` of a tensor.
#[derive(Clone, Debug)]
pub enum ChangeKind {
    /// `W += scale * up @ down`.
    ///
    /// With a magnitude (DoRA) each row of the sum is then brought to its length there:
    /// `magnitude / ||W0 + scale * up @ down||`, where `W0` is the base's row. PEFT takes the
    /// norm of the base's own row when several adapters are merged, too.
    LowRank {
        /// `(rank, columns)`: `lora_A`.
        down: Factor,
        /// `(rows, rank)`: `lora_B`.
        up: Factor,
        /// The adapter's own scale times the user's.
        scale: f32,
        /// `(rows, 1)`: the length of each row.
        magnitude: Option<Factor>,
    },
    /// `W += scale * (values - W)`: a whole replacement at scale 1.
    Replace {
        /// As many rows as are replaced.
        values: Factor,
        /// The user's scale.
        scale: f32,
    },
    /// `W += scale * values`: a bias.
    Add {
        /// One row.
        values: Factor,
        /// The adapter's own scale times the user's.
        scale: f32,
    },
    /// Each column times a factor: what DoRA does to an embedding, whose columns it brings to
    /// lengths of their own after the pair was added. The norms are the base's, taken here.
    ScaleColumns {
        /// One for each column.
        factors: Arc<[f32]>,
    },
}

impl ChangeKind {
    /// Whether it multiplies with finite numbers only.
    fn has_finite_scale(&self) -> bool {
        match self {
            ChangeKind::LowRank { scale, .. }
            | ChangeKind::Replace { scale, .. }
            | ChangeKind::Add { scale, .. } => scale.is_finite(),
            ChangeKind::ScaleColumns { factors } => factors.iter().all(|factor| factor.is_finite()),
        }
    }
}

impl Change {
    /// `W[rows] += up @ down`, of factors in memory: `down` is `(rank, columns)`, `up` is
    /// `(rows, rank)`.
    ///
    /// # Panics
    /// Where they are not of such shapes.
    pub fn low_rank(
        tensor: &str,
        rows: Range<usize>,
        [down, up]: [Vec<f32>; 2],
        rank: usize,
    ) -> Change {
        let factor = |name: &str, values: Vec<f32>, shape: [usize; 2]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let name = format!("{tensor}.{name}");
            let tensor = Tensor::new(&name, GgmlType::F32, shape.to_vec(), bytes.into());
            Factor::whole(&Arc::new(tensor.expect("factors of these shapes")))
        };
        let (columns, count) = (down.len() / rank, rows.len());
        let kind = ChangeKind::LowRank {
            down: factor("lora_a", down, [rank, columns]),
            up: factor("lora_b", up, [count, rank]),
            scale: 1.0,
            magnitude: None,
        };
        Change { tensor: tensor.to_owned(), rows, source: tensor.to_owned(), kind }
    }
}

/// Something of an adapter that the base has no place for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mismatch {
    /// The tensor in the adapter.
    pub tensor: String,
    /// Why it does not fit.
    pub why: String,
}

/// What to do where a part of an adapter does not fit the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMismatch {
    /// Refuse the adapter.
    #[default]
    Fail,
    /// Leave that part out and list it. What is damaged, or would compute something unknown, is
    /// refused all the same.
    Skip,
}

/// Reads an adapter and matches it to a base.
///
/// # Errors
/// Where it is damaged, holds something that cannot be honoured, or (with [`OnMismatch::Fail`])
/// does not fit the base.
pub fn load(spec: &AdapterSpec, base: &Gguf, on_mismatch: OnMismatch) -> Result<Adapter, Error> {
    load_by(spec, base, on_mismatch, Bytes::map)
}

/// As [`load`], and nothing may be left out; but the files are read into memory, so they may change
/// meanwhile and afterwards: the hash is of what is used.
///
/// # Errors
/// As [`load`].
pub fn load_copy(spec: &AdapterSpec, base: &Gguf) -> Result<Adapter, Error> {
    load_by(spec, base, OnMismatch::Fail, Bytes::read)
}

fn load_by(
    spec: &AdapterSpec,
    base: &Gguf,
    on_mismatch: OnMismatch,
    read_file: ReadFile,
) -> Result<Adapter, Error> {
    let fault = |fault| Error::Adapter { path: spec.path.clone(), fault };
    let mut matching = Matching::new(base, spec.scale, on_mismatch, read_file);
    let found = format::recognize(&spec.path).map_err(fault)?;
    let hash = (found.read)(&spec.path, &mut matching).map_err(fault)?;
    let (changes, mismatches) = matching.finish().map_err(fault)?;
    Ok(Adapter {
        name: spec.name.clone(),
        path: spec.path.clone(),
        hash,
        scale: spec.scale,
        changes,
        mismatches,
    })
}

/// An adapter while it is being matched: what each format's reader fills.
pub(crate) struct Matching<'a> {
    pub(crate) base: &'a Gguf,
    /// The user's scale.
    scale: f32,
    on_mismatch: OnMismatch,
    /// How the bytes of the adapter's files are to be had.
    pub(crate) read_file: ReadFile,
    changes: Vec<Change>,
    mismatches: Vec<Mismatch>,
}

/// Maps a file, or reads it.
pub(crate) type ReadFile = fn(&Path) -> io::Result<Bytes>;

impl<'a> Matching<'a> {
    pub(crate) fn new(
        base: &'a Gguf,
        scale: f32,
        on_mismatch: OnMismatch,
        read_file: ReadFile,
    ) -> Matching<'a> {
        let (changes, mismatches) = (Vec::new(), Vec::new());
        Matching { base, scale, on_mismatch, read_file, changes, mismatches }
    }

    /// The adapter's own scale (as Python has it, in double precision) times the user's.
    pub(crate) fn scale(&self, own: f64) -> f32 {
        (own * f64::from(self.scale)) as f32
    }

    /// Takes what one tensor or pair does, or notes that it does not fit.
    pub(crate) fn settle(
        &mut self,
        source: &str,
        changes: Result<Vec<Change>, Fault>,
    ) -> Result<(), Fault> {
        match changes {
            Ok(changes) => {
                if !changes.iter().all(|change| change.kind.has_finite_scale()) {
                    return Err(Fault::Scale(source.to_owned()));
                }
                self.changes.extend(changes);
            }
            Err(fault) if self.on_mismatch == OnMismatch::Skip && fault.is_mismatch() => {
                let (tensor, why) = (source.to_owned(), fault.to_string());
                self.mismatches.push(Mismatch { tensor, why });
            }
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Vec<Change>, Vec<Mismatch>), Fault> {
        if self.changes.is_empty() {
            return Err(Fault::Nothing { mismatches: self.mismatches });
        }
        let tensors = self.base.tensors().iter().enumerate();
        let order: HashMap<&str, usize> = tensors.map(|(i, tensor)| (&*tensor.name, i)).collect();
        let place = |change: &Change| order.get(&*change.tensor).copied().unwrap_or(usize::MAX);
        self.changes.sort_by_key(|change| (place(change), change.rows.start));
        Ok((self.changes, self.mismatches))
    }
}

/// Values that are decoded at a time to look at them: they stay in the first cache.
const VALUES_IN_HAND: usize = 4096;

/// Refuses a tensor that holds no weights, or any that is not a finite number.
pub(crate) fn check_values(tensors: &[Arc<Tensor>]) -> Result<(), Fault> {
    tensors.par_iter().find_map_first(|tensor| check_tensor(tensor).err()).map_or(Ok(()), Err)
}

fn check_tensor(tensor: &Tensor) -> Result<(), Fault> {
    let name = || tensor.name.clone();
    if !tensor.ty.decodes() {
        return Err(Fault::Type { tensor: name(), ty: tensor.ty });
    }
    if tensor.elements() == 0 {
        return Err(Fault::Empty(name()));
    }
    let columns = tensor.columns();
    let step = (VALUES_IN_HAND / columns).max(1);
    let mut values = vec![0.0; step.min(tensor.rows()) * columns];
    for start in (0..tensor.rows()).step_by(step) {
        let rows = start..tensor.rows().min(start + step);
        let values = &mut values[..rows.len() * columns];
        let decoded = tensor.dequantize_rows(rows, values);
        decoded.map_err(|_| Fault::Type { tensor: name(), ty: tensor.ty })?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let index = start * columns + at;
            return Err(Fault::NotFinite { tensor: name(), index, value: values[at] });
        }
    }
    Ok(())
}
