//! What handovers wait for, and when the log says so again. It takes `now` and tells nothing by itself.

use std::{collections::HashMap, time::Duration};

use crate::{
    ops::status::WaitsFor,
    protocol::{
        event::ShardIndex,
        moment::Moment,
        slot::{Handover, State},
    },
};

/// The first log line about a wait comes so late, and the next ones in these steps.
const STEP: Duration = Duration::from_secs(5);

/// The handovers of a replica that wait.
#[derive(Debug, Default)]
pub(super) struct Waits {
    by_shard: HashMap<ShardIndex, Wait>,
}

#[derive(Debug)]
struct Wait {
    waits_for: WaitsFor,
    since: Moment,
    say_at: Moment,
}

/// What a shard that is here waits for before another replica can have it.
pub(super) fn of(state: State, handover: &Handover) -> Option<WaitsFor> {
    match (state, handover) {
        (State::Running, Handover::To { prepared: false, .. }) => Some(WaitsFor::Successor),
        (State::Draining | State::Aborting, _) => Some(WaitsFor::Drain),
        _ => None,
    }
}

impl Waits {
    /// Since when the shard waits for this, and whether the log is to say so now.
    pub(super) fn look(
        &mut self,
        shard: ShardIndex,
        waits_for: Option<WaitsFor>,
        now: Moment,
    ) -> Option<(Moment, bool)> {
        let Some(waits_for) = waits_for else {
            self.by_shard.remove(&shard);
            return None;
        };
        let new = || Wait { waits_for, since: now, say_at: now + STEP };
        let wait = self.by_shard.entry(shard).or_insert_with(new);
        if wait.waits_for != waits_for {
            *wait = new();
        }
        let say = now >= wait.say_at;
        if say {
            wait.say_at = now + STEP;
        }
        Some((wait.since, say))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_handover_waits_for_a_cache_or_for_the_work() {
        let to = |prepared| Handover::To { successor: "b".to_owned(), prepared, must: false };
        assert_eq!(of(State::Running, &Handover::Stay), None);
        assert_eq!(of(State::Running, &to(false)), Some(WaitsFor::Successor));
        assert_eq!(of(State::Running, &to(true)), None);
        assert_eq!(of(State::Draining, &to(true)), Some(WaitsFor::Drain));
        assert_eq!(of(State::Idle, &to(false)), None);
    }

    #[test]
    fn a_long_wait_is_said_every_few_seconds_and_a_new_one_counts_from_its_beginning() {
        let mut waits = Waits::default();
        let successor = Some(WaitsFor::Successor);
        assert_eq!(waits.look(0, successor, at(10)), Some((at(10), false)));
        assert_eq!(waits.look(0, successor, at(14)), Some((at(10), false)));
        assert_eq!(waits.look(0, successor, at(16)), Some((at(10), true)));
        assert_eq!(waits.look(0, successor, at(17)), Some((at(10), false)));
        assert_eq!(waits.look(0, successor, at(21)), Some((at(10), true)));
        assert_eq!(waits.look(1, successor, at(21)), Some((at(21), false)));
        assert_eq!(waits.look(0, Some(WaitsFor::Drain), at(22)), Some((at(22), false)));
        assert_eq!(waits.look(0, None, at(23)), None);
        assert_eq!(waits.look(0, successor, at(30)), Some((at(30), false)));
    }
}
