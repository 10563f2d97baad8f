//! Who led each kind over the last hours: the takeovers of its Lease, bounded in time, in number and in memory.
//!
//! A replica sees takeovers itself. What was before it started it is told: by the Lease, which says for how long its holder
//! has held it, by the events on the Lease, and by the other replicas. Each takeover has the token of the term that began, so
//! that one which is told of twice is one.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{report, status::Takeover};

/// For so long a takeover is kept.
pub const KEPT: Duration = Duration::from_secs(6 * 3600);
/// So many takeovers of a Lease are kept, the last ones.
const OF_A_LEASE: usize = 100;
/// So many takeovers of all Leases are kept, the last ones: some 2 MiB. A rollout of a thousand kinds is a thousand.
const ALL: usize = 4096;
/// So many takeovers of a Lease are told of at `/shards?kind=`.
pub const TOLD: usize = 10;
/// Bytes that are kept of a text that comes from outside.
const LONGEST: usize = 512;

/// Where a takeover is known from. A later one knows better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The Lease says who holds it and for how long, and not how that came.
    Lease,
    /// A replica has seen it, this one or another.
    Seen,
    /// Its new holder tells of it, which knows for how long it was waited for.
    Holder,
}

/// Takeovers as replicas tell each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Whose it is.
    pub identity: String,
    /// For so long it has seen, or was told, all of them.
    pub seen_for_seconds: f64,
    /// By name of the Lease, the last one at the end.
    pub takeovers: BTreeMap<String, Vec<report::Takeover>>,
}

/// The takeovers of the Leases that a replica is configured for; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    identity: String,
    /// From when on all are known; `None` until the Leases are seen.
    seen_since: Option<Instant>,
    lanes: BTreeMap<String, VecDeque<(Source, Takeover)>>,
    count: usize,
}

impl Timeline {
    /// Whose it is.
    pub fn belongs(&self, identity: &str) {
        self.lock().identity = identity.to_owned();
    }

    /// The Leases are seen: from now on this replica knows of each takeover. Before it may have missed some.
    pub fn sees(&self, now: Instant) {
        let mut inner = self.lock();
        inner.seen_since.get_or_insert(now);
    }

    /// From when on all takeovers are known.
    pub fn seen_since(&self) -> Option<Instant> {
        self.lock().seen_since
    }

    /// Keeps a takeover, unless the same is known from a better source. Whether it is kept.
    pub fn add(&self, now: Instant, lease: &str, source: Source, takeover: Takeover) -> bool {
        self.lock().add(now, lease, source, takeover)
    }

    /// Takes over what another replica knows, of the Leases that this is true of: the others are none of ours.
    pub fn adopt(&self, now: Instant, history: History, is_ours: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        let teller = history.identity;
        for (lease, takeovers) in history.takeovers.into_iter().filter(|(lease, _)| is_ours(lease)) {
            // The last ones are those that are kept.
            let last = takeovers.len().saturating_sub(OF_A_LEASE);
            for told in takeovers.into_iter().skip(last) {
                let source = told.source(&teller);
                if let Some(takeover) = heard(now, told) {
                    inner.add(now, &lease, source, takeover);
                }
            }
        }
        let seen = Duration::try_from_secs_f64(history.seen_for_seconds).unwrap_or_default().min(KEPT);
        let seen = now.checked_sub(seen).unwrap_or(now);
        if inner.seen_since.is_some_and(|since| seen < since) {
            inner.seen_since = Some(seen);
        }
    }

    /// The last so many of a Lease, the last one at the end.
    pub fn last(&self, lease: &str, count: usize) -> Vec<Takeover> {
        let inner = self.lock();
        let Some(lane) = inner.lanes.get(lease) else { return Vec::new() };
        lane.iter().skip(lane.len().saturating_sub(count)).map(|(_, takeover)| takeover.clone()).collect()
    }

    /// All that is known, by name of the Lease.
    pub fn all(&self, now: Instant) -> BTreeMap<String, Vec<Takeover>> {
        let mut inner = self.lock();
        inner.forget(now);
        let lane = |lane: &VecDeque<(Source, Takeover)>| lane.iter().map(|(_, takeover)| takeover.clone()).collect();
        inner.lanes.iter().map(|(lease, of)| (lease.clone(), lane(of))).collect()
    }

    /// All that is known, for another replica.
    pub fn told(&self, now: Instant) -> History {
        let all = self.all(now);
        let inner = self.lock();
        let told = |of: Vec<Takeover>| of.iter().map(|takeover| takeover.told(now)).collect();
        let since = inner.seen_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        History {
            identity: inner.identity.clone(),
            seen_for_seconds: since.min(KEPT).as_secs_f64(),
            takeovers: all.into_iter().map(|(lease, of)| (lease, told(of))).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, now: Instant, lease: &str, source: Source, takeover: Takeover) -> bool {
        let lane = self.lanes.entry(lease.to_owned()).or_default();
        if let Some(known) = lane.iter().position(|(_, known)| known.token == takeover.token) {
            if lane[known].0 >= source {
                return false;
            }
            lane.remove(known);
            self.count -= 1;
        }
        let at = lane.partition_point(|(_, known)| known.at <= takeover.at);
        lane.insert(at, (source, takeover));
        self.count += 1;
        if lane.len() > OF_A_LEASE {
            lane.pop_front();
            self.count -= 1;
        }
        if self.count > ALL {
            self.forget(now);
        }
        while self.count > ALL {
            // Of each Lease the last one is kept: it says who leads.
            let oldest = self.lanes.values_mut().filter(|lane| lane.len() > 1).min_by_key(|lane| lane[0].1.at);
            let Some(oldest) = oldest else { break };
            oldest.pop_front();
            self.count -= 1;
        }
        true
    }

    /// What was before the time that is kept, but for the last one of each Lease.
    fn forget(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            // The one before the first that is kept says who led until then.
            while lane.get(1).is_some_and(|(_, next)| now.saturating_duration_since(next.at) > KEPT) {
                lane.pop_front();
                self.count -= 1;
            }
        }
    }
}

/// How a Lease was found by a replica that did not see it being taken.
pub const FOUND: (&str, &str) = ("Found", "it was held when this replica started; how it was taken is not known");

/// As another replica tells of it, within bounds; `None` for what cannot have been.
fn heard(now: Instant, told: report::Takeover) -> Option<Takeover> {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let ago = seconds(told.seconds_ago)?;
    let cut = |text: String| match text.len() > LONGEST {
        true => text[..text.floor_char_boundary(LONGEST)].to_owned(),
        false => text,
    };
    Some(Takeover {
        at: now.checked_sub(ago)?,
        from: told.from.map(cut),
        to: cut(told.to),
        token: cut(told.token),
        reason: (Cow::Owned(cut(told.reason)), Cow::Owned(cut(told.message))),
        without_leader: told.without_leader_seconds.and_then(seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the moment that the test counts from")]
    fn start() -> Instant {
        Instant::now() + 2 * KEPT
    }

    fn taken(at: Instant, from: &str, to: &str, token: &str) -> Takeover {
        Takeover {
            at,
            from: Some(from.to_owned()),
            to: to.to_owned(),
            token: token.to_owned(),
            reason: (Cow::Borrowed("Balance"), Cow::Borrowed("its holder handed it over for balance")),
            without_leader: Some(Duration::from_millis(20)),
        }
    }

    fn tokens(timeline: &Timeline, lease: &str) -> Vec<String> {
        timeline.last(lease, usize::MAX).into_iter().map(|takeover| takeover.token).collect()
    }

    #[test]
    fn one_that_is_told_of_twice_is_one_and_the_better_source_counts() {
        let (timeline, now) = (Timeline::default(), start());
        let found =
            Takeover { reason: (Cow::Borrowed(FOUND.0), Cow::Borrowed(FOUND.1)), ..taken(now, "", "b_1", "u/2") };
        assert!(timeline.add(now, "w", Source::Lease, Takeover { from: None, ..found }));
        assert!(timeline.add(now, "w", Source::Seen, taken(now, "a_1", "b_1", "u/2")));
        let longer = Takeover { without_leader: Some(Duration::from_secs(9)), ..taken(now, "a_1", "b_1", "u/2") };
        assert!(timeline.add(now, "w", Source::Holder, longer.clone()));
        assert!(!timeline.add(now, "w", Source::Seen, taken(now, "a_1", "b_1", "u/2")));
        assert_eq!(timeline.last("w", 10), [longer]);
        // What is told late takes its place in time.
        timeline.add(now, "w", Source::Seen, taken(now - Duration::from_secs(9), "c_1", "a_1", "u/1"));
        assert_eq!(tokens(&timeline, "w"), ["u/1", "u/2"]);
    }

    #[test]
    fn it_is_bounded_by_lease_in_all_and_in_time() {
        let (timeline, now) = (Timeline::default(), start());
        let old = now - KEPT - Duration::from_secs(60);
        for number in 0..5 {
            timeline.add(now, "old", Source::Seen, taken(old, "a_1", "b_1", &format!("u/{number}")));
        }
        assert_eq!(timeline.all(now)["old"].len(), 1, "the last one says who leads");
        for number in 0..10_000 {
            let lease = format!("w{}", number % 70);
            let at = now - Duration::from_secs(10_000 - number);
            timeline.add(now, &lease, Source::Seen, taken(at, "a_1", "b_1", &format!("u/{number}")));
        }
        let all: usize = timeline.all(now).values().map(Vec::len).sum();
        assert_eq!(all, ALL);
        assert!(timeline.all(now).values().all(|lane| lane.len() <= OF_A_LEASE));
        assert_eq!(
            tokens(&timeline, "w59").last().map(String::as_str),
            Some("u/9999"),
            "the last ones are those that stay"
        );
        for number in 0..1000 {
            timeline.add(now, "one", Source::Seen, taken(now, "a_1", "b_1", &format!("u/{number}")));
        }
        assert_eq!(timeline.last("one", usize::MAX).len(), OF_A_LEASE);
    }

    #[test]
    fn a_replica_that_starts_takes_over_what_another_knows() {
        let (old, new, now) = (Timeline::default(), Timeline::default(), start());
        old.belongs("b_1");
        old.sees(now - Duration::from_secs(3000));
        old.add(now, "w", Source::Seen, taken(now - Duration::from_secs(60), "a_1", "b_1", "u/2"));
        old.add(now, "foreign", Source::Seen, taken(now, "a_1", "b_1", "u/9"));
        new.sees(now);
        // On its way it is text.
        let told = serde_json::to_string(&old.told(now)).unwrap();
        let later = now + Duration::from_secs(1);
        new.adopt(later, serde_json::from_str(&told).unwrap(), |lease| lease == "w");
        let adopted = new.last("w", 10);
        assert_eq!(adopted.len(), 1);
        assert_eq!((adopted[0].to.as_str(), adopted[0].reason.0.as_ref()), ("b_1", "Balance"));
        assert_eq!(later.duration_since(adopted[0].at), Duration::from_secs(60));
        assert_eq!(new.seen_since().map(|since| later.duration_since(since)), Some(Duration::from_secs(3000)));
        assert!(new.last("foreign", 10).is_empty(), "of Leases that are not ours nothing is kept");
    }

    #[test]
    fn what_another_replica_says_is_within_bounds() {
        let (timeline, now) = (Timeline::default(), start());
        timeline.sees(now);
        let absurd = |seconds: f64| report::Takeover {
            seconds_ago: seconds,
            to: "é".repeat(9000),
            token: format!("u/{seconds}"),
            without_leader_seconds: Some(-1.0),
            ..report::Takeover::default()
        };
        let takeovers = [f64::NAN, -1.0, 1e300, f64::INFINITY, 5.0].map(absurd).to_vec();
        let history =
            History { takeovers: [("w".to_owned(), takeovers)].into(), seen_for_seconds: 1e300, ..History::default() };
        timeline.adopt(now, history, |_| true);
        let kept = timeline.last("w", 10);
        assert_eq!((kept.len(), kept[0].without_leader), (1, None));
        assert!(kept[0].to.len() <= LONGEST);
        assert_eq!(timeline.seen_since(), Some(now), "what is absurd is nothing");
    }
}
