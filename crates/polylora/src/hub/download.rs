//! A file's way into the cache: it goes on where it stopped, and arrives as the hub has it or not
//! at all.

use super::cache::{Cache, make_parent};
use super::listing::{Content, Entry};
use super::remote::{Failure, Remote};
use crate::source::Reference;
use crate::terminal::Progress;
use anyhow::{Context, Result, bail};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::header::CONTENT_RANGE;

/// Connections in a row that bring nothing, until it is given up.
const ATTEMPTS: usize = 3;

/// Between two of them, for a server that needs to recover.
const PAUSE: Duration = Duration::from_secs(1);

/// Read at once: small enough for the bar to move, large enough to cost nothing.
const CHUNK: usize = 128 << 10;

/// Where a file comes from, and where it stands among those fetched with it.
pub(super) struct Place<'a> {
    pub(super) reference: &'a Reference,
    pub(super) commit: &'a str,
    /// Bytes of the files before it.
    pub(super) before: u64,
}

/// Brings a file's content into the cache.
pub(super) fn download(
    remote: &Remote,
    cache: &Cache,
    entry: &Entry,
    place: &Place<'_>,
    progress: &Progress,
) -> Result<()> {
    let content = entry.content.as_ref().context("what is listed by the hub has a hash")?;
    let _lock = cache.lock(content)?;
    let blob = cache.blob(content);
    if fs::metadata(&blob).is_ok_and(|found| found.len() == entry.size) {
        return Ok(()); // Another process fetched it.
    }
    let mut partial = Partial::open(blob, entry.size, content)?;
    progress.resume(place.before + partial.length);
    let mut in_vain = 0;
    while partial.length < entry.size {
        let before = partial.length;
        let why = match receive(&mut partial, remote, entry, place, progress) {
            Ok(()) => "the connection ended early".to_owned(),
            Err(Failure::NoAnswer(why)) => why,
            Err(Failure::Final(error)) => return Err(error),
        };
        in_vain = if partial.length > before { 0 } else { in_vain + 1 };
        if in_vain == ATTEMPTS {
            bail!(
                "{}: {} of {} bytes arrived, then {why}. They are kept: the same command goes on \
                 from there",
                entry.name,
                partial.length,
                entry.size
            );
        }
        if in_vain > 0 {
            std::thread::sleep(PAUSE);
        }
    }
    let Reference { owner, repo, .. } = place.reference;
    partial.finish().with_context(|| format!("hf:{owner}/{repo}:{}", entry.name))
}

/// Takes what one connection brings.
fn receive(
    partial: &mut Partial<'_>,
    remote: &Remote,
    entry: &Entry,
    place: &Place<'_>,
    progress: &Progress,
) -> Result<(), Failure> {
    let response = remote.open(place.reference, place.commit, &entry.name, partial.length)?;
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let goes_on = response.status() == 206
        && range.is_some_and(|range| range.starts_with(&format!("bytes {}-", partial.length)));
    if !goes_on {
        partial.restart()?;
    }
    let mut reader = response.into_body().into_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) => {
                return Err(Failure::NoAnswer(format!("the connection was lost ({error})")));
            }
        };
        partial.write(&chunk[..length])?;
        progress.at(place.before + partial.length);
    }
}

/// Content on its way, with the hash of what has arrived.
struct Partial<'a> {
    blob: PathBuf,
    path: PathBuf,
    file: File,
    length: u64,
    size: u64,
    content: &'a Content,
    hasher: Hasher,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier attempt left.
    fn open(blob: PathBuf, size: u64, content: &'a Content) -> Result<Partial<'a>> {
        let mut path = blob.clone().into_os_string();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        make_parent(&path)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let hasher = Hasher::new(content, size);
        let mut partial = Partial { blob, path, file, length: 0, size, content, hasher };
        partial.take_up()?;
        Ok(partial)
    }

    fn take_up(&mut self) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = self.file.read(&mut chunk).with_context(|| self.cannot("read"))?;
            if length == 0 {
                return Ok(());
            }
            self.hasher.update(&chunk[..length]);
            self.length += length as u64;
            if self.length > self.size {
                return self.restart(); // It was the beginning of something else.
            }
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.hasher = Hasher::new(self.content, self.size);
        self.length = 0;
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.with_context(|| self.cannot("write"))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.length + bytes.len() as u64 > self.size {
            self.restart()?;
            bail!("the hub sends more than the {} bytes that it lists: not kept", self.size);
        }
        self.file.write_all(bytes).with_context(|| self.cannot("write"))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Gives the content its name in the cache, if it is what the hub lists.
    fn finish(self) -> Result<()> {
        let cannot = self.cannot("write");
        let found = self.hasher.finish();
        if found != self.content.hash() {
            drop(self.file);
            fs::remove_file(&self.path).with_context(|| cannot)?;
            bail!(
                "what arrived is not what the hub lists: its hash is {found}, not {}. It was \
                 deleted; fetch it again, and if that ends the same, something on the way changes it",
                self.content.hash()
            );
        }
        // The hash is not compared again: what has the name must be on the disk.
        self.file.sync_all().with_context(|| cannot.clone())?;
        drop(self.file);
        fs::rename(&self.path, &self.blob).with_context(|| cannot)
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} {}", self.path.display())
    }
}

enum Hasher {
    Large(Sha256),
    Small(Sha1),
}

impl Hasher {
    fn new(content: &Content, size: u64) -> Hasher {
        match content {
            Content::Large(_) => Hasher::Large(Sha256::new()),
            Content::Small(_) => Hasher::Small(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Large(hash) => hash.update(bytes),
            Hasher::Small(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        let bytes = match self {
            Hasher::Large(hash) => hash.finalize().to_vec(),
            Hasher::Small(hash) => hash.finalize().to_vec(),
        };
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
