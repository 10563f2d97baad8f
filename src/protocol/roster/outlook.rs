//! What placement makes of one shard, for people: where it shall be, who could have it, and what it waits for.
//!
//! The answer is that of the placement that decides: the same view of the same replicas, given to the same function.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Known, NAMING_TAKES, Present, ROLLOUT_STALLED_AFTER, Roster, Rules, ShardSpec};
use crate::{
    config::{Rebalance, StandbyMode},
    protocol::{
        lease::{Holding, Member},
        membership::{Activity, Profile},
        moment::Moment,
        placement::{self, Moves},
    },
};

/// Why no held shard is moved for balance now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The Leases are not seen.
    Blind,
    /// The replicas, or what they can run, have changed: until then they may change again.
    Settling(Moment),
    /// Another holder has just named a successor, and may name more.
    Naming(Moment),
    /// Two generations live side by side; until then that counts as a rollout that goes on.
    Rollout(Moment),
    /// These replicas are known from a list only, and have not been heard to renew.
    Unheard(Vec<String>),
    /// `placement.rebalance` is `OnRestart`, and no rollout has ended.
    OnRestart,
    /// `placement.rebalance` is `Never`.
    Never,
}

/// Why a replica cannot be given a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It stops.
    Draining,
    /// It is not configured for the kinds.
    NotConfigured,
    /// It says that it cannot run them; it alone knows why.
    Unable,
    /// It does not see the Leases.
    Blind,
}

/// A replica, as one that may get the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Holder identity.
    pub identity: String,
    /// The weight of all that it holds.
    pub load: u64,
    /// How much it takes, relative to the others.
    pub capacity: u32,
    /// It is of the newest generation.
    pub newest: bool,
    /// Why it cannot be given the shard; `None`: it can.
    pub unfit: Option<Unfit>,
    /// The shard has failed there lately.
    pub failing: bool,
    /// It did not take the shard when it was given to it, so another is chosen if there is one.
    pub avoided: bool,
}

/// What placement makes of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Who shall have it, if held shards may not be moved for balance.
    pub stays: Option<String>,
    /// Who shall have it once they may.
    pub balanced: Option<String>,
    /// Who gets it if that one goes.
    pub successor: Option<String>,
    /// Who may get it.
    pub candidates: Vec<Candidate>,
}

impl Roster {
    /// The roster that a replica with this identity would have, of what is stored: for people. Which of the records are still
    /// renewed only time could tell, so all of them count. `None` if none of the members is called so.
    ///
    /// `pods`: the live Pods of the replicas, name and uid, if they can be read.
    pub fn in_the_seat_of(
        identity: &str,
        members: Vec<Member>,
        holdings: Vec<(ShardSpec, Holding)>,
        pods: Option<BTreeMap<String, String>>,
    ) -> Option<Self> {
        let me = members.iter().find(|member| member.identity == identity)?.profile.clone();
        let rules = Rules {
            rebalance: Rebalance::Automatic,
            settle: Duration::from_secs(1),
            grace: Duration::from_secs(1),
            lease_duration: Duration::from_secs(15),
        };
        let specs = holdings.iter().map(|(spec, _)| spec.clone()).collect();
        let now = Self::SEATED_AT;
        let mut this = Self::new(identity.to_owned(), me, specs, rules, now);
        this.see_pods(pods);
        this.listed(now, members, holdings.into_iter().map(|(spec, holding)| (spec.lease, holding)).collect());
        this.notice_changes(now);
        Some(this)
    }

    /// When everything was seen that a roster of [`in_the_seat_of`](Self::in_the_seat_of) knows.
    pub const SEATED_AT: Moment = Moment::after_origin(Duration::from_secs(86_400));

    /// What placement makes of the shard with this Lease; `None` if there is none.
    pub fn outlook(&self, now: Moment, lease: &str) -> Option<Outlook> {
        let view = self.view(now);
        let index = view.leases.iter().position(|known| *known == lease)?;
        let [stays, moved] =
            [Moves::None, Moves::Planned].map(|moves| placement::placement(&view.shards, &view.replicas, moves));
        let name = |replica: Option<usize>| replica.map(|replica| view.present[replica].identity.to_owned());
        let candidate = |(at, one): (usize, &Present<'_>)| Candidate {
            identity: one.identity.to_owned(),
            load: self.load_of(one.identity),
            capacity: one.profile.capacity.max(1),
            newest: one.newest,
            unfit: unfit(one.profile, lease),
            failing: view.shards[index].failing.as_ref().is_some_and(|failing| failing.contains(&at)),
            avoided: view.shards[index].avoid.contains(&at),
        };
        Some(Outlook {
            stays: name(stays.targets[index]),
            balanced: name(moved.targets[index]),
            successor: name(moved.successors[index]),
            candidates: view.present.iter().enumerate().map(candidate).collect(),
        })
    }

    /// The weight of all that a replica holds.
    pub fn load_of(&self, identity: &str) -> u64 {
        let held = self.holdings.iter().filter(|(_, Known { what, .. })| what.holder.as_deref() == Some(identity));
        let weight = |(lease, Known { what, .. }): (&String, &Known<Holding>)| {
            what.weight.or_else(|| self.specs.get(lease).map(|spec| spec.weight)).unwrap_or(1)
        };
        held.map(weight).map(u64::from).sum()
    }

    /// The replicas that count, and whether each is of the newest generation.
    pub fn counted(&self, now: Moment) -> BTreeMap<String, bool> {
        self.present(now).into_iter().map(|one| (one.identity.to_owned(), one.newest)).collect()
    }

    /// Why no held shard is moved for balance now; empty if one may be.
    pub fn waits(&self, now: Moment) -> Vec<Wait> {
        if !self.current {
            return vec![Wait::Blind];
        }
        self.waits_of(now, &self.present(now))
    }

    pub(super) fn waits_of(&self, now: Moment, present: &[Present<'_>]) -> Vec<Wait> {
        // What ends a rollout was expected by all: what it left uneven is evened out when no replica stops any more.
        let stops = present.iter().any(|one| one.profile.activity == Activity::Draining);
        let settle = match self.rolled && !stops && self.changed_at == self.rolled_at {
            true => NAMING_TAKES.min(self.rules.settle),
            false => self.rules.settle,
        };
        let stalled = self.changed_at + self.rules.settle * ROLLOUT_STALLED_AFTER;
        let unheard: BTreeSet<_> =
            present.iter().map(|one| one.identity).filter(|one| self.listed_only.contains(*one)).collect();
        let mut waits = Vec::new();
        let mut until = |at: Moment, wait: fn(Moment) -> Wait| {
            if now < at {
                waits.push(wait(at));
            }
        };
        until(self.changed_at + settle, Wait::Settling);
        until(self.named_at + NAMING_TAKES, Wait::Naming);
        if self.generations > 1 {
            until(stalled, Wait::Rollout);
        }
        if !unheard.is_empty() {
            waits.push(Wait::Unheard(unheard.into_iter().map(str::to_owned).collect()));
        }
        match self.rules.rebalance {
            Rebalance::Automatic => {}
            Rebalance::OnRestart if self.rolled => {}
            Rebalance::OnRestart => waits.push(Wait::OnRestart),
            Rebalance::Never => waits.push(Wait::Never),
        }
        waits
    }
}

fn unfit(profile: &Profile, lease: &str) -> Option<Unfit> {
    if profile.activity == Activity::Draining {
        Some(Unfit::Draining)
    } else if !profile.shards.contains(lease) {
        Some(Unfit::NotConfigured)
    } else if profile.unable.contains(lease) {
        Some(Unfit::Unable)
    } else {
        profile.blind.then_some(Unfit::Blind)
    }
}

/// What a Lease says of its shard, for one that is not configured for it.
pub fn spec_of(lease: &str, kinds: Vec<String>, holding: &Holding) -> ShardSpec {
    ShardSpec {
        lease: lease.to_owned(),
        lock: crate::config::LockKind::Lease,
        kinds,
        weight: holding.weight.unwrap_or(1),
        standby: StandbyMode::Successor,
    }
}
