//! Errors as Python knows them.
//!
//! What the system refused is an `OSError` of the kind that Python has for it, arguments that
//! cannot be meant are a `ValueError`, and all else is [`Error`], with the text of the crates:
//! the file, the tensor, the field, and what to do.

use polylora_adapter::merge::MergeError;
use polylora_adapter::rewrite::{PlanError, RewriteError, TypeRulesError};
use polylora_adapter::{Fault, SpecError};
use polylora_engine::{
    ChatError, CompletionError, ConstraintError, EmptyStop, InvalidParams, TokenizerError,
};
use polylora_file::Fault as FileFault;
use polylora_quant::{RowError, UnknownType};
use pyo3::exceptions::{
    PyException, PyFileExistsError, PyFileNotFoundError, PyOSError, PyValueError,
};
use pyo3::{PyErr, PyResult, create_exception};
use std::io;
use std::path::Path;

create_exception!(
    polylora,
    Error,
    PyException,
    "A file is not sound, or what it holds cannot be honoured. The text says which file, tensor \
     or field, and where there is something to be done, what."
);

/// An error of the crates that has an exception in Python.
pub(crate) trait Raised {
    fn raised(&self) -> PyErr;
}

/// `result.or_raise()?`
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T, E: Raised> OrRaise<T> for Result<T, E> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| error.raised())
    }
}

/// An error with those that it comes from. Some tell their source themselves.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn wrong(error: &dyn std::error::Error) -> PyErr {
    Error::new_err(told(error))
}

fn wrong_argument(error: &dyn std::error::Error) -> PyErr {
    PyValueError::new_err(told(error))
}

/// Python chooses the kind of `OSError` by its number.
fn refused(error: &io::Error, doing: &str, path: &Path) -> PyErr {
    let Some(number) = error.raw_os_error() else {
        return PyOSError::new_err(format!("{}: cannot {doing}: {error}", path.display()));
    };
    // Python tells the number itself.
    let reason = error.to_string();
    let reason = reason.split(" (os error").next().unwrap_or(&reason);
    PyOSError::new_err((number, format!("cannot {doing}: {reason}"), path.as_os_str().to_owned()))
}

/// Those whose exception follows from their type alone.
macro_rules! raised {
    ($($error:ty => $exception:ident;)*) => {
        $(impl Raised for $error {
            fn raised(&self) -> PyErr {
                $exception(self)
            }
        })*
    };
}

raised! {
    PlanError => wrong;
    TokenizerError => wrong;
    ChatError => wrong;
    MergeError => wrong_argument;
    RowError => wrong_argument;
    ConstraintError => wrong_argument;
    EmptyStop => wrong_argument;
    InvalidParams => wrong_argument;
    SpecError => wrong_argument;
    TypeRulesError => wrong_argument;
    UnknownType => wrong_argument;
}

impl Raised for polylora_file::Error {
    fn raised(&self) -> PyErr {
        match &self.fault {
            FileFault::Io { doing, error } => refused(error, doing, &self.path),
            FileFault::PartMissing { .. } => PyFileNotFoundError::new_err(told(self)),
            FileFault::Exists => PyFileExistsError::new_err(told(self)),
            FileFault::IsInput(_) => wrong_argument(self),
            _ => wrong(self),
        }
    }
}

impl Raised for polylora_adapter::Error {
    fn raised(&self) -> PyErr {
        match self {
            polylora_adapter::Error::File(error) => error.raised(),
            polylora_adapter::Error::Adapter { path, fault } => match fault {
                Fault::Unrecognized { exists: false, .. } => {
                    PyFileNotFoundError::new_err(told(self))
                }
                Fault::Read { what, error } => refused(error, &format!("read {what}"), path),
                Fault::File(error) => match &error.fault {
                    FileFault::Io { .. } => error.raised(),
                    _ => wrong(self),
                },
                _ => wrong(self),
            },
        }
    }
}

impl Raised for RewriteError {
    fn raised(&self) -> PyErr {
        match self {
            RewriteError::File(error) => error.raised(),
            _ => wrong(self),
        }
    }
}

impl Raised for polylora_engine::Error {
    fn raised(&self) -> PyErr {
        use polylora_engine::Error as Engine;
        match self {
            Engine::KvType { .. } | Engine::Token { .. } | Engine::NoTokens => wrong_argument(self),
            _ => wrong(self),
        }
    }
}

impl Raised for CompletionError {
    fn raised(&self) -> PyErr {
        match self {
            CompletionError::Params(error) => error.raised(),
            CompletionError::Stop(error) => error.raised(),
            CompletionError::Engine(error) => error.raised(),
            // What can go wrong in the midst of an answer is no fault of an argument.
            CompletionError::Constraint(_) | CompletionError::Sample(_) => wrong(self),
        }
    }
}
