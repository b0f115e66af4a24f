//! A matrix that lies in an adapter's file, seen the way the base needs it.

use polylora_file::Tensor;
use polylora_quant::dequantize;
use std::ops::Range;
use std::sync::Arc;

/// A matrix that lies in an adapter's file: mapped, not copied.
///
/// Transposes, one expert's part of a stack, one half of a fused projection and the order that
/// rotary embeddings ask for are all views, so an adapter costs no memory until its rows are
/// asked for.
///
/// Element `(i, j)` is element `offset + i * row_stride + j * column_stride` of the tensor, after
/// the order of rotary embeddings has moved `i` (or, in a vector, `j`).
#[derive(Clone, Debug)]
pub struct Factor {
    tensor: Arc<Tensor>,
    offset: usize,
    row_stride: usize,
    column_stride: usize,
    rows: usize,
    columns: usize,
    rotary: Option<Rotary>,
    plus: f32,
}

/// The order of a head's values.
///
/// Hugging Face's models turn value `j` of a head with value `j + d/2`; where llama.cpp turns
/// neighbours instead, the converter moves the rows of q and k so that both compute the same:
///
/// ```text
/// Hugging Face   0  1  2 .. d/2-1 | d/2  d/2+1 ..      W.reshape(heads, 2, d/2, in)
/// GGUF           0  d/2  1  d/2+1  2  ..                .swapaxes(1, 2)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotary {
    /// Values in a head; even.
    pub(crate) head: usize,
}

impl Rotary {
    /// Where row `i` of the GGUF lies in Hugging Face's model.
    fn source(self, i: usize) -> usize {
        let (head, within) = (i / self.head, i % self.head);
        head * self.head + (within % 2) * (self.head / 2) + within / 2
    }
}

impl Factor {
    /// The tensor as it lies: all leading dimensions are rows.
    pub(crate) fn whole(tensor: &Arc<Tensor>) -> Factor {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        Factor::view(tensor, 0, [rows, columns], [columns, 1])
    }

    /// Bytes of memory that this keeps from being freed; none where the file is mapped.
    pub fn held_bytes(&self) -> usize {
        self.tensor.bytes.held()
    }

    /// Any view. The caller has checked that it stays inside the tensor.
    pub(crate) fn view(
        tensor: &Arc<Tensor>,
        offset: usize,
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Factor {
        let tensor = Arc::clone(tensor);
        Factor { tensor, offset, row_stride, column_stride, rows, columns, rotary: None, plus: 0.0 }
    }

    pub(crate) fn transposed(self) -> Factor {
        Factor {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `count` rows from `start`, every `step`th.
    pub(crate) fn select_rows(self, start: usize, count: usize, step: usize) -> Factor {
        Factor {
            offset: self.offset + start * self.row_stride,
            row_stride: self.row_stride * step,
            rows: count,
            ..self
        }
    }

    /// In the order of the base's heads: a matrix's rows, a vector's values.
    pub(crate) fn rotated(self, rotary: Option<Rotary>) -> Factor {
        Factor { rotary, ..self }
    }

    /// With `plus` added to each value.
    pub(crate) fn plus(self, plus: f32) -> Factor {
        Factor { plus, ..self }
    }

    /// The number of rows; 1 for a vector such as a bias or a norm.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row after row.
    pub fn to_f32(&self) -> Vec<f32> {
        self.rows_f32(0..self.rows)
    }

    /// The values of some rows, row after row.
    ///
    /// # Panics
    /// Where `rows` reaches beyond the last one.
    pub fn rows_f32(&self, rows: Range<usize>) -> Vec<f32> {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let mut out = vec![0.0; rows.len() * self.columns];
        if out.is_empty() {
            return out;
        }
        if self.rows_are_whole() {
            self.decode_rows(rows, &mut out);
        } else if self.tensor.ty.block_weights() == 1 {
            self.gather(rows, &mut out);
        } else {
            self.pick(rows, &mut out);
        }
        if self.plus != 0.0 {
            out.iter_mut().for_each(|value| *value += self.plus);
        }
        out
    }

    /// Whether each row lies in one piece, from the beginning of a block to the end of one.
    fn rows_are_whole(&self) -> bool {
        let block = self.tensor.ty.block_weights();
        let columns_stay = self.rotary.is_none() || self.rows > 1;
        self.column_stride == 1
            && columns_stay
            && [self.offset, self.row_stride, self.columns].iter().all(|n| n.is_multiple_of(block))
    }

    /// The place of element `(i, j)` in the tensor.
    fn place(&self, i: usize, j: usize) -> usize {
        let (i, j) = match self.rotary {
            None => (i, j),
            Some(rotary) if self.rows == 1 => (i, rotary.source(j)),
            Some(rotary) => (rotary.source(i), j),
        };
        self.offset + i * self.row_stride + j * self.column_stride
    }

    /// The bytes of `count` weights from the place of element `(i, 0)`.
    fn piece(&self, i: usize, count: usize) -> &[u8] {
        let ty = self.tensor.ty;
        let bytes = |weights: usize| weights / ty.block_weights() * ty.block_bytes();
        &self.tensor.bytes[bytes(self.place(i, 0))..][..bytes(count)]
    }

    /// Rows in one piece, all of them at once where they follow each other.
    fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let ty = self.tensor.ty;
        let follow = self.rotary.is_none() && self.row_stride == self.columns;
        let step = if follow { rows.len() } else { 1 };
        let pieces = rows.step_by(step).zip(out.chunks_exact_mut(step * self.columns));
        for (i, out) in pieces {
            dequantize(ty, self.piece(i, out.len()), out).expect("as many weights as bytes");
        }
    }

    /// Numbers that each stand alone: their bytes are brought together, then decoded.
    fn gather(&self, rows: Range<usize>, out: &mut [f32]) {
        let (ty, bytes) = (self.tensor.ty, &self.tensor.bytes);
        let size = ty.block_bytes();
        let mut row = vec![0; self.columns * size];
        for (i, out) in rows.zip(out.chunks_exact_mut(self.columns)) {
            for (j, number) in row.chunks_exact_mut(size).enumerate() {
                number.copy_from_slice(&bytes[self.place(i, j) * size..][..size]);
            }
            dequantize(ty, &row, out).expect("one number each");
        }
    }

    /// Weights out of blocks, which have to be decoded whole.
    fn pick(&self, rows: Range<usize>, out: &mut [f32]) {
        let all = self.tensor.to_f32().expect("weights, checked when loaded");
        for (i, out) in rows.zip(out.chunks_exact_mut(self.columns)) {
            for (j, value) in out.iter_mut().enumerate() {
                *value = all[self.place(i, j)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylora_quant::GgmlType;

    /// (4, 6): 0, 1, 2, ...
    fn counted() -> Arc<Tensor> {
        let bytes: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
        Arc::new(Tensor::new("t", GgmlType::F32, vec![4, 6], bytes.into()).unwrap())
    }

    #[test]
    fn views_need_no_copies() {
        let whole = Factor::whole(&counted());
        assert_eq!((whole.rows(), whole.columns()), (4, 6));
        assert_eq!(whole.rows_f32(1..2), [6., 7., 8., 9., 10., 11.]);
        assert_eq!(whole.rows_f32(2..2), [] as [f32; 0]);

        let turned = whole.clone().transposed();
        assert_eq!((turned.rows(), turned.columns()), (6, 4));
        assert_eq!(turned.rows_f32(4..6), [4., 10., 16., 22., 5., 11., 17., 23.]);

        let second = whole.clone().select_rows(1, 2, 2);
        assert_eq!(second.to_f32(), [whole.rows_f32(1..2), whole.rows_f32(3..4)].concat());
        assert_eq!(second.plus(0.5).rows_f32(1..2)[0], 18.5);

        let third_of_columns = Factor::view(&counted(), 2, [4, 2], [6, 3]);
        assert_eq!(third_of_columns.to_f32(), [2., 5., 8., 11., 14., 17., 20., 23.]);
    }

    #[test]
    fn heads_are_interleaved() {
        // Two heads of two rows stay; one head of four is shuffled.
        let order = |head| {
            let moved = Factor::whole(&counted()).rotated(Some(Rotary { head }));
            let first: Vec<f32> = moved.to_f32().iter().step_by(6).map(|x| x / 6.0).collect();
            first
        };
        assert_eq!(order(2), [0., 1., 2., 3.]);
        assert_eq!(order(4), [0., 2., 1., 3.]);

        let vector = Factor::view(&counted(), 0, [1, 6], [6, 1]);
        let moved = vector.clone().rotated(Some(Rotary { head: 6 }));
        assert_eq!(moved.to_f32(), [0., 3., 1., 4., 2., 5.]);
        let column = vector.transposed().rotated(Some(Rotary { head: 6 }));
        assert_eq!(column.rows_f32(1..4), [3., 1., 4.]);
    }

    /// Eight blocks of 32 in rows of 64: whole rows, some of a row, and columns.
    #[test]
    fn blocks_are_found() {
        let bytes: Vec<u8> = (0..8u8)
            .flat_map(|i| [[0, 0x3c], [i; 2]].concat().into_iter().chain([i * 16 + 8; 14]))
            .collect();
        let tensor = Tensor::new("t", GgmlType::Q4_0, vec![4, 64], bytes.into()).unwrap();
        let all = tensor.to_f32().unwrap();
        let tensor = Arc::new(tensor);
        let whole = Factor::whole(&tensor);
        assert_eq!(whole.rows_f32(1..3), all[64..192]);
        let halves = Factor::view(&tensor, 32, [4, 32], [64, 1]);
        assert_eq!(halves.rows_f32(3..4), all[3 * 64 + 32..]);
        let columns = whole.transposed();
        assert_eq!(columns.rows_f32(33..34), [33, 97, 161, 225].map(|at| all[at]));
    }
}
