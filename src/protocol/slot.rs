//! One shard's term on this replica: decides when its work starts, is handed over, drains, is aborted, and what the
//! election may do meanwhile.
//!
//! It is told what happened and answers with a [`Command`] about the work and an [`Intent`] for the election.

use std::time::Duration;

use super::{
    election::{Grant, Intent, Standing},
    moment::Moment,
};

/// How a term's task ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The reconciler returned `Ok`.
    Finished,
    /// The reconciler returned an error.
    Failed(String),
    /// The reconciler panicked.
    Panicked(String),
    /// The task was aborted by us.
    Aborted,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The election stands thus.
    Standing(Standing),
    /// This term is over, and its work has not begun: it had not been confirmed.
    NeverBegun(u64),
    /// The term's task has ended. `unanswered`: a write of it may still be carried out.
    Ended {
        /// Number of the term.
        term: u64,
        /// How it ended.
        outcome: Outcome,
        /// A write of it may still be carried out.
        unanswered: bool,
    },
    /// Where the shard shall go. A level: it is told again whenever it changes.
    Handover(Handover),
    /// The standby's task has ended by itself.
    StandbyFailed,
    /// A kind of the term has failed, and the others are to end.
    Broken,
    /// The API server refuses to let us acquire the Lease.
    Refused,
    /// The kind can be reconciled here, or it cannot.
    Runnable(bool),
    /// The process is to stop.
    Stop,
    /// The process is to stop now.
    Abort,
    /// Time has passed.
    Tick,
}

/// Where a shard that runs here shall go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Handover {
    /// Nowhere.
    #[default]
    Stay,
    /// To this replica, which is to be named on the Lease.
    To {
        /// Its holder identity.
        successor: String,
        /// It has filled its cache.
        prepared: bool,
        /// The shard leaves in any case; otherwise only for a successor that is prepared.
        must: bool,
    },
    /// Away from here, and no replica can take it now.
    ToNone,
}

/// What to do about the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start the reconciler.
    Start(Grant),
    /// Ask it to take no new work.
    Drain,
    /// Shut the fence, abort the task.
    Abort,
    /// The successor was not prepared in time: the shard stays, and that replica is not chosen again at once.
    CallOff,
}

/// What the slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No task runs.
    Idle,
    /// The term's task works.
    Running,
    /// The task finishes what runs.
    Draining,
    /// The task was aborted and has not ended.
    Aborting,
}

/// One shard's term on this replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    drain_timeout: Duration,
    work: Work,
    intent: Intent,
    handover: Handover,
    /// When the handover goes on whether the successor is prepared or not.
    hand_over_by: Option<Moment>,
    runnable: bool,
    stopping: bool,
    failures: u32,
    cooling_until: Moment,
    forgiven_at: Moment,
    /// Refused acquisitions since the last one that was not.
    refusals: u32,
    barred_until: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Idle,
    Running { term: u64, since: Moment },
    Draining { term: u64, since: Moment, deadline: Moment },
    Aborting { term: u64, since: Moment, give_up: Moment },
}

/// The longest that a handover which must be waits for its successor's cache; a drain timeout that is shorter bounds it too.
pub const PREPARE: Duration = Duration::from_secs(10);
/// The longest that a move for balance waits for it: the work goes on meanwhile, so only further moves are held up.
const PREPARE_FOR_BALANCE: Duration = Duration::from_secs(60);
/// An aborted task ends at its next await. One that has not ended by then runs code that nothing can stop.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// First pause after a failed term; it doubles with each further failure.
const COOL_DOWN: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const PAUSE_MOST: Duration = Duration::from_secs(300);
/// First pause after a refused acquisition; it doubles with each further one.
const REFUSED: Duration = Duration::from_secs(2);
/// A first failure is remembered for so long after its pause; it doubles with each further one. While the kind works
/// elsewhere there is no hurry to have it back.
const REMEMBERED: Duration = Duration::from_secs(120);
/// The longest that a failure is remembered after its pause.
const REMEMBERED_MOST: Duration = Duration::from_secs(900);
/// A term that lasted this long clears the failures before it.
const PROVEN: Duration = Duration::from_secs(600);

impl Slot {
    /// An idle slot of a kind not known to be runnable. `drain_timeout`: how long a drain may take.
    pub fn new(drain_timeout: Duration) -> Self {
        Self {
            drain_timeout,
            work: Work::Idle,
            intent: Intent::default(),
            handover: Handover::Stay,
            hand_over_by: None,
            runnable: false,
            stopping: false,
            failures: 0,
            cooling_until: Moment::default(),
            forgiven_at: Moment::default(),
            refusals: 0,
            barred_until: Moment::default(),
        }
    }

    /// What the election may do. How long it lets others go first is not the slot's to say.
    pub fn intent(&self, now: Moment) -> Intent {
        let successor = match &self.handover {
            Handover::To { successor, .. } => Some(successor.clone()),
            Handover::Stay | Handover::ToNone => None,
        };
        Intent { compete: self.can_run(now), successor, ..self.intent.clone() }
    }

    /// This replica could run the shard now.
    pub fn can_run(&self, now: Moment) -> bool {
        self.runnable && !self.stopping && now >= self.cooling_until.max(self.barred_until)
    }

    /// No term is here, and one may come: a cache can be kept for it.
    pub fn can_stand_by(&self, now: Moment) -> bool {
        self.state() == State::Idle && self.can_run(now)
    }

    /// What the slot is doing.
    pub fn state(&self) -> State {
        match self.work {
            Work::Idle => State::Idle,
            Work::Running { .. } => State::Running,
            Work::Draining { .. } => State::Draining,
            Work::Aborting { .. } => State::Aborting,
        }
    }

    /// Since when its term works.
    pub fn running_since(&self) -> Option<Moment> {
        match self.work {
            Work::Running { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Until when the kind cools down after a failure, if it does.
    pub fn cooling_until(&self, now: Moment) -> Option<Moment> {
        (now < self.cooling_until).then_some(self.cooling_until)
    }

    /// Until when the kind is not taken here because an acquisition was refused.
    pub fn barred_until(&self, now: Moment) -> Option<Moment> {
        (now < self.barred_until).then_some(self.barred_until)
    }

    /// Until when the last failure here is remembered: the kind may be tried again before, but need not come here while
    /// it works elsewhere.
    pub fn failing_until(&self, now: Moment) -> Option<Moment> {
        (now < self.forgiven_at).then_some(self.forgiven_at)
    }

    /// When to send [`Event::Tick`] if nothing else happens.
    pub fn next_wake(&self, now: Moment) -> Moment {
        let work = match self.work {
            Work::Running { .. } => self.hand_over_by.unwrap_or(Moment::NEVER),
            Work::Draining { deadline, .. } => deadline,
            Work::Aborting { term, give_up, .. } if self.intent.abandoned < term => give_up,
            _ => Moment::NEVER,
        };
        let later = [self.cooling_until(now), self.barred_until(now), self.failing_until(now)].into_iter().flatten();
        later.fold(work, Moment::min)
    }

    /// Takes in what happened.
    pub fn on(&mut self, event: Event, now: Moment) -> Option<Command> {
        match event {
            Event::Standing(standing) => self.on_standing(standing, now),
            Event::NeverBegun(term) => {
                // Else the election would wait for its end, and take nothing any more.
                if matches!(self.work, Work::Idle) {
                    self.intent.ended = self.intent.ended.max(term);
                }
                None
            }
            Event::Ended { term, outcome, unanswered } => {
                self.on_ended(term, &outcome, unanswered, now);
                None
            }
            Event::Handover(handover) => {
                self.handover = handover;
                self.on_handover(now)
            }
            Event::StandbyFailed => {
                self.cool_down(now);
                None
            }
            Event::Broken => self.drain(now, now + self.drain_timeout),
            Event::Refused => {
                self.barred_until = now + pause(REFUSED, self.refusals, PAUSE_MOST);
                self.refusals += 1;
                None
            }
            Event::Runnable(runnable) => {
                self.runnable = runnable;
                if runnable { None } else { self.drain(now, now + self.drain_timeout) }
            }
            Event::Stop => {
                self.stopping = true;
                self.on_handover(now)
            }
            Event::Abort => {
                self.stopping = true;
                self.abort(now)
            }
            Event::Tick => self.on_tick(now),
        }
    }

    /// Work goes on until the successor is prepared, so that it stops for a release and an acquisition and no longer.
    fn on_handover(&mut self, now: Moment) -> Option<Command> {
        match &self.handover {
            Handover::Stay if !self.stopping => {
                self.hand_over_by = None;
                None
            }
            Handover::ToNone | Handover::To { prepared: true, .. } => self.drain(now, now + self.drain_timeout),
            Handover::Stay | Handover::To { prepared: false, .. } => {
                let must = self.stopping || matches!(self.handover, Handover::To { must: true, .. });
                let wait = if must { PREPARE.min(self.drain_timeout) } else { PREPARE_FOR_BALANCE };
                // The bound is on the whole wait: another successor does not begin it anew.
                let by = now + wait;
                self.hand_over_by = Some(self.hand_over_by.map_or(by, |known| known.min(by)));
                self.on_tick(now)
            }
        }
    }

    fn on_standing(&mut self, standing: Standing, now: Moment) -> Option<Command> {
        match (standing, self.work) {
            (Standing::Leading(grant), Work::Idle) if grant.term > self.intent.ended => {
                if self.can_run(now) {
                    self.work = Work::Running { term: grant.term, since: now };
                    self.hand_over_by = None;
                    self.refusals = 0;
                    Some(Command::Start(grant))
                } else {
                    // Won after the wish had gone: no work begins, so its end is now, and the Lease is released.
                    self.intent.ended = grant.term;
                    None
                }
            }
            (Standing::Losing(grant), Work::Idle) => {
                self.intent.ended = self.intent.ended.max(grant.term);
                None
            }
            (Standing::Losing(grant), Work::Running { .. }) => self.drain(now, grant.valid_until),
            (Standing::Leading(grant) | Standing::Losing(grant), _) if self.is_of_another_term(grant.term) => {
                self.abort(now)
            }
            (Standing::Standby, Work::Running { .. } | Work::Draining { .. }) => self.abort(now),
            _ => None,
        }
    }

    /// A newer grant than the one we work under can only mean that ours was lost in between.
    fn is_of_another_term(&self, granted: u64) -> bool {
        match self.work {
            Work::Running { term, .. } | Work::Draining { term, .. } => term != granted,
            Work::Idle | Work::Aborting { .. } => false,
        }
    }

    fn on_ended(&mut self, ended: u64, outcome: &Outcome, unanswered: bool, now: Moment) {
        let asked = self.state() != State::Running;
        let (Work::Running { term, since } | Work::Draining { term, since, .. } | Work::Aborting { term, since, .. }) =
            self.work
        else {
            return;
        };
        if term != ended {
            return;
        }
        self.work = Work::Idle;
        self.hand_over_by = None;
        self.intent.ended = term;
        if unanswered {
            self.intent.abandoned = term;
        }
        let failed = match outcome {
            Outcome::Finished | Outcome::Aborted => !asked,
            Outcome::Failed(_) | Outcome::Panicked(_) => true,
        };
        if now.since(since) >= PROVEN {
            self.failures = 0;
        }
        if failed {
            self.cool_down(now);
        } else if matches!(outcome, Outcome::Finished) {
            self.failures = 0;
        }
    }

    fn cool_down(&mut self, now: Moment) {
        let remembered = pause(REMEMBERED, self.failures, REMEMBERED_MOST);
        let pause = pause(COOL_DOWN, self.failures, PAUSE_MOST);
        self.cooling_until = now + pause;
        self.forgiven_at = self.cooling_until + remembered;
        self.failures += 1;
    }

    fn on_tick(&mut self, now: Moment) -> Option<Command> {
        match self.work {
            Work::Running { .. } if self.hand_over_by.is_some_and(|by| now >= by) => {
                if !self.stopping && matches!(self.handover, Handover::To { must: false, .. }) {
                    self.hand_over_by = None;
                    self.handover = Handover::Stay;
                    return Some(Command::CallOff);
                }
                self.drain(now, now + self.drain_timeout)
            }
            Work::Draining { deadline, .. } if now >= deadline => self.abort(now),
            Work::Aborting { term, give_up, .. } if now >= give_up => {
                self.intent.abandoned = term;
                None
            }
            _ => None,
        }
    }

    fn drain(&mut self, now: Moment, deadline: Moment) -> Option<Command> {
        let Work::Running { term, since } = self.work else { return None };
        self.work = Work::Draining { term, since, deadline: deadline.min(now + self.drain_timeout) };
        Some(Command::Drain)
    }

    fn abort(&mut self, now: Moment) -> Option<Command> {
        let (Work::Running { term, since } | Work::Draining { term, since, .. }) = self.work else { return None };
        self.work = Work::Aborting { term, since, give_up: now + ABORT_PATIENCE };
        Some(Command::Abort)
    }
}

/// It doubles each time, up to a most.
pub(super) fn pause(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lease::FencingToken;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(1000 + seconds))
    }

    fn grant(term: u64, sent: u64) -> Grant {
        let token = FencingToken { uid: "u".to_owned(), transitions: 0 };
        Grant { term, token, sent_at: at(sent), valid_until: at(sent + 10) }
    }

    fn leading(term: u64) -> Event {
        Event::Standing(Standing::Leading(grant(term, 0)))
    }

    fn ended(term: u64, outcome: Outcome) -> Event {
        Event::Ended { term, outcome, unanswered: false }
    }

    fn runnable() -> Slot {
        let mut slot = Slot::new(5 * SECOND);
        assert_eq!(slot.on(Event::Runnable(true), at(0)), None);
        slot
    }

    fn running() -> Slot {
        let mut slot = runnable();
        assert_eq!(slot.on(leading(1), at(0)), Some(Command::Start(grant(1, 0))));
        slot
    }

    #[test]
    fn a_kind_that_is_not_known_to_be_runnable_does_not_compete() {
        let slot = Slot::new(5 * SECOND);
        assert!(!slot.intent(at(0)).compete);
        assert!(runnable().intent(at(0)).compete);
    }

    fn to(successor: &str, prepared: bool) -> Event {
        Event::Handover(Handover::To { successor: successor.to_owned(), prepared, must: false })
    }

    /// A running slot that is told to stop when no replica can follow.
    fn stopped(now: Moment) -> Slot {
        let mut slot = running();
        assert_eq!(slot.on(Event::Stop, now), None, "who follows is told next");
        assert_eq!(slot.on(Event::Handover(Handover::ToNone), now), Some(Command::Drain));
        slot
    }

    #[test]
    fn a_stop_drains_and_only_the_end_of_the_work_allows_the_release() {
        let mut slot = stopped(at(1));
        assert_eq!(slot.intent(at(1)), Intent::default());
        assert_eq!(slot.on(ended(1, Outcome::Finished), at(2)), None);
        assert_eq!(slot.intent(at(2)), Intent { ended: 1, ..Intent::default() });
    }

    #[test]
    fn a_handover_names_the_successor_and_works_on_until_it_is_prepared() {
        let mut slot = running();
        assert_eq!(slot.on(to("bing", false), at(1)), None);
        assert_eq!(slot.intent(at(1)).successor.as_deref(), Some("bing"));
        assert_eq!(slot.state(), State::Running);
        assert_eq!(slot.on(to("bing", true), at(3)), Some(Command::Drain));
        slot.on(ended(1, Outcome::Finished), at(3));
        assert_eq!(slot.intent(at(3)).successor.as_deref(), Some("bing"), "the release names it too");
        assert!(slot.can_run(at(3)), "should it not come");
    }

    #[test]
    fn a_handover_that_must_be_waits_for_a_bounded_time_however_many_successors_are_named() {
        let mut slot = running();
        let must =
            |name: &str| Event::Handover(Handover::To { successor: name.to_owned(), prepared: false, must: true });
        slot.on(must("bing"), at(1));
        assert_eq!(slot.on(must("bong"), at(4)), None);
        assert_eq!(slot.next_wake(at(4)), at(6), "the drain timeout is 5 s, and the first was named at 1");
        assert_eq!(slot.on(Event::Tick, at(6)), Some(Command::Drain));
    }

    #[test]
    fn a_handover_for_balance_is_called_off_if_the_successor_is_not_prepared() {
        let mut slot = running();
        slot.on(to("bing", false), at(1));
        assert_eq!(slot.on(Event::Tick, at(61)), Some(Command::CallOff), "the work goes on here");
        assert_eq!((slot.state(), slot.intent(at(61)).successor), (State::Running, None));
        slot.on(to("bong", false), at(70));
        slot.on(Event::Stop, at(80));
        assert_eq!(slot.on(Event::Tick, at(85)), Some(Command::Drain), "a replica that stops waits no longer");
    }

    #[test]
    fn a_refused_acquisition_is_tried_again_after_longer_and_longer() {
        let mut slot = runnable();
        let mut now = 0;
        for pause in [2, 4, 8] {
            slot.on(Event::Refused, at(now));
            assert!(!slot.intent(at(now)).compete);
            assert_eq!(slot.next_wake(at(now)), at(now + pause));
            assert_eq!(slot.failing_until(at(now)), None, "the kind does not fail");
            now += pause;
            assert!(slot.intent(at(now)).compete);
        }
        slot.on(leading(1), at(now));
        slot.on(Event::Refused, at(now));
        assert_eq!(slot.next_wake(at(now)), at(now + 2), "an acquisition that is not refused clears it");
    }

    #[test]
    fn a_handover_that_is_called_off_leaves_everything_as_it_was() {
        let mut slot = running();
        slot.on(to("bing", false), at(1));
        assert_eq!(slot.on(Event::Handover(Handover::Stay), at(2)), None);
        assert_eq!((slot.next_wake(at(2)), slot.intent(at(2)).successor), (Moment::NEVER, None));
        slot.on(to("bing", false), at(9));
        assert_eq!(slot.next_wake(at(9)), at(69), "the next one has its own time");
    }

    #[test]
    fn a_stop_without_a_successor_drains_by_itself() {
        let mut slot = running();
        slot.on(Event::Stop, at(1));
        assert_eq!(slot.next_wake(at(1)), at(6));
        assert_eq!(slot.on(Event::Tick, at(6)), Some(Command::Drain));
    }

    #[test]
    fn a_standby_that_fails_cools_down_as_a_term_does() {
        let mut slot = runnable();
        assert!(slot.can_stand_by(at(0)));
        slot.on(Event::StandbyFailed, at(0));
        assert!(!slot.can_stand_by(at(0)) && !slot.intent(at(0)).compete);
        assert!(slot.can_stand_by(at(1)));
    }

    #[test]
    fn a_drain_that_takes_too_long_is_aborted_and_work_that_goes_on_is_abandoned() {
        let mut slot = stopped(at(1));
        assert_eq!(slot.next_wake(at(1)), at(6));
        assert_eq!(slot.on(Event::Tick, at(5)), None);
        assert_eq!(slot.on(Event::Tick, at(6)), Some(Command::Abort));
        assert_eq!(slot.intent(at(6)).abandoned, 0, "an aborted task ends at its next await");
        assert_eq!(slot.on(Event::Tick, at(8)), None);
        assert_eq!(slot.intent(at(8)), Intent { abandoned: 1, ..Intent::default() });
        assert_eq!(slot.next_wake(at(8)), Moment::NEVER);
    }

    #[test]
    fn a_term_that_is_being_lost_drains_until_its_validity_ends() {
        let mut slot = Slot::new(60 * SECOND);
        slot.on(Event::Runnable(true), at(0));
        slot.on(leading(1), at(0));
        assert_eq!(slot.on(Event::Standing(Standing::Losing(grant(1, 0))), at(6)), Some(Command::Drain));
        assert_eq!(slot.next_wake(at(6)), at(10));
    }

    #[test]
    fn a_lost_term_is_aborted_at_once_and_its_successor_waits_for_its_end() {
        let mut slot = running();
        assert_eq!(slot.on(Event::Standing(Standing::Standby), at(1)), Some(Command::Abort));
        assert_eq!(slot.on(leading(2), at(1)), None, "never two tasks");
        slot.on(ended(1, Outcome::Aborted), at(2));
        assert!(slot.intent(at(2)).compete, "a loss is no failure of the kind");
        assert_eq!(slot.on(leading(2), at(2)), Some(Command::Start(grant(2, 0))));
    }

    #[test]
    fn another_term_than_ours_means_that_ours_was_lost() {
        let mut slot = running();
        assert_eq!(slot.on(leading(2), at(1)), Some(Command::Abort));
    }

    #[test]
    fn a_failing_kind_cools_down_longer_each_time_and_a_lasting_term_clears_it() {
        let mut slot = runnable();
        let mut now = 0;
        for (term, pause) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
            slot.on(Event::Standing(Standing::Leading(grant(term, now))), at(now));
            slot.on(ended(term, Outcome::Panicked("it happens".to_owned())), at(now));
            assert_eq!(slot.cooling_until(at(now)), Some(at(now + pause)), "after term {term}");
            assert_eq!(
                slot.failing_until(at(now)),
                Some(at(now + pause + (120 * pause).min(900))),
                "it is remembered for longer"
            );
            assert!(!slot.intent(at(now)).compete);
            now += pause;
            assert!(slot.intent(at(now)).compete);
        }
        slot.on(Event::Standing(Standing::Leading(grant(5, now))), at(now));
        slot.on(ended(5, Outcome::Failed("it happens".to_owned())), at(now + 600));
        assert_eq!(slot.cooling_until(at(now + 600)), Some(at(now + 601)));
    }

    #[test]
    fn a_reconciler_that_returns_unasked_has_failed() {
        let mut slot = running();
        slot.on(ended(1, Outcome::Finished), at(1));
        assert!(!slot.intent(at(1)).compete);
    }

    #[test]
    fn a_write_that_may_still_land_leaves_the_lease_to_expire() {
        let mut slot = stopped(at(1));
        slot.on(Event::Ended { term: 1, outcome: Outcome::Finished, unanswered: true }, at(2));
        assert_eq!(slot.intent(at(2)), Intent { ended: 1, abandoned: 1, ..Intent::default() });
    }

    #[test]
    fn a_grant_that_comes_too_late_is_given_back_without_work() {
        let mut slot = runnable();
        slot.on(Event::Stop, at(0));
        assert_eq!(slot.on(leading(1), at(1)), None);
        assert_eq!(slot.intent(at(1)).ended, 1);
        assert_eq!(slot.state(), State::Idle);
    }

    #[test]
    fn a_kind_that_becomes_blocked_drains_and_competes_no_more() {
        let mut slot = running();
        assert_eq!(slot.on(Event::Runnable(false), at(1)), Some(Command::Drain));
        slot.on(ended(1, Outcome::Finished), at(2));
        assert!(!slot.intent(at(2)).compete);
    }
}
