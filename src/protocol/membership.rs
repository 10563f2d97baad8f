//! What this replica says of itself on a Lease of its own, and when it is written.
//!
//! The others learn from it that this replica is there, what it can run and what it is prepared for. No decision waits
//! for it: a replica whose membership cannot be written leads what the others leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    event::{Answer, Request},
    hash::name_hash,
    lease::{Purpose, Record, Role},
    moment::Moment,
};

/// Whether a replica takes shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Activity {
    /// It does.
    #[default]
    Active,
    /// It gives its shards away and then ends.
    Draining,
}

/// A set of shards, by the names of their Leases.
///
/// A membership of a thousand kinds is read by every replica at every renewal, so a name counts as 24 bits of its hash,
/// written as four characters. Two names that share them cost a shard's target a miss, once in 16 million pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaseSet(BTreeSet<u32>);

/// Six bits each.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl LeaseSet {
    /// Whether the set has this Lease.
    pub fn contains(&self, lease: &str) -> bool {
        self.0.contains(&Self::short(lease))
    }

    /// Adds a Lease.
    pub fn insert(&mut self, lease: &str) {
        self.0.insert(Self::short(lease));
    }

    /// How many Leases the set has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn short(lease: &str) -> u32 {
        // The lowest bit of a name's hash is always set.
        u32::try_from(name_hash(lease) >> 40).unwrap_or_default()
    }
}

impl<S: AsRef<str>> FromIterator<S> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = S>>(leases: I) -> Self {
        Self(leases.into_iter().map(|lease| Self::short(lease.as_ref())).collect())
    }
}

impl Serialize for LeaseSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = |short: &u32| [18, 12, 6, 0].map(|shift| char::from(DIGITS[(short >> shift) as usize & 63]));
        let text: String = self.0.iter().flat_map(digits).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for LeaseSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = LeaseSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("groups of four characters, or a list of Lease names")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LeaseSet, E> {
                let digit = |byte: &u8| {
                    let value = DIGITS.iter().position(|digit| digit == byte);
                    value.and_then(|value| u32::try_from(value).ok())
                };
                let short = |group: &[u8]| {
                    group.iter().try_fold(0, |all, byte| Some(all << 6 | digit(byte)?)).filter(|_| group.len() == 4)
                };
                let shorts: Option<_> = text.as_bytes().chunks(4).map(short).collect();
                shorts.map(LeaseSet).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<LeaseSet, A::Error> {
                let mut leases = LeaseSet::default();
                while let Some(name) = names.next_element::<String>()? {
                    leases.insert(&name);
                }
                Ok(leases)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What a replica says of itself on its membership Lease. Missing fields have their defaults, unknown ones are ignored:
/// replicas of two versions live side by side in every rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Profile {
    /// Whether it takes shards.
    pub activity: Activity,
    /// Name of its Pod or host.
    pub pod: String,
    /// Uid of its Pod, if it holds the Pod's lock: then every other process that gave this uid is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// What made its Pod, such as `Deployment/leasehold`: generations of different owners are not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Hash of the template its Pod was made from; empty when unknown.
    pub generation: String,
    /// Revision of its ReplicaSet: a rollout, or a rollback, has a greater one than what it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// How much it takes, relative to the others; 1 to [`CAPACITY_MOST`].
    pub capacity: u32,
    /// It does not see the Leases: its watch is down.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub blind: bool,
    /// The shards it is configured for.
    pub shards: LeaseSet,
    /// The kinds, by name, that it leads by a ConfigMap alone when it leads them.
    #[serde(skip_serializing_if = "LeaseSet::is_empty")]
    pub config_maps: LeaseSet,
    /// Those of them that it cannot run now: CRD missing, permission denied, cooling down, deaf.
    #[serde(skip_serializing_if = "LeaseSet::is_empty")]
    pub unable: LeaseSet,
    /// Those of them that have failed here lately.
    #[serde(skip_serializing_if = "LeaseSet::is_empty")]
    pub failing: LeaseSet,
    /// Shards it has filled a cache for as the named successor, and the token of the term it is to follow.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prepared: BTreeMap<String, String>,
    /// By holder identity of a replica that did not take what it was given: the shards that it is not to be given, or
    /// [`ANY_SHARD`]. All replicas place by the word of all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub avoids: BTreeMap<String, LeaseSet>,
}

/// Stands for every shard in [`Profile::avoids`]; no Lease is called so.
pub const ANY_SHARD: &str = "*";

/// The most that a capacity may be: what a configuration may say at the most.
pub const CAPACITY_MOST: u32 = 1000;

impl Profile {
    /// It could run this shard now.
    pub fn can_run(&self, lease: &str) -> bool {
        self.shards.contains(lease) && !self.unable.contains(lease)
    }

    /// Brings every field within its bounds, and says what was not.
    #[must_use]
    pub fn bounded(mut self) -> (Self, Option<String>) {
        let said = self.capacity;
        self.capacity = said.clamp(1, CAPACITY_MOST);
        let odd = (said != self.capacity)
            .then(|| format!("the capacity of replica {} is {said} and counts as {}", self.pod, self.capacity));
        (self, odd)
    }
}

/// A membership is renewed this many times within its duration, so that one lost renewal is not taken for a departure.
const RENEWALS: u32 = 3;

/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(5);

/// What to do about the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
pub enum Step {
    /// Nothing before this moment.
    Wait(Moment),
    /// Send this, and report the answer with [`Membership::answered`].
    Send(Request),
}

/// This replica's membership Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// What a new Lease bears.
    blank: Record,
    lease_duration: Duration,
    request_timeout: Duration,
    /// `None`: the replica leaves, and its Lease is to be deleted.
    profile: Option<Profile>,
    stored: Option<Record>,
    /// A read has found this Lease.
    found: Option<Option<Record>>,
    in_flight: bool,
    sent_at: Moment,
    /// When the last write that succeeded was sent.
    heard_at: Option<Moment>,
    write_at: Moment,
    /// Nothing is written before.
    begins_at: Moment,
    trouble: Option<String>,
    left: bool,
}

impl Membership {
    /// The membership of the process with this holder identity, which describes itself so.
    /// Nothing is written before [`begin`](Self::begin), or `begins_at` if that comes first.
    pub fn new(
        namespace: &str,
        instance: &str,
        identity: &str,
        profile: Profile,
        (lease_duration, request_timeout): (Duration, Duration),
        begins_at: Moment,
    ) -> Self {
        let blank = Record {
            namespace: namespace.to_owned(),
            name: name_of(identity),
            instance: Some(instance.to_owned()),
            role: Role::Replica,
            holder: Some(identity.to_owned()),
            duration: Some(lease_duration),
            ..Record::default()
        };
        Self {
            blank,
            lease_duration,
            request_timeout,
            profile: Some(profile),
            stored: None,
            found: None,
            in_flight: false,
            sent_at: begins_at,
            heard_at: None,
            write_at: begins_at,
            begins_at,
            trouble: None,
            left: false,
        }
    }

    /// Name of the Lease.
    pub fn name(&self) -> &str {
        &self.blank.name
    }

    /// It was written at least once.
    pub fn is_published(&self) -> bool {
        self.heard_at.is_some()
    }

    /// When the last write that succeeded was sent: the others count from later, so they hear of us for its duration at least.
    pub fn heard_at(&self) -> Option<Moment> {
        self.heard_at
    }

    /// What is stored says just this.
    pub fn says(&self, profile: &Profile) -> bool {
        self.stored.as_ref().and_then(|stored| stored.profile.as_ref()) == Some(profile)
    }

    /// The last write failed, and how.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// It was deleted, or need not be.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// What there is to say is known now.
    pub fn begin(&mut self, now: Moment) {
        if now < self.begins_at {
            self.begins_at = now;
            self.write_at = now;
        }
    }

    /// Says this from now on.
    pub fn describe(&mut self, now: Moment, profile: &Profile) {
        if self.profile.as_ref().is_some_and(|known| known != profile) {
            self.profile = Some(profile.clone());
            self.write_soon(now);
        }
    }

    /// The replica ends: the others need not wait for its silence.
    pub fn leave(&mut self, now: Moment) {
        if self.profile.take().is_some() {
            self.write_soon(now);
        }
    }

    fn write_soon(&mut self, now: Moment) {
        self.write_at = self.write_at.min(now + TOGETHER).max(self.begins_at);
    }

    /// When the next step is due; [`Moment::NEVER`] while a request is out.
    pub fn next_wake(&self) -> Moment {
        if self.in_flight || self.left { Moment::NEVER } else { self.write_at }
    }

    /// What to do at `now`.
    pub fn step(&mut self, now: Moment) -> Step {
        let at = self.next_wake();
        if now < at {
            return Step::Wait(at);
        }
        let request = match (&self.profile, self.found.take(), self.stored.take()) {
            (None, _, None) => {
                self.left = true;
                return Step::Wait(Moment::NEVER);
            }
            (None, _, Some(stored)) => Request::Delete { lease: stored.name, version: stored.version, purpose: None },
            (Some(profile), found, stored) => match found.or(stored.map(Some)) {
                None => Request::Get { lease: self.blank.name.clone() },
                Some(None) => {
                    Request::Create { record: self.signed(self.blank.clone(), profile), purpose: Purpose::Create }
                }
                Some(Some(stored)) => Request::Update { record: self.signed(stored, profile), purpose: Purpose::Renew },
            },
        };
        self.in_flight = true;
        self.sent_at = now;
        // Due again when it is answered; what changes meanwhile is due sooner.
        self.write_at = Moment::NEVER;
        Step::Send(request)
    }

    fn signed(&self, stored: Record, profile: &Profile) -> Record {
        Record {
            version: stored.version,
            created: stored.created,
            profile: Some(profile.clone()),
            ..self.blank.clone()
        }
    }

    /// What became of the request.
    pub fn answered(&mut self, now: Moment, answer: Answer) {
        self.in_flight = false;
        let wait = match answer {
            Answer::Found(found) => {
                self.found = Some(found);
                Duration::ZERO
            }
            Answer::Stored(record) => {
                self.stored = Some(record);
                self.heard_at = Some(self.sent_at);
                self.trouble = None;
                self.lease_duration / RENEWALS
            }
            Answer::Deleted | Answer::Conflict | Answer::Listed(_) => self.request_timeout / 2,
            Answer::Refused(trouble) | Answer::Unanswered(trouble) => {
                self.trouble = Some(trouble);
                self.request_timeout / 2
            }
        };
        self.write_at = self.write_at.min(now + wait);
        if self.profile.is_none() && self.stored.is_none() {
            self.left = true;
        }
    }
}

/// The membership Lease's name: the identity, spelt as a DNS subdomain.
fn name_of(identity: &str) -> String {
    const MOST: usize = 253;
    let name: String = identity
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    // The end is what is new for each process.
    let from = name.len().saturating_sub(MOST);
    let name = name[from..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    // A part may neither begin nor end with a hyphen.
    name.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_subdomain_and_ends_with_what_is_new() {
        for (identity, expected) in [
            ("leasehold-6d5f-abc12_00ff", "leasehold-6d5f-abc12-00ff"),
            ("My_Laptop.local_00ff", "my-laptop.local-00ff"),
            ("-x_00ff", "x-00ff"),
            ("host.-_00ff", "host.00ff"),
        ] {
            assert_eq!(name_of(identity), expected, "{identity}");
        }
        let long = name_of(&format!("{}_00ff", "a".repeat(300)));
        assert!(long.len() <= 253 && long.ends_with("a-00ff"), "{long}");
    }

    #[test]
    fn a_thousand_kinds_take_four_kilobytes() {
        let names: Vec<_> = (0..1000).map(|kind| format!("kind{kind}.example.com")).collect();
        let profile = Profile { shards: names.iter().collect(), ..Profile::default() };
        let text = serde_json::to_string(&profile).unwrap();
        assert!(text.len() < 4_200, "{} bytes", text.len());
        let read: Profile = serde_json::from_str(&text).unwrap();
        assert!(names.iter().all(|name| read.shards.contains(name)) && !read.shards.contains("other.example.com"));
    }

    #[test]
    fn a_profile_of_another_version_is_read_as_far_as_it_is_understood() {
        let text = r#"{"pod":"x","shards":["a","b"],"unable":["b"],"activity":"Active","ofTheFuture":{"a":[1]}}"#;
        let read: Profile = serde_json::from_str(text).unwrap();
        assert!(read.can_run("a") && !read.can_run("b"));
        assert!(serde_json::from_str::<Profile>(r#"{"shards":"ABC"}"#).is_err(), "no group of four");
    }

    fn at(millis: u64) -> Moment {
        Moment::after_origin(Duration::from_millis(1_000_000 + millis))
    }

    fn begun() -> Membership {
        let timings = (Duration::from_secs(15), Duration::from_secs(2));
        let mut membership = Membership::new("ns", "prod", "pod_1", Profile::default(), timings, at(2_000));
        assert_eq!(membership.step(at(0)), Step::Wait(at(2_000)));
        membership.begin(at(10));
        assert!(matches!(membership.step(at(10)), Step::Send(Request::Get { .. })));
        membership.answered(at(20), Answer::Found(None));
        assert!(matches!(membership.step(at(20)), Step::Send(Request::Create { .. })));
        membership.answered(at(30), Answer::Stored(membership.blank.clone()));
        membership
    }

    #[test]
    fn it_is_renewed_three_times_within_its_duration_and_changes_are_written_together() {
        let mut membership = begun();
        assert!(membership.is_published());
        assert_eq!(membership.step(at(30)), Step::Wait(at(5_030)));
        let profile = Profile { pod: "x".to_owned(), ..Profile::default() };
        membership.describe(at(100), &profile);
        assert_eq!(membership.step(at(100)), Step::Wait(at(105)));
        let Step::Send(Request::Update { record, .. }) = membership.step(at(105)) else { panic!("not written") };
        assert_eq!(record.profile, Some(profile));
    }

    #[test]
    fn what_changes_while_a_write_is_out_is_written_after_it() {
        let mut membership = begun();
        membership.describe(at(100), &Profile { pod: "x".to_owned(), ..Profile::default() });
        assert!(matches!(membership.step(at(105)), Step::Send(_)));
        membership.describe(at(110), &Profile { pod: "y".to_owned(), ..Profile::default() });
        assert_eq!(membership.step(at(110)), Step::Wait(Moment::NEVER));
        membership.answered(at(200), Answer::Stored(membership.blank.clone()));
        assert!(matches!(membership.step(at(200)), Step::Send(Request::Update { .. })));
    }

    #[test]
    fn it_is_deleted_at_the_end_and_a_failure_is_read_again() {
        let mut membership = begun();
        membership.describe(at(100), &Profile { pod: "x".to_owned(), ..Profile::default() });
        assert!(matches!(membership.step(at(105)), Step::Send(_)));
        membership.answered(at(2_105), Answer::Unanswered("no answer".to_owned()));
        assert_eq!(membership.trouble(), Some("no answer"));
        assert_eq!(membership.step(at(2_105)), Step::Wait(at(3_105)));
        assert!(matches!(membership.step(at(3_105)), Step::Send(Request::Get { .. })));
        membership.answered(at(3_110), Answer::Found(Some(membership.blank.clone())));
        assert!(matches!(membership.step(at(3_110)), Step::Send(Request::Update { .. })));
        membership.answered(at(3_120), Answer::Stored(membership.blank.clone()));
        membership.leave(at(4_000));
        assert!(matches!(membership.step(at(4_005)), Step::Send(Request::Delete { .. })));
        membership.answered(at(4_010), Answer::Deleted);
        assert!(membership.has_left());
    }
}
