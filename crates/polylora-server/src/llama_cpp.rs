//! llama-server's list of adapters, with the scales that apply where a request says nothing.

pub(crate) mod adapters;
