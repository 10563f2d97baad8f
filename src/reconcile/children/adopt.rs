//! Whether an object of the name of a child, which is not ours, becomes that child; and how it is released again. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Map, Value, json};

use super::{Adopt, Key, Update, fights::writers, ours::is_marked, plan::Owner};
use crate::reconcile::{
    apply::{
        APPLIED, CHILD, DELETION, LEASEHOLD, MANAGED_BY, OWNER, OWNER_GENERATION, OWNER_UID, Ownership, SHARD,
        ownership,
    },
    stages::Trouble,
};

/// The reason for a child whose name is another object's.
pub(super) const CONFLICT: &str = "ChildConflict";
/// The reason while it is told what is about to be taken over.
pub(super) const ADOPTING: &str = "Adopting";
/// Fields that a message names.
const NAMED: usize = 8;

/// Whether the object becomes the child: what is told before it is written, or why it does not.
pub(super) fn may_adopt(
    key: &Key,
    live: &Value,
    meta: &ObjectMeta,
    desired: (&Value, Adopt, Update),
    owner: &Owner,
) -> Result<String, Trouble> {
    let (object, adopt, update) = desired;
    let title = annotation(meta, OWNER).unwrap_or("another object");
    let refused =
        |whose: String, advice: &str| Err(Trouble::new(CONFLICT, format!("{key} is there and {whose}: {advice}")));
    if is_marked(meta, &owner.claim()) {
        return Ok(told(
            key,
            live,
            (object, update),
            "it bears the marks of this object, as after a backup was restored",
        ));
    }
    match ownership(meta, &owner.uid) {
        // To take it would be undone by the other one, and so on for ever.
        Ownership::Sibling(_) => {
            let advice = "rename or delete it; if that object is gone, take the label leasehold.dev/owner-uid off";
            return refused(format!("belongs to {title}"), advice);
        }
        Ownership::Ours => return refused("is a copy that bears our labels".to_owned(), "rename or delete it"),
        Ownership::Foreign => {}
    }
    let controller = controller(meta).filter(|it| it.uid != owner.uid);
    let tool = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
    let whose = match (controller, tool) {
        (Some(it), _) => Some(format!("is controlled by {} {}", it.kind, it.name)),
        (None, Some(tool)) => Some(format!("is managed by {tool}, as its label says")),
        (None, None) => None,
    };
    match (adopt, whose) {
        (Adopt::Never, _) => refused("is not ours".to_owned(), "rename or delete it"),
        (Adopt::IfUnowned, Some(whose)) => refused(whose, "only what has no owner is taken over"),
        (Adopt::Always, Some(whose)) => Ok(told(key, live, (object, update), &format!("it {whose}"))),
        (Adopt::IfUnowned | Adopt::Always, None) => Ok(told(key, live, (object, update), "it has no owner")),
    }
}

/// What is taken over, by the names of its fields and writers. Values may be secret.
fn told(key: &Key, live: &Value, (object, update): (&Value, Update), whose: &str) -> String {
    let mut fields = Vec::new();
    if update != Update::OnDelete {
        differing(live, object, &mut Vec::new(), &mut fields);
    }
    let what = match &fields[..] {
        [] => "none of its fields changes".to_owned(),
        some => {
            let named = some.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = if some.len() > NAMED { format!(" and {} more", some.len() - NAMED) } else { String::new() };
            format!("what changes is {named}{more}")
        }
    };
    let writers = writers(live);
    let by = if writers.is_empty() { String::new() } else { format!(", last written by {}", writers.join(", ")) };
    format!("{key} is there and is taken over: {whose}{by}; {what}")
}

/// Fields of the child that the object has with another value, or not at all.
fn differing(live: &Value, wanted: &Value, at: &mut Vec<String>, found: &mut Vec<String>) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            for (name, value) in wanted.iter().filter(|(_, value)| !value.is_null()) {
                // What names its type is the same, and need not stand in a list. What marks a child as ours nobody would miss.
                if at.is_empty() && ["apiVersion", "kind"].contains(&name.as_str()) {
                    continue;
                }
                if name.starts_with("leasehold.dev/")
                    || name == MANAGED_BY
                    || (name == "ownerReferences" && at.len() == 1)
                {
                    continue;
                }
                at.push(name.clone());
                differing(live.get(name).unwrap_or(&Value::Null), value, at, found);
                at.pop();
            }
        }
        (live, wanted) if live == wanted => {}
        (Value::Null, Value::Object(wanted))
            if wanted.keys().all(|name| name.starts_with("leasehold.dev/") || name == MANAGED_BY) => {}
        _ => found.push(at.join(".")),
    }
}

/// The owner references that it keeps: without those of other controllers, of which there can be one only, and without those
/// of earlier objects of the owner's name. `None`: all of them.
pub(super) fn owners_kept(meta: &ObjectMeta, owner: &Owner) -> Option<Vec<OwnerReference>> {
    let all = meta.owner_references.as_deref().unwrap_or_default();
    let reference: Option<OwnerReference> = serde_json::from_value(owner.reference.clone()).ok();
    let is_earlier = |it: &OwnerReference| {
        reference.as_ref().is_some_and(|own| own.kind == it.kind && own.name == it.name && own.uid != it.uid)
    };
    let stays = |it: &&OwnerReference| it.uid == owner.uid || (it.controller != Some(true) && !is_earlier(it));
    let kept: Vec<_> = all.iter().filter(stays).cloned().collect();
    (kept.len() < all.len()).then_some(kept)
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether it bears the marks of a child as `dressed` has them. What it holds besides is not asked.
pub(super) fn bears_marks(live: &Value, dressed: &Value) -> bool {
    let borne = |field: &str, name: &str| live["metadata"][field].get(name) == dressed["metadata"][field].get(name);
    let labels = [MANAGED_BY, OWNER_UID, SHARD].iter().all(|name| borne("labels", name));
    let annotations = [OWNER, CHILD, DELETION].iter().all(|name| borne("annotations", name));
    let uid = |owners: &Value| owners.get(0).and_then(|owner| owner["uid"].as_str().map(str::to_owned));
    let owner = uid(&dressed["metadata"]["ownerReferences"]);
    let owners = live["metadata"]["ownerReferences"].as_array();
    let is_owned = owner.is_none_or(|uid| owners.into_iter().flatten().any(|it| it["uid"] == uid.as_str()));
    labels && annotations && is_owned
}

/// A merge patch that gives the object those marks and changes nothing else, in this version of it.
pub(super) fn marking(live: &Value, dressed: &Value, owner: &Owner) -> Value {
    let meta = super::plan::meta(live);
    let part = |field: &str, names: &[&str]| -> Map<String, Value> {
        let value =
            |name: &&str| ((*name).to_owned(), dressed["metadata"][field].get(*name).cloned().unwrap_or_default());
        names.iter().map(value).collect()
    };
    let mut owners = owners_kept(&meta, owner).unwrap_or_else(|| meta.owner_references.clone().unwrap_or_default());
    let reference = dressed["metadata"]["ownerReferences"].get(0).cloned();
    if let Some(reference) = reference.and_then(|it| serde_json::from_value::<OwnerReference>(it).ok())
        && !owners.iter().any(|it| it.uid == reference.uid)
    {
        owners.push(reference);
    }
    let mut metadata = json!({
        "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners,
        "labels": part("labels", &[MANAGED_BY, OWNER_UID, SHARD]), "annotations": part("annotations", &[OWNER, CHILD, DELETION]),
    });
    // Of an object that says of no field who wrote it, as after a release or in a backup, the API server notes no writer until
    // the first apply. By our name there we know it for a child, so the patch begins the list.
    if meta.managed_fields.as_ref().is_none_or(Vec::is_empty) {
        metadata["managedFields"] = json!([{
            "manager": owner.manager, "operation": "Update", "apiVersion": dressed["apiVersion"], "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {format!("f:{OWNER_UID}"): {}}}},
        }]);
    }
    json!({"metadata": metadata})
}

/// A merge patch that takes off all that marks the object as the owner's: labels, annotations, the owner reference, and which
/// fields we own; in this version of it. All else stays as it is.
pub(super) fn releasing(live: &Value, uid: &str, manager: &str) -> Value {
    let nulls = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Value::Null)).collect::<Map<_, _>>();
    let is_managed = live["metadata"]["labels"][MANAGED_BY] == LEASEHOLD;
    let labels: &[&str] = if is_managed { &[MANAGED_BY, OWNER_UID, SHARD] } else { &[OWNER_UID, SHARD] };
    let without = |field: &str, is_ours: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        let all = live["metadata"][field].as_array();
        all.into_iter().flatten().filter(|it| !is_ours(it)).cloned().collect()
    };
    let mut metadata = json!({
        "uid": live["metadata"]["uid"], "resourceVersion": live["metadata"]["resourceVersion"], "labels": nulls(labels),
        "annotations": nulls(&[OWNER, OWNER_GENERATION, APPLIED, CHILD, DELETION]),
    });
    let is_owner = |it: &Value| it["uid"] == uid;
    if live["metadata"]["ownerReferences"].as_array().is_some_and(|all| all.iter().any(is_owner)) {
        metadata["ownerReferences"] = json!(without("ownerReferences", &is_owner));
    }
    // What we own would be taken away with the next apply of the same manager that does not say it.
    let is_manager = |it: &Value| it["manager"] == manager && it.get("subresource").is_none_or(Value::is_null);
    let others = without("managedFields", &is_manager);
    metadata["managedFields"] = if others.is_empty() { json!([{}]) } else { json!(others) };
    json!({"metadata": metadata})
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reconcile::{
        apply::written_by,
        children::{Type, plan::meta},
    };

    fn owner() -> Owner {
        let labels = [(MANAGED_BY, LEASEHOLD), (OWNER_UID, "me"), (SHARD, "widget.example.com")];
        Owner {
            uid: "me".to_owned(),
            generation: Some(3),
            namespace: Some("ns".to_owned()),
            name: "p".to_owned(),
            reference: json!({"apiVersion": "example.com/v1", "kind": "Widget", "name": "p", "uid": "me", "controller": true}),
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            manager: "leasehold/widget".to_owned(),
            is_held: true,
        }
    }

    fn key() -> Key {
        Key { of: Arc::new(Type::new("", "v1", "Secret")), namespace: Some("ns".to_owned()), name: "x".to_owned() }
    }

    fn reference(kind: &str, name: &str, uid: &str, controller: bool) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": controller})
    }

    #[test]
    fn who_owns_an_object_decides_whether_it_is_taken_over() {
        use Adopt::{Always, IfUnowned, Never};
        let plain = json!({"name": "x"});
        let controlled = json!({"name": "x", "ownerReferences": [reference("Deployment", "d", "other", true)]});
        let referred = json!({"name": "x", "ownerReferences": [reference("Deployment", "d", "other", false)]});
        let helm = json!({"name": "x", "labels": {MANAGED_BY: "Helm"}});
        let sibling = json!({"name": "x", "labels": {MANAGED_BY: LEASEHOLD, OWNER_UID: "you", SHARD: "widget.example.com"}, "annotations": {OWNER: "ns/other"}});
        let restored = json!({"name": "x", "labels": {MANAGED_BY: LEASEHOLD, OWNER_UID: "earlier", SHARD: "widget.example.com"}, "annotations": {OWNER: "ns/p"}});
        let of_other_kind = json!({"name": "x", "labels": {MANAGED_BY: LEASEHOLD, OWNER_UID: "earlier", SHARD: "other.example.com"}, "annotations": {OWNER: "ns/p"}});
        let copy = json!({"name": "x", "labels": {MANAGED_BY: LEASEHOLD, OWNER_UID: "me"}});
        for (metadata, never, if_unowned, always) in [
            (&plain, "is not ours", "", ""),
            (&referred, "is not ours", "", ""),
            (&controlled, "is not ours", "is controlled by Deployment d", ""),
            (&helm, "is not ours", "is managed by Helm", ""),
            (&sibling, "belongs to ns/other", "belongs to ns/other", "belongs to ns/other"),
            (&of_other_kind, "belongs to ns/p", "belongs to ns/p", "belongs to ns/p"),
            (&copy, "is a copy", "is a copy", "is a copy"),
            (&restored, "", "", ""),
        ] {
            for (adopt, refusal) in [(Never, never), (IfUnowned, if_unowned), (Always, always)] {
                let live = json!({"metadata": metadata, "data": {"a": "1"}});
                let wanted = json!({"metadata": {"name": "x"}, "data": {"a": "1"}});
                match may_adopt(&key(), &live, &meta(&live), (&wanted, adopt, Update::Apply), &owner()) {
                    Ok(told) => {
                        assert!(refusal.is_empty() && told.contains("none of its fields changes"), "{metadata}: {told}")
                    }
                    Err(trouble) => {
                        assert_eq!(trouble.reason, CONFLICT);
                        assert!(
                            !refusal.is_empty() && trouble.message.contains(refusal),
                            "{metadata}: {}",
                            trouble.message
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_taken_over_is_told_by_names_and_never_by_values() {
        let managers = json!([{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:data": {}}}]);
        let live = json!({"metadata": {"name": "x", "managedFields": managers}, "data": {"password": "geheim", "user": "a"}, "type": "Opaque"});
        let wanted = json!({
            "metadata": {"name": "x", "labels": {MANAGED_BY: LEASEHOLD, "own": "yes"}, "annotations": {OWNER: "ns/p"}, "ownerReferences": [{}]},
            "data": {"password": "neu", "user": "a"}, "type": "Opaque",
        });
        let told = |update| may_adopt(&key(), &live, &meta(&live), (&wanted, Adopt::Always, update), &owner()).unwrap();
        assert_eq!(
            told(Update::Apply),
            "Secret ns/x is there and is taken over: it has no owner, last written by kubectl; what changes is data.password, metadata.labels"
        );
        assert!(told(Update::OnDelete).ends_with("none of its fields changes"));
    }

    #[test]
    fn there_is_one_controller_and_an_earlier_owner_of_the_name_is_none() {
        let kept = |owners: Value| {
            let live = json!({"metadata": {"name": "x", "ownerReferences": owners}});
            owners_kept(&meta(&live), &owner()).map(|all| all.into_iter().map(|it| it.uid).collect::<Vec<_>>())
        };
        assert_eq!(kept(json!([])), None);
        assert_eq!(kept(json!([reference("Widget", "p", "me", true), reference("A", "a", "a", false)])), None);
        assert_eq!(
            kept(json!([reference("A", "a", "a", true), reference("B", "b", "b", false)])),
            Some(vec!["b".to_owned()])
        );
        assert_eq!(kept(json!([reference("Widget", "p", "earlier", false)])), Some(vec![]));
    }

    #[test]
    fn a_released_object_bears_nothing_of_ours_and_keeps_all_else() {
        let ours = json!({"manager": "leasehold/widget", "operation": "Apply", "fieldsV1": {"f:data": {}}});
        let other = json!({"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:metadata": {}}});
        let live = json!({"metadata": {
            "name": "x", "uid": "u", "resourceVersion": "7",
            "labels": {MANAGED_BY: LEASEHOLD, OWNER_UID: "me", SHARD: "s", "own": "yes"}, "annotations": {OWNER: "ns/p", "own": "yes"},
            "ownerReferences": [reference("Widget", "p", "me", true), reference("A", "a", "a", false)],
            "managedFields": [ours, other],
        }, "data": {"a": "1"}});
        let mut after = live.clone();
        json_patch::merge(&mut after, &releasing(&live, "me", "leasehold/widget"));
        let expected = json!({"metadata": {
            "name": "x", "uid": "u", "resourceVersion": "7", "labels": {"own": "yes"}, "annotations": {"own": "yes"},
            "ownerReferences": [reference("A", "a", "a", false)], "managedFields": [other],
        }, "data": {"a": "1"}});
        assert_eq!(after, expected);
        let helm = json!({"metadata": {"labels": {MANAGED_BY: "Helm"}}});
        assert!(releasing(&helm, "me", "m")["metadata"]["labels"].get(MANAGED_BY).is_none());
        assert_eq!(
            releasing(&helm, "me", "m")["metadata"]["managedFields"],
            json!([{}]),
            "an empty list would change nothing"
        );
    }

    #[test]
    fn an_object_that_is_only_marked_changes_in_nothing_else() {
        let owner = owner();
        let dressed = json!({"metadata": {
            "name": "x", "labels": owner.labels, "annotations": {OWNER: "ns/p", CHILD: "db", APPLIED: "digest"},
            "ownerReferences": [owner.reference],
        }, "data": {"a": "2"}});
        let live = json!({"metadata": {"name": "x", "uid": "u", "resourceVersion": "7", "annotations": {DELETION: "Keep"}}, "data": {"a": "1"}});
        assert!(!bears_marks(&live, &dressed));
        let mut after = live.clone();
        json_patch::merge(&mut after, &marking(&live, &dressed, &owner));
        assert!(bears_marks(&after, &dressed), "{after}");
        assert_eq!(after["data"], json!({"a": "1"}));
        assert_eq!(after["metadata"]["annotations"], json!({OWNER: "ns/p", CHILD: "db"}));
        // The API server adds no writer to an empty list, and begins none that is there.
        assert!(written_by(&meta(&after), &owner.manager), "{after}");
        let mut known = live;
        known["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Update"}]);
        assert_eq!(marking(&known, &dressed, &owner)["metadata"].get("managedFields"), None);
    }
}
