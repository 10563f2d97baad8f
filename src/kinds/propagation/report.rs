//! Makes the status of a pass. No IO, no clock.

use std::collections::BTreeMap;

use super::{
    Failed, FailedReason, OnSourceMissing, Propagation, PropagationStatus, observe::SourceState, plan::Targets,
    write::Copies,
};
use crate::reconcile::conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions};

/// Whether there is something to copy.
const SOURCE_FOUND: &str = "SourceFound";
/// Entries of `status.failed`.
const SHOWN: usize = 20;
/// Namespaces that a message names.
const NAMED: usize = 3;

/// A plan that was carried out.
#[derive(Debug)]
pub struct Done {
    pub(super) source: SourceState,
    /// Nothing was to be written, so the copies are like the source of some time ago.
    pub(super) keeps: bool,
    pub(super) targets: Targets,
    pub(super) copies: Copies,
}

/// The status after a plan was carried out.
pub(super) fn report(
    propagation: &Propagation,
    done: &Done,
    status: &mut PropagationStatus,
    conditions: &mut Conditions<'_>,
) {
    let Done { source, keeps, targets, copies } = done;
    let failed = failed(targets, copies);
    status.targets = count(targets.present.len() + targets.absent.len());
    status.synced = count(copies.synced);
    match source {
        SourceState::Version(version) => {
            conditions.set(SOURCE_FOUND, ConditionStatus::True, AS_EXPECTED, "");
            status.source_version = Some(version.clone());
        }
        SourceState::Missing => {
            let source = &propagation.spec.source;
            let message = format!("{:?} {}/{} does not exist", source.kind, source.namespace, source.name);
            conditions.set(SOURCE_FOUND, ConditionStatus::False, "SourceMissing", message);
            if propagation.spec.on_source_missing == OnSourceMissing::Delete {
                status.source_version = None;
            }
        }
        SourceState::KeysMissing(keys) => {
            let message = format!("the source has no key {}", keys.join(", "));
            conditions.set(SOURCE_FOUND, ConditionStatus::False, "KeyMissing", message);
        }
    }
    if *keeps {
        conditions.set(APPLIED, ConditionStatus::Unknown, "NothingToApply", "");
    } else if failed.is_empty() && copies.not_pruned == 0 {
        conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, "");
    } else if failed.is_empty() {
        let message = format!("{} copies that no longer belong could not be deleted", copies.not_pruned);
        conditions.set(APPLIED, ConditionStatus::False, "PruneFailed", message);
    } else {
        let message = message(&failed, status.targets, &copies.policies);
        conditions.set(APPLIED, ConditionStatus::False, reason(&failed), message);
    }
    let shown = failed.into_iter().take(SHOWN);
    status.failed = shown.map(|(namespace, reason)| Failed { namespace: namespace.to_owned(), reason }).collect();
}

fn failed<'a>(targets: &'a Targets, copies: &'a Copies) -> BTreeMap<&'a str, FailedReason> {
    let absent = targets.absent.iter().map(|namespace| (namespace.as_str(), FailedReason::NamespaceNotFound));
    absent.chain(copies.failed.iter().map(|(namespace, reason)| (namespace.as_str(), *reason))).collect()
}

fn reason(failed: &BTreeMap<&str, FailedReason>) -> &'static str {
    let mut reasons = failed.values();
    let first = reasons.next();
    match first {
        Some(first) if reasons.all(|reason| reason == first) => match first {
            FailedReason::NamespaceNotFound => "NamespaceNotFound",
            FailedReason::Conflict => "Conflict",
            FailedReason::Forbidden => "Forbidden",
            FailedReason::Invalid => "Invalid",
            FailedReason::ApplyFailed => "ApplyFailed",
        },
        _ => "TargetsFailed",
    }
}

fn message(failed: &BTreeMap<&str, FailedReason>, targets: i32, policies: &BTreeMap<String, String>) -> String {
    let named: Vec<String> =
        failed.iter().take(NAMED).map(|(namespace, reason)| format!("{namespace} ({reason:?})")).collect();
    let more = failed.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let policy = policies.values().next().map(|policy| format!("; {policy}")).unwrap_or_default();
    format!("{} of {targets} targets have no up-to-date copy: {}{more}{policy}", failed.len(), named.join(", "))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
