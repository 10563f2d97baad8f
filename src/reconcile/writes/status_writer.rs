//! Statuses that any task of any replica may hand in, and that the leader writes.
//!
//! A [`StatusWriter`] keeps the newest state of each object. While this replica leads, it writes them through the term's
//! client; while it does not, it keeps those that the object does not bear yet, and writes them when it leads. Each state
//! says how new it is ([`Versioned`]), so that replicas agree on it, and each write rests on the version of
//! the object that was compared: no older state ever replaces a newer one, whichever replica writes.
//!
//! A state is known to the replica that it was handed in on, and to no other. So hand in what each replica knows on each
//! of them, as replicas do that make their states from what they observe: then whichever leads has the newest. What only one
//! replica knows is written when that one leads, and is lost with its process.

use std::{
    fmt,
    fmt::Debug,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Error, Resource, core::object::HasStatus};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{select, sync::Notify};
use tracing::{debug, warn};

pub use super::states::{HandedIn, Limits, Revision};
use super::{
    states::{Known, Next, Outcome, State, States},
    status::{self, Stamped},
};
use crate::{
    protocol::moment::Moment,
    reconcile::{
        name::Name,
        observe::Observed,
        store::{Kept, Store},
    },
    replica::{
        clock::Clock,
        fence::Fenced,
        problem::describe,
        term::{Access, Term},
    },
};

/// How long what is kept may still be written when the term drains: the successor waits for it.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// A status that says how new it is.
pub trait Versioned {
    /// How new it is; the same for a status that was read back from the API server.
    fn revision(&self) -> Revision;
}

/// What has become of states here, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// States that are kept now: the object does not bear them yet, as far as this replica sees.
    pub kept: usize,
    /// Statuses that this replica has written.
    pub written: u64,
    /// States that were not taken because too many were kept.
    pub full: u64,
    /// Writes that failed, and are tried again.
    pub failed: u64,
}

/// Takes the states of the objects of a kind. Clones are handles on the same.
pub struct StatusWriter<K: Resource + HasStatus> {
    inner: Arc<Inner<K>>,
}

struct Inner<K: Resource + HasStatus> {
    api: fn(Client, &Name) -> Api<K>,
    store: Store<K>,
    states: Mutex<States<K::Status>>,
    changed: Notify,
    clock: Clock,
    written: AtomicU64,
    full: AtomicU64,
    failed: AtomicU64,
}

impl<K: Resource + HasStatus> Clone for StatusWriter<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K> StatusWriter<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + HasStatus,
{
    /// For a kind whose objects live in namespaces. `store` is that of an [`Observer`](crate::reconcile::observe::Observer).
    pub fn new(store: Store<K>, limits: Limits) -> Self {
        Self::with(store, limits, |client, name| Api::namespaced(client, name.namespace().unwrap_or_default()))
    }
}

impl<K> StatusWriter<K>
where
    K: Resource<Scope = ClusterResourceScope, DynamicType = ()> + HasStatus,
{
    /// For a kind whose objects live in no namespace.
    pub fn cluster_wide(store: Store<K>, limits: Limits) -> Self {
        Self::with(store, limits, |client, _| Api::all(client))
    }
}

impl<K: Resource<DynamicType = ()> + HasStatus> StatusWriter<K> {
    fn with(store: Store<K>, limits: Limits, api: fn(Client, &Name) -> Api<K>) -> Self {
        let inner = Inner {
            api,
            store,
            states: Mutex::new(States::new(limits)),
            changed: Notify::new(),
            clock: Clock::tokio(),
            written: AtomicU64::new(0),
            full: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The permission that writing needs, for [`Reconciler::needs`](crate::replica::term::Reconciler::needs).
    pub fn needs() -> Vec<Access> {
        let (group, plural) = (K::group(&()).into_owned(), K::plural(&()).into_owned());
        vec![
            Access::new("get", group.clone(), plural.clone()),
            Access::new("update", group, format!("{plural}/status")),
        ]
    }

    /// What has become of states here.
    pub fn counts(&self) -> Counts {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let Inner { written, full, failed, .. } = &*self.inner;
        Counts { kept: self.states().len(), written: count(written), full: count(full), failed: count(failed) }
    }

    fn states(&self) -> MutexGuard<'_, States<K::Status>> {
        self.inner.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> StatusWriter<K>
where
    K: Resource<DynamicType = ()> + HasStatus + Clone + Serialize + DeserializeOwned + Debug + Send + Sync + 'static,
    K::Status: Stamped + Versioned + Serialize + Send + Sync + 'static,
{
    /// Hands in the state of an object, from any task of any replica. Does not wait, and makes no request.
    /// Only the object's name and uid count, so it may be old.
    pub fn hand_in(&self, object: &K, status: K::Status) -> HandedIn {
        let (name, revision) = (Name::of(object), status.revision());
        let bytes = serde_json::to_vec(&status).map_or(0, |json| json.len());
        let uid = object.meta().uid.as_deref().unwrap_or_default().into();
        let state = State { uid, revision, status: Arc::new(status), bytes };
        let seen = self.inner.store.get(&name);
        let taken = self.states().hand_in(name, state, seen.as_deref().map(known), self.inner.clock.now());
        match taken {
            HandedIn::Kept => self.inner.changed.notify_waiters(),
            HandedIn::Full => drop(self.inner.full.fetch_add(1, Ordering::Relaxed)),
            HandedIn::Old => {}
        }
        taken
    }

    /// Takes in what an [`Observer`](crate::reconcile::observe::Observer) has seen, so that what is no news any more is not kept.
    pub fn saw(&self, change: &Observed<K>) {
        let mut states = self.states();
        match change {
            Observed::Restarted(_) => {
                states.listed(|name, state| match self.inner.store.kept(name) {
                    Some(Kept::Whole(seen)) => known(&*seen).lacks(&state.uid, state.revision),
                    // What it bears is read when the state is written.
                    Some(Kept::Marks | Kept::TooLarge { .. }) => true,
                    None => false,
                });
            }
            Observed::Applied(object) => states.seen(&Name::of(&**object), &known(&**object)),
            Observed::Deleted(object) => {
                states.gone(&Name::of(&**object), object.meta().uid.as_deref().unwrap_or_default());
            }
        }
    }

    /// Writes what is kept and what is handed in, until the term drains; then what is left, as far as it can be begun
    /// within a second.
    /// To be awaited on the task of the term, beside its other work. Dropped, it stops at once and loses nothing.
    pub async fn write_for(&self, term: &Term) {
        let _interrupted = Interrupted(self);
        let mut writing = FuturesUnordered::new();
        let mut draining = std::pin::pin!(term.draining());
        loop {
            let changed = self.inner.changed.notified();
            let wake_at = self.begin(term, &mut writing, false);
            select! {
                biased;
                () = &mut draining => break,
                Some((name, outcome)) = writing.next() => self.done(&name, outcome),
                () = changed => {}
                () = self.inner.clock.sleep_until(wake_at) => {}
            }
        }
        let until = self.inner.clock.now() + LAST_WRITES;
        loop {
            if self.inner.clock.now() < until {
                self.begin(term, &mut writing, true);
            }
            // A write that is dropped on its way would keep the Lease from being released.
            let Some((name, outcome)) = writing.next().await else { break };
            self.done(&name, outcome);
        }
        let kept = self.states().len();
        debug!(kind = term.kind().name(), kept, "the term ends, states are kept");
    }

    /// Begins what may be written now. Returns when there is more.
    fn begin<'a>(
        &'a self,
        term: &'a Term,
        writing: &mut FuturesUnordered<BoxFuture<'a, (Name, Outcome)>>,
        hurry: bool,
    ) -> Moment {
        loop {
            let next = self.states().next(self.inner.clock.now(), hurry);
            match next {
                Next::Write(name, state) => writing.push(self.write(term, name, state).boxed()),
                Next::Wait(at) => return at,
            }
        }
    }

    fn done(&self, name: &Name, outcome: Outcome) {
        self.states().done(name, outcome, self.inner.clock.now(), fastrand::f64());
    }

    async fn write(&self, term: &Term, name: Name, state: State<K::Status>) -> (Name, Outcome) {
        let outcome = match self.try_write(term, &name, &state).await {
            Ok(written) => {
                if let Some(written) = written {
                    self.inner.store.note(written);
                    self.inner.written.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Settled
            }
            // The term is over; the state is kept.
            Err(Error::Service(error)) if error.is::<Fenced>() => Outcome::Failed,
            Err(error) => {
                self.inner.failed.fetch_add(1, Ordering::Relaxed);
                warn!(kind = term.kind().name(), object = %name, error = %describe(&error), "failed to write a status that was handed in");
                Outcome::Failed
            }
        };
        (name, outcome)
    }

    async fn try_write(&self, term: &Term, name: &Name, state: &State<K::Status>) -> Result<Option<K>, Error> {
        let api = (self.inner.api)(term.client(), name);
        let seen = self.inner.store.get(name).filter(|seen| seen.meta().uid.as_deref() == Some(&*state.uid));
        let object = match seen {
            Some(seen) => (*seen).clone(),
            // It is not kept, or it is new or gone, and the watch has not told yet.
            None => match api.get_opt(name.name()).await? {
                Some(object) => object,
                None => return Ok(None),
            },
        };
        let news = |object: &K| known(object).lacks(&state.uid, state.revision).then(|| (*state.status).clone());
        status::write(term, &self.inner.store, &api, &object, news).await
    }
}

/// What the writer has to know of an object.
fn known<K>(object: &K) -> Known<'_>
where
    K: Resource + HasStatus,
    K::Status: Versioned,
{
    Known {
        uid: object.meta().uid.as_deref().unwrap_or_default(),
        generation: object.meta().generation,
        written: object.status().map(Versioned::revision),
    }
}

/// When a term ends, what it was writing is not being written any more.
struct Interrupted<'a, K: Resource<DynamicType = ()> + HasStatus>(&'a StatusWriter<K>);

impl<K: Resource<DynamicType = ()> + HasStatus> Drop for Interrupted<'_, K> {
    fn drop(&mut self) {
        self.0.states().interrupted();
    }
}

impl<K: Resource<DynamicType = ()> + HasStatus> fmt::Debug for StatusWriter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusWriter").field("counts", &self.counts()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use http::Method;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        kinds::propagation::{Propagation, PropagationStatus},
        reconcile::{
            fake::{Answer, Asked, Fake, refusal},
            store::Form,
        },
    };

    impl Versioned for PropagationStatus {
        fn revision(&self) -> Revision {
            Revision { generation: self.observed_generation, number: u64::try_from(self.synced).unwrap_or(0) }
        }
    }

    fn json_of(version: u32, synced: i32) -> Value {
        json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation",
            "metadata": {"name": "p", "uid": "u", "resourceVersion": version.to_string(), "generation": 1},
            "spec": {
                "source": {"kind": "ConfigMap", "namespace": "home", "name": "settings"},
                "targets": {"namespaces": ["a"]},
            },
            "status": {"observedGeneration": 1, "targets": 5, "synced": synced},
        })
    }

    fn object(version: u32, synced: i32) -> Propagation {
        serde_json::from_value(json_of(version, synced)).unwrap()
    }

    fn status(synced: i32) -> PropagationStatus {
        PropagationStatus { observed_generation: Some(1), synced, ..PropagationStatus::default() }
    }

    fn writer(seen: Option<Propagation>) -> StatusWriter<Propagation> {
        let store = Store::new(());
        let first = seen.into_iter().map(Event::InitApply);
        for event in [Event::Init].into_iter().chain(first).chain([Event::InitDone]) {
            store.take_in(event);
        }
        StatusWriter::cluster_wide(store, Limits::default())
    }

    /// A term of so many seconds.
    async fn term(
        writer: &StatusWriter<Propagation>,
        seconds: u64,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Vec<Asked> {
        let fake = Fake::slow(2, 2, move |asked| ready(answer(&asked)));
        let drain = async {
            sleep(Duration::from_secs(seconds)).await;
            fake.drain.cancel();
        };
        let both = futures::future::join(writer.write_for(&fake.term), drain);
        timeout(Duration::from_secs(seconds + 2), both).await.expect("it ends with the term");
        fake.asked()
    }

    fn written(asked: &[Asked]) -> Vec<i64> {
        let puts = asked.iter().filter(|asked| asked.method == Method::PUT);
        puts.map(|put| put.body["status"]["synced"].as_i64().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_keeps_the_newest_and_writes_it_in_its_term_over_the_version_it_was_compared_with() {
        let writer = writer(Some(object(10, 3)));
        for (synced, expected) in [(3, HandedIn::Old), (4, HandedIn::Kept), (7, HandedIn::Kept), (6, HandedIn::Old)] {
            assert_eq!(writer.hand_in(&object(10, 3), status(synced)), expected, "{synced}");
        }
        let asked = term(&writer, 5, |asked| Some((200, asked.body.clone()))).await;
        assert_eq!(written(&asked), [7]);
        assert_eq!(asked[0].body["metadata"]["resourceVersion"], "10");
        assert_eq!(asked[0].body["status"]["shard"]["token"], "lease-uid/2");
        assert_eq!(writer.counts(), Counts { kept: 0, written: 1, ..Counts::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_leader_has_written_meanwhile_is_not_undone() {
        let writer = writer(Some(object(10, 3)));
        writer.hand_in(&object(10, 3), status(7));
        // The cache is old: the object bears 9 by now.
        let asked = term(&writer, 5, |asked| match asked.method {
            Method::GET => Some((200, json_of(12, 9))),
            _ => refusal(409, "Conflict"),
        });
        let asked = asked.await;
        assert_eq!(asked.iter().map(|asked| asked.method.as_str()).collect::<Vec<_>>(), ["PUT", "GET"]);
        assert_eq!(writer.counts(), Counts::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_forgets_what_it_sees_written_or_gone() {
        let writer = writer(Some(object(10, 3)));
        for change in [
            Observed::Applied(Arc::new(object(12, 7))),
            Observed::Deleted(Arc::new(object(12, 3))),
            Observed::Restarted(Vec::new()),
        ] {
            writer.hand_in(&object(10, 3), status(7));
            assert_eq!(writer.counts().kept, 1);
            if let Observed::Restarted(_) = change {
                for event in [Event::Init, Event::InitDone] {
                    writer.inner.store.take_in(event);
                }
            }
            writer.saw(&change);
            assert_eq!(writer.counts().kept, 0, "{change:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_of_an_object_that_is_not_kept_outlives_a_list() {
        let store = Store::keeping((), Form::as_it_is(|_| 100));
        let none = crate::config::Limits { object: 100, cache: 0 };
        store.limit(none);
        for event in [Event::Init, Event::InitApply(object(10, 3)), Event::InitDone] {
            store.take_in(event);
        }
        let writer = StatusWriter::cluster_wide(store, Limits::default());
        writer.hand_in(&object(10, 3), status(7));
        writer.saw(&Observed::Restarted(Vec::new()));
        assert_eq!(writer.counts().kept, 1);
        let asked = term(&writer, 5, |asked| match asked.method {
            Method::GET => Some((200, json_of(11, 3))),
            _ => Some((200, asked.body.clone())),
        });
        assert_eq!(written(&asked.await), [7]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_not_seen_yet_is_asked_for() {
        let writer = writer(None);
        writer.hand_in(&object(10, 3), status(7));
        let asked = term(&writer, 5, |asked| match asked.method {
            Method::GET => Some((200, json_of(11, 3))),
            _ => Some((200, asked.body.clone())),
        });
        assert_eq!(written(&asked.await), [7]);
        writer.hand_in(&object(10, 3), status(8));
        term(&writer, 5, |_| refusal(404, "NotFound")).await;
        assert_eq!(writer.counts().kept, 0, "gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_handed_in_just_before_the_drain_is_written_before_the_term_ends() {
        let writer = writer(Some(object(10, 0)));
        let handing = async {
            sleep(Duration::from_millis(900)).await;
            // Within the pace of one object, so that it would wait beyond the end.
            for synced in [1, 2, 3] {
                writer.hand_in(&object(10, 0), status(synced));
                sleep(Duration::from_millis(40)).await;
            }
        };
        let ended = term(&writer, 1, |asked| {
            let mut body = asked.body.clone();
            let version: u32 = body["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            body["metadata"]["resourceVersion"] = json!((version + 1).to_string());
            Some((200, body))
        });
        let (asked, ()) = futures::future::join(ended, handing).await;
        assert_eq!(written(&asked), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_tried_again_and_kept_beyond_its_term() {
        let writer = writer(Some(object(10, 0)));
        writer.hand_in(&object(10, 0), status(5));
        let asked = term(&writer, 10, |_| refusal(500, "InternalError")).await;
        assert!((3..=6).contains(&written(&asked).len()), "with growing pauses: {}", asked.len());
        assert_eq!(writer.counts().kept, 1);
        let asked = term(&writer, 60, |asked| Some((200, asked.body.clone()))).await;
        assert_eq!(written(&asked), [5]);
    }
}
