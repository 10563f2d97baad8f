//! A planned handover: for how long nobody leads, and how long a change waits for its reconcile while an object changes
//! every 50 ms, with few and with many objects of the kind.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{
    field::{DEFAULT, Field, Fleet, System, now, pod_of},
    record::{handovers, leases, longest_without_work, millis},
    report::Report,
};

const GROUP: &str = "planned handover: SIGTERM of the holder (15 s Leases, a change every 50 ms)";
/// Objects of the kind, besides the one that changes.
const OBJECTS: [usize; 3] = [0, 1_000, 10_000];
/// With so many, what it costs that the kind acts as an account of its own.
const ACTING: usize = 1_000;
const BEAT: Duration = Duration::from_millis(50);
/// Between two handovers, so that the signal meets the holder at another time after its last renewal.
const PAUSE: std::ops::Range<u64> = 2_000..4_000;

/// What each trial took, in milliseconds.
#[derive(Default)]
struct Waits {
    undisturbed: Vec<f64>,
    unled: Vec<f64>,
    unworked: Vec<f64>,
}

/// Measures `trials` handovers for each number of objects, of each system in turn, so that what the machine does besides
/// meets all of them.
///
/// # Errors
/// When a replica does not come up, or the kind is not led.
pub(crate) async fn measure(field: &Field, trials: usize, report: &mut Report) -> Result<()> {
    field.kinds(1).await?;
    for objects in OBJECTS {
        let mut fleets = Vec::new();
        for system in [System::Ours, System::OursActing, System::ClientGo] {
            if system == System::OursActing && objects != ACTING {
                continue;
            }
            let fleet = field.fleet(system, &format!("handover-{objects}"), 1, 2, DEFAULT).await?;
            fleet.objects(objects.max(1)).await?;
            fleet.running(2).await?;
            fleet.held("it is led", |_| true).await?;
            fleets.push((fleet, Waits::default()));
        }
        // The standbys' caches are filled, where they are kept, and the first sweep is over.
        tokio::time::sleep(Duration::from_secs(8)).await;
        for number in 0..trials {
            for (fleet, waits) in &mut fleets {
                tokio::select! {
                    broken = beat(fleet, number) => broken?,
                    done = trial(fleet, waits) => done?,
                }
            }
        }
        for (fleet, waits) in fleets {
            let (with, name) = (format!("{objects} objects"), fleet.system.name());
            report.add(GROUP, name, format!("{with}: no leader"), "ms", waits.unled);
            report.add(GROUP, name, format!("{with}: longest wait of a change"), "ms", waits.unworked);
            report.add(GROUP, name, format!("{with}: the same, undisturbed"), "ms", waits.undisturbed);
            fleet.end().await?;
        }
    }
    Ok(())
}

/// Changes an object every 50 ms for as long as it is polled, to a value that it never had.
async fn beat(fleet: &Fleet<'_>, trial: usize) -> Result<()> {
    let api = fleet.api();
    let mut ticks = tokio::time::interval(BEAT);
    for change in 1.. {
        ticks.tick().await;
        // A trial has fewer changes than that, and each is a larger number than those before.
        let change = trial * 1_000_000 + change;
        let patch = json!({"spec": {"change": change}});
        api.patch("object-0", &PatchParams::default(), &Patch::Merge(patch)).await.context("the writer")?;
    }
    Ok(())
}

/// One handover, and the seconds before it.
async fn trial(fleet: &Fleet<'_>, waits: &mut Waits) -> Result<()> {
    let before = now();
    tokio::time::sleep(Duration::from_millis(fastrand::u64(PAUSE))).await;
    waits.undisturbed.extend(longest_without_work(&fleet.audit()?, before));
    let holders = fleet.held("it is led", |_| true).await?;
    let old = holders.values().next().context("a holder")?.clone();
    let at = now();
    // To the process: the container is restarted, and the pod stays for the next trial.
    fleet.field.kubelet.signal(&fleet.namespace, pod_of(&old), leasehold_cluster::Signal::TERM)?;
    // The process that is restarted may lead next, under another identity.
    fleet.taken_from(&old).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let audit = fleet.audit()?;
    let stored = leases(&audit).into_values().next().context("its Lease")?;
    let handover = handovers(&stored, at).into_iter().next().context("a handover")?;
    waits.unled.push(millis(handover.released.unwrap_or(handover.renewed), handover.acquired));
    waits.unworked.extend(longest_without_work(&audit, at));
    if fleet.system.is_ours() {
        // The next holder's standby has filled its cache by then.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}
