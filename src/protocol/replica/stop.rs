//! How a replica stops.

use super::{Replica, STOP};
use crate::config::LockKind;
use crate::protocol::{
    event::{Effect, Ending, Notice},
    moment::Moment,
    slot::{self, State},
};

impl Replica {
    pub(super) fn on_signal(&mut self, now: Moment) {
        let release = self.setup.timings.request_timeout * 2 + STOP;
        let drain = self.setup.drain_timeout;
        let event = if self.give_up.is_none() {
            self.note(Notice::Stopping);
            self.give_up = Some(now + slot::PREPARE.min(drain) + drain + release);
            slot::Event::Stop
        } else {
            self.note(Notice::Aborting);
            self.cut_off = self.leases(|shard| shard.slot.state() != State::Idle);
            self.give_up = Some(now + release);
            slot::Event::Abort
        };
        for index in 0..self.shards.len() {
            // Who follows is told next, or that no replica does.
            self.tell(index, event.clone(), now);
        }
        self.stale = true;
    }

    /// Ends, once a stop was asked for and is done, or has taken as long as it may.
    pub(super) fn end(&mut self, now: Moment) {
        let Some(give_up) = self.give_up else { return };
        let undrained = self.leases(|shard| shard.slot.state() != State::Idle);
        let unreleased = self.leases(|shard| !shard.election.settled());
        let ending = if undrained.is_empty() && unreleased.is_empty() {
            let by_config_map = self.shards.iter().any(|shard| shard.spec.lock == LockKind::ConfigMap);
            if by_config_map && !self.membership.says(self.roster.me()) && now < give_up {
                return;
            }
            // Nothing is left to be done here: the others need not wait for our silence.
            self.membership.leave(now);
            self.publish(now);
            if !self.membership.has_left() && now < give_up {
                return;
            }
            let left = self.leases(|shard| {
                let intent = shard.slot.intent(now);
                intent.abandoned > 0 && intent.abandoned >= intent.ended
            });
            match (left.is_empty(), self.cut_off.is_empty()) {
                (true, true) => Ending::Clean,
                (true, false) => Ending::Undrained(self.cut_off.clone()),
                (false, _) => Ending::Unreleased(left),
            }
        } else if now < give_up {
            return;
        } else if undrained.is_empty() {
            Ending::Unreleased(unreleased)
        } else {
            Ending::Undrained(undrained)
        };
        self.ended = true;
        self.effects.push(Effect::Exit(ending));
    }
}
