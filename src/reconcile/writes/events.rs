//! Events: what happened to an object, as `kubectl describe` shows it. Nothing ever depends on one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::{
    reconcile::apply::field_manager,
    replica::{problem::describe, term::Term},
};

/// One event for a reason and an object in this time.
const QUIET: Duration = Duration::from_secs(5 * 60);
/// An event that takes longer is given up: the pass waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1000;
/// How many events wait to be published; more are dropped.
const WAITING: usize = 100;

/// Publishes events for the objects of one kind during one term: a burst of each type, and then so many a second. What a change of
/// all objects would say of each is said of the first: of all of them their status tells.
pub struct Events {
    recorder: Recorder,
    action: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    said: Said,
    waiting: VecDeque<(Event, ObjectReference)>,
}

impl Events {
    /// Publishes through the term's client, in the name of its kind.
    pub fn new(term: &Term) -> Self {
        let reporter =
            Reporter { controller: field_manager(&term.kind().kind), instance: Some(term.holder().to_owned()) };
        let (recorder, action) = (Recorder::new(term.client(), reporter), "Reconcile".to_owned());
        Self { recorder, action, state: Mutex::default() }
    }

    /// Notes that something was done.
    pub fn normal(&self, about: &ObjectReference, reason: &str, note: &str) {
        self.note(EventType::Normal, about, reason, note);
    }

    /// Notes that something stands in the way.
    pub fn warning(&self, about: &ObjectReference, reason: &str, note: &str) {
        self.note(EventType::Warning, about, reason, note);
    }

    #[expect(clippy::disallowed_methods, reason = "how often an event is published decides nothing")]
    fn note(&self, type_: EventType, about: &ObjectReference, reason: &str, note: &str) {
        let mut state = self.lock();
        let uid = about.uid.as_deref().unwrap_or_default();
        if state.waiting.len() >= WAITING || !state.said.may_say(type_, uid, reason, Instant::now()) {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shorten(note).to_owned()),
            action: self.action.clone(),
            secondary: None,
        };
        state.waiting.push_back((event, about.clone()));
    }

    /// Publishes what was noted, by this pass or another. A pass does so at its end, so that no other write of it waits, and
    /// before it does what has to be said first. What is being published is lost when this is dropped.
    pub async fn publish(&self) {
        loop {
            let Some((event, about)) = self.lock().waiting.pop_front() else { return };
            let reason = &event.reason;
            match timeout(PATIENCE, self.recorder.publish(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(error = %describe(&error), reason, "event not published"),
                Err(_) => debug!(reason, "event given up"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was said of which object, and when. Only in memory: a new leader speaks of changes it makes, not of what it finds.
#[derive(Default)]
struct Said {
    last: HashMap<(String, String), Instant>,
    normal: Bucket,
    warnings: Bucket,
}

impl Said {
    fn may_say(&mut self, type_: EventType, uid: &str, reason: &str, now: Instant) -> bool {
        let (bucket, rate) = match type_ {
            EventType::Normal => (&mut self.normal, NORMAL),
            EventType::Warning => (&mut self.warnings, WARNINGS),
        };
        if !bucket.has_one(rate, now) {
            return false;
        }
        self.last.retain(|_, said| now.duration_since(*said) < QUIET);
        let what = (uid.to_owned(), reason.to_owned());
        if self.last.contains_key(&what) {
            return false;
        }
        self.last.insert(what, now);
        bucket.taken += 1.0;
        true
    }
}

/// How often events of a type are published.
#[derive(Clone, Copy)]
struct Rate {
    /// So many at once.
    burst: f64,
    a_second: f64,
}

const NORMAL: Rate = Rate { burst: 10.0, a_second: 1.0 };
const WARNINGS: Rate = Rate { burst: 25.0, a_second: 5.0 };

/// A token bucket.
#[derive(Default)]
struct Bucket {
    taken: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn has_one(&mut self, Rate { burst, a_second }: Rate, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.taken = (self.taken - passed.as_secs_f64() * a_second).max(0.0);
        self.at = Some(now);
        self.taken <= burst - 1.0
    }
}

/// The longest beginning of a note that the API server takes.
fn shorten(note: &str) -> &str {
    &note[..note.floor_char_boundary(LONGEST_NOTE)]
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the clock under test")]
mod tests {
    use super::*;

    #[test]
    fn says_a_thing_of_an_object_once_in_five_minutes() {
        let (mut said, start) = (Said::default(), Instant::now());
        for (after, uid, reason, expected) in [
            (0, "a", "Applied", true),
            (299, "a", "Applied", false),
            (299, "b", "Applied", true),
            (299, "a", "Pruned", true),
            (300, "a", "Applied", true),
            (301, "a", "Applied", false),
        ] {
            let now = start + Duration::from_secs(after);
            assert_eq!(said.may_say(EventType::Normal, uid, reason, now), expected, "{after} s, {uid}, {reason}");
        }
    }

    #[test]
    fn a_change_of_all_objects_is_said_of_some_and_hides_no_warning() {
        let (mut said, start) = (Said::default(), Instant::now());
        let mut say = |type_, second: u64, round: &str| {
            let say =
                |number: &u32| said.may_say(type_, &format!("{number}"), round, start + Duration::from_secs(second));
            (0..1000).filter(say).count()
        };
        assert_eq!(say(EventType::Normal, 0, "Applied"), 10);
        assert_eq!(say(EventType::Warning, 0, "Forbidden"), 25);
        assert_eq!(say(EventType::Normal, 3, "Pruned"), 3);
        assert_eq!(say(EventType::Warning, 3, "Invalid"), 15);
        assert_eq!(say(EventType::Normal, 600, "Applied"), 10, "what is not said for long is not saved up");
    }

    #[test]
    fn a_long_note_ends_at_a_character() {
        assert_eq!(shorten("short"), "short");
        let note = "é".repeat(700);
        assert_eq!(shorten(&note).len(), 1000);
        assert_eq!(shorten(&format!("x{note}")).len(), 999);
    }
}
