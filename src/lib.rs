//! Leasehold spreads Kubernetes CRD kinds over the replicas of one Deployment, one Lease a kind.
//!
//! Each replica runs an elector for every configured kind. Who wins a kind's Lease gets a [`Term`]: its reconciler
//! starts, writes through the term's client, which is a fence, and stops when the term drains. Any
//! `kube::runtime::Controller` is put under a term in three lines:
//!
//! ```no_run
//! use std::{future::ready, sync::Arc, time::Duration};
//!
//! use futures::StreamExt;
//! use k8s_openapi::api::core::v1::ConfigMap;
//! use kube::{Api, runtime::{Controller, controller::Action, watcher}};
//! use leasehold::{BoxError, Leasehold, Replica, Term, shutdown_signals};
//!
//! async fn reconcile(object: Arc<ConfigMap>, term: Arc<Term>) -> Result<Action, kube::Error> {
//!     // Reads and writes go through `term.client()`.
//!     Ok(Action::requeue(term.kind().resync))
//! }
//!
//! # async fn example() -> Result<(), BoxError> {
//! let text = "
//! apiVersion: leasehold.dev/v1alpha1
//! kind: Configuration
//! kinds:
//! - {apiVersion: v1, kind: ConfigMap, reconciler: {builtin: configmaps}}
//! ";
//! let config = leasehold::config::load("leasehold.yaml", text, &["configmaps"])?;
//! let app = Leasehold::new(config).reconciler("configmaps", |term: Term| async move {
//!     Controller::new(Api::<ConfigMap>::all(term.client()), watcher::Config::default())
//!         .graceful_shutdown_on(term.draining())
//!         .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(5)), Arc::new(term))
//!         .for_each(|_| ready(()))
//!         .await;
//!     Ok(())
//! });
//!
//! // For other tasks that only need to know.
//! let leadership = app.leadership("ConfigMap").expect("configured");
//! println!("leading: {}", leadership.is_leading());
//!
//! let replica = Replica { pod_name: "me".to_owned(), pod_namespace: "default".to_owned(), ..Replica::default() };
//! app.run(kube::Config::infer().await?, replica, shutdown_signals()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Beside the term there are three ways to take part, each with a program in `examples/`:
//!
//! - [`Leasehold::leadership`] is the leader [`Signal`] of a kind, a group or the process, for tasks that work or wait while
//!   this replica leads; [`replica::leadership`] says in which order it, the fence and the release come.
//! - [`Reconciler::observe`] runs on every replica, leading or not, and reads: [`reconcile::observe::Observer`] has the
//!   objects of the kind and each change of them.
//! - [`StatusWriter`](reconcile::status_writer::StatusWriter) takes statuses from any task of any replica; the leader
//!   writes the newest of each object.

pub mod app;
pub mod config;
pub mod kinds;
pub mod ops;
pub mod protocol;
pub mod reconcile;
pub mod replica;
pub mod webhooks;

pub use app::{Error, Leasehold, Replica, shutdown_signals};
pub use config::Configuration;
pub use replica::{
    leadership::{Leadership, Of, Signal},
    observe::Observation,
    term::{Access, BoxError, FencingToken, Reconciler, Standby, Term},
};
