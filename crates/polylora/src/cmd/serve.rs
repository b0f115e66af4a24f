mod log;

use super::loaded::{EngineArgs, Loaded};
use super::{fetch, parse_size};
use crate::source::{AdapterSource, Source};
use anyhow::{Context, Result};
use polylora_server::ServerOptions;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Serve the model and its adapters over HTTP, a different adapter in every row of a batch
///
/// The OpenAI API (chat, completions, models, embeddings), vLLM's and llama-server's ways to name,
/// load and unload adapters, metrics for Prometheus, and a page at /. A request names its adapter as
/// its model. It stops on SIGINT or SIGTERM when what was begun is finished; SIGHUP reads keys and
/// the folder of adapters again.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: Source,
    /// A PEFT folder or a GGUF LoRA that requests may name; may be repeated
    #[arg(long, value_name = "[NAME=]PATH[@SCALE]")]
    adapter: Vec<AdapterSource>,
    /// Take every adapter that lies directly in this folder too, now or later
    #[arg(long, value_name = "DIR")]
    adapter_dir: Option<PathBuf>,
    /// Let requests load and unload adapters of that folder
    #[arg(long, requires = "adapter_dir")]
    allow_adapter_loading: bool,
    /// Memory for adapters: those not used for longest make room for others
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size)]
    adapter_memory: u64,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 for any that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Tokens of a request and its answer [default: what the model was made for, if it fits]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Requests that are answered at the same time, in one batch
    #[arg(long, value_name = "N", default_value = "16")]
    parallel: NonZeroUsize,
    /// Memory for keys and values [default: for all of them, up to half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    kv_memory: Option<u64>,
    /// Requests that may wait; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_queue: usize,
    /// Connections at a time; more are refused with status 503
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: usize,
    /// Answer those only who have one of the keys in this file (docs/serving.md)
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// What requests call the model [default: what its file calls it]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Serve /metrics on this port too, without keys
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
    /// How the log on standard error is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  polylora serve base.gguf --adapter shout=adapters/shout --adapter pirate.gguf@0.5
  polylora serve base.gguf --adapter-dir adapters/ --api-keys keys.toml --host 0.0.0.0
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"shout\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'
Environment: RUST_LOG chooses what is logged (info; debug tells of loads; polylora_server=warn).
OTEL_EXPORTER_OTLP_ENDPOINT, in a build with the feature otlp, is where traces are sent.";

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        let _traces = log::start(self.log_format)?;
        let adapters = fetch(&self.adapter)?;
        let Loaded { source, gguf, engine } = Loaded::open(&self.model, &self.engine)?;
        let options = ServerOptions {
            host: self.host,
            port: self.port,
            adapters,
            adapter_dir: self.adapter_dir,
            allow_adapter_loading: self.allow_adapter_loading,
            adapter_memory: self.adapter_memory,
            context: self.ctx,
            parallel: self.parallel,
            kv_memory: self.kv_memory,
            max_queue: self.max_queue,
            max_connections: self.max_connections,
            api_keys: self.api_keys,
            alias: self.alias,
            metrics_port: self.metrics_port,
        };
        let ready = |address| anstream::eprintln!("listening on http://{address}");
        polylora_server::serve(gguf, engine, options, ready)
            .with_context(|| format!("cannot serve {source}"))
    }
}
