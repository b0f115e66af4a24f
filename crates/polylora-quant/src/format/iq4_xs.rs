//! IQ4_XS: the sixteen levels of IQ4_NL; each group of 32 has a scale of six bits.
//!
//! ```text
//! byte  0   2          4                            8                  136
//!       | d | scales_h | scales_l[0] .. scales_l[3] | qs[0] .. qs[127] |
//!
//! d: half    scales_h: u16, 2 bits a group    scales_l: 4 bits a group; low first
//! qs: 16 bytes a group, byte i: weight i low, weight i + 16 high
//!
//! group g: scale = 4 bits of scales_l, above them 2 bits of scales_h
//! weight = d * (scale - 32) * level[q]
//! ```

use super::codebook::IQ4;
use super::{Codes, Format, Half};
use crate::isa::{Bytes, LANES, Lanes, Simd};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// The format.
pub enum IQ4XS {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    scales_h: U16,
    scales_l: [u8; 4],
    qs: [u8; 128],
}

impl Format for IQ4XS {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -127;
    const MAX_CODE: i8 = 113;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        // Four bits, and two, of each scale to a byte of its own.
        let spread = |bits: u64, by: u32, mask: u64| (bits | bits << by) & mask;
        let low = u64::from(u32::from_le_bytes(block.scales_l));
        let low = spread(low, 16, 0x0000_ffff_0000_ffff);
        let low = spread(spread(low, 8, 0x00ff_00ff_00ff_00ff), 4, 0x0f0f_0f0f_0f0f_0f0f);
        let high = u64::from(block.scales_h.get());
        let high = spread(high, 24, 0x0000_00ff_0000_00ff);
        let high = spread(spread(high, 12, 0x000f_000f_000f_000f), 6, 0x0303_0303_0303_0303);
        let scales: [i8; LANES] = transmute!([(low | high << 4).to_le_bytes(), [0; 8]]);
        let d = s.splat(block.d.widen(s));
        out.scales = (d * (s.load_whole(&scales) - s.splat(32.0))).to_array();
        let (qs, _) = block.qs.as_chunks::<16>();
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (codes, qs) in groups.iter_mut().zip(qs) {
            s.nibbles(qs).look_up(&IQ4).store(codes);
        }
    }
}
