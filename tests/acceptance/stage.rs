//! Where a test plays: a namespace with observer replicas on the shared cluster.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use leasehold_cluster::{AuditEvent, Cluster, FaultProxy, Kubelet, KubeletOptions, eventually};
use serde_json::Value;
use tokio::sync::OnceCell;

/// The timings of the stages: short, and valid by the rules.
pub const LEASE: Duration = Duration::from_secs(5);
pub const TIMINGS: &str = "duration: 5s, renewDeadline: 3s, retryPeriod: 500ms, requestTimeout: 1s";

/// How long anything may take that is not a matter of timings: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long the garbage collector may take: it stands still for a while whenever a test removes a definition.
pub const COLLECTION: Duration = Duration::from_secs(240);

/// The retry period of the stages.
pub const RETRY: Duration = Duration::from_millis(500);

/// An image that needs no arguments and runs until it is stopped.
pub const SLEEPS: &str = "sleeps";

/// An image that is done at once.
pub const ENDS: &str = "ends";

static KUBELET: OnceCell<Kubelet> = OnceCell::const_new();
static STAGES: AtomicUsize = AtomicUsize::new(0);

/// The shared cluster's kubelet.
pub async fn kubelet() -> Result<&'static Kubelet> {
    let start = || async { start_kubelet(Cluster::shared().await?).await };
    KUBELET.get_or_try_init(start).await
}

/// A cluster and a kubelet for one play: for those that would spoil others'. They last as long as the process.
pub async fn apart() -> Result<(&'static Cluster, &'static Kubelet)> {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start().await?));
    let kubelet: &'static Kubelet = Box::leak(Box::new(start_kubelet(cluster).await?));
    Ok((cluster, kubelet))
}

/// A kubelet with our programs for images, and a fault proxy for each pod.
async fn start_kubelet(cluster: &Cluster) -> Result<Kubelet> {
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_leasehold"));
    let observer = programs.parent().context("target folder")?.join("examples/observer");
    let images = [
        ("leasehold".to_owned(), programs),
        ("observer".to_owned(), observer),
        (SLEEPS.to_owned(), script(cluster, SLEEPS, "exec sleep infinity")?),
        (ENDS.to_owned(), script(cluster, ENDS, "exit 0")?),
    ]
    .into();
    let options = KubeletOptions {
        nodes: 3,
        images,
        proxy_per_pod: true,
        restart_backoff: Duration::from_millis(500),
        ..KubeletOptions::default()
    };
    cluster.start_kubelet(options).await
}

/// A program for an image, in the cluster's folder.
fn script(cluster: &Cluster, name: &str, text: &str) -> Result<PathBuf> {
    let file = cluster.directory().join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

/// One test's namespace, kinds and replicas.
pub struct Stage {
    pub cluster: &'static Cluster,
    pub kubelet: &'static Kubelet,
    pub client: Client,
    pub namespace: String,
    /// CamelCase kinds, one object each.
    pub kinds: Vec<String>,
    /// Whether a writer outlives each term, for the fence to stop; on unless a play wants silence.
    pub stubborn: bool,
    /// Whether tokens of Leases are judged by in the end; a play with other locks judges by itself.
    pub judged: bool,
    /// Milliseconds between two writes of a reconciler.
    pub beat: u64,
    /// What the configuration says of placement.
    pub placement: &'static str,
    /// Who stands by, if the observers of this stage do; they then list their kind, and try to write.
    pub standby: Option<&'static str>,
    /// Whether replicas know their Pod's uid: what proof of a death rests on.
    pub proof: bool,
    /// Another namespace that has Leases of this stage.
    pub elsewhere: Option<String>,
    /// Log files of replicas that are no Pods.
    pub logs: Mutex<Vec<PathBuf>>,
    pub started: usize,
}

impl Stage {
    /// A namespace with the CRDs and objects of this many kinds, and all rights granted; no replicas yet.
    pub async fn set(name: &str, kinds: usize) -> Result<Self> {
        Self::set_on(Cluster::shared().await?, kubelet().await?, name, kinds).await
    }

    /// As [`Self::set`], on a cluster of its own: for plays that would spoil others'. It lasts as long as the process.
    pub async fn set_apart(name: &str, kinds: usize) -> Result<Self> {
        let (cluster, kubelet) = apart().await?;
        Self::set_on(cluster, kubelet, name, kinds).await
    }

    async fn set_on(cluster: &'static Cluster, kubelet: &'static Kubelet, name: &str, kinds: usize) -> Result<Self> {
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{name}-{number}");
        let kinds: Vec<_> = (0..kinds).map(|kind| format!("Probe{number}x{kind}")).collect();
        let client = cluster.client()?;
        let mut stage = Self {
            cluster,
            kubelet,
            client,
            namespace,
            kinds,
            stubborn: true,
            judged: true,
            beat: 20,
            placement: "grace: 1s, settle: 2s",
            standby: None,
            proof: true,
            elsewhere: None,
            logs: Mutex::default(),
            started: 0,
        };
        stage.started = cluster.audit()?.len();
        let namespace = &stage.namespace;
        cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}")).await?;
        for kind in &stage.kinds {
            stage.install(kind).await?;
        }
        stage.grant().await?;
        for kind in &stage.kinds {
            stage.put_object(kind).await?;
        }
        Ok(stage)
    }

    /// Installs the CRD of a kind.
    pub async fn install(&self, kind: &str) -> Result<()> {
        let plural = plural(kind);
        self.cluster
            .apply(&format!(
                r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.observer.leasehold.dev}}
spec:
  group: observer.leasehold.dev
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}, singular: {singular}}}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {{openAPIV3Schema: {{type: object, properties: {{spec: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}}}
",
                singular = kind.to_lowercase()
            ))
            .await?;
        self.cluster.established(&format!("{plural}.observer.leasehold.dev")).await
    }

    /// The object that a kind's reconciler writes to.
    pub async fn put_object(&self, kind: &str) -> Result<()> {
        let object = format!(
            "{{apiVersion: observer.leasehold.dev/v1, kind: {kind}, metadata: {{name: it, namespace: {}}}}}",
            self.namespace
        );
        let put = || async { self.cluster.apply(&object).await };
        eventually("the new kind takes an object", PATIENCE, put, |_| true).await?;
        Ok(())
    }

    /// Grants what the observer needs: its kinds, and Leases in its namespace.
    pub async fn grant(&self) -> Result<()> {
        self.grant_kinds("[get, list, watch, patch]").await?;
        self.grant_leases("[get, list, watch, create, update, delete]").await
    }

    /// Grants these verbs on the kinds of this stage.
    pub async fn grant_kinds(&self, verbs: &str) -> Result<()> {
        let namespace = &self.namespace;
        let resources: Vec<_> = self.kinds.iter().map(|kind| plural(kind)).collect();
        self.cluster
            .apply(&format!(
                r"
apiVersion: v1
kind: ServiceAccount
metadata: {{name: observer, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}}}
rules: [{{apiGroups: [observer.leasehold.dev], resources: [{}], verbs: {verbs}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
",
                resources.join(", ")
            ))
            .await?;
        Ok(())
    }

    /// Grants these verbs on Leases in the namespace.
    pub async fn grant_leases(&self, verbs: &str) -> Result<()> {
        let namespace = &self.namespace;
        self.cluster
            .apply(&format!(
                r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: leases, namespace: {namespace}}}
rules:
- {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: {verbs}}}
- {{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}}
- {{apiGroups: [apps], resources: [replicasets], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: leases, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leases}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
"#
            ))
            .await?;
        Ok(())
    }

    /// Starts the replicas as a Deployment.
    pub async fn replicas(&self, count: usize) -> Result<()> {
        self.apply(count, &self.kinds.iter().map(|kind| (kind.as_str(), 1)).collect::<Vec<_>>()).await?;
        let running = |pods: &Vec<Pod>| {
            pods.len() == count
                && pods.iter().all(|pod| !self.kubelet.pids(&self.namespace, &pod.name_any()).is_empty())
        };
        eventually("the replicas run", PATIENCE, || self.pods(), running).await?;
        Ok(())
    }

    /// Applies the Deployment with these kinds and their weights in its configuration; another configuration is another
    /// template, as the hash that kustomize adds makes it.
    pub async fn apply(&self, count: usize, kinds: &[(&str, u32)]) -> Result<()> {
        let namespace = &self.namespace;
        let (beat, placement) = (self.beat, self.placement);
        let stubborn = if self.stubborn { "- {name: STUBBORN, value: \"true\"}" } else { "" };
        let stands_by = self.standby.map_or("", |_| "- {name: STANDS_BY, value: \"true\"}");
        let standby = self.standby.unwrap_or("Successor");
        let uid = "- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}";
        let uid = if self.proof { uid } else { "" };
        let config: String = kinds.iter().map(|(kind, weight)| format!("{kind}-{weight}-")).collect::<String>();
        let config =
            format!("config-{:x}", config.bytes().fold(0_u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte)));
        let kinds: String = kinds
            .iter()
            .map(|(kind, weight)| {
                format!(
                    "    - {{apiVersion: observer.leasehold.dev/v1, kind: {kind}, weight: {weight}, reconciler: {{builtin: observer}}}}\n"
                )
            })
            .collect();
        self.cluster
            .apply(&format!(
                r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {config}, namespace: {namespace}}}
data:
  leasehold.yaml: |
    apiVersion: leasehold.dev/v1alpha1
    kind: Configuration
    instance: {namespace}
    leases: {{{TIMINGS}}}
    placement: {{{placement}}}
    defaults: {{standby: {standby}}}
    drainTimeout: 3s
    kinds:
{kinds}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: observer, namespace: {namespace}}}
spec:
  replicas: {count}
  strategy: {{type: RollingUpdate, rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  selector: {{matchLabels: {{app: observer}}}}
  template:
    metadata: {{labels: {{app: observer}}}}
    spec:
      serviceAccountName: observer
      terminationGracePeriodSeconds: 20
      containers:
      - name: observer
        image: observer
        args: [/etc/observer/leasehold.yaml, "0.0.0.0:8080"]
        readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
        env:
        - {{name: BEAT, value: "{beat}"}}
        {stubborn}
        {stands_by}
        - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: POD_NAMESPACE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}
        {uid}
        - {{name: POD_TEMPLATE_HASH, valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['pod-template-hash']"}}}}}}
        volumeMounts: [{{name: config, mountPath: /etc/observer}}]
      volumes: [{{name: config, configMap: {{name: {config}}}}}]
"#
            ))
            .await?;
        Ok(())
    }

    /// The pods that are not on their way out.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = pods.list(&ListParams::default()).await?.items;
        Ok(all.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Who holds each kind's Lease, by Lease name; a free one is absent.
    pub async fn holders(&self) -> Result<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = leases.list(&ListParams::default().labels("leasehold.dev/role!=replica")).await?.items;
        let holder = |lease: Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())?;
            Some((lease.name_any(), holder))
        };
        Ok(all.into_iter().filter_map(holder).collect())
    }

    /// Waits until every kind of this stage has a holder whose process writes.
    pub async fn all_led(&self) -> Result<BTreeMap<String, String>> {
        let names: Vec<_> = self.kinds.iter().map(|kind| lease_of(kind)).collect();
        let all = |holders: &BTreeMap<String, String>| names.iter().all(|name| holders.contains_key(name));
        let holders = eventually("every kind is led", PATIENCE, || self.holders(), all).await?;
        for kind in &self.kinds {
            self.written_by(kind, |_| true).await?;
        }
        Ok(holders)
    }

    /// Waits until a kind's Lease is held by somebody of whom this is true.
    pub async fn held(&self, kind: &str, by: impl Fn(&str) -> bool) -> Result<String> {
        let lease = lease_of(kind);
        let what = format!("{lease} is held as expected");
        let enough = |holders: &BTreeMap<String, String>| holders.get(&lease).is_some_and(|holder| by(holder));
        let holders = eventually(&what, PATIENCE, || self.holders(), enough).await?;
        Ok(holders[&lease].clone())
    }

    /// An admission policy that refuses creations and updates of a resource of this namespace that its validation does not let
    /// through.
    pub async fn refuse_unless(&self, group: &str, resource: &str, validation: &Value) -> Result<()> {
        let namespace = &self.namespace;
        let policy = format!(
            "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {namespace}}}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}
    resourceRules: [{{apiGroups: ['{group}'], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [{resource}]}}]
  validations: [{validation}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {namespace}}}
spec: {{policyName: {namespace}, validationActions: [Deny]}}
"
        );
        self.cluster.apply(&policy).await?;
        Ok(())
    }

    /// Lets the replicas write and read events on their Leases, as `deploy/rbac.yaml` grants it.
    pub async fn let_events_be_written(&self) -> Result<()> {
        let namespace = &self.namespace;
        let role = format!(
            "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: events, namespace: {namespace}}}
rules: [{{apiGroups: [events.k8s.io], resources: [events], verbs: [create, list, patch]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: events, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: events}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
"
        );
        self.cluster.apply(&role).await?;
        Ok(())
    }

    /// Waits until the last writer of a kind's object is as expected.
    pub async fn written_by(&self, kind: &str, by: impl Fn(&str) -> bool) -> Result<String> {
        let resource = plural(kind);
        let look = || async {
            let holder = "jsonpath={.spec.holder}";
            self.cluster.kubectl(&["get", &resource, "it", "-n", &self.namespace, "-o", holder]).await
        };
        eventually(&format!("{kind} is written as expected"), PATIENCE, look, |holder| !holder.is_empty() && by(holder))
            .await
    }

    /// Orders a kind's reconciler to misbehave, or not to.
    pub async fn order(&self, kind: &str, order: Option<&str>) -> Result<()> {
        let order = order.map_or("order-".to_owned(), |order| format!("order={order}"));
        self.cluster.kubectl(&["annotate", "--overwrite", &plural(kind), "it", "-n", &self.namespace, &order]).await?;
        Ok(())
    }

    /// The fault proxy of the pod whose identity this is.
    pub fn proxy_of(&self, holder: &str) -> Result<FaultProxy> {
        self.kubelet.proxy(&self.namespace, pod_of(holder)).context("the pod has a fault proxy")
    }

    /// What the API server recorded of this stage.
    pub fn audit(&self) -> Result<Vec<Arc<AuditEvent>>> {
        self.audit_from(&mut self.started.clone())
    }

    /// What it has recorded since the event of this number, which becomes that of the next one.
    pub fn audit_from(&self, next: &mut usize) -> Result<Vec<Arc<AuditEvent>>> {
        let mut events = self.cluster.audit_from(*next)?;
        *next += events.len();
        events.retain(|event| event.namespace.as_ref().is_some_and(|name| self.plays_in(name)));
        Ok(events)
    }

    fn plays_in(&self, namespace: &str) -> bool {
        namespace == self.namespace || self.elsewhere.as_deref() == Some(namespace)
    }

    /// All that is known of the replicas, for a failure.
    pub async fn log(&self) -> String {
        let mut text = String::new();
        for pod in self.pods().await.unwrap_or_default() {
            let log = self.kubelet.log(&self.namespace, &pod.name_any());
            text.push_str(&format!("--- {}\n{log}\n", pod.name_any()));
        }
        for path in self.logs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let log = std::fs::read(path).unwrap_or_default();
            text.push_str(&format!("--- {}\n{}\n", path.display(), String::from_utf8_lossy(&log)));
        }
        text
    }
}

/// Runs a play on a stage; a failure shows the replicas' logs and what became of the Leases.
pub async fn play<F: Future<Output = Result<()>>>(stage: Stage, act: impl FnOnce(&'static Stage) -> F) {
    // Stages live as long as the test process: a failed one keeps its state for the log.
    let stage: &'static Stage = Box::leak(Box::new(stage));
    let played = act(stage).await;
    let judged = if stage.judged { crate::judge::judge(stage) } else { Ok(()) };
    let delete = ["delete", "deployment", "observer", "-n", &stage.namespace, "--wait=false", "--ignore-not-found"];
    if let Err(error) = played.and(judged) {
        let story = crate::judge::story(stage).unwrap_or_else(|error| format!("{error:#}"));
        panic!("{error:#}\n{}\n--- the Leases, without renewals\n{story}", stage.log().await);
    }
    stage.cluster.kubectl(&delete).await.expect("the Deployment is deleted");
}

/// Plural resource name of an observer kind.
pub fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

/// Lease name of an observer kind.
pub fn lease_of(kind: &str) -> String {
    format!("{}.observer.leasehold.dev", kind.to_lowercase())
}

/// What an observer kind is called in configurations' words: with its group.
pub fn name_of(kind: &str) -> String {
    format!("{kind}.observer.leasehold.dev")
}

/// The pod that a holder identity is of.
pub fn pod_of(holder: &str) -> &str {
    holder.rsplit_once('_').map_or(holder, |(pod, _)| pod)
}

/// It is about elections, or asks about permissions, which is done by a creation; it is not about the objects of a kind.
pub fn is_aside(event: &AuditEvent) -> bool {
    let regarding = event.request_object.as_ref().and_then(|event| event.pointer("/regarding/kind"));
    ["leases", "selfsubjectaccessreviews", "selfsubjectrulesreviews"].contains(&event.resource.as_str())
        || (event.resource == "events" && regarding.is_some_and(|kind| kind == "Lease"))
}

/// The only one whose pod this is not.
pub fn not(pod: &str) -> impl Fn(&str) -> bool {
    let pod = pod.to_owned();
    move |holder| pod_of(holder) != pod
}

/// What a test has seen, for its reader.
#[expect(clippy::print_stdout, reason = "the output of a test")]
pub fn tell(seen: &str) {
    println!("{seen}");
}

/// Fails unless true, with words.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if !holds {
        bail!(otherwise());
    }
    Ok(())
}
