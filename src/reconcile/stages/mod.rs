//! The skeleton of a kind that is written in Rust. A kind implements [`Stages`], and [`Staged`] makes a reconciler of it.
//!
//! A pass over an object goes through the same stages in every kind, and the type of each stage is what the next one takes:
//!
//! | stage | takes | gives | |
//! | --- | --- | --- | --- |
//! | [`validate`](Stages::validate) | the object | `Valid`, or the [`Trouble`] that it has | pure |
//! | [`observe`](Stages::observe) | `Valid` | `Observed`: what was read, and when | reads |
//! | [`plan`](Stages::plan) | `Valid`, `Observed` | `Plan`: what is to be done | pure |
//! | [`apply`](Stages::apply) | `Valid`, `Plan` | `Done`: what was done | writes |
//! | [`report`](Stages::report) | `Done` | the status and its conditions | pure |
//!
//! A stage that cannot go on returns the [`End`] of the pass, which says what is reported and when the object is due again.
//!
//! ```no_run
//! use std::convert::Infallible;
//!
//! use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Condition};
//! use kube::{Api, Client, CustomResource, ResourceExt, api::ListParams};
//! use leasehold::{
//!     Access,
//!     reconcile::{
//!         conditions::{APPLIED, AS_EXPECTED, Conditions, ConditionStatus},
//!         controller::{RequeueAfter, Controller},
//!         stages::{End, Pass, Staged, Stages, Trouble},
//!         status::Shard,
//!     },
//! };
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// Counts the ConfigMaps of its namespace.
//! #[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
//! #[kube(group = "example.com", version = "v1", kind = "Census", plural = "censuses", namespaced, status = "CensusStatus")]
//! #[serde(rename_all = "camelCase")]
//! struct CensusSpec {
//!     at_most: usize,
//! }
//!
//! #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
//! #[serde(rename_all = "camelCase", default)]
//! struct CensusStatus {
//!     observed_generation: Option<i64>,
//!     #[schemars(skip)]
//!     conditions: Vec<Condition>,
//!     shard: Option<Shard>,
//!     count: usize,
//! }
//! leasehold::reported!(CensusStatus);
//!
//! #[derive(Debug, thiserror::Error)]
//! #[error("failed to list ConfigMaps")]
//! struct Unlisted(#[source] kube::Error);
//!
//! struct Count;
//!
//! impl Stages for Count {
//!     type Object = Census;
//!     type Status = CensusStatus;
//!     type Watched = ();
//!     type Valid = usize;
//!     type Observed = usize;
//!     type Plan = (usize, bool);
//!     type Done = (usize, bool);
//!     type ObserveError = Unlisted;
//!     type ApplyError = Infallible;
//!
//!     fn api(client: Client, namespace: &str) -> Api<Census> {
//!         Api::namespaced(client, namespace)
//!     }
//!
//!     fn needs(&self) -> Vec<Access> {
//!         vec![Access::new("list", "", "configmaps")]
//!     }
//!
//!     fn watch(&self, controller: Controller<Census>, _: Client) -> (Controller<Census>, ()) {
//!         (controller, ())
//!     }
//!
//!     fn validate(&self, census: &Census) -> Result<usize, Trouble> {
//!         let at_most = census.spec.at_most;
//!         if at_most == 0 { Err(Trouble::invalid("spec.atMost must be positive")) } else { Ok(at_most) }
//!     }
//!
//!     async fn observe(&self, pass: &Pass<Self>, _: &usize) -> Result<usize, End<Self::Done, Unlisted>> {
//!         let all = Api::<ConfigMap>::namespaced(pass.client(), pass.namespace());
//!         Ok(all.list_metadata(&ListParams::default()).await.map_err(Unlisted)?.items.len())
//!     }
//!
//!     fn plan(&self, at_most: &usize, count: usize) -> (usize, bool) {
//!         (count, count > *at_most)
//!     }
//!
//!     async fn apply(
//!         &self,
//!         pass: &Pass<Self>,
//!         _: &usize,
//!         (count, warn): (usize, bool),
//!     ) -> Result<(Self::Done, RequeueAfter), End<Self::Done, Infallible>> {
//!         if warn {
//!             pass.warning("TooMany", &format!("{count} ConfigMaps in {}", pass.object().name_any()));
//!         }
//!         Ok(((count, warn), None))
//!     }
//!
//!     fn report(_: &Census, (count, _): &(usize, bool), status: &mut CensusStatus, conditions: &mut Conditions<'_>) {
//!         status.count = *count;
//!         conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, "");
//!     }
//! }
//!
//! # fn register(app: leasehold::Leasehold) -> leasehold::Leasehold {
//! app.reconciler("census", Staged::new(Count))
//! # }
//! ```

mod outcome;
mod pass;
mod reconciler;
mod target;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::pass::Common;

pub use self::{
    outcome::{End, Outcome, Trouble, status},
    pass::{Error, Pass},
    reconciler::{Applied, Staged, Stages},
    target::discover,
};
