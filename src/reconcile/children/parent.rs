//! An object of a kind that no program knows: its metadata, its status as the engine writes it, and the rest as it is.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Resource,
    core::{ApiResource, object::HasStatus},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::reconcile::status::{Shard, Stamped};

/// The object that children belong to. A replica keeps all of its kinds, and looks at few at a time: so what is not read
/// between two passes is kept as text, which takes a fraction of the memory of a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Tree", into = "Tree")]
pub(super) struct Parent {
    pub(super) metadata: ObjectMeta,
    pub(super) status: Option<Status>,
    rest: Box<str>,
}

/// As requests and answers have it.
#[derive(Serialize, Deserialize)]
struct Tree {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    status: Option<Status>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl From<Tree> for Parent {
    fn from(Tree { metadata, status, rest }: Tree) -> Self {
        // A tree of JSON has text.
        Self { metadata, status, rest: serde_json::to_string(&rest).unwrap_or_default().into_boxed_str() }
    }
}

impl From<Parent> for Tree {
    fn from(Parent { metadata, status, rest }: Parent) -> Self {
        Self { metadata, status, rest: serde_json::from_str(&rest).unwrap_or_default() }
    }
}

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

/// A status that another writer has given another shape is as good as none: it is written anew.
fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Status>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

impl Parent {
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

impl Resource for Parent {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.kind)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.group)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.version)
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.api_version)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_goes_through_and_a_status_of_another_shape_is_none() {
        let object = json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "uid": "u"},
            "spec": {"size": 3}, "data": {"a": "b"},
            "status": {"observedGeneration": 2, "phase": "Active"},
        });
        let parent: Parent = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(&*parent.status.as_ref().unwrap().own, r#"{"phase":"Active"}"#);
        assert_eq!(serde_json::to_value(&parent).unwrap(), object);
        for status in [json!("fine"), json!({"conditions": "none"}), json!(null)] {
            let mut odd = object.clone();
            odd["status"] = status;
            let parent: Parent = serde_json::from_value(odd).unwrap();
            let tree = Tree::from(parent);
            assert_eq!((tree.status, &tree.rest["spec"]["size"]), (None, &json!(3)));
        }
    }
}
