//! `leasehold-cluster`: a real control plane on this machine, in the foreground.
#![expect(clippy::print_stdout, reason = "a program for people prints")]

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use leasehold_cluster::{Binaries, Cluster, ClusterOptions, KubeletOptions};
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(about = "A real Kubernetes control plane on this machine, with processes for containers", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a control plane and a process kubelet; runs until Ctrl-C or SIGTERM
    Up {
        /// Where its files go, kept afterwards; holds `kubeconfig`
        #[arg(long, default_value = ".cluster")]
        dir: PathBuf,
        /// How many Nodes
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// The program behind an image; may be given again
        #[arg(long = "image", value_name = "NAME=PATH", value_parser = image)]
        images: Vec<(String, PathBuf)>,
        /// An API server feature gate; may be given again
        #[arg(long = "feature-gate", value_name = "NAME=BOOL")]
        feature_gates: Vec<String>,
        /// The first back-off of a failing container, in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 10_000)]
        restart_backoff: u64,
        /// A file written once everything is ready; removed at the end
        #[arg(long, value_name = "PATH")]
        ready_file: Option<PathBuf>,
    },
    /// Find or build the binaries, and print where they are
    Build {
        /// A file that says in one line how far a build is, instead of standard error
        #[arg(long, value_name = "PATH")]
        progress_file: Option<PathBuf>,
    },
    /// Find or build promtool and prometheus, which monitoring is tested with, and print where they are
    Prometheus,
    /// Run kubectl on the cluster in DIR, or on KUBECONFIG when it is set
    Kubectl {
        /// The directory given to `up`
        #[arg(long, default_value = ".cluster")]
        dir: PathBuf,
        /// What kubectl is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // While a server starts, refused connections are what kube's client calls errors.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,kube_client=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().verb {
        Verb::Build { progress_file } => {
            let find_or_build = move || match &progress_file {
                Some(file) => Binaries::find_or_build_into(file),
                None => Binaries::find_or_build(),
            };
            let binaries = tokio::task::spawn_blocking(find_or_build).await??;
            println!("{}", binaries.directory.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Prometheus => {
            let binaries = tokio::task::spawn_blocking(leasehold_cluster::prometheus).await??;
            println!("{}\n{}", binaries.promtool.display(), binaries.prometheus.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Kubectl { dir, arguments } => kubectl(dir, arguments).await,
        Verb::Up { dir, nodes, images, feature_gates, restart_backoff, ready_file } => {
            let options = KubeletOptions {
                nodes,
                images: images.into_iter().collect(),
                restart_backoff: Duration::from_millis(restart_backoff),
                ..KubeletOptions::default()
            };
            let cluster = ClusterOptions { directory: Some(dir), feature_gates };
            up(cluster, options, ready_file).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn up(options: ClusterOptions, kubelet: KubeletOptions, ready_file: Option<PathBuf>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(stop);
    let started = Instant::now();
    let nodes = kubelet.nodes;
    let start = async {
        println!("starting etcd, kube-apiserver and kube-controller-manager");
        let cluster = Cluster::start_with(options).await?;
        println!("control plane ready after {:.1} s: {}", started.elapsed().as_secs_f64(), cluster.url());
        let kubelet = cluster.start_kubelet(kubelet).await?;
        println!("process kubelet ready after {:.1} s: {nodes} nodes", started.elapsed().as_secs_f64());
        anyhow::Ok((cluster, kubelet))
    };
    let (cluster, kubelet) = tokio::select! {
        running = start => running?,
        () = &mut stop => return Ok(()),
    };
    println!("\n  export KUBECONFIG={}\n", cluster.kubeconfig().display());
    println!("kubectl is {}", cluster.binaries().kubectl.display());
    println!("logs and data are in {}", cluster.directory().display());
    println!("stop with Ctrl-C, or: kill {}", std::process::id());
    if let Some(path) = &ready_file {
        let content = format!("{}\n", cluster.kubeconfig().display());
        std::fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))?;
    }
    stop.await;
    println!("stopping");
    if let Some(path) = &ready_file {
        // Whoever waits for it may have removed it.
        let _ = std::fs::remove_file(path);
    }
    drop(kubelet);
    drop(cluster);
    println!("stopped; it ran for {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn kubectl(dir: PathBuf, arguments: Vec<String>) -> Result<ExitCode> {
    let binaries = tokio::task::spawn_blocking(Binaries::find_or_build).await??;
    let mut command = tokio::process::Command::new(&binaries.kubectl);
    command.args(arguments);
    if std::env::var_os("KUBECONFIG").is_none() {
        command.env("KUBECONFIG", dir.join("kubeconfig"));
    }
    let status = command.status().await.context("failed to start kubectl")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn image(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    let path = PathBuf::from(path);
    let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((name.to_owned(), path))
}
