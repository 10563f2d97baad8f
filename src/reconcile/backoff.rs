//! How long a failing object waits: each object by itself, longer each time, and from the start again after a success.

use std::time::Duration;

use dashmap::DashMap;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// The share of a wait that is left to chance, so that objects that failed together are not tried together.
const JITTER: f64 = 0.2;

/// The failures in a row of the objects of one kind, by namespace and name. Lost with the term: a new leader starts afresh.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: DashMap<Key, u32>,
}

/// Namespace, empty for a cluster-scoped object, and name.
type Key = (String, String);

impl Backoff {
    /// Counts a failure and says how long to wait before the next try. `chance` is in `0.0..1.0`.
    pub fn failed(&self, namespace: Option<&str>, name: &str, chance: f64) -> Duration {
        let mut failures = self.failures.entry(key(namespace, name)).or_default();
        let wait = wait(*failures, chance);
        *failures = failures.saturating_add(1);
        wait
    }

    /// Forgets an object's failures: it succeeded, or is gone.
    pub fn reset(&self, namespace: Option<&str>, name: &str) {
        self.failures.remove(&key(namespace, name));
    }
}

fn key(namespace: Option<&str>, name: &str) -> Key {
    (namespace.unwrap_or_default().to_owned(), name.to_owned())
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
        let backoff = Backoff::default();
        assert_eq!(backoff.failed(Some("a"), "x", 0.0).as_secs(), 1);
        assert_eq!(backoff.failed(Some("a"), "x", 0.0).as_secs(), 2);
        assert_eq!(backoff.failed(Some("b"), "x", 0.0).as_secs(), 1);
        backoff.reset(Some("a"), "x");
        assert_eq!(backoff.failed(Some("a"), "x", 0.0).as_secs(), 1);
        assert_eq!(backoff.failed(Some("b"), "x", 0.0).as_secs(), 2);
    }
}
