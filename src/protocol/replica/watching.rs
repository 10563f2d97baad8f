//! What the watch of Leases shows, and what it means for each part.

use std::collections::{BTreeMap, BTreeSet};

use super::Replica;
use crate::config::LockKind;
use crate::protocol::{
    event::{Garbage, Notice, Rival, ShardIndex, Watch},
    lease::{Member, Record, Role},
    moment::Moment,
    shard::Shard,
};

impl Replica {
    // The watch of Leases.

    pub(super) fn on_watch(&mut self, watch: Watch, now: Moment) {
        match watch {
            Watch::Listed(records) => self.on_listed(records, now),
            Watch::Stored(record) => {
                self.rivals.stored(now, &record);
                self.note_odd(&record);
                self.doubt_with_others(&record);
                self.stale |= match (self.member_of(&record), self.is_ours(&record)) {
                    (Some(member), _) => self.roster.member(now, member),
                    (None, true) => self.roster.holding(now, &record.name, record.holding()),
                    (None, false) => false,
                };
                self.sight(now, record);
            }
            Watch::Deleted(record) => {
                self.rivals.deleted(now, &record);
                self.odd.remove(&record.name);
                self.stale |= match (self.member_of(&record), self.is_ours(&record)) {
                    (Some(member), _) => self.roster.member_gone(now, &member.identity),
                    (None, true) => self.roster.holding(now, &record.name, None),
                    (None, false) => false,
                };
                if let Some(index) = self.by_lease(&record) {
                    self.shards[index].sight(now, None);
                }
            }
            Watch::Lock(index, record) => {
                let Some(shard) = self.shards.get_mut(index) else { return };
                shard.lock_seen = true;
                let holding = record.as_ref().and_then(Record::holding);
                self.stale |= self.roster.holding(now, &shard.spec.lease, holding);
                shard.sight(now, record.clone());
                if let Some(record) = record {
                    self.note_odd(&record);
                }
            }
            Watch::LockFailed(index) => {
                let Some(shard) = self.shards.get_mut(index) else { return };
                shard.lock_seen = false;
                shard.stale = true;
            }
            Watch::Failed(why) => {
                self.blind = Some(why);
                self.roster.blind();
                self.rivals.blind();
                self.stale = true;
                self.shards.iter_mut().for_each(|shard| shard.stale = true);
            }
        }
    }

    /// Another replica has become unable to run a kind: we may be as well, and would not know before we led it.
    pub(super) fn doubt_with_others(&mut self, record: &Record) {
        let Some(member) = self.member_of(record).filter(|member| member.identity != self.setup.identity) else {
            return;
        };
        let Some(before) = self.roster.profile(&member.identity) else { return };
        let newly_unable = |shard: &&Shard| {
            let lease = &shard.spec.lease;
            member.profile.unable.contains(lease) && before.can_run(lease)
        };
        let doubted: Vec<_> = self.shards.iter().filter(newly_unable).map(|shard| shard.spec.lease.clone()).collect();
        for lease in doubted {
            if let Some(index) = self.by_lease.get(&lease) {
                self.ask_about(*index);
            }
        }
    }

    pub(super) fn on_listed(&mut self, records: Vec<Record>, now: Moment) {
        self.blind = None;
        self.stale = true;
        self.rivals.listed(now, &records, true);
        let names: BTreeSet<_> = records.iter().map(|record| &record.name).collect();
        self.odd.retain(|lease, _| names.contains(lease) || self.by_lease.contains_key(lease));
        records.iter().for_each(|record| self.note_odd(record));
        let members = records.iter().filter_map(|record| self.member_of(record)).collect();
        let of_ours = records.iter().filter(|record| self.is_ours(record));
        // This list says nothing of locks that are no Leases.
        let other_locks = self.shards.iter().filter(|shard| shard.spec.lock != LockKind::Lease);
        let other_locks = other_locks.filter_map(|shard| shard.sighted.as_ref());
        let holdings = of_ours.chain(other_locks);
        let holdings = holdings.filter_map(|record| Some((record.name.clone(), record.holding()?))).collect();
        self.roster.listed(now, members, holdings);
        let mut shown = BTreeMap::new();
        for record in records {
            if let Some(index) = self.by_lease(&record) {
                shown.insert(index, record);
            }
        }
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if shard.spec.lock == LockKind::Lease {
                shard.sight(now, shown.remove(&index));
            } else {
                shard.stale = true;
            }
        }
        // A process that was in our Pod before us is dead, and the others need not find that out by its silence.
        let predecessors: Vec<_> = self.roster.predecessors().map(|it| (it.name.clone(), it.version.clone())).collect();
        for (lease, version) in predecessors {
            self.collect(lease, version, Garbage::Predecessor);
        }
    }

    pub(super) fn sight(&mut self, now: Moment, record: Record) {
        if let Some(index) = self.by_lease(&record) {
            self.shards[index].sight(now, Some(record));
        }
    }

    /// The shard whose lock this Lease is, all of it.
    fn by_lease(&self, record: &Record) -> Option<ShardIndex> {
        let index = *self.by_lease.get(&record.name)?;
        let is_lock = record.namespace == self.setup.namespace && self.shards[index].spec.lock == LockKind::Lease;
        is_lock.then_some(index)
    }

    /// A shard's Lease of this installation, or one by the name of a shard of ours: whatever is written on that one, it is
    /// the lock that we take.
    pub(super) fn is_ours(&self, record: &Record) -> bool {
        let of_instance = record.instance.as_ref() == Some(&self.setup.instance);
        record.role == Role::Shard
            && record.namespace == self.setup.namespace
            && match self.by_lease.get(&record.name) {
                Some(index) => self.shards[*index].spec.lock == LockKind::Lease,
                None => of_instance,
            }
    }

    pub(super) fn member_of(&self, record: &Record) -> Option<Member> {
        let of_instance = record.instance.as_ref() == Some(&self.setup.instance);
        record.member().filter(|_| of_instance && record.namespace == self.setup.namespace)
    }

    /// Says once what is out of bounds on a Lease of this installation, and once that it no longer is.
    pub(super) fn note_odd(&mut self, record: &Record) {
        let ours = record.instance.as_ref() == Some(&self.setup.instance) || self.by_lease.contains_key(&record.name);
        let known = self.odd.get(&record.name).map_or(&[][..], Vec::as_slice);
        if !ours || record.namespace != self.setup.namespace || known == record.odd {
            return;
        }
        self.note(Notice::Odd { lease: record.name.clone(), odd: record.odd.clone() });
        match record.odd.is_empty() {
            true => self.odd.remove(&record.name),
            false => self.odd.insert(record.name.clone(), record.odd.clone()),
        };
    }

    /// A replica that would lead a kind by a ConfigMap that has a Lease here: neither lock stops the other.
    /// It gives way itself to a term that works, for it looks at the Leases.
    pub(super) fn rival_by_config_map(&self, index: ShardIndex, now: Moment) -> Option<Rival> {
        let Shard { spec, task, .. } = &self.shards[index];
        if spec.lock != LockKind::Lease || task.is_some() {
            return None;
        }
        let (member, kind) = self.roster.by_config_map(now, &spec.kinds)?;
        Some(Rival {
            kind: kind.clone(),
            namespace: self.setup.namespace.clone(),
            name: spec.lease.clone(),
            holder: member.identity.clone(),
            config_map: true,
        })
    }

    /// Says who holds a shard's Lease that is none of us.
    pub(super) fn review_strangers(&mut self) {
        for index in 0..self.shards.len() {
            let shard = &self.shards[index];
            let stranger = shard.holder().filter(|holder| self.roster.is_stranger(holder));
            if stranger != shard.stranger.as_deref() {
                let stranger = stranger.map(str::to_owned);
                self.shards[index].stranger.clone_from(&stranger);
                self.note(Notice::Stranger(index, stranger));
            }
        }
    }

    pub(super) fn review_rivals(&mut self, now: Moment) {
        let none = self.rivals.is_empty() && !self.roster.knows_config_maps();
        if none && !std::mem::take(&mut self.rivalled) {
            return;
        }
        self.rivalled = !none;
        for index in 0..self.shards.len() {
            let shard = &self.shards[index];
            let term = shard.task.map(|_| shard.won_at);
            let rival = self.rivals.of(now, &shard.spec.kinds, term, &self.deaths);
            let rival = rival.or_else(|| self.rival_by_config_map(index, now));
            if rival != shard.rival {
                self.shards[index].rival.clone_from(&rival);
                self.note(Notice::Rival(index, rival));
                self.judge(index, now);
            }
        }
    }
}
