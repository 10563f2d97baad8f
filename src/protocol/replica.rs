//! What one replica decides: [`Replica::on`] takes what has happened and returns what is to be done.
//!
//! It holds a [`Shard`] for each configured kind, the [`Roster`] of what is known of the others, this replica's own
//! [`Membership`], and the [`Rivals`] of its kinds, and is the glue between them. The product and the simulation drive
//! this same code: the one with requests and tasks, the other with a model of the server and of the network.

mod advice;
mod requests;
mod stop;
mod terms;
mod watching;

use std::{collections::BTreeMap, time::Duration};

use super::{
    election::Election,
    event::{Deaths, Effect, Event, KindIndex, Notice, RequestId, ShardIndex, Verdict},
    membership::{Membership, Profile},
    moment::Moment,
    rivals::Rivals,
    roster::{self, Peer, Roster, Rules, ShardSpec},
    shard::{Member, Shard},
    slot::Slot,
};
use crate::config::{LockKind, OnLoss, Timings};

pub use super::shard::NOT_ASKED;

/// How long a won term waits for the watch to show its write, before the Leases are listed instead.
const CONFIRM: Duration = Duration::from_millis(500);

/// First pause after a term that ended deaf, before the kind is placed here again; it doubles with each further one.
/// A trial costs the time until the next term is found to be deaf, and that it is not here costs balance only.
const DEAF_PAUSE: Duration = Duration::from_secs(600);
/// The longest of these pauses.
const DEAF_PAUSE_MOST: Duration = Duration::from_secs(3600);

/// For so long a replica that has just started is not ready because the API server does not answer what it asks about
/// some kind: until then a rollout would give its kinds to replicas that cannot take them. One that never answers, such
/// as an aggregated one that is down, must not hold up the rollout of the other kinds for ever.
const UNSURE: Duration = Duration::from_secs(30);

/// What a stop may take beside the drains: the release, its repetition, and the writes that are answered late.
const STOP: Duration = Duration::from_secs(3);

/// One event is followed up this many times at the most; what is left then waits for the next one.
const ROUNDS: usize = 16;

/// Who a replica is, and what it is configured for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Holder identity: new for each process (rule 9), and not empty.
    pub identity: String,
    /// Name of the Pod, or of the host.
    pub pod: String,
    /// Uid of the Pod, if this process holds the Pod's lock: then every other process that gave it is dead (rule 11).
    pub pod_uid: Option<String>,
    /// Namespace of the Leases.
    pub namespace: String,
    /// The installation.
    pub instance: String,
    /// Hash of the template that the Pod was made from; empty when unknown.
    pub generation: String,
    /// How much this replica takes, relative to the others.
    pub capacity: u32,
    /// Validated timings (rule 8).
    pub timings: Timings,
    /// How shards are placed.
    pub rules: Rules,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// What follows when a running term is lost.
    pub on_loss: OnLoss,
    /// The shards, in the order of their indexes.
    pub specs: Vec<ShardSpec>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Shard(ShardIndex),
    /// The list that confirms a term.
    Confirmation(ShardIndex),
    Membership,
    Garbage,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    setup: Setup,
    shards: Vec<Shard>,
    /// By kind: its shard.
    shard_of: Vec<ShardIndex>,
    by_lease: BTreeMap<String, ShardIndex>,
    roster: Roster,
    rivals: Rivals,
    /// A rival was known at the last look: what it kept from us may be free now.
    rivalled: bool,
    membership: Membership,
    requests: BTreeMap<RequestId, Subject>,
    next_request: RequestId,
    /// Why the watch of Leases does not see; `None` while it does.
    blind: Option<String>,
    deaths: Deaths,
    /// Something has been seen that the advice must follow.
    stale: bool,
    /// When the advice is to be asked for again by itself, and garbage looked for.
    advise_at: Moment,
    collect_at: Moment,
    peers: Vec<Peer>,
    /// What is odd on the membership Leases of others.
    odd: BTreeMap<String, Vec<String>>,
    /// Until when we are not ready while the API server does not say of every kind whether it can be reconciled.
    unsure_until: Moment,
    unsure: bool,
    /// When the stop has taken as long as it may; set by the first signal.
    give_up: Option<Moment>,
    /// Leases whose work had not drained when the second signal came.
    cut_off: Vec<String>,
    ended: bool,
    effects: Vec<Effect>,
}

impl Replica {
    /// A replica that has seen nothing, and what it does first.
    pub fn new(setup: Setup, now: Moment) -> (Self, Vec<Effect>) {
        let leases: Vec<_> = setup.specs.iter().map(|spec| spec.lease.clone()).collect();
        let me = Profile {
            pod: setup.pod.clone(),
            pod_uid: setup.pod_uid.clone(),
            generation: setup.generation.clone(),
            capacity: setup.capacity,
            shards: leases.iter().collect(),
            config_maps: { setup.specs.iter() }
                .filter(|spec| spec.lock == LockKind::ConfigMap)
                .flat_map(|spec| &spec.kinds)
                .collect(),
            // Nothing is known to be runnable before the API server was asked.
            unable: leases.iter().collect(),
            ..Profile::default()
        };
        let timings = setup.timings;
        let (mut shards, mut shard_of) = (Vec::new(), Vec::new());
        for (index, spec) in setup.specs.iter().enumerate() {
            let election = Election::new(setup.identity.clone(), timings);
            shards.push(Shard::new(spec.clone(), shard_of.len(), election, Slot::new(setup.drain_timeout)));
            shard_of.extend(spec.kinds.iter().map(|_| index));
        }
        // The Lease of a kind whose lock is a ConfigMap alone is as good as one of another name.
        let of_kinds = setup.specs.iter().flat_map(|spec| {
            let lease = Some(spec.lease.as_str()).filter(|_| spec.lock != LockKind::ConfigMap);
            spec.kinds.iter().map(move |kind| (kind.as_str(), lease))
        });
        let mut this = Self {
            by_lease: leases.into_iter().enumerate().map(|(index, lease)| (lease, index)).collect(),
            roster: Roster::new(setup.identity.clone(), me.clone(), setup.specs.clone(), setup.rules, now),
            rivals: Rivals::new(&setup.namespace, of_kinds, timings.lease_duration),
            // What we lay claim to is known when the Leases are; without them we are there all the same.
            membership: Membership::new(
                &setup.namespace,
                &setup.instance,
                &setup.identity,
                me,
                (timings.lease_duration, timings.request_timeout),
                now + timings.request_timeout,
            ),
            rivalled: false,
            shards,
            shard_of,
            requests: BTreeMap::new(),
            next_request: 0,
            blind: Some("the Lease watch has not listed yet".to_owned()),
            deaths: Deaths::default(),
            stale: true,
            advise_at: Moment::NEVER,
            collect_at: now,
            peers: Vec::new(),
            odd: BTreeMap::new(),
            unsure_until: now + UNSURE,
            unsure: true,
            give_up: None,
            cut_off: Vec::new(),
            ended: false,
            effects: Vec::new(),
            setup,
        };
        this.conclude(now);
        let effects = std::mem::take(&mut this.effects);
        (this, effects)
    }

    /// Takes in what has happened. `now` is read after it has happened; what is returned is carried out in its order.
    pub fn on(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        if self.ended {
            return Vec::new();
        }
        match event {
            Event::Watched(watch) => self.on_watch(watch, now),
            Event::Answered(id, answer) => self.on_answer(id, answer, now),
            Event::Judged(kind, verdict) => self.on_verdict(kind, verdict, now),
            Event::StandbyPrepared(index, term) => self.on_standby_prepared(index, term),
            Event::StandbyEnded(kind, term, why) => self.on_standby_ended(kind, term, why, now),
            Event::StandbyDeclined(index) => {
                if let Some(shard) = self.shards.get_mut(index) {
                    shard.keeps_cache = false;
                    shard.standby = None;
                    self.stale = true;
                }
            }
            Event::Denied(kind) => self.effects.push(Effect::Ask(kind)),
            Event::Heard(kind, term, hearing) => self.on_heard(kind, term, hearing, now),
            Event::TaskEnded(kind, term, outcome) => self.on_task_ended(kind, term, outcome, now),
            Event::TermEnded { shard, term, outcome, unanswered } => {
                self.on_term_ended(shard, term, outcome, unanswered, now);
            }
            Event::Died(deaths) => self.on_deaths(deaths),
            Event::Originated { revision, owner } => {
                let mut me = self.roster.me().clone();
                (me.revision, me.owner) = (revision, owner);
                self.introduce(me, now);
            }
            Event::Expected(replicas) => {
                self.roster.expect(replicas);
                self.stale = true;
            }
            Event::Pods(pods) => {
                self.roster.see_pods(pods);
                self.stale = true;
            }
            Event::Signalled => self.on_signal(now),
            Event::Woken => {}
        }
        self.conclude(now);
        let mut effects = std::mem::take(&mut self.effects);
        // What was decided beside the end is not done any more.
        if let Some(end) = effects.iter().position(|effect| matches!(effect, Effect::Exit(_))) {
            effects.truncate(end + 1);
        }
        effects
    }

    /// [`Event::Woken`] is due then at the latest.
    pub fn next_wake(&self) -> Moment {
        if self.ended {
            return Moment::NEVER;
        }
        let shards = self.shards.iter().map(|shard| shard.wake_at).min().unwrap_or(Moment::NEVER);
        let stop =
            self.give_up.unwrap_or(Moment::NEVER).min(if self.unsure { self.unsure_until } else { Moment::NEVER });
        shards.min(self.advise_at).min(self.collect_at).min(self.membership.next_wake()).min(stop)
    }

    /// Who this is.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The shards, by their indexes.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The replicas that count, this one among them.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Why no shard is moved for balance now, as far as this replica sees; empty if one may be.
    pub fn waits(&self, now: Moment) -> Vec<roster::Wait> {
        self.roster.waits(now)
    }

    /// What this replica says of itself.
    pub fn profile(&self) -> &Profile {
        self.roster.me()
    }

    /// The replica takes part; a rollout may go on.
    pub fn is_ready(&self) -> bool {
        self.unready().is_none()
    }

    /// Why it is not ready; `None` if it is. Leading nothing is no reason.
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = &self.blind {
            return Some(why.clone());
        }
        if !self.membership.is_published() {
            let trouble = self.membership.trouble();
            return Some(trouble.unwrap_or("the membership Lease is not written yet").to_owned());
        }
        // A rollout goes on when we are ready: by then we must be a replica that others can hand over to.
        if self.shards.iter().any(|shard| !shard.is_asked()) {
            return Some(NOT_ASKED.to_owned());
        }
        let unknown = |member: &Member| match &member.verdict {
            Verdict::Unknown(why) => Some(format!("whether {} can be reconciled is not known: {why}", member.kind)),
            Verdict::Runnable | Verdict::Blocked(_) => None,
        };
        self.shards.iter().flat_map(Shard::members).find_map(unknown).filter(|_| self.unsure)
    }

    /// It was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.give_up.is_some()
    }

    // What follows.

    /// Follows up until nothing new comes of it.
    fn conclude(&mut self, now: Moment) {
        let is_unknown = |member: &Member| matches!(member.verdict, Verdict::Unknown(_));
        self.unsure &= now < self.unsure_until && self.shards.iter().flat_map(Shard::members).any(is_unknown);
        for _ in 0..ROUNDS {
            if self.ended {
                return;
            }
            self.review_rivals(now);
            self.describe_ourselves(now);
            self.advise(now);
            if !self.drive_all(now) && !self.stale {
                break;
            }
        }
        if self.ended {
            return;
        }
        if now >= self.collect_at {
            // A process that was stopped takes for silent whom it has not heard; what has happened meanwhile is yet to come.
            let overslept = now >= self.collect_at + self.setup.timings.retry_period;
            self.collect_at = now + self.setup.timings.lease_duration;
            for (lease, version, why) in self.roster.garbage(now).into_iter().filter(|_| !overslept) {
                self.collect(lease, version, why);
            }
        }
        for (lease, takeover) in self.roster.take_takeovers() {
            if let Some(index) = self.by_lease.get(&lease) {
                self.note(Notice::TakenOver(*index, takeover));
            }
        }
        for missed in self.roster.take_missed() {
            let roster::Missed { lease, replica, avoided_for } = missed;
            self.note(Notice::Missed { lease, replica, avoided_for });
        }
        self.review_strangers();
        self.publish(now);
        self.end(now);
    }

    fn leases(&self, keep: impl Fn(&Shard) -> bool) -> Vec<String> {
        self.shards.iter().filter(|shard| keep(shard)).map(|shard| shard.spec.lease.clone()).collect()
    }

    /// The shard that a kind belongs to.
    fn shard_of(&self, kind: KindIndex) -> Option<ShardIndex> {
        self.shard_of.get(kind).copied()
    }

    /// Has the preflight ask about the kinds of a shard again.
    fn ask_about(&mut self, index: ShardIndex) {
        self.effects.extend(self.shards[index].kinds().map(Effect::Ask));
    }

    fn note(&mut self, notice: Notice) {
        self.effects.push(Effect::Note(notice));
    }
}

#[cfg(test)]
mod tests;
