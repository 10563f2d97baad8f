//! The HTTP side of a replica: `/livez`, `/readyz`, `/metrics`, `/shards` and `/history`, and the [page] at `/`.
//!
//! It only reads what others put into [`Status`] and [`Metrics`], and decides nothing.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderValue, Request, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    connections::{Crowded, Pace, Places, Useful, serve_all},
    metrics::Metrics,
    page, process,
    report::{HandingOver, Report, Shard, Takeover, Wait, Work},
    status::{self, ShardStatus, Status},
    timeline::{self, TOLD},
    work::Summary,
};

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

/// What a server spends on clients that it knows nothing of: every Pod of the cluster may be able to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. One more takes the place of another: of those that are not being answered, the oldest of the
    /// peer that has the most.
    pub connections: usize,
    /// Connections of one peer at a time: a flood from one address closes its own.
    pub of_a_peer: usize,
    /// Requests that a peer may make at once before it is held to [`per_second`](Self::per_second). `/livez` and `/readyz` are
    /// answered beyond that as well, for a flood on the kubelet's node may have its address; all other requests get 429. Each
    /// such answer ends its connection.
    pub burst: u32,
    /// Requests of a peer a second.
    pub per_second: u32,
    /// How long the head of a request may take, from the start of its connection or the end of the request before it:
    /// an idle connection is closed after this time too.
    pub head: Duration,
    /// How long a connection may last, whatever it does; a request that is being answered then has [`head`](Self::head) more.
    /// It bounds a client that does not read its answer.
    pub age: Duration,
    /// Bytes of a request's head, and the most that is buffered of what a client sends: at least 8 KiB.
    /// No route reads a request's body, so no more than this is kept of one.
    pub head_bytes: usize,
}

impl Default for Limits {
    /// Of some dozen honest clients, the kubelet and two or three scrapers, each needs one connection for milliseconds and
    /// makes a request a second at the most. All places full cost some 2 MiB.
    fn default() -> Self {
        Self {
            connections: 64,
            of_a_peer: 16,
            burst: 100,
            per_second: 20,
            head: Duration::from_secs(10),
            age: Duration::from_secs(60),
            head_bytes: 16 * 1024,
        }
    }
}

/// What all connections share.
struct Shared {
    router: Router,
    limits: Limits,
    pace: Mutex<Pace>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Answers requests by HTTP/1.1 until `shutdown` resolves and the last answer is out. What the limits cost is counted in
/// `metrics`. Dropping the future closes all connections.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Metrics,
    shutdown: impl Future<Output = ()>,
) {
    let places = Places::new(limits.connections, limits.of_a_peer);
    let pace = Mutex::new(Pace::new(limits.burst, limits.per_second));
    let shared = Arc::new(Shared { router, limits, pace, metrics, stop: CancellationToken::new() });
    let crowded = |why: Crowded| shared.metrics.connection_closed("endpoints", why.name());
    let connection = |stream, peer, useful| connection(stream, peer, Arc::clone(&shared), useful);
    serve_all(listener, places, crowded, shutdown, &shared.stop, connection).await;
}

/// Serves one connection to its end; what ends it is its client's affair.
async fn connection(stream: TcpStream, peer: IpAddr, shared: Arc<Shared>, useful: Useful) {
    let (limits, stop) = (shared.limits, shared.stop.clone());
    // An answer is written whole; an error means a connection that is gone already.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes);
    let service = service_fn(move |request| {
        let (shared, useful) = (Arc::clone(&shared), useful.clone());
        async move {
            useful.set(true);
            let answer = shared.answer(peer, request).await;
            useful.set(false);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = &mut connection => return,
        () = stop.cancelled() => {}
        () = sleep(limits.age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.head, connection).await;
}

impl Shared {
    async fn answer(&self, peer: IpAddr, mut request: Request<Incoming>) -> Response {
        request.extensions_mut().insert(page::Stopping(self.stop.clone()));
        let in_pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner).allows(peer, now());
        let mut answer = if in_pace || ["/livez", "/readyz"].contains(&request.uri().path()) {
            let Ok(answer) = self.router.clone().oneshot(request.map(Body::new)).await;
            answer
        } else {
            self.metrics.request_refused("endpoints", "pace");
            let Limits { burst, per_second, .. } = self.limits;
            let why = format!(
                "more than {burst} requests at once and {per_second} a second come from {peer}; ask less often\n"
            );
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], why).into_response()
        };
        if !in_pace {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// The routes, for [`serve`] or a server of your own.
pub fn router(status: Status, metrics: Metrics) -> Router {
    let (counted, shown) = (metrics.clone(), metrics.clone());
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/shards", get(move |status, uri| shards(status, uri, counted.clone())))
        .route("/history", get(history))
        .with_state(status.clone())
        .route("/metrics", get(move || metrics_page(shown.clone())))
        .merge(page::routes(status, metrics))
}

#[expect(clippy::disallowed_methods, reason = "an answer is about the moment it is given")]
pub(super) fn now() -> Instant {
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

async fn metrics_page(metrics: Metrics) -> Response {
    match metrics.encode() {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// All kinds, or with `?kind=` the one of this name and all that is known of it.
async fn shards(State(status): State<Status>, uri: Uri, metrics: Metrics) -> Json<Report> {
    let kind = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("kind="));
    Json(report(&status, &metrics, kind, now()))
}

/// All takeovers that this replica knows of, for one that has just started.
async fn history(State(status): State<Status>) -> Json<timeline::History> {
    Json(status.timeline().told(now()))
}

/// What this replica says of itself, as `/shards` has it.
pub(super) fn report(status: &Status, metrics: &Metrics, kind: Option<&str>, now: Instant) -> Report {
    let replica = status.replica();
    let reason = status.ready().err();
    let asked = |shard: &ShardStatus| kind.is_none_or(|kind| kind == shard.kind);
    let row = |shard: ShardStatus| {
        let work = metrics.summary(&shard.kind).map(work);
        let takeovers = status.timeline().last(&shard.lease, if kind.is_some() { TOLD } else { 1 });
        let takeovers = takeovers.iter().map(|it| it.told(now)).collect();
        row(&replica.identity, shard, work, takeovers, now)
    };
    let shards = status.shards().into_iter().filter(asked).map(row).collect();
    let wait = |wait: status::Wait| Wait {
        reason: wait.reason.0.to_owned(),
        message: wait.reason.1,
        for_seconds: wait.until.map(|until| left(until, now)),
    };
    // What was shown last may be over by now: nothing has happened since.
    let goes_on = |wait: &status::Wait| wait.until.is_none_or(|until| until > now);
    Report {
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        generation: Some(replica.generation),
        capacity: Some(replica.capacity),
        memory_bytes: process::memory(),
        waits: Some(replica.waits.into_iter().filter(goes_on).map(wait).collect()),
        identity: replica.identity,
        ready: reason.is_none(),
        reason,
        stopping: replica.stopping,
        replicas: replica.peers,
        shards,
        webhooks: replica.webhooks,
    }
}

fn left(until: Instant, now: Instant) -> f64 {
    until.saturating_duration_since(now).as_secs_f64()
}

fn since(at: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(at).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a rate that is shown")]
fn work(summary: Summary) -> Work {
    let within = summary.recent_within.as_secs_f64().max(1.0);
    let count = |count| u64::try_from(count).unwrap_or(u64::MAX);
    Work {
        objects: count(summary.objects),
        waiting: count(summary.waiting),
        oldest_waits_seconds: summary.oldest.map(|oldest| oldest.as_secs_f64()),
        reconciles: summary.reconciles.0,
        failures: summary.reconciles.1,
        reconciles_per_second: summary.recent.0 as f64 / within,
        recent_failures: summary.recent.1,
        watches: count(summary.listed.1),
        watches_listed: count(summary.listed.0),
        unswept: count(summary.unswept),
    }
}

fn row(identity: &str, shard: ShardStatus, work: Option<Work>, takeovers: Vec<Takeover>, now: Instant) -> Shard {
    let held_here = shard.holder.as_deref().is_some_and(|holder| holder == identity);
    Shard {
        kind: shard.kind,
        group: shard.group,
        lease: shard.lease,
        state: format!("{:?}", shard.state),
        reason: shard.reason,
        trouble: shard.trouble,
        odd: shard.odd,
        holder: shard.holder,
        held_here,
        token: shard.token,
        valid_for_seconds: shard.valid_until.map(|until| left(until, now)),
        seconds_since_renewal: shard.renewed_at.map(|at| since(at, now)),
        target: shard.target,
        successor: shard.successor,
        handing_over: shard
            .handing_over
            .map(|it| HandingOver { waits_for: it.waits_for.name().to_owned(), for_seconds: since(it.since, now) }),
        cache: shard.cache.map(|filled| if filled { "Filled" } else { "Filling" }.to_owned()),
        weight: Some(shard.weight),
        leading_for_seconds: shard.leading_since.map(|at| since(at, now)),
        without_leader_seconds: shard.unled_since.map(|at| since(at, now)),
        cooling_for_seconds: shard.cooling_until.filter(|until| *until > now).map(|until| left(until, now)),
        work,
        takeovers,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, http::Request};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::ops::{
        connections::accept,
        status::{Peer, ShardState},
    };

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

    fn taken(now: Instant, number: u64) -> status::Takeover {
        status::Takeover {
            at: now,
            from: Some("b_1".to_owned()),
            to: "a_1".to_owned(),
            token: format!("u/{number}"),
            reason: ("Expired".into(), "its holder fell silent".into()),
            without_leader: Some(Duration::from_millis(14_500)),
        }
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
            self.status.update("Widget.example.com", |shard| {
                *shard = ShardStatus {
                    kind: "Widget.example.com".to_owned(),
                    lease: "widget.example.com".to_owned(),
                    group: Some("parts".to_owned()),
                    state: ShardState::Leading,
                    reason: None,
                    trouble: None,
                    odd: Vec::new(),
                    holder: Some("a_1".to_owned()),
                    token: Some("u/3".to_owned()),
                    valid_until: Some(now + Duration::from_secs(14)),
                    running: true,
                    renewed_at: Some(now),
                    target: Some("a_1".to_owned()),
                    successor: Some("b_1".to_owned()),
                    handing_over: Some(status::HandingOver { waits_for: status::WaitsFor::Successor, since: now }),
                    cache: None,
                    weight: 3,
                    leading_since: Some(now),
                    unled_since: None,
                    cooling_until: None,
                };
            });
            for number in 0..3 {
                self.status.timeline().add(now, "widget.example.com", timeline::Source::Seen, taken(now, number));
            }
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
        replica.status.update("Gadget.example.com", |shard| {
            shard.lease = "gadget.example.com".to_owned();
            shard.state = ShardState::Blocked;
            shard.reason = Some("no CRD".to_owned());
        });
        let (identity, generation) = ("a_1".to_owned(), "7c9f".to_owned());
        let peer = Peer { identity, generation, capacity: 2, draining: false, newest: true };
        let settling = status::Wait {
            reason: ("Settling", "the replicas have just changed".to_owned()),
            until: Some(now() + Duration::from_secs(5)),
        };
        let over = status::Wait { until: Some(now() + Duration::from_secs(1)), ..settling.clone() };
        replica.status.update_replica(|replica| {
            (replica.peers, replica.waits) = (vec![peer], vec![over, settling]);
            (replica.generation, replica.capacity) = ("7c9f".to_owned(), 2);
        });
        tokio::time::advance(Duration::from_secs(2)).await;
        let (status, _, body) = replica.get("/shards").await;
        assert_eq!(status, StatusCode::OK);
        let mut shown: Value = serde_json::from_str(&body).unwrap();
        let memory = shown["memoryBytes"].take();
        assert!(memory.is_null() || memory.as_u64() > Some(1 << 20), "{memory}");
        let taken = |number: u64| {
            json!({
                "secondsAgo": 2.0, "from": "b_1", "to": "a_1", "token": format!("u/{number}"), "reason": "Expired",
                "message": "its holder fell silent", "withoutLeaderSeconds": 14.5,
            })
        };
        assert_eq!(
            shown,
            json!({
                "version": env!("CARGO_PKG_VERSION"), "identity": "a_1", "generation": "7c9f", "capacity": 2, "memoryBytes": null,
                "ready": true, "reason": null, "stopping": false,
                "waits": [{"reason": "Settling", "message": "the replicas have just changed", "forSeconds": 3.0}],
                "replicas": [{"identity": "a_1", "generation": "7c9f", "capacity": 2, "draining": false, "newest": true}],
                "webhooks": null,
                "shards": [
                    {
                        "kind": "Gadget.example.com", "group": null, "lease": "gadget.example.com", "state": "Blocked",
                        "reason": "no CRD", "trouble": null, "odd": [], "holder": null, "heldHere": false, "token": null,
                        "validForSeconds": null, "secondsSinceRenewal": null,
                        "target": null, "successor": null, "handingOver": null, "cache": null, "weight": 0, "leadingForSeconds": null,
                        "withoutLeaderSeconds": null, "coolingForSeconds": null, "work": null, "takeovers": [],
                    },
                    {
                        "kind": "Widget.example.com", "group": "parts", "lease": "widget.example.com", "state": "Leading",
                        "reason": null, "trouble": null, "odd": [], "holder": "a_1", "heldHere": true,
                        "token": "u/3",
                        "validForSeconds": 12.0, "secondsSinceRenewal": 2.0,
                        "target": "a_1", "successor": "b_1", "handingOver": {"waitsFor": "successor", "forSeconds": 2.0}, "cache": null, "weight": 3, "leadingForSeconds": 2.0,
                        "withoutLeaderSeconds": null, "coolingForSeconds": null, "work": null, "takeovers": [taken(2)],
                    },
                ],
            })
        );
        let one: Value = serde_json::from_str(&replica.get("/shards?x=1&kind=Widget.example.com").await.2).unwrap();
        assert_eq!(one["shards"].as_array().unwrap().len(), 1);
        assert_eq!(one["shards"][0]["takeovers"], json!([taken(0), taken(1), taken(2)]), "all that is kept of it");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_what_to_do() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind(taken).await.unwrap_err().to_string();
        assert_eq!(error, format!("cannot listen on {taken} for --http; choose a free address with --http HOST:PORT"));
    }

    mod connections {
        use std::future::pending;

        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        use super::*;

        /// Longer than any test takes.
        const EVER: Duration = Duration::from_secs(3600);
        const SHORT: Duration = Duration::from_millis(50);
        const LIMITS: Limits = Limits {
            connections: 64,
            of_a_peer: 64,
            burst: 1000,
            per_second: 1000,
            head: EVER,
            age: EVER,
            head_bytes: 8192,
        };
        const UNFINISHED: &[u8] = b"GET /livez HTTP/1.1\r\nx: ";
        const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

        /// Plays against a server with these limits, for ten seconds at most.
        async fn play<T>(limits: Limits, play: impl AsyncFnOnce(SocketAddr) -> T) -> T {
            let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = serve(listener, replica().router, limits, Metrics::default(), pending());
            tokio::select! {
                () = server => unreachable!("nothing stops the server"),
                played = timeout(Duration::from_secs(10), play(address)) => played.expect("a test of milliseconds"),
            }
        }

        async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream
        }

        /// What comes until the server closes the connection, which may be by a reset.
        async fn rest(mut stream: TcpStream) -> String {
            let mut bytes = Vec::new();
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut part).await {
                bytes.extend_from_slice(&part[..read]);
            }
            String::from_utf8(bytes).unwrap()
        }

        #[tokio::test]
        async fn an_unfinished_head_and_an_idle_connection_are_closed_in_time() {
            play(Limits { head: SHORT, ..LIMITS }, async |address| {
                assert_eq!(rest(send(address, b"").await).await, "");
                assert_eq!(rest(send(address, UNFINISHED).await).await, "");
                let answered = rest(send(address, REQUEST).await).await;
                assert!(answered.starts_with("HTTP/1.1 200 OK\r\n") && answered.ends_with("ok\n"), "{answered}");
            })
            .await;
        }

        #[tokio::test]
        async fn slow_clients_keep_no_other_out() {
            play(Limits { connections: 8, ..LIMITS }, async |address| {
                let mut slow = Vec::new();
                for _ in 0..200 {
                    slow.push(send(address, UNFINISHED).await);
                }
                let mut probe = send(address, REQUEST).await;
                let mut answer = [0; 15];
                probe.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200 OK");
                // The probe has taken the place of one: 193 are closed, and the last seven are served when they go on.
                let last = slow.split_off(193);
                for stream in slow {
                    assert_eq!(rest(stream).await, "");
                }
                for mut stream in last {
                    stream.write_all(b"y\r\n\r\n").await.unwrap();
                    stream.read_exact(&mut answer).await.unwrap();
                    assert_eq!(&answer, b"HTTP/1.1 200 OK");
                }
            })
            .await;
        }

        /// Connects from another address of this machine.
        async fn send_from(from: u8, address: SocketAddr, bytes: &[u8]) -> TcpStream {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream
        }

        #[cfg(target_os = "linux")]
        #[tokio::test]
        async fn a_flood_from_one_address_closes_its_own_connections() {
            play(Limits { connections: 8, of_a_peer: 4, ..LIMITS }, async |address| {
                let mut kept = send_from(2, address, UNFINISHED).await;
                let mut flood = Vec::new();
                for _ in 0..200 {
                    flood.push(send_from(3, address, UNFINISHED).await);
                }
                for stream in flood.drain(..196) {
                    assert_eq!(rest(stream).await, "");
                }
                kept.write_all(b"y\r\n\r\n").await.unwrap();
                kept.read_exact(&mut [0; 15]).await.unwrap();
            })
            .await;
        }

        #[cfg(target_os = "linux")]
        #[tokio::test]
        async fn a_peer_that_asks_too_often_is_told_so_and_probes_are_answered() {
            play(Limits { burst: 2, per_second: 1, ..LIMITS }, async |address| {
                const PAGE: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
                for expected in ["200", "200", "429"] {
                    let answer = rest(send_from(2, address, PAGE).await).await;
                    assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
                }
                let probe = rest(send_from(2, address, REQUEST).await).await;
                assert!(probe.starts_with("HTTP/1.1 200 OK\r\n") && probe.contains("connection: close"), "{probe}");
                let other = rest(send_from(3, address, PAGE).await).await;
                assert!(other.starts_with("HTTP/1.1 200 "), "{other}");
            })
            .await;
        }

        #[tokio::test]
        async fn a_long_head_is_refused_and_a_body_is_not_read() {
            play(LIMITS, async |address| {
                let long = [UNFINISHED, "y".repeat(8192).as_bytes()].concat();
                let answer = rest(send(address, &long).await).await;
                assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
                let body = b"GET /livez HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\nxyz";
                let answer = rest(send(address, body).await).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            })
            .await;
        }

        #[tokio::test]
        async fn a_client_that_does_not_read_its_answer_is_dropped() {
            let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let _unread = send(listener.local_addr().unwrap(), REQUEST).await;
            let (stream, peer) = accept(&listener).await;
            let huge = Router::new().route("/livez", get(async || vec![b'x'; 64 << 20]));
            let limits = Limits { head: SHORT, age: SHORT, ..LIMITS };
            let pace = Mutex::new(Pace::new(1, 1));
            let stop = CancellationToken::new();
            let shared = Arc::new(Shared { router: huge, limits, pace, metrics: Metrics::default(), stop });
            let dropped = connection(stream, peer, shared, Useful::default());
            timeout(Duration::from_secs(10), dropped).await.unwrap();
        }

        #[tokio::test]
        async fn a_stop_waits_for_no_idle_client() {
            let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let server = serve(listener, replica().router, LIMITS, Metrics::default(), stop.cancelled());
            let client = async {
                let mut stream = send(address, REQUEST).await;
                stream.read_exact(&mut [0; 15]).await.unwrap();
                stop.cancel();
                rest(stream).await
            };
            let (rest, ()) = timeout(Duration::from_secs(10), async { tokio::join!(client, server) }).await.unwrap();
            assert!(rest.ends_with("ok\n"), "{rest}");
        }
    }
}
