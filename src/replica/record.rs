//! A Lease as the API server has it, and how it becomes a [`Record`] and a record becomes a Lease again: what is not ours
//! comes back as it was (rule 13), fields that no client of today knows included.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::coordination::v1,
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client,
    core::{ApiResource, NotUsed, Object},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protocol::lease::{Purpose, Record, Role, Version};

/// Label whose value is the installation's `instance`; everything of an installation is found by it.
pub const INSTANCE_LABEL: &str = "leasehold.dev/instance";
/// Label that tells what a Lease of ours is about: [`SHARD`] or [`REPLICA`].
pub const ROLE_LABEL: &str = "leasehold.dev/role";
/// Role of a Lease whose holder reconciles a shard.
pub const SHARD: &str = "shard";
/// Role of a Lease by which a replica says that it is there.
pub const REPLICA: &str = "replica";
/// Annotation with a sentence for people who read `kubectl describe lease`.
pub const ABOUT_ANNOTATION: &str = "leasehold.dev/about";
/// Annotation with the kinds of a shard's Lease, `<Kind>.<group>`, between commas if it has several.
pub const KIND_ANNOTATION: &str = "leasehold.dev/kind";
/// Annotation with the weight of a shard, for replicas that are not configured for it.
pub const WEIGHT_ANNOTATION: &str = "leasehold.dev/weight";
/// Annotation `<pod uid>/<holder identity>`. It counts only while that identity is the holder: another elector that
/// takes the Lease, client-go's for example, leaves it as it is.
pub const HOLDER_POD_ANNOTATION: &str = "leasehold.dev/holder-pod";
/// Annotation with the holder identity that is to follow.
pub const SUCCESSOR_ANNOTATION: &str = "leasehold.dev/successor";
/// Annotation by which `leasehold hand-over` asks for a shard to be at a replica, by its Pod name or holder identity, for as
/// long as that one lives.
pub const HAND_OVER_ANNOTATION: &str = "leasehold.dev/hand-over-to";
/// Annotation with a replica's [`Profile`](crate::protocol::membership::Profile) as JSON.
pub const PROFILE_ANNOTATION: &str = "leasehold.dev/replica";

/// The most kinds that the sentence for people names.
const NAMED: usize = 8;

/// A `coordination.k8s.io/v1` Lease.
pub type Lease = Object<Spec, NotUsed>;

/// The fields of a Lease that an election is about, and the others, untouched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Who holds the Lease; missing or empty when no process does.
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

/// The time of day, as a Lease says it to people: written, and never read back to decide.
#[expect(clippy::disallowed_methods, reason = "written for people, never read back to decide")]
pub fn wall_clock() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// An annotation's value; `None` when it is missing or empty.
pub fn annotation<'a>(lease: &'a Lease, name: &str) -> Option<&'a str> {
    lease.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// The kinds that share the Lease of a shard, by its annotation.
pub fn kinds(lease: &Lease) -> Vec<String> {
    let kinds = annotation(lease, KIND_ANNOTATION).unwrap_or_default().split(',').map(str::trim);
    kinds.filter(|kind| !kind.is_empty()).map(str::to_owned).collect()
}

/// Names of kinds in a sentence, the first of them if they are many.
fn told(kinds: &[String]) -> String {
    match kinds {
        [kind] => kind.clone(),
        [first @ .., last] if kinds.len() <= NAMED => format!("{} and {last}", first.join(", ")),
        _ => {
            let first = &kinds[..kinds.len().min(NAMED)];
            format!("{} and {} more kinds", first.join(", "), kinds.len() - first.len())
        }
    }
}

/// Which stored object this is; `None` for one without uid or resourceVersion, which no API server stores.
pub fn version(lease: &Lease) -> Option<Version> {
    let metadata = &lease.metadata;
    Some(Version { uid: metadata.uid.clone()?, resource_version: metadata.resource_version.clone()? })
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// What decisions rest on; `None` for an object without a name or a version, which no API server stores.
pub fn record(lease: &Lease) -> Option<Record> {
    let label = |name| lease.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let text = |name| annotation(lease, name).map(str::to_owned);
    let role = match label(ROLE_LABEL).map(String::as_str) {
        Some(SHARD) => Role::Shard,
        Some(REPLICA) => Role::Replica,
        _ => Role::None,
    };
    let mut odd = Vec::new();
    let profile = text(PROFILE_ANNOTATION).filter(|_| role == Role::Replica).and_then(|profile| {
        let read = serde_json::from_str(&profile);
        read.inspect_err(|error| odd.push(format!("the annotation {PROFILE_ANNOTATION} cannot be read: {error}"))).ok()
    });
    let weight = text(WEIGHT_ANNOTATION).and_then(|weight| {
        let read = weight.parse::<u32>();
        let unread = |_: &_| odd.push(format!("the annotation {WEIGHT_ANNOTATION} is no number: {weight:.20}"));
        read.inspect_err(unread).ok()
    });
    // It counts only while that identity is the holder.
    let holder_pod = annotation(lease, HOLDER_POD_ANNOTATION).and_then(|value| {
        let (uid, identity) = value.split_once('/')?;
        (holder(lease) == Some(identity)).then(|| uid.to_owned())
    });
    let seconds = lease.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let record = Record {
        namespace: lease.metadata.namespace.clone().unwrap_or_default(),
        name: lease.metadata.name.clone()?,
        version: version(lease)?,
        created: lease.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        instance: label(INSTANCE_LABEL).cloned(),
        role,
        holder: holder(lease).map(str::to_owned),
        duration: seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs),
        transitions: lease.spec.lease_transitions.unwrap_or(0),
        holder_pod,
        successor: text(SUCCESSOR_ANNOTATION),
        wanted: text(HAND_OVER_ANNOTATION),
        weight,
        kinds: kinds(lease),
        profile,
        odd,
    };
    Some(record.bounded())
}

/// Writes a record over a stored Lease: changes what we own, and leaves all else as it is (rule 13).
///
/// # Errors
/// If the profile cannot be written as JSON, for which it gives no occasion.
pub fn sign(lease: &mut Lease, record: &Record, purpose: Purpose, now: MicroTime) -> Result<(), serde_json::Error> {
    let instance = record.instance.as_deref().unwrap_or_default();
    let role = if record.role == Role::Replica { REPLICA } else { SHARD };
    lease.metadata.managed_fields = None;
    let labels = lease.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(INSTANCE_LABEL.to_owned(), instance.to_owned());
    labels.insert(ROLE_LABEL.to_owned(), role.to_owned());
    let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => annotations.insert(name.to_owned(), value),
        None => annotations.remove(name),
    };
    match &record.profile {
        Some(profile) => {
            let about = format!(
                "The replica {} of {instance} is there while it renews this Lease; it is deleted when the replica ends.",
                profile.pod
            );
            set(ABOUT_ANNOTATION, Some(about));
            set(PROFILE_ANNOTATION, Some(serde_json::to_string(profile)?));
        }
        None => {
            let kinds = told(&record.kinds);
            let about = format!(
                "The holder of this Lease is the one replica of {instance} that reconciles {kinds}; while the holder is empty, none does."
            );
            set(ABOUT_ANNOTATION, Some(about));
            set(KIND_ANNOTATION, (!record.kinds.is_empty()).then(|| record.kinds.join(",")));
            set(WEIGHT_ANNOTATION, record.weight.map(|weight| weight.to_string()));
            set(SUCCESSOR_ANNOTATION, record.successor.clone());
            set(HAND_OVER_ANNOTATION, record.wanted.clone());
            let pod = record.holder_pod.as_ref().zip(record.holder.as_ref());
            set(HOLDER_POD_ANNOTATION, pod.map(|(uid, holder)| format!("{uid}/{holder}")));
        }
    }
    let spec = &mut lease.spec;
    spec.holder_identity = Some(record.holder.clone().unwrap_or_default());
    spec.lease_duration_seconds = record.duration.and_then(|duration| i32::try_from(duration.as_secs()).ok());
    let now = Some(if purpose == Purpose::Renew { next_second(spec.renew_time.as_ref(), now) } else { now });
    if record.role == Role::Replica {
        spec.acquire_time = spec.acquire_time.take().or_else(|| now.clone());
    } else {
        spec.lease_transitions = Some(record.transitions);
        if purpose != Purpose::Renew {
            spec.acquire_time.clone_from(&now);
        }
    }
    spec.renew_time = now;
    Ok(())
}

/// client-go reads the times of a Lease in whole seconds, and takes a renewal that says the second of the one before for none:
/// it would go on counting from that one. So a second renewal of one second says the next, and no later one. The second never
/// goes back: to a client that sees each other renewal only, one that goes to and fro stands still. And no two renewals say
/// the same: the API server would store nothing, and no replica would see the second one.
fn next_second(last: Option<&MicroTime>, now: MicroTime) -> MicroTime {
    let next = now.0.as_second() + 1;
    let said = match last {
        Some(last) if last.0.as_second() + 1 == next => Timestamp::from_second(next).ok(),
        Some(last) if last.0.as_second() == next => last.0.checked_add(SignedDuration::from_micros(1)).ok(),
        _ => None,
    };
    said.map_or(now, MicroTime)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::membership::Profile;

    fn stored() -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "widget.example.com", "namespace": "ns", "uid": "u", "resourceVersion": "7",
                "labels": {"theirs": "stays"}, "annotations": {"theirs": "stays"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"}],
            },
            "spec": {
                "holderIdentity": "pod_0", "leaseDurationSeconds": 30, "leaseTransitions": 4,
                "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:05.000000Z",
                "preferredHolder": "somebody", "strategy": "OldestEmulationVersion", "ofTheFuture": {"a": [1]},
            },
        })
    }

    fn ours(holder: Option<&str>, transitions: i32, successor: Option<&str>) -> Record {
        Record {
            instance: Some("prod".to_owned()),
            role: Role::Shard,
            holder: holder.map(str::to_owned),
            duration: Some(Duration::from_secs(if holder.is_some() { 15 } else { 1 })),
            transitions,
            holder_pod: holder.map(|_| "uid-1".to_owned()),
            successor: successor.map(str::to_owned),
            weight: Some(3),
            kinds: vec!["Widget.example.com".to_owned()],
            ..Record::default()
        }
    }

    fn signed(record: &Record, purpose: Purpose) -> Value {
        let mut lease: Lease = serde_json::from_value(stored()).unwrap();
        sign(&mut lease, record, purpose, MicroTime("2026-02-02T02:02:02.123456Z".parse().unwrap())).unwrap();
        serde_json::to_value(lease).unwrap()
    }

    #[test]
    fn a_write_changes_what_is_ours_and_carries_over_all_else() {
        let mut expected = stored();
        let annotations = &mut expected["metadata"]["annotations"];
        annotations[KIND_ANNOTATION] = json!("Widget.example.com");
        annotations[WEIGHT_ANNOTATION] = json!("3");
        annotations[HOLDER_POD_ANNOTATION] = json!("uid-1/pod_1");
        annotations[ABOUT_ANNOTATION] = json!(
            "The holder of this Lease is the one replica of prod that reconciles Widget.example.com; while the holder is empty, none does."
        );
        expected["metadata"]["labels"][INSTANCE_LABEL] = json!("prod");
        expected["metadata"]["labels"][ROLE_LABEL] = json!("shard");
        expected["spec"]["renewTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["holderIdentity"] = json!("pod_1");
        expected["spec"]["leaseDurationSeconds"] = json!(15);
        assert_eq!(signed(&ours(Some("pod_1"), 4, None), Purpose::Renew), expected);

        expected["spec"]["acquireTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["leaseTransitions"] = json!(5);
        assert_eq!(signed(&ours(Some("pod_1"), 5, None), Purpose::Acquire), expected);

        expected["spec"]["holderIdentity"] = json!("");
        expected["spec"]["leaseDurationSeconds"] = json!(1);
        let annotations = expected["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove(HOLDER_POD_ANNOTATION);
        annotations.insert(SUCCESSOR_ANNOTATION.to_owned(), json!("pod_2"));
        assert_eq!(signed(&ours(None, 5, Some("pod_2")), Purpose::Release), expected);
    }

    fn read(change: impl FnOnce(&mut Value)) -> Record {
        let mut lease = stored();
        change(&mut lease);
        record(&serde_json::from_value(lease).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written: Lease = serde_json::from_value(signed(&ours(Some("pod_1"), 5, None), Purpose::Acquire)).unwrap();
        let record = record(&written).unwrap();
        let Record { namespace, name, version, .. } = record.clone();
        assert_eq!(record, Record { namespace, name, version, ..ours(Some("pod_1"), 5, None) });
    }

    #[test]
    fn the_kinds_of_a_group_stand_in_one_annotation() {
        let kinds = |kinds: &[&str]| kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>();
        let group = Record { kinds: kinds(&["A.x", "B.x", "C"]), ..ours(Some("pod_1"), 5, None) };
        let written = signed(&group, Purpose::Acquire);
        assert_eq!(written["metadata"]["annotations"][KIND_ANNOTATION], json!("A.x,B.x,C"));
        let about = written["metadata"]["annotations"][ABOUT_ANNOTATION].as_str().unwrap();
        assert!(about.contains("reconciles A.x, B.x and C;"), "{about}");
        assert_eq!(record(&serde_json::from_value(written).unwrap()).unwrap().kinds, group.kinds);
        let by_hand = read(|lease| lease["metadata"]["annotations"][KIND_ANNOTATION] = json!(" A.x, ,B.x,"));
        assert_eq!(by_hand.kinds, kinds(&["A.x", "B.x"]));
        let many: Vec<_> = (0..1000).map(|kind| format!("K{kind}.x")).collect();
        assert!(told(&many).ends_with("K7.x and 992 more kinds"), "{}", told(&many));
    }

    #[test]
    fn a_pod_is_the_holders_only_while_its_identity_holds() {
        let of_pod = |lease: &mut Value| lease["metadata"]["annotations"][HOLDER_POD_ANNOTATION] = json!("uid-0/pod_0");
        assert_eq!(read(of_pod).holder_pod.as_deref(), Some("uid-0"));
        let taken = |lease: &mut Value| {
            of_pod(lease);
            lease["spec"]["holderIdentity"] = json!("a client-go elector");
        };
        assert_eq!(read(taken).holder_pod, None);
    }

    #[test]
    fn what_a_record_says_of_the_time_of_day_is_not_even_read() {
        let at = |time: &'static str| {
            read(move |lease| {
                lease["spec"]["renewTime"] = json!(time);
                lease["spec"]["acquireTime"] = json!(time);
            })
        };
        assert_eq!(at("1996-01-01T00:00:00.000000Z"), at("2096-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn empty_and_null_fields_are_free_and_unknown() {
        for spec in [json!({}), json!({"holderIdentity": "", "leaseDurationSeconds": null, "leaseTransitions": null})] {
            let seen = read(|lease| lease["spec"] = spec);
            assert_eq!((seen.holder, seen.duration, seen.transitions), (None, None, 0));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let absurd = read(|lease| {
            lease["metadata"]["labels"][ROLE_LABEL] = json!("replica");
            lease["metadata"]["annotations"][PROFILE_ANNOTATION] = json!("{");
            lease["metadata"]["annotations"][WEIGHT_ANNOTATION] = json!("heavy");
        });
        assert_eq!((absurd.profile, absurd.weight, absurd.odd.len()), (None::<Profile>, None, 2));
    }

    #[test]
    fn renewals_of_one_second_do_not_look_alike_to_client_go() {
        let at = |text: &str| MicroTime(text.parse().unwrap());
        let say = |last: Option<&str>, now: &str| next_second(last.map(at).as_ref(), at(now));
        let now = "2026-01-01T00:00:05.700000Z";
        assert_eq!(say(None, now), at(now));
        assert_eq!(say(Some("2026-01-01T00:00:04.900000Z"), now), at(now));
        assert_eq!(say(Some("2026-01-01T00:00:05.100000Z"), now), at("2026-01-01T00:00:06Z"));
        let third = say(Some("2026-01-01T00:00:06Z"), now);
        assert_eq!(third, at("2026-01-01T00:00:06.000001Z"), "no later second, none before it, and not the same");
        let mut last = None;
        for millis in (0..5_000).step_by(90) {
            let now = MicroTime(at(now).0 + SignedDuration::from_millis(millis));
            let next = next_second(last.as_ref(), now.clone());
            let ahead = next.0.as_second() - now.0.as_second();
            assert!((0..2).contains(&ahead) && last.is_none_or(|last| next.0 > last.0), "{next:?} at {now:?}");
            last = Some(next);
        }
        assert_eq!(say(Some("2026-01-01T00:00:07Z"), now), at(now));
        assert_eq!(say(Some("2030-01-01T00:00:00Z"), now), at(now));

        let mut lease: Lease = serde_json::from_value(stored()).unwrap();
        let now = at("2026-01-01T00:00:05.900000Z");
        sign(&mut lease, &ours(Some("pod_0"), 4, Some("pod_1")), Purpose::Renew, now.clone()).unwrap();
        assert_eq!(lease.spec.renew_time, Some(at("2026-01-01T00:00:06Z")));
        sign(&mut lease, &ours(Some("pod_1"), 5, None), Purpose::Acquire, now.clone()).unwrap();
        assert_eq!(lease.spec.renew_time, Some(now), "another holder is news by itself");
    }
}
