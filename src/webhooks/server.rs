//! The HTTPS side: what a client may cost, in connections, bytes and time.
//!
//! The API servers are a handful of honest clients; but every Pod may be able to connect.
//! API servers speak HTTP/1.1 with webhooks (`pkg/util/webhook/client.go` of k8s.io/apiserver), with a connection for each
//! request that they have under way. A connection that is closed just as they write a request loses that one. So we close
//! none that they may still use: with the signal to stop each answer says that its connection ends with it, and one that rests
//! is closed later than they close it. HTTP/2 is spoken with clients that offer it; its GOAWAY says what was not taken.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    review::{Answer, Reviews, Route, invalid},
    turns::Turns,
};
use crate::ops::{
    connections::{Crowded, Places, Useful, serve_all},
    metrics::Metrics,
};

/// What a server spends on its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. One more takes the place of another: of those that have not had a review answered yet, or else
    /// of all, the oldest of the peer that has the most. Clients that only connect keep no API server out.
    pub connections: usize,
    /// Connections of one peer at a time. API servers may come by one address, that of a node or of a proxy, and each opens
    /// one for every request that it has under way: 200 that write, if `--max-mutating-requests-inflight` is as it ships.
    pub of_a_peer: usize,
    /// Requests at a time, on all connections. One more is told to come again.
    pub requests: usize,
    /// How long TLS may take; and the head of a request, or twice as long at the most.
    pub head: Duration,
    /// How long a connection of HTTP/1.1 may rest: longer than an API server keeps one, which is 90 s.
    pub idle: Duration,
    /// How long a request's body may take.
    pub body: Duration,
    /// Bytes of a body: an API server takes objects of three, and sends the old one along with the new one.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or reviewed, and of what they become when they are decoded. It is also the most
    /// that one review may take, which is several times what the largest object does that etcd stores.
    pub all_bodies: usize,
    /// How long a webhook may take to answer: less than `timeoutSeconds` of the configurations.
    pub answer: Duration,
    /// How long a connection may last. Then it ends with its next answer, or with HTTP/2 as at a stop.
    pub age: Duration,
    /// How long the last answers may take at the end of a connection.
    pub end: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            of_a_peer: 256,
            requests: 256,
            head: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            body: Duration::from_secs(5),
            body_bytes: 8 << 20,
            all_bodies: 24 << 20,
            answer: Duration::from_secs(4),
            age: Duration::from_secs(600),
            end: Duration::from_secs(10),
        }
    }
}

const HEAD_BYTES: u32 = 16 << 10;

/// What an item of a list or a field takes in memory besides its text: two bytes of a body may become this many.
const NODE_BYTES: usize = 96;

/// What all connections share.
struct Shared {
    reviews: Arc<Reviews>,
    limits: Limits,
    metrics: Metrics,
    requests: Semaphore,
    bodies: Semaphore,
    leaving: CancellationToken,
    stop: CancellationToken,
}

/// Serves until `terminating` resolves and for `delay` after it, in which each answer ends its connection; then takes no new
/// connection and lets each client finish what it has asked.
/// Dropping the future closes all connections.
pub async fn serve(
    listener: TcpListener,
    reviews: Arc<Reviews>,
    tls: Arc<ServerConfig>,
    limits: Limits,
    metrics: Metrics,
    terminating: impl Future<Output = ()>,
    delay: Duration,
) {
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared {
        reviews,
        limits,
        metrics,
        requests: Semaphore::new(limits.requests),
        bodies: Semaphore::new(limits.all_bodies),
        leaving: CancellationToken::new(),
        stop: CancellationToken::new(),
    });
    let shutdown = async {
        terminating.await;
        shared.leaving.cancel();
        sleep(delay).await;
    };
    let places = Places::new(limits.connections, limits.of_a_peer);
    let crowded = |why: Crowded| shared.metrics.connection_closed("webhooks", why.name());
    let connection = |stream, _peer, useful| connection(stream, acceptor.clone(), Arc::clone(&shared), useful);
    serve_all(listener, places, crowded, shutdown, &shared.stop, connection).await;
}

/// Serves one connection to its end; what ends it is its client's affair.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>, useful: Useful) {
    let limits = shared.limits;
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(limits.head, acceptor.accept(stream)).await else { return };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let (began, turns) = (now(), Turns::new(now()));
    let stream = Lingering { inner: stream, is_shut: false, turns: turns.clone() };
    let stop = shared.stop.clone();
    let of_service = turns.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, useful, turns) = (Arc::clone(&shared), useful.clone(), of_service.clone());
        async move {
            turns.asked();
            let mut response = shared.respond(request, &useful).await;
            if !is_http2 && (shared.leaving.is_cancelled() || began.elapsed() >= limits.age) {
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            turns.answered(now());
            Ok::<_, Infallible>(response)
        }
    });
    if is_http2 {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(u32::try_from(limits.requests).unwrap_or(u32::MAX))
            .max_header_list_size(HEAD_BYTES)
            // A client that is gone without a word, or sends no preface, answers no ping either.
            .keep_alive_interval(limits.head)
            .keep_alive_timeout(limits.head);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = &mut connection => return,
            () = stop.cancelled() => {}
            () = sleep(limits.age) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(limits.end, connection).await;
    } else {
        let mut http = http1::Builder::new();
        http.max_header_size(HEAD_BYTES as usize).max_buf_size(4 * HEAD_BYTES as usize);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = &mut connection => return,
            () = turns.over(limits) => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(limits.end, connection).await;
    }
}

/// Reads what a client still sends after our last word, until it closes: the kernel resets a connection that is closed with
/// something unread, and the client may lose answers that it has not read.
struct Lingering<S> {
    inner: S,
    is_shut: bool,
    turns: Turns,
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        if into.filled().len() > before {
            self.turns.heard(now());
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.is_shut = true;
        }
        loop {
            let mut bytes = [0; 4096];
            let mut part = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part)) {
                Ok(()) if !part.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Shared {
    async fn respond(&self, request: Request<Incoming>, useful: &Useful) -> Response<Full<Bytes>> {
        let Some(route) = Route::of(request.uri().path()) else {
            return plain(StatusCode::NOT_FOUND, "there are /validate, /mutate and /convert");
        };
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "a review is POSTed");
        }
        let began = now();
        let answer = self.answer(route, request).await;
        if answer.status == StatusCode::OK {
            useful.set(true);
        }
        self.metrics.webhook_answered(route.name(), answer.outcome, began.elapsed());
        let mut response = Response::new(Full::new(Bytes::from(answer.body)));
        *response.status_mut() = answer.status;
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }

    async fn answer(&self, route: Route, request: Request<Incoming>) -> Answer {
        let refuse = |status, message: &str| invalid(route, status, message, &[]);
        let Ok(_one) = self.requests.try_acquire() else {
            self.metrics.request_refused("webhooks", "requests");
            return refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests at once; send this one again");
        };
        let mut held = Vec::new();
        let body = match timeout(self.limits.body, self.body(request, &mut held)).await {
            Ok(Ok(body)) => body,
            Ok(Err((status, message))) => return refuse(status, &message),
            Err(_elapsed) => {
                let message = format!("the body has not come within {} s", self.limits.body.as_secs());
                return refuse(StatusCode::REQUEST_TIMEOUT, &message);
            }
        };
        self.reviews.answer(route, &body).await
    }

    /// Reads a body. A client that sends slowly holds no more of what all share than it has sent.
    async fn body<'a>(
        &'a self,
        request: Request<Incoming>,
        held: &mut Vec<SemaphorePermit<'a>>,
    ) -> Result<Vec<u8>, (StatusCode, String)> {
        let most = self.limits.body_bytes;
        let too_large = || (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes"));
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let mut body = request.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body has broken off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            held.push(self.hold(data.len())?);
            bytes.extend_from_slice(&data);
        }
        // Each of these begins a value, unless it stands in a text.
        let nodes = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        let decoded = nodes.saturating_mul(NODE_BYTES);
        if bytes.len() + decoded > self.limits.all_bodies {
            let most = self.limits.all_bodies;
            let message = format!("the review has {nodes} fields and items, and would take more than {most} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        held.push(self.hold(decoded)?);
        Ok(bytes)
    }

    /// Takes bytes from what all share.
    fn hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, (StatusCode, String)> {
        self.bodies.try_acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(|_| {
            self.metrics.request_refused("webhooks", "bytes");
            (StatusCode::TOO_MANY_REQUESTS, "too many large requests at once; send this one again".to_owned())
        })
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[expect(clippy::disallowed_methods, reason = "how long a client has taken, and an answer for a metric")]
pub(super) fn now() -> Instant {
    Instant::now()
}
