//! A term: the time from winning a kind's Lease to losing it, as its reconciler sees it; and the standby before it.

use std::{
    any::Any,
    borrow::Cow,
    error::Error,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::{BoxFuture, pending};
use kube::Client;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{observe::Observation, spans};
pub use crate::protocol::lease::FencingToken;
use crate::{config::Kind, ops::work::Meter};

/// One term. Clones are handles on the same term.
#[derive(Clone)]
pub struct Term {
    inner: Arc<Inner>,
}

struct Inner {
    kind: Arc<Kind>,
    holder: String,
    token: FencingToken,
    client: Client,
    draining: CancellationToken,
    meter: Meter,
    leftovers: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Until the first pass is over.
    takeover: Mutex<Span>,
}

impl Term {
    pub(crate) fn new(
        kind: Arc<Kind>,
        holder: String,
        token: FencingToken,
        client: Client,
        draining: CancellationToken,
        meter: Meter,
    ) -> Self {
        let leftovers = Mutex::default();
        let takeover = Mutex::new(spans::takeover(&kind, &holder, &token));
        Self { inner: Arc::new(Inner { kind, holder, token, client, draining, meter, leftovers, takeover }) }
    }

    /// The kind this term is about, with its concurrency and resync.
    pub fn kind(&self) -> &Kind {
        &self.inner.kind
    }

    /// Name of the Lease that was won; the value of the label `leasehold.dev/shard` on what this term writes.
    pub fn lease(&self) -> &str {
        &self.inner.kind.lease_name
    }

    /// Holder identity of this replica.
    pub fn holder(&self) -> &str {
        &self.inner.holder
    }

    /// The fencing token, to be stamped on statuses when they are written.
    pub fn token(&self) -> &FencingToken {
        &self.inner.token
    }

    /// The only client a reconciler may write through: it refuses every mutating request once the term is not valid.
    /// A refused write fails with `kube::Error::Service` around `Fenced`.
    pub fn client(&self) -> Client {
        self.inner.client.clone()
    }

    /// Resolves when the reconciler shall take no new work and finish what runs.
    /// Cancel safe; resolves at once if the term drains already.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        self.inner.draining.clone().cancelled_owned()
    }

    /// Where its work is counted.
    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// The span of its takeover, to whoever goes through the first pass: it ends when that drops it.
    pub(crate) fn takeover(&self) -> Span {
        std::mem::replace(&mut *self.inner.takeover.lock().unwrap_or_else(PoisonError::into_inner), Span::none())
    }

    /// Leaves something to be dropped after the term: to free a cache of ten thousand objects takes tens of milliseconds,
    /// and the release of the Lease waits for the end of the term's task. It must not hold this term.
    pub fn leave(&self, what: impl Any + Send) {
        self.inner.leftovers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(what));
    }

    /// What was left, to be dropped where it delays nothing.
    pub(crate) fn leftovers(&self) -> Vec<Box<dyn Any + Send>> {
        std::mem::take(&mut *self.inner.leftovers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The time before a term, on a replica that may be next: a cache is filled, so that the term begins with it.
///
/// The task that fills it is dropped when the cache is no longer wanted here; it holds nothing then that anybody waits for.
pub struct Standby {
    kind: Arc<Kind>,
    client: Client,
    meter: Meter,
    filled: CancellationToken,
    promotion: oneshot::Receiver<Term>,
}

/// The other end of a [`Standby`].
pub(crate) struct Promotion {
    /// The standby has said that it is prepared.
    pub(crate) filled: CancellationToken,
    /// Where its term goes.
    pub(crate) term: oneshot::Sender<Term>,
}

impl Standby {
    /// A standby for a kind. `client` is the one that the term will have.
    pub(crate) fn new(kind: Arc<Kind>, client: Client, meter: Meter) -> (Self, Promotion) {
        let (term, promotion) = oneshot::channel();
        let filled = CancellationToken::new();
        (Self { kind, client, meter, filled: filled.clone(), promotion }, Promotion { filled, term })
    }

    /// The standby of a term that has begun: [`lead`](Self::lead) resolves at once.
    /// So a reconciler that can stand by needs one path only.
    pub fn of(term: &Term) -> Self {
        let (standby, promotion) = Self::new(Arc::clone(&term.inner.kind), term.client(), term.meter().clone());
        // Cannot fail: the receiver is in our hand.
        let _ = promotion.term.send(term.clone());
        standby
    }

    /// The kind this is about.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The client of the term to come. It reads; until the term begins it refuses to write, as [`Term::client`] does after it.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where its work is counted.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Says that the cache is filled: a leader that waits to hand the kind over to this replica may stop its work now.
    pub fn prepared(&self) {
        self.filled.cancel();
    }

    /// Resolves when this replica leads the kind. Cancel safe; not to be awaited again once it has resolved.
    pub async fn lead(&mut self) -> Term {
        // A select loop asks again after the other end has gone, and a receiver that has ended must not be asked.
        if self.promotion.is_terminated() {
            return pending().await;
        }
        match (&mut self.promotion).await {
            Ok(term) => term,
            // The supervisor is gone, and aborts this task.
            Err(_closed) => pending().await,
        }
    }
}

/// Why a reconciler ended by itself.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// One permission a reconciler needs, as in an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Access {
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// Resource in the plural, such as `configmaps` or `widgets/status`.
    pub resource: Cow<'static, str>,
    /// The only object it is about; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'static, str>>,
    /// Verb, such as `list`.
    pub verb: &'static str,
}

impl Access {
    /// A permission on all objects of a resource.
    pub fn new(
        verb: &'static str,
        group: impl Into<Cow<'static, str>>,
        resource: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { group: group.into(), resource: resource.into(), name: None, verb }
    }

    /// On the one object of that name.
    #[must_use]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}

/// What a kind implements: work from the start of a term to its end.
///
/// `run` is called once a term, on a task of its own. It returns `Ok` after [`Term::draining`] resolved and its work is done.
/// Tasks that it spawns itself are its own to end with it; whatever they do later, the term's client refuses their writes.
/// Returning early, an error or a panic end this term only: the Lease is released and the kind cools down before it competes again.
pub trait Reconciler: Send + Sync + 'static {
    /// Reconciles until the term drains.
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>>;

    /// Fills a cache by reading only, calls [`Standby::prepared`], awaits [`Standby::lead`], and goes on as
    /// [`run`](Self::run) does with the term it gets. Called on replicas that may be next; `run` is called where the term
    /// begins without a standby. `None`, the default: there is nothing to fill, and `run` starts cold.
    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        drop(standby);
        None
    }

    /// Watches the kind on every replica, whether it leads or not, to serve what it knows: the future runs from the start of
    /// the replica to its end, and begins again, after a pause, when it ends by itself. It reads through
    /// [`Observation::client`], which writes nothing. `None`, the default: nothing to observe.
    ///
    /// [`Observer`](crate::reconcile::observe::Observer) does the watching.
    fn observe(&self, observation: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        drop(observation);
        None
    }

    /// Permissions beyond `list` and `watch` of the kind itself, checked before this replica competes for the Lease.
    fn needs(&self) -> Vec<Access> {
        Vec::new()
    }
}

impl<F, Fut> Reconciler for F
where
    F: Fn(Term) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(self(term))
    }
}
