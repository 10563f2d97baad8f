//! What is shipped, unchanged: `crds/`, `deploy/` and `config/samples/` on the real control plane, the replicas as Pods.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_cluster::{AuditEvent, Cluster, Kubelet, Signal, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    accounts, composed, escalation,
    program::Said,
    rails,
    stage::{PATIENCE, ensure, is_aside, kubelet, pod_of},
    typed_rows,
};

pub const NAMESPACE: &str = "leasehold-system";
const KINDS: usize = 5;

pub struct Installation {
    pub cluster: &'static Cluster,
    pub kubelet: &'static Kubelet,
    pub client: Client,
}

impl Installation {
    async fn install() -> Result<Self> {
        Self::install_on(Cluster::shared().await?, kubelet().await?).await
    }

    /// What is shipped, on that cluster.
    pub async fn install_on(cluster: &'static Cluster, kubelet: &'static Kubelet) -> Result<Self> {
        let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
        cluster.kubectl(&["apply", "-f", &folder("crds")]).await?;
        cluster.kubectl(&["apply", "-k", &folder("deploy")]).await?;
        let installation = Self { cluster, kubelet, client: cluster.client()? };
        installation.rolled_out().await?;
        Ok(installation)
    }

    pub async fn rolled_out(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", "deployment/leasehold", "--timeout=120s"]).await?;
        Ok(())
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat()).await
    }

    pub async fn holders(&self) -> Result<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let all = leases.list(&ListParams::default().labels("leasehold.dev/role!=replica")).await?.items;
        let holder = |lease: Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())?;
            Some((lease.name_any(), holder))
        };
        Ok(all.into_iter().filter_map(holder).collect())
    }

    pub async fn led(&self, by: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let all =
            |holders: &BTreeMap<String, String>| holders.len() == KINDS && holders.values().all(|holder| by(holder));
        eventually("all kinds are led as expected", PATIENCE, || self.holders(), all).await
    }

    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let all = pods.list(&ListParams::default()).await?.items;
        Ok(all.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// A GET of one of a pod's endpoints: status and body.
    pub async fn get(&self, pod: &Pod, path: &str) -> Result<(u16, String)> {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has an address")?;
        let mut stream = TcpStream::connect((ip.as_str(), 8080)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {ip}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an HTTP status")?;
        Ok((status, body.to_owned()))
    }

    /// Applies a sample: its namespaces come with it.
    pub async fn sample(&self, name: &str) -> Result<()> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples").join(name);
        self.cluster.kubectl(&["apply", "-f", &file.display().to_string()]).await?;
        Ok(())
    }

    pub async fn object(&self, path: &[&str]) -> Result<Value> {
        let text = self.cluster.kubectl(&[&["get", "-o", "json"], path].concat()).await?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// One test and not several: there is one installation, and each act needs what the last one left.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_manifests_run_share_their_kinds_and_survive() -> Result<()> {
    let installation = Installation::install().await?;
    let shared = installation.led(|_| true).await?;
    let replicas: std::collections::BTreeSet<_> = shared.values().collect();
    ensure(replicas.len() == 3, || format!("{KINDS} kinds on three replicas: {shared:?}"))?;

    endpoints(&installation).await?;
    propagates(&installation).await?;
    expires(&installation).await?;
    composed::tenants(&installation).await?;
    composed::kept_tenants(&installation).await?;
    composed::web_apps(&installation).await?;
    composed::schedules(&installation).await?;
    typed_rows::propagations(&installation).await?;
    typed_rows::expiries(&installation).await?;
    typed_rows::schedules(&installation).await?;
    accounts::shipped(&installation).await?;
    rails::shipped(&installation).await?;
    escalation::without_webhooks(&installation).await?;
    says_what_is_wrong_with_an_object(&installation).await?;
    hands_over(&installation).await?;
    survives_a_crash(&installation).await?;
    rolls(&installation).await?;
    writes_nothing_when_nothing_changed(&installation).await?;
    composed::leave_nothing_behind(&installation).await?;
    installation.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
    Ok(())
}

async fn endpoints(installation: &Installation) -> Result<()> {
    for pod in installation.pods().await? {
        for path in ["/livez", "/readyz"] {
            let (status, body) = installation.get(&pod, path).await?;
            ensure(status == 200, || format!("{path} of {}: {status} {body}", pod.name_any()))?;
        }
        let (_, shards) = installation.get(&pod, "/shards").await?;
        let shards: Value = serde_json::from_str(&shards)?;
        let listed = shards.pointer("/shards").and_then(Value::as_array).context("a list of shards")?;
        ensure(listed.len() == KINDS, || format!("{shards}"))?;
        let (_, metrics) = installation.get(&pod, "/metrics").await?;
        ensure(metrics.contains("leasehold_leading{kind=\"Propagation.leasehold.dev\"}"), || metrics.clone())?;
    }
    Ok(())
}

async fn propagates(installation: &Installation) -> Result<()> {
    installation.sample("propagation.yaml").await?;
    let ready = || installation.object(&["propagations"]);
    let is_ready = |list: &Value| {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        !items.is_empty() && items.iter().all(|item| condition(item, "Ready").as_deref() == Some("True"))
    };
    let list = eventually("the sample Propagations are ready", PATIENCE, ready, is_ready).await?;
    let synced = list.pointer("/items/0/status/synced").and_then(Value::as_i64).unwrap_or_default();
    ensure(synced > 0, || format!("{list}"))?;
    // A copy that is deleted comes back.
    let selector = ListParams::default().labels("leasehold.dev/shard=propagation.leasehold.dev");
    let copies: Api<ConfigMap> = Api::all(installation.client.clone());
    let copy = copies.list(&selector).await?.items.into_iter().next();
    if let Some(copy) = copy {
        let namespace = copy.namespace().context("namespaced")?;
        let api: Api<ConfigMap> = Api::namespaced(installation.client.clone(), &namespace);
        api.delete(&copy.name_any(), &kube::api::DeleteParams::default()).await?;
        let name = copy.name_any();
        let again = || api.get_opt(&name);
        eventually("the copy is back", PATIENCE, again, Option::is_some).await?;
        let shard = copy.labels().get("leasehold.dev/shard").cloned();
        ensure(shard.as_deref() == Some("propagation.leasehold.dev"), || format!("{copy:?}"))?;
    }
    Ok(())
}

async fn expires(installation: &Installation) -> Result<()> {
    installation.sample("expirypolicy.yaml").await?;
    let ready = || installation.object(&["expirypolicies", "-A"]);
    let judged = |list: &Value| {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        !items.is_empty() && items.iter().all(|item| condition(item, "Ready").is_some())
    };
    let list = eventually("the sample ExpiryPolicies are reconciled", PATIENCE, ready, judged).await?;
    let stamped = list.pointer("/items/0/status/shard/lease").and_then(Value::as_str);
    ensure(stamped == Some("expirypolicy.leasehold.dev"), || format!("{list}"))
}

async fn says_what_is_wrong_with_an_object(installation: &Installation) -> Result<()> {
    // What the schema can tell is refused before it is stored.
    let nowhere = "{apiVersion: leasehold.dev/v1alpha1, kind: Propagation, metadata: {name: nowhere}, spec: {source: {kind: ConfigMap, namespace: default, name: x}, targets: {}}}";
    ensure(installation.cluster.apply(nowhere).await.is_err(), || {
        "a Propagation without targets was stored".to_owned()
    })?;
    // What only the cluster can tell is a condition and an event.
    let unknown = "{apiVersion: leasehold.dev/v1alpha1, kind: ExpiryPolicy, metadata: {name: unknown, namespace: default}, spec: {target: {apiVersion: v7, kind: Pod}, ttl: 24h}}";
    installation.cluster.apply(unknown).await?;
    let policy = || installation.object(&["expirypolicy", "unknown", "-n", "default"]);
    let said = |policy: &Value| {
        let not_ready = condition(policy, "Ready").as_deref() == Some("False");
        not_ready && condition(policy, "SpecValid").as_deref() == Some("False")
    };
    eventually("the policy says that its target is unknown", PATIENCE, policy, said).await?;
    let events = || installation.cluster.kubectl(&["get", "events", "-n", "default", "-o", "wide"]);
    let told = |events: &String| events.lines().any(|line| line.contains("TargetUnknown") && line.contains("unknown"));
    eventually("an event says so too", PATIENCE, events, told).await?;
    // The others of its kind go on: the one that was made after it is judged as well.
    let after = "{apiVersion: leasehold.dev/v1alpha1, kind: ExpiryPolicy, metadata: {name: after, namespace: default}, spec: {target: {apiVersion: batch/v1, kind: Job}, ttl: 24h}}";
    installation.cluster.apply(after).await?;
    let policies = || installation.object(&["expirypolicies", "-A"]);
    let others_ready = |list: &Value| {
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let others = items.iter().filter(|item| item["metadata"]["name"] != "unknown");
        items.len() > 2 && others.into_iter().all(|item| condition(item, "Ready").as_deref() == Some("True"))
    };
    eventually("the other policies are ready", PATIENCE, policies, others_ready).await?;
    Ok(())
}

/// `leasehold hand-over`, with what it says of requests that cannot be met; those change nothing.
async fn hands_over(installation: &Installation) -> Result<()> {
    let run = |arguments| Said::by_hand_over(installation.cluster.kubeconfig(), NAMESPACE, arguments);
    for (arguments, says) in [
        (&["NoSuchKind"][..], "there are ExpiryPolicy.leasehold.dev, Propagation.leasehold.dev"),
        (&["Propagation", "--to", "nobody"], "there is no replica nobody"),
        (&["Propagation", "--instance", "another"], "has no Leases of an installation another"),
    ] {
        let said = run(arguments).await?;
        ensure(said.code == Some(2) && said.stderr.contains(says), || format!("{arguments:?}: {said:?}"))?;
    }
    let leases: Api<Lease> = Api::namespaced(installation.client.clone(), NAMESPACE);
    let all = leases.list(&ListParams::default()).await?.items;
    let asked = all.iter().find(|lease| lease.annotations().contains_key("leasehold.dev/hand-over-to"));
    ensure(asked.is_none(), || format!("a request that cannot be met is left: {asked:?}"))?;
    let before = installation.led(|_| true).await?;

    let said = run(&["propagation.leasehold.dev", "-o", "json"]).await?;
    ensure(said.code == Some(0), || format!("{said:?}"))?;
    let said: Value = serde_json::from_str(&said.stdout)?;
    let after = installation.led(|_| true).await?;
    let lease = "propagation.leasehold.dev";
    ensure(said["to"] == after[lease] && said["from"] != said["to"], || format!("{said} {before:?} {after:?}"))?;
    Ok(())
}

async fn survives_a_crash(installation: &Installation) -> Result<()> {
    let before = installation.led(|_| true).await?;
    let (_, victim) = before.iter().next().context("a holder")?;
    installation.kubelet.signal(NAMESPACE, pod_of(victim), Signal::KILL)?;
    let victim = victim.clone();
    installation.led(move |holder| holder != victim).await?;
    Ok(())
}

/// A changed configuration is another ConfigMap, and rolls out; the one that is there cannot be changed in place.
async fn rolls(installation: &Installation) -> Result<()> {
    let old: Vec<_> = installation.pods().await?.iter().map(ResourceExt::name_any).collect();
    let maps: Api<ConfigMap> = Api::namespaced(installation.client.clone(), NAMESPACE);
    let list = || async {
        anyhow::Ok(maps.list(&ListParams::default().labels("app.kubernetes.io/name=leasehold")).await?.items)
    };
    let [map] = &list().await?[..] else { bail!("one configuration") };
    let other = json!({"data": {"leasehold.yaml": "kinds: []"}});
    let said = maps.patch(&map.name_any(), &PatchParams::default(), &Patch::Merge(other)).await.err();
    let said = said.context("the configuration was changed in place")?.to_string();
    ensure(said.contains("immutable"), || said)?;

    let changed = tempfile::tempdir()?;
    for folder in ["config", "deploy", "deploy/policies"] {
        std::fs::create_dir(changed.path().join(folder))?;
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
            let file = file?;
            if file.file_type()?.is_file() {
                std::fs::copy(file.path(), changed.path().join(folder).join(file.file_name()))?;
            }
        }
    }
    let list_of_kinds = changed.path().join("config/leasehold.yaml");
    let text = std::fs::read_to_string(&list_of_kinds)?;
    std::fs::write(&list_of_kinds, format!("{text}# Another one.\n"))?;
    installation.cluster.kubectl(&["apply", "-k", &changed.path().join("deploy").display().to_string()]).await?;
    installation.rolled_out().await?;
    installation.led(move |holder| !old.contains(&pod_of(holder).to_owned())).await?;
    let maps = list().await?;
    ensure(maps.len() == 2 && maps.iter().all(|map| map.immutable == Some(true)), || format!("{maps:?}"))
}

/// A take-over leaves settled objects alone, of every kind: counted by what the API server was asked.
async fn writes_nothing_when_nothing_changed(installation: &Installation) -> Result<()> {
    // Those whose objects expire after a minute or two would have something to do just now.
    let expiring = ["delete", "expirypolicies", "previews", "reports", "-n", "previews"];
    installation.cluster.kubectl(&expiring).await?;
    // The sweeps of the rollout are over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = installation.cluster.audit()?.len();
    for lease in installation.led(|_| true).await?.into_keys() {
        // Others may move for balance meanwhile.
        let before = installation.led(|_| true).await?;
        let said = Said::by_hand_over(installation.cluster.kubeconfig(), NAMESPACE, &[&lease]).await?;
        ensure(said.code == Some(0), || format!("{lease}: {said:?}"))?;
        let after = installation.led(|_| true).await?;
        ensure(before[&lease] != after[&lease], || format!("{lease}: {said:?}, {before:?}, {after:?}"))?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = installation.cluster.audit()?;
    let of_replicas = |event: &&Arc<AuditEvent>| event.user == format!("system:serviceaccount:{NAMESPACE}:leasehold");
    // Elections go on.
    let aside = |event: &&Arc<AuditEvent>| !is_aside(event);
    let writes: Vec<_> =
        after.iter().skip(before).filter(of_replicas).filter(aside).filter(|it| it.is_write()).collect();
    if let Some(first) = writes.first() {
        bail!("{} writes although nothing had changed, the first: {first:#?}", writes.len());
    }
    Ok(())
}

pub fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some(found["status"].as_str()?.to_owned())
}
