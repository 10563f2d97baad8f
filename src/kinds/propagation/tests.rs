use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::{
    FailedReason, Propagate, Propagation, PropagationSpec, PropagationStatus, SourceKind,
    observe::SourceState,
    plan::{
        Child, Content, Found, NamespaceState, Place, Plan, Settlement, Targets, Valid, Wanted, plan, settle, targets,
        validate,
    },
    report::Done,
    types::OnConflict,
    write::{Copies, policy},
};
use crate::{
    kinds::reach::Reach,
    reconcile::{
        apply::Ownership,
        conditions::not_ready,
        stages::{self, Outcome, Trouble},
        status::changed,
    },
};

fn spec(overrides: serde_json::Value) -> PropagationSpec {
    let mut spec = json!({
        "source": {"kind": "ConfigMap", "namespace": "home", "name": "settings"},
        "targets": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "namespaces": ["named"], "exclude": ["not-me"]},
    });
    spec.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn valid(overrides: serde_json::Value) -> Valid {
    validate(&spec(overrides)).unwrap()
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn content<const N: usize>(pairs: [(&str, &str); N]) -> Content {
    Content { data: strings(pairs), ..Content::default() }
}

fn present<const N: usize>(names: [&str; N]) -> Targets {
    Targets { present: set(names), ..Targets::default() }
}

/// A copy in that namespace, just as it was applied.
fn copy(namespace: &str, content: &Content) -> Child {
    Child {
        place: Place { kind: SourceKind::ConfigMap, namespace: namespace.to_owned(), name: "settings".to_owned() },
        uid: format!("uid in {namespace}"),
        ownership: Ownership::Ours,
        applied_by_us: true,
        deleting: false,
        marked: true,
        applied_keys: (content.data.keys().cloned().collect(), content.binary_data.keys().cloned().collect()),
        content: Some(content.clone()),
    }
}

fn pruned(plan: &Plan) -> Vec<(&str, &str)> {
    plan.prune.iter().map(|(place, _)| (place.namespace.as_str(), place.name.as_str())).collect()
}

#[test]
fn bad_specs_are_told_what_is_wrong() {
    for (overrides, expected) in [
        (json!({"targets": {}}), "at least one of"),
        (json!({"targets": {"exclude": ["a"]}}), "at least one of"),
        (json!({"source": {"kind": "Secret", "namespace": "", "name": "a"}}), "spec.source.namespace: "),
        (json!({"source": {"kind": "Secret", "namespace": "a", "name": ""}}), "spec.source.name: "),
        (json!({"source": {"kind": "Secret", "namespace": "a", "name": "../../victim"}}), "spec.source.name: "),
        (json!({"source": {"kind": "Secret", "namespace": "a/secrets/b?", "name": "c"}}), "spec.source.namespace: "),
        (json!({"targets": {"namespaces": ["a", "a/../b"]}}), "spec.targets.namespaces[1]: "),
        (json!({"targets": {"namespaces": ["a"], "exclude": ["B"]}}), "spec.targets.exclude[0]: "),
        (
            json!({"targets": {"namespaceSelector": {"matchLabels": {"x": "y,z=w"}}}}),
            "spec.targets.namespaceSelector.matchLabels.x: ",
        ),
        (
            json!({"targets": {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}),
            "namespaceSelector",
        ),
    ] {
        let wrong = validate(&spec(overrides.clone())).unwrap_err();
        assert!(wrong.contains(expected), "{overrides}: {wrong}");
    }
}

#[test]
fn targets_are_those_selected_and_named_without_those_excluded() {
    let (a, b) = (strings([("team", "a")]), strings([("team", "b")]));
    let namespace = |name, labels, terminating| NamespaceState { name, labels, terminating };
    let all = [
        namespace("home", &a, false),
        namespace("one", &a, false),
        namespace("not-me", &a, false),
        namespace("other", &b, false),
        namespace("going", &a, true),
    ];
    let selected = targets(&valid(json!({})), &Reach::default(), all);
    let expected = Targets { present: set(["one"]), absent: set(["named"]), left_alone: set(["going"]) };
    assert_eq!(selected, expected);

    let named = valid(json!({"targets": {"namespaces": ["home", "other", "going", "gone", "no"], "exclude": ["no"]}}));
    let expected = Targets { present: set(["other"]), absent: set(["gone"]), left_alone: set(["going"]) };
    assert_eq!(targets(&named, &Reach::default(), all), expected);

    let everywhere = valid(json!({"targets": {"namespaceSelector": {}}}));
    assert_eq!(targets(&everywhere, &Reach::default(), all).present, set(["one", "not-me", "other"]));
}

/// What is out of reach is neither written nor cleaned up.
#[test]
fn a_selector_reaches_no_namespace_that_is_out_of_reach_and_what_is_there_stays() {
    let everywhere = valid(json!({"targets": {"namespaceSelector": {}}}));
    let labels = BTreeMap::new();
    let all = ["one", "kube-system"].map(|name| NamespaceState { name, labels: &labels, terminating: false });
    let targets = targets(&everywhere, &Reach::default(), all);
    assert_eq!((&targets.present, &targets.left_alone), (&set(["one"]), &set(["kube-system"])));
    let wanted = content([("a", "1")]);
    let copies = [copy("kube-system", &content([("a", "0")])), copy("elsewhere", &wanted)];
    let plan = plan(&everywhere, &Wanted::Content(wanted), &targets, &copies);
    assert_eq!((pruned(&plan), &*plan.create), (vec![("elsewhere", "settings")], &["one".to_owned()][..]));
}

#[test]
fn what_reaches_too_far_is_told_by_field() {
    let secret = json!({"kind": "Secret", "namespace": "a", "name": "b"});
    let of_system = json!({"kind": "ConfigMap", "namespace": "kube-system", "name": "b"});
    for (overrides, expected) in [
        (json!({"source": secret}), "spec.source.kind: no webhooks are served here, and Secret is not in"),
        (json!({"source": of_system}), "spec.source.namespace: no webhooks are served here, and kube-system is"),
        (json!({"targets": {"namespaces": ["a", "kube-public"]}}), "spec.targets.namespaces: no webhooks"),
        (json!({"onConflict": "Overwrite"}), "spec.onConflict: no webhooks are served here: write Skip, or ask"),
    ] {
        let wrong = valid(overrides.clone()).within(&Reach::default()).unwrap_err();
        assert!(wrong.starts_with(expected), "{overrides}: {wrong}");
    }
    let excluded = json!({"targets": {"namespaces": ["a", "kube-public"], "exclude": ["kube-public"]}});
    assert_eq!(valid(excluded).within(&Reach::default()), Ok(()));
}

#[test]
fn a_copy_like_the_source_is_left_alone_and_one_that_differs_is_not() {
    let wanted = Content { binary_data: strings([("b", "AAEC")]), ..content([("a", "1")]) };
    let like = copy("one", &wanted);
    let with = |change: &dyn Fn(&mut Child)| {
        let mut child = like.clone();
        change(&mut child);
        child
    };
    let live = |change: &dyn Fn(&mut Content)| with(&|child| change(child.content.as_mut().unwrap()));
    let (synced, update) = (
        Plan { synced: set(["one"]), ..Plan::default() },
        Plan { update: vec![("one".into(), like.uid.clone())], ..Plan::default() },
    );
    let recreate = Plan { recreate: vec![("one".into(), like.uid.clone())], ..Plan::default() };
    let create = Plan { create: vec!["one".into()], ..Plan::default() };
    for (words, child, expected) in [
        ("alike", like.clone(), &synced),
        ("a key of another manager", live(&|live| _ = live.data.insert("theirs".into(), "x".into())), &synced),
        ("a value changed", live(&|live| _ = live.data.insert("a".into(), "2".into())), &update),
        ("a key removed", live(&|live| _ = live.data.remove("a")), &update),
        ("a binary value changed", live(&|live| _ = live.binary_data.insert("b".into(), "".into())), &update),
        ("a key of ours too many", with(&|child| _ = child.applied_keys.0.insert("old".into())), &update),
        ("a key that is not ours", with(&|child| _ = child.applied_keys.0.remove("a")), &update),
        ("a mark lost", with(&|child| child.marked = false), &update),
        ("made immutable", live(&|live| live.immutable = true), &recreate),
        ("another type", live(&|live| live.type_ = Some("t".into())), &recreate),
        ("on its way out", with(&|child| child.deleting = true), &create),
        ("a sibling's", with(&|child| child.ownership = Ownership::Sibling("x".into())), &create),
        ("foreign", with(&|child| child.ownership = Ownership::Foreign), &create),
    ] {
        let plan = plan(&valid(json!({})), &Wanted::Content(wanted.clone()), &present(["one"]), &[child]);
        assert_eq!(&plan, expected, "{words}");
    }
}

#[test]
fn an_immutable_copy_is_replaced_only_if_it_must_change() {
    let wanted = Content { immutable: true, ..content([("a", "1")]) };
    let decide = |live: Content| {
        let child = Child { content: Some(live), ..copy("one", &wanted) };
        plan(&valid(json!({})), &Wanted::Content(wanted.clone()), &present(["one"]), &[child])
    };
    assert_eq!(decide(wanted.clone()).synced, set(["one"]));
    assert_eq!(decide(content([("a", "1")])).update.len(), 1, "a mutable one may become immutable");
    assert_eq!(decide(Content { immutable: true, ..content([("a", "2")]) }).recreate.len(), 1);
}

#[test]
fn copies_that_no_longer_belong_are_pruned() {
    let wanted = content([("a", "1")]);
    let targets = Targets { present: set(["one"]), left_alone: set(["going"]), ..Targets::default() };
    let place = |kind, name: &str| Place { kind, namespace: "one".to_owned(), name: name.to_owned() };
    let children = [
        copy("one", &wanted),
        copy("narrowed", &wanted),
        copy("going", &wanted),
        Child { place: place(SourceKind::ConfigMap, "old-name"), ..copy("one", &wanted) },
        Child { place: place(SourceKind::Secret, "settings"), content: None, ..copy("one", &wanted) },
        Child { deleting: true, ..copy("deleting", &wanted) },
        Child { ownership: Ownership::Foreign, ..copy("foreign", &wanted) },
        Child { ownership: Ownership::Sibling("x".into()), ..copy("sibling", &wanted) },
        Child { applied_by_us: false, ..copy("labels-copied-by-hand", &wanted) },
        // Once a copy, now the source.
        copy("home", &wanted),
    ];
    let decide = |wanted: &Wanted, overrides| plan(&valid(overrides), wanted, &targets, &children);

    let with_source = decide(&Wanted::Content(wanted.clone()), json!({}));
    assert_eq!(pruned(&with_source), [("narrowed", "settings"), ("one", "old-name"), ("one", "settings")]);
    assert!(with_source.prune[2].0.kind == SourceKind::Secret);

    let keep = decide(&Wanted::Missing, json!({}));
    assert_eq!(pruned(&keep), [("narrowed", "settings")], "Keep keeps what is in a target");
    let delete = decide(&Wanted::Missing, json!({"onSourceMissing": "Delete"}));
    assert_eq!(pruned(&delete).len(), 4, "Delete deletes all: {delete:?}");
    let unusable = decide(&Wanted::Unusable, json!({"onSourceMissing": "Delete"}));
    assert_eq!(pruned(&unusable), [("narrowed", "settings")], "a source that lacks a key is not missing");
    for plan in [keep, delete, unusable] {
        assert!(plan.create.is_empty() && plan.update.is_empty() && plan.recreate.is_empty());
    }
}

#[test]
fn what_is_in_the_way_is_taken_only_with_leave() {
    use OnConflict::{Overwrite, Skip};
    let wanted = content([("a", "1")]);
    let found = |ownership| Found { uid: "u".into(), ownership, deleting: false, content: content([("b", "2")]) };
    let sibling = Ownership::Sibling("x".into());
    let take = Settlement::Take("u".into());
    for (ownership, on_conflict, expected) in [
        (Ownership::Foreign, Skip, &Settlement::Conflict),
        (Ownership::Foreign, Overwrite, &take),
        (sibling.clone(), Skip, &Settlement::Conflict),
        (sibling, Overwrite, &Settlement::Conflict),
        (Ownership::Ours, Skip, &take),
        (Ownership::Ours, Overwrite, &take),
    ] {
        assert_eq!(&settle(Some(&found(ownership.clone())), &wanted, on_conflict), expected, "{ownership:?}");
    }
    assert_eq!(settle(None, &wanted, Skip), Settlement::Create);
    let frozen = Found { content: Content { immutable: true, ..content([]) }, ..found(Ownership::Foreign) };
    assert_eq!(settle(Some(&frozen), &wanted, Overwrite), Settlement::Replace("u".into()));
    assert_eq!(settle(Some(&frozen), &wanted, Skip), Settlement::Conflict);
    let going = Found { deleting: true, ..found(Ownership::Foreign) };
    assert_eq!(settle(Some(&going), &wanted, Overwrite), Settlement::Wait);
}

#[test]
fn only_the_keys_asked_for_are_copied_and_all_of_them_must_exist() {
    let source = Content { binary_data: strings([("c", "AA==")]), ..content([("a", "1"), ("b", "2")]) };
    let some = source.clone().wanted(&valid(json!({"keys": ["a", "c"]}))).unwrap();
    assert_eq!((some.data, some.binary_data), (strings([("a", "1")]), strings([("c", "AA==")])));
    assert_eq!(source.clone().wanted(&valid(json!({"keys": ["a", "x"]}))).unwrap_err(), ["x"]);
    assert_eq!(source.clone().wanted(&valid(json!({}))).unwrap(), source);
}

#[test]
fn the_digest_is_the_same_in_every_release_and_tells_contents_apart() {
    // Changing this digest makes each new leader write every status once.
    assert_eq!(content([("a", "1"), ("b", "2")]).digest(), DIGEST);
    let all = [
        content([("a", "1"), ("b", "2")]),
        content([("a", "1b"), ("", "2")]),
        content([("a", "1")]),
        Content { immutable: true, ..content([("a", "1")]) },
        content([]),
    ];
    assert_eq!(all.iter().map(Content::digest).collect::<BTreeSet<_>>().len(), all.len());
}

const DIGEST: &str = "fnv1a:44dff32f2913abb3";

#[test]
fn no_value_is_ever_shown() {
    let secret = Content { type_: Some("Opaque".into()), ..content([("password", "hunter2")]) };
    let shown = format!("{secret:?} {:?}", Wanted::Content(secret.clone()));
    assert!(shown.contains("password") && !shown.contains("hunter2"));
}

fn propagation() -> Propagation {
    let mut propagation = Propagation::new("p", spec(json!({})));
    propagation.metadata.generation = Some(7);
    propagation
}

fn outcome(source: SourceState, targets: Targets, synced: usize, failed: &[(&str, FailedReason)]) -> Outcome<Done> {
    let failed = failed.iter().map(|(namespace, reason)| ((*namespace).to_owned(), *reason)).collect();
    let keeps = !matches!(source, SourceState::Version(_));
    Outcome::Done(Done { source, keeps, targets, copies: Copies { synced, failed, ..Copies::default() } })
}

fn report(current: Option<&PropagationStatus>, outcome: &Outcome<Done>) -> PropagationStatus {
    stages::status::<Propagate>(current, &propagation(), outcome, Timestamp::from_second(1).unwrap())
}

#[test]
fn the_status_says_how_far_it_is() {
    let version = || SourceState::Version("v".to_owned());
    let absent = Targets { present: set(["a", "b"]), absent: set(["z"]), ..Targets::default() };
    for (outcome, targets, synced, failed, reason) in [
        (outcome(version(), present(["a", "b"]), 2, &[]), 2, 2, 0, None),
        (outcome(version(), present(["a", "b"]), 1, &[("b", FailedReason::Conflict)]), 2, 1, 1, Some("Conflict")),
        (outcome(version(), absent.clone(), 2, &[]), 3, 2, 1, Some("NamespaceNotFound")),
        (outcome(version(), absent.clone(), 1, &[("b", FailedReason::Invalid)]), 3, 1, 2, Some("TargetsFailed")),
        (outcome(SourceState::Missing, present(["a"]), 0, &[]), 1, 0, 0, Some("SourceMissing")),
        (outcome(SourceState::KeysMissing(vec!["k".into()]), present(["a"]), 0, &[]), 1, 0, 0, Some("KeyMissing")),
        (Outcome::Invalid(Trouble::invalid("why")), 0, 0, 0, Some("SpecInvalid")),
    ] {
        let status = report(None, &outcome);
        assert_eq!((status.targets, status.synced, status.failed.len()), (targets, synced, failed), "{outcome:?}");
        assert_eq!(not_ready(&status.conditions).map(|ready| ready.reason.as_str()), reason, "{outcome:?}");
        assert_eq!(status.observed_generation, Some(7));
        assert!(!changed(Some(&status), &report(Some(&status), &outcome)), "the same pass again: {outcome:?}");
    }
}

#[test]
fn twenty_failures_are_listed_and_all_are_counted() {
    let names: Vec<String> = (0..50).map(|number| format!("ns-{number:02}")).collect();
    let failed: Vec<_> = names.iter().map(|name| (name.as_str(), FailedReason::Forbidden)).collect();
    let targets = Targets { present: names.iter().cloned().collect(), ..Targets::default() };
    let status = report(None, &outcome(SourceState::Version("v".into()), targets, 0, &failed));
    assert_eq!((status.failed.len(), status.failed[19].namespace.as_str()), (20, "ns-19"));
    let words = &not_ready(&status.conditions).unwrap().message;
    assert!(words.starts_with("50 of 50 targets") && words.ends_with("and 47 more"), "{words}");
}

/// What another's policy says may be a value that it refuses.
#[test]
fn the_words_of_our_own_policies_are_told_and_no_others() {
    let refused = |message: &str| {
        let status = json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": message});
        policy(&kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
    };
    let by = "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";
    let ours =
        refused(&format!("{by}a may not create secrets x in kube-system: so; see docs/security.md of Leasehold"));
    assert_eq!(ours.as_deref(), Some("a may not create secrets x in kube-system: so"));
    assert_eq!(refused(&format!("{by}password hunter2 is too short")), None);
    assert_eq!(refused("secrets is forbidden: may not; see docs/security.md of Leasehold"), None);

    let targets = present(["a", "kube-system"]);
    let Outcome::Done(mut done) =
        outcome(SourceState::Version("v".into()), targets, 1, &[("kube-system", FailedReason::Forbidden)])
    else {
        panic!("a pass")
    };
    done.copies.policies = strings([("kube-system", "so")]);
    let status = report(None, &Outcome::Done(done));
    assert!(not_ready(&status.conditions).unwrap().message.ends_with("kube-system (Forbidden); so"));
}

#[test]
fn a_missing_source_leaves_the_version_that_the_copies_have() {
    let first = report(None, &outcome(SourceState::Version("v".into()), present(["a"]), 1, &[]));
    let missing = report(Some(&first), &outcome(SourceState::Missing, present(["a"]), 0, &[]));
    assert_eq!(missing.source_version.as_deref(), Some("v"));
}

fn any_child() -> impl Strategy<Value = Child> {
    let ownership =
        prop_oneof![Just(Ownership::Ours), Just(Ownership::Foreign), Just(Ownership::Sibling("x".to_owned()))];
    let kind = prop_oneof![Just(SourceKind::ConfigMap), Just(SourceKind::Secret)];
    let name = prop_oneof![Just("settings"), Just("other")];
    let namespace = prop_oneof![Just("home"), Just("one"), Just("two"), Just("going")];
    (ownership, kind, name, namespace, any::<(bool, bool, bool, u8)>()).prop_map(
        |(ownership, kind, name, namespace, (applied_by_us, deleting, marked, number))| {
            let value = (number % 3).to_string();
            let base = copy(namespace, &content([("a", value.as_str())]));
            let place = Place { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            Child { place, uid: number.to_string(), ownership, applied_by_us, deleting, marked, ..base }
        },
    )
}

proptest! {
    /// Whatever there is: what does not bear our label and our uid, and was not applied by us, is neither deleted nor overwritten.
    #[test]
    fn nothing_of_others_is_touched(
        children in prop::collection::vec(any_child(), 0..12),
        targeted in prop::collection::btree_set(prop_oneof![Just("one".to_owned()), Just("two".to_owned())], 0..3),
        source in 0..3_u8, delete in any::<bool>(),
    ) {
        let policy = valid(json!({"onSourceMissing": if delete { "Delete" } else { "Keep" }}));
        let targets = Targets { present: targeted, left_alone: set(["going"]), ..Targets::default() };
        let wanted = match source {
            0 => Wanted::Content(content([("a", "1")])),
            1 => Wanted::Missing,
            _ => Wanted::Unusable,
        };
        let plan = plan(&policy, &wanted, &targets, &children);
        for (place, uid) in &plan.prune {
            let ours = |child: &&Child| {
                &child.place == place && &child.uid == uid && child.ownership == Ownership::Ours && child.applied_by_us
            };
            prop_assert!(children.iter().any(|child| ours(&child)), "{:?}", place);
            prop_assert!(place.namespace != "home" || place.name != "settings" || place.kind != SourceKind::ConfigMap);
            prop_assert!(place.namespace != "going");
        }
        for (namespace, uid) in plan.update.iter().chain(&plan.recreate) {
            let ours = |child: &&Child| {
                &child.place.namespace == namespace && &child.uid == uid && child.ownership == Ownership::Ours
            };
            prop_assert!(children.iter().any(|child| ours(&child)));
            prop_assert!(targets.present.contains(namespace));
        }
        // Every target is accounted for exactly once if there is something to copy.
        let counted = plan.synced.len() + plan.update.len() + plan.recreate.len() + plan.create.len();
        prop_assert_eq!(counted, if source == 0 { targets.present.len() } else { 0 });
    }
}

/// The Propagation of docs/propagation.md copies into the namespaces of the team, but for the one that it excludes.
#[test]
fn the_propagation_of_the_page_reaches_the_namespaces_of_the_team() {
    let [example] = &crate::kinds::examples(include_str!("../../../docs/propagation.md"))[..] else { panic!() };
    let propagation: Propagation = serde_json::from_value(example.clone()).unwrap();
    let labels = ["orchid", "lilac"].map(|team| strings([("team", team)]));
    let teams = [("orchid", 0), ("orchid-old", 0), ("orchid-new", 0), ("lilac", 1)];
    let all = teams.map(|(name, team)| NamespaceState { name, labels: &labels[team], terminating: false });
    let targets = targets(&validate(&propagation.spec).unwrap(), &Reach::default(), all);
    assert_eq!(targets, present(["orchid-new"]), "the source is no target of its own");
}
