//! Files, sound and unsound, as a program meets them.

mod gguf_faults;
mod imatrix;
mod raw;
mod read;
mod safetensors;
mod split;
mod sweep;
mod write;
