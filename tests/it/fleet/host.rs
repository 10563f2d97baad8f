//! A process, and the machine it runs on: a clock, what waits to be taken in and to be done, tasks and fences.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use leasehold::{
    config::{LockKind, OnLoss, Rebalance, StandbyMode, Timings},
    protocol::{
        event::{Effect, Event, KindIndex, RequestId, ShardIndex, TermNumber},
        moment::Moment,
        replica::{Replica, Setup},
        roster::{Rules, ShardSpec},
    },
};

use super::network::{Line, Weather};
use crate::timeline::{Global, SECOND, SkewedClock};

pub(super) const SETTLE: Global = 5 * SECOND;
pub(super) const LEASE: Global = 15 * SECOND;

/// The duration of a release, as client-go has it.
pub(super) const RELEASED: Duration = Duration::from_secs(1);

pub(super) const NAMESPACE: &str = "leases";
pub(super) const INSTANCE: &str = "sim";

/// A configured kind; those of one Lease are a group, and follow each other in a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) name: String,
    pub(super) lease: String,
    pub(super) weight: u32,
}

impl Kind {
    pub(super) fn new(number: usize) -> Self {
        let letter = char::from(b'a' + u8::try_from(number).unwrap());
        let name = format!("{}.example.com", letter.to_ascii_uppercase());
        Self { lease: name.to_lowercase(), name, weight: 1 }
    }
}

/// What the replicas of one generation are made from.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) name: String,
    /// The Deployment counts rollouts and rollbacks; `None`: replicas may not read it.
    pub(super) revision: Option<u64>,
    pub(super) owner: Option<String>,
    pub(super) capacity: u32,
    /// How many Pods its owner runs; `None`: replicas may not read that.
    pub(super) replicas: Option<usize>,
    pub(super) kinds: Vec<Kind>,
    pub(super) rebalance: Rebalance,
    pub(super) standby: StandbyMode,
    /// The Pod's lock works.
    pub(super) pod_lock: bool,
    /// No reconciler can stand by.
    pub(super) declines: bool,
    pub(super) timings: Timings,
    pub(super) on_loss: OnLoss,
}

impl Template {
    pub(super) fn new(kinds: usize) -> Self {
        Self {
            name: "g1".to_owned(),
            revision: Some(1),
            owner: Some("Deployment/one".to_owned()),
            capacity: 1,
            replicas: None,
            kinds: (0..kinds).map(Kind::new).collect(),
            rebalance: Rebalance::Automatic,
            standby: StandbyMode::Successor,
            pod_lock: true,
            declines: false,
            timings: Timings {
                lease_duration: Duration::from_micros(LEASE),
                renew_deadline: Duration::from_secs(10),
                retry_period: Duration::from_secs(2),
                request_timeout: Duration::from_secs(2),
            },
            on_loss: OnLoss::Reelect,
        }
    }

    /// The kinds of each shard.
    pub(super) fn shards(&self) -> impl Iterator<Item = &[Kind]> {
        self.kinds.chunk_by(|one, next| one.lease == next.lease)
    }

    /// Those that share a Lease with this kind, itself among them.
    pub(super) fn group_of(&self, kind: &str) -> &[Kind] {
        self.shards().find(|kinds| kinds.iter().any(|it| it.name == kind)).unwrap_or_default()
    }

    /// Each kind has a Lease of its own.
    pub(super) fn ungroup(&mut self) {
        self.kinds.iter_mut().for_each(|kind| kind.lease = kind.name.to_lowercase());
        self.kinds.sort();
    }

    /// These kinds share this Lease.
    pub(super) fn group(&mut self, kinds: std::ops::Range<usize>, lease: &str) {
        self.kinds[kinds].iter_mut().for_each(|kind| kind.lease = lease.to_owned());
        self.in_order();
    }

    /// Has the kinds of each Lease follow each other.
    pub(super) fn in_order(&mut self) {
        let leases: Vec<_> = self.kinds.iter().map(|kind| kind.lease.clone()).collect();
        self.kinds.sort_by_key(|kind| leases.iter().position(|lease| *lease == kind.lease));
    }

    /// The same again, rolled out later.
    pub(super) fn next(&self, revision: u64) -> Self {
        let owner = self.owner.as_deref().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let name = if owner == "one" { format!("g{revision}") } else { format!("g{revision}-{owner}") };
        Self { name, revision: self.revision.map(|_| revision), ..self.clone() }
    }

    pub(super) fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.name == name)
    }

    /// Where its Leases are: a Lease elsewhere than usual is called by its namespace and name.
    pub(super) fn namespace(&self) -> &str {
        self.kinds.first().and_then(|kind| kind.lease.split_once('/')).map_or(NAMESPACE, |(namespace, _)| namespace)
    }

    pub(super) fn setup(&self, identity: String, pod: &str) -> Setup {
        let spec = |kinds: &[Kind]| ShardSpec {
            lease: kinds[0].lease.rsplit('/').next().unwrap_or_default().to_owned(),
            lock: LockKind::Lease,
            kinds: kinds.iter().map(|kind| kind.name.clone()).collect(),
            weight: kinds.iter().map(|kind| kind.weight).sum(),
            standby: self.standby,
        };
        Setup {
            identity,
            pod: pod.to_owned(),
            pod_uid: self.pod_lock.then(|| pod_uid(pod)),
            namespace: self.namespace().to_owned(),
            instance: INSTANCE.to_owned(),
            generation: self.name.clone(),
            capacity: self.capacity,
            timings: self.timings,
            rules: Rules {
                rebalance: self.rebalance,
                settle: Duration::from_micros(SETTLE),
                grace: Duration::from_secs(2),
                lease_duration: self.timings.lease_duration,
            },
            drain_timeout: Duration::from_secs(5),
            on_loss: self.on_loss,
            specs: self.shards().map(spec).collect(),
        }
    }
}

pub(super) fn pod_uid(pod: &str) -> String {
    format!("uid-{pod}")
}

/// The work of a term.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) term: TermNumber,
    pub(super) hears: bool,
    /// It has not been asked to end.
    pub(super) works: bool,
}

pub(super) struct Host {
    pub(super) replica: Replica,
    pub(super) template: Template,
    pub(super) identity: String,
    pub(super) pod: String,
    pub(super) pod_uid: Option<String>,
    pub(super) alive: bool,
    pub(super) clock: SkewedClock,
    pub(super) weather: Weather,
    pub(super) line: Line,
    pub(super) paused_until: Global,
    /// It works on what came last: nothing is instantaneous.
    pub(super) busy_until: Global,
    /// What has come and was not taken in.
    pub(super) inbox: VecDeque<Event>,
    /// What it has decided and not done.
    pub(super) undone: VecDeque<Effect>,
    /// The `now` of that decision.
    pub(super) decided_at: Moment,
    /// When it is looked after next, if it is paused or busy.
    pub(super) turn_at: Global,
    pub(super) wakes_at: Global,
    /// How often it was woken in a row and was due at once again.
    pub(super) spins: u32,
    /// Requests without an answer, and when each was decided on.
    pub(super) waits: BTreeMap<RequestId, Moment>,
    /// By shard and term: until when it may write, by the clock here.
    pub(super) fences: BTreeMap<(ShardIndex, TermNumber), Moment>,
    pub(super) shut: BTreeSet<(ShardIndex, TermNumber)>,
    pub(super) tasks: BTreeMap<ShardIndex, Task>,
    /// By shard: the term that a cache is filled for, and whether that is done.
    pub(super) standbys: BTreeMap<ShardIndex, (TermNumber, bool)>,
    /// Terms that left a write behind that may still land, and until when.
    pub(super) unanswered: BTreeMap<ShardIndex, Moment>,
    /// Kinds whose requests the API server refuses here, whether that has been noticed or not.
    pub(super) denied: BTreeSet<String>,
    /// Kinds that cannot be reconciled here, and those whose terms fail.
    pub(super) blocked: BTreeSet<String>,
    pub(super) failing: BTreeSet<String>,
    /// By name: uid and transitions of each Lease as it was seen last.
    pub(super) knows: BTreeMap<String, (String, i32)>,
}

impl Host {
    pub(super) fn new(replica: Replica, setup: &Setup, template: &Template, clock: SkewedClock) -> Self {
        Self {
            replica,
            template: template.clone(),
            identity: setup.identity.clone(),
            pod: setup.pod.clone(),
            pod_uid: setup.pod_uid.clone(),
            alive: true,
            clock,
            weather: Weather::default(),
            line: Line::default(),
            paused_until: 0,
            busy_until: 0,
            inbox: VecDeque::new(),
            undone: VecDeque::new(),
            decided_at: Moment::default(),
            turn_at: 0,
            wakes_at: Global::MAX,
            spins: 0,
            waits: BTreeMap::new(),
            fences: BTreeMap::new(),
            shut: BTreeSet::new(),
            tasks: BTreeMap::new(),
            standbys: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            denied: BTreeSet::new(),
            blocked: BTreeSet::new(),
            failing: BTreeSet::new(),
            knows: BTreeMap::new(),
        }
    }

    pub(super) fn shard_of(&self, kind: &str) -> Option<ShardIndex> {
        self.template.shards().position(|kinds| kinds.iter().any(|it| it.name == kind))
    }

    pub(super) fn kinds_of(&self, shard: ShardIndex) -> &[Kind] {
        self.template.shards().nth(shard).unwrap()
    }

    /// The last kind of a shard: what it is that its term does not hear of, and what fails.
    pub(super) fn last_kind_of(&self, shard: ShardIndex) -> KindIndex {
        self.template.shards().take(shard + 1).map(<[Kind]>::len).sum::<usize>() - 1
    }

    /// One of its kinds cannot be reconciled here.
    pub(super) fn is_blocked(&self, shard: ShardIndex) -> bool {
        self.kinds_of(shard).iter().any(|kind| self.blocked.contains(&kind.name))
    }

    pub(super) fn is_failing(&self, shard: ShardIndex) -> bool {
        self.kinds_of(shard).iter().any(|kind| self.failing.contains(&kind.name))
    }

    pub(super) fn lease_of(&self, shard: ShardIndex) -> &str {
        &self.kinds_of(shard)[0].lease
    }

    pub(super) fn is_active(&self) -> bool {
        self.alive && !self.replica.is_stopping()
    }

    /// A fence of this kind is open: a write of it would go through.
    pub(super) fn may_write(&self, kind: &str, now: Global) -> bool {
        let Some(shard) = self.alive.then(|| self.shard_of(kind)).flatten() else { return false };
        let local = self.clock.read(now);
        self.fences.range((shard, 0)..=(shard, TermNumber::MAX)).any(|(_, until)| local < *until)
    }

    /// Work of this kind is done here, as it shall be.
    pub(super) fn serves(&self, kind: &str, now: Global) -> bool {
        let hears = self.shard_of(kind).and_then(|shard| self.tasks.get(&shard)).is_some_and(|task| task.hears);
        hears && self.may_write(kind, now)
    }
}
