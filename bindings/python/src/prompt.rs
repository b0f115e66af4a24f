//! Prompts as arguments give them: texts or chats, one or several.

use crate::json;
use polylora_engine::Message;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PySequence, PyString};

/// What is to be answered.
pub(crate) enum Prompt {
    Text(String),
    Chat(Vec<Message>),
}

/// One prompt or a batch of them.
pub(crate) enum Prompts {
    One(Prompt),
    Several(Vec<Prompt>),
}

impl Prompts {
    /// A text; a list of messages, which are dicts; or a list of these.
    pub(crate) fn read(value: &Bound<'_, PyAny>) -> PyResult<Prompts> {
        if let Some(items) = items(value)? {
            let is_chat = items.first().is_some_and(|item| item.is_instance_of::<PyDict>());
            if !is_chat {
                let prompts = items.iter().map(Prompt::read);
                return prompts.collect::<PyResult<_>>().map(Prompts::Several);
            }
        }
        Prompt::read(value).map(Prompts::One)
    }
}

impl Prompt {
    fn read(value: &Bound<'_, PyAny>) -> PyResult<Prompt> {
        if let Ok(text) = value.cast::<PyString>() {
            return Ok(Prompt::Text(text.extract()?));
        }
        let Some(items) = items(value)? else { return Err(unfit(value)) };
        if items.is_empty() {
            return Err(PyValueError::new_err("a chat has no messages"));
        }
        match items.iter().find(|item| !item.is_instance_of::<PyDict>()) {
            Some(item) => Err(unfit(item)),
            None => {
                let list = PyList::new(value.py(), &items)?;
                json::from_python("messages", &list).map(Prompt::Chat)
            }
        }
    }
}

/// Of a list or another sequence; a text is none here.
fn items<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
    match value.cast::<PySequence>() {
        Ok(items) if !value.is_instance_of::<PyString>() => {
            items.try_iter()?.collect::<PyResult<_>>().map(Some)
        }
        _ => Ok(None),
    }
}

fn unfit(value: &Bound<'_, PyAny>) -> PyErr {
    let found = value.get_type();
    PyTypeError::new_err(format!(
        "a prompt is a text or a list of messages such as {{'role': 'user', 'content': 'Hi'}}, \
         and a batch a list of prompts; this is {found}"
    ))
}
