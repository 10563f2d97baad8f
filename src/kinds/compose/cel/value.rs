//! The values of expressions. Pure.
//!
//! A list or a mapping is shared and never changed, and knows how large it is when everything in it is written out: what
//! shares its parts may be far larger than the memory that it takes, and is paid for by that size before it is gone through.
//! Mappings are in the order of their keys, so that nothing depends on the order of a hash.

use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::{Number, Value as Json};

use super::functions::{quantity::Quantity, semver::Version, time::Time, url::Url};

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
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Time),
    /// A type, by its name.
    Type(&'static str),
    Optional(Option<Arc<Self>>),
    Quantity(Arc<Quantity>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Arc<Url>),
    Semver(Arc<Version>),
    /// A named format, which texts are held to.
    Format(&'static str),
}

#[derive(Debug)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
    size: u64,
    depth: usize,
    is_plain: bool,
}

#[derive(Debug)]
pub(super) struct Map {
    pub(super) fields: BTreeMap<Key, Value>,
    size: u64,
    depth: usize,
    is_plain: bool,
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
        let depth = 1 + items.iter().map(Self::depth).max().unwrap_or(0);
        let is_plain = items.iter().all(Self::is_plain);
        Self::List(Arc::new(List { items, size, depth, is_plain }))
    }

    pub(super) fn map(fields: BTreeMap<Key, Self>) -> Self {
        let entry = |(key, value): (&Key, &Self)| ENTRY.saturating_add(key.size()).saturating_add(value.size());
        let size = fields.iter().map(entry).fold(OVERHEAD, u64::saturating_add);
        let depth = 1 + fields.values().map(Self::depth).max().unwrap_or(0);
        let is_plain = fields.values().all(Self::is_plain);
        Self::Map(Arc::new(Map { fields, size, depth, is_plain }))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// About how many bytes it takes when it is written out. It is known, and nothing is gone through.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::String(text) => OVERHEAD + text.len() as u64,
            Self::Bytes(bytes) => OVERHEAD + bytes.len() as u64,
            Self::List(list) => list.size,
            Self::Map(map) => map.size,
            Self::Optional(Some(value)) => OVERHEAD.saturating_add(value.size()),
            Self::Quantity(quantity) => OVERHEAD + quantity.size(),
            Self::Url(url) => OVERHEAD + url.size(),
            Self::Semver(version) => OVERHEAD + version.size(),
            _ => OVERHEAD,
        }
    }

    /// How many lists, mappings and optional values are in one another.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(list) => list.depth,
            Self::Map(map) => map.depth,
            Self::Optional(Some(value)) => 1 + value.depth(),
            _ => 0,
        }
    }

    /// Whether [`Self::total_order`] agrees with [`Self::equal`] for it and for all that it holds.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Uint(_) | Self::String(_) | Self::Bytes(_) => true,
            // No number equals nothing, and a large one several integers.
            Self::Double(number) => number.abs() < 2_f64.powi(53),
            Self::List(list) => list.is_plain,
            Self::Map(map) => map.is_plain,
            _ => false,
        }
    }

    /// The name of its type, as the language has it.
    pub(super) fn type_of(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// The name of its type, as messages give it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Duration(_) => "duration",
            Self::Timestamp(_) => "timestamp",
            Self::Optional(_) => "optional",
            Self::Quantity(_) => "quantity",
            Self::Ip(_) => "ip",
            Self::Cidr(..) => "cidr",
            Self::Url(_) => "url",
            Self::Semver(_) => "semver",
            Self::Format(_) => "format",
            other => other.type_of(),
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
            Self::Optional(_) => {
                return Err("an optional value is nothing that an object can hold: end it with orValue(…)".to_owned());
            }
            Self::Duration(_) | Self::Timestamp(_) | Self::Ip(_) | Self::Cidr(..) => {
                let name = self.type_name();
                return Err(format!("{name} is nothing that an object can hold: make it text with string(…)"));
            }
            _ => return Err(format!("{} is nothing that an object can hold", self.type_name())),
        })
    }

    /// An order of all values that agrees with equality, for sets; only of those that are plain.
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
            _ => 7,
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
            (a, b) => a.compare(b).unwrap_or_else(|| rank(a).cmp(&rank(b))),
        }
    }

    /// Which comes first, of values that have an order.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Int(a), Self::Double(b)) => whole_and_double(i128::from(*a), INT.0, INT.1, *b),
            (Self::Uint(a), Self::Double(b)) => whole_and_double(i128::from(*a), UINT.0, UINT.1, *b),
            (Self::Double(a), Self::Int(b)) => {
                whole_and_double(i128::from(*b), INT.0, INT.1, *a).map(Ordering::reverse)
            }
            (Self::Double(a), Self::Uint(b)) => {
                whole_and_double(i128::from(*b), UINT.0, UINT.1, *a).map(Ordering::reverse)
            }
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// Whether they are equal. Values of several types are not; `None` where Kubernetes has no answer: what only it knows
    /// equals nothing of another type.
    pub(super) fn equal(&self, other: &Self) -> Option<bool> {
        Some(match (self, other) {
            (Self::Null, other) | (other, Self::Null) => matches!(other, Self::Null),
            (Self::List(a), Self::List(b)) => {
                if a.items.len() != b.items.len() {
                    return Some(false);
                }
                return all_equal(a.items.iter().zip(&b.items).map(|(a, b)| a.equal(b)));
            }
            (Self::Map(a), Self::Map(b)) => {
                if a.fields.len() != b.fields.len() || !a.fields.keys().eq(b.fields.keys()) {
                    return Some(false);
                }
                return all_equal(a.fields.values().zip(b.fields.values()).map(|(a, b)| a.equal(b)));
            }
            (Self::Type(a), Self::Type(b)) | (Self::Format(a), Self::Format(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => return a.equal(b),
                (a, b) => a.is_none() == b.is_none(),
            },
            (Self::Quantity(a), Self::Quantity(b)) => a.compare(b).is_eq(),
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a, x), Self::Cidr(b, y)) => a == b && x == y,
            (Self::Url(a), Self::Url(b)) => a.text() == b.text(),
            (Self::Semver(a), Self::Semver(b)) => a.compare(b).is_eq(),
            (
                Self::Quantity(_) | Self::Ip(_) | Self::Cidr(..) | Self::Url(_) | Self::Semver(_) | Self::Format(_),
                _,
            ) => {
                return None;
            }
            (a, b) => a.compare(b) == Some(Ordering::Equal),
        })
    }
}

/// What decides is that two differ.
fn all_equal(pairs: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut all = Some(true);
    for pair in pairs {
        match pair {
            Some(false) => return Some(false),
            Some(true) => {}
            None => all = None,
        }
    }
    all
}

/// As doubles, as the conformance tests of CEL have it: integers that a double does not tell apart are equal to it.
#[expect(clippy::cast_precision_loss, reason = "that is what is asked")]
fn whole_and_double(whole: i128, least: f64, most: f64, double: f64) -> Option<Ordering> {
    if double < least {
        return Some(Ordering::Greater);
    }
    if double > most {
        return Some(Ordering::Less);
    }
    (whole as f64).partial_cmp(&double)
}

/// The bounds of each kind of integer, as doubles.
const INT: (f64, f64) = (-9_223_372_036_854_775_808.0, 9_223_372_036_854_775_808.0);
const UINT: (f64, f64) = (0.0, 18_446_744_073_709_551_616.0);

impl Key {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.len() as u64,
            _ => 0,
        }
    }

    /// The key that a mapping can have.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Int(number) => Some(Self::Int(*number)),
            Value::Uint(number) => Some(Self::Uint(*number)),
            Value::String(text) => Some(Self::String(Arc::clone(text))),
            _ => None,
        }
    }

    /// The key that is looked for: a double that is whole finds that number.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked")]
    pub(super) fn sought(value: &Value) -> Option<Self> {
        match value {
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 2_f64.powi(63) => {
                Some(Self::Int(*number as i64))
            }
            Value::Double(number) if number.fract() == 0.0 && (0.0..2_f64.powi(64)).contains(number) => {
                Some(Self::Uint(*number as u64))
            }
            other => Self::of(other),
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
