//! Scales that stand beside weights.
//!
//! A file may have for a weight `X.weight` a tensor `X.scale`: one value, or one for each expert of
//! a stack, by which the weight's products are multiplied when the model runs. llama.cpp's
//! converter writes them for BitNet, and for NVFP4, whose own scales span few powers of two. What
//! adapters add is not multiplied: `y = s (W x) + B (A x)`.

use polylora_file::Gguf;
use polylora_quant::GgmlType;
use std::ops::Range;

/// What the products of a weight are multiplied by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scales {
    /// One for each expert of a stack, else one; none where the products are taken as they are.
    values: Vec<f32>,
}

/// A scale that cannot be multiplied by.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScaleError {
    /// Integers in the place of a scale.
    #[error("tensor {scale}, which products are multiplied by, is of type {ty}, which holds none")]
    Type {
        /// The tensor.
        scale: String,
        /// Its type.
        ty: GgmlType,
    },
    /// More or fewer than there are experts.
    #[error(
        "tensor {scale}, which products of {weight} are multiplied by, has {found} values where \
         {expected} are expected"
    )]
    Count {
        /// The tensor.
        scale: String,
        /// The weight that it belongs to.
        weight: String,
        /// Its values.
        found: usize,
        /// Experts of the weight.
        expected: usize,
    },
    /// NaN or infinity.
    #[error("tensor {scale}, which products are multiplied by, holds {value}: the file is damaged")]
    NotFinite {
        /// The tensor.
        scale: String,
        /// The first such value.
        value: f32,
    },
}

impl Scales {
    /// The name of the tensor that holds those of a weight; none for what is no weight.
    pub fn name(weight: &str) -> Option<String> {
        weight.strip_suffix(".weight").map(|stem| format!("{stem}.scale"))
    }

    /// Whether a tensor of this name holds scales of a weight of the file, or of what that reads,
    /// which are for runtimes that round it too.
    pub fn are_in(gguf: &Gguf, name: &str) -> bool {
        let stem = name.strip_suffix(".scale").or(name.strip_suffix(".input_scale"));
        stem.is_some_and(|stem| gguf.tensor(&format!("{stem}.weight")).is_some())
    }

    /// Those of a weight, whose shape is `(rows, columns)` or `(experts, rows, columns)`.
    ///
    /// # Errors
    /// Where they are not one for each expert, or no finite numbers.
    pub fn find(gguf: &Gguf, weight: &str, shape: &[usize]) -> Result<Scales, ScaleError> {
        let name = Scales::name(weight);
        let Some(tensor) = name.and_then(|name| gguf.tensor(&name)) else {
            return Ok(Scales::default());
        };
        let scale = || tensor.name.clone();
        let expected = if let [experts, _, _] = *shape { experts } else { 1 };
        if tensor.elements() != expected {
            let (weight, found) = (weight.to_owned(), tensor.elements());
            return Err(ScaleError::Count { scale: scale(), weight, found, expected });
        }
        let values = tensor.to_f32();
        let values = values.map_err(|_| ScaleError::Type { scale: scale(), ty: tensor.ty })?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(&value) => Err(ScaleError::NotFinite { scale: scale(), value }),
            None => Ok(Scales { values }),
        }
    }

    /// Whether products are taken as they are.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// That of an expert; of what is no stack, of the first. 1 where there is none.
    pub fn of_expert(&self, expert: usize) -> f32 {
        self.values.get(expert).copied().unwrap_or(1.0)
    }

    /// Whether some products come to nothing, whatever the weights are.
    pub(crate) fn has_zero(&self) -> bool {
        self.values.contains(&0.0)
    }

    /// Some rows of all `count`, in parts that have one scale.
    pub(crate) fn parts(
        &self,
        rows: &Range<usize>,
        count: usize,
    ) -> impl Iterator<Item = (f32, Range<usize>)> {
        let of_one = (count / self.values.len().max(1)).max(1);
        let experts = rows.start / of_one..rows.end.div_ceil(of_one);
        let rows = rows.clone();
        experts.map(move |expert| {
            let start = rows.start.max(expert * of_one);
            let end = rows.end.min((expert + 1) * of_one);
            (self.of_expert(expert), start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parted_by_experts() {
        let parts = |values: &[f32], rows| {
            let scales = Scales { values: values.to_vec() };
            scales.parts(&rows, 12).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[], 3..9), [(1.0, 3..9)]);
        assert_eq!(parts(&[2.0], 0..12), [(2.0, 0..12)]);
        let three = &[1.0, 2.0, 3.0];
        assert_eq!(parts(three, 3..9), [(1.0, 3..4), (2.0, 4..8), (3.0, 8..9)]);
        assert_eq!(parts(three, 4..8), [(2.0, 4..8)]);
        assert_eq!(parts(three, 4..4), []);
    }
}
