use proptest::prelude::*;

use super::*;

/// What placement is asked, owned: names, weights and who holds what.
#[derive(Clone, Debug)]
struct World {
    weights: Vec<u32>,
    holders: Vec<Option<usize>>,
    ties: Vec<Tie>,
    failing: Vec<Option<Vec<usize>>>,
    capacities: Vec<u32>,
    active: Vec<bool>,
    newest: Vec<bool>,
    /// By replica and shard.
    able: Vec<Vec<bool>>,
}

impl World {
    /// These replicas and these shards, all equal, nothing held.
    fn equal(shards: usize, replicas: usize) -> Self {
        Self {
            weights: vec![1; shards],
            holders: vec![None; shards],
            ties: vec![Tie::Held; shards],
            failing: vec![None; shards],
            capacities: vec![1; replicas],
            active: vec![true; replicas],
            newest: vec![true; replicas],
            able: vec![vec![true; shards]; replicas],
        }
    }

    fn leases(&self) -> Vec<String> {
        (0..self.weights.len()).map(|shard| format!("kind{shard}.example.com")).collect()
    }

    fn names(&self) -> Vec<String> {
        (0..self.active.len()).map(|replica| format!("replica-{replica}_0a1b")).collect()
    }

    /// Decides with the shards and the replicas listed in these orders, and puts the answer back into ours.
    fn decide_in(&self, shard_order: &[usize], replica_order: &[usize], moves: Moves) -> Placement {
        let (leases, names) = (self.leases(), self.names());
        let place = |replica: usize| replica_order.iter().position(|at| *at == replica).unwrap();
        let shards: Vec<_> = shard_order
            .iter()
            .map(|&shard| Shard {
                lease: &leases[shard],
                weight: self.weights[shard],
                holder: self.holders[shard].map(place),
                tie: self.ties[shard],
                failing: self.failing[shard].as_ref().map(|at| at.iter().copied().map(place).collect()),
                avoid: Vec::new(),
                taken: false,
            })
            .collect();
        let replicas: Vec<_> = replica_order
            .iter()
            .map(|&replica| Replica {
                identity: &names[replica],
                capacity: self.capacities[replica],
                active: self.active[replica],
                newest: self.newest[replica],
                able: Able::Only(shard_order.iter().map(|&shard| self.able[replica][shard]).collect()),
            })
            .collect();
        let answer = placement(&shards, &replicas, moves);
        let ours = |answers: &[Option<usize>]| {
            let mut mine = vec![None; answers.len()];
            for (place, &shard) in shard_order.iter().enumerate() {
                mine[shard] = answers[place].map(|replica| replica_order[replica]);
            }
            mine
        };
        Placement { targets: ours(&answer.targets), successors: ours(&answer.successors) }
    }

    fn decide(&self, moves: Moves) -> Placement {
        let (shards, replicas): (Vec<_>, Vec<_>) =
            ((0..self.weights.len()).collect(), (0..self.active.len()).collect());
        self.decide_in(&shards, &replicas, moves)
    }

    fn eligible(&self, shard: usize, replica: usize) -> bool {
        self.active[replica] && self.able[replica][shard]
    }

    fn loads(&self, targets: &[Option<usize>]) -> Vec<u64> {
        let mut loads = vec![0; self.active.len()];
        for (shard, target) in targets.iter().enumerate() {
            if let Some(target) = target {
                loads[*target] += u64::from(self.weights[shard]);
            }
        }
        loads
    }

    /// Nothing is on its way any more.
    fn arrive(&mut self) {
        self.ties.iter_mut().filter(|tie| **tie == Tie::Loose).for_each(|tie| *tie = Tie::Held);
    }

    /// How many shards change hands.
    fn follow(&mut self, targets: Vec<Option<usize>>) -> usize {
        let moved = self.holders.iter().zip(&targets).filter(|(old, new)| old.is_some() && old != new).count();
        self.holders = targets;
        moved
    }
}

fn worlds() -> impl Strategy<Value = World> {
    (1_usize..14, 1_usize..7).prop_flat_map(|(shards, replicas)| {
        let flags = |count| prop::collection::vec(prop::bool::weighted(0.8), count);
        let ties = prop_oneof![8 => Just(Tie::Held), 1 => Just(Tie::Pinned), 1 => Just(Tie::Loose)];
        (
            prop::collection::vec(1_u32..6, shards),
            prop::collection::vec(prop::option::weighted(0.7, 0..replicas), shards),
            prop::collection::vec(ties, shards),
            prop::collection::vec(1_u32..4, replicas),
            flags(replicas),
            flags(replicas),
            prop::collection::vec(flags(shards), replicas),
            prop::collection::vec(prop::option::weighted(0.2, prop::collection::vec(0..replicas, 0..3)), shards),
        )
            .prop_map(|(weights, holders, ties, capacities, active, newest, able, failing)| World {
                weights,
                holders,
                failing,
                ties,
                capacities,
                active,
                newest,
                able,
            })
    })
}

/// Equal kinds on equal replicas, held anyhow.
fn equals() -> impl Strategy<Value = World> {
    (1_usize..30, 1_usize..8).prop_flat_map(|(shards, replicas)| {
        prop::collection::vec(prop::option::weighted(0.8, 0..replicas), shards)
            .prop_map(move |holders| World { holders, ..World::equal(shards, replicas) })
    })
}

fn spread(loads: &[u64]) -> u64 {
    loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_in_which_things_are_listed_changes_nothing(world in worlds(), seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut shards, mut replicas): (Vec<_>, Vec<_>) = ((0..world.weights.len()).collect(), (0..world.active.len()).collect());
        rng.shuffle(&mut shards);
        rng.shuffle(&mut replicas);
        for moves in [Moves::None, Moves::Planned] {
            prop_assert_eq!(world.decide_in(&shards, &replicas, moves), world.decide(moves));
        }
    }

    #[test]
    fn every_shard_that_any_replica_can_run_has_a_target_that_can(world in worlds()) {
        for moves in [Moves::None, Moves::Planned] {
            let answer = world.decide(moves);
            for shard in 0..world.weights.len() {
                let eligible = (0..world.active.len()).filter(|&replica| world.eligible(shard, replica)).count();
                prop_assert_eq!(answer.targets[shard].is_some(), eligible > 0);
                prop_assert_eq!(answer.successors[shard].is_some(), eligible > 1);
                for one in [answer.targets[shard], answer.successors[shard]].into_iter().flatten() {
                    prop_assert!(world.eligible(shard, one));
                }
                prop_assert!(answer.targets[shard].is_none() || answer.targets[shard] != answer.successors[shard]);
            }
        }
    }

    #[test]
    fn a_holder_that_can_go_on_keeps_its_shard_unless_moves_are_planned(world in worlds()) {
        let still = world.decide(Moves::None).targets;
        let moved = world.decide(Moves::Planned).targets;
        for shard in 0..world.weights.len() {
            if let Some(holder) = world.holders[shard].filter(|&holder| world.eligible(shard, holder)) {
                prop_assert!(still[shard] == Some(holder) || world.ties[shard] == Tie::Loose);
                prop_assert!(world.ties[shard] != Tie::Pinned || moved[shard] == Some(holder));
                prop_assert!(moved[shard] == Some(holder) || world.newest[moved[shard].unwrap()], "moves go to the newest");
            }
        }
    }

    #[test]
    fn what_is_placed_anew_goes_to_the_newest_generation_if_that_can(world in worlds()) {
        let targets = world.decide(Moves::None).targets;
        for (shard, target) in targets.iter().enumerate() {
            let keeps = world.holders[shard].is_some_and(|holder| world.eligible(shard, holder));
            let newest = (0..world.active.len()).any(|replica| world.newest[replica] && world.eligible(shard, replica));
            prop_assert!(world.failing[shard].is_some() || keeps || !newest || world.newest[target.unwrap()]);
        }
    }

    #[test]
    fn equal_kinds_end_within_one_and_move_no_more_than_they_must(mut world in equals()) {
        let held = world.loads(&world.holders.clone());
        let targets = world.decide(Moves::Planned).targets;
        let loads = world.loads(&targets);
        prop_assert!(spread(&loads) <= 1, "{:?}", loads);
        // The fewest moves: the fullest replicas keep one more than the others, and only what is above that moves.
        let (count, replicas) = (world.weights.len(), world.active.len());
        let mut fullest = held;
        fullest.sort_unstable_by(|a, b| b.cmp(a));
        let quota = |place: usize| (count / replicas + usize::from(place < count % replicas)) as u64;
        let least: u64 = fullest.iter().enumerate().map(|(place, held)| held.saturating_sub(quota(place))).sum();
        prop_assert_eq!(world.follow(targets) as u64, least);
    }

    #[test]
    fn what_is_given_up_anyway_is_evened_out_also_when_nothing_may_move(mut world in equals(), given_up: u64) {
        for (shard, tie) in world.ties.iter_mut().enumerate() {
            *tie = if given_up & (1 << shard) == 0 { Tie::Held } else { Tie::Loose };
        }
        let targets = world.decide(Moves::None).targets;
        let loads = world.loads(&targets);
        let least = loads.iter().min().unwrap();
        for ((holder, target), tie) in world.holders.iter().zip(targets).zip(&world.ties) {
            let target = target.unwrap();
            prop_assert!(*tie == Tie::Loose || holder.is_none_or(|holder| holder == target));
            prop_assert!(*tie == Tie::Held || loads[target] <= least + 1, "{:?}", loads);
        }
    }

    #[test]
    fn unequal_kinds_end_within_the_heaviest(mut world in worlds()) {
        for able in &mut world.able {
            able.fill(true);
        }
        world.ties.fill(Tie::Held);
        world.failing.fill(None);
        world.capacities.fill(1);
        world.newest.fill(true);
        let loads = world.loads(&world.decide(Moves::Planned).targets);
        let active: Vec<_> = loads.iter().zip(&world.active).filter(|(_, active)| **active).map(|(load, _)| *load).collect();
        let heaviest = u64::from(*world.weights.iter().max().unwrap());
        prop_assert!(spread(&active) <= heaviest, "{:?}", active);
    }

    #[test]
    fn where_an_ailing_shard_is_moves_no_other(world in worlds(), replica in 0_usize..7, can: bool) {
        let mut other = world.clone();
        for shard in (0..world.weights.len()).filter(|&shard| world.failing[shard].is_some()) {
            other.able.iter_mut().for_each(|able| able[shard] = can);
            other.holders[shard] = Some(replica % world.active.len());
        }
        for moves in [Moves::None, Moves::Planned] {
            let (here, there) = (world.decide(moves).targets, other.decide(moves).targets);
            for shard in 0..world.weights.len() {
                prop_assert!(world.failing[shard].is_some() || here[shard] == there[shard]);
            }
        }
    }

    #[test]
    fn what_ails_is_not_moved_to_where_it_failed(world in worlds()) {
        let targets = world.decide(Moves::Planned).targets;
        for (shard, target) in targets.iter().enumerate() {
            let (Some(failed_at), Some(target)) = (&world.failing[shard], target) else { continue };
            let elsewhere = (0..world.active.len()).any(|replica| world.eligible(shard, replica) && !failed_at.contains(&replica));
            let stays = world.holders[shard] == Some(*target);
            prop_assert!(stays || !elsewhere || !failed_at.contains(target));
        }
    }

    #[test]
    fn a_decision_that_was_followed_is_not_changed(world in worlds()) {
        let mut world = world;
        let targets = world.decide(Moves::Planned).targets;
        world.holders.clone_from(&targets);
        prop_assert_eq!(world.decide(Moves::Planned).targets, targets, "kinds would wander for ever");
    }

    #[test]
    fn moves_lower_the_higher_loads(mut world in worlds()) {
        world.failing.fill(None);
        world.arrive();
        let sorted = |targets: &[Option<usize>]| {
            let loads = world.loads(targets);
            // Compared as fractions of one common multiple of all capacities.
            let mut loads: Vec<_> = loads.iter().zip(&world.capacities).map(|(load, capacity)| load * 12 / u64::from(*capacity)).collect();
            loads.sort_unstable_by(|a, b| b.cmp(a));
            loads
        };
        let (before, after) = (world.decide(Moves::None).targets, world.decide(Moves::Planned).targets);
        prop_assert!(before == after || sorted(&after) < sorted(&before), "{:?} {:?}", before, after);
    }

    #[test]
    fn the_successor_is_whom_placement_chooses_when_the_target_has_gone(mut world in worlds()) {
        world.arrive();
        let answer = world.decide(Moves::None);
        world.holders.clone_from(&answer.targets);
        for gone in 0..world.active.len() {
            let mut without = world.clone();
            without.active[gone] = false;
            let next = without.decide(Moves::None).targets;
            for shard in (0..world.weights.len()).filter(|&shard| answer.targets[shard] == Some(gone)) {
                prop_assert_eq!(next[shard], answer.successors[shard]);
            }
        }
    }

    #[test]
    fn whatever_joins_and_leaves_only_what_must_move_does(history in prop::collection::vec((any::<bool>(), 0_usize..6), 1..20), shards in 1_usize..20) {
        let mut world = World::equal(shards, 6);
        world.active = vec![true, false, false, false, false, false];
        let first = world.decide(Moves::Planned).targets;
        world.follow(first);
        for (joins, replica) in history {
            world.active[replica] = joins;
            if !world.active.contains(&true) {
                world.active[replica] = true;
            }
            let orphans = world.holders.iter().flatten().filter(|&&holder| !world.active[holder]).count();
            let live = world.active.iter().filter(|active| **active).count();
            let mut held: Vec<_> = world.loads(&world.holders.clone()).into_iter().zip(&world.active).filter(|(_, active)| **active).map(|(load, _)| load).collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            let quota = |place: usize| (shards / live + usize::from(place < shards % live)) as u64;
            let excess: u64 = held.iter().enumerate().map(|(place, held)| held.saturating_sub(quota(place))).sum();
            let targets = world.decide(Moves::Planned).targets;
            let moved = world.follow(targets);
            prop_assert_eq!(moved as u64, orphans as u64 + excess);
        }
    }

    #[test]
    fn every_replica_stands_in_line_once(world in worlds()) {
        let (leases, names) = (world.leases(), world.names());
        let shards: Vec<_> = (0..leases.len()).map(|shard| Shard {
            lease: &leases[shard], weight: world.weights[shard], holder: world.holders[shard], tie: Tie::Held, failing: None, avoid: Vec::new(), taken: false,
        }).collect();
        let replicas: Vec<_> = (0..names.len()).map(|replica| Replica {
            identity: &names[replica], capacity: world.capacities[replica], active: world.active[replica],
            newest: world.newest[replica], able: Able::Only(world.able[replica].clone()),
        }).collect();
        let answer = placement(&shards, &replicas, Moves::None);
        for shard in 0..shards.len() {
            let mut places: Vec<_> = (0..replicas.len()).filter_map(|one| rank(shard, one, &shards, &replicas, &answer)).collect();
            places.sort_unstable();
            prop_assert_eq!(&places, &(0..places.len()).collect::<Vec<_>>());
            let target = answer.targets[shard].map(|target| rank(shard, target, &shards, &replicas, &answer));
            prop_assert!(target.is_none_or(|place| place == Some(0)));
        }
    }
}

#[test]
fn five_kinds_on_five_replicas_are_one_each() {
    let loads = World::equal(5, 5).loads(&World::equal(5, 5).decide(Moves::None).targets);
    assert_eq!(loads, [1; 5]);
}

#[test]
fn twice_the_capacity_is_twice_the_share() {
    let world = World { capacities: vec![1, 2, 1], ..World::equal(12, 3) };
    assert_eq!(world.loads(&world.decide(Moves::None).targets), [3, 6, 3]);
}

#[test]
fn a_rolling_restart_moves_each_kind_once_and_ends_even() {
    // Old replicas are 0 to 2, new ones 3 to 5; each new one is there before an old one stops.
    let mut world = World::equal(10, 6);
    world.active = vec![true, true, true, false, false, false];
    let first = world.decide(Moves::None).targets;
    world.follow(first);
    world.newest = vec![false, false, false, true, true, true];
    let mut moved = 0;
    for step in 0..3 {
        world.active[3 + step] = true;
        world.active[step] = false;
        let targets = world.decide(Moves::None).targets;
        moved += world.follow(targets);
    }
    assert_eq!(moved, 10);
    assert!(spread(&world.loads(&world.holders.clone())[3..]) <= 1);
}

#[test]
fn a_strangers_shard_has_no_target_and_is_no_load() {
    let shard = |lease, taken| Shard {
        lease,
        weight: 5,
        holder: None,
        tie: Tie::Held,
        failing: None,
        avoid: Vec::new(),
        taken,
    };
    let replica = |identity| Replica { identity, capacity: 1, active: true, newest: true, able: Able::All };
    let answer = placement(&[shard("a", true), shard("b", false)], &[replica("x")], Moves::Planned);
    assert_eq!((answer.targets, answer.successors), (vec![None, Some(0)], vec![None, None]));
}
