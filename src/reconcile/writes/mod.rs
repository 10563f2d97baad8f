//! What is written and how: children by server-side apply, finalizers, statuses with their conditions, events.
//! `input` has the texts that are safe in a request. `states` and `status_writer` write statuses that other tasks hand in.

pub mod apply;
pub mod asked;
pub mod conditions;
pub mod events;
pub mod finalizer;
pub mod input;
mod states;
pub mod status;
pub mod status_writer;
