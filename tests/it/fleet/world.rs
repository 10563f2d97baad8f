//! Time, and what connects the processes, the network, the kubelet and the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    ops::Range,
};

use fastrand::Rng;
use leasehold::protocol::{
    event::{
        Answer, Deaths, Effect, Ending, Event, Freed, Hearing, KindIndex, Notice, Request, RequestId, ShardIndex,
        TermNumber, Verdict,
    },
    moment::Moment,
    replica::Replica,
    slot::{Outcome, State},
};

use super::{
    faults::Fault,
    host::{Host, Kind, LEASE, Task, Template, pod_uid},
    judge::Judge,
    server::{Server, Shown},
    stranger::Stranger,
};
use crate::timeline::{Global, MILLI, SECOND, SkewedClock, Timeline};

/// What is to happen.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
pub(super) enum What {
    /// A process goes on with what waits for it.
    Turn(usize),
    Wakes(usize),
    Happens(usize, Event),
    Arrives {
        host: usize,
        id: RequestId,
        request: Box<Request>,
        deadline: Global,
        answered: bool,
    },
    Answers {
        host: usize,
        id: RequestId,
        answer: Box<Answer>,
    },
    TimesOut {
        host: usize,
        id: RequestId,
    },
    Shows {
        host: usize,
        number: u64,
        shown: Shown,
    },
    Lists {
        host: usize,
        number: u64,
    },
    Breaks {
        host: usize,
        number: u64,
    },
    StandbyFills {
        host: usize,
        shard: ShardIndex,
        term: TermNumber,
        error: bool,
    },
    TaskEnds {
        host: usize,
        shard: ShardIndex,
        term: TermNumber,
        outcome: Outcome,
        unanswered: bool,
    },
    TaskHears {
        host: usize,
        shard: ShardIndex,
        term: TermNumber,
        hears: bool,
    },
    /// The kubelet says so.
    Proves {
        identity: String,
        pod: String,
        goes_on: bool,
    },
    HearsOfDeaths(usize),
    Joins(Box<Template>),
    Restarts {
        host: usize,
        in_process: bool,
    },
    Stutters(usize),
    Allows {
        host: usize,
        kind: String,
    },
    Stranger(usize),
    Fault(usize),
}

/// What goes wrong at random, by its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// Requests are lost, late, refused, or carried out without an answer.
    pub(super) requests: bool,
    /// Watches say things twice.
    pub(super) watches: bool,
    /// Work fails, hangs, or cannot be stopped; caches are not filled.
    pub(super) tasks: bool,
    /// A process stalls between two things that it does.
    pub(super) stalls: bool,
}

/// A term that has begun.
#[derive(Clone, Debug)]
pub(super) struct Began {
    pub(super) at: Global,
    pub(super) kind: String,
    pub(super) host: usize,
    /// Its holder was there and able, and gave it away all the same.
    pub(super) for_balance: bool,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) time: Timeline<What>,
    pub(super) server: Server,
    pub(super) hosts: Vec<Host>,
    pub(super) strangers: Vec<Stranger>,
    pub(super) judge: Judge,
    pub(super) trouble: Trouble,
    /// Every watch lags by so much, until then.
    pub(super) all_lag: (Global, Range<Global>),
    /// No cache is ever filled.
    pub(super) lazy: bool,
    /// What the preflights of replicas that start ask is answered.
    pub(super) answers: bool,
    /// The kubelet's word reaches the replicas.
    pub(super) witnessed: bool,
    /// By identity of a process that has ended: the uid of its Pod.
    pub(super) ended: BTreeMap<String, String>,
    pub(super) restarted: BTreeMap<String, String>,
    /// A record was lost by hand: what starts before cannot know of it.
    pub(super) no_start_before: Global,
    /// Of the rollouts so far, also of those whose first Pod has not started.
    pub(super) last_revision: u64,
    /// Until when replicas that saw a duration which a hand has lengthened may leave what they are given.
    pub(super) counted_until: Global,
    /// What goes wrong, and which of it is left out.
    pub(super) faults: Vec<Fault>,
    pub(super) skip: BTreeSet<usize>,
    pub(super) terms: Vec<Began>,
    /// By identity: until when a replica is not chosen, because it did not take what it was given.
    pub(super) avoided: BTreeMap<String, Global>,
    /// When something changed that a move may answer to.
    pub(super) changes: Vec<Global>,
    /// How often things have happened.
    pub(super) seen: BTreeMap<&'static str, u64>,
    /// What has happened, if that is wanted.
    pub(super) log: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, skip: BTreeSet<usize>, with_log: bool) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            time: Timeline::new(),
            server: Server::default(),
            hosts: Vec::new(),
            strangers: Vec::new(),
            judge: Judge::default(),
            trouble: Trouble::default(),
            all_lag: (0, 0..1),
            lazy: false,
            answers: true,
            witnessed: true,
            ended: BTreeMap::new(),
            restarted: BTreeMap::new(),
            no_start_before: 0,
            last_revision: 1,
            counted_until: 0,
            faults: Vec::new(),
            skip,
            terms: Vec::new(),
            avoided: BTreeMap::new(),
            changes: Vec::new(),
            seen: BTreeMap::new(),
            log: with_log.then(String::new),
        }
    }

    pub(super) fn now(&self) -> Global {
        self.time.now
    }

    pub(super) fn at(&mut self, at: Global, what: What) {
        self.time.at(at, what);
    }

    pub(super) fn local(&self, host: usize) -> Moment {
        self.hosts[host].clock.read(self.time.now)
    }

    pub(super) fn note(&mut self, text: std::fmt::Arguments<'_>) {
        if let Some(log) = &mut self.log {
            let _infallible = writeln!(log, "{:>10.4} {text}", self.time.now as f64 / SECOND as f64);
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(super) fn add(&mut self, what: &'static str, number: u64) {
        *self.seen.entry(what).or_default() += number;
    }

    pub(super) fn flip(&mut self, of_256: u8) -> bool {
        self.rng.u8(..) < of_256
    }

    /// Something happens at that time, now or later, that a move for balance may be the answer to.
    pub(super) fn changed(&mut self, at: Global) {
        self.changes.push(at);
    }

    /// By how much every watch lags, if that is so now.
    pub(super) fn lag(&self) -> Option<Range<Global>> {
        (self.time.now < self.all_lag.0).then(|| self.all_lag.1.clone())
    }

    // Time.

    pub(super) fn run(&mut self, until: Global) {
        while let Some(what) = self.time.pop(until) {
            self.handle(what);
        }
    }

    pub(super) fn run_for(&mut self, time: Global) {
        self.run(self.time.now + time);
    }

    fn handle(&mut self, what: What) {
        match what {
            What::Turn(host) => {
                if self.hosts[host].turn_at <= self.time.now {
                    self.hosts[host].turn_at = 0;
                    self.turn(host);
                }
            }
            What::Wakes(host) => self.wake(host),
            What::Happens(host, event) => self.deliver(host, event),
            What::Arrives { host, id, request, deadline, answered } => {
                self.arrive(host, id, *request, deadline, answered);
            }
            What::Answers { host, id, answer } => self.answer(host, id, *answer),
            What::TimesOut { host, id } => self.time_out(host, id),
            What::Shows { host, number, shown } => self.shows(host, number, shown),
            What::Lists { host, number } => self.list(host, number),
            What::Breaks { host, number } => {
                if self.hosts[host].alive && self.hosts[host].line.number == number {
                    self.fail_watch(host);
                }
            }
            What::StandbyFills { host, shard, term, error } => self.standby_fills(host, shard, term, error),
            What::TaskEnds { host, shard, term, outcome, unanswered } => {
                self.task_ends(host, shard, term, outcome, unanswered);
            }
            What::TaskHears { host, shard, term, hears } => self.task_hears(host, shard, term, hears),
            What::Proves { identity, pod, goes_on } => {
                self.note(format_args!("the kubelet says that {identity} has ended"));
                let uid = pod_uid(&pod);
                if goes_on {
                    self.restarted.insert(identity, uid);
                } else {
                    self.ended.insert(identity, uid);
                }
                self.spread_proofs();
            }
            What::HearsOfDeaths(host) => {
                let of = |deaths: &BTreeMap<String, String>| {
                    deaths.iter().map(|(identity, uid)| (identity.clone(), Some(uid.clone()))).collect()
                };
                let deaths = Deaths { ended: of(&self.ended), restarted: of(&self.restarted) };
                self.deliver(host, Event::Died(deaths));
            }
            What::Joins(template) => {
                self.join(&template);
            }
            What::Restarts { host, in_process } => self.restart_now(host, in_process),
            What::Stutters(host) => self.stutter(host),
            What::Allows { host, kind } => self.allow(host, &kind),
            What::Stranger(number) => self.stranger_acts(number),
            What::Fault(index) => self.strike(index),
        }
    }

    // A process at work.

    pub(super) fn deliver(&mut self, host: usize, event: Event) {
        if self.hosts[host].alive {
            self.hosts[host].inbox.push_back(event);
            self.turn(host);
        }
    }

    /// Does what it has decided, and then takes in what has come, one after the other, unless it is paused or busy.
    fn turn(&mut self, host: usize) {
        loop {
            let now = self.time.now;
            let it = &mut self.hosts[host];
            let waits = !it.undone.is_empty() || !it.inbox.is_empty();
            if !it.alive || !waits {
                return;
            }
            let free_at = it.paused_until.max(it.busy_until);
            if now < free_at {
                if it.turn_at == 0 || free_at < it.turn_at {
                    it.turn_at = free_at;
                    self.at(free_at, What::Turn(host));
                }
                return;
            }
            if let Some(effect) = it.undone.pop_front() {
                self.carry_out(host, effect);
                self.stalls(host);
                continue;
            }
            let Some(event) = it.inbox.pop_front() else { return };
            if let Event::Judged(kind, verdict) = &event {
                let kind = it.template.kinds[*kind].name.clone();
                match verdict {
                    Verdict::Runnable => it.blocked.remove(&kind),
                    Verdict::Blocked(_) => it.blocked.insert(kind),
                    Verdict::Unknown(_) => false,
                };
            }
            it.decided_at = it.clock.read(now);
            it.undone = it.replica.on(event, it.decided_at).into();
            let shut = it.replica.shards().iter().position(|shard| !shard.is_open(it.decided_at));
            self.demand(shut.is_none(), || {
                format!("{} waits for the end of a term of {shut:?} that has not begun", self.name(host))
            });
            let it = &mut self.hosts[host];
            // No two looks at the clock show the same.
            it.busy_until = now + if self.rng.u8(..) == 0 { self.rng.u64(1..3_000) } else { self.rng.u64(1..60) };
            self.stalls(host);
            self.plan_wake(host);
        }
    }

    /// It may stop at any point, for any time.
    fn stalls(&mut self, host: usize) {
        if self.trouble.stalls && !self.hosts[host].undone.is_empty() && self.rng.u16(..) < 40 {
            let most = [20, 1_000, 6_000, 30_000][self.rng.usize(0..4)];
            let time = self.rng.u64(1..most) * MILLI;
            let next = self.hosts[host].undone.front().map(|effect| format!("{effect:?}")).unwrap_or_default();
            self.note(format_args!("{} stalls for {} ms before {next:.60}", self.name(host), time / MILLI));
            self.count("stall between effects");
            self.pause(host, time);
        }
    }

    fn plan_wake(&mut self, host: usize) {
        let now = self.time.now;
        let it = &mut self.hosts[host];
        let due = it.replica.next_wake();
        if due == Moment::NEVER {
            return;
        }
        // Timers are late, and now and then they are early.
        let at = now + it.clock.until(due, now) + 1 + self.rng.u64(0..300);
        if at < it.wakes_at || it.wakes_at <= now {
            it.wakes_at = at;
            self.at(at, What::Wakes(host));
        }
    }

    fn wake(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if !it.alive {
            return;
        }
        if it.wakes_at <= self.time.now {
            it.wakes_at = Global::MAX;
        }
        let due = it.replica.next_wake() <= it.clock.read(self.time.now);
        if !due && self.rng.u8(..) > 2 {
            self.hosts[host].spins = 0;
            return self.plan_wake(host);
        }
        let waits = self.hosts[host].inbox.contains(&Event::Woken);
        if waits {
            return;
        }
        self.hosts[host].spins += u32::from(due);
        self.demand(self.hosts[host].spins < 1_000, || format!("{} is woken without an end", self.name(host)));
        self.deliver(host, Event::Woken);
        self.plan_wake(host);
    }

    fn carry_out(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Send(id, request) => self.send(host, id, request),
            Effect::Extend(shard, term, until) => {
                let it = &mut self.hosts[host];
                if !it.shut.contains(&(shard, term)) {
                    let fence = it.fences.entry((shard, term)).or_default();
                    *fence = until.max(*fence);
                    self.check_fence(host, shard, until);
                }
            }
            Effect::Shut(shard, term) => {
                let it = &mut self.hosts[host];
                it.fences.remove(&(shard, term));
                it.shut.insert((shard, term));
            }
            Effect::StandBy(shard, term) => self.stand_by(host, shard, term),
            Effect::Dismiss(shard, term) => {
                let standbys = &mut self.hosts[host].standbys;
                if standbys.get(&shard).is_some_and(|(number, _)| *number == term) {
                    standbys.remove(&shard);
                }
            }
            Effect::Start { shard, grant, standby } => {
                self.check_start(host, shard, grant.term, standby);
                self.start_task(host, shard, grant.term, standby);
            }
            Effect::Drain(shard, term) => {
                let manner = if self.trouble.tasks && !self.flip(220) { 600_000 } else { 1_000 };
                let took = if manner > 1_000 { manner } else { self.rng.u64(0..manner) };
                self.asked_to_end(host, shard, term, took * MILLI, Outcome::Finished);
            }
            Effect::Abort(shard, term) => {
                let blocks = self.trouble.tasks && !self.flip(230);
                let took = if blocks { self.rng.u64(0..60_000) } else { self.rng.u64(0..10) };
                self.asked_to_end(host, shard, term, took * MILLI, Outcome::Aborted);
            }
            Effect::Ask(kind) => self.ask_preflight(host, kind),
            Effect::Note(notice) => self.take_note(host, &notice),
            Effect::Exit(ending) => self.exit(host, &ending),
        }
    }

    fn ask_preflight(&mut self, host: usize, kind: KindIndex) {
        let name = &self.hosts[host].template.kinds[kind].name;
        let is_blocked = [&self.hosts[host].blocked, &self.hosts[host].denied].iter().any(|kinds| kinds.contains(name));
        let verdict = if is_blocked { Verdict::Blocked("its CRD is missing".to_owned()) } else { Verdict::Runnable };
        let wait = self.rng.u64(5..500) * MILLI;
        self.at(self.time.now + wait, What::Happens(host, Event::Judged(kind, verdict)));
    }

    fn take_note(&mut self, host: usize, notice: &Notice) {
        match notice {
            Notice::Acquired { how, .. } => self.count(match how {
                Freed::Missing => "acquired: missing",
                Freed::Released => "acquired: released",
                Freed::Expired => "acquired: expired",
                Freed::ProvenDead => "acquired: proven dead",
                Freed::Ours => "acquired: ours",
            }),
            Notice::Lost(..) => self.count("lost"),
            Notice::Missed { replica, avoided_for, .. } => {
                self.count("missed");
                let until = self.time.now + self.hosts[host].clock.global(*avoided_for);
                let avoided = self.avoided.entry(replica.clone()).or_default();
                *avoided = until.max(*avoided);
                // What was to go there goes elsewhere, and is evened out.
                self.changed(self.time.now);
            }
            Notice::Rival(_, Some(_)) => self.count("rival"),
            Notice::Odd { .. } => self.count("odd"),
            Notice::Collected(..) => self.count("collected"),
            _ => {}
        }
        if self.log.is_some() && !matches!(notice, Notice::Renewed(..)) {
            self.note(format_args!("{}: {notice:?}", self.name(host)));
        }
    }

    fn exit(&mut self, host: usize, ending: &Ending) {
        let works = !self.hosts[host].tasks.is_empty();
        self.demand(*ending != Ending::Clean || !works, || format!("{} ends while it works", self.name(host)));
        self.note(format_args!("{} has stopped: {ending:?}", self.name(host)));
        self.count(match ending {
            Ending::Clean => "stopped clean",
            Ending::Unreleased(_) => "stopped unreleased",
            Ending::Undrained(_) => "stopped undrained",
            Ending::Lost { .. } => "ended at a loss",
        });
        if matches!(ending, Ending::Lost { .. }) {
            let open = !self.hosts[host].fences.is_empty();
            self.demand(!open, || format!("{} ends at a loss with a fence that is not shut", self.name(host)));
            let wait = self.rng.u64(100..1_000) * MILLI;
            return self.restart(host, wait);
        }
        self.dies(host, false);
    }

    // Work.

    fn stand_by(&mut self, host: usize, shard: ShardIndex, term: TermNumber) {
        let now = self.time.now;
        let it = &mut self.hosts[host];
        let known = it.standbys.insert(shard, (term, false));
        let (declines, unprepared) = (it.template.declines, now < it.weather.unprepared_until);
        self.demand(known.is_none(), || format!("{} stands by twice for {shard}", self.name(host)));
        if declines {
            let took = self.rng.u64(0..20) * MILLI;
            self.count("standby declined");
            return self.at(now + took, What::Happens(host, Event::StandbyDeclined(shard)));
        }
        self.deafen_later(host, shard, term);
        self.deny_later(host, shard, SECOND);
        let never = self.lazy || unprepared || (self.trouble.tasks && self.flip(30));
        let took = self.rng.u64(30..2_000) * MILLI;
        let error = self.trouble.tasks && self.flip(10);
        if !never {
            self.at(now + took, What::StandbyFills { host, shard, term, error });
        }
    }

    fn standby_fills(&mut self, host: usize, shard: ShardIndex, term: TermNumber, error: bool) {
        let it = &mut self.hosts[host];
        let Some(standby) = it.standbys.get_mut(&shard).filter(|(number, _)| *number == term) else { return };
        if error {
            it.standbys.remove(&shard);
            self.count("standby failed");
            let kind = self.hosts[host].last_kind_of(shard);
            self.deliver(host, Event::StandbyEnded(kind, term, "it happens".to_owned()));
        } else {
            standby.1 = true;
            self.deliver(host, Event::StandbyPrepared(shard, term));
        }
    }

    fn start_task(&mut self, host: usize, shard: ShardIndex, term: TermNumber, standby: Option<bool>) {
        let it = &mut self.hosts[host];
        if standby.is_some() {
            it.standbys.remove(&shard);
        }
        it.tasks.insert(shard, Task { term, hears: true, works: true });
        self.deafen_later(host, shard, term);
        self.deny_later(host, shard, SECOND);
        let fails = self.hosts[host].is_failing(shard);
        if fails || (self.trouble.tasks && self.flip(15)) {
            let took = self.rng.u64(0..3_000) * MILLI;
            self.fail_task(host, shard, term, took);
        }
    }

    fn fail_task(&mut self, host: usize, shard: ShardIndex, term: TermNumber, took: Global) {
        // It cools down, for longer each time.
        for wait in [0, 1, 3, 7] {
            self.changed(self.time.now + took + wait * SECOND);
        }
        let unanswered = self.trouble.tasks && self.flip(20);
        let outcome = Outcome::Failed("it happens".to_owned());
        self.at(self.time.now + took, What::TaskEnds { host, shard, term, outcome, unanswered });
    }

    fn asked_to_end(&mut self, host: usize, shard: ShardIndex, term: TermNumber, took: Global, outcome: Outcome) {
        let it = &mut self.hosts[host];
        let Some(task) = it.tasks.get_mut(&shard).filter(|task| task.term == term) else { return };
        task.works = false;
        let unanswered = self.trouble.tasks && self.flip(20);
        self.at(self.time.now + took, What::TaskEnds { host, shard, term, outcome, unanswered });
    }

    fn task_ends(&mut self, host: usize, shard: ShardIndex, term: TermNumber, outcome: Outcome, unanswered: bool) {
        let it = &mut self.hosts[host];
        if !it.alive || it.tasks.get(&shard).is_none_or(|task| task.term != term) {
            return;
        }
        if self.time.now < it.paused_until {
            let at = it.paused_until;
            return self.at(at, What::TaskEnds { host, shard, term, outcome, unanswered });
        }
        let fails = it.is_failing(shard);
        if matches!(outcome, Outcome::Failed(_)) && !fails && !self.trouble.tasks {
            // What was to go wrong does not, once the faults have stopped.
            return;
        }
        if matches!(outcome, Outcome::Failed(_)) && it.kinds_of(shard).len() > 1 {
            // One kind has failed; the others work on until they are told to end.
            let kind = it.last_kind_of(shard);
            self.count("kind of a group failed");
            return self.deliver(host, Event::TaskEnded(kind, term, outcome));
        }
        it.tasks.remove(&shard);
        if unanswered && let Some(until) = it.fences.get(&(shard, term)) {
            it.unanswered.insert(shard, *until);
            self.count("write unanswered");
        }
        self.count("term ended");
        self.deliver(host, Event::TermEnded { shard, term, outcome, unanswered });
    }

    /// What a term, or the standby for it, hears of its objects changes.
    pub(super) fn task_hears(&mut self, host: usize, shard: ShardIndex, term: TermNumber, hears: bool) {
        let it = &mut self.hosts[host];
        let stands_by = it.standbys.get(&shard).is_some_and(|(number, _)| *number == term);
        match it.tasks.get_mut(&shard).filter(|task| task.term == term) {
            Some(task) => task.hears = hears,
            None if stands_by => {}
            None => return,
        }
        // It is given up, and evened out, later.
        [0, 2, 10, 15].into_iter().for_each(|wait| self.changed(self.time.now + wait * SECOND));
        let hearing = if hears { Hearing::Hears } else { Hearing::Deaf("its watch has failed".to_owned()) };
        let kind = self.hosts[host].last_kind_of(shard);
        self.deliver(host, Event::Heard(kind, term, hearing));
    }

    /// The API server refuses all requests about the kind there. A watch that is up goes on for a while.
    pub(super) fn deny(&mut self, host: usize, kind: &str) {
        self.note(format_args!("{kind} is denied to {}", self.name(host)));
        self.count("denied");
        self.hosts[host].denied.insert(kind.to_owned());
        if let Some(shard) = self.hosts[host].shard_of(kind) {
            self.deny_later(host, shard, 15 * SECOND);
        }
    }

    /// It refuses them no more, and the preflight looks every few seconds at what is blocked.
    pub(super) fn allow(&mut self, host: usize, kind: &str) {
        if self.hosts[host].denied.remove(kind)
            && let Some(index) = self.hosts[host].template.kinds.iter().position(|it| it.name == *kind)
        {
            self.note(format_args!("{kind} is allowed to {}", self.name(host)));
            let wait = self.rng.u64(0..5_000) * MILLI;
            [0, wait, wait + 5 * SECOND].into_iter().for_each(|wait| self.changed(self.time.now + wait));
            self.at(self.time.now + wait, What::Happens(host, Event::Judged(index, Verdict::Runnable)));
        }
    }

    /// A term or a standby asks for what is denied.
    fn deny_later(&mut self, host: usize, shard: ShardIndex, within: Global) {
        let it = &self.hosts[host];
        let asks = it.tasks.contains_key(&shard) || it.standbys.contains_key(&shard);
        let kinds = it.template.kinds.iter();
        let denied = |kind: &Kind| it.shard_of(&kind.name) == Some(shard) && it.denied.contains(&kind.name);
        if let (true, Some(kind)) = (asks, kinds.clone().position(denied)) {
            let wait = self.rng.u64(0..within);
            [0, wait, wait + SECOND].into_iter().for_each(|wait| self.changed(self.time.now + wait));
            self.at(self.time.now + wait, What::Happens(host, Event::Denied(kind)));
        }
    }

    fn deafen_later(&mut self, host: usize, shard: ShardIndex, term: TermNumber) {
        if self.time.now < self.hosts[host].weather.deaf_until {
            let wait = self.rng.u64(0..1_000) * MILLI;
            self.at(self.time.now + wait, What::TaskHears { host, shard, term, hears: false });
        }
    }

    // Replicas come and go.

    pub(super) fn name(&self, host: usize) -> String {
        self.hosts[host].identity.clone()
    }

    /// A new Pod.
    pub(super) fn join(&mut self, template: &Template) -> Option<usize> {
        if self.time.now < self.no_start_before {
            self.at(self.no_start_before, What::Joins(Box::new(template.clone())));
            return None;
        }
        let number = self.time.number();
        let pod = format!("pod{number}");
        Some(self.start(template, &pod))
    }

    pub(super) fn join_later(&mut self, template: &Template, wait: Global) {
        self.at(self.time.now + wait, What::Joins(Box::new(template.clone())));
    }

    fn start(&mut self, template: &Template, pod: &str) -> usize {
        let now = self.time.now;
        let identity = format!("{pod}_{:04x}", self.rng.u16(..));
        let setup = template.setup(identity, pod);
        let clock = SkewedClock::drawn(&mut self.rng);
        self.note(format_args!("{} starts, of {}", setup.identity, template.name));
        self.count("start");
        let host = self.hosts.len();
        let (replica, effects) = Replica::new(setup.clone(), clock.read(now));
        self.hosts.push(Host::new(replica, &setup, template, clock));
        self.hosts[host].decided_at = clock.read(now);
        self.hosts[host].undone = effects.into();
        self.changed(now + 2 * SECOND);
        self.turn(host);
        self.plan_wake(host);
        let wait = self.rng.u64(10..300) * MILLI;
        self.at(now + wait, What::Lists { host, number: 0 });
        let wait = self.rng.u64(10..400) * MILLI;
        let Template { revision, owner, .. } = template.clone();
        self.at(now + wait, What::Happens(host, Event::Originated { revision, owner }));
        if let Some(replicas) = template.replicas {
            let wait = self.rng.u64(10..400) * MILLI;
            self.at(now + wait, What::Happens(host, Event::Expected(replicas)));
        }
        let asked = if self.answers { template.kinds.len() } else { 0 };
        for kind in 0..asked {
            let mut wait = self.rng.u64(20..500) * MILLI;
            if self.trouble.requests && self.flip(20) {
                let unknown = Verdict::Unknown("no answer".to_owned());
                self.at(now + wait, What::Happens(host, Event::Judged(kind, unknown)));
                wait += SECOND;
            }
            self.at(now + wait, What::Happens(host, Event::Judged(kind, Verdict::Runnable)));
        }
        if self.witnessed {
            self.at(now + 100 * MILLI, What::HearsOfDeaths(host));
        }
        host
    }

    /// What is known of where its Pod comes from has changed.
    pub(super) fn origin_changes(&mut self, host: usize) {
        let Template { revision, owner, .. } = self.hosts[host].template.clone();
        self.deliver(host, Event::Originated { revision, owner });
    }

    pub(super) fn terminate(&mut self, host: usize) {
        self.note(format_args!("{} is told to stop", self.name(host)));
        self.count("signal");
        self.changed(self.time.now);
        self.deliver(host, Event::Signalled);
    }

    /// Its process is gone, without a word.
    pub(super) fn crash(&mut self, host: usize) {
        self.note(format_args!("{} crashes", self.name(host)));
        self.count("crash");
        self.dies(host, false);
    }

    /// `goes_on`: its container is started again at once.
    fn dies(&mut self, host: usize, goes_on: bool) {
        let it = &mut self.hosts[host];
        it.alive = false;
        it.inbox.clear();
        it.undone.clear();
        it.tasks.clear();
        // Its silence is noticed when its Leases have expired.
        for wait in [0, LEASE, LEASE + 5 * SECOND] {
            self.changed(self.time.now + wait);
        }
        if self.witnessed {
            let wait = self.rng.u64(50..2_000) * MILLI;
            let (identity, pod) = (self.name(host), self.hosts[host].pod.clone());
            self.at(self.time.now + wait, What::Proves { identity, pod, goes_on });
        }
    }

    /// Its container starts again.
    pub(super) fn restart(&mut self, host: usize, wait: Global) {
        self.note(format_args!("{} crashes, and its container restarts", self.name(host)));
        self.count("restart");
        // The kubelet says so when it backs off.
        self.dies(host, wait < 3 * SECOND);
        self.at(self.time.now + wait, What::Restarts { host, in_process: false });
    }

    /// The program drops the replica and begins another in the same process: nothing of the old one can write any more,
    /// and no other process can tell.
    pub(super) fn restart_in_process(&mut self, host: usize, wait: Global) {
        self.note(format_args!("{} is dropped, and its process begins another", self.name(host)));
        self.count("restart in process");
        let witnessed = std::mem::replace(&mut self.witnessed, false);
        self.dies(host, false);
        self.witnessed = witnessed;
        self.at(self.time.now + wait, What::Restarts { host, in_process: true });
    }

    fn restart_now(&mut self, host: usize, in_process: bool) {
        if self.time.now < self.no_start_before {
            return self.at(self.no_start_before, What::Restarts { host, in_process });
        }
        let (mut template, pod) = (self.hosts[host].template.clone(), self.hosts[host].pod.clone());
        let identity = self.name(host);
        template.pod_lock &= !in_process;
        self.start(&template, &pod);
        if !in_process {
            self.restarted.insert(identity, pod_uid(&pod));
            self.spread_proofs();
        }
    }

    fn spread_proofs(&mut self) {
        for host in self.alive() {
            if self.witnessed {
                let wait = self.rng.u64(5..100) * MILLI;
                let at = (self.time.now + wait).max(self.hosts[host].weather.cut_until);
                self.changed(at);
                self.at(at, What::HearsOfDeaths(host));
            }
        }
    }

    pub(super) fn alive(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].alive).collect()
    }

    pub(super) fn active(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].is_active()).collect()
    }

    // What is done to them.

    pub(super) fn pause(&mut self, host: usize, time: Global) {
        self.hosts[host].paused_until = self.hosts[host].paused_until.max(self.time.now + time);
        [0, time, time + 5 * SECOND].into_iter().for_each(|wait| self.changed(self.time.now + wait));
    }

    /// It is paused for half a second of every two.
    fn stutter(&mut self, host: usize) {
        if self.time.now < self.hosts[host].weather.stutters_until {
            self.pause(host, 500 * MILLI);
            self.at(self.time.now + 2 * SECOND, What::Stutters(host));
        }
    }

    /// Nothing gets through. A connection that is dead is noticed after a while: until then the watch is quiet.
    pub(super) fn cut(&mut self, host: usize, time: Global) {
        let until = self.time.now + time;
        self.hosts[host].weather.cut_until = until;
        let notices = self.rng.u64(0..20_000) * MILLI;
        [0, notices, time, time + LEASE + 5 * SECOND].into_iter().for_each(|wait| self.changed(self.time.now + wait));
        self.silence(host, until, notices);
    }

    pub(super) fn judge(&mut self, host: usize, kind: KindIndex, verdict: Verdict) {
        let name = self.hosts[host].template.kinds[kind].name.clone();
        self.note(format_args!("{name} at {}: {verdict:?}", self.name(host)));
        self.changed(self.time.now);
        self.deliver(host, Event::Judged(kind, verdict));
    }

    /// The running term of a kind ends by itself if it fails where it runs.
    pub(super) fn fail(&mut self, kind: &str) {
        let Some(host) = self.leader(kind).filter(|&host| self.hosts[host].failing.contains(kind)) else { return };
        let Some(shard) = self.hosts[host].shard_of(kind) else { return };
        self.note(format_args!("{kind} fails at {}", self.name(host)));
        if let Some(term) = self.hosts[host].tasks.get(&shard).map(|task| task.term) {
            self.fail_task(host, shard, term, 0);
        }
    }

    /// A hand asks for a kind to be there, or nowhere in particular.
    pub(super) fn want(&mut self, lease: &str, there: Option<String>) {
        self.note(format_args!("a hand wants {lease} to be at {there:?}"));
        self.changed(self.time.now);
        if let Some(commit) = self.server.edit(lease, |record| record.wanted = there) {
            self.show(&commit);
        }
    }

    /// All is well from now on; what happened has its effects still.
    pub(super) fn calm_down(&mut self) {
        self.note(format_args!("the faults stop"));
        self.trouble = Trouble::default();
        self.all_lag.0 = 0;
        for fault in 0..self.faults.len() {
            self.skip.insert(fault);
        }
        self.strangers_leave();
        self.mend_by_hand();
        for host in self.alive() {
            self.hosts[host].weather = super::network::Weather::default();
            self.hosts[host].paused_until = self.time.now;
            self.hosts[host].failing.clear();
            for kind in self.hosts[host].denied.clone() {
                self.allow(host, &kind);
            }
            self.turn(host);
            if !self.hosts[host].alive {
                continue;
            }
            let tasks: Vec<_> = self.hosts[host]
                .tasks
                .iter()
                .map(|(shard, task)| (*shard, task.term, task.hears, task.works))
                .collect();
            for (shard, term, hears, works) in tasks {
                if !hears {
                    self.task_hears(host, shard, term, true);
                }
                // Work that would hang for ever hangs no longer.
                if !works || self.hosts[host].replica.shards()[shard].state() == State::Aborting {
                    let outcome = Outcome::Aborted;
                    self.at(self.time.now, What::TaskEnds { host, shard, term, outcome, unanswered: false });
                }
            }
            let standbys: Vec<_> = self.hosts[host].standbys.iter().map(|(shard, (term, _))| (*shard, *term)).collect();
            standbys.into_iter().for_each(|(shard, term)| self.task_hears(host, shard, term, true));
            // A watch may be dead without having been noticed.
            self.fail_watch(host);
            for kind in 0..self.hosts[host].template.kinds.len() {
                if self.hosts[host].blocked.contains(&self.hosts[host].template.kinds[kind].name) {
                    self.judge(host, kind, Verdict::Runnable);
                }
            }
        }
    }
}
