//! The `ScaleSchedule` resource.

#![expect(clippy::duplicated_attributes, reason = "the columns of kube's attribute share types and priorities")]
#![expect(unreachable_pub, reason = "the schema derive repeats each struct inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kinds::schema,
    reconcile::status::{Shard, reported},
};

/// Scales one workload by the clock: in a window to the number of the window, and afterwards to what it was.
///
/// The number that was there when a window began is kept in `status.savedReplicas`, and restored when no window is active any more,
/// when the schedule is suspended, and when it is deleted.
/// The replica needs `get` and `patch` on the target's `scale`; the default installation grants them on Deployments and StatefulSets.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "ScaleSchedule",
    plural = "scaleschedules",
    namespaced,
    shortname = "sched",
    category = "leasehold",
    status = "ScaleScheduleStatus",
    derive = "PartialEq",
    doc = "Scales one workload by the clock: in a window to the number of the window, and afterwards to what it was.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Window", type_ = "string", json_path = ".status.activeWindow"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Saved", type_ = "integer", json_path = ".status.savedReplicas"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextTransition"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ScaleScheduleSpec {
    /// What is scaled: anything with a `scale`, in the namespace of the schedule.
    pub target_ref: TargetRef,
    /// The clock that the windows are read from: a name of the time zone database, such as `Europe/Berlin`. Default: `UTC`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub timezone: String,
    /// As if there were no windows: what was saved is restored, and the target is left alone.
    #[serde(default)]
    pub suspend: bool,
    /// When to scale, and to what. They must not overlap.
    #[schemars(length(min = 1, max = 64))]
    pub windows: Vec<Window>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// An object of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API version, such as `apps/v1`.
    #[schemars(length(min = 1, max = 253), pattern(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[a-z0-9]+$"))]
    pub api_version: String,
    /// Kind, such as `Deployment`.
    #[schemars(length(min = 1, max = 63), pattern("^[A-Za-z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// Name.
    #[schemars(
        length(min = 1, max = 253),
        pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// A time of the week.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from != self.to").message("from and to must differ"))]
pub struct Window {
    /// The days on which it begins.
    #[schemars(length(min = 1, max = 7))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub days: Vec<Day>,
    /// When it begins, such as `22:00`. A time that the clock skips is when it goes on, one that it shows twice is the first.
    #[schemars(length(max = 5), pattern("^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// When it ends; on the next day if that is not after `from`.
    #[schemars(length(max = 5), pattern("^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub to: String,
    /// How many replicas in the meantime.
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,
}

/// A day of the week.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "internals", expect(missing_docs, reason = "they are the days of the week"))]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// What is known of a ScaleSchedule.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleScheduleStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `SpecValid`, `Applied`, and `Ready` over both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The window that is active, such as `Mon 22:00-06:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_window: Option<String>,
    /// How many replicas there were when the first of the active windows began, to be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_replicas: Option<i32>,
    /// How many replicas there shall be now; nothing while the target is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// When the next window begins or this one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_transition: Option<Time>,
    /// The shard that wrote this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

reported!(ScaleScheduleStatus);
