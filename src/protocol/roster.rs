//! Who is there and what is where, as this replica sees it; and what follows from it for each of its shards.
//!
//! Pure. It counts the silence of replicas and holders as an election does: by our own time, from when we first saw a
//! version. What it says is advice. A wrong or stale view costs balance, or the grace; the Lease is the lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    election::Version,
    moment::Moment,
    placement::{self, Able, Moves, Placement, Tie},
};
use crate::config::{Rebalance, StandbyMode};

/// Whether a replica takes shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Activity {
    /// It does.
    #[default]
    Active,
    /// It gives its shards away and then ends.
    Draining,
}

/// What a replica says of itself on its membership Lease. Missing fields have their defaults, unknown ones are ignored:
/// replicas of two versions live side by side in every rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Profile {
    /// Whether it takes shards.
    pub activity: Activity,
    /// Name of its Pod or host.
    pub pod: String,
    /// Uid of its Pod, if it holds the Pod's lock: then every other process that gave this uid is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Hash of the template its Pod was made from; empty when unknown.
    pub generation: String,
    /// Revision of its ReplicaSet: a rollout, or a rollback, has a greater one than what it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// How much it takes, relative to the others.
    pub capacity: u32,
    /// The shards it is configured for.
    pub shards: BTreeSet<String>,
    /// Those of them that it cannot run now: CRD missing, permission denied, cooling down.
    pub unable: BTreeSet<String>,
    /// Those of them that have failed here lately.
    pub failing: BTreeSet<String>,
    /// Shards it has filled a cache for as the named successor, and the token of the term it is to follow.
    pub prepared: BTreeMap<String, String>,
}

impl Profile {
    /// It could run this shard now.
    pub fn can_run(&self, lease: &str) -> bool {
        self.shards.contains(lease) && !self.unable.contains(lease)
    }
}

/// A membership Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the Lease.
    pub name: String,
    /// The stored object.
    pub version: Version,
    /// Holder identity of the process.
    pub identity: String,
    /// For how long after a renewal it counts as there.
    pub duration: Option<Duration>,
    /// Seconds since the epoch by the API server's clock; compared with other values of that clock only.
    pub created: i64,
    /// What it says of itself.
    pub profile: Profile,
}

/// A shard's Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The stored object.
    pub version: Version,
    /// Who holds it.
    pub holder: Option<String>,
    /// For how long after a renewal it is held.
    pub duration: Option<Duration>,
    /// Uid of the Pod that the holder is in.
    pub holder_pod: Option<String>,
    /// `leaseTransitions`, 0 when missing.
    pub transitions: i32,
    /// Whom the holder has named to follow it.
    pub successor: Option<String>,
    /// Identity or Pod name of the replica where somebody asked for it to be.
    pub wanted: Option<String>,
    /// Weight that its last holder gave it.
    pub weight: Option<u32>,
}

/// What the configuration says of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name of the Lease.
    pub lease: String,
    /// Expected load.
    pub weight: u32,
    /// Who keeps a cache without leading.
    pub standby: StandbyMode,
}

/// What the configuration says of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// When held shards may be moved for balance.
    pub rebalance: Rebalance,
    /// How long the replicas must have been the same before a shard is moved for balance.
    pub settle: Duration,
    /// The longest that a replica lets others go first.
    pub grace: Duration,
    /// Counts for records that publish no duration.
    pub lease_duration: Duration,
}

/// Whether a replica is to keep a cache of a shard beside the one that its term has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// It is not.
    #[default]
    None,
    /// One that was begun is kept, but none is begun now: the replicas have just changed, so others are handing over, and
    /// who is next may change too.
    Begun,
    /// It is.
    Kept,
}

/// What to do about one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Who shall have it.
    pub target: Option<String>,
    /// How long to let others go first for it when it is free.
    pub patience: Duration,
    /// Held here: to whom it shall go, and whether that one is prepared.
    pub hand_over: Option<(String, bool)>,
    /// The watch shows us as its holder.
    pub held: bool,
    /// Whether a cache of it is to be kept, if it is not held here.
    pub cache: Cache,
    /// Not held here: we are named to follow the term with this token.
    pub named: Option<String>,
}

/// Advice for all shards of the configuration, and when it is to be asked for again if nothing is seen before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counsel {
    /// By name of the Lease.
    pub shards: BTreeMap<String, Advice>,
    /// The replicas that count: identity, activity, and whether it is of the newest generation.
    pub crew: Vec<(String, Activity, bool)>,
    /// When time alone may change it.
    pub next: Option<Moment>,
}

/// Two generations that live side by side for this many settle periods without a change are no rollout that goes on.
const STALLED: u32 = 12;

/// A Lease that was silent for this many lease durations is nobody's: four times what a holder or a replica needs to be
/// taken for gone.
const SAFE: u32 = 4;

/// A kind that is said to fail no more may be the only one that is moved for this many settle periods: what went
/// elsewhere by failing comes back by itself.
const AFTERCARE: u32 = 2;

/// Whoever stops names its successors and says that it stops in one instant and in several writes: until the last of
/// them is seen it looks like a replica that takes shards and has next to none.
const WHOLE: Duration = Duration::from_secs(1);

/// A record, and since when this version of it is known.
#[derive(Clone, Debug)]
struct Sighted<T> {
    what: T,
    since: Moment,
}

/// What one replica knows of the others.
#[derive(Debug)]
pub struct Roster {
    identity: String,
    plans: BTreeMap<String, Plan>,
    rules: Rules,
    me: Profile,
    members: BTreeMap<String, Sighted<Member>>,
    /// Those of whom only a list has told: they may have been gone for long when it was made.
    hearsay: BTreeSet<String>,
    /// Those who have let a shard expire since they were last heard of.
    suspects: BTreeSet<String>,
    holdings: BTreeMap<String, Sighted<Holding>>,
    dead: BTreeSet<String>,
    /// Everything is seen: the watch is up.
    current: bool,
    /// The replicas that count and what they cannot run, at the last look, and since when that is so.
    crew: BTreeMap<String, (Activity, BTreeSet<String>)>,
    changed_at: Moment,
    joined_at: Moment,
    /// When a shard was last said to fail, by Lease; those only for which that matters still.
    ailing: BTreeMap<String, Moment>,
    /// Free shards whose target we were at the last look: ours to be, while the replicas are the same. What we take is seen
    /// one by one, and must not make us the target of others meanwhile.
    claims: BTreeSet<String>,
    /// By Lease that we hold: whom we have named to follow at the last look.
    naming: BTreeMap<String, String>,
    /// When another holder was last seen to name a successor.
    named_at: Moment,
    /// A rollout has ended, and its result was not evened out yet.
    rolled: bool,
    generations: usize,
}

/// A replica that counts, for one look.
struct Present<'a> {
    identity: &'a str,
    profile: &'a Profile,
    newest: bool,
}

/// All that one decision rests on.
struct View<'a> {
    leases: Vec<&'a str>,
    present: Vec<Present<'a>>,
    /// Our own place among them.
    me: Option<usize>,
    shards: Vec<placement::Shard<'a>>,
    /// By shard: nobody holds it, and nobody is named or wanted for it.
    free: Vec<bool>,
    replicas: Vec<placement::Replica<'a>>,
}

impl Roster {
    /// A roster of one: nothing is seen yet.
    pub fn new(identity: String, me: Profile, plans: Vec<Plan>, rules: Rules) -> Self {
        Self {
            identity,
            plans: plans.into_iter().map(|plan| (plan.lease.clone(), plan)).collect(),
            rules,
            me,
            members: BTreeMap::new(),
            hearsay: BTreeSet::new(),
            suspects: BTreeSet::new(),
            holdings: BTreeMap::new(),
            dead: BTreeSet::new(),
            current: false,
            crew: BTreeMap::new(),
            changed_at: Moment::default(),
            joined_at: Moment::default(),
            ailing: BTreeMap::new(),
            claims: BTreeSet::new(),
            naming: BTreeMap::new(),
            named_at: Moment::default(),
            rolled: false,
            generations: 1,
        }
    }

    /// The longest that a replica lets others go first; also whom the last holder named.
    pub fn grace(&self) -> Duration {
        self.rules.grace
    }

    /// It was held in our Pod before this process was started.
    pub fn comes_back(&self, lease: &str) -> bool {
        let holding = self.holdings.get(lease).map(|holding| &holding.what);
        let pod = holding.and_then(|holding| holding.holder_pod.as_ref());
        pod.is_some() && pod == self.me.pod_uid.as_ref()
    }

    /// What we say of ourselves.
    pub fn me(&self) -> &Profile {
        &self.me
    }

    /// Changes what we say of ourselves.
    pub fn introduce(&mut self, me: Profile) {
        self.me = me;
    }

    /// The watch is down: what is known grows old, and nothing is to be moved on its account.
    pub fn blind(&mut self) {
        self.current = false;
    }

    /// Everything there is. What was known before and is the same version keeps its time.
    pub fn listed(&mut self, now: Moment, members: Vec<Member>, holdings: Vec<(String, Holding)>) {
        let names: BTreeSet<_> = members.iter().map(|member| member.identity.clone()).collect();
        self.members.retain(|identity, _| names.contains(identity));
        let names: BTreeSet<_> = holdings.iter().map(|(lease, _)| lease.clone()).collect();
        self.holdings.retain(|lease, _| names.contains(lease));
        self.hearsay.retain(|identity| self.members.contains_key(identity));
        self.suspects.retain(|identity| self.members.contains_key(identity));
        for member in members {
            let (identity, known) = (member.identity.clone(), self.members.get(&member.identity));
            let renewed = known.is_none_or(|known| known.what.version != member.version);
            self.member(now, member);
            if renewed && identity != self.identity {
                self.hearsay.insert(identity);
            }
        }
        for (lease, holding) in holdings {
            self.holding(now, &lease, Some(holding));
        }
        self.current = true;
    }

    /// A membership Lease has changed. Whether more than its time has.
    pub fn member(&mut self, now: Moment, member: Member) -> bool {
        let known = self.members.get(&member.identity);
        if known.is_some_and(|known| known.what.version == member.version) {
            return false;
        }
        let expired = known.is_some_and(|known| now >= self.silent_at(known.what.duration, known.since));
        let heard = self.hearsay.remove(&member.identity) | self.suspects.remove(&member.identity);
        let told = heard || expired || known.is_none_or(|known| known.what.profile != member.profile);
        self.members.insert(member.identity.clone(), Sighted { what: member, since: now });
        told
    }

    /// A membership Lease is gone. Whether it was known.
    pub fn member_gone(&mut self, identity: &str) -> bool {
        self.hearsay.remove(identity);
        self.suspects.remove(identity);
        self.members.remove(identity).is_some()
    }

    /// A shard's Lease has changed, or is gone. Whether more than its time has.
    pub fn holding(&mut self, now: Moment, lease: &str, holding: Option<Holding>) -> bool {
        let Some(holding) = holding else { return self.holdings.remove(lease).is_some() };
        let known = self.holdings.get(lease);
        if known.is_some_and(|known| known.what.version == holding.version) {
            return false;
        }
        let expired = known.is_some_and(|known| now >= self.silent_at(known.what.duration, known.since));
        let told = expired
            || known.is_none_or(|known| {
                let comparable = |holding: &Holding| Holding {
                    version: Version { uid: holding.version.uid.clone(), resource_version: String::new() },
                    ..holding.clone()
                };
                comparable(&known.what) != comparable(&holding)
            });
        let named = known.and_then(|known| known.what.successor.as_ref());
        if holding.successor.is_some()
            && holding.successor.as_ref() != named
            && holding.holder.as_ref() != Some(&self.identity)
        {
            self.named_at = now;
        }
        self.holdings.insert(lease.to_owned(), Sighted { what: holding, since: now });
        told
    }

    /// These processes are proven dead, and no other of their Pod runs. Whether one of them was not known to be.
    pub fn bury(&mut self, dead: &BTreeSet<String>) -> bool {
        let news = dead.iter().any(|identity| !self.dead.contains(identity));
        // The dead stay dead; those that nothing names any more can be forgotten.
        let (members, holdings) = (&self.members, &self.holdings);
        let holds = |identity: &String| holdings.values().any(|it| it.what.holder.as_ref() == Some(identity));
        self.dead.retain(|identity| members.contains_key(identity) || holds(identity));
        self.dead.extend(dead.iter().cloned());
        news
    }

    /// Membership Leases whose process gave our Pod's uid and is not ours: we hold the Pod's lock, so it is dead.
    pub fn predecessors(&self) -> impl Iterator<Item = &Member> {
        self.members
            .values()
            .map(|member| &member.what)
            .filter(|member| member.identity != self.identity && self.me.pod_uid.is_some())
            .filter(|member| member.profile.pod_uid == self.me.pod_uid)
    }

    /// Leases that nobody needs any more, by name, at the version they may be deleted at: membership of processes that
    /// are gone, and shards that no replica is configured for. Never one that was renewed within [`SAFE`] lease durations.
    /// One replica sees to it, so that the others find nothing to do.
    pub fn litter(&self, now: Moment) -> Vec<(String, Version)> {
        let present = self.present(now);
        let collector = present.iter().find(|one| one.profile.activity == Activity::Active);
        if !self.current || collector.is_none_or(|one| one.identity != self.identity) {
            return Vec::new();
        }
        let safe = |duration: Option<Duration>, since: Moment| {
            now >= since + duration.unwrap_or_default().max(self.rules.lease_duration) * SAFE
        };
        let gone = self.members.values().filter(|member| {
            let dead = self.dead.contains(&member.what.identity);
            let absent = !present.iter().any(|one| one.identity == member.what.identity);
            absent && (dead || safe(member.what.duration, member.since))
        });
        let gone = gone.map(|member| (member.what.name.clone(), member.what.version.clone()));
        let orphaned = self.holdings.iter().filter(|(lease, holding)| {
            let known = present.iter().any(|one| one.profile.shards.contains(*lease));
            !known && !self.plans.contains_key(*lease) && safe(holding.what.duration, holding.since)
        });
        let orphaned = orphaned.map(|(lease, holding)| (lease.clone(), holding.what.version.clone()));
        gone.chain(orphaned).collect()
    }

    /// What to do about each shard at `now`.
    pub fn advise(&mut self, now: Moment) -> Counsel {
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
        let crew = view.present.iter().map(|one| (one.identity.to_owned(), one.profile.activity, one.newest));
        let mut counsel = Counsel { shards: BTreeMap::new(), crew: crew.collect(), next: self.next_change(now) };
        let mut moving = self.a_move_is_on_its_way(&view);
        let mut queued = self.weight_held();
        for (index, lease) in view.leases.iter().enumerate() {
            let Some(plan) = self.plans.get(*lease) else { continue };
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
                    let token = holding.map(token_of);
                    let prepared = token.is_some() && successor.profile.prepared.get(*lease) == token.as_ref();
                    Some((successor.identity.to_owned(), prepared))
                });
            } else {
                let named = holding.filter(|holding| holding.successor.as_deref() == Some(self.identity.as_str()));
                advice.named = named.map(token_of);
                let may_be_next = match plan.standby {
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
            counsel.shards.insert((*lease).to_owned(), advice);
        }
        self.claims = claims;
        let named = |(lease, advice): (&String, &Advice)| Some((lease.clone(), advice.hand_over.as_ref()?.0.clone()));
        self.naming = counsel.shards.iter().filter_map(named).collect();
        if settled && moves == Moves::Planned && !moving {
            self.rolled = false;
        }
        counsel
    }

    /// Without the watch nobody is named and nothing is moved, and whoever sees goes first.
    fn advise_blindly(&mut self) -> Counsel {
        self.naming.clear();
        let advice = |_: &Plan| Advice { patience: self.rules.grace, ..Advice::default() };
        let shards = self.plans.values().map(|plan| (plan.lease.clone(), advice(plan))).collect();
        Counsel { shards, crew: vec![(self.identity.clone(), self.me.activity, true)], next: None }
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
        match rank {
            Some(0) if now < self.joined_at + grace => {
                // Replicas that start together do not know of each other yet: one takes its shards slowly,
                // so that the next one finds some left.
                let total: u32 = self.plans.values().map(|plan| plan.weight).sum();
                let before = *queued;
                // The weight may be what a hand wrote on the Lease.
                *queued = queued.saturating_add(view.shards[shard].weight);
                grace.mul_f64(f64::from(before.min(total)) / f64::from(total.max(1)))
            }
            Some(0) => Duration::ZERO,
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
        let held = |plan: &&Plan| self.holdings.get(&plan.lease).is_some_and(|holding| ours(&holding.what));
        self.plans.values().filter(held).map(|plan| plan.weight).sum()
    }

    /// Somebody asked for it by hand, and where it is wanted it can be run.
    fn is_wanted(&self, view: &View<'_>, shard: usize) -> bool {
        let wanted = self.holdings.get(view.leases[shard]).and_then(|holding| holding.what.wanted.as_deref());
        wanted.is_some_and(|wanted| {
            let called = |one: &Present<'_>| one.identity == wanted || one.profile.pod == wanted;
            view.shards[shard].holder.is_some_and(|at| called(&view.present[at]))
        })
    }

    /// Whom its holder has named. What we say ourselves is seen late, and a word taken back is no word.
    fn successor<'a>(&'a self, lease: &str, holding: &'a Holding) -> Option<&'a str> {
        if holding.holder.as_ref() == Some(&self.identity) {
            return self.naming.get(lease).map(String::as_str);
        }
        holding.successor.as_deref()
    }

    fn must_leave(&self, lease: &str) -> bool {
        self.me.activity == Activity::Draining || !self.me.can_run(lease)
    }

    /// One of our shards is being moved for balance already: a replica gives away one at a time.
    fn a_move_is_on_its_way(&self, view: &View<'_>) -> bool {
        view.leases.iter().enumerate().any(|(index, lease)| {
            self.holdings.get(*lease).is_some_and(|holding| {
                let ours = holding.what.holder.as_deref() == Some(self.identity.as_str());
                let elsewhere = view.shards[index].holder.map(|holder| view.present[holder].identity);
                ours && !self.is_wanted(view, index) && elsewhere.is_some_and(|holder| holder != self.identity)
            })
        })
    }

    fn may_move(&self, now: Moment, present: &[Present<'_>]) -> bool {
        let settled = now >= (self.changed_at + self.rules.settle).max(self.named_at + WHOLE);
        let rolling = self.generations > 1 && now < self.changed_at + self.rules.settle * STALLED;
        settled
            && !rolling
            && !present.iter().any(|one| self.hearsay.contains(one.identity))
            && match self.rules.rebalance {
                Rebalance::Automatic => true,
                Rebalance::OnRestart => self.rolled,
                Rebalance::Never => false,
            }
    }

    fn notice_changes(&mut self, now: Moment) {
        // Whoever takes the shard takes away what it is suspected for.
        let expired = self.expired(now);
        let suspects = self.members.values().filter(|member| has_let_expire(member, &expired));
        let suspects: Vec<_> = suspects.map(|member| member.what.identity.clone()).collect();
        self.suspects.extend(suspects);
        let present = self.present(now);
        let state = |one: &Present<'_>| (one.profile.activity, one.profile.unable.clone());
        let crew: BTreeMap<_, _> = present.iter().map(|one| (one.identity.to_owned(), state(one))).collect();
        let active = present.iter().filter(|one| one.profile.activity == Activity::Active);
        let generations = active.map(|one| one.profile.generation.as_str()).collect::<BTreeSet<_>>().len();
        let ailing: BTreeSet<_> = present.iter().flat_map(|one| one.profile.failing.iter().cloned()).collect();
        self.ailing.retain(|_, last| now < *last + self.rules.settle * AFTERCARE);
        self.ailing.extend(ailing.into_iter().map(|lease| (lease, now)));
        if crew != self.crew {
            if crew.keys().any(|identity| !self.crew.contains_key(identity)) {
                self.joined_at = now;
            }
            self.changed_at = now;
            self.claims.clear();
            self.crew = crew;
        }
        self.rolled |= self.generations > 1 && generations == 1;
        self.generations = generations;
    }

    /// The replicas that count: those whose membership is renewed, whose process is not known dead, and who have not
    /// let a shard expire since they were last heard of. We count ourselves whatever anybody stored.
    fn present(&self, now: Moment) -> Vec<Present<'_>> {
        let expired = self.expired(now);
        let mut present = vec![Present { identity: &self.identity, profile: &self.me, newest: false }];
        for member in self.members.values() {
            let (what, since) = (&member.what, member.since);
            let is_there = what.identity != self.identity
                && now < self.silent_at(what.duration, since)
                && !self.dead.contains(&what.identity)
                && !self.is_replaced(what)
                && !self.suspects.contains(&what.identity)
                && !has_let_expire(member, &expired);
            if is_there {
                present.push(Present { identity: &what.identity, profile: &what.profile, newest: false });
            }
        }
        present.sort_by_key(|one| one.identity);
        let newest = self.newest_generation(&present).map(str::to_owned);
        for one in &mut present {
            one.newest = newest.as_deref() == Some(one.profile.generation.as_str());
        }
        present
    }

    /// When a shard expired last, by holder.
    fn expired(&self, now: Moment) -> BTreeMap<&str, Moment> {
        let mut expired = BTreeMap::new();
        for holding in self.holdings.values() {
            let silent = self.silent_at(holding.what.duration, holding.since);
            if let (Some(holder), true) = (holding.what.holder.as_deref(), silent <= now) {
                let last = expired.entry(holder).or_insert(silent);
                *last = silent.max(*last);
            }
        }
        expired
    }

    /// A later process of the same Pod is there.
    fn is_replaced(&self, member: &Member) -> bool {
        let same_pod = |uid: &Option<String>| uid.is_some() && *uid == member.profile.pod_uid;
        same_pod(&self.me.pod_uid)
            || self.members.values().any(|other| {
                let later = other.what.created > member.created;
                other.what.identity != member.identity && same_pod(&other.what.profile.pod_uid) && later
            })
    }

    /// The generation of the latest revision among active replicas; without revisions, the one that began last.
    fn newest_generation<'a>(&self, present: &[Present<'a>]) -> Option<&'a str> {
        let mut generations: BTreeMap<&str, (Option<u64>, i64)> = BTreeMap::new();
        for one in present.iter().filter(|one| one.profile.activity == Activity::Active) {
            let created = self.members.get(one.identity).map_or(i64::MAX, |member| member.what.created);
            let known = generations.entry(one.profile.generation.as_str()).or_insert((None, created));
            // Of a rollback some replicas bear the old revision still; and one that was restarted began before it did.
            *known = (known.0.max(one.profile.revision), known.1.min(created));
        }
        generations.into_iter().max_by_key(|(name, order)| (*order, *name)).map(|(name, _)| name)
    }

    fn view(&self, now: Moment) -> View<'_> {
        let present = self.present(now);
        let leases: BTreeSet<&str> = self.plans.keys().chain(self.holdings.keys()).map(String::as_str).collect();
        let leases: Vec<_> = leases.into_iter().collect();
        let mut shards: Vec<_> = leases.iter().map(|lease| self.shard(now, lease, &present)).collect();
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
                able: Able::Only(leases.iter().map(|lease| one.profile.can_run(lease)).collect()),
            })
            .collect();
        View { leases, present, me, shards, free, replicas }
    }

    fn shard<'a>(&'a self, now: Moment, lease: &'a str, present: &[Present<'_>]) -> placement::Shard<'a> {
        let plan = self.plans.get(lease);
        let known = self.holdings.get(lease);
        // Replicas whose configurations differ must count alike, or each gives the other what it has just got.
        let weight = known.and_then(|it| it.what.weight).or(plan.map(|plan| plan.weight)).unwrap_or(1);
        // What has failed somewhere goes round the replicas until it works, and may go back when it has worked for a
        // while: the others are not moved about because of it.
        let fails = |index: &usize| present[*index].profile.failing.contains(lease);
        let ailing = self.ailing.contains_key(lease).then(|| (0..present.len()).filter(fails).collect());
        let Some(Sighted { what: holding, since }) = known else {
            return placement::Shard { lease, weight, holder: None, tie: Tie::Held, ailing, taken: false };
        };
        // They stand in the order of their identities.
        let find = |name: &str| present.binary_search_by_key(&name, |one| one.identity).ok();
        let takes = |index: &usize| {
            let profile = present[*index].profile;
            profile.activity == Activity::Active && profile.can_run(lease)
        };
        let holder = holding
            .holder
            .as_deref()
            .filter(|holder| now < self.silent_at(holding.duration, *since) && !self.dead.contains(*holder));
        let wanted = holding.wanted.as_deref().and_then(|wanted| {
            find(wanted).or_else(|| present.iter().position(|one| one.profile.pod == wanted)).filter(takes)
        });
        // Free for longer than the grace: whoever was named has not come.
        let awaited = holder.is_some() || now < *since + self.rules.grace;
        let named = self.successor(lease, holding).filter(|_| awaited).and_then(find).filter(takes);
        // Several that stop at once name the same replica before they know of each other. Whom a shard goes to can be
        // mended until that one is prepared, as long as it goes.
        let leaves = holder.and_then(find).is_some_and(|index| !takes(&index));
        let is_prepared = |index: usize| present[index].profile.prepared.get(lease) == Some(&token_of(holding));
        // A later process of the holder's Pod is there: the holder is dead, and that one takes its shards back.
        let back = holding.holder_pod.as_ref().and_then(|uid| {
            let same_pod = |one: &Present<'_>| one.profile.pod_uid.as_ref() == Some(uid);
            present.iter().position(|one| same_pod(one) && Some(one.identity) != holding.holder.as_deref())
        });
        let held = holder.and_then(|holder| back.or_else(|| find(holder)));
        placement::Shard {
            lease,
            weight,
            holder: wanted.or(named).or(held),
            tie: match (wanted, named) {
                (None, None) => Tie::Held,
                (None, Some(named)) if leaves && !is_prepared(named) => Tie::Loose,
                // What is on its way arrives, whatever would be decided without it: else it might be called back for ever.
                _ => Tie::Pinned,
            },
            ailing,
            taken: holder.is_some() && held.is_none() && named.is_none() && wanted.is_none(),
        }
    }

    /// When what is seen changes its meaning by itself.
    fn next_change(&self, now: Moment) -> Option<Moment> {
        let silent = self
            .members
            .values()
            .map(|member| self.silent_at(member.what.duration, member.since))
            .chain(self.holdings.values().map(|holding| self.silent_at(holding.what.duration, holding.since)));
        let named = self.holdings.values().filter(|holding| holding.what.successor.is_some());
        let awaited = named.map(|holding| holding.since + self.rules.grace);
        let settled = [
            self.changed_at + self.rules.settle,
            self.changed_at + self.rules.settle * STALLED,
            self.joined_at + self.rules.grace,
            self.named_at + WHOLE,
        ];
        let cared = self.ailing.values().map(|last| *last + self.rules.settle * AFTERCARE);
        silent.chain(awaited).chain(settled).chain(cared).filter(|moment| *moment > now).min()
    }

    fn silent_at(&self, duration: Option<Duration>, since: Moment) -> Moment {
        since + duration.unwrap_or(self.rules.lease_duration)
    }
}

/// A shard of it has expired since it was last heard of.
fn has_let_expire(member: &Sighted<Member>, expired: &BTreeMap<&str, Moment>) -> bool {
    expired.get(member.what.identity.as_str()).is_some_and(|last| member.since < *last)
}

/// Names the term of a holding: the next one has another.
fn token_of(holding: &Holding) -> String {
    format!("{}/{}", holding.version.uid, holding.transitions)
}

/// Where placement would put a shard if its holder could not run it: for whoever asks for it to be elsewhere.
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
            ailing: None,
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

#[cfg(test)]
mod tests;
