//! Events: what happened to an object, as `kubectl describe` shows it. Nothing ever depends on one.

use std::time::Duration;

use dashmap::DashMap;
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
/// An event that takes longer is given up: the reconciliation waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1000;

/// Publishes events for the objects of one kind during one term.
pub struct Events {
    recorder: Recorder,
    action: String,
    said: Said,
}

impl Events {
    /// Publishes through the term's client, in the name of its kind.
    pub fn new(term: &Term) -> Self {
        let reporter =
            Reporter { controller: field_manager(&term.kind().kind), instance: Some(term.holder().to_owned()) };
        Self { recorder: Recorder::new(term.client(), reporter), action: "Reconcile".to_owned(), said: Said::default() }
    }

    /// Says that something was done.
    pub async fn normal(&self, about: &ObjectReference, reason: &str, note: &str) {
        self.publish(EventType::Normal, about, reason, note).await;
    }

    /// Says that something stands in the way.
    pub async fn warning(&self, about: &ObjectReference, reason: &str, note: &str) {
        self.publish(EventType::Warning, about, reason, note).await;
    }

    #[expect(clippy::disallowed_methods, reason = "how often an event is published decides nothing")]
    async fn publish(&self, type_: EventType, about: &ObjectReference, reason: &str, note: &str) {
        let uid = about.uid.as_deref().unwrap_or_default();
        if !self.said.may_say(uid, reason, Instant::now()) {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shorten(note).to_owned()),
            action: self.action.clone(),
            secondary: None,
        };
        match timeout(PATIENCE, self.recorder.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(error = %describe(&error), reason, "event not published"),
            Err(_) => debug!(reason, "event given up"),
        }
    }
}

/// What was said of which object, and when. Only in memory: a new leader speaks of changes it makes, not of what it finds.
#[derive(Default)]
struct Said {
    last: DashMap<(String, String), Instant>,
}

impl Said {
    fn may_say(&self, uid: &str, reason: &str, now: Instant) -> bool {
        self.last.retain(|_, said| now.duration_since(*said) < QUIET);
        let mut may = false;
        self.last.entry((uid.to_owned(), reason.to_owned())).or_insert_with(|| {
            may = true;
            now
        });
        may
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
        let (said, start) = (Said::default(), Instant::now());
        for (after, uid, reason, expected) in [
            (0, "a", "Applied", true),
            (299, "a", "Applied", false),
            (299, "b", "Applied", true),
            (299, "a", "Pruned", true),
            (300, "a", "Applied", true),
            (301, "a", "Applied", false),
        ] {
            let now = start + Duration::from_secs(after);
            assert_eq!(said.may_say(uid, reason, now), expected, "{after} s, {uid}, {reason}");
        }
    }

    #[test]
    fn a_long_note_ends_at_a_character() {
        assert_eq!(shorten("short"), "short");
        let note = "é".repeat(700);
        assert_eq!(shorten(&note).len(), 1000);
        assert_eq!(shorten(&format!("x{note}")).len(), 999);
    }
}
