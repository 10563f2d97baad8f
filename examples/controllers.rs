//! An operator with two kube `Controller`s, spread over its replicas: each replica that runs leads one of the kinds, and one
//! that is left leads both. Two lines put a controller under a term.
//!
//! ```console
//! cargo run --example controllers -- crds | kubectl apply -f -
//! POD_NAME=me POD_NAMESPACE=default cargo run --example controllers -- 127.0.0.1:8080
//! kubectl get leases
//! ```
//!
//! The kinds are in the program. A file of settings may come before the address: durations, the instance, the weight of a kind.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, CustomResource, CustomResourceExt, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{Controller, controller::Action, watcher},
};
use leasehold::{BoxError, Kind, Leasehold, Replica, Term, shutdown_signals};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A book.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(group = "examples.leasehold.dev", version = "v1", kind = "Book", namespaced, status = "Read")]
struct BookSpec {
    title: String,
}

/// A shelf.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "examples.leasehold.dev",
    version = "v1",
    kind = "Shelf",
    plural = "shelves",
    namespaced,
    status = "Read"
)]
struct ShelfSpec {
    width: u32,
}

/// Which replica has reconciled it, and what came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Read {
    by: String,
    is: String,
}

fn retry<K>(_: Arc<K>, _: &kube::Error, _: Arc<Term>) -> Action {
    Action::requeue(Duration::from_secs(5))
}

async fn books(term: Term) -> Result<(), BoxError> {
    let controller = Controller::new(Api::<Book>::all(term.client()), watcher::Config::default());
    term.control(controller, book, retry, Arc::new(term.clone())).await
}

async fn book(book: Arc<Book>, term: Arc<Term>) -> Result<Action, kube::Error> {
    let api = Api::<Book>::namespaced(term.client(), &book.namespace().unwrap_or_default());
    let status = json!({"status": Read { by: term.holder().to_owned(), is: book.spec.title.to_uppercase() }});
    api.patch_status(&book.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::requeue(term.kind().resync))
}

async fn shelves(term: Term) -> Result<(), BoxError> {
    let controller = Controller::new(Api::<Shelf>::all(term.client()), watcher::Config::default());
    term.control(controller, shelf, retry, Arc::new(term.clone())).await
}

async fn shelf(shelf: Arc<Shelf>, term: Arc<Term>) -> Result<Action, kube::Error> {
    let api = Api::<Shelf>::namespaced(term.client(), &shelf.namespace().unwrap_or_default());
    let is = if shelf.spec.width > 100 { "wide" } else { "narrow" };
    let status = json!({"status": Read { by: term.holder().to_owned(), is: is.to_owned() }});
    api.patch_status(&shelf.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::requeue(term.kind().resync))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (file, address) = match arguments.as_slice() {
        [verb] if verb == "crds" => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": [Book::crd(), Shelf::crd()]});
            serde_json::to_writer(std::io::stdout(), &list)?;
            return Ok(());
        }
        [address] => (None, address),
        [file, address] => (Some(file), address),
        _ => return Err("usage: controllers crds | controllers [SETTINGS] HOST:PORT".into()),
    };
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut app = Leasehold::builder()
        .instance("library")
        .kind::<Book>(books)
        .kind_with(Kind::of::<Shelf>().resync(Duration::from_secs(300)), shelves)
        .endpoints(address.parse()?);
    if let Some(file) = file {
        app = app.configuration(file, std::fs::read_to_string(file)?);
    }
    Ok(app.build()?.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?).await?)
}
