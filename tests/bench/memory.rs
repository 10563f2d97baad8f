//! What a replica of the shipped installation takes with a thousand objects of each kind, of the largest size that its
//! definition permits: shared by three replicas, and all on one.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::eventually;
use serde_json::{Map, Value, json};

use crate::{
    field::{Field, mebibytes, now, pods_of},
    record::millis,
    report::{Report, say},
};

const TITLE: &str = "memory of a replica, objects of the largest size that the shipped definitions permit";
const SHIPPED: &str = "leasehold-system";
const HOME: &str = "heavy";
const PATIENCE: Duration = Duration::from_secs(3600);

/// Measures with so many objects of each kind.
///
/// # Errors
/// When a replica does not come up, or an object is not come to.
pub(crate) async fn measure(field: &Field, count: usize, report: &mut Report) -> Result<()> {
    let kubectl = |arguments: &'static [&'static str]| field.cluster.kubectl(arguments);
    field.install().await?;
    // Each new replica lists all of it, on the CPUs of the API server.
    let rolled_out = ["-n", SHIPPED, "rollout", "status", "deployment/leasehold", "--timeout=1200s"];
    field.cluster.kubectl(&rolled_out).await?;
    field.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {HOME}}}}}")).await?;
    for (kind, namespace, spec) in [
        ("Propagation", None, propagation as fn(usize) -> Value),
        ("ExpiryPolicy", Some(HOME), expiry_policy),
        ("ScaleSchedule", Some(HOME), scale_schedule),
        ("WebApp", Some(HOME), web_app),
        ("Tenant", None, tenant),
    ] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("leasehold.dev", "v1alpha1", kind));
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(field.client.clone(), namespace, &resource),
            None => Api::all_with(field.client.clone(), &resource),
        };
        let create = |number: usize| {
            let api = api.clone();
            async move {
                let name = format!("heavy-{number:04}");
                let object = json!({
                    "apiVersion": "leasehold.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec(number),
                });
                let object: DynamicObject = serde_json::from_value(object)?;
                // What etcd has not answered in time may have been stored.
                let create = || async {
                    match api.create(&PostParams::default(), &object).await {
                        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                        other => other.map(drop),
                    }
                };
                eventually(&format!("{kind} {name} is stored"), Duration::from_secs(60), create, |()| true).await
            }
        };
        stream::iter(0..count).map(create).buffer_unordered(8).try_collect::<Vec<_>>().await?;
        // By their metadata, and seldom: the API server reads whole objects for that, which the replicas would wait behind.
        let unsaid = || async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let mut unsaid = 0;
            let mut params = ListParams::default().limit(100);
            loop {
                let page = api.list_metadata(&params).await?;
                let has_status = |it: &&PartialObjectMeta<DynamicObject>| {
                    it.managed_fields().iter().any(|fields| fields.subresource.as_deref() == Some("status"))
                };
                unsaid += page.items.len() - page.items.iter().filter(has_status).count();
                params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
                if params.continue_token.is_none() {
                    break;
                }
            }
            say(&format!("memory: {} of {count} of {kind} are come to", count - unsaid));
            anyhow::Ok(unsaid)
        };
        eventually(&format!("all of {kind} are come to"), PATIENCE, unsaid, |unsaid| *unsaid == 0).await?;
    }
    settled().await;
    let leaders = pods_of(&field.holders(SHIPPED).await?);
    let (mut leading, mut standing_by) = (Vec::new(), Vec::new());
    for pod in field.pods(SHIPPED).await? {
        let memory = memory(field, &pod)?;
        if leaders.contains(&pod) { &mut leading } else { &mut standing_by }.push(memory);
    }
    let mut add = |of: &str, memories: Vec<(f64, f64)>| {
        if memories.is_empty() {
            return;
        }
        say(&format!("memory, {of}: {memories:.1?} MiB, now and at the most"));
        let (now, most) = memories.into_iter().unzip();
        report.add(TITLE, "leasehold", format!("{count} of each of 5 kinds, {of}: at rest"), "MiB", now);
        report.add(TITLE, "leasehold", format!("{count} of each of 5 kinds, {of}: at the most"), "MiB", most);
    };
    add("three replicas, leading", leading);
    add("three replicas, leading nothing", standing_by);
    // All of them anew, which list what is there.
    let began = now();
    kubectl(&["-n", SHIPPED, "rollout", "restart", "deployment/leasehold"]).await?;
    field.cluster.kubectl(&rolled_out).await?;
    say(&format!("memory: all replicas were restarted within {:.0} s", millis(began, now()) / 1000.0));
    settled().await;
    let anew: Result<Vec<_>> = field.pods(SHIPPED).await?.iter().map(|pod| memory(field, pod)).collect();
    add("three replicas, begun anew", anew?);
    kubectl(&["-n", SHIPPED, "scale", "deployment/leasehold", "--replicas=1"]).await?;
    field.cluster.kubectl(&rolled_out).await?;
    settled().await;
    let one: Result<Vec<_>> = field.pods(SHIPPED).await?.iter().map(|pod| memory(field, pod)).collect();
    add("one replica, leading all", one?);
    field.cluster.kubectl(&["delete", "namespace", SHIPPED, "--wait=false"]).await?;
    Ok(())
}

/// The standbys have listed, and a sweep is over.
async fn settled() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// What the process of a pod has in memory, and the most it has had, in MiB.
fn memory(field: &Field, pod: &str) -> Result<(f64, f64)> {
    let pid = *field.kubelet.pids(SHIPPED, pod).first().context("a process")?;
    Ok((mebibytes(pid, "VmRSS")?, mebibytes(pid, "VmHWM")?))
}

/// A text of that length that differs by its number.
fn long(length: usize, number: usize) -> String {
    format!("{}{number:04}", "n".repeat(length - 4))
}

fn labels(count: usize) -> Value {
    let prefix = format!("{0}.{0}.{0}.{1}", "d".repeat(63), "d".repeat(61));
    let label = |number| (format!("{prefix}/{}", long(63, number)), json!(long(63, number)));
    Value::Object((0..count).map(label).collect::<Map<_, _>>())
}

fn propagation(number: usize) -> Value {
    let names = |from: usize| (from..from + 1000).map(|number| long(63, number)).collect::<Vec<_>>();
    let keys: Vec<_> = (0..256).map(|number| long(253, number)).collect();
    json!({
        "source": {"kind": "ConfigMap", "namespace": HOME, "name": long(253, number)},
        "targets": {"namespaces": names(0), "exclude": names(5000), "namespaceSelector": selector()},
        "keys": keys,
    })
}

fn selector() -> Value {
    let expression = |number: usize| {
        let values: Vec<_> = (0..32).map(|value| long(63, value)).collect();
        json!({"key": format!("example.com/{}", long(63, number)), "operator": "In", "values": values})
    };
    json!({"matchLabels": labels(64), "matchExpressions": (0..16).map(expression).collect::<Vec<_>>()})
}

fn expiry_policy(_: usize) -> Value {
    json!({"target": {"apiVersion": "v1", "kind": "ConfigMap", "selector": selector()}, "ttl": "24h"})
}

fn scale_schedule(number: usize) -> Value {
    let time = |slot: usize| format!("{:02}:{:02}", slot * 20 / 60, slot * 20 % 60);
    let window = |slot: usize| {
        let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        json!({"days": days, "from": time(slot), "to": time(slot + 1), "replicas": 100})
    };
    json!({
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": long(253, number)},
        "windows": (0..64).map(window).collect::<Vec<_>>(),
    })
}

fn web_app(_: usize) -> Value {
    // 256 names of four characters and 256 values. No autoscaler: it would have a Pod run.
    let env: Map<_, _> = (0..256).map(|number| (format!("N{number:03}"), json!(long(124, number)))).collect();
    json!({
        "image": format!("registry.example.com/{}", long(1000, 0)), "replicas": 0, "env": env,
    })
}

fn tenant(_: usize) -> Value {
    let owner = |number: usize| json!({"kind": "User", "name": long(253, number)});
    let resources = |prefix: &str| {
        let of = |number| (format!("{prefix}/{}", long(63, number)), json!("1000000000000000"));
        Value::Object((0..64).map(of).collect::<Map<_, _>>())
    };
    let labels: Map<_, _> = (0..64).map(|number| (long(63, number), json!(long(63, number)))).collect();
    json!({
        "owners": (0..32).map(owner).collect::<Vec<_>>(), "quota": resources("count"),
        "limits": {"max": resources("example.com")}, "labels": labels, "isolation": "DenyIngress",
    })
}
