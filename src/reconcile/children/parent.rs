//! An object of a kind that no program knows: its metadata, its status as the engine writes it, and the rest as it is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::object::HasStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reconcile::{
    raw::{self, Raw},
    status::{Shard, Stamped},
    weight::weigh,
};

/// The object that children belong to. A replica keeps all of its kinds, and looks at few at a time: so what is not read
/// between two passes is text, which takes a fraction of the memory of a tree, and is copied from an answer without making
/// one. A standby that is told of each version of a large object thus spends little on it.
pub(super) type Parent = Raw<Status>;

/// It has more than [`raw::DEEPEST`] lists and mappings in one another.
#[derive(Debug)]
pub(super) struct TooDeep;

/// What is known of it: what all kinds say, and the fields that its front end says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StatusTree", into = "StatusTree")]
pub(super) struct Status {
    pub(super) observed_generation: Option<i64>,
    pub(super) conditions: Vec<Condition>,
    pub(super) shard: Option<Shard>,
    /// As text, and empty for no fields: a tree of one small field takes half a kilobyte.
    pub(super) own: Box<str>,
}

/// The text of the fields that a front end says.
pub(super) fn own(fields: &Map<String, Value>) -> Box<str> {
    let text = if fields.is_empty() { String::new() } else { serde_json::to_string(fields).unwrap_or_default() };
    text.into_boxed_str()
}

impl From<StatusTree> for Status {
    fn from(StatusTree { observed_generation, conditions, shard, own: fields }: StatusTree) -> Self {
        Self { observed_generation, conditions, shard, own: own(&fields) }
    }
}

impl From<Status> for StatusTree {
    fn from(Status { observed_generation, conditions, shard, own }: Status) -> Self {
        Self { observed_generation, conditions, shard, own: serde_json::from_str(&own).unwrap_or_default() }
    }
}

/// As requests and answers have it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusTree {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<Shard>,
    #[serde(flatten)]
    own: Map<String, Value>,
}

impl Parent {
    /// How much it weighs: it is text for the most part, which need not be written to be counted.
    pub(super) fn bytes(&self) -> u64 {
        let status = self.status.as_ref().map_or(0, |status| weigh(&status.conditions) + status.own.len() as u64);
        weigh(&self.metadata) + self.rest.len() as u64 + status
    }

    /// As a tree of JSON, to look into.
    ///
    /// # Errors
    /// When it is too deep for that.
    pub(super) fn tree(&self) -> Result<Value, TooDeep> {
        if raw::is_deep(self.rest.as_bytes()) { Err(TooDeep) } else { serde_json::to_value(self).map_err(|_| TooDeep) }
    }

    pub(super) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
}

impl Stamped for Status {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn shard_mut(&mut self) -> &mut Option<Shard> {
        &mut self.shard
    }
}

impl HasStatus for Parent {
    type Status = Status;

    fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    fn status_mut(&mut self) -> &mut Option<Status> {
        &mut self.status
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::super::raw::tests::deep, *};

    fn widget() -> Value {
        json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "uid": "u"},
            "spec": {"size": 3, "say \"it\"": "a\nb \u{1F980}", "list": [1.0, 1e300, null, {}]}, "data\n": {"a": "b"},
            "status": {"observedGeneration": 2, "phase": "Active"},
        })
    }

    #[test]
    fn everything_goes_through_and_a_status_of_another_shape_is_none() {
        let object = widget();
        let parent: Parent = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(&*parent.status.as_ref().unwrap().own, r#"{"phase":"Active"}"#);
        assert_eq!(serde_json::to_value(&parent).unwrap(), object);
        for status in [json!("fine"), json!({"conditions": "none"}), json!(null)] {
            let mut odd = object.clone();
            odd["status"] = status;
            let parent: Parent = serde_json::from_value(odd).unwrap();
            let mut rest = object.clone();
            rest.as_object_mut().unwrap().remove("status");
            assert_eq!((&parent.status, serde_json::to_value(&parent).unwrap()), (&None, rest));
        }
    }

    #[test]
    fn one_that_is_too_deep_to_be_looked_into_is_kept_and_written_and_no_tree() {
        let parent: Parent = serde_json::from_str(&deep(5000)).unwrap();
        assert_eq!(parent.uid(), "u");
        assert!(serde_json::to_string(&parent).unwrap().len() > 5000);
        assert!(parent.tree().is_err());
        let parent: Parent = serde_json::from_str(&deep(raw::DEEPEST - 1)).unwrap();
        assert_eq!(parent.tree().unwrap()["metadata"]["name"], "w");
    }
}
