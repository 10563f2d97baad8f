//! The children engine: for any kind whose front end says which children an object shall have.
//!
//! [`desired`] is what a front end says, [`applied`] tells whether a child is still what we applied, [`plan`] decides what is
//! next, [`write`](mod@write) carries it out, [`report`](mod@report) makes the status; the reconcile below is their table of contents.
//!
//! A child belongs to its parent by a controller owner reference where the garbage collector follows one: in the parent's
//! namespace, or everywhere if the parent has none. Elsewhere the labels say it, and a finalizer keeps the parent until its
//! children are deleted. What bears our labels without our having applied it is a copy that a user made, and not ours.
//!
//! Nothing is remembered that is not in objects, so a later term goes on where an earlier one ended, and writes nothing
//! where nothing has changed. But for who undoes what was written lately, which [`fights`] remembers, and the status tells.

mod applied;
mod aside;
mod desired;
mod fights;
#[cfg(test)]
mod interleavings;
mod ours;
mod parent;
mod plan;
mod pruned;
mod report;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

pub use desired::{Compose, Composed, Desired, Effort, Failure, Key, Related, Type, View, Waiting};
use futures::{
    FutureExt, Stream, StreamExt,
    future::{self, BoxFuture, ready},
    stream,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Resource, ResourceExt, api::ListParams, core::ApiResource, discovery::Scope};
use serde_json::Value;
use tokio::sync::OnceCell;

use self::{
    fights::{CONTESTED, Fights},
    parent::Parent,
    plan::{Mine, Observed, Plan, Step},
    pruned::Pruning,
    report::{Outcome, Trouble},
    write::Family,
};
use crate::{
    config::Kind,
    ops::work::WatchReport,
    protocol::lease::version_number,
    reconcile::{
        apply::{LEASEHOLD, MANAGED_BY, OWNER_UID, field_manager},
        clock::{Clock, WallClock},
        conditions,
        controller::{Again, Controller, Due, Lane},
        events::Events,
        finalizer,
        seen::Seen,
        status::{Shard, Statuses, changed},
        watches::{Listener, News, Objects, Query, Sight, Watches},
    },
    replica::{
        clock,
        term::{Access, BoxError, Reconciler, Standby, Term},
    },
};

/// How soon an object is looked at again whose children cannot be seen: nothing tells when they can.
const UNUSABLE: Duration = Duration::from_secs(10);
/// How soon an object is looked at again whose children's watch fails: nothing tells when it does not any more.
const STALE: Duration = Duration::from_secs(60);
/// How soon a child that belongs to another owner is looked at again: it bears no label by which we would see it go.
const CONFLICT: Duration = Duration::from_secs(30);
/// How soon the children of a deleted object are looked at again while they go.
const GOING: Duration = Duration::from_secs(2);
/// How soon an object is looked at again that is not as it was seen: its own watch lags.
const AT_ONCE: Duration = Duration::ZERO;
/// How long the CRD may take to be read, while the first status waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// What may be related, in bytes of text.
const RELATED: u64 = 32 << 20;
/// What is related and can be read while others wait, in bytes of text.
const BRIEF: u64 = 64 << 10;
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
            let mut controller =
                Controller::new(Api::<Parent>::all_with(standby.client(), &resource), resource.clone());
            let seen = controller.seen();
            let mut children = BTreeMap::new();
            for of in front.types() {
                let listener = watches.listen(&children_of_all(&of), Some(&lease));
                let objects = listener.objects();
                controller = controller.showing(format!("children {of}"), report(&objects));
                children.insert(of, objects);
                controller = controller.follow(owners(listener, seen.clone()));
            }
            let mut related = BTreeMap::new();
            for (id, query) in front.related() {
                let listener = watches.listen(&related_query(&query), None);
                let objects = listener.objects();
                controller = controller.showing(format!("related {id}"), report(&objects));
                related.insert(id, objects);
                controller = controller.follow(all_parents(listener, seen.clone()));
            }
            let begin = |term: Term| {
                let events = Arc::new(Events::new(&term));
                let statuses = Statuses::new(term.clone(), Arc::clone(&events), seen.clone());
                let manager = field_manager(&term.kind().kind);
                let finalizer = finalizer::name(&term.kind().kind);
                let types = front.types().into_iter().chain(front.related().into_values().map(|related| related.of));
                let is_secretive = types.into_iter().any(|of| of.group.is_empty() && of.kind == "Secret");
                let (fights, now) = (Arc::<Mutex<Fights>>::default(), clock::Clock::tokio());
                let fought = Arc::clone(&fights);
                term.meter()
                    .contested(move || fought.lock().unwrap_or_else(PoisonError::into_inner).contested(now.now()));
                let pass = Pass(Arc::new(Common {
                    term,
                    events,
                    statuses,
                    seen,
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
                }));
                move |parent| pass.clone().reconcile(parent)
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
    Arc::new(move || objects.fares())
}

/// Makes the owner of a child due that has changed.
fn owners(listener: Listener, parents: Seen<Parent>) -> impl Stream<Item = (Due, bool)> + Send + 'static {
    listener.map(move |news| match news {
        News::Listed => ((Lane::Soon, parents.names()), true),
        News::Changed(owner) => ((Lane::Changed, owner.into_iter().collect()), false),
    })
}

/// Makes everything due: what is related may be of use to any of them. The first change does so at once; what changes
/// again and again, such as a lock that is renewed, is taken together with what has changed meanwhile.
fn all_parents(listener: Listener, parents: Seen<Parent>) -> impl Stream<Item = (Due, bool)> + Send + 'static {
    stream::unfold((listener, parents, ready(()).boxed()), |(mut listener, parents, pause)| async move {
        let mut listed = listener.next().await? == News::Listed;
        pause.await;
        while let Some(Some(news)) = listener.next().now_or_never() {
            listed |= news == News::Listed;
        }
        let names = parents.names();
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let pause = tokio::time::sleep((FOR_EACH * count).clamp(PAUSE.0, PAUSE.1)).boxed();
        Some((((Lane::Soon, names), listed), (listener, parents, pause)))
    })
}

/// Why a pass is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to write the status")]
    WriteStatus(#[source] kube::Error),
    #[error("failed to write the finalizer")]
    WriteFinalizer(#[source] kube::Error),
    #[error("failed to read the object")]
    ReadObject(#[source] kube::Error),
    #[error("failed to list the children of a deleted object")]
    ListChildren(#[source] kube::Error),
    #[error("{0}")]
    Unfinished(String),
}

/// What every pass needs.
struct Common {
    term: Term,
    events: Arc<Events>,
    statuses: Statuses<Parent>,
    seen: Seen<Parent>,
    clock: Arc<dyn Clock>,
    /// What waits are counted by.
    now: clock::Clock,
    fights: Arc<Mutex<Fights>>,
    /// Asked for by the first status that is to be written.
    pruning: OnceCell<Arc<Mutex<Pruning>>>,
    front: Arc<dyn Compose>,
    resource: ApiResource,
    manager: String,
    finalizer: String,
    children: BTreeMap<Arc<Type>, Objects>,
    related: BTreeMap<String, Objects>,
    /// What it makes may hold what stands in a Secret.
    is_secretive: bool,
}

#[derive(Clone)]
struct Pass(Arc<Common>);

/// What the API server has of an object that was seen.
enum Read {
    /// The same, but for its status.
    Same,
    /// Another version, perhaps one that differs in nothing that makes it due.
    Changed,
    /// None, or another one of its name: of that the watch tells.
    Gone,
}

impl Read {
    fn again(&self) -> Again {
        match self {
            Self::Gone => None,
            Self::Same | Self::Changed => Some(AT_ONCE),
        }
    }
}

/// What a front end is shown of an object, on whatever thread: read when it is first asked for, once in a pass.
#[derive(Clone)]
struct Shown {
    parent: Arc<Parent>,
    served: Arc<Served>,
    value: Arc<OnceLock<Value>>,
    related: Arc<OnceLock<BTreeMap<String, Vec<Arc<Value>>>>>,
}

impl Shown {
    fn of(parent: &Arc<Parent>, served: &Arc<Served>) -> Self {
        let (parent, served) = (Arc::clone(parent), Arc::clone(served));
        Self { parent, served, value: Arc::default(), related: Arc::default() }
    }
}

/// How each type is named in requests, and where its objects live.
type Served = HashMap<Arc<Type>, (ApiResource, Scope)>;

impl Pass {
    async fn reconcile(self, parent: Arc<Parent>) -> Result<Again, Error> {
        let it = &self.0;
        let served = match self.served() {
            Ok(served) => Arc::new(served),
            Err(None) => return Ok(None),
            Err(Some(words)) => {
                if parent.metadata.deletion_timestamp.is_none() {
                    let trouble = Trouble { reason: "NotSeen", words };
                    self.report(&parent, Arc::new(Outcome::Blocked(trouble))).await?;
                }
                return Ok(Some(UNUSABLE));
            }
        };
        let family = Family::new(it, &parent, &served);
        if parent.metadata.deletion_timestamp.is_some() {
            return self.finish(&parent, &family).await;
        }

        if let Some(failure) = self.too_much_is_related() {
            self.report(&parent, Arc::new(Outcome::Invalid(failure))).await?;
            return Ok(None);
        }
        let look = Look { family: &family, is_current: it.seen.is_current(&parent) };
        let shown = Shown::of(&parent, &served);
        let contested = parent.status.as_ref().and_then(|status| report::contested(&status.conditions));
        let mut plan = Plan::new(family.owner(), Arc::clone(&it.fights), contested.unwrap_or_default().to_owned());
        let outcome = loop {
            match plan.next(&look, it.now.now()) {
                Step::Compose => match self.compose(&shown, &plan).await {
                    Some(composed) => plan.composed(composed),
                    // The term drains.
                    None => return Ok(None),
                },
                Step::Hold => {
                    let api = self.api(&parent);
                    let held = finalizer::add(&api, &*parent, &it.finalizer).await.map_err(Error::WriteFinalizer)?;
                    // Its event makes the object due again, and then the finalizer is there.
                    return if held == finalizer::Written::Done {
                        Ok(None)
                    } else {
                        Ok(self.read(&parent).await?.again())
                    };
                }
                Step::Confirm => match self.read(&parent).await? {
                    Read::Same => plan.confirmed(),
                    other => return Ok(other.again()),
                },
                Step::Look(keys) => family.look_at_each(keys, &mut plan).await,
                Step::Write(writes) => {
                    if !family.write_all(writes, &mut plan).await {
                        // The term drains. What was left out is the next leader's to find.
                        return Ok(None);
                    }
                }
                Step::Delete(deletes) => family.delete_each(deletes, &mut plan).await,
                Step::Report(mut outcome) => {
                    if let Outcome::Done { stale, .. } = &mut outcome {
                        *stale = self.stale();
                    }
                    break outcome;
                }
                Step::Unfinished => {
                    return Err(Error::Unfinished(format!("the children are not done after {} rounds", plan::ROUNDS)));
                }
            }
        };
        let (written, pruned) = plan.counts();
        self.tell(&parent, written, pruned).await;
        self.tell_of_rivals(&parent, plan.take_rivals());
        let outcome = Arc::new(outcome);
        self.report(&parent, Arc::clone(&outcome)).await?;
        let Outcome::Done { trouble, stale, .. } = &*outcome else { return Ok(None) };
        if let Some(refused) = trouble.iter().find(|trouble| retries(trouble.reason)) {
            return Err(Error::Unfinished(refused.words.clone()));
        }
        let contested = plan.contested_until().map(|until| until.since(it.now.now()));
        let conflict = trouble.iter().any(|trouble| trouble.reason == plan::CONFLICT).then_some(CONFLICT);
        let stale = stale.as_ref().map(|_| STALE);
        Ok([contested, conflict, stale].into_iter().flatten().min())
    }

    /// Says once in each round who undoes which children.
    fn tell_of_rivals(&self, parent: &Parent, rivals: Vec<fights::Rival>) {
        let it = &self.0;
        for rival in rivals {
            let (namespace, name) = (parent.namespace().unwrap_or_default(), parent.name_any());
            tracing::warn!(kind = it.resource.kind, namespace, name, "contested: {}", rival.words);
            match &rival.managers[..] {
                [] => it.term.meter().undone("unknown"),
                some => some.iter().for_each(|manager| it.term.meter().undone(manager)),
            }
        }
    }

    /// Reads the object. What was read is seen from now on.
    async fn read(&self, parent: &Parent) -> Result<Read, Error> {
        let it = &self.0;
        let name = parent.name_any();
        let (api, all) = (self.api(parent), Api::<Parent>::all_with(it.term.client(), &it.resource));
        // Where the term began with a standby's cache: once a version of the kind is known, what changes later need not be read.
        let version = async {
            if it.seen.has_baseline() {
                return;
            }
            let list = all.list(&ListParams::default().limit(1)).await.ok();
            let version = list.and_then(|list| list.metadata.resource_version);
            if let Some(version) = version.as_deref().and_then(version_number) {
                it.seen.is_at(version);
            }
        };
        let (fresh, ()) = future::join(api.get_opt(&name), version).await;
        Ok(match fresh.map_err(Error::ReadObject)? {
            Some(fresh) if fresh.metadata.uid == parent.metadata.uid => match it.seen.read(parent, fresh) {
                true => Read::Same,
                false => Read::Changed,
            },
            _ => Read::Gone,
        })
    }

    /// The types that are served, if all objects of those can be seen. Else why not; `None`: they will be, and the object
    /// is due then. A type that is not served has no objects that could be overlooked, and only its own children fail.
    fn served(&self) -> Result<Served, Option<String>> {
        let it = &self.0;
        for objects in it.children.values().chain(it.related.values()) {
            match objects.sight() {
                Sight::Clear | Sight::Unserved | Sight::Stale(_) => {}
                Sight::Unlisted => return Err(None),
                Sight::Troubled(why) => return Err(Some(why)),
            }
        }
        let served = it.children.iter().filter_map(|(of, objects)| Some((Arc::clone(of), objects.served()?)));
        Ok(served.collect())
    }

    /// Which watch fails, and why: what changes meanwhile is not seen.
    fn stale(&self) -> Option<String> {
        let it = &self.0;
        let children = it.children.iter().map(|(of, objects)| (of.to_string(), objects));
        let all = children.chain(it.related.iter().map(|(id, objects)| (id.clone(), objects)));
        all.into_iter().find_map(|(what, objects)| match objects.sight() {
            Sight::Stale(why) => Some(format!("the watch of {what} fails: {why}")),
            _ => None,
        })
    }

    /// How many bytes of text are related: nothing is read before that is known.
    fn related_bytes(&self) -> u64 {
        self.0.related.values().map(Objects::bytes).fold(0, u64::saturating_add)
    }

    fn too_much_is_related(&self) -> Option<Trouble> {
        let bytes = self.related_bytes();
        (bytes > RELATED).then(|| {
            let count = |(id, objects): (&String, &Objects)| format!("{id} has {} MiB", objects.bytes() >> 20);
            let each: Vec<_> = self.0.related.iter().map(count).collect();
            let words = format!(
                "more is related than the {} MiB that can be looked at: {}; narrow it down in the composition",
                RELATED >> 20,
                each.join(", ")
            );
            Trouble { reason: "TooMuchRelated", words }
        })
    }

    /// Related objects, as they were last seen.
    fn related(&self) -> BTreeMap<String, Vec<Arc<Value>>> {
        let all = |objects: &Objects| objects.all().into_iter().map(Arc::new).collect();
        self.0.related.iter().map(|(id, objects)| (id.clone(), all(objects))).collect()
    }

    /// What the object shall have, with what was just written. `None`: the term drains.
    async fn compose(&self, shown: &Shown, plan: &Plan) -> Option<Result<Composed, Failure>> {
        let (pass, shown, mine) = (self.clone(), shown.clone(), plan.mine());
        let is_brief = self.related_bytes() <= BRIEF;
        let draining = self.0.term.draining();
        let work = move |effort| pass.composed(&shown, &mine, effort).transpose();
        aside::compose(is_brief, draining, work).await
    }

    fn composed(&self, shown: &Shown, mine: &Mine, effort: Effort) -> Result<Option<Composed>, Failure> {
        let parent = shown.value.get_or_init(|| serde_json::to_value(&*shown.parent).unwrap_or_default());
        let related = shown.related.get_or_init(|| self.related());
        let family = Family::new(&self.0, &shown.parent, &shown.served);
        let child = |key: &Key| mine.child(key, || family.seen(key));
        let is_namespaced = |of: &Type| family.is_namespaced(of);
        let view = View { parent, child: &child, related, is_namespaced: &is_namespaced };
        self.0.front.compose(&view, effort)
    }

    /// Deletes what the garbage collector does not, then lets the object go.
    async fn finish(&self, parent: &Parent, family: &Family<'_>) -> Result<Again, Error> {
        let it = &self.0;
        if !parent.finalizers().contains(&it.finalizer) {
            return Ok(None);
        }
        let stay = it.seen.orphans(parent);
        if !stay && family.delete_all().await.map_err(Error::ListChildren)? > 0 {
            return Ok(Some(GOING));
        }
        let removed = finalizer::remove(&self.api(parent), parent, &it.finalizer).await;
        if removed.map_err(Error::WriteFinalizer)? == finalizer::Written::Changed {
            return Ok(self.read(parent).await?.again());
        }
        it.events
            .normal(
                &parent.object_ref(&it.resource),
                "Finalized",
                if stay { "the children stay, as orphans" } else { "all children are gone" },
            )
            .await;
        Ok(None)
    }

    fn api(&self, parent: &Parent) -> Api<Parent> {
        let (client, resource) = (self.0.term.client(), &self.0.resource);
        match parent.namespace() {
            Some(namespace) => Api::namespaced_with(client, &namespace, resource),
            None => Api::all_with(client, resource),
        }
    }

    async fn report(&self, parent: &Parent, outcome: Arc<Outcome>) -> Result<(), Error> {
        let it = &self.0;
        let now = it.clock.now();
        let is_current = it.seen.is_current(parent);
        let pruning = it.pruning.get_or_init(|| self.read_pruning()).boxed().await;
        let pruning = Arc::clone(pruning);
        // What would be said if all of it were kept.
        let whole = Arc::new(Mutex::new(None));
        let (generation, stamp, noted) = (parent.metadata.generation, Shard::of(&it.term), Arc::clone(&whole));
        let next = move |current: Option<&parent::Status>| {
            // An old view has nothing to say of a newer spec.
            let observed = current.and_then(|current| current.observed_generation);
            if !is_current && observed > generation {
                return None;
            }
            let mut next = report::status(current, generation, &outcome, now);
            if !changed(current, &next) {
                return None;
            }
            next.shard = Some(stamp.clone());
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(next.clone());
            let pruning = pruning.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = pruning.kept(serde_json::to_value(&next).unwrap_or_default());
            let kept: parent::Status = serde_json::from_value(kept).unwrap_or_default();
            // Where nothing is missing but what is dropped, there is nothing to write.
            let is_news = changed(Some(current.unwrap_or(&parent::Status::default())), &kept);
            is_news.then_some(next)
        };
        let stored = it.statuses.write_and_see(&self.api(parent), parent, next).await.map_err(Error::WriteStatus)?;
        let Some(whole) = whole.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        self.learn(parent, &whole, stored.map(Option::unwrap_or_default)).await;
        Ok(())
    }

    /// What is kept of a status, by the CRD; where that cannot be read, it is [learnt](Self::learn).
    async fn read_pruning(&self) -> Arc<Mutex<Pruning>> {
        let it = &self.0;
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
    async fn learn(&self, parent: &Parent, whole: &parent::Status, stored: Option<parent::Status>) {
        let it = &self.0;
        let value = serde_json::to_value(whole).unwrap_or_default();
        let (news, kept) = {
            let Some(pruning) = it.pruning.get() else { return };
            let mut pruning = pruning.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stored) = stored {
                pruning.wrote(&value, &serde_json::to_value(&stored).unwrap_or_default());
            }
            (pruning.news(&value), pruning.kept(value))
        };
        if let Some(fields) = news {
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
            it.events.warning(&parent.object_ref(&it.resource), &bad.reason, &bad.message).await;
        }
    }

    async fn tell(&self, parent: &Parent, written: usize, pruned: usize) {
        let about = parent.object_ref(&self.0.resource);
        // Of a new object its status tells, and that is write enough.
        if written > 0 && parent.status.is_some() {
            self.0.events.normal(&about, "Applied", &format!("{written} children written")).await;
        }
        if pruned > 0 {
            self.0.events.normal(&about, "Pruned", &format!("{pruned} children deleted")).await;
        }
        if written + pruned > 0 {
            let (namespace, name) = (parent.namespace().unwrap_or_default(), parent.name_any());
            tracing::info!(kind = self.0.resource.kind, namespace, name, written, pruned, "children changed");
        }
    }
}

/// What a pass looks at.
struct Look<'a> {
    family: &'a Family<'a>,
    is_current: bool,
}

impl Observed for Look<'_> {
    fn child(&self, key: &Key) -> Option<Arc<Value>> {
        self.family.seen(key)
    }

    fn children(&self) -> Vec<Key> {
        self.family.of_owner()
    }

    fn is_current(&self) -> bool {
        self.is_current
    }

    fn unserved(&self, of: &Type) -> Option<Trouble> {
        self.family.unserved(of)
    }
}

/// Whether trying again may mend it. A conflict does not mend itself, and is looked at now and then; so is a contested child.
fn retries(reason: &str) -> bool {
    ![plan::CONFLICT, CONTESTED].contains(&reason)
}

/// The uid of an object, as its owner names it.
fn uid(object: &Value) -> Option<&str> {
    object.pointer("/metadata/uid").and_then(Value::as_str)
}
