//! What no honest file exceeds. Beyond these a file is refused, before memory is spent on it.

/// Tensors in a file. An adapter on each expert of the largest mixtures has some 100,000.
pub const MAX_TENSORS: u64 = 1 << 20;

/// Entries of metadata. Models have some 50.
pub const MAX_METADATA: u64 = 1 << 16;

/// Bytes of a key, from the specification; of a tensor's name too, which the specification keeps
/// to 64.
pub const MAX_NAME: u64 = 65535;

/// Bytes of a string in the metadata, as in ggml. Chat templates have some 10,000.
pub const MAX_STRING: u64 = 1 << 30;

/// Arrays within arrays. The specification sets no limit, ggml reads none within another.
pub const MAX_ARRAY_DEPTH: usize = 8;

/// Dimensions of a tensor, as in ggml.
pub const MAX_DIMENSIONS: u32 = 4;

/// Bytes to whose multiples tensors are aligned: a huge page. 32 is usual.
pub const MAX_ALIGNMENT: u32 = 1 << 21;

/// Parts of a split file: `split.count` has 16 bits.
pub const MAX_PARTS: u64 = u16::MAX as u64;
