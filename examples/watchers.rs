//! Several tasks of one process watch the same leader signal: one tells of each change, one is asked by HTTP, and one
//! works while this replica leads.
//!
//! The configuration is as that of the example `elected`; the task that works writes an object `it` of the configured kind.
//!
//! `POD_NAME=me POD_NAMESPACE=default cargo run --example watchers -- leasehold.yaml 127.0.0.1:8080`

use std::time::Duration;

use axum::{Json, Router, http::Uri, routing::get};
use kube::{
    Api, Error,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold::{BoxError, Fenced, Leasehold, Of, Replica, Signal, Term, shutdown_signals};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{error, info};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: watchers CONFIG HOST:PORT".into());
    };
    let text = std::fs::read_to_string(&file)?;
    let hold = |term: Term| async move {
        term.draining().await;
        Ok(())
    };
    let app = Leasehold::builder().configuration(file, text).reconciler("main", hold).build()?;
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
    // The program has an HTTP server of its own, so that serves health and metrics too.
    let health = app.health();
    let health = move |uri: Uri| async move { health.get(&uri.to_string()).await };
    let router = Router::new().route("/leading", get(answer)).fallback(health);
    let listener = TcpListener::bind(&address).await?;
    tasks.spawn(async move {
        if let Err(failed) = axum::serve(listener, router).await {
            error!("the HTTP server has ended: {failed}");
        }
    });

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
