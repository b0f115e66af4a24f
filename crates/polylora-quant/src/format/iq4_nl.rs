//! IQ4_NL: 32 weights of four bits that index sixteen unevenly spaced levels, one scale.
//!
//! ```text
//! byte  0   2                 18
//!       | d | qs[0] .. qs[15] |      d: half    qs[i]: weight i low, weight i + 16 high
//! weight = d * level[q]
//! ```

use super::codebook::IQ4;
use super::columns::columns;
use super::search::temper;
use super::short_block::{ShortBlock, WEIGHTS, low_bits};
use super::{Encode, Half, Importance, MAX_BLOCK, Recode, iq4};
use crate::isa::{Bytes, LANES, Lanes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ4NL {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 16],
}

impl ShortBlock for IQ4NL {
    type Block = Block;
    const MIN_CODE: i8 = -127;
    const MAX_CODE: i8 = 113;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &Block) -> f32 {
        block.d.widen(s)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, block: &Block) -> S::Bytes {
        s.nibbles(&block.qs).look_up(&IQ4)
    }
}

impl Encode for IQ4NL {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        const STEP: usize = LANES * WEIGHTS;
        for (n, (weights, out)) in weights.chunks(STEP).zip(out.chunks_mut(LANES)).enumerate() {
            let x = columns::<S, WEIGHTS>(s, weights);
            let squares = iq4::squares(&x);
            let w = match importance {
                None => squares,
                Some(importance) => {
                    let mut sum = s.splat(0.0);
                    for square in squares {
                        sum = sum + square;
                    }
                    let mut w = columns(s, &importance[n * STEP..][..weights.len()]);
                    temper(&mut w, &x, sum * s.splat(2.0 / WEIGHTS as f32));
                    w
                }
            };
            let scale = iq4::scale(s, &x, &w).to_array();
            for (b, (x, out)) in weights.as_chunks::<WEIGHTS>().0.iter().zip(out).enumerate() {
                let inverse = if scale[b] != 0.0 { 1.0 / scale[b] } else { 0.0 };
                let qs = low_bits(&iq4::codes(s, x, inverse));
                *out = Block { d: Half::new(scale[b]), qs };
            }
        }
    }
}

impl Recode for IQ4NL {
    const LEVELS: &'static [i8] = &IQ4;

    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        let codes = codes.first_chunk().expect("a block has fewer");
        block.qs = low_bits(&iq4::numbers(codes));
    }
}
