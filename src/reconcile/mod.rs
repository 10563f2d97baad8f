//! What the kinds share: controllers, conditions, server-side apply, statuses, events.
//!
//! Nothing here knows a kind. Every request goes through the client of a [`Term`](crate::replica::term::Term), so that a
//! late write is refused; an error is an error here, whoever made it, and is tried again with back-off.

pub mod apply;
pub mod backoff;
pub mod children;
pub mod clock;
pub mod conditions;
pub mod controller;
pub mod events;
pub mod finalizer;
pub mod input;
pub mod name;
pub mod observe;
mod queue;
pub mod seen;
mod states;
pub mod status;
pub mod status_writer;
mod too_large;
pub mod watches;
pub(crate) mod weight;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod handover;
