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
    /// Matches the adapter to a base; returns the hash of its content.
    pub(crate) read: fn(&Path, &mut Matching<'_>) -> Result<String, Fault>,
    /// Describes it without a base.
    pub(crate) summarize: fn(&Path) -> Result<Summary, Fault>,
}

const FORMATS: &[Format] = &[peft::FORMAT, gguf::FORMAT];

/// The format of what lies at `path`.
pub(crate) fn recognize(path: &Path) -> Result<&'static Format, Fault> {
    let found = FORMATS.iter().find(|format| (format.recognizes)(path));
    found.ok_or_else(|| Fault::Unrecognized {
        known: FORMATS.iter().map(|format| format.expects).collect::<Vec<_>>().join(", or "),
        exists: path.exists(),
    })
}
