//! The objects of a kind as a replica last saw them: by its watch, and by what its own writes have left of them.
//!
//! Without the second, a pass that comes before the event of the last write would rest on an old version, and its write
//! would be refused.
//!
//! What is kept is bounded in bytes ([`Limits`]). Of an object for which there is no room only the marks are kept by which
//! another version of it is told: what has to be known of the rest is read when it is needed. A large object is kept as text,
//! which takes less memory than a tree, and is parsed when a pass looks at it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, runtime::watcher::Event};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    name::Name,
    weight::{trim, weigh},
};
use crate::{
    config::Limits,
    protocol::lease::version_number,
    reconcile::{apply::digest, asked::asks, finalizer},
};

/// What is known of the objects of a kind. Clones are handles on the same.
pub struct Store<K: Resource> {
    dyntype: K::DynamicType,
    state: Arc<Mutex<State<K>>>,
}

struct State<K> {
    objects: Objects<K>,
    /// A list is complete.
    listed: bool,
    /// The list that is not complete yet.
    listing: Objects<K>,
    /// What is not in it as it was known.
    missed: Vec<Name>,
    /// Uids of the objects that are being deleted, and whose children shall stay, whatever they say of that later.
    orphaning: HashMap<Name, String>,
    /// Which objects are known as they were in the term, or later.
    current: Current,
}

/// What bounds the objects that are kept.
struct Bounds<K> {
    limits: Limits,
    form: Form<K>,
    /// What is noted of each object, whether it is kept or not.
    note: Option<fn(&K) -> Arc<str>>,
}

impl<K> Clone for Bounds<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Bounds<K> {}

/// In which form objects are kept, and what they weigh in it.
pub(in crate::reconcile) struct Form<K> {
    weigh: fn(&K) -> u64,
    /// How a large one is written down and read again.
    text: Option<(Write<K>, Read<K>)>,
}

type Write<K> = fn(&K) -> Option<Arc<[u8]>>;
type Read<K> = fn(&[u8]) -> Option<Arc<K>>;

impl<K> Clone for Form<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Form<K> {}

impl<K> Form<K> {
    /// As it is; it weighs so much.
    pub(in crate::reconcile) fn as_it_is(weigh: fn(&K) -> u64) -> Self {
        Self { weigh, text: None }
    }

    /// As JSON if it is large.
    pub(in crate::reconcile) fn as_text() -> Self
    where
        K: Serialize + DeserializeOwned,
    {
        let write: Write<K> = |object| serde_json::to_vec(object).ok().map(Arc::from);
        let read: Read<K> = |text| serde_json::from_slice(text).ok().map(Arc::new);
        Self { weigh, text: Some((write, read)) }
    }
}

/// An object that weighs less, in bytes, is kept as a tree, so that no pass has to parse it.
const TEXT_FROM: u64 = 4 << 10;

/// Objects by name, and what they come to.
struct Objects<K> {
    objects: HashMap<Name, Entry<K>>,
    bounds: Bounds<K>,
    tally: Tally,
}

/// What the objects of a kind come to in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Bytes of those that are kept.
    pub bytes: u64,
    /// How many weigh more than an object of the kind may.
    pub too_large: usize,
    /// How many others there was no room for.
    pub not_kept: usize,
}

struct Entry<K> {
    held: Held<K>,
    bytes: u64,
    note: Option<Arc<str>>,
}

enum Held<K> {
    Whole(Arc<K>),
    /// As JSON, with its marks.
    Text(Box<ObjectMeta>, Arc<[u8]>),
    /// Its marks: name, uid, version, generation, finalizers, the time of its deletion, and what its annotations ask for.
    Marks(Box<ObjectMeta>),
}

/// What there is of an object.
pub(in crate::reconcile) enum Kept<K> {
    Whole(Arc<K>),
    /// There was no room for it, or it is being deleted and was too large: it has to be read.
    Marks,
    /// It weighs so many bytes, which is more than an object of the kind may.
    TooLarge {
        bytes: u64,
        generation: Option<i64>,
    },
}

impl<K> Held<K> {
    /// The same once more, if it is kept.
    fn share(&self) -> Option<Self> {
        match self {
            Self::Whole(object) => Some(Self::Whole(Arc::clone(object))),
            Self::Text(meta, text) => Some(Self::Text(meta.clone(), Arc::clone(text))),
            Self::Marks(_) => None,
        }
    }
}

impl<K: Resource> Entry<K> {
    fn meta(&self) -> &ObjectMeta {
        match &self.held {
            Held::Whole(object) => object.meta(),
            Held::Text(meta, _) | Held::Marks(meta) => meta,
        }
    }

    fn share(&self) -> Option<Self> {
        Some(Self { held: self.held.share()?, bytes: self.bytes, note: self.note.clone() })
    }
}

impl<K> Bounds<K> {
    /// What is held, as an object; `None`: it is not kept, or is no object any more when it is read.
    fn whole(&self, held: Held<K>) -> Option<Arc<K>> {
        match held {
            Held::Whole(object) => Some(object),
            Held::Text(_, text) => self.form.text.and_then(|(_, read)| read(&text)),
            Held::Marks(_) => None,
        }
    }
}

impl<K: Resource> Objects<K> {
    fn new(bounds: Bounds<K>) -> Self {
        Self { objects: HashMap::new(), bounds, tally: Tally::default() }
    }

    fn meta(&self, name: &Name) -> Option<&ObjectMeta> {
        self.objects.get(name).map(Entry::meta)
    }

    fn insert(&mut self, name: Name, object: Arc<K>) {
        let Bounds { form, note, .. } = self.bounds;
        let (bytes, note) = ((form.weigh)(&object), note.map(|note| note(&object)));
        self.admit(name, Entry { held: Held::Whole(object), bytes, note });
    }

    /// Keeps the object, if there is room. Who comes last goes without: to put another one out would cost a read of that at
    /// its next turn, and one more of each that it puts out in its turn.
    fn admit(&mut self, name: Name, Entry { held, bytes, note }: Entry<K>) {
        self.remove(&name);
        let Bounds { limits, form, .. } = self.bounds;
        let fits = bytes <= limits.object && self.tally.bytes.saturating_add(bytes) <= limits.cache;
        let held = match held {
            Held::Whole(object) if fits => {
                let text = form.text.filter(|_| bytes >= TEXT_FROM).and_then(|(write, _)| write(&object));
                match text {
                    Some(text) => Held::Text(Box::new(marks(object.meta())), text),
                    None => Held::Whole(object),
                }
            }
            Held::Whole(object) => Held::Marks(Box::new(marks(object.meta()))),
            Held::Text(meta, _) if !fits => Held::Marks(meta),
            held => held,
        };
        let entry = Entry { held, bytes, note };
        self.count(&entry, u64::saturating_add, usize::saturating_add);
        self.objects.insert(name, entry);
    }

    fn remove(&mut self, name: &Name) -> Option<Entry<K>> {
        let entry = self.objects.remove(name)?;
        self.count(&entry, u64::saturating_sub, usize::saturating_sub);
        Some(entry)
    }

    fn count(&mut self, entry: &Entry<K>, bytes: fn(u64, u64) -> u64, number: fn(usize, usize) -> usize) {
        let tally = &mut self.tally;
        match &entry.held {
            Held::Whole(_) | Held::Text(..) => tally.bytes = bytes(tally.bytes, entry.bytes),
            Held::Marks(_) if entry.bytes > self.bounds.limits.object => tally.too_large = number(tally.too_large, 1),
            Held::Marks(_) => tally.not_kept = number(tally.not_kept, 1),
        }
    }
}

/// More finalizers than this are known by a digest.
const FINALIZERS: usize = 1024;

/// What of the metadata tells another version, and whether that makes the object due.
fn marks(meta: &ObjectMeta) -> ObjectMeta {
    let mut finalizers = meta.finalizers.clone();
    if let Some(all) = finalizers.as_mut().filter(|all| all.iter().map(String::len).sum::<usize>() > FINALIZERS) {
        *all = vec![digest(all.join("/").bytes())];
    }
    ObjectMeta {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        generation: meta.generation,
        deletion_timestamp: meta.deletion_timestamp.clone(),
        finalizers,
        annotations: (asks(meta).next().is_some())
            .then(|| asks(meta).map(|(name, value)| (name.to_owned(), value)).collect()),
        ..ObjectMeta::default()
    }
}

/// A standby's watch may lag, so that its view is older than what the last leader worked from. Since a term began, everything
/// is current that was listed since, that has a later version than the kind had at some moment since, or that was read since.
#[derive(Default)]
struct Current {
    has_begun: bool,
    /// A list that began in the term is on its way.
    is_listing: bool,
    /// One is complete.
    is_listed: bool,
    /// A version that the kind had in the term.
    version: Option<u64>,
    read: HashSet<Name>,
}

impl<K: Resource> Clone for Store<K>
where
    K::DynamicType: Clone,
{
    fn clone(&self) -> Self {
        Self { dyntype: self.dyntype.clone(), state: Arc::clone(&self.state) }
    }
}

impl<K: Resource> Store<K> {
    /// Nothing yet, and no limits.
    pub fn new(dyntype: K::DynamicType) -> Self {
        Self::keeping(dyntype, Form::as_it_is(|_| 0))
    }

    /// Nothing yet, and no limits: of objects that are kept so.
    pub(in crate::reconcile) fn keeping(dyntype: K::DynamicType, form: Form<K>) -> Self {
        let bounds = Bounds { limits: Limits { object: u64::MAX, cache: u64::MAX }, form, note: None };
        let state = State {
            objects: Objects::new(bounds),
            listed: false,
            listing: Objects::new(bounds),
            missed: Vec::new(),
            orphaning: HashMap::new(),
            current: Current::default(),
        };
        Self { dyntype, state: Arc::new(Mutex::new(state)) }
    }

    /// How requests name the kind.
    pub fn dyntype(&self) -> &K::DynamicType {
        &self.dyntype
    }

    /// Whether the first list is complete: there are no objects before.
    pub fn is_listed(&self) -> bool {
        self.lock().listed
    }

    /// Sets what may be kept from now on.
    pub(in crate::reconcile) fn limit(&self, limits: Limits) {
        let mut state = self.lock();
        state.objects.bounds.limits = limits;
        state.listing.bounds.limits = limits;
    }

    /// Sets what is noted of each object, whether it is kept or not.
    pub(in crate::reconcile) fn noting(&self, note: fn(&K) -> Arc<str>) {
        let mut state = self.lock();
        state.objects.bounds.note = Some(note);
        state.listing.bounds.note = Some(note);
    }

    /// The objects of which this is noted, in no order.
    pub(crate) fn noted(&self, is: impl Fn(&str) -> bool) -> Vec<Name> {
        let state = self.lock();
        let noted = state.objects.objects.iter().filter(|(_, entry)| entry.note.as_deref().is_some_and(&is));
        noted.map(|(name, _)| name.clone()).collect()
    }

    /// An object as it was last seen, if it is kept.
    pub fn get(&self, name: &Name) -> Option<Arc<K>> {
        self.find(name, |_| true)
    }

    /// A later version of the same object, if one is kept.
    pub(in crate::reconcile) fn newer(&self, than: &K) -> Option<Arc<K>> {
        let (name, than) = (Name::of(than), than.meta());
        self.find(&name, |known| known.uid == than.uid && is_newer(known, than))
    }

    fn find(&self, name: &Name, is: impl Fn(&ObjectMeta) -> bool) -> Option<Arc<K>> {
        let (bounds, held) = {
            let state = self.lock();
            let entry = state.objects.objects.get(name).filter(|entry| is(entry.meta()))?;
            (state.objects.bounds, entry.held.share()?)
        };
        bounds.whole(held)
    }

    /// What there is of an object.
    pub(in crate::reconcile) fn kept(&self, name: &Name) -> Option<Kept<K>> {
        let (bounds, held) = {
            let state = self.lock();
            let (entry, bounds) = (state.objects.objects.get(name)?, state.objects.bounds);
            match entry.held.share() {
                Some(held) => (bounds, held),
                // What is to be done before it may go may depend on all of it.
                None if entry.bytes > bounds.limits.object && entry.meta().deletion_timestamp.is_none() => {
                    return Some(Kept::TooLarge { bytes: entry.bytes, generation: entry.meta().generation });
                }
                None => return Some(Kept::Marks),
            }
        };
        Some(bounds.whole(held).map_or(Kept::Marks, Kept::Whole))
    }

    /// What an object weighs, in bytes; 0 if there is none.
    pub(in crate::reconcile) fn weight(&self, name: &Name) -> u64 {
        self.lock().objects.objects.get(name).map_or(0, |entry| entry.bytes)
    }

    /// What they come to.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().objects.tally
    }

    /// All objects that are kept, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        let (bounds, all) = {
            let state = self.lock();
            let held = state.objects.objects.values().filter_map(|entry| entry.held.share());
            (state.objects.bounds, held.collect::<Vec<_>>())
        };
        all.into_iter().filter_map(|held| bounds.whole(held)).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().objects.objects.len()
    }

    /// What they are called, in no order.
    pub fn names(&self) -> Vec<Name> {
        self.lock().objects.objects.keys().cloned().collect()
    }

    /// Takes in what the watch says. Returns the objects that are not as they were known but for their status.
    pub fn take_in(&self, event: Event<K>) -> Vec<Name> {
        let mut state = self.lock();
        match event {
            Event::Apply(object) => {
                let name = Name::of(&object);
                state.note_orphaning(&name, &object);
                // What a write of ours has left is newer.
                if state.known(&name, object.meta()).is_some_and(|known| is_newer(known, object.meta())) {
                    return Vec::new();
                }
                let due = state.is_changed(&name, object.meta()).then(|| name.clone());
                state.objects.insert(name, Arc::new(object));
                due.into_iter().collect()
            }
            Event::Delete(object) => {
                let name = Name::of(&object);
                state.objects.remove(&name);
                state.orphaning.remove(&name);
                Vec::new()
            }
            Event::Init => {
                state.current.is_listing = state.current.has_begun;
                state.missed.clear();
                state.listing = Objects::new(state.objects.bounds);
                Vec::new()
            }
            // A list is taken over when it is complete, so what has changed is not due before.
            // The first list is that of the sweep.
            Event::InitApply(object) => {
                let name = Name::of(&object);
                state.note_orphaning(&name, &object);
                if state.listed && state.is_changed(&name, object.meta()) {
                    state.missed.push(name.clone());
                }
                // What is known in this version is not kept twice.
                let known = state.objects.objects.get(&name);
                let known = known.filter(|entry| is_version(entry.meta(), object.meta())).and_then(Entry::share);
                match known {
                    Some(known) => state.listing.admit(name, known),
                    None => state.listing.insert(name, Arc::new(object)),
                }
                Vec::new()
            }
            Event::InitDone => {
                state.listed = true;
                state.current.is_listed |= state.current.is_listing;
                state.take_over();
                let State { orphaning, objects, .. } = &mut *state;
                orphaning.retain(|name, _| objects.objects.contains_key(name));
                std::mem::take(&mut state.missed)
            }
        }
    }

    /// Takes in what a write of ours has left of an object. Nothing is due by that: if there is more in it than our write,
    /// such as a new spec, it is left to the watch, which makes the object due.
    pub fn note(&self, mut object: K) {
        trim(object.meta_mut());
        let (mut state, name) = (self.lock(), Name::of(&object));
        let meta = object.meta();
        // Without a generation only the version tells that there is more.
        let is_ours_alone = meta.generation.is_some() && !state.is_changed(&name, meta);
        if is_ours_alone && state.known(&name, meta).is_some_and(|known| is_newer(meta, known)) {
            state.objects.insert(name, Arc::new(object));
        }
    }

    /// Whether the object is being deleted, and what it owns shall stay.
    pub fn orphans(&self, object: &K) -> bool {
        let uid = object.meta().uid.as_ref();
        finalizer::orphans(object.meta()) || self.lock().orphaning.get(&Name::of(object)) == uid && uid.is_some()
    }

    /// The term has begun: what was seen so far may be older.
    pub fn begin(&self) {
        self.lock().current.has_begun = true;
    }

    /// The kind had this version at a moment of the term: what has a later one, or this one, is current.
    pub fn is_at(&self, version: u64) {
        let current = &mut self.lock().current;
        current.version = Some(current.version.map_or(version, |before| before.min(version)));
    }

    /// Whether it is known what is current without reading every object.
    pub fn has_baseline(&self) -> bool {
        let current = &self.lock().current;
        current.is_listed || current.version.is_some()
    }

    /// Whether the object, as it was seen, is no older than the term.
    pub fn is_current(&self, object: &K) -> bool {
        let state = self.lock();
        let current = &state.current;
        current.is_listed
            || current.version.zip(version(object.meta())).is_some_and(|(from, version)| version >= from)
            || current.read.contains(&Name::of(object))
    }

    /// Takes in what was read of an object in the term. Returns whether the object is as it was seen, but for its status.
    pub fn read(&self, seen: &K, mut fresh: K) -> bool {
        trim(fresh.meta_mut());
        let (mut state, name) = (self.lock(), Name::of(&fresh));
        // Of another one of that name the watch tells in its turn, after the end of this one.
        if fresh.meta().uid != seen.meta().uid {
            return false;
        }
        let is_same = is_same(seen.meta(), fresh.meta());
        if state.known(&name, fresh.meta()).is_some_and(|known| !is_newer(known, fresh.meta())) {
            state.current.read.insert(name.clone());
            state.objects.insert(name, Arc::new(fresh));
        }
        is_same
    }

    /// Takes in what was read of an object in the term, because it is not kept. The object, if it is what the watch has told
    /// of, or newer, and may be reconciled; whatever else it is, the watch tells of it.
    pub(in crate::reconcile) fn fetched(&self, mut fresh: K) -> Option<Arc<K>> {
        trim(fresh.meta_mut());
        let (mut state, name) = (self.lock(), Name::of(&fresh));
        state.known(&name, fresh.meta()).filter(|known| !is_newer(known, fresh.meta()))?;
        let fresh = Arc::new(fresh);
        state.current.read.insert(name.clone());
        state.objects.insert(name, Arc::clone(&fresh));
        let Bounds { limits, form, .. } = state.objects.bounds;
        (fresh.meta().deletion_timestamp.is_some() || (form.weigh)(&fresh) <= limits.object).then_some(fresh)
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource> State<K> {
    /// What was listed is what there is; but what a write of ours has left since is newer.
    fn take_over(&mut self) {
        let listing = std::mem::replace(&mut self.listing, Objects::new(self.objects.bounds));
        for (name, known) in std::mem::replace(&mut self.objects, listing).objects {
            let listed = self.known(&name, known.meta());
            if listed.is_some_and(|listed| is_newer(known.meta(), listed)) {
                self.objects.admit(name, known);
            }
        }
    }

    fn note_orphaning(&mut self, name: &Name, object: &K) {
        if finalizer::orphans(object.meta()) {
            self.orphaning.insert(name.clone(), object.meta().uid.clone().unwrap_or_default());
        }
    }

    /// The object as it is known, if it is that very one.
    fn known(&self, name: &Name, object: &ObjectMeta) -> Option<&ObjectMeta> {
        self.objects.meta(name).filter(|known| known.uid == object.uid)
    }

    /// Whether the object is not as it is known but for its status. Without a generation any change counts.
    fn is_changed(&self, name: &Name, object: &ObjectMeta) -> bool {
        !self.known(name, object).is_some_and(|known| is_same(known, object) || is_same(known, &marks(object)))
    }
}

/// Whether two versions of an object differ in their status at the most.
fn is_same(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    match one.generation {
        Some(_) => {
            one.generation == other.generation
                && one.finalizers == other.finalizers
                && one.deletion_timestamp == other.deletion_timestamp
                && asks(one).eq(asks(other))
        }
        None => is_version(one, other),
    }
}

fn is_version(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.resource_version == other.resource_version
}

/// The resource version as a number, in the order of which versions came.
pub(in crate::reconcile) fn version(object: &ObjectMeta) -> Option<u64> {
    object.resource_version.as_deref().and_then(version_number)
}

/// Whether the first is of a later version.
fn is_newer(object: &ObjectMeta, than: &ObjectMeta) -> bool {
    version(object).zip(version(than)).is_some_and(|(object, than)| object > than)
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;
    use crate::kinds::propagation::Propagation;

    fn object(version: u64, generation: Option<i64>, finalizers: &[&str]) -> Propagation {
        serde_json::from_value(json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation",
            "metadata": {
                "name": "p", "uid": "u", "resourceVersion": version.to_string(), "generation": generation,
                "finalizers": finalizers,
            },
            "spec": {
                "source": {"kind": "ConfigMap", "namespace": "home", "name": "settings"},
                "targets": {"namespaces": ["a"]},
            },
        }))
        .unwrap()
    }

    fn of(generation: i64, version: u64) -> Propagation {
        object(version, Some(generation), &[])
    }

    fn store(first: Propagation) -> Store<Propagation> {
        let store = Store::new(());
        for event in [Event::Init, Event::InitApply(first), Event::InitDone] {
            assert_eq!(store.take_in(event), [], "the first list is for the sweep");
        }
        store
    }

    fn version(store: &Store<Propagation>) -> String {
        store.all()[0].resource_version().unwrap()
    }

    #[test]
    fn a_new_spec_and_a_new_finalizer_are_due_and_a_new_status_is_not() {
        let store = store(of(1, 10));
        for (object, due) in
            [(of(1, 11), 0), (of(2, 12), 1), (object(13, Some(2), &["f"]), 1), (object(14, Some(2), &["f"]), 0)]
        {
            assert_eq!(store.take_in(Event::Apply(object.clone())).len(), due, "{:?}", object.metadata);
        }
    }

    /// An annotation changes no generation, so that an edit of one was no event.
    #[test]
    fn what_annotations_ask_for_is_due_once_for_each_value() {
        let annotated = |version, annotations: serde_json::Value| {
            let mut object = of(1, version);
            object.metadata.annotations = serde_json::from_value(annotations).unwrap();
            object
        };
        for is_kept in [true, false] {
            let store = Store::keeping((), Form::as_text());
            store.limit(Limits { cache: if is_kept { 1 << 20 } else { 0 }, ..Limits::default() });
            for event in [Event::Init, Event::InitApply(of(1, 10)), Event::InitDone] {
                store.take_in(event);
            }
            for (version, annotations, due) in [
                (11, json!({"own": "a"}), 0),
                (12, json!({"leasehold.dev/requested-at": "1"}), 1),
                (13, json!({"leasehold.dev/requested-at": "1", "own": "b"}), 0),
                (14, json!({"leasehold.dev/requested-at": "x".repeat(9000)}), 1),
                (15, json!({"leasehold.dev/requested-at": "x".repeat(9000), "own": "b"}), 0),
                (16, json!({"leasehold.dev/paused": "true"}), 1),
                (17, json!(null), 1),
            ] {
                let object = annotated(version, annotations.clone());
                assert_eq!(store.take_in(Event::Apply(object)).len(), due, "{version}, {annotations}, {is_kept}");
            }
        }
    }

    #[test]
    fn a_later_list_makes_due_what_has_changed_meanwhile_once_it_is_complete() {
        let store = store(of(1, 10));
        for (event, due) in [(Event::Init, 0), (Event::InitApply(of(2, 12)), 0), (Event::InitDone, 1)] {
            let told = format!("{event:?}");
            assert_eq!(store.take_in(event).len(), due, "{told}");
        }
    }

    #[test]
    fn what_a_write_left_is_seen_at_once_and_older_events_do_not_undo_it() {
        let store = store(of(1, 10));
        store.note(of(1, 12));
        assert_eq!(version(&store), "12");
        assert_eq!(store.take_in(Event::Apply(of(1, 11))), []);
        assert_eq!(version(&store), "12");
        store.note(of(1, 11));
        assert_eq!(version(&store), "12");
        assert_eq!(store.take_in(Event::Apply(of(2, 13))).len(), 1);
        assert_eq!(version(&store), "13");
    }

    #[test]
    fn that_children_shall_stay_is_remembered_until_the_object_is_gone() {
        let store = Store::new(());
        let deleted = |version, finalizers: &[&str]| {
            let mut object = object(version, Some(1), finalizers);
            object.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
            object
        };
        store.take_in(Event::Apply(object(1, Some(1), &["orphan"])));
        assert!(!store.orphans(&object(1, Some(1), &["orphan"])), "it is not being deleted");
        store.take_in(Event::Apply(deleted(2, &["orphan", "ours"])));
        store.take_in(Event::Apply(deleted(3, &["ours"])));
        assert!(store.orphans(&deleted(3, &["ours"])));
        let mut another = deleted(3, &["ours"]);
        another.metadata.uid = Some("another".to_owned());
        assert!(!store.orphans(&another));
        store.take_in(Event::Delete(deleted(3, &["ours"])));
        assert!(!store.orphans(&deleted(3, &["ours"])));
    }

    #[test]
    fn a_write_that_shows_more_than_itself_is_left_to_the_watch() {
        let store = store(of(1, 10));
        for more in [of(2, 12), object(12, Some(1), &["f"]), object(12, None, &[])] {
            store.note(more.clone());
            assert_eq!(version(&store), "10", "{:?}", more.metadata);
        }
        assert_eq!(store.take_in(Event::Apply(of(2, 12))).len(), 1, "and is due then");
    }

    /// Each row: what has happened since the term began, and whether the object that was seen in version 10 is current then.
    #[test]
    fn what_a_standby_saw_is_current_when_the_term_has_shown_it() {
        let listed = |store: &Store<Propagation>| {
            for event in [Event::Init, Event::InitApply(of(1, 10)), Event::InitDone] {
                store.take_in(event);
            }
        };
        type Row = (&'static str, fn(&Store<Propagation>), bool);
        let rows: [Row; 5] = [
            ("nothing", |_| (), false),
            ("the kind is ahead", |store| store.is_at(11), false),
            ("the kind is no further", |store| store.is_at(10), true),
            ("it was read, and is the same", |store| assert!(store.read(&of(1, 10), of(1, 12))), true),
            ("it was read, and has changed", |store| assert!(!store.read(&of(1, 10), of(2, 12))), true),
        ];
        for (what, happen, expected) in rows {
            let store = store(of(1, 10));
            store.begin();
            happen(&store);
            assert_eq!(store.is_current(&store.all()[0]), expected, "{what}");
        }
        let store = store(of(1, 10));
        store.take_in(Event::Init);
        store.begin();
        store.take_in(Event::InitDone);
        assert!(!store.is_current(&of(1, 10)), "a list that began before the term tells nothing");
        listed(&store);
        assert!(store.is_current(&of(1, 10)));
    }

    #[test]
    fn what_was_read_is_seen_and_an_older_event_does_not_undo_it() {
        let store = store(of(1, 10));
        store.begin();
        assert!(!store.read(&of(1, 10), of(3, 14)));
        assert_eq!(version(&store), "14");
        assert_eq!(store.take_in(Event::Apply(of(2, 12))), []);
        assert_eq!(version(&store), "14");
        let mut other = of(1, 20);
        other.metadata.uid = Some("another".to_owned());
        assert!(!store.read(&of(3, 14), other));
        assert_eq!(version(&store), "14", "another one of that name is left to the watch");
    }

    /// An object that names so many namespaces.
    fn heavy(name: &str, version: u64, namespaces: usize) -> Propagation {
        let mut object = of(1, version);
        object.metadata.name = Some(name.to_owned());
        object.metadata.uid = Some(name.to_owned());
        object.spec.targets.namespaces = (0..namespaces).map(|number| format!("namespace-{number:03}")).collect();
        object
    }

    /// Room for two objects of a hundred namespaces, and none for one of two hundred.
    fn limited() -> Store<Propagation> {
        let store = Store::keeping((), Form::as_text());
        store.limit(Limits { object: 3000, cache: 5000 });
        store
    }

    fn apply(store: &Store<Propagation>, object: Propagation) -> usize {
        store.take_in(Event::Apply(object)).len()
    }

    fn shown(store: &Store<Propagation>, name: &str) -> &'static str {
        match store.kept(&Name::new(None, name)) {
            None => "gone",
            Some(Kept::Whole(_)) => "whole",
            Some(Kept::Marks) => "marks",
            Some(Kept::TooLarge { .. }) => "too large",
        }
    }

    #[test]
    fn an_object_that_is_too_large_is_known_by_its_marks_until_it_is_smaller() {
        let store = limited();
        assert_eq!(apply(&store, heavy("a", 1, 200)), 1);
        assert_eq!((shown(&store, "a"), store.count(), store.all().len()), ("too large", 1, 0));
        assert_eq!(store.tally(), Tally { bytes: 0, too_large: 1, not_kept: 0 });
        assert_eq!(apply(&store, heavy("a", 2, 200)), 0, "a status is no news");
        let mut smaller = heavy("a", 3, 100);
        smaller.metadata.generation = Some(2);
        assert_eq!((apply(&store, smaller), shown(&store, "a")), (1, "whole"));
        assert_eq!((store.tally().too_large, store.tally().bytes > 1800), (0, true));
        let mut deleted = heavy("a", 4, 200);
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!((apply(&store, deleted), shown(&store, "a")), (1, "marks"), "it is let go whatever it weighs");
    }

    #[test]
    fn what_there_is_no_room_for_is_read_and_kept_when_there_is() {
        let store = limited();
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            apply(&store, heavy(name, number as u64, 100));
        }
        assert_eq!(["a", "b", "c"].map(|name| shown(&store, name)), ["whole", "whole", "marks"]);
        assert_eq!((store.tally().not_kept, store.tally().bytes < 5000), (1, true));
        assert!(store.fetched(heavy("c", 2, 100)).is_some());
        assert_eq!(shown(&store, "c"), "marks");
        assert!(store.fetched(heavy("c", 1, 100)).is_none(), "an older one is not what was seen");
        assert!(store.fetched(heavy("c", 3, 200)).is_none(), "it has grown");
        assert_eq!(shown(&store, "c"), "too large");
        assert!(store.fetched(heavy("c", 4, 100)).is_some());
        store.take_in(Event::Delete(heavy("a", 5, 100)));
        assert!(store.fetched(heavy("c", 4, 100)).is_some());
        assert_eq!((shown(&store, "c"), store.tally().not_kept), ("whole", 0));
        assert!(store.fetched(heavy("gone", 1, 100)).is_none());
    }

    #[test]
    fn a_new_list_counts_anew_and_keeps_nothing_twice() {
        let store = limited();
        let list = |objects: [Propagation; 3]| {
            store.take_in(Event::Init);
            for object in objects {
                store.take_in(Event::InitApply(object));
            }
            store.take_in(Event::InitDone)
        };
        let all = || [heavy("a", 1, 100), heavy("b", 2, 100), heavy("c", 3, 200)];
        list(all());
        let (before, tally) = (store.get(&Name::new(None, "a")).unwrap(), store.tally());
        assert_eq!(list(all()), []);
        assert!(Arc::ptr_eq(&before, &store.get(&Name::new(None, "a")).unwrap()));
        assert_eq!((store.tally(), tally.too_large), (tally, 1));
        let mut changed = all();
        changed[2] = heavy("c", 4, 1);
        changed[2].metadata.generation = Some(2);
        assert_eq!(list(changed), [Name::new(None, "c")]);
        assert_eq!(shown(&store, "c"), "whole");
    }

    #[test]
    fn a_large_object_is_kept_as_text_and_is_the_same_when_it_is_looked_at() {
        let store = Store::keeping((), Form::as_text());
        let text = |store: &Store<Propagation>| match &store.lock().objects.objects[&Name::new(None, "a")].held {
            Held::Text(_, text) => Arc::clone(text),
            _ => panic!("it is not kept as text"),
        };
        let object = heavy("a", 7, 500);
        assert_eq!(apply(&store, object.clone()), 1);
        let kept = store.get(&Name::new(None, "a")).unwrap();
        assert_eq!(serde_json::to_value(&*kept).unwrap(), serde_json::to_value(&object).unwrap());
        assert_eq!((shown(&store, "a"), store.all().len()), ("whole", 1));
        assert!(store.newer(&heavy("a", 6, 1)).is_some() && store.newer(&object).is_none());
        // A list brings it in the same version: it is not kept twice.
        let before = text(&store);
        let list = [Event::Init, Event::InitApply(object), Event::InitDone];
        assert_eq!(list.map(|event| store.take_in(event).len()), [0, 0, 0]);
        assert!(Arc::ptr_eq(&before, &text(&store)));
        // What a write of ours has left since is newer than the list.
        store.note(heavy("a", 9, 500));
        let list = [Event::Init, Event::InitApply(heavy("a", 8, 500)), Event::InitDone];
        assert_eq!(list.map(|event| store.take_in(event).len()), [0, 0, 0]);
        assert_eq!(version(&store), "9");
        assert_eq!(apply(&store, heavy("a", 10, 1)), 0);
        assert!(matches!(store.lock().objects.objects[&Name::new(None, "a")].held, Held::Whole(_)));
    }

    #[test]
    fn many_finalizers_are_marks_as_well() {
        let store = limited();
        let with = |version, count: usize| {
            let mut object = heavy("a", version, 200);
            object.metadata.finalizers = Some((0..count).map(|number| format!("example.com/{number}")).collect());
            object
        };
        assert_eq!([with(1, 500), with(2, 500), with(3, 499)].map(|object| apply(&store, object)), [1, 0, 1]);
        let kept = store.lock().objects.meta(&Name::new(None, "a")).unwrap().finalizers.clone().unwrap();
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn what_is_noted_is_found_whether_the_object_is_kept_or_not() {
        let store = limited();
        store.noting(|object| object.spec.source.name.as_str().into());
        apply(&store, heavy("a", 1, 200));
        apply(&store, heavy("b", 1, 10));
        assert_eq!(store.noted(|name| name == "settings").len(), 2);
        assert!(store.noted(|name| name == "other").is_empty());
    }

    #[test]
    fn what_is_gone_or_another_of_that_name_is_not_brought_back() {
        let store = store(of(1, 10));
        let mut other = of(1, 12);
        other.metadata.uid = Some("another".to_owned());
        store.note(other);
        assert_eq!(version(&store), "10");
        assert_eq!(store.take_in(Event::Delete(of(1, 13))), []);
        store.note(of(1, 12));
        assert!(store.all().is_empty());
    }
}
