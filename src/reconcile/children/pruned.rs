//! Which fields of a status the API server does not keep, because the CRD does not name them. Pure.
//!
//! It drops them without a word. A writer that compares what it would say with what is stored finds them missing each time, and
//! each new term would write every status again. So what is compared is what would be left.
//!
//! Which fields those are is read from the CRD once a term. Where it may not be read, it is learnt from what the API server
//! has made of a status that we wrote.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::{Map, Value};

/// Fields that are named.
const NAMED: usize = 10;

/// What is kept of a status.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    known: Known,
    is_reported: bool,
}

/// Where that is known from.
#[derive(Debug)]
enum Known {
    /// The part of the schema that is about the status; `None`: it has no such part, and all of it is dropped.
    Schema(Option<Box<JSONSchemaProps>>),
    /// All of it is kept.
    Nothing,
    /// What our own writes have lost.
    Learnt(BTreeSet<Path>),
}

impl Default for Known {
    fn default() -> Self {
        Self::Learnt(BTreeSet::new())
    }
}

/// Names of fields from the status on; an empty one is any item of a list.
type Path = Vec<String>;

impl Pruning {
    /// As the CRD says of that version. What is not understood of it is left to be learnt.
    pub(super) fn by_crd(crd: &CustomResourceDefinition, version: &str) -> Self {
        let found = crd.spec.versions.iter().find(|it| it.name == version);
        let schema = found.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
        let known = match schema {
            _ if crd.spec.preserve_unknown_fields == Some(true) => Known::Nothing,
            None => Known::default(),
            Some(root) => match root.properties.as_ref().and_then(|properties| properties.get("status")) {
                Some(status) => Known::Schema(Some(Box::new(status.clone()))),
                None if keeps_unknown(root) => Known::Nothing,
                None => Known::Schema(None),
            },
        };
        Self { known, is_reported: false }
    }

    /// What the API server keeps of it.
    pub(super) fn kept(&self, mut status: Value) -> Value {
        match &self.known {
            Known::Schema(Some(schema)) => prune(&mut status, schema),
            Known::Schema(None) => status = Value::Object(Map::new()),
            Known::Nothing => {}
            Known::Learnt(lost) => lost.iter().for_each(|path| remove(&mut status, path)),
        }
        status
    }

    /// What it has made of a status that was written.
    pub(super) fn wrote(&mut self, sent: &Value, stored: &Value) {
        if let Known::Learnt(lost) = &mut self.known {
            let mut present = BTreeSet::new();
            paths(stored, &mut Vec::new(), &mut present);
            lost.retain(|path| !present.contains(path));
            missing(sent, stored, &mut Vec::new(), lost);
        }
    }

    /// The fields of this status that are dropped, by name, the first time that there are any.
    pub(super) fn newly_dropped(&mut self, sent: &Value) -> Option<String> {
        if self.is_reported {
            return None;
        }
        let mut lost = BTreeSet::new();
        missing(sent, &self.kept(sent.clone()), &mut Vec::new(), &mut lost);
        if lost.is_empty() {
            return None;
        }
        self.is_reported = true;
        let shown = |path: &Path| {
            path.iter().fold("status".to_owned(), |all, name| match name.as_str() {
                "" => format!("{all}[]"),
                name => format!("{all}.{name}"),
            })
        };
        let named: Vec<_> = lost.iter().take(NAMED).map(shown).collect();
        let more = if lost.len() > NAMED { format!(" and {} more", lost.len() - NAMED) } else { String::new() };
        Some(format!("{}{more}", named.join(", ")))
    }
}

/// Whether the schema lets pass what it does not name.
fn keeps_unknown(schema: &JSONSchemaProps) -> bool {
    schema.x_kubernetes_preserve_unknown_fields == Some(true)
}

/// Takes out what a structural schema does not name, as the API server does.
fn prune(value: &mut Value, schema: &JSONSchemaProps) {
    match value {
        Value::Object(fields) => {
            let keeps = keeps_unknown(schema);
            let is_embedded = schema.x_kubernetes_embedded_resource == Some(true);
            let properties = schema.properties.as_ref();
            let anything = JSONSchemaProps::default();
            let others = match &schema.additional_properties {
                Some(JSONSchemaPropsOrBool::Schema(others)) => Some(&**others),
                // Of what is in them nothing is named.
                Some(JSONSchemaPropsOrBool::Bool(true)) => Some(&anything),
                _ => None,
            };
            fields.retain(|name, value| {
                match properties.and_then(|properties| properties.get(name)).or(others) {
                    Some(schema) => prune(value, schema),
                    None if is_embedded && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
                    None => return keeps,
                }
                true
            });
        }
        Value::Array(items) => {
            if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
                items.iter_mut().for_each(|item| prune(item, schema));
            }
        }
        _ => {}
    }
}

fn remove(value: &mut Value, path: &[String]) {
    match (path, value) {
        ([name, rest @ ..], Value::Array(items)) if name.is_empty() => {
            items.iter_mut().for_each(|item| remove(item, rest));
        }
        ([name], Value::Object(fields)) => _ = fields.remove(name),
        ([name, rest @ ..], Value::Object(fields)) => {
            if let Some(value) = fields.get_mut(name) {
                remove(value, rest);
            }
        }
        _ => {}
    }
}

/// The fields of `sent` that are not in `stored`. Another writer may have changed the length of a list.
fn missing(sent: &Value, stored: &Value, at: &mut Path, lost: &mut BTreeSet<Path>) {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(stored)) => {
            for (name, value) in sent {
                at.push(name.clone());
                match stored.get(name) {
                    Some(stored) => missing(value, stored, at, lost),
                    None => _ = lost.insert(at.clone()),
                }
                at.pop();
            }
        }
        (Value::Array(sent), Value::Array(stored)) if sent.len() == stored.len() => {
            at.push(String::new());
            sent.iter().zip(stored).for_each(|(sent, stored)| missing(sent, stored, at, lost));
            at.pop();
        }
        _ => {}
    }
}

/// The fields that are there.
fn paths(value: &Value, at: &mut Path, all: &mut BTreeSet<Path>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                at.push(name.clone());
                all.insert(at.clone());
                paths(value, at, all);
                at.pop();
            }
        }
        Value::Array(items) => {
            at.push(String::new());
            items.iter().for_each(|item| paths(item, at, all));
            at.pop();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crd(schema: Value) -> CustomResourceDefinition {
        serde_json::from_value(json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"kind": "Widget", "plural": "widgets"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        }))
        .unwrap()
    }

    fn sent() -> Value {
        json!({
            "observedGeneration": 3, "value": "x", "shard": {"lease": "l", "token": "t"},
            "conditions": [{"type": "Ready", "status": "True", "message": ""}], "map": {"a": {"b": 1, "c": 2}},
        })
    }

    #[test]
    fn what_the_schema_does_not_name_is_dropped() {
        let status = json!({"type": "object", "properties": {"observedGeneration": {"type": "integer"}, "value": {"type": "string"}}});
        let all = json!({"type": "object", "properties": {"status": status}});
        for (schema, expected) in [
            (all, json!({"observedGeneration": 3, "value": "x"})),
            (json!({"type": "object"}), json!({})),
            (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), sent()),
            (
                json!({"type": "object", "properties": {"status": {"type": "object", "properties": {
                    "conditions": {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}}}},
                    "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {"type": "integer"}}}},
                    "shard": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}}}),
                json!({"conditions": [{"type": "Ready"}], "map": {"a": {"b": 1}}, "shard": {"lease": "l", "token": "t"}}),
            ),
        ] {
            assert_eq!(Pruning::by_crd(&crd(schema.clone()), "v1").kept(sent()), expected, "{schema}");
        }
    }

    #[test]
    fn what_our_own_write_has_lost_is_learnt_and_forgotten_when_it_comes_back() {
        let mut pruning = Pruning::default();
        assert_eq!(pruning.kept(sent()), sent());
        let stored =
            json!({"observedGeneration": 3, "value": "x", "conditions": [{"type": "Ready", "status": "True"}]});
        pruning.wrote(&sent(), &stored);
        assert_eq!(pruning.kept(sent()), stored);
        assert_eq!(pruning.newly_dropped(&sent()).unwrap(), "status.conditions[].message, status.map, status.shard");
        assert_eq!(pruning.newly_dropped(&sent()), None, "it is said once");
        pruning.wrote(&sent(), &sent());
        assert_eq!(pruning.kept(sent()), sent());
    }

    #[test]
    fn where_nothing_is_dropped_there_is_nothing_to_say() {
        let keeps = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(Pruning::by_crd(&crd(keeps), "v1").newly_dropped(&sent()), None);
        assert_eq!(Pruning::by_crd(&crd(json!({"type": "object"})), "v2").kept(sent()), sent(), "another version");
    }
}
