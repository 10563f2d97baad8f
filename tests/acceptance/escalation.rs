//! An object of ours gives its author no more rights than they have: each attack is made by a user with few rights. With
//! webhooks the API server refuses it; without, the object says that it is out of reach.

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use leasehold_cluster::{Cluster, eventually};
use serde_json::{Value, json};

use crate::{
    composed::is,
    shipped::{Installation, NAMESPACE},
    stage::{PATIENCE, ensure, tell},
    webhooks::Stage,
};

const WALLS: [(&str, &str, &str); 6] = [
    ("v1", "ResourceQuota", "resourcequotas"),
    ("v1", "Secret", "secrets"),
    ("v1", "LimitRange", "limitranges"),
    ("v1", "Service", "services"),
    ("apps/v1", "Deployment", "deployments.apps"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies.networking.k8s.io"),
];

/// A ServiceAccount with its own token.
struct User {
    client: Client,
}

impl User {
    async fn of(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(cluster.service_account_kubeconfig(namespace, name).await?)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)? })
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap_or_default());
        let resource = ApiResource::from_gvk(&kind);
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    async fn create(&self, object: &Value) -> Result<()> {
        let parsed: DynamicObject = serde_json::from_value(object.clone())?;
        self.api(object).create(&PostParams::default(), &parsed).await.with_context(|| object.to_string())?;
        Ok(())
    }

    async fn patch(&self, object: &Value, patch: Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        self.api(object).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn delete(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        self.api(object).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A request was refused, with these words.
fn refused(outcome: Result<()>, what: &str, says: &[&str]) -> Result<()> {
    let said = outcome.err().map(|error| format!("{error:#}")).with_context(|| format!("{what} was taken"))?;
    ensure(says.iter().all(|words| said.contains(words)), || format!("{what}: expected {says:?} in {said}"))
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn ours(kind: &str, namespace: Option<&str>, name: &str, spec: Value) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

fn policy(name: &str, version: &str, kind: &str) -> Value {
    let target = json!({"apiVersion": version, "kind": kind});
    ours("ExpiryPolicy", Some("team-a"), name, json!({"target": target, "ttl": "1m", "dryRun": false}))
}

fn propagation(name: &str, source: (&str, &str, &str), targets: Value) -> Value {
    let (kind, namespace, of) = source;
    let source = json!({"kind": kind, "namespace": namespace, "name": of});
    ours("Propagation", None, name, json!({"source": source, "targets": targets}))
}

fn schedule(namespace: &str, name: &str, deployment: &str) -> Value {
    let days = json!(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]);
    let window = |from: &str, to: &str| json!({"days": days, "from": from, "to": to, "replicas": 1});
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment});
    let windows = json!([window("00:00", "12:00"), window("12:00", "00:00")]);
    ours("ScaleSchedule", Some(namespace), name, json!({"targetRef": target, "windows": windows}))
}

/// What grants `rules` to a ServiceAccount, in its namespace or, without one, everywhere.
fn grants(namespace: Option<&str>, name: &str, user: &str, rules: Value) -> [Value; 2] {
    let prefix = if namespace.is_some() { "" } else { "Cluster" };
    let object = |kind: &str| {
        let mut metadata = json!({"name": name});
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{prefix}{kind}"), "metadata": metadata})
    };
    let (mut role, mut binding) = (object("Role"), object("RoleBinding"));
    role["rules"] = rules;
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{prefix}Role"), "name": name});
    binding["subjects"] = json!([{"kind": "ServiceAccount", "name": user, "namespace": "team-a"}]);
    [role, binding]
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

async fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    for object in objects {
        cluster.apply(&object.to_string()).await?;
    }
    Ok(())
}

/// Two namespaces, and a team that may write our kinds, and ConfigMaps in the first of the two: no more.
async fn team(cluster: &Cluster) -> Result<User> {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "team", "namespace": "team-a"}});
    apply(cluster, &[namespace("team-a"), namespace("team-b"), account]).await?;
    let config_maps = ["get", "list", "create", "update", "patch", "delete"];
    let own = json!([rule("leasehold.dev", &["*"], &["*"]), rule("", &["configmaps"], &config_maps)]);
    apply(cluster, &grants(Some("team-a"), "team", "team", own)).await?;
    let propagations = json!([rule("leasehold.dev", &["propagations", "tenants"], &["*"])]);
    apply(cluster, &grants(None, "team-a-propagations", "team", propagations)).await?;
    let team = User::of(cluster, "team-a", "team").await?;
    let ours = [policy("x", "v1", "Pod"), propagation("x", ("ConfigMap", "x", "x"), json!({}))];
    let may = || async {
        anyhow::Ok(
            try_join_all(ours.iter().map(|it| async { team.api(it).list(&ListParams::default()).await })).await.is_ok(),
        )
    };
    eventually("the team may write our kinds", PATIENCE, may, |may| *may).await?;
    Ok(team)
}

fn config_map(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}, "data": data})
}

impl Stage {
    async fn object(&self, path: &[&str]) -> Result<Value> {
        let text = self.cluster.kubectl(&[&["get", "-o", "json"], path].concat()).await?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn becomes(&self, what: &str, path: &[&str], is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(what, PATIENCE, || self.object(path), is_so).await
    }

    /// What is granted is seen by the authorizer a moment later.
    async fn is_taken(&self, user: &User, object: &Value) -> Result<()> {
        let take = || async { anyhow::Ok(user.create(object).await.err().map(|error| format!("{error:#}"))) };
        eventually(&format!("{object} is taken"), PATIENCE, take, Option::is_none).await?;
        Ok(())
    }
}

/// Each attack is made as a team with rights on our kinds.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_gives_its_author_no_more_than_they_have() -> Result<()> {
    let stage = Stage::set().await?;
    stage.settles("the first certificate is trusted", None).await?;
    let team = team(&stage.cluster).await?;
    let source = config_map("team-a", "settings", json!({"whose": "team"}));
    apply(&stage.cluster, &[source]).await?;
    takes_no_walls_down(&stage, &team).await?;
    writes_nowhere_else(&stage, &team).await?;
    makes_no_ingress(&stage, &team).await?;
    scales_nothing(&stage, &team).await?;
    is_trusted_with_tenants(&team).await?;
    is_left_alone_otherwise(&stage, &team).await?;
    an_administrator_may(&stage).await?;
    costs(&stage).await?;
    without_an_answer_nothing_is_stored(&stage).await
}

/// A policy of each type that a team must not delete.
async fn takes_no_walls_down(stage: &Stage, team: &User) -> Result<()> {
    for (version, kind, resource) in WALLS {
        let wall = policy(&kind.to_lowercase(), version, kind);
        let says =
            format!("user system:serviceaccount:team-a:team may not list, delete {resource} in namespace team-a");
        refused(team.create(&wall).await, kind, &[&says, "ask for a Role there with the rule", "escalation: Trust"])?;
    }
    // What they may delete themselves, a policy may for them; and no change makes more of it.
    let good = policy("good", "v1", "ConfigMap");
    team.create(&good).await?;
    stage
        .becomes("it is reconciled", &["expirypolicy", "good", "-n", "team-a"], is("Ready", "True", "AsExpected"))
        .await?;
    let more = team.patch(&good, json!({"spec": {"target": {"kind": "Secret"}}})).await;
    refused(more, "an update", &["may not list, delete secrets in namespace team-a"])?;
    let odd = policy("odd", "example.com/v1", "Odd");
    refused(team.create(&odd).await, "a type that is not served", &["does not serve example.com/v1 Odd"])?;
    // Whose right is there, and is taken away later: the object stays, and no change of it is taken any more.
    let [role, binding] =
        grants(Some("team-a"), "secrets", "team", json!([rule("", &["secrets"], &["list", "delete"])]));
    apply(&stage.cluster, &[role, binding]).await?;
    let mut dry = policy("secrets", "v1", "Secret");
    dry["spec"]["dryRun"] = json!(true);
    stage.is_taken(team, &dry).await?;
    stage.cluster.kubectl(&["delete", "rolebinding", "secrets", "-n", "team-a"]).await?;
    let change = || async {
        let outcome = team.patch(&dry, json!({"spec": {"dryRun": false}})).await;
        let wet = outcome.is_ok();
        if wet {
            team.patch(&dry, json!({"spec": {"dryRun": true}})).await?;
        }
        anyhow::Ok(wet)
    };
    eventually("a change is refused when the right has gone", PATIENCE, change, |taken| !taken).await?;
    stage.object(&["expirypolicy", "secrets", "-n", "team-a"]).await?;
    team.delete(&dry).await
}

/// Overwriting in kube-system, reading what is not theirs, and the replicas' own configuration.
async fn writes_nowhere_else(stage: &Stage, team: &User) -> Result<()> {
    let victim = config_map("kube-system", "settings", json!({"whose": "system"}));
    apply(&stage.cluster, &[victim]).await?;
    let settings = ("ConfigMap", "team-a", "settings");
    let mut over = propagation("over", settings, json!({"namespaces": ["kube-system"]}));
    over["spec"]["onConflict"] = json!("Overwrite");
    let says = "may not create, patch, delete configmaps in namespace kube-system";
    refused(team.create(&over).await, "Overwrite in kube-system", &[says])?;
    let all = propagation("all", settings, json!({"namespaceSelector": {}}));
    let says = "may not create, patch, delete configmaps in all namespaces";
    refused(team.create(&all).await, "all namespaces", &[says, "ask for a ClusterRole with the rule"])?;
    let secret = propagation("secret", ("Secret", NAMESPACE, "leasehold-webhooks"), json!({"namespaces": ["team-a"]}));
    refused(team.create(&secret).await, "a Secret of others", &["of the replicas or of their Leases"])?;
    let secret = propagation("secret", ("Secret", "team-b", "x"), json!({"namespaces": ["team-a"]}));
    let says = ["get secrets x in namespace team-b", "create, patch, delete secrets in namespace team-a"];
    refused(team.create(&secret).await, "a Secret of others", &says)?;

    let good = propagation("good", settings, json!({"namespaces": ["team-b"]}));
    refused(team.create(&good).await, "team-b", &["configmaps in namespace team-b"])?;
    let config_maps = json!([rule("", &["configmaps"], &["create", "patch", "delete"])]);
    apply(&stage.cluster, &grants(Some("team-b"), "team", "team", config_maps)).await?;
    stage.is_taken(team, &good).await?;
    stage.becomes("it is copied", &["propagation", "good"], is("Ready", "True", "AsExpected")).await?;
    let wider = team.patch(&good, json!({"spec": {"targets": {"namespaces": ["team-b", "kube-system"]}}})).await;
    refused(wider, "a wider Propagation", &["configmaps in namespace kube-system"])?;
    team.delete(&good).await?;
    let system = stage.object(&["configmap", "settings", "-n", "kube-system"]).await?;
    ensure(system["data"] == json!({"whose": "system"}), || format!("it was written: {system}"))
}

/// An Ingress for a user without rights on Ingresses.
async fn makes_no_ingress(stage: &Stage, team: &User) -> Result<()> {
    let app = |name: &str, spec: Value| ours("WebApp", Some("team-a"), name, spec);
    let plain = app("plain", json!({"image": "x", "replicas": 0}));
    let says =
        ["create, patch, delete services in namespace team-a", "create, patch, delete deployments.apps in namespace"];
    refused(team.create(&plain).await, "a WebApp", &says)?;
    let write = ["create", "patch", "delete"];
    let rules = json!([rule("", &["services"], &write), rule("apps", &["deployments"], &write)]);
    apply(&stage.cluster, &grants(Some("team-a"), "apps", "team", rules)).await?;
    stage.is_taken(team, &plain).await?;
    stage
        .becomes("its children come", &["webapp", "plain", "-n", "team-a"], is("Applied", "True", "AsExpected"))
        .await?;
    let says = "may not create, patch, delete ingresses.networking.k8s.io in namespace team-a";
    let host = json!({"image": "x", "replicas": 0, "host": "shop.example.com"});
    let host = app("host", host);
    refused(team.create(&host).await, "a host of another", &["the namespace team-a is not for the host"])?;
    let own = "webapp.leasehold.dev/hosts=shop.example.com";
    stage.cluster.kubectl(&["annotate", "namespace", "team-a", own]).await?;
    let why =
        || async { anyhow::Ok(team.create(&host).await.err().map(|error| format!("{error:#}")).unwrap_or_default()) };
    eventually("a WebApp with a host of its own is refused", PATIENCE, why, |why| why.contains(says)).await?;
    refused(team.patch(&plain, json!({"spec": {"host": "shop.example.com"}})).await, "a host", &[says])?;
    let autoscale = json!({"spec": {"autoscale": {"min": 1, "max": 2, "cpu": 50}}});
    refused(team.patch(&plain, autoscale).await, "an autoscaler", &["horizontalpodautoscalers.autoscaling"])?;
    // Each change of the spec is theirs who make it: here one with rights on WebApps alone.
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "other", "namespace": "team-a"}});
    apply(&stage.cluster, &[account]).await?;
    let rules = json!([rule("leasehold.dev", &["webapps"], &["*"])]);
    apply(&stage.cluster, &grants(Some("team-a"), "other", "other", rules)).await?;
    let other = User::of(&stage.cluster, "team-a", "other").await?;
    let labelled = || async {
        anyhow::Ok(
            other.patch(&plain, json!({"metadata": {"labels": {"a": "b"}}})).await.err().map(|error| error.to_string()),
        )
    };
    eventually("a label is no change of what is done", PATIENCE, labelled, Option::is_none).await?;
    let image = other.patch(&plain, json!({"spec": {"image": "y"}})).await;
    refused(image, "an image", &["user system:serviceaccount:team-a:other may not", "deployments.apps"])?;
    other.delete(&plain).await
}

async fn scales_nothing(stage: &Stage, team: &User) -> Result<()> {
    let labels = json!({"app": "web"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "team-a"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "web"}]},
        }},
    });
    apply(&stage.cluster, &[deployment]).await?;
    let always = schedule("team-a", "always", "web");
    let says = "may not get, patch deployments/scale.apps web in namespace team-a";
    refused(
        team.create(&always).await,
        "a schedule",
        &[says, "resources: [deployments/scale]", "resourceNames: [web]"],
    )?;
    // By the name of the target, as a role may have it; and what the kind writes itself is not refused.
    let mut scale = rule("apps", &["deployments/scale"], &["get", "patch"]);
    scale["resourceNames"] = json!(["web"]);
    apply(&stage.cluster, &grants(Some("team-a"), "scale", "team", json!([scale]))).await?;
    stage.is_taken(team, &always).await?;
    let path = ["scaleschedule", "always", "-n", "team-a"];
    stage.becomes("it is held and told", &path, is("Ready", "True", "AsExpected")).await?;
    let other = team.patch(&always, json!({"spec": {"targetRef": {"name": "other"}}})).await;
    refused(other, "another target", &["deployments/scale.apps other in namespace team-a"])?;
    // So it is in the other version, and while the schedule goes.
    let mut second = always.clone();
    second["apiVersion"] = json!("leasehold.dev/v1beta1");
    let other = team.patch(&second, json!({"spec": {"scaleTargetRef": {"name": "other"}}})).await;
    refused(other, "another target by v1beta1", &["deployments/scale.apps other in namespace team-a"])?;
    let hold = json!({"metadata": {"finalizers": ["leasehold.dev/scaleschedule", "example.com/held"]}});
    team.patch(&always, hold).await?;
    team.delete(&always).await?;
    let other = team.patch(&always, json!({"spec": {"targetRef": {"name": "other"}}})).await;
    refused(other, "another target of one that goes", &["deployments/scale.apps other in namespace team-a"])?;
    team.patch(&always, json!({"metadata": {"finalizers": null}})).await
}

/// Tenants are `escalation: Trust`, which config/leasehold.yaml says on purpose; no label of one frees its Pods, or has copied
/// into its namespace what is meant for others.
async fn is_trusted_with_tenants(team: &User) -> Result<()> {
    for label in ["pod-security.kubernetes.io/enforce", "leasehold.dev/shard"] {
        let labels = json!({label: "privileged"});
        let free = ours("Tenant", None, "free", json!({"labels": labels}));
        let says = "spec.labels: labels of kubernetes.io, k8s.io and leasehold.dev are the platform's";
        refused(team.create(&free).await, label, &[says])?;
    }
    let tenant = ours("Tenant", None, "iris", json!({"quota": {"pods": "3"}}));
    team.create(&tenant).await?;
    team.delete(&tenant).await
}

async fn is_left_alone_otherwise(stage: &Stage, team: &User) -> Result<()> {
    let good = policy("good", "v1", "ConfigMap");
    team.patch(&good, json!({"metadata": {"annotations": {"a": "b"}}})).await?;
    team.delete(&good).await?;
    // Of all that was refused, nothing is there.
    let policies = stage.object(&["expirypolicies", "-A"]).await?;
    ensure(policies["items"] == json!([]), || policies.to_string())
}

/// Who has all rights may have all of it done, as far as the kind's account may; the replicas' namespace apart.
async fn an_administrator_may(stage: &Stage) -> Result<()> {
    let own = propagation("own", ("ConfigMap", "team-a", "settings"), json!({"namespaces": [NAMESPACE]}));
    refused(apply(&stage.cluster, &[own]).await, "the replicas' namespace", &["of the replicas or of their Leases"])?;
    // What one kind was granted is of no use to another.
    for (version, kind, _) in WALLS {
        let name = kind.to_lowercase();
        apply(&stage.cluster, &[policy(&name, version, kind)]).await?;
        let path = ["expirypolicy", &name, "-n", "team-a"];
        let told = stage.becomes(&format!("{kind} is refused"), &path, is("Ready", "False", "Forbidden")).await?;
        ensure(told.to_string().contains("leasehold-expirypolicy"), || format!("it names the account: {told}"))?;
    }
    // A selector of all reaches all but that namespace, and overwrites where that is asked for.
    let mut all = propagation("all", ("ConfigMap", "team-a", "settings"), json!({"namespaceSelector": {}}));
    all["spec"]["onConflict"] = json!("Overwrite");
    apply(&stage.cluster, &[all]).await?;
    let path = ["propagation", "all"];
    stage.becomes("policies keep it out of the system", &path, is("Applied", "False", "Forbidden")).await?;
    let label = "writable.leasehold.dev/leasehold-propagation=true";
    stage.cluster.kubectl(&["label", "namespace", "kube-system", "kube-public", "kube-node-lease", label]).await?;
    stage.becomes("it is everywhere", &path, is("Ready", "True", "AsExpected")).await?;
    let copies = stage.api("v1", "ConfigMap", Some(NAMESPACE));
    ensure(copies.get_opt("settings").await?.is_none(), || "it is in the replicas' namespace".to_owned())?;
    let system = stage.object(&["configmap", "settings", "-n", "kube-system"]).await?;
    ensure(system["data"]["whose"] == "team", || format!("{system}"))?;
    stage.cluster.kubectl(&["delete", "propagation", "all"]).await?;

    // The type of a Secret cannot be changed: a copy of another type is made anew.
    let secret = |type_: &str| {
        let data = json!({"username": "u", "password": "p"});
        json!({"apiVersion": "v1", "kind": "Secret", "type": type_, "metadata": {"name": "key", "namespace": "team-a"}, "stringData": data})
    };
    apply(
        &stage.cluster,
        &[secret("Opaque"), propagation("key", ("Secret", "team-a", "key"), json!({"namespaces": ["team-b"]}))],
    )
    .await?;
    let secrets = stage.api("v1", "Secret", Some("team-b"));
    let is_of = |type_: &'static str| {
        move |copy: &Option<DynamicObject>| copy.as_ref().is_some_and(|copy| copy.data["type"] == type_)
    };
    eventually("the Secret is copied", PATIENCE, || secrets.get_opt("key"), is_of("Opaque")).await?;
    stage.cluster.kubectl(&["delete", "secret", "key", "-n", "team-a"]).await?;
    apply(&stage.cluster, &[secret("kubernetes.io/basic-auth")]).await?;
    eventually("it has the new type", PATIENCE, || secrets.get_opt("key"), is_of("kubernetes.io/basic-auth")).await?;
    stage.cluster.kubectl(&["delete", "propagation", "key"]).await?;
    Ok(())
}

/// What it takes an author longer to be asked about; a Tenant, of which nothing is asked, takes two webhooks.
async fn costs(stage: &Stage) -> Result<()> {
    let metadata = json!({"name": "cost", "namespace": "team-a"});
    for (kind, spec) in [
        ("Tenant", json!({})),
        ("ExpiryPolicy", json!({"target": {"apiVersion": "v1", "kind": "ConfigMap"}, "ttl": "1h"})),
        ("WebApp", json!({"image": "x", "host": "shop.example.com"})),
    ] {
        let mut object = ours(kind, Some("team-a"), "cost", spec);
        if kind == "Tenant" {
            object["metadata"] = json!({"name": "cost"});
        } else {
            object["metadata"] = metadata.clone();
        }
        let api = stage.api("leasehold.dev/v1alpha1", kind, object["metadata"]["namespace"].as_str());
        let parsed: DynamicObject = serde_json::from_value(object)?;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let mut took = Vec::new();
        for _ in 0..50 {
            #[expect(clippy::disallowed_methods, reason = "how long a request takes")]
            let began = std::time::Instant::now();
            api.create(&dry, &parsed).await?;
            took.push(began.elapsed());
        }
        took.sort();
        tell(&format!("a creation of a {kind}: p50 {:?}, p90 {:?}, longest {:?}", took[25], took[45], took[49]));
    }
    Ok(())
}

/// Where the replicas may not ask, nothing is stored, an administrator's objects neither.
async fn without_an_answer_nothing_is_stored(stage: &Stage) -> Result<()> {
    stage.cluster.kubectl(&["delete", "clusterrolebinding", "leasehold-access-reviews"]).await?;
    let asks = || async {
        let outcome = apply(&stage.cluster, &[policy("unasked", "v1", "ConfigMap")]).await;
        if outcome.is_ok() {
            stage.cluster.kubectl(&["delete", "expirypolicy", "unasked", "-n", "team-a"]).await?;
        }
        anyhow::Ok(outcome.err().map(|error| format!("{error:#}")))
    };
    let is_told = |said: &Option<String>| {
        said.as_ref().is_some_and(|said| said.contains("grant its account `create` on subjectaccessreviews"))
    };
    eventually("what cannot be asked about is refused", PATIENCE, asks, is_told).await?;
    Ok(())
}

/// That webhooks are served lifts no limit: the API server asks because of its configuration, which may not be there.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_while_the_api_server_does_not_ask() -> Result<()> {
    let configuration = "validatingwebhookconfiguration/leasehold-webhooks";
    let stage = Stage::set_without(&[configuration]).await?;
    let team = team(&stage.cluster).await?;
    for name in ["first", "second"] {
        let source = config_map("team-a", name, json!({"whose": "team"}));
        let victim = config_map("kube-system", name, json!({"whose": "system"}));
        apply(&stage.cluster, &[source, victim]).await?;
    }
    let over = |name: &str, target: &str| {
        let mut over = propagation(name, ("ConfigMap", "team-a", name), json!({"namespaces": [target]}));
        over["spec"]["onConflict"] = json!("Overwrite");
        over
    };
    let out_of_reach = is("SpecValid", "False", "OutOfReach");
    is_limited(&stage, &team, &over("first", "kube-system")).await?;
    stage.guarded("0").await?;

    // An administrator's object waits as well, and is carried out when the API server asks.
    let mut good = over("first", "team-b");
    good["metadata"]["name"] = json!("good");
    apply(&stage.cluster, &[good]).await?;
    stage.becomes("it is out of reach", &["propagation", "good"], &out_of_reach).await?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/webhooks/objects/configurations.yaml");
    stage.cluster.kubectl(&["apply", "-f", manifest]).await?;
    stage.becomes("it is carried out", &["propagation", "good"], is("Ready", "True", "AsExpected")).await?;
    stage.guarded("1").await?;
    let says = "may not create, patch, delete configmaps in namespace kube-system";
    refused(team.create(&over("second", "kube-system")).await, "Overwrite in kube-system", &[says])?;

    stage.cluster.kubectl(&["delete", configuration]).await?;
    stage.becomes("it is out of reach again", &["propagation", "good"], &out_of_reach).await?;
    stage.guarded("0").await?;
    is_limited(&stage, &team, &over("second", "kube-system")).await?;
    for pod in stage.all("/shards").await? {
        ensure(pod.contains("there is no ValidatingWebhookConfiguration leasehold-webhooks"), || pod)?;
    }
    Ok(())
}

/// An object of the team is stored, and does nothing.
async fn is_limited(stage: &Stage, team: &User, object: &Value) -> Result<()> {
    team.create(object).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let what = format!("{name} is out of reach");
    let told = stage.becomes(&what, &["propagation", name], is("SpecValid", "False", "OutOfReach")).await?;
    let says = "spec.targets.namespaces: the API server does not ask the webhooks about every object of this kind";
    ensure(told["status"].to_string().contains(says), || format!("{told}"))?;
    let victim = stage.object(&["configmap", name, "-n", "kube-system"]).await?;
    ensure(victim["data"] == json!({"whose": "system"}), || format!("it was written: {victim}"))?;
    // What was stored unasked would be carried out when the API server asks again.
    team.delete(object).await
}

impl Stage {
    /// What every replica shows of Propagations.
    async fn guarded(&self, value: &str) -> Result<()> {
        let line = format!("leasehold_webhook_guarded{{kind=\"Propagation.leasehold.dev\"}} {value}");
        let shows = |pages: &Vec<String>| !pages.is_empty() && pages.iter().all(|page| page.contains(&line));
        eventually(&line, PATIENCE, || self.all("/metrics"), shows).await?;
        Ok(())
    }
}

/// The same team where no webhooks are served: on the shipped installation, which [`crate::shipped`] has installed.
pub async fn without_webhooks(installation: &Installation) -> Result<()> {
    let cluster = installation.cluster;
    let team = team(cluster).await?;
    let source = config_map("team-a", "settings", json!({"whose": "team"}));
    let victim = config_map("kube-system", "settings", json!({"whose": "system"}));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wall", "namespace": "team-a"}});
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "wall", "namespace": "team-a"},
        "spec": {"hard": {"pods": "1"}},
    });
    apply(cluster, &[source, victim, secret, quota]).await?;
    let out_of_reach = is("SpecValid", "False", "OutOfReach");
    let told = |object: &Value, says: &'static str| {
        let text = object["status"].to_string();
        ensure(text.contains(says) && text.contains("serve webhooks (docs/webhooks.md)"), || {
            format!("{says}: {object}")
        })
    };
    for (version, kind, _) in WALLS {
        let name = kind.to_lowercase();
        team.create(&policy(&name, version, kind)).await?;
        let path = ["expirypolicy", &name, "-n", "team-a"];
        let policy = installation.becomes(&format!("a policy of {kind} is out of reach"), &path, &out_of_reach).await?;
        told(&policy, "is not in withoutWebhooks.types of the configuration, which lists Job.batch, Pod, ConfigMap")?;
    }
    let settings = ("ConfigMap", "team-a", "settings");
    let mut over = propagation("over", settings, json!({"namespaceSelector": {}}));
    over["spec"]["onConflict"] = json!("Overwrite");
    for (object, says) in [
        (over, "spec.onConflict: no webhooks are served here: write Skip"),
        (propagation("secret", ("Secret", "team-a", "wall"), json!({"namespaces": ["team-b"]})), "Secret is not in"),
        (
            propagation("system", settings, json!({"namespaces": ["kube-public"]})),
            "kube-public is a namespace of the system",
        ),
        (
            propagation("reads", ("ConfigMap", "kube-system", "settings"), json!({"namespaces": ["team-a"]})),
            "spec.source.namespace",
        ),
    ] {
        team.create(&object).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let stored =
            installation.becomes(&format!("{name} is out of reach"), &["propagation", name], &out_of_reach).await?;
        told(&stored, says)?;
    }
    // What a selector selects, it reaches but for the system and the replicas.
    for namespace in ["kube-public", NAMESPACE, "team-b"] {
        cluster.kubectl(&["label", "namespace", namespace, "reach=tried"]).await?;
    }
    team.create(&propagation("all", settings, json!({"namespaceSelector": {"matchLabels": {"reach": "tried"}}})))
        .await?;
    let all = installation.becomes("it is ready", &["propagation", "all"], is("Ready", "True", "AsExpected")).await?;
    ensure(all["status"]["targets"] == 1 && all["status"]["synced"] == 1, || all.to_string())?;
    installation.object(&["configmap", "settings", "-n", "team-b"]).await?;
    for namespace in ["kube-public", NAMESPACE] {
        cluster.kubectl(&["label", "namespace", namespace, "reach-"]).await?;
        let copies = installation.api("v1", "ConfigMap", Some(namespace));
        ensure(copies.get_opt("settings").await?.is_none(), || format!("there is a copy in {namespace}"))?;
    }
    let system = installation.object(&["configmap", "settings", "-n", "kube-system"]).await?;
    ensure(system["data"] == json!({"whose": "system"}), || format!("it was written: {system}"))?;
    apply(cluster, &[schedule("kube-system", "system", "coredns")]).await?;
    let path = ["scaleschedule", "system", "-n", "kube-system"];
    installation.becomes("a schedule of the system is out of reach", &path, &out_of_reach).await?;
    // What stood when the policies came stands a pass later.
    installation.object(&["resourcequota", "wall", "-n", "team-a"]).await?;
    installation.object(&["secret", "wall", "-n", "team-a"]).await?;

    cluster.kubectl(&["delete", "propagation", "over", "secret", "system", "reads", "all"]).await?;
    cluster.kubectl(&["delete", "scaleschedule", "system", "-n", "kube-system"]).await?;
    cluster.kubectl(&["delete", "configmap", "settings", "-n", "kube-system"]).await?;
    cluster.kubectl(&["delete", "namespace", "team-a", "team-b", "--wait=false"]).await?;
    Ok(())
}
