//! A replica that is a process of the test and no Pod, behind a fault proxy of its own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::PoisonError,
    time::Duration,
};

use anyhow::{Context, Result};
use leasehold_cluster::{FaultProxy, Signal, eventually};
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use crate::stage::{PATIENCE, Stage, TIMINGS};

/// A replica that does not answer for this long does not answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What runs.
#[derive(Clone, Copy)]
pub enum Program {
    Leasehold,
    Observer,
    /// One of the examples.
    Example(&'static str),
}

/// How a replica is to be started: see [`Lone::start`].
pub struct Plan<'a> {
    pub program: Program,
    /// The Pod's name, as it says; unlike that of every other replica on the stage.
    pub name: &'a str,
    /// A file, or a folder with a leasehold.yaml.
    pub config: &'a Path,
    pub environment: &'a [(&'a str, &'a str)],
    /// Standard error is a pipe that is not read, instead of a file.
    pub unread: bool,
    /// The receive buffer of its proxy, in bytes; 0: the system's.
    pub window: usize,
}

impl<'a> Plan<'a> {
    pub fn new(program: Program, name: &'a str, config: &'a Path) -> Self {
        Self { program, name, config, environment: &[], unread: false, window: 0 }
    }
}

/// The program of an example.
pub fn example(name: &str) -> Result<PathBuf> {
    let programs = Path::new(env!("CARGO_BIN_EXE_leasehold")).parent().context("target folder")?;
    Ok(programs.join("examples").join(name))
}

/// A running replica; it ends with this handle.
pub struct Lone {
    pub name: String,
    pub proxy: FaultProxy,
    pub address: String,
    log: PathBuf,
    process: Child,
    /// Kept open: a pipe without a reader would be an error, and not silence.
    _unread: Option<ChildStderr>,
}

impl Lone {
    /// Starts a replica as the stage's ServiceAccount, in the stage's namespace.
    pub async fn start(stage: &Stage, plan: Plan<'_>) -> Result<Self> {
        let proxy = stage.cluster.proxy().await?;
        if plan.window > 0 {
            proxy.narrow(plan.window);
        }
        let kubeconfig = stage.cluster.service_account_kubeconfig_at(&stage.namespace, "observer", proxy.url()).await?;
        // Free a moment ago; the kernel does not hand it out again so soon.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
        let leasehold = Path::new(env!("CARGO_BIN_EXE_leasehold"));
        let example = |name: &str| -> Result<Command> {
            let mut command = Command::new(example(name)?);
            command.arg(plan.config).arg(&address);
            Ok(command)
        };
        let mut command = match plan.program {
            Program::Leasehold => {
                let mut command = Command::new(leasehold);
                command.args(["run", "--http", &address, "--config"]).arg(plan.config);
                command
            }
            Program::Observer => example("observer")?,
            Program::Example(name) => example(name)?,
        };
        let log = stage.cluster.directory().join(format!("{}-{}.log", stage.namespace, plan.name));
        let errors = if plan.unread { Stdio::piped() } else { File::create(&log)?.into() };
        let mut process = command
            .env("KUBECONFIG", kubeconfig)
            .env_remove("RUST_LOG")
            .env("POD_NAME", plan.name)
            .env("POD_NAMESPACE", &stage.namespace)
            .envs(plan.environment.iter().copied())
            .envs([stage.cluster.mark()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()?;
        stage.logs.lock().unwrap_or_else(PoisonError::into_inner).push(log.clone());
        let unread = process.stderr.take();
        Ok(Self { name: plan.name.to_owned(), proxy, address, log, process, _unread: unread })
    }

    /// Whether a holder identity is of this replica.
    pub fn is(&self, holder: &str) -> bool {
        crate::stage::pod_of(holder) == self.name
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        Ok(kill_process(pid.context("the process has ended")?, signal)?)
    }

    /// Bytes of memory that the process has in use.
    pub fn memory(&self) -> Result<u64> {
        let id = self.process.id().context("the process has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a size")?;
        Ok(resident.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Waits for its end.
    pub async fn ends(&mut self, within: Duration) -> Result<ExitStatus> {
        let ended = timeout(within, self.process.wait()).await;
        Ok(ended.with_context(|| format!("{} runs on {within:?} later", self.name))??)
    }

    /// What it has logged so far.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// An answer of its endpoints.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ask(path, &format!("GET {path} HTTP/1.0\r\n\r\n")).await
    }

    /// An answer to what is posted.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, String)> {
        let body = body.to_string();
        let head = format!("content-type: application/json\r\ncontent-length: {}", body.len());
        self.ask(path, &format!("POST {path} HTTP/1.0\r\n{head}\r\n\r\n{body}")).await
    }

    async fn ask(&self, path: &str, request: &str) -> Result<(u16, String)> {
        let asking = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
            Ok((code, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
        };
        timeout(ANSWER, asking).await.with_context(|| format!("{}: {path} does not answer", self.name))?
    }

    /// Waits for an answer with this status.
    pub async fn answers(&self, path: &str, expected: u16, within: Duration) -> Result<String> {
        let what = format!("{}: {path} answers {expected}", self.name);
        Ok(eventually(&what, within, || self.get(path), |(code, _)| *code == expected).await?.1)
    }

    /// What it says of a kind: the row of `/shards` whose `kind` this is.
    pub async fn shard(&self, kind: &str) -> Result<Value> {
        let (_, body) = self.get("/shards").await?;
        let body: Value = serde_json::from_str(&body)?;
        let rows = body["shards"].as_array().context("/shards lists shards")?;
        rows.iter().find(|row| row["kind"] == kind).cloned().with_context(|| format!("/shards says {kind}: {body}"))
    }
}

/// Waits until each of them is ready.
pub async fn all_ready(replicas: &[Lone]) -> Result<()> {
    for replica in replicas {
        replica.answers("/readyz", 200, PATIENCE).await?;
    }
    Ok(())
}

/// The configuration of an observer of this stage, as a file in this folder.
pub fn observer(stage: &Stage, folder: &Path, name: &str, leases: &str, kind: &str) -> Result<PathBuf> {
    let Stage { namespace, placement, kinds, .. } = stage;
    let kinds: String = kinds
        .iter()
        .map(|name| {
            format!(
                "- {{apiVersion: observer.leasehold.dev/v1, kind: {name}, reconciler: {{builtin: observer}}{kind}}}\n"
            )
        })
        .collect();
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(
        &file,
        format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {namespace}\nleases: {{{TIMINGS}{leases}}}\n\
             placement: {{{placement}}}\ndrainTimeout: 60s\nkinds:\n{kinds}"
        ),
    )?;
    Ok(file)
}
