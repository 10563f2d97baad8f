use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
    jiff::Timestamp,
};
use proptest::prelude::*;
use serde_json::json;

use super::{
    Expiry, ExpiryPolicy, ExpiryPolicySpec, ExpiryPolicyStatus,
    plan::{Object, Plan, Valid, plan, validate},
    report::{Done, refused},
};
use crate::reconcile::{
    stages::{self, Outcome, Trouble},
    status::changed,
};

/// When the objects of these tests were created.
const CREATED: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(overrides: serde_json::Value) -> ExpiryPolicySpec {
    let mut spec = json!({"target": {"apiVersion": "v1", "kind": "ConfigMap"}, "ttl": "1h", "dryRun": false});
    spec.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
    spec.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(spec).unwrap()
}

fn valid(overrides: serde_json::Value) -> Valid {
    validate(&spec(overrides)).unwrap()
}

fn object(name: &str) -> Object {
    Object {
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        resource_version: "1".to_owned(),
        created: at(CREATED),
        expires: None,
        protect: None,
        deleting: false,
    }
}

fn annotated(name: &str, expires: &str) -> Object {
    Object { expires: Some(expires.to_owned()), ..object(name) }
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.delete.iter().map(|object| object.name.as_str()).collect()
}

#[test]
fn bad_specs_are_told_what_is_wrong() {
    let bad_selector = LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: "a".into(),
            operator: "Near".into(),
            values: None,
        }]),
        match_labels: None,
    };
    for (overrides, expected) in [
        (json!({"ttl": "59s"}), "less than 1m"),
        (json!({"ttl": "59999ms"}), "less than 1m"),
        (json!({"ttl": "-2h"}), "no duration"),
        (json!({"ttl": "1d"}), "no duration"),
        (json!({"ttl": ""}), "no duration"),
        (json!({"ttl": "60"}), "no duration"),
        (json!({"ttl": null}), "spec.ttl is required"),
        (json!({"from": "Annotation"}), "means nothing"),
        (json!({"maxPerRun": 0}), "maxPerRun"),
        (json!({"maxPerRun": -1}), "maxPerRun"),
        (json!({"target": {"apiVersion": "v1", "kind": "Namespace"}}), "must not expire"),
        (json!({"target": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}}), "must not expire"),
        (json!({"target": {"apiVersion": "leasehold.dev/v1alpha1", "kind": "ExpiryPolicy"}}), "must not expire"),
        (json!({"target": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role"}}), "must not expire"),
        (json!({"target": {"apiVersion": "apps/v1/namespaces", "kind": "Deployment"}}), "no API version"),
        (json!({"target": {"apiVersion": "v1", "kind": "Pod", "selector": bad_selector}}), "selector"),
        (json!({"target": {"apiVersion": "v1", "kind": "Pod/x"}}), "spec.target.kind: \"Pod/x\" is no kind"),
        (
            json!({"target": {"apiVersion": "v1", "kind": "Pod", "selector": {"matchLabels": {"x": "y,z=w"}}}}),
            "spec.target.selector.matchLabels.x: \"y,z=w\" is no value of a label",
        ),
    ] {
        let wrong = validate(&spec(overrides.clone())).unwrap_err();
        assert!(wrong.contains(expected), "{overrides}: {wrong}");
    }
}

#[test]
fn good_specs_are_taken() {
    for overrides in [
        json!({}),
        json!({"ttl": "1m"}),
        json!({"ttl": "1h30m"}),
        json!({"ttl": null, "from": "Annotation"}),
        json!({"target": {"apiVersion": "example.com/v1", "kind": "Lease"}}),
        json!({"target": {"apiVersion": "batch/v1", "kind": "Job"}}),
    ] {
        assert!(validate(&spec(overrides.clone())).is_ok(), "{overrides}");
    }
}

#[test]
fn an_object_expires_in_the_second_that_completes_its_ttl() {
    let policy = valid(json!({"ttl": "1h"}));
    for (now, expired, again) in [
        (CREATED, false, 3600),
        (CREATED + 3599, false, 1),
        (CREATED + 3600, true, 3600),
        (CREATED + 3601, true, 3600),
        // An object from the future, as a slow clock sees it.
        (CREATED - 10, false, 3600),
    ] {
        let plan = plan(at(now), &policy, vec![object("a")]);
        assert_eq!(deleted(&plan), if expired { vec!["a"] } else { vec![] }, "{now}");
        assert_eq!((plan.matched, plan.expired), (1, usize::from(expired)));
        assert_eq!(plan.next, (!expired).then(|| at(CREATED + 3600)));
        assert_eq!(plan.again, Duration::from_secs(again), "{now}");
    }
    let just_before = at(CREATED + 3600).checked_sub(Duration::from_millis(1)).unwrap();
    let plan = plan(just_before, &policy, vec![object("a")]);
    assert_eq!((plan.expired, plan.again), (0, Duration::from_millis(1)));
}

#[test]
fn annotations_say_when() {
    let policy = valid(json!({"ttl": null, "from": "Annotation"}));
    let time = at(CREATED + 100).to_string();
    for (expires, expected) in [
        ("100s", Some(100)),
        ("1m40s", Some(100)),
        (time.as_str(), Some(100)),
        ("1970-01-12T13:48:20+00:00", Some(100)),
        // Shorter than a ttl may be: it is the object's own wish.
        ("0s", Some(0)),
        ("soon", None),
        ("", None),
        ("-", None),
        ("+", None),
        ("-5m", None),
    ] {
        let before = plan(at(CREATED + 99), &policy, vec![annotated("a", expires)]);
        let then = plan(at(CREATED + 100), &policy, vec![annotated("a", expires)]);
        match expected {
            Some(after) => {
                assert_eq!((before.expired, then.expired), (usize::from(after <= 99), 1), "{expires}");
                assert!(before.unreadable.is_empty());
            }
            None => assert_eq!((before.unreadable, then.expired), (vec!["a".to_owned()], 0), "{expires}"),
        }
    }
    let plan = plan(at(CREATED), &policy, vec![object("without"), annotated("far", "10000h")]);
    assert_eq!((plan.matched, plan.expired, plan.unreadable.len()), (2, 0, 0));
    assert_eq!(plan.again, Duration::from_secs(60), "a new annotation is noticed within a minute");
}

#[test]
fn protected_and_deleting_objects_stay() {
    let policy = valid(json!({"protect": {"annotation": "keep"}}));
    let protected = |name: &str, value: &str| Object { protect: Some(value.to_owned()), ..object(name) };
    let deleting = Object { deleting: true, ..object("deleting") };
    let objects = vec![protected("a", "true"), protected("b", ""), protected("c", "false"), object("d"), deleting];
    let plan = plan(at(CREATED + 3600), &policy, objects);
    assert_eq!(deleted(&plan), ["c", "d"]);
    assert_eq!((plan.matched, plan.expired), (4, 2));
}

#[test]
fn a_dry_run_counts_and_deletes_nothing() {
    let policy = valid(json!({"dryRun": true, "maxPerRun": 1}));
    let plan = plan(at(CREATED + 9999), &policy, vec![object("a"), object("b")]);
    assert_eq!((deleted(&plan), plan.expired), (vec![], 2));
    assert_eq!(plan.again, Duration::from_secs(3600), "what a dry run leaves is not left for a next run");
    assert!(spec(json!({"dryRun": null})).dry_run, "a policy starts as a dry run");
}

#[test]
fn a_run_deletes_the_longest_expired_up_to_its_limit() {
    let policy = valid(json!({"maxPerRun": 2}));
    let aged = |name: &str, created| Object { created: at(created), ..object(name) };
    let objects = vec![aged("c", CREATED), aged("b", CREATED), aged("old", CREATED - 1), aged("young", CREATED + 3)];
    let plan = plan(at(CREATED + 3600), &policy, objects);
    assert_eq!(deleted(&plan), ["old", "b"]);
    assert_eq!((plan.expired, plan.next), (3, Some(at(CREATED + 3603))));
    assert_eq!(plan.again, Duration::from_secs(3), "the next expiry is before the next run");
}

#[test]
fn what_is_left_is_taken_soon() {
    let policy = valid(json!({"maxPerRun": 1}));
    let plan = plan(at(CREATED + 3600), &policy, vec![object("a"), object("b")]);
    assert_eq!((deleted(&plan), plan.again), (vec!["a"], Duration::from_secs(10)));
}

#[test]
fn a_life_too_long_to_count_never_ends() {
    let policy = valid(json!({"ttl": null, "from": "Annotation"}));
    let plan = plan(at(CREATED), &policy, vec![annotated("a", "2562047h")]);
    assert_eq!((plan.expired, plan.unreadable.len()), (0, 0));
}

fn policy() -> ExpiryPolicy {
    let mut policy = ExpiryPolicy::new("p", spec(json!({})));
    policy.metadata.generation = Some(2);
    policy
}

fn done(plan: Plan, deleted: usize) -> Outcome<Done> {
    Outcome::Done(Done { plan, deleted, refused: None })
}

fn status(current: Option<&ExpiryPolicyStatus>, outcome: &Outcome<Done>, now: Timestamp) -> ExpiryPolicyStatus {
    stages::status::<Expiry>(current, &policy(), outcome, now)
}

#[test]
fn the_count_of_deletions_goes_on_from_the_status_and_the_rest_is_what_remains() {
    let current = ExpiryPolicyStatus { deleted_total: 40, ..ExpiryPolicyStatus::default() };
    let plan = Plan { matched: 5, expired: 3, ..Plan::default() };
    let next = status(Some(&current), &done(plan, 2), at(1));
    assert_eq!((next.matched, next.expired, next.deleted_total), (3, 1, 42));
    let invalid = Outcome::Invalid(Trouble::invalid("why"));
    assert_eq!(status(Some(&next), &invalid, at(2)).deleted_total, 42);
}

#[test]
fn the_pass_after_a_deletion_has_nothing_new_to_say() {
    let first = status(None, &done(Plan { matched: 5, expired: 2, ..Plan::default() }, 2), at(1));
    let again = status(Some(&first), &done(Plan { matched: 3, ..Plan::default() }, 0), at(99));
    assert!(!changed(Some(&first), &again));
}

#[test]
fn a_refusal_names_the_verb_the_resource_and_the_namespace() {
    let forbidden: kube::core::Status = serde_json::from_value(
        json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": "no", "metadata": {}}),
    )
    .unwrap();
    let error = kube::Error::Api(Box::new(forbidden));
    let next = status(None, &Outcome::Blocked(refused("list", "pods", "ns", &error)), at(1));
    let ready = next.conditions.last().unwrap();
    assert_eq!((&*ready.reason, &*ready.message), ("Forbidden", "may not list pods in namespace ns: no"));
}

proptest! {
    /// Whatever there is: nothing is deleted that is not expired, protected or on its way out; never more than the limit; and nothing by a dry run.
    #[test]
    fn only_expired_objects_are_deleted(
        objects in prop::collection::vec((0..200_i64, any::<bool>(), any::<bool>()), 0..40),
        now in 0..400_i64, max in 1..20_i32, dry in any::<bool>(),
    ) {
        let policy = valid(json!({"ttl": "1m", "maxPerRun": max, "dryRun": dry, "protect": {"annotation": "keep"}}));
        let objects: Vec<Object> = objects.into_iter().enumerate().map(|(number, (created, keep, deleting))| Object {
            created: at(created), protect: keep.then(|| "yes".to_owned()), deleting, ..object(&number.to_string())
        }).collect();
        let plan = plan(at(now), &policy, objects.clone());
        prop_assert!(plan.delete.len() <= usize::try_from(max).unwrap());
        prop_assert!(!dry || plan.delete.is_empty());
        for object in &plan.delete {
            prop_assert!(object.created.as_second() + 60 <= now && object.protect.is_none() && !object.deleting);
        }
        let unexpired = objects.iter().filter(|object| object.protect.is_none() && !object.deleting)
            .map(|object| object.created.as_second() + 60).filter(|at| *at > now).min();
        prop_assert_eq!(plan.next, unexpired.map(at));
        prop_assert!(unexpired.is_none_or(|next| plan.again <= Duration::from_secs(u64::try_from(next - now).unwrap())));
    }
}

/// The policy of docs/expirypolicy.md deletes the Jobs that are a day old, for its dry run is switched off.
#[test]
fn the_policy_of_the_page_deletes_what_has_outlived_a_day() {
    let [example] = &crate::kinds::examples(include_str!("../../../docs/expirypolicy.md"))[..] else { panic!() };
    let policy: ExpiryPolicy = serde_json::from_value(example.clone()).unwrap();
    assert_eq!((&*policy.spec.target.api_version, &*policy.spec.target.kind), ("batch/v1", "Job"));
    let valid = validate(&policy.spec).unwrap();
    for (age, expected) in [(24 * 3600 - 1, vec![]), (24 * 3600, vec!["job"])] {
        assert_eq!(deleted(&plan(at(CREATED + age), &valid, vec![object("job")])), expected, "{age}");
    }
}
