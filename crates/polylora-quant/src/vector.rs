//! Operations on vectors of any length, in single precision.
//!
//! All panic where two slices that belong together differ in length.

use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};
use std::ops::Range;

/// `sum of a[i] * b[i]`.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            dots(s, self.0, [self.1])[0]
        }
    }

    assert_eq!(a.len(), b.len());
    isa.run(Dot(a, b))
}

/// `x[i] += factor * y[i]`.
pub fn add_scaled(isa: Isa, x: &mut [f32], factor: f32, y: &[f32]) {
    struct AddScaled(f32);

    impl Each for AddScaled {
        #[inline(always)]
        fn each<S: Simd>(&self, s: S, x: S::F32, y: S::F32) -> S::F32 {
            y.mul_add(s.splat(self.0), x)
        }
    }

    assert_eq!(x.len(), y.len());
    isa.run(All { x, y, each: AddScaled(factor) });
}

/// `out[i] = x[i] / sqrt(mean of x * x + epsilon) * weight[i]`: RMSNorm (Zhang and Sennrich 2019).
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    struct Scale(f32);

    impl Each for Scale {
        #[inline(always)]
        fn each<S: Simd>(&self, s: S, x: S::F32, y: S::F32) -> S::F32 {
            x * s.splat(self.0) * y
        }
    }

    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    let mean = dot(isa, x, x) / x.len() as f32;
    out.copy_from_slice(x);
    isa.run(All { x: out, y: weight, each: Scale(1.0 / (mean + epsilon).sqrt()) });
}

/// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`.
pub fn silu_mul(isa: Isa, gate: &mut [f32], up: &[f32]) {
    struct SiluMul;

    impl Each for SiluMul {
        #[inline(always)]
        fn each<S: Simd>(&self, s: S, x: S::F32, y: S::F32) -> S::F32 {
            x * sigmoid(s, x) * y
        }
    }

    assert_eq!(gate.len(), up.len());
    isa.run(All { x: gate, y: up, each: SiluMul });
}

/// `gate[i] = gelu(gate[i]) * up[i]`, with ggml's approximation `gelu(x) = x / 2 * (1 +
/// tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
pub fn gelu_mul(isa: Isa, gate: &mut [f32], up: &[f32]) {
    struct GeluMul;

    impl Each for GeluMul {
        #[inline(always)]
        fn each<S: Simd>(&self, s: S, x: S::F32, y: S::F32) -> S::F32 {
            // (1 + tanh(z)) / 2 is the sigmoid of 2 * z.
            let twice = s.splat(2.0 * (2.0 / std::f32::consts::PI).sqrt());
            let z = (x * x * x).mul_add(s.splat(0.044_715), x) * twice;
            x * sigmoid(s, z) * y
        }
    }

    assert_eq!(gate.len(), up.len());
    isa.run(All { x: gate, y: up, each: GeluMul });
}

/// `x[i] = exp(x[i] - max) / sum of all exp(x[k] - max)`. An empty `x` stays empty.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    struct Softmax<'a>(&'a mut [f32]);

    impl Kernel for Softmax<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let largest = largest(s, self.0);
            let sum = exp_less(s, self.0, largest);
            each(s, self.0, &[], &Times(1.0 / sum));
        }
    }

    isa.run(Softmax(x));
}

/// The largest of `x`, negative infinity where there is none; NaN does not count.
pub fn max(isa: Isa, x: &[f32]) -> f32 {
    struct Max<'a>(&'a [f32]);

    impl Kernel for Max<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            largest(s, self.0)
        }
    }

    isa.run(Max(x))
}

/// `x[i] = exp((x[i] - max) / temperature)`, for logits that are at most `max`; the sum of these, in
/// double precision. NaN counts as negative infinity, and infinity as the largest finite number.
pub fn exp_sum(isa: Isa, x: &mut [f32], max: f32, temperature: f32) -> f64 {
    struct ExpSum<'a> {
        x: &'a mut [f32],
        max: f32,
        temperature: f32,
    }

    struct Share {
        max: f32,
        temperature: f32,
    }

    impl Each for Share {
        #[inline(always)]
        fn each<S: Simd>(&self, s: S, x: S::F32, _: S::F32) -> S::F32 {
            let x = x.max(s.splat(f32::NEG_INFINITY)).min(s.splat(f32::MAX));
            // A quotient, for 1 / temperature may be infinite.
            exp(s, (x - s.splat(self.max)) / s.splat(self.temperature))
        }
    }

    impl Kernel for ExpSum<'_> {
        type Output = f64;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f64 {
            let ExpSum { x, max, temperature } = self;
            each(s, x, &[], &Share { max, temperature });
            sum_at_least(s, x, x, 0.0)
        }
    }

    isa.run(ExpSum { x, max: max.min(f32::MAX), temperature })
}

/// The sum of the `values` whose `keys` are `least` or more, in double precision.
pub fn sum_where_at_least(isa: Isa, values: &[f32], keys: &[f32], least: f32) -> f64 {
    struct SumAtLeast<'a> {
        values: &'a [f32],
        keys: &'a [f32],
        least: f32,
    }

    impl Kernel for SumAtLeast<'_> {
        type Output = f64;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f64 {
            sum_at_least(s, self.values, self.keys, self.least)
        }
    }

    assert_eq!(values.len(), keys.len());
    isa.run(SumAtLeast { values, keys, least })
}

/// `x[i] = cap * tanh(x[i] / cap)`, to some 1e-7 of `cap`.
pub fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    isa.run(All { x, y: &[], each: SoftCap(cap) });
}

/// See [`soft_cap`].
pub(crate) struct SoftCap(pub(crate) f32);

impl Each for SoftCap {
    #[inline(always)]
    fn each<S: Simd>(&self, s: S, x: S::F32, _: S::F32) -> S::F32 {
        // tanh(z) is 1 - 2 / (exp(2 * z) + 1).
        let (one, two) = (s.splat(1.0), s.splat(2.0));
        s.splat(self.0) * (one - two / (exp(s, x * s.splat(2.0 / self.0)) + one))
    }
}

/// Multiplies.
pub(crate) struct Times(pub(crate) f32);

impl Each for Times {
    #[inline(always)]
    fn each<S: Simd>(&self, s: S, x: S::F32, _: S::F32) -> S::F32 {
        x * s.splat(self.0)
    }
}

/// Turns pairs of values by angles (Su et al. 2021, "RoFormer"): pair `i`, of `cos.len()` pairs, is
/// `x[i]` and `x[i + cos.len()]`. What is behind the pairs stays.
pub fn rotate_halves(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    struct Rotate<'a> {
        first: &'a mut [f32],
        second: &'a mut [f32],
        cos: &'a [f32],
        sin: &'a [f32],
    }

    impl Kernel for Rotate<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Rotate { first, second, cos, sin } = self;
            let (first, last_first) = first.as_chunks_mut::<LANES>();
            let (second, last_second) = second.as_chunks_mut::<LANES>();
            let (cos, last_cos) = cos.as_chunks::<LANES>();
            let (sin, last_sin) = sin.as_chunks::<LANES>();
            for i in 0..first.len() {
                let (a, b) = (s.load(&first[i]), s.load(&second[i]));
                let (cos, sin) = (s.load(&cos[i]), s.load(&sin[i]));
                first[i] = (a * cos - b * sin).to_array();
                second[i] = (a * sin + b * cos).to_array();
            }
            for i in 0..last_first.len() {
                let (a, b) = (last_first[i], last_second[i]);
                last_first[i] = a * last_cos[i] - b * last_sin[i];
                last_second[i] = a * last_sin[i] + b * last_cos[i];
            }
        }
    }

    assert_eq!(cos.len(), sin.len());
    let (first, rest) = x.split_at_mut(cos.len());
    isa.run(Rotate { first, second: &mut rest[..cos.len()], cos, sin });
}

/// As [`rotate_halves`], but pair `i` is `x[2 * i]` and `x[2 * i + 1]`.
pub fn rotate_neighbours(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    const PAIRS: usize = LANES / 2;
    struct Rotate<'a> {
        x: &'a mut [f32],
        cos: &'a [f32],
        sin: &'a [f32],
    }

    impl Kernel for Rotate<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Rotate { x, cos, sin } = self;
            let (whole, last) = x.as_chunks_mut::<LANES>();
            let (cos, last_cos) = cos.as_chunks::<PAIRS>();
            let (sin, last_sin) = sin.as_chunks::<PAIRS>();
            // The first of a pair loses what the second gains.
            let sign = s.load(&std::array::from_fn(|i| if i % 2 == 0 { -1.0 } else { 1.0 }));
            for ((x, cos), sin) in whole.iter_mut().zip(cos).zip(sin) {
                let pairs = s.load(x);
                let (cos, sin) = (s.by_two(cos), s.by_two(sin) * sign);
                *x = (pairs * cos + pairs.swap_neighbours() * sin).to_array();
            }
            for ((pair, cos), sin) in
                last.as_chunks_mut::<2>().0.iter_mut().zip(last_cos).zip(last_sin)
            {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }

    assert_eq!(cos.len(), sin.len());
    isa.run(Rotate { x: &mut x[..2 * cos.len()], cos, sin });
}

/// Puts some columns of `rows`, which are `stride` long, into `turned`, whose rows are `length` long:
/// `turned[c][from + r] = rows[r][columns.start + c]`.
pub fn turn(
    isa: Isa,
    (rows, stride): (&[f32], usize),
    columns: Range<usize>,
    (turned, length): (&mut [f32], usize),
    from: usize,
) {
    struct Turn<'a> {
        rows: &'a [f32],
        stride: usize,
        columns: Range<usize>,
        turned: &'a mut [f32],
        length: usize,
        from: usize,
    }

    impl Kernel for Turn<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Turn { rows, stride, columns, turned, length, from } = self;
            turn_with(s, (rows, stride), columns, (turned, length), from);
        }
    }

    assert_eq!(rows.len() % stride, 0, "whole rows");
    assert_eq!(turned.len(), columns.len() * length, "a row for each column");
    isa.run(Turn { rows, stride, columns, turned, length, from });
}

/// See [`turn`].
#[inline(always)]
pub(crate) fn turn_with<S: Simd>(
    s: S,
    (rows, stride): (&[f32], usize),
    columns: Range<usize>,
    (turned, length): (&mut [f32], usize),
    mut from: usize,
) {
    for rows in rows.chunks(LANES * stride) {
        let count = rows.len() / stride;
        let parts = turned.chunks_mut(LANES * length);
        for (first, turned) in columns.clone().step_by(LANES).zip(parts) {
            let end = columns.end.min(first + LANES);
            let mut lanes = [s.splat(0.0); LANES];
            for (lanes, row) in lanes.iter_mut().zip(rows.chunks_exact(stride)) {
                let row = &row[first..end];
                *lanes = match row.first_chunk::<LANES>() {
                    Some(row) => s.load(row),
                    None => load_some(s, row, 0.0),
                };
            }
            for (to, lanes) in turned.chunks_exact_mut(length).zip(s.transpose(lanes)) {
                let to = &mut to[from..from + count];
                match to.as_mut_array::<LANES>() {
                    Some(to) => *to = lanes.to_array(),
                    None => to.copy_from_slice(&lanes.to_array()[..count]),
                }
            }
        }
        from += count;
    }
}

/// What becomes of each `x`, given the `y` beside it.
///
/// A trait and not a closure: closures do not inherit the instruction set of the code around them.
pub(crate) trait Each {
    fn each<S: Simd>(&self, s: S, x: S::F32, y: S::F32) -> S::F32;
}

/// [`Each`] of all `x`; where `y` is empty, zeros.
struct All<'a, E> {
    x: &'a mut [f32],
    y: &'a [f32],
    each: E,
}

impl<E: Each> Kernel for All<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each(s, self.x, self.y, &self.each);
    }
}

/// See [`All`].
#[inline(always)]
pub(crate) fn each<S: Simd, E: Each>(s: S, x: &mut [f32], y: &[f32], with: &E) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    if y.is_empty() {
        for x in whole {
            *x = with.each(s, s.load(x), s.splat(0.0)).to_array();
        }
        let x = with.each(s, load_some(s, rest, 0.0), s.splat(0.0)).to_array();
        rest.copy_from_slice(&x[..rest.len()]);
    } else {
        let (y_whole, y_rest) = y.as_chunks::<LANES>();
        for (x, y) in whole.iter_mut().zip(y_whole) {
            *x = with.each(s, s.load(x), s.load(y)).to_array();
        }
        let x = with.each(s, load_some(s, rest, 0.0), load_some(s, y_rest, 0.0)).to_array();
        rest.copy_from_slice(&x[..rest.len()]);
    }
}

/// Fewer than sixteen lanes from memory, the others `fill`.
#[inline(always)]
pub(crate) fn load_some<S: Simd>(s: S, some: &[f32], fill: f32) -> S::F32 {
    let mut lanes = [fill; LANES];
    lanes[..some.len()].copy_from_slice(some);
    s.load(&lanes)
}

/// `sum of a[i] * b[t][i]` for each `t`; all of one length.
#[inline(always)]
pub(crate) fn dots<S: Simd, const T: usize>(s: S, a: &[f32], b: [&[f32]; T]) -> [f32; T] {
    // Sums side by side, for none to wait for another.
    const SUMS: usize = 4;
    let zero = s.splat(0.0);
    let mut sums = [[zero; SUMS]; T];
    let (steps, rest) = a.as_chunks::<{ SUMS * LANES }>();
    let mut rests = b;
    for (n, a) in steps.iter().enumerate() {
        let (a, _) = a.as_chunks::<LANES>();
        for t in 0..T {
            let (b, _) = b[t][n * SUMS * LANES..][..SUMS * LANES].as_chunks::<LANES>();
            for i in 0..SUMS {
                sums[t][i] = s.load(&a[i]).mul_add(s.load(&b[i]), sums[t][i]);
            }
        }
    }
    for t in 0..T {
        rests[t] = &b[t][a.len() - rest.len()..];
    }
    let (whole, last) = rest.as_chunks::<LANES>();
    for (i, a) in whole.iter().enumerate() {
        for t in 0..T {
            let b = &rests[t].as_chunks::<LANES>().0[i];
            sums[t][i % SUMS] = s.load(a).mul_add(s.load(b), sums[t][i % SUMS]);
        }
    }
    let mut out = [0.0; T];
    for t in 0..T {
        if !last.is_empty() {
            let b = &rests[t][whole.len() * LANES..];
            let (a, b) = (load_some(s, last, 0.0), load_some(s, b, 0.0));
            sums[t][SUMS - 1] = a.mul_add(b, sums[t][SUMS - 1]);
        }
        let [a, b, c, d] = sums[t];
        out[t] = ((a + b) + (c + d)).sum();
    }
    out
}

/// See [`sum_where_at_least`].
#[inline(always)]
fn sum_at_least<S: Simd>(s: S, values: &[f32], keys: &[f32], least: f32) -> f64 {
    let mut sums = [0.0; LANES];
    let (values, last_values) = values.as_chunks::<LANES>();
    let (keys, last_keys) = keys.as_chunks::<LANES>();
    let last = (load_some(s, last_values, 0.0), load_some(s, last_keys, 0.0));
    for i in 0..=values.len() {
        let (value, key) =
            if i < values.len() { (s.load(&values[i]), s.load(&keys[i])) } else { last };
        let counted = S::F32::select(s.splat(least).le(key), value, s.splat(0.0)).to_array();
        for i in 0..LANES {
            sums[i] += f64::from(counted[i]);
        }
    }
    sums.iter().sum()
}

/// See [`max`].
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut largest = s.splat(f32::NEG_INFINITY);
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        largest = s.load(x).max(largest);
    }
    load_some(s, rest, f32::NEG_INFINITY).max(largest).largest()
}

/// `x[i] = exp(x[i] - base)`; the sum of these.
#[inline(always)]
pub(crate) fn exp_less<S: Simd>(s: S, x: &mut [f32], base: f32) -> f32 {
    let base = s.splat(base);
    let mut sum = s.splat(0.0);
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        let value = exp(s, s.load(x) - base);
        sum = sum + value;
        *x = value.to_array();
    }
    // Lanes that are not there add nothing, so the sum does not depend on how many are.
    let value = exp(s, load_some(s, rest, f32::NEG_INFINITY) - base);
    rest.copy_from_slice(&value.to_array()[..rest.len()]);
    (sum + value).sum()
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    one / (one + exp(s, s.splat(0.0) - x))
}

/// `exp(x)` to a few units in the last place; zero below -87.3, and no more than `exp(88.37)`.
///
/// `x` is `n * ln(2) + r` with the nearest whole `n`; `2^n` is exact and `exp(r)` a polynomial:
/// the one of Moshier's Cephes library.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LOWEST: f32 = -87.3; // 2^-126 is the least normal power.
    const HIGHEST: f32 = 88.37; // 2^127 is the highest.
    /// ln(2) as the sum of a number with few bits, of which products are exact, and the rest.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // NaN stays NaN: it comes second.
    let kept = s.splat(HIGHEST).min(s.splat(LOWEST).max(x));
    let n = s.nearest(kept * s.splat(std::f32::consts::LOG2_E));
    let r = n.mul_add(s.splat(-LN_2[0]), kept);
    let r = n.mul_add(s.splat(-LN_2[1]), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for factor in &POLYNOMIAL[1..] {
        p = p.mul_add(r, s.splat(*factor));
    }
    let value = (p * r).mul_add(r, r) + s.splat(1.0);
    S::F32::select(x.lt(s.splat(LOWEST)), s.splat(0.0), value * n.power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|i| ((i * i) as f32 * 0.37).sin() * size).collect()
    }

    /// Lengths with and without whole steps, whole vectors and a rest.
    const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 63, 64, 100, 257];

    #[test]
    fn columns_become_rows() {
        const LENGTH: usize = 70;
        for isa in Isa::available() {
            for (rows, stride) in [(0, 5), (1, 1), (16, 16), (17, 33), (40, 100)] {
                let values = values(rows * stride, 1.0);
                for columns in [0..stride, stride / 3..stride, 0..stride / 2] {
                    let mut turned = vec![7.0; columns.len() * LENGTH];
                    turn(isa, (&values, stride), columns.clone(), (&mut turned, LENGTH), 3);
                    for (at, &found) in turned.iter().enumerate() {
                        let (column, row) = (columns.start + at / LENGTH, at % LENGTH);
                        let value = row.checked_sub(3).filter(|row| *row < rows);
                        let expected = value.map_or(7.0, |row| values[row * stride + column]);
                        assert_eq!(found, expected, "{isa:?}: {rows} by {stride}, {columns:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_operation_is_what_its_formula_says() {
        for isa in Isa::available() {
            for length in LENGTHS {
                let (a, b) = (values(length, 9.0), values(length + 3, 2.0)[3..].to_vec());
                let check = |what: &str, got: &[f32], want: &dyn Fn(f64, f64) -> f64| {
                    for i in 0..length {
                        let want = want(a[i].into(), b[i].into());
                        let error = (f64::from(got[i]) - want).abs();
                        // A cap is as exact as its size allows, and not near zero.
                        let allowed =
                            2e-6 * want.abs() + if what == "soft_cap" { 1e-6 } else { 1e-7 };
                        assert!(error <= allowed, "{what} {}: {} {want}", isa.name(), got[i]);
                    }
                };
                let changed = |change: &dyn Fn(&mut [f32])| {
                    let mut x = a.clone();
                    change(&mut x);
                    x
                };

                let want: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let size: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from((a * b).abs())).sum();
                assert!((f64::from(dot(isa, &a, &b)) - want).abs() <= 1e-6 * size);

                let got = changed(&|x| add_scaled(isa, x, 0.3, &b));
                check("add_scaled", &got, &|a, b| a + f64::from(0.3_f32) * b);
                let got = changed(&|x| silu_mul(isa, x, &b));
                check("silu_mul", &got, &|a, b| a / (1.0 + (-a).exp()) * b);
                let got = changed(&|x| gelu_mul(isa, x, &b));
                check("gelu_mul", &got, &|a, b| {
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044_715 * a * a * a);
                    a / (1.0 + (-2.0 * z).exp()) * b
                });
                let got = changed(&|x| soft_cap(isa, x, 5.0));
                check("soft_cap", &got, &|a, _| 5.0 * (a / 5.0).tanh());
                let mut got = vec![f32::NAN; length];
                rms_norm(isa, &a, &b, 1e-5, &mut got);
                let mean = a.iter().map(|&a| f64::from(a) * f64::from(a)).sum::<f64>();
                let mean = mean / length as f64;
                check("rms_norm", &got, &|a, b| a / (mean + 1e-5).sqrt() * b);
                let got = changed(&|x| softmax(isa, x));
                let sum: f64 = a.iter().map(|&a| f64::from(a).exp()).sum();
                check("softmax", &got, &|a, _| a.exp() / sum);

                let largest = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max(isa, &a), largest);
                let mut got = a.clone();
                let sum = exp_sum(isa, &mut got, largest, 0.7);
                let share = |a: f64| ((a - f64::from(largest)) / f64::from(0.7_f32)).exp();
                check("exp_sum", &got, &|a, _| share(a));
                let want: f64 = a.iter().map(|&a| share(a.into())).sum();
                assert!((sum - want).abs() <= 2e-7 * want, "{sum} {want}");

                let kept = a.iter().zip(&b).filter(|(a, _)| **a >= 1.5);
                let want: f64 = kept.map(|(_, &b)| f64::from(b)).sum();
                let sum = sum_where_at_least(isa, &b, &a, 1.5);
                assert!((sum - want).abs() <= 1e-13 * length as f64, "{sum} {want}");
            }
        }
    }

    #[test]
    fn pairs_are_turned_and_the_rest_stays() {
        for isa in Isa::available() {
            for pairs in LENGTHS {
                let given = values(2 * pairs + 3, 9.0);
                let angles: Vec<f32> = (0..pairs).map(|i| i as f32 * 0.3).collect();
                let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
                let (mut halves, mut neighbours) = (given.clone(), given.clone());
                rotate_halves(isa, &mut halves, &cos, &sin);
                rotate_neighbours(isa, &mut neighbours, &cos, &sin);
                for (got, step, apart) in [(halves, 1, pairs), (neighbours, 2, 1)] {
                    for (i, angle) in angles.iter().enumerate() {
                        let at = [i * step, i * step + apart];
                        let [a, b] = at.map(|at| f64::from(given[at]));
                        let (sin, cos) = f64::from(*angle).sin_cos();
                        let want = [a * cos - b * sin, a * sin + b * cos];
                        for (at, want) in at.into_iter().zip(want) {
                            let error = (f64::from(got[at]) - want).abs();
                            assert!(error < 3e-6, "{} {pairs} {i}", isa.name());
                        }
                    }
                    assert_eq!(got[2 * pairs..], given[2 * pairs..]);
                }
            }
        }
    }

    struct Exp<'a>(&'a [f32; LANES]);

    impl Kernel for Exp<'_> {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            exp(s, s.load(self.0)).to_array()
        }
    }

    #[test]
    fn exp_is_accurate_in_all_its_range() {
        for isa in Isa::available() {
            for i in 0..20_000_i16 {
                let mut x = [0.0; LANES];
                x[3] = f32::from(i - 10_000) * 0.008_73;
                let want = f64::from(x[3]).exp();
                let got = f64::from(isa.run(Exp(&x))[3]);
                assert!((got - want).abs() <= 3e-7 * want, "{} {}: {got} {want}", isa.name(), x[3]);
            }
            let mut x = [0.0; LANES];
            (x[0], x[1], x[2]) = (f32::NEG_INFINITY, f32::NAN, f32::INFINITY);
            let [low, nan, high, one, ..] = isa.run(Exp(&x));
            assert!(low == 0.0 && nan.is_nan() && high > 2e38 && one == 1.0, "{}", isa.name());
        }
    }

    #[test]
    fn softmax_takes_infinite_gaps() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, 1e30, f32::MIN, 1e30];
            softmax(isa, &mut x);
            assert_eq!(x, [0.0, 0.5, 0.0, 0.5]);
        }
    }

    #[test]
    fn damaged_logits_have_no_share() {
        let damaged = [f32::NAN, f32::NEG_INFINITY, f32::MIN, f32::INFINITY, f32::MAX];
        for isa in Isa::available() {
            assert_eq!(max(isa, &damaged), f32::INFINITY);
            assert_eq!(max(isa, &damaged[..2]), f32::NEG_INFINITY);
            for temperature in [1e-45, 1.0, f32::MAX] {
                let mut x = damaged;
                let sum = exp_sum(isa, &mut x, f32::INFINITY, temperature);
                assert_eq!((x, sum), ([0.0, 0.0, 0.0, 1.0, 1.0], 2.0), "{}", isa.name());
            }
        }
    }
}
