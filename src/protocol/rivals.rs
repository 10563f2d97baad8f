//! Other Leases that say a kind of ours: of replicas whose configuration names another Lease or namespace (rule 16).
//!
//! Of two replicas that take one kind under two names, each first writes its own Lease and then looks for the other's:
//! its work waits until the watch has shown it its own write. Writes have one order, and the watch keeps it, so the one
//! that wrote later sees the earlier Lease and gives way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    event::{Deaths, Rival},
    lease::{Record, Role},
    moment::Moment,
};

/// A rival that is renewed this many times beside a term of ours knows nothing of this rule: ours gives way.
const RENEWALS: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    /// Those that it says, ours among them only.
    kinds: Vec<String>,
    holder: String,
    pod: Option<String>,
    duration: Option<Duration>,
    /// Resource version at which this holder's term was first seen.
    began: Option<u64>,
    transitions: i32,
    version: Option<u64>,
    since: Moment,
    renewals: u32,
}

/// The held Leases that say kinds of ours: to each shard, all but its own are rivals. The Lease of one shard of ours may
/// be one to another, as when the kinds of a group are given a Lease each and one of these keeps the group's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rivals {
    /// Where our Leases are.
    namespace: String,
    /// By kind of ours: the Lease that we lead it by; `None` if its lock is a ConfigMap alone.
    own: BTreeMap<String, Option<String>>,
    /// Counts for records that publish no duration.
    lease_duration: Duration,
    held: BTreeMap<(String, String), Held>,
    /// The watch is up: silence is silence.
    current: bool,
    /// Every version up to this one has been seen.
    seen: Option<u64>,
}

impl Rivals {
    /// Of these kinds, each with its Lease in this namespace, if its lock is one or has one.
    pub fn new<'a>(
        namespace: &str,
        kinds: impl Iterator<Item = (&'a str, Option<&'a str>)>,
        lease_duration: Duration,
    ) -> Self {
        Self {
            namespace: namespace.to_owned(),
            own: kinds.map(|(kind, lease)| (kind.to_owned(), lease.map(str::to_owned))).collect(),
            lease_duration,
            held: BTreeMap::new(),
            current: false,
            seen: None,
        }
    }

    /// Everything that the watch covers, as it is stored now. `complete`: the watch goes on from here.
    pub fn listed(&mut self, now: Moment, records: &[Record], complete: bool) {
        let names: BTreeSet<_> = records.iter().map(|it| (it.namespace.clone(), it.name.clone())).collect();
        let gone: Vec<_> = self.held.keys().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.vanish(now, name));
        records.iter().for_each(|record| self.stored(now, record));
        self.current |= complete;
    }

    /// A Lease was stored.
    pub fn stored(&mut self, now: Moment, record: &Record) {
        let number = record.version.number();
        self.seen = self.seen.max(number);
        let name = (record.namespace.clone(), record.name.clone());
        if record.role != Role::Shard {
            return;
        }
        let ours = |kind: &&String| match self.own.get(*kind) {
            Some(lease) => (&self.namespace, lease.as_ref()) != (&name.0, Some(&name.1)),
            None => false,
        };
        let kinds: Vec<_> = record.kinds.iter().filter(ours).cloned().collect();
        let (false, Some(holder)) = (kinds.is_empty(), &record.holder) else {
            self.held.remove(&name);
            return;
        };
        let known = self.held.get(&name);
        if known.is_some_and(|known| known.version.is_some() && known.version >= number) {
            return;
        }
        let same = known.filter(|known| known.holder == *holder && known.transitions == record.transitions);
        let held = Held {
            kinds,
            holder: holder.clone(),
            pod: record.holder_pod.clone(),
            duration: record.duration,
            began: same.map_or(number, |same| same.began),
            transitions: record.transitions,
            version: number,
            since: now,
            renewals: same.map_or(0, |same| same.renewals + 1),
        };
        self.held.insert(name, held);
    }

    /// A Lease is gone.
    pub fn deleted(&mut self, now: Moment, record: &Record) {
        self.seen = self.seen.max(record.version.number());
        self.vanish(now, &(record.namespace.clone(), record.name.clone()));
    }

    /// A holder that has not heard that its Lease is gone works on for as long as it counts for itself. One whose Lease had
    /// expired before counts no more: that is how the Lease of a renamed kind is collected.
    fn vanish(&mut self, now: Moment, name: &(String, String)) {
        let Some(held) = self.held.get_mut(name) else { return };
        if self.current && now >= held.expiry(self.lease_duration) {
            self.held.remove(name);
        } else {
            held.since = now;
        }
    }

    /// The watch is down: what is known stays true until it is up again.
    pub fn blind(&mut self) {
        self.current = false;
    }

    /// Whether the watch has shown everything up to this version.
    pub fn has_seen(&self, version: Option<u64>) -> bool {
        self.current && version.is_some() && self.seen >= version
    }

    /// A held Lease of one of these kinds, all of one shard, that keeps us from leading them. `term`: the resource version of the write
    /// by which a term of ours that works has begun; a rival that began after it gives way itself, if it knows the rule.
    pub fn of(&self, now: Moment, kinds: &[String], term: Option<Option<u64>>, deaths: &Deaths) -> Option<Rival> {
        let holds = |held: &Held| {
            let expired = self.current && now >= held.expiry(self.lease_duration);
            !expired && !deaths.prove(&held.holder, held.pod.as_deref())
        };
        let counts = |held: &Held| match term {
            None => true,
            Some(ours) => held.began.is_none() || held.began <= ours || held.renewals >= RENEWALS,
        };
        let mut found = self.held.iter().filter(|(_, held)| holds(held) && counts(held));
        found.find_map(|((namespace, name), held)| {
            let kind = held.kinds.iter().find(|kind| kinds.contains(kind))?.clone();
            Some(Rival {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
                holder: held.holder.clone(),
                config_map: false,
            })
        })
    }

    /// No such Lease is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// When a rival's Lease expires.
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        self.held.values().map(|held| held.expiry(self.lease_duration)).filter(|at| *at > now).min()
    }
}

impl Held {
    fn expiry(&self, lease_duration: Duration) -> Moment {
        self.since + self.duration.unwrap_or(lease_duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lease::Version;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(1000 + seconds))
    }

    fn record(namespace: &str, name: &str, version: u64, holder: Option<&str>) -> Record {
        Record {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            version: Version { uid: "u".to_owned(), resource_version: version.to_string() },
            role: Role::Shard,
            holder: holder.map(str::to_owned),
            duration: Some(Duration::from_secs(15)),
            kinds: vec!["Widget.example.com".to_owned()],
            ..Record::default()
        }
    }

    fn rivals() -> Rivals {
        let shards = [("Widget.example.com", Some("widget.example.com"))];
        let mut rivals = Rivals::new("ns", shards.into_iter(), Duration::from_secs(15));
        rivals.listed(at(0), &[], true);
        rivals
    }

    fn of(rivals: &Rivals, now: u64, term: Option<u64>) -> bool {
        rivals.of(at(now), &["Widget.example.com".to_owned()], term.map(Some), &Deaths::default()).is_some()
    }

    #[test]
    fn a_lease_that_names_several_kinds_is_a_rival_to_each_that_has_another_one() {
        // The kinds were one group, whose Lease one of them keeps.
        let kinds = [("A", Some("a")), ("B", Some("b"))];
        let mut rivals = Rivals::new("ns", kinds.into_iter(), Duration::from_secs(15));
        rivals.listed(at(0), &[], true);
        let of = |rivals: &Rivals, kinds: &[&str]| {
            let kinds: Vec<_> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
            rivals.of(at(0), &kinds, None, &Deaths::default()).map(|rival| (rival.name, rival.kind))
        };
        let kinds = vec!["C".to_owned(), "A".to_owned(), "B".to_owned()];
        rivals.stored(at(0), &Record { kinds, ..record("ns", "a", 5, Some("x")) });
        assert_eq!(of(&rivals, &["A"]), None, "it is the Lease that we compete for");
        assert_eq!(of(&rivals, &["B"]), Some(("a".to_owned(), "B".to_owned())));
        assert_eq!(of(&rivals, &["C"]), None, "that is no kind of ours");
        rivals.stored(at(0), &Record { kinds: vec!["A".to_owned()], ..record("ns", "a", 6, Some("y")) });
        assert_eq!(of(&rivals, &["A", "B"]), None, "its new holder leads one of them only");
        // The kinds are one group now.
        let kinds = [("A", Some("g")), ("B", Some("g"))];
        let mut rivals = Rivals::new("ns", kinds.into_iter(), Duration::from_secs(15));
        rivals.listed(at(0), &[], true);
        rivals.stored(at(0), &Record { kinds: vec!["B".to_owned()], ..record("ns", "b", 7, Some("x")) });
        assert_eq!(of(&rivals, &["A", "B"]), Some(("b".to_owned(), "B".to_owned())));
    }

    #[test]
    fn another_held_lease_of_the_kind_is_a_rival_until_it_is_released_or_expires() {
        let mut rivals = rivals();
        rivals.stored(at(0), &record("ns", "widget.example.com", 5, Some("x")));
        assert!(!of(&rivals, 0, None), "that is the Lease itself");
        rivals.stored(at(1), &record("ns", "old", 6, Some("x")));
        assert!(of(&rivals, 15, None) && !of(&rivals, 16, None));
        rivals.stored(at(2), &record("ns", "old", 7, None));
        assert!(!of(&rivals, 2, None));
        rivals.stored(at(3), &record("other", "widget.example.com", 8, Some("x")));
        assert!(of(&rivals, 3, None), "another namespace is another Lease");
    }

    #[test]
    fn of_two_the_later_gives_way() {
        let mut rivals = rivals();
        rivals.stored(at(0), &record("ns", "old", 6, Some("x")));
        assert!(of(&rivals, 0, Some(7)) && !of(&rivals, 0, Some(5)));
        rivals.stored(at(2), &record("ns", "old", 8, Some("x")));
        rivals.stored(at(4), &record("ns", "old", 9, Some("x")));
        assert!(of(&rivals, 4, Some(5)), "it does not know the rule");
    }

    #[test]
    fn a_rival_that_is_deleted_counts_for_its_duration_unless_it_had_expired() {
        let mut rivals = rivals();
        rivals.stored(at(0), &record("ns", "old", 6, Some("x")));
        rivals.deleted(at(10), &record("ns", "old", 7, Some("x")));
        assert!(of(&rivals, 24, None) && !of(&rivals, 25, None), "x may not have heard of it");
        rivals.stored(at(30), &record("ns", "old", 8, Some("x")));
        rivals.deleted(at(90), &record("ns", "old", 9, Some("x")));
        assert!(!of(&rivals, 90, None), "it is collected");
        rivals.stored(at(100), &record("ns", "old", 10, Some("x")));
        rivals.listed(at(200), &[], true);
        assert!(!of(&rivals, 200, None));
    }

    #[test]
    fn while_the_watch_is_down_a_rival_does_not_expire() {
        let mut rivals = rivals();
        rivals.stored(at(0), &record("ns", "old", 6, Some("x")));
        rivals.blind();
        assert!(of(&rivals, 600, None) && !rivals.has_seen(Some(6)));
        rivals.listed(at(600), &[], true);
        assert!(of(&rivals, 614, None), "its holder may not have heard that the Lease is gone");
        assert!(!of(&rivals, 615, None) && rivals.has_seen(Some(6)));
    }
}
