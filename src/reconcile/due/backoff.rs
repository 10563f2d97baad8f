//! How long a failing object waits: each object by itself, longer each time, and from the start again after a success.

use std::{collections::HashMap, time::Duration};

use crate::reconcile::name::Name;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// The share of a wait that is left to chance, so that objects that failed together are not tried together.
const JITTER: f64 = 0.2;

/// The failures in a row of the objects of one kind. Lost with the term: a new leader starts afresh.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: HashMap<Name, u32>,
}

impl Backoff {
    /// Counts a failure and says how long to wait before the next try. `chance` is in `0.0..1.0`.
    pub fn failed(&mut self, object: &Name, chance: f64) -> Duration {
        let failures = self.failures.entry(object.clone()).or_default();
        let wait = wait(*failures, chance);
        *failures = failures.saturating_add(1);
        wait
    }

    /// Forgets an object's failures: it succeeded, or is gone.
    pub fn reset(&mut self, object: &Name) {
        self.failures.remove(object);
    }
}

/// The wait after `before` failures and one more.
fn wait(before: u32, chance: f64) -> Duration {
    let doubled = 1u32.checked_shl(before).map_or(LONGEST, |factor| FIRST.saturating_mul(factor));
    doubled.min(LONGEST).mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_one_second_to_five_minutes() {
        let waits: Vec<u64> = (0..11).map(|before| wait(before, 0.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(wait(u32::MAX, 0.0), LONGEST);
    }

    #[test]
    fn jitter_only_shortens_and_by_a_fifth_at_most() {
        assert_eq!(wait(0, 1.0), Duration::from_millis(800));
        assert_eq!(wait(20, 1.0), Duration::from_secs(240));
    }

    #[test]
    fn counts_each_object_by_itself_and_starts_again_after_a_success() {
        let mut backoff = Backoff::default();
        let (a, b) = (Name::new(Some("a"), "x"), Name::new(Some("b"), "x"));
        assert_eq!(backoff.failed(&a, 0.0).as_secs(), 1);
        assert_eq!(backoff.failed(&a, 0.0).as_secs(), 2);
        assert_eq!(backoff.failed(&b, 0.0).as_secs(), 1);
        backoff.reset(&a);
        assert_eq!(backoff.failed(&a, 0.0).as_secs(), 1);
        assert_eq!(backoff.failed(&b, 0.0).as_secs(), 2);
    }
}
