//! The one integration target: what needs no control plane. Acceptance on a real one is in `tests/acceptance`.

mod manifests;
mod simulation;
