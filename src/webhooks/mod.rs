//! Webhooks: every replica answers for its kinds, whether it leads them or not.
//!
//! A [`Webhook`] defaults, validates or converts the objects of one kind. [`Webhooks`] serves them over TLS:
//! [`review`] decodes and encodes the reviews, [`server`] bounds what a client may cost, [`loader`] keeps the serving
//! certificate that the others have made. [`action`] is what an object would have its kind do, and [`ask`] asks whether its
//! author may. Whether the API server asks about every object of a kind
//! is what [`coverage`] judges and [`configuration`] reads. The certificate is made and renewed by a shard of its own, [`issuer`], whose steps
//! [`rotation`] decides and whose certificates [`certificate`] makes and judges.

pub mod action;
pub mod ask;
pub mod certificate;
pub mod configuration;
pub mod coverage;
pub mod issuer;
pub mod loader;
pub mod review;
pub mod rotation;
pub mod server;
#[cfg(test)]
mod tests;
mod turns;

use std::{collections::BTreeMap, future::Future, io, net::SocketAddr, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use kube::{
    Client,
    core::{DynamicObject, admission::AdmissionRequest},
};
use serde_json::Value;
use tokio::net::TcpListener;

use self::{
    configuration::{Coverages, Reader},
    coverage::Checked,
    issuer::Issuer,
    loader::{Loader, Serving},
    review::Reviews,
    server::Limits,
};
use crate::{
    config::{Certificate, Kind, StandbyMode, WebhookSettings},
    ops::{metrics::Metrics, status::Status},
    reconcile::clock::{Clock, WallClock},
    replica::term::Reconciler,
};

/// An admission request, with a client to look things up.
pub struct Asked<'a> {
    /// The request, as the API server made it.
    pub request: &'a AdmissionRequest<DynamicObject>,
    /// Reads what the decision depends on. It is behind no fence: a webhook writes nothing.
    pub client: &'a Client,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// For the author of the request: which field, what is wrong, and what to do.
    pub message: String,
    /// HTTP status that the API server answers with: 403, or another one if the request itself is not at fault.
    pub code: u16,
}

impl Denied {
    /// A refusal by a rule.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 403 }
    }

    /// What is needed for the decision could not be found out; the request may be tried again.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 503 }
    }
}

/// Answers for the objects of one kind. Each method has a default that changes and refuses nothing.
///
/// It is called on every replica, several times at once, for dry runs too: it has no side effects. An answer that takes
/// longer than [`Limits::answer`] becomes a refusal, and so does a panic.
///
/// ```
/// use futures::{FutureExt, future::BoxFuture};
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use leasehold::{BoxError, Leasehold, Term, webhook::{Asked, Denied, Webhook}};
///
/// struct Small;
///
/// impl Webhook for Small {
///     fn validate<'a>(&'a self, asked: &'a Asked<'_>) -> BoxFuture<'a, Result<Vec<String>, Denied>> {
///         let object = asked.request.object.as_ref();
///         let keys = object.and_then(|object| object.data["data"].as_object()).map_or(0, |data| data.len());
///         async move { if keys > 9 { Err(Denied::new("data: the most is 9 keys")) } else { Ok(Vec::new()) } }.boxed()
///     }
/// }
///
/// async fn config_maps(term: Term) -> Result<(), BoxError> {
///     term.draining().await;
///     Ok(())
/// }
///
/// # fn main() -> Result<(), BoxError> {
/// let app = Leasehold::builder().kind::<ConfigMap>(config_maps).webhook::<ConfigMap>(Small).build()?;
/// # Ok(())
/// # }
/// ```
pub trait Webhook: Send + Sync + 'static {
    /// Fills in what the object leaves out; what has changed becomes a JSON patch. Not called for a deletion.
    fn default<'a>(&'a self, asked: &'a Asked<'_>, object: &'a mut Value) -> BoxFuture<'a, Result<(), Denied>> {
        let _ = (asked, object);
        async { Ok(()) }.boxed()
    }

    /// Accepts the request, with warnings for its author, or refuses it.
    fn validate<'a>(&'a self, asked: &'a Asked<'_>) -> BoxFuture<'a, Result<Vec<String>, Denied>> {
        let _ = asked;
        async { Ok(Vec::new()) }.boxed()
    }

    /// The object in the version `to`, without its group. `from` is the version that it has. Nothing may be lost on the
    /// way there and back, and of the metadata only labels and annotations may change.
    ///
    /// # Errors
    /// Why there is no such version of it.
    fn convert(&self, object: Value, from: &str, to: &str) -> Result<Value, String> {
        let _ = object;
        Err(format!("there is no conversion from {from} to {to}"))
    }

    /// Whether [`convert`](Self::convert) does anything: then the CRD's conversion clause gets the CA as well.
    fn converts(&self) -> bool {
        false
    }
}

/// Which objects a webhook answers for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Resource in the plural.
    pub plural: String,
}

impl Of {
    /// Of all versions of a kind.
    pub fn new(group: impl Into<String>, kind: impl Into<String>, plural: impl Into<String>) -> Self {
        Self { group: group.into(), kind: kind.into(), plural: plural.into() }
    }
}

/// All webhooks of a process; clones share them.
#[derive(Clone)]
pub struct Webhooks {
    settings: WebhookSettings,
    namespace: String,
    hooks: BTreeMap<(String, String), (Of, Arc<dyn Webhook>)>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    status: Status,
    metrics: Metrics,
    serving: Serving,
    checked: Vec<Checked>,
    coverages: Coverages,
}

impl Webhooks {
    /// With these settings, in the namespace of the Service.
    pub fn new(settings: WebhookSettings, namespace: &str) -> Self {
        Self {
            settings,
            namespace: namespace.to_owned(),
            hooks: BTreeMap::new(),
            limits: Limits::default(),
            clock: Arc::new(WallClock),
            status: Status::default(),
            metrics: Metrics::default(),
            serving: Serving::default(),
            checked: Vec::new(),
            coverages: Coverages::default(),
        }
    }

    /// Gives the webhook of a kind. A later one of the same kind replaces it.
    #[must_use]
    pub fn answer(self, of: Of, webhook: impl Webhook) -> Self {
        self.shared_answer(of, Arc::new(webhook))
    }

    /// As [`answer`](Self::answer), for one that is shared.
    #[must_use]
    pub fn shared_answer(mut self, of: Of, webhook: Arc<dyn Webhook>) -> Self {
        self.hooks.insert((of.group.clone(), of.kind.clone()), (of, webhook));
        self
    }

    /// Writes here whether a certificate is served: the replica is not ready without one.
    #[must_use]
    pub fn observed_by(mut self, status: Status, metrics: Metrics) -> Self {
        status.update_replica(|replica| {
            replica.webhooks_unready = Some("webhooks: no serving certificate is loaded yet".to_owned());
        });
        self.status = status;
        self.metrics = metrics;
        self
    }

    /// Keeps in `coverages` whether the API server asks about every object of these kinds; read while webhooks are
    /// [served](Self::serve).
    #[must_use]
    pub fn covering(self, checked: Vec<Checked>, coverages: Coverages) -> Self {
        Self { checked, coverages, ..self }
    }

    /// Takes the port.
    ///
    /// # Errors
    /// If it is taken or not ours to take.
    pub async fn bind(&self) -> Result<TcpListener, BindError> {
        let address = SocketAddr::new(self.settings.address, self.settings.port);
        TcpListener::bind(address).await.map_err(|source| BindError { address, source })
    }

    /// Serves until `terminating` resolves and for the shutdown delay after it, so that no endpoint that still lists this
    /// replica is refused; then lets each client finish what it has asked. Loads the certificate meanwhile, and reads by which
    /// configuration the API server asks.
    /// Dropping the future closes all connections.
    pub async fn serve(self, listener: TcpListener, client: Client, terminating: impl Future<Output = ()>) {
        let loader = Loader {
            settings: self.settings.clone(),
            names: self.names(),
            namespace: self.namespace.clone(),
            client: client.clone(),
            clock: Arc::clone(&self.clock),
            serving: self.serving.clone(),
            status: self.status.clone(),
            metrics: self.metrics.clone(),
        };
        let reader = Reader {
            settings: self.settings.clone(),
            namespace: self.namespace.clone(),
            client: client.clone(),
            kinds: self.checked,
            coverages: self.coverages,
            status: self.status.clone(),
            metrics: self.metrics.clone(),
        };
        let hooks = self.hooks.into_iter().map(|(of, (_, hook))| (of, hook)).collect();
        let reviews = Arc::new(Reviews::new(hooks, client, self.limits.answer));
        let delay = self.settings.shutdown_delay;
        let tls = self.serving.tls();
        let server = server::serve(listener, reviews, tls, self.limits, self.metrics, terminating, delay);
        tokio::select! {
            () = server => {}
            () = loader.run() => {}
            () = reader.run() => {}
        }
    }

    /// The names that the API server calls the Service by.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.settings.name, &self.namespace)
    }

    /// The shard that makes and renews the certificate, and its reconciler; `None` if that is made elsewhere.
    pub(crate) fn shard(&self) -> Option<(Kind, Arc<dyn Reconciler>)> {
        if self.settings.certificate != Certificate::Own {
            return None;
        }
        let crds = self.hooks.values().filter(|(_, hook)| hook.converts());
        let issuer = Issuer {
            settings: self.settings.clone(),
            names: self.names(),
            namespace: self.namespace.clone(),
            crds: crds.map(|(of, _)| format!("{}.{}", of.plural, of.group)).collect(),
            clock: Arc::clone(&self.clock),
            serving: self.serving.clone(),
            metrics: self.metrics.clone(),
        };
        Some((shard(&self.settings.name, &self.namespace), Arc::new(issuer)))
    }
}

/// The shard is about one Secret and no kind of the API server. What it calls itself holds the name of that Secret, so that
/// two installations each have a leader, and two Leases for one Secret are told from each other as for any kind.
fn shard(name: &str, namespace: &str) -> Kind {
    Kind {
        lease_name: format!("certificate.{name}"),
        concurrency: 1,
        resync: issuer::LOOK,
        standby: StandbyMode::None,
        reconciler: "certificate".to_owned(),
        ..Kind::new(format!("{name}.{namespace}"), "", "Certificate")
    }
}

fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for webhooks; choose a free port in webhooks.port")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}
