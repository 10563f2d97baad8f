//! Makes the status of a pass. No IO, no clock.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;

use super::{ExpiryPolicy, ExpiryPolicyStatus, plan::Plan};
use crate::reconcile::{
    conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions},
    stages::Trouble,
};

/// Objects that a message names.
const NAMED: usize = 3;

/// A plan that was carried out, as far as nothing was refused.
#[derive(Debug)]
pub struct Done {
    pub(super) plan: Plan,
    pub(super) deleted: usize,
    pub(super) refused: Option<Trouble>,
}

/// Says which verb was refused on what. Of other refusals only the reason: a message may quote values of the object.
pub(super) fn refused(verb: &str, plural: &str, namespace: &str, error: &Error) -> Trouble {
    Trouble::refused(&format!("{verb} {plural} in namespace {namespace}"), error, |status| &status.reason)
}

/// The status after a plan was carried out.
pub(super) fn report(
    policy: &ExpiryPolicy,
    done: &Done,
    status: &mut ExpiryPolicyStatus,
    conditions: &mut Conditions<'_>,
) {
    let Done { plan, deleted, refused } = done;
    status.matched = count(plan.matched.saturating_sub(*deleted));
    status.expired = count(plan.expired.saturating_sub(*deleted));
    status.deleted_total += i64::from(count(*deleted));
    status.next_expiry = plan.next.map(Time);
    match refused {
        Some(Trouble { reason, message }) => conditions.set(APPLIED, ConditionStatus::False, reason, message),
        None if !plan.unreadable.is_empty() => {
            let message = unreadable(policy, &plan.unreadable);
            conditions.set(APPLIED, ConditionStatus::False, "AnnotationInvalid", message);
        }
        None if policy.spec.dry_run => {
            let message = format!("{} would be deleted", status.expired);
            conditions.set(APPLIED, ConditionStatus::True, "DryRun", message);
        }
        None => conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, ""),
    }
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
