//! Read everywhere, write by the leader: an API that every replica serves from its cache, with the statuses written by one.
//!
//! Each `Backend` is observed by all replicas. Load balancers report whether it is healthy, to whichever replicas they
//! reach; the leader writes the newest report of each to its status, at most twice a second.
//!
//! ```yaml
//! apiVersion: leasehold.dev/v1alpha1
//! kind: Configuration
//! kinds:
//! - {apiVersion: examples.leasehold.dev/v1, kind: Backend, reconciler: {builtin: backends}}
//! ```
//!
//! ```console
//! cargo run --example read_api -- crd | kubectl apply -f -
//! POD_NAME=me POD_NAMESPACE=default cargo run --example read_api -- leasehold.yaml 127.0.0.1:8080
//! curl 127.0.0.1:8080/backends
//! curl 127.0.0.1:8080/backends/default/db -H content-type:application/json -d '{"number": 7, "healthy": true}'
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{Response, StatusCode, Uri},
    routing::get,
};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt, ResourceExt};
use leasehold::{
    Access, BoxError, Health, Leasehold, Observation, Of, Reconciler, Replica, Signal, Standby, Term,
    observe::{HandedIn, Limits, Name, Observed, Observer, Revision, Shard, Stamped, StatusWriter, Versioned},
    shutdown_signals,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

/// Something that load balancers send requests to.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(group = "examples.leasehold.dev", version = "v1", kind = "Backend", namespaced, status = "BackendStatus")]
struct BackendSpec {
    /// Where it is.
    url: String,
}

/// What was reported last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BackendStatus {
    observed_generation: Option<i64>,
    /// Counts the reports about one backend, or says when each was made.
    report: u64,
    healthy: bool,
    shard: Option<Shard>,
}

/// The newest report wins, whichever replica got it.
impl Versioned for BackendStatus {
    fn revision(&self) -> Revision {
        Revision { generation: self.observed_generation, number: self.report }
    }
}

impl Stamped for BackendStatus {
    fn conditions(&self) -> &[Condition] {
        &[]
    }

    fn shard_mut(&mut self) -> &mut Option<Shard> {
        &mut self.shard
    }
}

/// What the replica knows, and what it has to say. Clones are handles on the same.
#[derive(Clone)]
struct Backends {
    observer: Observer<Backend>,
    statuses: StatusWriter<Backend>,
    changes: Arc<Mutex<VecDeque<String>>>,
}

impl Reconciler for Backends {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        let statuses = self.statuses.clone();
        Box::pin(async move {
            statuses.write_for(&term).await;
            Ok(())
        })
    }

    /// There is nothing to fill: the observer's cache is there already.
    fn stand_by(&self, mut standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        let this = self.clone();
        Some(Box::pin(async move {
            standby.prepared();
            this.run(standby.lead().await).await
        }))
    }

    fn observe(&self, observation: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        let this = self.clone();
        Some(Box::pin(async move {
            let on = |change: Observed<Backend>| {
                this.statuses.saw(&change);
                this.note(&change);
            };
            this.observer.run(&observation, on).await;
            Ok(())
        }))
    }

    fn needs(&self) -> Vec<Access> {
        StatusWriter::<Backend>::needs()
    }
}

impl Backends {
    fn new() -> Self {
        let observer = Observer::default();
        let statuses = StatusWriter::new(observer.store(), Limits::default());
        Self { observer, statuses, changes: Arc::default() }
    }

    /// The last changes are served as well.
    fn note(&self, change: &Observed<Backend>) {
        let told = |what: &str, object: &Backend| {
            format!("{what} {} {}", Name::of(object), object.resource_version().unwrap_or_default())
        };
        let line = match change {
            Observed::Restarted(all) => format!("restarted with {}", all.len()),
            Observed::Applied(object) => told("applied", object),
            Observed::Deleted(object) => told("deleted", object),
        };
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.push_back(line);
        if changes.len() > 1000 {
            changes.pop_front();
        }
    }
}

/// What a request may ask for.
#[derive(Clone)]
struct Api {
    backends: Backends,
    signal: Signal,
    health: Health,
}

/// A report of a load balancer.
#[derive(Deserialize)]
struct Report {
    number: u64,
    healthy: bool,
}

type Refused = (StatusCode, &'static str);

impl Api {
    fn router(self) -> Router {
        Router::new()
            .route("/backends", get(Self::all))
            .route("/backends/{namespace}/{name}", get(Self::one).post(Self::report))
            .route("/changes", get(Self::changes))
            .fallback(Self::health)
            .with_state(self)
    }

    /// `/readyz`, `/metrics` and so on.
    async fn health(State(this): State<Self>, uri: Uri) -> Response<String> {
        this.health.get(&uri.to_string()).await
    }

    async fn all(State(this): State<Self>) -> Result<Json<Value>, Refused> {
        let store = this.backends.observer.store();
        if !store.is_listed() {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the backends are not listed yet\n"));
        }
        let mut all = store.all();
        all.sort_by_key(|backend| Name::of(&**backend));
        let all: Vec<_> = all.iter().map(|backend| &**backend).collect();
        let (leading, counts) = (this.signal.is_leading(), this.backends.statuses.counts());
        Ok(Json(json!({"leading": leading, "statuses": counts, "backends": all})))
    }

    async fn one(
        State(this): State<Self>,
        Path((namespace, name)): Path<(String, String)>,
    ) -> Result<Json<Value>, Refused> {
        Ok(Json(json!(*this.find(&namespace, &name)?)))
    }

    /// Any replica takes it.
    async fn report(
        State(this): State<Self>,
        Path((namespace, name)): Path<(String, String)>,
        Json(Report { number, healthy }): Json<Report>,
    ) -> Result<&'static str, Refused> {
        let backend = this.find(&namespace, &name)?;
        let status =
            BackendStatus { observed_generation: backend.metadata.generation, report: number, healthy, shard: None };
        match this.backends.statuses.hand_in(&backend, status) {
            HandedIn::Kept => Ok("taken\n"),
            HandedIn::Old => Ok("known\n"),
            HandedIn::Full => Err((StatusCode::TOO_MANY_REQUESTS, "too many reports wait to be written\n")),
        }
    }

    async fn changes(State(this): State<Self>) -> Json<Value> {
        Json(json!(*this.backends.changes.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Arc<Backend>, Refused> {
        let found = self.backends.observer.store().get(&Name::new(Some(namespace), name));
        found.ok_or((StatusCode::NOT_FOUND, "no such backend\n"))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (file, address) = match (arguments.next(), arguments.next()) {
        (Some(verb), None) if verb == "crd" => {
            serde_json::to_writer(std::io::stdout(), &Backend::crd())?;
            return Ok(());
        }
        (Some(file), Some(address)) => (file, address),
        _ => return Err("usage: read_api crd | read_api CONFIG HOST:PORT".into()),
    };
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let (backends, text) = (Backends::new(), std::fs::read_to_string(&file)?);
    let app = Leasehold::builder().configuration(file, text).reconciler("backends", backends.clone()).build()?;
    let signal = app.leadership(Of::Process).ok_or("the process has a signal")?;

    let router = Api { backends, signal, health: app.health() }.router();
    let listener = TcpListener::bind(&address).await?;
    // Dropped at the end of the replica: the API is served until its last term has drained.
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await });
    Ok(app.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?).await?)
}
