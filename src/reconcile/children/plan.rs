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
    Composed, Deletion, Desired, Failure, Key, Order, Type, Update,
    adopt::{bears_marks, marking, may_adopt, owners_kept},
    applied::{digest, is_as_applied, would_leave},
    fights::{CONTESTED, Decision, Fights, Rival, rival},
    generated::{Values, hide, mark},
    order::{Going, is_to_be_held, turn},
    ours::{Claim, is_ours, is_superfluous},
    report::Done,
};
use crate::{
    protocol::moment::Moment,
    reconcile::{
        apply::{APPLIED, CHILD, DELETION, KEEP, OWNER, OWNER_GENERATION, SHARD},
        stages::{Outcome, Trouble},
    },
};

/// The reason for a child that is deleted to be made anew.
pub(super) const RECREATING: &str = "Recreating";
/// The reason for children that are made anew when another writer deletes them.
pub(super) const ON_DELETE: &str = "OnDelete";
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
    /// Tell that these objects are taken over, before the first of them is written: each with what it is.
    Announce(Vec<(Key, String)>),
    /// Delete these, which cannot be changed as desired: they are made anew.
    Replace(Vec<Replace>),
    /// Delete these, or release those that are kept.
    Delete(Vec<Going>),
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
    /// If the API server refuses the change of a field, it may be deleted and made anew.
    pub(super) recreates: bool,
    /// Values that are generated, which `object` lacks.
    pub(super) values: Option<Values>,
}

/// How a child is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// There is none of that name.
    Create,
    /// The one with this uid is there.
    Apply {
        uid: String,
        /// Its creation owns a field that is not desired, in this version: what the creation owns becomes what an apply owns
        /// first, or that field would stay.
        created: Option<String>,
        /// It is written in this version of it only.
        version: Option<String>,
        /// It is taken over.
        is_adopted: bool,
        /// A merge patch that takes off owner references that cannot stand beside ours.
        disown: Option<Value>,
    },
    /// Its marks are written, by this merge patch, and nothing else of it.
    Mark(Value),
}

/// One child to be deleted and made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replace {
    pub(super) key: Key,
    pub(super) uid: String,
    /// What the API server says of the change.
    pub(super) why: String,
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
        metadata["annotations"][CHILD] = json!(child.id);
        if child.care.deletion == Deletion::Keep {
            metadata["annotations"][DELETION] = json!(KEEP);
        } else if self.can_own(&child.key) {
            metadata["ownerReferences"] = json!([self.reference]);
        }
        if let Some(generate) = &child.generate {
            mark(&mut metadata["annotations"], generate);
        }
        // Marks are written whatever the update is, so they make no child an old one.
        let digest = digest(if child.care.update == Update::OnDelete { &child.object } else { &object });
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
        child.filter(|child| is_ours(&meta(child), &self.owner.claim())).map(hide)
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
    /// Those that were released.
    kept: Vec<Key>,
    /// Objects of which it was told that they are taken over.
    announced: BTreeSet<Key>,
    /// Children that cannot be changed as desired.
    replace: Vec<Replace>,
    /// Those that are not written before others are ready, and what they wait for.
    held: BTreeMap<Key, String>,
    /// Those that are made anew when another writer has deleted them.
    outdated: BTreeSet<Key>,
    order: Order,
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
        order: Order,
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
            kept: Vec::new(),
            announced: BTreeSet::new(),
            replace: Vec::new(),
            held: BTreeMap::new(),
            outdated: BTreeSet::new(),
            order,
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

    /// The API server refuses to change a child, and would take a new one: what it says of the change.
    pub(super) fn is_replaceable(&mut self, key: Key, uid: String, why: String) {
        self.done.insert(key.clone());
        self.replace.push(Replace { key, uid, why });
    }

    /// What became of the deletion of a child that is made anew.
    pub(super) fn replaced(&mut self, Replace { key, why, .. }: Replace, deletion: Result<(), Trouble>) {
        let message = format!("{key} is deleted and made anew, for it cannot be changed: {why}");
        self.trouble.push(deletion.err().unwrap_or_else(|| Trouble::new(RECREATING, message)));
    }

    /// What became of the release of a child that is kept.
    pub(super) fn released(&mut self, key: Key, release: Result<(), Trouble>) {
        match release {
            Ok(()) => self.kept.push(key),
            Err(trouble) => self.trouble.push(trouble),
        }
    }

    /// The children that this pass has released.
    pub(super) fn take_kept(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.kept)
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
        if !self.owner.is_held && is_to_be_held(&self.order, &composed, &self.owner) {
            self.composed = Some(Ok(composed));
            return Step::Hold;
        }
        if !self.replace.is_empty() {
            self.composed = Some(Ok(composed));
            if !self.confirmed {
                return Step::Confirm;
            }
            return Step::Replace(std::mem::take(&mut self.replace));
        }
        // What is refused in a round is read again in the next pass, with all that waits for it.
        let Writes { writes, is_outrun, to_read, adoptions } =
            if self.trouble.is_empty() { self.writes(&composed, seen, now) } else { Writes::default() };
        if !to_read.is_empty() {
            self.composed = Some(Ok(composed));
            return Step::Read(to_read);
        }
        if !adoptions.is_empty() {
            self.composed = Some(Ok(composed));
            if !self.confirmed {
                return Step::Confirm;
            }
            self.announced.extend(adoptions.iter().map(|(key, _)| key.clone()));
            return Step::Announce(adoptions);
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
        let Writes { mut writes, mut is_outrun, mut to_read, mut adoptions } = Writes::default();
        self.held.clear();
        self.outdated.clear();
        // In the order of their dependencies, so that those that a child follows come before it.
        let mut changing = BTreeSet::new();
        for child in &composed.children {
            if self.done.contains(&child.key) {
                self.settled(&child.key, now);
                continue;
            }
            if self.contested.found.contains_key(&child.key) {
                continue;
            }
            let key = child.key.clone();
            let follows_a_change = child.follows.iter().any(|id| changing.contains(id));
            if let Some(trouble) = seen.unserved(&key.of) {
                self.refused(key, trouble);
                continue;
            }
            let live = self.child(&key, seen);
            let (object, digest) = self.owner.dressed(child);
            let held = child.held.as_ref().map(|why| format!("{} waits {why}", child.id));
            let values = child.generate.as_ref().map(|generate| Values::of(generate, live.as_deref()));
            let Some(live) = live else {
                if let Some(held) = held {
                    self.held.insert(key, held);
                    continue;
                }
                match self.decide(&key, &digest, None, &object, now) {
                    Action::Write if follows_a_change => {}
                    Action::Write => {
                        changing.insert(&child.id);
                        writes.push(Write { key, object, digest, how: How::Create, recreates: false, values })
                    }
                    Action::Read => to_read.push(key),
                    Action::Leave => {}
                }
                continue;
            };
            let meta = meta(&live);
            let is_adopted = !is_ours(&meta, &self.owner.claim());
            if is_adopted {
                let desired = (&child.object, child.care.adopt, child.care.update);
                match may_adopt(&key, &live, &meta, desired, &self.owner) {
                    Err(trouble) => {
                        self.refused(key, trouble);
                        continue;
                    }
                    Ok(told)
                        if meta.deletion_timestamp.is_none() && held.is_none() && !self.announced.contains(&key) =>
                    {
                        adoptions.push((key, told));
                        continue;
                    }
                    Ok(_) => {}
                }
            }
            let only_marks = child.care.update == Update::OnDelete;
            let is_settled = match only_marks {
                true => bears_marks(&live, &object),
                false => match &values {
                    None => is_as_applied(&live, &object, &digest, &self.owner.manager),
                    Some(values) => {
                        is_as_applied(&live, &values.carried_by(&object), &digest, &self.owner.manager)
                            && values.is_complete()
                    }
                },
            };
            if meta.deletion_timestamp.is_some() {
                let message = format!("{key} is being deleted");
                self.refused(key, Trouble::new("ChildTerminating", message));
            } else if is_settled && !is_adopted {
                let borne = meta.annotations.as_ref().and_then(|all| all.get(APPLIED));
                if only_marks && borne != Some(&digest) {
                    self.outdated.insert(key.clone());
                }
                self.settled(&key, now);
            } else if let Some(held) = held {
                self.held.insert(key, held);
            } else {
                match self.decide(&key, &digest, Some(&live), &object, now) {
                    Action::Write if follows_a_change => {}
                    Action::Write => {
                        changing.insert(&child.id);
                        is_outrun |= generation(&meta) > self.owner.generation;
                        let how = if only_marks {
                            How::Mark(marking(&live, &object, &self.owner))
                        } else {
                            How::apply(&live, meta, &object, (is_adopted, values.is_some()), &self.owner)
                        };
                        let recreates = child.care.update == Update::Recreate;
                        writes.push(Write { key, object, digest, how, recreates, values });
                    }
                    Action::Read => to_read.push(key),
                    Action::Leave => {}
                }
            }
        }
        Writes { writes, is_outrun, to_read, adoptions }
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

    /// Children of the object that are no longer desired, and whose turn it is.
    fn deletes(&self, composed: &Composed, seen: &dyn Cached) -> Vec<Going> {
        let desired: BTreeSet<&Key> = composed.children.iter().map(|child| &child.key).collect();
        let mut going = Vec::new();
        // Most are desired, and need not be read to know that.
        for key in seen.children().into_iter().filter(|key| !desired.contains(key)) {
            let Some(object) = self.child(&key, seen) else { continue };
            let meta = meta(&object);
            if is_superfluous(&key, &meta, &desired, &self.owner.claim()) {
                going.push(Going::new(key, &meta));
            }
        }
        turn(&self.order, going)
    }

    fn done(&mut self, composed: Composed) -> Done {
        let unready = composed.children.iter().filter_map(|child| Some((child, child.unready.as_ref()?)));
        let waiting = composed.waiting.iter().map(|waiting| format!("{} waits {}", waiting.id, waiting.reason));
        // Of a forEach it is said once.
        let held: BTreeSet<_> = std::mem::take(&mut self.held).into_values().collect();
        let contested = self.contested.found.values();
        let contested = contested.map(|rival| Trouble::new(CONTESTED, &rival.message));
        let trouble = std::mem::take(&mut self.trouble).into_iter().chain(contested).collect();
        Done {
            trouble,
            waiting: waiting.collect(),
            held: held.into_iter().collect(),
            outdated: self.outdated.iter().map(Key::to_string).collect(),
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
    /// Objects of which it has to be told first that they are taken over.
    adoptions: Vec<(Key, String)>,
}

impl How {
    /// A child that is there is applied. `is_adopted`: it was another's.
    /// `is_valued`: a value of it that was seen is written, which must be none that was there before.
    fn apply(
        live: &Value,
        meta: ObjectMeta,
        dressed: &Value,
        (is_adopted, is_valued): (bool, bool),
        owner: &Owner,
    ) -> Self {
        let version = meta.resource_version.clone().unwrap_or_default();
        let disown = owners_kept(&meta, owner).map(|owners| match is_adopted {
            // The accounts of kinds may write what bears their marks, and nothing else.
            true => marking(live, dressed, owner),
            false => json!({"metadata": {"uid": meta.uid, "resourceVersion": version, "ownerReferences": owners}}),
        });
        Self::Apply {
            created: would_leave(live, dressed, &owner.manager).then(|| version.clone()),
            version: (is_adopted || is_valued).then_some(version),
            is_adopted,
            uid: meta.uid.unwrap_or_default(),
            disown,
        }
    }
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

pub(super) fn meta(object: &Value) -> ObjectMeta {
    object.get("metadata").and_then(|meta| serde_json::from_value(meta.clone()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::children::{Adopt, Care, Characters, Generate, Recipe};

    const NOW: Moment = Moment::after_origin(std::time::Duration::from_secs(3600));

    /// An object that desires these, and has no child yet.
    struct Desires {
        children: Vec<(Type, Value)>,
        is_current: bool,
    }

    impl Desires {
        fn composed(&self) -> Composed {
            let child = |(of, metadata): &(Type, Value)| {
                let key = Key { of: Arc::new(of.clone()), namespace: Some("ns".to_owned()), name: "a".to_owned() };
                Desired::new("child", key, json!({"metadata": metadata}))
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
        Plan::new(owner, Arc::default(), String::new(), Arc::default(), Order::default())
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

    /// What is there of a plan that desires one ConfigMap `a` with that care.
    struct There {
        care: Care,
        held: Option<String>,
        live: Value,
    }

    impl There {
        fn of(care: Care, live: Value) -> Self {
            Self { care, held: None, live }
        }

        fn next(&self, plan: &mut Plan) -> Step {
            if let step @ (Step::Confirm | Step::Write(_) | Step::Announce(_) | Step::Replace(_)) = plan.next(self, NOW)
            {
                return step;
            }
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "ns"}, "data": {"x": "1"}});
            let child = Desired { care: self.care, held: self.held.clone(), ..Desired::new("child", key(), object) };
            plan.composed(Ok(Composed { children: vec![child], ..Composed::default() }));
            plan.next(self, NOW)
        }
    }

    impl Cached for There {
        fn child(&self, key: &Key) -> Option<Arc<Value>> {
            (*key == self::key() && !self.live.is_null()).then(|| Arc::new(self.live.clone()))
        }

        fn children(&self) -> Vec<Key> {
            Vec::new()
        }

        fn is_current(&self) -> bool {
            true
        }

        fn unserved(&self, _: &Type) -> Option<Trouble> {
            None
        }
    }

    fn filled<const WITH: u8>(bytes: &mut [u8]) -> Option<()> {
        bytes.fill(WITH);
        Some(())
    }

    fn key() -> Key {
        Key { of: Arc::new(config_map()), namespace: Some("ns".to_owned()), name: "a".to_owned() }
    }

    /// By what was seen before the change the first one is still ready.
    #[test]
    fn what_follows_a_child_that_is_ready_is_not_written_in_the_round_that_changes_that_child() {
        let of = |kind: &str| Type::new("", "v1", kind);
        let desires = Desires {
            children: ["ConfigMap", "Service"].map(|kind| (of(kind), json!({"name": "a", "namespace": "ns"}))).into(),
            is_current: true,
        };
        let composed = |held: Option<&str>| {
            let mut composed = desires.composed();
            composed.children[0].id = "base".to_owned();
            composed.children[1].follows = ["base".to_owned()].into();
            composed.children[1].held = held.map(str::to_owned);
            Ok(composed)
        };
        let written = |step: Step| {
            let Step::Write(writes) = step else { panic!("{step:?}") };
            writes.iter().map(|write| write.key.of.kind.clone()).collect::<Vec<_>>()
        };
        for (held, then) in [(None, Some("Service")), (Some("until base is ready: it is not"), None)] {
            let mut plan = plan();
            plan.composed(composed(None));
            assert_eq!(written(plan.next(&desires, NOW)), ["ConfigMap"]);
            let (key, object) = (desires.composed().children[0].key.clone(), Arc::new(json!({"metadata": {}})));
            plan.wrote(key, "", object, NOW);
            plan.composed(composed(held));
            match (then, plan.next(&desires, NOW)) {
                (Some(kind), step) => assert_eq!(written(step), [kind]),
                (None, Step::Report(Outcome::Done(done))) => assert_eq!(done.held.len(), 1, "{done:?}"),
                (None, step) => panic!("{step:?}"),
            }
        }
    }

    /// An object that another writer made.
    fn foreign() -> Value {
        json!({"metadata": {"name": "a", "namespace": "ns", "uid": "it", "resourceVersion": "7", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o", "controller": true},
        ]}, "data": {"x": "0"}})
    }

    #[test]
    fn what_is_taken_over_is_told_after_the_object_was_read_and_before_it_is_written_in_that_version() {
        let mut plan = plan();
        let there = There::of(Care { adopt: Adopt::Always, ..Care::default() }, foreign());
        assert!(matches!(there.next(&mut plan), Step::Confirm));
        plan.confirmed();
        let Step::Announce(told) = plan.next(&there, NOW) else { panic!() };
        assert!(
            told[0].1.contains("is controlled by Other o") && told[0].1.ends_with("what changes is data.x"),
            "{told:?}"
        );
        let Step::Write(writes) = plan.next(&there, NOW) else { panic!() };
        let How::Apply { uid, version, disown: Some(disown), .. } = &writes[0].how else { panic!("{writes:?}") };
        assert_eq!((&**uid, version.as_deref()), ("it", Some("7")));
        // The other controller goes, and ours comes with the marks, without which the accounts of kinds may not write it.
        assert_eq!(
            (&disown["metadata"]["resourceVersion"], &disown["metadata"]["labels"][SHARD]),
            (&json!("7"), &json!("widget.example.com"))
        );
        let owners: Vec<_> =
            disown["metadata"]["ownerReferences"].as_array().unwrap().iter().map(|it| &it["uid"]).collect();
        assert_eq!(owners, ["u"]);
        assert_eq!(writes[0].object["metadata"]["ownerReferences"][0]["uid"], "u");

        for care in [Care::default(), Care { adopt: Adopt::IfUnowned, ..Care::default() }] {
            let step = There::of(care, foreign()).next(&mut self::plan());
            let Step::Report(Outcome::Done(done)) = step else { panic!("{step:?}") };
            assert_eq!(done.trouble[0].reason, "ChildConflict");
        }
    }

    #[test]
    fn what_is_kept_has_no_owner_that_a_garbage_collector_follows_and_holds_its_object() {
        let kept = There::of(Care { deletion: Deletion::Keep, ..Care::default() }, Value::Null);
        let mut free = plan();
        free.owner.is_held = false;
        assert!(matches!(kept.next(&mut free), Step::Hold));
        let Step::Write(writes) = kept.next(&mut plan()) else { panic!() };
        assert_eq!(writes[0].object["metadata"]["annotations"][DELETION], KEEP);
        assert!(writes[0].object["metadata"].get("ownerReferences").is_none());
    }

    #[test]
    fn a_change_waits_for_a_deletion_or_for_another_child_and_marks_are_set_right() {
        let on_delete = Care { update: Update::OnDelete, adopt: Adopt::Always, ..Care::default() };
        let Step::Write(made) = There::of(on_delete, Value::Null).next(&mut plan()) else { panic!() };
        let mut live = made[0].object.clone();
        live["metadata"]["uid"] = json!("it");
        live["metadata"]["managedFields"] =
            json!([{"manager": "leasehold/widget", "operation": "Update", "fieldsV1": {"f:data": {}}}]);
        let outdated = |live: &Value| {
            let step = There::of(on_delete, live.clone()).next(&mut plan());
            let Step::Report(Outcome::Done(done)) = step else { panic!("{step:?}") };
            done.outdated
        };
        assert_eq!(outdated(&live), [""; 0]);
        live["metadata"]["annotations"][APPLIED] = json!("older");
        live["data"]["x"] = json!("0");
        assert_eq!(outdated(&live), ["ConfigMap ns/a"]);
        live["metadata"]["annotations"][CHILD] = json!("renamed");
        let Step::Write(writes) = There::of(on_delete, live.clone()).next(&mut plan()) else { panic!() };
        let How::Mark(marks) = &writes[0].how else { panic!("{writes:?}") };
        assert!(marks.get("data").is_none() && marks["metadata"]["annotations"][CHILD] == "child", "{marks}");

        let held = Some("until db is ready: it is not".to_owned());
        for live in [Value::Null, live] {
            let there = There { care: Care::default(), held: held.clone(), live };
            let step = there.next(&mut plan());
            let Step::Report(Outcome::Done(done)) = step else { panic!("{step:?}") };
            assert_eq!(done.held, ["child waits until db is ready: it is not"]);
        }
    }

    /// A view that is behind would set a value back that was made anew since.
    #[test]
    fn a_generated_value_is_carried_in_the_version_in_which_it_was_seen_and_a_new_one_is_made_on_request() {
        let secret = || Key {
            of: Arc::new(Type::new("", "v1", "Secret")),
            namespace: Some("ns".to_owned()),
            name: "a".to_owned(),
        };
        struct Kept(Value, &'static str);
        impl Kept {
            fn next(&self, plan: &mut Plan, key: Key) -> Step {
                assert!(matches!(plan.next(self, NOW), Step::Compose));
                let recipe = Recipe { length: 24, characters: Characters::Alphanumeric };
                let generate =
                    Generate { values: [("password".to_owned(), recipe)].into(), renew: Some(self.1.to_owned()) };
                let object =
                    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "namespace": "ns"}});
                let child = Desired { generate: Some(generate), ..Desired::new("child", key, object) };
                plan.composed(Ok(Composed { children: vec![child], ..Composed::default() }));
                plan.next(self, NOW)
            }
        }
        impl Cached for Kept {
            fn child(&self, _: &Key) -> Option<Arc<Value>> {
                (!self.0.is_null()).then(|| Arc::new(self.0.clone()))
            }

            fn children(&self) -> Vec<Key> {
                Vec::new()
            }

            fn is_current(&self) -> bool {
                true
            }

            fn unserved(&self, _: &Type) -> Option<Trouble> {
                None
            }
        }
        let Step::Write(first) = Kept(Value::Null, "1").next(&mut plan(), secret()) else { panic!() };
        let Write { object, values: Some(values), how: How::Create, .. } = &first[0] else { panic!("{first:?}") };
        let mut live = values.all_in(object, filled::<7>).unwrap();
        assert_eq!(live["metadata"]["annotations"]["leasehold.dev/generated"], "password");
        let fields = json!({"f:data": {".": {}, "f:password": {}}, "f:metadata": {
            "f:labels": {".": {}, "f:leasehold.dev/shard": {}},
            "f:annotations": {".": {}, "f:leasehold.dev/applied": {}, "f:leasehold.dev/owner": {}, "f:leasehold.dev/owner-generation": {},
                "f:leasehold.dev/child": {}, "f:leasehold.dev/generated": {}, "f:leasehold.dev/renewed-for": {}},
            "f:ownerReferences": {".": {}, "k:{\"uid\":\"u\"}": {}},
        }});
        live["metadata"]["uid"] = json!("it");
        live["metadata"]["resourceVersion"] = json!("7");
        live["metadata"]["managedFields"] =
            json!([{"manager": "leasehold/widget", "operation": "Apply", "fieldsV1": fields}]);
        let step = Kept(live.clone(), "1").next(&mut plan(), secret());
        assert!(matches!(step, Step::Report(_)), "it is as it shall be: {step:?}");
        for (renew, is_new) in [("1", false), ("2", true)] {
            let mut changed = live.clone();
            changed["metadata"]["annotations"][APPLIED] = json!("older");
            let Step::Write(writes) = Kept(changed, renew).next(&mut plan(), secret()) else { panic!() };
            let How::Apply { version: Some(version), .. } = &writes[0].how else { panic!("{writes:?}") };
            assert_eq!((version.as_str(), writes[0].object.get("data")), ("7", None));
            let made = writes[0].values.as_ref().unwrap().all_in(&writes[0].object, filled::<9>).unwrap();
            assert_eq!(made["data"]["password"] != live["data"]["password"], is_new, "{renew}");
        }
    }

    #[test]
    fn a_child_that_cannot_be_changed_is_deleted_after_the_object_was_read() {
        let mut plan = plan();
        let there = There::of(Care { update: Update::Recreate, ..Care::default() }, Value::Null);
        let Step::Write(writes) = there.next(&mut plan) else { panic!() };
        plan.is_replaceable(writes[0].key.clone(), "it".to_owned(), "data: field is immutable".to_owned());
        assert!(matches!(plan.next(&there, NOW), Step::Confirm));
        plan.confirmed();
        let Step::Replace(all) = plan.next(&there, NOW) else { panic!() };
        plan.replaced(all[0].clone(), Ok(()));
        let Step::Report(Outcome::Done(done)) = plan.next(&there, NOW) else { panic!() };
        assert_eq!(done.trouble[0].reason, RECREATING);
        assert!(done.trouble[0].message.contains("field is immutable"), "{:?}", done.trouble);
    }
}
