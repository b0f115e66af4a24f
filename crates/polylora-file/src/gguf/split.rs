//! Split files: `NAME-00001-of-00003.gguf` and its siblings, read as one.

use super::limits::MAX_PARTS;
use super::{Gguf, Metadata};
use crate::{Bytes, Error, Fault};
use std::path::{Path, PathBuf};

/// Which part this is, from 0.
pub(super) const NO: &str = "split.no";
/// How many parts there are.
pub(super) const COUNT: &str = "split.count";
/// How many tensors they have together.
pub(super) const TENSORS: &str = "split.tensors.count";

/// Opens a file, with all other parts where it is one of several.
pub(super) fn open(path: &Path) -> Result<Gguf, Error> {
    let opened = open_part(path)?;
    let Some((no, count)) = part_of(path, opened.metadata())? else {
        return Ok(opened);
    };
    let paths = siblings(path, no, count)?;
    // Before any is opened: the first thing to know is what is still to be fetched.
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Fault::PartMissing { of: path.to_owned() }.at(missing));
    }
    let mut parts = Vec::new();
    for (index, path) in (0u64..).zip(&paths) {
        let part = if index == no { opened.clone() } else { open_part(path)? };
        let (found_no, found_count) = part_of(path, part.metadata())?.unwrap_or((0, 1));
        if (found_no, found_count) != (index, count) {
            let (no, found_no) = (index + 1, found_no.saturating_add(1));
            return Err(Fault::PartDisagrees { no, count, found_no, found_count }.at(path));
        }
        parts.push(part);
    }
    join(parts, paths)
}

fn open_part(path: &Path) -> Result<Gguf, Error> {
    let bytes = Bytes::map(path).map_err(|error| Fault::io("read it")(error).at(path))?;
    Gguf::parse(path, bytes)
}

/// Of one part of several: which, from 0, and how many.
fn part_of(path: &Path, metadata: &Metadata) -> Result<Option<(u64, u64)>, Error> {
    match (metadata.u64(NO).unwrap_or(0), metadata.u64(COUNT).unwrap_or(0)) {
        (_, 0 | 1) => Ok(None),
        (_, count) if count > MAX_PARTS => {
            let what = "parts of a split file";
            Err(Fault::TooMany { what, count, limit: MAX_PARTS }.at(path))
        }
        part => Ok(Some(part)),
    }
}

/// The paths of all parts, given one of them.
fn siblings(path: &Path, no: u64, count: u64) -> Result<Vec<PathBuf>, Error> {
    let misnamed = || Fault::PartName { no: no.saturating_add(1), count }.at(path);
    if no >= count {
        return Err(misnamed());
    }
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(misnamed)?;
    let stem = name.strip_suffix(&suffix(no, count)).ok_or_else(misnamed)?;
    Ok((0..count).map(|no| path.with_file_name(format!("{stem}{}", suffix(no, count)))).collect())
}

/// What the name of a part says: `NAME-00002-of-00003.gguf` is part 1 (from 0) of 3 of `NAME`.
///
/// ```
/// assert_eq!(polylora_file::part_of_name("a-00002-of-00003.gguf"), Some(("a", 1, 3)));
/// assert_eq!(polylora_file::part_of_name("a.gguf"), None);
/// ```
pub fn part_of_name(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let (no, count) = (no.parse::<u64>().ok()?.checked_sub(1)?, count.parse().ok()?);
    (no < count && name.strip_suffix(&suffix(no, count)) == Some(stem)).then_some((stem, no, count))
}

/// How the name of part `no`, from 0, ends.
fn suffix(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

/// Where part `no`, from 0, of a file is written that would otherwise be `whole`.
pub(super) fn part_path(whole: &Path, no: usize, count: usize) -> PathBuf {
    let mut name = match whole.extension() {
        Some(extension) if extension == "gguf" => whole.file_stem().unwrap_or_default(),
        _ => whole.file_name().unwrap_or_default(),
    }
    .to_owned();
    name.push(suffix(no as u64, count as u64));
    whole.with_file_name(name)
}

/// All parts as one.
fn join(parts: Vec<Gguf>, paths: Vec<PathBuf>) -> Result<Gguf, Error> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().expect("a split file has two parts or more");
    let expected = whole.metadata.u64(TENSORS);
    for (part, path) in parts.zip(&paths[1..]) {
        for tensor in part.tensors {
            let index = whole.tensors.len();
            if whole.by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(Fault::DuplicateTensor(tensor.name).at(path));
            }
            whole.tensors.push(tensor);
        }
    }
    let found = whole.tensors.len() as u64;
    if let Some(expected) = expected.filter(|&expected| expected != found) {
        return Err(Fault::PartTensors { expected, found }.at(&paths[0]));
    }
    whole.parts = paths;
    Ok(whole)
}
