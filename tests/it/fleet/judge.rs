//! What must be true: at every commit, at every fence, and when nothing happens any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::resume_unwind,
};

use leasehold::{
    config::Rebalance,
    protocol::{
        election::Standing,
        event::{Request, ShardIndex, TermNumber},
        lease::{Purpose, Record, Role},
        moment::Moment,
    },
};

use super::{
    host::{Host, SETTLE, Template},
    server::{Commit, key_of},
    world::{Began, World},
};
use crate::timeline::{Global, MILLI, SECOND};

/// For how long a kind that fails no more may be moved by itself, in settle periods.
const AFTERCARE: Global = 2;

/// What was written of one Lease, in the order of commits.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// When a replica, or a stranger, renewed it last.
    pub(super) renewed: Global,
    /// For how long it said that it holds it.
    duration: Global,
    /// Whom the last release named.
    released_to: Option<String>,
    /// A hand has changed since then who holds it, or for how long.
    pub(super) touched: bool,
    /// By host: the decision of its last write that was carried out, and for how long that counts.
    sent: BTreeMap<usize, Moment>,
}

#[derive(Default)]
pub(super) struct Judge {
    pub(super) entries: BTreeMap<String, Entry>,
}

/// What was found to be untrue.
pub(super) struct Failure(pub(super) String);

/// Clocks may be fast, and then a wait is a little shorter in global time.
fn nearly(wait: Global) -> Global {
    wait / 101 * 100
}

/// What is seen from outside, for all terms of a kind, at one instant.
impl World {
    #[track_caller]
    pub(super) fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            // Not a panic, so that a schedule that is played a hundred times to find what matters says it once.
            resume_unwind(Box::new(Failure(format!("{}, at {:.4} s", what(), self.time.now as f64 / SECOND as f64))));
        }
    }

    // Safety: fences.

    /// Never may two replicas write for one kind, and never longer than the Lease is theirs.
    pub(super) fn check_fence(&mut self, host: usize, shard: ShardIndex, until: Moment) {
        let it = &self.hosts[host];
        let (kinds, lease) = (it.kinds_of(shard), it.lease_of(shard));
        let sent = self.judge.entries.get(lease).and_then(|entry| entry.sent.get(&host));
        let most = sent.map(|sent| *sent + it.template.timings.lease_duration);
        self.demand(most.is_some_and(|most| until <= most), || {
            format!("{} may write by {lease} until {until:?}, and its Lease until {most:?}", it.identity)
        });
        for kind in kinds.iter().map(|kind| &kind.name).filter(|kind| it.may_write(kind, self.time.now)) {
            let other =
                (0..self.hosts.len()).find(|&other| other != host && self.hosts[other].may_write(kind, self.time.now));
            self.demand(other.is_none(), || {
                format!("{} and {} may both write for {kind}", it.identity, self.name(other.unwrap_or_default()))
            });
            let stranger = self.strangers.iter().find(|it| it.lease == *lease && it.works(self.time.now));
            self.demand(stranger.is_none(), || format!("{} may write for {kind} beside a stranger", it.identity));
        }
    }

    pub(super) fn check_start(&mut self, host: usize, shard: ShardIndex, term: TermNumber, standby: Option<bool>) {
        let it = &self.hosts[host];
        let (kind, identity) = (it.lease_of(shard), self.name(host));
        self.demand(!it.is_blocked(shard), || format!("{identity} cannot run {kind} and does"));
        self.demand(!it.tasks.contains_key(&shard), || format!("{kind} begins at {identity} while its last term runs"));
        self.demand(it.fences.contains_key(&(shard, term)), || format!("{kind} begins at {identity} before its fence"));
        // One that was dropped meanwhile, by an error of its own, is as good as none.
        let filled = it.standbys.get(&shard).filter(|(number, _)| *number == term).is_some_and(|(_, filled)| *filled);
        let claims = standby == Some(true) && !it.template.declines && !filled;
        self.demand(!claims, || format!("{kind} begins at {identity} on a cache that is not filled"));
        for kind in self.hosts[host].kinds_of(shard).to_vec() {
            self.term_begins(host, &kind.name, standby);
        }
    }

    fn term_begins(&mut self, host: usize, kind: &str, standby: Option<bool>) {
        let for_balance = self.is_for_balance(host, kind);
        let how = if for_balance { ", moved for balance" } else { "" };
        self.note(format_args!("{} leads {kind}, standby {standby:?}{how}", self.name(host)));
        self.count(if standby == Some(true) { "term begun, prepared" } else { "term begun" });
        let last = self.terms.iter().rev().find(|term| term.kind == kind && term.for_balance).map(|term| term.at);
        if let Some(last) = last.filter(|_| for_balance) {
            let since = last.saturating_sub(2 * SETTLE);
            // Replicas that have started since do not know what another one did not take, and place it otherwise.
            let avoided = self.avoided.values().any(|until| since < *until);
            let answered = avoided
                || self.was_forgiven(since)
                || self.reweighed(since)
                || self.changes.iter().any(|&change| since <= change && change <= self.time.now);
            self.demand(answered, || format!("{kind} was moved twice, at {last} first, and nothing had changed"));
        }
        self.count(if for_balance { "moved for balance" } else { "not moved for balance" });
        self.terms.push(Began { at: self.time.now, kind: kind.to_owned(), host, for_balance });
    }

    /// Its holder was there and able, and gave it away all the same.
    fn is_for_balance(&self, host: usize, kind: &str) -> bool {
        let Some(before) = self.terms.iter().rev().find(|term| term.kind == kind).map(|term| term.host) else {
            return false;
        };
        let Some(lease) = self.hosts[host].template.kind(kind).map(|kind| &kind.lease) else { return false };
        let wanted = self.server.leases.get(lease).is_some_and(|record| record.wanted.is_some());
        let given = self.judge.entries.get(lease).and_then(|entry| entry.released_to.as_ref());
        let it = &self.hosts[before];
        let able = it.shard_of(kind).is_some_and(|shard| it.replica.shards()[shard].can_run(self.local(before)));
        before != host && it.is_active() && able && given == Some(&self.hosts[host].identity) && !wanted
    }

    /// A kind that is forgiven, or was not heard of, counts again there, and comes back for balance.
    fn was_forgiven(&self, since: Global) -> bool {
        let before = since.saturating_sub(AFTERCARE * SETTLE);
        self.hosts.iter().any(|it| {
            let before = it.clock.read(before);
            it.replica.shards().iter().any(|shard| shard.avoided_until(before).is_some())
        })
    }

    /// A term has begun since at a replica that counts its kind for another weight than the one before it did.
    fn reweighed(&self, since: Global) -> bool {
        let weight = |host: usize, kind: &str| {
            self.hosts[host].template.group_of(kind).iter().map(|kind| kind.weight).sum::<u32>()
        };
        self.terms.iter().enumerate().filter(|(_, term)| term.at >= since).any(|(index, term)| {
            let before = self.terms[..index].iter().rev().find(|other| other.kind == term.kind);
            before.is_some_and(|before| weight(before.host, &term.kind) != weight(term.host, &term.kind))
        })
    }

    // Safety: commits.

    pub(super) fn check_commit(&mut self, host: usize, decided_at: Option<Moment>, request: &Request, commit: &Commit) {
        self.note_commit(host, request, commit);
        match (&commit.before, &commit.after) {
            (before, Some(after)) if after.role == Role::Shard => {
                let before = before.as_deref();
                if after.holder.is_none() {
                    self.check_release(host, after);
                } else {
                    self.check_take_over(host, before, after);
                }
                self.check_naming(host, before, after);
                let released_to = after.holder.is_none().then(|| after.successor.clone());
                let now = self.time.now;
                let entry = self.judge.entries.entry(key_of(after)).or_default();
                entry.touched = false;
                entry.renewed = now;
                entry.duration = duration_of(after);
                if let Some(released_to) = released_to {
                    entry.released_to = released_to;
                } else if let Some(decided_at) = decided_at {
                    entry.sent.insert(host, decided_at);
                } else {
                    // Its process has given up on it, and does not count it.
                }
            }
            (_, Some(after)) => {
                let entry = self.judge.entries.entry(key_of(after)).or_default();
                (entry.renewed, entry.duration) = (self.time.now, duration_of(after));
            }
            (Some(before), None) => self.check_deletion(host, request, before),
            (None, None) => {}
        }
    }

    fn note_commit(&mut self, host: usize, request: &Request, commit: &Commit) {
        let (Request::Create { record, purpose } | Request::Update { record, purpose }) = request else { return };
        if self.log.is_some() && record.role == Role::Shard && (*purpose != Purpose::Renew || commit.is_unusual()) {
            let after = commit.after.as_ref().map(|record| record.version.resource_version.clone()).unwrap_or_default();
            self.note(format_args!("{}: {purpose:?} {} is stored as {after}", self.name(host), record.name));
        }
    }

    /// Never released before its work has ended.
    fn check_release(&mut self, host: usize, after: &Record) {
        let it = &self.hosts[host];
        let shard = it.template.shards().position(|kinds| kinds[0].lease == key_of(after));
        let Some(shard) = shard.filter(|_| it.alive) else { return };
        self.demand(!it.tasks.contains_key(&shard), || format!("{} was released under running work", after.name));
        let writes = it.unanswered.get(&shard).is_some_and(|until| self.local(host) < *until);
        self.demand(!writes, || format!("{} was released before its last write was over", after.name));
        self.demand(!it.may_write(&it.kinds_of(shard)[0].name, self.time.now), || {
            format!("{} was released by one that may write", after.name)
        });
    }

    /// Never taken before it expires, except after a release or on proof.
    fn check_take_over(&mut self, host: usize, before: Option<&Record>, after: &Record) {
        let Some(old) = before.filter(|old| old.holder.is_some() && old.holder != after.holder) else { return };
        let holder = old.holder.as_ref().unwrap();
        let entry = self.judge.entries.get(&key_of(old)).cloned().unwrap_or_default();
        let expired = self.time.now >= entry.renewed + nearly(entry.duration);
        let dead = self.hosts.iter().any(|it| !it.alive && it.identity == *holder);
        let own = self.hosts[host].pod_uid.as_ref();
        let same_pod = own.is_some() && own == old.holder_pod.as_ref();
        let proven = self.ended.contains_key(holder) || self.restarted.contains_key(holder) || same_pod;
        self.demand(expired || entry.touched || (dead && proven), || format!("{} was taken from {holder}", old.name));
        if !expired {
            self.count("taken on proof");
        }
    }

    fn check_naming(&mut self, host: usize, before: Option<&Record>, after: &Record) {
        let named = before.and_then(|before| before.successor.as_ref());
        if after.holder.is_some() && after.successor.is_some() && after.successor.as_ref() != named {
            let named = after.successor.clone().unwrap_or_default();
            self.note(format_args!("{} names {named} for {}", self.name(host), after.name));
            self.check_one_at_a_time(host);
        }
    }

    /// A replica gives one kind away at a time, unless it must.
    fn check_one_at_a_time(&self, host: usize) {
        let it = &self.hosts[host];
        // What fails anywhere is given on at once.
        let fails = |host: usize| {
            let now = self.local(host);
            self.hosts[host].replica.shards().iter().any(|shard| shard.failing_until(now).is_some())
        };
        if !self.faults.is_empty() || !it.is_active() || self.active().into_iter().any(fails) {
            return;
        }
        let now = self.local(host);
        let gives = |shard: &ShardIndex| {
            let name = it.lease_of(*shard);
            let stored = self.server.leases.get(name).filter(|record| record.holder.as_ref() == Some(&it.identity));
            let given = stored.is_some_and(|record| record.successor.is_some() && record.wanted.is_none());
            // One that it has to leave to expire is on no way any more.
            let renewed = self.judge.entries.get(name).is_some_and(|entry| self.time.now < entry.renewed + 6 * SECOND);
            let hears = it.tasks.get(shard).is_none_or(|task| task.hears);
            given && renewed && hears && it.replica.shards()[*shard].can_run(now)
        };
        let given: Vec<_> = (0..it.template.shards().count()).filter(gives).map(|shard| it.lease_of(shard)).collect();
        self.demand(given.len() <= 1, || format!("{} gives away {given:?} at once", it.identity));
    }

    /// A Lease that is renewed is never deleted, except by a process that ends or follows in its Pod.
    fn check_deletion(&mut self, host: usize, request: &Request, gone: &Record) {
        self.note(format_args!("{} deletes {}", self.name(host), gone.name));
        self.count("deletion");
        let entry = self.judge.entries.get(&key_of(gone)).cloned().unwrap_or_default();
        let silence = self.time.now - entry.renewed;
        let lease = u64::try_from(self.hosts[host].template.timings.lease_duration.as_micros()).unwrap();
        let silent = silence >= nearly(4 * lease.max(entry.duration));
        let process = gone.holder.as_ref().and_then(|holder| self.hosts.iter().position(|it| it.identity == *holder));
        if gone.role == Role::Replica {
            let dead = process.is_some_and(|process| !self.hosts[process].alive);
            self.demand(process == Some(host) || dead || silent, || {
                format!("the membership {} was deleted", gone.name)
            });
            return;
        }
        if matches!(request, Request::Delete { purpose: Some(Purpose::Replace), .. }) {
            let dead = process.is_some_and(|process| !self.hosts[process].alive);
            let expired = silence >= nearly(entry.duration);
            let free = gone.holder.is_none() || expired || process == Some(host) || dead || entry.touched;
            let spent = self.server.highest.get(&gone.version.uid) == Some(&i32::MAX);
            self.count("replaced");
            self.demand(spent && free, || format!("{} was made anew and need not be", gone.name));
            return;
        }
        self.demand(silent || entry.touched, || format!("{} was renewed and is deleted", gone.name));
        let configured = self.server.leases.values().any(|record| {
            let renewed = self.judge.entries.get(&key_of(record)).map_or(0, |entry| entry.renewed);
            let created = u64::try_from(record.created).unwrap() * SECOND;
            let lately = created + 20 * SECOND < self.time.now && self.time.now < renewed + 6 * SECOND;
            let known = lately && record.namespace == gone.namespace;
            known && record.profile.as_ref().is_some_and(|profile| profile.shards.contains(&gone.name))
        });
        self.demand(!configured, || format!("{} is configured and is deleted", gone.name));
    }

    /// A hand has changed a Lease, or a stranger has.
    pub(super) fn touched(&mut self, lease: &str) {
        self.judge.entries.entry(lease.to_owned()).or_default().touched = true;
    }

    /// A stranger has written it.
    pub(super) fn written_by_stranger(&mut self, lease: &str, duration: Global) {
        let now = self.time.now;
        let entry = self.judge.entries.entry(lease.to_owned()).or_default();
        (entry.renewed, entry.duration, entry.touched) = (now, duration, false);
    }

    // Liveness: what shall be true when nothing happens any more.

    /// Which replica leads a kind: it works, and its election stands firm.
    pub(super) fn leader(&self, kind: &str) -> Option<usize> {
        (0..self.hosts.len()).find(|&host| {
            let it = &self.hosts[host];
            let works = |shard: ShardIndex| {
                let firm = matches!(it.replica.shards()[shard].standing(self.local(host)), Standing::Leading(_));
                firm && it.tasks.contains_key(&shard)
            };
            it.may_write(kind, self.time.now) && it.shard_of(kind).is_some_and(works)
        })
    }

    /// How long it is at the most until no kind is kept away from a replica where it failed or heard nothing.
    pub(super) fn cools_for(&self) -> Global {
        let cools = |host: usize| {
            let (it, now) = (&self.hosts[host], self.local(host));
            let until = it.replica.shards().iter().filter_map(|shard| shard.avoided_until(now)).max();
            until.map_or(0, |until| it.clock.until(until, self.time.now))
        };
        self.active().into_iter().map(cools).max().unwrap_or(0)
    }

    /// By owner: the template that was rolled out last.
    fn newest(&self) -> BTreeMap<Option<&String>, &str> {
        let mut active = self.active();
        active.sort_by_key(|&host| (self.hosts[host].template.revision, host));
        active.iter().map(|&host| &self.hosts[host].template).map(|it| (it.owner.as_ref(), it.name.as_str())).collect()
    }

    /// What is amiss: a kind that a replica can run is not led; or there is a move that would even out two loads.
    pub(super) fn amiss(&self) -> Option<String> {
        let active = self.active();
        let can = |host: usize, kind: &str| {
            let it = &self.hosts[host];
            let runs = |it: &Host, kind: &str| !it.blocked.contains(kind) && !it.failing.contains(kind);
            it.template.kind(kind).is_some() && it.template.group_of(kind).iter().all(|kind| runs(it, &kind.name))
        };
        if self.cools_for() > 0 {
            return Some("a kind is kept away from a replica".to_owned());
        }
        let newest = self.newest();
        let is_newest = |host: usize| {
            let template = &self.hosts[host].template;
            newest.get(&template.owner.as_ref()).is_some_and(|name| *name == template.name)
        };
        let capacity = |host: usize| u64::from(self.hosts[host].template.capacity);
        let (mut loads, mut counted) = (BTreeMap::<usize, u64>::new(), BTreeSet::new());
        let mut led = Vec::new();
        let kinds: BTreeSet<_> =
            active.iter().flat_map(|&host| &self.hosts[host].template.kinds).map(|kind| &kind.name).collect();
        for kind in kinds {
            let able = active.iter().any(|&host| can(host, kind));
            let Some(leader) = self.leader(kind) else {
                if able {
                    return Some(format!("{kind} is not led"));
                }
                continue;
            };
            if !can(leader, kind) && able {
                return Some(format!("{kind} is led where it cannot be run"));
            }
            if self.hosts[leader].replica.is_stopping() {
                return Some(format!("{kind} is led by one that stops"));
            }
            let planned = self.hosts[leader].template.kind(kind).unwrap();
            let stored = self.server.leases.get(&planned.lease);
            if stored.is_some_and(|record| record.successor.is_some()) {
                return Some(format!("{kind} is on its way"));
            }
            let group = self.hosts[leader].template.group_of(kind);
            let elsewhere = group.iter().find(|other| self.leader(&other.name) != Some(leader));
            if let Some(other) = elsewhere {
                return Some(format!("{kind} is led without {} of its group", other.name));
            }
            if !counted.insert(&planned.lease) {
                continue;
            }
            let of_group = group.iter().map(|kind| kind.weight).sum();
            let weight = u64::from(stored.and_then(|record| record.weight).unwrap_or(of_group));
            *loads.entry(leader).or_default() += weight;
            led.push((kind, weight, leader, stored.and_then(|record| record.wanted.clone())));
        }
        for (kind, weight, leader, wanted) in led {
            let there = wanted.and_then(|name| {
                let is = |host: usize| self.hosts[host].identity == name || self.hosts[host].pod == name;
                active.iter().copied().find(|&host| is(host) && can(host, kind))
            });
            match there {
                Some(there) if there == leader => continue,
                Some(_) => return Some(format!("{kind} is not where it is wanted")),
                None => {}
            }
            if self.modes() > 1 || self.hosts[leader].template.rebalance != Rebalance::Automatic {
                continue;
            }
            let better = active.iter().copied().find(|&host| {
                let load = loads.get(&host).copied().unwrap_or(0) + weight;
                is_newest(host) && can(host, kind) && load * capacity(leader) < loads[&leader] * capacity(host)
            });
            if let Some(better) = better {
                return Some(format!("{kind} would better be at {} than at {}", self.name(better), self.name(leader)));
            }
        }
        None
    }

    /// Who leads what, for the log.
    fn note_loads(&mut self) {
        for host in self.active() {
            let it = &self.hosts[host];
            let led = it.template.kinds.iter().filter(|kind| self.leader(&kind.name) == Some(host));
            let stored = |lease: &str| self.server.leases.get(lease).and_then(|record| record.weight);
            let led: Vec<_> = led.map(|kind| (kind.name.clone(), kind.weight, stored(&kind.lease))).collect();
            let (identity, template) = (it.identity.clone(), it.template.clone());
            let Template { name, owner, capacity, revision, rebalance, .. } = template;
            self.note(format_args!(
                "{identity} of {name} ({owner:?}, {revision:?}, {capacity}, {rebalance:?}) leads {led:?}"
            ));
        }
    }

    /// How many each active replica leads.
    pub(super) fn spread(&self) -> Vec<usize> {
        let leads = |host: usize| {
            let shards = self.hosts[host].template.shards();
            shards.filter(|kinds| self.leader(&kinds[0].name) == Some(host)).count()
        };
        self.active().into_iter().map(leads).collect()
    }

    /// How many modes there are. A replica that moves nothing leaves undone what the others count on.
    fn modes(&self) -> usize {
        let modes = self.active().into_iter().map(|host| self.hosts[host].template.rebalance as u8);
        modes.collect::<BTreeSet<_>>().len()
    }

    /// Runs until nothing is amiss.
    #[track_caller]
    pub(super) fn gets_right(&mut self, within: Global) {
        let by = self.time.now + within;
        if self.modes() > 1 {
            // What is amiss cannot be told then: but it has to be over by then.
            self.run(by);
        }
        while let Some(amiss) = self.amiss() {
            if self.time.now >= by {
                self.note_loads();
            }
            self.demand(self.time.now < by, || format!("{amiss}, {} s after the last change", within / SECOND));
            self.run_for(250 * MILLI);
        }
        self.note(format_args!("nothing is amiss"));
    }

    /// Runs until nothing is amiss, and then for twenty settle periods in which no kind may move.
    #[track_caller]
    pub(super) fn comes_to_rest(&mut self, within: Global) {
        self.gets_right(within);
        let moves = self.terms.len();
        self.run_for(20 * SETTLE);
        self.demand(self.terms.len() == moves, || "a kind has moved although nothing was amiss".to_owned());
        let amiss = self.amiss();
        self.demand(amiss.is_none(), || amiss.unwrap_or_default());
        let spread = self.spread();
        let even = spread.iter().max().unwrap_or(&0) - spread.iter().min().unwrap_or(&0) <= 1;
        self.demand(even || !self.is_to_be_even(), || format!("the spread is {spread:?}"));
    }

    fn is_to_be_even(&self) -> bool {
        let active = self.active();
        let templates: Vec<_> = active.iter().map(|&host| &self.hosts[host].template).collect();
        let alike = templates.windows(2).all(|two| {
            (&two[0].kinds, two[0].revision, &two[0].owner) == (&two[1].kinds, two[1].revision, &two[1].owner)
        });
        let plain = |template: &&Template| {
            let light = template.shards().all(|kinds| kinds.iter().map(|kind| kind.weight).sum::<u32>() == 1);
            light && template.capacity == 1 && template.rebalance == Rebalance::Automatic
        };
        let sound =
            active.iter().all(|&host| self.hosts[host].blocked.is_empty() && self.hosts[host].failing.is_empty());
        let free = self.server.leases.values().all(|record| record.wanted.is_none());
        alike && templates.iter().all(plain) && sound && free
    }

    /// Terms that have begun since: by kind, in their order, on which hosts.
    pub(super) fn terms_since(&self, since: Global) -> BTreeMap<String, Vec<usize>> {
        let mut terms = BTreeMap::<String, Vec<usize>>::new();
        for term in self.terms.iter().filter(|term| term.at >= since) {
            terms.entry(term.kind.clone()).or_default().push(term.host);
        }
        terms
    }
}

fn duration_of(record: &Record) -> Global {
    record.duration.map_or(0, |duration| u64::try_from(duration.as_micros()).unwrap())
}
