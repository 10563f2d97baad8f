//! Owns electors and terms: one loop over one closed [`Event`], and the only file that spawns.
//!
//! It decides nothing by itself: each shard's [`Slot`] does. It gives every term a fence, a client and a task, hears how
//! the task ends, and passes the slot's intent on to the elector. Other kinds never notice what happens to one.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

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
    board::{Blindness, Board},
    clock::Clock,
    election::{FencingToken, Grant, Intent},
    elector::{Elector, Report, Shared},
    fence::Fence,
    moment::Moment,
    preflight::{self, Verdict},
    slot::{self, Command, Outcome, Slot, State},
    term::{BoxError, Reconciler, Term},
};
use crate::{config::Kind, ops::status::ShardState};

/// How long the writes that are on their way when a term's task ends may take to be answered.
const QUIESCE: Duration = Duration::from_secs(1);

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
    pub config: kube::Config,
    /// For preflights.
    pub client: Client,
    /// The runtime that terms run on: not the one of the electors, so that work which blocks starves no renewal.
    pub work: Handle,
    /// How long a drain may take.
    pub drain_timeout: Duration,
}

/// All that can wake the supervisor.
enum Event {
    Reported(usize, Report),
    Judged(usize, Verdict),
    Seeing(Blindness),
    TaskEnded(Id, Outcome),
    Quiesced { shard: usize, term: u64, outcome: Outcome, unanswered: bool },
    Signal,
    Tick,
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
    fence: Option<Fence>,
    task: Option<Task>,
    /// The last that the preflight learnt.
    verdict: Verdict,
    /// How the last failed term ended.
    failure: Option<String>,
}

struct Task {
    token: FencingToken,
    draining: CancellationToken,
    abort: AbortHandle,
    drain_began: Option<Instant>,
}

/// The supervisor of one replica.
pub struct Supervisor {
    surroundings: Surroundings,
    shards: Vec<Shard>,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
    verdicts: mpsc::UnboundedReceiver<(usize, Verdict)>,
    blindness: watch::Receiver<Blindness>,
    staff: JoinSet<&'static str>,
    work: JoinSet<Result<(), BoxError>>,
    running: HashMap<Id, (usize, u64)>,
    quiescing: FuturesUnordered<BoxFuture<'static, Event>>,
    /// When the stop has taken as long as it may; set by the first signal.
    give_up: Option<Moment>,
}

impl Supervisor {
    /// Spawns electors, board and preflights for these kinds.
    pub fn new(surroundings: Surroundings, mut board: Board, assignments: Vec<Assignment>) -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let (verdict, verdicts) = mpsc::unbounded_channel();
        let blindness = board.blindness();
        let mut staff = JoinSet::new();
        let mut shards = Vec::new();
        for (index, Assignment { kind, reconciler, leadership }) in assignments.into_iter().enumerate() {
            let (intent, intents) = watch::channel(Intent::default());
            let sightings = board.follow(&kind.lease_name);
            let elector =
                Elector::new(surroundings.shared.clone(), index, Arc::clone(&kind), sightings, intents, report.clone());
            staff.spawn(elector.run().map(|()| "an elector"));
            let asking = preflight::keep_asking(
                surroundings.client.clone(),
                index,
                Arc::clone(&kind),
                reconciler.needs(),
                verdict.clone(),
            );
            staff.spawn(asking.map(|()| "a preflight"));
            let name = kind.name();
            surroundings.shared.status.update(&kind.lease_name, |status| status.kind = name);
            shards.push(Shard {
                kind,
                reconciler,
                leadership,
                slot: Slot::new(surroundings.drain_timeout),
                intent,
                settled: (true, Intent::default()),
                fence: None,
                task: None,
                verdict: Verdict::Unknown("the API server was not asked yet".to_owned()),
                failure: None,
            });
        }
        staff.spawn(board.run().map(|()| "the Lease watch"));
        Self {
            surroundings,
            shards,
            reports,
            verdicts,
            blindness,
            staff,
            work: JoinSet::new(),
            running: HashMap::new(),
            quiescing: FuturesUnordered::new(),
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
        self.surroundings.shared.status.update_replica(|replica| replica.supervisor_stopped = result.is_err());
        result
    }

    async fn next_event(&mut self, signals: &mut (impl Stream<Item = ()> + Unpin)) -> Event {
        let clock = self.clock();
        let now = clock.now();
        let wake = self.shards.iter().map(|shard| shard.slot.next_wake(now)).min().unwrap_or(Moment::NEVER);
        let wake = wake.min(self.give_up.unwrap_or(Moment::NEVER));
        tokio::select! {
            biased;
            Some((shard, report)) = self.reports.recv() => Event::Reported(shard, report),
            Some(joined) = self.work.join_next_with_id() => task_ended(joined),
            Some(event) = self.quiescing.next() => event,
            Some(()) = signals.next() => Event::Signal,
            Some((shard, verdict)) = self.verdicts.recv() => Event::Judged(shard, verdict),
            Ok(()) = self.blindness.changed() => Event::Seeing(self.blindness.borrow_and_update().clone()),
            Some(ended) = self.staff.join_next() => Event::Died(ended.unwrap_or("a panicking task")),
            () = clock.sleep_until(wake) => Event::Tick,
        }
    }

    fn on_event(&mut self, event: Event) -> Option<Result<(), Stopped>> {
        match event {
            Event::Reported(shard, report) => self.on_report(shard, report),
            Event::Judged(shard, verdict) => self.on_verdict(shard, verdict),
            Event::Seeing(blindness) => {
                let identity = self.surroundings.shared.identity.clone();
                self.surroundings.shared.status.update_replica(|replica| {
                    replica.identity = identity;
                    replica.unready = blindness;
                });
            }
            Event::TaskEnded(id, outcome) => self.on_task_ended(id, outcome),
            Event::Quiesced { shard, term, outcome, unanswered } => {
                self.tell(shard, slot::Event::Ended { term, outcome, unanswered });
            }
            Event::Signal => self.on_signal(),
            Event::Tick => (0..self.shards.len()).for_each(|shard| self.tell(shard, slot::Event::Tick)),
            Event::Died(who) => {
                error!("{who} ended unasked");
                return Some(Err(Stopped::Unasked(who)));
            }
        }
        self.stopped()
    }

    fn on_report(&mut self, shard: usize, report: Report) {
        self.shards[shard].settled = (report.settled, report.heeds);
        if report.fence.is_some() {
            self.shards[shard].fence = report.fence;
        }
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
                Verdict::Runnable => info!(kind, lease, "can be led here"),
                Verdict::Blocked(why) | Verdict::Unknown(why) => warn!(kind, lease, "not led here: {why}"),
            }
        }
        let runnable = verdict == Verdict::Runnable;
        shard.verdict = verdict;
        self.surroundings.shared.metrics.blocked(&kind, !runnable);
        self.tell(index, slot::Event::Runnable(runnable));
    }

    fn on_signal(&mut self) {
        let event = if self.give_up.is_none() {
            info!("stopping: draining every kind, then releasing its Lease; a second signal aborts");
            self.surroundings.shared.status.update_replica(|replica| replica.stopping = true);
            slot::Event::Stop
        } else {
            warn!("aborting");
            slot::Event::Abort
        };
        let now = self.clock().now();
        let release = self.surroundings.shared.timings.request_timeout * 2 + QUIESCE + Duration::from_secs(2);
        let most = if event == slot::Event::Stop { self.surroundings.drain_timeout + release } else { release };
        self.give_up = Some(now + most);
        for shard in 0..self.shards.len() {
            self.tell(shard, event.clone());
        }
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
        let shard = &self.shards[index];
        let intent = shard.slot.intent(now);
        shard.intent.send_if_modified(|sent| std::mem::replace(sent, intent) != intent);
        self.publish(index, now);
    }

    fn start(&mut self, index: usize, grant: &Grant) {
        let holder = self.surroundings.shared.identity.clone();
        let shard = &mut self.shards[index];
        let (kind, lease) = (shard.kind.name(), shard.kind.lease_name.clone());
        let Some(fence) = shard.fence.clone() else {
            self.quiesce(index, grant.term, Outcome::Failed("the grant came without a fence".to_owned()));
            return;
        };
        // The client's own tasks belong to the runtime that the work runs on.
        let entered = self.surroundings.work.enter();
        let client = fence.client(&self.surroundings.config);
        drop(entered);
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                let outcome = Outcome::Failed(format!("failed to make the term's client: {error}"));
                self.quiesce(index, grant.term, outcome);
                return;
            }
        };
        info!(kind, lease, holder, token = %grant.token, "leading: the term begins");
        let draining = CancellationToken::new();
        let term = Term::new(Arc::clone(&shard.kind), holder, grant.token.clone(), client, draining.clone());
        let reconciler = Arc::clone(&shard.reconciler);
        let abort = self.work.spawn_on(async move { reconciler.run(term).await }, &self.surroundings.work);
        self.running.insert(abort.id(), (index, grant.term));
        shard.task = Some(Task { token: grant.token.clone(), draining, abort, drain_began: None });
    }

    #[expect(clippy::disallowed_methods, reason = "measures the drain and decides nothing")]
    fn drain(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        if let Some(task) = &mut shard.task {
            info!(kind = shard.kind.name(), lease = shard.kind.lease_name, token = %task.token, "draining");
            task.drain_began = Some(Instant::now());
            task.draining.cancel();
        }
    }

    fn abort(&mut self, index: usize) {
        let shard = &mut self.shards[index];
        if let Some(fence) = &shard.fence {
            fence.close();
        }
        if let Some(task) = &shard.task {
            warn!(kind = shard.kind.name(), lease = shard.kind.lease_name, token = %task.token, "aborting the term");
            task.draining.cancel();
            task.abort.abort();
            self.surroundings.shared.metrics.aborted(&shard.kind.name());
        }
    }

    fn on_task_ended(&mut self, id: Id, outcome: Outcome) {
        if let Some((index, term)) = self.running.remove(&id) {
            self.quiesce(index, term, outcome);
        }
    }

    /// The task has ended: nothing may be written any more, and what was sent gets a moment to be answered.
    fn quiesce(&mut self, index: usize, term: u64, outcome: Outcome) {
        let within = self.surroundings.shared.timings.lease_duration;
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
            self.surroundings.shared.metrics.term_failed(&kind);
        }
        if let Some(task) = shard.task.take() {
            let drained = task.drain_began.map(|began| began.elapsed());
            if let Some(took) = drained {
                self.surroundings.shared.metrics.drained(&kind, took);
            }
            info!(kind, lease, token = %task.token, drained = ?drained, "the term's work has ended");
        }
        let fence = shard.fence.clone();
        if let Some(fence) = &fence {
            fence.close();
        }
        self.quiescing.push(Box::pin(async move {
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
            (State::Idle, Verdict::Blocked(why)) => (ShardState::Blocked, Some(why.clone())),
            (State::Idle, Verdict::Unknown(why)) => (ShardState::Starting, Some(why.clone())),
            (State::Idle, Verdict::Runnable) if shard.slot.cooling_until(now).is_some() => {
                (ShardState::CoolingDown, shard.failure.clone())
            }
            (State::Idle, Verdict::Runnable) => (ShardState::Standby, None),
        };
        let token = shard.task.as_ref().map(|task| task.token.clone());
        let leading = state == ShardState::Leading;
        let leadership = Leadership { token: token.clone().filter(|_| leading) };
        shard.leadership.send_if_modified(|old| std::mem::replace(old, leadership.clone()) != leadership);
        self.surroundings.shared.metrics.set_leading(&shard.kind.name(), leading);
        self.surroundings.shared.status.update(&shard.kind.lease_name, |status| {
            status.state = state;
            status.reason = reason;
            status.running = shard.slot.state() != State::Idle;
            status.token = token;
        });
    }

    fn clock(&self) -> Clock {
        self.surroundings.shared.clock
    }

    /// The result, once a stop was asked for and is done, or has taken as long as it may.
    fn stopped(&self) -> Option<Result<(), Stopped>> {
        let give_up = self.give_up?;
        let names = |keep: &dyn Fn(&&Shard) -> bool| -> Vec<String> {
            self.shards.iter().filter(keep).map(|shard| shard.kind.lease_name.clone()).collect()
        };
        let busy = names(&|shard| shard.slot.state() != State::Idle);
        // An elector that has not heeded the last intent may be about to acquire.
        let unreleased = names(&|shard| shard.settled != (true, *shard.intent.borrow()));
        if busy.is_empty() && unreleased.is_empty() {
            let left = names(&|shard| {
                let intent = *shard.intent.borrow();
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

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}
