//! `ExpiryPolicy`: objects of one kind in one namespace, deleted when they have outlived their time.
//!
//! [`types`] is the resource, [`plan`] decides, [`target`] reads and deletes, [`report`] makes the status; the stages below are
//! their table of contents.
//!
//! Targets are listed in each pass and not watched: a pass is due when the next object expires, and often enough that none
//! appears and expires in between. So a policy costs one metadata list now and then, and no memory, whatever it applies to.

pub(super) mod plan;
mod report;
mod target;
mod types;

#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    core::{ApiResource, DynamicObject},
};

pub use types::{DeletePropagation, ExpiryPolicy, ExpiryPolicySpec, ExpiryPolicyStatus, From, Protect, Target};

use self::{
    plan::{Object, Plan, Valid},
    report::{Done, refused},
};
use crate::{
    kinds::reaching::{Reaching, out_of_reach},
    reconcile::{
        conditions::Conditions,
        controller::{Controller, RequeueAfter},
        stages::{End, Outcome, Pass, Staged, Stages, Trouble},
    },
    replica::term::Access,
};

/// How soon a target kind that is not served is looked for again.
const UNKNOWN: Duration = Duration::from_secs(30);

/// Reconciles ExpiryPolicies.
pub type ExpiryReconciler = Staged<Expiry>;

/// The stages of an ExpiryPolicy.
#[derive(Clone, Default)]
pub struct Expiry {
    reach: Reaching,
}

impl Expiry {
    /// For policies that reach so far.
    pub fn within(reach: Reaching) -> Self {
        Self { reach }
    }
}

/// What can expire, and when it was looked at.
#[derive(Debug)]
pub struct Observed {
    resource: ApiResource,
    objects: Vec<Object>,
    now: Timestamp,
}

/// What is to be deleted.
#[derive(Debug)]
pub struct Run {
    resource: ApiResource,
    plan: Plan,
}

/// Why a pass could not read what it needs.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server could not be asked for the resource of the target.
    #[error("failed to discover the target")]
    Discover(#[source] kube::Error),
    /// The objects could not be listed.
    #[error("failed to list the target")]
    List(#[source] kube::Error),
}

/// Why a pass could not do what it planned.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object could not be deleted.
    #[error("failed to delete expired objects")]
    Delete(#[source] kube::Error),
}

impl Stages for Expiry {
    type Object = ExpiryPolicy;
    type Status = ExpiryPolicyStatus;
    type Watched = ();
    type Valid = Valid;
    type Observed = Observed;
    type Plan = Run;
    type Done = Done;
    type ObserveError = ObserveError;
    type ApplyError = ApplyError;

    fn api(client: Client, namespace: &str) -> Api<ExpiryPolicy> {
        Api::namespaced(client, namespace)
    }

    /// Nothing on targets: the platform grants what may be deleted, and a policy that asks for more says so in its status.
    fn needs(&self) -> Vec<Access> {
        Vec::new()
    }

    fn watch(&self, controller: Controller<ExpiryPolicy>, _: Client) -> (Controller<ExpiryPolicy>, ()) {
        (controller.sweep_at(self.reach.changes()), ())
    }

    fn validate(&self, policy: &ExpiryPolicy) -> Result<Valid, Trouble> {
        plan::validate(&policy.spec).map_err(Trouble::invalid)
    }

    async fn observe(&self, pass: &Pass<Self>, valid: &Valid) -> Result<Observed, End<Done, ObserveError>> {
        valid.within(self.reach.known()?, pass.namespace()).map_err(out_of_reach)?;
        let discovered = target::discover(&pass.client(), &valid.target).await.map_err(ObserveError::Discover)?;
        let resource = discovered.map_err(|trouble| End::reported(Outcome::Invalid(trouble), Some(UNKNOWN)))?;
        match target::list(&targets(pass, &resource), valid).await {
            Ok(objects) => Ok(Observed { resource, objects, now: pass.now() }),
            Err(error) => {
                let trouble = refused("list", &resource.plural, pass.namespace(), &error);
                Err(End::failed(Outcome::Blocked(trouble), ObserveError::List(error)))
            }
        }
    }

    fn plan(&self, valid: &Valid, Observed { resource, objects, now }: Observed) -> Run {
        Run { resource, plan: plan::plan(now, valid, objects) }
    }

    async fn apply(
        &self,
        pass: &Pass<Self>,
        valid: &Valid,
        Run { resource, plan }: Run,
    ) -> Result<(Done, RequeueAfter), End<Done, ApplyError>> {
        let deletions = target::delete_all(&targets(pass, &resource), valid, &plan.delete, pass.term()).await;
        announce(pass, &resource.plural, &deletions.deleted);
        let after = if deletions.left() { plan.again.min(plan::RUNS) } else { plan.again };
        let mut done = Done { plan, deleted: deletions.deleted.len(), refused: None };
        let Some(error) = deletions.error else { return Ok((done, Some(after))) };
        done.refused = Some(refused("delete", &resource.plural, pass.namespace(), &error));
        Err(End::failed(Outcome::Done(done), ApplyError::Delete(error)))
    }

    fn report(policy: &ExpiryPolicy, done: &Done, status: &mut ExpiryPolicyStatus, conditions: &mut Conditions<'_>) {
        report::report(policy, done, status, conditions);
    }

    /// The count of deletions goes on.
    fn carry_over(current: &ExpiryPolicyStatus) -> ExpiryPolicyStatus {
        ExpiryPolicyStatus { deleted_total: current.deleted_total, ..ExpiryPolicyStatus::default() }
    }
}

fn targets(pass: &Pass<Expiry>, resource: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(pass.client(), pass.namespace(), resource)
}

fn announce(pass: &Pass<Expiry>, plural: &str, deleted: &[String]) {
    if deleted.is_empty() {
        return;
    }
    let note = format!("deleted {} expired {plural}: {}", deleted.len(), deleted.join(", "));
    tracing::info!(namespace = pass.object().namespace(), name = pass.object().name_any(), "{note}");
    pass.normal("Expired", &note);
}
