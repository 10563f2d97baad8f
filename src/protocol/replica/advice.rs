//! What this replica says of itself, and what the others' words mean for each shard.

use std::collections::BTreeMap;

use super::Replica;
use crate::config::LockKind;
use crate::protocol::{
    event::{Notice, ShardIndex},
    membership::{Activity, LeaseSet, Profile},
    moment::Moment,
    roster::Advice,
    slot::{self, Handover, State},
};

impl Replica {
    /// Brings what the others know of us up to what is true.
    pub(super) fn describe_ourselves(&mut self, now: Moment) {
        let stopping = self.is_stopping();
        let activity = if stopping { Activity::Draining } else { Activity::Active };
        let blind = self.blind.is_some() && self.membership.is_published();
        if self.shards.iter().any(|shard| shard.doubtful && shard.is_heard(now)) {
            self.shards.iter_mut().for_each(|shard| shard.doubtful = false);
        }
        // One that was deaf to a kind, and hears no other one, would be deaf to the next as well.
        let deaf = self.shards.iter().any(|shard| shard.doubtful && now < shard.deaf_until);
        let (mut unable, mut failing) = (LeaseSet::default(), LeaseSet::default());
        let mut config_maps = LeaseSet::default();
        let mut prepared = BTreeMap::new();
        for shard in &self.shards {
            let lease = &shard.spec.lease;
            // A process that is restarted is to get its kinds back before any other, and could run them before.
            let hopeful = !shard.is_asked() && self.roster.comes_back(lease);
            // While we stop we say so by our activity; a term that runs is no sign of being unable.
            if !stopping
                && !hopeful
                && (!shard.slot.can_run(now) || shard.is_deaf(now) || (deaf && shard.task.is_none()))
            {
                unable.insert(lease);
            }
            // The last word of one that stops is that others need not wait for it.
            if shard.spec.lock == LockKind::ConfigMap && !(stopping && shard.has_ended(now)) {
                shard.spec.kinds.iter().for_each(|kind| config_maps.insert(kind));
            }
            if shard.failing_until(now).is_some() {
                failing.insert(lease);
            }
            let filled = shard.standby.as_ref().is_some_and(|standby| standby.prepared) && shard.standby_hears();
            // A reconciler that cannot stand by has nothing to fill.
            let ready = filled || (shard.slot.can_stand_by(now) && !shard.keeps_cache);
            if let (Some(token), true) = (&shard.advice.named, ready) {
                prepared.insert(lease.clone(), token.clone());
            }
        }
        let avoids = self.roster.told_misses(now);
        let me = self.roster.me();
        if (me.activity, me.blind, &me.config_maps, &me.unable, &me.failing, &me.prepared, &me.avoids)
            != (activity, blind, &config_maps, &unable, &failing, &prepared, &avoids)
        {
            let me = Profile { activity, blind, config_maps, unable, failing, prepared, avoids, ..me.clone() };
            self.introduce(me, now);
        }
    }

    pub(super) fn introduce(&mut self, me: Profile, now: Moment) {
        if me != *self.roster.me() {
            self.membership.describe(now, &me);
            self.roster.introduce(me);
            self.stale = true;
        }
    }

    /// Has every slot hear where its shard shall be.
    pub(super) fn advise(&mut self, now: Moment) {
        if !std::mem::replace(&mut self.stale, false) && now < self.advise_at {
            return;
        }
        let mut plan = self.roster.advise(now);
        let next = [plan.next, self.rivals.next_change(now)].into_iter().flatten().min();
        self.advise_at = next.unwrap_or(Moment::NEVER);
        self.peers = plan.peers;
        for index in 0..self.shards.len() {
            let advice = plan.shards.remove(&self.shards[index].spec.lease).unwrap_or_default();
            self.heed(index, advice, now);
        }
    }

    pub(super) fn heed(&mut self, index: ShardIndex, advice: Advice, now: Moment) {
        // The work that others make last until the successor is prepared is not done by a term that hears nothing.
        let is_deaf = self.shards[index].term_is_deaf(now);
        let handover = match &advice.hand_over {
            Some(hand_over) => Handover::To {
                successor: hand_over.to.clone(),
                prepared: hand_over.prepared || is_deaf,
                must: hand_over.must || self.is_stopping(),
            },
            // A Lease that the watch does not show as ours yet will be, and then we know who follows.
            None if self.is_stopping() && (advice.held || self.blind.is_some()) => Handover::ToNone,
            None => Handover::Stay,
        };
        let shard = &mut self.shards[index];
        if (&shard.advice, &shard.handover) == (&advice, &handover) {
            return;
        }
        let named = |handover: &Handover| match handover {
            Handover::To { successor, .. } => Some(successor.clone()),
            Handover::Stay | Handover::ToNone => None,
        };
        let news = named(&handover).filter(|_| shard.slot.state() == State::Running);
        let news = news.filter(|_| named(&handover) != named(&shard.handover));
        shard.advice = advice;
        shard.handover = handover.clone();
        if let Some(successor) = news {
            self.note(Notice::SuccessorNamed(index, successor));
        }
        self.tell(index, slot::Event::Handover(handover), now);
    }
}
