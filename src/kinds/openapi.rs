//! The schemas of types: of CRDs, and of the OpenAPI documents that an API server publishes at `/openapi/v3`. Pure.
//!
//! What is read is what structural schemas consist of:
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.
//! A schema that says nothing of something lets it be anything. Rules in CEL (`x-kubernetes-validations`) are the API
//! server's to judge.

use std::{collections::BTreeMap, sync::Arc};

use regex::Regex;
use serde_json::{Map, Value};

use crate::reconcile::children::Type;

/// How deep an object is gone into; the API server refuses deeper ones.
const DEEPEST: usize = 100;
/// How alike a name is to be that was perhaps meant, by Jaro and Winkler.
const ALIKE: f64 = 0.85;

/// Schemas by type.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    /// By group, version and kind.
    by_type: BTreeMap<(String, String, String), (Arc<Value>, Value)>,
}

/// The schema of a value.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'s> {
    /// What references point into.
    document: &'s Value,
    at: &'s Map<String, Value>,
}

/// What a schema says of a field.
#[derive(Clone, Debug)]
pub enum Field<'s> {
    /// It has this one.
    Known(Schema<'s>),
    /// It may be there, and be anything.
    Free,
    /// There is no such field; the one that was perhaps meant.
    Absent(Option<&'s str>),
}

/// Where something is wrong, and what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The field.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Schemas {
    /// Adds the types of a document: a CRD, or an OpenAPI document of version 3. Says how many there are.
    pub fn add(&mut self, document: Value) -> usize {
        let mut added = Vec::new();
        if document["kind"] == "CustomResourceDefinition" {
            let spec = &document["spec"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            for version in spec["versions"].as_array().into_iter().flatten() {
                if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
                    let of = (text(&spec["group"]), text(&version["name"]), text(&spec["names"]["kind"]));
                    added.push((of, object(schema)));
                }
            }
        }
        for schema in document.pointer("/components/schemas").and_then(Value::as_object).into_iter().flatten() {
            let kinds = schema.1["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
            for kind in kinds {
                let part = |name: &str| kind[name].as_str().unwrap_or_default().to_owned();
                added.push(((part("group"), part("version"), part("kind")), schema.1.clone()));
            }
        }
        let (count, document) = (added.len(), Arc::new(document));
        self.by_type.extend(added.into_iter().map(|(of, schema)| (of, (Arc::clone(&document), schema))));
        count
    }

    /// The schema of a type, if it is there.
    pub fn of(&self, of: &Type) -> Option<Schema<'_>> {
        self.get(&of.group, &of.version, &of.kind)
    }

    /// The schema of a kind in a version, if it is there.
    pub fn get(&self, group: &str, version: &str, kind: &str) -> Option<Schema<'_>> {
        let (document, schema) = self.by_type.get(&(group.to_owned(), version.to_owned(), kind.to_owned()))?;
        Schema::read(document, schema)
    }
}

/// What every object has, and a CRD need not say.
fn object(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for name in ["apiVersion", "kind"] {
            properties.insert(name.to_owned(), serde_json::json!({"type": "string"}));
        }
        // Kubernetes' own, whatever the CRD says of it.
        properties.insert("metadata".to_owned(), serde_json::json!({"type": "object"}));
    }
    schema
}

impl<'s> Schema<'s> {
    fn read(document: &'s Value, schema: &'s Value) -> Option<Self> {
        let mut at = schema.as_object()?;
        // A reference stands alone, or is the only part of an `allOf` beside a default or a description.
        for _ in 0..DEEPEST {
            let alone =
                at.get("allOf").and_then(Value::as_array).filter(|all| all.len() == 1).and_then(|all| all.first());
            let Some(reference) = alone.unwrap_or(&Value::Null).get("$ref").or_else(|| at.get("$ref")) else { break };
            at = document.pointer(reference.as_str()?.strip_prefix('#')?)?.as_object()?;
        }
        Some(Self { document, at })
    }

    fn part(&self, name: &str) -> Option<Self> {
        Self::read(self.document, self.at.get(name)?)
    }

    fn is(&self, name: &str) -> bool {
        self.at.get(name) == Some(&Value::Bool(true))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.at.get(name)?.as_f64()
    }

    /// What it says of the field of a mapping.
    pub fn field(&self, name: &str) -> Field<'s> {
        let properties = self.at.get("properties").and_then(Value::as_object);
        if let Some(schema) = properties.and_then(|all| all.get(name)) {
            return Self::read(self.document, schema).map_or(Field::Free, Field::Known);
        }
        if let Some(others) = self.part("additionalProperties") {
            return Field::Known(others);
        }
        let is_open = self.is("x-kubernetes-preserve-unknown-fields") || self.is("additionalProperties");
        match properties {
            Some(properties) if !is_open => {
                let alike = |known: &&String| strsim::jaro_winkler(&known.to_lowercase(), &name.to_lowercase());
                let scored = properties.keys().map(|known| (alike(&known), known));
                let best = scored.filter(|(score, _)| *score >= ALIKE).max_by(|one, other| one.0.total_cmp(&other.0));
                Field::Absent(best.map(|(_, known)| known.as_str()))
            }
            _ => Field::Free,
        }
    }

    /// The schema of the items of a list, if this is one.
    pub fn items(&self) -> Option<Self> {
        self.part("items")
    }

    /// The schema of what a mapping of names has.
    pub fn values(&self) -> Option<Self> {
        self.part("additionalProperties")
    }

    /// Whether a mapping has fields of its own, and so is no list and no text.
    pub fn has_fields(&self) -> bool {
        self.at.contains_key("properties")
    }

    /// Fields that must be there and that no default fills in.
    pub fn required(&self) -> impl Iterator<Item = &'s str> {
        let has_default =
            |name: &&str| matches!(self.field(name), Field::Known(field) if field.at.contains_key("default"));
        let all = self.at.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        all.filter(|name| !has_default(name)).collect::<Vec<_>>().into_iter()
    }

    /// Why a value of this sort cannot stand here, by the name of its type in OpenAPI.
    pub fn refuses(&self, found: &str) -> Option<String> {
        let wanted = self.at.get("type").and_then(Value::as_str)?;
        let fits = wanted == found
            || (wanted == "number" && found == "integer")
            || (found == "null" && self.is("nullable"))
            // Kubernetes publishes its IntOrString and Quantity as texts.
            || (wanted == "string"
                && matches!(found, "integer" | "number")
                && (self.is("x-kubernetes-int-or-string") || self.at.get("format") == Some(&"int-or-string".into())
                    || self.at.get("oneOf").is_some()));
        (!fits).then(|| format!("expected {}, found {}", described(wanted), described(found)))
    }

    /// Everything that is wrong with a value.
    pub fn mistakes(&self, value: &Value, path: &str) -> Vec<Mistake> {
        let mut found = Vec::new();
        self.hold(value, path, DEEPEST, &mut found);
        found
    }

    fn hold(&self, value: &Value, path: &str, depth: usize, found: &mut Vec<Mistake>) {
        let mut wrong = |path: &str, message: String| found.push(Mistake { path: path.to_owned(), message });
        if depth == 0 {
            return wrong(path, "the object is too deep".to_owned());
        }
        if let Some(message) = self.refuses(sort(value)) {
            return wrong(path, message);
        }
        if let Some(all) = self.at.get("enum").and_then(Value::as_array)
            && !all.contains(value)
        {
            let words: Vec<_> =
                all.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
            wrong(path, format!("expected one of {}", words.join(", ")));
        }
        match value {
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or_default();
                if let Some(least) = self.number("minimum").filter(|least| number < *least) {
                    wrong(path, format!("{number} is too small; the least is {least}"));
                }
                if let Some(most) = self.number("maximum").filter(|most| number > *most) {
                    wrong(path, format!("{number} is too large; the most is {most}"));
                }
            }
            Value::String(text) => {
                self.length(text.chars().count(), ("minLength", "maxLength"), "characters", path, &mut wrong);
                if let Some(pattern) = self.at.get("pattern").and_then(Value::as_str)
                    && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
                {
                    wrong(path, format!("the text does not match {pattern}"));
                }
            }
            Value::Array(items) => {
                self.length(items.len(), ("minItems", "maxItems"), "items", path, &mut wrong);
                if let Some(schema) = self.items() {
                    for (number, item) in items.iter().enumerate() {
                        schema.hold(item, &format!("{path}[{number}]"), depth - 1, found);
                    }
                }
            }
            Value::Object(fields) => {
                self.length(fields.len(), ("minProperties", "maxProperties"), "fields", path, &mut wrong);
                for name in self.required().filter(|name| !fields.contains_key(*name)) {
                    wrong(&below(path, name), "missing".to_owned());
                }
                for (name, value) in fields {
                    match self.field(name) {
                        Field::Known(schema) => schema.hold(value, &below(path, name), depth - 1, found),
                        Field::Free => {}
                        Field::Absent(meant) => found.push(Mistake { path: below(path, name), message: absent(meant) }),
                    }
                }
            }
            _ => {}
        }
    }

    fn length(
        &self,
        length: usize,
        (least, most): (&str, &str),
        of: &str,
        path: &str,
        wrong: &mut dyn FnMut(&str, String),
    ) {
        let bound =
            |name: &str| self.at.get(name).and_then(Value::as_u64).and_then(|bound| usize::try_from(bound).ok());
        if let Some(least) = bound(least).filter(|least| length < *least) {
            wrong(path, format!("{length} {of}; the least is {least}"));
        }
        if let Some(most) = bound(most).filter(|most| length > *most) {
            wrong(path, format!("{length} {of}; the most is {most}"));
        }
    }
}

/// That there is no such field.
pub(crate) fn absent(meant: Option<&str>) -> String {
    let help = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    format!("the schema has no such field{help}")
}

/// A field of what is at `path`.
pub(crate) fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn described(sort: &str) -> &str {
    match sort {
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schemas() -> Schemas {
        let mut schemas = Schemas::default();
        let crd = json!({"kind": "CustomResourceDefinition", "spec": {
            "group": "example.com", "names": {"kind": "Widget"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
                "type": "object", "required": ["size", "mode"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 9},
                    "mode": {"enum": ["Fast", "Slow"], "default": "Fast"},
                    "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "name": {"type": "string", "maxLength": 3, "pattern": "^[a-z]+$"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "boolean"}}},
                    "parts": {"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}},
                    "none": {"type": "string", "nullable": true},
                },
            }}}}}],
        }});
        assert_eq!(schemas.add(crd), 1);
        schemas
    }

    #[test]
    fn an_object_is_held_to_its_schema_at_every_depth() {
        let schemas = schemas();
        let schema = schemas.get("example.com", "v1", "Widget").unwrap();
        let of = |spec: Value| {
            let object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x", "labels": {}}, "spec": spec});
            let all = schema.mistakes(&object, "");
            all.into_iter().map(|it| format!("{}: {}", it.path, it.message)).collect::<Vec<_>>()
        };
        let good = json!({
            "size": 3, "mode": "Slow", "port": "http", "name": "abc", "labels": {"a": "b"}, "any": {"x": true, "y": [1]},
            "parts": [{"id": "a"}], "none": null,
        });
        assert_eq!(of(good), [""; 0]);
        assert_eq!(of(json!({"size": 3, "port": 80})), [""; 0]);
        for (spec, expected) in [
            (json!({}), "spec.size: missing"),
            (json!({"size": "two"}), "spec.size: expected a whole number, found text"),
            (json!({"size": 2.5}), "spec.size: expected a whole number, found a number"),
            (json!({"size": 0}), "spec.size: 0 is too small; the least is 1"),
            (json!({"size": 10}), "spec.size: 10 is too large; the most is 9"),
            (json!({"size": 1, "mode": "fast"}), "spec.mode: expected one of Fast, Slow"),
            (json!({"size": 1, "nmae": "x"}), "spec.nmae: the schema has no such field; did you mean `name`?"),
            (json!({"size": 1, "zzz": "x"}), "spec.zzz: the schema has no such field"),
            (json!({"size": 1, "name": "abcd"}), "spec.name: 4 characters; the most is 3"),
            (json!({"size": 1, "name": "A"}), "spec.name: the text does not match ^[a-z]+$"),
            (json!({"size": 1, "labels": {"a": 1}}), "spec.labels.a: expected text, found a whole number"),
            (json!({"size": 1, "any": {"x": 1}}), "spec.any.x: expected true or false, found a whole number"),
            (json!({"size": 1, "parts": {}}), "spec.parts: expected a list, found a mapping"),
            (json!({"size": 1, "parts": [{"id": "a"}, {}]}), "spec.parts[1].id: missing"),
            (
                json!({"size": 1, "parts": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}),
                "spec.parts: 3 items; the most is 2",
            ),
        ] {
            assert_eq!(of(spec.clone()), [expected], "{spec}");
        }
    }

    #[test]
    fn references_of_an_api_server_are_followed_and_a_circle_ends() {
        let mut schemas = Schemas::default();
        let document = json!({"components": {"schemas": {
            "Deployment": {
                "type": "object", "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
                "properties": {"spec": {"allOf": [{"$ref": "#/components/schemas/Spec"}], "default": {}}},
            },
            "Spec": {"type": "object", "properties": {
                "replicas": {"type": "integer"}, "limit": {"$ref": "#/components/schemas/Quantity"},
                "inner": {"$ref": "#/components/schemas/Spec"}, "round": {"$ref": "#/components/schemas/Round"},
            }},
            "Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            "Round": {"$ref": "#/components/schemas/Round"},
        }}});
        assert_eq!(schemas.add(document), 1);
        let schema = schemas.of(&Type::new("apps", "v1", "Deployment")).unwrap();
        let object = json!({"spec": {"limit": 1, "inner": {"inner": {"replica": 1}}, "round": {"x": 1}}});
        let all = schema.mistakes(&object, "");
        let said: Vec<_> = all.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(said, ["spec.inner.inner.replica"]);
    }
}
