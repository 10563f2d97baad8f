//! Sends the spans of a replica to an OpenTelemetry collector, by OTLP over HTTP, when the standard environment variables name
//! one. A crate of its own, because the program has no need of it unless it is built with the feature `otel`.
//!
//! Spans wait in a bounded queue and are sent by a thread of their own. One that finds the queue full is dropped, and a
//! collector that does not answer costs nothing else: no thread that works on a kind waits for it.

use std::{env, fmt, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, hyper::HyperClient};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracerProvider, Tracer},
};
use tokio::runtime::{Builder, Runtime};
use tracing::{Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{Layer as _, filter::FilterFn, filter::Filtered, registry::LookupSpan};

/// Spans of this target are sent, and no others: those of libraries would tell of every poll.
pub const TARGET: &str = "leasehold::spans";

/// The variables of which one names a collector. Without both nothing is sent.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// How long a request to the collector may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the end of the process waits for spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// Why no spans can be sent.
#[derive(Debug)]
pub enum Error {
    /// The thread that sends them has no runtime.
    Runtime(std::io::Error),
    /// The system has no certificates to trust a collector by.
    Certificates(std::io::Error),
    /// A variable is set to what it cannot be.
    Variables(opentelemetry_otlp::ExporterBuildError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(_) => f.write_str("failed to start the runtime that sends spans"),
            Self::Certificates(_) => {
                f.write_str("failed to read the system's certificates, for a collector with https")
            }
            Self::Variables(_) => {
                f.write_str("the environment names no collector that spans can be sent to: see OTEL_EXPORTER_OTLP_*")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Runtime(error) | Self::Certificates(error) => Some(error),
            Self::Variables(error) => Some(error),
        }
    }
}

/// A layer of a subscriber that makes spans of ours OpenTelemetry's.
pub type Layer<S> = Filtered<OpenTelemetryLayer<S, Tracer>, FilterFn<fn(&Metadata<'_>) -> bool>, S>;

/// Sends what is left when it is dropped, for a second at the most: keep it to the end of the process.
#[derive(Debug)]
pub struct Spans {
    provider: SdkTracerProvider,
}

impl Drop for Spans {
    fn drop(&mut self) {
        // What is not sent by then is lost: the process ends.
        let _ = self.provider.shutdown_with_timeout(LAST_SPANS);
    }
}

/// Whether the environment names a collector.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    ENDPOINTS.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty()))
}

/// The layer that sends spans to where the environment says, and what keeps it; `None` if it names no collector.
///
/// `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and the limits of
/// `OTEL_BSP_*` are read as OpenTelemetry specifies. `version` is the program's, and `instance` tells replicas apart.
///
/// # Errors
/// If what the environment says cannot be used.
pub fn from_environment<S>(version: &str, instance: &str) -> Result<Option<(Layer<S>, Spans)>, Error>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    if !is_wanted(|name| env::var(name).ok()) {
        return Ok(None);
    }
    let exporter =
        SpanExporter::builder().with_http().with_http_client(Sender::new()?).build().map_err(Error::Variables)?;
    Ok(Some(layer(exporter, resource(version, instance))))
}

/// As [`from_environment`], to this address, such as `http://collector:4318/v1/traces`.
///
/// # Errors
/// If the address is none.
pub fn to<S>(address: &str, version: &str, instance: &str) -> Result<(Layer<S>, Spans), Error>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let exporter = SpanExporter::builder().with_http().with_http_client(Sender::new()?).with_endpoint(address);
    Ok(layer(exporter.build().map_err(Error::Variables)?, resource(version, instance)))
}

fn resource(version: &str, instance: &str) -> Resource {
    // What the environment says of the same goes before.
    let name = env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "leasehold".to_owned());
    let attributes = [("service.version", version), ("service.instance.id", instance)];
    let attributes = attributes.map(|(key, value)| KeyValue::new(key, value.to_owned()));
    Resource::builder().with_service_name(name).with_attributes(attributes).build()
}

fn layer<S>(exporter: SpanExporter, resource: Resource) -> (Layer<S>, Spans)
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let is_ours: fn(&Metadata<'_>) -> bool = |metadata| metadata.is_span() && metadata.target() == TARGET;
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("leasehold"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_ours));
    (layer, Spans { provider })
}

/// Sends by a runtime of its own, on the thread that it is called on: the one of the exporter, which has none.
#[derive(Debug)]
struct Sender {
    runtime: Runtime,
    client: HyperClient<HttpsConnector<HttpConnector>>,
}

impl Sender {
    fn new() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(Error::Certificates)?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self { runtime, client: HyperClient::new(connector, ANSWER, None) })
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.block_on(self.client.send_bytes(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_unless_the_environment_names_a_collector() {
        let set =
            |which: &'static str, value: &'static str| move |name: &str| (name == which).then(|| value.to_owned());
        assert!(!is_wanted(|_| None));
        assert!(!is_wanted(set("OTEL_EXPORTER_OTLP_ENDPOINT", "")));
        assert!(is_wanted(set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")));
        assert!(is_wanted(set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")));
    }
}
