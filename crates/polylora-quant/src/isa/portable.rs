//! Plain Rust: what every CPU can run, and the oracle for the others.

use super::{Kernel, LANES, Lanes, Simd, nearest_int};
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
    fn trunc(self) -> Self {
        F32(self.0.map(f32::trunc))
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
