//! From what is known to what is to be done about each shard.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Advice, Cache, EXPECTED_WITHIN, HandOver, Known, Peer, Plan, Present, Roster, ShardSpec};
use crate::{
    config::StandbyMode,
    protocol::{
        lease::{Holding, Member},
        membership::{ANY_SHARD, Activity, LeaseSet, Profile},
        misses::TOLD_MOST,
        moment::Moment,
        placement::{self, Able, Moves, Placement, Tie},
    },
};

/// All that one decision rests on.
pub(super) struct View<'a> {
    pub(super) leases: Vec<&'a str>,
    pub(super) present: Vec<Present<'a>>,
    /// Our own place among them.
    me: Option<usize>,
    pub(super) shards: Vec<placement::Shard<'a>>,
    /// By shard: no replica holds it, and none is named or wanted for it.
    free: Vec<bool>,
    pub(super) replicas: Vec<placement::Replica<'a>>,
}

impl Roster {
    /// What to do about each shard at `now`.
    pub fn advise(&mut self, now: Moment) -> Plan {
        self.notice_changes(now);
        if !self.current {
            return self.advise_blindly();
        }
        let view = self.view(now);
        let settled = now >= self.changed_at + self.rules.settle;
        let moves = if self.may_move(now, &view.present) { Moves::Planned } else { Moves::None };
        let placement = placement::placement(&view.shards, &view.replicas, moves);
        let me = view.me;
        let claims =
            view.leases.iter().enumerate().filter(|(index, _)| view.free[*index] && placement.targets[*index] == me);
        let claims = claims.map(|(_, lease)| (*lease).to_owned()).collect();
        let peer = |one: &Present<'_>| Peer {
            identity: one.identity.to_owned(),
            draining: one.profile.activity == Activity::Draining,
            newest: one.newest,
            generation: one.profile.generation.clone(),
            capacity: one.profile.capacity,
        };
        let peers = view.present.iter().map(peer).collect();
        let mut plan = Plan { shards: BTreeMap::new(), peers, next: self.next_change(now) };
        let targets = view.leases.iter().enumerate().filter_map(|(index, lease)| {
            let target = view.present[placement.targets[index].filter(|_| view.free[index])?].identity;
            let since = self.targets.get(*lease).filter(|(known, _)| known == target).map_or(now, |(_, since)| *since);
            Some(((*lease).to_owned(), (target.to_owned(), since)))
        });
        let targets = targets.collect();
        let mut moving = self.a_move_is_on_its_way(&view);
        let mut queued = self.weight_held();
        for (index, lease) in view.leases.iter().enumerate() {
            let Some(spec) = self.specs.get(*lease) else { continue };
            let holding = self.holdings.get(*lease).map(|holding| &holding.what);
            let target = placement.targets[index];
            let mut advice =
                Advice { target: target.map(|target| view.present[target].identity.to_owned()), ..Advice::default() };
            if holding.is_some_and(|holding| holding.holder.as_deref() == Some(self.identity.as_str())) {
                advice.held = true;
                // The watch may show that the Lease is ours before the answer that begins our term with this cache.
                advice.cache = Cache::Begun;
                advice.hand_over = target.filter(|target| Some(*target) != me).and_then(|target| {
                    let named = self.naming.get(*lease).map(String::as_str);
                    let successor = &view.present[target];
                    let must = self.must_leave(lease) || self.is_wanted(&view, index);
                    if !must && view.free[index] {
                        // It has expired as far as we see. If it is ours again before we see that, it stays.
                        return None;
                    }
                    if !must && named != Some(successor.identity) && std::mem::replace(&mut moving, true) {
                        return None;
                    }
                    let prepared = successor.profile.prepared.get(*lease);
                    let prepared = prepared.is_some_and(|to_follow| {
                        holding.is_some_and(|holding| holding.tokens().any(|token| token == *to_follow))
                    });
                    Some(HandOver { to: successor.identity.to_owned(), prepared, must })
                });
            } else {
                let named = holding.filter(|holding| holding.successor.as_deref() == Some(self.identity.as_str()));
                advice.named = named.map(Holding::token);
                let may_be_next = match spec.standby {
                    StandbyMode::None => false,
                    StandbyMode::Successor => me.is_some() && (placement.successors[index] == me || target == me),
                    StandbyMode::All => true,
                };
                advice.cache = match (named, may_be_next) {
                    (Some(_), _) => Cache::Kept,
                    (None, true) if settled => Cache::Kept,
                    (None, true) => Cache::Begun,
                    (None, false) => Cache::None,
                };
                advice.patience = self.patience(now, index, me, &view, &placement, &mut queued);
            }
            plan.shards.insert((*lease).to_owned(), advice);
        }
        self.claims = claims;
        self.targets = targets;
        let named = |(lease, advice): (&String, &Advice)| Some((lease.clone(), advice.hand_over.as_ref()?.to.clone()));
        self.naming = plan.shards.iter().filter_map(named).collect();
        if settled && moves == Moves::Planned && !moving {
            self.rolled = false;
        }
        plan
    }

    /// Without the watch no successor is named and nothing is moved, and replicas that see go first.
    fn advise_blindly(&mut self) -> Plan {
        self.naming.clear();
        self.targets.clear();
        let advice = |_: &ShardSpec| Advice { patience: self.rules.grace, ..Advice::default() };
        let shards = self.specs.values().map(|spec| (spec.lease.clone(), advice(spec))).collect();
        let draining = self.me.activity == Activity::Draining;
        let Profile { generation, capacity, .. } = self.me.clone();
        let me = Peer { identity: self.identity.clone(), draining, newest: true, generation, capacity };
        Plan { shards, peers: vec![me], next: None }
    }

    /// The target goes at once, the others after a grace that grows with their place in the line.
    fn patience(
        &self,
        now: Moment,
        shard: usize,
        me: Option<usize>,
        view: &View<'_>,
        placement: &Placement,
        queued: &mut u32,
    ) -> Duration {
        let grace = self.rules.grace;
        if self.comes_back(view.leases[shard]) {
            return Duration::ZERO;
        }
        let rank = me.and_then(|me| placement::rank(shard, me, &view.shards, &view.replicas, placement));
        let total: u32 = self.specs.values().map(|spec| spec.weight).sum();
        let before = *queued;
        let with_it = before.saturating_add(view.shards[shard].weight);
        // Others are being started, or do not know yet what they can run: what is more than our share waits until they had
        // the time for that. It has been free since before they came, so that a place in the line gives them none.
        let share = total.div_ceil(u32::try_from(self.expected).unwrap_or(u32::MAX).max(1));
        let able = view.replicas.iter().filter(|one| one.active && one.able.can(shard)).count();
        let is_due = now >= self.started_at + grace * EXPECTED_WITHIN;
        let is_awaited = (self.expected > able || rank != Some(0)) && with_it > share && !is_due;
        if rank == Some(0) {
            *queued = with_it;
        }
        if is_awaited {
            return grace * EXPECTED_WITHIN;
        }
        match rank {
            Some(0) => {
                if now >= self.joined_at + grace {
                    return Duration::ZERO;
                }
                // Replicas that start together do not know of each other yet: one takes its shards slowly,
                // so that the next one finds some left.
                grace.mul_f64(f64::from(before.min(total)) / f64::from(total.max(1)))
            }
            Some(rank) => {
                let others = view.present.len().max(2) - 1;
                grace.mul_f64(0.5 + 0.5 * rank.min(others) as f64 / others as f64)
            }
            None => grace,
        }
    }

    fn weight_held(&self) -> u32 {
        let ours = |holding: &Holding| {
            [&holding.holder, &holding.successor].into_iter().any(|who| who.as_deref() == Some(self.identity.as_str()))
        };
        let held = |spec: &&ShardSpec| self.holdings.get(&spec.lease).is_some_and(|holding| ours(&holding.what));
        self.specs.values().filter(held).map(|spec| spec.weight).sum()
    }

    /// `leasehold hand-over` has asked for it, and the replica that it is wanted at can run it.
    fn is_wanted(&self, view: &View<'_>, shard: usize) -> bool {
        let wanted = self.holdings.get(view.leases[shard]).and_then(|holding| holding.what.wanted.as_deref());
        wanted.is_some_and(|wanted| {
            let called = |one: &Present<'_>| one.identity == wanted || one.profile.pod == wanted;
            view.shards[shard].holder.is_some_and(|at| called(&view.present[at]))
        })
    }

    /// The successor that the holder has named. What we name ourselves is seen late, so for our own Leases it is what we
    /// name now.
    fn successor<'a>(&'a self, lease: &str, holding: &'a Holding) -> Option<&'a str> {
        if holding.holder.as_ref() == Some(&self.identity) {
            return self.naming.get(lease).map(String::as_str);
        }
        holding.successor.as_deref()
    }

    fn must_leave(&self, lease: &str) -> bool {
        self.me.activity == Activity::Draining || !self.me.can_run(lease)
    }

    /// One of our shards is being moved for balance already, or its Lease still names the successor that was taken back: a
    /// replica gives away one at a time.
    fn a_move_is_on_its_way(&self, view: &View<'_>) -> bool {
        view.leases.iter().enumerate().any(|(index, lease)| {
            self.holdings.get(*lease).is_some_and(|holding| {
                let ours = holding.what.holder.as_deref() == Some(self.identity.as_str());
                let elsewhere = view.shards[index].holder.map(|holder| view.present[holder].identity);
                let goes = holding.what.successor.is_some() || elsewhere.is_some_and(|holder| holder != self.identity);
                ours && goes && !self.is_wanted(view, index)
            })
        })
    }

    fn may_move(&self, now: Moment, present: &[Present<'_>]) -> bool {
        self.waits_of(now, present).is_empty()
    }

    pub(super) fn view(&self, now: Moment) -> View<'_> {
        let present = self.present(now);
        let leases: BTreeSet<&str> = self.specs.keys().chain(self.holdings.keys()).map(String::as_str).collect();
        let leases: Vec<_> = leases.into_iter().collect();
        let avoided = self.avoided(now, &present);
        let mut shards: Vec<_> = leases.iter().map(|lease| self.shard(now, lease, &present, &avoided)).collect();
        let free: Vec<_> = shards.iter().map(|shard| shard.holder.is_none() && !shard.taken).collect();
        let me = present.iter().position(|one| one.identity == self.identity);
        for (shard, _) in
            shards.iter_mut().zip(&free).filter(|(shard, free)| **free && self.claims.contains(shard.lease))
        {
            shard.holder = me;
        }
        let replicas = present
            .iter()
            .map(|one| placement::Replica {
                identity: one.identity,
                capacity: one.profile.capacity.max(1),
                active: one.profile.activity == Activity::Active,
                newest: one.newest,
                able: Able::Only(leases.iter().map(|lease| self.can_run(one, lease)).collect()),
            })
            .collect();
        View { leases, present, me, shards, free, replicas }
    }

    /// A replica that does not see the Leases goes on with what it holds, and is given nothing.
    fn can_run(&self, one: &Present<'_>, lease: &str) -> bool {
        let holds =
            || self.holdings.get(lease).is_some_and(|holding| holding.what.holder.as_deref() == Some(one.identity));
        one.profile.can_run(lease) && (!one.profile.blind || holds())
    }

    /// By index: what each replica is not to be given, by the word of all that are there. With what it has seen itself alone,
    /// each would place a shard elsewhere, and give back what it has just got.
    fn avoided<'a>(&self, now: Moment, present: &[Present<'a>]) -> BTreeMap<usize, Vec<Cow<'a, LeaseSet>>> {
        // Nothing is published before it is told to others: what we have just seen counts here.
        let ours = self.misses.told(now).into_iter().map(|(replica, leases)| (replica, Cow::Owned(leases)));
        let others = present.iter().filter(|one| one.identity != self.identity);
        let others = others.flat_map(|one| one.profile.avoids.iter().take(TOLD_MOST));
        let others = others.map(|(replica, leases)| (replica.clone(), Cow::Borrowed(leases)));
        let mut avoided = BTreeMap::<usize, Vec<_>>::new();
        for (replica, leases) in ours.chain(others) {
            // They stand in the order of their identities.
            if let Ok(index) = present.binary_search_by_key(&replica.as_str(), |one| one.identity) {
                avoided.entry(index).or_default().push(leases);
            }
        }
        avoided
    }

    fn shard<'a>(
        &'a self,
        now: Moment,
        lease: &'a str,
        present: &[Present<'_>],
        avoided: &BTreeMap<usize, Vec<Cow<'_, LeaseSet>>>,
    ) -> placement::Shard<'a> {
        let spec = self.specs.get(lease);
        let known = self.holdings.get(lease);
        // Replicas whose configurations differ must count alike, or each gives the other what it has just got.
        let weight = known.and_then(|it| it.what.weight).or(spec.map(|spec| spec.weight)).unwrap_or(1);
        // What has failed somewhere goes round the replicas until it works, and may go back when it has worked for a
        // while: the others are not moved about because of it.
        let fails = |index: &usize| present[*index].profile.failing.contains(lease);
        let failing = self.failing.contains_key(lease).then(|| (0..present.len()).filter(fails).collect());
        let missed = |leases: &Cow<'_, LeaseSet>| leases.contains(lease) || leases.contains(ANY_SHARD);
        let avoid =
            avoided.iter().filter(|(_, told)| told.iter().any(missed)).map(|(index, _)| *index).collect::<Vec<_>>();
        let Some(Known { what: holding, since }) = known else {
            return placement::Shard { lease, weight, holder: None, tie: Tie::Held, failing, avoid, taken: false };
        };
        // They stand in the order of their identities.
        let find = |name: &str| present.binary_search_by_key(&name, |one| one.identity).ok();
        let takes = |index: &usize| {
            present[*index].profile.activity == Activity::Active && self.can_run(&present[*index], lease)
        };
        let holder = holding
            .holder
            .as_deref()
            .filter(|_| now < self.silent_at(holding.duration, *since))
            .filter(|holder| !self.is_dead(holder, holding.holder_pod.as_deref()));
        let wanted = holding.wanted.as_deref().and_then(|wanted| {
            find(wanted).or_else(|| present.iter().position(|one| one.profile.pod == wanted)).filter(takes)
        });
        // Free for longer than the grace: the one that was named has not come.
        let awaited = holder.is_some() || now < *since + self.rules.grace;
        let named = self.successor(lease, holding).filter(|_| awaited).and_then(find).filter(takes);
        // Several that stop at once name the same replica before they know of each other. Whom a shard goes to can be
        // mended until that one is prepared, as long as it goes.
        let leaves = holder.and_then(find).is_some_and(|index| !takes(&index));
        let is_prepared = |index: usize| {
            let to_follow = present[index].profile.prepared.get(lease);
            to_follow.is_some_and(|to_follow| holding.tokens().any(|token| token == *to_follow))
        };
        // A later process of the holder's Pod is there: the holder is dead, and that one takes its shards back.
        let back = holding.holder_pod.as_ref().and_then(|uid| {
            let same_pod = |one: &Present<'_>| one.profile.pod_uid.as_ref() == Some(uid);
            present.iter().position(|one| same_pod(one) && Some(one.identity) != holding.holder.as_deref())
        });
        let held = holder.and_then(|holder| back.or_else(|| find(holder)));
        // It is on its way to a replica that has just missed another one: likely it stays, and with it counted there a shard of
        // ours would take its place.
        let stays = held.is_some() && !leaves && named.is_some_and(|named| avoid.contains(&named));
        let named = named.filter(|_| !stays);
        placement::Shard {
            lease,
            weight,
            holder: wanted.or(named).or(held),
            tie: match (wanted, named) {
                (None, None) if !stays => Tie::Held,
                (None, Some(named)) if leaves && !is_prepared(named) => Tie::Loose,
                // What is on its way arrives, whatever would be decided without it: else it might be called back for ever.
                _ => Tie::Pinned,
            },
            failing,
            avoid,
            taken: holder.is_some() && held.is_none() && named.is_none() && wanted.is_none(),
        }
    }
}

/// Where placement would put a shard if its holder could not run it: for `leasehold hand-over` without a target.
/// The records are taken as they are; which of them are still renewed only time could tell.
pub fn elsewhere(lease: &str, from: &str, members: &[Member], holdings: &[(String, Holding)]) -> Option<String> {
    let active = |member: &&Member| member.profile.activity == Activity::Active;
    let mut members: Vec<_> = members.iter().filter(active).collect();
    members.sort_by(|a, b| a.identity.cmp(&b.identity));
    let find = |name: &Option<String>| members.iter().position(|it| Some(&it.identity) == name.as_ref());
    let shards: Vec<_> = holdings
        .iter()
        .map(|(name, holding)| placement::Shard {
            lease: name,
            weight: holding.weight.unwrap_or(1),
            holder: find(&holding.holder).filter(|_| name != lease),
            tie: Tie::Held,
            failing: None,
            avoid: Vec::new(),
            taken: name != lease && find(&holding.holder).is_none(),
        })
        .collect();
    let able = |member: &Member| {
        let could = |name: &String| member.profile.can_run(name) && (name != lease || member.identity != from);
        Able::Only(holdings.iter().map(|(name, _)| could(name)).collect())
    };
    let replicas: Vec<_> = members
        .iter()
        .map(|member| placement::Replica {
            identity: &member.identity,
            capacity: member.profile.capacity.max(1),
            active: true,
            newest: true,
            able: able(member),
        })
        .collect();
    let placement = placement::placement(&shards, &replicas, Moves::None);
    let index = holdings.iter().position(|(name, _)| name == lease)?;
    placement.targets[index].map(|target| members[target].identity.clone())
}
