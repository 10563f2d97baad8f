//! Bad input for the kinds that are programs, row by row, on the shipped installation and with its own permissions.

use anyhow::{Context, Result};
use kube::api::DeleteParams;
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    composed::is,
    shipped::Installation,
    stage::{PATIENCE, ensure},
};

impl Installation {
    /// Applies an object that something is wrong with: it is refused at the door, or says so itself.
    async fn is_refused(&self, object: Value, condition: &'static str, reason: &'static str) -> Result<()> {
        let text = object.to_string();
        if self.cluster.apply(&text).await.is_err() {
            return Ok(());
        }
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str());
        let mut path = vec![kind, name.context("a name")?];
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            path.extend(["-n", namespace]);
        }
        self.becomes(&format!("{reason} is told of {text}"), &path, is(condition, "False", reason)).await?;
        Ok(())
    }

    /// Creates an object as a ServiceAccount that may write our kinds in its namespace and nothing else: this field is refused.
    async fn is_refused_to_a_team(&self, object: &Value, field: &str) -> Result<()> {
        let namespace = object["metadata"]["namespace"].as_str().context("a namespace")?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("object.json");
        std::fs::write(&file, object.to_string())?;
        let (team, file) = (format!("--as=system:serviceaccount:{namespace}:team"), file.display().to_string());
        let said = self.cluster.kubectl(&[&team, "create", "-f", &file]).await;
        let said = said.err().with_context(|| format!("{object} was taken"))?;
        let said = format!("{said:#}");
        ensure(said.contains(field) && said.contains("Invalid"), || format!("{field} of {object}: {said}"))
    }

    async fn apply_all(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.cluster.apply(&object.to_string()).await?;
        }
        Ok(())
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn config_map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}, "data": data})
}

fn ours(kind: &str, namespace: Option<&str>, name: &str, spec: &Value) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

pub async fn propagations(installation: &Installation) -> Result<()> {
    let propagation = |name: &str, kind: &str, source: &str, more: Value| {
        let mut spec = json!({
            "source": {"kind": kind, "namespace": "rows-home", "name": source},
            "targets": {"namespaces": ["rows-home", "rows-a", "rows-b", "rows-going"]},
        });
        spec.as_object_mut().into_iter().for_each(|spec| spec.extend(more.as_object().cloned().unwrap_or_default()));
        ours("Propagation", None, name, &spec)
    };
    installation.apply_all(&["rows-home", "rows-a", "rows-b", "rows-going"].map(namespace)).await?;
    // A namespace that is being deleted, for as long as something in it is held.
    let mut held = config_map("rows-going", "held", &json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    let foreign = config_map("rows-a", "settings", &json!({"whose": "mine"}));
    installation.apply_all(&[held, foreign]).await?;
    installation.cluster.kubectl(&["delete", "namespace", "rows-going", "--wait=false"]).await?;

    // Without its source there is nothing to copy.
    let path = ["propagation", "rows"];
    installation.apply_all(&[propagation("rows", "ConfigMap", "settings", json!({}))]).await?;
    installation.becomes("the source is missed", &path, is("Ready", "False", "SourceMissing")).await?;

    // With it: its own namespace is no target, one that goes is left alone, and what is not ours stays as it is.
    installation.apply_all(&[config_map("rows-home", "settings", &json!({"color": "blue"}))]).await?;
    let status = installation.becomes("one target fails", &path, is("Applied", "False", "Conflict")).await?;
    let failed = &status["status"]["failed"];
    ensure(*failed == json!([{"namespace": "rows-a", "reason": "Conflict"}]), || status.to_string())?;
    let data = |namespace: &'static str| async move {
        let copy = installation.object(&["configmap", "settings", "-n", namespace]).await?;
        anyhow::Ok(copy["data"].clone())
    };
    ensure(data("rows-a").await? == json!({"whose": "mine"}), || "what is not ours was taken".to_owned())?;
    ensure(data("rows-b").await? == json!({"color": "blue"}), || "the other target has no copy".to_owned())?;
    // Without webhooks, whether the author may overwrite it is not known.
    let over = propagation("rows", "ConfigMap", "settings", json!({"onConflict": "Overwrite"}));
    installation.apply_all(&[over]).await?;
    installation.becomes("it is not overwritten", &path, is("SpecValid", "False", "OutOfReach")).await?;
    ensure(data("rows-a").await? == json!({"whose": "mine"}), || "what is not ours was taken".to_owned())?;

    // Only some of its keys; a copy that somebody changes is set back.
    installation.apply_all(&[config_map("rows-home", "settings", &json!({"color": "blue", "secret": "x"}))]).await?;
    let keys = json!({"keys": ["color"], "targets": {"namespaces": ["rows-b"]}});
    installation.apply_all(&[propagation("rows", "ConfigMap", "settings", keys)]).await?;
    let patch = r#"{"data":{"color":"red"}}"#;
    installation
        .cluster
        .kubectl(&["patch", "configmap", "settings", "-n", "rows-b", "--type=merge", "-p", patch])
        .await?;
    let is_back = |data: &Value| *data == json!({"color": "blue"});
    eventually("the copy is set back, and has its keys only", PATIENCE, || data("rows-b"), is_back).await?;

    // A source that goes leaves its copies.
    installation.cluster.kubectl(&["delete", "configmap", "settings", "-n", "rows-home"]).await?;
    installation.becomes("the source is missed again", &path, is("Ready", "False", "SourceMissing")).await?;
    ensure(data("rows-b").await? == json!({"color": "blue"}), || "the copy is not kept".to_owned())?;

    installation.cluster.kubectl(&["delete", "propagation", "rows"]).await?;
    let release = r#"{"metadata":{"finalizers":null}}"#;
    installation
        .cluster
        .kubectl(&["patch", "configmap", "held", "-n", "rows-going", "--type=merge", "-p", release])
        .await?;
    Ok(())
}

pub async fn expiries(installation: &Installation) -> Result<()> {
    installation.apply_all(&[namespace("rows-expiry")]).await?;
    let policy = |name: &str, spec: Value| ours("ExpiryPolicy", Some("rows-expiry"), name, &spec);
    let config_maps = || json!({"apiVersion": "v1", "kind": "ConfigMap"});
    for (name, target, ttl) in [
        ("bad-duration", config_maps(), "soon"),
        ("too-short", config_maps(), "59s"),
        ("itself", json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "ExpiryPolicy"}), "1h"),
        ("namespaces", json!({"apiVersion": "v1", "kind": "Namespace"}), "1h"),
        ("definitions", json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}), "1h"),
        ("leases", json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}), "1h"),
    ] {
        let spec = json!({"target": target, "ttl": ttl});
        installation.is_refused(policy(name, spec), "SpecValid", "SpecInvalid").await?;
    }

    // A dry run only counts; what is protected stays in any case.
    let dated = |name: &str, more: Value| {
        let mut object = config_map("rows-expiry", name, &json!({}));
        object["metadata"]["labels"] = json!({"expires": "yes"});
        object["metadata"]["annotations"] = json!({"leasehold.dev/expires": "2020-01-01T00:00:00Z"});
        let annotations = object["metadata"]["annotations"].as_object_mut();
        annotations
            .into_iter()
            .for_each(|annotations| annotations.extend(more.as_object().cloned().unwrap_or_default()));
        object
    };
    installation.apply_all(&[dated("old", json!({})), dated("kept", json!({"example.com/keep": "true"}))]).await?;
    let spec = |dry_run: bool| {
        json!({
            "target": {"apiVersion": "v1", "kind": "ConfigMap", "selector": {"matchLabels": {"expires": "yes"}}},
            "from": "Annotation", "dryRun": dry_run, "protect": {"annotation": "example.com/keep"},
        })
    };
    let path = ["expirypolicy", "dated", "-n", "rows-expiry"];
    installation.apply_all(&[policy("dated", spec(true))]).await?;
    let counted = |policy: &Value| policy["status"]["matched"] == 2 && policy["status"]["expired"] == 1;
    installation.becomes("a dry run counts", &path, counted).await?;
    let api = installation.api("v1", "ConfigMap", Some("rows-expiry"));
    ensure(api.get_opt("old").await?.is_some(), || "a dry run has deleted".to_owned())?;
    installation.apply_all(&[policy("dated", spec(false))]).await?;
    eventually("what has expired is gone", PATIENCE, || api.get_opt("old"), Option::is_none).await?;
    ensure(api.get_opt("kept").await?.is_some(), || "what is protected was deleted".to_owned())?;
    installation.cluster.kubectl(&["delete", "namespace", "rows-expiry", "--wait=false"]).await?;
    Ok(())
}

pub async fn schedules(installation: &Installation) -> Result<()> {
    installation.apply_all(&[namespace("rows-clock")]).await?;
    let schedule = |name: &str, kind: &str, target: &str, zone: &str, windows: Value| {
        let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
        let spec = json!({
            "targetRef": {"apiVersion": version, "kind": kind, "name": target}, "timezone": zone, "windows": windows,
        });
        ours("ScaleSchedule", Some("rows-clock"), name, &spec)
    };
    let every_day = json!(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]);
    let window = |from: &str, to: &str| json!({"days": every_day, "from": from, "to": to, "replicas": 1});
    // Two that follow each other, so that one of them is active.
    let always = json!([window("00:00", "12:00"), window("12:00", "00:00")]);
    for (name, zone, windows) in [
        ("bad-zone", "Mars/Olympus", always.clone()),
        ("overlap", "UTC", json!([window("08:00", "12:00"), window("11:00", "13:00")])),
        ("no-time", "UTC", json!([window("08:00", "08:00")])),
        ("no-window", "UTC", json!([])),
    ] {
        let bad = schedule(name, "Deployment", "web", zone, windows);
        installation.is_refused(bad, "SpecValid", "SpecInvalid").await?;
    }

    // A name is no path, and the value of a label is no selector.
    let team = |kind: &str, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": "team", "namespace": "rows-clock"}});
        object
            .as_object_mut()
            .into_iter()
            .for_each(|object| object.extend(more.as_object().cloned().unwrap_or_default()));
        object
    };
    let rules = json!({"rules": [{"apiGroups": ["leasehold.dev"], "resources": ["scaleschedules", "expirypolicies"], "verbs": ["*"]}]});
    let binding = json!({
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "team"},
        "subjects": [{"kind": "ServiceAccount", "name": "team", "namespace": "rows-clock"}],
    });
    installation.apply_all(&[team("Role", rules), team("RoleBinding", binding)]).await?;
    for name in ["web/scale?x=", "../../victim/deployments/web", "..", "web#", "web%2Fscale"] {
        let path = schedule("path", "Deployment", name, "UTC", always.clone());
        installation.is_refused_to_a_team(&path, "spec.targetRef.name").await?;
    }
    let labels = json!({"x": "y,z=w"});
    let target = json!({"apiVersion": "v1", "kind": "ConfigMap", "selector": {"matchLabels": labels}});
    let policy = ours("ExpiryPolicy", Some("rows-clock"), "joined", &json!({"target": target, "ttl": "1h"}));
    installation.is_refused_to_a_team(&policy, "spec.target.selector.matchLabels.x").await?;

    let fixed = schedule("fixed", "ConfigMap", "web", "UTC", always.clone());
    installation.is_refused(fixed, "SpecValid", "TargetFixed").await?;
    let missing = schedule("missing", "Deployment", "missing", "UTC", always.clone());
    installation.is_refused(missing, "Applied", "TargetMissing").await?;

    // Two that scale the same would fight.
    let labels = json!({"app": "web"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "rows-clock"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "web"}]},
        }},
    });
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "namespace": "rows-clock"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
    });
    installation.apply_all(&[deployment, autoscaler]).await?;
    let rival = schedule("rival", "Deployment", "web", "UTC", always);
    installation.is_refused(rival, "Applied", "Conflict").await?;
    let replicas = installation.object(&["deployment", "web", "-n", "rows-clock"]).await?["spec"]["replicas"].clone();
    ensure(replicas == 0, || format!("scaled to {replicas} in spite of the autoscaler"))?;
    let schedules = installation.api("leasehold.dev/v1alpha1", "ScaleSchedule", Some("rows-clock"));
    schedules.delete("rival", &DeleteParams::default()).await?;
    eventually("a schedule that has saved nothing may go", PATIENCE, || schedules.get_opt("rival"), Option::is_none)
        .await?;
    installation.cluster.kubectl(&["delete", "namespace", "rows-clock", "--wait=false"]).await?;
    Ok(())
}
