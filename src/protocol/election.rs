//! One Lease's election as a state machine: it is told what was seen and what came of a request, and says what to do next.
//!
//! No IO, no clock: every call takes `now`. [`Replica`](super::replica::Replica) sends what its steps say, and tells the
//! [`Slot`](super::slot::Slot) its [`Standing`].
//! The record format and the meaning of its fields are client-go's (`tools/leaderelection`), so that a client-go elector
//! may share a Lease with ours. Where the two differ, ours is the stricter: DESIGN's safety rules 1 to 6.

use std::time::Duration;

use super::{
    event::{Freed, Loss},
    lease::{FencingToken, Observation, Purpose, Version},
    moment::Moment,
};
use crate::config::Timings;

/// One write, decided on `basis` and valid for that version only (rule 3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// Why it is written.
    pub purpose: Purpose,
    /// The version it was decided on; `None` for a creation.
    pub basis: Option<Version>,
    /// `leaseTransitions` to write.
    pub transitions: i32,
    /// Who shall follow us; `None` takes back what was written.
    pub successor: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Nothing before this moment, unless something is observed or the intent changes.
    Wait(Moment),
    /// GET the Lease, report with [`Election::read`] or [`Election::read_failed`].
    Read,
    /// Write this, report with [`Election::written`], [`Election::deleted`], [`Election::conflicted`],
    /// [`Election::refused`] or [`Election::unknown`].
    Write(Proposal),
}

/// The right to work, from one won write until `valid_until`; renewals move that on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Counts this election's grants from 1: the name of the term within the process.
    pub term: u64,
    /// The token of the term.
    pub token: FencingToken,
    /// When the last successful write was sent.
    pub sent_at: Moment,
    /// From then on nothing may be written (rule 1).
    pub valid_until: Moment,
}

/// Where this replica stands at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// No right to work.
    Standby,
    /// Work.
    Leading(Grant),
    /// No renewal succeeded by the renew deadline: finish before `valid_until`.
    Losing(Grant),
}

/// What is wanted of an election. Levels, not edges: a lost or repeated message changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Intent {
    /// Become leader when possible.
    pub compete: bool,
    /// The last term whose task has ended. Only then is its Lease released (rule 6), or another term begun.
    pub ended: u64,
    /// The last term whose Lease is left to expire, because its work, or a write of it, can no longer be stopped.
    pub abandoned: u64,
    /// Whom to name on the Lease while we hold it, and on its release.
    pub successor: Option<String>,
    /// How long to let others go first for a free Lease.
    pub patience: Duration,
    /// How long to let another go first whom the last holder named. The one that is named goes at once.
    pub courtesy: Duration,
}

/// One Lease's election on one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    identity: String,
    timings: Timings,
    intent: Intent,
    store: Store,
    /// The watch covers this Lease: no reads are needed to learn of changes.
    watched: bool,
    grant: Option<Grant>,
    /// The last grant there was: its number and token.
    last: Option<(u64, FencingToken)>,
    /// When the validity of the last grant was over, or would have been.
    last_until: Moment,
    in_flight: Option<InFlight>,
    /// A read must come before anything else (rule 4).
    doubt: bool,
    /// Successes put off the next renewal until then.
    renew_at: Moment,
    /// Without a watch, the next look at another holder's Lease.
    poll_at: Moment,
    /// Failures put off every request until then.
    not_before: Moment,
    failures: u32,
    /// A holder whose claim was not ended in order may count itself leader until then.
    barrier: Moment,
    /// For how long the holder that is seen counts a renewal itself. A holder writes the same duration throughout its term,
    /// so another one is believed when two versions in a row say it: a single one is a hand's.
    held_for: Duration,
    /// A holder whose process is proven dead, and since when that is known (rule 11).
    dead: Option<(String, Moment)>,
    /// The greatest count of transitions seen on the Lease with this uid: a record that is restored to an older one must
    /// not bring a token back.
    highest: Option<(String, i32)>,
    /// Why the last grant has ended, until that is asked for.
    loss: Option<Loss>,
    /// The last term whose renew deadline has passed.
    late: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Store {
    Nothing,
    Absent { since: Moment },
    Present { what: Observation, since: Moment },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum InFlight {
    /// A read, and what was known when it was sent.
    Read(Store),
    Write(Moment, Proposal),
}

enum Wanted {
    Nothing,
    At(Moment),
    Read,
    Write(Proposal),
}

/// Clock rates of two machines may differ by this part of the lease duration: 1/50 is 2 %, forty times what NTP slews at.
const MARGIN_DIVISOR: u32 = 50;

/// For how long a write counts for us, from before it was sent (rule 1).
pub(super) fn validity(timings: &Timings) -> Duration {
    timings.lease_duration - timings.lease_duration / MARGIN_DIVISOR
}

/// The duration that a release writes, as client-go does: the API server refuses 0.
pub const RELEASED: Duration = Duration::from_secs(1);

impl Election {
    /// An election that has seen nothing and wants nothing.
    /// `identity` is new for each process (rule 9) and not empty; `timings` are validated (rule 8).
    pub fn new(identity: String, timings: Timings) -> Self {
        Self {
            identity,
            timings,
            intent: Intent::default(),
            store: Store::Nothing,
            watched: false,
            grant: None,
            last: None,
            last_until: Moment::default(),
            in_flight: None,
            doubt: false,
            renew_at: Moment::default(),
            poll_at: Moment::default(),
            not_before: Moment::default(),
            failures: 0,
            barrier: Moment::default(),
            held_for: timings.lease_duration,
            dead: None,
            highest: None,
            loss: None,
            late: None,
        }
    }

    /// Where this replica stands.
    pub fn standing(&self, now: Moment) -> Standing {
        match &self.grant {
            Some(grant) if now < self.renew_deadline(grant) => Standing::Leading(grant.clone()),
            Some(grant) if now < grant.valid_until => Standing::Losing(grant.clone()),
            _ => Standing::Standby,
        }
    }

    /// When [`standing`](Self::standing) changes by itself.
    pub fn next_change(&self, now: Moment) -> Moment {
        match self.standing(now) {
            Standing::Leading(grant) => self.renew_deadline(&grant),
            Standing::Losing(grant) => grant.valid_until,
            Standing::Standby => Moment::NEVER,
        }
    }

    /// Holder last seen; `None` when the Lease is free, missing or was never read.
    pub fn holder(&self) -> Option<&str> {
        match &self.store {
            Store::Present { what, .. } => what.holder.as_deref(),
            _ => None,
        }
    }

    /// The Lease exists, as far as is known.
    pub fn exists(&self) -> bool {
        matches!(self.store, Store::Present { .. })
    }

    /// Since when no replica can have worked, as far as is seen here: since the release, or the last renewal of a holder
    /// that fell silent; `None` while that is not known, or a holder may work.
    pub fn idle_since(&self, now: Moment) -> Option<Moment> {
        match &self.store {
            Store::Nothing => None,
            Store::Absent { since } => Some(*since),
            Store::Present { what, since } => (self.free_at(what, *since) <= now).then_some(*since),
        }
    }

    /// The number of the next term. A cache that is filled before it begins is of use to that term only.
    pub fn next_term(&self) -> u64 {
        self.last.as_ref().map_or(1, |(term, _)| term + 1)
    }

    /// Why the last grant has ended before it was released; told once.
    pub fn take_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    /// How the Lease, as it is seen now, comes to be free for us.
    pub fn freed(&self) -> Freed {
        match &self.store {
            Store::Nothing | Store::Absent { .. } => Freed::Missing,
            Store::Present { what, .. } => match &what.holder {
                None => Freed::Released,
                Some(holder) if *holder == self.identity => Freed::Ours,
                Some(holder) if self.dead.as_ref().is_some_and(|(dead, _)| dead == holder) => Freed::ProvenDead,
                Some(_) => Freed::Expired,
            },
        }
    }

    /// Nothing of ours is on the Lease, or on its way there: the process may end without anybody waiting for us.
    pub fn settled(&self) -> bool {
        self.in_flight.is_none() && !self.doubt && (!self.holds_on_paper() || self.last_is_abandoned())
    }

    /// Sets what the supervisor wants.
    pub fn intend(&mut self, intent: Intent) {
        self.intent = intent;
    }

    /// The process of this holder is proven dead: its Lease need not expire first (rule 11). Telling it again changes nothing.
    pub fn mark_dead(&mut self, now: Moment, holder: &str) {
        if self.dead.as_ref().is_none_or(|(dead, _)| dead != holder) {
            self.dead = Some((holder.to_owned(), now));
        }
    }

    /// Says whether the watch covers this Lease.
    pub fn set_watched(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// The Lease as the watch has it; `None`: it lists none of this name.
    pub fn sighted(&mut self, now: Moment, sighting: Option<Observation>) {
        match (sighting, &self.store) {
            (None, Store::Nothing) => self.store = Store::Absent { since: now },
            (None, Store::Absent { .. }) => {}
            // A list made before our own write lacks what we wrote: only a read proves that what was there is gone.
            (None, Store::Present { .. }) => self.doubt = true,
            (Some(what), Store::Present { what: known, .. }) if what.version == known.version => {}
            (Some(what), Store::Present { what: known, .. }) if !what.version.newer_than(&known.version) => {
                // An echo of the past; or neither is known to be the newer one, and then a read decides.
                self.doubt |= !known.version.newer_than(&what.version);
            }
            (Some(what), _) => self.take_in(now, Some(what)),
        }
    }

    /// The answer to a read; `None`: the Lease does not exist.
    pub fn read(&mut self, now: Moment, answer: Option<Observation>) {
        let Some(InFlight::Read(before)) = self.in_flight.take() else { return };
        self.doubt = false;
        self.poll_at = now + self.timings.retry_period;
        if self.store != before {
            // The watch has moved on while the answer was on its way: the newer of the two counts.
            match (&answer, &self.store) {
                (Some(what), Store::Present { what: known, .. }) if !what.version.newer_than(&known.version) => return,
                (None, _) => {
                    self.doubt = true;
                    return;
                }
                _ => {}
            }
        }
        self.take_in(now, answer);
        if !self.holds_on_paper() {
            self.failures = 0;
        }
    }

    /// The read did not come about: nothing is known that was not known before.
    pub fn read_failed(&mut self, now: Moment) {
        self.in_flight = None;
        self.failures = self.failures.max(1);
        self.failed(now);
    }

    /// The write succeeded; `stored` is the object the API server answered with.
    pub fn written(&mut self, now: Moment, stored: Observation) {
        let Some(InFlight::Write(sent_at, proposal)) = self.in_flight.take() else { return };
        self.failures = 0;
        self.expire(now);
        let token = FencingToken { uid: stored.version.uid.clone(), transitions: stored.transitions };
        let overtaken = match &self.store {
            Store::Present { what, .. } => what.version.newer_than(&stored.version),
            _ => false,
        };
        // A grant that ran out while the reply was on its way is gone: its term was told so.
        let running = self.grant.take().filter(|grant| grant.token == token);
        if !overtaken {
            // Only a creation can follow on something else than what was seen last: it rests on no version.
            self.mind_disorder(now, running.is_some(), Some(&stored));
            self.note_held_for(Some(&stored));
            self.note_transitions(Some(&stored));
            self.store = Store::Present { what: stored, since: now };
        }
        let valid_until = sent_at + validity(&self.timings);
        let ours = self.holds_on_paper() && proposal.purpose != Purpose::Release;
        let too_soon = running.is_none() && now < self.barrier;
        let had_its_term = running.is_none() && self.last.as_ref().is_some_and(|(_, last)| *last == token);
        if !ours || too_soon || had_its_term || now >= valid_until {
            if proposal.purpose != Purpose::Release {
                // A write that grants nothing is not repeated at once: nothing says that the next one would.
                self.not_before = now + self.timings.retry_period;
            }
            return;
        }
        let term = running.map_or_else(|| self.next_term(), |grant| grant.term);
        self.renew_at = sent_at + self.timings.retry_period;
        self.last = Some((term, token.clone()));
        self.last_until = valid_until;
        self.grant = Some(Grant { term, token, sent_at, valid_until });
    }

    /// The Lease was deleted, at the version that was asked for.
    pub fn deleted(&mut self, now: Moment) {
        self.in_flight = None;
        self.failures = 0;
        self.take_in(now, None);
    }

    /// The API server refused the write because the object had changed, or existed already.
    pub fn conflicted(&mut self, now: Moment) {
        self.in_flight = None;
        self.doubt = true;
        self.failed(now);
    }

    /// The API server refused the write for another reason: trying again at once would not help.
    pub fn refused(&mut self, now: Moment) {
        self.failures = self.failures.max(1);
        self.conflicted(now);
    }

    /// No answer came: the write may have been carried out, or may yet be (rule 4).
    pub fn unknown(&mut self, now: Moment) {
        self.conflicted(now);
    }

    /// What to do at `now`. A request that is returned counts as sent at `now`, and is to be reported on before the next step.
    pub fn step(&mut self, now: Moment) -> Step {
        debug_assert!(self.in_flight.is_none(), "one request per Lease is in flight at the most");
        self.expire(now);
        match self.wanted(now) {
            Wanted::Nothing => Step::Wait(Moment::NEVER),
            Wanted::At(at) => Step::Wait(at.max(self.not_before)),
            Wanted::Read | Wanted::Write(_) if now < self.not_before => Step::Wait(self.not_before),
            Wanted::Read => {
                self.in_flight = Some(InFlight::Read(self.store.clone()));
                Step::Read
            }
            Wanted::Write(proposal) => {
                if proposal.purpose == Purpose::Release {
                    // Once sent it may land at any time, unnoticed: from here on the right to work is gone.
                    self.grant = None;
                }
                self.in_flight = Some(InFlight::Write(now, proposal.clone()));
                Step::Write(proposal)
            }
        }
    }

    /// Drops a grant whose validity is over, and notes when the renew deadline of one has passed.
    pub fn expire(&mut self, now: Moment) {
        if let Some(grant) = self.grant.as_ref().filter(|grant| now >= self.renew_deadline(grant))
            && self.late != Some(grant.term)
        {
            self.late = Some(grant.term);
            self.loss = Some(Loss::Deadline);
        }
        if self.grant.take_if(|grant| now >= grant.valid_until).is_some() {
            self.loss = Some(Loss::Expired);
        }
    }

    fn wanted(&self, now: Moment) -> Wanted {
        if let Some(grant) = &self.grant
            && grant.term <= self.intent.abandoned
        {
            return Wanted::At(grant.valid_until);
        }
        if self.doubt {
            return Wanted::Read;
        }
        let running = self.last.as_ref().is_some_and(|(term, _)| *term > self.intent.ended);
        match &self.store {
            Store::Present { what, .. } if self.grant.is_some() => {
                // A successor fills its cache from when it reads its name: that does not wait for the next renewal.
                let named = what.successor == self.intent.successor;
                if !running {
                    Wanted::write(Purpose::Release, what, what.transitions).naming(&self.intent)
                } else if now < self.renew_at && named {
                    Wanted::At(self.renew_at)
                } else {
                    Wanted::write(Purpose::Renew, what, what.transitions).naming(&self.intent)
                }
            }
            // The last term's work has not ended: no other may begin here, and nothing may be released.
            _ if running => Wanted::Nothing,
            // A hand has taken its token from the Lease, or the Lease away; a write of it may land all the same, and no later
            // term's release would wait for that.
            Store::Present { .. } | Store::Absent { .. }
                if self.lingers(now) && !(self.holds_on_paper() && self.last_is_abandoned()) =>
            {
                self.await_turn(now, self.last_until)
            }
            Store::Present { what, .. } if self.holds_on_paper() && !self.last_is_abandoned() => {
                if !self.intent.compete {
                    Wanted::write(Purpose::Release, what, what.transitions).naming(&self.intent)
                } else if now < self.barrier {
                    // A creation rests on no version: it may land long after the absence that it was decided on.
                    self.await_turn(now, self.barrier)
                } else if self.had_its_term(what) {
                    self.acquire(what)
                } else {
                    // Ours by a write whose reply was lost: a renewal confirms it before any work starts.
                    Wanted::write(Purpose::Renew, what, what.transitions)
                }
            }
            _ if !self.intent.compete => Wanted::Nothing,
            Store::Nothing => Wanted::Read,
            Store::Absent { since } => {
                let at = (*since).max(self.barrier) + self.intent.patience;
                if now < at { self.await_turn(now, at) } else { Wanted::Write(Proposal::create()) }
            }
            Store::Present { what, since } => {
                let at = self.free_at(what, *since) + self.patience(what);
                if now < at { self.await_turn(now, at) } else { self.acquire(what) }
            }
        }
    }

    /// At the end of its count the Lease is made anew, for the next term needs a token of its own.
    fn acquire(&self, what: &Observation) -> Wanted {
        let highest = match &self.highest {
            Some((uid, highest)) if *uid == what.version.uid => what.transitions.max(*highest),
            _ => what.transitions,
        };
        match highest.max(0).checked_add(1) {
            Some(next) => Wanted::write(Purpose::Acquire, what, next),
            None => Wanted::write(Purpose::Replace, what, highest),
        }
    }

    /// Waits for `at`, looking at the Lease on the way if no watch shows its changes.
    fn await_turn(&self, now: Moment, at: Moment) -> Wanted {
        if self.watched {
            Wanted::At(at)
        } else if now < self.poll_at {
            Wanted::At(at.min(self.poll_at))
        } else {
            Wanted::Read
        }
    }

    /// Replaces what is known. Whatever ends our own grant does so here, at once (rule 5).
    fn take_in(&mut self, now: Moment, what: Option<Observation>) {
        let held = self.grant.as_ref().is_some_and(|grant| now < grant.valid_until);
        if let Some(grant) = &self.grant {
            let same_term = what.as_ref().is_some_and(|what| {
                what.holder.as_deref() == Some(self.identity.as_str())
                    && what.version.uid == grant.token.uid
                    && what.transitions == grant.token.transitions
            });
            if !same_term {
                self.grant = None;
                self.loss = held.then(|| match what.as_ref().and_then(|what| what.holder.clone()) {
                    Some(holder) if holder != self.identity => Loss::Taken(holder),
                    _ => Loss::Gone,
                });
            } else if what.as_ref().is_some_and(|what| what.duration != Some(self.timings.lease_duration)) {
                // A hand has changed for how long we seem to hold it: the others must not count by that.
                self.renew_at = now;
            }
        }
        self.mind_disorder(now, held, what.as_ref());
        self.note_held_for(what.as_ref());
        self.note_transitions(what.as_ref());
        self.store = match what {
            // A read that finds the same version again must not restart the count of its holder's time (rule 2).
            Some(what) => match std::mem::replace(&mut self.store, Store::Nothing) {
                Store::Present { what: before, since } if before.version == what.version => {
                    Store::Present { what, since }
                }
                _ => Store::Present { what, since: now },
            },
            None => match self.store {
                Store::Absent { since } => Store::Absent { since },
                _ => Store::Absent { since: now },
            },
        };
    }

    /// A holder that we did not see, or not lately, may have held what is gone, and renewed it just before.
    fn mind_disorder(&mut self, now: Moment, held: bool, next: Option<&Observation>) {
        if let Store::Present { what: before, .. } = &self.store
            && !held
            && !next.is_some_and(|next| before.goes_on_as(next) && !self.is_cut_short(before, next))
        {
            self.barrier = now + self.held_for.max(self.timings.lease_duration);
        }
    }

    /// The holder is said to hold it for less time than it counts itself: no process changes its timings, whatever a hand has
    /// made of the numbers beside them.
    fn is_cut_short(&self, before: &Observation, next: &Observation) -> bool {
        before.holder == next.holder && next.holder.is_some() && self.duration_of(next) < self.held_for
    }

    fn note_held_for(&mut self, next: Option<&Observation>) {
        let Some(next) = next else { return };
        let duration = self.duration_of(next);
        match &self.store {
            Store::Present { what: before, .. }
                if before.version == next.version
                    || self.is_cut_short(before, next)
                    || (before.is_same_term(next) && self.duration_of(before) != duration) => {}
            _ => self.held_for = duration,
        }
    }

    fn note_transitions(&mut self, what: Option<&Observation>) {
        let Some(Observation { version, transitions, .. }) = what else { return };
        match &mut self.highest {
            Some((uid, highest)) if *uid == version.uid => *highest = (*highest).max(*transitions),
            highest => *highest = Some((version.uid.clone(), *transitions)),
        }
    }

    /// The first conflict or silence in a row is followed up at once, further failures wait: a Lease must not be hammered.
    fn failed(&mut self, now: Moment) {
        self.not_before = if self.failures > 0 { now + self.timings.retry_period } else { now };
        self.failures += 1;
    }

    fn free_at(&self, what: &Observation, since: Moment) -> Moment {
        let free = match (&what.holder, &self.dead) {
            (Some(holder), Some((dead, known))) if holder == dead => {
                since.max(*known).min(since + self.duration_of(what))
            }
            (Some(_), _) => since + self.duration_of(what),
            (None, _) => since,
        };
        free.max(self.barrier)
    }

    fn patience(&self, what: &Observation) -> Duration {
        match what.successor.as_deref() {
            Some(named) if named == self.identity => Duration::ZERO,
            Some(_) => self.intent.patience.max(self.intent.courtesy),
            None => self.intent.patience,
        }
    }

    fn holds_on_paper(&self) -> bool {
        self.holder() == Some(self.identity.as_str())
    }

    fn had_its_term(&self, what: &Observation) -> bool {
        let token = |last: &FencingToken| last.uid == what.version.uid && last.transitions == what.transitions;
        self.last.as_ref().is_some_and(|(_, last)| token(last))
    }

    /// The last term was abandoned, and its writes have their time still.
    fn lingers(&self, now: Moment) -> bool {
        now < self.last_until && self.last.as_ref().is_some_and(|(term, _)| *term <= self.intent.abandoned)
    }

    /// The Lease names us for a term that was abandoned: until it expires it is as good as another holder's.
    fn last_is_abandoned(&self) -> bool {
        let abandoned = self.last.as_ref().is_some_and(|(term, _)| *term <= self.intent.abandoned);
        abandoned && matches!(&self.store, Store::Present { what, .. } if self.had_its_term(what))
    }

    fn duration_of(&self, what: &Observation) -> Duration {
        what.duration.unwrap_or(self.timings.lease_duration)
    }

    fn renew_deadline(&self, grant: &Grant) -> Moment {
        grant.sent_at + self.timings.renew_deadline
    }
}

impl Observation {
    /// A change that the protocol makes: a renewal, a release, a take-over. Anything else (deletion, a hand that clears
    /// or renames the holder, or restores an older record) takes nothing from the time that a holder counts for itself.
    fn goes_on_as(&self, next: &Self) -> bool {
        let orderly = match &next.holder {
            Some(_) if next.transitions == self.transitions => next.holder == self.holder,
            Some(_) => next.transitions > self.transitions,
            None => next.duration == Some(RELEASED) || (self.holder.is_none() && next.transitions == self.transitions),
        };
        self.version.grows_into(&next.version) && orderly
    }

    /// Both are of one term, and it goes on.
    fn is_same_term(&self, next: &Self) -> bool {
        self.version.uid == next.version.uid && (self.transitions, &self.holder) == (next.transitions, &next.holder)
    }
}

impl Proposal {
    const fn create() -> Self {
        Self { purpose: Purpose::Create, basis: None, transitions: 0, successor: None }
    }
}

impl Wanted {
    fn write(purpose: Purpose, what: &Observation, transitions: i32) -> Self {
        Self::Write(Proposal { purpose, basis: Some(what.version.clone()), transitions, successor: None })
    }

    /// The same write, with the name of the successor.
    fn naming(self, intent: &Intent) -> Self {
        match self {
            Self::Write(proposal) => Self::Write(Proposal { successor: intent.successor.clone(), ..proposal }),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timings() -> Timings {
        Timings {
            lease_duration: 10 * SECOND,
            renew_deadline: 6 * SECOND,
            retry_period: SECOND,
            request_timeout: SECOND,
        }
    }

    /// Second `seconds` of a replica's time.
    fn at(seconds: f64) -> Moment {
        Moment::after_origin(Duration::from_secs(1000) + Duration::from_secs_f64(seconds))
    }

    fn stored(version: u64, holder: Option<&str>, transitions: i32) -> Observation {
        Observation {
            version: Version { uid: "u".to_owned(), resource_version: version.to_string() },
            holder: holder.map(str::to_owned),
            duration: Some(10 * SECOND),
            transitions,
            successor: None,
        }
    }

    fn candidate() -> Election {
        let mut election = Election::new("baz".to_owned(), timings());
        election.intend(Intent { compete: true, ..Intent::default() });
        election.set_watched(true);
        election
    }

    /// A candidate that has read this at second 0.
    fn after_reading(answer: Option<Observation>) -> Election {
        let mut election = candidate();
        assert_eq!(election.step(at(0.0)), Step::Read, "nothing is known: read first");
        election.read(at(0.0), answer);
        election
    }

    /// One that leads since second 0, on version 7.
    fn leader() -> Election {
        let mut election = after_reading(None);
        assert!(matches!(election.step(at(0.0)), Step::Write(_)));
        election.written(at(0.0), stored(7, Some("baz"), 0));
        election
    }

    fn write(purpose: Purpose, basis: Option<u64>, transitions: i32) -> Step {
        let version = |v: u64| Version { uid: "u".to_owned(), resource_version: v.to_string() };
        Step::Write(Proposal { purpose, basis: basis.map(version), transitions, successor: None })
    }

    fn leads(election: &Election, seconds: f64) -> bool {
        matches!(election.standing(at(seconds)), Standing::Leading(_))
    }

    // The cases of client-go's TestTryAcquireOrRenewLeases, by its names.

    #[test]
    fn acquire_from_no_object() {
        let mut election = after_reading(None);
        assert_eq!(election.step(at(0.0)), write(Purpose::Create, None, 0));
        election.written(at(0.1), stored(7, Some("baz"), 0));
        assert!(leads(&election, 0.1));
    }

    #[test]
    fn acquire_from_a_record_with_null_fields() {
        let empty = Observation { duration: None, ..stored(7, None, 0) };
        let mut election = after_reading(Some(empty));
        assert_eq!(election.step(at(0.0)), write(Purpose::Acquire, Some(7), 1));
    }

    #[test]
    fn acquire_from_a_led_object_after_the_duration_it_publishes() {
        let short = Observation { duration: Some(3 * SECOND), ..stored(7, Some("bing"), 4) };
        let mut election = after_reading(Some(short));
        assert_eq!(election.step(at(0.0)), Step::Wait(at(3.0)));
        assert_eq!(election.step(at(3.0)), write(Purpose::Acquire, Some(7), 5));
    }

    #[test]
    fn a_held_record_without_duration_counts_for_our_own() {
        let mut election = after_reading(Some(Observation { duration: None, ..stored(7, Some("bing"), 0) }));
        assert_eq!(election.step(at(3.0)), Step::Wait(at(10.0)));
    }

    #[test]
    fn a_cold_start_waits_a_full_duration_whatever_the_record_says_of_its_age() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        assert_eq!(election.step(at(0.0)), Step::Wait(at(10.0)));
    }

    #[test]
    fn do_not_acquire_from_a_led_object_that_is_renewed() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.sighted(at(9.9), Some(stored(8, Some("bing"), 0)));
        assert_eq!(election.step(at(10.0)), Step::Wait(at(19.9)));
        assert_eq!(election.holder(), Some("bing"));
    }

    #[test]
    fn reading_the_same_version_again_does_not_start_its_time_anew() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.set_watched(false);
        assert_eq!(election.step(at(9.0)), Step::Read);
        election.read(at(9.0), Some(stored(7, Some("bing"), 0)));
        assert_eq!(election.step(at(10.0)), write(Purpose::Acquire, Some(7), 1));
    }

    #[test]
    fn renew_keeps_the_transitions_and_rests_on_the_last_version() {
        let mut election = leader();
        assert_eq!(election.step(at(0.5)), Step::Wait(at(1.0)));
        assert_eq!(election.step(at(1.0)), write(Purpose::Renew, Some(7), 0));
        election.written(at(1.1), stored(8, Some("baz"), 0));
        assert_eq!(election.step(at(2.0)), write(Purpose::Renew, Some(8), 0));
    }

    #[test]
    fn a_grant_is_lost_by_the_renew_deadline_and_said_to_be_once() {
        let mut election = leader();
        let Standing::Leading(grant) = election.standing(at(0.0)) else { panic!("it leads") };
        let deadline = election.renew_deadline(&grant);
        election.expire(deadline - Duration::from_millis(1));
        assert_eq!(election.take_loss(), None);
        election.expire(deadline);
        assert_eq!(election.take_loss(), Some(Loss::Deadline));
        election.expire(deadline + Duration::from_millis(1));
        assert_eq!(election.take_loss(), None);
        election.expire(grant.valid_until);
        assert_eq!(election.take_loss(), Some(Loss::Expired));
    }

    #[test]
    fn fall_back_to_a_read_after_a_conflict() {
        let mut election = leader();
        assert!(matches!(election.step(at(1.0)), Step::Write(_)));
        election.conflicted(at(1.0));
        assert_eq!(election.step(at(1.0)), Step::Read);
        election.read(at(1.0), Some(stored(9, Some("baz"), 0)));
        assert_eq!(election.step(at(1.0)), write(Purpose::Renew, Some(9), 0), "a hand has only labelled it");
    }

    // Releasing.

    #[test]
    fn release_only_after_the_work_has_ended_and_keep_renewing_until_then() {
        let mut election = leader();
        election.intend(Intent::default());
        assert_eq!(election.step(at(1.0)), write(Purpose::Renew, Some(7), 0), "it drains");
        election.written(at(1.0), stored(8, Some("baz"), 0));
        election.intend(Intent { ended: 1, ..Intent::default() });
        assert_eq!(election.step(at(1.2)), write(Purpose::Release, Some(8), 0));
        assert_eq!(election.standing(at(1.2)), Standing::Standby, "a release that is sent may land unnoticed");
        election.written(at(1.3), Observation { duration: Some(RELEASED), ..stored(9, None, 0) });
        assert!(election.settled());
        assert_eq!(election.step(at(1.3)), Step::Wait(Moment::NEVER));
    }

    #[test]
    fn a_release_never_clears_another_holder() {
        let mut election = leader();
        election.intend(Intent { ended: 1, ..Intent::default() });
        assert_eq!(election.step(at(1.0)), write(Purpose::Release, Some(7), 0));
        election.conflicted(at(1.0));
        assert_eq!(election.step(at(1.0)), Step::Read);
        election.read(at(1.0), Some(stored(9, Some("bing"), 1)));
        assert_eq!(election.step(at(9.0)), Step::Wait(Moment::NEVER));
        assert!(election.settled());
    }

    #[test]
    fn a_release_is_tried_again_after_a_conflict_or_silence() {
        for silent in [false, true] {
            let mut election = leader();
            election.intend(Intent { ended: 1, ..Intent::default() });
            assert!(matches!(election.step(at(1.0)), Step::Write(_)));
            if silent {
                election.unknown(at(2.0))
            } else {
                election.conflicted(at(2.0))
            }
            assert!(!election.settled());
            assert_eq!(election.step(at(2.0)), Step::Read);
            election.read(at(2.0), Some(stored(8, Some("baz"), 0)));
            assert_eq!(election.step(at(2.0)), write(Purpose::Release, Some(8), 0));
        }
    }

    #[test]
    fn an_abandoned_lease_is_neither_renewed_nor_released() {
        let mut election = leader();
        election.intend(Intent { abandoned: 1, ..Intent::default() });
        assert_eq!(election.step(at(5.0)), Step::Wait(at(9.8)));
        election.intend(Intent { ended: 1, abandoned: 1, ..Intent::default() });
        assert_eq!(election.step(at(6.0)), Step::Wait(at(9.8)));
        assert_eq!(election.step(at(30.0)), Step::Wait(Moment::NEVER));
        assert!(election.settled(), "no replica waits for it");
    }

    #[test]
    fn no_term_begins_while_a_write_of_the_last_may_land_whatever_a_hand_makes_of_the_lease() {
        let cleared = Observation { duration: Some(10 * SECOND), ..stored(8, None, 0) };
        for by_hand in [Some(cleared), None] {
            let mut election = leader();
            election.intend(Intent { compete: true, ended: 1, abandoned: 1, ..Intent::default() });
            election.sighted(at(2.0), by_hand.clone());
            assert_eq!(election.step(at(5.0)), Step::Wait(at(9.8)), "the term counted until then: {by_hand:?}");
            assert!(!matches!(election.step(at(9.8)), Step::Wait(_)), "{by_hand:?}");
        }
    }

    #[test]
    fn an_answer_that_the_watch_has_overtaken_changes_nothing() {
        let mut election = candidate();
        assert_eq!(election.step(at(0.0)), Step::Read);
        election.sighted(at(0.1), Some(stored(9, Some("bong"), 1)));
        election.read(at(0.2), Some(stored(8, Some("bing"), 0)));
        assert_eq!(election.holder(), Some("bong"));
    }

    // What is told of it.

    #[test]
    fn how_a_lease_came_to_be_free_and_since_when_is_known() {
        let mut election = candidate();
        assert_eq!((election.freed(), election.idle_since(at(0.0))), (Freed::Missing, None), "not asked yet");
        assert_eq!(election.step(at(0.0)), Step::Read);
        election.read(at(0.0), Some(stored(7, Some("bing"), 4)));
        assert_eq!(election.idle_since(at(9.9)), None, "it may work still");
        assert_eq!((election.freed(), election.idle_since(at(10.0))), (Freed::Expired, Some(at(0.0))));
        election.mark_dead(at(2.0), "somebody else");
        assert_eq!((election.freed(), election.idle_since(at(3.0))), (Freed::Expired, None));
        election.mark_dead(at(2.0), "bing");
        assert_eq!((election.freed(), election.idle_since(at(3.0))), (Freed::ProvenDead, Some(at(0.0))));
        election.sighted(at(4.0), Some(Observation { duration: Some(RELEASED), ..stored(8, None, 4) }));
        assert_eq!((election.freed(), election.idle_since(at(4.0))), (Freed::Released, Some(at(4.0))));
        election.sighted(at(5.0), None);
        assert_eq!(election.step(at(5.0)), Step::Read);
        election.read(at(5.0), None);
        assert_eq!((election.freed(), election.idle_since(at(6.0))), (Freed::Missing, Some(at(5.0))));
    }

    #[test]
    fn a_shorter_duration_counts_from_the_first_for_another_holder() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        let short = Observation { duration: Some(3 * SECOND), ..stored(8, Some("bong"), 1) };
        election.sighted(at(1.0), Some(short));
        assert_eq!(election.step(at(1.0)), Step::Wait(at(4.0)));
    }

    #[test]
    fn a_duration_that_is_shortened_together_with_the_term_takes_nothing_from_the_holder() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        // Two edits by hand, of which this replica sees the outcome only.
        let edited = Observation { duration: Some(SECOND), ..stored(9, Some("bing"), 5) };
        election.sighted(at(1.0), Some(edited));
        assert_eq!(election.step(at(1.0)), Step::Wait(at(11.0)));
    }

    #[test]
    fn the_highest_number_is_that_of_the_lease_as_it_was_made_last() {
        let anew = |version: u64, transitions: i32| Observation {
            version: Version { uid: "w".to_owned(), resource_version: version.to_string() },
            ..stored(version, None, transitions)
        };
        let mut election = after_reading(Some(stored(7, Some("bing"), 5)));
        election.sighted(at(1.0), Some(anew(8, 3)));
        election.sighted(at(2.0), Some(anew(9, 1)));
        let Step::Write(proposal) = election.step(at(12.0)) else {
            panic!("it is free after all that a holder counts")
        };
        assert_eq!(proposal.transitions, 4, "a hand has restored an older record");
    }

    // Handing over.

    #[test]
    fn a_successor_is_named_at_once_and_taken_back_at_once() {
        let mut election = leader();
        let named =
            |name: Option<&str>| Intent { compete: true, successor: name.map(str::to_owned), ..Intent::default() };
        election.intend(named(Some("bing")));
        let Step::Write(proposal) = election.step(at(0.2)) else { panic!("it is not named") };
        assert_eq!((proposal.purpose, proposal.successor.as_deref()), (Purpose::Renew, Some("bing")));
        election.written(at(0.2), Observation { successor: Some("bing".to_owned()), ..stored(8, Some("baz"), 0) });
        assert_eq!(election.step(at(0.3)), Step::Wait(at(1.2)), "and then renewed as ever");
        election.intend(named(None));
        assert_eq!(election.step(at(0.4)), write(Purpose::Renew, Some(8), 0));
    }

    #[test]
    fn a_release_bears_the_name_of_the_successor_and_a_take_over_takes_it_off() {
        let mut election = leader();
        election.intend(Intent { ended: 1, successor: Some("bing".to_owned()), ..Intent::default() });
        let Step::Write(proposal) = election.step(at(1.0)) else { panic!("it is not released") };
        assert_eq!((proposal.purpose, proposal.successor.as_deref()), (Purpose::Release, Some("bing")));
        let released =
            Observation { duration: Some(RELEASED), successor: Some("baz".to_owned()), ..stored(7, None, 3) };
        assert_eq!(after_reading(Some(released)).step(at(0.0)), write(Purpose::Acquire, Some(7), 4));
    }

    #[test]
    fn the_named_one_goes_at_once_and_others_give_it_the_time_they_are_told_to() {
        let impatient = |name: &str| {
            let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
            election.intend(Intent { compete: true, courtesy: 2 * SECOND, patience: SECOND, ..Intent::default() });
            let released = Observation { duration: Some(RELEASED), ..stored(8, None, 0) };
            election.sighted(at(1.0), Some(Observation { successor: Some(name.to_owned()), ..released }));
            election.step(at(1.0))
        };
        assert_eq!(impatient("baz"), write(Purpose::Acquire, Some(8), 1));
        assert_eq!(impatient("bong"), Step::Wait(at(3.0)));
    }

    #[test]
    fn a_holder_that_is_proven_dead_is_followed_at_once_and_no_other_is() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.mark_dead(at(1.0), "somebody else");
        assert_eq!(election.step(at(1.0)), Step::Wait(at(10.0)));
        election.mark_dead(at(2.0), "bing");
        assert_eq!(election.step(at(2.0)), write(Purpose::Acquire, Some(7), 1));
        election.conflicted(at(2.1));
        assert_eq!(election.step(at(2.1)), Step::Read);
        election.read(at(2.2), Some(stored(9, Some("bong"), 1)));
        assert_eq!(election.step(at(2.2)), Step::Wait(at(12.2)), "the proof was about bing");
    }

    #[test]
    fn a_proof_of_death_does_not_shorten_the_wait_after_disorder() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.sighted(at(1.0), Some(stored(8, Some("a hand"), 0)));
        election.mark_dead(at(2.0), "a hand");
        assert_eq!(election.step(at(2.0)), Step::Wait(at(11.0)), "bing may not have heard");
    }

    // What upstream lacks.

    #[test]
    fn validity_counts_from_before_sending() {
        let mut election = after_reading(None);
        assert!(matches!(election.step(at(0.0)), Step::Write(_)));
        election.written(at(3.0), stored(7, Some("baz"), 0));
        let Standing::Leading(grant) = election.standing(at(3.0)) else { panic!("leads") };
        assert_eq!(grant.valid_until, at(9.8), "sent at 0, ten seconds, less 2 %");
        assert_eq!(election.next_change(at(3.0)), at(6.0));
        assert!(matches!(election.standing(at(6.0)), Standing::Losing(_)));
        assert_eq!(election.standing(at(9.8)), Standing::Standby);
    }

    #[test]
    fn an_answer_slower_than_the_lease_grants_nothing() {
        let mut election = after_reading(None);
        assert!(matches!(election.step(at(0.0)), Step::Write(_)));
        election.written(at(9.9), stored(7, Some("baz"), 0));
        assert_eq!(election.standing(at(9.9)), Standing::Standby);
    }

    #[test]
    fn another_holder_ends_the_term_at_once_and_an_error_does_not() {
        let mut election = leader();
        election.sighted(at(0.5), Some(stored(8, Some("bing"), 1)));
        assert_eq!(election.standing(at(0.5)), Standing::Standby);

        let mut election = leader();
        assert!(matches!(election.step(at(1.0)), Step::Write(_)));
        election.refused(at(1.0));
        assert!(leads(&election, 1.0), "403, 429 and 500 only start the countdown");
    }

    #[test]
    fn another_holder_seen_during_a_renewal_wins_over_its_answer() {
        let mut election = leader();
        assert!(matches!(election.step(at(1.0)), Step::Write(_)));
        election.sighted(at(1.1), Some(stored(9, Some("bing"), 1)));
        election.written(at(1.2), stored(8, Some("baz"), 0));
        assert_eq!(election.standing(at(1.2)), Standing::Standby);
    }

    #[test]
    fn a_recreated_lease_is_not_ours_even_if_it_names_us() {
        let mut election = leader();
        let other = Observation {
            version: Version { uid: "v".to_owned(), resource_version: "9".to_owned() },
            ..stored(9, Some("baz"), 0)
        };
        election.sighted(at(0.5), Some(other));
        assert_eq!(election.standing(at(0.5)), Standing::Standby);
    }

    #[test]
    fn a_deletion_is_confirmed_by_a_read_and_ends_the_term() {
        let mut election = leader();
        election.sighted(at(0.5), None);
        assert!(leads(&election, 0.5), "a list may be older than our own creation");
        assert_eq!(election.step(at(0.5)), Step::Read);
        election.read(at(0.6), None);
        assert_eq!(election.standing(at(0.6)), Standing::Standby);
        assert_eq!(election.step(at(0.6)), Step::Wait(Moment::NEVER), "its work has not ended yet");
        election.intend(Intent { compete: true, ended: 1, ..Intent::default() });
        assert_eq!(election.step(at(0.7)), write(Purpose::Create, None, 0), "it was ours: no other replica can lead");
    }

    #[test]
    fn a_standby_that_saw_the_lease_waits_a_duration_after_it_is_gone() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.sighted(at(5.0), None);
        assert_eq!(election.step(at(5.0)), Step::Read);
        election.read(at(5.0), None);
        assert_eq!(election.step(at(5.0)), Step::Wait(at(15.0)));
    }

    #[test]
    fn a_holder_cleared_by_hand_is_waited_for_and_a_release_is_not() {
        for (duration, wait) in [(10 * SECOND, Some(at(15.0))), (RELEASED, None)] {
            let mut election = after_reading(Some(stored(7, Some("bing"), 3)));
            election.sighted(at(5.0), Some(Observation { duration: Some(duration), ..stored(8, None, 3) }));
            let expected = wait.map_or_else(|| write(Purpose::Acquire, Some(8), 4), Step::Wait);
            assert_eq!(election.step(at(5.0)), expected);
        }
    }

    #[test]
    fn echoes_of_the_past_change_nothing() {
        let mut election = leader();
        election.sighted(at(0.1), Some(stored(5, Some("bing"), 0)));
        election.sighted(at(0.1), Some(stored(6, None, 0)));
        assert!(leads(&election, 0.1));
    }

    #[test]
    fn versions_that_are_no_numbers_are_settled_by_a_read() {
        let mut election = leader();
        let strange = Version { uid: "u".to_owned(), resource_version: "x9".to_owned() };
        election.sighted(at(0.1), Some(Observation { version: strange, ..stored(0, Some("bing"), 1) }));
        assert!(leads(&election, 0.1));
        assert_eq!(election.step(at(0.1)), Step::Read);
    }

    #[test]
    fn two_creators_race() {
        let mut election = after_reading(None);
        assert!(matches!(election.step(at(0.0)), Step::Write(_)));
        election.conflicted(at(0.1));
        assert_eq!(election.step(at(0.1)), Step::Read);
        election.read(at(0.2), Some(stored(7, Some("bing"), 0)));
        assert_eq!(election.step(at(0.2)), Step::Wait(at(10.2)));
    }

    #[test]
    fn a_write_without_answer_is_read_and_confirmed_before_any_work() {
        let mut election = after_reading(None);
        assert!(matches!(election.step(at(0.0)), Step::Write(_)));
        election.unknown(at(1.0));
        assert_eq!(election.step(at(1.0)), Step::Read);
        election.read(at(1.1), Some(stored(7, Some("baz"), 0)));
        assert_eq!(election.standing(at(1.1)), Standing::Standby);
        assert_eq!(election.step(at(1.1)), write(Purpose::Renew, Some(7), 0));
        election.written(at(1.2), stored(8, Some("baz"), 0));
        assert!(leads(&election, 1.2));
    }

    #[test]
    fn a_creation_that_lands_after_anothers_lease_came_and_went_waits_for_its_holder() {
        let mut election = after_reading(None);
        assert_eq!(election.step(at(0.0)), write(Purpose::Create, None, 0));
        let others = Version { uid: "other".to_owned(), resource_version: "8".to_owned() };
        election.sighted(at(0.5), Some(Observation { version: others, ..stored(8, Some("bing"), 0) }));
        election.sighted(at(0.6), None);
        election.written(at(0.7), stored(9, Some("baz"), 0));
        assert_eq!(election.standing(at(0.7)), Standing::Standby, "bing may not have heard of the deletion");
        assert_eq!(election.step(at(1.7)), Step::Read);
        election.read(at(1.7), Some(stored(9, Some("baz"), 0)));
        assert_eq!(election.step(at(1.7)), Step::Wait(at(10.7)));
        assert_eq!(election.step(at(10.7)), write(Purpose::Renew, Some(9), 0));
        election.written(at(10.8), stored(10, Some("baz"), 0));
        assert!(leads(&election, 10.8));
    }

    #[test]
    fn a_grant_that_ran_out_while_its_renewal_was_on_the_way_does_not_come_back() {
        let mut election = leader();
        assert_eq!(election.step(at(9.0)), write(Purpose::Renew, Some(7), 0));
        election.written(at(10.5), stored(8, Some("baz"), 0));
        assert_eq!(election.standing(at(10.5)), Standing::Standby, "its term was told that it is over");
        assert_eq!(election.step(at(10.5)), Step::Wait(Moment::NEVER), "and has not ended yet");
    }

    #[test]
    fn a_token_has_one_term() {
        let mut election = leader();
        assert_eq!(election.standing(at(20.0)), Standing::Standby);
        election.intend(Intent { compete: true, ended: 1, ..Intent::default() });
        assert_eq!(election.step(at(20.0)), write(Purpose::Acquire, Some(7), 1));
        election.written(at(20.1), stored(8, Some("baz"), 1));
        assert!(matches!(election.standing(at(20.1)), Standing::Leading(Grant { term: 2, .. })));
    }

    #[test]
    fn who_does_not_compete_asks_for_nothing_and_takes_nothing() {
        let mut election = Election::new("baz".to_owned(), timings());
        assert_eq!(election.step(at(0.0)), Step::Wait(Moment::NEVER));
        election.sighted(at(0.0), Some(stored(7, None, 0)));
        assert_eq!(election.step(at(0.0)), Step::Wait(Moment::NEVER));
        election.sighted(at(0.0), Some(stored(8, Some("bing"), 1)));
        assert_eq!(election.step(at(99.0)), Step::Wait(Moment::NEVER));
    }

    #[test]
    fn patience_lets_others_go_first_and_no_longer() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.intend(Intent { compete: true, patience: 2 * SECOND, ..Intent::default() });
        election.sighted(at(1.0), Some(Observation { duration: Some(RELEASED), ..stored(8, None, 0) }));
        assert_eq!(election.step(at(1.0)), Step::Wait(at(3.0)));
        assert_eq!(election.step(at(3.0)), write(Purpose::Acquire, Some(8), 1));
    }

    #[test]
    fn without_a_watch_a_standby_reads_each_retry_period() {
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.set_watched(false);
        assert_eq!(election.step(at(0.5)), Step::Wait(at(1.0)));
        assert_eq!(election.step(at(1.0)), Step::Read);
    }

    #[test]
    fn repeated_failures_are_a_retry_period_apart() {
        let mut election = leader();
        assert!(matches!(election.step(at(1.0)), Step::Write(_)));
        election.unknown(at(2.0));
        assert_eq!(election.step(at(2.0)), Step::Read);
        election.read_failed(at(3.0));
        assert_eq!(election.step(at(3.0)), Step::Wait(at(4.0)));
        assert_eq!(election.step(at(4.0)), Step::Read);
    }

    #[test]
    fn transitions_never_overflow() {
        let mut election = after_reading(Some(stored(7, None, -5)));
        assert_eq!(election.step(at(0.0)), write(Purpose::Acquire, Some(7), 1));
    }

    #[test]
    fn at_the_end_of_its_count_a_lease_is_made_anew() {
        let mut election = after_reading(Some(stored(7, None, i32::MAX)));
        assert_eq!(election.step(at(0.0)), write(Purpose::Replace, Some(7), i32::MAX));
        election.deleted(at(0.0));
        assert_eq!(election.step(at(0.0)), Step::Wait(at(10.0)), "its holder may not have heard of it");
        assert_eq!(election.step(at(10.0)), write(Purpose::Create, None, 0));
    }

    #[test]
    fn a_record_that_is_restored_brings_no_token_back() {
        let mut election = after_reading(Some(stored(7, None, 5)));
        election.sighted(at(1.0), Some(stored(8, None, 2)));
        assert_eq!(election.step(at(1.0)), Step::Wait(at(11.0)), "its last holder may not have heard of it");
        assert_eq!(election.step(at(11.0)), write(Purpose::Acquire, Some(8), 6));
    }

    #[test]
    fn a_duration_that_is_shortened_by_hand_takes_nothing_from_the_holder() {
        let short = Observation { duration: Some(SECOND), ..stored(8, Some("bing"), 0) };
        let mut election = after_reading(Some(stored(7, Some("bing"), 0)));
        election.sighted(at(1.0), Some(short.clone()));
        assert_eq!(election.step(at(2.0)), Step::Wait(at(11.0)), "it holds it for the 10 s that it wrote itself");
        let mut leader = leader();
        leader.sighted(at(0.2), Some(Observation { holder: Some("baz".to_owned()), ..short }));
        assert_eq!(leader.step(at(0.2)), write(Purpose::Renew, Some(8), 0), "the others are told at once");
    }

    #[test]
    fn a_duration_that_is_lengthened_by_hand_counts_until_the_holder_has_put_it_right() {
        let of = |version: u64, holder: Option<&str>, seconds: u32| {
            Some(Observation { duration: Some(seconds * SECOND), ..stored(version, holder, 0) })
        };
        let mut election = after_reading(of(7, Some("bing"), 30));
        election.sighted(at(1.0), of(8, Some("bing"), 600));
        assert_eq!(election.step(at(1.0)), Step::Wait(at(601.0)));
        let mut shortened = election.clone();
        election.sighted(at(2.0), of(9, Some("bing"), 30));
        election.sighted(at(3.0), of(10, None, 1));
        assert_eq!(election.step(at(3.0)), write(Purpose::Acquire, Some(10), 1), "released in order, and free");
        shortened.sighted(at(2.0), of(9, Some("bing"), 1));
        assert_eq!(shortened.step(at(2.0)), Step::Wait(at(32.0)), "it holds it for the 30 s that it wrote itself");

        let mut election = after_reading(of(7, Some("bing"), 10));
        election.sighted(at(1.0), of(8, Some("bing"), 600));
        election.sighted(at(2.0), of(9, Some("bing"), 600));
        election.sighted(at(3.0), of(10, Some("bing"), 10));
        election.sighted(at(4.0), of(11, None, 1));
        assert_eq!(election.step(at(4.0)), Step::Wait(at(603.0)), "what it said twice it may have counted by");
    }

    #[test]
    fn a_write_that_grants_nothing_is_not_repeated_at_once() {
        let mut election = after_reading(None);
        assert_eq!(election.step(at(0.0)), write(Purpose::Create, None, 0));
        election.written(at(9.9), stored(7, Some("baz"), 0));
        assert_eq!(election.standing(at(9.9)), Standing::Standby, "it was too slow");
        assert_eq!(election.step(at(9.9)), Step::Wait(at(10.9)));
    }
}
