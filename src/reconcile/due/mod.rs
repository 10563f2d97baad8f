//! What is due and when: `queue` says which object is next, `backoff` how long a failed one waits, `controller` reconciles the
//! objects of a kind in that order, from the start of a term to its end. `progress` says how far the first sync and the first
//! pass are. `clock` is the wall clock that a pass reads.

pub mod backoff;
pub mod clock;
pub mod controller;
mod progress;
mod queue;

#[cfg(test)]
mod tests;
