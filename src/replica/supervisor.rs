//! Owns electors and terms: one loop over one closed [`Event`], and the only file that spawns.
//!
//! It decides nothing by itself: the [`Roster`] says where each shard shall be, and each shard's [`Slot`] what that means
//! here. It gives every term a client and a task, lets standbys fill their caches, hears how a task ends, and passes the
//! slot's intent on to the elector. Other kinds never notice what happens to one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kube::Client;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    board::{Board, Turn},
    clock::Clock,
    connections::Connections,
    elector::{Elector, Report, Shared},
    fence::Gate,
    membership::{self, Membership},
    preflight::{Preflight, Subject, Unanswered, Verdict},
    proof::{Deaths, Origin, Witness},
    record,
    term::{BoxError, Promotion, Reconciler, Standby, Term},
};
use crate::protocol::{
    election::{FencingToken, Grant, Intent},
    moment::Moment,
    roster::{self, Activity, Advice, Profile, Roster},
    slot::{self, Command, Handover, Outcome, Slot, State},
};
use crate::{
    config::Kind,
    ops::status::{Mate, ShardState},
};

/// How long the writes that are on their way when a term's task ends may take to be answered.
const QUIESCE: Duration = Duration::from_secs(1);

const NOT_ASKED: &str = "the API server was not asked yet whether every kind can be reconciled";
const MEMBERSHIP: &str = "the membership";

/// Whether this replica leads a kind, for other tasks of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Token of the running term; `None` while this replica does not lead the kind, or drains.
    pub token: Option<FencingToken>,
}

/// Why a replica ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// An elector, the board or a preflight ended although nobody asked it to.
    #[error("{0} ended unasked: the process must be restarted")]
    Unasked(&'static str),
    /// The second signal came before all work had drained.
    #[error("aborted before these kinds had drained: {}", .0.join(", "))]
    Aborted(Vec<String>),
    /// Leases that are left to expire.
    #[error("stopped, but these Leases could not be released and are left to expire: {}", .0.join(", "))]
    Unreleased(Vec<String>),
}

/// One kind and what reconciles it.
pub struct Assignment {
    /// The kind.
    pub kind: Arc<Kind>,
    /// Its reconciler.
    pub reconciler: Arc<dyn Reconciler>,
    /// Where its leadership is published.
    pub leadership: watch::Sender<Leadership>,
}

/// What a supervisor needs from outside.
pub struct Surroundings {
    /// What electors share.
    pub shared: Shared,
    /// For terms: each gets a client of its own from it.
    pub connections: Connections,
    /// For preflights.
    pub client: Client,
    /// The runtime that terms run on: not the one of the electors, so that work which blocks starves no renewal.
    pub work: Handle,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// What this replica knows of the others.
    pub roster: Roster,
    /// Who tells of processes that have ended; `None` outside of a Pod.
    pub witness: Option<Witness>,
}

/// All that can wake the supervisor.
enum Event {
    Reported(usize, Report),
    Judged(usize, Verdict),
    Turned(Turn),
    Buried(Deaths),
    Placed(Origin),
    /// What has become of our membership has changed.
    Published,
    /// The standby with this number has filled its cache.
    Prepared(usize, u64),
    TaskEnded(Id, Outcome),
    Quiesced {
        shard: usize,
        term: u64,
        outcome: Outcome,
        unanswered: bool,
    },
    Signal,
    Tick,
    /// Our membership has ended, as it was asked to.
    Left,
    Died(&'static str),
}

struct Shard {
    kind: Arc<Kind>,
    reconciler: Arc<dyn Reconciler>,
    leadership: watch::Sender<Leadership>,
    slot: Slot,
    intent: watch::Sender<Intent>,
    /// What the elector last said of itself, and under which intent.
    settled: (bool, Intent),
    /// That of the running term, or of the next one.
    fence: Option<Gate>,
    task: Option<Task>,
    standby: Option<Cache>,
    /// The reconciler has not said that it cannot stand by.
    can_keep_cache: bool,
    advice: Advice,
    /// What the slot was told of it.
    handover: Handover,
    /// The last that the preflight learnt.
    verdict: Verdict,
    /// How the last failed term ended.
    failure: Option<String>,
}

struct Task {
    term: Term,
    fence: Gate,
    draining: CancellationToken,
    abort: AbortHandle,
    drain_began: Option<Instant>,
}

/// A standby: its task fills a cache behind the fence of the next term.
struct Cache {
    /// Counts the standbys of this process.
    number: u64,
    task: Id,
    abort: AbortHandle,
    fence: Gate,
    client: Client,
    promotion: Promotion,
}

impl Shard {
    /// The preflight has said something of it.
    fn was_asked(&self) -> bool {
        self.verdict != Verdict::Unknown(Unanswered::NotAsked)
    }
}

/// What a task of ours is for.
enum Job {
    Standby(usize),
    Term(usize, u64),
}

/// The supervisor of one replica.
pub struct Supervisor {
    shared: Shared,
    connections: Connections,
    work_on: Handle,
    drain_timeout: Duration,
    roster: Roster,
    shards: Vec<Shard>,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
    verdicts: mpsc::UnboundedReceiver<(usize, Verdict)>,
    turns: mpsc::UnboundedReceiver<Turn>,
    /// Why the Lease watch does not see; `None` while it does.
    blind: Option<String>,
    deaths: watch::Receiver<Deaths>,
    origin: watch::Receiver<Option<Origin>>,
    /// What the electors are told of the dead.
    dead: watch::Sender<Arc<BTreeSet<String>>>,
    profile: watch::Sender<Option<Profile>>,
    membership: Arc<Membership>,
    /// The Leases were listed, and we have described ourselves accordingly.
    seen: CancellationToken,
    published: watch::Receiver<membership::Standing>,
    /// Whether something has been seen that the advice must follow.
    stale: bool,
    /// When the advice is to be asked for again by itself, and the litter looked for.
    advise_at: Moment,
    collect_at: Moment,
    staff: JoinSet<&'static str>,
    work: JoinSet<Result<(), BoxError>>,
    jobs: HashMap<Id, Job>,
    standbys: u64,
    pending: FuturesUnordered<BoxFuture<'static, Event>>,
    left: bool,
    /// When the stop has taken as long as it may; set by the first signal.
    give_up: Option<Moment>,
}

impl Supervisor {
    /// Spawns electors, board, membership, witness and preflights for these kinds.
    pub fn new(
        surroundings: Surroundings,
        (mut board, turns): (Board, mpsc::UnboundedReceiver<Turn>),
        assignments: Vec<Assignment>,
    ) -> Self {
        let Surroundings { shared, connections, client, work, drain_timeout, roster, witness } = surroundings;
        let (report, reports) = mpsc::unbounded_channel();
        let (verdict, verdicts) = mpsc::unbounded_channel();
        let dead = watch::Sender::default();
        let mut staff = JoinSet::new();
        let mut shards = Vec::new();
        let mut subjects = Vec::new();
        for (index, Assignment { kind, reconciler, leadership }) in assignments.into_iter().enumerate() {
            let (intent, intents) = watch::channel(Intent::default());
            let sightings = board.follow(&kind.lease_name);
            let elector = Elector::new(
                shared.clone(),
                index,
                Arc::clone(&kind),
                sightings,
                intents,
                dead.subscribe(),
                report.clone(),
            );
            staff.spawn(elector.run().map(|()| "an elector"));
            subjects.push(Subject { kind: Arc::clone(&kind), needs: reconciler.needs() });
            let name = kind.name();
            shared.status.update(&kind.lease_name, |status| status.kind = name);
            shards.push(Shard {
                kind,
                reconciler,
                leadership,
                slot: Slot::new(drain_timeout),
                intent,
                settled: (true, Intent::default()),
                fence: None,
                task: None,
                standby: None,
                can_keep_cache: true,
                advice: Advice::default(),
                handover: Handover::Stay,
                verdict: Verdict::Unknown(Unanswered::NotAsked),
                failure: None,
            });
        }
        let (preflight, _ask) = Preflight::new(client, subjects, verdict);
        staff.spawn(preflight.run().map(|()| "the preflight"));
        staff.spawn(board.run().map(|()| "the Lease watch"));
        staff.spawn({
            let connections = connections.clone();
            async move {
                connections.keep_fresh().await;
                "what renews the credentials"
            }
        });
        let (deaths, origin) = match witness {
            Some(witness) => {
                let heard = (witness.deaths(), witness.origin());
                staff.spawn(witness.run().map(|()| "the Pod watch"));
                heard
            }
            None => (watch::Sender::default().subscribe(), watch::Sender::default().subscribe()),
        };
        let membership = Arc::new(Membership(shared.clone()));
        let profile = watch::Sender::new(Some(roster.me().clone()));
        let standing = watch::Sender::default();
        let published = standing.subscribe();
        let (seen, patience) = (CancellationToken::new(), shared.timings.request_timeout);
        staff.spawn({
            let (seen, membership, profiles) = (seen.clone(), Arc::clone(&membership), profile.subscribe());
            async move {
                // What we lay claim to is known when the Leases are; without them we are there all the same.
                let _seen_or_not = tokio::time::timeout(patience, seen.cancelled()).await;
                Membership::run(membership, profiles, standing).await;
                MEMBERSHIP
            }
        });
        Self {
            shared,
            connections,
            work_on: work,
            drain_timeout,
            roster,
            shards,
            reports,
            verdicts,
            turns,
            blind: Some("the Lease watch has not listed yet".to_owned()),
            deaths,
            origin,
            dead,
            profile,
            membership,
            seen,
            published,
            stale: true,
            advise_at: Moment::NEVER,
            collect_at: Moment::default(),
            staff,
            work: JoinSet::new(),
            jobs: HashMap::new(),
            standbys: 0,
            pending: FuturesUnordered::new(),
            left: false,
            give_up: None,
        }
    }

    /// Runs until the first signal has drained everything; a second signal aborts what still drains.
    /// A signal stream that ends is never heard of again, and stops nothing.
    ///
    /// # Errors
    /// [`Stopped`], if a task ended unasked or the stop was not clean.
    pub async fn run(mut self, signals: impl Stream<Item = ()> + Send) -> Result<(), Stopped> {
        tokio::pin!(signals);
        let mut signals = signals.chain(futures::stream::pending());
        let result = loop {
            let event = self.next_event(&mut signals).await;
            if let Some(result) = self.on_event(event) {
                break result;
            }
        };
        self.shared.status.update_replica(|replica| replica.supervisor_stopped = result.is_err());
        result
    }

    async fn next_event(&mut self, signals: &mut (impl Stream<Item = ()> + Unpin)) -> Event {
        let clock = self.clock();
        let now = clock.now();
        let wake = self.shards.iter().map(|shard| shard.slot.next_wake(now)).min().unwrap_or(Moment::NEVER);
        let wake = wake.min(self.give_up.unwrap_or(Moment::NEVER)).min(self.advise_at).min(self.collect_at);
        tokio::select! {
            biased;
            Some((shard, report)) = self.reports.recv() => Event::Reported(shard, report),
            Some(joined) = self.work.join_next_with_id() => task_ended(joined),
            Some(event) = self.pending.next() => event,
            Some(()) = signals.next() => Event::Signal,
            Some(turn) = self.turns.recv() => Event::Turned(turn),
            Ok(()) = self.deaths.changed() => Event::Buried(self.deaths.borrow_and_update().clone()),
            Ok(()) = self.origin.changed() => Event::Placed(self.origin.borrow_and_update().clone().unwrap_or_default()),
            Some((shard, verdict)) = self.verdicts.recv() => Event::Judged(shard, verdict),
            Ok(()) = self.published.changed() => {
                self.published.mark_unchanged();
                Event::Published
            },
            Some(ended) = self.staff.join_next() => match ended {
                Ok(MEMBERSHIP) if self.profile.borrow().is_none() => Event::Left,
                ended => Event::Died(ended.unwrap_or("a panicking task")),
            },
            () = clock.sleep_until(wake) => Event::Tick,
        }
    }

    fn on_event(&mut self, event: Event) -> Option<Result<(), Stopped>> {
        match event {
            Event::Reported(shard, report) => self.on_report(shard, report),
            Event::Judged(shard, verdict) => self.on_verdict(shard, verdict),
            Event::Turned(turn) => self.on_turn(turn),
            Event::Buried(deaths) => self.on_deaths(deaths),
            Event::Placed(origin) => {
                let revision = origin.revision;
                self.introduce(|me| me.revision = revision);
            }
            Event::Published => {}
            Event::Prepared(shard, number) => self.on_prepared(shard, number),
            Event::TaskEnded(id, outcome) => self.on_task_ended(id, outcome),
            Event::Quiesced { shard, term, outcome, unanswered } => {
                self.tell(shard, slot::Event::Ended { term, outcome, unanswered });
            }
            Event::Signal => self.on_signal(),
            Event::Tick => (0..self.shards.len()).for_each(|shard| self.tell(shard, slot::Event::Tick)),
            Event::Left => self.left = true,
            Event::Died(who) => {
                error!("{who} ended unasked");
                return Some(Err(Stopped::Unasked(who)));
            }
        }
        self.advise();
        if self.blind.is_none() {
            self.seen.cancel();
        }
        self.say_whether_ready();
        self.stopped()
    }

    /// Takes in what the board shows; a renewal alone is no news.
    fn on_turn(&mut self, turn: Turn) {
        let now = self.clock().now();
        self.stale |= match turn {
            Turn::Listed(leases) => {
                let members = leases.iter().filter_map(|lease| record::member(lease)).collect();
                let holding =
                    |lease: &Arc<record::Lease>| Some((lease.metadata.name.clone()?, record::holding(lease)?));
                self.roster.listed(now, members, leases.iter().filter_map(holding).collect());
                self.blind = None;
                self.collect_predecessors();
                true
            }
            Turn::Stored(lease) => match (record::member(&lease), record::holding(&lease), &lease.metadata.name) {
                (Some(member), _, _) => self.roster.member(now, member),
                (None, Some(holding), Some(name)) => self.roster.holding(now, name, Some(holding)),
                _ => false,
            },
            Turn::Deleted(lease) => match (record::member(&lease), &lease.metadata.name) {
                (Some(member), _) => self.roster.member_gone(&member.identity),
                (None, Some(name)) => self.roster.holding(now, name, None),
                (None, None) => false,
            },
            Turn::Blind(why) => {
                self.roster.blind();
                self.blind = Some(why);
                true
            }
        };
    }

    fn on_deaths(&mut self, deaths: Deaths) {
        // Whose container runs again takes its Leases back itself; the others stand in line for them, as is due.
        let ended: BTreeSet<_> = deaths.ended.into_keys().collect();
        let dead: BTreeSet<_> = ended.iter().cloned().chain(deaths.restarted.into_keys()).collect();
        self.stale |= self.roster.bury(&ended);
        self.dead.send_replace(Arc::new(dead));
    }

    /// Whoever was in our Pod before us is dead, and the others need not find that out by its silence.
    fn collect_predecessors(&mut self) {
        let predecessors: Vec<_> = self.roster.predecessors().map(|it| (it.name.clone(), it.version.clone())).collect();
        self.collect(predecessors);
    }

    fn collect(&mut self, litter: Vec<(String, crate::protocol::election::Version)>) {
        for (name, version) in litter {
            info!(lease = name, "collecting a Lease that nobody needs any more");
            let membership = Arc::clone(&self.membership);
            self.pending.push(Box::pin(async move {
                membership.delete(&name, version).await;
                Event::Tick
            }));
        }
    }

    /// Changes what we say of ourselves.
    fn introduce(&mut self, change: impl FnOnce(&mut Profile)) {
        let mut me = self.roster.me().clone();
        change(&mut me);
        if me != *self.roster.me() {
            self.roster.introduce(me.clone());
            self.stale = true;
            self.profile.send_if_modified(|profile| match profile {
                Some(profile) => {
                    *profile = me;
                    true
                }
                None => false,
            });
        }
    }

    /// Has every slot hear where its shard shall be, until nothing new follows from that.
    fn advise(&mut self) {
        let now = self.clock().now();
        if now >= self.collect_at {
            self.collect_at = now + self.shared.timings.lease_duration;
            let litter = self.roster.litter(now);
            self.collect(litter);
        }
        self.describe_ourselves(now);
        if !std::mem::replace(&mut self.stale, false) && now < self.advise_at {
            return;
        }
        let counsel = self.roster.advise(now);
        self.advise_at = counsel.next.unwrap_or(Moment::NEVER);
        let mate = |(identity, activity, newest): (String, Activity, bool)| Mate {
            identity,
            draining: activity == Activity::Draining,
            newest,
        };
        let crew: Vec<_> = counsel.crew.into_iter().map(mate).collect();
        self.shared.metrics.set_replicas(crew.len());
        self.shared.status.update_replica(|replica| replica.crew = crew);
        let mut advice = counsel.shards;
        for index in 0..self.shards.len() {
            let advice = advice.remove(&self.shards[index].kind.lease_name).unwrap_or_default();
            self.heed(index, advice);
        }
        self.describe_ourselves(now);
    }

    fn heed(&mut self, index: usize, advice: Advice) {
        let stopping = self.give_up.is_some();
        let handover = match &advice.hand_over {
            Some((successor, prepared)) => Handover::To { successor: successor.clone(), prepared: *prepared },
            // A Lease that the watch does not show as ours yet will be, and then we know who follows.
            None if stopping && (advice.held || self.blind.is_some()) => Handover::ToNobody,
            None => Handover::Stay,
        };
        if (&self.shards[index].advice, &self.shards[index].handover) == (&advice, &handover) {
            return;
        }
        if let (Some((successor, false)), State::Running) = (&advice.hand_over, self.shards[index].slot.state())
            && self.shards[index].advice.hand_over.as_ref().map(|(old, _)| old) != Some(successor)
        {
            let shard = &self.shards[index];
            info!(kind = shard.kind.name(), lease = shard.kind.lease_name, successor, "handing over: successor named");
        }
        self.shards[index].advice = advice;
        self.shards[index].handover = handover.clone();
        self.tell(index, slot::Event::Handover(handover));
    }

    /// Brings what the others know of us up to what is true.
    fn describe_ourselves(&mut self, now: Moment) {
        let mut unable = BTreeSet::new();
        let mut failing = BTreeSet::new();
        let mut prepared = BTreeMap::new();
        for shard in &self.shards {
            let lease = &shard.kind.lease_name;
            // A process that is restarted is to get its kinds back before anybody else, and could run them before.
            let hopeful = !shard.was_asked() && self.roster.comes_back(lease);
            // While we stop we say so by our activity; a term that runs is no sign of being unable.
            if self.give_up.is_none() && !hopeful && !shard.slot.can_run(now) {
                unable.insert(lease.clone());
            }
            if shard.slot.failing_until(now).is_some() {
                failing.insert(lease.clone());
            }
            let filled = shard.standby.as_ref().is_some_and(|cache| cache.promotion.filled.is_cancelled());
            // Who cannot stand by has nothing to fill.
            let ready = filled || (shard.slot.can_stand_by(now) && !shard.can_keep_cache);
            if let (Some(token), true) = (&shard.advice.named, ready) {
                prepared.insert(lease.clone(), token.clone());
            }
        }
        let activity = if self.give_up.is_some() { Activity::Draining } else { Activity::Active };
        self.introduce(|me| {
            me.activity = activity;
            me.unable = unable;
            me.failing = failing;
            me.prepared = prepared;
        });
    }

    fn say_whether_ready(&mut self) {
        let unasked = !self.shards.iter().all(Shard::was_asked);
        let standing = self.published.borrow().clone();
        let unready = self.blind.clone().or_else(|| match standing {
            membership::Standing { published: false, trouble } => {
                Some(trouble.unwrap_or_else(|| "the membership Lease is not written yet".to_owned()))
            }
            // A rollout goes on when we are ready: by then we must be somebody to hand over to.
            _ => unasked.then(|| NOT_ASKED.to_owned()),
        });
        self.shared.status.update_replica(|replica| {
            replica.identity.clone_from(&self.shared.identity);
            replica.unready = unready;
        });
    }

    fn on_report(&mut self, shard: usize, report: Report) {
        self.shards[shard].settled = (report.settled, report.heeds);
        self.shards[shard].fence = Some(report.fence);
        self.tell(shard, slot::Event::Standing(report.standing));
    }

    fn on_verdict(&mut self, index: usize, verdict: Verdict) {
        let shard = &mut self.shards[index];
        let (kind, lease) = (shard.kind.name(), &shard.kind.lease_name);
        if matches!(verdict, Verdict::Unknown(_)) && !matches!(shard.verdict, Verdict::Unknown(_)) {
            // What was known stays true until the API server says otherwise.
            return;
        }
        if verdict != shard.verdict {
            match &verdict {
                Verdict::Runnable(_) => info!(kind, lease, "can be led here"),
                Verdict::Blocked(why) => warn!(kind, lease, "not led here: {why}"),
                Verdict::Unknown(why) => warn!(kind, lease, "not led here: {why}"),
            }
        }
        let runnable = matches!(verdict, Verdict::Runnable(_));
        shard.verdict = verdict;
        self.shared.metrics.blocked(&kind, !runnable);
        self.tell(index, slot::Event::Runnable(runnable));
    }

    fn on_signal(&mut self) {
        let now = self.clock().now();
        let release = self.shared.timings.request_timeout * 2 + QUIESCE + Duration::from_secs(2);
        let event = if self.give_up.is_none() {
            info!("stopping: handing every kind over; a second signal aborts");
            self.shared.status.update_replica(|replica| replica.stopping = true);
            self.give_up = Some(now + slot::PREPARE.min(self.drain_timeout) + self.drain_timeout + release);
            slot::Event::Stop
        } else {
            warn!("aborting");
            self.give_up = Some(now + release);
            slot::Event::Abort
        };
        for shard in 0..self.shards.len() {
            // Who follows is told next, or that nobody does.
            self.tell(shard, event.clone());
        }
        self.stale = true;
    }

    /// Tells a slot what happened, does what it answers, and passes its intent on.
    fn tell(&mut self, index: usize, event: slot::Event) {
        let now = self.clock().now();
        match self.shards[index].slot.on(event, now) {
            Some(Command::Start(grant)) => self.start(index, &grant),
            Some(Command::Drain) => self.drain(index),
            Some(Command::Abort) => self.abort(index),
            None => {}
        }
        self.stand_by_or_not(index, now);
        let courtesy = self.roster.grace();
        let shard = &self.shards[index];
        let intent = Intent { patience: shard.advice.patience, courtesy, ..shard.slot.intent(now) };
        shard.intent.send_if_modified(|sent| std::mem::replace(sent, intent.clone()) != intent);
        self.publish(index, now);
    }

    /// Begins or ends the standby, as it is wanted and possible now.
    fn stand_by_or_not(&mut self, index: usize, now: Moment) {
        let shard = &self.shards[index];
        let possible = shard.can_keep_cache && shard.slot.can_stand_by(now);
        let advised = if possible { shard.advice.cache } else { roster::Cache::None };
        match (&shard.standby, &shard.fence) {
            (Some(cache), fence)
                if advised == roster::Cache::None || !fence.as_ref().is_some_and(|fence| fence.is(&cache.fence)) =>
            {
                self.dismiss(index);
            }
            (None, Some(fence)) if advised == roster::Cache::Kept && fence.is_before_its_term() => {
                let fence = fence.clone();
                self.stand_by(index, fence);
            }
            _ => {}
        }
    }

    fn stand_by(&mut self, index: usize, fence: Gate) {
        let client = self.client(&fence);
        let shard = &mut self.shards[index];
        let (standby, promotion) = Standby::new(Arc::clone(&shard.kind), client.clone());
        let Some(filling) = shard.reconciler.stand_by(standby) else {
            shard.can_keep_cache = false;
            return;
        };
        let abort = self.work.spawn_on(filling, &self.work_on);
        self.standbys += 1;
        let (number, filled) = (self.standbys, promotion.filled.clone());
        self.jobs.insert(abort.id(), Job::Standby(index));
        self.pending.push(Box::pin(async move {
            filled.cancelled().await;
            Event::Prepared(index, number)
        }));
        shard.standby = Some(Cache { number, task: abort.id(), abort, fence, client, promotion });
    }

    fn dismiss(&mut self, index: usize) {
        if let Some(cache) = self.shards[index].standby.take() {
            cache.abort.abort();
            self.jobs.remove(&cache.task);
            // Whoever waits for it to be filled waits no longer.
            cache.promotion.filled.cancel();
        }
    }

    fn on_prepared(&mut self, index: usize, number: u64) {
        let shard = &self.shards[index];
        if shard.standby.as_ref().is_some_and(|cache| cache.number == number) {
            info!(kind = shard.kind.name(), lease = shard.kind.lease_name, "standing by: the cache is filled");
            self.stale = true;
            self.publish(index, self.clock().now());
        }
    }

    /// The client's own tasks belong to the runtime that the work runs on.
    fn client(&self, fence: &Gate) -> Client {
        let _entered = self.work_on.enter();
        self.connections.client_behind(fence)
    }

    fn start(&mut self, index: usize, grant: &Grant) {
        let holder = self.shared.identity.clone();
        let Some(fence) = self.shards[index].fence.clone() else {
            self.quiesce(index, grant.term, Outcome::Failed("the grant came without a fence".to_owned()));
            return;
        };
        let (kind, lease) = (self.shards[index].kind.name(), self.shards[index].kind.lease_name.clone());
        let draining = CancellationToken::new();
        let begin = |kind: &Arc<Kind>, client: Client| {
            Term::new(Arc::clone(kind), holder.clone(), grant.token.clone(), client, draining.clone())
        };
        // A cache that was filled behind this very fence begins the term with it.
        let cache = self.shards[index].standby.take_if(|cache| cache.fence.is(&fence));
        self.dismiss(index);
        if let Some(cache) = cache {
            let warm = cache.promotion.filled.is_cancelled();
            cache.promotion.filled.cancel();
            let term = begin(&self.shards[index].kind, cache.client);
            if cache.promotion.term.send(term.clone()).is_ok() {
                info!(kind, lease, holder, token = %grant.token, warm, "leading: the term begins");
                self.jobs.insert(cache.task, Job::Term(index, grant.term));
                self.shards[index].task = Some(Task { term, fence, draining, abort: cache.abort, drain_began: None });
                return;
            }
            self.jobs.remove(&cache.task);
        }
        let client = self.client(&fence);
        info!(kind, lease, holder, token = %grant.token, warm = false, "leading: the term begins");
        let shard = &mut self.shards[index];
        let term = begin(&shard.kind, client);
        let reconciler = Arc::clone(&shard.reconciler);
        let running = term.clone();
        let abort = self.work.spawn_on(async move { reconciler.run(running).await }, &self.work_on);
        self.jobs.insert(abort.id(), Job::Term(index, grant.term));
        shard.task = Some(Task { term, fence, draining, abort, drain_began: None });
    }

    #[expect(clippy::disallowed_methods, reason = "measures the drain and decides nothing")]
    fn drain(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        if let Some(task) = &mut shard.task {
            info!(kind = shard.kind.name(), lease = shard.kind.lease_name, token = %task.term.token(), "draining");
            task.drain_began = Some(Instant::now());
            if matches!(shard.handover, Handover::To { .. }) {
                self.shared.metrics.handed_over(&shard.kind.name());
            }
            task.draining.cancel();
        }
    }

    fn abort(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        if let Some(task) = &shard.task {
            task.fence.close();
            warn!(kind = shard.kind.name(), lease = shard.kind.lease_name, token = %task.term.token(), "aborting the term");
            task.draining.cancel();
            task.abort.abort();
            self.shared.metrics.aborted(&shard.kind.name());
        }
    }

    fn on_task_ended(&mut self, id: Id, outcome: Outcome) {
        match self.jobs.remove(&id) {
            Some(Job::Term(index, term)) => self.quiesce(index, term, outcome),
            Some(Job::Standby(index)) => {
                let shard = &mut self.shards[index];
                let why = match outcome {
                    Outcome::Failed(why) => format!("filling the cache failed: {why}"),
                    Outcome::Panicked(why) => format!("filling the cache panicked: {why}"),
                    Outcome::Finished | Outcome::Aborted => "the reconciler ended while it stood by".to_owned(),
                };
                error!(kind = shard.kind.name(), lease = shard.kind.lease_name, "{why}");
                shard.failure = Some(why);
                self.dismiss(index);
                self.stale = true;
                self.tell(index, slot::Event::StandbyFailed);
            }
            // It was dismissed.
            None => {}
        }
    }

    /// The task has ended: nothing may be written any more, and what was sent gets a moment to be answered.
    fn quiesce(&mut self, index: usize, term: u64, outcome: Outcome) {
        let within = self.shared.timings.lease_duration;
        let shard = &mut self.shards[index];
        let (kind, lease) = (shard.kind.name(), &shard.kind.lease_name);
        let asked = shard.slot.state() != State::Running;
        shard.failure = match &outcome {
            Outcome::Failed(why) => Some(format!("the reconciler failed: {why}")),
            Outcome::Panicked(why) => Some(format!("the reconciler panicked: {why}")),
            Outcome::Finished if !asked => Some("the reconciler ended although its term went on".to_owned()),
            Outcome::Finished | Outcome::Aborted => None,
        };
        if let Some(why) = &shard.failure {
            error!(kind, lease, "{why}");
            self.shared.metrics.term_failed(&kind);
        }
        let mut fence = None;
        if let Some(task) = shard.task.take() {
            let drained = task.drain_began.map(|began| began.elapsed());
            if let Some(took) = drained {
                self.shared.metrics.drained(&kind, took);
            }
            info!(kind, lease, token = %task.term.token(), drained = ?drained, "the term's work has ended");
            task.fence.close();
            fence = Some(task.fence);
            let leftovers = task.term.leftovers();
            self.work_on.spawn_blocking(move || drop(leftovers));
        }
        self.pending.push(Box::pin(async move {
            let mut unanswered = false;
            if let Some(fence) = fence {
                fence.quiesce(QUIESCE).await;
                unanswered = fence.may_still_land(within);
            }
            Event::Quiesced { shard: index, term, outcome, unanswered }
        }));
    }

    fn publish(&self, index: usize, now: Moment) {
        let shard = &self.shards[index];
        let (state, reason) = match (shard.slot.state(), &shard.verdict) {
            (State::Running, _) => (ShardState::Leading, None),
            (State::Draining | State::Aborting, _) => (ShardState::Draining, None),
            (State::Idle, Verdict::Blocked(why)) => (ShardState::Blocked, Some(why.to_string())),
            (State::Idle, Verdict::Unknown(why)) => (ShardState::Starting, Some(why.to_string())),
            (State::Idle, Verdict::Runnable(_)) if shard.slot.cooling_until(now).is_some() => {
                (ShardState::CoolingDown, shard.failure.clone())
            }
            (State::Idle, Verdict::Runnable(_)) => (ShardState::Standby, None),
        };
        let token = shard.task.as_ref().map(|task| task.term.token().clone());
        let leading = state == ShardState::Leading;
        let leadership = Leadership { token: token.clone().filter(|_| leading) };
        shard.leadership.send_if_modified(|old| std::mem::replace(old, leadership.clone()) != leadership);
        self.shared.metrics.set_leading(&shard.kind.name(), leading);
        let cached = shard.standby.as_ref().is_some_and(|cache| cache.promotion.filled.is_cancelled());
        self.shared.metrics.set_cached(&shard.kind.name(), cached);
        self.shared.status.update(&shard.kind.lease_name, |status| {
            status.state = state;
            status.reason = reason;
            status.running = shard.slot.state() != State::Idle;
            status.token = token.map(|token| token.to_string());
            status.target.clone_from(&shard.advice.target);
            status.successor = shard.advice.hand_over.as_ref().map(|(successor, _)| successor.clone());
            status.cache = shard.standby.as_ref().map(|cache| cache.promotion.filled.is_cancelled());
        });
    }

    fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// The result, once a stop was asked for and is done, or has taken as long as it may.
    fn stopped(&self) -> Option<Result<(), Stopped>> {
        let give_up = self.give_up?;
        let names = |keep: &dyn Fn(&&Shard) -> bool| -> Vec<String> {
            self.shards.iter().filter(keep).map(|shard| shard.kind.lease_name.clone()).collect()
        };
        let busy = names(&|shard| shard.slot.state() != State::Idle);
        // An elector that has not heeded the last intent may be about to acquire.
        let unreleased = names(&|shard| shard.settled != (true, shard.intent.borrow().clone()));
        if busy.is_empty() && unreleased.is_empty() {
            // Nothing is left to be done here: the others need not wait for our silence.
            self.profile.send_if_modified(|profile| profile.take().is_some());
            if !self.left && self.clock().now() < give_up {
                return None;
            }
            let left = names(&|shard| {
                let intent = shard.intent.borrow();
                intent.abandoned > 0 && intent.abandoned >= intent.ended
            });
            return Some(if left.is_empty() { Ok(()) } else { Err(Stopped::Unreleased(left)) });
        }
        (self.clock().now() >= give_up).then_some(Err(if busy.is_empty() {
            Stopped::Unreleased(unreleased)
        } else {
            Stopped::Aborted(busy)
        }))
    }
}

fn task_ended(joined: Result<(Id, Result<(), BoxError>), JoinError>) -> Event {
    match joined {
        Ok((id, Ok(()))) => Event::TaskEnded(id, Outcome::Finished),
        Ok((id, Err(error))) => Event::TaskEnded(id, Outcome::Failed(error.to_string())),
        Err(error) if error.is_cancelled() => Event::TaskEnded(error.id(), Outcome::Aborted),
        Err(error) => {
            let id = error.id();
            let panic =
                error.try_into_panic().map_or_else(|error| error.to_string(), |payload| panic_text(payload.as_ref()));
            Event::TaskEnded(id, Outcome::Panicked(panic))
        }
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl Drop for Supervisor {
    /// Nothing is written after a replica, by work that outlives it neither. The electors own the fences, and end when
    /// their runtime gets to it: too late, if it is held up.
    fn drop(&mut self) {
        for shard in &self.shards {
            let (task, standby) = (shard.task.as_ref(), shard.standby.as_ref());
            let gates = [shard.fence.as_ref(), task.map(|task| &task.fence), standby.map(|cache| &cache.fence)];
            gates.into_iter().flatten().for_each(Gate::close);
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}
