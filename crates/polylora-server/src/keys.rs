//! API keys: who may ask, for which adapters, and how often.
//!
//! ```toml
//! [[key]]
//! name = "acme"
//! sha256 = "<what `printf %s "$KEY" | sha256sum` prints>"
//! adapters = ["acme-*", "shared"]     # `*` for any characters; missing: the base alone
//! admin = false                       # may use all adapters, load others, read metrics
//! requests_per_minute = 60            # missing: as many as it likes
//! ```
//!
//! The file holds hashes, so that who reads it cannot use the keys. They are of SHA-256 without
//! salt or rounds, for keys are long random texts, not what people remember.

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// The keys of a file.
#[derive(Debug)]
pub(crate) struct Keys(Vec<Arc<Key>>);

/// One key, and what its holder may do.
pub(crate) struct Key {
    name: String,
    hash: [u8; 32],
    adapters: Vec<String>,
    admin: bool,
    rate: Option<NonZeroU32>,
    limiter: Option<DefaultDirectRateLimiter>,
}

/// A file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("cannot read the keys in {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// It is not TOML of the form that is known.
    #[error("{}: {error}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: Box<toml::de::Error>,
    },
    /// A key is not as it should be.
    #[error("{}: the key {key:?} {why}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key's name.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is none.
    #[error("{} has no keys: nobody could ask anything", .path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default)]
    key: Vec<Entry>,
}

/// A key in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    #[serde(default)]
    adapters: Vec<String>,
    #[serde(default)]
    admin: bool,
    requests_per_minute: Option<NonZeroU32>,
}

impl Keys {
    /// Reads a file.
    pub(crate) fn open(path: &Path) -> Result<Keys, KeysError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| KeysError::Read { path: path.to_owned(), error })?;
        let listed: Listed = toml::from_str(&text)
            .map_err(|error| KeysError::Toml { path: path.to_owned(), error: Box::new(error) })?;
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        let mut keys = Vec::with_capacity(listed.key.len());
        for entry in listed.key {
            let fault = |why: &str| KeysError::Key {
                path: path.to_owned(),
                key: entry.name.clone(),
                why: why.to_owned(),
            };
            let hash = parse_hash(&entry.sha256).ok_or_else(|| {
                fault("needs sha256 to be 64 hexadecimal digits: printf %s \"$KEY\" | sha256sum")
            })?;
            if entry.name.is_empty() {
                return Err(fault("needs a name: it stands in the log"));
            }
            if !names.insert(entry.name.clone()) {
                return Err(fault("is there twice: names tell keys apart"));
            }
            if !hashes.insert(hash) {
                return Err(fault("has the hash of another: each needs a key of its own"));
            }
            let limiter = entry.requests_per_minute.map(Quota::per_minute);
            keys.push(Arc::new(Key {
                name: entry.name,
                hash,
                adapters: entry.adapters,
                admin: entry.admin,
                rate: entry.requests_per_minute,
                limiter: limiter.map(RateLimiter::direct),
            }));
        }
        match keys.is_empty() {
            true => Err(KeysError::None { path: path.to_owned() }),
            false => Ok(Keys(keys)),
        }
    }

    /// Reads a file anew. A key that is in it as before keeps what it has used up of its rate.
    pub(crate) fn reread(&self, path: &Path) -> Result<Keys, KeysError> {
        let mut keys = Keys::open(path)?;
        for key in &mut keys.0 {
            if let Some(same) = self.0.iter().find(|old| old.is_as(key)) {
                *key = Arc::clone(same);
            }
        }
        Ok(keys)
    }

    /// The key that a client sent. It takes as long whether there is one, and whichever it is.
    pub(crate) fn check(&self, sent: &str) -> Option<Arc<Key>> {
        let hash: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        let mut found = u32::MAX;
        for (place, key) in (0..).zip(&self.0) {
            found.conditional_assign(&place, key.hash.ct_eq(&hash));
        }
        self.0.get(found as usize).cloned()
    }
}

impl Key {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.admin
    }

    /// Whether its holder may use an adapter.
    pub(crate) fn may_use(&self, adapter: &str) -> bool {
        self.admin || self.adapters.iter().any(|pattern| matches(pattern, adapter))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// Where there were too many: how long to wait.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    fn is_as(&self, other: &Key) -> bool {
        let all =
            |key: &Key| (key.name.clone(), key.hash, key.adapters.clone(), key.admin, key.rate);
        all(self) == all(other)
    }
}

/// Without the hash.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { name, adapters, admin, rate, .. } = self;
        f.debug_struct("Key")
            .field("name", name)
            .field("adapters", adapters)
            .field("admin", admin)
            .field("rate", rate)
            .finish_non_exhaustive()
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    if digits.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(digits) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = (value(digits[0])? << 4 | value(digits[1])?) as u8;
    }
    Some(hash)
}

/// Whether a text is as a pattern, in which `*` stands for any characters, or none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or("");
    for part in parts {
        // The first place is as good as any: what follows has the more left.
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn hex(key: &str) -> String {
        let mut text = String::new();
        Sha256::digest(key).iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn entry(name: &str, key: &str, more: &str) -> String {
        format!("[[key]]\nname = {name:?}\nsha256 = \"{}\"\n{more}\n", hex(key))
    }

    fn open(text: &str) -> Result<Keys, KeysError> {
        Keys::open(file(text).path())
    }

    #[test]
    fn a_key_is_found_by_its_hash() {
        let text = entry("acme", "secret-1", "adapters = [\"acme-*\", \"shared\"]")
            + &entry("root", "secret-2", "admin = true");
        let keys = open(&text).unwrap();
        let acme = keys.check("secret-1").unwrap();
        assert_eq!((acme.name(), acme.is_admin()), ("acme", false));
        assert!(acme.may_use("acme-x") && acme.may_use("shared"));
        assert!(!acme.may_use("acme") && !acme.may_use("other") && !acme.may_use("xacme-x"));
        let root = keys.check("secret-2").unwrap();
        assert!(root.is_admin() && root.may_use("anything"));
        for wrong in ["", "secret-3", &hex("secret-1")] {
            assert!(keys.check(wrong).is_none(), "{wrong}");
        }
        let shown = format!("{keys:?}");
        assert!(!shown.contains(&hex("secret-1")[..8]) && !shown.contains("hash"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text: &str, expected: &str| {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        wrong("", "no keys");
        wrong("[[key]]\nname = \"a\"\nsha256 = \"12\"", "\"a\" needs sha256");
        wrong(&entry("a", "k", "admim = true"), "admim");
        wrong(&entry("a", "k", "requests_per_minute = 0"), "requests_per_minute");
        wrong(&(entry("a", "k", "") + &entry("a", "l", "")), "\"a\" is there twice");
        wrong(&(entry("a", "k", "") + &entry("b", "k", "")), "\"b\" has the hash of another");
        wrong(&entry("", "k", ""), "needs a name");
        let missing = Keys::open("no/such/file".as_ref()).unwrap_err().to_string();
        assert!(missing.contains("no/such/file"), "{missing}");
    }

    #[test]
    fn a_rate_is_kept_over_a_reload_of_the_same_key() {
        let limited = |name: &str| entry(name, "k", "requests_per_minute = 2");
        let file = file(&limited("a"));
        let keys = Keys::open(file.path()).unwrap();
        let key = keys.check("k").unwrap();
        assert_eq!([key.take().is_ok(), key.take().is_ok()], [true, true]);
        let wait = key.take().unwrap_err();
        assert!(wait > Duration::from_secs(20) && wait <= Duration::from_secs(30), "{wait:?}");
        let same = keys.reread(file.path()).unwrap().check("k").unwrap();
        assert!(same.take().is_err());
        std::fs::write(file.path(), limited("b")).unwrap();
        assert!(keys.reread(file.path()).unwrap().check("k").unwrap().take().is_ok());
        std::fs::write(file.path(), "nonsense").unwrap();
        assert!(keys.reread(file.path()).is_err());
    }

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "x"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("a*b*", "aXb"),
            ("*a*a", "aa"),
            ("a*bc*bc", "abcbc"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "x"), ("a*", "ba"), ("a*c", "ab"), ("a*a", "a"), ("*b*", "a"), ("a*bc*bc", "abc")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
