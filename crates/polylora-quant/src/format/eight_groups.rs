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
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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

    /// Fills in the scales and minima.
    #[inline(always)]
    pub(super) fn decode(&self, out: &mut Codes) {
        for g in 0..GROUPS {
            (out.scales[g], out.mins[g]) = self.group(g);
        }
    }
}
