//! Bad input for a composed kind, row by row: each says what is wrong with its object, and costs that object only.
//! And what a handover, or a restart of the API server, must not do to many objects.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    program::Said,
    rows::{Rows, thing, writes},
    stage::{COLLECTION, PATIENCE, Stage, ensure, play},
};

/// So many mappings in one another, as JSON.
fn nested(levels: usize) -> String {
    format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_and_costs_its_object_only() -> Result<()> {
    play(Stage::set("rows", 1).await?, |stage| async move {
        let rows = Rows::set(stage, 1).await?;
        let config_maps = rows.config_maps();

        // What the expressions make too much of.
        rows.create("Thing", "many", json!({"count": 100_000})).await?;
        let said = rows.says("Thing", "many", "SpecValid", "False", "TooManyChildren").await?;
        ensure(said.contains("100000"), || said)?;
        // Its child holds that five times.
        rows.create("Thing", "large", json!({"large": "x".repeat(400 << 10)})).await?;
        let said = rows.says("Thing", "large", "SpecValid", "False", "ChildTooLarge").await?;
        ensure(said.contains("2048"), || said)?;
        rows.create("Thing", "larger", json!({"large": "x".repeat(1 << 20)})).await?;
        let said = rows.says("Thing", "larger", "SpecValid", "False", "TooLarge").await?;
        ensure(said.contains("1025 KiB") && said.contains("`limits.object` of Thing"), || said)?;
        // So deep that its event could not be read: others would be heard of no more.
        rows.create("Thing", "deep", json!({"deep": serde_json::from_str::<Value>(&nested(110))?})).await?;
        let said = rows.says("Thing", "deep", "SpecValid", "False", "TooDeep").await?;
        ensure(said.contains("more than 100 lists and mappings"), || said)?;
        let deeper = format!(
            r#"{{"apiVersion": "{}/v1", "kind": "Thing", "metadata": {{"name": "deeper"}}, "spec": {{"deep": {}}}}}"#,
            rows.group,
            nested(3000)
        );
        let things = rows.api("Thing");
        let path = things.resource_url();
        let create = http::Request::post(path).header("content-type", "application/json");
        rows.client().request_text(create.body(deeper.into_bytes())?).await?;
        let read = || async {
            let read = http::Request::get(format!("{path}/deeper")).body(Vec::new())?;
            anyhow::Ok(rows.client().request_text(read).await?)
        };
        eventually("what is deeper has a status too", PATIENCE, read, |text| text.contains("\"TooDeep\"")).await?;
        rows.create("Thing", "null", json!({"count": null})).await?;
        rows.says("Thing", "null", "SpecValid", "False", "ExpressionFailed").await?;
        rows.create("Thing", "same", json!({"name": "same", "value": "x", "second": "same"})).await?;
        rows.says("Thing", "same", "SpecValid", "False", "DuplicateChild").await?;

        // What fails later takes nothing away.
        rows.create("Thing", "good", json!({"name": "good", "value": "1", "second": "good-two"})).await?;
        rows.is_ready("Thing", "good").await?;
        rows.change("good", json!({"value": null, "second": null})).await?;
        let said = rows.says("Thing", "good", "SpecValid", "False", "ExpressionFailed").await?;
        ensure(said == "one.template.data.value: there is no `value`", || said)?;
        config_maps.get("good-two").await.context("nothing is pruned that cannot be computed")?;
        rows.change("good", json!({"value": "2", "name": "Upper"})).await?;
        let said = rows.says("Thing", "good", "Applied", "False", "Invalid").await?;
        ensure(said.contains("lowercase RFC 1123"), || said)?;
        config_maps.get("good").await.context("nothing is pruned while something is refused")?;
        rows.change("good", json!({"name": "good-again"})).await?;
        rows.is_ready("Thing", "good").await?;
        eventually("what is no longer said is gone", PATIENCE, || config_maps.get_opt("good"), Option::is_none).await?;

        // What the API server refuses: by quota, by a policy, for want of a namespace.
        let walled = format!("{}-walled", stage.namespace);
        stage.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {walled}}}}}")).await?;
        let none = format!("{{apiVersion: v1, kind: ResourceQuota, metadata: {{name: none, namespace: {walled}}}, spec: {{hard: {{configmaps: '0'}}}}}}");
        stage.cluster.apply(&none).await?;
        rows.create("Thing", "quota", json!({"name": "a", "value": "x", "namespace": walled})).await?;
        let said = rows.says("Thing", "quota", "Applied", "False", "Forbidden").await?;
        ensure(said.contains("exceeded quota") || said.contains("status unknown for quota"), || said)?;
        rows.create("Thing", "nowhere", json!({"name": "a", "value": "x", "namespace": "nowhere-at-all"})).await?;
        rows.says("Thing", "nowhere", "Applied", "False", "NamespaceNotFound").await?;
        let policy = format!("rows-{}", stage.namespace);
        stage.cluster.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": policy},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]},
                "matchConditions": [{"name": "ours", "expression": format!("object.metadata.namespace == '{}'", stage.namespace)}],
                "validations": [{"expression": "object.metadata.name != 'forbidden-name'", "message": "that name is not for you"}],
            },
        }).to_string()).await?;
        stage.cluster.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": policy},
            "spec": {"policyName": policy, "validationActions": ["Deny"]},
        }).to_string()).await?;
        let denied = || async {
            let probe = ConfigMap { metadata: kube::core::ObjectMeta { name: Some("forbidden-name".to_owned()), ..Default::default() }, ..Default::default() };
            let dry = PostParams { dry_run: true, ..PostParams::default() };
            Ok::<_, anyhow::Error>(config_maps.create(&dry, &probe).await.is_err())
        };
        eventually("the policy is in force", PATIENCE, denied, |denied| *denied).await?;
        rows.create("Thing", "policy", json!({"name": "forbidden-name", "value": "x"})).await?;
        let said = rows.says("Thing", "policy", "Applied", "False", "Invalid").await?;
        ensure(said.contains("that name is not for you"), || said)?;

        // Two kinds that say the same child: who was first has it.
        rows.create("Other", "rival", json!({"name": "good-again", "value": "mine"})).await?;
        let said = rows.says("Other", "rival", "Applied", "False", "ChildConflict").await?;
        ensure(said.contains("belongs to good"), || said)?;
        let data = config_maps.get("good-again").await?.data.unwrap_or_default();
        ensure(data == BTreeMap::from([("value".to_owned(), "2".to_owned())]), || format!("{data:?}"))?;

        // Where no garbage collector follows, a finalizer holds the parent until its children are gone.
        rows.local(&walled, "local", "elsewhere").await?;
        let elsewhere = || config_maps.get_opt("elsewhere");
        let child = eventually("a child in another namespace", PATIENCE, elsewhere, Option::is_some).await?.context("it")?;
        ensure(child.owner_references().is_empty(), || format!("{child:?}"))?;
        let locals = rows.locals(&walled);
        let finalizers = locals.get("local").await?.metadata.finalizers;
        ensure(finalizers == Some(vec!["leasehold.dev/local".to_owned()]), || format!("{finalizers:?}"))?;
        config_maps.delete("elsewhere", &DeleteParams::default()).await?;
        let is_new = |found: &Option<ConfigMap>| found.as_ref().is_some_and(|found| found.uid() != child.uid());
        eventually("it heals there too", PATIENCE, elsewhere, is_new).await?;
        locals.delete("local", &DeleteParams::default()).await?;
        eventually("the parent is gone", PATIENCE, || locals.get_opt("local"), Option::is_none).await?;
        ensure(elsewhere().await?.is_none(), || "its child is left behind".to_owned())?;

        // A type that comes and goes.
        rows.create("Thing", "gadget", json!({"gadget": 3})).await?;
        rows.is_ready("Thing", "gadget").await?;
        stage.cluster.kubectl(&["delete", "crd", &format!("gadgets.{}", rows.group)]).await?;
        rows.says("Thing", "gadget", "Applied", "False", "TypeNotServed").await?;
        rows.create("Thing", "after", json!({"name": "after", "value": "x"})).await?;
        rows.is_ready("Thing", "after").await?;

        // What follows a related object waits for it, and changes with it.
        rows.create("Thing", "follower", json!({"follow": true})).await?;
        let said = rows.says("Thing", "follower", "Applied", "Unknown", "WaitingFor").await?;
        ensure(said.contains("follows waits"), || said)?;
        for value in ["a", "b"] {
            let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": stage.namespace}, "data": {"value": value}});
            stage.cluster.apply(&settings.to_string()).await?;
            let follows = || config_maps.get_opt("follows");
            let is_so = |found: &Option<ConfigMap>| found.as_ref().and_then(|it| it.data.as_ref()?.get("value")).is_some_and(|it| it == value);
            eventually("it follows", PATIENCE, follows, is_so).await?;
        }
        rows.is_ready("Thing", "follower").await?;

        // Deleted while it is applied: whatever was written goes with it.
        for round in 0..5 {
            let name = format!("brief-{round}");
            rows.create("Thing", &name, json!({"count": 40})).await?;
            tokio::time::sleep(Duration::from_millis(20 * round)).await;
            rows.api("Thing").delete(&name, &DeleteParams::default()).await?;
        }
        let brief = || async {
            let all = config_maps.list(&ListParams::default()).await?.items;
            anyhow::Ok(all.into_iter().map(|it| it.name_any()).filter(|name| name.starts_with("brief")).collect::<Vec<_>>())
        };
        eventually("nothing is left of what was deleted", COLLECTION, brief, Vec::is_empty).await?;

        // A namespace that is being deleted.
        stage.cluster.kubectl(&["delete", "namespace", &walled, "--wait=false"]).await?;
        let going = || async { anyhow::Ok(rows.api("Thing").get("quota").await?.data["status"]["conditions"][1]["reason"].clone()) };
        let is_told = |reason: &Value| *reason == "NamespaceTerminating" || *reason == "NamespaceNotFound";
        eventually("that its namespace goes is told", PATIENCE, going, is_told).await?;
        stage.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", &policy]).await?;
        stage.cluster.kubectl(&["delete", "validatingadmissionpolicy", &policy]).await?;
        // And after all of it the others are as they were.
        rows.is_ready("Thing", "good").await?;
        rows.is_ready("Thing", "after").await
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_amid_a_thousand_objects_loses_and_doubles_nothing() -> Result<()> {
    const OBJECTS: usize = 1000;
    play(Stage::set("thousand", 1).await?, |stage| async move {
        let rows = Rows::set(stage, 2).await?;
        rows.create_many(OBJECTS).await?;

        // While they are reconciled for the first time, the kind goes back and forth.
        let lease = format!("thing.{}", rows.group);
        for _ in 0..4 {
            let said = Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&lease]).await?;
            ensure(said.code == Some(0), || format!("{said:?}"))?;
        }
        rows.all_have_their_child(OBJECTS).await?;
        let all = writes(stage, 0)?;
        let deletions = all.iter().filter(|event| event.verb == "delete").count();
        let refused = all.iter().filter(|event| !event.succeeded()).count();
        ensure(deletions == 0, || format!("{deletions} deletions"))?;
        let done = all.iter().filter(|event| event.succeeded() && event.resource != "events").count();
        println!("{OBJECTS} objects, each with a child and a status: {done} writes, {refused} refused");

        // Settled, they are left alone by whoever takes them over.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = stage.cluster.audit()?.len();
        let said = Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&lease]).await?;
        ensure(said.code == Some(0), || format!("{said:?}"))?;
        tokio::time::sleep(Duration::from_secs(8)).await;
        let after = writes(stage, before)?;
        ensure(after.is_empty(), || format!("{} writes, the first {:#?}", after.len(), after[0]))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_api_server_amid_many_objects_loses_and_doubles_nothing() -> Result<()> {
    const OBJECTS: usize = 300;
    play(Stage::set_apart("restarted", 1).await?, |stage| async move {
        let rows = Rows::set(stage, 2).await?;
        rows.create_many(OBJECTS).await?;
        // While they are reconciled for the first time: whatever was on its way has no answer.
        stage.cluster.kill_api_server().await?;
        stage.cluster.start_api_server().await?;
        rows.all_have_their_child(OBJECTS).await?;
        // The watches are back: a child that goes is missed.
        let (config_maps, name) = (rows.config_maps(), thing(7));
        let child = config_maps.get(&name).await?;
        config_maps.delete(&name, &DeleteParams::default()).await?;
        let is_new = |found: &Option<ConfigMap>| found.as_ref().is_some_and(|found| found.uid() != child.uid());
        eventually("it heals", PATIENCE, || config_maps.get_opt(&name), is_new).await?;
        let deletions = writes(stage, 0)?.into_iter().filter(|event| event.verb == "delete").count();
        ensure(deletions == 0, || format!("{deletions} deletions"))
    })
    .await;
    Ok(())
}

/// Nobody serves its finalizer any more: its objects, and their namespaces, could never go.
#[tokio::test(flavor = "multi_thread")]
async fn the_objects_of_a_kind_that_is_taken_out_are_let_go() -> Result<()> {
    play(Stage::set("drained", 1).await?, |stage| async move {
        let mut rows = Rows::set(stage, 1).await?;
        let home = format!("{}-home", stage.namespace);
        stage.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {home}}}}}")).await?;
        rows.local(&home, "kept", "elsewhere").await?;
        let (config_maps, locals) = (rows.config_maps(), rows.locals(&home));
        eventually("its child is there", PATIENCE, || config_maps.get_opt("elsewhere"), Option::is_some).await?;

        let kind = format!("Local.{}", rows.group);
        let drain =
            |arguments: Vec<String>| async move { Said::by_drain(stage.cluster.kubeconfig(), &arguments).await };
        for (arguments, says) in [
            (vec!["Local".to_owned()], "has no group"),
            (vec![format!("Nothing.{}", rows.group)], "has no kind Nothing; there are Gadget, Local, Other, Thing"),
            (vec!["Local.nowhere.example.com".to_owned()], "has no group nowhere.example.com"),
            (vec![kind.clone()], "alone is configured for Local"),
        ] {
            let said = drain(arguments.clone()).await?;
            ensure(said.code == Some(2) && said.stderr.contains(says), || format!("{arguments:?}: {said:?}"))?;
        }
        let finalizers = || async { anyhow::Ok(locals.get("kept").await?.finalizers().to_vec()) };
        ensure(finalizers().await? == ["leasehold.dev/local"], || "what is refused is not done".to_owned())?;

        // Killed, it leaves a Lease that says the same as while it lived.
        rows.replicas.clear();
        let said = drain(vec![kind.clone(), "--dry-run".to_owned()]).await?;
        ensure(said.code == Some(0) && said.stdout.contains("1 would be let go"), || format!("{said:?}"))?;
        ensure(finalizers().await?.len() == 1, || "a dry run has written".to_owned())?;
        let said = drain(vec![kind, "-o".to_owned(), "json".to_owned()]).await?;
        let told: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
        ensure(told["objects"] == json!([{"namespace": home, "name": "kept"}]), || told.to_string())?;
        ensure(finalizers().await?.is_empty(), || "it still bears the finalizer".to_owned())?;
        locals.delete("kept", &DeleteParams::default()).await?;
        eventually("it may go", PATIENCE, || locals.get_opt("kept"), Option::is_none).await?;
        ensure(config_maps.get_opt("elsewhere").await?.is_some(), || "its child is gone with it".to_owned())
    })
    .await;
    Ok(())
}
