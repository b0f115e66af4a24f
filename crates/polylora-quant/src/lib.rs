//! ggml's tensor formats: every block layout, decoded bit for bit and encoded byte for byte; and
//! the products and other arithmetic that a transformer needs of them.
//!
//! A format is one file in [`mod@format`] and one row in its table; all else (sizes, rows, tests,
//! the documents) is derived from that. This crate works on the caller's slices: no I/O, no
//! threads, no logging.
//!
//! ```
//! use polylora_quant::{GgmlType, dequantize, quantize};
//!
//! let weights: Vec<f32> = (0..256).map(|i| (i as f32 * 0.1).sin()).collect();
//! let q4_k: GgmlType = "Q4_K".parse()?;
//!
//! let mut row = vec![0; q4_k.row_bytes(weights.len()).unwrap()];
//! quantize(q4_k, &weights, None, &mut row)?;
//! assert_eq!(row.len(), 144);
//!
//! let mut back = vec![0.0; 256];
//! dequantize(q4_k, &row, &mut back)?;
//! assert!(weights.iter().zip(&back).all(|(w, b)| (w - b).abs() < 0.1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attention;
pub mod compensate;
pub mod format;
pub mod isa;
pub mod product;
mod row;
pub mod vector;

pub use format::{GgmlType, Importance, UnknownType};
pub use isa::Isa;
pub use row::{RowError, changed_codes, dequantize, dequantize_with, quantize, quantize_with};
