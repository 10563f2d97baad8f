//! Drives the core: one loop, and the only file that spawns.
//!
//! What has happened becomes an [`Event`], [`Replica::on`] answers with [`Effect`]s, and these are carried out in their
//! order: requests, fences, tasks. Nothing is decided here.

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
};
use tokio_util::sync::CancellationToken;

use super::{
    announce::{self, Announcer},
    board::{Board, Shown},
    clock::Clock,
    connections::{Account, Connections},
    fence::{Fence, Gate},
    hearing,
    leadership::{Leaderships, Of},
    leases::Leases,
    observe::{self, Observation},
    past,
    preflight::{self, Ask, Preflight},
    problem::panicked,
    proof::{self, Witness},
    record,
    telemetry::Telemetry,
    term::{BoxError, Promotion, Reconciler, Standby, Term},
};
use crate::{
    config::Kind,
    ops::work::{Meter, Metered},
    protocol::{
        election::{Grant, Standing},
        event::{
            Deaths, Effect, Ending, Event, Hearing, KindIndex, Loss, Notice, ShardIndex, TermNumber, Verdict, Watch,
        },
        moment::Moment,
        replica::{Replica, Setup},
        slot::Outcome,
    },
};

/// How long the writes that are on their way when a term's task ends may take to be answered.
const QUIESCE: Duration = Duration::from_secs(1);

/// What is shown to people is at most this old: at a thousand kinds it is not brought up to date for every event.
const SHOWN_EVERY: Duration = Duration::from_millis(50);

/// So many kinds of a group are named on its Lease.
const NAMED: usize = 3;

/// Why a replica ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// A task of the replica itself ended although the replica goes on.
    #[error("{0} has ended although the replica goes on: restart the process")]
    Unasked(&'static str),
    /// The work had not drained when the stop had taken as long as it may, or a second signal came.
    #[error("stopped before the work of these Leases had drained: {}", .0.join(", "))]
    Aborted(Vec<String>),
    /// Leases that are left to expire.
    #[error("stopped, but these Leases could not be released and are left to expire: {}", .0.join(", "))]
    Unreleased(Vec<String>),
    /// A term that worked was lost and the configuration says `onLoss: Exit`: the process is to end at once. Every fence is
    /// shut and every task aborted; one that blocks its thread runs on until the process ends.
    #[error("the term on the Lease {lease} is lost, and onLoss is Exit: {}", why(.loss))]
    Lost {
        /// Name of the Lease.
        lease: String,
        /// Why the term was lost.
        loss: Loss,
    },
}

/// One kind and what reconciles it.
pub struct Assignment {
    /// The kind.
    pub kind: Arc<Kind>,
    /// Its reconciler.
    pub reconciler: Arc<dyn Reconciler>,
    /// The account that it acts as; `None`: the replica's.
    pub account: Option<Account>,
}

/// What a supervisor needs from outside.
pub struct Surroundings {
    /// Who the replica is; one assignment for each kind of its specs, in the same order.
    pub setup: Setup,
    /// The process's clock.
    pub clock: Clock,
    /// Where clients come from.
    pub connections: Connections,
    /// Reads and writes Leases.
    pub leases: Leases,
    /// The Lease watch.
    pub board: (Board, mpsc::UnboundedReceiver<Shown>),
    /// Sees which processes have ended; `None` outside of a Pod.
    pub witness: Option<Witness>,
    /// For preflights.
    pub client: Client,
    /// The runtime that terms run on: not the one of the elections, so that work which blocks starves no renewal.
    pub work: Handle,
    /// Logs, metrics and status.
    pub telemetry: Telemetry,
    /// Where it is published what this replica leads.
    pub leaderships: Leaderships,
}

/// Something that wakes the loop.
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
enum Wake {
    Event(Event),
    Shown(Shown),
    Judged(KindIndex, preflight::Verdict),
    Ended(Id, Outcome),
    /// What a term, or the standby for it, hears has changed.
    Heard(KindIndex, TermNumber, watch::Receiver<hearing::Hearing>),
    /// The API server has refused a request of it.
    Refused(KindIndex, watch::Receiver<hearing::Refusals>),
    /// A task that runs as long as the replica has ended.
    Died(&'static str),
    /// A fence that was listened to is gone.
    Nothing,
}

/// What one shard has here: its fences and tasks.
struct Seat {
    /// One, or those of a group.
    members: Vec<Member>,
    /// Index of the first of them.
    first: KindIndex,
    fences: BTreeMap<TermNumber, SharedFence>,
    standby: Option<StandbyTask>,
    task: Option<TermTask>,
}

/// One kind of a shard.
struct Member {
    kind: Arc<Kind>,
    reconciler: Arc<dyn Reconciler>,
    account: Option<Account>,
    /// Of the kind's objects, as the API server serves it.
    resource: Option<String>,
}

/// A term's fence, with a gate for each member, and where the work of each is counted.
struct SharedFence {
    fence: Fence,
    gates: Vec<Gate>,
    metered: Vec<Metered>,
}

impl SharedFence {
    /// Those of its members, shown from now on.
    fn meters(&self) -> Vec<Meter> {
        self.metered.iter().for_each(Metered::show);
        self.metered.iter().map(Metered::meter).collect()
    }
}

/// The standbys of the members that have one.
struct StandbyTask {
    term: TermNumber,
    members: Vec<Option<StandbyMember>>,
}

struct StandbyMember {
    id: Id,
    abort: AbortHandle,
    client: Client,
    promotion: Promotion,
}

/// A term: a task for each member, so that one which blocks its thread does not stop the others.
struct TermTask {
    gate: Gate,
    draining: CancellationToken,
    drain_began: Option<Moment>,
    members: Vec<TermMember>,
    running: usize,
    /// The worst that has become of a member.
    outcome: Outcome,
}

struct TermMember {
    term: Term,
    abort: AbortHandle,
}

/// What a task of ours is for.
#[derive(Clone, Copy)]
enum Job {
    Standby(KindIndex, TermNumber),
    Term(KindIndex, TermNumber),
}

/// The supervisor of one replica. Dropped, it shuts every fence and aborts every task.
pub struct Supervisor {
    core: Replica,
    first: Vec<Effect>,
    clock: Clock,
    connections: Connections,
    leases: Leases,
    work_on: Handle,
    telemetry: Telemetry,
    announcer: Announcer,
    seats: Vec<Seat>,
    /// By kind: its shard, and which of its members it is.
    places: Vec<(ShardIndex, usize)>,
    // After the fences of the seats.
    leaderships: Leaderships,
    shown: mpsc::UnboundedReceiver<Shown>,
    verdicts: mpsc::UnboundedReceiver<(usize, preflight::Verdict)>,
    ask: Ask,
    deaths: watch::Receiver<proof::Deaths>,
    origin: watch::Receiver<Option<proof::Origin>>,
    expected: watch::Receiver<usize>,
    pods: watch::Receiver<proof::Pods>,
    /// Tasks that run as long as the replica.
    staff: JoinSet<&'static str>,
    /// Terms and standbys.
    work: JoinSet<Result<(), BoxError>>,
    /// Observers: they run as long as the replica, and end by themselves only with what they begin again.
    observers: JoinSet<()>,
    jobs: HashMap<Id, Job>,
    pending: FuturesUnordered<BoxFuture<'static, Wake>>,
    show_at: Moment,
}

impl Supervisor {
    /// Spawns the Lease watch, the preflight, the Pod watch and the renewal of credentials.
    pub fn new(surroundings: Surroundings, assignments: Vec<Assignment>) -> Self {
        let Surroundings { setup, clock, connections, leases, board, witness, client, work, telemetry, leaderships } =
            surroundings;
        let (board, shown) = board;
        let (verdict, verdicts) = mpsc::unbounded_channel();
        let mut staff = JoinSet::new();
        let subject = |it: &Assignment| preflight::Subject {
            kind: Arc::clone(&it.kind),
            needs: it.reconciler.needs(),
            account: it.account.clone(),
        };
        let accounts: BTreeSet<&Account> = assignments.iter().filter_map(|it| it.account.as_ref()).collect();
        let acting = accounts.into_iter().map(|it| (it.clone(), connections.client_as(Some(it)))).collect();
        let (preflight, ask) = Preflight::new(client, acting, assignments.iter().map(subject).collect(), verdict);
        staff.spawn(preflight.run().map(|()| "the preflight"));
        for lock in leases.watches(&board) {
            staff.spawn(lock.run().map(|()| "the watch of a lock"));
        }
        staff.spawn(board.run().map(|()| "the Lease watch"));
        let (announcer, said) = Announcer::new();
        let (identity, namespace) = (setup.identity.clone(), setup.namespace.clone());
        staff
            .spawn(announce::publish(connections.client(), identity, namespace, said).map(|()| "the events on Leases"));
        let past = {
            // What it reads may be long, and takes no time from elections.
            let _entered = work.enter();
            past::learn(connections.client(), setup.namespace.clone(), telemetry.clone())
        };
        staff.spawn_on(past.map(|()| "what asks for the past"), &work);
        let refreshed = connections.clone();
        staff.spawn(async move {
            refreshed.keep_fresh().await;
            "the renewal of credentials"
        });
        let (deaths, origin, expected, pods) = match witness {
            Some(witness) => {
                let seen = (witness.deaths(), witness.origin(), witness.expected(), witness.pods());
                staff.spawn(witness.run().map(|()| "the Pod watch"));
                seen
            }
            None => {
                let never = watch::Sender::default().subscribe();
                let (origin, expected) = (watch::Sender::default().subscribe(), watch::Sender::default().subscribe());
                (never, origin, expected, watch::Sender::default().subscribe())
            }
        };
        let mut members = assignments.into_iter().map(|Assignment { kind, reconciler, account }| Member {
            kind,
            reconciler,
            account,
            resource: None,
        });
        let (mut seats, mut places) = (Vec::new(), Vec::new());
        for (shard, spec) in setup.specs.iter().enumerate() {
            let members: Vec<_> = members.by_ref().take(spec.kinds.len()).collect();
            let first = places.len();
            places.extend((0..members.len()).map(|member| (shard, member)));
            seats.push(Seat { members, first, fences: BTreeMap::new(), standby: None, task: None });
        }
        let (core, first) = Replica::new(setup, clock.now());
        let mut this = Self {
            core,
            first,
            clock,
            connections,
            leases,
            work_on: work,
            telemetry,
            announcer,
            seats,
            places,
            leaderships,
            shown,
            verdicts,
            ask,
            deaths,
            origin,
            expected,
            pods,
            staff,
            work: JoinSet::new(),
            observers: JoinSet::new(),
            jobs: HashMap::new(),
            pending: FuturesUnordered::new(),
            show_at: Moment::default(),
        };
        this.observe();
        this
    }

    /// Says it on the Lease, if those who read events are concerned.
    fn announce(&self, notice: &Notice) {
        let setup = self.core.setup();
        let subject = |shard: ShardIndex| {
            let (lease, kinds) = (&self.core.shards()[shard], &self.seats[shard].members);
            let kinds: Vec<_> = kinds.iter().take(NAMED).map(|member| member.kind.name()).collect();
            let more = self.seats[shard].members.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let kind = format!("{}{more}", kinds.join(", "));
            lease.is_lease().then(|| announce::Subject {
                kind,
                lease: lease.lease().to_owned(),
                uid: lease.uid().map(str::to_owned),
            })
        };
        if let Some(announcement) = announce::of(notice, &setup.identity, &setup.namespace, subject) {
            self.announcer.say(announcement);
        }
    }

    /// Begins every observer. None of them is asked about by what leads.
    fn observe(&mut self) {
        for Member { kind, reconciler, account, .. } in self.seats.iter().flat_map(|seat| &seat.members) {
            let refusals = self.telemetry.counts_fenced(kind, self.clock);
            let fence = Fence::new(kind.lease_name.clone(), None, self.clock, refusals);
            let Some(signal) = self.leaderships.subscribe(Of::Kind(&kind.name())) else { continue };
            let (connections, gate, work_on) = (self.connections.clone(), fence.gate(), self.work_on.clone());
            let account = account.clone();
            let observation = Observation::new(Arc::clone(kind), signal, move || {
                let _entered = work_on.enter();
                connections.client_behind(&gate, account.as_ref())
            });
            if let Some(observing) = reconciler.observe(observation.clone()) {
                let (clock, telemetry) = (self.clock, self.telemetry.clone());
                let kept = observe::keep(Arc::clone(reconciler), observation, observing, fence, clock, telemetry);
                self.observers.spawn_on(kept, &self.work_on);
            }
        }
    }

    /// Runs until the first signal has drained everything; a second signal aborts what still drains.
    /// A signal stream that ends stops nothing. Dropping the future shuts every fence, aborts every task, and leaves the
    /// Leases to expire.
    ///
    /// # Errors
    /// [`Stopped`], if a task ended unasked or the stop was not clean.
    pub async fn run(mut self, signals: impl Stream<Item = ()> + Send) -> Result<(), Stopped> {
        tokio::pin!(signals);
        let mut signals = signals.chain(futures::stream::pending());
        let first = std::mem::take(&mut self.first);
        let mut ending = self.carry_out(first);
        let result = loop {
            if let Some(ending) = ending {
                break match ending {
                    Ending::Clean => Ok(()),
                    Ending::Unreleased(leases) => Err(Stopped::Unreleased(leases)),
                    Ending::Undrained(leases) => Err(Stopped::Aborted(leases)),
                    Ending::Lost { lease, loss } => Err(Stopped::Lost { lease, loss }),
                };
            }
            let event = match self.next(&mut signals).await {
                Wake::Died(who) => break Err(Stopped::Unasked(who)),
                wake => self.event(wake),
            };
            // What has happened lies before this look at the clock, and what follows from it after.
            let now = self.clock.now();
            let effects = event.map(|event| self.core.on(event, now)).unwrap_or_default();
            ending = self.carry_out(effects);
            self.show(now);
        };
        self.telemetry.show(&self.core, self.clock);
        self.telemetry.ended(result.as_ref().err());
        result
    }

    async fn next(&mut self, signals: &mut (impl Stream<Item = ()> + Unpin)) -> Wake {
        let wake_at = self.core.next_wake().min(self.show_at);
        let clock = self.clock;
        tokio::select! {
            biased;
            Some(joined) = self.work.join_next_with_id() => ended(joined),
            Some(wake) = self.pending.next() => wake,
            Some(()) = signals.next() => Wake::Event(Event::Signalled),
            Some(shown) = self.shown.recv() => Wake::Shown(shown),
            Ok(()) = self.deaths.changed() => Wake::Event(Event::Died(died(self.deaths.borrow_and_update().clone()))),
            Ok(()) = self.origin.changed() => {
                let proof::Origin { owner, revision } = self.origin.borrow_and_update().clone().unwrap_or_default();
                Wake::Event(Event::Originated { revision, owner })
            }
            Ok(()) = self.expected.changed() => Wake::Event(Event::Expected(*self.expected.borrow_and_update())),
            Ok(()) = self.pods.changed() => Wake::Event(Event::Pods(self.pods.borrow_and_update().clone())),
            Some((kind, verdict)) = self.verdicts.recv() => Wake::Judged(kind, verdict),
            Some(ended) = self.staff.join_next() => Wake::Died(ended.unwrap_or("a task that panicked")),
            () = clock.sleep_until(wake_at) => Wake::Event(Event::Woken),
        }
    }

    /// What it is to the core; `None` if it does not concern it.
    fn event(&mut self, wake: Wake) -> Option<Event> {
        match wake {
            Wake::Event(event) => Some(event),
            Wake::Shown(shown) => self.watched(shown).map(Event::Watched),
            Wake::Judged(kind, verdict) => {
                let verdict = match verdict {
                    preflight::Verdict::Runnable(served) => {
                        let Member { kind, resource, .. } = self.member_mut(kind);
                        let group = if kind.group.is_empty() { String::new() } else { format!("{}/", kind.group) };
                        *resource = (!kind.is_internal()).then(|| format!("{group}{}/{}", kind.version, served.plural));
                        Verdict::Runnable
                    }
                    preflight::Verdict::Blocked(obstacle) => Verdict::Blocked(obstacle.to_string()),
                    preflight::Verdict::Unknown(why) => Verdict::Unknown(why.to_string()),
                };
                Some(Event::Judged(kind, verdict))
            }
            Wake::Ended(id, outcome) => self.on_task_ended(id, outcome),
            Wake::Heard(kind, term, mut heard) => {
                let hearing = heard.borrow_and_update().clone();
                self.listen(kind, term, heard);
                let deaf = hearing.deaf_since.map(|_| hearing.problem.unwrap_or_default());
                Some(Event::Heard(kind, term, deaf.map_or(Hearing::Hears, Hearing::Deaf)))
            }
            Wake::Refused(kind, mut refused) => {
                let last = refused.borrow_and_update().last.clone();
                self.listen_for_refusals(kind, refused);
                let refusal = last?;
                let (shard, member) = self.places[kind];
                self.telemetry.refused(&self.seats[shard].members[member].kind, &refusal, self.clock.now());
                Some(Event::Denied(kind))
            }
            Wake::Died(_) | Wake::Nothing => None,
        }
    }

    /// What the watch shows, as values; the objects are kept for the writes that rest on them.
    fn watched(&self, shown: Shown) -> Option<Watch> {
        self.telemetry.lease_watch(&shown);
        match shown {
            Shown::Listed(leases) => {
                self.leases.saw_all(&leases);
                self.telemetry.found(&leases);
                Some(Watch::Listed(leases.iter().filter_map(|lease| record::record(lease)).collect()))
            }
            Shown::Stored(lease) => {
                self.leases.saw(&lease);
                record::record(&lease).map(Watch::Stored)
            }
            Shown::Deleted(lease) => {
                self.leases.lost(&lease);
                record::record(&lease).map(Watch::Deleted)
            }
            Shown::Failed(why) => Some(Watch::Failed(why)),
            Shown::Lock(name, objects) => {
                let shard = self.shard_of(&name)?;
                // Why it is none, the read says that follows.
                let record = self.leases.saw_lock(&name, objects);
                Some(record.map_or_else(|_no_lock| Watch::LockFailed(shard), |record| Watch::Lock(shard, record)))
            }
            Shown::LockFailed(name) => self.shard_of(&name).map(Watch::LockFailed),
        }
    }

    fn shard_of(&self, lock: &str) -> Option<ShardIndex> {
        self.seats.iter().position(|seat| seat.members.iter().any(|member| member.kind.lease_name == lock))
    }

    /// Carries out what the core wants, in its order.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Ending> {
        for effect in effects {
            match effect {
                Effect::Send(id, request) => {
                    let answer = self.leases.send(request);
                    self.pending.push(Box::pin(async move { Wake::Event(Event::Answered(id, answer.await)) }));
                }
                Effect::Extend(shard, term, until) => self.fence(shard, term).fence.extend(until),
                Effect::Shut(shard, term) => self.shut(shard, term),
                Effect::StandBy(shard, term) => self.stand_by(shard, term),
                Effect::Dismiss(shard, _) => self.dismiss(shard),
                Effect::Start { shard, grant, standby } => self.start(shard, &grant, standby == Some(true)),
                Effect::Drain(shard, _) => self.drain(shard),
                Effect::Abort(shard, _) => self.abort(shard),
                Effect::Ask(kind) => self.ask.ask_again(kind),
                Effect::Note(notice) => {
                    self.announce(&notice);
                    self.telemetry.note(&notice, self.clock);
                }
                Effect::Exit(ending) => return Some(ending),
            }
        }
        None
    }

    fn member_mut(&mut self, kind: KindIndex) -> &mut Member {
        let (shard, member) = self.places[kind];
        &mut self.seats[shard].members[member]
    }

    fn fence(&mut self, shard: ShardIndex, term: TermNumber) -> &SharedFence {
        let (clock, telemetry) = (self.clock, &self.telemetry);
        let Seat { members, fences, .. } = &mut self.seats[shard];
        fences.entry(term).or_insert_with(|| {
            let lease = members.first().map(|member| member.kind.lease_name.clone()).unwrap_or_default();
            // What the fence refuses is counted at the gate of the kind that it is refused to.
            let fence = Fence::new(lease, None, clock, |_| ());
            let metered: Vec<_> = members.iter().map(|member| telemetry.metered(&member.kind)).collect();
            let gate = |(member, metered): (&Member, &Metered)| {
                let refusals = telemetry.counts_fenced(&member.kind, clock);
                fence.beside(member.resource.clone(), metered.meter(), refusals)
            };
            SharedFence { gates: members.iter().zip(&metered).map(gate).collect(), fence, metered }
        })
    }

    /// Dropped, a fence is shut. The signal goes first: no task sees its write refused and is told that this replica leads.
    fn shut(&mut self, shard: ShardIndex, term: TermNumber) {
        if let Some(fence) = self.seats[shard].fences.remove(&term) {
            if self.seats[shard].task.as_ref().is_some_and(|task| task.gate.is(&fence.fence.gate())) {
                self.follow(shard);
            }
            drop(fence);
        }
    }

    /// The client's own tasks belong to the runtime that the work runs on.
    fn client(&self, gate: &Gate, account: Option<&Account>) -> Client {
        let _entered = self.work_on.enter();
        self.connections.client_behind(gate, account)
    }

    /// Those of a group stand by together: prepared when all are that keep a cache.
    fn stand_by(&mut self, shard: ShardIndex, term: TermNumber) {
        let gates = self.fence(shard, term).gates.clone();
        let meters = self.fence(shard, term).meters();
        let first = self.seats[shard].first;
        let (mut members, mut prepared) = (Vec::new(), Vec::new());
        for (member, (gate, meter)) in gates.iter().zip(meters).enumerate() {
            let Member { kind, reconciler, account, .. } = &self.seats[shard].members[member];
            let client = self.client(gate, account.as_ref());
            let (standby, promotion) = Standby::new(Arc::clone(kind), client.clone(), meter);
            let Some(filling) = reconciler.stand_by(standby) else {
                members.push(None);
                continue;
            };
            let kind = first + member;
            let abort = self.work.spawn_on(filling, &self.work_on);
            self.jobs.insert(abort.id(), Job::Standby(kind, term));
            prepared.push(promotion.filled.clone());
            members.push(Some(StandbyMember { id: abort.id(), abort, client, promotion }));
            // Those of the term that follows are heard by the same receiver.
            self.listen(kind, term, gate.hearing());
            self.listen_for_refusals(kind, gate.refusals());
        }
        if prepared.is_empty() {
            self.pending.push(Box::pin(async move { Wake::Event(Event::StandbyDeclined(shard)) }));
            return;
        }
        self.pending.push(Box::pin(async move {
            for filled in prepared {
                filled.cancelled().await;
            }
            Wake::Event(Event::StandbyPrepared(shard, term))
        }));
        self.seats[shard].standby = Some(StandbyTask { term, members });
    }

    fn dismiss(&mut self, shard: ShardIndex) {
        if let Some(StandbyTask { term, members }) = self.seats[shard].standby.take() {
            members.into_iter().flatten().for_each(|standby| self.dismiss_one(standby));
            self.hide(shard, term);
        }
    }

    /// Nothing works on these kinds any more.
    fn hide(&self, shard: ShardIndex, term: TermNumber) {
        self.seats[shard].fences.get(&term).into_iter().flat_map(|fence| &fence.metered).for_each(Metered::hide);
    }

    fn dismiss_one(&mut self, standby: StandbyMember) {
        standby.abort.abort();
        self.jobs.remove(&standby.id);
        // What waits for it to be filled waits no longer.
        standby.promotion.filled.cancel();
    }

    fn start(&mut self, shard: ShardIndex, grant: &Grant, warm: bool) {
        let gates = self.fence(shard, grant.term).gates.clone();
        let gate = self.fence(shard, grant.term).fence.gate();
        let draining = CancellationToken::new();
        let standby = self.seats[shard].standby.take_if(|standby| standby.term == grant.term);
        self.dismiss(shard);
        let meters = self.fence(shard, grant.term).meters();
        let mut standbys = standby.map(|standby| standby.members).unwrap_or_default().into_iter();
        let holder = self.core.setup().identity.clone();
        let mut beginning = Vec::new();
        for ((member, gate), meter) in self.seats[shard].members.iter().zip(&gates).zip(meters) {
            let standby = standbys.next().flatten();
            let client = standby
                .as_ref()
                .map_or_else(|| self.client(gate, member.account.as_ref()), |standby| standby.client.clone());
            self.telemetry.begins(&member.kind, &holder, &grant.token, warm);
            let kind = Arc::clone(&member.kind);
            let term = Term::new(kind, holder.clone(), grant.token.clone(), client, draining.clone(), meter);
            beginning.push((term, standby));
        }
        // No work begins before other tasks are told of all kinds.
        let led = beginning.iter().zip(&gates).map(|((term, _), gate)| (term.kind().name(), Some((term, gate))));
        self.leaderships.set(&led.collect::<Vec<_>>());
        let mut members = Vec::new();
        for (member, ((term, standby), gate)) in beginning.into_iter().zip(&gates).enumerate() {
            members.push(self.start_member((shard, member), grant.term, gate, term, standby));
        }
        let running = members.len();
        let outcome = Outcome::Finished;
        self.seats[shard].task = Some(TermTask { gate, draining, drain_began: None, members, running, outcome });
    }

    fn start_member(
        &mut self,
        (shard, member): (ShardIndex, usize),
        number: TermNumber,
        gate: &Gate,
        term: Term,
        standby: Option<StandbyMember>,
    ) -> TermMember {
        let kind = self.seats[shard].first + member;
        let job = Job::Term(kind, number);
        if let Some(standby) = standby {
            standby.promotion.filled.cancel();
            if standby.promotion.term.send(term.clone()).is_ok() {
                self.jobs.insert(standby.id, job);
                return TermMember { term, abort: standby.abort };
            }
            // It has just ended by itself.
            self.jobs.remove(&standby.id);
        }
        self.listen(kind, number, gate.hearing());
        self.listen_for_refusals(kind, gate.refusals());
        let (reconciler, running) = (Arc::clone(&self.seats[shard].members[member].reconciler), term.clone());
        let abort = self.work.spawn_on(async move { reconciler.run(running).await }, &self.work_on);
        self.jobs.insert(abort.id(), job);
        TermMember { term, abort }
    }

    fn drain(&mut self, shard: ShardIndex) {
        let now = self.clock.now();
        self.follow(shard);
        let seat = &mut self.seats[shard];
        if let Some(task) = &mut seat.task {
            task.drain_began = Some(now);
            let handover = self.core.shards()[shard].handover();
            for member in &task.members {
                self.telemetry.drains(member.term.kind(), member.term.token(), handover);
            }
            task.draining.cancel();
        }
    }

    fn abort(&mut self, shard: ShardIndex) {
        self.follow(shard);
        let why = match self.core.shards()[shard].standing(self.clock.now()) {
            Standing::Standby => "its right to work is over",
            Standing::Leading(_) | Standing::Losing(_) => {
                "its work did not end within drainTimeout, or a second signal came"
            }
        };
        let seat = &self.seats[shard];
        if let Some(task) = &seat.task {
            task.draining.cancel();
            for member in &task.members {
                self.telemetry.aborts(member.term.kind(), member.term.token(), why);
                member.abort.abort();
            }
        }
    }

    fn on_task_ended(&mut self, id: Id, outcome: Outcome) -> Option<Event> {
        let (kind, term) = match self.jobs.remove(&id)? {
            Job::Standby(kind, term) => {
                self.dismiss(self.places[kind].0);
                let why = match outcome {
                    Outcome::Failed(why) => format!("filling the cache failed: {why}"),
                    Outcome::Panicked(why) => format!("filling the cache panicked: {why}"),
                    Outcome::Finished | Outcome::Aborted => "the reconciler ended while it stood by".to_owned(),
                };
                return Some(Event::StandbyEnded(kind, term, why));
            }
            Job::Term(kind, term) => (kind, term),
        };
        let (shard, member) = self.places[kind];
        let now = self.clock.now();
        let task = self.seats[shard].task.as_mut()?;
        let drained = task.drain_began.map(|began| now.since(began));
        let ended = &task.members.get(member)?.term;
        self.telemetry.work_ended(ended.kind(), ended.token(), drained);
        let of_group = task.members.len() > 1;
        task.running = task.running.saturating_sub(1);
        task.outcome = worse(&task.outcome, &outcome);
        if task.running == 0 {
            self.on_term_ended(shard, term);
        }
        of_group.then_some(Event::TaskEnded(kind, term, outcome))
    }

    /// The last task has ended: nothing may be written any more, and what was sent gets a moment to be answered.
    fn on_term_ended(&mut self, shard: ShardIndex, term: TermNumber) {
        let Some(TermTask { gate, members, outcome, .. }) = self.seats[shard].task.take() else { return };
        self.follow(shard);
        gate.close();
        self.hide(shard, term);
        let leftovers: Vec<_> = members.iter().flat_map(|member| member.term.leftovers()).collect();
        self.work_on.spawn_blocking(move || drop(leftovers));
        let within = self.core.setup().timings.lease_duration;
        self.pending.push(Box::pin(async move {
            gate.quiesce(QUIESCE).await;
            let unanswered = gate.may_still_land(within);
            Wake::Event(Event::TermEnded { shard, term, outcome, unanswered })
        }));
    }

    fn listen(&mut self, kind: KindIndex, term: TermNumber, mut heard: watch::Receiver<hearing::Hearing>) {
        self.pending.push(Box::pin(async move {
            match heard.changed().await {
                Ok(()) => Wake::Heard(kind, term, heard),
                Err(_gone) => Wake::Nothing,
            }
        }));
    }

    fn listen_for_refusals(&mut self, kind: KindIndex, mut refused: watch::Receiver<hearing::Refusals>) {
        self.pending.push(Box::pin(async move {
            match refused.changed().await {
                Ok(()) => Wake::Refused(kind, refused),
                Err(_gone) => Wake::Nothing,
            }
        }));
    }

    /// Other tasks of the process are told that this replica does not lead these kinds.
    fn follow(&self, shard: ShardIndex) {
        let led = self.seats[shard].members.iter().map(|member| (member.kind.name(), None));
        self.leaderships.set(&led.collect::<Vec<_>>());
    }

    /// Brings what people see up to date, from time to time.
    fn show(&mut self, now: Moment) {
        if now >= self.show_at {
            self.telemetry.show(&self.core, self.clock);
            // Until something happens nothing changes.
            self.show_at = Moment::NEVER;
        } else {
            self.show_at = self.show_at.min(now + SHOWN_EVERY);
        }
    }
}

fn died(deaths: proof::Deaths) -> Deaths {
    let with_pods =
        |of: BTreeMap<String, String>| of.into_iter().map(|(identity, pod)| (identity, Some(pod))).collect();
    Deaths { ended: with_pods(deaths.ended), restarted: with_pods(deaths.restarted) }
}

fn ended(joined: Result<(Id, Result<(), BoxError>), JoinError>) -> Wake {
    match joined {
        Ok((id, Ok(()))) => Wake::Ended(id, Outcome::Finished),
        Ok((id, Err(error))) => Wake::Ended(id, Outcome::Failed(error.to_string())),
        Err(error) if error.is_cancelled() => Wake::Ended(error.id(), Outcome::Aborted),
        Err(error) => {
            let id = error.id();
            let panic =
                error.try_into_panic().map_or_else(|error| error.to_string(), |payload| panicked(payload.as_ref()));
            Wake::Ended(id, Outcome::Panicked(panic))
        }
    }
}

/// What becomes of a group is the worst of what becomes of its members: it fails with the first that does.
fn worse(known: &Outcome, new: &Outcome) -> Outcome {
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_) | Outcome::Panicked(_));
    match (known, new) {
        (known, _) if failed(known) => known.clone(),
        (Outcome::Aborted, new) if !failed(new) => Outcome::Aborted,
        (_, new) => new.clone(),
    }
}

/// Why a term was lost, in words.
pub(super) fn why(loss: &Loss) -> String {
    match loss {
        Loss::Deadline => "no renewal succeeded by the renew deadline, and its work is to finish".to_owned(),
        Loss::Expired => "no renewal succeeded before its validity was over, and its work had not finished".to_owned(),
        Loss::Taken(holder) => format!("{holder} holds the Lease now"),
        Loss::Gone => "the Lease is gone, or its holder was cleared".to_owned(),
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("seats", &self.seats.len()).finish_non_exhaustive()
    }
}
