//! What the configuration says of moves and of caches is what happens.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use kube::{Api, ResourceExt};
use leasehold::replica::record::Lease as Record;
use leasehold_cluster::{Signal, eventually};
use serde_json::Value;

use crate::{
    judge::history,
    program::Said,
    stage::{PATIENCE, Stage, ensure, lease_of, not, play, plural, pod_of},
};

/// Time in which nothing moves: the replicas settle in the first of it, and what would move would be named at once then.
const QUIET: Duration = Duration::from_secs(5);

impl Stage {
    /// Fails if a kind changes hands within [`QUIET`].
    async fn nothing_moves(&self) -> Result<()> {
        let before = self.holders().await?;
        let still = tokio::time::timeout(QUIET, async {
            loop {
                let now = self.holders().await?;
                ensure(now == before, || format!("{before:?} became {now:?}"))?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        still.await.unwrap_or(Ok(()))
    }

    /// The pods that have listed a kind.
    fn listed_by(&self, kind: &str) -> Result<BTreeSet<String>> {
        let resource = plural(kind);
        let lists = self.audit()?.into_iter().filter(|event| event.verb == "list" && event.resource == resource);
        Ok(lists.filter_map(|event| event.pod.clone()).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_restart_evens_out_after_a_rollout_only() -> Result<()> {
    let mut stage = Stage::set("onrestart", 4).await?;
    stage.placement = "grace: 1s, settle: 1s, rebalance: OnRestart";
    play(stage, |stage| async {
        stage.replicas(1).await?;
        stage.all_led().await?;
        stage.replicas(2).await?;
        stage.rolled_out().await?;
        stage.nothing_moves().await?;
        stage.kubectl(&["rollout", "restart", "deployment/observer"]).await?;
        stage.rolled_out().await?;
        stage.even(2, |_| true).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn never_leaves_all_moves_to_hands() -> Result<()> {
    let mut stage = Stage::set("never", 4).await?;
    stage.placement = "grace: 1s, settle: 1s, rebalance: Never";
    play(stage, |stage| async move {
        stage.replicas(1).await?;
        let before = stage.all_led().await?;
        let first = pod_of(before.values().next().context("a holder")?).to_owned();
        stage.replicas(2).await?;
        stage.rolled_out().await?;
        stage.nothing_moves().await?;

        // Who is asked for it is frozen: it is waited for as long as is said, and the request is taken back.
        let pods = stage.pods().await?;
        let second = pods.iter().map(ResourceExt::name_any).find(|pod| *pod != first).context("a second pod")?;
        stage.kubelet.signal(&stage.namespace, &second, Signal::STOP)?;
        let lease = lease_of(&stage.kinds[0]);
        let hand_over = |timeout| {
            let arguments = [lease.as_str(), "--to", &second, "--timeout", timeout];
            async move { Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &arguments).await }
        };
        let said = hand_over("1").await?;
        let taken_back = "was not handed over within 1 s and the request is taken back";
        ensure(said.code == Some(1) && said.stderr.contains(taken_back), || format!("{said:?}"))?;
        let leases: Api<Record> = leasehold::replica::record::leases(stage.client.clone(), &stage.namespace);
        let asked = leases.get(&lease).await?.metadata.annotations.unwrap_or_default();
        ensure(!asked.contains_key("leasehold.dev/hand-over-to"), || format!("{asked:?}"))?;
        stage.kubelet.signal(&stage.namespace, &second, Signal::CONT)?;

        let handed_over = |said: &Said| said.code == Some(0);
        eventually("it is handed over to one that lives", PATIENCE, || hand_over("20"), handed_over).await?;
        stage.held(&stage.kinds[0], not(&first)).await?;
        stage.nothing_moves().await?;
        let after = stage.holders().await?;
        let elsewhere = after.values().filter(|holder| pod_of(holder) != first).count();
        ensure(elsewhere == 1, || format!("one of them was asked for: {after:?}"))
    })
    .await;
    Ok(())
}

/// The replica that `leasehold hand-over` chooses first is frozen: its membership is there, and it takes nothing. Another one is
/// asked, and the command says why; with `--to` it fails before its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_goes_to_a_replica_that_lives() -> Result<()> {
    let mut stage = Stage::set("lives", 3).await?;
    stage.placement = "grace: 1s, settle: 1s, rebalance: Never";
    play(stage, |stage| async move {
        stage.replicas(1).await?;
        let first = pod_of(stage.all_led().await?.values().next().context("a holder")?).to_owned();
        stage.replicas(3).await?;
        stage.rolled_out().await?;
        let lease = lease_of(&stage.kinds[0]);
        let hand_over = async |arguments: &[&str]| {
            Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, arguments).await
        };
        let pods = stage.pods().await?;
        let others: Vec<_> = pods.iter().map(ResourceExt::name_any).filter(|pod| *pod != first).collect();
        let [frozen, lives] = &others[..] else { anyhow::bail!("two others: {others:?}") };
        // What has least is chosen, and that is the one that is frozen.
        let said = hand_over(&[&lease_of(&stage.kinds[1]), "--to", lives]).await?;
        ensure(said.code == Some(0), || format!("{said:?}"))?;
        stage.kubelet.signal(&stage.namespace, frozen, Signal::STOP)?;

        let said = hand_over(&[&lease]).await?;
        let why = format!("is asked to hand over to {frozen}");
        let instead =
            [" has not renewed its own Lease for ", " instead\n"].iter().all(|part| said.stdout.contains(part));
        ensure(said.code == Some(0) && said.stdout.contains(&why) && instead, || format!("{said:?}"))?;
        stage.held(&stage.kinds[0], |holder| pod_of(holder) == lives).await?;

        let said = hand_over(&[&lease, "--to", frozen]).await?;
        let why = "has not renewed its own Lease for ";
        ensure(said.code == Some(1) && said.stderr.contains(why), || format!("{said:?}"))?;
        let leases: Api<Record> = leasehold::replica::record::leases(stage.client.clone(), &stage.namespace);
        let asked = leases.get(&lease).await?.metadata.annotations.unwrap_or_default();
        ensure(!asked.contains_key("leasehold.dev/hand-over-to"), || format!("{asked:?}"))?;
        stage.kubelet.signal(&stage.namespace, frozen, Signal::CONT)?;
        Ok(())
    })
    .await;
    Ok(())
}

/// Of three replicas this many read one kind, its leader among them.
async fn listing(mode: &'static str, replicas: usize) -> Result<()> {
    let mut stage = Stage::set("standby", 1).await?;
    stage.placement = "grace: 1s, settle: 3s";
    stage.standby = Some(mode);
    play(stage, |stage| async move {
        stage.replicas(3).await?;
        stage.rolled_out().await?;
        let (kind, holders) = (&stage.kinds[0], stage.all_led().await?);
        let listed = || async { stage.listed_by(kind) };
        eventually("those who should have listed the kind", PATIENCE, listed, |pods| pods.len() >= replicas).await?;
        stage.nothing_moves().await?;
        let listed = stage.listed_by(kind)?;
        ensure(listed.len() == replicas, || format!("{mode}: listed by {listed:?}, held by {holders:?}"))?;

        // The next one works all the same, and nobody has written before its term.
        let old = stage.held(kind, |_| true).await?;
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::TERM)?;
        let new = stage.held(kind, |holder| *holder != old).await?;
        stage.written_by(kind, |holder| holder == new).await?;
        ensure(!history(stage, kind)?.is_empty(), || "nothing was written".to_owned())?;
        let is_early = |object: &Value| object.pointer("/spec/early").is_some();
        let early = stage.audit()?.into_iter().find(|event| event.request_object.as_ref().is_some_and(is_early));
        ensure(early.is_none(), || format!("{early:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_standbys_only_the_leader_reads() -> Result<()> {
    listing("None", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_successor_reads_and_writes_nothing() -> Result<()> {
    listing("Successor", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_standbys_read_and_write_nothing() -> Result<()> {
    listing("All", 3).await
}
