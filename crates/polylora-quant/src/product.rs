//! Matrix products of weights with a batch of tokens.
//!
//! [`multiply`] is the fast way, for types of blocks: the tokens are rounded to eight bits once
//! ([`Activations`]), and codes are multiplied by codes. [`multiply_exact`] decodes the weights
//! and works in single precision, for every type. [`FloatPanels`] holds small matrices of floats,
//! such as the factors of an adapter.
//!
//! There are two [ways](Way) through a product, for few tokens and for many, which take their sums
//! in different orders; on each, what a token gives does not depend on the tokens beside it.
//!
//! Nothing here starts a thread: an engine gives each of its threads some whole rows, and a
//! [`Scratch`] of its own. Sums are taken in an order, and with fused operations, that depend on
//! the instruction set; so does the last bit of a result.

mod activations;
mod ahead;
mod exact;
mod float_panels;
pub(crate) mod panels;
pub(crate) mod rows;
mod slab;

pub use activations::{ACTIVATION_GROUP, ActivationMut, Activations};
pub use exact::multiply_exact;
pub use float_panels::FloatPanels;
pub(crate) use float_panels::{Columns, sixteen};

use crate::{GgmlType, Isa, RowError};
use panels::{Panels, Sums};
use rows::Rows;

/// How tokens go through a product. Both ways give the same but for the order of sums, which is
/// each way's own and does not depend on how many tokens there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each row of weights is decoded and multiplied at once.
    Few,
    /// Weights are packed into panels first.
    Many,
}

impl Way {
    /// The faster one for so many tokens.
    pub fn of(tokens: usize) -> Way {
        if tokens <= rows::MOST { Way::Few } else { Way::Many }
    }
}

/// What the products work in; one for each thread, to be used again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    row: Vec<f32>,
    panels: Option<Box<Panels>>,
    sums: Vec<Sums>,
}

/// `out[i * rows + r] = sum over k of weights[r][k] * x[tokens[i]][k]`, for weights of a type of
/// blocks.
///
/// `weights` holds `rows` whole rows of `x.columns()` weights; `out` is `[tokens.len()][rows]`.
/// `tokens` may name tokens in any order, any of them several times. `ahead` is what is needed
/// next; it is asked for from memory meanwhile.
///
/// # Errors
/// Where `ty` is not a type of blocks (see [`multiply_exact`]), a length does not fit, or `tokens`
/// names a token that `x` does not hold. `out` is then as it was.
#[allow(clippy::too_many_arguments)] // Weights, tokens, and where to put their products.
pub fn multiply(
    isa: Isa,
    way: Way,
    ty: GgmlType,
    weights: &[u8],
    x: &Activations,
    tokens: &[u32],
    out: &mut [f32],
    scratch: &mut Scratch,
    ahead: &[&[u8]],
) -> Result<(), RowError> {
    let rows = check(ty, weights, x.columns(), x.tokens(), tokens, out)?;
    let info = ty.info().map_err(|_| RowError::NoWeights(ty))?;
    let blocks = info.blocks.as_ref().ok_or(RowError::NotBlocks(ty))?;
    if rows == 0 || tokens.is_empty() {
        return Ok(());
    }
    let what = Rows { weights, x, tokens, out, stride: rows, ahead };
    match way {
        Way::Few => (blocks.rows)(isa, what),
        Way::Many => {
            let panels = scratch.panels.get_or_insert_with(|| Box::new(Panels::ZERO));
            panels::multiply_panels(isa, blocks.panels, what, panels, &mut scratch.sums);
        }
    }
    Ok(())
}

/// The number of rows, where everything fits.
fn check(
    ty: GgmlType,
    weights: &[u8],
    columns: usize,
    held: usize,
    tokens: &[u32],
    out: &[f32],
) -> Result<usize, RowError> {
    if !ty.decodes() {
        return Err(RowError::NoWeights(ty));
    }
    let row_bytes = ty.row_bytes(columns).filter(|&bytes| {
        if bytes == 0 { weights.is_empty() } else { weights.len().is_multiple_of(bytes) }
    });
    let Some(row_bytes) = row_bytes else {
        return Err(RowError::Length { ty, weights: columns, bytes: weights.len() });
    };
    let rows = weights.len() / row_bytes.max(1);
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= held) {
        return Err(RowError::Token { token, held });
    }
    if out.len() != rows * tokens.len() {
        return Err(RowError::Output { rows, tokens: tokens.len(), out: out.len() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
