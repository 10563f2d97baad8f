//! The HTTP side of a replica: `/livez`, `/readyz`, `/metrics` and `/shards`.
//!
//! It only reads what others put into [`Status`] and [`Metrics`], and decides nothing.

use std::{fmt::Write as _, future::Future, io, net::SocketAddr};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::{net::TcpListener, time::Instant};

use super::{
    metrics::Metrics,
    status::{Mate, ShardState, ShardStatus, Status},
};
use crate::replica::term::FencingToken;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for --http; choose a free address with --http HOST:PORT")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Takes the address, so that connections queue from here on. Pass the listener to [`serve`].
///
/// # Errors
///
/// If the address is taken or not ours to take.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answers requests until `shutdown` resolves and the last answer is out.
///
/// # Errors
///
/// If the listener breaks.
pub async fn serve(
    listener: TcpListener,
    status: Status,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(status, metrics)).with_graceful_shutdown(shutdown).await
}

/// The routes, for whoever serves them on a listener of their own.
pub fn router(status: Status, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/shards", get(shards))
        .with_state(status)
        .route("/metrics", get(move || page(metrics.clone())))
}

#[expect(clippy::disallowed_methods, reason = "an answer is about the moment it is given")]
fn now() -> Instant {
    Instant::now()
}

async fn livez(State(status): State<Status>) -> (StatusCode, String) {
    verdict(status.live(now()))
}

async fn readyz(State(status): State<Status>) -> (StatusCode, String) {
    verdict(status.ready().map_err(|reason| vec![reason]))
}

fn verdict(health: Result<(), Vec<String>>) -> (StatusCode, String) {
    match health {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reasons) => {
            let mut text = String::new();
            for reason in reasons {
                // Writing to a String does not fail.
                let _ = writeln!(text, "{reason}");
            }
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn page(metrics: Metrics) -> Response {
    match metrics.encode() {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The body of `/shards`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    identity: String,
    ready: bool,
    /// Why the replica is not ready.
    reason: Option<String>,
    stopping: bool,
    /// The replicas that this one sees.
    replicas: Vec<Mate>,
    shards: Vec<Shard>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shard {
    kind: String,
    lease: String,
    state: ShardState,
    reason: Option<String>,
    /// How the last request about the Lease failed.
    trouble: Option<String>,
    holder: Option<String>,
    held_here: bool,
    token: Option<FencingToken>,
    /// Zero once the term's validity has ended.
    valid_for_seconds: Option<f64>,
    seconds_since_renewal: Option<f64>,
    /// Who shall have it, as this replica sees the others.
    target: Option<String>,
    /// Whom this replica is handing it over to.
    successor: Option<String>,
    /// A cache kept without leading: `Filling` or `Filled`.
    cache: Option<&'static str>,
}

async fn shards(State(status): State<Status>) -> Json<Report> {
    Json(report(&status, now()))
}

fn report(status: &Status, now: Instant) -> Report {
    let replica = status.replica();
    let reason = status.ready().err();
    let shards = status.shards().into_iter().map(|(lease, shard)| row(&replica.identity, lease, shard, now)).collect();
    Report {
        identity: replica.identity,
        ready: reason.is_none(),
        reason,
        stopping: replica.stopping,
        replicas: replica.crew,
        shards,
    }
}

fn row(identity: &str, lease: String, shard: ShardStatus, now: Instant) -> Shard {
    let held_here = shard.holder.as_deref().is_some_and(|holder| holder == identity);
    Shard {
        kind: shard.kind,
        lease,
        state: shard.state,
        reason: shard.reason,
        trouble: shard.trouble,
        holder: shard.holder,
        held_here,
        token: shard.token,
        valid_for_seconds: shard.valid_until.map(|until| until.saturating_duration_since(now).as_secs_f64()),
        seconds_since_renewal: shard.renewed_at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
        target: shard.target,
        successor: shard.successor,
        cache: shard.cache.map(|filled| if filled { "Filled" } else { "Filling" }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, http::Request};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    struct Replica {
        status: Status,
        router: Router,
    }

    fn replica() -> Replica {
        let status = Status::default();
        status.update_replica(|replica| replica.identity = "a_1".to_owned());
        let metrics = Metrics::new(["Widget.example.com".to_owned()], status.clone());
        Replica { router: router(status.clone(), metrics), status }
    }

    impl Replica {
        async fn get(&self, path: &str) -> (StatusCode, String, String) {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned());
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
        }

        #[track_caller]
        fn lead(&self, now: Instant) {
            self.status.update("widget.example.com", |shard| {
                *shard = ShardStatus {
                    kind: "Widget.example.com".to_owned(),
                    state: ShardState::Leading,
                    reason: None,
                    trouble: None,
                    holder: Some("a_1".to_owned()),
                    token: Some(FencingToken { uid: "u".to_owned(), transitions: 3 }),
                    valid_until: Some(now + Duration::from_secs(14)),
                    running: true,
                    renewed_at: Some(now),
                    target: Some("a_1".to_owned()),
                    successor: None,
                    cache: None,
                };
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn livez_fails_when_a_term_outlives_its_validity_or_the_supervisor_stops() {
        let replica = replica();
        assert_eq!(replica.get("/livez").await.0, StatusCode::OK);
        replica.lead(now());
        tokio::time::advance(Duration::from_secs(18)).await;
        assert_eq!(replica.get("/livez").await.0, StatusCode::OK, "the abort still has time");
        tokio::time::advance(Duration::from_secs(2)).await;
        replica.status.update_replica(|replica| replica.supervisor_stopped = true);
        let (status, _, body) = replica.get("/livez").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            body,
            "the supervisor has stopped\n\
             lease widget.example.com: the term of Widget.example.com still runs 6 s after its validity ended\n"
        );
    }

    #[tokio::test]
    async fn readyz_gives_the_reason_and_does_not_ask_for_a_lease() {
        let replica = replica();
        let (status, _, body) = replica.get("/readyz").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok\n"));
        replica.status.update_replica(|replica| replica.unready = Some("cannot list leases: 403".to_owned()));
        let (status, _, body) = replica.get("/readyz").await;
        assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "cannot list leases: 403\n"));
        replica.status.update_replica(|replica| replica.stopping = true);
        assert_eq!(replica.get("/readyz").await.2, "stopping\n");
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() {
        let (status, kind, body) = replica().get("/metrics").await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, OPEN_METRICS));
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test(start_paused = true)]
    async fn shards_show_who_holds_what() {
        let replica = replica();
        replica.lead(now());
        replica.status.update("gadget.example.com", |shard| {
            shard.kind = "Gadget.example.com".to_owned();
            shard.state = ShardState::Blocked;
            shard.reason = Some("no CRD".to_owned());
        });
        let mate = Mate { identity: "a_1".to_owned(), draining: false, newest: true };
        replica.status.update_replica(|replica| replica.crew = vec![mate]);
        tokio::time::advance(Duration::from_secs(2)).await;
        let (status, _, body) = replica.get("/shards").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({
                "identity": "a_1", "ready": true, "reason": null, "stopping": false,
                "replicas": [{"identity": "a_1", "draining": false, "newest": true}],
                "shards": [
                    {
                        "kind": "Gadget.example.com", "lease": "gadget.example.com", "state": "Blocked",
                        "reason": "no CRD", "trouble": null, "holder": null, "heldHere": false, "token": null,
                        "validForSeconds": null, "secondsSinceRenewal": null,
                        "target": null, "successor": null, "cache": null,
                    },
                    {
                        "kind": "Widget.example.com", "lease": "widget.example.com", "state": "Leading",
                        "reason": null, "trouble": null, "holder": "a_1", "heldHere": true,
                        "token": {"uid": "u", "transitions": 3},
                        "validForSeconds": 12.0, "secondsSinceRenewal": 2.0,
                        "target": "a_1", "successor": null, "cache": null,
                    },
                ],
            })
        );
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_what_to_do() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind(taken).await.unwrap_err().to_string();
        assert_eq!(error, format!("cannot listen on {taken} for --http; choose a free address with --http HOST:PORT"));
    }
}
