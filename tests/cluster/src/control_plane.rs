//! etcd, kube-apiserver and kube-controller-manager as processes, and the files they read.
//!
//! Everything listens on loopback. The data does not survive: etcd runs without fsync in a temporary directory.

use crate::{binaries::Binaries, certificates::Authority, children::Process, services};
use anyhow::{Context, Result, bail};
use rcgen::KeyPair;
use rustix::process::Signal;
use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Enough for a machine busy with a build; three to five seconds are usual.
const START: Duration = Duration::from_secs(90);
const CONTROLLERS: &[&str] = &[
    "deployment-controller",
    "replicaset-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "endpointslice-controller",
    "resourcequota-controller",
    "disruption-controller",
    "job-controller",
    "clusterrole-aggregation-controller",
    "validatingadmissionpolicy-status-controller",
];

const AUTHENTICATION: &str = r"apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
";

/// Writes whole, reads by name; no bodies of Secrets and tokens.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  nonResourceURLs: ["/livez*", "/readyz*", "/healthz*", "/version", "/openapi*", "/api*"]
- level: Metadata
  resources:
  - {group: "", resources: [secrets, serviceaccounts/token]}
  - {group: authentication.k8s.io, resources: [tokenreviews]}
- level: RequestResponse
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
"#;

/// Who the tokens of one cluster belong to.
pub(crate) struct Tokens {
    pub(crate) admin: String,
    pub(crate) kubelet: String,
    controller_manager: String,
}

/// The running processes of one control plane. Dropping it kills them.
pub(crate) struct ControlPlane {
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) audit_log: PathBuf,
    directory: PathBuf,
    binaries: Binaries,
    api_server_arguments: Vec<String>,
    api_server: tokio::sync::Mutex<Process>,
    _controller_manager: Option<Process>,
    _etcd: Process,
}

impl Tokens {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { admin: random()?, kubelet: random()?, controller_manager: random()? })
    }

    fn csv(&self) -> String {
        format!(
            "{},admin,admin,system:masters\n{},process-kubelet,process-kubelet,system:masters\n{},system:kube-controller-manager,kube-controller-manager\n",
            self.admin, self.kubelet, self.controller_manager
        )
    }
}

impl ControlPlane {
    /// Starts everything, again with other ports when another process took one meanwhile.
    pub(crate) async fn start(
        binaries: &Binaries,
        directory: &Path,
        authority: &Authority,
        tokens: &Tokens,
        feature_gates: &[String],
    ) -> Result<Self> {
        write_files(directory, authority, tokens)?;
        let mut attempt = 1;
        loop {
            match Self::start_once(binaries, directory, tokens, feature_gates).await {
                Ok(started) => return Ok(started),
                Err(error) if attempt < 3 && format!("{error:#}").contains("address already in use") => {
                    tracing::info!(attempt, "a port was taken meanwhile; starting again");
                    attempt += 1;
                    fs::remove_dir_all(directory.join("etcd")).ok();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn start_once(
        binaries: &Binaries,
        directory: &Path,
        tokens: &Tokens,
        feature_gates: &[String],
    ) -> Result<Self> {
        let [etcd_client, etcd_peer, port] = free_ports()?;
        let at = |name: &str| directory.join(name).display().to_string();
        let started = Instant::now();

        let etcd_url = format!("http://127.0.0.1:{etcd_client}");
        let etcd_peer_url = format!("http://127.0.0.1:{etcd_peer}");
        let etcd = Process::start(
            "etcd",
            directory,
            &directory.join("etcd.log"),
            Command::new(&binaries.etcd)
                .arg(format!("--data-dir={}", at("etcd")))
                .arg(format!("--listen-client-urls={etcd_url}"))
                .arg(format!("--advertise-client-urls={etcd_url}"))
                .arg(format!("--listen-peer-urls={etcd_peer_url}"))
                .arg(format!("--initial-advertise-peer-urls={etcd_peer_url}"))
                .arg(format!("--initial-cluster=default={etcd_peer_url}"))
                .args(["--unsafe-no-fsync", "--log-level=warn"]),
        )?;

        let mut arguments = vec![
            format!("--etcd-servers={etcd_url}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            // 1.37 refuses to publish a loopback address.
            "--endpoint-reconciler-type=none".into(),
            format!("--tls-cert-file={}", at("api-server.crt")),
            format!("--tls-private-key-file={}", at("api-server.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("service-account.pub")),
            format!("--service-account-signing-key-file={}", at("service-account.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            format!("--authentication-config={}", at("authentication.yaml")),
            "--authorization-mode=RBAC".into(),
            "--service-cluster-ip-range=10.0.0.0/16".into(),
            "--allow-privileged".into(),
            "--profiling=false".into(),
            format!("--kubelet-certificate-authority={}", at("ca.crt")),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--audit-policy-file={}", at("audit-policy.yaml")),
            format!("--audit-log-path={}", at("audit.log")),
            "--audit-log-maxsize=0".into(),
            format!("--egress-selector-config-file={}", at("egress.yaml")),
        ];
        if !feature_gates.is_empty() {
            arguments.push(format!("--feature-gates={}", feature_gates.join(",")));
        }
        let url = format!("https://127.0.0.1:{port}");
        let api_server = api_server(binaries, directory, &arguments)?;
        ready(&api_server, &url, directory).await?;
        tracing::info!(%url, "API server ready after {:.1?}", started.elapsed());

        let controller_manager = match &binaries.kube_controller_manager {
            None => None,
            Some(program) => {
                let kubeconfig = directory.join("controller-manager.kubeconfig");
                let user = format!("token: {}", tokens.controller_manager);
                write_private(&kubeconfig, &self::kubeconfig(&url, &directory.join("ca.crt"), &user, "default"))?;
                Some(Process::start(
                    "kube-controller-manager",
                    directory,
                    &directory.join("kube-controller-manager.log"),
                    Command::new(program)
                        .arg(format!("--kubeconfig={}", kubeconfig.display()))
                        .arg(format!("--controllers={}", CONTROLLERS.join(",")))
                        .arg(format!("--root-ca-file={}", at("ca.crt")))
                        .arg(format!("--service-account-private-key-file={}", at("service-account.key")))
                        .args(["--use-service-account-credentials", "--leader-elect=false", "--secure-port=0"])
                        // One user on one machine: the default 20 requests a second only make tests slower.
                        .args(["--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false"]),
                )?)
            }
        };
        Ok(Self {
            url,
            port,
            audit_log: directory.join("audit.log"),
            directory: directory.to_owned(),
            binaries: binaries.clone(),
            api_server_arguments: arguments,
            api_server: tokio::sync::Mutex::new(api_server),
            _controller_manager: controller_manager,
            _etcd: etcd,
        })
    }

    pub(crate) async fn stop_api_server(&self, grace: Duration) -> Result<()> {
        self.api_server.lock().await.stop(grace).await
    }

    pub(crate) async fn start_api_server(&self) -> Result<()> {
        let mut api_server = self.api_server.lock().await;
        if api_server.ended()?.is_none() {
            return Ok(());
        }
        *api_server = self::api_server(&self.binaries, &self.directory, &self.api_server_arguments)?;
        ready(&api_server, &self.url, &self.directory).await
    }

    pub(crate) async fn api_server_id(&self) -> u32 {
        self.api_server.lock().await.id()
    }

    pub(crate) async fn signal_api_server(&self, signal: Signal) -> Result<()> {
        self.api_server.lock().await.signal(signal)
    }
}

/// A kubeconfig with one cluster, one user and one context. `user` is the user's YAML fields on one line.
pub(crate) fn kubeconfig(server: &str, authority: &Path, user: &str, namespace: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: leasehold
  cluster:
    server: {server}
    certificate-authority: {authority}
users:
- name: user
  user:
    {user}
contexts:
- name: leasehold
  context:
    cluster: leasehold
    user: user
    namespace: {namespace}
current-context: leasehold
",
        authority = authority.display()
    )
}

/// Writes a file only its owner can read.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write;
    fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn api_server(binaries: &Binaries, directory: &Path, arguments: &[String]) -> Result<Process> {
    Process::start(
        "kube-apiserver",
        directory,
        &directory.join("kube-apiserver.log"),
        Command::new(&binaries.kube_apiserver).args(arguments),
    )
}

fn write_files(directory: &Path, authority: &Authority, tokens: &Tokens) -> Result<()> {
    let write = |name: &str, content: &str| write_private(&directory.join(name), content);
    let serving = authority.issue(&[
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "10.0.0.1",
    ])?;
    let service_accounts = KeyPair::generate()?;
    write("ca.crt", &authority.pem())?;
    write("api-server.crt", &serving.certificate)?;
    write("api-server.key", &serving.key)?;
    write("service-account.key", &service_accounts.serialize_pem())?;
    write("service-account.pub", &service_accounts.public_key_pem())?;
    write("tokens.csv", &tokens.csv())?;
    write("authentication.yaml", AUTHENTICATION)?;
    write("egress.yaml", &services::configuration(directory))?;
    write("audit-policy.yaml", AUDIT_POLICY)
}

/// Waits for `/readyz`, asked without a token as a load balancer would.
async fn ready(process: &Process, url: &str, directory: &Path) -> Result<()> {
    let mut config = kube::Config::new(url.parse()?);
    config.root_cert_file = Some(directory.join("ca.crt"));
    config.connect_timeout = Some(Duration::from_secs(1));
    config.read_timeout = Some(Duration::from_secs(5));
    config.default_retry = false;
    let client = kube::Client::try_from(config)?;
    let started = Instant::now();
    let mut last = String::new();
    while started.elapsed() < START {
        if let Some(status) = process.ended()? {
            bail!("kube-apiserver ended ({status}):\n{}", tail(&directory.join("kube-apiserver.log")));
        }
        match client.request_text(http::Request::get("/readyz").body(Vec::new())?).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!(
        "kube-apiserver is not ready after {START:?} ({last}):\n{}\netcd:\n{}",
        tail(&directory.join("kube-apiserver.log")),
        tail(&directory.join("etcd.log"))
    )
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Ports that were free a moment ago; all are held until all are known, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free loopback port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn random() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
