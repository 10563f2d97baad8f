//! `ExpiryPolicy`: objects of one kind in one namespace, deleted when they have outlived their time.
//!
//! [`types`] is the resource, [`plan`] decides, [`target`] reads and deletes, [`report`] makes the status; the reconcile below is their table of contents.
//!
//! Targets are listed in each pass and not watched: a pass is due when the next object expires, and often enough that none appears and expires in between.
//! So a policy costs one metadata list now and then, and no memory, whatever it applies to.

pub(super) mod plan;
mod report;
mod target;
mod types;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kube::{Api, Resource, ResourceExt};

pub use types::{DeletePropagation, ExpiryPolicy, ExpiryPolicySpec, ExpiryPolicyStatus, From, Protect, Target};

use self::report::Outcome;
use crate::{
    kinds::{
        access,
        reach::OUT_OF_REACH,
        reaching::{AGAIN, Reaching},
    },
    reconcile::{
        clock::{Clock, WallClock},
        controller::{Again, Controller},
        events::Events,
        seen::Seen,
        status::Statuses,
    },
    replica::term::{Access, BoxError, Reconciler, Standby, Term},
};

/// How soon a target kind that is not served is looked for again.
const UNKNOWN: Duration = Duration::from_secs(30);

/// Reconciles ExpiryPolicies.
#[derive(Clone)]
pub struct ExpiryReconciler {
    clock: Arc<dyn Clock>,
    reach: Reaching,
}

impl ExpiryReconciler {
    /// Compares the times of objects with `clock`, which should agree with the API server's.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, reach: Reaching::default() }
    }

    /// Sets how far policies reach.
    #[must_use]
    pub fn within(self, reach: Reaching) -> Self {
        Self { reach, ..self }
    }
}

impl Default for ExpiryReconciler {
    fn default() -> Self {
        Self::new(Arc::new(WallClock))
    }
}

impl ExpiryReconciler {
    fn work(&self, standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
        let (clock, reach) = (Arc::clone(&self.clock), self.reach.clone());
        let controller = Controller::new(Api::<ExpiryPolicy>::all(standby.client()), ()).sweep_at(reach.changes());
        let seen = controller.seen();
        let begin = |term: Term| {
            let pass = Pass::new(term, seen, clock, reach);
            move |policy| pass.clone().reconcile(policy)
        };
        controller.run(standby, begin).map(Ok).boxed()
    }
}

impl Reconciler for ExpiryReconciler {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(self.work(standby))
    }

    /// Of the policies only: what may be deleted is between whoever installs this and whoever writes policies,
    /// and a policy that asks for more says so in its status.
    fn needs(&self) -> Vec<Access> {
        [
            access("leasehold.dev", "expirypolicies", &["get"]),
            access("leasehold.dev", "expirypolicies/status", &["update"]),
        ]
        .concat()
    }
}

/// Why a pass is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to discover the target")]
    Discover(#[source] kube::Error),
    #[error("failed to list the target")]
    List(#[source] kube::Error),
    #[error("failed to delete expired objects")]
    Delete(#[source] kube::Error),
    #[error("failed to write the status after {deleted} deletions")]
    WriteStatus { deleted: usize, source: kube::Error },
}

/// What every pass over an ExpiryPolicy needs.
#[derive(Clone)]
struct Pass {
    term: Term,
    events: Arc<Events>,
    statuses: Arc<Statuses<ExpiryPolicy>>,
    clock: Arc<dyn Clock>,
    reach: Reaching,
}

impl Pass {
    fn new(term: Term, seen: Seen<ExpiryPolicy>, clock: Arc<dyn Clock>, reach: Reaching) -> Self {
        let events = Arc::new(Events::new(&term));
        let statuses = Arc::new(Statuses::new(term.clone(), Arc::clone(&events), seen));
        Self { term, events, statuses, clock, reach }
    }

    async fn reconcile(self, policy: Arc<ExpiryPolicy>) -> Result<Again, Error> {
        if policy.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let namespace = policy.namespace().unwrap_or_default();

        // no client required
        let valid = match plan::validate(&policy.spec) {
            Ok(valid) => valid,
            Err(wrong) => {
                self.report(&policy, &Outcome::SpecInvalid { reason: "SpecInvalid", words: wrong }).await?;
                return Ok(None);
            }
        };
        let Some(reach) = self.reach.now() else { return Ok(Some(AGAIN)) };
        if let Err(words) = valid.within(reach, &namespace) {
            self.report(&policy, &Outcome::SpecInvalid { reason: OUT_OF_REACH, words }).await?;
            return Ok(None);
        }

        // client required
        let client = self.term.client();
        let resource = match target::discover(&client, &valid.target).await.map_err(Error::Discover)? {
            Ok(resource) => resource,
            Err(target::Unusable { reason, words }) => {
                self.report(&policy, &Outcome::SpecInvalid { reason, words }).await?;
                return Ok(Some(UNKNOWN));
            }
        };
        let api = Api::namespaced_with(client, &namespace, &resource);
        let objects = match target::list(&api, &valid).await {
            Ok(objects) => objects,
            Err(error) => {
                let outcome = Outcome::refused("list", &resource.plural, &namespace, &error);
                self.report(&policy, &outcome).await?;
                return Err(Error::List(error));
            }
        };

        // no client required
        let plan = plan::plan(self.clock.now(), &valid, objects);

        // client required
        let done = target::delete_all(&api, &valid, &plan.delete, &self.term).await;
        self.tell(&policy, &resource.plural, &done.deleted).await;
        let again = if done.left() { plan.again.min(plan::RUNS) } else { plan.again };
        let refused = done.error.as_ref().map(|error| Outcome::words_of("delete", &resource.plural, &namespace, error));
        self.report(&policy, &Outcome::Done { plan, deleted: done.deleted.len(), refused }).await?;
        done.error.map_or(Ok(Some(again)), |error| Err(Error::Delete(error)))
    }

    async fn report(&self, policy: &ExpiryPolicy, outcome: &Outcome) -> Result<(), Error> {
        let now = self.clock.now();
        let next = |current: Option<&ExpiryPolicyStatus>| report::status(current, policy, outcome, now);
        let api = Api::<ExpiryPolicy>::namespaced(self.term.client(), &policy.namespace().unwrap_or_default());
        let failed = |source| Error::WriteStatus { deleted: outcome.deleted(), source };
        self.statuses.write(&api, policy, next).await.map_err(failed)
    }

    async fn tell(&self, policy: &ExpiryPolicy, plural: &str, deleted: &[String]) {
        if deleted.is_empty() {
            return;
        }
        let note = format!("deleted {} expired {plural}: {}", deleted.len(), deleted.join(", "));
        tracing::info!(namespace = policy.namespace(), name = policy.name_any(), "{note}");
        self.events.normal(&policy.object_ref(&()), "Expired", &note).await;
    }
}
