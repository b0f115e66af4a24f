//! A server of the embedded model, and a client of it.
#![allow(dead_code)] // Each test has a use for some of it.

use polylora_engine::{Engine, EngineOptions, Model};
use polylora_file::{Gguf, GgufWriter, TensorPlan, Value as Metadatum, WriteOptions};
use polylora_server::{ServeError, Server, ServerOptions};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use ureq::Agent;

/// The manners that the embedded model has adapters for.
pub(crate) const ADAPTERS: [&str; 3] = ["json", "pirate", "shout"];

/// What a request may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn embedded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../polylora/embedded").join(name)
}

/// Copies the files of an adapter of the embedded model; those of another are replaced.
pub(crate) fn copy_adapter(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(embedded(name).join(file), to.join(file)).unwrap();
    }
}

/// A folder with all adapters of the embedded model.
pub(crate) fn adapter_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    ADAPTERS.iter().for_each(|name| copy_adapter(name, &folder.path().join(name)));
    folder
}

/// The embedded model with other metadata.
pub(crate) fn model_with(changes: &[(&str, Metadatum)]) -> Gguf {
    let base = Gguf::open(&embedded("valley-q4_k_m.gguf")).unwrap();
    let mut metadata = base.metadata().clone();
    for (key, value) in changes {
        metadata.insert(key, value.clone());
    }
    let plan = |tensor: &polylora_file::Tensor| TensorPlan {
        name: tensor.name.clone(),
        ty: tensor.ty,
        shape: tensor.shape.clone(),
    };
    let plans: Vec<TensorPlan> = base.tensors().iter().map(plan).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let writer = GgufWriter::create(&path, &metadata, &plans, WriteOptions::default()).unwrap();
    for (number, tensor) in base.tensors().iter().enumerate() {
        writer.write_at(number, 0, &tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
    // The mapping outlives the name.
    Gguf::open(&path).unwrap()
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        host: "127.0.0.1".into(),
        port: 0,
        adapters: Vec::new(),
        adapter_dir: None,
        allow_adapter_loading: false,
        adapter_memory: 1 << 30,
        context: None,
        parallel: NonZeroUsize::new(16).unwrap(),
        kv_memory: None,
        max_queue: 1000,
        max_connections: 1000,
        api_keys: None,
        alias: Some("valley".into()),
        metrics_port: None,
    }
}

/// A server that ends with the test, and how to talk to it.
pub(crate) struct Served {
    server: Option<Server>,
    client: Client,
    /// What is served from there.
    folder: Option<TempDir>,
}

impl std::ops::Deref for Served {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Served {
    pub(crate) fn new(options: ServerOptions) -> Served {
        Served::of(model_with(&[]), options).unwrap()
    }

    /// With all adapters of the embedded model.
    pub(crate) fn with_adapters(mut options: ServerOptions) -> Served {
        let folder = adapter_folder();
        options.adapter_dir = Some(folder.path().to_owned());
        let mut served = Served::new(options);
        served.folder = Some(folder);
        served
    }

    pub(crate) fn of(gguf: Gguf, options: ServerOptions) -> Result<Served, ServeError> {
        // Many servers run at a time.
        let threads = NonZeroUsize::new(1);
        let engine = EngineOptions { threads, ..EngineOptions::default() };
        let engine = Engine::new(Model::open(&gguf).unwrap().into(), &engine).unwrap();
        let server = Server::start(gguf, engine, options)?;
        let client = Client::new(format!("http://{}", server.address()));
        Ok(Served { server: Some(server), client, folder: None })
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Stops, and waits for the end.
    pub(crate) fn end(mut self) -> Result<(), ServeError> {
        let server = self.server.take().unwrap();
        server.stop();
        server.wait()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            // A test that failed says why itself.
            if !std::thread::panicking() {
                server.wait().unwrap();
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    base: String,
    key: Option<String>,
}

/// A status, and the JSON that came with it.
pub(crate) type Answer = (u16, Value);

impl Client {
    fn new(base: String) -> Client {
        let config = Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(PATIENCE)).build().into();
        Client { agent, base, key: None }
    }

    pub(crate) fn with_key(&self, key: &str) -> Client {
        Client { key: Some(format!("Bearer {key}")), ..self.clone() }
    }

    pub(crate) fn address(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let (status, text) = self.get_text(path);
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) fn get_text(&self, path: &str) -> (u16, String) {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let mut response = request.call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn send(&self, path: &str, body: &str) -> ureq::http::Response<ureq::Body> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let mut request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        request.send(body).unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Answer {
        let mut response = self.send(path, body);
        let text = response.body_mut().read_to_string().unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (response.status().as_u16(), json)
    }

    /// A header of what a request is answered.
    pub(crate) fn header(&self, path: &str, body: &Value, header: &str) -> Option<String> {
        let response = self.send(path, &body.to_string());
        Some(response.headers().get(header)?.to_str().unwrap().to_owned())
    }

    /// The pieces of a stream as they come; it ends at `[DONE]`, which must come.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Stream {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.send(path, &body.to_string());
        assert_eq!(response.status(), 200);
        Stream { lines: BufReader::new(Box::new(response.into_body().into_reader())) }
    }

    /// A completion's text, by the likeliest tokens unless `more` says otherwise.
    pub(crate) fn complete(&self, model: &str, prompt: &str, more: Value) -> String {
        let (status, answer) = self.post("/v1/completions", &request(model, prompt, more));
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Waits until what an operator sees is as it should be.
    pub(crate) fn wait_until(&self, is_right: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let (_, overview) = self.get("/adapters");
            if is_right(&overview) {
                return overview;
            }
            assert!(start.elapsed() < PATIENCE, "{overview}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A request for a completion of 30 tokens, by the likeliest unless `more` says otherwise.
pub(crate) fn request(model: &str, prompt: &str, more: Value) -> Value {
    let mut request = json!({
        "model": model, "prompt": prompt, "temperature": 0, "max_tokens": 30, "ignore_eos": true,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        request[key] = value.clone();
    }
    request
}

pub(crate) struct Stream {
    lines: BufReader<Box<dyn std::io::Read>>,
}

impl Iterator for Stream {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "cut off before [DONE]");
            match line.trim_end().strip_prefix("data: ") {
                Some("[DONE]") => return None,
                Some(data) => return Some(serde_json::from_str(data).unwrap()),
                // Between two, or a sign of life.
                None => assert!(line.trim_end().is_empty() || line.starts_with(':'), "{line}"),
            }
        }
    }
}

/// What the pieces of a completion's stream say together, and why it ended.
pub(crate) fn text_of(pieces: impl Iterator<Item = Value>) -> (String, String) {
    let (mut text, mut reason) = (String::new(), String::new());
    for piece in pieces {
        let choice = &piece["choices"][0];
        text += choice["text"].as_str().unwrap_or_default();
        reason += choice["finish_reason"].as_str().unwrap_or_default();
    }
    (text, reason)
}

/// Runs all jobs at the same time.
pub(crate) fn together<T: Send>(count: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || job(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
