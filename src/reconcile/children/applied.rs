//! Whether a child is still what we applied. Pure.
//!
//! Values are not compared: the API server fills in defaults, and writes a quantity in its own way. Two things tell instead.
//! A digest of what we applied is written on the child, so that a later term knows what an earlier one did.
//! And server-side apply keeps the fields that are ours: another manager that changes one of them takes it from us.
//! So a child is as we applied it if it bears the digest, and if we own just the fields that we would apply.
//! One that we created and never applied is owned with the defaults that the API server filled in: there the fields that we
//! would apply must be among ours.

use serde_json::{Map, Value, json};

use crate::reconcile::apply::{self, APPLIED};

/// What [`APPLIED`] bears for that object.
pub(super) fn digest(object: &Value) -> String {
    apply::digest(object.to_string().bytes())
}

/// Whether `live` is as `manager` applied `object`, whose digest it would bear.
pub(super) fn is_as_applied(live: &Value, object: &Value, digest: &str, manager: &str) -> bool {
    let borne = live.pointer("/metadata/annotations").and_then(|annotations| annotations.get(APPLIED));
    borne.and_then(Value::as_str) == Some(digest)
        && match (fields(live, manager, "Apply"), fields(live, manager, "Update")) {
            (Some(applied), _) => owns(applied, object, Extent::Just),
            (None, Some(created)) => owns(created, object, Extent::AtLeast) && is_kept(created, object, live, true),
            (None, None) => false,
        }
}

/// Whether `manager` has created it with a field that `object` does not have. An apply takes away what an apply owns, so such a
/// field would stay when `object` is applied.
pub(super) fn would_leave(live: &Value, object: &Value, manager: &str) -> bool {
    fields(live, manager, "Update").is_some_and(|created| !is_within(created, object))
}

/// Whether each of these fields is one of that value's.
fn is_within(fields: &Value, value: &Value) -> bool {
    fields.as_object().into_iter().flatten().filter(|(key, _)| key.as_str() != ".").all(|(key, field)| {
        let below = match key.strip_prefix("f:") {
            Some(name) => value.get(name),
            None => value.as_array().and_then(|items| items.iter().find(|item| is_named(key, item))),
        };
        below.is_some_and(|below| !below.is_null() && is_within(field, below))
    })
}

/// The operations of a JSON patch by which an apply owns what `manager` has created as well, as client-go's csaupgrade has it;
/// `None`: it has created nothing of it.
pub(super) fn owned_by_apply(live: &Value, manager: &str) -> Option<Vec<Value>> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    let find = |operation| entries.iter().position(|entry| is_of_us(entry, manager, operation));
    let created = find("Update")?;
    let at = |entry: usize, rest: &str| format!("/metadata/managedFields/{entry}{rest}");
    Some(match find("Apply") {
        None => vec![json!({"op": "replace", "path": at(created, "/operation"), "value": "Apply"})],
        // A manager has one entry for what it applies.
        Some(applied) => {
            let mut all = entries[applied]["fieldsV1"].clone();
            unite(&mut all, &entries[created]["fieldsV1"]);
            vec![
                json!({"op": "replace", "path": at(applied, "/fieldsV1"), "value": all}),
                json!({"op": "remove", "path": at(created, "")}),
            ]
        }
    })
}

fn unite(fields: &mut Value, more: &Value) {
    let Some(fields) = fields.as_object_mut() else { return };
    for (key, field) in more.as_object().into_iter().flatten() {
        unite(fields.entry(key).or_insert_with(|| json!({})), field);
    }
}

fn is_of_us(entry: &Value, manager: &str, operation: &str) -> bool {
    entry["manager"] == manager
        && entry["operation"] == operation
        && entry.get("subresource").is_none_or(Value::is_null)
}

/// How many fields may be owned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Just,
    AtLeast,
}

/// The fields that `manager` owns by having applied them, or updated.
pub(super) fn fields<'a>(live: &'a Value, manager: &str, operation: &str) -> Option<&'a Value> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    entries.iter().find(|entry| is_of_us(entry, manager, operation))?.get("fieldsV1")
}

/// Whether `fields` are those of `object`, no fewer, and no more unless that is allowed. No manager owns its kind, name and namespace.
fn owns(fields: &Value, object: &Value, extent: Extent) -> bool {
    let (Some(fields), Some(object)) = (fields.as_object(), object.as_object()) else { return false };
    let unowned: &[&str] = &["apiVersion", "kind"];
    let mut object: Map<String, Value> = object
        .iter()
        .filter(|(name, _)| !unowned.contains(&name.as_str()))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for own in ["name", "namespace", "uid"] {
            metadata.remove(own);
        }
    }
    covers(fields, &object, extent)
}

fn covers(fields: &Map<String, Value>, object: &Map<String, Value>, extent: Extent) -> bool {
    let named = fields.keys().filter(|key| key.as_str() != ".").count();
    let owned = |(name, value): (&String, &Value)| {
        // The API server keeps no null, so no manager owns one.
        let absent = extent == Extent::AtLeast && value.is_null();
        absent || fields.get(&format!("f:{name}")).is_some_and(|field| is_of(field, value, extent))
    };
    (extent == Extent::AtLeast || named == object.len()) && object.iter().all(owned)
}

/// Whether a mapping that a creation owns with nothing below it is as it was created. That is one that is owned as a whole, or
/// one whose fields were all taken: then only their values tell. The metadata has marks of its own.
fn is_kept(fields: &Value, object: &Value, live: &Value, is_top: bool) -> bool {
    let Some(owned) = fields.as_object() else { return true };
    match (object, live) {
        (Value::Object(all), _) if owned.is_empty() => all.is_empty() || contains(live, object),
        (Value::Object(all), Value::Object(live)) => all.iter().all(|(name, value)| {
            let field = owned.get(&format!("f:{name}")).filter(|_| !is_top || name != "metadata");
            field.is_none_or(|field| is_kept(field, value, live.get(name).unwrap_or(&Value::Null), false))
        }),
        (Value::Array(items), Value::Array(live)) => items.iter().all(|item| {
            let entry = owned.iter().find(|(key, field)| is_item(key, field, item, Extent::AtLeast));
            let Some((key, field)) = entry.filter(|_| item.is_object()) else { return true };
            live.iter()
                .filter(|live| is_item(key, field, live, Extent::AtLeast))
                .any(|live| is_kept(field, item, live, false))
                || !live.iter().any(|live| is_item(key, field, live, Extent::AtLeast))
        }),
        _ => true,
    }
}

/// Whether all of that is in it.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| value.is_null() || live.get(name).is_some_and(|live| contains(live, value))),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

/// Whether the owned field is that value's. Nothing below it: it is owned as a whole.
fn is_of(field: &Value, value: &Value, extent: Extent) -> bool {
    let Some(fields) = field.as_object() else { return false };
    if fields.is_empty() {
        return true;
    }
    match value {
        Value::Object(object) => covers(fields, object, extent),
        Value::Array(items) => {
            let entries: Vec<_> = fields.iter().filter(|(key, _)| key.as_str() != ".").collect();
            (extent == Extent::AtLeast || entries.len() == items.len())
                && items.iter().all(|item| entries.iter().any(|(key, field)| is_item(key, field, item, extent)))
        }
        _ => false,
    }
}

fn is_item(key: &str, field: &Value, item: &Value, extent: Extent) -> bool {
    is_named(key, item) && (key.starts_with("v:") || is_of(field, item, extent))
}

/// `k:{…}` is the item of those keys, `v:…` the item of that value. The API server fills in keys that have a default.
fn is_named(key: &str, item: &Value) -> bool {
    if let Some(value) = key.strip_prefix("v:") {
        return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item);
    }
    let keys = key.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Map<String, Value>>(keys).ok());
    keys.is_some_and(|keys| keys.iter().all(|(name, value)| item.get(name).is_none_or(|own| own == value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Deployment as the real API server tells who owns what of it, after an apply of [`object`].
    fn live(digest: &str) -> Value {
        json!({
            "metadata": {
                "annotations": {APPLIED: digest},
                "managedFields": [
                    {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:status": {}}},
                    {"manager": "leasehold/webapp", "operation": "Apply", "fieldsV1": {
                        "f:metadata": {
                            "f:annotations": {"f:leasehold.dev/applied": {}},
                            "f:ownerReferences": {"k:{\"uid\":\"u\"}": {}},
                        },
                        "f:spec": {
                            "f:replicas": {},
                            "f:selector": {},
                            "f:template": {
                                "f:metadata": {"f:labels": {"f:app": {}}},
                                "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {
                                    ".": {}, "f:name": {}, "f:image": {},
                                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                                    "f:args": {},
                                }}},
                            },
                        },
                    }},
                ],
            },
        })
    }

    fn object() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "web", "namespace": "ns", "annotations": {APPLIED: "x"},
                "ownerReferences": [{"uid": "u", "name": "p"}],
            },
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "i", "ports": [{"containerPort": 80}], "args": ["a", "b"]}]},
                },
            },
        })
    }

    fn as_applied(live: &Value, object: &Value) -> bool {
        is_as_applied(live, object, "x", "leasehold/webapp")
    }

    #[test]
    fn what_we_applied_and_no_other_manager_touched_is_as_applied() {
        assert!(as_applied(&live("x"), &object()));
    }

    #[test]
    fn another_digest_or_another_manager_is_not() {
        assert!(!as_applied(&live("y"), &object()));
        assert!(!is_as_applied(&live("x"), &object(), "x", "leasehold/tenant"));
        assert!(!as_applied(&json!({}), &object()));
    }

    #[test]
    fn a_field_that_was_taken_from_us_tells_whatever_its_value_is_now() {
        for taken in ["/f:spec/f:replicas", "/f:spec/f:selector", "/f:metadata/f:ownerReferences"] {
            let mut live = live("x");
            let (parent, field) = taken.rsplit_once('/').unwrap();
            let path = format!("/metadata/managedFields/1/fieldsV1{parent}");
            live.pointer_mut(&path).unwrap().as_object_mut().unwrap().remove(field).unwrap();
            assert!(!as_applied(&live, &object()), "{taken}");
        }
        let mut live = live("x");
        let containers = "/metadata/managedFields/1/fieldsV1/f:spec/f:template/f:spec/f:containers";
        live.pointer_mut(containers).unwrap().as_object_mut().unwrap().clear();
        live.pointer_mut(containers).unwrap()["k:{\"name\":\"other\"}"] = json!({"f:name": {}});
        assert!(!as_applied(&live, &object()));
    }

    #[test]
    fn a_field_that_we_own_and_would_not_apply_any_more_tells() {
        let mut less = object();
        less["spec"].as_object_mut().unwrap().remove("replicas");
        assert!(!as_applied(&live("x"), &less));
        let mut less = object();
        less["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([]);
        assert!(!as_applied(&live("x"), &less));
    }

    #[test]
    fn a_set_is_owned_by_its_values() {
        let fields = json!({"f:finalizers": {"v:\"a\"": {}, "v:\"b\"": {}}});
        assert!(owns(&fields, &json!({"finalizers": ["b", "a"]}), Extent::Just));
        assert!(!owns(&fields, &json!({"finalizers": ["a"]}), Extent::Just));
        assert!(!owns(&fields, &json!({"finalizers": ["a", "c"]}), Extent::Just));
    }

    /// As the API server tells it of a child that was created by POST: the defaults are ours too, until we apply.
    #[test]
    fn what_we_created_is_as_applied_with_the_defaults_that_came_with_it() {
        let mut created = live("x");
        created["metadata"]["managedFields"][1]["operation"] = json!("Update");
        created["metadata"]["managedFields"][1]["fieldsV1"]["f:spec"]["f:progressDeadlineSeconds"] = json!({});
        assert!(as_applied(&created, &object()));
        created["metadata"]["managedFields"][1]["fieldsV1"]["f:spec"].as_object_mut().unwrap().remove("f:replicas");
        assert!(!as_applied(&created, &object()), "a field was taken from us");
    }

    /// As the API server tells it when another writer has changed the only key of a ConfigMap that was created by POST.
    #[test]
    fn a_mapping_all_of_whose_fields_were_taken_is_not_as_it_was_created() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"value": "ours"}});
        let live = |data: Value, fields: Value| {
            let ours = json!({"manager": "leasehold/webapp", "operation": "Update", "fieldsV1": {"f:metadata": {}, "f:data": fields}});
            json!({"metadata": {"annotations": {APPLIED: "x"}, "managedFields": [ours]}, "data": data})
        };
        let created = live(json!({"value": "ours"}), json!({".": {}, "f:value": {}}));
        assert!(as_applied(&created, &object));
        assert!(!as_applied(&live(json!({"value": "theirs"}), json!({})), &object));
        assert!(!as_applied(&live(json!({}), json!({})), &object));
        // One that is owned as a whole looks the same, and is as it was.
        assert!(as_applied(&live(json!({"value": "ours", "default": 1}), json!({})), &object));
    }

    const US: &str = "leasehold/webapp";

    /// What [`live`] has applied, as a creation.
    fn created() -> Value {
        let mut created = live("x");
        created["metadata"]["managedFields"][1]["operation"] = json!("Update");
        created
    }

    #[test]
    fn a_creation_leaves_a_field_that_is_not_desired_any_more_and_no_other() {
        assert!(!would_leave(&created(), &object(), US));
        assert!(!would_leave(&live("x"), &json!({}), US), "what was applied is taken away by an apply");
        assert!(!would_leave(&created(), &json!({}), "leasehold/tenant"));
        let mut more = object();
        more["spec"]["minReadySeconds"] = json!(5);
        more["spec"]["replicas"] = json!(7);
        more["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().insert(0, json!({"name": "other"}));
        assert!(!would_leave(&created(), &more, US), "values and fields that come are none that go");

        let containers = "/spec/template/spec/containers";
        for gone in [
            "/spec/replicas",
            "/spec/selector",
            "/metadata/annotations",
            "/metadata/ownerReferences/0",
            "/spec/template/spec/containers/0/args",
            "/spec/template/spec/containers/0/ports/0",
            "/spec/template/spec/containers/0",
        ] {
            let (parent, field) = gone.rsplit_once('/').unwrap();
            for by_null in [false, true] {
                let mut less = object();
                match less.pointer_mut(parent).unwrap() {
                    Value::Object(fields) if by_null => _ = fields.insert(field.to_owned(), Value::Null),
                    Value::Object(fields) => _ = fields.remove(field).unwrap(),
                    Value::Array(items) => _ = items.remove(0),
                    _ => unreachable!(),
                }
                assert!(would_leave(&created(), &less, US), "{gone}");
            }
        }
        let mut renamed = object();
        renamed.pointer_mut(containers).unwrap()[0]["name"] = json!("web2");
        assert!(would_leave(&created(), &renamed, US));
        let mut another = object();
        another["spec"]["template"] = json!("text");
        assert!(would_leave(&created(), &another, US));
        // A default that the API server filled in is owned by the creation, and desired by nobody.
        let mut defaulted = created();
        defaulted["metadata"]["managedFields"][1]["fieldsV1"]["f:spec"]["f:progressDeadlineSeconds"] = json!({});
        assert!(would_leave(&defaulted, &object(), US));
    }

    #[test]
    fn what_a_creation_owns_becomes_what_an_apply_owns() {
        let replace = |path: &str, value: Value| json!({"op": "replace", "path": path, "value": value});
        assert_eq!(owned_by_apply(&live("x"), US), None);
        assert_eq!(
            owned_by_apply(&created(), US),
            Some(vec![replace("/metadata/managedFields/1/operation", json!("Apply"))])
        );
        let entry = |operation: &str, fields: Value| json!({"manager": US, "operation": operation, "fieldsV1": fields});
        let both = json!({"metadata": {"managedFields": [
            entry("Apply", json!({"f:data": {"f:a": {}, "f:b": {}}})),
            {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:data": {"f:z": {}}}},
            entry("Update", json!({"f:data": {".": {}, "f:b": {}, "f:c": {}}, "f:immutable": {}})),
        ]}});
        let all = json!({"f:data": {".": {}, "f:a": {}, "f:b": {}, "f:c": {}}, "f:immutable": {}});
        let expected = vec![
            replace("/metadata/managedFields/0/fieldsV1", all),
            json!({"op": "remove", "path": "/metadata/managedFields/2"}),
        ];
        assert_eq!(owned_by_apply(&both, US), Some(expected));
    }

    #[test]
    fn the_digest_is_of_every_value() {
        let (a, b) = (json!({"a": 1, "b": [true]}), json!({"b": [true], "a": 1}));
        assert_eq!(digest(&a), digest(&b));
        assert_ne!(digest(&a), digest(&json!({"a": 1, "b": [false]})));
    }
}
