//! What people and Kubernetes see of a replica.

pub(crate) mod connections;
pub mod http;
pub mod metrics;
pub mod status;
pub mod work;
