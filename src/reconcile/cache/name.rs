//! What an object of a kind is called. Pure.

use std::{cmp::Ordering, fmt, sync::Arc};

use kube::Resource;

/// Namespace, if there is one, and name of an object. A replica keeps each in several places, so clones share the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Of what is in that namespace, or in none.
    pub fn new(namespace: Option<&str>, name: &str) -> Self {
        match namespace {
            // Neither can have a slash in it.
            Some(namespace) => Self(format!("{namespace}/{name}").into()),
            None => Self(name.into()),
        }
    }

    /// Of this object.
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default())
    }

    /// As [`Display`](fmt::Display) writes it.
    pub fn parse(text: &str) -> Self {
        Self(text.into())
    }

    /// The namespace; `None` for what is in none.
    pub fn namespace(&self) -> Option<&str> {
        self.0.split_once('/').map(|(namespace, _)| namespace)
    }

    /// The name in its namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }
}

/// By namespace, then by name.
impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.namespace().cmp(&other.namespace()).then_with(|| self.name().cmp(other.name()))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_apart_and_ordered_by_namespace_and_then_by_name() {
        let all = [(None, "b"), (Some("a"), "b"), (Some("a"), "c"), (Some("a-b"), "a")];
        let names: Vec<Name> = all.iter().map(|(namespace, name)| Name::new(*namespace, name)).collect();
        assert!(names.is_sorted(), "{names:?}");
        for (name, (namespace, plain)) in names.iter().zip(all) {
            assert_eq!((name.namespace(), name.name()), (namespace, plain));
            assert_eq!(Name::parse(&name.to_string()), *name);
        }
    }
}
