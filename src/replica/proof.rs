//! Proof that a process has ended, so that its Leases need not expire first (rule 11).
//!
//! Two things prove it. The Pod's lock: a name that the kernel gives to one process of a Pod at a time, and takes back
//! when that one has died and not before. And the kubelet's word: it copies what a container wrote to its termination
//! log into the Pod's status when this very container has ended, so a holder identity that comes back there is of a dead
//! process. No time, restart count or container id is compared. A Pod that is gone, unready or being deleted proves nothing.
//!
//! A container can write what it likes there, so a Pod is believed about its own processes only: an identity has to begin
//! with the Pod's name, and goes with the Pod's uid, which a Lease names as well.

#[cfg(target_os = "linux")]
use std::{
    collections::HashMap,
    os::unix::net::UnixListener,
    sync::{Mutex, OnceLock, PoisonError},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ContainerState, Pod},
};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use tokio::sync::watch;
use tracing::warn;

use super::{clock::about, connections::WATCH_TIMEOUT, pods, problem::describe};
use crate::ops::status::{self, Status};

/// What a process writes to its container's termination log, before its holder identity.
const TESTIMONY: &str = "leasehold holder ";

/// Revision of a ReplicaSet, which the Deployment controller counts up with each rollout and rollback.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Names the container of a Pod that is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Between two attempts to watch Pods, the longest of them when it is not allowed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Of Pods that are gone this many deaths are remembered: what another replica may still find on a Lease.
const REMEMBERED: usize = 256;

/// Which processes have ended, as far as the kubelet has said: holder identities, each with the uid of its Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    /// Their container has ended and stays down: it backs off, or its Pod ends.
    pub ended: BTreeMap<String, String>,
    /// Their container runs again, or is about to: its new process may take their Leases back itself.
    pub restarted: BTreeMap<String, String>,
}

/// Where our own Pod comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The controller above the Pod as `KIND/NAME`: the Deployment if a ReplicaSet of one made the Pod, else the Pod's own
    /// controller. `None` for a Pod without a controller, and if the ReplicaSet may not be read.
    pub owner: Option<String>,
    /// Revision of the ReplicaSet that made it; grows with each rollout, and with each rollback.
    pub revision: Option<u64>,
}

/// What the status of one Pod says of ended processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Testimony {
    /// What it proves.
    pub deaths: Deaths,
    /// Identities that it names and that are not of this Pod's processes: they prove nothing.
    pub foreign: BTreeSet<String>,
    /// It runs a process of ours, or is about to: it is not being deleted, and no container of it is kept down.
    pub goes_on: bool,
    /// Its uid, unless it has ended: then no process runs in it.
    pub live: Option<String>,
    /// Kind of the controller that made it.
    pub controller: Option<String>,
    /// What people see of it.
    pub shown: status::Pod,
}

/// Reads the status of one Pod. Whether the Pod goes on decides only who should follow, and proves nothing.
pub fn testimony_of(pod: &Pod) -> Testimony {
    let mut testimony = Testimony::default();
    let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { return testimony };
    // A Pod's name has no underscore, so no other Pod's identities begin like this.
    let own = format!("{name}_");
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let goes_on = pod.metadata.deletion_timestamp.is_none() && policy.is_none_or(|policy| policy == "Always");
    testimony.goes_on = goes_on;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    testimony.live = (!matches!(phase, Some("Succeeded" | "Failed"))).then(|| uid.clone());
    testimony.controller = controller(pod).map(|(kind, _)| kind.to_owned());
    testimony.shown = pods::shown(pod);
    let main = main_container(pod);
    let statuses = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
    for container in statuses {
        // The kubelet starts what has just ended at once, or says what keeps it from that: a back-off, an image.
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let stays_down = waiting.is_some_and(|waiting| !waiting.reason.as_deref().is_none_or(is_being_started));
        testimony.goes_on &= !stays_down;
        // Another container may write what it likes into a log of its own.
        if main.is_some_and(|main| main != container.name) {
            continue;
        }
        let deaths = &mut testimony.deaths;
        let dead = if goes_on && !stays_down { &mut deaths.restarted } else { &mut deaths.ended };
        for identity in [&container.state, &container.last_state].into_iter().flatten().flat_map(named) {
            if identity.starts_with(&own) {
                dead.insert(identity, uid.clone());
            } else {
                testimony.foreign.insert(identity);
            }
        }
    }
    testimony
}

/// The container that a replica runs in: the one that `kubectl logs` shows by itself, or else the first.
fn main_container(pod: &Pod) -> Option<&str> {
    let first = || Some(pod.spec.as_ref()?.containers.first()?.name.as_str());
    pod.annotations().get(DEFAULT_CONTAINER).map(String::as_str).or_else(first)
}

fn is_being_started(waiting: &str) -> bool {
    matches!(waiting, "ContainerCreating" | "PodInitializing")
}

/// The identities that an ended container has written to its log.
fn named(state: &ContainerState) -> impl Iterator<Item = String> {
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

/// How much a process says of its end, in bytes. The kubelet keeps the last 4,096 of a log, and the testimony is before it.
const LAST_WORDS: usize = 2048;

/// Adds to the container's termination log why this process ends: what `kubectl describe` and the page of the others show.
/// No line of it can be taken for a testimony.
///
/// # Errors
/// `NotFound` where there is no such log, as outside of a container: it is never created.
pub fn last_words(log: &Path, why: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(log)?;
    let why = &why[..why.floor_char_boundary(LAST_WORDS)];
    let lines =
        why.lines().map(|line| if line.starts_with(TESTIMONY) { format!("\n {line}") } else { format!("\n{line}") });
    // In one write, so that it is there whole or not at all.
    file.write_all((lines.collect::<String>() + "\n").as_bytes())
}

/// The lines of a termination message that are for people: all but testimonies.
pub fn words(message: &str) -> impl Iterator<Item = &str> {
    message.lines().filter(|line| !line.starts_with(TESTIMONY) && !line.trim().is_empty())
}

/// Says that this process holds the name which one process of a Pod holds at a time. The holder knows that every process
/// which gave the Pod's uid before is dead, for each held the name when it did.
///
/// The name is an abstract Unix socket: all containers of a Pod share the network namespace that such names live in, and
/// the kernel frees a name with the process that bound it, a stopped process included. This process keeps it to its end,
/// whatever becomes of this value: a task may outlive the run that took the lock, and write until its term has expired.
#[derive(Debug)]
#[non_exhaustive]
pub struct PodLock;

/// Why a process may not speak for its Pod.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process of the Pod holds the lock.
    #[error("another process of this Pod holds its lock")]
    OtherProcess,
    /// An earlier run in this process took it; it is never given back.
    #[error(
        "an earlier run in this process holds the Pod's lock until the process ends, for its tasks may still write"
    )]
    EarlierRun,
    /// This platform has no such lock.
    #[error("this platform has no lock that ends with its process")]
    Unsupported,
    /// The kernel refused the name.
    #[error("cannot bind the Pod's lock")]
    Bind(#[source] io::Error),
}

/// The sockets by name, for the life of the process.
#[cfg(target_os = "linux")]
static LOCKS: OnceLock<Mutex<HashMap<String, UnixListener>>> = OnceLock::new();

impl PodLock {
    /// Takes the lock of a Pod, by the instance and the Pod's uid, for the rest of the process's life.
    ///
    /// # Errors
    /// [`LockError`]; at the second call for the same Pod as well.
    #[cfg(target_os = "linux")]
    pub fn take(instance: &str, uid: &str) -> Result<Self, LockError> {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};

        // An instance and a uid of the longest kind fit: a name has 107 bytes.
        let name = format!("lease/{instance}/{uid}");
        let mut locks = LOCKS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if locks.contains_key(&name) {
            return Err(LockError::EarlierRun);
        }
        let address = SocketAddr::from_abstract_name(&name).map_err(LockError::Bind)?;
        let socket = UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => LockError::OtherProcess,
            _ => LockError::Bind(error),
        })?;
        locks.insert(name, socket);
        Ok(Self)
    }

    /// As on Linux, where it works.
    ///
    /// # Errors
    /// [`LockError::Unsupported`], always.
    #[cfg(not(target_os = "linux"))]
    pub fn take(_instance: &str, _uid: &str) -> Result<Self, LockError> {
        Err(LockError::Unsupported)
    }
}

/// Why the Pods are not watched.
#[derive(Debug, thiserror::Error)]
enum Unwatched {
    #[error(
        "not allowed to {what} in namespace {namespace}: grant it with a Role and a RoleBinding, as deploy/rbac.yaml does"
    )]
    Forbidden { what: &'static str, namespace: String },
    #[error("failed to {what}: {code} {message}")]
    Refused { what: &'static str, code: u16, message: String },
    #[error("failed to {what}: {}", describe(.error))]
    Failed { what: &'static str, error: kube::Error },
    #[error("the watch broke: {}", describe(.0))]
    Broke(watcher::Error),
    #[error("the watch has ended")]
    Ended,
}

/// Watches the Pods that run under our ServiceAccount: no other Pod can hold our Leases.
pub struct Witness {
    client: Client,
    namespace: String,
    pod: String,
    deaths: watch::Sender<Deaths>,
    origin: watch::Sender<Option<Origin>>,
    expected: watch::Sender<usize>,
    pods: watch::Sender<Pods>,
    known: Known,
    status: Status,
}

/// Names and uids.
pub type Pods = Option<BTreeMap<String, String>>;

/// What each Pod's status proved, and what those proved that are gone: a proof stays true.
#[derive(Debug, Default)]
struct Known {
    pods: BTreeMap<String, Testimony>,
    /// Identities and Pod uids.
    gone: VecDeque<(String, String)>,
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
            expected: watch::Sender::default(),
            pods: watch::Sender::default(),
            known: Known::default(),
            status: Status::default(),
        }
    }

    /// Writes the Pods here, for people.
    #[must_use]
    pub fn observed_by(self, status: Status) -> Self {
        Self { status, ..self }
    }

    /// What is proven, from now on.
    pub fn deaths(&self) -> watch::Receiver<Deaths> {
        self.deaths.subscribe()
    }

    /// Where our Pod comes from, once that was read.
    pub fn origin(&self) -> watch::Receiver<Option<Origin>> {
        self.origin.subscribe()
    }

    /// How many Pods run our processes or are about to; 0 while that is not known.
    pub fn expected(&self) -> watch::Receiver<usize> {
        self.expected.subscribe()
    }

    /// The live Pods of our service account whose controller is of the kind of ours: name and uid. `None` while that is not
    /// known.
    pub fn pods(&self) -> watch::Receiver<Pods> {
        self.pods.subscribe()
    }

    /// Watches until dropped; never returns by itself. Cancel safe.
    /// Without the permissions everything works, and slower: Leases expire, and generations go by their age.
    pub async fn run(mut self) {
        let mut pause = RETRY.0;
        let mut said = None;
        loop {
            let error = self.observe().await;
            if !matches!(error, Unwatched::Broke(_) | Unwatched::Ended) {
                // They cannot be read; a watch that has broken off is begun anew at once.
                self.pods.send_if_modified(|known| known.take().is_some());
            }
            if matches!(error, Unwatched::Forbidden { .. }) {
                // While the API server is away, the Pods are likely where they were.
                self.status.update_replica(|replica| replica.pods = None);
            }
            let error = error.to_string();
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
            tokio::time::sleep(about(pause)).await;
        }
    }

    async fn observe(&mut self) -> Unwatched {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let own = match pods.get(&self.pod).await {
            Ok(pod) => pod,
            Err(error) => return self.explain(error, "get pods"),
        };
        if self.origin.borrow().is_none() {
            match self.origin_of(&own).await {
                Ok(origin) => drop(self.origin.send_replace(Some(origin))),
                Err(error) => return error,
            }
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
                    listed.get_or_insert_default().insert(pod.name_any(), testimony_of(&pod));
                }
                Some(Ok(watcher::Event::InitDone)) => self.known.list(listed.take().unwrap_or_default()),
                Some(Ok(watcher::Event::Apply(pod))) => self.known.see(pod.name_any(), testimony_of(&pod)),
                Some(Ok(watcher::Event::Delete(pod))) => {
                    // The last status may be news: a Pod is often deleted at once when its container has ended.
                    self.known.see(pod.name_any(), testimony_of(&pod));
                    self.known.forget(&pod.name_any());
                }
                Some(Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))) => {
                    return self.explain(error, "list and watch pods");
                }
                Some(Err(error)) => return Unwatched::Broke(error),
                None => return Unwatched::Ended,
            }
            if listed.is_none() {
                let expected = self.known.pods.values().filter(|pod| pod.goes_on).count();
                self.expected.send_if_modified(|known| std::mem::replace(known, expected) != expected);
                let pods = self.known.live(&self.pod);
                self.pods.send_if_modified(|known| {
                    let news = *known != pods;
                    *known = pods;
                    news
                });
                let shown = self.known.shown(&self.pod);
                self.status.update_replica(|replica| replica.pods = Some(shown));
                let deaths = self.known.all();
                self.deaths.send_if_modified(|known| {
                    let news = *known != deaths;
                    *known = deaths;
                    news
                });
            }
        }
    }

    /// Without the right to read the ReplicaSet nothing is known of it, and generations go by their age. Another failure
    /// passes, and is an error: what is read once stays for the life of the process.
    async fn origin_of(&self, pod: &Pod) -> Result<Origin, Unwatched> {
        let Some(set) = controller(pod).and_then(|(kind, name)| (kind == "ReplicaSet").then_some(name)) else {
            return Ok(Origin::of(pod, None));
        };
        match Api::<ReplicaSet>::namespaced(self.client.clone(), &self.namespace).get(set).await {
            Ok(set) => Ok(Origin::of(pod, Some(&set))),
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.code == 404 => {
                let error = self.explain(kube::Error::Api(status), "get replicasets.apps");
                warn!("generations go by their age: {error}");
                Ok(Origin::default())
            }
            Err(error) => Err(self.explain(error, "get replicasets.apps")),
        }
    }

    fn explain(&self, error: kube::Error, what: &'static str) -> Unwatched {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                Unwatched::Forbidden { what, namespace: self.namespace.clone() }
            }
            kube::Error::Api(status) => Unwatched::Refused { what, code: status.code, message: status.message },
            error => Unwatched::Failed { what, error },
        }
    }
}

impl Origin {
    fn of(pod: &Pod, set: Option<&ReplicaSet>) -> Self {
        let owner = set.and_then(controller).or_else(|| controller(pod));
        Self {
            owner: owner.map(|(kind, name)| format!("{kind}/{name}")),
            revision: set.and_then(|set| set.annotations().get(REVISION)?.parse().ok()),
        }
    }
}

/// Kind and name of the controller that owns an object.
fn controller(object: &impl ResourceExt) -> Option<(&str, &str)> {
    let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    Some((&owner.kind, &owner.name))
}

impl Known {
    fn list(&mut self, pods: BTreeMap<String, Testimony>) {
        let gone: Vec<_> = self.pods.keys().filter(|pod| !pods.contains_key(*pod)).cloned().collect();
        gone.iter().for_each(|pod| self.forget(pod));
        for (pod, testimony) in pods {
            self.see(pod, testimony);
        }
    }

    fn see(&mut self, pod: String, testimony: Testimony) {
        let before = self.pods.get(&pod);
        // A status is seen many times, and what is odd about it is logged once.
        if !testimony.foreign.is_empty() && before.is_none_or(|before| before.foreign.is_empty()) {
            let named = testimony.foreign.iter().next().map_or("", |identity| identity.as_str());
            warn!(
                pod,
                named,
                "a container of this Pod names another Pod's process in its termination message: it is not believed"
            );
        }
        let before = self.pods.insert(pod, testimony);
        // A status shows the last two processes of a container, and the dead stay dead.
        let shown = self.all();
        let both = before.into_iter().flat_map(|before| before.deaths.ended.into_iter().chain(before.deaths.restarted));
        self.remember(
            both.filter(|(identity, _)| !shown.ended.contains_key(identity) && !shown.restarted.contains_key(identity)),
        );
    }

    fn forget(&mut self, pod: &str) {
        if let Some(Testimony { deaths, .. }) = self.pods.remove(pod) {
            self.remember(deaths.ended.into_iter().chain(deaths.restarted));
        }
    }

    fn remember(&mut self, dead: impl IntoIterator<Item = (String, String)>) {
        for death in dead {
            if !self.gone.contains(&death) {
                self.gone.push_back(death);
            }
        }
        while self.gone.len() > REMEMBERED {
            self.gone.pop_front();
        }
    }

    /// The live Pods that are of the sort of this one, which is ours.
    fn live(&self, own: &str) -> Pods {
        let own = self.pods.get(own)?;
        let ours = self.pods.iter().filter(|(_, pod)| pod.controller == own.controller);
        Some(ours.filter_map(|(name, pod)| Some((name.clone(), pod.live.clone()?))).collect())
    }

    /// The Pods of the sort of this one, which is ours, those of a bad rollout among them.
    fn shown(&self, own: &str) -> Arc<[status::Pod]> {
        let controller = self.pods.get(own).map(|own| &own.controller);
        let ours = self.pods.values().filter(|pod| controller.is_none_or(|own| pod.controller == *own));
        let is_over = |pod: &&Testimony| pod.shown.condition.as_ref().is_some_and(|(word, _)| word == "Succeeded");
        ours.filter(|pod| !is_over(pod)).map(|pod| pod.shown.clone()).collect()
    }

    fn all(&self) -> Deaths {
        let mut all = Deaths { ended: self.gone.iter().cloned().collect(), restarted: BTreeMap::new() };
        for Testimony { deaths, .. } in self.pods.values() {
            all.ended.extend(deaths.ended.clone());
            all.restarted.extend(deaths.restarted.clone());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deaths(container: Value) -> (Vec<String>, Vec<String>) {
        deaths_in(&json!({"name": "p", "uid": "u"}), container)
    }

    fn deaths_in(metadata: &Value, container: Value) -> (Vec<String>, Vec<String>) {
        let deaths = testimony_in(metadata, container).deaths;
        assert!(deaths.ended.values().chain(deaths.restarted.values()).all(|uid| uid == "u"), "{deaths:?}");
        (deaths.ended.into_keys().collect(), deaths.restarted.into_keys().collect())
    }

    fn testimony_in(metadata: &Value, container: Value) -> Testimony {
        let pod = json!({"metadata": metadata, "status": {"phase": "Failed", "containerStatuses": [container]}});
        testimony_of(&serde_json::from_value(pod).unwrap())
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
        let deleted = json!({"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(deaths_in(&deleted, both()), (set(&["p_1", "p_2"]), vec![]), "it will not be started again");
    }

    #[test]
    fn neither_a_phase_nor_a_deletion_nor_other_words_prove_anything() {
        let none = (vec![], vec![]);
        let deleted = json!({"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let failed = deaths_in(&deleted, container(&running(), &json!({})));
        assert_eq!(failed, none, "a Pod that failed and is being deleted");
        for words in ["", "leasehold holder ", "leasehold holder a b", " leasehold holder p_1", "p_1"] {
            assert_eq!(deaths(container(&terminated(words), &json!({}))), none, "{words:?}");
        }
        assert_eq!(testimony_of(&Pod::default()), Testimony::default());
    }

    #[test]
    fn a_pod_is_believed_about_its_own_processes_only() {
        let log = "leasehold holder q_1\nleasehold holder p_1\nleasehold holder pp_1\nleasehold holder p-2_1\nleasehold holder p";
        let testimony = testimony_in(&json!({"name": "p", "uid": "u"}), container(&terminated(log), &json!({})));
        let own = BTreeMap::from([("p_1".to_owned(), "u".to_owned())]);
        assert_eq!(testimony.deaths, Deaths { restarted: own, ..Deaths::default() });
        assert_eq!(testimony.foreign.into_iter().collect::<Vec<_>>(), set(&["p", "p-2_1", "pp_1", "q_1"]));
        let nameless = testimony_in(&json!({"name": "p"}), container(&terminated(log), &json!({})));
        assert_eq!(nameless, Testimony::default(), "without a uid nothing can be compared with a Lease");
    }

    #[test]
    fn of_several_containers_the_main_one_is_believed() {
        let log = |name: &str| {
            let mut container = container(&terminated("leasehold holder p_1"), &json!({}));
            container["name"] = json!(name);
            container
        };
        let named_by = |name: &str, annotations: Value| {
            let spec = json!({"containers": [{"name": "replica"}, {"name": "sidecar"}]});
            let metadata = json!({"name": "p", "uid": "u", "annotations": annotations});
            let pod = json!({"metadata": metadata, "spec": spec, "status": {"containerStatuses": [log(name)]}});
            !testimony_of(&serde_json::from_value(pod).unwrap()).deaths.restarted.is_empty()
        };
        assert!(named_by("replica", json!({})) && !named_by("sidecar", json!({})));
        let other = json!({DEFAULT_CONTAINER: "sidecar"});
        assert!(!named_by("replica", other.clone()) && named_by("sidecar", other));
    }

    #[test]
    fn the_pods_of_ours_are_live_and_have_a_controller_as_ours_has() {
        let pod = |name: &str, phase: &str, controller: Option<&str>| {
            let owner = controller.map(
                |kind| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true}]),
            );
            let pod = json!({"metadata": {"name": name, "uid": format!("{name}-uid"), "ownerReferences": owner}, "status": {"phase": phase}});
            (name.to_owned(), testimony_of(&serde_json::from_value(pod).unwrap()))
        };
        let set = Some("ReplicaSet");
        let mut known = Known::default();
        known.list(
            [pod("a", "Running", set), pod("b", "Pending", set), pod("c", "Failed", set), pod("d", "Running", None)]
                .into(),
        );
        let pods = |own| known.live(own).map(|pods| pods.into_iter().collect::<Vec<_>>());
        let of = |name: &str| (name.to_owned(), format!("{name}-uid"));
        assert_eq!(pods("a"), Some(vec![of("a"), of("b")]));
        assert_eq!(pods("z"), None, "we are none of them");
    }

    #[test]
    fn the_origin_of_a_pod_is_the_controller_above_its_replica_set() {
        let owned = |owners: Value| json!({"metadata": {"name": "x", "ownerReferences": owners, "annotations": {REVISION: "7"}}});
        let by = |kind: &str, name: &str, controller: bool| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": controller}]);
        let pod = |owners| serde_json::from_value::<Pod>(owned(owners)).unwrap();
        let set = |owners| serde_json::from_value::<ReplicaSet>(owned(owners)).unwrap();
        let origin = |owner: Option<&str>, revision| Origin { owner: owner.map(ToOwned::to_owned), revision };
        let of_set = pod(by("ReplicaSet", "web-1", true));
        assert_eq!(
            Origin::of(&of_set, Some(&set(by("Deployment", "web", true)))),
            origin(Some("Deployment/web"), Some(7))
        );
        assert_eq!(Origin::of(&of_set, Some(&set(json!([])))), origin(Some("ReplicaSet/web-1"), Some(7)));
        assert_eq!(Origin::of(&pod(by("StatefulSet", "db", true)), None), origin(Some("StatefulSet/db"), None));
        assert_eq!(Origin::of(&pod(by("StatefulSet", "db", false)), None), origin(None, None), "no controller");
        assert_eq!(Origin::of(&pod(json!([])), None), origin(None, None));
    }

    #[test]
    fn the_dead_stay_dead_when_their_pod_is_gone_or_shows_others() {
        let mut known = Known::default();
        let ended = |identity: &str| Testimony {
            goes_on: true,
            deaths: Deaths { ended: [(identity.to_owned(), "u".to_owned())].into(), ..Deaths::default() },
            ..Testimony::default()
        };
        known.see("p".to_owned(), ended("p_1"));
        known.see("p".to_owned(), ended("p_2"));
        known.forget("p");
        known.list([("q".to_owned(), ended("q_1"))].into());
        known.list(BTreeMap::new());
        assert_eq!(known.all().ended.into_keys().collect::<Vec<_>>(), set(&["p_1", "p_2", "q_1"]));
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
        assert_eq!(words(&message).collect::<Vec<_>>(), ["no newline"]);
    }

    #[test]
    fn the_last_words_of_a_process_are_bounded_and_never_a_testimony() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("termination-log");
        assert_eq!(last_words(&log, "gone").unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&log, "").unwrap();
        testify(&log, "p_1").unwrap();
        assert_eq!(words(&std::fs::read_to_string(&log).unwrap()).next(), None);
        last_words(&log, &format!("no such field\nleasehold holder q_1\n{}", "é".repeat(4000))).unwrap();
        let message = std::fs::read_to_string(&log).unwrap();
        assert!(message.len() < 4096, "the kubelet keeps the testimony too: {}", message.len());
        assert_eq!(deaths(container(&terminated(&message), &json!({}))), (vec![], set(&["p_1"])));
        let words: Vec<_> = words(&message).collect();
        assert!(words.join("\n").starts_with("no such field\n leasehold holder q_1\né"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pod_has_one_lock_and_its_process_keeps_it() {
        use std::os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener},
        };
        let uid = format!("{:032x}", fastrand::u128(..));
        let bind =
            |uid: &str| UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("lease/test/{uid}")).unwrap());
        PodLock::take("test", &uid).unwrap();
        assert_eq!(
            bind(&uid).unwrap_err().kind(),
            io::ErrorKind::AddrInUse,
            "a run that has ended may have left tasks"
        );
        assert!(matches!(PodLock::take("test", &uid), Err(LockError::EarlierRun)));
        PodLock::take("other", &uid).unwrap();
        PodLock::take(&"i".repeat(63), &format!("01234567-89ab-cdef-0123-{:012x}", fastrand::u32(..))).unwrap();

        let foreign = format!("{:032x}", fastrand::u128(..));
        let socket = bind(&foreign).unwrap();
        assert!(matches!(PodLock::take("test", &foreign), Err(LockError::OtherProcess)));
        drop(socket);
        PodLock::take("test", &foreign).unwrap();
    }
}
