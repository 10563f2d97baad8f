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
