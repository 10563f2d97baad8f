//! A CRD whose schema keeps little of a status: a new term finds what is stored as good as it can be.

use std::time::Duration;

use anyhow::Result;
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    program::Said,
    rows::writes,
    stage::{PATIENCE, Stage, ensure, play},
    things::{COMPOSITION, Things},
};

const STATUS: &str = r#"status: {value: "${parent.spec.value}"}"#;

const OBJECTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_term_writes_no_status_that_the_crd_would_drop() -> Result<()> {
    for may_read_the_crd in [true, false] {
        play(Stage::set("pruned", 1).await?, |stage| async move {
            let things = Things::without_replicas(stage).await?;
            std::fs::write(things.folder.path().join("thing.yaml"), format!("{COMPOSITION}{STATUS}"))?;
            let status = json!({"type": "object", "properties": {
                "observedGeneration": {"type": "integer"}, "value": {"type": "string"},
            }});
            let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let crd = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": things.resource()},
                "spec": {
                    "group": things.group, "scope": "Namespaced",
                    "names": {"kind": "Thing", "plural": "things", "singular": "thing"},
                    "versions": [{
                        "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
                    }],
                },
            });
            stage.cluster.apply(&crd.to_string()).await?;
            if !may_read_the_crd {
                let role = format!("{}-children", stage.namespace);
                let rules = json!({"rules": [
                    {"apiGroups": [""], "resources": ["configmaps", "events"], "verbs": ["*"]},
                    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["*"]},
                ]});
                stage.cluster.kubectl(&["patch", "clusterrole", &role, "--type=merge", "-p", &rules.to_string()]).await?;
            }
            let things = things.with(2).await?;
            for number in 0..OBJECTS {
                things.put(&format!("thing-{number}"), "x").await?;
            }
            let kind = GroupVersionKind::gvk(&things.group, "v1", "Thing");
            let api: Api<DynamicObject> =
                Api::namespaced_with(stage.client.clone(), &stage.namespace, &ApiResource::from_gvk(&kind));
            let stored = || async { anyhow::Ok(api.list(&ListParams::default()).await?.items) };
            let is_settled = |object: &DynamicObject| object.data["status"]["value"] == "x";
            let settled = |all: &Vec<DynamicObject>| all.len() == OBJECTS && all.iter().all(is_settled);
            let all = eventually("all are settled", PATIENCE, stored, settled).await?;
            let status: &Value = &all[0].data["status"];
            ensure(status.get("conditions").is_none(), || status.to_string())?;

            tokio::time::sleep(Duration::from_secs(2)).await;
            let before = stage.cluster.audit()?.len();
            let said = Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&things.lease()]).await?;
            ensure(said.code == Some(0), || format!("{said:?}"))?;
            tokio::time::sleep(Duration::from_secs(8)).await;
            let after = writes(stage, before)?;
            // What cannot be read is learnt from the first answers, as many as there are objects at a time.
            let most = if may_read_the_crd { 0 } else { 4 };
            ensure(after.len() <= most, || format!("{} writes, the first {:#?}", after.len(), after[0]))?;

            // It is said, once a term, and it is said which.
            let log = stage.log().await;
            let told = log.matches("the API server drops what is written there").count();
            ensure((1..=2).contains(&told) && log.contains("status.conditions"), || format!("told {told} times: {log}"))?;

            // What the schema has is written as ever.
            things.put("thing-0", "y").await?;
            let value = || async { anyhow::Ok(api.get("thing-0").await?.data["status"]["value"].clone()) };
            eventually("the status follows", PATIENCE, value, |value| *value == "y").await?;
            Ok(())
        })
        .await;
    }
    Ok(())
}
