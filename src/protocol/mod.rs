//! What one replica decides. No IO, no clock, no task: every call takes `now` and returns what is to be done.
//!
//! [`election`] is one Lease's election, [`slot`] one shard's term on this replica, [`roster`] what this replica knows of
//! the others, and [`placement`] who should hold what.

pub mod election;
pub mod moment;
pub mod placement;
pub mod roster;
pub mod slot;
