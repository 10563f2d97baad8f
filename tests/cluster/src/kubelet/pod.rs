//! One bound pod from its start to its removal: volumes, containers, status, deletion.

use super::{
    Host,
    container::{Task, waiting},
    record::Record,
    status,
    volumes::{self, Volumes},
};
use anyhow::Result;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

/// How often a missing ConfigMap or a failed status write is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// A request the API server does not answer must not stop the pod's other work for long.
const REQUEST: Duration = Duration::from_secs(5);

/// Which pod.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The container statuses of one pod, written by its containers' tasks and published by the pod's.
pub(crate) struct Board {
    statuses: Mutex<Vec<ContainerStatus>>,
    changed: Notify,
}

/// The task of one pod.
pub(crate) struct Worker {
    host: Arc<Host>,
    identity: Identity,
    /// The pod as last seen; nothing once the API server has it no more.
    seen: watch::Receiver<Option<Arc<Pod>>>,
    board: Arc<Board>,
    address: String,
    started: Timestamp,
    published: Option<PodStatus>,
}

impl Identity {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        Some(Self { namespace: metadata.namespace.clone()?, name: metadata.name.clone()?, uid: metadata.uid.clone()? })
    }
}

impl Board {
    fn new(pod: &Pod) -> Self {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let statuses = containers
            .iter()
            .map(|container| ContainerStatus {
                name: container.name.clone(),
                image: container.image.clone().unwrap_or_default(),
                image_id: String::new(),
                state: Some(waiting("ContainerCreating", "")),
                started: Some(false),
                ..ContainerStatus::default()
            })
            .collect();
        Self { statuses: Mutex::new(statuses), changed: Notify::new() }
    }

    pub(crate) fn read<T>(&self, index: usize, read: impl FnOnce(&ContainerStatus) -> T) -> T {
        read(&self.statuses.lock().unwrap_or_else(PoisonError::into_inner)[index])
    }

    pub(crate) fn write<T>(&self, index: usize, write: impl FnOnce(&mut ContainerStatus) -> T) -> T {
        let answer = write(&mut self.statuses.lock().unwrap_or_else(PoisonError::into_inner)[index]);
        self.changed.notify_one();
        answer
    }

    fn all(&self) -> Vec<ContainerStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Worker {
    pub(crate) fn new(
        host: Arc<Host>,
        identity: Identity,
        pod: &Pod,
        seen: watch::Receiver<Option<Arc<Pod>>>,
    ) -> Result<Self> {
        let address = host.addresses.take()?;
        let board = Arc::new(Board::new(pod));
        Ok(Self { host, identity, seen, board, address, started: Timestamp::now(), published: None })
    }

    /// Runs the pod; returns when it is gone from this node and from the API server.
    pub(crate) async fn run(mut self) {
        let Some(pod) = self.seen.borrow().clone() else { return };
        let root = self.root();
        let proxy = match self.host.pod_proxy().await {
            Ok(proxy) => proxy,
            Err(error) => {
                tracing::error!(pod = %self.identity.name, "no proxy for the pod: {error:#}");
                None
            }
        };
        let server = proxy.as_ref().map_or_else(|| self.host.url.clone(), |proxy| proxy.url().to_owned());
        let record = Arc::new(Record::new(proxy));
        self.host.remember(&self.identity, record.clone());

        let claims = volumes::claims(&self.host.directory, &self.identity.namespace);
        let mut volumes =
            Volumes::new(self.host.client.clone(), root.clone(), claims, self.identity.clone(), self.address.clone());
        let (stop, stopping) = watch::channel(None);
        let mut containers = JoinSet::new();
        let mut running = false;
        let mut complained = false;
        let mut next_sync = Instant::now();
        loop {
            let seen = self.seen.borrow_and_update().clone();
            match &seen {
                None => {
                    stop.send_replace(Some(Instant::now()));
                }
                Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                    let at = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
                    // A later deletion may shorten the grace, and none may prolong it.
                    stop.send_if_modified(|stop: &mut Option<Instant>| {
                        let sooner = stop.is_none_or(|before| at < before);
                        if sooner {
                            *stop = Some(at);
                        }
                        sooner
                    });
                }
                Some(_) => {}
            }
            let ending = stop.borrow().is_some();
            if !ending && Instant::now() >= next_sync {
                let current = seen.as_ref().unwrap_or(&pod);
                match volumes.write(current).await {
                    Ok(()) => {
                        next_sync = Instant::now() + self.host.options.sync;
                        if !running {
                            running = true;
                            self.start_containers(&pod, &root, &server, &record, &stopping, &mut containers);
                        }
                    }
                    Err(error) => {
                        next_sync = Instant::now() + RETRY;
                        if !complained {
                            complained = true;
                            self.host.event(&pod, "Warning", "FailedMount", &format!("{error:#}"));
                        }
                    }
                }
            }
            let published = match &seen {
                Some(seen) => self.publish(seen, ending).await,
                None => true,
            };
            if ending && containers.is_empty() && published {
                if seen.is_none() || self.remove().await {
                    break;
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let wake = if published { next_sync } else { Instant::now() + RETRY };
            tokio::select! {
                // Nothing comes after a pod's removal, and its sender is gone then.
                changed = self.seen.changed(), if seen.is_some() => if changed.is_err() { break },
                () = self.board.changed.notified() => {}
                Some(_) = containers.join_next(), if !containers.is_empty() => {}
                () = tokio::time::sleep_until(wake), if !published || !ending => {}
            }
        }
        containers.shutdown().await;
        self.host.addresses.give_back(&self.address);
    }

    fn root(&self) -> PathBuf {
        let Identity { namespace, name, uid } = &self.identity;
        self.host.directory.join("pods").join(format!("{namespace}_{name}_{}", uid.get(..8).unwrap_or(uid)))
    }

    fn start_containers(
        &self,
        pod: &Arc<Pod>,
        root: &std::path::Path,
        server: &str,
        record: &Arc<Record>,
        stop: &watch::Receiver<Option<Instant>>,
        containers: &mut JoinSet<()>,
    ) {
        if let Err(error) = std::fs::create_dir_all(root) {
            tracing::error!("failed to create {}: {error}", root.display());
        }
        let specified = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        for (index, container) in specified.iter().enumerate() {
            let task = Task {
                host: self.host.clone(),
                pod: pod.clone(),
                identity: self.identity.clone(),
                container: container.clone(),
                index,
                root: root.to_owned(),
                address: self.address.clone(),
                server: server.to_owned(),
                board: self.board.clone(),
                record: record.clone(),
                stop: stop.clone(),
            };
            containers.spawn(task.run());
        }
    }

    /// Writes the pod's status when it has changed. Whether the API server now has it.
    async fn publish(&mut self, seen: &Pod, ending: bool) -> bool {
        let status = status::of(
            seen,
            self.board.all(),
            &self.address,
            Time(self.started),
            self.published.as_ref(),
            Timestamp::now(),
            ending,
        );
        if self.published.as_ref() == Some(&status) {
            return true;
        }
        // The uid keeps this from reaching another pod of the same name.
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.identity.uid}, "status": status}));
        let pods = Api::<Pod>::namespaced(self.host.client.clone(), &self.identity.namespace);
        let parameters = PatchParams::default();
        let write = pods.patch_status(&self.identity.name, &parameters, &patch);
        match tokio::time::timeout(REQUEST, write).await {
            Ok(Ok(_)) => {}
            // Gone, or another one: nobody is left to tell.
            Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => {}
            Ok(Err(error)) => {
                tracing::debug!(pod = %self.identity.name, "failed to write the status: {error}");
                return false;
            }
            Err(_) => return false,
        }
        self.published = Some(status);
        true
    }

    /// Deletes the object, as the kubelet does once every process has ended. Whether it is gone.
    async fn remove(&self) -> bool {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.identity.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let pods = Api::<Pod>::namespaced(self.host.client.clone(), &self.identity.namespace);
        match tokio::time::timeout(REQUEST, pods.delete(&self.identity.name, &parameters)).await {
            Ok(Ok(_)) => true,
            Ok(Err(kube::Error::Api(answer))) => answer.is_not_found() || answer.is_conflict(),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}
