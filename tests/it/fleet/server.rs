//! The API server, as far as Leases go: one counter of versions, and writes that name the version they rest on.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use leasehold::protocol::{
    election::{Observation, Version},
    roster::{Holding, Member, Profile},
};

use crate::timeline::Global;

/// A Lease of a shard, or of a replica if it has a profile.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) created: Global,
    /// When its holder wrote it last.
    pub(super) renewed: Global,
    pub(super) holder: Option<String>,
    pub(super) duration: Duration,
    pub(super) transitions: i32,
    /// Uid of the Pod, and the identity it is true of.
    pub(super) holder_pod: Option<(String, String)>,
    pub(super) successor: Option<String>,
    pub(super) wanted: Option<String>,
    pub(super) weight: Option<u32>,
    pub(super) profile: Option<Profile>,
}

impl Lease {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: Version { uid: String::new(), resource_version: String::new() },
            created: 0,
            renewed: 0,
            holder: None,
            duration: Duration::ZERO,
            transitions: 0,
            holder_pod: None,
            successor: None,
            wanted: None,
            weight: None,
            profile: None,
        }
    }

    pub(super) fn observation(&self) -> Observation {
        Observation {
            version: self.version.clone(),
            holder: self.holder.clone(),
            duration: Some(self.duration),
            transitions: self.transitions,
            successor: self.successor.clone(),
        }
    }

    pub(super) fn pod_of_holder(&self) -> Option<&str> {
        let (uid, identity) = self.holder_pod.as_ref()?;
        (self.holder.as_ref() == Some(identity)).then_some(uid)
    }

    pub(super) fn holding(&self) -> Option<Holding> {
        let seen = self.profile.is_none().then(|| self.observation())?;
        Some(Holding {
            version: seen.version,
            holder: seen.holder,
            duration: seen.duration,
            holder_pod: self.pod_of_holder().map(str::to_owned),
            transitions: seen.transitions,
            successor: seen.successor,
            wanted: self.wanted.clone(),
            weight: self.weight,
        })
    }

    pub(super) fn member(&self) -> Option<Member> {
        Some(Member {
            name: self.name.clone(),
            version: self.version.clone(),
            identity: self.holder.clone()?,
            duration: Some(self.duration),
            created: i64::try_from(self.created / 1000).unwrap(),
            profile: self.profile.clone()?,
        })
    }
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Get(String),
    /// With the version it rests on.
    Put(Lease),
    Post(Lease),
    /// At exactly this version.
    Delete(String, Version),
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Read(Option<Rc<Lease>>),
    Stored(Rc<Lease>),
    Deleted,
    Conflict,
}

#[derive(Default)]
pub(super) struct Server {
    pub(super) leases: BTreeMap<String, Rc<Lease>>,
    version: u64,
    uid: u64,
}

impl Server {
    pub(super) fn stored(&self, name: &str, version: &Version) -> bool {
        self.leases.get(name).is_some_and(|lease| lease.version == *version)
    }

    pub(super) fn answer(&mut self, now: Global, request: Request) -> Answer {
        match request {
            Request::Get(name) => Answer::Read(self.leases.get(&name).cloned()),
            Request::Put(lease) if self.stored(&lease.name, &lease.version) => {
                self.store(Lease { renewed: now, ..lease })
            }
            Request::Post(mut lease) if !self.leases.contains_key(&lease.name) => {
                self.uid += 1;
                lease.version.uid = format!("u{}", self.uid);
                self.store(Lease { created: now, renewed: now, ..lease })
            }
            Request::Delete(name, version) if self.stored(&name, &version) => {
                self.version += 1;
                self.leases.remove(&name);
                Answer::Deleted
            }
            Request::Put(_) | Request::Post(_) | Request::Delete(..) => Answer::Conflict,
        }
    }

    /// Somebody changes what no replica owns.
    pub(super) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Lease)) -> Option<Rc<Lease>> {
        let mut lease = Lease::clone(self.leases.get(name)?);
        change(&mut lease);
        match self.store(lease) {
            Answer::Stored(lease) => Some(lease),
            _ => None,
        }
    }

    fn store(&mut self, mut lease: Lease) -> Answer {
        self.version += 1;
        lease.version.resource_version = self.version.to_string();
        let lease = Rc::new(lease);
        self.leases.insert(lease.name.clone(), Rc::clone(&lease));
        Answer::Stored(lease)
    }
}
