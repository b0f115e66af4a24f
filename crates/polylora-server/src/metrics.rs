//! What Prometheus is told.
//!
//! Four gauges have vLLM's names and labels, for the Kubernetes Gateway API Inference Extension
//! and llm-d send requests by them; all others begin with `polylora_`. Their label `adapter` has a
//! bounded number of values: the first adapters that were used keep their names, the others are
//! `other`.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Adapters that have a label of their own.
const LABELLED: usize = 100;

/// Seconds: a token takes some milliseconds, an answer up to minutes.
const SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Rows of a step.
const ROWS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// What is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Arc<RequestsInfo>,
    kv_usage: Gauge<f64, AtomicU64>,
    by_adapter: Mutex<ByAdapter>,
    finished: Family<Outcome, Counter>,
    read: Family<AdapterLabel, Counter>,
    written: Family<AdapterLabel, Counter>,
    cached: Family<AdapterLabel, Counter>,
    queue_seconds: Histogram,
    first_token_seconds: Family<AdapterLabel, Histogram>,
    token_seconds: Histogram,
    request_seconds: Histogram,
    step_seconds: Histogram,
    step_rows: Histogram,
    step_tokens: Histogram,
    preemptions: Counter,
    adapter_bytes: Gauge,
    adapter_capacity: Gauge,
    adapter_loads: Histogram,
    adapter_evictions: Counter,
    connections: Arc<Connections>,
}

/// What adapters had to do.
#[derive(Debug, Default)]
struct ByAdapter {
    traffic: HashMap<String, Traffic>,
    /// How many have a label of their own.
    labelled: usize,
}

impl ByAdapter {
    fn get(&mut self, adapter: &str) -> &mut Traffic {
        if !self.traffic.contains_key(adapter) {
            let is_labelled = self.labelled < LABELLED;
            self.labelled += usize::from(is_labelled);
            let traffic = Traffic { is_labelled, ..Traffic::default() };
            self.traffic.insert(adapter.to_owned(), traffic);
        }
        self.traffic.get_mut(adapter).expect("it is there now")
    }
}

/// What an adapter had to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// Whether the metrics name it.
    is_labelled: bool,
    /// Requests that ended.
    pub(crate) requests: u64,
    /// Tokens that were written.
    pub(crate) tokens: u64,
    pub(crate) running: usize,
    pub(crate) waiting: usize,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AdapterLabel {
    adapter: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    adapter: String,
    /// `stop`, `length`, `cancelled` or `error`.
    outcome: String,
}

impl Metrics {
    /// Of what `encode` gives.
    pub(crate) const CONTENT_TYPE: &str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// `max_lora`: adapters that can run at the same time.
    pub(crate) fn new(max_lora: usize) -> Metrics {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let metrics = Metrics {
            registry: Registry::default(),
            requests: Arc::new(RequestsInfo { max_lora, state: Mutex::default() }),
            kv_usage: Gauge::default(),
            by_adapter: Mutex::default(),
            finished: Family::default(),
            read: Family::default(),
            written: Family::default(),
            cached: Family::default(),
            queue_seconds: seconds(),
            first_token_seconds: Family::new_with_constructor(seconds),
            token_seconds: seconds(),
            request_seconds: seconds(),
            step_seconds: seconds(),
            step_rows: Histogram::new(ROWS),
            step_tokens: Histogram::new([1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0]),
            preemptions: Counter::default(),
            adapter_bytes: Gauge::default(),
            adapter_capacity: Gauge::default(),
            adapter_loads: seconds(),
            adapter_evictions: Counter::default(),
            connections: Arc::default(),
        };
        metrics.register()
    }

    fn register(mut self) -> Metrics {
        let registry = &mut self.registry;
        registry.register_collector(Box::new(Shared(Arc::clone(&self.requests))));
        registry.register_collector(Box::new(Shared(Arc::clone(&self.connections))));
        let kv = "Share of the memory for keys and values that requests hold, 0 to 1";
        registry.register("vllm:kv_cache_usage_perc", kv, self.kv_usage.clone());
        let own = registry.sub_registry_with_prefix("polylora");
        own.register("requests", "Requests that ended", self.finished.clone());
        own.register("read_tokens", "Tokens of prompts that were read", self.read.clone());
        own.register("written_tokens", "Tokens of answers", self.written.clone());
        let help = "Tokens of prompts that had been read for an earlier request";
        own.register("cached_tokens", help, self.cached.clone());
        let help = "From a request's arrival to its row in the batch";
        own.register("queue_seconds", help, self.queue_seconds.clone());
        let help = "From a request's arrival to the first token of its answer";
        own.register("first_token_seconds", help, self.first_token_seconds.clone());
        let help = "Between two tokens of an answer";
        own.register("token_seconds", help, self.token_seconds.clone());
        let help = "From a request's arrival to its end";
        own.register("request_seconds", help, self.request_seconds.clone());
        own.register("step_seconds", "A step of the batch", self.step_seconds.clone());
        own.register("step_rows", "Requests in a step", self.step_rows.clone());
        own.register("step_tokens", "Tokens in a step", self.step_tokens.clone());
        let help = "Rows that made place for others, to go on later";
        own.register("preemptions", help, self.preemptions.clone());
        own.register("adapter_bytes", "Memory of adapters", self.adapter_bytes.clone());
        let help = "Memory that adapters may take";
        own.register("adapter_capacity_bytes", help, self.adapter_capacity.clone());
        own.register("adapter_load_seconds", "Loads of adapters", self.adapter_loads.clone());
        let help = "Adapters that made room for others";
        own.register("adapter_evictions", help, self.adapter_evictions.clone());
        self
    }

    /// As Prometheus reads it.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a text does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// The value of the label `adapter`; the base is `base`.
    fn label(&self, adapter: Option<&str>) -> String {
        let Some(adapter) = adapter else { return "base".to_owned() };
        let is_labelled = lock(&self.by_adapter).get(adapter).is_labelled;
        if is_labelled { adapter } else { "other" }.to_owned()
    }

    fn adapter(&self, adapter: Option<&str>) -> AdapterLabel {
        AdapterLabel { adapter: self.label(adapter) }
    }

    /// What an adapter had to do.
    pub(crate) fn traffic(&self, adapter: &str) -> Traffic {
        lock(&self.by_adapter).traffic.get(adapter).cloned().unwrap_or_default()
    }

    /// A request has a row; it waited, and some of its prompt was known.
    pub(crate) fn begun(&self, adapter: Option<&str>, waited: Duration, cached: usize) {
        self.queue_seconds.observe(waited.as_secs_f64());
        if cached > 0 {
            self.cached.get_or_create(&self.adapter(adapter)).inc_by(cached as u64);
        }
    }

    /// A step read and wrote tokens of a request.
    pub(crate) fn tokens(&self, adapter: Option<&str>, read: usize, written: usize) {
        let label = self.adapter(adapter);
        if read > 0 {
            self.read.get_or_create(&label).inc_by(read as u64);
        }
        if written > 0 {
            self.written.get_or_create(&label).inc_by(written as u64);
            if let Some(adapter) = adapter {
                lock(&self.by_adapter).get(adapter).tokens += written as u64;
            }
        }
    }

    pub(crate) fn first_token(&self, adapter: Option<&str>, after: Duration) {
        let histogram = self.first_token_seconds.get_or_create(&self.adapter(adapter));
        histogram.observe(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.token_seconds.observe(after.as_secs_f64());
    }

    /// A request has ended: by `stop` or `length`, or `cancelled`, or with an `error`.
    pub(crate) fn finished(&self, adapter: Option<&str>, outcome: &str, took: Duration) {
        let label = Outcome { adapter: self.label(adapter), outcome: outcome.to_owned() };
        self.finished.get_or_create(&label).inc();
        self.request_seconds.observe(took.as_secs_f64());
        if let Some(adapter) = adapter {
            lock(&self.by_adapter).get(adapter).requests += 1;
        }
    }

    pub(crate) fn preempted(&self) {
        self.preemptions.inc();
    }

    pub(crate) fn stepped(&self, rows: usize, tokens: usize, took: Duration) {
        self.step_rows.observe(rows as f64);
        self.step_tokens.observe(tokens as f64);
        self.step_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn adapter_loaded(&self, took: Duration) {
        self.adapter_loads.observe(took.as_secs_f64());
    }

    pub(crate) fn adapter_evicted(&self) {
        self.adapter_evictions.inc();
    }

    pub(crate) fn set_adapter_cache(&self, bytes: usize, capacity: usize) {
        self.adapter_bytes.set(bytes as i64);
        self.adapter_capacity.set(capacity as i64);
    }

    /// The adapters of each of the requests that run and wait.
    pub(crate) fn set_requests(&self, running: &[&[String]], waiting: &[&[String]]) {
        self.requests.set(running, waiting);
        let mut by_adapter = lock(&self.by_adapter);
        for traffic in by_adapter.traffic.values_mut() {
            (traffic.running, traffic.waiting) = (0, 0);
        }
        running.iter().copied().flatten().for_each(|name| by_adapter.get(name).running += 1);
        waiting.iter().copied().flatten().for_each(|name| by_adapter.get(name).waiting += 1);
    }

    /// The share of the memory for keys and values that requests hold.
    pub(crate) fn set_kv_usage(&self, share: f64) {
        self.kv_usage.set(share);
    }

    /// Where the number of open connections is.
    pub(crate) fn watch_connections(&self, open: Arc<AtomicUsize>) {
        *lock(&self.connections.0) = Some(open);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A collector that others hold too.
#[derive(Debug)]
struct Shared<T>(Arc<T>);

/// Which adapters have requests that run and wait: one sample of each gauge, the present one.
#[derive(Debug)]
struct RequestsInfo {
    max_lora: usize,
    state: Mutex<RequestsState>,
}

#[derive(Debug, Default)]
struct RequestsState {
    running: usize,
    waiting: usize,
    /// Names of adapters, in order, with commas between.
    running_adapters: String,
    waiting_adapters: String,
    /// When the names last changed, in seconds since 1970.
    changed: f64,
}

impl RequestsInfo {
    fn set(&self, running: &[&[String]], waiting: &[&[String]]) {
        let names = |requests: &[&[String]]| {
            let names = requests.iter().copied().flatten();
            let names: BTreeSet<&str> = names.map(String::as_str).collect();
            names.into_iter().collect::<Vec<_>>().join(",")
        };
        let (running_adapters, waiting_adapters) = (names(running), names(waiting));
        let mut state = lock(&self.state);
        (state.running, state.waiting) = (running.len(), waiting.len());
        if state.changed == 0.0
            || (&state.running_adapters, &state.waiting_adapters)
                != (&running_adapters, &waiting_adapters)
        {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            state.changed = now.map_or(0.0, |now| now.as_secs_f64());
        }
        (state.running_adapters, state.waiting_adapters) = (running_adapters, waiting_adapters);
    }
}

impl Collector for Shared<RequestsInfo> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = lock(&self.0.state);
        let mut gauge = |name: &str, help: &str, value: f64, labels: &[(&str, &str)]| {
            let gauge = ConstGauge::new(value);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            match labels {
                [] => gauge.encode(metric),
                labels => gauge.encode(metric.encode_family(&labels)?),
            }
        };
        let max_lora = self.0.max_lora.to_string();
        let labels = [
            ("max_lora", &*max_lora),
            ("running_lora_adapters", &*state.running_adapters),
            ("waiting_lora_adapters", &*state.waiting_adapters),
        ];
        let help = "Adapters with requests that run and wait; the time of the last change";
        gauge("vllm:lora_requests_info", help, state.changed, &labels)?;
        let help = "Requests in the batch";
        gauge("vllm:num_requests_running", help, state.running as f64, &[])?;
        let help = "Requests that wait";
        gauge("vllm:num_requests_waiting", help, state.waiting as f64, &[])
    }
}

/// Open connections, as the listener counts them.
#[derive(Debug, Default)]
struct Connections(Mutex<Option<Arc<AtomicUsize>>>);

impl Collector for Shared<Connections> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(open) = lock(&self.0.0).as_ref().map(|open| open.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        let gauge = ConstGauge::new(open as f64);
        let (name, help) = ("polylora_open_connections", "Open connections");
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a sample, by all that stands before it in its line.
    fn value(metrics: &Metrics, sample: &str) -> Option<f64> {
        let text = metrics.encode();
        let line =
            text.lines().find(|line| line.rsplit_once(' ').is_some_and(|l| l.0 == sample))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    #[test]
    fn the_router_s_gauges_are_exact() {
        let metrics = Metrics::new(4);
        let info = |running: &str, waiting: &str| {
            let sample = format!(
                "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",\
                 waiting_lora_adapters=\"{waiting}\"}}"
            );
            value(&metrics, &sample)
        };
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (a, b, c, base) = (names(&["a"]), names(&["b"]), names(&["c"]), names(&[]));
        metrics.set_requests(&[&names(&["b", "a"]), &base, &a, &b], &[&c]);
        metrics.set_kv_usage(0.25);
        let changed = info("a,b", "c").unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - changed).abs() < 10.0);
        assert_eq!(value(&metrics, "vllm:num_requests_running"), Some(4.0));
        assert_eq!(value(&metrics, "vllm:num_requests_waiting"), Some(1.0));
        assert_eq!(value(&metrics, "vllm:kv_cache_usage_perc"), Some(0.25));
        // Other numbers of the same adapters are no change; other adapters are, and the one sample.
        std::thread::sleep(Duration::from_millis(5));
        metrics.set_requests(&[&a, &b], &[&c, &c]);
        assert_eq!(info("a,b", "c"), Some(changed));
        metrics.set_requests(&[], &[]);
        assert!(info("", "").unwrap() > changed);
        assert_eq!(info("a,b", "c"), None);
        assert_eq!(metrics.encode().matches("vllm:lora_requests_info{").count(), 1);
    }

    #[test]
    fn adapters_are_counted_and_their_labels_bounded() {
        let metrics = Metrics::new(1);
        let took = Duration::from_secs(1);
        for number in 0..LABELLED + 5 {
            metrics.finished(Some(&format!("a{number}")), "stop", took);
        }
        metrics.finished(None, "length", took);
        let count = |adapter: &str, outcome: &str| {
            let labels = format!("adapter=\"{adapter}\",outcome=\"{outcome}\"");
            value(&metrics, &format!("polylora_requests_total{{{labels}}}"))
        };
        assert_eq!(count("a0", "stop"), Some(1.0));
        assert_eq!(count("base", "length"), Some(1.0));
        assert_eq!(count("other", "stop"), Some(5.0));
        assert_eq!(count(&format!("a{}", LABELLED + 1), "stop"), None);
        assert_eq!(metrics.traffic(&format!("a{}", LABELLED + 1)).requests, 1);
        metrics.tokens(Some("a0"), 5, 7);
        assert_eq!(value(&metrics, "polylora_written_tokens_total{adapter=\"a0\"}"), Some(7.0));
        assert_eq!(metrics.traffic("a0").tokens, 7);
    }
}
