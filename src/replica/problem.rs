//! Says in words what a failed request means for the reader, and what to do about it.

use std::any::Any;

pub use crate::ops::causes::describe;

/// What a lock is, in messages.
pub const CONFIG_MAP: &str = "ConfigMap";
/// As [`CONFIG_MAP`].
pub const LEASE: &str = "Lease";

/// What a task said when it panicked.
pub fn panicked(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// What a failed request about a Lease, or about a ConfigMap that is a lock, means.
pub fn of_lock_request(error: &kube::Error, verb: &str, what: &str, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) if status.is_forbidden() && what == CONFIG_MAP => format!(
            "not allowed to {verb} the configmaps in namespace {namespace} that are locks: grant it with the Role that `leasehold rbac` prints"
        ),
        kube::Error::Api(status) if status.is_forbidden() => format!(
            "not allowed to {verb} leases.coordination.k8s.io in namespace {namespace}: grant it with a Role and a RoleBinding, as deploy/rbac.yaml does"
        ),
        kube::Error::Api(status) if status.code == 404 && verb == "create" => {
            format!("namespace {namespace} does not exist: create it, or set leases.namespace to one that does")
        }
        kube::Error::Api(status) => format!("failed to {verb} the {what}: {} {}", status.code, status.message),
        other => format!("failed to {verb} the {what}: {}", describe(other)),
    }
}

/// Whether discovery has failed because the API server does not know the type. A group that is not served is a 404 in
/// plain text, without a reason.
pub(crate) fn is_unserved(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 404,
        kube::Error::Discovery(_) => true,
        _ => false,
    }
}
