//! What the work on a kind comes to, from the standby or the term that begins it to its end: what waits, what was done, and
//! how its watches fare.
//!
//! A series of a kind exists while this replica leads the kind or fills a cache of it, and counts from there. So a replica
//! that is not concerned shows nothing, and no number outlives the term that it is about.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Unit,
};
use tokio::time::Instant;

use super::{
    bounded::{Names, cut},
    metrics::{OfKind, now, of},
};

/// Field managers that are told apart; a further one counts as [`OTHERS`](super::bounded::OTHERS). Anybody may make them up.
const MANAGERS: usize = 10;
/// Watches of one kind that are told apart.
const WATCHES: usize = 100;

/// A reconciliation takes a request or two; what takes long waits for answers, or for an expression.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// What became of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reconciled {
    /// It is done, until something changes.
    Done,
    /// It is done, and the object is to be looked at again before the resync.
    Again,
    /// It failed, and is tried again after a back-off.
    Failed,
    /// It panicked, and is tried again after a back-off.
    Panicked,
}

const OUTCOMES: [(Reconciled, &str); 4] = [
    (Reconciled::Done, "done"),
    (Reconciled::Again, "again"),
    (Reconciled::Failed, "failed"),
    (Reconciled::Panicked, "panicked"),
];

/// How a watch fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchState {
    /// When its first request failed, if it fails still.
    pub failing_since: Option<Instant>,
    /// How many have failed.
    pub failures: u64,
}

/// A watch that has not failed for so long does not fail any more: it tries again after half a minute at the latest. One that has
/// begun anew says nothing until something happens.
const WELL: Duration = Duration::from_secs(60);

/// When a watch failed first, and last.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// The first time of those that follow each other.
    pub since: Instant,
    /// The last time.
    pub last: Instant,
}

impl Failing {
    /// It has failed once more.
    pub fn again(before: Option<Self>, now: Instant) -> Self {
        Self { since: before.filter(|before| before.lasts(now)).map_or(now, |before| before.since), last: now }
    }

    /// Whether it fails still.
    pub fn lasts(self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < WELL
    }
}

/// Tells how a watch fares.
pub type WatchReport = Arc<dyn Fn() -> WatchState + Send + Sync>;

/// Reads a count that is kept elsewhere.
type Count = Box<dyn Fn() -> usize + Send + Sync>;

/// Where the work on a kind is counted, for one term and the standby before it. Clones are handles on the same.
/// The default is shown nowhere.
#[derive(Clone, Default)]
pub struct Meter {
    inner: Arc<Inner>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

struct Inner {
    recent: Mutex<Recent>,
    reconciles: [AtomicU64; OUTCOMES.len()],
    durations: Histogram,
    running: AtomicUsize,
    /// Watches whose first list is complete, and all.
    listed: (AtomicUsize, AtomicUsize),
    began: Instant,
    /// For how long the first lists took, once they are complete.
    synced: OnceLock<Duration>,
    unswept: AtomicUsize,
    contested: Mutex<Option<Count>>,
    missing_children: Mutex<Option<Count>>,
    gauges: Mutex<Gauges>,
    writes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    undone: Mutex<(Names, BTreeMap<String, u64>)>,
    watches: Mutex<BTreeMap<String, WatchReport>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            recent: Mutex::new(Recent::new(now())),
            reconciles: Default::default(),
            durations: Histogram::new(BUCKETS),
            running: AtomicUsize::default(),
            listed: Default::default(),
            began: now(),
            synced: OnceLock::new(),
            unswept: AtomicUsize::default(),
            contested: Mutex::default(),
            missing_children: Mutex::default(),
            gauges: Mutex::default(),
            writes: Mutex::default(),
            undone: Mutex::default(),
            watches: Mutex::default(),
        }
    }
}

/// What the work on a kind comes to at one moment, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Objects in the cache.
    pub objects: usize,
    /// Objects that wait for their turn, and for how long the first of them has.
    pub waiting: usize,
    /// For how long the object waits that has waited longest.
    pub oldest: Option<Duration>,
    /// Reconciliations since the term began, and how many of them failed or panicked.
    pub reconciles: (u64, u64),
    /// The same within the last minute, or since the work began if that is less long ago.
    pub recent: (u64, u64),
    /// What that minute comes to.
    pub recent_within: Duration,
    /// Watches whose first list is complete, and all: the first sync goes on while they differ.
    pub listed: (usize, usize),
    /// Objects that wait for their turn in a sweep.
    pub unswept: usize,
}

/// A minute, in parts that are forgotten one by one.
const SLOT: Duration = Duration::from_secs(5);
const SLOTS: usize = 12;

/// Reconciliations of the last minute: all, and those that failed.
#[derive(Clone, Copy)]
struct Recent {
    began: Instant,
    /// The slot that is counted in, from the first one on, and the counts of the last ones.
    at: usize,
    slots: [(u64, u64); SLOTS],
}

impl Recent {
    fn new(now: Instant) -> Self {
        Self { began: now, at: 0, slots: [(0, 0); SLOTS] }
    }

    /// Forgets what is over.
    fn go_on(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_millis() / SLOT.as_millis();
        let at = usize::try_from(passed).unwrap_or(usize::MAX);
        for slot in (self.at + 1..=at).take(SLOTS) {
            self.slots[slot % SLOTS] = (0, 0);
        }
        if at.saturating_sub(self.at) >= SLOTS {
            self.slots = [(0, 0); SLOTS];
        }
        self.at = self.at.max(at);
    }

    fn add(&mut self, now: Instant, failed: bool) {
        self.go_on(now);
        let (all, failures) = &mut self.slots[self.at % SLOTS];
        *all += 1;
        *failures += u64::from(failed);
    }

    /// All, and those that failed, within a time that ends now.
    fn read(&mut self, now: Instant) -> ((u64, u64), Duration) {
        self.go_on(now);
        let sum = self.slots.iter().fold((0, 0), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1));
        let since_began = now.saturating_duration_since(self.began);
        // The slots before this one are whole, and this one has just begun or is nearly over.
        let first = self.at.saturating_sub(SLOTS - 1);
        let within = since_began.saturating_sub(SLOT * u32::try_from(first).unwrap_or(u32::MAX));
        (sum, within)
    }
}

#[derive(Clone, Copy, Default)]
struct Gauges {
    objects: usize,
    depth: usize,
    /// Since when the object waits that waits longest.
    oldest: Option<Instant>,
    /// Bytes of the objects that are kept, and how many are too large or not kept.
    kept: (usize, usize, usize),
    /// When the API server last said anything of the kind's objects.
    heard: Option<Instant>,
}

impl Meter {
    /// How many objects the cache holds, how many wait for their turn, and since when the first of these does.
    pub fn queue(&self, objects: usize, depth: usize, oldest: Option<Instant>) {
        let mut gauges = lock(&self.inner.gauges);
        (gauges.objects, gauges.depth, gauges.oldest) = (objects, depth, oldest);
    }

    /// What the objects come to that the cache holds: bytes of those that are kept, how many are too large, and how many
    /// others there was no room for.
    pub fn kept(&self, bytes: u64, too_large: usize, not_kept: usize) {
        let mut gauges = lock(&self.inner.gauges);
        gauges.kept = (usize::try_from(bytes).unwrap_or(usize::MAX), too_large, not_kept);
    }

    /// So many reconciliations are running.
    pub fn running(&self, count: usize) {
        self.inner.running.store(count, Ordering::Relaxed);
    }

    /// A reconciliation has ended.
    pub fn reconciled(&self, outcome: Reconciled, took: Duration) {
        for ((of, _), count) in OUTCOMES.iter().zip(&self.inner.reconciles) {
            count.fetch_add(u64::from(*of == outcome), Ordering::Relaxed);
        }
        self.inner.durations.observe(took.as_secs_f64());
        lock(&self.inner.recent).add(now(), matches!(outcome, Reconciled::Failed | Reconciled::Panicked));
    }

    /// A write was answered, or not. Both words are of a fixed set.
    pub fn wrote(&self, verb: &'static str, result: &'static str) {
        *lock(&self.inner.writes).entry((verb, result)).or_default() += 1;
    }

    /// The API server has said something of the kind's objects, be it that nothing is new.
    pub fn heard(&self) {
        lock(&self.inner.gauges).heard = Some(now());
    }

    /// A watch that the kind reads, and how it fares whenever that is asked. A second one of the name takes its place.
    pub fn watch(&self, name: &str, report: WatchReport) {
        let mut watches = lock(&self.inner.watches);
        if watches.len() < WATCHES {
            watches.insert(cut(name), report);
        }
    }

    /// So many of all watches have listed once.
    pub fn listed(&self, listed: usize, of: usize) {
        self.inner.listed.0.store(listed, Ordering::Relaxed);
        self.inner.listed.1.store(of, Ordering::Relaxed);
        if listed == of {
            self.inner.synced.get_or_init(|| now().saturating_duration_since(self.inner.began));
        }
    }

    /// So many objects were not looked at since the term began.
    pub fn unswept(&self, count: usize) {
        self.inner.unswept.store(count, Ordering::Relaxed);
    }

    /// Where it is read how many children are contested.
    pub fn contested(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        *lock(&self.inner.contested) = Some(Box::new(count));
    }

    /// Where it is read how many children there is no room for.
    pub fn missing_children(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        *lock(&self.inner.missing_children) = Some(Box::new(count));
    }

    /// This field manager has undone what was written of a contested child.
    pub fn undone(&self, manager: &str) {
        let (managers, undone) = &mut *lock(&self.inner.undone);
        *undone.entry(managers.label(manager, MANAGERS)).or_default() += 1;
    }
}

/// A meter that can be shown, until this is dropped.
#[derive(Debug)]
pub struct Metered {
    meter: Meter,
    kind: String,
    all: Meters,
}

impl Metered {
    /// The meter.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Work begins: its series are shown, and those of no earlier meter of the kind.
    pub fn show(&self) {
        lock(&self.all.0).insert(self.kind.clone(), Arc::downgrade(&self.meter.inner));
    }

    /// The work has ended.
    pub fn hide(&self) {
        let mut all = lock(&self.all.0);
        let is_it = |known: &Weak<Inner>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&self.meter.inner));
        if all.get(&self.kind).is_some_and(is_it) {
            all.remove(&self.kind);
        }
        drop(all);
        // What it reads may hold a cache.
        lock(&self.meter.inner.watches).clear();
        *lock(&self.meter.inner.contested) = None;
        *lock(&self.meter.inner.missing_children) = None;
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.hide();
    }
}

/// The meters that are shown, one a kind.
#[derive(Clone, Default)]
pub(super) struct Meters(Arc<Mutex<HashMap<String, Weak<Inner>>>>);

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// What the work on a kind comes to now, if this replica does any.
    pub(super) fn summary(&self, kind: &str) -> Option<Summary> {
        let inner = lock(&self.0).get(kind)?.upgrade()?;
        let now = now();
        let gauges = *lock(&inner.gauges);
        let (recent, recent_within) = lock(&inner.recent).read(now);
        let count = |which: &[Reconciled]| -> u64 {
            let of = OUTCOMES.iter().zip(&inner.reconciles).filter(|((outcome, _), _)| which.contains(outcome));
            of.map(|(_, count)| count.load(Ordering::Relaxed)).sum()
        };
        let reconciles =
            (count(&OUTCOMES.map(|(outcome, _)| outcome)), count(&[Reconciled::Failed, Reconciled::Panicked]));
        // What a reconciler does that counts nothing is not known.
        let counts = reconciles.0 > 0 || gauges.objects > 0 || inner.listed.1.load(Ordering::Relaxed) > 0;
        counts.then(|| Summary {
            objects: gauges.objects,
            waiting: gauges.depth,
            oldest: gauges.oldest.map(|since| now.saturating_duration_since(since)),
            reconciles,
            recent,
            recent_within,
            listed: (inner.listed.0.load(Ordering::Relaxed), inner.listed.1.load(Ordering::Relaxed)),
            unswept: inner.unswept.load(Ordering::Relaxed),
        })
    }

    /// A meter for the kind, which is not shown yet.
    pub(super) fn meter(&self, kind: &str) -> Metered {
        Metered { meter: Meter::default(), kind: kind.to_owned(), all: self.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    kind: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWrite {
    kind: String,
    verb: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWatch {
    kind: String,
    watch: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfManager {
    kind: String,
    manager: String,
}

/// The series of all meters, as they are at a scrape.
struct Page<'a, 'e> {
    kinds: Vec<(String, Arc<Inner>)>,
    encoder: &'a mut DescriptorEncoder<'e>,
}

type Series<L, V> = Vec<(L, V)>;

impl Page<'_, '_> {
    /// One series a kind.
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl Fn(&Inner) -> Option<f64>,
    ) -> fmt::Result {
        let one = |(kind, inner): &(String, Arc<Inner>)| Some((of(kind), value(inner)?));
        let series: Series<OfKind, f64> = self.kinds.iter().filter_map(one).collect();
        self.gauges(name, help, unit, series)
    }

    fn count(&mut self, name: &str, help: &str, value: impl Fn(&Inner) -> usize) -> fmt::Result {
        self.gauge(name, help, None, |inner| Some(float(value(inner))))
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: Series<L, f64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        series.iter().try_for_each(|(labels, value)| ConstGauge::new(*value).encode(family.encode_family(labels)?))
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Fn(&str, &Inner) -> Series<L, u64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in self.kinds.iter().flat_map(|(kind, inner)| series(kind, inner)) {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, of_kind: impl Fn(&Inner) -> &Histogram) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (kind, inner) in &self.kinds {
            of_kind(inner).encode(family.encode_family(&of(kind))?)?;
        }
        Ok(())
    }
}

impl Collector for Meters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut kinds: Vec<_> =
            lock(&self.0).iter().filter_map(|(kind, inner)| Some((kind.clone(), inner.upgrade()?))).collect();
        kinds.sort_by(|one, other| one.0.cmp(&other.0));
        // How the watches fare is read before anything is written: what tells it takes locks of its own.
        let read = |(kind, inner): &(String, Arc<Inner>)| {
            let reports = lock(&inner.watches).clone();
            let state = |(watch, report): (String, WatchReport)| (OfWatch { kind: kind.clone(), watch }, report());
            reports.into_iter().map(state).collect::<Vec<_>>()
        };
        let watches: Vec<(OfWatch, WatchState)> = kinds.iter().flat_map(read).collect();
        let now = now();
        let age = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let mut page = Page { kinds, encoder: &mut encoder };
        page.count("objects", "Objects of the kind in the cache of this replica", |it| lock(&it.gauges).objects)?;
        page.gauge(
            "cached_objects",
            "Weight, as JSON, of the objects of the kind that this replica keeps in memory",
            Some(&Unit::Bytes),
            |it| Some(float(lock(&it.gauges).kept.0)),
        )?;
        page.count(
            "too_large_objects",
            "Objects that weigh more than limits.object of the kind, and are not reconciled",
            |it| lock(&it.gauges).kept.1,
        )?;
        page.count(
            "uncached_objects",
            "Objects that limits.cache of the kind has no room for: they are read each time that they are reconciled",
            |it| lock(&it.gauges).kept.2,
        )?;
        page.count(
            "uncached_children",
            "Children that limits.cache of the kinds of the Lease has no room for: they are read when their owner is reconciled",
            |it| lock(&it.missing_children).as_ref().map_or(0, |count| count()),
        )?;
        page.count("queue_depth", "Objects that wait to be reconciled", |it| lock(&it.gauges).depth)?;
        page.gauge(
            "queue_oldest",
            "For how long the object waits that has waited longest to be reconciled; 0 if none waits",
            Some(&Unit::Seconds),
            |it| Some(lock(&it.gauges).oldest.map_or(0.0, age)),
        )?;
        page.count("reconciles_running", "Reconciliations that are running", |it| it.running.load(Ordering::Relaxed))?;
        page.counters("reconciles", "Reconciliations by what became of them", |kind, it| {
            let series = |((_, outcome), count): (&(Reconciled, &'static str), &AtomicU64)| {
                (OfOutcome { kind: kind.to_owned(), outcome }, count.load(Ordering::Relaxed))
            };
            OUTCOMES.iter().zip(&it.reconciles).map(series).collect()
        })?;
        page.histogram("reconcile_duration", "Time a reconciliation took", |it| &it.durations)?;
        page.counters(
            "writes",
            "Writes through the client of the term, by verb and what became of them",
            |kind, it| {
                let series = |(&(verb, result), &count): (&(&'static str, &'static str), &u64)| {
                    (OfWrite { kind: kind.to_owned(), verb, result }, count)
                };
                lock(&it.writes).iter().map(series).collect()
            },
        )?;
        page.gauge(
            "watch_age",
            "Time since the API server last said anything of the kind's objects, be it that nothing is new; a watch that is well is asked anew at least every 15 seconds",
            Some(&Unit::Seconds),
            |it| lock(&it.gauges).heard.map(age),
        )?;
        let failing = |(labels, state): &(OfWatch, WatchState)| (labels.clone(), state.failing_since.map_or(0.0, age));
        page.gauges(
            "watch_failing",
            "For how long a watch has failed that the kind reads; 0 if it does not",
            Some(&Unit::Seconds),
            watches.iter().map(failing).collect(),
        )?;
        page.counters("watch_failures", "Requests of a watch that failed, by watch", |kind, _| {
            let of_kind = watches.iter().filter(|(labels, _)| labels.kind == kind);
            of_kind.map(|(labels, state)| (labels.clone(), state.failures)).collect()
        })?;
        page.count("watches", "Watches that the kind reads", |it| it.listed.1.load(Ordering::Relaxed))?;
        page.count("watches_listed", "Watches that the kind reads whose first list is complete", |it| {
            it.listed.0.load(Ordering::Relaxed)
        })?;
        page.gauge(
            "initial_sync",
            "For how long the first lists of the kind's watches have taken, and once they are complete, took",
            Some(&Unit::Seconds),
            |it| {
                let counts = it.listed.1.load(Ordering::Relaxed) > 0;
                let taken = || it.synced.get().map_or_else(|| age(it.began), Duration::as_secs_f64);
                counts.then(taken)
            },
        )?;
        page.count("unswept_objects", "Objects that wait for their turn in a sweep: those that a term has not come to since it began, or the resync", |it| {
            it.unswept.load(Ordering::Relaxed)
        })?;
        page.count(
            "contested_children",
            "Children that another writer changes back each time they are written",
            |it| lock(&it.contested).as_ref().map_or(0, |count| count()),
        )?;
        page.counters(
            "undone_writes",
            "Rounds of contested children that were undone by this field manager; `other` after the first 10",
            |kind, it| {
                let series = |(manager, count): (&String, &u64)| {
                    (OfManager { kind: kind.to_owned(), manager: manager.clone() }, *count)
                };
                lock(&it.undone).1.iter().map(series).collect()
            },
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count that is shown")]
fn float(count: usize) -> f64 {
    count as f64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{metrics::Metrics, status::Status};

    fn lines(metrics: &Metrics) -> Vec<String> {
        let page = metrics.encode().unwrap();
        page.lines().filter(|line| line.contains("kind=\"W\"")).map(str::to_owned).collect()
    }

    fn metrics() -> Metrics {
        Metrics::new([], Status::default())
    }

    #[tokio::test(start_paused = true)]
    async fn each_number_is_shown_under_its_name_until_the_work_ends() {
        let metrics = metrics();
        assert_eq!(lines(&metrics), Vec::<String>::new());
        let metered = metrics.work("W");
        assert_eq!(lines(&metrics), Vec::<String>::new());
        metered.show();
        let meter = metered.meter();
        meter.heard();
        meter.queue(5, 3, Some(now()));
        meter.kept(9000, 1, 2);
        meter.running(2);
        meter.listed(1, 2);
        meter.unswept(4);
        meter.contested(|| 1);
        meter.missing_children(|| 6);
        meter.undone("kubectl-edit");
        meter.reconciled(Reconciled::Done, Duration::from_millis(2));
        meter.reconciled(Reconciled::Failed, Duration::from_secs(2));
        meter.wrote("patch", "ok");
        let failing_since = Some(now());
        meter.watch("v1 ConfigMap", Arc::new(move || WatchState { failing_since, failures: 7 }));
        tokio::time::advance(Duration::from_secs(9)).await;
        let shown = lines(&metrics);
        for line in [
            "leasehold_objects{kind=\"W\"} 5.0",
            "leasehold_cached_objects_bytes{kind=\"W\"} 9000.0",
            "leasehold_too_large_objects{kind=\"W\"} 1.0",
            "leasehold_uncached_objects{kind=\"W\"} 2.0",
            "leasehold_uncached_children{kind=\"W\"} 6.0",
            "leasehold_queue_depth{kind=\"W\"} 3.0",
            "leasehold_queue_oldest_seconds{kind=\"W\"} 9.0",
            "leasehold_reconciles_running{kind=\"W\"} 2.0",
            "leasehold_reconciles_total{kind=\"W\",outcome=\"done\"} 1",
            "leasehold_reconciles_total{kind=\"W\",outcome=\"again\"} 0",
            "leasehold_reconciles_total{kind=\"W\",outcome=\"failed\"} 1",
            "leasehold_reconciles_total{kind=\"W\",outcome=\"panicked\"} 0",
            "leasehold_reconcile_duration_seconds_count{kind=\"W\"} 2",
            "leasehold_reconcile_duration_seconds_bucket{le=\"0.0025\",kind=\"W\"} 1",
            "leasehold_writes_total{kind=\"W\",verb=\"patch\",result=\"ok\"} 1",
            "leasehold_watch_age_seconds{kind=\"W\"} 9.0",
            "leasehold_watch_failing_seconds{kind=\"W\",watch=\"v1 ConfigMap\"} 9.0",
            "leasehold_watch_failures_total{kind=\"W\",watch=\"v1 ConfigMap\"} 7",
            "leasehold_watches{kind=\"W\"} 2.0",
            "leasehold_watches_listed{kind=\"W\"} 1.0",
            "leasehold_initial_sync_seconds{kind=\"W\"} 9.0",
            "leasehold_unswept_objects{kind=\"W\"} 4.0",
            "leasehold_contested_children{kind=\"W\"} 1.0",
            "leasehold_undone_writes_total{kind=\"W\",manager=\"kubectl-edit\"} 1",
        ] {
            assert!(shown.iter().any(|found| found == line), "{line} is missing from\n{}", shown.join("\n"));
        }
        // It took so long, and lasts no longer.
        meter.listed(2, 2);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(lines(&metrics).contains(&"leasehold_initial_sync_seconds{kind=\"W\"} 9.0".to_owned()));
        drop(metered);
        // A meter that is still held shows nothing.
        meter.wrote("patch", "ok");
        assert_eq!(lines(&metrics), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_summary_counts_the_last_minute() {
        let metrics = metrics();
        assert_eq!(metrics.summary("W"), None);
        let metered = metrics.work("W");
        metered.show();
        let meter = metered.meter();
        meter.queue(5, 3, Some(now()));
        let summary = || {
            let Summary { recent, recent_within, .. } = metrics.summary("W").unwrap();
            (recent, recent_within.as_secs())
        };
        tokio::time::advance(Duration::from_secs(4)).await;
        for outcome in [Reconciled::Done, Reconciled::Again, Reconciled::Failed, Reconciled::Panicked] {
            meter.reconciled(outcome, Duration::from_millis(2));
        }
        assert_eq!(summary(), ((4, 2), 4));
        tokio::time::advance(Duration::from_secs(50)).await;
        meter.reconciled(Reconciled::Done, Duration::from_millis(2));
        assert_eq!(summary(), ((5, 2), 54));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(summary(), ((1, 0), 59));
        tokio::time::advance(Duration::from_secs(3600)).await;
        let all = metrics.summary("W").unwrap();
        assert_eq!((all.recent, all.reconciles, all.objects, all.waiting), ((0, 0), (5, 2), 5, 3));
        assert_eq!(all.oldest.map(|oldest| oldest.as_secs()), Some(3664));
        metered.hide();
        assert_eq!(metrics.summary("W"), None);
    }

    #[test]
    fn a_later_term_begins_from_nothing_and_the_end_of_an_earlier_one_takes_nothing_from_it() {
        let metrics = metrics();
        let earlier = metrics.work("W");
        earlier.show();
        earlier.meter().wrote("patch", "ok");
        let later = metrics.work("W");
        later.show();
        later.meter().wrote("create", "conflict");
        drop(earlier);
        let writes: Vec<_> = lines(&metrics).into_iter().filter(|line| line.contains("_writes_total{")).collect();
        assert_eq!(writes, ["leasehold_writes_total{kind=\"W\",verb=\"create\",result=\"conflict\"} 1"]);
    }

    #[test]
    fn names_from_outside_make_no_end_of_series() {
        let metrics = metrics();
        let metered = metrics.work("W");
        metered.show();
        for number in 0..1000 {
            metered.meter().undone(&format!("{number}-{}", "é".repeat(500)));
            metered.meter().watch(&number.to_string(), Arc::new(WatchState::default));
        }
        let shown = lines(&metrics);
        let of = |name: &str| shown.iter().filter(|line| line.contains(name)).count();
        assert_eq!((of("undone_writes"), of("watch_failures")), (MANAGERS + 1, WATCHES));
        assert!(shown.iter().all(|line| line.len() < 200), "{shown:?}");
        assert!(shown.iter().any(|line| line.ends_with("manager=\"other\"} 990")), "{shown:?}");
    }
}
