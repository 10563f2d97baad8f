//! Leasehold spreads Kubernetes CRD kinds over the replicas of one Deployment, one Lease a kind.
//!
//! Each replica runs an elector for every kind. The replica that wins a kind's Lease gets a [`Term`]: its reconciler
//! starts, writes through the term's client, which is a fence, and stops when the term drains. Any
//! `kube::runtime::Controller` is put under a term in two lines, and two of them are spread over two replicas:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use k8s_openapi::api::core::v1::{ConfigMap, Secret};
//! use kube::{Api, runtime::{Controller, controller::Action, watcher}};
//! use leasehold::{BoxError, Leasehold, Replica, Term, shutdown_signals};
//!
//! async fn reconcile<K>(object: Arc<K>, term: Arc<Term>) -> Result<Action, kube::Error> {
//!     // Reads and writes go through `term.client()`.
//!     Ok(Action::requeue(term.kind().resync))
//! }
//!
//! fn retry<K>(_: Arc<K>, _: &kube::Error, _: Arc<Term>) -> Action {
//!     Action::requeue(Duration::from_secs(5))
//! }
//!
//! async fn config_maps(term: Term) -> Result<(), BoxError> {
//!     let controller = Controller::new(Api::<ConfigMap>::all(term.client()), watcher::Config::default());
//!     term.control(controller, reconcile, retry, Arc::new(term.clone())).await
//! }
//!
//! async fn secrets(term: Term) -> Result<(), BoxError> {
//!     let controller = Controller::new(Api::<Secret>::all(term.client()), watcher::Config::default());
//!     term.control(controller, reconcile, retry, Arc::new(term.clone())).await
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), BoxError> {
//!     let app = Leasehold::builder()
//!         .instance("my-operator")
//!         .kind::<ConfigMap>(config_maps)
//!         .kind::<Secret>(secrets)
//!         .endpoints("0.0.0.0:8080".parse()?) // the page, /livez, /readyz, /metrics, /shards
//!         .build()?;
//!
//!     // For other tasks that only need to know.
//!     let leadership = app.leadership("ConfigMap").expect("configured");
//!     println!("leading: {}", leadership.is_leading());
//!
//!     app.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?).await?;
//!     Ok(())
//! }
//! ```
//!
//! `POD_NAME` and `POD_NAMESPACE` come from the downward API. The account of the Pod needs `get`, `list`, `watch`, `create`,
//! `update`, `patch` and `delete` on Leases in its namespace, and what the reconcilers need.
//!
//! # What there is
//!
//! | to | use |
//! | --- | --- |
//! | give kinds in code, or have whoever runs the program give them in a file | [`Builder`], [`Kind`], [`settings`] |
//! | reconcile while a replica leads | [`Reconciler`], which any function from a [`Term`] to a future is |
//! | begin with a cache that was filled before | [`Reconciler::stand_by`] and [`Standby`] |
//! | say which children an object shall have, and let the engine do the rest | [`children::Compose`], or a [`Composition`] without a program |
//! | work or wait in other tasks while a replica leads | [`Leasehold::leadership`] and its [`Signal`] |
//! | put kinds under one Lease | [`Kind::in_group`], [`Builder::single_lease`] |
//! | read on every replica | [`Reconciler::observe`] and [`observe::Observer`] |
//! | write statuses that any replica makes | [`observe::StatusWriter`] |
//! | default, validate and convert objects before they are stored | [`Builder::webhook`] and [`webhook::Webhook`] |
//! | serve health and metrics | [`Builder::endpoints`], or [`Health`] in a server of the program's own |
//! | test that nothing is written after a term | [`testing::Trial`] |
//!
//! `examples/` has a program for most of these.
//!
//! # What is promised
//!
//! At no moment may two replicas write for one kind: the client of a [`Term`] refuses every write once the term is not valid any
//! more, by a clock that does not jump, and whether any task runs or not. Such a write fails with [`kube::Error::Service`]
//! around [`Fenced`]. docs/safety.md says what is not promised.
//!
//! # Cancellation
//!
//! [`Leasehold::run`] may be dropped: then no term writes any more, and the Leases are left to expire. The future of a reconciler is
//! dropped when its term is aborted, at whatever it awaits. Methods that wait say whether they are cancel safe.
//!
//! # Features
//!
//! There are no default features, and this crate chooses no version of Kubernetes: enable one of `k8s-openapi` in your program
//! (`k8s-openapi = { version = "0.29", features = ["v1_33"] }`, or `latest`). kube is used with `ring`; with more than one
//! provider of cryptography in the program, install one before [`Leasehold::run`].
//!
//! - `cli`: what the binary `leasehold` needs. Of no use to a library.
//! - `jemalloc`: the allocator of that binary.
//! - `internals`: makes the modules behind this page visible, for the binary and the tests of this repository. They change without
//!   notice.

#![cfg_attr(not(feature = "internals"), warn(unnameable_types))]
#![cfg_attr(
    not(feature = "internals"),
    expect(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "the binary and the tests use what a user of the library does not reach"
    )
)]

#[cfg(not(feature = "internals"))]
mod app;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod app;
#[cfg(not(feature = "internals"))]
mod config;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod config;
mod front;
#[cfg(not(feature = "internals"))]
mod kinds;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod kinds;
#[cfg(not(feature = "internals"))]
mod ops;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ops;
#[cfg(not(feature = "internals"))]
mod protocol;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod protocol;
#[cfg(not(feature = "internals"))]
mod reconcile;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod reconcile;
#[cfg(not(feature = "internals"))]
mod replica;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod replica;
#[cfg(not(feature = "internals"))]
mod webhooks;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod webhooks;

pub use app::{Error, Leasehold, Replica, shutdown_signals};
pub use config::{Errors as ConfigErrors, Kind};
pub use front::{
    builder::{BuildError, Builder, Composition},
    health::Health,
};
pub use protocol::event::Loss as LossReason;
pub use replica::{
    fence::Fenced,
    leadership::{Leadership, Of, Signal},
    observe::Observation,
    supervisor::Stopped,
    term::{Access, BoxError, FencingToken, Reconciler, Standby, Term},
};

/// The values of settings, for [`Kind`] and [`Builder`]; and what is wrong with a file.
pub mod settings {
    pub use crate::config::{Escalation, Limits, LockKind, OnLoss, StandbyMode, Timings, Violation};
}

/// The children engine: say which children an object shall have, and it does the rest.
pub mod children {
    pub use crate::front::children::{Child, Compose, Composed, Failure, Seen, Type};
}

/// Reading on every replica, and statuses that any replica hands in and the leader writes.
pub mod observe {
    pub use crate::reconcile::{
        name::Name,
        observe::{Observed, Observer, observing},
        status::{Shard, Stamped},
        status_writer::{Counts, HandedIn, Limits, Revision, StatusWriter, Versioned},
        store::Store,
    };
}

/// Webhooks: every replica answers for its kinds, whether it leads them or not.
pub mod webhook {
    pub use crate::webhooks::{Asked, Denied, Webhook};
}

/// Tests of reconcilers: a term that is lost at any moment, over an API server in memory.
pub mod testing {
    pub use crate::front::{
        server::{Request, Server},
        testing::{Late, Loss, Trial, Tried},
    };
}
