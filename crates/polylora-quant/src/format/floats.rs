//! F32, F16 and BF16: weights that are their own code.

use super::Float;
use crate::isa::{LANES, Lanes, Simd};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use zerocopy::little_endian::{F32 as LittleF32, U16};

/// IEEE single precision.
pub enum F32 {}
/// IEEE half precision.
pub enum F16 {}
/// The upper half of a single.
pub enum BF16 {}

impl Float for F32 {
    type Bits = LittleF32;

    #[inline(always)]
    fn widen<S: Simd>(_: S, bits: &[LittleF32], out: &mut [f32]) {
        for (bits, out) in bits.iter().zip(out) {
            *out = bits.get();
        }
    }

    #[inline(always)]
    fn narrow(weights: &[f32], out: &mut [LittleF32]) {
        for (&weight, out) in weights.iter().zip(out) {
            out.set(weight);
        }
    }
}

impl Float for F16 {
    type Bits = U16;

    #[inline(always)]
    fn widen<S: Simd>(s: S, bits: &[U16], out: &mut [f32]) {
        let ((lanes, bits), (out_lanes, out)) =
            (bits.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
        for (lanes, out) in lanes.iter().zip(out_lanes) {
            *out = s.load_half(&lanes.map(U16::get)).to_array();
        }
        for (bits, out) in bits.iter().zip(out) {
            *out = s.widen(bits.get());
        }
    }

    #[inline(always)]
    fn narrow(weights: &[f32], out: &mut [U16]) {
        let mut aligned = [f16::ZERO; STEP];
        for (weights, out) in weights.chunks(STEP).zip(out.chunks_mut(STEP)) {
            aligned[..weights.len()].convert_from_f32_slice(weights);
            for (number, out) in aligned.iter().zip(out) {
                out.set(number.to_bits());
            }
        }
    }
}

/// How many numbers are narrowed at a time: the `half` crate converts aligned slices, a register at
/// a time where the CPU can.
const STEP: usize = 256;

impl Float for BF16 {
    type Bits = U16;

    #[inline(always)]
    fn widen<S: Simd>(_: S, bits: &[U16], out: &mut [f32]) {
        for (bits, out) in bits.iter().zip(out) {
            *out = f32::from_bits(u32::from(bits.get()) << 16);
        }
    }

    #[inline(always)]
    fn narrow(weights: &[f32], out: &mut [U16]) {
        for (&weight, out) in weights.iter().zip(out) {
            out.set(bf16::from_f32(weight).to_bits());
        }
    }
}
