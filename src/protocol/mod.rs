//! What one replica decides. No IO, no clock, no task: every call takes `now` and returns what is to be done.
//!
//! [`replica`] is the whole: events in, effects out ([`event`]). It holds, for each kind, a [`shard`]: one Lease's
//! [`election`], and the [`slot`] that says what its standing means for the work. [`roster`] is what this replica knows of
//! the others, [`placement`] who should hold what, [`misses`] which replicas did not take what they were given,
//! [`membership`] what this one says of itself, and [`rivals`] the other Leases of the same kinds. [`history`] is how each
//! shard came to be where it is, for people. [`lease`] is a stored Lease as a value.

pub mod election;
pub mod event;
pub mod hash;
pub mod history;
pub mod lease;
pub mod lock;
pub mod membership;
pub mod misses;
pub mod moment;
pub mod placement;
pub mod replica;
pub mod rivals;
pub mod roster;
pub mod shard;
pub mod slot;
