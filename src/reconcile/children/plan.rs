//! The plan of a pass over one object. Pure: [`Plan::next`] reads the caches and answers with one [`Step`]; `apply` carries it out and
//! tells the plan the result.
//!
//! ```text
//!   compose ─► hold ─► confirm ─► write ─┐   confirm ─► delete ─► report
//!      ▲   (a finalizer) (the object)    │ (always, before a deletion)
//!      └──────── until nothing is left to write
//! ```
//!
//! Nothing is written from a view of the object that may be older than the term, or than what a child was applied from,
//! and nothing is deleted before the object was read in this very pass. A child that another writer undoes each time is left to
//! that writer for a while, as [`Fights`] decides, and is read to name the writer; the other children do not wait for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{
    Composed, Desired, Failure, Key, Type,
    applied::{digest, is_as_applied, is_created},
    fights::{CONTESTED, Decision, Fights, Rival, rival},
    ours::{Claim, is_ours, is_superfluous},
    report::Done,
};
use crate::{
    protocol::moment::Moment,
    reconcile::{
        apply::{APPLIED, OWNER, OWNER_GENERATION, Ownership, SHARD, ownership},
        stages::{Outcome, Trouble},
    },
};

/// The reason for a child whose name is another object's.
pub(super) const CONFLICT: &str = "ChildConflict";
/// Composing again shows what the last writes have made of it; a child that waits takes one round, and each has an end.
pub(super) const ROUNDS: usize = 32;

/// The next step.
#[derive(Debug)]
pub(super) enum Step {
    /// Ask the front end for the desired children, given [the children that are the object's own](Plan::mine).
    Compose,
    /// Give the object the finalizer, and end the pass: its event makes it due again.
    Hold,
    /// Read the object. The pass goes on if it is as it was seen, and ends if not.
    Confirm,
    /// Read these children: [their managed fields](Plan::read) name the writer that undoes them.
    Read(Vec<Key>),
    /// Write these, in any order.
    Write(Vec<Write>),
    /// Delete these.
    Delete(Vec<Delete>),
    /// The pass is over.
    Report(Outcome<Done>),
    /// The rounds do not end.
    Unfinished,
}

/// One child to be written.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) object: Value,
    /// Of what it shall be.
    pub(super) digest: String,
    pub(super) how: How,
}

/// How a child is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// There is none of that name.
    Create,
    /// The one with this uid is there.
    Apply {
        uid: String,
        /// It is as it was created, in this version: what the creation owns becomes what an apply owns first, or no field of
        /// it could ever be removed.
        created: Option<String>,
    },
}

/// One child to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delete {
    pub(super) key: Key,
    pub(super) uid: String,
}

/// What a plan asks the caches for.
pub(super) trait Cached {
    /// The object of that key as it was last seen, whether it is ours or not.
    fn child(&self, key: &Key) -> Option<Arc<Value>>;
    /// The children that bear the label of the object, as they were last seen.
    fn children(&self) -> Vec<Key>;
    /// Whether the object is no older than the term.
    fn is_current(&self) -> bool;
    /// Why a type cannot be written, if it cannot.
    fn unserved(&self, of: &Type) -> Option<Trouble>;
}

/// The object that children belong to, as far as that is written on them.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) uid: String,
    pub(super) generation: Option<i64>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    /// The owner reference, for those that the garbage collector would follow.
    pub(super) reference: Value,
    pub(super) labels: BTreeMap<String, String>,
    /// The field manager of the kind.
    pub(super) manager: String,
    /// It bears the finalizer.
    pub(super) is_held: bool,
}

impl Owner {
    /// Whether the garbage collector follows a reference to the owner from there.
    pub(super) fn can_own(&self, key: &Key) -> bool {
        self.namespace.is_none() || self.namespace == key.namespace
    }

    /// Namespace and name, as children bear it.
    pub(super) fn title(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }

    pub(super) fn claim(&self) -> Claim<'_> {
        let shard = self.labels.get(SHARD).map(String::as_str).unwrap_or_default();
        Claim { uid: &self.uid, title: self.title(), shard, manager: &self.manager }
    }

    /// The object with what says whose it is, and the digest of both.
    fn dressed(&self, child: &Desired) -> (Value, String) {
        let mut object = child.object.clone();
        for field in ["labels", "annotations"] {
            let all = &mut object["metadata"][field];
            if !all.is_object() {
                *all = json!({});
            }
        }
        let metadata = &mut object["metadata"];
        for (name, value) in &self.labels {
            metadata["labels"][name] = json!(value);
        }
        metadata["annotations"][OWNER] = json!(self.title());
        if self.can_own(&child.key) {
            metadata["ownerReferences"] = json!([self.reference]);
        }
        let digest = digest(&object);
        // Neither is part of the digest: a new generation alone is no reason to write a child.
        object["metadata"]["annotations"][APPLIED] = json!(digest);
        if let Some(generation) = self.generation {
            object["metadata"]["annotations"][OWNER_GENERATION] = json!(generation.to_string());
        }
        (object, digest)
    }
}

/// Which children are the object's own.
pub(super) struct Mine {
    owner: Owner,
    fresh: Arc<HashMap<Key, Arc<Value>>>,
}

impl Mine {
    /// The child of that key, if it is the object's; `seen` is what was last seen of it.
    pub(super) fn child(&self, key: &Key, seen: impl FnOnce() -> Option<Arc<Value>>) -> Option<Arc<Value>> {
        let child = self.fresh.get(key).cloned().or_else(seen);
        child.filter(|child| is_ours(&meta(child), &self.owner.claim()))
    }
}

/// A pass over one object.
#[derive(Debug)]
pub(super) struct Plan {
    owner: Owner,
    composed: Option<Result<Composed, Failure>>,
    rounds: usize,
    /// The object was read in this pass.
    confirmed: bool,
    /// Children as writes have left them, and those that were found where there seemed to be none.
    fresh: Arc<HashMap<Key, Arc<Value>>>,
    /// Each is written once in a pass: what changes it at once, such as a webhook, would be fought for ever.
    done: BTreeSet<Key>,
    trouble: Vec<Trouble>,
    written: usize,
    /// How many were deleted; `None`: that was not come to.
    pruned: Option<usize>,
    contested: Contested,
}

/// The children that another writer undoes.
#[derive(Debug)]
struct Contested {
    fights: Arc<Mutex<Fights>>,
    /// What the status said of them before.
    before: String,
    /// Those that were read in this pass.
    read: BTreeSet<Key>,
    found: BTreeMap<Key, Rival>,
    /// The writers that were found in this pass.
    found_out: Vec<Rival>,
    /// When the first of them is to be read again.
    until: Option<Moment>,
}

impl Contested {
    fn fights(&self) -> MutexGuard<'_, Fights> {
        self.fights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&mut self, key: Key, rival: Rival, until: Moment) {
        self.until = Some(self.until.map_or(until, |before| before.min(until)));
        self.found.insert(key, rival);
    }
}

impl Plan {
    /// `contested`: what the status of the object says of its contested children. `read`: children that are in no cache.
    pub(super) fn new(
        owner: Owner,
        fights: Arc<Mutex<Fights>>,
        contested: String,
        read: Arc<HashMap<Key, Arc<Value>>>,
    ) -> Self {
        let contested = Contested {
            fights,
            before: contested,
            read: BTreeSet::new(),
            found: BTreeMap::new(),
            found_out: Vec::new(),
            until: None,
        };
        Self {
            contested,
            owner,
            composed: None,
            rounds: 0,
            confirmed: false,
            fresh: read,
            done: BTreeSet::new(),
            trouble: Vec::new(),
            written: 0,
            pruned: None,
        }
    }

    /// Children written and deleted so far.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.written, self.pruned.unwrap_or_default())
    }

    /// The object was read, and is as it was seen.
    pub(super) fn confirmed(&mut self) {
        self.confirmed = true;
    }

    /// When contested children are to be read again.
    pub(super) fn contested_until(&self) -> Option<Moment> {
        self.contested.until
    }

    /// The writers that this pass has found to undo a child.
    pub(super) fn take_rivals(&mut self) -> Vec<Rival> {
        std::mem::take(&mut self.contested.found_out)
    }

    /// A child was read: what is there; `None`: nothing, or it could not be read.
    pub(super) fn read(&mut self, key: Key, object: Option<Arc<Value>>) {
        if let Some(object) = object {
            Arc::make_mut(&mut self.fresh).insert(key.clone(), object);
        }
        self.contested.read.insert(key);
    }

    /// A child was written: what is there now.
    pub(super) fn wrote(&mut self, key: Key, digest: &str, object: Arc<Value>, now: Moment) {
        self.contested.fights().wrote(&key, digest, now);
        self.composed = None;
        self.written += 1;
        Arc::make_mut(&mut self.fresh).insert(key.clone(), object);
        self.done.insert(key);
    }

    /// There is one of that name, which was not seen.
    pub(super) fn found(&mut self, key: Key, object: Arc<Value>) {
        self.composed = None;
        Arc::make_mut(&mut self.fresh).insert(key, object);
    }

    pub(super) fn refused(&mut self, key: Key, trouble: Trouble) {
        self.trouble.push(trouble);
        self.done.insert(key);
    }

    /// What became of a deletion.
    pub(super) fn deleted(&mut self, deletion: Result<(), Trouble>) {
        match deletion {
            Ok(()) => *self.pruned.get_or_insert_default() += 1,
            Err(trouble) => self.trouble.push(trouble),
        }
    }

    /// What is next.
    pub(super) fn next(&mut self, seen: &dyn Cached, now: Moment) -> Step {
        let composed = match self.composed.take() {
            None => return Step::Compose,
            Some(Ok(composed)) => composed,
            Some(Err(Failure { reason, message })) => {
                return Step::Report(Outcome::Invalid(Trouble::new(reason, message)));
            }
        };
        if !self.owner.is_held && composed.children.iter().any(|child| !self.owner.can_own(&child.key)) {
            self.composed = Some(Ok(composed));
            return Step::Hold;
        }
        // What is refused in a round is read again in the next pass, with all that waits for it.
        let Writes { writes, is_outrun, to_read } =
            if self.trouble.is_empty() { self.writes(&composed, seen, now) } else { Writes::default() };
        if !to_read.is_empty() {
            self.composed = Some(Ok(composed));
            return Step::Read(to_read);
        }
        if !writes.is_empty() {
            self.composed = Some(Ok(composed));
            if !self.confirmed && (is_outrun || !seen.is_current()) {
                return Step::Confirm;
            }
            self.rounds += 1;
            return if self.rounds > ROUNDS { Step::Unfinished } else { Step::Write(writes) };
        }
        // What is not said, or not applied, must not take away what is there.
        if composed.waiting.is_empty() && self.trouble.is_empty() && self.pruned.is_none() {
            let deletes = self.deletes(&composed, seen);
            if !deletes.is_empty() {
                self.composed = Some(Ok(composed));
                if !self.confirmed {
                    return Step::Confirm;
                }
                self.pruned = Some(0);
                return Step::Delete(deletes);
            }
        }
        Step::Report(Outcome::Done(self.done(composed)))
    }

    /// The children that the front end desires.
    pub(super) fn composed(&mut self, composed: Result<Composed, Failure>) {
        self.composed = Some(composed.and_then(checked));
    }

    /// Which of its children a front end is shown, as the writes of this pass have left them.
    pub(super) fn mine(&self) -> Mine {
        Mine { owner: self.owner.clone(), fresh: Arc::clone(&self.fresh) }
    }

    fn child(&self, key: &Key, seen: &dyn Cached) -> Option<Arc<Value>> {
        self.fresh.get(key).cloned().or_else(|| seen.child(key))
    }

    /// The writes that make the children as desired.
    fn writes(&mut self, composed: &Composed, seen: &dyn Cached, now: Moment) -> Writes {
        let Writes { mut writes, mut is_outrun, mut to_read } = Writes::default();
        for child in &composed.children {
            if self.done.contains(&child.key) {
                self.settled(&child.key, now);
                continue;
            }
            if self.contested.found.contains_key(&child.key) {
                continue;
            }
            let key = child.key.clone();
            if let Some(trouble) = seen.unserved(&key.of) {
                self.refused(key, trouble);
                continue;
            }
            let live = self.child(&key, seen);
            let (object, digest) = self.owner.dressed(child);
            let Some(live) = live else {
                match self.decide(&key, &digest, None, &object, now) {
                    Action::Write => writes.push(Write { key, object, digest, how: How::Create }),
                    Action::Read => to_read.push(key),
                    Action::Leave => {}
                }
                continue;
            };
            let meta = meta(&live);
            if !is_ours(&meta, &self.owner.claim()) {
                let trouble = conflict(&key, &meta, &self.owner.uid);
                self.refused(key, trouble);
            } else if meta.deletion_timestamp.is_some() {
                let message = format!("{key} is being deleted");
                self.refused(key, Trouble::new("ChildTerminating", message));
            } else if is_as_applied(&live, &object, &digest, &self.owner.manager) {
                self.settled(&key, now);
            } else {
                match self.decide(&key, &digest, Some(&live), &object, now) {
                    Action::Write => {
                        is_outrun |= generation(&meta) > self.owner.generation;
                        let created =
                            is_created(&live, &self.owner.manager).then(|| meta.resource_version.unwrap_or_default());
                        let how = How::Apply { uid: meta.uid.unwrap_or_default(), created };
                        writes.push(Write { key, object, digest, how });
                    }
                    Action::Read => to_read.push(key),
                    Action::Leave => {}
                }
            }
        }
        Writes { writes, is_outrun, to_read }
    }

    /// Whether a child that is not as desired is written now, or left to the writer that undoes it.
    fn decide(&mut self, key: &Key, digest: &str, live: Option<&Value>, object: &Value, now: Moment) -> Action {
        let was_contested = self.contested.before.contains(&format!("{key}:"));
        let decision = self.contested.fights().decide(key, digest, was_contested, now);
        match decision {
            Decision::Write => Action::Write,
            Decision::Wait { until, rival: Some(rival) } => {
                self.contested.holds(key.clone(), rival, until);
                Action::Leave
            }
            Decision::Wait { until, rival: None } if self.contested.read.contains(key) => {
                let rival = rival(key, live, object, &self.owner.manager);
                self.contested.fights().named(key, rival.clone());
                self.contested.found_out.push(rival.clone());
                self.contested.holds(key.clone(), rival, until);
                Action::Leave
            }
            Decision::Wait { rival: None, .. } => Action::Read,
        }
    }

    /// A child is as desired, perhaps since a moment ago only.
    fn settled(&mut self, key: &Key, now: Moment) {
        let contested = self.contested.fights().settled(key, now);
        if let Some((until, rival)) = contested {
            self.contested.holds(key.clone(), rival, until);
        }
    }

    /// Children of the object that are no longer desired.
    fn deletes(&self, composed: &Composed, seen: &dyn Cached) -> Vec<Delete> {
        let desired: BTreeSet<&Key> = composed.children.iter().map(|child| &child.key).collect();
        let mut deletes = Vec::new();
        // Most are desired, and need not be read to know that.
        for key in seen.children().into_iter().filter(|key| !desired.contains(key)) {
            let Some(object) = self.child(&key, seen) else { continue };
            let meta = meta(&object);
            if is_superfluous(&key, &meta, &desired, &self.owner.claim()) {
                deletes.push(Delete { key, uid: meta.uid.unwrap_or_default() });
            }
        }
        deletes
    }

    fn done(&mut self, composed: Composed) -> Done {
        let unready = composed.children.iter().filter_map(|child| Some((child, child.unready.as_ref()?)));
        let waiting = composed.waiting.iter().map(|waiting| format!("{} waits {}", waiting.id, waiting.reason));
        let contested = self.contested.found.values();
        let contested = contested.map(|rival| Trouble::new(CONTESTED, &rival.message));
        let trouble = std::mem::take(&mut self.trouble).into_iter().chain(contested).collect();
        Done {
            trouble,
            waiting: waiting.collect(),
            unready: unready.map(|(child, why)| format!("{}: {why}", child.key)).collect(),
            failed: composed.failed,
            own: composed.status,
            stale: None,
        }
    }
}

/// What is to be written, and what has to be read first.
#[derive(Default)]
struct Writes {
    writes: Vec<Write>,
    /// A child was applied from a newer object than this one.
    is_outrun: bool,
    to_read: Vec<Key>,
}

/// The action for a child that is not as desired.
enum Action {
    Write,
    Read,
    Leave,
}

/// Nothing in it contradicts itself, or cannot be a child.
fn checked(composed: Composed) -> Result<Composed, Failure> {
    let mut names = BTreeMap::new();
    for child in &composed.children {
        let Key { of, namespace, name } = &child.key;
        if let Some(version) = names.insert((&of.group, &of.kind, namespace, name), &of.version)
            && *version != of.version
        {
            // Each apply of one would undo the other.
            let message = format!("{} is desired as {version} and as {}; keep one", child.key, of.version);
            return Err(Failure { reason: "DuplicateChild", message });
        }
        if !child.object.get("metadata").is_some_and(Value::is_object) {
            let message = format!("{}: metadata is not a mapping", child.key);
            return Err(Failure { reason: "InvalidChild", message });
        }
        for field in ["labels", "annotations"] {
            let all = child.object["metadata"].get(field);
            if all.is_some_and(|all| !all.is_object() && !all.is_null()) {
                let message = format!("{}: metadata.{field} is not a mapping of text to text", child.key);
                return Err(Failure { reason: "InvalidChild", message });
            }
        }
    }
    Ok(composed)
}

/// The generation of the object that a child was last written from.
fn generation(meta: &ObjectMeta) -> Option<i64> {
    meta.annotations.as_ref()?.get(OWNER_GENERATION)?.parse().ok()
}

fn conflict(key: &Key, meta: &ObjectMeta, uid: &str) -> Trouble {
    let whose = match ownership(meta, uid) {
        Ownership::Sibling(_) => {
            let owner = meta.annotations.as_ref().and_then(|all| all.get(OWNER)).cloned();
            format!("belongs to {}", owner.unwrap_or_else(|| "another object".to_owned()))
        }
        Ownership::Ours => "is a copy that bears our labels".to_owned(),
        Ownership::Foreign => "is not ours".to_owned(),
    };
    Trouble::new(CONFLICT, format!("{key} is there and {whose}: rename or delete it"))
}

pub(super) fn meta(object: &Value) -> ObjectMeta {
    object.get("metadata").and_then(|meta| serde_json::from_value(meta.clone()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::after_origin(std::time::Duration::from_secs(3600));

    /// An object that desires these, and has no child yet.
    struct Desires {
        children: Vec<(Type, Value)>,
        is_current: bool,
    }

    impl Desires {
        fn composed(&self) -> Composed {
            let child = |(of, metadata): &(Type, Value)| Desired {
                id: "child".to_owned(),
                key: Key { of: Arc::new(of.clone()), namespace: Some("ns".to_owned()), name: "a".to_owned() },
                object: json!({"metadata": metadata}),
                unready: None,
            };
            let children = self.children.iter().map(child).collect();
            Composed { children, ..Composed::default() }
        }

        /// The next step of a plan that is told what this desires.
        fn next(&self, plan: &mut Plan) -> Step {
            assert!(matches!(plan.next(self, NOW), Step::Compose));
            plan.composed(Ok(self.composed()));
            plan.next(self, NOW)
        }
    }

    impl Cached for Desires {
        fn child(&self, _: &Key) -> Option<Arc<Value>> {
            None
        }

        fn children(&self) -> Vec<Key> {
            Vec::new()
        }

        fn is_current(&self) -> bool {
            self.is_current
        }

        fn unserved(&self, _: &Type) -> Option<Trouble> {
            None
        }
    }

    fn plan() -> Plan {
        let owner = Owner {
            uid: "u".to_owned(),
            generation: Some(3),
            namespace: Some("ns".to_owned()),
            name: "p".to_owned(),
            reference: json!({"uid": "u"}),
            labels: BTreeMap::from([(SHARD.to_owned(), "widget.example.com".to_owned())]),
            manager: "leasehold/widget".to_owned(),
            is_held: true,
        };
        Plan::new(owner, Arc::default(), String::new(), Arc::default())
    }

    fn config_map() -> Type {
        Type::new("", "v1", "ConfigMap")
    }

    #[test]
    fn what_no_child_can_be_is_an_error_of_the_object() {
        let gadget = |version| (Type::new("a.io", version, "Gadget"), json!({"name": "a"}));
        for (children, expected) in [
            (vec![gadget("v1"), gadget("v2")], "DuplicateChild"),
            (vec![(config_map(), json!({"labels": "text"}))], "InvalidChild"),
            (vec![(config_map(), json!({"annotations": ["text"]}))], "InvalidChild"),
            (vec![(config_map(), json!("text"))], "InvalidChild"),
        ] {
            let step = Desires { children, is_current: true }.next(&mut plan());
            let Step::Report(Outcome::Invalid(trouble)) = step else { panic!("{expected}: {step:?}") };
            assert_eq!(trouble.reason, expected, "{}", trouble.message);
        }
    }

    #[test]
    fn an_object_that_may_be_old_is_read_before_its_first_write_and_the_child_bears_its_generation() {
        let desires =
            |is_current| Desires { children: vec![(config_map(), json!({"name": "a", "labels": null}))], is_current };
        let mut plan = plan();
        assert!(matches!(desires(false).next(&mut plan), Step::Confirm));
        plan.confirmed();
        let Step::Write(writes) = plan.next(&desires(false), NOW) else { panic!() };
        let [Write { object, how: How::Create, .. }] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(object["metadata"]["annotations"][OWNER_GENERATION], "3");
        assert!(matches!(desires(true).next(&mut self::plan()), Step::Write(_)));
    }
}
