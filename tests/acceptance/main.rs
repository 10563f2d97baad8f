//! Acceptance on the real control plane: real API server, real Deployments, replicas as Pods.
//!
//! One cluster serves all tests; each has its own namespace, its own kinds and its own Deployment. What is asserted is
//! what the API server stored, by its audit log and resourceVersions, never a replica's word of itself.
//!
//! The replicas run `tests/observer`, an example of this package, and those in `examples/`: cargo builds them with `cargo
//! test`, but not with `cargo test --test acceptance`, which needs `cargo build --examples` first.

#![expect(unreachable_pub, reason = "a test has no public interface; `pub` says what other plays use")]

mod accounts;
mod broken;
mod browser;
mod chart;
mod composed;
mod composed_rows;
mod contend;
mod contested;
mod escalation;
mod examples;
mod faults;
mod foreign;
mod grey;
mod groups;
mod handover;
mod heavy;
mod judge;
mod lone;
mod loss;
mod migration;
mod misbehaviour;
mod modes;
mod monitoring;
mod mutants;
mod observing;
mod orphans;
mod outage;
mod page;
mod pages;
mod policies;
mod preflight;
mod process;
mod program;
mod programs;
mod pruned;
mod rails;
mod recording;
mod removed;
mod renamed;
mod rows;
mod schemas;
mod shipped;
mod signal;
mod spread;
mod stage;
mod stale;
mod starved;
mod state;
mod status;
mod things;
mod trust;
mod typed_rows;
mod webhooks;
