//! Metrics that are computed from the status of the replica when they are asked for: the age of what stands still would
//! stand still as well.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use tokio::time::Instant;

use super::{
    metrics::{OfKind, now, of},
    status::{Pod, ShardStatus, Status},
};

/// Labels of the wait of a handover.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWait {
    kind: String,
    waits_for: &'static str,
}

/// Labels of the reasons why no kind is moved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

const NO_LABELS: [(&str, &str); 0] = [];

/// It has not failed and is not being deleted: its controller counts on it.
fn goes_on(pod: &Pod) -> bool {
    !pod.condition.as_ref().is_some_and(|(word, _)| ["Terminating", "Failed"].contains(&word.as_str()))
}

fn count(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

/// Reads the status when metrics are asked for.
pub(super) struct Shown {
    pub(super) status: Arc<OnceLock<Status>>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// One family of gauges.
fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    unit: Option<&Unit>,
    series: impl IntoIterator<Item = (L, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    series.into_iter().try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without a replica there is nothing to show.
        let Some(status) = self.status.get() else { return Ok(()) };
        let (now, shards, replica) = (now(), status.shards(), status.replica());
        let age = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let encoder = &mut encoder;
        let of_kinds = |value: fn(&ShardStatus) -> Option<Instant>| {
            let one = move |shard: &ShardStatus| Some((of(&shard.kind), age(value(shard)?)));
            shards.iter().filter_map(one).collect::<Vec<(OfKind, f64)>>()
        };
        gauges(
            encoder,
            ("since_renewal", "Time since this replica sent its last successful renewal of the kind's Lease"),
            Some(&Unit::Seconds),
            of_kinds(|shard| shard.renewed_at),
        )?;
        gauges(
            encoder,
            ("leading_for", "For how long the term here has worked; only of a kind that this replica leads"),
            Some(&Unit::Seconds),
            of_kinds(|shard| shard.leading_since),
        )?;
        gauges(
            encoder,
            ("unled", "For how long no replica can have led the kind, as far as this one sees; 0 while one may"),
            Some(&Unit::Seconds),
            shards.iter().map(|shard| (of(&shard.kind), shard.unled_since.map_or(0.0, age))),
        )?;
        let waiting = |shard: &ShardStatus| {
            let (waits_for, since) = shard.handing_over.as_ref().map(|it| (it.waits_for.name(), it.since))?;
            Some((OfWait { kind: shard.kind.clone(), waits_for }, age(since)))
        };
        gauges(
            encoder,
            (
                "handover_waiting",
                "For how long this replica has waited to hand the kind over: for its successor to fill its cache (successor), or for the work to end (drain); only while it waits",
            ),
            Some(&Unit::Seconds),
            shards.iter().filter_map(waiting),
        )?;
        let one = |name: &str, help: &str, is_so: bool, encoder: &mut DescriptorEncoder<'_>| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(is_so)).encode(metric)
        };
        one("ready", "Whether /readyz answers that the replica is ready (0 or 1)", status.ready().is_ok(), encoder)?;
        one(
            "stopping",
            "Whether the replica was asked to end, and hands its kinds over (0 or 1)",
            replica.stopping,
            encoder,
        )?;
        gauges(
            encoder,
            (
                "pods",
                "Pods of this installation that are not on their way out, as this replica sees them, whether a replica runs in them or not; outside of a Pod there is no series",
            ),
            None,
            replica.pods.iter().map(|pods| (NO_LABELS, count(pods.iter().filter(|pod| goes_on(pod)).count()))),
        )?;
        gauges(
            encoder,
            ("balance_waiting", "Why this replica moves no kind for balance now; always 1, and no series if it may"),
            None,
            replica
                .waits
                .iter()
                .filter(|wait| wait.until.is_none_or(|until| until > now))
                .map(|wait| (OfReason { reason: wait.reason.0 }, 1.0)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ops::{
        metrics::Metrics,
        status::{HandingOver, Wait, WaitsFor},
    };

    /// Nobody has said yet whether it is ready.
    #[test]
    fn metrics_without_a_status_show_none() {
        let metrics = Metrics::default();
        assert!(!metrics.encode().unwrap().contains("leasehold_ready"));
        let status = Status::default();
        metrics.read(status.clone());
        metrics.read(Status::default());
        status.update_replica(|replica| replica.stopping = true);
        assert!(metrics.encode().unwrap().contains("\nleasehold_stopping 1\n"), "the first one counts");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_grows_old_without_being_set() {
        let status = Status::default();
        let metrics = Metrics::new(["W".to_owned()], status.clone());
        status.update("W", |shard| {
            shard.renewed_at = Some(now());
            shard.leading_since = Some(now());
            shard.handing_over = Some(HandingOver { waits_for: WaitsFor::Successor, since: now() });
        });
        status.update("V", |shard| shard.unled_since = Some(now()));
        status.update_replica(|replica| {
            replica.waits = vec![Wait { reason: ("Rollout", String::new()), until: None }];
            let words = [None, Some("CrashLoopBackOff"), Some("Terminating"), Some("Failed")];
            let pod = |word: Option<&str>| Pod { condition: word.map(|it| (it.to_owned(), None)), ..Pod::default() };
            replica.pods = Some(words.map(pod).into());
        });
        tokio::time::advance(Duration::from_secs(7)).await;
        let page = metrics.encode().unwrap();
        for line in [
            "leasehold_since_renewal_seconds{kind=\"W\"} 7.0",
            "leasehold_leading_for_seconds{kind=\"W\"} 7.0",
            "leasehold_unled_seconds{kind=\"W\"} 0.0",
            "leasehold_unled_seconds{kind=\"V\"} 7.0",
            "leasehold_handover_waiting_seconds{kind=\"W\",waits_for=\"successor\"} 7.0",
            "leasehold_pods{} 2.0",
            "leasehold_ready 1",
            "leasehold_stopping 0",
            "leasehold_balance_waiting{reason=\"Rollout\"} 1.0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
        status.update_replica(|replica| replica.stopping = true);
        let page = metrics.encode().unwrap();
        assert!(page.contains("\nleasehold_ready 0\n") && page.contains("\nleasehold_stopping 1\n"), "{page}");
    }
}
