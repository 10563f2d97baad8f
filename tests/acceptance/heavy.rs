//! Objects that weigh too much, of a user who may write WebApps and nothing else, on an installation of its own: what is shipped
//! refuses them, and without its bounds the replicas do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{Signal, eventually};
use serde_json::{Value, json};

use crate::{
    composed::is,
    rails::as_account,
    shipped::{Installation, NAMESPACE},
    stage::{COLLECTION, PATIENCE, apart, ensure, pod_of, tell},
};

const TEAM: &str = "heavy";
/// So many objects, and bytes of each, took more than the limit before there were bounds.
const COUNT: usize = 140;
const BYTES: usize = 1_000_000;
/// What a replica may have in memory, as deploy/ has it.
const MEMORY: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_weigh_too_much_say_so_and_the_others_are_reconciled() -> Result<()> {
    let (cluster, kubelet) = apart().await?;
    let installation = Installation::install_on(cluster, kubelet).await?;
    installation.led(|_| true).await?;
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}).to_string()).await?;
    let web_apps = author(&installation).await?;

    // The definition refuses it.
    let refused = web_apps.create(&PostParams::default(), &web_app("large", BYTES)?).await;
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure(refused.contains("spec.env"), || refused.clone())?;
    // What is just as large as it permits is reconciled.
    let env = json!({"A": "x".repeat(16_000), "B": "x".repeat(16_766)});
    let mut largest = web_app("largest", 1)?;
    largest.data["spec"]["env"] = env;
    web_apps.create(&PostParams::default(), &largest).await?;
    installation.becomes("it is deployed", &["deployment", "largest", "-n", TEAM], |_| true).await?;
    largest.metadata.name = Some("larger".to_owned());
    largest.data["spec"]["env"]["C"] = json!("");
    let refused = web_apps.create(&PostParams::default(), &largest).await.err().map(|error| error.to_string());
    ensure(refused.as_ref().is_some_and(|why| why.contains("more than 32768 characters")), || format!("{refused:?}"))?;

    // Without its bounds the replicas refuse them, and go on with the others.
    unbounded(&installation).await?;
    let accepted =
        || async { anyhow::Ok(web_apps.create(&PostParams::default(), &web_app("large-0", BYTES)?).await.is_ok()) };
    eventually("the definition has no bounds", PATIENCE, accepted, |accepted| *accepted).await?;
    let create = |number: usize| {
        let web_apps = web_apps.clone();
        async move {
            web_apps.create(&PostParams::default(), &web_app(&format!("large-{number}"), BYTES)?).await?;
            anyhow::Ok(())
        }
    };
    stream::iter(1..COUNT).map(create).buffer_unordered(4).try_collect::<Vec<_>>().await?;
    // It waits for none of the large ones, of which the last are not told yet.
    let took = is_reconciled(&installation, &web_apps, "small").await?;
    ensure(took < Duration::from_secs(10), || format!("it took {took:?}"))?;
    all_say_so(&installation, &web_apps).await?;
    within_memory(&installation, "with all of them").await?;

    // So does the next leader, and one that starts: it lists them all first, which takes as long as that takes.
    let holders = installation.led(|_| true).await?;
    let leader = pod_of(&holders["webapp.leasehold.dev"]).to_owned();
    kubelet.signal(NAMESPACE, &leader, Signal::KILL)?;
    let is_another = |holder: &str| *holder != holders["webapp.leasehold.dev"];
    let led = |now: &std::collections::BTreeMap<String, String>| {
        now.get("webapp.leasehold.dev").is_some_and(|holder| is_another(holder))
    };
    eventually("another process leads the kind", PATIENCE, || installation.holders(), led).await?;
    is_reconciled(&installation, &web_apps, "after").await?;
    installation.rolled_out().await?;
    installation.kubectl(&["rollout", "restart", "deployment/leasehold"]).await?;
    installation.rolled_out().await?;
    is_reconciled(&installation, &web_apps, "restarted").await?;
    within_memory(&installation, "after all have begun anew").await?;

    // One that is smaller is reconciled, and one that is too large can be deleted.
    let smaller = json!({"spec": {"env": {"A": "x"}}});
    web_apps.patch("large-0", &PatchParams::default(), &Patch::Merge(smaller)).await?;
    installation.becomes("it is deployed", &["deployment", "large-0", "-n", TEAM], |_| true).await?;
    let web_app = &["webapp", "large-0", "-n", TEAM];
    installation.becomes("it says that no more", web_app, is("SpecValid", "True", "AsExpected")).await?;
    web_apps.delete("large-1", &DeleteParams::default()).await?;
    let gone = || web_apps.get_opt("large-1");
    eventually("it is gone", COLLECTION, gone, Option::is_none).await?;
    Ok(())
}

/// WebApps as a ServiceAccount that may write those of its namespace and nothing else.
async fn author(installation: &Installation) -> Result<Api<DynamicObject>> {
    let metadata = json!({"name": "author", "namespace": TEAM});
    let rbac = "rbac.authorization.k8s.io";
    let verbs = json!(["get", "create", "patch", "delete"]);
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata,
            "rules": [{"apiGroups": ["leasehold.dev"], "resources": ["webapps", "webapps/status"], "verbs": verbs}],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "author"},
            "subjects": [{"kind": "ServiceAccount", "name": "author", "namespace": TEAM}],
        }),
    ] {
        installation.cluster.apply(&object.to_string()).await?;
    }
    let kind = GroupVersionKind::gvk("leasehold.dev", "v1alpha1", "WebApp");
    let client = as_account(installation.cluster, TEAM, "author").await?;
    let web_apps: Api<DynamicObject> = Api::namespaced_with(client, TEAM, &ApiResource::from_gvk(&kind));
    let seen = || async { anyhow::Ok(web_apps.get_opt("none").await.is_ok()) };
    eventually("the author may read WebApps", PATIENCE, seen, |seen| *seen).await?;
    Ok(web_apps)
}

fn web_app(name: &str, bytes: usize) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "WebApp", "metadata": {"name": name, "namespace": TEAM},
        "spec": {"image": "registry.example.com/web:1", "replicas": 0, "env": {"A": "x".repeat(bytes)}},
    }))?)
}

async fn unbounded(installation: &Installation) -> Result<()> {
    let env = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/env";
    let patch = json!([{"op": "replace", "path": path, "value": env}]).to_string();
    let crd = "customresourcedefinition/webapps.leasehold.dev";
    installation.cluster.kubectl(&["patch", crd, "--type=json", "-p", &patch]).await?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how long it took is shown, and bounded widely")]
async fn is_reconciled(installation: &Installation, web_apps: &Api<DynamicObject>, name: &str) -> Result<Duration> {
    let began = Instant::now();
    web_apps.create(&PostParams::default(), &web_app(name, 10)?).await?;
    installation.becomes("a small one is deployed", &["deployment", name, "-n", TEAM], |_| true).await?;
    tell(&format!("{name} is deployed after {:?}", began.elapsed()));
    Ok(began.elapsed())
}

async fn all_say_so(installation: &Installation, web_apps: &Api<DynamicObject>) -> Result<()> {
    for number in 0..COUNT {
        let name = format!("large-{number}");
        let read = || async { anyhow::Ok(serde_json::to_value(web_apps.get_status(&name).await?)?) };
        let said = eventually("it says that it is too large", PATIENCE, read, is("Ready", "False", "TooLarge")).await?;
        let message = said.pointer("/status/conditions/0/message").and_then(Value::as_str).unwrap_or_default();
        ensure(
            message.contains("weighs 97") && message.contains("512 KiB") && message.contains("limits.object"),
            || message.to_owned(),
        )?;
    }
    let deployments = installation.object(&["deployments", "-n", TEAM]).await?;
    let names: Vec<_> = deployments["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["metadata"]["name"].as_str())
        .collect();
    ensure(names == ["largest", "small"], || format!("{names:?}"))?;
    let line = format!("leasehold_too_large_objects{{kind=\"WebApp.leasehold.dev\"}} {COUNT}.0");
    let mut told = false;
    for pod in installation.pods().await? {
        told |= installation.get(&pod, "/metrics").await?.1.lines().any(|it| it == line);
    }
    ensure(told, || "no replica counts them".to_owned())
}

/// The most that each process has had.
async fn within_memory(installation: &Installation, when: &str) -> Result<()> {
    for pod in installation.pods().await? {
        let pod = pod.name_any();
        let pids = installation.kubelet.pids(NAMESPACE, &pod);
        let pid = pids.first().with_context(|| format!("{pod} runs"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let most = most.trim().trim_end_matches(" kB").parse::<u64>()? << 10;
        tell(&format!("{when}: {pod} has had {} MiB at the most", most >> 20));
        ensure(most < MEMORY, || format!("{when}: {pod} has had {} MiB", most >> 20))?;
    }
    Ok(())
}
