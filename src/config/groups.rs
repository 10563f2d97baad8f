//! Which kinds share one Lease: those of a group, or all of them if the election is `Single`.

use super::{
    Election, Kind, LockKind,
    errors::Gathered,
    raw::Position,
    read::{LOCKS, STANDBYS},
    section::Located,
};

/// A Lease bears the names of its kinds in an annotation, and the API server takes 256 KiB of all annotations.
const NAMES_MOST: usize = 128 * 1024;

/// A kind with the places to point at when it does not agree with another one.
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: String,
    pub(super) kind_at: Position,
    pub(super) kind_path: String,
    /// `lease.name`, if it has one.
    pub(super) lease: Option<Located<String>>,
    /// `group`, if it has one.
    pub(super) group: Option<Located<String>>,
    pub(super) standby_at: (Position, String),
    /// `lock`, if it has one.
    pub(super) lock: Option<LockKind>,
    pub(super) lock_at: (Position, String),
}

impl Entry {
    /// Where its Lease's name comes from.
    fn lease_at(&self) -> (Position, &str) {
        let given = self.lease.as_ref().or(self.group.as_ref());
        given.map_or((self.kind_at, self.kind_path.as_str()), |given| (given.at, given.path.as_str()))
    }

    /// How a message refers to it.
    fn name(&self) -> String {
        format!("{} ({}, line {})", self.kind.name(), self.path, self.kind_at.line)
    }
}

/// Gives each kind the Lease of its group, and reports kinds that cannot share one, or share one unasked.
pub(super) fn share(entries: &mut [Entry], election: &Election, errors: &mut Gathered<'_>) {
    if let Election::Single { lease, lock } = election {
        for entry in entries.iter_mut() {
            not_beside_single(entry, lease, errors);
            entry.kind.lock = *lock;
        }
        let all: Vec<_> = (0..entries.len()).collect();
        agree(entries, &all, "election.mode is Single, and all kinds", errors);
        for entry in entries.iter_mut() {
            entry.kind.lease_name.clone_from(lease);
            entry.kind.lease_group = Some(lease.clone());
        }
        return;
    }
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(group) = &entry.group else { continue };
        match groups.iter_mut().find(|(name, _)| *name == group.value) {
            Some((_, members)) => members.push(index),
            None => groups.push((group.value.clone(), vec![index])),
        }
    }
    for (name, members) in &groups {
        agree(entries, members, &format!("the kinds of the group `{name}`"), errors);
        let given = members.iter().find_map(|member| entries[*member].lease.as_ref());
        let lease = given.map_or(name, |lease| &lease.value).clone();
        members.iter().for_each(|member| entries[*member].kind.lease_name.clone_from(&lease));
    }
    distinct(entries, errors);
}

fn not_beside_single(entry: &Entry, lease: &str, errors: &mut Gathered<'_>) {
    if let Some(group) = &entry.group {
        let message =
            "election.mode is Single, which makes one group of all kinds; remove `group` or write `mode: PerKind`";
        errors.add(group.at, &group.path, message);
    }
    if let Some(own) = &entry.lease {
        let message = format!(
            "election.mode is Single, and all kinds share the Lease `{lease}`; remove `lease` here or write `mode: PerKind`"
        );
        errors.add(own.at, &own.path, message);
    }
    if let Some(lock) = entry.lock {
        let lock = word(&LOCKS, lock);
        let message = format!(
            "election.mode is Single, and all kinds share one lock; write `election: {{lock: {lock}}}`, or `mode: PerKind`"
        );
        errors.add(entry.lock_at.0, &entry.lock_at.1, message);
    }
}

/// What belongs to a Lease is the same for each kind that shares it. `who`: these kinds, in words that go on "share one Lease".
fn agree(entries: &[Entry], members: &[usize], who: &str, errors: &mut Gathered<'_>) {
    let Some(first) = members.first().map(|first| &entries[*first]) else { return };
    for entry in members.iter().map(|member| &entries[*member]) {
        if entry.kind.standby != first.kind.standby {
            let message = format!(
                "{who} share one Lease and stand by together: {} here, and {} for {}; write the same for each of them",
                word(&STANDBYS, entry.kind.standby),
                word(&STANDBYS, first.kind.standby),
                first.name()
            );
            errors.add(entry.standby_at.0, &entry.standby_at.1, message);
        }
        if entry.kind.lock != first.kind.lock {
            let message = format!(
                "{who} share one lock: {} here, and {} for {}; write the same `lock` for each of them",
                word(&LOCKS, entry.kind.lock),
                word(&LOCKS, first.kind.lock),
                first.name()
            );
            errors.add(entry.lock_at.0, &entry.lock_at.1, message);
        }
    }
    let mut named =
        members.iter().map(|member| &entries[*member]).filter_map(|entry| Some((entry, entry.lease.as_ref()?)));
    if let Some((first, lease)) = named.next() {
        for (_, other) in named.filter(|(_, other)| other.value != lease.value) {
            let message = format!(
                "{who} share one Lease, and {} calls it `{}`; write the same name, or leave it out here",
                first.name(),
                lease.value
            );
            errors.add(other.at, &other.path, message);
        }
    }
    let names: usize = members.iter().map(|member| entries[*member].kind.name().len() + 1).sum();
    if names > NAMES_MOST {
        let message = format!(
            "{who} share one Lease, which bears their names: {names} bytes are more than the {NAMES_MOST} that fit; split them"
        );
        errors.add(first.kind_at, &first.kind_path, message);
    }
}

/// Kinds that share a Lease say so.
fn distinct(entries: &[Entry], errors: &mut Gathered<'_>) {
    for (index, new) in entries.iter().enumerate() {
        let lease = new.kind.lease_name.to_ascii_lowercase();
        let same = |other: &&Entry| {
            other.kind.lease_name.to_ascii_lowercase() == lease
                && (other.kind.lease_group.is_none() || other.kind.lease_group != new.kind.lease_group)
        };
        let Some(first) = entries[..index].iter().find(same) else { continue };
        let (line, (at, path)) = (first.lease_at().0.line, new.lease_at());
        let message = format!(
            "the Lease `{lease}` is that of {} ({}, line {line}) already, and kinds share a Lease only within a group; \
             set another lease.name, or give both the same `group`",
            first.kind.name(),
            first.path,
        );
        errors.add(at, path, message);
    }
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, one)| *one == value).map_or("", |(word, _)| word)
}
