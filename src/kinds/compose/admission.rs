//! What a composition says of an object before it is stored: defaults and rules, as a webhook.
//!
//! A rule sees what the schema of a CRD cannot: other objects, and who asks. An update that leaves the spec alone, and one of
//! an object that is being deleted, pass: what was stored before there was a rule must be able to go.

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind, admission::Operation},
};
use serde_json::{Map, Value as Json, json};

use super::{
    cel::{Evaluation, Name, Unknown},
    composition::{Admission, Composition, Lookup},
    template::Failed,
};
use crate::{
    reconcile::{
        children::{Type, hide},
        input::{Invalid, NamespaceName, ObjectName},
    },
    replica::term::Access,
    webhooks::{Asked, Denied, Webhook},
};

/// The webhook of a composed kind.
pub struct ComposedAdmission {
    composition: Arc<Composition>,
    /// What it looks things up with: as the account of the kind. `None`: as the replica.
    client: Option<Client>,
}

impl Composition {
    /// Whether it says anything of an object before it is stored.
    pub fn admits(&self) -> bool {
        self.admission.is_some()
    }

    /// The types that are looked up.
    pub fn looked_up(&self) -> Vec<Arc<Type>> {
        let lookups = self.admission.iter().flat_map(|admission| &admission.lookups);
        lookups.map(|lookup| Arc::clone(&lookup.of)).collect()
    }

    /// What the rules look up, as permissions.
    pub fn lookups(&self) -> Vec<Access> {
        let lookups = self.admission.iter().flat_map(|admission| &admission.lookups);
        lookups.map(|lookup| Access::new("get", lookup.of.group.clone(), lookup.of.plural.clone())).collect()
    }
}

impl ComposedAdmission {
    /// Of this composition. What it looks up it may read as the account that `client` acts as; `None`: as the replica.
    pub fn new(composition: Arc<Composition>, client: Option<Client>) -> Self {
        Self { composition, client }
    }
}

impl Webhook for ComposedAdmission {
    fn default<'a>(&'a self, asked: &'a Asked<'_>, object: &'a mut Json) -> BoxFuture<'a, Result<(), Denied>> {
        let filled = match &self.composition.admission {
            Some(admission) if !is_going(object) => fill(admission, &user(asked), &old(asked), object),
            _ => Ok(()),
        };
        async { filled }.boxed()
    }

    fn validate<'a>(&'a self, asked: &'a Asked<'_>) -> BoxFuture<'a, Result<Vec<String>, Denied>> {
        async move {
            let (Some(admission), Some(object)) = (&self.composition.admission, &asked.request.object) else {
                return Ok(Vec::new());
            };
            let parent = json!(object);
            let old = old(asked);
            let is_update = asked.request.operation == Operation::Update;
            if is_going(&parent) || is_update && parent.get("spec") == old.get("spec") {
                return Ok(Vec::new());
            }
            let mut found = BTreeMap::new();
            let client = self.client.as_ref().unwrap_or(asked.client);
            for lookup in &admission.lookups {
                found.insert(lookup.id.clone(), look_up(lookup, client, &parent).await?);
            }
            judge(admission, &parent, &old, &user(asked), &found).map(|()| Vec::new())
        }
        .boxed()
    }
}

fn is_going(object: &Json) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

fn user(asked: &Asked<'_>) -> Json {
    let user = &asked.request.user_info;
    json!({"username": user.username.clone().unwrap_or_default(), "groups": user.groups.clone().unwrap_or_default()})
}

fn old(asked: &Asked<'_>) -> Json {
    asked.request.old_object.as_ref().map_or(Json::Null, |old| json!(old))
}

fn seeing(parent: &Json, old: &Json, user: &Json) -> Evaluation {
    let mut seen = Evaluation::new(false);
    seen.show(Name::Parent, parent);
    seen.show(Name::Old, old);
    seen.show(Name::User, user);
    seen
}

/// Gives an object the fields that it leaves out. A default that rests on what is not there yet, such as a name that the
/// API server will make, is none.
pub(super) fn fill(admission: &Admission, user: &Json, old: &Json, object: &mut Json) -> Result<(), Denied> {
    let Some(defaults) = &admission.defaults else { return Ok(()) };
    match defaults.value(&seeing(object, old, user), "admission.defaults") {
        Ok(Some(Json::Object(defaults))) => {
            if let Some(object) = object.as_object_mut() {
                merge(object, defaults);
            }
            Ok(())
        }
        Ok(_) | Err(Failed { why: Unknown::Missing(..), .. }) => Ok(()),
        Err(Failed { path, why: Unknown::Failed(why) }) => Err(Denied { message: format!("{path}: {why}"), code: 500 }),
    }
}

fn merge(object: &mut Map<String, Json>, defaults: Map<String, Json>) {
    for (field, default) in defaults {
        match (object.get_mut(&field), default) {
            (Some(Json::Object(inner)), Json::Object(defaults)) => merge(inner, defaults),
            (Some(_), _) => {}
            (None, default) => _ = object.insert(field, default),
        }
    }
}

/// Whether the rules hold; the first that does not says why.
pub(super) fn judge(
    admission: &Admission,
    parent: &Json,
    old: &Json,
    user: &Json,
    found: &BTreeMap<String, Option<Json>>,
) -> Result<(), Denied> {
    let mut seen = seeing(parent, old, user);
    for (id, object) in found {
        seen.show(Name::Related(id.clone()), &Json::Array(object.iter().cloned().collect()));
    }
    for (number, rule) in admission.rules.iter().enumerate() {
        if rule.creation_only && !old.is_null() {
            continue;
        }
        let broken = |why: &str| Denied { message: format!("admission.rules[{number}].rule: {why}"), code: 500 };
        match seen.value(&rule.rule) {
            Ok(Json::Bool(true)) => {}
            Ok(Json::Bool(false)) => {
                let message = rule.message.value(&seen, "message").ok().flatten();
                let message = message.and_then(|message| message.as_str().map(str::to_owned));
                return Err(Denied::new(message.unwrap_or_else(|| rule.rule.text().to_owned())));
            }
            Ok(_) => return Err(broken("must be true or false")),
            Err(Unknown::Missing(why, _) | Unknown::Failed(why)) => return Err(broken(&why)),
        }
    }
    Ok(())
}

/// The object of that name; `None` if there is none.
async fn look_up(lookup: &Lookup, client: &Client, parent: &Json) -> Result<Option<Json>, Denied> {
    let text = |template: &super::template::Template, field: &str| {
        let path = format!("admission.lookups.{}.{field}", lookup.id);
        match template.value(&seeing(parent, &Json::Null, &Json::Null), &path) {
            Ok(Some(Json::String(text))) if !text.is_empty() => Ok(text),
            Ok(_) => Err(Denied { message: format!("{path}: must be text, and not empty"), code: 500 }),
            Err(Failed { path, why: Unknown::Missing(why, _) | Unknown::Failed(why) }) => {
                Err(Denied { message: format!("{path}: {why}"), code: 500 })
            }
        }
    };
    let invalid = |field: &str, wrong: &Invalid| {
        Denied::new(format!("admission.lookups.{}.{field}: {}", lookup.id, wrong.rule()))
    };
    let name = ObjectName::new(&text(&lookup.name, "name")?).map_err(|wrong| invalid("name", &wrong))?;
    let namespace = lookup.namespace.as_ref().map(|namespace| text(namespace, "namespace")).transpose()?;
    let namespace = namespace.map(|text| NamespaceName::new(&text)).transpose();
    let namespace = namespace.map_err(|wrong| invalid("namespace", &wrong))?;
    let kind = GroupVersionKind::gvk(&lookup.of.group, &lookup.of.version, &lookup.of.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &lookup.of.plural);
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let found = api
        .get_opt(&name)
        .await
        .map_err(|error| Denied::unknown(format!("cannot look up {} {name}: {error}; try again", lookup.of.kind)))?;
    Ok(found.map(|object| Arc::unwrap_or_clone(hide(Arc::new(json!(object))))))
}
