//! How each shard came to be where it is, as this replica has seen it: the takeovers of its Lease, with their reasons.
//!
//! It is told to people and decides nothing. What was told is kept where people read it, and here only what a takeover that
//! has not ended yet began with. So two replicas that differ in it alone are the same, and compare as that.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    time::Duration,
};

use super::moment::Moment;

/// A replica has become the holder of a shard's Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Takeover {
    /// When this replica saw it.
    pub at: Moment,
    /// Who held it before, if that was seen.
    pub from: Option<String>,
    /// Who holds it now.
    pub to: String,
    /// Names the term that begins.
    pub token: String,
    /// How the Lease came to be free.
    pub reason: Reason,
    /// For how long no replica led, counted from the release or the last renewal, if either was seen.
    pub without_leader: Option<Duration>,
}

/// Why a Lease has another holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There was no Lease, or it was deleted and made anew.
    Created,
    /// Its holder had released it.
    Released(Release),
    /// Its holder was cleared by another client.
    Cleared,
    /// Its holder had not renewed it for its duration.
    Expired,
    /// Its holder's process is proven dead.
    ProvenDead,
    /// A later process of its holder's Pod has taken it back.
    Restarted,
    /// It was still held, as far as this replica saw: another client has written it.
    Overwritten,
    /// This replica did not see how: its watch was down, or several takeovers came at once.
    Unseen,
}

/// Why a holder released a Lease, as far as it has told the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    /// `leasehold hand-over` asked for it.
    Asked,
    /// It stops.
    Stopping,
    /// Its term had failed.
    Failed,
    /// It cannot run the kind any more.
    Unable,
    /// The successor has less to do, or is of the newer generation.
    Balance,
    /// It has named no successor and told no reason: its renewals were late, or its term ended by itself.
    Untold,
}

/// What was last seen to end, before the next holder is seen.
#[derive(Clone, Debug)]
struct Ended {
    from: Option<String>,
    reason: Reason,
    at: Moment,
}

/// What became of the last holder of each Lease that has none.
#[derive(Clone, Debug, Default)]
pub struct History {
    ended: BTreeMap<String, Ended>,
}

impl History {
    /// The Lease is held by no replica any more, for this reason.
    pub fn ended(&mut self, now: Moment, lease: &str, from: Option<String>, reason: Reason) {
        self.ended.insert(lease.to_owned(), Ended { from, reason, at: now });
    }

    /// A free Lease, or one that did not exist, is held now.
    pub fn begun(&mut self, now: Moment, lease: &str, to: &str, token: String) -> Takeover {
        let ended = self.ended.remove(lease);
        let (from, reason, at) =
            ended.map_or((None, Reason::Created, None), |ended| (ended.from, ended.reason, Some(ended.at)));
        let without_leader = at.map(|at| now.since(at));
        Takeover { at: now, from, to: to.to_owned(), token, reason, without_leader }
    }

    /// Its last holder has gone, and no next one was seen yet.
    pub fn has_ended(&self, lease: &str) -> bool {
        self.ended.contains_key(lease)
    }
}

impl PartialEq for History {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for History {}

impl Hash for History {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(1000 + seconds))
    }

    #[test]
    fn a_takeover_begins_with_what_ended_and_no_more_is_kept() {
        let mut history = History::default();
        history.ended(at(0), "a", Some("r0".to_owned()), Reason::Released(Release::Balance));
        let takeover = history.begun(at(1), "a", "r1", "u/1".to_owned());
        assert_eq!((takeover.from.as_deref(), takeover.without_leader), (Some("r0"), Some(Duration::from_secs(1))));
        assert_eq!(takeover.reason, Reason::Released(Release::Balance));
        let takeover = history.begun(at(2), "a", "r2", "u/2".to_owned());
        assert_eq!((takeover.from, takeover.reason, takeover.without_leader), (None, Reason::Created, None));
        assert_eq!(history.ended.len(), 0);
    }
}
