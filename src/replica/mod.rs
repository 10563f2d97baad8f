//! Carries out what [`protocol`](crate::protocol) decides: requests, watches, tasks and the clients of terms.
//!
//! [`supervisor`] is the loop around the core. [`board`] watches Leases and [`leases`] reads and writes them, as
//! [`record`]s, and locks that are ConfigMaps ([`config_map`]); a [`term`] works behind its [`fence`], and [`hearing`] says
//! whether it hears; [`connections`] makes every client; [`proof`] knows of processes that have ended, [`preflight`] asks
//! what can be reconciled here. [`leadership`] is the signal for other tasks, an [`observe`]r reads without leading, and
//! [`telemetry`] shows it all; `past` asks what was before this replica started.

mod announce;
pub mod board;
pub mod clock;
pub mod config_map;
pub mod connections;
pub mod fence;
pub mod hearing;
pub mod leadership;
pub mod leases;
pub mod observe;
mod past;
pub mod pods;
pub mod preflight;
pub mod problem;
pub mod proof;
pub mod record;
pub(crate) mod spans;
pub mod supervisor;
pub mod telemetry;
pub mod term;
mod told;
mod waits;
