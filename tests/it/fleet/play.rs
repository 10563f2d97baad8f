//! Plays schedules, makes one that fails as small as it can, and says how to play it again.

#![expect(clippy::print_stdout, reason = "says how far it has come to the person who waits for it")]

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{judge::Failure, world::World};

/// A beginning, what happens, and what is demanded at the end.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) plays: fn(&mut World),
    /// How many of its seeds `cargo test` plays.
    pub(super) seeds: u64,
}

/// A run that has ended, and what was untrue.
struct Run {
    world: World,
    failure: Option<String>,
}

impl Scenario {
    fn run(&self, seed: u64, skip: &BTreeSet<usize>, with_log: bool) -> Run {
        // Seeds of two scenarios are not the same worlds.
        let named = self.name.bytes().fold(seed, |all, byte| all.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut world = World::new(named, skip.clone(), with_log);
        let ended = catch_unwind(AssertUnwindSafe(|| (self.plays)(&mut world)));
        let failure = ended.err().map(|thrown| said(thrown.as_ref()));
        Run { world, failure }
    }

    /// The faults that a failing run needs, by leaving out ever smaller parts of the others.
    fn shrink(&self, seed: u64) -> BTreeSet<usize> {
        let all = self.run(seed, &BTreeSet::new(), false).world.faults.len();
        let fails = |skip: &BTreeSet<usize>| self.run(seed, skip, false).failure.is_some();
        let (mut skip, mut part) = (BTreeSet::new(), all.div_ceil(2));
        while part > 0 {
            let kept: Vec<_> = (0..all).filter(|fault| !skip.contains(fault)).collect();
            let mut smaller = false;
            for chunk in kept.chunks(part) {
                let more: BTreeSet<_> = skip.iter().chain(chunk).copied().collect();
                if fails(&more) {
                    skip = more;
                    smaller = true;
                }
            }
            part = if smaller && part == 1 { 1 } else { part / 2 };
        }
        skip
    }

    /// What failed, by what, and how to play it again.
    fn report(&self, seed: u64, failure: &str) -> String {
        let skip = self.shrink(seed);
        let smallest = self.run(seed, &skip, true);
        let failure = smallest.failure.unwrap_or_else(|| failure.to_owned());
        let skip: Vec<_> = skip.iter().map(usize::to_string).collect();
        let again = format!(
            "SCENARIO={} SEED={seed} SKIP={} cargo test --test it fleet_again -- --nocapture",
            self.name,
            skip.join(",")
        );
        format!("{}\n{failure}\nplay it again: {again}", smallest.world.log.unwrap_or_default())
    }

    /// Plays these seeds.
    pub(super) fn play(&self, seeds: impl Iterator<Item = u64>) {
        for seed in seeds {
            if let Some(failure) = self.run(seed, &BTreeSet::new(), false).failure {
                panic!("{}", self.report(seed, &failure));
            }
        }
    }

    /// Plays one schedule again, and says what happened.
    pub(super) fn again(&self, seed: u64, skip: &BTreeSet<usize>) {
        let run = self.run(seed, skip, true);
        println!("{}", run.world.log.unwrap_or_default());
        if let Some(failure) = run.failure {
            panic!("{failure}");
        }
    }
}

fn said(thrown: &(dyn Any + Send)) -> String {
    let text = thrown.downcast_ref::<Failure>().map(|failure| failure.0.clone());
    let text = text.or_else(|| thrown.downcast_ref::<String>().cloned());
    text.or_else(|| thrown.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Plays so many schedules on all processors, and says what they have covered. Stops at the first failure.
pub(super) fn soak(scenarios: &[&Scenario], schedules: u64, first_seed: u64) {
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let seen = Mutex::new(BTreeMap::<&'static str, u64>::new());
    let report = Mutex::new(None);
    let weights: u64 = scenarios.iter().map(|scenario| scenario.seeds).sum();
    let pick = |number: u64| {
        let mut place = number % weights;
        let scenario = scenarios.iter().find(|scenario| {
            let found = place < scenario.seeds;
            place = place.saturating_sub(scenario.seeds);
            found
        });
        *scenario.unwrap_or(&scenarios[0])
    };
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= schedules {
                return;
            }
            let scenario = pick(number);
            let run = scenario.run(first_seed + number, &BTreeSet::new(), false);
            let mut seen = seen.lock().unwrap();
            run.world.seen.iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
            *seen.entry(scenario.name).or_default() += 1;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(schedules.div_ceil(100)) || done == schedules {
                println!("{done} of {schedules} schedules: {seen:?}");
            }
            drop(seen);
            if let Some(failure) = run.failure
                && !failed.swap(true, Ordering::Relaxed)
            {
                println!("{} fails with seed {}: {failure}", scenario.name, first_seed + number);
                *report.lock().unwrap() = Some(scenario.report(first_seed + number, &failure));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let report = report.lock().unwrap().take();
    assert!(report.is_none(), "{}", report.unwrap_or_default());
}
