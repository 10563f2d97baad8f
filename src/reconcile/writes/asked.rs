//! What annotations of an object ask of its reconciler: to be left alone for a while, or to be looked at now. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::apply::digest;

/// Annotation of an object: it is paused, whatever stands there but `false`.
pub const PAUSED: &str = "leasehold.dev/paused";
/// Annotation of an object: each new value makes it due once.
pub const REQUESTED_AT: &str = "leasehold.dev/requested-at";

/// The condition of an object that is paused, and its reason in the conditions that are not known meanwhile.
pub const PAUSED_CONDITION: &str = "Paused";
const ANNOTATED: &str = "Annotated";

/// Longer values are known by a digest.
const LONGEST: usize = 128;

/// Whether nothing is to be written for the object. A value that means nothing pauses too: its author wants no writes.
pub fn is_paused(meta: &ObjectMeta) -> bool {
    value(meta, PAUSED).is_some_and(|value| value != "false")
}

/// What the status of a paused object says: the reason and the message of its condition.
pub(in crate::reconcile) fn paused(meta: &ObjectMeta) -> (&'static str, String) {
    let held = if meta.deletion_timestamp.is_some() { "its deletion waits as well; " } else { "" };
    (ANNOTATED, format!("nothing is written for it: {held}take the annotation {PAUSED} off to go on"))
}

/// What tells that the annotations ask for something else.
pub(in crate::reconcile) fn asks(meta: &ObjectMeta) -> impl Iterator<Item = (&'static str, String)> {
    [PAUSED, REQUESTED_AT].into_iter().filter_map(|name| {
        let value = value(meta, name)?;
        Some((name, if value.len() > LONGEST { digest(value.bytes()) } else { value.to_owned() }))
    })
}

fn value<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(annotations: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"name": "x", "annotations": annotations})).unwrap()
    }

    #[test]
    fn whatever_but_false_pauses() {
        for (annotations, expected) in [
            (json!(null), false),
            (json!({"a": "b"}), false),
            (json!({PAUSED: "false"}), false),
            (json!({PAUSED: "true"}), true),
            (json!({PAUSED: ""}), true),
            (json!({PAUSED: "until monday"}), true),
        ] {
            assert_eq!(is_paused(&meta(&annotations)), expected, "{annotations}");
        }
    }

    #[test]
    fn a_long_value_is_known_by_its_digest() {
        let asked = |value: &str| asks(&meta(&json!({REQUESTED_AT: value}))).collect::<Vec<_>>();
        let (long, other) = ("x".repeat(5000), "x".repeat(5001));
        assert_ne!(asked(&long), asked(&other));
        assert!(asked(&long)[0].1.len() < LONGEST);
        assert_eq!(asked("now"), [(REQUESTED_AT, "now".to_owned())]);
    }
}
