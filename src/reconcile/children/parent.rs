//! An object of a kind that no program knows: its metadata, its status as the engine writes it, and the rest as it is.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Resource,
    core::{ApiResource, object::HasStatus},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::{Error, SerializeMap},
};
use serde_json::{Map, Value, value::RawValue};

use crate::reconcile::{
    status::{Shard, Stamped},
    weight::weigh,
};

/// The object that children belong to. A replica keeps all of its kinds, and looks at few at a time: so what is not read
/// between two passes is text, which takes a fraction of the memory of a tree, and is copied from an answer without making
/// one. A standby that is told of each version of a large object thus spends little on it.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) metadata: ObjectMeta,
    pub(super) status: Option<Status>,
    /// An object of JSON.
    rest: Box<str>,
}

const METADATA: &str = "metadata";
const STATUS: &str = "status";

impl<'de> Deserialize<'de> for Parent {
    /// From JSON as it is received, or a tree of it. An event of a watch says what it is before it says of what, as the API
    /// server does, or its object would be buffered in a form that has no text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Parent;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of Kubernetes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Parent, A::Error> {
        let (mut metadata, mut status, mut rest) = (ObjectMeta::default(), None, BTreeMap::new());
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                METADATA => metadata = fields.next_value()?,
                STATUS => {
                    // One that another writer has given another shape is as good as none: it is written anew.
                    let text: Box<RawValue> = fields.next_value()?;
                    status = serde_json::from_str(text.get()).ok();
                }
                _ => drop(rest.insert(field, fields.next_value::<Box<RawValue>>()?)),
            }
        }
        let rest = serde_json::to_string(&rest).map_err(serde::de::Error::custom)?.into_boxed_str();
        Ok(Parent { metadata, status, rest })
    }
}

impl Serialize for Parent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rest: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(&self.rest).map_err(S::Error::custom)?;
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry(METADATA, &self.metadata)?;
        if let Some(status) = &self.status {
            fields.serialize_entry(STATUS, status)?;
        }
        for (field, value) in &rest {
            fields.serialize_entry(field, value)?;
        }
        fields.end()
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

impl Parent {
    /// How much it weighs: it is text for the most part, which need not be written to be counted.
    pub(super) fn bytes(&self) -> u64 {
        let status = self.status.as_ref().map_or(0, |status| weigh(&status.conditions) + status.own.len() as u64);
        weigh(&self.metadata) + self.rest.len() as u64 + status
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
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

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
    fn it_is_the_same_from_a_list_a_watch_and_an_answer_and_as_text() {
        let object = widget();
        let text = serde_json::to_string_pretty(&object).unwrap();
        let list = format!(r#"{{"kind":"WidgetList","apiVersion":"example.com/v1","metadata":{{}},"items":[{text}]}}"#);
        let list: ObjectList<Parent> = serde_json::from_str(&list).unwrap();
        let event: WatchEvent<Parent> =
            serde_json::from_str(&format!(r#"{{"type":"MODIFIED","object":{text}}}"#)).unwrap();
        let WatchEvent::Modified(watched) = event else { panic!("of another type") };
        for parent in [list.items[0].clone(), watched, serde_json::from_str(&text).unwrap()] {
            assert_eq!(serde_json::to_value(&parent).unwrap(), object);
            let written = serde_json::to_string(&parent).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), object);
        }
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["[]", "3", "null", r#"{"metadata": 3}"#, r#"{"spec": {]}"#, r#"{"spec": {}"#] {
            assert!(serde_json::from_str::<Parent>(text).is_err(), "{text}");
        }
    }
}
