//! Reconcilers panic, fail, hang and block: each ends its own term only.

use std::time::Duration;

use anyhow::{Context, Result};
use leasehold_cluster::{Signal, eventually};

use crate::{
    judge::{What, history},
    lone::{Lone, Plan, Program, observer},
    stage::{PATIENCE, Stage, ensure, lease_of, play, pod_of, tell},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_reconciler_loses_its_own_term_only() -> Result<()> {
    ends_its_own_term("panic").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_reconciler_loses_its_own_term_only() -> Result<()> {
    ends_its_own_term("fail").await
}

async fn ends_its_own_term(order: &'static str) -> Result<()> {
    play(Stage::set(order, 2).await?, |stage| async move {
        stage.replicas(2).await?;
        let before = stage.all_led().await?;
        let (bad, good) = (&stage.kinds[0], &stage.kinds[1]);
        stage.order(bad, Some(order)).await?;
        let handed_on = || async {
            let leased = history(stage, bad)?.into_iter().filter_map(|stored| match stored.what {
                What::Leased { holder, .. } => Some(holder),
                What::Worked { .. } => None,
            });
            anyhow::Ok(leased.collect::<std::collections::BTreeSet<_>>())
        };
        // Released, not expired, and tried by the other replica too.
        let went_round = |holders: &std::collections::BTreeSet<String>| {
            holders.contains("") && holders.iter().filter(|holder| !holder.is_empty()).count() >= 2
        };
        eventually("the failing kind goes round the replicas", PATIENCE, handed_on, went_round).await?;
        stage.order(bad, None).await?;
        stage.written_by(bad, |_| true).await?;
        stage.all_led().await?;
        let now = stage.holders().await?;
        let lease = lease_of(good);
        ensure(now.get(&lease) == before.get(&lease), || format!("the other kind moved: {before:?} {now:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_reconciler_is_aborted_and_its_lease_released() -> Result<()> {
    let mut stage = Stage::set("hang", 1).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        stage.order(kind, Some("hang")).await?;
        falls_silent(stage, kind).await?;
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::TERM)?;
        stage.held(kind, |holder| holder != old).await?;
        let released = history(stage, kind)?
            .iter()
            .any(|stored| matches!(&stored.what, What::Leased { holder, .. } if holder.is_empty()));
        ensure(released, || "a task that ended by its abort gives its Lease back".to_owned())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_nothing_can_stop_leaves_its_lease_to_expire() -> Result<()> {
    let mut stage = Stage::set("block", 1).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        stage.order(kind, Some("block")).await?;
        falls_silent(stage, kind).await?;
        // Its successor shall work; the thread that is held already is not let go.
        stage.order(kind, None).await?;
        let pod = pod_of(&old);
        stage.kubelet.signal(&stage.namespace, pod, Signal::TERM)?;
        stage.held(kind, |holder| holder != old).await?;
        let released = history(stage, kind)?
            .iter()
            .any(|stored| matches!(&stored.what, What::Leased { holder, .. } if holder.is_empty()));
        ensure(!released, || "a Lease was released while its work could still run".to_owned())?;
        stage.written_by(kind, |holder| holder != old).await?;
        let log = stage.kubelet.log_path(&stage.namespace, pod).context("log")?;
        ensure(log.exists(), || "the log is kept".to_owned())
    })
    .await;
    Ok(())
}

/// A second signal ends the process within this time, whatever its work does.
const ABORTED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_work_that_does_not_drain() -> Result<()> {
    aborted("hang").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_work_that_nothing_can_stop() -> Result<()> {
    aborted("block").await
}

/// A drain that may take a minute, and two signals: the process ends soon and says that it was no clean end. A Lease
/// whose work could still run is left to expire, and after a release no write follows.
async fn aborted(order: &'static str) -> Result<()> {
    let mut stage = Stage::set(&format!("abort-{order}"), 1).await?;
    stage.stubborn = false;
    play(stage, |stage| async move {
        let kind = &stage.kinds[0];
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "config", "", "")?;
        let stubborn = [("STUBBORN", "true")];
        let plan = Plan::new(Program::Observer, "old", &config);
        // A writer that outlives its term, where the reconciler can be aborted: only the fence stops it.
        let plan = if order == "hang" { Plan { environment: &stubborn, ..plan } } else { plan };
        let mut old = Lone::start(stage, plan).await?;
        let holder = stage.written_by(kind, |holder| old.is(holder)).await?;
        let new = Lone::start(stage, Plan::new(Program::Observer, "new", &config)).await?;
        new.answers("/readyz", 200, PATIENCE).await?;
        stage.order(kind, Some(order)).await?;
        // Seen by the reconciler, which writes without a pause before.
        tokio::time::sleep(Duration::from_secs(1)).await;
        old.signal(Signal::TERM)?;
        let ended = old.ends(Duration::from_secs(3)).await;
        ensure(ended.is_err(), || format!("it drains, and the first signal ended it: {ended:?}"))?;
        // What it has begun never ends; the next holder is not to begin the same.
        stage.order(kind, None).await?;
        let began = crate::things::now();
        old.signal(Signal::TERM)?;
        let status = old.ends(ABORTED).await?;
        tell(&format!("the second signal ended it after {:.1?}: {status}", began.elapsed()));
        ensure(status.code().is_some_and(|code| code != 0), || format!("an abort is no clean end: {status}"))?;
        stage.written_by(kind, |holder| new.is(holder)).await?;
        let history = history(stage, kind)?;
        let release =
            history.iter().position(|stored| matches!(&stored.what, What::Leased { holder, .. } if holder.is_empty()));
        tell(&format!("its Lease was {}", if release.is_some() { "released" } else { "left to expire" }));
        ensure(order != "block" || release.is_none(), || "a Lease was released while its work could run".to_owned())?;
        let late = history[release.unwrap_or(history.len())..]
            .iter()
            .find(|stored| matches!(&stored.what, What::Worked { holder: by, .. } if *by == holder));
        ensure(late.is_none(), || format!("a write after the release: {late:?}"))
    })
    .await;
    Ok(())
}

/// Waits until a kind's reconciler, which writes every few milliseconds, has stopped doing so.
async fn falls_silent(stage: &Stage, kind: &str) -> Result<()> {
    let count = || history(stage, kind).map(|all| all.iter().filter(|s| matches!(s.what, What::Worked { .. })).count());
    let silent = || async {
        let before = count()?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        anyhow::Ok(before == count()?)
    };
    eventually("the reconciler falls silent", PATIENCE, silent, |silent| *silent).await?;
    Ok(())
}
