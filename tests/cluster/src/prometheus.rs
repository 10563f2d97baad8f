//! A real Prometheus that scrapes replicas, as a PodMonitor of its operator would have it do.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::{cluster::Cluster, prometheus as binaries};

/// The namespace, the pod and the address of a replica.
pub type Target = (String, String, String);

/// A Prometheus, which ends when this is dropped.
pub struct Prometheus {
    process: Child,
    address: String,
    file: PathBuf,
    interval: Duration,
    targets: Mutex<Vec<Target>>,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that evaluates these rules (`groups` of a PrometheusRule), and scrapes and evaluates this often.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub async fn start(cluster: &Cluster, rules: &Value, interval: Duration, targets: Vec<Target>) -> Result<Self> {
        let program = tokio::task::spawn_blocking(binaries).await??.prometheus;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("rules.yaml"), json!({"groups": rules}).to_string())?;
        let file = folder.path().join("prometheus.yaml");
        write(&file, interval, &targets)?;
        // Free a moment ago; the kernel does not hand it out again so soon.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
        let process = Command::new(program)
            .arg("--config.file")
            .arg(&file)
            .arg("--storage.tsdb.path")
            .arg(folder.path().join("data"))
            .arg(format!("--web.listen-address={address}"))
            .envs([cluster.mark()])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { process, address, file, interval, targets: Mutex::new(targets), _folder: folder })
    }

    /// Scrapes these from now on. The same as before changes nothing.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn aim(&self, targets: Vec<Target>) -> Result<()> {
        let mut last = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != targets {
            write(&self.file, self.interval, &targets)?;
            let id = self.process.id().context("Prometheus has ended")?;
            let pid = Pid::from_raw(id.try_into()?).context("a process id")?;
            // It reads its configuration again.
            kill_process(pid, Signal::HUP)?;
            *last = targets;
        }
        Ok(())
    }

    /// An answer of its API.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&get(&self.address, path).await?)?)
    }

    /// What it answers to a query: one value a series, with its labels.
    ///
    /// # Errors
    /// When it refuses the query.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).await?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}

fn write(file: &PathBuf, interval: Duration, targets: &[Target]) -> Result<()> {
    let of = |(namespace, pod, address): &Target| json!({"targets": [address], "labels": {"namespace": namespace, "pod": pod}});
    let targets: Vec<_> = targets.iter().map(of).collect();
    let interval = format!("{}s", interval.as_secs());
    let config = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "leasehold", "static_configs": targets}],
    });
    std::fs::write(file, config.to_string()).with_context(|| file.display().to_string())
}

/// The body that a server of this machine answers with.
///
/// # Errors
/// When it does not answer with 200.
pub async fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}
