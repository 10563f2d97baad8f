//! How long a replica lets others go first for a free Lease: courtesy, which costs balance when it is wrong, and never safety.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Spreads the bids of equally loaded replicas for one Lease, and the order in which one replica bids for several.
const SPREAD: Duration = Duration::from_millis(40);

/// A replica with nothing bids almost at once, one that holds a part of the configured weight waits that part of `grace`.
/// So replicas that start together share the kinds, and a Lease is never left free for longer than `grace` while one lives.
pub fn patience(grace: Duration, held: u32, total: u32, identity: &str, lease: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    (identity, lease).hash(&mut hasher);
    let spread = SPREAD.mul_f64((hasher.finish() % 1000) as f64 / 1000.0);
    spread + grace.mul_f64(f64::from(held.min(total)) / f64::from(total.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_go_first_and_nobody_waits_longer_than_the_grace() {
        let grace = Duration::from_secs(2);
        for replica in 0..50 {
            let identity = format!("pod-{replica}_x");
            let at = |held| patience(grace, held, 10, &identity, "a.example.com");
            assert!(at(0) < SPREAD);
            assert!((1..=10).all(|held| at(held - 1) < at(held)), "more load, more patience");
            assert!(at(10) <= grace + SPREAD);
            assert!(at(99) <= grace + SPREAD);
        }
    }
}
