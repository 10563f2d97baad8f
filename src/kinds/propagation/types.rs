//! The `Propagation` resource.

#![expect(clippy::duplicated_attributes, reason = "the columns of kube's attribute share types and priorities")]
#![expect(unreachable_pub, reason = "the schema derive repeats each struct inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kinds::schema,
    reconcile::status::{Shard, reported},
};

/// Copies one ConfigMap or Secret into other namespaces and keeps the copies like it.
///
/// A copy bears the name of its source. A namespace that stops being a target loses its copy, and so do all with the Propagation.
/// Where webhooks are served, its author must be allowed to read the source and to write in the targets. Where none are, it
/// copies what the configuration allows: ConfigMaps, unless that says otherwise.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "Propagation",
    plural = "propagations",
    shortname = "prop",
    category = "leasehold",
    status = "PropagationStatus",
    derive = "PartialEq",
    doc = "Copies one ConfigMap or Secret into other namespaces and keeps the copies like it.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.source.kind"),
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.source.name"),
    printcolumn(name = "From", type_ = "string", json_path = ".spec.source.namespace", priority = 1),
    printcolumn(name = "Targets", type_ = "integer", json_path = ".status.targets"),
    printcolumn(name = "Synced", type_ = "integer", json_path = ".status.synced"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PropagationSpec {
    /// What is copied.
    pub source: Source,
    /// Where copies belong. The namespace of the source is never a target.
    pub targets: Targets,
    /// Copy only these keys. All of them must exist in the source. Default: all keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253), pattern("^[-._a-zA-Z0-9]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub keys: Vec<String>,
    /// What to do where an object that is not ours has the name of the copy.
    /// An object of another Propagation is never taken.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// What to do with the copies while the source does not exist.
    #[serde(default)]
    pub on_source_missing: OnSourceMissing,
}

/// One ConfigMap or Secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// ConfigMap or Secret.
    pub kind: SourceKind,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// Its name, and the name of the copies.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// What can be propagated.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// The namespaces that get a copy: those selected and those named, without those excluded.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.namespaceSelector) || (has(self.namespaces) && size(self.namespaces) > 0)")
    .message("at least one of namespaceSelector and namespaces is required"))]
pub struct Targets {
    /// Namespaces by label. The empty selector `{}` selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// Namespaces by name. One that does not exist yet gets its copy when it appears.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
    /// Namespaces that get no copy whatever selects them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
}

/// What to do where an object that is not ours has the name of the copy.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnConflict {
    /// Leave it alone and say so in `status.failed`.
    #[default]
    Skip,
    /// Make it the copy. Keys that the source does not have stay.
    Overwrite,
}

/// What to do with the copies while the source does not exist.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnSourceMissing {
    /// Keep them as they are.
    #[default]
    Keep,
    /// Delete them.
    Delete,
}

/// What is known of a Propagation.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PropagationStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `SpecValid`, `SourceFound`, `Applied`, and `Ready` over all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// What the copies were last made like: a hash of what is copied of a ConfigMap, the resourceVersion of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_version: Option<String>,
    /// Namespaces that should have a copy.
    #[serde(default)]
    pub targets: i32,
    /// Namespaces that have one, like the source.
    #[serde(default)]
    pub synced: i32,
    /// Why the others have none: the first twenty by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".to_owned()]))]
    pub failed: Vec<Failed>,
    /// The shard that wrote this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

reported!(PropagationStatus);

/// A target without an up-to-date copy.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Its name.
    pub namespace: String,
    /// Why.
    pub reason: FailedReason,
}

/// Why a target has no up-to-date copy.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailedReason {
    /// It is listed by name and does not exist.
    NamespaceNotFound,
    /// An object of that name is there and is not ours, or is another Propagation's.
    Conflict,
    /// We may not write there.
    Forbidden,
    /// The API server says that the copy is not valid there.
    Invalid,
    /// The request failed; it is tried again.
    ApplyFailed,
}
