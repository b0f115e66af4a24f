//! What can be wrong with a file, one variant for each fault.

use crate::gguf::ValueType;
use crate::tensor::ShapeError;
use polylora_quant::{GgmlType, UnknownType};
use std::io;
use std::path::{Path, PathBuf};

/// A file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file. Where something is to be done about it, the message says what.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The system refused.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// Another kind of file.
    #[error("not a GGUF file: it begins with {found:?} instead of \"GGUF\"")]
    Magic {
        /// The first four bytes, made printable.
        found: String,
    },
    /// The bytes of every number are reversed.
    #[error(
        "a big-endian GGUF file, which is not read here: convert it with \
         `gguf-convert-endian FILE little`, from the Python package gguf"
    )]
    BigEndian,
    /// The format of the summer of 2023.
    #[error("a GGUF file of version 1, which is no longer read: make it anew from its source")]
    Version1,
    /// Of the future.
    #[error("a GGUF file of version {0}, where 2 and 3 are known: a newer program may read it")]
    Version(u32),
    /// By `general.type`.
    #[error("this is an {0}, not a model")]
    NotAModel(String),
    /// The end came too soon.
    #[error(
        "the file ends within {reading}: expected at least {expected} bytes, found {found}. \
         Is the download complete?"
    )]
    Truncated {
        /// Where it ends.
        reading: &'static str,
        /// Bytes that the file must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// More of something than any honest file has.
    #[error("{count} {what} are more than the limit of {limit}: the file is damaged")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A string longer than any honest file has.
    #[error(
        "{what} at byte {at} is {length} bytes long, more than the limit of {limit}: the file is \
         damaged"
    )]
    TooLong {
        /// What the string is.
        what: &'static str,
        /// Where its length stands.
        at: u64,
        /// The length.
        length: u64,
        /// How long it may be.
        limit: u64,
    },
    /// A count below zero.
    #[error("{what} before byte {at} is negative: the file is damaged")]
    Negative {
        /// What was counted.
        what: &'static str,
        /// Where the count ends.
        at: u64,
    },
    /// A name that is no text.
    #[error("{what} at byte {at} is not UTF-8: the file is damaged")]
    NotText {
        /// What has the name.
        what: &'static str,
        /// Where it stands.
        at: u64,
    },
    /// A name of no characters.
    #[error("{what} at byte {at} is empty: the file is damaged")]
    EmptyName {
        /// What has the name.
        what: &'static str,
        /// Where it stands.
        at: u64,
    },
    /// A key with two values.
    #[error("the key {0} is there twice")]
    DuplicateKey(String),
    /// A type of value that is not known.
    #[error("the key {key} has a value of type {id} (at byte {at}), which is unknown")]
    ValueType {
        /// The key.
        key: String,
        /// Where the type stands.
        at: u64,
        /// The type's id.
        id: u32,
    },
    /// Neither true nor false.
    #[error("the key {key} has a boolean (at byte {at}) that is {found}, neither 0 nor 1")]
    Bool {
        /// The key.
        key: String,
        /// Where it stands.
        at: u64,
        /// The byte.
        found: u8,
    },
    /// Arrays within arrays within arrays.
    #[error("the key {key} has arrays within arrays more than {limit} deep")]
    ArrayDepth {
        /// The key.
        key: String,
        /// How deep they may be.
        limit: usize,
    },
    /// `general.alignment` is a `u32`.
    #[error("general.alignment is of type {0:?}, where U32 is demanded")]
    AlignmentType(ValueType),
    /// No alignment.
    #[error(
        "general.alignment is {0}: neither a power of two nor a multiple of 8, or more than a \
         huge page"
    )]
    Alignment(u32),
    /// Two tensors of one name.
    #[error("the tensor {0} is there twice")]
    DuplicateTensor(String),
    /// More dimensions than ggml has.
    #[error("tensor {tensor} has {found} dimensions, more than the limit of {limit}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// How many it has.
        found: u64,
        /// How many it may have.
        limit: u32,
    },
    /// A type that is not known, or no longer.
    #[error("tensor {tensor}: {error}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// What is wrong with its type.
        error: UnknownType,
    },
    /// A shape that does not go with the type or the bytes.
    #[error("tensor {tensor}: {error}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        error: ShapeError,
    },
    /// A tensor between the marks.
    #[error(
        "tensor {tensor} begins at byte {offset} of the data, which is no multiple of the file's \
         alignment {alignment}: the file is damaged"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Where it begins, within the data.
        offset: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// Two tensors at one place.
    #[error("tensors {first} and {second} overlap (at byte {at}): the file is damaged")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins before it ends.
        second: String,
        /// Where the second begins, within the file.
        at: u64,
    },
    /// A tensor beyond the end.
    #[error(
        "tensor {tensor} of {bytes} bytes at byte {offset} of the data lies beyond the file's \
         end at {found}: the file is damaged"
    )]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Where it begins, within the data.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// Part of a split file under a name that does not say which.
    #[error(
        "part {no} of {count} of a split file: its name must end in -{no:05}-of-{count:05}.gguf"
    )]
    PartName {
        /// Which part, from 1.
        no: u64,
        /// How many there are.
        count: u64,
    },
    /// A split file, not all of which is there.
    #[error("this file is missing; {} refers to it", .of.display())]
    PartMissing {
        /// The part or the index that speaks of it.
        of: PathBuf,
    },
    /// Part of another file.
    #[error(
        "this should be part {no} of {count}, but its metadata say part {found_no} of {found_count}"
    )]
    PartDisagrees {
        /// Which part its name says.
        no: u64,
        /// How many there should be.
        count: u64,
        /// `split.no` in it, counted from 1.
        found_no: u64,
        /// `split.count` in it.
        found_count: u64,
    },
    /// Parts that do not make up the whole.
    #[error("the parts have {found} tensors together, where split.tensors.count says {expected}")]
    PartTensors {
        /// `split.tensors.count`.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The `safetensors` crate refused it.
    #[error("not a sound safetensors file: {0}")]
    Safetensors(safetensors::SafeTensorError),
    /// A type of number that has no ggml type.
    #[error(
        "tensor {tensor} holds numbers of type {dtype}, which are not read here: save it as F32, \
         F16 or BF16"
    )]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: safetensors::Dtype,
    },
    /// Not the JSON that was expected.
    #[error("not a sound index of shards: {0}")]
    Index(serde_json::Error),
    /// A shard that would be anywhere.
    #[error("the index names the shard {0:?}, which is no plain file name: it is not followed")]
    ShardName(String),
    /// The index and the shards differ.
    #[error("tensor {tensor} is not in {expected}, where the index places it")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard's file name in the index.
        expected: String,
    },
    /// The index and the shards differ.
    #[error("tensor {tensor} is in {shard}, where the index does not place it")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },
    /// Another kind of file.
    #[error("not an importance matrix: {0}")]
    NotImatrix(&'static str),
    /// Half of an importance matrix's entry.
    #[error("{missing} is missing, without which the importance of {tensor} is not known")]
    ImatrixPair {
        /// The tensor whose importance it is.
        tensor: String,
        /// The name that is not there.
        missing: String,
    },
    /// Sums and counts are singles.
    #[error("tensor {tensor} is of type {ty}: an importance matrix has F32")]
    ImatrixType {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// There is one count for each expert.
    #[error("{counts} counts do not go with {sums} sums for the importance of {tensor}")]
    ImatrixCounts {
        /// The tensor whose importance it is.
        tensor: String,
        /// Number of sums.
        sums: usize,
        /// Number of counts.
        counts: usize,
    },
    /// NaN, or infinity.
    #[error("the importance of {tensor} is not a finite number everywhere: make the matrix anew")]
    NotFinite {
        /// The tensor whose importance it is.
        tensor: String,
    },
    /// A file that is still to be read.
    #[error("the output is the input {}: choose another name", .0.display())]
    IsInput(PathBuf),
    /// Nothing is replaced unasked.
    #[error("the file exists: choose another name, or ask to overwrite it")]
    Exists,
    /// A folder or a device, which is never replaced.
    #[error("it exists and is not a regular file: choose another name")]
    NotAFile,
    /// The disk is full, or would be.
    #[error("not enough room: {needed} bytes are needed{}", match .free {
        Some(free) => format!(", {free} are free"),
        None => String::new(),
    })]
    NoRoom {
        /// Bytes that the output takes.
        needed: u64,
        /// Bytes free on its disk, where that is known.
        free: Option<u64>,
    },
    /// Larger than a file may be.
    #[error(
        "its {0} bytes are more than the disk's format or the user's limit (ulimit -f) allows a \
         file to have: split it, or choose another folder"
    )]
    FileTooLarge(u64),
    /// A name that no file can have.
    #[error("a name of {length} bytes cannot be written: 1 to {limit} are possible")]
    Name {
        /// Its length.
        length: usize,
        /// How long it may be.
        limit: u64,
    },
    /// A write outside of its tensor.
    #[error("{bytes} bytes at {offset} do not fit tensor {tensor} of {size} bytes")]
    OutsideTensor {
        /// The tensor.
        tensor: String,
        /// Where the write would begin, within the tensor.
        offset: u64,
        /// How many bytes it has.
        bytes: u64,
        /// The tensor's size.
        size: u64,
    },
    /// Not every byte of every tensor was written.
    #[error("{written} of {expected} bytes of tensors were written")]
    Unfinished {
        /// Bytes written.
        written: u64,
        /// Bytes of all tensors.
        expected: u64,
    },
}

impl Fault {
    /// The error: this, in that file.
    pub(crate) fn at(self, path: &Path) -> Error {
        Error { path: path.to_owned(), fault: self }
    }

    /// What the system said while `doing`.
    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Fault {
        move |error| Fault::Io { doing, error }
    }
}
