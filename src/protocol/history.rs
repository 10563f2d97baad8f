//! How each shard came to be where it is, as this replica has seen it: the last takeovers of its Lease, with their reasons.
//!
//! It is told to people and decides nothing. So two replicas that differ in it alone are the same, and compare as that.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{Hash, Hasher},
    time::Duration,
};

use super::moment::Moment;

/// So many takeovers of a Lease are kept, the last ones.
pub const KEPT: usize = 10;

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

/// The last takeovers of each Lease.
#[derive(Clone, Debug, Default)]
pub struct History {
    takeovers: BTreeMap<String, VecDeque<Takeover>>,
    ended: BTreeMap<String, Ended>,
}

impl History {
    /// The Lease is held by no replica any more, for this reason.
    pub fn ended(&mut self, now: Moment, lease: &str, from: Option<String>, reason: Reason) {
        self.ended.insert(lease.to_owned(), Ended { from, reason, at: now });
    }

    /// A free Lease, or one that did not exist, is held now.
    pub fn begun(&mut self, now: Moment, lease: &str, to: &str, token: String) -> &Takeover {
        let ended = self.ended.remove(lease);
        let (from, reason, at) =
            ended.map_or((None, Reason::Created, None), |ended| (ended.from, ended.reason, Some(ended.at)));
        let without_leader = at.map(|at| now.since(at));
        self.add(lease, Takeover { at: now, from, to: to.to_owned(), token, reason, without_leader })
    }

    /// Its last holder has gone, and no next one was seen yet.
    pub fn has_ended(&self, lease: &str) -> bool {
        self.ended.contains_key(lease)
    }

    /// Keeps a takeover, and the last ones before it.
    pub fn add(&mut self, lease: &str, takeover: Takeover) -> &Takeover {
        self.ended.remove(lease);
        let kept = self.takeovers.entry(lease.to_owned()).or_default();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(takeover);
        &kept[kept.len() - 1]
    }

    /// Those of a Lease, the last one at the end.
    pub fn of(&self, lease: &str) -> impl DoubleEndedIterator<Item = &Takeover> {
        self.takeovers.get(lease).into_iter().flatten()
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
    fn the_last_takeovers_are_kept_and_no_more() {
        let mut history = History::default();
        for number in 0..25 {
            history.ended(at(number), "a", Some(format!("r{number}")), Reason::Released(Release::Balance));
            history.begun(at(number + 1), "a", &format!("r{}", number + 1), format!("u/{number}"));
        }
        let kept: Vec<_> = history.of("a").map(|takeover| takeover.token.as_str()).collect();
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0], kept[KEPT - 1]), ("u/15", "u/24"));
        let last = history.of("a").next_back().unwrap();
        assert_eq!((last.from.as_deref(), last.without_leader), (Some("r24"), Some(Duration::from_secs(1))));
        assert_eq!(history.of("b").count(), 0);
        assert_eq!(history.ended.len(), 0);
    }
}
