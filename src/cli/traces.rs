//! Spans for OpenTelemetry: a program that is built with the feature `otel` sends them to where the environment says.

#[cfg(feature = "otel")]
pub(super) use with::{Layer, from_environment};
#[cfg(not(feature = "otel"))]
pub(super) use without::{Layer, from_environment};

#[cfg(feature = "otel")]
mod with {
    use anyhow::Context as _;
    use tracing_subscriber::Registry;

    pub(in crate::cli) type Layer = leasehold_otlp::Layer<Registry>;

    /// Sends spans until it is dropped.
    pub(in crate::cli) struct Spans(Option<leasehold_otlp::Spans>);

    impl Spans {
        /// Whether they are sent, to be logged.
        pub(in crate::cli) fn tell(&self) {
            if self.0.is_some() {
                tracing::info!("sending spans to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names");
            }
        }

        /// The process is to be gone at once: what was not sent is lost.
        pub(in crate::cli) fn end_at_once(self) {
            std::mem::forget(self);
        }
    }

    /// What makes spans ours, and what sends them; `instance` tells replicas apart.
    pub(in crate::cli) fn from_environment(instance: &str) -> anyhow::Result<(Option<Layer>, Spans)> {
        let sent = leasehold_otlp::from_environment(env!("CARGO_PKG_VERSION"), instance);
        let (layer, spans) = sent.context("failed to send spans")?.unzip();
        Ok((layer, Spans(spans)))
    }
}

#[cfg(not(feature = "otel"))]
mod without {
    /// No layer.
    pub(in crate::cli) type Layer = tracing_subscriber::layer::Identity;

    /// Nothing is sent.
    pub(in crate::cli) struct Spans(bool);

    impl Spans {
        /// That nothing is sent although the environment asks for it, to be logged.
        pub(in crate::cli) fn tell(&self) {
            if self.0 {
                tracing::warn!(
                    "OTEL_EXPORTER_OTLP_ENDPOINT is set, and this program sends no spans: build it with `cargo build --release --features cli,jemalloc,otel`"
                );
            }
        }

        /// There is nothing to wait for.
        pub(in crate::cli) fn end_at_once(self) {}
    }

    /// No layer, and whether the environment asks for one.
    #[expect(clippy::unnecessary_wraps, reason = "with the feature it can fail")]
    pub(in crate::cli) fn from_environment(_instance: &str) -> anyhow::Result<(Option<Layer>, Spans)> {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let asked = is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        Ok((None, Spans(asked)))
    }
}
