//! What a kind says, and the reconciler that it makes.

use std::{error::Error as StdError, fmt::Debug, future::Future, sync::Arc};

use futures::{
    FutureExt,
    future::{BoxFuture, ready},
};
use kube::{Api, Client, Resource, core::object::HasStatus};
use serde::{Serialize, de::DeserializeOwned};

use super::{End, Error, Pass, Trouble, pass::Common};
use crate::{
    reconcile::{
        clock::{Clock, WallClock},
        conditions::Conditions,
        controller::{Controller, RequeueAfter},
        status::Reported,
    },
    replica::term::{Access, BoxError, Reconciler, Standby, Term},
};

/// What a kind has done and when it looks again, or the end of the pass.
pub type Applied<S> = Result<(<S as Stages>::Done, RequeueAfter), End<<S as Stages>::Done, <S as Stages>::ApplyError>>;

/// A kind whose passes go through stages; see [the table](super). Each stage that is pure can be tested without a cluster.
pub trait Stages: Send + Sync + Sized + 'static {
    /// The objects of the kind.
    type Object: Resource<DynamicType = ()>
        + HasStatus<Status = Self::Status>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static;
    /// Their status.
    type Status: Reported + Send + Sync;
    /// What the other watches of the kind keep; `()` if they keep nothing.
    type Watched: Send + Sync + 'static;
    /// What an object says, found to mean something.
    type Valid: Send + Sync;
    /// What was read, and the time if it matters.
    type Observed: Send;
    /// What is to be done.
    type Plan: Send;
    /// What was done.
    type Done: Send + Sync;
    /// Why something could not be read.
    type ObserveError: StdError + Send + Sync + 'static;
    /// Why something could not be done.
    type ApplyError: StdError + Send + Sync + 'static;

    /// The objects in a namespace, or all of them if the kind is cluster-scoped.
    fn api(client: Client, namespace: &str) -> Api<Self::Object>;

    /// Permissions beyond those to list, watch and get the objects and to update their status.
    fn needs(&self) -> Vec<Access>;

    /// Adds watches of what makes objects due besides themselves. The client is that of the standby.
    fn watch(&self, controller: Controller<Self::Object>, client: Client) -> (Controller<Self::Object>, Self::Watched);

    /// Whether the other watches keep all that a pass needs. Before that a pass does nothing, so whatever completes it has to
    /// make the objects due.
    fn is_filled(watched: &Self::Watched) -> bool {
        let _ = watched;
        true
    }

    /// Says what an object wants, or what is wrong with it. Pure.
    ///
    /// # Errors
    /// What has to be edited.
    fn validate(&self, object: &Self::Object) -> Result<Self::Valid, Trouble>;

    /// Reads what the plan rests on. Writes nothing.
    fn observe(
        &self,
        pass: &Pass<Self>,
        valid: &Self::Valid,
    ) -> impl Future<Output = Result<Self::Observed, End<Self::Done, Self::ObserveError>>> + Send;

    /// Decides what is to be done. Pure.
    fn plan(&self, valid: &Self::Valid, observed: Self::Observed) -> Self::Plan;

    /// Does it. Also says when to look at the object again.
    fn apply(
        &self,
        pass: &Pass<Self>,
        valid: &Self::Valid,
        plan: Self::Plan,
    ) -> impl Future<Output = Applied<Self>> + Send;

    /// Says in the status and its conditions what was done. Pure. `SpecValid` is set already and may be set anew; `Ready` follows.
    fn report(object: &Self::Object, done: &Self::Done, status: &mut Self::Status, conditions: &mut Conditions<'_>);

    /// What a status keeps of the one before, whatever the outcome: such as a count that goes on. Nothing by default.
    fn carry_over(current: &Self::Status) -> Self::Status {
        let _ = current;
        Self::Status::default()
    }

    /// Does what is left to be done for an object that is being deleted. Nothing by default.
    fn finalize(
        &self,
        pass: &Pass<Self>,
    ) -> impl Future<Output = Result<RequeueAfter, Error<Self::ObserveError, Self::ApplyError>>> + Send {
        let _ = pass;
        ready(Ok(None))
    }
}

/// Reconciles a kind whose passes go through [`Stages`].
#[derive(Clone)]
pub struct Staged<S> {
    stages: Arc<S>,
    clock: Arc<dyn Clock>,
}

impl<S: Stages> Staged<S> {
    /// With the clock of the machine.
    pub fn new(stages: S) -> Self {
        Self { stages: Arc::new(stages), clock: Arc::new(WallClock) }
    }

    /// Reads the time from `clock`, which should agree with the API server's.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    fn work(&self, standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
        let (stages, clock) = (Arc::clone(&self.stages), Arc::clone(&self.clock));
        let client = standby.client();
        let controller = Controller::new(Api::<S::Object>::all(client.clone()), ());
        let (controller, watched) = stages.watch(controller, client);
        let store = controller.store();
        let begin = |term: Term| {
            let common = Common::new(stages, clock, watched, store, term);
            move |object| Pass::new(&common, object).reconcile()
        };
        controller.run(standby, begin).map(Ok).boxed()
    }
}

impl<S: Stages + Default> Default for Staged<S> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S: Stages> Reconciler for Staged<S> {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(self.work(standby))
    }

    fn needs(&self) -> Vec<Access> {
        let (group, plural) = (S::Object::group(&()), S::Object::plural(&()));
        let status = format!("{plural}/status");
        let own = [
            Access::new("get", group.clone().into_owned(), plural.into_owned()),
            Access::new("update", group.into_owned(), status),
        ];
        own.into_iter().chain(self.stages.needs()).collect()
    }
}
