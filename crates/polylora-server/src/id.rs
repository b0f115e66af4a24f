//! Names for requests and answers.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A new name: the prefix, and a random number.
pub(crate) fn new(prefix: &str) -> String {
    // The standard library keys its hashers from the system's source of randomness.
    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:016x}", random(), random())
}
