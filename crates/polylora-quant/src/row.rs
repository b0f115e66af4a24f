//! Rows of blocks: the way from bytes to weights and back, the same for every format.

use crate::format::{Codes, Encode, Float, Format, GgmlType, Importance, MAX_BLOCK, Recode};
use crate::isa::{Isa, Kernel, Simd};
use zerocopy::FromBytes;

/// The slices do not fit each other, or the type cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Integers and doubles are not decoded.
    #[error("{0} does not hold weights")]
    NoWeights(GgmlType),
    /// The format is of no use without importances.
    #[error("{0} cannot be encoded without importances")]
    NeedsImportance(GgmlType),
    /// Not whole blocks, or bytes and weights of different count.
    #[error("{weights} weights of {ty} do not take {bytes} bytes")]
    Length {
        /// The type.
        ty: GgmlType,
        /// Number of weights.
        weights: usize,
        /// Number of bytes.
        bytes: usize,
    },
    /// Not whole blocks, or not as many.
    #[error("{before} and {after} bytes are not the same number of blocks of {ty}")]
    Blocks {
        /// The type.
        ty: GgmlType,
        /// Bytes of the first.
        before: usize,
        /// Bytes of the second.
        after: usize,
    },
    /// One importance for each weight.
    #[error("{importance} importances for a row of {weights} weights")]
    Importance {
        /// Number of weights.
        weights: usize,
        /// Number of importances.
        importance: usize,
    },
    /// Products of codes are for types of blocks.
    #[error("{0} has no codes to multiply: multiply it in single precision")]
    NotBlocks(GgmlType),
    /// One result for each row and token.
    #[error("{out} places for the products of {rows} rows and {tokens} tokens")]
    Output {
        /// Number of weight rows.
        rows: usize,
        /// Number of tokens asked for.
        tokens: usize,
        /// Length of the output.
        out: usize,
    },
    /// No such token.
    #[error("token {token} of a batch of {held}")]
    Token {
        /// The one asked for.
        token: u32,
        /// How many there are.
        held: usize,
    },
}

pub(crate) fn check_length(ty: GgmlType, weights: usize, bytes: usize) -> Result<(), RowError> {
    if ty.row_bytes(weights) == Some(bytes) {
        Ok(())
    } else {
        Err(RowError::Length { ty, weights, bytes })
    }
}

/// Decodes whole blocks of type `ty` into weights, bit for bit as ggml does.
///
/// Any bytes decode; whether the weights are finite is for the caller to ask.
///
/// # Errors
/// Where `ty` holds no weights, or `bytes` is not the size of `out.len()` weights.
///
/// ```
/// # use polylora_quant::{GgmlType, dequantize};
/// // One block of Q4_0: scale 0.5 as a half, then 32 codes of four bits, offset by 8.
/// let mut block = vec![0x00, 0x38];
/// block.extend([0xa7; 16]);
/// let mut weights = [0.0; 32];
/// dequantize(GgmlType::Q4_0, &block, &mut weights)?;
/// assert_eq!((weights[0], weights[16]), (-0.5, 1.0));
/// # Ok::<(), polylora_quant::RowError>(())
/// ```
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), RowError> {
    dequantize_with(Isa::best(), ty, bytes, out)
}

/// As [`dequantize`], on a chosen instruction set.
pub fn dequantize_with(
    isa: Isa,
    ty: GgmlType,
    bytes: &[u8],
    out: &mut [f32],
) -> Result<(), RowError> {
    let info = ty.info().map_err(|_| RowError::NoWeights(ty))?;
    check_length(ty, out.len(), bytes.len())?;
    (info.dequantize)(isa, bytes, out);
    Ok(())
}

/// Encodes one row of weights (or, without `importance`, any number of whole blocks) as type
/// `ty`, byte for byte as ggml's reference does.
///
/// `importance` has one value for each weight of the row: how much an error there counts. See
/// [`GgmlType::encodes`] for what a type does with it.
///
/// # Errors
/// Where `ty` holds no weights or needs importance, or a length does not fit. Weights that are not finite encode to
/// something, as in ggml; ask before.
pub fn quantize(
    ty: GgmlType,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), RowError> {
    quantize_with(Isa::best(), ty, weights, importance, out)
}

/// As [`quantize`], on a chosen instruction set.
pub fn quantize_with(
    isa: Isa,
    ty: GgmlType,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), RowError> {
    let info = ty.info().map_err(|_| RowError::NoWeights(ty))?;
    check_length(ty, weights.len(), out.len())?;
    match importance {
        None if info.encoder.importance == Importance::Required => {
            return Err(RowError::NeedsImportance(ty));
        }
        Some(importance) if importance.len() != weights.len() => {
            let (weights, importance) = (weights.len(), importance.len());
            return Err(RowError::Importance { weights, importance });
        }
        _ => {}
    }
    (info.encoder.quantize)(isa, weights, importance, out);
    Ok(())
}

/// Counts the weights whose code differs between two encodings of one type: how much of a change
/// reached the grid, whatever happened to the scales.
///
/// # Errors
/// Where `ty` holds no weights, or the slices are not whole blocks of one length.
pub fn changed_codes(ty: GgmlType, before: &[u8], after: &[u8]) -> Result<usize, RowError> {
    /// Blocks that are decoded at a time: what a first cache holds.
    const TOGETHER: usize = 32;

    let info = ty.info().map_err(|_| RowError::NoWeights(ty))?;
    if before.len() != after.len() || !before.len().is_multiple_of(info.block_bytes) {
        return Err(RowError::Blocks { ty, before: before.len(), after: after.len() });
    }
    let Some(of_blocks) = &info.blocks else {
        let numbers =
            before.chunks_exact(info.block_bytes).zip(after.chunks_exact(info.block_bytes));
        return Ok(numbers.filter(|(before, after)| before != after).count());
    };
    let mut decoded = [const { [const { Codes::ZERO }; TOGETHER] }; 2];
    let mut changed = 0;
    let together = TOGETHER * info.block_bytes;
    for pair in before.chunks(together).zip(after.chunks(together)) {
        for (bytes, codes) in [pair.0, pair.1].into_iter().zip(&mut decoded) {
            (of_blocks.decode)(Isa::best(), bytes, codes);
        }
        let [before, after] = &decoded;
        for (before, after) in before.iter().zip(after).take(pair.0.len() / info.block_bytes) {
            let pairs = before.codes.iter().zip(&after.codes).take(info.block_weights);
            changed += pairs.map(|(a, b)| u32::from(a != b)).sum::<u32>() as usize;
        }
    }
    Ok(changed)
}

/// A tensor's bytes as blocks. The lengths were checked by the caller.
pub(crate) fn blocks<
    B: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned,
>(
    bytes: &[u8],
) -> &[B] {
    <[B]>::ref_from_bytes(bytes).expect("whole blocks")
}

pub(crate) fn blocks_mut<B>(bytes: &mut [u8]) -> &mut [B]
where
    B: FromBytes
        + zerocopy::IntoBytes
        + zerocopy::Immutable
        + zerocopy::KnownLayout
        + zerocopy::Unaligned,
{
    <[B]>::mut_from_bytes(bytes).expect("whole blocks")
}

pub(crate) fn dequantize_blocks<F: Format>(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    struct Rows<'a, F: Format>(&'a [F::Block], &'a mut [f32]);

    impl<F: Format> Kernel for Rows<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let mut codes = Codes::ZERO;
            for (block, out) in self.0.iter().zip(self.1.chunks_exact_mut(F::WEIGHTS)) {
                F::decode(s, block, &mut codes);
                let groups = codes.codes[..F::WEIGHTS].chunks_exact(F::GROUP);
                for (g, (group, out)) in groups.zip(out.chunks_exact_mut(F::GROUP)).enumerate() {
                    let (scale, min) = (codes.scales[g], codes.mins[g]);
                    for (&code, out) in group.iter().zip(out) {
                        *out = scale * f32::from(code) - min;
                    }
                }
            }
        }
    }

    isa.run(Rows::<F>(blocks(bytes), out));
}

pub(crate) fn quantize_blocks<F: Encode>(
    isa: Isa,
    weights: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    struct Row<'a, F: Format>(&'a [f32], Option<&'a [f32]>, &'a mut [F::Block]);

    impl<F: Encode> Kernel for Row<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            F::encode(simd, self.0, self.1, self.2);
        }
    }

    isa.run(Row::<F>(weights, importance, blocks_mut(out)));
}

pub(crate) fn decode_blocks<F: Format>(isa: Isa, bytes: &[u8], out: &mut [Codes]) {
    struct Of<'a, F: Format>(&'a [F::Block], &'a mut [Codes]);

    impl<F: Format> Kernel for Of<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (block, out) in self.0.iter().zip(self.1) {
                F::decode(s, block, out);
            }
        }
    }

    isa.run(Of::<F>(blocks(bytes), out));
}

/// See [`Recode::recode`].
pub(crate) fn recode_block<F: Recode>(block: &mut [u8], codes: &[u8; MAX_BLOCK]) {
    let [block] = blocks_mut(block) else { unreachable!("the bytes of one block") };
    F::recode(block, codes);
}

pub(crate) fn widen<F: Float>(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    struct Row<'a, F: Float>(&'a [F::Bits], &'a mut [f32]);

    impl<F: Float> Kernel for Row<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            F::widen(s, self.0, self.1);
        }
    }

    isa.run(Row::<F>(blocks(bytes), out));
}

pub(crate) fn narrow<F: Float>(isa: Isa, weights: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    struct Row<'a, F: Float>(&'a [f32], &'a mut [F::Bits]);

    impl<F: Float> Kernel for Row<'_, F> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            F::narrow(self.0, self.1);
        }
    }

    isa.run(Row::<F>(weights, blocks_mut(out)));
}
