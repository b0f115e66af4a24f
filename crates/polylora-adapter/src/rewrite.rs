//! A model file into a model file: merging adapters, changing types, or both.
//!
//! A [`Plan`] says for every tensor of the output where it comes from, what is done to it and
//! which type it takes; making one refuses whatever cannot be honoured. [`Plan::write`] then
//! streams: a few rows at a time in each thread, straight to their place in the output. What
//! nothing is done to is copied byte for byte.

mod execute;
mod types;

use crate::adapter::{Adapter, Change, ChangeKind, Mismatch};
use crate::mixture;
use crate::scales::{ScaleError, Scales};
use polylora_file::imatrix::Imatrix;
use polylora_file::{Gguf, Metadata, Tensor, TensorPlan, Value};
use polylora_quant::GgmlType;
use std::collections::HashMap;

pub use execute::{Observer, RewriteError};
pub use types::{TypeRules, TypeRulesError};

/// Where a merge records the adapters it put in: names (strings), scales (f32) and content
/// hashes (strings), one each for every adapter, earlier merges first.
const MERGED_NAMES: &str = "polylora.merge.names";
const MERGED_SCALES: &str = "polylora.merge.scales";
const MERGED_HASHES: &str = "polylora.merge.hashes";

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Everything about an output file but its bytes.
#[derive(Debug)]
pub struct Plan<'a> {
    metadata: Metadata,
    outputs: Vec<Output<'a>>,
    adapters: Vec<&'a Adapter>,
    notes: Vec<String>,
}

/// One tensor of the output.
#[derive(Debug)]
pub struct Output<'a> {
    /// Its name.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The type to write.
    pub ty: GgmlType,
    /// What it starts from; `None` for a bias that the base does not have, which starts from zero.
    pub source: Option<&'a Tensor>,
    /// What is done to it, in order.
    pub changes: Vec<&'a Change>,
    /// One value a column (of each expert), where there is an importance matrix.
    importance: Option<&'a [f32]>,
    /// What the products of a tensor that adapters change are multiplied by.
    scales: Scales,
}

impl Output<'_> {
    /// Whether its bytes are the base's.
    pub fn is_copy(&self) -> bool {
        self.changes.is_empty() && self.source.is_some_and(|source| source.ty == self.ty)
    }

    /// The highest rank of what is done to each row: the sum over adapters, as each adds its own.
    pub fn rank(&self) -> usize {
        let mut by_rows: HashMap<usize, usize> = HashMap::new();
        for change in &self.changes {
            if let ChangeKind::LowRank { down, .. } = &change.kind {
                *by_rows.entry(change.rows.start).or_default() += down.rows();
            }
        }
        by_rows.into_values().max().unwrap_or(0)
    }

    /// Weights in a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of all leading dimensions together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// What its products are multiplied by when the model runs: weights `W` mean `s W`, and what
    /// adapters add to that is stored divided by `s`. None where no adapter changes it.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes that it takes as a type; zero where its rows are not whole blocks of that.
    pub fn bytes_as(&self, ty: GgmlType) -> u64 {
        ty.row_bytes(self.columns()).unwrap_or(0) as u64 * self.rows() as u64
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes_as(self.ty)
    }

    /// Refuses a type that cannot be written here.
    fn check_type(&self) -> Result<(), PlanError> {
        if self.is_copy() {
            return Ok(());
        }
        if let Some(source) = self.source
            && !source.ty.decodes()
        {
            return Err(PlanError::NoWeights { tensor: self.name.clone(), ty: source.ty });
        }
        if self.ty.encodes().is_none() {
            return Err(PlanError::NotForWeights {
                tensor: self.name.clone(),
                ty: self.ty,
                choices: encodable(self.columns()),
            });
        }
        if self.ty.row_bytes(self.columns()).is_none() {
            return Err(PlanError::PartialBlock {
                tensor: self.name.clone(),
                ty: self.ty,
                columns: self.columns(),
                choices: encodable(self.columns()),
            });
        }
        Ok(())
    }
}

/// The types that rows of this length can be written in.
fn encodable(columns: usize) -> String {
    let fits = |ty: &&GgmlType| ty.encodes().is_some() && ty.row_bytes(columns).is_some();
    let names = GgmlType::ALL.iter().filter(fits).map(|ty| ty.name().to_ascii_lowercase());
    names.collect::<Vec<_>>().join(", ")
}

/// Why a plan cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The type asked for is one of whole numbers.
    #[error(
        "tensor {tensor} cannot be written as {ty}, which does not hold weights; its rows can be \
         {choices} (merge --type TYPE, or --type {tensor}=TYPE for this one)"
    )]
    NotForWeights {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        ty: GgmlType,
        /// The types that would do.
        choices: String,
    },
    /// The row length and the block length do not go together.
    #[error(
        "tensor {tensor} has {columns} columns, not whole blocks of {ty} ({} each); its rows can be \
         {choices} (merge --type {tensor}=TYPE)", .ty.block_weights()
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        ty: GgmlType,
        /// Its row length.
        columns: usize,
        /// The types that would do.
        choices: String,
    },
    /// Integers in a place of weights.
    #[error("tensor {tensor} is of type {ty}, which does not hold weights")]
    NoWeights {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// A rule that does nothing is a misspelt rule.
    #[error("--type {pattern}={ty}: no tensor that the adapters change has a name like that")]
    IdlePattern {
        /// The pattern.
        pattern: String,
        /// The type it would give.
        ty: GgmlType,
    },
    /// The importance matrix is of another model.
    #[error(
        "the importance matrix has {found} values for tensor {tensor}, which needs {expected}: \
         is it of this model?"
    )]
    Importance {
        /// The tensor.
        tensor: String,
        /// Values in the matrix.
        found: usize,
        /// Columns, times experts.
        expected: usize,
    },
    /// What products are multiplied by is no such thing.
    #[error(transparent)]
    Scale(#[from] ScaleError),
    /// No weights give what an adapter adds.
    #[error(
        "tensor {tensor} is multiplied by {scale} when the model runs, which is zero: a change of it \
         would be lost"
    )]
    ZeroScale {
        /// The tensor.
        tensor: String,
        /// The tensor that its products are multiplied by.
        scale: String,
    },
    /// A change names a tensor that neither exists nor can be made.
    #[error("{source_name} changes {tensor}, which the base does not have")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The adapter's name for it.
        source_name: String,
    },
}

impl<'a> Plan<'a> {
    /// Merges `adapters` into `base`: what they touch takes the type that `rules` say, all else
    /// is copied.
    ///
    /// # Errors
    /// Whatever cannot be honoured, before a byte is written.
    pub fn merge(
        base: &'a Gguf,
        adapters: &'a [Adapter],
        rules: &TypeRules,
        imatrix: Option<&'a Imatrix>,
    ) -> Result<Plan<'a>, PlanError> {
        let mut plan = Plan::copy(base);
        plan.adapters = adapters.iter().collect();
        let one_for_both = plan.untie(base);
        for change in adapters.iter().flat_map(|adapter| &adapter.changes) {
            if one_for_both && change.tensor == HEAD {
                continue;
            }
            plan.output_for(change)?.changes.push(change);
        }
        for output in plan.outputs.iter_mut().filter(|output| !output.changes.is_empty()) {
            output.scales = Scales::find(base, &output.name, &output.shape)?;
            if output.scales.has_zero() {
                let scale = Scales::name(&output.name).expect("it was found by its name");
                return Err(PlanError::ZeroScale { tensor: output.name.clone(), scale });
            }
            let own = output.ty;
            output.ty = rules.choose(&output.name, output.shape.len(), own);
            if output.name == HEAD && output.ty != own && !output.scales.is_empty() {
                plan.notes.push(format!(
                    "{HEAD} was {own} and has a scale beside it, which llama.cpp knows with that type \
                     alone: it will refuse the file"
                ));
            }
        }
        if let Some((pattern, ty)) = rules.idle_pattern(plan.touched().map(|output| &*output.name))
        {
            return Err(PlanError::IdlePattern { pattern, ty });
        }
        plan.record(adapters);
        plan.keep_file_type_true(base);
        plan.finish(imatrix)
    }

    /// Gives tensor `i` of `base` the type `types[i]`.
    ///
    /// # Errors
    /// Where a type holds no weights or does not fit a tensor.
    pub fn quantize(
        base: &'a Gguf,
        types: &[GgmlType],
        file_type: u32,
        imatrix: Option<&'a Imatrix>,
    ) -> Result<Plan<'a>, PlanError> {
        let mut plan = Plan::copy(base);
        for (output, &ty) in plan.outputs.iter_mut().zip(types) {
            output.ty = ty;
        }
        plan.metadata.insert("general.file_type", Value::U32(file_type));
        plan.metadata.insert("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
        plan.finish(imatrix)
    }

    fn copy(base: &'a Gguf) -> Plan<'a> {
        let output = |tensor: &'a Tensor| Output {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: tensor.ty,
            source: Some(tensor),
            changes: Vec::new(),
            importance: None,
            scales: Scales::default(),
        };
        Plan {
            metadata: base.metadata().clone(),
            outputs: base.tensors().iter().map(output).collect(),
            adapters: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A base that has no head of its own uses the embedding as the head. Where the adapters do
    /// the same to both, that stays so; otherwise the head gets a copy of its own. Returns
    /// whether the two are one in the output.
    fn untie(&mut self, base: &'a Gguf) -> bool {
        let (None, Some(embedding)) = (base.tensor(HEAD), base.tensor(EMBEDDING)) else {
            return false;
        };
        let changes_of = |name: &str| -> Vec<_> {
            let all = self.adapters.iter().flat_map(|adapter| &adapter.changes);
            let of_name = all.filter(|change| change.tensor == name);
            of_name.map(|change| (&change.source, &change.rows)).collect()
        };
        let (to_head, to_embedding) = (changes_of(HEAD), changes_of(EMBEDDING));
        if to_head == to_embedding {
            return true;
        }
        let (source, _) = to_head.first().or(to_embedding.first()).expect("they differ");
        self.notes.push(format!(
            "the base uses {EMBEDDING} as its head too, and {source} changes only one of the two: \
             the output has a {HEAD} of its own"
        ));
        self.outputs.push(Output {
            name: HEAD.to_owned(),
            shape: embedding.shape.clone(),
            ty: embedding.ty,
            source: Some(embedding),
            changes: Vec::new(),
            importance: None,
            scales: Scales::default(),
        });
        false
    }

    /// The output that a change is for; a bias that the base lacks is made, of zeros.
    fn output_for(&mut self, change: &'a Change) -> Result<&mut Output<'a>, PlanError> {
        if let Some(at) = self.outputs.iter().position(|output| output.name == change.tensor) {
            return Ok(&mut self.outputs[at]);
        }
        let ChangeKind::Add { values, .. } = &change.kind else {
            return Err(PlanError::UnknownTensor {
                tensor: change.tensor.clone(),
                source_name: change.source.clone(),
            });
        };
        self.notes.push(format!(
            "the base has no {}: the adapter's is added to the file, and counts where the program \
             that runs the file reads that tensor",
            change.tensor
        ));
        self.outputs.push(Output {
            name: change.tensor.clone(),
            shape: vec![values.columns()],
            ty: GgmlType::F32,
            source: None,
            changes: Vec::new(),
            importance: None,
            scales: Scales::default(),
        });
        Ok(self.outputs.last_mut().expect("pushed above"))
    }

    /// Writes into the metadata which adapters are in the file now.
    fn record(&mut self, adapters: &[Adapter]) {
        let mut append = |key: &str, value: fn(&Adapter) -> Value| {
            let mut values = self.metadata.array(key).unwrap_or_default();
            values.extend(adapters.iter().map(value));
            // Somebody else's values under our key give way.
            if self.metadata.insert_array(key, &values).is_err() {
                let values: Vec<Value> = adapters.iter().map(value).collect();
                self.metadata.insert_array(key, &values).expect("all of one type");
            }
        };
        append(MERGED_NAMES, |adapter| adapter.name.as_str().into());
        append(MERGED_SCALES, |adapter| adapter.scale.into());
        append(MERGED_HASHES, |adapter| adapter.hash.as_str().into());
    }

    /// `general.file_type` names the type of most weights: it is renewed where that changes.
    fn keep_file_type_true(&mut self, base: &Gguf) {
        let before = most_common(base.tensors().iter().map(|t| (t.ty, &*t.shape)));
        let after = most_common(self.outputs.iter().map(|o| (o.ty, &*o.shape)));
        if before != after
            && let Some(file_type) = after.and_then(mixture::file_type_of)
        {
            self.metadata.insert("general.file_type", Value::U32(file_type));
        }
    }

    fn finish(mut self, imatrix: Option<&'a Imatrix>) -> Result<Plan<'a>, PlanError> {
        for output in &mut self.outputs {
            output.check_type()?;
            let Some(importance) = imatrix.and_then(|imatrix| imatrix.get(&output.name)) else {
                continue;
            };
            // One set of columns for each expert of a 3-D tensor, or one for all.
            let experts = if output.shape.len() == 3 { output.shape[0] } else { 1 };
            let expected = output.columns() * experts;
            if importance.len() != expected {
                let found = importance.len();
                let tensor = output.name.clone();
                return Err(PlanError::Importance { tensor, found, expected });
            }
            output.importance = Some(importance);
        }
        Ok(self)
    }

    /// Every tensor of the output, in file order.
    pub fn outputs(&self) -> &[Output<'a>] {
        &self.outputs
    }

    /// The tensors that do not keep their bytes.
    pub fn touched(&self) -> impl Iterator<Item = &Output<'a>> {
        self.outputs.iter().filter(|output| !output.is_copy())
    }

    /// What a reader should know besides, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was left alone because it does not fit the base, over all adapters.
    pub fn mismatches(&self) -> impl Iterator<Item = &Mismatch> {
        self.adapters.iter().flat_map(|adapter| &adapter.mismatches)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.outputs.iter().map(Output::bytes).sum()
    }

    fn tensor_plans(&self) -> Vec<TensorPlan> {
        let plan = |output: &Output<'_>| TensorPlan {
            name: output.name.clone(),
            ty: output.ty,
            shape: output.shape.clone(),
        };
        self.outputs.iter().map(plan).collect()
    }
}

/// ggml's version of the block layouts: `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// The type of most weights, norms and biases aside.
fn most_common<'t>(tensors: impl Iterator<Item = (GgmlType, &'t [usize])>) -> Option<GgmlType> {
    let mut weights: HashMap<GgmlType, usize> = HashMap::new();
    for (ty, shape) in tensors.filter(|(_, shape)| shape.len() > 1) {
        *weights.entry(ty).or_default() += shape.iter().product::<usize>();
    }
    weights.into_iter().max_by_key(|&(ty, count)| (count, ty)).map(|(ty, _)| ty)
}
