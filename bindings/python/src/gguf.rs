//! A GGUF file to look into.

use crate::arrays::array;
use crate::error::OrRaise;
use numpy::PyArrayDyn;
use polylora_file::{Tensor, Value};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::path::PathBuf;

/// A GGUF file, mapped; of a split one, any part stands for all.
#[pyclass(frozen, module = "polylora")]
pub(crate) struct Gguf {
    file: polylora_file::Gguf,
    /// Of a large vocabulary it takes a while to make.
    metadata: PyOnceLock<Py<PyDict>>,
}

/// What is known of a tensor without its weights.
#[pyclass(frozen, get_all, module = "polylora")]
pub(crate) struct TensorInfo {
    name: String,
    r#type: &'static str,
    shape: Py<PyTuple>,
    nbytes: usize,
}

#[pymethods]
impl Gguf {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Gguf> {
        let file = py.detach(|| polylora_file::Gguf::open(&path)).or_raise()?;
        Ok(Gguf { file, metadata: PyOnceLock::new() })
    }

    /// `general.architecture`.
    #[getter]
    fn architecture(&self) -> Option<&str> {
        self.file.architecture()
    }

    /// The file, or all parts in order.
    #[getter]
    fn files(&self) -> Vec<PathBuf> {
        self.file.parts().to_vec()
    }

    /// Keys and values. A text that is no UTF-8, as tokens may be, is bytes.
    #[getter]
    fn metadata(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let metadata = self.metadata.get_or_try_init(py, || -> PyResult<_> {
            let dict = PyDict::new(py);
            for (key, value) in self.file.metadata().iter() {
                dict.set_item(key, to_python(py, value)?)?;
            }
            Ok(dict.unbind())
        })?;
        Ok(metadata.clone_ref(py))
    }

    /// Names, types and shapes, in the order of the file; slowest dimension first, as in NumPy.
    #[getter]
    fn tensors(&self, py: Python<'_>) -> PyResult<Vec<TensorInfo>> {
        let info = |tensor: &Tensor| {
            Ok(TensorInfo {
                name: tensor.name.clone(),
                r#type: tensor.ty.name(),
                shape: PyTuple::new(py, &tensor.shape)?.unbind(),
                nbytes: tensor.bytes.len(),
            })
        };
        self.file.tensors().iter().map(info).collect()
    }

    /// A tensor's weights, decoded: a float32 array.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let tensor = self.find(name)?;
        let weights = py.detach(|| tensor.to_f32()).or_raise()?;
        array(py, weights, tensor.shape.clone())
    }

    /// A tensor's bytes: a uint8 array whose last dimension is a row's bytes.
    fn raw<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let tensor = self.find(name)?;
        let mut shape = tensor.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = tensor.row_bytes();
        } else {
            shape.push(tensor.bytes.len());
        }
        array(py, tensor.bytes.to_vec(), shape)
    }

    fn __repr__(&self) -> String {
        let path = self.file.parts().first().cloned().unwrap_or_default();
        format!("<polylora.Gguf {}: {} tensors>", path.display(), self.file.tensors().len())
    }
}

impl Gguf {
    fn find(&self, name: &str) -> PyResult<&Tensor> {
        self.file.tensor(name).ok_or_else(|| {
            let first = self.file.tensors().first();
            let like = first.map_or(String::new(), |t| format!("; they are named like {}", t.name));
            PyKeyError::new_err(format!("the file has no tensor {name}{like}"))
        })
    }
}

#[pymethods]
impl TensorInfo {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.shape.bind(py).repr()?;
        Ok(format!("<polylora.TensorInfo {}: {} {shape}>", self.name, self.r#type))
    }
}

/// A text that is no UTF-8, as tokens may be, is `bytes`.
fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Array(array) => {
            let items = array.iter().map(|item| to_python(py, &item));
            PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::String(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into_bound_py_any(py)?,
            Err(_) => bytes.as_slice().into_bound_py_any(py)?,
        },
        Value::Bool(value) => value.into_bound_py_any(py)?,
        Value::U8(n) => n.into_bound_py_any(py)?,
        Value::I8(n) => n.into_bound_py_any(py)?,
        Value::U16(n) => n.into_bound_py_any(py)?,
        Value::I16(n) => n.into_bound_py_any(py)?,
        Value::U32(n) => n.into_bound_py_any(py)?,
        Value::I32(n) => n.into_bound_py_any(py)?,
        Value::U64(n) => n.into_bound_py_any(py)?,
        Value::I64(n) => n.into_bound_py_any(py)?,
        Value::F32(n) => n.into_bound_py_any(py)?,
        Value::F64(n) => n.into_bound_py_any(py)?,
    })
}
