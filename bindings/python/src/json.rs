//! Values that have a form in JSON, to Python and from it, by way of Python's own `json`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Dicts, lists, texts and numbers.
pub(crate) fn to_python<'py>(
    py: Python<'py>,
    value: &impl Serialize,
) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(value).expect("a report has no keys but texts");
    py.import("json")?.call_method1("loads", (text,))
}

/// `what` is told where the value cannot be such a one.
pub(crate) fn from_python<T: DeserializeOwned>(
    what: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<T> {
    let text = value.py().import("json")?.call_method1("dumps", (value,))?;
    from_text(what, &text.extract::<String>()?)
}

pub(crate) fn from_text<T: DeserializeOwned>(what: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| PyValueError::new_err(format!("{what}: {error}")))
}
