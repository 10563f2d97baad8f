//! Who should hold what: every replica computes it from what all of them publish, and comes to the same answer.
//!
//! Pure. It is advice, the Lease is the lock: a stale or wrong view costs balance, never safety.
//!
//! Shards and replicas are brought into one order by name first, so that how they were listed decides nothing.

use std::{
    cmp::{Ordering, Reverse},
    ops::Range,
};

use super::hash::{mix, name_hash};

/// One shard, as far as placing it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard<'a> {
    /// Name of its Lease.
    pub lease: &'a str,
    /// How much work it is.
    pub weight: u32,
    /// Index of the replica that holds it (or is named to get it), if that is a live one.
    pub holder: Option<usize>,
    /// What may take it from there.
    pub tie: Tie,
    /// It has failed lately, at these replicas: wherever it goes, no other shard is moved because of it, and it is not
    /// moved to them for balance.
    pub failing: Option<Vec<usize>>,
    /// Replicas that did not take it when it was given to them: another one is chosen, if there is one.
    pub avoid: Vec<usize>,
    /// Held by another holder than one of the replicas: no replica is its target.
    pub taken: bool,
}

/// What may take a shard from its holder while that one can run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tie {
    /// Balance, if [`Moves::Planned`] allows it.
    #[default]
    Held,
    /// Nothing: it was asked for by hand, or it is as good as there.
    Pinned,
    /// Balance, always: its holder gives it up in any case, so that it costs no move to send it elsewhere.
    Loose,
}

/// One live replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica<'a> {
    /// Its holder identity.
    pub identity: &'a str,
    /// How much it takes compared with the others; at least 1.
    pub capacity: u32,
    /// Takes shards; a draining one does not.
    pub active: bool,
    /// Of the newest generation.
    pub newest: bool,
    /// Which shards it can run.
    pub able: Able,
}

/// Which shards a replica can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Able {
    /// Every one.
    All,
    /// By index of the shard; one that is missing cannot be run.
    Only(Vec<bool>),
}

/// Whether held shards may be moved for balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    /// They may, towards the newest generation.
    Planned,
    /// They stay with their holder as long as it can run them, but for [`Tie::Loose`].
    None,
}

/// The whole decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// By shard: index of the replica that should hold it.
    pub targets: Vec<Option<usize>>,
    /// By shard: index of the replica that gets it if its target goes.
    pub successors: Vec<Option<usize>>,
}

/// Decides who should hold what.
///
/// A live holder that can run its shard keeps it. Every other shard goes to the eligible replica that has the least
/// load per capacity with it, of the newest generation if one of that is eligible. Then the shards that their [`Tie`] and
/// `moves` allow to move to the newest generation until no single move would lower the higher load of the two replicas
/// concerned.
/// Failing shards are no load until all this is decided for the others, and what their absence may explain is not evened
/// out; then it is decided for them.
/// Deciding again with the targets as holders changes nothing.
pub fn placement(shards: &[Shard<'_>], replicas: &[Replica<'_>], moves: Moves) -> Placement {
    let mut draft = Draft::new(shards, replicas);
    for failing in [false, true] {
        draft.count_held(failing);
        draft.place_unheld(failing);
        Balance::new(&mut draft, failing, moves).run();
    }
    let successors = draft.successors();
    Placement {
        targets: draft.by_shard(draft.items.iter().map(|item| item.at)),
        successors: draft.by_shard(successors.into_iter()),
    }
}

/// The place of `replica` in the line for `shard`, if it is eligible.
///
/// 0 is its target's alone, 1 the successor's, whose cache is the warm one. The others follow, those of the newest
/// generation first, by load per capacity.
pub fn rank(
    shard: usize,
    replica: usize,
    shards: &[Shard<'_>],
    replicas: &[Replica<'_>],
    placement: &Placement,
) -> Option<usize> {
    let (wanted, me) = (shards.get(shard)?, replicas.get(replica)?);
    let eligible = |replica: &Replica<'_>| replica.active && replica.able.can(shard);
    if !eligible(me) {
        return None;
    }
    let named = [&placement.targets, &placement.successors].map(|line| line.get(shard).copied().flatten());
    if let Some(place) = named.iter().position(|named| *named == Some(replica)) {
        return Some(place);
    }

    let mut loads = vec![0_u64; replicas.len()];
    for (shard, target) in shards.iter().zip(&placement.targets) {
        if let Some(load) = target.and_then(|target| loads.get_mut(target)) {
            *load += weight(shard);
        }
    }
    let shard_hash = shard_hash(wanted.lease);
    let avoided = |replica: &Replica<'_>| {
        wanted.avoid.iter().any(|avoid| replicas.get(*avoid).is_some_and(|it| it.identity == replica.identity))
    };
    let cmp = |(a_load, a): (u64, &Replica<'_>), (b_load, b): (u64, &Replica<'_>)| {
        let ratio = |load: u64, replica: &Replica<'_>| Ratio(load + weight(wanted), capacity(replica));
        let affinity = |replica: &Replica<'_>| affinity(name_hash(replica.identity), shard_hash);
        (avoided(a).cmp(&avoided(b)))
            .then_with(|| b.newest.cmp(&a.newest))
            .then_with(|| ratio(a_load, a).cmp(&ratio(b_load, b)))
            .then_with(|| affinity(b).cmp(&affinity(a)))
            .then_with(|| a.identity.cmp(b.identity))
    };
    let goes_first = |&(other, candidate): &(usize, &Replica<'_>)| {
        eligible(candidate)
            && !named.contains(&Some(other))
            && cmp((loads[other], candidate), (loads[replica], me)).is_lt()
    };
    // The target's place stays its own when there is no target: then no replica is to be quick.
    let named_places = 1 + usize::from(named[1].is_some());
    Some(named_places + replicas.iter().enumerate().filter(goes_first).count())
}

/// A shard that may have a target.
struct Item<'a> {
    /// Index in what was given.
    index: usize,
    weight: u64,
    hash: u64,
    tie: Tie,
    /// The replicas that it has failed at lately.
    failing: Option<&'a [usize]>,
    /// The replicas that did not take it.
    avoid: &'a [usize],
    /// The candidate that holds it and can go on.
    home: Option<usize>,
    /// The candidate that is to have it.
    at: Option<usize>,
}

/// A replica that takes shards.
struct Candidate<'a> {
    /// Index in what was given.
    index: usize,
    capacity: u64,
    hash: u64,
    able: &'a Able,
}

/// A decision on its way.
struct Draft<'a> {
    /// How many shards were given.
    shards: usize,
    /// In the order in which they are placed: heavier first, then by name.
    items: Vec<Item<'a>>,
    /// Those of the newest generation first, then by identity.
    candidates: Vec<Candidate<'a>>,
    /// How many of the candidates are of the newest generation.
    newest: usize,
    /// By candidate.
    loads: Vec<u64>,
}

impl<'a> Draft<'a> {
    /// Everything that can stay where it is, nothing else placed, and nothing counted.
    fn new(shards: &'a [Shard<'_>], replicas: &'a [Replica<'_>]) -> Self {
        let mut active: Vec<_> = replicas.iter().enumerate().filter(|(_, replica)| replica.active).collect();
        active.sort_by_key(|(_, replica)| (Reverse(replica.newest), replica.identity));
        let mut candidate_of = vec![None; replicas.len()];
        for (candidate, &(index, _)) in active.iter().enumerate() {
            candidate_of[index] = Some(candidate);
        }
        let newest = active.partition_point(|(_, replica)| replica.newest);
        let candidates: Vec<_> = active
            .into_iter()
            .map(|(index, replica)| Candidate {
                index,
                capacity: capacity(replica),
                hash: name_hash(replica.identity),
                able: &replica.able,
            })
            .collect();

        let mut placeable: Vec<_> = shards.iter().enumerate().filter(|(_, shard)| !shard.taken).collect();
        placeable.sort_by_key(|(_, shard)| (Reverse(weight(shard)), shard.lease));
        let loads = vec![0; candidates.len()];
        let items = placeable
            .into_iter()
            .map(|(index, shard)| {
                let holder = shard.holder.and_then(|holder| candidate_of.get(holder).copied().flatten());
                let home = holder.filter(|&holder| candidates[holder].able.can(index));
                let (weight, hash) = (weight(shard), shard_hash(shard.lease));
                Item {
                    index,
                    weight,
                    hash,
                    tie: shard.tie,
                    failing: shard.failing.as_deref(),
                    avoid: &shard.avoid,
                    home,
                    at: home,
                }
            })
            .collect();
        Self { shards: shards.len(), items, candidates, newest, loads }
    }

    /// Counts what stays where it is as load.
    fn count_held(&mut self, failing: bool) {
        for item in self.items.iter().filter(|item| item.fails() == failing) {
            if let Some(home) = item.home {
                self.loads[home] += item.weight;
            }
        }
    }

    /// Gives every shard that no candidate holds to one.
    fn place_unheld(&mut self, failing: bool) {
        for item in 0..self.items.len() {
            if self.items[item].fails() == failing && self.items[item].at.is_none() {
                self.items[item].at = self.take(item, None);
            }
        }
    }

    /// Chooses the candidate for a shard, `without` one of them, and counts the shard as its load.
    fn take(&mut self, item: usize, without: Option<usize>) -> Option<usize> {
        let item = &self.items[item];
        let (newest, older) = (0..self.newest, self.newest..self.candidates.len());
        let among = |candidates: &Range<usize>, shun| self.least(item, candidates.clone(), without, shun);
        let chosen = |shun| among(&newest, shun).or_else(|| among(&older, shun));
        let chosen = chosen(true).or_else(|| item.shuns_any().then(|| chosen(false)).flatten())?;
        self.loads[chosen] += item.weight;
        Some(chosen)
    }

    /// The candidate that has the least load per capacity with the shard; among equals the one it has most affinity to.
    /// `shun`: not one that it shuns.
    /// A plain loop: this is what a decision spends its time in.
    fn least(&self, item: &Item<'_>, among: Range<usize>, without: Option<usize>, shun: bool) -> Option<usize> {
        let mut best: Option<(usize, Ratio, u64)> = None;
        for candidate in among {
            let loaded = self.ratio(candidate, self.loads[candidate] + item.weight);
            let order = best.as_ref().map_or(Ordering::Less, |(_, least, _)| loaded.cmp(least));
            let Candidate { index, able, .. } = &self.candidates[candidate];
            let barred = Some(candidate) == without || (shun && item.shuns(*index));
            if order.is_gt() || barred || !able.can(item.index) {
                continue;
            }
            let affinity = self.affinity(candidate, item);
            if order.is_lt() || best.as_ref().is_some_and(|(_, _, most)| affinity > *most) {
                best = Some((candidate, loaded, affinity));
            }
        }
        best.map(|(candidate, ..)| candidate)
    }

    /// By item: who gets it if its target goes, and with it everything that it has.
    fn successors(&mut self) -> Vec<Option<usize>> {
        let mut successors = vec![None; self.items.len()];
        let mut failing = vec![0; self.candidates.len()];
        for item in self.items.iter().filter(|item| item.fails()) {
            if let Some(at) = item.at {
                failing[at] += item.weight;
            }
        }
        let sound: Vec<_> = self.loads.iter().zip(&failing).map(|(all, failing)| all - failing).collect();
        let orphans = self.items_of(|item| !item.fails()).into_iter().zip(self.items_of(|item| item.fails()));
        for (candidate, (of_sound, of_failing)) in orphans.enumerate() {
            self.loads.copy_from_slice(&sound);
            for item in of_sound {
                successors[item] = self.take(item, Some(candidate));
            }
            self.loads.iter_mut().zip(&failing).for_each(|(load, failing)| *load += failing);
            for item in of_failing {
                successors[item] = self.take(item, Some(candidate));
            }
        }
        successors
    }

    /// By candidate: those of its shards that are `wanted`, in their order.
    fn items_of(&self, wanted: impl Fn(&Item<'_>) -> bool) -> Vec<Vec<usize>> {
        let mut items = vec![Vec::new(); self.candidates.len()];
        for (index, item) in self.items.iter().enumerate() {
            if let Some(at) = item.at.filter(|_| wanted(item)) {
                items[at].push(index);
            }
        }
        items
    }

    fn ratio(&self, candidate: usize, load: u64) -> Ratio {
        Ratio(load, self.candidates[candidate].capacity)
    }

    /// How loaded a candidate is.
    fn loaded(&self, candidate: usize) -> Ratio {
        self.ratio(candidate, self.loads[candidate])
    }

    fn affinity(&self, candidate: usize, item: &Item<'_>) -> u64 {
        affinity(self.candidates[candidate].hash, item.hash)
    }

    /// From candidates by item to replicas by shard.
    fn by_shard(&self, candidates: impl Iterator<Item = Option<usize>>) -> Vec<Option<usize>> {
        let mut replicas = vec![None; self.shards];
        for (item, candidate) in self.items.iter().zip(candidates) {
            replicas[item.index] = candidate.map(|candidate| self.candidates[candidate].index);
        }
        replicas
    }
}

/// Of so many shards that would do as well the one that suits best is moved: more of them are not worth the time.
const ALIKE: usize = 32;

/// Moves for balance.
///
/// A shard may change its target several times on the way: only where it ends is published, so it changes hands once
/// or not at all. To stop it after its first step would leave steps to the next decision, and kinds would wander.
struct Balance<'p, 'a> {
    draft: &'p mut Draft<'a>,
    /// Which shards this is for; the others stay.
    failing: bool,
    /// The weight of those that are not counted: they may come to be where they seem to be missing.
    slack: u64,
    /// By candidate: those that may move, in their order.
    movable: Vec<Vec<usize>>,
    /// The candidates, the least loaded first.
    line: Vec<usize>,
}

impl<'p, 'a> Balance<'p, 'a> {
    fn new(draft: &'p mut Draft<'a>, failing: bool, moves: Moves) -> Self {
        let may_move = |tie| match tie {
            Tie::Held => moves == Moves::Planned,
            Tie::Pinned => false,
            Tie::Loose => true,
        };
        // What weighs nothing is nothing gained.
        let movable = draft.items_of(|item| item.fails() == failing && may_move(item.tie) && item.weight > 0);
        let mut line: Vec<_> = (0..draft.candidates.len()).collect();
        line.sort_by_key(|&candidate| (draft.loaded(candidate), candidate));
        let ails = draft.items.iter().filter(|item| item.fails() && !failing);
        let slack = ails.map(|item| item.weight).sum();
        Self { draft, failing, slack, movable, line }
    }

    /// Moves until nothing is gained. It ends, because each step lowers the loads, the highest first, or leaves them
    /// as they are and takes a move back.
    fn run(mut self) {
        while let Some((item, to)) = self.gain().or_else(|| self.needless()) {
            self.relocate(item, to);
        }
    }

    /// The move to make: from the most loaded to the least loaded between which one gains anything.
    fn gain(&self) -> Option<(usize, usize)> {
        self.line.iter().rev().find_map(|&donor| {
            let lightest = self.draft.items[*self.movable[donor].last()?].weight;
            let loaded = self.draft.loaded(donor);
            let lower = self.line.iter().take_while(|&&receiver| self.draft.loaded(receiver) < loaded);
            let receivers = lower.filter(|&&r| r < self.draft.newest && self.gains(donor, r, lightest));
            receivers.copied().find_map(|receiver| Some((self.best(donor, receiver)?, receiver)))
        })
    }

    /// Whether to move that weight lowers the higher of the two loads, whatever comes to the other one besides.
    fn gains(&self, donor: usize, receiver: usize, weight: u64) -> bool {
        self.draft.ratio(receiver, self.draft.loads[receiver] + weight + self.slack) < self.draft.loaded(donor)
    }

    /// The shard whose move lowers the higher of the two loads the most.
    fn best(&self, donor: usize, receiver: usize) -> Option<usize> {
        let draft = &*self.draft;
        let (from, to) = (&draft.candidates[donor], &draft.candidates[receiver]);
        let movable = &self.movable[donor];
        // They get lighter, and the higher load after the move first falls and then rises.
        let too_heavy = movable.partition_point(|&item| !self.gains(donor, receiver, draft.items[item].weight));
        let mut best: Option<(u128, u8, Reverse<u64>, usize)> = None;
        let mut looked_at = 0;
        for &index in &movable[too_heavy..] {
            let item = &draft.items[index];
            let left = u128::from(draft.loads[donor] - item.weight) * u128::from(to.capacity);
            let taken = u128::from(draft.loads[receiver] + item.weight) * u128::from(from.capacity);
            let higher = left.max(taken);
            if best.is_some_and(|(least, ..)| higher > least) || looked_at == ALIKE {
                break;
            }
            if to.able.can(item.index) && !item.shuns(to.index) {
                looked_at += 1;
                // Back home is one move less, and what is not at home anyway costs no further one.
                let costs = if item.home == Some(receiver) { 0 } else { 1 + u8::from(item.home == Some(donor)) };
                let candidate = (higher, costs, Reverse(draft.affinity(receiver, item)), index);
                best = Some(best.map_or(candidate, |best| candidate.min(best)));
            }
        }
        best.map(|(.., item)| item)
    }

    /// A move that later ones have made needless: with the shard back home, the two loads are no worse.
    fn needless(&self) -> Option<(usize, usize)> {
        let draft = &*self.draft;
        draft.items.iter().enumerate().find_map(|(index, item)| {
            let (home, at) = (item.home?, item.at?);
            if home == at || item.fails() != self.failing {
                return None;
            }
            let sorted = |a: Ratio, b: Ratio| if a < b { (b, a) } else { (a, b) };
            let there = sorted(draft.loaded(home), draft.loaded(at));
            let back = sorted(
                draft.ratio(home, draft.loads[home] + item.weight),
                draft.ratio(at, draft.loads[at] - item.weight),
            );
            (back <= there).then_some((index, home))
        })
    }

    fn relocate(&mut self, index: usize, to: usize) {
        let Self { draft, movable, line, .. } = self;
        let item = &mut draft.items[index];
        let (weight, Some(from)) = (item.weight, item.at.replace(to)) else {
            return;
        };
        draft.loads[from] -= weight;
        draft.loads[to] += weight;
        movable[from].retain(|&other| other != index);
        let position = movable[to].partition_point(|&other| other < index);
        movable[to].insert(position, index);
        line.retain(|&other| other != from && other != to);
        for candidate in [from, to] {
            let place = (draft.loaded(candidate), candidate);
            let position = line.partition_point(|&other| (draft.loaded(other), other) < place);
            line.insert(position, candidate);
        }
    }
}

impl Item<'_> {
    fn fails(&self) -> bool {
        self.failing.is_some()
    }

    /// The replica is chosen for it only if there is no other one.
    fn shuns(&self, replica: usize) -> bool {
        self.failing.is_some_and(|failed_at| failed_at.contains(&replica)) || self.avoid.contains(&replica)
    }

    fn shuns_any(&self) -> bool {
        self.fails() || !self.avoid.is_empty()
    }
}

impl Able {
    /// Whether it can run the shard of that index.
    pub(super) fn can(&self, shard: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(able) => able.get(shard) == Some(&true),
        }
    }
}

fn weight(shard: &Shard<'_>) -> u64 {
    shard.weight.into()
}

fn capacity(replica: &Replica<'_>) -> u64 {
    replica.capacity.max(1).into()
}

/// A load per capacity, exactly. Floats would round, and two replicas that round differently would disagree.
#[derive(Clone, Copy, Debug)]
struct Ratio(u64, u64);

impl Ord for Ratio {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.1 == other.1 {
            return self.0.cmp(&other.0);
        }
        let products = (u128::from(self.0) * u128::from(other.1), u128::from(other.0) * u128::from(self.1));
        products.0.cmp(&products.1)
    }
}

impl PartialOrd for Ratio {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ratio {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ratio {}

/// How much a replica and a shard are for each other: among equals the highest goes first (rendezvous hashing).
fn affinity(name: u64, shard: u64) -> u64 {
    // Both halves of the product: the high one knows of all bits of both.
    let product = u128::from(name) * u128::from(shard);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Of a shard's Lease: another value than a replica of the same name has.
fn shard_hash(lease: &str) -> u64 {
    mix(name_hash(lease))
}

#[cfg(test)]
mod tests;
