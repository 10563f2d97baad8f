//! An elector of another make, as client-go's is, that competes for one Lease of ours: it knows no label, no successor
//! and no membership.

use std::time::Duration;

use leasehold::protocol::lease::{Record, Version};

use super::{
    host::{NAMESPACE, RELEASED},
    server::Commit,
    world::{What, World},
};
use crate::timeline::{Global, MILLI, SECOND};

/// How long it waits for a holder that is silent: longer than any of ours counts on.
const PATIENCE: Global = 25 * SECOND;
/// Without a renewal it stops its work after that.
const RENEW_DEADLINE: Global = 10 * SECOND;
const DURATION: Duration = Duration::from_secs(15);

pub(super) struct Stranger {
    pub(super) lease: String,
    identity: String,
    /// It wants to lead.
    competes: bool,
    seen: Option<(Version, Global)>,
    renewed: Option<Global>,
    /// It goes then.
    until: Global,
}

impl Stranger {
    /// It does what only a leader may do.
    pub(super) fn works(&self, now: Global) -> bool {
        self.renewed.is_some_and(|renewed| now < renewed + RENEW_DEADLINE)
    }
}

impl World {
    pub(super) fn stranger_comes(&mut self, lease: &str, stays: Global) {
        let number = self.strangers.len();
        self.note(format_args!("stranger-{number} competes for {lease}"));
        self.count("stranger");
        self.strangers.push(Stranger {
            lease: lease.to_owned(),
            identity: format!("stranger-{number}"),
            competes: true,
            seen: None,
            renewed: None,
            until: self.now() + stays,
        });
        self.at(self.now(), What::Stranger(number));
    }

    pub(super) fn strangers_leave(&mut self) {
        for number in 0..self.strangers.len() {
            self.stranger_leaves(number, true);
        }
    }

    fn stranger_leaves(&mut self, number: usize, releases: bool) {
        let stranger = &mut self.strangers[number];
        stranger.competes = false;
        let (lease, identity) = (stranger.lease.clone(), stranger.identity.clone());
        if stranger.renewed.take().is_none() || !releases {
            return;
        }
        if self.server.leases.get(&lease).is_some_and(|record| record.holder.as_ref() == Some(&identity)) {
            self.note(format_args!("{identity} releases {lease}"));
            let commit = self.server.edit(&lease, |record| (record.holder, record.duration) = (None, Some(RELEASED)));
            self.stranger_wrote(&lease, commit);
        }
    }

    pub(super) fn stranger_acts(&mut self, number: usize) {
        let now = self.now();
        if now >= self.strangers[number].until {
            let releases = self.flip(128);
            self.stranger_leaves(number, releases);
        }
        let Stranger { lease, identity, competes, .. } = &self.strangers[number];
        if !competes {
            return;
        }
        let (lease, identity) = (lease.clone(), identity.clone());
        let stored = self.server.leases.get(&lease).cloned();
        let known = self.strangers[number].seen.clone();
        let mine = stored.as_ref().is_some_and(|record| record.holder.as_ref() == Some(&identity));
        let free = match &stored {
            None => true,
            Some(record) if record.holder.is_none() => true,
            Some(record) => known.is_some_and(|(version, since)| version == record.version && now >= since + PATIENCE),
        };
        // What a hand has done to it is nothing that another elector could know.
        let spoilt = self.judge.entries.get(&lease).is_some_and(|entry| entry.touched);
        // The API server refuses the number that comes after the greatest.
        let full = stored.as_ref().is_some_and(|record| record.transitions == i32::MAX);
        if mine || (free && !spoilt && !full) {
            if !mine {
                self.note(format_args!("{identity} takes {lease}"));
                self.count("taken by a stranger");
                self.stranger_may_write(&lease, &identity);
            }
            let commit = match stored {
                Some(_) => self.server.edit(&lease, |record| {
                    record.transitions += i32::from(!mine);
                    (record.holder, record.duration) = (Some(identity), Some(DURATION));
                }),
                None => {
                    let (holder, duration) = (Some(identity), Some(DURATION));
                    let (name, namespace) = (lease.clone(), NAMESPACE.to_owned());
                    let record = Record { name, namespace, holder, duration, ..Record::default() };
                    Some(self.server.create(now, record))
                }
            };
            self.strangers[number].renewed = Some(now);
            self.stranger_wrote(&lease, commit);
        }
        let stored = self.server.leases.get(&lease).map(|record| record.version.clone());
        let stranger = &mut self.strangers[number];
        stranger.seen = match (stored, stranger.seen.take()) {
            (Some(version), Some((before, since))) if version == before => Some((before, since)),
            (version, _) => version.map(|version| (version, now)),
        };
        let wait = 2 * SECOND + self.rng.u64(0..100) * MILLI;
        self.at(now + wait, What::Stranger(number));
    }

    fn stranger_wrote(&mut self, lease: &str, commit: Option<Commit>) {
        if let Some(commit) = commit {
            self.written_by_stranger(lease, 15 * SECOND);
            self.show(&commit);
        }
    }

    fn stranger_may_write(&self, lease: &str, identity: &str) {
        let kind = |host: usize| self.hosts[host].template.kinds.iter().find(|kind| kind.lease == lease);
        let writes = |host: &usize| kind(*host).is_some_and(|kind| self.hosts[*host].may_write(&kind.name, self.now()));
        let other = (0..self.hosts.len()).find(writes);
        self.demand(other.is_none(), || {
            format!("{identity} takes {lease} beside {}", self.name(other.unwrap_or_default()))
        });
    }
}
