//! A leader that takes over with an old view of its objects: it neither sets children back nor deletes them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::ListParams};
use leasehold_cluster::{AuditEvent, Fault, Rule, Signal, eventually};

use crate::{
    rows::writes,
    stage::{PATIENCE, Stage, ensure, play},
    things::{COMPOSITION, Things},
};

/// Beside the child with the value, one for each name that the object lists.
const MORE: &str = r#"- id: more
  forEach: "${has(parent.spec.more) ? parent.spec.more : null}"
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-${each}"}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_with_an_old_view_of_the_parents_sets_nothing_back() -> Result<()> {
    play(Stage::set("stale", 1).await?, |stage| async {
        let mut things = Things::without_replicas(stage).await?;
        std::fs::write(things.folder.path().join("thing.yaml"), [COMPOSITION, MORE].concat())?;
        things = things.with(2).await?;
        things.put("it", "1").await?;
        things.served("it", "1", PATIENCE).await?;
        let leader = things.led(PATIENCE, |_| true).await?.name.clone();
        let standby = things.replicas.iter().find(|replica| replica.name != leader).context("a standby")?;
        let cached = format!("leasehold_cached{{kind=\"{}\"}} 1", things.kind());
        let metrics = || standby.get("/metrics");
        eventually("the standby has a cache", PATIENCE, metrics, |(_, page)| page.contains(&cached)).await?;

        // From here on the standby hears nothing of the parents; it hears of the children, and may ask for everything.
        let deaf = standby.proxy.add(Rule::new(Fault::BlackHole).verbs(&["WATCH"]).resource("things"));
        let newer = |value: &str| {
            format!(
                "{{apiVersion: {}/v1, kind: Thing, metadata: {{name: it, namespace: {}}}, spec: {{value: '{value}', more: [a, b]}}}}",
                things.group, stage.namespace
            )
        };
        stage.cluster.apply(&newer("2")).await?;
        things.served("it", "2", PATIENCE).await?;
        let config_maps: Api<ConfigMap> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let named = || async {
            let all = config_maps.list(&ListParams::default().labels("leasehold.dev/owner-uid")).await?.items;
            anyhow::Ok(all.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
        };
        eventually("its children are there", PATIENCE, named, |names| names.len() == 3).await?;

        let before = stage.cluster.audit()?.len();
        let reads = standby.proxy.count("GET", "things");
        things.replicas.iter().find(|replica| replica.name == leader).context("the leader")?.signal(Signal::TERM)?;
        let next = things.led(PATIENCE, |replica| replica.name != leader).await?;
        // It has looked at its object when it has written, or asked for the object.
        let looked = || async { anyhow::Ok(writes(stage, before)?.len() as u64 + standby.proxy.count("GET", "things") - reads) };
        eventually("the new leader has looked at its object", PATIENCE, looked, |count| *count > 0).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        judge(stage, before)?;

        // It goes on from the newest, deaf as it is; and hears of changes again.
        standby.proxy.remove(deaf);
        stage.cluster.apply(&newer("3")).await?;
        things.served("it", "3", PATIENCE).await?;
        ensure(next.name == standby.name, || format!("{} leads", next.name))?;
        judge(stage, before)
    })
    .await;
    Ok(())
}

/// No child was written from the older spec, and none was deleted that the newer one says.
fn judge(stage: &Stage, before: usize) -> Result<()> {
    let is_child = |event: &&Arc<AuditEvent>| event.resource == "configmaps";
    for event in writes(stage, before)?.iter().filter(is_child) {
        let value = event.request_object.as_ref().and_then(|object| object.pointer("/data/value")?.as_str());
        ensure(value != Some("1"), || format!("a child is set back: {event:#?}"))?;
        ensure(event.verb != "delete", || format!("a child of a newer spec is deleted: {event:#?}"))?;
    }
    Ok(())
}
