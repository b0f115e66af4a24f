//! Weights to codes where the scale is known: along a block, not across blocks.

use super::codebook::FP4;
use crate::isa::{LANES, Lanes, Simd};

/// `round(inverse * (x - base))`, kept in `0..=top`.
#[inline(always)]
pub(super) fn above<S: Simd>(s: S, x: &[f32], base: f32, inverse: f32, top: f32, out: &mut [u8]) {
    let (base, inverse) = (s.splat(base), s.splat(inverse));
    let (zero, top) = (s.splat(0.0), s.splat(top));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        *out = s.nearest_int(inverse * (s.load(x) - base)).max(zero).min(top).to_bytes();
    }
}

/// `round((x + min) / scale)`, kept in `0..=top`.
#[inline(always)]
pub(super) fn over<S: Simd>(s: S, x: &[f32], min: f32, scale: f32, top: f32, out: &mut [u8]) {
    let (min, scale) = (s.splat(min), s.splat(scale));
    let (zero, top) = (s.splat(0.0), s.splat(top));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        *out = s.nearest_int((s.load(x) + min) / scale).max(zero).min(top).to_bytes();
    }
}

/// `(x - base) * inverse + shift`, cast as [`Lanes::to_bytes`] does.
#[inline(always)]
pub(super) fn shifted<S: Simd>(
    s: S,
    x: &[f32],
    base: f32,
    inverse: f32,
    shift: f32,
    out: &mut [u8],
) {
    let (base, inverse, shift) = (s.splat(base), s.splat(inverse), s.splat(shift));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        *out = ((s.load(x) - base) * inverse + shift).to_bytes();
    }
}

/// `x * inverse` to the nearest, halves away from zero, as C's `roundf`; the low byte of that.
#[inline(always)]
pub(super) fn rounded<S: Simd>(s: S, x: &[f32], inverse: f32, out: &mut [u8]) {
    // The greatest number below one half: with a whole half, 0.49999997 would round up to 1.
    const HALF: f32 = 0.5_f32.next_down();
    let (inverse, zero) = (s.splat(inverse), s.splat(0.0));
    let (up, down) = (s.splat(HALF), s.splat(-HALF));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let x = s.load(x) * inverse;
        *out = (x + S::F32::select(x.lt(zero), down, up)).to_bytes();
    }
}

/// `round(inverse * x) + half`, kept in `0..2 * half`; 0 for NaN.
#[inline(always)]
pub(super) fn around<S: Simd>(s: S, x: &[f32], inverse: f32, half: f32, out: &mut [u8]) {
    let inverse = s.splat(inverse);
    let (lowest, highest, shift) = (s.splat(-half), s.splat(half - 1.0), s.splat(half));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let code = s.nearest(inverse * s.load(x)).max(lowest).min(highest);
        *out = (code + shift).to_bytes();
    }
}

/// `round(x / scale) + half`, kept in `0..2 * half`.
#[inline(always)]
pub(super) fn around_over<S: Simd>(s: S, x: &[f32], scale: f32, half: f32, out: &mut [u8]) {
    let scale = s.splat(scale);
    let (lowest, highest, shift) = (s.splat(-half), s.splat(half - 1.0), s.splat(half));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let code = s.nearest_int(s.load(x) / scale).max(lowest).min(highest);
        *out = (code + shift).to_bytes();
    }
}

/// The number of the code in [`FP4`] that times `scale` is nearest to `x`, of two the one nearer to
/// zero; 0 for NaN.
///
/// Far beyond the highest code the distance to two or more can be the same, when rounded; then ggml
/// takes the first. Hence distances, as there, and not bounds between the codes.
#[inline(always)]
pub(super) fn nearest_fp4<S: Simd>(s: S, x: &[f32], scale: f32, out: &mut [u8]) {
    let (zero, scale) = (s.splat(0.0), s.splat(scale));
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let x = s.load(x);
        let (mut number, mut distance) = (zero, x.abs());
        for n in 1..8u8 {
            let value = s.splat(f32::from(FP4[usize::from(n)])) * scale;
            let other = (value - x.abs()).abs();
            number = S::F32::select(other.lt(distance), s.splat(f32::from(n)), number);
            distance = other.min(distance);
        }
        // The negative codes are in the second half; -0 is not among them.
        let negative = x.lt(zero) & zero.lt(number);
        *out = S::F32::select(negative, number + s.splat(8.0), number).to_bytes();
    }
}

/// The greatest magnitude in `x`; NaN does not count.
#[inline(always)]
pub(super) fn magnitude<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut greatest = s.splat(0.0);
    for x in x.as_chunks::<LANES>().0 {
        greatest = s.load(x).abs().max(greatest);
    }
    greatest.largest()
}

/// The value in `x` that is farthest from zero, the first where several are; 0 where all are zero.
#[inline(always)]
pub(super) fn farthest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let magnitude = magnitude(s, x);
    if magnitude == 0.0 {
        return 0.0; // Not -0.
    }
    let magnitude = s.splat(magnitude);
    for x in x.as_chunks::<LANES>().0 {
        let there = S::F32::bits(s.load(x).abs().eq(magnitude));
        if there != 0 {
            return x[there.trailing_zeros() as usize];
        }
    }
    0.0
}

/// The lowest and the highest value in `x`, of several equal ones the first: of 0 and -0, that is.
#[inline(always)]
pub(super) fn range<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = (s.splat(f32::MAX), s.splat(-f32::MAX));
    for x in x.as_chunks::<LANES>().0 {
        low = s.load(x).min(low);
        high = s.load(x).max(high);
    }
    let (low, high) = (-(s.splat(0.0) - low).largest(), high.largest());
    (first_zero(low, x), first_zero(high, x))
}

/// `value`, or the first zero in `x` where it is zero: with its sign.
#[inline(always)]
fn first_zero(value: f32, x: &[f32]) -> f32 {
    if value != 0.0 {
        return value;
    }
    x.iter().copied().find(|&x| x == 0.0).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};

    struct Rounded([f32; LANES]);

    impl Kernel for Rounded {
        type Output = [u8; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [u8; LANES] {
            let mut out = [0; LANES];
            rounded(s, &self.0, 1.0, &mut out);
            out
        }
    }

    #[test]
    fn halves_round_away_from_zero() {
        // Every value that codes can have, a half more, and the numbers on either side of these.
        for whole in -127..=127i8 {
            for middle in [f32::from(whole), f32::from(whole) + 0.5] {
                let x = [middle.next_down(), middle, middle.next_up()];
                let want = x.map(|x| x.round() as i32 as u8);
                for isa in Isa::available() {
                    let mut row = [0.0; LANES];
                    row[..3].copy_from_slice(&x);
                    assert_eq!(isa.run(Rounded(row))[..3], want, "{x:?}, {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn the_first_of_equals_is_taken() {
        struct Ends;
        impl Kernel for Ends {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let mut x = [0.0; 32];
                assert!(farthest(s, &[-0.0; 32]).is_sign_positive());
                (x[3], x[20], x[21]) = (1.0, -2.0, 2.0);
                assert_eq!(farthest(s, &x), -2.0);
                (x[3], x[20]) = (2.0, 1.0);
                assert_eq!(farthest(s, &x), 2.0);
                x[0] = -0.0;
                assert!(range(s, &x).0.is_sign_negative());
                x[0] = 1.0;
                assert!(range(s, &x).0.is_sign_positive());
                assert_eq!(farthest(s, &[f32::NAN; 32]), 0.0);
            }
        }
        for isa in Isa::available() {
            isa.run(Ends);
        }
    }
}
