//! Leasehold spreads Kubernetes CRD kinds over the replicas of one Deployment, one Lease a kind.

pub mod app;
pub mod config;
pub mod kinds;
pub mod ops;
pub mod reconcile;
pub mod sharding;

pub use app::{Error, Leasehold, Replica, shutdown_signals};
pub use config::Configuration;
pub use sharding::{
    supervisor::Leadership,
    term::{Access, BoxError, FencingToken, Reconciler, Term},
};
