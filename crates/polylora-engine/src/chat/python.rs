//! Values as Python writes them, which templates rely on.

use minijinja::value::{Value, ValueKind};
use std::fmt::Write;

/// What Python prints for a value where it is not what Jinja's own way in Rust gives.
pub(super) fn display(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("None".to_owned()),
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }.to_owned()),
        ValueKind::Number if !value.is_integer() => Some(float(f64::try_from(value.clone()).ok()?)),
        ValueKind::Seq | ValueKind::Map => {
            let mut out = String::new();
            repr(&serde_json::to_value(value).ok()?, &mut out);
            Some(out)
        }
        _ => None,
    }
}

/// Python's `repr` of what JSON can hold.
fn repr(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Null => out.push_str("None"),
        serde_json::Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
        serde_json::Value::Number(value) => number(value, out),
        serde_json::Value::String(text) => repr_text(text, out),
        serde_json::Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(value, out);
            }
            out.push(']');
        }
        serde_json::Value::Object(entries) => {
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr_text(key, out);
                out.push_str(": ");
                repr(value, out);
            }
            out.push('}');
        }
    }
}

fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if char == quote => out.extend(['\\', quote]),
            '\0'..='\x1F' | '\x7F'..='\u{A0}' | '\u{AD}' => {
                write!(out, "\\x{:02x}", char as u32).expect("a string takes everything");
            }
            _ => out.push(char),
        }
    }
    out.push(quote);
}

fn number(number: &serde_json::Number, out: &mut String) {
    match number.as_f64() {
        Some(value) if number.is_f64() => out.push_str(&float(value)),
        _ => out.push_str(&number.to_string()),
    }
}

/// The shortest digits that give the number again; with an exponent where the point would be far
/// away.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    };
    match exponent.parse::<i32>() {
        Ok(-4..16) | Err(_) => with_point(value),
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

/// Without an exponent, but with a point.
fn with_point(value: f64) -> String {
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// How `json.dumps` writes.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    /// Characters beyond ASCII are escaped.
    pub(super) ensure_ascii: bool,
    /// Each element has a line of its own, with so many spaces for each level.
    pub(super) indent: Option<usize>,
    /// Between elements, and between key and value.
    pub(super) separators: Option<(String, String)>,
    /// Keys are in order.
    pub(super) sort_keys: bool,
}

impl JsonStyle {
    pub(super) fn write(&self, value: &serde_json::Value) -> String {
        let mut out = String::new();
        let default = if self.indent.is_some() { "," } else { ", " };
        let separators = match &self.separators {
            Some((item, key)) => (item.as_str(), key.as_str()),
            None => (default, ": "),
        };
        self.write_value(value, separators, 0, &mut out);
        out
    }

    fn write_value(
        &self,
        value: &serde_json::Value,
        separators: (&str, &str),
        level: usize,
        out: &mut String,
    ) {
        match value {
            serde_json::Value::Array(values) if !values.is_empty() => {
                out.push('[');
                for (index, value) in values.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { separators.0 });
                    self.new_line(level + 1, out);
                    self.write_value(value, separators, level + 1, out);
                }
                self.new_line(level, out);
                out.push(']');
            }
            serde_json::Value::Object(entries) if !entries.is_empty() => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                out.push('{');
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { separators.0 });
                    self.new_line(level + 1, out);
                    self.write_text(key, out);
                    out.push_str(separators.1);
                    self.write_value(value, separators, level + 1, out);
                }
                self.new_line(level, out);
                out.push('}');
            }
            serde_json::Value::Number(value) => number(value, out),
            serde_json::Value::String(text) => self.write_text(text, out),
            // Null, truth, and what is empty is written as everywhere.
            other => out.push_str(&other.to_string()),
        }
    }

    fn new_line(&self, level: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        for char in quoted.chars() {
            if self.ensure_ascii && !char.is_ascii() {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a string takes everything");
                }
            } else {
                out.push(char);
            }
        }
    }
}
