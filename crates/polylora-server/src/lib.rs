//! Many LoRA adapters over one quantized model, a different one in every row of a batch, behind
//! the OpenAI API.
//!
//! ```text
//! HTTP ── routes ── App ── select adapters, make a prompt ── Job ──┐
//!                    │                                             v
//!                    └── Adapters (names, cache) <── leases ── Scheduler (thread, owns the engine)
//!                                                                  │
//! client <── chunks, JSON ──────────────────────────── Events <────┘
//! ```
//!
//! [`serve`] runs until the process is told to stop.

mod access;
mod adapters;
mod app;
mod body;
mod error;
mod id;
mod keys;
mod listen;
mod llama_cpp;
mod metrics;
mod openai;
mod ops;
mod page;
mod routes;
mod scheduler;
mod signals;
mod tool_calls;
mod vllm;

use adapters::{Adapters, RESCAN, Watch};
use app::{App, Base};
use keys::{Keys, KeysError};
use listen::Listener;
use metrics::Metrics;
use polylora_adapter::AdapterSpec;
use polylora_engine::{ChatError, ChatTemplate, Engine, PAGE, Tokenizer, TokenizerError};
use polylora_file::Gguf;
use scheduler::{Handle, Limits, Pooling};
use signals::Hangups;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub host: String,
    /// And where there; 0 for any that is free.
    pub port: u16,
    /// Adapters that are there from the beginning.
    pub adapters: Vec<AdapterSpec>,
    /// A folder whose members are adapters too.
    pub adapter_dir: Option<PathBuf>,
    /// Whether adapters from that folder may be loaded and unloaded by request.
    pub allow_adapter_loading: bool,
    /// Bytes of adapters in memory.
    pub adapter_memory: u64,
    /// Tokens of a request, its answer included; none: as many as the model was made for, if they
    /// fit into memory.
    pub context: Option<usize>,
    /// Rows of a batch.
    pub parallel: NonZeroUsize,
    /// Bytes of keys and values; none: what `parallel` requests can take, up to half of the memory
    /// that is free.
    pub kv_memory: Option<u64>,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// A file of API keys.
    pub api_keys: Option<PathBuf>,
    /// What to call the base; none: what its file calls it.
    pub alias: Option<String>,
    /// A port of its own for metrics, without keys.
    pub metrics_port: Option<u16>,
}

/// The server cannot start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model has no vocabulary that is known.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's chat template cannot be read.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The file of keys is not as it should be.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// An adapter that was named cannot be loaded.
    #[error("the adapter {name:?} cannot be loaded: {why}")]
    Adapter {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The folder of adapters cannot be used.
    #[error("cannot take adapters from {}: {error}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// One request would not fit into memory.
    #[error(
        "a context of {context} tokens takes {bytes} bytes of keys and values, and {room} are to \
         be had: ask for less with --ctx, or allow more with --kv-memory"
    )]
    Memory {
        /// What was asked for.
        context: usize,
        /// What it takes.
        bytes: u64,
        /// What there is.
        room: u64,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {error}")]
    Listen {
        /// Where.
        host: String,
        /// And where there.
        port: u16,
        /// What is wrong.
        error: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A thread has ended before its time: a fault of this program.
    #[error("the server ended unexpectedly: its panic stands above")]
    Panic,
}

/// Serves a model until the process is told to stop (SIGINT or SIGTERM), then finishes what was
/// begun; a second signal ends it at once. `ready` is told where it listens.
///
/// # Errors
/// Where it cannot start, or the thread that runs the model has panicked.
pub fn serve(
    gguf: Gguf,
    engine: Engine,
    options: ServerOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let server = Server::start(gguf, engine, options)?;
    let context = server.runtime.enter();
    // Before anybody knows that the server is there: a signal that comes before is the process's end.
    let (mut told, hangups) = signals::listen().map_err(ServeError::Signals)?;
    drop(context);
    ready(server.address());
    let (stop, keep_up) = (Arc::clone(&server.stop), keep_up(Arc::clone(&server.app), hangups));
    let signals = server.runtime.spawn(async move {
        let keep_up = tokio::spawn(keep_up);
        told.recv().await;
        keep_up.abort();
        stop.notify_one();
        told.recv().await;
        tracing::warn!("stopping at once");
        std::process::exit(ENDED_BY_SIGNAL);
    });
    let ended = server.wait();
    signals.abort();
    ended
}

/// What shells report of a program that Ctrl-C ended.
const ENDED_BY_SIGNAL: i32 = 130;

/// A server that runs.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    stop: Arc<Notify>,
    runtime: Runtime,
    /// Ends when all that was begun is finished.
    listening: tokio::task::JoinHandle<()>,
    scheduler: std::thread::JoinHandle<()>,
}

impl Server {
    /// Starts to serve.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn start(gguf: Gguf, engine: Engine, options: ServerOptions) -> Result<Server, ServeError> {
        let keys = options.api_keys.as_deref().map(Keys::open).transpose()?;
        let (context, pages) = memory(&engine, &options)?;
        let base = describe(&gguf, &engine, &options, context)?;
        let (rows, waiting) = (options.parallel.get(), options.max_queue);
        let limits = Limits { rows, context, pages, waiting };
        // As many adapters as rows can be in a batch.
        let metrics = Arc::new(Metrics::new(rows));
        let loader = engine.adapter_loader();
        let (capacity, folder) = (options.adapter_memory as usize, options.adapter_dir.as_deref());
        let watched = Arc::clone(&metrics);
        let make = |handle: Handle| {
            let watch = Box::new(Watcher { handle, metrics: watched });
            Adapters::new(gguf, loader, capacity, folder, watch)
        };
        let (tokenizer, stop) = (base.tokenizer.clone(), Arc::new(Notify::new()));
        let (counted, ended) = (Arc::clone(&metrics), Arc::clone(&stop));
        let started = scheduler::start(engine, tokenizer, limits, counted, ended, make);
        let (handle, adapters, scheduler) =
            started.map_err(|error| match &options.adapter_dir {
                Some(path) => ServeError::Folder { path: path.clone(), error },
                None => ServeError::Thread(error),
            })?;
        for spec in &options.adapters {
            let fault = |why: String| ServeError::Adapter { name: spec.name.clone(), why };
            let number = adapters.add(spec.clone()).map_err(|error| fault(error.to_string()))?;
            adapters.load_now(number).map_err(|why| fault(why.to_string()))?;
        }
        adapters.rescan();
        let app = Arc::new(App {
            base,
            adapters,
            scheduler: handle,
            metrics,
            keys_file: options.api_keys.clone(),
            keys: RwLock::new(keys.map(Arc::new)),
            allow_loading: options.allow_adapter_loading,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // The model has all processors; this needs little of them.
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(ServeError::Thread)?;
        let bound = runtime.block_on(bind(&app, &options))?;
        let address = bound.0.address();
        let listening = runtime.spawn(listen(Arc::clone(&app), bound, Arc::clone(&stop)));
        Ok(Server { app, address, stop, runtime, listening, scheduler })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has it take no more requests, and end when those that were begun are finished.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Where the thread that runs the model has panicked.
    pub fn wait(self) -> Result<(), ServeError> {
        let Server { app, runtime, listening, scheduler, .. } = self;
        let listened = runtime.block_on(listening);
        app.scheduler.drain();
        let ended = scheduler.join();
        // A load that nobody waits for any more is not waited for.
        runtime.shutdown_background();
        match (listened, ended) {
            (Ok(()), Ok(())) => Ok(()),
            _ => Err(ServeError::Panic),
        }
    }
}

/// The port for requests, and the one for metrics.
async fn bind(
    app: &App,
    options: &ServerOptions,
) -> Result<(Listener, Option<Listener>), ServeError> {
    let bind = async |port: u16| {
        let listener = Listener::bind(&options.host, port, options.max_connections).await;
        let host = options.host.clone();
        listener.map_err(|error| ServeError::Listen { host, port, error })
    };
    let listener = bind(options.port).await?;
    let address = listener.address();
    if app.keys().is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "listening beyond this machine without keys: anybody may ask");
    }
    app.metrics.watch_connections(listener.open());
    let metrics = match options.metrics_port {
        Some(port) => Some(bind(port).await?),
        None => None,
    };
    Ok((listener, metrics))
}

/// Listens until it is to stop.
async fn listen(app: Arc<App>, bound: (Listener, Option<Listener>), stop: Arc<Notify>) {
    let (listener, metrics) = bound;
    let rescans = tokio::spawn(rescan(Arc::clone(&app)));
    let metrics = metrics.map(|listener| {
        let router = routes::metrics_router(Arc::clone(&app));
        tokio::spawn(listener.serve(router, std::future::pending()))
    });
    let scheduler = app.scheduler.clone();
    let shutdown = async move {
        stop.notified().await;
        tracing::info!("stopping: what was begun is finished first");
        scheduler.drain();
    };
    listener.serve(routes::router(app), shutdown).await;
    rescans.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
}

/// Looks for new adapters from time to time.
async fn rescan(app: Arc<App>) {
    let mut tick = tokio::time::interval(RESCAN);
    loop {
        tick.tick().await;
        let adapters = app.adapters.clone();
        // A panic there is in the log; the next look is another try.
        let _ = tokio::task::spawn_blocking(move || adapters.rescan()).await;
    }
}

/// On SIGHUP reads keys and the folder of adapters again.
async fn keep_up(app: Arc<App>, mut hangups: Hangups) {
    while hangups.recv().await.is_some() {
        let app = Arc::clone(&app);
        let look = move || {
            app.reread_keys();
            app.adapters.rescan();
        };
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

impl App {
    /// Takes new keys; the old ones stay where the file is not as it should be.
    fn reread_keys(&self) {
        let (Some(old), Some(path)) = (self.keys(), &self.keys_file) else { return };
        match old.reread(path) {
            Ok(keys) => {
                let mut slot = self.keys.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                *slot = Some(Arc::new(keys));
                drop(slot);
                // Only now: who reads this may count on the new ones.
                tracing::info!("keys read again");
            }
            Err(error) => tracing::error!(%error, "the old keys stay"),
        }
    }
}

/// Tells the scheduler and the metrics of adapters.
struct Watcher {
    handle: Handle,
    metrics: Arc<Metrics>,
}

impl Watch for Watcher {
    fn changed(&self) {
        self.handle.look();
    }

    fn loaded(&self, took: Duration) {
        self.metrics.adapter_loaded(took);
    }

    fn evicted(&self) {
        self.metrics.adapter_evicted();
    }
}

/// Tokens of a request, and pages of all.
fn memory(engine: &Engine, options: &ServerOptions) -> Result<(usize, usize), ServeError> {
    let page = engine.page_bytes() as u64;
    let pages_of = |context: usize| context.div_ceil(PAGE) as u64;
    let wanted = options.context.unwrap_or(engine.model().context_length());
    let room = options.kv_memory.unwrap_or_else(|| {
        let most = pages_of(wanted).saturating_mul(options.parallel.get() as u64) * page;
        most.min(free_memory() / 2)
    });
    let pages = room / page;
    let fits = pages as usize * PAGE;
    let context = match options.context {
        None => wanted.min(fits),
        Some(context) => context,
    };
    if context > fits || context < PAGE.min(wanted) {
        let bytes = pages_of(wanted) * page;
        return Err(ServeError::Memory { context: wanted, bytes, room });
    }
    if context < wanted {
        tracing::warn!(context, model = wanted, "the context is cut to what fits into memory");
    }
    Ok((context, pages as usize))
}

/// Bytes that this process may still take.
fn free_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let free = system.available_memory();
    // Of a container.
    system.cgroup_limits().map_or(free, |limits| limits.free_memory.min(free))
}

/// What the model is.
fn describe(
    gguf: &Gguf,
    engine: &Engine,
    options: &ServerOptions,
    context: usize,
) -> Result<Base, ServeError> {
    let metadata = gguf.metadata();
    let named = metadata.get("general.name").and_then(|name| name.as_str()).map(str::to_owned);
    let stem = gguf.parts().first().and_then(|path| path.file_stem());
    let stem = || stem.map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let id = options.alias.clone().or(named.filter(|name| !name.is_empty())).unwrap_or_else(stem);
    let architecture = engine.model().architecture().to_owned();
    let pooling = metadata.u64(&format!("{architecture}.pooling_type")).and_then(Pooling::of);
    Ok(Base {
        id,
        architecture,
        parameters: gguf.tensors().iter().map(|tensor| tensor.elements() as u64).sum(),
        created: SystemTime::now(),
        tokenizer: Tokenizer::from_gguf(gguf)?,
        template: ChatTemplate::from_gguf(gguf)?,
        pooling,
        context,
        vocab_size: engine.model().vocab_size(),
        threads: engine.threads(),
        constraints: OnceLock::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylora_engine::{EngineOptions, Model};
    use std::io::Read;
    use std::time::Instant;

    /// Asks for an answer of so many tokens; returns all that comes.
    fn ask(address: SocketAddr, tokens: usize, stream: bool) -> String {
        let body = serde_json::json!({
            "model": "valley", "prompt": "An owl", "max_tokens": tokens, "ignore_eos": true,
            "stream": stream,
        });
        let body = body.to_string();
        let mut connection = std::net::TcpStream::connect(address).unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                    content-type: application/json\r\ncontent-length:";
        let request = format!("{head} {}\r\n\r\n{body}", body.len());
        std::io::Write::write_all(&mut connection, request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_panic_of_the_scheduler_ends_all_requests_and_the_server() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../polylora/embedded/valley-q4_k_m.gguf");
        let gguf = Gguf::open(model.as_ref()).unwrap();
        let engine =
            EngineOptions { threads: NonZeroUsize::new(1), exact: true, ..Default::default() };
        let engine = Engine::new(Arc::new(Model::open(&gguf).unwrap()), &engine).unwrap();
        let options = ServerOptions {
            host: "127.0.0.1".into(),
            port: 0,
            adapters: Vec::new(),
            adapter_dir: None,
            allow_adapter_loading: false,
            adapter_memory: 1 << 20,
            context: None,
            parallel: NonZeroUsize::new(2).unwrap(),
            kv_memory: None,
            max_queue: 10,
            max_connections: 10,
            api_keys: None,
            alias: Some("valley".into()),
            metrics_port: None,
        };
        let server = Server::start(gguf, engine, options).unwrap();
        let address = server.address();
        let scheduler = server.app.scheduler.clone();
        std::thread::scope(|scope| {
            let ask = |stream| scope.spawn(move || ask(address, 450, stream));
            let asked = [ask(true), ask(false), ask(true), ask(false)];
            let start = Instant::now();
            while (scheduler.load().running, scheduler.load().waiting) != (2, 2) {
                assert!(start.elapsed() < Duration::from_secs(30));
                std::thread::sleep(Duration::from_millis(1));
            }
            scheduler.fail();
            for answer in asked.map(|asked| asked.join().unwrap()) {
                assert!(answer.contains("the engine failed"), "{answer}");
            }
        });
        assert!(matches!(server.wait(), Err(ServeError::Panic)));
    }
}
