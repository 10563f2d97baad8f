//! A crash, by cause: the container is restarted, the container ends and stays down, or the holder falls silent.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::Signal;

use crate::{
    field::{BOTH, DEFAULT, Field, Fleet, System, now, pod_of},
    record::{first_request, handovers, leases, millis},
    report::{Report, say},
};

const GROUP: &str = "crash of the holder (15 s Leases)";

/// What befalls the holder.
#[derive(Clone, Copy)]
enum Cause {
    /// SIGKILL; the kubelet restarts the container at once.
    Restarted,
    /// It hangs and its pod is deleted: killed when the grace period is over, and not started again.
    Terminated,
    /// SIGSTOP for as long as it takes: alive, and silent.
    Silent,
}

/// Measures `trials` crashes of each cause for each system.
///
/// # Errors
/// When a replica does not come up, or the kind is not led.
pub(crate) async fn measure(field: &Field, trials: usize, report: &mut Report) -> Result<()> {
    field.kinds(1).await?;
    for system in BOTH {
        let name = system.name();
        let fleet = field.fleet(system, "crash", 1, 2, DEFAULT).await?;
        fleet.objects(1).await?;
        fleet.running(2).await?;
        let mut figures: [Vec<f64>; 4] = Default::default();
        for trial in 1..=trials {
            // A container that crashes again backs off, and then another replica follows it: each trial is a first crash.
            fleet.kubectl(&["rollout", "restart", "deployment/replica"]).await?;
            fleet.kubectl(&["rollout", "status", "deployment/replica", "--timeout=180s"]).await?;
            fleet.running(2).await?;
            for cause in [Cause::Restarted, Cause::Terminated, Cause::Silent] {
                once(&fleet, cause, &mut figures).await?;
            }
            say(&format!("crash, {name}: {trial} of {trials}"));
        }
        let [from_start, restarted, terminated, silent] = figures;
        if system == System::Ours {
            report.add(GROUP, name, "restarted: first request of the new process to its leading", "ms", from_start);
        }
        report.add(GROUP, name, "restarted: SIGKILL to the next leader", "s", restarted);
        report.add(GROUP, name, "terminated: death of the process to the next leader", "s", terminated);
        report.add(GROUP, name, "silent: last renewal to the next leader", "s", silent);
        fleet.end().await?;
    }
    Ok(())
}

async fn once(fleet: &Fleet<'_>, cause: Cause, figures: &mut [Vec<f64>; 4]) -> Result<()> {
    // Renewals have found their pace, and the standby knows of them.
    tokio::time::sleep(Duration::from_millis(fastrand::u64(4_000..7_000))).await;
    let holders = fleet.held("it is led", |_| true).await?;
    let old = holders.values().next().context("a holder")?.clone();
    let (kubelet, pod) = (&fleet.field.kubelet, pod_of(&old));
    let at = now();
    let died = match cause {
        Cause::Restarted => {
            kubelet.signal(&fleet.namespace, pod, Signal::KILL)?;
            at
        }
        Cause::Terminated => {
            kubelet.signal(&fleet.namespace, pod, Signal::STOP)?;
            fleet.kubectl(&["delete", "pod", pod, "--grace-period=1", "--wait=false"]).await?;
            dies(fleet, pod).await
        }
        Cause::Silent => {
            kubelet.signal(&fleet.namespace, pod, Signal::STOP)?;
            at
        }
    };
    fleet.taken_from(&old).await?;
    let audit = fleet.audit()?;
    let stored = leases(&audit).into_values().next().context("its Lease")?;
    let handover = handovers(&stored, at).into_iter().next().context("a change of hands")?;
    match cause {
        Cause::Restarted => {
            if let (true, Some(began)) = (pod_of(&handover.by) == pod, first_request(&audit, pod, at)) {
                figures[0].push(millis(began, handover.acquired));
            }
            figures[1].push(millis(died, handover.acquired) / 1000.0);
        }
        Cause::Terminated => {
            figures[2].push(millis(died, handover.acquired) / 1000.0);
            fleet.running(2).await?;
        }
        Cause::Silent => {
            figures[3].push(millis(handover.renewed, handover.acquired) / 1000.0);
            kubelet.signal(&fleet.namespace, pod, Signal::CONT)?;
        }
    }
    Ok(())
}

/// When the last process of a pod has gone.
async fn dies(fleet: &Fleet<'_>, pod: &str) -> Timestamp {
    while !fleet.field.kubelet.pids(&fleet.namespace, pod).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    now()
}
