//! The API server, the network and people misbehave.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use leasehold_cluster::{Fault, Rule, Silence, eventually};
use serde_json::json;

use crate::{
    judge::{What, history},
    stage::{LEASE, PATIENCE, Stage, ensure, lease_of, not, play, pod_of},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_stops_before_another_starts() -> Result<()> {
    play(Stage::set("cutoff", 2).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        let proxy = stage.proxy_of(&old)?;
        proxy.partition();
        for kind in &stage.kinds {
            let new = stage.held(kind, not(pod_of(&old))).await?;
            stage.written_by(kind, |holder| holder == new).await?;
        }
        proxy.heal();
        // It takes part again: the watch comes back and its successor's Leases stay where they are.
        let again = || async { anyhow::Ok(proxy.requests().values().sum::<u64>()) };
        let requests: u64 = proxy.requests().values().sum();
        eventually("the replica is back", PATIENCE, again, |now| *now > requests).await?;
        stage.held(kind, not(pod_of(&old))).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_that_are_applied_but_not_answered_cost_no_term() -> Result<()> {
    play(Stage::set("unanswered", 1).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let holder = stage.held(kind, |_| true).await?;
        let proxy = stage.proxy_of(&holder)?;
        for silence in [Silence::Close, Silence::Hang] {
            proxy.add(
                Rule::new(Fault::AppliedButUnanswered(silence))
                    .verbs(&["PUT"])
                    .resource("leases")
                    .path(&lease_of(kind))
                    .times(1),
            );
            let puts = proxy.count("PUT", "leases");
            let renewed = || async { anyhow::Ok(proxy.count("PUT", "leases")) };
            eventually("renewals go on", PATIENCE, renewed, |now| *now > puts + 3).await?;
        }
        proxy.clear();
        stage.held(kind, |now| now == holder).await?;
        let tokens: std::collections::BTreeSet<_> = history(stage, kind)?
            .into_iter()
            .filter_map(|stored| match stored.what {
                What::Worked { transitions, .. } => Some(transitions),
                What::Leased { .. } => None,
            })
            .collect();
        ensure(tokens.len() == 1, || format!("the term changed: {tokens:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_from_the_api_server_shorter_than_the_renew_deadline_cost_no_term() -> Result<()> {
    play(Stage::set("errors", 1).await?, |stage| async {
        stage.replicas(1).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let holder = stage.held(kind, |_| true).await?;
        let proxy = stage.proxy_of(&holder)?;
        for code in [409, 429, 500, 503] {
            let retry_after = Some(Duration::from_secs(60));
            proxy.add(
                Rule::new(Fault::Status { code, retry_after })
                    .verbs(&["PUT"])
                    .resource("leases")
                    .path(&lease_of(kind))
                    .times(1),
            );
            let puts = proxy.count("PUT", "leases");
            let renewed = || async { anyhow::Ok(proxy.count("PUT", "leases")) };
            eventually("renewals go on", PATIENCE, renewed, |now| *now > puts + 2).await?;
        }
        let transitions = history(stage, kind)?.into_iter().rev().find_map(|stored| match stored.what {
            What::Leased { transitions, .. } => Some(transitions),
            What::Worked { .. } => None,
        });
        ensure(transitions == Some(0), || format!("the term changed: {transitions:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lease_is_made_anew_and_led_again() -> Result<()> {
    play(Stage::set("deleted", 1).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let old = leases.get(&lease_of(kind)).await?.metadata.uid.context("uid")?;
        leases.delete(&lease_of(kind), &DeleteParams::default()).await?;
        let anew = || async { leases.get_opt(&lease_of(kind)).await };
        let is_new =
            |lease: &Option<Lease>| lease.as_ref().is_some_and(|lease| lease.metadata.uid.as_ref() != Some(&old));
        eventually("the Lease is made anew", PATIENCE, anew, is_new).await?;
        let uid = || async {
            let stored = history(stage, kind)?;
            anyhow::Ok(stored.into_iter().rev().find_map(|stored| match stored.what {
                What::Worked { uid, .. } => Some(uid),
                What::Leased { .. } => None,
            }))
        };
        eventually("work goes on under the new Lease", PATIENCE, uid, |uid| {
            uid.as_ref().is_some_and(|uid| *uid != old)
        })
        .await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_given_to_another_by_hand_ends_the_term_at_once() -> Result<()> {
    play(Stage::set("edited", 1).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let edit = Patch::Merge(json!({"spec": {"holderIdentity": "somebody-else"}}));
        leases.patch(&lease_of(kind), &PatchParams::default(), &edit).await?;
        let new = stage.held(kind, |holder| holder != "somebody-else").await?;
        stage.written_by(kind, |holder| holder == new).await?;
        let history = history(stage, kind)?;
        let edited = history
            .iter()
            .position(|stored| matches!(&stored.what, What::Leased { by, .. } if by == "admin"))
            .context("the edit is on record")?;
        let taken = history[edited + 1..]
            .iter()
            .position(|stored| matches!(stored.what, What::Leased { .. }))
            .context("the Lease was taken again")?;
        let meanwhile = &history[edited + 1..edited + 1 + taken];
        println!("{} writes after the edit, before the old leader had heard of it", meanwhile.len());
        let last = meanwhile.last().map_or(history[edited].at, |stored| stored.at);
        let heard = last.duration_since(history[edited].at);
        // At once: within a round trip and not within a renew deadline, which is what client-go takes.
        ensure(heard.as_millis() < 2_000, || format!("work went on for {heard:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_whose_crd_comes_late_is_led_then_and_the_others_at_once() -> Result<()> {
    let mut stage = Stage::set("late", 1).await?;
    let late = format!("{}Late", stage.kinds[0]);
    stage.kinds.push(late.clone());
    stage.grant_kinds("[get, list, watch, patch]").await?;
    play(stage, |stage| async {
        stage.replicas(2).await?;
        let first = &stage.kinds[0];
        stage.held(first, |_| true).await?;
        stage.written_by(first, |_| true).await?;
        let pod = stage.pods().await?.remove(0).metadata.name.context("name")?;
        let says = || async { anyhow::Ok(stage.kubelet.log(&stage.namespace, &pod)) };
        eventually("the log says why", PATIENCE, says, |log| log.contains("install its CRD")).await?;
        let holders = stage.holders().await?;
        ensure(!holders.contains_key(&lease_of(&stage.kinds[1])), || "a kind without CRD is led".to_owned())?;
        stage.install(&stage.kinds[1]).await?;
        stage.put_object(&stage.kinds[1]).await?;
        stage.all_led().await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_without_permission_is_not_led_until_it_is_granted() -> Result<()> {
    let stage = Stage::set("denied", 1).await?;
    stage.grant_kinds("[get, patch]").await?;
    play(stage, |stage| async {
        stage.replicas(1).await?;
        let pod = stage.pods().await?.remove(0).metadata.name.context("name")?;
        let says = || async { anyhow::Ok(stage.kubelet.log(&stage.namespace, &pod)) };
        let denied = format!(
            "not allowed to list, watch {} in API group observer.leasehold.dev",
            crate::stage::plural(&stage.kinds[0])
        );
        eventually("the log says what is missing", PATIENCE, says, |log| log.contains(&denied)).await?;
        ensure(stage.holders().await?.is_empty(), || "a denied kind is led".to_owned())?;
        stage.grant_kinds("[get, list, watch, patch]").await?;
        stage.all_led().await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_on_leases_are_named() -> Result<()> {
    let stage = Stage::set("noleases", 1).await?;
    stage.grant_leases("[get, list, watch]").await?;
    play(stage, |stage| async {
        stage.replicas(1).await?;
        let pod = stage.pods().await?.remove(0).metadata.name.context("name")?;
        let says = || async { anyhow::Ok(stage.kubelet.log(&stage.namespace, &pod)) };
        let denied = format!("not allowed to create leases.coordination.k8s.io in namespace {}", stage.namespace);
        eventually("the log says what is missing", PATIENCE, says, |log| log.contains(&denied)).await?;
        stage.grant_leases("[get, list, watch, create, update, delete]").await?;
        stage.all_led().await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_go_elector_and_ours_never_lead_one_lease_together() -> Result<()> {
    play(Stage::set("clientgo", 1).await?, |stage| async {
        let kind = &stage.kinds[0];
        let kubeconfig = stage.cluster.kubeconfig().to_owned();
        let binaries = stage.cluster.binaries().clone();
        let program = tokio::task::spawn_blocking(move || binaries.client_go_elector()).await??;
        let mut theirs = tokio::process::Command::new(program)
            .arg("-kubeconfig")
            .arg(&kubeconfig)
            .args(["-namespace", &stage.namespace, "-lease", &lease_of(kind), "-identity", "client-go"])
            .args(["-lease-duration", "5s", "-renew-deadline", "3s", "-retry-period", "500ms", "-release-on-cancel"])
            .envs([stage.cluster.mark()])
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        stage.held(kind, |holder| holder == "client-go").await?;
        stage.replicas(1).await?;
        let pod = stage.pods().await?.remove(0).metadata.name.context("name")?;
        let proxy = stage.kubelet.proxy(&stage.namespace, &pod).context("proxy")?;
        let reads = || async { anyhow::Ok(proxy.count("GET", "leases")) };
        // It watches its peer for longer than a lease, by reads because a client-go Lease bears no label of ours.
        eventually("ours looks at the Lease of theirs", PATIENCE, reads, |reads| *reads > 14).await?;
        let stored = history(stage, kind)?;
        let worked = stored.iter().find(|stored| matches!(stored.what, What::Worked { .. }));
        ensure(worked.is_none(), || format!("ours worked while theirs led: {worked:?}"))?;
        // Released by theirs, taken by ours.
        let id = theirs.id().context("pid")?.to_string();
        std::process::Command::new("kill").args(["-TERM", &id]).status()?;
        theirs.wait().await?;
        let ours = stage.held(kind, |holder| pod_of(holder) == pod).await?;
        stage.written_by(kind, |holder| holder == ours).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_survive_the_api_server() -> Result<()> {
    play(Stage::set_apart("restart", 2).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        // Back before the renew deadline, as a restart is: terms may go on or end, never overlap.
        stage.cluster.kill_api_server().await?;
        stage.cluster.start_api_server().await?;
        write_again(stage).await?;
        // Away for longer than a lease: every term ends by its own clock, with nobody to tell it so.
        stage.cluster.kill_api_server().await?;
        tokio::time::sleep(LEASE + Duration::from_secs(2)).await;
        stage.cluster.start_api_server().await?;
        write_again(stage).await?;
        stage.all_led().await?;
        Ok(())
    })
    .await;
    Ok(())
}

/// Waits until every kind is worked on again, by more writes than can have been on their way.
async fn write_again(stage: &Stage) -> Result<()> {
    for kind in &stage.kinds {
        let count = || async {
            let worked = history(stage, kind)?.into_iter().filter(|stored| matches!(stored.what, What::Worked { .. }));
            anyhow::Ok(worked.count())
        };
        let before = count().await?;
        eventually(&format!("{kind} is worked on again"), PATIENCE, count, |now| *now > before + 3).await?;
    }
    Ok(())
}
