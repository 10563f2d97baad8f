//! A replica as a process by itself: bad configurations, an API server that is not there, endpoints, signals.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};
use leasehold_cluster::{Fault, Rule, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Child,
};

use crate::{
    program::{Said, leasehold},
    stage::{PATIENCE, Stage, ensure, play},
};

fn write(folder: &Path, text: &str) -> Result<PathBuf> {
    let file = folder.join("leasehold.yaml");
    std::fs::write(&file, text)?;
    Ok(file)
}

const TWO_MISTAKES: &str = "\
apiVersion: leasehold.dev/v1alpha1
kind: Configuration
leases: {duration: 15s, renewDeadline: 14s, retryPeriod: 2s, requestTimeout: 2s}
kinds:
- {apiVersion: leasehold.dev/v1alpha1, kind: Propagation, wieght: 3, reconciler: {builtin: propagation}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_shown_whole_and_starts_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = write(folder.path(), TWO_MISTAKES)?;
    let log = folder.path().join("termination-log");
    for verb in [vec!["check", "-f"], vec!["run", "--http", "127.0.0.1:0", "--config"]] {
        std::fs::write(&log, "")?;
        let said = Said::by(leasehold().args(&verb).arg(&file).env("TERMINATION_LOG", &log)).await?;
        let text = said.stdout + &said.stderr;
        ensure(said.code == Some(2), || format!("{verb:?}: {:?}\n{text}", said.code))?;
        for expected in ["leasehold.yaml:3:", "renewDeadline", "leasehold.yaml:5:", "wieght"] {
            ensure(text.contains(expected), || format!("{verb:?} says {expected}:\n{text}"))?;
        }
        // A replica says it in the Pod's status too.
        let message = std::fs::read_to_string(&log)?;
        let expected = if verb[0] == "run" { text.trim() } else { "" };
        ensure(message.trim() == expected, || format!("{verb:?} leaves {message:?} after {text:?}"))?;
    }
    std::fs::write(&log, "")?;
    let said = Said::by(leasehold().args(["run", "--no-such-flag"]).env("TERMINATION_LOG", &log)).await?;
    let message = std::fs::read_to_string(&log)?;
    ensure(said.code == Some(2) && message.contains("'--no-such-flag'"), || format!("{said:?} leaves {message:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_configuration_passes_the_check() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/leasehold.yaml");
    let said = Said::by(leasehold().args(["check", "-f"]).arg(file)).await?;
    ensure(said.code == Some(0), || format!("{said:?}"))
}

/// A running replica and where its endpoints are; it ends with this handle.
pub struct Replica {
    process: Child,
    address: String,
}

impl Replica {
    pub async fn start(kubeconfig: &Path, config: &Path) -> Result<Self> {
        // Free a moment ago; the kernel does not hand it out again so soon.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string();
        let process = leasehold()
            .args(["run", "--http", &address, "--config"])
            .arg(config)
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", "alone")
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, address })
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
        Ok((code, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
    }

    async fn answers(&self, path: &str, expected: u16) -> Result<String> {
        let what = format!("{path} answers {expected}");
        Ok(eventually(&what, PATIENCE, || self.get(path), |(code, _)| *code == expected).await?.1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_a_replica_stays_up_unready_and_starts_when_it_comes() -> Result<()> {
    play(Stage::set("down", 1).await?, |stage| async {
        let proxy = stage.cluster.proxy().await?;
        let kubeconfig = stage.cluster.service_account_kubeconfig_at(&stage.namespace, "observer", proxy.url()).await?;
        let down = proxy.add(Rule::new(Fault::Drop));
        let folder = tempfile::tempdir()?;
        let config = write(
            folder.path(),
            &format!(
                "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {{namespace: {}}}\nkinds:\n- {{apiVersion: leasehold.dev/v1alpha1, kind: Propagation, reconciler: {{builtin: propagation}}}}\n",
                stage.namespace
            ),
        )?;
        let mut replica = Replica::start(&kubeconfig, &config).await?;
        let reason = replica.answers("/readyz", 503).await?;
        replica.answers("/livez", 200).await?;
        ensure(reason.contains("Lease watch"), || reason.clone())?;
        let shards = replica.answers("/shards", 200).await?;
        ensure(shards.contains("Propagation.leasehold.dev"), || shards.clone())?;
        proxy.remove(down);
        replica.answers("/readyz", 200).await?;
        // The account may not reconcile Propagations: said, and not led.
        let says = || async { replica.get("/shards").await };
        let blocked = |answer: &(u16, String)| answer.1.contains("Blocked") && answer.1.contains("not allowed to") || answer.1.contains("install its CRD");
        eventually("/shards says why the kind is not led", PATIENCE, says, blocked).await?;
        ensure(stage.holders().await?.is_empty(), || "a blocked kind is led".to_owned())?;
        let pid = replica.process.id().context("pid")?.to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status()?;
        let status = tokio::time::timeout(PATIENCE, replica.process.wait()).await??;
        ensure(status.success(), || format!("a clean stop exits 0: {status}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_namespace_that_does_not_exist_is_named() -> Result<()> {
    play(Stage::set("nowhere", 1).await?, |stage| async {
        let folder = tempfile::tempdir()?;
        let config = write(
            folder.path(),
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {namespace: nowhere-at-all}\nkinds:\n- {apiVersion: leasehold.dev/v1alpha1, kind: Propagation, reconciler: {builtin: propagation}}\n",
        )?;
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").display().to_string();
        stage.cluster.kubectl(&["apply", "-f", &crds]).await?;
        let replica = Replica::start(stage.cluster.kubeconfig(), &config).await?;
        let says = || async { replica.get("/shards").await };
        let named = |answer: &(u16, String)| answer.1.contains("namespace nowhere-at-all does not exist");
        eventually("/shards names the namespace", PATIENCE, says, named).await?;
        replica.answers("/livez", 200).await?;
        Ok(())
    })
    .await;
    Ok(())
}
