//! Drives the core: one loop, and the only file that spawns.
//!
//! What has happened becomes an [`Event`], [`Replica::on`] answers with [`Effect`]s, and these are carried out in their
//! order: requests, fences, tasks. Nothing is decided here.

use std::{
    collections::{BTreeMap, HashMap},
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
    board::{Board, Shown},
    clock::Clock,
    connections::Connections,
    fence::{Fence, Gate},
    hearing,
    leases::Leases,
    preflight::{self, Ask, Preflight},
    proof::{self, Witness},
    record,
    telemetry::Telemetry,
    term::{BoxError, Promotion, Reconciler, Standby, Term},
};
use crate::{
    config::Kind,
    protocol::{
        election::Grant,
        event::{Deaths, Effect, Ending, Event, Hearing, ShardIndex, TermNumber, Verdict, Watch},
        lease::FencingToken,
        moment::Moment,
        replica::{Replica, Setup},
        slot::Outcome,
    },
};

/// How long the writes that are on their way when a term's task ends may take to be answered.
const QUIESCE: Duration = Duration::from_secs(1);

/// What is shown to people is at most this old: at a thousand kinds it is not brought up to date for every event.
const SHOWN_EVERY: Duration = Duration::from_millis(50);

/// Whether this replica leads a kind, for other tasks of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Token of the running term; `None` while this replica does not lead the kind, or drains.
    pub token: Option<FencingToken>,
}

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
    /// Who the replica is; one spec for each assignment, in the same order.
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
}

/// Something that wakes the loop.
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
enum Wake {
    Event(Event),
    Shown(Shown),
    Judged(ShardIndex, preflight::Verdict),
    Ended(Id, Outcome),
    /// What a term, or the standby for it, hears has changed.
    Heard(ShardIndex, TermNumber, watch::Receiver<hearing::Hearing>),
    /// The API server has refused a request of it.
    Refused(ShardIndex, watch::Receiver<hearing::Refusals>),
    /// A task that runs as long as the replica has ended.
    Died(&'static str),
    /// A fence that was listened to is gone.
    Nothing,
}

/// What one shard has here: its fences and tasks.
struct Seat {
    kind: Arc<Kind>,
    reconciler: Arc<dyn Reconciler>,
    leadership: watch::Sender<Leadership>,
    /// Of the kind's objects, as the API server serves it.
    resource: Option<String>,
    fences: BTreeMap<TermNumber, Fence>,
    standby: Option<StandbyTask>,
    task: Option<TermTask>,
}

struct StandbyTask {
    term: TermNumber,
    id: Id,
    abort: AbortHandle,
    client: Client,
    promotion: Promotion,
}

struct TermTask {
    term: Term,
    gate: Gate,
    draining: CancellationToken,
    abort: AbortHandle,
    drain_began: Option<Moment>,
}

/// What a task of ours is for.
#[derive(Clone, Copy)]
enum Job {
    Standby(ShardIndex, TermNumber),
    Term(ShardIndex, TermNumber),
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
    seats: Vec<Seat>,
    shown: mpsc::UnboundedReceiver<Shown>,
    verdicts: mpsc::UnboundedReceiver<(usize, preflight::Verdict)>,
    ask: Ask,
    deaths: watch::Receiver<proof::Deaths>,
    origin: watch::Receiver<Option<proof::Origin>>,
    expected: watch::Receiver<usize>,
    /// Tasks that run as long as the replica.
    staff: JoinSet<&'static str>,
    /// Terms and standbys.
    work: JoinSet<Result<(), BoxError>>,
    jobs: HashMap<Id, Job>,
    pending: FuturesUnordered<BoxFuture<'static, Wake>>,
    show_at: Moment,
}

impl Supervisor {
    /// Spawns the Lease watch, the preflight, the Pod watch and the renewal of credentials.
    pub fn new(surroundings: Surroundings, assignments: Vec<Assignment>) -> Self {
        let Surroundings { setup, clock, connections, leases, board, witness, client, work, telemetry } = surroundings;
        let (board, shown) = board;
        let (verdict, verdicts) = mpsc::unbounded_channel();
        let mut staff = JoinSet::new();
        let subject = |it: &Assignment| preflight::Subject { kind: Arc::clone(&it.kind), needs: it.reconciler.needs() };
        let (preflight, ask) = Preflight::new(client, assignments.iter().map(subject).collect(), verdict);
        staff.spawn(preflight.run().map(|()| "the preflight"));
        staff.spawn(board.run().map(|()| "the Lease watch"));
        let refreshed = connections.clone();
        staff.spawn(async move {
            refreshed.keep_fresh().await;
            "the renewal of credentials"
        });
        let (deaths, origin, expected) = match witness {
            Some(witness) => {
                let seen = (witness.deaths(), witness.origin(), witness.expected());
                staff.spawn(witness.run().map(|()| "the Pod watch"));
                seen
            }
            None => {
                let never = watch::Sender::default().subscribe();
                (never, watch::Sender::default().subscribe(), watch::Sender::default().subscribe())
            }
        };
        let seat = |Assignment { kind, reconciler, leadership }| Seat {
            kind,
            reconciler,
            leadership,
            resource: None,
            fences: BTreeMap::new(),
            standby: None,
            task: None,
        };
        let (core, first) = Replica::new(setup, clock.now());
        Self {
            core,
            first,
            clock,
            connections,
            leases,
            work_on: work,
            telemetry,
            seats: assignments.into_iter().map(seat).collect(),
            shown,
            verdicts,
            ask,
            deaths,
            origin,
            expected,
            staff,
            work: JoinSet::new(),
            jobs: HashMap::new(),
            pending: FuturesUnordered::new(),
            show_at: Moment::default(),
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
            Some((shard, verdict)) = self.verdicts.recv() => Wake::Judged(shard, verdict),
            Some(ended) = self.staff.join_next() => Wake::Died(ended.unwrap_or("a task that panicked")),
            () = clock.sleep_until(wake_at) => Wake::Event(Event::Woken),
        }
    }

    /// What it is to the core; `None` if it does not concern it.
    fn event(&mut self, wake: Wake) -> Option<Event> {
        match wake {
            Wake::Event(event) => Some(event),
            Wake::Shown(shown) => self.watched(shown).map(Event::Watched),
            Wake::Judged(shard, verdict) => {
                let verdict = match verdict {
                    preflight::Verdict::Runnable(served) => {
                        let Seat { kind, resource, .. } = &mut self.seats[shard];
                        let group = if kind.group.is_empty() { String::new() } else { format!("{}/", kind.group) };
                        *resource = (!kind.is_internal()).then(|| format!("{group}{}/{}", kind.version, served.plural));
                        Verdict::Runnable
                    }
                    preflight::Verdict::Blocked(obstacle) => Verdict::Blocked(obstacle.to_string()),
                    preflight::Verdict::Unknown(why) => Verdict::Unknown(why.to_string()),
                };
                Some(Event::Judged(shard, verdict))
            }
            Wake::Ended(id, outcome) => self.on_task_ended(id, outcome),
            Wake::Heard(shard, term, mut heard) => {
                let hearing = heard.borrow_and_update().clone();
                self.listen(shard, term, heard);
                let deaf = hearing.deaf_since.map(|_| hearing.problem.unwrap_or_default());
                Some(Event::Heard(shard, term, deaf.map_or(Hearing::Hears, Hearing::Deaf)))
            }
            Wake::Refused(shard, mut refused) => {
                let last = refused.borrow_and_update().last.clone();
                self.listen_for_refusals(shard, refused);
                let refusal = last?;
                self.telemetry.refused(&self.seats[shard].kind, &refusal);
                Some(Event::Denied(shard))
            }
            Wake::Died(_) | Wake::Nothing => None,
        }
    }

    /// What the watch shows, as values; the objects are kept for the writes that rest on them.
    fn watched(&self, shown: Shown) -> Option<Watch> {
        match shown {
            Shown::Listed(leases) => {
                self.leases.saw_all(&leases);
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
        }
    }

    /// Carries out what the core wants, in its order.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Ending> {
        for effect in effects {
            match effect {
                Effect::Send(id, request) => {
                    let answer = self.leases.send(request);
                    self.pending.push(Box::pin(async move { Wake::Event(Event::Answered(id, answer.await)) }));
                }
                Effect::Extend(shard, term, until) => self.fence(shard, term).extend(until),
                // Dropped, a fence is shut.
                Effect::Shut(shard, term) => drop(self.seats[shard].fences.remove(&term)),
                Effect::StandBy(shard, term) => self.stand_by(shard, term),
                Effect::Dismiss(shard, _) => self.dismiss(shard),
                Effect::Start { shard, grant, standby } => self.start(shard, &grant, standby == Some(true)),
                Effect::Drain(shard, _) => self.drain(shard),
                Effect::Abort(shard, _) => self.abort(shard),
                Effect::Ask(shard) => self.ask.ask_again(shard),
                Effect::Note(notice) => self.telemetry.note(&notice),
                Effect::Exit(ending) => return Some(ending),
            }
        }
        None
    }

    fn fence(&mut self, shard: ShardIndex, term: TermNumber) -> &Fence {
        let (clock, telemetry) = (self.clock, &self.telemetry);
        let Seat { kind, resource, fences, .. } = &mut self.seats[shard];
        fences.entry(term).or_insert_with(|| {
            Fence::new(kind.lease_name.clone(), resource.clone(), clock, telemetry.counts_fenced(kind))
        })
    }

    /// The client's own tasks belong to the runtime that the work runs on.
    fn client(&self, gate: &Gate) -> Client {
        let _entered = self.work_on.enter();
        self.connections.client_behind(gate)
    }

    fn stand_by(&mut self, shard: ShardIndex, term: TermNumber) {
        let gate = self.fence(shard, term).gate();
        let client = self.client(&gate);
        let seat = &mut self.seats[shard];
        let (standby, promotion) = Standby::new(Arc::clone(&seat.kind), client.clone());
        let Some(filling) = seat.reconciler.stand_by(standby) else {
            self.pending.push(Box::pin(async move { Wake::Event(Event::StandbyDeclined(shard)) }));
            return;
        };
        let abort = self.work.spawn_on(filling, &self.work_on);
        self.jobs.insert(abort.id(), Job::Standby(shard, term));
        // Those of the term that follows are heard by the same receiver.
        let (refusals, hearing) = (gate.refusals(), gate.hearing());
        let prepared = promotion.filled.clone();
        self.pending.push(Box::pin(async move {
            prepared.cancelled().await;
            Wake::Event(Event::StandbyPrepared(shard, term))
        }));
        seat.standby = Some(StandbyTask { term, id: abort.id(), abort, client, promotion });
        self.listen(shard, term, hearing);
        self.listen_for_refusals(shard, refusals);
    }

    fn dismiss(&mut self, shard: ShardIndex) {
        if let Some(standby) = self.seats[shard].standby.take() {
            standby.abort.abort();
            self.jobs.remove(&standby.id);
            // What waits for it to be filled waits no longer.
            standby.promotion.filled.cancel();
        }
    }

    fn start(&mut self, shard: ShardIndex, grant: &Grant, warm: bool) {
        let gate = self.fence(shard, grant.term).gate();
        let draining = CancellationToken::new();
        let holder = self.core.setup().identity.clone();
        let kind = Arc::clone(&self.seats[shard].kind);
        self.telemetry.begins(&kind, &holder, &grant.token, warm);
        self.lead(shard, Some(grant.token.clone()));
        let begin =
            |client| Term::new(Arc::clone(&kind), holder.clone(), grant.token.clone(), client, draining.clone());
        let standby = self.seats[shard].standby.take_if(|standby| standby.term == grant.term);
        self.dismiss(shard);
        if let Some(standby) = standby {
            standby.promotion.filled.cancel();
            let term = begin(standby.client);
            if standby.promotion.term.send(term.clone()).is_ok() {
                self.jobs.insert(standby.id, Job::Term(shard, grant.term));
                let task = TermTask { term, gate, draining: draining.clone(), abort: standby.abort, drain_began: None };
                self.seats[shard].task = Some(task);
                return;
            }
            // It has just ended by itself.
            self.jobs.remove(&standby.id);
        }
        self.listen(shard, grant.term, gate.hearing());
        self.listen_for_refusals(shard, gate.refusals());
        let term = begin(self.client(&gate));
        let (reconciler, running) = (Arc::clone(&self.seats[shard].reconciler), term.clone());
        let abort = self.work.spawn_on(async move { reconciler.run(running).await }, &self.work_on);
        self.jobs.insert(abort.id(), Job::Term(shard, grant.term));
        let task = TermTask { term, gate, draining: draining.clone(), abort, drain_began: None };
        self.seats[shard].task = Some(task);
    }

    fn drain(&mut self, shard: ShardIndex) {
        let now = self.clock.now();
        self.lead(shard, None);
        let seat = &mut self.seats[shard];
        if let Some(task) = &mut seat.task {
            task.drain_began = Some(now);
            let handover = self.core.shards()[shard].handover();
            self.telemetry.drains(&seat.kind, task.term.token(), handover);
            task.draining.cancel();
        }
    }

    fn abort(&mut self, shard: ShardIndex) {
        self.lead(shard, None);
        let seat = &self.seats[shard];
        if let Some(task) = &seat.task {
            self.telemetry.aborts(&seat.kind, task.term.token());
            task.draining.cancel();
            task.abort.abort();
        }
    }

    /// The task has ended: nothing may be written any more, and what was sent gets a moment to be answered.
    fn on_task_ended(&mut self, id: Id, outcome: Outcome) -> Option<Event> {
        let (shard, term) = match self.jobs.remove(&id)? {
            Job::Standby(shard, term) => {
                self.dismiss(shard);
                let why = match outcome {
                    Outcome::Failed(why) => format!("filling the cache failed: {why}"),
                    Outcome::Panicked(why) => format!("filling the cache panicked: {why}"),
                    Outcome::Finished | Outcome::Aborted => "the reconciler ended while it stood by".to_owned(),
                };
                return Some(Event::StandbyEnded(shard, term, why));
            }
            Job::Term(shard, term) => (shard, term),
        };
        let task = self.seats[shard].task.take()?;
        self.lead(shard, None);
        task.gate.close();
        let drained = task.drain_began.map(|began| self.clock.now().since(began));
        self.telemetry.work_ended(&self.seats[shard].kind, task.term.token(), drained);
        let leftovers = task.term.leftovers();
        self.work_on.spawn_blocking(move || drop(leftovers));
        let within = self.core.setup().timings.lease_duration;
        self.pending.push(Box::pin(async move {
            task.gate.quiesce(QUIESCE).await;
            let unanswered = task.gate.may_still_land(within);
            Wake::Event(Event::TermEnded { shard, term, outcome, unanswered })
        }));
        None
    }

    fn listen(&mut self, shard: ShardIndex, term: TermNumber, mut heard: watch::Receiver<hearing::Hearing>) {
        self.pending.push(Box::pin(async move {
            match heard.changed().await {
                Ok(()) => Wake::Heard(shard, term, heard),
                Err(_gone) => Wake::Nothing,
            }
        }));
    }

    fn listen_for_refusals(&mut self, shard: ShardIndex, mut refused: watch::Receiver<hearing::Refusals>) {
        self.pending.push(Box::pin(async move {
            match refused.changed().await {
                Ok(()) => Wake::Refused(shard, refused),
                Err(_gone) => Wake::Nothing,
            }
        }));
    }

    /// For other tasks of the process.
    fn lead(&self, shard: ShardIndex, token: Option<FencingToken>) {
        let leadership = Leadership { token };
        let sender = &self.seats[shard].leadership;
        sender.send_if_modified(|old| std::mem::replace(old, leadership.clone()) != leadership);
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
                error.try_into_panic().map_or_else(|error| error.to_string(), |payload| panic_text(payload.as_ref()));
            Wake::Ended(id, Outcome::Panicked(panic))
        }
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("seats", &self.seats.len()).finish_non_exhaustive()
    }
}
