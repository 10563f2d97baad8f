//! What can happen to a replica, and what it can do: all that passes between [`Replica`](super::replica::Replica) and
//! its driver.

use std::{collections::BTreeMap, time::Duration};

use super::{
    election::Grant,
    history::Takeover,
    lease::{Purpose, Record, Version},
    moment::Moment,
    slot::Outcome,
};

/// Index of a shard, in the order in which the shards were given.
pub type ShardIndex = usize;

/// Index of a kind: the kinds of the first shard come first, then those of the next. Where each shard has one kind, it is
/// the [`ShardIndex`].
pub type KindIndex = usize;

/// Counts the terms of one shard within a process, from 1.
pub type TermNumber = u64;

/// Names a request until it is answered.
pub type RequestId = u64;

/// What the watch of Leases shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watch {
    /// These are all Leases there are.
    Listed(Vec<Record>),
    /// This Lease was stored.
    Stored(Record),
    /// This Lease was deleted, or has lost the label that it is watched by.
    Deleted(Record),
    /// The watch is down, for this reason.
    Failed(String),
    /// The lock of a shard that is not a Lease alone is stored so now; `None`: it does not exist.
    Lock(ShardIndex, Option<Record>),
    /// The watch of that lock is down, or what is stored there is no lock.
    LockFailed(ShardIndex),
}

/// What the API server says of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The kind can be reconciled here.
    Runnable,
    /// It cannot, and why.
    Blocked(String),
    /// The API server did not say, and why.
    Unknown(String),
}

/// What a term hears of the objects of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hearing {
    /// Its watch is up, or it has none.
    #[default]
    Hears,
    /// Its watch has failed, for this reason, and none has replaced it.
    Deaf(String),
}

/// Something has happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The watch of Leases shows this.
    Watched(Watch),
    /// This became of a request.
    Answered(RequestId, Answer),
    /// The preflight has asked about a kind.
    Judged(KindIndex, Verdict),
    /// The standby for this term has filled its caches, those of all of its kinds.
    StandbyPrepared(ShardIndex, TermNumber),
    /// The standby for this term has ended by itself, with that of this kind, for this reason.
    StandbyEnded(KindIndex, TermNumber, String),
    /// The reconciler has said that it keeps no cache; those of all kinds have.
    StandbyDeclined(ShardIndex),
    /// The API server has refused a request of the kind's term or standby, in a way that a permission or a CRD explains.
    Denied(KindIndex),
    /// What the term hears of a kind has changed.
    Heard(KindIndex, TermNumber, Hearing),
    /// The task of one kind of a group has ended in this term; of the whole term's end an event of its own tells.
    TaskEnded(KindIndex, TermNumber, Outcome),
    /// The term's task has ended, and its writes were given their time. That of a group has ended with the last of its
    /// kinds.
    TermEnded {
        /// The shard.
        shard: ShardIndex,
        /// The term.
        term: TermNumber,
        /// How it ended.
        outcome: Outcome,
        /// A write of it may still be carried out.
        unanswered: bool,
    },
    /// These processes are proven dead.
    Died(Deaths),
    /// Where our Pod comes from.
    Originated {
        /// Revision of the ReplicaSet that made it.
        revision: Option<u64>,
        /// What controls it, such as `Deployment/leasehold`.
        owner: Option<String>,
    },
    /// So many replicas of ours exist or are being started, this one among them.
    Expected(usize),
    /// The live Pods of our service account and sort of controller, name and uid; `None`: they cannot be read, or we are none of them.
    Pods(Option<BTreeMap<String, String>>),
    /// The process shall stop; the second time: at once.
    Signalled,
    /// Time has passed.
    Woken,
}

/// Which processes are proven dead, by holder identity, with the uid of the Pod that each was in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Deaths {
    /// Their container has ended and stays down: it backs off, or its Pod ends.
    pub ended: BTreeMap<String, Option<String>>,
    /// Their container runs again, or is about to: its new process may take their Leases back itself.
    pub restarted: BTreeMap<String, Option<String>>,
}

impl Deaths {
    /// Whether this holder is dead. `pod`: the uid that it gave on its Lease; a proof about another Pod proves nothing.
    pub fn prove(&self, holder: &str, pod: Option<&str>) -> bool {
        let of = |deaths: &BTreeMap<String, Option<String>>| {
            deaths.get(holder).is_some_and(|uid| match (uid.as_deref(), pod) {
                (Some(uid), Some(pod)) => uid == pod,
                _ => true,
            })
        };
        of(&self.ended) || of(&self.restarted)
    }
}

/// A request about a Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// GET the Lease, or other lock, of this name.
    Get {
        /// Its name, in the namespace of our Leases.
        lease: String,
    },
    /// List the Leases of shards and replicas that the watch covers, as they are stored now.
    List,
    /// POST it.
    Create {
        /// What to store.
        record: Record,
        /// Why.
        purpose: Purpose,
    },
    /// PUT it over the version that the record bears: what is not in the record stays as it is stored (rule 13).
    Update {
        /// What to store.
        record: Record,
        /// Why.
        purpose: Purpose,
    },
    /// DELETE it at exactly this version.
    Delete {
        /// Its name.
        lease: String,
        /// The version that it was decided on.
        version: Version,
        /// Why, if it is the Lease of a shard of ours.
        purpose: Option<Purpose>,
    },
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The Lease, if there is one.
    Found(Option<Record>),
    /// All of them.
    Listed(Vec<Record>),
    /// It was written so.
    Stored(Record),
    /// It was deleted.
    Deleted,
    /// Nothing was written: the object has changed, exists already, or is gone.
    Conflict,
    /// Nothing was written: the API server refused it, for this reason. The same again would be refused again.
    Refused(String),
    /// No answer: it may have been carried out, or may yet be.
    Unanswered(String),
}

/// Something to be done, in the order in which it was returned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "a few at a time, and soon taken apart")]
pub enum Effect {
    /// Send this. It counts as sent at the `now` of the call that returned it.
    Send(RequestId, Request),
    /// Let the term write until then. The first of these opens its fence.
    Extend(ShardIndex, TermNumber, Moment),
    /// Shut the fence of the term for good.
    Shut(ShardIndex, TermNumber),
    /// Begin to fill a cache behind the fence of this term, which has not begun.
    StandBy(ShardIndex, TermNumber),
    /// Drop the standby for this term.
    Dismiss(ShardIndex, TermNumber),
    /// Start the term's work.
    Start {
        /// The shard.
        shard: ShardIndex,
        /// The right to work.
        grant: Grant,
        /// The standby for this term becomes its task; it has filled its cache or not.
        standby: Option<bool>,
    },
    /// Ask the work to take no new work.
    Drain(ShardIndex, TermNumber),
    /// Abort the task.
    Abort(ShardIndex, TermNumber),
    /// Have the preflight ask about the kind again.
    Ask(KindIndex),
    /// Say this to people.
    Note(Notice),
    /// The replica has ended.
    Exit(Ending),
}

/// How a replica ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Everything was handed over or released.
    Clean,
    /// These Leases are left to expire.
    Unreleased(Vec<String>),
    /// The work of these shards had not ended.
    Undrained(Vec<String>),
    /// A term that worked was lost, and the process is to end at once.
    Lost {
        /// Name of the Lease.
        lease: String,
        /// Why.
        loss: Loss,
    },
}

/// What has happened, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A shard is to be handed over to this replica.
    SuccessorNamed(ShardIndex, String),
    /// We have become the holder.
    Acquired {
        /// The shard.
        shard: ShardIndex,
        /// Who held it before, if another process did.
        from: Option<String>,
        /// Why it was free.
        how: Freed,
        /// For how long no replica held it, if that was seen.
        free_for: Option<Duration>,
    },
    /// The Lease of a shard has another holder, seen by the watch.
    TakenOver(ShardIndex, Takeover),
    /// A renewal took so long.
    Renewed(ShardIndex, Duration),
    /// A right to work has ended before its work was to end, for this reason.
    Lost(ShardIndex, Loss),
    /// The last request about the Lease failed, and how; `None`: the last one did not.
    Trouble(ShardIndex, Option<String>),
    /// A shard was given to this replica, which did not take it: it is not chosen again for so long.
    Missed {
        /// Name of the Lease.
        lease: String,
        /// Holder identity of the replica.
        replica: String,
        /// For how long it is not chosen for this shard.
        avoided_for: Duration,
    },
    /// A Lease that no replica needs is deleted, for this reason.
    Collected(String, Garbage),
    /// Something on a Lease is out of its bounds.
    Odd {
        /// Name of the Lease.
        lease: String,
        /// What is odd, one sentence each; empty: it no longer is.
        odd: Vec<String>,
    },
    /// Another Lease that says the same kind is held: the kind is not led here.
    Rival(ShardIndex, Option<Rival>),
    /// The Lease is held in the name of this identity, which is of no live Pod and no replica of ours; `None`: it no longer is.
    Stranger(ShardIndex, Option<String>),
    /// What the API server says of a kind has changed.
    Judged(KindIndex, Verdict),
    /// A standby has filled its cache.
    Prepared(ShardIndex),
    /// A term, or a standby, has failed, and with which kind.
    Failed(KindIndex, String),
    /// A term hears of a kind again, or does not.
    Heard(KindIndex, Hearing),
    /// The membership could not be written, and why; `None`: it could.
    Unpublished(Option<String>),
    /// The stop has begun.
    Stopping,
    /// The stop goes on at once.
    Aborting,
}

/// Why a Lease was free to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freed {
    /// There was none.
    Missing,
    /// Its holder had released it.
    Released,
    /// Its holder had not renewed it for its duration.
    Expired,
    /// Its holder's process is proven dead.
    ProvenDead,
    /// It was ours already, by a write whose answer was lost.
    Ours,
}

/// Why a right to work has ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal succeeded by the renew deadline: its work is to finish.
    Deadline,
    /// Nor until its validity was over, and its work had not finished.
    Expired,
    /// Another holder is on the Lease.
    Taken(String),
    /// The Lease is gone, or was made anew, or a hand has cleared its holder.
    Gone,
}

/// Why a Lease is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Garbage {
    /// It is the membership of a process of our Pod that ended before this one began.
    Predecessor,
    /// It is the membership of a process that is proven dead.
    Dead,
    /// It is the membership of a process that has been silent for several lease durations.
    Silent,
    /// No replica is configured for its kind.
    Orphan,
}

/// Another Lease of a kind of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rival {
    /// The kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who holds it; or, of a ConfigMap, who may.
    pub holder: String,
    /// It is a ConfigMap, which a replica of another configuration has for its lock.
    pub config_map: bool,
}
