//! What is read becomes what is shown: with replicas missing, of two versions, and with clocks that are hours apart.

use serde_json::{Value, json};

use leasehold::ops::report;

use super::{explain::explain, *};

/// A Lease of a kind. Its times are those of its holder's clock, which is an hour ahead of ours.
fn shard(kind: &str, holder: Option<&str>) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("{}.example.com", kind.to_lowercase()), "namespace": "ns", "uid": "u", "resourceVersion": "7",
            "labels": {"leasehold.dev/instance": "i", "leasehold.dev/role": "shard"},
            "annotations": {"leasehold.dev/kind": format!("{kind}.example.com"), "leasehold.dev/weight": "2"},
        },
        "spec": {
            "holderIdentity": holder.unwrap_or_default(), "leaseDurationSeconds": if holder.is_some() { 15 } else { 1 },
            "leaseTransitions": 3, "acquireTime": "2036-01-01T01:00:00.000000Z", "renewTime": "2036-01-01T01:20:00.000000Z",
        },
    })
}

/// The Lease of a replica that is configured for these kinds.
fn membership(pod: &str, generation: &str, revision: u64, kinds: &[&str]) -> Value {
    let shards: Vec<_> = kinds.iter().map(|kind| format!("{}.example.com", kind.to_lowercase())).collect();
    let profile = json!({
        "activity": "Active", "pod": pod, "generation": generation, "revision": revision, "capacity": 1, "shards": shards,
    });
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("replica-{pod}"), "namespace": "ns", "uid": pod, "resourceVersion": "8",
            "creationTimestamp": "2036-01-01T01:00:00Z",
            "labels": {"leasehold.dev/instance": "i", "leasehold.dev/role": "replica"},
            "annotations": {"leasehold.dev/replica": profile.to_string()},
        },
        "spec": {"holderIdentity": format!("{pod}_1"), "leaseDurationSeconds": 15},
    })
}

fn report(pod: &str, shards: Value) -> Result<report::Report, String> {
    let report = json!({
        "version": "0.1.0", "identity": format!("{pod}_1"), "generation": "new", "memoryBytes": 22_000_000, "ready": true,
        "waits": [], "shards": shards,
    });
    Ok(serde_json::from_value(report).unwrap())
}

fn leading(kind: &str) -> Value {
    json!({
        "kind": format!("{kind}.example.com"), "lease": format!("{}.example.com", kind.to_lowercase()), "state": "Leading",
        "validForSeconds": 14.0, "leadingForSeconds": 754.0, "weight": 2,
        "work": {"objects": 120, "waiting": 3, "reconcilesPerSecond": 1.25, "recentFailures": 2, "failures": 9},
        "takeovers": [{
            "secondsAgo": 754.0, "from": "b_1", "to": "a_1", "token": "u/3", "reason": "Expired",
            "message": "its holder fell silent for the lease duration", "withoutLeaderSeconds": 14.52,
        }],
    })
}

fn standing(kind: &str, state: &str, reason: Option<&str>) -> Value {
    json!({
        "kind": format!("{kind}.example.com"), "lease": format!("{}.example.com", kind.to_lowercase()), "state": state,
        "reason": reason, "withoutLeaderSeconds": if state == "Blocked" { json!(42.0) } else { Value::Null },
    })
}

fn seen(leases: &[Value], reports: &[(&str, Result<report::Report, String>)]) -> Seen {
    Seen {
        namespace: "ns".to_owned(),
        leases: leases.iter().map(|lease| serde_json::from_value(lease.clone()).unwrap()).collect(),
        reports: reports.iter().map(|(pod, report)| ((*pod).to_owned(), report.clone())).collect(),
        ..Seen::default()
    }
}

const DENIED: &str = "cannot list gadgets.example.com";

/// Two replicas, of which one is of the older generation; one kind is led and the other blocked everywhere.
fn two() -> Seen {
    let kinds = ["Widget", "Gadget"];
    seen(
        &[
            shard("Widget", Some("a_1")),
            shard("Gadget", None),
            membership("a", "new", 2, &kinds),
            membership("b", "old", 1, &kinds),
        ],
        &[
            ("a", report("a", json!([leading("Widget"), standing("Gadget", "Blocked", Some(DENIED))]))),
            (
                "b",
                report("b", json!([standing("Widget", "Standby", None), standing("Gadget", "Blocked", Some(DENIED))])),
            ),
        ],
    )
}

#[test]
fn what_takes_its_time_is_said_with_how_far_it_is() {
    let mut leader = leading("Widget");
    leader["work"]["watches"] = json!(3);
    leader["work"]["watchesListed"] = json!(1);
    leader["handingOver"] = json!({"waitsFor": "successor", "forSeconds": 12.4});
    let seen = seen(
        &[shard("Widget", Some("a_1")), membership("a", "new", 2, &["Widget"])],
        &[("a", report("a", json!([leader])))],
    );
    let shown = show::status(&picture(&seen), false);
    for line in [
        "the first sync goes on: 1 of 3 watches have listed, 120 objects are in the cache (a)",
        "the handover has waited 12 s for the successor to fill its cache (a)",
    ] {
        assert!(shown.contains(line), "{line} is missing from\n{shown}");
    }
}

fn states(seen: &Seen) -> Vec<(String, State)> {
    picture(seen).kinds.into_iter().map(|kind| (kind.kind, kind.state)).collect()
}

#[test]
fn a_table_says_who_leads_what_and_what_is_wrong() {
    let shown = show::status(&picture(&two()), false);
    let expected = "\
ns: 1 of 2 kinds led, 2 of 2 replicas ready

KIND                LEADER  SINCE         STATE    WEIGHT  OBJECTS  RATE   ERRORS  LAST TAKEOVER
Gadget.example.com  -       none for 42s  Blocked  2       -        -      -       -
Widget.example.com  a       12m34s        Leading  2       120      1.2/s  2/min   12m34s ago: Expired, 14s without a leader

REPLICA  GENERATION  STATE  KINDS  LOAD  MEMORY
a        new         Ready  1      2     21Mi
b        old (old)   Ready  0      0     21Mi

Gadget.example.com: no replica can lead it
  Blocked: cannot list gadgets.example.com (a, b)
";
    assert_eq!(shown, expected);
    let wide = show::status(&picture(&two()), true);
    for word in ["IDENTITY", "a_1", "u/3", "widget.example.com", "0.1.0"] {
        assert!(wide.contains(word), "{word} is missing from\n{wide}");
    }
}

#[test]
fn programs_get_the_same_as_people() {
    let document = document(&picture(&two())).unwrap();
    assert_eq!(document["allLed"], false);
    assert_eq!(document["kinds"][1]["leader"], "a");
    assert_eq!(document["kinds"][1]["lastTakeover"]["reason"], "Expired");
    assert_eq!(document["kinds"][0]["reasons"][0]["replicas"], json!(["a", "b"]));
    let yaml: Value = serde_yaml::from_str(&yaml(&picture(&two())).unwrap()).unwrap();
    assert_eq!(yaml["replicas"][1]["newest"], false);
}

#[test]
fn a_replica_that_is_not_reached_is_named_and_the_rest_is_shown() {
    let mut missing = two();
    missing.reports.insert("a".to_owned(), Err("no answer within 5 s".to_owned()));
    let held = picture(&missing);
    let widget = &held.kinds[1];
    assert_eq!((widget.state, widget.leader.as_deref()), (State::Held, Some("a")));
    assert_eq!(widget.since_seconds, Some(1200.0), "by the clock of its holder alone, which is an hour ahead");
    assert_eq!(held.not_reached, ["a: no answer within 5 s"]);
    let shown = show::status(&held, false);
    assert!(shown.contains("not reached:\n  a: no answer within 5 s\n"), "{shown}");
    let only_widget = |mut seen: Seen| {
        seen.leases.retain(|lease| lease.metadata.name.as_deref() != Some("gadget.example.com"));
        for report in seen.reports.values_mut().flatten() {
            report.shards.retain(|shard| shard.kind.starts_with("Widget"));
        }
        let only = membership("a", "new", 2, &["Widget"]);
        seen.leases[1] = serde_json::from_value(only).unwrap();
        seen
    };
    let mut missing = only_widget(missing);
    let verdict = |seen: &Seen| (picture(seen).kinds[0].state, picture(seen).verdict());
    assert_eq!(verdict(&missing), (State::Held, Verdict::Undecided));
    missing.renewed.insert("widget.example.com".to_owned());
    assert_eq!(verdict(&missing), (State::Renewed, Verdict::Led));
    missing.renewed.clear();
    missing.silent.insert("widget.example.com".to_owned());
    assert_eq!(verdict(&missing), (State::Silent, Verdict::NotLed));
}

/// A kind that was never led has no Lease, and the replicas that could name it are not reached.
#[test]
fn a_kind_without_a_lease_is_missed_though_no_replica_names_it() {
    let seen = seen(
        &[shard("Widget", Some("a_1")), membership("a", "new", 2, &["Widget", "Gadget"])],
        &[("a", Err("forbidden".to_owned()))],
    );
    let picture = picture(&Seen { renewed: ["widget.example.com".to_owned()].into(), ..seen });
    assert_eq!((picture.kinds.len(), picture.kinds_without_lease), (1, 1));
    assert_eq!(picture.verdict(), Verdict::NotLed);
    assert!(show::status(&picture, false).contains("configured for 1 more"));
}

#[test]
fn each_state_of_a_kind_is_told_apart() {
    let members = [membership("a", "g", 1, &["Widget"]), membership("b", "g", 1, &["Widget"])];
    let of = |holder: Option<&str>, a: Value, b: Value| {
        let leases = [vec![shard("Widget", holder)], members.to_vec()].concat();
        seen(&leases, &[("a", report("a", json!([a]))), ("b", report("b", json!([b])))])
    };
    let state = |seen: &Seen| picture(seen).kinds[0].state;
    let stands = |state: &str| standing("Widget", state, None);
    let leads = || leading("Widget");
    let says = |state: &str| {
        let mut leads = leads();
        leads["state"] = json!(state);
        leads
    };
    let mut over = leads();
    over["validForSeconds"] = json!(0.0);
    for (seen, expected) in [
        (of(Some("a_1"), leads(), stands("Standby")), State::Leading),
        (of(Some("a_1"), says("Deaf"), stands("Standby")), State::Deaf),
        (of(Some("a_1"), says("Draining"), stands("Standby")), State::Draining),
        (of(Some("a_1"), leads(), leads()), State::SeveralLeaders),
        (of(Some("a_1"), leads(), over), State::Leading),
        (of(Some("a_1"), stands("Standby"), stands("Standby")), State::Starting),
        (of(None, stands("Standby"), stands("Standby")), State::Free),
        (of(None, stands("Standby"), stands("CoolingDown")), State::CoolingDown),
        (of(None, stands("Blocked"), stands("Blocked")), State::Blocked),
        (of(None, stands("Standby"), stands("Blocked")), State::Free),
        (of(Some("stranger"), stands("Standby"), stands("Standby")), State::Held),
    ] {
        assert_eq!(state(&seen), expected);
    }
    let stranger = of(Some("stranger"), stands("Standby"), stands("Standby"));
    assert_eq!(state(&Seen { pods: Some(Vec::new()), ..stranger }), State::ForeignHolder);
}

/// A Lease whose kind no replica is configured for any more is no kind that is missed.
#[test]
fn a_kind_that_was_taken_out_of_the_configuration_is_not_missed() {
    let seen = seen(&[shard("Gadget", None), shard("Widget", Some("a_1")), membership("a", "g", 1, &["Widget"])], &[]);
    assert_eq!(states(&seen), [("Widget.example.com".to_owned(), State::Held)]);
}

/// The one of the older version says what that version says.
#[test]
fn replicas_of_two_versions_are_shown_side_by_side() {
    let old = json!({
        "identity": "a_1", "ready": true, "reason": null, "stopping": false, "replicas": [],
        "shards": [{
            "kind": "Widget.example.com", "group": null, "lease": "widget.example.com", "state": "Leading", "reason": null,
            "trouble": null, "odd": [], "holder": "a_1", "heldHere": true, "token": "u/3", "validForSeconds": 12.0,
            "secondsSinceRenewal": 2.0, "target": "b_1", "successor": null, "cache": null,
        }],
    });
    let mut newer = report("b", json!([standing("Widget", "Preparing", None)])).unwrap();
    newer.version = Some("9.0.0".to_owned());
    let leases =
        [shard("Widget", Some("a_1")), membership("a", "old", 1, &["Widget"]), membership("b", "new", 2, &["Widget"])];
    let seen = seen(&leases, &[("a", Ok(serde_json::from_value(old).unwrap())), ("b", Ok(newer))]);
    let picture = picture(&seen);
    let widget = &picture.kinds[0];
    assert_eq!((widget.state, widget.since_seconds, widget.objects), (State::Leading, Some(1200.0), None));
    assert_eq!(picture.replicas.iter().map(|it| it.version.as_deref()).collect::<Vec<_>>(), [None, Some("9.0.0")]);
    let told = explain(&seen, "Widget.example.com", "widget.example.com").unwrap();
    assert!(show::explanation(&told).contains("LOAD/CAPACITY"));
}

#[test]
fn names_with_control_characters_and_markup_are_text() {
    let evil = "\u{1b}[2J\u{9b}31m<script>alert(1)</script>\u{202e}\n";
    let mut lease = shard("Widget", Some(evil));
    lease["metadata"]["annotations"]["leasehold.dev/kind"] = json!(format!("W{evil}.example.com"));
    let mut member = membership("a", evil, 1, &["Widget"]);
    member["spec"]["holderIdentity"] = json!(evil);
    let denied = standing("Gadget", "Blocked", Some(evil));
    let seen = seen(&[lease, member], &[("a", report("a", json!([denied]))), (evil, Err(evil.to_owned()))]);
    let picture = picture(&seen);
    let kind = (picture.kinds[1].kind.clone(), picture.kinds[1].lease.clone());
    let told = explain(&seen, &kind.0, &kind.1).unwrap();
    let all = [
        show::status(&picture, false),
        show::status(&picture, true),
        show::explanation(&told),
        text::json(&document(&picture).unwrap(), true),
        yaml(&picture).unwrap(),
        show::line(&picture.kinds[1]),
    ];
    for shown in all {
        let bad = shown.chars().find(|it| (it.is_control() && *it != '\n') || *it == '\u{202e}');
        assert_eq!(bad, None, "{shown:?}");
        assert!(shown.contains("<script>"), "{shown}");
    }
}

/// A thousand kinds on ten replicas: each is shown, in a moment.
#[test]
fn a_thousand_kinds_are_shown() {
    let names: Vec<_> = (0..1000).map(|number| format!("Kind{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pods: Vec<_> = (0..10).map(|number| format!("pod-{number}")).collect();
    let holder = |index: usize| format!("pod-{}_1", index % 10);
    let mut leases: Vec<_> = names.iter().enumerate().map(|(index, name)| shard(name, Some(&holder(index)))).collect();
    leases.extend(pods.iter().map(|pod| membership(pod, "g", 1, &names)));
    let reports: Vec<_> = pods
        .iter()
        .map(|pod| {
            let row = |(index, name): (usize, &&str)| {
                if holder(index) == format!("{pod}_1") { leading(name) } else { standing(name, "Standby", None) }
            };
            (pod.as_str(), report(pod, names.iter().enumerate().map(row).collect()))
        })
        .collect();
    let seen = seen(&leases, &reports);
    let picture = picture(&seen);
    assert_eq!((picture.led(), picture.verdict()), (1000, Verdict::Led));
    assert!(
        picture.replicas.iter().all(|replica| (replica.kinds, replica.load) == (100, 200)),
        "{:?}",
        picture.replicas
    );
    assert_eq!(show::status(&picture, false).lines().count(), 1000 + 10 + 5);
}

#[test]
fn a_kind_is_explained() {
    let mut seen = two();
    for report in seen.reports.values_mut().flatten() {
        report.waits = Some(vec![report::Wait {
            message: "a rollout goes on".to_owned(),
            for_seconds: Some(9.0),
            ..Default::default()
        }]);
    }
    let widget = explain(&seen, "Widget.example.com", "widget.example.com").unwrap();
    assert_eq!(
        show::explanation(&widget),
        "\
Widget.example.com: Lease ns/widget.example.com, weight 2
  led by a since 12m34s (Leading)

Why it is there
  12m34s ago from b to a: Expired: its holder fell silent for the lease duration; 14s without a leader

What placement would do
  It stays where it is: no move would bring the loads of two replicas closer.
  if that one goes: b

Replicas
  REPLICA  LOAD/CAPACITY  CAN HAVE IT
  a        2/1            yes
  b        0/1            yes (of an older generation)

The last takeovers
  12m34s ago from b to a: Expired: its holder fell silent for the lease duration; 14s without a leader
"
    );
    let gadget = explain(&seen, "Gadget.example.com", "gadget.example.com").unwrap();
    let shown = show::explanation(&gadget);
    for line in ["  Blocked: no replica can lead it, for 42s", "  Blocked: cannot list gadgets.example.com (a, b)"] {
        assert!(shown.contains(line), "{line} is missing from\n{shown}");
    }
    assert!(explain(&seen, "Nothing", "nothing").is_none());
}

/// Where balance would move it, its holder says what it waits for.
#[test]
fn what_placement_would_do_and_why_not_yet() {
    let kinds = ["Widget", "Gadget"];
    let leases = [
        shard("Widget", Some("a_1")),
        shard("Gadget", Some("a_1")),
        membership("a", "g", 1, &kinds),
        membership("b", "g", 1, &kinds),
    ];
    let waits = vec![report::Wait {
        message: "the replicas have just changed".to_owned(),
        for_seconds: Some(4.0),
        ..Default::default()
    }];
    let with = |waits: Option<Vec<report::Wait>>| {
        let mut a = report("a", json!([leading("Widget"), leading("Gadget")])).unwrap();
        a.waits = waits;
        seen(&leases, &[("a", Ok(a)), ("b", report("b", json!([standing("Widget", "Standby", None)])))])
    };
    let told = |seen: &Seen| {
        let all = kinds.map(|kind| {
            let lease = format!("{}.example.com", kind.to_lowercase());
            explain(seen, &format!("{kind}.example.com"), &lease).unwrap().placement
        });
        all.into_iter().find(|placement| placement.target.as_deref() == Some("b_1")).expect("one of them goes to b")
    };
    let settling = told(&with(Some(waits)));
    assert_eq!(settling.next, "It goes to b for balance.");
    assert_eq!(settling.waits, ["the replicas have just changed: 4.0s more"]);
    assert!(told(&with(Some(Vec::new()))).waits.is_empty(), "it is due");
    assert_eq!(told(&with(None)).waits, ["a is of a version that does not say what it waits for"]);
    let mut missing = with(None);
    missing.reports.insert("a".to_owned(), Err("no answer".to_owned()));
    assert_eq!(told(&missing).waits, ["a was not reached: what it waits for is not known"]);
}

#[test]
fn a_kind_is_found_by_kind_name_or_lease() {
    let picture = picture(&two());
    let found = |wanted: &str| find(&picture, wanted).map(|(kind, _)| kind).map_err(|failure| failure.to_string());
    for wanted in ["widget", "Widget.example.com", "widget.example.com"] {
        assert_eq!(found(wanted).as_deref(), Ok("Widget.example.com"));
    }
    assert_eq!(found("x").unwrap_err(), "no kind is called x; there are Gadget.example.com, Widget.example.com");
}

#[test]
fn without_a_terminal_each_change_is_a_line() {
    let mut lines = Lines::default();
    let first = lines.changed(&picture(&two()));
    assert_eq!(first.len(), 2);
    assert_eq!(first[0], "Gadget.example.com Blocked -; no replica can lead it");
    assert!(first[1].starts_with("Widget.example.com Leading a; taken over 12m34s ago: Expired"), "{}", first[1]);
    assert!(lines.changed(&picture(&two())).is_empty(), "nothing has changed");
    let mut free = two();
    free.leases[0] = serde_json::from_value(shard("Widget", None)).unwrap();
    free.reports.insert("a".to_owned(), report("a", json!([standing("Widget", "Standby", None)])));
    let changed = lines.changed(&picture(&free));
    assert_eq!(changed, ["Widget.example.com Free -; no replica holds its Lease"]);
    let none = Picture { kinds: Vec::new(), ..picture(&free) };
    assert_eq!(lines.changed(&none).len(), 2);
}
