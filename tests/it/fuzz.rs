//! Fuzz targets: real inputs, mutated. Whatever a person, a program or an attacker writes, what reads it does not panic, keeps
//! its bounds, and says the same of the same.
//!
//! `cargo test` tries a thousand or so inputs of each target, and `FUZZ=1000000` (`make soak`) so many. A failure prints the seed:
//! `FUZZ_SEED=17 cargo test --test it fuzz_configurations -- --nocapture` tries that input alone, and prints it.

use std::{
    collections::BTreeMap,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use leasehold::{
    config::{self, LONGEST_LEASE, Offer},
    kinds::compose::Composition,
    protocol::lease::WEIGHT_MOST,
    reconcile::children::{Compose as _, Effort, Key, Type, View},
    replica::{config_map, record},
    webhooks::{
        Asked, Denied, Webhook,
        review::{Reviews, Route},
    },
};
use serde_json::{Value, json};

const USUAL: u64 = 1500;

/// Tries inputs that are made of the corpus, each by its own seed.
#[expect(clippy::print_stderr, reason = "the input that was asked for")]
fn fuzz(name: &str, corpus: &[String], words: &[&str], target: impl Fn(&str)) {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let of = |seed: u64| mutated(&mut Rng::with_seed(seed), corpus, words);
    if let Some(seed) = number("FUZZ_SEED") {
        let input = of(seed);
        eprintln!("{input}");
        return target(&input);
    }
    // As they are, they are right or wrong; they do no harm.
    corpus.iter().for_each(|input| target(input));
    for seed in 0..number("FUZZ").unwrap_or(USUAL) {
        let input = of(seed);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            panic!("this input fails: FUZZ_SEED={seed} cargo test --test it {name} -- --nocapture\n{input}");
        }
    }
}

/// Values at which readers stumble.
const ODD: &[&str] = &[
    "0",
    "-1",
    "1e999",
    "99999999999999999999",
    "2147483648",
    "0x10",
    "null",
    "~",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "}}",
    "\u{0}",
    "\u{202e}",
    "é",
    "🦀",
    "\\u0000",
    "1s",
    "-1s",
    "1h1h",
    "9999999h",
    "16Ki",
    "999999Gi",
    "&a",
    "*a",
    "<<: *a",
    "---",
    "...",
    "!!binary x",
    "|",
    ">-",
    "#",
    "${",
    "}",
    "${each}",
    "${parent}",
    "${parent.spec}",
    "$${x}",
    "\t",
    "\r\n",
    "%",
    ": ",
    "- ",
    "'",
    "\"",
    "\\",
];

/// One of the corpus after some changes: of bytes, of words, of lines, and from one to another.
fn mutated(rng: &mut Rng, corpus: &[String], words: &[&str]) -> String {
    let mut text = corpus[rng.usize(..corpus.len())].clone();
    for _ in 0..rng.usize(1..6) {
        let place = |rng: &mut Rng, text: &str| {
            let at = rng.usize(..=text.len());
            (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
        };
        let span = |rng: &mut Rng, text: &str| {
            let (one, two) = (place(rng, text), place(rng, text));
            let (from, to) = (one.min(two), one.max(two));
            // Mostly a small one.
            let near = (from + rng.usize(1..24)).min(to);
            from..(0..=near).rev().find(|at| *at >= from && text.is_char_boundary(*at)).unwrap_or(from)
        };
        let lines = || text.lines().map(str::to_owned).collect::<Vec<_>>();
        match rng.u8(..9) {
            0 => text.replace_range(span(rng, &text), ""),
            1 => {
                let at = place(rng, &text);
                text.insert_str(at, ODD[rng.usize(..ODD.len())]);
            }
            2 => {
                let at = place(rng, &text);
                text.insert_str(at, words[rng.usize(..words.len())]);
            }
            3 => {
                // A value becomes another one.
                let ends: Vec<_> = text.match_indices(": ").map(|(at, _)| at + 2).collect();
                if !ends.is_empty() {
                    let from = ends[rng.usize(..ends.len())];
                    let to = text[from..].find([',', '\n', '}']).map_or(text.len(), |end| from + end);
                    let other = if rng.bool() { ODD[rng.usize(..ODD.len())] } else { words[rng.usize(..words.len())] };
                    text.replace_range(from..to, other);
                }
            }
            4 => {
                let mut all = lines();
                if !all.is_empty() {
                    let line = all[rng.usize(..all.len())].clone();
                    all.insert(rng.usize(..=all.len()), line);
                    text = all.join("\n");
                }
            }
            5 => {
                let mut all = lines();
                if all.len() > 1 {
                    drop(all.remove(rng.usize(..all.len())));
                    text = all.join("\n");
                }
            }
            6 => {
                let other = &corpus[rng.usize(..corpus.len())];
                let part = other[span(rng, other)].to_owned();
                let at = place(rng, &text);
                text.insert_str(at, &part);
            }
            7 => {
                let part = text[span(rng, &text)].repeat(rng.usize(1..40));
                let at = place(rng, &text);
                text.insert_str(at, &part);
            }
            _ => text.truncate(place(rng, &text)),
        }
        // Deeper than that is other tests' to try.
        let end = (0..=text.len().min(64 << 10)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The YAML of files and pages.
fn yaml(files: &[&str], is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let mut all: Vec<String> = files.iter().map(|file| fs::read_to_string(root().join(file)).unwrap()).collect();
    for page in ["README.md", "docs/compose.md", "docs/patterns.md", "docs/webhooks.md", "docs/tenant.md"] {
        let page = fs::read_to_string(root().join(page)).unwrap();
        all.extend(page.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split("```").next()?.to_owned())));
    }
    all.retain(|text| is_meant(text));
    all
}

#[test]
fn fuzz_configurations() {
    let corpus = yaml(&["config/leasehold.yaml", "config/examples/leasehold.yaml"], |it| it.contains("kinds:"));
    let words = [
        "kinds",
        "leases",
        "duration",
        "renewDeadline",
        "group",
        "standby",
        "Successor",
        "lock",
        "ConfigMapsLeases",
        "election",
        "Single",
        "reconciler",
        "builtin",
        "compose",
        "webhooks",
        "certificate",
        "limits",
        "withoutWebhooks",
        "expiry",
        "v1",
    ];
    let offers = [
        Offer::from("propagation"),
        Offer { name: "expiry", only: Some(("leasehold.dev", "ExpiryPolicy")), in_code: false },
        Offer { name: "scale-schedule", only: None, in_code: false },
    ];
    fuzz("fuzz_configurations", &corpus, &words, |text| {
        let read = config::load("f.yaml", text, &offers);
        match &read {
            Ok(config) => {
                let timings = config.timings;
                let least = timings.renew_deadline + timings.retry_period + timings.request_timeout;
                assert!(timings.lease_duration > least && timings.lease_duration <= LONGEST_LEASE, "{timings:?}");
                assert!(!config.kinds.is_empty());
                assert_eq!(config.shards().concat().len(), config.kinds.len());
                for kind in &config.kinds {
                    assert!(
                        (1..=1000).contains(&kind.weight) && kind.concurrency > 0 && kind.lease_name.len() <= 63,
                        "{kind:?}"
                    );
                }
            }
            Err(errors) => {
                assert!(!errors.violations().is_empty());
                // The end of a file that ends with a line break is on the line after it.
                let lines = text.lines().count() as u64 + 2;
                let is_there = |it: &config::Violation| (1..=lines).contains(&it.line) && it.column >= 1;
                assert!(errors.violations().iter().all(is_there), "{errors}");
                assert!(!errors.violations().iter().any(|it| it.snippet.chars().any(char::is_control)), "{errors}");
            }
        }
        let again = config::load("f.yaml", text, &offers);
        assert_eq!(format!("{read:?}"), format!("{again:?}"), "the same of the same");
    });
}

#[test]
fn fuzz_compositions() {
    let files = [
        "config/tenant.yaml",
        "config/webapp.yaml",
        "config/examples/bluegreen.yaml",
        "config/examples/catset.yaml",
        "config/examples/indexedjob.yaml",
        "config/examples/teamdatabase.yaml",
    ];
    let corpus = yaml(&files, |it| it.contains("kind: Composition"));
    let words = [
        "${size(parent.spec.x)}",
        "${children.a.status.y}",
        "${each.z}",
        "forEach",
        "includeWhen",
        "readyWhen",
        "after",
        "adopt",
        "generate",
        "${[1, 2].map(x, x * x)}",
        "${parent.spec.items.map(a, parent.spec.items.map(b, a + b))}",
        "${dyn(1) == 1.0}",
        "${'%s'.format([parent])}",
        "${parent.?spec.?x.orValue(1)}",
        "related",
        "status",
        "admission",
        "${1/0}",
        "${\"a\".matches('(a+)+b')}",
        "update",
        "Recreate",
    ];
    let items: Vec<_> = (0..20).map(|number| json!({"name": format!("i{number}"), "replicas": number})).collect();
    let metadata = json!({"name": "x", "namespace": "ns", "uid": "u", "generation": 1, "labels": {"a": "b"}});
    let spec = json!({
        "x": 1, "items": items, "image": "i", "team": "lilac", "replicas": 2, "workers": items, "title": "t", "template": {"spec": {}},
    });
    let parent = json!({"apiVersion": "example.com/v1", "kind": "X", "metadata": metadata, "spec": spec});
    let there =
        Arc::new(json!({"metadata": {"name": "x", "uid": "c"}, "status": {"y": 1}, "data": {"password": "cA=="}}));
    fuzz("fuzz_compositions", &corpus, &words, |text| {
        let Ok(composition) = Composition::read("f.yaml", text) else { return };
        let related: BTreeMap<_, _> =
            composition.related().keys().map(|id| (id.clone(), vec![Arc::clone(&there)])).collect();
        for is_there in [false, true] {
            let child = |_: &Key| is_there.then(|| Arc::clone(&there));
            let view = View {
                parent: &parent,
                child: &child,
                related: &related,
                is_namespaced: &|of: &Type| of.kind != "Namespace",
            };
            let composed = composition.compose(&view, Effort::Full);
            if let Ok(Some(composed)) = &composed {
                assert!(composed.children.len() <= 1000);
                assert!(composed.children.iter().all(|child| !child.key.name.contains('/')), "a name goes into a URL");
            }
            let again = composition.compose(&view, Effort::Full);
            assert_eq!(format!("{composed:?}"), format!("{again:?}"), "the same of the same");
        }
    });
}

/// Leases of a kind and of a replica, and ConfigMaps that are locks: any client that may write them can write anything.
#[test]
fn fuzz_lease_records() {
    let metadata = |name: &str, annotations: Value| {
        json!({
            "name": name, "namespace": "ns", "uid": "u-1", "resourceVersion": "17", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"leasehold.dev/role": "shard", "leasehold.dev/instance": "leasehold"}, "annotations": annotations,
        })
    };
    let spec = json!({
        "holderIdentity": "a_1", "leaseDurationSeconds": 15, "leaseTransitions": 3,
        "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:01.000000Z",
    });
    let shard = metadata(
        "widget.example.com",
        json!({
            "leasehold.dev/kind": "Widget.example.com,Gadget.example.com", "leasehold.dev/weight": "3",
            "leasehold.dev/holder-pod": "p", "leasehold.dev/successor": "b_2", "leasehold.dev/hand-over": "b",
        }),
    );
    let profile =
        json!({"state": "active", "generation": "g", "capacity": 1, "kinds": "x", "prepared": {"a": "b"}}).to_string();
    let mut replica = metadata("a_1", json!({"leasehold.dev/profile": profile}));
    replica["labels"]["leasehold.dev/role"] = json!("replica");
    let lock = metadata("lock", json!({"control-plane.alpha.kubernetes.io/leader": spec.to_string()}));
    let corpus: Vec<_> = [
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": shard, "spec": spec}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": replica, "spec": spec}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": lock}),
    ]
    .iter()
    .map(|object| serde_json::to_string_pretty(object).unwrap())
    .collect();
    let words = [
        "2147483647",
        "-2147483648",
        "\"\"",
        "null",
        "holderIdentity",
        "leasehold.dev/role",
        "replica",
        "shard",
        "{\\\"state\\\":",
    ];
    fuzz("fuzz_lease_records", &corpus, &words, |text| {
        if let Ok(lease) = serde_json::from_str::<record::Lease>(text)
            && let Some(record) = record::record(&lease)
        {
            bounded(&record);
        }
        if let Ok(config_map) = serde_json::from_str(text)
            && let Ok(Some(record)) = config_map::record(&config_map)
        {
            bounded(&record);
        }
    });
}

fn bounded(record: &leasehold::protocol::lease::Record) {
    assert!(record.duration.is_none_or(|it| !it.is_zero() && it <= LONGEST_LEASE), "{record:?}");
    assert!(record.transitions >= 0 && record.holder.as_deref() != Some(""), "{record:?}");
    assert!(record.weight.is_none_or(|it| (1..=WEIGHT_MOST).contains(&it)), "{record:?}");
    for text in [&record.holder, &record.holder_pod, &record.successor, &record.wanted].into_iter().flatten() {
        assert!(text.len() <= 512, "{record:?}");
    }
    assert!(record.kinds.iter().all(|kind| kind.len() <= 512), "{record:?}");
}

struct Changes;

impl Webhook for Changes {
    fn default<'a>(
        &'a self,
        _: &'a Asked<'_>,
        object: &'a mut Value,
    ) -> futures::future::BoxFuture<'a, Result<(), Denied>> {
        object["spec"]["defaulted"] = json!(true);
        Box::pin(async { Ok(()) })
    }

    fn convert(&self, object: Value, _: &str, _: &str) -> Result<Value, String> {
        Ok(object)
    }

    fn converts(&self) -> bool {
        true
    }
}

#[test]
fn fuzz_webhook_requests() {
    let object = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x", "namespace": "ns", "uid": "u"}, "spec": {"size": 3},
    });
    let kind = json!({"group": "example.com", "version": "v1", "kind": "Widget"});
    let resource = json!({"group": "example.com", "version": "v1", "resource": "widgets"});
    let admission = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "r-1", "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource, "name": "x", "namespace": "ns",
        "operation": "UPDATE", "userInfo": {"username": "ann", "groups": ["dev"], "extra": {"a": ["b"]}}, "object": object,
        "oldObject": object, "dryRun": false, "options": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"},
    }});
    let conversion = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request": {
        "uid": "r-2", "desiredAPIVersion": "example.com/v2", "objects": [object, object],
    }});
    let corpus = [admission, conversion].map(|review| serde_json::to_string_pretty(&review).unwrap());
    let words = [
        "\"DELETE\"",
        "\"CONNECT\"",
        "null",
        "\"example.com\"",
        "\"AdmissionReview\"",
        "\"objects\"",
        "[{}]",
        "\"r-1\"",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let never = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
    });
    let client = runtime.block_on(async { kube::Client::new(never, "ns") });
    let hook: Arc<dyn Webhook> = Arc::new(Changes);
    let hooks = BTreeMap::from([(("example.com".to_owned(), "Widget".to_owned()), hook)]);
    let reviews = Reviews::new(hooks, client, Duration::from_secs(3));
    fuzz("fuzz_webhook_requests", &corpus, &words, |text| {
        for route in [Route::Validate, Route::Mutate, Route::Convert] {
            let answer = runtime.block_on(reviews.answer(route, text.as_bytes()));
            let said: Result<Value, _> = serde_json::from_slice(&answer.body);
            if answer.status.is_success() {
                let said = said.expect("an answer is JSON");
                let asked: Value = serde_json::from_str(text).expect("only JSON is a review");
                assert_eq!(said["response"]["uid"], asked["request"]["uid"], "the answer is to the request");
            } else {
                assert_eq!(answer.outcome, "invalid", "{}", answer.status);
            }
        }
    });
}
