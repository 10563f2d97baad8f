//! Of which types, and where, an object can have children: not only now, but whatever becomes of other objects. Pure.
//!
//! What an object itself says decides here; what rests on its status, on children or on what is related may be anything
//! tomorrow, so a child that depends on it counts as there, and a namespace that does as any.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Map, Value as Json};

use super::{
    cel::{Evaluation, Expression, Name, Unknown},
    composition::{Child, Composition, RBAC},
    template::{Failed, Part, Template},
};
use crate::{
    reconcile::{children::Type, input::NamespaceName},
    webhooks::action::Place,
};

/// Children of one type in one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kinds) struct Print {
    pub(in crate::kinds) of: Arc<Type>,
    pub(in crate::kinds) place: Place,
    /// The role that they give away: its resource and its name.
    pub(in crate::kinds) binds: Option<(&'static str, String)>,
}

impl Composition {
    /// Where children of `parent` can be. `is_namespaced` is `None` for a type that is not served.
    ///
    /// # Errors
    /// If the object says nothing that could be carried out, or a type is not served.
    pub(in crate::kinds) fn footprint(
        &self,
        parent: &Json,
        is_namespaced: &dyn Fn(&Type) -> Option<bool>,
    ) -> Result<BTreeSet<Print>, String> {
        let mut seen = Evaluation::new(false);
        seen.show(Name::Parent, parent);
        let own = parent.pointer("/metadata/namespace").and_then(Json::as_str);
        let mut prints = BTreeSet::new();
        let mut excluded = BTreeSet::new();
        for child in &self.children {
            if child.refers.iter().any(|id| excluded.contains(id)) || !included(child, &seen)? {
                excluded.insert(&child.id);
                continue;
            }
            let served = is_namespaced(&child.of);
            let Some(namespaced) = served else {
                return Err(format!("{}: the API server does not serve {}: install it first", child.id, child.of));
            };
            let print = |place| Print { of: Arc::clone(&child.of), place, binds: child.binds.clone() };
            prints.extend(places(child, &seen, namespaced, own)?.into_iter().map(print));
        }
        Ok(prints)
    }
}

/// Whether the child can be there. What depends on more than what the object says can change.
fn included(child: &Child, seen: &Evaluation) -> Result<bool, String> {
    for (number, condition) in child.include_when.iter().enumerate().filter(|(_, it)| is_settled(it)) {
        match seen.value(condition) {
            Ok(Json::Bool(true)) => {}
            Ok(Json::Bool(false)) => return Ok(false),
            Ok(_) => return Err(format!("{}.includeWhen[{number}]: must be true or false", child.id)),
            Err(Unknown::Missing(why, _) | Unknown::Failed(why)) => {
                return Err(format!("{}.includeWhen[{number}]: {why}", child.id));
            }
        }
    }
    Ok(true)
}

/// Where the children of a template are.
fn places(child: &Child, seen: &Evaluation, namespaced: bool, own: Option<&str>) -> Result<BTreeSet<Place>, String> {
    let items = match &child.for_each {
        Some((list, max)) if is_settled(list) => {
            let items = items(child, seen, list)?;
            if items.len() > usize::from(*max) {
                return Err(format!("{}.forEach makes {} children, and the most is {max}", child.id, items.len()));
            }
            Some(items)
        }
        Some(_) => None,
        None => Some(vec![Json::Null]),
    };
    if items.as_ref().is_some_and(Vec::is_empty) {
        return Ok(BTreeSet::new());
    }
    if !namespaced {
        return Ok([Place::Cluster].into());
    }
    let namespace = child.template.field("metadata").and_then(|metadata| metadata.field("namespace"));
    let Some(namespace) = namespace else { return Ok([in_own(child, own)?].into()) };
    let varies = namespace.refers().iter().any(|name| matches!(name, Name::Each | Name::Index));
    let is_told = expressions(namespace).into_iter().all(is_settled_or_item);
    let items = match items {
        _ if !is_told => return Ok([Place::Anywhere].into()),
        None if varies => return Ok([Place::Anywhere].into()),
        Some(items) if varies => items,
        _ => vec![Json::Null],
    };
    let mut places = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let mut inner = seen.inner();
        inner.show(Name::Each, item);
        inner.show(Name::Index, &Json::from(index));
        let failed = |why: &str| format!("{}.template.metadata.namespace: {why}", child.id);
        places.insert(match namespace.value(&inner, "namespace") {
            Ok(Some(Json::String(text))) => {
                let name = NamespaceName::new(&text).map_err(|wrong| failed(&wrong.rule()))?;
                Place::Namespace(name.into())
            }
            Ok(None) => in_own(child, own)?,
            Ok(Some(_)) => return Err(failed("must be text")),
            Err(Failed { why: Unknown::Missing(why, _) | Unknown::Failed(why), .. }) => return Err(failed(&why)),
        });
    }
    Ok(places)
}

fn in_own(child: &Child, own: Option<&str>) -> Result<Place, String> {
    let own = own.ok_or_else(|| format!("{}: its namespace is left out, and the object has none to give", child.id))?;
    Ok(Place::Namespace(own.to_owned()))
}

fn items(child: &Child, seen: &Evaluation, list: &Expression) -> Result<Vec<Json>, String> {
    match seen.value(list) {
        Ok(Json::Null) => Ok(Vec::new()),
        Ok(Json::Array(items)) => Ok(items),
        Ok(Json::Object(fields)) => {
            let pair = |(key, value)| {
                Json::Object(Map::from_iter([("key".to_owned(), Json::String(key)), ("value".to_owned(), value)]))
            };
            Ok(fields.into_iter().map(pair).collect())
        }
        Ok(_) => Err(format!("{}.forEach: must be a list or a mapping", child.id)),
        Err(Unknown::Missing(why, _) | Unknown::Failed(why)) => Err(format!("{}.forEach: {why}", child.id)),
    }
}

fn expressions(template: &Template) -> Vec<&Expression> {
    match template {
        Template::Whole(expression) => vec![expression],
        Template::Text(parts) => {
            let expressions = parts.iter().filter_map(|part| match part {
                Part::Value(expression) => Some(expression),
                Part::Plain(_) => None,
            });
            expressions.collect()
        }
        Template::Plain(_) | Template::List(_) | Template::Map(_) => Vec::new(),
    }
}

/// Whether the value follows from what people write of the object, and so changes with that only.
fn is_settled(expression: &Expression) -> bool {
    expression.refers().iter().all(|name| *name == Name::Parent) && looks_at_what_is_written(expression.text())
}

fn is_settled_or_item(expression: &Expression) -> bool {
    let is_own = |name: &Name| matches!(name, Name::Parent | Name::Each | Name::Index);
    expression.refers().iter().all(is_own) && looks_at_what_is_written(expression.text())
}

/// Whether each `parent` in the text goes on as a part that people write. Where the text leaves doubt, it does not.
fn looks_at_what_is_written(text: &str) -> bool {
    const WRITTEN: [&str; 5] =
        [".spec", ".metadata.name", ".metadata.namespace", ".metadata.labels", ".metadata.annotations"];
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices("parent").all(|(at, word)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let is_other = before.ends_with(is_part) || after.starts_with(is_part);
        let goes_on = |part: &str| after.strip_prefix(part).is_some_and(|rest| !rest.starts_with(is_part));
        is_other || WRITTEN.iter().any(|part| goes_on(part))
    })
}

/// The resource of a type of roles: to write one is to write any right.
pub(in crate::kinds) fn role_resource(of: &Type) -> Option<&'static str> {
    match (of.group.as_str(), of.kind.as_str()) {
        (RBAC, "Role") => Some("roles"),
        (RBAC, "ClusterRole") => Some("clusterroles"),
        _ => None,
    }
}
