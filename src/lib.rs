//! Leasehold spreads Kubernetes CRD kinds over the replicas of one Deployment, one Lease a kind.

pub mod config;
pub mod kinds;
pub mod ops;
pub mod reconcile;
pub mod sharding;
