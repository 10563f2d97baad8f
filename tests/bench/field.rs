//! Where the figures are taken: the control plane, and fleets of replicas, ours and client-go's, on the same kinds.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{AuditEvent, Cluster, Kubelet, KubeletOptions, eventually};
use serde_json::json;

use crate::{record::millis, report::say};

/// How long anything may take, a few lease durations included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const GROUP: &str = "bench.leasehold.dev";

/// Timings of both systems: lease duration, renew deadline, retry period, and of ours what a request may take, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Timings {
    pub(crate) lease: u64,
    pub(crate) deadline: u64,
    pub(crate) retry: u64,
    pub(crate) request: u64,
    /// Of ours: how long the replicas must have been the same before a kind is moved.
    pub(crate) settle: u64,
}

/// What everybody has by default.
pub(crate) const DEFAULT: Timings =
    Timings { lease: 15_000, deadline: 10_000, retry: 2_000, request: 1_000, settle: 5_000 };
/// A third of it, for what is tried many times.
pub(crate) const QUICK: Timings = Timings { lease: 5_000, deadline: 3_000, retry: 600, request: 1_000, settle: 1_500 };

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Ours,
    /// Ours, and each kind acts as an account of its own, as the shipped kinds do.
    OursActing,
    ClientGo,
}

pub(crate) const BOTH: [System; 2] = [System::Ours, System::ClientGo];

impl System {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "leasehold",
            Self::OursActing => "acting",
            Self::ClientGo => "client-go",
        }
    }

    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursActing)
    }
}

/// The control plane and its nodes.
pub(crate) struct Field {
    // Pods end before the control plane does.
    pub(crate) kubelet: Kubelet,
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
}

/// The replicas of one Deployment.
pub(crate) struct Fleet<'f> {
    pub(crate) field: &'f Field,
    pub(crate) system: System,
    pub(crate) namespace: String,
    pub(crate) kinds: usize,
    /// The number of the first event of the audit log that may be about it.
    pub(crate) began: usize,
}

impl Field {
    /// Starts everything that the figures need; no replicas yet. The peer of composed kinds is built only if it is needed.
    pub(crate) async fn start(with_peer: bool) -> Result<Self> {
        Self::start_with(with_peer, false).await
    }

    /// As [`start`](Self::start), with a fault proxy for each pod: for what is not measured in milliseconds.
    pub(crate) async fn start_behind_proxies() -> Result<Self> {
        Self::start_with(false, true).await
    }

    async fn start_with(with_peer: bool, proxy_per_pod: bool) -> Result<Self> {
        let leasehold = PathBuf::from(env!("CARGO_BIN_EXE_leasehold"));
        let replica = leasehold.parent().context("target folder")?.join("examples/replica");
        let cluster = Cluster::start().await?;
        let binaries = cluster.binaries().clone();
        let client_go = tokio::task::spawn_blocking(move || binaries.client_go_elector()).await??;
        let peer = match with_peer {
            true => Some(tokio::task::spawn_blocking(crate::children::build_peer).await??),
            false => None,
        };
        let images =
            [("leasehold".to_owned(), leasehold), ("replica".to_owned(), replica), ("client-go".to_owned(), client_go)];
        let images = images.into_iter().chain(peer.map(|peer| ("peer".to_owned(), peer)));
        // A replica that was stopped comes back soon, for the next trial.
        let restart_backoff = Duration::from_millis(50);
        let images = images.collect();
        let options = KubeletOptions { nodes: 3, images, proxy_per_pod, restart_backoff, ..KubeletOptions::default() };
        let kubelet = cluster.start_kubelet(options).await?;
        Ok(Self { client: cluster.client()?, kubelet, cluster })
    }

    /// Makes the kinds be served: `Probe0`, `Probe1`…
    pub(crate) async fn kinds(&self, count: usize) -> Result<()> {
        for kind in 0..count {
            self.cluster.apply(&KIND.replace("@N@", &kind.to_string())).await?;
        }
        for kind in 0..count {
            self.cluster.established(&format!("probe{kind}s.{GROUP}")).await?;
        }
        Ok(())
    }

    /// A fleet of this many replicas on the first `kinds` kinds, in a namespace of its own.
    pub(crate) async fn fleet(
        &self,
        system: System,
        name: &str,
        kinds: usize,
        replicas: usize,
        timings: Timings,
    ) -> Result<Fleet<'_>> {
        let began = self.cluster.audit()?.len();
        self.fleet_from(began, system, name, kinds, replicas, timings).await
    }

    /// As [`fleet`](Self::fleet), when the number of the first event is known, or the audit log is of no use to it.
    pub(crate) async fn fleet_from(
        &self,
        began: usize,
        system: System,
        name: &str,
        kinds: usize,
        replicas: usize,
        timings: Timings,
    ) -> Result<Fleet<'_>> {
        let namespace = format!("{name}-{}", system.name());
        let fleet = Fleet { field: self, system, namespace, kinds, began };
        self.cluster.apply(&RIGHTS.replace("@NAMESPACE@", &fleet.namespace)).await?;
        self.cluster.apply(&fleet.deployment(replicas, timings)).await?;
        Ok(fleet)
    }

    /// What is shipped: `crds/` and `deploy/`.
    pub(crate) async fn install(&self) -> Result<()> {
        let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string();
        self.cluster.kubectl(&["apply", "-f", &folder("crds")]).await?;
        self.cluster.kubectl(&["apply", "-k", &folder("deploy")]).await?;
        Ok(())
    }

    /// The pods of a namespace that are not on their way out.
    pub(crate) async fn pods(&self, namespace: &str) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let all = pods.list(&ListParams::default()).await?.items;
        Ok(all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(ResourceExt::name_any).collect())
    }

    /// Who holds each Lease of a kind, by Lease; a free one is absent.
    pub(crate) async fn holders(&self, namespace: &str) -> Result<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let all = leases.list(&ListParams::default().labels("leasehold.dev/role!=replica")).await?.items;
        let holder = |lease: Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())?;
            Some((lease.name_any(), holder))
        };
        Ok(all.into_iter().filter_map(holder).collect())
    }

    /// Waits until so many kinds of a namespace are held, each by a pod of which this is true.
    async fn held(
        &self,
        namespace: &str,
        kinds: usize,
        what: &str,
        by: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, String>> {
        let all = |holders: &BTreeMap<String, String>| {
            holders.len() == kinds && holders.values().all(|holder| by(pod_of(holder)))
        };
        eventually(&format!("{namespace}: {what}"), PATIENCE, || self.holders(namespace), all).await
    }

    /// Waits until so many kinds of a namespace are held and none has changed hands for this long, and says who holds what
    /// then.
    pub(crate) async fn at_rest(
        &self,
        namespace: &str,
        kinds: usize,
        quiet: Duration,
    ) -> Result<BTreeMap<String, String>> {
        let look = || self.held(namespace, kinds, "every kind is led", |_| true);
        let (mut last, mut since) = (look().await?, now());
        while millis(since, now()) < quiet.as_secs_f64() * 1000.0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let holders = look().await?;
            if holders != last {
                (last, since) = (holders, now());
            }
        }
        Ok(last)
    }
}

impl Fleet<'_> {
    /// Changes the number of replicas and waits until the pods are that many, each with a process.
    pub(crate) async fn scale(&self, replicas: usize) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.kubectl(&["scale", "deployment/replica", &count]).await?;
        self.running(replicas).await?;
        Ok(())
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.field.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat()).await
    }

    /// Waits until the pods are that many, each with a process, and nobody else's process is left.
    pub(crate) async fn running(&self, count: usize) -> Result<Vec<String>> {
        let field = self.field;
        let look = || async {
            let pods: Api<Pod> = Api::namespaced(field.client.clone(), &self.namespace);
            let all: Vec<_> =
                pods.list(&ListParams::default()).await?.items.iter().map(ResourceExt::name_any).collect();
            anyhow::Ok(all)
        };
        let all = |pods: &Vec<String>| {
            pods.len() == count && pods.iter().all(|pod| !field.kubelet.pids(&self.namespace, pod).is_empty())
        };
        eventually(&format!("{count} pods in {}", self.namespace), PATIENCE, look, all).await
    }

    /// Waits until each kind is held by a pod of which this is true.
    pub(crate) async fn held(&self, what: &str, by: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        self.field.held(&self.namespace, self.kinds, what, by).await
    }

    /// Waits until every kind is held, and none by this process.
    pub(crate) async fn taken_from(&self, old: &str) -> Result<()> {
        let taken = |holders: &BTreeMap<String, String>| {
            holders.len() == self.kinds && holders.values().all(|holder| holder != old)
        };
        let what = format!("{}: somebody follows {old}", self.namespace);
        eventually(&what, PATIENCE, || self.field.holders(&self.namespace), taken).await?;
        Ok(())
    }

    /// Waits until no kind has changed hands for this long, and says who holds what then.
    pub(crate) async fn settled(&self, quiet: Duration) -> Result<BTreeMap<String, String>> {
        self.field.at_rest(&self.namespace, self.kinds, quiet).await
    }

    /// What this fleet's namespace has in the audit log.
    pub(crate) fn audit(&self) -> Result<Vec<Arc<AuditEvent>>> {
        let all = self.field.cluster.audit_from(self.began)?;
        Ok(all.into_iter().filter(|event| event.namespace.as_deref() == Some(&self.namespace)).collect())
    }

    /// Makes this many objects of the first kind, of about 2 kB each.
    pub(crate) async fn objects(&self, count: usize) -> Result<()> {
        let api = self.api();
        let create = |number: usize| {
            let api = api.clone();
            let object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": "Probe0",
                "metadata": {"name": format!("object-{number}"), "namespace": self.namespace},
                "spec": {"change": 0, "seen": 0, "filler": "x".repeat(1800)},
            });
            async move {
                let object: DynamicObject = serde_json::from_value(object)?;
                match api.create(&PostParams::default(), &object).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                    other => other.map(drop).map_err(anyhow::Error::from),
                }
            }
        };
        stream::iter((0..count).map(create)).buffer_unordered(64).try_collect().await
    }

    /// The objects of the first kind.
    pub(crate) fn api(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(GROUP, "v1", "Probe0");
        Api::namespaced_with(self.field.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind))
    }

    /// Takes the replicas down, and what they left.
    pub(crate) async fn end(self) -> Result<()> {
        self.kubectl(&["delete", "deployment", "replica", "--cascade=foreground"]).await?;
        self.field.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await?;
        say(&format!("{}: done", self.namespace));
        Ok(())
    }

    fn deployment(&self, replicas: usize, timings: Timings) -> String {
        let Timings { lease, deadline, retry, request, settle } = timings;
        let arguments = match self.system {
            System::Ours | System::OursActing => "[/etc/replica/leasehold.yaml, \"0.0.0.0:8080\"]".to_owned(),
            System::ClientGo => {
                let resources: Vec<_> = (0..self.kinds).map(|kind| format!("probe{kind}s")).collect();
                format!(
                    "[-group={GROUP}, \"-resources={}\", -namespace=$(POD_NAMESPACE), -identity=$(POD_NAME), \
                     -lease-duration={lease}ms, -renew-deadline={deadline}ms, -retry-period={retry}ms, -release-on-cancel]",
                    resources.join(",")
                )
            }
        };
        // client-go's has nothing to be ready for: a replica that runs stands by.
        let probe = match self.system {
            System::Ours | System::OursActing => {
                "readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}"
            }
            System::ClientGo => "",
        };
        let account = if self.system == System::OursActing { "serviceAccount: worker, " } else { "" };
        let entry = |kind| {
            format!("    - {{apiVersion: {GROUP}/v1, kind: Probe{kind}, {account}reconciler: {{builtin: seen}}}}\n")
        };
        let kinds: String = (0..self.kinds).map(entry).collect();
        let image = if self.system.is_ours() { "replica" } else { "client-go" };
        DEPLOYMENT
            .replace("@NAMESPACE@", &self.namespace)
            .replace("@REPLICAS@", &replicas.to_string())
            .replace("@IMAGE@", image)
            .replace("@ARGUMENTS@", &arguments)
            .replace("@PROBE@", probe)
            .replace("@LEASE@", &format!("{lease}ms"))
            .replace("@DEADLINE@", &format!("{deadline}ms"))
            .replace("@RETRY@", &format!("{retry}ms"))
            .replace("@REQUEST@", &format!("{request}ms"))
            .replace("@SETTLE@", &format!("{settle}ms"))
            .replace("@KINDS@", &kinds)
    }
}

/// The largest number of kinds that one replica has, and how many of `replicas` have none.
pub(crate) fn spread(holders: &BTreeMap<String, String>, replicas: usize) -> (usize, usize) {
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for holder in holders.values() {
        *shares.entry(holder).or_default() += 1;
    }
    (shares.values().copied().max().unwrap_or(0), replicas.saturating_sub(shares.len()))
}

/// The pods that hold something.
pub(crate) fn pods_of(holders: &BTreeMap<String, String>) -> BTreeSet<String> {
    holders.values().map(|holder| pod_of(holder).to_owned()).collect()
}

/// The pod that a holder identity is of.
pub(crate) fn pod_of(holder: &str) -> &str {
    holder.rsplit_once('_').map_or(holder, |(pod, _)| pod)
}

/// Resident memory of a process in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    mebibytes(pid, "VmRSS")
}

/// What of it is the process' own data and not pages of its program's file, in MiB.
pub(crate) fn anonymous(pid: u32) -> Result<f64> {
    mebibytes(pid, "RssAnon")
}

/// Its share of what the machine's memory holds, in MiB: a page that several processes have counts once for all of them.
pub(crate) fn proportional(pid: u32) -> Result<f64> {
    line_of(pid, "smaps_rollup", "Pss")
}

/// A line of `/proc/<pid>/status` (proc(5)), in MiB.
pub(crate) fn mebibytes(pid: u32, name: &str) -> Result<f64> {
    line_of(pid, "status", name)
}

fn line_of(pid: u32, file: &str, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: f64 = line.with_context(|| name.to_owned())?.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

#[expect(clippy::disallowed_methods, reason = "compared with the API server's, which is of this machine")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

const KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probe@N@s.bench.leasehold.dev}
spec:
  group: bench.leasehold.dev
  scope: Namespaced
  names: {kind: Probe@N@, plural: probe@N@s, singular: probe@N@}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";

const RIGHTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: @NAMESPACE@}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: replica, namespace: @NAMESPACE@}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: worker, namespace: @NAMESPACE@}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: replica, namespace: @NAMESPACE@}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, update, delete]}
- {apiGroups: [''], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [apps], resources: [replicasets], verbs: [get]}
- {apiGroups: [''], resources: [serviceaccounts], resourceNames: [worker], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: replica, namespace: @NAMESPACE@}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: replica}
subjects: [{kind: ServiceAccount, name: replica, namespace: @NAMESPACE@}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: @NAMESPACE@}
rules: [{apiGroups: [bench.leasehold.dev], resources: ['*'], verbs: [get, list, watch, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: @NAMESPACE@}
subjects:
- {kind: ServiceAccount, name: replica, namespace: @NAMESPACE@}
- {kind: ServiceAccount, name: worker, namespace: @NAMESPACE@}
";

const DEPLOYMENT: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: @NAMESPACE@}
data:
  leasehold.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Configuration
    leases: {duration: @LEASE@, renewDeadline: @DEADLINE@, retryPeriod: @RETRY@, requestTimeout: @REQUEST@}
    placement: {settle: @SETTLE@}
    kinds:
@KINDS@
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: replica, namespace: @NAMESPACE@}
spec:
  replicas: @REPLICAS@
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: replica}}
  template:
    metadata: {labels: {app: replica}}
    spec:
      serviceAccountName: replica
      terminationGracePeriodSeconds: 60
      containers:
      - name: replica
        image: @IMAGE@
        args: @ARGUMENTS@
        @PROBE@
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: POD_TEMPLATE_HASH, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['pod-template-hash']\"}}}
        volumeMounts: [{name: config, mountPath: /etc/replica}]
      volumes: [{name: config, configMap: {name: config}}]
";
