//! Says from the API server's own record whether two replicas ever worked on one kind: all writes are put in the order
//! of the resourceVersions they were stored under, those of the objects and those of the kind's Leases in one line.
//!
//! What is judged is a kind, not a Lease: replicas that disagree on the name of its Lease are found out too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Result, bail};
use leasehold_cluster::AuditEvent;
use serde_json::Value;

use crate::stage::{Stage, lease_of, name_of, plural};

/// One stored write.
#[derive(Clone, Debug)]
pub struct Stored {
    pub version: u64,
    pub what: What,
    /// When the API server had answered.
    pub at: k8s_openapi::jiff::Timestamp,
    /// When the API server had received the request: before it was stored.
    pub received: k8s_openapi::jiff::Timestamp,
}

#[derive(Clone, Debug)]
pub enum What {
    /// The reconciler of this holder wrote its object under this token.
    Worked { holder: String, uid: String, transitions: i64 },
    /// A Lease of the kind, named with its namespace, was stored with this holder; empty: free. `by` wrote it.
    Leased { lease: String, holder: String, uid: String, transitions: i64, by: String },
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.version, self.at, self.what)
    }
}

/// All that was stored of one kind, in order, whatever its Leases are called.
pub fn history(stage: &Stage, kind: &str) -> Result<Vec<Stored>> {
    let resource = plural(kind);
    let mut stored: Vec<_> = stage
        .audit()?
        .iter()
        .filter(|event| event.is_write() && event.succeeded())
        .filter_map(|event| {
            if event.resource == resource && event.verb == "patch" {
                worked(event)
            } else if event.resource == "leases" && event.verb != "delete" {
                leased(event, kind)
            } else {
                None
            }
        })
        .collect();
    stored.sort_by_key(|stored| stored.version);
    Ok(stored)
}

fn worked(event: &AuditEvent) -> Option<Stored> {
    let object = event.response_object.as_ref()?;
    let spec = event.request_object.as_ref()?.get("spec")?;
    let what = What::Worked {
        holder: spec.get("holder")?.as_str()?.to_owned(),
        uid: spec.get("uid")?.as_str()?.to_owned(),
        transitions: spec.get("transitions")?.as_i64()?,
    };
    Some(Stored { version: version(object)?, what, at: event.stage, received: event.request_received })
}

fn leased(event: &AuditEvent, kind: &str) -> Option<Stored> {
    let object = event.response_object.as_ref()?;
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let name = text("/metadata/name")?;
    let is_of_kind =
        text("/metadata/annotations/leasehold.dev~1kind").is_some_and(|of| of.split(',').any(|of| of == name_of(kind)));
    // A Lease that no replica has held yet bears no annotation.
    if name != lease_of(kind) && !is_of_kind {
        return None;
    }
    let what = What::Leased {
        lease: format!("{}/{name}", text("/metadata/namespace").unwrap_or_default()),
        holder: object.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default().to_owned(),
        uid: object.pointer("/metadata/uid")?.as_str()?.to_owned(),
        transitions: object.pointer("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0),
        by: event.pod.clone().unwrap_or_else(|| event.user.clone()),
    };
    Some(Stored { version: version(object)?, what, at: event.stage, received: event.request_received })
}

fn version(object: &Value) -> Option<u64> {
    object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()
}

/// What became of all Leases, renewals left out: for a failure.
pub fn story(stage: &Stage) -> Result<String> {
    let mut events: Vec<_> = stage
        .audit()?
        .into_iter()
        .filter(|event| event.is_write() && event.succeeded() && event.resource == "leases")
        .filter_map(|event| Some((version(event.response_object.as_ref()?).unwrap_or(u64::MAX), event)))
        .collect();
    // A deletion is answered with a status, and stands where it was answered.
    events.sort_by_key(|(version, event)| (event.stage, *version));
    let mut last = BTreeMap::new();
    let mut text = String::new();
    for (_, event) in events {
        let object = event.response_object.as_ref();
        let name = object.and_then(|object| object.pointer("/metadata/name")?.as_str().map(str::to_owned));
        let Some(name) = event.name.clone().or(name) else { continue };
        // Two namespaces may have Leases of one name.
        let name = match &event.namespace {
            Some(namespace) if *namespace != stage.namespace => format!("{namespace}/{name}"),
            _ => name,
        };
        let says = |path: &str| Some(object?.pointer(path)?.to_string());
        let annotation = |name: &str| says(&format!("/metadata/annotations/leasehold.dev~1{name}"));
        let told = match event.verb.as_str() {
            "delete" => "deleted".to_owned(),
            _ => ["/spec/holderIdentity", "/spec/leaseTransitions"]
                .into_iter()
                .filter_map(says)
                .chain(
                    ["successor", "hand-over-to", "replica"]
                        .into_iter()
                        .filter_map(|name| Some(format!("{name}={}", annotation(name)?.replace("\\\"", "")))),
                )
                .collect::<Vec<_>>()
                .join(" "),
        };
        if last.insert(name.clone(), told.clone()).as_ref() != Some(&told) {
            let by = event.pod.as_deref().unwrap_or(&event.user);
            text.push_str(&format!("{} {name} by {by}: {told}\n", event.stage));
        }
    }
    Ok(text)
}

/// Fails if a replica ever wrote under a token that no Lease of the kind carried then, or after another had: then no two
/// can have interleaved. A hand on a Lease is followed within a round trip, not before it: until a replica takes over, the
/// last one may write.
pub fn judge(stage: &Stage) -> Result<()> {
    for kind in &stage.kinds {
        let history = history(stage, kind)?;
        let lines = |index: usize| {
            let lines: Vec<_> = history[index.saturating_sub(12)..=index].iter().map(ToString::to_string).collect();
            lines.join("\n")
        };
        // By Lease: its token, and whether a hand wrote it last.
        let mut leases = BTreeMap::new();
        let (mut last, mut over) = (None, BTreeSet::new());
        for (index, stored) in history.iter().enumerate() {
            match &stored.what {
                What::Leased { lease, holder, uid, transitions, by } => {
                    leases.insert(lease, ((holder, uid, transitions), by == "admin"));
                }
                What::Worked { holder, uid, transitions } => {
                    let token = (holder, uid, transitions);
                    if leases.values().any(|(_, by_hand)| *by_hand) {
                        continue;
                    }
                    if !leases.values().any(|(carried, _)| *carried == token) {
                        let lines = lines(index);
                        bail!("{kind}: {holder} wrote under a token that the Lease did not carry:\n{lines}");
                    }
                    if last != Some(token) {
                        over.extend(last.replace(token));
                    }
                    if over.contains(&token) {
                        let lines = lines(index);
                        bail!("{kind} has two leaders: {holder} wrote again after another had:\n{lines}");
                    }
                }
            }
        }
    }
    Ok(())
}
