//! The objects of a watch, and the events that each subscriber has not taken yet. No IO.
//!
//! For the objects of shards, the API server picks out those of the shards that have a subscriber. A further shard is listed
//! and watched by a source of its own at first; when none has come for a while, one source for all takes the place of the others.
//!
//! Objects are kept as text, which takes a fraction of the memory of a tree, and are parsed when a pass looks at one.
//! Of those for which there is no [`room`](super::room) the name is kept, and how much they weigh.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{Resource, ResourceExt, core::ApiResource, discovery::Scope, runtime::watcher};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    super::{
        apply::{OWNER, OWNER_UID, SHARD},
        name::Name,
        raw::{self, Raw},
        store,
        weight::trim_annotations,
    },
    room::{Room, Rooms, Taken},
    source::SourceEvent,
};
use crate::ops::work::{Failing, WatchState};

/// What is new in a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first list of the subscriber's objects is complete, or the objects have grown old because the watch fails.
    Listed,
    /// An object has come, changed or gone: whose it is by what is written on it, now or before.
    Changed(Option<Name>),
}

/// Whether a watch shows all objects that the API server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does, and follows their changes.
    Ready,
    /// The API server does not know the type: there are none.
    Unserved,
    /// The first list is not complete.
    Unlisted,
    /// The first list fails, and why.
    Failing(String),
    /// The first list was complete, and the watch has failed for a while since: it does not show what has changed, and why.
    Stale(String),
}

/// Which of the objects of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    All,
    Shards(BTreeSet<Shard>),
}

/// Name of a shard's Lease.
pub(super) type Shard = Arc<str>;

impl Selection {
    /// Whether it shows what that subscriber wants; `None`: all.
    fn covers(&self, wanted: Option<&Shard>) -> bool {
        match (self, wanted) {
            (Self::All, _) => true,
            (Self::Shards(shards), Some(shard)) => shards.contains(shard),
            (Self::Shards(_), None) => false,
        }
    }

    /// The shard that an object bears, if that is in the selection.
    fn shard_of(&self, object: &impl Resource) -> Option<Option<Shard>> {
        let borne = object.labels().get(SHARD).map(String::as_str);
        match self {
            Self::All => Some(borne.map(Shard::from)),
            Self::Shards(shards) => Some(Some(Arc::clone(shards.get(borne?)?))),
        }
    }

    fn is_of_shards(&self) -> bool {
        matches!(self, Self::Shards(_))
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Shards(shards) if shards.is_empty())
    }

    fn without(&mut self, shard: &Shard) {
        if let Self::Shards(shards) = self {
            shards.remove(shard);
        }
    }
}

/// Opens a watch of so much, after that time.
pub(super) type Opening = Box<dyn Fn(&Selection, Duration) -> BoxStream<'static, SourceEvent> + Send>;

/// How long no further shard must have come before the sources are joined: that lists everything once more.
const QUIET: Duration = Duration::from_secs(15);

pub(super) struct State {
    opening: Opening,
    sources: Vec<Source>,
    /// The one whose turn it is.
    turn: usize,
    /// What takes the place of all of them when it has listed.
    joining: Option<Source>,
    pub(super) served: Option<(ApiResource, Scope)>,
    unserved: bool,
    pub(super) objects: BTreeMap<Name, Held>,
    rooms: Rooms,
    /// For what is of no shard.
    room: Arc<Room>,
    /// How many bytes of text they are.
    pub(super) bytes: u64,
    pub(super) of_owner: HashMap<Arc<str>, Vec<Name>>,
    pub(super) subscriptions: HashMap<u64, Subscription>,
    /// There may be objects out of the selection.
    untidy: bool,
    /// How many requests have failed.
    failures: u64,
}

struct Source {
    events: BoxStream<'static, SourceEvent>,
    selection: Selection,
    listed: bool,
    /// A list that is not complete; `None`: as the object is known.
    listing: BTreeMap<Name, Option<Held>>,
    trouble: Option<Trouble>,
}

/// A watch that fails, and tries again.
struct Trouble {
    why: String,
    failing: Failing,
}

/// A watch that has failed for so long shows what was, and not what is.
const STALE: Duration = Duration::from_secs(10);

impl Trouble {
    fn is_stale(&self, now: Instant) -> bool {
        self.failing.last - self.failing.since >= STALE && self.failing.lasts(now)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "for how long a watch has failed decides what is reported, and nothing else"
)]
fn now() -> Instant {
    Instant::now()
}

/// The events that a subscriber has not taken yet.
pub(super) struct Subscription {
    shard: Option<Shard>,
    listed: bool,
    pub(super) events: VecDeque<Event>,
}

impl Subscription {
    fn tell(&mut self, event: Event) {
        // A subscriber that has not looked since needs the same event only once.
        if self.events.back() != Some(&event) {
            self.events.push_back(event);
        }
    }
}

/// An object as text.
pub(super) struct Held {
    version: u64,
    shard: Option<Shard>,
    owner: Option<Name>,
    owner_uid: Option<Arc<str>>,
    bytes: u64,
    text: Text,
}

enum Text {
    /// With the room that it takes.
    Kept { text: Box<[u8]>, _room: Taken },
    /// There is no room for it, which counts as long as it is so.
    NotKept { _none: Taken },
    /// It is too deep to be looked into.
    TooDeep,
    /// None of ours has written it, so it is not looked into.
    Unneeded,
}

/// Whose an object was, or is: its shard and its owner.
type Belonging = (Option<Shard>, Option<Name>);

impl Held {
    /// Of the objects of shards, which are children, what none of us has written is a copy that bears our labels: it may
    /// be anybody's and of any size, so it is known by its name only.
    fn of(mut object: impl Resource + Serialize, shard: Option<Shard>, is_child: bool, room: &Arc<Room>) -> Self {
        trim_annotations(object.meta_mut());
        // Only what we wrote is compared. Of the entries of others their place and their writer are kept, and not the fields.
        let mut is_written = false;
        for entry in object.meta_mut().managed_fields.iter_mut().flatten() {
            if entry.manager.as_deref().is_some_and(|manager| manager.starts_with("leasehold/")) {
                is_written = true;
            } else {
                *entry = ManagedFieldsEntry {
                    manager: entry.manager.take(),
                    operation: entry.operation.take(),
                    subresource: entry.subresource.take(),
                    ..ManagedFieldsEntry::default()
                };
            }
        }
        let (bytes, text) = match is_written || !is_child {
            true => {
                let text = serde_json::to_vec(&object).unwrap_or_default().into_boxed_slice();
                let bytes = text.len() as u64;
                match room.take(bytes) {
                    _ if raw::is_deep(&text) => (bytes, Text::TooDeep),
                    Ok(_room) => (bytes, Text::Kept { text, _room }),
                    Err(_none) => (bytes, Text::NotKept { _none }),
                }
            }
            false => (0, Text::Unneeded),
        };
        Self {
            version: version(&object),
            bytes,
            text,
            owner: object.annotations().get(OWNER).map(|owner| Name::parse(owner)),
            owner_uid: object.labels().get(OWNER_UID).map(|uid| Arc::from(uid.as_str())),
            shard,
        }
    }

    pub(super) fn value(&self) -> Option<Value> {
        match &self.text {
            Text::Kept { text, .. } => serde_json::from_slice(text).ok(),
            Text::NotKept { .. } | Text::TooDeep | Text::Unneeded => None,
        }
    }

    /// Whether it has to be read. Of one that is too deep, that fails, and so do the passes of its owner alone.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.text, Text::NotKept { .. } | Text::TooDeep)
    }

    pub(super) fn is_too_deep(&self) -> bool {
        matches!(self.text, Text::TooDeep)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn belonging(&self) -> Belonging {
        (self.shard.clone(), self.owner.clone().filter(|_| self.shard.is_some()))
    }
}

fn version(object: &impl Resource) -> u64 {
    store::version(object.meta()).unwrap_or_default()
}

impl Source {
    fn new(events: BoxStream<'static, SourceEvent>, selection: Selection) -> Self {
        Self { events, selection, listed: false, listing: BTreeMap::new(), trouble: None }
    }

    /// Takes in what is of a list. Returns what is not, and `InitDone`.
    fn list(
        &mut self,
        event: watcher::Event<Raw>,
        known: &BTreeMap<Name, Held>,
        room_of: impl FnOnce(Option<&Shard>) -> Arc<Room>,
    ) -> Option<watcher::Event<Raw>> {
        // That a list begins is no sign that it will come.
        if !matches!(event, watcher::Event::Init) {
            self.trouble = None;
        }
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                if let Some(shard) = self.selection.shard_of(&object) {
                    let name = Name::of(&object);
                    let is_known = known.get(&name).is_some_and(|known| known.version >= version(&object));
                    let is_child = self.selection.is_of_shards();
                    let held = (!is_known).then(|| {
                        let room = room_of(shard.as_ref().filter(|_| is_child));
                        Held::of(object, shard, is_child, &room)
                    });
                    self.listing.insert(name, held);
                }
            }
            other => return Some(other),
        }
        None
    }
}

/// Where an object of that shard is kept; `None`: of no shard.
fn room_of(shard: Option<&Shard>, rooms: &Rooms, related: &Arc<Room>) -> Arc<Room> {
    shard.map_or_else(|| Arc::clone(related), |shard| rooms.of(shard))
}

impl State {
    /// Without subscribers, and with nothing watched.
    pub(super) fn new(opening: Opening, rooms: Rooms) -> Self {
        let room = rooms.of_related();
        Self {
            rooms,
            room,
            opening,
            sources: Vec::new(),
            turn: 0,
            joining: None,
            served: None,
            unserved: false,
            objects: BTreeMap::new(),
            bytes: 0,
            of_owner: HashMap::new(),
            subscriptions: HashMap::new(),
            untidy: false,
            failures: 0,
        }
    }

    /// Adds a subscriber: to the objects that bear that shard, or to all.
    pub(super) fn subscribe(&mut self, number: u64, shard: Option<Shard>) {
        if self.source_of(shard.as_ref()).is_none() {
            let selection = shard.clone().map_or(Selection::All, |shard| Selection::Shards([shard].into()));
            self.sources.push(Source::new((self.opening)(&selection, Duration::ZERO), selection));
        }
        self.subscriptions.insert(number, Subscription { shard, listed: false, events: VecDeque::new() });
        if self.sources.len() > 1 {
            let shards = self.subscriptions.values().filter_map(|subscription| subscription.shard.clone()).collect();
            let all = Selection::Shards(shards);
            self.joining = Some(Source::new((self.opening)(&all, QUIET), all));
        }
        self.tell_listed();
    }

    fn source_of(&self, shard: Option<&Shard>) -> Option<&Source> {
        self.sources.iter().find(|source| source.selection.covers(shard))
    }

    /// Takes the next event in; `false`: there will be none.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        self.tidy();
        let count = self.sources.len();
        for number in (0..count).map(|step| (self.turn + step) % count) {
            let Some(source) = self.sources.get_mut(number) else { continue };
            match source.events.poll_next_unpin(context) {
                Poll::Ready(Some(event)) => {
                    self.turn = number + 1;
                    self.take_in(number, event);
                    return Poll::Ready(true);
                }
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Pending => {}
            }
        }
        if let Some(joining) = &mut self.joining
            && let Poll::Ready(Some(event)) = joining.events.poll_next_unpin(context)
        {
            self.take_in_joining(event);
            return Poll::Ready(true);
        }
        Poll::Pending
    }

    pub(super) fn unsubscribe(&mut self, number: u64) {
        let Some(subscription) = self.subscriptions.remove(&number) else { return };
        if let Some(shard) = subscription.shard
            && !self.subscriptions.values().any(|subscription| subscription.shard.as_ref() == Some(&shard))
        {
            self.sources.iter_mut().chain(&mut self.joining).for_each(|source| source.selection.without(&shard));
            self.sources.retain(|source| !source.selection.is_nothing());
            self.joining.take_if(|_| self.sources.len() < 2);
            self.untidy = true;
        }
    }

    /// Forgets what has no subscriber any more. Not when the subscriber is dropped: that must not take long.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy) {
            let sources = &self.sources;
            let is_wanted = |held: &Held| sources.iter().any(|source| source.selection.covers(held.shard.as_ref()));
            self.objects.retain(|_, held| is_wanted(held));
            self.bytes = self.objects.values().map(Held::bytes).sum();
            let objects = &self.objects;
            self.of_owner.retain(|_, names| {
                names.retain(|name| objects.contains_key(name));
                !names.is_empty()
            });
        }
    }

    pub(super) fn readiness(&self, shard: Option<&Shard>) -> Readiness {
        match self.source_of(shard) {
            _ if self.unserved => Readiness::Unserved,
            Some(source) if source.listed => match &source.trouble {
                Some(trouble) if trouble.is_stale(now()) => Readiness::Stale(trouble.why.clone()),
                _ => Readiness::Ready,
            },
            Some(Source { trouble: Some(trouble), .. }) => Readiness::Failing(trouble.why.clone()),
            _ => Readiness::Unlisted,
        }
    }

    /// For how long the watch of that shard has failed, and how often.
    pub(super) fn health(&self, shard: Option<&Shard>) -> WatchState {
        let failing = self.source_of(shard).and_then(|source| source.trouble.as_ref()).map(|trouble| trouble.failing);
        let failing_since = failing.filter(|failing| failing.lasts(now())).map(|failing| failing.since);
        WatchState { failing_since, failures: self.failures }
    }

    /// Until it has listed there is nothing in it that the others do not say.
    fn take_in_joining(&mut self, event: SourceEvent) {
        if let SourceEvent::Watched(event) = event
            && let Some(joining) = &mut self.joining
            && joining.list(event, &self.objects, |shard| room_of(shard, &self.rooms, &self.room)).is_some()
        {
            self.sources = self.joining.take().into_iter().collect();
            self.take_over(0);
        }
    }

    fn take_in(&mut self, number: usize, event: SourceEvent) {
        let Some(source) = self.sources.get_mut(number) else { return };
        match event {
            SourceEvent::Served(resource, scope) => {
                // What is listed now is news for those who were told that there is nothing.
                if std::mem::take(&mut self.unserved) {
                    self.subscriptions.values_mut().for_each(|subscription| subscription.listed = false);
                }
                self.served = Some((resource, scope));
            }
            SourceEvent::Unserved => {
                // What there was went with its CRD.
                source.listing.clear();
                self.take_over(number);
                if let Some(source) = self.sources.get_mut(number) {
                    source.listed = false;
                }
                self.served = None;
                // A subscriber that waits for the list has all of it now.
                self.unserved = true;
                self.tell_listed();
            }
            SourceEvent::Trouble(why) => {
                self.failures += 1;
                let now = now();
                let before = source.trouble.take();
                let was_stale = before.as_ref().is_some_and(|trouble| trouble.is_stale(now));
                let trouble = Trouble { why, failing: Failing::again(before.map(|trouble| trouble.failing), now) };
                let is_news = source.listed && trouble.is_stale(now) && !was_stale;
                source.trouble = Some(trouble);
                if is_news {
                    // All objects have to say so.
                    let selection = source.selection.clone();
                    let concerned = self
                        .subscriptions
                        .values_mut()
                        .filter(|subscription| subscription.listed && selection.covers(subscription.shard.as_ref()));
                    concerned.for_each(|subscription| subscription.tell(Event::Listed));
                }
            }
            SourceEvent::Watched(event) => {
                match source.list(event, &self.objects, |shard| room_of(shard, &self.rooms, &self.room)) {
                    None | Some(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Some(watcher::Event::InitDone) => self.take_over(number),
                    Some(watcher::Event::Apply(object)) => {
                        if let Some(belongings) = self.put(object) {
                            self.tell_changed(belongings);
                        }
                    }
                    Some(watcher::Event::Delete(object)) => {
                        let name = Name::of(&object);
                        // An object that has gone to another shard has left this source, and may have come by the other one before.
                        let is_of_it = |held: &Held| source.selection.covers(held.shard.as_ref());
                        if self.objects.get(&name).is_none_or(is_of_it) {
                            let before = self.remove(&name);
                            self.tell_changed([before.unwrap_or_default()]);
                        }
                    }
                }
            }
        }
    }

    /// What a source has listed is what there is within its selection.
    fn take_over(&mut self, number: usize) {
        let Some(source) = self.sources.get_mut(number) else { return };
        source.listed = true;
        let listed = std::mem::take(&mut source.listing);
        let is_gone =
            |(name, held): &(&Name, &Held)| source.selection.covers(held.shard.as_ref()) && !listed.contains_key(*name);
        let gone: Vec<Name> = self.objects.iter().filter(is_gone).map(|(name, _)| name.clone()).collect();
        for name in gone {
            let before = self.remove(&name);
            self.tell_changed([before.unwrap_or_default()]);
        }
        for (name, held) in listed.into_iter().filter_map(|(name, held)| Some((name, held?))) {
            if let Some(belongings) = self.keep(name, held) {
                self.tell_changed(belongings);
            }
        }
        self.tell_listed();
    }

    /// Takes an object in. Whose it was and is, if it is news.
    pub(super) fn put(&mut self, object: impl Resource + Serialize) -> Option<[Belonging; 2]> {
        let name = Name::of(&object);
        let is_child = self.sources.iter().any(|source| source.selection.is_of_shards());
        match self.sources.iter().find_map(|source| source.selection.shard_of(&object)) {
            Some(shard) => {
                let room = room_of(shard.as_ref().filter(|_| is_child), &self.rooms, &self.room);
                self.keep(name, Held::of(object, shard, is_child, &room))
            }
            // It was of a shard that we watch, and is not any more.
            None => self.remove(&name).map(|before| [before, Belonging::default()]),
        }
    }

    /// Keeps the object, if it is newer than what is there. Whose it was and is.
    fn keep(&mut self, name: Name, held: Held) -> Option<[Belonging; 2]> {
        // What a write of ours left is there before its event comes.
        if self.objects.get(&name).is_some_and(|known| known.version >= held.version) {
            return None;
        }
        let before = self.remove(&name).unwrap_or_default();
        if let Some(uid) = &held.owner_uid {
            self.of_owner.entry(Arc::clone(uid)).or_default().push(name.clone());
        }
        let now = held.belonging();
        self.bytes += held.bytes();
        self.objects.insert(name, held);
        Some([before, now])
    }

    fn remove(&mut self, name: &Name) -> Option<Belonging> {
        let held = self.objects.remove(name)?;
        self.bytes -= held.bytes();
        if let Some(uid) = &held.owner_uid
            && let Some(names) = self.of_owner.get_mut(uid)
        {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.of_owner.remove(uid);
            }
        }
        Some(held.belonging())
    }

    fn tell_changed(&mut self, belongings: impl IntoIterator<Item = Belonging>) {
        let mut all: BTreeSet<Belonging> = belongings.into_iter().collect();
        // That it has no owner, or was not there, is an event only if there is no other.
        if all.len() > 1 {
            all.retain(|(shard, owner)| shard.is_some() || owner.is_some());
        }
        for (shard, owner) in all {
            let concerned = self
                .subscriptions
                .values_mut()
                .filter(|subscription| subscription.shard.is_none() || subscription.shard == shard);
            concerned.for_each(|subscription| subscription.tell(Event::Changed(owner.clone())));
        }
    }

    /// Sends `Listed` to each subscriber whose objects are complete, once.
    fn tell_listed(&mut self) {
        let (unserved, sources) = (self.unserved, &self.sources);
        for subscription in self.subscriptions.values_mut().filter(|subscription| !subscription.listed) {
            let mut listed = sources.iter().filter(|source| source.listed);
            if unserved || listed.any(|source| source.selection.covers(subscription.shard.as_ref())) {
                subscription.listed = true;
                subscription.tell(Event::Listed);
            }
        }
    }
}
