//! AVX-512 (F, BW, DQ, VL, VNNI), with the AVX2, F16C and FMA that every such CPU has: one
//! register of sixteen.
#![allow(unsafe_code)] // This is where instruction sets live: see SAFETY below.
// SAFETY, for every block in this file: the CPU has the instructions, because a `F32` or a
// `Mask` comes only from methods of `Avx512`, and an `Avx512` only from `Avx512::new`, which asks
// the CPU. Loads and stores go through references to arrays of exactly
// their size; a prefetch may name any address.

use super::avx2::Packed;
use super::{Kernel, LANES, Lanes, MANTISSA, MANTISSA_OF_NEAREST, NEAREST, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The token: a CPU with AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma"))
        .then_some(Avx512(()))
    }

    /// Runs `kernel` as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c,fma")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Sixteen `f32` in one register.
#[derive(Clone, Copy)]
pub(super) struct F32(__m512);

/// One bit a lane.
#[derive(Clone, Copy)]
pub(super) struct Mask(__mmask16);

/// Calls an intrinsic. SAFETY: see the head of this file.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: a value of this file's types proves that the CPU has the instruction.
        unsafe { $call }
    };
}

impl Simd for Avx512 {
    type F32 = F32;
    type Bytes = Packed;
    const ROOMY: bool = true; // 32 registers, and a vector takes one.
    const LOOKS_UP: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        F32(op!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> F32 {
        F32(op!(_mm512_loadu_ps(lanes.as_ptr())))
    }

    #[inline(always)]
    fn nearest_code(self, x: F32, top: f32) -> F32 {
        // A table of 32 in two registers. What is below zero, and NaN, converts to a number all
        // ones, whose low five bits are 31.
        let mut table = [[0.0; LANES]; 2];
        for (i, code) in table.as_flattened_mut()[..31].iter_mut().enumerate() {
            *code = if (i as f32) < top { i as f32 } else { top };
        }
        let (low, high) = (self.load(&table[0]), self.load(&table[1]));
        F32(op!(_mm512_permutex2var_ps(low.0, _mm512_cvtps_epu32(x.0), high.0)))
    }

    #[inline(always)]
    fn nearest_int(self, x: F32) -> F32 {
        let mantissa = op!(_mm512_and_si512(
            _mm512_castps_si512((x + self.splat(NEAREST)).0),
            _mm512_set1_epi32(MANTISSA)
        ));
        let shift = op!(_mm512_set1_epi32(MANTISSA_OF_NEAREST));
        F32(op!(_mm512_cvtepi32_ps(_mm512_sub_epi32(mantissa, shift))))
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        // Each step doubles the run of rows that lie together in a quarter of a register, then
        // moves quarters.
        let mut pairs = rows;
        for i in (0..LANES).step_by(2) {
            let (a, b) = (rows[i].0, rows[i + 1].0);
            pairs[i] = F32(op!(_mm512_unpacklo_ps(a, b)));
            pairs[i + 1] = F32(op!(_mm512_unpackhi_ps(a, b)));
        }
        // `fours[4 * i + c]`, quarter q: column `4 * q + c` of rows `4 * i` to `4 * i + 3`.
        let mut fours = rows;
        for i in (0..LANES).step_by(4) {
            for half in 0..2 {
                let a = op!(_mm512_castps_pd(pairs[i + half].0));
                let b = op!(_mm512_castps_pd(pairs[i + 2 + half].0));
                fours[i + 2 * half] = F32(op!(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b))));
                fours[i + 2 * half + 1] = F32(op!(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b))));
            }
        }
        let mut out = rows;
        for c in 0..4 {
            let [a, b, c_, d] = [fours[c].0, fours[c + 4].0, fours[c + 8].0, fours[c + 12].0];
            let (even_ab, odd_ab) = (
                op!(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b)),
                op!(_mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)),
            );
            let (even_cd, odd_cd) = (
                op!(_mm512_shuffle_f32x4::<0b10_00_10_00>(c_, d)),
                op!(_mm512_shuffle_f32x4::<0b11_01_11_01>(c_, d)),
            );
            out[c] = F32(op!(_mm512_shuffle_f32x4::<0b10_00_10_00>(even_ab, even_cd)));
            out[c + 4] = F32(op!(_mm512_shuffle_f32x4::<0b10_00_10_00>(odd_ab, odd_cd)));
            out[c + 8] = F32(op!(_mm512_shuffle_f32x4::<0b11_01_11_01>(even_ab, even_cd)));
            out[c + 12] = F32(op!(_mm512_shuffle_f32x4::<0b11_01_11_01>(odd_ab, odd_cd)));
        }
        out
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Packed {
        Packed::load(bytes)
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> Packed {
        Packed::nibbles(bytes)
    }

    #[inline(always)]
    fn one_bit_each(self, bits: u32) -> Packed {
        Packed::one_bit_each(bits)
    }

    #[inline(always)]
    fn load_whole(self, lanes: &[i8; LANES]) -> F32 {
        let bytes = op!(_mm_loadu_si128(lanes.as_ptr().cast()));
        F32(op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))))
    }

    const TOP_CODE: i32 = 255; // VNNI adds in 32 bits.
    const TILE: usize = 6; // By two: twelve sums of codes and twelve totals, of 32 registers.
    const PAIRS: bool = true;

    #[inline(always)]
    fn widen(self, half: u16) -> f32 {
        op!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(half)))))
    }

    #[inline(always)]
    fn load_half(self, lanes: &[u16; LANES]) -> F32 {
        F32(op!(_mm512_cvtph_ps(_mm256_loadu_si256(lanes.as_ptr().cast()))))
    }

    #[inline(always)]
    fn by_two(self, lanes: &[f32; 8]) -> F32 {
        let eight = op!(_mm512_castps256_ps512(_mm256_loadu_ps(lanes.as_ptr())));
        let from = op!(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7));
        F32(op!(_mm512_permutexvar_ps(from, eight)))
    }

    #[inline(always)]
    fn by_four(self, lanes: &[f32; 4]) -> F32 {
        let four = op!(_mm512_castps128_ps512(_mm_loadu_ps(lanes.as_ptr())));
        let from = op!(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3));
        F32(op!(_mm512_permutexvar_ps(from, four)))
    }

    #[inline(always)]
    fn by_eight(self, low: f32, high: f32) -> F32 {
        let low = op!(_mm512_castps256_ps512(_mm256_set1_ps(low)));
        F32(op!(_mm512_insertf32x8::<1>(low, _mm256_set1_ps(high))))
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        op!(_mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast()));
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, weights: &[u8; 64], x: &[i8; 64]) -> F32 {
        debug_assert!(!SIGNED, "every code fits an unsigned byte");
        let sums = op!(_mm512_dpbusd_epi32(
            _mm512_setzero_si512(),
            _mm512_loadu_si512(weights.as_ptr().cast()),
            _mm512_loadu_si512(x.as_ptr().cast()),
        ));
        F32(op!(_mm512_cvtepi32_ps(sums)))
    }

    #[inline(always)]
    fn tile<const P: usize, const T: usize, const SIGNED: bool>(
        self,
        mut weights: [&[[u8; 64]]; P],
        mut x: [&[[i8; 4]]; T],
        _: usize,
    ) -> [[F32; T]; P] {
        debug_assert!(!SIGNED, "every code fits an unsigned byte");
        let length = weights[0].len();
        for weights in &mut weights {
            *weights = &weights[..length];
        }
        for x in &mut x {
            *x = &x[..length];
        }
        let mut sums = [[op!(_mm512_setzero_si512()); T]; P];
        for q in 0..length {
            let mut w = [op!(_mm512_setzero_si512()); P];
            for p in 0..P {
                w[p] = op!(_mm512_loadu_si512(weights[p][q].as_ptr().cast()));
            }
            for t in 0..T {
                let x = op!(_mm512_set1_epi32(x[t][q].as_ptr().cast::<i32>().read_unaligned()));
                for p in 0..P {
                    sums[p][t] = op!(_mm512_dpbusd_epi32(sums[p][t], w[p], x));
                }
            }
        }
        let mut out = [[self.splat(0.0); T]; P];
        for p in 0..P {
            for t in 0..T {
                out[p][t] = F32(op!(_mm512_cvtepi32_ps(sums[p][t])));
            }
        }
        out
    }
}

impl Lanes for F32 {
    type Mask = Mask;

    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        Mask(op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0)))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        Mask(op!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0)))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        Mask(op!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        F32(op!(_mm512_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        F32(op!(_mm512_abs_ps(self.0)))
    }
    #[inline(always)]
    fn swap_neighbours(self) -> Self {
        F32(op!(_mm512_permute_ps::<0b10_11_00_01>(self.0)))
    }
    #[inline(always)]
    fn trunc(self) -> Self {
        F32(op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(self.0)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        F32(op!(_mm512_fmadd_ps(self.0, factor.0, summand.0)))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        let exponent = op!(_mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127)));
        F32(op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let (low, high) =
            (op!(_mm512_castps512_ps256(self.0)), op!(_mm512_extractf32x8_ps::<1>(self.0)));
        super::avx2::sum_of_eight(op!(_mm256_add_ps(low, high)))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        op!(_mm512_storeu_ps(lanes.as_mut_ptr(), self.0));
        lanes
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        let mut bytes = [0; LANES];
        let packed = op!(_mm512_cvtepi32_epi8(_mm512_cvttps_epi32(self.0)));
        op!(_mm_storeu_si128(bytes.as_mut_ptr().cast(), packed));
        bytes
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        let eight =
            op!(_mm256_max_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)));
        super::avx2::largest_of_eight(eight)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        F32(op!(_mm512_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        F32(op!(_mm512_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn select(mask: Mask, yes: Self, no: Self) -> Self {
        F32(op!(_mm512_mask_blend_ps(mask.0, no.0, yes.0)))
    }
    #[inline(always)]
    fn bits(mask: Mask) -> u16 {
        mask.0
    }
}

macro_rules! lanewise {
    ($($operator:ident $method:ident $intrinsic:ident;)*) => {$(
        impl $operator for F32 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                F32(op!($intrinsic(self.0, other.0)))
            }
        }
    )*};
}
lanewise! { Add add _mm512_add_ps; Sub sub _mm512_sub_ps; Mul mul _mm512_mul_ps; Div div _mm512_div_ps; }

impl BitAnd for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }
}

impl BitOr for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Mask(self.0 | other.0)
    }
}

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask(!self.0)
    }
}
