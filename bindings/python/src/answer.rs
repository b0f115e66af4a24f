//! Answers: finished ones, and one that is being written.

use crate::error::OrRaise;
use crate::model::Shared;
use polylora_engine::{Finish, Row};
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard};

/// A row of the engine, with what is told of it in the end.
pub(crate) struct Answer {
    pub(crate) row: Row,
    pub(crate) prompt_tokens: usize,
}

impl Answer {
    fn is_finished(&self) -> bool {
        self.row.completion().finished().is_some()
    }

    fn finish_reason(&self) -> Option<&'static str> {
        self.row.completion().finished().map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length | Finish::ContextFull => "length",
        })
    }

    fn into_completion(mut self) -> Completion {
        Completion {
            text: self.row.take_text(),
            finish_reason: self.finish_reason().unwrap_or("length"),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.row.completion().tokens(),
        }
    }
}

/// Writes all answers to their ends, together.
pub(crate) fn finish(
    py: Python<'_>,
    shared: &Shared,
    mut answers: Vec<Answer>,
) -> PyResult<Vec<Completion>> {
    while !answers.iter().all(Answer::is_finished) {
        py.detach(|| shared.engine().advance(answers.iter_mut().map(|answer| &mut answer.row)))
            .or_raise()?;
        for answer in &mut answers {
            answer.row.take_failure().map_or(Ok(()), Err).or_raise()?;
        }
        py.check_signals()?;
    }
    Ok(answers.into_iter().map(Answer::into_completion).collect())
}

/// What a model wrote.
///
/// finish_reason: "stop" where the model, a stop string or the shape ended it, "length" where the
/// limit or the context did.
#[pyclass(frozen, get_all, module = "polylora")]
pub(crate) struct Completion {
    text: String,
    finish_reason: &'static str,
    prompt_tokens: usize,
    completion_tokens: usize,
}

#[pymethods]
impl Completion {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        let Completion { text, finish_reason, completion_tokens, .. } = self;
        format!("<polylora.Completion {text:?}: {finish_reason}, {completion_tokens} tokens>")
    }
}

/// An answer, piece by piece, while it is written: an iterator of texts.
///
/// finish_reason is None until it has ended.
#[pyclass(frozen, module = "polylora")]
pub(crate) struct Stream {
    shared: Arc<Shared>,
    answer: Mutex<Answer>,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, answer: Answer) -> Stream {
        Stream { shared, answer: Mutex::new(answer) }
    }

    /// Only without Python's lock: another thread may be writing, and wait for that lock.
    fn answer(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().expect("no step panicked")
    }
}

#[pymethods]
impl Stream {
    fn __iter__(this: Py<Stream>) -> Py<Stream> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            let text = py.detach(|| {
                let mut answer = self.answer();
                if !answer.is_finished() {
                    self.shared.engine().advance([&mut answer.row]).or_raise()?;
                    answer.row.take_failure().map_or(Ok(()), Err).or_raise()?;
                }
                let text = answer.row.take_text();
                PyResult::Ok((!text.is_empty() || answer.is_finished()).then_some(text))
            })?;
            py.check_signals()?;
            match text {
                Some(text) if text.is_empty() => return Ok(None),
                Some(text) => return Ok(Some(text)),
                // Half a character, or a part of the prompt.
                None => {}
            }
        }
    }

    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> Option<&'static str> {
        py.detach(|| self.answer().finish_reason())
    }

    #[getter]
    fn prompt_tokens(&self, py: Python<'_>) -> usize {
        py.detach(|| self.answer().prompt_tokens)
    }

    #[getter]
    fn completion_tokens(&self, py: Python<'_>) -> usize {
        py.detach(|| self.answer().row.completion().tokens())
    }
}
