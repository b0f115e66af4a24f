//! For those who run the server.

pub(crate) mod adapters;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod version;
