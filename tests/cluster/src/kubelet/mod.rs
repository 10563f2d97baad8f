//! The process kubelet: Nodes whose pods are processes of this machine.
//!
//! It stands in for the node only. Scheduling is round-robin; everything above the node (Deployments, ReplicaSets, RBAC, tokens) is real.
//! What differs from a real node, because there are no images and no namespaces:
//!
//! - An image's name is mapped to a program. An entrypoint with that program's file name means that program; any other is looked up on this machine.
//! - A mount cannot be mounted: where an argument or a variable names a path at or below a mount path, the path is replaced by the folder that holds the volume.
//!   Paths inside files are not replaced, so a configuration should name its files relative to itself.
//! - The same goes for `terminationMessagePath`: its stand-in is a fresh file for each run, which `TERMINATION_LOG` names too, because a program that
//!   looks there by itself is told by no argument. `terminationMessagePolicy` is `File` always.
//! - A PersistentVolumeClaim is never bound: its volume is a folder of the cluster's, which is there for as long as the cluster is.
//! - All pods share one host, so each has its own loopback address (`127.x.y.z`, its `podIP`), and `0.0.0.0` in arguments and variables becomes that address.
//! - With a ServiceAccount token mounted, `KUBECONFIG` names a kubeconfig that uses it; `KUBERNETES_SERVICE_HOST` is not set.
//! - `PATH`, `HOME`, `RUST_LOG` and `RUST_BACKTRACE` come from whoever runs the cluster, nothing else does.
//! - Security contexts, resources, init containers, exec probes, hooks other than a `preStop` sleep and `kubectl exec` are not there.
//! - `Service` addresses are there for the API server only, as for its webhooks; pods cannot connect to them.
//! - `kubectl logs --timestamps` shows no timestamps; `--previous` and `-f` work.

mod container;
mod environment;
mod logs;
mod pod;
mod probe;
mod record;
mod status;
mod volumes;

use crate::{
    certificates::Authority,
    cluster::Cluster,
    proxy::{FaultProxy, Upstream},
};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    api::core::v1::{Event, Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use pod::{Identity, Worker};
use record::Record;
use rustix::process::{Signal, kill_process, kill_process_group};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// How the process kubelet runs pods.
#[derive(Clone, Debug)]
pub struct KubeletOptions {
    /// How many Nodes it stands for: `node-1`, `node-2`…
    pub nodes: usize,
    /// The program behind each image. An image is looked up as written, then without tag and digest.
    pub images: BTreeMap<String, PathBuf>,
    /// Whether each pod reaches the API server through a fault proxy of its own.
    pub proxy_per_pod: bool,
    /// Variables for every container; the pod's own come after and win.
    pub env: BTreeMap<String, String>,
    /// The first back-off of a container that fails again after its immediate restart; doubles up to thirty times this. The kubelet's is 10 s.
    pub restart_backoff: Duration,
    /// How often volumes and tokens are written again.
    pub sync: Duration,
}

impl Default for KubeletOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            images: BTreeMap::new(),
            proxy_per_pod: false,
            env: BTreeMap::new(),
            restart_backoff: Duration::from_secs(10),
            sync: Duration::from_secs(20),
        }
    }
}

impl KubeletOptions {
    fn program(&self, image: &str) -> Option<PathBuf> {
        let without_digest = image.split('@').next().unwrap_or(image);
        let slash = without_digest.rfind('/').map_or(0, |slash| slash + 1);
        let untagged = match without_digest[slash..].find(':') {
            Some(colon) => &without_digest[..slash + colon],
            None => without_digest,
        };
        [image, without_digest, untagged].iter().find_map(|name| self.images.get(*name)).cloned()
    }
}

/// A running process kubelet. Dropping it kills its pods' processes, as the loss of a whole node does; their objects stay.
pub struct Kubelet {
    host: Arc<Host>,
    tasks: Vec<AbortHandle>,
    /// Keeps the threads its tasks run on.
    _cluster: Cluster,
}

/// What all pods of one kubelet share.
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) options: KubeletOptions,
    /// The cluster's directory.
    pub(crate) directory: PathBuf,
    /// The API server.
    pub(crate) url: String,
    pub(crate) addresses: Arc<Addresses>,
    upstream: Upstream,
    authority: Arc<Authority>,
    /// The latest pod of each namespace and name.
    records: Mutex<HashMap<(String, String), Arc<Record>>>,
}

/// The loopback addresses of one cluster's pods: `127.x.y.1` to `.254`, where x and y come from the API server's port.
pub(crate) struct Addresses {
    prefix: [u8; 3],
    taken: Mutex<(u8, BTreeSet<u8>)>,
}

impl Kubelet {
    pub(crate) async fn start(cluster: &Cluster, options: KubeletOptions) -> Result<Self> {
        let inner = cluster.inner();
        for (image, program) in &options.images {
            if !program.is_file() {
                bail!("image {image}: {} is no file", program.display());
            }
        }
        let client = cluster.kubelet_client()?;
        let host = Arc::new(Host {
            client: client.clone(),
            directory: inner.directory.clone(),
            url: cluster.url().to_owned(),
            addresses: inner.addresses.clone(),
            upstream: cluster.upstream()?,
            authority: inner.authority.clone(),
            records: Mutex::default(),
            options,
        });
        let (log_port, log_server) = logs::serve(host.clone()).await?;
        let names: Vec<_> = (1..=host.options.nodes.max(1)).map(|number| format!("node-{number}")).collect();
        for name in &names {
            register(&client, name, log_port).await.with_context(|| format!("failed to register {name}"))?;
        }
        let tasks =
            vec![tokio::spawn(log_server).abort_handle(), tokio::spawn(run(host.clone(), names)).abort_handle()];
        Ok(Self { host, tasks, _cluster: cluster.clone() })
    }

    /// The running processes of a pod, one a container; empty when there are none, or no such pod.
    pub fn pids(&self, namespace: &str, pod: &str) -> Vec<u32> {
        let pids = self.host.record(namespace, pod).map(|record| record.pids()).unwrap_or_default();
        pids.into_iter().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()).collect()
    }

    /// Signals a pod's processes, each its main process only: KILL for a crash, STOP and CONT for a pause.
    ///
    /// # Errors
    /// When the pod has no running process.
    pub fn signal(&self, namespace: &str, pod: &str, signal: Signal) -> Result<()> {
        let pids = self.host.record(namespace, pod).map(|record| record.pids()).unwrap_or_default();
        if pids.is_empty() {
            bail!("{namespace}/{pod} has no running process");
        }
        for pid in pids {
            kill_process(pid, signal).with_context(|| format!("failed to signal {namespace}/{pod}"))?;
        }
        Ok(())
    }

    /// Stops a pod as a machine that stands still does: its processes stop, and the kubelet asks nothing of them. A pod whose
    /// processes alone are stopped ([`signal`](Self::signal)) is restarted by its liveness probe.
    ///
    /// # Errors
    /// When the pod has no running process.
    pub fn stall(&self, namespace: &str, pod: &str) -> Result<()> {
        self.stand_still(namespace, pod, true, Signal::STOP)
    }

    /// Ends [`stall`](Self::stall).
    ///
    /// # Errors
    /// When the pod has no running process.
    pub fn resume(&self, namespace: &str, pod: &str) -> Result<()> {
        self.stand_still(namespace, pod, false, Signal::CONT)
    }

    fn stand_still(&self, namespace: &str, pod: &str, stalled: bool, signal: Signal) -> Result<()> {
        if let Some(record) = self.host.record(namespace, pod) {
            record.stall(stalled);
        }
        self.signal(namespace, pod, signal)
    }

    /// The fault proxy of a pod, with [`KubeletOptions::proxy_per_pod`].
    pub fn proxy(&self, namespace: &str, pod: &str) -> Option<FaultProxy> {
        self.host.record(namespace, pod)?.proxy.clone()
    }

    /// The log file of a pod's first container, all runs in one; also after the pod has gone. Of pods with one name, the latest.
    pub fn log_path(&self, namespace: &str, pod: &str) -> Option<PathBuf> {
        self.host.record(namespace, pod)?.containers().into_values().next().map(|runs| runs.log)
    }

    /// What a pod's first container wrote so far; empty when there is nothing.
    pub fn log(&self, namespace: &str, pod: &str) -> String {
        let content = self.log_path(namespace, pod).and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let records = self.host.records.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in records.values().flat_map(|record| record.pids()) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Host {
    /// A proxy for one pod, when each is to have one.
    pub(crate) async fn pod_proxy(&self) -> Result<Option<FaultProxy>> {
        if !self.options.proxy_per_pod {
            return Ok(None);
        }
        let server = self.authority.issue(&["127.0.0.1", "localhost"])?.server()?;
        Ok(Some(FaultProxy::start(self.upstream.clone(), Some(server)).await?))
    }

    pub(crate) fn remember(&self, identity: &Identity, record: Arc<Record>) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert((identity.namespace.clone(), identity.name.clone()), record);
    }

    pub(crate) fn record(&self, namespace: &str, pod: &str) -> Option<Arc<Record>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    /// Posts an Event about a pod, in the background: nothing waits for it, and a lost one is lost.
    pub(crate) fn event(&self, pod: &Pod, type_: &str, reason: &str, message: &str) {
        let Some(Identity { namespace, name, uid }) = Identity::of(pod) else { return };
        let now = Timestamp::now();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "generateName": format!("{name}.")},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
            "type": type_,
            "reason": reason,
            "message": message.chars().take(1000).collect::<String>(),
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "count": 1,
            "source": {"component": "process-kubelet"},
        });
        let events = Api::<Event>::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            let Ok(event) = serde_json::from_value(event) else { return };
            let parameters = PostParams::default();
            let post = events.create(&parameters, &event);
            if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(5), post).await {
                tracing::debug!("failed to post an event: {error}");
            }
        });
    }
}

impl Addresses {
    pub(crate) fn of(port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        Self { prefix: [127, high, low], taken: Mutex::new((0, BTreeSet::new())) }
    }

    /// The next free address; a used one is not taken again soon.
    pub(crate) fn take(&self) -> Result<String> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, used) = &mut *taken;
        for _ in 0..254 {
            *last = if *last >= 254 { 1 } else { *last + 1 };
            if used.insert(*last) {
                let [a, b, c] = self.prefix;
                return Ok(Ipv4Addr::new(a, b, c, *last).to_string());
            }
        }
        bail!("all 254 pod addresses are taken")
    }

    pub(crate) fn give_back(&self, address: &str) {
        let last = address.parse::<Ipv4Addr>().map(|address| address.octets()[3]);
        if let Ok(last) = last {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&last);
        }
    }
}

/// Watches all pods, binds those without a Node, and keeps a task for each pod of ours.
async fn run(host: Arc<Host>, nodes: Vec<String>) {
    let pods = Api::<Pod>::all(host.client.clone());
    // A short watch notices a dead connection soon.
    let mut events = watcher(pods, watcher::Config::default().timeout(60)).boxed();
    let mut workers: HashMap<Identity, watch::Sender<Option<Arc<Pod>>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut listed = BTreeSet::new();
    let mut turn = 0;
    loop {
        while tasks.try_join_next().is_some() {}
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!("the pod watch failed: {error}");
                tokio::time::sleep(Duration::from_millis(300)).await;
                continue;
            }
        };
        let pod = match event {
            watcher::Event::Init => {
                listed.clear();
                continue;
            }
            watcher::Event::InitDone => {
                for (_, seen) in workers.extract_if(|identity, _| !listed.contains(identity)) {
                    seen.send_replace(None);
                }
                continue;
            }
            watcher::Event::Delete(pod) => {
                if let Some(seen) = Identity::of(&pod).and_then(|identity| workers.remove(&identity)) {
                    seen.send_replace(None);
                }
                continue;
            }
            watcher::Event::InitApply(pod) => {
                listed.extend(Identity::of(&pod));
                pod
            }
            watcher::Event::Apply(pod) => pod,
        };
        let Some(identity) = Identity::of(&pod) else { continue };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let Some(node) = node else {
            if pod.metadata.deletion_timestamp.is_none() {
                let name = &nodes[turn % nodes.len()];
                turn += 1;
                tasks.spawn(bind(host.client.clone(), identity, name.clone()));
            }
            continue;
        };
        if !nodes.iter().any(|name| name == node) {
            continue;
        }
        let pod = Arc::new(pod);
        match workers.get(&identity) {
            Some(seen) => {
                seen.send_replace(Some(pod));
            }
            None => {
                let (seen, receiver) = watch::channel(Some(pod.clone()));
                match Worker::new(host.clone(), identity.clone(), &pod, receiver) {
                    Ok(worker) => {
                        tasks.spawn(worker.run());
                        workers.insert(identity, seen);
                    }
                    Err(error) => host.event(&pod, "Warning", "FailedCreatePodSandBox", &format!("{error:#}")),
                }
            }
        }
    }
}

async fn bind(client: Client, identity: Identity, node: String) {
    let Identity { namespace, name, uid } = &identity;
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"namespace": namespace, "name": name, "uid": uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let pods = Api::<Pod>::namespaced(client, namespace);
    for _ in 0..20 {
        let bound =
            pods.create_subresource::<_, serde_json::Value>("binding", name, &PostParams::default(), &binding).await;
        match bound {
            Ok(_) => return,
            // Gone, or bound already.
            Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.code == 409 => return,
            Err(error) => tracing::debug!(pod = %name, "failed to bind: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn register(client: &Client, name: &str, log_port: u16) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": std::env::consts::ARCH},
        },
    });
    nodes.patch(name, &PatchParams::apply("process-kubelet").force(), &Patch::Apply(&node)).await?;
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let amounts = json!({"cpu": "64", "memory": "256Gi", "pods": "254", "ephemeral-storage": "1Ti"});
    let status = json!({"status": {
        "capacity": amounts,
        "allocatable": amounts,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the process kubelet runs",
            "lastTransitionTime": now, "lastHeartbeatTime": now,
        }],
        "nodeInfo": {
            "architecture": std::env::consts::ARCH, "operatingSystem": "linux", "osImage": "processes", "kernelVersion": "",
            "containerRuntimeVersion": "process://1", "kubeletVersion": "v1.37.2", "kubeProxyVersion": "",
            "machineID": "", "systemUUID": "", "bootID": "",
        },
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_with_and_without_tag() {
        let options = KubeletOptions {
            images: [("leasehold", "a"), ("registry:5000/app:v1", "b"), ("registry:5000/other", "c")]
                .map(|(image, program)| (image.to_owned(), PathBuf::from(program)))
                .into(),
            ..KubeletOptions::default()
        };
        for (image, expected) in [
            ("leasehold", Some("a")),
            ("leasehold:dev", Some("a")),
            ("leasehold@sha256:00", Some("a")),
            ("registry:5000/app:v1", Some("b")),
            ("registry:5000/app:v2", None),
            ("registry:5000/other:v2@sha256:00", Some("c")),
        ] {
            assert_eq!(options.program(image), expected.map(PathBuf::from), "{image}");
        }
    }

    #[test]
    fn addresses_are_distinct_and_come_back() {
        let addresses = Addresses::of(0x1234);
        let all: BTreeSet<_> = (0..254).map(|_| addresses.take().unwrap()).collect();
        assert_eq!(all.len(), 254);
        assert!(all.contains("127.18.52.1"));
        addresses.take().unwrap_err();
        addresses.give_back("127.18.52.7");
        assert_eq!(addresses.take().unwrap(), "127.18.52.7");
    }
}
