//! One replica: elections, slots and a roster, wired as the supervisor, the elector, the board and the membership wire
//! them, without tasks, channels and a network. What leaves the process is an [`Effect`].

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use leasehold::{
    config::Timings,
    protocol::{
        election::{Election, Grant, Intent, Proposal, Purpose, RELEASED, Standing, Step},
        moment::Moment,
        roster::{self, Activity, Advice, Plan, Profile, Roster, Rules},
        slot::{self, Command, Handover, Outcome, Slot, State},
    },
};

use super::server::{Answer, Lease, Request};

/// As in membership.rs.
const RENEWALS: u32 = 3;
const TOGETHER: Duration = Duration::from_millis(5);
/// As in supervisor.rs.
const QUIESCE: Duration = Duration::from_secs(1);

/// Who a process is.
#[derive(Clone, Debug)]
pub(super) struct Character {
    pub(super) identity: String,
    pub(super) pod: String,
    pub(super) pod_uid: Option<String>,
    pub(super) generation: String,
    pub(super) revision: Option<u64>,
    pub(super) plans: Vec<Plan>,
    pub(super) rules: Rules,
    pub(super) timings: Timings,
    pub(super) drain_timeout: Duration,
}

/// What happens to a process.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Turned(Turn),
    /// A request was answered, or was not in time.
    Answered(u64, Option<Answer>),
    /// An elector's rest is over.
    Elect(usize),
    Reported(usize, Report),
    /// The supervisor's rest is over.
    Tick,
    /// The membership's rest is over, or is it not.
    Publish,
    Left,
    Judged(usize, bool),
    Buried {
        ended: BTreeSet<String>,
        restarted: BTreeSet<String>,
    },
    Filled(usize, u64),
    /// Filling the cache failed.
    Spoilt(usize, u64),
    Ended {
        shard: usize,
        term: u64,
        outcome: Outcome,
        unanswered: bool,
    },
    Signal,
}

#[derive(Clone, Debug)]
pub(super) enum Turn {
    Listed(Vec<Rc<Lease>>),
    Stored(Rc<Lease>),
    Deleted(Rc<Lease>),
    Blind,
}

#[derive(Clone, Debug)]
pub(super) struct Report {
    standing: Standing,
    fence: u64,
    settled: bool,
    heeds: Intent,
}

/// What a process does.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
pub(super) enum Effect {
    At(Moment, Happening),
    Ask(u64, Request),
    /// A task that fills a cache begins.
    Fills(usize, u64),
    Begins {
        shard: usize,
        grant: Grant,
        warm: bool,
    },
    Drains(usize, u64),
    Aborts(usize, u64),
    /// The process ends; whether in order.
    Exits(bool),
}

pub(super) struct Shard {
    pub(super) lease: String,
    weight: u32,
    pub(super) election: Election,
    pub(super) slot: Slot,
    /// The term whose task runs.
    pub(super) task: Option<u64>,
    pub(super) advice: Advice,
    // The supervisor's.
    sent: Intent,
    settled: (bool, Intent),
    fence: Option<u64>,
    standby: Option<Cache>,
    handover: Handover,
    // The elector's.
    heeds: Intent,
    unread: bool,
    reported: Option<((u8, u64), bool, Intent)>,
    own_fence: u64,
    fence_term: Option<u64>,
    sees: bool,
    sighting: Option<Rc<Lease>>,
    unsighted: bool,
    objects: [Option<Rc<Lease>>; 2],
    in_flight: Option<(u64, Option<Proposal>)>,
    woken: bool,
    wakes_at: Moment,
}

struct Cache {
    number: u64,
    fence: u64,
    filled: bool,
}

#[derive(Default)]
struct Membership {
    stored: Option<Rc<Lease>>,
    profile: Option<Profile>,
    unread: bool,
    in_flight: Option<u64>,
    again: Moment,
    /// When it is written whatever was seen.
    begins_at: Moment,
    published: bool,
    ended: bool,
}

pub(super) struct Replica {
    pub(super) who: Character,
    pub(super) shards: Vec<Shard>,
    pub(super) roster: Roster,
    pub(super) effects: Vec<Effect>,
    membership: Membership,
    blind: bool,
    dead: BTreeSet<String>,
    asked: BTreeSet<usize>,
    stale: bool,
    advise_at: Moment,
    collect_at: Moment,
    numbers: u64,
    give_up: Option<Moment>,
    left: bool,
    wakes_at: Moment,
}

impl Replica {
    pub(super) fn new(who: Character, now: Moment) -> Self {
        let leases: BTreeSet<_> = who.plans.iter().map(|plan| plan.lease.clone()).collect();
        let me = Profile {
            pod: who.pod.clone(),
            pod_uid: who.pod_uid.clone(),
            generation: who.generation.clone(),
            revision: who.revision,
            capacity: 1,
            shards: leases.clone(),
            unable: leases,
            ..Profile::default()
        };
        let shard = |plan: &Plan| Shard {
            lease: plan.lease.clone(),
            weight: plan.weight,
            election: Election::new(who.identity.clone(), who.timings),
            slot: Slot::new(who.drain_timeout),
            task: None,
            advice: Advice::default(),
            sent: Intent::default(),
            settled: (true, Intent::default()),
            fence: None,
            standby: None,
            handover: Handover::Stay,
            heeds: Intent::default(),
            unread: false,
            reported: None,
            own_fence: 0,
            fence_term: None,
            sees: false,
            sighting: None,
            unsighted: false,
            objects: [None, None],
            in_flight: None,
            woken: false,
            wakes_at: Moment::default(),
        };
        let begins_at = now + who.timings.request_timeout;
        let mut this = Self {
            shards: who.plans.iter().map(shard).collect(),
            roster: Roster::new(who.identity.clone(), me.clone(), who.plans.clone(), who.rules),
            effects: Vec::new(),
            membership: Membership { profile: Some(me), begins_at, ..Membership::default() },
            blind: true,
            dead: BTreeSet::new(),
            asked: BTreeSet::new(),
            stale: true,
            advise_at: Moment::NEVER,
            collect_at: Moment::default(),
            numbers: 0,
            give_up: None,
            left: false,
            wakes_at: Moment::default(),
            who,
        };
        this.effects.push(Effect::At(begins_at, Happening::Publish));
        for index in 0..this.shards.len() {
            this.elect(index, now);
        }
        this.conclude(now);
        this
    }

    /// The readiness probe.
    pub(super) fn ready(&self) -> bool {
        !self.blind && self.membership.published && self.asked.len() == self.shards.len()
    }

    pub(super) fn stopping(&self) -> bool {
        self.give_up.is_some()
    }

    /// The term that works under a valid grant.
    pub(super) fn leads(&self, index: usize, now: Moment) -> bool {
        let shard = &self.shards[index];
        shard.task.is_some() && matches!(shard.election.standing(now), Standing::Leading(_))
    }

    /// Which shard a request was about that has been answered: only then may a right to work begin or be prolonged.
    pub(super) fn on(&mut self, happening: Happening, now: Moment) -> Option<usize> {
        match happening {
            Happening::Elect(index) => {
                self.elect(index, now);
                return Some(index);
            }
            Happening::Publish => {
                self.publish(now);
                return None;
            }
            Happening::Answered(id, answer) => return self.answered(id, answer, now),
            Happening::Turned(turn) => self.on_turn(turn, now),
            Happening::Reported(index, report) => {
                self.shards[index].settled = (report.settled, report.heeds);
                self.shards[index].fence = Some(report.fence);
                self.tell(index, slot::Event::Standing(report.standing), now);
            }
            Happening::Tick => (0..self.shards.len()).for_each(|index| self.tell(index, slot::Event::Tick, now)),
            Happening::Left => self.left = true,
            Happening::Judged(index, runnable) => {
                self.asked.insert(index);
                self.tell(index, slot::Event::Runnable(runnable), now);
            }
            Happening::Buried { ended, restarted } => {
                self.stale |= self.roster.bury(&ended);
                self.dead = ended.union(&restarted).cloned().collect();
                (0..self.shards.len()).for_each(|index| self.wake_elector(index, now));
            }
            Happening::Filled(index, number) => {
                if let Some(cache) = self.shards[index].standby.as_mut().filter(|cache| cache.number == number) {
                    cache.filled = true;
                    self.stale = true;
                }
            }
            Happening::Spoilt(index, number) => {
                if self.shards[index].standby.take_if(|cache| cache.number == number).is_some() {
                    self.stale = true;
                    self.tell(index, slot::Event::StandbyFailed, now);
                }
            }
            Happening::Ended { shard, term, outcome, unanswered } => {
                if self.shards[shard].task == Some(term) {
                    self.shards[shard].task = None;
                    self.tell(shard, slot::Event::Ended { term, outcome, unanswered }, now);
                }
            }
            Happening::Signal => self.on_signal(now),
        }
        self.conclude(now);
        None
    }

    /// What follows each event of the supervisor.
    fn conclude(&mut self, now: Moment) {
        self.advise(now);
        if !self.blind && now < self.membership.begins_at {
            self.membership.begins_at = now;
            self.publish(now);
        }
        if let Some(clean) = self.stopped(now) {
            self.effects.push(Effect::Exits(clean));
        }
        let slots = self.shards.iter().map(|shard| shard.slot.next_wake(now)).min().unwrap_or(Moment::NEVER);
        let wake = slots.min(self.give_up.unwrap_or(Moment::NEVER)).min(self.advise_at).min(self.collect_at);
        if wake < Moment::NEVER && !(now < self.wakes_at && self.wakes_at <= wake) {
            self.wakes_at = wake.max(now);
            self.effects.push(Effect::At(wake, Happening::Tick));
        }
    }

    // The board.

    fn on_turn(&mut self, turn: Turn, now: Moment) {
        let news = match turn {
            Turn::Listed(leases) => {
                for index in 0..self.shards.len() {
                    let found = leases.iter().find(|lease| lease.name == self.shards[index].lease).cloned();
                    self.post(index, Some(found), now);
                }
                let members = leases.iter().filter_map(|lease| lease.member()).collect();
                let holding = |lease: &Rc<Lease>| Some((lease.name.clone(), lease.holding()?));
                self.roster.listed(now, members, leases.iter().filter_map(holding).collect());
                self.blind = false;
                let gone: Vec<_> = self.roster.predecessors().map(|it| (it.name.clone(), it.version.clone())).collect();
                self.collect(gone);
                true
            }
            Turn::Stored(lease) => {
                self.post_named(&lease.name, Some(Rc::clone(&lease)), now);
                match (lease.member(), lease.holding()) {
                    (Some(member), _) => self.roster.member(now, member),
                    (None, Some(holding)) => self.roster.holding(now, &lease.name, Some(holding)),
                    (None, None) => false,
                }
            }
            Turn::Deleted(lease) => {
                self.post_named(&lease.name, None, now);
                match lease.member() {
                    Some(member) => self.roster.member_gone(&member.identity),
                    None => self.roster.holding(now, &lease.name, None),
                }
            }
            Turn::Blind => {
                self.roster.blind();
                self.blind = true;
                (0..self.shards.len()).for_each(|index| self.post(index, None, now));
                true
            }
        };
        self.stale |= news;
    }

    fn post_named(&mut self, lease: &str, what: Option<Rc<Lease>>, now: Moment) {
        if let Some(index) = self.shards.iter().position(|shard| shard.lease == lease) {
            self.post(index, Some(what), now);
        }
    }

    /// Shows an elector its Lease, or that there is nothing to be seen.
    fn post(&mut self, index: usize, what: Option<Option<Rc<Lease>>>, now: Moment) {
        let shard = &mut self.shards[index];
        shard.sees = what.is_some();
        if let Some(what) = what {
            shard.sighting = what;
        }
        shard.unsighted = true;
        self.wake_elector(index, now);
    }

    // The supervisor.

    fn collect(&mut self, litter: Vec<(String, leasehold::protocol::election::Version)>) {
        for (name, version) in litter {
            let id = self.number();
            self.effects.push(Effect::Ask(id, Request::Delete(name, version)));
        }
    }

    fn introduce(&mut self, me: Profile, now: Moment) {
        if me != *self.roster.me() {
            self.roster.introduce(me.clone());
            self.stale = true;
            if let Some(profile) = &mut self.membership.profile {
                *profile = me;
                self.publish_soon(now);
            }
        }
    }

    fn advise(&mut self, now: Moment) {
        if now >= self.collect_at {
            self.collect_at = now + self.who.timings.lease_duration;
            let litter = self.roster.litter(now);
            self.collect(litter);
        }
        self.describe_ourselves(now);
        if !std::mem::replace(&mut self.stale, false) && now < self.advise_at {
            return;
        }
        let mut counsel = self.roster.advise(now);
        self.advise_at = counsel.next.unwrap_or(Moment::NEVER);
        for index in 0..self.shards.len() {
            let advice = counsel.shards.remove(&self.shards[index].lease).unwrap_or_default();
            self.heed(index, advice, now);
        }
        self.describe_ourselves(now);
    }

    fn heed(&mut self, index: usize, advice: Advice, now: Moment) {
        let handover = match &advice.hand_over {
            Some((successor, prepared)) => Handover::To { successor: successor.clone(), prepared: *prepared },
            None if self.stopping() && (advice.held || self.blind) => Handover::ToNobody,
            None => Handover::Stay,
        };
        let shard = &mut self.shards[index];
        if (&shard.advice, &shard.handover) == (&advice, &handover) {
            return;
        }
        shard.advice = advice;
        shard.handover = handover.clone();
        self.tell(index, slot::Event::Handover(handover), now);
    }

    fn describe_ourselves(&mut self, now: Moment) {
        let mut me = self.roster.me().clone();
        me.activity = if self.stopping() { Activity::Draining } else { Activity::Active };
        me.unable.clear();
        me.failing.clear();
        let mut prepared = BTreeMap::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let hopeful = !self.asked.contains(&index) && self.roster.comes_back(&shard.lease);
            if !self.stopping() && !hopeful && !shard.slot.can_run(now) {
                me.unable.insert(shard.lease.clone());
            }
            if shard.slot.failing_until(now).is_some() {
                me.failing.insert(shard.lease.clone());
            }
            if let (Some(token), Some(Cache { filled: true, .. })) = (&shard.advice.named, &shard.standby) {
                prepared.insert(shard.lease.clone(), token.clone());
            }
        }
        me.prepared = prepared;
        self.introduce(me, now);
    }

    fn on_signal(&mut self, now: Moment) {
        let release = self.who.timings.request_timeout * 2 + QUIESCE + Duration::from_secs(2);
        let drain = self.who.drain_timeout;
        self.give_up = Some(now + slot::PREPARE.min(drain) + drain + release);
        (0..self.shards.len()).for_each(|index| self.tell(index, slot::Event::Stop, now));
        self.stale = true;
    }

    fn tell(&mut self, index: usize, event: slot::Event, now: Moment) {
        let shard = &mut self.shards[index];
        match (shard.slot.on(event, now), shard.task) {
            (Some(Command::Start(grant)), running) => {
                assert_eq!(running, None, "a term begins while the last one runs");
                let cache = shard.standby.take().filter(|cache| Some(cache.fence) == shard.fence);
                shard.task = Some(grant.term);
                let warm = cache.is_some_and(|cache| cache.filled);
                self.effects.push(Effect::Begins { shard: index, grant, warm });
            }
            (Some(Command::Drain), Some(term)) => self.effects.push(Effect::Drains(index, term)),
            (Some(Command::Abort), Some(term)) => self.effects.push(Effect::Aborts(index, term)),
            _ => {}
        }
        self.stand_by_or_not(index, now);
        let courtesy = self.who.rules.grace;
        let shard = &mut self.shards[index];
        let intent = Intent { patience: shard.advice.patience, courtesy, ..shard.slot.intent(now) };
        if intent != shard.sent {
            shard.sent = intent;
            shard.unread = true;
            self.wake_elector(index, now);
        }
    }

    fn stand_by_or_not(&mut self, index: usize, now: Moment) {
        let shard = &mut self.shards[index];
        let advised = if shard.slot.can_stand_by(now) { shard.advice.cache } else { roster::Cache::None };
        match (&shard.standby, shard.fence) {
            (Some(cache), fence) if advised == roster::Cache::None || fence != Some(cache.fence) => {
                shard.standby = None
            }
            (None, Some(fence))
                if advised == roster::Cache::Kept && fence == shard.own_fence && shard.fence_term.is_none() =>
            {
                self.numbers += 1;
                shard.standby = Some(Cache { number: self.numbers, fence, filled: false });
                self.effects.push(Effect::Fills(index, self.numbers));
            }
            _ => {}
        }
    }

    fn stopped(&mut self, now: Moment) -> Option<bool> {
        let give_up = self.give_up?;
        let busy = self.shards.iter().any(|shard| shard.slot.state() != State::Idle);
        let unreleased = self.shards.iter().any(|shard| shard.settled != (true, shard.sent.clone()));
        if !busy && !unreleased {
            if self.membership.profile.take().is_some() {
                self.publish_soon(now);
            }
            return (self.left || now >= give_up).then_some(true);
        }
        (now >= give_up).then_some(false)
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    // An elector.

    fn wake_elector(&mut self, index: usize, now: Moment) {
        if !std::mem::replace(&mut self.shards[index].woken, true) {
            self.effects.push(Effect::At(now, Happening::Elect(index)));
        }
    }

    fn elect(&mut self, index: usize, now: Moment) {
        self.shards[index].woken = false;
        loop {
            let shard = &mut self.shards[index];
            shard.take_sighting(now);
            let at = if shard.in_flight.is_some() {
                self.report(index, now);
                Moment::NEVER
            } else {
                let watched = shard.sees && (shard.sighting.is_some() || !shard.election.exists());
                shard.election.set_watched(watched);
                self.bury_the_dead(index, now);
                let step = self.shards[index].election.step(now);
                self.report(index, now);
                match step {
                    Step::Wait(at) => at,
                    Step::Read => {
                        let request = Request::Get(self.shards[index].lease.clone());
                        self.ask(index, None, request);
                        continue;
                    }
                    Step::Write(proposal) => {
                        match self.compose(index, &proposal) {
                            Some(request) => self.ask(index, Some(proposal), request),
                            None => self.shards[index].election.conflicted(now),
                        }
                        continue;
                    }
                }
            };
            let shard = &mut self.shards[index];
            if shard.in_flight.is_none() && std::mem::take(&mut shard.unread) {
                shard.heeds = shard.sent.clone();
                shard.election.intend(shard.heeds.clone());
                continue;
            }
            let at = at.min(shard.election.next_change(now));
            if at < Moment::NEVER && !(now < shard.wakes_at && shard.wakes_at <= at) {
                shard.wakes_at = at;
                self.effects.push(Effect::At(at, Happening::Elect(index)));
            }
            return;
        }
    }

    fn ask(&mut self, index: usize, proposal: Option<Proposal>, request: Request) {
        let id = self.number();
        self.shards[index].in_flight = Some((id, proposal));
        self.effects.push(Effect::Ask(id, request));
    }

    fn bury_the_dead(&mut self, index: usize, now: Moment) {
        let shard = &mut self.shards[index];
        let Some(holder) = shard.election.holder().filter(|holder| *holder != self.who.identity) else { return };
        let before_us = || {
            let seen = shard.objects.iter().flatten();
            let mut pods = seen.filter(|it| it.holder.as_deref() == Some(holder)).filter_map(|it| it.pod_of_holder());
            self.who.pod_uid.as_deref().is_some_and(|ours| pods.any(|pod| pod == ours))
        };
        if self.dead.contains(holder) || before_us() {
            let holder = holder.to_owned();
            shard.election.bury(now, &holder);
        }
    }

    fn answered(&mut self, id: u64, answer: Option<Answer>, now: Moment) -> Option<usize> {
        if self.membership.in_flight == Some(id) {
            self.membership_answered(answer, now);
            return None;
        }
        let waits = |shard: &Shard| matches!(&shard.in_flight, Some((waiting, _)) if *waiting == id);
        let index = self.shards.iter().position(waits)?;
        let shard = &mut self.shards[index];
        // What the watch showed meanwhile was taken in when it came.
        shard.take_sighting(now);
        let proposal = shard.in_flight.take().and_then(|(_, proposal)| proposal);
        match answer {
            Some(Answer::Read(lease)) => {
                let seen = lease.as_deref().map(Lease::observation);
                shard.objects[1] = lease;
                shard.election.read(now, seen);
            }
            Some(Answer::Stored(lease)) => {
                let seen = lease.observation();
                shard.objects[1] = Some(lease);
                shard.election.written(now, seen);
            }
            Some(Answer::Conflict) => shard.election.conflicted(now),
            Some(Answer::Deleted) => unreachable!("no elector deletes"),
            None if proposal.is_none() => shard.election.read_failed(now),
            None => shard.election.unknown(now),
        }
        self.elect(index, now);
        Some(index)
    }

    fn compose(&self, index: usize, proposal: &Proposal) -> Option<Request> {
        let shard = &self.shards[index];
        let mut lease = match &proposal.basis {
            Some(basis) => Lease::clone(shard.objects.iter().flatten().find(|lease| lease.version == *basis)?),
            None => Lease::new(&shard.lease),
        };
        let release = proposal.purpose == Purpose::Release;
        lease.weight = Some(shard.weight);
        lease.successor.clone_from(&proposal.successor);
        let pod = self.who.pod_uid.clone().filter(|_| !release);
        lease.holder_pod = pod.map(|uid| (uid, self.who.identity.clone()));
        let called = |wanted: &String| [&self.who.identity, &self.who.pod].contains(&wanted);
        if matches!(proposal.purpose, Purpose::Create | Purpose::Acquire) && !lease.wanted.as_ref().is_some_and(called)
        {
            lease.wanted = None;
        }
        lease.holder = (!release).then(|| self.who.identity.clone());
        lease.duration = if release { RELEASED } else { self.who.timings.lease_duration };
        lease.transitions = proposal.transitions;
        Some(if proposal.basis.is_some() { Request::Put(lease) } else { Request::Post(lease) })
    }

    /// Tells the supervisor what has changed, and has the fence follow.
    fn report(&mut self, index: usize, now: Moment) {
        let shard = &mut self.shards[index];
        let standing = shard.election.standing(now);
        let phase = match &standing {
            Standing::Standby => (0, 0),
            Standing::Leading(grant) => (1, grant.term),
            Standing::Losing(grant) => (2, grant.term),
        };
        match (phase.0 > 0, shard.fence_term) {
            (true, Some(term)) if term == phase.1 => {}
            (true, term) => {
                shard.own_fence += u64::from(term.is_some());
                shard.fence_term = Some(phase.1);
            }
            (false, Some(_)) => {
                shard.own_fence += 1;
                shard.fence_term = None;
            }
            (false, None) => {}
        }
        let settled = shard.election.settled();
        let said = Some((phase, settled, shard.heeds.clone()));
        if shard.reported != said {
            shard.reported = said;
            let report = Report { standing, fence: shard.own_fence, settled, heeds: shard.heeds.clone() };
            self.effects.push(Effect::At(now, Happening::Reported(index, report)));
        }
    }

    // The membership.

    fn publish_soon(&mut self, now: Moment) {
        self.membership.unread = true;
        if self.membership.in_flight.is_none() {
            self.effects.push(Effect::At(now + TOGETHER, Happening::Publish));
        }
    }

    fn publish(&mut self, now: Moment) {
        let this = &mut self.membership;
        if now < this.begins_at || this.in_flight.is_some() || this.ended || !(this.unread || now >= this.again) {
            return;
        }
        this.unread = false;
        let name = self.who.identity.replace('_', "-");
        let request = match (&this.profile, &this.stored) {
            (None, None) => return self.leave(now),
            (None, Some(stored)) => Request::Delete(name, stored.version.clone()),
            (Some(_), None) => Request::Get(name),
            (Some(_), Some(stored)) => Request::Put(Lease::clone(stored)),
        };
        self.publish_by(request);
    }

    fn publish_by(&mut self, mut request: Request) {
        if let Request::Put(lease) | Request::Post(lease) = &mut request {
            lease.holder = Some(self.who.identity.clone());
            lease.duration = self.who.timings.lease_duration;
            lease.profile.clone_from(&self.membership.profile);
        }
        let id = self.number();
        self.membership.in_flight = Some(id);
        self.effects.push(Effect::Ask(id, request));
    }

    fn membership_answered(&mut self, answer: Option<Answer>, now: Moment) {
        let this = &mut self.membership;
        this.in_flight = None;
        if this.profile.is_none() && !this.unread {
            return self.leave(now);
        }
        let wait = match answer {
            Some(Answer::Read(found)) => {
                // A profile that was taken back meanwhile is not written any more.
                if this.profile.is_some() {
                    let name = self.who.identity.replace('_', "-");
                    let request =
                        found.map_or_else(|| Request::Post(Lease::new(&name)), |it| Request::Put(Lease::clone(&it)));
                    return self.publish_by(request);
                }
                Duration::ZERO
            }
            Some(Answer::Stored(lease)) => {
                this.stored = Some(lease);
                this.published = true;
                self.who.timings.lease_duration / RENEWALS
            }
            _ => {
                this.stored = None;
                self.who.timings.request_timeout / 2
            }
        };
        this.again = now + wait;
        let at = if this.unread { now + TOGETHER } else { this.again };
        self.effects.push(Effect::At(at, Happening::Publish));
    }

    fn leave(&mut self, now: Moment) {
        self.membership.ended = true;
        self.effects.push(Effect::At(now, Happening::Left));
    }
}

impl Shard {
    fn take_sighting(&mut self, now: Moment) {
        if !std::mem::take(&mut self.unsighted) {
            return;
        }
        let never_on_the_board = self.sighting.is_none() && self.objects[0].is_none();
        if !self.sees || (never_on_the_board && self.election.exists()) {
            return;
        }
        let seen = self.sighting.as_deref().map(Lease::observation);
        self.objects[0].clone_from(&self.sighting);
        self.election.sighted(now, seen);
    }
}
