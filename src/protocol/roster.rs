//! Who is there and what is where, as this replica sees it; and what follows from it for each of its shards.
//!
//! Pure. It counts the silence of replicas and holders as an election does: by our own time, from when we first saw a
//! version. What it says is advice. A wrong or stale view costs balance, or the grace; the Lease is the lock.

mod advice;
mod outlook;
mod presence;
mod takeovers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    election::RELEASED,
    event::{Deaths, Garbage},
    history::{History, Takeover},
    lease::{Holding, Member, Version},
    membership::{Activity, LeaseSet, Profile},
    misses::Misses,
    moment::Moment,
};
use crate::config::{LockKind, Rebalance, StandbyMode};

pub use advice::elsewhere;
pub use outlook::{Candidate, Outlook, Unfit, Wait, spec_of};

/// What the configuration says of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardSpec {
    /// Name of the Lease.
    pub lease: String,
    /// What that name is the name of.
    pub lock: LockKind,
    /// The kinds that share it, `<Kind>.<group>`; at least one.
    pub kinds: Vec<String>,
    /// Expected load, of all of them.
    pub weight: u32,
    /// Who keeps a cache without leading.
    pub standby: StandbyMode,
}

/// What the configuration says of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// When held shards may be moved for balance.
    pub rebalance: Rebalance,
    /// How long the replicas must have been the same before a shard is moved for balance.
    pub settle: Duration,
    /// The longest that a replica lets others go first.
    pub grace: Duration,
    /// Counts for records that publish no duration.
    pub lease_duration: Duration,
}

/// Whether a replica is to keep a cache of a shard beside the one that its term has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cache {
    /// It is not.
    #[default]
    None,
    /// One that was begun is kept, but none is begun now: the replicas have just changed, so others are handing over, and
    /// who is next may change too.
    Begun,
    /// It is.
    Kept,
}

/// To whom a shard that is held here shall go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HandOver {
    /// Its holder identity.
    pub to: String,
    /// It has filled its cache.
    pub prepared: bool,
    /// The shard leaves in any case; otherwise only for a successor that is prepared.
    pub must: bool,
}

/// What to do about one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Advice {
    /// Who shall have it.
    pub target: Option<String>,
    /// How long to let others go first for it when it is free.
    pub patience: Duration,
    /// Held here: to whom it shall go.
    pub hand_over: Option<HandOver>,
    /// The watch shows us as its holder.
    pub held: bool,
    /// Whether a cache of it is to be kept, if it is not held here.
    pub cache: Cache,
    /// Not held here: we are named to follow the term with this token.
    pub named: Option<String>,
}

/// A replica that counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Holder identity.
    pub identity: String,
    /// It gives its shards away and then ends.
    pub draining: bool,
    /// It is of the newest generation.
    pub newest: bool,
    /// That generation, as it says.
    pub generation: String,
    /// How much it takes, relative to the others.
    pub capacity: u32,
}

/// Advice for all shards of the configuration, and when it is to be asked for again if nothing is seen before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By name of the Lease.
    pub shards: BTreeMap<String, Advice>,
    /// The replicas that count, this one among them.
    pub peers: Vec<Peer>,
    /// When time alone may change it.
    pub next: Option<Moment>,
}

/// Two generations that live side by side for this many settle periods without a change are no rollout that goes on.
const ROLLOUT_STALLED_AFTER: u32 = 12;

/// A Lease that was silent for this many lease durations is garbage: four times what a holder or a replica needs to be
/// taken for gone.
const GARBAGE_AFTER: u32 = 4;

/// A kind that has stopped failing may be the only one that is moved for this many settle periods: what went elsewhere
/// by failing comes back by itself.
const FAILING_COOL_DOWN: u32 = 2;

/// A holder that stops names its successors, and says that it stops, in several writes: until the last of them is seen
/// it looks like a replica that takes shards and has next to none.
const NAMING_TAKES: Duration = Duration::from_secs(1);

/// A replica that starts while others do takes no more than its share for this many times the grace.
const EXPECTED_WITHIN: u32 = 2;

/// A record, and since when this version of it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known<T> {
    what: T,
    since: Moment,
}

/// What one replica knows of the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Roster {
    identity: String,
    specs: BTreeMap<String, ShardSpec>,
    rules: Rules,
    me: Profile,
    members: BTreeMap<String, Known<Member>>,
    /// Those whose membership is gone although they may lead a kind by a ConfigMap, and since when: they need not have heard.
    departed: BTreeMap<String, Known<Member>>,
    /// Those of whom only a list has told: they may have been gone for long when it was made.
    listed_only: BTreeSet<String>,
    /// Those who have let a shard expire, or lost one to a replica that had a proof of their death, since they were last
    /// heard of.
    overdue: BTreeSet<String>,
    holdings: BTreeMap<String, Known<Holding>>,
    /// Processes that are proven dead, and no other of their Pod runs; each with the uid of its Pod.
    dead: BTreeMap<String, Option<String>>,
    /// The Pods that a replica of ours can be in, name and uid; `None` while that is not known.
    pods: Option<BTreeMap<String, String>>,
    /// Everything is seen: the watch is up.
    current: bool,
    /// The replicas that count and what they cannot run, at the last look, and since when that is so.
    peers: BTreeMap<String, State>,
    changed_at: Moment,
    joined_at: Moment,
    started_at: Moment,
    /// So many replicas of ours exist or are being started.
    expected: usize,
    /// By Lease of a free shard: who is to take it, and since when.
    targets: BTreeMap<String, (String, Moment)>,
    misses: Misses,
    /// Misses that were seen since they were last asked for.
    missed: Vec<Missed>,
    /// How the shards of the configuration came to be where they are.
    history: History,
    /// Takeovers that were seen since they were last asked for, by Lease.
    taken_over: Vec<(String, Takeover)>,
    /// When a replica last said that a shard fails, by Lease; those only for which that matters still.
    failing: BTreeMap<String, Moment>,
    /// Free shards whose target we were at the last look: ours to be, while the replicas are the same. What we take is seen
    /// one by one, and must not make us the target of others meanwhile.
    claims: BTreeSet<String>,
    /// By Lease that we hold: whom we have named to follow at the last look.
    naming: BTreeMap<String, String>,
    /// When another holder was last seen to name a successor.
    named_at: Moment,
    /// A rollout has ended, and its result was not evened out yet.
    rolled: bool,
    /// When the last change was seen that ends it.
    rolled_at: Moment,
    generations: usize,
}

/// A replica has not taken a shard that it was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Missed {
    /// Name of the Lease.
    pub lease: String,
    /// Holder identity of the replica.
    pub replica: String,
    /// For how long it is not chosen for this shard.
    pub avoided_for: Duration,
}

/// What of a replica, if it changes, makes the views settle anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    activity: Activity,
    blind: bool,
    unable: LeaseSet,
}

/// A replica that counts, for one look.
struct Present<'a> {
    identity: &'a str,
    profile: &'a Profile,
    newest: bool,
}

impl Roster {
    /// A roster of one: nothing is seen yet.
    pub fn new(identity: String, me: Profile, specs: Vec<ShardSpec>, rules: Rules, now: Moment) -> Self {
        Self {
            identity,
            specs: specs.into_iter().map(|spec| (spec.lease.clone(), spec)).collect(),
            rules,
            me,
            members: BTreeMap::new(),
            departed: BTreeMap::new(),
            listed_only: BTreeSet::new(),
            overdue: BTreeSet::new(),
            holdings: BTreeMap::new(),
            dead: BTreeMap::new(),
            pods: None,
            current: false,
            peers: BTreeMap::new(),
            changed_at: Moment::default(),
            joined_at: Moment::default(),
            started_at: now,
            expected: 0,
            targets: BTreeMap::new(),
            misses: Misses::default(),
            missed: Vec::new(),
            history: History::default(),
            taken_over: Vec::new(),
            failing: BTreeMap::new(),
            claims: BTreeSet::new(),
            naming: BTreeMap::new(),
            named_at: Moment::default(),
            rolled: false,
            rolled_at: Moment::default(),
            generations: 1,
        }
    }

    /// How long to let the one go first whom the last holder of this Lease has named: none that is known not to come is waited
    /// for, as one that was told to stop meanwhile.
    pub fn courtesy(&self, now: Moment, lease: &str) -> Duration {
        let named = self.holdings.get(lease).and_then(|known| known.what.successor.as_deref());
        let comes = named.is_none_or(|named| {
            self.members.get(named).is_some_and(|Known { what, since }| {
                what.profile.activity == Activity::Active
                    && what.profile.can_run(lease)
                    && now < self.silent_at(what.duration, *since)
                    && !self.is_dead(named, what.profile.pod_uid.as_deref())
            })
        });
        if comes || !self.current { self.rules.grace } else { Duration::ZERO }
    }

    /// A live replica that leads one of these kinds by a ConfigMap when it leads it, and takes no notice of a Lease; with that
    /// kind.
    pub fn by_config_map<'a>(&'a self, now: Moment, kinds: &'a [String]) -> Option<(&'a Member, &'a String)> {
        let lives = |member: &&Known<Member>| {
            let Member { identity, profile, duration, .. } = &member.what;
            let is_dead = self.is_dead(identity, profile.pod_uid.as_deref());
            *identity != self.identity && now < self.silent_at(*duration, member.since) && !is_dead
        };
        let all = self.members.values().chain(self.departed.values());
        let mut all = all.filter(|member| !member.what.profile.config_maps.is_empty()).filter(lives);
        all.find_map(|member| {
            let kind = kinds.iter().find(|kind| member.what.profile.config_maps.contains(kind))?;
            Some((&member.what, kind))
        })
    }

    /// Whether [`by_config_map`](Self::by_config_map) may name one.
    pub fn knows_config_maps(&self) -> bool {
        let mut all = self.members.values().chain(self.departed.values());
        all.any(|member| !member.what.profile.config_maps.is_empty())
    }

    /// It was held in our Pod before this process was started.
    pub fn comes_back(&self, lease: &str) -> bool {
        let holding = self.holdings.get(lease).map(|holding| &holding.what);
        let pod = holding.and_then(|holding| holding.holder_pod.as_ref());
        pod.is_some() && pod == self.me.pod_uid.as_ref()
    }

    /// What another replica says of itself.
    pub fn profile(&self, identity: &str) -> Option<&Profile> {
        let member = &self.members.get(identity)?.what;
        self.is_of_ours(member).then_some(&member.profile)
    }

    /// What we say of ourselves.
    pub fn me(&self) -> &Profile {
        &self.me
    }

    /// Changes what we say of ourselves.
    pub fn introduce(&mut self, me: Profile) {
        self.me = me;
    }

    /// The watch is down: what is known grows old, and nothing is to be moved on its account.
    pub fn blind(&mut self) {
        self.current = false;
    }

    /// Everything there is. What was known before and is the same version keeps its time.
    pub fn listed(&mut self, now: Moment, members: Vec<Member>, holdings: Vec<(String, Holding)>) {
        let names: BTreeSet<_> = members.iter().map(|member| member.identity.clone()).collect();
        let gone: Vec<_> = self.members.keys().filter(|identity| !names.contains(*identity)).cloned().collect();
        gone.iter().for_each(|identity| _ = self.remove(now, identity));
        self.misses.keep(|replica| replica == self.identity || names.contains(replica));
        let names: BTreeSet<_> = holdings.iter().map(|(lease, _)| lease.clone()).collect();
        self.holdings.retain(|lease, _| names.contains(lease));
        self.listed_only.retain(|identity| self.members.contains_key(identity));
        self.overdue.retain(|identity| self.members.contains_key(identity));
        for member in members {
            let (identity, known) = (member.identity.clone(), self.members.get(&member.identity));
            let renewed = known.is_none_or(|known| known.what.version != member.version);
            self.member(now, member);
            if renewed && identity != self.identity {
                self.listed_only.insert(identity);
            }
        }
        for (lease, holding) in holdings {
            self.holding(now, &lease, Some(holding));
        }
        self.current = true;
    }

    /// A membership Lease has changed. Whether more than its time has.
    pub fn member(&mut self, now: Moment, member: Member) -> bool {
        let known = self.members.get(&member.identity);
        if known.is_some_and(|known| known.what.version == member.version) {
            return false;
        }
        let expired = known.is_some_and(|known| now >= self.silent_at(known.what.duration, known.since));
        let heard = self.listed_only.remove(&member.identity) | self.overdue.remove(&member.identity);
        let told = heard || expired || known.is_none_or(|known| known.what.profile != member.profile);
        self.departed.remove(&member.identity);
        // What does not count changes nothing, however often it is written.
        let told = told && self.is_of_ours(&member);
        self.members.insert(member.identity.clone(), Known { what: member, since: now });
        told
    }

    /// A membership Lease is gone. Whether it was known.
    pub fn member_gone(&mut self, now: Moment, identity: &str) -> bool {
        self.listed_only.remove(identity);
        self.overdue.remove(identity);
        self.misses.keep(|replica| replica != identity);
        self.remove(now, identity)
    }

    /// One that ends by itself says before that it leads no kind by a ConfigMap any more.
    fn remove(&mut self, now: Moment, identity: &str) -> bool {
        let Some(member) = self.members.remove(identity) else { return false };
        if !member.what.profile.config_maps.is_empty() {
            self.departed.insert(identity.to_owned(), Known { since: now, ..member });
        }
        true
    }

    /// A shard's Lease has changed, or is gone. Whether more than its time has.
    pub fn holding(&mut self, now: Moment, lease: &str, holding: Option<Holding>) -> bool {
        let Some(holding) = holding else {
            self.see_end(now, lease);
            return self.holdings.remove(lease).is_some();
        };
        let known = self.holdings.get(lease);
        if known.is_some_and(|known| known.what.version == holding.version) {
            return false;
        }
        let expired = known.is_some_and(|known| now >= self.silent_at(known.what.duration, known.since));
        let told = expired
            || known.is_none_or(|known| {
                let comparable = |holding: &Holding| Holding {
                    version: Version { uid: holding.version.uid.clone(), resource_version: String::new() },
                    ..holding.clone()
                };
                comparable(&known.what) != comparable(&holding)
            });
        self.note_take_over(now, lease, &holding);
        self.see_takeover(now, lease, &holding);
        let named = self.holdings.get(lease).and_then(|known| known.what.successor.as_ref());
        if holding.successor.is_some()
            && holding.successor.as_ref() != named
            && holding.holder.as_ref() != Some(&self.identity)
        {
            self.named_at = now;
        }
        self.holdings.insert(lease.to_owned(), Known { what: holding, since: now });
        told
    }

    /// Sees whether the replica that was to take a free shard has taken it (rule 18).
    fn note_take_over(&mut self, now: Moment, lease: &str, next: &Holding) {
        let Some(taker) = next.holder.as_deref() else { return };
        let known = self.holdings.get(lease);
        let before = known.and_then(|known| known.what.holder.as_deref());
        if before == Some(taker) {
            return;
        }
        self.misses.forgive(taker, lease);
        let target = self.targets.get(lease);
        let given = match known {
            // Released to a successor.
            Some(Known { what: Holding { holder: None, successor: Some(named), .. }, since }) => Some((named, *since)),
            Some(Known { what: Holding { holder: None, duration: Some(RELEASED), .. }, since }) => {
                target.map(|(target, at)| (target, *at.max(since)))
            }
            // A hand has cleared it: the target may have to wait, and an earlier holder not.
            Some(Known { what: Holding { holder: None, .. }, .. }) => None,
            // Still held as far as it is seen here: nothing is known of how it came to be free.
            Some(known) if now < self.silent_at(known.what.duration, known.since) => None,
            _ => target.map(|(target, at)| (target, *at)),
        };
        let Some((given_to, since)) = given else { return };
        let had_its_time = now >= since + self.rules.grace.mul_f64(0.4);
        // Replicas that have just started take their shares slowly.
        // One that has come since the last renewal counts the expiry from when it came.
        let released = known.is_some_and(|known| known.what.holder.is_none());
        let is_new = if released { self.rules.grace } else { self.rules.lease_duration };
        let is_settled = now >= self.joined_at + self.rules.grace + is_new;
        // A successor that was named could run it; one that says now that it cannot has tried in vain.
        let named =
            known.is_some_and(|known| known.what.holder.is_none() && known.what.successor.as_ref() == Some(given_to));
        let could = |profile: &Profile| profile.activity == Activity::Active && (named || profile.can_run(lease));
        let could_take = match self.members.get(given_to) {
            _ if *given_to == self.identity => could(&self.me),
            Some(member) => could(&member.what.profile),
            None => false,
        };
        let gave_up = named
            && self.members.get(given_to).is_some_and(|member| {
                member.what.profile.activity == Activity::Active && !member.what.profile.can_run(lease)
            });
        if *given_to != taker && (had_its_time || gave_up) && is_settled && could_take {
            let replica = given_to.clone();
            self.miss(now, lease, &replica);
        }
    }

    /// A replica did not take a shard, or was not prepared for it in time.
    pub fn miss(&mut self, now: Moment, lease: &str, replica: &str) {
        let avoided_for = self.misses.add(now, replica, lease);
        // A successor that we have named ourselves is none any more.
        if self.naming.get(lease).is_some_and(|named| named == replica) {
            self.naming.remove(lease);
        }
        self.missed.push(Missed { lease: lease.to_owned(), replica: replica.to_owned(), avoided_for });
    }

    /// The misses that replicas which start later shall know of.
    pub fn told_misses(&self, now: Moment) -> BTreeMap<String, LeaseSet> {
        self.misses.told(now)
    }

    /// The misses that were seen since this was last asked.
    pub fn take_missed(&mut self) -> Vec<Missed> {
        std::mem::take(&mut self.missed)
    }

    /// So many replicas of ours exist or are being started, this one among them.
    pub fn expect(&mut self, replicas: usize) {
        self.expected = replicas;
    }

    /// These processes are proven dead, and no other of their Pod runs. Whether one of them was not known to be.
    pub fn mark_dead(&mut self, deaths: &Deaths) -> bool {
        let news = deaths.ended.keys().any(|identity| !self.dead.contains_key(identity));
        // The dead stay dead; those that are on no Lease any more can be forgotten.
        let (members, holdings) = (&self.members, &self.holdings);
        let holds = |identity: &String| holdings.values().any(|it| it.what.holder.as_ref() == Some(identity));
        self.dead.retain(|identity, _| members.contains_key(identity) || holds(identity));
        self.dead.extend(deaths.ended.iter().map(|(identity, pod)| (identity.clone(), pod.clone())));
        news
    }

    /// A proof about another Pod than the one that a Lease names proves nothing.
    fn is_dead(&self, identity: &str, pod: Option<&str>) -> bool {
        self.dead.get(identity).is_some_and(|proven| match (proven.as_deref(), pod) {
            (Some(proven), Some(pod)) => proven == pod,
            _ => true,
        })
    }

    /// Membership Leases whose process gave our Pod's uid and is not ours: we hold the Pod's lock, so it is dead.
    pub fn predecessors(&self) -> impl Iterator<Item = &Member> {
        self.members
            .values()
            .map(|member| &member.what)
            .filter(|member| member.identity != self.identity && self.me.pod_uid.is_some())
            .filter(|member| member.profile.pod_uid == self.me.pod_uid)
    }

    /// Leases that no replica needs, by name, at the version they may be deleted at: memberships of processes that are
    /// gone, and shards that no replica is configured for which may still be there. Never one that was renewed within
    /// [`GARBAGE_AFTER`] lease durations. One replica sees to it, so that the others find nothing to do.
    pub fn garbage(&self, now: Moment) -> Vec<(String, Version, Garbage)> {
        let present = self.present(now);
        let collector = present.iter().find(|one| one.profile.activity == Activity::Active && !one.profile.blind);
        if !self.current || collector.is_none_or(|one| one.identity != self.identity) {
            return Vec::new();
        }
        let is_silent = |duration: Option<Duration>, since: Moment| {
            now >= since + duration.unwrap_or_default().max(self.rules.lease_duration) * GARBAGE_AFTER
        };
        let gone = self.members.values().filter_map(|member| {
            let dead = self.is_dead(&member.what.identity, member.what.profile.pod_uid.as_deref());
            let absent = !present.iter().any(|one| one.identity == member.what.identity);
            let why = if dead { Garbage::Dead } else { Garbage::Silent };
            let garbage = absent && (dead || is_silent(member.what.duration, member.since));
            garbage.then(|| (member.what.name.clone(), member.what.version.clone(), why))
        });
        // A replica that is late counts for no move, and may be configured for the shard all the same.
        let perhaps = self.members.values().filter(|member| {
            let dead = self.is_dead(&member.what.identity, member.what.profile.pod_uid.as_deref());
            !dead && !is_silent(member.what.duration, member.since)
        });
        let perhaps: Vec<_> = perhaps.map(|member| &member.what.profile.shards).collect();
        let orphaned = self.holdings.iter().filter(|(lease, holding)| {
            let known = perhaps.iter().any(|shards| shards.contains(lease));
            !known && !self.specs.contains_key(*lease) && is_silent(holding.what.duration, holding.since)
        });
        let orphaned = orphaned.map(|(lease, holding)| (lease.clone(), holding.what.version.clone(), Garbage::Orphan));
        gone.chain(orphaned).collect()
    }

    /// When what is seen changes its meaning by itself.
    fn next_change(&self, now: Moment) -> Option<Moment> {
        let silent = self
            .members
            .values()
            .chain(self.departed.values())
            .map(|member| self.silent_at(member.what.duration, member.since))
            .chain(self.holdings.values().map(|holding| self.silent_at(holding.what.duration, holding.since)));
        let named = self.holdings.values().filter(|holding| holding.what.successor.is_some());
        let awaited = named.map(|holding| holding.since + self.rules.grace);
        let settled = [
            self.changed_at + NAMING_TAKES,
            self.changed_at + self.rules.settle,
            self.changed_at + self.rules.settle * ROLLOUT_STALLED_AFTER,
            self.joined_at + self.rules.grace,
            self.started_at + self.rules.grace * EXPECTED_WITHIN,
            self.named_at + NAMING_TAKES,
        ];
        let cared = self.failing.values().map(|last| *last + self.rules.settle * FAILING_COOL_DOWN);
        let misses = self.misses.next_change(now);
        silent.chain(awaited).chain(settled).chain(cared).chain(misses).filter(|moment| *moment > now).min()
    }

    fn silent_at(&self, duration: Option<Duration>, since: Moment) -> Moment {
        since + duration.unwrap_or(self.rules.lease_duration)
    }
}
