//! Q5_K: 256 weights of five bits; each group of 32 has a scale and a minimum of six bits.
//!
//! ```text
//! byte  0        16               48                 176
//!       | header | qh[0] .. qh[31] | qs[0] .. qs[127] |      header: see `eight_groups`
//!
//! qs: 32 bytes for two groups, byte i: low 4 bits of weight i of the first low, of the second high
//! qh: bit g of byte i is the high bit of weight i of group g
//! weight = d * scale * q - dmin * min
//! ```

use super::eight_groups::{self, Header};
use super::search::Tries;
use super::superblock::{self, Superblock};
use super::{Codes, Encode, Format, Importance, MAX_BLOCK, Recode};
use crate::isa::{Bytes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q5K {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    header: Header,
    qh: [u8; 32],
    qs: [u8; 128],
}

impl Format for Q5K {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = 0;
    const MAX_CODE: i8 = 31;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        block.header.decode(s, out);
        let (pairs, _) = out.codes.as_chunks_mut::<64>();
        let qh = s.bytes(&block.qh);
        for (n, (codes, qs)) in pairs.iter_mut().zip(block.qs.as_chunks::<32>().0).enumerate() {
            let (codes, _) = codes.as_chunks_mut::<32>();
            let (qs, n) = (s.bytes(qs), n as u32);
            (qs.bits(0, 4) | qh.bits(2 * n, 1).up(4)).store(&mut codes[0]);
            (qs.bits(4, 4) | qh.bits(2 * n + 1, 1).up(4)).store(&mut codes[1]);
        }
    }
}

impl Superblock<8> for Q5K {
    const TRIES: Tries = Tries { top: 31.0, first: -0.5, step: 0.1, steps: 15, magnitudes: false };
    const TOP: f32 = eight_groups::TOP;
    const BOUND: u8 = 63;
    const TEMPER: f32 = 2.0;
    type Header = Header;

    #[inline(always)]
    fn header(d: f32, dmin: f32, scale: [u8; 8], min: [u8; 8]) -> Header {
        // Unlike Q4_K, with importance too.
        let bounded = |values: [u8; 8]| values.map(|value| value.min(Self::BOUND));
        Header::new(d, dmin, bounded(scale), bounded(min))
    }

    #[inline(always)]
    fn group(header: &Header, g: usize) -> (f32, f32) {
        header.group(g)
    }

    #[inline(always)]
    fn block(header: Header, codes: &[u8; 256]) -> Block {
        let (qh, qs) = pack(codes);
        Block { header, qh, qs }
    }
}

#[inline(always)]
fn pack(codes: &[u8; 256]) -> ([u8; 32], [u8; 128]) {
    let (mut qh, mut qs) = ([0; 32], [0; 128]);
    let pairs = qs.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0);
    for (n, (qs, codes)) in pairs.enumerate() {
        for i in 0..32 {
            qs[i] = codes[i] & 15 | codes[i + 32] << 4;
            qh[i] |= (codes[i] >> 4 | codes[i + 32] >> 4 << 1) << (2 * n);
        }
    }
    (qh, qs)
}

impl Encode for Q5K {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        superblock::encode::<S, Q5K, 8, 32>(s, weights, importance, out);
    }
}

impl Recode for Q5K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        (block.qh, block.qs) = pack(codes);
    }
}
