//! Plain Rust: what every CPU can run, and the oracle for the others.

use super::{Bytes, Kernel, LANES, Lanes, Simd, nearest_int};
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The token: any CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portable(());

impl Portable {
    /// Always there.
    pub(super) fn new() -> Option<Self> {
        Some(Portable(()))
    }

    /// Runs `kernel` as compiled for the baseline CPU.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy)]
pub(super) struct F32([f32; LANES]);

/// All bits of a lane set, or none: what vector instructions compare to and select by.
#[derive(Clone, Copy)]
pub(super) struct Mask([u32; LANES]);

#[inline(always)]
fn mask(set: bool) -> u32 {
    u32::from(set).wrapping_neg()
}

#[inline(always)]
fn zip<A: Copy, B: Copy, R>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> R) -> [R; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F32 = F32;
    type Bytes = Packed;

    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        F32([value; LANES])
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> F32 {
        F32(*lanes)
    }

    #[inline(always)]
    fn nearest_int(self, x: F32) -> F32 {
        F32(x.0.map(|x| nearest_int(x) as f32))
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        let mut out = [F32([0.0; LANES]); LANES];
        for (k, row) in rows.iter().enumerate() {
            for (out, &value) in out.iter_mut().zip(&row.0) {
                out.0[k] = value;
            }
        }
        out
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Packed {
        Packed(*bytes)
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> Packed {
        Packed(std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15))
    }

    #[inline(always)]
    fn one_bit_each(self, bits: u32) -> Packed {
        Packed(std::array::from_fn(|i| (bits >> i & 1) as u8))
    }

    #[inline(always)]
    fn load_whole(self, lanes: &[i8; LANES]) -> F32 {
        F32(lanes.map(f32::from))
    }

    const TOP_CODE: i32 = 255;
    const TILE: usize = 4;

    #[inline(always)]
    fn load_half(self, lanes: &[u16; LANES]) -> F32 {
        F32(lanes.map(|bits| half::f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    fn by_two(self, lanes: &[f32; 8]) -> F32 {
        F32(std::array::from_fn(|i| lanes[i / 2]))
    }

    #[inline(always)]
    fn by_four(self, lanes: &[f32; 4]) -> F32 {
        F32(std::array::from_fn(|i| lanes[i / 4]))
    }

    #[inline(always)]
    fn by_eight(self, low: f32, high: f32) -> F32 {
        F32(std::array::from_fn(|i| if i < 8 { low } else { high }))
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, weights: &[u8; 64], x: &[i8; 64]) -> F32 {
        debug_assert!(!SIGNED, "every code fits an unsigned byte");
        let mut sums = [0.0; LANES];
        let groups = weights.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0);
        for (sums, (weights, x)) in sums.as_chunks_mut::<4>().0.iter_mut().zip(groups) {
            let mut sum = 0;
            for (&w, &x) in weights.iter().zip(x) {
                sum += i32::from(i16::from(w) * i16::from(x));
            }
            sums[0] = sum as f32;
        }
        F32(sums)
    }

    #[inline(always)]
    fn tile<const P: usize, const T: usize, const SIGNED: bool>(
        self,
        weights: [&[[u8; 64]]; P],
        x: [&[[i8; 4]]; T],
        _: usize,
    ) -> [[F32; T]; P] {
        debug_assert!(!SIGNED, "every code fits an unsigned byte");
        let mut out = [[F32([0.0; LANES]); T]; P];
        for (out, weights) in out.iter_mut().zip(weights) {
            for (out, x) in out.iter_mut().zip(x) {
                // Added up last, four to a row: no lane waits for another.
                let mut sums = [0_i32; 4 * LANES];
                for (weights, x) in weights.iter().zip(x) {
                    let quads = sums.as_chunks_mut::<4>().0.iter_mut();
                    for (sums, w) in quads.zip(weights.as_chunks::<4>().0) {
                        for i in 0..4 {
                            sums[i] += i32::from(i16::from(w[i]) * i16::from(x[i]));
                        }
                    }
                }
                for (out, sums) in out.0.iter_mut().zip(sums.as_chunks::<4>().0) {
                    *out = sums.iter().sum::<i32>() as f32;
                }
            }
        }
        out
    }
}

/// Thirty-two bytes.
#[derive(Clone, Copy)]
pub(super) struct Packed([u8; 32]);

impl Bytes for Packed {
    #[inline(always)]
    fn bits(self, from: u32, count: u32) -> Self {
        Packed(self.0.map(|byte| byte >> from & ((1_u32 << count) - 1) as u8))
    }
    #[inline(always)]
    fn up(self, by: u32) -> Self {
        Packed(self.0.map(|byte| byte << by))
    }
    #[inline(always)]
    fn less(self, offset: u8) -> Self {
        Packed(self.0.map(|byte| byte.wrapping_sub(offset)))
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16]) -> Self {
        Packed(self.0.map(|byte| table[usize::from(byte & 15)] as u8))
    }
    #[inline(always)]
    fn store(self, out: &mut [i8; 32]) {
        *out = self.0.map(|byte| byte as i8);
    }
}

impl BitOr for Packed {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Packed(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

impl Lanes for F32 {
    type Mask = Mask;

    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        Mask(zip(self.0, other.0, |a, b| mask(a < b)))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        Mask(zip(self.0, other.0, |a, b| mask(a <= b)))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        Mask(zip(self.0, other.0, |a, b| mask(a == b)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        F32(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        F32(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn swap_neighbours(self) -> Self {
        F32(std::array::from_fn(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    fn trunc(self) -> Self {
        F32(self.0.map(f32::trunc))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        self * factor + summand // Fused, it would be a call without hardware for it.
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        F32(self.0.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        // Rust's cast gives 0 for NaN and `i32::MIN` for what is too low; x86 gives that for what
        // is too high as well.
        self.0.map(|x| if x < 2_147_483_648.0 { x as i32 as u8 } else { 0 })
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }
    #[inline(always)]
    fn select(mask: Mask, yes: Self, no: Self) -> Self {
        let blend = |yes: f32, no: f32, mask: u32| yes.to_bits() & mask | no.to_bits() & !mask;
        F32(std::array::from_fn(|i| f32::from_bits(blend(yes.0[i], no.0[i], mask.0[i]))))
    }
    #[inline(always)]
    fn bits(mask: Mask) -> u16 {
        mask.0.iter().rev().fold(0, |bits, &set| bits << 1 | (set & 1) as u16)
    }
}

macro_rules! lanewise {
    ($($vector:ident $operator:ident $method:ident;)*) => {$(
        impl $operator for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $vector(zip(self.0, other.0, |a, b| $operator::$method(a, b)))
            }
        }
    )*};
}
lanewise! { F32 Add add; F32 Sub sub; F32 Mul mul; F32 Div div; Mask BitAnd bitand; Mask BitOr bitor; }

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask(self.0.map(|set| !set))
    }
}
