//! The log of a server, and its traces.

use super::LogFormat;
use anyhow::Result;
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// Writes the log to standard error; sends traces where they are asked for. What is still to be
/// sent goes when the value is dropped.
pub(super) fn start(format: LogFormat) -> Result<Traces> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let has_colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt::layer().with_ansi(has_colours).with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let log = tracing_subscriber::registry().with(filter).with(lines);
    #[cfg(feature = "otlp")]
    {
        let traces = otlp::start()?;
        let layer = traces.as_ref().map(otlp::layer);
        log.with(layer).init();
        Ok(Traces(traces))
    }
    #[cfg(not(feature = "otlp"))]
    {
        log.init();
        Ok(Traces)
    }
}

/// Traces on their way to a collector.
#[cfg(feature = "otlp")]
pub(super) struct Traces(Option<opentelemetry_sdk::trace::SdkTracerProvider>);

/// None are sent by this program.
#[cfg(not(feature = "otlp"))]
pub(super) struct Traces;

#[cfg(feature = "otlp")]
impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// OpenTelemetry, configured by its own variables.
#[cfg(feature = "otlp")]
mod otlp {
    use anyhow::{Context, Result};
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::SpanExporter;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::registry::LookupSpan;

    /// Either asks for traces.
    const ENDPOINTS: [&str; 2] =
        ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

    pub(super) fn start() -> Result<Option<SdkTracerProvider>> {
        if ENDPOINTS.iter().all(|name| std::env::var_os(name).is_none()) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build();
        let exporter = exporter.context("traces cannot be sent where OTEL_EXPORTER_OTLP_* says")?;
        let resource = Resource::builder().with_service_name("polylora").build();
        let provider = SdkTracerProvider::builder();
        Ok(Some(provider.with_batch_exporter(exporter).with_resource(resource).build()))
    }

    pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("polylora"))
    }
}
