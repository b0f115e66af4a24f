//! The functions over one tensor, on NumPy's arrays.
//!
//! Arrays are copied before Python's lock is let go: other threads may write into them.

use crate::error::OrRaise;
use numpy::{
    AllowTypeChange, Element, PyArray1, PyArrayDyn, PyArrayLike1, PyArrayLike2, PyArrayLikeDyn,
    PyArrayMethods, PyReadonlyArrayDyn,
};
use polylora_adapter::merge::{LowRank, requantize};
use polylora_quant::GgmlType;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A tensor's bytes: an array of them, or `bytes`, which have no shape.
#[derive(FromPyObject)]
pub(crate) enum Data<'py> {
    Bytes(Bound<'py, PyBytes>),
    Array(PyReadonlyArrayDyn<'py, u8>),
}

impl Data<'_> {
    fn to_vec(&self) -> Vec<u8> {
        match self {
            Data::Bytes(bytes) => bytes.as_bytes().to_vec(),
            Data::Array(array) => array.as_array().iter().copied().collect(),
        }
    }

    /// The shape of the weights, where the array's last dimension is the bytes of a row.
    fn shape(&self, ty: GgmlType) -> PyResult<Vec<usize>> {
        let mut shape = match self {
            Data::Bytes(bytes) => vec![bytes.as_bytes().len()],
            Data::Array(array) => array.as_array().shape().to_vec(),
        };
        let Some(last) = shape.last_mut() else { return Ok(shape) };
        let block = ty.row_bytes(ty.block_weights()).expect("it is one block");
        if !last.is_multiple_of(block) {
            return Err(PyValueError::new_err(format!(
                "rows of {last} bytes are no whole blocks of {ty}, which have {block} each"
            )));
        }
        *last = *last / block * ty.block_weights();
        Ok(shape)
    }
}

/// An array of this shape.
pub(crate) fn array<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: Vec<usize>,
) -> PyResult<Bound<'_, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, values).reshape(shape)
}

fn parse(ty: &str) -> PyResult<GgmlType> {
    ty.parse().or_raise()
}

fn count(shape: &[usize]) -> PyResult<usize> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    count.ok_or_else(|| PyValueError::new_err(format!("the shape {shape:?} is impossibly large")))
}

/// The weights in a tensor's bytes, bit for bit as ggml decodes them: a float32 array.
///
/// type: q4_k, q8_0, iq3_xxs, ...: any type of ggml that holds weights.
/// data: bytes, or a uint8 array whose last dimension is a row's bytes.
/// shape: of the weights; None where that of data says it.
#[pyfunction]
#[pyo3(signature = (r#type, data, shape=None))]
pub(crate) fn dequantize<'py>(
    py: Python<'py>,
    r#type: &str,
    data: Data<'py>,
    shape: Option<Vec<usize>>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let ty = parse(r#type)?;
    let shape = shape.map_or_else(|| data.shape(ty), Ok)?;
    let (bytes, weights) = (data.to_vec(), count(&shape)?);
    if ty.row_bytes(weights) != Some(bytes.len()) {
        let (found, why) = (bytes.len(), "do not hold weights of the shape");
        return Err(PyValueError::new_err(format!("{found} bytes of {ty} {why} {shape:?}")));
    }
    let mut out = vec![0.0; weights];
    py.detach(|| polylora_quant::dequantize(ty, &bytes, &mut out)).or_raise()?;
    array(py, out, shape)
}

/// Weights as the bytes of a type, byte for byte as ggml encodes them: a uint8 array whose last
/// dimension is a row's bytes.
///
/// type: one that has an encoder: f16, q8_0, q4_k, ...
/// weights: an array whose last dimension is a row.
/// importance: how much an error in each column counts; one number for each.
#[pyfunction]
#[pyo3(signature = (r#type, weights, importance=None))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    r#type: &str,
    weights: PyArrayLikeDyn<'py, f32, AllowTypeChange>,
    importance: Option<PyArrayLike1<'py, f32, AllowTypeChange>>,
) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    let ty = parse(r#type)?;
    let mut shape = weights.as_array().shape().to_vec();
    let columns = shape.last().copied().unwrap_or(1);
    let row = ty.row_bytes(columns).ok_or_else(|| {
        let block = ty.block_weights();
        let why = format!("rows of {columns} weights are no whole blocks of {ty}");
        PyValueError::new_err(format!("{why}, which have {block} each"))
    })?;
    let weights: Vec<f32> = weights.as_array().iter().copied().collect();
    if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
        let why = format!("the weight {at}, counted through all dimensions, is {}", weights[at]);
        return Err(PyValueError::new_err(why));
    }
    let importance: Option<Vec<f32>> =
        importance.map(|values| values.as_array().iter().copied().collect());
    if let Some(last) = shape.last_mut() {
        *last = row;
    }
    let mut out = vec![0; weights.len() / columns.max(1) * row];
    py.detach(|| requantize(ty, &weights, columns, importance.as_deref(), &mut out)).or_raise()?;
    array(py, out, shape)
}

/// W + scale * up @ down of a quantized weight W, not rounded again: a float32 array [rows, columns].
///
/// type, data: the weight, as for dequantize.
/// down: lora_A, [rank, columns].
/// up: lora_B, [rows, rank].
/// scale: alpha / rank, or what else the adapter has.
/// magnitude: DoRA's, one for each row.
#[pyfunction]
#[pyo3(signature = (r#type, data, down, up, scale=1.0, magnitude=None))]
pub(crate) fn apply<'py>(
    py: Python<'py>,
    r#type: &str,
    data: Data<'py>,
    down: PyArrayLike2<'py, f32, AllowTypeChange>,
    up: PyArrayLike2<'py, f32, AllowTypeChange>,
    scale: f32,
    magnitude: Option<PyArrayLike1<'py, f32, AllowTypeChange>>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let ty = parse(r#type)?;
    let (down, up) = (down.as_array(), up.as_array());
    let (rank, columns, rows) = (down.nrows(), down.ncols(), up.nrows());
    if up.ncols() != rank {
        return Err(PyValueError::new_err(format!(
            "down {:?} and up {:?} do not fit each other: they are (rank, columns) and (rows, rank)",
            down.shape(),
            up.shape()
        )));
    }
    let bytes = data.to_vec();
    let (down, up): (Vec<f32>, Vec<f32>) =
        (down.iter().copied().collect(), up.iter().copied().collect());
    let magnitude: Option<Vec<f32>> =
        magnitude.map(|values| values.as_array().iter().copied().collect());
    let mut out = vec![0.0; count(&[rows, columns])?];
    py.detach(|| {
        let magnitude = magnitude.as_deref();
        let change = LowRank { down: &down, up: &up, rank, scale, magnitude };
        polylora_adapter::merge::apply(ty, &bytes, columns, &[change], &mut out)
    })
    .or_raise()?;
    array(py, out, vec![rows, columns])
}
