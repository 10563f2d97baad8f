//! The page at `/`: who leads what in the whole installation, since when, and what has become of it over the last hours.
//!
//! It is HTML, CSS and a script from this binary, and asks for nothing from elsewhere. What it shows comes by server-sent
//! events: all of it at first, and then what has changed. It shows what `/shards` of the replicas say and changes nothing.

mod document;
mod gather;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::{
    document::Document,
    gather::{Gatherer, TICK},
};
use super::{http::now, metrics::Metrics, status::Status};

/// Pages that are open at a time: a quarter of the places that the endpoints have.
const OPEN: usize = 16;
/// For so long events are sent on one connection, which lasts no longer than that. The browser makes the next one.
const STREAM: Duration = Duration::from_secs(45);
/// A page on which nothing changes is told at least this often that it is up to date.
const BEAT: Duration = Duration::from_secs(5);

/// Scripts, styles and data from here, and nothing from elsewhere; no other page may frame this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Ends what lasts when the server stops. [`super::http::serve`] gives it to each request.
#[derive(Clone, Debug)]
pub(super) struct Stopping(pub(super) CancellationToken);

struct Page {
    gatherer: Gatherer,
    open: Arc<Semaphore>,
}

/// The page and what it is made of: relative to `/`, so that it works behind a proxy with a path of its own.
pub(super) fn routes(status: Status, metrics: Metrics) -> Router {
    let page = Page { gatherer: Gatherer::new(status, metrics), open: Arc::new(Semaphore::new(OPEN)) };
    let file = |kind: &'static str, text: &'static str| get(async move || guarded(kind, text));
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("index.html")))
        .route("/page/page.css", file("text/css; charset=utf-8", include_str!("page.css")))
        .route("/page/page.js", file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/page/icon.svg", file("image/svg+xml", include_str!("icon.svg")))
        .route("/page/data", get(data))
        .route("/page/events", get(events))
        .with_state(Arc::new(page))
}

fn guarded(kind: &'static str, body: impl Into<Body>) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program may answer next time.
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (headers, body.into()).into_response()
}

/// All that the page shows, once.
async fn data(State(page): State<Arc<Page>>) -> Response {
    let document = page.gatherer.document().await;
    guarded("application/json", page.whole(&document).to_string())
}

/// All that the page shows, and then what has changed, for [`STREAM`].
async fn events(State(page): State<Arc<Page>>, stopping: Option<Extension<Stopping>>) -> Response {
    let Ok(place) = Arc::clone(&page.open).try_acquire_owned() else {
        let why = format!("{OPEN} pages are open at this replica: close one, or open the page of another replica\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], why).into_response();
    };
    let stop = stopping.map_or_else(CancellationToken::new, |Extension(Stopping(stop))| stop);
    let began = now();
    let feed = Feed { page, last: None, ends_at: began + STREAM, beat_at: began, stop, _place: place };
    let stream = futures::stream::unfold(feed, |feed| async {
        feed.next().await.map(|(text, feed)| (Ok::<_, std::convert::Infallible>(text), feed))
    });
    let mut answer = guarded("text/event-stream", Body::from_stream(stream));
    // The next one has a connection of its own again, and all its time.
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// What one open page is sent.
struct Feed {
    page: Arc<Page>,
    /// What it was sent last.
    last: Option<Arc<Document>>,
    ends_at: Instant,
    beat_at: Instant,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    /// The next event, as soon as there is one.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if self.last.is_some() {
                tokio::select! {
                    () = self.stop.cancelled() => return None,
                    () = sleep(TICK) => {}
                }
            }
            if now() >= self.ends_at {
                return None;
            }
            let document = self.page.gatherer.document().await;
            let at = self.page.gatherer.scale().now();
            let text = match &self.last {
                None => Some(format!("retry: 1000\n{}", event("whole", &self.page.whole(&document)))),
                Some(last) => {
                    document.since(last).map(|changes| event("change", &json!({"at": at, "changes": changes})))
                }
            };
            self.last = Some(document);
            let text = text.or_else(|| (now() >= self.beat_at).then(|| event("beat", &json!({"at": at}))));
            if let Some(text) = text {
                self.beat_at = now() + BEAT;
                return Some((Bytes::from(text), self));
            }
        }
    }
}

impl Page {
    fn whole(&self, document: &Document) -> serde_json::Value {
        json!({"at": self.gatherer.scale().now(), "whole": document})
    }
}

/// JSON has no line break of its own.
fn event(name: &str, data: &impl Serialize) -> String {
    // What is sent has text for keys, and no number that JSON has not.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests;
