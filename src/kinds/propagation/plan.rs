//! Decides what a Propagation wants done. No IO, no clock.
//!
//! [`validate`] turns a spec into a [`Valid`] one; [`targets`] says where copies belong; [`plan`] compares what is there with what should be;
//! [`settle`] decides about an object that is in the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use kube::core::{Selector, SelectorExt};

use super::types::{OnConflict, OnSourceMissing, PropagationSpec, SourceKind};
use crate::{
    kinds::reach::Reach,
    reconcile::{
        apply::{self, Ownership},
        input::{self, NamespaceName, ObjectName},
    },
};

/// A spec that means something.
#[derive(Clone, Debug)]
pub struct Valid {
    pub(in crate::kinds) source: Source,
    selector: Option<Selector>,
    named: BTreeSet<String>,
    exclude: BTreeSet<String>,
    keys: BTreeSet<String>,
    pub(super) on_conflict: OnConflict,
    on_source_missing: OnSourceMissing,
}

/// Says what is wrong with a spec. The API server checks most of it already, but not for objects older than the rule.
pub(in crate::kinds) fn validate(spec: &PropagationSpec) -> Result<Valid, String> {
    let PropagationSpec { source, targets, keys, on_conflict, on_source_missing } = spec;
    let name = ObjectName::dns(&source.name).map_err(|wrong| format!("spec.source.name: {wrong}"))?;
    let namespace = namespace_name("source.namespace", &source.namespace)?;
    if targets.namespace_selector.is_none() && targets.namespaces.is_empty() {
        return Err("spec.targets needs at least one of namespaceSelector and namespaces".to_owned());
    }
    let selector = targets
        .namespace_selector
        .clone()
        .map(input::selector)
        .transpose()
        .map_err(|wrong| format!("spec.targets.namespaceSelector.{wrong}"))?;
    for (field, names) in [("namespaces", &targets.namespaces), ("exclude", &targets.exclude)] {
        for (number, name) in names.iter().enumerate() {
            namespace_name(&format!("targets.{field}[{number}]"), name)?;
        }
    }
    Ok(Valid {
        source: Source { kind: source.kind, namespace, name },
        selector,
        named: targets.namespaces.iter().cloned().collect(),
        exclude: targets.exclude.iter().cloned().collect(),
        keys: keys.iter().cloned().collect(),
        on_conflict: *on_conflict,
        on_source_missing: *on_source_missing,
    })
}

fn namespace_name(field: &str, text: &str) -> Result<NamespaceName, String> {
    NamespaceName::new(text).map_err(|wrong| format!("spec.{field}: {wrong}"))
}

/// What is copied: its name stands in the path of every request for a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kinds) struct Source {
    pub(in crate::kinds) kind: SourceKind,
    pub(in crate::kinds) namespace: NamespaceName,
    pub(in crate::kinds) name: ObjectName,
}

/// A namespace, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamespaceState<'a> {
    pub(super) name: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) terminating: bool,
}

/// Where copies belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// Targets that exist.
    pub(super) present: BTreeSet<String>,
    /// Targets listed by name that do not exist.
    pub(super) absent: BTreeSet<String>,
    /// Namespaces that are going away with all they contain, and those out of reach: nothing is done there.
    pub(super) left_alone: BTreeSet<String>,
}

/// Where copies belong, given all namespaces. A selector selects none that is out of reach.
pub(super) fn targets<'a>(
    valid: &Valid,
    reach: &Reach,
    namespaces: impl IntoIterator<Item = NamespaceState<'a>>,
) -> Targets {
    let mut targets = Targets { absent: valid.named.clone(), ..Targets::default() };
    for NamespaceState { name, labels, terminating } in namespaces {
        targets.absent.remove(name);
        let selected = valid.selector.as_ref().is_some_and(|selector| selector.matches(labels));
        if terminating || reach.namespace(name).is_err() {
            targets.left_alone.insert(name.to_owned());
        } else if (selected || valid.named.contains(name)) && !valid.bars(name) {
            targets.present.insert(name.to_owned());
        }
    }
    targets.absent.retain(|name| !valid.bars(name));
    targets
}

impl Valid {
    /// Whether it reaches no further than it may, by what it names.
    ///
    /// # Errors
    /// Which field does, why it must not, and what to do.
    pub(in crate::kinds) fn within(&self, reach: &Reach) -> Result<(), String> {
        let kind = format!("{:?}", self.source.kind);
        reach.of_type("", &kind).map_err(|why| format!("spec.source.kind: {why}"))?;
        reach.namespace(&self.source.namespace).map_err(|why| format!("spec.source.namespace: {why}"))?;
        if let Some(why) =
            self.named.iter().filter(|name| !self.bars(name)).find_map(|name| reach.namespace(name).err())
        {
            return Err(format!("spec.targets.namespaces: {why}"));
        }
        match self.on_conflict {
            OnConflict::Overwrite => reach.overwriting().map_err(|why| format!("spec.onConflict: {why}")),
            OnConflict::Skip => Ok(()),
        }
    }

    /// Whether the namespace is no target whatever names it.
    pub(in crate::kinds) fn bars(&self, namespace: &str) -> bool {
        *namespace == *self.source.namespace || self.exclude.contains(namespace)
    }
}

/// What is copied of a ConfigMap or Secret. `Debug` shows no values.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    /// Of a Secret only.
    pub(super) type_: Option<String>,
    pub(super) data: BTreeMap<String, String>,
    /// Of a ConfigMap only.
    pub(super) binary_data: BTreeMap<String, String>,
    pub(super) immutable: bool,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("type", &self.type_)
            .field("keys", &self.data.keys().chain(self.binary_data.keys()).collect::<Vec<_>>())
            .field("immutable", &self.immutable)
            .finish()
    }
}

impl Content {
    /// What is copied of the source. `Err` names the keys that are asked for and are not there.
    pub(super) fn wanted(mut self, valid: &Valid) -> Result<Self, Vec<String>> {
        if valid.keys.is_empty() {
            return Ok(self);
        }
        let has = |key: &String| self.data.contains_key(key) || self.binary_data.contains_key(key);
        let missing: Vec<String> = valid.keys.iter().filter(|key| !has(key)).cloned().collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        self.data.retain(|key, _| valid.keys.contains(key));
        self.binary_data.retain(|key, _| valid.keys.contains(key));
        Ok(self)
    }

    /// A digest that changes when the content does. Never shown for a Secret, whose values one could guess from it.
    pub(super) fn digest(&self) -> String {
        let fields = self.data.iter().chain(&self.binary_data).flat_map(|(key, value)| [key, value]);
        let bytes = fields.flat_map(|text| text.bytes().chain([0xff]));
        apply::digest(bytes.chain([u8::from(self.immutable)]))
    }

    /// Whether a live object has everything that is wanted. Keys that others added do not matter.
    fn covers(&self, wanted: &Self) -> bool {
        let covers = |live: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| live.get(key) == Some(value))
        };
        self.type_ == wanted.type_
            && self.immutable == wanted.immutable
            && covers(&self.data, &wanted.data)
            && covers(&self.binary_data, &wanted.binary_data)
    }

    /// Whether the API server would refuse to turn a live object into the wanted one.
    fn frozen(&self, wanted: &Self) -> bool {
        self.type_ != wanted.type_
            || (self.immutable
                && (!wanted.immutable || self.data != wanted.data || self.binary_data != wanted.binary_data))
    }
}

/// The place of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) kind: SourceKind,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// An object that bears our marks.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) place: Place,
    pub(super) uid: String,
    pub(super) ownership: Ownership,
    /// Our field manager has applied it. Labels alone may have been copied by a user.
    pub(super) applied_by_us: bool,
    pub(super) deleting: bool,
    /// Bears all labels and the owner reference that a copy has.
    pub(super) marked: bool,
    /// What it contains; `None` if that was not read because it is not of the source's kind.
    pub(super) content: Option<Content>,
    /// The keys of `data` and of `binaryData` that we have applied.
    pub(super) applied_keys: (BTreeSet<String>, BTreeSet<String>),
}

impl Child {
    fn in_sync(&self, wanted: &Content) -> bool {
        let keys = |fields: &BTreeMap<String, String>| fields.keys().cloned().collect::<BTreeSet<_>>();
        self.marked
            && self.content.as_ref().is_some_and(|live| live.covers(wanted))
            && self.applied_keys == (keys(&wanted.data), keys(&wanted.binary_data))
    }
}

/// What is known of the source.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Copies shall be like this.
    Content(Content),
    /// There is nothing to copy. Copies may go if the spec says so.
    Missing,
    /// The source exists but cannot be copied. Copies stay.
    Unusable,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Namespaces whose copy is as it should be.
    pub(super) synced: BTreeSet<String>,
    /// Namespaces whose copy has drifted, with its uid.
    pub(super) update: Vec<(String, String)>,
    /// Namespaces whose copy cannot be changed into the wanted one, with its uid.
    pub(super) recreate: Vec<(String, String)>,
    /// Namespaces without a copy of ours.
    pub(super) create: Vec<String>,
    /// Copies that no longer belong where they are, with their uids.
    pub(super) prune: Vec<(Place, String)>,
}

/// Compares the children with what should be.
///
/// Copies are pruned although another one may fail to be written: they do not depend on each other, and a namespace that lost
/// the right to a Secret shall not keep it because some other namespace is over its quota.
pub(super) fn plan(valid: &Valid, wanted: &Wanted, targets: &Targets, children: &[Child]) -> Plan {
    let Source { kind, namespace, name } = &valid.source;
    let source = Place { kind: *kind, namespace: namespace.to_string(), name: name.to_string() };
    let at = |namespace: &str| Place { kind: *kind, namespace: namespace.to_owned(), name: name.to_string() };
    let mut plan = Plan::default();

    if let Wanted::Content(wanted) = wanted {
        for target in &targets.present {
            let place = at(target);
            let copy = children.iter().find(|child| child.place == place && child.ownership == Ownership::Ours);
            match copy {
                Some(copy) if copy.deleting => plan.create.push(target.clone()),
                Some(copy) if copy.in_sync(wanted) => _ = plan.synced.insert(target.clone()),
                Some(copy) if copy.content.as_ref().is_some_and(|live| live.frozen(wanted)) => {
                    plan.recreate.push((target.clone(), copy.uid.clone()));
                }
                Some(copy) => plan.update.push((target.clone(), copy.uid.clone())),
                None => plan.create.push(target.clone()),
            }
        }
    }

    let stays = |child: &Child| {
        let target = targets.present.contains(&child.place.namespace);
        match wanted {
            Wanted::Content(_) => target && child.place == at(&child.place.namespace),
            Wanted::Missing => target && valid.on_source_missing == OnSourceMissing::Keep,
            Wanted::Unusable => target,
        }
    };
    let prune = children.iter().filter(|child| {
        child.ownership == Ownership::Ours
            && child.applied_by_us
            && !child.deleting
            && !targets.left_alone.contains(&child.place.namespace)
            // A copy that was made the source.
            && child.place != source
            && !stays(child)
    });
    plan.prune = prune.map(|child| (child.place.clone(), child.uid.clone())).collect();
    plan
}

/// An object found where a copy should be created.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) uid: String,
    pub(super) ownership: Ownership,
    pub(super) deleting: bool,
    pub(super) content: Content,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// Nothing is there.
    Create,
    /// Apply over the object with this uid.
    Take(String),
    /// Delete the object with this uid, then create.
    Replace(String),
    /// It is on its way out.
    Wait,
    /// Leave it.
    Conflict,
}

/// Decides about what was found where a copy should be created.
pub(super) fn settle(found: Option<&Found>, wanted: &Content, on_conflict: OnConflict) -> Settlement {
    let Some(found) = found else { return Settlement::Create };
    let may = match (&found.ownership, on_conflict) {
        (Ownership::Ours, _) | (Ownership::Foreign, OnConflict::Overwrite) => true,
        // Two Propagations that overwrite each other would never end.
        (Ownership::Sibling(_), _) | (Ownership::Foreign, OnConflict::Skip) => false,
    };
    match may {
        false => Settlement::Conflict,
        true if found.deleting => Settlement::Wait,
        true if found.content.frozen(wanted) => Settlement::Replace(found.uid.clone()),
        true => Settlement::Take(found.uid.clone()),
    }
}
