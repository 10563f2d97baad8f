//! A Lease as we read and write it: what is not ours comes back as it was (rule 13), fields that no client of today knows included.

use std::collections::BTreeMap;

use k8s_openapi::{api::coordination::v1, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    core::{ApiResource, NotUsed, Object},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// A Lease that does not exist yet.
pub fn new(name: &str, namespace: &str) -> Lease {
    Object::new(name, &resource(), Spec::default()).within(namespace)
}
