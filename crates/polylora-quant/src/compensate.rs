//! Rounding with error feedback: what one weight of a row loses, those after it make good.
//!
//! Of a row `w` the layer computes `w x`, so an error `e` of its weights costs `e H e^T`, where `H` is
//! the second moment of the layer's inputs. With `H = F D F^T`, `F` unit upper triangular, that is
//!
//! ```text
//! sum over j of D[j] * (e[j] + sum over i < j of F[i][j] * e[i])^2
//! ```
//!
//! so each weight is rounded towards its target, less what those before it have lost (GPTQ: Frantar et
//! al. 2022, in the form of Chee et al. 2023, "QuIP", which needs no inverse of `H`).
//!
//! Of each block several scales are tried: those that the format's encoder finds for the target, with
//! `D` as importance and without, for the target made a little smaller, and those that the weights came
//! with. The one that leaves the least of the sum above stays. A format has a part in this by its
//! `decode`, its `encode`, and `recode`, which puts other codes under the scales of a block. Formats
//! whose codes come in runs out of a codebook have no `recode`: of their blocks the best stays as it was
//! encoded, and what it loses goes to the blocks after it.

use crate::format::{
    Blocks, Codes, Encoder, FormatInfo, GgmlType, Importance, MAX_BLOCK, MIN_GROUP,
};
use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};
use crate::row::{RowError, check_length};
use std::ops::Range;

/// How errors of a row's weights count: the second moments of a layer's inputs, as factors.
#[derive(Clone, Debug)]
pub struct Curvature {
    columns: usize,
    /// `F^T` of the module's documentation, `(columns, columns)`, of which what is below the diagonal
    /// is read.
    feedback: Vec<f32>,
    /// `D`
    loss: Vec<f32>,
}

impl Curvature {
    /// Of `feedback`, a matrix whose element `(j, i)` is `F[i][j]` for `i < j`, and `loss`, the
    /// diagonal of `D`.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub fn new(feedback: Vec<f32>, loss: Vec<f32>) -> Curvature {
        let columns = loss.len();
        assert_eq!(feedback.len(), columns * columns);
        Curvature { columns, feedback, loss }
    }

    /// The length of the rows that it is for.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// `F^T` of the module's documentation, `(columns, columns)`: of which what is below the diagonal
    /// counts, and the diagonal is one; and `D`.
    pub fn factors(&self) -> (&[f32], &[f32]) {
        (&self.feedback, &self.loss)
    }

    /// `F[first..end][j]`: what errors in these columns move the target of column `j` by.
    fn feedback(&self, j: usize, first: usize, end: usize) -> &[f32] {
        &self.feedback[j * self.columns..][first..end]
    }
}

/// Encodes whole rows as type `ty` with error feedback. `base`, where given, are the bytes of the same
/// rows and type that the weights came from: their scales are tried too.
///
/// What a row becomes depends on its neighbours in groups of sixteen from the first, not on more.
///
/// # Errors
/// As [`quantize`](crate::quantize); and where the rows are not of the curvature's length.
pub fn quantize_compensated(
    isa: Isa,
    ty: GgmlType,
    weights: &[f32],
    base: Option<&[u8]>,
    curvature: &Curvature,
    out: &mut [u8],
) -> Result<(), RowError> {
    let info = ty.info().map_err(|_| RowError::NoWeights(ty))?;
    let encoder = &info.encoder;
    check_length(ty, weights.len(), out.len())?;
    if let Some(base) = base {
        check_length(ty, weights.len(), base.len())?;
    }
    let columns = curvature.columns;
    if !weights.len().is_multiple_of(columns) || !columns.is_multiple_of(ty.block_weights()) {
        return Err(RowError::Importance { weights: weights.len(), importance: columns });
    }
    let Some(blocks) = &info.blocks else {
        // Single numbers lose too little to be made good.
        (encoder.quantize)(isa, weights, None, out);
        return Ok(());
    };
    let format = Entries { isa, info, blocks, encoder };
    isa.run(Rows { format, weights, base, curvature, out });
    Ok(())
}

/// A format, as what follows knows it: by the entries of its table, so that it is compiled once for
/// all formats.
#[derive(Clone, Copy)]
struct Entries {
    isa: Isa,
    info: &'static FormatInfo,
    blocks: &'static Blocks,
    encoder: &'static Encoder,
}

/// By how much targets are scaled before their scales are sought, and whether losses count as
/// importance. Of smaller ones the many are rounded better, and the few beyond them worse. (Eight
/// tries, down to 0.85, gave no less divergence, nor did the one that is missing here.)
const TRIES: [(f32, bool); 3] = [(1.0, false), (1.0, true), (0.9, false)];

/// Groups in a block.
const GROUPS: usize = MAX_BLOCK / MIN_GROUP;

/// The scales of sixteen rows' blocks, one vector a group.
struct Grid<V> {
    scales: [V; GROUPS],
    mins: [V; GROUPS],
    /// Their codes, one vector a weight, where these cannot be chosen.
    fixed: Option<Box<[V; MAX_BLOCK]>>,
}

/// Sixteen rows that are worked on side by side; fewer are filled up with zeros.
struct Set<'a, V> {
    /// How many there are.
    count: usize,
    base: Option<&'a [u8]>,
    out: &'a mut [u8],
    weights: Vec<V>,
    /// What weights that are rounded already have gained, one vector a column.
    errors: Vec<V>,
    /// What the weights of the block that is worked on would best become, but for what the block
    /// itself loses, one vector a weight.
    targets: Vec<V>,
}

/// See [`quantize_compensated`].
struct Rows<'a> {
    format: Entries,
    weights: &'a [f32],
    base: Option<&'a [u8]>,
    curvature: &'a Curvature,
    out: &'a mut [u8],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { format, weights, base, curvature, out } = self;
        let columns = curvature.columns;
        let row_blocks = columns / format.info.block_weights;
        let row_bytes = row_blocks * format.info.block_bytes;
        let zero = s.splat(0.0);
        let mut sets = Vec::new();
        let parts = weights.chunks(LANES * columns).zip(out.chunks_mut(LANES * row_bytes));
        for (n, (weights, out)) in parts.enumerate() {
            let base = base.map(|base| &base[n * LANES * row_bytes..][..out.len()]);
            let count = weights.len() / columns;
            let mut lanes = vec![zero; columns];
            for (j, lanes) in lanes.iter_mut().enumerate() {
                let mut column = [0.0; LANES];
                for (value, row) in column.iter_mut().zip(weights.chunks_exact(columns)) {
                    *value = row[j];
                }
                *lanes = s.load(&column);
            }
            let (errors, targets) = (vec![zero; columns], vec![zero; format.info.block_weights]);
            sets.push(Set { count, base, out, weights: lanes, errors, targets });
        }
        // Codes of a block, less the lowest, one vector a weight.
        let mut codes = [zero; MAX_BLOCK];
        // A block of all rows before the next: they read the same part of the curvature.
        for block in 0..row_blocks {
            aim(s, format, curvature, block, &mut sets);
            for set in &mut sets {
                settle(s, format, curvature, block, set, &mut codes);
            }
        }
    }
}

/// Tries the scales of a block, and gives it the best with its codes.
#[inline(always)]
fn settle<S: Simd>(
    s: S,
    format: Entries,
    curvature: &Curvature,
    block: usize,
    set: &mut Set<'_, S::F32>,
    codes: &mut [S::F32; MAX_BLOCK],
) {
    let (width, bytes) = (format.info.block_weights, format.info.block_bytes);
    let first = block * width;
    let row_bytes = curvature.columns / width * bytes;
    let mut targets = vec![0.0; LANES * width];
    for (j, lanes) in set.targets.iter().enumerate() {
        for (r, &value) in lanes.to_array().iter().enumerate() {
            targets[r * width + j] = value;
        }
    }
    let loss = curvature.loss[first..first + width].repeat(LANES);
    // Sixteen blocks each.
    let mut tries: Vec<Vec<u8>> = Vec::new();
    for (shrink, by_loss) in TRIES {
        let by_loss = match format.encoder.importance {
            Importance::Used => by_loss,
            _ if by_loss => continue,
            Importance::Ignored => false,
            Importance::Required => true,
        };
        let smaller: Vec<f32> = targets.iter().map(|target| target * shrink).collect();
        let importance = by_loss.then_some(&loss[..]);
        let mut blocks = vec![0; LANES * bytes];
        (format.encoder.quantize)(format.isa, &smaller, importance, &mut blocks);
        tries.push(blocks);
    }
    if let Some(base) = set.base {
        let mut blocks = vec![0; LANES * bytes];
        for (to, row) in blocks.chunks_exact_mut(bytes).zip(base.chunks_exact(row_bytes)) {
            to.copy_from_slice(&row[block * bytes..][..bytes]);
        }
        tries.push(blocks);
    }

    let mut decoded = [const { Codes::ZERO }; LANES];
    let mut least = s.splat(f32::INFINITY);
    let mut best = [0; LANES];
    let mut chosen: Grid<S::F32> = Grid::new(s, format);
    for (n, blocks) in tries.iter().enumerate() {
        (format.blocks.decode)(format.isa, blocks, &mut decoded);
        let mut grid = Grid::new(s, format);
        grid.load(s, width, &decoded);
        let lost = round(s, format, &grid, curvature, first, set, codes);
        let better = lost.lt(least);
        let bits = S::F32::bits(better);
        for (r, best) in best.iter_mut().enumerate() {
            if bits >> r & 1 == 1 {
                *best = n;
            }
        }
        least = S::F32::select(better, lost, least);
        for g in 0..width / format.blocks.group {
            chosen.scales[g] = S::F32::select(better, grid.scales[g], chosen.scales[g]);
            chosen.mins[g] = S::F32::select(better, grid.mins[g], chosen.mins[g]);
        }
        if let (Some(chosen), Some(fixed)) = (&mut chosen.fixed, &grid.fixed) {
            for (chosen, &code) in chosen[..width].iter_mut().zip(&fixed[..width]) {
                *chosen = S::F32::select(better, code, *chosen);
            }
        }
    }
    round(s, format, &chosen, curvature, first, set, codes);

    let mut of_rows = [[0; MAX_BLOCK]; LANES];
    for (j, lanes) in codes[..width].iter().enumerate() {
        for (codes, &code) in of_rows.iter_mut().zip(&lanes.to_bytes()) {
            codes[j] = code;
        }
    }
    for (r, codes) in of_rows[..set.count].iter().enumerate() {
        let out = &mut set.out[r * row_bytes + block * bytes..][..bytes];
        out.copy_from_slice(&tries[best[r]][r * bytes..][..bytes]);
        if let Some(chosen) = format.encoder.codes {
            (chosen.recode)(out, codes);
        }
    }
}

/// Columns whose sums grow together, for each vector to be loaded once.
const TOGETHER: usize = 8;

/// Vectors of a sum that all rows go through before the next, so that the factors stay at hand.
const RUN: usize = 256;

/// The targets of a block's weights: these, less what the errors before the block ask for.
#[inline(always)]
fn aim<S: Simd>(
    s: S,
    format: Entries,
    curvature: &Curvature,
    block: usize,
    sets: &mut [Set<'_, S::F32>],
) {
    let width = format.info.block_weights;
    let first = block * width;
    for set in &mut *sets {
        set.targets.copy_from_slice(&set.weights[first..][..width]);
    }
    for start in (0..first).step_by(RUN) {
        let run = start..first.min(start + RUN);
        for from in (0..width).step_by(TOGETHER) {
            let mut factors: [&[f32]; TOGETHER] = [&[]; TOGETHER];
            for (k, factors) in factors.iter_mut().enumerate() {
                *factors = curvature.feedback(first + from + k, run.start, run.end);
            }
            let mut sets = sets.iter_mut();
            while let Some(set) = sets.next() {
                match if S::PAIRS { sets.next() } else { None } {
                    Some(other) => subtract(s, [set, other], run.clone(), from, &factors),
                    None => subtract(s, [set], run.clone(), from, &factors),
                }
            }
        }
    }
}

/// Takes from eight targets of each set, from one on, the sums of some errors by their factors.
#[inline(always)]
fn subtract<S: Simd, const N: usize>(
    s: S,
    sets: [&mut Set<'_, S::F32>; N],
    run: Range<usize>,
    from: usize,
    factors: &[&[f32]; TOGETHER],
) {
    let mut errors: [&[S::F32]; N] = [&[]; N];
    for (errors, set) in errors.iter_mut().zip(&sets) {
        *errors = &set.errors[run.clone()];
    }
    let mut sums = [[s.splat(0.0); TOGETHER]; N];
    for i in 0..run.len() {
        for (k, factors) in factors.iter().enumerate() {
            let factor = s.splat(factors[i]);
            for (sums, errors) in sums.iter_mut().zip(&errors) {
                sums[k] = errors[i].mul_add(factor, sums[k]);
            }
        }
    }
    for (set, sums) in sets.into_iter().zip(sums) {
        for (target, sum) in set.targets[from..].iter_mut().zip(sums) {
            *target = *target - sum;
        }
    }
}

impl<V: Lanes> Grid<V> {
    #[inline(always)]
    fn new<S: Simd<F32 = V>>(s: S, format: Entries) -> Grid<V> {
        let zero = s.splat(0.0);
        let is_fixed = format.encoder.codes.is_none();
        let fixed = is_fixed.then(|| Box::new([zero; MAX_BLOCK]));
        Grid { scales: [zero; GROUPS], mins: [zero; GROUPS], fixed }
    }

    /// What lies in sixteen blocks.
    #[inline(always)]
    fn load<S: Simd<F32 = V>>(&mut self, s: S, width: usize, blocks: &[Codes; LANES]) {
        for g in 0..GROUPS {
            let (mut scales, mut mins) = ([0.0; LANES], [0.0; LANES]);
            for (r, block) in blocks.iter().enumerate() {
                (scales[r], mins[r]) = (block.scales[g], block.mins[g]);
            }
            (self.scales[g], self.mins[g]) = (s.load(&scales), s.load(&mins));
        }
        let Some(fixed) = &mut self.fixed else { return };
        for (j, lanes) in fixed[..width].iter_mut().enumerate() {
            let mut codes = [0; LANES];
            for (code, block) in codes.iter_mut().zip(blocks) {
                *code = block.codes[j];
            }
            *lanes = s.load_whole(&codes);
        }
    }
}

/// Rounds a block of sixteen rows on a grid; leaves codes and errors behind, and returns what that
/// adds to the sum of the module's documentation.
#[inline(always)]
fn round<S: Simd>(
    s: S,
    format: Entries,
    grid: &Grid<S::F32>,
    curvature: &Curvature,
    first: usize,
    set: &mut Set<'_, S::F32>,
    codes: &mut [S::F32; MAX_BLOCK],
) -> S::F32 {
    let (width, group) = (format.info.block_weights, format.blocks.group);
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let levels = format.encoder.codes.map_or(&[][..], |codes| codes.levels);
    let (lowest, highest) = format.blocks.code_range;
    let (lowest, highest) = (s.splat(f32::from(lowest)), s.splat(f32::from(highest)));
    let mut loss = zero;
    for g in 0..width / group {
        let (scale, min) = (grid.scales[g], grid.mins[g]);
        let inverse = S::F32::select(scale.eq(zero), zero, one / scale);
        for j in g * group..(g + 1) * group {
            let feedback = curvature.feedback(first + j, first, first + j);
            // Four sums: each step of one waits for the step before.
            let mut sums = [zero; 4];
            let errors = &set.errors[first..first + j];
            let (fours, last) = errors.as_chunks::<4>();
            let (feedback_fours, last_feedback) = feedback.as_chunks::<4>();
            for (errors, feedback) in fours.iter().zip(feedback_fours) {
                for k in 0..4 {
                    sums[k] = errors[k].mul_add(s.splat(feedback[k]), sums[k]);
                }
            }
            for (k, (error, &feedback)) in last.iter().zip(last_feedback).enumerate() {
                sums[k] = error.mul_add(s.splat(feedback), sums[k]);
            }
            let target = set.targets[j] - ((sums[0] + sums[1]) + (sums[2] + sums[3]));
            let code = match &grid.fixed {
                Some(fixed) => fixed[j],
                // Bounded first, for what has no scale may be infinite.
                None => nearest(s, levels, ((target + min) * inverse).max(lowest).min(highest)),
            };
            let value = scale * code - min;
            codes[j] = code - lowest;
            set.errors[first + j] = value - set.weights[first + j];
            let off = value - target;
            loss = (off * off).mul_add(s.splat(curvature.loss[first + j]), loss);
        }
    }
    loss
}

/// The nearest code of those there are; of all whole numbers, where none are named.
#[inline(always)]
fn nearest<S: Simd>(s: S, levels: &[i8], x: S::F32) -> S::F32 {
    let [lowest, ..] = levels else { return s.nearest(x) };
    let mut code = s.splat(f32::from(*lowest));
    for pair in levels.windows(2) {
        let middle = (f32::from(pair[0]) + f32::from(pair[1])) / 2.0;
        code = S::F32::select(s.splat(middle).le(x), s.splat(f32::from(pair[1])), code);
    }
    code
}
