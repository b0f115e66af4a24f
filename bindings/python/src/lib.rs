//! The Python package `polylora`: merging, running and looking at GGUF models from Python.
//!
//! Only what Python needs of arguments, arrays, errors and its lock is here; the work is the
//! crates'. Types are in `_polylora.pyi`; the documents here are what `help` shows.

mod answer;
mod arrays;
mod error;
mod gguf;
mod json;
mod merge;
mod model;
mod options;
mod prompt;
mod specs;

use pyo3::prelude::*;

#[pymodule]
mod _polylora {
    #[pymodule_export]
    use crate::answer::{Completion, Stream};
    #[pymodule_export]
    use crate::arrays::{apply, dequantize, quantize};
    #[pymodule_export]
    use crate::error::Error;
    #[pymodule_export]
    use crate::gguf::{Gguf, TensorInfo};
    #[pymodule_export]
    use crate::inspect;
    #[pymodule_export]
    use crate::merge::{MergeReport, Mismatch, Survival, TensorReport, merge};
    #[pymodule_export]
    use crate::model::{Adapter, Model};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "its name in Python")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// What is in a model, an adapter of either kind, or an importance matrix: a dict, the same that
/// `polylora inspect --json` prints. Long arrays are told by their beginning; see Gguf for all.
#[pyfunction]
fn inspect(py: Python<'_>, path: std::path::PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let found = py.detach(|| polylora_adapter::inspect(&path));
    json::to_python(py, &error::OrRaise::or_raise(found)?)
}
