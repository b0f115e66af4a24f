//! Instruction sets, chosen at run time.
//!
//! An instruction set is a zero-sized token that can be had only where the CPU has it
//! (`new() -> Option<Self>` is the only door), so holding one is the proof that its
//! instructions may run. Code is written once against [`Simd`] and compiled once for each row
//! of `isas!`; [`Isa::run`] picks the copy.
//!
//! Every instruction set gives the same bits: the operations here are IEEE single precision,
//! lane by lane, never fused, never reordered. A file merged on one machine is byte for byte the
//! file merged on another. Only [`Lanes::mul_add`] makes a difference: it is for products, which
//! no file holds.

use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};
use std::str::FromStr;
use std::sync::OnceLock;

/// Lanes in every vector, whatever the machine's registers hold: the sub-blocks of a K-quant
/// come in sixteens or eights, and one width for all keeps one code for all.
pub const LANES: usize = 16;

/// 1.5 * 2^23: a sum with it has no room for a fraction, and its mantissa counts from 2^22.
const NEAREST: f32 = 12_582_912.0;
/// The bits of the mantissa, and what they hold in [`NEAREST`] itself.
const MANTISSA: i32 = 0x007f_ffff;
const MANTISSA_OF_NEAREST: i32 = 0x0040_0000;

/// ggml's `nearest_int`: the nearest integer, ties to even, for `|x| <= 2^22`. What is out of
/// this range gives some integer in it: 0 for NaN, the lowest for an infinity.
#[inline(always)]
pub fn nearest_int(x: f32) -> i32 {
    ((x + NEAREST).to_bits() as i32 & MANTISSA) - MANTISSA_OF_NEAREST
}

/// The value of a half, exactly.
///
/// By arithmetic: the `half` crate asks the CPU at each call, which costs more than it saves.
#[inline(always)]
pub(crate) fn half_to_single(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    // Exponent and mantissa, moved to where a single has them.
    let rest = (bits & 0x7fff) << 13;
    // A half's exponent is biased by 15, a single's by 127; infinity must stay the highest.
    let normal = f32::from_bits(rest + (224 << 23)) * f32::from_bits(15 << 23);
    // The mantissa of a subnormal counts from 2^-24: below a half, single precision does too.
    let subnormal = f32::from_bits((rest >> 13) + (126 << 23)) - 0.5;
    let value = if rest < 1 << 23 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | sign)
}

/// Sixteen `f32` side by side; see [`Simd`].
pub trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// What a comparison of two vectors gives.
    type Mask: Copy
        + BitAnd<Output = Self::Mask>
        + BitOr<Output = Self::Mask>
        + Not<Output = Self::Mask>;

    /// `self < other`, lane by lane; false where either is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self <= other`, lane by lane; false where either is NaN.
    fn le(self, other: Self) -> Self::Mask;
    /// `self == other`, lane by lane; false where either is NaN.
    fn eq(self, other: Self) -> Self::Mask;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Magnitude: the sign bit cleared.
    fn abs(self) -> Self;
    /// Rounds toward zero, as a C cast to int does. For `|x| < 2^31`.
    fn trunc(self) -> Self;
    /// Lane `i` of each pair in the place of the other: lanes 1, 0, 3, 2 and so on.
    fn swap_neighbours(self) -> Self;
    /// The lanes in order.
    fn to_array(self) -> [f32; LANES];
    /// `self * factor + summand`, rounded once where the CPU can do that at the cost of one
    /// operation, else twice.
    fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// 2 to the power of each lane. For whole numbers in `-126..=127`.
    fn power_of_two(self) -> Self;
    /// The sum of the lanes: of the halves, then of the halves of that.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
    /// The low byte of each lane as a C compiler for x86 casts it to int: toward zero, and
    /// `i32::MIN` (so 0) for NaN and what an int cannot hold.
    fn to_bytes(self) -> [u8; LANES];
    /// The largest lane, by [`max`](Lanes::max) of the halves, then of the halves of that.
    fn largest(self) -> f32;

    /// `if self < other { self } else { other }`: C's idiom, `other` where either is NaN.
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self::select(self.lt(other), self, other)
    }
    /// `if self > other { self } else { other }`: C's idiom, `other` where either is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self::select(other.lt(self), self, other)
    }
    /// `yes` where the mask is set, `no` elsewhere.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// The mask as bits, lane 0 lowest.
    fn bits(mask: Self::Mask) -> u16;
    /// Whether the mask is set in any lane.
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        Self::bits(mask) != 0
    }
}

/// Thirty-two bytes side by side: packed codes.
pub trait Bytes: Copy + BitOr<Output = Self> {
    /// Of each byte, `count` bits from bit `from` on.
    fn bits(self, from: u32, count: u32) -> Self;
    /// Each byte shifted up, where no bits are lost.
    fn up(self, by: u32) -> Self;
    /// Each byte less `offset`, wrapping.
    fn less(self, offset: u8) -> Self;
    /// `table[byte]` for each byte, which is at most 15.
    fn look_up(self, table: &[i8; 16]) -> Self;
    /// To memory.
    fn store(self, out: &mut [i8; 32]);
}

/// A token for one instruction set: its vectors of sixteen `f32`.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F32: Lanes;
    /// Thirty-two bytes.
    type Bytes: Bytes;
    /// Whether there are registers enough to work on two vectors side by side, each with its own
    /// sums, so that one goes on where the other waits.
    const ROOMY: bool = false;
    /// Whether [`nearest_code`](Simd::nearest_code) is faster than rounding and two bounds.
    const LOOKS_UP: bool = false;

    /// The same value in every lane.
    fn splat(self, value: f32) -> Self::F32;
    /// The lanes from memory.
    fn load(self, lanes: &[f32; LANES]) -> Self::F32;

    /// Rows to columns: lane `k` of `out[i]` is lane `i` of `rows[k]`.
    fn transpose(self, rows: [Self::F32; LANES]) -> [Self::F32; LANES];

    /// Rounds to the nearest integer, ties to even: adding 1.5 * 2^23 pushes the fraction out of
    /// the mantissa. For `|x| <= 2^22`.
    #[inline(always)]
    fn nearest(self, x: Self::F32) -> Self::F32 {
        let shift = self.splat(NEAREST);
        (x + shift) - shift
    }
    /// [`nearest`](Simd::nearest), kept in `0..=top`; 0 for NaN. For `x <= 30`: that is where the
    /// tables of those CPUs end that look it up.
    #[inline(always)]
    fn nearest_code(self, x: Self::F32, top: f32) -> Self::F32 {
        self.nearest(x).max(self.splat(0.0)).min(self.splat(top))
    }
    /// As [`nearest`](Simd::nearest), but for what is out of its range, infinite or NaN what
    /// ggml's `nearest_int` gives: see [`nearest_int`].
    fn nearest_int(self, x: Self::F32) -> Self::F32;

    /// From memory.
    fn bytes(self, bytes: &[u8; 32]) -> Self::Bytes;
    /// The low four bits of each byte, and after them the high four.
    fn nibbles(self, bytes: &[u8; 16]) -> Self::Bytes;
    /// Bit `i` as byte `i`, 0 or 1.
    fn one_bit_each(self, bits: u32) -> Self::Bytes;
    /// The lanes from memory, as whole numbers.
    fn load_whole(self, lanes: &[i8; LANES]) -> Self::F32;

    /// The highest weight code that [`dot`](Simd::dot) and [`tile`](Simd::tile) multiply as an
    /// unsigned byte without an overflow on the way.
    const TOP_CODE: i32;
    /// The most tokens in a tile.
    const TILE: usize;
    /// Whether there are registers for twice as many sums at a time: of tiles of two panels, say, for
    /// which each activation is read once.
    const PAIRS: bool = false;
    /// Tokens in a tile: what the registers can hold, for codes of which `span` products fit in
    /// sixteen bits.
    #[inline(always)]
    fn tile_tokens(span: usize) -> usize {
        let _ = span;
        Self::TILE
    }

    /// The value of a half, exactly.
    #[inline(always)]
    fn widen(self, half: u16) -> f32 {
        half_to_single(half)
    }
    /// The lanes from memory, in half precision.
    fn load_half(self, lanes: &[u16; LANES]) -> Self::F32;
    /// `lanes[i / 2]` in lane `i`.
    fn by_two(self, lanes: &[f32; 8]) -> Self::F32;
    /// `lanes[i / 4]` in lane `i`.
    fn by_four(self, lanes: &[f32; 4]) -> Self::F32;
    /// `low` in lanes 0 to 7, `high` in 8 to 15.
    fn by_eight(self, low: f32, high: f32) -> Self::F32;
    /// Asks for the cache line `ahead` bytes from the start of `bytes`, perhaps beyond their end.
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        let _ = (bytes, ahead);
    }

    /// Sums of `weights[k] * x[k]`: lanes `4 * g` to `4 * g + 3` add up to that of the sixteen `k`
    /// from `16 * g` on.
    ///
    /// The weights' codes are unsigned bytes up to [`TOP_CODE`](Simd::TOP_CODE), or, with
    /// `SIGNED`, signed ones. `x` never holds -128.
    fn dot<const SIGNED: bool>(self, weights: &[u8; 64], x: &[i8; 64]) -> Self::F32;

    /// Lane `r` of `out[p][t]`: the sum of `weights[p][q][4 * r + i] * x[t][q][i]` over all `q` and four
    /// `i`: `P` panels of sixteen rows by `T` tokens. All of `weights` and `x` are of one length.
    ///
    /// The weights' codes are as in [`dot`](Simd::dot). Of unsigned ones, the products for `span`
    /// times one `q` are never more than sixteen bits hold: see [`span`].
    fn tile<const P: usize, const T: usize, const SIGNED: bool>(
        self,
        weights: [&[[u8; 64]]; P],
        x: [&[[i8; 4]]; T],
        span: usize,
    ) -> [[Self::F32; T]; P];
}

/// How many sums of two products fit in sixteen bits, a power of two up to 8, where one factor is
/// a weight's code up to `top` and the other an activation's, at most 127. At least one, which
/// [`Simd::TOP_CODE`] is to see to.
pub const fn span(top: i32) -> usize {
    match i16::MAX as i32 / (2 * 127 * top) {
        ..2 => 1,
        2..4 => 2,
        4..8 => 4,
        8.. => 8,
    }
}

/// Code that is compiled for every instruction set: a closure that is generic over [`Simd`].
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Whether it multiplies bytes, by [`Simd::dot`] or [`Simd::tile`], or asks how
    /// ([`Simd::TOP_CODE`]). What does not is the same for instruction sets that differ by nothing
    /// else, and is compiled for one of them.
    const MULTIPLIES_BYTES: bool = false;
    /// The code; mark it and what it calls `#[inline(always)]`, or it is compiled for the
    /// baseline CPU instead.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// One row for each instruction set, the most capable last: `file::Token, name`.
macro_rules! isas {
    ($($(#[$attr:meta])* $module:ident :: $token:ident, $name:literal;)*) => {
        /// An instruction set that this CPU has.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Isa(Choice);

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Choice {
            $($(#[$attr])* $token($module::$token),)*
        }

        impl Isa {
            /// All that this CPU has, the most capable last. Never empty.
            pub fn available() -> Vec<Isa> {
                let mut all = Vec::new();
                $($(#[$attr])* if let Some(token) = $module::$token::new() {
                    all.push(Isa(Choice::$token(token)));
                })*
                all
            }

            /// Its name, as `POLYLORA_ISA` takes it.
            pub fn name(self) -> &'static str {
                match self.0 { $($(#[$attr])* Choice::$token(_) => $name,)* }
            }

            /// Runs the copy of `kernel` that was compiled for this instruction set.
            #[inline]
            pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
                match self.0 { $($(#[$attr])* Choice::$token(token) => token.run(kernel),)* }
            }
        }
    };
}

isas! {
    portable::Portable, "portable";
    #[cfg(target_arch = "x86_64")] avx2::Avx2, "avx2";
    #[cfg(target_arch = "x86_64")] avx2::AvxVnni, "avxvnni";
    #[cfg(target_arch = "x86_64")] avx512::Avx512, "avx512";
    #[cfg(target_arch = "aarch64")] neon::Neon, "neon";
}

impl Isa {
    /// The one to use: the most capable, or the one that the environment variable
    /// `POLYLORA_ISA` names, where the CPU has it. Decided once.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let forced = std::env::var("POLYLORA_ISA").ok().and_then(|name| name.parse().ok());
            forced.unwrap_or_else(|| *Isa::available().last().expect("portable is always there"))
        })
    }
}

/// No instruction set of that name on this CPU.
#[derive(Debug, thiserror::Error)]
#[error("this CPU has no instruction set named {asked:?}; it has {}", .available.join(", "))]
pub struct UnknownIsa {
    asked: String,
    available: Vec<&'static str>,
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(asked: &str) -> Result<Isa, UnknownIsa> {
        let all = Isa::available();
        all.iter().copied().find(|isa| isa.name() == asked).ok_or_else(|| UnknownIsa {
            asked: asked.to_owned(),
            available: all.iter().map(|isa| isa.name()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values whose rounding, order or sign a wrong instruction would change: ties, signed
    /// zeros, subnormals, infinities, NaN.
    const EDGES: [f32; LANES] = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        1e-40,
        -1e-40,
        3.0e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        4_194_303.5,
        -1.999_999_9,
        7.0,
    ];

    struct EveryOperation([f32; LANES], [f32; LANES]);

    impl Kernel for EveryOperation {
        type Output = Vec<[u32; LANES]>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (a, b) = (s.load(&self.0), s.load(&self.1));
            let one = s.splat(1.0);
            let pick = |mask| S::F32::select(mask, a, one);
            [
                a + b,
                a - b,
                a * b,
                a / b,
                a.sqrt(),
                a.abs(),
                a.trunc(),
                a.swap_neighbours(),
                a.min(b),
                a.max(b),
                s.nearest(a),
                s.nearest_int(a),
                s.nearest_code(a.min(s.splat(30.0)), 1.0),
                s.nearest_code((a + a).min(s.splat(30.0)), 15.0),
                s.nearest_int(a * s.splat(1e6)),
                pick(a.lt(b)),
                pick(a.le(b)),
                pick(a.eq(b)),
                pick(!a.lt(b)),
                pick(a.lt(b) | a.eq(b)),
                pick(a.le(b) & b.le(a)),
                s.splat(S::F32::any(a.lt(b)) as u8 as f32),
                s.splat(f32::from(S::F32::bits(a.lt(b)))),
                s.splat(b.largest()),
                s.load(&b.to_bytes().map(f32::from)),
                s.load(&(b * s.splat(1e9)).to_bytes().map(f32::from)),
            ]
            .iter()
            .chain(&s.transpose(std::array::from_fn(|k| {
                s.load(&std::array::from_fn(|i| (LANES * k + i) as f32))
            })))
            // NaN's payload is not defined by IEEE: all NaN are one.
            .map(|v| {
                v.to_array().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() })
            })
            .collect()
        }
    }

    #[test]
    fn every_isa_gives_the_bits_of_portable() {
        let all = Isa::available();
        assert_eq!(all[0].name(), "portable");
        for shift in 0..LANES {
            let mut other = EDGES;
            other.rotate_left(shift);
            let want = all[0].run(EveryOperation(EDGES, other));
            for isa in &all[1..] {
                assert_eq!(
                    isa.run(EveryOperation(EDGES, other)),
                    want,
                    "{}, shift {shift}",
                    isa.name()
                );
            }
        }
    }

    /// So that tests which are run for one instruction set are not run on another.
    #[test]
    fn the_one_that_is_asked_for_is_used() {
        if let Ok(asked) = std::env::var("POLYLORA_ISA") {
            assert_eq!(Isa::best().name(), asked);
        }
    }

    #[test]
    fn an_unknown_name_says_what_there_is() {
        let error = "mmx".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("mmx") && error.contains("portable"), "{error}");
    }
}
