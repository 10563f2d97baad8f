//! The metrics of one replica, by kind.
//!
//! Every series of every configured kind exists from the start, so that "no value yet" and "not scraped" look different;
//! but for those of the [`work`](super::work) on a kind, which is done by one replica at a time.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::{
    bounded::Names,
    process::Process,
    shown::Shown,
    status::Status,
    work::{Metered, Meters, Summary},
};

/// Labels of a series about one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfKind {
    kind: String,
}

/// Labels of a series about one Lease, also of a kind that this replica is not configured for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLease {
    lease: String,
}

/// Labels that say by which Lease a kind is led.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LedBy {
    kind: String,
    lease: String,
    /// Empty for a kind that shares its Lease with none.
    group: String,
}

/// Labels that say what a replica is, and what of its settings rules over others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReplica {
    installation: String,
    generation: String,
    rebalance: &'static str,
    on_loss: &'static str,
}

/// No labels: a family of one series, which does not exist before it is set.
type Single = [(&'static str, &'static str); 0];

/// What a replica is configured with, as far as numbers are judged by it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the installation: `instance` in the configuration.
    pub installation: String,
    /// Hash of the template that the Pod was made from; empty when unknown.
    pub generation: String,
    /// `placement.rebalance`.
    pub rebalance: &'static str,
    /// `onLoss`.
    pub on_loss: &'static str,
    /// `placement.capacity`.
    pub capacity: u32,
    /// `leases.duration`.
    pub lease_duration: Duration,
    /// `leases.renewDeadline`.
    pub renew_deadline: Duration,
}

/// Leases of others that are told apart where they are counted.
const FOREIGN_LEASES: usize = 10;

/// Labels of the request counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    verb: String,
    outcome: String,
}

/// Labels of the series about webhook requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWebhook {
    webhook: String,
    outcome: String,
}

/// Labels of the series about a server's clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfServer {
    server: &'static str,
    limit: &'static str,
}

/// Labels of the counter of certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: String,
}

/// The metrics of one replica; clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    process: Registry,
    registry: Registry,
    series: Series,
    status: Arc<OnceLock<Status>>,
    leases: Mutex<Names>,
    dropped_log_lines: Arc<OnceLock<Reading>>,
    work: Meters,
}

/// Reads a count that is kept elsewhere.
type Reading = Box<dyn Fn() -> u64 + Send + Sync>;

struct Series {
    info: Family<LedBy, Gauge>,
    leading: Family<OfKind, Gauge>,
    up: Family<OfKind, Gauge, fn() -> Gauge>,
    transitions: Family<OfKind, Counter>,
    renewal: Family<OfKind, Histogram>,
    without_owner: Family<OfKind, Histogram>,
    drain: Family<OfKind, Histogram>,
    aborted: Family<OfKind, Counter>,
    fenced: Family<OfKind, Counter>,
    standby_writes: Family<OfKind, Counter>,
    observer_failures: Family<OfKind, Counter>,
    failed: Family<OfKind, Counter>,
    handovers: Family<OfKind, Counter>,
    cached: Family<OfKind, Gauge>,
    deaf: Family<OfKind, Gauge>,
    foreign: Family<OfKind, Gauge>,
    missed: Family<OfLease, Counter>,
    replicas: Gauge,
    requests: Family<OfRequest, Counter>,
    webhooks: Family<OfWebhook, Histogram>,
    closed: Family<OfServer, Counter>,
    refused: Family<OfServer, Counter>,
    certificates: Family<OfReason, Counter>,
    certificate_until: Family<Single, Gauge>,
    guarded: Family<OfKind, Gauge>,
    settings: Family<OfReplica, Gauge>,
    capacity: Gauge,
    lease_duration: Gauge<f64, AtomicU64>,
    renew_deadline: Gauge<f64, AtomicU64>,
    load: Gauge,
    lease_weight: Family<OfLease, Gauge>,
    deafened: Family<OfKind, Counter>,
    lease_watch_up: Gauge,
    lease_watch_failures: Counter,
    lease_watch_events: Counter,
}

/// Nothing blocks a kind until something is seen to.
fn unblocked() -> Gauge {
    let up = Gauge::default();
    up.set(1);
    up
}

/// Webhooks: each one stands in the way of a write.
fn webhook_buckets() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0])
}

/// Renewals: a healthy one takes milliseconds, and none may outlast the request timeout.
fn renewal_buckets() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0])
}

/// Hand-overs take milliseconds, failovers a lease duration, an outage minutes.
fn without_owner_buckets() -> Histogram {
    Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 300.0])
}

/// Drains end within the drain timeout, which is half a minute unless configured.
fn drain_buckets() -> Histogram {
    Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0])
}

impl Series {
    fn register(registry: &mut Registry) -> Self {
        let series = Self {
            info: Family::default(),
            leading: Family::default(),
            up: Family::new_with_constructor(unblocked),
            transitions: Family::default(),
            renewal: Family::new_with_constructor(renewal_buckets),
            without_owner: Family::new_with_constructor(without_owner_buckets),
            drain: Family::new_with_constructor(drain_buckets),
            aborted: Family::default(),
            fenced: Family::default(),
            standby_writes: Family::default(),
            observer_failures: Family::default(),
            failed: Family::default(),
            handovers: Family::default(),
            cached: Family::default(),
            deaf: Family::default(),
            foreign: Family::default(),
            missed: Family::default(),
            replicas: Gauge::default(),
            requests: Family::default(),
            webhooks: Family::new_with_constructor(webhook_buckets),
            closed: Family::default(),
            refused: Family::default(),
            certificates: Family::default(),
            certificate_until: Family::default(),
            guarded: Family::default(),
            settings: Family::default(),
            capacity: Gauge::default(),
            lease_duration: Gauge::default(),
            renew_deadline: Gauge::default(),
            load: Gauge::default(),
            lease_weight: Family::default(),
            deafened: Family::default(),
            lease_watch_up: Gauge::default(),
            lease_watch_failures: Counter::default(),
            lease_watch_events: Counter::default(),
        };
        let r = registry;
        r.register("build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register(
            "replica_info",
            "The installation and the generation of this replica, and what of its settings rules over others; always 1",
            series.settings.clone(),
        );
        r.register("capacity", "How much this replica takes, relative to the others", series.capacity.clone());
        r.register_with_unit(
            "lease_duration",
            "For how long a Lease is valid after a renewal",
            Unit::Seconds,
            series.lease_duration.clone(),
        );
        r.register_with_unit(
            "renew_deadline",
            "A term ends when its Lease was not renewed for so long",
            Unit::Seconds,
            series.renew_deadline.clone(),
        );
        r.register("load", "Sum of the weights of the Leases whose kinds this replica leads", series.load.clone());
        r.register("lease_weight", "Sum of the weights of the kinds of a Lease", series.lease_weight.clone());
        r.register(
            "hearing_losses",
            "Times that this replica led the kind and ceased to hear of changes",
            series.deafened.clone(),
        );
        r.register(
            "lease_watch_up",
            "Whether the watch of the Leases is up; each Lease is read instead while it is not (0 or 1)",
            series.lease_watch_up.clone(),
        );
        r.register(
            "lease_watch_failures",
            "Times that the watch of the Leases failed; it lists them anew then",
            series.lease_watch_failures.clone(),
        );
        r.register(
            "lease_watch_events",
            "Leases that the watch has shown as stored or deleted, after its lists",
            series.lease_watch_events.clone(),
        );
        r.register(
            "kind_info",
            "The Lease that a kind is led by, and the group that it shares that with; always 1",
            series.info.clone(),
        );
        r.register(
            "leading",
            "Whether this replica holds the kind's Lease and reconciles (0 or 1)",
            series.leading.clone(),
        );
        r.register(
            "kind_up",
            "Whether this replica can run the kind; 0 when its CRD is missing or a permission is denied",
            series.up.clone(),
        );
        r.register("transitions", "Changes of the Lease's holder seen by this replica", series.transitions.clone());
        r.register_with_unit(
            "renewal_duration",
            "Time a successful renewal of the Lease took",
            Unit::Seconds,
            series.renewal.clone(),
        );
        r.register_with_unit(
            "without_owner",
            "Length of each time without an owner of the kind, as seen by this replica",
            Unit::Seconds,
            series.without_owner.clone(),
        );
        r.register_with_unit(
            "drain_duration",
            "Time from asking a term to drain until its work had ended",
            Unit::Seconds,
            series.drain.clone(),
        );
        r.register(
            "aborted_terms",
            "Terms whose work was cut off because it did not drain in time",
            series.aborted.clone(),
        );
        r.register("fenced_writes", "Writes refused because their term was no longer valid", series.fenced.clone());
        r.register(
            "standby_writes",
            "Writes refused because what wrote only stands by for the kind, or observes it",
            series.standby_writes.clone(),
        );
        r.register(
            "observer_failures",
            "Observers of the kind that ended by themselves, failed or panicked",
            series.observer_failures.clone(),
        );
        r.register("failed_terms", "Terms whose reconciler returned early, failed or panicked", series.failed.clone());
        r.register("handovers", "Terms that drained for a named successor", series.handovers.clone());
        r.register(
            "cached",
            "Whether this replica keeps a filled cache of a kind that it does not lead (0 or 1)",
            series.cached.clone(),
        );
        r.register(
            "deaf",
            "Whether this replica leads the kind and does not hear of changes (0 or 1)",
            series.deaf.clone(),
        );
        r.register(
            "foreign_holder",
            "Whether the Lease of the kind is held in a name that is of no replica of this installation (0 or 1)",
            series.foreign.clone(),
        );
        r.register(
            "missed_takeovers",
            "Leases that a replica did not take although it was given them, as seen by this replica",
            series.missed.clone(),
        );
        r.register("replicas", "Replicas that this one sees, itself among them", series.replicas.clone());
        r.register("lease_requests", "Requests for Leases by verb and outcome", series.requests.clone());
        r.register_with_unit(
            "webhook_duration",
            "Time from the head of a webhook request to its answer",
            Unit::Seconds,
            series.webhooks.clone(),
        );
        r.register(
            "connections_closed",
            "Connections of clients that were closed for a newer one: their peer had its share of them (peer), or all peers together (all)",
            series.closed.clone(),
        );
        r.register(
            "requests_refused",
            "Requests of clients that were refused because of a limit: the pace of their peer (pace), requests at a time (requests), or bytes at a time (bytes)",
            series.refused.clone(),
        );
        r.register(
            "webhook_certificates_made",
            "Serving certificates that this replica has made, as the leader: because one was due, or what was stored could not be served",
            series.certificates.clone(),
        );
        r.register_with_unit(
            "webhook_certificate_until_timestamp",
            "Until when the certificate is good that this replica serves webhooks with; 0 without one; where none are served there is no series",
            Unit::Seconds,
            series.certificate_until.clone(),
        );
        r.register(
            "webhook_guarded",
            "Whether the API server asks the webhooks about every object of the kind before it stores one (0 or 1); where none are served there is no series",
            series.guarded.clone(),
        );
        series
    }

    fn create(&self, kind: &str) {
        let labels = &of(kind);
        drop(self.leading.get_or_create(labels));
        drop(self.cached.get_or_create(labels));
        drop(self.deaf.get_or_create(labels));
        drop(self.foreign.get_or_create(labels));
        drop(self.up.get_or_create(labels));
        for family in [
            &self.transitions,
            &self.aborted,
            &self.fenced,
            &self.standby_writes,
            &self.observer_failures,
            &self.failed,
            &self.handovers,
            &self.deafened,
        ] {
            drop(family.get_or_create(labels));
        }
        for family in [&self.renewal, &self.without_owner, &self.drain] {
            drop(family.get_or_create(labels));
        }
    }
}

pub(super) fn of(kind: &str) -> OfKind {
    OfKind { kind: kind.to_owned() }
}

/// Metrics without kinds and without a status: those of a replica are added when it starts.
impl Default for Metrics {
    fn default() -> Self {
        Self::of([])
    }
}

impl Metrics {
    /// Metrics with every series of each of `kinds`, which are spelt as in [`ShardStatus::kind`](super::status::ShardStatus::kind).
    /// What grows old by itself, such as the age of each last renewal, is read from `status` when metrics are asked for.
    pub fn new(kinds: impl IntoIterator<Item = String>, status: Status) -> Self {
        let metrics = Self::of(kinds);
        metrics.read(status);
        metrics
    }

    fn of(kinds: impl IntoIterator<Item = String>) -> Self {
        let mut registry = Registry::with_prefix("leasehold");
        let series = Series::register(&mut registry);
        for kind in kinds {
            series.create(&kind);
        }
        let status = Arc::default();
        registry.register_collector(Box::new(Shown { status: Arc::clone(&status) }));
        let dropped_log_lines = Arc::default();
        registry.register_collector(Box::new(DroppedLogLines(Arc::clone(&dropped_log_lines))));
        let work = Meters::default();
        registry.register_collector(Box::new(work.clone()));
        let mut process = Registry::default();
        process.register_collector(Box::new(Process));
        let leases = Mutex::default();
        Self { inner: Arc::new(Inner { process, registry, series, status, leases, dropped_log_lines, work }) }
    }

    /// Where to read what grows old by itself; a second call changes nothing.
    pub(crate) fn read(&self, status: Status) {
        // An error means that it is set already.
        let _ = self.inner.status.set(status);
    }

    /// What this replica is configured with.
    pub fn configured(&self, settings: &Settings) {
        let Settings { installation, generation, rebalance, on_loss, capacity, lease_duration, renew_deadline } =
            settings;
        let (installation, generation) = (installation.clone(), generation.clone());
        let labels = OfReplica { installation, generation, rebalance, on_loss };
        self.inner.series.settings.get_or_create(&labels).set(1);
        self.inner.series.capacity.set(i64::from(*capacity));
        self.inner.series.lease_duration.set(lease_duration.as_secs_f64());
        self.inner.series.renew_deadline.set(renew_deadline.as_secs_f64());
    }

    /// Where the work on a kind is counted, from the standby for a term to its end.
    pub fn work(&self, kind: &str) -> Metered {
        self.inner.work.meter(kind)
    }

    /// What the work on a kind comes to now, if this replica does any that is counted.
    pub(super) fn summary(&self, kind: &str) -> Option<Summary> {
        self.inner.work.summary(kind)
    }

    /// Where the number of dropped log lines is read when metrics are asked for. There is no such series before; a second
    /// call changes nothing.
    pub fn read_dropped_log_lines(&self, read: impl Fn() -> u64 + Send + Sync + 'static) {
        // An error means that it is set already.
        let _ = self.inner.dropped_log_lines.set(Box::new(read));
    }

    /// The kind is led by this Lease, which it shares with the kinds of this group.
    pub fn belongs(&self, kind: &str, lease: &str, group: Option<&str>) {
        self.inner.series.create(kind);
        self.leases().know(lease);
        // From 0 on: what rises from nothing is no increase to Prometheus.
        drop(self.inner.series.missed.get_or_create(&OfLease { lease: lease.to_owned() }));
        let group = group.unwrap_or_default().to_owned();
        let labels = LedBy { kind: kind.to_owned(), lease: lease.to_owned(), group };
        self.inner.series.info.get_or_create(&labels).set(1);
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Names> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kinds of a Lease weigh together.
    pub fn set_lease_weight(&self, lease: &str, weight: u32) {
        let labels = OfLease { lease: lease.to_owned() };
        self.inner.series.lease_weight.get_or_create(&labels).set(i64::from(weight));
    }

    /// What the Leases weigh together whose kinds this replica leads.
    pub fn set_load(&self, load: u64) {
        self.inner.series.load.set(i64::try_from(load).unwrap_or(i64::MAX));
    }

    /// The watch of the Leases has listed them all.
    pub fn lease_watch_listed(&self) {
        self.inner.series.lease_watch_up.set(1);
    }

    /// The watch of the Leases has shown a change.
    pub fn lease_watch_event(&self) {
        self.inner.series.lease_watch_events.inc();
    }

    /// The watch of the Leases has failed.
    pub fn lease_watch_failed(&self) {
        self.inner.series.lease_watch_up.set(0);
        self.inner.series.lease_watch_failures.inc();
    }

    /// Whether this replica leads the kind.
    pub fn set_leading(&self, kind: &str, leading: bool) {
        self.inner.series.leading.get_or_create(&of(kind)).set(leading.into());
    }

    /// Another holder was seen on the Lease than before.
    pub fn transition(&self, kind: &str) {
        self.inner.series.transitions.get_or_create(&of(kind)).inc();
    }

    /// A renewal succeeded, `latency` after it was sent.
    pub fn renewed(&self, kind: &str, latency: Duration) {
        self.inner.series.renewal.get_or_create(&of(kind)).observe(latency.as_secs_f64());
    }

    /// The kind has an owner again after `gap` without one.
    pub fn without_owner(&self, kind: &str, gap: Duration) {
        self.inner.series.without_owner.get_or_create(&of(kind)).observe(gap.as_secs_f64());
    }

    /// A term's work ended, `took` after it was asked to drain.
    pub fn drained(&self, kind: &str, took: Duration) {
        self.inner.series.drain.get_or_create(&of(kind)).observe(took.as_secs_f64());
    }

    /// A term was aborted.
    pub fn aborted(&self, kind: &str) {
        self.inner.series.aborted.get_or_create(&of(kind)).inc();
    }

    /// The fence refused a write.
    pub fn fenced(&self, kind: &str) {
        self.inner.series.fenced.get_or_create(&of(kind)).inc();
    }

    /// A fence refused a write before its term.
    pub fn standby_write(&self, kind: &str) {
        self.inner.series.standby_writes.get_or_create(&of(kind)).inc();
    }

    /// An observer ended by itself.
    pub fn observer_failed(&self, kind: &str) {
        self.inner.series.observer_failures.get_or_create(&of(kind)).inc();
    }

    /// A term's reconciler ended by itself.
    pub fn term_failed(&self, kind: &str) {
        self.inner.series.failed.get_or_create(&of(kind)).inc();
    }

    /// A term drains for a successor that was named.
    pub fn handed_over(&self, kind: &str) {
        self.inner.series.handovers.get_or_create(&of(kind)).inc();
    }

    /// Whether this replica keeps a filled cache of a kind that it does not lead.
    pub fn set_cached(&self, kind: &str, cached: bool) {
        self.inner.series.cached.get_or_create(&of(kind)).set(cached.into());
    }

    /// Whether this replica leads the kind and does not hear of changes.
    pub fn set_deaf(&self, kind: &str, deaf: bool) {
        let before = self.inner.series.deaf.get_or_create(&of(kind)).set(deaf.into());
        if deaf && before == 0 {
            self.inner.series.deafened.get_or_create(&of(kind)).inc();
        }
    }

    /// Whether a name that is of no replica of ours holds the Lease of the kind.
    pub fn set_foreign_holder(&self, kind: &str, foreign: bool) {
        self.inner.series.foreign.get_or_create(&of(kind)).set(foreign.into());
    }

    /// A replica did not take a Lease that it was given. The Lease may be of a kind that this one is not configured for, and
    /// anybody's who may write Leases: a few of those are told apart.
    pub fn missed(&self, lease: &str) {
        let lease = self.leases().label(lease, FOREIGN_LEASES);
        self.inner.series.missed.get_or_create(&OfLease { lease }).inc();
    }

    /// How many replicas this one sees.
    pub fn set_replicas(&self, count: usize) {
        self.inner.series.replicas.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether something keeps this replica from running the kind.
    pub fn blocked(&self, kind: &str, blocked: bool) {
        self.inner.series.up.get_or_create(&of(kind)).set((!blocked).into());
    }

    /// A request for a Lease was answered, or not.
    pub fn lease_request(&self, verb: &str, outcome: &str) {
        let labels = OfRequest { verb: verb.to_owned(), outcome: outcome.to_owned() };
        self.inner.series.requests.get_or_create(&labels).inc();
    }

    /// A webhook request was answered: allowed, denied, failed or invalid.
    pub fn webhook_answered(&self, webhook: &str, outcome: &str, took: Duration) {
        let labels = OfWebhook { webhook: webhook.to_owned(), outcome: outcome.to_owned() };
        self.inner.series.webhooks.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A server closed a connection for a newer one.
    pub fn connection_closed(&self, server: &'static str, limit: &'static str) {
        self.inner.series.closed.get_or_create(&OfServer { server, limit }).inc();
    }

    /// A server refused a request because of a limit.
    pub fn request_refused(&self, server: &'static str, limit: &'static str) {
        self.inner.series.refused.get_or_create(&OfServer { server, limit }).inc();
    }

    /// This replica, as the leader, has made a serving certificate.
    pub fn webhook_certificate_made(&self, reason: &str) {
        self.inner.series.certificates.get_or_create(&OfReason { reason: reason.to_owned() }).inc();
    }

    /// Until when the certificate is good that this replica serves webhooks with, in seconds since 1970; 0 without one.
    pub fn webhook_certificate_until(&self, until: i64) {
        self.inner.series.certificate_until.get_or_create(&[]).set(until);
    }

    /// Whether the API server asks the webhooks about every object of a kind before it stores one.
    pub fn set_webhook_guarded(&self, kind: &str, guarded: bool) {
        self.inner.series.guarded.get_or_create(&of(kind)).set(guarded.into());
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    ///
    /// If a metric cannot be written, which a `String` gives no occasion for.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.inner.process)?;
        text::encode(&mut page, &self.inner.registry)?;
        Ok(page)
    }
}

#[expect(clippy::disallowed_methods, reason = "a scrape is about the moment it is answered")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Log lines are counted by what writes them.
struct DroppedLogLines(Arc<OnceLock<Reading>>);

impl fmt::Debug for DroppedLogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DroppedLogLines").finish_non_exhaustive()
    }
}

impl Collector for DroppedLogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(read) = self.0.get() else { return Ok(()) };
        let metric = encoder.encode_descriptor(
            "log_lines_dropped",
            "Log lines that were dropped because standard error did not take them in time",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(read()).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_kind_exists_from_the_start() {
        let page = Metrics::new(["Widget.example.com".to_owned()], Status::default()).encode().unwrap();
        for line in [
            "leasehold_leading{kind=\"Widget.example.com\"} 0",
            "leasehold_kind_up{kind=\"Widget.example.com\"} 1",
            "leasehold_transitions_total{kind=\"Widget.example.com\"} 0",
            "leasehold_aborted_terms_total{kind=\"Widget.example.com\"} 0",
            "leasehold_fenced_writes_total{kind=\"Widget.example.com\"} 0",
            "leasehold_standby_writes_total{kind=\"Widget.example.com\"} 0",
            "leasehold_observer_failures_total{kind=\"Widget.example.com\"} 0",
            "leasehold_failed_terms_total{kind=\"Widget.example.com\"} 0",
            "leasehold_handovers_total{kind=\"Widget.example.com\"} 0",
            "leasehold_cached{kind=\"Widget.example.com\"} 0",
            "leasehold_deaf{kind=\"Widget.example.com\"} 0",
            "leasehold_foreign_holder{kind=\"Widget.example.com\"} 0",
            "leasehold_replicas 0",
            "leasehold_renewal_duration_seconds_count{kind=\"Widget.example.com\"} 0",
            "leasehold_without_owner_seconds_count{kind=\"Widget.example.com\"} 0",
            "leasehold_drain_duration_seconds_count{kind=\"Widget.example.com\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[test]
    fn methods_move_their_own_series() {
        let metrics = Metrics::new(["W".to_owned()], Status::default());
        metrics.set_leading("W", true);
        metrics.blocked("W", true);
        metrics.transition("W");
        metrics.renewed("W", Duration::from_millis(20));
        metrics.without_owner("W", Duration::from_secs(17));
        metrics.drained("W", Duration::from_secs(1));
        metrics.aborted("W");
        metrics.fenced("W");
        metrics.standby_write("W");
        metrics.observer_failed("W");
        metrics.term_failed("W");
        metrics.handed_over("W");
        metrics.set_cached("W", true);
        metrics.belongs("W", "w", Some("g"));
        metrics.set_deaf("W", true);
        metrics.set_foreign_holder("W", true);
        metrics.missed("w");
        metrics.set_replicas(3);
        metrics.lease_request("update", "conflict");
        metrics.connection_closed("endpoints", "peer");
        metrics.request_refused("webhooks", "bytes");
        metrics.set_webhook_guarded("W", true);
        metrics.set_deaf("W", true);
        metrics.webhook_certificate_until(7);
        metrics.set_lease_weight("w", 3);
        metrics.set_load(5);
        metrics.lease_watch_listed();
        metrics.lease_watch_event();
        metrics.lease_watch_failed();
        metrics.configured(&Settings {
            installation: "i".to_owned(),
            generation: "g".to_owned(),
            rebalance: "Automatic",
            on_loss: "Reelect",
            capacity: 2,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_millis(9500),
        });
        let page = metrics.encode().unwrap();
        for line in [
            "leasehold_leading{kind=\"W\"} 1",
            "leasehold_kind_up{kind=\"W\"} 0",
            "leasehold_transitions_total{kind=\"W\"} 1",
            "leasehold_renewal_duration_seconds_bucket{le=\"0.025\",kind=\"W\"} 1",
            "leasehold_without_owner_seconds_bucket{le=\"15.0\",kind=\"W\"} 0",
            "leasehold_without_owner_seconds_bucket{le=\"20.0\",kind=\"W\"} 1",
            "leasehold_drain_duration_seconds_sum{kind=\"W\"} 1.0",
            "leasehold_aborted_terms_total{kind=\"W\"} 1",
            "leasehold_fenced_writes_total{kind=\"W\"} 1",
            "leasehold_standby_writes_total{kind=\"W\"} 1",
            "leasehold_observer_failures_total{kind=\"W\"} 1",
            "leasehold_failed_terms_total{kind=\"W\"} 1",
            "leasehold_handovers_total{kind=\"W\"} 1",
            "leasehold_cached{kind=\"W\"} 1",
            "leasehold_deaf{kind=\"W\"} 1",
            "leasehold_foreign_holder{kind=\"W\"} 1",
            "leasehold_kind_info{kind=\"W\",lease=\"w\",group=\"g\"} 1",
            "leasehold_missed_takeovers_total{lease=\"w\"} 1",
            "leasehold_replicas 3",
            "leasehold_lease_requests_total{verb=\"update\",outcome=\"conflict\"} 1",
            "leasehold_connections_closed_total{server=\"endpoints\",limit=\"peer\"} 1",
            "leasehold_requests_refused_total{server=\"webhooks\",limit=\"bytes\"} 1",
            "leasehold_webhook_guarded{kind=\"W\"} 1",
            "leasehold_hearing_losses_total{kind=\"W\"} 1",
            "leasehold_webhook_certificate_until_timestamp_seconds{} 7",
            "leasehold_lease_weight{lease=\"w\"} 3",
            "leasehold_load 5",
            "leasehold_lease_watch_up 0",
            "leasehold_lease_watch_events_total 1",
            "leasehold_lease_watch_failures_total 1",
            "leasehold_replica_info{installation=\"i\",generation=\"g\",rebalance=\"Automatic\",on_loss=\"Reelect\"} 1",
            "leasehold_capacity 2",
            "leasehold_lease_duration_seconds 15.0",
            "leasehold_renew_deadline_seconds 9.5",
            concat!("leasehold_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
    }

    /// Whoever may write Leases chooses their names.
    #[test]
    fn leases_of_others_make_no_end_of_series() {
        let metrics = Metrics::default();
        metrics.belongs("W", "ours", None);
        for number in 0..1000 {
            metrics.missed(&format!("{number}-\"}}\n\\{}", "é".repeat(500)));
        }
        metrics.missed("ours");
        let page = metrics.encode().unwrap();
        let series: Vec<_> =
            page.lines().filter(|line| line.starts_with("leasehold_missed_takeovers_total{")).collect();
        assert_eq!(series.len(), FOREIGN_LEASES + 2, "{series:?}");
        assert!(series.contains(&"leasehold_missed_takeovers_total{lease=\"ours\"} 1"), "{series:?}");
        assert!(series.contains(&"leasehold_missed_takeovers_total{lease=\"other\"} 990"), "{series:?}");
        assert!(series.iter().all(|line| line.len() < 150), "{series:?}");
        // Quotes, line ends and backslashes are text.
        assert!(series.iter().any(|line| line.contains("{lease=\"7-\\\"}\\n\\\\é")), "{series:?}");
    }

    #[test]
    fn dropped_log_lines_are_read_when_metrics_are_asked_for() {
        let metrics = Metrics::default();
        assert!(!metrics.encode().unwrap().contains("log_lines"), "before a count is kept there is no series");
        metrics.read_dropped_log_lines(|| 17);
        let page = metrics.encode().unwrap();
        assert!(page.contains("\nleasehold_log_lines_dropped_total 17\n"), "{page}");
    }
}
