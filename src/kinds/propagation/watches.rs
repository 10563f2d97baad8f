//! What makes a Propagation due besides itself.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};

use super::{Propagation, SourceKind, plan::NamespaceState};
use crate::reconcile::{
    controller::{Due, Lane},
    name::Name,
    seen::Seen,
};

type Propagations = Seen<Propagation>;
type NamespaceMeta = PartialObjectMeta<Namespace>;

/// Keeps the metadata of all namespaces, and makes every Propagation due when one appears, disappears, begins to terminate or gets other labels:
/// any Propagation may select it, or have a copy there that no longer belongs.
pub(super) fn namespaces(
    propagations: Propagations,
) -> (Store<NamespaceMeta>, impl FnMut(Event<NamespaceMeta>) -> Due + Send + 'static) {
    let mut writer = Writer::new(());
    let store = writer.as_reader();
    let before = store.clone();
    let due = move |event: Event<NamespaceMeta>| {
        let matters = match &event {
            Event::Apply(namespace) => {
                let known = before.get(&ObjectRef::from_obj(namespace));
                known.is_none_or(|known| state(&known) != state(namespace))
            }
            Event::Delete(_) | Event::InitDone => true,
            Event::Init | Event::InitApply(_) => false,
        };
        writer.apply_watcher_event(&event);
        // All of them: in turn, so that a change to one of them goes first.
        (Lane::Sweep, refs(&propagations, |_| matters))
    };
    (store, due)
}

/// Makes a Propagation due when an object of `kind` with the name of its source changes, in any namespace: that is its source,
/// a copy, or what stands in the way of one.
pub(super) fn by_name<K>(
    kind: SourceKind,
    propagations: Propagations,
) -> impl FnMut(Event<PartialObjectMeta<K>>) -> Due + Send + 'static
where
    PartialObjectMeta<K>: ResourceExt,
{
    let mut lists = 0_u64;
    move |event| {
        let named = |object: &PartialObjectMeta<K>| {
            let name = object.name_any();
            refs(&propagations, |source| source.spec.source.kind == kind && source.spec.source.name == name)
        };
        match &event {
            Event::Apply(object) | Event::Delete(object) => (Lane::Changed, named(object)),
            // A list tells what is there, and not whether it changed.
            Event::InitApply(object) => (Lane::Sweep, named(object)),
            // What was deleted while the watch was down does not appear in the list after it.
            Event::InitDone => {
                lists += 1;
                (Lane::Sweep, refs(&propagations, |one| lists > 1 && one.spec.source.kind == kind))
            }
            Event::Init => (Lane::Sweep, Vec::new()),
        }
    }
}

fn refs(propagations: &Propagations, due: impl Fn(&Propagation) -> bool) -> Vec<Name> {
    propagations.all().iter().filter(|propagation| due(propagation)).map(|due| Name::of(&**due)).collect()
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
