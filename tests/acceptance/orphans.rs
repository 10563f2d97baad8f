//! `kubectl delete --cascade=orphan`: what the API server orphans, our finalizer does not delete.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, PropagationPolicy},
};
use leasehold_cluster::eventually;
use serde_json::json;

use crate::{
    rows::Rows,
    stage::{COLLECTION, PATIENCE, Stage, ensure, play},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_orphaned_stays_where_the_garbage_collector_follows_and_where_it_does_not() -> Result<()> {
    play(Stage::set("orphans", 1).await?, |stage| async {
        let rows = Rows::set(stage, 1).await?;
        let config_maps = rows.config_maps();
        let home = format!("{}-home", stage.namespace);
        stage.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {home}}}}}")).await?;

        // One child in the namespace of its parent, one elsewhere, held by a finalizer; and one that is deleted in the common way.
        rows.local(&home, "elsewhere", "kept").await?;
        rows.local(&home, "common", "gone").await?;
        rows.local(&stage.namespace, "here", "beside").await?;
        for name in ["kept", "gone", "beside"] {
            eventually("the child is there", PATIENCE, || config_maps.get_opt(name), Option::is_some).await?;
        }
        let uid = |name: &'static str| async { anyhow::Ok(config_maps.get(name).await?.uid().context("a uid")?) };
        let (kept, beside) = (uid("kept").await?, uid("beside").await?);
        let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        for (namespace, name, how) in [
            (&home, "elsewhere", &orphan),
            (&stage.namespace, "here", &orphan),
            (&home, "common", &DeleteParams::background()),
        ] {
            let api: Api<DynamicObject> = rows.locals(namespace);
            api.delete(name, how).await?;
            eventually("the object is gone", COLLECTION, || api.get_opt(name), Option::is_none).await?;
        }
        eventually("its child is gone", COLLECTION, || config_maps.get_opt("gone"), Option::is_none).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure(uid("kept").await? == kept && uid("beside").await? == beside, || "an orphan was replaced".to_owned())?;
        let owners = config_maps.get("beside").await?.owner_references().to_vec();
        ensure(owners.is_empty(), || format!("{owners:?}"))?;

        // An object of the name has them again.
        rows.local(&home, "elsewhere", "kept").await?;
        let locals = rows.locals(&home);
        let ready = || async {
            let object = locals.get("elsewhere").await?;
            let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            anyhow::Ok(conditions.iter().any(|it| it["type"] == "Applied" && it["status"] == json!("True")))
        };
        eventually("it has its child again", PATIENCE, ready, |ready| *ready).await?;
        ensure(uid("kept").await? == kept, || "it was replaced".to_owned())
    })
    .await;
    Ok(())
}
