//! Decides what has expired. No IO, no clock: `now` is an argument.
//!
//! [`validate`] turns a spec into a [`Valid`] one; [`plan`] says which objects go now and when to look again.

use std::{cmp, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::{GroupVersionKind, Selector};

use super::types::{DeletePropagation, ExpiryPolicySpec, From};
use crate::{kinds::reach::Reach, reconcile::input};

/// The shortest life that a policy may give.
const SHORTEST: Duration = Duration::from_secs(60);
/// How long a new annotation may go unnoticed.
const ANNOTATIONS: Duration = Duration::from_secs(60);
/// Between two runs when one has left something.
pub(super) const RUNS: Duration = Duration::from_secs(10);

/// Kinds that must not expire, as group and kind: what they hold together is more than themselves.
/// Cluster-scoped kinds are refused anyway, because a policy reaches no further than its namespace.
const REFUSED: [(&str, &str); 9] = [
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("", "ServiceAccount"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("coordination.k8s.io", "Lease"),
    ("leasehold.dev", "ExpiryPolicy"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
];

/// A spec that means something.
#[derive(Clone, Debug)]
pub struct Valid {
    pub(in crate::kinds) target: GroupVersionKind,
    pub(super) selector: Selector,
    /// How long objects live; `None`: their annotation says.
    ttl: Option<Duration>,
    pub(super) annotation: String,
    dry_run: bool,
    pub(super) propagation: DeletePropagation,
    max_per_run: usize,
    pub(super) protect: Option<String>,
}

/// Says what is wrong with a spec. The API server checks most of it already, but not for objects older than the rule.
pub(in crate::kinds) fn validate(spec: &ExpiryPolicySpec) -> Result<Valid, String> {
    let ExpiryPolicySpec { target, ttl, from, annotation, dry_run, propagation, max_per_run, protect } = spec;
    let kind = input::gvk(&target.api_version, &target.kind).map_err(|wrong| format!("spec.target.{wrong}"))?;
    if REFUSED.contains(&(kind.group.as_str(), kind.kind.as_str())) {
        return Err(format!("spec.target: a {} must not expire", kind.kind));
    }
    let selector = target.selector.clone().map(input::selector).transpose();
    let ttl = match (from, ttl) {
        (From::Creation, Some(ttl)) => Some(parse_ttl(ttl).map_err(|wrong| format!("spec.ttl: {wrong}"))?),
        (From::Creation, None) => return Err("spec.ttl is required when from is Creation".to_owned()),
        (From::Annotation, None) => None,
        (From::Annotation, Some(_)) => return Err("spec.ttl means nothing when from is Annotation".to_owned()),
    };
    Ok(Valid {
        target: kind,
        selector: selector.map_err(|wrong| format!("spec.target.selector.{wrong}"))?.unwrap_or_default(),
        ttl,
        annotation: annotation.clone(),
        dry_run: *dry_run,
        propagation: *propagation,
        max_per_run: usize::try_from(*max_per_run)
            .ok()
            .filter(|max| *max > 0)
            .ok_or("spec.maxPerRun must be positive")?,
        protect: protect.as_ref().map(|protect| protect.annotation.clone()),
    })
}

impl Valid {
    /// Whether a policy in that namespace reaches no further than it may.
    ///
    /// # Errors
    /// Which field does, why it must not, and what to do.
    pub(in crate::kinds) fn within(&self, reach: &Reach, namespace: &str) -> Result<(), String> {
        reach.of_type(&self.target.group, &self.target.kind).map_err(|why| format!("spec.target.kind: {why}"))?;
        reach.namespace(namespace).map_err(|why| format!("metadata.namespace: {why}"))
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text).ok_or_else(|| format!("{text:?} is no duration such as 24h"))?;
    if ttl < SHORTEST { Err(format!("{text} is less than 1m")) } else { Ok(ttl) }
}

/// A duration as Kubernetes writes it, not negative. It begins with a digit: kube's parser takes nothing at all for no time at all,
/// and an object whose annotation is empty shall not be deleted for that.
fn parse_duration(text: &str) -> Option<Duration> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let duration = text.parse::<kube::core::Duration>().ok()?;
    (!duration.is_negative()).then(|| duration.into())
}

/// An object that the policy selects, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) created: Timestamp,
    /// The value of the annotation that the policy reads.
    pub(super) expires: Option<String>,
    /// The value of the annotation that protects.
    pub(super) protect: Option<String>,
    pub(super) deleting: bool,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Objects that the policy applies to; those on their way out do not count.
    pub(super) matched: usize,
    /// Those of them that have expired.
    pub(super) expired: usize,
    /// Those of them to delete now, the longest expired first.
    pub(super) delete: Vec<Object>,
    /// When the next one expires.
    pub(super) next: Option<Timestamp>,
    /// Objects whose annotation says nothing, by name.
    pub(super) unreadable: Vec<String>,
    /// When to look again at the latest.
    pub(super) again: Duration,
}

/// Compares the objects with the time.
pub(super) fn plan(now: Timestamp, valid: &Valid, objects: Vec<Object>) -> Plan {
    let mut plan = Plan::default();
    let mut expired = Vec::new();
    for object in objects.into_iter().filter(|object| !object.deleting) {
        plan.matched += 1;
        if object.protect.as_deref().is_some_and(|value| value != "false") {
            continue;
        }
        match expiry(valid, &object) {
            Expiry::At(at) if at <= now => expired.push((at, object)),
            Expiry::At(at) => plan.next = Some(plan.next.map_or(at, |next| next.min(at))),
            Expiry::Never => {}
            Expiry::Unreadable => plan.unreadable.push(object.name),
        }
    }
    expired.sort_by(|(at, a), (bt, b)| (at, &a.name).cmp(&(bt, &b.name)));
    plan.unreadable.sort();
    plan.expired = expired.len();
    let left = !valid.dry_run && expired.len() > valid.max_per_run;
    if !valid.dry_run {
        plan.delete = expired.into_iter().map(|(_, object)| object).take(valid.max_per_run).collect();
    }

    // An object that appears after this pass lives for the ttl at least, so looking again after one ttl is never late.
    let unseen = valid.ttl.unwrap_or(ANNOTATIONS);
    let next = plan.next.map_or(unseen, |next| next.duration_since(now).unsigned_abs());
    plan.again = unseen.min(next);
    if left {
        plan.again = cmp::min(plan.again, RUNS);
    }
    plan
}

enum Expiry {
    At(Timestamp),
    Never,
    Unreadable,
}

fn expiry(valid: &Valid, object: &Object) -> Expiry {
    let after = |life: Duration| {
        let at = SignedDuration::try_from(life).ok().and_then(|life| object.created.checked_add(life).ok());
        at.map_or(Expiry::Never, Expiry::At)
    };
    match (valid.ttl, object.expires.as_deref()) {
        (Some(ttl), _) => after(ttl),
        (None, None) => Expiry::Never,
        (None, Some(text)) => match (text.parse(), parse_duration(text)) {
            (Ok(at), _) => Expiry::At(at),
            (Err(_), Some(life)) => after(life),
            (Err(_), None) => Expiry::Unreadable,
        },
    }
}
