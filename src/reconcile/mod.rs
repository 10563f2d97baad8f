//! What kinds share, in rooms:
//!
//! - `due`: what is due and when.
//! - `store`: the objects of a kind as last seen.
//! - `writes`: what is written and how.
//! - [`stages`]: the skeleton of a kind that is written in Rust.
//! - [`watches`]: watches that the kinds of a replica share.
//! - [`children`]: the engine for kinds that say only which children an object shall have.
//!
//! Nothing here knows a kind. Every request goes through the client of a [`Term`](crate::replica::term::Term), so that a
//! late write is refused. An error is tried again with back-off.

pub mod children;
mod due;
pub mod stages;
mod store;
pub mod watches;
mod writes;

#[cfg(test)]
pub(crate) mod fake;

pub use self::{
    due::{backoff, clock, controller},
    store::{name, observe, seen},
    writes::{apply, conditions, events, finalizer, input, status, status_writer},
};
