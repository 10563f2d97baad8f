//! How far the beginning of the work on a kind is, said every few seconds while it goes on. It takes `now` and tells nothing
//! by itself.

use std::time::Duration;

use crate::protocol::moment::Moment;

/// Between two log lines. What takes less time says nothing.
const STEP: Duration = Duration::from_secs(5);
/// The most, when it goes on for long: a quarter of the time that it has taken.
const STEP_MOST: Duration = Duration::from_secs(60);

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Far {
    /// Watches whose first list is complete, and all.
    pub(super) listed: (usize, usize),
    /// Objects in the cache.
    pub(super) objects: usize,
    /// Objects that the first pass has not come to.
    pub(super) unswept: usize,
}

/// Since when it goes on, and when it is to be said again.
#[derive(Debug)]
pub(super) struct Progress {
    since: Moment,
    say_at: Moment,
    is_over: bool,
}

impl Progress {
    pub(super) fn new(now: Moment) -> Self {
        Self { since: now, say_at: now + STEP, is_over: false }
    }

    /// The first sync and the first pass are over.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// When to look again though nothing has happened.
    pub(super) fn next_look(&self) -> Moment {
        if self.is_over { Moment::NEVER } else { self.say_at }
    }

    /// It is so far now: the beginning may be over, and what is to be swept later is none.
    pub(super) fn note(&mut self, far: Far) {
        self.is_over = self.is_over || (far.listed.0 == far.listed.1 && far.unswept == 0);
    }

    /// What to say now, if anything; `failing` are the watches whose requests fail.
    pub(super) fn look(&mut self, far: Far, failing: impl FnOnce() -> Vec<String>, now: Moment) -> Option<String> {
        let Far { listed: (listed, all), objects, unswept } = far;
        self.note(far);
        if self.is_over || now < self.say_at {
            return None;
        }
        let taken = now.since(self.since);
        self.say_at = now + (taken / 4).clamp(STEP, STEP_MOST);
        let seconds = taken.as_secs();
        if listed == all {
            return Some(format!(
                "the first pass goes on: {unswept} objects have not had their turn after {seconds} s"
            ));
        }
        let failing = failing();
        let failing =
            if failing.is_empty() { String::new() } else { format!("; requests fail of {}", failing.join(", ")) };
        Some(format!(
            "the first sync goes on: {listed} of {all} watches have listed after {seconds} s, {objects} objects are in the cache{failing}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_quick_says_nothing_and_what_takes_long_is_said_every_few_seconds_until_it_is_over() {
        let far = |listed, objects, unswept| Far { listed: (listed, 2), objects, unswept };
        let mut progress = Progress::new(at(0));
        let mut look = |far, now| progress.look(far, || vec!["v1 Secret".to_owned()], at(now));
        assert_eq!(look(far(0, 100, 0), 1), None);
        let said = look(far(1, 500, 0), 6).unwrap();
        assert_eq!(
            said,
            "the first sync goes on: 1 of 2 watches have listed after 6 s, 500 objects are in the cache; requests fail of v1 Secret"
        );
        assert_eq!(look(far(1, 500, 0), 7), None);
        let said = look(far(2, 500, 300), 11).unwrap();
        assert_eq!(said, "the first pass goes on: 300 objects have not had their turn after 11 s");
        assert_eq!(look(far(2, 500, 0), 13), None);
        // A resync is no beginning.
        assert_eq!(look(far(2, 500, 500), 60), None);
        assert_eq!(progress.next_look(), Moment::NEVER);
        let mut stuck = Progress::new(at(0));
        let said = (0..3600).filter(|now| stuck.look(far(1, 5, 0), Vec::new, at(*now)).is_some()).count();
        assert!((60..80).contains(&said), "{said}");
        let mut quick = Progress::new(at(0));
        assert_eq!(quick.look(far(2, 5, 0), Vec::new, at(1)), None);
        assert_eq!(quick.look(far(2, 5, 5), Vec::new, at(100)), None);
        let mut noted = Progress::new(at(0));
        noted.note(far(2, 5, 0));
        assert!(noted.is_over());
    }
}
