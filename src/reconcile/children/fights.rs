//! Decides whether another writer undoes our writes again and again, and how long a child is left to that writer. Pure.
//!
//! A child that is to be written just as it was written last has been undone in between. That is set right at once
//! [`ROUNDS`] times, and less and less often after that: two controllers that disagree would else write without end. A child
//! that stays as it was written for [`QUIET`] is fought over no more.
//!
//! All of it is in memory and ends with the term. What a later term finds in the status of an object, that a child of it is
//! contested, counts as [`ROUNDS`] rounds: a take-over costs such a child one write at the most before it waits again.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde_json::Value;

use super::{Key, applied::fields};
use crate::protocol::moment::Moment;

/// The reason for a child that another writer changes back each time.
pub(super) const CONTESTED: &str = "Contested";
/// So often in a row is set right at once what was undone.
const ROUNDS: u32 = 4;
/// What is undone later than this after it was written is no further round.
const QUIET: Duration = Duration::from_secs(60);
/// The first wait between two writes of a contested child, and the longest.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Children that are remembered at a time.
const MOST: usize = 4096;
/// Fields and writers that are named.
const NAMED: usize = 3;

/// Whether a child that is not as desired is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is written.
    Write,
    /// It is left as it is until then. `None`: the writer that undoes it is not known yet in this round.
    Wait { until: Moment, rival: Option<Rival> },
}

/// A writer that undoes ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rival {
    /// Field managers, a few of them.
    pub(super) managers: Vec<String>,
    /// For people.
    pub(super) message: String,
}

/// The children of a kind that were written lately.
#[derive(Debug, Default)]
pub(super) struct Fights {
    by_child: HashMap<u64, Fight>,
}

#[derive(Debug)]
struct Fight {
    /// Of what was written last.
    digest: u64,
    written_at: Moment,
    /// So often in a row it was undone.
    rounds: u32,
    /// The last write was undone, and that is counted.
    is_undone: bool,
    /// The writer is known in this round.
    is_named: bool,
    rival: Option<Rival>,
}

impl Fight {
    fn new(digest: u64, rounds: u32, written_at: Moment) -> Self {
        Self { digest, written_at, rounds, is_undone: false, is_named: false, rival: None }
    }

    fn is_contested(&self) -> bool {
        self.rounds >= ROUNDS
    }

    fn due(&self) -> Moment {
        let doublings = self.rounds.saturating_sub(ROUNDS);
        let wait = 1_u32.checked_shl(doublings).map_or(LONGEST, |factor| FIRST.saturating_mul(factor));
        self.written_at + wait.min(LONGEST)
    }
}

impl Fights {
    /// Whether a child that is not as desired is written now. `was_contested`: an earlier term has reported it as contested.
    pub(super) fn decide(&mut self, key: &Key, digest: &str, was_contested: bool, now: Moment) -> Decision {
        let (number, digest) = (hash(key), hash(digest));
        if was_contested && !self.by_child.contains_key(&number) {
            self.keep(number, Fight { is_undone: true, ..Fight::new(digest, ROUNDS, now) });
        }
        // A write that differs from the last one answers no other writer.
        let Some(fight) = self.by_child.get_mut(&number).filter(|fight| fight.digest == digest) else {
            return Decision::Write;
        };
        if !std::mem::replace(&mut fight.is_undone, true) {
            let goes_on = now.since(fight.written_at) < QUIET;
            fight.rounds = if goes_on { fight.rounds.saturating_add(1) } else { 1 };
        }
        match fight.due() {
            until if fight.is_contested() && now < until => {
                Decision::Wait { until, rival: fight.rival.clone().filter(|_| fight.is_named) }
            }
            _ => Decision::Write,
        }
    }

    /// A child is as it was written. Until when, and with whom, it counts as contested nevertheless.
    pub(super) fn settled(&mut self, key: &Key, now: Moment) -> Option<(Moment, Rival)> {
        let number = hash(key);
        let fight = self.by_child.get_mut(&number)?;
        fight.is_undone = false;
        if now.since(fight.written_at) >= QUIET {
            self.by_child.remove(&number);
            return None;
        }
        let rival = fight.rival.clone().filter(|_| fight.is_contested())?;
        Some((fight.written_at + QUIET, rival))
    }

    /// A child was written.
    pub(super) fn wrote(&mut self, key: &Key, digest: &str, now: Moment) {
        let (number, digest) = (hash(key), hash(digest));
        match self.by_child.get_mut(&number) {
            Some(fight) => {
                // Another spec ends a fight only if no writer undoes that.
                if fight.digest != digest && !fight.is_contested() {
                    fight.rounds = 0;
                }
                (fight.digest, fight.written_at) = (digest, now);
                (fight.is_undone, fight.is_named) = (false, false);
            }
            None => self.keep(number, Fight::new(digest, 0, now)),
        }
    }

    /// Keeps the writer that undoes a contested child.
    pub(super) fn named(&mut self, key: &Key, rival: Rival) {
        if let Some(fight) = self.by_child.get_mut(&hash(key)) {
            (fight.is_named, fight.rival) = (true, Some(rival));
        }
    }

    /// How many children are contested. What is quiet for long is none, though it was not looked at since.
    pub(super) fn contested(&self, now: Moment) -> usize {
        let is_fresh = |fight: &&Fight| {
            let last = if fight.is_undone { fight.due() } else { fight.written_at };
            now < last + QUIET
        };
        self.by_child.values().filter(|fight| fight.is_contested()).filter(is_fresh).count()
    }

    /// Remembers no more than [`MOST`]: what was never undone goes first, then what was written longest ago.
    fn keep(&mut self, number: u64, fight: Fight) {
        if self.by_child.len() >= MOST {
            self.by_child.retain(|_, fight| fight.rounds > 0);
        }
        if self.by_child.len() >= MOST
            && let Some(oldest) =
                self.by_child.iter().min_by_key(|(_, fight)| fight.written_at).map(|(oldest, _)| *oldest)
        {
            self.by_child.remove(&oldest);
        }
        self.by_child.insert(number, fight);
    }
}

/// Never leaves the process.
fn hash(of: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Who has undone `object`, which `manager` has applied, by what is there now. Names fields and writers, and no value.
pub(super) fn rival(key: &Key, live: Option<&Value>, object: &Value, manager: &str) -> Rival {
    let Some(live) = live else {
        let message = format!("{key}: another writer deletes it each time it is there: {ADVICE}");
        return Rival { managers: Vec::new(), message };
    };
    let nothing = Value::Object(serde_json::Map::new());
    let owned = fields(live, manager, "Apply").or_else(|| fields(live, manager, "Update")).unwrap_or(&nothing);
    let mut lost = Vec::new();
    collect(owned, &with_names_removed(object), &mut Vec::new(), &mut lost);
    let others = others(live, manager);
    let owns_any = |fields: &Value| lost.iter().any(|path| owns(fields, path));
    let mut managers: Vec<String> =
        others.iter().filter(|(_, fields)| owns_any(fields)).map(|(name, _)| (*name).to_owned()).collect();
    if managers.is_empty() && lost.is_empty() {
        // All fields are ours by name: it is the same program that says something else.
        managers.push(manager.to_owned());
    }
    managers.sort();
    managers.dedup();
    let who = match &managers[..] {
        [] => "another writer".to_owned(),
        some => listed("field manager", some),
    };
    let mut lost: Vec<String> = lost.iter().map(|path| shown(path)).collect();
    lost.sort();
    lost.dedup();
    let what = if lost.is_empty() { "what is applied".to_owned() } else { listed("field", &lost) };
    managers.truncate(NAMED);
    Rival { managers, message: format!("{key}: {who} changes {what} back each time: {ADVICE}") }
}

const ADVICE: &str =
    "let one of the two write it; meanwhile it is written less and less often, at last every 5 minutes";

fn listed(what: &str, all: &[String]) -> String {
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let plural = if all.len() == 1 { "" } else { "s" };
    let more = if all.len() > NAMED { format!(" and {} more", all.len() - NAMED) } else { String::new() };
    format!("{what}{plural} {named}{more}")
}

/// The writers of an object, a few of them.
pub(super) fn writers(live: &Value) -> Vec<String> {
    let mut all: Vec<_> = others(live, "").into_iter().map(|(name, _)| name.to_owned()).collect();
    all.sort();
    all.dedup();
    all.truncate(NAMED);
    all
}

/// The fields of the other writers of the object itself, by writer.
fn others<'a>(live: &'a Value, manager: &str) -> Vec<(&'a str, &'a Value)> {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let is_other = |entry: &&Value| {
        entry["manager"].as_str().is_some_and(|name| name != manager)
            && entry.get("subresource").is_none_or(|part| part.is_null() || *part == "")
    };
    let of = |entry: &'a Value| Some((entry["manager"].as_str()?, entry.get("fieldsV1")?));
    entries.into_iter().flatten().filter(is_other).filter_map(of).collect()
}

/// Keys of `fieldsV1`, from the outermost.
type Path = Vec<String>;

/// What no writer owns by applying it.
fn with_names_removed(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(all) = object.as_object_mut() {
        all.retain(|name, _| !["apiVersion", "kind"].contains(&name.as_str()));
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !["name", "namespace", "uid"].contains(&name.as_str()));
    }
    object
}

/// The fields of `value` that are not among those that are owned.
fn collect(owned: &Value, value: &Value, at: &mut Path, lost: &mut Vec<Path>) {
    let Some(owned) = owned.as_object() else { return };
    let mut each = |key: Option<String>, value: &Value| match key.as_ref().and_then(|key| owned.get(key)) {
        // Nothing below it: it is owned as a whole.
        Some(below) if below.as_object().is_some_and(serde_json::Map::is_empty) => {}
        Some(below) => {
            at.extend(key);
            collect(below, value, at, lost);
            at.pop();
        }
        // All of it is lost: each field is told.
        None if value.as_object().is_some_and(|all| !all.is_empty()) && key.is_some() => {
            at.extend(key);
            collect(&Value::Object(serde_json::Map::new()), value, at, lost);
            at.pop();
        }
        None => lost.push(at.iter().cloned().chain(key).collect()),
    };
    match value {
        Value::Object(all) => {
            for (name, value) in all.iter().filter(|(_, value)| !value.is_null()) {
                each(Some(format!("f:{name}")), value);
            }
        }
        // An item that is not found is told as its list.
        Value::Array(items) => items.iter().for_each(|item| each(key_of(owned.keys(), item), item)),
        _ => {}
    }
}

/// The key of an item of a list.
fn key_of<'a>(mut keys: impl Iterator<Item = &'a String>, item: &Value) -> Option<String> {
    let is_it = |key: &&String| match (key.strip_prefix("v:"), key.strip_prefix("k:")) {
        (Some(value), _) => serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item),
        (_, Some(keys)) => serde_json::from_str::<serde_json::Map<String, Value>>(keys)
            .is_ok_and(|keys| keys.iter().all(|(name, value)| item.get(name).is_none_or(|own| own == value))),
        _ => false,
    };
    keys.find(is_it).cloned()
}

fn owns(fields: &Value, path: &[String]) -> bool {
    let mut below = fields;
    for key in path {
        // Nothing below it: it is owned as a whole.
        if below.as_object().is_some_and(serde_json::Map::is_empty) {
            return true;
        }
        let Some(next) = below.get(key) else { return false };
        below = next;
    }
    true
}

/// As a path of field names, without the keys of items, which are values.
fn shown(path: &[String]) -> String {
    path.iter().fold(String::new(), |path, key| match key.strip_prefix("f:") {
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) => format!("{path}.{name}"),
        None => format!("{path}[]"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reconcile::children::Type;

    fn key(name: &str) -> Key {
        Key { of: Arc::new(Type::new("", "v1", "ConfigMap")), namespace: Some("ns".to_owned()), name: name.to_owned() }
    }

    fn at(milliseconds: u64) -> Moment {
        Moment::after_origin(Duration::from_millis(milliseconds))
    }

    /// When a child is written that is undone at once each time, looked at every 100 ms.
    fn writes(fights: &mut Fights, key: &Key, from: u64, until: u64) -> Vec<u64> {
        let times = (from..until).step_by(100);
        times
            .filter(|time| {
                let writes = fights.decide(key, "d", false, at(*time)) == Decision::Write;
                if writes {
                    fights.wrote(key, "d", at(*time));
                } else {
                    fights.named(key, Rival::default());
                }
                writes
            })
            .collect()
    }

    #[test]
    fn a_few_rounds_are_answered_at_once_and_then_less_and_less_often() {
        let mut fights = Fights::default();
        let times = writes(&mut fights, &key("a"), 0, 2_000_000);
        // The first and three more; the fourth undoing is the first that waits.
        assert_eq!(times[..4], [0, 100, 200, 300]);
        let waits: Vec<u64> = times[3..].windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect();
        assert_eq!(waits[..9], [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(times.iter().filter(|time| **time < 60_000).count() <= 8, "{times:?}");
        assert_eq!(fights.contested(at(2_000_000)), 1);
    }

    #[test]
    fn quiet_ends_a_fight_and_until_then_it_is_told() {
        let mut fights = Fights::default();
        let last = *writes(&mut fights, &key("a"), 0, 20_000).last().unwrap();
        assert!(fights.settled(&key("a"), at(last + 59_000)).is_some());
        assert_eq!(fights.contested(at(last + 59_000)), 1);
        assert_eq!(fights.contested(at(last + 61_000)), 0);
        assert_eq!(fights.settled(&key("a"), at(last + 61_000)), None);
        assert_eq!(fights.decide(&key("a"), "d", false, at(last + 62_000)), Decision::Write);
        assert!(fights.by_child.is_empty());
    }

    #[test]
    fn who_undoes_a_child_now_and_then_is_answered_each_time() {
        let mut fights = Fights::default();
        for time in (0..100).map(|round| at(round * 61_000)) {
            assert_eq!(fights.decide(&key("a"), "d", false, time), Decision::Write);
            fights.wrote(&key("a"), "d", time);
        }
    }

    #[test]
    fn another_spec_is_written_at_once_and_the_fight_goes_on_where_it_was() {
        let mut fights = Fights::default();
        let last = *writes(&mut fights, &key("a"), 0, 1000).last().unwrap();
        assert_eq!(fights.decide(&key("a"), "other", false, at(last + 200)), Decision::Write);
        fights.wrote(&key("a"), "other", at(last + 200));
        assert!(matches!(fights.decide(&key("a"), "other", false, at(last + 300)), Decision::Wait { .. }));
    }

    #[test]
    fn a_later_term_begins_with_a_wait_if_the_status_says_so() {
        let mut fights = Fights::default();
        let decision = fights.decide(&key("a"), "d", true, at(1000));
        assert_eq!(decision, Decision::Wait { until: at(6000), rival: None });
        assert_eq!(fights.decide(&key("a"), "d", true, at(6000)), Decision::Write);
        fights.wrote(&key("a"), "d", at(6000));
        let decision = fights.decide(&key("a"), "d", true, at(6100));
        assert_eq!(decision, Decision::Wait { until: at(16_000), rival: None });
    }

    #[test]
    fn fields_and_managers_are_named_and_values_are_not() {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "web", "image": "i"}]}}},
        });
        let ours = json!({
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:name": {}}}}}},
        });
        let theirs = json!({"f:spec": {"f:replicas": {}}});
        let hands =
            json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {"f:image": {}}}}}}});
        let entry = |manager: &str, operation: &str, fields: &Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let mut managed = json!([
            entry("leasehold/webapp", "Apply", &ours),
            entry("scaler", "Update", &theirs),
            entry("kubectl-edit", "Update", &hands),
            entry("bystander", "Update", &json!({"f:metadata": {"f:annotations": {}}})),
        ]);
        let live = json!({"metadata": {"managedFields": managed}});
        let found = rival(&key("web"), Some(&live), &object, "leasehold/webapp");
        assert_eq!(found.managers, ["kubectl-edit", "scaler"]);
        let expected = "ConfigMap ns/web: field managers kubectl-edit, scaler changes fields spec.replicas, spec.template.spec.containers[].image back each time: ";
        assert!(found.message.starts_with(expected), "{}", found.message);

        // All fields are ours by name: it is another installation, or another version, that applies.
        managed = json!([entry(
            "leasehold/webapp",
            "Apply",
            &json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {}})
        )]);
        let live = json!({"metadata": {"managedFields": managed}});
        let found = rival(&key("web"), Some(&live), &object, "leasehold/webapp");
        assert_eq!(found.managers, ["leasehold/webapp"], "{}", found.message);
        assert!(rival(&key("web"), None, &object, "leasehold/webapp").message.contains("deletes it"));
    }

    proptest! {
        /// Whatever happens to however many children, memory is bounded, and so are the writes of each in any minute.
        #[test]
        fn writes_in_a_minute_are_bounded(gaps in prop::collection::vec(0_u64..20_000, 1..300)) {
            let (mut fights, mut time, mut times) = (Fights::default(), 0, Vec::new());
            for gap in gaps {
                time += gap;
                if fights.decide(&key("a"), "d", false, at(time)) == Decision::Write {
                    fights.wrote(&key("a"), "d", at(time));
                    times.push(time);
                }
            }
            for (number, first) in times.iter().enumerate() {
                let within = times[number..].iter().filter(|time| **time < first + 60_000).count();
                prop_assert!(within <= 8, "{times:?}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_fights_are_forgotten_last() {
        let mut fights = Fights::default();
        writes(&mut fights, &key("fought"), 0, 1000);
        for number in 0..3 * MOST {
            fights.wrote(&key(&number.to_string()), "d", at(2000));
            assert!(fights.by_child.len() <= MOST);
        }
        assert!(matches!(fights.decide(&key("fought"), "d", false, at(2000)), Decision::Wait { .. }));
    }
}
