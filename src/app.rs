//! A replica: a configuration, reconcilers by name, and what runs them.

use std::{
    collections::{BTreeMap, HashMap},
    env::{self, VarError},
    future::pending,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::Arc,
};

use futures::{Stream, StreamExt as _};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    config::{Configuration, Kind, LockKind, OnLoss, Rebalance},
    front::{builder::Builder, health::Health},
    kinds::{
        self, compose,
        reach::{Authors, Reach},
    },
    ops::{
        http::{self, Limits},
        metrics::{self, Metrics},
        status::Status,
    },
    protocol::{
        lease::WEIGHT_MOST,
        replica::Setup,
        roster::{Rules, ShardSpec},
    },
    reconcile::{
        children::{self, Children, Type},
        watches::Watches,
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
    webhooks::{Webhook, Webhooks, ask::Asker, configuration::Coverages, coverage::Checked},
};

/// Which process this is. The Pod's facts come from the downward API; without them everything works, and slower:
/// no Lease is taken before it expires, and generations are not told apart.
///
/// [`Replica::from_env`] reads it; a program that knows it otherwise begins with [`Replica::new`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
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
    /// A process by its name, and the namespace of its Leases. Set the other fields where they are known.
    pub fn new(pod_name: impl Into<String>, pod_namespace: impl Into<String>) -> Self {
        Self { pod_name: pod_name.into(), pod_namespace: pod_namespace.into(), ..Self::default() }
    }

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
#[non_exhaustive]
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
    /// An address that is to be served on cannot be listened on.
    #[error("cannot listen on {address}: choose a free port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The replica ended, and not cleanly.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What reconciles a kind.
#[derive(Clone)]
pub(crate) enum Work {
    /// A reconciler.
    Reconciler(Arc<dyn Reconciler>),
    /// The children engine, with a front of the program's.
    Front(Arc<dyn children::Compose>),
    /// The children engine, with a composition.
    Composition(Arc<compose::Composition>),
}

/// One replica, made by its [`Builder`]; then [`run`](Self::run) it.
#[must_use]
pub struct Leasehold {
    config: Configuration,
    works: HashMap<String, Work>,
    leaderships: Leaderships,
    status: Status,
    metrics: Metrics,
    work: Option<Handle>,
    /// The shard that makes the certificate of webhooks.
    issuer: Option<(Kind, Arc<dyn Reconciler>)>,
    /// Webhooks that [`run`](Self::run) serves, by kind; `None`: another part of the program serves them.
    hooks: Option<BTreeMap<String, Arc<dyn Webhook>>>,
    endpoints: Option<SocketAddr>,
}

/// What the binary and the tests make a replica with. Users have the [`Builder`].
macro_rules! internals {
    ($vis:vis) => {
        impl Leasehold {
            /// A replica of this installation, without reconcilers yet.
            $vis fn new(config: Configuration) -> Self {
                let kinds = config.kinds.iter().map(|kind| (kind.name(), kind.lease_group.clone()));
                Self {
                    leaderships: Leaderships::new(kinds),
                    config,
                    works: HashMap::new(),
                    status: Status::default(),
                    metrics: Metrics::default(),
                    work: None,
                    issuer: None,
                    hooks: None,
                    endpoints: None,
                }
            }

            /// Gives the reconciler that the configuration calls `builtin: <name>`. A later one of the same name replaces it.
            $vis fn reconciler(self, name: impl Into<String>, reconciler: impl Reconciler) -> Self {
                self.shared_reconciler(name, Arc::new(reconciler))
            }

            /// As [`reconciler`](Self::reconciler), for one that is shared.
            $vis fn shared_reconciler(mut self, name: impl Into<String>, reconciler: Arc<dyn Reconciler>) -> Self {
                self.works.insert(name.into(), Work::Reconciler(reconciler));
                self
            }

            /// Writes what is known of the shards here, for endpoints to show.
            $vis fn observed_by(mut self, status: Status, metrics: Metrics) -> Self {
                self.status = status;
                self.metrics = metrics;
                self
            }

            /// Takes part in making the serving certificate of these webhooks, unless another program makes it. They are served by
            /// [`Webhooks::serve`], by every replica, whatever it leads.
            $vis fn webhooks(mut self, webhooks: &Webhooks) -> Self {
                self.issuer = webhooks.shard();
                self
            }

            /// As [`run`](Self::run), over connections that others use too. Their credentials are kept fresh meanwhile.
            /// Endpoints and webhooks are another's to serve.
            ///
            /// # Errors
            /// As [`run`](Self::run).
            $vis async fn run_over(
                self,
                connections: Connections,
                replica: Replica,
                signals: impl Stream<Item = ()> + Send,
            ) -> Result<(), Error> {
                self.elect(connections, replica, signals).await
            }
        }
    };
}

#[cfg(feature = "internals")]
internals!(pub);
#[cfg(not(feature = "internals"))]
internals!(pub(crate));

impl Leasehold {
    /// Begins with no kinds, and with the defaults of everything.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// With what a builder was given.
    pub(crate) fn built(
        self,
        works: HashMap<String, Work>,
        hooks: BTreeMap<String, Arc<dyn Webhook>>,
        endpoints: Option<SocketAddr>,
    ) -> Self {
        Self { works, hooks: Some(hooks), endpoints, ..self }
    }

    /// Runs terms on this runtime instead of the one that [`run`](Self::run) is called on,
    /// so that a reconciler which blocks its thread can never hold up a renewal.
    pub fn work_on(mut self, runtime: Handle) -> Self {
        self.work = Some(runtime);
        self
    }

    /// Whether the replica lives and is ready, and what it counts, for an HTTP server of the program's own.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::new(self.status.clone(), self.metrics.clone())
    }

    /// The leader signal of a kind (`"<Kind>.<group>"`), a group or the whole process ([`Of`]), for other tasks of the
    /// process; `None` if that is not configured. To be asked for before [`run`](Self::run), which takes this value.
    #[must_use]
    pub fn leadership<'a>(&self, of: impl Into<Of<'a>>) -> Option<Signal> {
        self.leaderships.subscribe(of.into())
    }

    /// Takes part in the elections of all configured kinds until the first item of `signals`, then drains and releases;
    /// a second item aborts what still drains. See [`shutdown_signals`].
    ///
    /// Takes a `kube::Config`, not a client: Leases, the Lease watch and every term get connections of their own.
    ///
    /// # Cancellation
    /// Dropping the future stops everything at once: no term writes any more, and the Leases are left to expire. To stop cleanly, let
    /// `signals` have an item and await the end.
    ///
    /// # Errors
    /// At once, if a reconciler is missing, an address is taken or no client can be made; later, if the stop was not clean. An
    /// unreachable API server is no error: the replica is not ready, and tries again.
    pub async fn run(
        mut self,
        config: kube::Config,
        replica: Replica,
        signals: impl Stream<Item = ()> + Send,
    ) -> Result<(), Error> {
        let endpoints = endpoints(self.endpoints.take(), self.status.clone(), self.metrics.clone());
        let run = async {
            let connections =
                Connections::load(config, Bounds::new(&self.config.timings)).await.map_err(Error::Client)?;
            match self.hooks.take().filter(|_| self.config.webhooks.enabled) {
                Some(hooks) => self.serve_and_elect(hooks, connections, replica, signals).await,
                None => self.elect(connections, replica, signals).await,
            }
        };
        tokio::select! {
            ended = run => ended,
            failed = endpoints => failed,
        }
    }

    /// Serves the webhooks of the kinds meanwhile, and for the shutdown delay after that.
    async fn serve_and_elect(
        self,
        mut hooks: BTreeMap<String, Arc<dyn Webhook>>,
        connections: Connections,
        replica: Replica,
        signals: impl Stream<Item = ()> + Send,
    ) -> Result<(), Error> {
        let (namespace, asker) = (replica.pod_namespace.clone(), Asker::default());
        let (mut checked, mut all) = (Vec::new(), Vec::new());
        for kind in &self.config.kinds {
            let composition = match self.works.get(&kind.reconciler) {
                Some(Work::Composition(composition)) => Some(composition),
                _ => None,
            };
            if kinds::acts(kind, composition).is_some() {
                checked.push(Checked::new(kind, Type::of_kind(kind).plural));
            }
            let reach = Reach::of(kind, &self.config, Authors::Asked, &namespace);
            let client = Account::of(kind, &namespace).map(|account| connections.client_as(Some(&account)));
            all.extend(kinds::webhook(kind, composition, hooks.remove(&kind.name()), reach, &asker, client));
        }
        let webhooks = Webhooks::new(self.config.webhooks.clone(), &namespace)
            .observed_by(self.status.clone(), self.metrics.clone())
            .covering(checked, Coverages::default());
        let webhooks = all.into_iter().fold(webhooks, |webhooks, (of, hook)| webhooks.shared_answer(of, hook));
        let address = SocketAddr::new(self.config.webhooks.address, self.config.webhooks.port);
        let listener = listen(address).await?;
        let this = self.webhooks(&webhooks);
        // Endpoints still list a replica that stops; a second signal waits for none of that.
        let (terminating, hurry) = (CancellationToken::new(), CancellationToken::new());
        let (stopping, hurrying) = (terminating.clone(), hurry.clone());
        let signals =
            signals.inspect(move |()| if stopping.is_cancelled() { hurrying.cancel() } else { stopping.cancel() });
        let mut serve = pin!(webhooks.serve(listener, connections.client(), terminating.clone().cancelled_owned()));
        let mut run = pin!(this.elect(connections, replica, signals));
        let outcome = tokio::select! {
            biased;
            outcome = &mut run => outcome,
            () = &mut serve => {
                if !terminating.is_cancelled() {
                    return Err(Stopped::Unasked("the server of the webhooks").into());
                }
                // It need not outlast the drain.
                return run.await;
            }
        };
        terminating.cancel();
        if outcome.is_ok() {
            tokio::select! {
                () = serve => {}
                () = hurry.cancelled() => {}
            }
        }
        outcome
    }

    async fn elect(
        self,
        connections: Connections,
        replica: Replica,
        signals: impl Stream<Item = ()> + Send,
    ) -> Result<(), Error> {
        let identity = replica.new_identity();
        let namespace = self.config.lease_namespace.clone().unwrap_or_else(|| replica.pod_namespace.clone());
        let mut assignments = Vec::new();
        // What the kinds of one account see, they share.
        let mut watches = BTreeMap::new();
        let runtime = self.work.clone().unwrap_or_else(Handle::current);
        let mut watches = |kind: &Kind| {
            let account = Account::of(kind, &replica.pod_namespace);
            let open = || {
                // The client's own tasks belong to the runtime that the work runs on.
                let _entered = runtime.enter();
                Watches::new(connections.client_as(account.as_ref()))
            };
            watches.entry(account.clone()).or_insert_with(open).clone()
        };
        // The kinds of a shard follow each other.
        for kind in self.config.shards().concat() {
            let reconciler: Arc<dyn Reconciler> = match self.works.get(&kind.reconciler) {
                Some(Work::Reconciler(reconciler)) => Arc::clone(reconciler),
                Some(Work::Front(front)) => Arc::new(Children::new(kind, Arc::clone(front), watches(kind))),
                Some(Work::Composition(front)) => {
                    let front: Arc<dyn children::Compose> = Arc::<compose::Composition>::clone(front);
                    Arc::new(Children::new(kind, front, watches(kind)))
                }
                None => {
                    let (kind, reconciler) = (kind.name(), kind.reconciler.clone());
                    return Err(Error::UnknownReconciler { kind, reconciler });
                }
            };
            assignments.push(Assignment {
                kind: Arc::new(kind.clone()),
                reconciler,
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
        self.metrics.read(self.status.clone());
        self.metrics.configured(&metrics::Settings {
            installation: self.config.instance.clone(),
            generation: replica.pod_template_hash.clone().unwrap_or_default(),
            rebalance: match self.config.placement.rebalance {
                Rebalance::Automatic => "Automatic",
                Rebalance::OnRestart => "OnRestart",
                Rebalance::Never => "Never",
            },
            on_loss: match self.config.on_loss {
                OnLoss::Reelect => "Reelect",
                OnLoss::Exit => "Exit",
            },
            capacity: self.config.placement.capacity,
            lease_duration: timings.lease_duration,
            renew_deadline: timings.renew_deadline,
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

/// Serves the endpoints until it is dropped; without an address it waits.
async fn endpoints(address: Option<SocketAddr>, status: Status, metrics: Metrics) -> Result<(), Error> {
    let Some(address) = address else { return pending().await };
    let listener = listen(address).await?;
    info!(address = %listener.local_addr().unwrap_or(address), "serving the page, /livez, /readyz, /metrics and /shards");
    http::serve(listener, http::router(status, metrics.clone()), Limits::default(), metrics, pending()).await;
    Err(Stopped::Unasked("the server of the endpoints").into())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
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

#[cfg(test)]
impl Leasehold {
    pub(crate) fn configuration(&self) -> &Configuration {
        &self.config
    }

    /// Kinds that nothing reconciles.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.config.kinds.iter().filter(|kind| !self.works.contains_key(&kind.reconciler));
        missing.map(Kind::name).collect()
    }
}
