//! One pass over one object.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, Resource};

use super::{End, Outcome, Stages, status};
use crate::{
    reconcile::{
        asked::is_paused, clock::Clock, controller::RequeueAfter, events::Events, status::Statuses, store::Store,
    },
    replica::term::Term,
};

/// Why a pass is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error<O, A> {
    /// What it needs to know could not be read.
    #[error(transparent)]
    Observe(O),
    /// What it planned could not be done.
    #[error(transparent)]
    Apply(A),
    /// The status could not be written.
    #[error("failed to write the status")]
    WriteStatus(#[source] kube::Error),
}

/// What all passes of a term share.
pub(crate) struct Common<S: Stages> {
    stages: Arc<S>,
    clock: Arc<dyn Clock>,
    watched: S::Watched,
    statuses: Statuses<S::Object>,
    events: Arc<Events>,
    term: Term,
}

impl<S: Stages> Common<S> {
    pub(crate) fn new(
        stages: Arc<S>,
        clock: Arc<dyn Clock>,
        watched: S::Watched,
        store: Store<S::Object>,
        term: Term,
    ) -> Arc<Self> {
        let events = Arc::new(Events::new(&term));
        let statuses = Statuses::new(term.clone(), Arc::clone(&events), store);
        Arc::new(Self { stages, clock, watched, statuses, events, term })
    }
}

/// One pass over one object, and what its stages need.
pub struct Pass<S: Stages> {
    common: Arc<Common<S>>,
    object: Arc<S::Object>,
}

impl<S: Stages> Pass<S> {
    pub(crate) fn new(common: &Arc<Common<S>>, object: Arc<S::Object>) -> Self {
        Self { common: Arc::clone(common), object }
    }

    /// The object, as it was last seen.
    pub fn object(&self) -> &S::Object {
        &self.object
    }

    /// The namespace of the object; empty if it has none.
    pub fn namespace(&self) -> &str {
        self.object.meta().namespace.as_deref().unwrap_or_default()
    }

    /// The term in which the pass runs.
    pub fn term(&self) -> &Term {
        &self.common.term
    }

    /// The client of the term.
    pub fn client(&self) -> Client {
        self.common.term.client()
    }

    /// Reads and writes the object.
    pub fn api(&self) -> Api<S::Object> {
        S::api(self.client(), self.namespace())
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        self.common.clock.now()
    }

    /// What the other watches of the kind keep.
    pub fn watched(&self) -> &S::Watched {
        &self.common.watched
    }

    /// Notes an event: something was done. It is published at the end of the pass.
    pub fn normal(&self, reason: &str, note: &str) {
        self.common.events.normal(&self.object.object_ref(&()), reason, note);
    }

    /// Notes an event: something stands in the way. It is published at the end of the pass.
    pub fn warning(&self, reason: &str, note: &str) {
        self.common.events.warning(&self.object.object_ref(&()), reason, note);
    }

    /// Writes the status that the outcome makes, if it says anything new. The last stage does it for each pass; a stage
    /// does it itself only for what must be stored before it goes on.
    ///
    /// # Errors
    /// If the status could not be written.
    pub async fn report(&self, outcome: &Outcome<S::Done>) -> Result<(), kube::Error> {
        let now = self.now();
        let next = |current: Option<&S::Status>| status::<S>(current, &self.object, outcome, now);
        self.common.statuses.write(&self.api(), &self.object, next).await
    }

    /// All stages, one after the other, and then what they have to say.
    pub(crate) async fn reconcile(self) -> Result<RequeueAfter, Error<S::ObserveError, S::ApplyError>> {
        let end = self.stages().await;
        self.common.events.publish().await;
        end
    }

    async fn stages(&self) -> Result<RequeueAfter, Error<S::ObserveError, S::ApplyError>> {
        let stages = &self.common.stages;
        if is_paused(self.object.meta()) {
            return self.end(End::reported(Outcome::Paused, None), Error::Observe).await;
        }
        if self.object.meta().deletion_timestamp.is_some() {
            return stages.finalize(self).await;
        }
        if !S::is_filled(self.watched()) {
            return Ok(None);
        }
        let valid = match stages.validate(&self.object) {
            Ok(valid) => valid,
            Err(trouble) => return self.end(End::reported(Outcome::Invalid(trouble), None), Error::Observe).await,
        };
        let observed = match stages.observe(self, &valid).await {
            Ok(observed) => observed,
            Err(end) => return self.end(end, Error::Observe).await,
        };
        let plan = stages.plan(&valid, observed);
        let end = match stages.apply(self, &valid, plan).await {
            Ok((done, after)) => End::reported(Outcome::Done(done), after),
            Err(end) => end,
        };
        self.end(end, Error::Apply).await
    }

    async fn end<E>(
        &self,
        end: End<S::Done, E>,
        error: fn(E) -> Error<S::ObserveError, S::ApplyError>,
    ) -> Result<RequeueAfter, Error<S::ObserveError, S::ApplyError>> {
        let End { outcome, then } = end;
        if let Some(outcome) = outcome {
            self.report(&outcome).await.map_err(Error::WriteStatus)?;
        }
        then.map_err(error)
    }
}
