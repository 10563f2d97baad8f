//! What one decision of the pure placement takes: 1,000 shards over 100 replicas.

use std::{hint::black_box, time::Instant};

use leasehold::protocol::placement::{Able, Moves, Replica, Shard, Tie, placement};

use crate::report::Report;

const GROUP: &str = "placement: one decision over 1,000 kinds and 100 replicas";
const SHARDS: usize = 1_000;
const REPLICAS: usize = 100;
const TRIALS: usize = 50;

/// Measures a few states that a fleet may be in.
pub(crate) fn measure(report: &mut Report) {
    let leases: Vec<_> = (0..SHARDS).map(|number| format!("kind{number}.example.com")).collect();
    let names: Vec<_> = (0..REPLICAS).map(|number| format!("replica-{number}_0123456789abcdef")).collect();
    let settled = |shard: usize| Some(shard % REPLICAS);
    let mut state = |name: &str, holder: &dyn Fn(usize) -> Option<usize>| {
        let shards: Vec<_> = leases
            .iter()
            .enumerate()
            .map(|(index, lease)| Shard {
                lease,
                weight: 1,
                holder: holder(index),
                tie: Tie::Held,
                failing: None,
                avoid: Vec::new(),
                taken: false,
            })
            .collect();
        let replicas: Vec<_> = names
            .iter()
            .map(|identity| Replica { identity, capacity: 1, active: true, newest: true, able: Able::All })
            .collect();
        report.add(GROUP, "leasehold", name, "µs", (0..TRIALS).map(|_| decide(&shards, &replicas)).collect());
    };
    state("all even", &settled);
    state("one replica gone", &|shard| settled(shard).filter(|replica| *replica != 7));
    state("nothing held", &|_| None);
    state("all on one", &|_| Some(0));
}

#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
fn decide(shards: &[Shard<'_>], replicas: &[Replica<'_>]) -> f64 {
    let began = Instant::now();
    black_box(placement(black_box(shards), black_box(replicas), Moves::Planned));
    began.elapsed().as_secs_f64() * 1e6
}
