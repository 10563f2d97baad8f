//! Writes children and deletes them. Every write goes through the term's client and names the uid it was decided on.

use std::{collections::HashMap, sync::Arc};

use futures::{FutureExt, StreamExt, stream};
use kube::{
    Api, Error, Resource, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy},
    core::Request,
    discovery::Scope,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::{
    Key, Order, Type,
    adopt::releasing,
    applied::owned_by_apply,
    observe::Served,
    order::{Going, turn},
    ours::{is_ours, refers_to},
    parent::Parent,
    pass::Common,
    plan::{How, Owner, Plan, RECREATING, Replace, Write},
};
use crate::{
    reconcile::{
        apply::{DELETION, KEEP, children_of, delete, labels},
        input::{Invalid, NamespaceName, ObjectName},
        name::Name,
        stages::Trouble,
        watches::Objects,
    },
    replica::problem::describe,
};

/// The reason for a child whose type the API server does not know, or not any more.
pub(super) const TYPE_NOT_SERVED: &str = "TypeNotServed";
/// Writes at a time for one object.
const WRITES: usize = 8;
/// The most often that a created child is read again because it changes while it is to be owned by an apply.
const ATTEMPTS: usize = 4;

/// What became of a write.
pub(super) enum Wrote {
    /// The child as the write has left it.
    Done(Arc<Value>),
    /// It was to be created, and there is one of that name, which was not seen.
    Found(Arc<Value>),
    /// It cannot be changed, for this reason, and another one could be made in its place.
    Replaceable(String, String),
    Refused(Trouble),
}

/// An object and its children.
pub(super) struct Family<'a> {
    it: &'a Common,
    parent: &'a Parent,
    served: &'a Served,
}

impl<'a> Family<'a> {
    pub(super) fn new(it: &'a Common, parent: &'a Parent, served: &'a Served) -> Self {
        Self { it, parent, served }
    }

    /// What is written of the object on its children.
    pub(super) fn owner(&self) -> Owner {
        let parent = self.parent;
        let reference = parent.controller_owner_ref(&self.it.resource).map(|mut reference| {
            // A foreground deletion of the parent waits for its children.
            reference.block_owner_deletion = Some(true);
            json!(reference)
        });
        Owner {
            uid: parent.uid().to_owned(),
            generation: parent.metadata.generation,
            namespace: parent.namespace(),
            name: parent.name_any(),
            reference: reference.unwrap_or_default(),
            labels: labels(&self.it.term, parent.uid()),
            manager: self.it.manager.clone(),
            is_held: parent.finalizers().contains(&self.it.finalizer),
        }
    }

    pub(super) fn is_namespaced(&self, of: &Type) -> bool {
        self.served.get(of).is_none_or(|(_, scope)| *scope == Scope::Namespaced)
    }

    /// The object of that key as it was last seen, whether it is ours or not.
    pub(super) fn cached(&self, key: &Key) -> Option<Arc<Value>> {
        let objects = self.it.children.get(&key.of)?;
        objects.get(&Name::new(key.namespace.as_deref(), &key.name)).map(Arc::new)
    }

    /// The children that bear the label of the object, as they were last seen.
    pub(super) fn of_owner(&self) -> Vec<Key> {
        let keys = |(of, objects): (&Arc<Type>, &Objects)| {
            let key = |name: Name| {
                let namespace = name.namespace().map(str::to_owned);
                Key { of: Arc::clone(of), namespace, name: name.name().to_owned() }
            };
            objects.of_owner(self.parent.uid()).into_iter().map(key).collect::<Vec<_>>()
        };
        self.it.children.iter().flat_map(keys).collect()
    }

    /// Reads the children of which nothing but the name is kept.
    pub(super) async fn read_missing(&self) -> Result<HashMap<Key, Arc<Value>>, Error> {
        let mut read = HashMap::new();
        for (of, objects) in &self.it.children {
            for name in objects.missing(self.parent.uid()) {
                let namespace = name.namespace().map(str::to_owned);
                let key = Key { of: Arc::clone(of), namespace, name: name.name().to_owned() };
                let Ok(api) = self.api(&key) else { continue };
                if let Some(child) = api.get_opt(&key.name).await? {
                    read.insert(key, Arc::new(serde_json::to_value(child).map_err(Error::SerdeError)?));
                }
            }
        }
        Ok(read)
    }

    /// Why a type cannot be written, if it cannot.
    pub(super) fn unserved(&self, of: &Type) -> Option<Trouble> {
        (!self.served.contains_key(of)).then(|| Trouble::new(TYPE_NOT_SERVED, format!("{of} is not served")))
    }

    /// Carries all of them out, and tells the plan. `false`: the term drains, and some were left out.
    pub(super) async fn write_all(&self, writes: Vec<Write>, plan: &mut Plan) -> bool {
        let draining = self.it.term.draining().shared();
        let mut is_complete = true;
        let mut outcomes = stream::iter(writes)
            .map(|write| {
                let drains = draining.clone().now_or_never().is_some();
                async move {
                    let outcome = if drains { None } else { Some(self.write(&write).await) };
                    (write.key, write.digest, outcome)
                }
            })
            .buffered(WRITES);
        while let Some((key, digest, outcome)) = outcomes.next().await {
            match outcome {
                None => is_complete = false,
                Some(Wrote::Done(object)) => plan.wrote(key, &digest, object, self.it.now.now()),
                Some(Wrote::Found(object)) => plan.found(key, object),
                Some(Wrote::Replaceable(uid, why)) => plan.is_replaceable(key, uid, why),
                Some(Wrote::Refused(trouble)) => plan.refused(key, trouble),
            }
        }
        is_complete
    }

    /// Reads children with the fields that each of their writers owns, and tells the plan.
    pub(super) async fn read_each(&self, keys: Vec<Key>, plan: &mut Plan) {
        for key in keys {
            let found = match self.api(&key) {
                Ok(api) => api.get_opt(&key.name).await.ok().flatten(),
                Err(_) => None,
            };
            let found = found.and_then(|found| serde_json::to_value(found).ok()).map(Arc::new);
            plan.read(key, found);
        }
    }

    async fn write(&self, Write { key, object, how, recreates, values, .. }: &Write) -> Wrote {
        let api = match self.api(key) {
            Ok(api) => api,
            Err(trouble) => return Wrote::Refused(trouble),
        };
        let with_values = values.as_ref().map(|values| values.all_in(object, random));
        let object = match &with_values {
            None => object,
            Some(Some(object)) => object,
            Some(None) => {
                let message = format!("{key}: the system has no random bytes to generate its values of");
                return Wrote::Refused(Trouble::new("GenerateFailed", message));
            }
        };
        let written = match how {
            How::Create => match self.create(&api, object, false).await {
                // Another object has that name, and server-side apply would merge into it.
                Err(Error::Api(refused)) if refused.code == 409 && refused.reason == "AlreadyExists" => {
                    return match api.get_opt(&key.name).await {
                        Ok(Some(found)) => Wrote::Found(Arc::new(serde_json::to_value(found).unwrap_or_default())),
                        Ok(None) => Wrote::Refused(self.refused(key, "create", &Error::Api(refused))),
                        Err(error) => Wrote::Refused(self.refused(key, "get", &error)),
                    };
                }
                other => other.map_err(|error| ("create", error)),
            },
            How::Apply { .. } => match self.apply(&api, key, object, how).await {
                Err(Error::Api(refused)) if *recreates && refused.code == 422 => {
                    return self.is_replaceable(&api, key, object, how, &Error::Api(refused)).await;
                }
                other => other.map_err(|error| ("apply", error)),
            },
            How::Mark(marks) => self.merge(&api, key, marks).await.map_err(|error| ("patch", error)),
        };
        match written {
            Ok(written) => {
                let value = serde_json::to_value(&written).unwrap_or_default();
                if let Some(objects) = self.it.children.get(&key.of) {
                    objects.note(written);
                }
                Wrote::Done(Arc::new(value))
            }
            Err((verb, error)) => Wrote::Refused(self.refused(key, verb, &error)),
        }
    }

    async fn apply(
        &self,
        api: &Api<DynamicObject>,
        key: &Key,
        object: &Value,
        how: &How,
    ) -> Result<DynamicObject, Error> {
        let mut patch = object.clone();
        if let How::Apply { uid, created, version, disown, is_adopted } = how {
            let mut at = version.clone();
            if let Some(disown) = disown {
                at = self.merge(api, key, disown).await?.metadata.resource_version;
            }
            // What this merge patch has written belongs to the apply as well, as what a creation has.
            if let Some(created) = created.as_ref().or(at.as_ref().filter(|_| *is_adopted && disown.is_some())) {
                let owned = self.own_by_apply(api, key, uid, created).await?;
                // If it has changed in between, the apply is refused.
                at = owned.filter(|(from, _)| Some(from) == at.as_ref()).map(|(_, to)| to).or(at);
            }
            let version = version.as_ref().and(at);
            // It applies to this very object only, and takes back the fields that other managers took from us.
            patch["metadata"]["uid"] = json!(uid);
            if let Some(version) = version {
                patch["metadata"]["resourceVersion"] = json!(version);
            }
        }
        let params = PatchParams { force: true, ..PatchParams::apply(&self.it.manager) };
        api.patch(&key.name, &params, &Patch::Apply(&patch)).await
    }

    async fn merge(&self, api: &Api<DynamicObject>, key: &Key, patch: &Value) -> Result<DynamicObject, Error> {
        let params = PatchParams { field_manager: Some(self.it.manager.clone()), ..PatchParams::default() };
        api.patch(&key.name, &params, &Patch::Merge(patch)).await
    }

    /// Whether another one could be made in place of a child whose change is refused: the API server checks an object before it
    /// looks whether there is one of its name. So nothing is deleted for a template that would be refused all the same.
    async fn is_replaceable(
        &self,
        api: &Api<DynamicObject>,
        key: &Key,
        object: &Value,
        how: &How,
        refusal: &Error,
    ) -> Wrote {
        let trouble = self.refused(key, "apply", refusal);
        let uid = if let How::Apply { uid, .. } = how { uid.clone() } else { String::new() };
        match self.create(api, object, true).await {
            Err(Error::Api(answer)) if answer.code == 409 && answer.reason == "AlreadyExists" => {
                Wrote::Replaceable(uid, message_of(self.it.is_secretive, key, refusal))
            }
            Err(error) => {
                let why = message_of(self.it.is_secretive, key, &error);
                let message = format!("{}; it is not made anew, for that would be refused too: {why}", trouble.message);
                Wrote::Refused(Trouble::new(trouble.reason, message))
            }
            Ok(_) => Wrote::Refused(trouble),
        }
    }

    /// Creates it, and nothing but that: a field that its type does not have is refused, as by an apply.
    async fn create(&self, api: &Api<DynamicObject>, object: &Value, dry_run: bool) -> Result<DynamicObject, Error> {
        let params = PostParams { field_manager: Some(self.it.manager.clone()), dry_run };
        let body = serde_json::to_vec(object).map_err(Error::SerdeError)?;
        let request = Request::new(api.resource_url()).create(&params, body).map_err(Error::BuildRequest)?;
        let (mut head, body) = request.into_parts();
        let strict = format!("{}&fieldValidation=Strict", head.uri);
        head.uri = strict.parse().map_err(|error: http::uri::InvalidUri| Error::HttpError(error.into()))?;
        self.it.term.client().request(http::Request::from_parts(head, body)).await
    }

    /// What the creation of a child owns becomes what an apply owns: or a field that is no longer desired would stay, because the
    /// creation goes on owning it.
    /// Returns from which version to which, if there was anything to do.
    async fn own_by_apply(
        &self,
        api: &Api<DynamicObject>,
        key: &Key,
        uid: &str,
        version: &str,
    ) -> Result<Option<(String, String)>, Error> {
        let manager = &self.it.manager;
        let mut found = self.cached(key).filter(|seen| resource_version(seen) == Some(version));
        for attempt in 1.. {
            let live = match found.take() {
                Some(live) => live,
                None => match api.get_opt(&key.name).await? {
                    Some(live) => Arc::new(serde_json::to_value(live).unwrap_or_default()),
                    None => return Ok(None),
                },
            };
            let Some(owned) = owned_by_apply(&live, manager).filter(|_| super::uid(&live) == Some(uid)) else {
                // The apply itself is refused if it is another object.
                return Ok(None);
            };
            let mut patch =
                vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": resource_version(&live)})];
            patch.extend(owned);
            let request = http::Request::patch(format!("{}/{}", api.resource_url(), key.name))
                .header(http::header::CONTENT_TYPE, "application/json-patch+json")
                .body(serde_json::to_vec(&patch).map_err(Error::SerdeError)?)
                .map_err(Error::HttpError)?;
            match self.it.term.client().request::<DynamicObject>(request).await {
                Ok(owned) => {
                    let from = resource_version(&live).map(str::to_owned);
                    return Ok(from.zip(owned.metadata.resource_version));
                }
                // It has changed since.
                Err(Error::Api(refused)) if matches!(refused.code, 409 | 422) && attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Deletes them one by one, or releases those that are kept, and tells the plan.
    pub(super) async fn delete_each(&self, going: Vec<Going>, plan: &mut Plan) {
        for Going { key, uid, is_kept, .. } in going {
            if is_kept {
                let release = self.release(&key, &uid).await;
                plan.released(key, release);
            } else {
                plan.deleted(self.delete(&key, &uid).await);
            }
        }
    }

    /// Deletes those that are made anew, each after it was told why, and tells the plan.
    pub(super) async fn replace_each(&self, all: Vec<Replace>, plan: &mut Plan) {
        let about = self.parent.object_ref(&self.it.resource);
        for replace in all {
            let note = format!("{} is deleted and made anew: {}", replace.key, replace.why);
            tracing::warn!(kind = self.it.resource.kind, "{note}");
            self.it.events.warning(&about, RECREATING, &note);
            self.it.events.publish().await;
            let deletion = self.delete(&replace.key, &replace.uid).await;
            plan.replaced(replace, deletion);
        }
    }

    /// Takes off all that marks an object as a child, and touches nothing else of it.
    async fn release(&self, key: &Key, uid: &str) -> Result<(), Trouble> {
        let api = self.api(key)?;
        let failed = |error: &Error| {
            let message = format!("{key} could not be released: {}", message_of(self.it.is_secretive, key, error));
            Trouble::new("ReleaseFailed", message)
        };
        for attempt in 1.. {
            let live = match api.get_opt(&key.name).await {
                Ok(Some(live)) => serde_json::to_value(live).unwrap_or_default(),
                Ok(None) => return Ok(()),
                Err(error) => return Err(failed(&error)),
            };
            if super::uid(&live) != Some(uid) {
                return Ok(());
            }
            match self.merge(&api, key, &releasing(&live, self.parent.uid(), &self.it.manager)).await {
                Ok(_) => break,
                // It has changed since.
                Err(Error::Api(refused)) if refused.code == 409 && attempt < ATTEMPTS => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        let (namespace, name) = (self.parent.namespace().unwrap_or_default(), self.parent.name_any());
        tracing::info!(kind = self.it.resource.kind, namespace, name, child = %key, "child released, and kept");
        Ok(())
    }

    async fn delete(&self, key: &Key, uid: &str) -> Result<(), Trouble> {
        let api = self.api(key)?;
        match delete(&api, &key.name, uid, None, PropagationPolicy::Background).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = format!("{key} could not be deleted: {}", message_of(self.it.is_secretive, key, &error));
                Err(Trouble::new("PruneFailed", message))
            }
        }
    }

    /// Deletes all children, by what the API server has and not by what was seen: those that remain are never found again.
    /// Those on which others depend wait for their turn; those that are kept are released. Returns how many are still to go.
    /// If the garbage collector has made orphans of them, they stay.
    pub(super) async fn delete_all(&self, order: &Order) -> Result<usize, Error> {
        let owner = self.owner();
        let mut all = Vec::new();
        for (of, (resource, _)) in self.served {
            let api = Api::<DynamicObject>::all_with(self.it.term.client(), resource);
            let params = ListParams::default().labels(&children_of(self.parent.uid()));
            let children = match api.list(&params).await {
                Ok(children) => children,
                // Its CRD was removed, and its objects with it.
                Err(Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(error),
            };
            for child in children {
                if !is_ours(&child.metadata, &owner.claim()) {
                    continue;
                }
                let key = Key { of: Arc::clone(of), namespace: child.namespace(), name: child.name_any() };
                all.push((key, child));
            }
        }
        // It has done so with each that it could follow; who has taken it off one has not orphaned the others.
        if self.are_orphans(&all, &owner) {
            return Ok(0);
        }
        let going: Vec<_> = all.into_iter().map(|(key, child)| Going::new(key, &child.metadata)).collect();
        let mut left = going.iter().filter(|one| !one.is_kept).count();
        let about = self.parent.object_ref(&self.it.resource);
        for Going { key, uid, is_kept, .. } in turn(order, going) {
            let done = if is_kept { self.release(&key, &uid).await } else { self.delete(&key, &uid).await };
            match done {
                Ok(()) if is_kept => self.it.events.normal(&about, "Kept", &format!("{key} is kept, and is no child")),
                Ok(()) => {}
                Err(trouble) => {
                    left += usize::from(is_kept);
                    self.it.events.warning(&about, "FinalizeBlocked", &trouble.message);
                }
            }
        }
        Ok(left)
    }

    fn are_orphans(&self, children: &[(Key, DynamicObject)], owner: &Owner) -> bool {
        // One that is kept has no owner reference in the first place.
        let is_kept = |child: &DynamicObject| child.annotations().get(DELETION).is_some_and(|it| it == KEEP);
        let mut followed = children.iter().filter(|(key, child)| owner.can_own(key) && !is_kept(child)).peekable();
        followed.peek().is_some() && followed.all(|(_, child)| !refers_to(&child.metadata, self.parent.uid()))
    }

    fn api(&self, key: &Key) -> Result<Api<DynamicObject>, Trouble> {
        let Some((resource, _)) = self.served.get(&key.of) else {
            return Err(Trouble::new(TYPE_NOT_SERVED, format!("{} is not served", key.of)));
        };
        let client = self.it.term.client();
        // Front ends refuse these with the field; here is the one way to a request about a child.
        let invalid = |wrong: Invalid| Trouble::new("ChildInvalid", format!("{}: {}", key.of, wrong.rule()));
        ObjectName::new(&key.name).map_err(invalid)?;
        Ok(match &key.namespace {
            Some(namespace) => Api::namespaced_with(client, &NamespaceName::new(namespace).map_err(invalid)?, resource),
            None => Api::all_with(client, resource),
        })
    }

    fn refused(&self, key: &Key, verb: &str, error: &Error) -> Trouble {
        Trouble::new(reason(error), format!("{verb} {key}: {}", message_of(self.it.is_secretive, key, error)))
    }
}

/// Random bytes that nobody can foretell.
fn random(bytes: &mut [u8]) -> Option<()> {
    SystemRandom::new().fill(bytes).ok()
}

fn resource_version(object: &Value) -> Option<&str> {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str)
}

fn reason(error: &Error) -> &'static str {
    let Error::Api(status) = error else { return "ApplyFailed" };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        403 if causes.any(|cause| cause.reason == "NamespaceTerminating") => "NamespaceTerminating",
        403 => "Forbidden",
        404 if status.message.contains("namespaces") => "NamespaceNotFound",
        404 => TYPE_NOT_SERVED,
        409 => "Conflict",
        422 | 400 => "Invalid",
        _ => "ApplyFailed",
    }
}

/// The message of a refusal. Where the kind sees Secrets, only its code and the fields: the API server may quote their values.
fn message_of(is_secretive: bool, key: &Key, error: &Error) -> String {
    match error {
        Error::Api(status) if is_secretive || key.of.kind == "Secret" => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            let fields: Vec<_> = causes.filter(|it| !it.field.is_empty()).take(3).map(|it| it.field.as_str()).collect();
            let of = if fields.is_empty() { String::new() } else { format!(" of {}", fields.join(", ")) };
            format!("{} {}{of}", status.code, status.reason)
        }
        other => describe(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_no_value_where_secrets_are_seen() {
        let status = json!({
            "status": "Failure", "code": 422, "reason": "Invalid", "message": "data.key: Invalid value: \"geheim\"",
            "details": {"causes": [{"field": "data.key", "reason": "FieldValueInvalid", "message": "Invalid value: \"geheim\""}]},
        });
        let status: kube::core::Status = serde_json::from_value(status).unwrap();
        let error = Error::Api(Box::new(status));
        let key = |kind: &str| Key { of: Arc::new(Type::new("", "v1", kind)), namespace: None, name: "x".to_owned() };
        assert_eq!(message_of(false, &key("Secret"), &error), "422 Invalid of data.key");
        assert_eq!(message_of(true, &key("ConfigMap"), &error), "422 Invalid of data.key");
        assert!(message_of(false, &key("ConfigMap"), &error).contains("Invalid value"));
    }
}
