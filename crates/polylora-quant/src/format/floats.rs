//! F32, F16 and BF16: weights that are their own code.

use super::Float;
use half::slice::HalfFloatSliceExt;
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
    fn widen(bits: &[LittleF32], out: &mut [f32]) {
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

/// How many numbers are brought into line at a time: the `half` crate converts aligned slices, a
/// register at a time where the CPU can.
const STEP: usize = 256;

macro_rules! sixteen_bits {
    ($format:ident, $number:ty) => {
        impl Float for $format {
            type Bits = U16;

            #[inline(always)]
            fn widen(bits: &[U16], out: &mut [f32]) {
                let mut aligned = [<$number>::ZERO; STEP];
                for (bits, out) in bits.chunks(STEP).zip(out.chunks_mut(STEP)) {
                    for (bits, number) in bits.iter().zip(&mut aligned) {
                        *number = <$number>::from_bits(bits.get());
                    }
                    aligned[..out.len()].convert_to_f32_slice(out);
                }
            }

            #[inline(always)]
            fn narrow(weights: &[f32], out: &mut [U16]) {
                let mut aligned = [<$number>::ZERO; STEP];
                for (weights, out) in weights.chunks(STEP).zip(out.chunks_mut(STEP)) {
                    aligned[..weights.len()].convert_from_f32_slice(weights);
                    for (number, out) in aligned.iter().zip(out) {
                        out.set(number.to_bits());
                    }
                }
            }
        }
    };
}
sixteen_bits!(F16, half::f16);
sixteen_bits!(BF16, half::bf16);
