//! Metadata by the names that an architecture's keys share.

use crate::Error;
use polylora_file::{Gguf, Value};

/// The keys `<architecture>.*` of a model, and a look at its tensors.
pub(crate) struct Keys<'a> {
    architecture: &'static str,
    gguf: &'a Gguf,
}

impl<'a> Keys<'a> {
    pub(super) fn new(architecture: &'static str, gguf: &'a Gguf) -> Keys<'a> {
        Keys { architecture, gguf }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// What is wrong with a key.
    pub(crate) fn error(&self, name: &str, why: impl Into<String>) -> Error {
        Error::Metadata { key: self.key(name), why: why.into() }
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.gguf.metadata().get(&self.key(name))
    }

    /// A number that may be missing.
    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = match value {
            // One for each layer; all the same is all that is known here.
            Value::Array(array) => {
                let mut values = array.iter().map(|value| value.as_u64());
                let first = values.next().flatten();
                if values.any(|value| value != first) {
                    return Err(self.error(name, "differs from layer to layer"));
                }
                first
            }
            value => value.as_u64(),
        };
        let number = number.and_then(|number| usize::try_from(number).ok());
        let fits = number.filter(|&number| number <= MAX_SIZE);
        fits.map(Some).ok_or_else(|| self.error(name, "is not a sensible number"))
    }

    /// A number that must be there, at least 1.
    pub(crate) fn required(&self, name: &str) -> Result<usize, Error> {
        match self.size(name)? {
            None => Err(self.error(name, "is missing")),
            Some(0) => Err(self.error(name, "is zero")),
            Some(number) => Ok(number),
        }
    }

    /// A number with a fraction that may be missing.
    pub(crate) fn float(&self, name: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_f32().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.error(name, "is not a finite number"))
    }

    /// A number with a fraction, or what it is where it is missing or zero.
    pub(crate) fn float_or(&self, name: &str, default: f32) -> Result<f32, Error> {
        Ok(self.float(name)?.filter(|&number| number != 0.0).unwrap_or(default))
    }

    /// A text that may be missing.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        self.value(name)?.as_str()
    }

    /// A switch that may be missing.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A switch for each of `count` layers, where the key has an array.
    pub(crate) fn switches(&self, name: &str, count: usize) -> Result<Option<Vec<bool>>, Error> {
        let Some(Value::Array(array)) = self.value(name) else { return Ok(None) };
        let of = |value| match value {
            Value::Bool(value) => Some(value),
            value => value.as_u64().map(|number| number != 0),
        };
        let switches: Option<Vec<bool>> = array.iter().map(of).collect();
        switches
            .filter(|switches| switches.len() >= count)
            .map(|mut switches| {
                switches.truncate(count);
                Some(switches)
            })
            .ok_or_else(|| self.error(name, format!("is not a list of {count} switches")))
    }

    /// A small tensor's values, where it is there.
    pub(crate) fn values(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let error = |why: String| Error::Tensor { name: name.to_owned(), why };
        if tensor.elements() != len {
            return Err(error(format!("has {} values, not {len}", tensor.elements())));
        }
        let values = tensor.to_f32().map_err(|fault| error(format!("cannot be read: {fault}")))?;
        Ok(Some(values))
    }
}

/// No dimension, count or length of a model reaches this.
const MAX_SIZE: usize = 1 << 32;
