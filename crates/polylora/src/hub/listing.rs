//! What files a repository has, and which of them are meant.

use crate::source::Reference;
use crate::terminal::size;
use anyhow::{Result, bail, ensure};
use polylora_adapter::adapters_among;
use polylora_file::part_of_name;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Component, Path};

/// The files of a commit; from the cache, those that it has.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Entry>,
}

/// A file.
pub(super) struct Entry {
    /// Relative to the repository, with `/`; see [`check_name`].
    pub(super) name: String,
    pub(super) size: u64,
    /// Unknown of what comes from the cache, where it was compared already.
    pub(super) content: Option<Content>,
}

/// The hash that the hub knows a file's content by, in hexadecimal. It is also the name of the
/// content in the cache.
pub(super) enum Content {
    /// SHA-256 of a large file, which Git keeps elsewhere.
    Large(String),
    /// Git's own hash of a small one: SHA-1 of `blob SIZE\0` and the content.
    Small(String),
}

impl Content {
    pub(super) fn hash(&self) -> &str {
        match self {
            Content::Large(hash) | Content::Small(hash) => hash,
        }
    }
}

/// What a reference means.
pub(super) struct Picked<'a> {
    /// What to open, relative to the repository: a file, or a folder.
    pub(super) path: String,
    pub(super) files: Vec<&'a Entry>,
}

/// Names that would lead out of the cache are not of files that anybody means well with.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_plain = |part: &str| {
        let mut components = Path::new(part).components();
        let first = components.next();
        matches!(first, Some(Component::Normal(_))) && components.next().is_none()
    };
    let odd = name.contains(['\\', '\0']) || !name.split('/').all(is_plain);
    ensure!(
        !odd,
        "the hub lists a file named {name:?}, which could lie outside the cache: refused"
    );
    Ok(())
}

impl Listing {
    /// What is meant by `reference`.
    pub(super) fn pick(&self, reference: &Reference) -> Result<Picked<'_>> {
        let Some(file) = &reference.file else {
            let offers = self.offers();
            return self.only(offers.iter().filter(|offer| offer.is_whole_point()), reference);
        };
        let offers = self.offers();
        let is_meant = |offer: &&Offer<'_>| {
            offer.path == *file || offer.files.iter().any(|entry| entry.name == *file)
        };
        if let Some(offer) = offers.iter().find(is_meant) {
            return offer.picked();
        }
        if let Some(entry) = self.files.iter().find(|entry| entry.name == *file) {
            return Ok(Picked { path: file.clone(), files: vec![entry] });
        }
        self.only(offers.iter().filter(|offer| offer.has_tag(file)), reference)
    }

    fn only<'a, 'b>(
        &self,
        offers: impl Iterator<Item = &'b Offer<'a>>,
        reference: &Reference,
    ) -> Result<Picked<'a>>
    where
        'a: 'b,
    {
        let offers: Vec<&Offer<'_>> = offers.collect();
        match offers[..] {
            [offer] => offer.picked(),
            [] => bail!("{}", self.nothing(reference)),
            _ => bail!(
                "{reference} could be any of these; say which:\n{}",
                lines(reference, &offers)
            ),
        }
    }

    /// The message where nothing fits.
    fn nothing(&self, reference: &Reference) -> String {
        /// Files that are named where there is nothing better to name.
        const SHOWN: usize = 20;
        let offers = self.offers();
        let why = match &reference.file {
            Some(file) => format!("{reference}: there is no file and no quantization {file:?}"),
            None => format!("{reference} has neither a GGUF nor a PEFT adapter in safetensors"),
        };
        if !offers.is_empty() {
            let offers: Vec<&Offer<'_>> = offers.iter().collect();
            return format!("{why}; there are:\n{}", lines(reference, &offers));
        }
        let names: Vec<&str> = self.names().take(SHOWN).collect();
        match self.files.len() {
            0 => format!("{why}; it is empty"),
            all if all > SHOWN => {
                format!("{why}; of its {all} files, the first: {}", names.join(", "))
            }
            _ => format!("{why}; its files: {}", names.join(", ")),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|entry| &*entry.name)
    }

    /// What can be opened: adapters, and GGUF files, the parts of a split one together.
    fn offers(&self) -> Vec<Offer<'_>> {
        let names: Vec<&str> = self.names().collect();
        let mut offers: Vec<Offer<'_>> = Vec::new();
        for adapter in adapters_among(&names) {
            let is_of_it = |entry: &&Entry| adapter.files.contains(&entry.name);
            let files = self.files.iter().filter(is_of_it).collect();
            // The folder of an adapter at the root has no name: its first file stands for it.
            let typed = if adapter.path.is_empty() { &adapter.files[0] } else { &adapter.path };
            let typed = typed.clone();
            offers.push(Offer { path: adapter.path, typed, files, parts: 1, gguf: None });
        }
        let mut split: BTreeMap<(&str, u64), Vec<&Entry>> = BTreeMap::new();
        for entry in &self.files {
            if let Some((stem, _, count)) = part_of_name(&entry.name) {
                split.entry((stem, count)).or_default().push(entry);
            } else if let Some(stem) = entry.name.strip_suffix(".gguf") {
                offers.push(Offer::gguf(stem, vec![entry], 1));
            }
        }
        for ((stem, count), mut files) in split {
            files.sort_by(|a, b| a.name.cmp(&b.name));
            offers.push(Offer::gguf(stem, files, count));
        }
        offers
    }
}

/// Something that can be opened.
struct Offer<'a> {
    /// What to open.
    path: String,
    /// What to write after the colon.
    typed: String,
    files: Vec<&'a Entry>,
    /// How many files there should be of a split one.
    parts: u64,
    /// A GGUF's name without its end; of an adapter's folder nothing.
    gguf: Option<&'a str>,
}

impl<'a> Offer<'a> {
    fn gguf(stem: &'a str, files: Vec<&'a Entry>, parts: u64) -> Offer<'a> {
        let path = files[0].name.clone();
        Offer { typed: path.clone(), path, files, parts, gguf: Some(stem) }
    }

    fn picked(&self) -> Result<Picked<'a>> {
        let (found, parts) = (self.files.len() as u64, self.parts);
        ensure!(
            self.gguf.is_none() || found == parts,
            "{}: of {parts} parts only {found} are there",
            self.path
        );
        Ok(Picked { path: self.path.clone(), files: self.files.clone() })
    }

    /// Whether somebody who names the repository alone may mean it: not an adapter saved on the
    /// way, in a folder, nor what lies beside a model to see or to be quantized by.
    fn is_whole_point(&self) -> bool {
        match self.gguf {
            Some(stem) => {
                let name = stem.rsplit_once('/').map_or(stem, |(_, name)| name);
                !["mmproj", "imatrix"].iter().any(|beside| name.starts_with(beside))
            }
            None => !self.path.contains("checkpoint-"),
        }
    }

    /// Whether the name of a GGUF says that it is of a type, as `Q4_K_M` in `model-q4_k_m.gguf`.
    fn has_tag(&self, tag: &str) -> bool {
        let Some(stem) = self.gguf.filter(|_| self.is_whole_point()) else { return false };
        let name = stem.rsplit_once('/').map_or(stem, |(_, name)| name).to_ascii_uppercase();
        let tag = tag.to_ascii_uppercase();
        name.match_indices(&tag).any(|(at, _)| {
            let (before, after) = (&name[..at], &name[at + tag.len()..]);
            // An underscore goes on with the tag: `Q4_K` is not in `Q4_K_M`.
            (before.is_empty() || before.ends_with(['-', '.', '_']))
                && (after.is_empty() || after.starts_with(['-', '.']))
        })
    }
}

/// A line for each: what to type, and how much it is.
fn lines(reference: &Reference, offers: &[&Offer<'_>]) -> String {
    /// Lines that can be taken in.
    const SHOWN: usize = 40;
    let repository = Reference { file: None, ..reference.clone() };
    let typed: Vec<String> =
        offers.iter().take(SHOWN).map(|offer| format!("{repository}:{}", offer.typed)).collect();
    let width = typed.iter().map(|typed| typed.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (typed, offer) in typed.iter().zip(offers) {
        let bytes = size(offer.files.iter().map(|entry| entry.size).sum());
        let kind = match (offer.gguf, offer.parts) {
            (None, _) => ", PEFT".to_owned(),
            (_, 1) => String::new(),
            (_, parts) => format!(", {parts} parts"),
        };
        let _ = writeln!(text, "  {typed:width$}  {bytes}{kind}");
    }
    if offers.len() > SHOWN {
        let _ = writeln!(text, "  ... and {} more", offers.len() - SHOWN);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let entry = |name: &&str| Entry { name: (*name).to_owned(), size: 1 << 20, content: None };
        Listing { commit: String::new(), files: names.iter().map(entry).collect() }
    }

    fn pick(names: &[&str], reference: &str) -> Result<(String, usize), String> {
        let listing = listing(names);
        let picked = listing.pick(&reference.parse().unwrap());
        picked.map(|it| (it.path.clone(), it.files.len())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tag_picks_by_the_name() {
        let names = [
            "README.md",
            "model-Q4_K_S.gguf",
            "model-Q4_K_M.gguf",
            "model.i1-IQ4_XS.gguf",
            "Q8_0/model-Q8_0-00001-of-00002.gguf",
            "Q8_0/model-Q8_0-00002-of-00002.gguf",
            "mmproj-model-f16.gguf",
        ];
        let expect = |tag: &str, path: &str, files| {
            assert_eq!(pick(&names, &format!("o/r:{tag}")), Ok((path.to_owned(), files)), "{tag}");
        };
        expect("q4_k_m", "model-Q4_K_M.gguf", 1);
        expect("IQ4_XS", "model.i1-IQ4_XS.gguf", 1);
        expect("Q8_0", "Q8_0/model-Q8_0-00001-of-00002.gguf", 2);
        expect("Q8_0/model-Q8_0-00002-of-00002.gguf", "Q8_0/model-Q8_0-00001-of-00002.gguf", 2);
        expect("mmproj-model-f16.gguf", "mmproj-model-f16.gguf", 1);
        expect("README.md", "README.md", 1);
        for tag in ["Q4_K", "Q8", "f16", "none.gguf"] {
            let message = pick(&names, &format!("o/r:{tag}")).unwrap_err();
            assert!(message.contains("hf:o/r:model-Q4_K_M.gguf"), "{message}");
        }
    }

    #[test]
    fn without_a_file_there_must_be_one_choice() {
        let adapter = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];
        assert_eq!(pick(&adapter, "o/r"), Ok((String::new(), 2)));
        let model = ["model.gguf", "mmproj-model.gguf", "imatrix.gguf", "config.json"];
        assert_eq!(pick(&model, "o/r"), Ok(("model.gguf".to_owned(), 1)));
        let both = pick(&[&adapter[..], &model].concat(), "o/r").unwrap_err();
        for line in ["hf:o/r:adapter_config.json  2.00 MiB, PEFT", "hf:o/r:model.gguf "] {
            assert!(both.contains(line), "{both}");
        }
        let named = pick(&[&adapter[..], &model].concat(), "o/r:adapter_config.json");
        assert_eq!(named, Ok((String::new(), 2)));
        let none = pick(&["pytorch_model.bin"], "o/r").unwrap_err();
        assert!(none.contains("pytorch_model.bin"), "{none}");
    }

    #[test]
    fn adapters_lie_in_folders_and_in_shards() {
        let names = [
            "adapter_config.json",
            "adapter_model.safetensors.index.json",
            "adapter_model-00001-of-00002.safetensors",
            "adapter_model-00002-of-00002.safetensors",
            "checkpoint-5/adapter_config.json",
            "checkpoint-5/adapter_model.safetensors",
        ];
        assert_eq!(pick(&names, "o/r"), Ok((String::new(), 4)));
        assert_eq!(pick(&names, "o/r:checkpoint-5"), Ok(("checkpoint-5".to_owned(), 2)));
    }

    #[test]
    fn a_split_model_is_whole() {
        let message = pick(&["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "o/r").unwrap_err();
        assert!(message.contains("of 3 parts only 2"), "{message}");
    }

    #[test]
    fn names_stay_inside() {
        for name in ["a", "a/b.gguf", "a..b/..c", "a b"] {
            check_name(name).unwrap();
        }
        for name in ["", "/a", "..", "a/../../b", "./a", "a//b", "a/", "a\\..\\b", "a\0"] {
            check_name(name).unwrap_err();
        }
    }
}
