//! Everything around the replicas: network, watches, kubelet, faults; and what must be true whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use leasehold::{
    config::{Rebalance, StandbyMode, Timings},
    protocol::{
        election::Standing,
        moment::Moment,
        roster::{Plan, Rules},
        slot::Outcome,
    },
};

use super::{
    replica::{Character, Effect, Happening, Replica, Shard, Turn},
    server::{Answer, Lease, Request, Server},
};
use crate::timeline::{Global, SkewedClock, Timeline};

pub(super) const SETTLE: Global = 5_000;
/// As in roster.rs.
const AFTERCARE: Global = 2;
pub(super) const LEASE: Global = 15_000;

pub(super) fn timings() -> Timings {
    Timings {
        lease_duration: Duration::from_millis(LEASE),
        renew_deadline: Duration::from_secs(10),
        retry_period: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
    }
}

/// What the replicas of one generation are made from.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) name: String,
    /// The Deployment counts rollouts and rollbacks; `None`: the witness may not read it.
    pub(super) revision: Option<u64>,
    pub(super) kinds: Vec<(String, u32)>,
    pub(super) rebalance: Rebalance,
    pub(super) standby: StandbyMode,
    /// The Pod's lock works.
    pub(super) pod_lock: bool,
}

impl Template {
    pub(super) fn new(kinds: usize) -> Self {
        Self {
            name: "g1".to_owned(),
            revision: Some(1),
            kinds: (0..kinds).map(|kind| (kind_name(kind), 1)).collect(),
            rebalance: Rebalance::Automatic,
            standby: StandbyMode::Successor,
            pod_lock: true,
        }
    }

    /// The same again, rolled out later.
    pub(super) fn next(&self, revision: u64) -> Self {
        Self { name: format!("g{revision}"), revision: self.revision.map(|_| revision), ..self.clone() }
    }
}

pub(super) fn kind_name(kind: usize) -> String {
    format!("{}.example.com", char::from(b'a' + u8::try_from(kind).unwrap()))
}

/// A process, where it runs, and what is wrong with the network there.
pub(super) struct Host {
    pub(super) replica: Replica,
    pub(super) template: Template,
    pub(super) alive: bool,
    clock: SkewedClock,
    paused_until: Global,
    cut_until: Global,
    slow_until: Global,
    deaf_until: Global,
    /// Counts the watches; what an older one showed is not heard any more.
    watch: u64,
    watching: bool,
    shown_at: Global,
    /// What has come while it was paused.
    held: VecDeque<Happening>,
    /// Kinds that cannot be reconciled here, and those whose terms fail.
    pub(super) blocked: BTreeSet<String>,
    pub(super) failing: BTreeSet<String>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
enum What {
    To(usize, Happening),
    Watched(usize, u64, Turn),
    Arrives {
        host: usize,
        id: u64,
        request: Request,
        answered: bool,
    },
    List(usize, u64),
    GoBlind(usize, u64),
    Resumes(usize),
    /// The kubelet says so.
    Proves {
        identity: String,
        goes_on: bool,
    },
    HearsOfDeaths(usize),
    Joins(Box<Template>),
    Restarts(usize),
    Fault,
}

/// A term that has begun.
#[derive(Clone, Debug)]
pub(super) struct Began {
    pub(super) at: Global,
    pub(super) lease: String,
    pub(super) host: usize,
    /// Its holder was there and able, and gave it away all the same.
    pub(super) for_balance: bool,
}

pub(super) struct World {
    pub(super) rng: Rng,
    time: Timeline<What>,
    pub(super) server: Server,
    pub(super) hosts: Vec<Host>,
    /// Requests get lost, work hangs, terms fail.
    pub(super) trouble: bool,
    /// No cache is ever filled.
    pub(super) lazy: bool,
    /// The kubelet's word reaches the replicas.
    pub(super) witnessed: bool,
    pub(super) faults: Option<fn(&mut Self)>,
    dead: BTreeSet<String>,
    restarted: BTreeSet<String>,
    pub(super) terms: Vec<Began>,
    /// To whom each Lease was last released.
    released: BTreeMap<String, Option<String>>,
    /// When something changed that a move may answer to.
    changes: Vec<Global>,
    pub(super) log: String,
}

impl World {
    pub(super) fn new(seed: u64, what: &str) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            time: Timeline::new(),
            server: Server::default(),
            hosts: Vec::new(),
            trouble: false,
            lazy: false,
            witnessed: true,
            faults: None,
            dead: BTreeSet::new(),
            restarted: BTreeSet::new(),
            terms: Vec::new(),
            released: BTreeMap::new(),
            changes: Vec::new(),
            log: format!(
                "seed {seed}: {what}\nplay it again: SCENARIO={what} SEED={seed} cargo test --test it fleet_again -- --nocapture\n"
            ),
        }
    }

    pub(super) fn now(&self) -> Global {
        self.time.now
    }

    pub(super) fn local(&self, host: usize) -> Moment {
        self.hosts[host].clock.read(self.time.now)
    }

    pub(super) fn note(&mut self, text: std::fmt::Arguments<'_>) {
        let _infallible = writeln!(self.log, "{:>8.3} {text}", self.time.now as f64 / 1000.0);
    }

    pub(super) fn flip(&mut self, of_256: u8) -> bool {
        self.rng.u8(..) < of_256
    }

    /// Something happens at that time, now or later, that a move for balance may be the answer to.
    fn changed(&mut self, at: Global) {
        self.changes.push(at);
    }

    #[track_caller]
    pub(super) fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        assert!(holds, "{} at {} ms\n{}", what(), self.time.now, self.log);
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
            What::To(host, happening) => self.deliver(host, happening),
            What::Watched(host, watch, turn) => {
                if self.hosts[host].watch == watch {
                    self.deliver(host, Happening::Turned(turn));
                }
            }
            What::Arrives { host, id, request, answered } => self.arrive(host, id, request, answered),
            What::List(host, watch) => self.list(host, watch),
            What::GoBlind(host, watch) => {
                if self.hosts[host].watch == watch {
                    self.go_blind(host);
                }
            }
            What::Resumes(host) => {
                if self.time.now >= self.hosts[host].paused_until {
                    let held = std::mem::take(&mut self.hosts[host].held);
                    held.into_iter().for_each(|happening| self.deliver(host, happening));
                }
            }
            What::Proves { identity, goes_on } => {
                self.note(format_args!("the kubelet says that {identity} has ended"));
                if goes_on {
                    self.restarted.insert(identity.clone());
                }
                self.dead.insert(identity);
                self.spread_proofs();
            }
            What::HearsOfDeaths(host) => {
                let (ended, restarted) = (&self.dead - &self.restarted, self.restarted.clone());
                self.deliver(host, Happening::Buried { ended, restarted });
            }
            What::Joins(template) => {
                self.join(&template);
            }
            What::Restarts(host) => self.restart_now(host),
            What::Fault => {
                if let Some(fault) = self.faults {
                    fault(self);
                    let next = self.time.now + self.rng.u64(500..12_000);
                    self.time.at(next, What::Fault);
                }
            }
        }
    }

    fn deliver(&mut self, host: usize, happening: Happening) {
        let it = &mut self.hosts[host];
        if !it.alive {
            return;
        }
        if self.time.now < it.paused_until || !it.held.is_empty() {
            it.held.push_back(happening);
            return;
        }
        if let Happening::Judged(shard, runnable) = happening {
            let lease = it.replica.shards[shard].lease.clone();
            if runnable {
                it.blocked.remove(&lease)
            } else {
                it.blocked.insert(lease)
            };
        }
        let now = it.clock.read(self.time.now);
        let concerned = it.replica.on(happening, now);
        if let Some(shard) = concerned {
            self.check_terms(host, shard);
        }
        self.carry_out(host);
    }

    fn carry_out(&mut self, host: usize) {
        for effect in std::mem::take(&mut self.hosts[host].replica.effects) {
            if !self.hosts[host].alive {
                return;
            }
            match effect {
                Effect::At(at, happening) => {
                    let wait = match at.since(self.local(host)) {
                        Duration::ZERO => 0,
                        _ => self.hosts[host].clock.until(at, self.time.now),
                    };
                    self.time.at(self.time.now + wait, What::To(host, happening));
                }
                Effect::Ask(id, request) => self.send(host, id, request),
                Effect::Fills(shard, number) => {
                    let never = self.lazy || (self.trouble && self.flip(30));
                    let took = self.rng.u64(30..2_000);
                    let spoilt = self.trouble && self.flip(10);
                    let happening =
                        if spoilt { Happening::Spoilt(shard, number) } else { Happening::Filled(shard, number) };
                    if !never {
                        self.time.at(self.time.now + took, What::To(host, happening));
                    }
                }
                Effect::Begins { shard, grant, warm } => self.begins(host, shard, grant.term, warm),
                Effect::Drains(shard, term) => {
                    let hangs = self.trouble && !self.flip(220);
                    let took = if hangs { 600_000 } else { self.rng.u64(0..1_000) };
                    self.end_task(host, shard, term, took, Outcome::Finished);
                }
                Effect::Aborts(shard, term) => {
                    let hangs = self.trouble && !self.flip(230);
                    let took = if hangs { self.rng.u64(0..60_000) } else { self.rng.u64(0..10) };
                    self.end_task(host, shard, term, took, Outcome::Aborted);
                }
                Effect::Exits(clean) => {
                    self.note(format_args!("{} has stopped{}", self.name(host), if clean { "" } else { " unclean" }));
                    self.dies(host, false);
                }
            }
        }
    }

    fn end_task(&mut self, host: usize, shard: usize, term: u64, took: Global, outcome: Outcome) {
        let unanswered = self.trouble && self.flip(20);
        let happening = Happening::Ended { shard, term, outcome, unanswered };
        self.time.at(self.time.now + took, What::To(host, happening));
    }

    // Replicas come and go.

    pub(super) fn name(&self, host: usize) -> String {
        self.hosts[host].replica.who.identity.clone()
    }

    /// A new Pod.
    pub(super) fn join(&mut self, template: &Template) -> usize {
        let number = self.time.number();
        let pod = format!("pod{number}");
        self.start(template, &pod)
    }

    pub(super) fn join_later(&mut self, template: &Template, wait: Global) {
        self.time.at(self.time.now + wait, What::Joins(Box::new(template.clone())));
    }

    fn start(&mut self, template: &Template, pod: &str) -> usize {
        let plan =
            |(lease, weight): &(String, u32)| Plan { lease: lease.clone(), weight: *weight, standby: template.standby };
        let who = Character {
            identity: format!("{pod}_{:04x}", self.rng.u16(..)),
            pod: pod.to_owned(),
            pod_uid: template.pod_lock.then(|| format!("uid-{pod}")),
            generation: template.name.clone(),
            revision: template.revision,
            plans: template.kinds.iter().map(plan).collect(),
            rules: Rules {
                rebalance: template.rebalance,
                settle: Duration::from_millis(SETTLE),
                grace: Duration::from_secs(2),
                lease_duration: timings().lease_duration,
            },
            timings: timings(),
            drain_timeout: Duration::from_secs(5),
        };
        let clock = SkewedClock::drawn(&mut self.rng);
        self.note(format_args!("{} starts, of {}", who.identity, template.name));
        let host = self.hosts.len();
        self.hosts.push(Host {
            replica: Replica::new(who, clock.read(self.time.now)),
            template: template.clone(),
            alive: true,
            clock,
            paused_until: 0,
            cut_until: 0,
            slow_until: 0,
            deaf_until: 0,
            watch: 0,
            watching: false,
            shown_at: 0,
            held: VecDeque::new(),
            blocked: BTreeSet::new(),
            failing: BTreeSet::new(),
        });
        self.changed(self.time.now + 2_000);
        self.carry_out(host);
        let wait = self.rng.u64(10..300);
        self.time.at(self.time.now + wait, What::List(host, 0));
        for shard in 0..template.kinds.len() {
            let wait = self.rng.u64(20..500);
            self.time.at(self.time.now + wait, What::To(host, Happening::Judged(shard, true)));
        }
        if self.witnessed {
            self.time.at(self.time.now + 100, What::HearsOfDeaths(host));
        }
        host
    }

    pub(super) fn terminate(&mut self, host: usize) {
        self.note(format_args!("{} is told to stop", self.name(host)));
        self.changed(self.time.now);
        self.deliver(host, Happening::Signal);
    }

    /// Its process is gone, without a word.
    pub(super) fn crash(&mut self, host: usize) {
        self.note(format_args!("{} crashes", self.name(host)));
        self.dies(host, false);
    }

    /// `goes_on`: its container is started again at once.
    fn dies(&mut self, host: usize, goes_on: bool) {
        self.hosts[host].alive = false;
        // Its silence is noticed when its Leases have expired.
        for wait in [0, LEASE, LEASE + 5_000] {
            self.changed(self.time.now + wait);
        }
        if self.witnessed {
            let wait = self.rng.u64(50..2_000);
            let identity = self.name(host);
            self.time.at(self.time.now + wait, What::Proves { identity, goes_on });
        }
    }

    /// Its container starts again.
    pub(super) fn restart(&mut self, host: usize, wait: Global) {
        self.note(format_args!("{} crashes, and its container restarts", self.name(host)));
        // The kubelet says so when it backs off.
        self.dies(host, wait < 3_000);
        self.time.at(self.time.now + wait, What::Restarts(host));
    }

    fn restart_now(&mut self, host: usize) {
        let (template, pod) = (self.hosts[host].template.clone(), self.hosts[host].replica.who.pod.clone());
        let identity = self.name(host);
        self.start(&template, &pod);
        self.restarted.insert(identity);
        self.spread_proofs();
    }

    fn spread_proofs(&mut self) {
        for host in self.alive() {
            if self.witnessed {
                let wait = self.rng.u64(5..100);
                let at = (self.time.now + wait).max(self.hosts[host].cut_until);
                self.changed(at);
                self.time.at(at, What::HearsOfDeaths(host));
            }
        }
    }

    pub(super) fn alive(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].alive).collect()
    }

    pub(super) fn active(&self) -> Vec<usize> {
        self.alive().into_iter().filter(|&host| !self.hosts[host].replica.stopping()).collect()
    }

    // Faults.

    pub(super) fn begin_faults(&mut self, faults: fn(&mut Self)) {
        self.faults = Some(faults);
        self.trouble = true;
        self.time.at(self.time.now + 3_000, What::Fault);
    }

    pub(super) fn pause(&mut self, host: usize, time: Global) {
        self.note(format_args!("{} is paused for {time} ms", self.name(host)));
        let until = self.time.now + time;
        self.hosts[host].paused_until = until;
        self.time.at(until, What::Resumes(host));
        [0, time, time + 5_000].into_iter().for_each(|wait| self.changed(self.time.now + wait));
    }

    /// Nothing gets through. A connection that is dead is noticed after a while: until then the watch is quiet.
    pub(super) fn cut(&mut self, host: usize, time: Global) {
        self.note(format_args!("{} is cut off for {time} ms", self.name(host)));
        self.hosts[host].cut_until = self.time.now + time;
        let notices = self.rng.u64(0..20_000);
        [0, notices, time, time + LEASE + 5_000].into_iter().for_each(|wait| self.changed(self.time.now + wait));
        if notices < time {
            let watch = self.hosts[host].watch;
            self.time.at(self.time.now + notices, What::GoBlind(host, watch));
        }
    }

    pub(super) fn slow_down(&mut self, host: usize, time: Global) {
        self.note(format_args!("the watch of {} is slow for {time} ms", self.name(host)));
        self.hosts[host].slow_until = self.time.now + time;
        [0, time + 5_000].into_iter().for_each(|wait| self.changed(self.time.now + wait));
    }

    /// Its watch fails, and cannot be made anew for that long.
    pub(super) fn deafen(&mut self, host: usize, time: Global) {
        self.note(format_args!("the watch of {} is down for {time} ms", self.name(host)));
        self.hosts[host].deaf_until = self.time.now + time;
        [0, time + 3_000].into_iter().for_each(|wait| self.changed(self.time.now + wait));
        self.go_blind(host);
    }

    pub(super) fn judge(&mut self, host: usize, shard: usize, runnable: bool) {
        let lease = self.hosts[host].replica.shards[shard].lease.clone();
        self.note(format_args!("{lease} can{} be run by {}", if runnable { "" } else { "not" }, self.name(host)));
        self.changed(self.time.now);
        self.deliver(host, Happening::Judged(shard, runnable));
    }

    /// The term of a shard ends by itself, wherever it runs.
    pub(super) fn fail(&mut self, lease: &str) {
        let Some(host) = self.leader(lease).filter(|&host| self.hosts[host].failing.contains(lease)) else { return };
        self.note(format_args!("{lease} fails at {}", self.name(host)));
        let shards = &self.hosts[host].replica.shards;
        let running = shards.iter().enumerate().find(|(_, shard)| shard.lease == lease);
        if let Some((shard, Some(term))) = running.map(|(index, shard)| (index, shard.task)) {
            [0, 1_000, 3_000, 7_000].into_iter().for_each(|wait| self.changed(self.time.now + wait));
            self.end_task(host, shard, term, 0, Outcome::Failed("it happens".to_owned()));
        }
    }

    /// How long it is at the most until no kind cools down any more.
    pub(super) fn cools_for(&self) -> Global {
        let cools = |host: usize| {
            let (now, clock) = (self.local(host), &self.hosts[host].clock);
            let until = self.hosts[host].replica.shards.iter().filter_map(|shard| shard.slot.failing_until(now)).max();
            until.map_or(0, |until| clock.until(until, self.time.now))
        };
        self.active().into_iter().map(cools).max().unwrap_or(0)
    }

    /// Somebody asks by hand for a shard to be there, or nowhere in particular.
    pub(super) fn want(&mut self, lease: &str, there: Option<String>) {
        self.note(format_args!("a hand wants {lease} to be at {there:?}"));
        self.changed(self.time.now);
        if let Some(stored) = self.server.edit(lease, |lease| lease.wanted = there) {
            self.show(&Turn::Stored(stored));
        }
    }

    /// All is well from now on; what happened has its effects still.
    pub(super) fn calm_down(&mut self) {
        self.note(format_args!("the faults stop"));
        (self.trouble, self.faults) = (false, None);
        for host in self.alive() {
            let now = self.time.now;
            let it = &mut self.hosts[host];
            (it.paused_until, it.cut_until, it.slow_until, it.deaf_until) = (now, now, now, now);
            it.failing.clear();
            self.handle(What::Resumes(host));
            // Work that would hang for ever hangs no longer.
            let tasks: Vec<_> = self.hosts[host].replica.shards.iter().map(|shard| shard.task).collect();
            for (shard, task) in tasks.into_iter().enumerate() {
                let state = self.hosts[host].replica.shards[shard].slot.state();
                if let (Some(term), true) = (task, state != leasehold::protocol::slot::State::Running) {
                    self.end_task(host, shard, term, 0, Outcome::Aborted);
                }
            }
            // A watch that was cut off may be dead without anybody having noticed.
            self.hosts[host].watch += 1;
            self.go_blind(host);
            for (shard, lease) in
                self.hosts[host].replica.shards.iter().map(|it| it.lease.clone()).enumerate().collect::<Vec<_>>()
            {
                if self.hosts[host].blocked.contains(&lease) {
                    self.judge(host, shard, true);
                }
            }
        }
    }

    // The network.

    fn send(&mut self, host: usize, id: u64, request: Request) {
        let now = self.time.now;
        let it = &self.hosts[host];
        let timeout = (2_000.0 / it.clock.rate) as u64;
        self.time.at(now + timeout, What::To(host, Happening::Answered(id, None)));
        let cut = now < self.hosts[host].cut_until;
        let (mut delay, mut answered) = (self.rng.u64(1..20), true);
        if cut {
            // Most are lost, some land late without an answer.
            if self.flip(200) {
                return;
            }
            (delay, answered) = (self.rng.u64(0..8_000), false);
        } else if self.trouble && self.flip(20) {
            (delay, answered) = (self.rng.u64(0..5_000), self.flip(128));
        }
        self.time.at(now + delay, What::Arrives { host, id, request, answered });
    }

    fn arrive(&mut self, host: usize, id: u64, request: Request, answered: bool) {
        let name = match &request {
            Request::Get(name) | Request::Delete(name, _) => name,
            Request::Put(lease) | Request::Post(lease) => &lease.name,
        };
        let before = self.server.leases.get(name).cloned();
        let answer = self.server.answer(self.time.now, request);
        match (&answer, before) {
            (Answer::Stored(lease), before) => {
                self.check_write(host, before.as_deref(), lease);
                self.show(&Turn::Stored(Rc::clone(lease)));
            }
            (Answer::Deleted, Some(before)) => {
                self.check_deletion(host, &before);
                self.show(&Turn::Deleted(before));
            }
            _ => {}
        }
        if answered {
            let late = if self.trouble && self.flip(10) { self.rng.u64(0..4_000) } else { self.rng.u64(1..20) };
            let at = (self.time.now + late).max(self.hosts[host].cut_until);
            self.time.at(at, What::To(host, Happening::Answered(id, Some(answer))));
        }
    }

    /// Watches lag, and keep their order.
    fn show(&mut self, turn: &Turn) {
        for host in self.alive() {
            if !self.hosts[host].watching {
                continue;
            }
            let slow = self.time.now < self.hosts[host].slow_until;
            let lag = if slow { self.rng.u64(300..6_000) } else { self.rng.u64(1..15) };
            let it = &mut self.hosts[host];
            it.shown_at = (self.time.now + lag).max(it.cut_until).max(it.shown_at);
            self.time.at(it.shown_at, What::Watched(host, it.watch, turn.clone()));
        }
    }

    fn go_blind(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.watch += 1;
        it.watching = false;
        let watch = it.watch;
        let wait = self.rng.u64(500..1_500);
        self.time.at(self.time.now + wait, What::List(host, watch));
        self.deliver(host, Happening::Turned(Turn::Blind));
    }

    fn list(&mut self, host: usize, watch: u64) {
        if self.hosts[host].watch != watch || !self.hosts[host].alive {
            return;
        }
        if self.time.now < self.hosts[host].cut_until.max(self.hosts[host].deaf_until) {
            let wait = self.rng.u64(500..1_500);
            self.time.at(self.time.now + wait, What::List(host, watch));
            return;
        }
        let took = self.rng.u64(5..50);
        let listed = Turn::Listed(self.server.leases.values().cloned().collect());
        let it = &mut self.hosts[host];
        it.watching = true;
        it.shown_at = self.time.now + took;
        self.time.at(it.shown_at, What::Watched(host, watch, listed));
    }

    // What must be true.

    fn begins(&mut self, host: usize, shard: usize, term: u64, warm: bool) {
        let lease = self.hosts[host].replica.shards[shard].lease.clone();
        let identity = self.name(host);
        self.demand(!self.hosts[host].blocked.contains(&lease), || format!("{identity} cannot run {lease} and does"));
        let wanted = self.server.leases.get(&lease).is_some_and(|lease| lease.wanted.is_some());
        let before = self.terms.iter().rev().find(|term| term.lease == lease).map(|term| term.host);
        let given = self.released.get(&lease).is_some_and(|to| to.as_ref() == Some(&identity));
        let for_balance = before.is_some_and(|before| {
            let there = self.hosts[before].alive && !self.hosts[before].replica.stopping();
            let index = self.hosts[before].replica.shards.iter().position(|it| it.lease == lease);
            let able =
                index.is_some_and(|index| self.hosts[before].replica.shards[index].slot.can_run(self.local(before)));
            before != host && there && able && given && !wanted
        });
        let how = if for_balance { ", moved for balance" } else { "" };
        let cache = if warm { "warm" } else { "cold" };
        self.note(format_args!("{identity} leads {lease}, {cache}{how}"));
        if for_balance {
            let last = self.terms.iter().rev().find(|term| term.lease == lease && term.for_balance);
            if let Some(last) = last {
                let since = last.at.saturating_sub(2 * SETTLE);
                // A kind that is forgiven counts again, and comes back for balance.
                let forgiven = (0..self.hosts.len()).any(|host| {
                    let it = &self.hosts[host];
                    let before = it.clock.read(since.saturating_sub(AFTERCARE * SETTLE));
                    it.replica.shards.iter().any(|it| it.slot.failing_until(before).is_some())
                });
                let answered = forgiven
                    || self.reweighed(since)
                    || self.changes.iter().any(|&change| since <= change && change <= self.time.now);
                self.demand(answered, || {
                    format!("{lease} was moved twice, at {} first, and nothing had changed", last.at)
                });
            }
        }
        self.terms.push(Began { at: self.time.now, lease: lease.clone(), host, for_balance });
        let fails = self.hosts[host].failing.contains(&lease) || (self.trouble && self.flip(15));
        if fails {
            let took = self.rng.u64(0..3_000);
            // It cools down, for longer each time.
            for wait in [0, 1_000, 3_000, 7_000] {
                self.changed(self.time.now + took + wait);
            }
            self.end_task(host, shard, term, took, Outcome::Failed("it happens".to_owned()));
        }
    }

    /// Never two valid terms of one shard.
    fn check_terms(&self, host: usize, shard: usize) {
        let valid = |host: usize, shard: usize| {
            self.hosts[host].replica.shards[shard].election.standing(self.local(host)) != Standing::Standby
        };
        if !valid(host, shard) {
            return;
        }
        let lease = &self.hosts[host].replica.shards[shard].lease;
        for other in self.alive().into_iter().filter(|&other| other != host) {
            let same = self.hosts[other].replica.shards.iter().position(|it| it.lease == *lease);
            let both = same.is_some_and(|same| valid(other, same));
            self.demand(!both, || format!("{} and {} lead {lease}", self.name(host), self.name(other)));
        }
    }

    fn check_write(&mut self, host: usize, before: Option<&Lease>, stored: &Lease) {
        if stored.profile.is_some() {
            return;
        }
        let named = before.and_then(|before| before.successor.as_ref());
        if stored.successor.as_ref() != named && stored.holder.is_some() && stored.successor.is_some() {
            let named = stored.successor.as_deref().unwrap_or_default();
            self.note(format_args!("{} names {named} for {}", self.name(host), stored.name));
            self.check_one_at_a_time(host);
        }
        if stored.holder.is_none() {
            let by = &self.hosts[host];
            let task = by.replica.shards.iter().find(|it| it.lease == stored.name).and_then(|it| it.task);
            self.demand(!by.alive || task.is_none(), || format!("{} was released under running work", stored.name));
            self.released.insert(stored.name.clone(), stored.successor.clone());
            return;
        }
        let Some(old) = before.filter(|old| old.holder.is_some() && old.holder != stored.holder) else { return };
        // Their clocks may be fast, and then the wait is a little shorter in global time.
        let expired = self.time.now - old.renewed >= LEASE * 100 / 101;
        let holder = old.holder.as_ref().unwrap();
        let dead = self.hosts.iter().any(|it| !it.alive && it.replica.who.identity == *holder);
        let own = &self.hosts[host].replica.who.pod_uid;
        let proven = self.dead.contains(holder) || self.restarted.contains(holder);
        let same_pod = own.is_some() && own.as_deref() == old.pod_of_holder();
        self.demand(expired || (dead && (proven || same_pod)), || format!("{} was taken from {holder}", stored.name));
        self.released.remove(&stored.name);
    }

    /// A replica gives one shard away at a time, unless it must.
    fn check_one_at_a_time(&self, host: usize) {
        let it = &self.hosts[host];
        // What fails somewhere is given on at once.
        if self.trouble || !it.alive || it.replica.stopping() || self.cools_for() > 0 {
            return;
        }
        let now = self.local(host);
        let gives = |shard: &&Shard| {
            let stored = self.server.leases.get(&shard.lease);
            let ours = stored.filter(|lease| lease.holder.as_ref() == Some(&it.replica.who.identity));
            // One that it has to leave to expire is on no way any more.
            let given = ours.is_some_and(|lease| {
                lease.successor.is_some() && lease.wanted.is_none() && self.time.now < lease.renewed + 6_000
            });
            given && shard.slot.can_run(now)
        };
        let given: Vec<_> = it.replica.shards.iter().filter(gives).map(|shard| &shard.lease).collect();
        self.demand(given.len() <= 1, || format!("{} gives away {given:?} at once", self.name(host)));
    }

    /// A Lease that somebody renews is never deleted, except by whoever ends or follows in its Pod.
    fn check_deletion(&mut self, host: usize, gone: &Lease) {
        self.note(format_args!("{} deletes {}", self.name(host), gone.name));
        let silent = self.time.now - gone.renewed >= 4 * LEASE * 100 / 101;
        let process =
            gone.holder.as_ref().and_then(|holder| self.hosts.iter().position(|it| it.replica.who.identity == *holder));
        if gone.profile.is_some() {
            let own = process == Some(host);
            let dead = process.is_some_and(|process| !self.hosts[process].alive);
            self.demand(own || dead || silent, || format!("the membership {} was deleted", gone.name));
            return;
        }
        self.demand(silent, || format!("{} was renewed and is deleted", gone.name));
        let configured = self.server.leases.values().any(|lease| {
            let lately = lease.created + 20_000 < self.time.now && self.time.now < lease.renewed + 6_000;
            lately && lease.profile.as_ref().is_some_and(|profile| profile.shards.contains(&gone.name))
        });
        self.demand(!configured, || format!("{} is configured somewhere and is deleted", gone.name));
    }

    // What shall be true when nothing happens any more.

    /// Who leads a shard.
    pub(super) fn leader(&self, lease: &str) -> Option<usize> {
        let leads = |&host: &usize| {
            let shard = self.hosts[host].replica.shards.iter().position(|shard| shard.lease == lease);
            shard.is_some_and(|shard| self.hosts[host].replica.leads(shard, self.local(host)))
        };
        self.alive().into_iter().find(leads)
    }

    /// What is amiss: a shard that somebody can run is not led; or there is a move that would even out two loads.
    pub(super) fn amiss(&self) -> Option<String> {
        let active = self.active();
        let can = |host: usize, lease: &str| {
            let it = &self.hosts[host];
            let known = it.template.kinds.iter().any(|(name, _)| name == lease);
            known && !it.blocked.contains(lease) && !it.failing.contains(lease)
        };
        let kinds: BTreeMap<String, u32> =
            active.iter().flat_map(|&host| self.hosts[host].template.kinds.iter().cloned()).collect();
        if self.cools_for() > 0 {
            return Some("a kind fails".to_owned());
        }
        let order = |host: &usize| (self.hosts[*host].template.revision, *host);
        let newest = &self.hosts[active.iter().copied().max_by_key(order)?].template.name;
        let mut loads = BTreeMap::<usize, u32>::new();
        let mut led = Vec::new();
        for (lease, weight) in &kinds {
            let weight = &self.server.leases.get(lease).and_then(|lease| lease.weight).unwrap_or(*weight);
            let Some(leader) = self.leader(lease) else {
                if active.iter().any(|&host| can(host, lease)) {
                    return Some(format!("{lease} is not led"));
                }
                continue;
            };
            if !can(leader, lease) && active.iter().any(|&host| can(host, lease)) {
                return Some(format!("{lease} is led where it cannot be run"));
            }
            *loads.entry(leader).or_default() += weight;
            led.push((lease, *weight, leader));
        }
        for (lease, weight, leader) in led {
            if self.hosts[leader].replica.stopping() {
                return Some(format!("{lease} is led by one that stops"));
            }
            let wanted = self.server.leases.get(lease).and_then(|lease| lease.wanted.clone());
            let there = wanted.and_then(|name| {
                active.iter().find(|&&host| {
                    let who = &self.hosts[host].replica.who;
                    (who.identity == name || who.pod == name) && can(host, lease)
                })
            });
            match there {
                Some(&there) if there == leader => continue,
                Some(_) => return Some(format!("{lease} is not where it is wanted")),
                None => {}
            }
            if self.modes() > 1 || self.hosts[leader].template.rebalance != Rebalance::Automatic {
                continue;
            }
            let better = active.iter().find(|&&host| {
                let load = loads.get(&host).copied().unwrap_or(0);
                self.hosts[host].template.name == *newest && can(host, lease) && load + weight < loads[&leader]
            });
            if let Some(&better) = better {
                return Some(format!("{lease} would better be at {} than at {}", self.name(better), self.name(leader)));
            }
        }
        None
    }

    /// How many each active replica leads.
    pub(super) fn spread(&self) -> Vec<usize> {
        let leads = |host: usize| {
            (0..self.hosts[host].replica.shards.len())
                .filter(|&shard| self.hosts[host].replica.leads(shard, self.local(host)))
                .count()
        };
        self.active().into_iter().map(leads).collect()
    }

    /// How many modes there are. Who moves nothing leaves undone what the others count on.
    fn modes(&self) -> usize {
        let modes = self.active().into_iter().map(|host| self.hosts[host].template.rebalance as u8);
        modes.collect::<BTreeSet<_>>().len()
    }

    /// Runs until nothing is amiss.
    #[track_caller]
    pub(super) fn gets_right(&mut self, within: Global) {
        let by = self.time.now + within;
        if self.modes() > 1 {
            // What is amiss cannot be told then: but it has to be over by then.
            self.run(by);
        }
        while let Some(amiss) = self.amiss() {
            self.demand(self.time.now < by, || format!("{amiss}, {within} ms after the last fault"));
            self.run_for(250);
        }
        self.note(format_args!("nothing is amiss"));
    }

    /// Runs until nothing is amiss, and then for twenty settle periods in which no shard may move.
    #[track_caller]
    pub(super) fn comes_to_rest(&mut self, within: Global) {
        self.gets_right(within);
        let moves = self.terms.len();
        self.run_for(20 * SETTLE);
        self.demand(self.terms.len() == moves, || "a shard has moved although nothing was amiss".to_owned());
        let amiss = self.amiss();
        self.demand(amiss.is_none(), || amiss.unwrap_or_default());
        let spread = self.spread();
        let even = spread.iter().max().unwrap_or(&0) - spread.iter().min().unwrap_or(&0) <= 1;
        let weights: BTreeSet<_> = self.active().iter().map(|&host| self.hosts[host].template.clone().kinds).collect();
        let alike = weights.len() == 1 && weights.iter().flatten().all(|(_, weight)| *weight == 1);
        let one_generation =
            self.active().iter().map(|&host| self.hosts[host].template.revision).collect::<BTreeSet<_>>().len() == 1;
        let free = self.server.leases.values().all(|lease| lease.wanted.is_none())
            && self.active().iter().all(|&host| {
                let it = &self.hosts[host];
                it.template.rebalance == Rebalance::Automatic && it.blocked.is_empty() && it.failing.is_empty()
            });
        self.demand(even || !(alike && one_generation && free), || format!("the spread is {spread:?}"));
    }

    /// Terms that have begun since: by Lease, in their order, on which hosts.
    pub(super) fn terms_since(&self, since: Global) -> BTreeMap<String, Vec<usize>> {
        let mut terms = BTreeMap::<String, Vec<usize>>::new();
        for term in self.terms.iter().filter(|term| term.at >= since) {
            terms.entry(term.lease.clone()).or_default().push(term.host);
        }
        terms
    }

    /// A term has begun since at a replica that counts its shard for another weight than the one before it did.
    fn reweighed(&self, since: Global) -> bool {
        let weight = |host: usize, lease: &str| {
            let kinds = &self.hosts[host].template.kinds;
            kinds.iter().find(|(name, _)| name == lease).map(|(_, weight)| *weight)
        };
        self.terms.iter().enumerate().filter(|(_, term)| term.at >= since).any(|(index, term)| {
            let before = self.terms[..index].iter().rev().find(|other| other.lease == term.lease);
            before.is_some_and(|before| weight(before.host, &term.lease) != weight(term.host, &term.lease))
        })
    }
}
