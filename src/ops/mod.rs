//! What people and Kubernetes see of a replica.

pub(crate) mod connections;
pub mod http;
pub mod metrics;
mod process;
pub mod status;
pub mod work;
