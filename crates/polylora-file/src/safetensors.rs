//! safetensors: read, whether one file or shards with an index.

use crate::{Bytes, Error, Fault, Tensor};
use polylora_quant::GgmlType;
use safetensors::tensor::Metadata as Header;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

/// How the name of an index ends.
const INDEX_SUFFIX: &str = ".index.json";

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// The tensors of a file, or of all shards of an index.
#[derive(Clone, Debug, Default)]
pub struct Safetensors {
    /// In the order of the file; of shards, in the order of their names.
    pub tensors: Vec<Tensor>,
    /// The file's `__metadata__`; of shards, all together.
    pub metadata: BTreeMap<String, String>,
    /// The file, or the index and its shards.
    pub files: Vec<PathBuf>,
}

/// Opens a file, or, where its name ends in `.index.json`, the shards beside it that it names.
///
/// # Errors
/// Where a file cannot be read or is not sound, a tensor has a type that ggml lacks, or index and
/// shards do not agree.
pub fn open(path: &Path) -> Result<Safetensors, Error> {
    open_with(path, &Bytes::map)
}

/// As [`open`], but the bytes of every file are what `read` gives.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    path: &Path,
    read: &dyn Fn(&Path) -> io::Result<Bytes>,
) -> Result<Safetensors, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let read = |path: &Path| read(path).map_err(|error| Fault::io("read it")(error).at(path));
    let bytes = read(path)?;
    if name.ends_with(INDEX_SUFFIX) { open_shards(path, &bytes, read) } else { parse(path, bytes) }
}

/// Reads a file's bytes; `path` is for messages.
///
/// # Errors
/// Where they are not sound, or a tensor has a type that ggml lacks.
pub fn parse(path: &Path, bytes: Bytes) -> Result<Safetensors, Error> {
    contents(&bytes)
        .map(|(tensors, metadata)| Safetensors { tensors, metadata, files: vec![path.to_owned()] })
        .map_err(|fault| fault.at(path))
}

fn contents(bytes: &Bytes) -> Result<(Vec<Tensor>, BTreeMap<String, String>), Fault> {
    let (length, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| fault(error, bytes))?;
    let data = bytes.slice(LENGTH_BYTES + length..bytes.len()).expect("the header lies within");
    let mut tensors = Vec::new();
    for name in header.offset_keys() {
        let info = header.info(&name).expect("it names its own");
        let Some(ty) = ggml_type(info.dtype) else {
            return Err(Fault::Dtype { tensor: name, dtype: info.dtype });
        };
        let (start, end) = info.data_offsets;
        // The crate has seen to it that the tensors fill the data.
        let bytes = data.slice(start..end).expect("checked");
        let tensor = Tensor::new(name.as_str(), ty, info.shape.clone(), bytes);
        tensors.push(tensor.map_err(|error| Fault::Shape { tensor: name, error })?);
    }
    let metadata = header.metadata().iter().flatten();
    Ok((tensors, metadata.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

fn ggml_type(dtype: Dtype) -> Option<GgmlType> {
    Some(match dtype {
        Dtype::F32 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::BF16,
        Dtype::F64 => GgmlType::F64,
        Dtype::I8 => GgmlType::I8,
        Dtype::I16 => GgmlType::I16,
        Dtype::I32 => GgmlType::I32,
        Dtype::I64 => GgmlType::I64,
        _ => return None,
    })
}

/// The crate's error, or, where the end is missing, how much of it.
fn fault(error: SafeTensorError, bytes: &[u8]) -> Fault {
    let found = bytes.len() as u64;
    let truncated = |reading, expected| Fault::Truncated { reading, expected, found };
    let Some(length) =
        bytes.first_chunk::<LENGTH_BYTES>().map(|length| u64::from_le_bytes(*length))
    else {
        return truncated("its first bytes", LENGTH_BYTES as u64);
    };
    let header_end = length.saturating_add(LENGTH_BYTES as u64);
    match error {
        SafeTensorError::InvalidHeaderLength => truncated("the header", header_end),
        SafeTensorError::MetadataIncompleteBuffer => {
            let header = bytes.get(LENGTH_BYTES..header_end as usize).unwrap_or_default();
            let data = serde_json::from_slice::<Header>(header).map_or(0, |h| h.data_len() as u64);
            match header_end.saturating_add(data) {
                expected if expected > found => truncated("the tensors", expected),
                _ => Fault::Safetensors(error),
            }
        }
        error => Fault::Safetensors(error),
    }
}

/// An index: of each tensor, the shard that it is in.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(
    path: &Path,
    index: &[u8],
    read: impl Fn(&Path) -> Result<Bytes, Error>,
) -> Result<Safetensors, Error> {
    let index: Index =
        serde_json::from_slice(index).map_err(|error| Fault::Index(error).at(path))?;
    let mut all = Safetensors { files: vec![path.to_owned()], ..Safetensors::default() };
    for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
        if !is_file_name(shard) {
            return Err(Fault::ShardName(shard.clone()).at(path));
        }
        let shard_path = path.with_file_name(shard);
        if !shard_path.exists() {
            return Err(Fault::PartMissing { of: path.to_owned() }.at(&shard_path));
        }
        let Safetensors { tensors, metadata, files } = parse(&shard_path, read(&shard_path)?)?;
        // A tensor that is in two shards is in one of them where the index does not place it.
        if let Some(stray) = tensors.iter().find(|t| index.weight_map.get(&t.name) != Some(shard)) {
            let (tensor, shard) = (stray.name.clone(), shard.clone());
            return Err(Fault::NotInIndex { tensor, shard }.at(path));
        }
        all.tensors.extend(tensors);
        all.metadata.extend(metadata);
        all.files.extend(files);
    }
    let found: BTreeSet<&str> = all.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    match index.weight_map.iter().find(|(name, _)| !found.contains(name.as_str())) {
        None => Ok(all),
        Some((name, shard)) => {
            let (tensor, expected) = (name.clone(), shard.clone());
            Err(Fault::NotInShard { tensor, expected }.at(path))
        }
    }
}

/// Whether it names a file beside the index: no folder, no way up, no root.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    plain && components.next().is_none() && !name.contains('\\')
}
