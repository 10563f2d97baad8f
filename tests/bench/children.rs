//! What composed kinds cost: ten of them with five hundred objects each, one ConfigMap and a status an object, on three
//! replicas and on one; beside it the same job written with controller-runtime, one process under one lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{api::core::v1::ConfigMap, jiff::Timestamp};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{AuditEvent, cpu, eventually};
use serde_json::{Value, json};

use crate::{
    field::{Field, GROUP, anonymous, now, proportional, resident},
    record::millis,
    report::{Report, say},
};

const TITLE: &str = "10 composed kinds, one ConfigMap and a status an object";
const KINDS: usize = 10;
/// Objects of each kind, at first and in the end.
const FEW: usize = 50;
const MANY: usize = 500;
/// Changes a second, and how many, each of another object.
type Load = (u64, usize);
const BUSY: Load = (100, KINDS * FEW);
/// One is over before the next comes.
const UNDISTURBED: Load = (10, 200);
/// How often each of [`By::ALL`] is measured, in turn.
const BESIDE: usize = 3;
/// For so long no kind changes hands before something is measured: longer than replicas must be the same to even out.
const QUIET: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(300);

/// Who does the job.
#[derive(Clone, Copy)]
struct Crew {
    system: &'static str,
    replicas: usize,
    is_ours: bool,
}

const CREWS: [Crew; 3] = [
    Crew { system: "leasehold", replicas: 3, is_ours: true },
    Crew { system: "one", replicas: 1, is_ours: true },
    Crew { system: "c-runtime", replicas: 1, is_ours: false },
];

impl Crew {
    /// Whether it has one kind more, of one large object. Of three replicas another one could have it.
    const fn has_large(self) -> bool {
        self.is_ours && self.replicas == 1
    }

    fn kinds(self) -> usize {
        match (self.is_ours, self.has_large()) {
            (false, _) => 1,
            (true, large) => KINDS + usize::from(large),
        }
    }
}

/// Who composes the large object. The API server is asked for the same by the benchmark as by the replica.
#[derive(Clone, Copy, PartialEq)]
enum By {
    None,
    Benchmark,
    Replica,
}

impl By {
    const ALL: [Self; 3] = [Self::None, Self::Benchmark, Self::Replica];

    const fn title(self) -> &'static str {
        match self {
            Self::None => "the same beside a list of 10,000 that changes: p99",
            Self::Benchmark => "the same beside one that the benchmark composes: p99",
            Self::Replica => "the same beside one that the replica composes: p99",
        }
    }

    /// The kind of the object. The replica has one of them.
    const fn kind(self) -> &'static str {
        match self {
            Self::None | Self::Benchmark => "ItemOther",
            Self::Replica => "ItemLarge",
        }
    }
}

/// What was measured once: what it is, its unit, its value.
type Figure = (&'static str, &'static str, f64);

/// Builds the peer, which takes minutes the first time; Go keeps what it built.
///
/// # Errors
/// When Go is missing or the build fails.
pub(crate) fn build_peer() -> Result<PathBuf> {
    say("building the controller-runtime peer");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/controller-runtime");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("controller-runtime-peer");
    let built = Command::new("go")
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .status()
        .context("failed to run go")?;
    ensure!(built.success(), "the controller-runtime peer was not built");
    Ok(program)
}

/// Measures each crew, so many times in turn: objects that are there before it starts, changes, more objects while it runs,
/// changes again.
///
/// # Errors
/// When a replica does not come up, or the objects do not settle.
pub(crate) async fn measure(field: &Field, trials: usize, report: &mut Report) -> Result<()> {
    let kinds = || (0..KINDS).map(|kind| kind.to_string()).chain(["Large".to_owned(), "Other".to_owned()]);
    for kind in kinds() {
        field.cluster.apply(&DEFINITION.replace("@KIND@", &kind).replace("@N@", &kind.to_lowercase())).await?;
    }
    for kind in kinds() {
        field.cluster.established(&format!("items{}.{GROUP}", kind.to_lowercase())).await?;
    }
    let mut measured: [Vec<Figure>; CREWS.len()] = Default::default();
    for trial in 0..trials {
        for turn in 0..CREWS.len() {
            // Each is the first once: the machine and the API server are not the same from the first to the last.
            let at = (trial + turn) % CREWS.len();
            let (crew, figures) = (CREWS[at], &mut measured[at]);
            let namespace = format!("children-{}-{trial}", crew.system);
            let job = |namespace| anyhow::Ok(Job { field, crew, namespace, began: field.cluster.audit()?.len() });
            figures.extend(job(namespace.clone())?.measure().await?);
            figures.extend(job(format!("{namespace}-all"))?.measure_start().await?);
        }
    }
    for (crew, figures) in CREWS.into_iter().zip(measured) {
        let mut reported = BTreeSet::new();
        for (what, unit, _) in &figures {
            if !reported.insert(what) {
                continue;
            }
            let values = figures.iter().filter(|(name, _, _)| name == what).map(|(_, _, value)| *value).collect();
            report.add(TITLE, crew.system, *what, unit, values);
        }
    }
    Ok(())
}

/// What was written how often, and with what answer.
fn told(writes: &[Arc<AuditEvent>]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for it in writes {
        // One line for all kinds: their numbers stand at the end of their names.
        let resource = it.resource.trim_end_matches(|last: char| last.is_ascii_digit());
        let part = it.subresource.as_ref().map(|part| format!("/{part}")).unwrap_or_default();
        *counts.entry(format!("{} {resource}{part} {}", it.verb, it.code)).or_default() += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(what, count)| format!("{count} x {what}")).collect();
    counts.join(", ")
}

fn plural(kind: &str) -> String {
    format!("items{}", kind["Item".len()..].to_lowercase())
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

struct Job<'f> {
    field: &'f Field,
    crew: Crew,
    namespace: String,
    began: usize,
}

impl Job<'_> {
    /// All of the objects are there before the start.
    async fn measure_start(&self) -> Result<Vec<Figure>> {
        let settled = self.start(MANY).await?;
        self.leave().await?;
        Ok(vec![("5,000 objects there before the start: settled after", "s", settled)])
    }

    /// Starts the crew on so many objects of each kind, and says after how many seconds they have settled.
    async fn start(&self, objects: usize) -> Result<f64> {
        self.field.cluster.apply(&RIGHTS.replace("@NAMESPACE@", &self.namespace)).await?;
        self.create(0..objects).await?;
        let start = now();
        self.field.cluster.apply(&self.deployment()).await?;
        Ok(millis(start, self.settled(KINDS * objects).await?) / 1000.0)
    }

    async fn measure(&self) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        let mut add = |what, unit, value| figures.push((what, unit, value));
        let field = self.field;
        let api_server = field.cluster.api_server_id().await;
        add("500 objects there before the start: settled after", "s", self.start(FEW).await?);
        // Kinds that change hands would be measured with what follows.
        field.at_rest(&self.namespace, self.crew.kinds(), QUIET).await?;
        add("memory of all replicas, 500 objects", "MiB", self.memory().await?);
        add("what they share counted once (Pss), 500 objects", "MiB", self.of_the_machine().await?);
        add("without pages of the program's file (RssAnon), 500 objects", "MiB", self.own().await?);
        let latencies = self.changes("one", UNDISTURBED).await?;
        add("an undisturbed change, 500 objects: p50 until the status is stored", "ms", percentile(&latencies, 50));
        add("an undisturbed change, 500 objects: p99", "ms", percentile(&latencies, 99));
        let latencies = self.changes("few", BUSY).await?;
        add("100 changes a second, 500 objects: p50 until the status is stored", "ms", percentile(&latencies, 50));
        add("100 changes a second, 500 objects: p99", "ms", percentile(&latencies, 99));

        // Created while it runs.
        let (written, before, behind_them) = (self.writes()?.len(), self.cpu().await?, cpu(api_server)?);
        let start = now();
        self.create(FEW..MANY).await?;
        let created = now();
        let settled = self.settled(KINDS * MANY).await?;
        let behind_them = cpu(api_server)? - behind_them;
        let behind = (millis(created, settled) / 1000.0).max(0.0);
        add("4,500 objects created while it runs: settled after the last", "s", behind);
        add("from the first creation", "s", millis(start, settled) / 1000.0);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let spent: Vec<f64> = self.cpu().await?.iter().zip(before).map(|(after, before)| after - before).collect();
        add("CPU of all replicas for them", "s", spent.iter().sum());
        add("CPU of the busiest", "s", spent.into_iter().reduce(f64::max).context("a process")?);
        add("CPU of the API server for them", "s", behind_them);
        add("memory of all replicas, 5,000 objects", "MiB", self.memory().await?);
        add("what they share counted once (Pss), 5,000 objects", "MiB", self.of_the_machine().await?);
        add("without pages of the program's file (RssAnon), 5,000 objects", "MiB", self.own().await?);
        add("memory of the largest, 5,000 objects", "MiB", self.largest().await?);
        let writes = self.writes()?.split_off(written);
        add("writes an object", "", writes.len() as f64 / (KINDS * (MANY - FEW)) as f64);
        let latencies = self.changes("many", BUSY).await?;
        add("100 changes a second, 5,000 objects: p50 until the status is stored", "ms", percentile(&latencies, 50));
        add("100 changes a second, 5,000 objects: p99", "ms", percentile(&latencies, 99));

        say(&format!("{}, created: {}", self.namespace, told(&writes)));
        if self.crew.has_large() {
            for round in 0..BESIDE {
                for by in By::ALL {
                    let latencies = self.beside_a_large_one(by, round).await?;
                    add(by.title(), "ms", percentile(&latencies, 99));
                }
            }
        }
        self.leave().await?;
        Ok(figures)
    }

    /// Takes everything away, and waits for that: who is measured next shall not pay for it.
    async fn leave(&self) -> Result<()> {
        let (kubectl, namespace) = (&self.field.cluster, &self.namespace);
        kubectl.kubectl(&["-n", namespace, "delete", "deployment", "worker", "--cascade=foreground"]).await?;
        kubectl.kubectl(&["delete", "namespace", namespace, "--timeout=300s"]).await?;
        // The garbage collector still looks for what has gone with it.
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(())
    }

    fn api(&self, kind: usize) -> Api<DynamicObject> {
        self.api_of(&format!("Item{kind}"))
    }

    fn api_of(&self, kind: &str) -> Api<DynamicObject> {
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", kind));
        resource.plural = plural(kind);
        Api::namespaced_with(self.field.client.clone(), &self.namespace, &resource)
    }

    async fn create(&self, numbers: std::ops::Range<usize>) -> Result<()> {
        let all: Vec<_> = numbers.flat_map(|number| (0..KINDS).map(move |kind| (kind, number))).collect();
        let create = |(kind, number): (usize, usize)| {
            let api = self.api(kind);
            let object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": format!("Item{kind}"),
                "metadata": {"name": format!("item{kind}-{number}"), "namespace": self.namespace},
                "spec": {"value": "first", "filler": "x".repeat(500)},
            });
            async move {
                let object: DynamicObject = serde_json::from_value(object)?;
                api.create(&PostParams::default(), &object).await.map(drop).map_err(anyhow::Error::from)
            }
        };
        stream::iter(all.into_iter().map(create)).buffer_unordered(32).try_collect().await
    }

    /// What the replicas have written of objects.
    fn writes(&self) -> Result<Vec<Arc<AuditEvent>>> {
        let of_replicas = format!("system:serviceaccount:{}:worker", self.namespace);
        let aside = ["leases", "selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews"];
        let all = self.field.cluster.audit_from(self.began)?.into_iter();
        let regards_a_lease = |it: &AuditEvent| {
            let regarding = it.request_object.as_ref().and_then(|object| object.pointer("/regarding/kind"));
            it.resource == "events" && regarding.is_some_and(|kind| kind == "Lease")
        };
        let is_aside = |it: &AuditEvent| aside.contains(&it.resource.as_str()) || regards_a_lease(it);
        Ok(all.filter(|it| it.is_write() && it.user == of_replicas && !is_aside(it)).collect())
    }

    /// When so many objects had a status.
    async fn settled(&self, objects: usize) -> Result<Timestamp> {
        let look = || async {
            let mut first: BTreeMap<String, Timestamp> = BTreeMap::new();
            for event in
                self.writes()?.into_iter().filter(|it| it.subresource.as_deref() == Some("status") && it.succeeded())
            {
                if let Some(name) = event.name.clone() {
                    first.entry(name).or_insert(event.stage);
                }
            }
            anyhow::Ok((first.len(), first.into_values().max()))
        };
        let what = format!("{}: {objects} objects have a status", self.namespace);
        let (_, last) = eventually(&what, PATIENCE, look, |(count, _)| *count >= objects).await?;
        last.context("a status")
    }

    async fn pids(&self) -> Result<Vec<u32>> {
        let pods = self.field.pods(&self.namespace).await?;
        Ok(pods.iter().flat_map(|pod| self.field.kubelet.pids(&self.namespace, pod)).collect())
    }

    async fn memory(&self) -> Result<f64> {
        self.pids().await?.into_iter().map(resident).sum()
    }

    async fn of_the_machine(&self) -> Result<f64> {
        self.pids().await?.into_iter().map(proportional).sum()
    }

    async fn own(&self) -> Result<f64> {
        self.pids().await?.into_iter().map(anonymous).sum()
    }

    async fn largest(&self) -> Result<f64> {
        let all: Vec<f64> = self.pids().await?.into_iter().map(resident).collect::<Result<_>>()?;
        all.into_iter().reduce(f64::max).context("a process")
    }

    /// Seconds that each process has spent on CPUs.
    async fn cpu(&self) -> Result<Vec<f64>> {
        self.pids().await?.into_iter().map(cpu).collect()
    }

    /// For each change, how long it took until a status with its value was stored, in milliseconds, sorted.
    async fn changes(&self, when: &str, (rate, count): Load) -> Result<Vec<f64>> {
        let (began, written) = (self.field.cluster.audit()?.len(), self.writes()?.len());
        let mut ticks = tokio::time::interval(Duration::from_millis(1000 / rate));
        let mut names = BTreeSet::new();
        for change in 0..count {
            ticks.tick().await;
            let (kind, number) = (change % KINDS, change / KINDS);
            let name = format!("item{kind}-{number}");
            let patch = json!({"spec": {"value": format!("{when}-{change}")}});
            self.api(kind).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            names.insert(name);
        }
        let look = || async {
            let all = self.field.cluster.audit_from(began)?;
            let value = |event: &AuditEvent, path: &str| {
                let found = event.response_object.as_ref()?.pointer(path).and_then(Value::as_str)?;
                found.starts_with(when).then(|| found.to_owned())
            };
            let (statuses, changes): (Vec<_>, Vec<_>) = all
                .iter()
                .filter(|it| it.group == GROUP && it.is_write() && it.succeeded())
                .partition(|it| it.subresource.as_deref() == Some("status"));
            // Each value is given once. The log has an event when its answer is sent, so what follows may stand before it.
            let changed: BTreeMap<String, Timestamp> =
                changes.iter().filter_map(|event| Some((value(event, "/spec/value")?, event.stage))).collect();
            let mut latencies: BTreeMap<String, f64> = BTreeMap::new();
            for event in statuses {
                if let Some(value) = value(event, "/status/value")
                    && let Some(at) = changed.get(&value)
                {
                    latencies.entry(value).or_insert_with(|| millis(*at, event.stage).max(0.0));
                }
            }
            anyhow::Ok(latencies.into_values().collect::<Vec<f64>>())
        };
        let what = format!("{}: all changes have a status", self.namespace);
        let mut latencies = eventually(&what, PATIENCE, look, |all| all.len() == names.len()).await?;
        say(&format!("{}, changes, {when}: {}", self.namespace, told(&self.writes()?.split_off(written))));
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }

    /// As [`changes`](Self::changes), while an object has a list of ten thousand that changes four times a second.
    async fn beside_a_large_one(&self, by: By, round: usize) -> Result<Vec<f64>> {
        let (kind, api) = (by.kind(), self.api_of(by.kind()));
        let list = |change: usize| -> Vec<Value> {
            (0..10_000).map(|it| json!({"name": format!("entry-{it:05}"), "weight": (it + change) % 10})).collect()
        };
        let metadata = json!({"name": "large", "namespace": self.namespace});
        let object = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata, "spec": {"list": list(0)},
        });
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let changing = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(250));
            for change in 1.. {
                ticks.tick().await;
                let patch = Patch::Merge(json!({"spec": {"list": list(change)}}));
                api.patch("large", &PatchParams::default(), &patch).await?;
            }
            anyhow::Ok(())
        };
        let composing = async {
            match by {
                By::Benchmark => self.compose(&api).await,
                By::None | By::Replica => std::future::pending().await,
            }
        };
        let composed = || async { anyhow::Ok(api.get("large").await?.data) };
        if by == By::Replica {
            // A tenth of the list weighs nine.
            let said = |data: &Value| data["status"]["heavy"] == 1000;
            eventually("the large object is composed", PATIENCE, composed, said).await?;
        }
        let when = format!("{}-{round}", ["none", "benchmark", "replica"][by as usize]);
        let latencies = tokio::select! {
            latencies = self.changes(&when, BUSY) => latencies?,
            failed = changing => return Err(failed.err().context("the changes of the large object have ended")?),
            failed = composing => return Err(failed.err().context("the large object is composed no more")?),
        };
        api.delete("large", &DeleteParams::default()).await?;
        let gone = || async { anyhow::Ok(api.get_opt("large").await?.is_none()) };
        eventually("the large object is gone", PATIENCE, gone, |gone| *gone).await?;
        Ok(latencies)
    }

    /// Does with the large object what a replica does, at its pace: writes a ConfigMap and a status, four times if it must, and
    /// rests for a second for each 512 KiB, or for four times as long as that took.
    async fn compose(&self, api: &Api<DynamicObject>) -> Result<()> {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.field.client.clone(), &self.namespace);
        let (tell, mut told) = tokio::sync::watch::channel(None);
        let watching = async {
            let mut events = api.watch(&WatchParams::default(), "0").await?.boxed();
            while let Some(event) = events.try_next().await? {
                // Its status is written below.
                if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                    && tell
                        .borrow()
                        .as_ref()
                        .is_none_or(|it: &DynamicObject| it.metadata.generation != object.metadata.generation)
                {
                    tell.send_replace(Some(object));
                }
            }
            anyhow::bail!("the watch of the large object has ended")
        };
        let writing = async {
            loop {
                told.changed().await?;
                let began = now();
                for attempt in 1..=4 {
                    let mut object = told.borrow_and_update().clone().context("an object")?;
                    let list = object.data["spec"]["list"].as_array().context("a list")?;
                    let heavy: Vec<_> = list.iter().filter(|it| it["weight"] == 9).collect();
                    let names: Vec<_> = heavy.iter().filter_map(|it| it["name"].as_str()).collect();
                    if attempt == 1 {
                        let child = json!({
                            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"},
                            "data": {"heavy": names.join(",")},
                        });
                        config_maps.patch("other", &PatchParams::apply("benchmark"), &Patch::Apply(child)).await?;
                    }
                    object.data["status"] =
                        json!({"heavy": heavy.len(), "observedGeneration": object.metadata.generation});
                    match api.replace_status("large", &PostParams::default(), &object).await {
                        Ok(_) => break,
                        Err(kube::Error::Api(refused)) if refused.is_conflict() => told.changed().await?,
                        Err(error) => return Err(error.into()),
                    }
                }
                let rests = (millis(began, now()) * 4.0).clamp(650.0, 5000.0);
                tokio::time::sleep(Duration::from_secs_f64(rests / 1000.0)).await;
            }
        };
        tokio::select! { ended = watching => ended, failed = writing => failed }
    }

    fn deployment(&self) -> String {
        let kinds: Vec<_> = (0..KINDS).map(|kind| format!("Item{kind}")).collect();
        let (image, arguments) = if self.crew.is_ours {
            ("leasehold", "[run, --config, /etc/worker, --http, \"0.0.0.0:8080\"]".to_owned())
        } else {
            let kinds = kinds.join(",");
            ("peer", format!("[-group={GROUP}, \"-kinds={kinds}\", -namespace={}]", self.namespace))
        };
        let entry = |kind: &str, file: &str| {
            format!("    - {{apiVersion: {GROUP}/v1, kind: {kind}, reconciler: {{compose: {file}}}}}\n")
        };
        let mut list: String = kinds.iter().map(|kind| entry(kind, "item.yaml")).collect();
        if self.crew.has_large() {
            list += &entry("ItemLarge", "large.yaml");
        }
        DEPLOYMENT
            .replace("@NAMESPACE@", &self.namespace)
            .replace("@REPLICAS@", &self.crew.replicas.to_string())
            .replace("@IMAGE@", image)
            .replace("@ARGUMENTS@", &arguments)
            .replace("@KINDS@", &list)
    }
}

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: items@N@.bench.leasehold.dev}
spec:
  group: bench.leasehold.dev
  scope: Namespaced
  names: {kind: Item@KIND@, plural: items@N@, singular: item@N@}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

const RIGHTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: @NAMESPACE@}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: worker, namespace: @NAMESPACE@}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: worker, namespace: @NAMESPACE@}]
";

const DEPLOYMENT: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: @NAMESPACE@}
data:
  item.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Composition
    children:
    - id: settings
      template:
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: \"${parent.metadata.name}\"}
        data: {value: \"${parent.spec.value}\"}
    status: {value: \"${parent.spec.value}\"}
  large.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Composition
    children:
    - id: settings
      template:
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: \"${parent.metadata.name}\"}
        data: {heavy: \"${parent.spec.list.filter(it, it.weight > 8).map(it, it.name).join(',')}\"}
    status: {heavy: \"${parent.spec.list.filter(it, it.weight > 8).size()}\"}
  leasehold.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Configuration
    kinds:
@KINDS@
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker, namespace: @NAMESPACE@}
spec:
  replicas: @REPLICAS@
  selector: {matchLabels: {app: worker}}
  template:
    metadata: {labels: {app: worker}}
    spec:
      serviceAccountName: worker
      containers:
      - name: worker
        image: @IMAGE@
        args: @ARGUMENTS@
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: POD_TEMPLATE_HASH, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['pod-template-hash']\"}}}
        volumeMounts: [{name: config, mountPath: /etc/worker}]
      volumes: [{name: config, configMap: {name: config}}]
";
