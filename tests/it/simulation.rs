//! Elections and slots of several replicas against a simulated API server: random schedules of crashes, pauses, slow,
//! lost and late requests, lagging watches, hands on the Lease, and clocks of unequal rates.
//!
//! After every event: never two valid terms, and no Lease released under running work. When the faults stop: exactly one
//! leader within the bound. A failure prints the seed and what happened.

use std::{fmt::Write as _, time::Duration};

use fastrand::Rng;
use leasehold::{
    config::Timings,
    protocol::{
        election::{Election, Intent, Observation, Proposal, Purpose, RELEASED, Standing, Step, Version},
        moment::Moment,
        slot::{Command, Event as Told, Outcome, Slot, State},
    },
};
use proptest::prelude::*;

use crate::timeline::{Global, SkewedClock, Timeline};

fn timings() -> Timings {
    Timings {
        lease_duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry_period: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
    }
}

/// What goes wrong in one run.
#[derive(Clone, Copy, Debug)]
struct Faults {
    /// Replicas die and come again under a new identity.
    crashes: bool,
    /// The Lease is deleted, cleared and given to others by hand.
    hands: bool,
}

struct Replica {
    alive: bool,
    generation: u64,
    clock: SkewedClock,
    election: Election,
    slot: Slot,
    intent: Intent,
    /// The term whose task runs.
    task: Option<u64>,
    paused_until: Global,
    cut_off_until: Global,
    woken_at: Global,
    sighted_at: Global,
    in_flight: Option<u64>,
    reported: (u8, u64),
}

#[derive(Clone, Debug)]
enum What {
    Wake { replica: usize, generation: u64 },
    Arrive { replica: usize, request: u64, proposal: Option<Proposal>, identity: String, answered: bool },
    Answer { replica: usize, request: u64, answer: Answer },
    TimeOut { replica: usize, request: u64, read: bool },
    Sight { replica: usize, generation: u64, lease: Option<Observation> },
    TaskEnds { replica: usize, term: u64, outcome: Outcome, unanswered: bool },
    Fault,
}

#[derive(Clone, Debug)]
enum Answer {
    Read(Option<Observation>),
    Written(Observation),
    Conflict,
}

struct World {
    rng: Rng,
    faults: Faults,
    calm: bool,
    time: Timeline<What>,
    version: u64,
    uid: u64,
    stored: Option<Observation>,
    replicas: Vec<Replica>,
    log: String,
    leaders_seen: u64,
}

impl World {
    fn new(seed: u64, count: usize, faults: Faults) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            faults,
            calm: false,
            time: Timeline::new(),
            version: 100,
            uid: 0,
            stored: None,
            replicas: Vec::new(),
            log: format!("seed {seed}, {count} replicas, {faults:?}\n"),
            leaders_seen: 0,
        };
        for _ in 0..count {
            let replica = world.new_replica(0);
            world.replicas.push(replica);
        }
        for replica in 0..count {
            world.wake(replica, 0);
        }
        world.time.at(5_000, What::Fault);
        world
    }

    fn new_replica(&mut self, generation: u64) -> Replica {
        let identity = format!("replica-{}", self.rng.u32(..));
        let mut slot = Slot::new(Duration::from_secs(5));
        let clock = SkewedClock::drawn(&mut self.rng);
        slot.on(Told::Runnable(true), clock.read(0));
        Replica {
            alive: true,
            generation,
            clock,
            election: Election::new(identity, timings()),
            slot,
            intent: Intent::default(),
            task: None,
            paused_until: 0,
            cut_off_until: 0,
            woken_at: 0,
            sighted_at: 0,
            in_flight: None,
            reported: (0, 0),
        }
    }

    fn wake(&mut self, replica: usize, after: Global) {
        let generation = self.replicas[replica].generation;
        self.time.at(self.time.now + after, What::Wake { replica, generation });
    }

    fn note(&mut self, text: std::fmt::Arguments<'_>) {
        let _infallible = writeln!(self.log, "{:>8.3} {text}", self.time.now as f64 / 1000.0);
    }

    fn local(&self, replica: usize) -> Moment {
        self.replicas[replica].clock.read(self.time.now)
    }

    fn global_after(&self, replica: usize, at: Moment) -> Global {
        self.replicas[replica].clock.until(at, self.time.now)
    }

    fn run(&mut self, until: Global) {
        while let Some(what) = self.time.pop(until) {
            self.handle(what);
            self.check();
        }
        self.check();
    }

    fn check(&self) {
        let valid: Vec<_> = (0..self.replicas.len())
            .filter(|&r| self.replicas[r].alive)
            .filter(|&r| self.replicas[r].election.standing(self.local(r)) != Standing::Standby)
            .collect();
        assert!(valid.len() <= 1, "two valid terms: replicas {valid:?} at {} ms\n{}", self.time.now, self.log);
    }

    /// A paused replica handles nothing; what was meant for it comes when it goes on.
    fn held_up(&mut self, replica: usize, what: &What) -> bool {
        let until = self.replicas[replica].paused_until;
        if self.time.now < until {
            self.time.at(until, what.clone());
            return true;
        }
        false
    }

    fn handle(&mut self, what: What) {
        match &what {
            What::Arrive { replica, request, proposal, identity, answered } => {
                self.arrive(*replica, *request, proposal.clone(), identity, *answered);
            }
            What::Fault => self.fault(),
            What::Wake { replica, generation } | What::Sight { replica, generation, .. }
                if self.replicas[*replica].generation != *generation || !self.replicas[*replica].alive => {}
            What::Wake { replica, .. } => {
                if !self.held_up(*replica, &what) {
                    self.step(*replica);
                }
            }
            What::Sight { replica, lease, .. } => {
                if !self.held_up(*replica, &what) && self.time.now >= self.replicas[*replica].cut_off_until {
                    let now = self.local(*replica);
                    self.replicas[*replica].election.sighted(now, lease.clone());
                    self.settle(*replica);
                    self.wake(*replica, 0);
                }
            }
            What::Answer { replica, request, answer } => {
                if self.replicas[*replica].in_flight == Some(*request) && !self.held_up(*replica, &what) {
                    self.replicas[*replica].in_flight = None;
                    let now = self.local(*replica);
                    let election = &mut self.replicas[*replica].election;
                    match answer.clone() {
                        Answer::Read(lease) => election.read(now, lease),
                        Answer::Written(lease) => election.written(now, lease),
                        Answer::Conflict => election.conflicted(now),
                    }
                    self.settle(*replica);
                    self.wake(*replica, 0);
                }
            }
            What::TimeOut { replica, request, read } => {
                if self.replicas[*replica].in_flight == Some(*request) && !self.held_up(*replica, &what) {
                    self.replicas[*replica].in_flight = None;
                    let now = self.local(*replica);
                    let election = &mut self.replicas[*replica].election;
                    if *read {
                        election.read_failed(now)
                    } else {
                        election.unknown(now)
                    }
                    self.settle(*replica);
                    self.wake(*replica, 0);
                }
            }
            What::TaskEnds { replica, term, outcome, unanswered } => {
                if self.replicas[*replica].task == Some(*term) && !self.held_up(*replica, &what) {
                    self.replicas[*replica].task = None;
                    self.tell(*replica, Told::Ended { term: *term, outcome: outcome.clone(), unanswered: *unanswered });
                    self.wake(*replica, 0);
                }
            }
        }
    }

    /// What the supervisor does when the elector reports.
    fn settle(&mut self, replica: usize) {
        let standing = self.replicas[replica].election.standing(self.local(replica));
        let phase = match &standing {
            Standing::Standby => (0, 0),
            Standing::Leading(grant) => (1, grant.term),
            Standing::Losing(grant) => (2, grant.term),
        };
        if phase != self.replicas[replica].reported {
            self.replicas[replica].reported = phase;
            self.note(format_args!("replica {replica} {standing:?}"));
            self.tell(replica, Told::Standing(standing));
        }
        self.tell(replica, Told::Tick);
    }

    fn tell(&mut self, replica: usize, told: Told) {
        let now = self.local(replica);
        let command = self.replicas[replica].slot.on(told, now);
        let term = self.replicas[replica].task;
        match (command, term) {
            (Some(Command::Start(grant)), _) => {
                assert!(term.is_none(), "a term begins while the last one runs\n{}", self.log);
                self.replicas[replica].task = Some(grant.term);
                self.leaders_seen += 1;
                // Now and then a term fails by itself.
                if !self.calm && self.rng.u8(..) < 60 {
                    let outcome = Outcome::Failed("it happens".to_owned());
                    let at = self.time.now + self.rng.u64(0..30_000);
                    let unanswered = self.flip(20);
                    self.time.at(at, What::TaskEnds { replica, term: grant.term, outcome, unanswered });
                }
            }
            (Some(Command::Drain), Some(term)) => {
                let at = self.time.now + if self.flip(200) { self.rng.u64(0..2_000) } else { 600_000 };
                let unanswered = self.flip(20);
                self.time.at(at, What::TaskEnds { replica, term, outcome: Outcome::Finished, unanswered });
            }
            (Some(Command::Abort), Some(term)) => {
                let at = self.time.now + if self.flip(220) { self.rng.u64(0..10) } else { self.rng.u64(0..60_000) };
                let unanswered = self.flip(60);
                self.time.at(at, What::TaskEnds { replica, term, outcome: Outcome::Aborted, unanswered });
            }
            _ => {}
        }
        let intent = self.replicas[replica].slot.intent(now);
        self.replicas[replica].intent = intent.clone();
        self.replicas[replica].election.intend(intent);
    }

    fn flip(&mut self, of_256: u8) -> bool {
        self.rng.u8(..) < of_256
    }

    fn step(&mut self, replica: usize) {
        self.settle(replica);
        let now = self.local(replica);
        if self.replicas[replica].in_flight.is_none() {
            let patience = Duration::from_millis(self.rng.u64(0..2_000));
            let watched = self.time.now >= self.replicas[replica].cut_off_until && !self.flip(30);
            let subject = &mut self.replicas[replica];
            subject.election.set_watched(watched);
            subject.election.intend(Intent { patience, ..subject.intent.clone() });
            match subject.election.step(now) {
                Step::Wait(_) => {}
                Step::Read => self.send(replica, None),
                Step::Write(proposal) => {
                    if proposal.purpose == Purpose::Release {
                        assert_eq!(subject.task, None, "released while its work runs\n{}", self.log);
                    }
                    self.send(replica, Some(proposal));
                }
            }
            self.settle(replica);
        }
        // Woken again and again: spurious wakes are harmless, and lost ones would be found by the bound.
        let subject = &self.replicas[replica];
        let next = subject.slot.next_wake(now).min(subject.election.next_change(now));
        let after = self.global_after(replica, next).min(200);
        if self.replicas[replica].woken_at < self.time.now + after.min(100) {
            self.replicas[replica].woken_at = self.time.now + after;
            self.wake(replica, after);
        }
    }

    fn send(&mut self, replica: usize, proposal: Option<Proposal>) {
        let request = self.time.number();
        let read = proposal.is_none();
        self.replicas[replica].in_flight = Some(request);
        let timeout = (2_000.0 / self.replicas[replica].clock.rate) as u64;
        self.time.at(self.time.now + timeout, What::TimeOut { replica, request, read });
        let (mut delay, mut answered) = (self.rng.u64(1..20), true);
        if !self.calm {
            if self.time.now < self.replicas[replica].cut_off_until {
                // Cut off: most are lost, some land late without an answer.
                if self.flip(200) {
                    return;
                }
                (delay, answered) = (self.rng.u64(0..8_000), false);
            } else if self.flip(60) {
                (delay, answered) = (self.rng.u64(0..5_000), self.flip(128));
            }
        }
        let identity = format!("{:?}", self.replicas[replica].election);
        let identity = identity.split('"').nth(1).unwrap().to_owned();
        self.time.at(self.time.now + delay, What::Arrive { replica, request, proposal, identity, answered });
    }

    fn arrive(&mut self, replica: usize, request: u64, proposal: Option<Proposal>, identity: &str, answered: bool) {
        let answer = match proposal {
            None => Answer::Read(self.stored.clone()),
            Some(proposal) => {
                let current = self.stored.as_ref().map(|stored| stored.version.clone());
                if current == proposal.basis {
                    let release = proposal.purpose == Purpose::Release;
                    let holder = (!release).then(|| identity.to_owned());
                    let duration = Some(if release { RELEASED } else { timings().lease_duration });
                    let uid = current.map(|version| version.uid).unwrap_or_else(|| {
                        self.uid += 1;
                        self.uid.to_string()
                    });
                    self.note(format_args!("stored {:?} by {identity}", proposal.purpose));
                    self.store(Some((uid, holder, duration, proposal.transitions)));
                    Answer::Written(self.stored.clone().unwrap())
                } else {
                    Answer::Conflict
                }
            }
        };
        if answered {
            let late = if self.calm || !self.flip(40) { self.rng.u64(1..20) } else { self.rng.u64(0..4_000) };
            self.time.at(self.time.now + late, What::Answer { replica, request, answer });
        }
    }

    fn store(&mut self, lease: Option<(String, Option<String>, Option<Duration>, i32)>) {
        self.version += 1;
        let version = self.version.to_string();
        self.stored = lease.map(|(uid, holder, duration, transitions)| Observation {
            version: Version { uid, resource_version: version },
            holder,
            duration,
            transitions,
            successor: None,
        });
        for replica in 0..self.replicas.len() {
            let lag = if self.calm || !self.flip(20) { self.rng.u64(1..15) } else { self.rng.u64(0..3_000) };
            let (generation, lease) = (self.replicas[replica].generation, self.stored.clone());
            // A watch lags, and keeps its order.
            let at = (self.time.now + lag).max(self.replicas[replica].sighted_at);
            self.replicas[replica].sighted_at = at;
            self.time.at(at, What::Sight { replica, generation, lease });
        }
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let replica = self.rng.usize(0..self.replicas.len());
        match self.rng.u8(0..10) {
            0 | 1 if self.faults.crashes => {
                self.note(format_args!("replica {replica} crashes"));
                let generation = self.replicas[replica].generation + 1;
                self.replicas[replica] = self.new_replica(generation);
                let wait = self.rng.u64(0..10_000);
                self.replicas[replica].paused_until = self.time.now + wait;
                self.wake(replica, wait);
            }
            2 | 3 => {
                let pause = self.rng.u64(100..40_000);
                self.note(format_args!("replica {replica} is paused for {pause} ms"));
                self.replicas[replica].paused_until = self.time.now + pause;
                self.wake(replica, pause);
            }
            4 | 5 => {
                let cut = self.rng.u64(100..40_000);
                self.note(format_args!("replica {replica} is cut off for {cut} ms"));
                self.replicas[replica].cut_off_until = self.time.now + cut;
            }
            // A replica that never saw the Lease cannot know what was deleted: README, what it does not promise.
            6 if self.faults.hands && self.replicas.iter().all(|replica| replica.election.exists()) => {
                self.note(format_args!("a hand deletes the Lease"));
                self.store(None);
            }
            7 => {
                if let Some(stored) = self.stored.clone() {
                    self.note(format_args!("a hand labels the Lease"));
                    self.store(Some((stored.version.uid, stored.holder, stored.duration, stored.transitions)));
                }
            }
            8 if self.faults.hands && self.replicas.iter().all(|replica| replica.election.exists()) => {
                if let Some(stored) = self.stored.clone() {
                    let holder = self.flip(128).then(|| "a hand".to_owned());
                    self.note(format_args!("a hand makes the holder {holder:?}"));
                    self.store(Some((
                        stored.version.uid,
                        holder,
                        stored.duration.map(|_| Duration::from_secs(15)),
                        stored.transitions,
                    )));
                }
            }
            _ => {
                self.note(format_args!("replica {replica} learns that its kind is blocked, then not"));
                self.tell(replica, Told::Runnable(false));
                self.tell(replica, Told::Runnable(true));
                self.wake(replica, 0);
            }
        }
        let next = self.time.now + self.rng.u64(200..12_000);
        self.time.at(next, What::Fault);
    }

    fn calm_down(&mut self) {
        self.note(format_args!("the faults stop"));
        self.calm = true;
        for replica in 0..self.replicas.len() {
            self.replicas[replica].paused_until = self.time.now;
            self.replicas[replica].cut_off_until = self.time.now;
            // Work that would hang for ever hangs no longer.
            if let Some(term) = self.replicas[replica].task
                && self.replicas[replica].slot.state() != State::Running
            {
                self.time
                    .at(self.time.now, What::TaskEnds { replica, term, outcome: Outcome::Aborted, unanswered: false });
            }
            let now = self.local(replica);
            self.replicas[replica].election.sighted(now, self.stored.clone());
            self.replicas[replica].woken_at = 0;
            self.wake(replica, 0);
        }
    }
}

/// When faults stop, somebody leads within: what is left of a lease and of a barrier, each a duration, one failed request
/// and its pause, the patience, and the drain of a term that was being lost; kinds that cool down everywhere do so first.
const BOUND_MS: Global = 15_300 * 2 + 4_000 + 2_000 + 5_000;

fn play(seed: u64, replicas: usize, faults: Faults) {
    let mut world = World::new(seed, replicas, faults);
    world.run(180_000);
    world.calm_down();
    let calm = world.time.now;
    let cooling = |r: usize| {
        let now = world.local(r);
        world.replicas[r].slot.cooling_until(now).map_or(0, |until| world.global_after(r, until))
    };
    let bound = BOUND_MS + (0..replicas).map(cooling).min().unwrap_or(0);
    let mut led_after = None;
    while world.time.now < calm + bound {
        let until = world.time.now + 100;
        world.run(until);
        let leading = (0..world.replicas.len())
            .filter(|&r| {
                matches!(world.replicas[r].election.standing(world.local(r)), Standing::Leading(_))
                    && world.replicas[r].task.is_some()
            })
            .count();
        if leading == 1 {
            led_after = Some(world.time.now - calm);
            break;
        }
    }
    assert!(led_after.is_some(), "nobody leads {bound} ms after the faults stopped\n{}", world.log);
    assert!(world.leaders_seen > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_valid_terms_whatever_crashes_pauses_and_gets_lost(seed: u64, replicas in 2usize..5) {
        play(seed, replicas, Faults { crashes: true, hands: false });
    }

    #[test]
    fn never_two_valid_terms_whatever_hands_do_to_the_lease(seed: u64, replicas in 2usize..5) {
        play(seed, replicas, Faults { crashes: false, hands: true });
    }
}

/// Plays one seed again, as a failure printed it: `SEED=… REPLICAS=… HANDS=1 cargo test --test it again`.
#[test]
fn again() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let Some(seed) = number("SEED") else { return };
    let hands = number("HANDS").is_some();
    play(seed, number("REPLICAS").map_or(2, |count| count as usize), Faults { crashes: !hands, hands });
}
