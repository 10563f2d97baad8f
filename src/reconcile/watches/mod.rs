//! Watches that the kinds of a replica share: one of each query, however many kinds want it, closed with the last of them.
//!
//! [`source`] asks the API server. [`state`] keeps the objects, and the events that a [`Subscriber`] has not taken yet.
//!
//! Nothing is spawned: the subscriber that is polled drives the watch, and the others are woken. So a watch lives exactly as long as
//! its subscribers. Its client is none of a term's, and only reads.

mod room;
mod source;
mod state;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::Stream;
use kube::{Client, Resource, core::ApiResource, discovery::Scope};
use serde::Serialize;
use serde_json::Value;

pub(super) use self::room::RELATED;
use self::room::Rooms;
pub use self::state::{Event, Readiness};
use self::state::{Held, Opening, Selection, Shard, State};
use super::{apply::SHARD, children::Type, name::Name};
use crate::ops::work::WatchState;

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

impl Query {
    /// Of the objects that it asks for, those of these shards.
    fn within(&self, selection: &Selection) -> Self {
        let Selection::Shards(shards) = selection else { return self.clone() };
        let shards = format!("{SHARD} in ({})", shards.iter().map(|shard| &**shard).collect::<Vec<_>>().join(","));
        let labels = if self.labels.is_empty() { shards } else { format!("{},{shards}", self.labels) };
        Self { labels, ..self.clone() }
    }
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
    open: Arc<Mutex<Open>>,
    rooms: Rooms,
}

/// By query, and by whether it is for certain shards.
type Open = HashMap<(Query, bool), Weak<Shared>>;

impl Watches {
    /// No watch yet. The client shall do nothing but read: no term stands behind it.
    pub fn new(client: Client) -> Self {
        Self { client, open: Arc::default(), rooms: Rooms::default() }
    }

    /// Sets how many bytes are kept of the children of a kind of that shard.
    pub fn limit(&self, shard: &str, kind: &str, bytes: u64) {
        self.rooms.limit(shard, kind, bytes);
    }

    /// Of how many children of a shard nothing but the name is kept, because there is no room.
    pub fn missing(&self, shard: &str) -> usize {
        self.rooms.of(&Arc::from(shard)).missing()
    }

    /// Subscribes to a watch, which begins with its first subscriber: to the objects that bear that shard, or to all.
    pub fn subscribe(&self, query: &Query, shard: Option<&str>) -> Subscriber {
        let mut open = lock(&self.open);
        open.retain(|_, shared| shared.strong_count() > 0);
        let key = (query.clone(), shard.is_some());
        let shared = open.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let (client, query) = (self.client.clone(), query.clone());
            let opening =
                move |selection: &Selection, after| source::events(client.clone(), query.within(selection), after);
            let shared = Arc::new(Shared::new(Box::new(opening), self.rooms.clone()));
            open.insert(key, Arc::downgrade(&shared));
            shared
        });
        drop(open);
        Subscriber::new(shared, shard)
    }
}

/// One watch. Dropped with the last subscriber.
struct Shared {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    next: AtomicU64,
}

/// Wakes all subscribers.
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
    fn new(opening: Opening, rooms: Rooms) -> Self {
        Self { state: Mutex::new(State::new(opening, rooms)), wakers: Arc::default(), next: AtomicU64::default() }
    }
}

/// A subscriber of a watch: the stream has the events, [`objects`](Self::objects) has the objects.
pub struct Subscriber {
    shared: Arc<Shared>,
    number: u64,
    shard: Option<Shard>,
}

impl Subscriber {
    fn new(shared: Arc<Shared>, shard: Option<&str>) -> Self {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let shard = shard.map(Shard::from);
        lock(&shared.state).subscribe(number, shard.clone());
        Self { shared, number, shard }
    }

    /// The objects, to look at without subscribing.
    pub fn objects(&self) -> Objects {
        Objects { shared: Arc::downgrade(&self.shared), shard: self.shard.clone() }
    }
}

impl Stream for Subscriber {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        lock(&self.shared.wakers.0).insert(self.number, context.waker().clone());
        let mut state = lock(&self.shared.state);
        let waker = Waker::from(Arc::clone(&self.shared.wakers));
        for _ in 0..STRIDE {
            if let Some(event) =
                state.subscriptions.get_mut(&self.number).and_then(|subscription| subscription.events.pop_front())
            {
                return Poll::Ready(Some(event));
            }
            match state.poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(true) => {
                    let others: Vec<Waker> = {
                        let mut wakers = lock(&self.shared.wakers.0);
                        let told = state
                            .subscriptions
                            .iter()
                            .filter(|(_, subscription)| !subscription.events.is_empty())
                            .map(|(number, _)| number);
                        told.filter(|number| **number != self.number)
                            .filter_map(|number| wakers.remove(number))
                            .collect()
                    };
                    others.into_iter().for_each(Waker::wake);
                }
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        lock(&self.shared.wakers.0).remove(&self.number);
        lock(&self.shared.state).unsubscribe(self.number);
        // The watch may have been waiting for this one to look at it.
        Arc::clone(&self.shared.wakers).wake();
    }
}

/// The objects of a watch, for as long as it has a subscriber.
#[derive(Clone)]
pub struct Objects {
    shared: Weak<Shared>,
    shard: Option<Shard>,
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

    /// Whether the objects are all that the API server has of the subscriber's.
    pub fn readiness(&self) -> Readiness {
        self.look(|state| state.readiness(self.shard.as_ref())).unwrap_or(Readiness::Unlisted)
    }

    /// For how long the watch has failed, and how often.
    pub fn health(&self) -> WatchState {
        self.look(|state| state.health(self.shard.as_ref())).unwrap_or_default()
    }

    /// An object as the watch, or a write of ours, has last shown it.
    pub fn get(&self, name: &Name) -> Option<Value> {
        self.look(|state| state.objects.get(name).and_then(Held::value)).flatten()
    }

    /// The objects that bear this uid as that of their owner, in no order.
    pub fn of_owner(&self, uid: &str) -> Vec<Name> {
        self.look(|state| state.of_owner.get(uid).cloned()).flatten().unwrap_or_default()
    }

    /// Of the objects that bear this uid as that of their owner, those that there is no room for: they have to be read.
    pub fn missing(&self, uid: &str) -> Vec<Name> {
        let of = |state: &mut State| {
            let names = state.of_owner.get(uid)?;
            let is_missing = |name: &&Name| state.objects.get(name).is_some_and(Held::is_missing);
            Some(names.iter().filter(is_missing).cloned().collect())
        };
        self.look(of).flatten().unwrap_or_default()
    }

    /// How many bytes all of them take as text, with those that there is no room for.
    pub fn bytes(&self) -> u64 {
        self.look(|state| state.bytes).unwrap_or_default()
    }

    /// All objects, in the order of namespace and name.
    pub fn all(&self) -> Vec<Value> {
        self.look(|state| state.objects.values().filter_map(Held::value).collect()).unwrap_or_default()
    }

    /// The first object that is too deep to be looked into.
    pub(in crate::reconcile) fn too_deep(&self) -> Option<Name> {
        let find = |state: &mut State| {
            let mut all = state.objects.iter();
            all.find(|(_, held)| held.is_too_deep()).map(|(name, _)| name.clone())
        };
        self.look(find).flatten()
    }

    /// Takes in an object as a write of our own has left it, so that who looks next sees it before the watch does.
    /// The watch says nothing of it then.
    pub fn note(&self, object: impl Resource + Serialize) {
        self.look(|state| _ = state.put(object));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
