//! Adapters as arguments name them.

use crate::error::OrRaise;
use polylora_adapter::AdapterSpec;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};
use std::path::PathBuf;

/// One adapter, or a list of them.
pub(crate) fn specs(value: &Bound<'_, PyAny>) -> PyResult<Vec<AdapterSpec>> {
    match value.cast::<PyList>() {
        Ok(list) => list.iter().map(|item| spec(&item)).collect(),
        Err(_) => Ok(vec![spec(value)?]),
    }
}

/// A text as on the command line (`[NAME=]PATH[@SCALE]`), a path, or a path with a scale.
pub(crate) fn spec(value: &Bound<'_, PyAny>) -> PyResult<AdapterSpec> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_cow()?.parse::<AdapterSpec>().or_raise();
    }
    if let Ok(pair) = value.cast::<PyTuple>() {
        let (path, scale): (PathBuf, f32) = pair.extract().map_err(|_| unfit(value))?;
        if !scale.is_finite() {
            let why = format!("{}: the scale is {scale}, not a finite number", path.display());
            return Err(PyValueError::new_err(why));
        }
        return Ok(AdapterSpec { scale, ..AdapterSpec::new(path) });
    }
    value.extract::<PathBuf>().map(AdapterSpec::new).map_err(|_| unfit(value))
}

fn unfit(value: &Bound<'_, PyAny>) -> PyErr {
    let found = value.repr().map_or_else(|_| String::new(), |text| text.to_string());
    PyTypeError::new_err(format!(
        "an adapter is a text [NAME=]PATH[@SCALE], a path or (path, scale), not {found}"
    ))
}
