//! Spans of what a replica does, for OpenTelemetry: one for a reconciliation, with its requests as children, and a link from
//! the takeover of the kind to each reconciliation of the first pass.
//!
//! They are of a target of their own and of the level `DEBUG`: logs do not have them, and without a subscriber that asks for
//! them they cost a look at an atomic.

use http::{Response, StatusCode};
use tower::BoxError;
use tracing::{Level, Span, debug_span, field::Empty, span_enabled};

use super::{hearing::Target, problem::describe};
use crate::{config::Kind, protocol::lease::FencingToken};

/// The target of all of them.
const TARGET: &str = "leasehold::spans";

/// From the beginning of a term to the end of its first pass; of work that has none, to the end of the term.
pub(super) fn takeover(kind: &Kind, holder: &str, token: &FencingToken) -> Span {
    let kind = kind.name();
    debug_span!(target: TARGET, parent: None, "takeover", kind, leasehold.holder = holder, leasehold.token = %token)
}

/// One reconciliation, which is a trace of its own.
pub(crate) fn reconcile(kind: &Kind, namespace: Option<&str>, name: &str, token: &FencingToken) -> Span {
    debug_span!(
        target: TARGET,
        parent: None,
        "reconcile",
        kind = kind.name(),
        k8s.namespace.name = namespace,
        leasehold.object = name,
        leasehold.token = %token,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// What the span is about has failed.
pub(crate) fn failed(span: &Span, why: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", why);
}

/// A request of a reconciliation; of none, as those of watches, there is no span.
pub(super) fn request(target: Option<&Target>) -> Span {
    // The current span is looked up in the subscriber, which costs more than to know that no span is asked for.
    if !span_enabled!(target: TARGET, Level::DEBUG, "request") {
        return Span::none();
    }
    let (Some(target), false) = (target, Span::current().is_none()) else { return Span::none() };
    debug_span!(
        target: TARGET,
        "request",
        otel.name = %target,
        otel.kind = "client",
        otel.status_code = Empty,
        otel.status_description = Empty,
        url.path = target.path(),
        http.response.status_code = Empty,
    )
}

/// How the request was answered.
pub(super) fn answered<R>(span: &Span, answer: &Result<Response<R>, BoxError>) {
    match answer {
        Ok(response) => {
            let status: StatusCode = response.status();
            span.record("http.response.status_code", status.as_u16());
            if status.is_client_error() || status.is_server_error() {
                span.record("otel.status_code", "ERROR");
            }
        }
        Err(error) => failed(span, &describe(error.as_ref())),
    }
}

/// Keeps the spans of a test.
#[cfg(test)]
pub(crate) mod recorded {
    use std::sync::{Arc, LazyLock, Mutex};

    use tracing::{
        Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };
    use tracing_subscriber::{
        Layer,
        layer::{Context, SubscriberExt as _},
        registry::LookupSpan,
    };

    /// A span of ours: its name, the span of ours that it is in, those that it follows, its fields in their order.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Seen {
        pub(crate) name: &'static str,
        pub(crate) parent: Option<&'static str>,
        pub(crate) follows: Vec<&'static str>,
        pub(crate) fields: Vec<(&'static str, String)>,
        id: u64,
    }

    impl Seen {
        pub(crate) fn field(&self, name: &str) -> Option<&str> {
            self.fields.iter().rev().find(|(of, _)| *of == name).map(|(_, value)| value.as_str())
        }
    }

    #[derive(Clone, Default)]
    pub(crate) struct Recorder(Arc<Mutex<Vec<Seen>>>);

    impl Recorder {
        /// Records the spans of this thread until the guard is dropped.
        pub(crate) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
            // While there is one subscriber only, a span that another thread comes to first is off for all of them, for good.
            static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing_subscriber::registry().into());
            LazyLock::force(&SECOND);
            let recorder = Self::default();
            let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
            (recorder, guard)
        }

        pub(crate) fn named(&self, name: &str) -> Vec<Seen> {
            self.0.lock().unwrap().iter().filter(|seen| seen.name == name).cloned().collect()
        }
    }

    impl Visit for Seen {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.fields.push((field.name(), format!("{value:?}")));
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            self.fields.push((field.name(), value.to_owned()));
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            let span = context.span(id).unwrap();
            let ours = |name: &'static str, target: &str| (target == super::TARGET).then_some(name);
            let Some(name) = ours(span.metadata().name(), span.metadata().target()) else { return };
            let parent = span.scope().skip(1).find_map(|it| ours(it.metadata().name(), it.metadata().target()));
            let mut seen = Seen { name, parent, id: id.into_u64(), ..Seen::default() };
            attributes.record(&mut seen);
            self.0.lock().unwrap().push(seen);
        }

        fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
            let mut all = self.0.lock().unwrap();
            // Ids are used again.
            if let Some(seen) = all.iter_mut().rev().find(|seen| seen.id == id.into_u64()) {
                values.record(seen);
            }
        }

        fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
            let Some(followed) = context.span(follows) else { return };
            let mut all = self.0.lock().unwrap();
            if let Some(seen) = all.iter_mut().rev().find(|seen| seen.id == id.into_u64()) {
                seen.follows.push(followed.metadata().name());
            }
        }
    }
}
