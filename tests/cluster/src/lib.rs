//! A real Kubernetes control plane on this machine, for tests and the demo.
//!
//! etcd, kube-apiserver and kube-controller-manager run as processes ([`Cluster`]); pods run as processes too ([`Kubelet`]);
//! a [`FaultProxy`] stands between a client and the API server where a test wants faults.
//! Nothing outlives the process that started it, however that ends.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use leasehold_cluster::{Cluster, KubeletOptions};
//!
//! let cluster = Cluster::start().await?;
//! let images = [("leasehold".to_owned(), "/usr/local/bin/leasehold".into())].into();
//! let kubelet = cluster.start_kubelet(KubeletOptions { nodes: 3, images, ..KubeletOptions::default() }).await?;
//! println!("{}", cluster.kubectl(&["get", "nodes"]).await?);
//! # drop(kubelet);
//! # Ok(())
//! # }
//! ```

mod audit;
mod binaries;
mod cel_go;
mod certificates;
mod children;
mod cluster;
mod control_plane;
mod eventually;
mod kubelet;
mod prometheus;
mod proxy;
mod services;

pub use audit::AuditEvent;
pub use binaries::{Binaries, PrometheusBinaries, helm, prometheus};
pub use cel_go::CelGo;
pub use children::cpu;
pub use cluster::{Cluster, ClusterOptions};
pub use eventually::eventually;
pub use kubelet::{Kubelet, KubeletOptions};
pub use prometheus::{Prometheus, Target, get};
pub use proxy::{Fault, FaultProxy, Rule, RuleId, Silence, Upstream};
/// Signals for [`Kubelet::signal`].
pub use rustix::process::Signal;
