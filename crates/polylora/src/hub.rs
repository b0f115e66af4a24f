//! Models and adapters from the Hugging Face hub, in the cache that its other tools share.
//!
//! Written here, over plain HTTP, because the crate hf-hub (1.0) does not do what large files need:
//! it begins an interrupted download anew, and compares no checksum. It would also bring an async
//! runtime, and a transfer protocol of its own, for what is one request a file.

mod cache;
mod download;
mod listing;
mod remote;

use crate::source::Reference;
use crate::terminal::{self, Progress, size};
use anyhow::{Context, Result, bail};
use cache::Cache;
use listing::{Entry, Listing};
use remote::{Failure, Remote};
use serde::Serialize;
use std::path::PathBuf;

/// The revision where none is named.
pub(crate) const MAIN: &str = "main";

/// What was asked for, now in the cache.
#[derive(Serialize)]
pub(crate) struct Fetched {
    /// What to open: a file (of a split model, the first part), or an adapter's folder.
    pub(crate) path: PathBuf,
    /// The commit that it is of.
    pub(crate) commit: String,
    pub(crate) files: Vec<PathBuf>,
}

/// Sees to it that what `reference` means is in the cache, as it is in `revision` now; without a
/// connection, as it was when it was fetched.
pub(crate) fn fetch(reference: &Reference, revision: &str) -> Result<Fetched> {
    // What has arrived needs no cleaning up: the next attempt goes on from there.
    terminal::waiting(|| fetch_now(reference, revision))
}

fn fetch_now(reference: &Reference, revision: &str) -> Result<Fetched> {
    let cache = Cache::of(reference)?;
    if remote::is_offline() {
        return cached(&cache, reference, revision, "HF_HUB_OFFLINE is set");
    }
    let remote = Remote::new()?;
    match remote.list(reference, revision) {
        Ok(listing) => {
            let fetched = download(&remote, &cache, reference, &listing)?;
            cache.remember(revision, &listing.commit)?;
            Ok(fetched)
        }
        Err(Failure::NoAnswer(why)) => {
            let fetched = cached(&cache, reference, revision, &why)?;
            terminal::tell(&format!("note: {why}: {reference} is taken from the cache\n"));
            Ok(fetched)
        }
        Err(Failure::Final(error)) => Err(error),
    }
}

/// What the cache has; `why` it alone is asked, for messages.
fn cached(cache: &Cache, reference: &Reference, revision: &str, why: &str) -> Result<Fetched> {
    let Some(listing) = cache.listing(revision)? else {
        bail!(
            "{why}, and {reference} is not in the cache ({}): fetch it once with a connection, by \
             polylora pull {reference}",
            cache.root().display()
        )
    };
    let picked = listing.pick(reference).with_context(|| {
        format!("{why}, and the cache has only a part of hf:{}/{}", reference.owner, reference.repo)
    })?;
    Ok(Fetched::new(cache, &listing, &picked))
}

fn download(
    remote: &Remote,
    cache: &Cache,
    reference: &Reference,
    listing: &Listing,
) -> Result<Fetched> {
    let picked = listing.pick(reference)?;
    let mut missing: Vec<&Entry> = Vec::new();
    for entry in &picked.files {
        if !cache.has(&listing.commit, entry)? {
            missing.push(entry);
        }
    }
    if !missing.is_empty() {
        let total = missing.iter().map(|entry| entry.size).sum();
        terminal::tell(&format!("Fetching {reference}, {}\n", size(total)));
        let progress = Progress::bytes(total, "fetching");
        let mut before = 0;
        for entry in missing {
            let place = download::Place { reference, commit: &listing.commit, before };
            download::download(remote, cache, entry, &place, &progress)?;
            cache.link(&listing.commit, entry)?;
            before += entry.size;
        }
    }
    Ok(Fetched::new(cache, listing, &picked))
}

impl Fetched {
    fn new(cache: &Cache, listing: &Listing, picked: &listing::Picked<'_>) -> Fetched {
        let snapshot = cache.snapshot(&listing.commit);
        // Joined with nothing, a path would end in a separator.
        let path = match &*picked.path {
            "" => snapshot.clone(),
            path => snapshot.join(path),
        };
        let files = picked.files.iter().map(|entry| snapshot.join(&entry.name)).collect();
        Fetched { path, commit: listing.commit.clone(), files }
    }
}
