//! A stored Lease as a value: what decisions may rest on, every field bounded (rule 19).
//!
//! Timestamps are left out on purpose: no remote one may decide anything (rule 2).

use std::{fmt, time::Duration};

use serde::Serialize;

use super::membership::Profile;
use crate::config::LONGEST_LEASE;

/// The most characters of a holder identity, or of another replica's name, that are kept.
const NAME_MOST: usize = 512;

/// The heaviest that a shard may be said to be: a thousand kinds of the greatest weight that a configuration may give.
pub const WEIGHT_MOST: u32 = 1_000_000;

/// Orders the terms of one Lease: later terms have a greater `transitions` as long as the uid stays the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FencingToken {
    /// `metadata.uid` of the Lease.
    pub uid: String,
    /// `spec.leaseTransitions` of the Lease during this term.
    pub transitions: i32,
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.uid, self.transitions)
    }
}

/// Which stored object a decision rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

impl Version {
    /// The resource version as a [number](version_number); of a [pair](super::lock::pair) the one that was written last.
    pub fn number(&self) -> Option<u64> {
        self.parts().try_fold(0, |last, part| Some(last.max(version_number(part)?)))
    }

    /// One that is no number is never called newer: a read decides then. Nor is a pair of which one part is older.
    pub fn newer_than(&self, other: &Self) -> bool {
        let mut any = false;
        for (mine, theirs) in self.parts().zip(other.parts()) {
            let (Some(mine), Some(theirs)) = (version_number(mine), version_number(theirs)) else { return false };
            if mine < theirs {
                return false;
            }
            any |= mine > theirs;
        }
        any
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        self.resource_version.split(super::lock::AND)
    }

    /// The other is of the same object; or of the same pair, of which a part was made meanwhile.
    pub fn grows_into(&self, other: &Self) -> bool {
        let parts = self.uid.split(super::lock::AND).zip(other.uid.split(super::lock::AND));
        self.uid == other.uid || (self.uid.contains(super::lock::AND) && { parts }.all(|(a, b)| a.is_empty() || a == b))
    }
}

/// A resource version as a number. Those of one API server grow and compare as numbers (Kubernetes API conventions since
/// 1.35, <https://kep.k8s.io/5504>); `None` for one that is no number.
pub fn version_number(resource_version: &str) -> Option<u64> {
    resource_version.parse().ok()
}

/// What a Lease is about, by its label `leasehold.dev/role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has no such label: another elector made it.
    #[default]
    None,
    /// Its holder reconciles a shard.
    Shard,
    /// Its holder is a replica that says that it is there.
    Replica,
}

/// One stored Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Identifies the stored object. Empty on a record that is not stored yet.
    pub version: Version,
    /// Seconds since the epoch by the API server's clock; compared with other values of that clock only.
    pub created: i64,
    /// The installation that it belongs to, by its label.
    pub instance: Option<String>,
    /// What it is about.
    pub role: Role,
    /// Holder identity; `None` when the Lease is free (null or empty).
    pub holder: Option<String>,
    /// Duration published in the record, at most [`LONGEST_LEASE`]; `None` when it is missing or not positive.
    pub duration: Option<Duration>,
    /// `leaseTransitions`; 0 when missing or negative.
    pub transitions: i32,
    /// Uid of the Pod that the holder is in, by the holder's word.
    pub holder_pod: Option<String>,
    /// Whom the holder has named to follow it.
    pub successor: Option<String>,
    /// Identity or Pod name of the replica where `leasehold hand-over` asks for it to be.
    pub wanted: Option<String>,
    /// Weight that its last holder gave it, 1 to [`WEIGHT_MOST`].
    pub weight: Option<u32>,
    /// The kinds that a shard's Lease is about, `<Kind>.<group>`; empty if it does not say.
    pub kinds: Vec<String>,
    /// What a replica says of itself.
    pub profile: Option<Profile>,
    /// What was out of bounds and is bounded here, or could not be read: one sentence each.
    pub odd: Vec<String>,
}

/// What an election needs of a stored Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    /// Identifies the stored object.
    pub version: Version,
    /// Holder identity; `None` when the Lease is free.
    pub holder: Option<String>,
    /// Duration published in the record; `None` when it is missing or not positive.
    pub duration: Option<Duration>,
    /// `leaseTransitions`.
    pub transitions: i32,
    /// Whom the holder has named to follow it.
    pub successor: Option<String>,
}

/// A shard's Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holding {
    /// The stored object.
    pub version: Version,
    /// Holder identity.
    pub holder: Option<String>,
    /// For how long after a renewal it is held.
    pub duration: Option<Duration>,
    /// Uid of the Pod that the holder is in.
    pub holder_pod: Option<String>,
    /// `leaseTransitions`.
    pub transitions: i32,
    /// Whom the holder has named to follow it.
    pub successor: Option<String>,
    /// Identity or Pod name of the replica where it is asked to be.
    pub wanted: Option<String>,
    /// Weight that its last holder gave it.
    pub weight: Option<u32>,
}

/// A membership Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Name of the Lease.
    pub name: String,
    /// The stored object.
    pub version: Version,
    /// Holder identity of the process.
    pub identity: String,
    /// For how long after a renewal it counts as there.
    pub duration: Option<Duration>,
    /// Seconds since the epoch by the API server's clock; compared with other values of that clock only.
    pub created: i64,
    /// What it says of itself.
    pub profile: Profile,
}

impl Record {
    /// Brings every field within its bounds, and notes in [`odd`](Self::odd) what was not.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Some(duration) = self.duration.filter(|duration| *duration > LONGEST_LEASE) {
            let (said, most) = (duration.as_secs(), LONGEST_LEASE.as_secs());
            self.odd.push(format!(
                "spec.leaseDurationSeconds is {said} and counts as {most}, the most that leases.duration may be"
            ));
            self.duration = Some(LONGEST_LEASE);
        }
        if self.duration.is_none() && self.holder.is_some() {
            self.odd
                .push("spec.leaseDurationSeconds is missing or not positive, and counts as leases.duration".to_owned());
        }
        if self.transitions < 0 {
            self.odd.push(format!("spec.leaseTransitions is {} and counts as 0", self.transitions));
            self.transitions = 0;
        }
        if let Some(weight) = self.weight.filter(|weight| !(1..=WEIGHT_MOST).contains(weight)) {
            let bounded = weight.clamp(1, WEIGHT_MOST);
            self.odd.push(format!("the annotation leasehold.dev/weight is {weight} and counts as {bounded}"));
            self.weight = Some(bounded);
        }
        let names = [
            ("spec.holderIdentity", &mut self.holder),
            ("the annotation leasehold.dev/holder-pod", &mut self.holder_pod),
            ("the annotation leasehold.dev/successor", &mut self.successor),
            ("the annotation leasehold.dev/hand-over-to", &mut self.wanted),
        ];
        for (field, value) in names {
            if let Some(text) = value.as_mut().filter(|text| text.len() > NAME_MOST) {
                self.odd.push(format!("{field} has {} bytes, and {NAME_MOST} of them are kept", text.len()));
                let end = (0..=NAME_MOST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
                text.truncate(end);
            }
        }
        // A longer one is no kind, and could be none of ours.
        let too_long = self.kinds.iter().filter(|kind| kind.len() > NAME_MOST).count();
        if too_long > 0 {
            let field = "the annotation leasehold.dev/kind";
            self.odd
                .push(format!("{field} has {too_long} names of more than {NAME_MOST} bytes, which count for nothing"));
            self.kinds.retain(|kind| kind.len() <= NAME_MOST);
        }
        if let Some(profile) = self.profile.take() {
            let (profile, odd) = profile.bounded();
            self.odd.extend(odd);
            self.profile = Some(profile);
        }
        self
    }

    /// What an election needs of it.
    pub fn observation(&self) -> Observation {
        Observation {
            version: self.version.clone(),
            holder: self.holder.clone(),
            duration: self.duration,
            transitions: self.transitions,
            successor: self.successor.clone(),
        }
    }

    /// A shard's Lease; `None` for any other.
    pub fn holding(&self) -> Option<Holding> {
        (self.role == Role::Shard).then(|| Holding {
            version: self.version.clone(),
            holder: self.holder.clone(),
            duration: self.duration,
            holder_pod: self.holder_pod.clone(),
            transitions: self.transitions,
            successor: self.successor.clone(),
            wanted: self.wanted.clone(),
            weight: self.weight,
        })
    }

    /// A membership Lease; `None` for any other, and for one without a holder or a profile that can be read.
    pub fn member(&self) -> Option<Member> {
        (self.role == Role::Replica).then_some(())?;
        Some(Member {
            name: self.name.clone(),
            version: self.version.clone(),
            identity: self.holder.clone()?,
            duration: self.duration,
            created: self.created,
            profile: self.profile.clone()?,
        })
    }
}

impl Holding {
    /// Names the term: the next one has another. Of a pair it has the ConfigMap's uid, if there is one.
    pub fn token(&self) -> String {
        self.tokens().next().unwrap_or_default()
    }

    /// What the term is called by replicas that have the whole of its lock, or only a part of it.
    pub fn tokens(&self) -> impl Iterator<Item = String> {
        let uids = self.version.uid.split(super::lock::AND).filter(|uid| !uid.is_empty());
        uids.map(|uid| format!("{uid}/{}", self.transitions))
    }
}

/// Why a Lease is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// POST of a Lease that does not exist.
    Create,
    /// PUT that makes us holder.
    Acquire,
    /// PUT that keeps us holder.
    Renew,
    /// PUT that leaves the Lease free.
    Release,
    /// DELETE of a Lease whose count of transitions is at its end, so that it can be made anew.
    Replace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_hand_writes_is_bounded_and_named() {
        let record = Record {
            holder: Some("x".repeat(9000)),
            duration: Some(Duration::from_secs(u64::from(u32::MAX))),
            transitions: -3,
            weight: Some(u32::MAX),
            kinds: vec!["y".repeat(9000), "Widget.example.com".to_owned()],
            profile: Some(Profile { capacity: u32::MAX, ..Profile::default() }),
            ..Record::default()
        };
        let bounded = record.bounded();
        assert_eq!(bounded.duration, Some(LONGEST_LEASE));
        assert_eq!((bounded.transitions, bounded.weight), (0, Some(WEIGHT_MOST)));
        assert_eq!(bounded.holder.as_ref().map(String::len), Some(NAME_MOST));
        assert_eq!(bounded.kinds, ["Widget.example.com"]);
        assert_eq!(bounded.odd.len(), 6, "{:?}", bounded.odd);
        assert_eq!(bounded.clone().bounded().odd, bounded.odd, "what is bounded stays as it is");
    }

    #[test]
    fn a_holder_whose_duration_is_absurd_is_a_holder_all_the_same() {
        for duration in [None, Some(Duration::from_secs(1)), Some(Duration::MAX)] {
            let record = Record { holder: Some("x".to_owned()), duration, ..Record::default() }.bounded();
            assert_eq!(record.observation().holder.as_deref(), Some("x"));
            assert!(record.duration.is_none_or(|duration| duration <= LONGEST_LEASE));
        }
    }
}
