//! Makes the status of a pass. No IO, no clock.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::Error;

use super::{ScaleSchedule, ScaleScheduleStatus, plan::Plan};
use crate::{
    reconcile::conditions::{APPLIED, AS_EXPECTED, Conditions, SPEC_VALID, Truth},
    replica::problem::describe,
};

/// A refusal: reason and words.
pub(super) type Refusal = (&'static str, String);

/// What a pass came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The spec means nothing.
    SpecInvalid(Refusal),
    /// The target is not scaled, for this reason.
    Hindered(Plan, Refusal),
    /// A window is active; that many replicas were there before it, unless more is known.
    Holds { plan: Plan, found: i32 },
    /// No window is active, and nothing is to be restored any more.
    Rests(Plan),
}

/// Says what was refused.
pub(super) fn refusal(verb: &str, name: &str, error: &Error) -> Refusal {
    match error {
        Error::Api(status) if status.is_forbidden() => {
            ("Forbidden", format!("may not {verb} {name}: {}", status.message))
        }
        Error::Api(status) => ("Refused", format!("{verb} {name}: {} {}", status.code, status.message)),
        other => ("Failed", format!("{verb} {name}: {}", describe(other))),
    }
}

/// The status after a pass, given the one before: what was saved stays until it is restored.
pub(super) fn status(
    current: Option<&ScaleScheduleStatus>,
    schedule: &ScaleSchedule,
    outcome: &Outcome,
    now: Timestamp,
) -> ScaleScheduleStatus {
    let generation = schedule.metadata.generation;
    let previous = current.map(|status| &*status.conditions).unwrap_or_default();
    let saved = current.and_then(|status| status.saved_replicas);
    let mut conditions = Conditions::new(previous, generation, now);
    let mut status = ScaleScheduleStatus {
        observed_generation: generation,
        saved_replicas: saved,
        shard: current.and_then(|status| status.shard.clone()),
        ..ScaleScheduleStatus::default()
    };
    let plan = match outcome {
        Outcome::SpecInvalid((reason, words)) => {
            conditions.set(SPEC_VALID, Truth::False, reason, words);
            conditions.set(APPLIED, Truth::Unknown, reason, "");
            None
        }
        Outcome::Hindered(plan, (reason, words)) => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            conditions.set(APPLIED, Truth::False, reason, words);
            Some(plan)
        }
        Outcome::Holds { plan, found } => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            conditions.set(APPLIED, Truth::True, AS_EXPECTED, "");
            status.saved_replicas = saved.or(Some(*found));
            status.desired_replicas = plan.active.as_ref().map(|active| active.replicas);
            Some(plan)
        }
        Outcome::Rests(plan) => {
            conditions.set(SPEC_VALID, Truth::True, AS_EXPECTED, "");
            let suspended = schedule.spec.suspend;
            conditions.set(APPLIED, Truth::True, if suspended { "Suspended" } else { AS_EXPECTED }, "");
            status.saved_replicas = None;
            Some(plan)
        }
    };
    if let Some(plan) = plan {
        status.active_window = plan.active.as_ref().map(|active| active.label.clone());
        status.next_transition = plan.next.map(Time);
    }
    status.conditions = conditions.with_ready();
    status
}
