//! TQ1_0: 256 weights of -1, 0 and 1, five to a byte, one scale.
//!
//! ```text
//! byte  0                 48               52  54
//!       | qs[0] .. qs[47] | qh[0] .. qh[3] | d |      d: half
//!
//! weights   0..160    trit i / 32         of qs[i % 32]
//!         160..240    trit (i - 160) / 16 of qs[32 + (i - 160) % 16]
//!         240..256    trit (i - 240) / 4  of qh[(i - 240) % 4]
//!
//! A byte is the fraction 0.t0 t1 t2 t3 t4 in base 3, in 256ths, rounded up: times 3, its whole
//! part is t0 and its fraction holds the rest.
//! weight = d * (t - 1)
//! ```

use super::tq2_0::scale_and_codes;
use super::{Codes, Encode, Format, Half, Importance, MAX_BLOCK, Recode};
use crate::isa::Simd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The format.
pub enum TQ1_0 {}

/// See the picture above.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    qs: [u8; 48],
    qh: [u8; 4],
    d: Half,
}

impl Format for TQ1_0 {
    type Block = Block;
    const WEIGHTS: usize = 256;
    const GROUP: usize = 256;
    const MIN_CODE: i8 = -1;
    const MAX_CODE: i8 = 1;

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &Block, out: &mut Codes) {
        out.scales[0] = block.d.widen(s);
        let (wide, narrow) = block.qs.split_at(32);
        let (first, rest) = out.codes.split_at_mut(5 * 32);
        let (second, third) = rest.split_at_mut(5 * 16);
        trits(wide, first);
        trits(narrow, second);
        trits(&block.qh, third);
    }
}

/// As many trits of every byte as `codes` has room for: the first of all bytes, then the second...
#[inline(always)]
fn trits(bytes: &[u8], codes: &mut [i8]) {
    let mut power = 1u8; // Of 3: moves a trit to the front, what lay before it out of the byte.
    for codes in codes.chunks_exact_mut(bytes.len()) {
        for (&byte, code) in bytes.iter().zip(codes) {
            let fraction = byte.wrapping_mul(power);
            *code = ((u16::from(fraction) * 3) >> 8) as i8 - 1;
        }
        power = power.wrapping_mul(3);
    }
}

impl Encode for TQ1_0 {
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<S: Simd>(s: S, weights: &[f32], _: Option<&[f32]>, out: &mut [Block]) {
        for (x, out) in weights.as_chunks().0.iter().zip(out) {
            let (scale, trits) = scale_and_codes(s, x);
            out.d = Half::new(scale);
            (out.qs, out.qh) = pack(&trits);
        }
    }
}

impl Recode for TQ1_0 {
    #[inline(always)]
    fn recode(block: &mut Block, codes: &[u8; MAX_BLOCK]) {
        (block.qs, block.qh) = pack(codes);
    }
}

/// `qs` and `qh`.
#[inline(always)]
fn pack(trits: &[u8; MAX_BLOCK]) -> ([u8; 48], [u8; 4]) {
    let (mut qs, mut qh) = ([0; 48], [0; 4]);
    let (wide, narrow) = qs.split_at_mut(32);
    let (first, rest) = trits.split_at(5 * 32);
    let (second, third) = rest.split_at(5 * 16);
    fractions(first, wide);
    fractions(second, narrow);
    fractions(third, &mut qh);
    (qs, qh)
}

/// Up to five trits a byte: the first of all bytes, then the second...
#[inline(always)]
fn fractions(trits: &[u8], bytes: &mut [u8]) {
    bytes.fill(0);
    for (trits, place) in trits.chunks_exact(bytes.len()).zip([81, 27, 9, 3, 1]) {
        for (byte, trit) in bytes.iter_mut().zip(trits) {
            *byte += trit * place;
        }
    }
    for byte in bytes {
        // From 243rds to 256ths.
        *byte = (u16::from(*byte) * 256).div_ceil(243) as u8;
    }
}
