//! Several tasks of one process watch the same leader signal: one tells of each change, one is asked by HTTP, and one
//! works while this replica leads.
//!
//! The configuration is as that of the example `elected`; the task that works writes an object `it` of the configured kind.
//!
//! `POD_NAME=me POD_NAMESPACE=default cargo run --example watchers -- leasehold.yaml 127.0.0.1:8080`

use std::time::Duration;

use axum::{Json, routing::get};
use kube::{
    Api, Error,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold::{
    BoxError, Leasehold, Of, Replica, Signal, Term,
    ops::{
        http::{self, Limits},
        metrics::Metrics,
        status::Status,
    },
    replica::fence::Fenced,
    shutdown_signals,
};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{error, info};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: watchers CONFIG HOST:PORT".into());
    };
    let config = leasehold::config::load(&file, &std::fs::read_to_string(&file)?, &["main"])?;
    let hold = |term: Term| async move {
        term.draining().await;
        Ok(())
    };
    let (status, metrics) = (Status::default(), Metrics::default());
    let app = Leasehold::new(config).reconciler("main", hold).observed_by(status.clone(), metrics.clone());
    let signal = app.leadership(Of::Process).ok_or("the process has a signal")?;

    let mut tasks = JoinSet::new();
    tasks.spawn(tell(signal.clone()));
    tasks.spawn(work(signal.clone()));
    let asked = signal.clone();
    let answer = move || {
        let leadership = asked.now();
        let kinds: Vec<_> = leadership.kinds().map(str::to_owned).collect();
        async move { Json(json!({"leading": leadership.is_leading(), "kinds": kinds})) }
    };
    let router = http::router(status, metrics.clone()).route("/leading", get(answer));
    // The tests of this example ask more often than a scraper does.
    let limits = Limits { per_second: 500, ..Limits::default() };
    let listener = http::bind(address.parse()?).await?;
    tasks.spawn(http::serve(listener, router, limits, metrics, std::future::pending()));

    app.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?).await?;
    // The tasks are dropped with their set.
    Ok(())
}

/// Says what is led, each time that this changes.
async fn tell(mut signal: Signal) {
    while signal.leading().await.is_some() {
        info!(leading = true, led = ?signal.now(), "the signal");
        signal.lost().await;
        info!(leading = false, "the signal");
    }
}

/// Works while this replica leads.
async fn work(mut signal: Signal) {
    while let Some(leadership) = signal.leading().await {
        for (kind, term) in leadership.terms() {
            if let Err(error) = write(term, &signal).await {
                info!(kind, "not written: {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn write(term: &Term, signal: &Signal) -> Result<(), kube::Error> {
    let kind = GroupVersionKind::gvk(&term.kind().group, &term.kind().version, &term.kind().kind);
    let objects: Api<DynamicObject> = Api::default_namespaced_with(term.client(), &ApiResource::from_gvk(&kind));
    let token = term.token();
    let spec = json!({"holder": term.holder(), "uid": token.uid, "transitions": token.transitions});
    let written = objects.patch("it", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
    // What the fence refuses, the signal does not promise.
    if matches!(&written, Err(Error::Service(why)) if why.is::<Fenced>()) && signal.is_leading() {
        let same = signal.now().token() == Some(token);
        if same {
            error!("the fence has refused a write of a term that the signal calls led");
        }
    }
    written.map(drop)
}
