//! The objects of a kind as a replica last saw them: by its watch, and by what its own writes have left of them.
//!
//! Without the second, a pass that comes before the event of the last write would rest on an old version, and its write
//! would be refused.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{Resource, runtime::watcher::Event};

use super::name::Name;
use crate::{protocol::lease::version_number, reconcile::finalizer};

/// What is known of the objects of a kind. Clones are handles on the same.
pub struct Seen<K: Resource> {
    dyntype: K::DynamicType,
    state: Arc<Mutex<State<K>>>,
}

struct State<K> {
    objects: HashMap<Name, Arc<K>>,
    /// A list is complete.
    listed: bool,
    /// The list that is not complete yet.
    listing: HashMap<Name, Arc<K>>,
    /// What is not in it as it was known.
    missed: Vec<Name>,
    /// Uids of the objects that are being deleted, and whose children shall stay, whatever they say of that later.
    orphaning: HashMap<Name, String>,
    /// Which objects are known as they were in the term, or later.
    current: Current,
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

impl<K: Resource> Clone for Seen<K>
where
    K::DynamicType: Clone,
{
    fn clone(&self) -> Self {
        Self { dyntype: self.dyntype.clone(), state: Arc::clone(&self.state) }
    }
}

impl<K: Resource> Seen<K> {
    /// Nothing yet.
    pub fn new(dyntype: K::DynamicType) -> Self {
        let state = State {
            objects: HashMap::new(),
            listed: false,
            listing: HashMap::new(),
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

    /// An object as it was last seen.
    pub fn get(&self, name: &Name) -> Option<Arc<K>> {
        self.lock().objects.get(name).cloned()
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.lock().objects.values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().objects.len()
    }

    /// What they are called, in no order.
    pub fn names(&self) -> Vec<Name> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Takes in what the watch says. Returns the objects that are not as they were known but for their status.
    pub fn take_in(&self, event: Event<K>) -> Vec<Name> {
        let mut state = self.lock();
        match event {
            Event::Apply(object) => {
                let name = Name::of(&object);
                state.note_orphaning(&name, &object);
                // What a write of ours has left is newer.
                if state.known(&name, &object).is_some_and(|known| is_newer(known, &object)) {
                    return Vec::new();
                }
                let due = state.is_changed(&name, &object).then(|| name.clone());
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
                state.listing.clear();
                Vec::new()
            }
            // A list is taken over when it is complete, so what has changed is not due before.
            // The first list is that of the sweep.
            Event::InitApply(object) => {
                let name = Name::of(&object);
                state.note_orphaning(&name, &object);
                if state.listed && state.is_changed(&name, &object) {
                    state.missed.push(name.clone());
                }
                state.listing.insert(name, Arc::new(object));
                Vec::new()
            }
            Event::InitDone => {
                state.listed = true;
                state.current.is_listed |= state.current.is_listing;
                state.take_over();
                let State { orphaning, objects, .. } = &mut *state;
                orphaning.retain(|name, _| objects.contains_key(name));
                std::mem::take(&mut state.missed)
            }
        }
    }

    /// Takes in what a write of ours has left of an object. Nothing is due by that: if there is more in it than our write,
    /// such as a new spec, it is left to the watch, which makes the object due.
    pub fn note(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let (mut state, name) = (self.lock(), Name::of(&object));
        // Without a generation only the version tells that there is more.
        let is_ours_alone = object.meta().generation.is_some() && !state.is_changed(&name, &object);
        if is_ours_alone && state.known(&name, &object).is_some_and(|known| is_newer(&object, known)) {
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
            || current.version.zip(version(object)).is_some_and(|(from, version)| version >= from)
            || current.read.contains(&Name::of(object))
    }

    /// Takes in what was read of an object in the term. Returns whether the object is as it was seen, but for its status.
    pub fn read(&self, seen: &K, mut fresh: K) -> bool {
        fresh.meta_mut().managed_fields = None;
        let (mut state, name) = (self.lock(), Name::of(&fresh));
        // Of another one of that name the watch tells in its turn, after the end of this one.
        if fresh.meta().uid != seen.meta().uid {
            return false;
        }
        let is_same = is_same(seen, &fresh);
        if state.known(&name, &fresh).is_some_and(|known| !is_newer(known, &fresh)) {
            state.current.read.insert(name.clone());
            state.objects.insert(name, Arc::new(fresh));
        }
        is_same
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource> State<K> {
    /// What was listed is what there is; but what a write of ours has left since is newer.
    fn take_over(&mut self) {
        let listing = std::mem::take(&mut self.listing);
        for (name, known) in std::mem::replace(&mut self.objects, listing) {
            let listed = self.known(&name, &known);
            let is_as_listed = |listed: &K| listed.meta().resource_version == known.meta().resource_version;
            if listed.is_some_and(|listed| is_as_listed(listed) || is_newer(&*known, listed)) {
                self.objects.insert(name, known);
            }
        }
    }

    fn note_orphaning(&mut self, name: &Name, object: &K) {
        if finalizer::orphans(object.meta()) {
            self.orphaning.insert(name.clone(), object.meta().uid.clone().unwrap_or_default());
        }
    }

    /// The object as it is known, if it is that very one.
    fn known(&self, name: &Name, object: &K) -> Option<&K> {
        self.objects.get(name).map(|known| &**known).filter(|known| known.meta().uid == object.meta().uid)
    }

    /// Whether the object is not as it is known but for its status. Without a generation any change counts.
    fn is_changed(&self, name: &Name, object: &K) -> bool {
        !self.known(name, object).is_some_and(|known| is_same(known, object))
    }
}

/// Whether two versions of an object differ in their status at the most.
fn is_same<K: Resource>(one: &K, other: &K) -> bool {
    let (one, other) = (one.meta(), other.meta());
    match one.generation {
        Some(_) => {
            one.generation == other.generation
                && one.finalizers == other.finalizers
                && one.deletion_timestamp == other.deletion_timestamp
        }
        None => one.resource_version == other.resource_version,
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref().and_then(version_number)
}

/// Whether the first is of a later version.
fn is_newer<K: Resource>(object: &K, than: &K) -> bool {
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

    fn seen(first: Propagation) -> Seen<Propagation> {
        let seen = Seen::new(());
        for event in [Event::Init, Event::InitApply(first), Event::InitDone] {
            assert_eq!(seen.take_in(event), [], "the first list is for the sweep");
        }
        seen
    }

    fn version(seen: &Seen<Propagation>) -> String {
        seen.all()[0].resource_version().unwrap()
    }

    #[test]
    fn a_new_spec_and_a_new_finalizer_are_due_and_a_new_status_is_not() {
        let seen = seen(of(1, 10));
        for (object, due) in
            [(of(1, 11), 0), (of(2, 12), 1), (object(13, Some(2), &["f"]), 1), (object(14, Some(2), &["f"]), 0)]
        {
            assert_eq!(seen.take_in(Event::Apply(object.clone())).len(), due, "{:?}", object.metadata);
        }
    }

    #[test]
    fn a_later_list_makes_due_what_has_changed_meanwhile_once_it_is_complete() {
        let seen = seen(of(1, 10));
        for (event, due) in [(Event::Init, 0), (Event::InitApply(of(2, 12)), 0), (Event::InitDone, 1)] {
            let told = format!("{event:?}");
            assert_eq!(seen.take_in(event).len(), due, "{told}");
        }
    }

    #[test]
    fn what_a_write_left_is_seen_at_once_and_older_events_do_not_undo_it() {
        let seen = seen(of(1, 10));
        seen.note(of(1, 12));
        assert_eq!(version(&seen), "12");
        assert_eq!(seen.take_in(Event::Apply(of(1, 11))), []);
        assert_eq!(version(&seen), "12");
        seen.note(of(1, 11));
        assert_eq!(version(&seen), "12");
        assert_eq!(seen.take_in(Event::Apply(of(2, 13))).len(), 1);
        assert_eq!(version(&seen), "13");
    }

    #[test]
    fn that_children_shall_stay_is_remembered_until_the_object_is_gone() {
        let seen = Seen::new(());
        let deleted = |version, finalizers: &[&str]| {
            let mut object = object(version, Some(1), finalizers);
            object.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
            object
        };
        seen.take_in(Event::Apply(object(1, Some(1), &["orphan"])));
        assert!(!seen.orphans(&object(1, Some(1), &["orphan"])), "it is not being deleted");
        seen.take_in(Event::Apply(deleted(2, &["orphan", "ours"])));
        seen.take_in(Event::Apply(deleted(3, &["ours"])));
        assert!(seen.orphans(&deleted(3, &["ours"])));
        let mut another = deleted(3, &["ours"]);
        another.metadata.uid = Some("another".to_owned());
        assert!(!seen.orphans(&another));
        seen.take_in(Event::Delete(deleted(3, &["ours"])));
        assert!(!seen.orphans(&deleted(3, &["ours"])));
    }

    #[test]
    fn a_write_that_shows_more_than_itself_is_left_to_the_watch() {
        let seen = seen(of(1, 10));
        for more in [of(2, 12), object(12, Some(1), &["f"]), object(12, None, &[])] {
            seen.note(more.clone());
            assert_eq!(version(&seen), "10", "{:?}", more.metadata);
        }
        assert_eq!(seen.take_in(Event::Apply(of(2, 12))).len(), 1, "and is due then");
    }

    /// Each row: what has happened since the term began, and whether the object that was seen in version 10 is current then.
    #[test]
    fn what_a_standby_saw_is_current_when_the_term_has_shown_it() {
        let listed = |seen: &Seen<Propagation>| {
            for event in [Event::Init, Event::InitApply(of(1, 10)), Event::InitDone] {
                seen.take_in(event);
            }
        };
        type Row = (&'static str, fn(&Seen<Propagation>), bool);
        let rows: [Row; 5] = [
            ("nothing", |_| (), false),
            ("the kind is ahead", |seen| seen.is_at(11), false),
            ("the kind is no further", |seen| seen.is_at(10), true),
            ("it was read, and is the same", |seen| assert!(seen.read(&of(1, 10), of(1, 12))), true),
            ("it was read, and has changed", |seen| assert!(!seen.read(&of(1, 10), of(2, 12))), true),
        ];
        for (what, happen, expected) in rows {
            let seen = seen(of(1, 10));
            seen.begin();
            happen(&seen);
            assert_eq!(seen.is_current(&seen.all()[0]), expected, "{what}");
        }
        let seen = seen(of(1, 10));
        seen.take_in(Event::Init);
        seen.begin();
        seen.take_in(Event::InitDone);
        assert!(!seen.is_current(&of(1, 10)), "a list that began before the term tells nothing");
        listed(&seen);
        assert!(seen.is_current(&of(1, 10)));
    }

    #[test]
    fn what_was_read_is_seen_and_an_older_event_does_not_undo_it() {
        let seen = seen(of(1, 10));
        seen.begin();
        assert!(!seen.read(&of(1, 10), of(3, 14)));
        assert_eq!(version(&seen), "14");
        assert_eq!(seen.take_in(Event::Apply(of(2, 12))), []);
        assert_eq!(version(&seen), "14");
        let mut other = of(1, 20);
        other.metadata.uid = Some("another".to_owned());
        assert!(!seen.read(&of(3, 14), other));
        assert_eq!(version(&seen), "14", "another one of that name is left to the watch");
    }

    #[test]
    fn what_is_gone_or_another_of_that_name_is_not_brought_back() {
        let seen = seen(of(1, 10));
        let mut other = of(1, 12);
        other.metadata.uid = Some("another".to_owned());
        seen.note(other);
        assert_eq!(version(&seen), "10");
        assert_eq!(seen.take_in(Event::Delete(of(1, 13))), []);
        seen.note(of(1, 12));
        assert!(seen.all().is_empty());
    }
}
