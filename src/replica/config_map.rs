//! A ConfigMap that is a lock: the record stands in an annotation, as JSON, as client-go's `ConfigMapLock` wrote it until
//! v0.23. What we write beside it, on a Lease or a ConfigMap, is the same: see [`record`](mod@super::record).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, NotUsed, Object},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::{self, ABOUT_ANNOTATION, Lease, ROLE_LABEL, SHARD, Spec};
use crate::protocol::{
    lease::{Purpose, Record},
    lock::{self, LockKind},
};

/// Annotation with client-go's `LeaderElectionRecord`.
pub const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

/// A ConfigMap with all that is in it.
pub type ConfigMap = DynamicObject;

/// client-go's `LeaderElectionRecord`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaderElectionRecord {
    holder_identity: String,
    lease_duration_seconds: i32,
    /// client-go writes whole seconds, and reads parts of one too. A renewal that says the same as the one before changes no
    /// resourceVersion, so the others would not begin to count anew: ours says the microsecond.
    acquire_time: Option<MicroTime>,
    renew_time: Option<MicroTime>,
    leader_transitions: i32,
    /// What we do not own.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

fn resource() -> ApiResource {
    ApiResource::erase::<v1::ConfigMap>(&())
}

/// The ConfigMaps of a namespace.
pub fn config_maps(client: Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced_with(client, namespace, &resource())
}

/// A ConfigMap that does not exist yet.
pub fn new(name: &str, namespace: &str) -> ConfigMap {
    DynamicObject::new(name, &resource()).within(namespace)
}

/// The lock that a ConfigMap is, as the Lease that would say the same.
///
/// # Errors
/// If it is not ours, or what the annotation says is no record: then it is neither read nor written.
pub fn as_lease(config_map: &ConfigMap) -> Result<Lease, String> {
    let metadata = &config_map.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let is_ours = metadata.labels.as_ref().and_then(|labels| labels.get(ROLE_LABEL)).is_some_and(|role| role == SHARD);
    let annotation = metadata.annotations.as_ref().and_then(|annotations| annotations.get(LEADER_ANNOTATION));
    let has_data = |field: &str| config_map.data.get(field).and_then(Value::as_object).is_some_and(|it| !it.is_empty());
    let why = if !is_ours && (has_data("data") || has_data("binaryData")) {
        Some("it carries data")
    } else if !is_ours && annotation.is_none() {
        Some("it is no lock of ours and bears no annotation control-plane.alpha.kubernetes.io/leader")
    } else {
        None
    };
    if let Some(why) = why {
        return Err(format!(
            "the ConfigMap {name} is left alone, for {why}: give the kind another lease.name, or remove the ConfigMap if nothing needs it"
        ));
    }
    let said = match annotation.filter(|text| !text.is_empty()) {
        None => LeaderElectionRecord::default(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            format!(
                "the ConfigMap {name} is left alone, for its annotation {LEADER_ANNOTATION} is no record of a leader election: {error}; remove the annotation and the ConfigMap if no other elector needs them"
            )
        })?,
    };
    let spec = Spec {
        holder_identity: Some(said.holder_identity),
        lease_duration_seconds: Some(said.lease_duration_seconds),
        acquire_time: said.acquire_time,
        renew_time: said.renew_time,
        lease_transitions: Some(said.leader_transitions),
        others: said.others,
    };
    Ok(Object { types: None, metadata: metadata.clone(), spec, status: None::<NotUsed> })
}

/// What decisions rest on; `None` for an object that no API server stores.
///
/// # Errors
/// As [`as_lease`].
pub fn record(config_map: &ConfigMap) -> Result<Option<Record>, String> {
    let mut record = record::record(&as_lease(config_map)?);
    if let Some(record) = &mut record
        && ["data", "binaryData"].iter().any(|field| config_map.data.get(field).is_some_and(|data| !data.is_null()))
    {
        record.odd.push("the ConfigMap has data, which is left as it is: a lock needs none".to_owned());
    }
    Ok(record)
}

/// Writes a record over a stored ConfigMap: changes what we own, and leaves all else as it is (rule 13).
///
/// # Errors
/// As [`as_lease`], or if the record cannot be written as JSON, for which it gives no occasion.
pub fn sign(config_map: &mut ConfigMap, record: &Record, purpose: Purpose, now: MicroTime) -> Result<(), String> {
    let is_new = config_map.metadata.uid.is_none();
    let mut lease = match is_new {
        true => Object { types: None, metadata: config_map.metadata.clone(), spec: Spec::default(), status: None },
        false => as_lease(config_map)?,
    };
    record::sign(&mut lease, record, purpose, now).map_err(|error| error.to_string())?;
    let said = LeaderElectionRecord {
        holder_identity: lease.spec.holder_identity.unwrap_or_default(),
        lease_duration_seconds: lease.spec.lease_duration_seconds.unwrap_or_default(),
        acquire_time: lease.spec.acquire_time,
        renew_time: lease.spec.renew_time,
        leader_transitions: lease.spec.lease_transitions.unwrap_or_default(),
        others: lease.spec.others,
    };
    config_map.metadata = lease.metadata;
    let annotations = config_map.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(LEADER_ANNOTATION.to_owned(), serde_json::to_string(&said).map_err(|error| error.to_string())?);
    if let Some(about) = annotations.get_mut(ABOUT_ANNOTATION) {
        *about = about.replace("this Lease", "this ConfigMap");
    }
    Ok(())
}

/// The objects of one lock that is not a Lease alone, as they are stored.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Its ConfigMap.
    pub config_map: Option<Arc<ConfigMap>>,
    /// Its Lease, if it has one.
    pub lease: Option<Arc<Lease>>,
}

impl Objects {
    /// What decisions rest on; `None`: there is no such lock.
    ///
    /// # Errors
    /// As [`as_lease`].
    pub fn record(&self, lock: LockKind) -> Result<Option<Record>, String> {
        let config_map = self.config_map.as_deref().map(record).transpose()?.flatten();
        Ok(match lock {
            LockKind::ConfigMapsLeases => lock::pair(config_map, self.lease.as_deref().and_then(record::record)),
            LockKind::ConfigMap | LockKind::Lease => config_map,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::protocol::lease::{Role, Version};

    /// As client-go v0.23 leaves it.
    const THEIRS: &str = r#"{"holderIdentity":"old-1","leaseDurationSeconds":15,"acquireTime":"2026-01-01T00:00:00Z","renewTime":"2026-01-01T00:00:05Z","leaderTransitions":3}"#;

    fn stored(change: impl FnOnce(&mut Value)) -> ConfigMap {
        let mut object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "widget.example.com", "namespace": "ns", "uid": "u", "resourceVersion": "7",
                "labels": {"theirs": "stays"}, "annotations": {"theirs": "stays", LEADER_ANNOTATION: THEIRS},
            },
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn ours(holder: Option<&str>, transitions: i32) -> Record {
        Record {
            namespace: "ns".to_owned(),
            name: "widget.example.com".to_owned(),
            version: Version { uid: "u".to_owned(), resource_version: "7".to_owned() },
            instance: Some("prod".to_owned()),
            role: Role::Shard,
            holder: holder.map(str::to_owned),
            duration: Some(Duration::from_secs(15)),
            transitions,
            successor: Some("pod_2".to_owned()),
            weight: Some(3),
            kinds: vec!["Widget.example.com".to_owned()],
            ..Record::default()
        }
    }

    #[test]
    fn what_client_go_wrote_is_read_and_what_we_write_is_what_client_go_reads() {
        let mut config_map = stored(|_| {});
        let read = record(&config_map).unwrap().unwrap();
        assert_eq!((read.holder.as_deref(), read.transitions, read.role), (Some("old-1"), 3, Role::None));
        assert_eq!(read.duration, Some(Duration::from_secs(15)));

        let now = MicroTime("2026-02-02T02:02:02.123456Z".parse().unwrap());
        sign(&mut config_map, &ours(Some("pod_1"), 4), Purpose::Acquire, now.clone()).unwrap();
        let annotations = config_map.metadata.annotations.clone().unwrap();
        let said: Value = serde_json::from_str(&annotations[LEADER_ANNOTATION]).unwrap();
        let expected = json!({
            "holderIdentity": "pod_1", "leaseDurationSeconds": 15, "leaderTransitions": 4,
            "acquireTime": "2026-02-02T02:02:02.123456Z", "renewTime": "2026-02-02T02:02:02.123456Z",
        });
        assert_eq!(said, expected);
        assert_eq!((annotations["theirs"].as_str(), config_map.metadata.labels.as_ref().unwrap().len()), ("stays", 3));
        assert_eq!(record(&config_map).unwrap(), Some(ours(Some("pod_1"), 4)));

        sign(&mut config_map, &ours(None, 4), Purpose::Release, now).unwrap();
        assert_eq!(record(&config_map).unwrap(), Some(ours(None, 4)));
    }

    #[test]
    fn a_record_of_the_future_comes_back_with_what_we_do_not_know() {
        let mut config_map = stored(|it| {
            it["metadata"]["annotations"][LEADER_ANNOTATION] = json!(THEIRS.replace('}', r#","strategy":"x"}"#));
        });
        let now = MicroTime("2026-02-02T02:02:02Z".parse().unwrap());
        sign(&mut config_map, &ours(Some("pod_1"), 4), Purpose::Acquire, now).unwrap();
        assert!(config_map.metadata.annotations.unwrap()[LEADER_ANNOTATION].contains(r#""strategy":"x""#));
    }

    #[test]
    fn a_config_map_that_is_not_ours_is_refused_with_the_reason() {
        let refused = |change: fn(&mut Value), why: &str| {
            let mut config_map = stored(change);
            let error = record(&config_map).unwrap_err();
            assert!(error.contains("widget.example.com") && error.contains(why), "{error}");
            let before = config_map.clone();
            let now = MicroTime("2026-02-02T02:02:02Z".parse().unwrap());
            assert!(sign(&mut config_map, &ours(Some("pod_1"), 4), Purpose::Acquire, now).is_err());
            assert_eq!(before, config_map);
        };
        refused(|it| it["data"] = json!({"key": "value"}), "it carries data");
        refused(|it| it["binaryData"] = json!({"key": "AA=="}), "it carries data");
        refused(|it| it["metadata"]["annotations"] = json!({}), "no annotation");
        refused(|it| it["metadata"]["annotations"][LEADER_ANNOTATION] = json!("x"), "no record of a leader election");
        refused(|it| it["metadata"]["annotations"][LEADER_ANNOTATION] = json!("[]"), "no record of a leader election");
    }

    #[test]
    fn a_lock_of_ours_that_is_given_data_stays_a_lock_and_says_so() {
        let config_map = stored(|it| {
            it["metadata"]["labels"][ROLE_LABEL] = json!(SHARD);
            it["data"] = json!({"key": "value"});
        });
        let read = record(&config_map).unwrap().unwrap();
        assert_eq!((read.holder.as_deref(), read.odd.len()), (Some("old-1"), 1));
    }
}
