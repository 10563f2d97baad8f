//! `Propagation`: one ConfigMap or Secret, kept alike in many namespaces.
//!
//! [`types`] is the resource, [`plan`] decides, [`observe`] reads, [`mod@write`] writes, [`report`] makes the status; the
//! stages below are their table of contents.
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

use futures::FutureExt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::reflector::Store};

pub use types::{
    Failed, FailedReason, OnConflict, OnSourceMissing, Propagation, PropagationSpec, PropagationStatus, Source,
    SourceKind, Targets,
};

use self::{
    observe::{Owner, SourceObject, SourceState},
    plan::{Child, Valid, Wanted},
    report::Done,
    write::Copies,
};
use crate::{
    kinds::{
        access,
        reach::Reach,
        reaching::{Reaching, out_of_reach},
    },
    reconcile::{
        conditions::Conditions,
        controller::{Controller, RequeueAfter},
        stages::{End, Outcome, Pass, Staged, Stages, Trouble},
    },
    replica::term::Access,
};

/// Reconciles Propagations.
pub type PropagationReconciler = Staged<Propagate>;

/// The stages of a Propagation.
#[derive(Clone, Default)]
pub struct Propagate {
    reach: Reaching,
}

impl Propagate {
    /// For Propagations that reach so far.
    pub fn within(reach: Reaching) -> Self {
        Self { reach }
    }
}

/// How far copies reach, the source, what bears our marks, and all namespaces.
#[derive(Debug)]
pub struct Observed {
    reach: Arc<Reach>,
    source: SourceObject,
    children: Vec<Child>,
    namespaces: Vec<Arc<PartialObjectMeta<Namespace>>>,
}

/// Where copies belong, what they shall be like, and what is to be done about that.
#[derive(Debug)]
pub struct Decided {
    source: SourceState,
    targets: plan::Targets,
    wanted: Wanted,
    plan: plan::Plan,
}

/// Why a pass could not read what it needs.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The source could not be read.
    #[error("failed to read the source")]
    ReadSource(#[source] kube::Error),
    /// The copies could not be listed.
    #[error("failed to list the copies")]
    ListCopies(#[source] kube::Error),
}

/// Why a pass could not do what it planned.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Trying again may mend these.
    #[error("{count} copies could not be written or deleted: {cause}")]
    Incomplete {
        /// How many there are.
        count: usize,
        /// What the API server said of the first.
        cause: String,
    },
}

impl Stages for Propagate {
    type Object = Propagation;
    type Status = PropagationStatus;
    type Watched = Store<PartialObjectMeta<Namespace>>;
    type Valid = Valid;
    type Observed = Observed;
    type Plan = Decided;
    type Done = Done;
    type ObserveError = ObserveError;
    type ApplyError = ApplyError;

    fn api(client: Client, _: &str) -> Api<Propagation> {
        Api::all(client)
    }

    fn needs(&self) -> Vec<Access> {
        let copies = ["get", "list", "watch", "create", "patch", "delete"];
        [
            access("", "namespaces", &["list", "watch"]),
            access("", "configmaps", &copies),
            access("", "secrets", &copies),
        ]
        .concat()
    }

    fn watch(&self, controller: Controller<Propagation>, client: Client) -> (Controller<Propagation>, Self::Watched) {
        let controller = controller.noting(watches::source);
        let store = controller.store();
        let (namespaces, namespace_changes) = watches::namespaces(store.clone());
        let config_maps = watches::by_name::<ConfigMap>(SourceKind::ConfigMap, store.clone());
        let secrets = watches::by_name::<Secret>(SourceKind::Secret, store);
        let controller = controller
            .watch(Api::all(client.clone()), namespace_changes)
            .watch(Api::all(client.clone()), config_maps)
            .watch(Api::all(client), secrets)
            .sweep_at(self.reach.changes());
        (controller, namespaces)
    }

    /// Without all namespaces every copy would look out of place. The end of their first list makes all Propagations due.
    fn is_filled(namespaces: &Self::Watched) -> bool {
        namespaces.wait_until_ready().now_or_never().is_some()
    }

    fn validate(&self, propagation: &Propagation) -> Result<Valid, Trouble> {
        plan::validate(&propagation.spec).map_err(Trouble::invalid)
    }

    async fn observe(&self, pass: &Pass<Self>, valid: &Valid) -> Result<Observed, End<Done, ObserveError>> {
        let reach = Arc::clone(self.reach.known()?);
        valid.within(&reach).map_err(out_of_reach)?;
        let (client, owner) = (pass.client(), Owner::of(pass.object(), pass.term()));
        let namespaces = pass.watched().state();
        let source = observe::source(&client, &valid.source).await.map_err(ObserveError::ReadSource)?;
        let children = observe::children(&client, &owner, valid.source.kind).await;
        Ok(Observed { reach, source, children: children.map_err(ObserveError::ListCopies)?, namespaces })
    }

    fn plan(&self, valid: &Valid, Observed { reach, source, children, namespaces }: Observed) -> Decided {
        let targets = plan::targets(valid, &reach, namespaces.iter().map(|it| watches::state(it)));
        let (source, wanted) = source.resolve(valid);
        let plan = plan::plan(valid, &wanted, &targets, &children);
        Decided { source, targets, wanted, plan }
    }

    async fn apply(
        &self,
        pass: &Pass<Self>,
        valid: &Valid,
        Decided { source, targets, wanted, plan }: Decided,
    ) -> Result<(Done, RequeueAfter), End<Done, ApplyError>> {
        let owner = Owner::of(pass.object(), pass.term());
        let Some(copies) = write::execute(&pass.client(), &owner, valid, &wanted, plan, pass.term()).await else {
            // The term drains. What was left out is the next leader's to find.
            return Err(End::unreported(None));
        };
        announce(pass, &copies);
        let (count, cause) = (copies.unfinished(), copies.cause.clone().unwrap_or_default());
        let done = Done { source, keeps: !matches!(wanted, Wanted::Content(_)), targets, copies };
        match count {
            0 => Ok((done, None)),
            _ => Err(End::failed(Outcome::Done(done), ApplyError::Incomplete { count, cause })),
        }
    }

    fn report(propagation: &Propagation, done: &Done, status: &mut PropagationStatus, conditions: &mut Conditions<'_>) {
        report::report(propagation, done, status, conditions);
    }

    /// The copies are like that version until others are written.
    fn carry_over(current: &PropagationStatus) -> PropagationStatus {
        PropagationStatus { source_version: current.source_version.clone(), ..PropagationStatus::default() }
    }
}

fn announce(pass: &Pass<Propagate>, copies: &Copies) {
    let Copies { written, pruned, .. } = copies;
    if *written > 0 {
        pass.normal("Applied", &format!("{written} copies written"));
    }
    if *pruned > 0 {
        pass.normal("Pruned", &format!("{pruned} copies deleted"));
    }
    if written + pruned > 0 {
        tracing::info!(name = pass.object().name_any(), written, pruned, "copies changed");
    }
}
