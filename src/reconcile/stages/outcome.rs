//! What a pass came to, and the status that says so. No IO, no clock.

use k8s_openapi::jiff::Timestamp;
use kube::{Error, Resource, core::Status};

use super::Stages;
use crate::{
    reconcile::{
        asked,
        conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions, SPEC_VALID},
        controller::RequeueAfter,
        status::{Reported, Stamped},
    },
    replica::problem::describe,
};

/// The reason of a spec that must be edited.
const SPEC_INVALID: &str = "SpecInvalid";

/// What stands in the way, as a condition says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The reason of the condition: a fixed word in CamelCase.
    pub reason: &'static str,
    /// Its message, for people.
    pub message: String,
}

impl Trouble {
    /// With a reason and a message.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A spec that must be edited. The message names the field, what is wrong with it and what to write.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(SPEC_INVALID, message)
    }

    /// A request that failed. `request` says what it was, such as `list pods in namespace ns`. `detail` is what is shown of a
    /// refusal for another cause than a missing permission: its message may quote values, its reason does not.
    pub fn refused(request: &str, error: &Error, detail: impl Fn(&Status) -> &str) -> Self {
        match error {
            Error::Api(status) if status.is_forbidden() => {
                Self::new("Forbidden", format!("may not {request}: {}", status.message))
            }
            Error::Api(status) => Self::new("Refused", format!("{request}: {} {}", status.code, detail(status))),
            other => Self::new("Failed", format!("{request}: {}", describe(other))),
        }
    }
}

/// What a pass came to.
#[derive(Clone, Debug)]
pub enum Outcome<D> {
    /// The object says nothing that could be carried out.
    Invalid(Trouble),
    /// What the object says cannot be carried out now, and nothing was tried.
    Blocked(Trouble),
    /// An annotation pauses the object: nothing was tried.
    Paused,
    /// It was carried out, as far as the kind says.
    Done(D),
}

/// The end of a pass before its last stage: what is reported, and what follows.
#[derive(Debug)]
pub struct End<D, E> {
    pub(in crate::reconcile) outcome: Option<Outcome<D>>,
    pub(in crate::reconcile) then: Result<RequeueAfter, E>,
}

impl<D, E> End<D, E> {
    /// Reports the outcome, and makes the object due after that time.
    pub fn reported(outcome: Outcome<D>, after: RequeueAfter) -> Self {
        Self { outcome: Some(outcome), then: Ok(after) }
    }

    /// Reports the outcome, and tries again with back-off.
    pub fn failed(outcome: Outcome<D>, error: E) -> Self {
        Self { outcome: Some(outcome), then: Err(error) }
    }

    /// Reports nothing, and makes the object due after that time.
    pub fn unreported(after: RequeueAfter) -> Self {
        Self { outcome: None, then: Ok(after) }
    }
}

/// Reports nothing, and tries again with back-off.
impl<D, E> From<E> for End<D, E> {
    fn from(error: E) -> Self {
        Self { outcome: None, then: Err(error) }
    }
}

/// The status after a pass, given the one before.
pub fn status<S: Stages>(
    current: Option<&S::Status>,
    object: &S::Object,
    outcome: &Outcome<S::Done>,
    now: Timestamp,
) -> S::Status {
    let generation = object.meta().generation;
    let previous = current.map(Stamped::conditions).unwrap_or_default();
    let mut conditions = Conditions::new(previous, generation, now);
    let mut status = current.map(S::carry_over).unwrap_or_default();
    match outcome {
        Outcome::Paused => {
            // What was reported before is about an older spec, and stays.
            let seen = previous.iter().find(|it| it.type_ == SPEC_VALID).and_then(|it| it.observed_generation);
            let mut status = current.cloned().unwrap_or_default();
            conditions.pause(asked::paused(object.meta()));
            status.set(seen, conditions.with_ready());
            return status;
        }
        Outcome::Invalid(Trouble { reason, message }) => {
            conditions.set(SPEC_VALID, ConditionStatus::False, reason, message);
            conditions.set(APPLIED, ConditionStatus::Unknown, reason, "");
        }
        Outcome::Blocked(Trouble { reason, message }) => {
            conditions.set(SPEC_VALID, ConditionStatus::True, AS_EXPECTED, "");
            conditions.set(APPLIED, ConditionStatus::False, reason, message);
        }
        Outcome::Done(done) => {
            conditions.set(SPEC_VALID, ConditionStatus::True, AS_EXPECTED, "");
            S::report(object, done, &mut status, &mut conditions);
        }
    }
    status.set(generation, conditions.with_ready());
    status
}
