//! What happens to a fleet when all is well otherwise: starts, leaves, crashes, hands, weights, failures.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    config::{Rebalance, StandbyMode},
    protocol::event::Verdict,
};

use super::{
    host::{Kind, LEASE, SETTLE, Template},
    world::World,
};
use crate::timeline::{Global, MILLI, SECOND};

/// The longest that one move takes when all is well: naming, a cache, a drain, and the views that follow.
const MOVE: Global = 4 * SECOND;

/// When all is well everything is where it shall be within: what is left of a Lease, the settling of views before and
/// after that is noticed, and the moves, one at a time.
pub(super) fn bound(moves: usize) -> Global {
    LEASE + 2 * SETTLE + MOVE * moves as Global
}

/// Some replicas that start together, at rest.
pub(super) fn begin(world: &mut World, template: &Template, replicas: usize) {
    for _ in 0..replicas {
        let wait = world.rng.u64(0..1_000) * MILLI;
        world.join_later(template, wait);
    }
    world.run_for(SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
}

pub(super) fn some(world: &mut World, replicas: std::ops::RangeInclusive<usize>) -> (Template, usize) {
    let (kinds, replicas) = (world.rng.usize(1..=10), world.rng.usize(replicas));
    let mut template = Template::new(kinds);
    let modes = [StandbyMode::None, StandbyMode::Successor, StandbyMode::Successor, StandbyMode::All];
    template.standby = modes[world.rng.usize(0..modes.len())];
    template.pod_lock = !world.flip(40);
    template.declines = world.flip(40);
    (template, replicas)
}

/// By kind: which host leads it.
fn leaders(world: &World, template: &Template) -> BTreeMap<String, usize> {
    template.kinds.iter().map(|kind| (kind.name.clone(), world.leader(&kind.name).unwrap())).collect()
}

fn led_by(leaders: &BTreeMap<String, usize>, host: usize) -> BTreeSet<String> {
    leaders.iter().filter(|(_, leader)| **leader == host).map(|(kind, _)| kind.clone()).collect()
}

pub(super) fn all_kinds(template: &Template) -> BTreeSet<String> {
    template.kinds.iter().map(|kind| kind.name.clone()).collect()
}

/// Exactly these have had a term since, and one only.
pub(super) fn moved_once(world: &World, since: Global, expected: &BTreeSet<String>) {
    let terms = world.terms_since(since);
    let moved: BTreeSet<_> = terms.keys().cloned().collect();
    world.demand(moved == *expected, || format!("{moved:?} have moved instead of {expected:?}"));
    let twice = terms.iter().find(|(_, hosts)| hosts.len() > 1);
    world.demand(twice.is_none(), || format!("{twice:?} has moved more than once"));
}

fn pick_kind(world: &mut World, template: &Template) -> (usize, Kind) {
    let shard = world.rng.usize(0..template.kinds.len());
    (shard, template.kinds[shard].clone())
}

fn blocked() -> Verdict {
    Verdict::Blocked("its CRD is missing".to_owned())
}

// Starts and leaves.

pub(super) fn fresh_start(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    let apart = if world.flip(128) { 300 * MILLI } else { 8 * SECOND };
    for _ in 0..replicas {
        let wait = world.rng.u64(0..apart);
        world.join_later(&template, wait);
    }
    world.run_for(apart);
    world.comes_to_rest(bound(template.kinds.len()));
    // Replicas that start together share what there is; one that comes later gets its part by moves, once each.
    let extra: usize = world.terms_since(0).values().map(|hosts| hosts.len() - 1).sum();
    let most = if apart > SECOND { template.kinds.len() } else { 2 };
    world.demand(extra <= most, || format!("{extra} moves after the first acquisitions"));
}

/// The ten kinds of three replicas that start within two seconds, as Pods of one Deployment do: how unevenly do they
/// begin, and when are they even? Half of the time they know how many they shall be.
pub(super) fn fresh_start_shares(world: &mut World) {
    let mut template = Template::new(10);
    let expected = world.flip(128);
    template.replicas = expected.then_some(3);
    for _ in 0..3 {
        let wait = world.rng.u64(0..2_000) * MILLI;
        world.join_later(&template, wait);
    }
    let (mut busiest, mut even_at) = (0, None);
    while world.now() < 30 * SECOND {
        world.run_for(50 * MILLI);
        let spread = world.spread();
        busiest = busiest.max(spread.iter().max().copied().unwrap_or(0));
        let even = spread.len() == 3 && spread.iter().sum::<usize>() == 10 && spread.iter().all(|led| *led >= 3);
        even_at = even_at.filter(|_| even).or(even.then_some(world.now()));
    }
    let even_at = even_at.unwrap_or(Global::MAX);
    world.note(format_args!("the busiest held {busiest}, even at {} ms", even_at / MILLI));
    let (count, held, even) = match expected {
        true => ("fresh start, expected", "kinds of the busiest, expected", "ms until even, expected"),
        false => ("fresh start, unexpected", "kinds of the busiest, unexpected", "ms until even, unexpected"),
    };
    world.count(count);
    world.add(held, busiest as u64);
    world.add(even, even_at / MILLI);
    let (most, within) = if expected { (5, 12 * SECOND) } else { (10, 20 * SECOND) };
    world.demand(busiest <= most && even_at <= within, || {
        format!("the busiest held {busiest}, and they were even at {} ms", even_at / MILLI)
    });
    world.comes_to_rest(0);
}

pub(super) fn join(world: &mut World) {
    let (template, replicas) = some(world, 1..=4);
    begin(world, &template, replicas);
    let since = world.now();
    let new = world.join(&template).unwrap();
    world.run_for(SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
    let share = template.kinds.len() / (replicas + 1);
    let terms = world.terms_since(since);
    world.demand(terms.len() == share && terms.values().all(|hosts| *hosts == [new]), || {
        format!("{terms:?} instead of {share} terms at {new}")
    });
}

/// Caches are filled nowhere: no kind is moved for balance, because that would cost it the time of filling one.
pub(super) fn join_in_vain(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=4);
    template.declines = false;
    begin(world, &template, replicas);
    world.lazy = true;
    let since = world.now();
    world.join(&template);
    world.run_for(20 * SETTLE);
    moved_once(world, since, &BTreeSet::new());
}

pub(super) fn leave(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    // A handover waits for a cache no longer than a drain may take, which is twice the time of a move.
    world.lazy = world.flip(60);
    let leaver = world.rng.usize(0..replicas);
    let (since, kinds) = (world.now(), led_by(&leaders(world, &template), leaver));
    world.terminate(leaver);
    world.run_for(100 * MILLI);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    moved_once(world, since, &kinds);
    world.demand(!world.hosts[leaver].alive, || "it has not stopped".to_owned());
}

/// The second signal comes while it hands over: it stops at once, and leaves nothing to expire that it could release.
pub(super) fn abort(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    world.lazy = true;
    let leaver = world.rng.usize(0..replicas);
    let (since, kinds) = (world.now(), led_by(&leaders(world, &template), leaver));
    world.terminate(leaver);
    let wait = world.rng.u64(1..3_000) * MILLI;
    world.run_for(wait);
    if world.hosts[leaver].alive {
        world.terminate(leaver);
    }
    world.run_for(4 * SECOND);
    world.demand(!world.hosts[leaver].alive, || "it has not stopped".to_owned());
    world.comes_to_rest(bound(2 * template.kinds.len()));
    moved_once(world, since, &kinds);
}

/// Several are told to stop within a moment, as the ReplicaSet controller does it.
pub(super) fn scale_down(world: &mut World) {
    let (template, replicas) = some(world, 3..=6);
    begin(world, &template, replicas);
    let leavers = world.rng.usize(2..replicas);
    let since = world.now();
    let of_leavers: BTreeSet<_> = (0..leavers).flat_map(|leaver| led_by(&leaders(world, &template), leaver)).collect();
    let apart = if world.flip(128) { MILLI } else { 300 * MILLI };
    for leaver in 0..leavers {
        world.terminate(leaver);
        let wait = world.rng.u64(0..apart);
        world.run_for(wait);
    }
    world.run_for(100 * MILLI);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    let terms = world.terms_since(since);
    let moved: BTreeSet<_> = terms.keys().cloned().collect();
    world.demand(moved == of_leavers, || format!("{moved:?} have moved instead of {of_leavers:?}"));
    // One that got it before it was told to stop too hands it on.
    let astray = terms.iter().find(|(_, hosts)| hosts.iter().rev().skip(1).any(|host| *host >= leavers));
    world.demand(astray.is_none(), || format!("{astray:?} has moved on from one that stays"));
}

pub(super) fn crash(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let dead = world.rng.usize(0..replicas);
    let (since, kinds) = (world.now(), led_by(&leaders(world, &template), dead));
    world.crash(dead);
    // A renewal that was on its way still counts.
    world.run_for(SECOND);
    let renewed: BTreeMap<_, _> =
        template.kinds.iter().map(|kind| (kind.name.clone(), world.judge.entries[&kind.lease].renewed)).collect();
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &kinds);
    // No replica leaves time for the dead to come: the target knows that it is one when the first Lease has expired.
    let due = |kind: &str| if world.witnessed { since + 2 * SECOND } else { renewed[kind] + LEASE / 100 * 101 };
    let late = world.terms.iter().find(|term| term.at > since && term.at > due(&term.kind) + 500 * MILLI);
    world.demand(late.is_none(), || format!("{late:?} was taken late, of {renewed:?}"));
}

pub(super) fn restart(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    template.pod_lock = true;
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let dead = world.rng.usize(0..replicas);
    let (since, kinds) = (world.now(), led_by(&leaders(world, &template), dead));
    let wait = world.rng.u64(50..10_000) * MILLI;
    world.restart(dead, wait);
    world.run_for(wait + 100 * MILLI);
    world.comes_to_rest(bound(template.kinds.len()));
    if world.witnessed {
        // By the kubelet's word the others may take what its new process does not claim at once.
        return;
    }
    moved_once(world, since, &kinds);
    let elsewhere = world.terms_since(since).values().flatten().any(|&host| host != replicas);
    world.demand(!elsewhere, || "another replica has taken a kind of one that restarts".to_owned());
}

/// The program ends the replica and begins another, without its Pod's lock.
pub(super) fn restart_in_process(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    begin(world, &template, replicas);
    let dead = world.rng.usize(0..replicas);
    let (since, kinds) = (world.now(), led_by(&leaders(world, &template), dead));
    let wait = world.rng.u64(0..3_000) * MILLI;
    world.restart_in_process(dead, wait);
    world.run_for(wait + SECOND);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    let kept: Vec<_> = all_kinds(&template).difference(&kinds).cloned().collect();
    let terms = world.terms_since(since);
    let moved = kept.iter().filter(|kind| terms.contains_key(*kind)).count();
    // It left its part behind, and gets a part again.
    world.demand(moved <= template.kinds.len() / replicas + 1, || format!("{terms:?} although {kinds:?} were left"));
}

// Hands, weights, failures.

pub(super) fn wanted(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (_, kind) = pick_kind(world, &template);
    let there = world.rng.usize(0..replicas);
    let host = &world.hosts[there];
    let (identity, pod) = (host.identity.clone(), host.pod.clone());
    let name = if world.flip(128) { identity } else { pod };
    let since = world.now();
    let was = world.leader(&kind.name);
    world.want(&kind.lease, Some(name));
    world.run_for(bound(template.kinds.len()));
    world.comes_to_rest(bound(template.kinds.len()));
    let moves: Vec<_> = world.terms_since(since).remove(&kind.name).unwrap_or_default();
    let expected = if was == Some(there) { vec![] } else { vec![there] };
    world.demand(moves == expected, || format!("{} was moved to {moves:?}", kind.name));
    if world.flip(128) {
        // It is not there any more, after all.
        world.terminate(there);
        world.run_for(100 * MILLI);
    } else {
        world.want(&kind.lease, None);
    }
    world.comes_to_rest(bound(template.kinds.len()));
}

pub(super) fn weights(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    for kind in &mut template.kinds {
        kind.weight = world.rng.u32(1..=6);
    }
    begin(world, &template, replicas);
    world.join(&template);
    world.run_for(SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
    world.terminate(0);
    world.run_for(100 * MILLI);
    world.comes_to_rest(bound(template.kinds.len()));
}

pub(super) fn failing(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (_, kind) = pick_kind(world, &template);
    let works = world.rng.usize(0..replicas);
    for host in (0..replicas).filter(|&host| host != works) {
        world.hosts[host].failing.insert(kind.name.clone());
    }
    let since = world.now();
    world.fail(&kind.name);
    world.run_for(MILLI);
    let by = world.now() + bound(10);
    while world.leader(&kind.name) != Some(works) {
        world.demand(world.now() < by, || format!("{} is not led where it works", kind.name));
        world.run_for(100 * MILLI);
    }
    let others = world.terms_since(since).into_keys().find(|it| *it != kind.name);
    world.demand(others.is_none(), || format!("{others:?} has moved because {} fails", kind.name));
    // It counts again when no replica cools down any more, and one that tries it in vain waits for longer each time.
    world.run_for(300 * SECOND);
    let tried = world.terms_since(since).get(&kind.name).map_or(0, Vec::len);
    world.demand(tried <= 12 * replicas, || format!("{} was tried {tried} times", kind.name));
    for host in 0..replicas {
        world.hosts[host].failing.clear();
    }
    world.run_for(5 * SECOND);
    let cooling = world.cools_for();
    world.comes_to_rest(cooling + bound(template.kinds.len()));
    let others = world.terms_since(since).into_keys().find(|it| *it != kind.name);
    world.demand(others.is_none(), || format!("{others:?} has moved because {} failed", kind.name));
}

pub(super) fn blocked_kind(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (shard, kind) = pick_kind(world, &template);
    let (since, leader) = (world.now(), world.leader(&kind.name).unwrap());
    world.judge(leader, shard, blocked());
    world.comes_to_rest(bound(template.kinds.len()));
    let terms = world.terms_since(since);
    world.demand(terms[&kind.name].len() == 1, || format!("{terms:?}"));
    world.judge(leader, shard, Verdict::Runnable);
    world.comes_to_rest(bound(template.kinds.len()));
    // And nowhere at all.
    for host in 0..replicas {
        world.judge(host, shard, blocked());
    }
    world.run_for(bound(template.kinds.len()));
    world.comes_to_rest(bound(template.kinds.len()));
    world.judge(leader, shard, Verdict::Runnable);
    world.comes_to_rest(bound(template.kinds.len()));
    world.demand(world.leader(&kind.name) == Some(leader), || "the only one that can does not lead".to_owned());
}

/// A permission goes, and no one says so but the API server, to those who ask for the objects.
pub(super) fn denied_kind(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (_, kind) = pick_kind(world, &template);
    let (since, leader) = (world.now(), world.leader(&kind.name).unwrap());
    world.deny(leader, &kind.name);
    // A watch is asked for anew within 15 s; then the preflight looks, and a cache may have to be filled.
    let by = since + 15 * SECOND + SECOND + bound(1);
    while world.leader(&kind.name).is_none_or(|it| it == leader) {
        world.demand(world.now() < by, || format!("{} is not led where it is permitted", kind.name));
        world.run_for(100 * MILLI);
    }
    world.comes_to_rest(bound(template.kinds.len()));
    let terms = world.terms_since(since);
    world.demand(terms[&kind.name].len() == 1, || format!("{terms:?}"));
    world.allow(leader, &kind.name);
    world.run_for(6 * SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
    // And to all of them.
    let since = world.now();
    for host in 0..replicas {
        world.deny(host, &kind.name);
    }
    world.run_for(15 * SECOND + bound(2));
    world.demand(world.leader(&kind.name).is_none(), || format!("{} is led where it is not permitted", kind.name));
    let tried = world.terms_since(since).get(&kind.name).map_or(0, Vec::len);
    world.demand(tried < replicas, || format!("{} was tried {tried} times", kind.name));
    world.allow(leader, &kind.name);
    world.run_for(6 * SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
    world.demand(world.leader(&kind.name) == Some(leader), || "the only one that may does not lead".to_owned());
}

/// The API server does not say of a replica that starts whether it can reconcile a kind, for a while or for ever.
pub(super) fn unsure(world: &mut World) {
    let (template, replicas) = some(world, 1..=4);
    begin(world, &template, replicas);
    let (shard, kind) = pick_kind(world, &template);
    let since = world.now();
    world.answers = false;
    let new = world.join(&template).unwrap();
    world.answers = true;
    for each in 0..template.kinds.len() {
        let verdict = if each == shard { Verdict::Unknown("no answer".to_owned()) } else { Verdict::Runnable };
        world.judge(new, each, verdict);
    }
    let answered = world.flip(128);
    let wait = world.rng.u64(2..25) * SECOND;
    world.run_for(wait);
    world.demand(!world.hosts[new].replica.is_ready(), || "it is ready and cannot take every kind".to_owned());
    if answered {
        world.judge(new, shard, Verdict::Runnable);
        world.run_for(SECOND);
    } else {
        world.run_for(32 * SECOND - wait);
    }
    world.demand(world.hosts[new].replica.is_ready(), || "one answer that is missing holds up a rollout".to_owned());
    if !answered {
        let moved = world.terms_since(since).remove(&kind.name).unwrap_or_default();
        world.demand(!moved.contains(&new), || format!("{} went where it is not known to run", kind.name));
        world.judge(new, shard, Verdict::Runnable);
    }
    world.comes_to_rest(bound(template.kinds.len()));
}

// Configurations that differ.

pub(super) fn skewed_weights(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    for _ in 0..replicas {
        let mut template = template.clone();
        for kind in &mut template.kinds {
            kind.weight = world.rng.u32(1..=6);
        }
        world.join(&template);
    }
    world.run_for(bound(3 * template.kinds.len()));
    let moves = world.terms.len();
    world.run_for(20 * SETTLE);
    world.demand(world.terms.len() == moves, || "kinds go on moving".to_owned());
}

pub(super) fn modes(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=4);
    template.rebalance = if world.flip(128) { Rebalance::Never } else { Rebalance::OnRestart };
    for _ in 0..replicas {
        world.join(&template);
    }
    world.comes_to_rest(bound(template.kinds.len()));
    let since = world.now();
    let new = world.join(&template).unwrap();
    world.run_for(SECOND);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &BTreeSet::new());
    // Of a replica that goes they take over what is left.
    let leaves = if world.flip(128) { new } else { 0 };
    let kinds = led_by(&leaders(world, &template), leaves);
    world.terminate(leaves);
    world.run_for(100 * MILLI);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &kinds);
    if template.rebalance == Rebalance::OnRestart {
        super::rollouts::roll(world, &template.next(2), replicas);
        world.run_for(bound(2 * template.kinds.len()));
        world.comes_to_rest(0);
        let spread = world.spread();
        let even = spread.iter().max().unwrap() - spread.iter().min().unwrap() <= 1;
        world.demand(even, || format!("a restart left {spread:?}"));
    }
}

/// Two Deployments of one installation, with capacities of their own, and a rollout of one of them.
pub(super) fn two_deployments(world: &mut World) {
    let (one, replicas) = some(world, 1..=3);
    let two = Template {
        name: "g1-two".to_owned(),
        owner: Some("Deployment/two".to_owned()),
        capacity: world.rng.u32(1..=4),
        ..one.clone()
    };
    let others = world.rng.usize(1..=3);
    for (template, count) in [(&one, replicas), (&two, others)] {
        for _ in 0..count {
            let wait = world.rng.u64(0..3_000) * MILLI;
            world.join_later(template, wait);
        }
    }
    world.run_for(3 * SECOND);
    world.comes_to_rest(bound(2 * one.kinds.len()));
    super::rollouts::roll(world, &two.next(2), others);
    world.comes_to_rest(bound(2 * one.kinds.len()));
}

/// An elector of another make takes a kind's Lease first, or while ours is away, and later lets it go.
pub(super) fn stranger(world: &mut World) {
    let (template, replicas) = some(world, 1..=4);
    let (_, kind) = pick_kind(world, &template);
    let stays = world.rng.u64(20..90) * SECOND;
    if world.flip(128) {
        world.stranger_comes(&kind.lease, stays);
        world.run_for(MILLI);
        for _ in 0..replicas {
            world.join(&template);
        }
        world.run_for(stays - SECOND);
        world.demand(world.leader(&kind.name).is_none(), || format!("{} is led beside a stranger", kind.name));
        world.run_for(3 * SECOND);
    } else {
        begin(world, &template, replicas);
        world.stranger_comes(&kind.lease, stays);
        let leader = world.leader(&kind.name).unwrap();
        world.cut(leader, 40 * SECOND);
        world.run_for(stays.max(40 * SECOND) + SECOND);
    }
    world.strangers_leave();
    // Without our label it is seen when it is read.
    world.comes_to_rest(20 * SECOND + LEASE + bound(2 * template.kinds.len()));
}
