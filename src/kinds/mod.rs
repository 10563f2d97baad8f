//! The built-in kinds.

pub mod actions;
pub mod compose;
pub mod expiry;
pub mod guard;
#[cfg(test)]
mod maxima;
pub mod openapi;
pub mod propagation;
pub mod reach;
pub mod reaching;
pub mod schedule;
mod schema;

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, ServiceReference, WebhookClientConfig, WebhookConversion,
};
use kube::{
    Client, CustomResourceExt, Resource,
    core::crd::{MergeError, merge_crds},
};

use self::{
    actions::Acts,
    compose::{ComposedAdmission, Composition},
    expiry::{Expiry, ExpiryPolicy},
    guard::Guard,
    propagation::{Propagate, Propagation},
    reach::Reach,
    reaching::Reaching,
    schedule::{ScaleSchedule, ScaleScheduleV1Beta1, Schedule, ScheduleConversion},
};
use crate::{
    config::{Escalation, Kind},
    reconcile::{
        children::Type,
        stages::{Staged, Stages},
    },
    replica::term::{Access, Reconciler},
    webhooks::{Of, Webhook, ask::Asker},
};

/// The YAML of a page in `docs/`, block by block.
#[cfg(test)]
pub(crate) fn examples(page: &str) -> Vec<serde_json::Value> {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(|block| serde_yaml::from_str(block).unwrap_or_else(|error| panic!("{error}: {block}"))).collect()
}

/// A reconciler compiled into the binary, and the one kind that it reconciles.
#[derive(Clone)]
pub struct Builtin {
    /// The name that a configuration calls it by.
    pub name: &'static str,
    /// API group of its kind.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// The reconciler.
    pub reconciler: Arc<dyn Reconciler>,
}

impl Builtin {
    fn of<S: Stages>(name: &'static str, stages: S) -> Self {
        let (group, kind) = (S::Object::group(&()).into_owned(), S::Object::kind(&()).into_owned());
        Self { name, group, kind, reconciler: Arc::new(Staged::new(stages)) }
    }
}

/// All built-in reconcilers, as far as objects reach where no webhooks are served.
pub fn builtin() -> Vec<Builtin> {
    builtin_within(|_| Reaching::default())
}

/// All built-in reconcilers, each with how far the objects of its kind reach; that is asked for by its name.
pub fn builtin_within(reach: impl Fn(&'static str) -> Reaching) -> Vec<Builtin> {
    vec![
        Builtin::of("propagation", Propagate::within(reach("propagation"))),
        Builtin::of("expiry", Expiry::within(reach("expiry"))),
        Builtin::of("scale-schedule", Schedule::within(reach("scale-schedule"))),
    ]
}

/// The webhooks that built-in kinds have of their own.
pub fn webhooks() -> Vec<(Of, Arc<dyn Webhook>)> {
    let schedule = ScaleSchedule::crd().spec;
    vec![(Of::new(schedule.group, schedule.names.kind, schedule.names.plural), Arc::new(ScheduleConversion))]
}

/// What the authors of a kind's objects are asked about, if they are.
pub fn acts(kind: &Kind, composition: Option<&Arc<Composition>>) -> Option<Acts> {
    let composed = composition.map(|composition| Acts::Composed(Arc::clone(composition)));
    composed.or_else(|| Acts::of_builtin(&kind.reconciler)).filter(|_| kind.escalation == Escalation::Check)
}

/// The webhook of a kind, if it has one: what it says of its objects itself (`own`, and the rules of its composition), and
/// whether their authors may do what these have it do. `client` is what it looks things up with, if that is not the replica's own.
pub fn webhook(
    kind: &Kind,
    composition: Option<&Arc<Composition>>,
    own: Option<Arc<dyn Webhook>>,
    reach: Reach,
    asker: &Asker,
    client: Option<Client>,
) -> Option<(Of, Arc<dyn Webhook>)> {
    let of = Of::new(kind.group.clone(), kind.kind.clone(), Type::of_kind(kind).plural);
    let mut hook = own;
    if let Some(composition) = composition.filter(|composition| composition.admits()) {
        hook = Some(Arc::new(ComposedAdmission::new(Arc::clone(composition), client)));
    }
    if let Some(acts) = acts(kind, composition) {
        hook = Some(Arc::new(Guard::new(kind.name(), acts, reach, asker.clone(), hook)));
    }
    Some((of, hook?))
}

/// The definitions of the built-in kinds. With the namespace and name of the Service of webhooks, those convert, and every
/// version is served. Without, only the version that is stored is: the API server itself changes nothing but the name of
/// a version, and drops what the other one does not know.
///
/// # Errors
/// If two versions of a kind do not fit together.
pub fn crds(service: Option<(&str, &str)>) -> Result<Vec<CustomResourceDefinition>, MergeError> {
    let versions = vec![ScaleSchedule::crd(), ScaleScheduleV1Beta1::crd()];
    let mut schedule = merge_crds(versions, ScaleSchedule::version(&()).as_ref())?;
    match service {
        None => schedule.spec.versions.iter_mut().for_each(|version| version.served = version.storage),
        Some((namespace, name)) => {
            let service = ServiceReference {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                path: Some("/convert".to_owned()),
                port: Some(443),
            };
            let client_config = WebhookClientConfig { service: Some(service), ..WebhookClientConfig::default() };
            let review_versions = vec!["v1".to_owned()];
            schedule.spec.conversion = Some(CustomResourceConversion {
                strategy: "Webhook".to_owned(),
                webhook: Some(WebhookConversion {
                    client_config: Some(client_config),
                    conversion_review_versions: review_versions,
                }),
            });
        }
    }
    Ok(vec![Propagation::crd(), ExpiryPolicy::crd(), schedule])
}

/// A definition as YAML, as it is committed in `crds/`.
///
/// # Errors
/// If it cannot be written as YAML.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::ser::Error> {
    Ok(format!("# Generated by `leasehold crds`; do not edit.\n{}", serde_yaml::to_string(crd)?))
}

/// The name of a definition's file in `crds/`.
pub fn crd_file(crd: &CustomResourceDefinition) -> String {
    format!("{}.{}.yaml", crd.spec.names.plural, crd.spec.group)
}

/// One entry a verb.
fn access(group: &'static str, resource: &'static str, verbs: &[&'static str]) -> Vec<Access> {
    verbs.iter().map(|verb| Access::new(verb, group, resource)).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fs, path::Path, sync::Mutex, time::Duration};

    use futures::future::join;
    use http::Method;
    use serde_json::{Value, json};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        reconcile::fake::{self, Fake},
        webhooks::configuration::Coverages,
    };

    #[test]
    fn committed_crds_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let mut files: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.retain(|file| file != "webhooks");
        files.sort();
        let mut expected: Vec<_> = crds(None).unwrap().iter().map(crd_file).collect();
        expected.sort();
        // What differs with webhooks lies in a folder of its own, which `kubectl apply -f crds/` leaves out.
        let with = crds(Some(("leasehold-system", "leasehold-webhooks"))).unwrap();
        let with =
            with.into_iter().filter(|crd| crd.spec.conversion.is_some()).map(|crd| (folder.join("webhooks"), crd));
        for (folder, crd) in crds(None).unwrap().into_iter().map(|crd| (folder.clone(), crd)).chain(with) {
            let (file, yaml) = (folder.join(crd_file(&crd)), crd_yaml(&crd).unwrap());
            if env::var_os("UPDATE").is_some() {
                fs::write(&file, &yaml).unwrap();
            }
            let committed = fs::read_to_string(&file).unwrap_or_default();
            assert!(committed == yaml, "{} is out of date: run UPDATE=1 cargo test", file.display());
        }
        if env::var_os("UPDATE").is_none() {
            // A composed kind is known by its file; no type says what it is.
            files.retain(|file| !["tenants", "webapps"].iter().any(|plural| file.starts_with(plural)));
            assert_eq!(files, expected, "crds/ holds these files and no others");
        }
    }

    /// A field that is misspelt, or a comma too many in a description, is dropped by the API server and refused later.
    #[test]
    fn a_definition_says_nothing_that_is_not_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        for file in [folder.clone(), folder.join("webhooks")].iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
            let path = file.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let written: Value = serde_yaml::from_str(&text).unwrap();
            let crd: CustomResourceDefinition = serde_yaml::from_str(&text).unwrap();
            let understood = fields(&serde_json::to_value(&crd).unwrap());
            let lost: Vec<_> = fields(&written).into_iter().filter(|field| !understood.contains(field)).collect();
            assert!(lost.is_empty(), "{}: {lost:?}", path.display());
        }
    }

    fn fields(value: &Value) -> BTreeSet<String> {
        let below = |name: &str, value: &Value| {
            let inner = fields(value).into_iter().map(|path| format!("{name}.{path}"));
            inner.chain([name.to_owned()]).collect::<Vec<_>>()
        };
        match value {
            Value::Object(all) => all.iter().flat_map(|(name, value)| below(name, value)).collect(),
            Value::Array(all) => {
                all.iter().enumerate().flat_map(|(number, value)| below(&number.to_string(), value)).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    #[test]
    fn builtin_names_are_distinct_and_so_are_their_kinds() {
        let mut names: Vec<_> = builtin().iter().map(|builtin| builtin.name).collect();
        names.dedup();
        assert_eq!(names, ["propagation", "expiry", "scale-schedule"]);
        let kinds: Vec<_> = builtin().into_iter().map(|builtin| (builtin.group, builtin.kind)).collect();
        let defined: Vec<_> =
            crds(None).unwrap().into_iter().map(|crd| (crd.spec.group, crd.spec.names.kind)).collect();
        assert_eq!(kinds, defined);
    }

    /// A policy of Secrets, which is out of reach unless its author is asked about.
    #[tokio::test(start_paused = true)]
    async fn an_object_waits_until_it_is_known_whether_authors_are_asked_about_and_is_looked_at_when_that_changes() {
        let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nkinds:\n\
                    - {apiVersion: leasehold.dev/v1alpha1, kind: ExpiryPolicy, reconciler: {builtin: expiry}}\n";
        let config = crate::config::load("f.yaml", text, &["expiry"]).unwrap();
        let coverages = Coverages::default();
        let reaching = Reaching::of(&config.kinds[0], &config, Some(&coverages), "replicas");
        let builtin = builtin_within(|_| reaching.clone()).into_iter().find(|it| it.name == "expiry").unwrap();
        let fake = Fake::new(1, |asked| {
            let metadata = json!({"name": "x", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "1"});
            let spec = json!({"target": {"apiVersion": "v1", "kind": "Secret"}, "ttl": "1h"});
            let items = json!([{"metadata": metadata, "spec": spec}]);
            match asked.method {
                Method::GET if asked.uri.contains("watch=true") => None,
                Method::GET if asked.uri.contains("/expirypolicies") => {
                    Some((200, json!({"metadata": {"resourceVersion": "1"}, "items": items})))
                }
                Method::GET => fake::refusal(500, "InternalError"),
                _ => Some((200, asked.body.clone())),
            }
        });
        let asked = |what: &str| fake.asked().iter().filter(|asked| asked.uri.contains(what)).count();
        let of_kind = |judged| coverages.read([("ExpiryPolicy.leasehold.dev".to_owned(), judged)].into());
        let test = async {
            sleep(Duration::from_secs(10)).await;
            assert_eq!((asked("/x/status"), asked("/api/v1")), (0, 0), "it waits: {:?}", fake.asked());
            of_kind(Err("a gap".to_owned()));
            sleep(Duration::from_secs(1)).await;
            let told = fake.asked().into_iter().find(|asked| asked.uri.contains("/x/status")).expect("it is told");
            let told = told.body["status"].to_string();
            assert!(told.contains("OutOfReach") && told.contains("does not ask the webhooks"), "{told}");
            assert_eq!(asked("/api/v1"), 0, "nothing is done");
            of_kind(Ok(()));
            sleep(Duration::from_secs(1)).await;
            assert!(asked("/api/v1") > 0, "it is carried out: {:?}", fake.asked());
        };
        tokio::select! {
            ended = builtin.reconciler.run(fake.term.clone()) => panic!("{ended:?}"),
            () = test => {}
        }
    }

    const ENOUGH: Duration = Duration::from_secs(100);

    /// One object of each built-in kind, with an empty spec; of others there are none.
    fn list(path: &str) -> Value {
        let of_ours = path.starts_with("/apis/leasehold.dev/");
        let metadata = json!({"name": "x", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "1"});
        let spec = match path.rsplit('/').next().unwrap() {
            "propagations" => json!({"source": {"kind": "ConfigMap", "namespace": "ns", "name": "x"}, "targets": {}}),
            "scaleschedules" => {
                json!({"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}, "windows": []})
            }
            _ => json!({"target": {"apiVersion": "v1", "kind": "ConfigMap"}}),
        };
        let items: Vec<_> = of_ours.then(|| json!({"metadata": metadata, "spec": spec})).into_iter().collect();
        fake::list(items)
    }

    /// A standby of that kind, to which the list at one path never comes: whether it was prepared, and what it listed.
    async fn stands_by(builtin: &Builtin, held: Option<String>) -> (bool, BTreeSet<String>) {
        let listed = Arc::new(Mutex::new(BTreeSet::new()));
        let fake = {
            let listed = Arc::clone(&listed);
            Fake::new(1, move |asked| {
                let path = asked.uri.split('?').next().unwrap().to_owned();
                if asked.uri.contains("watch=true") {
                    return None;
                }
                listed.lock().unwrap().insert(path.clone());
                (held.as_ref() != Some(&path)).then(|| (200, list(&path)))
            })
        };
        let (standby, promotion) = fake.standby();
        let work = builtin.reconciler.stand_by(standby).expect("it can stand by");
        timeout(ENOUGH, work).await.expect_err("it waits for its term");
        assert!(fake.asked().iter().all(|asked| asked.method == Method::GET), "{:?}", fake.asked());
        let listed = listed.lock().unwrap().clone();
        (promotion.filled.is_cancelled(), listed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_only_reads_and_is_prepared_when_every_list_is_complete() {
        for builtin in builtin() {
            let (prepared, listed) = stands_by(&builtin, None).await;
            assert!(prepared, "{}", builtin.name);
            let expected = if builtin.name == "propagation" { 4 } else { 1 };
            assert_eq!(listed.len(), expected, "{listed:?}");
            for path in listed {
                assert!(!stands_by(&builtin, Some(path.clone())).await.0, "{} without {path}", builtin.name);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_begins_its_work_the_same_with_a_standby_and_without() {
        for builtin in builtin() {
            for warm in [true, false] {
                let fake = Fake::new(1, |asked| {
                    let path = asked.uri.split('?').next().unwrap();
                    match asked.method {
                        Method::GET => (!asked.uri.contains("watch=true")).then(|| (200, list(path))),
                        _ => Some((200, asked.body.clone())),
                    }
                });
                let (standby, promotion) = fake.standby();
                let work = match warm {
                    true => builtin.reconciler.stand_by(standby).unwrap(),
                    false => {
                        drop(standby);
                        builtin.reconciler.run(fake.term.clone())
                    }
                };
                let drain = async {
                    sleep(ENOUGH / 2).await;
                    assert_eq!(promotion.term.send(fake.term.clone()).is_ok(), warm);
                    sleep(ENOUGH / 2).await;
                    fake.drain.cancel();
                };
                let (ended, ()) = timeout(2 * ENOUGH, join(work, drain)).await.expect("it ends");
                ended.unwrap();
                let put = |status: &str| fake.asked().iter().any(|asked| asked.uri.contains(status));
                assert!(put("/x/status"), "{}: the bad spec is told: {:?}", builtin.name, fake.asked());
            }
        }
    }
}
