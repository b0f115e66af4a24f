//! A tensor: a type, a shape, and bytes that fit both.

use crate::Bytes;
use polylora_quant::{GgmlType, RowError, dequantize};
use std::ops::Range;

/// A tensor in a file, its bytes mapped.
///
/// However it came about, `bytes` is as long as `ty` and `shape` say.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// The type of its blocks.
    pub ty: GgmlType,
    /// Slowest dimension first, columns last, as in PyTorch and safetensors: the reverse of
    /// GGUF's `ne`.
    pub shape: Vec<usize>,
    /// Row after row of whole blocks.
    pub bytes: Bytes,
}

/// A shape that does not go with its type or its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Rows are whole blocks.
    #[error("rows of {columns} weights are no whole blocks of {ty}, which have {block} each",
        block = .ty.block_weights())]
    Columns {
        /// The type.
        ty: GgmlType,
        /// The last dimension.
        columns: usize,
    },
    /// The product of the dimensions does not fit a `usize`.
    #[error("the shape {0:?} is impossibly large")]
    TooLarge(Vec<usize>),
    /// Bytes of another tensor.
    #[error("{found} bytes for a shape and type that take {expected}")]
    Length {
        /// What shape and type take.
        expected: usize,
        /// What is there.
        found: usize,
    },
}

/// Columns and rows: the last dimension, and the product of the others.
fn columns_and_rows(shape: &[usize]) -> Option<(usize, usize)> {
    let (&columns, others) = shape.split_last().unwrap_or((&1, &[]));
    Some((columns, others.iter().try_fold(1usize, |rows, &size| rows.checked_mul(size))?))
}

/// Bytes of a tensor of this type and shape.
pub(crate) fn tensor_bytes(ty: GgmlType, shape: &[usize]) -> Result<usize, ShapeError> {
    let too_large = || ShapeError::TooLarge(shape.to_vec());
    let (columns, rows) = columns_and_rows(shape).ok_or_else(too_large)?;
    if !columns.is_multiple_of(ty.block_weights()) {
        return Err(ShapeError::Columns { ty, columns });
    }
    columns.checked_mul(rows).ok_or_else(too_large)?;
    ty.row_bytes(columns).and_then(|row| row.checked_mul(rows)).ok_or_else(too_large)
}

impl Tensor {
    /// A tensor of bytes that the caller has.
    ///
    /// # Errors
    /// Where the bytes are not as many as type and shape say, or these do not go together.
    pub fn new(
        name: impl Into<String>,
        ty: GgmlType,
        shape: Vec<usize>,
        bytes: Bytes,
    ) -> Result<Tensor, ShapeError> {
        let expected = tensor_bytes(ty, &shape)?;
        if bytes.len() != expected {
            return Err(ShapeError::Length { expected, found: bytes.len() });
        }
        Ok(Tensor { name: name.into(), ty, shape, bytes })
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.rows() * self.columns()
    }

    /// The last dimension; 1 for a scalar.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of the other dimensions; 1 for a vector or scalar.
    pub fn rows(&self) -> usize {
        columns_and_rows(&self.shape).map_or(0, |(_, rows)| rows)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.columns()).unwrap_or(0)
    }

    /// The bytes of some rows.
    ///
    /// # Panics
    /// Where `rows` reaches beyond the last, as a slice does.
    pub fn rows_bytes(&self, rows: Range<usize>) -> &[u8] {
        let row = self.row_bytes();
        &self.bytes[rows.start * row..rows.end * row]
    }

    /// Decodes some rows; `out` takes `rows.len() * columns` weights.
    ///
    /// # Errors
    /// Where the type holds no weights, or `out` is of another length.
    ///
    /// # Panics
    /// Where `rows` reaches beyond the last, as a slice does.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), RowError> {
        dequantize(self.ty, self.rows_bytes(rows), out)
    }

    /// All weights, decoded.
    ///
    /// # Errors
    /// Where the type holds no weights.
    pub fn to_f32(&self) -> Result<Vec<f32>, RowError> {
        if !self.ty.decodes() {
            return Err(RowError::NoWeights(self.ty));
        }
        let mut out = vec![0.0; self.elements()];
        dequantize(self.ty, &self.bytes, &mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(shape: &[usize], values: &[f32]) -> Result<Tensor, ShapeError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new("t", GgmlType::F32, shape.to_vec(), bytes.into())
    }

    #[test]
    fn rows_are_the_product_of_all_but_the_last() {
        let tensor = f32s(&[2, 2, 3], &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]).unwrap();
        assert_eq!((tensor.rows(), tensor.columns(), tensor.elements()), (4, 3, 12));
        let mut two_rows = [0.0; 6];
        tensor.dequantize_rows(1..3, &mut two_rows).unwrap();
        assert_eq!(two_rows, [3., 4., 5., 6., 7., 8.]);
        assert!(tensor.dequantize_rows(1..3, &mut [0.0; 5]).is_err());
        assert_eq!(tensor.to_f32().unwrap()[11], 11.0);
    }

    #[test]
    fn scalars_and_empty_tensors_have_shapes_too() {
        let scalar = f32s(&[], &[7.0]).unwrap();
        assert_eq!((scalar.rows(), scalar.columns()), (1, 1));
        assert_eq!(f32s(&[3, 0], &[]).unwrap().elements(), 0);
    }

    #[test]
    fn a_shape_must_go_with_its_type_and_bytes() {
        let q4_0 = |shape: &[usize], bytes| {
            Tensor::new("t", GgmlType::Q4_0, shape.to_vec(), vec![0; bytes].into())
        };
        assert!(q4_0(&[2, 32], 36).is_ok());
        assert_eq!(
            q4_0(&[2, 31], 36).unwrap_err(),
            ShapeError::Columns { ty: GgmlType::Q4_0, columns: 31 }
        );
        assert_eq!(q4_0(&[2, 32], 35).unwrap_err(), ShapeError::Length { expected: 36, found: 35 });
        for shape in [vec![1 << 32, 1 << 32], vec![1 << 62, 1], vec![1 << 33, 1 << 33, 0]] {
            assert_eq!(f32s(&shape, &[]).unwrap_err(), ShapeError::TooLarge(shape));
        }
    }
}
