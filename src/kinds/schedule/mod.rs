//! `ScaleSchedule`: one workload, scaled by the clock.
//!
//! [`types`] is the resource, [`plan`] decides, [`target`] reads and writes the scale, [`report`] makes the status; the stages
//! below are their table of contents.
//!
//! What was there before a window is kept in the status, and written there before the target is scaled for the first time: a write that
//! rests on the version it was decided on, so that a pass over a stale object never takes the number of a window for what it was before.
//! Outside of windows the target is its owner's.

pub(super) mod plan;
mod report;
mod target;
mod types;
mod v1beta1;

#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, Resource, ResourceExt};

pub use types::{Day, ScaleSchedule, ScaleScheduleSpec, ScaleScheduleStatus, TargetRef, Window};
pub use v1beta1::{ScaleSchedule as ScaleScheduleV1Beta1, ScheduleConversion};

use self::{
    plan::{Observed, Plan, Valid, Windows},
    report::{Done, refused},
    target::Target,
};
use crate::{
    kinds::{
        access,
        reaching::{Reaching, out_of_reach},
    },
    reconcile::{
        apply::field_manager,
        conditions::Conditions,
        controller::{Controller, RequeueAfter},
        finalizer,
        stages::{End, Error, Outcome, Pass, Staged, Stages, Trouble},
    },
    replica::term::Access,
};

/// Holds a schedule until what it saved is restored.
const FINALIZER: &str = "leasehold.dev/scaleschedule";
/// How long another writer's change may stay during a window, and how soon a target that is not there is looked for again.
const LOOK: Duration = Duration::from_secs(60);
/// How soon a schedule is looked at again that changed while its finalizer was to be written: not every change makes it due.
const CHANGED: Duration = Duration::from_secs(1);
/// How long a deletion waits for a restoration that is refused.
const PATIENCE: SignedDuration = SignedDuration::from_mins(10);

/// Reconciles ScaleSchedules.
pub type ScheduleReconciler = Staged<Schedule>;

/// The stages of a ScaleSchedule.
#[derive(Clone, Default)]
pub struct Schedule {
    reach: Reaching,
}

impl Schedule {
    /// For schedules that reach so far.
    pub fn within(reach: Reaching) -> Self {
        Self { reach }
    }
}

/// Why a pass could not read what it needs.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server could not be asked for the resource of the target.
    #[error("failed to discover the target")]
    Discover(#[source] kube::Error),
    /// The scale, or the autoscalers, could not be read.
    #[error("failed to read the scale of the target")]
    Read(#[source] kube::Error),
}

/// Why a pass could not do what it planned.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The target could not be scaled.
    #[error("failed to scale the target")]
    Scale(#[source] kube::Error),
    /// The finalizer could not be added or removed.
    #[error("failed to write the finalizer")]
    WriteFinalizer(#[source] kube::Error),
    /// The number to restore could not be stored, so nothing was scaled.
    #[error("failed to write the status")]
    WriteStatus(#[source] kube::Error),
}

impl Stages for Schedule {
    type Object = ScaleSchedule;
    type Status = ScaleScheduleStatus;
    type Watched = ();
    type Valid = Valid;
    type Observed = Observed;
    type Plan = Plan;
    type Done = Done;
    type ObserveError = ObserveError;
    type ApplyError = ApplyError;

    fn api(client: Client, namespace: &str) -> Api<ScaleSchedule> {
        Api::namespaced(client, namespace)
    }

    /// Of targets nothing: the platform grants what may be scaled, and a schedule that asks for more says so in its status.
    fn needs(&self) -> Vec<Access> {
        [
            access("leasehold.dev", "scaleschedules", &["patch"]),
            access("autoscaling", "horizontalpodautoscalers", &["list"]),
        ]
        .concat()
    }

    fn watch(&self, controller: Controller<ScaleSchedule>, _: Client) -> (Controller<ScaleSchedule>, ()) {
        (controller.sweep_at(self.reach.changes()), ())
    }

    fn validate(&self, schedule: &ScaleSchedule) -> Result<Valid, Trouble> {
        plan::validate(&schedule.spec).map_err(Trouble::invalid)
    }

    async fn observe(&self, pass: &Pass<Self>, valid: &Valid) -> Result<Observed, End<Done, ObserveError>> {
        let reaches = self.reach.known()?.namespace(pass.namespace());
        reaches.map_err(|why| out_of_reach(format!("metadata.namespace: {why}")))?;
        let now = pass.now();
        let (windows, saved) = (plan::windows(now, valid), saved(pass.object()));
        if windows.active.is_none() && saved.is_none() {
            return Ok(Observed::Rests { now, windows });
        }
        let found = target::find(&pass.client(), pass.namespace(), valid).await.map_err(ObserveError::Discover)?;
        let target = found.map_err(|trouble| End::reported(Outcome::Invalid(trouble), Some(LOOK)))?;
        let (what, soon) = (target.what.clone(), soon(now, windows.next));
        let autoscaler = target::autoscaler(&pass.client(), pass.namespace(), valid).await;
        if let Some(autoscaler) = autoscaler.map_err(ObserveError::Read)? {
            let message = format!("HorizontalPodAutoscaler {autoscaler} scales {what}: delete one of the two");
            return Err(End::reported(hindered(windows, Trouble::new("Conflict", message)), soon));
        }
        match target::replicas(&target).await {
            Ok(Some(found)) => {
                Ok(Observed::Scales { now, windows, saved, is_held: is_held(pass.object()), found, target })
            }
            Ok(None) => {
                let missing = Trouble::new("TargetMissing", format!("{what} does not exist"));
                Err(End::reported(hindered(windows, missing), soon))
            }
            Err(error) => {
                let trouble = refused("read the scale of", &what, &error);
                Err(End::failed(hindered(windows, trouble), ObserveError::Read(error)))
            }
        }
    }

    fn plan(&self, _: &Valid, observed: Observed) -> Plan {
        plan::plan(observed)
    }

    async fn apply(
        &self,
        pass: &Pass<Self>,
        _: &Valid,
        plan: Plan,
    ) -> Result<(Done, RequeueAfter), End<Done, ApplyError>> {
        match plan {
            Plan::Rest { now, windows } => {
                let after = until(now, windows.next);
                Ok((Done::Rests(windows), after))
            }
            // The event of this write makes the schedule due again, and then the finalizer is there.
            Plan::AddFinalizer => {
                let added = finalizer::add(&pass.api(), pass.object(), FINALIZER).await;
                Err(End::unreported(retry(added.map_err(ApplyError::WriteFinalizer)?)))
            }
            Plan::Hold { now, windows, target, found, replicas } => {
                // What is there now is stored before it is changed, unless a number is stored already.
                let holds = Outcome::Done(Done::Holds { windows: windows.clone(), found });
                pass.report(&holds).await.map_err(ApplyError::WriteStatus)?;
                let soon = soon(now, windows.next);
                scale(pass, &target, (found, replicas)).await.map_err(|error| unscaled(windows, &target, error))?;
                Err(End::unreported(soon))
            }
            Plan::Restore { now, windows, target, found, replicas } => {
                if let Err(error) = scale(pass, &target, (found, replicas)).await {
                    return Err(unscaled(windows, &target, error));
                }
                let after = until(now, windows.next);
                Ok((Done::Rests(windows), after))
            }
        }
    }

    fn report(
        schedule: &ScaleSchedule,
        done: &Done,
        status: &mut ScaleScheduleStatus,
        conditions: &mut Conditions<'_>,
    ) {
        report::report(schedule, done, status, conditions);
    }

    /// What was saved stays until it is restored.
    fn carry_over(current: &ScaleScheduleStatus) -> ScaleScheduleStatus {
        ScaleScheduleStatus { saved_replicas: current.saved_replicas, ..ScaleScheduleStatus::default() }
    }

    /// Restores what was saved, then lets the schedule go; at the latest after [`PATIENCE`].
    async fn finalize(&self, pass: &Pass<Self>) -> Result<RequeueAfter, Error<ObserveError, ApplyError>> {
        let schedule = pass.object();
        if !is_held(schedule) {
            return Ok(None);
        }
        if let (Some(saved), Ok(valid)) = (saved(schedule), plan::validate(&schedule.spec))
            && let Err(error) = restore(pass, &valid, saved).await
        {
            let deleted = schedule.meta().deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            if pass.now().duration_since(deleted) < PATIENCE {
                return Err(error);
            }
            let note = format!("{} keeps the replicas of the last window: {error}", valid.name);
            pass.warning("FinalizeBlocked", &note);
        }
        let removed = finalizer::remove(&pass.api(), schedule, FINALIZER).await;
        removed.map(retry).map_err(|error| Error::Apply(ApplyError::WriteFinalizer(error)))
    }
}

/// A target that is gone, or that an autoscaler scales, has nothing to be restored.
async fn restore(pass: &Pass<Schedule>, valid: &Valid, saved: i32) -> Result<(), Error<ObserveError, ApplyError>> {
    let unread = |error| Error::Observe(ObserveError::Read(error));
    let found = target::find(&pass.client(), pass.namespace(), valid).await;
    let Ok(target) = found.map_err(|error| Error::Observe(ObserveError::Discover(error)))? else { return Ok(()) };
    if target::autoscaler(&pass.client(), pass.namespace(), valid).await.map_err(unread)?.is_some() {
        return Ok(());
    }
    let Some(found) = target::replicas(&target).await.map_err(unread)? else { return Ok(()) };
    scale(pass, &target, (found, saved)).await.map_err(|error| Error::Apply(ApplyError::Scale(error)))
}

async fn scale(pass: &Pass<Schedule>, target: &Target, (found, wanted): (i32, i32)) -> Result<(), kube::Error> {
    if found == wanted {
        return Ok(());
    }
    if target::scale(target, wanted, &field_manager(&pass.term().kind().kind)).await? {
        let Target { what, .. } = target;
        tracing::info!(schedule = pass.object().name_any(), target = what, from = found, to = wanted, "scaled");
        pass.normal("Scaled", &format!("{what} scaled from {found} to {wanted}"));
    }
    Ok(())
}

fn hindered(windows: Windows, trouble: Trouble) -> Outcome<Done> {
    Outcome::Done(Done::Hindered(windows, trouble))
}

fn unscaled(windows: Windows, target: &Target, error: kube::Error) -> End<Done, ApplyError> {
    let trouble = refused("scale", &target.what, &error);
    End::failed(hindered(windows, trouble), ApplyError::Scale(error))
}

fn saved(schedule: &ScaleSchedule) -> Option<i32> {
    schedule.status.as_ref().and_then(|status| status.saved_replicas)
}

fn is_held(schedule: &ScaleSchedule) -> bool {
    schedule.finalizers().iter().any(|it| it == FINALIZER)
}

/// At the next transition, and not much before a change by another writer is noticed.
fn soon(now: Timestamp, next: Option<Timestamp>) -> RequeueAfter {
    Some(until(now, next).map_or(LOOK, |wait| wait.min(LOOK)))
}

fn until(now: Timestamp, next: Option<Timestamp>) -> RequeueAfter {
    next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default())
}

fn retry(written: finalizer::Written) -> RequeueAfter {
    (written == finalizer::Written::Changed).then_some(CHANGED)
}
