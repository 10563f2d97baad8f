//! Watches the objects of a kind on every replica, whether it leads or not, so that each can serve what it knows.
//!
//! The watch is one of its own, beside that of the standby or term: what is served does not stand still while a kind
//! changes hands, and a handover waits for nothing here. It costs each replica one more watch and one more cache of a
//! kind that is observed.

use std::{fmt::Debug, future::ready, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use kube::{Api, Resource, runtime::watcher::Event};
use serde::de::DeserializeOwned;

use super::store::Store;
use crate::{
    reconcile::controller::watch,
    replica::{
        observe::Observation,
        term::{Access, BoxError, Reconciler, Standby, Term},
    },
};

/// What has become of the objects of a kind.
#[derive(Clone, Debug)]
pub enum Observed<K> {
    /// These are all there are: the first thing that is told, and what is told after changes may have been missed. An
    /// object that is not among them is gone.
    Restarted(Vec<Arc<K>>),
    /// The object is new, or has changed in any way, its status included.
    Applied(Arc<K>),
    /// The object is gone. This is what it was at last.
    Deleted(Arc<K>),
}

/// The objects of a kind as this replica sees them, for an implementation of
/// [`Reconciler::observe`]. Clones are handles on the same.
///
/// ```
/// use futures::{StreamExt, future::BoxFuture};
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use leasehold::{BoxError, Observation, Reconciler, Term, observe::{Observed, Observer}};
///
/// struct Settings {
///     observer: Observer<ConfigMap>, // its `store()` is what any task may read
/// }
///
/// impl Reconciler for Settings {
///     fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
///         Box::pin(async move {
///             term.draining().await;
///             Ok(())
///         })
///     }
///
///     fn observe(&self, observation: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
///         let observer = self.observer.clone();
///         Some(Box::pin(async move {
///             observer.run(&observation, |change| match change {
///                 Observed::Restarted(all) => println!("{} of them", all.len()),
///                 Observed::Applied(object) => println!("changed: {:?}", object.metadata.name),
///                 Observed::Deleted(object) => println!("gone: {:?}", object.metadata.name),
///             }).await;
///             Ok(())
///         }))
///     }
/// }
/// ```
pub struct Observer<K: Resource> {
    store: Store<K>,
}

impl<K: Resource> Clone for Observer<K>
where
    K::DynamicType: Clone,
{
    fn clone(&self) -> Self {
        Self { store: self.store.clone() }
    }
}

impl<K> Default for Observer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new(())
    }
}

impl<K> Observer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// Has seen nothing yet.
    pub fn new(dyntype: K::DynamicType) -> Self {
        Self { store: Store::new(dyntype) }
    }

    /// The objects as last seen. They outlive terms and pauses; before the first list there are none, and
    /// [`Store::is_listed`] says so.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Every change, in the order in which the API server stored those of one object. Each stored version is told, but for
    /// those that a [`Restarted`](Observed::Restarted) skips. Nothing is buffered here: a consumer that is so slow that the
    /// API server forgets what comes next gets a new list.
    pub fn changes(&self, observation: &Observation) -> impl Stream<Item = Observed<K>> + Send + 'static {
        let store = self.store();
        let api = Api::all_with(observation.client(), store.dyntype());
        let what = format!("{} (observer)", K::kind(store.dyntype()));
        watch(what, api).filter_map(move |event| ready(take_in(&store, event)))
    }

    /// Calls `on` for every change, after [`store`](Self::store) shows it. Does not end by itself.
    pub async fn run(&self, observation: &Observation, mut on: impl FnMut(Observed<K>)) {
        let mut changes = std::pin::pin!(self.changes(observation));
        while let Some(change) = changes.next().await {
            on(change);
            tokio::task::consume_budget().await;
        }
    }
}

/// A reconciler that observes as well, where it is a function itself or does not implement that.
///
/// ```
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use leasehold::{Observation, Term, observe::{Observer, observing}};
///
/// let observer = Observer::<ConfigMap>::default();
/// let store = observer.store(); // for the tasks that serve
/// let reconciler = observing(
///     |term: Term| async move {
///         term.draining().await;
///         Ok(())
///     },
///     move |observation: Observation| {
///         let observer = observer.clone();
///         async move {
///             observer.run(&observation, |_change| ()).await;
///             Ok(())
///         }
///     },
/// );
/// ```
pub fn observing<R, F, Fut>(reconciler: R, observe: F) -> impl Reconciler
where
    R: Reconciler,
    F: Fn(Observation) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    Observing { reconciler, observe: move |observation| observe(observation).boxed() }
}

struct Observing<R, F> {
    reconciler: R,
    observe: F,
}

impl<R, F> Reconciler for Observing<R, F>
where
    R: Reconciler,
    F: Fn(Observation) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync + 'static,
{
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.reconciler.run(term)
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        self.reconciler.stand_by(standby)
    }

    fn observe(&self, observation: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some((self.observe)(observation))
    }

    fn needs(&self) -> Vec<Access> {
        self.reconciler.needs()
    }
}

/// What an event of the watch is to others.
fn take_in<K: Resource + Clone>(store: &Store<K>, event: Event<K>) -> Option<Observed<K>> {
    let told = match &event {
        Event::Apply(object) => Some(Observed::Applied(Arc::new(object.clone()))),
        Event::Delete(object) => Some(Observed::Deleted(Arc::new(object.clone()))),
        Event::Init | Event::InitApply(_) => None,
        Event::InitDone => {
            store.take_in(event);
            return Some(Observed::Restarted(store.all()));
        }
    };
    store.take_in(event);
    told
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u32) -> ConfigMap {
        let metadata = json!({"name": name, "uid": name, "resourceVersion": version.to_string()});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn told(store: &Store<ConfigMap>, event: Event<ConfigMap>) -> Option<String> {
        let version = |object: &Arc<ConfigMap>| {
            format!("{}@{}", object.metadata.name.as_ref().unwrap(), object.metadata.resource_version.as_ref().unwrap())
        };
        take_in(store, event).map(|change| match change {
            Observed::Restarted(all) => {
                let mut all: Vec<_> = all.iter().map(version).collect();
                all.sort();
                format!("all {}", all.join(" "))
            }
            Observed::Applied(object) => format!("applied {}", version(&object)),
            Observed::Deleted(object) => format!("deleted {}", version(&object)),
        })
    }

    #[test]
    fn each_version_is_told_and_a_list_when_it_is_whole() {
        let store = Store::new(());
        for (event, expected) in [
            (Event::Init, None),
            (Event::InitApply(object("a", 1)), None),
            (Event::InitApply(object("b", 2)), None),
            (Event::InitDone, Some("all a@1 b@2")),
            (Event::Apply(object("a", 3)), Some("applied a@3")),
            (Event::Apply(object("a", 4)), Some("applied a@4")),
            (Event::Delete(object("b", 5)), Some("deleted b@5")),
            (Event::Init, None),
            (Event::InitApply(object("c", 6)), None),
            (Event::InitDone, Some("all c@6")),
        ] {
            let shown = format!("{event:?}");
            assert_eq!(told(&store, event).as_deref(), expected, "{shown}");
        }
    }
}
