//! Where everything lies in a file to be written, before a byte of it is.

use super::limits::{MAX_DIMENSIONS, MAX_METADATA, MAX_NAME, MAX_PARTS, MAX_TENSORS};
use super::metadata::{Metadata, Value, write_string};
use super::write::TensorPlan;
use super::{ALIGNMENT, alignment, split};
use crate::Fault;
use crate::tensor::tensor_bytes;
use std::collections::HashSet;
use std::ops::Range;

/// What is written; the newest, which every reader knows.
const VERSION: u32 = 3;

/// The parts of a file, and where in them each tensor lies.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) parts: Vec<PartLayout>,
    /// One for each tensor.
    pub(super) places: Vec<Place>,
}

#[derive(Debug)]
pub(super) struct PartLayout {
    /// All that comes before the data.
    pub(super) header: Vec<u8>,
    /// Bytes of the whole part.
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) part: usize,
    /// From the beginning of the part.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Layout {
    /// Lays tensors out in order, in parts of at most `max_part` bytes where that is given; a
    /// tensor that is larger gets a part of its own.
    pub(super) fn new(
        metadata: &Metadata,
        tensors: &[TensorPlan],
        max_part: Option<u64>,
    ) -> Result<Layout, Fault> {
        check_names(metadata, tensors)?;
        let alignment = alignment(metadata)? as u64;
        let sizes = tensors.iter().map(size).collect::<Result<Vec<u64>, Fault>>()?;
        let max_part = max_part.unwrap_or(u64::MAX);
        let ranges = ranges(metadata, tensors, &sizes, alignment, max_part);
        check_limit("parts of a split file", ranges.len(), MAX_PARTS)?;
        let mut layout = Layout { parts: Vec::new(), places: Vec::new() };
        for (no, range) in ranges.iter().enumerate() {
            let metadata = metadata_of_part(metadata, no, ranges.len(), tensors.len());
            check_limit("entries of metadata", metadata.entries.len(), MAX_METADATA)?;
            let (tensors, sizes) = (&tensors[range.clone()], &sizes[range.clone()]);
            layout.add_part(&metadata, tensors, sizes, alignment)?;
        }
        Ok(layout)
    }

    fn add_part(
        &mut self,
        metadata: &Metadata,
        tensors: &[TensorPlan],
        sizes: &[u64],
        alignment: u64,
    ) -> Result<(), Fault> {
        check_limit("tensors", tensors.len(), MAX_TENSORS)?;
        let mut header = header(metadata, tensors.len());
        let mut offsets = Vec::new();
        let mut end = 0u64;
        for (tensor, &bytes) in tensors.iter().zip(sizes) {
            write_info(tensor, end, &mut header);
            offsets.push(end);
            end = end
                .checked_add(bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(too_large)?;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);

        let (part, data) = (self.parts.len(), header.len() as u64);
        let size = data.checked_add(end).ok_or_else(too_large)?;
        let place = |(offset, &bytes)| Place { part, start: data + offset, bytes };
        self.places.extend(offsets.into_iter().zip(sizes).map(place));
        self.parts.push(PartLayout { header, size });
        Ok(())
    }

    /// Bytes of all parts.
    pub(super) fn size(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.size))
    }

    /// Bytes of all tensors, without what lies between them.
    pub(super) fn tensor_bytes(&self) -> u64 {
        self.places.iter().fold(0, |sum, place| sum.saturating_add(place.bytes))
    }
}

/// More bytes than can be counted.
fn too_large() -> Fault {
    Fault::NoRoom { needed: u64::MAX, free: None }
}

fn check_limit(what: &'static str, count: usize, limit: u64) -> Result<(), Fault> {
    let count = count as u64;
    if count > limit { Err(Fault::TooMany { what, count, limit }) } else { Ok(()) }
}

/// What the reader refuses is not written.
fn check_names(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<(), Fault> {
    let tensor_names = tensors.iter().map(|tensor| tensor.name.as_str());
    for name in metadata.iter().map(|(key, _)| key).chain(tensor_names.clone()) {
        if name.is_empty() || name.len() as u64 > MAX_NAME {
            return Err(Fault::Name { length: name.len(), limit: MAX_NAME });
        }
    }
    let mut seen = HashSet::new();
    for name in tensor_names {
        if !seen.insert(name) {
            return Err(Fault::DuplicateTensor(name.to_owned()));
        }
    }
    Ok(())
}

fn size(plan: &TensorPlan) -> Result<u64, Fault> {
    let tensor = || plan.name.clone();
    if plan.shape.len() > MAX_DIMENSIONS as usize {
        let (found, limit) = (plan.shape.len() as u64, MAX_DIMENSIONS);
        return Err(Fault::Dimensions { tensor: tensor(), found, limit });
    }
    let bytes = tensor_bytes(plan.ty, &plan.shape);
    Ok(bytes.map_err(|error| Fault::Shape { tensor: tensor(), error })? as u64)
}

/// All that a part's header has before its tensors.
fn header(metadata: &Metadata, tensors: usize) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors as u64).to_le_bytes());
    header.extend((metadata.entries.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        write_string(key.as_bytes(), &mut header);
        header.extend((value.ty() as u32).to_le_bytes());
        value.write(&mut header);
    }
    header
}

fn write_info(tensor: &TensorPlan, offset: u64, header: &mut Vec<u8>) {
    write_string(tensor.name.as_bytes(), header);
    header.extend((tensor.shape.len() as u32).to_le_bytes());
    for &size in tensor.shape.iter().rev() {
        header.extend((size as u64).to_le_bytes());
    }
    header.extend(tensor.ty.id().to_le_bytes());
    header.extend(offset.to_le_bytes());
}

/// The metadata of one part: all that there is in the first, what a reader needs in the others.
/// What an input said about its own parts is true no more.
fn metadata_of_part(whole: &Metadata, no: usize, count: usize, tensors: usize) -> Metadata {
    let mut metadata = whole.clone();
    for key in [split::NO, split::COUNT, split::TENSORS] {
        metadata.remove(key);
    }
    if count > 1 {
        if no > 0 {
            metadata.entries.retain(|(key, _)| key == ALIGNMENT);
        }
        // The types that llama.cpp demands; the numbers are within limits.
        metadata.insert(split::NO, Value::U16(no as u16));
        metadata.insert(split::COUNT, Value::U16(count as u16));
        metadata.insert(split::TENSORS, Value::I32(tensors as i32));
    }
    metadata
}

/// Which tensors go into which part, so that none has more than `max_part` bytes if that can be.
fn ranges(
    metadata: &Metadata,
    tensors: &[TensorPlan],
    sizes: &[u64],
    alignment: u64,
    max_part: u64,
) -> Vec<Range<usize>> {
    // The numbers in the metadata take the same bytes whatever they are.
    let before_tensors = |no| header(&metadata_of_part(metadata, no, 2, 0), 0).len() as u64;
    let (first, others) = (before_tensors(0), before_tensors(1));
    let padded = |bytes: u64| bytes.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);

    let mut ranges = Vec::new();
    let mut start = 0;
    let (mut header, mut data) = (first, 0u64);
    for (index, (tensor, &bytes)) in tensors.iter().zip(sizes).enumerate() {
        let mut info = Vec::new();
        write_info(tensor, 0, &mut info);
        let (info, bytes) = (info.len() as u64, padded(bytes));
        let size = padded(header.saturating_add(info)).saturating_add(data).saturating_add(bytes);
        if size > max_part && index > start {
            ranges.push(start..index);
            start = index;
            (header, data) = (others, 0);
        }
        header = header.saturating_add(info);
        data = data.saturating_add(bytes);
    }
    ranges.push(start..tensors.len());
    ranges
}
