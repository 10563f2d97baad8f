//! Makes the status of a pass. No IO, no clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;

use super::{ScaleSchedule, ScaleScheduleStatus, plan::Windows};
use crate::reconcile::{
    conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions},
    stages::Trouble,
};

/// How far it came.
#[derive(Debug)]
pub enum Done {
    /// The target is not scaled, for this reason.
    Hindered(Windows, Trouble),
    /// A window is active. So many replicas were there before it, unless a number is stored already.
    Holds { windows: Windows, found: i32 },
    /// No window is active, and nothing is to be restored any more.
    Rests(Windows),
}

/// Says what was refused.
pub(super) fn refused(verb: &str, what: &str, error: &Error) -> Trouble {
    Trouble::refused(&format!("{verb} {what}"), error, |status| &status.message)
}

/// The status after a pass: what was saved stays until it is restored.
pub(super) fn report(
    schedule: &ScaleSchedule,
    done: &Done,
    status: &mut ScaleScheduleStatus,
    conditions: &mut Conditions<'_>,
) {
    let windows = match done {
        Done::Hindered(windows, Trouble { reason, message }) => {
            conditions.set(APPLIED, ConditionStatus::False, reason, message);
            windows
        }
        Done::Holds { windows, found } => {
            conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, "");
            status.saved_replicas = status.saved_replicas.or(Some(*found));
            status.desired_replicas = windows.active.as_ref().map(|active| active.replicas);
            windows
        }
        Done::Rests(windows) => {
            let suspended = schedule.spec.suspend;
            conditions.set(APPLIED, ConditionStatus::True, if suspended { "Suspended" } else { AS_EXPECTED }, "");
            status.saved_replicas = None;
            windows
        }
    };
    status.active_window = windows.active.as_ref().map(|active| active.label.clone());
    status.next_transition = windows.next.map(Time);
}
