//! Every connection of the process to the API server: made here, alike, and bounded in time.
//!
//! [`Connections`] is loaded once. What a request and a connection need to say who they are from is held ready made, so
//! that a client costs no credentials plugin, no file and no parsing on the thread that makes it. All that is renewed in
//! the background by [`Connections::keep_fresh`].
//!
//! No connection can be silent for more than [`SILENCE`] (rule 17). So the server has to end a watch before that: this is
//! what [`WATCH_TIMEOUT`] is for, and a watch that asks for longer gets no more than it.

mod account;
mod credentials;
mod pages;
pub(super) mod socket;

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_rustls::{
    DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, MaybeHttpsStream, ResolveServerName,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tower::{BoxError, Layer, Service, ServiceBuilder, util::MapErr};
use tracing::{debug, warn};

pub use self::account::Account;
use self::{
    credentials::{Credentials, Source},
    pages::{Answer, Paged, Pages},
    socket::{Dialer, Silent},
};
use super::{
    fence::{Gate, GatedIo},
    problem::describe,
};
use crate::config::Timings;

/// The server ends a watch after so many seconds, and the watcher begins another. It is below [`SILENCE`], because a watch
/// on which nothing happens is as silent as one whose connection has died.
pub const WATCH_TIMEOUT: u32 = 14;

/// A connection on which nothing was read or written for this long fails.
pub const SILENCE: Duration = Duration::from_secs(19);

/// What was sent has to be acknowledged within this, or the kernel gives the connection up and forgets what it had
/// buffered. On a term's connections it is the time that is left of the term, if that is shorter.
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(8);

/// The answer to a request that is no watch begins within this, its connection included.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that waits in the pool is closed after this: before its silence fails it.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// The most that a connection buffers. hyper's own most is six times as much, which each one keeps that has read a list.
const BUFFER: usize = 64 << 10;

/// Between two looks at the credentials. kube renews a plugin's token 60 s before it expires, when it is asked for it.
const REFRESH: Duration = Duration::from_secs(10);

/// A credentials plugin that takes longer than this is worth a line in the log.
const SLOW: Duration = Duration::from_secs(30);

/// While a new credential does not end the 401s, it is made anew only after so many [`REFRESH`]es at most.
const MOST_SKIPPED: u32 = 30;

/// The times that bound each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For name lookup, TCP and TLS together.
    pub connect: Duration,
    /// For the acknowledgement of what was sent.
    pub unacknowledged: Duration,
    /// For the next byte in either direction.
    pub silence: Duration,
}

impl Bounds {
    /// The bounds of a replica with these timings. A dead connection is given up before the renew deadline.
    pub fn new(timings: &Timings) -> Self {
        Self {
            connect: timings.request_timeout,
            unacknowledged: UNACKNOWLEDGED.min(timings.renew_deadline.mul_f64(0.8)),
            silence: SILENCE,
        }
    }
}

impl Default for Bounds {
    /// For a command that is no replica.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), unacknowledged: UNACKNOWLEDGED, silence: SILENCE }
    }
}

/// Makes the clients of the process. Clones share credentials.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    bounds: Bounds,
    server_name: Arc<dyn ResolveServerName + Send + Sync>,
    current: RwLock<Arc<Credentials>>,
    /// Used on blocking threads only: a plugin may hold it for long.
    source: Arc<Mutex<Source>>,
    unauthorized: Notify,
}

impl Connections {
    /// Loads the credentials, on a blocking thread: a plugin may take its time, and has no bound here. Dropping the future
    /// leaves a plugin that runs to end by itself.
    ///
    /// # Errors
    /// If the configuration's TLS or credentials cannot be used, or it asks for a proxy: a term's gate has no place there.
    pub async fn load(config: Config, bounds: Bounds) -> Result<Self, kube::Error> {
        if config.proxy_url.is_some() {
            let error = "an HTTP proxy towards the API server is not supported: remove proxy-url from the kubeconfig";
            return Err(kube::Error::Service(error.into()));
        }
        let server_name: Arc<dyn ResolveServerName + Send + Sync> = match &config.tls_server_name {
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(|error| kube::Error::Service(format!("tls-server-name {name:?}: {error}").into()))?;
                Arc::new(FixedServerNameResolver::new(name))
            }
            None => Arc::new(DefaultServerNameResolver::default()),
        };
        let loaded = config.clone();
        let (source, credentials) = patiently(move || Source::open(loaded)).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                bounds,
                server_name,
                current: RwLock::new(Arc::new(credentials)),
                source: Arc::new(Mutex::new(source)),
                unauthorized: Notify::new(),
            }),
        })
    }

    /// A client on connections of its own, for what needs no term.
    /// Its background task runs on the runtime that this is called on.
    pub fn client(&self) -> Client {
        self.client_as(None)
    }

    /// As [`client`](Self::client), acting as an account; `None`: as the replica.
    pub fn client_as(&self, account: Option<&Account>) -> Client {
        Client::new(self.stack(None, account), self.inner.config.default_namespace.clone())
    }

    /// The client of a term, acting as the account of its kind, on connections of its own that end with the term.
    /// Its background task runs on the runtime that this is called on.
    pub fn client_behind(&self, gate: &Gate, account: Option<&Account>) -> Client {
        Client::new(gate.layer(self.stack(Some(gate.clone()), account)), self.inner.config.default_namespace.clone())
    }

    /// Renews the credentials before they expire, and early when the API server has answered 401. A request that has a
    /// valid header never waits for this. Never returns by itself. Cancel safe.
    pub async fn keep_fresh(&self) {
        let mut complaint = None;
        let (mut skip, mut skipped) = (0_u32, 0_u32);
        loop {
            let anew = tokio::select! {
                () = tokio::time::sleep(REFRESH) => false,
                () = self.inner.unauthorized.notified(), if skip == 0 => true,
            };
            if anew {
                skipped = (skipped * 2).clamp(1, MOST_SKIPPED);
                skip = skipped;
                debug!("the API server does not accept the credentials, they are made anew");
            } else if skip == 0 {
                skipped = 0;
            }
            skip = skip.saturating_sub(u32::from(!anew));
            let error = self.refresh(anew).await.err().map(|error| describe(&error));
            if let Some(error) = error.as_ref().filter(|error| complaint.as_ref() != Some(*error)) {
                warn!("failed to renew the credentials, the old ones stay in use: {error}");
            }
            complaint = error;
        }
    }

    /// Publishes what has changed of the credentials; `anew`: whatever their expiry says.
    async fn refresh(&self, anew: bool) -> Result<(), kube::Error> {
        let source = Arc::clone(&self.inner.source);
        let renewed = patiently(move || {
            // A panic in the middle of a renewal leaves nothing half done that the next one would rest on.
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            if anew { source.renew().map(Some) } else { source.refresh() }
        });
        if let Some(credentials) = renewed.await? {
            *self.inner.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(credentials);
        }
        Ok(())
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.inner.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn stack(
        &self,
        gate: Option<Gate>,
        account: Option<&Account>,
    ) -> impl Service<Request<Body>, Response = Response<Answer<Incoming>>, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + 'static {
        let (account, pages) = (account.cloned().map(Arc::new), Pages::default());
        let dialer = Dialer::new(self.inner.bounds, gate.is_some());
        let sender = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .http1_max_buf_size(BUFFER)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE.min(self.inner.bounds.silence / 2))
            .build::<_, Body>(Connector { dialer, gate, connections: self.clone() });
        let sender: MapErr<_, fn(_) -> BoxError> = MapErr::new(sender, BoxError::from);
        ServiceBuilder::new()
            // Around the other: a page that is asked for again has all of its time.
            .layer_fn(move |inner| Paged { inner, pages: pages.clone() })
            .layer_fn(Bounded)
            .layer(self.inner.config.base_uri_layer())
            .layer_fn(|inner| Identified { inner, connections: self.clone(), account: account.clone() })
            .service(sender)
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("bounds", &self.inner.bounds).finish_non_exhaustive()
    }
}

/// Runs what may block, and says so when it takes long.
async fn patiently<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, kube::Error> + Send + 'static,
) -> Result<T, kube::Error> {
    let mut job = tokio::task::spawn_blocking(job);
    let done = tokio::select! {
        done = &mut job => done,
        () = tokio::time::sleep(SLOW) => {
            warn!("the credentials were asked for {} s ago, and their plugin still runs", SLOW.as_secs());
            job.await
        }
    };
    done.map_err(|error| kube::Error::Service(error.into()))?
}

/// Opens connections with the credentials of the moment: TCP, the gate if there is one, then TLS, in bounded time.
#[derive(Clone)]
struct Connector {
    dialer: Dialer,
    gate: Option<Gate>,
    connections: Connections,
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<GatedIo<Silent>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dialer.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let inner = &self.connections.inner;
        // The dialer that is ready is used up, and a clone of it left for the next call.
        let next = self.dialer.clone();
        let (gate, mut dialer) = (self.gate.clone(), std::mem::replace(&mut self.dialer, next));
        let gated = tower::service_fn(move |uri| {
            let (gate, dialing) = (gate.clone(), dialer.call(uri));
            async move { Ok::<_, BoxError>(GatedIo::new(dialing.await?, gate)) }
        });
        let tls = Arc::clone(&self.connections.credentials().tls);
        let opening = HttpsConnector::new(gated, tls, false, Arc::clone(&inner.server_name)).call(uri);
        let within = inner.bounds.connect;
        Box::pin(async move {
            tokio::time::timeout(within, opening)
                .await
                .unwrap_or_else(|_elapsed| Err(format!("no connection within {within:?}").into()))
        })
    }
}

/// Gives each request the headers that say who it is from, and hears when they are not accepted.
#[derive(Clone)]
struct Identified<S> {
    inner: S,
    connections: Connections,
    account: Option<Arc<Account>>,
}

impl<S, B, R> Service<Request<B>> for Identified<S>
where
    S: Service<Request<B>, Response = Response<R>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let connections = self.connections.clone();
        request.headers_mut().extend(connections.credentials().headers.clone());
        if let Some(account) = &self.account {
            account.sign(request.headers_mut());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED) {
                connections.inner.unauthorized.notify_one();
            }
            answer
        })
    }
}

/// Bounds the head of each answer, and the length of each watch. The silence of the connection bounds what is left: the
/// head of a watch, and bodies.
#[derive(Clone)]
struct Bounded<S>(S);

impl<S, B> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Error = BoxError, Response: Send + 'static, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if is_watch(request.method(), request.uri()) {
            if let Some(shorter) = shortened(request.uri()) {
                *request.uri_mut() = shorter;
            }
            return Box::pin(self.0.call(request));
        }
        let answer = self.0.call(request);
        Box::pin(async move {
            tokio::time::timeout(READ_TIMEOUT, answer)
                .await
                .unwrap_or_else(|_elapsed| Err(format!("no answer within {READ_TIMEOUT:?}").into()))
        })
    }
}

pub(super) fn is_watch(method: &Method, uri: &Uri) -> bool {
    method == Method::GET && parameters(uri).any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

fn parameters(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty())
}

/// The address of a watch that asks for no more than [`WATCH_TIMEOUT`]; `None`: it is fine as it is.
/// A list that is streamed may take longer than that, and is cut short by nothing: cut short, it would never be complete.
fn shortened(uri: &Uri) -> Option<Uri> {
    const PARAMETER: &str = "timeoutSeconds=";
    let asked = parameters(uri).find_map(|pair| pair.strip_prefix(PARAMETER)).and_then(|text| text.parse::<u32>().ok());
    if parameters(uri).any(|pair| pair == "sendInitialEvents=true")
        || asked.is_some_and(|seconds| (1..=WATCH_TIMEOUT).contains(&seconds))
    {
        return None;
    }
    let timeout = format!("{PARAMETER}{WATCH_TIMEOUT}");
    let others = parameters(uri).filter(|pair| !pair.starts_with(PARAMETER)).chain([timeout.as_str()]);
    let query = others.collect::<Vec<_>>().join("&");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests;
