//! A kind has one leader, not a Lease one: replicas that disagree on its Lease do not both lead it.

use std::time::Duration;

use anyhow::Result;
use leasehold_cluster::Signal;

use crate::{
    judge::judge,
    lone::{Lone, Plan, Program, observer},
    stage::{LEASE, PATIENCE, Stage, ensure, play, tell},
};

/// How long the new replica may take to lead once the old one has been told to stop.
const FOLLOWS: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_renames_a_lease_never_has_two_leaders() -> Result<()> {
    play(stage("renamed").await?, |stage| async { half_way(stage, "", ", lease: {name: renamed}").await }).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_moves_the_leases_to_another_namespace_never_has_two_leaders() -> Result<()> {
    let mut stage = stage("moved").await?;
    let elsewhere = format!("{}-elsewhere", stage.namespace);
    stage.grant_leases_in(&elsewhere).await?;
    stage.elsewhere = Some(elsewhere.clone());
    let leases = format!(", namespace: {elsewhere}");
    play(stage, |stage| async move { half_way(stage, &leases, "").await }).await;
    Ok(())
}

async fn stage(name: &str) -> Result<Stage> {
    let mut stage = Stage::set(name, 1).await?;
    stage.stubborn = false;
    Ok(stage)
}

impl Stage {
    /// Another namespace in which the replicas may have their Leases; they may list Leases in all.
    async fn grant_leases_in(&self, elsewhere: &str) -> Result<()> {
        let namespace = &self.namespace;
        self.cluster
            .apply(&format!(
                r"
apiVersion: v1
kind: Namespace
metadata: {{name: {elsewhere}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: leases, namespace: {elsewhere}}}
rules: [{{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, update, delete]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: leases, namespace: {elsewhere}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leases}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}-leases}}
rules: [{{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}-leases}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}-leases}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
"
            ))
            .await?;
        Ok(())
    }
}

/// The old configuration leads; a replica of the new one joins; the old one stops.
async fn half_way(stage: &Stage, leases: &str, kind: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let probe = &stage.kinds[0];
    let before = observer(stage, folder.path(), "before", "", "")?;
    let after = observer(stage, folder.path(), "after", leases, kind)?;
    let mut old = Lone::start(stage, Plan::new(Program::Observer, "old", &before)).await?;
    stage.written_by(probe, |holder| old.is(holder)).await?;
    let new = Lone::start(stage, Plan::new(Program::Observer, "new", &after)).await?;
    new.answers("/readyz", 200, PATIENCE).await?;
    // A Lease that looks free is taken within one lease duration, and both would go on for as long as both live.
    tokio::time::sleep(3 * LEASE).await;
    judge(stage)?;
    let (_, said) = new.get("/shards").await?;
    tell(&format!("while the old replica leads, the new one says {said}"));
    let began = crate::things::now();
    old.signal(Signal::TERM)?;
    let follows = stage.written_by(probe, |holder| new.is(holder));
    let follows = tokio::time::timeout(FOLLOWS, follows).await;
    ensure(follows.is_ok(), || format!("the kind is without a leader {FOLLOWS:?} after the old replica was stopped"))?;
    follows??;
    tell(&format!("the new replica leads {:.1?} after the old one was told to stop", began.elapsed()));
    let status = old.ends(PATIENCE).await?;
    ensure(status.success(), || format!("the old replica stops cleanly: {status}"))
}
