//! `leasehold run`: one replica, from its configuration to its last released Lease.

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures::StreamExt as _;
use leasehold::{
    Leasehold, Replica,
    config::Kind,
    kinds::{
        reach::{Authors, Reach},
        reaching::Reaching,
    },
    ops::{
        http::{self, Limits},
        metrics::Metrics,
        status::Status,
    },
    reconcile::watches::Watches,
    replica::{
        connections::{Account, Bounds, Connections},
        proof,
        supervisor::Stopped,
    },
    shutdown_signals,
    webhooks::{Webhooks, configuration::Coverages},
};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    DEPOSED, Failure, Switch,
    load::{Loaded, load},
    logging, traces,
};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file, or a folder with a leasehold.yaml
    #[arg(short, long, visible_short_alias = 'f', visible_alias = "file", value_name = "PATH")]
    config: PathBuf,
    /// Address of the page (/), /livez, /readyz, /metrics and /shards
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Serve webhooks, or do not, whatever `webhooks.enabled` says; they are served on the host of --http
    #[arg(long, value_enum, value_name = "ON|OFF")]
    webhooks: Option<Switch>,
    /// Form of the log lines on standard error; RUST_LOG chooses which
    #[arg(long, value_enum, default_value_t = logging::Format::Text)]
    log_format: logging::Format,
    /// Name of this Pod, the readable part of its holder identity [default: the host name]
    #[arg(long, env, value_name = "NAME")]
    pod_name: Option<String>,
    /// Namespace of this Pod [default: the kubeconfig's]
    #[arg(long, env, value_name = "NAMESPACE")]
    pod_namespace: Option<String>,
    /// Uid of this Pod
    #[arg(long, env, value_name = "UID")]
    pod_uid: Option<String>,
    /// Hash of the template this Pod was made from
    #[arg(long, env, value_name = "HASH")]
    pod_template_hash: Option<String>,
    /// The container's termination log: Kubernetes copies it to the Pod's status when this process has ended
    #[arg(long, env = TERMINATION_LOG, value_name = "PATH", default_value = DEFAULT_TERMINATION_LOG)]
    termination_log: PathBuf,
}

const TERMINATION_LOG: &str = "TERMINATION_LOG";
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// Says in the termination log what is wrong with the command line of a replica, which may name no log itself then.
pub(super) fn misused(why: &str) {
    let log = env::var_os(TERMINATION_LOG).map_or_else(|| DEFAULT_TERMINATION_LOG.into(), PathBuf::from);
    last_words(&log, why);
}

/// Outside of a container there is no such log, and standard error has the words too: nothing is lost without it.
fn last_words(log: &Path, why: &str) {
    let _ = proof::last_words(log, why);
}

/// How long an answer that is being written at the end may take. The process has nothing else to wait for by then.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

pub(super) fn run(options: Options) -> Result<ExitCode, Failure> {
    let log = options.termination_log.clone();
    run_until_stopped(options).inspect_err(|failure| last_words(&log, &failure.to_string()))
}

fn run_until_stopped(options: Options) -> Result<ExitCode, Failure> {
    let loaded = load(&options.config).map_err(|bad| Failure::Usage(bad.to_string()))?;
    let (layer, spans) = traces::from_environment(options.pod_name.as_deref().unwrap_or_default())?;
    let lines = logging::install(options.log_format, layer);
    spans.tell();
    // Elections have a thread of their own: work that blocks every other one starves no renewal.
    let elections = Builder::new_current_thread().enable_all().build().context("failed to start the runtime")?;
    let work = Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")?;
    let status = Status::default();
    let metrics = Metrics::new(loaded.config.kinds.iter().map(|kind| kind.name()), status.clone());
    metrics.read_dropped_log_lines(lines.dropped());
    // The endpoints are up before anything is asked of the API server, and until the replica has ended.
    let mut endpoints = Endpoints::serve(options.http, status.clone(), metrics.clone())?;
    let outcome = elections.block_on(async {
        let outcome = tokio::select! {
            outcome = replica(options, loaded, work.handle().clone(), status, metrics) => outcome,
            _ = &mut endpoints.ended => return Err(anyhow!("the HTTP server ended by itself")),
        };
        if !outcome.as_ref().is_err_and(is_deposed) {
            endpoints.end().await;
        }
        outcome
    });
    if outcome.as_ref().is_err_and(is_deposed) {
        // Neither runtimes nor threads are waited for: the restart is the cleaning up. The log has said why.
        spans.end_at_once();
        lines.end_at_once();
        #[expect(
            clippy::exit,
            reason = "a lost term ends the process at once: its fences are shut, and its Leases expire"
        )]
        process::exit(DEPOSED.into());
    }
    // What still blocks a thread has outlived its term, or is a credentials plugin; the process waits for neither.
    work.shutdown_background();
    elections.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// The replica has lost a term, and `onLoss` is `Exit`.
fn is_deposed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(leasehold::Error::Stopped(Stopped::Lost { .. })))
}

/// The endpoints on a thread of their own: any Pod may ask, and no number of requests takes time from elections or terms.
struct Endpoints {
    stop: CancellationToken,
    /// Resolves when they are no longer served.
    ended: oneshot::Receiver<()>,
}

impl Endpoints {
    fn serve(address: SocketAddr, status: Status, metrics: Metrics) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("failed to start the runtime")?;
        let listener = runtime.block_on(http::bind(address))?;
        // The address as it is: a port 0 has become another one.
        let address = listener.local_addr().context("failed to read the address of the endpoints")?;
        tracing::info!(%address, "serving the page, /livez, /readyz, /metrics and /shards");
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let (end, ended) = oneshot::channel();
        on_a_thread("endpoints", move || {
            let router = http::router(status, metrics.clone());
            runtime.block_on(http::serve(listener, router, Limits::default(), metrics, stopped));
            // An error means that the process has stopped waiting.
            let _ = end.send(());
        })?;
        Ok(Self { stop, ended })
    }

    /// Stops, and waits for the last answers. A request that never ends must not keep the process.
    async fn end(self) {
        self.stop.cancel();
        let _ = timeout(LAST_ANSWERS, self.ended).await;
    }
}

/// A thread that ends with its work, or with the process.
fn on_a_thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).with_context(|| format!("failed to start the thread of the {name}"))
}

/// The webhooks on a thread of their own: anyone who may write an object can cause requests, and these take no time from
/// elections or terms.
struct Serving {
    /// The replica stops: from here on they are served for the shutdown delay.
    terminating: CancellationToken,
    /// Resolves when they are no longer served.
    ended: oneshot::Receiver<()>,
}

impl Serving {
    async fn start(webhooks: Webhooks, connections: Connections) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("failed to start the runtime")?;
        let terminating = CancellationToken::new();
        let stop = terminating.clone().cancelled_owned();
        let (started, start) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        on_a_thread("webhooks", move || {
            runtime.block_on(async {
                // Errors mean that the process has stopped waiting.
                match webhooks.bind().await {
                    Ok(listener) => {
                        let _ = started.send(Ok(listener.local_addr()));
                        webhooks.serve(listener, connections.client(), stop).await;
                    }
                    Err(error) => _ = started.send(Err(error)),
                }
            });
            let _ = end.send(());
        })?;
        let address = start.await.context("the thread of the webhooks has ended")??;
        tracing::info!(address = %address.context("failed to read the address of the webhooks")?, "serving webhooks");
        Ok(Self { terminating, ended })
    }
}

async fn replica(
    options: Options,
    loaded: Loaded,
    work: Handle,
    status: Status,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let signals = shutdown_signals().context("failed to listen for signals")?;
    let cluster = kube::Config::infer()
        .await
        .context("no cluster to talk to: set KUBECONFIG, or run in a Pod with a ServiceAccount")?;
    let replica = Replica {
        pod_name: given(options.pod_name).map_or_else(host_name, Ok)?,
        pod_namespace: given(options.pod_namespace).unwrap_or_else(|| cluster.default_namespace.clone()),
        pod_uid: given(options.pod_uid),
        pod_template_hash: given(options.pod_template_hash),
        termination_log: Some(options.termination_log),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pod = replica.pod_name,
        uid = replica.pod_uid,
        template = replica.pod_template_hash,
        api = %cluster.cluster_url,
        "leasehold"
    );
    let bounds = Bounds::new(&loaded.config.timings);
    let connections = Connections::load(cluster, bounds).await.context("failed to load the credentials")?;
    let mut settings = loaded.config.webhooks.clone();
    settings.address = options.http.ip();
    settings.enabled = options.webhooks.map_or(settings.enabled, |switch| switch == Switch::On);
    let coverages = settings.enabled.then(Coverages::default);
    let reach = |kind: &Kind| Reaching::of(kind, &loaded.config, coverages.as_ref(), &replica.pod_namespace);
    // What the kinds of one account see, they share.
    let mut watches = BTreeMap::new();
    let reconcilers = loaded.reconcilers(reach, |kind| {
        let account = Account::of(kind, &replica.pod_namespace);
        let open = || {
            // The client's own tasks belong to the runtime that the work runs on.
            let _entered = work.enter();
            Watches::new(connections.client_as(account.as_ref()))
        };
        watches.entry(account.clone()).or_insert_with(open).clone()
    });
    // A webhook that is asked is what lifts the limits.
    let asked = |kind: &Kind| Reach::of(kind, &loaded.config, Authors::Asked, &replica.pod_namespace);
    let checked = loaded.checked();
    let hooks = loaded.webhooks(asked, |kind| {
        let account = Account::of(kind, &replica.pod_namespace)?;
        let _entered = work.enter();
        Some(connections.client_as(Some(&account)))
    });
    let mut leasehold = Leasehold::new(loaded.config).observed_by(status.clone(), metrics.clone()).work_on(work);
    let mut serving = None;
    if let Some(coverages) = coverages {
        let webhooks = Webhooks::new(settings, &replica.pod_namespace).observed_by(status, metrics);
        let webhooks = webhooks.covering(checked, coverages);
        let webhooks = hooks.into_iter().fold(webhooks, |all, (of, hook)| all.shared_answer(of, hook));
        leasehold = leasehold.webhooks(&webhooks);
        serving = Some(Serving::start(webhooks, connections.clone()).await?);
    }
    for (name, reconciler) in reconcilers {
        leasehold = leasehold.shared_reconciler(name, reconciler);
    }
    let Some(Serving { terminating, mut ended }) = serving else {
        return Ok(leasehold.run_over(connections, replica, signals).await?);
    };
    // Endpoints still list a replica that stops; a second signal waits for none of that.
    let hurry = CancellationToken::new();
    let signals = signals.inspect(|()| if terminating.is_cancelled() { hurry.cancel() } else { terminating.cancel() });
    let mut running = std::pin::pin!(leasehold.run_over(connections, replica, signals));
    let outcome = tokio::select! {
        biased;
        outcome = &mut running => outcome,
        _ = &mut ended => {
            if !terminating.is_cancelled() {
                return Err(anyhow!("the webhooks have ended by themselves"));
            }
            // They need not outlast the drain.
            running.await?;
            return Ok(());
        }
    };
    terminating.cancel();
    if outcome.is_ok() {
        tokio::select! {
            _ = ended => {}
            () = hurry.cancelled() => {}
        }
    }
    Ok(outcome?)
}

/// An empty variable, as `env: [{name: X}]` in a manifest makes, is one that is not set.
fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn host_name() -> anyhow::Result<String> {
    let name = hostname::get().context("failed to read the host name; set POD_NAME")?;
    name.into_string().map_err(|name| anyhow!("the host name {name:?} is no text; set POD_NAME"))
}
