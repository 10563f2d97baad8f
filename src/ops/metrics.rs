//! The metrics of one replica, by kind.
//!
//! Every series of every configured kind exists from the start, so that "no value yet" and "not scraped" look different;
//! but for those of the [`work`](super::work) on a kind, which is done by one replica at a time.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::{
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
    registry: Registry,
    series: Series,
    dropped_log_lines: Arc<OnceLock<Reading>>,
    work: Meters,
}

/// Reads a count that is kept elsewhere.
type Reading = Box<dyn Fn() -> u64 + Send + Sync>;

struct Series {
    info: Family<LedBy, Gauge>,
    leading: Family<OfKind, Gauge>,
    up: Family<OfKind, Gauge>,
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
    certificate_until: Gauge,
    guarded: Family<OfKind, Gauge>,
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
            up: Family::default(),
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
            certificate_until: Gauge::default(),
            guarded: Family::default(),
        };
        let r = registry;
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
            "Until when the certificate is good that this replica serves webhooks with; 0 without one",
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
        // Nothing blocks a kind until something is seen to.
        self.up.get_or_create(labels).set(1);
        for family in [
            &self.transitions,
            &self.aborted,
            &self.fenced,
            &self.standby_writes,
            &self.observer_failures,
            &self.failed,
            &self.handovers,
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

/// Metrics without kinds: a series begins when it is first used.
impl Default for Metrics {
    fn default() -> Self {
        Self::new([], Status::default())
    }
}

impl Metrics {
    /// Metrics with every series of each of `kinds`, which are spelt as in [`ShardStatus::kind`](super::status::ShardStatus::kind).
    /// The age of each last renewal is read from `status` when metrics are asked for.
    pub fn new(kinds: impl IntoIterator<Item = String>, status: Status) -> Self {
        let mut registry = Registry::with_prefix("leasehold");
        let series = Series::register(&mut registry);
        for kind in kinds {
            series.create(&kind);
        }
        registry.register_collector(Box::new(SinceRenewal { status }));
        let dropped_log_lines = Arc::default();
        registry.register_collector(Box::new(DroppedLogLines(Arc::clone(&dropped_log_lines))));
        let work = Meters::default();
        registry.register_collector(Box::new(work.clone()));
        Self { inner: Arc::new(Inner { registry, series, dropped_log_lines, work }) }
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
        let group = group.unwrap_or_default().to_owned();
        let labels = LedBy { kind: kind.to_owned(), lease: lease.to_owned(), group };
        self.inner.series.info.get_or_create(&labels).set(1);
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
        self.inner.series.deaf.get_or_create(&of(kind)).set(deaf.into());
    }

    /// Whether a name that is of no replica of ours holds the Lease of the kind.
    pub fn set_foreign_holder(&self, kind: &str, foreign: bool) {
        self.inner.series.foreign.get_or_create(&of(kind)).set(foreign.into());
    }

    /// A replica did not take a Lease that it was given.
    pub fn missed(&self, lease: &str) {
        self.inner.series.missed.get_or_create(&OfLease { lease: lease.to_owned() }).inc();
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
        self.inner.series.certificate_until.set(until);
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
        text::encode(&mut page, &self.inner.registry)?;
        Ok(page)
    }
}

/// Computes the age of each last renewal when it is asked for: a gauge that is set on renewal would stand still
/// just when renewals do.
struct SinceRenewal {
    status: Status,
}

impl fmt::Debug for SinceRenewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinceRenewal").finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "a scrape is about the moment it is answered")]
pub(super) fn now() -> Instant {
    Instant::now()
}

impl Collector for SinceRenewal {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = now();
        let mut family = encoder.encode_descriptor(
            "since_renewal",
            "Time since this replica sent its last successful renewal of the kind's Lease",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for shard in self.status.shards() {
            if let Some(renewed_at) = shard.renewed_at {
                let age = now.saturating_duration_since(renewed_at).as_secs_f64();
                ConstGauge::new(age).encode(family.encode_family(&of(&shard.kind))?)?;
            }
        }
        Ok(())
    }
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
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_of_the_last_renewal_grows_without_being_set() {
        let status = Status::default();
        let metrics = Metrics::new(["W".to_owned()], status.clone());
        let renewed_at = now();
        status.update("W", |shard| shard.renewed_at = Some(renewed_at));
        tokio::time::advance(Duration::from_secs(7)).await;
        let page = metrics.encode().unwrap();
        assert!(page.contains("\nleasehold_since_renewal_seconds{kind=\"W\"} 7.0\n"), "{page}");
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
