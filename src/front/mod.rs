//! The front wall: what a user of the library has, made of what lies behind it. `lib.rs` names it.
//!
//! [`builder`] takes kinds, fronts and compositions and makes a replica of them, [`children`] is the typed front of the
//! children engine, [`control`] runs a kube `Controller` under a term, [`health`] what is known of the replica, [`kind`] the settings of a kind in code, [`testing`] a term
//! that can be lost at any moment, over [`server`], an API server in memory.

pub(crate) mod builder;
pub(crate) mod children;
mod control;
pub(crate) mod health;
mod kind;
pub(crate) mod server;
pub(crate) mod testing;
