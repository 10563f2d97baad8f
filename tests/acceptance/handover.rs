//! A kind changes hands, in order and out of order.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use leasehold_cluster::{Signal, eventually};

use crate::{
    judge::{Stored, What, history},
    stage::{LEASE, PATIENCE, Stage, ensure, lease_of, not, play, pod_of},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_start_shares_the_kinds() -> Result<()> {
    play(Stage::set("fresh", 4).await?, |stage| async {
        stage.replicas(3).await?;
        let holders = stage.all_led().await?;
        let mut replicas: Vec<_> = holders.values().collect();
        replicas.sort();
        replicas.dedup();
        ensure(holders.len() == 4, || format!("one Lease a kind: {holders:?}"))?;
        ensure(replicas.len() > 1, || format!("one replica has everything: {holders:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_drains_then_releases_and_the_next_acquires_at_once() -> Result<()> {
    play(Stage::set("sigterm", 1).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::TERM)?;
        let new = stage.held(kind, |holder| holder != old).await?;
        stage.written_by(kind, |holder| holder == new).await?;
        let history = history(stage, kind)?;
        let release = history
            .iter()
            .position(|stored| matches!(&stored.what, What::Leased { holder, .. } if holder.is_empty()))
            .context("the Lease was released")?;
        let late = history[release..]
            .iter()
            .find(|stored| matches!(&stored.what, What::Worked { holder, .. } if *holder == old));
        ensure(late.is_none(), || format!("work after the release: {late:?}"))?;
        let acquired = history[release..]
            .iter()
            .find(|stored| matches!(&stored.what, What::Leased { holder, .. } if *holder == new))
            .context("the Lease was acquired after its release")?;
        let gap = acquired.at.duration_since(history[release].at);
        println!("release to acquisition: {gap:?}");
        // A release is acted on by the watch event; without one the next look would come after the lease duration.
        let bound = k8s_openapi::jiff::SignedDuration::try_from(LEASE)?;
        ensure(gap < bound, || format!("{gap:?} from release to acquisition"))
    })
    .await;
    Ok(())
}

/// Without proof: nobody knows that its process is dead, and its next one is as good as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_is_succeeded_after_its_lease_and_comes_back_under_a_new_identity() -> Result<()> {
    let mut stage = Stage::set("sigkill", 2).await?;
    stage.proof = false;
    play(stage, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::KILL)?;
        let new = stage.held(kind, |holder| holder != old).await?;
        stage.written_by(kind, |holder| holder == new).await?;
        stage.all_led().await?;
        let restarted = || async {
            let pods = stage.pods().await?;
            let pod = pods.into_iter().find(|pod| pod.name_any() == pod_of(&old)).context("the pod is there")?;
            let status = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
            anyhow::Ok(status.first().map_or(0, |container| container.restart_count))
        };
        eventually("the container was restarted", PATIENCE, restarted, |count| *count > 0).await?;
        let silence = silence(stage, kind, &old, &new)?;
        println!("last renewal to acquisition: {silence:?}");
        ensure(silence >= LEASE, || format!("taken {silence:?} after the last renewal"))
    })
    .await;
    Ok(())
}

/// From before the last renewal of the old holder was stored to after the acquisition of the new one was.
pub(crate) fn silence(stage: &Stage, kind: &str, old: &str, new: &str) -> Result<Duration> {
    let history = history(stage, kind)?;
    let leased = |by: &str| {
        let by = by.to_owned();
        move |stored: &&Stored| matches!(&stored.what, What::Leased { holder, .. } if *holder == by)
    };
    let renewed = history.iter().rev().find(leased(old)).context("the old holder renewed")?;
    let acquired = history.iter().find(leased(new)).context("the new holder acquired")?;
    Ok(acquired.at.duration_since(renewed.received).try_into()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_paused_for_longer_than_its_lease_writes_nothing_when_it_goes_on() -> Result<()> {
    // One replica leads them all: each kind is one more chance for a stale write to slip out at the moment of resuming.
    let mut stage = Stage::set("sigstop", 8).await?;
    stage.placement = "grace: 1s, rebalance: Never";
    play(stage, |stage| async {
        stage.replicas(1).await?;
        stage.all_led().await?;
        stage.replicas(2).await?;
        for _ in 0..2 {
            let old = stage.held(&stage.kinds[0], |_| true).await?;
            stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::STOP)?;
            for kind in &stage.kinds {
                let new = stage.held(kind, not(pod_of(&old))).await?;
                stage.written_by(kind, |holder| holder == new).await?;
            }
            let proxy = stage.proxy_of(&old)?;
            let before: u64 = proxy.requests().values().sum();
            stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::CONT)?;
            // It is back when it asks for anything again; whatever it had prepared to write went out by then, or never.
            let again = || async { anyhow::Ok(proxy.requests().values().sum::<u64>()) };
            eventually("the paused replica goes on", PATIENCE, again, |requests| *requests > before).await?;
            for kind in &stage.kinds {
                stage.written_by(kind, not(pod_of(&old))).await?;
                let history = history(stage, kind)?;
                let held = |by: &str| {
                    let by = by.to_owned();
                    move |stored: &Stored| matches!(&stored.what, What::Leased { holder, .. } if *holder == by)
                };
                let last = history.iter().rposition(held(&old)).context("the Lease was held")?;
                let taken = history[last + 1..]
                    .iter()
                    .position(|stored| matches!(stored.what, What::Leased { .. }))
                    .context("the Lease was taken")?;
                let late = history[last + 1 + taken..]
                    .iter()
                    .find(|stored| matches!(&stored.what, What::Worked { holder, .. } if *holder == old));
                ensure(late.is_none(), || format!("a stale write was accepted: {late:?}"))?;
            }
        }
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_ends_with_every_kind_led_by_the_new_pods() -> Result<()> {
    play(Stage::set("rollout", 3).await?, |stage| async {
        stage.replicas(3).await?;
        stage.all_led().await?;
        let old: Vec<_> = stage.pods().await?.iter().map(ResourceExt::name_any).collect();
        stage.cluster.kubectl(&["rollout", "restart", "deployment/observer", "-n", &stage.namespace]).await?;
        stage
            .cluster
            .kubectl(&["rollout", "status", "deployment/observer", "-n", &stage.namespace, "--timeout=120s"])
            .await?;
        for kind in &stage.kinds {
            let new = stage.held(kind, |holder| !old.contains(&pod_of(holder).to_owned())).await?;
            stage.written_by(kind, |holder| holder == new).await?;
            // A holder that was refused an answer to its last write releases nothing, and its end is seen on its Pod.
            let history = history(stage, kind)?;
            let leased = |holder: &dyn Fn(&str) -> bool| {
                history
                    .iter()
                    .filter(|it| matches!(&it.what, What::Leased { holder: who, .. } if holder(who)))
                    .collect()
            };
            let all: Vec<&Stored> = leased(&|_| true);
            let taken: Vec<&Stored> = leased(&|who| who == new);
            let taken = taken.first().context("it was acquired")?;
            let before = all.iter().rev().find(|it| it.version < taken.version).context("it was held before")?;
            let gap = taken.at.duration_since(before.at);
            let bound = k8s_openapi::jiff::SignedDuration::try_from(LEASE)?;
            ensure(gap < bound, || format!("{} was left to expire: {before} and then {taken}", lease_of(kind)))?;
        }
        Ok(())
    })
    .await;
    Ok(())
}
