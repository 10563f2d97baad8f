//! What a term's client hears: whether the objects of its kind can be seen, and which requests the API server refuses.
//!
//! It is told by the answers themselves, so it works for any reconciler, whatever it watches with.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, StatusCode, Uri};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;

use super::{
    clock::Clock,
    connections::{WATCH_TIMEOUT, is_watch},
    problem::describe,
};
use crate::{ops::work::Meter, protocol::moment::Moment};

/// A watch that is given up by the client this long after its last event was silent: the server should have ended it.
const OVERDUE: Duration = Duration::from_secs(WATCH_TIMEOUT as u64 + 1);

/// Whether a term hears of its kind's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// When a watch or a list of them failed or ended, if none has been answered since. A quiet watch is `None`: an
    /// answer that turned out to be followed by nothing but a failure does not count, and `deaf_since` is what it was before.
    pub deaf_since: Option<Moment>,
    /// Why; also for the short time in which one watch has ended and the next has not begun.
    pub problem: Option<String>,
}

/// The requests that the API server has refused a term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// How many there were.
    pub count: u64,
    /// The last of them.
    pub last: Option<Refusal>,
}

/// An answer that says what the permissions or the served types do not allow: 401 or 403 to a list, watch or write,
/// or 404 to a list or watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The verb, as in a Role.
    pub verb: &'static str,
    /// The path of the request.
    pub path: String,
    /// The status code.
    pub code: u16,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server answered {} to {} {}", self.code, self.verb, self.path)
    }
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    verb: &'static str,
    /// `<group>/<version>/<plural>`, without the group for the core one.
    resource: String,
    path: String,
}

impl Target {
    /// `None`: it is about no resource, as discovery.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let parts: Vec<_> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (["namespaces", _, plural, name @ ..] | [plural, name @ ..]) = rest else { return None };
        let all = name.is_empty();
        let verb = match method.as_str() {
            "GET" | "HEAD" if !all => "get",
            "GET" | "HEAD" if is_watch(method, uri) => "watch",
            "GET" | "HEAD" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if all => "deletecollection",
            "DELETE" => "delete",
            _ => return None,
        };
        Some(Self { verb, resource: format!("{version}/{plural}"), path: uri.path().to_owned() })
    }

    /// Of the request, without its query.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What is done with it, as in a Role.
    pub(super) fn verb(&self) -> &'static str {
        self.verb
    }

    fn lists(&self) -> bool {
        matches!(self.verb, "list" | "watch")
    }

    fn is_refused_by(&self, status: StatusCode) -> bool {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.verb != "get",
            StatusCode::NOT_FOUND => self.lists(),
            _ => false,
        }
    }
}

/// The verb and the resource: `patch configmaps`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource.rsplit('/').next().unwrap_or_default())
    }
}

/// Keeps what a term hears.
pub(super) struct Ears {
    clock: Clock,
    resource: Option<String>,
    hearing: watch::Sender<Hearing>,
    refusals: watch::Sender<Refusals>,
    pub(super) meter: Meter,
}

impl Ears {
    pub(super) fn new(clock: Clock, resource: Option<String>, meter: Meter) -> Self {
        Self { clock, resource, hearing: watch::Sender::default(), refusals: watch::Sender::default(), meter }
    }

    pub(super) fn hearing(&self) -> watch::Receiver<Hearing> {
        self.hearing.subscribe()
    }

    pub(super) fn refusals(&self) -> watch::Receiver<Refusals> {
        self.refusals.subscribe()
    }

    /// The head of an answer has come. Listens to its body, if that is of importance.
    pub(super) fn answered(self: &Arc<Self>, target: Option<Target>, status: StatusCode) -> Option<Listening> {
        let target = target?;
        if target.is_refused_by(status) {
            let refusal = Refusal { verb: target.verb, path: target.path.clone(), code: status.as_u16() };
            self.refusals.send_modify(|refusals| {
                refusals.count += 1;
                refusals.last = Some(refusal);
            });
        }
        if !self.concerns(&target) {
            return None;
        }
        if !status.is_success() {
            self.deaf(None, format!("{status} to {} {}", target.verb, target.path));
            return None;
        }
        let watch = target.verb == "watch";
        let deaf_before = self.hearing.borrow().deaf_since;
        if watch {
            self.heard();
        }
        Some(Listening { ears: Arc::clone(self), target, watch, deaf_before, heard_at: self.clock.now(), over: false })
    }

    /// No answer has come.
    pub(super) fn failed(&self, target: Option<&Target>, error: &str) {
        if let Some(target) = target.filter(|target| self.concerns(target)) {
            self.deaf(None, format!("failed to {} {}: {error}", target.verb, target.path));
        }
    }

    fn concerns(&self, target: &Target) -> bool {
        target.lists() && self.resource.as_ref() == Some(&target.resource)
    }

    fn heard(&self) {
        self.meter.heard();
        self.hearing.send_if_modified(|hearing| std::mem::take(hearing) != Hearing::default());
    }

    fn deaf(&self, since: Option<Moment>, problem: String) {
        let now = self.clock.now();
        self.hearing.send_if_modified(|hearing| {
            let deaf_since = hearing.deaf_since.or(since).or(Some(now));
            let deaf = Hearing { deaf_since, problem: Some(problem) };
            std::mem::replace(hearing, deaf.clone()) != deaf
        });
    }
}

/// Listens to the body of a list or watch.
pub(super) struct Listening {
    ears: Arc<Ears>,
    target: Target,
    watch: bool,
    /// The deafness that a watch ends, unless nothing but a failure follows.
    deaf_before: Option<Moment>,
    heard_at: Moment,
    over: bool,
}

impl Listening {
    fn frame(&mut self) {
        self.deaf_before = None;
        self.heard_at = self.ears.clock.now();
        self.ears.meter.heard();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        match self.watch {
            true => self.ears.deaf(None, format!("the watch of {} has ended", self.target.path)),
            // A list is heard when it is complete.
            false => self.ears.heard(),
        }
    }

    fn fail(&mut self, error: &str) {
        if !std::mem::replace(&mut self.over, true) {
            let problem = format!("the {} of {} broke off: {error}", self.target.verb, self.target.path);
            self.ears.deaf(self.deaf_before, problem);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.watch && self.ears.clock.now().since(self.heard_at) >= OVERDUE {
            self.fail("the server did not end it in time");
        }
    }
}

/// The body of an answer, listened to where that is of importance.
pub struct Heard<B> {
    body: B,
    listening: Option<Listening>,
}

impl<B> Heard<B> {
    pub(super) fn new(body: B, listening: Option<Listening>) -> Self {
        Self { body, listening }
    }
}

impl<B: Body<Error: std::error::Error + 'static> + Unpin> Body for Heard<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let (Some(listening), Poll::Ready(frame)) = (&mut this.listening, &frame) {
            match frame {
                Some(Ok(_)) => listening.frame(),
                Some(Err(error)) => listening.fail(&describe(error)),
                None => listening.end(),
            }
        }
        frame
    }

    /// Not before its end was seen by us too.
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.listening.as_ref().is_none_or(|listening| listening.over)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use hyper::body::Bytes;
    use kube::client::Body as Sent;
    use tokio::sync::mpsc;
    use tower::{BoxError, Layer, ServiceExt, service_fn};

    use super::*;
    use crate::replica::fence::{Fence, Gate};

    const SECOND: Duration = Duration::from_secs(1);
    const LIST: &str = "/apis/example.com/v1/widgets?limit=500";
    const WATCH: &str = "/apis/example.com/v1/namespaces/a/widgets?watch=true&timeoutSeconds=14";

    /// A body that comes in pieces, when the test sends them.
    #[derive(Debug)]
    struct Pieces(mpsc::UnboundedReceiver<Result<&'static str, std::io::Error>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(|text| Frame::data(Bytes::from(text)))))
        }
    }

    type Server = mpsc::UnboundedSender<Result<&'static str, std::io::Error>>;

    fn fence() -> Fence {
        let resource = Some("example.com/v1/widgets".to_owned());
        Fence::new("widget.example.com".to_owned(), resource, Clock::tokio(), |_| ())
    }

    /// Sends a request that is answered with this status, and gives the body's two ends.
    async fn ask(gate: &Gate, method: Method, uri: &str, status: u16) -> (Server, Heard<Pieces>) {
        let (server, pieces) = mpsc::unbounded_channel();
        let mut pieces = Some(Pieces(pieces));
        let service = service_fn(move |_: Request<Sent>| {
            let body = pieces.take().unwrap();
            async move { Ok::<_, BoxError>(Response::builder().status(status).body(body).unwrap()) }
        });
        let request = Request::builder().method(method).uri(uri).body(Sent::empty()).unwrap();
        (server, gate.layer(service).oneshot(request).await.unwrap().into_body())
    }

    async fn get(gate: &Gate, uri: &str, status: u16) -> (Server, Heard<Pieces>) {
        ask(gate, Method::GET, uri, status).await
    }

    async fn fail(gate: &Gate, uri: &str) {
        let service = service_fn(|_: Request<Sent>| async { Err::<Response<Pieces>, BoxError>("no route".into()) });
        let request = Request::get(uri).body(Sent::empty()).unwrap();
        assert!(gate.layer(service).oneshot(request).await.is_err());
    }

    /// The next piece; `None` at the end.
    async fn next(body: &mut Heard<Pieces>) -> Option<Result<Frame<Bytes>, std::io::Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn deaf_since(gate: &Gate) -> Option<Moment> {
        gate.hearing().borrow().deaf_since
    }

    /// A list, complete, and a watch that goes on.
    async fn hear(gate: &Gate) -> (Server, Heard<Pieces>) {
        let (server, mut list) = get(gate, LIST, 200).await;
        server.send(Ok("{}")).unwrap();
        drop(server);
        while next(&mut list).await.is_some() {}
        get(gate, WATCH, 200).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_leaves_a_term_deaf_until_the_next_one_is_answered() {
        let (fence, clock) = (fence(), Clock::tokio());
        let gate = fence.gate();
        let (server, mut watch) = hear(&gate).await;
        assert_eq!(deaf_since(&gate), None);
        tokio::time::advance(14 * SECOND).await;
        drop(server);
        assert!(next(&mut watch).await.is_none());
        assert_eq!(deaf_since(&gate), Some(clock.now()));
        let problem = gate.hearing().borrow().problem.clone().unwrap();
        assert_eq!(problem, "the watch of /apis/example.com/v1/namespaces/a/widgets has ended");
        tokio::time::advance(SECOND).await;
        let _going_on = get(&gate, WATCH, 200).await;
        assert_eq!(*gate.hearing().borrow(), Hearing::default());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_any_form_leave_it_deaf_since_the_first_and_only_those_of_its_own_resource() {
        let (fence, clock) = (fence(), Clock::tokio());
        let gate = fence.gate();
        let (server, mut watch) = hear(&gate).await;
        fail(&gate, "/apis/example.com/v1/gadgets?watch=true").await;
        fail(&gate, "/apis/example.com/v1/namespaces/a/widgets/one").await;
        assert_eq!(deaf_since(&gate), None);
        server.send(Ok("{}")).unwrap();
        server.send(Err(std::io::Error::other("reset"))).unwrap();
        assert!(next(&mut watch).await.unwrap().is_ok());
        assert!(next(&mut watch).await.unwrap().is_err());
        let first = clock.now();
        assert_eq!(deaf_since(&gate), Some(first));
        tokio::time::advance(SECOND).await;
        fail(&gate, WATCH).await;
        let problem = gate.hearing().borrow().problem.clone().unwrap();
        assert_eq!(problem, "failed to watch /apis/example.com/v1/namespaces/a/widgets: no route");
        tokio::time::advance(SECOND).await;
        let _gone = get(&gate, WATCH, 410).await;
        let problem = gate.hearing().borrow().problem.clone().unwrap();
        assert_eq!(problem, "410 Gone to watch /apis/example.com/v1/namespaces/a/widgets");
        assert_eq!(deaf_since(&gate), Some(first));
        let _list_and_watch = hear(&gate).await;
        assert_eq!(deaf_since(&gate), None);
    }

    #[tokio::test(start_paused = true)]
    async fn heads_without_anything_behind_them_are_not_heard() {
        let (fence, clock) = (fence(), Clock::tokio());
        let gate = fence.gate();
        let (server, mut watch) = hear(&gate).await;
        drop(server);
        assert!(next(&mut watch).await.is_none());
        let since = clock.now();
        for _ in 0..3 {
            let (server, mut watch) = get(&gate, WATCH, 200).await;
            tokio::time::advance(19 * SECOND).await;
            server.send(Err(std::io::Error::other("silent"))).unwrap();
            assert!(next(&mut watch).await.unwrap().is_err());
            assert_eq!(deaf_since(&gate), Some(since), "the head of a watch changes nothing");
            let (server, mut list) = get(&gate, LIST, 200).await;
            server.send(Ok("{")).unwrap();
            assert!(next(&mut list).await.unwrap().is_ok());
            assert_eq!(deaf_since(&gate), Some(since), "nor does half a list");
            drop(list);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_client_drops_is_no_failure_unless_the_server_should_have_ended_it() {
        let (fence, clock) = (fence(), Clock::tokio());
        let gate = fence.gate();
        let (_server, watch) = hear(&gate).await;
        tokio::time::advance(14 * SECOND).await;
        drop(watch);
        assert_eq!(deaf_since(&gate), None);
        let (_server, watch) = hear(&gate).await;
        tokio::time::advance(15 * SECOND).await;
        drop(watch);
        assert_eq!(deaf_since(&gate), Some(clock.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_of_changes_only_and_needs_to_know_the_resource() {
        let unaware = Fence::new("widget.example.com".to_owned(), None, Clock::tokio(), |_| ()).gate();
        fail(&unaware, WATCH).await;
        assert_eq!(deaf_since(&unaware), None);
        let fence = fence();
        let gate = fence.gate();
        let mut hearing = gate.hearing();
        hearing.mark_unchanged();
        let (server, mut watch) = hear(&gate).await;
        server.send(Ok("{}")).unwrap();
        assert!(next(&mut watch).await.unwrap().is_ok());
        assert!(!hearing.has_changed().unwrap());
        fail(&gate, WATCH).await;
        assert!(hearing.has_changed().unwrap());
        hearing.mark_unchanged();
        fail(&gate, WATCH).await;
        assert!(!hearing.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_answers_about_permissions_and_types_and_no_others() {
        let fence = fence();
        fence.extend(Moment::NEVER);
        let gate = fence.gate();
        let one = "/api/v1/namespaces/a/services/one";
        for (method, uri, status) in [
            (Method::GET, one, 404),
            (Method::GET, one, 403),
            (Method::DELETE, one, 404),
            (Method::PATCH, one, 409),
            (Method::GET, "/apis/example.com/v1", 404),
            (Method::GET, "/api/v1/services", 500),
        ] {
            let _answer = ask(&gate, method, uri, status).await;
            assert_eq!(*gate.refusals().borrow(), Refusals::default(), "{uri} {status}");
        }
        let all = "/api/v1/namespaces/a/services";
        for (count, (method, uri, status, text)) in [
            (Method::GET, all, 404, "404 to list /api/v1/namespaces/a/services"),
            (Method::GET, "/api/v1/services?watch=true", 403, "403 to watch /api/v1/services"),
            (Method::GET, "/api/v1/namespaces", 401, "401 to list /api/v1/namespaces"),
            (Method::PATCH, one, 403, "403 to patch /api/v1/namespaces/a/services/one"),
            (Method::POST, all, 401, "401 to create /api/v1/namespaces/a/services"),
        ]
        .into_iter()
        .enumerate()
        {
            let _answer = ask(&gate, method, uri, status).await;
            let refusals = gate.refusals().borrow().clone();
            assert_eq!(refusals.count, u64::try_from(count).unwrap() + 1);
            assert_eq!(refusals.last.unwrap().to_string(), format!("the API server answered {text}"));
        }
        assert_eq!(deaf_since(&gate), None, "they were about other resources");
    }
}
