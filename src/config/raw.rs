//! YAML text in, a tree of values out, each with the line and column it stands at.
//!
//! The tree knows nothing of the configuration's fields. It exists because deserialising straight into structs stops
//! at the first unknown field or wrong type, and a reader of the file wants all of them at once.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_yaml::{DuplicateKeyPolicy, MergeKeyPolicy, MessageFormatter, Spanned, UserMessageFormatter};

/// A place in the file; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl Position {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_yaml::Location> for Position {
    fn from(location: serde_yaml::Location) -> Self {
        // Zero is the parser's word for an unknown place, such as that of an empty file.
        Self { line: location.line().max(1), column: location.column().max(1) }
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, duplicate keys included.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) name: String,
}

impl Node {
    /// What a person would call this value, for "expected a number, found …".
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Integer(i) => format!("the number {i}"),
            Value::Float(f) => format!("the number {f}"),
            Value::Text(text) => format!("the text {text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Why there is no tree. A file that is no YAML has one such error: what follows it means nothing.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) at: Position,
    pub(crate) message: String,
}

/// Deep enough for any file of ours, and no stack is exhausted by a hostile one.
const MAX_DEPTH: usize = 32;

pub(crate) fn parse(text: &str) -> Result<Node, Unreadable> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! { max_depth: MAX_DEPTH },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let root: Spanned<Value> = serde_yaml::from_str_with_options(text, options).map_err(|error| unreadable(&error))?;
    let root = Node::from(root);
    match root.value {
        Value::Map(_) => Ok(root),
        Value::Null => Err(Unreadable { at: root.at, message: EMPTY.to_owned() }),
        _ => {
            Err(Unreadable { at: root.at, message: format!("expected a mapping of fields, found {}", root.describe()) })
        }
    }
}

const EMPTY: &str = "the file is empty; start from config/leasehold.yaml";

fn unreadable(error: &serde_yaml::Error) -> Unreadable {
    let error = error.without_snippet();
    let at = error.location().map_or(Position::START, Position::from);
    let message = match error {
        serde_yaml::Error::MultipleDocuments { .. } => {
            "a second document starts here; a configuration is one document: remove the `---` and what follows"
                .to_owned()
        }
        serde_yaml::Error::Eof { .. } => EMPTY.to_owned(),
        other => {
            let message = UserMessageFormatter.format_message(other);
            format!("not readable as YAML: {}", message.split_whitespace().collect::<Vec<_>>().join(" "))
        }
    };
    Unreadable { at, message }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { at: spanned.referenced.into(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Integer(v))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        // No field comes near either bound, so a saturated number is refused as the real one would be.
        Ok(Value::Integer(i128::try_from(v).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Value>>()? {
            let name = match key.value {
                Value::Text(name) => name,
                Value::Bool(name) => name.to_string(),
                Value::Integer(name) => name.to_string(),
                Value::Float(name) => name.to_string(),
                Value::Null => "null".to_owned(),
                Value::List(_) | Value::Map(_) => {
                    return Err(de::Error::custom("a key of a mapping must be plain text"));
                }
            };
            let value = map.next_value::<Spanned<Value>>()?;
            entries.push((Key { at: key.referenced.into(), name }, value.into()));
        }
        Ok(Value::Map(entries))
    }
}
