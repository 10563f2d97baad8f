//! Proof that a process has ended, so that its Leases need not expire first (rule 11).
//!
//! Two things prove it. The Pod's lock: a name that the kernel gives to one process of a Pod at a time, and takes back
//! when that one has died and not before. And the kubelet's word: it copies what a container wrote to its termination
//! log into the Pod's status when this very container has ended, so a holder identity that comes back there is of a dead
//! process. No time, restart count or container id is compared. A Pod that is gone, unready or being deleted proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ContainerState, Pod},
};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{board::WATCH_TIMEOUT, problem::describe};

/// What a process writes to its container's termination log, before its holder identity.
const TESTIMONY: &str = "leasehold holder ";

/// Revision of a ReplicaSet, which the Deployment controller counts up with each rollout and rollback.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Between two attempts to watch Pods, the longest of them when it is not allowed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Of Pods that are gone this many deaths are remembered: what somebody may still find on a Lease.
const REMEMBERED: usize = 256;

/// Which processes have ended, by holder identity, as far as the kubelet has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    /// Their container has ended and stays down: it backs off, or its Pod ends.
    pub ended: BTreeSet<String>,
    /// Their container runs again, or is about to: its new process may take their Leases back itself.
    pub restarted: BTreeSet<String>,
}

/// Where our own Pod comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Revision of the ReplicaSet that made it; grows with each rollout, and with each rollback.
    pub revision: Option<u64>,
}

/// What the status of one Pod proves. Whether the Pod goes on says only who should follow, and proves nothing.
pub fn deaths_of(pod: &Pod) -> Deaths {
    let mut deaths = Deaths::default();
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let goes_on = pod.metadata.deletion_timestamp.is_none() && policy.is_none_or(|policy| policy == "Always");
    let statuses = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
    for container in statuses {
        // The kubelet starts what has just ended at once, or says what keeps it from that: a back-off, an image.
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let stays_down = waiting.is_some_and(|waiting| !waiting.reason.as_deref().is_none_or(is_being_started));
        let dead = [&container.state, &container.last_state].into_iter().flatten().flat_map(testimony);
        if goes_on && !stays_down { deaths.restarted.extend(dead) } else { deaths.ended.extend(dead) }
    }
    deaths
}

fn is_being_started(waiting: &str) -> bool {
    matches!(waiting, "ContainerCreating" | "PodInitializing")
}

/// The identities that an ended container has written to its log.
fn testimony(state: &ContainerState) -> impl Iterator<Item = String> {
    let message = state.terminated.as_ref().and_then(|ended| ended.message.as_deref()).unwrap_or_default();
    let identity = |line: &str| {
        let identity = line.strip_prefix(TESTIMONY)?;
        (!identity.is_empty() && !identity.contains(char::is_whitespace)).then(|| identity.to_owned())
    };
    message.lines().filter_map(identity)
}

/// Writes our identity to the container's termination log: what comes back in the Pod's status when we have ended.
///
/// # Errors
/// `NotFound` where there is no such log, as outside of a container: it is never created.
pub fn testify(log: &Path, identity: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(log)?;
    // On a line of its own, whatever was written before.
    write!(file, "\n{TESTIMONY}{identity}\n")
}

/// The name that one process of a Pod holds at a time. Whoever holds it knows that every process which gave the Pod's
/// uid before is dead, for it held the name when it did.
///
/// It is an abstract Unix socket: all containers of a Pod share the network namespace that such names live in, and the
/// kernel frees a name with the process that bound it, a stopped process included.
#[derive(Debug)]
pub struct PodLock {
    #[cfg(target_os = "linux")]
    _socket: std::os::unix::net::UnixListener,
}

impl PodLock {
    /// Takes the name for the life of the value.
    ///
    /// # Errors
    /// `AddrInUse` if another process of the Pod holds it; `Unsupported` if this is not Linux.
    #[cfg(target_os = "linux")]
    pub fn take(instance: &str, uid: &str) -> io::Result<Self> {
        use std::os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener},
        };
        // An instance and a uid of the longest kind fit: a name has 107 bytes.
        let name = SocketAddr::from_abstract_name(format!("lease/{instance}/{uid}"))?;
        Ok(Self { _socket: UnixListener::bind_addr(&name)? })
    }

    /// As on Linux, where it works.
    ///
    /// # Errors
    /// `Unsupported`, always.
    #[cfg(not(target_os = "linux"))]
    pub fn take(_instance: &str, _uid: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Watches the Pods that run under our ServiceAccount: no other Pod can hold our Leases.
pub struct Witness {
    client: Client,
    namespace: String,
    pod: String,
    deaths: watch::Sender<Deaths>,
    origin: watch::Sender<Option<Origin>>,
    known: Known,
}

/// What each Pod's status proved, and what those proved that are gone: a proof stays true.
#[derive(Debug, Default)]
struct Known {
    pods: BTreeMap<String, Deaths>,
    gone: VecDeque<String>,
}

impl Witness {
    /// A witness who begins with our own Pod.
    pub fn new(client: Client, namespace: String, pod: String) -> Self {
        Self {
            client,
            namespace,
            pod,
            deaths: watch::Sender::default(),
            origin: watch::Sender::default(),
            known: Known::default(),
        }
    }

    /// What is proven, from now on.
    pub fn deaths(&self) -> watch::Receiver<Deaths> {
        self.deaths.subscribe()
    }

    /// Where our Pod comes from, once that was read.
    pub fn origin(&self) -> watch::Receiver<Option<Origin>> {
        self.origin.subscribe()
    }

    /// Watches until dropped; never returns by itself. Cancel safe.
    /// Without the permissions everything works, and slower: Leases expire, and generations go by their age.
    pub async fn run(mut self) {
        let mut pause = RETRY.0;
        let mut said = None;
        loop {
            let error = self.observe().await;
            // A watch that worked for a while has ended as it may.
            if self.known.pods.is_empty() {
                pause = (pause * 2).min(RETRY.1);
            } else {
                pause = RETRY.0;
            }
            if said.as_ref() != Some(&error) {
                warn!("Pods are not seen, Leases of ended processes have to expire: {error}");
                said = Some(error);
            }
            tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }

    async fn observe(&mut self) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let own = match pods.get(&self.pod).await {
            Ok(pod) => pod,
            Err(error) => return self.explain(&error, "get pods"),
        };
        if self.origin.borrow().is_none() {
            let origin = Origin { revision: self.revision(&own).await };
            self.origin.send_replace(Some(origin));
        }
        let account = own.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let config =
            watcher::Config::default().fields(&format!("spec.serviceAccountName={account}")).timeout(WATCH_TIMEOUT);
        let stream = watcher(pods, config);
        pin_mut!(stream);
        let mut listed = None;
        loop {
            match stream.next().await {
                Some(Ok(watcher::Event::Init)) => listed = Some(BTreeMap::new()),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.get_or_insert_default().insert(pod.name_any(), deaths_of(&pod));
                }
                Some(Ok(watcher::Event::InitDone)) => self.known.list(listed.take().unwrap_or_default()),
                Some(Ok(watcher::Event::Apply(pod))) => self.known.see(pod.name_any(), deaths_of(&pod)),
                Some(Ok(watcher::Event::Delete(pod))) => {
                    // The last status may be news: a Pod is often deleted at once when its container has ended.
                    self.known.see(pod.name_any(), deaths_of(&pod));
                    self.known.forget(&pod.name_any());
                }
                Some(Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))) => {
                    return self.explain(&error, "list and watch pods");
                }
                Some(Err(error)) => return describe(&error),
                None => return "the watch has ended".to_owned(),
            }
            if listed.is_none() {
                let deaths = self.known.all();
                self.deaths.send_if_modified(|known| {
                    let news = *known != deaths;
                    *known = deaths;
                    news
                });
            }
        }
    }

    /// `None` for a Pod that no ReplicaSet made, and without the right to read it: then generations go by their age.
    async fn revision(&self, pod: &Pod) -> Option<u64> {
        let owners = pod.owner_references().iter();
        let owner = owners.into_iter().find(|owner| owner.kind == "ReplicaSet" && owner.controller == Some(true))?;
        let sets = Api::<ReplicaSet>::namespaced(self.client.clone(), &self.namespace);
        match sets.get(&owner.name).await {
            Ok(set) => set.annotations().get(REVISION)?.parse().ok(),
            Err(error) => {
                warn!("generations go by their age: {}", self.explain(&error, "get replicasets.apps"));
                None
            }
        }
    }

    fn explain(&self, error: &kube::Error, what: &str) -> String {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => format!(
                "not allowed to {what} in namespace {}: grant it with a Role and a RoleBinding, as deploy/rbac.yaml does",
                self.namespace
            ),
            kube::Error::Api(status) => {
                debug!(code = status.code, "Pod request refused");
                format!("failed to {what}: {} {}", status.code, status.message)
            }
            other => format!("failed to {what}: {}", describe(other)),
        }
    }
}

impl Known {
    fn list(&mut self, pods: BTreeMap<String, Deaths>) {
        let gone: Vec<_> = self.pods.keys().filter(|pod| !pods.contains_key(*pod)).cloned().collect();
        gone.iter().for_each(|pod| self.forget(pod));
        for (pod, deaths) in pods {
            self.see(pod, deaths);
        }
    }

    fn see(&mut self, pod: String, deaths: Deaths) {
        let before = self.pods.insert(pod, deaths);
        // A status shows the last two processes of a container, and the dead stay dead.
        let shown = self.all();
        let both = before.into_iter().flat_map(|before| before.ended.into_iter().chain(before.restarted));
        self.remember(both.filter(|identity| !shown.ended.contains(identity) && !shown.restarted.contains(identity)));
    }

    fn forget(&mut self, pod: &str) {
        if let Some(deaths) = self.pods.remove(pod) {
            self.remember(deaths.ended.into_iter().chain(deaths.restarted));
        }
    }

    fn remember(&mut self, dead: impl IntoIterator<Item = String>) {
        for identity in dead {
            if !self.gone.contains(&identity) {
                self.gone.push_back(identity);
            }
        }
        while self.gone.len() > REMEMBERED {
            self.gone.pop_front();
        }
    }

    fn all(&self) -> Deaths {
        let mut all = Deaths { ended: self.gone.iter().cloned().collect(), restarted: BTreeSet::new() };
        for deaths in self.pods.values() {
            all.ended.extend(deaths.ended.iter().cloned());
            all.restarted.extend(deaths.restarted.iter().cloned());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deaths(container: Value) -> (Vec<String>, Vec<String>) {
        deaths_in(&json!({"name": "p"}), container)
    }

    fn deaths_in(metadata: &Value, container: Value) -> (Vec<String>, Vec<String>) {
        let pod = json!({"metadata": metadata, "status": {"phase": "Failed", "containerStatuses": [container]}});
        let deaths = deaths_of(&serde_json::from_value(pod).unwrap());
        (deaths.ended.into_iter().collect(), deaths.restarted.into_iter().collect())
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": last})
    }

    fn terminated(message: &str) -> Value {
        json!({"terminated": {"exitCode": 137, "message": message}})
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    }

    fn set(identities: &[&str]) -> Vec<String> {
        identities.iter().map(|identity| (*identity).to_owned()).collect()
    }

    #[test]
    fn a_terminated_container_proves_the_death_of_whom_its_log_names() {
        let log = "\nleasehold holder p_1\nthread main panicked\n";
        assert_eq!(deaths(container(&terminated(log), &json!({}))), (vec![], set(&["p_1"])));
        assert_eq!(deaths(container(&running(), &terminated(log))), (vec![], set(&["p_1"])));
        for (reason, stays_down) in [("CrashLoopBackOff", true), ("ErrImagePull", true), ("ContainerCreating", false)] {
            let waiting = json!({"waiting": {"reason": reason}});
            let (ended, restarted) = deaths(container(&waiting, &terminated(log)));
            assert_eq!((ended.is_empty(), restarted.is_empty()), (!stays_down, stays_down), "{reason}");
        }
        let both = || container(&terminated("leasehold holder p_2"), &terminated(log));
        assert_eq!(deaths(both()), (vec![], set(&["p_1", "p_2"])), "ended again before it was seen to run");
        let deleted = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(deaths_in(&deleted, both()), (set(&["p_1", "p_2"]), vec![]), "it will not be started again");
    }

    #[test]
    fn neither_a_phase_nor_a_deletion_nor_other_words_prove_anything() {
        let none = (vec![], vec![]);
        let deleted = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let failed = deaths_in(&deleted, container(&running(), &json!({})));
        assert_eq!(failed, none, "a Pod that failed and is being deleted");
        for words in ["", "leasehold holder ", "leasehold holder a b", " leasehold holder p_1", "p_1"] {
            assert_eq!(deaths(container(&terminated(words), &json!({}))), none, "{words:?}");
        }
        assert_eq!(deaths_of(&Pod::default()), Deaths::default());
    }

    #[test]
    fn the_dead_stay_dead_when_their_pod_is_gone_or_shows_others() {
        let mut known = Known::default();
        let ended = |identity: &str| Deaths { ended: [identity.to_owned()].into(), ..Deaths::default() };
        known.see("p".to_owned(), ended("p_1"));
        known.see("p".to_owned(), ended("p_2"));
        known.forget("p");
        known.list([("q".to_owned(), ended("q_1"))].into());
        known.list(BTreeMap::new());
        assert_eq!(known.all().ended, set(&["p_1", "p_2", "q_1"]).into_iter().collect());
        for number in 0..REMEMBERED {
            known.see("r".to_owned(), ended(&format!("r_{number}")));
        }
        assert!(known.all().ended.len() <= REMEMBERED + 1, "for as long as it may matter");
    }

    #[test]
    fn a_testimony_is_added_to_a_log_that_is_there_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("termination-log");
        assert_eq!(testify(&log, "p_1").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!log.exists());
        std::fs::write(&log, "no newline").unwrap();
        testify(&log, "p_1").unwrap();
        let message = std::fs::read_to_string(&log).unwrap();
        assert_eq!(deaths(container(&terminated(&message), &json!({}))), (vec![], set(&["p_1"])));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pod_has_one_lock_and_it_ends_with_its_holder() {
        let uid = format!("{:032x}", fastrand::u128(..));
        let lock = PodLock::take("test", &uid).unwrap();
        assert_eq!(PodLock::take("test", &uid).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(PodLock::take("other", &uid).unwrap());
        drop(PodLock::take(&"i".repeat(63), "01234567-89ab-cdef-0123-456789abcdef").unwrap());
        drop(lock);
        PodLock::take("test", &uid).unwrap();
    }
}
