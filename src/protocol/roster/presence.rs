//! Which replicas count: by their own word, as long as nothing speaks against it.

use std::collections::{BTreeMap, BTreeSet};

use super::{FAILING_COOL_DOWN, Known, Present, Roster, State};
use crate::protocol::{
    lease::Member,
    membership::{Activity, Profile},
    moment::Moment,
};

impl Roster {
    pub(super) fn notice_changes(&mut self, now: Moment) {
        // A replica that lets a shard expire is overdue, also after another has taken the shard.
        let expired = self.expired(now);
        let overdue = self.members.values().filter(|member| has_let_expire(member, &expired));
        let overdue: Vec<_> = overdue.map(|member| member.what.identity.clone()).collect();
        self.overdue.extend(overdue);
        let present = self.present(now);
        let state = |one: &Present<'_>| State {
            activity: one.profile.activity,
            blind: one.profile.blind,
            unable: one.profile.unable.clone(),
        };
        let peers: BTreeMap<_, _> = present.iter().map(|one| (one.identity.to_owned(), state(one))).collect();
        let generations = generations_of(&present);
        let leases = self.specs.keys().chain(self.holdings.keys());
        let fails = |lease: &&String| present.iter().any(|one| one.profile.failing.contains(lease));
        let failing: Vec<_> = match present.iter().all(|one| one.profile.failing.is_empty()) {
            true => Vec::new(),
            false => leases.filter(fails).cloned().collect(),
        };
        self.failing.retain(|_, last| now < *last + self.rules.settle * FAILING_COOL_DOWN);
        self.failing.extend(failing.into_iter().map(|lease| (lease, now)));
        let rolled = self.rolled || (self.generations > 1 && generations == 1);
        if peers != self.peers {
            // Of a rollout the last replicas go, and none comes.
            let none_comes = peers.keys().all(|identity| self.peers.contains_key(identity));
            if rolled && none_comes && peers.len() < self.peers.len() {
                self.rolled_at = now;
            }
            if peers.keys().any(|identity| !self.peers.contains_key(identity)) {
                self.joined_at = now;
            }
            self.changed_at = now;
            self.claims.clear();
            self.peers = peers;
        }
        self.rolled = rolled;
        self.generations = generations;
    }

    /// The replicas that count: those whose membership is renewed, whose process is not known dead, and which have not
    /// let a shard expire since they were last heard of. We count ourselves whatever is stored.
    pub(super) fn present(&self, now: Moment) -> Vec<Present<'_>> {
        let (expired, latest) = (self.expired(now), self.latest_of_pods());
        let mut present = vec![Present { identity: &self.identity, profile: &self.me, newest: false }];
        for member in self.members.values() {
            let (what, since) = (&member.what, member.since);
            let is_there = what.identity != self.identity
                && self.is_of_ours(what)
                && now < self.silent_at(what.duration, since)
                && !self.is_dead(&what.identity, what.profile.pod_uid.as_deref())
                && !self.is_replaced(what, &latest)
                && !self.overdue.contains(&what.identity)
                && !has_let_expire(member, &expired);
            if is_there {
                present.push(Present { identity: &what.identity, profile: &what.profile, newest: false });
            }
        }
        present.sort_by_key(|one| one.identity);
        let newest = self.newest_generations(&present);
        for one in &mut present {
            one.newest = newest.get(&one.profile.owner.as_deref()) == Some(&one.profile.generation.as_str());
        }
        present
    }

    /// When a shard expired last, by holder.
    pub(super) fn expired(&self, now: Moment) -> BTreeMap<&str, Moment> {
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

    /// The Pods that a replica of ours can be in.
    pub fn see_pods(&mut self, pods: Option<BTreeMap<String, String>>) {
        self.pods = pods;
    }

    /// Whether a membership is of a live Pod of ours: by its name, by its uid if it says one, and by the identity, which
    /// begins with the name. Who wrote a Lease is not said on it, so this is all that can be asked. While the Pods are not
    /// known, every membership counts.
    pub(super) fn is_of_ours(&self, member: &Member) -> bool {
        let Some(pods) = &self.pods else { return true };
        let Profile { pod, pod_uid, .. } = &member.profile;
        let is_live = pods.get(pod).is_some_and(|uid| pod_uid.as_ref().is_none_or(|said| said == uid));
        is_live && pod_of(&member.identity) == Some(pod)
    }

    /// Whether this identity, which holds a Lease, is of no replica that we know of and of no Pod of ours. Nothing is said
    /// while the Pods are not known.
    pub fn is_stranger(&self, holder: &str) -> bool {
        let Some(pods) = &self.pods else { return false };
        holder != self.identity
            && !self.members.contains_key(holder)
            && !self.dead.contains_key(holder)
            && !pod_of(holder).is_some_and(|pod| pods.contains_key(pod))
    }

    /// By uid of a Pod: when its latest membership was made.
    fn latest_of_pods(&self) -> BTreeMap<&str, i64> {
        let mut latest = BTreeMap::<&str, i64>::new();
        for member in self.members.values().map(|member| &member.what) {
            let Some(uid) = member.profile.pod_uid.as_deref() else { continue };
            let last = latest.entry(uid).or_insert(member.created);
            *last = member.created.max(*last);
        }
        latest
    }

    /// A later process of the same Pod is there.
    fn is_replaced(&self, member: &Member, latest: &BTreeMap<&str, i64>) -> bool {
        let Some(uid) = &member.profile.pod_uid else { return false };
        self.me.pod_uid.as_ref() == Some(uid) || latest.get(uid.as_str()).is_some_and(|at| *at > member.created)
    }

    /// By owner: the generation of the latest revision among active replicas; without revisions, the one that began last.
    /// Two Deployments of one instance are rolled out each by itself.
    pub(super) fn newest_generations<'a>(&self, present: &[Present<'a>]) -> BTreeMap<Option<&'a str>, &'a str> {
        let mut owners = BTreeMap::<Option<&str>, BTreeMap<&str, (Option<u64>, i64)>>::new();
        for one in present.iter().filter(|one| one.profile.activity == Activity::Active) {
            let created = self.members.get(one.identity).map_or(i64::MAX, |member| member.what.created);
            let generations = owners.entry(one.profile.owner.as_deref()).or_default();
            let known = generations.entry(one.profile.generation.as_str()).or_insert((None, created));
            // Of a rollback some replicas bear the old revision still; and one that was restarted began before it did.
            *known = (known.0.max(one.profile.revision), known.1.min(created));
        }
        let newest = |generations: BTreeMap<&'a str, (Option<u64>, i64)>| {
            generations.into_iter().max_by_key(|(name, order)| (*order, *name)).map(|(name, _)| name)
        };
        owners.into_iter().filter_map(|(owner, generations)| Some((owner, newest(generations)?))).collect()
    }
}

/// How many generations live side by side, of the owner that has most. One that has just started does not know its owner yet,
/// and is one more of any.
fn generations_of(present: &[Present<'_>]) -> usize {
    let mut by_owner = BTreeMap::<Option<&str>, BTreeSet<&str>>::new();
    for one in present.iter().filter(|one| one.profile.activity == Activity::Active) {
        by_owner.entry(one.profile.owner.as_deref()).or_default().insert(&one.profile.generation);
    }
    let unowned = by_owner.remove(&None).unwrap_or_default();
    by_owner.values().map(|owned| owned.union(&unowned).count()).max().unwrap_or(unowned.len())
}

/// The name of the Pod that an identity is of.
pub(super) fn pod_of(identity: &str) -> Option<&str> {
    Some(identity.rsplit_once('_')?.0)
}

/// A shard of it has expired since it was last heard of.
fn has_let_expire(member: &Known<Member>, expired: &BTreeMap<&str, Moment>) -> bool {
    expired.get(member.what.identity.as_str()).is_some_and(|last| member.since < *last)
}
