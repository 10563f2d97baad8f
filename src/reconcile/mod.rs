//! What kinds share, in rooms:
//!
//! - `due`: what is due and when.
//! - `cache`: the objects of a kind as a watch and our own writes have shown them.
//! - `writes`: what is written and how.
//! - [`stages`]: the skeleton of a kind that is written in Rust.
//! - [`watches`]: watches that the kinds of a replica share.
//! - [`children`]: the engine for kinds that say only which children an object shall have.
//!
//! Nothing here knows a kind. Every request goes through the client of a [`Term`](crate::replica::term::Term), so that a
//! late write is refused. An error is tried again with back-off.

mod cache;
pub mod children;
mod due;
pub mod stages;
pub mod watches;
mod writes;

#[cfg(test)]
pub(crate) mod fake;

use self::cache::raw;
pub(crate) use self::cache::weight;
pub use self::{
    cache::{name, observe, store},
    due::{backoff, clock, controller},
    writes::{apply, asked, conditions, events, finalizer, input, status, status_writer},
};
