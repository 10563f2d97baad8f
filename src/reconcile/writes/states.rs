//! The states that wait to be written: the newest of each object, bounded, and when each is due. Pure: no clock, no request.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{
    protocol::moment::Moment,
    reconcile::{backoff::Backoff, name::Name},
};

/// What a [`StatusWriter`](super::status_writer::StatusWriter) may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// States that are kept at a time, one an object. A state of one object more is [`HandedIn::Full`].
    pub states: usize,
    /// Bytes of all of them, as JSON.
    pub bytes: usize,
    /// Writes a second.
    pub per_second: u32,
    /// Writes that may go at once before that counts.
    pub burst: u32,
    /// Writes at a time.
    pub concurrency: usize,
    /// Between two writes of one object. What is handed in meanwhile is one write.
    pub pace: Duration,
}

impl Default for Limits {
    /// Ten thousand objects, fifty writes a second after the first hundred, two of one object.
    fn default() -> Self {
        Self {
            states: 10_000,
            bytes: 32 << 20,
            per_second: 50,
            burst: 100,
            concurrency: 4,
            pace: Duration::from_millis(500),
        }
    }
}

/// How new a status is. One that is equal says the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Generation of the spec that it was made from. `None`: of none, and older than any that has one.
    pub generation: Option<i64>,
    /// Orders those of one generation: a count, or a time. The same on every replica that makes the same status.
    pub number: u64,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known<'a> {
    pub(super) uid: &'a str,
    pub(super) generation: Option<i64>,
    /// Of the status that it bears.
    pub(super) written: Option<Revision>,
}

impl Known<'_> {
    /// Whether a state of that revision, made for that object, says more than the object does.
    pub(super) fn lacks(&self, uid: &str, revision: Revision) -> bool {
        self.uid == uid
            && self.written.is_none_or(|written| revision > written)
            // The spec is newer than the state, so the state is about an old spec.
            && revision.generation.zip(self.generation).is_none_or(|(of, now)| of >= now)
    }
}

/// A state, as it was handed in.
#[derive(Debug)]
pub(super) struct State<S> {
    pub(super) uid: Arc<str>,
    pub(super) revision: Revision,
    pub(super) status: Arc<S>,
    /// Its size.
    pub(super) bytes: usize,
}

impl<S> Clone for State<S> {
    fn clone(&self) -> Self {
        let Self { uid, revision, status, bytes } = self;
        Self { uid: Arc::clone(uid), revision: *revision, status: Arc::clone(status), bytes: *bytes }
    }
}

/// What becomes of a state that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandedIn {
    /// It is kept, and written if this replica leads, or when it does, unless a newer one comes first.
    Kept,
    /// The object bears it already, or a newer one does or is kept, or its spec has gone on, or it is gone.
    Old,
    /// As many states are kept as may be, and none of this object.
    Full,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is stored, or there was nothing to be written any more.
    Settled,
    /// To be tried again.
    Failed,
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Next<S> {
    Write(Name, State<S>),
    /// Nothing before then, unless something happens.
    Wait(Moment),
}

/// A state that waits.
#[derive(Debug)]
struct Kept<S> {
    state: State<S>,
    due: Moment,
    /// The last write failed: it is not due before, whatever the hurry.
    failed: bool,
}

/// The states of one kind on one replica.
#[derive(Debug)]
pub(super) struct States<S> {
    limits: Limits,
    kept: HashMap<Name, Kept<S>>,
    /// When each is due.
    due: BTreeSet<(Moment, Name)>,
    bytes: usize,
    /// What is being written.
    writing: HashMap<Name, (Arc<str>, Revision)>,
    /// Objects that were written a moment ago.
    paced: BTreeSet<(Moment, Name)>,
    paced_until: HashMap<Name, Moment>,
    backoff: Backoff,
    /// When the rate allows the next write but for the burst.
    rate: Moment,
}

impl<S> States<S> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            kept: HashMap::new(),
            due: BTreeSet::new(),
            bytes: 0,
            writing: HashMap::new(),
            paced: BTreeSet::new(),
            paced_until: HashMap::new(),
            backoff: Backoff::default(),
            rate: Moment::default(),
        }
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Takes a state. `known`: the object as this replica sees it, if it does.
    pub(super) fn hand_in(&mut self, name: Name, state: State<S>, known: Option<Known<'_>>, now: Moment) -> HandedIn {
        if known.is_some_and(|known| !known.lacks(&state.uid, state.revision)) {
            return HandedIn::Old;
        }
        let before = self.kept.get(&name);
        if before.is_some_and(|it| it.state.uid == state.uid && it.state.revision >= state.revision) {
            return HandedIn::Old;
        }
        let (freed, places) = before.map_or((0, 0), |before| (before.state.bytes, 1));
        if self.kept.len() - places >= self.limits.states || self.bytes - freed + state.bytes > self.limits.bytes {
            return HandedIn::Full;
        }
        // One that waits keeps its place: states that come without end put off none.
        let due = before.map(|before| before.due).or_else(|| self.paced_until.get(&name).copied()).unwrap_or(now);
        let failed = before.is_some_and(|before| before.failed);
        self.bytes = self.bytes - freed + state.bytes;
        self.due.insert((due, name.clone()));
        self.kept.insert(name, Kept { state, due, failed });
        HandedIn::Kept
    }

    /// The object was seen so.
    pub(super) fn seen(&mut self, name: &Name, known: &Known<'_>) {
        if self.kept.get(name).is_some_and(|Kept { state, .. }| !known.lacks(&state.uid, state.revision)) {
            self.forget(name);
        }
    }

    /// The object with this uid is gone.
    pub(super) fn gone(&mut self, name: &Name, uid: &str) {
        if self.kept.get(name).is_some_and(|it| *it.state.uid == *uid) {
            self.forget(name);
        }
    }

    /// Everything was listed: what `is_news` does not find, or finds no news, is kept no longer.
    pub(super) fn listed(&mut self, is_news: impl Fn(&Name, &State<S>) -> bool) {
        let stale = |(name, it): (&Name, &Kept<S>)| (!is_news(name, &it.state)).then(|| name.clone());
        let stale: Vec<_> = self.kept.iter().filter_map(stale).collect();
        stale.iter().for_each(|name| self.forget(name));
    }

    /// What was being written was not answered: its term is over.
    pub(super) fn interrupted(&mut self) {
        self.writing.clear();
    }

    /// The next write. `hurry`: the term ends, and nothing waits for the sake of the rate.
    pub(super) fn next(&mut self, now: Moment, hurry: bool) -> Next<S> {
        while let Some((until, _)) = self.paced.first().filter(|(until, _)| *until <= now) {
            let until = *until;
            if let Some((_, name)) = self.paced.pop_first()
                && self.paced_until.get(&name) == Some(&until)
            {
                self.paced_until.remove(&name);
            }
        }
        if self.writing.len() >= self.limits.concurrency {
            return Next::Wait(Moment::NEVER);
        }
        let spacing = Duration::from_secs(1) / self.limits.per_second.max(1);
        let burst = spacing * self.limits.burst.saturating_sub(1);
        let allowed = Moment::after_origin(self.rate.since_origin().saturating_sub(burst));
        let waits = |name: &Name, due: Moment| {
            let failed = self.kept.get(name).is_some_and(|it| it.failed);
            !self.writing.contains_key(name) && (!hurry || !failed || due <= now)
        };
        let first = self.due.iter().find(|(due, name)| waits(name, *due)).cloned();
        let Some((due, name)) = first else { return Next::Wait(Moment::NEVER) };
        let at = due.max(allowed);
        if now < at && !hurry {
            return Next::Wait(at);
        }
        let Some(Kept { state, .. }) = self.kept.get(&name) else { return Next::Wait(Moment::NEVER) };
        let state = state.clone();
        self.rate = self.rate.max(now) + spacing;
        self.writing.insert(name.clone(), (Arc::clone(&state.uid), state.revision));
        Next::Write(name, state)
    }

    /// A write has ended. `chance` is in `0.0..1.0`.
    pub(super) fn done(&mut self, name: &Name, outcome: Outcome, now: Moment, chance: f64) {
        let Some((uid, revision)) = self.writing.remove(name) else { return };
        let settled = outcome == Outcome::Settled;
        if settled && self.kept.get(name).is_some_and(|it| it.state.uid == uid && it.state.revision == revision) {
            self.forget(name);
        }
        let Some(it) = self.kept.get_mut(name) else {
            self.backoff.reset(name);
            return self.pace(name.clone(), now + self.limits.pace);
        };
        let wait = match settled {
            true => self.limits.pace,
            false => self.backoff.failed(name, chance),
        };
        self.due.remove(&(it.due, name.clone()));
        (it.due, it.failed) = (now + wait, !settled);
        self.due.insert((it.due, name.clone()));
    }

    fn pace(&mut self, name: Name, until: Moment) {
        self.paced.insert((until, name.clone()));
        self.paced_until.insert(name, until);
    }

    fn forget(&mut self, name: &Name) {
        if let Some(Kept { state, due, .. }) = self.kept.remove(name) {
            self.bytes -= state.bytes;
            self.due.remove(&(due, name.clone()));
            self.backoff.reset(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits =
        Limits { states: 3, bytes: 100, per_second: 10, burst: 2, concurrency: 2, pace: Duration::from_secs(1) };

    fn at(milliseconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(3600) + Duration::from_millis(milliseconds))
    }

    fn name(name: &str) -> Name {
        Name::new(Some("ns"), name)
    }

    fn state(uid: &str, number: u64) -> State<u64> {
        let revision = Revision { generation: Some(1), number };
        State { uid: uid.into(), revision, status: Arc::new(number), bytes: 10 }
    }

    fn known(uid: &str, generation: i64, number: Option<u64>) -> Known<'_> {
        let written = number.map(|number| Revision { generation: Some(1), number });
        Known { uid, generation: Some(generation), written }
    }

    fn writes(states: &mut States<u64>, now: Moment) -> Vec<(String, u64)> {
        std::iter::from_fn(|| match states.next(now, false) {
            Next::Write(name, state) => Some((name.name().to_owned(), *state.status)),
            Next::Wait(_) => None,
        })
        .collect()
    }

    #[test]
    fn the_newest_of_each_object_is_written_and_no_older_one_is_taken() {
        let mut states = States::new(LIMITS);
        for (number, expected) in [(2, HandedIn::Kept), (1, HandedIn::Old), (2, HandedIn::Old), (5, HandedIn::Kept)] {
            assert_eq!(states.hand_in(name("a"), state("u", number), None, at(0)), expected, "{number}");
        }
        assert_eq!(writes(&mut states, at(0)), [("a".to_owned(), 5)]);
        states.done(&name("a"), Outcome::Settled, at(10), 0.0);
        assert_eq!((states.len(), states.bytes), (0, 0));
    }

    #[test]
    fn what_the_object_says_already_or_what_is_about_another_spec_or_object_is_old() {
        for (known, expected) in [
            (known("u", 1, None), HandedIn::Kept),
            (known("u", 1, Some(4)), HandedIn::Kept),
            (known("u", 1, Some(5)), HandedIn::Old),
            (known("u", 1, Some(6)), HandedIn::Old),
            (known("u", 2, Some(4)), HandedIn::Old),
            (known("v", 1, None), HandedIn::Old),
        ] {
            let mut states = States::new(LIMITS);
            assert_eq!(states.hand_in(name("a"), state("u", 5), Some(known.clone()), at(0)), expected, "{known:?}");
            // The same when it is seen later.
            let mut states = States::new(LIMITS);
            states.hand_in(name("a"), state("u", 5), None, at(0));
            states.seen(&name("a"), &known);
            assert_eq!(states.len() == 1, expected == HandedIn::Kept, "{known:?}");
        }
    }

    #[test]
    fn an_object_that_was_made_anew_starts_afresh() {
        let mut states = States::new(LIMITS);
        states.hand_in(name("a"), state("u", 5), None, at(0));
        assert_eq!(states.hand_in(name("a"), state("v", 1), None, at(0)), HandedIn::Kept);
        states.gone(&name("a"), "u");
        assert_eq!(writes(&mut states, at(0)), [("a".to_owned(), 1)]);
    }

    #[test]
    fn it_is_bounded_and_says_so() {
        let mut states = States::new(LIMITS);
        for (object, expected) in
            [("a", HandedIn::Kept), ("b", HandedIn::Kept), ("c", HandedIn::Kept), ("d", HandedIn::Full)]
        {
            assert_eq!(states.hand_in(name(object), state("u", 1), None, at(0)), expected, "{object}");
        }
        assert_eq!(
            states.hand_in(name("c"), state("u", 2), None, at(0)),
            HandedIn::Kept,
            "one that is kept may change"
        );
        let large = State { bytes: 90, ..state("u", 3) };
        assert_eq!(states.hand_in(name("c"), large, None, at(0)), HandedIn::Full);
        states.gone(&name("a"), "u");
        assert_eq!(states.hand_in(name("d"), state("u", 1), None, at(0)), HandedIn::Kept);
    }

    #[test]
    fn a_list_forgets_what_is_not_in_it() {
        let mut states = States::new(LIMITS);
        for object in ["a", "b", "c"] {
            states.hand_in(name(object), state("u", 2), None, at(0));
        }
        states.listed(|object, state| match object.name() {
            "a" => known("u", 1, Some(1)).lacks(&state.uid, state.revision),
            "b" => known("u", 1, Some(2)).lacks(&state.uid, state.revision),
            _ => false,
        });
        assert_eq!(writes(&mut states, at(0)), [("a".to_owned(), 2)]);
    }

    #[test]
    fn writes_are_bounded_at_a_time_by_rate_and_for_each_object() {
        let mut states = States::new(Limits { states: 10, ..LIMITS });
        for object in ["a", "b", "c", "d"] {
            states.hand_in(name(object), state("u", 1), None, at(0));
        }
        assert_eq!(writes(&mut states, at(0)).len(), 2, "as many as may be at a time");
        states.done(&name("a"), Outcome::Settled, at(1), 0.0);
        assert_eq!(writes(&mut states, at(1)), [], "the burst is used up");
        assert_eq!(writes(&mut states, at(100)), [("c".to_owned(), 1)]);
        states.hand_in(name("a"), state("u", 2), None, at(100));
        states.hand_in(name("a"), state("u", 3), None, at(110));
        states.done(&name("b"), Outcome::Settled, at(200), 0.0);
        assert_eq!(writes(&mut states, at(200)), [("d".to_owned(), 1)]);
        states.done(&name("c"), Outcome::Settled, at(300), 0.0);
        states.done(&name("d"), Outcome::Settled, at(300), 0.0);
        assert_eq!(writes(&mut states, at(1000)), []);
        assert_eq!(writes(&mut states, at(1001)), [("a".to_owned(), 3)], "a second after the last one of that object");
    }

    #[test]
    fn one_that_comes_during_a_write_is_written_after_it_and_a_failure_is_tried_again() {
        let mut states = States::new(LIMITS);
        states.hand_in(name("a"), state("u", 1), None, at(0));
        assert_eq!(writes(&mut states, at(0)), [("a".to_owned(), 1)]);
        states.hand_in(name("a"), state("u", 2), None, at(0));
        assert_eq!(writes(&mut states, at(500)), [], "never two of one object at a time");
        states.done(&name("a"), Outcome::Failed, at(500), 0.0);
        assert_eq!(writes(&mut states, at(1499)), []);
        assert_eq!(writes(&mut states, at(1500)), [("a".to_owned(), 2)]);
        states.done(&name("a"), Outcome::Failed, at(1500), 0.0);
        assert_eq!(writes(&mut states, at(3499)), []);
        assert_eq!(writes(&mut states, at(3500)), [("a".to_owned(), 2)]);
        // The term ends before the answer.
        states.interrupted();
        assert_eq!(writes(&mut states, at(3600)), [("a".to_owned(), 2)]);
    }

    #[test]
    fn at_the_end_of_a_term_nothing_waits_for_the_rate() {
        let mut states = States::new(Limits { concurrency: 10, ..LIMITS });
        for object in ["a", "b", "c"] {
            states.hand_in(name(object), state("u", 1), None, at(0));
        }
        let mut hurried = || matches!(states.next(at(0), true), Next::Write(..));
        assert!(hurried() && hurried() && hurried() && !hurried());
    }

    #[derive(Clone, Debug)]
    enum Action {
        HandIn(u8, u64),
        Write,
        Settle(usize),
        Fail(usize),
        SeeOlder(u8, u64),
        Delete(u8),
        Interrupt,
        Pass(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (0_u8..5, 1_u64..40).prop_map(|(object, number)| Action::HandIn(object, number)),
            4 => Just(Action::Write),
            3 => (0_usize..4).prop_map(Action::Settle),
            1 => (0_usize..4).prop_map(Action::Fail),
            1 => (0_u8..5, 0_u64..40).prop_map(|(object, number)| Action::SeeOlder(object, number)),
            1 => (0_u8..5).prop_map(Action::Delete),
            1 => Just(Action::Interrupt),
            2 => (0_u64..2000).prop_map(Action::Pass),
        ]
    }

    proptest! {
        /// What is written of an object only grows; what is kept is within its bounds; and when all is settled each object
        /// bears the newest state that was taken for it and not said to be old by what was seen.
        #[test]
        fn the_newest_arrives_and_no_older_one_follows(actions in prop::collection::vec(action(), 0..200)) {
            let limits = Limits { pace: Duration::from_millis(300), ..LIMITS };
            let (mut states, mut now) = (States::new(limits), at(0));
            let mut stored = BTreeMap::<u8, u64>::new();
            let mut newest = BTreeMap::<u8, u64>::new();
            let mut open: Vec<(u8, u64)> = Vec::new();
            let text = |object: u8| name(&object.to_string());
            for action in actions {
                match action {
                    Action::HandIn(object, number) => {
                        let bears = stored.get(&object).copied();
                        match states.hand_in(text(object), state("u", number), Some(known("u", 1, bears)), now) {
                            HandedIn::Kept => {
                                prop_assert!(newest.get(&object).is_none_or(|newest| number > *newest));
                                newest.insert(object, number);
                            }
                            HandedIn::Old => {
                                let best = newest.get(&object).copied().max(bears);
                                prop_assert!(best.is_some_and(|best| number <= best));
                            }
                            HandedIn::Full => prop_assert!(states.len() == limits.states),
                        }
                    }
                    Action::Write => if let Next::Write(name, state) = states.next(now, false) {
                        let object: u8 = name.name().parse().unwrap();
                        prop_assert!(open.iter().all(|(other, _)| *other != object), "two at a time of one object");
                        open.push((object, *state.status));
                        prop_assert!(open.len() <= limits.concurrency);
                    },
                    Action::Settle(index) if index < open.len() => {
                        let (object, number) = open.remove(index);
                        // As the driver does: what is not newer than what is there is not written.
                        let bears = stored.entry(object).or_default();
                        *bears = number.max(*bears);
                        states.done(&text(object), Outcome::Settled, now, 0.5);
                    }
                    Action::Fail(index) if index < open.len() => {
                        let (object, _) = open.remove(index);
                        states.done(&text(object), Outcome::Failed, now, 0.5);
                    }
                    Action::Settle(_) | Action::Fail(_) => {}
                    Action::SeeOlder(object, number) => {
                        // Another leader has written that.
                        let bears = stored.entry(object).or_default();
                        *bears = number.max(*bears);
                        let bears = *bears;
                        states.seen(&text(object), &known("u", 1, Some(bears)));
                    }
                    Action::Delete(object) => {
                        states.gone(&text(object), "u");
                        newest.remove(&object);
                    }
                    Action::Interrupt => {
                        open.clear();
                        states.interrupted();
                    }
                    Action::Pass(milliseconds) => now = now + Duration::from_millis(milliseconds),
                }
                prop_assert!(states.len() <= limits.states && states.bytes <= limits.bytes);
                prop_assert_eq!(states.due.len(), states.kept.len());
                prop_assert_eq!(states.bytes, states.kept.len() * 10);
            }
            open.clear();
            states.interrupted();
            for _ in 0..100 {
                now = now + Duration::from_secs(400);
                while let Next::Write(name, state) = states.next(now, false) {
                    let bears = stored.entry(name.name().parse().unwrap()).or_default();
                    *bears = (*state.status).max(*bears);
                    states.done(&name, Outcome::Settled, now, 0.5);
                }
            }
            prop_assert_eq!(states.len(), 0);
            for (object, number) in newest {
                prop_assert!(stored.get(&object).is_some_and(|bears| *bears >= number), "{object} lost {number}");
            }
            // And nothing of what was written is remembered for ever.
            states.next(now + Duration::from_secs(400), false);
            prop_assert!(states.paced.is_empty() && states.paced_until.is_empty());
        }
    }
}
