//! Watches that the kinds of a replica share: one of each query, however many kinds want it, closed with the last of them.
//!
//! Nothing is spawned: whoever waits for news drives the watch, and the others are woken. So a watch lives exactly as long as
//! those who listen. Its client is none of a term's, and only reads.
//!
//! Objects are kept as text, which takes a fraction of the memory of a tree, and are read when somebody looks at one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    core::ApiResource,
    discovery::{self, Scope},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::Value;
use tracing::warn;

use super::{
    apply::{OWNER, OWNER_UID, SHARD},
    children::Type,
    controller::chain,
};

/// Between two looks whether a type is served.
const UNSERVED: Duration = Duration::from_secs(10);
/// So many events at a time, then others get their turn.
const STRIDE: usize = 64;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Query {
    /// Type of the objects.
    pub of: Arc<Type>,
    /// Their namespace; `None` for all.
    pub namespace: Option<String>,
    /// A label selector; empty for all.
    pub labels: String,
    /// A field selector; empty for all.
    pub fields: String,
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.of)?;
        for (what, value) in [
            ("namespace", self.namespace.as_deref().unwrap_or_default()),
            ("labels", &self.labels),
            ("fields", &self.fields),
        ] {
            if !value.is_empty() {
                write!(f, ", {what} {value}")?;
            }
        }
        Ok(())
    }
}

/// All watches of a replica. Clones are handles on the same ones.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    open: Arc<Mutex<HashMap<Query, Weak<Shared>>>>,
}

impl Watches {
    /// No watch yet. The client shall do nothing but read: no term stands behind it.
    pub fn new(client: Client) -> Self {
        Self { client, open: Arc::default() }
    }

    /// Listens to a watch, which begins with the first who does.
    pub fn listen(&self, query: &Query) -> Listener {
        let mut open = lock(&self.open);
        open.retain(|_, shared| shared.strong_count() > 0);
        let shared = open.get(query).and_then(Weak::upgrade).unwrap_or_else(|| {
            let shared = Arc::new(Shared::new(source(self.client.clone(), query.clone())));
            open.insert(query.clone(), Arc::downgrade(&shared));
            shared
        });
        drop(open);
        Listener::new(shared)
    }

    /// How many watches are open.
    pub fn open(&self) -> usize {
        lock(&self.open).values().filter(|shared| shared.strong_count() > 0).count()
    }
}

/// What is new in a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The first list is complete.
    Listed,
    /// An object has come, changed or gone. Whom it belongs to by what is written on it, now or before:
    /// the Lease of the shard, and namespace and name of the owner.
    Changed(Option<Belonging>),
}

/// Whom an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Belonging {
    /// The Lease of the shard that wrote it.
    pub shard: String,
    /// Namespace of its owner.
    pub namespace: Option<String>,
    /// Name of its owner.
    pub name: String,
}

impl Belonging {
    fn of(object: &DynamicObject) -> Option<Self> {
        let shard = object.labels().get(SHARD)?.clone();
        let owner = object.annotations().get(OWNER)?;
        let (namespace, name) = match owner.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, owner.as_str()),
        };
        Some(Self { shard, namespace, name: name.to_owned() })
    }
}

#[expect(clippy::large_enum_variant, reason = "almost all are of the largest variant, and none is kept")]
enum Event {
    Served(ApiResource, Scope),
    Trouble(String),
    Watched(watcher::Event<DynamicObject>),
}

/// One watch. Dropped with the last listener.
struct Shared {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    next: AtomicU64,
}

struct State {
    events: BoxStream<'static, Event>,
    served: Option<(ApiResource, Scope)>,
    trouble: Option<String>,
    listed: bool,
    objects: BTreeMap<Place, Held>,
    of_owner: HashMap<String, BTreeSet<Place>>,
    relisted: Option<BTreeMap<Place, Held>>,
    queues: HashMap<u64, VecDeque<News>>,
}

/// Namespace and name.
type Place = (Option<String>, String);

/// An object as text.
struct Held {
    version: u64,
    owner_uid: Option<String>,
    belonging: Option<Belonging>,
    text: Box<[u8]>,
}

/// Wakes everybody who listens.
#[derive(Default)]
struct Wakers(Mutex<HashMap<u64, Waker>>);

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        // Taken out first: who is woken may come back at once.
        let all: Vec<Waker> = lock(&self.0).drain().map(|(_, waker)| waker).collect();
        all.into_iter().for_each(Waker::wake);
    }
}

impl Shared {
    fn new(events: BoxStream<'static, Event>) -> Self {
        let state = State {
            events,
            served: None,
            trouble: None,
            listed: false,
            objects: BTreeMap::new(),
            of_owner: HashMap::new(),
            relisted: None,
            queues: HashMap::new(),
        };
        Self { state: Mutex::new(state), wakers: Arc::default(), next: AtomicU64::default() }
    }
}

/// One who listens to a watch: what is new comes from the stream, what is there is asked for.
pub struct Listener {
    shared: Arc<Shared>,
    number: u64,
}

impl Listener {
    fn new(shared: Arc<Shared>) -> Self {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&shared.state);
        let first = if state.listed { VecDeque::from([News::Listed]) } else { VecDeque::new() };
        state.queues.insert(number, first);
        drop(state);
        Self { shared, number }
    }

    /// What looks at the objects, for whoever does not listen.
    pub fn objects(&self) -> Objects {
        Objects { shared: Arc::downgrade(&self.shared) }
    }
}

impl Stream for Listener {
    type Item = News;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<News>> {
        lock(&self.shared.wakers.0).insert(self.number, context.waker().clone());
        let mut state = lock(&self.shared.state);
        let waker = Waker::from(Arc::clone(&self.shared.wakers));
        for _ in 0..STRIDE {
            if let Some(news) = state.queues.get_mut(&self.number).and_then(VecDeque::pop_front) {
                return Poll::Ready(Some(news));
            }
            match state.events.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some(event)) => {
                    state.take_in(event);
                    // The others have news.
                    let others: Vec<Waker> = {
                        let mut wakers = lock(&self.shared.wakers.0);
                        let own = wakers.remove(&self.number);
                        let others = wakers.drain().map(|(_, waker)| waker).collect();
                        wakers.extend(own.map(|own| (self.number, own)));
                        others
                    };
                    others.into_iter().for_each(Waker::wake);
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.shared.wakers.0).remove(&self.number);
        lock(&self.shared.state).queues.remove(&self.number);
        // The watch may have been waiting for this one to look at it.
        Arc::clone(&self.shared.wakers).wake();
    }
}

/// The objects of a watch, for as long as somebody listens to it.
#[derive(Clone)]
pub struct Objects {
    shared: Weak<Shared>,
}

impl Objects {
    fn look<T>(&self, at: impl FnOnce(&mut State) -> T) -> Option<T> {
        let shared = self.shared.upgrade()?;
        let mut state = lock(&shared.state);
        Some(at(&mut state))
    }

    /// Whether the first list is complete.
    pub fn listed(&self) -> bool {
        self.look(|state| state.listed).unwrap_or(false)
    }

    /// How requests name the type, and where its objects live; `None` as long as the API server does not serve it.
    pub fn served(&self) -> Option<(ApiResource, Scope)> {
        self.look(|state| state.served.clone()).flatten()
    }

    /// What keeps the watch from seeing, if anything does.
    pub fn trouble(&self) -> Option<String> {
        self.look(|state| state.trouble.clone()).flatten()
    }

    /// An object as it was last seen.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Value> {
        let place = (namespace.map(str::to_owned), name.to_owned());
        self.look(|state| state.objects.get(&place).and_then(Held::value)).flatten()
    }

    /// The objects that bear this uid as that of their owner, in the order of namespace and name.
    pub fn of_owner(&self, uid: &str) -> Vec<Value> {
        let all = |state: &mut State| {
            let places = state.of_owner.get(uid).into_iter().flatten();
            places.filter_map(|place| state.objects.get(place)?.value()).collect()
        };
        self.look(all).unwrap_or_default()
    }

    /// All objects, in the order of namespace and name.
    pub fn all(&self) -> Vec<Value> {
        self.look(|state| state.objects.values().filter_map(Held::value).collect()).unwrap_or_default()
    }

    /// Takes in an object as a write of our own has left it, so that who looks next sees it before the watch does.
    /// The watch says nothing of it then.
    pub fn note(&self, object: DynamicObject) {
        self.look(|state| _ = state.put(object));
    }
}

impl Held {
    fn of(object: DynamicObject) -> Self {
        let owner_uid = object.labels().get(OWNER_UID).cloned();
        Self {
            version: object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
            belonging: Belonging::of(&object),
            owner_uid,
            text: serde_json::to_vec(&object).unwrap_or_default().into_boxed_slice(),
        }
    }

    fn value(&self) -> Option<Value> {
        serde_json::from_slice(&self.text).ok()
    }
}

fn place(object: &DynamicObject) -> Place {
    (object.namespace(), object.name_any())
}

impl State {
    fn take_in(&mut self, event: Event) {
        match event {
            Event::Served(resource, scope) => self.served = Some((resource, scope)),
            Event::Trouble(why) => self.trouble = Some(why),
            Event::Watched(event) => {
                self.trouble = None;
                self.watched(event);
            }
        }
    }

    fn watched(&mut self, event: watcher::Event<DynamicObject>) {
        match event {
            watcher::Event::Init => self.relisted = Some(BTreeMap::new()),
            watcher::Event::InitApply(object) => {
                let place = place(&object);
                self.relisted.get_or_insert_default().insert(place, Held::of(lean(object)));
            }
            watcher::Event::InitDone => {
                let listed = self.relisted.take().unwrap_or_default();
                let gone: Vec<Place> =
                    self.objects.keys().filter(|place| !listed.contains_key(*place)).cloned().collect();
                for place in gone {
                    let belonging = self.remove(&place);
                    self.tell_changed([belonging]);
                }
                for (place, held) in listed {
                    self.insert(place, held);
                }
                if !std::mem::replace(&mut self.listed, true) {
                    self.tell(&News::Listed);
                }
            }
            watcher::Event::Apply(object) => {
                if let Some((before, now)) = self.put(lean(object)) {
                    self.tell_changed([before, now]);
                }
            }
            watcher::Event::Delete(object) => {
                let belonging = self.remove(&place(&object));
                self.tell_changed([belonging]);
            }
        }
    }

    /// Keeps the object, if it is newer than what is there. To whom it belonged, and belongs.
    fn put(&mut self, object: DynamicObject) -> Option<(Option<Belonging>, Option<Belonging>)> {
        let place = place(&object);
        let held = Held::of(object);
        // Versions count up: https://kep.k8s.io/5504. What a write of ours left is there before its event comes.
        if self.objects.get(&place).is_some_and(|known| known.version >= held.version) {
            return None;
        }
        let now = held.belonging.clone();
        let before = self.remove(&place);
        self.keep(place, held);
        Some((before, now))
    }

    fn insert(&mut self, place: Place, held: Held) {
        if self.objects.get(&place).is_some_and(|known| known.version >= held.version) {
            return;
        }
        let now = held.belonging.clone();
        let before = self.remove(&place);
        self.keep(place, held);
        self.tell_changed([before, now]);
    }

    fn keep(&mut self, place: Place, held: Held) {
        if let Some(uid) = &held.owner_uid {
            self.of_owner.entry(uid.clone()).or_default().insert(place.clone());
        }
        self.objects.insert(place, held);
    }

    fn remove(&mut self, place: &Place) -> Option<Belonging> {
        let held = self.objects.remove(place)?;
        if let Some(uid) = &held.owner_uid
            && let Some(places) = self.of_owner.get_mut(uid)
        {
            places.remove(place);
            if places.is_empty() {
                self.of_owner.remove(uid);
            }
        }
        held.belonging
    }

    fn tell_changed(&mut self, belongings: impl IntoIterator<Item = Option<Belonging>>) {
        let all: BTreeSet<Option<Belonging>> = belongings.into_iter().collect();
        for belonging in all {
            self.tell(&News::Changed(belonging));
        }
    }

    fn tell(&mut self, news: &News) {
        for queue in self.queues.values_mut() {
            // Whoever has not looked since needs no word twice.
            if queue.back() != Some(news) {
                queue.push_back(news.clone());
            }
        }
    }
}

/// Without what others wrote about their fields: only what we applied is compared.
fn lean(mut object: DynamicObject) -> DynamicObject {
    if let Some(managed) = &mut object.metadata.managed_fields {
        managed.retain(|entry| entry.manager.as_deref().is_some_and(|manager| manager.starts_with("leasehold/")));
    }
    object
}

/// Looks for the type until it is served, then watches.
fn source(client: Client, query: Query) -> BoxStream<'static, Event> {
    let find = stream::unfold((client, query, false), |(client, query, found)| async move {
        if found {
            return None;
        }
        match discovery::pinned_kind(&client, &query.of.gvk()).await {
            Ok((resource, capabilities)) => {
                let api: Api<DynamicObject> = match &query.namespace {
                    Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                    None => Api::all_with(client.clone(), &resource),
                };
                let config = watcher::Config {
                    label_selector: some(&query.labels),
                    field_selector: some(&query.fields),
                    ..watcher::Config::default()
                };
                let watched = watcher(api, config).default_backoff().map({
                    let name = query.to_string();
                    move |item| match item {
                        Ok(event) => Event::Watched(event),
                        Err(error) => {
                            let why = chain(&error);
                            warn!(watch = name, error = why, "watch failed");
                            Event::Trouble(why)
                        }
                    }
                });
                let served = stream::iter([Event::Served(resource, capabilities.scope)]);
                Some((served.chain(watched).boxed(), (client, query, true)))
            }
            Err(error) => {
                let why = format!("{} is not served: {}", query.of, chain(&error));
                let pause = tokio::time::sleep(UNSERVED.mul_f64(0.8 + 0.4 * fastrand::f64()));
                let trouble = stream::iter([Event::Trouble(why)]);
                let waiting = stream::once(pause).filter_map(|()| std::future::ready(None));
                Some((trouble.chain(waiting).boxed(), (client, query, false)))
            }
        }
    });
    find.flatten().boxed()
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
