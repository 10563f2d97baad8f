//! Webhooks on the shipped installation with its overlay: what is refused, filled in and converted, and that no request is
//! refused or left unanswered while replicas and certificates are replaced. On a cluster of its own, because the
//! configurations stand in the way of every Tenant of a cluster.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use leasehold::webhooks::certificate;
use leasehold_cluster::{Cluster, Kubelet, KubeletOptions, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    rails::{Attack, as_account},
    shipped::NAMESPACE,
    stage::{PATIENCE, ensure, tell},
};

const NAME: &str = "leasehold-webhooks";
/// A change of certificates: the API servers get five seconds to see the new authority.
const ROTATION: Duration = Duration::from_secs(120);

pub struct Stage {
    pub cluster: Cluster,
    _kubelet: Kubelet,
    client: Client,
}

impl Stage {
    pub async fn set() -> Result<Self> {
        Self::set_without(&[]).await
    }

    /// Without these objects of the overlay, which are gone before a replica leads.
    pub async fn set_without(objects: &[&str]) -> Result<Self> {
        let cluster = Cluster::start().await?;
        let images = [("leasehold".to_owned(), PathBuf::from(env!("CARGO_BIN_EXE_leasehold")))].into();
        let kubelet = cluster.start_kubelet(KubeletOptions { nodes: 3, images, ..KubeletOptions::default() }).await?;
        let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
        cluster.kubectl(&["apply", "-f", &folder("crds"), "-f", &folder("crds/webhooks")]).await?;
        cluster.kubectl(&["apply", "-k", &folder("overlays/webhooks")]).await?;
        if !objects.is_empty() {
            cluster.kubectl(&[&["delete"], objects].concat()).await?;
        }
        let client = cluster.client()?;
        let stage = Self { cluster, _kubelet: kubelet, client };
        stage.rolled_out().await?;
        Ok(stage)
    }

    async fn rolled_out(&self) -> Result<()> {
        let status = ["-n", NAMESPACE, "rollout", "status", "deployment/leasehold", "--timeout=240s"];
        self.cluster.kubectl(&status).await.map(drop)
    }

    pub fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn refused(&self, name: &str, spec: &str) -> String {
        let tenant =
            format!("{{apiVersion: leasehold.dev/v1alpha1, kind: Tenant, metadata: {{name: {name}}}, spec: {spec}}}");
        self.cluster.apply(&tenant).await.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    /// Whether one authority is trusted everywhere, and it is that of what is stored.
    async fn settled(&self) -> Result<Option<String>> {
        let data = self.secrets().get(NAME).await?.data.unwrap_or_default();
        let text = |name: &str| data.get(name).map(|text| String::from_utf8_lossy(&text.0).into_owned());
        let (Some(authority), Some(chain)) = (text("ca.crt"), text("tls.crt")) else { return Ok(None) };
        let bundle = json!(ByteString(authority.clone().into_bytes()));
        let admission = "admissionregistration.k8s.io/v1";
        for (version, kind, name, at) in [
            (admission, "ValidatingWebhookConfiguration", NAME, "/webhooks/0/clientConfig/caBundle"),
            (admission, "ValidatingWebhookConfiguration", NAME, "/webhooks/1/clientConfig/caBundle"),
            (admission, "MutatingWebhookConfiguration", NAME, "/webhooks/0/clientConfig/caBundle"),
            (
                "apiextensions.k8s.io/v1",
                "CustomResourceDefinition",
                "scaleschedules.leasehold.dev",
                "/spec/conversion/webhook/clientConfig/caBundle",
            ),
        ] {
            if self.api(version, kind, None).get(name).await?.data.pointer(at) != Some(&bundle) {
                return Ok(None);
            }
        }
        let is_settled = certificate::split(&authority).len() == 1 && !data.contains_key("next.crt");
        Ok(is_settled.then_some(chain))
    }

    pub async fn settles(&self, what: &str, unlike: Option<&str>) -> Result<String> {
        let is_new = |chain: &Option<String>| chain.is_some() && chain.as_deref() != unlike;
        eventually(what, ROTATION, || self.settled(), is_new).await?.context("it has settled")
    }

    async fn spoil(&self, data: Value) -> Result<()> {
        self.secrets().patch(NAME, &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await?;
        Ok(())
    }

    /// An endpoint of every running replica.
    pub async fn all(&self, path: &str) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let mut answers = Vec::new();
        for pod in pods.list(&ListParams::default()).await? {
            let Some(ip) = pod.status.and_then(|status| status.pod_ip) else { continue };
            let Ok(mut stream) = TcpStream::connect((ip.as_str(), 8080)).await else { continue };
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {ip}\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            answers.push(answer);
        }
        Ok(answers)
    }
}

/// The role lets the replicas' account update what names the webhooks, and a policy holds it to the CA.
async fn the_ca_is_all_that_a_token_of_ours_changes(stage: &Stage) -> Result<()> {
    let client = as_account(&stage.cluster, NAMESPACE, "leasehold").await?;
    let admission = "admissionregistration.k8s.io/v1";
    let crd = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "scaleschedules.leasehold.dev");
    for ((version, kind, name), ca, attacks) in [
        (
            (admission, "ValidatingWebhookConfiguration", NAME),
            "/webhooks/0/clientConfig/caBundle",
            vec![
                ("/webhooks/1", json!(null)),
                ("/webhooks/1/failurePolicy", json!("Ignore")),
                ("/webhooks/0/rules/0/operations", json!(["CREATE"])),
                ("/webhooks/0/matchConditions/0/expression", json!("false")),
                ("/webhooks/0/objectSelector", json!({"matchLabels": {"checked": "true"}})),
                ("/webhooks/0/clientConfig/service/namespace", json!("elsewhere")),
            ],
        ),
        (
            (admission, "MutatingWebhookConfiguration", NAME),
            "/webhooks/0/clientConfig/caBundle",
            vec![
                ("/webhooks/0/clientConfig/service/name", json!("other")),
                ("/webhooks/0/rules/0/resources", json!(["*"])),
            ],
        ),
        (
            crd,
            "/spec/conversion/webhook/clientConfig/caBundle",
            vec![
                ("/spec/conversion/webhook/clientConfig/service/namespace", json!("elsewhere")),
                ("/spec/versions/0/schema", json!({"openAPIV3Schema": {"type": "object"}})),
                ("/spec/names/shortNames", json!(["secret"])),
            ],
        ),
    ] {
        let stored = stage.api(version, kind, None).get(name).await?;
        let plural = format!("{}s", kind.to_lowercase());
        let with = |at: &str, value: Value| {
            let mut object = json!(stored);
            match (at.rsplit_once('/'), value) {
                (Some((list, index)), Value::Null) => {
                    let list = object.pointer_mut(list).and_then(Value::as_array_mut);
                    list.map(|list| list.remove(index.parse().unwrap_or_default()));
                }
                (Some((parent, field)), value) => {
                    object.pointer_mut(parent).into_iter().for_each(|parent| parent[field] = value.clone());
                }
                (None, _) => {}
            }
            Attack::new(format!("change {at} of the {kind}"), "PUT", format!("/apis/{version}/{plural}/{name}"), object)
        };
        let said = with(ca, json!(ByteString(b"other".to_vec()))).refused(&client).await;
        // Of a CRD the API server demands a certificate.
        let is_let =
            matches!(&said, Ok(None)) || said.as_ref().is_err_and(|error| format!("{error:#}").contains("caBundle"));
        ensure(is_let, || format!("the CA of the {kind}: {said:?}"))?;
        for (at, value) in attacks {
            let said = with(at, value).refused(&client).await?.unwrap_or_default();
            ensure(said.contains("it writes the caBundle, and changes nothing else"), || {
                format!("{kind} {at}: {said:?}")
            })?;
        }
    }
    Ok(())
}

/// Requests at a steady pace, each of which needs an answer of the mutating and of the validating webhook; and every tenth
/// one of the conversion.
struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<(Duration, Option<String>)>>,
}

/// A Tenant asks two webhooks, so that one is asked every 10 ms. `PACE` in milliseconds is for a machine that is busy
/// with something else: there a webhook cannot answer in the five seconds that it has.
fn pace() -> Duration {
    let given = std::env::var("PACE").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(given.unwrap_or(20))
}

impl Load {
    fn start(stage: &Stage) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tenants = stage.api("leasehold.dev/v1alpha1", "Tenant", None);
        let schedules = stage.api("leasehold.dev/v1beta1", "ScaleSchedule", Some("default"));
        let stopped = Arc::clone(&stop);
        #[expect(clippy::disallowed_methods, reason = "a test of requests that do not wait for each other")]
        let task = tokio::spawn(async move {
            let outcomes = Arc::new(Mutex::new(Vec::new()));
            let mut pace = tokio::time::interval(pace());
            let mut requests = JoinSet::new();
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                number += 1;
                let (tenants, schedules, outcomes) = (tenants.clone(), schedules.clone(), Arc::clone(&outcomes));
                requests.spawn(async move {
                    let began = clock();
                    let outcome = match number % 10 {
                        0 => schedules.get("named").await.map_err(|error| anyhow!(error)).and_then(|it| {
                            ensure(it.data["spec"]["windows"][0]["name"] == "night", || format!("{it:?}"))
                        }),
                        _ => asked(&tenants, number).await,
                    };
                    let outcome = (began.elapsed(), outcome.err().map(|error| format!("{number}: {error:#}")));
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                });
                while requests.try_join_next().is_some() {}
            }
            requests.join_all().await;
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *outcomes)
        });
        Self { stop, task }
    }

    /// Stops it: every request was answered as it should be.
    async fn all_answered(self, stage: &Stage, what: &str) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let outcomes = self.task.await?;
        let wrong: Vec<_> = outcomes.iter().filter_map(|(_, wrong)| wrong.clone()).collect();
        let mut took: Vec<_> = outcomes.iter().map(|(took, _)| *took).collect();
        took.sort();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
        tell(&format!(
            "{what}: {} requests, {} wrong; p50 {:?}, p99 {:?}, longest {:?}",
            took.len(),
            wrong.len(),
            at(0.5),
            at(0.99),
            took.last()
        ));
        if wrong.is_empty() {
            return Ok(());
        }
        let metrics = stage.all("/metrics").await?;
        let closed = metrics.iter().flat_map(|page| page.lines()).filter(|line| {
            ["leasehold_connections_closed_total{", "leasehold_requests_refused_total{"]
                .iter()
                .any(|it| line.starts_with(it))
        });
        let (closed, some) = (closed.collect::<Vec<_>>(), &wrong[..wrong.len().min(5)]);
        let log = std::fs::read_to_string(stage.cluster.directory().join("kube-apiserver.log"))?;
        let log: Vec<_> = log.lines().filter(|line| line.contains("failed calling webhook")).collect();
        let (failed, all) = (wrong.len(), took.len());
        bail!("{what}: {failed} of {all}: {some:#?}; closed and refused: {closed:#?}; the API server says: {log:#?}")
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a request takes")]
fn clock() -> Instant {
    Instant::now()
}

async fn asked(tenants: &Api<DynamicObject>, number: u64) -> Result<()> {
    let name = format!("load-{number}");
    let tenant: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": {},
    }))?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made = tenants.create(&dry, &tenant).await?;
    // A webhook that may be ignored was not.
    ensure(made.data["spec"]["labels"]["team"] == name.as_str(), || format!("{made:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_answer_through_rollouts_and_renewals() -> Result<()> {
    let stage = Stage::set().await?;
    let first = stage.settles("the first certificate is trusted", None).await?;
    tenants(&stage).await?;
    versions(&stage).await?;
    the_ca_is_all_that_a_token_of_ours_changes(&stage).await?;

    let load = Load::start(&stage);
    tokio::time::sleep(Duration::from_secs(5)).await;
    load.all_answered(&stage, "at rest").await?;
    for page in stage.all("/metrics").await? {
        let answers =
            page.lines().filter(|line| line.contains("webhook_duration_seconds_") && !line.contains("_bucket"));
        tell(&answers.collect::<Vec<_>>().join("\n"));
    }

    let load = Load::start(&stage);
    stage.cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment/leasehold"]).await?;
    stage.rolled_out().await?;
    // The last of the old ones still serves for its shutdown delay.
    let pods: Api<Pod> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let only_new = |pods: &kube::core::ObjectList<Pod>| pods.items.len() == 3;
    let all = ListParams::default();
    eventually("the old replicas have gone", PATIENCE, || pods.list(&all), only_new).await?;
    load.all_answered(&stage, "rolling restart").await?;

    // What is in the Secret is spoilt in each way, under load; what is served meanwhile is the last good one.
    let mut last = first;
    let other = ["other.default.svc".to_owned()];
    let make = |names: &[String], at: i64| {
        #[expect(clippy::disallowed_methods, reason = "a certificate of the time of this test")]
        let now = k8s_openapi::jiff::Timestamp::now();
        let then = now + k8s_openapi::jiff::SignedDuration::from_secs(at);
        certificate::make(names, Duration::from_secs(3600), then)
    };
    let foreign = make(&other, 0)?;
    let expired = make(&[format!("{NAME}.{NAMESPACE}.svc")], -7200)?;
    let text = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    let whole = |pair: &certificate::Pair| json!({"tls.crt": text(&pair.chain), "tls.key": text(&pair.key), "ca.crt": text(&pair.authority)});
    for (reason, data) in [
        ("Missing", json!({"tls.crt": null, "tls.key": null})),
        ("Foreign", whole(&foreign)),
        ("Expired", whole(&expired)),
        ("Unreadable", json!({"tls.key": text("this is no key")})),
    ] {
        let load = Load::start(&stage);
        stage.spoil(data).await?;
        last = stage.settles(&format!("{reason}: the certificate is replaced"), Some(&last)).await?;
        load.all_answered(&stage, &format!("renewal, {reason}")).await?;
        let made = format!("leasehold_webhook_certificates_made_total{{reason=\"{reason}\"}} 1");
        let metrics = stage.all("/metrics").await?;
        ensure(metrics.iter().any(|page| page.contains(&made)), || format!("no replica counts {made}"))?;
    }
    for page in stage.all("/shards").await? {
        let body = page.split_once("\r\n\r\n").context("an answer")?.1;
        let shards: Value = serde_json::from_str(body)?;
        ensure(shards["ready"] == true && shards["webhooks"]["problem"].is_null(), || shards.to_string())?;
        let is_shown = |shard: &Value| shard["lease"] == "certificate.leasehold-webhooks";
        ensure(shards["shards"].as_array().is_some_and(|all| all.iter().any(is_shown)), || shards.to_string())?;
    }
    Ok(())
}

async fn tenants(stage: &Stage) -> Result<()> {
    stage.cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: taken}}").await?;
    for (name, spec, says) in [
        ("taken", "{}", "metadata.name: there is a namespace taken already, and it is of no Tenant"),
        (
            "odd",
            "{labels: {pod-security.kubernetes.io/enforce: privileged}}",
            "spec.labels: labels of kubernetes.io, k8s.io and leasehold.dev are the platform's",
        ),
    ] {
        let refused = stage.refused(name, spec).await;
        ensure(refused.contains(says), || format!("{name} {spec}: {refused}"))?;
    }
    let refused = stage.refused("rose", "{quota: {pods: \"3\"}}").await;
    ensure(refused.is_empty(), || refused)?;
    let tenants = stage.api("leasehold.dev/v1alpha1", "Tenant", None);
    let rose = tenants.get("rose").await?;
    ensure(rose.data["spec"]["labels"]["team"] == "rose", || format!("{rose:?}"))?;
    let namespaces = stage.api("v1", "Namespace", None);
    let labelled = |namespace: &Option<DynamicObject>| {
        let labels = namespace.iter().flat_map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
        labels.collect::<BTreeMap<_, _>>().get("tenant.leasehold.dev/team").is_some_and(|team| team == "rose")
    };
    eventually("its namespace bears the label", PATIENCE, || namespaces.get_opt("rose"), labelled).await?;
    // An update is judged too, and a Tenant that is there can be deleted.
    let labels = json!({"spec": {"labels": {"leasehold.dev/x": "y"}}});
    let refused = tenants.patch("rose", &PatchParams::default(), &Patch::Merge(labels)).await;
    ensure(refused.is_err(), || "a label of the platform was taken by an update".to_owned())?;
    stage.cluster.kubectl(&["delete", "tenant", "rose"]).await?;
    Ok(())
}

/// What is written in one version is read in the other, and nothing of it is lost.
async fn versions(stage: &Stage) -> Result<()> {
    let second = json!({
        "apiVersion": "leasehold.dev/v1beta1", "kind": "ScaleSchedule", "metadata": {"name": "named", "namespace": "default"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "none"}, "timeZone": "Europe/Berlin",
            "windows": [
                {"name": "night", "days": ["Mon"], "start": "22:00", "end": "06:00", "replicas": 0},
                {"name": "day", "days": ["Tue"], "start": "12:00", "end": "13:00", "replicas": 2},
            ],
        },
    });
    stage.cluster.apply(&second.to_string()).await?;
    let read = |version: &str| stage.api(&format!("leasehold.dev/{version}"), "ScaleSchedule", Some("default"));
    let first = read("v1alpha1").get("named").await?;
    let spec = &first.data["spec"];
    ensure(spec["timezone"] == "Europe/Berlin" && spec["windows"][0]["from"] == "22:00", || format!("{first:?}"))?;
    ensure(spec["windows"][0].get("name").is_none(), || format!("{first:?}"))?;
    // A client of the first version changes what it knows, and the names stay.
    let suspended = Patch::Merge(json!({"spec": {"suspend": true}}));
    read("v1alpha1").patch("named", &PatchParams::default(), &suspended).await?;
    let now = read("v1beta1").get("named").await?;
    let mut expected = second["spec"].clone();
    expected["suspend"] = json!(true);
    ensure(now.data["spec"] == expected, || format!("{now:?}"))?;
    ensure(now.metadata.annotations.iter().flatten().all(|(key, _)| key != "leasehold.dev/window-names"), || {
        format!("{now:?}")
    })
}
