//! What a front end of the engine says: which children an object shall have. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Map, Value};

use crate::{config::Kind, replica::term::Access};

/// A type of objects. The plural is what permissions name; requests use the one that the API server tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Kind in CamelCase.
    pub kind: String,
    /// Resource in the plural, in lower case.
    pub plural: String,
}

impl Type {
    /// With the plural that English has for it, as almost every API does.
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        let plural = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)).plural;
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned(), plural }
    }

    /// That of a kind, with the plural that the configuration names, or else as [`new`](Self::new) has it.
    pub fn of_kind(kind: &Kind) -> Self {
        let of = Self::new(&kind.group, &kind.version, &kind.kind);
        Self { plural: kind.plural.clone().unwrap_or(of.plural), ..of }
    }

    /// Whether the plural may be another one: English was asked, and the API is none that is known to follow it.
    pub fn is_guessed(&self) -> bool {
        let known = ["", "apps", "batch", "autoscaling", "policy", "leasehold.dev"];
        let is_known = known.contains(&&*self.group) || self.group.ends_with(".k8s.io");
        !is_known && self.plural == Self::new(&self.group, &self.version, &self.kind).plural
    }

    /// `apiVersion` as objects bear it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::gvk(&self.group, &self.version, &self.kind)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.api_version(), self.kind)
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its type.
    pub of: Arc<Type>,
    /// Its namespace; `None` for what is in none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.of.kind, self.name),
            None => write!(f, "{} {}", self.of.kind, self.name),
        }
    }
}

/// Objects that are read and never written: all of a type, or those of a namespace, of a name, with these labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Related {
    /// Their type.
    pub of: Arc<Type>,
    /// Their namespace; `None` for all.
    pub namespace: Option<String>,
    /// The name of the only one.
    pub name: Option<String>,
    /// Labels that all of them bear.
    pub labels: BTreeMap<String, String>,
}

/// What a front end may look at.
pub struct View<'a> {
    /// The object, as the API server has it.
    pub parent: &'a Value,
    /// Its children as they were last seen; `None` if there is none of that name that is ours.
    pub child: &'a dyn Fn(&Key) -> Option<Arc<Value>>,
    /// Related objects by the id under which they were asked for, in the order of namespace and name.
    pub related: &'a BTreeMap<String, Vec<Arc<Value>>>,
    /// Whether objects of a type live in namespaces.
    pub is_namespaced: &'a dyn Fn(&Type) -> bool,
}

/// One child that shall be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What the front end calls it.
    pub id: String,
    /// Its name.
    pub key: Key,
    /// All that we say of it; not who owns it, which is the engine's to say.
    pub object: Value,
    /// What it is waited for to be ready; `None`: it is.
    pub unready: Option<String>,
    /// What it waits for before it is written: it is said already, so that it is not taken for one that shall go.
    pub held: Option<String>,
    /// Children by their [`id`](Self::id) that it follows when they are ready: it is not written in the same round as one of
    /// them, for whether that is ready is told by what the write has made of it.
    pub follows: BTreeSet<String>,
    /// How it is treated.
    pub care: Care,
    /// Values of a Secret that nobody says: they are made once, and stay.
    pub generate: Option<Generate>,
}

impl Desired {
    /// A child that is ready when it is there, and that is treated as most are.
    pub fn new(id: &str, key: Key, object: Value) -> Self {
        Self {
            id: id.to_owned(),
            key,
            object,
            unready: None,
            held: None,
            follows: BTreeSet::new(),
            care: Care::default(),
            generate: None,
        }
    }
}

/// Values of a Secret that are made once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generate {
    /// By the key in `data`.
    pub values: BTreeMap<String, Recipe>,
    /// They are made anew when this is another text than when they were made.
    pub renew: Option<String>,
}

/// How a value is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// How many characters, or bytes.
    pub length: u16,
    /// Of which.
    pub characters: Characters,
}

/// What a value is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Characters {
    /// Letters and digits, which mean nothing to a shell or a URL.
    #[default]
    Alphanumeric,
    /// Digits of base 16.
    Hex,
    /// Any bytes, as a key is.
    Bytes,
}

/// How a child is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// What becomes of it when it is not desired any more, or its owner goes.
    pub deletion: Deletion,
    /// What becomes of an object of its name that is not ours.
    pub adopt: Adopt,
    /// How it is changed.
    pub update: Update,
}

/// What becomes of a child when it is not desired any more, or its owner goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deletion {
    /// It is deleted.
    #[default]
    Delete,
    /// It stays, and is nobody's: what marks it as ours is taken off.
    Keep,
}

/// Whether an object of the name of a child becomes that child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// It is left alone.
    #[default]
    Never,
    /// If no controller owns it, and nothing says that another tool manages it.
    IfUnowned,
    /// Whoever owns it, but for another object of ours.
    Always,
}

/// How a child that is there is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Update {
    /// By server-side apply.
    #[default]
    Apply,
    /// As by `Apply`; if the API server refuses that for a field that cannot change, it is deleted and made anew.
    Recreate,
    /// Not at all: it is made anew when another writer has deleted it.
    OnDelete,
}

/// Which children depend on which, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// What each depends on, and what that depends on in its turn.
    pub depends: BTreeMap<String, BTreeSet<String>>,
    /// Those of which it was said that they come after others: their owner is held until they are gone.
    pub explicit: BTreeSet<String>,
}

/// A child that cannot be said yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What the front end calls it.
    pub id: String,
    /// What it waits for.
    pub reason: String,
}

/// What an object shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Composed {
    /// In the order in which they shall come into being.
    pub children: Vec<Desired>,
    /// Those that are not said yet. While there are any, nothing is deleted.
    pub waiting: Vec<Waiting>,
    /// Fields of the status, besides those of the engine.
    pub status: Map<String, Value>,
    /// What could not be computed, and takes nothing from the children: a field of the status, or whether a child is ready.
    pub failed: Vec<String>,
}

/// Why nothing can be said of what an object shall have. Nothing is deleted then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// For people: which child, where in its template, why. No value of an object stands in it.
    pub message: String,
}

/// How much work a front end may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// About a millisecond, for others wait meanwhile.
    Brief,
    /// All that an object may take.
    Full,
}

/// A front end: says what children an object shall have. It does no IO, reads no clock, and says the same of the same.
pub trait Compose: Send + Sync + 'static {
    /// The types that children can have.
    fn types(&self) -> Vec<Arc<Type>>;

    /// What it must be allowed besides the writing of those types, to give rights away for example.
    fn rights(&self) -> Vec<Access> {
        Vec::new()
    }

    /// What it wants to see besides, by id.
    fn related(&self) -> BTreeMap<String, Related>;

    /// Which children depend on which: they are deleted in the reverse order.
    fn order(&self) -> Order {
        Order::default()
    }

    /// What the object shall have; `None`: that takes more than a brief effort.
    ///
    /// # Errors
    /// If the object says nothing that could be carried out.
    fn compose(&self, view: &View<'_>, effort: Effort) -> Result<Option<Composed>, Failure>;
}
