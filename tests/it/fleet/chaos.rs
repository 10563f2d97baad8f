//! Everything at once.

use leasehold::config::OnLoss;

use super::{
    faults::{ALL, DUEL, regroup},
    host::{LEASE, SETTLE, Template},
    scenarios::{bound, some},
    world::World,
};
use crate::timeline::{MILLI, SECOND};

pub(super) fn chaos(world: &mut World) {
    let (mut template, replicas) = some(world, 2..=5);
    world.witnessed = world.flip(180);
    if world.flip(80) {
        for kind in &mut template.kinds {
            kind.weight = world.rng.u32(1..=4);
        }
    }
    if world.flip(100) {
        regroup(&mut template, &mut world.rng);
    }
    if world.flip(50) {
        template.on_loss = OnLoss::Exit;
    }
    for _ in 0..replicas {
        let wait = world.rng.u64(0..5_000) * MILLI;
        world.join_later(&template, wait);
    }
    if world.flip(60) {
        let other = Template {
            name: "g1-two".to_owned(),
            owner: Some("Deployment/two".to_owned()),
            capacity: 2,
            ..template.clone()
        };
        world.join_later(&other, 2 * SECOND);
    }
    world.run_for(5 * SECOND);
    let time = world.rng.u64(30..200) * SECOND;
    world.plan_faults(ALL, time, 12 * SECOND);
    world.run_for(time);
    ends_well(world, template);
}

/// Few replicas and one kind, and something goes wrong all the time.
pub(super) fn duel(world: &mut World) {
    let replicas = world.rng.usize(2..=4);
    let mut template = Template::new(1);
    if world.flip(60) {
        template = Template::new(2);
        template.group(0..2, "group");
    }
    if world.flip(50) {
        template.on_loss = OnLoss::Exit;
    }
    template.pod_lock = !world.flip(40);
    world.witnessed = world.flip(128);
    for _ in 0..replicas {
        world.join(&template);
    }
    world.run_for(5 * SECOND);
    let time = 150 * SECOND;
    world.plan_faults(DUEL, time, 6 * SECOND);
    world.run_for(time);
    ends_well(world, template);
}

/// When the faults stop, and a rollout that was begun is finished or rests, all comes to rest.
fn ends_well(world: &mut World, template: Template) {
    world.calm_down();
    // What a hand has taken from the record is known again, and what restarts is there: it is of the old template, too.
    let wait = world.no_start_before.saturating_sub(world.now()).max(11 * SECOND) + MILLI;
    world.run_for(wait);
    let newest = world.active().into_iter().max_by_key(|&host| world.hosts[host].template.revision);
    let template = newest.map_or(template, |host| world.hosts[host].template.clone());
    world.join(&template);
    let old: Vec<_> =
        world.active().into_iter().filter(|&host| world.hosts[host].template.name != template.name).collect();
    let same_kinds = old.iter().all(|&host| world.hosts[host].template.kinds == template.kinds);
    let finish = !same_kinds || world.flip(128);
    let stalled = if old.is_empty() || finish { 0 } else { 12 * SETTLE };
    if finish {
        old.into_iter().for_each(|host| world.terminate(host));
    }
    // The last containers restart, and what a replica did not take is forgiven, a lengthened duration is over.
    world.run_for(11 * SECOND);
    world.run_for(world.counted_until.saturating_sub(world.now()));
    let forgiven = world.avoided.values().max().copied().unwrap_or(0);
    world.run_for(forgiven.saturating_sub(world.now()));
    // Besides what is due when all is well: a Lease and a barrier, a failed request, and kinds that cool down first.
    let cooling = world.cools_for();
    let leases = 2 * LEASE;
    world.comes_to_rest(leases + 10 * SECOND + stalled + cooling + bound(2 * template.kinds.len()));
}
