//! Blocks side by side: what lets an encoder keep ggml's order of operations in every lane.

use crate::isa::{LANES, Lanes, Simd};

/// Turns up to sixteen runs of `N` consecutive values into columns: lane `k` of `out[i]` is value
/// `i` of run `k`. Lanes without a run are zero. `N` is a multiple of sixteen.
#[inline(always)]
pub(super) fn columns<S: Simd, const N: usize>(s: S, values: &[f32]) -> [S::F32; N] {
    let (tiles, _) = values.as_chunks::<LANES>();
    let zero = s.splat(0.0);
    let mut out = [zero; N];
    for (t, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut rows = [zero; LANES];
        for (row, run) in rows.iter_mut().zip(tiles.chunks_exact(N / LANES)) {
            *row = s.load(&run[t]);
        }
        out.copy_from_slice(&s.transpose(rows));
    }
    out
}

/// The same for sixteen runs of whole numbers.
#[inline(always)]
pub(super) fn columns_of_whole<S: Simd, const N: usize>(
    s: S,
    runs: &[[i8; N]; LANES],
) -> [S::F32; N] {
    let zero = s.splat(0.0);
    let mut out = [zero; N];
    for (t, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut rows = [zero; LANES];
        for (row, run) in rows.iter_mut().zip(runs) {
            *row = s.load_whole(&run.as_chunks().0[t]);
        }
        out.copy_from_slice(&s.transpose(rows));
    }
    out
}

/// The way back for one column a run: `out[k][i]` is lane `k` of `columns[i]`.
#[inline(always)]
pub(super) fn runs<F: Lanes, const N: usize>(columns: &[F; N]) -> [[f32; N]; LANES] {
    let mut out = [[0.0; N]; LANES];
    for (i, column) in columns.iter().enumerate() {
        for (run, value) in out.iter_mut().zip(column.to_array()) {
            run[i] = value;
        }
    }
    out
}
