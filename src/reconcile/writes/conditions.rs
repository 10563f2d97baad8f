//! Conditions of a status, as KEP-1623 wants them: one entry a type, whose transition time moves only with its status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::asked::PAUSED_CONDITION;

/// The spec means something. `False`: it must be edited, nothing else will help.
pub const SPEC_VALID: &str = "SpecValid";
/// What the spec asks for has been done.
pub const APPLIED: &str = "Applied";
/// Everything above.
pub const READY: &str = "Ready";

/// The reason of a condition that holds and needs no more words.
pub const AS_EXPECTED: &str = "AsExpected";

/// The longest message, in bytes. Some definitions take no more than 32 KiB, and refuse the whole status.
const LONGEST: usize = 2048;

/// The `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known yet.
    Unknown,
}

impl ConditionStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Builds the conditions of one pass from those of the pass before. Types not set in this pass are dropped.
#[derive(Debug)]
pub struct Conditions<'a> {
    previous: &'a [Condition],
    next: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    /// Starts from the conditions that the object bears. `generation` is that of the spec being reconciled.
    pub fn new(previous: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { previous, next: Vec::new(), generation, now }
    }

    /// Sets a condition. `reason` is a fixed word in CamelCase, `message` is for people; one that is too long is cut.
    pub fn set(&mut self, type_: &str, status: ConditionStatus, reason: &str, message: impl Into<String>) {
        let mut message: String = message.into();
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST));
            message.push('…');
        }
        let since = self
            .previous
            .iter()
            .find(|before| before.type_ == type_ && before.status == status.as_str())
            .map_or(Time(self.now), |before| before.last_transition_time.clone());
        self.next.retain(|condition| condition.type_ != type_);
        self.next.push(Condition {
            type_: type_.to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: self.generation,
            last_transition_time: since,
        });
    }

    /// Keeps a condition as it was before, if it was there.
    pub(in crate::reconcile) fn keep(&mut self, type_: &str) {
        self.next.extend(self.previous.iter().find(|before| before.type_ == type_).cloned());
    }

    /// Says that the object is paused. What else was said of it stays, but for whether it is applied, which is not known.
    pub(in crate::reconcile) fn pause(&mut self, (reason, message): (&str, String)) {
        let stays = |it: &&Condition| ![READY, APPLIED, PAUSED_CONDITION].contains(&it.type_.as_str());
        self.next = self.previous.iter().filter(stays).cloned().collect();
        self.set(APPLIED, ConditionStatus::Unknown, PAUSED_CONDITION, message.clone());
        self.set(PAUSED_CONDITION, ConditionStatus::True, reason, message);
    }

    /// Adds `Ready` and returns all: `False` if any is, else `Unknown` if any is, else `True`,
    /// with the reason and the message of the first that stands in its way.
    pub fn with_ready(mut self) -> Vec<Condition> {
        let blocking = [ConditionStatus::False, ConditionStatus::Unknown].into_iter().find_map(|status| {
            let first = self.next.iter().find(|condition| condition.status == status.as_str())?;
            Some((status, first.reason.clone(), first.message.clone()))
        });
        match blocking {
            Some((status, reason, message)) => self.set(READY, status, &reason, message),
            None => self.set(READY, ConditionStatus::True, AS_EXPECTED, ""),
        }
        self.next
    }
}

/// The reason of `Ready`, if it is not `True`.
pub fn not_ready(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == READY && condition.status != ConditionStatus::True.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(previous: &[Condition], now: i64, statuses: &[(&str, ConditionStatus)]) -> Vec<Condition> {
        let mut conditions = Conditions::new(previous, Some(3), at(now));
        for (type_, status) in statuses {
            conditions.set(type_, *status, &format!("{type_}Reason"), format!("{type_} message"));
        }
        conditions.with_ready()
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut conditions = Conditions::new(&[], None, at(1));
        conditions.set(APPLIED, ConditionStatus::False, "Invalid", format!("x{}", "é".repeat(40_000)));
        for condition in conditions.with_ready() {
            assert!(condition.message.len() < LONGEST + 4 && condition.message.ends_with("é…"), "{}", condition.type_);
        }
    }

    #[test]
    fn ready_sums_up() {
        use ConditionStatus::{False, True, Unknown};
        for (statuses, status, reason) in [
            (vec![("A", True), ("B", True)], "True", AS_EXPECTED),
            (vec![("A", True), ("B", Unknown)], "Unknown", "BReason"),
            (vec![("A", Unknown), ("B", False)], "False", "BReason"),
            (vec![("A", False), ("B", False)], "False", "AReason"),
        ] {
            let all = ready(&[], 1, &statuses);
            let last = all.last().unwrap();
            assert_eq!((&*last.type_, &*last.status, &*last.reason), (READY, status, reason), "{statuses:?}");
            assert_eq!(all.len(), statuses.len() + 1);
            assert_eq!(not_ready(&all).is_some(), status != "True");
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let first = ready(&[], 10, &[("A", ConditionStatus::True)]);
        let mut again = Conditions::new(&first, Some(4), at(20));
        again.set("A", ConditionStatus::True, "Other", "other words");
        let again = again.with_ready();
        assert_eq!(again[0].last_transition_time, Time(at(10)));
        assert_eq!((&*again[0].reason, again[0].observed_generation), ("Other", Some(4)));
        let turned = ready(&again, 30, &[("A", ConditionStatus::False)]);
        assert_eq!(turned[0].last_transition_time, Time(at(30)));
        assert_eq!(turned[1].last_transition_time, Time(at(30)));
    }

    #[test]
    fn the_same_pass_again_gives_the_same_conditions() {
        let first = ready(&[], 10, &[("A", ConditionStatus::True), ("B", ConditionStatus::Unknown)]);
        assert_eq!(ready(&first, 99, &[("A", ConditionStatus::True), ("B", ConditionStatus::Unknown)]), first);
    }

    #[test]
    fn a_paused_object_keeps_what_was_said_and_is_not_ready() {
        let before = ready(&[], 10, &[("SpecValid", ConditionStatus::True), (APPLIED, ConditionStatus::False)]);
        let paused = |previous: &[Condition], now| {
            let mut conditions = Conditions::new(previous, Some(4), at(now));
            conditions.pause(("Annotated", "words".to_owned()));
            conditions.with_ready()
        };
        let after = paused(&before, 20);
        let said: Vec<_> = after.iter().map(|it| (&*it.type_, &*it.status, &*it.reason)).collect();
        let expected = [
            ("SpecValid", "True", "SpecValidReason"),
            (APPLIED, "Unknown", "Paused"),
            (PAUSED_CONDITION, "True", "Annotated"),
            (READY, "Unknown", "Paused"),
        ];
        assert_eq!(said, expected);
        assert_eq!(paused(&after, 30), after, "it is said once");
    }

    #[test]
    fn a_type_that_is_no_longer_set_is_dropped_and_one_set_twice_appears_once() {
        let first = ready(&[], 10, &[("A", ConditionStatus::True), ("B", ConditionStatus::True)]);
        let next = ready(&first, 20, &[("A", ConditionStatus::True), ("A", ConditionStatus::False)]);
        let types: Vec<_> = next.iter().map(|c| &*c.type_).collect();
        assert_eq!(types, ["A", READY]);
    }
}
