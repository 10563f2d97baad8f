//! Makes the status of a pass. No IO, no clock.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::Error;

use super::{ExpiryPolicy, ExpiryPolicyStatus, plan::Plan};
use crate::{
    reconcile::conditions::{APPLIED, AS_EXPECTED, Conditions, SPEC_VALID, Truth},
    replica::problem::describe,
};

/// Objects that a message names.
const NAMED: usize = 3;

/// A refusal: reason and words.
pub(super) type Refusal = (&'static str, String);

/// What a pass came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The spec means nothing.
    SpecInvalid { reason: &'static str, words: String },
    /// The objects could not be listed.
    Unlisted(Refusal),
    /// The plan was carried out, as far as nothing was refused.
    Done { plan: Plan, deleted: usize, refused: Option<Refusal> },
}

impl Outcome {
    /// The API server refused `verb`, which was needed to know anything.
    pub(super) fn refused(verb: &str, plural: &str, namespace: &str, error: &Error) -> Self {
        Self::Unlisted(Self::words_of(verb, plural, namespace, error))
    }

    /// Says which verb was refused on what.
    pub(super) fn words_of(verb: &str, plural: &str, namespace: &str, error: &Error) -> Refusal {
        match error {
            Error::Api(status) if status.is_forbidden() => {
                ("Forbidden", format!("may not {verb} {plural} in namespace {namespace}: {}", status.message))
            }
            Error::Api(status) => {
                ("Refused", format!("{verb} {plural} in namespace {namespace}: {} {}", status.code, status.reason))
            }
            other => ("Failed", format!("{verb} {plural} in namespace {namespace}: {}", describe(other))),
        }
    }

    /// Objects deleted.
    pub(super) fn deleted(&self) -> usize {
        match self {
            Self::Done { deleted, .. } => *deleted,
            Self::SpecInvalid { .. } | Self::Unlisted(_) => 0,
        }
    }
}

/// The status after a pass, given the one before, whose count of deletions goes on.
pub(super) fn status(
    current: Option<&ExpiryPolicyStatus>,
    policy: &ExpiryPolicy,
    outcome: &Outcome,
    now: Timestamp,
) -> ExpiryPolicyStatus {
    let generation = policy.metadata.generation;
    let previous = current.map(|status| &*status.conditions).unwrap_or_default();
    let mut conditions = Conditions::new(previous, generation, now);
    let mut status = ExpiryPolicyStatus {
        observed_generation: generation,
        deleted_total: current.map_or(0, |status| status.deleted_total),
        shard: current.and_then(|status| status.shard.clone()),
        ..ExpiryPolicyStatus::default()
    };
    match outcome {
        Outcome::SpecInvalid { reason, words } => {
            conditions.set(SPEC_VALID, Truth::False, reason, words);
            conditions.set(APPLIED, Truth::Unknown, reason, "");
        }
        Outcome::Unlisted((reason, words)) => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            conditions.set(APPLIED, Truth::False, reason, words);
        }
        Outcome::Done { plan, deleted, refused } => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            status.matched = count(plan.matched.saturating_sub(*deleted));
            status.expired = count(plan.expired.saturating_sub(*deleted));
            status.deleted_total += i64::from(count(*deleted));
            status.next_expiry = plan.next.map(Time);
            match refused {
                Some((reason, words)) => conditions.set(APPLIED, Truth::False, reason, words),
                None if !plan.unreadable.is_empty() => {
                    let words = unreadable(policy, &plan.unreadable);
                    conditions.set(APPLIED, Truth::False, "AnnotationInvalid", words);
                }
                None if policy.spec.dry_run => {
                    let words = format!("{} would be deleted", status.expired);
                    conditions.set(APPLIED, Truth::True, "DryRun", words);
                }
                None => conditions.set(APPLIED, Truth::True, AS_EXPECTED, ""),
            }
        }
    }
    status.conditions = conditions.with_ready();
    status
}

fn unreadable(policy: &ExpiryPolicy, names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let names = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    format!("annotation {} is neither a time nor a duration on {names}{more}", policy.spec.annotation)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
