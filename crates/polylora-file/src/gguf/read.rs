//! From bytes to metadata and tensors, trusting none of them.

use super::alignment;
use super::limits::{MAX_DIMENSIONS, MAX_METADATA, MAX_NAME, MAX_TENSORS};
use super::metadata::{Metadata, Value, read_type};
use crate::cursor::Cursor;
use crate::tensor::tensor_bytes;
use crate::{Bytes, Fault, Tensor};
use polylora_quant::GgmlType;
use std::collections::HashSet;

/// What a file has.
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) alignment: usize,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Tensor>,
}

/// A tensor as the header describes it.
struct Info<'a> {
    name: &'a str,
    ty: GgmlType,
    shape: Vec<usize>,
    /// From the beginning of the data.
    offset: u64,
    bytes: u64,
}

/// Reads a file.
pub(super) fn contents(bytes: &Bytes) -> Result<Contents, Fault> {
    let mut cursor = Cursor::new(bytes, "its first bytes");
    let version = version(&mut cursor)?;
    let tensors = count(&mut cursor, "tensors", MAX_TENSORS)?;
    let entries = count(&mut cursor, "entries of metadata", MAX_METADATA)?;

    cursor.reading = "the metadata";
    let metadata = metadata(&mut cursor, entries)?;
    let alignment = alignment(&metadata)?;

    cursor.reading = "the list of tensors";
    let infos = infos(&mut cursor, tensors, alignment)?;
    let data = (cursor.at() as u64).next_multiple_of(alignment as u64);
    check_places(&infos, alignment, data, bytes.len() as u64)?;
    let tensors = infos
        .into_iter()
        .map(|info| {
            let start = (data + info.offset) as usize;
            let bytes = bytes.slice(start..start + info.bytes as usize).expect("checked");
            Tensor::new(info.name, info.ty, info.shape, bytes).expect("checked")
        })
        .collect();
    Ok(Contents { version, alignment, metadata, tensors })
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
    let magic = cursor.take(4)?;
    if magic != b"GGUF" {
        return Err(Fault::Magic { found: magic.escape_ascii().to_string() });
    }
    match cursor.u32()? {
        1 => Err(Fault::Version1),
        version @ (2 | 3) => Ok(version),
        // Small versions with their bytes reversed.
        version if version != 0 && version & 0xffff == 0 => Err(Fault::BigEndian),
        version => Err(Fault::Version(version)),
    }
}

fn count(cursor: &mut Cursor<'_>, what: &'static str, limit: u64) -> Result<u64, Fault> {
    let count = cursor.u64()?;
    if count > limit { Err(Fault::TooMany { what, count, limit }) } else { Ok(count) }
}

// No capacity is reserved for a count that the file claims: what is read takes some bytes of it,
// so memory stays in proportion to what is there.

fn metadata(cursor: &mut Cursor<'_>, entries: u64) -> Result<Metadata, Fault> {
    let mut metadata = Metadata::default();
    let mut seen = HashSet::new();
    for _ in 0..entries {
        let key = cursor.name("a key", MAX_NAME)?;
        if !seen.insert(key) {
            return Err(Fault::DuplicateKey(key.to_owned()));
        }
        let ty = read_type(cursor, key)?;
        metadata.entries.push((key.to_owned(), Value::read(cursor, ty, key)?));
    }
    Ok(metadata)
}

fn infos<'a>(
    cursor: &mut Cursor<'a>,
    tensors: u64,
    alignment: usize,
) -> Result<Vec<Info<'a>>, Fault> {
    let mut infos = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..tensors {
        let info = info(cursor, alignment)?;
        if !seen.insert(info.name) {
            return Err(Fault::DuplicateTensor(info.name.to_owned()));
        }
        infos.push(info);
    }
    Ok(infos)
}

fn info<'a>(cursor: &mut Cursor<'a>, alignment: usize) -> Result<Info<'a>, Fault> {
    let name = cursor.name("a tensor's name", MAX_NAME)?;
    let tensor = || name.to_owned();
    let dimensions = cursor.u32()?;
    if dimensions > MAX_DIMENSIONS {
        let (found, limit) = (dimensions.into(), MAX_DIMENSIONS);
        return Err(Fault::Dimensions { tensor: tensor(), found, limit });
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        // A dimension too large for this machine makes a shape too large for any.
        shape.push(usize::try_from(cursor.u64()?).unwrap_or(usize::MAX));
    }
    shape.reverse();
    let ty = GgmlType::from_id(cursor.u32()?)
        .map_err(|error| Fault::TensorType { tensor: tensor(), error })?;
    let bytes =
        tensor_bytes(ty, &shape).map_err(|error| Fault::Shape { tensor: tensor(), error })? as u64;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment as u64) {
        return Err(Fault::Misaligned { tensor: tensor(), offset, alignment });
    }
    Ok(Info { name, ty, shape, offset, bytes })
}

/// Sees to it that the tensors lie apart from each other and within the file's `found` bytes, of
/// which the first `data` are not data.
fn check_places(infos: &[Info<'_>], alignment: usize, data: u64, found: u64) -> Result<(), Fault> {
    let mut in_order: Vec<&Info<'_>> = infos.iter().collect();
    // One of no bytes goes before another at the same place, which it does not overlap.
    in_order.sort_by_key(|info| (info.offset, info.bytes));

    // Whether each tensor follows the one before it at once: then nothing but a missing end
    // explains one that lies beyond it.
    let mut dense = true;
    let mut end = 0u64;
    let mut beyond = None;
    let mut last: Option<&Info<'_>> = None;
    for info in in_order {
        if let Some(last) = last
            && info.offset < end
        {
            let (first, second) = (last.name.to_owned(), info.name.to_owned());
            return Err(Fault::Overlap { first, second, at: data.saturating_add(info.offset) });
        }
        dense &= end.checked_next_multiple_of(alignment as u64) == Some(info.offset);
        // Saturated it is beyond any file's end.
        end = info.offset.saturating_add(info.bytes);
        if beyond.is_none() && data.saturating_add(end) > found {
            beyond = Some(info);
        }
        last = Some(info);
    }
    match beyond {
        None => Ok(()),
        Some(_) if dense => {
            let expected = data.saturating_add(end);
            Err(Fault::Truncated { reading: "the tensors", expected, found })
        }
        Some(info) => Err(Fault::OutOfRange {
            tensor: info.name.to_owned(),
            offset: info.offset,
            bytes: info.bytes,
            found,
        }),
    }
}
