//! The objects of a kind as last seen, by its watch and by our own writes, and what they are called.
//! `observe` has them on every replica, whether it leads or not.

pub mod name;
pub mod observe;
pub mod seen;
