//! One pass over one object.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource, ResourceExt, core::ApiResource};
use tokio::sync::OnceCell;

use super::{
    Compose, Type,
    apply::ApplyError,
    fights::Fights,
    observe::{ObserveError, Observed},
    parent::Parent,
    plan::Plan,
    pruned::Pruning,
    report::{self, Done},
};
use crate::{
    reconcile::{
        asked::is_paused,
        clock::Clock,
        controller::RequeueAfter,
        events::Events,
        stages::{self, End, Outcome},
        status::Statuses,
        store::Store,
        watches::Objects,
    },
    replica::{clock, term::Term},
};

/// Why a pass is tried again.
pub(super) type Error = stages::Error<ObserveError, ApplyError>;

/// What all passes of a term share.
pub(super) struct Common {
    pub(super) term: Term,
    pub(super) events: Arc<Events>,
    pub(super) statuses: Statuses<Parent>,
    pub(super) store: Store<Parent>,
    pub(super) clock: Arc<dyn Clock>,
    /// What waits are counted by.
    pub(super) now: clock::Clock,
    pub(super) fights: Arc<Mutex<Fights>>,
    /// Asked for by the first status that is to be written.
    pub(super) pruning: OnceCell<Arc<Mutex<Pruning>>>,
    pub(super) front: Arc<dyn Compose>,
    pub(super) resource: ApiResource,
    pub(super) manager: String,
    pub(super) finalizer: String,
    pub(super) children: BTreeMap<Arc<Type>, Objects>,
    pub(super) related: BTreeMap<String, Objects>,
    /// What it makes may hold what stands in a Secret.
    pub(super) is_secretive: bool,
}

/// One pass over one object, and what its stages need.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) common: Arc<Common>,
    pub(super) object: Arc<Parent>,
}

impl Pass {
    pub(super) fn new(common: &Arc<Common>, object: Arc<Parent>) -> Self {
        Self { common: Arc::clone(common), object }
    }

    /// All stages, one after the other, and then what they have to say.
    pub(super) async fn reconcile(self) -> Result<RequeueAfter, Error> {
        let end = self.stages().await;
        self.common.events.publish().await;
        end
    }

    async fn stages(&self) -> Result<RequeueAfter, Error> {
        if is_paused(self.meta()) {
            return self.pause().await;
        }
        if self.meta().deletion_timestamp.is_some() {
            return self.finalize().await;
        }
        let observed = match self.observe().await {
            Ok(observed) => observed,
            Err(end) => return self.end(end, Error::Observe).await,
        };
        let plan = self.plan(&observed);
        let end = match self.apply(&observed, plan).await {
            Ok((done, after)) => End::reported(Outcome::Done(done), after),
            Err(end) => end,
        };
        self.end(end, Error::Apply).await
    }

    async fn end<E>(&self, end: End<Done, E>, error: fn(E) -> Error) -> Result<RequeueAfter, Error> {
        let End { outcome, then } = end;
        if let Some(outcome) = outcome {
            self.report(&outcome).await.map_err(Error::WriteStatus)?;
        }
        then.map_err(error)
    }

    fn plan(&self, observed: &Observed) -> Plan {
        let contested = self.object.status.as_ref().and_then(|status| report::contested(&status.conditions));
        let (owner, fights) = (observed.family().owner(), Arc::clone(&self.common.fights));
        let contested = contested.unwrap_or_default().to_owned();
        Plan::new(owner, fights, contested, observed.read(), self.common.front.order())
    }

    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.object.metadata
    }

    /// Reads and writes the object.
    pub(super) fn api(&self) -> Api<Parent> {
        let (client, resource) = (self.common.term.client(), &self.common.resource);
        match self.object.namespace() {
            Some(namespace) => Api::namespaced_with(client, &namespace, resource),
            None => Api::all_with(client, resource),
        }
    }

    /// Notes an event: something was done. It is published at the end of the pass.
    pub(super) fn normal(&self, reason: &str, note: &str) {
        self.common.events.normal(&self.object.object_ref(&self.common.resource), reason, note);
    }

    /// Notes an event: something stands in the way. It is published at the end of the pass.
    pub(super) fn warning(&self, reason: &str, note: &str) {
        self.common.events.warning(&self.object.object_ref(&self.common.resource), reason, note);
    }
}
