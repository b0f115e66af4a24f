//! Carrying out a plan: rows in, rows out, in parallel.

use super::{Output, Plan};
use crate::adapter::{Change, ChangeKind};
use crate::fidelity::Sums;
use crate::merge::{LowRank, MergeError, add_low_rank, requantize};
use crate::report::{Report, TensorReport};
use polylora_file::{GgufWriter, Tensor, WriteOptions};
use polylora_quant::compensate::{Curvature, quantize_compensated};
use polylora_quant::isa::LANES;
use polylora_quant::{Importance, Isa, changed_codes};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Weights that a thread has in hand: 1 MiB in single precision, three times over (as read, as
/// merged, as written), so that memory is bounded by threads, and the second level of cache holds
/// most of it. A longer row is taken alone.
const WEIGHTS_IN_HAND: usize = 1 << 18;

/// Bytes of a tensor that is copied, a piece at a time: large enough that the system calls are
/// few, small enough that progress moves.
const COPY_PIECE: usize = 4 << 20;

/// Watches the work from the outside; called from all threads.
pub trait Observer: Sync {
    /// So many more bytes of tensors are written.
    fn wrote(&self, _bytes: u64) {}
    /// Whether to give up: asked before each piece of work.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// Why a plan was not carried out. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// From the file.
    #[error(transparent)]
    File(#[from] polylora_file::Error),
    /// From a row's arithmetic.
    #[error("tensor {tensor}: {source}")]
    Row {
        /// The tensor.
        tensor: String,
        /// What went wrong.
        source: MergeError,
    },
    /// The base is damaged.
    #[error(
        "tensor {tensor} of the base has weights that are not numbers (rows {} to {}): the file \
         is damaged", .rows.start, .rows.end
    )]
    BaseNotFinite {
        /// The tensor.
        tensor: String,
        /// The rows that were in hand.
        rows: Range<usize>,
    },
    /// The merged weights leave the type's range.
    #[error(
        "tensor {tensor} has merged weights beyond what {ty} can hold (rows {} to {}): is the \
         scale right? f32 or bf16 would hold them", .rows.start, .rows.end
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The type it was to take.
        ty: polylora_quant::GgmlType,
        /// The rows that were in hand.
        rows: Range<usize>,
    },
    /// The type is of no use without importances, and none are there.
    #[error(
        "tensor {tensor} cannot be written as {ty} without an importance matrix: give one with \
         --imatrix (polylora imatrix MODEL.gguf --text FILE -o imatrix.gguf makes one), or merge \
         with --calibrate; other types do without (--type {tensor}=TYPE)"
    )]
    NeedsImportance {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: polylora_quant::GgmlType,
    },
    /// There is nothing to write with feedback.
    #[error("tensor {0} is not one that changes")]
    NotChanged(String),
    /// The observer said so.
    #[error("cancelled")]
    Cancelled,
}

impl<'p> Plan<'p> {
    /// Writes the file, on the threads of the current rayon pool, and tells what survived.
    ///
    /// The bytes are the same whatever the number of threads and the instruction set.
    ///
    /// # Errors
    /// A file that cannot be written, a base whose weights are no numbers, a cancelled job. The
    /// output exists wholly or not at all.
    pub fn write(
        &self,
        out: &Path,
        options: WriteOptions,
        observer: &dyn Observer,
    ) -> Result<Report, RewriteError> {
        for output in self.touched() {
            output.check_importance()?;
        }
        self.begin(out, options)?.finish(observer)
    }

    /// Begins to write the file: tensors may be written in any order before the rest is.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn begin<'a>(
        &'a self,
        out: &Path,
        options: WriteOptions,
    ) -> Result<Writing<'a, 'p>, RewriteError> {
        let writer = GgufWriter::create(out, &self.metadata, &self.tensor_plans(), options)?;
        Ok(Writing { plan: self, writer, done: HashMap::new() })
    }

    /// Rows of a changed tensor, `(rows, columns)`: as the base stores them, and as they are meant to
    /// be stored. What they mean is [`scales`](Output::scales) times that.
    ///
    /// # Errors
    /// Where no such tensor changes, or the base cannot be read.
    pub fn weights(&self, name: &str, rows: Range<usize>) -> Result<[Vec<f32>; 2], RewriteError> {
        let output = &self.outputs[self.changed(name)?];
        let transform = Transform::new(output);
        let step = (WEIGHTS_IN_HAND / output.columns().max(1)).max(1);
        let starts: Vec<usize> = rows.clone().step_by(step).collect();
        let pieces = starts.into_par_iter().map(|start| {
            let mut buffers = Buffers::default();
            transform.merge(&(start..rows.end.min(start + step)), &mut buffers)?;
            Ok((buffers.base, buffers.merged))
        });
        let (base, merged): (Vec<_>, Vec<_>) =
            pieces.collect::<Result<Vec<_>, RewriteError>>()?.into_iter().unzip();
        Ok([base.concat(), merged.concat()])
    }

    /// The place of a tensor that changes.
    fn changed(&self, name: &str) -> Result<usize, RewriteError> {
        let mut outputs = self.outputs.iter();
        let index = outputs.position(|output| output.name == name && !output.is_copy());
        index.ok_or_else(|| RewriteError::NotChanged(name.to_owned()))
    }
}

/// A file that is being written. It is gone where this is dropped before it is finished.
pub struct Writing<'a, 'p> {
    plan: &'a Plan<'p>,
    writer: GgufWriter,
    /// By the numbers of outputs.
    done: HashMap<usize, Sums>,
}

impl Writing<'_, '_> {
    /// Writes a changed tensor with error feedback, and returns what it is now. `curvature` has one
    /// for each expert of a stack, else one. `aim`, `(rows, columns)`, is what is to be written: the
    /// merged weights, or what does better in their place.
    ///
    /// # Errors
    /// As [`Plan::write`]; and where there is no such tensor to write, or a curvature is of others.
    pub fn compensated(
        &mut self,
        name: &str,
        curvature: &[Curvature],
        aim: &[f32],
        observer: &dyn Observer,
    ) -> Result<Tensor, RewriteError> {
        let index = self.plan.changed(name)?;
        let output = &self.plan.outputs[index];
        let row_bytes = output.ty.row_bytes(output.columns()).expect("checked by the plan");
        let bytes = Mutex::new(vec![0; row_bytes * output.rows()]);
        let transform = Transform::new(output);
        let feedback = Some(Feedback { curvature, aim });
        let sums = transform.write(feedback, observer, &|rows, written| {
            let at = rows.start * row_bytes;
            self.writer.write_at(index, at as u64, written)?;
            let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            bytes[at..at + written.len()].copy_from_slice(written);
            Ok(())
        })?;
        self.done.insert(index, sums);
        let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let tensor = Tensor::new(name, output.ty, output.shape.clone(), bytes.into());
        Ok(tensor.expect("the plan's own bytes"))
    }

    /// Writes what is left, and tells what survived.
    ///
    /// # Errors
    /// As [`Plan::write`].
    pub fn finish(mut self, observer: &dyn Observer) -> Result<Report, RewriteError> {
        let mut tensors = Vec::new();
        for (index, output) in self.plan.outputs.iter().enumerate() {
            if output.is_copy() {
                copy(&self.writer, index, output, observer)?;
                continue;
            }
            let sums = match self.done.remove(&index) {
                Some(sums) => sums,
                None => {
                    output.check_importance()?;
                    let row_bytes =
                        output.ty.row_bytes(output.columns()).expect("checked by the plan");
                    Transform::new(output).write(None, observer, &|rows, written| {
                        self.writer.write_at(index, (rows.start * row_bytes) as u64, written)?;
                        Ok(())
                    })?
                }
            };
            tensors.push(TensorReport::new(output, sums));
        }
        let files: Vec<PathBuf> = self.writer.finish()?;
        Ok(Report::new(self.plan, files, tensors))
    }
}

impl Output<'_> {
    /// Refuses what would be written without the importances that its type needs.
    fn check_importance(&self) -> Result<(), RewriteError> {
        if self.ty.encodes() == Some(Importance::Required) && self.importance.is_none() {
            return Err(RewriteError::NeedsImportance { tensor: self.name.clone(), ty: self.ty });
        }
        Ok(())
    }
}

fn proceed(observer: &dyn Observer) -> Result<(), RewriteError> {
    if observer.cancelled() { Err(RewriteError::Cancelled) } else { Ok(()) }
}

fn copy(
    writer: &GgufWriter,
    index: usize,
    output: &Output<'_>,
    observer: &dyn Observer,
) -> Result<(), RewriteError> {
    let source = output.source.expect("a copy has a source");
    source.bytes.par_chunks(COPY_PIECE).enumerate().try_for_each(|(piece, bytes)| {
        proceed(observer)?;
        writer.write_at(index, (piece * COPY_PIECE) as u64, bytes)?;
        observer.wrote(bytes.len() as u64);
        Ok(())
    })
}

/// A tensor that does not keep its bytes, ready to go through its rows.
struct Transform<'a> {
    output: &'a Output<'a>,
    /// Beside each change of the output its `lora_a`, which every row needs whole.
    changes: Vec<(&'a Change, Vec<f32>)>,
}

/// How a tensor is rounded by what its layer reads; see [`Writing::compensated`].
#[derive(Clone, Copy)]
struct Feedback<'a> {
    curvature: &'a [Curvature],
    aim: &'a [f32],
}

/// Takes rows and their bytes, on any thread.
type Take<'a> = dyn Fn(Range<usize>, &[u8]) -> Result<(), RewriteError> + Sync + 'a;

/// What a thread works in.
#[derive(Default)]
struct Buffers {
    base: Vec<f32>,
    merged: Vec<f32>,
    written: Vec<f32>,
    bytes: Vec<u8>,
}

impl<'a> Transform<'a> {
    fn new(output: &'a Output<'a>) -> Transform<'a> {
        let with_down = |&change: &&'a Change| match &change.kind {
            ChangeKind::LowRank { down, .. } => (change, down.to_f32()),
            ChangeKind::Replace { .. }
            | ChangeKind::Add { .. }
            | ChangeKind::ScaleColumns { .. } => (change, Vec::new()),
        };
        Transform { output, changes: output.changes.iter().map(with_down).collect() }
    }

    /// Goes through all rows, and hands their bytes to `take`.
    fn write(
        &self,
        feedback: Option<Feedback<'_>>,
        observer: &dyn Observer,
        take: &Take<'_>,
    ) -> Result<Sums, RewriteError> {
        let (rows, columns) = (self.output.rows(), self.output.columns());
        // Feedback knows rows by vectors, and no piece may reach into the next expert. It takes long:
        // each thread gets some pieces.
        let stacked = feedback.map_or(1, |feedback| feedback.curvature.len()).max(1);
        let of_one = rows / stacked;
        let mut step = (WEIGHTS_IN_HAND / columns.max(1)).max(1);
        if feedback.is_some() {
            let fair = of_one.div_ceil(2 * rayon::current_num_threads());
            step = step.min(fair).next_multiple_of(LANES).min(of_one.max(1));
        }
        let pieces: Vec<(usize, Range<usize>)> = (0..stacked)
            .flat_map(|expert| {
                let all = expert * of_one..(expert + 1) * of_one;
                let starts = all.clone().step_by(step);
                starts.map(move |start| (expert, start..all.end.min(start + step)))
            })
            .collect();
        let sums: Vec<Sums> = pieces
            .into_par_iter()
            .map_init(Buffers::default, |buffers, (expert, rows)| {
                proceed(observer)?;
                let feedback = feedback.map(|Feedback { curvature, aim }| {
                    (&curvature[expert], &aim[rows.start * columns..rows.end * columns])
                });
                let sums = self.rows(rows.clone(), feedback, buffers)?;
                take(rows, &buffers.bytes)?;
                observer.wrote(buffers.bytes.len() as u64);
                Ok(sums)
            })
            .collect::<Result<_, RewriteError>>()?;
        // In order, so that the figures do not depend on the threads.
        Ok(sums.into_iter().fold(Sums::default(), |mut total, sums| {
            total += sums;
            total
        }))
    }

    /// Rows in parts whose products are multiplied by the same; each with the place of its weights
    /// among those of all rows.
    fn parts(
        &self,
        rows: &Range<usize>,
    ) -> impl Iterator<Item = (f32, Range<usize>, Range<usize>)> {
        let (first, columns) = (rows.start, self.output.columns());
        self.output.scales.parts(rows, self.output.rows()).map(move |(scale, part)| {
            let place = (part.start - first) * columns..(part.end - first) * columns;
            (scale, part, place)
        })
    }

    /// Rows of the base, and merged.
    fn merge(&self, rows: &Range<usize>, buffers: &mut Buffers) -> Result<(), RewriteError> {
        let Buffers { base, merged, .. } = buffers;
        base.clear();
        base.resize(rows.len() * self.output.columns(), 0.0);
        if let Some(source) = self.output.source {
            source.dequantize_rows(rows.clone(), base).map_err(|error| {
                let tensor = self.output.name.clone();
                RewriteError::Row { tensor, source: error.into() }
            })?;
        }
        merged.clone_from(base);
        for (scale, part, place) in self.parts(rows) {
            let (base, merged) = (&base[place.clone()], &mut merged[place]);
            for (change, down) in &self.changes {
                apply_change(change, down, &part, scale, base, merged);
            }
        }
        Ok(())
    }

    /// Rows from the base to the bytes to write, in `buffers`. With feedback: their curvature, and
    /// what they aim at.
    fn rows(
        &self,
        rows: Range<usize>,
        feedback: Option<(&Curvature, &[f32])>,
        buffers: &mut Buffers,
    ) -> Result<Sums, RewriteError> {
        let Output { name, ty, source, .. } = self.output;
        let weights = rows.len() * self.output.columns();
        let error = |source: MergeError| RewriteError::Row { tensor: name.clone(), source };
        self.merge(&rows, buffers)?;
        let Buffers { base, merged, written, bytes } = buffers;

        bytes.resize(ty.row_bytes(weights).expect("checked by the plan"), 0);
        match feedback {
            Some((curvature, aim)) => {
                let own = source.filter(|source| source.ty == *ty);
                let own = own.map(|source| source.rows_bytes(rows.clone()));
                quantize_compensated(Isa::best(), *ty, aim, own, curvature, bytes)
                    .map_err(|e| error(e.into()))?;
            }
            None => self.encode(&rows, merged, bytes).map_err(error)?,
        }
        written.resize(weights, 0.0);
        polylora_quant::dequantize(*ty, bytes, written).map_err(|e| error(e.into()))?;

        let mut sums = Sums::default();
        for (scale, _, place) in self.parts(&rows) {
            let [base, merged, written] = [&*base, merged, written].map(|all| &all[place.clone()]);
            sums += Sums::of(base, merged, written).scaled(scale);
        }
        if !sums.is_finite() {
            let tensor = name.clone();
            return Err(if base.iter().all(|weight| weight.is_finite()) {
                RewriteError::Overflow { tensor, ty: *ty, rows }
            } else {
                RewriteError::BaseNotFinite { tensor, rows }
            });
        }
        if let Some(source) = source.filter(|source| source.ty == *ty) {
            sums.changed_codes = changed_codes(*ty, source.rows_bytes(rows), bytes)
                .map_err(|e| error(e.into()))? as u64;
        }
        Ok(sums)
    }

    /// Encodes rows, an expert at a time where each has an importance of its own.
    fn encode(
        &self,
        rows: &Range<usize>,
        merged: &[f32],
        out: &mut [u8],
    ) -> Result<(), MergeError> {
        let (ty, columns) = (self.output.ty, self.output.columns());
        let Some(importance) = self.output.importance else {
            return requantize(ty, merged, columns, None, out);
        };
        let row_bytes = ty.row_bytes(columns).expect("checked by the plan");
        let experts = importance.len() / columns.max(1);
        let rows_of_expert = (self.output.rows() / experts.max(1)).max(1);
        let all = merged.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes));
        for (row, (weights, out)) in rows.clone().zip(all) {
            let importance = &importance[row / rows_of_expert * columns..][..columns];
            requantize(ty, weights, columns, Some(importance), out)?;
        }
        Ok(())
    }
}

/// Does to `merged`, which holds `rows` of a tensor, the part of `change` that falls on them;
/// `base` holds them as they were before any change. `own` is what their products are multiplied
/// by: both hold what the change is of, divided by it.
fn apply_change(
    change: &Change,
    down: &[f32],
    rows: &Range<usize>,
    own: f32,
    base: &[f32],
    merged: &mut [f32],
) {
    let columns = merged.len() / rows.len();
    let start = rows.start.max(change.rows.start);
    let end = rows.end.min(change.rows.end);
    if start >= end {
        return;
    }
    let touched = (start - rows.start) * columns..(end - rows.start) * columns;
    let (base, merged) = (&base[touched.clone()], &mut merged[touched]);
    let within = start - change.rows.start..end - change.rows.start;
    match &change.kind {
        ChangeKind::LowRank { down: shape, up, scale, magnitude } => {
            let up = up.rows_f32(within.clone());
            let mut magnitude = magnitude.as_ref().map(|magnitude| magnitude.rows_f32(within));
            for length in magnitude.iter_mut().flatten() {
                *length /= own.abs();
            }
            let change = LowRank {
                down,
                up: &up,
                rank: shape.rows(),
                scale: *scale / own,
                magnitude: magnitude.as_deref(),
            };
            add_low_rank(&change, columns, base, merged);
        }
        ChangeKind::Replace { values, scale: 1.0 } => {
            for (weight, saved) in merged.iter_mut().zip(values.rows_f32(within)) {
                *weight = saved / own;
            }
        }
        ChangeKind::Replace { values, scale } => {
            for (weight, saved) in merged.iter_mut().zip(values.rows_f32(within)) {
                *weight += scale * (saved / own - *weight);
            }
        }
        ChangeKind::Add { values, scale } => {
            for (weight, added) in merged.iter_mut().zip(values.rows_f32(within)) {
                *weight += scale * added / own;
            }
        }
        ChangeKind::ScaleColumns { factors } => {
            for row in merged.chunks_exact_mut(columns) {
                row.iter_mut().zip(&**factors).for_each(|(weight, factor)| *weight *= factor);
            }
        }
    }
}
