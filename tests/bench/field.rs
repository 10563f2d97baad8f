//! Where the figures are taken: the control plane, our replicas and, for comparison, plain client-go electors.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use leasehold_cluster::{Cluster, Kubelet, KubeletOptions, Signal, eventually};
use rustix::process::{Pid, kill_process};

/// How long anything may take, a lease duration included.
const PATIENCE: Duration = Duration::from_secs(90);

/// The control plane and its nodes.
pub(crate) struct Field {
    // Pods end before the control plane does.
    pub(crate) kubelet: Kubelet,
    pub(crate) cluster: Cluster,
    client: Client,
    elector: PathBuf,
}

impl Field {
    /// Starts everything that the figures need; no replicas yet.
    pub(crate) async fn start() -> Result<Self> {
        let leasehold = PathBuf::from(env!("CARGO_BIN_EXE_leasehold"));
        let observer = leasehold.parent().context("target folder")?.join("examples/observer");
        let images = [("leasehold".to_owned(), leasehold), ("observer".to_owned(), observer)].into();
        let cluster = Cluster::start().await?;
        // A stopped replica comes back at once, for the next trial.
        let restart_backoff = Duration::from_millis(50);
        let options = KubeletOptions { nodes: 3, images, restart_backoff, ..KubeletOptions::default() };
        let kubelet = cluster.start_kubelet(options).await?;
        let binaries = cluster.binaries().clone();
        let elector = tokio::task::spawn_blocking(move || binaries.client_go_elector()).await??;
        Ok(Self { client: cluster.client()?, kubelet, cluster, elector })
    }

    /// The pods of a namespace that are not on their way out.
    pub(crate) async fn pods(&self, namespace: &str) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let all = pods.list(&ListParams::default()).await?.items;
        Ok(all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(ResourceExt::name_any).collect())
    }

    /// Who holds each Lease of a namespace; a free one is absent.
    pub(crate) async fn holders(&self, namespace: &str) -> Result<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let all = leases.list(&ListParams::default()).await?.items;
        let holder = |lease: Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())?;
            Some((lease.name_any(), holder))
        };
        Ok(all.into_iter().filter_map(holder).collect())
    }

    /// Waits until this many Leases of a namespace are held, none of them by `not`.
    pub(crate) async fn held(&self, namespace: &str, count: usize, not: &str) -> Result<Vec<String>> {
        let enough =
            |holders: &BTreeMap<String, String>| holders.len() == count && holders.values().all(|holder| holder != not);
        let what = format!("{count} Leases held in {namespace}");
        let holders = eventually(&what, PATIENCE, || self.holders(namespace), enough).await?;
        Ok(holders.into_values().collect())
    }

    /// Waits until a namespace has this many pods, each with a process.
    pub(crate) async fn running(&self, namespace: &str, count: usize) -> Result<Vec<String>> {
        let all = |pods: &Vec<String>| {
            pods.len() == count && pods.iter().all(|pod| !self.kubelet.pids(namespace, pod).is_empty())
        };
        eventually(&format!("{count} pods in {namespace}"), PATIENCE, || self.pods(namespace), all).await
    }

    /// Waits until a pod that was signalled then has listed the Leases again.
    pub(crate) async fn stands_by(&self, pod: &str, since: Timestamp) -> Result<()> {
        let look = || async { crate::record::listed(&self.cluster, pod, since) };
        eventually(&format!("{pod} stands by again"), PATIENCE, look, |listed| *listed).await?;
        Ok(())
    }

    /// A namespace with two observer replicas of one kind, all timings by default.
    pub(crate) async fn observers(&self, namespace: &str) -> Result<()> {
        self.cluster.apply(KIND).await?;
        self.cluster
            .kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd/probes.observer.leasehold.dev"])
            .await?;
        self.cluster.apply(&OBSERVERS.replace("STAGE", namespace)).await?;
        let object = format!(
            "{{apiVersion: observer.leasehold.dev/v1, kind: Probe, metadata: {{name: it, namespace: {namespace}}}}}"
        );
        eventually("the new kind takes an object", PATIENCE, || self.cluster.apply(&object), |_| true).await?;
        self.running(namespace, 2).await?;
        self.held(namespace, 1, "").await?;
        Ok(())
    }

    /// What is shipped: `crds/` and `deploy/`.
    pub(crate) async fn install(&self) -> Result<()> {
        let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
        self.cluster.kubectl(&["apply", "-f", &folder("crds")]).await?;
        self.cluster.kubectl(&["apply", "-k", &folder("deploy")]).await?;
        Ok(())
    }

    /// A client-go elector for a Lease, at the timings that ours have by default.
    pub(crate) fn elector(&self, namespace: &str, lease: &str, identity: &str) -> Result<Elector> {
        let child = Command::new(&self.elector)
            .arg("-kubeconfig")
            .arg(self.cluster.kubeconfig())
            .args(["-namespace", namespace, "-lease", lease, "-identity", identity])
            .args(["-lease-duration", "15s", "-renew-deadline", "10s", "-retry-period", "2s", "-release-on-cancel"])
            // The cluster's reaper ends what bears this, should this process be killed.
            .env("LEASEHOLD_CLUSTER", self.cluster.directory())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start the client-go elector")?;
        Ok(Elector { identity: identity.to_owned(), child })
    }
}

/// A client-go elector's process; dropping it kills it.
pub(crate) struct Elector {
    pub(crate) identity: String,
    child: Child,
}

impl Elector {
    /// Signals it.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Elector {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

const KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probes.observer.leasehold.dev}
spec:
  group: observer.leasehold.dev
  scope: Namespaced
  names: {kind: Probe, plural: probes, singular: probe}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";

const OBSERVERS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: STAGE}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: observer, namespace: STAGE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: observer, namespace: STAGE}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: observer, namespace: STAGE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: observer}
subjects: [{kind: ServiceAccount, name: observer, namespace: STAGE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: STAGE}
rules: [{apiGroups: [observer.leasehold.dev], resources: [probes], verbs: [get, list, watch, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: STAGE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: STAGE}
subjects: [{kind: ServiceAccount, name: observer, namespace: STAGE}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: STAGE}
data:
  leasehold.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Configuration
    kinds:
    - {apiVersion: observer.leasehold.dev/v1, kind: Probe, reconciler: {builtin: observer}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: observer, namespace: STAGE}
spec:
  replicas: 2
  selector: {matchLabels: {app: observer}}
  template:
    metadata: {labels: {app: observer}}
    spec:
      serviceAccountName: observer
      terminationGracePeriodSeconds: 40
      containers:
      - name: observer
        image: observer
        args: [/etc/observer/leasehold.yaml]
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        volumeMounts: [{name: config, mountPath: /etc/observer}]
      volumes: [{name: config, configMap: {name: config}}]
";
