//! Q8_K: 256 weights of eight bits, one scale, and their sums. ggml keeps activations in it.
//!
//! ```text
//! byte  0   4                  260                     292
//!       | d | qs[0] .. qs[255] | bsums[0] .. bsums[15] |      d: f32    qs[i]: i8    bsums: i16
//! weight = d * q      bsums[g] = qs[16g] + .. + qs[16g + 15], for products with a minimum
//! ```

use super::q8_0::signed;
use super::{Codes, Encode, Format, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{Simd, nearest_int};
use zerocopy::little_endian::{F32, I16};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q8K {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: F32,
    qs: [i8; 256],
    bsums: [I16; 16],
}

impl Format for Q8K {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 256;
    const MIN_CODE: i8 = i8::MIN;
    const MAX_CODE: i8 = i8::MAX;

    #[inline(always)]
    fn decode<S: Simd>(_: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.get();
        out.codes = block.qs;
    }
}

/// The sum of each sixteen codes.
#[inline(always)]
fn sums(codes: &[i8; 256]) -> [I16; 16] {
    let mut sums = [I16::ZERO; 16];
    for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<16>().0) {
        sum.set(codes.iter().map(|&code| i16::from(code)).sum());
    }
    sums
}

impl Encode for Q8K {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks::<256>().0.iter().zip(out) {
            let farthest = codes::farthest(s, x);
            if farthest == 0.0 {
                *out = Block::new_zeroed();
                continue;
            }
            let inverse = -127.0 / farthest;
            let qs = x.map(|x| nearest_int(inverse * x).min(127) as i8);
            *out = Block { d: F32::new(1.0 / inverse), qs, bsums: sums(&qs) };
        }
    }
}

impl Recode for Q8K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = signed(codes);
        block.bsums = sums(&block.qs);
    }
}
