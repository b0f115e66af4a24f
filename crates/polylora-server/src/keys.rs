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
    #[error("{}, line {line}: {why}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        why: String,
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

impl KeysError {
    /// Without the file's text, which the parser's own error has in it: hashes are not for the log.
    fn toml(path: &Path, text: &str, field: Option<String>, error: &toml::de::Error) -> KeysError {
        let before = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
        let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
        KeysError::Toml { path: path.to_owned(), line, why: format!("{field}{}", error.message()) }
    }
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
        if is_open_to_all(path) {
            let path = path.display();
            tracing::warn!(%path, "all users of this machine may read the keys' hashes: chmod o-r");
        }
        let fault = |field, error: &_| KeysError::toml(path, &text, field, error);
        let parser = toml::Deserializer::parse(&text).map_err(|error| fault(None, &error))?;
        let listed: Listed = serde_path_to_error::deserialize(parser)
            .map_err(|error| fault(Some(error.path().to_string()), error.inner()))?;
        let nothing: [u8; 32] = Sha256::digest(b"").into();
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
            if hash == nothing {
                return Err(fault(
                    "has the hash of no text: was the variable set that was hashed?",
                ));
            }
            if entry.name.trim().is_empty() || entry.name.contains(char::is_control) {
                return Err(fault("needs a name of one line: it stands in the log"));
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
        let Key { name, hash, adapters, admin, rate, limiter: _ } = self;
        (name, hash, adapters, admin, rate)
            == (&other.name, &other.hash, &other.adapters, &other.admin, &other.rate)
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

/// Whether everybody on this machine can read a file.
#[cfg(unix)]
fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

/// Other systems have no such bit.
#[cfg(not(unix))]
fn is_open_to_all(_: &Path) -> bool {
    false
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tracing::span;

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
        let shown = "Key { name: \"root\", adapters: [], admin: true, rate: None, .. }";
        assert_eq!(format!("{root:?}"), shown);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text: &str, expected: &str| {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        wrong("", "no keys");
        let almost = hex("k");
        let (longer, odd) = (format!("{almost}00"), format!("{almost}0"));
        for hash in ["", "12", &almost[1..], &longer, &odd, &almost.replace('c', "g")] {
            let text = format!("[[key]]\nname = \"a\"\nsha256 = {hash:?}");
            wrong(&text, "\"a\" needs sha256");
        }
        wrong(&entry("a", "", ""), "\"a\" has the hash of no text");
        wrong(&format!("[[key]]\nsha256 = \"{almost}\""), "missing field `name`");
        wrong("[[key]]\nname = \"a\"", "missing field `sha256`");
        wrong("keys = 1", "line 1: keys: unknown field");
        wrong(
            &(entry("a", "k", "") + &entry("b", "l", "admim = true")),
            "line 8: key[1].admim: unknown field",
        );
        wrong(&entry("a", "k", "admim = true"), "admim");
        wrong(&entry("a", "k", "requests_per_minute = 0"), "line 4: key[0].requests_per_minute: ");
        wrong(&entry("a", "k", "requests_per_minute = -1"), "requests_per_minute");
        wrong(&entry("a", "k", "adapters = \"x\""), "key[0].adapters");
        wrong(&(entry("a", "k", "") + &entry("a", "l", "")), "\"a\" is there twice");
        wrong(&(entry("a", "k", "") + &entry("b", "k", "")), "\"b\" has the hash of another");
        for name in ["", " ", "a\nb"] {
            wrong(&entry(name, "k", ""), "needs a name");
        }
        let missing = Keys::open("no/such/file".as_ref()).unwrap_err().to_string();
        assert!(missing.contains("no/such/file"), "{missing}");
    }

    #[test]
    fn no_error_shows_a_hash() {
        let good = entry("a", "k", "");
        for bad in [format!("{good}[[key"), format!("{good}x = 1"), good.replace("\"\n", "\n")] {
            let error = open(&bad).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains(&hex("k")[..8]), "{shown}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_all_may_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let file = file(&entry("a", "k", ""));
        for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o604, 1), (0o644, 1)] {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            let warned = Warned::default();
            tracing::subscriber::with_default(warned.clone(), || Keys::open(file.path()).unwrap());
            assert_eq!(warned.0.load(Ordering::Relaxed), warnings, "{mode:o}");
        }
    }

    /// Counts warnings.
    #[derive(Clone, Default)]
    struct Warned(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warned {
        fn enabled(&self, event: &tracing::Metadata<'_>) -> bool {
            *event.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn every_key_is_found_wherever_it_stands() {
        let names: Vec<String> = (0..9).map(|number| format!("key-{number}")).collect();
        let text: String = names.iter().map(|name| entry(name, name, "")).collect();
        let keys = open(&text).unwrap();
        for name in &names {
            assert_eq!(keys.check(name).unwrap().name(), name);
        }
        let hash = hex("key-0");
        // Of another hash in one bit of any byte it is not the key.
        for at in 0..32 {
            let byte = u8::from_str_radix(&hash[2 * at..][..2], 16).unwrap() ^ 1;
            let other = format!("{}{byte:02x}{}", &hash[..2 * at], &hash[2 * at + 2..]);
            let keys = open(&entry("a", "key-0", "").replace(&hash, &other)).unwrap();
            assert!(keys.check("key-0").is_none(), "byte {at}");
        }
        let upper = open(&entry("a", "key-0", "").replace(&hash, &hash.to_uppercase())).unwrap();
        assert!(upper.check("key-0").is_some());
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
        for changed in [
            limited("b"),
            limited("a").replace("= 2", "= 3"),
            limited("a") + "admin = true",
            limited("a") + "adapters = [\"x\"]",
        ] {
            std::fs::write(file.path(), &changed).unwrap();
            let other = keys.reread(file.path()).unwrap().check("k").unwrap();
            assert!(other.take().is_ok(), "a key that is not as before begins anew: {changed}");
        }
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
