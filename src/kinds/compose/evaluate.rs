//! What an object shall have, by its composition. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Map, Value as Json};

use super::{
    cel::{Evaluation, Name, Unknown},
    composition::{Child, Composition, Deletes, Generates, RBAC},
    footprint::role_resource,
    template::{Failed, Template},
};
use crate::{
    reconcile::{
        children::{
            Care, Compose, Composed, Deletion, Desired, Effort, Failure, Generate, Key, Order, Related, Type, View,
            Waiting, without,
        },
        input::{Invalid, NamespaceName, ObjectName},
    },
    replica::term::Access,
};

/// Children of one object.
const MOST: usize = 1000;
/// The API server takes 1.5 MiB, of which some goes to what it writes itself.
const LARGEST: usize = 1 << 20;

/// The longest text by which a request for new values is told from the one before.
const LONGEST_RENEW: usize = 128;

const FAILED: &str = "ExpressionFailed";

impl Compose for Composition {
    fn types(&self) -> Vec<Arc<Type>> {
        Self::types(self)
    }

    /// The API server lets an account give away only rights that it has, or a role that it may bind; the same holds for writing a role.
    fn rights(&self) -> Vec<Access> {
        let roles = self.children.iter().filter_map(|child| child.binds.clone());
        let bind = |(resource, name): (&'static str, String)| Access::new("bind", RBAC, resource).named(name);
        let written = self.children.iter().filter_map(|child| role_resource(&child.of));
        let escalate = written.map(|resource| Access::new("escalate", RBAC, resource));
        roles.map(bind).chain(escalate).collect()
    }

    fn related(&self) -> BTreeMap<String, Related> {
        self.related.clone()
    }

    fn order(&self) -> Order {
        let mut order = Order::default();
        // Each stands after those that it depends on.
        for child in &self.children {
            let mut all = BTreeSet::new();
            for id in child.refers.iter().chain(&child.after).chain(&child.maybe) {
                all.insert(id.clone());
                all.extend(order.depends.get(id).into_iter().flatten().cloned());
            }
            order.depends.insert(child.id.clone(), all);
            if !child.after.is_empty() {
                order.explicit.insert(child.id.clone());
            }
        }
        order
    }

    fn compose(&self, view: &View<'_>, effort: Effort) -> Result<Option<Composed>, Failure> {
        let mut seen = Evaluation::new(effort == Effort::Brief);
        seen.show(Name::Parent, view.parent);
        for (id, objects) in view.related {
            let list = Json::Array(objects.iter().map(|object| Json::clone(object)).collect());
            seen.show(Name::Related(id.clone()), &list);
        }
        let composed = self.compose_with(view, &mut seen);
        // What has failed may have failed for want of time.
        if effort == Effort::Brief && seen.is_over() { Ok(None) } else { composed.map(Some) }
    }
}

impl Composition {
    fn compose_with(&self, view: &View<'_>, seen: &mut Evaluation) -> Result<Composed, Failure> {
        let mut pass = Pass {
            view,
            composed: Composed::default(),
            keys: BTreeMap::new(),
            fates: BTreeMap::new(),
            unready: BTreeMap::new(),
            optional: &self.optional,
        };
        for child in &self.children {
            let fate = pass.child(child, seen)?;
            if let Fate::Waits(reason) = &fate {
                pass.composed.waiting.push(Waiting { id: child.id.clone(), reason: reason.clone() });
            }
            if matches!(fate, Fate::Excluded) && self.optional.contains(&child.id) {
                seen.show(Name::Maybe(child.id.clone()), &Json::Object(Map::new()));
            }
            pass.fates.insert(&child.id, fate);
        }
        let Pass { mut composed, .. } = pass;
        composed.status = status(&self.status, seen, &mut composed.failed);
        Ok(composed)
    }
}

/// What has become of a template.
enum Fate {
    /// All its children are there.
    Seen,
    /// They are said, and not all of them are there.
    Said,
    /// There shall be none.
    Excluded,
    Waits(String),
}

struct Pass<'a, 'v> {
    view: &'a View<'v>,
    composed: Composed,
    /// The children so far, and which template made each.
    keys: BTreeMap<Key, &'a str>,
    fates: BTreeMap<&'a str, Fate>,
    /// Templates of which a child is not ready, and why.
    unready: BTreeMap<&'a str, String>,
    /// Templates that others take for optional.
    optional: &'a BTreeSet<String>,
}

impl<'a> Pass<'a, '_> {
    fn child(&mut self, child: &'a Child, seen: &mut Evaluation) -> Result<Fate, Failure> {
        for id in &child.refers {
            match self.fates.get(id.as_str()) {
                Some(Fate::Excluded) => return Ok(Fate::Excluded),
                Some(Fate::Seen) => {}
                _ => return Ok(Fate::Waits(format!("for {id}"))),
            }
        }
        for id in &child.maybe {
            if !matches!(self.fates.get(id.as_str()), Some(Fate::Seen | Fate::Excluded)) {
                return Ok(Fate::Waits(format!("for {id}")));
            }
        }
        for (number, condition) in child.include_when.iter().enumerate() {
            let path = format!("includeWhen[{number}]");
            match may_come(child, &path, seen.value(condition), condition.refers())? {
                Ok(Json::Bool(true)) => {}
                Ok(Json::Bool(false)) => return Ok(Fate::Excluded),
                Ok(_) => return Err(failed(child, &path, "must be true or false")),
                Err(reason) => return Ok(Fate::Waits(reason)),
            }
        }
        for id in &child.after {
            if !matches!(self.fates.get(id.as_str()), Some(Fate::Seen | Fate::Excluded)) {
                return Ok(Fate::Waits(format!("for {id}")));
            }
        }
        // It is said all the same, so that it is not taken for one that shall go.
        let held = child.after_ready.iter().find_map(|id| {
            let why = self.unready.get(id.as_str())?;
            Some(format!("until {id} is ready: {why}"))
        });
        let Some((list, max)) = &child.for_each else {
            return self.one(child, held.as_deref(), seen);
        };
        let items = match may_come(child, "forEach", seen.value(list), list.refers())? {
            Ok(Json::Null) => Vec::new(),
            Ok(Json::Array(items)) => items,
            // As pairs, in the order of their keys.
            Ok(Json::Object(fields)) => {
                let pair = |(key, value)| {
                    Json::Object(Map::from_iter([("key".to_owned(), Json::String(key)), ("value".to_owned(), value)]))
                };
                fields.into_iter().map(pair).collect()
            }
            Ok(_) => return Err(failed(child, "forEach", "must be a list or a mapping")),
            Err(reason) => return Ok(Fate::Waits(reason)),
        };
        if items.len() > usize::from(*max) {
            let message = format!("makes {} children, and the most is {max}; set `max` for up to 1000", items.len());
            return Err(Failure { reason: "TooManyChildren", message: format!("{}.forEach {message}", child.id) });
        }
        let mut there = Some(Vec::new());
        let mut waits = None;
        for (index, item) in items.iter().enumerate() {
            let mut inner = seen.inner();
            inner.show(Name::Each, item);
            inner.show(Name::Index, &Json::from(index));
            match self.desired(child, held.as_deref(), &inner)? {
                Ok(object) => match object {
                    Some(object) => there.iter_mut().for_each(|there| there.push(Json::clone(&object))),
                    None => there = None,
                },
                Err(reason) => waits = Some(reason),
            }
        }
        Ok(match (waits, there) {
            (Some(reason), _) => Fate::Waits(reason),
            (None, None) => Fate::Said,
            (None, Some(there)) => {
                self.show(child, &Json::Array(there), seen);
                Fate::Seen
            }
        })
    }

    fn show(&self, child: &Child, there: &Json, seen: &mut Evaluation) {
        seen.show(Name::Child(child.id.clone()), there);
        if self.optional.contains(&child.id) {
            let of_its_id = Map::from_iter([(child.id.clone(), there.clone())]);
            seen.show(Name::Maybe(child.id.clone()), &Json::Object(of_its_id));
        }
    }

    fn one(&mut self, child: &'a Child, held: Option<&str>, seen: &mut Evaluation) -> Result<Fate, Failure> {
        Ok(match self.desired(child, held, seen)? {
            Ok(Some(object)) => {
                self.show(child, &object, seen);
                Fate::Seen
            }
            Ok(None) => Fate::Said,
            Err(reason) => Fate::Waits(reason),
        })
    }

    /// Says one child. The object as it was last seen, if it was; or what it waits for.
    fn desired(
        &mut self,
        child: &'a Child,
        held: Option<&str>,
        seen: &Evaluation,
    ) -> Result<Result<Option<Arc<Json>>, String>, Failure> {
        let mut with_itself = None;
        if child.template.refers().contains(&Name::Myself) {
            let key = match self.found_by(child, seen)? {
                Ok(key) => key,
                Err(reason) => return Ok(Err(reason)),
            };
            // One that is not there yet has no fields.
            let there = self.there(child, &key).unwrap_or_else(|| Arc::new(Json::Object(Map::new())));
            let mut inner = seen.inner();
            inner.show(Name::Myself, &there);
            with_itself = Some(inner);
        }
        let template = match value(child, &child.template, with_itself.as_ref().unwrap_or(seen), "template")? {
            Ok(template) => template,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(mut object) = template else { return Err(failed(child, "template", "must be a mapping")) };
        let key = self.key(child, &mut object)?;
        if let Some(first) = self.keys.insert(key.clone(), &child.id) {
            let message = format!("children {first} and {} both make {key}: give one of them another name", child.id);
            return Err(Failure { reason: "DuplicateChild", message });
        }
        if self.keys.len() > MOST {
            let message = format!("more than {MOST} children of one object");
            return Err(Failure { reason: "TooManyChildren", message });
        }
        let size = serde_json::to_vec(&object).map_or(usize::MAX, |text| text.len());
        if size > LARGEST {
            let message = format!("{}: {key} has {size} bytes, and the most is {LARGEST}", child.id);
            return Err(Failure { reason: "ChildTooLarge", message });
        }
        let there = self.there(child, &key);
        let unready = match &there {
            None => Some("not there yet".to_owned()),
            Some(there) if !seen.look_at(there) => {
                return Err(failed(child, "template", "the children of this object take too long to look at"));
            }
            Some(there) => unready(child, there, seen).unwrap_or_else(|failure| {
                // Whether it is ready is asked when it is there: nothing that is applied depends on it.
                self.composed.failed.push(failure.message.clone());
                Some(failure.message)
            }),
        };
        if let Some(why) = &unready {
            self.unready.entry(&child.id).or_insert_with(|| format!("{key}: {why}"));
        }
        let care = Care { deletion: deletion(child, seen)?, adopt: child.adopt, update: child.update };
        let (held, generate) = (held.map(str::to_owned), generate(child, seen)?);
        let follows = child.after_ready.clone();
        let desired = Desired { unready, held, follows, care, generate, ..Desired::new(&child.id, key, object) };
        self.composed.children.push(desired);
        Ok(Ok(there))
    }

    /// The child as expressions see it: what is generated in it is not for them, whether it says so itself or not.
    fn there(&self, child: &Child, key: &Key) -> Option<Arc<Json>> {
        let there = (self.view.child)(key)?;
        Some(match &child.generates {
            Some(generates) => without(there, generates.values.keys().map(String::as_str)),
            None => there,
        })
    }

    /// The key of a child whose template looks at the child itself: its name and its namespace do not.
    fn found_by(&self, child: &Child, seen: &Evaluation) -> Result<Result<Key, String>, Failure> {
        let mut metadata = Map::new();
        for field in ["name", "namespace"] {
            let Some(part) = child.template.field("metadata").and_then(|metadata| metadata.field(field)) else {
                continue;
            };
            match value(child, part, seen, &format!("template.metadata.{field}"))? {
                Ok(Some(text)) => _ = metadata.insert(field.to_owned(), text),
                Ok(None) => {}
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let mut object = Json::Object(Map::from_iter([("metadata".to_owned(), Json::Object(metadata))]));
        self.key(child, &mut object).map(Ok)
    }

    /// Its name, and the namespace that it gets if it says none: that of the parent.
    fn key(&self, child: &Child, object: &mut Json) -> Result<Key, Failure> {
        let own = self.view.parent.pointer("/metadata/namespace").and_then(Json::as_str).map(str::to_owned);
        let Some(metadata) = object.pointer_mut("/metadata").and_then(Json::as_object_mut) else {
            return Err(failed(child, "template.metadata", "must be a mapping"));
        };
        for field in ["labels", "annotations"] {
            // The engine adds its own.
            if metadata.get(field).is_some_and(|value| !value.is_object()) {
                return Err(failed(child, &format!("template.metadata.{field}"), "must be a mapping"));
            }
        }
        let text = |metadata: &Map<String, Json>, field: &str| match metadata.get(field) {
            None => Ok(None),
            Some(Json::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(failed(child, &format!("template.metadata.{field}"), "must be text, and not empty")),
        };
        let name = text(metadata, "name")?.ok_or_else(|| failed(child, "template.metadata.name", "is left out"))?;
        let mut namespace = text(metadata, "namespace")?;
        if !(self.view.is_namespaced)(&child.of) {
            if namespace.is_some() {
                let message = format!("a {} is in no namespace", child.of.kind);
                return Err(failed(child, "template.metadata.namespace", &message));
            }
        } else if namespace.is_none() {
            let Some(own) = own else {
                let message = "is left out, and the object that is reconciled has none to give";
                return Err(failed(child, "template.metadata.namespace", message));
            };
            metadata.insert("namespace".to_owned(), Json::String(own.clone()));
            namespace = Some(own);
        }
        // They stand in the path of every request about it.
        let invalid =
            |field: &str, wrong: &Invalid| failed(child, &format!("template.metadata.{field}"), &wrong.rule());
        ObjectName::new(&name).map_err(|wrong| invalid("name", &wrong))?;
        if let Some(namespace) = &namespace {
            NamespaceName::new(namespace).map_err(|wrong| invalid("namespace", &wrong))?;
        }
        Ok(Key { of: Arc::clone(&child.of), namespace, name })
    }
}

/// What becomes of the child when it is not desired any more.
fn deletion(child: &Child, seen: &Evaluation) -> Result<Deletion, Failure> {
    let expression = match &child.deletion {
        Deletes::Plain(deletion) => return Ok(*deletion),
        Deletes::Said(expression) => expression,
    };
    match seen.value(expression) {
        Ok(Json::String(text)) if text == "Delete" => Ok(Deletion::Delete),
        Ok(Json::String(text)) if text == "Keep" => Ok(Deletion::Keep),
        Ok(_) => Err(failed(child, "deletion", "must be `Delete` or `Keep`")),
        Err(Unknown::Missing(why, _) | Unknown::Failed(why)) => Err(failed(child, "deletion", &why)),
    }
}

/// The values that are generated in it, and for which request.
fn generate(child: &Child, seen: &Evaluation) -> Result<Option<Generate>, Failure> {
    let Some(Generates { values, renew }) = &child.generates else { return Ok(None) };
    let renew = match renew.as_ref().map(|renew| renew.value(seen, "renew")).transpose() {
        Ok(None | Some(None)) => None,
        Ok(Some(Some(Json::String(text)))) if text.len() <= LONGEST_RENEW => Some(text),
        Ok(Some(Some(value @ (Json::Number(_) | Json::Bool(_))))) => Some(value.to_string()),
        Ok(_) => return Err(failed(child, "renew", "must be text of 128 bytes at the most, a number, true or false")),
        Err(Failed { path, why: Unknown::Missing(why, _) | Unknown::Failed(why) }) => {
            return Err(failed(child, &path, &why));
        }
    };
    Ok(Some(Generate { values: values.clone(), renew }))
}

/// The value of a template, or of a part of it; or what it waits for.
fn value(
    child: &Child,
    template: &Template,
    seen: &Evaluation,
    path: &str,
) -> Result<Result<Option<Json>, String>, Failure> {
    match template.value(seen, path) {
        Ok(value) => Ok(Ok(value)),
        Err(Failed { path, why }) => {
            let refers = template.refers().into_iter().cloned().collect();
            may_come(child, &path, Err(why), &refers)
        }
    }
}

/// What a child is waited for to be ready.
fn unready(child: &Child, there: &Json, seen: &Evaluation) -> Result<Option<String>, Failure> {
    if child.ready_when.is_empty() {
        return Ok(None);
    }
    let mut inner = seen.inner();
    inner.show(Name::Myself, there);
    for (number, condition) in child.ready_when.iter().enumerate() {
        let path = format!("readyWhen[{number}]");
        match inner.value(condition) {
            Ok(Json::Bool(true)) => {}
            Ok(Json::Bool(false)) => return Ok(Some(condition.text().to_owned())),
            Ok(_) => return Err(failed(child, &path, "must be true or false")),
            // What a controller has not written yet.
            Err(Unknown::Missing(what, _)) => return Ok(Some(what)),
            Err(Unknown::Failed(why)) => return Err(failed(child, &path, &why)),
        }
    }
    Ok(None)
}

/// A field that is missing from a child may come; from the parent it does not.
fn may_come<T>(
    child: &Child,
    path: &str,
    value: Result<T, Unknown>,
    refers: &BTreeSet<Name>,
) -> Result<Result<T, String>, Failure> {
    let comes = |name: &Name| match name {
        Name::Child(_) | Name::Maybe(_) | Name::Related(_) => true,
        // The items of a list are whose that list is.
        Name::Each => child.for_each.iter().flat_map(|(list, _)| list.refers()).any(is_another),
        Name::Parent | Name::Index | Name::Myself | Name::Old | Name::User => false,
    };
    match value {
        Ok(value) => Ok(Ok(value)),
        Err(Unknown::Missing(what, Some(root))) if comes(&root) => Ok(Err(format!("{path}: {what}"))),
        // Where the text does not tell whose it is, it may be that of any that it names.
        Err(Unknown::Missing(what, None)) if refers.iter().any(comes) => Ok(Err(format!("{path}: {what}"))),
        Err(Unknown::Missing(why, _) | Unknown::Failed(why)) => Err(failed(child, path, &why)),
    }
}

/// Whether it is of another object, which changes without the parent.
fn is_another(name: &Name) -> bool {
    matches!(name, Name::Child(_) | Name::Maybe(_) | Name::Related(_))
}

fn failed(child: &Child, path: &str, why: &str) -> Failure {
    Failure { reason: FAILED, message: format!("{}.{path}: {why}", child.id) }
}

/// The fields of the status that have a value; the others come later, or have failed.
fn status(template: &Template, seen: &Evaluation, failed: &mut Vec<String>) -> Map<String, Json> {
    let Template::Map(fields) = template else { return Map::new() };
    let mut values = Map::new();
    for (name, field) in fields {
        match field.value(seen, &format!("status.{name}")) {
            Ok(Some(value)) => _ = values.insert(name.clone(), value),
            Ok(None) | Err(Failed { why: Unknown::Missing(..), .. }) => {}
            Err(Failed { path, why: Unknown::Failed(why) }) => failed.push(format!("{path}: {why}")),
        }
    }
    values
}
