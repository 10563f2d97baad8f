//! A kube `Controller` under a term.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{FutureExt as _, StreamExt as _, TryFuture, future::pending};
use kube::{
    Resource,
    runtime::{Controller, controller::Action},
};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::replica::term::{BoxError, Term};

impl Term {
    /// Runs a kube `Controller` until the term drains: it takes no new object then, and what is being reconciled is ended.
    /// Errors of the watch and of reconciliations are logged.
    ///
    /// By itself, a `Controller` with `graceful_shutdown_on(term.draining())` does the same, but for one case: kube waits until
    /// the first list has come, also when it is asked to shut down before. Then such a term would drain until it is aborted.
    ///
    /// ```no_run
    /// use std::{sync::Arc, time::Duration};
    ///
    /// use k8s_openapi::api::core::v1::ConfigMap;
    /// use kube::{Api, runtime::{Controller, controller::Action, watcher}};
    /// use leasehold::{BoxError, Term};
    ///
    /// async fn reconcile(object: Arc<ConfigMap>, term: Arc<Term>) -> Result<Action, kube::Error> {
    ///     // Reads and writes go through `term.client()`.
    ///     Ok(Action::requeue(term.kind().resync))
    /// }
    ///
    /// async fn config_maps(term: Term) -> Result<(), BoxError> {
    ///     let controller = Controller::new(Api::<ConfigMap>::all(term.client()), watcher::Config::default());
    ///     let on_error = |_, _: &kube::Error, _| Action::requeue(Duration::from_secs(5));
    ///     term.control(controller, reconcile, on_error, Arc::new(term.clone())).await
    /// }
    /// ```
    ///
    /// # Cancellation
    /// Dropping the future aborts what is being reconciled, at whatever it awaits.
    ///
    /// # Errors
    /// If the controller ends before the term drains.
    pub async fn control<K, F, C>(
        &self,
        controller: Controller<K>,
        reconciler: impl FnMut(Arc<K>, Arc<C>) -> F,
        error_policy: impl Fn(Arc<K>, &F::Error, Arc<C>) -> Action,
        context: Arc<C>,
    ) -> Result<(), BoxError>
    where
        K: Clone + Resource + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Debug + Unpin,
        F: TryFuture<Ok = Action> + Send + 'static,
        F::Error: std::error::Error + Send + 'static,
    {
        let kind = self.kind().name();
        let objects = controller.store();
        let work =
            controller.graceful_shutdown_on(self.draining()).run(reconciler, error_policy, context).for_each(|done| {
                if let Err(error) = done {
                    warn!(%kind, %error, "the controller met an error");
                }
                std::future::ready(())
            });
        let before_the_first_list = async {
            self.draining().await;
            if objects.wait_until_ready().now_or_never().is_some() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = work => {}
            () = before_the_first_list => {}
        }
        match self.draining().now_or_never() {
            Some(()) => Ok(()),
            None => Err("the controller ended before its term drained".into()),
        }
    }
}
