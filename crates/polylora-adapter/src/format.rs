//! The kinds of adapter: one file each, and their table.

mod gguf;
mod peft;

use crate::adapter::Matching;
use crate::error::Fault;
use crate::summary::Summary;
use std::path::Path;

/// A kind of adapter.
pub(crate) struct Format {
    /// What a path of this kind looks like, for a message.
    pub(crate) expects: &'static str,
    /// Whether the path is of this kind.
    pub(crate) recognizes: fn(&Path) -> bool,
    /// The adapters of this kind in a listing of files whose content is not at hand.
    pub(crate) among: fn(&[&str]) -> Vec<Listed>,
    /// Matches the adapter to a base; returns the hash of its content.
    pub(crate) read: fn(&Path, &mut Matching<'_>) -> Result<String, Fault>,
    /// Describes it without a base.
    pub(crate) summarize: fn(&Path) -> Result<Summary, Fault>,
}

const FORMATS: &[Format] = &[peft::FORMAT, gguf::FORMAT];

/// An adapter that a listing of files tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The path to load it by, relative as the files' names are; empty for the listing's root.
    pub path: String,
    /// The files that it consists of.
    pub files: Vec<String>,
}

/// The adapters that the names of files, with `/` between folders, tell of. A GGUF's name does not
/// say whether it is an adapter: none is among them.
pub fn adapters_among(names: &[&str]) -> Vec<Listed> {
    FORMATS.iter().flat_map(|format| (format.among)(names)).collect()
}

/// The format of what lies at `path`.
pub(crate) fn recognize(path: &Path) -> Result<&'static Format, Fault> {
    let found = FORMATS.iter().find(|format| (format.recognizes)(path));
    found.ok_or_else(|| Fault::Unrecognized {
        known: FORMATS.iter().map(|format| format.expects).collect::<Vec<_>>().join(", or "),
        exists: path.exists(),
    })
}
