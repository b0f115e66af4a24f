//! Importance matrices: for each column of a tensor how much an error there counts, as
//! llama.cpp's `llama-imatrix` measures it.
//!
//! Both of its formats are read. The values are those that `llama-quantize` gives its encoders,
//! to the bit, so that the same importance makes the same file.

use crate::cursor::Cursor;
use crate::gguf::limits::{MAX_NAME, MAX_TENSORS};
use crate::{Bytes, Error, Fault, Gguf, Tensor, Value};
use polylora_quant::GgmlType;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How the name of a tensor's sums of squared inputs ends, in the format that is GGUF.
const SUMS: &str = ".in_sum2";
/// How the name of their counts ends.
const COUNTS: &str = ".counts";

/// The importance of the columns of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Vec<f32>>,
    datasets: Vec<String>,
    chunks: Option<u64>,
    chunk_size: Option<u64>,
}

impl Imatrix {
    /// Opens a file of either format.
    ///
    /// # Errors
    /// Where it cannot be read, is not sound, or holds what is not a number.
    pub fn open(path: &Path) -> Result<Imatrix, Error> {
        let bytes = Bytes::map(path).map_err(|error| Fault::io("read it")(error).at(path))?;
        Imatrix::parse(path, bytes)
    }

    /// Reads a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`Imatrix::open`].
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Imatrix, Error> {
        let imatrix = if bytes.starts_with(b"GGUF") {
            from_gguf(&Gguf::parse(path, bytes)?)
        } else {
            from_legacy(&bytes)
        };
        imatrix.and_then(Imatrix::checked).map_err(|fault| fault.at(path))
    }

    fn checked(self) -> Result<Imatrix, Fault> {
        let not_finite = |(_, values): &(_, &Vec<f32>)| !values.iter().all(|v| v.is_finite());
        match self.entries.iter().find(not_finite) {
            Some((tensor, _)) => Err(Fault::NotFinite { tensor: tensor.clone() }),
            None if self.entries.is_empty() => Err(Fault::NotImatrix("it has no entries")),
            None => Ok(self),
        }
    }

    /// The importance of a tensor's columns; for one of several experts, those of all its
    /// experts, one after the other.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }

    /// All tensors that it knows, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.entries.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// The texts that it was measured on.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// How many chunks of text were used, where the file tells.
    pub fn chunks(&self) -> Option<u64> {
        self.chunks
    }

    /// Tokens in a chunk, where the file tells.
    pub fn chunk_size(&self) -> Option<u64> {
        self.chunk_size
    }
}

/// The newer format: of each tensor the sums of squares of each input, and how many there were.
fn from_gguf(file: &Gguf) -> Result<Imatrix, Fault> {
    let stems = file.tensors().iter().filter_map(|tensor| {
        tensor.name.strip_suffix(SUMS).or_else(|| tensor.name.strip_suffix(COUNTS))
    });
    let mut entries = BTreeMap::new();
    for name in stems.collect::<BTreeSet<_>>() {
        let half = |suffix: &str| {
            let half = format!("{name}{suffix}");
            let tensor = file.tensor(&half);
            tensor.ok_or(Fault::ImatrixPair { tensor: name.to_owned(), missing: half })
        };
        let (sums, counts) = (singles(half(SUMS)?)?, singles(half(COUNTS)?)?);
        entries.insert(name.to_owned(), means(name, sums, &counts)?);
    }
    if entries.is_empty() {
        return Err(Fault::NotImatrix("it is a GGUF file without `.in_sum2` tensors"));
    }
    let metadata = file.metadata();
    let datasets = match metadata.get("imatrix.datasets") {
        Some(Value::Array(array)) => {
            let strings = array.strings().into_iter().flatten();
            strings.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        }
        _ => Vec::new(),
    };
    let (chunks, chunk_size) =
        (metadata.u64("imatrix.chunk_count"), metadata.u64("imatrix.chunk_size"));
    Ok(Imatrix { entries, datasets, chunks, chunk_size })
}

fn singles(tensor: &Tensor) -> Result<Vec<f32>, Fault> {
    let wrong = |ty| Fault::ImatrixType { tensor: tensor.name.clone(), ty };
    match tensor.ty {
        GgmlType::F32 => tensor.to_f32().map_err(|_| wrong(tensor.ty)),
        ty => Err(wrong(ty)),
    }
}

/// Divides the sums of each expert by its count. Experts that saw nothing count alike everywhere.
fn means(tensor: &str, mut sums: Vec<f32>, counts: &[f32]) -> Result<Vec<f32>, Fault> {
    let tensor = || tensor.to_owned();
    // No counts at all divide no sums but none.
    if sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        let (sums, counts) = (sums.len(), counts.len());
        return Err(Fault::ImatrixCounts { tensor: tensor(), sums, counts });
    }
    if !counts.iter().all(|count| count.is_finite()) {
        return Err(Fault::NotFinite { tensor: tensor() });
    }
    let columns = sums.len() / counts.len();
    for (sums, count) in sums.chunks_exact_mut(columns).zip(counts) {
        // Rounded to an integer, halves away from zero, and back: so does llama.cpp.
        let count = count.round() as i64 as f32;
        if count > 0.0 {
            sums.iter_mut().for_each(|sum| *sum /= count);
        } else {
            sums.fill(1.0);
        }
    }
    Ok(sums)
}

/// The older format, which has no magic:
/// ```text
/// entries: i32
/// entries times:  name: i32 length, bytes | calls: i32 | count: i32 | values: f32, count of them
/// chunks: i32 | dataset: i32 length, bytes          both may be missing
/// ```
fn from_legacy(bytes: &Bytes) -> Result<Imatrix, Fault> {
    let mut cursor = Cursor::new(bytes, "its first bytes");
    let count = cursor.i32()?;
    if count < 1 || count as u64 > MAX_TENSORS {
        return Err(Fault::NotImatrix("it has neither GGUF's magic nor a sensible count"));
    }
    cursor.reading = "the entries";
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = legacy_name(&mut cursor)?;
        let calls = cursor.i32()?;
        let values = legacy_count(&mut cursor, "the number of values")?;
        let bytes = cursor.take(values * size_of::<f32>() as u64)?;
        let mut values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")))
            .collect();
        if calls > 0 {
            values.iter_mut().for_each(|value| *value /= calls as f32);
        }
        if entries.insert(name.clone(), values).is_some() {
            return Err(Fault::DuplicateTensor(name));
        }
    }
    let mut chunks = None;
    let mut datasets = Vec::new();
    if !cursor.is_at_end() {
        chunks = u64::try_from(cursor.i32()?).ok();
        if !cursor.is_at_end() {
            let length = legacy_count(&mut cursor, "the length of the dataset's name")?;
            let name = String::from_utf8_lossy(cursor.take(length)?).into_owned();
            datasets.extend(Some(name).filter(|name| !name.is_empty()));
        }
    }
    Ok(Imatrix { entries, datasets, chunks, chunk_size: None })
}

fn legacy_count(cursor: &mut Cursor<'_>, what: &'static str) -> Result<u64, Fault> {
    let count = cursor.i32()?;
    count.try_into().map_err(|_| Fault::Negative { what, at: cursor.at() as u64 })
}

fn legacy_name(cursor: &mut Cursor<'_>) -> Result<String, Fault> {
    let (what, at) = ("a tensor's name", cursor.at() as u64);
    let length = legacy_count(cursor, "the length of a tensor's name")?;
    if length > MAX_NAME {
        return Err(Fault::TooLong { what, at, length, limit: MAX_NAME });
    }
    match std::str::from_utf8(cursor.take(length)?) {
        Ok("") => Err(Fault::EmptyName { what, at }),
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(Fault::NotText { what, at }),
    }
}
