//! The formats, one file each, and their table.
//!
//! Every quantized weight of ggml is `scale * code - min`, where the code fits in an `i8` and
//! scale and min are shared by a group of weights. So a format states its block's layout and
//! [`Format::decode`], which turns a block into [`Codes`]; [`Encode`] is the way back. Rows,
//! sizes and tests follow from these.

use crate::isa::{Isa, Simd, half_to_single};
use crate::product::{panels, rows, rows::Rows};
use crate::row;
use std::fmt;
use std::str::FromStr;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

mod codebook;
mod codes;
mod columns;
mod eight_groups;
pub mod floats;
mod iq4;
mod search;
pub mod short_block;
mod slab;
mod superblock;

/// The most weights in a block of any format.
pub const MAX_BLOCK: usize = 256;
/// The fewest weights that share a scale in any format.
pub const MIN_GROUP: usize = 16;

/// A decoded block: weight `i` is `scales[i / GROUP] * codes[i] - mins[i / GROUP]`, in single
/// precision, in that order, which gives ggml's bits.
///
/// A format fills as much as its block holds; where it has no minimum, `mins` stays zero
/// (`x - 0.0` is `x`, whatever `x`).
#[derive(Clone, Debug)]
#[repr(align(64))] // The codes are read a register at a time.
pub struct Codes {
    /// One code a weight.
    pub codes: [i8; MAX_BLOCK],
    /// One scale a group.
    pub scales: [f32; MAX_BLOCK / MIN_GROUP],
    /// One minimum a group.
    pub mins: [f32; MAX_BLOCK / MIN_GROUP],
}

impl Codes {
    /// All zero.
    pub const ZERO: Codes = Codes {
        codes: [0; MAX_BLOCK],
        scales: [0.0; MAX_BLOCK / MIN_GROUP],
        mins: [0.0; MAX_BLOCK / MIN_GROUP],
    };
}

/// A block layout and its decoder.
pub trait Format: Sized + 'static {
    /// The block as it lies in a file: little-endian, no padding, any alignment.
    type Block: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned;
    /// Weights in a block.
    const WEIGHTS: usize;
    /// Weights that share a scale and a minimum.
    const GROUP: usize;
    /// The lowest code that any bytes decode to.
    const MIN_CODE: i8;
    /// The highest code that any bytes decode to.
    const MAX_CODE: i8;

    /// Decodes any bytes: the codes and scales of garbage are garbage (perhaps NaN), never a panic.
    ///
    /// Fast where it works on [`Bytes`](crate::isa::Bytes): a loop over single bytes becomes
    /// vectors or not, as the compiler's heuristics fall.
    fn decode<S: Simd>(simd: S, block: &Self::Block, out: &mut Codes);

    /// Decodes the blocks of up to [`MAX_BLOCK`] weights, one after the other, for a product:
    /// `shift` is added to each code, wrapping, and taken off again by the minima; scales and minima
    /// are those of each [`MIN_GROUP`] weights. What `out` holds beyond the blocks may be anything
    /// finite.
    #[inline(always)]
    fn decode_slab<S: Simd>(simd: S, blocks: &[Self::Block], shift: u8, out: &mut Codes) {
        slab::decode::<S, Self>(simd, blocks, shift, out);
    }
}

/// A format that can be written.
pub trait Encode: Format {
    /// What it does with importance.
    const IMPORTANCE: Importance;

    /// Encodes `weights`, whole blocks; `importance`, where given, has one value a weight.
    /// `out` has one block for every `WEIGHTS` weights.
    ///
    /// The same bytes as ggml's reference encoder: each sum is taken in its order, without fused
    /// operations. Speed comes from sixteen blocks or sub-blocks side by side in [`Simd`]'s lanes.
    fn encode<S: Simd>(
        simd: S,
        weights: &[f32],
        importance: Option<&[f32]>,
        out: &mut [Self::Block],
    );
}

/// A format whose codes can be chosen one by one, whatever the others are.
pub trait Recode: Encode {
    /// The codes there are, ascending, where they are not all whole numbers from
    /// [`MIN_CODE`](Format::MIN_CODE) to [`MAX_CODE`](Format::MAX_CODE); else none.
    const LEVELS: &'static [i8] = &[];

    /// Gives a block other codes, [`MIN_CODE`](Format::MIN_CODE) taken off each; its scales stay.
    fn recode(block: &mut Self::Block, codes: &[u8; MAX_BLOCK]);
}

/// A format whose "block" is a single number.
pub trait Float: 'static {
    /// The number as it lies in a file.
    type Bits: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned;

    /// Exactly.
    fn widen<S: Simd>(s: S, bits: &[Self::Bits], out: &mut [f32]);
    /// To the nearest, ties to even.
    fn narrow(weights: &[f32], out: &mut [Self::Bits]);
}

/// What an encoder does with an importance matrix (one weight for each column).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// It makes no difference.
    Ignored,
    /// Used where there is one.
    Used,
    /// Without it, a format of so few bits would be of no use: ggml refuses, and so do we.
    Required,
}

/// A number in IEEE half precision, as blocks hold it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Half(U16);

impl Half {
    /// Exactly.
    #[inline(always)]
    pub fn get(self) -> f32 {
        half_to_single(self.0.get())
    }

    /// The same, with the instruction for it where there is one.
    #[inline(always)]
    pub fn widen<S: Simd>(self, s: S) -> f32 {
        s.widen(self.0.get())
    }

    /// To the nearest, ties to even.
    #[inline(always)]
    pub fn new(value: f32) -> Half {
        Half(U16::new(half::f16::from_f32(value).to_bits()))
    }
}

type DequantizeRow = fn(Isa, &[u8], &mut [f32]);
type QuantizeRow = fn(Isa, &[f32], Option<&[f32]>, &mut [u8]);
/// Decodes as many blocks as there are places for.
pub(crate) type DecodeBlocks = fn(Isa, &[u8], &mut [Codes]);

/// What the table knows of a type that holds weights.
pub(crate) struct FormatInfo {
    pub(crate) block_weights: usize,
    pub(crate) block_bytes: usize,
    pub(crate) dequantize: DequantizeRow,
    /// None for single numbers.
    pub(crate) blocks: Option<Blocks>,
    pub(crate) encoder: Encoder,
}

/// What lies in a block, and how blocks are multiplied.
pub(crate) struct Blocks {
    /// Weights that share a scale.
    pub(crate) group: usize,
    /// The lowest and the highest code.
    pub(crate) code_range: (i8, i8),
    pub(crate) decode: DecodeBlocks,
    pub(crate) rows: fn(Isa, Rows<'_>),
    pub(crate) panels: panels::Layout,
}

/// See [`Recode`].
#[derive(Clone, Copy)]
pub(crate) struct ChosenCodes {
    pub(crate) levels: &'static [i8],
    /// Of one block.
    pub(crate) recode: fn(&mut [u8], &[u8; MAX_BLOCK]),
}

pub(crate) struct Encoder {
    pub(crate) importance: Importance,
    pub(crate) quantize: QuantizeRow,
    /// Where codes can be chosen one by one.
    pub(crate) codes: Option<ChosenCodes>,
}

impl FormatInfo {
    const fn encodes<F: Encode>() -> FormatInfo {
        FormatInfo {
            block_weights: F::WEIGHTS,
            block_bytes: size_of::<F::Block>(),
            dequantize: row::dequantize_blocks::<F>,
            blocks: Some(Blocks {
                group: F::GROUP,
                code_range: (F::MIN_CODE, F::MAX_CODE),
                decode: row::decode_blocks::<F>,
                rows: rows::multiply_rows::<F>,
                panels: panels::Layout {
                    group: F::GROUP,
                    top: F::MAX_CODE as i32 - F::MIN_CODE as i32,
                    decode: panels::decode_rows::<F>,
                },
            }),
            encoder: Encoder {
                importance: F::IMPORTANCE,
                quantize: row::quantize_blocks::<F>,
                codes: None,
            },
        }
    }

    const fn recodes<F: Recode>() -> FormatInfo {
        let FormatInfo { encoder, .. } = FormatInfo::encodes::<F>();
        let codes = ChosenCodes { levels: F::LEVELS, recode: row::recode_block::<F> };
        let encoder = Encoder { codes: Some(codes), ..encoder };
        FormatInfo { encoder, ..FormatInfo::encodes::<F>() }
    }

    const fn float<F: Float>() -> FormatInfo {
        FormatInfo {
            block_weights: 1,
            block_bytes: size_of::<F::Bits>(),
            dequantize: row::widen::<F>,
            blocks: None,
            encoder: Encoder {
                importance: Importance::Ignored,
                quantize: row::narrow::<F>,
                codes: None,
            },
        }
    }
}

/// One row for each type: its ggml id, its name, and then, for the types of blocks, the file, the
/// format in it and what it is, [`Encode`] (`encodes`) or even [`Recode`] (`recodes`); for numbers
/// that are no weights, their size in bytes.
macro_rules! formats {
    (
        floats { $($float_id:literal $float:ident;)* }
        blocks { $($id:literal $name:ident $module:ident :: $format:ident $does:ident;)* }
        plain { $($plain_id:literal $plain_name:ident $plain_bytes:literal;)* }
        removed { $($removed_id:literal $removed_name:literal;)* }
    ) => {
        $(pub mod $module;)*

        /// A tensor's type, by ggml's name and id.
        #[allow(non_camel_case_types)] // The names are ggml's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType {
            $(#[doc = "See [`floats`]."] $float = $float_id,)*
            $(#[doc = concat!("See [`", stringify!($module), "`].")] $name = $id,)*
            $(#[doc = concat!("Plain numbers of ", $plain_bytes, " bytes; copied, never decoded.")] $plain_name = $plain_id,)*
        }

        impl GgmlType {
            /// Every type, in the table's order: first those that hold weights.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$float,)* $(GgmlType::$name,)* $(GgmlType::$plain_name,)*];

            /// The type with this id in a file.
            pub fn from_id(id: u32) -> Result<GgmlType, UnknownType> {
                match id {
                    $($float_id => Ok(GgmlType::$float),)*
                    $($id => Ok(GgmlType::$name),)*
                    $($plain_id => Ok(GgmlType::$plain_name),)*
                    $($removed_id => Err(UnknownType::Removed { id, name: $removed_name }),)*
                    _ => Err(UnknownType::Id(id)),
                }
            }

            /// ggml's name for it, in capitals.
            pub const fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$float => stringify!($float),)*
                    $(GgmlType::$name => stringify!($name),)*
                    $(GgmlType::$plain_name => stringify!($plain_name),)*
                }
            }

            pub(crate) const fn info(self) -> Result<&'static FormatInfo, PlainNumbers> {
                match self {
                    $(GgmlType::$float => Ok(const { &FormatInfo::float::<floats::$float>() }),)*
                    $(GgmlType::$name => Ok(const { &FormatInfo::$does::<$module::$format>() }),)*
                    $(GgmlType::$plain_name => Err(PlainNumbers { bytes: $plain_bytes }),)*
                }
            }
        }
    };
}

pub(crate) struct PlainNumbers {
    bytes: usize,
}

formats! {
    floats {
        0 F32;
        1 F16;
        30 BF16;
    }
    blocks {
        2 Q4_0 q4_0::Q4_0 recodes;
        3 Q4_1 q4_1::Q4_1 recodes;
        6 Q5_0 q5_0::Q5_0 recodes;
        7 Q5_1 q5_1::Q5_1 recodes;
        8 Q8_0 q8_0::Q8_0 recodes;
        9 Q8_1 q8_1::Q8_1 recodes;
        10 Q2_K q2_k::Q2K recodes;
        11 Q3_K q3_k::Q3K recodes;
        12 Q4_K q4_k::Q4K recodes;
        13 Q5_K q5_k::Q5K recodes;
        14 Q6_K q6_k::Q6K recodes;
        15 Q8_K q8_k::Q8K recodes;
        16 IQ2_XXS iq2_xxs::IQ2XXS encodes;
        17 IQ2_XS iq2_xs::IQ2XS encodes;
        18 IQ3_XXS iq3_xxs::IQ3XXS encodes;
        19 IQ1_S iq1_s::IQ1S encodes;
        20 IQ4_NL iq4_nl::IQ4NL recodes;
        21 IQ3_S iq3_s::IQ3S encodes;
        22 IQ2_S iq2_s::IQ2S encodes;
        23 IQ4_XS iq4_xs::IQ4XS recodes;
        29 IQ1_M iq1_m::IQ1M encodes;
        34 TQ1_0 tq1_0::TQ1_0 recodes;
        35 TQ2_0 tq2_0::TQ2_0 recodes;
        39 MXFP4 mxfp4::MXFP4 recodes;
        40 NVFP4 nvfp4::NVFP4 recodes;
        41 Q1_0 q1_0::Q1_0 recodes;
        42 Q2_0 q2_0::Q2_0 recodes;
    }
    plain {
        24 I8 1;
        25 I16 2;
        26 I32 4;
        27 I64 8;
        28 F64 8;
    }
    removed {
        4 "Q4_2";
        5 "Q4_3";
        31 "Q4_0_4_4";
        32 "Q4_0_4_8";
        33 "Q4_0_8_8";
        36 "IQ4_NL_4_4";
        37 "IQ4_NL_4_8";
        38 "IQ4_NL_8_8";
    }
}

impl GgmlType {
    /// Its id in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Weights in a block.
    pub const fn block_weights(self) -> usize {
        match self.info() {
            Ok(info) => info.block_weights,
            Err(_) => 1,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self.info() {
            Ok(info) => info.block_bytes,
            Err(plain) => plain.bytes,
        }
    }

    /// Bytes of `weights` weights; `None` where they are not whole blocks or do not fit a `usize`.
    pub const fn row_bytes(self, weights: usize) -> Option<usize> {
        if !weights.is_multiple_of(self.block_weights()) {
            return None;
        }
        (weights / self.block_weights()).checked_mul(self.block_bytes())
    }

    /// Bits a weight takes, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_weights() as f64
    }

    /// Whether it holds weights: [`crate::dequantize`] takes it.
    pub const fn decodes(self) -> bool {
        self.info().is_ok()
    }

    /// Whether and how it can be written: [`crate::quantize`] takes it where this is `Some`.
    pub const fn encodes(self) -> Option<Importance> {
        match self.info() {
            Ok(info) => Some(info.encoder.importance),
            Err(_) => None,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgmlType {
    type Err = UnknownType;

    /// By name, whatever the case.
    fn from_str(name: &str) -> Result<GgmlType, UnknownType> {
        let found = GgmlType::ALL.iter().find(|ty| ty.name().eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| UnknownType::Name(name.to_owned()))
    }
}

/// No such type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownType {
    /// The id was in use once.
    #[error("tensor type {id} ({name}) was removed from ggml: make the file anew from its source")]
    Removed {
        /// The id in the file.
        id: u32,
        /// The type's former name.
        name: &'static str,
    },
    /// The id is of the future, or garbage.
    #[error("tensor type {0} is unknown: the file is damaged, or newer than this program")]
    Id(u32),
    /// No type has the name.
    #[error("no tensor type is named {0:?}; known are {known}", known = names())]
    Name(String),
}

fn names() -> String {
    GgmlType::ALL.iter().map(|ty| ty.name().to_ascii_lowercase()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Widen(Half);

    impl crate::isa::Kernel for Widen {
        type Output = f32;

        fn run<S: Simd>(self, s: S) -> f32 {
            self.0.widen(s)
        }
    }

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            let half = Half(U16::new(bits));
            let of_isas = Isa::available().into_iter().map(|isa| isa.run(Widen(half)));
            for got in of_isas.chain([half.get()]) {
                let same = got.to_bits() == want.to_bits();
                assert!(same || got.is_nan() && want.is_nan(), "{bits:#x}: {got}");
            }
        }
    }
}
