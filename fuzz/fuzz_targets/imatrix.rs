//! Any bytes as an importance matrix of either format: an error, or finite numbers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polylora_file::{Bytes, imatrix::Imatrix};
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::from(input.to_vec());
    let Ok(imatrix) = Imatrix::parse(Path::new("input"), bytes) else { return };
    for (tensor, values) in imatrix.entries() {
        assert!(values.iter().all(|value| value.is_finite()));
        assert_eq!(imatrix.get(tensor), Some(values));
    }
});
