//! Q2_K: 256 weights of two bits; each group of 16 has a scale and a minimum of four bits.
//!
//! ```text
//! byte  0                       16                80  82     84
//!       | scales[0] .. scales[15] | qs[0] .. qs[63] | d | dmin |      d, dmin: half
//!
//! scales[g]: the scale of group g low, its minimum high
//! qs: 32 bytes for a half of 128 weights, byte i: weights i, i + 32, i + 64, i + 96, low first
//! weight = d * scale * q - dmin * min
//! ```

use super::search::Tries;
use super::superblock::{self, Superblock};
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, Lanes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q2K {}

const GROUPS: usize = 16;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    scales: [u8; GROUPS],
    qs: [u8; 64],
    d: Half,
    dmin: Half,
}

impl Format for Q2K {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 16;
    const MIN_CODE: i8 = 0;
    const MAX_CODE: i8 = 3;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let (d, dmin) = (block.d.widen(s), block.dmin.widen(s));
        let (mut scales, mut mins) = ([0; GROUPS], [0; GROUPS]);
        for (g, &byte) in block.scales.iter().enumerate() {
            (scales[g], mins[g]) = ((byte & 15) as i8, (byte >> 4) as i8);
        }
        out.scales = (s.splat(d) * s.load_whole(&scales)).to_array();
        out.mins = (s.splat(dmin) * s.load_whole(&mins)).to_array();
        let halves = out.codes.as_chunks_mut::<128>().0;
        for (codes, qs) in halves.iter_mut().zip(block.qs.as_chunks::<32>().0) {
            let qs = s.bytes(qs);
            for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                qs.bits(2 * k as u32, 2).store(codes);
            }
        }
    }
}

/// Four codes of two bits to a byte, as Q2_K and Q3_K lay them out.
#[inline(always)]
pub(super) fn two_bits(codes: &[u8; 256]) -> [u8; 64] {
    let mut qs = [0; 64];
    let halves = codes.as_chunks::<128>().0;
    for (qs, codes) in qs.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
        for (i, byte) in qs.iter_mut().enumerate() {
            *byte = codes[i] & 3
                | (codes[i + 32] & 3) << 2
                | (codes[i + 64] & 3) << 4
                | codes[i + 96] << 6;
        }
    }
    qs
}

impl Superblock<GROUPS> for Q2K {
    const TRIES: Tries = Tries { top: 3.0, first: -0.5, step: 0.1, steps: 15, magnitudes: true };
    const TOP: f32 = 15.0;
    const BOUND: u8 = u8::MAX;
    const TEMPER: f32 = 1.0;
    /// A block without its codes.
    type Header = Block;

    #[inline(always)]
    fn header(d: f32, dmin: f32, scale: [u8; GROUPS], min: [u8; GROUPS]) -> Block {
        let scales = std::array::from_fn(|g| scale[g] | min[g] << 4);
        Block { scales, qs: [0; 64], d: Half::new(d), dmin: Half::new(dmin) }
    }

    #[inline(always)]
    fn group(header: &Block, g: usize) -> (f32, f32) {
        let byte = header.scales[g];
        (header.d.get() * f32::from(byte & 15), header.dmin.get() * f32::from(byte >> 4))
    }

    #[inline(always)]
    fn block(header: Block, codes: &[u8; 256]) -> Block {
        Block { qs: two_bits(codes), ..header }
    }
}

impl Encode for Q2K {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        superblock::encode::<S, Q2K, GROUPS, 16>(s, weights, importance, out);
    }
}

impl Recode for Q2K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = two_bits(codes);
    }
}
