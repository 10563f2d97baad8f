//! Whose a child is, and which are too many. Pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Key;
use crate::reconcile::apply::{LEASEHOLD, OWNER, Ownership, SHARD, ownership, written_by};

/// Who asks whether a child is theirs.
pub(super) struct Claim<'a> {
    /// Uid of the parent.
    pub(super) uid: &'a str,
    /// Namespace and name of the parent, as children bear it.
    pub(super) title: String,
    /// Lease of its kind.
    pub(super) shard: &'a str,
    /// Field manager of its kind.
    pub(super) manager: &'a str,
}

/// Ours is what says that it belongs to the parent, by its labels or its owner reference, and what we have written.
/// A copy of a child, made by a user, says the first as well.
///
/// A child of an earlier object of the kind, of the same namespace and name, is ours too: that object is gone, or it could not
/// have a successor. So children are found again after a backup was restored, and when a user took the owner's uid off one.
pub(super) fn is_ours(meta: &ObjectMeta, claim: &Claim<'_>) -> bool {
    let is_owner = |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
        owner.uid == claim.uid && owner.controller == Some(true)
    };
    let says = ownership(meta, claim.uid) == Ownership::Ours || meta.owner_references.iter().flatten().any(is_owner);
    !claim.uid.is_empty() && (says || is_inherited(meta, claim)) && written_by(meta, claim.manager)
}

/// Whether it bears an owner reference to the object with that uid.
pub(super) fn refers_to(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// Whether it bears the marks of a child of that object, or of one before it of its name, and no other kind of ours has
/// written it: so a backup restores it, which does not say who wrote it. That makes it the child of its name; but it is not
/// deleted for that, for it may be a copy of a child.
pub(super) fn is_marked(meta: &ObjectMeta, claim: &Claim<'_>) -> bool {
    let prefix = format!("{LEASEHOLD}/");
    let is_other = |manager: &str| manager.starts_with(&prefix) && manager != claim.manager;
    let others = meta.managed_fields.iter().flatten().any(|entry| entry.manager.as_deref().is_some_and(is_other));
    !claim.uid.is_empty() && is_inherited(meta, claim) && !others
}

fn is_inherited(meta: &ObjectMeta, claim: &Claim<'_>) -> bool {
    let is = |all: &Option<std::collections::BTreeMap<String, String>>, key: &str, value: &str| {
        all.as_ref().and_then(|all| all.get(key)).is_some_and(|found| found == value)
    };
    is(&meta.annotations, OWNER, &claim.title) && is(&meta.labels, SHARD, claim.shard)
}

/// Whether a child shall go: it is ours, and it is no longer desired.
pub(super) fn is_superfluous(key: &Key, meta: &ObjectMeta, wanted: &BTreeSet<&Key>, claim: &Claim<'_>) -> bool {
    !wanted.contains(key) && is_ours(meta, claim)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reconcile::{
        apply::{LEASEHOLD, MANAGED_BY, OWNER, OWNER_UID, SHARD},
        children::Type,
    };

    const MANAGER: &str = "leasehold/widget";

    #[derive(Clone, Debug)]
    struct Child {
        name: String,
        managed_by: Option<&'static str>,
        owner_label: Option<&'static str>,
        owner_title: Option<&'static str>,
        shard: Option<&'static str>,
        owner_reference: Option<(&'static str, bool)>,
        applied_by: Option<(&'static str, &'static str)>,
    }

    impl Child {
        fn meta(&self) -> ObjectMeta {
            let mut labels = serde_json::Map::new();
            labels.extend(self.managed_by.map(|value| (MANAGED_BY.to_owned(), json!(value))));
            labels.extend(self.owner_label.map(|value| (OWNER_UID.to_owned(), json!(value))));
            labels.extend(self.shard.map(|value| (SHARD.to_owned(), json!(value))));
            let mut annotations = serde_json::Map::new();
            annotations.extend(self.owner_title.map(|value| (OWNER.to_owned(), json!(value))));
            let owners: Vec<_> = self.owner_reference.iter().map(|(uid, controller)| {
                json!({"apiVersion": "v1", "kind": "Widget", "name": "w", "uid": uid, "controller": controller})
            }).collect();
            let managed: Vec<_> = self.applied_by.iter().map(|(manager, operation)| {
                json!({"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}})
            }).collect();
            let meta = json!({"name": self.name, "labels": labels, "annotations": annotations, "ownerReferences": owners, "managedFields": managed});
            serde_json::from_value(meta).unwrap()
        }
    }

    fn child() -> impl Strategy<Value = Child> {
        (
            "[a-c]",
            prop::option::of(prop::sample::select(vec![LEASEHOLD, "Helm"])),
            prop::option::of(prop::sample::select(vec!["me", "you", ""])),
            prop::option::of(prop::sample::select(vec!["ns/me", "ns/you"])),
            prop::option::of(prop::sample::select(vec!["widget.example.com", "other.example.com"])),
            prop::option::of((prop::sample::select(vec!["me", "you", ""]), any::<bool>())),
            prop::option::of((
                prop::sample::select(vec![MANAGER, "leasehold/other", "kubectl"]),
                prop::sample::select(vec!["Apply", "Update"]),
            )),
        )
            .prop_map(|(name, managed_by, owner_label, owner_title, shard, owner_reference, applied_by)| {
                Child { name, managed_by, owner_label, owner_title, shard, owner_reference, applied_by }
            })
    }

    #[test]
    fn an_owner_reference_is_to_the_object_of_its_uid() {
        let owned = Child {
            name: "a".to_owned(),
            managed_by: None,
            owner_label: None,
            owner_title: None,
            shard: None,
            owner_reference: Some(("me", false)),
            applied_by: None,
        };
        assert!(refers_to(&owned.meta(), "me") && !refers_to(&owned.meta(), "you"));
        assert!(!refers_to(&Child { owner_reference: None, ..owned }.meta(), "me"));
    }

    proptest! {
        /// Whatever labels, references and managers an object bears: only what we wrote for this very parent, or for one before it of its name, is deleted.
        #[test]
        fn nothing_is_deleted_that_is_not_ours(child in child(), wanted in prop::collection::btree_set("[a-c]", 0..3)) {
            let of = Arc::new(Type::new("", "v1", "ConfigMap"));
            let key = |name: &str| Key { of: Arc::clone(&of), namespace: Some("ns".to_owned()), name: name.to_owned() };
            let keys: Vec<Key> = wanted.iter().map(|name| key(name)).collect();
            let claim = |uid| Claim { uid, title: "ns/me".to_owned(), shard: "widget.example.com", manager: MANAGER };
            let superfluous = is_superfluous(&key(&child.name), &child.meta(), &keys.iter().collect(), &claim("me"));
            let labelled = child.managed_by == Some(LEASEHOLD) && child.owner_label == Some("me");
            let referred = child.owner_reference == Some(("me", true));
            let written = child.applied_by.is_some_and(|(manager, _)| manager == MANAGER);
            let inherited = child.owner_title == Some("ns/me") && child.shard == Some("widget.example.com");
            let expected = (labelled || referred || inherited) && written && !wanted.contains(&child.name);
            prop_assert_eq!(superfluous, expected);
            prop_assert!(!is_superfluous(&key(&child.name), &child.meta(), &BTreeSet::new(), &claim("")), "a parent without a uid has no children");
        }
    }
}
