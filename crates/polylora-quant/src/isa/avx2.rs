//! AVX2 with F16C and FMA: two registers of eight; without and with VNNI's products of bytes.
#![allow(unsafe_code)] // This is where instruction sets live: see SAFETY below.
// SAFETY, for every block in this file: the CPU has the instructions, because a `F32` or a
// `Mask` comes only from methods of `Eights`, and an `Eights` only from its `new`, which asks the
// CPU. Loads and stores go through references to arrays of exactly
// their size; a prefetch may name any address.

use super::{Bytes, Kernel, LANES, Lanes, MANTISSA, MANTISSA_OF_NEAREST, NEAREST, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// A CPU with AVX2, F16C and FMA, and with AVX-VNNI where `VNNI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Eights<const VNNI: bool>(());

/// The token without AVX-VNNI.
pub(super) type Avx2 = Eights<false>;
/// The token with it.
pub(super) type AvxVnni = Eights<true>;

impl Avx2 {
    /// Asks the CPU.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma"))
        .then_some(Eights(()))
    }

    /// Runs `kernel` as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c,fma")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

impl AvxVnni {
    /// Asks the CPU.
    pub(super) fn new() -> Option<Self> {
        (Avx2::new().is_some() && is_x86_feature_detected!("avxvnni")).then_some(Eights(()))
    }

    /// Runs `kernel` as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c,fma,avxvnni")]
        fn compiled<K: Kernel>(simd: AvxVnni, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        if const { !K::MULTIPLIES_BYTES } {
            return Eights::<false>(()).run(kernel);
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

/// See [`Lanes::sum`], of eight.
#[inline(always)]
pub(super) fn sum_of_eight(eight: __m256) -> f32 {
    let four = op!(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
    let two = op!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
    op!(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))))
}

/// See [`Lanes::power_of_two`], of eight: the number becomes the exponent.
#[inline(always)]
fn power_of_two(eight: __m256) -> __m256 {
    let exponent = op!(_mm256_add_epi32(_mm256_cvtps_epi32(eight), _mm256_set1_epi32(127)));
    op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
}

impl<const VNNI: bool> Simd for Eights<VNNI> {
    type F32 = F32;
    type Bytes = Packed;

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
        let low = op!(_mm256_cvtepi8_epi32(bytes));
        let high = op!(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
        F32(op!(_mm256_cvtepi32_ps(low)), op!(_mm256_cvtepi32_ps(high)))
    }

    /// VNNI adds in 32 bits; else 2 * 129 * 127 is less than 2^15.
    const TOP_CODE: i32 = if VNNI { 255 } else { 129 };
    const TILE: usize = 6;

    #[inline(always)]
    fn tile_tokens(span: usize) -> usize {
        // With weights and activations, 15 or 14 of 16 registers.
        if VNNI || span > 2 { 6 } else { 4 }
    }

    #[inline(always)]
    fn widen(self, half: u16) -> f32 {
        op!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(half)))))
    }

    #[inline(always)]
    fn load_half(self, lanes: &[u16; LANES]) -> F32 {
        let (low, high) = lanes.split_at(LANES / 2);
        F32(
            op!(_mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast()))),
            op!(_mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast()))),
        )
    }

    #[inline(always)]
    fn by_two(self, lanes: &[f32; 8]) -> F32 {
        let eight = op!(_mm256_loadu_ps(lanes.as_ptr()));
        F32(
            op!(_mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))),
            op!(_mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))),
        )
    }

    #[inline(always)]
    fn by_four(self, lanes: &[f32; 4]) -> F32 {
        let four = op!(_mm256_castps128_ps256(_mm_loadu_ps(lanes.as_ptr())));
        F32(
            op!(_mm256_permutevar8x32_ps(four, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))),
            op!(_mm256_permutevar8x32_ps(four, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))),
        )
    }

    #[inline(always)]
    fn by_eight(self, low: f32, high: f32) -> F32 {
        F32(op!(_mm256_set1_ps(low)), op!(_mm256_set1_ps(high)))
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        op!(_mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast()));
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, weights: &[u8; 64], x: &[i8; 64]) -> F32 {
        let (w_low, w_high) = weights.split_at(32);
        let (x_low, x_high) = x.split_at(32);
        let zero = op!(_mm256_setzero_si256());
        let low = add_products::<VNNI, SIGNED>(
            zero,
            op!(_mm256_loadu_si256(w_low.as_ptr().cast())),
            op!(_mm256_loadu_si256(x_low.as_ptr().cast())),
        );
        let high = add_products::<VNNI, SIGNED>(
            zero,
            op!(_mm256_loadu_si256(w_high.as_ptr().cast())),
            op!(_mm256_loadu_si256(x_high.as_ptr().cast())),
        );
        F32(op!(_mm256_cvtepi32_ps(low)), op!(_mm256_cvtepi32_ps(high)))
    }

    #[inline(always)]
    fn tile<const P: usize, const T: usize, const SIGNED: bool>(
        self,
        weights: [&[[u8; 64]]; P],
        x: [&[[i8; 4]]; T],
        span: usize,
    ) -> [[F32; T]; P] {
        let mut out = [[self.splat(0.0); T]; P];
        for p in 0..P {
            let weights = weights[p];
            let mut sums = [[op!(_mm256_setzero_si256()); 2]; T];
            if VNNI {
                vnni_quads(weights, x, &mut sums);
            } else if SIGNED || span == 1 {
                wide_quads::<T, 1, SIGNED>(weights, x, &mut sums);
            } else if span == 2 {
                wide_quads::<T, 2, SIGNED>(weights, x, &mut sums);
            } else if weights.len() <= span {
                let two = quads::<T>(weights, x, 0);
                for t in 0..T {
                    sums[t] = [sums_of_four(two[t][0]), sums_of_four(two[t][1])];
                }
            } else {
                for (n, weights) in weights.chunks(span).enumerate() {
                    let two = quads::<T>(weights, x, n * span);
                    for t in 0..T {
                        sums[t][0] = op!(_mm256_add_epi32(sums[t][0], sums_of_four(two[t][0])));
                        sums[t][1] = op!(_mm256_add_epi32(sums[t][1], sums_of_four(two[t][1])));
                    }
                }
            }
            for t in 0..T {
                let [low, high] = sums[t];
                out[p][t] = F32(op!(_mm256_cvtepi32_ps(low)), op!(_mm256_cvtepi32_ps(high)));
            }
        }
        out
    }
}

/// Adds to `sums` over `weights`, with VNNI.
#[inline(always)]
fn vnni_quads<const T: usize>(
    weights: &[[u8; 64]],
    mut x: [&[[i8; 4]]; T],
    sums: &mut [[__m256i; 2]; T],
) {
    for x in &mut x {
        *x = &x[..weights.len()];
    }
    for q in 0..weights.len() {
        let (low, high) = weights[q].split_at(32);
        let low = op!(_mm256_loadu_si256(low.as_ptr().cast()));
        let high = op!(_mm256_loadu_si256(high.as_ptr().cast()));
        for t in 0..T {
            let x = broadcast(&x[t][q]);
            sums[t][0] = op!(_mm256_dpbusd_avx_epi32(sums[t][0], low, x));
            sums[t][1] = op!(_mm256_dpbusd_avx_epi32(sums[t][1], high, x));
        }
    }
}

/// `sums`, and products of bytes, four by four added to 32 bits.
#[inline(always)]
fn add_products<const VNNI: bool, const SIGNED: bool>(
    sums: __m256i,
    weights: __m256i,
    x: __m256i,
) -> __m256i {
    if VNNI {
        debug_assert!(!SIGNED, "every code fits an unsigned byte");
        op!(_mm256_dpbusd_avx_epi32(sums, weights, x))
    } else {
        op!(_mm256_add_epi32(sums, sums_of_four(sums_of_two::<SIGNED>(weights, x))))
    }
}

/// Adds to `sums`, in 32 bits, over `weights`, of which `SPAN` at a time fit in sixteen bits.
#[inline(always)]
fn wide_quads<const T: usize, const SPAN: usize, const SIGNED: bool>(
    weights: &[[u8; 64]],
    mut x: [&[[i8; 4]]; T],
    sums: &mut [[__m256i; 2]; T],
) {
    for x in &mut x {
        *x = &x[..weights.len()];
    }
    for n in 0..weights.len() / SPAN {
        let mut halves = [[op!(_mm256_setzero_si256()); 2]; SPAN];
        for i in 0..SPAN {
            let (low, high) = weights[n * SPAN + i].split_at(32);
            halves[i][0] = op!(_mm256_loadu_si256(low.as_ptr().cast()));
            halves[i][1] = op!(_mm256_loadu_si256(high.as_ptr().cast()));
        }
        for t in 0..T {
            let mut two = [op!(_mm256_setzero_si256()); 2];
            for i in 0..SPAN {
                let x = broadcast(&x[t][n * SPAN + i]);
                for half in 0..2 {
                    let products = sums_of_two::<SIGNED>(halves[i][half], x);
                    two[half] = op!(_mm256_add_epi16(two[half], products));
                }
            }
            sums[t][0] = op!(_mm256_add_epi32(sums[t][0], sums_of_four(two[0])));
            sums[t][1] = op!(_mm256_add_epi32(sums[t][1], sums_of_four(two[1])));
        }
    }
}

/// Four codes, eight times.
#[inline(always)]
fn broadcast(codes: &[i8; 4]) -> __m256i {
    op!(_mm256_set1_epi32(codes.as_ptr().cast::<i32>().read_unaligned()))
}

/// Sums in sixteen bits, over `weights` and as many of `x` from `first` on; each lane has half of
/// a row's.
///
/// The loop has no constant length on purpose: unrolled, its sums leave the registers.
#[inline(always)]
fn quads<const T: usize>(
    weights: &[[u8; 64]],
    mut x: [&[[i8; 4]]; T],
    first: usize,
) -> [[__m256i; 2]; T] {
    for x in &mut x {
        *x = &x[first..][..weights.len()];
    }
    let mut sums = [[op!(_mm256_setzero_si256()); 2]; T];
    for q in 0..weights.len() {
        let (low, high) = weights[q].split_at(32);
        let low = op!(_mm256_loadu_si256(low.as_ptr().cast()));
        let high = op!(_mm256_loadu_si256(high.as_ptr().cast()));
        for t in 0..T {
            let x = broadcast(&x[t][q]);
            sums[t][0] = op!(_mm256_add_epi16(sums[t][0], sums_of_two::<false>(low, x)));
            sums[t][1] = op!(_mm256_add_epi16(sums[t][1], sums_of_two::<false>(high, x)));
        }
    }
    sums
}

/// Products of bytes, two by two added to sixteen bits; where `SIGNED`, the sign of `weights`
/// moves to `x` first, which leaves a magnitude of at most 128.
#[inline(always)]
fn sums_of_two<const SIGNED: bool>(weights: __m256i, x: __m256i) -> __m256i {
    if SIGNED {
        let x = op!(_mm256_sign_epi8(x, weights));
        op!(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), x))
    } else {
        op!(_mm256_maddubs_epi16(weights, x))
    }
}

/// Sixteen bits to 32, two by two added.
#[inline(always)]
fn sums_of_four(two: __m256i) -> __m256i {
    op!(_mm256_madd_epi16(two, _mm256_set1_epi16(1)))
}

/// Thirty-two bytes. AVX-512 works on them in the same way.
#[derive(Clone, Copy)]
pub(super) struct Packed(__m256i);

/// Only for the tokens of CPUs with AVX2 to call.
impl Packed {
    /// See [`Simd::bytes`].
    #[inline(always)]
    pub(super) fn load(bytes: &[u8; 32]) -> Packed {
        Packed(op!(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }

    /// See [`Simd::nibbles`].
    #[inline(always)]
    pub(super) fn nibbles(bytes: &[u8; 16]) -> Packed {
        let low = op!(_mm_loadu_si128(bytes.as_ptr().cast()));
        let both = op!(_mm256_set_m128i(_mm_srli_epi16::<4>(low), low));
        Packed(op!(_mm256_and_si256(both, _mm256_set1_epi8(15))))
    }

    /// See [`Simd::one_bit_each`].
    #[inline(always)]
    pub(super) fn one_bit_each(bits: u32) -> Packed {
        // Each of the four bytes eight times; of these, one bit each.
        let which = op!(_mm256_setr_epi64x(
            0,
            0x0101_0101_0101_0101,
            0x0202_0202_0202_0202,
            0x0303_0303_0303_0303
        ));
        let own = op!(_mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64));
        let spread = op!(_mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), which));
        let set = op!(_mm256_cmpeq_epi8(_mm256_and_si256(spread, own), own));
        Packed(op!(_mm256_and_si256(set, _mm256_set1_epi8(1))))
    }
}

impl Bytes for Packed {
    #[inline(always)]
    fn bits(self, from: u32, count: u32) -> Self {
        let shift = op!(_mm_cvtsi32_si128(from as i32));
        let mask = op!(_mm256_set1_epi8(((1_u32 << count) - 1) as i8));
        Packed(op!(_mm256_and_si256(_mm256_srl_epi16(self.0, shift), mask)))
    }
    #[inline(always)]
    fn up(self, by: u32) -> Self {
        Packed(op!(_mm256_sll_epi16(self.0, _mm_cvtsi32_si128(by as i32))))
    }
    #[inline(always)]
    fn less(self, offset: u8) -> Self {
        Packed(op!(_mm256_sub_epi8(self.0, _mm256_set1_epi8(offset as i8))))
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16]) -> Self {
        let table = op!(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())));
        Packed(op!(_mm256_shuffle_epi8(table, self.0)))
    }
    #[inline(always)]
    fn store(self, out: &mut [i8; 32]) {
        op!(_mm256_storeu_si256(out.as_mut_ptr().cast(), self.0));
    }
}

impl BitOr for Packed {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Packed(op!(_mm256_or_si256(self.0, other.0)))
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
    fn swap_neighbours(self) -> Self {
        F32(
            op!(_mm256_permute_ps::<0b10_11_00_01>(self.0)),
            op!(_mm256_permute_ps::<0b10_11_00_01>(self.1)),
        )
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
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        F32(
            op!(_mm256_fmadd_ps(self.0, factor.0, summand.0)),
            op!(_mm256_fmadd_ps(self.1, factor.1, summand.1)),
        )
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        F32(power_of_two(self.0), power_of_two(self.1))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        sum_of_eight(op!(_mm256_add_ps(self.0, self.1)))
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
