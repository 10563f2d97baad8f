//! What makes a Propagation due besides itself.

use std::{fmt::Debug, sync::Arc};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::{Propagation, SourceKind, plan::NamespaceState};
use crate::reconcile::controller::logged;

type Propagations = Store<Propagation>;
type NamespaceMeta = PartialObjectMeta<Namespace>;

/// Keeps the metadata of all namespaces, and makes every Propagation due when one appears, disappears, begins to terminate or gets other labels:
/// any Propagation may select it, or have a copy there that no longer belongs.
pub(super) fn namespaces(
    client: Client,
    propagations: Propagations,
) -> (Store<NamespaceMeta>, impl Stream<Item = ObjectRef<Propagation>> + Send + 'static) {
    let mut writer = Writer::new(());
    let store = writer.as_reader();
    let watch = watcher(Api::<NamespaceMeta>::all(client), watcher::Config::default())
        .default_backoff()
        .modify(|namespace| namespace.metadata.managed_fields = None);
    let before = store.clone();
    let due = logged("Namespace".to_owned(), watch).flat_map(move |event| {
        let matters = match &event {
            Event::Apply(namespace) => {
                let known = before.get(&ObjectRef::from_obj(namespace));
                known.is_none_or(|known| state(&known) != state(namespace))
            }
            Event::Delete(_) | Event::InitDone => true,
            Event::Init | Event::InitApply(_) => false,
        };
        writer.apply_watcher_event(&event);
        stream::iter(if matters { refs(&propagations, |_| true) } else { Vec::new() })
    });
    (store, due)
}

/// Makes a Propagation due when an object of `kind` with the name of its source changes, in any namespace: that is its source,
/// a copy, or what stands in the way of one.
pub(super) fn by_name<K>(
    client: Client,
    kind: SourceKind,
    propagations: Propagations,
) -> impl Stream<Item = ObjectRef<Propagation>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    PartialObjectMeta<K>: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    Api<PartialObjectMeta<K>>: Send,
{
    let watch = watcher(Api::<PartialObjectMeta<K>>::all(client), watcher::Config::default()).default_backoff();
    let mut lists = 0_u64;
    logged(K::kind(&()).into_owned(), watch).flat_map(move |event| {
        let due = match &event {
            Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                let name = object.name_any();
                refs(&propagations, |source| source.spec.source.kind == kind && source.spec.source.name == name)
            }
            // What was deleted while the watch was down does not appear in the list after it.
            Event::InitDone => {
                lists += 1;
                refs(&propagations, |propagation| lists > 1 && propagation.spec.source.kind == kind)
            }
            Event::Init => Vec::new(),
        };
        stream::iter(due)
    })
}

fn refs(propagations: &Propagations, due: impl Fn(&Propagation) -> bool) -> Vec<ObjectRef<Propagation>> {
    let all = propagations.state();
    all.iter().filter(|propagation| due(propagation)).map(|due| ObjectRef::from_obj(due.as_ref())).collect()
}

/// All namespaces, as far as they matter.
pub(super) fn states(namespaces: &Store<NamespaceMeta>) -> Vec<NamespaceState> {
    namespaces.state().iter().map(|namespace: &Arc<NamespaceMeta>| state(namespace)).collect()
}

fn state(namespace: &NamespaceMeta) -> NamespaceState {
    NamespaceState {
        name: namespace.name_any(),
        labels: namespace.labels().clone(),
        terminating: namespace.metadata.deletion_timestamp.is_some(),
    }
}
