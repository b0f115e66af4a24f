//! The folder that adapters are looked for in, and that none is taken from outside of.

use super::is_name;
use polylora_adapter::AdapterSpec;
use polylora_file::Gguf;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A folder whose members are adapters: folders of PEFT's and GGUF files.
pub(super) struct Folder {
    root: PathBuf,
    /// Without symbolic links.
    resolved: PathBuf,
}

/// Why no adapter is taken from a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// There is nowhere to take it from.
    #[error("adapters are loaded from a folder only: start the server with --adapter-dir DIR")]
    NoFolder,
    /// There is nothing.
    #[error("there is no adapter at {0}")]
    Missing(String),
    /// It leads elsewhere.
    #[error("{0} is not in the folder that adapters are loaded from")]
    Outside(String),
}

/// Sizes and times of an adapter's files: others, once it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<(PathBuf, u64, Option<SystemTime>)>);

impl Fingerprint {
    /// Of what lies at a path, if it can be looked at.
    pub(super) fn of(path: &Path) -> Option<Fingerprint> {
        let mut files = Vec::new();
        for file in files_of(path).ok()? {
            let metadata = fs::metadata(&file).ok()?;
            files.push((file, metadata.len(), metadata.modified().ok()));
        }
        Some(Fingerprint(files))
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes, _)| bytes).sum()
    }
}

/// The file, or those of a folder that are an adapter's: weights, their index and configuration.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let is_part = file.extension().is_some_and(|extension| {
            extension == "safetensors" || extension == "json" || extension == "gguf"
        });
        if is_part {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

impl Folder {
    pub(super) fn open(root: &Path) -> io::Result<Folder> {
        let resolved = root.canonicalize()?;
        if !resolved.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no folder"));
        }
        Ok(Folder { root: root.to_owned(), resolved })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where `path`, relative to the folder or absolute, leads. It and all its files must lie in
    /// the folder, after all symbolic links were followed.
    pub(super) fn resolve(&self, path: &str) -> Result<PathBuf, Unfit> {
        let missing = |_| Unfit::Missing(path.to_owned());
        // Whether something is there is nobody's business outside: so this is asked first.
        let outside = || Unfit::Outside(path.to_owned());
        let joined = self.resolved.join(path);
        let Ok(resolved) = joined.canonicalize() else {
            let climbs = Path::new(path).components().any(|part| part.as_os_str() == "..");
            let within = joined.starts_with(&self.resolved) || joined.starts_with(&self.root);
            return Err(if within && !climbs {
                Unfit::Missing(path.to_owned())
            } else {
                outside()
            });
        };
        if !resolved.starts_with(&self.resolved) || resolved == self.resolved {
            return Err(outside());
        }
        for file in files_of(&resolved).map_err(missing)? {
            if !file.canonicalize().map_err(missing)?.starts_with(&self.resolved) {
                return Err(outside());
            }
        }
        Ok(resolved)
    }

    /// Of the adapter that a scan would find under a name.
    pub(super) fn fingerprint(&self, name: &str) -> Option<Fingerprint> {
        [name.to_owned(), format!("{name}.gguf")]
            .iter()
            .filter_map(|member| self.resolve(member).ok())
            .find_map(|path| Fingerprint::of(&path))
    }

    /// The adapters that lie directly in the folder, in the order of their names. `known` are
    /// those that need not be looked into again where their fingerprint is the same.
    pub(super) fn scan(
        &self,
        known: &HashMap<PathBuf, Option<Fingerprint>>,
    ) -> io::Result<Vec<(AdapterSpec, Fingerprint)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.resolved)? {
            let path = entry?.path();
            let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
            let looks_right = path.join("adapter_config.json").is_file()
                || path.extension().is_some_and(|extension| extension == "gguf");
            if is_hidden || !looks_right {
                continue;
            }
            // Its name is the link's, where it is one; what it leads to must be in the folder.
            let spec = AdapterSpec::new(&path);
            let resolved = match self.resolve(&path.to_string_lossy()) {
                Ok(resolved) if is_name(&spec.name) => resolved,
                Ok(_) | Err(_) => {
                    tracing::debug!(path = %path.display(), "not taken for an adapter");
                    continue;
                }
            };
            let name = path.file_stem().filter(|_| !resolved.is_dir()).or(path.file_name());
            let name = name.map_or(spec.name, |name| name.to_string_lossy().into_owned());
            let Some(fingerprint) = Fingerprint::of(&resolved) else { continue };
            let is_known = known.get(&resolved) == Some(&Some(fingerprint.clone()));
            if is_known || is_adapter(&resolved) {
                found.push((AdapterSpec { name, path: resolved, scale: 1.0 }, fingerprint));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        found.dedup_by(|(a, _), (b, _)| a.name == b.name);
        Ok(found)
    }
}

/// Whether a GGUF is an adapter, rather than a model; of folders it was seen.
fn is_adapter(path: &Path) -> bool {
    let says = |file: Gguf| file.metadata().get("general.type")?.as_str().map(str::to_owned);
    path.is_dir() || Gguf::open(path).ok().and_then(says).as_deref() == Some("adapter")
}
