//! A child that another writer changes back each time: told, named, and left to it for longer and longer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    rows::writes,
    stage::{PATIENCE, Stage, ensure, play, tell},
    things::{Things, now},
};

/// A writer of its own name that sets the value back as soon as it sees ours. How often it has.
pub fn rival(client: Client, namespace: &str) -> (Arc<AtomicU64>, JoinSet<()>) {
    let config_maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let params = PatchParams { field_manager: Some("rival".to_owned()), ..PatchParams::default() };
        loop {
            let found = config_maps.get_opt("fought").await.ok().flatten().and_then(|found| found.data);
            if found.is_some_and(|data| data.get("value").is_some_and(|value| value != "theirs")) {
                let patch = Patch::Merge(json!({"data": {"value": "theirs"}}));
                if config_maps.patch("fought", &params, &patch).await.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    (count, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_writes_back_each_time_is_named_and_costs_a_bounded_number_of_writes() -> Result<()> {
    play(Stage::set("contested", 1).await?, |stage| async {
        let things = Things::set(stage, 2).await?;
        things.put("other", "0").await?;
        things.put("fought", "ours").await?;
        things.served("fought", "ours", PATIENCE).await?;
        things.served("other", "0", PATIENCE).await?;

        let before = stage.cluster.audit()?.len();
        let (undone, mut fighting) = rival(stage.client.clone(), &stage.namespace);
        let began = now();
        // Meanwhile every change of another object is served as fast as ever.
        let (mut slowest, mut number) = (Duration::ZERO, 0);
        while began.elapsed() < Duration::from_secs(60) {
            number += 1;
            things.put("other", &number.to_string()).await?;
            slowest = slowest.max(things.served("other", &number.to_string(), Duration::from_secs(10)).await?);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let child = |name: &'static str| {
            let all = writes(stage, before)?;
            let of = |resource: &str| {
                all.iter().filter(|it| it.name.as_deref() == Some(name) && it.resource == resource).count()
            };
            anyhow::Ok((of("configmaps"), of("things")))
        };
        let (of_child, of_object) = child("fought")?;
        let rounds = undone.load(Ordering::Relaxed);
        tell(&format!(
            "60 s of a fight: {of_child} writes of the child, {of_object} of its object, undone {rounds} times; \
             the slowest of {number} changes of another object took {slowest:?}"
        ));
        ensure((4..=9).contains(&of_child), || format!("{of_child} writes of the child"))?;
        ensure(of_object <= 3, || format!("{of_object} writes of its object"))?;
        ensure(slowest < Duration::from_secs(3), || format!("another object waited for {slowest:?}"))?;

        // It is told who it is, and of which field.
        let kind = GroupVersionKind::gvk(&things.group, "v1", "Thing");
        let api: Api<DynamicObject> =
            Api::namespaced_with(stage.client.clone(), &stage.namespace, &ApiResource::from_gvk(&kind));
        let look = || async { anyhow::Ok(api.get("fought").await?.data["status"]["conditions"].clone()) };
        let applied = |conditions: &Value| {
            let mut all = conditions.as_array().into_iter().flatten();
            all.find(|it| it["type"] == "Applied").cloned().unwrap_or_default()
        };
        let contested = |conditions: &Value| applied(conditions)["reason"] == "Contested";
        let said = eventually("the fight is told", PATIENCE, look, contested).await?;
        let message = applied(&said)["message"].as_str().unwrap_or_default().to_owned();
        ensure(message.contains("field manager rival changes field data.value back"), || message.clone())?;
        let leader = things.led(PATIENCE, |_| true).await?;
        let (_, page) = leader.get("/metrics").await?;
        let series = format!("leasehold_contested_children{{kind=\"{}\"}} 1.0", things.kind());
        ensure(page.contains(&series), || page.clone())?;
        let series = format!("leasehold_undone_writes_total{{kind=\"{}\",manager=\"rival\"}}", things.kind());
        ensure(page.contains(&series), || page.clone())?;
        // A replica that does not lead shows no work, and neither does one whose standby has ended.
        let standby = things.replicas.iter().find(|replica| replica.name != leader.name).context("a standby")?;
        let (_, page) = standby.get("/metrics").await?;
        ensure(!page.contains("leasehold_undone_writes_total{"), || page.clone())?;

        // A new leader knows of it, and begins with a wait.
        let (before, leader) = (stage.cluster.audit()?.len(), leader.name.clone());
        things.replicas.iter().find(|it| it.name == leader).context("it")?.signal(leasehold_cluster::Signal::TERM)?;
        things.led(PATIENCE, |replica| replica.name != leader).await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let all = writes(stage, before)?;
        let of_child = all.iter().filter(|it| it.name.as_deref() == Some("fought") && it.resource == "configmaps");
        ensure(of_child.count() <= 1, || format!("{all:#?}"))?;

        // When the rival is gone, what we say holds again, and nothing is told any more.
        fighting.abort_all();
        things.served("fought", "ours", Duration::from_secs(120)).await?;
        let is_over = |conditions: &Value| applied(conditions)["status"] == "True";
        eventually("the fight is over", Duration::from_secs(150), look, is_over).await?;
        Ok(())
    })
    .await;
    Ok(())
}
