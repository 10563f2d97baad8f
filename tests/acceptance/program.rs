//! The shipped binary, as a user calls it.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use anyhow::Result;
use tokio::process::Command;

/// `leasehold`, with no cluster to talk to unless one is given; it ends with this handle.
pub fn leasehold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.env_remove("KUBECONFIG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a command has said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Runs it to its end.
    pub async fn by(command: &mut Command) -> Result<Self> {
        let Output { status, stdout, stderr } = command.output().await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
    }

    pub async fn by_hand_over(kubeconfig: &Path, namespace: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = leasehold();
        command.arg("hand-over").args(arguments).args(["-n", namespace]).env("KUBECONFIG", kubeconfig);
        Self::by(&mut command).await
    }

    pub async fn by_drain(kubeconfig: &Path, arguments: &[String]) -> Result<Self> {
        let mut command = leasehold();
        command.arg("drain").args(arguments).env("KUBECONFIG", kubeconfig);
        Self::by(&mut command).await
    }
}
