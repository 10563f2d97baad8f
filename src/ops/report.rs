//! What a replica says at `/shards`, as it is written and as it is read.
//!
//! Replicas of several versions live side by side in every rollout: what one does not say is not known, and what this version
//! does not know is left out.

use serde::{Deserialize, Serialize};

use super::{
    status::{Peer, Webhooks},
    timeline::{FOUND, Source},
};

/// The body of `/shards`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Of the program.
    pub version: Option<String>,
    /// Holder identity.
    pub identity: String,
    /// Hash of the template that its Pod was made from; empty when unknown.
    pub generation: Option<String>,
    /// How much it takes, relative to the others.
    pub capacity: Option<u32>,
    /// Bytes of memory that the process has in use.
    pub memory_bytes: Option<u64>,
    /// It takes part.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// It gives its kinds away and then ends.
    pub stopping: bool,
    /// The replicas that it sees.
    pub replicas: Vec<Peer>,
    /// Why it moves no kind for balance now; empty if it may. `None`: that version does not say.
    pub waits: Option<Vec<Wait>>,
    /// Its kinds.
    pub shards: Vec<Shard>,
    /// What it serves webhooks with, if it serves them.
    pub webhooks: Option<Webhooks>,
}

/// Why no kind is moved for balance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wait {
    /// One word, for programs.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// For how long, if that is known.
    pub for_seconds: Option<f64>,
}

/// One kind, as one replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Shard {
    /// `<Kind>.<group>`.
    pub kind: String,
    /// The kinds that it shares its Lease with are called so.
    pub group: Option<String>,
    /// Name of its Lease.
    pub lease: String,
    /// One word; later versions may have more of them.
    pub state: String,
    /// Why it is not led here, if that needs saying.
    pub reason: Option<String>,
    /// How the last request about the Lease failed.
    pub trouble: Option<String>,
    /// What on the Lease is out of its bounds.
    pub odd: Vec<String>,
    /// Holder last seen on the Lease.
    pub holder: Option<String>,
    /// That holder is this replica.
    pub held_here: bool,
    /// `<Lease uid>/<transitions>` of the running term.
    pub token: Option<String>,
    /// Zero once the term's validity has ended.
    pub valid_for_seconds: Option<f64>,
    /// Since the last renewal by this replica was sent.
    pub seconds_since_renewal: Option<f64>,
    /// Who shall have it, as this replica sees the others.
    pub target: Option<String>,
    /// Whom this replica is handing it over to.
    pub successor: Option<String>,
    /// What a handover from here waits for, if one does.
    pub handing_over: Option<HandingOver>,
    /// A cache kept without leading: `Filling` or `Filled`.
    pub cache: Option<String>,
    /// Expected load, that of all kinds of its group.
    pub weight: Option<u32>,
    /// For how long the term here has worked.
    pub leading_for_seconds: Option<f64>,
    /// For how long no replica leads it, as far as this one sees.
    pub without_leader_seconds: Option<f64>,
    /// For how long it is not taken here after a failure or a refusal.
    pub cooling_for_seconds: Option<f64>,
    /// What the work comes to, where it is done and counted.
    pub work: Option<Work>,
    /// The last takeover of the Lease that this replica knows of; with `?kind=` the last ten, the last one at the end.
    pub takeovers: Vec<Takeover>,
}

impl Shard {
    /// Its term works, by its own word: a fence is open.
    pub fn leads(&self) -> bool {
        let is_open = self.valid_for_seconds.is_none_or(|seconds| seconds > 0.0);
        ["Leading", "Deaf", "Draining"].contains(&self.state.as_str()) && is_open
    }

    /// What goes on here and takes its time, a sentence each.
    pub fn progress(&self) -> Vec<String> {
        let mut progress = Vec::new();
        if let Some(work) = self.work.as_ref().filter(|work| work.watches_listed < work.watches) {
            let Work { watches, watches_listed, objects, .. } = work;
            progress.push(format!(
                "the first sync goes on: {watches_listed} of {watches} watches have listed, {objects} objects are in the cache"
            ));
        }
        if let Some(HandingOver { waits_for, for_seconds }) = &self.handing_over {
            let what = match waits_for.as_str() {
                "successor" => "the successor to fill its cache",
                "drain" => "the work that runs to end",
                other => other,
            };
            progress.push(format!("the handover has waited {for_seconds:.0} s for {what}"));
        }
        progress
    }
}

/// What the work on a kind comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Work {
    /// Objects in the cache.
    pub objects: u64,
    /// Objects that wait for their turn.
    pub waiting: u64,
    /// For how long the first of them has.
    pub oldest_waits_seconds: Option<f64>,
    /// Since the term began.
    pub reconciles: u64,
    /// Those that failed or panicked.
    pub failures: u64,
    /// Of the last minute.
    pub reconciles_per_second: f64,
    /// Those of the last minute that failed or panicked.
    pub recent_failures: u64,
    /// Watches that the kind reads.
    pub watches: u64,
    /// Those of them whose first list is complete.
    pub watches_listed: u64,
    /// Objects that wait for their turn in a sweep: all of them when a term begins.
    pub unswept: u64,
}

/// A handover from here that waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HandingOver {
    /// One word; later versions may have more of them.
    pub waits_for: String,
    /// For how long.
    pub for_seconds: f64,
}

/// A Lease has got another holder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Takeover {
    /// How long ago.
    pub seconds_ago: f64,
    /// Who held it before, if that is known.
    pub from: Option<String>,
    /// Who holds it since.
    pub to: String,
    /// Names the term that began.
    pub token: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// For how long no replica led, if that is known.
    pub without_leader_seconds: Option<f64>,
}

impl Takeover {
    /// How well the replica of this identity knows of it.
    pub fn source(&self, teller: &str) -> Source {
        match self {
            it if it.reason == FOUND.0 => Source::Lease,
            it if it.to == teller => Source::Holder,
            _ => Source::Seen,
        }
    }
}
