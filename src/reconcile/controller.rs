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

        let one = {
            let backoff = Arc::clone(&backoff);
            move |object: Arc<K>, _: Arc<()>| {
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

/// An error with everything behind it. A refusal ends it with code and message: kube would add the whole Status, twice.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            words.push(format!("{} {}", status.code, status.message));
            break;
        }
        let said = error.to_string();
        // kube's errors repeat their source.
        if !words.iter().any(|before| before.contains(&said)) {
            words.push(said);
        }
        next = error.source();
    }
    words.join(": ")
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the clock under test")]
mod tests {
    use std::{future::pending, io, sync::Mutex};

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::reconcile::fake::{Answer, Asked, Fake, refusal};

    /// Lists these ConfigMaps; nothing happens to them.
    fn lists(names: &'static [&'static str]) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
        move |asked| {
            let item =
                |name: &&str| json!({"metadata": {"name": name, "namespace": "ns", "generation": 1, "uid": name}});
            let items: Vec<_> = names.iter().map(item).collect();
            let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            (!asked.uri.contains("watch=true")).then_some((200, list))
        }
    }

    fn controller(fake: &Fake) -> Controller<ConfigMap> {
        Controller::new(&fake.term, Api::all(fake.term.client()), ())
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<(String, u64)>>>);

    impl Log {
        fn add(&self, object: &ConfigMap, start: Instant) {
            self.0.lock().unwrap().push((object.name_any(), start.elapsed().as_secs()));
        }

        fn of(&self, name: &str) -> Vec<u64> {
            self.0.lock().unwrap().iter().filter(|(of, _)| of == name).map(|(_, at)| *at).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_although_the_first_list_never_came() {
        for answer in [refusal(404, "NotFound"), refusal(403, "Forbidden"), None] {
            let fake = Fake::new(1, move |_| answer.clone());
            let run = controller(&fake).run(|_| async { Ok::<_, io::Error>(None) });
            let drain = fake.drain.clone();
            let stop = async {
                sleep(Duration::from_secs(100)).await;
                drain.cancel();
                Instant::now()
            };
            let ended = timeout(Duration::from_secs(200), future::join(run, stop));
            let (_, drained) = ended.await.expect("it ends");
            assert_eq!(drained.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_runs_and_starts_nothing() {
        let fake = Fake::new(1, lists(&["a", "b", "c", "d", "e"]));
        let (log, start) = (Log::default(), Instant::now());
        let finished = Arc::new(Mutex::new(0));
        let run = {
            let (log, finished) = (log.clone(), Arc::clone(&finished));
            controller(&fake).run(move |object| {
                log.add(&object, start);
                let finished = Arc::clone(&finished);
                async move {
                    sleep(Duration::from_secs(60)).await;
                    *finished.lock().unwrap() += 1;
                    Ok::<_, io::Error>(None)
                }
            })
        };
        let drain = fake.drain.clone();
        let stop = async {
            sleep(Duration::from_secs(10)).await;
            drain.cancel();
        };
        timeout(Duration::from_secs(600), future::join(run, stop)).await.expect("it ends");
        assert_eq!(start.elapsed().as_secs(), 60);
        // As many as the kind's concurrency.
        assert_eq!((log.0.lock().unwrap().len(), *finished.lock().unwrap()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_objects_failures_and_panics_are_its_own() {
        let fake = Fake::new(1, lists(&["bad", "good", "ugly"]));
        let (log, start) = (Log::default(), Instant::now());
        let run = {
            let log = log.clone();
            controller(&fake).run(move |object| {
                log.add(&object, start);
                async move {
                    match object.name_any().as_str() {
                        "bad" => Err(io::Error::other("bad")),
                        "ugly" => panic!("ugly"),
                        _ => Ok(None),
                    }
                }
            })
        };
        timeout(Duration::from_secs(500), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("good").len(), 1);
        for name in ["bad", "ugly"] {
            let tries = log.of(name);
            let waits: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!((8..=10).contains(&tries.len()), "{tries:?}");
            assert!(waits.is_sorted() && waits.last() > Some(&60), "each wait is longer: {tries:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn objects_come_back_when_they_ask_to_and_at_the_resync() {
        let fake = Fake::new(1, lists(&["asks", "rests"]));
        let (log, start) = (Log::default(), Instant::now());
        let run = {
            let log = log.clone();
            controller(&fake).run(move |object| {
                log.add(&object, start);
                let again = (object.name_any() == "asks").then_some(Duration::from_secs(100));
                async move { Ok::<_, io::Error>(again) }
            })
        };
        timeout(Duration::from_secs(650), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("asks"), [0, 100, 200, 300, 400, 500, 600]);
        let rests = log.of("rests");
        assert!(rests.len() == 2 && (540..=600).contains(&rests[1]), "{rests:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_makes_an_object_due_and_one_that_fails_stops_nothing() {
        let fake = Fake::new(1, lists(&["a", "b"]));
        let (log, start) = (Log::default(), Instant::now());
        let later = stream::once(async {
            sleep(Duration::from_secs(50)).await;
            ObjectRef::new("a").within("ns")
        });
        let errors = stream::repeat_with(|| Err(watcher::Error::NoResourceVersion)).take(3);
        let run = {
            let log = log.clone();
            controller(&fake)
                .trigger(later)
                .trigger(logged("Broken".to_owned(), errors.chain(stream::once(pending()))))
                .run(move |object| {
                    log.add(&object, start);
                    async { Ok::<_, io::Error>(None) }
                })
        };
        timeout(Duration::from_secs(100), run).await.expect_err("it runs until it drains");
        assert_eq!((log.of("a"), log.of("b")), (vec![0, 50], vec![0]));
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_a_refusal_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("failed to list")]
        struct Outer(#[source] kube::Error);
        let status = serde_json::from_value(json!({"code": 403, "reason": "Forbidden", "message": "may not"})).unwrap();
        assert_eq!(chain(&Outer(kube::Error::Api(Box::new(status)))), "failed to list: 403 may not");
        let service = kube::Error::Service(Box::new(io::Error::other("gone")));
        assert_eq!(chain(&Outer(service)), "failed to list: ServiceError: gone");
    }

    #[test]
    fn the_resync_is_the_longest_wait() {
        let resync = Duration::from_secs(600);
        assert_eq!(due_in(None, resync, 0.0), resync);
        assert_eq!(due_in(None, resync, 1.0), Duration::from_secs(540));
        assert_eq!(due_in(Some(Duration::from_secs(7)), resync, 0.5), Duration::from_secs(7));
        assert_eq!(due_in(Some(Duration::from_secs(7000)), resync, 0.0), resync);
    }
}
