//! Logs: one line an event on standard error, as text or JSON.

use std::{io, panic};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// What is logged unless `RUST_LOG` says otherwise. The client library reports each retry of a watch as a warning of its
/// own, beside the one line in which we say that it is down.
const DEFAULT_FILTER: &str = "info,kube_client=error,kube_runtime=error,hyper=warn,tower=warn";

pub(super) fn install(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        Format::Text => lines.with_target(false).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(place, %backtrace, "panic: {message}");
        } else {
            tracing::error!(place, "panic: {message}");
        }
    }));
}
