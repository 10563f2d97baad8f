//! The objects of a kind as its watch and our own writes have shown them (`store`), and their names (`name`).
//! `observe` keeps such a store on every replica, whether it leads or not. `weight` counts what an object takes, and removes the
//! metadata that no kind reads; `raw` reads an object whatever it says; `too_large` reads an object that is not kept, and reports one that weighs too much.

pub mod name;
pub mod observe;
pub(in crate::reconcile) mod raw;
pub mod store;
pub(in crate::reconcile) mod too_large;
pub(crate) mod weight;
