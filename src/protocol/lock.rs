//! What a shard's lock is made of, and how a lock of two objects is one [`Record`] to an election.
//!
//! A pair is client-go's MultiLock over a ConfigMap and a Lease: a process holds it only while both objects name it, so
//! that replicas with either lock alone and replicas with the pair exclude one another.

use super::lease::{Record, Role, Version};
pub use crate::config::LockKind;

/// The holder of a pair whose objects name two: client-go's `UnknownLeader`, which no process is.
pub const UNKNOWN_HOLDER: &str = "leaderelection.k8s.io/unknown";

/// Between the two parts of a pair's [`Version`].
pub(super) const AND: char = '+';

/// The two objects of a pair as one; `None` if neither exists. A part that does not exist yet is free: it is created by the
/// write that takes the pair.
pub fn pair(config_map: Option<Record>, lease: Option<Record>) -> Option<Record> {
    let version = Version {
        uid: both(&config_map, &lease, |version| &version.uid, ""),
        resource_version: both(&config_map, &lease, |version| &version.resource_version, "0"),
    };
    let (first, second) = match (config_map, lease) {
        (None, None) => return None,
        (Some(only), None) | (None, Some(only)) => return Some(Record { version, ..only }),
        (Some(first), Some(second)) => (first, second),
    };
    let holder = match (&first.holder, &second.holder) {
        (Some(a), Some(b)) if a != b => Some(UNKNOWN_HOLDER.to_owned()),
        (Some(holder), _) | (None, Some(holder)) => Some(holder.clone()),
        (None, None) => None,
    };
    let held = [&first, &second].into_iter().filter(|part| part.holder.is_some() || holder.is_none());
    // A part that says no duration counts as leases.duration, and so does the pair.
    let duration = held.map(|part| part.duration).reduce(|a, b| Some(a?.max(b?))).flatten();
    let holder_pod = match (&first.holder_pod, &second.holder_pod) {
        (Some(a), Some(b)) if a != b => None,
        (pod, other) => pod.clone().or_else(|| other.clone()),
    };
    // While a part is held its holder says who follows; of two that agree, or are free, the one that was written later.
    let later = second.version.newer_than(&first.version);
    let (by, other) = match (&first.holder, &second.holder) {
        (Some(_), None) => (&first, &second),
        (None, Some(_)) => (&second, &first),
        _ if later => (&second, &first),
        _ => (&first, &second),
    };
    Some(Record {
        version,
        created: first.created.max(second.created),
        instance: first.instance.clone().or_else(|| second.instance.clone()),
        role: if first.role == Role::None { second.role } else { first.role },
        holder_pod: holder_pod.filter(|_| holder.as_deref() != Some(UNKNOWN_HOLDER)),
        holder,
        duration,
        transitions: first.transitions.max(second.transitions),
        successor: by.successor.clone(),
        // A hand-over is asked for on the Lease, and taken back there.
        wanted: second.wanted.clone(),
        weight: by.weight.or(other.weight),
        kinds: if by.kinds.is_empty() { other.kinds.clone() } else { by.kinds.clone() },
        odd: [first.odd, second.odd].concat(),
        ..second
    })
}

fn both(a: &Option<Record>, b: &Option<Record>, of: impl Fn(&Version) -> &String, none: &str) -> String {
    let text = |record: &Option<Record>| record.as_ref().map_or(none.to_owned(), |record| of(&record.version).clone());
    format!("{}{AND}{}", text(a), text(b))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn part(uid: &str, version: u64, holder: Option<&str>, transitions: i32) -> Option<Record> {
        Some(Record {
            name: "widget.example.com".to_owned(),
            version: Version { uid: uid.to_owned(), resource_version: version.to_string() },
            role: Role::Shard,
            holder: holder.map(str::to_owned),
            duration: Some(Duration::from_secs(if holder.is_some() { 15 } else { 1 })),
            transitions,
            ..Record::default()
        })
    }

    fn of(config_map: Option<Record>, lease: Option<Record>) -> (Option<String>, i32, Option<u64>) {
        let pair = pair(config_map, lease).unwrap();
        (pair.holder, pair.transitions, pair.duration.map(|duration| duration.as_secs()))
    }

    #[test]
    fn a_pair_is_held_by_whom_its_parts_name() {
        let some = |holder: &str| Some(holder.to_owned());
        assert_eq!(pair(None, None), None);
        assert_eq!(
            of(part("c", 5, Some("a"), 3), None),
            (some("a"), 3, Some(15)),
            "a replica with the ConfigMap alone"
        );
        assert_eq!(of(None, part("l", 5, Some("a"), 3)), (some("a"), 3, Some(15)), "a replica with the Lease alone");
        assert_eq!(of(part("c", 5, Some("a"), 3), part("l", 6, Some("a"), 3)), (some("a"), 3, Some(15)));
        assert_eq!(of(part("c", 7, None, 3), part("l", 6, Some("a"), 3)), (some("a"), 3, Some(15)), "half released");
        assert_eq!(of(part("c", 7, Some("a"), 4), part("l", 6, None, 3)), (some("a"), 4, Some(15)), "half taken");
        assert_eq!(of(part("c", 7, None, 3), part("l", 8, None, 3)), (None, 3, Some(1)));
        assert_eq!(of(part("c", 7, Some("a"), 4), part("l", 8, Some("b"), 9)), (some(UNKNOWN_HOLDER), 9, Some(15)));
    }

    #[test]
    fn of_two_versions_of_a_pair_one_is_newer_only_if_no_part_is_older() {
        let version = |c: u64, l: u64| pair(part("c", c, None, 0), part("l", l, None, 0)).unwrap().version;
        assert!(version(7, 6).newer_than(&version(5, 6)) && version(7, 8).newer_than(&version(5, 6)));
        assert!(!version(5, 6).newer_than(&version(7, 6)) && !version(5, 6).newer_than(&version(5, 6)));
        assert!(!version(7, 6).newer_than(&version(5, 8)) && !version(5, 8).newer_than(&version(7, 6)));
        let alone = pair(part("c", 5, None, 0), None).unwrap().version;
        assert!(version(5, 6).newer_than(&alone), "a part that is made");
        assert!(alone.grows_into(&version(5, 6)) && !version(5, 6).grows_into(&alone));
        assert_eq!(version(5, 8).number(), Some(8), "what was written last");
    }
}
