//! What the API server's audit log says of Leases and objects.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::AuditEvent;
use serde_json::Value;

use crate::field::GROUP;

/// One stored state of a Lease.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) version: u64,
    /// Empty: free.
    pub(crate) holder: String,
    /// When the API server had answered.
    pub(crate) at: Timestamp,
}

/// What was stored of each Lease of a kind, in order, by Lease.
pub(crate) fn leases(events: &[Arc<AuditEvent>]) -> BTreeMap<String, Vec<Stored>> {
    let mut leases: BTreeMap<String, Vec<Stored>> = BTreeMap::new();
    for event in events.iter().filter(|event| is_lease(event) && event.is_write() && event.succeeded()) {
        let Some(object) = &event.response_object else { continue };
        let is_membership =
            object.pointer("/metadata/labels/leasehold.dev~1role").is_some_and(|role| role == "replica");
        if let (false, Some(name), Some(version)) = (is_membership, text(object, "/metadata/name"), version(object)) {
            let holder = text(object, "/spec/holderIdentity").unwrap_or_default().to_owned();
            leases.entry(name.to_owned()).or_default().push(Stored { version, holder, at: event.stage });
        }
    }
    leases.values_mut().for_each(|stored| stored.sort_by_key(|stored| stored.version));
    leases
}

/// One change of hands.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    /// The old holder's last write as holder.
    pub(crate) renewed: Timestamp,
    /// The release; none after a crash.
    pub(crate) released: Option<Timestamp>,
    /// The first store of another holder.
    pub(crate) acquired: Timestamp,
    /// That one's identity.
    pub(crate) by: String,
}

/// Every change of hands of one Lease after a moment.
pub(crate) fn handovers(stored: &[Stored], after: Timestamp) -> Vec<Handover> {
    let mut handovers = Vec::new();
    let mut holder: Option<&Stored> = None;
    let mut released = None;
    for next in stored {
        match holder {
            _ if next.holder.is_empty() => released = Some(next.at),
            Some(last) if last.holder != next.holder => {
                if next.at >= after {
                    handovers.push(Handover {
                        renewed: last.at,
                        released: released.take(),
                        acquired: next.at,
                        by: next.holder.clone(),
                    });
                }
                (holder, released) = (Some(next), None);
            }
            _ => (holder, released) = (Some(next), None),
        }
    }
    handovers
}

/// For each change of an object after a moment, how long it took until a reconcile of that change, or a later one, was
/// stored, in milliseconds; the longest of them.
pub(crate) fn longest_without_work(events: &[Arc<AuditEvent>], after: Timestamp) -> Option<f64> {
    let mut changes: BTreeMap<String, Vec<(i64, Timestamp)>> = BTreeMap::new();
    let mut seen: BTreeMap<String, Vec<(i64, Timestamp)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.group == GROUP && event.verb == "patch" && event.succeeded()) {
        let (Some(request), Some(name)) = (&event.request_object, &event.name) else { continue };
        if let Some(change) = request.pointer("/spec/change").and_then(Value::as_i64) {
            changes.entry(name.clone()).or_default().push((change, event.stage));
        } else if let Some(change) = request.pointer("/spec/seen").and_then(Value::as_i64) {
            seen.entry(name.clone()).or_default().push((change, event.stage));
        }
    }
    let mut longest: Option<f64> = None;
    for (name, changes) in changes {
        let seen = seen.remove(&name).unwrap_or_default();
        for (change, at) in changes.into_iter().filter(|(_, at)| *at >= after) {
            let first = seen.iter().filter(|(number, _)| *number >= change).map(|(_, at)| *at).min();
            // The last changes of a trial are seen after it has ended.
            if let Some(first) = first {
                longest = Some(longest.unwrap_or(0.0).max(millis(at, first)));
            }
        }
    }
    longest
}

/// Requests for Leases by verb that were answered within a time; a watch counts when it ends.
pub(crate) fn lease_requests(events: &[Arc<AuditEvent>], from: Timestamp, to: Timestamp) -> BTreeMap<String, u32> {
    let mut requests = BTreeMap::new();
    for event in events.iter().filter(|event| is_lease(event) && (from..to).contains(&event.stage)) {
        *requests.entry(event.verb.clone()).or_default() += 1;
    }
    requests
}

/// The first request of a pod's process after a moment.
pub(crate) fn first_request(events: &[Arc<AuditEvent>], pod: &str, after: Timestamp) -> Option<Timestamp> {
    let of_pod = events.iter().filter(|event| event.pod.as_deref() == Some(pod));
    of_pod.map(|event| event.request_received).filter(|at| *at > after).min()
}

/// Milliseconds between two moments.
pub(crate) fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

fn is_lease(event: &AuditEvent) -> bool {
    event.group == "coordination.k8s.io" && event.resource == "leases"
}

fn version(object: &Value) -> Option<u64> {
    text(object, "/metadata/resourceVersion")?.parse().ok()
}

fn text<'o>(object: &'o Value, path: &str) -> Option<&'o str> {
    object.pointer(path).and_then(Value::as_str)
}
