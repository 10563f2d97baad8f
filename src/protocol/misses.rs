//! Which replicas were given a shard and did not take it (rule 18).
//!
//! A replica whose acquisitions are refused, whose watch lags, or that has no time to run looks like one that has little
//! to do: placement would choose it again and again, and each time no replica would lead until the others have waited
//! their grace. So a miss keeps it from being chosen, for that shard for longer than for others, and for longer each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    membership::{ANY_SHARD as ANY, LeaseSet},
    moment::Moment,
};

/// First pause before a replica that has missed a shard is chosen for any other one: a trial costs a gap.
const ANY_SHARD: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));
/// First pause, and the longest, before it is chosen for the same one again.
const SAME_SHARD: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3600));

/// Of so many replicas misses are told to the others, and of so many shards of each.
pub(super) const TOLD_MOST: usize = 16;
const TOLD_SHARDS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Miss {
    times: u32,
    until: Moment,
}

/// The misses that this replica has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Misses {
    /// By replica.
    any: BTreeMap<String, Miss>,
    /// By replica and Lease.
    same: BTreeMap<(String, String), Miss>,
}

impl Misses {
    /// The replica did not take the shard that it was given. For how long it is not chosen for that one.
    pub fn add(&mut self, now: Moment, replica: &str, lease: &str) -> Duration {
        once_more(self.any.entry(replica.to_owned()).or_insert(Miss::NONE), now, ANY_SHARD);
        let same = self.same.entry((replica.to_owned(), lease.to_owned())).or_insert(Miss::NONE);
        once_more(same, now, SAME_SHARD)
    }

    /// The replica has taken this shard: what kept it from that is over.
    pub fn forgive(&mut self, replica: &str, lease: &str) {
        self.any.remove(replica);
        self.same.remove(&(replica.to_owned(), lease.to_owned()));
    }

    /// Forgets the replicas that are gone.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.any.retain(|replica, _| is_there(replica));
        self.same.retain(|(replica, _), _| is_there(replica));
    }

    /// What all replicas shall know of it, of [`TOLD_MOST`] replicas at the most, and by shard of
    /// [`TOLD_SHARDS`] at the most: a membership stays small.
    pub fn told(&self, now: Moment) -> BTreeMap<String, LeaseSet> {
        let any = self.any.iter().map(|(replica, miss)| (replica, ANY, miss));
        let same = self.same.iter().map(|((replica, lease), miss)| (replica, lease.as_str(), miss));
        let mut told = BTreeMap::<String, BTreeSet<&str>>::new();
        for (replica, lease, _) in any.chain(same).filter(|(_, _, miss)| now < miss.until) {
            if told.contains_key(replica) || told.len() < TOLD_MOST {
                told.entry(replica.clone()).or_default().insert(lease);
            }
        }
        let short = |leases: BTreeSet<&str>| leases.into_iter().take(TOLD_SHARDS).collect();
        told.into_iter().map(|(replica, leases)| (replica, short(leases))).collect()
    }

    /// When a replica may be chosen again.
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        self.any.values().chain(self.same.values()).map(|miss| miss.until).filter(|until| *until > now).min()
    }
}

impl Miss {
    const NONE: Self = Self { times: 0, until: Moment::after_origin(Duration::ZERO) };
}

fn once_more(miss: &mut Miss, now: Moment, (first, most): (Duration, Duration)) -> Duration {
    let pause = first.saturating_mul(1 << miss.times.min(16)).min(most);
    // Several shards that are missed at once are one miss of the replica.
    if now >= miss.until {
        miss.times += 1;
        miss.until = now + pause;
    }
    miss.until.since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(1000 + seconds))
    }

    fn avoided(misses: &Misses, now: Moment, replica: &str, lease: &str) -> bool {
        misses.told(now).get(replica).is_some_and(|told| told.contains(lease) || told.contains(ANY))
    }

    #[test]
    fn a_replica_that_missed_a_shard_is_avoided_for_longer_each_time() {
        let mut misses = Misses::default();
        misses.add(at(0), "f", "a");
        misses.add(at(1), "f", "b");
        assert!(avoided(&misses, at(59), "f", "c") && !avoided(&misses, at(60), "f", "c"), "two at once are one miss");
        assert!(avoided(&misses, at(299), "f", "a") && !avoided(&misses, at(300), "f", "a"));
        assert!(!avoided(&misses, at(1), "g", "a"));
        misses.add(at(60), "f", "c");
        assert!(avoided(&misses, at(179), "f", "d") && !avoided(&misses, at(180), "f", "d"));
        assert_eq!(misses.next_change(at(60)), Some(at(180)));
    }

    #[test]
    fn the_others_are_told_what_is_avoided_now_and_no_more_than_fits() {
        let mut misses = Misses::default();
        misses.add(at(0), "f", "a");
        let told = |misses: &Misses, now| misses.told(now).remove("f").unwrap_or_default();
        assert!(told(&misses, at(10)).contains("a") && told(&misses, at(10)).contains(ANY));
        assert!(told(&misses, at(70)).contains("a") && !told(&misses, at(70)).contains(ANY));
        assert_eq!(misses.told(at(300)), BTreeMap::new());
        for replica in 0..100 {
            for lease in 0..100 {
                misses.add(at(0), &format!("r{replica}"), &lease.to_string());
            }
        }
        let told = misses.told(at(0));
        let shards = |set: &LeaseSet| (0..100).filter(|lease| set.contains(&lease.to_string())).count();
        assert_eq!((told.len(), told.values().map(shards).max()), (TOLD_MOST, Some(TOLD_SHARDS - 1)));
        assert!(told.values().all(|set| set.contains(ANY)));
    }

    #[test]
    fn what_it_takes_after_all_is_forgiven() {
        let mut misses = Misses::default();
        misses.add(at(0), "f", "a");
        misses.add(at(0), "f", "b");
        misses.forgive("f", "a");
        assert!(!avoided(&misses, at(1), "f", "a") && avoided(&misses, at(1), "f", "b"));
        misses.keep(|replica| replica != "f");
        assert_eq!(misses.told(at(1)), BTreeMap::new());
    }
}
