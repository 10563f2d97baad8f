//! The one integration target: what needs no control plane. Acceptance on a real one is in `tests/acceptance`.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking, its tools too")]

mod chart;
mod docs;
mod explore;
mod fleet;
mod fuzz;
mod habits;
mod image;
mod logs;
mod manifests;
mod messages;
mod metrics;
mod output;
mod release;
mod render;
mod rights;
mod tidy;
mod timeline;
mod wall;
