//! A term: the time from winning a kind's Lease to losing it, as its reconciler sees it.

use std::{error::Error, future::Future, sync::Arc};

use futures::future::BoxFuture;
use kube::Client;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use super::election::FencingToken;
use crate::config::Kind;

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
}

impl Term {
    pub(crate) fn new(
        kind: Arc<Kind>,
        holder: String,
        token: FencingToken,
        client: Client,
        draining: CancellationToken,
    ) -> Self {
        Self { inner: Arc::new(Inner { kind, holder, token, client, draining }) }
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
}

/// Why a reconciler ended by itself.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// One permission a reconciler needs, as in an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Access {
    /// Verb, such as `list`.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resource in the plural, such as `configmaps` or `widgets/status`.
    pub resource: &'static str,
}

/// What a kind implements: work from the start of a term to its end.
///
/// `run` is called once a term, on a task of its own. It returns `Ok` after [`Term::draining`] resolved and its work is done.
/// Tasks that it spawns itself are its own to end with it; whatever they do later, the term's client refuses their writes.
/// Returning early, an error or a panic end this term only: the Lease is released and the kind cools down before it competes again.
pub trait Reconciler: Send + Sync + 'static {
    /// Reconciles until the term drains.
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>>;

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
