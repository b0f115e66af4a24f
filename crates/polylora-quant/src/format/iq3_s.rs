//! IQ3_S: runs of four weights from a grid of 512 magnitudes, with all their signs; each group
//! of 32 has a scale.
//!
//! ```text
//! byte  0   2                 66               74                 106                110
//!       | d | qs[0] .. qs[63] | qh[0] .. qh[7] | signs[0] .. [31] | scales[0] .. [3] |
//!
//! d: half    qs: a byte a run    qh, signs: a bit a run, a bit a weight
//! scales: 4 bits a group, two groups a byte; low first
//!
//! run r: index = qs[r], above it bit r of qh
//! weight = d * (1 + 2 * scale) * ±grid[index]
//! ```

use super::codebook::magnitudes::{self, Fit, Magnitudes, nibbles};
use super::codebook::neighbours::{self, Grid};
use super::codebook::{IQ3_S, signed};
use super::{Codes, Encode, Format, Half, Importance};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum IQ3S {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    d: Half,
    qs: [u8; 64],
    qh: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}

impl Format for IQ3S {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 32;
    const MIN_CODE: i8 = -15;
    const MAX_CODE: i8 = 15;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        for (g, out) in out.scales[..8].iter_mut().enumerate() {
            let scale = block.scales[g / 2] >> (4 * (g % 2)) & 15;
            *out = d * f32::from(1 + 2 * scale);
        }
        let (runs, _) = out.codes.as_chunks_mut::<4>();
        for (r, run) in runs.iter_mut().enumerate() {
            let high = block.qh[r / 8] >> (r % 8) & 1;
            let index = usize::from(block.qs[r]) | usize::from(high) << 8;
            *run = signed(IQ3_S[index], block.signs[r / 2] >> (4 * (r % 2)));
        }
    }
}

impl Magnitudes<4, 32> for IQ3S {
    const LEVELS: u8 = 8;
    const STEPS: i8 = 9;
    const STEP: f32 = 0.2;
    const TEMPER: f32 = 2.0;
    const TINY: f32 = f32::from_bits(1); // The least there is: only zeros are zero.
    const EVEN_SIGNS: bool = false;
    const CORRECTION: f32 = 1.033;
    const CLEARS: bool = false;

    #[inline(always)]
    fn grid() -> &'static Grid<4> {
        &neighbours::IQ3_S
    }

    /// All or none.
    #[inline(always)]
    fn again(off: Option<u8>) -> u8 {
        if off == Some(0) { 0 } else { u8::MAX }
    }

    fn block(fit: &Fit) -> Block {
        let mut block = Block {
            d: fit.d,
            qs: [0; 64],
            qh: [0; 8],
            signs: [0; 32],
            scales: nibbles(&fit.scales),
        };
        // After a group of nothing but zeros ggml does not move on in `qs` and `signs`, though it
        // does in `qh`: there the groups behind lie one place too early, and decode to something
        // else. Its bytes are the reference all the same.
        let (qs, signs) = (block.qs.as_chunks_mut::<8>().0, block.signs.as_chunks_mut::<4>().0);
        let mut places = qs.iter_mut().zip(signs);
        for (g, runs) in fit.runs.as_chunks::<8>().0.iter().enumerate() {
            if fit.live >> g & 1 == 0 {
                continue;
            }
            let Some((qs, signs)) = places.next() else { break };
            *qs = runs.map(|index| index as u8);
            *signs = fit.signs.as_chunks().0[g];
            block.qh[g] = runs.iter().rev().fold(0, |bits, index| bits << 1 | (index >> 8) as u8);
        }
        block
    }
}

impl Encode for IQ3S {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        magnitudes::encode::<S, IQ3S, 4, 32>(s, weights, importance, out);
    }
}

#[cfg(test)]
mod tests {
    use crate::{GgmlType, quantize};

    /// A flaw of ggml's that its bytes make ours. Few models hold such weights: those of which
    /// whole groups were pruned.
    #[test]
    fn zeros_move_the_groups_behind_them() {
        let mut row = [1.0; 256];
        row[32..64].fill(0.0);
        let mut bytes = [0; 110];
        quantize(GgmlType::IQ3_S, &row, None, &mut bytes).unwrap();
        let (groups, _) = bytes[2..66].as_chunks::<8>();
        assert_ne!(groups[0], [0; 8]);
        assert_eq!(groups[1..7], [groups[0]; 6]);
        assert_eq!(groups[7], [0; 8]);
    }
}
