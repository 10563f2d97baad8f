//! Many replicas and many shards against a simulated API server: starts, leaves, crashes, rollouts, skewed
//! configurations, and random schedules of everything that goes wrong.
//!
//! After every event: never two valid terms of a shard, no release under running work, no Lease taken before it expires
//! without a release or a proof, none deleted that somebody renews, no shard moved for balance twice when nothing has
//! changed. When nothing happens any more: every shard is led within the bound, the spread is even, and twenty settle
//! periods pass without a move. A failure prints the seed and what happened.

mod replica;
mod server;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use leasehold::config::{Rebalance, StandbyMode};

use self::world::{LEASE, SETTLE, Template, World, kind_name};
use crate::timeline::Global;

/// The longest that one move takes when all is well: naming, a cache, a drain, and the views that follow.
const MOVE: Global = 4_000;

/// When all is well everything is where it shall be within: what is left of a Lease, the settling of views before and
/// after that is noticed, and the moves, one at a time.
fn bound(moves: usize) -> Global {
    LEASE + 2 * SETTLE + MOVE * moves as Global
}

type Scenario = (&'static str, fn(&mut World));

const SCENARIOS: &[Scenario] = &[
    ("fresh_start", fresh_start),
    ("join", join),
    ("leave", leave),
    ("scale_down", scale_down),
    ("crash", crash),
    ("restart", restart),
    ("rollout", rollout),
    ("rollout_paused", rollout_paused),
    ("rollout_rolled_back", rollout_rolled_back),
    ("rollout_crashes", rollout_crashes),
    ("wanted", wanted),
    ("weights", weights),
    ("failing", failing),
    ("blocked", blocked),
    ("removed", removed),
    ("skewed_weights", skewed_weights),
    ("modes", modes),
    ("chaos", chaos),
];

/// Plays that many seeds, or as many as `SEEDS` says.
fn play(name: &str, seeds: u64) {
    let more = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok());
    for seed in 1..=more.unwrap_or(seeds) {
        replay(name, seed);
    }
}

fn replay(name: &str, seed: u64) -> World {
    let (name, scenario) = SCENARIOS.iter().find(|(known, _)| *known == name).unwrap();
    let mut world = World::new(seed, name);
    scenario(&mut world);
    world
}

/// Plays one seed again, as a failure printed it: `SCENARIO=… SEED=… cargo test --test it fleet_again -- --nocapture`.
#[test]
fn fleet_again() {
    let (Ok(name), Ok(seed)) = (std::env::var("SCENARIO"), std::env::var("SEED")) else { return };
    let world = replay(&name, seed.parse().unwrap());
    println!("{}", world.log);
}

#[test]
fn a_fresh_start_ends_even_and_moves_next_to_nothing() {
    play("fresh_start", 15);
}

#[test]
fn a_replica_that_joins_gets_its_share_and_nothing_else_moves() {
    play("join", 15);
}

#[test]
fn a_replica_that_leaves_hands_over_its_shards_and_nothing_else_moves() {
    play("leave", 15);
}

#[test]
fn replicas_that_leave_together_hand_over_their_shards_and_nothing_else_moves() {
    play("scale_down", 30);
}

#[test]
fn the_shards_of_a_crashed_replica_are_taken_once_each_and_nothing_else_moves() {
    play("crash", 15);
}

#[test]
fn a_container_that_restarts_takes_its_shards_back() {
    play("restart", 15);
}

#[test]
fn a_rollout_moves_every_shard_exactly_once() {
    play("rollout", 20);
}

#[test]
fn a_rollout_that_is_paused_half_way_moves_no_shard_twice() {
    play("rollout_paused", 10);
}

#[test]
fn a_rollout_that_is_rolled_back_moves_back_only_what_had_moved() {
    play("rollout_rolled_back", 10);
}

#[test]
fn a_rollout_whose_new_pods_crash_moves_nothing() {
    play("rollout_crashes", 10);
}

#[test]
fn a_shard_goes_where_a_hand_wants_it_and_stays_there() {
    play("wanted", 10);
}

#[test]
fn unequal_weights_come_to_rest_when_no_move_evens_anything_out() {
    play("weights", 15);
}

#[test]
fn a_kind_that_fails_goes_round_until_it_works_and_moves_no_other() {
    play("failing", 10);
}

#[test]
fn a_kind_that_a_replica_cannot_run_is_led_by_another() {
    play("blocked", 10);
}

#[test]
fn the_lease_of_a_removed_kind_is_collected_when_nobody_needs_it() {
    play("removed", 6);
}

#[test]
fn replicas_that_disagree_about_weights_come_to_rest() {
    play("skewed_weights", 15);
}

#[test]
fn shards_stay_where_they_are_if_the_configuration_says_so() {
    play("modes", 10);
}

#[test]
fn nobody_leads_twice_and_all_comes_to_rest_whatever_happens() {
    play("chaos", 50);
}

// Beginnings.

/// Some replicas that start together, at rest.
fn begin(world: &mut World, template: &Template, replicas: usize) {
    for _ in 0..replicas {
        let wait = world.rng.u64(0..1_000);
        world.join_later(template, wait);
    }
    world.run_for(1_000);
    world.comes_to_rest(bound(template.kinds.len()));
}

fn some(world: &mut World, replicas: std::ops::RangeInclusive<usize>) -> (Template, usize) {
    let (kinds, replicas) = (world.rng.usize(1..=10), world.rng.usize(replicas));
    let mut template = Template::new(kinds);
    let modes = [StandbyMode::None, StandbyMode::Successor, StandbyMode::Successor, StandbyMode::All];
    template.standby = modes[world.rng.usize(0..modes.len())];
    template.pod_lock = !world.flip(40);
    (template, replicas)
}

/// By Lease: who leads it.
fn leaders(world: &World, template: &Template) -> BTreeMap<String, usize> {
    template.kinds.iter().map(|(lease, _)| (lease.clone(), world.leader(lease).unwrap())).collect()
}

fn led_by(leaders: &BTreeMap<String, usize>, host: usize) -> BTreeSet<String> {
    leaders.iter().filter(|(_, leader)| **leader == host).map(|(lease, _)| lease.clone()).collect()
}

/// Exactly these have had a term since, and one only.
fn moved_once(world: &World, since: Global, expected: &BTreeSet<String>) {
    let terms = world.terms_since(since);
    let moved: BTreeSet<_> = terms.keys().cloned().collect();
    world.demand(moved == *expected, || format!("{moved:?} have moved instead of {expected:?}"));
    let twice = terms.iter().find(|(_, hosts)| hosts.len() > 1);
    world.demand(twice.is_none(), || format!("{twice:?} has moved more than once"));
}

// Scenarios.

fn fresh_start(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    let apart = if world.flip(128) { 300 } else { 8_000 };
    for _ in 0..replicas {
        let wait = world.rng.u64(0..apart);
        world.join_later(&template, wait);
    }
    world.run_for(apart);
    world.comes_to_rest(bound(template.kinds.len()));
    // Replicas that start together share what there is; one that comes later gets its part by moves, once each.
    let extra: usize = world.terms_since(0).values().map(|hosts| hosts.len() - 1).sum();
    let most = if apart > 300 { template.kinds.len() } else { 2 };
    world.demand(extra <= most, || format!("{extra} moves after the first acquisitions"));
}

fn join(world: &mut World) {
    let (template, replicas) = some(world, 1..=4);
    begin(world, &template, replicas);
    // A handover waits for a cache no longer than a drain may take, which is twice the time of a move.
    world.lazy = world.flip(60);
    let since = world.now();
    let new = world.join(&template);
    world.run_for(1_000);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    let share = template.kinds.len() / (replicas + 1);
    let terms = world.terms_since(since);
    world.demand(terms.len() == share && terms.values().all(|hosts| *hosts == [new]), || {
        format!("{terms:?} instead of {share} terms at {new}")
    });
}

fn leave(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    // A handover waits for a cache no longer than a drain may take, which is twice the time of a move.
    world.lazy = world.flip(60);
    let leaver = world.rng.usize(0..replicas);
    let (since, shards) = (world.now(), led_by(&leaders(world, &template), leaver));
    world.terminate(leaver);
    world.run_for(100);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    moved_once(world, since, &shards);
    world.demand(!world.hosts[leaver].alive, || "it has not stopped".to_owned());
}

/// Several are told to stop within a moment, as the ReplicaSet controller does it.
fn scale_down(world: &mut World) {
    let (template, replicas) = some(world, 3..=6);
    begin(world, &template, replicas);
    let leavers = world.rng.usize(2..replicas);
    let since = world.now();
    let of_leavers: BTreeSet<_> = (0..leavers).flat_map(|leaver| led_by(&leaders(world, &template), leaver)).collect();
    let apart = if world.flip(128) { 1 } else { 300 };
    for leaver in 0..leavers {
        world.terminate(leaver);
        let wait = world.rng.u64(0..apart);
        world.run_for(wait);
    }
    world.run_for(100);
    world.comes_to_rest(bound(2 * template.kinds.len()));
    let terms = world.terms_since(since);
    let moved: BTreeSet<_> = terms.keys().cloned().collect();
    world.demand(moved == of_leavers, || format!("{moved:?} have moved instead of {of_leavers:?}"));
    // Who got it before it was told to stop too hands it on.
    let astray = terms.iter().find(|(_, hosts)| hosts.iter().rev().skip(1).any(|host| *host >= leavers));
    world.demand(astray.is_none(), || format!("{astray:?} has moved on from one that stays"));
}

fn crash(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let dead = world.rng.usize(0..replicas);
    let (since, shards) = (world.now(), led_by(&leaders(world, &template), dead));
    world.crash(dead);
    // A renewal that was on its way still counts.
    world.run_for(1_000);
    let leases = world.server.leases.values();
    let renewed: BTreeMap<_, _> = leases.map(|lease| (lease.name.clone(), lease.renewed)).collect();
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &shards);
    // Nobody leaves time for the dead to come: whoever is the target knows it when the first Lease has expired.
    let due = |lease: &str| if world.witnessed { since + 2_000 } else { renewed[lease] + LEASE };
    let late = world.terms.iter().find(|term| term.at > since && term.at > due(&term.lease) + 500);
    world.demand(late.is_none(), || format!("{late:?} was taken late, of {renewed:?}"));
}

fn restart(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    template.pod_lock = true;
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let dead = world.rng.usize(0..replicas);
    let (since, shards) = (world.now(), led_by(&leaders(world, &template), dead));
    let wait = world.rng.u64(50..10_000);
    world.restart(dead, wait);
    world.run_for(wait + 100);
    world.comes_to_rest(bound(template.kinds.len()));
    if world.witnessed {
        // By the kubelet's word the others may take what its new process does not claim at once.
        return;
    }
    moved_once(world, since, &shards);
    let elsewhere = world.terms_since(since).values().flatten().any(|&host| host != replicas);
    world.demand(!elsewhere, || "another replica has taken a shard of one that restarts".to_owned());
}

// Rollouts.

/// What the Deployment controller does with maxSurge 1 and maxUnavailable 0, `steps` replicas far.
fn roll(world: &mut World, to: &Template, steps: usize) {
    let of_others = |world: &World| -> Vec<usize> {
        world.active().into_iter().filter(|&host| world.hosts[host].template.name != to.name).collect()
    };
    for _ in 0..steps {
        let others = of_others(world);
        if others.is_empty() {
            return;
        }
        let image = world.rng.u64(100..3_000);
        world.run_for(image);
        let new = world.join(to);
        while !world.hosts[new].replica.ready() {
            world.run_for(100);
        }
        let probe = world.rng.u64(0..2_000);
        world.run_for(probe);
        let old = others[world.rng.usize(0..others.len())];
        world.terminate(old);
    }
}

fn rollout(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    if world.flip(60) {
        template.revision = None;
    }
    begin(world, &template, replicas);
    let since = world.now();
    roll(world, &template.next(2), replicas);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &template.kinds.iter().map(|(lease, _)| lease.clone()).collect());
}

fn rollout_paused(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (since, half, next) = (world.now(), world.rng.usize(1..replicas), template.next(2));
    roll(world, &next, half);
    let pause = world.rng.u64(1_000..50_000);
    world.run_for(pause);
    let early = world.terms_since(since);
    roll(world, &next, replicas - half);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &template.kinds.iter().map(|(lease, _)| lease.clone()).collect());
    let old = early.values().flatten().any(|&host| host < replicas);
    world.demand(!old, || "a shard has moved within the old generation".to_owned());
}

fn rollout_rolled_back(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (before, half) = (leaders(world, &template), world.rng.usize(1..=replicas));
    roll(world, &template.next(2), half);
    let wait = world.rng.u64(0..20_000);
    world.run_for(wait);
    let active = world.active();
    let moved: BTreeSet<_> = before.into_iter().filter(|(_, host)| !active.contains(host)).map(|(it, _)| it).collect();
    let back = Template { revision: Some(3), ..template.clone() };
    for host in 0..world.hosts.len() {
        // Those that stayed count as of the new revision: the Deployment keeps them.
        if world.hosts[host].template.name == back.name {
            world.hosts[host].template.revision = Some(3);
        }
    }
    let again = world.hosts.len();
    roll(world, &back, half);
    world.comes_to_rest(bound(template.kinds.len()));
    let mut terms = world.terms_since(0);
    terms.values_mut().for_each(|hosts| hosts.retain(|&host| host >= again));
    terms.retain(|_, hosts| !hosts.is_empty());
    let stayed = terms.keys().find(|lease| !moved.contains(*lease));
    world.demand(stayed.is_none(), || format!("{stayed:?} was of the old generation all the time, and has moved"));
    let twice = terms.iter().find(|(_, hosts)| hosts.len() > 1);
    world.demand(twice.is_none(), || format!("{twice:?} has moved more than once"));
}

fn rollout_crashes(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let since = world.now();
    let mut new = world.join(&template.next(2));
    for attempt in 0..4 {
        let life = world.rng.u64(200..8_000);
        world.run_for(life);
        let wait = 1_000 << attempt;
        world.restart(new, wait);
        world.run_for(wait + 1);
        new = world.hosts.len() - 1;
    }
    world.crash(new);
    world.comes_to_rest(bound(0));
    moved_once(world, since, &BTreeSet::new());
}

// Hands, weights, failures.

fn wanted(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let lease = kind_name(world.rng.usize(0..template.kinds.len()));
    let there = world.rng.usize(0..replicas);
    let who = world.hosts[there].replica.who.clone();
    let name = if world.flip(128) { who.identity } else { who.pod };
    let since = world.now();
    let was = world.leader(&lease);
    world.want(&lease, Some(name));
    world.run_for(bound(template.kinds.len()));
    world.comes_to_rest(bound(template.kinds.len()));
    let moves: Vec<_> = world.terms_since(since).remove(&lease).unwrap_or_default();
    let expected = if was == Some(there) { vec![] } else { vec![there] };
    world.demand(moves == expected, || format!("{lease} was moved to {moves:?}"));
    if world.flip(128) {
        // Nobody there, after all.
        world.terminate(there);
        world.run_for(100);
    } else {
        world.want(&lease, None);
    }
    world.comes_to_rest(bound(template.kinds.len()));
}

fn weights(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    for (_, weight) in &mut template.kinds {
        *weight = world.rng.u32(1..=6);
    }
    begin(world, &template, replicas);
    world.join(&template);
    world.run_for(1_000);
    world.comes_to_rest(bound(template.kinds.len()));
    world.terminate(0);
    world.run_for(100);
    world.comes_to_rest(bound(template.kinds.len()));
}

fn failing(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let lease = kind_name(world.rng.usize(0..template.kinds.len()));
    let works = world.rng.usize(0..replicas);
    for host in (0..replicas).filter(|&host| host != works) {
        world.hosts[host].failing.insert(lease.clone());
    }
    let since = world.now();
    world.fail(&lease);
    world.run_for(1);
    let by = world.now() + bound(10);
    while world.leader(&lease) != Some(works) {
        world.demand(world.now() < by, || format!("{lease} is not led where it works"));
        world.run_for(100);
    }
    let others = world.terms_since(since).into_keys().find(|it| *it != lease);
    world.demand(others.is_none(), || format!("{others:?} has moved because {lease} fails"));
    // It counts again when no replica cools down any more, and whoever tries it in vain waits for longer each time.
    world.run_for(300_000);
    let tried = world.terms_since(since).get(&lease).map_or(0, Vec::len);
    world.demand(tried <= 12 * replicas, || format!("{lease} was tried {tried} times"));
    for host in 0..replicas {
        world.hosts[host].failing.clear();
    }
    world.run_for(5_000);
    let cooling = world.cools_for();
    world.comes_to_rest(cooling + bound(template.kinds.len()));
    let others = world.terms_since(since).into_keys().find(|it| *it != lease);
    world.demand(others.is_none(), || format!("{others:?} has moved because {lease} failed"));
}

fn blocked(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let shard = world.rng.usize(0..template.kinds.len());
    let lease = kind_name(shard);
    let (since, leader) = (world.now(), world.leader(&lease).unwrap());
    world.judge(leader, shard, false);
    world.comes_to_rest(bound(template.kinds.len()));
    let terms = world.terms_since(since);
    world.demand(terms[&lease].len() == 1, || format!("{terms:?}"));
    world.judge(leader, shard, true);
    world.comes_to_rest(bound(template.kinds.len()));
    // And nowhere at all.
    for host in 0..replicas {
        world.judge(host, shard, false);
    }
    world.run_for(bound(template.kinds.len()));
    world.comes_to_rest(bound(template.kinds.len()));
    world.judge(leader, shard, true);
    world.comes_to_rest(bound(template.kinds.len()));
    world.demand(world.leader(&lease) == Some(leader), || "the only one that can does not lead".to_owned());
}

fn removed(world: &mut World) {
    let (mut template, replicas) = some(world, 2..=4);
    template.kinds.push((kind_name(template.kinds.len()), 1));
    let (lease, _) = template.kinds.last().cloned().unwrap();
    begin(world, &template, replicas);
    let mut next = template.next(2);
    next.kinds.pop();
    // All but one: that one goes on alone with the kind that the others do not know.
    roll(world, &next, replicas - 1);
    let last = world.active().into_iter().find(|&host| host < replicas).unwrap();
    world.run_for(6 * LEASE);
    world.demand(world.leader(&lease) == Some(last), || format!("{lease} is not led by the one that knows it"));
    if world.flip(128) {
        world.terminate(last)
    } else {
        world.crash(last)
    }
    world.run_for(3 * LEASE);
    world.demand(world.server.leases.contains_key(&lease), || "it was collected too soon".to_owned());
    world.run_for(4 * LEASE);
    world.demand(!world.server.leases.contains_key(&lease), || "it was not collected".to_owned());
    let members = world.server.leases.values().filter(|lease| lease.profile.is_some()).count();
    world.demand(members == world.active().len(), || format!("{members} memberships are left"));
    world.comes_to_rest(bound(template.kinds.len()));
}

fn skewed_weights(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    for _ in 0..replicas {
        let mut template = template.clone();
        for (_, weight) in &mut template.kinds {
            *weight = world.rng.u32(1..=6);
        }
        world.join(&template);
    }
    world.run_for(bound(3 * template.kinds.len()));
    let moves = world.terms.len();
    world.run_for(20 * SETTLE);
    world.demand(world.terms.len() == moves, || "shards go on moving".to_owned());
}

fn modes(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=4);
    template.rebalance = if world.flip(128) { Rebalance::Never } else { Rebalance::OnRestart };
    for _ in 0..replicas {
        world.join(&template);
    }
    world.comes_to_rest(bound(template.kinds.len()));
    let since = world.now();
    let new = world.join(&template);
    world.run_for(1_000);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &BTreeSet::new());
    // Of a replica that goes they take over what is left.
    let leaves = if world.flip(128) { new } else { 0 };
    let shards = led_by(&leaders(world, &template), leaves);
    world.terminate(leaves);
    world.run_for(100);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &shards);
    if template.rebalance == Rebalance::OnRestart {
        roll(world, &template.next(2), replicas);
        world.run_for(bound(2 * template.kinds.len()));
        world.comes_to_rest(0);
        let spread = world.spread();
        let even = spread.iter().max().unwrap() - spread.iter().min().unwrap() <= 1;
        world.demand(even, || format!("a restart left {spread:?}"));
    }
}

// Everything at once.

fn chaos(world: &mut World) {
    let (mut template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(180);
    if world.flip(80) {
        for (_, weight) in &mut template.kinds {
            *weight = world.rng.u32(1..=4);
        }
    }
    for _ in 0..replicas {
        let wait = world.rng.u64(0..5_000);
        world.join_later(&template, wait);
    }
    world.run_for(5_000);
    world.begin_faults(fault);
    let time = world.rng.u64(30_000..200_000);
    world.run_for(time);
    world.calm_down();
    // A rollout that was begun is finished, or rests for so long that it is none.
    let newest = world.active().into_iter().max_by_key(|&host| world.hosts[host].template.revision);
    let template = newest.map_or(template, |host| world.hosts[host].template.clone());
    world.join(&template);
    let old: Vec<_> =
        world.active().into_iter().filter(|&host| world.hosts[host].template.name != template.name).collect();
    let finish = world.flip(128);
    let stalled = if old.is_empty() || finish { 0 } else { 12 * SETTLE };
    if finish {
        old.into_iter().for_each(|host| world.terminate(host));
    }
    // The last containers restart.
    world.run_for(11_000);
    // Besides what is due when all is well: a Lease and a barrier, a failed request, and kinds that cool down first.
    let cooling = world.cools_for();
    world.comes_to_rest(LEASE + 10_000 + stalled + cooling + bound(2 * template.kinds.len()));
}

/// Somebody has changed the file that the others were started with.
fn skewed(world: &mut World, mut template: Template) -> Template {
    match world.rng.u8(0..12) {
        0 if template.kinds.len() > 1 => {
            template.kinds.remove(world.rng.usize(0..template.kinds.len()));
        }
        1 => template.kinds.iter_mut().for_each(|(_, weight)| *weight = world.rng.u32(1..=4)),
        2 => template.rebalance = [Rebalance::Never, Rebalance::OnRestart][world.rng.usize(0..2)],
        _ => {}
    }
    template
}

fn fault(world: &mut World) {
    let alive = world.alive();
    let Some(&host) = alive.get(world.rng.usize(0..alive.len().max(1))) else { return };
    let template = world.hosts[host].template.clone();
    let shard = world.rng.usize(0..template.kinds.len());
    let time = world.rng.u64(100..40_000);
    let few = world.active().len() < 2;
    match world.rng.u8(0..14) {
        0 => world.crash(host),
        1 => world.restart(host, time / 4),
        2 if !few => world.terminate(host),
        3 | 4 => {
            if world.active().len() < 6 {
                let template = skewed(world, template.clone());
                world.join(&template);
            }
        }
        5 => world.pause(host, time),
        6 | 7 => world.cut(host, time),
        8 => world.slow_down(host, time),
        9 => world.deafen(host, time),
        10 => {
            let able = world.hosts[host].blocked.contains(&template.kinds[shard].0);
            world.judge(host, shard, able);
        }
        11 => {
            let there = world.flip(180).then(|| world.hosts[host].replica.who.pod.clone());
            world.want(&template.kinds[shard].0, there);
        }
        12 => {
            // A step of a rollout.
            let newest = alive.iter().filter_map(|&host| world.hosts[host].template.revision).max().unwrap_or(1);
            let to = if template.revision == Some(newest) && world.flip(128) { newest + 1 } else { newest };
            world.join(&template.next(to));
            if world.hosts[host].template.revision < Some(to) {
                world.terminate(host);
            }
        }
        _ => {
            let lease = template.kinds[shard].0.clone();
            if !world.hosts[host].failing.remove(&lease) {
                world.hosts[host].failing.insert(lease.clone());
                world.fail(&lease);
            }
        }
    }
    if world.active().is_empty() {
        world.join(&template);
    }
}
