//! Keeps the serving certificate that is stored: every replica loads what it finds, without a restart.
//!
//! A certificate that cannot be served is reported, and the last one that could be stays in use for as long as it is good.

use std::{
    fs,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::certificate::{Good, Unfit, judge, provider};
use crate::{
    config::{Certificate, WebhookSettings},
    ops::{metrics::Metrics, status::Status},
    reconcile::clock::Clock,
    replica::connections::WATCH_TIMEOUT,
};

/// Between two looks at the files, and at whether what is served is still good.
const LOOK: Duration = Duration::from_secs(5);

/// What this replica serves; clones share it.
#[derive(Clone, Default)]
pub struct Serving {
    resolver: Arc<Resolver>,
    /// Changes whenever the Secret does: what the issuer waits for.
    seen: watch::Sender<u64>,
}

#[derive(Default)]
struct Resolver(RwLock<Option<Good>>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let good = self.0.read().unwrap_or_else(PoisonError::into_inner);
        good.as_ref().map(|good| Arc::clone(&good.key))
    }
}

impl Serving {
    /// A TLS server that serves whatever is loaded at the time.
    pub(super) fn tls(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        #[expect(clippy::expect_used, reason = "ring has the cipher suites of the default versions")]
        let config = config.expect("default versions");
        let resolver = Arc::clone(&self.resolver) as Arc<dyn ResolvesServerCert>;
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// What is served.
    pub fn current(&self) -> Option<Good> {
        self.resolver.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn serve(&self, good: Good) {
        *self.resolver.0.write().unwrap_or_else(PoisonError::into_inner) = Some(good);
    }

    /// Resolves at each change of the Secret, until the next of which the receiver waits.
    pub(super) fn seen(&self) -> watch::Receiver<u64> {
        self.seen.subscribe()
    }
}

/// Loads the certificate of one replica.
pub(super) struct Loader {
    pub(super) settings: WebhookSettings,
    pub(super) names: Vec<String>,
    pub(super) namespace: String,
    pub(super) client: Client,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) serving: Serving,
    pub(super) status: Status,
    pub(super) metrics: Metrics,
}

impl Loader {
    /// Never returns.
    pub(super) async fn run(self) {
        let mut problem = None;
        match &self.settings.certificate {
            Certificate::Own | Certificate::External => self.watch(&mut problem).await,
            Certificate::Files(folder) => loop {
                self.loaded(read(Path::new(folder), &self.names, self.clock.now()), &mut problem);
                sleep(LOOK).await;
            },
        }
    }

    async fn watch(&self, problem: &mut Option<String>) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.settings.name));
        let mut events = watcher(secrets, only.timeout(WATCH_TIMEOUT)).default_backoff().boxed();
        let mut listed = false;
        let mut last: Option<Secret> = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(watcher::Event::Init)) => listed = false,
                    Some(Ok(watcher::Event::InitApply(secret))) => {
                        listed = true;
                        last = Some(secret);
                    }
                    Some(Ok(watcher::Event::Apply(secret))) => last = Some(secret),
                    Some(Ok(watcher::Event::InitDone)) if listed => {}
                    Some(Ok(watcher::Event::InitDone | watcher::Event::Delete(_))) => last = None,
                    Some(Err(error)) => {
                        let why = crate::replica::problem::describe(&error);
                        let secret = &self.settings.name;
                        self.report(Some(format!("cannot watch the Secret {secret}: {why}")), problem);
                        continue;
                    }
                    // It goes on for ever.
                    None => std::future::pending().await,
                },
                () = sleep(LOOK) => {
                    self.loaded(self.judged(last.as_ref()), problem);
                    continue;
                }
            }
            self.loaded(self.judged(last.as_ref()), problem);
            self.serving.seen.send_modify(|seen| *seen += 1);
        }
    }

    fn judged(&self, secret: Option<&Secret>) -> Result<Good, Unfit> {
        let data = secret.and_then(|secret| secret.data.as_ref()).ok_or(Unfit::Missing)?;
        let text =
            |name: &str| data.get(name).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default();
        let authorities = match (text("ca.crt"), &self.settings.certificate) {
            // Ours are never without; another issuer may leave it out.
            (authorities, Certificate::Own) if authorities.trim().is_empty() => "none".to_owned(),
            (authorities, _) => authorities,
        };
        judge(&text("tls.crt"), &text("tls.key"), &authorities, &self.names, self.clock.now())
    }

    fn loaded(&self, judged: Result<Good, Unfit>, problem: &mut Option<String>) {
        let current = self.serving.current();
        let mut told = None;
        match judged {
            Ok(good) if current.as_ref() == Some(&good) => {}
            Ok(good) => {
                info!(until = %good.not_after, "webhooks serve a new certificate");
                self.serving.serve(good);
            }
            Err(unfit) => told = Some(format!("{}: {unfit}", self.place())),
        }
        self.report(told, problem);
    }

    /// Says what is wrong, once, and whether the replica is ready nevertheless.
    fn report(&self, told: Option<String>, problem: &mut Option<String>) {
        let serving = self.serving.current();
        let good = serving.as_ref().filter(|good| good.not_after > self.clock.now());
        if let Some(told) = told.as_ref().filter(|told| problem.as_ref() != Some(*told)) {
            let kept = if good.is_some() { "the last good certificate stays in use" } else { "nothing can be served" };
            warn!("webhooks: {told}; {kept}");
        }
        problem.clone_from(&told);
        self.metrics.webhook_certificate_until(serving.as_ref().map_or(0, |good| good.not_after.as_second()));
        self.status.update_replica(|replica| {
            replica.webhooks_unready = match (good, &told) {
                (Some(_), _) => None,
                (None, Some(told)) => Some(format!("webhooks: {told}")),
                (None, None) => Some("webhooks: no serving certificate is loaded".to_owned()),
            };
            let shown = replica.webhooks.get_or_insert_default();
            shown.certificate_until = serving.as_ref().map(|good| good.not_after.to_string());
            shown.problem = told;
        });
    }

    fn place(&self) -> String {
        match &self.settings.certificate {
            Certificate::Files(folder) => format!("the folder {folder}"),
            Certificate::Own | Certificate::External => {
                format!("the Secret {}/{}", self.namespace, self.settings.name)
            }
        }
    }
}

fn read(folder: &Path, names: &[String], now: Timestamp) -> Result<Good, Unfit> {
    let text = |name: &str| {
        fs::read_to_string(folder.join(name)).map_err(|error| Unfit::Unreadable(format!("{name}: {error}")))
    };
    // Not every issuer says who it is.
    judge(&text("tls.crt")?, &text("tls.key")?, &text("ca.crt").unwrap_or_default(), names, now)
}
