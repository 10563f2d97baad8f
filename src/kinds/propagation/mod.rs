//! `Propagation`: one ConfigMap or Secret, kept alike in many namespaces.
//!
//! [`types`] is the resource, [`plan`] decides, [`observe`] reads, [`mod@write`] writes, [`report`] makes the status; the reconcile below is their table of contents.
//!
//! Memory: of namespaces their metadata is kept, of ConfigMaps and Secrets nothing. Their watches are metadata only and just say which
//! Propagation to look at (a copy bears the name of its source, so the name tells); what a pass needs it reads from the API server.

mod observe;
pub(super) mod plan;
mod report;
mod types;
mod watches;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{Api, Resource, ResourceExt, core::PartialObjectMeta, runtime::reflector::Store};

pub use types::{
    Failed, FailedReason, OnConflict, OnSourceMissing, Propagation, PropagationSpec, PropagationStatus, Source,
    SourceKind, Targets,
};

use self::{plan::Wanted, write::Done};
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
        status::Statuses,
    },
    replica::term::{Access, BoxError, Reconciler, Standby, Term},
};

/// Reconciles Propagations.
#[derive(Clone)]
pub struct PropagationReconciler {
    clock: Arc<dyn Clock>,
    reach: Reaching,
}

impl PropagationReconciler {
    /// Takes the times of transitions from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, reach: Reaching::default() }
    }

    /// Sets how far Propagations reach.
    #[must_use]
    pub fn within(self, reach: Reaching) -> Self {
        Self { reach, ..self }
    }
}

impl Default for PropagationReconciler {
    fn default() -> Self {
        Self::new(Arc::new(WallClock))
    }
}

impl PropagationReconciler {
    fn work(&self, standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
        let (clock, reach) = (Arc::clone(&self.clock), self.reach.clone());
        let client = standby.client();
        let controller = Controller::new(Api::<Propagation>::all(client.clone()), ());
        let seen = controller.seen();
        let (namespaces, namespace_changes) = watches::namespaces(seen.clone());
        let config_maps = watches::by_name::<ConfigMap>(SourceKind::ConfigMap, seen.clone());
        let secrets = watches::by_name::<Secret>(SourceKind::Secret, seen.clone());
        let controller = controller
            .watch(Api::all(client.clone()), namespace_changes)
            .watch(Api::all(client.clone()), config_maps)
            .watch(Api::all(client), secrets)
            .sweep_at(reach.changes());
        let begin = |term: Term| {
            let events = Arc::new(Events::new(&term));
            let statuses = Arc::new(Statuses::new(term.clone(), Arc::clone(&events), seen));
            let pass = Pass { events, statuses, clock, reach, namespaces, term };
            move |propagation| pass.clone().reconcile(propagation)
        };
        controller.run(standby, begin).map(Ok).boxed()
    }
}

impl Reconciler for PropagationReconciler {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(self.work(standby))
    }

    fn needs(&self) -> Vec<Access> {
        let copies = ["get", "list", "watch", "create", "patch", "delete"];
        [
            access("leasehold.dev", "propagations", &["get"]),
            access("leasehold.dev", "propagations/status", &["update"]),
            access("", "namespaces", &["list", "watch"]),
            access("", "configmaps", &copies),
            access("", "secrets", &copies),
        ]
        .concat()
    }
}

/// Why a pass is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read the source")]
    ReadSource(#[source] kube::Error),
    #[error("failed to list the copies")]
    ListCopies(#[source] kube::Error),
    #[error("failed to write the status")]
    WriteStatus(#[source] kube::Error),
    #[error("{count} copies could not be written or deleted: {cause}")]
    Incomplete { count: usize, cause: String },
}

/// What every pass over a Propagation needs.
#[derive(Clone)]
struct Pass {
    term: Term,
    events: Arc<Events>,
    statuses: Arc<Statuses<Propagation>>,
    clock: Arc<dyn Clock>,
    reach: Reaching,
    namespaces: Store<PartialObjectMeta<Namespace>>,
}

impl Pass {
    async fn reconcile(self, propagation: Arc<Propagation>) -> Result<Again, Error> {
        if propagation.meta().deletion_timestamp.is_some() {
            // The copies bear an owner reference: they go with the Propagation.
            return Ok(None);
        }
        if self.namespaces.wait_until_ready().now_or_never().is_none() {
            // Without all namespaces every copy would look out of place. The end of their first list makes all Propagations due.
            return Ok(None);
        }

        // no client required
        let valid = match plan::validate(&propagation.spec) {
            Ok(valid) => valid,
            Err(wrong) => {
                self.report(&propagation, &report::Outcome::SpecInvalid("SpecInvalid", wrong)).await?;
                return Ok(None);
            }
        };
        let Some(reach) = self.reach.now() else { return Ok(Some(AGAIN)) };
        if let Err(wrong) = valid.within(reach) {
            self.report(&propagation, &report::Outcome::SpecInvalid(OUT_OF_REACH, wrong)).await?;
            return Ok(None);
        }
        let targets = plan::targets(&valid, reach, watches::states(&self.namespaces));

        // client required
        let owner = observe::Owner::of(&propagation, &self.term);
        let client = self.term.client();
        let source = observe::source(&client, &valid.source).await.map_err(Error::ReadSource)?;
        let children = observe::children(&client, &owner, valid.source.kind).await.map_err(Error::ListCopies)?;

        // no client required
        let (source_state, wanted) = source.resolve(&valid);
        let plan = plan::plan(&valid, &wanted, &targets, &children);

        // client required
        let Some(done) = write::execute(&client, &owner, &valid, &wanted, plan, &self.term).await else {
            // The term drains. What was left out is the next leader's to find.
            return Ok(None);
        };
        self.tell(&propagation, &done).await;
        let (count, cause) = (done.unfinished(), done.cause.clone().unwrap_or_default());
        let keeps = !matches!(wanted, Wanted::Content(_));
        self.report(&propagation, &report::Outcome::Done { source: source_state, keeps, targets, done }).await?;
        if count == 0 { Ok(None) } else { Err(Error::Incomplete { count, cause }) }
    }

    async fn report(&self, propagation: &Propagation, outcome: &report::Outcome) -> Result<(), Error> {
        let now = self.clock.now();
        let next = |current: Option<&PropagationStatus>| report::status(current, propagation, outcome, now);
        let api = Api::<Propagation>::all(self.term.client());
        self.statuses.write(&api, propagation, next).await.map_err(Error::WriteStatus)
    }

    async fn tell(&self, propagation: &Propagation, done: &Done) {
        let about = propagation.object_ref(&());
        if done.written > 0 {
            self.events.normal(&about, "Applied", &format!("{} copies written", done.written)).await;
        }
        if done.pruned > 0 {
            self.events.normal(&about, "Pruned", &format!("{} copies deleted", done.pruned)).await;
        }
        if done.written + done.pruned > 0 {
            tracing::info!(
                name = propagation.name_any(),
                written = done.written,
                pruned = done.pruned,
                "copies changed"
            );
        }
    }
}
