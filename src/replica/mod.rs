//! Carries out what [`protocol`](crate::protocol) decides: requests, watches, tasks and the clients of terms.
//!
//! [`board`] watches Leases, [`elector`] and [`membership`] write them, [`supervisor`] runs the [`term`]s behind their
//! [`fence`]s, [`connections`] makes all clients and [`hearing`] says what a term's client hears, [`proof`] knows of processes that have ended, and [`preflight`] asks what can be reconciled here.

pub mod board;
pub mod clock;
pub mod connections;
pub mod elector;
pub mod fence;
pub mod hearing;
pub mod membership;
pub mod preflight;
pub mod problem;
pub mod proof;
pub mod record;
pub mod supervisor;
pub mod term;
