//! What has become of each shard's Lease, and why, as the watch shows it: told to people, and what it says of a holder that lost
//! one without a release.

use super::{Known, Roster, presence::pod_of};
use crate::{
    config::LockKind,
    protocol::{
        election::RELEASED,
        history::{Reason, Release, Takeover},
        lease::Holding,
        membership::Activity,
        moment::Moment,
    },
};

/// The acquirer counts the silence of a holder from a moment of its own, which may be a little earlier than ours.
const NEARLY: f64 = 0.9;

impl Roster {
    /// The takeovers of the shards that this replica is configured for which were seen since this was last asked, by Lease.
    pub fn take_takeovers(&mut self) -> Vec<(String, Takeover)> {
        std::mem::take(&mut self.taken_over)
    }

    /// The Lease is gone.
    pub(super) fn see_end(&mut self, now: Moment, lease: &str) {
        let known = self.holdings.get(lease).filter(|_| self.specs.contains_key(lease));
        if let Some(from) = known.and_then(|known| known.what.holder.clone()) {
            self.history.ended(now, lease, Some(from), Reason::Created);
        }
    }

    /// The Lease is stored so now; what it was before is known still.
    pub(super) fn see_takeover(&mut self, now: Moment, lease: &str, next: &Holding) {
        let Some(spec) = self.specs.get(lease) else { return };
        let Some(Known { what: before, since }) = self.holdings.get(lease) else {
            // What was there before we looked has a past that we do not know.
            let is_new = self.history.has_ended(lease) || (self.current && spec.lock == LockKind::Lease);
            if let Some(to) = next.holder.as_deref().filter(|_| is_new) {
                let takeover = self.history.begun(now, lease, to, next.token());
                self.taken_over.push((lease.to_owned(), takeover));
            }
            return;
        };
        let is_same_object = before.version.grows_into(&next.version);
        if is_same_object && before.holder == next.holder && before.transitions == next.transitions {
            return;
        }
        let takeover = match (before.holder.as_deref(), next.holder.as_deref()) {
            (None, None) => return,
            (Some(from), None) => {
                let is_release = next.duration == Some(RELEASED);
                let reason =
                    if is_release { Reason::Released(self.release_of(from, lease, next)) } else { Reason::Cleared };
                return self.history.ended(now, lease, Some(from.to_owned()), reason);
            }
            (None, Some(to)) => {
                if !self.history.has_ended(lease) {
                    self.history.ended(*since, lease, None, Reason::Released(Release::Untold));
                }
                self.history.begun(now, lease, to, next.token())
            }
            (Some(from), Some(to)) => {
                let reason = self.reason(now, lease, from, to, next, is_same_object);
                let fell_silent = matches!(reason, Reason::Expired | Reason::ProvenDead | Reason::Restarted);
                if fell_silent && self.members.contains_key(from) {
                    // The taker has had a proof that we lack, or we are about to see the expiry: one that is alive renews.
                    self.overdue.insert(from.to_owned());
                }
                Takeover {
                    at: now,
                    from: Some(from.to_owned()),
                    to: to.to_owned(),
                    token: next.token(),
                    reason,
                    without_leader: fell_silent.then(|| now.since(*since)),
                }
            }
        };
        self.taken_over.push((lease.to_owned(), takeover));
    }

    /// Why one holder follows another without a release between them.
    fn reason(&self, now: Moment, lease: &str, from: &str, to: &str, next: &Holding, is_same_object: bool) -> Reason {
        let Some(Known { what: before, since }) = self.holdings.get(lease) else { return Reason::Unseen };
        let is_same_pod = (before.holder_pod.is_some() && before.holder_pod == next.holder_pod)
            || (pod_of(from).is_some() && pod_of(from) == pod_of(to));
        let silence = now.since(*since);
        if !is_same_object {
            Reason::Created
        } else if next.transitions > before.transitions.saturating_add(1) {
            Reason::Unseen
        } else if from != to && is_same_pod {
            Reason::Restarted
        } else if self.is_dead(from, before.holder_pod.as_deref()) {
            Reason::ProvenDead
        } else if silence >= before.duration.unwrap_or(self.rules.lease_duration).mul_f64(NEARLY) {
            Reason::Expired
        } else if to == self.identity || self.members.contains_key(to) {
            // A replica takes a Lease that is held on proof only; it has that before we do.
            Reason::ProvenDead
        } else {
            Reason::Overwritten
        }
    }

    /// Why a holder released a Lease, by what it has said of itself before.
    fn release_of(&self, from: &str, lease: &str, released: &Holding) -> Release {
        let is_wanted = |successor: &str| {
            released.wanted.as_deref().is_some_and(|wanted| wanted == successor || pod_of(successor) == Some(wanted))
        };
        let known = || [&self.members, &self.departed].into_iter().find_map(|all| all.get(from));
        let profile = if from == self.identity { Some(&self.me) } else { known().map(|known| &known.what.profile) };
        match (profile, released.successor.as_deref()) {
            (_, Some(successor)) if is_wanted(successor) => Release::Asked,
            (Some(profile), _) if profile.activity == Activity::Draining => Release::Stopping,
            (Some(profile), _) if profile.failing.contains(lease) => Release::Failed,
            (Some(profile), _) if profile.unable.contains(lease) => Release::Unable,
            (Some(_), Some(_)) => Release::Balance,
            _ => Release::Untold,
        }
    }
}
