//! Q6_K: 256 weights of six bits around zero; each group of 16 has a scale of eight bits.
//!
//! ```text
//! byte  0                 128             192                     208  210
//!       | ql[0] .. ql[127] | qh[0] .. qh[63] | scales[0] .. scales[15] | d |      d: half
//!
//! A half of 128 weights has 64 bytes of ql and 32 of qh; for i in 0..32
//!   ql[i]:      low 4 bits of weight i low, of weight i + 64 high
//!   ql[i + 32]: low 4 bits of weight i + 32 low, of weight i + 96 high
//!   qh[i]:      high 2 bits of weights i, i + 32, i + 64, i + 96, low first
//! weight = d * scale * (q - 32)      scale: i8
//! ```

use super::columns::columns;
use super::search::{TINY, signed_scale};
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode, codes};
use crate::isa::{Bytes, Lanes, Simd, nearest_int};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum Q6K {}

const GROUP: usize = 16;
const GROUPS: usize = 16;

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    ql: [u8; 128],
    qh: [u8; 64],
    scales: [i8; GROUPS],
    d: Half,
}

impl Format for Q6K {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = GROUP;
    const MIN_CODE: i8 = -32;
    const MAX_CODE: i8 = 31;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        let d = block.d.widen(s);
        out.scales = (s.splat(d) * s.load_whole(&block.scales)).to_array();
        let halves = block.ql.as_chunks::<64>().0.iter().zip(block.qh.as_chunks::<32>().0);
        for (codes, (ql, qh)) in out.codes.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            let (codes, _) = codes.as_chunks_mut::<32>();
            let (ql, _) = ql.as_chunks::<32>();
            let (first, second, qh) = (s.bytes(&ql[0]), s.bytes(&ql[1]), s.bytes(qh));
            (first.bits(0, 4) | qh.bits(0, 2).up(4)).less(32).store(&mut codes[0]);
            (second.bits(0, 4) | qh.bits(2, 2).up(4)).less(32).store(&mut codes[1]);
            (first.bits(4, 4) | qh.bits(4, 2).up(4)).less(32).store(&mut codes[2]);
            (second.bits(4, 4) | qh.bits(6, 2).up(4)).less(32).store(&mut codes[3]);
        }
    }
}

impl Block {
    #[inline(always)]
    fn new(d: Half, scales: [i8; GROUPS], codes: &[u8; 256]) -> Block {
        let (ql, qh) = pack(codes);
        Block { ql, qh, scales, d }
    }
}

#[inline(always)]
fn pack(codes: &[u8; 256]) -> ([u8; 128], [u8; 64]) {
    let (mut ql, mut qh) = ([0; 128], [0; 64]);
    let halves = ql.as_chunks_mut::<64>().0.iter_mut().zip(qh.as_chunks_mut::<32>().0);
    for (codes, (ql, qh)) in codes.as_chunks::<128>().0.iter().zip(halves) {
        for i in 0..32 {
            let [a, b, c, d] = [codes[i], codes[i + 32], codes[i + 64], codes[i + 96]];
            ql[i] = a & 15 | c << 4;
            ql[i + 32] = b & 15 | d << 4;
            qh[i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    (ql, qh)
}

impl Encode for Q6K {
    const IMPORTANCE: Importance = Importance::Used;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], importance: Option<&[f32]>, out: &mut [Block]) {
        for (b, (x, out)) in weights.as_chunks::<256>().0.iter().zip(out).enumerate() {
            let lanes = columns::<S, GROUP>(s, x);
            let w = match importance {
                Some(importance) => columns(s, &importance[b * 256..][..256]),
                None => {
                    let mut squares = lanes;
                    for x in &mut squares {
                        *x = *x * *x;
                    }
                    squares
                }
            };
            let found = signed_scale(s, &lanes, &w, 32.0);
            let (scale, inverse) = (found.scale.to_array(), found.inverse.to_array());

            let largest = codes::farthest(s, &scale);
            if largest.abs() < TINY {
                *out = Block::new_zeroed();
                continue;
            }
            let steps = -128.0 / largest;
            let d = Half::new(1.0 / steps);
            let scales = scale.map(|scale| nearest_int(steps * scale).min(127) as i8);

            let mut codes = [0; 256];
            let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
            for (g, (x, codes)) in groups.enumerate() {
                let scale = d.get() * f32::from(scales[g]);
                if scale == 0.0 {
                    // ggml leaves the codes as the search found them.
                    codes::around(s, x, inverse[g], 32.0, codes);
                } else {
                    codes::around_over(s, x, scale, 32.0, codes);
                }
            }
            *out = Block::new(d, scales, &codes);
        }
    }
}

impl Recode for Q6K {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        (block.ql, block.qh) = pack(codes);
    }
}
