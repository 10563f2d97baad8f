//! What people and Kubernetes see of a replica.

pub mod ask;
mod bounded;
pub(crate) mod causes;
pub(crate) mod connections;
pub mod http;
pub mod metrics;
pub mod page;
pub mod picture;
mod process;
pub mod report;
mod shown;
pub mod status;
pub mod timeline;
pub mod work;
