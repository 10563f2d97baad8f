//! Kinds that are composed: a file of templates says which children an object shall have, and no program is written.
//!
//! [`composition`] is the file, [`template`] a tree with expressions at its leaves, [`cel`] the expressions, [`admission`]
//! says what is filled in and refused before an object is stored, [`outline`] what is known of all children without an object,
//! [`footprint`] where those of one can be, [`typed`] holds all of it to the schemas of its types, [`evaluate`] makes of an
//! object the children that it shall have. What carries that out is the engine, [`crate::reconcile::children`].

mod admission;
mod cel;
mod composition;
mod evaluate;
mod footprint;
mod outline;
mod template;
mod typed;

#[cfg(test)]
mod tests;

pub use admission::ComposedAdmission;
pub use composition::Composition;
pub(in crate::kinds) use footprint::{Print, role_resource};
