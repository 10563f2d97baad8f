//! The skeleton of a kind that is written in Rust: the clock that it reads, and types for what an object says that becomes a
//! part of a request.

pub mod clock;
pub mod input;
