//! One shard on this replica: its election, its slot, and what stands between them.

use std::{ops::Range, time::Duration};

use super::{
    election::{Election, Intent, Standing},
    event::{Freed, Hearing, KindIndex, RequestId, Rival, TermNumber, Verdict},
    lease::{Purpose, Record},
    moment::Moment,
    roster::{Advice, ShardSpec},
    slot::{Handover, Slot, State},
};
use crate::config::LockKind;

/// A request about the shard's Lease that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct InFlight {
    pub(super) id: RequestId,
    /// `None`: it reads.
    pub(super) purpose: Option<Purpose>,
    pub(super) sent_at: Moment,
    /// Who was on the Lease, how it came to be free, and since when no replica worked, as it was seen then.
    pub(super) from: Option<String>,
    pub(super) freed: Freed,
    pub(super) idle_since: Option<Moment>,
}

/// A term that was won, and waits until the watch has shown all that was written before it (see
/// [`rivals`](super::rivals)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Unconfirmed {
    pub(super) term: TermNumber,
    /// Resource version of the write that won it.
    pub(super) version: Option<u64>,
    /// When the Leases are listed instead.
    pub(super) list_at: Moment,
    pub(super) listing: Option<RequestId>,
}

/// A standby's task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Standby {
    pub(super) term: TermNumber,
    pub(super) prepared: bool,
}

/// One kind of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub(super) kind: String,
    pub(super) verdict: Verdict,
    /// The preflight has said something of it.
    pub(super) asked: bool,
    /// The watch of its standby is up: a cache that hears nothing grows old.
    pub(super) standby_hears: bool,
    /// What is shown of what its term hears: between two watches there is a moment without one.
    pub(super) hearing: Hearing,
    /// Since when its term hears nothing, and why.
    pub(super) deaf: Option<(Moment, String)>,
}

impl Member {
    fn new(kind: String) -> Self {
        Self {
            kind,
            verdict: Verdict::Unknown(NOT_ASKED.to_owned()),
            asked: false,
            standby_hears: true,
            hearing: Hearing::Hears,
            deaf: None,
        }
    }

    /// `<Kind>.<group>`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What the API server says of it.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// What its running term hears of it.
    pub fn hearing(&self) -> &Hearing {
        &self.hearing
    }
}

/// One shard as this replica has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    pub(super) spec: ShardSpec,
    /// Index of its first kind; those of the others follow.
    pub(super) first_kind: KindIndex,
    pub(super) members: Vec<Member>,
    pub(super) election: Election,
    pub(super) slot: Slot,
    /// The watch of its lock is up; of no account where that is a Lease, for which there is one watch for all.
    pub(super) lock_seen: bool,
    /// The Lease as the watch, and as our own requests, last showed it: what a write may rest on.
    pub(super) sighted: Option<Record>,
    pub(super) answered: Option<Record>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) unconfirmed: Option<Unconfirmed>,
    /// Resource version of the write by which the last confirmed term was won.
    pub(super) won_at: Option<u64>,
    /// The last term whose fence was opened, and until when it was last extended.
    pub(super) fence: Option<(TermNumber, Moment)>,
    /// The last term whose fence was shut.
    pub(super) shut: TermNumber,
    /// The term whose task runs.
    pub(super) task: Option<TermNumber>,
    pub(super) standby: Option<Standby>,
    pub(super) keeps_cache: bool,
    pub(super) advice: Advice,
    /// What the slot was told of it.
    pub(super) handover: Handover,
    pub(super) rival: Option<Rival>,
    /// Who holds the Lease and is none of us.
    pub(super) stranger: Option<String>,
    /// A kind of the running term has failed, and how: the term ends.
    pub(super) broken: Option<String>,
    /// Terms in a row that ended deaf, and until when the next one had better be elsewhere.
    pub(super) deaf_terms: u32,
    pub(super) deaf_until: Moment,
    /// The last term here that was told from a hearing one, of whatever kind, was deaf: the next is believed sooner.
    pub(super) doubtful: bool,
    pub(super) trouble: Option<String>,
    /// How the last term or standby failed.
    pub(super) failure: Option<String>,
    /// Something has changed that the election or the slot must be asked about.
    pub(super) stale: bool,
    /// When they are to be asked again by themselves.
    pub(super) wake_at: Moment,
}

impl Shard {
    pub(super) fn new(spec: ShardSpec, first_kind: KindIndex, election: Election, slot: Slot) -> Self {
        Self {
            members: spec.kinds.iter().cloned().map(Member::new).collect(),
            first_kind,
            spec,
            election,
            slot,
            lock_seen: false,
            sighted: None,
            answered: None,
            in_flight: None,
            unconfirmed: None,
            won_at: None,
            fence: None,
            shut: 0,
            task: None,
            standby: None,
            keeps_cache: true,
            advice: Advice::default(),
            handover: Handover::Stay,
            rival: None,
            stranger: None,
            broken: None,
            deaf_terms: 0,
            deaf_until: Moment::default(),
            doubtful: false,
            trouble: None,
            failure: None,
            stale: true,
            wake_at: Moment::default(),
        }
    }

    /// Its lock is a Lease, alone or beside a ConfigMap.
    pub fn is_lease(&self) -> bool {
        self.spec.lock != LockKind::ConfigMap
    }

    /// `metadata.uid` of its Lease, if that alone is its lock.
    pub fn uid(&self) -> Option<&str> {
        let record = self.sighted.as_ref().or(self.answered.as_ref())?;
        Some(record.version.uid.as_str()).filter(|_| self.spec.lock == LockKind::Lease)
    }

    /// Expected load, of all its kinds.
    pub fn weight(&self) -> u32 {
        self.spec.weight
    }

    /// Since when its term works here.
    pub fn leading_since(&self) -> Option<Moment> {
        self.slot.running_since()
    }

    /// Since when no replica can have led it, as far as is seen here; `None` while one may.
    pub fn unled_since(&self, now: Moment) -> Option<Moment> {
        self.election.idle_since(now).filter(|_| self.task.is_none())
    }

    /// Name of its Lease.
    pub fn lease(&self) -> &str {
        &self.spec.lease
    }

    /// Its kinds, at least one.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The indexes of its kinds.
    pub fn kinds(&self) -> Range<KindIndex> {
        self.first_kind..self.first_kind + self.members.len()
    }

    /// The kind of this index, if it is one of its own.
    pub(super) fn member(&mut self, kind: KindIndex) -> Option<&mut Member> {
        self.members.get_mut(kind.checked_sub(self.first_kind)?)
    }

    /// Each of its kinds can be reconciled here. They share state in memory: without the objects of one of them that has
    /// holes, and the others would write by it.
    pub(super) fn is_served(&self) -> bool {
        self.members.iter().all(|member| member.verdict == Verdict::Runnable)
    }

    /// The preflight has said something of each of its kinds.
    pub(super) fn is_asked(&self) -> bool {
        self.members.iter().all(|member| member.asked)
    }

    /// The watch of each standby is up.
    pub(super) fn standby_hears(&self) -> bool {
        self.members.iter().all(|member| member.standby_hears)
    }

    /// Since when its term hears nothing of one of its kinds.
    fn deaf_since(&self) -> impl Iterator<Item = Moment> {
        self.members.iter().filter_map(|member| member.deaf.as_ref()).map(|(since, _)| *since)
    }

    /// Where this replica stands in its election. The work of a term begins a moment later than its standing.
    pub fn standing(&self, now: Moment) -> Standing {
        self.election.standing(now)
    }

    /// What its work is doing.
    pub fn state(&self) -> State {
        self.slot.state()
    }

    /// The term whose task runs.
    pub fn term(&self) -> Option<TermNumber> {
        self.task
    }

    /// Holder last seen on its Lease.
    pub fn holder(&self) -> Option<&str> {
        self.election.holder()
    }

    /// This replica could run it now.
    pub fn can_run(&self, now: Moment) -> bool {
        self.slot.can_run(now)
    }

    /// Until when it cools down here after a failure, if it does.
    pub fn cooling_until(&self, now: Moment) -> Option<Moment> {
        self.slot.cooling_until(now)
    }

    /// Until when it is not taken here because an acquisition was refused.
    pub fn barred_until(&self, now: Moment) -> Option<Moment> {
        self.slot.barred_until(now)
    }

    /// It had better be elsewhere: its term has heard nothing for long, or the last one had not. Where no other replica can
    /// run it, it is run here all the same.
    pub fn is_deaf(&self, now: Moment) -> bool {
        now < self.deaf_until || self.term_is_deaf(now)
    }

    /// Its term has heard nothing of one of its kinds for long.
    pub(super) fn term_is_deaf(&self, now: Moment) -> bool {
        self.deaf_since().any(|since| now >= since + self.deaf_after())
    }

    fn deaf_after(&self) -> Duration {
        if self.doubtful { DEAF_AGAIN } else { DEAF }
    }

    /// Its term has run for long, and hears of all of its kinds.
    pub(super) fn is_heard(&self, now: Moment) -> bool {
        self.deaf_since().next().is_none() && self.slot.running_since().is_some_and(|since| now >= since + DEAF)
    }

    /// When that changes by itself.
    pub(super) fn deaf_change(&self, now: Moment) -> Moment {
        let begins = self.deaf_since().flat_map(|since| [since + DEAF_SHOWN, since + self.deaf_after()]);
        let heard = self.slot.running_since().filter(|_| self.doubtful).map(|since| since + DEAF);
        let begins = begins.chain(heard);
        begins.chain([self.deaf_until]).filter(|at| *at > now).min().unwrap_or(Moment::NEVER)
    }

    /// Until when its last failure here is remembered.
    pub fn failing_until(&self, now: Moment) -> Option<Moment> {
        self.slot.failing_until(now)
    }

    /// Until when another replica is preferred for it: its last term here failed, or heard nothing.
    pub fn avoided_until(&self, now: Moment) -> Option<Moment> {
        let deaf = Some(self.deaf_until).filter(|until| *until > now);
        self.failing_until(now).max(deaf)
    }

    /// What is to be done about it.
    pub fn advice(&self) -> &Advice {
        &self.advice
    }

    /// Another held Lease of one of its kinds.
    pub fn rival(&self) -> Option<&Rival> {
        self.rival.as_ref()
    }

    /// Who holds its Lease and is no replica of ours.
    pub fn stranger(&self) -> Option<&str> {
        self.stranger.as_deref()
    }

    /// The last request about its Lease failed, and how.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How the last term or standby failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A cache is kept without leading; whether it is filled.
    pub fn cache(&self) -> Option<bool> {
        self.standby.as_ref().map(|standby| standby.prepared)
    }

    /// The handover that is going on.
    pub fn handover(&self) -> &Handover {
        &self.handover
    }

    /// What on its Lease is out of bounds.
    pub fn odd(&self) -> &[String] {
        self.sighted.as_ref().or(self.answered.as_ref()).map_or(&[], |record| &record.odd)
    }

    /// The work of this term has been confirmed to be the only one of its kind.
    pub(super) fn is_confirmed(&self, term: TermNumber) -> bool {
        self.unconfirmed.as_ref().is_none_or(|unconfirmed| unconfirmed.term != term)
    }

    /// The Lease as it was last seen at this version.
    pub(super) fn at_version(&self, version: &super::lease::Version) -> Option<&Record> {
        [&self.sighted, &self.answered].into_iter().flatten().find(|record| record.version == *version)
    }

    /// Takes in what the watch shows. A Lease without our label, as another elector may have made it, is never shown: that
    /// proves nothing.
    pub(super) fn sight(&mut self, now: Moment, record: Option<Record>) {
        self.stale = true;
        if record.is_none() && self.sighted.is_none() && self.election.exists() {
            return;
        }
        let observation = record.as_ref().map(Record::observation);
        self.sighted = record;
        self.election.sighted(now, observation);
    }

    /// No term is here any more, and no write of one may still be carried out.
    pub(super) fn has_ended(&self, now: Moment) -> bool {
        let intent = self.slot.intent(now);
        let abandoned = intent.abandoned > 0 && intent.abandoned >= intent.ended;
        self.slot.state() == State::Idle && self.election.settled() && !abandoned
    }

    /// No work is here, and the election waits for the end of none: it may take the Lease when that is free.
    pub fn is_open(&self, now: Moment) -> bool {
        let idle = self.slot.state() == State::Idle && self.election.standing(now) == Standing::Standby;
        !idle || self.slot.intent(now).ended + 1 >= self.election.next_term()
    }

    /// What the election may do.
    pub(super) fn intent(&self, now: Moment, courtesy: Duration) -> Intent {
        Intent { patience: self.advice.patience, courtesy, ..self.slot.intent(now) }
    }
}

/// A term that has been deaf for so long is shown as that.
pub(super) const DEAF_SHOWN: Duration = Duration::from_secs(1);

/// A term that has been deaf for so long is given to a replica that hears.
pub(super) const DEAF: Duration = Duration::from_secs(10);

/// The same where the last term was deaf: a trial may cost the kind a hundredth of ten minutes, the move included.
const DEAF_AGAIN: Duration = Duration::from_secs(2);

/// The verdict before the first one.
pub const NOT_ASKED: &str = "the API server was not asked yet whether every kind can be reconciled";
