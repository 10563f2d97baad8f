//! Who runs what: one election a kind, one term at a time, one supervisor over all.
//!
//! The path of one Lease event: [`board`] sees it, [`elector`] hands it to its [`election`] and carries out the step,
//! [`supervisor`] hears where the replica stands, [`slot`] says what that means for the work, and a [`term`] begins or
//! ends behind its [`fence`].
//!
//! Who shall hold what: [`membership`] tells the others of this replica, [`roster`] keeps what the board shows of them,
//! [`placement`] decides the spread, and [`proof`] knows of processes that have ended.

pub mod board;
pub mod clock;
pub mod election;
pub mod elector;
pub mod fence;
pub mod membership;
pub mod moment;
pub mod placement;
pub mod preflight;
pub mod problem;
pub mod proof;
pub mod record;
pub mod roster;
pub mod slot;
pub mod supervisor;
pub mod term;
