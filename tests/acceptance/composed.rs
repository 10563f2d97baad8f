//! What is composed, on the shipped installation: children come, heal, go; what is not ours stays.

use anyhow::{Context, Result};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    shipped::{Installation, condition},
    stage::{COLLECTION, PATIENCE, ensure},
};

impl Installation {
    pub fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    pub async fn becomes(&self, what: &str, object: &[&str], is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(what, PATIENCE, || self.object(object), is_so).await
    }
}

pub fn is(type_: &'static str, status: &'static str, reason: &'static str) -> impl Fn(&Value) -> bool {
    move |object| {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let found = conditions.into_iter().flatten().find(|condition| condition["type"] == type_);
        found.is_some_and(|found| found["status"] == status && found["reason"] == reason)
    }
}

fn ready(object: &Value) -> bool {
    condition(object, "Ready").as_deref() == Some("True")
}

async fn patched(api: &Api<DynamicObject>, name: &str, patch: Value) -> Result<DynamicObject> {
    Ok(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
}

/// Comes back when it is deleted, as the same and not as another.
async fn heals(api: &Api<DynamicObject>, name: &str) -> Result<DynamicObject> {
    let before = api.get(name).await?;
    api.delete(name, &kube::api::DeleteParams::default()).await?;
    let again = || api.get_opt(name);
    let is_new = |now: &Option<DynamicObject>| now.as_ref().is_some_and(|now| now.uid() != before.uid());
    let now = eventually(&format!("{name} is back"), PATIENCE, again, is_new).await?.context("it is there")?;
    let applied = |object: &DynamicObject| object.annotations()["leasehold.dev/applied"].clone();
    ensure(applied(&now) == applied(&before), || format!("{before:?} {now:?}"))?;
    Ok(now)
}

pub async fn tenants(installation: &Installation) -> Result<()> {
    installation.sample("tenant.yaml").await?;
    let lilac = installation.becomes("the sample Tenant is ready", &["tenant", "lilac"], ready).await?;
    ensure(lilac["status"]["namespace"] == "lilac" && lilac["status"]["phase"] == "Active", || lilac.to_string())?;
    let stamped = lilac.pointer("/status/shard/lease").and_then(Value::as_str);
    ensure(stamped == Some("tenant.leasehold.dev"), || lilac.to_string())?;

    let quotas = installation.api("v1", "ResourceQuota", Some("lilac"));
    let quota = heals(&quotas, "tenant").await?;
    let owner = quota.owner_references().first().context("an owner")?;
    ensure(owner.controller == Some(true) && owner.kind == "Tenant" && owner.name == "lilac", || format!("{quota:?}"))?;
    ensure(quota.labels()["leasehold.dev/shard"] == "tenant.leasehold.dev", || format!("{quota:?}"))?;
    heals(&installation.api("networking.k8s.io/v1", "NetworkPolicy", Some("lilac")), "tenant").await?;

    // A field of ours that another writer changes is set back; a field of its own stays.
    patched(&quotas, "tenant", json!({"metadata": {"labels": {"own": "yes"}}, "spec": {"hard": {"pods": "9999"}}}))
        .await?;
    let reverted = |quota: &Value| quota["spec"]["hard"]["pods"] == "20";
    let quota = installation.becomes("the quota is as it was", &["quota", "tenant", "-n", "lilac"], reverted).await?;
    ensure(quota["metadata"]["labels"]["own"] == "yes", || quota.to_string())?;

    // What is no longer said goes, and a copy that somebody made of it stays.
    let bindings = installation.api("rbac.authorization.k8s.io/v1", "RoleBinding", Some("lilac"));
    let mut copy = bindings.get("tenant-owner-1").await?;
    copy.metadata = kube::core::ObjectMeta {
        name: Some("by-hand".to_owned()),
        labels: copy.metadata.labels.take(),
        annotations: copy.metadata.annotations.take(),
        ..Default::default()
    };
    bindings.create(&kube::api::PostParams::default(), &copy).await?;
    let tenants = installation.api("leasehold.dev/v1alpha1", "Tenant", None);
    let owners = json!([{"kind": "Group", "name": "lilac-developers"}]);
    patched(&tenants, "lilac", json!({"spec": {"owners": owners, "quota": null}})).await?;
    eventually("the second owner is gone", PATIENCE, || bindings.get_opt("tenant-owner-1"), Option::is_none).await?;
    eventually("the quota is gone", PATIENCE, || quotas.get_opt("tenant"), Option::is_none).await?;
    bindings.get("by-hand").await.context("the copy stays")?;
    bindings.get("tenant-owner-0").await.context("the first owner stays")?;

    // What a label could give away is not given: neither what its pods may do, nor what others copy to whom they select.
    for labels in [json!({"pod-security.kubernetes.io/enforce": "privileged"}), json!({"team": "orchid"})] {
        patched(&tenants, "lilac", json!({"spec": {"labels": null}})).await?;
        patched(&tenants, "lilac", json!({"spec": {"labels": labels}})).await?;
        let told = |tenant: &Value| ready(tenant) || is("Applied", "False", "Invalid")(tenant);
        let current = move |tenant: &Value| {
            tenant["status"]["observedGeneration"] == tenant["metadata"]["generation"] && told(tenant)
        };
        installation.becomes("the labels are judged", &["tenant", "lilac"], current).await?;
        let namespace = installation.object(&["namespace", "lilac"]).await?;
        let borne = &namespace["metadata"]["labels"];
        ensure(borne["pod-security.kubernetes.io/enforce"] == "baseline", || namespace.to_string())?;
        ensure(borne.get("team").is_none(), || namespace.to_string())?;
    }
    let root = "{apiVersion: v1, kind: Pod, metadata: {name: root, namespace: lilac}, spec: {containers: [{name: root, image: x, securityContext: {privileged: true}}]}}";
    let refused = installation.cluster.apply(root).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure(refused.contains("violates PodSecurity \"baseline"), || refused)?;

    // A namespace that is not ours is left alone, and said to be in the way.
    installation.cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: taken}}").await?;
    installation
        .cluster
        .apply("{apiVersion: leasehold.dev/v1alpha1, kind: Tenant, metadata: {name: taken}, spec: {}}")
        .await?;
    installation.becomes("the conflict is told", &["tenant", "taken"], is("Applied", "False", "ChildConflict")).await?;
    let namespace = installation.object(&["namespace", "taken"]).await?;
    ensure(namespace.pointer("/metadata/labels/leasehold.dev~1shard").is_none(), || namespace.to_string())?;
    installation.cluster.kubectl(&["delete", "tenant", "taken"]).await?;

    // The schema refuses what could never work, and what would give away more than it says.
    for (spec, why) in [
        ("{owners: [{kind: ServiceAccount, name: x}]}", "a ServiceAccount has a namespace"),
        ("{isolation: Sometimes}", "Unsupported value"),
    ] {
        let tenant =
            format!("{{apiVersion: leasehold.dev/v1alpha1, kind: Tenant, metadata: {{name: odd}}, spec: {spec}}}");
        let refused =
            installation.cluster.apply(&tenant).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure(refused.contains(why), || format!("{spec}: {refused}"))?;
    }
    Ok(())
}

/// A Tenant that says so leaves its namespace and the wall around it, and takes the rights of its owners along; who runs the
/// platform gives it back.
pub async fn kept_tenants(installation: &Installation) -> Result<()> {
    let iris = "{apiVersion: leasehold.dev/v1alpha1, kind: Tenant, metadata: {name: iris}, spec: {deletion: Keep, \
                quota: {pods: '5'}, owners: [{kind: User, name: ada}]}}";
    installation.cluster.apply(iris).await?;
    installation.becomes("the Tenant is ready", &["tenant", "iris"], ready).await?;
    let data = "{apiVersion: v1, kind: ConfigMap, metadata: {name: precious, namespace: iris}, data: {a: b}}";
    installation.cluster.apply(data).await?;
    let namespaces = installation.api("v1", "Namespace", None);
    let before = namespaces.get("iris").await?;
    installation.cluster.kubectl(&["delete", "tenant", "iris"]).await?;
    let after = namespaces.get("iris").await?;
    ensure(after.uid() == before.uid() && after.metadata.deletion_timestamp.is_none(), || format!("{after:?}"))?;
    ensure(!format!("{after:?}").contains("leasehold.dev/owner"), || format!("it is not released: {after:?}"))?;
    for (version, kind, name) in [
        ("v1", "ResourceQuota", "tenant"),
        ("networking.k8s.io/v1", "NetworkPolicy", "tenant"),
        ("v1", "ConfigMap", "precious"),
    ] {
        let left = installation.api(version, kind, Some("iris")).get(name).await?;
        ensure(left.metadata.deletion_timestamp.is_none() && left.owner_references().is_empty(), || {
            format!("{left:?}")
        })?;
    }
    let bindings = installation.api("rbac.authorization.k8s.io/v1", "RoleBinding", Some("iris"));
    eventually("the rights go", COLLECTION, || bindings.get_opt("tenant-owner-0"), Option::is_none).await?;

    // Another Tenant of its name does not get it, but for whom it is given to.
    installation.cluster.apply(iris).await?;
    installation.becomes("it is told", &["tenant", "iris"], is("Applied", "False", "ChildConflict")).await?;
    for (kind, name) in [("namespace", "iris"), ("resourcequota", "tenant"), ("networkpolicy", "tenant")] {
        for (verb, mark) in
            [("label", "leasehold.dev/shard=tenant.leasehold.dev"), ("annotate", "leasehold.dev/owner=iris")]
        {
            installation.cluster.kubectl(&[verb, kind, name, mark, "-n", "iris"]).await?;
        }
    }
    installation.cluster.kubectl(&["annotate", "tenant", "iris", "leasehold.dev/requested-at=1"]).await?;
    installation.becomes("it has its namespace again", &["tenant", "iris"], ready).await?;
    ensure(namespaces.get("iris").await?.uid() == before.uid(), || "it was replaced".to_owned())?;
    let patch = json!({"spec": {"deletion": "Delete"}});
    patched(&installation.api("leasehold.dev/v1alpha1", "Tenant", None), "iris", patch).await?;
    let is_owned = |namespace: &Value| !namespace["metadata"]["ownerReferences"].is_null();
    installation.becomes("it goes with its Tenant", &["namespace", "iris"], is_owned).await?;
    installation.becomes("it is ready", &["tenant", "iris"], ready).await?;
    Ok(())
}

pub async fn web_apps(installation: &Installation) -> Result<()> {
    installation.sample("webapp.yaml").await?;
    let storefront = ["webapp", "storefront", "-n", "shop"];
    let shown =
        installation.becomes("the sample WebApp is applied", &storefront, is("Applied", "True", "AsExpected")).await?;
    ensure(shown["status"]["url"] == "http://shop.example.com/", || shown.to_string())?;
    // Nothing runs its image here.
    ensure(condition(&shown, "ChildrenReady").as_deref() == Some("Unknown"), || shown.to_string())?;
    let deployments = installation.api("apps/v1", "Deployment", Some("shop"));
    let deployment = deployments.get("storefront").await?;
    let container = &deployment.data["spec"]["template"]["spec"]["containers"][0];
    let env = json!([{"name": "LOG_LEVEL", "value": "info"}, {"name": "REGION", "value": "eu"}]);
    ensure(container["env"] == env && deployment.data["spec"]["replicas"] == 2, || format!("{deployment:?}"))?;

    are_let_in_anywhere(installation, &deployment).await?;

    let web_apps = installation.api("leasehold.dev/v1alpha1", "WebApp", Some("shop"));
    patched(&web_apps, "storefront", json!({"spec": {"replicas": 0, "host": null}})).await?;
    installation.becomes("with no pods wanted it is ready", &storefront, ready).await?;
    let ingresses = installation.api("networking.k8s.io/v1", "Ingress", Some("shop"));
    eventually("the Ingress is gone", PATIENCE, || ingresses.get_opt("storefront"), Option::is_none).await?;

    // An autoscaler's number is its own: ours stays until it has written one, and is not fought for then.
    patched(&web_apps, "storefront", json!({"spec": {"replicas": 4}})).await?;
    let scaled = |number: i64| move |deployment: &Value| deployment["spec"]["replicas"] == number;
    let path = ["deployment", "storefront", "-n", "shop"];
    installation.becomes("four pods are wanted", &path, scaled(4)).await?;
    patched(&web_apps, "storefront", json!({"spec": {"image": "nginx:1.30", "autoscale": {"max": 5}}})).await?;
    let scalers = installation.api("autoscaling/v2", "HorizontalPodAutoscaler", Some("shop"));
    eventually("the autoscaler is there", PATIENCE, || scalers.get_opt("storefront"), Option::is_some).await?;
    let with_image = |image: &'static str| {
        move |deployment: &Value| deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image
    };
    let deployment = installation.becomes("it is applied beside it", &path, with_image("nginx:1.30")).await?;
    ensure(scaled(4)(&deployment), || format!("it was set back: {deployment}"))?;
    let scale = json!({"spec": {"replicas": 3}});
    deployments.patch_scale("storefront", &PatchParams::default(), &Patch::Merge(scale)).await?;
    // A pass that has not seen the number yet writes the one before: what follows comes later on the same watch.
    let is_taken_up = |deployment: &Value| {
        scaled(3)(deployment) && deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
    };
    installation.becomes("its controller has taken that up", &path, is_taken_up).await?;
    patched(&web_apps, "storefront", json!({"spec": {"image": "nginx:1.31"}})).await?;
    let deployment = installation.becomes("it is applied after it", &path, with_image("nginx:1.31")).await?;
    ensure(scaled(3)(&deployment), || format!("the autoscaler was fought: {deployment}"))?;
    let service = installation.api("v1", "Service", Some("shop"));
    heals(&service, "storefront").await?;
    let replicas = &deployments.get("storefront").await?.data["spec"]["replicas"];
    ensure(*replicas == 3, || format!("{replicas}"))?;
    patched(&web_apps, "storefront", json!({"spec": {"autoscale": null, "replicas": 0}})).await?;
    installation.becomes("it is ready without", &storefront, ready).await?;
    Ok(())
}

/// The Pods of a WebApp keep the strictest standard, as the API server judges it, and have no token.
async fn are_let_in_anywhere(installation: &Installation, deployment: &DynamicObject) -> Result<()> {
    let strict = "{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}}";
    installation.cluster.apply(strict).await?;
    let pods = installation.api("v1", "Pod", Some("strict"));
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": deployment.data["spec"]["template"]["spec"],
    });
    let create = |pod: &Value| {
        let (pods, pod) = (pods.clone(), serde_json::from_value::<DynamicObject>(pod.clone()));
        async move { anyhow::Ok(pods.create(&dry_run(), &pod?).await.map_err(|error| error.to_string())) }
    };
    let made = eventually("its Pods are let in", PATIENCE, || create(&pod), Result::is_ok).await?;
    let volumes = made.map(|made| made.data["spec"]["volumes"].to_string()).unwrap_or_default();
    ensure(!volumes.contains("serviceAccountToken"), || format!("they have a token: {volumes}"))?;
    pod["spec"]["securityContext"] = json!({});
    pod["spec"]["containers"][0]["securityContext"] = json!({});
    let refused = create(&pod).await?.err().unwrap_or_default();
    ensure(refused.contains("violates PodSecurity \"restricted"), || {
        format!("the standard is not enforced: {refused}")
    })?;
    installation.cluster.kubectl(&["delete", "namespace", "strict", "--wait=false"]).await?;
    Ok(())
}

fn dry_run() -> kube::api::PostParams {
    kube::api::PostParams { dry_run: true, ..Default::default() }
}

/// The garbage collector takes what they own.
pub async fn leave_nothing_behind(installation: &Installation) -> Result<()> {
    for kind in ["tenants", "webapps"] {
        installation.cluster.kubectl(&["delete", kind, "--all", "-A"]).await?;
    }
    let namespaces = installation.api("v1", "Namespace", None);
    eventually("the tenant's namespace is gone", COLLECTION, || namespaces.get_opt("lilac"), Option::is_none).await?;
    let deployments = installation.api("apps/v1", "Deployment", Some("shop"));
    eventually("the Deployment is gone", COLLECTION, || deployments.get_opt("storefront"), Option::is_none).await?;
    Ok(())
}

/// A schedule whose window is now scales its target, remembers, and restores when it is deleted.
pub async fn schedules(installation: &Installation) -> Result<()> {
    installation.sample("scaleschedule.yaml").await?;
    installation
        .becomes("the sample ScaleSchedule is ready", &["scaleschedule", "reports", "-n", "nightly"], ready)
        .await?;
    installation.cluster.kubectl(&["delete", "scaleschedule", "reports", "-n", "nightly"]).await?;
    let deployments = installation.api("apps/v1", "Deployment", Some("nightly"));
    let scaled = json!({"spec": {"replicas": 3}});
    deployments.patch_scale("reports", &PatchParams::default(), &Patch::Merge(&scaled)).await?;
    // All day but for a minute that is not now: with a clock of its own, whatever the time is here.
    let all_day = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "ScaleSchedule", "metadata": {"name": "now", "namespace": "nightly"},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "reports"},
            "windows": [
                {"days": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], "from": "00:00", "to": "12:00", "replicas": 1},
                {"days": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], "from": "12:00", "to": "00:00", "replicas": 1},
            ],
        },
    });
    installation.cluster.apply(&all_day.to_string()).await?;
    let replicas = || async { anyhow::Ok(deployments.get("reports").await?.data["spec"]["replicas"].as_i64()) };
    eventually("it is scaled for the window", PATIENCE, replicas, |replicas| *replicas == Some(1)).await?;
    let schedule = installation.object(&["scaleschedule", "now", "-n", "nightly"]).await?;
    ensure(schedule["status"]["savedReplicas"] == 3, || schedule.to_string())?;
    installation.cluster.kubectl(&["delete", "scaleschedule", "now", "-n", "nightly"]).await?;
    ensure(replicas().await? == Some(3), || "what was there before the window is not restored".to_owned())
}
