//! An object as the API server sends it: its metadata is read, and the rest is text.
//!
//! The API server takes objects of ten thousand lists and mappings in one another, where a schema lets it, and `serde_json`
//! reads 127. An event that cannot be read ends a watch, and so would one such object keep all others of its type from us. Text
//! can be as deep as it likes.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::{Resource, core::ApiResource};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
    ser::{Error as _, SerializeMap},
};
use serde_json::value::{RawValue, to_raw_value};

/// The deepest object that is looked into, in lists and mappings in one another.
pub(in crate::reconcile) const DEEPEST: usize = 100;

const METADATA: &str = "metadata";
const STATUS: &str = "status";
const MANAGED_FIELDS: &str = "managedFields";

type Fields = BTreeMap<String, Box<RawValue>>;

/// An object whose metadata is known, and its status if it is one of a type.
#[derive(Clone, Debug)]
pub(in crate::reconcile) struct Raw<S = Box<RawValue>> {
    pub(in crate::reconcile) metadata: ObjectMeta,
    pub(in crate::reconcile) status: Option<S>,
    /// The other fields, as an object of JSON.
    pub(in crate::reconcile) rest: Box<str>,
}

impl<'de, S: DeserializeOwned> Deserialize<'de> for Raw<S> {
    /// From JSON as it is received, or from a tree of it. An event of a watch has to say what it is before it says of what, as the
    /// API server does, or its object is buffered in a form that has no text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Fields::deserialize(deserializer)?;
        let metadata = fields.remove(METADATA).map(|metadata| metadata_of(&metadata)).transpose();
        // One that another writer has given another shape is as good as none: it is written anew.
        let status = fields.remove(STATUS).and_then(|status| serde_json::from_str(status.get()).ok());
        let rest = serde_json::to_string(&fields).map_err(D::Error::custom)?.into_boxed_str();
        Ok(Self { metadata: metadata.map_err(D::Error::custom)?.unwrap_or_default(), status, rest })
    }
}

impl<S: Serialize> Serialize for Raw<S> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let rest: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(&self.rest).map_err(Z::Error::custom)?;
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry(METADATA, &self.metadata)?;
        if let Some(status) = &self.status {
            fields.serialize_entry(STATUS, status)?;
        }
        for (name, value) in &rest {
            fields.serialize_entry(name, value)?;
        }
        fields.end()
    }
}

/// The metadata without the entries of managers of fields too deep to be read: those repeat how deep the object is.
fn metadata_of(text: &RawValue) -> serde_json::Result<ObjectMeta> {
    let read = serde_json::from_str(text.get());
    read.or_else(|error| without_deep_entries(text).ok_or(error))
}

fn without_deep_entries(text: &RawValue) -> Option<ObjectMeta> {
    let mut fields: Fields = serde_json::from_str(text.get()).ok()?;
    let entries: Vec<&RawValue> = serde_json::from_str(fields.get(MANAGED_FIELDS)?.get()).ok()?;
    let shallow = entries.into_iter().filter_map(|entry| serde_json::from_str(entry.get()).ok());
    let shallow = to_raw_value(&shallow.collect::<Vec<ManagedFieldsEntry>>()).ok()?;
    fields.insert(MANAGED_FIELDS.to_owned(), shallow);
    serde_json::from_str(&serde_json::to_string(&fields).ok()?).ok()
}

/// Whether JSON is deeper than [`DEEPEST`].
pub(in crate::reconcile) fn is_deep(json: &[u8]) -> bool {
    let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => depth += 1,
            b'}' | b']' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return true;
        }
    }
    false
}

impl<S> Resource for Raw<S> {
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
pub(in crate::reconcile) mod tests {
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::{Value, json};

    use super::*;

    /// As the API server sends an object whose field `spec` is so deep.
    pub(in crate::reconcile) fn deep(levels: usize) -> String {
        let nested = |name: &str| format!("{}1{}", format!(r#"{{"{name}":"#).repeat(levels), "}".repeat(levels));
        format!(
            r#"{{"apiVersion":"example.com/v1","kind":"Widget","metadata":{{"name":"w","uid":"u","managedFields":[
                {{"manager":"other","fieldsV1":{}}},{{"manager":"leasehold/Widget","fieldsV1":{{"f:status":{{}}}}}}
            ]}},"spec":{}}}"#,
            nested("f:a"),
            nested("a")
        )
    }

    #[test]
    fn it_is_the_same_from_a_list_a_watch_and_an_answer_and_as_text() {
        let object = json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "uid": "u"},
            "spec": {"size": 3, "say \"it\"": "a\nb \u{1F980}", "list": [1.0, 1e300, null, {}]}, "data\n": {"a": "b"},
        });
        let text = serde_json::to_string_pretty(&object).unwrap();
        let list = format!(r#"{{"kind":"WidgetList","apiVersion":"example.com/v1","metadata":{{}},"items":[{text}]}}"#);
        let list: ObjectList<Raw> = serde_json::from_str(&list).unwrap();
        let event = format!(r#"{{"type":"MODIFIED","object":{text}}}"#);
        let WatchEvent::Modified(watched) = serde_json::from_str::<WatchEvent<Raw>>(&event).unwrap() else {
            panic!("of another type")
        };
        for raw in [list.items[0].clone(), watched, serde_json::from_value(object.clone()).unwrap()] {
            assert_eq!(serde_json::to_value(&raw).unwrap(), object);
            assert_eq!(serde_json::from_str::<Value>(&serde_json::to_string(&raw).unwrap()).unwrap(), object);
        }
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["[]", "3", "null", r#"{"metadata": 3}"#, r#"{"spec": {]}"#, r#"{"spec": {}"#] {
            assert!(serde_json::from_str::<Raw>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn however_deep_an_object_is_its_event_is_read_and_what_it_says_is_kept() {
        for levels in [1, 90, 120, 127, 128, 5000] {
            let event = format!(r#"{{"type":"ADDED","object":{}}}"#, deep(levels));
            let event: WatchEvent<Raw> = serde_json::from_str(&event).unwrap();
            let WatchEvent::Added(raw) = event else { panic!("of another type") };
            let managers = raw.metadata.managed_fields.as_deref().unwrap_or_default();
            let managers: Vec<_> = managers.iter().filter_map(|entry| entry.manager.as_deref()).collect();
            assert!(managers.ends_with(&["leasehold/Widget"]), "{levels}: {managers:?}");
            assert_eq!((raw.metadata.name.as_deref(), raw.metadata.uid.as_deref()), (Some("w"), Some("u")));
            let written = serde_json::to_string(&raw).unwrap();
            assert_eq!(written.matches(r#"{"a":"#).count(), levels);
            assert_eq!(is_deep(written.as_bytes()), levels >= DEEPEST, "{levels}");
        }
    }

    #[test]
    fn brackets_in_texts_are_no_depth() {
        let text = format!(r#"{{"a\"{0}": "{0}\\", "b": [{{}}, []]}}"#, "[{".repeat(DEEPEST));
        assert!(!is_deep(text.as_bytes()) && is_deep("[".repeat(DEEPEST + 1).as_bytes()));
    }
}
