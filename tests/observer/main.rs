//! An independent observer: a replica on the library seam whose reconcilers do nothing but write who they are.
//!
//! Any number of kinds, one object each. Every reconcile writes holder and token to its object and comes again after a
//! few milliseconds, so that the API server's own order of writes shows whether two replicas ever worked on one kind.
//! What an object's annotation `order` says makes its reconciler misbehave: `panic`, `hang` (ignores the drain),
//! `block` (holds its thread, which nothing can abort) or `fail` (the term's task ends with an error).
//!
//! With the variable `PADDING` each write carries so many bytes more than it needs: too much for a small window.
//! With the variable `OBSERVES` it observes its kind, logs each version that it sees, and tries to write each time.
//! With the variable `STANDS_BY` it lists its kind as a standby, and tries to write before its term.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt,
    future::{BoxFuture, ready},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::{Controller, controller::Action, watcher},
};
use leasehold::{
    BoxError, Leasehold, Observation, Reconciler, Replica, Standby, Term,
    config::{Kind, Offer},
    ops::{
        http::{self, Limits},
        metrics::Metrics,
        status::Status,
    },
    reconcile::observe::{self, Observed},
    replica::supervisor::Stopped,
    shutdown_signals,
};
use serde_json::json;
use tokio::sync::mpsc;

/// The one object of each kind.
const OBJECT: &str = "it";

/// Between two writes of one kind, unless the variable `BEAT` gives another number of milliseconds.
const BEAT: u64 = 20;

fn beat_length() -> Duration {
    let given = std::env::var("BEAT").ok().and_then(|beat| beat.parse().ok());
    Duration::from_millis(given.unwrap_or(BEAT))
}

fn main() -> Result<(), BoxError> {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_env_filter("info,kube=off,hyper=off").with_writer(std::io::stderr).init();
    let work = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let elections = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = elections.block_on(run(work.handle().clone()));
    // A blocked thread never ends: that is what some of the orders are for.
    work.shutdown_background();
    if let Err(error) = &result
        && let Some(leasehold::Error::Stopped(Stopped::Lost { .. })) = error.downcast_ref()
    {
        // As the binary does: nothing is waited for.
        std::process::exit(75);
    }
    result
}

async fn run(work: tokio::runtime::Handle) -> Result<(), BoxError> {
    let file = std::env::args().nth(1).ok_or("usage: observer CONFIG [HOST:PORT]")?;
    let config = leasehold::config::load(
        &file,
        &std::fs::read_to_string(&file)?,
        &[Offer { name: "observer", only: None, in_code: false }],
    )?;
    let (status, metrics) = (Status::default(), Metrics::default());
    let endpoints = serve(std::env::args().nth(2), status.clone(), metrics.clone());
    let replica = Leasehold::new(config)
        .reconciler("observer", Observer)
        .observed_by(status, metrics)
        .work_on(work)
        .run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?);
    tokio::select! {
        served = endpoints => served,
        stopped = replica => Ok(stopped?),
    }
}

/// Answers the probes of a Deployment; without an address for as long as anybody waits.
async fn serve(address: Option<String>, status: Status, metrics: Metrics) -> Result<(), BoxError> {
    let Some(address) = address else { return std::future::pending().await };
    let listener = http::bind(address.parse()?).await?;
    let router = http::router(status, metrics.clone());
    http::serve(listener, router, Limits::default(), metrics, std::future::pending()).await;
    Ok(())
}

struct Observer;

impl Reconciler for Observer {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(observe(term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        std::env::var_os("STANDS_BY").map(|_| Box::pin(stand_by(standby)) as _)
    }

    fn observe(&self, observation: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        std::env::var_os("OBSERVES").map(|_| Box::pin(tell_changes(observation)) as _)
    }
}

/// Logs what it sees, and tries what an observer must not.
async fn tell_changes(observation: Observation) -> Result<(), BoxError> {
    let resource = resource(observation.kind());
    let objects: Api<DynamicObject> = Api::default_namespaced_with(observation.client(), &resource);
    let early = Patch::Merge(json!({"spec": {"early": true}}));
    let observer = observe::Observer::<DynamicObject>::new(resource);
    let mut changes = std::pin::pin!(observer.changes(&observation));
    let tell = |what: &str, object: &DynamicObject| {
        tracing::info!(what, name = object.name_any(), version = object.resource_version(), "observed");
    };
    while let Some(change) = changes.next().await {
        match change {
            Observed::Restarted(all) => {
                tracing::info!(all = all.len(), "observed from now on");
                all.iter().for_each(|object| tell("listed", object));
            }
            Observed::Applied(object) => tell("applied", &object),
            Observed::Deleted(object) => tell("deleted", &object),
        }
        let _refused = objects.patch(OBJECT, &PatchParams::default(), &early).await;
        let _refused = objects.delete(OBJECT, &DeleteParams::default()).await;
    }
    Ok(())
}

/// Reads what a cache would be filled with, and tries what a standby must not.
async fn stand_by(mut standby: Standby) -> Result<(), BoxError> {
    let objects: Api<DynamicObject> = Api::default_namespaced_with(standby.client(), &resource(standby.kind()));
    objects.list(&ListParams::default()).await?;
    let early = Patch::Merge(json!({"spec": {"early": true}}));
    let _refused = objects.patch(OBJECT, &PatchParams::default(), &early).await;
    standby.prepared();
    observe(standby.lead().await).await
}

fn resource(kind: &Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind))
}

async fn observe(term: Term) -> Result<(), BoxError> {
    let resource = resource(term.kind());
    let objects: Api<DynamicObject> = Api::default_namespaced_with(term.client(), &resource);
    let (failed, mut failures) = mpsc::unbounded_channel();
    if std::env::var_os("STUBBORN").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a task nobody owns is what the fence is tested with")]
        tokio::spawn(write_stubbornly(term.clone(), objects.clone()));
    }
    let context = Arc::new((term.clone(), objects.clone(), failed));
    let controller = Controller::new_with(objects, watcher::Config::default(), resource)
        .graceful_shutdown_on(term.draining())
        .run(beat, |_, _, _| Action::requeue(beat_length()), context)
        .for_each(|_| ready(()));
    tokio::select! {
        () = controller => Ok(()),
        Some(order) = failures.recv() => {
            while order.to_string().ends_with("block") {
                std::thread::park();
            }
            Err(order)
        }
    }
}

/// Writes through the term's client for as long as the process lives, whatever becomes of the term: what only a fence stops.
/// The more it is refused, the less often: what is left of a thousand terms would take the processor from the next one.
async fn write_stubbornly(term: Term, objects: Api<DynamicObject>) {
    let mut refused = 0;
    loop {
        // Refused after the term; that is what the tests are about.
        let written = objects.patch(OBJECT, &PatchParams::default(), &seen_by(&term)).await;
        refused = if written.is_ok() { 0 } else { refused + 1 };
        tokio::time::sleep(beat_length() * (1 + refused / 50)).await;
    }
}

fn seen_by(term: &Term) -> Patch<serde_json::Value> {
    let token = term.token();
    let mut spec = json!({"holder": term.holder(), "uid": token.uid, "transitions": token.transitions});
    if let Some(length) = std::env::var("PADDING").ok().and_then(|length| length.parse().ok()) {
        spec["padding"] = json!("x".repeat(length));
    }
    Patch::Merge(json!({"spec": spec}))
}

type Context = (Term, Api<DynamicObject>, mpsc::UnboundedSender<BoxError>);

async fn beat(object: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let (term, objects, failed) = &*context;
    match object.annotations().get("order").map(String::as_str) {
        Some("panic") => panic!("ordered to panic"),
        Some("hang") => std::future::pending::<()>().await,
        Some(order @ ("block" | "fail")) => {
            let _receiver_gone = failed.send(format!("ordered to {order}").into());
            // A write that the end of the term finds on its way would keep the Lease from being released.
            return Ok(Action::await_change());
        }
        _ => {}
    }
    // No resourceVersion: the worst kind of writer, which only its fence can stop.
    objects.patch(&object.name_any(), &PatchParams::default(), &seen_by(term)).await?;
    Ok(Action::requeue(beat_length()))
}
