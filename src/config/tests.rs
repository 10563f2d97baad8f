use std::time::Duration;

use proptest::prelude::*;

use super::*;

const RECONCILERS: [&str; 3] = ["propagation", "expiry", "scale-schedule"];

/// A file without an error: the lines a case puts its own in place of.
const GOOD: &str = "\
apiVersion: leasehold.dev/v1alpha1
kind: Configuration
kinds:
- apiVersion: example.com/v1
  kind: Widget
  reconciler: {builtin: expiry}
";

fn read(text: &str) -> Result<Configuration, Errors> {
    load("f.yaml", text, &RECONCILERS)
}

/// Every error of `text` as `line:column path: message`.
fn errors(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => Vec::new(),
        Err(errors) => {
            errors.violations().iter().map(|e| format!("{}:{} {}: {}", e.line, e.column, e.path, e.message)).collect()
        }
    }
}

/// `text` has one error, which begins with `expected`.
#[track_caller]
fn check(text: &str, expected: &str) {
    let found = errors(text);
    assert!(found.len() == 1 && found[0].starts_with(expected), "{text}\nexpected {expected}\nfound    {found:#?}");
}

/// [`GOOD`] with `lines` at its end (from line 7) or, for the fields of the first kind, indented by the caller.
#[track_caller]
fn check_with(lines: &str, expected: &str) {
    check(&format!("{GOOD}{lines}\n"), expected);
}

#[test]
fn the_least_file_has_the_documented_defaults() {
    let c = read(GOOD).unwrap();
    assert_eq!(c.instance, "leasehold");
    assert_eq!(c.lease_namespace, None);
    assert_eq!(
        c.timings,
        Timings {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            request_timeout: Duration::from_secs(2),
        }
    );
    assert_eq!(c.placement.grace, Duration::from_secs(2));
    assert_eq!(c.drain_timeout, Duration::from_secs(30));
    let [kind] = &c.kinds[..] else { panic!("{:?}", c.kinds) };
    assert_eq!((kind.group.as_str(), kind.version.as_str(), kind.kind.as_str()), ("example.com", "v1", "Widget"));
    assert_eq!(kind.lease_name, "widget.example.com");
    assert_eq!((kind.weight, kind.concurrency, kind.resync), (1, 4, Duration::from_secs(600)));
    assert_eq!(kind.reconciler, "expiry");
}

#[test]
fn a_lock_is_one_of_three_and_a_lease_unless_the_file_says_otherwise() {
    let lock = |lock: &str| read(&format!("{GOOD}{lock}")).unwrap().kinds[0].lock;
    assert_eq!(lock(""), LockKind::Lease);
    assert_eq!(lock("  lock: Lease\n"), LockKind::Lease);
    assert_eq!(lock("  lock: ConfigMap\n"), LockKind::ConfigMap);
    assert_eq!(lock("  lock: ConfigMapsLeases\n"), LockKind::ConfigMapsLeases);
    check_with("  lock: configmaps", "7:9 kinds[0].lock: ");
    check_with("defaults: {lock: ConfigMap}", "7:12 defaults.lock: unknown field");
}

#[test]
fn the_shipped_file_loads_and_says_what_it_shows() {
    let text = include_str!("../../config/leasehold.yaml");
    let c = load("config/leasehold.yaml", text, &RECONCILERS).unwrap_or_else(|e| panic!("{e}"));
    let least = read(GOOD).unwrap();
    assert_eq!(c.timings, least.timings);
    assert_eq!((c.instance, c.placement, c.drain_timeout), (least.instance, least.placement, least.drain_timeout));
    let leases: Vec<_> = c.kinds.iter().map(|kind| kind.lease_name.as_str()).collect();
    let expected = ["propagation", "expirypolicy", "scaleschedule", "tenant", "webapp"]
        .map(|kind| format!("{kind}.leasehold.dev"));
    assert_eq!(leases, expected);
    assert_eq!(c.kinds[3].composition.as_deref(), Some("tenant.yaml"));
}

#[test]
fn the_core_group_and_the_defaults_section() {
    let c = read(
        "{apiVersion: leasehold.dev/v1alpha1, kind: Configuration, defaults: {weight: 3, concurrency: 7, resync: 1m30s}, \
         kinds: [{apiVersion: v1, kind: ConfigMap, reconciler: {builtin: expiry}}, \
         {apiVersion: v1, kind: Secret, weight: 9, lease: {name: secrets}, reconciler: {builtin: expiry}}]}",
    )
    .unwrap();
    assert_eq!((c.kinds[0].group.as_str(), c.kinds[0].lease_name.as_str()), ("", "configmap"));
    assert_eq!((c.kinds[0].weight, c.kinds[0].concurrency, c.kinds[0].resync), (3, 7, Duration::from_secs(90)));
    assert_eq!((c.kinds[1].weight, c.kinds[1].lease_name.as_str()), (9, "secrets"));
}

#[test]
fn limits_are_those_of_the_kind_then_the_defaults_then_ours() {
    let c = read(
        "{apiVersion: leasehold.dev/v1alpha1, kind: Configuration, defaults: {limits: {object: 128Ki}}, \
         kinds: [{apiVersion: v1, kind: ConfigMap, reconciler: {builtin: expiry}}, \
         {apiVersion: v1, kind: Secret, limits: {cache: 33554432, object: 64Ki}, reconciler: {builtin: expiry}}]}",
    )
    .unwrap();
    let limits: Vec<_> = c.kinds.iter().map(|kind| (kind.limits.object >> 10, kind.limits.cache >> 20)).collect();
    assert_eq!(limits, [(128, 16), (64, 32)]);
}

#[test]
fn what_is_no_configuration() {
    check("", "1:1 : the file is empty");
    check("# nothing\n", "2:1 : the file is empty");
    check("just text\n", "1:1 : expected a mapping of fields, found the text \"just text\"");
    check("a: [1\n", "1:4 : not readable as YAML: ");
    check("a: b: c\n", "1:5 : not readable as YAML: ");
    check("a:\n\t- b\n", "2:2 : not readable as YAML: ");
    check("a: *b\n", "1:4 : not readable as YAML: ");
    check("? {a: b}\n: c\n", "1:1 : not readable as YAML: a key of a mapping must be plain text");
    check(&format!("{GOOD}---\n{GOOD}"), "8:1 : a second document starts here");
    check(&format!("{}{}", "[".repeat(200), "]".repeat(200)), "1:33 : not readable as YAML: ");
}

#[test]
fn top_level() {
    check(
        &GOOD.replace("/v1alpha1", "/v1"),
        "1:13 apiVersion: must be `leasehold.dev/v1alpha1`, found `leasehold.dev/v1`",
    );
    check(&GOOD.replace("kind: Conf", "kind: conf"), "2:7 kind: must be `Configuration`");
    check(&GOOD.replace("kind: Configuration\n", ""), "1:1 kind: missing; write `kind: Configuration`");
    check_with("knids: []", "7:1 knids: unknown field; known here: apiVersion, kind, instance, leases, placement");
    check_with("drainTimeOut: 1s", "7:1 drainTimeOut: unknown field; did you mean `drainTimeout`?");
    check_with("kind: Configuration", "7:1 kind: the field is given twice, first on line 2; remove one");
    check_with("instance: ''", "7:11 instance: `` is no label value");
    check_with("instance: -a", "7:11 instance: `-a` is no label value");
    check_with("instance: 12", "7:11 instance: expected text, found the number 12; put it in quotes");
    check_with("instance: [a]", "7:11 instance: expected text, found a list");
    check_with("instance: ~", "7:11 instance: expected text, found nothing");
    check_with("drainTimeout: 30", "7:15 drainTimeout: `30` has no unit; write for example `30s`");
    check_with("drainTimeout: '30'", "7:15 drainTimeout: `30` has no unit; write for example `30s`");
    check_with("drainTimeout: 1d", "7:15 drainTimeout: `1d` has an unknown unit; write for example `15s`");
    check_with("drainTimeout: 25h", "7:15 drainTimeout: `25h` is too long; the most is 1h");
    check_with("drainTimeout: -1s", "7:15 drainTimeout: `-1s` is negative");
    check_with("leases: {duration: 11m}", "7:20 leases.duration: `11m` is too long; the most is 10m");
    check_with("drainTimeout: true", "7:15 drainTimeout: expected a duration such as `15s`, found `true`");
}

#[test]
fn what_this_release_does_not_have() {
    let kind = |lines: &str| GOOD.replace("  reconciler: {builtin: expiry}", lines);
    check(&kind("  reconciler: {compose: ''}"), "6:25 kinds[0].reconciler.compose: is empty");
    check(&kind("  reconciler: {builtin: expiry, compose: x}"), "6:42 kinds[0].reconciler.compose: a kind has one");
    check(&kind("  reconciler: {hook: {}}"), "6:16 kinds[0].reconciler.hook: not in this release");
}

#[test]
fn how_the_kinds_are_spread() {
    let c = read(GOOD).unwrap();
    let default = Placement {
        rebalance: Rebalance::Automatic,
        settle: Duration::from_secs(5),
        grace: Duration::from_secs(2),
        capacity: 1,
    };
    assert_eq!((c.placement, c.kinds[0].standby), (default, StandbyMode::Successor));
    let text = format!(
        "{GOOD}placement: {{rebalance: OnRestart, settle: 1m, grace: 1s, capacity: 3}}\ndefaults: {{standby: All}}\n"
    );
    let c = read(&text).unwrap();
    let placement = Placement {
        rebalance: Rebalance::OnRestart,
        settle: Duration::from_secs(60),
        grace: Duration::from_secs(1),
        capacity: 3,
    };
    assert_eq!((c.placement, c.kinds[0].standby), (placement, StandbyMode::All));
    let of_its_own =
        text.replace("  reconciler: {builtin: expiry}", "  reconciler: {builtin: expiry}\n  standby: None");
    assert_eq!(read(&of_its_own).unwrap().kinds[0].standby, StandbyMode::None);
    check_with(
        "placement: {rebalance: never}",
        "7:24 placement.rebalance: expected one of Automatic, OnRestart, Never, found the text \"never\"; did you mean `Never`?",
    );
    check_with("placement: {settle: 5}", "7:21 placement.settle: `5` has no unit; write for example `5s`");
    check_with("placement: {capacity: 0}", "7:23 placement.capacity: expected a whole number from 1 to 1000");
    check_with("defaults: {standby: Both}", "7:21 defaults.standby: expected one of None, Successor, All, found");
}

#[test]
fn timings_rules() {
    check_with(
        "leases: {duration: 14s}",
        "7:20 leases.duration: the rule `duration > renewDeadline + retryPeriod + requestTimeout` is broken: \
         14s is not more than 10s (the default) + 2s (the default) + 2s (the default) = 14s",
    );
    check_with(
        "leases:\n  requestTimeout: 3s",
        "8:19 leases.requestTimeout: the rule `duration > renewDeadline + retryPeriod + requestTimeout` is broken: \
         15s (the default) is not more than 10s (the default) + 2s (the default) + 3s = 15s",
    );
    check_with(
        "leases: {renewDeadline: 2400ms}",
        "7:25 leases.renewDeadline: the rule `renewDeadline > 1.2 x retryPeriod` is broken: \
         2s400ms is not more than 1.2 x 2s (the default)",
    );
    check_with("leases: {duration: 15500ms}", "7:20 leases.duration: `15s500ms` is not in whole seconds");
    check_with("leases: {duration: 500ms}", "7:20 leases.duration: `500ms` is too short; the least is 1s");
    check_with("leases: {retryPeriod: 0s}", "7:23 leases.retryPeriod: `0s` is too short; the least is 1ms");
    check_with("leases: {namespace: A_b}", "7:21 leases.namespace: `A_b` is no namespace name");
    check_with("leases: fast", "7:9 leases: expected a mapping of fields, found the text \"fast\"");
    check_with("placement: {grace: 15s}", "7:20 placement.grace: must be shorter than leases.duration");
    // A duration that cannot be read breaks no rule besides.
    check_with("leases: {duration: 14}", "7:20 leases.duration: `14` has no unit; write for example `14s`");
    assert!(
        read(&format!(
            "{GOOD}leases: {{duration: 3s, renewDeadline: 1500ms, retryPeriod: 1s, requestTimeout: 400ms}}\n"
        ))
        .is_ok()
    );
    assert!(read(&format!("{GOOD}placement: {{grace: 0s}}\n")).is_ok());
}

#[test]
fn kinds() {
    let head = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n";
    check(head, "1:1 kinds: missing; list at least one kind");
    check(&format!("{head}kinds: []\n"), "3:8 kinds: the list is empty");
    check(&format!("{head}kinds: {{}}\n"), "3:8 kinds: expected a list of kinds, found a mapping");
    check(&format!("{head}kinds: [Widget]\n"), "3:9 kinds[0]: expected a mapping of fields, found the text \"Widget\"");

    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let group = |to: &str| with("example.com/v1", to);
    check(&group("apps"), "4:15 kinds[0].apiVersion: `apps` is no apiVersion: it has no group");
    check(&group("a/b/c"), "4:15 kinds[0].apiVersion: `a/b/c` is no apiVersion: `b/c` is no API version");
    check(&group("A.b/v1"), "4:15 kinds[0].apiVersion: `A.b/v1` is no apiVersion: `A.b` is no API group");
    check(&group("1"), "4:15 kinds[0].apiVersion: expected text, found the number 1; put it in quotes");
    check(&with("- apiVersion: example.com/v1\n  kind", "- kind"), "4:3 kinds[0].apiVersion: missing");
    check(&with("  kind: Widget\n", ""), "4:3 kinds[0].kind: missing");
    check(&with("Widget", "widget"), "5:9 kinds[0].kind: `widget` is no kind: CamelCase");
    check(&with("Widget", "Wid-get"), "5:9 kinds[0].kind: `Wid-get` is no kind");
    check(&group(&format!("{}/v1", "a".repeat(250))), "5:9 kinds[0].kind: the default Lease name `widget.aaa");

    let field = |line: &str| format!("{GOOD}  {line}\n");
    check(&field("weight: 0"), "7:11 kinds[0].weight: expected a whole number from 1 to 1000, found the number 0");
    check(&field("weight: -1"), "7:11 kinds[0].weight: expected a whole number from 1 to 1000, found the number -1");
    check(&field("weight: 1.5"), "7:11 kinds[0].weight: expected a whole number");
    check(&field("weight: '2'"), "7:11 kinds[0].weight: expected a whole number from 1 to 1000, found the text \"2\"");
    check(
        &field("weight: 99999999999999999999999999999999999999999999"),
        "7:11 kinds[0].weight: expected a whole number",
    );
    check(&field("concurrency: 1001"), "7:16 kinds[0].concurrency: expected a whole number from 1 to 1000");
    check(&field("limits: {object: 1Ki}"), "7:20 kinds[0].limits.object: 1Ki is too small; the least is 4Ki");
    check(&field("limits: {object: 5Mi}"), "7:20 kinds[0].limits.object: 5Mi is too large; the most is 4Mi");
    check(&field("limits: {cache: 1KB}"), "7:19 kinds[0].limits.cache: expected a number of bytes such as `64Ki`");
    check(
        &field("limits: {cache: 64Ki}"),
        "7:19 kinds[0].limits.cache: an object of 512Ki has no room in a cache of 64Ki",
    );
    check(&field("limits: {objects: 64Ki}"), "7:12 kinds[0].limits.objects: unknown field; known here: object, cache");
    check(&field("resync: 500ms"), "7:11 kinds[0].resync: `500ms` is too short; the least is 1s");
    check(&field("lease: {name: Widget}"), "7:17 kinds[0].lease.name: `Widget` is no Lease name");
    check(&field("lease: {nmae: w}"), "7:11 kinds[0].lease.nmae: unknown field; known here: name");
    check(&field("lease: w"), "7:10 kinds[0].lease: expected a mapping");

    let reconciler = |to: &str| with("{builtin: expiry}", to);
    check(
        &reconciler("{builtin: nope}"),
        "6:25 kinds[0].reconciler.builtin: `nope` is no reconciler of this binary: one of propagation, expiry",
    );
    check(&reconciler("{}"), "6:15 kinds[0].reconciler.builtin: missing");
    check(
        &with("  reconciler: {builtin: expiry}\n", ""),
        "4:3 kinds[0].reconciler: missing; write `reconciler: {builtin: NAME}`",
    );
}

#[test]
fn a_reconciler_made_for_another_kind() {
    let offers = [Offer { name: "expiry", only: Some(("leasehold.dev", "ExpiryPolicy")), in_code: false }];
    let errors = load("f.yaml", GOOD, &offers).unwrap_err();
    assert_eq!(
        errors.violations()[0].message,
        "`expiry` reconciles ExpiryPolicy.leasehold.dev and nothing else; this kind is Widget.example.com"
    );
    assert_eq!((errors.violations()[0].line, errors.violations()[0].column), (6, 25));
}

#[test]
fn collisions() {
    let second = |entry: &str| format!("{GOOD}- {entry}\n");
    check(
        &second("{apiVersion: example.com/v2, kind: Widget, reconciler: {builtin: expiry}}"),
        "7:38 kinds[1].kind: Widget.example.com stands twice, first as kinds[0] on line 5",
    );
    check(
        &second("{apiVersion: v1, kind: Secret, lease: {name: widget.example.com}, reconciler: {builtin: expiry}}"),
        "7:48 kinds[1].lease.name: the Lease `widget.example.com` is that of Widget.example.com (kinds[0], line 5) already",
    );
    // Names differ in case only: two kinds to the API server, one Lease name.
    check(
        &second("{apiVersion: example.com/v1, kind: WidGet, reconciler: {builtin: expiry}}"),
        "7:38 kinds[1].kind: the Lease `widget.example.com` is that of Widget.example.com",
    );
}

/// Kinds of the core group: `(kind, fields of its own)`.
fn with_kinds(kinds: &[(&str, &str)], lines: &str) -> String {
    let entry = |(kind, fields): &(&str, &str)| {
        format!("- {{apiVersion: v1, kind: {kind}, {fields}reconciler: {{builtin: expiry}}}}\n")
    };
    let kinds: String = kinds.iter().map(entry).collect();
    format!("apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n{lines}\nkinds:\n{kinds}")
}

fn leases_of(c: &Configuration) -> Vec<(&str, Option<&str>)> {
    c.kinds.iter().map(|kind| (kind.lease_name.as_str(), kind.lease_group.as_deref())).collect()
}

#[test]
fn kinds_of_a_group_share_its_lease() {
    let kinds = [("A", "group: g, weight: 2, "), ("B", ""), ("C", "group: g, weight: 3, "), ("D", "group: h, ")];
    let c = read(&with_kinds(&kinds, "")).unwrap();
    assert_eq!(leases_of(&c), [("g", Some("g")), ("b", None), ("g", Some("g")), ("h", Some("h"))]);
    let shards: Vec<Vec<_>> = c.shards().iter().map(|kinds| kinds.iter().map(|kind| kind.name()).collect()).collect();
    assert_eq!(shards, [vec!["A", "C"], vec!["B"], vec!["D"]]);
    assert_eq!((c.election, c.on_loss), (Election::PerKind, OnLoss::Reelect));
    let named = [("A", "group: g, "), ("B", "group: g, lease: {name: payments}, ")];
    let c = read(&with_kinds(&named, "")).unwrap();
    assert_eq!(leases_of(&c), [("payments", Some("g")); 2], "one of them may say what the Lease is called");
    let long = "x".repeat(64);
    let c = read(&with_kinds(&[(&format!("A{}", "x".repeat(62)), "group: g, ")], "")).unwrap();
    assert_eq!(leases_of(&c), [("g", Some("g"))]);
    check(&with_kinds(&[("A", &format!("group: {long}, "))], ""), "5:36 kinds[0].group: `xxx");
    check(&with_kinds(&[("A", "group: G, ")], ""), "5:36 kinds[0].group: `G` is no name of a group");
    check(&with_kinds(&[("A", "group: [g], ")], ""), "5:36 kinds[0].group: expected text, found a list");
}

#[test]
fn kinds_that_cannot_share_a_lease() {
    let (first, other) = (("A", "group: g, standby: All, "), ("B", "group: g, "));
    check(
        &with_kinds(&[first, other], ""),
        "6:3 kinds[1].standby: the kinds of the group `g` share one Lease and stand by together: Successor here, and All \
         for A (kinds[0], line 5); write the same for each of them",
    );
    assert!(read(&with_kinds(&[first, other], "defaults: {standby: All}")).is_ok(), "a default says it as well");
    check(
        &with_kinds(&[("A", "group: g, lease: {name: x}, "), ("B", "group: g, lease: {name: y}, ")], ""),
        "6:53 kinds[1].lease.name: the kinds of the group `g` share one Lease, and A (kinds[0], line 5) calls it `x`",
    );
    check(
        &with_kinds(&[("A", "lease: {name: x}, "), ("B", "lease: {name: x}, ")], ""),
        "6:43 kinds[1].lease.name: the Lease `x` is that of A (kinds[0], line 5) already, and kinds share a Lease only \
         within a group; set another lease.name, or give both the same `group`",
    );
    check(
        &with_kinds(&[("A", "group: g, "), ("B", "group: h, lease: {name: g}, ")], ""),
        "6:53 kinds[1].lease.name: the Lease `g` is that of A (kinds[0], line 5) already",
    );
    check(
        &with_kinds(&[("A", ""), ("B", "group: a, ")], ""),
        "6:36 kinds[1].group: the Lease `a` is that of A (kinds[0], line 5) already",
    );
}

#[test]
fn one_lock_for_all_kinds() {
    let kinds = [("A", "weight: 2, "), ("B", "")];
    let c = read(&with_kinds(&kinds, "election: {mode: Single, lease: {name: my-operator}}")).unwrap();
    assert_eq!(c.election, Election::Single { lease: "my-operator".to_owned(), lock: LockKind::Lease });
    assert_eq!(leases_of(&c), [("my-operator", Some("my-operator")); 2]);
    assert_eq!(c.shards().len(), 1);
    let c = read(&with_kinds(&kinds, "election: {mode: Single}\ninstance: mine")).unwrap();
    assert_eq!(leases_of(&c)[0].0, "mine", "the Lease is called like the instance");
    assert_eq!(read(&with_kinds(&kinds, "election: {mode: PerKind}")).unwrap().election, Election::PerKind);

    let election = |lines: &str, expected: &str| check(&with_kinds(&kinds, lines), expected);
    election("election: Single", "3:11 election: expected a mapping of fields; write `election: {mode: Single}`");
    election("election: {}", "3:11 election.mode: missing; write `mode: Single` or `mode: PerKind`");
    election("election: []", "3:11 election: expected a mapping of fields, found a list");
    election(
        "election: {mode: single}",
        "3:18 election.mode: expected one of PerKind, Single, found the text \"single\"; did you mean `Single`?",
    );
    election("election: {mode: Single, name: x}", "3:26 election.name: unknown field; known here: mode, lease, lock");
    election("election: {mode: Single, lease: {name: X}}", "3:40 election.lease.name: `X` is no Lease name");
    election(
        "election: {mode: Single}\ninstance: My_Instance",
        "3:18 election.mode: the Lease of all kinds is called like the instance unless election.lease.name says otherwise, \
         and `My_Instance` is no Lease name; set election.lease.name",
    );
    election(
        "election: {mode: PerKind, lease: {name: x}}",
        "3:34 election.lease: each kind has its own Lease if election.mode is PerKind; remove `lease` or write `mode: Single`",
    );
    let single = "election: {mode: Single, lease: {name: x}}";
    check(
        &with_kinds(&[("A", "group: g, ")], single),
        "5:36 kinds[0].group: election.mode is Single, which makes one group of all kinds; remove `group`",
    );
    check(
        &with_kinds(&[("A", "lease: {name: y}, ")], single),
        "5:43 kinds[0].lease.name: election.mode is Single, and all kinds share the Lease `x`; remove `lease` here",
    );
    check(
        &with_kinds(&[("A", ""), ("B", "standby: None, ")], single),
        "6:38 kinds[1].standby: election.mode is Single, and all kinds share one Lease and stand by together: None here, \
         and Successor for A (kinds[0], line 5)",
    );
    assert!(read(&with_kinds(&[(&format!("A{}", "x".repeat(62)), ""), ("B", "")], single)).is_ok());
}

#[test]
fn kinds_that_share_a_lease_have_one_lock() {
    let locks = |text: &str| read(text).unwrap().kinds.iter().map(|kind| kind.lock).collect::<Vec<_>>();
    let of_group = |first: &str, other: &str| with_kinds(&[("A", first), ("B", other)], "");
    let both = "group: g, lock: ConfigMapsLeases, ";
    assert_eq!(locks(&of_group(both, both)), [LockKind::ConfigMapsLeases; 2]);
    check(
        &of_group("group: g, lock: ConfigMap, ", "group: g, lock: ConfigMapsLeases, "),
        "6:45 kinds[1].lock: the kinds of the group `g` share one lock: ConfigMapsLeases here, and ConfigMap for A \
         (kinds[0], line 5); write the same `lock` for each of them",
    );
    check(
        &of_group("group: g, lock: ConfigMap, ", "group: g, "),
        "6:3 kinds[1].lock: the kinds of the group `g` share one lock: Lease here, and ConfigMap for A",
    );
    let single = "election: {mode: Single, lease: {name: x}, lock: ConfigMap}";
    assert_eq!(locks(&with_kinds(&[("A", ""), ("B", "")], single)), [LockKind::ConfigMap; 2]);
    check(
        &with_kinds(&[("A", ""), ("B", "lock: ConfigMap, ")], single),
        "6:35 kinds[1].lock: election.mode is Single, and all kinds share one lock; write `election: {lock: ConfigMap}`, \
         or `mode: PerKind`",
    );
    check(
        &with_kinds(&[("A", "")], "election: {mode: PerKind, lock: ConfigMap}"),
        "3:33 election.lock: each kind has its own lock if election.mode is PerKind; write `lock` on the kinds",
    );
    check(
        &with_kinds(&[("A", "")], "election: {mode: Single, lock: configmap}"),
        "3:32 election.lock: expected one of Lease, ConfigMap, ConfigMapsLeases, found the text \"configmap\"",
    );
}

#[test]
fn what_follows_a_loss() {
    assert_eq!(read(&format!("{GOOD}onLoss: Exit\n")).unwrap().on_loss, OnLoss::Exit);
    assert_eq!(read(&format!("{GOOD}onLoss: Reelect\n")).unwrap().on_loss, OnLoss::Reelect);
    check_with(
        "onLoss: exit",
        "7:9 onLoss: expected one of Reelect, Exit, found the text \"exit\"; did you mean `Exit`?",
    );
}

#[test]
fn several_errors_are_shown_at_once_in_the_order_of_the_file() {
    let text = "\
apiVersion: leasehold.dev/v1alpha1
kind: Configuration
instance: my instance
leases: {duration: 5s, wait: 1s}
kinds:
- apiVersion: example.com/v1
  kind: widget
  wieght: 2
  reconciler: {builtin: nope}
- apiVersion: example.com/v1
  kind: Gadget
  resync: 10
  resync: 10m
";
    let found = read(text).unwrap_err().to_string();
    let places: Vec<_> = found
        .lines()
        .filter_map(|line| line.strip_prefix("f.yaml:"))
        .map(|line| line.splitn(4, ':').take(3).collect::<Vec<_>>().join(":"))
        .collect();
    assert_eq!(
        places,
        [
            "3:11: instance",
            "4:20: leases.duration",
            "4:24: leases.wait",
            "7:9: kinds[0].kind",
            "8:3: kinds[0].wieght",
            "9:25: kinds[0].reconciler.builtin",
            "10:3: kinds[1].reconciler",
            "12:11: kinds[1].resync",
            "13:3: kinds[1].resync",
        ],
        "{found}"
    );
    assert!(found.contains("\n  7 |   kind: widget\n    |         ^\n"), "{found}");
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".*") {
        let _ = read(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn yaml_like_text_never_panics(text in "[-a-z0-9:{}\\[\\],&*!|>'\"#%@? \\n\\t]{0,80}") {
        let _ = read(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0..GOOD.len(), insert in ".{0,8}") {
        let text = format!("{}{insert}{}", &GOOD[..at], &GOOD[at..]);
        let _ = read(&text).map_err(|e| e.to_string());
    }

    /// Rule 8 of the design holds for every file that loads, whatever it says.
    #[test]
    fn what_loads_keeps_the_rules(
        duration in 1..40_u64, deadline in 1..40_000_u64, period in 1..20_000_u64, timeout in 1..20_000_u64, grace in 0..40_u64,
    ) {
        let text = format!(
            "{GOOD}leases: {{duration: {duration}s, renewDeadline: {deadline}ms, retryPeriod: {period}ms, \
             requestTimeout: {timeout}ms}}\nplacement: {{grace: {grace}s}}\n"
        );
        let keeps = duration * 1000 > deadline + period + timeout && deadline * 10 > period * 12 && grace < duration;
        match read(&text) {
            Ok(c) => {
                prop_assert!(keeps);
                prop_assert_eq!(c.timings.lease_duration, Duration::from_secs(duration));
            }
            Err(e) => prop_assert!(!keeps, "{}", e),
        }
    }
}

#[test]
fn webhooks_are_off_unless_they_stand_in_the_file() {
    let webhooks = |lines: &str| read(&format!("{GOOD}{lines}\n")).unwrap().webhooks;
    let default = WebhookSettings::default();
    assert_eq!(webhooks(""), WebhookSettings { enabled: false, ..default.clone() });
    assert_eq!(webhooks("webhooks: {}"), default);
    assert_eq!((default.port, default.shutdown_delay), (9443, Duration::from_secs(10)));
    assert!(!webhooks("webhooks: {enabled: false}").enabled);
    let set = webhooks("webhooks: {port: 8443, name: w, shutdownDelay: 3s, certificate: {lifetime: 2m}}");
    let expected = WebhookSettings {
        port: 8443,
        name: "w".to_owned(),
        shutdown_delay: Duration::from_secs(3),
        lifetime: Duration::from_secs(120),
        ..default
    };
    assert_eq!(set, expected);
    assert_eq!(webhooks("webhooks: {certificate: {issuer: External}}").certificate, Certificate::External);
    let files = webhooks("webhooks: {certificate: {files: /tls}}").certificate;
    assert_eq!(files, Certificate::Files("/tls".to_owned()));
}

#[test]
fn types_without_webhooks_and_escalation_have_defaults_that_are_safe() {
    let names = |lines: &str| {
        let types = read(&format!("{GOOD}{lines}\n")).unwrap().without_webhooks.types;
        types.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let default = ["Job.batch", "Pod", "ConfigMap"];
    assert_eq!(names(""), default);
    assert_eq!(names("withoutWebhooks: {}"), default);
    assert_eq!(names("withoutWebhooks: {types: []}"), [""; 0]);
    assert_eq!(names("withoutWebhooks: {types: [Secret, Widget.e.com]}"), ["Secret", "Widget.e.com"]);
    let kind = |more: &str| {
        let text = GOOD.replace("kind: Widget", &format!("kind: Widget{more}"));
        read(&text).unwrap().kinds[0].escalation
    };
    assert_eq!(kind(""), Escalation::Check);
    assert_eq!(kind("\n  escalation: Check"), Escalation::Check);
    assert_eq!(kind("\n  escalation: Trust"), Escalation::Trust);
    for (lines, expected) in [
        ("withoutWebhooks: {types: Pod}", "7:26 withoutWebhooks.types: expected a list such as [Job.batch, Pod]"),
        ("withoutWebhooks: {types: [pods]}", "7:27 withoutWebhooks.types[0]: `pods` is no type: write <Kind>.<group>"),
        ("withoutWebhooks: {types: [Pod, Job.Batch]}", "7:32 withoutWebhooks.types[1]: `Job.Batch` is no type"),
        ("withoutWebhooks: {types: [Pod, Pod]}", "7:32 withoutWebhooks.types[1]: `Pod` stands twice"),
        ("withoutWebhooks: {types: [{}]}", "7:27 withoutWebhooks.types[0]: expected text such as Job.batch"),
        ("withoutWebhooks: {type: [Pod]}", "7:19 withoutWebhooks.type: unknown field; known here: types"),
    ] {
        check_with(lines, expected);
    }
}

#[test]
fn what_is_wrong_with_webhooks_is_told_with_what_to_do() {
    for (lines, expected) in [
        ("webhooks: {enabled: maybe}", "7:21 webhooks.enabled: expected true or false"),
        ("webhooks: {port: 0}", "7:18 webhooks.port: expected a whole number from 1 to 65535"),
        ("webhooks: {name: A_b}", "7:18 webhooks.name: `A_b` is no name of a Service"),
        ("webhooks: {shutdownDelay: 5}", "7:27 webhooks.shutdownDelay: `5` has no unit"),
        ("webhooks: {certificate: {lifetime: 1m}}", "7:36 webhooks.certificate.lifetime: `1m` is too short"),
        (
            "webhooks: {certificate: {issuer: acme}}",
            "7:34 webhooks.certificate.issuer: expected one of Leasehold, External",
        ),
        ("webhooks: {certificate: {files: tls}}", "7:33 webhooks.certificate.files: `tls` is no absolute path"),
        (
            "webhooks: {certificate: {files: /tls, issuer: External}}",
            "7:33 webhooks.certificate.files: says where the certificate lies",
        ),
        (
            "webhooks: {certificate: {issuer: External, lifetime: 2m}}",
            "7:54 webhooks.certificate.lifetime: is of certificates that leasehold makes",
        ),
        ("webhooks: {certificates: {}}", "7:12 webhooks.certificates: unknown field; known here"),
    ] {
        check_with(lines, expected);
    }
}
