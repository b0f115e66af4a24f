//! Importance matrices: for each column of a tensor how much an error there counts, as
//! llama.cpp's `llama-imatrix` measures it.
//!
//! Both of its formats are read. The values are those that `llama-quantize` gives its encoders,
//! to the bit, so that the same importance makes the same file. The newer one is written too
//! ([`Sums`]):
//!
//! ```text
//! general.type = "imatrix"     imatrix.datasets: strings
//! imatrix.chunk_count: u32     imatrix.chunk_size: u32, tokens
//! for each tensor, in the order of their names:
//!   NAME.in_sum2   f32   (columns), or (experts, columns)
//!   NAME.counts    f32   (1), or (experts, 1)
//! ```

use crate::cursor::Cursor;
use crate::gguf::limits::{MAX_NAME, MAX_TENSORS};
use crate::{
    Bytes, Error, Fault, Gguf, GgufWriter, Metadata, Tensor, TensorPlan, Value, WriteOptions,
};
use polylora_quant::GgmlType;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How the name of a tensor's sums of squared inputs ends, in the format that is GGUF.
const SUMS: &str = ".in_sum2";
/// How the name of their counts ends.
const COUNTS: &str = ".counts";

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

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

/// What an importance matrix is made of, while it is gathered: sums of squared inputs of tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    tensors: BTreeMap<String, TensorSums>,
}

/// Sums over the inputs of a matrix, or of a stack of experts'.
#[derive(Clone, Debug, PartialEq)]
struct TensorSums {
    /// `(columns)`, or `(experts, columns)`.
    shape: Vec<usize>,
    /// In double precision: of a long text, a single would no longer notice what is added.
    squares: Vec<f64>,
    /// Inputs, of each expert.
    counts: Vec<u64>,
}

/// What an importance matrix was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured<'a> {
    /// Names of the texts.
    pub datasets: &'a [String],
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens in a chunk.
    pub chunk_size: u32,
}

impl Sums {
    /// Adds what a matrix of weights, `(rows, columns)`, or of a stack `(experts, rows, columns)` one
    /// expert, was multiplied with: `inputs` is `(tokens, columns)`.
    ///
    /// # Panics
    /// Where the inputs are not whole rows, there is no such expert, or the tensor had another shape
    /// before.
    pub fn add(&mut self, tensor: &str, shape: &[usize], expert: usize, inputs: &[f32]) {
        let columns = shape.last().copied().unwrap_or(1);
        assert!(inputs.len().is_multiple_of(columns), "whole rows");
        let sums = self.tensors.entry(tensor.to_owned()).or_insert_with(|| {
            let stack = if let [experts, _, _] = shape { vec![*experts] } else { Vec::new() };
            let experts = stack.first().copied().unwrap_or(1);
            TensorSums {
                shape: stack.into_iter().chain([columns]).collect(),
                squares: vec![0.0; experts * columns],
                counts: vec![0; experts],
            }
        });
        let squares = &mut sums.squares[expert * columns..][..columns];
        for input in inputs.chunks_exact(columns) {
            for (sum, &value) in squares.iter_mut().zip(input) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        sums.counts[expert] += (inputs.len() / columns) as u64;
    }

    /// The tensors of which something was added, by name; and how many of their experts have seen
    /// nothing, so that all their columns count alike.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tensors.iter().map(|(name, sums)| {
            let unseen = sums.counts.iter().filter(|&&count| count == 0).count();
            (name.as_str(), unseen)
        })
    }

    /// Writes them as a GGUF file that llama.cpp reads.
    ///
    /// # Errors
    /// Where there are none, a sum is not a finite number, or the file cannot be written, or exists and
    /// `overwrite` is not set.
    pub fn write(&self, path: &Path, measured: Measured<'_>, overwrite: bool) -> Result<(), Error> {
        if self.tensors.is_empty() {
            return Err(Fault::NotImatrix("it has no entries").at(path));
        }
        let mut plans = Vec::new();
        let mut values: Vec<Vec<f32>> = Vec::new();
        for (name, sums) in &self.tensors {
            let squares: Vec<f32> = sums.squares.iter().map(|&sum| sum as f32).collect();
            if !squares.iter().all(|sum| sum.is_finite()) {
                return Err(Fault::NotFinite { tensor: name.clone() }.at(path));
            }
            let stack = &sums.shape[..sums.shape.len() - 1];
            let plan = |suffix: &str, shape: Vec<usize>| TensorPlan {
                name: format!("{name}{suffix}"),
                ty: GgmlType::F32,
                shape,
            };
            plans.push(plan(SUMS, sums.shape.clone()));
            plans.push(plan(COUNTS, [stack, &[1]].concat()));
            values.extend([squares, sums.counts.iter().map(|&count| count as f32).collect()]);
        }
        let options = WriteOptions { overwrite, ..WriteOptions::default() };
        let writer = GgufWriter::create(path, &measured.metadata(), &plans, options)?;
        for (i, values) in values.iter().enumerate() {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write_at(i, 0, &bytes)?;
        }
        writer.finish()?;
        Ok(())
    }
}

impl Measured<'_> {
    fn metadata(&self) -> Metadata {
        let datasets: Vec<Value> = self.datasets.iter().map(|name| name.as_str().into()).collect();
        let mut metadata = Metadata::default();
        metadata.insert("general.type", "imatrix".into());
        metadata.insert_array(DATASETS, &datasets).expect("all are strings");
        metadata.insert(CHUNK_COUNT, Value::U32(self.chunks));
        metadata.insert(CHUNK_SIZE, Value::U32(self.chunk_size));
        metadata
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
    let datasets = match metadata.get(DATASETS) {
        Some(Value::Array(array)) => {
            let strings = array.strings().into_iter().flatten();
            strings.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        }
        _ => Vec::new(),
    };
    let (chunks, chunk_size) = (metadata.u64(CHUNK_COUNT), metadata.u64(CHUNK_SIZE));
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"];

    fn gathered() -> Sums {
        let mut sums = Sums::default();
        sums.add(NAMES[0], &[7, 2], 0, &[1.0, 2.0, 3.0, 4.0]);
        sums.add(NAMES[0], &[7, 2], 0, &[-5.0, 0.0]);
        // Of three experts, the middle one sees nothing.
        sums.add(NAMES[1], &[3, 7, 2], 2, &[1.0, 1.0, 1.0, 3.0]);
        sums.add(NAMES[1], &[3, 7, 2], 0, &[2.0, 0.5]);
        sums
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        let datasets = ["wiki.txt".to_owned()];
        let measured = Measured { datasets: &datasets, chunks: 3, chunk_size: 512 };
        gathered().write(&path, measured, false).unwrap();
        assert_eq!(gathered().tensors().collect::<Vec<_>>(), [(NAMES[0], 0), (NAMES[1], 1)]);

        let read = Imatrix::open(&path).unwrap();
        assert_eq!(read.get(NAMES[0]).unwrap(), [35.0 / 3.0, 20.0 / 3.0]);
        assert_eq!(read.get(NAMES[1]).unwrap(), [4.0, 0.25, 1.0, 1.0, 1.0, 5.0]);
        assert_eq!(read.datasets(), datasets);
        assert_eq!((read.chunks(), read.chunk_size()), (Some(3), Some(512)));

        // Shapes as llama.cpp writes them.
        let file = Gguf::open(&path).unwrap();
        let shapes = file.tensors().iter().map(|tensor| (&*tensor.name, &*tensor.shape));
        let expected: [(&str, &[usize]); 4] = [
            ("blk.0.attn_q.weight.in_sum2", &[2]),
            ("blk.0.attn_q.weight.counts", &[1]),
            ("blk.0.ffn_up_exps.weight.in_sum2", &[3, 2]),
            ("blk.0.ffn_up_exps.weight.counts", &[3, 1]),
        ];
        assert_eq!(shapes.collect::<Vec<_>>(), expected);

        // Not over a file that is there, unless that is meant.
        assert!(gathered().write(&path, measured, false).is_err());
        gathered().write(&path, measured, true).unwrap();
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        let measured = Measured { datasets: &[], chunks: 1, chunk_size: 1 };
        let fault = |sums: Sums| sums.write(&path, measured, false).unwrap_err().fault;
        assert!(matches!(fault(Sums::default()), Fault::NotImatrix(_)));
        let mut sums = gathered();
        sums.add("t", &[1, 1], 0, &[f32::NAN]);
        assert!(matches!(fault(sums), Fault::NotFinite { tensor } if tensor == "t"));
        assert!(!path.exists());
    }
}
