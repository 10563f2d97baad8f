//! Finds, lists and deletes the objects that a policy applies to.

use futures::{FutureExt, future::join_all};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Error,
    api::{ListParams, PropagationPolicy},
    core::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta},
    discovery::{Scope, verbs},
};

use super::{
    plan::{Object, Valid},
    types::DeletePropagation,
};
use crate::{
    reconcile::{
        apply::{Deletion, delete},
        stages::{self, Trouble},
    },
    replica::term::Term,
};

/// Objects a page.
const PAGE: u32 = 500;
/// Deletions at a time for one policy.
const DELETIONS: usize = 4;

/// Finds the resource of a kind, or says why it cannot be the target of a policy.
pub(super) async fn discover(client: &Client, kind: &GroupVersionKind) -> Result<Result<ApiResource, Trouble>, Error> {
    let name = format!("{} {}", kind.api_version(), kind.kind);
    let unusable = |reason, message| Ok(Err(Trouble::new(reason, message)));
    let (resource, capabilities) = match stages::discover(client, kind).await? {
        Ok(found) => found,
        Err(trouble) => return Ok(Err(trouble)),
    };
    if capabilities.scope != Scope::Namespaced {
        return unusable("TargetNotNamespaced", format!("{name} is not namespaced"));
    }
    if !capabilities.supports_operation(verbs::LIST) || !capabilities.supports_operation(verbs::DELETE) {
        return unusable("TargetFixed", format!("{name} cannot be both listed and deleted"));
    }
    Ok(Ok(resource))
}

/// Lists what the policy selects, metadata only.
pub(super) async fn list(api: &Api<DynamicObject>, valid: &Valid) -> Result<Vec<Object>, Error> {
    let mut params = ListParams::default().labels_from(&valid.selector).limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api.list_metadata(&params).await?;
        objects.extend(page.items.into_iter().filter_map(|item| object(item.metadata, valid)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
}

fn object(meta: ObjectMeta, valid: &Valid) -> Option<Object> {
    let mut annotations = meta.annotations.unwrap_or_default();
    Some(Object {
        protect: valid.protect.as_ref().and_then(|key| annotations.get(key).cloned()),
        expires: annotations.remove(&valid.annotation),
        name: meta.name?,
        uid: meta.uid?,
        resource_version: meta.resource_version?,
        created: meta.creation_timestamp.map(|created| -> Timestamp { created.0 })?,
        deleting: meta.deletion_timestamp.is_some(),
    })
}

/// What became of the deletions.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    /// Names of the objects deleted.
    pub(super) deleted: Vec<String>,
    /// Objects that changed since they were listed, or were left because the term drains or the API server refused another one.
    pub(super) left: usize,
    /// The first refusal.
    pub(super) error: Option<Error>,
}

impl Deletions {
    pub(super) fn left(&self) -> bool {
        self.left > 0
    }
}

/// Deletes the objects as they were listed: not one that has changed since (it may no longer be expired), nor another of the same name.
/// So a pass that is repeated, here or by the next leader, deletes nothing twice.
pub(super) async fn delete_all(api: &Api<DynamicObject>, valid: &Valid, objects: &[Object], term: &Term) -> Deletions {
    let propagation = match valid.propagation {
        DeletePropagation::Background => PropagationPolicy::Background,
        DeletePropagation::Foreground => PropagationPolicy::Foreground,
    };
    let draining = term.draining().shared();
    let mut done = Deletions::default();
    // In small groups, so that a refusal is not met by every object of the run.
    for group in objects.chunks(DELETIONS) {
        if done.error.is_some() || draining.clone().now_or_never().is_some() {
            done.left += group.len();
            continue;
        }
        let deletions = group.iter().map(|object| {
            let version = Some(object.resource_version.as_str());
            delete(api, &object.name, &object.uid, version, propagation.clone())
        });
        for (object, outcome) in group.iter().zip(join_all(deletions).await) {
            match outcome {
                Ok(Deletion::Deleted) => done.deleted.push(object.name.clone()),
                Ok(Deletion::Gone) => {}
                Ok(Deletion::Changed) => done.left += 1,
                Err(error) => {
                    done.left += 1;
                    done.error.get_or_insert(error);
                }
            }
        }
    }
    done
}
