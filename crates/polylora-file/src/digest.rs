//! Hashes of content.

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// SHA-256 of the parts one after the other, in hexadecimal.
///
/// ```
/// let hash = polylora_file::sha256([&b"a"[..], b"bc"]);
/// assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
/// ```
pub fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
