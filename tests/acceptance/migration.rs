//! From a client-go elector on a ConfigMap to ours on a Lease, by rollouts: never two leaders of the kind.

use std::time::Duration;

use anyhow::Result;
use leasehold_cluster::Signal;

use crate::{
    contend::{Theirs, locks, no_two_hold, observer, said},
    judge::{What, history},
    lone::{Lone, Plan, Program},
    stage::{LEASE, PATIENCE, Stage, TIMINGS, ensure, play, tell},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_client_go_to_a_lease_never_has_two_leaders() -> Result<()> {
    play(stage("migration").await?, |stage| async {
        let timings = ["-lease-duration", "5s", "-renew-deadline", "3s", "-retry-period", "500ms"];
        let theirs = Theirs::start(stage, "theirs", "configmaps", &timings).await?;
        let kind = &stage.kinds[0];
        stage.written_by(kind, |holder| holder == "theirs").await?;
        let folder = tempfile::tempdir()?;
        let mut old: Option<Lone> = None;
        let mut theirs = Some(theirs);
        for lock in ["ConfigMap", "ConfigMapsLeases", "Lease"] {
            let file = observer(stage, folder.path(), lock, TIMINGS)?;
            let new = Lone::start(stage, Plan::new(Program::Observer, &lock.to_lowercase(), &file)).await?;
            new.answers("/readyz", 200, PATIENCE).await?;
            // What looks free is taken within a lease duration.
            tokio::time::sleep(LEASE + Duration::from_secs(2)).await;
            one_at_a_time(stage)?;
            match (theirs.take(), &mut old) {
                (Some(theirs), _) => theirs.stop().await?,
                (None, Some(old)) => {
                    old.signal(Signal::TERM)?;
                    let status = old.ends(PATIENCE).await?;
                    ensure(status.success(), || format!("{} stops cleanly: {status}", old.name))?;
                }
                (None, None) => {}
            }
            stage.written_by(kind, |holder| new.is(holder)).await?;
            old = Some(new);
        }
        one_at_a_time(stage)
    })
    .await;
    Ok(())
}

/// The step in between is left out: the replicas with the Lease wait for those with the ConfigMap.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_from_a_config_map_straight_to_a_lease_never_has_two_leaders() -> Result<()> {
    play(stage("jump").await?, |stage| async {
        let folder = tempfile::tempdir()?;
        let kind = &stage.kinds[0];
        for (from, to) in [("ConfigMap", "Lease"), ("Lease", "ConfigMap")] {
            let before = observer(stage, folder.path(), from, TIMINGS)?;
            let mut old =
                Lone::start(stage, Plan::new(Program::Observer, &format!("{}-old", from.to_lowercase()), &before))
                    .await?;
            stage.written_by(kind, |holder| old.is(holder)).await?;
            let after = observer(stage, folder.path(), to, TIMINGS)?;
            let mut new =
                Lone::start(stage, Plan::new(Program::Observer, &format!("{}-new", to.to_lowercase()), &after)).await?;
            new.answers("/readyz", 200, PATIENCE).await?;
            tokio::time::sleep(LEASE + Duration::from_secs(2)).await;
            one_at_a_time(stage)?;
            let (_, said) = new.get("/shards").await?;
            tell(&format!("while the {from} is held, a replica with a {to} says {said}"));
            old.signal(Signal::TERM)?;
            old.ends(PATIENCE).await?;
            stage.written_by(kind, |holder| new.is(holder)).await?;
            new.signal(Signal::TERM)?;
            new.ends(PATIENCE).await?;
        }
        one_at_a_time(stage)
    })
    .await;
    Ok(())
}

async fn stage(name: &str) -> Result<Stage> {
    let mut stage = Stage::set(name, 1).await?;
    stage.judged = false;
    stage.stubborn = false;
    stage.grant_locks().await?;
    Ok(stage)
}

/// Each process works in one piece, by the server's order; and says how long none did in between.
fn one_at_a_time(stage: &Stage) -> Result<()> {
    let worked: Vec<_> = history(stage, &stage.kinds[0])?
        .into_iter()
        .filter_map(|stored| match stored.what {
            What::Worked { holder, .. } => Some((holder, stored.at)),
            What::Leased { .. } => None,
        })
        .collect();
    let mut over: Vec<&str> = Vec::new();
    for pair in worked.windows(2) {
        let [(before, ended), (next, began)] = pair else { continue };
        if before != next {
            tell(&format!("{before} -> {next}: {} ms without work", began.duration_since(*ended).as_millis()));
            over.push(before);
        }
        ensure(!over.contains(&next.as_str()), || format!("two leaders: {next} wrote again after {before} had"))?;
    }
    for (object, writes) in locks(stage)? {
        no_two_hold(&object, &writes)?;
        tell(&said(&object, &writes));
    }
    Ok(())
}
