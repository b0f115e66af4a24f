//! What IQ4_NL and IQ4_XS share: the search for the scale of 32 weights, and their codes.

use super::codebook::IQ4;
use super::search::{TINY, farthest};
use crate::isa::{LANES, Lanes, Simd};

/// Weights that share a scale.
pub(super) const GROUP: usize = 32;

/// The levels, and the number of each.
const LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut n = 0;
    while n < 16 {
        levels[n] = IQ4[n] as f32;
        n += 1;
    }
    levels
};
const NUMBERS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// What `of_levels` has for the level nearest to `x`, of two the higher; for NaN the highest, which
/// is where ggml's search ends.
///
/// ggml compares distances. Near a middle they are exact: to compare with the middle is the same.
#[inline(always)]
fn nearest<S: Simd>(s: S, x: S::F32, of_levels: &[f32; 16]) -> S::F32 {
    let mut found = s.splat(of_levels[15]);
    for n in (0..15).rev() {
        let middle = s.splat((LEVELS[n] + LEVELS[n + 1]) / 2.0);
        found = S::F32::select(x.lt(middle), s.splat(of_levels[n]), found);
    }
    found
}

/// The number of the level nearest to `inverse * x`.
#[inline(always)]
pub(super) fn codes<S: Simd>(s: S, x: &[f32; GROUP], inverse: f32) -> [u8; GROUP] {
    let inverse = s.splat(inverse);
    let mut codes = [0; GROUP];
    for (x, out) in x.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        *out = nearest(s, inverse * s.load(x), &NUMBERS).to_bytes();
    }
    codes
}

/// The numbers of levels, of each of which the lowest is taken off.
#[inline(always)]
pub(super) fn numbers(levels: &[u8; GROUP]) -> [u8; GROUP] {
    let mut numbers = [0; GROUP];
    for (number, &level) in numbers.iter_mut().zip(levels) {
        *number = IQ4[1..].iter().map(|&next| u8::from(next.abs_diff(IQ4[0]) <= level)).sum();
    }
    numbers
}

/// What each weight counts without an importance matrix: its square.
#[inline(always)]
pub(super) fn squares<F: Lanes>(x: &[F; GROUP]) -> [F; GROUP] {
    let mut squares = *x;
    for x in &mut squares {
        *x = *x * *x;
    }
    squares
}

/// Of sixteen scales the best for the importance `w`: the first gives the weight farthest from
/// zero about the lowest level's negative, the others about that level itself. 0 where the group is
/// empty. For sixteen groups in columns.
#[inline(always)]
pub(super) fn scale<S: Simd>(s: S, x: &[S::F32; GROUP], w: &[S::F32; GROUP]) -> S::F32 {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let (farthest, magnitude) = farthest(s, x);
    let inverse = one / (farthest / s.splat(-LEVELS[0]));
    let (sum_xl, sum_l2) = sums(s, x, w, inverse);
    let mut scale = S::F32::select(zero.lt(sum_l2), sum_xl / sum_l2, zero);
    let mut best = scale * sum_xl;
    for step in -7..=7i8 {
        let inverse = s.splat(f32::from(step) + LEVELS[0]) / farthest;
        let (sum_xl, sum_l2) = sums(s, x, w, inverse);
        let better = zero.lt(sum_l2) & (best * sum_l2).lt(sum_xl * sum_xl);
        scale = S::F32::select(better, sum_xl / sum_l2, scale);
        best = S::F32::select(better, scale * sum_xl, best);
    }
    S::F32::select(magnitude.lt(s.splat(TINY)), zero, scale)
}

/// The sums of `w * level * x` and `w * level * level` for the levels that `inverse` gives.
#[inline(always)]
fn sums<S: Simd>(
    s: S,
    x: &[S::F32; GROUP],
    w: &[S::F32; GROUP],
    inverse: S::F32,
) -> (S::F32, S::F32) {
    let (mut sum_xl, mut sum_l2) = (s.splat(0.0), s.splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let level = nearest(s, inverse * x, &LEVELS);
        let wl = w * level;
        sum_xl = sum_xl + wl * x;
        sum_l2 = sum_l2 + wl * level;
    }
    (sum_xl, sum_l2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};

    struct Codes([f32; GROUP]);

    impl Kernel for Codes {
        type Output = [u8; GROUP];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [u8; GROUP] {
            codes(s, &self.0, 1.0)
        }
    }

    #[test]
    fn the_nearest_level_is_found() {
        // Levels and the middles between them, and the numbers on either side of these.
        let middles = LEVELS.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        for x in middles.chain(LEVELS).chain([-200.0, 0.0, 200.0]) {
            for x in [x.next_down(), x, x.next_up()] {
                let distance = |n: &u8| (LEVELS[usize::from(*n)] - x).abs();
                // Of two the higher: it is first where numbers count down.
                let want = (0..16).rev().min_by(|a, b| distance(a).total_cmp(&distance(b)));
                for isa in Isa::available() {
                    assert_eq!(Some(isa.run(Codes([x; GROUP]))[0]), want, "{x}, {}", isa.name());
                }
            }
        }
        assert_eq!(Isa::best().run(Codes([f32::NAN; GROUP])), [15; GROUP]);
    }
}
