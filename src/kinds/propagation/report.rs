//! Makes the status of a pass. No IO, no clock.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{
    Failed, FailedReason, OnSourceMissing, Propagation, PropagationStatus, observe::SourceState, plan::Targets,
    write::Done,
};
use crate::reconcile::conditions::{APPLIED, AS_EXPECTED, Conditions, SPEC_VALID, Truth};

/// Whether there is something to copy.
const SOURCE_FOUND: &str = "SourceFound";
/// Entries of `status.failed`.
const SHOWN: usize = 20;
/// Namespaces that a message names.
const NAMED: usize = 3;

/// What a pass came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The spec means nothing, or what must not be: the reason, and words.
    SpecInvalid(&'static str, String),
    /// The plan was carried out.
    Done {
        source: SourceState,
        /// Nothing was to be written, so the copies are like the source of some time ago.
        keeps: bool,
        targets: Targets,
        done: Done,
    },
}

/// The status after a pass, given the one before.
pub(super) fn status(
    current: Option<&PropagationStatus>,
    propagation: &Propagation,
    outcome: &Outcome,
    now: Timestamp,
) -> PropagationStatus {
    let generation = propagation.metadata.generation;
    let previous = current.map(|status| &*status.conditions).unwrap_or_default();
    let mut conditions = Conditions::new(previous, generation, now);
    let mut status = PropagationStatus {
        observed_generation: generation,
        source_version: current.and_then(|status| status.source_version.clone()),
        shard: current.and_then(|status| status.shard.clone()),
        ..PropagationStatus::default()
    };
    match outcome {
        Outcome::SpecInvalid(reason, wrong) => {
            conditions.set(SPEC_VALID, Truth::False, reason, wrong);
            conditions.set(APPLIED, Truth::Unknown, reason, "");
        }
        Outcome::Done { source, keeps, targets, done } => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            let failed = failed(targets, done);
            status.targets = count(targets.present.len() + targets.absent.len());
            status.synced = count(done.synced);
            match source {
                SourceState::Version(version) => {
                    conditions.set(SOURCE_FOUND, Truth::True, AS_EXPECTED, "");
                    status.source_version = Some(version.clone());
                }
                SourceState::Missing => {
                    let source = &propagation.spec.source;
                    let words = format!("{:?} {}/{} does not exist", source.kind, source.namespace, source.name);
                    conditions.set(SOURCE_FOUND, Truth::False, "SourceMissing", words);
                    if propagation.spec.on_source_missing == OnSourceMissing::Delete {
                        status.source_version = None;
                    }
                }
                SourceState::KeysMissing(keys) => {
                    let words = format!("the source has no key {}", keys.join(", "));
                    conditions.set(SOURCE_FOUND, Truth::False, "KeyMissing", words);
                }
            }
            if *keeps {
                conditions.set(APPLIED, Truth::Unknown, "NothingToApply", "");
            } else if failed.is_empty() && done.not_pruned == 0 {
                conditions.set(APPLIED, Truth::True, AS_EXPECTED, "");
            } else if failed.is_empty() {
                let words = format!("{} copies that no longer belong could not be deleted", done.not_pruned);
                conditions.set(APPLIED, Truth::False, "PruneFailed", words);
            } else {
                conditions.set(APPLIED, Truth::False, reason(&failed), words(&failed, status.targets, &done.policies));
            }
            status.failed = failed
                .into_iter()
                .take(SHOWN)
                .map(|(namespace, reason)| Failed { namespace: namespace.to_owned(), reason })
                .collect();
        }
    }
    status.conditions = conditions.with_ready();
    status
}

fn failed<'a>(targets: &'a Targets, done: &'a Done) -> BTreeMap<&'a str, FailedReason> {
    let absent = targets.absent.iter().map(|namespace| (namespace.as_str(), FailedReason::NamespaceNotFound));
    absent.chain(done.failed.iter().map(|(namespace, reason)| (namespace.as_str(), *reason))).collect()
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

fn words(failed: &BTreeMap<&str, FailedReason>, targets: i32, policies: &BTreeMap<String, String>) -> String {
    let named: Vec<String> =
        failed.iter().take(NAMED).map(|(namespace, reason)| format!("{namespace} ({reason:?})")).collect();
    let more = failed.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let policy = policies.values().next().map(|words| format!("; {words}")).unwrap_or_default();
    format!("{} of {targets} targets have no up-to-date copy: {}{more}{policy}", failed.len(), named.join(", "))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
