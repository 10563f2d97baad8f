//! Who is refused what, against an API server that is a function; and that no review, however odd, goes unanswered.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use k8s_openapi::api::authentication::v1::UserInfo;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::{
    kinds::{
        compose::{ComposedAdmission, Composition},
        reach::Authors,
        schedule::ScheduleConversion,
    },
    reconcile::fake::{Answer, Asked as Request, Fake, refusal as refused, resources},
    webhooks::{
        action::Place,
        review::{Reviews, Route},
    },
};

static WEB_APP: LazyLock<Arc<Composition>> = LazyLock::new(|| composition("webapp.yaml"));
static TENANT: LazyLock<Arc<Composition>> = LazyLock::new(|| composition("tenant.yaml"));

fn composition(file: &str) -> Arc<Composition> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
    Arc::new(Composition::read(file, &std::fs::read_to_string(path).unwrap()).unwrap())
}

/// Where webhooks are served: only the replicas' own namespace is out of reach.
fn reach() -> Reach {
    let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nkinds:\n\
                - {apiVersion: e.com/v1, kind: W, reconciler: {builtin: x}}\n";
    let config = crate::config::load("f.yaml", text, &["x"]).unwrap();
    Reach::of(&config.kinds[0], &config, Authors::Asked, "replicas")
}

/// The webhooks of the shipped kinds, as a replica has them, and the API server that they ask.
fn reviews(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Reviews, Fake) {
    let fake = Fake::new(1, answer);
    (serving(&fake), fake)
}

fn serving(fake: &Fake) -> Reviews {
    let asker = Asker::default();
    let guard = |kind: &str, acts, inner| -> Arc<dyn Webhook> {
        Arc::new(Guard::new(format!("{kind}.leasehold.dev"), acts, reach(), asker.clone(), inner))
    };
    let hooks: [(&str, Arc<dyn Webhook>); 5] = [
        ("Propagation", guard("Propagation", Acts::Propagation, None)),
        ("ExpiryPolicy", guard("ExpiryPolicy", Acts::Expiry, None)),
        ("ScaleSchedule", guard("ScaleSchedule", Acts::Schedule, Some(Arc::new(ScheduleConversion)))),
        ("WebApp", guard("WebApp", Acts::Composed(Arc::clone(&WEB_APP)), None)),
        ("Tenant", Arc::new(ComposedAdmission::new(Arc::clone(&TENANT), None))),
    ];
    let hooks: BTreeMap<_, _> =
        hooks.into_iter().map(|(kind, hook)| (("leasehold.dev".to_owned(), kind.to_owned()), hook)).collect();
    Reviews::new(hooks, fake.term.client(), Duration::from_secs(4))
}

/// Discovery of the types of these tests.
fn discovery(path: &str) -> Option<Value> {
    let kinds: &[(&str, &str)] = match path {
        "/api/v1" => &[("secrets", "Secret"), ("configmaps", "ConfigMap"), ("services", "Service")],
        "/apis/apps/v1" => &[("deployments", "Deployment")],
        "/apis/autoscaling/v2" => &[("horizontalpodautoscalers", "HorizontalPodAutoscaler")],
        "/apis/networking.k8s.io/v1" => &[("ingresses", "Ingress")],
        _ => return None,
    };
    let version = path.trim_start_matches("/apis/").trim_start_matches("/api/");
    Some(resources(version, kinds))
}

/// Answers discovery, and access reviews by what `allows` says of their spec.
fn answering(allows: impl Fn(&Value) -> bool) -> impl Fn(&Request) -> Answer {
    move |asked| {
        if asked.method == Method::GET {
            return discovery(&asked.uri).map_or_else(|| refused(404, "NotFound"), |list| Some((200, list)));
        }
        assert_eq!(asked.uri.split('?').next(), Some("/apis/authorization.k8s.io/v1/subjectaccessreviews"));
        let mut review = asked.body.clone();
        review["status"] = json!({"allowed": allows(&asked.body["spec"])});
        Some((201, review))
    }
}

fn request(kind: &str, spec: Value, old: Option<Value>) -> Value {
    let object = |spec: &Value| {
        json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": {"name": "o", "namespace": "shop", "uid": "u"},
        })
    };
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "name": "o", "namespace": "shop", "operation": if old.is_some() { "UPDATE" } else { "CREATE" },
            "userInfo": {"username": "jane", "uid": "7", "groups": ["team", "system:authenticated"], "extra": {"scopes": ["a"]}},
            "kind": {"group": "leasehold.dev", "version": "v1alpha1", "kind": kind},
            "resource": {"group": "leasehold.dev", "version": "v1alpha1", "resource": "x"},
            "object": object(&spec), "oldObject": old.as_ref().map(object), "dryRun": false, "options": null,
        },
    })
}

async fn said(reviews: &Reviews, request: &Value) -> Value {
    let answer = reviews.answer(Route::Validate, request.to_string().as_bytes()).await;
    let review: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(review["response"]["uid"], "u-1");
    review["response"].clone()
}

/// The access reviews that were asked, as `verb resource[/part] [name] @namespace`, each once.
fn asked(fake: &Fake) -> Vec<String> {
    let reviewed = fake.asked().into_iter().filter(|asked| asked.method == Method::POST);
    let mut all: Vec<_> = reviewed
        .map(|asked| {
            let attributes = &asked.body["spec"]["resourceAttributes"];
            let text = |field: &str| attributes[field].as_str().unwrap_or_default().to_owned();
            let part = if text("subresource").is_empty() { String::new() } else { format!("/{}", text("subresource")) };
            format!("{} {}{part} {}@{}", text("verb"), text("resource"), text("name"), text("namespace"))
        })
        .collect();
    all.sort();
    all
}

fn policy(kind: &str) -> Value {
    let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    json!({"target": {"apiVersion": version, "kind": kind}, "ttl": "1h"})
}

fn propagation(kind: &str, namespaces: &[&str]) -> Value {
    json!({"source": {"kind": kind, "namespace": "home", "name": "x"}, "targets": {"namespaces": namespaces}})
}

fn schedule() -> Value {
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    json!({"targetRef": target, "windows": [{"days": ["Mon"], "from": "08:00", "to": "09:00", "replicas": 0}]})
}

#[tokio::test]
async fn the_requesting_user_is_asked_about_with_all_that_is_known_of_them() {
    let (reviews, fake) = reviews(answering(|_| true));
    assert_eq!(said(&reviews, &request("ExpiryPolicy", policy("Secret"), None)).await["allowed"], true);
    assert_eq!(asked(&fake), ["delete secrets @shop", "list secrets @shop"]);
    for asked in fake.asked().iter().filter(|asked| asked.method == Method::POST) {
        let spec = &asked.body["spec"];
        assert_eq!((&spec["user"], &spec["uid"]), (&json!("jane"), &json!("7")));
        assert_eq!(spec["groups"], json!(["team", "system:authenticated"]));
        assert_eq!(spec["extra"], json!({"scopes": ["a"]}));
        assert_eq!(
            (&spec["resourceAttributes"]["group"], &spec["resourceAttributes"]["version"]),
            (&json!(""), &json!("v1"))
        );
    }
}

#[tokio::test]
async fn each_kind_refuses_what_its_author_may_not_do_and_names_it() {
    let only = |verb: &'static str, resource: &'static str| {
        move |spec: &Value| {
            spec["resourceAttributes"]["verb"] != verb || spec["resourceAttributes"]["resource"] != resource
        }
    };
    for (kind, spec, verb, resource, says) in [
        (
            "ExpiryPolicy",
            policy("Secret"),
            "delete",
            "secrets",
            "user jane may not delete secrets in namespace shop, which this",
        ),
        (
            "ExpiryPolicy",
            policy("Secret"),
            "list",
            "secrets",
            "user jane may not list secrets in namespace shop, which this",
        ),
        (
            "Propagation",
            propagation("Secret", &["kube-system"]),
            "get",
            "secrets",
            "may not get secrets x in namespace home",
        ),
        (
            "Propagation",
            propagation("Secret", &["kube-system"]),
            "patch",
            "secrets",
            "may not patch secrets in namespace kube-system",
        ),
        (
            "Propagation",
            propagation("Secret", &["kube-system"]),
            "create",
            "secrets",
            "may not create secrets in namespace kube-system",
        ),
        (
            "Propagation",
            propagation("Secret", &["kube-system"]),
            "delete",
            "secrets",
            "may not delete secrets in namespace kube-system",
        ),
        (
            "ScaleSchedule",
            schedule(),
            "patch",
            "deployments",
            "may not patch deployments/scale.apps web in namespace shop",
        ),
        ("ScaleSchedule", schedule(), "get", "deployments", "may not get deployments/scale.apps web in namespace shop"),
        (
            "WebApp",
            json!({"image": "x", "host": "a.b"}),
            "create",
            "ingresses",
            "may not create ingresses.networking.k8s.io in namespace shop",
        ),
    ] {
        let (reviews, _fake) = reviews(answering(only(verb, resource)));
        let response = said(&reviews, &request(kind, spec.clone(), None)).await;
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)), "{response}");
        assert!(
            message.contains(says) && message.contains("ask for a Role there with the rule {apiGroups: ["),
            "{message}"
        );
        assert!(message.contains(&format!("`escalation: Trust` for {kind}.leasehold.dev")), "{message}");
    }
    // Without an Ingress, none is asked about.
    let (reviews, fake) = reviews(answering(only("create", "ingresses")));
    assert_eq!(said(&reviews, &request("WebApp", json!({"image": "x"}), None)).await["allowed"], true);
    assert_eq!(asked(&fake).len(), 6, "{:?}", asked(&fake));
}

#[tokio::test]
async fn only_what_changes_what_is_done_is_asked_about() {
    let nothing = || reviews(|asked| panic!("{asked:?}"));
    for (kind, spec) in [
        ("ExpiryPolicy", policy("Secret")),
        ("Propagation", propagation("Secret", &["a"])),
        ("ScaleSchedule", schedule()),
    ] {
        let (reviews, fake) = nothing();
        let mut same = request(kind, spec.clone(), Some(spec.clone()));
        same["request"]["object"]["metadata"]["finalizers"] = json!(["leasehold.dev/x"]);
        same["request"]["object"]["metadata"]["labels"] = json!({"a": "b"});
        same["request"]["object"]["status"] = json!({"x": 1});
        assert_eq!(said(&reviews, &same).await["allowed"], true, "{kind}");
        let mut deletion = request(kind, spec.clone(), Some(spec));
        deletion["request"]["operation"] = json!("DELETE");
        assert_eq!(said(&reviews, &deletion).await["allowed"], true, "{kind}");
        deletion["request"]["object"] = json!(null);
        assert_eq!(said(&reviews, &deletion).await["allowed"], true, "{kind}");
        assert!(fake.asked().is_empty());
    }
    // Anything else of the spec is done by the one who changes it.
    let mut longer = policy("Secret");
    longer["ttl"] = json!("2h");
    let (reviews_, _fake) = reviews(answering(|_| false));
    assert_eq!(
        said(&reviews_, &request("ExpiryPolicy", longer.clone(), Some(policy("Secret")))).await["allowed"],
        false
    );
    // So is a change of one that is being deleted: a schedule restores what it saved to the target that it has then.
    let mut going = request("ExpiryPolicy", longer, Some(policy("Secret")));
    going["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(said(&reviews_, &going).await["allowed"], false);
    // Nothing of a WebApp but its spec makes a child, so a label asks nothing; and its image does.
    let app = |image: &str| json!({"image": image});
    let mut same = request("WebApp", app("x"), Some(app("x")));
    same["request"]["object"]["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(said(&reviews_, &same).await["allowed"], true);
    assert_eq!(said(&reviews_, &request("WebApp", app("y"), Some(app("x")))).await["allowed"], false);
}

/// A composition may go by labels: then to set one is what makes the child.
#[tokio::test]
async fn what_a_composition_sees_besides_the_spec_is_asked_about_when_it_makes_a_difference() {
    let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren:\n\
                - id: one\n  includeWhen: [\"${has(parent.metadata.labels) && 'on' in parent.metadata.labels}\"]\n  \
                template: {apiVersion: v1, kind: Secret, metadata: {name: a}}\n";
    let acts = Acts::Composed(Arc::new(Composition::read("x.yaml", text).unwrap()));
    let guard: Arc<dyn Webhook> =
        Arc::new(Guard::new("W.leasehold.dev".to_owned(), acts, reach(), Asker::default(), None));
    let fake = Fake::new(1, answering(|_| false));
    let hooks = BTreeMap::from([(("leasehold.dev".to_owned(), "W".to_owned()), guard)]);
    let reviews = Reviews::new(hooks, fake.term.client(), Duration::from_secs(4));
    let labelled = |new: Value, old: Value| {
        let mut request = request("W", json!({}), Some(json!({})));
        request["request"]["object"]["metadata"]["labels"] = new;
        request["request"]["oldObject"]["metadata"]["labels"] = old;
        request
    };
    let (on, off) = (json!({"on": ""}), json!({"other": ""}));
    for (new, old, allowed) in [(&off, &off, true), (&on, &off, false), (&on, &on, true), (&off, &on, true)] {
        let response = said(&reviews, &labelled(new.clone(), old.clone())).await;
        assert_eq!(response["allowed"], allowed, "{new} {old}: {response}");
    }
}

/// What is not answered allows nothing, and says why.
#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_refuses() {
    let discover = |asked: &Request| discovery(&asked.uri).map(|list| (200, list));
    let reviewed = |answer: fn(&Request) -> Answer| {
        reviews(move |asked| if asked.method == Method::GET { discover(asked) } else { answer(asked) })
    };
    for (reviews_, says) in [
        (reviewed(|_| None), "has not said within 3 s what the author of the request may do"),
        (reviewed(|_| refused(403, "Forbidden")), "grant its account `create` on subjectaccessreviews"),
        (reviewed(|_| refused(500, "InternalError")), "did not say what the author of the request may do"),
        (reviewed(|_| Some((201, json!({"nothing": 1})))), "the API server "),
        (reviewed(|asked| Some((201, asked.body.clone()))), "without a status"),
        (reviews(|_| None), "has not said within 3 s"),
        (reviews(|_| refused(500, "InternalError")), "did not say what it serves of v1"),
    ] {
        let response = said(&reviews_.0, &request("ExpiryPolicy", policy("Secret"), None)).await;
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(503)), "{response}");
        assert!(message.contains(says), "{says}: {message}");
    }
    // Neither does what cannot be judged.
    let allowed = || reviews(answering(|_| true));
    for (kind, spec, code, says) in [
        (
            "ExpiryPolicy",
            json!({"target": {"apiVersion": "e.com/v1", "kind": "Odd"}, "ttl": "1h"}),
            422,
            "does not serve e.com/v1 Odd",
        ),
        ("ExpiryPolicy", json!({"ttl": 7}), 422, "spec: "),
        ("Propagation", propagation("Secret", &["replicas"]), 422, "namespace of the replicas"),
        ("ScaleSchedule", json!({"targetRef": {}}), 422, "spec: "),
        ("WebApp", json!({"autoscale": 1, "host": {}}), 200, ""),
    ] {
        let response = said(&allowed().0, &request(kind, spec, None)).await;
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(says), "{says}: {response}");
        assert_eq!(response["allowed"], code == 200, "{response}");
    }
    let mut unnamed = request("ExpiryPolicy", policy("Secret"), None);
    unnamed["request"]["userInfo"] = json!({"groups": ["system:masters"]});
    let response = said(&allowed().0, &unnamed).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(503)), "{response}");
}

#[tokio::test(start_paused = true)]
async fn questions_are_asked_together_up_to_a_bound_and_none_twice() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let fake = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        Fake::slow(1, 2, move |asked| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                let everywhere = asked.body["spec"]["resourceAttributes"]["namespace"].is_null();
                answering(|_| !everywhere)(&asked)
            }
        })
    };
    let reviews = serving(&fake);
    let names: Vec<_> = (0..20).map(|it| format!("n{it}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let many = request("Propagation", propagation("Secret", &names), None);
    let answers = futures::future::join_all((0..6).map(|_| said(&reviews, &many))).await;
    assert!(answers.iter().all(|response| response["allowed"] == true), "{answers:?}");
    let most = most.load(Ordering::SeqCst);
    assert!((9..=16).contains(&most), "{most} at a time: a request has 8 of 16 places");
    // For all namespaces first, and for each as that is refused: 3 + 60, and the source.
    assert_eq!(asked(&fake).len(), 6 * 64);
    let (allowing, fake) = super::tests::reviews(answering(|_| true));
    assert_eq!(said(&allowing, &many).await["allowed"], true);
    assert_eq!(asked(&fake), ["create secrets @", "delete secrets @", "get secrets x@home", "patch secrets @"]);
}

/// Many types in many namespaces, all of which are asked about one by one: the last one is missed as well.
#[tokio::test]
async fn no_action_passes_for_allowed_because_others_were_refused() {
    let fake = Fake::new(
        1,
        answering(|spec| {
            let attributes = &spec["resourceAttributes"];
            !attributes["namespace"].is_null() && attributes["resource"] != "r39"
        }),
    );
    let action = |resource: usize, namespace: usize| Action {
        place: Place::Namespace(format!("n{namespace}")),
        group: String::new(),
        version: "v1".to_owned(),
        resource: format!("r{resource}"),
        subresource: None,
        name: None,
        verb: "create",
    };
    let actions = (0..40).flat_map(|resource| (0..9).map(move |namespace| action(resource, namespace))).collect();
    let user = UserInfo { username: Some("jane".to_owned()), ..UserInfo::default() };
    let missing = Asker::default().missing(&fake.term.client(), &user, actions).await.unwrap();
    assert_eq!(missing.len(), 9, "{missing:?}");
    assert!(missing.iter().all(|action| action.resource == "r39"));
}

#[tokio::test]
async fn a_thousand_namespaces_that_are_refused_are_told_shortly() {
    let (reviews, fake) = reviews(answering(|_| false));
    let names: Vec<_> = (0..1000).map(|it| format!("n{it}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let response = said(&reviews, &request("Propagation", propagation("Secret", &names), None)).await;
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.len() < 1000 && message.contains(" more, which"), "{message}");
    assert!(asked(&fake).len() < 100, "{}", asked(&fake).len());
}

/// JSON of any shape, of a few levels.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|it| serde_json::Number::from_f64(it).map_or(Value::Null, Value::Number)),
        "[-a-z0-9./*${}: ]{0,12}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,10}", inner, 0..4).prop_map(|it| json!(it)),
        ]
    })
}

/// A review that is right but for what stands at these places.
fn damaged(mut review: Value, damages: Vec<(prop::sample::Index, Option<Value>)>) -> Value {
    for (at, damage) in damages {
        let mut paths = Vec::new();
        places(&review, "", &mut paths);
        let path = at.get(&paths).clone();
        let Some((before, field)) = path.rsplit_once('/') else { continue };
        match (review.pointer_mut(before), damage) {
            (Some(Value::Object(fields)), None) => _ = fields.remove(field),
            (Some(Value::Object(fields)), Some(value)) => _ = fields.insert(field.to_owned(), value),
            (Some(Value::Array(items)), Some(value)) => items[0] = value,
            _ => {}
        }
    }
    review
}

fn places(value: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| places(value, &format!("{path}/{}", name.replace('/', "~1")), into));
        }
        Value::Array(items) => items.iter().take(1).for_each(|value| places(value, &format!("{path}/0"), into)),
        _ => {}
    }
}

fn admission() -> impl Strategy<Value = Value> {
    let shapes = [
        ("Propagation", propagation("Secret", &["a", "b"])),
        ("ExpiryPolicy", policy("Deployment")),
        ("ScaleSchedule", schedule()),
        (
            "WebApp",
            json!({"image": "x", "host": "a.b", "replicas": 2, "env": {"A": "b"}, "autoscale": {"min": 1, "max": 3, "cpu": 50}}),
        ),
        ("Tenant", json!({"owners": [{"kind": "User", "name": "u"}], "quota": {"pods": "3"}, "labels": {"a": "b"}})),
    ];
    let damage = (any::<prop::sample::Index>(), prop::option::of(any_json()));
    (prop::sample::select(shapes.to_vec()), any::<bool>(), prop::collection::vec(damage, 0..4)).prop_map(
        |((kind, spec), is_update, damages)| {
            damaged(request(kind, spec.clone(), is_update.then(|| json!({"x": 1}))), damages)
        },
    )
}

fn conversion() -> impl Strategy<Value = Value> {
    let object = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "ScaleSchedule", "metadata": {"name": "s"}, "spec": schedule()});
    let review = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "request": {"uid": "u-1", "desiredAPIVersion": "leasehold.dev/v1beta1", "objects": [object]},
    });
    let damage = (any::<prop::sample::Index>(), prop::option::of(any_json()));
    prop::collection::vec(damage, 0..4).prop_map(move |damages| damaged(review.clone(), damages))
}

fn answered(route: Route, body: &[u8]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        // An API server that allows some things, and has no namespaces to look up.
        let (reviews, _fake) = reviews(|asked| match asked.uri.as_str() {
            uri if uri.starts_with("/api/v1/namespaces/") => refused(404, "NotFound"),
            _ => answering(|spec| spec["resourceAttributes"]["verb"] != "delete")(asked),
        });
        let answer = reviews.answer(route, body).await;
        let review: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
        let kind = if route == Route::Convert { "ConversionReview" } else { "AdmissionReview" };
        prop_assert_eq!(&review["kind"], kind);
        let text = String::from_utf8_lossy(body);
        prop_assert!(answer.status == 200 || answer.status == 400, "{}: {}", answer.status, text);
        let response = &review["response"];
        let result = if route == Route::Convert { &response["result"] } else { &response["status"] };
        let succeeds =
            if route == Route::Convert { result["status"] == "Success" } else { response["allowed"] == true };
        let message = result["message"].as_str().unwrap_or_default();
        // A panic is answered as well, and would be a mistake of ours.
        prop_assert!(!message.contains("panicked"), "{}: {}", text, message);
        prop_assert!(succeeds || !message.is_empty(), "{}: {}", text, review);
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_admission_review_panics_or_goes_without_an_answer(review in admission()) {
        answered(Route::Validate, review.to_string().as_bytes())?;
        answered(Route::Mutate, review.to_string().as_bytes())?;
    }

    #[test]
    fn no_conversion_review_panics_or_goes_without_an_answer(review in conversion()) {
        answered(Route::Convert, review.to_string().as_bytes())?;
    }

    #[test]
    fn no_body_panics_or_goes_without_an_answer(any in any_json(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for route in [Route::Validate, Route::Mutate, Route::Convert] {
            answered(route, any.to_string().as_bytes())?;
            answered(route, &bytes)?;
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_answered(review in admission(), at in any::<prop::sample::Index>()) {
        let text = review.to_string().into_bytes();
        answered(Route::Validate, &text[..at.index(text.len())])?;
    }
}
