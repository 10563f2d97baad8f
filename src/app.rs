//! The library's front door: a configuration, reconcilers by name, and a replica that runs them.

use std::{
    collections::HashMap,
    env::{self, VarError},
    path::PathBuf,
    sync::Arc,
};

use futures::Stream;
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use crate::{
    config::{Configuration, Kind, LockKind},
    ops::{metrics::Metrics, status::Status},
    protocol::{
        lease::WEIGHT_MOST,
        replica::Setup,
        roster::{Rules, ShardSpec},
    },
    replica::{
        board::{Board, Scope},
        clock::Clock,
        connections::{Account, Bounds, Connections},
        leadership::{Leaderships, Of, Signal},
        leases::Leases,
        proof::{self, PodLock, Witness},
        record,
        supervisor::{Assignment, Stopped, Supervisor, Surroundings},
        telemetry::Telemetry,
        term::Reconciler,
    },
    webhooks::Webhooks,
};

/// Which process this is. The Pod's facts come from the downward API; without them everything works, and slower:
/// no Lease is taken before it expires, and generations are not told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// Name of the Pod, or of the host: the readable part of the holder identity.
    pub pod_name: String,
    /// Namespace of the Pod: where the Leases live unless the configuration names another.
    pub pod_namespace: String,
    /// Uid of the Pod, if there is one.
    pub pod_uid: Option<String>,
    /// Hash of the template that the Pod was made from: what makes a generation.
    pub pod_template_hash: Option<String>,
    /// The container's termination log: what is written there comes back in the Pod's status when this process has ended.
    pub termination_log: Option<PathBuf>,
}

impl Replica {
    /// As a manifest gives it by the downward API: `POD_NAME` and `POD_NAMESPACE`, and `POD_UID`, `POD_TEMPLATE_HASH` and
    /// `TERMINATION_LOG` where they are set.
    ///
    /// # Errors
    /// If one of the first two is missing.
    pub fn from_env() -> Result<Self, VarError> {
        let optional = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Ok(Self {
            pod_name: env::var("POD_NAME")?,
            pod_namespace: env::var("POD_NAMESPACE")?,
            pod_uid: optional("POD_UID"),
            pod_template_hash: optional("POD_TEMPLATE_HASH"),
            termination_log: optional("TERMINATION_LOG").map(PathBuf::from),
        })
    }

    /// A holder identity that no other process has, not even the next one of the same Pod (rule 9).
    fn new_identity(&self) -> String {
        format!("{}_{:016x}", self.pod_name, fastrand::u64(..))
    }
}

/// Why a replica did not start, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names reconcilers that were never given.
    #[error("kind {kind}: no reconciler named {reconciler:?} was registered")]
    UnknownReconciler {
        /// The kind as configured.
        kind: String,
        /// The name that it gives.
        reconciler: String,
    },
    /// The cluster's address, certificates or credentials cannot be used.
    #[error("failed to make a client from the Kubernetes configuration")]
    Client(#[source] kube::Error),
    /// The replica ended, and not cleanly.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// One replica: give it reconcilers, then [`run`](Self::run) it.
pub struct Leasehold {
    config: Configuration,
    reconcilers: HashMap<String, Arc<dyn Reconciler>>,
    leaderships: Leaderships,
    status: Status,
    metrics: Metrics,
    work: Option<Handle>,
    /// The shard that makes the certificate of webhooks.
    issuer: Option<(Kind, Arc<dyn Reconciler>)>,
}

impl Leasehold {
    /// A replica of this installation, without reconcilers yet.
    pub fn new(config: Configuration) -> Self {
        let leaderships = Leaderships::new(config.kinds.iter().map(|kind| (kind.name(), kind.lease_group.clone())));
        Self {
            config,
            reconcilers: HashMap::new(),
            leaderships,
            status: Status::default(),
            metrics: Metrics::default(),
            work: None,
            issuer: None,
        }
    }

    /// Gives the reconciler that the configuration calls `builtin: <name>`. A later one of the same name replaces it.
    #[must_use]
    pub fn reconciler(self, name: impl Into<String>, reconciler: impl Reconciler) -> Self {
        self.shared_reconciler(name, Arc::new(reconciler))
    }

    /// As [`reconciler`](Self::reconciler), for one that is shared.
    #[must_use]
    pub fn shared_reconciler(mut self, name: impl Into<String>, reconciler: Arc<dyn Reconciler>) -> Self {
        self.reconcilers.insert(name.into(), reconciler);
        self
    }

    /// Writes what is known of the shards here, for endpoints to show.
    #[must_use]
    pub fn observed_by(mut self, status: Status, metrics: Metrics) -> Self {
        self.status = status;
        self.metrics = metrics;
        self
    }

    /// Runs terms on this runtime instead of the one that [`run`](Self::run) is called on,
    /// so that a reconciler which blocks its thread can never hold up a renewal.
    #[must_use]
    pub fn work_on(mut self, runtime: Handle) -> Self {
        self.work = Some(runtime);
        self
    }

    /// Takes part in making the serving certificate of these webhooks, unless another program makes it. They are served by
    /// [`Webhooks::serve`], by every replica, whatever it leads.
    #[must_use]
    pub fn webhooks(mut self, webhooks: &Webhooks) -> Self {
        self.issuer = webhooks.shard();
        self
    }

    /// The leader signal of a kind (`"<Kind>.<group>"`), a group or the whole process ([`Of`]), for other tasks of the
    /// process; `None` if that is not configured. To be asked for before [`run`](Self::run), which takes this value.
    pub fn leadership<'a>(&self, of: impl Into<Of<'a>>) -> Option<Signal> {
        self.leaderships.subscribe(of.into())
    }

    /// Takes part in the elections of all configured kinds until the first item of `signals`, then drains and releases;
    /// a second item aborts what still drains. See [`shutdown_signals`].
    ///
    /// Takes a `kube::Config`, not a client: Leases, the Lease watch and every term get connections of their own.
    /// Dropping the future stops everything at once and leaves the Leases to expire.
    ///
    /// # Errors
    /// At once, if a reconciler is missing or no client can be made; later, if the stop was not clean. An unreachable
    /// API server is no error: the replica is not ready, and tries again.
    pub async fn run(
        self,
        config: kube::Config,
        replica: Replica,
        signals: impl Stream<Item = ()> + Send,
    ) -> Result<(), Error> {
        let bounds = Bounds::new(&self.config.timings);
        let connections = Connections::load(config, bounds).await.map_err(Error::Client)?;
        self.run_over(connections, replica, signals).await
    }

    /// As [`run`](Self::run), over connections that others use too. Their credentials are kept fresh meanwhile.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_over(
        self,
        connections: Connections,
        replica: Replica,
        signals: impl Stream<Item = ()> + Send,
    ) -> Result<(), Error> {
        let identity = replica.new_identity();
        let namespace = self.config.lease_namespace.clone().unwrap_or_else(|| replica.pod_namespace.clone());
        let mut assignments = Vec::new();
        // The kinds of a shard follow each other.
        for kind in self.config.shards().concat() {
            let reconciler = self
                .reconcilers
                .get(&kind.reconciler)
                .ok_or_else(|| Error::UnknownReconciler { kind: kind.name(), reconciler: kind.reconciler.clone() })?;
            assignments.push(Assignment {
                kind: Arc::new(kind.clone()),
                reconciler: Arc::clone(reconciler),
                account: Account::of(kind, &replica.pod_namespace),
            });
        }
        let specs = self.config.shards().into_iter().filter_map(|kinds| spec(&kinds));
        let issued = self.issuer.as_ref().and_then(|(kind, _)| spec(&[kind]));
        let specs = specs.chain(issued).collect();
        if let Some((kind, reconciler)) = self.issuer {
            assignments.push(Assignment { kind: Arc::new(kind), reconciler, account: None });
        }
        let timings = self.config.timings;
        let (lease_client, client) = (connections.client(), connections.client());
        // Held until the process ends: no other may say that it speaks for this Pod while a task of ours may write.
        let lock = replica.pod_uid.as_deref().and_then(|uid| lock(&self.config.instance, uid));
        let pod_uid = replica.pod_uid.clone().filter(|_| lock.is_some());
        if let Some(path) = &replica.termination_log {
            match proof::testify(path, &identity) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    debug!(path = %path.display(), "no termination log: this is no container")
                }
                Err(error) => warn!(
                    path = %path.display(), %error,
                    "cannot write the termination log: when this process ends, its Leases have to expire"
                ),
            }
        }
        let witness = replica
            .pod_uid
            .is_some()
            .then(|| Witness::new(client.clone(), replica.pod_namespace.clone(), replica.pod_name.clone()))
            .map(|witness| witness.observed_by(self.status.clone()));
        info!(holder = identity, namespace, kinds = assignments.len(), "replica starts");
        self.status.update_replica(|status| {
            status.identity.clone_from(&identity);
            status.namespace.clone_from(&namespace);
            status.instance.clone_from(&self.config.instance);
            status.unready = Some("the Lease watch has not listed yet".to_owned());
        });
        let setup = Setup {
            identity: identity.clone(),
            pod: replica.pod_name,
            pod_uid,
            namespace: namespace.clone(),
            instance: self.config.instance,
            generation: replica.pod_template_hash.unwrap_or_default(),
            capacity: self.config.placement.capacity,
            timings,
            rules: Rules {
                rebalance: self.config.placement.rebalance,
                settle: self.config.placement.settle,
                grace: self.config.placement.grace,
                lease_duration: timings.lease_duration,
            },
            drain_timeout: self.config.drain_timeout,
            on_loss: self.config.on_loss,
            specs,
        };
        let scope = Scope::new(record::leases(client.clone(), &namespace), record::all_leases(client.clone()));
        let api = record::leases(lease_client, &namespace);
        let kinds = assignments.iter().map(|assignment| Arc::clone(&assignment.kind)).collect();
        let locks = self.config.kinds.iter().filter(|kind| kind.lock != LockKind::Lease);
        let locks = locks.map(|kind| (kind.lease_name.clone(), kind.lock)).collect();
        let telemetry = Telemetry::new(identity, namespace.clone(), kinds, self.status, self.metrics.clone());
        let surroundings = Surroundings {
            setup,
            clock: Clock::system(),
            connections,
            leases: Leases::new(api, scope.clone(), namespace, timings.request_timeout, self.metrics).with_locks(locks),
            board: Board::new(scope),
            witness,
            client,
            work: self.work.unwrap_or_else(Handle::current),
            telemetry,
            leaderships: self.leaderships,
        };
        Ok(Supervisor::new(surroundings, assignments).run(signals).await?)
    }
}

/// What a shard is to the core; its kinds agree on what is the Lease's.
fn spec(kinds: &[&Kind]) -> Option<ShardSpec> {
    let first = kinds.first()?;
    let weights = kinds.iter().map(|kind| kind.weight);
    Some(ShardSpec {
        lease: first.lease_name.clone(),
        lock: first.lock,
        kinds: kinds.iter().map(|kind| kind.name()).collect(),
        weight: weights.fold(0, u32::saturating_add).min(WEIGHT_MOST),
        standby: first.standby,
    })
}

fn lock(instance: &str, uid: &str) -> Option<PodLock> {
    match PodLock::take(instance, uid) {
        Ok(lock) => Some(lock),
        Err(error) => {
            warn!(
                uid, %error,
                "this run does not speak for its Pod: after a restart, its Leases have to expire"
            );
            None
        }
    }
}

/// SIGTERM and SIGINT as [`Leasehold::run`] wants them: the first drains, the second aborts.
///
/// # Errors
/// If the process may not install signal handlers.
pub fn shutdown_signals() -> std::io::Result<impl Stream<Item = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let both = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(futures::stream::unfold(both, |(mut terminate, mut interrupt)| async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Some(((), (terminate, interrupt)))
    }))
}
