//! The searches for a scale: ggml's, sixteen groups at a time.
//!
//! Every lane does what ggml's C code does to one group, operation by operation; where that code
//! branches, both ways are computed and the mask chooses. A weight's column holds the weights of
//! the same place in sixteen groups.
//!
//! Several sets of sixteen (`SETS`) go through a search side by side: one set's divisions, which
//! wait for each other, fill the gaps of another's.

use crate::isa::{Lanes, Simd};

/// ggml's GROUP_MAX_EPS: groups whose weights are all smaller are taken as zero.
pub(super) const TINY: f32 = 1e-15;

/// 2^22: how far [`Simd::nearest`] goes.
const NEAREST_RANGE: f32 = 4_194_304.0;

/// Sets of sixteen groups of `N` weights, in columns, and the importance of each weight.
pub(super) struct Groups<F, const N: usize, const SETS: usize> {
    /// The weights: `x[set][i]` is weight i of each group.
    pub(super) x: [[F; N]; SETS],
    /// Their importance.
    pub(super) w: [[F; N]; SETS],
}

impl<F: Lanes, const N: usize, const SETS: usize> Groups<F, N, SETS> {
    /// All are `value`.
    #[inline(always)]
    pub(super) fn filled(value: F) -> Self {
        Groups { x: [[value; N]; SETS], w: [[value; N]; SETS] }
    }
}

/// What [`scale_and_min`] tries: `steps + 1` scales that spread the group over about `top` steps,
/// namely `top + first`, `top + first + step`, and so on.
pub(super) struct Tries {
    /// The highest code.
    pub(super) top: f32,
    /// See above.
    pub(super) first: f32,
    /// See above.
    pub(super) step: f32,
    /// See above.
    pub(super) steps: u8,
    /// Whether the error is a sum of magnitudes, not of squares.
    pub(super) magnitudes: bool,
}

impl Tries {
    /// What ggml tries with an importance matrix, in every format.
    pub(super) const fn weighted(top: f32) -> Tries {
        Tries { top, first: -0.9, step: 0.05, steps: 36, magnitudes: false }
    }
}

/// A scale and an offset for each of sixteen groups: weight = `scale * code + low`.
#[derive(Clone, Copy)]
pub(super) struct Affine<F> {
    /// Not negative.
    pub(super) scale: F,
    /// Not positive: the weight of code 0.
    pub(super) low: F,
    /// The codes that were found best are those of [`above`](super::codes::above) this base,
    pub(super) base: F,
    /// times this.
    pub(super) inverse: F,
    /// Sum of the importances.
    pub(super) importance: F,
}

impl<F: Copy> Affine<F> {
    /// All five are `value`.
    #[inline(always)]
    pub(super) fn filled(value: F) -> Self {
        Affine { scale: value, low: value, base: value, inverse: value, importance: value }
    }
}

/// For each try, finds the scale and offset that fit its codes best, and keeps the best of all.
/// ggml's `make_qkx2_quants` and `make_qkx3_quants`.
#[inline(always)]
pub(super) fn scale_and_min<S: Simd, const N: usize, const SETS: usize>(
    s: S,
    groups: &Groups<S::F32, N, SETS>,
    tries: &Tries,
) -> [Affine<S::F32>; SETS] {
    let Groups { x, w } = groups;
    let zero = s.splat(0.0);
    let top = s.splat(tries.top);

    let mut best = [Affine::filled(zero); SETS];
    let (mut low, mut high, mut sum_x) = ([zero; SETS], [zero; SETS], [zero; SETS]);
    let mut scale = [zero; SETS];
    let mut flat = [zero.lt(zero); SETS];
    let mut codes = [[zero; N]; SETS];
    for k in 0..SETS {
        (low[k], high[k]) = (x[k][0], x[k][0]);
        best[k].importance = w[k][0];
        sum_x[k] = w[k][0] * x[k][0];
        for i in 1..N {
            low[k] = x[k][i].min(low[k]);
            high[k] = x[k][i].max(high[k]);
            best[k].importance = best[k].importance + w[k][i];
            sum_x[k] = sum_x[k] + w[k][i] * x[k][i];
        }
        low[k] = zero.min(low[k]);

        let inverse = top / (high[k] - low[k]);
        flat[k] = !inverse.le(s.splat(f32::MAX)); // Infinite: all weights are one, or nearly.
        for i in 0..N {
            codes[k][i] = nearest_between(s, inverse * (x[k][i] - low[k]), zero, top);
        }
        scale[k] = s.splat(1.0) / inverse;
        best[k].scale = scale[k];
        best[k].inverse = inverse;
        best[k].base = low[k];
    }
    let lowest = low;
    let mut best_error = errors(s, groups, &codes, &scale, &low, tries.magnitudes);

    for step in 0..=tries.steps {
        let spread = tries.first + tries.step * f32::from(step) + tries.top;
        let mut inverse = [zero; SETS];
        let mut wild = false;
        for k in 0..SETS {
            inverse[k] = s.splat(spread) / (high[k] - low[k]);
            // Where some weights do not count, the offset may leave them far below; and rounding
            // may lift that of a nearly flat group over its highest weight.
            let far_below = (inverse[k] * (lowest[k] - low[k])).lt(s.splat(-NEAREST_RANGE));
            wild |= S::F32::any(!flat[k] & (far_below | high[k].le(low[k])));
        }
        // But for an error in the seventh digit, no code is above `spread`.
        let sums = if wild {
            sums(s, groups, &low, &inverse, tries.top, Bounds::Wild, &mut codes)
        } else if S::LOOKS_UP && tries.top < 29.0 {
            sums(s, groups, &low, &inverse, tries.top, Bounds::Table, &mut codes)
        } else if spread < tries.top + 0.4 {
            sums(s, groups, &low, &inverse, tries.top, Bounds::Low, &mut codes)
        } else {
            sums(s, groups, &low, &inverse, tries.top, Bounds::Both, &mut codes)
        };

        // Least squares in scale and offset; where the offset would be above zero, in the scale
        // alone.
        let (mut offset, mut solvable) = ([zero; SETS], flat);
        for k in 0..SETS {
            let Sums { l, l2, xl } = sums[k];
            let determinant = best[k].importance * l2 - l * l;
            solvable[k] = zero.lt(determinant);
            offset[k] = (l2 * sum_x[k] - l * xl) / determinant;
            let above = zero.lt(offset[k]);
            offset[k] = S::F32::select(above, zero, offset[k]);
            scale[k] = S::F32::select(above, xl, best[k].importance * xl - sum_x[k] * l)
                / S::F32::select(above, l2, determinant);
        }

        let error = errors(s, groups, &codes, &scale, &offset, tries.magnitudes);
        for k in 0..SETS {
            let better = solvable[k] & !flat[k] & error[k].lt(best_error[k]);
            best_error[k] = S::F32::select(better, error[k], best_error[k]);
            best[k].scale = S::F32::select(better, scale[k], best[k].scale);
            best[k].inverse = S::F32::select(better, inverse[k], best[k].inverse);
            best[k].base = S::F32::select(better, low[k], best[k].base);
            // The next try measures from the new offset, as in ggml.
            low[k] = S::F32::select(better, offset[k], low[k]);
        }
    }

    for k in 0..SETS {
        // Flat groups are all offset: scale 0, codes 0.
        best[k].scale = S::F32::select(flat[k], zero, best[k].scale);
        best[k].inverse = S::F32::select(flat[k], zero, best[k].inverse);
        best[k].low = S::F32::select(flat[k], best[k].base, low[k]);
    }
    best
}

/// How codes are rounded and kept in their range.
#[derive(Clone, Copy)]
enum Bounds {
    /// They are looked up: see [`Simd::nearest_code`].
    Table,
    /// From below: none is above the top.
    Low,
    /// From both sides.
    Both,
    /// From both sides, and some are out of the range of [`Simd::nearest`].
    Wild,
}

/// Sums over a group of importance times code, times its square, and times code and weight.
#[derive(Clone, Copy)]
struct Sums<F> {
    l: F,
    l2: F,
    xl: F,
}

/// The codes of `inverse * (x - low)`, and their sums.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // One index through many arrays.
fn sums<S: Simd, const N: usize, const SETS: usize>(
    s: S,
    groups: &Groups<S::F32, N, SETS>,
    low: &[S::F32; SETS],
    inverse: &[S::F32; SETS],
    top: f32,
    bounds: Bounds,
    codes: &mut [[S::F32; N]; SETS],
) -> [Sums<S::F32>; SETS] {
    let zero = s.splat(0.0);
    let mut sums = [Sums { l: zero, l2: zero, xl: zero }; SETS];
    for i in 0..N {
        for k in 0..SETS {
            let (x, w) = (groups.x[k][i], groups.w[k][i]);
            let code = inverse[k] * (x - low[k]);
            let code = match bounds {
                Bounds::Table => s.nearest_code(code, top),
                Bounds::Low => s.nearest(code).max(zero),
                Bounds::Both => nearest_between(s, code, zero, s.splat(top)),
                Bounds::Wild => s.nearest_int(code).max(zero).min(s.splat(top)),
            };
            codes[k][i] = code;
            let wl = w * code;
            sums[k].l = sums[k].l + wl;
            sums[k].l2 = sums[k].l2 + wl * code;
            sums[k].xl = sums[k].xl + wl * x;
        }
    }
    sums
}

/// The sum of the errors of `scale * code + offset`, each by its importance.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // One index through many arrays.
fn errors<S: Simd, const N: usize, const SETS: usize>(
    s: S,
    groups: &Groups<S::F32, N, SETS>,
    codes: &[[S::F32; N]; SETS],
    scale: &[S::F32; SETS],
    offset: &[S::F32; SETS],
    magnitudes: bool,
) -> [S::F32; SETS] {
    let mut error = [s.splat(0.0); SETS];
    for i in 0..N {
        for k in 0..SETS {
            let off = scale[k] * codes[k][i] + offset[k] - groups.x[k][i];
            let off = if magnitudes { off.abs() } else { off * off };
            error[k] = error[k] + groups.w[k][i] * off;
        }
    }
    error
}

/// Makes the importance of a column, as the matrix has it, that of a weight: in proportion to its
/// magnitude, though a typical weight's, whose square is `mean_square`, counts towards it.
#[inline(always)]
pub(super) fn temper<F: Lanes, const N: usize>(w: &mut [F; N], x: &[F; N], mean_square: F) {
    for (w, &x) in w.iter_mut().zip(x) {
        *w = *w * (mean_square + x * x).sqrt();
    }
}

/// The nearest integer, kept in `low..=high`; `low` for NaN.
#[inline(always)]
pub(super) fn nearest_between<S: Simd>(s: S, x: S::F32, low: S::F32, high: S::F32) -> S::F32 {
    s.nearest(x).max(low).min(high)
}

/// A scale for values of at least zero, and their codes in `0..=top`, best for the importance `w`.
/// ggml's `make_qp_quants`.
///
/// Now and then a value is below zero (the search before this one can end in a negative scale,
/// where importance leaves it next to nothing to go by). Then ggml's code wraps around in its
/// `uint8_t`, and so does ours.
#[inline(always)]
pub(super) fn positive_scale<S: Simd, const N: usize>(
    s: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    top: f32,
) -> (S::F32, [S::F32; N]) {
    let zero = s.splat(0.0);
    let levels = s.splat(top);
    let mut high = zero;
    for &x in x {
        high = high.max(x);
    }
    let empty = high.lt(s.splat(TINY));

    let mut codes = [zero; N];
    let mut best_inverse = levels / high;
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = wrapped(s, s.nearest_int(best_inverse * x));
    }
    let mut best_error = positive_error(s, x, w, best_inverse, &codes);
    for step in [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0] {
        let inverse = s.splat(0.1 * step + top) / high;
        for (code, &x) in codes.iter_mut().zip(x) {
            *code = s.nearest_int(inverse * x).min(levels);
        }
        let error = positive_error(s, x, w, inverse, &codes);
        let better = error.lt(best_error);
        best_error = S::F32::select(better, error, best_error);
        best_inverse = S::F32::select(better, inverse, best_inverse);
    }

    let (mut sum_xl, mut sum_l2) = (zero, zero);
    for i in 0..N {
        let code = s.nearest_int(best_inverse * x[i]).min(levels);
        sum_xl = sum_xl + w[i] * x[i] * code;
        sum_l2 = sum_l2 + w[i] * code * code;
        codes[i] = wrapped(s, code);
    }

    // Sweeps: each code in turn goes where it fits best with the others as they are. A lane that
    // a sweep leaves as it was stays so: no need to hold it back while the others go on.
    for _ in 0..5 {
        let mut changed = zero.lt(zero);
        for i in 0..N {
            let wx = w[i] * x[i];
            let others_xl = sum_xl - wx * codes[i];
            let others_l2 = sum_l2 - w[i] * codes[i] * codes[i];
            let code = s.nearest_int(x[i] * others_l2 / others_xl).min(levels);
            let new_xl = others_xl + wx * code;
            let new_l2 = others_l2 + w[i] * code * code;
            let better = zero.lt(others_xl)
                & zero.lt(others_l2)
                & !code.eq(codes[i])
                & (sum_xl * sum_xl * new_l2).lt(new_xl * new_xl * sum_l2);
            codes[i] = S::F32::select(better, wrapped(s, code), codes[i]);
            sum_xl = S::F32::select(better, new_xl, sum_xl);
            sum_l2 = S::F32::select(better, new_l2, sum_l2);
            changed = changed | better;
        }
        if !S::F32::any(changed) {
            break;
        }
    }

    let scale = S::F32::select(zero.lt(sum_l2), sum_xl / sum_l2, zero);
    for code in &mut codes {
        *code = S::F32::select(empty, zero, *code);
    }
    (S::F32::select(empty, zero, scale), codes)
}

/// The error of `code / inverse`, each by its importance.
#[inline(always)]
fn positive_error<S: Simd, const N: usize>(
    s: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    inverse: S::F32,
    codes: &[S::F32; N],
) -> S::F32 {
    let scale = s.splat(1.0) / inverse;
    let mut error = s.splat(0.0);
    for i in 0..N {
        let off = x[i] - scale * codes[i];
        error = error + w[i] * off * off;
    }
    error
}

/// An integer's low byte: what is left of it in a `uint8_t`.
#[inline(always)]
fn wrapped<S: Simd>(s: S, code: S::F32) -> S::F32 {
    let rest = code - (code * s.splat(1.0 / 256.0)).trunc() * s.splat(256.0);
    S::F32::select(rest.lt(s.splat(0.0)), rest + s.splat(256.0), rest)
}

/// The weight farthest from zero of each group, the first where several are, and its magnitude.
#[inline(always)]
pub(super) fn farthest<S: Simd, const N: usize>(s: S, x: &[S::F32; N]) -> (S::F32, S::F32) {
    let (mut farthest, mut magnitude) = (s.splat(0.0), s.splat(0.0));
    for &x in x {
        let farther = magnitude.lt(x.abs());
        magnitude = S::F32::select(farther, x.abs(), magnitude);
        farthest = S::F32::select(farther, x, farthest);
    }
    (farthest, magnitude)
}

/// A scale for each of sixteen groups, of either sign: weight = `scale * code`.
#[derive(Clone, Copy)]
pub(super) struct Signed<F> {
    /// See above.
    pub(super) scale: F,
    /// The codes that were found best are those of [`around`](super::codes::around) this inverse.
    /// NaN where the group is empty: there ggml has the lowest code.
    pub(super) inverse: F,
}

/// Of nineteen scales that give the weight farthest from zero about the lowest code, `-half`, the
/// best for the importance `w`. ggml's `make_qx_quants`.
#[inline(always)]
pub(super) fn signed_scale<S: Simd, const N: usize>(
    s: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    half: f32,
) -> Signed<S::F32> {
    let zero = s.splat(0.0);
    let (farthest, magnitude) = farthest(s, x);
    let empty = magnitude.lt(s.splat(TINY));

    let mut wx = *w;
    for (wx, &x) in wx.iter_mut().zip(x) {
        *wx = *wx * x;
    }
    let mut inverse = s.splat(-half) / farthest;
    let (sum_xl, sum_l2) = signed_sums(s, x, w, &wx, inverse, half, false);
    let mut scale = S::F32::select(sum_l2.eq(zero), zero, sum_xl / sum_l2);
    let mut best = scale * sum_xl;
    for step in -9..=9i8 {
        if step == 0 {
            continue;
        }
        let lowest = -(half + 0.1 * f32::from(step));
        let other = s.splat(lowest) / farthest;
        // No code is below `lowest`, but for an error in its seventh digit.
        let (sum_xl, sum_l2) = if lowest > -half - 0.4 {
            signed_sums(s, x, w, &wx, other, half, false)
        } else {
            signed_sums(s, x, w, &wx, other, half, true)
        };
        let better = zero.lt(sum_l2) & (best * sum_l2).lt(sum_xl * sum_xl);
        scale = S::F32::select(better, sum_xl / sum_l2, scale);
        best = S::F32::select(better, scale * sum_xl, best);
        inverse = S::F32::select(better, other, inverse);
    }
    Signed {
        scale: S::F32::select(empty, zero, scale),
        inverse: S::F32::select(empty, s.splat(f32::NAN), inverse),
    }
}

/// The sums of `w * x * code` and `w * code * code` for the codes that `inverse` gives, kept in
/// `-half..half`; from below only where `bounded_below`.
#[inline(always)]
fn signed_sums<S: Simd, const N: usize>(
    s: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    wx: &[S::F32; N],
    inverse: S::F32,
    half: f32,
    bounded_below: bool,
) -> (S::F32, S::F32) {
    let (lowest, highest) = (s.splat(-half), s.splat(half - 1.0));
    let (mut sum_xl, mut sum_l2) = (s.splat(0.0), s.splat(0.0));
    for i in 0..N {
        let mut code = s.nearest(inverse * x[i]).min(highest);
        if bounded_below {
            code = code.max(lowest);
        }
        sum_xl = sum_xl + wx[i] * code;
        sum_l2 = sum_l2 + w[i] * code * code;
    }
    (sum_xl, sum_l2)
}
