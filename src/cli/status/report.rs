//! What a replica says at `/shards`. Replicas of several versions live side by side in every rollout: what one does not say is
//! not known, and what this version does not know is left out.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Report {
    pub(super) version: Option<String>,
    pub(super) identity: String,
    pub(super) generation: Option<String>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) ready: bool,
    pub(super) reason: Option<String>,
    pub(super) stopping: bool,
    /// `None`: that version does not say.
    pub(super) waits: Option<Vec<Wait>>,
    pub(super) shards: Vec<Shard>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Wait {
    pub(super) message: String,
    pub(super) for_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Shard {
    pub(super) kind: String,
    pub(super) group: Option<String>,
    pub(super) lease: String,
    /// One word; later versions may have more of them.
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) trouble: Option<String>,
    pub(super) odd: Vec<String>,
    pub(super) holder: Option<String>,
    pub(super) token: Option<String>,
    pub(super) valid_for_seconds: Option<f64>,
    pub(super) target: Option<String>,
    pub(super) successor: Option<String>,
    pub(super) cache: Option<String>,
    pub(super) weight: Option<u32>,
    pub(super) leading_for_seconds: Option<f64>,
    pub(super) without_leader_seconds: Option<f64>,
    pub(super) cooling_for_seconds: Option<f64>,
    pub(super) work: Option<Work>,
    pub(super) takeovers: Vec<Takeover>,
}

impl Shard {
    /// Its term works, by its own word: a fence is open.
    pub(super) fn leads(&self) -> bool {
        let is_open = self.valid_for_seconds.is_none_or(|seconds| seconds > 0.0);
        ["Leading", "Deaf", "Draining"].contains(&self.state.as_str()) && is_open
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Work {
    pub(super) objects: u64,
    pub(super) waiting: u64,
    pub(super) oldest_waits_seconds: Option<f64>,
    pub(super) failures: u64,
    pub(super) reconciles_per_second: f64,
    pub(super) recent_failures: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Takeover {
    pub(super) seconds_ago: f64,
    pub(super) from: Option<String>,
    pub(super) to: String,
    pub(super) token: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) without_leader_seconds: Option<f64>,
}
