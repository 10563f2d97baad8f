//! When a Lease changed hands and who worked, by the API server's own record.

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::{AuditEvent, Cluster};
use serde_json::Value;

/// How a Lease went from one holder to the next.
pub(crate) struct Handover {
    /// The old holder's last renewal.
    pub(crate) renewed: Timestamp,
    /// The release; none after a crash.
    pub(crate) released: Option<Timestamp>,
    /// The first store of another holder.
    pub(crate) acquired: Timestamp,
    /// The last write of the old reconciler and the first of the new one, where they write.
    pub(crate) work: Option<(Timestamp, Timestamp)>,
}

/// The hand-over of the only Lease of a namespace from this holder.
///
/// # Errors
/// When the record has none.
pub(crate) fn handover(cluster: &Cluster, namespace: &str, old: &str) -> Result<Handover> {
    let mut stored: Vec<_> = cluster
        .audit()?
        .into_iter()
        .filter(|event| event.namespace.as_deref() == Some(namespace) && event.is_write() && event.succeeded())
        .filter_map(|event| Some((version(&event)?, event)))
        .collect();
    stored.sort_by_key(|(version, _)| *version);
    let leases: Vec<_> = stored
        .iter()
        .filter(|(_, event)| is_lease(event))
        .filter_map(|(_, event)| Some((held_by(event)?, event.stage)))
        .collect();
    let last = leases.iter().rposition(|(holder, _)| *holder == old).context("the old holder held the Lease")?;
    let renewed = leases[last].1;
    let after = &leases[last + 1..];
    let released = after.first().filter(|(holder, _)| holder.is_empty()).map(|(_, at)| *at);
    let acquired = after.iter().find(|(holder, _)| !holder.is_empty()).context("the Lease was acquired")?;
    let work: Vec<_> = stored.iter().filter_map(|(_, event)| Some((worked_by(event)?, event.stage))).collect();
    let last = work.iter().rposition(|(holder, _)| *holder == old);
    let work = last.and_then(|last| Some((work[last].1, work.get(last + 1)?.1)));
    Ok(Handover { renewed, released, acquired: acquired.1, work })
}

/// Requests for Leases of a namespace that were received within a time; a watch counts when it ends.
///
/// # Errors
/// When the record cannot be read.
pub(crate) fn lease_requests(cluster: &Cluster, namespace: &str, from: Timestamp, to: Timestamp) -> Result<u32> {
    let counted = |event: &&AuditEvent| {
        is_lease(event)
            && event.namespace.as_deref() == Some(namespace)
            && matches!(event.verb.as_str(), "get" | "list" | "watch" | "create" | "update")
            && (from..to).contains(&event.stage)
    };
    Ok(u32::try_from(cluster.audit()?.iter().filter(counted).count())?)
}

/// Whether the pod listed Leases after this time: then it knows of them.
///
/// # Errors
/// When the record cannot be read.
pub(crate) fn listed(cluster: &Cluster, pod: &str, since: Timestamp) -> Result<bool> {
    let by = |event: &AuditEvent| {
        is_lease(event) && event.verb == "list" && event.pod.as_deref() == Some(pod) && event.request_received > since
    };
    Ok(cluster.audit()?.iter().any(by))
}

fn is_lease(event: &AuditEvent) -> bool {
    event.group == "coordination.k8s.io" && event.resource == "leases"
}

fn held_by(event: &AuditEvent) -> Option<&str> {
    let spec = event.response_object.as_ref()?.get("spec")?;
    Some(spec.get("holderIdentity").and_then(Value::as_str).unwrap_or_default())
}

fn worked_by(event: &AuditEvent) -> Option<&str> {
    (event.group == "observer.leasehold.dev" && event.verb == "patch")
        .then(|| event.request_object.as_ref()?.pointer("/spec/holder")?.as_str())?
}

fn version(event: &AuditEvent) -> Option<u64> {
    event.response_object.as_ref()?.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()
}
