//! The values of expressions. Pure.
//!
//! A list or a mapping is shared and never changed, and knows how large it is when everything in it is written out: what
//! shares its parts may be far larger than the memory that it takes, and is paid for by that size before it is gone through.
//! Mappings are in the order of their keys, so that nothing depends on the order of a hash.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use kube_cel::cel::{
    Value as Foreign,
    objects::{Key as ForeignKey, Map as ForeignMap},
};
use serde_json::{Number, Value as Json};

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<List>),
    Map(Arc<Map>),
    /// What only the library knows: a quantity, a time, an address, an optional value.
    Foreign(Foreign),
}

#[derive(Debug)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
    size: u64,
}

#[derive(Debug)]
pub(super) struct Map {
    pub(super) fields: BTreeMap<Key, Value>,
    size: u64,
}

/// The key of a mapping. Numbers are the same key whatever their sign is kept in.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// What each value takes besides its text.
const OVERHEAD: u64 = 16;
/// What an entry of a mapping takes besides its value.
const ENTRY: u64 = 48;

impl Value {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(text.into())
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        let size = items.iter().map(Self::size).fold(OVERHEAD, u64::saturating_add);
        Self::List(Arc::new(List { items, size }))
    }

    pub(super) fn map(fields: BTreeMap<Key, Self>) -> Self {
        let entry = |(key, value): (&Key, &Self)| ENTRY.saturating_add(key.size()).saturating_add(value.size());
        let size = fields.iter().map(entry).fold(OVERHEAD, u64::saturating_add);
        Self::Map(Arc::new(Map { fields, size }))
    }

    /// About how many bytes it takes when it is written out. It is known, and nothing is gone through.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::String(text) => OVERHEAD + text.len() as u64,
            Self::Bytes(bytes) => OVERHEAD + bytes.len() as u64,
            Self::List(list) => list.size,
            Self::Map(map) => map.size,
            _ => OVERHEAD,
        }
    }

    /// The name of its type, as messages give it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Foreign(Foreign::Duration(_)) => "duration",
            Self::Foreign(Foreign::Timestamp(_)) => "timestamp",
            Self::Foreign(_) => "opaque",
        }
    }

    /// All integers become `int`, whatever their sign: `uint` and `int` do not add up.
    pub(super) fn from_json(value: &Json) -> Self {
        match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::text(text.as_str()),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            Json::Object(fields) => {
                let entry = |(key, value): (&String, &Json)| (Key::String(key.as_str().into()), Self::from_json(value));
                Self::map(fields.iter().map(entry).collect())
            }
        }
    }

    /// As it stands in an object. Whole numbers stay whole.
    pub(super) fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(number) => Json::Number((*number).into()),
            Self::Uint(number) => Json::Number((*number).into()),
            Self::Double(number) => Number::from_f64(*number).map(Json::Number).ok_or("is no finite number")?,
            Self::String(text) => Json::String(text.as_ref().to_owned()),
            Self::List(list) => Json::Array(list.items.iter().map(Self::to_json).collect::<Result<_, _>>()?),
            Self::Map(map) => {
                let mut fields = serde_json::Map::new();
                for (key, value) in &map.fields {
                    let Key::String(key) = key else { return Err("a mapping has a key that is no text".to_owned()) };
                    fields.insert(key.as_ref().to_owned(), value.to_json()?);
                }
                Json::Object(fields)
            }
            Self::Bytes(_) | Self::Foreign(_) => {
                return Err(format!("{} is nothing that an object can hold", self.type_name()));
            }
        })
    }

    /// As the library has it.
    pub(super) fn to_foreign(&self) -> Foreign {
        match self {
            Self::Null => Foreign::Null,
            Self::Bool(value) => Foreign::Bool(*value),
            Self::Int(number) => Foreign::Int(*number),
            Self::Uint(number) => Foreign::UInt(*number),
            Self::Double(number) => Foreign::Float(*number),
            Self::String(text) => Foreign::String(Arc::new(text.as_ref().to_owned())),
            Self::Bytes(bytes) => Foreign::Bytes(Arc::new(bytes.to_vec())),
            Self::List(list) => Foreign::List(Arc::new(list.items.iter().map(Self::to_foreign).collect())),
            Self::Map(map) => {
                let entry = |(key, value): (&Key, &Self)| (key.to_foreign(), value.to_foreign());
                Foreign::Map(ForeignMap { map: Arc::new(map.fields.iter().map(entry).collect()) })
            }
            Self::Foreign(value) => value.clone(),
        }
    }

    /// From what the library has made.
    pub(super) fn from_foreign(value: Foreign) -> Self {
        match value {
            Foreign::Null => Self::Null,
            Foreign::Bool(value) => Self::Bool(value),
            Foreign::Int(number) => Self::Int(number),
            Foreign::UInt(number) => Self::Uint(number),
            Foreign::Float(number) => Self::Double(number),
            Foreign::String(text) => Self::text(text.as_str()),
            Foreign::Bytes(bytes) => Self::Bytes(bytes.as_slice().into()),
            Foreign::List(items) => Self::list(items.iter().cloned().map(Self::from_foreign).collect()),
            Foreign::Map(map) => {
                let entry =
                    |(key, value): (&ForeignKey, &Foreign)| (Key::from_foreign(key), Self::from_foreign(value.clone()));
                Self::map(map.map.iter().map(entry).collect())
            }
            other => Self::Foreign(other),
        }
    }

    fn is_nan(&self) -> bool {
        matches!(self, Self::Double(number) if number.is_nan())
    }

    /// Whether it is, or holds, what only the library can compare.
    pub(super) fn holds_foreign(&self) -> bool {
        match self {
            Self::Foreign(_) => true,
            Self::List(list) => list.items.iter().any(Self::holds_foreign),
            Self::Map(map) => map.fields.values().any(Self::holds_foreign),
            _ => false,
        }
    }

    /// An order of all values that agrees with equality, for sets; only of those that hold nothing foreign.
    /// Values of several types are in the order of their types.
    pub(super) fn total_order(&self, other: &Self) -> Ordering {
        let rank = |value: &Self| match value {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Uint(_) | Self::Double(_) => 2,
            Self::String(_) => 3,
            Self::Bytes(_) => 4,
            Self::List(_) => 5,
            Self::Map(_) => 6,
            Self::Foreign(_) => 7,
        };
        match (self, other) {
            (Self::List(a), Self::List(b)) => {
                let mut pairs = a.items.iter().zip(&b.items).map(|(a, b)| a.total_order(b));
                let first = pairs.find(|order| order.is_ne());
                first.unwrap_or_else(|| a.items.len().cmp(&b.items.len()))
            }
            (Self::Map(a), Self::Map(b)) => {
                let pair =
                    |((ka, va), (kb, vb)): ((&Key, &Self), (&Key, &Self))| ka.cmp(kb).then_with(|| va.total_order(vb));
                let first = a.fields.iter().zip(&b.fields).map(pair).find(|order| order.is_ne());
                first.unwrap_or_else(|| a.fields.len().cmp(&b.fields.len()))
            }
            (a, b) if a.is_nan() || b.is_nan() => a.is_nan().cmp(&b.is_nan()).then_with(|| rank(a).cmp(&rank(b))),
            (a, b) => a.compare(b).unwrap_or_else(|| rank(a).cmp(&rank(b))),
        }
    }

    /// Which comes first, of values that have an order.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Null, Self::Null) => Some(Ordering::Equal),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Int(a), Self::Double(b)) => whole_and_double(i128::from(*a), *b),
            (Self::Uint(a), Self::Double(b)) => whole_and_double(i128::from(*a), *b),
            (Self::Double(a), Self::Int(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
            (Self::Double(a), Self::Uint(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
            (Self::Foreign(a), Self::Foreign(b)) => a.partial_cmp(b),
            _ => None,
        }
    }
}

/// Exactly: a double has not the digits of every integer.
fn whole_and_double(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // All integers lie far within, and a double so large has no fraction.
    #[expect(clippy::cast_possible_truncation, reason = "the bounds are checked, and the fraction is looked at after")]
    if double.abs() < 2_f64.powi(100) {
        let floor = double.floor();
        let order = whole.cmp(&(floor as i128));
        return Some(if order.is_eq() && double > floor { Ordering::Less } else { order });
    }
    Some(if double > 0.0 { Ordering::Less } else { Ordering::Greater })
}

impl PartialEq for Value {
    /// Values of types that do not compare are different.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => a.items == b.items,
            (Self::Map(a), Self::Map(b)) => a.fields == b.fields,
            (Self::Foreign(a), Self::Foreign(b)) => a == b,
            (a, b) => a.compare(b) == Some(Ordering::Equal),
        }
    }
}

impl Key {
    fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.len() as u64,
            _ => 0,
        }
    }

    /// The key that a value is, if it can be one. A double that is whole is the key of that number.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Int(number) => Some(Self::Int(*number)),
            Value::Uint(number) => Some(Self::Uint(*number)),
            Value::String(text) => Some(Self::String(Arc::clone(text))),
            #[expect(clippy::cast_possible_truncation, reason = "the bounds are checked")]
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 9e18 => Some(Self::Int(*number as i64)),
            _ => None,
        }
    }

    pub(super) fn value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::String(text) => Value::String(Arc::clone(text)),
        }
    }

    fn to_foreign(&self) -> ForeignKey {
        match self {
            Self::Bool(value) => ForeignKey::Bool(*value),
            Self::Int(number) => ForeignKey::Int(*number),
            Self::Uint(number) => ForeignKey::Uint(*number),
            Self::String(text) => ForeignKey::String(Arc::new(text.as_ref().to_owned())),
        }
    }

    fn from_foreign(key: &ForeignKey) -> Self {
        match key {
            ForeignKey::Bool(value) => Self::Bool(*value),
            ForeignKey::Int(number) => Self::Int(*number),
            ForeignKey::Uint(number) => Self::Uint(*number),
            ForeignKey::String(text) => Self::String(text.as_str().into()),
        }
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(i128::from(*number)),
            Self::Uint(number) => Some(i128::from(*number)),
            _ => None,
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |key: &Self| match key {
            Self::Bool(_) => 0,
            Self::Int(_) | Self::Uint(_) => 1,
            Self::String(_) => 2,
        };
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) => a.cmp(b),
            (a, b) => match (a.whole(), b.whole()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => rank(a).cmp(&rank(b)),
            },
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}
