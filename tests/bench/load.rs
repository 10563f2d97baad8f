//! What elections cost the API server, idle and during a rollout, and what a replica costs its node.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};

use crate::{
    field::{BOTH, DEFAULT, Field, System, anonymous, now, pods_of, resident},
    record::{lease_requests, millis},
    report::{Report, say},
};

const GROUP: &str = "Lease requests a second, 10 kinds (15 s Leases)";
const MEMORY: &str = "memory (VmRSS), no objects";
const KINDS: usize = 10;
const REPLICAS: [usize; 4] = [2, 3, 5, 10];
/// The replicas of the rollout.
const ROLLED: usize = 3;
/// Our watches end by themselves after this time, so that each is counted once.
const WINDOW: Duration = Duration::from_secs(20);
/// Renewals, probes, watches and the spread have come to rest.
const SETTLE: Duration = Duration::from_secs(12);

/// Measures one window for each number of replicas and each system, and one rollout.
///
/// # Errors
/// When a replica does not come up, or a kind is not led.
pub(crate) async fn measure(field: &Field, report: &mut Report) -> Result<()> {
    field.kinds(KINDS).await?;
    for system in BOTH {
        let name = system.name();
        let fleet = field.fleet(system, "load", KINDS, REPLICAS[0], DEFAULT).await?;
        for replicas in REPLICAS {
            fleet.scale(replicas).await?;
            fleet.held("every kind is led", |_| true).await?;
            tokio::time::sleep(SETTLE).await;
            let from = now();
            tokio::time::sleep(WINDOW).await;
            let requests = lease_requests(&fleet.audit()?, from, now());
            let rate = |verbs: &[&str]| per_second(&requests, verbs, WINDOW);
            report.add(GROUP, name, format!("idle, {replicas} replicas: writes"), "1/s", vec![rate(&WRITES)]);
            report.add(GROUP, name, format!("idle, {replicas} replicas: all"), "1/s", vec![rate(&ALL)]);
            if replicas == ROLLED {
                let from = now();
                fleet.kubectl(&["rollout", "restart", "deployment/replica"]).await?;
                fleet.kubectl(&["rollout", "status", "deployment/replica", "--timeout=180s"]).await?;
                fleet.running(replicas).await?;
                let to = now();
                let took = Duration::from_secs_f64(millis(from, to) / 1000.0);
                let requests = lease_requests(&fleet.audit()?, from, to);
                let all = per_second(&requests, &ALL, took);
                report.add(GROUP, name, format!("during a rollout of {replicas} replicas"), "1/s", vec![all]);
            }
            say(&format!("load, {name}: {replicas} replicas"));
        }
        if system == System::Ours {
            memory(field, report).await?;
        }
        fleet.end().await?;
    }
    Ok(())
}

const WRITES: [&str; 3] = ["create", "update", "delete"];
const ALL: [&str; 6] = ["create", "update", "delete", "get", "list", "watch"];

fn per_second(requests: &BTreeMap<String, u32>, verbs: &[&str], time: Duration) -> f64 {
    let count: u32 = verbs.iter().filter_map(|verb| requests.get(*verb)).sum();
    f64::from(count) / time.as_secs_f64()
}

/// Of the shipped binary with its kinds.
async fn memory(field: &Field, report: &mut Report) -> Result<()> {
    const SHIPPED: &str = "leasehold-system";
    field.install().await?;
    field.cluster.kubectl(&["-n", SHIPPED, "rollout", "status", "deployment/leasehold", "--timeout=120s"]).await?;
    tokio::time::sleep(SETTLE).await;
    let leaders = pods_of(&field.holders(SHIPPED).await?);
    let (mut leading, mut standing_by, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for pod in field.pods(SHIPPED).await? {
        let pid = *field.kubelet.pids(SHIPPED, &pod).first().context("a process")?;
        if leaders.contains(&pod) { &mut leading } else { &mut standing_by }.push(resident(pid)?);
        own.push(anonymous(pid)?);
    }
    report.add(MEMORY, "leasehold", "leading a kind", "MiB", leading);
    report.add(MEMORY, "leasehold", "leading nothing", "MiB", standing_by);
    report.add(MEMORY, "leasehold", "any of them, without pages of the program's file (RssAnon)", "MiB", own);
    field.cluster.kubectl(&["delete", "namespace", SHIPPED, "--wait=false"]).await?;
    Ok(())
}
