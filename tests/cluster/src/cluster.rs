//! One control plane as a value: what a test or the demo holds.
//!
//! A cluster has its own threads, so it is not bound to the runtime of the test that started it and can be shared between tests.

use crate::{
    audit::{AuditEvent, AuditLog},
    binaries::Binaries,
    certificates::{self, Authority},
    children::{MARK, Reaper},
    control_plane::{ControlPlane, Tokens, kubeconfig, write_private},
    eventually::eventually,
    kubelet::{Kubelet, KubeletOptions},
    proxy::{FaultProxy, Upstream},
    services,
};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{Api, Client, Config, api::PostParams};
use rustix::process::Signal;
use std::{
    fmt::Display,
    fs,
    future::Future,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{runtime::Runtime, sync::OnceCell};

/// How long an API server may take to stop before it is killed.
const API_SERVER_GRACE: Duration = Duration::from_secs(2);
/// How long the token of a service account is good: longer than a test takes, a thousand takeovers among them.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// A control plane on this machine. Clones share it; the last one dropped stops it and removes its files.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

/// What a cluster may be started with.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Where its files go, kept afterwards for reading; a fresh temporary directory, removed afterwards, when not set.
    /// The files of an earlier cluster there are removed first.
    pub directory: Option<PathBuf>,
    /// API server feature gates, such as `ShardedListAndWatch=true`.
    pub feature_gates: Vec<String>,
}

pub(crate) struct Inner {
    // Fields are dropped in this order: processes, then the reaper, which removes the directory.
    pub(crate) control_plane: ControlPlane,
    _reaper: Reaper,
    pub(crate) binaries: Binaries,
    pub(crate) directory: PathBuf,
    pub(crate) authority: Arc<Authority>,
    tokens: Tokens,
    kubeconfig: PathBuf,
    audit: AuditLog,
    pub(crate) addresses: Arc<crate::kubelet::Addresses>,
    runtime: Background,
}

/// Threads for what a cluster does by itself; dropping it ends those tasks, from async code too.
struct Background(Option<Runtime>);

impl Cluster {
    /// Starts a fresh control plane in a temporary directory: about five seconds, once the binaries exist.
    ///
    /// # Errors
    /// When the binaries cannot be found or built, or a process does not become ready; the message has the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(ClusterOptions::default()).await
    }

    /// [`start`](Self::start), with options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(options: ClusterOptions) -> Result<Self> {
        let runtime = Background::new()?;
        let starting = runtime.run(Self::assemble(options));
        let parts = starting.await?;
        let cluster = Self { inner: Arc::new(parts.with(runtime)) };
        let (directory, client) = (cluster.directory().to_owned(), cluster.kubelet_client()?);
        cluster
            .run(async move {
                tokio::spawn(services::serve(&directory, client)?);
                anyhow::Ok(())
            })
            .await?;
        let waiting = cluster.clone();
        cluster.run(async move { waiting.wait_for_service_accounts().await }).await?;
        Ok(cluster)
    }

    /// The one cluster of this process, started on first use and stopped when the process ends.
    ///
    /// # Errors
    /// As [`start`](Self::start); the next caller tries again.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    async fn assemble(options: ClusterOptions) -> Result<Parts> {
        let binaries = tokio::task::spawn_blocking(Binaries::find_or_build).await??;
        let (directory, keep) = match options.directory {
            Some(directory) => (fresh(&directory)?, true),
            None => (tempfile::Builder::new().prefix("leasehold-cluster-").tempdir()?.keep(), false),
        };
        let reaper = Reaper::start(&directory, keep)?;
        let authority = Authority::new()?;
        let tokens = Tokens::new()?;
        let control_plane =
            ControlPlane::start(&binaries, &directory, &authority, &tokens, &options.feature_gates).await?;
        let kubeconfig = directory.join("kubeconfig");
        write_private(
            &kubeconfig,
            &self::kubeconfig(
                &control_plane.url,
                &directory.join("ca.crt"),
                &format!("token: {}", tokens.admin),
                "default",
            ),
        )?;
        Ok(Parts { control_plane, reaper, binaries, directory, authority, tokens, kubeconfig })
    }

    async fn wait_for_service_accounts(&self) -> Result<()> {
        if self.inner.binaries.kube_controller_manager.is_none() {
            return Ok(());
        }
        let client = self.client()?;
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
        let certificates = Api::<ConfigMap>::namespaced(client, "default");
        eventually(
            "the default ServiceAccount and the root certificate",
            Duration::from_secs(60),
            || async {
                let account = accounts.get_opt("default").await?.is_some();
                let certificate = certificates.get_opt("kube-root-ca.crt").await?.is_some();
                anyhow::Ok((account, certificate))
            },
            |seen| *seen == (true, true),
        )
        .await?;
        Ok(())
    }

    /// The API server's address.
    pub fn url(&self) -> &str {
        &self.inner.control_plane.url
    }

    /// Where the cluster keeps its files and logs.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// An environment variable: a process that bears it ends with this cluster, and with this process however that ends.
    pub fn mark(&self) -> (&'static str, &Path) {
        (MARK, self.directory())
    }

    /// The programs it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.inner.binaries
    }

    /// A kubeconfig file with all rights (user `admin`).
    pub fn kubeconfig(&self) -> &Path {
        &self.inner.kubeconfig
    }

    /// The authority every certificate of this cluster is signed by, as a PEM file.
    pub fn authority(&self) -> PathBuf {
        self.inner.directory.join("ca.crt")
    }

    /// A client configuration with all rights (user `admin`), without retries.
    ///
    /// # Errors
    /// None in practice; the address is parsed again.
    pub fn admin_config(&self) -> Result<Config> {
        self.config(self.url(), &self.inner.tokens.admin)
    }

    /// A client with all rights, for the runtime that calls this.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::try_from(self.admin_config()?)?)
    }

    pub(crate) fn kubelet_client(&self) -> Result<Client> {
        Ok(Client::try_from(self.config(self.url(), &self.inner.tokens.kubelet)?)?)
    }

    fn config(&self, url: &str, token: &str) -> Result<Config> {
        let mut config = Config::new(url.parse().context("the API server's address")?);
        config.root_cert = Some(vec![self.inner.authority.der().to_vec()]);
        config.auth_info.token = Some(token.to_owned().into());
        config.default_retry = false;
        Ok(config)
    }

    /// Runs kubectl as admin and returns what it printed. Dropping the future kills it.
    ///
    /// # Errors
    /// When it ends with another code than 0; the message has its standard error.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "").await
    }

    /// Waits until the API server serves what this CRD defines. One that was stored a moment ago has no conditions yet, which
    /// `kubectl wait` takes for an error.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn established(&self, crd: &str) -> Result<()> {
        let crd = format!("crd/{crd}");
        let arguments = ["wait", "--for=condition=Established", "--timeout=60s", &crd];
        let what = format!("{crd} is established");
        eventually(&what, Duration::from_secs(60), || self.kubectl(&arguments), |_| true).await?;
        Ok(())
    }

    /// Runs `kubectl apply -f -` on this YAML.
    ///
    /// # Errors
    /// As [`kubectl`](Self::kubectl).
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await
    }

    async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        use tokio::io::AsyncWriteExt;
        let mut command = tokio::process::Command::new(&self.inner.binaries.kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env(MARK, &self.inner.directory)
            // The discovery cache would otherwise be shared between clusters that had the same port.
            .env("KUBECACHEDIR", self.inner.directory.join("kubectl-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("failed to start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that does not read has an exit code that says more.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!(
                "kubectl {} ({}): {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Every finished request the API server has recorded so far, in order; see [`AuditEvent`]. All callers share the events.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<Arc<AuditEvent>>> {
        self.audit_from(0)
    }

    /// As [`audit`](Self::audit), without the first `from` of them: what a caller has read it need not look through again.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit_from(&self, from: usize) -> Result<Vec<Arc<AuditEvent>>> {
        self.inner.audit.events(from)
    }

    /// A kubeconfig with a token of this ServiceAccount, good for a day, its context in that namespace.
    ///
    /// # Errors
    /// When the ServiceAccount does not exist.
    pub async fn service_account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        self.service_account_kubeconfig_at(namespace, account, self.url()).await
    }

    /// [`service_account_kubeconfig`](Self::service_account_kubeconfig) for another address, such as a proxy's.
    ///
    /// # Errors
    /// When the ServiceAccount does not exist.
    pub async fn service_account_kubeconfig_at(&self, namespace: &str, account: &str, url: &str) -> Result<PathBuf> {
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let token = Api::<ServiceAccount>::namespaced(self.client()?, namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("failed to request a token of {namespace}/{account}"))?
            .status
            .context("a token request without an answer")?
            .token;
        let path = tempfile::Builder::new()
            .prefix(&format!("{namespace}_{account}_"))
            .suffix(".kubeconfig")
            .tempfile_in(&self.inner.directory)?
            .into_temp_path()
            .keep()?;
        write_private(&path, &self::kubeconfig(url, &self.authority(), &format!("token: {token}"), namespace))?;
        Ok(path)
    }

    /// A fault proxy in front of the API server, with a certificate of this cluster's authority. It ends with the cluster.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn proxy(&self) -> Result<FaultProxy> {
        let inner = &self.inner;
        let upstream = self.upstream()?;
        let server = inner.authority.issue(&["127.0.0.1", "localhost"])?.server()?;
        self.run(FaultProxy::start(upstream, Some(server))).await
    }

    /// A proxy that passes bytes on unread: clients speak TLS, and HTTP/2 if they like, with the API server itself.
    /// It can be partitioned and frozen; rules have nothing to match. It ends with the cluster.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn opaque_proxy(&self) -> Result<FaultProxy> {
        let address = (Ipv4Addr::LOCALHOST, self.inner.control_plane.port).into();
        self.run(FaultProxy::start(Upstream::Opaque(address), None)).await
    }

    /// Starts the process kubelet: one a cluster. Dropping it kills its pods' processes; their objects stay.
    ///
    /// # Errors
    /// When the Node objects cannot be written.
    pub async fn start_kubelet(&self, options: KubeletOptions) -> Result<Kubelet> {
        let cluster = self.clone();
        self.run(async move { Kubelet::start(&cluster, options).await }).await
    }

    /// Stops the API server with SIGTERM (SIGKILL after 2 s) and starts it again on the same port. Returns when it is ready.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn restart_api_server(&self) -> Result<()> {
        self.stop_api_server().await?;
        self.start_api_server().await
    }

    /// The process id of the API server that was started last.
    pub async fn api_server_id(&self) -> u32 {
        self.inner.control_plane.api_server_id().await
    }

    /// Stops the API server with SIGTERM, and SIGKILL after 2 s.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_api_server(&self) -> Result<()> {
        self.inner.control_plane.stop_api_server(API_SERVER_GRACE).await
    }

    /// Kills the API server with SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_api_server(&self) -> Result<()> {
        self.inner.control_plane.stop_api_server(Duration::ZERO).await
    }

    /// Starts a stopped API server on the port it had. Returns when it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_api_server(&self) -> Result<()> {
        let inner = self.inner.clone();
        self.run(async move { inner.control_plane.start_api_server().await }).await
    }

    /// Freezes the API server (SIGSTOP): connections stay open, nothing is answered.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn pause_api_server(&self) -> Result<()> {
        self.inner.control_plane.signal_api_server(Signal::STOP).await
    }

    /// Lets a frozen API server go on.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn resume_api_server(&self) -> Result<()> {
        self.inner.control_plane.signal_api_server(Signal::CONT).await
    }

    /// The API server, for a proxy in front of it.
    pub(crate) fn upstream(&self) -> Result<Upstream> {
        Ok(Upstream::Tls {
            address: (Ipv4Addr::LOCALHOST, self.inner.control_plane.port).into(),
            client: certificates::client(self.inner.authority.der())?,
        })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Runs a future on the cluster's own threads, so that what it spawns outlives the caller's runtime.
    pub(crate) async fn run<T, E>(&self, future: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        E: Display + Send + 'static,
        anyhow::Error: From<E>,
    {
        self.inner.runtime.run(future).await
    }
}

struct Parts {
    control_plane: ControlPlane,
    reaper: Reaper,
    binaries: Binaries,
    directory: PathBuf,
    authority: Authority,
    tokens: Tokens,
    kubeconfig: PathBuf,
}

impl Parts {
    fn with(self, runtime: Background) -> Inner {
        let port = self.control_plane.port;
        Inner {
            audit: AuditLog::new(self.control_plane.audit_log.clone()),
            addresses: Arc::new(crate::kubelet::Addresses::of(port)),
            control_plane: self.control_plane,
            _reaper: self.reaper,
            binaries: self.binaries,
            directory: self.directory,
            authority: Arc::new(self.authority),
            tokens: self.tokens,
            kubeconfig: self.kubeconfig,
            runtime,
        }
    }
}

impl Background {
    fn new() -> Result<Self> {
        static PROVIDER: OnceLock<()> = OnceLock::new();
        PROVIDER.get_or_init(|| {
            // Fails when the program has chosen one already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("leasehold-cluster")
            .enable_all()
            .build()
            .context("failed to start the cluster's threads")?;
        Ok(Self(Some(runtime)))
    }

    fn run<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send + 'static
    where
        T: Send + 'static,
        E: Send + 'static,
        anyhow::Error: From<E>,
    {
        let running = self.0.as_ref().map(|runtime| runtime.spawn(future));
        async move {
            let running = running.context("the cluster has been stopped")?;
            Ok(running.await.context("a task of the cluster ended early")??)
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for the tasks would panic inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// An empty directory: made, or emptied when it is an earlier cluster's.
fn fresh(directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
    let directory = directory.canonicalize()?;
    let occupied = fs::read_dir(&directory)?.next().is_some();
    if occupied {
        if !directory.join("audit-policy.yaml").is_file() {
            bail!("{} is not empty and no earlier cluster's directory", directory.display());
        }
        fs::remove_dir_all(&directory)?;
        fs::create_dir(&directory)?;
    }
    Ok(directory)
}
