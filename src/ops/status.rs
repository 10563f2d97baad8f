//! What this replica knows of each shard right now: written by the supervisor, read by `/shards`, `/livez`, `/readyz`,
//! `/metrics` and the page.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{report, timeline::Timeline};

/// Where one shard stands on this replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum ShardState {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// This replica does not compete: the CRD is missing, a permission is denied; `reason` says which.
    Blocked,
    /// Competes, and another replica or none holds the Lease.
    Standby,
    /// Holds the Lease and reconciles.
    Leading,
    /// Holds the Lease, and does not hear of changes: `reason` says why. The kind is given away if this lasts.
    Deaf,
    /// Holds the Lease and finishes what runs.
    Draining,
    /// The last term failed or was deaf, or the Lease was refused; competes again when the back-off is over.
    CoolingDown,
}

/// One kind as this replica sees it; those of a group share a Lease.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// `<Kind>.<group>`, as in the log's `kind`.
    pub kind: String,
    /// Name of its Lease.
    pub lease: String,
    /// The kinds that it shares that with are called so, if it does.
    pub group: Option<String>,
    /// Where it stands.
    pub state: ShardState,
    /// Why it is not led here, if that needs saying.
    pub reason: Option<String>,
    /// The last request about the Lease failed, and how; `None` after one that succeeded.
    pub trouble: Option<String>,
    /// What on the Lease is out of its bounds, one sentence each.
    pub odd: Vec<String>,
    /// Holder last seen on the Lease; `None` when it is free, missing or not read yet.
    pub holder: Option<String>,
    /// Fencing token of the running term, as `<Lease uid>/<transitions>`.
    pub token: Option<String>,
    /// When the running term's validity ends unless it is renewed.
    pub valid_until: Option<Instant>,
    /// A term's task runs (also while it drains).
    pub running: bool,
    /// When the last successful renewal by this replica was sent.
    pub renewed_at: Option<Instant>,
    /// Who shall have it, as this replica sees the others.
    pub target: Option<String>,
    /// Whom this replica is handing it over to.
    pub successor: Option<String>,
    /// What a handover from here waits for, if one does.
    pub handing_over: Option<HandingOver>,
    /// A cache is kept without leading; whether it is filled.
    pub cache: Option<bool>,
    /// How much work it is expected to be, as the configuration says; that of all kinds of its group.
    pub weight: u32,
    /// Since when the term here works.
    pub leading_since: Option<Instant>,
    /// Since when no replica can have led it, as far as this one sees; `None` while one may.
    pub unled_since: Option<Instant>,
    /// Until when it is not taken here after a failure or a refusal.
    pub cooling_until: Option<Instant>,
}

/// A handover that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandingOver {
    /// For what.
    pub waits_for: WaitsFor,
    /// Since when.
    pub since: Instant,
}

/// What a handover waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitsFor {
    /// The successor fills its cache.
    Successor,
    /// The work that runs ends.
    Drain,
}

impl WaitsFor {
    /// One word, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Successor => "successor",
            Self::Drain => "drain",
        }
    }
}

/// A Lease has got another holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// When this replica saw it.
    pub at: Instant,
    /// Who held it before, if that was seen.
    pub from: Option<String>,
    /// Who holds it since.
    pub to: String,
    /// Fencing token of the term that began, as `<Lease uid>/<transitions>`.
    pub token: String,
    /// How the Lease came to be free: one word, then a sentence.
    pub reason: (Cow<'static, str>, Cow<'static, str>),
    /// For how long no replica led, as far as this one saw.
    pub without_leader: Option<Duration>,
}

impl Takeover {
    /// As it is told to others, whose clocks are not ours.
    pub fn told(&self, now: Instant) -> report::Takeover {
        report::Takeover {
            seconds_ago: now.saturating_duration_since(self.at).as_secs_f64(),
            from: self.from.clone(),
            to: self.to.clone(),
            token: self.token.clone(),
            reason: self.reason.0.to_string(),
            message: self.reason.1.to_string(),
            without_leader_seconds: self.without_leader.map(|time| time.as_secs_f64()),
        }
    }
}

/// Why no kind is moved for balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// One word, then a sentence.
    pub reason: (&'static str, String),
    /// Until when, if that is known.
    pub until: Option<Instant>,
}

/// The status of a whole replica; clones share it.
#[derive(Clone, Default)]
pub struct Status {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    shards: DashMap<String, ShardStatus>,
    replica: std::sync::RwLock<Replica>,
    timeline: Timeline,
}

/// What is true of the replica as a whole.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// Holder identity.
    pub identity: String,
    /// Namespace of the Leases.
    pub namespace: String,
    /// The installation.
    pub instance: String,
    /// Hash of the template that its Pod was made from; empty when unknown.
    pub generation: String,
    /// How much it takes, relative to the others.
    pub capacity: u32,
    /// The Pods that run under its account; `None` while they are not seen, as outside of a Pod.
    pub pods: Option<Arc<[Pod]>>,
    /// Why the replica is not ready; `None` when it is.
    pub unready: Option<String>,
    /// The supervisor has ended unasked, or not cleanly.
    pub supervisor_stopped: bool,
    /// SIGTERM was received.
    pub stopping: bool,
    /// The replicas that this one sees, itself among them.
    pub peers: Vec<Peer>,
    /// Why this one moves no kind for balance now; empty if it may.
    pub waits: Vec<Wait>,
    /// Why webhooks cannot be served; `None` if they can, or are not.
    pub webhooks_unready: Option<String>,
    /// What webhooks are served with; `None` if they are not served.
    pub webhooks: Option<Webhooks>,
}

/// What a replica serves webhooks with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhooks {
    /// Until when its certificate is good; `None` without one.
    pub certificate_until: Option<String>,
    /// What is wrong with the one that is stored.
    pub problem: Option<String>,
    /// Kinds of which the API server may store an object unasked, and why.
    pub unguarded: BTreeMap<String, String>,
}

/// A replica as this one sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Holder identity.
    pub identity: String,
    /// Hash of the template that its Pod was made from; empty when unknown.
    pub generation: String,
    /// How much it takes, relative to the others.
    pub capacity: u32,
    /// It gives its kinds away and then ends.
    pub draining: bool,
    /// Its Pod is of the newest generation.
    pub newest: bool,
}

/// A Pod that a replica is in, or is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
    /// Hash of the template that it was made from; empty when unknown.
    pub generation: String,
    /// Where it is.
    pub node: Option<String>,
    /// What Kubernetes says is wrong with it: one word, and the reason.
    pub condition: Option<(String, Option<String>)>,
    /// Where its endpoints answer, once it has an address.
    pub address: Option<SocketAddr>,
}

/// A term may be this much past its validity before `/livez` calls the process broken:
/// the abort has been sent by then and needs a scheduler's turn, no more.
const OUTLIVED: Duration = Duration::from_secs(5);

impl Status {
    /// Changes the status of one kind, `<Kind>.<group>`.
    pub fn update(&self, kind: &str, change: impl FnOnce(&mut ShardStatus)) {
        let new = || ShardStatus { kind: kind.to_owned(), ..ShardStatus::default() };
        change(&mut self.inner.shards.entry(kind.to_owned()).or_insert_with(new));
    }

    /// Changes the status of the replica as a whole.
    pub fn update_replica(&self, change: impl FnOnce(&mut Replica)) {
        change(&mut self.inner.replica.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// All kinds, sorted by Lease name.
    pub fn shards(&self) -> Vec<ShardStatus> {
        let mut all: Vec<_> = self.inner.shards.iter().map(|entry| entry.value().clone()).collect();
        all.sort_by(|a, b| (&a.lease, &a.kind).cmp(&(&b.lease, &b.kind)));
        all
    }

    /// What is true of the replica as a whole.
    pub fn replica(&self) -> Replica {
        self.inner.replica.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The takeovers of the last hours.
    pub fn timeline(&self) -> &Timeline {
        &self.inner.timeline
    }

    /// `Err` with every reason why Kubernetes should restart this process.
    pub fn live(&self, now: Instant) -> Result<(), Vec<String>> {
        let mut broken = Vec::new();
        if self.replica().supervisor_stopped {
            broken.push("the supervisor has stopped".to_owned());
        }
        for shard in self.shards() {
            if let (true, Some(valid_until)) = (shard.running, shard.valid_until)
                && now > valid_until + OUTLIVED
            {
                let past = now.duration_since(valid_until).as_secs();
                broken.push(format!(
                    "lease {}: the term of {} still runs {past} s after its validity ended",
                    shard.lease, shard.kind
                ));
            }
        }
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }

    /// `Err` with the reason why this replica is not ready. Leading nothing is no reason.
    pub fn ready(&self) -> Result<(), String> {
        let replica = self.replica();
        if replica.stopping {
            return Err("stopping".to_owned());
        }
        replica.unready.or(replica.webhooks_unready).map_or(Ok(()), Err)
    }
}
