//! `onLoss: Exit`: a replica that has lost a term is gone at once.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::{
    api::coordination::v1::Lease,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use leasehold_cluster::{Fault, Rule, Signal, eventually};
use serde_json::json;

use crate::{
    groups::config,
    judge::{What, history},
    lone::{Lone, Plan, Program},
    stage::{PATIENCE, Stage, ensure, lease_of, play, tell},
    things::Things,
};

/// The exit code of a replica that has lost a term.
const DEPOSED: i32 = 75;
/// A replica is gone so long after its loss.
const GONE: SignedDuration = SignedDuration::from_millis(100);
/// The renew deadline of the stages.
const DEADLINE: SignedDuration = SignedDuration::from_secs(3);
/// Trials; the machine may be busy in one of them.
const TRIALS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "compared with the API server's, which is of this machine")]
fn timestamp() -> Timestamp {
    Timestamp::now()
}

async fn start(stage: &Stage, name: &str) -> Result<Lone> {
    let folder = tempfile::tempdir()?.keep();
    let file = config(stage, &folder, name, "onLoss: Exit", |_| "")?;
    // A writer that outlives each term: only the fence and the end of the process stop it.
    let plan = Plan { environment: &[("STUBBORN", "true")], ..Plan::new(Program::Observer, name, &file) };
    Lone::start(stage, plan).await
}

fn leases(stage: &Stage) -> Api<Lease> {
    Api::namespaced(stage.client.clone(), &stage.namespace)
}

/// When the last write of a kind's Lease of which this is true was stored.
fn stored(stage: &Stage, is: impl Fn(&str, &str) -> bool) -> Result<(u64, Timestamp, Timestamp)> {
    let history = history(stage, &stage.kinds[0])?;
    let last = history.iter().rev().find(|stored| match &stored.what {
        What::Leased { holder, by, .. } => is(holder, by),
        What::Worked { .. } => false,
    });
    last.map(|stored| (stored.version, stored.received, stored.at)).context("the Lease was written so")
}

/// Cuts a replica off at a moment when it knows of each renewal that is stored: it has been told that the next one is not.
async fn cut_off(stage: &Stage, replica: &Lone) -> Result<()> {
    let unavailable = Fault::Status { code: 503, retry_after: None };
    replica.proxy.add(Rule::new(unavailable).verbs(&["PUT"]).resource("leases").path(&lease_of(&stage.kinds[0])));
    let log = || async { replica.log() };
    let refused = |log: &String| log.contains("failed to update the Lease: 503");
    eventually("a renewal is refused", PATIENCE, log, refused).await?;
    replica.proxy.partition();
    Ok(())
}

/// The process ends with its code; when.
async fn is_gone(replica: &mut Lone) -> Result<Timestamp> {
    let status = replica.ends(PATIENCE).await?;
    let at = timestamp();
    ensure(status.code() == Some(DEPOSED), || format!("{} ends with {status}", replica.name))?;
    Ok(at)
}

/// No kind of it was written, and no Lease, by a request that came after that.
fn is_silent(stage: &Stage, replica: &Lone, after: Timestamp) -> Result<()> {
    for kind in &stage.kinds {
        let late = history(stage, kind)?.into_iter().find(|stored| {
            let by = match &stored.what {
                What::Worked { holder, .. } => holder,
                What::Leased { by, .. } => by,
            };
            replica.is(by) && stored.received > after
        });
        ensure(late.is_none(), || format!("written after the loss: {late:?}"))?;
    }
    Ok(())
}

fn median(mut times: Vec<SignedDuration>) -> Option<SignedDuration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_deposed_is_gone_at_once_with_all_of_its_kinds() -> Result<()> {
    play(Stage::set("deposed", 2).await?, |stage| async {
        let mut took = Vec::new();
        for trial in 0..TRIALS {
            let mut replica = start(stage, &format!("replica-{trial}")).await?;
            for kind in &stage.kinds {
                stage.written_by(kind, |holder| replica.is(holder)).await?;
            }
            let lease = lease_of(&stage.kinds[0]);
            if trial == 0 {
                leases(stage).delete(&lease, &DeleteParams::default()).await?;
                let deleted = timestamp();
                let gone = is_gone(&mut replica).await?;
                tell(&format!("gone {:?} after the Lease was", gone.duration_since(deleted)));
                is_silent(stage, &replica, gone)?;
                continue;
            }
            let foreign = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 1}});
            leases(stage).patch(&lease, &PatchParams::default(), &Patch::Merge(foreign)).await?;
            let gone = is_gone(&mut replica).await?;
            let (_, _, lost) = stored(stage, |holder, _| holder == "somebody-else")?;
            took.push(gone.duration_since(lost));
            is_silent(stage, &replica, gone)?;
        }
        tell(&format!("gone so long after another holder was stored: {took:?}"));
        ensure(median(took.clone()).is_some_and(|time| time < GONE), || format!("gone after {took:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_renew_is_gone_at_its_deadline() -> Result<()> {
    play(Stage::set("deadline", 1).await?, |stage| async {
        let mut took = Vec::new();
        for trial in 0..TRIALS {
            let mut replica = start(stage, &format!("replica-{trial}")).await?;
            let holder = stage.written_by(&stage.kinds[0], |holder| replica.is(holder)).await?;
            cut_off(stage, &replica).await?;
            let gone = is_gone(&mut replica).await?;
            let (_, renewed, _) = stored(stage, |by, _| by == holder)?;
            took.push(gone.duration_since(renewed + DEADLINE));
            is_silent(stage, &replica, gone)?;
        }
        tell(&format!("gone so long after the renew deadline: {took:?}"));
        let early = took.iter().find(|time| **time < -GONE);
        ensure(early.is_none(), || format!("gone before the deadline: {took:?}"))?;
        ensure(median(took.clone()).is_some_and(|time| time < GONE), || format!("gone after {took:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_handover_and_a_stop_are_no_loss() -> Result<()> {
    play(Stage::set("planned", 1).await?, |stage| async {
        let kind = &stage.kinds[0];
        let mut first = start(stage, "first").await?;
        stage.written_by(kind, |holder| first.is(holder)).await?;
        let second = start(stage, "second").await?;
        second.answers("/readyz", 200, PATIENCE).await?;
        let arguments = [kind.as_str(), "--to", "second"];
        let said = crate::program::Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &arguments).await?;
        ensure(said.code == Some(0), || format!("{said:?}"))?;
        stage.written_by(kind, |holder| second.is(holder)).await?;
        first.answers("/readyz", 200, PATIENCE).await?;
        first.signal(Signal::TERM)?;
        let status = first.ends(PATIENCE).await?;
        ensure(status.success(), || format!("a stop is no loss: {status}"))
    })
    .await;
    Ok(())
}

/// The shipped binary: its exit code, and that it waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_binary_ends_with_its_own_code_when_it_is_deposed() -> Result<()> {
    play(Stage::set("binary", 1).await?, |stage| async {
        let mut things = Things::without_replicas(stage).await?;
        let file = things.folder.path().join("leasehold.yaml");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{text}onLoss: Exit\n"))?;
        things.put("it", "first").await?;
        let mut took = Vec::new();
        for trial in 0..TRIALS {
            let plan = Plan::new(Program::Leasehold, "replica", things.folder.path());
            let name = format!("replica-{trial}");
            things.replicas.push(Lone::start(stage, Plan { name: &name, ..plan }).await?);
            things.led(PATIENCE, |replica| replica.name == name).await?;
            things.put("it", &name).await?;
            things.served("it", &name, PATIENCE).await?;
            let foreign = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 1}});
            leases(stage).patch(&things.lease(), &PatchParams::default(), &Patch::Merge(foreign)).await?;
            let lost = timestamp();
            let mut replica = things.replicas.pop().context("a replica")?;
            took.push(is_gone(&mut replica).await?.duration_since(lost));
        }
        tell(&format!("gone so long after another holder was stored: {took:?}"));
        ensure(median(took.clone()).is_some_and(|time| time < GONE), || format!("gone after {took:?}"))
    })
    .await;
    Ok(())
}

/// A process that must be gone at once is not kept by a log that is not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_standard_error_does_not_keep_a_deposed_replica() -> Result<()> {
    play(Stage::set("unread", 1).await?, |stage| async {
        let mut things = Things::without_replicas(stage).await?;
        let file = things.folder.path().join("leasehold.yaml");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{text}onLoss: Exit\n"))?;
        let environment = [("RUST_LOG", "trace")];
        let plan = Plan::new(Program::Leasehold, "replica", things.folder.path());
        things.replicas.push(Lone::start(stage, Plan { environment: &environment, unread: true, ..plan }).await?);
        things.led(PATIENCE, |_| true).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let foreign = json!({"spec": {"holderIdentity": "somebody-else"}});
        leases(stage).patch(&things.lease(), &PatchParams::default(), &Patch::Merge(foreign)).await?;
        let lost = timestamp();
        let mut replica = things.replicas.pop().context("a replica")?;
        let took = is_gone(&mut replica).await?.duration_since(lost);
        tell(&format!("gone after {took:?}"));
        ensure(took < GONE * 3, || format!("gone after {took:?}"))
    })
    .await;
    Ok(())
}
