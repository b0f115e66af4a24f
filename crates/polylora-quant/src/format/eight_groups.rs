//! The header of Q4_K and Q5_K: eight groups, each with a scale and a minimum of six bits.
//!
//! ```text
//! byte  0   2      4                           16
//!       | d | dmin | scales[0] .. scales[11] |      d, dmin: half
//!
//! group g < 4:  scale = low 6 bits of scales[g], min = low 6 bits of scales[g + 4]
//! group g >= 4: scale = low 4 bits of scales[g + 4], above them the high 2 of scales[g - 4]
//!               min   = high 4 bits of scales[g + 4], above them the high 2 of scales[g]
//! weight = d * scale * q - dmin * min
//! ```

use super::{Codes, Half};
use crate::isa::{Lanes, Simd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

const GROUPS: usize = 8;
/// The highest scale and minimum.
pub(super) const TOP: f32 = 63.0;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    d: Half,
    dmin: Half,
    scales: [u8; 12],
}

impl Header {
    #[inline(always)]
    pub(super) fn new(d: f32, dmin: f32, scale: [u8; GROUPS], min: [u8; GROUPS]) -> Header {
        let mut scales = [0; 12];
        for g in 0..4 {
            scales[g] = scale[g] | scale[g + 4] >> 4 << 6;
            scales[g + 4] = min[g] | min[g + 4] >> 4 << 6;
            scales[g + 8] = scale[g + 4] & 15 | min[g + 4] << 4;
        }
        Header { d: Half::new(d), dmin: Half::new(dmin), scales }
    }

    /// The scale and minimum of group `g`, `d` and `dmin` multiplied in.
    #[inline(always)]
    pub(super) fn group(&self, g: usize) -> (f32, f32) {
        let scales = &self.scales;
        let (scale, min) = if g < 4 {
            (scales[g] & 63, scales[g + 4] & 63)
        } else {
            let low = scales[g + 4];
            (low & 15 | scales[g - 4] >> 6 << 4, low >> 4 | scales[g] >> 6 << 4)
        };
        (self.d.get() * f32::from(scale), self.dmin.get() * f32::from(min))
    }

    /// Fills in the scales and minima: as [`group`](Self::group), four at a time.
    #[inline(always)]
    pub(super) fn decode<S: Simd>(&self, s: S, out: &mut Codes) {
        let (words, _) = self.scales.as_chunks::<4>();
        let [a, b, c] = [words[0], words[1], words[2]].map(u32::from_le_bytes);
        let high = |word: u32| word >> 2 & 0x3030_3030; // The highest two bits, to bits 4 and 5.
        let bytes = [
            a & 0x3f3f_3f3f,
            c & 0x0f0f_0f0f | high(a),
            b & 0x3f3f_3f3f,
            c >> 4 & 0x0f0f_0f0f | high(b),
        ];
        let whole = s.load_whole(&transmute!(bytes.map(u32::to_le_bytes)));
        let both = (s.by_eight(self.d.widen(s), self.dmin.widen(s)) * whole).to_array();
        let (scales, mins) = both.split_at(GROUPS);
        out.scales[..GROUPS].copy_from_slice(scales);
        out.mins[..GROUPS].copy_from_slice(mins);
    }
}
