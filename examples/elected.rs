//! Blocks `main` on becoming leader: what client-go's `OnStartedLeading` and controller-runtime's `Elected()` are for.
//!
//! Health and metrics are served first, by every replica. Then `main` waits; the one that leads does the work, and ends it
//! when it does not lead any more. The kind in the configuration is only the lock:
//!
//! ```yaml
//! apiVersion: leasehold.dev/v1alpha1
//! kind: Configuration
//! kinds:
//! - {apiVersion: v1, kind: ConfigMap, lease: {name: my-program}, reconciler: {builtin: main}}
//! ```
//!
//! `POD_NAME=me POD_NAMESPACE=default cargo run --example elected -- leasehold.yaml 127.0.0.1:8080`

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use leasehold::{BoxError, Leasehold, Of, Replica, Signal, Term, shutdown_signals};
use serde_json::json;
use tracing::info;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: elected CONFIG HOST:PORT".into());
    };
    let text = std::fs::read_to_string(&file)?;

    // The term lasts until it drains, whatever main does with it.
    let hold = |term: Term| async move {
        term.draining().await;
        Ok(())
    };
    // Health and metrics are served before anything is asked of the API server.
    let app =
        Leasehold::builder().configuration(file, text).reconciler("main", hold).endpoints(address.parse()?).build()?;
    let mut elected = app.leadership(Of::Process).ok_or("the process has a signal")?;
    let replica = app.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?);

    // Here main blocks until this replica leads. `None`: the replica has ended.
    let main = async {
        while let Some(leadership) = elected.leading().await {
            let Some(term) = leadership.term() else { continue };
            info!(token = %term.token(), "leading");
            work(term, &mut elected.clone()).await;
            info!("not leading");
        }
    };
    let (stopped, ()) = tokio::join!(replica, main);
    Ok(stopped?)
}

/// What only the leader does, until it is not. It writes through the client of its term, which refuses what comes too late.
/// It ends between two writes: one that is dropped on its way would keep the Lease from being released.
async fn work(term: &Term, elected: &mut Signal) {
    let config_maps: Api<ConfigMap> = Api::default_namespaced(term.client());
    for count in 0_u64.. {
        let data = json!({"holder": term.holder(), "token": term.token().to_string(), "count": count.to_string()});
        let leader = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leader"}, "data": data});
        let written = config_maps.patch("leader", &PatchParams::apply("elected").force(), &Patch::Apply(leader)).await;
        if let Err(error) = written {
            info!("not written: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = elected.lost() => return,
        }
    }
}
