//! The cache that the hub's tools share, and this one with them.
//!
//! ```text
//! models--OWNER--REPO/
//!   blobs/HASH                      content, under the hash that the hub knows it by
//!   blobs/HASH.incomplete           content on its way
//!   refs/main                       the commit that a revision was, when it was last asked for
//!   snapshots/COMMIT/model.gguf     a link to ../../blobs/HASH
//! .locks/models--OWNER--REPO/HASH.lock
//! ```

use super::listing::{Content, Entry, Listing, check_name};
use crate::source::Reference;
use crate::terminal;
use anyhow::{Context, Result, bail};
use polylora_file::write_file;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A repository's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    /// `models--OWNER--REPO`
    name: String,
}

/// The folder of the hub's tools: the cache and the token lie in it.
pub(super) fn home() -> Result<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Ok(home.into());
    }
    let caches = match (variable("XDG_CACHE_HOME"), std::env::home_dir()) {
        (Some(caches), _) => caches.into(),
        (None, Some(home)) => home.join(".cache"),
        (None, None) => {
            bail!("there is no home folder to keep a cache in: set HF_HOME to a folder")
        }
    };
    Ok(caches.join("huggingface"))
}

/// A variable of the environment; an empty one is as good as none.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether a revision is a commit itself.
pub(super) fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Digits of a commit's hash.
pub(super) const COMMIT_DIGITS: usize = 40;

impl Cache {
    pub(super) fn of(reference: &Reference) -> Result<Cache> {
        let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let root = named.map_or_else(|| Ok(home()?.join("hub")), |root| anyhow::Ok(root.into()))?;
        let name = format!("models--{}--{}", reference.owner, reference.repo);
        Ok(Cache { root, name })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, content: &Content) -> PathBuf {
        self.folder().join("blobs").join(content.hash())
    }

    fn reference(&self, revision: &str) -> Result<PathBuf> {
        check_name(revision).with_context(|| format!("{revision:?} is no revision"))?;
        Ok(self.folder().join("refs").join(revision))
    }

    /// What is here of a revision; nothing where it was never fetched.
    pub(super) fn listing(&self, revision: &str) -> Result<Option<Listing>> {
        let commit = match is_hash(revision, COMMIT_DIGITS) {
            true => revision.to_owned(),
            false => match fs::read_to_string(self.reference(revision)?) {
                Ok(commit) => commit.trim().to_owned(),
                Err(_) => return Ok(None),
            },
        };
        let snapshot = self.snapshot(&commit);
        if !is_hash(&commit, COMMIT_DIGITS) || !snapshot.is_dir() {
            return Ok(None);
        }
        let mut files = Vec::new();
        walk(&snapshot, "", &mut files)?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(Listing { commit, files }))
    }

    /// Keeps in mind which commit a revision is, for when there is no connection.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.reference(revision)?;
        make_parent(&path)?;
        Ok(write_file(&path, commit.as_bytes(), true)?)
    }

    /// Whether a file is here; one whose content is here from another commit is linked to it.
    pub(super) fn has(&self, commit: &str, entry: &Entry) -> Result<bool> {
        let is_whole =
            |path: &Path| fs::metadata(path).is_ok_and(|found| found.len() == entry.size);
        if is_whole(&self.snapshot(commit).join(&entry.name)) {
            return Ok(true);
        }
        let Some(content) = &entry.content else { return Ok(false) };
        let here = is_whole(&self.blob(content));
        if here {
            self.link(commit, entry)?;
        }
        Ok(here)
    }

    /// Gives content that is here its name in a commit.
    pub(super) fn link(&self, commit: &str, entry: &Entry) -> Result<()> {
        let Some(content) = &entry.content else { return Ok(()) };
        let path = self.snapshot(commit).join(&entry.name);
        make_parent(&path)?;
        // A link that led nowhere, or to what was cut short.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => link(&self.blob(content), &path, entry.name.split('/').count()),
        }
        .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Waits until no other process fetches the same content. The lock ends with the file.
    pub(super) fn lock(&self, content: &Content) -> Result<File> {
        let name = format!("{}.lock", content.hash());
        let path = self.root.join(".locks").join(&self.name).join(name);
        make_parent(&path)?;
        let cannot = || format!("cannot lock {}", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(cannot)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            terminal::tell("Another process is fetching the same: waiting for it\n");
        }
        file.lock().with_context(cannot)?;
        Ok(file)
    }
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().context("a path in the cache has a parent")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The files below a folder. Links that lead nowhere are none.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<Entry>) -> Result<()> {
    let cannot = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        if entry.file_type().with_context(cannot)?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else if let Ok(file) = fs::metadata(entry.path()) {
            found.push(Entry { name, size: file.len(), content: None });
        }
    }
    Ok(())
}

/// A link that moves with the cache: up from the file, out of its folders, the commit and
/// `snapshots`.
#[cfg(unix)]
fn link(blob: &Path, path: &Path, depth: usize) -> std::io::Result<()> {
    let mut target: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    std::os::unix::fs::symlink(target, path)
}

/// Symbolic links are a privilege here.
#[cfg(not(unix))]
fn link(blob: &Path, path: &Path, _depth: usize) -> std::io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}
