//! Products with a few tokens: each row of weights is decoded and multiplied at once.
//!
//! For one token, what limits it is how fast the weights come from memory.

use super::activations::{Activations, Slab};
use super::ahead::{Ahead, ask_ahead};
use super::slab::{self, CodesOf, GROUPS, SLAB};
use crate::format::{Codes, Format};
use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};
use crate::row::blocks;
use zerocopy::IntoBytes;

/// The most tokens whose sums stay in registers; with more, it pays to pack the weights into panels.
pub(super) const MOST: usize = 5;

/// Tokens whose sums stay in the first cache.
const BLOCK: usize = 32;

/// Codes that are multiplied at a time.
const STEP: usize = 4 * LANES;

/// What to multiply: to `out[i * stride + r]`, for each row `r` of `weights`, of which there are
/// `stride`, and the `i`th of `tokens`.
pub(crate) struct Rows<'a> {
    pub(super) weights: &'a [u8],
    pub(super) x: &'a Activations,
    pub(super) tokens: &'a [u32],
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    /// What is needed next.
    pub(super) ahead: &'a [&'a [u8]],
}

/// Fills in [`Rows`].
pub(crate) fn multiply_rows<F: Format>(isa: Isa, rows: Rows<'_>) {
    struct Of<'a, F: Format>(&'a [F::Block], Rows<'a>);

    impl<F: Format> Kernel for Of<'_, F> {
        type Output = ();
        const MULTIPLIES_BYTES: bool = true;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            match self.1.tokens.len() {
                1 => multiply::<S, F, 1>(s, self.0, self.1),
                ..=MOST => multiply::<S, F, MOST>(s, self.0, self.1),
                _ => multiply_block::<S, F>(s, self.0, self.1),
            }
        }
    }

    let Rows { weights, x, tokens, out, stride, ahead } = rows;
    for (tokens, out) in tokens.chunks(BLOCK).zip(out.chunks_mut(BLOCK * stride)) {
        isa.run(Of::<F>(blocks(weights), Rows { weights, x, tokens, out, stride, ahead }));
    }
}

/// With up to `N` tokens.
#[inline(always)]
fn multiply<S: Simd, F: Format, const N: usize>(
    s: S,
    weights: &[F::Block],
    Rows { x, tokens, out, stride, ahead, .. }: Rows,
) {
    let mut ahead = Ahead::new(ahead, stride);
    let mut slabs: [&[Slab]; N] = [&[]; N];
    for (slabs, &token) in slabs.iter_mut().zip(tokens) {
        *slabs = x.token(token);
    }
    let slabs = &slabs[..tokens.len()];

    let mut codes = Codes::ZERO;
    for (r, row) in weights.chunks_exact(x.columns() / F::WEIGHTS).enumerate() {
        ahead.step(s);
        let mut sums = [s.splat(0.0); N];
        for (n, blocks) in row.chunks(SLAB / F::WEIGHTS).enumerate() {
            ask_ahead(s, blocks.as_bytes());
            slab::decode::<S, F>(s, blocks, &mut codes);
            let steps = (blocks.len() * F::WEIGHTS).div_ceil(STEP);
            let mins = s.splat(0.0) - s.load(&codes.mins);
            for (sum, slabs) in sums.iter_mut().zip(slabs) {
                let x = &slabs[n];
                *sum = s.load(&x.sums).mul_add(mins, *sum);
                *sum = dots::<S, F>(s, &codes, x, steps, *sum);
            }
        }
        for (i, sum) in sums[..tokens.len()].iter().enumerate() {
            out[i * stride + r] = sum.sum();
        }
    }
}

/// The same for up to [`BLOCK`] tokens, in the same order of sums.
#[inline(always)]
fn multiply_block<S: Simd, F: Format>(
    s: S,
    weights: &[F::Block],
    Rows { x, tokens, out, stride, .. }: Rows,
) {
    let mut codes = Codes::ZERO;
    let mut sums = [[0.0; LANES]; BLOCK];
    for (r, row) in weights.chunks_exact(x.columns() / F::WEIGHTS).enumerate() {
        sums[..tokens.len()].fill([0.0; LANES]);
        for (n, blocks) in row.chunks(SLAB / F::WEIGHTS).enumerate() {
            ask_ahead(s, blocks.as_bytes());
            slab::decode::<S, F>(s, blocks, &mut codes);
            let steps = (blocks.len() * F::WEIGHTS).div_ceil(STEP);
            let mins = s.splat(0.0) - s.load(&codes.mins);
            let (fours, ones) = tokens.as_chunks::<4>();
            let (sums_of_fours, sums_of_ones) = sums.as_chunks_mut::<4>();
            for (tokens, sums) in fours.iter().zip(sums_of_fours.iter_mut()) {
                let x = tokens.map(|token| &x.token(token)[n]);
                some::<S, F, 4>(s, &codes, x, steps, mins, sums);
            }
            let rest = sums_of_fours[fours.len()..].as_flattened_mut().iter_mut();
            for (token, sums) in ones.iter().zip(rest.chain(sums_of_ones)) {
                let x = [&x.token(*token)[n]];
                some::<S, F, 1>(s, &codes, x, steps, mins, std::array::from_mut(sums));
            }
        }
        for (i, sums) in sums[..tokens.len()].iter().enumerate() {
            out[i * stride + r] = s.load(sums).sum();
        }
    }
}

/// Adds to the sums of `T` tokens the products of a slab, as [`dots`] does for one.
#[inline(always)]
fn some<S: Simd, F: Format, const T: usize>(
    s: S,
    codes: &Codes,
    x: [&Slab; T],
    steps: usize,
    mins: S::F32,
    sums: &mut [[f32; LANES]; T],
) {
    let (weights, _) = codes.codes.as_bytes().as_chunks::<STEP>();
    let mut x_codes: [&[[i8; STEP]]; T] = [&[]; T];
    let mut scales = [[0.0; GROUPS]; T];
    let mut totals = [s.splat(0.0); T];
    for t in 0..T {
        x_codes[t] = x[t].codes.as_chunks().0;
        scales[t] = (s.load(&codes.scales) * s.by_two(&x[t].scales)).to_array();
        totals[t] = s.load(&x[t].sums).mul_add(mins, s.load(&sums[t]));
    }
    for step in 0..steps.min(SLAB / STEP) {
        for t in 0..T {
            let dot = if CodesOf::<S, F>::SIGNED {
                s.dot::<true>(&weights[step], &x_codes[t][step])
            } else {
                s.dot::<false>(&weights[step], &x_codes[t][step])
            };
            let (scales, _) = scales[t].as_chunks();
            totals[t] = dot.mul_add(s.by_four(&scales[step]), totals[t]);
        }
    }
    for t in 0..T {
        sums[t] = totals[t].to_array();
    }
}

/// `sum`, and the products of `steps` times [`STEP`] codes.
#[inline(always)]
fn dots<S: Simd, F: Format>(
    s: S,
    codes: &Codes,
    x: &Slab,
    steps: usize,
    mut sum: S::F32,
) -> S::F32 {
    let (weights, _) = codes.codes.as_bytes().as_chunks::<STEP>();
    let (x_codes, _) = x.codes.as_chunks::<STEP>();
    let scales = (s.load(&codes.scales) * s.by_two(&x.scales)).to_array();
    let (scales, _) = scales.as_chunks();
    for step in 0..steps.min(SLAB / STEP) {
        let dot = if CodesOf::<S, F>::SIGNED {
            s.dot::<true>(&weights[step], &x_codes[step])
        } else {
            s.dot::<false>(&weights[step], &x_codes[step])
        };
        sum = dot.mul_add(s.by_four(&scales[step]), sum);
    }
    sum
}
