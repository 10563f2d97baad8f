//! The built-in kinds.

pub mod propagation;
mod schema;

use crate::sharding::term::Access;

/// One entry a verb.
fn access(group: &'static str, resource: &'static str, verbs: &[&'static str]) -> Vec<Access> {
    verbs.iter().map(|verb| Access { verb, group, resource }).collect()
}
