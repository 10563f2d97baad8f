//! Reconciles the objects of one kind from the start of a term to its end.
//!
//! kube's `Controller` puts one back-off over all its watches, so that one denied watch slows down every other one, and
//! does not end when its cache never fills. This is the same engine, `applier`, with a back-off for each watch and an end in every case.
//! Reconciliations run on the task of the term and nowhere else: when that is dropped, nothing goes on.

use std::{
    any::Any,
    convert::Infallible,
    error::Error as StdError,
    fmt::{self, Debug},
    hash::Hash,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt, TryFutureExt, future,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt, applier,
        controller::{Action, Config, Error as ControllerError, ReconcileRequest},
        predicates,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tracing::{error, warn};

use crate::{reconcile::backoff::Backoff, sharding::term::Term};

/// The share of a resync that is left to chance, so that objects listed together are not reconciled together for ever.
const JITTER: f64 = 0.1;

/// When to look at an object again if nothing happens before; `None` leaves it to the resync.
pub type Again = Option<Duration>;

/// The objects of a kind, and all that makes one of them due.
#[must_use = "does nothing until it runs"]
pub struct Controller<K>
where
    K: Resource + 'static,
    K::DynamicType: Eq + Hash,
{
    term: Term,
    objects: Store<K>,
    triggers: Vec<BoxStream<'static, ObjectRef<K>>>,
}

impl<K> Controller<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Debug + Eq + Hash + Unpin + Send + Sync,
{
    /// The objects of `api`. Each is due when it appears and when its generation changes, which a write of its status does not.
    pub fn new(term: &Term, api: Api<K>, dyntype: K::DynamicType) -> Self {
        let writer = Writer::new(dyntype.clone());
        let objects = writer.as_reader();
        let changes = watcher(api, watcher::Config::default())
            .default_backoff()
            .modify(|object| object.meta_mut().managed_fields = None)
            .reflect(writer)
            .applied_objects()
            .predicate_filter(predicates::generation, Default::default());
        let changes = logged(K::kind(&dyntype).into_owned(), changes)
            .map(move |object| ObjectRef::from_obj_with(&object, dyntype.clone()));
        Self { term: term.clone(), objects, triggers: vec![changes.boxed()] }
    }

    /// The objects as last seen; empty until the first list is complete.
    pub fn objects(&self) -> Store<K> {
        self.objects.clone()
    }

    /// Makes the objects that the stream names due.
    pub fn trigger(mut self, due: impl Stream<Item = ObjectRef<K>> + Send + 'static) -> Self {
        self.triggers.push(due.boxed());
        self
    }

    /// Calls `reconcile` for each object that is due, never twice at a time for the same one, until the term drains and what runs is done.
    /// A failure or a panic costs that object its turn and makes it wait; the others do not notice.
    pub async fn run<F, Fut, E>(self, reconcile: F)
    where
        F: Fn(Arc<K>) -> Fut,
        Fut: Future<Output = Result<Again, E>> + Send + 'static,
        E: StdError + Send + Sync + 'static,
    {
        let Self { term, objects, triggers } = self;
        let backoff = Arc::new(Backoff::default());
        let resync = term.kind().resync;
        let settings = Config::default().concurrency(term.kind().concurrency);
        let queue = stream::select_all(triggers)
            .take_until(term.draining())
            .map(|object| Ok::<_, Infallible>(ReconcileRequest::from(object)));

        let draining = term.draining().shared();
        let one = {
            let backoff = Arc::clone(&backoff);
            move |object: Arc<K>, _: Arc<()>| {
                if draining.clone().now_or_never().is_some() {
                    return future::ready(Ok(Action::await_change())).boxed();
                }
                let backoff = Arc::clone(&backoff);
                let reconciled = reconcile(Arc::clone(&object)).map_err(Failure::Failed);
                AssertUnwindSafe(reconciled)
                    .catch_unwind()
                    .map(|outcome| outcome.unwrap_or_else(|panic| Err(Failure::Panicked(words(&*panic)))))
                    .map_ok(move |again| {
                        backoff.reset(object.namespace().as_deref(), &object.name_any());
                        Action::requeue(due_in(again, resync, fastrand::f64()))
                    })
                    .boxed()
            }
        };
        let failed = {
            let backoff = Arc::clone(&backoff);
            move |object: Arc<K>, failure: &Failure<E>, _: Arc<()>| {
                let (namespace, name) = (object.namespace(), object.name_any());
                let wait = backoff.failed(namespace.as_deref(), &name, fastrand::f64());
                let namespace = namespace.unwrap_or_default();
                match failure {
                    Failure::Failed(cause) => {
                        warn!(namespace, name, error = %chain(cause), retry_in = ?wait, "reconcile failed");
                    }
                    Failure::Panicked(words) => {
                        error!(namespace, name, panic = words, retry_in = ?wait, "reconcile panicked");
                    }
                }
                Action::requeue(wait)
            }
        };

        // `applier` holds everything until the first list is complete, and would wait for that even when it drains.
        // Nothing has run then, so there is nothing to wait for.
        let drained_empty = {
            let (objects, draining) = (objects.clone(), term.draining());
            async move {
                draining.await;
                if objects.wait_until_ready().now_or_never().is_some() {
                    future::pending::<()>().await;
                }
            }
        };
        let reconciled = applier(one, failed, Arc::new(()), objects, queue, settings).for_each(|result| {
            match result {
                // Its failures were logged above.
                Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(ControllerError::ObjectNotFound(gone)) => backoff.reset(gone.namespace.as_deref(), &gone.name),
                Err(error) => warn!(%error, "controller"),
            }
            future::ready(())
        });
        future::select(pin!(reconciled), pin!(drained_empty)).await;
    }
}

/// The items of a watch; its errors are logged and end here, for the watch tries again by itself.
pub fn logged<T: Send + 'static>(
    what: String,
    watch: impl Stream<Item = watcher::Result<T>> + Send + 'static,
) -> impl Stream<Item = T> + Send + 'static {
    watch.filter_map(move |item| {
        future::ready(item.map_err(|error| warn!(watch = what, error = %chain(&error), "watch failed")).ok())
    })
}

/// An error with everything behind it.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // kube's errors repeat their source.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// When an object is due again. `chance` is in `0.0..1.0`.
fn due_in(again: Again, resync: Duration, chance: f64) -> Duration {
    let resync = resync.mul_f64(1.0 - JITTER * chance);
    again.map_or(resync, |again| again.min(resync))
}

#[derive(Debug)]
enum Failure<E> {
    Failed(E),
    Panicked(String),
}

impl<E: StdError> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(_) => f.write_str("reconcile failed"),
            Self::Panicked(words) => write!(f, "reconcile panicked: {words}"),
        }
    }
}

impl<E: StdError + 'static> StdError for Failure<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(cause) => Some(cause),
            Self::Panicked(_) => None,
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
