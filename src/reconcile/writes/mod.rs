//! What is written and how: children by server-side apply, finalizers, statuses with their conditions, events.
//! `states` and `status_writer` write statuses that other tasks hand in.

pub mod apply;
pub mod conditions;
pub mod events;
pub mod finalizer;
mod states;
pub mod status;
pub mod status_writer;
