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
use crate::isa::{Bytes, Simd};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
        let d = block.d.widen(s);
        let scales_h = block.scales_h.get();
        let (qs, _) = block.qs.as_chunks::<16>();
        let (groups, _) = out.codes.as_chunks_mut::<32>();
        for (g, (codes, qs)) in groups.iter_mut().zip(qs).enumerate() {
            let low = block.scales_l[g / 2] >> (4 * (g % 2)) & 15;
            let high = (scales_h >> (2 * g) & 3) as u8;
            out.scales[g] = d * (f32::from(low | high << 4) - 32.0);
            s.nibbles(qs).look_up(&IQ4).store(codes);
        }
    }
}
