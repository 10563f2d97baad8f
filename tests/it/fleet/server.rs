//! The API server, as far as Leases go: one counter of versions, one order of commits, and writes that name the version
//! they rest on.

use std::{collections::BTreeMap, rc::Rc};

use leasehold::protocol::{
    event::{Answer, Request},
    lease::{Record, Role, Version},
};

use super::host::NAMESPACE;
use crate::timeline::{Global, SECOND};

/// A commit: what was stored before it, and what is stored after it.
pub(super) struct Commit {
    pub(super) before: Option<Rc<Record>>,
    pub(super) after: Option<Rc<Record>>,
}

impl Commit {
    /// It changes who holds the Lease, or what a hand has left there.
    pub(super) fn is_unusual(&self) -> bool {
        let of = |record: &Option<Rc<Record>>| {
            record.as_ref().map(|it| (it.holder.clone(), it.duration, it.transitions, it.role))
        };
        of(&self.before) != of(&self.after)
    }
}

#[derive(Default)]
pub(super) struct Server {
    pub(super) leases: BTreeMap<String, Rc<Record>>,
    /// Each Lease as it was stored first.
    pub(super) backups: BTreeMap<String, Rc<Record>>,
    /// By uid: the most transitions that a Lease has had.
    pub(super) highest: BTreeMap<String, i32>,
    version: u64,
    uid: u64,
}

/// Whether the label is there that the watch selects by.
fn is_labelled(record: &Record) -> bool {
    record.role != Role::None
}

/// What a Lease is called here: by its name alone in the usual namespace.
pub(super) fn key_of(record: &Record) -> String {
    key(&record.namespace, &record.name)
}

fn key(namespace: &str, name: &str) -> String {
    if namespace == NAMESPACE { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Server {
    /// Carries a request out, at once and as a whole. `namespace`: where the Leases of its sender are.
    pub(super) fn carry_out(&mut self, now: Global, namespace: &str, request: Request) -> (Answer, Option<Commit>) {
        match request {
            Request::Get { lease } => (Answer::Found(self.leases.get(&key(namespace, &lease)).map(read)), None),
            Request::List => {
                let ours = self.leases.values().filter(|record| record.role != Role::None);
                (Answer::Listed(ours.map(read).collect()), None)
            }
            Request::Update { record, .. } if self.stores(&key_of(&record), &record.version) => {
                let commit = self.store(record);
                (Answer::Stored(commit.after.as_ref().map(read).unwrap()), Some(commit))
            }
            Request::Create { record, .. } if !self.leases.contains_key(&key_of(&record)) => {
                let commit = self.create(now, record);
                (Answer::Stored(commit.after.as_ref().map(read).unwrap()), Some(commit))
            }
            Request::Delete { lease, version, .. } if self.stores(&key(namespace, &lease), &version) => {
                (Answer::Deleted, self.delete(&key(namespace, &lease)))
            }
            Request::Update { .. } | Request::Create { .. } | Request::Delete { .. } => (Answer::Conflict, None),
        }
    }

    fn stores(&self, name: &str, version: &Version) -> bool {
        self.leases.get(name).is_some_and(|record| record.version == *version)
    }

    /// A hand changes what it likes.
    pub(super) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Record)) -> Option<Commit> {
        let before = self.leases.get(name)?;
        let mut record = Record::clone(before);
        change(&mut record);
        if record.holder != before.holder && record.holder_pod == before.holder_pod {
            // The annotation says of which holder it is true.
            record.holder_pod = None;
        }
        Some(self.store(record))
    }

    /// A hand deletes it.
    pub(super) fn delete(&mut self, name: &str) -> Option<Commit> {
        let before = self.leases.remove(name)?;
        self.version += 1;
        Some(Commit { before: Some(before), after: None })
    }

    pub(super) fn create(&mut self, now: Global, mut record: Record) -> Commit {
        self.uid += 1;
        record.version.uid = format!("u{}", self.uid);
        record.created = i64::try_from(now / SECOND).unwrap();
        self.store(record)
    }

    fn store(&mut self, mut record: Record) -> Commit {
        self.version += 1;
        record.version.resource_version = self.version.to_string();
        record.odd.clear();
        let highest = self.highest.entry(record.version.uid.clone()).or_default();
        *highest = record.transitions.max(*highest);
        let after = Rc::new(record);
        self.backups.entry(key_of(&after)).or_insert_with(|| Rc::clone(&after));
        let before = self.leases.insert(key_of(&after), Rc::clone(&after));
        Commit { before, after: Some(after) }
    }

    /// What a list of the watch shows.
    pub(super) fn listed(&self) -> Vec<Rc<Record>> {
        self.leases.values().filter(|record| is_labelled(record)).cloned().collect()
    }

    /// What the watch shows of a commit.
    pub(super) fn shown(&self, commit: &Commit) -> Option<Shown> {
        match (&commit.before, &commit.after) {
            (_, Some(after)) if is_labelled(after) => Some(Shown::Stored(Rc::clone(after))),
            (Some(before), _) if is_labelled(before) => {
                let mut gone = Record::clone(before);
                gone.version.resource_version = self.version.to_string();
                Some(Shown::Deleted(Rc::new(gone)))
            }
            _ => None,
        }
    }
}

/// What a watch shows.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Listed(Vec<Rc<Record>>),
    Stored(Rc<Record>),
    Deleted(Rc<Record>),
}

/// As a replica reads it.
pub(super) fn read(record: &Rc<Record>) -> Record {
    Record::clone(record).bounded()
}
