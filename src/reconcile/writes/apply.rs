//! Children: what marks an object as ours, and the two writes that we make to them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Error, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};

pub use crate::protocol::hash::digest;
use crate::replica::term::Term;

/// Names the Lease of the shard that wrote an object.
pub const SHARD: &str = "leasehold.dev/shard";
/// Bears the uid of the object that a child belongs to.
pub const OWNER_UID: &str = "leasehold.dev/owner-uid";
/// Annotation: namespace and name of the object that a child belongs to, as `namespace/name` or `name`.
pub const OWNER: &str = "leasehold.dev/owner";
/// Annotation: the generation of that object that the child was last written from.
pub const OWNER_GENERATION: &str = "leasehold.dev/owner-generation";
/// Annotation: a digest of what we applied last.
pub const APPLIED: &str = "leasehold.dev/applied";
/// Annotation: what the file calls the child, by which its place in the order of deletions is known.
pub const CHILD: &str = "leasehold.dev/child";
/// Annotation: what becomes of the child when it is not desired any more, if that is not its deletion.
pub const DELETION: &str = "leasehold.dev/deletion";
/// The value of [`DELETION`] of a child that stays.
pub const KEEP: &str = "Keep";
/// Annotation: the keys of a Secret whose values were generated, between commas. No expression sees those.
pub const GENERATED: &str = "leasehold.dev/generated";
/// Annotation: what was asked for when those values were made last.
pub const RENEWED_FOR: &str = "leasehold.dev/renewed-for";
/// The well-known label that says who manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`].
pub const LEASEHOLD: &str = "leasehold";

/// The field manager of a kind: `leasehold/<kind in lower case>`. The same on every replica, so that a new leader
/// owns the fields that the last one applied.
pub fn field_manager(kind: &str) -> String {
    format!("{LEASEHOLD}/{}", kind.to_lowercase())
}

/// The labels of everything that this term writes for the object with that uid.
pub fn labels(term: &Term, owner_uid: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (MANAGED_BY.to_owned(), LEASEHOLD.to_owned()),
        (OWNER_UID.to_owned(), owner_uid.to_owned()),
        (SHARD.to_owned(), term.lease().to_owned()),
    ])
}

/// The label selector for the children of the object with that uid.
pub fn children_of(owner_uid: &str) -> String {
    format!("{MANAGED_BY}={LEASEHOLD},{OWNER_UID}={owner_uid}")
}

/// Whose an object is, by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// A child of the object that asks.
    Ours,
    /// A child of another object of ours, with this uid.
    Sibling(String),
    /// No object of ours owns it.
    Foreign,
}

/// Whose an object is, asked for the object with uid `owner_uid`.
pub fn ownership(meta: &ObjectMeta, owner_uid: &str) -> Ownership {
    let label = |key| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    match (label(MANAGED_BY), label(OWNER_UID)) {
        (Some(LEASEHOLD), Some(uid)) if uid == owner_uid => Ownership::Ours,
        (Some(LEASEHOLD), Some(uid)) => Ownership::Sibling(uid.to_owned()),
        _ => Ownership::Foreign,
    }
}

/// The fields under `path` that `manager` has applied, as keys of `managedFields`: `["data"]` gives the data keys.
/// Empty if it has applied nothing there.
pub fn applied_keys(meta: &ObjectMeta, manager: &str, path: &str) -> Vec<String> {
    applied(meta, manager)
        .and_then(|fields| fields.get(format!("f:{path}")))
        .and_then(|fields| fields.as_object())
        .map(|fields| fields.keys().filter_map(|key| key.strip_prefix("f:")).map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Whether `manager` has applied anything of the object.
/// A copy of our child, made by a user or another tool, has its labels but not its managed fields.
pub fn applied_by(meta: &ObjectMeta, manager: &str) -> bool {
    applied(meta, manager).is_some()
}

/// Whether `manager` has applied anything of the object, or has created it.
pub fn written_by(meta: &ObjectMeta, manager: &str) -> bool {
    meta.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(manager) && entry.subresource.as_deref().unwrap_or_default().is_empty()
    })
}

fn applied<'a>(meta: &'a ObjectMeta, manager: &str) -> Option<&'a serde_json::Value> {
    let entry = meta.managed_fields.iter().flatten().find(|entry| {
        entry.manager.as_deref() == Some(manager)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    })?;
    entry.fields_v1.as_ref().map(|fields| &fields.0)
}

/// How an apply treats fields that another manager owns with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflicts {
    /// The apply fails with 409.
    Fail,
    /// The fields become ours.
    Force,
}

/// Applies `object`, which names itself and carries its type, with server-side apply.
/// If it bears a uid or a resourceVersion, the API server refuses it when the live object has another one, or is gone.
pub async fn apply<K>(api: &Api<K>, manager: &str, object: &K, conflicts: Conflicts) -> Result<K, Error>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let mut params = PatchParams::apply(manager);
    params.force = conflicts == Conflicts::Force;
    let name = object.meta().name.as_deref().unwrap_or_default();
    api.patch(name, &params, &Patch::Apply(object)).await
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The API server accepted it.
    Deleted,
    /// The object was gone already, or another one bears its name.
    Gone,
    /// The object has changed since it was read; nothing was deleted.
    Changed,
}

/// Deletes the object that was read with this uid and, if given, in this version; never a later one of the same name.
pub async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: &str,
    resource_version: Option<&str>,
    propagation: PropagationPolicy,
) -> Result<Deletion, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = DeleteParams {
        propagation_policy: Some(propagation),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: resource_version.map(str::to_owned),
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(Deletion::Deleted),
        Err(Error::Api(status)) if status.is_not_found() => Ok(Deletion::Gone),
        Err(Error::Api(status)) if status.is_conflict() && resource_version.is_none() => Ok(Deletion::Gone),
        Err(Error::Api(status)) if status.is_conflict() => Ok(Deletion::Changed),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta(labels: serde_json::Value, managed: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(json!({"name": "x", "labels": labels, "managedFields": managed})).unwrap()
    }

    #[test]
    fn ownership_needs_both_labels() {
        for (labels, expected) in [
            (json!({MANAGED_BY: LEASEHOLD, OWNER_UID: "me"}), Ownership::Ours),
            (json!({MANAGED_BY: LEASEHOLD, OWNER_UID: "you"}), Ownership::Sibling("you".into())),
            (json!({MANAGED_BY: "Helm", OWNER_UID: "me"}), Ownership::Foreign),
            (json!({OWNER_UID: "me"}), Ownership::Foreign),
            (json!({MANAGED_BY: LEASEHOLD}), Ownership::Foreign),
            (json!({}), Ownership::Foreign),
        ] {
            assert_eq!(ownership(&meta(labels.clone(), json!([])), "me"), expected, "{labels}");
        }
    }

    #[test]
    fn only_our_own_apply_counts_as_applied() {
        let fields = json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}, "f:type": {}});
        let entry =
            |manager: &str, operation: &str| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let ours = meta(json!({}), json!([entry("kubectl", "Update"), entry("leasehold/x", "Apply")]));
        assert_eq!(applied_keys(&ours, "leasehold/x", "data"), ["a", "b"]);
        assert!(applied_keys(&ours, "leasehold/x", "binaryData").is_empty());
        for other in [entry("leasehold/y", "Apply"), entry("leasehold/x", "Update")] {
            let other = meta(json!({}), json!([other]));
            assert!(!applied_by(&other, "leasehold/x"));
            assert!(applied_keys(&other, "leasehold/x", "data").is_empty());
        }
    }

    #[test]
    fn the_field_manager_does_not_depend_on_the_replica() {
        assert_eq!(field_manager("ExpiryPolicy"), "leasehold/expirypolicy");
    }
}
