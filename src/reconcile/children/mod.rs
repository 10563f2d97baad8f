//! The children engine: for any kind whose front end says which children an object shall have.
//!
//! A pass has the stages of the kinds that are [written in Rust](super::stages), and their types:
//!
//! | stage | takes | gives | |
//! | --- | --- | --- | --- |
//! | [`observe`] | the object | `Observed`: what the caches have, and children that had to be read | reads |
//! | [`plan`] | `Observed` | `Plan`: it says one step after the other | pure |
//! | [`apply`] | `Observed`, `Plan` | `Done`: what is there, and what stands in the way | writes |
//! | [`mod@report`] | `Done` | the status and its conditions | pure |
//!
//! The front end validates the object when it says what its children shall be ([`desired`]). It says so anew after each round of
//! writes, so `apply` asks the plan for the next step until there is none. [`applied`] tells whether a child is still what we
//! applied, [`adopt`] whether an object of its name becomes one, [`order`] which child goes before which, [`write`](mod@write) makes the requests, [`status`] stores what `report` makes.
//!
//! A child belongs to its parent by a controller owner reference where the garbage collector follows one: in the parent's
//! namespace, or everywhere if the parent has none. Elsewhere the labels say it, and a finalizer keeps the parent until its
//! children are deleted. A child that is kept has no owner reference, so that no garbage collector ever takes it. What bears our labels without our having applied it is a copy that a user made, and not ours.
//!
//! Nothing is remembered that is not in objects, so a later term goes on where an earlier one ended, and writes nothing
//! where nothing has changed. But for who undoes what was written lately, which [`fights`] remembers, and the status tells.

mod adopt;
mod applied;
mod apply;
mod aside;
mod desired;
mod fights;
#[cfg(test)]
mod finalized;
mod generated;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod missing;
mod observe;
mod order;
mod ours;
mod parent;
mod pass;
mod plan;
mod pruned;
#[cfg(test)]
mod related;
mod report;
mod status;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use desired::{
    Adopt, Care, Characters, Compose, Composed, Deletion, Desired, Effort, Failure, Generate, Key, Order, Recipe,
    Related, Type, Update, View, Waiting,
};
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, ready},
    stream,
};
pub use generated::{hide, without};
use kube::Api;
use serde_json::Value;
use tokio::sync::OnceCell;

use self::{
    fights::Fights,
    parent::Parent,
    pass::{Common, Pass},
};
use crate::{
    config::Kind,
    ops::work::WatchReport,
    reconcile::{
        apply::{LEASEHOLD, MANAGED_BY, OWNER_UID, field_manager},
        clock::{Clock, WallClock},
        controller::{Controller, Due, Lane},
        events::Events,
        finalizer,
        status::Statuses,
        store::{Form, Store},
        watches::{Event, Objects, Query, Subscriber, Watches},
    },
    replica::{
        clock,
        term::{Access, BoxError, Reconciler, Standby, Term},
    },
};

/// Between two changes of what is related, for each object that they make due; at least, and at the most.
const FOR_EACH: Duration = Duration::from_millis(1);
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Reconciles the objects of one kind: what its front end says they shall have is what they have.
pub struct Children {
    front: Arc<dyn Compose>,
    watches: Watches,
    clock: Arc<dyn Clock>,
    needs: Vec<Access>,
}

impl Children {
    /// For the objects of `kind`. The watches are those of the replica.
    pub fn new(kind: &Kind, front: Arc<dyn Compose>, watches: Watches) -> Self {
        Self { needs: needs(kind, &*front), front, watches, clock: Arc::new(WallClock) }
    }

    fn work(&self, standby: Standby) -> BoxFuture<'static, Result<(), BoxError>> {
        let (front, clock, watches) = (Arc::clone(&self.front), Arc::clone(&self.clock), self.watches.clone());
        async move {
            let kind = standby.kind();
            let gvk = kube::core::GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind);
            let (resource, _) = kube::discovery::pinned_kind(&standby.client(), &gvk).await?;
            let lease = kind.lease_name.clone();
            // A parent is text for the most part already.
            let form = Form::as_it_is(Parent::bytes);
            let parents = Api::<Parent>::all_with(standby.client(), &resource);
            let mut controller = Controller::keeping(parents, resource.clone(), form);
            let store = controller.store();
            watches.limit(&lease, &kind.name(), kind.limits.cache);
            let (of_shard, shard) = (watches.clone(), lease.clone());
            standby.meter().missing_children(move || of_shard.missing(&shard));
            let mut children = BTreeMap::new();
            for of in front.types() {
                let subscriber = watches.subscribe(&children_of_all(&of), Some(&lease));
                let objects = subscriber.objects();
                controller = controller.showing(format!("children {of}"), report(&objects));
                children.insert(of, objects);
                controller = controller.follow(owners(subscriber, store.clone()));
            }
            let mut related = BTreeMap::new();
            for (id, query) in front.related() {
                let subscriber = watches.subscribe(&related_query(&query), None);
                let objects = subscriber.objects();
                controller = controller.showing(format!("related {id}"), report(&objects));
                related.insert(id, objects);
                controller = controller.follow(all_parents(subscriber, store.clone()));
            }
            let begin = |term: Term| {
                let events = Arc::new(Events::new(&term));
                let statuses = Statuses::new(term.clone(), Arc::clone(&events), store.clone());
                let manager = field_manager(&term.kind().kind);
                let finalizer = finalizer::name(&term.kind().kind);
                let types = front.types().into_iter().chain(front.related().into_values().map(|related| related.of));
                let is_secretive = types.into_iter().any(|of| of.group.is_empty() && of.kind == "Secret");
                let (fights, now) = (Arc::<Mutex<Fights>>::default(), clock::Clock::tokio());
                let fought = Arc::clone(&fights);
                term.meter()
                    .contested(move || fought.lock().unwrap_or_else(PoisonError::into_inner).contested(now.now()));
                let common = Arc::new(Common {
                    term,
                    events,
                    statuses,
                    store,
                    clock,
                    now,
                    fights,
                    pruning: OnceCell::new(),
                    front,
                    resource,
                    manager,
                    finalizer,
                    children,
                    related,
                    is_secretive,
                });
                move |object| Pass::new(&common, object).reconcile()
            };
            controller.run(standby, begin).await;
            Ok(())
        }
        .boxed()
    }
}

impl Reconciler for Children {
    fn run(&self, term: Term) -> BoxFuture<'static, Result<(), BoxError>> {
        self.work(Standby::of(&term))
    }

    fn stand_by(&self, standby: Standby) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
        Some(self.work(standby))
    }

    fn needs(&self) -> Vec<Access> {
        self.needs.clone()
    }
}

/// The least that a kind needs whose front end says this.
pub fn needs(kind: &Kind, front: &dyn Compose) -> Vec<Access> {
    let (group, plural) = (&kind.group, Type::of_kind(kind).plural);
    // Some API servers let only those point at an owner, in a way that holds it up, who may write its finalizers.
    let own = [("get", ""), ("patch", ""), ("update", "/status"), ("update", "/finalizers")];
    let mut needs: BTreeSet<Access> =
        own.into_iter().map(|(verb, part)| Access::new(verb, group.clone(), format!("{plural}{part}"))).collect();
    for of in front.types() {
        for verb in ["get", "list", "watch", "create", "patch", "delete"] {
            needs.insert(Access::new(verb, of.group.clone(), of.plural.clone()));
        }
    }
    for related in front.related().values() {
        for verb in ["list", "watch"] {
            needs.insert(Access::new(verb, related.of.group.clone(), related.of.plural.clone()));
        }
    }
    needs.extend(front.rights());
    needs.into_iter().collect()
}

/// All children of a type, of whatever kind: every kind that a replica leads shares the watch.
fn children_of_all(of: &Arc<Type>) -> Query {
    let labels = format!("{MANAGED_BY}={LEASEHOLD},{OWNER_UID}");
    Query { of: Arc::clone(of), namespace: None, labels, fields: String::new() }
}

fn related_query(related: &Related) -> Query {
    let labels: Vec<_> = related.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Query {
        of: Arc::clone(&related.of),
        namespace: related.namespace.clone(),
        labels: labels.join(","),
        fields: related.name.as_ref().map(|name| format!("metadata.name={name}")).unwrap_or_default(),
    }
}

/// How a watch fares, whenever that is asked.
fn report(objects: &Objects) -> WatchReport {
    let objects = objects.clone();
    Arc::new(move || objects.health())
}

/// Makes the owner of a child due that has changed.
fn owners(subscriber: Subscriber, parents: Store<Parent>) -> impl Stream<Item = (Due, bool)> + Send + 'static {
    subscriber.map(move |event| match event {
        Event::Listed => ((Lane::Soon, parents.names()), true),
        Event::Changed(owner) => ((Lane::Changed, owner.into_iter().collect()), false),
    })
}

/// Makes everything due: what is related may be of use to any of them. The first change does so at once; what changes
/// again and again, such as a lock that is renewed, is taken together with what has changed meanwhile.
fn all_parents(subscriber: Subscriber, parents: Store<Parent>) -> impl Stream<Item = (Due, bool)> + Send + 'static {
    stream::unfold((subscriber, parents, ready(()).boxed()), |(mut subscriber, parents, pause)| async move {
        let mut listed = subscriber.next().await? == Event::Listed;
        pause.await;
        while let Some(Some(event)) = subscriber.next().now_or_never() {
            listed |= event == Event::Listed;
        }
        let names = parents.names();
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let pause = tokio::time::sleep((FOR_EACH * count).clamp(PAUSE.0, PAUSE.1)).boxed();
        Some((((Lane::Soon, names), listed), (subscriber, parents, pause)))
    })
}

/// The uid of an object, as its owner names it.
fn uid(object: &Value) -> Option<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str)
}
