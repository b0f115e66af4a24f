//! Texts by number and numbers by text.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// Distinct texts, numbered in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Strings {
    /// All texts, one after another.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// The numbers, found by the hash of their texts.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Strings {
    /// Room for this many.
    pub(super) fn with_capacity(count: usize) -> Strings {
        Strings {
            ends: Vec::with_capacity(count),
            numbers: HashTable::with_capacity(count),
            ..Strings::default()
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A text by its number, which must be below [`Strings::len`].
    pub(super) fn text(&self, number: u32) -> &[u8] {
        text(&self.bytes, &self.ends, number)
    }

    /// The number of a text.
    pub(super) fn find(&self, wanted: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(wanted);
        self.numbers.find(hash, |&number| self.text(number) == wanted).copied()
    }

    /// The number of a text, which is added where it is new.
    pub(super) fn add(&mut self, new: &[u8]) -> u32 {
        let Strings { bytes, ends, numbers, hasher } = self;
        let hash = hasher.hash_one(new);
        if let Some(&number) = numbers.find(hash, |&number| text(bytes, ends, number) == new) {
            return number;
        }
        // Texts come from a file, which would have to be of some 50 GB.
        let number = u32::try_from(ends.len()).expect("fewer than 4 billion texts");
        bytes.extend_from_slice(new);
        ends.push(bytes.len());
        let rehash = |&number: &u32| hasher.hash_one(text(bytes, ends, number));
        numbers.insert_unique(hash, number, rehash);
        number
    }
}

fn text<'a>(bytes: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start..ends[number]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_numbered_once() {
        let mut strings = Strings::default();
        assert_eq!(strings.find(b""), None);
        for (number, text) in ["a", "", "bc"].into_iter().enumerate() {
            assert_eq!(strings.add(text.as_bytes()), number as u32);
        }
        assert_eq!((strings.add(b"a"), strings.add(b""), strings.len()), (0, 1, 3));
        assert_eq!(
            (strings.text(0), strings.text(1), strings.text(2)),
            (&b"a"[..], &b""[..], &b"bc"[..])
        );
        assert_eq!((strings.find(b"bc"), strings.find(b"b")), (Some(2), None));
    }
}
