//! PolyLoRA as a library: one name for its crates, and the three functions over one tensor that
//! another runtime needs.
//!
//! ```
//! use polylora::{GgmlType, LowRank, apply, dequantize, requantize};
//!
//! // A quantized weight, 4 rows of 256, and a rank-1 change of it.
//! let ty = GgmlType::Q4_K;
//! let (rows, columns) = (4, 256);
//! let mut weight = vec![0; ty.row_bytes(rows * columns).unwrap()];
//! let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.1).sin()).collect();
//! requantize(ty, &values, columns, None, &mut weight)?;
//! let (down, up) = (vec![1.0; columns], vec![1.0; rows]);
//! let change = LowRank { down: &down, up: &up, rank: 1, scale: 0.5, magnitude: None };
//!
//! // W' = W + scale * (B @ A), in single precision ...
//! let mut merged = vec![0.0; rows * columns];
//! apply(ty, &weight, columns, &[change], &mut merged)?;
//! // ... and back to the weight's own type.
//! requantize(ty, &merged, columns, None, &mut weight)?;
//!
//! let mut read = vec![0.0; rows * columns];
//! dequantize(ty, &weight, &mut read)?;
//! assert!(values.iter().zip(&read).all(|(old, new)| (new - old - 0.5).abs() < 0.1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod embedded;
pub mod synthetic;

pub use polylora_adapter as adapter;
pub use polylora_adapter::merge::{LowRank, apply, requantize};
pub use polylora_calibrate as calibrate;
pub use polylora_engine as engine;
pub use polylora_file as file;
pub use polylora_quant as quant;
pub use polylora_quant::{GgmlType, dequantize};
