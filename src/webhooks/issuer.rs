//! The shard that makes and renews the serving certificate: one leader writes the Secret and the configurations, and each
//! step is decided by [`rotation`].

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture, stream, stream::StreamExt as _};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret, Service},
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, PostParams},
    core::{ApiResource, GroupVersionKind, ObjectMeta},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::{
    certificate::{Good, make, provider},
    coverage::names,
    loader::Serving,
    rotation::{self, Contents, Held, Step, TRUST, Why},
};
use crate::{
    config::WebhookSettings,
    ops::metrics::Metrics,
    reconcile::clock::Clock,
    replica::{
        problem::describe,
        term::{BoxError, Reconciler, Term},
    },
};

/// Between two looks at the configurations: one that was applied anew has lost the CA.
pub const LOOK: Duration = Duration::from_secs(10);
/// While something is on its way, or has failed.
const SOON: Duration = Duration::from_secs(1);
/// How long a replica may take to show what it serves.
const ASK: Duration = Duration::from_secs(2);

/// Makes and renews the certificate of an installation.
#[derive(Clone)]
pub struct Issuer {
    pub(super) settings: WebhookSettings,
    pub(super) names: Vec<String>,
    pub(super) namespace: String,
    /// Those whose conversion clause may name our Service.
    pub(super) crds: Vec<String>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) serving: Serving,
    pub(super) metrics: Metrics,
}

impl Reconciler for Issuer {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        let pass = Pass { issuer: self.clone(), client: term.client(), trusted: None };
        let draining = term.draining();
        async move {
            tokio::select! {
                // A write that is cut off is followed by a read, here or at the next leader.
                () = draining => {}
                () = pass.run() => {}
            }
            Ok(())
        }
        .boxed()
    }
}

/// Why a pass is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read the Secret {0}")]
    Read(String, #[source] kube::Error),
    #[error("failed to write the Secret {0}")]
    Write(String, #[source] kube::Error),
    #[error("failed to write the CA into {0}")]
    Publish(String, #[source] kube::Error),
    #[error("failed to find the replicas behind the Service {0}")]
    Replicas(String, #[source] kube::Error),
    #[error("failed to make a certificate")]
    Make(#[source] rcgen::Error),
}

struct Pass {
    issuer: Issuer,
    client: Client,
    /// Since when every configuration has borne this bundle.
    trusted: Option<(Vec<String>, tokio::time::Instant)>,
}

impl Pass {
    async fn run(mut self) {
        let mut seen = self.issuer.serving.seen();
        let mut complaint = None;
        let mut again = SOON;
        loop {
            let (error, wait) = match self.pass().await {
                Ok(wait) => {
                    again = SOON;
                    (None, wait)
                }
                Err(error) => {
                    let wait = again;
                    again = LOOK.min(again * 2);
                    (Some(describe(&error)), wait)
                }
            };
            if let Some(error) = error.as_ref().filter(|error| complaint.as_ref() != Some(*error)) {
                warn!("webhooks: {error}");
            }
            complaint = error;
            tokio::select! {
                // A Secret that a user changed.
                Ok(()) = seen.changed(), if complaint.is_none() && wait > SOON => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One step; how long until the next.
    async fn pass(&mut self) -> Result<Duration, Error> {
        let issuer = &self.issuer;
        let name = &issuer.settings.name;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &issuer.namespace);
        let secret = secrets.get_opt(name).await.map_err(|error| Error::Read(name.clone(), error))?;
        let now = issuer.clock.now();
        let data = secret.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
        let held = Held::read(&data, &issuer.names, now);
        match rotation::step(&held, now) {
            Step::Renew(why) => {
                let new = make(&issuer.names, issuer.settings.lifetime, now).map_err(Error::Make)?;
                let served = issuer.serving.current();
                let trusted = self.trusted.as_ref().map(|(bundle, _)| bundle.as_slice()).unwrap_or_default();
                let contents = rotation::renewed(&held, served.as_ref(), trusted, new, now);
                self.store(secret, &contents).await?;
                let reason = match &why {
                    Why::Due => "Due",
                    Why::Unfit(unfit) => {
                        warn!("webhooks: {unfit} in the Secret {}/{name}; it is replaced", issuer.namespace);
                        unfit.reason()
                    }
                };
                info!(reason, "webhooks: a new serving certificate is made");
                issuer.metrics.webhook_certificate_made(reason);
                Ok(Duration::ZERO)
            }
            Step::Trust { authorities, then } => {
                self.publish(&authorities).await?;
                let since = self.trusted_since(authorities);
                if since.elapsed() < TRUST {
                    return Ok(SOON);
                }
                self.store(secret, &then).await?;
                info!("webhooks: the next serving certificate is trusted, and takes the place of the last one");
                Ok(SOON)
            }
            Step::Rest { authorities, retire } => {
                self.publish(&authorities).await?;
                self.trusted_since(authorities);
                let (true, Ok(serving)) = (retire, &held.serving) else { return Ok(LOOK) };
                if !self.all_serve(serving).await? {
                    return Ok(SOON);
                }
                if let Some(contents) = rotation::retired(&held) {
                    self.store(secret, &contents).await?;
                    info!("webhooks: every replica serves the new certificate; the old authority is trusted no more");
                }
                Ok(SOON)
            }
        }
    }

    fn trusted_since(&mut self, authorities: Vec<String>) -> tokio::time::Instant {
        match &self.trusted {
            Some((bundle, since)) if *bundle == authorities => *since,
            _ => {
                let since = now();
                self.trusted = Some((authorities, since));
                since
            }
        }
    }

    /// Rests on the version that was read; what else the Secret holds stays.
    async fn store(&self, secret: Option<Secret>, contents: &Contents) -> Result<(), Error> {
        let name = &self.issuer.settings.name;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.issuer.namespace);
        let written = match secret {
            Some(mut secret) => {
                let data = secret.data.get_or_insert_default();
                data.retain(|key, _| !["next.crt", "next.key"].contains(&key.as_str()));
                data.extend(contents.data());
                secrets.replace(name, &PostParams::default(), &secret).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(contents.data()), ..Secret::default() };
                secrets.create(&PostParams::default(), &secret).await
            }
        };
        written.map(drop).map_err(|error| Error::Write(name.clone(), error))
    }

    /// Writes the bundle wherever our Service is named.
    async fn publish(&self, authorities: &[String]) -> Result<(), Error> {
        let bundle = json!(ByteString(authorities.concat().into_bytes()));
        let name = &self.issuer.settings.name;
        let admission = |kind| GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let mut all = vec![
            (admission("ValidatingWebhookConfiguration"), name),
            (admission("MutatingWebhookConfiguration"), name),
        ];
        let crd = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        all.extend(self.issuer.crds.iter().map(|crd_name| (crd.clone(), crd_name)));
        for (kind, name) in all {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind));
            let failed = |error| Error::Publish(format!("{} {name}", kind.kind), error);
            // A configuration that is not installed sends no requests.
            let Some(mut object) = api.get_opt(name).await.map_err(failed)? else { continue };
            if trust(&mut object.data, &bundle, &self.issuer.settings.name, &self.issuer.namespace) {
                api.replace(name, &PostParams::default(), &object).await.map_err(failed)?;
                info!("webhooks: the CA is written into {} {name}", kind.kind);
            }
        }
        Ok(())
    }

    /// Asks every replica behind the Service what it serves. One that does not answer may serve anything.
    async fn all_serve(&self, serving: &Good) -> Result<bool, Error> {
        let name = &self.issuer.settings.name;
        let failed = |error| Error::Replicas(name.clone(), error);
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.issuer.namespace);
        let service = services.get_opt(name).await.map_err(failed)?;
        let selector = service.and_then(|service| service.spec?.selector).unwrap_or_default();
        let labels: Vec<_> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.issuer.namespace);
        let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await.map_err(failed)?;
        let addresses = pods.items.into_iter().filter_map(|pod| {
            let status = pod.status?;
            let runs = !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            status.pod_ip.filter(|_| runs)?.parse::<IpAddr>().ok()
        });
        let all: BTreeSet<_> = addresses.collect();
        let port = self.issuer.settings.port;
        let name = self.issuer.names.first().cloned().unwrap_or_default();
        let ask = |ip| serves(SocketAddr::new(ip, port), &name, &serving.pair.authority);
        Ok(stream::iter(all).map(ask).buffer_unordered(8).all(|serves| async move { serves }).await)
    }
}

/// Whether a replica serves a certificate of this authority.
async fn serves(address: SocketAddr, name: &str, authority: &str) -> bool {
    let ask = async {
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            // No process of ours: the one that comes will load what is stored.
            Err(error) => return Some(error.kind() == std::io::ErrorKind::ConnectionRefused),
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).ok()?).ok()?;
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().ok()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).ok()?;
        Some(TlsConnector::from(Arc::new(config)).connect(name, stream).await.is_ok())
    };
    timeout(ASK, ask).await.ok().flatten().unwrap_or(false)
}

/// Puts the bundle beside each mention of our Service in an object; whether that changed anything.
pub(super) fn trust(object: &mut Value, bundle: &Value, service: &str, namespace: &str) -> bool {
    let mut clients: Vec<&mut Value> = Vec::new();
    if object.get("webhooks").is_some() {
        let webhooks = object["webhooks"].as_array_mut();
        clients.extend(webhooks.into_iter().flatten().filter_map(|webhook| webhook.get_mut("clientConfig")));
    } else {
        clients.extend(object.pointer_mut("/spec/conversion/webhook/clientConfig"));
    }
    let mut changed = false;
    for client in clients {
        if names(client, service, namespace) && client["caBundle"] != *bundle {
            client["caBundle"] = bundle.clone();
            changed = true;
        }
    }
    changed
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a configuration has been there is counted here, and not compared"
)]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
