//! Tools: functions that a model may call, as the API has them.

use crate::app::Base;
use crate::error::ApiError;
use crate::id;
use crate::tool_calls::{Manner, Piece, Reader, Tool};
use polylora_engine::{ChatTemplate, Constraint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Which tools a model is to call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    Mode(ToolMode),
    /// This one.
    Named {
        function: NamedFunction,
    },
}

/// Whether a model is to call tools.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolMode {
    None,
    Auto,
    /// One at least.
    Required,
}

/// A function by its name.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NamedFunction {
    name: String,
}

/// A tool, of which nothing else can be read.
#[derive(Deserialize)]
struct Described {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    parameters: Option<Value>,
}

/// A call of a function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Call {
    index: usize,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

/// A function that is called.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CalledFunction {
    name: String,
    /// JSON.
    arguments: String,
}

/// How a request uses tools.
pub(super) struct ToolUse {
    manner: Option<&'static Manner>,
    /// As the template is to show them.
    described: Option<Value>,
    /// Those of which one must be called.
    forced: Vec<Tool>,
}

impl ToolUse {
    pub(super) fn new(
        template: &ChatTemplate,
        described: &[Value],
        choice: Option<&ToolChoice>,
    ) -> Result<ToolUse, ApiError> {
        if described.is_empty() || matches!(choice, Some(ToolChoice::Mode(ToolMode::None))) {
            return Ok(ToolUse { manner: None, described: None, forced: Vec::new() });
        }
        let manner = Manner::of_template(&template.source_for_tools()).ok_or_else(|| {
            let message = "This model's chat template shows no tools, or has calls written in a \
                           manner that is not known here.";
            ApiError::bad_param("tools", message)
        })?;
        let tools = described.iter().enumerate().map(|(at, tool)| {
            let tool = Described::deserialize(tool).map_err(|error| {
                ApiError::bad_param(format!("tools[{at}]"), format!("tools[{at}]: {error}"))
            })?;
            let parameters =
                tool.function.parameters.unwrap_or_else(|| json!({ "type": "object" }));
            Ok(Tool { name: tool.function.name, parameters })
        });
        let tools: Vec<Tool> = tools.collect::<Result<_, ApiError>>()?;
        let forced = match choice {
            None | Some(ToolChoice::Mode(ToolMode::Auto | ToolMode::None)) => Vec::new(),
            Some(ToolChoice::Mode(ToolMode::Required)) => tools,
            Some(ToolChoice::Named { function }) => {
                let named = tools.into_iter().find(|tool| tool.name == function.name);
                let missing = || format!("There is no tool {:?}.", function.name);
                vec![named.ok_or_else(|| ApiError::bad_param("tool_choice", missing()))?]
            }
        };
        let described = Some(Value::Array(described.to_vec()));
        Ok(ToolUse { manner: Some(manner), described, forced })
    }

    /// What the template is given.
    pub(super) fn described(&self) -> Option<&Value> {
        self.described.as_ref()
    }

    /// What the answer begins with, for the prompt to end with.
    pub(super) fn prefix(&self) -> &'static str {
        self.manner.filter(|_| !self.forced.is_empty()).map_or("", Manner::prefix)
    }

    /// What the answer must look like.
    pub(super) fn constraint(&self, base: &Base) -> Result<Option<Constraint>, ApiError> {
        let Some(manner) = self.manner.filter(|_| !self.forced.is_empty()) else { return Ok(None) };
        let made = Constraint::json_schema(base.constraints()?, &manner.schema(&self.forced));
        made.map(Some).map_err(|error| ApiError::bad_param("tools", error.to_string()))
    }

    /// Reads one answer.
    pub(super) fn reader(&self) -> Calls {
        let reader = self.manner.map(|manner| match self.forced.is_empty() {
            true => Reader::new(manner),
            false => Reader::forced(manner),
        });
        Calls { reader, count: 0 }
    }
}

/// Finds the calls in an answer.
pub(super) struct Calls {
    reader: Option<Reader>,
    count: usize,
}

impl Calls {
    /// The text, and the calls, that are certain.
    pub(super) fn push(&mut self, text: &str) -> (String, Vec<Call>) {
        match &mut self.reader {
            None => (text.to_owned(), Vec::new()),
            Some(reader) => {
                let pieces = reader.push(text);
                self.sort(pieces)
            }
        }
    }

    /// The rest.
    pub(super) fn finish(&mut self) -> (String, Vec<Call>) {
        let rest = self.reader.as_mut().map(Reader::finish).unwrap_or_default();
        self.sort(rest)
    }

    pub(super) fn has_calls(&self) -> bool {
        self.count > 0
    }

    fn sort(&mut self, pieces: Vec<Piece>) -> (String, Vec<Call>) {
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(more) => text += &more,
                Piece::Call { name, arguments } => {
                    let function = CalledFunction { name, arguments };
                    let id = id::new("call_");
                    calls.push(Call { index: self.count, id, kind: "function", function });
                    self.count += 1;
                }
            }
        }
        (text, calls)
    }
}
