//! What the page shows, as it is sent: whole at first, and then what has changed. Pure.
//!
//! A moment is a number of milliseconds since this process made the page. What only grows older does not change, so a page on
//! which nothing happens costs nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use crate::ops::{
    picture::{Kind, Picture, Reason, Replica, State, Verdict},
    status::Takeover,
    timeline::KEPT,
};

/// All that the page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) head: Head,
    /// By name and Lease.
    pub(super) kinds: BTreeMap<String, Row>,
    /// By Lease.
    pub(super) lanes: BTreeMap<String, Lane>,
}

/// What is not about one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head {
    /// The Pod that has sent this.
    pub(super) served_by: String,
    pub(super) version: &'static str,
    pub(super) namespace: String,
    pub(super) instance: String,
    pub(super) replicas: Vec<Replica>,
    /// What could not be reached, and why.
    pub(super) not_reached: Vec<String>,
    /// Why the replica that has sent this is not ready.
    pub(super) unready: Option<String>,
    /// Why no kind is moved for balance now.
    pub(super) waits: Vec<String>,
    /// From when on all takeovers are known.
    pub(super) seen_since: Option<i64>,
    /// For so many milliseconds they are kept.
    pub(super) kept: i64,
}

/// One kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) kind: String,
    pub(super) group: Option<String>,
    pub(super) lease: String,
    pub(super) state: State,
    /// `Led`, `Undecided` or `NotLed`.
    pub(super) verdict: &'static str,
    /// The Pod that leads it, or holds its Lease.
    pub(super) leader: Option<String>,
    pub(super) since: Option<i64>,
    pub(super) unled_since: Option<i64>,
    pub(super) weight: Option<u32>,
    pub(super) objects: Option<u64>,
    pub(super) waiting: Option<u64>,
    /// Since when the object waits that has waited longest.
    pub(super) oldest_since: Option<i64>,
    /// Reconciliations a second.
    pub(super) rate: Option<f64>,
    /// Failed ones of the last minute, and since the term began.
    pub(super) recent_failures: Option<u64>,
    pub(super) failures: Option<u64>,
    /// Pods with a filled cache of it.
    pub(super) standby: Vec<String>,
    pub(super) reasons: Vec<Reason>,
}

/// What has become of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lane {
    /// The kinds that share it, or the one.
    pub(super) kinds: Vec<String>,
    pub(super) group: Option<String>,
    /// The last one at the end.
    pub(super) takeovers: Vec<Move>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Move {
    pub(super) at: i64,
    pub(super) from: Option<String>,
    pub(super) to: String,
    /// One word, and a sentence.
    pub(super) reason: String,
    pub(super) message: String,
    /// For so many milliseconds no replica led.
    pub(super) gap: Option<i64>,
}

/// What is not as it was: `null` stands for what is there no more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Changes<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<&'a Head>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    kinds: BTreeMap<&'a str, Option<&'a Row>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lanes: BTreeMap<&'a str, Option<&'a Lane>>,
}

impl Document {
    /// What has changed since that one was sent; `None`: nothing.
    pub(super) fn since<'a>(&'a self, before: &'a Self) -> Option<Changes<'a>> {
        let changes = Changes {
            head: (self.head != before.head).then_some(&self.head),
            kinds: changed(&before.kinds, &self.kinds),
            lanes: changed(&before.lanes, &self.lanes),
        };
        let is_any = changes.head.is_some() || !changes.kinds.is_empty() || !changes.lanes.is_empty();
        is_any.then_some(changes)
    }
}

fn changed<'a, T: PartialEq>(
    before: &'a BTreeMap<String, T>,
    after: &'a BTreeMap<String, T>,
) -> BTreeMap<&'a str, Option<&'a T>> {
    let new = after.iter().filter(|(name, it)| before.get(*name) != Some(it));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    new.map(|(name, it)| (name.as_str(), Some(it))).chain(gone.map(|name| (name.as_str(), None))).collect()
}

/// Moments as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) origin: Instant,
    pub(super) now: Instant,
}

impl Scale {
    pub(super) fn at(self, at: Instant) -> i64 {
        if at >= self.origin { millis(at - self.origin) } else { -millis(self.origin - at) }
    }

    pub(super) fn now(self) -> i64 {
        self.at(self.now)
    }

    /// A moment that lies so many seconds back, to the second: what is counted anew with each answer is a little off each time.
    fn ago(self, seconds: f64) -> Option<i64> {
        let ago = Duration::try_from_secs_f64(seconds).ok()?;
        Some((self.now() - millis(ago)).div_euclid(1000) * 1000)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// What of the head is not in the picture.
pub(super) fn document(
    head: Head,
    picture: Picture,
    takeovers: BTreeMap<String, Vec<Takeover>>,
    before: &Document,
    scale: Scale,
) -> Document {
    let kinds: BTreeMap<_, _> = picture
        .kinds
        .into_iter()
        .map(|kind| {
            let key = format!("{} {}", kind.kind, kind.lease);
            let row = row(kind, before.kinds.get(&key), scale);
            (key, row)
        })
        .collect();
    let mut lanes = BTreeMap::<String, Lane>::new();
    for row in kinds.values() {
        let lane = lanes.entry(row.lease.clone()).or_default();
        lane.kinds.push(row.kind.clone());
        lane.group.clone_from(&row.group);
    }
    for (lease, takeovers) in takeovers {
        if let Some(lane) = lanes.get_mut(&lease) {
            lane.takeovers = takeovers.iter().map(|takeover| step(takeover, scale)).collect();
        }
    }
    let whole_mebibytes = |mut replica: Replica| {
        // A byte more or less is no news.
        replica.memory_bytes = replica.memory_bytes.map(|bytes| bytes >> 20 << 20);
        replica
    };
    let head = Head {
        namespace: picture.namespace,
        replicas: picture.replicas.into_iter().map(whole_mebibytes).collect(),
        not_reached: picture.not_reached,
        kept: millis(KEPT),
        ..head
    };
    Document { head, kinds, lanes }
}

fn step(takeover: &Takeover, scale: Scale) -> Move {
    Move {
        at: scale.at(takeover.at),
        from: takeover.from.clone(),
        to: takeover.to.clone(),
        reason: takeover.reason.0.to_string(),
        message: takeover.reason.1.to_string(),
        gap: takeover.without_leader.map(millis),
    }
}

fn row(kind: Kind, before: Option<&Row>, scale: Scale) -> Row {
    // A second more or less than the last time is the time that an answer took.
    let steady = |moment: Option<i64>, before: Option<i64>| match (moment, before) {
        (Some(moment), Some(before)) if moment.abs_diff(before) <= 2000 => Some(before),
        (moment, _) => moment,
    };
    Row {
        verdict: match kind.state.verdict() {
            Verdict::Led => "Led",
            Verdict::Undecided => "Undecided",
            Verdict::NotLed => "NotLed",
        },
        since: steady(kind.since_seconds.and_then(|it| scale.ago(it)), before.and_then(|row| row.since)),
        unled_since: steady(
            kind.without_leader_seconds.and_then(|it| scale.ago(it)),
            before.and_then(|row| row.unled_since),
        ),
        oldest_since: steady(
            kind.oldest_waits_seconds.and_then(|it| scale.ago(it)),
            before.and_then(|row| row.oldest_since),
        ),
        rate: kind.reconciles_per_second.map(|rate| (rate * 100.0).round() / 100.0),
        kind: kind.kind,
        group: kind.group,
        lease: kind.lease,
        state: kind.state,
        leader: kind.leader,
        weight: kind.weight,
        objects: kind.objects,
        waiting: kind.waiting,
        recent_failures: kind.recent_failures,
        failures: kind.failures,
        standby: kind.standby,
        reasons: kind.reasons,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::*;
    use crate::ops::{
        picture::{Member, Seen, Stored, picture},
        report::{Report, Shard, Work},
    };

    #[expect(clippy::disallowed_methods, reason = "the moment that the test counts from")]
    fn scale() -> Scale {
        let now = Instant::now() + KEPT;
        Scale { origin: now - Duration::from_secs(60), now }
    }

    fn taken(scale: Scale, to: &str, ago: u64) -> Takeover {
        Takeover {
            at: scale.now - Duration::from_secs(ago),
            from: Some("b_1".to_owned()),
            to: to.to_owned(),
            token: format!("u/{ago}"),
            reason: (Cow::Borrowed("Expired"), Cow::Borrowed("its holder fell silent for the lease duration")),
            without_leader: Some(Duration::from_millis(14_500)),
        }
    }

    /// A kind with markup in its name, led by the one replica.
    fn seen(leading_for: f64) -> Seen {
        let shard = Shard {
            kind: "<b>Widget</b>.example.com".to_owned(),
            lease: "w".to_owned(),
            state: "Leading".to_owned(),
            leading_for_seconds: Some(leading_for),
            work: Some(Work { objects: 7, reconciles_per_second: 1.234_5, ..Work::default() }),
            ..Shard::default()
        };
        let report = Report { identity: "a_1".to_owned(), ready: true, shards: vec![shard], ..Report::default() };
        Seen {
            namespace: "ns".to_owned(),
            leases: [("w".to_owned(), Stored { holder: Some("a_1".to_owned()), ..Stored::default() })].into(),
            members: vec![Member { identity: "a_1".to_owned(), pod: "a".to_owned(), ..Member::default() }],
            reports: [("a".to_owned(), Ok(report))].into(),
            ..Seen::default()
        }
    }

    fn made(leading_for: f64, steps: &[Takeover], before: &Document, scale: Scale) -> Document {
        let takeovers = [("w".to_owned(), steps.to_vec()), ("of no kind".to_owned(), steps.to_vec())].into();
        document(Head::default(), picture(&seen(leading_for)), takeovers, before, scale)
    }

    const KEY: &str = "<b>Widget</b>.example.com w";

    #[test]
    fn moments_are_those_of_this_process_and_may_lie_before_it() {
        let scale = scale();
        let document = made(100.0, &[taken(scale, "a_1", 100)], &Document::default(), scale);
        let row = &document.kinds[KEY];
        assert_eq!((row.since, row.state, row.verdict), (Some(-40_000), State::Leading, "Led"));
        assert_eq!((row.rate, row.objects), (Some(1.23), Some(7)));
        assert_eq!(document.lanes.len(), 1, "a Lease of which no kind is known has no lane");
        let lane = &document.lanes["w"];
        assert_eq!(lane.kinds, ["<b>Widget</b>.example.com"]);
        assert_eq!((lane.takeovers[0].at, lane.takeovers[0].gap), (-40_000, Some(14_500)));
        assert_eq!(document.head.replicas[0].kinds, 1);
    }

    #[test]
    fn what_only_grows_older_is_not_sent_again() {
        let scale = scale();
        let first = made(100.0, &[taken(scale, "a_1", 100)], &Document::default(), scale);
        let later = Scale { now: scale.now + Duration::from_secs(5), ..scale };
        // An answer that came a little late.
        let second = made(105.8, &[taken(scale, "a_1", 100)], &first, later);
        assert!(second.since(&first).is_none());
        let third = made(2.0, &[taken(scale, "a_1", 100), taken(later, "b_1", 2)], &second, later);
        let changes: Value = serde_json::to_value(third.since(&second).unwrap()).unwrap();
        assert_eq!(changes["kinds"][KEY]["since"], 63_000);
        assert_eq!(changes["lanes"]["w"]["takeovers"].as_array().map(Vec::len), Some(2));
        assert!(changes.get("head").is_none(), "{changes}");
        let gone = Document { kinds: BTreeMap::new(), ..third.clone() };
        let changes: Value = serde_json::to_value(gone.since(&third).unwrap()).unwrap();
        assert_eq!(changes, json!({"kinds": {KEY: null}}));
    }
}
