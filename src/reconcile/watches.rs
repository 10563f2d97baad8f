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
use crate::sharding::problem::is_unserved;

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

    /// Listens to a watch, which begins with the first who does: to what belongs to that shard, or to everything.
    pub fn listen(&self, query: &Query, shard: Option<&str>) -> Listener {
        let mut open = lock(&self.open);
        open.retain(|_, shared| shared.strong_count() > 0);
        let shared = open.get(query).and_then(Weak::upgrade).unwrap_or_else(|| {
            let shared = Arc::new(Shared::new(source(self.client.clone(), query.clone())));
            open.insert(query.clone(), Arc::downgrade(&shared));
            shared
        });
        drop(open);
        Listener::new(shared, shard)
    }
}

/// What is new in a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The first list is complete.
    Listed,
    /// An object has come, changed or gone: whom it belongs to by what is written on it, now or before.
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
    Unserved,
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
    unserved: bool,
    trouble: Option<String>,
    listed: bool,
    objects: BTreeMap<Place, Held>,
    of_owner: HashMap<String, BTreeSet<Place>>,
    relisted: Option<BTreeMap<Place, Held>>,
    ears: HashMap<u64, Ear>,
}

/// What a listener has not heard yet.
struct Ear {
    shard: Option<String>,
    news: VecDeque<News>,
}

impl Ear {
    fn tell(&mut self, news: &News) {
        // Whoever has not looked since needs no word twice.
        if self.news.back() != Some(news) {
            self.news.push_back(news.clone());
        }
    }
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
            unserved: false,
            trouble: None,
            listed: false,
            objects: BTreeMap::new(),
            of_owner: HashMap::new(),
            relisted: None,
            ears: HashMap::new(),
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
    fn new(shared: Arc<Shared>, shard: Option<&str>) -> Self {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&shared.state);
        let news = if state.listed { VecDeque::from([News::Listed]) } else { VecDeque::new() };
        state.ears.insert(number, Ear { shard: shard.map(str::to_owned), news });
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
            if let Some(news) = state.ears.get_mut(&self.number).and_then(|ear| ear.news.pop_front()) {
                return Poll::Ready(Some(news));
            }
            match state.events.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some(event)) => {
                    state.take_in(event);
                    let others: Vec<Waker> = {
                        let mut wakers = lock(&self.shared.wakers.0);
                        let told = state.ears.iter().filter(|(_, ear)| !ear.news.is_empty()).map(|(number, _)| number);
                        told.filter(|number| **number != self.number)
                            .filter_map(|number| wakers.remove(number))
                            .collect()
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
        lock(&self.shared.state).ears.remove(&self.number);
        // The watch may have been waiting for this one to look at it.
        Arc::clone(&self.shared.wakers).wake();
    }
}

/// Whether a watch shows all objects there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It has, and says what changes.
    Clear,
    /// The API server does not know the type: there are none.
    Unserved,
    /// The first list is not complete.
    Unlisted,
    /// It cannot be, and why.
    Troubled(String),
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

    /// How requests name the type, and where its objects live; `None` as long as the API server does not serve it.
    pub fn served(&self) -> Option<(ApiResource, Scope)> {
        self.look(|state| state.served.clone()).flatten()
    }

    /// Whether what is seen is all there is.
    pub fn sight(&self) -> Sight {
        let sight = |state: &mut State| match (&state.unserved, state.listed, &state.trouble) {
            (true, _, _) => Sight::Unserved,
            (false, true, _) => Sight::Clear,
            (false, false, Some(why)) => Sight::Troubled(why.clone()),
            (false, false, None) => Sight::Unlisted,
        };
        self.look(sight).unwrap_or(Sight::Unlisted)
    }

    /// An object as it was last seen.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Value> {
        let place = (namespace.map(str::to_owned), name.to_owned());
        self.look(|state| state.objects.get(&place).and_then(Held::value)).flatten()
    }

    /// Namespace and name of the objects that bear this uid as that of their owner, in that order.
    pub fn of_owner(&self, uid: &str) -> Vec<(Option<String>, String)> {
        self.look(|state| state.of_owner.get(uid).into_iter().flatten().cloned().collect()).unwrap_or_default()
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
    fn of(mut object: DynamicObject) -> Self {
        // Who else owns which fields is nobody's business here: only what we applied is compared.
        if let Some(managed) = &mut object.metadata.managed_fields {
            managed.retain(|entry| entry.manager.as_deref().is_some_and(|manager| manager.starts_with("leasehold/")));
        }
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
            Event::Served(resource, scope) => {
                self.unserved = false;
                self.served = Some((resource, scope));
            }
            Event::Unserved => {
                // Whoever waits to see everything has seen it.
                if !std::mem::replace(&mut self.unserved, true) {
                    self.tell(&News::Listed);
                }
            }
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
                self.relisted.get_or_insert_default().insert(place, Held::of(object));
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
                if let Some((before, now)) = self.put(object) {
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
        let mut all: BTreeSet<Option<Belonging>> = belongings.into_iter().collect();
        // That it is nobody's, or was not there, is news only if there is no other.
        if all.len() > 1 {
            all.remove(&None);
        }
        for belonging in all {
            let shard = belonging.as_ref().map(|belonging| belonging.shard.clone());
            let news = News::Changed(belonging);
            self.ears
                .values_mut()
                .filter(|ear| ear.shard.is_none() || ear.shard == shard)
                .for_each(|ear| ear.tell(&news));
        }
    }

    fn tell(&mut self, news: &News) {
        self.ears.values_mut().for_each(|ear| ear.tell(news));
    }
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
                let news = if is_unserved(&error) {
                    Event::Unserved
                } else {
                    Event::Trouble(format!("failed to discover {}: {}", query.of, chain(&error)))
                };
                let pause = tokio::time::sleep(UNSERVED.mul_f64(0.8 + 0.4 * fastrand::f64()));
                let waiting = stream::once(pause).filter_map(|()| std::future::ready(None));
                Some((stream::iter([news]).chain(waiting).boxed(), (client, query, false)))
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests end with what they spawn")]
mod tests {
    use futures::{FutureExt, channel::mpsc, poll};
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u64, owner: Option<&str>) -> DynamicObject {
        let mut object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string(), "uid": name},
        });
        if let Some(owner) = owner {
            object["metadata"]["labels"] = json!({SHARD: "widget", OWNER_UID: format!("{owner}-uid")});
            object["metadata"]["annotations"] = json!({OWNER: format!("ns/{owner}")});
        }
        serde_json::from_value(object).unwrap()
    }

    fn changed(owner: &str) -> News {
        let belonging =
            Belonging { shard: "widget".to_owned(), namespace: Some("ns".to_owned()), name: owner.to_owned() };
        News::Changed(Some(belonging))
    }

    /// A watch whose events are sent by hand.
    fn watch() -> (mpsc::UnboundedSender<Event>, Arc<Shared>) {
        let (sender, receiver) = mpsc::unbounded();
        (sender, Arc::new(Shared::new(receiver.boxed())))
    }

    fn send(sender: &mpsc::UnboundedSender<Event>, events: impl IntoIterator<Item = watcher::Event<DynamicObject>>) {
        for event in events {
            sender.unbounded_send(Event::Watched(event)).unwrap();
        }
    }

    fn list(objects: impl IntoIterator<Item = DynamicObject>) -> Vec<watcher::Event<DynamicObject>> {
        let all = objects.into_iter().map(watcher::Event::InitApply);
        [watcher::Event::Init].into_iter().chain(all).chain([watcher::Event::InitDone]).collect()
    }

    fn heard(listener: &mut Listener) -> Vec<News> {
        std::iter::from_fn(|| listener.next().now_or_never().flatten()).collect()
    }

    #[test]
    fn everybody_hears_of_every_change_and_whose_it_is() {
        let (sender, shared) = watch();
        let (mut one, mut other) = (Listener::new(Arc::clone(&shared), None), Listener::new(Arc::clone(&shared), None));
        send(&sender, list([object("a", 1, Some("w"))]));
        assert_eq!(heard(&mut one), [changed("w"), News::Listed]);
        send(&sender, [watcher::Event::Apply(object("a", 2, Some("v"))), watcher::Event::Delete(object("a", 3, None))]);
        assert_eq!(heard(&mut one), [changed("v"), changed("w"), changed("v")], "whose it was hears of it too");
        assert_eq!(heard(&mut other), [changed("w"), News::Listed, changed("v"), changed("w"), changed("v")]);
        assert_eq!(heard(&mut Listener::new(shared, None)), [News::Listed], "who comes later looks for itself");
    }

    #[test]
    fn who_listens_for_a_shard_hears_of_that_one_only() {
        let (sender, shared) = watch();
        let listen = |shard| Listener::new(Arc::clone(&shared), Some(shard));
        let (mut ours, mut others) = (listen("widget"), listen("gadget"));
        let mut labelled = object("b", 3, Some("g"));
        labelled.labels_mut().insert(SHARD.to_owned(), "gadget".to_owned());
        send(&sender, list([object("a", 1, Some("w")), object("c", 2, None)]));
        send(&sender, [watcher::Event::Apply(labelled.clone())]);
        assert_eq!(heard(&mut ours), [changed("w"), News::Listed]);
        let belonging = Belonging::of(&labelled);
        assert_eq!(heard(&mut others), [News::Listed, News::Changed(belonging.clone())]);
        // Whose it was hears of it too.
        send(&sender, [watcher::Event::Apply(object("b", 4, Some("w")))]);
        assert_eq!((heard(&mut ours), heard(&mut others)), (vec![changed("w")], vec![News::Changed(belonging)]));
    }

    #[test]
    fn a_new_list_tells_of_what_is_gone_and_of_what_is_new_only() {
        let (sender, shared) = watch();
        let mut listener = Listener::new(shared, None);
        send(&sender, list([object("a", 1, Some("w")), object("b", 2, Some("v")), object("c", 3, None)]));
        heard(&mut listener);
        send(&sender, list([object("a", 1, Some("w")), object("c", 4, None)]));
        assert_eq!(heard(&mut listener), [changed("v"), News::Changed(None)]);
        let objects = listener.objects();
        assert_eq!((objects.all().len(), objects.get(Some("ns"), "b")), (2, None));
        assert_eq!((objects.of_owner("w-uid").len(), objects.of_owner("v-uid").len()), (1, 0));
    }

    #[test]
    fn what_we_wrote_is_seen_at_once_and_its_event_is_no_news() {
        let (sender, shared) = watch();
        let mut listener = Listener::new(shared, None);
        send(&sender, list([object("a", 1, Some("w"))]));
        heard(&mut listener);
        let objects = listener.objects();
        objects.note(object("a", 5, Some("w")));
        let version = || objects.get(Some("ns"), "a").unwrap()["metadata"]["resourceVersion"].clone();
        assert_eq!(version(), "5");
        send(
            &sender,
            [watcher::Event::Apply(object("a", 4, Some("w"))), watcher::Event::Apply(object("a", 5, Some("w")))],
        );
        assert_eq!((heard(&mut listener), version()), (vec![], json!("5")), "an older one does not come back");
        send(&sender, [watcher::Event::Apply(object("a", 6, Some("w")))]);
        assert_eq!((heard(&mut listener), version()), (vec![changed("w")], json!("6")));
    }

    #[tokio::test]
    async fn whoever_drives_the_watch_may_go_and_the_others_go_on() {
        let (sender, shared) = watch();
        let (mut driver, mut other) = (Listener::new(Arc::clone(&shared), None), Listener::new(shared, None));
        let waiting = tokio::task::spawn(async move { other.next().await });
        tokio::task::yield_now().await;
        // The last to look is whom the watch wakes; it never looks again.
        assert!(poll!(driver.next()).is_pending());
        drop(driver);
        send(&sender, list([]));
        assert_eq!(waiting.await.unwrap(), Some(News::Listed));
    }

    #[tokio::test]
    async fn a_sleeping_listener_is_woken_by_what_another_has_read() {
        let (sender, shared) = watch();
        let (mut driver, mut other) = (Listener::new(Arc::clone(&shared), None), Listener::new(shared, None));
        let waiting = tokio::task::spawn(async move { other.next().await });
        tokio::task::yield_now().await;
        send(&sender, list([]));
        assert_eq!(driver.next().await, Some(News::Listed));
        assert_eq!(waiting.await.unwrap(), Some(News::Listed));
    }

    #[test]
    fn a_watch_ends_with_its_last_listener() {
        let (sender, shared) = watch();
        let (one, other) = (Listener::new(Arc::clone(&shared), None), Listener::new(shared, None));
        let objects = one.objects();
        drop(one);
        assert!(!sender.is_closed());
        drop(other);
        assert!(sender.is_closed());
        assert_eq!((objects.sight(), objects.all().len()), (Sight::Unlisted, 0), "who looks keeps nothing open");
    }

    #[test]
    fn a_type_that_is_not_served_has_no_objects_until_it_is() {
        let (sender, shared) = watch();
        let mut listener = Listener::new(shared, None);
        let objects = listener.objects();
        assert_eq!(objects.sight(), Sight::Unlisted);
        for _ in 0..2 {
            sender.unbounded_send(Event::Unserved).unwrap();
        }
        assert_eq!((heard(&mut listener), objects.sight()), (vec![News::Listed], Sight::Unserved));
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        sender.unbounded_send(Event::Served(resource, Scope::Namespaced)).unwrap();
        sender.unbounded_send(Event::Trouble("forbidden".to_owned())).unwrap();
        assert_eq!((heard(&mut listener), objects.sight()), (vec![], Sight::Troubled("forbidden".to_owned())));
        send(&sender, list([]));
        assert_eq!((heard(&mut listener), objects.sight()), (vec![News::Listed], Sight::Clear));
    }
}
