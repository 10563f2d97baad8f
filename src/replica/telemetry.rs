//! What people see of a replica: log lines, metrics, and the status behind `/shards`. It is told, and tells the loop nothing.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{
    board::Shown,
    clock::Clock,
    fence::Refused,
    hearing::Refusal,
    record::Lease,
    supervisor::{Stopped, why},
    told,
    waits::{self, Waits},
};
use crate::{
    config::{Kind, LockKind},
    ops::{
        metrics::Metrics,
        status::{self, HandingOver, ShardState, Status, WaitsFor},
        timeline::{History, Source},
        work::Metered,
    },
    protocol::{
        election::{Grant, Standing},
        event::{Freed, Garbage, Hearing, KindIndex, Notice, Rival, ShardIndex, Verdict},
        history::Takeover,
        lease::{FencingToken, WEIGHT_MOST},
        moment::Moment,
        replica::Replica,
        shard::{Member, Shard},
        slot::{Handover, State},
    },
};

/// Logs, metrics and status of one replica.
#[derive(Clone)]
pub struct Telemetry {
    identity: String,
    /// Of the Leases.
    namespace: String,
    /// Those of a shard follow each other.
    kinds: Vec<Arc<Kind>>,
    /// By shard: its kinds.
    shards: Vec<Range<KindIndex>>,
    status: Status,
    metrics: Metrics,
    said: Arc<Mutex<HashMap<String, Said>>>,
    waits: Arc<Mutex<Waits>>,
}

/// Between two log lines about what standbys and observers of a kind try to write.
const QUIET: Duration = Duration::from_secs(60);

/// Log lines of one sort about what others write on Leases of their own, before they are said once in [`QUIET`].
const BURST: u64 = 20;

/// Of a stranger's name so much is shown.
const HOLDER_SHOWN: usize = 80;

/// When that was last said of a kind, and how many were not said since.
type Said = (Option<Moment>, u64);

impl Telemetry {
    /// Of the replica with this holder identity; its kinds in the order of its shards.
    pub fn new(identity: String, namespace: String, kinds: Vec<Arc<Kind>>, status: Status, metrics: Metrics) -> Self {
        for kind in &kinds {
            status.update(&kind.name(), |shard| {
                shard.weight = kind.weight;
                shard.lease.clone_from(&kind.lease_name);
                shard.group.clone_from(&kind.lease_group);
            });
            metrics.belongs(&kind.name(), &kind.lease_name, kind.lease_group.as_deref());
        }
        status.timeline().belongs(&identity);
        let (mut shards, mut first) = (Vec::new(), 0);
        for shared in kinds.chunk_by(|one, next| one.lease_name == next.lease_name) {
            let weight = shared.iter().map(|kind| kind.weight).fold(0, u32::saturating_add).min(WEIGHT_MOST);
            metrics.set_lease_weight(&shared[0].lease_name, weight);
            shards.push(first..first + shared.len());
            first += shared.len();
        }
        Self { identity, namespace, kinds, shards, status, metrics, said: Arc::default(), waits: Arc::default() }
    }

    /// What a fence calls for each write that it refuses. Those of a standby or an observer are a mistake in its code: said
    /// once in [`QUIET`], with the number of those that were not said.
    pub fn counts_fenced(&self, kind: &Kind, clock: Clock) -> impl Fn(&Refused<'_>) + Send + Sync + 'static + use<> {
        let (metrics, kind) = (self.metrics.clone(), kind.name());
        let said = Arc::clone(&self.said);
        move |refused| {
            if !refused.before_term {
                return metrics.fenced(&kind);
            }
            metrics.standby_write(&kind);
            let now = clock.now();
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, unsaid) = said.entry(kind.clone()).or_insert((None, 0));
            if at.is_some_and(|at: Moment| now.since(at) < QUIET) {
                *unsaid += 1;
                return;
            }
            let (method, path, more) = (refused.method, refused.path, std::mem::take(unsaid));
            *at = Some(now);
            warn!(
                kind,
                %method, path, more,
                "refused: a standby or an observer has tried to write; write in a term, or hand states to a status writer"
            );
        }
    }

    /// Where the work on a kind is counted, from the standby for a term to its end.
    pub fn metered(&self, kind: &Kind) -> Metered {
        self.metrics.work(&kind.name())
    }

    /// An observer has ended by itself.
    pub fn observer_ended(&self, kind: &Kind, why: &str, again_in: Duration) {
        error!(kind = kind.name(), "the observer of the kind {why}: it begins again in {} s", again_in.as_secs());
        self.metrics.observer_failed(&kind.name());
    }

    /// How many lines of this sort were left out since the last one, if one may be written now: a user who may write Leases shall
    /// not fill the log.
    fn once_a_while(&self, sort: &str, now: Moment) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, count) = said.entry(sort.to_owned()).or_insert((None, 0));
        *count += 1;
        match *at {
            Some(last) if now.since(last) < QUIET => (*count <= BURST).then_some(0),
            _ => {
                let more = std::mem::replace(count, 1).saturating_sub(1 + BURST);
                *at = Some(now);
                Some(more)
            }
        }
    }

    /// Something has happened.
    pub fn note(&self, notice: &Notice, clock: Clock) {
        let now = clock.now();
        match notice {
            Notice::SuccessorNamed(shard, successor) => {
                let (kind, lease) = self.names(*shard);
                info!(kind, lease, successor, "handing over: successor named");
            }
            Notice::Acquired { shard, from, how, free_for } => {
                let (kind, lease) = self.names(*shard);
                let (from, how) = (from.as_deref().unwrap_or_default(), why_free(*how));
                let milliseconds = free_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                info!(kind, lease, holder = self.identity, from, how, free_for_ms = milliseconds, "Lease acquired");
                for kind in self.kinds_of(*shard) {
                    self.metrics.transition(&kind.name());
                    if let Some(time) = free_for {
                        self.metrics.without_owner(&kind.name(), *time);
                    }
                }
            }
            Notice::TakenOver(shard, takeover) => {
                let (kind, lease) = self.names(*shard);
                let source = if takeover.to == self.identity { Source::Holder } else { Source::Seen };
                self.keep(lease, source, told::takeover(takeover, clock));
                let Takeover { from, to, without_leader, .. } = takeover;
                let (from, (reason, why)) = (from.as_deref().unwrap_or_default(), told::reason(takeover.reason));
                let milliseconds = without_leader.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                // Those concerned say it; the others would say the same of each kind.
                if [from, to.as_str()].contains(&self.identity.as_str()) {
                    info!(
                        kind,
                        lease,
                        from,
                        to,
                        reason,
                        without_leader_ms = milliseconds,
                        "the Lease has another holder: {why}"
                    );
                } else {
                    debug!(
                        kind,
                        lease,
                        from,
                        to,
                        reason,
                        without_leader_ms = milliseconds,
                        "the Lease has another holder: {why}"
                    );
                }
            }
            Notice::Renewed(shard, latency) => {
                self.kinds_of(*shard).iter().for_each(|kind| self.metrics.renewed(&kind.name(), *latency));
            }
            Notice::Lost(shard, loss) => {
                let (kind, lease) = self.names(*shard);
                warn!(kind, lease, holder = self.identity, "the term is lost: {}", why(loss));
            }
            Notice::Trouble(shard, trouble) => {
                let (kind, lease) = self.names(*shard);
                match trouble {
                    Some(trouble) => warn!(kind, lease, holder = self.identity, "{trouble}"),
                    None => debug!(kind, lease, "requests about the Lease are answered again"),
                }
            }
            Notice::Missed { lease, replica, avoided_for } => {
                let seconds = avoided_for.as_secs();
                warn!(
                    lease,
                    replica, "the replica did not take the Lease that it was given: not chosen for {seconds} s"
                );
                self.metrics.missed(lease);
            }
            Notice::Collected(lease, why) => {
                let Some(more) = self.once_a_while("collected", now) else { return };
                let why = match why {
                    Garbage::Predecessor => "the membership of an earlier process of this Pod",
                    Garbage::Dead => "the membership of a process that is proven dead",
                    Garbage::Silent => "the membership of a process that was silent for four lease durations",
                    Garbage::Orphan => {
                        "no replica is configured for its kind, and none has renewed it for four lease durations"
                    }
                };
                info!(lease, more, "deleting a Lease: {why}");
            }
            Notice::Odd { lease, odd } if !self.kinds.iter().any(|kind| kind.lease_name == *lease) => {
                if let Some(more) = self.once_a_while("odd", now)
                    && !odd.is_empty()
                {
                    warn!(lease, more, "out of bounds on the Lease of another: {}", odd.join("; "));
                }
            }
            Notice::Odd { lease, odd } if odd.is_empty() => info!(lease, "the Lease is within its bounds again"),
            Notice::Odd { lease, odd } => warn!(lease, "out of bounds on the Lease: {}", odd.join("; ")),
            Notice::Rival(shard, Some(rival)) => {
                let (kind, lease) = self.names(*shard);
                warn!(kind, lease, "not led here: {}", of_rival(rival));
            }
            Notice::Rival(shard, None) => {
                let (kind, lease) = self.names(*shard);
                info!(kind, lease, "no other Lease of the kind is held any more");
            }
            Notice::Stranger(shard, stranger) => {
                let (kind, lease) = self.names(*shard);
                for kind in self.kinds_of(*shard) {
                    self.metrics.set_foreign_holder(&kind.name(), stranger.is_some());
                }
                match stranger {
                    Some(holder) => warn!(kind, lease, holder, "{}", of_stranger(holder, &self.namespace, lease)),
                    None => info!(kind, lease, "the Lease is no longer held by a stranger"),
                }
            }
            Notice::Judged(kind, verdict) => {
                let (kind, lease) = self.name(*kind);
                self.metrics.blocked(&kind, *verdict != Verdict::Runnable);
                match verdict {
                    Verdict::Runnable => info!(kind, lease, "can be led here"),
                    Verdict::Blocked(why) | Verdict::Unknown(why) => warn!(kind, lease, "not led here: {why}"),
                }
            }
            Notice::Prepared(shard) => {
                let (kind, lease) = self.names(*shard);
                info!(kind, lease, "standing by: the cache is filled");
            }
            Notice::Failed(kind, why) => {
                let (kind, lease) = self.name(*kind);
                error!(kind, lease, "{why}");
                self.metrics.term_failed(&kind);
            }
            Notice::Heard(kind, hearing) => {
                let (kind, lease) = self.name(*kind);
                self.metrics.set_deaf(&kind, *hearing != Hearing::Hears);
                match hearing {
                    Hearing::Hears => info!(kind, lease, "the objects of the kind are watched again"),
                    Hearing::Deaf(why) => warn!(
                        kind,
                        lease,
                        "the objects of the kind are not watched: {why}; a replica that can is given the kind if this lasts"
                    ),
                }
            }
            Notice::Unpublished(Some(why)) => warn!("the other replicas do not see this one: {why}"),
            Notice::Unpublished(None) => info!("the other replicas see this one"),
            Notice::Stopping => {
                info!("stopping: handing every kind over; a second signal aborts");
                self.status.update_replica(|replica| replica.stopping = true);
            }
            Notice::Aborting => warn!("aborting"),
        }
    }

    /// A takeover is known.
    fn keep(&self, lease: &str, source: Source, takeover: status::Takeover) {
        self.status.timeline().add(instant(), lease, source, takeover);
    }

    /// These are all Leases there are. What they say of their past counts where nothing better is known: for how long its
    /// holder has held one, by two times that are of the holder's clock.
    pub fn found(&self, leases: &[Arc<Lease>]) {
        let now = instant();
        self.status.timeline().sees(now);
        let ours = self.kinds.iter().filter(|kind| kind.lock == LockKind::Lease);
        let ours: HashSet<&str> = ours.map(|kind| kind.lease_name.as_str()).collect();
        for lease in leases.iter().filter(|lease| lease.metadata.namespace.as_ref() == Some(&self.namespace)) {
            let name = lease.metadata.name.as_deref().unwrap_or_default();
            if let Some(takeover) = ours.contains(name).then(|| told::found(lease, now)).flatten() {
                self.keep(name, Source::Lease, takeover);
            }
        }
    }

    /// Takeovers that were before this replica was there, as events tell of them, or another replica.
    pub fn heard(&self, told: History) {
        let ours: HashSet<&str> = self.kinds.iter().map(|kind| kind.lease_name.as_str()).collect();
        self.status.timeline().adopt(instant(), told, |name| ours.contains(name));
    }

    /// Where the other replicas answer.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// A term's work begins.
    pub fn begins(&self, kind: &Kind, holder: &str, token: &FencingToken, warm: bool) {
        info!(kind = kind.name(), lease = kind.lease_name, holder, %token, warm, "leading: the term begins");
    }

    /// A term was asked to drain.
    pub fn drains(&self, kind: &Kind, token: &FencingToken, handover: &Handover) {
        let kind_name = kind.name();
        match handover {
            Handover::To { successor, .. } => {
                info!(kind = kind_name, lease = kind.lease_name, %token, successor, "draining");
                self.metrics.handed_over(&kind_name);
            }
            Handover::Stay | Handover::ToNone => info!(kind = kind_name, lease = kind.lease_name, %token, "draining"),
        }
    }

    /// A term is aborted, for this reason.
    pub fn aborts(&self, kind: &Kind, token: &FencingToken, why: &str) {
        warn!(kind = kind.name(), lease = kind.lease_name, %token, "aborting the term: {why}");
        self.metrics.aborted(&kind.name());
    }

    /// A term's task has ended, so long after it was asked to drain.
    pub fn work_ended(&self, kind: &Kind, token: &FencingToken, drained: Option<Duration>) {
        let milliseconds = drained.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        info!(kind = kind.name(), lease = kind.lease_name, %token, drained_ms = milliseconds, "the term's work has ended");
        if let Some(took) = drained {
            self.metrics.drained(&kind.name(), took);
        }
    }

    /// The API server has refused a request of a term.
    pub fn refused(&self, kind: &Kind, refusal: &Refusal, now: Moment) {
        // Work that is refused is tried again and again.
        let Some(more) = self.once_a_while(&format!("refused {}", kind.lease_name), now) else { return };
        info!(kind = kind.name(), lease = kind.lease_name, more, "{refusal}: asking whether the kind can be led here");
    }

    /// The watch of the Leases has shown this.
    pub fn lease_watch(&self, shown: &Shown) {
        match shown {
            Shown::Listed(_) => self.metrics.lease_watch_listed(),
            Shown::Stored(_) | Shown::Deleted(_) => self.metrics.lease_watch_event(),
            Shown::Failed(_) => self.metrics.lease_watch_failed(),
            Shown::Lock(..) | Shown::LockFailed(_) => {}
        }
    }

    /// What the handover of a shard waits for, said every few seconds.
    fn handing_over(&self, index: ShardIndex, shard: &Shard, clock: Clock, now: Moment) -> Option<HandingOver> {
        let waits_for = waits::of(shard.state(), shard.handover());
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, say) = waits.look(index, waits_for, now)?;
        let waits_for = waits_for?;
        if say {
            let (kind, lease) = self.names(index);
            let successor = match shard.handover() {
                Handover::To { successor, .. } => successor.as_str(),
                Handover::Stay | Handover::ToNone => "",
            };
            let what = match waits_for {
                WaitsFor::Successor => "its successor to fill its cache",
                WaitsFor::Drain => "the work that runs to end",
            };
            let waited = now.since(since).as_secs();
            info!(kind, lease, successor, "handing over: it has waited {waited} s for {what}");
        }
        Some(HandingOver { waits_for, since: clock.instant(since) })
    }

    /// The loop has ended.
    pub fn ended(&self, error: Option<&Stopped>) {
        if let Some(error @ (Stopped::Unasked(_) | Stopped::Lost { .. })) = error {
            error!("{error}");
        }
        self.status.update_replica(|replica| replica.supervisor_stopped = error.is_some());
    }

    /// Shows where everything stands.
    pub fn show(&self, core: &Replica, clock: Clock) {
        let now = clock.now();
        let unready = core.unready();
        let peers: Vec<_> = core.peers().iter().map(peer).collect();
        let waits: Vec<_> = core.waits(now).iter().map(|wait| told::wait(wait, clock)).collect();
        self.metrics.set_replicas(peers.len());
        self.status.update_replica(|replica| {
            replica.identity.clone_from(&self.identity);
            replica.unready = unready;
            replica.peers = peers;
            replica.waits = waits;
            replica.generation.clone_from(&core.profile().generation);
            replica.capacity = core.profile().capacity;
        });
        let works = |shard: &&Shard| matches!(shard.state(), State::Running);
        self.metrics.set_load(core.shards().iter().filter(works).map(|shard| u64::from(shard.weight())).sum());
        let shards = core.shards().iter().enumerate();
        let handovers = shards.map(|(index, shard)| (shard, self.handing_over(index, shard, clock, now)));
        let members = handovers
            .flat_map(|(shard, waits)| shard.members().iter().map(move |member| (shard, member, waits.clone())));
        for (kind, (shard, member, handing_over)) in self.kinds.iter().zip(members) {
            let (state, reason) = state(shard, member, &self.namespace, now);
            let leading = matches!(state, ShardState::Leading | ShardState::Deaf);
            self.metrics.set_leading(&kind.name(), leading);
            self.metrics.set_cached(&kind.name(), shard.cache() == Some(true));
            let standing = shard.standing(now);
            let grant = match &standing {
                Standing::Leading(grant) | Standing::Losing(grant) => Some(grant),
                Standing::Standby => None,
            };
            self.status.update(&kind.name(), |status| {
                let instant = |moment: Moment| clock.instant(moment);
                let running = shard.term().is_some();
                status.state = state;
                status.reason = reason;
                status.trouble = shard.trouble().map(str::to_owned);
                status.odd = shard.odd().to_vec();
                status.holder = shard.holder().map(str::to_owned);
                status.token = grant.filter(|_| running).map(token);
                status.valid_until =
                    grant.map(|grant| instant(grant.valid_until)).or(status.valid_until.filter(|_| running));
                status.renewed_at = grant.map(|grant| instant(grant.sent_at));
                status.running = running;
                status.target.clone_from(&shard.advice().target);
                status.successor = match shard.handover() {
                    Handover::To { successor, .. } => Some(successor.clone()),
                    Handover::Stay | Handover::ToNone => None,
                };
                status.handing_over = handing_over;
                status.cache = shard.cache();
                status.weight = shard.weight();
                status.leading_since = shard.leading_since().map(instant);
                status.unled_since = shard.unled_since(now).map(instant);
                status.cooling_until = shard.cooling_until(now).max(shard.barred_until(now)).map(instant);
            });
        }
    }

    /// What a kind and its Lease are called.
    fn name(&self, kind: KindIndex) -> (String, &str) {
        self.kinds.get(kind).map_or_else(Default::default, |kind| (kind.name(), kind.lease_name.as_str()))
    }

    fn kinds_of(&self, shard: ShardIndex) -> &[Arc<Kind>] {
        self.shards.get(shard).and_then(|kinds| self.kinds.get(kinds.clone())).unwrap_or_default()
    }

    /// What a shard and its Lease are called: by its kind, or by its group and how many kinds that has.
    fn names(&self, shard: ShardIndex) -> (String, &str) {
        match self.kinds_of(shard) {
            [] => Default::default(),
            [kind] => (kind.name(), &kind.lease_name),
            [first, ..] => {
                let group = first.lease_group.as_deref().unwrap_or(&first.lease_name);
                (format!("{group} ({} kinds)", self.kinds_of(shard).len()), &first.lease_name)
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "when it is shown")]
fn instant() -> Instant {
    Instant::now()
}

fn token(grant: &Grant) -> String {
    grant.token.to_string()
}

fn peer(peer: &crate::protocol::roster::Peer) -> status::Peer {
    status::Peer {
        identity: peer.identity.clone(),
        generation: peer.generation.clone(),
        capacity: peer.capacity,
        draining: peer.draining,
        newest: peer.newest,
    }
}

fn state(shard: &Shard, member: &Member, namespace: &str, now: Moment) -> (ShardState, Option<String>) {
    let served = |it: &Member| *it.verdict() == Verdict::Runnable;
    // What is wrong with the kind itself comes first, and else what is wrong with one that it shares its term with.
    let verdict =
        match shard.members().iter().find(|other| served(member) && !served(other)).map(|it| (it, it.verdict())) {
            Some((other, Verdict::Blocked(why))) => &Verdict::Blocked(beside(other, why)),
            Some((other, Verdict::Unknown(why))) => &Verdict::Unknown(beside(other, why)),
            _ => member.verdict(),
        };
    match (shard.state(), member.hearing(), shard.rival(), verdict) {
        (State::Running, Hearing::Deaf(why), ..) => (ShardState::Deaf, Some(why.clone())),
        (State::Running, Hearing::Hears, ..) => (ShardState::Leading, None),
        (State::Draining | State::Aborting, ..) => (ShardState::Draining, None),
        (State::Idle, _, Some(rival), _) => (ShardState::Blocked, Some(of_rival(rival))),
        (State::Idle, _, None, Verdict::Blocked(why)) => (ShardState::Blocked, Some(why.clone())),
        (State::Idle, _, None, Verdict::Unknown(why)) => (ShardState::Starting, Some(why.clone())),
        (State::Idle, _, None, Verdict::Runnable) if shard.cooling_until(now).is_some() => {
            (ShardState::CoolingDown, shard.failure().map(str::to_owned))
        }
        (State::Idle, _, None, Verdict::Runnable) if shard.barred_until(now).is_some() => {
            let why = "the Lease could not be acquired, or the objects of the kind could not be watched, a while ago";
            (ShardState::CoolingDown, Some(shard.trouble().unwrap_or(why).to_owned()))
        }
        (State::Idle, _, None, Verdict::Runnable) => {
            let why = shard.stranger().map(|holder| of_stranger(holder, namespace, shard.lease()));
            (ShardState::Standby, why)
        }
    }
}

/// Why a kind is not led though nothing is wrong with itself.
fn beside(other: &Member, why: &str) -> String {
    format!("{} shares its Lease and cannot be led: {why}", other.kind())
}

fn of_rival(rival: &Rival) -> String {
    if rival.config_map {
        return format!(
            "{} leads {} by a ConfigMap when it can, and takes no notice of the Lease {}/{}: wait until the rollout has replaced it, or roll out `lock: ConfigMapsLeases` first",
            rival.holder, rival.kind, rival.namespace, rival.name
        );
    }
    format!(
        "{} holds another Lease of {}, {}/{}: give the kind one Lease in all configurations, or wait until that one is released",
        rival.holder, rival.kind, rival.namespace, rival.name
    )
}

/// Who holds a Lease and is none of us, and what to do.
pub(super) fn of_stranger(holder: &str, namespace: &str, lease: &str) -> String {
    let holder: String = holder.chars().take(HOLDER_SHOWN).collect();
    format!(
        "{holder:?} holds the Lease and is no replica of this installation: the kind is not led here until the Lease expires; \
         if it should not hold it, find out who may write Leases in {namespace}, and free it: \
         kubectl -n {namespace} patch lease {lease} --type=merge -p '{{\"spec\":{{\"holderIdentity\":\"\",\"leaseDurationSeconds\":1}}}}'"
    )
}

fn why_free(how: Freed) -> &'static str {
    match how {
        Freed::Missing => "there was no Lease",
        Freed::Released => "released",
        Freed::Expired => "expired",
        Freed::ProvenDead => "its holder's process is proven dead",
        Freed::Ours => "ours by a write whose answer was lost",
    }
}
