//! The keywords of `generate` and `stream`: how an answer is to be written.

use crate::error::OrRaise;
use crate::json;
use polylora_engine::{
    CompletionOptions, Constraint, ConstraintError, ConstraintFactory, SamplingParams,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// What was asked for. Defaults are the engine's, which are llama.cpp's.
#[derive(Default)]
pub(crate) struct Options {
    params: SamplingParams,
    max_tokens: Option<usize>,
    stop: Vec<String>,
    shape: Option<Shape>,
    /// The prompt is continued as it is, without the chat template.
    pub(crate) raw: bool,
    pub(crate) system: Option<String>,
}

/// What the answer must look like.
enum Shape {
    Schema(serde_json::Value),
    Lark(String),
}

/// One arm of [`Options::set`] each.
const KEYWORDS: [&str; 16] = [
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "json_schema",
    "grammar",
    "raw",
    "system",
];

impl Options {
    /// `None` is as good as not there.
    pub(crate) fn read(keywords: Option<&Bound<'_, PyDict>>) -> PyResult<Options> {
        let mut options = Options::default();
        for (name, value) in keywords.into_iter().flatten() {
            let name: String = name.extract()?;
            if !KEYWORDS.contains(&&*name) {
                let known = KEYWORDS.join(", ");
                let why = format!("unexpected keyword argument {name:?}; known are {known}");
                return Err(PyTypeError::new_err(why));
            }
            if !value.is_none() {
                options.set(&name, &value)?;
            }
        }
        options.params.validate().or_raise()?;
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let params = &mut self.params;
        match name {
            "max_tokens" => self.max_tokens = Some(get(name, value)?),
            "temperature" => params.temperature = get(name, value)?,
            "top_k" => params.top_k = get(name, value)?,
            "top_p" => params.top_p = get(name, value)?,
            "min_p" => params.min_p = get(name, value)?,
            "repeat_penalty" => params.repeat_penalty = get(name, value)?,
            "repeat_last_n" => params.repeat_last_n = get(name, value)?,
            "presence_penalty" => params.presence_penalty = get(name, value)?,
            "frequency_penalty" => params.frequency_penalty = get(name, value)?,
            "logit_bias" => params.logit_bias = get(name, value)?,
            "seed" => params.seed = Some(get(name, value)?),
            "stop" => self.stop = texts(name, value)?,
            "json_schema" => {
                let schema = match value.cast::<PyString>() {
                    Ok(text) => json::from_text(name, &text.to_cow()?)?,
                    Err(_) => json::from_python(name, value)?,
                };
                self.set_shape(Shape::Schema(schema))?;
            }
            "grammar" => self.set_shape(Shape::Lark(get(name, value)?))?,
            "raw" => self.raw = get(name, value)?,
            "system" => self.system = Some(get(name, value)?),
            _ => unreachable!("{name} is a keyword without an arm"),
        }
        Ok(())
    }

    fn set_shape(&mut self, shape: Shape) -> PyResult<()> {
        match self.shape.replace(shape) {
            None => Ok(()),
            Some(_) => Err(PyValueError::new_err("json_schema and grammar exclude each other")),
        }
    }

    pub(crate) fn has_shape(&self) -> bool {
        self.shape.is_some()
    }

    /// For one answer. `constraints` are there where [`has_shape`](Options::has_shape) says so.
    pub(crate) fn completion(
        &self,
        constraints: Option<&ConstraintFactory>,
        continues: bool,
    ) -> Result<CompletionOptions, ConstraintError> {
        let constraint = constraints.zip(self.shape.as_ref()).map(|(factory, shape)| match shape {
            Shape::Schema(schema) => Constraint::json_schema(factory, schema),
            Shape::Lark(grammar) => Constraint::lark(factory, grammar),
        });
        Ok(CompletionOptions {
            params: self.params.clone(),
            stop: self.stop.clone(),
            constraint: constraint.transpose()?,
            continues,
            max_tokens: self.max_tokens,
            logprobs: None,
        })
    }
}

fn get<'a, 'py, T: FromPyObject<'a, 'py>>(name: &str, value: &'a Bound<'py, PyAny>) -> PyResult<T> {
    value.extract().map_err(|error: T::Error| {
        let error: PyErr = error.into();
        let why = format!("{name}: {}", error.value(value.py()));
        match error.is_instance_of::<PyTypeError>(value.py()) {
            true => PyTypeError::new_err(why),
            // An overflow.
            false => PyValueError::new_err(why),
        }
    })
}

/// One text or a list of them.
fn texts(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    match value.cast::<PyString>() {
        Ok(text) => Ok(vec![text.extract()?]),
        Err(_) => get(name, value),
    }
}
