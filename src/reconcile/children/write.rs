//! Applies children and deletes them. Every write goes through the term's client and names the uid it was decided on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Error, Resource, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy},
    discovery::Scope,
};
use serde_json::{Value, json};

use super::{
    Common, Composed, Desired, Key, Served, Type,
    applied::{digest, is_as_applied},
    ours::{is_ours, is_superfluous},
    parent::Parent,
    report::Trouble,
    uid,
};
use crate::reconcile::{
    apply::{APPLIED, OWNER, Ownership, children_of, delete, labels, ownership},
    controller::chain,
    name::Name,
};

/// The reason for a child whose name is somebody else's.
pub(super) const CONFLICT: &str = "ChildConflict";
/// The reason for a child whose type the API server does not know, or not any more.
pub(super) const TYPE_NOT_SERVED: &str = "TypeNotServed";
/// Writes at a time for one object.
const WRITES: usize = 8;

/// Children as writes have left them.
pub(super) type Written = HashMap<Key, Arc<Value>>;

/// What became of the children of a round.
#[derive(Default)]
pub(super) struct Round {
    pub(super) written: Written,
    pub(super) trouble: Vec<Trouble>,
}

/// What became of those that nobody says any more.
#[derive(Default)]
pub(super) struct Pruned {
    pub(super) pruned: usize,
    pub(super) trouble: Vec<Trouble>,
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

    /// Whether the garbage collector follows a reference to the owner from there.
    pub(super) fn can_own(&self, key: &Key) -> bool {
        let own = self.parent.namespace();
        own.is_none() || own == key.namespace
    }

    pub(super) fn is_namespaced(&self, of: &Type) -> bool {
        self.served.get(of).is_none_or(|(_, scope)| *scope == Scope::Namespaced)
    }

    /// A child as it was last seen, if it is ours.
    pub(super) fn seen(&self, key: &Key) -> Option<Arc<Value>> {
        let objects = self.it.children.get(&key.of)?;
        let object = objects.get(&Name::new(key.namespace.as_deref(), &key.name))?;
        self.is_ours(&object).then(|| Arc::new(object))
    }

    fn is_ours(&self, object: &Value) -> bool {
        is_ours(&meta(object), self.parent.uid(), &self.it.manager)
    }

    /// Applies what is not as it shall be. `None`: the term drains, and some of it was left out.
    pub(super) async fn apply_all(&self, composed: &Composed, fresh: &Written) -> Option<Round> {
        let draining = self.it.term.draining().shared();
        let mut round = Round::default();
        let mut interrupted = false;
        // Each of them is written once in a pass: what changes it at once, such as a webhook, would be fought for ever.
        let children: Vec<Desired> =
            composed.children.iter().filter(|child| !fresh.contains_key(&child.key)).cloned().collect();
        let mut outcomes = stream::iter(children)
            .map(|child| {
                let drains = draining.clone().now_or_never().is_some();
                async move {
                    let outcome = if drains { None } else { Some(self.apply(&child).await) };
                    (child, outcome)
                }
            })
            .buffered(WRITES);
        while let Some((child, outcome)) = outcomes.next().await {
            match outcome {
                None => interrupted = true,
                Some(Ok(None)) => {}
                Some(Ok(Some(object))) => _ = round.written.insert(child.key, object),
                Some(Err(trouble)) => round.trouble.push(trouble),
            }
        }
        (!interrupted).then_some(round)
    }

    /// The child as the write has left it; `None` if there was nothing to write.
    async fn apply(&self, child: &Desired) -> Result<Option<Arc<Value>>, Trouble> {
        let key = &child.key;
        let api = self.api(key)?;
        let (object, digest) = self.dressed(child);
        let live = match self.seen(key) {
            Some(live) => Some(live),
            // Not ours by what the watch shows, which is not everything: server-side apply would merge into whatever is there.
            None => match api.get_opt(&key.name).await {
                Ok(found) => found.and_then(|found| serde_json::to_value(found).ok()).map(Arc::new),
                Err(error) => return Err(self.refused(key, "get", &error)),
            },
        };
        let mut params = PatchParams::apply(&self.it.manager);
        let mut patch = object;
        if let Some(live) = &live {
            if !self.is_ours(live) {
                return Err(self.conflict(key, live));
            }
            if live.pointer("/metadata/deletionTimestamp").is_some() {
                return Err(Trouble { reason: "ChildTerminating", words: format!("{key} is being deleted") });
            }
            if is_as_applied(live, &patch, &digest, &self.it.manager) {
                return Ok(None);
            }
            // Only this very object, and whoever has taken a field from us gives it back.
            patch["metadata"]["uid"] = json!(uid(live));
            params.force = true;
        }
        match api.patch(&key.name, &params, &Patch::Apply(&patch)).await {
            Ok(applied) => {
                let value = serde_json::to_value(&applied).unwrap_or_default();
                if let Some(objects) = self.it.children.get(&key.of) {
                    objects.note(applied);
                }
                Ok(Some(Arc::new(value)))
            }
            Err(error) => Err(self.refused(key, "apply", &error)),
        }
    }

    fn conflict(&self, key: &Key, live: &Value) -> Trouble {
        let meta = meta(live);
        let whose = match ownership(&meta, self.parent.uid()) {
            Ownership::Sibling(_) => {
                let owner = meta.annotations.as_ref().and_then(|all| all.get(OWNER)).cloned();
                format!("belongs to {}", owner.unwrap_or_else(|| "another object".to_owned()))
            }
            Ownership::Ours => "is a copy that bears our labels".to_owned(),
            Ownership::Foreign => "is not ours".to_owned(),
        };
        Trouble { reason: CONFLICT, words: format!("{key} is there and {whose}: rename or delete it") }
    }

    /// The object with what says whose it is, and the digest of both.
    fn dressed(&self, child: &Desired) -> (Value, String) {
        let mut object = child.object.clone();
        let parent = self.parent;
        let owner = match parent.namespace() {
            Some(namespace) => format!("{namespace}/{}", parent.name_any()),
            None => parent.name_any(),
        };
        let metadata = &mut object["metadata"];
        for (name, value) in labels(&self.it.term, parent.uid()) {
            metadata["labels"][name] = json!(value);
        }
        metadata["annotations"][OWNER] = json!(owner);
        if self.can_own(&child.key)
            && let Some(mut reference) = parent.controller_owner_ref(&self.it.resource)
        {
            // Whoever deletes the parent in the foreground waits for its children.
            reference.block_owner_deletion = Some(true);
            metadata["ownerReferences"] = json!([reference]);
        }
        let digest = digest(&object);
        object["metadata"]["annotations"][APPLIED] = json!(digest);
        (object, digest)
    }

    /// Deletes what is ours and nobody says any more.
    pub(super) async fn prune(&self, wanted: &BTreeSet<&Key>) -> Pruned {
        let mut done = Pruned::default();
        for (of, objects) in &self.it.children {
            // Most are wanted, and need not be read to know that.
            for name in objects.of_owner(self.parent.uid()) {
                let namespace = name.namespace().map(str::to_owned);
                let key = Key { of: Arc::clone(of), namespace, name: name.name().to_owned() };
                if wanted.contains(&key) {
                    continue;
                }
                let Some(object) = objects.get(&name) else { continue };
                let meta = meta(&object);
                if !is_superfluous(&key, &meta, wanted, self.parent.uid(), &self.it.manager) {
                    continue;
                }
                match self.delete(&key, &meta).await {
                    Ok(()) => done.pruned += 1,
                    Err(trouble) => done.trouble.push(trouble),
                }
            }
        }
        done
    }

    async fn delete(&self, key: &Key, meta: &ObjectMeta) -> Result<(), Trouble> {
        let api = self.api(key)?;
        let uid = meta.uid.as_deref().unwrap_or_default();
        match delete(&api, &key.name, uid, None, PropagationPolicy::Background).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let words = format!("{key} could not be deleted: {}", told(self.it.is_secretive, key, &error));
                Err(Trouble { reason: "PruneFailed", words })
            }
        }
    }

    /// Deletes all children, by what the API server has and not by what was seen: those that remain are never found again.
    /// Returns how many are still there.
    pub(super) async fn delete_all(&self) -> Result<usize, Error> {
        let mut there = 0;
        for (of, (resource, _)) in self.served {
            let api = Api::<DynamicObject>::all_with(self.it.term.client(), resource);
            let params = ListParams::default().labels(&children_of(self.parent.uid()));
            for child in api.list(&params).await? {
                if !is_ours(&child.metadata, self.parent.uid(), &self.it.manager) {
                    continue;
                }
                there += 1;
                if child.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let key = Key { of: Arc::clone(of), namespace: child.namespace(), name: child.name_any() };
                if let Err(trouble) = self.delete(&key, &child.metadata).await {
                    let about = self.parent.object_ref(&self.it.resource);
                    self.it.events.warning(&about, "FinalizeBlocked", &trouble.words).await;
                }
            }
        }
        Ok(there)
    }

    fn api(&self, key: &Key) -> Result<Api<DynamicObject>, Trouble> {
        let Some((resource, _)) = self.served.get(&key.of) else {
            return Err(Trouble { reason: TYPE_NOT_SERVED, words: format!("{} is not served", key.of) });
        };
        let client = self.it.term.client();
        Ok(match &key.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        })
    }

    fn refused(&self, key: &Key, verb: &str, error: &Error) -> Trouble {
        Trouble { reason: reason(error), words: format!("{verb} {key}: {}", told(self.it.is_secretive, key, error)) }
    }
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

/// What the API server says. Where Secrets are seen only the code, and which fields it refuses: it may quote their values.
fn told(is_secretive: bool, key: &Key, error: &Error) -> String {
    match error {
        Error::Api(status) if is_secretive || key.of.kind == "Secret" => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            let fields: Vec<_> = causes.filter(|it| !it.field.is_empty()).take(3).map(|it| it.field.as_str()).collect();
            let of = if fields.is_empty() { String::new() } else { format!(" of {}", fields.join(", ")) };
            format!("{} {}{of}", status.code, status.reason)
        }
        other => chain(other),
    }
}

fn meta(object: &Value) -> ObjectMeta {
    object.get("metadata").and_then(|meta| serde_json::from_value(meta.clone()).ok()).unwrap_or_default()
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
        assert_eq!(told(false, &key("Secret"), &error), "422 Invalid of data.key");
        assert_eq!(told(true, &key("ConfigMap"), &error), "422 Invalid of data.key");
        assert!(told(false, &key("ConfigMap"), &error).contains("Invalid value"));
    }
}
