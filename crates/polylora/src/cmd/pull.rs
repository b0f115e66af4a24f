use crate::hub::{self, Fetched};
use crate::source::Reference;
use crate::terminal;
use anyhow::Result;
use serde::Serialize;

/// Fetch models and adapters from the Hugging Face hub, and print where they lie
///
/// They go into the cache that the hub's other tools share; what is there already is not fetched
/// again. FILE is a file's name, an adapter's folder, or a quantization of which there is one
/// (Q4_K_M); it may be left out where the repository has one model or adapter. All parts of a
/// split model come together. An interrupted download goes on where it stopped.
///
/// Every other command takes hf:OWNER/REPO[:FILE] where it takes a model, an adapter or an
/// importance matrix, and fetches it in the same way.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pull {
    /// What to fetch
    #[arg(required = true, value_name = "OWNER/REPO[:FILE]")]
    references: Vec<Reference>,
    /// A branch, a tag or a commit of the repository
    #[arg(long, value_name = "REVISION", default_value = hub::MAIN)]
    revision: String,
    /// Print what was fetched as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  polylora pull owner/model-GGUF:Q4_K_M
  polylora pull owner/adapter owner/model-GGUF:model-00001-of-00002.gguf
  polylora merge hf:owner/model-GGUF:Q4_K_M --adapter hf:owner/adapter@0.5 -o merged.gguf

Environment:
  HF_TOKEN         the token for private and gated repositories [default: that of `hf auth login`]
  HF_HOME          the cache is hub/ in it [default: ~/.cache/huggingface]
  HF_HUB_OFFLINE   1: use the cache alone
  HF_ENDPOINT      another hub [default: https://huggingface.co]";

/// A row of the answer.
#[derive(Serialize)]
struct Pulled {
    source: String,
    #[serde(flatten)]
    fetched: Fetched,
}

impl Pull {
    pub(crate) fn run(self) -> Result<()> {
        let mut pulled = Vec::new();
        for reference in &self.references {
            let fetched = hub::fetch(reference, &self.revision)?;
            if !self.json {
                terminal::print(&format!("{}\n", fetched.path.display()))?;
            }
            pulled.push(Pulled { source: reference.to_string(), fetched });
        }
        if self.json { terminal::print_json(&pulled) } else { Ok(()) }
    }
}
