//! The fence: what a term writes with, and what stops it from writing too late (rule 7).
//!
//! Two gates, both shut by the clock alone. The upper one sits on requests: it refuses a mutating request at or past
//! `valid_until`, bounds each by the time left, and counts those whose answer never came. The lower one sits on the
//! connection, under TLS: not one byte leaves past `valid_until`, so a process that was paused between the two cannot
//! send what it had prepared. Nothing has to notice anything for either to shut.
//!
//! A [`Fence`] is the owner's handle: it alone opens, and the term's end is its end. A [`Gate`] is what clients have.
//!
//! # What may still land
//!
//! Bytes that left before `valid_until` are not recalled. What the kernel still buffers then is thrown away: each gated
//! connection ends at `valid_until`, with a reset, and if no thread of ours runs the kernel ends it, for it was told with
//! each write to wait no longer than that for an acknowledgement. So after `valid_until` a write can be carried out only if
//! the API server's machine has got all of it before, or the network delivers it late by itself: the time of one way through
//! the network, and for an API server that stands still as long as it does. There is one exception: a large write that
//! the network takes slowly, acknowledging bit by bit, while no thread of ours runs, ends [`UNACKNOWLEDGED`] after its last
//! acknowledgement. The kernel's timers stand still with a suspended machine; the gates do not.
//!
//! [`UNACKNOWLEDGED`]: super::connections::UNACKNOWLEDGED

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

use futures::{
    FutureExt,
    future::{BoxFuture, Fuse, FusedFuture},
};
use http::{Method, Request, Response, StatusCode};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::sync::{Notify, watch};
use tower::{BoxError, Layer, Service};
use tracing::Instrument;

use super::{
    clock::Clock,
    connections::socket::Socket,
    hearing::{Ears, Heard, Hearing, Refusals, Target},
    problem::describe,
    spans,
};
use crate::{ops::work::Meter, protocol::moment::Moment};

/// Why a write was refused on this side.
#[derive(Clone, Debug, thiserror::Error)]
#[error("fenced: this replica has no valid term on lease {lease}, nothing was sent")]
pub struct Fenced {
    /// Name of the Lease whose term is over, or has not begun.
    pub lease: String,
}

/// A write that a fence has refused, for its owner to count.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// Its term has not begun: what wrote only stands by, or observes.
    pub before_term: bool,
    /// Its method.
    pub method: &'a Method,
    /// Its path.
    pub path: &'a str,
}

/// A write that was sent, and not answered in the time that was left of the term. It may have been carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no answer before the term on lease {lease} ended: the write may have been carried out")]
pub struct Unanswered {
    /// Name of the Lease whose term is over.
    pub lease: String,
}

/// One term's fence, held by who decides on the term. Dropped, it is closed.
/// Before its term it lets reads pass, for a standby fills its cache through it; [`Fence::extend`] opens it for writes.
pub struct Fence {
    gate: Gate,
}

/// A handle on a fence. It shuts with the fence; clones are handles on the same one.
#[derive(Clone)]
pub struct Gate {
    state: Arc<State>,
    /// What its clients hear: a fence of a group has a gate for each kind.
    ears: Arc<Ears>,
    on_refusal: Arc<dyn Fn(&Refused<'_>) + Send + Sync>,
}

struct State {
    lease: String,
    clock: Clock,
    /// Nanoseconds since the clock's origin.
    valid_until: AtomicU64,
    closed: AtomicBool,
    /// Opened for the first time, or closed.
    changed: Notify,
    in_flight: AtomicUsize,
    idle: Notify,
    /// When a write last ended without an answer, in nanoseconds since the clock's origin; 0: never.
    unanswered: AtomicU64,
}

impl Fence {
    /// A fence for the next term on this Lease, shut for writes. `resource` is that of the kind's objects, as
    /// `<group>/<version>/<plural>`, or `<version>/<plural>` for the core group: [`Gate::hearing`] is about it.
    /// `on_refusal` is called for each write that the fence refuses.
    pub fn new(
        lease: String,
        resource: Option<String>,
        clock: Clock,
        on_refusal: impl Fn(&Refused<'_>) + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            lease,
            clock,
            valid_until: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            unanswered: AtomicU64::new(0),
        };
        let ears = Arc::new(Ears::new(clock, resource, Meter::default()));
        Self { gate: Gate { state: Arc::new(state), ears, on_refusal: Arc::new(on_refusal) } }
    }

    /// Another gate of this fence, for another kind of the same term, whose requests are counted there.
    pub fn beside(
        &self,
        resource: Option<String>,
        meter: Meter,
        on_refusal: impl Fn(&Refused<'_>) + Send + Sync + 'static,
    ) -> Gate {
        let state = Arc::clone(&self.gate.state);
        let ears = Arc::new(Ears::new(state.clock, resource, meter));
        Gate { state, ears, on_refusal: Arc::new(on_refusal) }
    }

    /// Moves the end of the term's validity on. Has no effect once the fence is closed.
    pub fn extend(&self, valid_until: Moment) {
        self.gate.state.valid_until.fetch_max(nanos(valid_until), Ordering::SeqCst);
        self.gate.state.changed.notify_waiters();
    }

    /// Shuts the fence for good. Answers to what was sent before are still awaited, until the end of validity.
    pub fn close(&self) {
        self.gate.close();
    }

    /// A handle on this fence.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.close();
    }
}

impl Gate {
    /// Shuts the fence for good, as [`Fence::close`] does.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.state.changed.notify_waiters();
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

    /// Whether the term, or the standby, hears of its kind's objects. Changes when that changes.
    pub fn hearing(&self) -> watch::Receiver<Hearing> {
        self.ears.hearing()
    }

    /// What the API server has refused: each time a reason to ask again what is permitted and served.
    pub fn refusals(&self) -> watch::Receiver<Refusals> {
        self.ears.refusals()
    }

    /// Resolves when the fence lets no write pass any more: it was closed, or validity has ended. Pending before its term.
    /// Cancel safe.
    pub async fn shut(&self) {
        loop {
            let changed = self.state.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_before_its_term() {
                changed.await;
            } else if self.time_left().is_none() {
                return;
            } else {
                // It may have been extended by then.
                tokio::select! {
                    () = changed => {}
                    () = self.state.clock.sleep_until(self.valid_until()) => {}
                }
            }
        }
    }

    /// Resolves when nothing that is still sent or read can be of use to the term: at the end of validity, and for a
    /// fence that was closed before its term at once.
    async fn over(self) {
        loop {
            let changed = self.state.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (until, now) = (self.valid_until(), self.state.clock.now());
            if self.is_before_its_term() {
                changed.await;
            } else if now >= until {
                return;
            } else {
                // It may have been extended by then.
                self.state.clock.sleep_until(until).await;
            }
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = FencedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FencedService { gate: self.clone(), inner }
    }
}

/// The upper gate.
#[derive(Clone)]
pub struct FencedService<S> {
    gate: Gate,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for FencedService<S>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send + 'static>,
    R: Send + 'static,
{
    type Response = Response<Heard<R>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let target = Target::of(request.method(), request.uri());
        let span = spans::request(target.as_ref());
        let answer = span.in_scope(|| self.send(request, target));
        if span.is_disabled() {
            return answer;
        }
        let told = span.clone();
        let answered = async move {
            let answer = answer.await;
            spans::answered(&told, &answer);
            answer
        };
        Box::pin(answered.instrument(span))
    }
}

impl<S> FencedService<S> {
    fn send<B, R>(
        &mut self,
        request: Request<B>,
        target: Option<Target>,
    ) -> BoxFuture<'static, Result<Response<Heard<R>>, BoxError>>
    where
        S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send + 'static>,
        R: Send + 'static,
    {
        let gate = self.gate.clone();
        if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            let answer = self.inner.call(request);
            return Box::pin(async move {
                match answer.await {
                    Ok(response) => Ok(gate.heard(target, response)),
                    Err(error) => {
                        let error = error.into();
                        gate.ears.failed(target.as_ref(), &describe(error.as_ref()));
                        Err(error)
                    }
                }
            });
        }
        let write = InFlight::begin(Arc::clone(&gate.state));
        // Counted first, looked at second: a fence that closes in between finds the write, or the write finds it closed.
        let Some(left) = gate.time_left() else {
            write.answered();
            let (before_term, path) = (gate.is_before_its_term(), request.uri().path());
            (gate.on_refusal)(&Refused { before_term, method: request.method(), path });
            gate.wrote(target.as_ref(), "fenced");
            return Box::pin(async move { Err(gate.fenced().into()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let unanswered = || Unanswered { lease: gate.state.lease.clone() }.into();
            match tokio::time::timeout(left, answer).await {
                Ok(Ok(response)) => {
                    write.answered();
                    gate.wrote(target.as_ref(), result(response.status()));
                    Ok(gate.heard(target, response))
                }
                Ok(Err(error)) => {
                    let error = error.into();
                    if was_never_sent(&error) {
                        write.answered();
                        gate.wrote(target.as_ref(), "unsent");
                        return Err(error);
                    }
                    gate.wrote(target.as_ref(), "unanswered");
                    // The connection has ended with the term, a moment before the write did.
                    let ended = gate.state.clock.now() >= gate.valid_until();
                    Err(if ended { unanswered() } else { error })
                }
                Err(_elapsed) => {
                    gate.wrote(target.as_ref(), "unanswered");
                    Err(unanswered())
                }
            }
        })
    }
}

/// What became of a write, for the metrics.
fn result(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..300 => "ok",
        400 | 422 => "invalid",
        401 | 403 => "denied",
        404 => "not_found",
        409 => "conflict",
        429 => "throttled",
        500.. => "failed",
        _ => "refused",
    }
}

impl Gate {
    fn heard<R>(&self, target: Option<Target>, response: Response<R>) -> Response<Heard<R>> {
        let listening = self.ears.answered(target, response.status());
        response.map(|body| Heard::new(body, listening))
    }

    fn wrote(&self, target: Option<&Target>, result: &'static str) {
        if let Some(target) = target {
            self.ears.meter.wrote(target.verb(), result);
        }
    }

    fn fenced(&self) -> Fenced {
        Fenced { lease: self.state.lease.clone() }
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

/// The lower gate: a connection that falls silent when the term is over, and ends.
/// Without a gate, for what needs no term, it lets everything pass.
pub(super) struct GatedIo<I> {
    inner: I,
    gate: Option<Lower>,
}

struct Lower {
    gate: Gate,
    over: Fuse<BoxFuture<'static, ()>>,
    /// What the kernel was last told.
    gives_up_after: Duration,
}

impl<I: Socket> GatedIo<I> {
    #[cfg(test)]
    pub(super) fn socket(&self) -> &I {
        &self.inner
    }

    pub(super) fn new(inner: I, gate: Option<Gate>) -> Self {
        let gives_up_after = inner.gives_up_after();
        let gate = gate.map(|gate| Lower { over: gate.clone().over().boxed().fuse(), gate, gives_up_after });
        Self { inner, gate }
    }

    /// Reads the clock with nothing between it and the system call that writes but a function call; and a system call,
    /// if the kernel has to be told that the term ends before it would give up by itself.
    fn gate(&mut self) -> io::Result<()> {
        let Some(Lower { gate, gives_up_after, .. }) = &mut self.gate else { return Ok(()) };
        let usual = self.inner.gives_up_after();
        match gate.time_left() {
            Some(left) if left.min(usual) == *gives_up_after => Ok(()),
            Some(left) => {
                let told = left.min(usual);
                self.inner.give_up_after(told)?;
                *gives_up_after = told;
                match gate.time_left() {
                    Some(_) => Ok(()),
                    None => Err(shut(gate)),
                }
            }
            // No write has passed the upper gate yet: these are the reads of a standby.
            None if gate.is_before_its_term() => Ok(()),
            None => Err(shut(gate)),
        }
    }

    /// What waits on this connection waits no longer than the term.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.gate {
            Some(lower) if lower.over.is_terminated() => Poll::Ready(shut(&lower.gate)),
            Some(lower) => lower.over.poll_unpin(cx).map(|()| shut(&lower.gate)),
            None => Poll::Pending,
        }
    }
}

fn shut(gate: &Gate) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, gate.fenced())
}

impl<I: Connection> Connection for GatedIo<I> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

impl<I: Read + Socket + Unpin> Read for GatedIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Pending => this.poll_over(cx).map(Err),
            read => read,
        }
    }
}

impl<I: Write + Socket + Unpin> Write for GatedIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.gate()?;
        match Pin::new(&mut this.inner).poll_write(cx, bytes) {
            Poll::Pending => this.poll_over(cx).map(Err),
            written => written,
        }
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
        let this = self.get_mut();
        this.gate()?;
        match Pin::new(&mut this.inner).poll_write_vectored(cx, buffers) {
            Poll::Pending => this.poll_over(cx).map(Err),
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use hyper::rt::ReadBuf;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;
    use tower::{ServiceExt, service_fn};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What its kernel would be told.
    impl Socket for TokioIo<DuplexStream> {
        fn give_up_after(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn gives_up_after(&self) -> Duration {
            8 * SECOND
        }
    }

    fn gated(fence: &Fence) -> (GatedIo<TokioIo<DuplexStream>>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        (GatedIo::new(TokioIo::new(ours), Some(fence.gate())), theirs)
    }

    async fn read(io: &mut GatedIo<TokioIo<DuplexStream>>) -> io::Result<()> {
        let mut bytes = [0; 8];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = std::future::poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, buffer.unfilled()));
        tokio::time::timeout(60 * SECOND, read).await.expect("it ends")
    }

    fn fence(clock: Clock) -> (Fence, Arc<AtomicU32>) {
        let refused = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&refused);
        let fence = Fence::new("widget.example.com".to_owned(), None, clock, move |_| {
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
        fence.gate().layer(service).oneshot(request).await.map(|_| ())
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
        assert!(!fence.gate.may_still_land(SECOND), "nothing was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_a_reconciliation_is_a_span_in_it_and_others_are_none() {
        use tracing::Instrument as _;
        let (recorder, _guard) = spans::recorded::Recorder::begin();
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        let path = "/apis/example.com/v1/namespaces/ns/widgets/it?fieldManager=m";
        let write = || send(&fence, Method::PATCH, path, Duration::ZERO);
        let kind = crate::config::Kind::new("example.com", "v1", "Widget");
        let token = crate::protocol::lease::FencingToken { uid: "u".to_owned(), transitions: 1 };
        let reconciling = || spans::reconcile(&kind, Some("ns"), "it", &token);
        write().instrument(reconciling()).await.unwrap_err();
        fence.extend(clock.now() + SECOND);
        write().instrument(reconciling()).await.unwrap();
        write().await.unwrap();
        let requests = recorder.named("request");
        assert_eq!(requests.len(), 2, "that of a watch has no span: {requests:#?}");
        for request in &requests {
            assert_eq!((request.parent, request.field("otel.name")), (Some("reconcile"), Some("patch widgets")));
            assert_eq!(request.field("url.path"), Some("/apis/example.com/v1/namespaces/ns/widgets/it"));
        }
        let outcome =
            |at: usize| (requests[at].field("otel.status_code"), requests[at].field("http.response.status_code"));
        assert_eq!((outcome(0), outcome(1)), ((Some("ERROR"), None), (None, Some("200"))));
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
        let (mut io, _theirs) = gated(&fence);
        let mut byte = async || std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"x")).await;
        assert!(fence.gate.is_before_its_term());
        byte().await.expect("a request to read is bytes too");
        assert!(send(&fence, Method::PATCH, "/x", Duration::ZERO).await.unwrap_err().is::<Fenced>());
        fence.extend(clock.now() + SECOND);
        assert!(!fence.gate.is_before_its_term());
        byte().await.unwrap();
        tokio::time::advance(SECOND).await;
        assert!(byte().await.is_err(), "what is past its term does not become a standby again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_says_what_was_refused_and_whether_it_was_before_the_term() {
        let (clock, told) = (Clock::tokio(), Arc::new(std::sync::Mutex::new(Vec::new())));
        let log = Arc::clone(&told);
        let fence = Fence::new("widget.example.com".to_owned(), None, clock, move |refused| {
            log.lock().unwrap().push(format!("{} {} {}", refused.before_term, refused.method, refused.path));
        });
        let write = || send(&fence, Method::PUT, "/x?a=b", Duration::ZERO);
        write().await.unwrap_err();
        fence.extend(clock.now() + SECOND);
        write().await.unwrap();
        fence.close();
        write().await.unwrap_err();
        assert_eq!(*told.lock().unwrap(), ["true PUT /x", "false PUT /x"]);
    }

    #[tokio::test(start_paused = true)]
    async fn shut_resolves_at_the_end_of_validity_as_it_is_extended_or_when_it_is_closed() {
        let clock = Clock::tokio();
        for (close_after, expected) in [(9 * SECOND, 5 * SECOND), (3 * SECOND, 3 * SECOND)] {
            let (fence, _) = fence(clock);
            let (gate, start) = (fence.gate(), clock.now());
            let ends = async {
                gate.shut().await;
                clock.now().since(start)
            };
            let (ended, ()) = tokio::join!(ends, async {
                fence.extend(start + 2 * SECOND);
                tokio::time::sleep(SECOND).await;
                fence.extend(start + 5 * SECOND);
                tokio::time::sleep(close_after - SECOND).await;
                fence.close();
            });
            assert_eq!(ended, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_whose_fence_is_closed_sends_nothing() {
        let (fence, _) = fence(Clock::tokio());
        let (mut io, _theirs) = gated(&fence);
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
        assert!(fence.gate.may_still_land(15 * SECOND));
        tokio::time::advance(15 * SECOND).await;
        assert!(!fence.gate.may_still_land(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_dropped_in_flight_leaves_a_mark_and_an_answered_one_does_not() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + 60 * SECOND);
        send(&fence, Method::PUT, "/x", SECOND).await.unwrap();
        assert!(!fence.gate.may_still_land(15 * SECOND));
        let aborted = tokio::time::timeout(SECOND, send(&fence, Method::PUT, "/x", 30 * SECOND));
        assert!(aborted.await.is_err());
        assert!(fence.gate.may_still_land(15 * SECOND));
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
                fence.gate.quiesce(5 * SECOND).await;
                clock.now().since(began)
            })
        };
        let (sent, waited) = both.await;
        sent.unwrap();
        assert_eq!(waited, SECOND);
        assert!(!fence.gate.may_still_land(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_its_owner_shuts_the_fence() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + 60 * SECOND);
        let (gate, (mut io, _theirs)) = (fence.gate(), gated(&fence));
        let service = gate.layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>(Response::new(())) }));
        let write = || service.clone().oneshot(Request::put("/x").body(()).unwrap());
        write().await.unwrap();
        drop(fence);
        assert!(write().await.err().unwrap().is::<Fenced>());
        assert!(std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, b"x")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waits_for_an_answer_ends_with_the_term_and_not_before() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        let (mut io, _theirs) = gated(&fence);
        let began = clock.now();
        let (ended, ()) = tokio::join!(read(&mut io), async {
            tokio::time::sleep(5 * SECOND).await;
            fence.extend(began + 10 * SECOND);
            tokio::time::sleep(4 * SECOND).await;
            fence.extend(began + 14 * SECOND);
            fence.close();
        });
        assert!(ended.unwrap_err().get_ref().is_some_and(|error| error.is::<Fenced>()));
        assert_eq!(clock.now().since(began), 14 * SECOND, "an answer is awaited until the end of validity");
        assert!(read(&mut io).await.is_err(), "and again at once");
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_a_standby_that_is_dismissed_end_at_once() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        let (mut io, _theirs) = gated(&fence);
        let began = clock.now();
        let (ended, ()) = tokio::join!(read(&mut io), async {
            tokio::time::sleep(SECOND).await;
            drop(fence);
        });
        assert!(ended.is_err());
        assert_eq!(clock.now().since(began), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_waits_for_the_network_ends_with_the_term() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        let (mut io, _theirs) = gated(&fence);
        let began = clock.now();
        fence.extend(began + 3 * SECOND);
        let mut write = async || std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, &[0; 64])).await;
        assert_eq!(write().await.unwrap(), 64, "and now nothing more fits");
        assert!(tokio::time::timeout(60 * SECOND, write()).await.expect("it ends").is_err());
        assert_eq!(clock.now().since(began), 3 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn not_one_byte_leaves_a_connection_past_the_end_of_validity() {
        let clock = Clock::tokio();
        let (fence, _) = fence(clock);
        fence.extend(clock.now() + SECOND);
        let (mut io, _theirs) = gated(&fence);
        let mut write =
            async |bytes: &'static [u8]| std::future::poll_fn(|cx| Pin::new(&mut io).poll_write(cx, bytes)).await;
        assert_eq!(write(b"PATCH").await.unwrap(), 5);
        tokio::time::advance(SECOND).await;
        let refused = write(b"PATCH").await.unwrap_err();
        assert!(refused.get_ref().is_some_and(|error| error.is::<Fenced>()));
    }
}
