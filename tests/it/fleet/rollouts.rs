//! Rollouts, and what a new template may bring.

use std::collections::BTreeSet;

use leasehold::protocol::lease::Role;

use super::{
    faults::{regroup, rename, retime},
    host::{Kind, LEASE, Template},
    scenarios::{all_kinds, begin, bound, moved_once, some},
    world::World,
};
use crate::timeline::{Global, MILLI, SECOND};

/// What the Deployment controller does with maxSurge 1 and maxUnavailable 0, `steps` replicas far.
pub(super) fn roll(world: &mut World, to: &Template, steps: usize) {
    let of_others = |world: &World| -> Vec<usize> {
        let other = |host: &usize| {
            let template = &world.hosts[*host].template;
            template.owner == to.owner && template.name != to.name
        };
        world.active().into_iter().filter(other).collect()
    };
    for _ in 0..steps {
        let others = of_others(world);
        if others.is_empty() {
            return;
        }
        let image = world.rng.u64(100..3_000) * MILLI;
        world.run_for(image);
        let new = world.join(to).unwrap();
        let by = world.now() + 30 * SECOND;
        while !world.hosts[new].replica.is_ready() {
            world.demand(world.now() < by, || format!("{} does not become ready", world.name(new)));
            world.run_for(100 * MILLI);
        }
        let probe = world.rng.u64(0..2_000) * MILLI;
        world.run_for(probe);
        let old = others[world.rng.usize(0..others.len())];
        world.terminate(old);
    }
}

pub(super) fn rollout(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    if world.flip(60) {
        template.revision = None;
    }
    begin(world, &template, replicas);
    let since = world.now();
    roll(world, &template.next(2), replicas);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &all_kinds(&template));
}

pub(super) fn rollout_paused(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let (since, half, next) = (world.now(), world.rng.usize(1..replicas), template.next(2));
    roll(world, &next, half);
    let pause = world.rng.u64(1..50) * SECOND;
    world.run_for(pause);
    let early = world.terms_since(since);
    roll(world, &next, replicas - half);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &all_kinds(&template));
    let old = early.values().flatten().any(|&host| host < replicas);
    world.demand(!old, || "a kind has moved within the old generation".to_owned());
}

pub(super) fn rollout_rolled_back(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    begin(world, &template, replicas);
    let before: Vec<_> = template.kinds.iter().map(|it| (it.name.clone(), world.leader(&it.name).unwrap())).collect();
    let half = world.rng.usize(1..=replicas);
    roll(world, &template.next(2), half);
    let wait = world.rng.u64(0..20) * SECOND;
    world.run_for(wait);
    let active = world.active();
    let moved: BTreeSet<_> = before.into_iter().filter(|(_, host)| !active.contains(host)).map(|(it, _)| it).collect();
    let back = Template { revision: Some(3), ..template.clone() };
    for host in 0..world.hosts.len() {
        // Those that stayed count as of the new revision: the Deployment keeps them.
        if world.hosts[host].template.name == back.name {
            world.hosts[host].template.revision = Some(3);
            world.origin_changes(host);
        }
    }
    let again = world.hosts.len();
    roll(world, &back, half);
    world.comes_to_rest(bound(template.kinds.len()));
    let mut terms = world.terms_since(0);
    terms.values_mut().for_each(|hosts| hosts.retain(|&host| host >= again));
    terms.retain(|_, hosts| !hosts.is_empty());
    let stayed = terms.keys().find(|kind| !moved.contains(*kind));
    world.demand(stayed.is_none(), || format!("{stayed:?} was of the old generation all the time, and has moved"));
    let twice = terms.iter().find(|(_, hosts)| hosts.len() > 1);
    world.demand(twice.is_none(), || format!("{twice:?} has moved more than once"));
}

pub(super) fn rollout_crashes(world: &mut World) {
    let (template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(128);
    begin(world, &template, replicas);
    let since = world.now();
    let mut new = world.join(&template.next(2)).unwrap();
    for attempt in 0..4 {
        let life = world.rng.u64(200..8_000) * MILLI;
        world.run_for(life);
        let wait: Global = SECOND << attempt;
        world.restart(new, wait);
        world.run_for(wait + MILLI);
        new = world.hosts.len() - 1;
    }
    world.crash(new);
    world.comes_to_rest(bound(0));
    moved_once(world, since, &BTreeSet::new());
}

/// The new template keeps the record of a kind on another Lease: old and new replicas disagree on the lock.
pub(super) fn rollout_renames(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    begin(world, &template, replicas);
    let since = world.now();
    let mut next = template.next(2);
    for _ in 0..world.rng.usize(1..=2) {
        rename(&mut next, &mut world.rng);
    }
    roll(world, &next, replicas);
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
    let terms = world.terms_since(since);
    // What new replicas cannot take stays with the old ones, from one that stops to the next.
    let often = terms.iter().find(|(_, hosts)| hosts.len() > replicas + 1);
    world.demand(often.is_none(), || format!("{often:?} has moved too often"));
}

/// The new template has other kinds share Leases: all of them where each had its own, or the other way round, or some.
pub(super) fn rollout_regroups(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    regroup(&mut template, &mut world.rng);
    begin(world, &template, replicas);
    let mut next = template.next(2);
    regroup(&mut next, &mut world.rng);
    let since = world.now();
    roll(world, &next, replicas);
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
    let terms = world.terms_since(since);
    let often = terms.iter().find(|(_, hosts)| hosts.len() > replicas + 2);
    world.demand(often.is_none(), || format!("{often:?} has moved too often"));
}

/// A lock for each kind, then one for all, then one for each again.
pub(super) fn rollout_to_single_and_back(world: &mut World) {
    let (template, replicas) = some(world, 1..=4);
    begin(world, &template, replicas);
    let mut single = template.next(2);
    single.group(0..template.kinds.len(), "single");
    roll(world, &single, replicas);
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
    let leaders: BTreeSet<_> = template.kinds.iter().map(|kind| world.leader(&kind.name)).collect();
    world.demand(leaders.len() == 1, || format!("all kinds have one leader, and not {leaders:?}"));
    let back = Template { kinds: template.kinds.clone(), ..single.next(3) };
    roll(world, &back, replicas);
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
}

/// A group of kinds beside others: it starts, moves and stops as one.
pub(super) fn group_leaves_and_joins(world: &mut World) {
    let (mut template, replicas) = some(world, 2..=4);
    template.kinds = (0..world.rng.usize(3..=8)).map(Kind::new).collect();
    template.group(0..2, "group");
    begin(world, &template, replicas);
    let since = world.now();
    let group: Vec<_> = template.group_of("A.example.com").iter().map(|kind| kind.name.clone()).collect();
    let leader = world.leader(&group[0]).unwrap();
    match world.rng.u8(0..3) {
        0 => world.terminate(leader),
        1 => world.restart(leader, 0),
        _ => world.crash(leader),
    }
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
    let terms = world.terms_since(since);
    let (first, second) = (terms.get(&group[0]), terms.get(&group[1]));
    world.demand(first == second && first.is_some(), || format!("{group:?} do not start together: {terms:?}"));
}

/// Replicas that disagree on who shares a Lease start at once: one for all kinds, and one for each.
pub(super) fn two_groupings(world: &mut World) {
    let (template, _) = some(world, 1..=1);
    let mut other = template.next(2);
    // The one Lease for all is new, or that of one of the kinds.
    let lease = if world.flip(128) { "single".to_owned() } else { template.kinds[0].lease.clone() };
    other.group(0..template.kinds.len(), &lease);
    let replicas = world.rng.usize(1..=2);
    for template in [&template, &other] {
        for _ in 0..replicas {
            let wait = world.rng.u64(0..60) * MILLI;
            world.join_later(template, wait);
        }
    }
    world.run_for(2 * LEASE);
    let old: Vec<_> = world.active().into_iter().filter(|&it| world.hosts[it].template.name == template.name).collect();
    old.into_iter().for_each(|host| world.terminate(host));
    world.comes_to_rest(2 * LEASE + bound(2 * template.kinds.len()));
}

/// The new template keeps all Leases in another namespace: no replica of one sees the replicas of the other, only that
/// kinds are held there.
pub(super) fn rollout_moves_namespace(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    begin(world, &template, replicas);
    let since = world.now();
    let mut next = template.next(2);
    next.kinds.iter_mut().for_each(|kind| kind.lease.insert_str(0, "other/"));
    if world.flip(128) {
        roll(world, &next, replicas);
    } else {
        // Both live side by side for a while.
        let half = world.rng.usize(0..replicas);
        roll(world, &next, half);
        world.join(&next);
        world.run_for(4 * LEASE);
        for kind in &template.kinds {
            world.demand(world.leader(&kind.name).is_some(), || format!("{} is not led", kind.name));
        }
        let old = |&host: &usize| world.hosts[host].template.name == template.name;
        let old: Vec<_> = world.active().into_iter().filter(old).collect();
        for host in old {
            if world.flip(200) {
                world.terminate(host);
            } else {
                world.crash(host);
            }
        }
        world.run_for(LEASE);
    }
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
    let away = world
        .server
        .leases
        .values()
        .find(|it| it.namespace != "other" && it.holder.is_some() && it.role == Role::Shard);
    let away =
        away.filter(|it| world.hosts.iter().any(|host| host.alive && it.holder.as_ref() == Some(&host.identity)));
    world.demand(away.is_none(), || format!("{away:?} is held where it was"));
    let terms = world.terms_since(since);
    let often = terms.iter().find(|(_, hosts)| hosts.len() > replicas + 2);
    world.demand(often.is_none(), || format!("{often:?} has moved too often"));
}

/// A replica has just joined when a rollout begins, and leads nothing yet: its successor begins with nothing either.
pub(super) fn rollout_uneven(world: &mut World) {
    let (mut template, _) = some(world, 1..=1);
    template.kinds = Template::new(world.rng.usize(6..=10)).kinds;
    let replicas = world.rng.usize(2..=4);
    begin(world, &template, replicas);
    world.join(&template);
    world.run_for(SECOND);
    let since = world.now();
    roll(world, &template.next(2), replicas + 1);
    let last = |world: &World| world.alive().iter().any(|&host| world.hosts[host].template.name == template.name);
    let by = world.now() + 30 * SECOND;
    while last(world) {
        world.demand(world.now() < by, || "the rollout does not end".to_owned());
        world.run_for(50 * MILLI);
    }
    let ended = world.now();
    let idle = |world: &World| world.active().into_iter().any(|host| world.hosts[host].tasks.is_empty());
    while idle(world) {
        world.demand(world.now() < ended + 20 * SECOND, || "a new replica is idle".to_owned());
        world.run_for(50 * MILLI);
    }
    let idle_for = (world.now() - ended) / MILLI;
    world.note(format_args!("a new replica was idle for {idle_for} ms after the rollout"));
    world.add("ms idle after an uneven rollout", idle_for);
    world.comes_to_rest(bound(template.kinds.len()));
    let terms = world.terms_since(since);
    let moves: usize = terms.values().map(Vec::len).sum();
    let share = template.kinds.len() / (replicas + 1);
    world.add("moves of uneven rollouts beyond one a kind", (moves - terms.len()) as u64);
    world.demand(moves <= template.kinds.len() + share, || format!("{moves} moves: {terms:?}"));
    world.demand(idle_for <= 4_000, || format!("a new replica was idle for {idle_for} ms after the rollout"));
}

/// Replicas that disagree on the lock of every kind start at once: each wins its own, and one of the two gives way.
pub(super) fn two_names(world: &mut World) {
    let (template, _) = some(world, 1..=1);
    let mut other = template.next(2);
    other.kinds.iter_mut().for_each(|kind| kind.lease.insert_str(0, "new-"));
    let replicas = world.rng.usize(1..=2);
    for template in [&template, &other] {
        for _ in 0..replicas {
            let wait = world.rng.u64(0..60) * MILLI;
            world.join_later(template, wait);
        }
    }
    world.run_for(2 * LEASE);
    for kind in &template.kinds {
        world.demand(world.leader(&kind.name).is_some(), || format!("{} is not led", kind.name));
    }
    let old: Vec<_> = world.active().into_iter().filter(|&it| world.hosts[it].template.name == template.name).collect();
    old.into_iter().for_each(|host| world.terminate(host));
    world.comes_to_rest(LEASE + bound(2 * template.kinds.len()));
}

/// Leases of the new template last longer, or shorter.
pub(super) fn rollout_retimes(world: &mut World) {
    let (mut template, replicas) = some(world, 1..=5);
    if world.flip(128) {
        retime(&mut template);
    }
    begin(world, &template, replicas);
    let since = world.now();
    let mut next = template.next(2);
    retime(&mut next);
    roll(world, &next, replicas);
    world.comes_to_rest(bound(template.kinds.len()));
    moved_once(world, since, &all_kinds(&template));
}

/// The new template has a kind more and a kind less.
pub(super) fn rollout_changes_kinds(world: &mut World) {
    let (template, replicas) = some(world, 1..=5);
    begin(world, &template, replicas);
    let mut next = template.next(2);
    next.kinds.push(Kind::new(template.kinds.len()));
    if template.kinds.len() > 1 {
        next.kinds.remove(0);
    }
    roll(world, &next, replicas);
    world.comes_to_rest(bound(template.kinds.len() + 1));
}

/// The Lease of a kind that is configured no more is collected, when no replica needs it.
pub(super) fn removed(world: &mut World) {
    let (mut template, replicas) = some(world, 2..=4);
    let kind = Kind::new(template.kinds.len());
    template.kinds.push(kind.clone());
    begin(world, &template, replicas);
    let mut next = template.next(2);
    next.kinds.pop();
    // All but one: that one goes on alone with the kind that the others do not know.
    roll(world, &next, replicas - 1);
    let last = world.active().into_iter().find(|&host| host < replicas).unwrap();
    world.run_for(6 * LEASE);
    world.demand(world.leader(&kind.name) == Some(last), || {
        format!("{} is not led by the one that knows it", kind.name)
    });
    if world.flip(128) {
        world.terminate(last)
    } else {
        world.crash(last)
    }
    world.run_for(3 * LEASE);
    world.demand(world.server.leases.contains_key(&kind.lease), || "it was collected too soon".to_owned());
    world.run_for(4 * LEASE);
    world.demand(!world.server.leases.contains_key(&kind.lease), || "it was not collected".to_owned());
    let members = world.server.leases.values().filter(|record| record.profile.is_some()).count();
    world.demand(members == world.active().len(), || format!("{members} memberships are left"));
    world.comes_to_rest(bound(template.kinds.len()));
}
