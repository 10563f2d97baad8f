//! The `ExpiryPolicy` resource.

#![expect(clippy::duplicated_attributes, reason = "the columns of kube's attribute share types and priorities")]
#![expect(unreachable_pub, reason = "the schema derive repeats each struct inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kinds::schema,
    reconcile::status::{Shard, reported},
};

/// Deletes objects of one kind in its own namespace when they have outlived their time.
///
/// It starts as a dry run: `status.expired` counts what would be deleted, until `dryRun` is false.
/// The replica needs `list` and `delete` on the target; the default installation grants them on Jobs, Pods and ConfigMaps.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "ExpiryPolicy",
    plural = "expirypolicies",
    namespaced,
    shortname = "exp",
    category = "leasehold",
    status = "ExpiryPolicyStatus",
    derive = "PartialEq",
    doc = "Deletes objects of one kind in its own namespace when they have outlived their time.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.kind"),
    printcolumn(name = "TTL", type_ = "string", json_path = ".spec.ttl"),
    printcolumn(name = "Dry Run", type_ = "boolean", json_path = ".spec.dryRun"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
    printcolumn(name = "Expired", type_ = "integer", json_path = ".status.expired"),
    printcolumn(name = "Deleted", type_ = "integer", json_path = ".status.deletedTotal"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextExpiry", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from == 'Annotation' || has(self.ttl)")
    .message("ttl is required when from is Creation"))]
#[x_kube(validation = Rule::new("self.from == 'Creation' || !has(self.ttl)")
    .message("ttl means nothing when from is Annotation"))]
#[x_kube(validation = Rule::new("!has(self.ttl) || duration(self.ttl) >= duration('1m')")
    .message("ttl must be at least 1m"))]
pub struct ExpiryPolicySpec {
    /// What expires.
    pub target: Target,
    /// How long an object lives after its creation, such as `24h` or `1h30m`; at least `1m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    pub ttl: Option<String>,
    /// What an object's time is counted from.
    #[serde(default)]
    pub from: From,
    /// The annotation that `from: Annotation` reads: a time as in RFC 3339, or a duration counted from the creation.
    /// Objects without it never expire. A new annotation is noticed within a minute.
    #[serde(default = "default_annotation")]
    #[schemars(length(min = 1, max = 317))]
    pub annotation: String,
    /// Delete nothing, only count.
    #[serde(default = "default_dry_run")]
    pub dry_run: bool,
    /// What happens to the objects that an expired one owns.
    #[serde(default)]
    pub propagation: DeletePropagation,
    /// Objects deleted in one run at most, the longest expired first. Runs are ten seconds apart while there are more.
    #[serde(default = "default_max_per_run")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_per_run: i32,
    /// Objects that never expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<Protect>,
}

fn default_annotation() -> String {
    "leasehold.dev/expires".to_owned()
}

fn default_dry_run() -> bool {
    true
}

fn default_max_per_run() -> i32 {
    50
}

/// Objects of one kind, in the namespace of the policy.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.kind in ['Namespace', 'Node', 'PersistentVolume', 'CustomResourceDefinition', 'Lease', 'ExpiryPolicy', 'Role', 'RoleBinding', 'ServiceAccount'])")
    .message("objects of this kind must not expire"))]
pub struct Target {
    /// API version, such as `v1` or `batch/v1`.
    #[schemars(length(min = 1, max = 253), pattern(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-z0-9]+$"))]
    pub api_version: String,
    /// Kind, such as `ConfigMap`.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// Which of them, by label. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: Option<LabelSelector>,
}

/// What an object's time is counted from.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    /// Its creation: it lives for the `ttl`.
    #[default]
    Creation,
    /// Its own annotation says when.
    Annotation,
}

/// What happens to the objects that an expired one owns.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletePropagation {
    /// They are deleted after it.
    #[default]
    Background,
    /// They are deleted before it.
    Foreground,
}

/// Objects that never expire.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Protect {
    /// Those with this annotation, whatever its value is but `false`.
    #[schemars(length(min = 1, max = 317))]
    pub annotation: String,
}

/// What is known of an ExpiryPolicy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpiryPolicyStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `SpecValid`, `Applied`, and `Ready` over both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Objects that the policy applies to.
    #[serde(default)]
    pub matched: i32,
    /// Those of them that have expired and are still there: what a dry run would delete, or what is left for the next run.
    #[serde(default)]
    pub expired: i32,
    /// Objects deleted in the life of the policy. A crash between a deletion and this count loses the difference.
    #[serde(default)]
    pub deleted_total: i64,
    /// When the next object expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_expiry: Option<Time>,
    /// The shard that wrote this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

reported!(ExpiryPolicyStatus);
