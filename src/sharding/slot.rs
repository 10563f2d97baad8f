//! One shard's term on this replica: decides when its work starts, drains, is aborted, and what the election may do meanwhile.
//!
//! Pure: it is told what happened and answers with a [`Command`] for the supervisor and an [`Intent`] for the election.

use std::time::Duration;

use super::{
    election::{Grant, Intent, Standing},
    moment::Moment,
};

/// How a term's task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The term's task has ended. `unanswered`: a write of it may still be carried out.
    Ended {
        /// Number of the term.
        term: u64,
        /// How it ended.
        outcome: Outcome,
        /// A write of it may still be carried out.
        unanswered: bool,
    },
    /// The kind can be reconciled here, or it cannot.
    Runnable(bool),
    /// The process is to stop.
    Stop,
    /// The process is to stop now.
    Abort,
    /// Time has passed.
    Tick,
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
}

/// What the slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Debug)]
pub struct Slot {
    drain_timeout: Duration,
    work: Work,
    intent: Intent,
    runnable: bool,
    stopping: bool,
    failures: u32,
    cooling_until: Moment,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Idle,
    Running { term: u64, since: Moment },
    Draining { term: u64, since: Moment, deadline: Moment },
    Aborting { term: u64, since: Moment, give_up: Moment },
}

/// An aborted task ends at its next await. One that has not ended by then runs code that nothing can stop.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// First pause after a failed term; it doubles with each further failure.
const COOL_DOWN: Duration = Duration::from_secs(1);
/// The longest pause after a failed term.
const COOL_DOWN_MOST: Duration = Duration::from_secs(300);
/// A term that lasted this long clears the failures before it.
const PROVEN: Duration = Duration::from_secs(600);

impl Slot {
    /// An idle slot of a kind not known to be runnable. `drain_timeout`: how long a drain may take.
    pub fn new(drain_timeout: Duration) -> Self {
        Self {
            drain_timeout,
            work: Work::Idle,
            intent: Intent::default(),
            runnable: false,
            stopping: false,
            failures: 0,
            cooling_until: Moment::default(),
        }
    }

    /// What the election may do.
    pub fn intent(&self, now: Moment) -> Intent {
        Intent { compete: self.runnable && !self.stopping && now >= self.cooling_until, ..self.intent }
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

    /// Until when the kind cools down after a failure, if it does.
    pub fn cooling_until(&self, now: Moment) -> Option<Moment> {
        (now < self.cooling_until).then_some(self.cooling_until)
    }

    /// When to send [`Event::Tick`] if nothing else happens.
    pub fn next_wake(&self, now: Moment) -> Moment {
        let work = match self.work {
            Work::Draining { deadline, .. } => deadline,
            Work::Aborting { term, give_up, .. } if self.intent.abandoned < term => give_up,
            _ => Moment::NEVER,
        };
        self.cooling_until(now).map_or(work, |cooled| work.min(cooled))
    }

    /// Takes in what happened.
    pub fn on(&mut self, event: Event, now: Moment) -> Option<Command> {
        match event {
            Event::Standing(standing) => self.on_standing(standing, now),
            Event::Ended { term, outcome, unanswered } => {
                self.on_ended(term, &outcome, unanswered, now);
                None
            }
            Event::Runnable(runnable) => {
                self.runnable = runnable;
                if runnable { None } else { self.drain(now, now + self.drain_timeout) }
            }
            Event::Stop => {
                self.stopping = true;
                self.drain(now, now + self.drain_timeout)
            }
            Event::Abort => {
                self.stopping = true;
                self.abort(now)
            }
            Event::Tick => self.on_tick(now),
        }
    }

    fn on_standing(&mut self, standing: Standing, now: Moment) -> Option<Command> {
        match (standing, self.work) {
            (Standing::Leading(grant), Work::Idle) if grant.term > self.intent.ended => {
                if self.intent(now).compete {
                    self.work = Work::Running { term: grant.term, since: now };
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
            self.cooling_until = now + COOL_DOWN.saturating_mul(1 << self.failures.min(16)).min(COOL_DOWN_MOST);
            self.failures += 1;
        } else if matches!(outcome, Outcome::Finished) {
            self.failures = 0;
        }
    }

    fn on_tick(&mut self, now: Moment) -> Option<Command> {
        match self.work {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharding::election::FencingToken;

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

    #[test]
    fn a_stop_drains_and_only_the_end_of_the_work_allows_the_release() {
        let mut slot = running();
        assert_eq!(slot.on(Event::Stop, at(1)), Some(Command::Drain));
        assert_eq!(slot.intent(at(1)), Intent { compete: false, ended: 0, abandoned: 0 });
        assert_eq!(slot.on(ended(1, Outcome::Finished), at(2)), None);
        assert_eq!(slot.intent(at(2)), Intent { compete: false, ended: 1, abandoned: 0 });
    }

    #[test]
    fn a_drain_that_takes_too_long_is_aborted_and_work_that_goes_on_is_abandoned() {
        let mut slot = running();
        slot.on(Event::Stop, at(1));
        assert_eq!(slot.next_wake(at(1)), at(6));
        assert_eq!(slot.on(Event::Tick, at(5)), None);
        assert_eq!(slot.on(Event::Tick, at(6)), Some(Command::Abort));
        assert_eq!(slot.intent(at(6)).abandoned, 0, "an aborted task ends at its next await");
        assert_eq!(slot.on(Event::Tick, at(8)), None);
        assert_eq!(slot.intent(at(8)), Intent { compete: false, ended: 0, abandoned: 1 });
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
        let mut slot = running();
        slot.on(Event::Stop, at(1));
        slot.on(Event::Ended { term: 1, outcome: Outcome::Finished, unanswered: true }, at(2));
        assert_eq!(slot.intent(at(2)), Intent { compete: false, ended: 1, abandoned: 1 });
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
