//! NEON with dotprod, as every 64-bit Arm server and phone since about 2018 has it: four registers
//! of four.
#![allow(unsafe_code)] // This is where instruction sets live: see SAFETY below.
// SAFETY, for every block in this file: the CPU has the instructions, because a `F32` or a
// `Mask` comes only from methods of `Neon`, and a `Neon` only from `Neon::new`, which asks the
// CPU. Loads and stores go through references to arrays of exactly
// their size; a prefetch may name any address.

use super::{Bytes, Kernel, LANES, Lanes, MANTISSA, MANTISSA_OF_NEAREST, NEAREST, Simd};
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The token: a CPU with NEON and dotprod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    /// Asks the CPU.
    pub(super) fn new() -> Option<Self> {
        (std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod"))
        .then_some(Neon(()))
    }

    /// Runs `kernel` as compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Registers of sixteen lanes.
const QUARTERS: usize = 4;

/// Lanes 0 to 3, 4 to 7 and so on.
#[derive(Clone, Copy)]
pub(super) struct F32([float32x4_t; QUARTERS]);

/// All bits of a lane set, or none.
#[derive(Clone, Copy)]
pub(super) struct Mask([uint32x4_t; QUARTERS]);

/// Calls an intrinsic. SAFETY: see the head of this file.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: a value of this file's types proves that the CPU has the instruction.
        unsafe { $call }
    };
}

/// `[f(0), f(1), f(2), f(3)]`; a closure would be compiled without the CPU's features.
macro_rules! quarters {
    ($i:ident => $value:expr) => {
        [
            {
                const $i: usize = 0;
                $value
            },
            {
                const $i: usize = 1;
                $value
            },
            {
                const $i: usize = 2;
                $value
            },
            {
                const $i: usize = 3;
                $value
            },
        ]
    };
}

/// `sum`, and products of signed bytes added four by four.
///
/// The instruction itself: its intrinsic is not in stable Rust yet (rust-lang/rust 117224).
#[inline(always)]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    op!(asm!(
        ".arch_extension dotprod",
        "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
        sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
        options(pure, nomem, nostack, preserves_flags)
    ));
    sum
}

/// See [`Simd::transpose`], of four by four.
#[inline(always)]
fn transpose_four(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a, b, c, d] = rows;
    // Columns 0 and 2, and 1 and 3, of two rows.
    let (even_ab, odd_ab) = (op!(vtrn1q_f32(a, b)), op!(vtrn2q_f32(a, b)));
    let (even_cd, odd_cd) = (op!(vtrn1q_f32(c, d)), op!(vtrn2q_f32(c, d)));
    macro_rules! join {
        ($halves:ident, $ab:ident, $cd:ident) => {
            op!(vreinterpretq_f32_f64($halves(
                vreinterpretq_f64_f32($ab),
                vreinterpretq_f64_f32($cd)
            )))
        };
    }
    [
        join!(vtrn1q_f64, even_ab, even_cd),
        join!(vtrn1q_f64, odd_ab, odd_cd),
        join!(vtrn2q_f64, even_ab, even_cd),
        join!(vtrn2q_f64, odd_ab, odd_cd),
    ]
}

/// Four quarters of sixteen bytes as signed weights.
#[inline(always)]
fn weights(bytes: &[u8; 64]) -> [int8x16_t; QUARTERS] {
    quarters!(I => op!(vld1q_s8(bytes.as_ptr().add(16 * I).cast())))
}

impl Simd for Neon {
    type F32 = F32;
    type Bytes = Packed;
    const ROOMY: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        F32([op!(vdupq_n_f32(value)); QUARTERS])
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> F32 {
        F32(quarters!(I => op!(vld1q_f32(lanes.as_ptr().add(4 * I)))))
    }

    #[inline(always)]
    fn nearest_int(self, x: F32) -> F32 {
        let sum = x + self.splat(NEAREST);
        let (mantissa, shift) = (op!(vdupq_n_s32(MANTISSA)), op!(vdupq_n_s32(MANTISSA_OF_NEAREST)));
        F32(quarters!(I => op!(vcvtq_f32_s32(vsubq_s32(
            vandq_s32(vreinterpretq_s32_f32(sum.0[I]), mantissa),
            shift
        )))))
    }

    #[inline(always)]
    fn transpose(self, rows: [F32; LANES]) -> [F32; LANES] {
        // Squares of four; each goes to the place across the diagonal.
        let mut out = rows;
        for i in 0..QUARTERS {
            for k in 0..QUARTERS {
                let square = transpose_four([
                    rows[4 * i].0[k],
                    rows[4 * i + 1].0[k],
                    rows[4 * i + 2].0[k],
                    rows[4 * i + 3].0[k],
                ]);
                for c in 0..4 {
                    out[4 * k + c].0[i] = square[c];
                }
            }
        }
        out
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Packed {
        Packed([op!(vld1q_u8(bytes.as_ptr())), op!(vld1q_u8(bytes.as_ptr().add(16)))])
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> Packed {
        let both = op!(vld1q_u8(bytes.as_ptr()));
        Packed([op!(vandq_u8(both, vdupq_n_u8(15))), op!(vshrq_n_u8::<4>(both))])
    }

    #[inline(always)]
    fn one_bit_each(self, bits: u32) -> Packed {
        // Each of the four bytes eight times; of these, one bit each.
        let own = op!(vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201)));
        let bytes = bits.to_le_bytes();
        let one = op!(vdupq_n_u8(1));
        let low = op!(vcombine_u8(vdup_n_u8(bytes[0]), vdup_n_u8(bytes[1])));
        let high = op!(vcombine_u8(vdup_n_u8(bytes[2]), vdup_n_u8(bytes[3])));
        Packed([op!(vandq_u8(vtstq_u8(low, own), one)), op!(vandq_u8(vtstq_u8(high, own), one))])
    }

    #[inline(always)]
    fn load_whole(self, lanes: &[i8; LANES]) -> F32 {
        let bytes = op!(vld1q_s8(lanes.as_ptr()));
        let (low, high) = (op!(vmovl_s8(vget_low_s8(bytes))), op!(vmovl_high_s8(bytes)));
        F32([
            op!(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)))),
            op!(vcvtq_f32_s32(vmovl_high_s16(low))),
            op!(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)))),
            op!(vcvtq_f32_s32(vmovl_high_s16(high))),
        ])
    }

    const TOP_CODE: i32 = 127; // `sdot` takes signed bytes.
    const TILE: usize = 6; // 24 sums, four of weights and one of activations, of 32 registers.

    #[inline(always)]
    fn load_half(self, lanes: &[u16; LANES]) -> F32 {
        F32(quarters!(I => op!(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(
            lanes.as_ptr().add(4 * I)
        ))))))
    }

    #[inline(always)]
    fn by_two(self, lanes: &[f32; 8]) -> F32 {
        let (low, high) = (op!(vld1q_f32(lanes.as_ptr())), op!(vld1q_f32(lanes.as_ptr().add(4))));
        F32([
            op!(vzip1q_f32(low, low)),
            op!(vzip2q_f32(low, low)),
            op!(vzip1q_f32(high, high)),
            op!(vzip2q_f32(high, high)),
        ])
    }

    #[inline(always)]
    fn by_four(self, lanes: &[f32; 4]) -> F32 {
        F32(quarters!(I => op!(vdupq_n_f32(lanes[I]))))
    }

    #[inline(always)]
    fn by_eight(self, low: f32, high: f32) -> F32 {
        let (low, high) = (op!(vdupq_n_f32(low)), op!(vdupq_n_f32(high)));
        F32([low, low, high, high])
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        // Its intrinsic is not in stable Rust yet (rust-lang/rust 117217).
        op!(asm!(
            "prfm pldl1keep, [{at}]",
            at = in(reg) bytes.as_ptr().wrapping_add(ahead),
            options(nostack, preserves_flags, readonly)
        ));
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, codes: &[u8; 64], x: &[i8; 64]) -> F32 {
        let codes = weights(codes);
        let zero = op!(vdupq_n_s32(0));
        F32(quarters!(I => {
            let x = op!(vld1q_s8(x.as_ptr().add(16 * I)));
            op!(vcvtq_f32_s32(sdot(zero, codes[I], x)))
        }))
    }

    #[inline(always)]
    fn tile<const P: usize, const T: usize, const SIGNED: bool>(
        self,
        panels: [&[[u8; 64]]; P],
        x: [&[[i8; 4]]; T],
        _: usize,
    ) -> [[F32; T]; P] {
        let mut out = [[self.splat(0.0); T]; P];
        for p in 0..P {
            let (codes, mut x) = (panels[p], x);
            for x in &mut x {
                *x = &x[..codes.len()];
            }
            let mut sums = [[op!(vdupq_n_s32(0)); QUARTERS]; T];
            for q in 0..codes.len() {
                let codes = weights(&codes[q]);
                for t in 0..T {
                    let x = i32::from_ne_bytes([
                        x[t][q][0] as u8,
                        x[t][q][1] as u8,
                        x[t][q][2] as u8,
                        x[t][q][3] as u8,
                    ]);
                    let x = op!(vreinterpretq_s8_s32(vdupq_n_s32(x)));
                    sums[t] = quarters!(I => sdot(sums[t][I], codes[I], x));
                }
            }
            for t in 0..T {
                out[p][t] = F32(quarters!(I => op!(vcvtq_f32_s32(sums[t][I]))));
            }
        }
        out
    }
}

/// Thirty-two bytes.
#[derive(Clone, Copy)]
pub(super) struct Packed([uint8x16_t; 2]);

impl Bytes for Packed {
    #[inline(always)]
    fn bits(self, from: u32, count: u32) -> Self {
        let down = op!(vdupq_n_s8(-(from as i8)));
        let mask = op!(vdupq_n_u8(((1_u32 << count) - 1) as u8));
        Packed([
            op!(vandq_u8(vshlq_u8(self.0[0], down), mask)),
            op!(vandq_u8(vshlq_u8(self.0[1], down), mask)),
        ])
    }
    #[inline(always)]
    fn up(self, by: u32) -> Self {
        let by = op!(vdupq_n_s8(by as i8));
        Packed([op!(vshlq_u8(self.0[0], by)), op!(vshlq_u8(self.0[1], by))])
    }
    #[inline(always)]
    fn less(self, offset: u8) -> Self {
        let offset = op!(vdupq_n_u8(offset));
        Packed([op!(vsubq_u8(self.0[0], offset)), op!(vsubq_u8(self.0[1], offset))])
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16]) -> Self {
        let table = op!(vld1q_u8(table.as_ptr().cast()));
        Packed([op!(vqtbl1q_u8(table, self.0[0])), op!(vqtbl1q_u8(table, self.0[1]))])
    }
    #[inline(always)]
    fn store(self, out: &mut [i8; 32]) {
        op!(vst1q_s8(out.as_mut_ptr(), vreinterpretq_s8_u8(self.0[0])));
        op!(vst1q_s8(out.as_mut_ptr().add(16), vreinterpretq_s8_u8(self.0[1])));
    }
}

impl BitOr for Packed {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Packed([op!(vorrq_u8(self.0[0], other.0[0])), op!(vorrq_u8(self.0[1], other.0[1]))])
    }
}

impl Lanes for F32 {
    type Mask = Mask;

    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        Mask(quarters!(I => op!(vcltq_f32(self.0[I], other.0[I]))))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        Mask(quarters!(I => op!(vcleq_f32(self.0[I], other.0[I]))))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        Mask(quarters!(I => op!(vceqq_f32(self.0[I], other.0[I]))))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        F32(quarters!(I => op!(vsqrtq_f32(self.0[I]))))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        F32(quarters!(I => op!(vabsq_f32(self.0[I]))))
    }
    #[inline(always)]
    fn swap_neighbours(self) -> Self {
        F32(quarters!(I => op!(vrev64q_f32(self.0[I]))))
    }
    #[inline(always)]
    fn trunc(self) -> Self {
        F32(quarters!(I => op!(vrndq_f32(self.0[I]))))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        F32(quarters!(I => op!(vfmaq_f32(summand.0[I], self.0[I], factor.0[I]))))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // The number becomes the exponent.
        let bias = op!(vdupq_n_s32(127));
        F32(quarters!(I => op!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(
            vcvtq_s32_f32(self.0[I]),
            bias
        ))))))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        let four = op!(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)));
        let two = op!(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
        op!(vget_lane_f32::<0>(two)) + op!(vget_lane_f32::<1>(two))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0_f32; LANES];
        for (quarter, lanes) in self.0.iter().zip(lanes.as_chunks_mut::<4>().0) {
            op!(vst1q_f32(lanes.as_mut_ptr(), *quarter));
        }
        lanes
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        // This conversion gives 0 for NaN, and the lowest for what is too low, but the highest for
        // what is too high.
        let end = op!(vdupq_n_f32(2_147_483_648.0));
        let whole = quarters!(I => op!(vandq_u32(
            vreinterpretq_u32_s32(vcvtq_s32_f32(self.0[I])),
            vcltq_f32(self.0[I], end)
        )));
        let low = op!(vcombine_u16(vmovn_u32(whole[0]), vmovn_u32(whole[1])));
        let high = op!(vcombine_u16(vmovn_u32(whole[2]), vmovn_u32(whole[3])));
        let mut out = [0; LANES];
        op!(vst1q_u8(out.as_mut_ptr(), vcombine_u8(vmovn_u16(low), vmovn_u16(high))));
        out
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = self.to_array();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }
    #[inline(always)]
    fn select(mask: Mask, yes: Self, no: Self) -> Self {
        F32(quarters!(I => op!(vbslq_f32(mask.0[I], yes.0[I], no.0[I]))))
    }
    #[inline(always)]
    fn bits(mask: Mask) -> u16 {
        let mut bits = 0;
        for (i, quarter) in mask.0.iter().enumerate() {
            let own = op!(vld1q_u32([1, 2, 4, 8].as_ptr()));
            bits |= op!(vaddvq_u32(vandq_u32(*quarter, own))) << (4 * i);
        }
        bits as u16
    }
    #[inline(always)]
    fn any(mask: Mask) -> bool {
        let [a, b, c, d] = mask.0;
        op!(vmaxvq_u32(vorrq_u32(vorrq_u32(a, b), vorrq_u32(c, d)))) != 0
    }
}

macro_rules! lanewise {
    ($($vector:ident $operator:ident $method:ident $intrinsic:ident;)*) => {$(
        impl $operator for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $vector(quarters!(I => op!($intrinsic(self.0[I], other.0[I]))))
            }
        }
    )*};
}
lanewise! {
    F32 Add add vaddq_f32;
    F32 Sub sub vsubq_f32;
    F32 Mul mul vmulq_f32;
    F32 Div div vdivq_f32;
    Mask BitAnd bitand vandq_u32;
    Mask BitOr bitor vorrq_u32;
}

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask(quarters!(I => op!(vmvnq_u32(self.0[I]))))
    }
}
