//! Fields of a child that are no longer desired: they go from the stored object, whatever became of it since it was created, and
//! a change that takes none away is one write.

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::Api;
use leasehold_cluster::{AuditEvent, eventually};
use serde_json::{Value, json};

use crate::{
    rows::writes,
    stage::{PATIENCE, Stage, ensure, play},
    things::Things,
};

/// What the children say, the object says. The API server fills in much of a Deployment, and nothing of a ConfigMap.
const COMPOSITION: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
children:
- id: map
  template: {apiVersion: v1, kind: ConfigMap, metadata: {name: "${parent.metadata.name}"}, data: "${parent.spec.data}"}
- id: deployment
  template: {apiVersion: apps/v1, kind: Deployment, metadata: {name: "${parent.metadata.name}"}, spec: "${parent.spec.deployment}"}
"#;

async fn put(things: &Things<'_>, name: &str, data: &Value, seconds: Option<u32>) -> Result<()> {
    let labels = json!({"app": name});
    let mut deployment = json!({
        "replicas": 0, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}},
    });
    if let Some(seconds) = seconds {
        deployment["minReadySeconds"] = json!(seconds);
    }
    let object = json!({
        "apiVersion": format!("{}/v1", things.group), "kind": "Thing",
        "metadata": {"name": name, "namespace": things.stage.namespace}, "spec": {"data": data, "deployment": deployment},
    });
    // Not by `kubectl apply`, which keeps the fields of another manager.
    let file = things.folder.path().join("thing.json");
    std::fs::write(&file, object.to_string())?;
    let file = file.display().to_string();
    things.stage.cluster.kubectl(&["apply", "--server-side", "-f", &file]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_no_longer_desired_goes_and_any_other_change_is_one_write() -> Result<()> {
    play(Stage::set("removed", 1).await?, |stage| async move {
        let things = Things::without_replicas(stage).await?;
        std::fs::write(things.folder.path().join("thing.yaml"), COMPOSITION)?;
        let role = format!("{}-children", stage.namespace);
        let rules = json!({"rules": [
            {"apiGroups": [""], "resources": ["configmaps", "events"], "verbs": ["*"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["*"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["*"]},
        ]});
        stage.cluster.kubectl(&["patch", "clusterrole", &role, "--type=merge", "-p", &rules.to_string()]).await?;
        let things = things.with(1).await?;
        let maps: Api<ConfigMap> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let deployments: Api<Deployment> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let stored = |name: &'static str| {
            let (maps, deployments) = (&maps, &deployments);
            async move {
                let map = maps.get(name).await?;
                let deployment = deployments.get(name).await?;
                let seconds = deployment.spec.and_then(|spec| spec.min_ready_seconds).filter(|seconds| *seconds > 0);
                anyhow::Ok((json!(map.data), seconds))
            }
        };
        let becomes = async |name: &'static str, data: Value, seconds: Option<u32>| {
            put(&things, name, &data, seconds).await?;
            let wanted = (data, seconds.map(i32::try_from).transpose()?);
            let what = format!("{name} is {wanted:?}");
            eventually(&what, PATIENCE, || stored(name), |found| *found == wanted).await
        };
        becomes("changed", json!({"a": "1", "b": "1"}), Some(5)).await?;
        becomes("shrunk", json!({"a": "1", "b": "1"}), Some(5)).await?;

        // The first change, of a value and by a field that comes.
        let before = stage.cluster.audit()?.len();
        becomes("changed", json!({"a": "2", "b": "1", "c": "1"}), Some(6)).await?;
        let of_maps: Vec<_> = writes(stage, before)?.into_iter().filter(|it| it.resource == "configmaps").collect();
        let [apply] = &of_maps[..] else { anyhow::bail!("a change is one write: {of_maps:#?}") };
        ensure(apply.verb == "patch" && apply.succeeded(), || format!("{apply:#?}"))?;
        // What there is to say of it is said last.
        let told = || async {
            let all = stage.cluster.audit_from(before)?;
            let is_told = |it: &AuditEvent| {
                let about = it.request_object.as_ref().and_then(|object| object.pointer("/regarding/name"));
                it.resource == "events" && about.is_some_and(|name| name == "changed")
            };
            let is_stored =
                |it: &AuditEvent| it.subresource.as_deref() == Some("status") && it.name.as_deref() == Some("changed");
            let event = all.iter().find(|it| is_told(it)).map(|it| it.request_received);
            anyhow::Ok((all.iter().find(|it| is_stored(it)).map(|it| it.stage), event))
        };
        let (status, event) = eventually("the change is told", PATIENCE, told, |(_, told)| told.is_some()).await?;
        ensure(status.is_some() && status <= event, || format!("status at {status:?}, event at {event:?}"))?;
        // What goes then: of the creation, unchanged since; and of the first change.
        becomes("changed", json!({"a": "2", "c": "1"}), None).await?;
        becomes("changed", json!({"a": "2"}), None).await?;
        let meta = maps.get("changed").await?.metadata;
        let managers = meta.managed_fields.context("managers")?;
        let ours = managers.iter().filter(|it| it.manager.as_deref().is_some_and(|it| it.starts_with("leasehold/")));
        let operations: Vec<_> = ours.filter_map(|it| it.operation.as_deref()).collect();
        ensure(operations == ["Apply"], || format!("one entry is ours: {managers:#?}"))?;

        // The first change takes something away.
        becomes("shrunk", json!({"a": "1"}), None).await?;

        // All is at rest.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let before = stage.cluster.audit()?.len();
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        let after = writes(stage, before)?;
        ensure(after.is_empty(), || format!("{after:#?}"))
    })
    .await;
    Ok(())
}
