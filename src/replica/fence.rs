//! The fence: what a term writes with, and what stops it from writing too late (rule 7).
//!
//! Two gates, both shut by the clock alone. The upper one sits on requests: it refuses a mutating request at or past
//! `valid_until`, bounds each by the time left, and counts those whose answer never came. The lower one sits on the
//! connection, under TLS: not one byte leaves past `valid_until`, so a process that was paused between the two cannot
//! send what it had prepared. Nothing has to notice anything for either to shut.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::sync::Notify;
use tower::{BoxError, Layer, Service, ServiceBuilder};

use super::clock::Clock;
use crate::protocol::moment::Moment;

/// A read that is not a watch answers within this, or fails: a dead connection must not hold a reconcile for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The most that a connection buffers. hyper's own most is six times as much, which each one keeps that has read a list.
const BUFFER: usize = 64 << 10;

/// Why a write was refused on this side.
#[derive(Clone, Debug, thiserror::Error)]
#[error("fenced: the term on lease {lease} is not valid, nothing was sent")]
pub struct Fenced {
    /// Name of the Lease whose term is over.
    pub lease: String,
}

/// A write that was sent, and not answered in the time that was left of the term. It may have been carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no answer before the term on lease {lease} ended: the write may have been carried out")]
pub struct Unanswered {
    /// Name of the Lease whose term is over.
    pub lease: String,
}

/// One term's fence. Clones are handles on the same fence.
/// Before its term it lets reads pass, for a standby fills its cache through it; [`Fence::extend`] opens it for writes.
#[derive(Clone)]
pub struct Fence {
    state: Arc<State>,
}

struct State {
    lease: String,
    clock: Clock,
    /// Nanoseconds since the clock's origin.
    valid_until: AtomicU64,
    closed: AtomicBool,
    in_flight: AtomicUsize,
    idle: Notify,
    /// When a write last ended without an answer, in nanoseconds since the clock's origin; 0: never.
    unanswered: AtomicU64,
    on_refusal: Box<dyn Fn() + Send + Sync>,
}

impl Fence {
    /// A fence for the next term on this Lease, shut for writes. `on_refusal` is called for each write it refuses.
    pub fn new(lease: String, clock: Clock, on_refusal: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            state: Arc::new(State {
                lease,
                clock,
                valid_until: AtomicU64::new(0),
                closed: AtomicBool::new(false),
                in_flight: AtomicUsize::new(0),
                idle: Notify::new(),
                unanswered: AtomicU64::new(0),
                on_refusal: Box::new(on_refusal),
            }),
        }
    }

    /// Moves the end of the term's validity on. Has no effect once the fence is closed.
    pub fn extend(&self, valid_until: Moment) {
        self.state.valid_until.fetch_max(nanos(valid_until), Ordering::SeqCst);
    }

    /// Shuts the fence for good.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
    }

    /// It was neither opened nor closed yet.
    pub fn is_before_its_term(&self) -> bool {
        self.state.valid_until.load(Ordering::SeqCst) == 0 && !self.state.closed.load(Ordering::SeqCst)
    }

    /// Both are handles on one fence.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// When validity ends unless it is extended.
    pub fn valid_until(&self) -> Moment {
        Moment::after_origin(Duration::from_nanos(self.state.valid_until.load(Ordering::SeqCst)))
    }

    /// Time left to write; `None` at or past the end of the term's validity.
    pub fn time_left(&self) -> Option<Duration> {
        if self.state.closed.load(Ordering::SeqCst) {
            return None;
        }
        let left = self.valid_until().since(self.state.clock.now());
        (!left.is_zero()).then_some(left)
    }

    /// Waits until no write is in flight, `patience` at most. Cancel safe.
    pub async fn quiesce(&self, patience: Duration) {
        let idle = async {
            loop {
                let notified = self.state.idle.notified();
                if self.state.in_flight.load(Ordering::SeqCst) == 0 {
                    return;
                }
                notified.await;
            }
        };
        // Running out of patience is no error: what is still in flight counts as unanswered.
        let _timed_out = tokio::time::timeout(patience, idle).await;
    }

    /// A write may still be carried out that was sent at most `within` ago and never answered.
    pub fn may_still_land(&self, within: Duration) -> bool {
        let unanswered = self.state.unanswered.load(Ordering::SeqCst);
        let recent = || self.state.clock.now().since(Moment::after_origin(Duration::from_nanos(unanswered))) < within;
        self.state.in_flight.load(Ordering::SeqCst) > 0 || (unanswered > 0 && recent())
    }

    /// The client of the term, on connections of its own.
    ///
    /// # Errors
    /// If the configuration's TLS or credentials cannot be used, or it asks for a proxy: the lower gate has no place there.
    pub fn client(&self, config: &Config) -> Result<Client, kube::Error> {
        if config.proxy_url.is_some() {
            let error = "an HTTP proxy towards the API server is not supported: remove proxy-url from the kubeconfig";
            return Err(kube::Error::Service(error.into()));
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(config.connect_timeout);
        let gated = Gated { inner: http, fence: self.clone() };
        let https = config.rustls_https_connector_with_connector(gated)?;
        let sender = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .http1_max_buf_size(BUFFER)
            .build::<_, Body>(https);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(self.clone())
            .map_err(BoxError::from)
            .service(sender);
        Ok(Client::new(service, config.default_namespace.clone()))
    }
}

impl<S> Layer<S> for Fence {
    type Service = FencedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FencedService { fence: self.clone(), inner }
    }
}

/// The upper gate.
#[derive(Clone)]
pub struct FencedService<S> {
    fence: Fence,
    inner: S,
}

impl<S, B> Service<Request<B>> for FencedService<S>
where
    S: Service<Request<B>, Response: Send + 'static, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = Arc::clone(&self.fence.state);
        if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            let watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
            let answer = self.inner.call(request);
            return Box::pin(async move {
                match watch {
                    true => answer.await.map_err(Into::into),
                    false => tokio::time::timeout(READ_TIMEOUT, answer).await?.map_err(Into::into),
                }
            });
        }
        let write = InFlight::begin(Arc::clone(&state));
        // Counted first, looked at second: a fence that closes in between finds the write, or the write finds it closed.
        let Some(left) = self.fence.time_left() else {
            write.answered();
            (state.on_refusal)();
            return Box::pin(async move { Err(Fenced { lease: state.lease.clone() }.into()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout(left, answer).await {
                Ok(Ok(response)) => {
                    write.answered();
                    Ok(response)
                }
                Ok(Err(error)) => {
                    let error = error.into();
                    if was_never_sent(&error) {
                        write.answered();
                    }
                    Err(error)
                }
                Err(_elapsed) => Err(Unanswered { lease: state.lease.clone() }.into()),
            }
        })
    }
}

fn was_never_sent(error: &BoxError) -> bool {
    error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(hyper_util::client::legacy::Error::is_connect)
}

/// One write between its sending and its answer. Dropped without an answer, as an abort does, it leaves a mark.
struct InFlight {
    state: Arc<State>,
    answered: bool,
}

impl InFlight {
    fn begin(state: Arc<State>) -> Self {
        state.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { state, answered: false }
    }

    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.answered {
            self.state.unanswered.fetch_max(nanos(self.state.clock.now()), Ordering::SeqCst);
        }
        self.state.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.state.idle.notify_waiters();
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// The lower gate: makes connections that fall silent when the term is over.
#[derive(Clone)]
struct Gated<C> {
    inner: C,
    fence: Fence,
}

impl<C> Service<Uri> for Gated<C>
where
    C: Service<Uri, Future: Send + 'static>,
{
    type Response = GatedIo<C::Response>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Response, C::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let fence = self.fence.clone();
        let connecting = self.inner.call(uri);
        Box::pin(async move { Ok(GatedIo { inner: connecting.await?, fence }) })
    }
}

struct GatedIo<I> {
    inner: I,
    fence: Fence,
}

impl<I> GatedIo<I> {
    /// Reads the clock with nothing between it and the system call but a function call.
    fn gate(&self) -> io::Result<()> {
        match self.fence.time_left() {
            Some(_) => Ok(()),
            // No write has passed the upper gate yet: these are the reads of a standby.
            None if self.fence.is_before_its_term() => Ok(()),
            None => {
                let fenced = Fenced { lease: self.fence.state.lease.clone() };
                Err(io::Error::new(io::ErrorKind::PermissionDenied, fenced))
            }
        }
    }
}

impl<I: Connection> Connection for GatedIo<I> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

impl<I: Read + Unpin> Read for GatedIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

impl<I: Write + Unpin> Write for GatedIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.gate()?;
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.gate()?;
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, buffers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use http::Response;
    use hyper_util::rt::TokioIo;
    use tower::{ServiceExt, service_fn};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fence(clock: Clock) -> (Fence, Arc<AtomicU32>) {
        let refused = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&refused);
        let fence = Fence::new("widget.example.com".to_owned(), clock, move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        (fence, refused)
    }

    /// What the fence makes of one request, when the server takes this long to answer.
    async fn send(fence: &Fence, method: Method, uri: &str, server: Duration) -> Result<(), BoxError> {
        let service = service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(server).await;
            Ok::<_, BoxError>(Response::new(()))
        });
        let request = Request::builder().method(method).uri(uri).body(())?;
        fence.layer(service).oneshot(request).await.map(|_| ())
    }

    #[tokio::test(start_paused = true)]
    async fn it_starts_shut_opens_until_the_end_of_validity_and_stays_shut_once_closed() {
        let clock = Clock::tokio();
        let (fence, refused) = fence(clock);
        let write = || send(&fence, Method::PATCH, "/x", Duration::ZERO);
        assert!(write().await.unwrap_err().is::<Fenced>());
        fence.extend(clock.now() + 2 * SECOND);
        write().await.unwrap();
        tokio::time::advance(2 * SECOND).await;
        assert!(write().await.unwrap_err().is::<Fenced>(), "at valid_until, not after it");
        fence.extend(clock.now() + 2 * SECOND);
        write().await.unwrap();
        fence.close();
        fence.extend(clock.now() + 9 * SECOND);
        assert!(write().await.unwrap_err().is::<Fenced>(), "nothing opens it again");
        assert_eq!(refused.load(Ordering::SeqCst), 3);
        assert!(!fence.may_still_land(SECOND), "nothing was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn every_mutating_verb_is_refused_and_reads_are_not() {
        let (fence, _) = fence(Clock::tokio());
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert!(send(&fence, method, "/x", Duration::ZERO).await.unwrap_err().is::<Fenced>());
        }
        send(&fence, Method::GET, "/x", Duration::ZERO).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_reads_through_it_and_writes_nothing_and_the_first_renewal_makes_it_a_terms() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut io = GatedIo { inner: TokioIo::new(ours), fence: fence.clone() };
        let mut byte = async || std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"x")).await;
        assert!(fence.is_before_its_term());
        byte().await.expect("a request to read is bytes too");
        assert!(send(&fence, Method::PATCH, "/x", Duration::ZERO).await.unwrap_err().is::<Fenced>());
        fence.extend(clock.now() + SECOND);
        assert!(!fence.is_before_its_term());
        byte().await.unwrap();
        tokio::time::advance(SECOND).await;
        assert!(byte().await.is_err(), "what is past its term does not become a standby again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_whose_fence_is_closed_sends_nothing() {
        let (fence, _) = fence(Clock::tokio());
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut io = GatedIo { inner: TokioIo::new(ours), fence: fence.clone() };
        fence.close();
        assert!(std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"x")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_gets_the_time_that_is_left_and_leaves_a_mark_when_it_is_not_answered() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + 2 * SECOND);
        let began = clock.now();
        assert!(send(&fence, Method::PUT, "/x", 60 * SECOND).await.unwrap_err().is::<Unanswered>());
        assert_eq!(clock.now().since(began), 2 * SECOND);
        assert!(fence.may_still_land(15 * SECOND));
        tokio::time::advance(15 * SECOND).await;
        assert!(!fence.may_still_land(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_dropped_in_flight_leaves_a_mark_and_an_answered_one_does_not() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + 60 * SECOND);
        send(&fence, Method::PUT, "/x", SECOND).await.unwrap();
        assert!(!fence.may_still_land(15 * SECOND));
        let aborted = tokio::time::timeout(SECOND, send(&fence, Method::PUT, "/x", 30 * SECOND));
        assert!(aborted.await.is_err());
        assert!(fence.may_still_land(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn quiescing_waits_for_the_answer_of_what_was_sent_before_the_fence_closed() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + 60 * SECOND);
        let began = clock.now();
        let both = async {
            tokio::join!(send(&fence, Method::PUT, "/x", SECOND), async {
                tokio::time::sleep(SECOND / 2).await;
                fence.close();
                fence.quiesce(5 * SECOND).await;
                clock.now().since(began)
            })
        };
        let (sent, waited) = both.await;
        sent.unwrap();
        assert_eq!(waited, SECOND);
        assert!(!fence.may_still_land(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_are_no_watch_end_and_watches_go_on() {
        let (fence, _) = fence(Clock::tokio());
        send(&fence, Method::GET, "/x?watch=true&timeoutSeconds=290", 280 * SECOND).await.unwrap();
        assert!(send(&fence, Method::GET, "/x", 280 * SECOND).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn not_one_byte_leaves_a_connection_past_the_end_of_validity() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + SECOND);
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut io = GatedIo { inner: TokioIo::new(ours), fence: fence.clone() };
        let mut write =
            async |bytes: &'static [u8]| std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, bytes)).await;
        assert_eq!(write(b"PATCH").await.unwrap(), 5);
        tokio::time::advance(SECOND).await;
        let refused = write(b"PATCH").await.unwrap_err();
        assert!(refused.get_ref().is_some_and(|error| error.is::<Fenced>()));
    }
}
