//! The objects of a kind as last seen, by its watch and by our own writes, and what they are called.
//! `observe` has them on every replica, whether it leads or not. `weight` says what an object weighs, and takes off what is not
//! kept; `too_large` reads what is not kept, and says of an object that it weighs too much.

pub mod name;
pub mod observe;
pub mod seen;
pub(in crate::reconcile) mod too_large;
pub(crate) mod weight;
