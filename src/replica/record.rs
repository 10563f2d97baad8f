//! A Lease as we read and write it: what is not ours comes back as it was (rule 13), fields that no client of today knows included.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::coordination::v1, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    Api, Client,
    core::{ApiResource, NotUsed, Object},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protocol::{
    election::{Observation, Version},
    roster::{Holding, Member, Profile},
};

/// Label whose value is the installation's `instance`; everything of an installation is found by it.
pub const INSTANCE_LABEL: &str = "leasehold.dev/instance";
/// Label that tells what a Lease of ours is about: [`SHARD`] or [`REPLICA`].
pub const ROLE_LABEL: &str = "leasehold.dev/role";
/// Role of a Lease whose holder reconciles a shard.
pub const SHARD: &str = "shard";
/// Role of a Lease by which a replica says that it is there.
pub const REPLICA: &str = "replica";
/// Annotation with a sentence for whoever reads `kubectl describe lease`.
pub const ABOUT_ANNOTATION: &str = "leasehold.dev/about";
/// Annotation with the kind of a shard's Lease, `<Kind>.<group>`, which may be too long for a label.
pub const KIND_ANNOTATION: &str = "leasehold.dev/kind";
/// Annotation with the weight of a shard, for replicas that are not configured for it.
pub const WEIGHT_ANNOTATION: &str = "leasehold.dev/weight";
/// Annotation `<pod uid>/<holder identity>`. It counts only while that identity is the holder: whoever else takes the
/// Lease, a client-go elector for example, leaves it as it is.
pub const HOLDER_POD_ANNOTATION: &str = "leasehold.dev/holder-pod";
/// Annotation with the holder identity that is to follow.
pub const SUCCESSOR_ANNOTATION: &str = "leasehold.dev/successor";
/// Annotation by which somebody asks for a shard to be at a replica, by its Pod name or holder identity, for as long as that one lives.
pub const HAND_OVER_ANNOTATION: &str = "leasehold.dev/hand-over-to";
/// Annotation with a replica's [`Profile`] as JSON.
pub const PROFILE_ANNOTATION: &str = "leasehold.dev/replica";

/// A `coordination.k8s.io/v1` Lease.
pub type Lease = Object<Spec, NotUsed>;

/// The fields of a Lease that an election is about, and the others, untouched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Who holds the Lease; missing or empty when nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_identity: Option<String>,
    /// For how long after a renewal it is held, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_duration_seconds: Option<i32>,
    /// When it was last acquired: for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire_time: Option<MicroTime>,
    /// When it was last renewed: for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<MicroTime>,
    /// How often it was acquired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_transitions: Option<i32>,
    /// What we do not own.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

fn resource() -> ApiResource {
    ApiResource::erase::<v1::Lease>(&())
}

/// The Leases of a namespace.
pub fn leases(client: Client, namespace: &str) -> Api<Lease> {
    Api::namespaced_with(client, namespace, &resource())
}

/// The Leases of all namespaces, to be read.
pub fn all_leases(client: Client) -> Api<Lease> {
    Api::all_with(client, &resource())
}

/// A Lease that does not exist yet.
pub fn new(name: &str, namespace: &str) -> Lease {
    Object::new(name, &resource(), Spec::default()).within(namespace)
}

/// Whose a Lease is, and what it is about: what every Lease of ours bears, whatever else is on it.
pub fn mark(lease: &mut Lease, instance: &str, role: &str, about: String) {
    lease.metadata.managed_fields = None;
    let labels = lease.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(INSTANCE_LABEL.to_owned(), instance.to_owned());
    labels.insert(ROLE_LABEL.to_owned(), role.to_owned());
    lease.metadata.annotations.get_or_insert_with(BTreeMap::new).insert(ABOUT_ANNOTATION.to_owned(), about);
}

/// The time of day, as a Lease says it to people: written, and never read back to decide.
#[expect(clippy::disallowed_methods, reason = "written for people, never read back to decide")]
pub fn wall_clock() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// An annotation's value; `None` when it is missing or empty.
pub fn annotation<'a>(lease: &'a Lease, name: &str) -> Option<&'a str> {
    lease.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// Which stored object this is; `None` for one without uid or resourceVersion, which no API server stores.
pub fn version(lease: &Lease) -> Option<Version> {
    let metadata = &lease.metadata;
    Some(Version { uid: metadata.uid.clone()?, resource_version: metadata.resource_version.clone()? })
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn duration(lease: &Lease) -> Option<Duration> {
    let seconds = lease.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// What an election needs of a Lease.
pub fn observation(lease: &Lease) -> Option<Observation> {
    Some(Observation {
        version: version(lease)?,
        holder: holder(lease).map(str::to_owned),
        duration: duration(lease),
        transitions: lease.spec.lease_transitions.unwrap_or(0),
        successor: annotation(lease, SUCCESSOR_ANNOTATION).map(str::to_owned),
    })
}

/// Uid of the Pod that the holder's process said it is in.
pub fn holder_pod(lease: &Lease) -> Option<&str> {
    let (uid, identity) = annotation(lease, HOLDER_POD_ANNOTATION)?.split_once('/')?;
    (holder(lease) == Some(identity)).then_some(uid)
}

/// A shard's Lease, for the roster; `None` for any other.
pub fn holding(lease: &Lease) -> Option<Holding> {
    if lease.metadata.labels.as_ref()?.get(ROLE_LABEL)? != SHARD {
        return None;
    }
    let seen = observation(lease)?;
    Some(Holding {
        version: seen.version,
        holder: seen.holder,
        duration: seen.duration,
        holder_pod: holder_pod(lease).map(str::to_owned),
        transitions: seen.transitions,
        successor: seen.successor,
        wanted: annotation(lease, HAND_OVER_ANNOTATION).map(str::to_owned),
        weight: annotation(lease, WEIGHT_ANNOTATION)
            .and_then(|weight| weight.parse().ok())
            .filter(|weight| *weight > 0),
    })
}

/// A membership Lease, for the roster; `None` for any other, and for one whose profile cannot be read.
pub fn member(lease: &Lease) -> Option<Member> {
    if lease.metadata.labels.as_ref()?.get(ROLE_LABEL)? != REPLICA {
        return None;
    }
    let profile: Profile = serde_json::from_str(annotation(lease, PROFILE_ANNOTATION)?).ok()?;
    Some(Member {
        name: lease.metadata.name.clone()?,
        version: version(lease)?,
        identity: holder(lease)?.to_owned(),
        duration: duration(lease),
        created: lease.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        profile,
    })
}
