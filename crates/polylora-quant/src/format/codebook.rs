//! The codebooks of the IQ and FP4 formats: what a short index in a block stands for.
//!
//! A grid lists the runs of eight (or four) codes that a format can express; ggml chose them by
//! how often they occur in real weights. An IQ2 or IQ3 grid holds magnitudes, the signs follow
//! apart. [`grids`] holds them packed, one level number a weight; here they become bytes, at
//! compile time.

use crate::isa::nearest_int;

mod grids;
pub(super) mod magnitudes;
pub(super) mod neighbours;
pub(super) mod ternary;

/// The grid of IQ1_S and IQ1_M times eight, so that their shift of an eighth is a whole code.
pub(super) static IQ1: [[i8; 8]; 2048] = spread(&grids::IQ1, &[-8, 0, 8]);

/// The three magnitudes of a 2-bit grid.
const IQ2_LEVELS: [i8; 3] = [8, 25, 43];
/// The grid of IQ2_XXS.
pub(super) static IQ2_XXS: [[i8; 8]; 256] = spread(&grids::IQ2_XXS, &IQ2_LEVELS);
/// The grid of IQ2_XS.
pub(super) static IQ2_XS: [[i8; 8]; 512] = spread(&grids::IQ2_XS, &IQ2_LEVELS);
/// The grid of IQ2_S.
pub(super) static IQ2_S: [[i8; 8]; 1024] = spread(&grids::IQ2_S, &IQ2_LEVELS);

/// The grid of IQ3_XXS.
pub(super) static IQ3_XXS: [[i8; 4]; 256] =
    spread(&grids::IQ3_XXS, &[4, 12, 20, 28, 36, 44, 52, 62]);
/// The grid of IQ3_S.
pub(super) static IQ3_S: [[i8; 4]; 512] = spread(&grids::IQ3_S, &[1, 3, 5, 7, 9, 11, 13, 15]);

/// The sixteen codes of IQ4_NL and IQ4_XS: dense around zero, as weights are.
pub(super) const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The sixteen values of E2M1 (a sign, two bits of exponent, one of mantissa), doubled to be
/// whole: the codes of MXFP4 and NVFP4. OCP Microscaling Formats 1.0, section 5.3.3.
pub(super) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The values of [`FP4`], ascending.
pub(super) const FP4_LEVELS: [i8; 15] = [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12];

/// The numbers in [`FP4`] of values, of each of which the lowest is taken off.
#[inline(always)]
pub(super) fn fp4_numbers<const N: usize>(values: &[u8; N]) -> [u8; N] {
    /// By the value less the lowest.
    const NUMBERS: [u8; 25] = {
        let mut numbers = [0; 25];
        let mut number = 16;
        // Zero is written as the first of its two numbers.
        while number > 0 {
            number -= 1;
            numbers[(FP4[number] - FP4_LEVELS[0]) as usize] = number as u8;
        }
        numbers
    };
    values.map(|value| NUMBERS.get(usize::from(value)).copied().unwrap_or(0))
}

/// Entries of `W` level numbers, the first lowest, as `W` codes.
const fn spread<const W: usize, const N: usize>(packed: &[u16; N], levels: &[i8]) -> [[i8; W]; N] {
    let bits = levels.len().next_power_of_two().ilog2();
    let mut grid = [[0; W]; N];
    let mut entry = 0;
    while entry < N {
        let mut rest = packed[entry] as usize;
        let mut weight = 0;
        while weight < W {
            grid[entry][weight] = levels[rest & ((1 << bits) - 1)];
            rest >>= bits;
            weight += 1;
        }
        entry += 1;
    }
    grid
}

/// Codes by their four bits in a table: those of the low halves of all bytes, then of the high.
#[inline(always)]
pub(super) fn look_up(table: &[i8; 16], qs: &[u8], codes: &mut [i8]) {
    let (low, high) = codes.split_at_mut(qs.len());
    for ((&byte, low), high) in qs.iter().zip(low).zip(high) {
        *low = table[usize::from(byte & 15)];
        *high = table[usize::from(byte >> 4)];
    }
}

/// A run of codes, code `i` negated where bit `i` of `signs` is set.
#[inline(always)]
pub(super) fn signed<const W: usize>(run: [i8; W], signs: u8) -> [i8; W] {
    std::array::from_fn(|i| {
        let negative = -((signs >> i & 1) as i8); // 0 or -1: all bits.
        (run[i] ^ negative) - negative // `!code + 1` where negative.
    })
}

/// Eight signs from the low seven bits of `seven`: the eighth makes the number of negative codes
/// even, which the encoders see to.
#[inline(always)]
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 0x7f;
    let odd = seven.count_ones() as u8 & 1;
    seven | odd << 7
}

/// Seven of each eight signs of 32 weights, for [`even_signs`].
#[inline(always)]
pub(super) fn four_times_seven(signs: &[u8; 4]) -> u32 {
    signs.iter().rev().fold(0, |bits, &eight| bits << 7 | u32::from(eight & 0x7f))
}

/// The code for which `d * (2 * code + 1)` is nearest to `scale`, up to `top`.
pub(super) fn scale_code(scale: f32, d: f32, top: i32) -> u8 {
    nearest_int(0.5 * (1.0 / d * scale - 1.0)).clamp(0, top) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a of 64 bits over a grid's codes.
    fn hash<const W: usize>(grid: &[[i8; W]]) -> u64 {
        grid.as_flattened().iter().fold(0xcbf2_9ce4_8422_2325, |hash, &code| {
            (hash ^ u64::from(code as u8)).wrapping_mul(0x100_0000_01b3)
        })
    }

    #[test]
    fn grids_are_those_of_ggml() {
        let iq1 = IQ1.map(|run| run.map(|code| code / 8));
        assert_eq!(hash(&iq1), grids::IQ1_HASH, "IQ1");
        assert_eq!(hash(&IQ2_XXS), grids::IQ2_XXS_HASH, "IQ2_XXS");
        assert_eq!(hash(&IQ2_XS), grids::IQ2_XS_HASH, "IQ2_XS");
        assert_eq!(hash(&IQ2_S), grids::IQ2_S_HASH, "IQ2_S");
        assert_eq!(hash(&IQ3_XXS), grids::IQ3_XXS_HASH, "IQ3_XXS");
        assert_eq!(hash(&IQ3_S), grids::IQ3_S_HASH, "IQ3_S");
    }

    #[test]
    fn signs_are_even_in_number() {
        // From ggml's table of 128.
        let known = [(0, 0), (1, 129), (2, 130), (3, 3), (7, 135), (64, 192), (127, 255)];
        for (seven, eight) in known {
            assert_eq!(even_signs(seven), eight);
            assert_eq!(even_signs(seven | 0xff80), eight, "higher bits belong to others");
        }
    }

    #[test]
    fn a_set_bit_negates() {
        assert_eq!(signed([1, 2, 3, 62], 0b1010), [1, -2, 3, -62]);
    }
}
