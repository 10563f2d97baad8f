//! Who runs what: one election a kind, one term at a time, one supervisor over all.

pub mod term;
