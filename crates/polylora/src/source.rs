//! What the command line names as an input: a path, or what lies in a repository of the Hugging
//! Face hub, which is fetched when it is asked for.

use crate::cmd::WrongUse;
use anyhow::Result;
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser, ValueParserFactory};
use polylora_adapter::AdapterSpec;
use polylora_file::same_file;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What tells a reference from a path. A file of such a name can be had as `./hf:...`.
const PREFIX: &str = "hf:";

/// A file or folder to read: `PATH`, or `hf:OWNER/REPO[:FILE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Local(PathBuf),
    Hub(Reference),
}

impl Source {
    /// Where it lies: here, after it was fetched if need be.
    pub(crate) fn fetch(&self) -> Result<PathBuf> {
        match self {
            Source::Local(path) => Ok(path.clone()),
            Source::Hub(reference) => fetch(reference),
        }
    }

    /// Whether both are known to be the same, without fetching either.
    pub(crate) fn is_same(&self, other: &Source) -> bool {
        match (self, other) {
            (Source::Local(a), Source::Local(b)) => same_file(a, b),
            _ => self == other,
        }
    }
}

#[cfg(feature = "hub")]
fn fetch(reference: &Reference) -> Result<PathBuf> {
    Ok(crate::hub::fetch(reference, crate::hub::MAIN)?.path)
}

#[cfg(not(feature = "hub"))]
fn fetch(reference: &Reference) -> Result<PathBuf> {
    anyhow::bail!(
        "{reference} lies in the hub, and this polylora was built without it: download it by other \
         means and give its path, or build polylora with --features hub"
    )
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Local(path) => path.display().fmt(f),
            Source::Hub(reference) => reference.fmt(f),
        }
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Source {
        Source::Local(path.to_owned())
    }
}

impl TryFrom<OsString> for Source {
    type Error = WrongUse;

    fn try_from(text: OsString) -> Result<Source, WrongUse> {
        match text.to_str().filter(|text| text.starts_with(PREFIX)) {
            Some(text) => text.parse().map(Source::Hub),
            None => Ok(Source::Local(text.into())),
        }
    }
}

/// So that an argument of this type needs no word about how it is read.
impl ValueParserFactory for Source {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        ValueParser::new(OsStringValueParser::new().try_map(Source::try_from))
    }
}

/// What lies in the hub: `OWNER/REPO[:FILE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) owner: String,
    pub(crate) repo: String,
    /// A file, a folder or a quantization; nothing where the repository has one thing to offer.
    pub(crate) file: Option<String>,
}

impl Reference {
    /// What to call an adapter from there: a file by its name, all else as the repository.
    fn name(&self) -> &str {
        let file = self.file.as_deref().and_then(|file| file.strip_suffix(".gguf"));
        let name = file.map(|file| file.rsplit_once('/').map_or(file, |(_, name)| name));
        name.unwrap_or(&self.repo)
    }
}

impl FromStr for Reference {
    type Err = WrongUse;

    fn from_str(text: &str) -> Result<Reference, WrongUse> {
        let wrong = || {
            WrongUse(format!(
                "{text:?} names nothing in the hub: write hf:OWNER/REPO, or hf:OWNER/REPO:FILE \
                 (and ./{text} for a file of this name)"
            ))
        };
        let rest = text.strip_prefix(PREFIX).unwrap_or(text);
        let (repository, file) = match rest.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (rest, None),
        };
        let (owner, repo) = repository.split_once('/').ok_or_else(wrong)?;
        if !is_name(owner) || !is_name(repo) || file == Some("") {
            return Err(wrong());
        }
        Ok(Reference {
            owner: owner.to_owned(),
            repo: repo.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// The hub's rules for a name, which keep it from being a way out of the cache, too.
fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let inside = name.chars().all(known) && !name.contains("..") && !name.contains("--");
    inside && !name.is_empty() && !name.starts_with(['.', '-']) && !name.ends_with(['.', '-'])
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.owner, self.repo)?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// An adapter to load: `[NAME=]PATH[@SCALE]`, whose path may lie in the hub.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdapterSource {
    pub(crate) name: String,
    pub(crate) scale: f32,
    source: Source,
}

impl AdapterSource {
    pub(crate) fn fetch(&self) -> Result<AdapterSpec> {
        let path = self.source.fetch()?;
        Ok(AdapterSpec { name: self.name.clone(), path, scale: self.scale })
    }
}

impl FromStr for AdapterSource {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<AdapterSource> {
        let spec: AdapterSpec = text.parse()?;
        let is_named = AdapterSpec::new(&spec.path).name != spec.name;
        let source = Source::try_from(spec.path.into_os_string())?;
        let name = match &source {
            Source::Hub(reference) if !is_named => reference.name().to_owned(),
            _ => spec.name,
        };
        Ok(AdapterSource { name, scale: spec.scale, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_paths() {
        let source = |text: &str| Source::try_from(OsString::from(text)).unwrap();
        for path in ["model.gguf", "./hf:owner/repo", "C:/model.gguf", "owner/repo"] {
            assert_eq!(source(path), Source::from(Path::new(path)));
        }
        let Source::Hub(reference) = source("hf:owner/repo.v2:sub/a:b.gguf") else { panic!() };
        let parts = (&*reference.owner, &*reference.repo, reference.file.as_deref());
        assert_eq!(parts, ("owner", "repo.v2", Some("sub/a:b.gguf")));
        assert_eq!(reference.to_string(), "hf:owner/repo.v2:sub/a:b.gguf");
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        for text in ["hf:", "hf:gpt2", "hf:a/b/c.gguf", "hf:../b", "hf:a/..", "hf:a/b:", "hf:a b/c"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_adapter_is_called_as_its_repository_or_file() {
        let parse = |text: &str| {
            let adapter: AdapterSource = text.parse().unwrap();
            (adapter.name, adapter.source.to_string(), adapter.scale)
        };
        let expect = |text: &str, name: &str, source: &str, scale| {
            assert_eq!(parse(text), (name.to_owned(), source.to_owned(), scale), "{text}");
        };
        expect("hf:me/style.v2", "style.v2", "hf:me/style.v2", 1.0);
        expect("hf:me/style.v2@0.5", "style.v2", "hf:me/style.v2", 0.5);
        expect("hf:me/style:Q8_0@-1", "style", "hf:me/style:Q8_0", -1.0);
        expect("x=hf:me/style:a/b.gguf", "x", "hf:me/style:a/b.gguf", 1.0);
        expect("hf:me/style:a/b.gguf@2", "b", "hf:me/style:a/b.gguf", 2.0);
        expect("none/shout.gguf@2", "shout", "none/shout.gguf", 2.0);
    }
}
