//! The replica that is measured: any number of kinds, each reconciled as the client-go replica beside it does. A worker
//! copies `spec.change` of each object to `spec.seen` and says who did it.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold::{
    BoxError, Leasehold, Reconciler, Replica, Standby, Term,
    config::Offer,
    ops::{
        http::{self, Limits},
        metrics::Metrics,
        status::Status,
    },
    reconcile::controller::{Controller, RequeueAfter},
    shutdown_signals,
};
use serde_json::json;

fn main() -> Result<(), BoxError> {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_env_filter("info,kube=off,hyper=off").with_writer(std::io::stderr).init();
    let work = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let elections = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    elections.block_on(run(work.handle().clone()))
}

async fn run(work: tokio::runtime::Handle) -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: replica CONFIG HOST:PORT".into());
    };
    let config = leasehold::config::load(
        &file,
        &std::fs::read_to_string(&file)?,
        &[Offer { name: "seen", only: None, in_code: false }],
    )?;
    let (status, metrics) = (Status::default(), Metrics::default());
    let listener = http::bind(address.parse()?).await?;
    let replica = Leasehold::new(config)
        .reconciler("seen", Seen)
        .observed_by(status.clone(), metrics.clone())
        .work_on(work)
        .run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?);
    let router = http::router(status, metrics.clone());
    let endpoints = http::serve(listener, router, Limits::default(), metrics, std::future::pending());
    tokio::select! {
        () = endpoints => Ok(()),
        stopped = replica => Ok(stopped?),
    }
}

struct Seen;

impl Reconciler for Seen {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(work(standby))
    }
}

fn work(standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
    let kind = standby.kind();
    let kind = GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind);
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::default_namespaced_with(standby.client(), &resource);
    let controller = Controller::new(api, resource.clone());
    let begin = move |term: Term| {
        let api: Api<DynamicObject> = Api::default_namespaced_with(term.client(), &resource);
        move |object| see(object, api.clone(), term.clone())
    };
    controller.run(standby, begin).map(Ok).boxed()
}

async fn see(object: Arc<DynamicObject>, api: Api<DynamicObject>, term: Term) -> Result<RequeueAfter, kube::Error> {
    let spec = &object.data["spec"];
    if spec["change"] != spec["seen"] {
        let patch = json!({"spec": {"seen": spec["change"], "holder": term.holder()}});
        api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(None)
}
