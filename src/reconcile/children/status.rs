//! Stores the status that a report makes, as far as the CRD has the API server keep it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;

use super::{
    parent::Status,
    pass::Pass,
    pruned::Pruning,
    report::{self, Done},
};
use crate::reconcile::{
    conditions,
    stages::Outcome,
    status::{Shard, changed},
};

/// How long the CRD may take to be read, while the first status waits.
const PATIENCE: Duration = Duration::from_secs(5);

impl Pass {
    pub(super) async fn report(&self, outcome: &Outcome<Done>) -> Result<(), kube::Error> {
        let it = &self.common;
        let now = it.clock.now();
        let is_current = it.store.is_current(&self.object);
        let pruning = it.pruning.get_or_init(|| self.read_pruning()).boxed().await;
        // What would be said if all of it were kept.
        let whole = Mutex::new(None);
        let (generation, stamp) = (self.meta().generation, Shard::of(&it.term));
        let next = |current: Option<&Status>| {
            // An old view has nothing to say of a newer spec.
            let observed = current.and_then(|current| current.observed_generation);
            if !is_current && observed > generation {
                return None;
            }
            let mut next = report::status(current, self.meta(), outcome, now);
            if !changed(current, &next) {
                return None;
            }
            next.shard = Some(stamp.clone());
            *whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(next.clone());
            let pruning = pruning.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = pruning.kept(serde_json::to_value(&next).unwrap_or_default());
            let kept: Status = serde_json::from_value(kept).unwrap_or_default();
            // Where nothing is missing but what is dropped, there is nothing to write.
            changed(Some(current.unwrap_or(&Status::default())), &kept).then_some(next)
        };
        let stored = it.statuses.write_and_see(&self.api(), &self.object, next).await?;
        if let Some(whole) = whole.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.learn(&whole, stored.map(Option::unwrap_or_default)).await;
        }
        Ok(())
    }

    /// What is kept of a status, by the CRD; where that cannot be read, it is [learnt](Self::learn).
    async fn read_pruning(&self) -> Arc<Mutex<Pruning>> {
        let it = &self.common;
        let name = format!("{}.{}", it.resource.plural, it.resource.group);
        let crds = Api::<CustomResourceDefinition>::all(it.term.client());
        let read = tokio::time::timeout(PATIENCE, crds.get_opt(&name).boxed()).await;
        Arc::new(Mutex::new(match read {
            Ok(Ok(Some(crd))) => Pruning::by_crd(&crd, &it.resource.version),
            _ => Pruning::default(),
        }))
    }

    /// Learns from what was stored of a status, and says once a term which fields the CRD has the API server drop. If the
    /// conditions are among them, what is wrong with an object is told in an event.
    async fn learn(&self, whole: &Status, stored: Option<Status>) {
        let it = &self.common;
        let value = serde_json::to_value(whole).unwrap_or_default();
        let (dropped, kept) = {
            let Some(pruning) = it.pruning.get() else { return };
            let mut pruning = pruning.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stored) = stored {
                pruning.wrote(&value, &serde_json::to_value(&stored).unwrap_or_default());
            }
            (pruning.newly_dropped(&value), pruning.kept(value))
        };
        if let Some(fields) = dropped {
            tracing::warn!(
                kind = it.resource.kind,
                "the CRD {}.{} names no {fields}: the API server drops what is written there; add the fields to the schema of {}, or set x-kubernetes-preserve-unknown-fields on its status",
                it.resource.plural,
                it.resource.group,
                it.resource.version
            );
        }
        let bad = conditions::not_ready(&whole.conditions).filter(|bad| bad.status == "False");
        if let Some(bad) = bad.filter(|_| kept.get("conditions").is_none()) {
            self.warning(&bad.reason, &bad.message);
        }
    }
}
