//! Reconciles the objects of one kind from the start of a term to its end, and fills their cache before it.
//!
//! kube's `Controller` and the `applier` under it take whatever is due in no order, so that a change waits behind the sweep of
//! a take-over; they put one back-off over all watches, so that one denied watch slows down every other one; and they do not end
//! when the cache never fills. Here the watches are kube's, and the order is that of [`Queue`].
//! Reconciliations run on the task of the term and nowhere else: when that is dropped, nothing goes on.

use std::{
    collections::{HashMap, HashSet},
    error::Error as StdError,
    fmt::Debug,
    future::{Future, pending},
    hash::Hash,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
    vec,
};

use futures::{
    FutureExt, Stream, StreamExt, future,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{select, task::consume_budget, time::Instant};
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::{Instrument, Span, error, info, info_span, warn};

pub use super::queue::Lane;
use super::{
    progress::{Far, Progress},
    queue::{Queue, Recent},
};
use crate::{
    config::Kind,
    ops::work::{Failing, Meter, Reconciled, WatchReport, WatchState},
    protocol::moment::Moment,
    reconcile::{
        backoff::Backoff,
        cache::too_large,
        events::Events,
        name::Name,
        store::{Form, Kept, Store, Tally},
        weight::{shown, trim},
    },
    replica::{
        clock::Clock,
        connections::WATCH_TIMEOUT,
        problem::{describe, panicked},
        spans,
        term::{Standby, Term},
    },
};

/// The share of a resync that is left to chance, so that objects listed together are not reconciled together for ever.
const JITTER: f64 = 0.1;

/// After which time an object is due if no event makes it due before; `None`: at the resync.
pub type RequeueAfter = Option<Duration>;

/// What an event makes due, and how urgently.
pub type Due = (Lane, Vec<Name>);

/// The objects of a kind, and all that makes one of them due.
#[must_use = "does nothing until it runs"]
pub struct Controller<K: Resource> {
    store: Store<K>,
    sources: SelectAll<BoxStream<'static, Trigger>>,
    /// Watches whose first list is not complete.
    unlisted: usize,
    /// How each watch fares.
    watches: Vec<(String, WatchReport)>,
}

/// Objects that a source makes due.
struct Trigger {
    due: Due,
    /// The first list of this source is complete.
    listed: bool,
}

impl<K> Controller<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    /// The objects of `api`, whose client is that of the [`Standby`]. Each is due when it appears and when its generation or its
    /// finalizers change, which a write of its status does not do.
    ///
    /// Of them no more is kept than the [limits](crate::config::Limits) of the kind say: one that is too large is not
    /// reconciled, and says so in its status; one that there is no room for is read each time that it is reconciled.
    pub fn new(api: Api<K>, dyntype: K::DynamicType) -> Self
    where
        K: Serialize,
    {
        Self::keeping(api, dyntype, Form::as_text())
    }

    /// As [`new`](Self::new), of objects that are kept so.
    pub(in crate::reconcile) fn keeping(api: Api<K>, dyntype: K::DynamicType, form: Form<K>) -> Self {
        let store = Store::keeping(dyntype, form);
        let watched = store.clone();
        let what = format!("{} {}", K::api_version(store.dyntype()), K::kind(store.dyntype()));
        let (watch, report) = source(what.clone(), api, move |event| (Lane::Changed, watched.take_in(event)));
        Self { store, sources: stream::select_all([watch]), unlisted: 1, watches: vec![(what, report)] }
    }

    /// The objects as the watch has shown them: to read them, and to note what was written.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Notes this of each object, whether it is kept or not: by that [`Store`] names them.
    pub(crate) fn noting(self, note: fn(&K) -> Arc<str>) -> Self {
        self.store.noting(note);
        self
    }

    /// Makes the objects due that `due` names for an event of `api`, whose client is that of the [`Standby`].
    /// A standby is not prepared before this list is complete; a term does not wait for it.
    pub fn watch<W>(mut self, api: Api<W>, due: impl FnMut(Event<W>) -> Due + Send + 'static) -> Self
    where
        W: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let what = format!("{} {}", W::api_version(&()), W::kind(&()));
        let (watch, report) = source(what.clone(), api, due);
        self.sources.push(watch);
        self.watches.push((what, report));
        self.unlisted += 1;
        self
    }

    /// Shows how a watch fares that is [followed](Self::follow).
    pub(in crate::reconcile) fn showing(mut self, watch: String, report: WatchReport) -> Self {
        self.watches.push((watch, report));
        self
    }

    /// Makes the objects due that the stream names, and how urgently. The stream says by `true` that its first list is
    /// complete: a standby is not prepared before, and a term does not wait for it.
    pub fn follow(mut self, due: impl Stream<Item = (Due, bool)> + Send + 'static) -> Self {
        let mut unlisted = true;
        let trigger = due.map(move |(due, listed)| {
            let listed = unlisted && listed;
            unlisted &= !listed;
            Trigger { due, listed }
        });
        self.sources.push(trigger.boxed());
        self.unlisted += 1;
        self
    }

    /// Makes the objects that the stream names due.
    pub fn trigger(mut self, due: impl Stream<Item = Name> + Send + 'static) -> Self {
        self.sources.push(due.map(|object| Trigger { due: (Lane::Changed, vec![object]), listed: false }).boxed());
        self
    }

    /// Makes every object due for each item of the stream, in its turn.
    pub fn sweep_at(mut self, times: impl Stream<Item = ()> + Send + 'static) -> Self {
        let store = self.store.clone();
        let trigger = times.map(move |()| Trigger { due: (Lane::Sweep, store.names()), listed: false });
        self.sources.push(trigger.boxed());
        self
    }

    /// Fills the cache and says when it is filled; from the beginning of the term on, calls the function that `begin` makes of it
    /// for each object that is due, never twice at a time for the same one, until the term drains and what runs is done.
    ///
    /// Every object is due once when the term begins: first those that changed lately, then all others, and each change goes before them.
    /// Before the first list of the kind is complete nothing is reconciled.
    /// A failure or a panic costs that object its turn and makes it wait; the others do not notice.
    ///
    /// Dropped, it stops at once and leaves nothing behind, in the standby as in the term.
    pub async fn run<B, F, Fut, E>(mut self, mut standby: Standby, begin: B)
    where
        B: FnOnce(Term) -> F,
        F: Fn(Arc<K>) -> Fut,
        Fut: Future<Output = Result<RequeueAfter, E>> + Send + 'static,
        E: StdError + Send + Sync + 'static,
    {
        let mut recent = Recent::default();
        let (meter, all, clock) = (standby.meter().clone(), self.unlisted, Clock::tokio());
        for (name, report) in &self.watches {
            meter.watch(name, Arc::clone(report));
        }
        meter.listed(0, all);
        self.store.limit(standby.kind().limits);
        let mut progress = Progress::new(clock.now());
        let mut look = pin!(clock.sleep_until(progress.next_look()));
        let term = loop {
            select! {
                biased;
                term = standby.lead() => break term,
                Some(trigger) = self.sources.next() => {
                    // What is due in its turn anyway is due by the sweep.
                    if let (Lane::Changed, objects) = trigger.due {
                        objects.into_iter().for_each(|object| recent.note(object));
                    }
                    if trigger.listed {
                        self.unlisted -= 1;
                        meter.listed(all - self.unlisted, all);
                    }
                    meter.queue(self.store.count(), 0, None);
                    tell_kept(&meter, self.store.tally());
                    if self.unlisted == 0 {
                        standby.prepared();
                    }
                }
                () = &mut look, if !progress.is_over() => {
                    let far = Far { listed: (all - self.unlisted, all), objects: self.store.count(), unswept: 0 };
                    tell_progress(standby.kind(), &mut progress, far, &self.watches, clock);
                    look.set(clock.sleep_until(progress.next_look()));
                }
            }
            consume_budget().await;
        };

        let mut queue = Queue::default();
        recent.newest_first().for_each(|object| queue.add(Lane::Soon, object, clock.now()));
        self.store.begin();
        let reconcile = begin(term.clone());
        let (to_sweep, swept) = (Vec::new().into_iter(), HashSet::new());
        let (backoff, timers) = (Backoff::default(), Timers::default());
        let events = Arc::new(Events::new(&term));
        let mut work = Work {
            controller: self,
            queue,
            too_large: Queue::default(),
            refuses: false,
            to_sweep,
            swept,
            takeover: term.takeover(),
            term,
            events,
            backoff,
            timers,
            resting: HashMap::new(),
            clock,
            all,
            is_full: false,
            progress: Progress::new(clock.now()),
        };
        work.run(reconcile).await;
        work.show(0);
        let Work { controller: Self { store, sources, .. }, queue, too_large, to_sweep, swept, term, timers, .. } =
            work;
        term.leave((sources, store, (queue, too_large), to_sweep, swept, timers));
    }
}

/// Says how far the beginning is, if it is time to.
fn tell_progress(kind: &Kind, progress: &mut Progress, far: Far, watches: &[(String, WatchReport)], clock: Clock) {
    let failing = || {
        let failing = watches.iter().filter(|(_, report)| report().failing_since.is_some());
        failing.map(|(watch, _)| watch.clone()).collect()
    };
    if let Some(line) = progress.look(far, failing, clock.now()) {
        info!(kind = kind.name(), "{line}");
    }
}

fn tell_kept(meter: &Meter, Tally { bytes, too_large, not_kept }: Tally) {
    meter.kept(bytes, too_large, not_kept);
}

/// A watch as a source, and how it fares. Its errors are logged and end here, for it tries again by itself.
fn source<W>(
    what: String,
    api: Api<W>,
    mut due: impl FnMut(Event<W>) -> Due + Send + 'static,
) -> (BoxStream<'static, Trigger>, WatchReport)
where
    W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut unlisted = true;
    let state = Arc::new(Mutex::new(Health::default()));
    let report = Arc::clone(&state);
    let told = raw(api).inspect(move |item| report.lock().unwrap_or_else(PoisonError::into_inner).hear(item, now()));
    let source = logged(what, told)
        .filter_map(move |event| {
            let listed = unlisted && matches!(event, Event::InitDone);
            unlisted &= !listed;
            let due = due(event);
            future::ready((listed || !due.1.is_empty()).then_some(Trigger { due, listed }))
        })
        .boxed();
    (source, Arc::new(move || state.lock().unwrap_or_else(PoisonError::into_inner).at(now())))
}

/// How a watch fares, by what has come of it.
#[derive(Default)]
struct Health {
    failing: Option<Failing>,
    failures: u64,
}

impl Health {
    /// That a list begins is no sign that it will come; whatever else comes is one that the watch is well.
    fn hear<W>(&mut self, item: &watcher::Result<Event<W>>, now: Instant) {
        match item {
            Ok(Event::Init) => {}
            Ok(_) => self.failing = None,
            Err(_) => {
                self.failures += 1;
                self.failing = Some(Failing::again(self.failing, now));
            }
        }
    }

    fn at(&self, now: Instant) -> WatchState {
        let failing = self.failing.filter(|failing| failing.lasts(now));
        WatchState { failing_since: failing.map(|failing| failing.since), failures: self.failures }
    }
}

#[expect(clippy::disallowed_methods, reason = "for how long a watch fails is shown, and decides nothing")]
fn now() -> Instant {
    Instant::now()
}

/// The watch of a kind, which ends never: its errors are logged, and it tries again by itself.
pub(in crate::reconcile) fn watch<W>(what: String, api: Api<W>) -> impl Stream<Item = Event<W>> + Send + 'static
where
    W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    logged(what, raw(api))
}

fn raw<W>(api: Api<W>) -> impl Stream<Item = watcher::Result<Event<W>>> + Send + 'static
where
    W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, watcher::Config::default().timeout(WATCH_TIMEOUT))
        .default_backoff()
        .modify(|object| trim(object.meta_mut()))
}

/// A sweep makes so many objects due at a time, so that no change waits for the rest of them.
const STRIDE: usize = 100;

/// A term's work.
struct Work<K: Resource> {
    controller: Controller<K>,
    queue: Queue<Name>,
    /// Those that are too large. To say so takes a read and a write of all of the object: it is done one at a time, beside
    /// the others, which wait for none of them.
    too_large: Queue<Name>,
    /// Of one of them it is being said.
    refuses: bool,
    /// Objects that a sweep has not made due yet.
    to_sweep: vec::IntoIter<Name>,
    /// Those that were begun with meanwhile: the sweep leaves them out.
    swept: HashSet<Name>,
    term: Term,
    events: Arc<Events>,
    backoff: Backoff,
    timers: Timers<Name>,
    /// Until when large objects rest.
    resting: HashMap<Name, Moment>,
    clock: Clock,
    /// How many watches there are.
    all: usize,
    /// There was no room for some object, and the log says so.
    is_full: bool,
    progress: Progress,
    /// That of the takeover, until the first pass is over.
    takeover: Span,
}

/// What is next in a term.
enum Step<K, E> {
    Trigger(Trigger),
    Time(Lane, Name),
    Ended(Ended<K, E>),
    Sweep,
    /// It is time to say how far the beginning is.
    Look,
}

/// What a task has come to.
enum Ended<K, E> {
    Done(Name, Outcome<E>, Duration),
    /// It was said of an object that it is too large.
    Refused(Name, Outcome<E>, Duration),
    /// An object that is not kept was read, and may be reconciled.
    Read(Name, Arc<K>),
}

/// How soon an object is looked at again that is not as it was seen: its watch will tell, and may lag.
const CHANGED: Duration = Duration::from_secs(1);
/// An object of this size rests for a second after each pass, and another one in proportion: or one that changes all the time would
/// keep the API server, and the CPU of its replica, from the others.
const RESTS_A_SECOND: u64 = 512 << 10;
/// A smaller one, in bytes, rests not at all.
const LARGE: u64 = 64 << 10;

/// It rests so many times as long as its pass took, if that is longer: an API server that is slow with it is slow with others too.
const RESTS_TIMES: u32 = 4;
/// But no longer than that for it.
const RESTS_AT_MOST: Duration = Duration::from_secs(5);

/// How long an object that weighs so much rests after a pass that took so long.
fn rest(bytes: u64, took: Duration) -> Duration {
    if bytes < LARGE {
        return Duration::ZERO;
    }
    let of_its_size = Duration::from_millis(bytes.saturating_mul(1000) / RESTS_A_SECOND);
    of_its_size.max(took.saturating_mul(RESTS_TIMES).min(RESTS_AT_MOST))
}

impl<K> Work<K>
where
    K: Resource + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Send + Sync,
{
    async fn run<F, Fut, E>(&mut self, reconcile: F)
    where
        F: Fn(Arc<K>) -> Fut,
        Fut: Future<Output = Result<RequeueAfter, E>> + Send + 'static,
        E: StdError + Send + Sync + 'static,
    {
        let concurrency = usize::from(self.term.kind().concurrency);
        let mut running = FuturesUnordered::new();
        let mut draining = pin!(self.term.draining());
        let clock = self.clock;
        let mut look = pin!(clock.sleep_until(self.progress.next_look()));
        let mut listed_once = self.sweep();
        self.term.meter().unswept(self.to_sweep.len());
        while draining.as_mut().now_or_never().is_none() {
            while running.len() < concurrency + usize::from(self.refuses)
                && let Some((key, kept)) = self.start()
            {
                running.push(match kept {
                    Some(object) => self.one(&reconcile, key, object),
                    None => self.read(key),
                });
            }
            if let Some((key, it)) = self.start_to_refuse() {
                running.push(self.refuse(key, it));
            }
            self.show(running.len());
            let step = select! {
                biased;
                () = &mut draining => break,
                // None of these may keep another one waiting for ever, so they are asked in no order.
                step = async {
                    select! {
                        Some(trigger) = self.controller.sources.next() => Step::Trigger(trigger),
                        Some((lane, key)) = self.timers.next() => Step::Time(lane, key),
                        Some(ended) = running.next() => Step::Ended(ended),
                        () = future::ready(()), if !self.to_sweep.as_slice().is_empty() => Step::Sweep,
                        () = &mut look, if !self.progress.is_over() => Step::Look,
                        else => pending().await,
                    }
                } => step,
            };
            match step {
                Step::Trigger(Trigger { due: (lane, keys), listed }) => {
                    let now = self.clock.now();
                    keys.into_iter().for_each(|key| self.add(lane, key, now));
                    self.controller.unlisted -= usize::from(listed);
                    listed_once = listed_once || (listed && self.sweep());
                }
                Step::Time(lane, key) => self.queue.add(lane, key, self.clock.now()),
                Step::Ended(Ended::Done(key, outcome, took)) => self.done(key, outcome, took),
                Step::Ended(Ended::Refused(key, outcome, took)) => self.refused(key, outcome, took),
                Step::Ended(Ended::Read(key, object)) => running.push(self.one(&reconcile, key, object)),
                Step::Sweep => self.sweep_on(),
                Step::Look => {
                    let far = self.far();
                    tell_progress(self.term.kind(), &mut self.progress, far, &self.controller.watches, clock);
                    look.set(clock.sleep_until(self.progress.next_look()));
                }
            }
            consume_budget().await;
        }
        while let Some(ended) = running.next().await {
            match ended {
                Ended::Done(key, outcome, took) => self.done(key, outcome, took),
                Ended::Refused(key, outcome, took) => self.refused(key, outcome, took),
                // What was only read is not begun with.
                Ended::Read(..) => {}
            }
        }
    }

    /// A reconciliation, as a trace with a link to the takeover if it is of the first pass.
    fn one<F, Fut, E>(&self, reconcile: &F, key: Name, object: Arc<K>) -> BoxFuture<'static, Ended<K, E>>
    where
        F: Fn(Arc<K>) -> Fut,
        Fut: Future<Output = Result<RequeueAfter, E>> + Send + 'static,
        E: StdError + Send + Sync + 'static,
    {
        let traced = spans::reconcile(self.term.kind(), key.namespace(), key.name(), self.term.token());
        traced.follows_from(self.takeover.id());
        one(reconcile, key, object, self.clock, traced)
    }

    /// Reads an object that is not kept.
    fn read<E: 'static>(&self, key: Name) -> BoxFuture<'static, Ended<K, E>> {
        let (store, client, clock) = (self.controller.store.clone(), self.term.client(), self.clock);
        let began = clock.now();
        async move {
            let outcome = match too_large::read::<K, K>(&client, store.dyntype(), &key).await {
                Ok(Some(fresh)) => match store.fetched(fresh) {
                    Some(object) => return Ended::Read(key, object),
                    None => Ok(Some(CHANGED)),
                },
                Ok(None) => Ok(None),
                Err(error) => Err(Failure::Unread(error)),
            };
            Ended::Done(key, outcome, clock.now().since(began))
        }
        .boxed()
    }

    /// Says of an object that it is too large.
    fn refuse<E: 'static>(&self, key: Name, it: too_large::Oversized) -> BoxFuture<'static, Ended<K, E>> {
        let (term, events, clock) = (self.term.clone(), Arc::clone(&self.events), self.clock);
        let (dyntype, began) = (self.controller.store.dyntype().clone(), clock.now());
        async move {
            let said = too_large::say::<K>(&term, &events, &dyntype, &key, &it).await;
            events.publish().await;
            let outcome = match said {
                Ok(true) => Ok(None),
                Ok(false) => Ok(Some(CHANGED)),
                Err(error) => Err(Failure::Unsaid(error)),
            };
            Ended::Refused(key, outcome, clock.now().since(began))
        }
        .boxed()
    }

    /// Brings what is shown of the work up to date.
    fn show(&mut self, running: usize) {
        let meter = self.term.meter();
        let tally = self.controller.store.tally();
        tell_kept(meter, tally);
        if tally.not_kept > 0 && !self.is_full {
            let cache = shown(self.term.kind().limits.cache);
            let kind = &self.term.kind().kind;
            warn!(
                kind,
                not_kept = tally.not_kept,
                "the objects of the kind weigh more than {cache}: what there is no room for is read each time that it is reconciled; raise `limits.cache` of the kind if the replicas have more memory"
            );
        }
        self.is_full = tally.not_kept > 0;
        let oldest = [&self.queue, &self.too_large].into_iter().filter_map(Queue::waits_since).min();
        let oldest = oldest.map(|since| self.clock.instant(since));
        let far = self.far();
        meter.queue(far.objects, self.queue.len() + self.too_large.len(), oldest);
        meter.running(running);
        meter.listed(far.listed.0, far.listed.1);
        meter.unswept(far.unswept);
        self.progress.note(far);
        if self.progress.is_over() {
            self.takeover = Span::none();
        }
    }

    /// How far the beginning is. What a sweep has made due waits with the rest.
    fn far(&self) -> Far {
        let (Controller { unlisted, store, .. }, all) = (&self.controller, self.all);
        let unswept = self.to_sweep.len() + self.queue.sweeping();
        Far { listed: (all - unlisted, all), objects: store.count(), unswept }
    }

    /// Begins to make every object due, if the first list of the kind is complete. Returns whether it is.
    fn sweep(&mut self) -> bool {
        self.to_sweep = self.controller.store.names().into_iter();
        self.controller.store.is_listed()
    }

    /// Makes some more objects due, in their turn.
    fn sweep_on(&mut self) {
        for key in self.to_sweep.by_ref().take(STRIDE) {
            if !self.swept.remove(&key) {
                self.queue.add(Lane::Sweep, key, self.clock.now());
            }
        }
    }

    /// The next object that is due and still there; `None`: it has to be read. One that is too large goes to those.
    fn start(&mut self) -> Option<(Name, Option<Arc<K>>)> {
        while let Some(key) = self.queue.start() {
            self.timers.cancel(&key);
            let kept = self.controller.store.kept(&key);
            if kept.is_some() && !self.to_sweep.as_slice().is_empty() {
                self.swept.insert(key.clone());
            }
            match kept {
                Some(Kept::Whole(object)) => return Some((key, Some(object))),
                Some(Kept::Marks) => return Some((key, None)),
                Some(Kept::TooLarge { .. }) => self.too_large.add(Lane::Changed, key.clone(), self.clock.now()),
                None => self.backoff.reset(&key),
            }
            self.queue.done(&key);
        }
        None
    }

    /// The next object of which it is to be said that it is too large, if it still is, and if that is said of none.
    fn start_to_refuse(&mut self) -> Option<(Name, too_large::Oversized)> {
        while !self.refuses
            && let Some(key) = self.too_large.start()
        {
            if let Some(Kept::TooLarge { bytes, generation }) = self.controller.store.kept(&key) {
                self.refuses = true;
                return Some((key, too_large::Oversized { bytes, generation }));
            }
            self.too_large.done(&key);
        }
        None
    }

    fn done<E: StdError + 'static>(&mut self, key: Name, outcome: Outcome<E>, took: Duration) {
        let (lane, wait) = self.review(&key, outcome, took);
        let (now, rest) = (self.clock.now(), rest(self.controller.store.weight(&key), took));
        let again = self.queue.done(&key);
        if !rest.is_zero() {
            self.resting.retain(|_, until| *until > now);
            self.resting.insert(key.clone(), now + rest);
        }
        match again {
            Some(lane) => self.add(lane, key, now),
            None => self.timers.set(lane, key, wait.max(rest)),
        }
    }

    /// Makes an object due, at once or when it has rested.
    fn add(&mut self, lane: Lane, key: Name, now: Moment) {
        match self.resting.get(&key) {
            Some(until) if *until > now => self.timers.set(lane, key, until.since(now)),
            _ => self.queue.add(lane, key, now),
        }
    }

    fn refused<E: StdError + 'static>(&mut self, key: Name, outcome: Outcome<E>, took: Duration) {
        let (lane, wait) = self.review(&key, outcome, took);
        self.refuses = false;
        match self.too_large.done(&key) {
            Some(lane) => self.too_large.add(lane, key, self.clock.now()),
            None => self.timers.set(lane, key, wait),
        }
    }

    /// Counts and tells what became of an object, and says when it is due again.
    fn review<E: StdError + 'static>(&mut self, key: &Name, outcome: Outcome<E>, took: Duration) -> (Lane, Duration) {
        self.term.meter().reconciled(kind_of(&outcome), took);
        match outcome {
            Ok(requeue_after) => {
                self.backoff.reset(key);
                due_in(requeue_after, self.term.kind().resync, fastrand::f64())
            }
            Err(failure) => {
                let wait = self.backoff.failed(key, fastrand::f64());
                let (namespace, name) = (key.namespace().unwrap_or_default(), key.name());
                let kind = self.term.kind().name();
                match failure {
                    Failure::Failed(cause) => {
                        warn!(kind, namespace, name, error = %describe(&cause), retry_in = ?wait, "reconcile failed");
                    }
                    Failure::Unread(cause) => {
                        warn!(kind, namespace, name, error = %describe(&cause), retry_in = ?wait, "failed to read an object that is not kept");
                    }
                    Failure::Unsaid(cause) => {
                        warn!(kind, namespace, name, error = %describe(&cause), retry_in = ?wait, "failed to say that an object is too large");
                    }
                    Failure::Panicked(words) => {
                        error!(kind, namespace, name, panic = words, retry_in = ?wait, "reconcile panicked");
                    }
                }
                (Lane::Soon, wait)
            }
        }
    }
}

/// One reconciliation.
fn one<K, F, Fut, E>(
    reconcile: &F,
    key: Name,
    object: Arc<K>,
    clock: Clock,
    traced: Span,
) -> BoxFuture<'static, Ended<K, E>>
where
    K: Send + Sync + 'static,
    F: Fn(Arc<K>) -> Fut,
    Fut: Future<Output = Result<RequeueAfter, E>> + Send + 'static,
    E: StdError + 'static,
{
    let began = clock.now();
    let span = traced.in_scope(|| info_span!("reconciling object", object.ref = %key));
    let told = traced.clone();
    AssertUnwindSafe(traced.in_scope(|| span.in_scope(|| reconcile(object))))
        .catch_unwind()
        .map(move |outcome| {
            let outcome = match outcome {
                Ok(outcome) => outcome.map_err(Failure::Failed),
                Err(panic) => Err(Failure::Panicked(panicked(&*panic))),
            };
            match &outcome {
                Err(failure) if !told.is_disabled() => spans::failed(&told, &failure.describe()),
                _ => {}
            }
            Ended::Done(key, outcome, clock.now().since(began))
        })
        .instrument(span)
        .instrument(traced)
        .boxed()
}

/// When objects are due again by themselves: one time an object.
struct Timers<R> {
    queue: DelayQueue<(Lane, R)>,
    keys: HashMap<R, delay_queue::Key>,
}

impl<R> Default for Timers<R> {
    fn default() -> Self {
        Self { queue: DelayQueue::new(), keys: HashMap::new() }
    }
}

impl<R: Clone + Eq + Hash> Timers<R> {
    fn set(&mut self, lane: Lane, object: R, wait: Duration) {
        self.cancel(&object);
        let key = self.queue.insert((lane, object.clone()), wait);
        self.keys.insert(object, key);
    }

    fn cancel(&mut self, object: &R) {
        if let Some(key) = self.keys.remove(object) {
            self.queue.remove(&key);
        }
    }

    /// The next one whose time has come; `None` if there is none to wait for. Cancel safe.
    async fn next(&mut self) -> Option<(Lane, R)> {
        let due = self.queue.next().await?.into_inner();
        self.keys.remove(&due.1);
        Some(due)
    }
}

/// The items of a watch; its errors are logged and end here, for the watch tries again by itself.
pub fn logged<T: Send + 'static>(
    what: String,
    watch: impl Stream<Item = watcher::Result<T>> + Send + 'static,
) -> impl Stream<Item = T> + Send + 'static {
    watch.filter_map(move |item| {
        future::ready(item.map_err(|error| warn!(watch = what, error = %describe(&error), "watch failed")).ok())
    })
}

/// When an object is due again. `chance` is in `0.0..1.0`.
fn due_in(requeue_after: RequeueAfter, resync: Duration, chance: f64) -> (Lane, Duration) {
    let resync = resync.mul_f64(1.0 - JITTER * chance);
    match requeue_after {
        Some(after) if after < resync => (Lane::Soon, after),
        _ => (Lane::Sweep, resync),
    }
}

/// What became of a reconciliation.
type Outcome<E> = Result<RequeueAfter, Failure<E>>;

enum Failure<E> {
    Failed(E),
    Unread(kube::Error),
    Unsaid(kube::Error),
    Panicked(String),
}

impl<E: StdError + 'static> Failure<E> {
    fn describe(&self) -> String {
        match self {
            Self::Failed(cause) => describe(cause),
            Self::Unread(cause) | Self::Unsaid(cause) => describe(cause),
            Self::Panicked(words) => words.clone(),
        }
    }
}

fn kind_of<E>(outcome: &Outcome<E>) -> Reconciled {
    match outcome {
        Ok(None) => Reconciled::Done,
        Ok(Some(_)) => Reconciled::Again,
        Err(Failure::Failed(_) | Failure::Unread(_) | Failure::Unsaid(_)) => Reconciled::Failed,
        Err(Failure::Panicked(_)) => Reconciled::Panicked,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the clock under test")]
mod tests {
    use std::{future::pending, io, sync::Mutex};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;
    use serde_json::{Value, json};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        config::Limits,
        reconcile::fake::{Answer, Asked, Fake, list, refusal},
    };

    /// Lists these ConfigMaps; nothing happens to them.
    fn lists(names: &'static [&'static str]) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
        move |asked| {
            let item =
                |name: &&str| json!({"metadata": {"name": name, "namespace": "ns", "generation": 1, "uid": name}});
            let items: Vec<_> = names.iter().map(item).collect();
            (!asked.uri.contains("watch=true")).then(|| (200, list(items)))
        }
    }

    fn controller(fake: &Fake) -> Controller<ConfigMap> {
        Controller::new(Api::all(fake.term.client()), ())
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<(String, u64)>>>);

    impl Log {
        fn add(&self, object: &ConfigMap, start: Instant) {
            self.0.lock().unwrap().push((object.name_any(), start.elapsed().as_secs()));
        }

        fn of(&self, name: &str) -> Vec<u64> {
            self.0.lock().unwrap().iter().filter(|(of, _)| of == name).map(|(_, at)| *at).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_although_the_first_list_never_came() {
        for answer in [refusal(404, "NotFound"), refusal(403, "Forbidden"), None] {
            let fake = Fake::new(1, move |_| answer.clone());
            let run = controller(&fake).run(Standby::of(&fake.term), |_| |_| async { Ok::<_, io::Error>(None) });
            let drain = fake.drain.clone();
            let stop = async {
                sleep(Duration::from_secs(100)).await;
                drain.cancel();
                Instant::now()
            };
            let ended = timeout(Duration::from_secs(200), future::join(run, stop));
            let (_, drained) = ended.await.expect("it ends");
            assert_eq!(drained.elapsed(), Duration::ZERO);
        }
    }

    /// A watch that was refused once and then begun has nothing to say while no object changes: it was shown as failing for ever.
    #[test]
    fn a_watch_that_has_not_failed_for_a_while_is_well_though_nothing_comes() {
        let began = now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let refused = || Err::<Event<ConfigMap>, _>(watcher::Error::NoResourceVersion);
        let mut health = Health::default();
        health.hear(&refused(), began);
        health.hear(&refused(), at(30));
        assert_eq!(health.at(at(59)), WatchState { failing_since: Some(began), failures: 2 });
        health.hear(&Ok(Event::<ConfigMap>::Init), at(60));
        assert_eq!(health.at(at(89)).failing_since, Some(began), "that a list begins says nothing");
        assert_eq!(health.at(at(90)), WatchState { failing_since: None, failures: 2 });
        // It fails anew, and an event ends that at once.
        health.hear(&refused(), at(100));
        assert_eq!(health.at(at(101)).failing_since, Some(at(100)));
        health.hear(&Ok(Event::<ConfigMap>::InitDone), at(102));
        assert_eq!(health.at(at(102)).failing_since, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_runs_and_starts_nothing() {
        let fake = Fake::new(1, lists(&["a", "b", "c", "d", "e"]));
        let (log, start) = (Log::default(), Instant::now());
        let finished = Arc::new(Mutex::new(0));
        let run = {
            let (log, finished) = (log.clone(), Arc::clone(&finished));
            controller(&fake).run(Standby::of(&fake.term), |_| {
                move |object| {
                    log.add(&object, start);
                    let finished = Arc::clone(&finished);
                    async move {
                        sleep(Duration::from_secs(60)).await;
                        *finished.lock().unwrap() += 1;
                        Ok::<_, io::Error>(None)
                    }
                }
            })
        };
        let drain = fake.drain.clone();
        let stop = async {
            sleep(Duration::from_secs(10)).await;
            drain.cancel();
        };
        timeout(Duration::from_secs(600), future::join(run, stop)).await.expect("it ends");
        assert_eq!(start.elapsed().as_secs(), 60);
        // As many as the kind's concurrency.
        assert_eq!((log.0.lock().unwrap().len(), *finished.lock().unwrap()), (2, 2));
    }

    /// Each is a trace of its own, and those of the first pass have a link to the takeover.
    #[tokio::test(start_paused = true)]
    async fn a_reconciliation_is_a_span_and_the_first_pass_is_linked_to_the_takeover() {
        let (recorder, _guard) = spans::recorded::Recorder::begin();
        let fake = Fake::new(1, lists(&["bad", "good"]));
        let run = controller(&fake).run(Standby::of(&fake.term), |_| {
            |object: Arc<ConfigMap>| async move {
                if object.name_any() == "bad" {
                    return Err(io::Error::other("it is bad"));
                }
                Ok(Some(Duration::from_secs(30)))
            }
        });
        let drain = fake.drain.clone();
        let stop = async {
            sleep(Duration::from_secs(100)).await;
            drain.cancel();
        };
        timeout(Duration::from_secs(600), future::join(run, stop)).await.expect("it ends");
        let all = recorder.named("reconcile");
        let of = |name: &str| -> Vec<_> {
            all.iter().filter(|span| span.field("leasehold.object") == Some(name)).cloned().collect()
        };
        let (bad, good) = (of("bad"), of("good"));
        assert!(bad.len() > 2 && good.len() > 2, "{all:#?}");
        assert_eq!(
            (bad[0].field("otel.status_code"), bad[0].field("otel.status_description")),
            (Some("ERROR"), Some("it is bad"))
        );
        assert_eq!((good[0].field("otel.status_code"), good[0].field("k8s.namespace.name")), (None, Some("ns")));
        assert!(all.iter().all(|span| span.parent.is_none()), "{all:#?}");
        assert_eq!((&bad[0].follows[..], &good[0].follows[..]), (&["takeover"][..], &["takeover"][..]));
        assert!(
            bad[1..].iter().chain(&good[1..]).all(|span| span.follows.is_empty()),
            "later ones are not of it: {all:#?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_objects_failures_and_panics_are_its_own() {
        let fake = Fake::new(1, lists(&["bad", "good", "ugly"]));
        let (log, start) = (Log::default(), Instant::now());
        let run = {
            let log = log.clone();
            controller(&fake).run(Standby::of(&fake.term), |_| {
                move |object| {
                    log.add(&object, start);
                    async move {
                        match object.name_any().as_str() {
                            "bad" => Err(io::Error::other("bad")),
                            "ugly" => panic!("ugly"),
                            _ => Ok(None),
                        }
                    }
                }
            })
        };
        timeout(Duration::from_secs(500), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("good").len(), 1);
        for name in ["bad", "ugly"] {
            let tries = log.of(name);
            let waits: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!((8..=10).contains(&tries.len()), "{tries:?}");
            assert!(waits.is_sorted() && waits.last() > Some(&60), "each wait is longer: {tries:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn objects_come_back_when_they_ask_to_and_at_the_resync() {
        let fake = Fake::new(1, lists(&["asks", "rests"]));
        let (log, start) = (Log::default(), Instant::now());
        let run = {
            let log = log.clone();
            controller(&fake).run(Standby::of(&fake.term), |_| {
                move |object| {
                    log.add(&object, start);
                    let again = (object.name_any() == "asks").then_some(Duration::from_secs(100));
                    async move { Ok::<_, io::Error>(again) }
                }
            })
        };
        timeout(Duration::from_secs(650), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("asks"), [0, 100, 200, 300, 400, 500, 600]);
        let rests = log.of("rests");
        assert!(rests.len() == 2 && (540..=600).contains(&rests[1]), "{rests:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_looked_at_early_does_not_come_back_at_its_old_time() {
        let fake = Fake::new(1, lists(&["a"]));
        let (log, start) = (Log::default(), Instant::now());
        let early = stream::once(async {
            sleep(Duration::from_secs(105)).await;
            Name::new(Some("ns"), "a")
        });
        let run = {
            let log = log.clone();
            controller(&fake).trigger(early).run(Standby::of(&fake.term), |_| {
                move |object| {
                    log.add(&object, start);
                    async {
                        sleep(Duration::from_secs(10)).await;
                        Ok::<_, io::Error>(Some(Duration::from_secs(100)))
                    }
                }
            })
        };
        timeout(Duration::from_secs(300), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("a"), [0, 105, 215]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_makes_an_object_due_and_one_that_fails_stops_nothing() {
        let fake = Fake::new(1, lists(&["a", "b"]));
        let (log, start) = (Log::default(), Instant::now());
        let later = stream::once(async {
            sleep(Duration::from_secs(50)).await;
            Name::new(Some("ns"), "a")
        });
        let errors = stream::repeat_with(|| Err(watcher::Error::NoResourceVersion)).take(3);
        let run = {
            let log = log.clone();
            controller(&fake)
                .trigger(later)
                .trigger(logged("Broken".to_owned(), errors.chain(stream::once(pending()))))
                .run(Standby::of(&fake.term), |_| {
                    move |object| {
                        log.add(&object, start);
                        async { Ok::<_, io::Error>(None) }
                    }
                })
        };
        timeout(Duration::from_secs(100), run).await.expect_err("it runs until it drains");
        assert_eq!((log.of("a"), log.of("b")), (vec![0, 50], vec![0]));
    }

    /// ConfigMaps with data of so many bytes. One that is read is as it was listed, and what is written of a status stands.
    fn weighing(sizes: &'static [(&'static str, usize)], limits: Limits) -> Fake {
        weighing_slowly(sizes, limits, 2, Duration::ZERO)
    }

    /// The same, with that concurrency, and each read of one takes so long.
    fn weighing_slowly(
        sizes: &'static [(&'static str, usize)],
        limits: Limits,
        concurrency: u16,
        time: Duration,
    ) -> Fake {
        let kind = Kind { concurrency, limits, ..Kind::new("", "v1", "ConfigMap") };
        let status = Arc::new(Mutex::new(Value::Null));
        Fake::of_kind(kind, 1, move |asked| {
            let one = |name: &str, size: usize| {
                let metadata =
                    json!({"name": name, "namespace": "ns", "generation": 3, "uid": name, "resourceVersion": "7"});
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "x".repeat(size)}})
            };
            let is_of_one = asked.method == http::Method::GET && asked.uri.contains("/configmaps/");
            let path = asked.uri.split('?').next().unwrap().to_owned();
            let parts: Vec<_> = path.split('/').collect();
            let answer = match (&asked.method, parts.last()) {
                (&http::Method::PUT, _) => {
                    *status.lock().unwrap() = asked.body["status"].clone();
                    Some((200, asked.body))
                }
                (&http::Method::POST, _) => refusal(403, "Forbidden"),
                _ if asked.uri.contains("watch=true") => None,
                (_, Some(&"configmaps")) => {
                    let items: Vec<_> = sizes.iter().map(|(name, size)| one(name, *size)).collect();
                    Some((200, list(items)))
                }
                (_, name) => sizes.iter().find(|(of, _)| Some(of) == name).map(|(name, size)| {
                    let mut read = one(name, *size);
                    read["status"] = status.lock().unwrap().clone();
                    (200, read)
                }),
            };
            async move {
                if is_of_one {
                    sleep(time).await;
                }
                answer
            }
        })
    }

    async fn reconciled(fake: &Fake, for_seconds: u64) -> Log {
        let (log, start) = (Log::default(), Instant::now());
        let run = {
            let log = log.clone();
            controller(fake).run(Standby::of(&fake.term), |_| {
                move |object: Arc<ConfigMap>| {
                    log.add(&object, start);
                    async { Ok::<_, io::Error>(None) }
                }
            })
        };
        timeout(Duration::from_secs(for_seconds), run).await.expect_err("it runs until it drains");
        log
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_too_large_says_so_once_and_the_others_are_reconciled() {
        let fake = weighing(&[("large", 5000), ("small", 50)], Limits { object: 4096, cache: 1 << 20 });
        let log = reconciled(&fake, 1500).await;
        assert_eq!((log.of("small").len(), log.of("large").len()), (3, 0));
        let asked = fake.asked();
        let written: Vec<_> = asked.iter().filter(|asked| asked.method == http::Method::PUT).collect();
        let [written] = written[..] else { panic!("it is said once: {written:?}") };
        assert!(written.uri.starts_with("/api/v1/namespaces/ns/configmaps/large/status?"), "{}", written.uri);
        assert!(written.body.get("data").is_none(), "nothing else is sent");
        let metadata = json!({"name": "large", "namespace": "ns", "uid": "large", "resourceVersion": "7"});
        assert_eq!((&written.body["metadata"], &written.body["status"]["observedGeneration"]), (&metadata, &json!(3)));
        for condition in written.body["status"]["conditions"].as_array().unwrap() {
            assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("TooLarge")));
            let message = condition["message"].as_str().unwrap();
            for word in ["weighs 6 KiB", "may weigh 4 KiB", "`limits.object` of ConfigMap", "stays as it is"] {
                assert!(message.contains(word), "{message}");
            }
        }
        let reads = asked.iter().filter(|asked| asked.uri.contains("/configmaps/")).count();
        assert_eq!(reads, 1 + 3, "it is looked at three times, and no other is read");
    }

    #[tokio::test(start_paused = true)]
    async fn objects_that_are_too_large_hold_up_no_other() {
        let sizes = &[("l1", 5000), ("l2", 5000), ("l3", 5000), ("small", 50)];
        let limits = Limits { object: 4096, cache: 1 << 20 };
        let fake = weighing_slowly(sizes, limits, 1, Duration::from_secs(100));
        let log = reconciled(&fake, 99).await;
        assert_eq!(log.of("small"), [0]);
        let reads = fake.asked().iter().filter(|asked| asked.uri.contains("/configmaps/")).count();
        assert_eq!(reads, 1, "one at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_room_for_is_read_at_its_turn() {
        let fake = weighing(&[("a", 3000), ("b", 3000), ("c", 3000)], Limits { object: 4096, cache: 7000 });
        let log = reconciled(&fake, 500).await;
        assert_eq!(["a", "b", "c"].map(|name| log.of(name).len()), [1, 1, 1]);
        let asked = fake.asked();
        let read: Vec<_> =
            asked.iter().filter(|asked| asked.uri.contains("/configmaps/")).map(|asked| &asked.uri).collect();
        assert_eq!(read, ["/api/v1/namespaces/ns/configmaps/c"], "{read:?}");
    }

    /// One that changes four times a second and is written back each time raised the wait of all others.
    #[tokio::test(start_paused = true)]
    async fn a_large_object_rests_after_each_pass_and_no_change_of_it_is_lost() {
        let sizes = &[("large", 256 << 10), ("small", 1000)];
        let fake = weighing(sizes, Limits { object: 1 << 20, cache: 1 << 22 });
        // The last change is at no moment of a pass: whether that saw it would be a matter of chance.
        let changes = stream::unfold(0, |number| async move {
            let (name, wait) = if number % 2 == 0 { ("large", 240) } else { ("small", 0) };
            sleep(Duration::from_millis(wait)).await;
            (number < 64).then(|| (Name::new(Some("ns"), name), number + 1))
        });
        let (log, start) = (Log::default(), Instant::now());
        let seen = log.clone();
        let controller = controller(&fake).trigger(changes.chain(stream::once(pending())));
        let run = controller.run(Standby::of(&fake.term), |_| {
            move |object: Arc<ConfigMap>| {
                let at = u64::try_from(start.elapsed().as_millis()).unwrap();
                seen.0.lock().unwrap().push((object.name_any(), at));
                async { Ok::<_, io::Error>(None) }
            }
        });
        timeout(Duration::from_secs(20), run).await.expect_err("it runs until it drains");
        assert_eq!(log.of("small").len(), 1 + 32);
        let passes = log.of("large");
        assert_eq!(passes.len(), 17, "one in half a second: {passes:?}");
        assert!(passes.iter().zip(&passes[1..]).all(|(one, next)| next - one >= 500), "{passes:?}");
        assert!(passes.last() >= Some(&8000), "the last change is seen: {passes:?}");
    }

    #[test]
    fn a_large_object_takes_a_fifth_of_the_time_and_waits_five_seconds_for_it_at_most() {
        let (millis, large) = (Duration::from_millis, 256 << 10);
        for (bytes, took, rests) in [
            (LARGE - 1, 10_000, 0),
            (LARGE, 0, 125),
            (large, 0, 500),
            (large, 125, 500),
            (large, 300, 1200),
            (large, 60_000, 5000),
            (4 << 20, 60_000, 8000),
        ] {
            assert_eq!(rest(bytes, millis(took)), millis(rests), "{bytes} bytes, a pass of {took} ms");
        }
    }

    #[test]
    fn the_resync_is_the_longest_wait() {
        let resync = Duration::from_secs(600);
        assert_eq!(due_in(None, resync, 0.0), (Lane::Sweep, resync));
        assert_eq!(due_in(None, resync, 1.0), (Lane::Sweep, Duration::from_secs(540)));
        assert_eq!(due_in(Some(Duration::from_secs(7)), resync, 0.5), (Lane::Soon, Duration::from_secs(7)));
        assert_eq!(due_in(Some(Duration::from_secs(7000)), resync, 0.0), (Lane::Sweep, resync));
    }
}
