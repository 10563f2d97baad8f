//! `ScaleSchedule`: one workload, scaled by the clock.
//!
//! [`types`] is the resource, [`plan`] decides, [`target`] reads and writes the scale, [`report`] makes the status; the reconcile below is their table of contents.
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

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, Resource, ResourceExt, core::DynamicObject};

pub use types::{Day, ScaleSchedule, ScaleScheduleSpec, ScaleScheduleStatus, TargetRef, Window};
pub use v1beta1::{ScaleSchedule as ScaleScheduleV1Beta1, ScheduleConversion};

use self::{
    plan::{Plan, Valid},
    report::{Outcome, refusal},
};
use crate::{
    kinds::{
        access,
        reach::OUT_OF_REACH,
        reaching::{AGAIN, Reaching},
    },
    reconcile::{
        apply::field_manager,
        clock::{Clock, WallClock},
        controller::{Again, Controller},
        events::Events,
        finalizer,
        input::ObjectName,
        seen::Seen,
        status::Statuses,
    },
    replica::term::{Access, BoxError, Reconciler, Standby, Term},
};

/// Holds a schedule until what it saved is restored.
const FINALIZER: &str = "leasehold.dev/scaleschedule";
/// How long a change by somebody else may stay during a window, and how soon a target that is not there is looked for again.
const LOOK: Duration = Duration::from_secs(60);
/// How soon a schedule is looked at again that changed while its finalizer was to be written: not every change makes it due.
const CHANGED: Duration = Duration::from_secs(1);
/// How long a deletion waits for a restoration that is refused.
const PATIENCE: SignedDuration = SignedDuration::from_mins(10);

/// Reconciles ScaleSchedules.
#[derive(Clone)]
pub struct ScheduleReconciler {
    clock: Arc<dyn Clock>,
    reach: Reaching,
}

impl ScheduleReconciler {
    /// Reads the time from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, reach: Reaching::default() }
    }

    /// Sets how far schedules reach.
    #[must_use]
    pub fn within(self, reach: Reaching) -> Self {
        Self { reach, ..self }
    }

    fn work(&self, standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
        let (clock, reach) = (Arc::clone(&self.clock), self.reach.clone());
        let controller = Controller::new(Api::<ScaleSchedule>::all(standby.client()), ()).sweep_at(reach.changes());
        let seen = controller.seen();
        let begin = |term: Term| {
            let pass = Pass::new(term, seen, clock, reach);
            move |schedule| pass.clone().reconcile(schedule)
        };
        controller.run(standby, begin).map(Ok).boxed()
    }
}

impl Default for ScheduleReconciler {
    fn default() -> Self {
        Self::new(Arc::new(WallClock))
    }
}

impl Reconciler for ScheduleReconciler {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(self.work(standby))
    }

    /// Of the schedules, and of what else may scale: what may be scaled is between whoever installs this and whoever writes
    /// schedules, and one that asks for more says so in its status.
    fn needs(&self) -> Vec<Access> {
        [
            access("leasehold.dev", "scaleschedules", &["get", "patch"]),
            access("leasehold.dev", "scaleschedules/status", &["update"]),
            access("autoscaling", "horizontalpodautoscalers", &["list"]),
        ]
        .concat()
    }
}

/// Why a pass is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to discover the target")]
    Discover(#[source] kube::Error),
    #[error("failed to read the scale of the target")]
    Read(#[source] kube::Error),
    #[error("failed to scale the target")]
    Scale(#[source] kube::Error),
    #[error("failed to write the finalizer")]
    WriteFinalizer(#[source] kube::Error),
    #[error("failed to write the status")]
    WriteStatus(#[source] kube::Error),
}

/// What every pass over a ScaleSchedule needs.
#[derive(Clone)]
struct Pass {
    term: Term,
    events: Arc<Events>,
    statuses: Arc<Statuses<ScaleSchedule>>,
    clock: Arc<dyn Clock>,
    reach: Reaching,
}

impl Pass {
    fn new(term: Term, seen: Seen<ScaleSchedule>, clock: Arc<dyn Clock>, reach: Reaching) -> Self {
        let events = Arc::new(Events::new(&term));
        let statuses = Arc::new(Statuses::new(term.clone(), Arc::clone(&events), seen));
        Self { term, events, statuses, clock, reach }
    }

    async fn reconcile(self, schedule: Arc<ScaleSchedule>) -> Result<Again, Error> {
        if schedule.meta().deletion_timestamp.is_some() {
            return self.finish(&schedule).await;
        }

        // no client required
        let now = self.clock.now();
        let valid = match plan::validate(&schedule.spec) {
            Ok(valid) => valid,
            Err(wrong) => {
                self.report(&schedule, &Outcome::SpecInvalid(("SpecInvalid", wrong))).await?;
                return Ok(None);
            }
        };
        let Some(reach) = self.reach.now() else { return Ok(Some(AGAIN)) };
        if let Err(why) = reach.namespace(&schedule.namespace().unwrap_or_default()) {
            let wrong = (OUT_OF_REACH, format!("metadata.namespace: {why}"));
            self.report(&schedule, &Outcome::SpecInvalid(wrong)).await?;
            return Ok(None);
        }
        let mut plan = plan::plan(now, &valid);
        if valid.suspend {
            plan = Plan { active: None, next: None };
        }
        let saved = schedule.status.as_ref().and_then(|status| status.saved_replicas);
        if plan.active.is_none() && saved.is_none() {
            let next = plan.next;
            self.report(&schedule, &Outcome::Rests(plan)).await?;
            return Ok(until(now, next));
        }

        // client required
        let (client, namespace) = (self.term.client(), schedule.namespace().unwrap_or_default());
        let api = match self.target(&client, &namespace, &valid).await? {
            Ok(api) => api,
            Err(outcome) => {
                self.report(&schedule, &outcome).await?;
                return Ok(Some(LOOK));
            }
        };
        let (what, soon) = (format!("{} {}/{}", valid.target.kind, namespace, valid.name), soon(now, plan.next));
        let autoscaler = target::autoscaler(&client, &namespace, &valid.target, &valid.name).await;
        if let Some(autoscaler) = autoscaler.map_err(Error::Read)? {
            let words = format!("HorizontalPodAutoscaler {autoscaler} scales {what}: delete one of the two");
            self.report(&schedule, &Outcome::Hindered(plan, ("Conflict", words))).await?;
            return Ok(soon);
        }
        let found = match target::replicas(&api, &valid.name).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                let missing = ("TargetMissing", format!("{what} does not exist"));
                self.report(&schedule, &Outcome::Hindered(plan, missing)).await?;
                return Ok(soon);
            }
            Err(error) => {
                self.report(&schedule, &Outcome::Hindered(plan, refusal("read the scale of", &what, &error))).await?;
                return Err(Error::Read(error));
            }
        };
        let wanted = match (&plan.active, saved) {
            (Some(active), _) => {
                if !schedule.finalizers().iter().any(|it| it == FINALIZER) {
                    // Its event makes the schedule due again, and then the finalizer is there.
                    let held = finalizer::add(&self.api(&schedule), &*schedule, FINALIZER).await;
                    return held.map_err(Error::WriteFinalizer).map(retry);
                }
                // What is there now is written down before it is changed, unless it was before.
                self.report(&schedule, &Outcome::Holds { plan: plan.clone(), found }).await?;
                active.replicas
            }
            (None, Some(saved)) => saved,
            (None, None) => found,
        };
        if found != wanted
            && let Err(error) = self.scale(&schedule, &api, &valid.name, &what, (found, wanted)).await
        {
            self.report(&schedule, &Outcome::Hindered(plan, refusal("scale", &what, &error))).await?;
            return Err(Error::Scale(error));
        }
        if plan.active.is_some() {
            return Ok(soon);
        }
        let next = plan.next;
        self.report(&schedule, &Outcome::Rests(plan)).await?;
        Ok(until(now, next))
    }

    /// Restores what was saved, then lets the schedule go; at the latest after [`PATIENCE`].
    async fn finish(&self, schedule: &ScaleSchedule) -> Result<Again, Error> {
        if !schedule.finalizers().iter().any(|it| it == FINALIZER) {
            return Ok(None);
        }
        let saved = schedule.status.as_ref().and_then(|status| status.saved_replicas);
        if let (Some(saved), Ok(valid)) = (saved, plan::validate(&schedule.spec))
            && let Err(error) = self.restore(schedule, &valid, saved).await
        {
            let deleted = schedule.meta().deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            if self.clock.now().duration_since(deleted) < PATIENCE {
                return Err(error);
            }
            let words = format!("{} keeps the replicas of the last window: {error}", valid.name);
            self.events.warning(&schedule.object_ref(&()), "FinalizeBlocked", &words).await;
        }
        let removed = finalizer::remove(&self.api(schedule), schedule, FINALIZER).await;
        removed.map_err(Error::WriteFinalizer).map(retry)
    }

    /// A target that is gone, or is scaled by somebody else, has nothing to be restored.
    async fn restore(&self, schedule: &ScaleSchedule, valid: &Valid, saved: i32) -> Result<(), Error> {
        let (client, namespace) = (self.term.client(), schedule.namespace().unwrap_or_default());
        let Ok(api) = self.target(&client, &namespace, valid).await? else { return Ok(()) };
        let autoscaler = target::autoscaler(&client, &namespace, &valid.target, &valid.name).await;
        if autoscaler.map_err(Error::Read)?.is_some() {
            return Ok(());
        }
        match target::replicas(&api, &valid.name).await.map_err(Error::Read)? {
            Some(found) if found != saved => {
                let what = format!("{} {}/{}", valid.target.kind, namespace, valid.name);
                self.scale(schedule, &api, &valid.name, &what, (found, saved)).await.map_err(Error::Scale)
            }
            _ => Ok(()),
        }
    }

    async fn target(
        &self,
        client: &Client,
        namespace: &str,
        valid: &Valid,
    ) -> Result<Result<Api<DynamicObject>, Outcome>, Error> {
        let found = target::discover(client, &valid.target).await.map_err(Error::Discover)?;
        Ok(match found {
            Ok(resource) => Ok(Api::namespaced_with(client.clone(), namespace, &resource)),
            Err(target::Unusable { reason, words }) => Err(Outcome::SpecInvalid((reason, words))),
        })
    }

    async fn scale(
        &self,
        schedule: &ScaleSchedule,
        api: &Api<DynamicObject>,
        name: &ObjectName,
        what: &str,
        (found, wanted): (i32, i32),
    ) -> Result<(), kube::Error> {
        if target::scale(api, name, wanted, &field_manager(&self.term.kind().kind)).await? {
            tracing::info!(schedule = schedule.name_any(), target = what, from = found, to = wanted, "scaled");
            let note = format!("{what} scaled from {found} to {wanted}");
            self.events.normal(&schedule.object_ref(&()), "Scaled", &note).await;
        }
        Ok(())
    }

    fn api(&self, schedule: &ScaleSchedule) -> Api<ScaleSchedule> {
        Api::namespaced(self.term.client(), &schedule.namespace().unwrap_or_default())
    }

    async fn report(&self, schedule: &ScaleSchedule, outcome: &Outcome) -> Result<(), Error> {
        let now = self.clock.now();
        let next = |current: Option<&ScaleScheduleStatus>| report::status(current, schedule, outcome, now);
        self.statuses.write(&self.api(schedule), schedule, next).await.map_err(Error::WriteStatus)
    }
}

/// At the next transition, and not much before a change by somebody else is noticed.
fn soon(now: Timestamp, next: Option<Timestamp>) -> Again {
    Some(until(now, next).map_or(LOOK, |wait| wait.min(LOOK)))
}

fn until(now: Timestamp, next: Option<Timestamp>) -> Again {
    next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default())
}

fn retry(written: finalizer::Written) -> Again {
    (written == finalizer::Written::Changed).then_some(CHANGED)
}
