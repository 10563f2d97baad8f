//! What a watch has shown, and who has not heard of it yet. No IO.
//!
//! A watch for the objects of shards shows those of the shards that somebody listens for, and no others: the API server picks
//! them out. When a further shard is wanted, a wider watch is opened beside it, and takes its place once it has listed.
//!
//! Objects are kept as text, which takes a fraction of the memory of a tree, and are read when somebody looks at one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{StreamExt, stream, stream::BoxStream};
use kube::{ResourceExt, api::DynamicObject, core::ApiResource, discovery::Scope, runtime::watcher};
use serde_json::Value;

use super::{
    super::{
        apply::{OWNER, OWNER_UID, SHARD},
        name::Name,
    },
    source::Event,
};

/// What is new in a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The first list is complete of what the listener wants.
    Listed,
    /// An object has come, changed or gone: whose it is by what is written on it, now or before.
    Changed(Option<Name>),
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

/// Which of the objects of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    All,
    Shards(BTreeSet<Shard>),
}

/// Name of a shard's Lease.
pub(super) type Shard = Arc<str>;

impl Reach {
    /// Whether it shows what that listener wants; `None`: all.
    fn covers(&self, wanted: Option<&Shard>) -> bool {
        match (self, wanted) {
            (Self::All, _) => true,
            (Self::Shards(shards), Some(shard)) => shards.contains(shard),
            (Self::Shards(_), None) => false,
        }
    }

    /// The shard that an object bears, if that is in reach.
    fn shard_of(&self, object: &DynamicObject) -> Option<Option<Shard>> {
        let borne = object.labels().get(SHARD).map(String::as_str);
        match self {
            Self::All => Some(borne.map(Shard::from)),
            Self::Shards(shards) => Some(Some(Arc::clone(shards.get(borne?)?))),
        }
    }

    fn without(&mut self, shard: &Shard) {
        if let Self::Shards(shards) = self {
            shards.remove(shard);
        }
    }
}

/// Opens a watch of so much.
pub(super) type Opening = Box<dyn Fn(&Reach) -> BoxStream<'static, Event> + Send>;

pub(super) struct State {
    opening: Opening,
    source: Source,
    /// What takes its place when it has listed.
    wider: Option<Source>,
    pub(super) served: Option<(ApiResource, Scope)>,
    unserved: bool,
    listed: bool,
    pub(super) objects: BTreeMap<Name, Held>,
    pub(super) of_owner: HashMap<Arc<str>, Vec<Name>>,
    pub(super) ears: HashMap<u64, Ear>,
    /// There may be objects out of reach.
    untidy: bool,
}

struct Source {
    events: BoxStream<'static, Event>,
    reach: Reach,
    listing: BTreeMap<Name, Held>,
    trouble: Option<String>,
}

/// What a listener has not heard yet.
pub(super) struct Ear {
    shard: Option<Shard>,
    listed: bool,
    pub(super) news: VecDeque<News>,
}

impl Ear {
    fn tell(&mut self, news: News) {
        // Whoever has not looked since needs no word twice.
        if self.news.back() != Some(&news) {
            self.news.push_back(news);
        }
    }
}

/// An object as text.
pub(super) struct Held {
    version: u64,
    shard: Option<Shard>,
    owner: Option<Name>,
    owner_uid: Option<Arc<str>>,
    text: Box<[u8]>,
}

/// Whose an object was, or is: its shard and its owner.
type Belonging = (Option<Shard>, Option<Name>);

impl Held {
    fn of(mut object: DynamicObject, shard: Option<Shard>) -> Self {
        // Who else owns which fields is nobody's business here: only what we applied is compared.
        if let Some(managed) = &mut object.metadata.managed_fields {
            managed.retain(|entry| entry.manager.as_deref().is_some_and(|manager| manager.starts_with("leasehold/")));
        }
        Self {
            version: object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
            owner: object.annotations().get(OWNER).map(|owner| Name::parse(owner)),
            owner_uid: object.labels().get(OWNER_UID).map(|uid| Arc::from(uid.as_str())),
            shard,
            text: serde_json::to_vec(&object).unwrap_or_default().into_boxed_slice(),
        }
    }

    pub(super) fn value(&self) -> Option<Value> {
        serde_json::from_slice(&self.text).ok()
    }

    fn belonging(&self) -> Belonging {
        (self.shard.clone(), self.owner.clone().filter(|_| self.shard.is_some()))
    }
}

impl Source {
    fn new(events: BoxStream<'static, Event>, reach: Reach) -> Self {
        Self { events, reach, listing: BTreeMap::new(), trouble: None }
    }

    /// Takes in what is of a list. Returns what is not, and `InitDone`.
    fn list(&mut self, event: watcher::Event<DynamicObject>) -> Option<watcher::Event<DynamicObject>> {
        self.trouble = None;
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                if let Some(shard) = self.reach.shard_of(&object) {
                    self.listing.insert(Name::of(&object), Held::of(object, shard));
                }
            }
            other => return Some(other),
        }
        None
    }
}

impl State {
    /// Nobody listens yet, and nothing is watched.
    pub(super) fn new(opening: Opening) -> Self {
        Self {
            opening,
            source: Source::new(stream::pending().boxed(), Reach::Shards(BTreeSet::new())),
            wider: None,
            served: None,
            unserved: false,
            listed: false,
            objects: BTreeMap::new(),
            of_owner: HashMap::new(),
            ears: HashMap::new(),
            untidy: false,
        }
    }

    /// One more who listens: for what bears that shard, or for everything.
    pub(super) fn listen(&mut self, number: u64, shard: Option<Shard>) {
        self.ears.insert(number, Ear { shard, listed: false, news: VecDeque::new() });
        self.widen();
        self.tell_listed();
    }

    /// Takes the next event in; `false`: there will be none.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        self.tidy();
        self.widen();
        if let Some(wider) = &mut self.wider
            && let Poll::Ready(Some(event)) = wider.events.poll_next_unpin(context)
        {
            self.take_in_wider(event);
            return Poll::Ready(true);
        }
        match self.source.events.poll_next_unpin(context) {
            Poll::Ready(Some(event)) => {
                self.take_in(event);
                Poll::Ready(true)
            }
            Poll::Ready(None) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Opens a watch of more, if more is wanted than there is or will be.
    fn widen(&mut self) {
        let is_wanting = |reach: &Reach| self.ears.values().any(|ear| !reach.covers(ear.shard.as_ref()));
        if self.wider.is_some() || !is_wanting(&self.source.reach) {
            return;
        }
        let wanted: Option<BTreeSet<Shard>> = self.ears.values().map(|ear| ear.shard.clone()).collect();
        let reach = wanted.map_or(Reach::All, Reach::Shards);
        let wider = Source::new((self.opening)(&reach), reach);
        if self.listed {
            self.wider = Some(wider);
        } else {
            self.source = wider;
        }
    }

    pub(super) fn hang_up(&mut self, number: u64) {
        let Some(ear) = self.ears.remove(&number) else { return };
        if let Some(shard) = ear.shard
            && !self.ears.values().any(|ear| ear.shard.as_ref() == Some(&shard))
        {
            self.source.reach.without(&shard);
            self.wider.iter_mut().for_each(|wider| wider.reach.without(&shard));
            self.untidy = true;
        }
    }

    /// Forgets what nobody listens for any more. Not at once: whoever hangs up may be in haste.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy) {
            let reach = &self.source.reach;
            self.objects.retain(|_, held| reach.covers(held.shard.as_ref()));
            let objects = &self.objects;
            self.of_owner.retain(|_, names| {
                names.retain(|name| objects.contains_key(name));
                !names.is_empty()
            });
        }
    }

    fn shows(&self, shard: Option<&Shard>) -> bool {
        self.unserved || (self.listed && self.source.reach.covers(shard))
    }

    pub(super) fn sight(&self, shard: Option<&Shard>) -> Sight {
        let trouble = || self.wider.as_ref().unwrap_or(&self.source).trouble.clone();
        match (self.unserved, self.shows(shard)) {
            (true, _) => Sight::Unserved,
            (false, true) => Sight::Clear,
            (false, false) => trouble().map_or(Sight::Unlisted, Sight::Troubled),
        }
    }

    fn take_in_wider(&mut self, event: Event) {
        let Some(wider) = &mut self.wider else { return };
        match event {
            Event::Watched(event) => {
                // There is nothing else before the list is complete.
                if wider.list(event).is_some()
                    && let Some(wider) = self.wider.take()
                {
                    self.source = wider;
                    self.take_over();
                }
            }
            Event::Trouble(why) => wider.trouble = Some(why),
            Event::Served(..) | Event::Unserved => self.take_in(event),
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Served(resource, scope) => {
                // What is listed now is news for those who were told that there is nothing.
                if std::mem::take(&mut self.unserved) {
                    self.ears.values_mut().for_each(|ear| ear.listed = false);
                }
                self.served = Some((resource, scope));
            }
            Event::Unserved => {
                // Whoever waits to see everything has seen it.
                self.unserved = true;
                self.tell_listed();
            }
            Event::Trouble(why) => self.source.trouble = Some(why),
            Event::Watched(event) => match self.source.list(event) {
                None | Some(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Some(watcher::Event::InitDone) => self.take_over(),
                Some(watcher::Event::Apply(object)) => {
                    if let Some(belongings) = self.put(object) {
                        self.tell_changed(belongings);
                    }
                }
                Some(watcher::Event::Delete(object)) => {
                    let before = self.remove(&Name::of(&object));
                    self.tell_changed([before.unwrap_or_default()]);
                }
            },
        }
    }

    /// What the source has listed is what there is.
    fn take_over(&mut self) {
        let listed = std::mem::take(&mut self.source.listing);
        let gone: Vec<Name> = self.objects.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
        for name in gone {
            let before = self.remove(&name);
            self.tell_changed([before.unwrap_or_default()]);
        }
        for (name, held) in listed {
            if let Some(belongings) = self.keep(name, held) {
                self.tell_changed(belongings);
            }
        }
        self.listed = true;
        self.tell_listed();
    }

    /// Takes an object in. Whose it was and is, if it is news.
    pub(super) fn put(&mut self, object: DynamicObject) -> Option<[Belonging; 2]> {
        let name = Name::of(&object);
        match self.source.reach.shard_of(&object) {
            Some(shard) => self.keep(name, Held::of(object, shard)),
            // It was somebody's whom we listen for, and is not any more.
            None => self.remove(&name).map(|before| [before, Belonging::default()]),
        }
    }

    /// Keeps the object, if it is newer than what is there. Whose it was and is.
    fn keep(&mut self, name: Name, held: Held) -> Option<[Belonging; 2]> {
        // Versions count up: https://kep.k8s.io/5504. What a write of ours left is there before its event comes.
        if self.objects.get(&name).is_some_and(|known| known.version >= held.version) {
            return None;
        }
        let before = self.remove(&name).unwrap_or_default();
        if let Some(uid) = &held.owner_uid {
            self.of_owner.entry(Arc::clone(uid)).or_default().push(name.clone());
        }
        let now = held.belonging();
        self.objects.insert(name, held);
        Some([before, now])
    }

    fn remove(&mut self, name: &Name) -> Option<Belonging> {
        let held = self.objects.remove(name)?;
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
        // That it is nobody's, or was not there, is news only if there is no other.
        if all.len() > 1 {
            all.retain(|(shard, owner)| shard.is_some() || owner.is_some());
        }
        for (shard, owner) in all {
            let concerned = self.ears.values_mut().filter(|ear| ear.shard.is_none() || ear.shard == shard);
            concerned.for_each(|ear| ear.tell(News::Changed(owner.clone())));
        }
    }

    /// Tells those who see all they listen for, and were not told.
    fn tell_listed(&mut self) {
        let (unserved, listed, reach) = (self.unserved, self.listed, &self.source.reach);
        for ear in self.ears.values_mut().filter(|ear| !ear.listed) {
            if unserved || (listed && reach.covers(ear.shard.as_ref())) {
                ear.listed = true;
                ear.tell(News::Listed);
            }
        }
    }
}
