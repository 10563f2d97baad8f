//! The `ScaleSchedule` resource in its second version, and the way there and back.
//!
//! Its windows have names: two managers can each apply their own, and a change of one says which. The other fields are
//! called what other resources of Kubernetes call them.
//!
//! The first version is the one that is stored, so that an installation without webhooks, or an older one after a
//! rollback, reads every object. What it cannot say, the names of windows, is kept in an annotation ([`NAMES`]).

#![expect(clippy::duplicated_attributes, reason = "the columns of kube's attribute share types and priorities")]
#![expect(unreachable_pub, reason = "the schema derive repeats each struct inside a function")]

use std::collections::BTreeSet;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::types::{Day, ScaleScheduleStatus, TargetRef};
use crate::webhooks::Webhook;

/// Annotation of an object in the first version: a list of the windows that have a name of their own, each with what it is
/// found again by.
pub const NAMES: &str = "leasehold.dev/window-names";

const FIRST: &str = "v1alpha1";
const SECOND: &str = "v1beta1";

/// As the first version, with names for the windows.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1beta1",
    kind = "ScaleSchedule",
    plural = "scaleschedules",
    namespaced,
    shortname = "sched",
    category = "leasehold",
    status = "ScaleScheduleStatus",
    derive = "PartialEq",
    doc = "Scales one workload by the clock: in a window to the number of the window, and afterwards to what it was.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.scaleTargetRef.name"),
    printcolumn(name = "Window", type_ = "string", json_path = ".status.activeWindow"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Saved", type_ = "integer", json_path = ".status.savedReplicas"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextTransition"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ScaleScheduleSpec {
    /// What is scaled: anything with a `scale`, in the namespace of the schedule.
    pub scale_target_ref: TargetRef,
    /// The clock that the windows are read from: a name of the time zone database, such as `Europe/Berlin`. Default: `UTC`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// As if there were no windows: what was saved is restored, and the target is left alone.
    #[serde(default)]
    pub suspend: bool,
    /// When to scale, and to what. They must not overlap.
    #[schemars(length(min = 1, max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub windows: Vec<Window>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// A time of the week.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.start != self.end").message("start and end must differ"))]
pub struct Window {
    /// What it is called, once in a schedule.
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The days on which it begins.
    #[schemars(length(min = 1, max = 7))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub days: Vec<Day>,
    /// When it begins, such as `22:00`. A time that the clock skips is when it goes on, one that it shows twice is the first.
    #[schemars(length(max = 5), pattern("^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,
    /// When it ends; on the next day if that is not after `start`.
    #[schemars(length(max = 5), pattern("^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub end: String,
    /// How many replicas in the meantime.
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,
}

/// Converts ScaleSchedules.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScheduleConversion;

impl Webhook for ScheduleConversion {
    fn convert(&self, object: Value, from: &str, to: &str) -> Result<Value, String> {
        convert(object, from, to)
    }

    fn converts(&self) -> bool {
        true
    }
}

/// The object in another version. Fields that neither version knows are kept as they are.
pub(super) fn convert(mut object: Value, from: &str, to: &str) -> Result<Value, String> {
    match (from, to) {
        (FIRST, SECOND) => second(&mut object),
        (SECOND, FIRST) => first(&mut object),
        _ => return Err(format!("there are {FIRST} and {SECOND}, and no conversion from {from} to {to}")),
    }
    object["apiVersion"] = json!(format!("leasehold.dev/{to}"));
    Ok(object)
}

fn second(object: &mut Value) {
    let names = take_names(object);
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    rename(spec, "targetRef", "scaleTargetRef");
    rename(spec, "timezone", "timeZone");
    let Some(windows) = spec.get_mut("windows").and_then(Value::as_array_mut) else { return };
    let mut known = names.unwrap_or_default();
    let mut given = Vec::new();
    for window in windows.iter_mut().filter_map(Value::as_object_mut) {
        let found = known.iter().position(|one| same(one, window));
        given.push(found.and_then(|at| known.remove(at).get("name").cloned()));
        rename(window, "from", "start");
        rename(window, "to", "end");
    }
    let mut taken: BTreeSet<String> = given.iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    for (number, (window, name)) in windows.iter_mut().filter_map(Value::as_object_mut).zip(given).enumerate() {
        let name = name.unwrap_or_else(|| {
            // Another one may have been given just this name.
            let free = (number..).map(generated).find(|name| !taken.contains(name)).unwrap_or_default();
            taken.insert(free.clone());
            json!(free)
        });
        window.insert("name".to_owned(), name);
    }
}

fn first(object: &mut Value) {
    let mut names = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        rename(spec, "scaleTargetRef", "targetRef");
        rename(spec, "timeZone", "timezone");
        let windows = spec.get_mut("windows").and_then(Value::as_array_mut);
        for (number, window) in windows.into_iter().flatten().enumerate() {
            let Some(window) = window.as_object_mut() else { continue };
            rename(window, "start", "from");
            rename(window, "end", "to");
            let Some(name) = window.remove("name") else { continue };
            names.push((name.as_str() != Some(&generated(number)), found_by(window, &name)));
        }
    }
    // Names that would be generated again need no annotation; if one is not, the others are kept too, for their order.
    if names.iter().any(|(own, _)| *own) {
        let names: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
        let annotations = object["metadata"]
            .as_object_mut()
            .map(|metadata| metadata.entry("annotations").or_insert_with(|| json!({})));
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.insert(NAMES.to_owned(), Value::String(Value::Array(names).to_string()));
        }
    }
}

fn generated(number: usize) -> String {
    format!("window-{number}")
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

/// A window is found again by when it is: what a client of the first version changes besides keeps the name.
const FOUND_BY: [&str; 3] = ["days", "from", "to"];

fn found_by(window: &Map<String, Value>, name: &Value) -> Value {
    let mut found: Map<_, _> =
        FOUND_BY.iter().filter_map(|field| Some(((*field).to_owned(), window.get(*field)?.clone()))).collect();
    found.insert("name".to_owned(), name.clone());
    Value::Object(found)
}

fn same(one: &Value, window: &Map<String, Value>) -> bool {
    FOUND_BY.iter().all(|field| one.get(*field) == window.get(*field))
}

/// The annotation, taken from the object if it is one of ours. Another text stays where it is.
fn take_names(object: &mut Value) -> Option<Vec<Value>> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let names: Vec<Value> = serde_json::from_str(annotations.get(NAMES)?.as_str()?).ok()?;
    if !names.iter().all(|name| name.get("name").is_some_and(Value::is_string)) {
        return None;
    }
    annotations.remove(NAMES);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn days() -> impl Strategy<Value = Value> {
        let all = vec!["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        proptest::sample::subsequence(all, 1..=7).prop_map(|days| json!(days))
    }

    fn time() -> impl Strategy<Value = String> {
        (0..24, 0..60).prop_map(|(hour, minute)| format!("{hour:02}:{minute:02}"))
    }

    fn metadata() -> impl Strategy<Value = Value> {
        let annotations = proptest::option::of(proptest::collection::btree_map("[a-z]{1,4}", ".{0,9}", 1..3));
        let labels = proptest::option::of(proptest::collection::btree_map("[a-z]{1,4}", "[a-z]{0,9}", 0..3));
        ("[a-z]{1,9}", annotations, labels).prop_map(|(name, annotations, labels)| {
            let mut metadata = json!({"name": name, "namespace": "n", "uid": "u", "resourceVersion": "7"});
            annotations.into_iter().for_each(|all| metadata["annotations"] = json!(all));
            labels.into_iter().for_each(|all| metadata["labels"] = json!(all));
            metadata
        })
    }

    fn object(version: &'static str) -> impl Strategy<Value = Value> {
        let window = (days(), time(), time(), 0..100_000_i32);
        let names = proptest::sample::subsequence(
            vec!["a", "b", "night", "weekend", "window-0", "window-1", "window-2", "window-3", "window-7"],
            6,
        )
        .prop_shuffle();
        let windows = proptest::collection::vec(window, 1..=6);
        let zone = proptest::option::of("[A-Z][a-z]{1,9}(/[A-Z][a-z]{1,9})?");
        let status = proptest::option::of(Just(json!({
            "savedReplicas": 3, "activeWindow": "Mon 22:00-06:00",
            "conditions": [{"type": "Ready", "status": "True"}],
        })));
        (metadata(), windows, names, zone, proptest::option::of(any::<bool>()), status).prop_map(
            move |(metadata, windows, names, zone, suspend, status)| {
                let is_first = version == FIRST;
                let (reference, time_zone, start, end) = match is_first {
                    true => ("targetRef", "timezone", "from", "to"),
                    false => ("scaleTargetRef", "timeZone", "start", "end"),
                };
                let windows = windows.into_iter().zip(names).map(|((days, from, to, replicas), name)| {
                    let mut window = json!({"days": days, start: from, end: to, "replicas": replicas});
                    if !is_first {
                        window["name"] = json!(name);
                    }
                    window
                });
                let mut spec = json!({
                    reference: {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
                    "windows": windows.collect::<Vec<_>>(), "unknown": {"from": 1},
                });
                zone.into_iter().for_each(|zone| spec[time_zone] = json!(zone));
                suspend.into_iter().for_each(|suspend| spec["suspend"] = json!(suspend));
                let mut object = json!({
                    "apiVersion": format!("leasehold.dev/{version}"), "kind": "ScaleSchedule",
                    "metadata": metadata, "spec": spec,
                });
                status.into_iter().for_each(|status| object["status"] = status);
                object
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn there_and_back_from_the_first_version_nothing_is_lost(object in object(FIRST)) {
            let there = convert(object.clone(), FIRST, SECOND).unwrap();
            prop_assert!(there.pointer("/spec/scaleTargetRef/name").is_some());
            prop_assert_eq!(convert(there, SECOND, FIRST).unwrap(), object);
        }

        #[test]
        fn there_and_back_from_the_second_version_nothing_is_lost(object in object(SECOND)) {
            let there = convert(object.clone(), SECOND, FIRST).unwrap();
            prop_assert!(there["spec"]["windows"].as_array().unwrap().iter().all(|window| window.get("name").is_none()));
            prop_assert_eq!(convert(there, FIRST, SECOND).unwrap(), object);
        }

        /// What one client writes in the first version, the other reads in the second: also after windows came and went.
        #[test]
        fn names_are_distinct_and_stay_with_their_windows(object in object(SECOND), gone in 0..6_usize) {
            let mut first = convert(object.clone(), SECOND, FIRST).unwrap();
            let windows = first["spec"]["windows"].as_array_mut().unwrap();
            if gone < windows.len() {
                windows.remove(gone);
            }
            windows.insert(0, json!({"days": ["Never"], "from": "00:00", "to": "00:01", "replicas": 1}));
            let second = convert(first, FIRST, SECOND).unwrap();
            let names: Vec<_> = second["spec"]["windows"].as_array().unwrap().iter().map(|window| &window["name"]).collect();
            let distinct: BTreeSet<_> = names.iter().map(|name| name.as_str().unwrap()).collect();
            prop_assert_eq!(distinct.len(), names.len());
            let own = |window: &Value| !window["name"].as_str().unwrap().starts_with("window-");
            for window in second["spec"]["windows"].as_array().unwrap().iter().filter(|window| own(window)) {
                let same = |other: &&Value| {
                    ["days", "start", "end", "name"].iter().all(|field| other[field] == window[field])
                };
                prop_assert!(object["spec"]["windows"].as_array().unwrap().iter().any(|other| same(&other)));
            }
        }
    }

    #[test]
    fn an_annotation_of_another_making_is_left_alone_and_an_odd_object_is_converted() {
        for text in ["", "{}", "[1]", "[{\"days\": []}]"] {
            let object = json!({"apiVersion": "leasehold.dev/v1alpha1", "metadata": {"annotations": {NAMES: text}}, "spec": {"windows": [1]}});
            let there = convert(object.clone(), FIRST, SECOND).unwrap();
            assert_eq!(convert(there, SECOND, FIRST).unwrap(), object);
        }
        let error = convert(json!({}), FIRST, "v2").unwrap_err();
        assert_eq!(error, "there are v1alpha1 and v1beta1, and no conversion from v1alpha1 to v2");
    }
}
