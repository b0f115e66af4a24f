//! Q4_K: 256 weights of four bits; each group of 32 has a scale and a minimum of six bits.
//!
//! ```text
//! byte  0        16                 144
//!       | header | qs[0] .. qs[127] |      header: see `eight_groups`
//!
//! qs: 32 bytes for two groups, byte i: weight i of the first low, of the second high
//! weight = d * scale * q - dmin * min
//! ```

use super::eight_groups::{self, Header};
use super::search::Tries;
use super::superblock::{self, Superblock};
use super::{Codes, Encode, Format, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q4K {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    header: Header,
    qs: [u8; 128],
}

impl Format for Q4K {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = 0;
    const MAX_CODE: i8 = 15;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        block.header.decode(s, out);
        let (pairs, _) = out.codes.as_chunks_mut::<64>();
        for (codes, qs) in pairs.iter_mut().zip(block.qs.as_chunks::<32>().0) {
            let (codes, _) = codes.as_chunks_mut::<32>();
            let qs = s.bytes(qs);
            qs.bits(0, 4).store(&mut codes[0]);
            qs.bits(4, 4).store(&mut codes[1]);
        }
    }
}

impl Superblock<8> for Q4K {
    const TRIES: Tries = Tries { top: 15.0, first: -1.0, step: 0.1, steps: 20, magnitudes: false };
    const TOP: f32 = eight_groups::TOP;
    const BOUND: u8 = 63;
    const TEMPER: f32 = 2.0;
    type Header = Header;

    #[inline(always)]
    fn header(d: f32, dmin: f32, scale: [u8; 8], min: [u8; 8]) -> Header {
        Header::new(d, dmin, scale, min)
    }

    #[inline(always)]
    fn group(header: &Header, g: usize) -> (f32, f32) {
        header.group(g)
    }

    #[inline(always)]
    fn block(header: Header, codes: &[u8; 256]) -> Block {
        Block { header, qs: pack(codes) }
    }
}

#[inline(always)]
fn pack(codes: &[u8; 256]) -> [u8; 128] {
    let mut qs = [0; 128];
    for (qs, codes) in qs.chunks_exact_mut(32).zip(codes.as_chunks::<64>().0) {
        for (i, byte) in qs.iter_mut().enumerate() {
            *byte = codes[i] | codes[i + 32] << 4;
        }
    }
    qs
}

impl Encode for Q4K {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        superblock::encode::<S, Q4K, 8, 32>(s, weights, importance, out);
    }
}

impl Recode for Q4K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        block.qs = pack(codes);
    }
}
