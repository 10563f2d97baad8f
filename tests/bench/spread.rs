//! How ten kinds spread over three replicas: after a fresh start, after one replica was replaced, after a rolling
//! restart; and how often a kind moves in that.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    field::{BOTH, Field, Fleet, QUICK, System, now, pods_of, spread},
    record::{handovers, leases},
    report::{Report, say},
};

const GROUP: &str = "spread of 10 kinds over 3 replicas (5 s Leases)";
const KINDS: usize = 10;
const REPLICAS: usize = 3;
/// Nobody takes anything for this long: longer than a settle period and a Lease of these trials.
const QUIET: Duration = Duration::from_secs(5);

/// Most of a trial is waiting for nothing to happen.
const AT_ONCE: usize = 5;

/// What trials showed.
#[derive(Default)]
struct Trials {
    largest: [Vec<f64>; 3],
    idle: [Vec<f64>; 3],
    moves: Vec<f64>,
    most: Vec<f64>,
}

/// Measures `trials` times for each system, one after the other.
///
/// # Errors
/// When a replica does not come up, or a kind is not led.
pub(crate) async fn measure(field: &Field, trials: usize, report: &mut Report) -> Result<()> {
    field.kinds(KINDS).await?;
    for system in BOTH {
        let mut seen = Trials::default();
        let all = stream::iter(1..=trials).map(|trial| once(field, system, trial)).buffer_unordered(AT_ONCE);
        let all: Vec<_> = all.try_collect().await?;
        all.into_iter().for_each(|trial| seen.add(trial));
        let name = system.name();
        for (index, after) in ["a fresh start", "one replica was replaced", "a rolling restart"].iter().enumerate() {
            let largest = std::mem::take(&mut seen.largest[index]);
            report.add(GROUP, name, format!("largest share after {after}"), "kinds", largest);
            let idle = std::mem::take(&mut seen.idle[index]);
            report.add(GROUP, name, format!("replicas without a kind after {after}"), "", idle);
        }
        report.add(GROUP, name, "moves a kind in a rolling restart, mean", "moves", seen.moves);
        report.add(GROUP, name, "moves of one kind in a rolling restart, most", "moves", seen.most);
    }
    Ok(())
}

impl Trials {
    fn add(&mut self, other: Self) {
        self.largest.iter_mut().zip(other.largest).for_each(|(mine, theirs)| mine.extend(theirs));
        self.idle.iter_mut().zip(other.idle).for_each(|(mine, theirs)| mine.extend(theirs));
        self.moves.extend(other.moves);
        self.most.extend(other.most);
    }
}

async fn once(field: &Field, system: System, trial: usize) -> Result<Trials> {
    let mut seen = Trials::default();
    let fleet = field.fleet(system, &format!("spread-{trial}"), KINDS, REPLICAS, QUICK).await?;
    fleet.running(REPLICAS).await?;
    note(&fleet, 0, &mut seen).await?;

    let holders = field.holders(&fleet.namespace).await?;
    let victim = pods_of(&holders).into_iter().next().context("somebody leads")?;
    fleet.kubectl(&["delete", "pod", &victim, "--wait=false"]).await?;
    fleet.held("the pod that is deleted has nothing", |pod| pod != victim).await?;
    fleet.running(REPLICAS).await?;
    note(&fleet, 1, &mut seen).await?;

    let old = field.pods(&fleet.namespace).await?;
    let began = now();
    fleet.kubectl(&["rollout", "restart", "deployment/replica"]).await?;
    fleet.kubectl(&["rollout", "status", "deployment/replica", "--timeout=180s"]).await?;
    fleet.held("the new pods have everything", |pod| !old.iter().any(|old| old == pod)).await?;
    fleet.running(REPLICAS).await?;
    note(&fleet, 2, &mut seen).await?;
    let moves: Vec<_> = leases(&fleet.audit()?).values().map(|stored| handovers(stored, began).len() as f64).collect();
    seen.moves.push(moves.iter().sum::<f64>() / KINDS as f64);
    seen.most.push(moves.iter().copied().fold(0.0, f64::max));
    fleet.end().await?;
    say(&format!("spread, {}: trial {trial}", system.name()));
    Ok(seen)
}

async fn note(fleet: &Fleet<'_>, step: usize, seen: &mut Trials) -> Result<()> {
    let holders = fleet.settled(QUIET).await?;
    let (largest, idle) = spread(&holders, REPLICAS);
    seen.largest[step].push(largest as f64);
    seen.idle[step].push(idle as f64);
    Ok(())
}
