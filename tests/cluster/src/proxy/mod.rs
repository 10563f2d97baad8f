//! A fault proxy: a reverse proxy in front of the API server that makes faults repeatable.
//!
//! It ends TLS with a certificate of the cluster's authority, speaks HTTP/1.1 on both sides, and keeps one upstream
//! connection for each client connection, so that closing one means closing the other. Bodies are streamed, watches too.
//! Tokens pass through: the API server still sees who asks. `Upgrade` (exec, port-forward) is not supported.
//!
//! Faults are [`Rule`]s, changed at run time. For a request all matching rules are looked at in the order they were added:
//! delays add up, and the first other fault decides. [`FaultProxy::partition`] needs no rule: every byte stops, both ways.
//! [`FaultProxy::freeze`] does the same to the connections that are open, and to no new one.

mod gate;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    client::conn::http1::{SendRequest, handshake},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use gate::{Gate, Shut};

/// How many frames of an answer may be on their way to the client: what a delayed watch has not shown yet.
const LAGGING: usize = 4096;

/// Where requests go.
#[derive(Clone)]
pub enum Upstream {
    /// Plain HTTP.
    Plain(SocketAddr),
    /// HTTPS, verified.
    Tls {
        /// The server.
        address: SocketAddr,
        /// What the proxy trusts.
        client: Arc<rustls::ClientConfig>,
    },
    /// The server itself ends TLS, and the two agree on a protocol, HTTP/2 for one: bytes are passed on unread, so no rule applies.
    /// Partitions and freezes do.
    Opaque(SocketAddr),
}

/// What happens to a matching request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Forwarded after this time.
    Delay(Duration),
    /// Forwarded at once; each piece of the answer's body, such as an event of a watch, arrives this much later.
    /// It holds for running answers too, from the next piece on.
    Lag(Duration),
    /// The connection closes before anything is forwarded.
    Drop,
    /// Never forwarded and never answered, until the rule is removed, when it is forwarded.
    /// An answer that is already streaming, such as a watch, stops until then.
    BlackHole,
    /// Forwarded; the connection closes after this many bytes of the answer's body.
    CutMidResponse(usize),
    /// Forwarded and applied by the server, but the client learns nothing: not even when it goes away before the server has answered.
    AppliedButUnanswered(Silence),
    /// Answered with this status, without forwarding.
    Status {
        /// HTTP status, such as 403, 409, 429, 500 or 503.
        code: u16,
        /// `Retry-After`, in whole seconds.
        retry_after: Option<Duration>,
    },
}

/// How a swallowed answer looks to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Silence {
    /// The connection stays open, silent.
    Hang,
    /// The connection closes.
    Close,
}

/// A fault and the requests it applies to: all of them, unless narrowed.
#[derive(Clone, Debug)]
#[must_use = "a rule does nothing until it is added to a proxy"]
pub struct Rule {
    fault: Fault,
    verbs: Vec<String>,
    resource: Option<String>,
    path: Option<String>,
    remaining: Option<usize>,
}

/// Names a rule, to remove it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleId(u64);

/// A running proxy. Clones share it; it ends with the last one, or with its cluster.
#[derive(Clone)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    _serving: Arc<Serving>,
    url: Arc<str>,
}

struct Serving(AbortHandle);

struct Shared {
    upstream: Upstream,
    rules: Mutex<Rules>,
    /// Counts changes of the rules, so that what they hold back can look again.
    changed: watch::Sender<u64>,
    shut: watch::Sender<Shut>,
    /// How many connections were accepted so far.
    accepted: AtomicU64,
    /// The receive buffer of connections that are accepted, in bytes; 0: the system's.
    window: AtomicUsize,
    seen: Mutex<BTreeMap<(String, String), u64>>,
}

#[derive(Default)]
struct Rules {
    next: u64,
    rules: Vec<(RuleId, Rule)>,
}

/// What a rule can match in a request.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    /// HTTP method, or `WATCH`.
    verb: String,
    /// Plural, with `/subresource`; empty for what is no resource.
    resource: String,
    path: String,
}

impl Rule {
    /// Applies the fault to every request.
    pub fn new(fault: Fault) -> Self {
        Self { fault, verbs: Vec::new(), resource: None, path: None, remaining: None }
    }

    /// Only these HTTP methods. `WATCH` means watches, which `GET` then does not.
    pub fn verbs(mut self, verbs: &[&str]) -> Self {
        self.verbs = verbs.iter().map(|verb| verb.to_uppercase()).collect();
        self
    }

    /// GET, lists and watches pass; all writes are hit.
    pub fn writes(self) -> Self {
        self.verbs(&["POST", "PUT", "PATCH", "DELETE"])
    }

    /// Only this resource with its subresources (`leases`), or this subresource (`widgets/status`).
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only paths (with query) that contain this.
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Only the next `count` matching requests; then the rule is gone.
    pub fn times(mut self, count: usize) -> Self {
        self.remaining = Some(count);
        self
    }

    fn matches(&self, target: &Target) -> bool {
        let resource =
            |wanted: &String| target.resource == *wanted || target.resource.split('/').next() == Some(wanted.as_str());
        (self.verbs.is_empty() || self.verbs.contains(&target.verb))
            && self.resource.as_ref().is_none_or(resource)
            && self.path.as_ref().is_none_or(|part| target.path.contains(part.as_str()))
    }
}

impl FaultProxy {
    /// Listens on a free loopback port, with TLS when `server` is given.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(upstream: Upstream, server: Option<Arc<rustls::ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for a fault proxy")?;
        let is_tls = server.is_some() || matches!(upstream, Upstream::Opaque(_));
        let scheme = if is_tls { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?).into();
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            changed: watch::Sender::new(0),
            shut: watch::Sender::new(Shut::default()),
            accepted: AtomicU64::new(0),
            window: AtomicUsize::new(0),
            seen: Mutex::default(),
        });
        let acceptor = server.map(TlsAcceptor::from);
        let serving = tokio::spawn(serve(listener, acceptor, shared.clone())).abort_handle();
        Ok(Self { shared, _serving: Arc::new(Serving(serving)), url })
    }

    /// The address for clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds a rule behind those there are. It holds for requests that arrive from now on; black holes also for running answers.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut rules = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let id = RuleId(rules.next);
        rules.next += 1;
        rules.rules.push((id, rule));
        drop(rules);
        self.shared.notify();
        id
    }

    /// Removes a rule. What it held in a black hole goes on.
    pub fn remove(&self, id: RuleId) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).rules.retain(|(other, _)| *other != id);
        self.shared.notify();
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).rules.clear();
        self.shared.notify();
    }

    /// Stops every byte between clients and server, on open connections too. Nothing is closed, nothing is lost: it waits.
    /// A request that has reached the server is applied.
    pub fn partition(&self) {
        self.shared.shut.send_modify(|shut| shut.all = true);
    }

    /// Ends a partition. Connections that both sides kept go on where they were.
    pub fn heal(&self) {
        self.shared.shut.send_modify(|shut| shut.all = false);
    }

    /// Stops every byte on the connections that are open now, both ways and for ever: they stay open and say nothing.
    /// New ones work. So does a load balancer that has lost its table, or a server that hangs behind one.
    pub fn freeze(&self) {
        let accepted = self.shared.accepted.load(Ordering::SeqCst);
        self.shared.shut.send_modify(|shut| shut.below = accepted);
    }

    /// Gives connections that are accepted from now on a receive buffer of this many bytes: in a partition, what a client
    /// sends beyond it stays in the client's kernel. Their end is seen half a second after their last byte, as when the
    /// network loses the segment that ends one: what has come whole is carried out by then.
    pub fn narrow(&self, bytes: usize) {
        self.shared.window.store(bytes, Ordering::SeqCst);
    }

    /// How many requests were seen, by (method or `WATCH`, resource with subresource).
    pub fn requests(&self) -> BTreeMap<(String, String), u64> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests with this method (or `WATCH`) and resource were seen.
    pub fn count(&self, verb: &str, resource: &str) -> u64 {
        self.requests().get(&(verb.to_uppercase(), resource.to_owned())).copied().unwrap_or_default()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    fn notify(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The delay and the fault for a request, used up where a rule counts.
    fn decide(&self, target: &Target) -> (Duration, Option<Fault>) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut delay = Duration::ZERO;
        let mut fault = None;
        for (_, rule) in rules.rules.iter_mut().filter(|(_, rule)| rule.matches(target)) {
            match rule.fault {
                Fault::Delay(by) => delay += by,
                Fault::Lag(_) => continue,
                _ => fault = Some(rule.fault.clone()),
            }
            if let Some(remaining) = &mut rule.remaining {
                *remaining = remaining.saturating_sub(1);
            }
            if fault.is_some() {
                break;
            }
        }
        // A counted black hole holds the requests it took until it is removed, so it stays.
        rules.rules.retain(|(_, rule)| rule.remaining != Some(0) || rule.fault == Fault::BlackHole);
        (delay, fault)
    }

    /// Whether a black hole holds this answer back.
    fn holds(&self, target: &Target) -> bool {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.rules.iter().any(|(_, rule)| rule.fault == Fault::BlackHole && rule.matches(target))
    }

    /// By how much a piece of this answer lags.
    fn lag(&self, target: &Target) -> Duration {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = |(_, rule): &(RuleId, Rule)| match rule.fault {
            Fault::Lag(by) if rule.matches(target) => by,
            _ => Duration::ZERO,
        };
        rules.rules.iter().map(lag).sum()
    }

    async fn released(&self, target: &Target) {
        let mut changed = self.changed.subscribe();
        while self.holds(target) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn dial(&self) -> Result<TcpStream> {
        let (Upstream::Plain(address) | Upstream::Tls { address, .. } | Upstream::Opaque(address)) = &self.upstream;
        let stream = TcpStream::connect(address).await.context("failed to connect to the server")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<SendRequest<Outgoing>> {
        let stream = self.dial().await?;
        match &self.upstream {
            Upstream::Plain(_) | Upstream::Opaque(_) => drive(TokioIo::new(stream)).await,
            Upstream::Tls { address, client } => {
                let name = ServerName::IpAddress(address.ip().into());
                let stream = TlsConnector::from(client.clone()).connect(name, stream).await?;
                drive(TokioIo::new(stream)).await
            }
        }
    }
}

impl Target {
    fn of<B>(request: &Request<B>) -> Self {
        let uri = request.uri();
        let watching =
            uri.query().is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
        let segments: Vec<_> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let below = match segments[..] {
            ["api", _, ref below @ ..] | ["apis", _, _, ref below @ ..] => below,
            _ => &[],
        };
        let resource = match *below {
            // A namespace is a resource too, with these subresources.
            ["namespaces"] | ["namespaces", _] => "namespaces".to_owned(),
            ["namespaces", _, sub @ ("status" | "finalize")] => format!("namespaces/{sub}"),
            ["namespaces", _, resource, _, sub, ..] => format!("{resource}/{sub}"),
            ["namespaces", _, resource, ..] => resource.to_owned(),
            [resource, _, sub, ..] => format!("{resource}/{sub}"),
            [resource, ..] => resource.to_owned(),
            [] => String::new(),
        };
        Self {
            verb: if watching { "WATCH".into() } else { request.method().as_str().into() },
            resource,
            path: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

async fn drive<S>(stream: TokioIo<S>) -> Result<SendRequest<Outgoing>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(stream).await?;
    // It ends when its sender is dropped, with the client's connection.
    tokio::spawn(connection);
    Ok(sender)
}

async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Dropped with the proxy, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let window = shared.window.load(Ordering::SeqCst);
        if window > 0 {
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, window);
        }
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let stream = Gate::new(stream, number, shared.shut.subscribe());
        let stream = if window > 0 { stream.lingering() } else { stream };
        let shared = shared.clone();
        match acceptor.clone() {
            _ if matches!(shared.upstream, Upstream::Opaque(_)) => connections.spawn(pass_on(stream, shared)),
            None => connections.spawn(connection(stream, shared)),
            Some(acceptor) => connections.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    connection(stream, shared).await;
                }
            }),
        };
    }
}

/// Both ways, unread, until one side ends it.
async fn pass_on(mut client: Gate, shared: Arc<Shared>) {
    if let Ok(mut server) = shared.dial().await {
        // A side that breaks off ends it as well.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn connection<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let upstream = Arc::new(tokio::sync::Mutex::new(None));
    let service = service_fn(move |request| answer(request, shared.clone(), upstream.clone()));
    // A fault ends it with an error on purpose.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Body = UnsyncBoxBody<Bytes, anyhow::Error>;
type Outgoing = UnsyncBoxBody<Bytes, hyper::Error>;
type Connection = Arc<tokio::sync::Mutex<Option<SendRequest<Outgoing>>>>;

/// An error closes the client's connection.
async fn answer(request: Request<Incoming>, shared: Arc<Shared>, upstream: Connection) -> Result<Response<Body>> {
    let target = Target::of(&request);
    *shared
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry((target.verb.clone(), target.resource.clone()))
        .or_default() += 1;
    let (delay, fault) = shared.decide(&target);
    if let Some(Fault::AppliedButUnanswered(silence)) = fault {
        // Read whole and sent in a task of its own: a client that gives up must not recall the request.
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(parts, Full::from(body).map_err(|never| match never {}).boxed_unsync());
        let applied = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let answered = forward(request, &shared, &upstream).await?;
            answered.into_body().collect().await?;
            anyhow::Ok(())
        });
        applied.await??;
        return match silence {
            Silence::Close => Err(anyhow::anyhow!("the answer was swallowed by a rule")),
            Silence::Hang => std::future::pending().await,
        };
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let cut = match fault {
        None | Some(Fault::Delay(_) | Fault::Lag(_) | Fault::AppliedButUnanswered(_)) => None,
        Some(Fault::CutMidResponse(after)) => Some(after),
        Some(Fault::Drop) => bail!("dropped by a rule"),
        Some(Fault::BlackHole) => {
            shared.released(&target).await;
            None
        }
        Some(Fault::Status { code, retry_after }) => return refuse(code, retry_after),
    };
    let (parts, body) = forward(request.map(BodyExt::boxed_unsync), &shared, &upstream).await?.into_parts();
    Ok(Response::from_parts(parts, streamed(body, target, shared, cut)))
}

async fn forward(request: Request<Outgoing>, shared: &Shared, upstream: &Connection) -> Result<Response<Incoming>> {
    let mut upstream = upstream.lock().await;
    if let Some(sender) = &mut *upstream
        && sender.ready().await.is_err()
    {
        *upstream = None;
    }
    let sender = match &mut *upstream {
        Some(sender) => sender,
        empty => empty.insert(shared.connect().await?),
    };
    Ok(sender.send_request(request).await?)
}

/// The answer's body, frame by frame, late where a rule says so, held back by black holes and cut where a rule says so.
fn streamed(body: Incoming, target: Target, shared: Arc<Shared>, cut: Option<usize>) -> Body {
    let (arriving, subject) = (shared.clone(), target.clone());
    // Frames are read as they come, so that each is late by the same time and not by that of those before it too.
    let body = BodyStream::new(body).map(move |frame| {
        let lag = arriving.lag(&subject);
        let due = Instant::now() + lag;
        async move {
            if !lag.is_zero() {
                sleep_until(due).await;
            }
            frame
        }
    });
    let state = (body.buffered(LAGGING), target, shared, cut);
    let frames = stream::unfold(Some(state), |state| async move {
        let (mut body, target, shared, mut left) = state?;
        if left == Some(0) {
            // Once pending, so that what came before is sent: an error throws away what is still buffered.
            tokio::task::yield_now().await;
            return Some((Err(anyhow::anyhow!("cut by a rule")), None));
        }
        let frame = body.next().await?;
        shared.released(&target).await;
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Some((Err(error.into()), None)),
        };
        let frame = match (frame.into_data(), &mut left) {
            (Ok(mut data), Some(left)) => {
                data.truncate(*left);
                *left -= data.len();
                Frame::data(data)
            }
            (Ok(data), None) => Frame::data(data),
            (Err(trailers), _) => trailers,
        };
        Some((Ok(frame), Some((body, target, shared, left))))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// A refusal as the API server words one.
fn refuse(code: u16, retry_after: Option<Duration>) -> Result<Response<Body>> {
    let reason = match code {
        403 => "Forbidden",
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by a rule of the fault proxy", "reason": reason, "code": code,
    });
    let mut response =
        Response::builder().status(StatusCode::from_u16(code)?).header(header::CONTENT_TYPE, "application/json");
    if let Some(after) = retry_after {
        response = response.header(header::RETRY_AFTER, after.as_secs());
    }
    let body = Full::from(status.to_string()).map_err(|never| match never {});
    Ok(response.body(BodyExt::boxed_unsync(body))?)
}
