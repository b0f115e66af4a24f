//! AVX2 with F16C: two registers of eight.
#![allow(unsafe_code)] // This is where instruction sets live: see SAFETY below.
// SAFETY, for every block in this file: the CPU has the instructions, because a `F32` or a
// `Mask` comes only from methods of `Avx2`, and an `Avx2` only from `Avx2::new`, which asks the
// CPU. Loads and stores go through references to arrays of exactly sixteen `f32`.

use super::{Kernel, LANES, Lanes, MANTISSA, MANTISSA_OF_NEAREST, NEAREST, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The token: a CPU with AVX2 and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Asks the CPU.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Avx2(()))
    }

    /// Runs `kernel` as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(super) struct F32(__m256, __m256);

/// All bits of a lane set, or none.
#[derive(Clone, Copy)]
pub(super) struct Mask(__m256, __m256);

/// Calls an intrinsic. SAFETY: see the head of this file.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: a value of this file's types proves that the CPU has the instruction.
        unsafe { $call }
    };
}

/// See [`Simd::transpose`], of eight by eight.
#[inline(always)]
fn transpose_eight(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = rows;
    for i in (0..8).step_by(2) {
        pairs[i] = op!(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
        pairs[i + 1] = op!(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    }
    // `fours[4 * i + c]`, half h: column `4 * h + c` of rows `4 * i` to `4 * i + 3`.
    let mut fours = rows;
    for i in [0, 4] {
        for half in 0..2 {
            let (a, b) = (pairs[i + half], pairs[i + 2 + half]);
            fours[i + 2 * half] = op!(_mm256_shuffle_ps::<0b01_00_01_00>(a, b));
            fours[i + 2 * half + 1] = op!(_mm256_shuffle_ps::<0b11_10_11_10>(a, b));
        }
    }
    let mut out = rows;
    for c in 0..4 {
        out[c] = op!(_mm256_permute2f128_ps::<0x20>(fours[c], fours[c + 4]));
        out[c + 4] = op!(_mm256_permute2f128_ps::<0x31>(fours[c], fours[c + 4]));
    }
    out
}

/// See [`Lanes::largest`], of eight.
#[inline(always)]
pub(super) fn largest_of_eight(eight: __m256) -> f32 {
    let four = op!(_mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
    let two = op!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
    op!(_mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two))))
}

impl Simd for Avx2 {
    type F32 = F32;

    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        let half = op!(_mm256_set1_ps(value));
        F32(half, half)
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> F32 {
        let (low, high) = lanes.split_at(LANES / 2);
        F32(op!(_mm256_loadu_ps(low.as_ptr())), op!(_mm256_loadu_ps(high.as_ptr())))
    }

    #[inline(always)]
    fn nearest_int(self, x: F32) -> F32 {
        let sum = x + self.splat(NEAREST);
        let mantissa = op!(_mm256_set1_epi32(MANTISSA));
        let shift = op!(_mm256_set1_epi32(MANTISSA_OF_NEAREST));
        let low = op!(_mm256_and_si256(_mm256_castps_si256(sum.0), mantissa));
        let high = op!(_mm256_and_si256(_mm256_castps_si256(sum.1), mantissa));
        F32(
            op!(_mm256_cvtepi32_ps(_mm256_sub_epi32(low, shift))),
            op!(_mm256_cvtepi32_ps(_mm256_sub_epi32(high, shift))),
        )
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        // Four squares of eight; each goes to the place across the diagonal.
        let mut out = rows;
        for i in 0..2 {
            let mut square = [rows[0].0; 8];
            for low_column in [true, false] {
                for k in 0..8 {
                    let row = rows[8 * i + k];
                    square[k] = if low_column { row.0 } else { row.1 };
                }
                square = transpose_eight(square);
                for k in 0..8 {
                    let column = &mut out[if low_column { k } else { 8 + k }];
                    *(if i == 0 { &mut column.0 } else { &mut column.1 }) = square[k];
                }
            }
        }
        out
    }
}

impl Lanes for F32 {
    type Mask = Mask;

    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        Mask(
            op!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)),
            op!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1)),
        )
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        Mask(
            op!(_mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0)),
            op!(_mm256_cmp_ps::<_CMP_LE_OQ>(self.1, other.1)),
        )
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        Mask(
            op!(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0)),
            op!(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.1, other.1)),
        )
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        F32(op!(_mm256_sqrt_ps(self.0)), op!(_mm256_sqrt_ps(self.1)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        let sign = op!(_mm256_set1_ps(-0.0));
        F32(op!(_mm256_andnot_ps(sign, self.0)), op!(_mm256_andnot_ps(sign, self.1)))
    }
    #[inline(always)]
    fn trunc(self) -> Self {
        const TOWARD_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
        F32(
            op!(_mm256_round_ps::<TOWARD_ZERO>(self.0)),
            op!(_mm256_round_ps::<TOWARD_ZERO>(self.1)),
        )
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        let (low, high) = lanes.split_at_mut(LANES / 2);
        op!(_mm256_storeu_ps(low.as_mut_ptr(), self.0));
        op!(_mm256_storeu_ps(high.as_mut_ptr(), self.1));
        lanes
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        // The low byte of every int to the front of its half register, then the four together.
        let bytes = |half: __m256| {
            let first = op!(_mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
            ));
            let packed = op!(_mm256_shuffle_epi8(_mm256_cvttps_epi32(half), first));
            op!(_mm_unpacklo_epi32(
                _mm256_castsi256_si128(packed),
                _mm256_extracti128_si256::<1>(packed)
            ))
        };
        let mut out = [0; LANES];
        let packed = op!(_mm_unpacklo_epi64(bytes(self.0), bytes(self.1)));
        op!(_mm_storeu_si128(out.as_mut_ptr().cast(), packed));
        out
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        largest_of_eight(op!(_mm256_max_ps(self.0, self.1)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        F32(op!(_mm256_min_ps(self.0, other.0)), op!(_mm256_min_ps(self.1, other.1)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        F32(op!(_mm256_max_ps(self.0, other.0)), op!(_mm256_max_ps(self.1, other.1)))
    }
    #[inline(always)]
    fn select(mask: Mask, yes: Self, no: Self) -> Self {
        F32(op!(_mm256_blendv_ps(no.0, yes.0, mask.0)), op!(_mm256_blendv_ps(no.1, yes.1, mask.1)))
    }
    #[inline(always)]
    fn bits(mask: Mask) -> u16 {
        (op!(_mm256_movemask_ps(mask.0)) | op!(_mm256_movemask_ps(mask.1)) << 8) as u16
    }
    #[inline(always)]
    fn any(mask: Mask) -> bool {
        op!(_mm256_movemask_ps(_mm256_or_ps(mask.0, mask.1))) != 0
    }
}

macro_rules! lanewise {
    ($($vector:ident $operator:ident $method:ident $intrinsic:ident;)*) => {$(
        impl $operator for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $vector(op!($intrinsic(self.0, other.0)), op!($intrinsic(self.1, other.1)))
            }
        }
    )*};
}
lanewise! {
    F32 Add add _mm256_add_ps;
    F32 Sub sub _mm256_sub_ps;
    F32 Mul mul _mm256_mul_ps;
    F32 Div div _mm256_div_ps;
    Mask BitAnd bitand _mm256_and_ps;
    Mask BitOr bitor _mm256_or_ps;
}

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        let ones = op!(_mm256_castsi256_ps(_mm256_set1_epi32(-1)));
        Mask(op!(_mm256_xor_ps(self.0, ones)), op!(_mm256_xor_ps(self.1, ones)))
    }
}
