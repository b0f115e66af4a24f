//! Products in single precision, of weights decoded a row at a time.

use super::{Scratch, check};
use crate::isa::{Kernel, Simd};
use crate::vector::dots;
use crate::{GgmlType, Isa, RowError, dequantize_with};

/// `out[i * rows + r] = sum over k of weights[r][k] * x[tokens[i]][k]`, for weights of every type,
/// in single precision.
///
/// `weights` holds `rows` whole rows of `columns` weights; `x` is `[any number][columns]`, `out`
/// is `[tokens.len()][rows]`.
///
/// # Errors
/// Where `ty` holds no weights, a length does not fit, or `tokens` names a token that `x` does not
/// hold. `out` is then as it was.
#[allow(clippy::too_many_arguments)] // Two matrices with their shapes, and where to put a third.
pub fn multiply_exact(
    isa: Isa,
    ty: GgmlType,
    weights: &[u8],
    columns: usize,
    x: &[f32],
    tokens: &[u32],
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), RowError> {
    let rows = check(ty, weights, columns, x.len() / columns.max(1), tokens, out)?;
    if rows == 0 {
        return Ok(());
    }
    let row = &mut scratch.row;
    row.resize(columns, 0.0);
    for (r, bytes) in weights.chunks_exact(weights.len() / rows).enumerate() {
        dequantize_with(isa, ty, bytes, row)?;
        isa.run(Row { row, x, tokens, out: &mut out[r..], stride: rows });
    }
    Ok(())
}

/// `out[i * stride]`, for one row of weights.
struct Row<'a> {
    row: &'a [f32],
    x: &'a [f32],
    tokens: &'a [u32],
    out: &'a mut [f32],
    stride: usize,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (pairs, rest) = self.tokens.as_chunks::<2>();
        for (i, tokens) in pairs.iter().enumerate() {
            self.some(s, tokens, 2 * i);
        }
        if let [token] = rest {
            self.some(s, &[*token], 2 * pairs.len());
        }
    }
}

impl Row<'_> {
    /// For the `T` tokens from the `first` one on.
    #[inline(always)]
    fn some<S: Simd, const T: usize>(&mut self, s: S, tokens: &[u32; T], first: usize) {
        let columns = self.row.len();
        let mut x: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            x[t] = &self.x[tokens[t] as usize * columns..][..columns];
        }
        for (t, dot) in dots(s, self.row, x).into_iter().enumerate() {
            self.out[(first + t) * self.stride] = dot;
        }
    }
}
