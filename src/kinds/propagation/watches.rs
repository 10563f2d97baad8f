//! What makes a Propagation due besides itself.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
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
    store,
};

type Propagations = store::Store<Propagation>;
type NamespaceMeta = PartialObjectMeta<Namespace>;

/// What is noted of a Propagation, whether it is kept or not: its source, so that a change of that finds it.
pub(super) fn source(propagation: &Propagation) -> Arc<str> {
    note(propagation.spec.source.kind, &propagation.spec.source.name)
}

fn note(kind: SourceKind, name: &str) -> Arc<str> {
    format!("{kind:?}/{name}").into()
}

/// Keeps the metadata of all namespaces, and makes every Propagation due when one appears, disappears, begins to terminate or gets other labels:
/// any Propagation may select it, or have a copy there that no longer belongs.
pub(super) fn namespaces(
    propagations: Propagations,
) -> (Store<NamespaceMeta>, impl FnMut(Event<NamespaceMeta>) -> Due + Send + 'static) {
    let mut writer = Writer::new(());
    let store = writer.as_reader();
    let before = store.clone();
    let due = move |event: Event<NamespaceMeta>| {
        let event = light(event);
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
        (Lane::Sweep, if matters { propagations.names() } else { Vec::new() })
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
            let source = note(kind, &object.name_any());
            propagations.noted(|noted| *noted == *source)
        };
        match &event {
            Event::Apply(object) | Event::Delete(object) => (Lane::Changed, named(object)),
            // A list tells what is there, and not whether it changed.
            Event::InitApply(object) => (Lane::Sweep, named(object)),
            // What was deleted while the watch was down does not appear in the list after it.
            Event::InitDone => {
                lists += 1;
                let all = note(kind, "");
                (Lane::Sweep, propagations.noted(|noted| lists > 1 && noted.starts_with(&*all)))
            }
            Event::Init => (Lane::Sweep, Vec::new()),
        }
    }
}

/// What is kept of a namespace: annotations may be large, and anybody's.
fn light(event: Event<NamespaceMeta>) -> Event<NamespaceMeta> {
    let light = |mut namespace: NamespaceMeta| {
        let meta = &mut namespace.metadata;
        *meta = ObjectMeta {
            name: meta.name.take(),
            uid: meta.uid.take(),
            resource_version: meta.resource_version.take(),
            labels: meta.labels.take(),
            deletion_timestamp: meta.deletion_timestamp.take(),
            ..ObjectMeta::default()
        };
        namespace
    };
    match event {
        Event::Apply(namespace) => Event::Apply(light(namespace)),
        Event::Delete(namespace) => Event::Delete(light(namespace)),
        Event::InitApply(namespace) => Event::InitApply(light(namespace)),
        other => other,
    }
}

/// A namespace, as far as it matters.
pub(super) fn state(namespace: &NamespaceMeta) -> NamespaceState<'_> {
    NamespaceState {
        name: namespace.metadata.name.as_deref().unwrap_or_default(),
        labels: namespace.labels(),
        terminating: namespace.metadata.deletion_timestamp.is_some(),
    }
}
