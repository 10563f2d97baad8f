//! The status of an object after a pass. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
    jiff::Timestamp,
};
use serde_json::{Map, Value};

use super::{
    fights::CONTESTED,
    parent::{Status, own},
    plan::ON_DELETE,
};
use crate::reconcile::{
    asked,
    conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions, SPEC_VALID},
    stages::{Outcome, Trouble},
};

/// The children do what they are there for.
pub(super) const CHILDREN_READY: &str = "ChildrenReady";
/// What children wait for before they are written is ready. It is said only while it is not.
pub(super) const DEPENDENCIES_READY: &str = "DependenciesReady";
/// An expression has no value.
pub(super) const EXPRESSION_FAILED: &str = "ExpressionFailed";
/// Children that a message names.
const NAMED: usize = 3;

/// What was done of what the object shall have, and what is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// What was refused, or is in the way.
    pub(super) trouble: Vec<Trouble>,
    /// Children that are not desired yet, and what they wait for.
    pub(super) waiting: Vec<String>,
    /// Children that are not written before others are ready.
    pub(super) held: Vec<String>,
    /// Children that are made anew when they are deleted.
    pub(super) outdated: Vec<String>,
    /// Children that are not ready.
    pub(super) unready: Vec<String>,
    /// What could not be computed besides the children.
    pub(super) failed: Vec<String>,
    /// The fields of the status that the front end computes.
    pub(super) own: Map<String, Value>,
    /// The watch that fails: what is known of the children may be old.
    pub(super) stale: Option<String>,
}

/// The status after a pass, given the one before.
pub(super) fn status(current: Option<&Status>, meta: &ObjectMeta, outcome: &Outcome<Done>, now: Timestamp) -> Status {
    let previous = current.map(|status| &*status.conditions).unwrap_or_default();
    let generation = meta.generation;
    let mut conditions = Conditions::new(previous, generation, now);
    let mut fields = current.map(|status| status.own.clone()).unwrap_or_default();
    let mut observed = generation;
    match outcome {
        Outcome::Paused => {
            // What was reported before is about an older spec, and stays.
            observed = current.and_then(|status| status.observed_generation);
            conditions.pause(asked::paused(meta));
        }
        Outcome::Invalid(Trouble { reason, message }) => {
            conditions.set(SPEC_VALID, ConditionStatus::False, reason, message);
            conditions.set(APPLIED, ConditionStatus::Unknown, reason, "");
        }
        Outcome::Blocked(Trouble { reason, message }) => {
            // Since when they wait is not forgotten for that.
            conditions.keep(DEPENDENCIES_READY);
            conditions.set(APPLIED, ConditionStatus::False, reason, message);
        }
        Outcome::Done(Done { trouble, waiting, held, outdated, unready, failed, own: said, stale }) => {
            if failed.is_empty() {
                conditions.set(SPEC_VALID, ConditionStatus::True, AS_EXPECTED, "");
            } else {
                conditions.set(
                    SPEC_VALID,
                    ConditionStatus::False,
                    EXPRESSION_FAILED,
                    few(failed.iter().map(String::as_str)),
                );
            }
            let waiting: Vec<_> = waiting.iter().chain(held).map(String::as_str).collect();
            match (trouble.first(), waiting.is_empty()) {
                (Some(first), _) => {
                    let message = few(trouble.iter().map(|trouble| trouble.message.as_str()));
                    conditions.set(APPLIED, ConditionStatus::False, first.reason, message);
                }
                (None, false) => {
                    let message = few(waiting.iter().copied());
                    conditions.set(APPLIED, ConditionStatus::Unknown, "WaitingFor", message);
                }
                (None, true) if !outdated.is_empty() => {
                    let all = few(outdated.iter().map(String::as_str));
                    let message = format!("not as the template says, and made anew when it is deleted: {all}");
                    conditions.set(APPLIED, ConditionStatus::True, ON_DELETE, message);
                }
                (None, true) => conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, ""),
            }
            // Its transition time tells since when they wait.
            if !held.is_empty() {
                let message = few(held.iter().map(String::as_str));
                conditions.set(DEPENDENCIES_READY, ConditionStatus::Unknown, "NotReady", message);
            }
            if let Some(why) = stale {
                conditions.set(CHILDREN_READY, ConditionStatus::Unknown, "WatchFailed", why);
            } else if unready.is_empty() && waiting.is_empty() && trouble.is_empty() {
                conditions.set(CHILDREN_READY, ConditionStatus::True, AS_EXPECTED, "");
            } else {
                conditions.set(
                    CHILDREN_READY,
                    ConditionStatus::Unknown,
                    "Progressing",
                    few(unready.iter().map(String::as_str)),
                );
            }
            fields = own(said);
        }
    }
    Status {
        observed_generation: observed,
        conditions: conditions.with_ready(),
        shard: current.and_then(|status| status.shard.clone()),
        own: fields,
    }
}

/// What the conditions say of contested children.
pub(super) fn contested(conditions: &[Condition]) -> Option<&str> {
    let applied = conditions.iter().find(|condition| condition.type_ == APPLIED && condition.reason == CONTESTED);
    applied.map(|condition| condition.message.as_str())
}

fn few<'a>(all: impl Iterator<Item = &'a str> + Clone) -> String {
    let count = all.clone().count();
    let named: Vec<&str> = all.take(NAMED).collect();
    let more = if count > NAMED { format!("; and {} more", count - NAMED) } else { String::new() };
    named.join("; ") + &more
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta() -> ObjectMeta {
        ObjectMeta { generation: Some(4), ..ObjectMeta::default() }
    }

    fn done(trouble: Vec<Trouble>, waiting: &[&str], unready: &[&str]) -> Outcome<Done> {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Outcome::Done(Done { trouble, waiting: texts(waiting), unready: texts(unready), ..Done::default() })
    }

    fn shown(outcome: &Outcome<Done>) -> Vec<(String, String, String)> {
        let status = status(None, &meta(), outcome, Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, Some(4));
        let shown = status.conditions.into_iter();
        shown.map(|condition| (condition.type_, condition.status, condition.reason)).collect()
    }

    #[test]
    fn conditions_say_what_stands_in_the_way() {
        for (outcome, expected) in [
            (
                done(vec![], &[], &[]),
                vec![("SpecValid", "True"), ("Applied", "True"), ("ChildrenReady", "True"), ("Ready", "True")],
            ),
            (
                done(vec![], &[], &["a"]),
                vec![("SpecValid", "True"), ("Applied", "True"), ("ChildrenReady", "Unknown"), ("Ready", "Unknown")],
            ),
            (
                done(vec![], &["b waits for a"], &[]),
                vec![("SpecValid", "True"), ("Applied", "Unknown"), ("ChildrenReady", "Unknown"), ("Ready", "Unknown")],
            ),
            (
                done(vec![Trouble::new("ChildConflict", "x")], &["b"], &[]),
                vec![("SpecValid", "True"), ("Applied", "False"), ("ChildrenReady", "Unknown"), ("Ready", "False")],
            ),
            (
                Outcome::Invalid(Trouble::new("ExpressionFailed", "x")),
                vec![("SpecValid", "False"), ("Applied", "Unknown"), ("Ready", "False")],
            ),
            (
                Outcome::Done(Done { failed: vec!["status.x: a number is too large".to_owned()], ..Done::default() }),
                vec![("SpecValid", "False"), ("Applied", "True"), ("ChildrenReady", "True"), ("Ready", "False")],
            ),
            (Outcome::Blocked(Trouble::new("TypeNotServed", "x")), vec![("Applied", "False"), ("Ready", "False")]),
        ] {
            let shown = shown(&outcome);
            let shown: Vec<_> = shown.iter().map(|(type_, status, _)| (type_.as_str(), status.as_str())).collect();
            assert_eq!(shown, expected, "{outcome:?}");
        }
    }

    #[test]
    fn what_the_front_end_said_stays_while_it_cannot_speak() {
        let own = json!({"phase": "Active"}).as_object().unwrap().clone();
        let outcome = Outcome::Done(Done { own, ..Done::default() });
        let before = status(None, &meta(), &outcome, Timestamp::UNIX_EPOCH);
        let after = status(
            Some(&before),
            &meta(),
            &Outcome::Invalid(Trouble::new("ExpressionFailed", "x")),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(&*after.own, r#"{"phase":"Active"}"#);
        assert_eq!(status(Some(&before), &meta(), &outcome, Timestamp::MAX), before, "nothing new, whatever the time");
    }

    #[test]
    fn what_waits_for_another_to_be_ready_says_since_when() {
        let said = |before: Option<&Status>, held: &[&str], second| {
            let held = held.iter().map(|text| (*text).to_owned()).collect();
            let outcome = Outcome::Done(Done { held, ..Done::default() });
            status(before, &meta(), &outcome, Timestamp::from_second(second).unwrap())
        };
        let of = |status: &Status, type_: &str| status.conditions.iter().find(|it| it.type_ == type_).cloned();
        let first = said(None, &["app waits until db is ready: no"], 10);
        assert_eq!(of(&first, "Applied").unwrap().reason, "WaitingFor");
        let waits = of(&first, DEPENDENCIES_READY).unwrap();
        assert_eq!((&*waits.status, &*waits.message), ("Unknown", "app waits until db is ready: no"));
        let blocked = Outcome::Blocked(Trouble::new("Adopting", "x"));
        let blocked = status(Some(&first), &meta(), &blocked, Timestamp::from_second(20).unwrap());
        let later = said(Some(&blocked), &["app waits until db is ready: still not"], 30);
        assert_eq!(of(&later, DEPENDENCIES_READY).unwrap().last_transition_time, waits.last_transition_time);
        assert_eq!(of(&said(Some(&later), &[], 40), DEPENDENCIES_READY), None);
    }

    #[test]
    fn what_is_made_anew_by_a_deletion_is_named_and_in_no_ones_way() {
        let outcome = Outcome::Done(Done { outdated: vec!["Job ns/x".to_owned()], ..Done::default() });
        let all = status(None, &meta(), &outcome, Timestamp::UNIX_EPOCH).conditions;
        assert_eq!((&*all[1].status, &*all[1].reason), ("True", ON_DELETE));
        assert!(all[1].message.ends_with("Job ns/x") && all[3].status == "True", "{all:?}");
    }

    #[test]
    fn a_watch_that_fails_shows() {
        let stale = Some("the watch of v1 ConfigMap fails: 500".to_owned());
        let shown = shown(&Outcome::Done(Done { stale, ..Done::default() }));
        let expected = ("ChildrenReady".to_owned(), "Unknown".to_owned(), "WatchFailed".to_owned());
        assert!(shown.contains(&expected), "{shown:?}");
        assert_eq!(shown.last().unwrap().1, "Unknown", "Ready");
    }

    #[test]
    fn a_message_names_a_few() {
        assert_eq!(few(["a", "b", "c", "d", "e"].into_iter()), "a; b; c; and 2 more");
    }
}
