//! vLLM's ways to load and unload adapters.

pub(crate) mod load;
pub(crate) mod unload;
