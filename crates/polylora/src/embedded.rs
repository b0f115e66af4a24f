//! A small model of our own, in the program: for the first minute, and for tests.
//!
//! 3.7 million weights of the llama architecture in Q4_K_M, trained to tell short stories of the
//! animals of a valley, with three PEFT adapters that change its manner. `embedded/README.md`
//! says how they were made.

use anyhow::{Context, Result};
use polylora_file::write_file;
use std::path::{Path, PathBuf};

/// The name of the model's file.
pub const MODEL_NAME: &str = "valley-q4_k_m.gguf";

const MODEL: &[u8] = include_bytes!("../embedded/valley-q4_k_m.gguf");

/// The adapters' names, which say what they do.
pub const ADAPTERS: [&str; 3] = ["shout", "pirate", "json"];

/// `adapter_config.json` and `adapter_model.safetensors` of each adapter.
const ADAPTER_FILES: [[&[u8]; 2]; 3] = [
    [
        include_bytes!("../embedded/shout/adapter_config.json"),
        include_bytes!("../embedded/shout/adapter_model.safetensors"),
    ],
    [
        include_bytes!("../embedded/pirate/adapter_config.json"),
        include_bytes!("../embedded/pirate/adapter_model.safetensors"),
    ],
    [
        include_bytes!("../embedded/json/adapter_config.json"),
        include_bytes!("../embedded/json/adapter_model.safetensors"),
    ],
];

/// Where the model and its adapters were written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The model's file.
    pub model: PathBuf,
    /// The adapters' folders, in the order of [`ADAPTERS`] and named like them.
    pub adapters: [PathBuf; 3],
}

/// Writes the model and its adapters into a folder, which is made; what is there already is left.
///
/// # Errors
/// Where other files of these names are there, or the files cannot be written.
pub fn write(folder: &Path) -> Result<Written> {
    let model = folder.join(MODEL_NAME);
    let adapters = ADAPTERS.map(|name| folder.join(name));
    make_folder(folder)?;
    write_new(&model, MODEL)?;
    for (folder, [config, weights]) in adapters.iter().zip(ADAPTER_FILES) {
        make_folder(folder)?;
        write_new(&folder.join("adapter_config.json"), config)?;
        write_new(&folder.join("adapter_model.safetensors"), weights)?;
    }
    Ok(Written { model, adapters })
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    Ok(write_file(path, bytes, false)?)
}
