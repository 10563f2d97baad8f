//! Kinds that are trusted with what people cannot lose: children that are kept, taken over, made anew, ordered; objects that
//! are paused. Through a takeover in the middle of each, and judged by the audit log.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy},
    core::GroupVersionKind,
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    program::{Said, leasehold},
    rows::writes,
    stage::{COLLECTION, PATIENCE, Stage, ensure, play},
    things::Things,
};

/// A kind of a composition, two replicas that have the rights that `leasehold rbac` prints for it, and no others.
pub async fn set<'a>(stage: &'a Stage, composition: &str) -> Result<Things<'a>> {
    configured(stage, composition).await?.with(2).await
}

pub async fn configured<'a>(stage: &'a Stage, composition: &str) -> Result<Things<'a>> {
    let things = Things::without_replicas(stage).await?;
    std::fs::write(
        things.folder.path().join("thing.yaml"),
        format!("apiVersion: leasehold.dev/v1alpha1\nkind: Composition\n{composition}"),
    )?;
    let folder: &Path = things.folder.path();
    let (name, namespace) = (format!("{}-state", stage.namespace), stage.namespace.as_str());
    let mut command = leasehold();
    command
        .args(["rbac", "--name", &name, "--namespace", namespace, "--service-account", "observer", "-f"])
        .arg(folder);
    let printed = Said::by(&mut command).await?;
    ensure(printed.code == Some(0), || format!("{printed:?}"))?;
    stage.cluster.apply(&printed.stdout).await?;
    // What the common stage grants beyond that is taken back.
    stage
        .cluster
        .kubectl(&["delete", "clusterrolebinding", &format!("{namespace}-children"), &format!("{namespace}-things")])
        .await?;
    Ok(things)
}

/// And the policies that `leasehold policies` prints: its accounts write no more than those let through.
async fn hold_to_policies(stage: &Stage, things: &Things<'_>) -> Result<()> {
    let mut command = leasehold();
    command.args(["policies", "--namespace", &stage.namespace, "--service-account", "observer", "-f"]);
    let printed = Said::by(command.arg(things.folder.path())).await?;
    ensure(printed.code == Some(0), || format!("{printed:?}"))?;
    stage.cluster.apply(&printed.stdout).await?;
    // What bears no mark is not for the account to write, until it bears them.
    let namespace = format!("{}-home", stage.namespace);
    let account = format!("system:serviceaccount:{}:observer", stage.namespace);
    let patch = |labels: &'static str| {
        let patch = format!("{{\"metadata\": {{\"labels\": {{{labels}}}}}}}");
        let (namespace, account) = (namespace.clone(), account.clone());
        async move {
            let arguments = [
                "patch",
                "configmap",
                "kube-root-ca.crt",
                "-n",
                &namespace,
                "--as",
                &account,
                "--type=merge",
                "--dry-run=server",
                "-p",
                &patch,
            ];
            anyhow::Ok(
                stage.cluster.kubectl(&arguments).await.err().map(|error| format!("{error:#}")).unwrap_or_default(),
            )
        }
    };
    let refused = |said: &String| said.contains("it is no child of an object of its kinds");
    eventually("the policies hold", PATIENCE, || patch("\"a\": \"b\""), refused).await?;
    Ok(())
}

/// The objects of a play.
pub struct World<'a> {
    pub things: &'a Things<'a>,
    pub stage: &'a Stage,
    /// The namespace of its objects.
    pub home: String,
}

impl World<'_> {
    pub fn of<'a>(stage: &'a Stage, things: &'a Things<'a>) -> World<'a> {
        World { things, stage, home: stage.namespace.clone() }
    }

    pub fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.stage.client.clone(), &self.home, &resource)
    }

    pub fn parents(&self) -> Api<DynamicObject> {
        self.api(&format!("{}/v1", self.things.group), "Thing")
    }

    pub fn maps(&self) -> Api<DynamicObject> {
        self.api("v1", "ConfigMap")
    }

    pub async fn put(&self, name: &str, spec: Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": self.home});
        let object = json!({"apiVersion": format!("{}/v1", self.things.group), "kind": "Thing", "metadata": metadata, "spec": spec});
        self.stage.cluster.apply(&object.to_string()).await?;
        Ok(())
    }

    async fn map(&self, name: &str, metadata: Value, data: Value) -> Result<String> {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(self.home);
        self.stage.cluster.apply(&object.to_string()).await?;
        uid(&self.maps(), name).await
    }

    async fn annotate(&self, name: &str, annotations: Value) -> Result<()> {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.parents().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Waits until a condition of the object is so; what it says.
    pub async fn says(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<Value> {
        let api = self.parents();
        let look = || async { anyhow::Ok(api.get(name).await?.data["status"]["conditions"].clone()) };
        let find = |conditions: &Value| {
            let all = conditions.as_array().into_iter().flatten();
            let is_it = |it: &&Value| it["type"] == type_ && it["status"] == status && it["reason"] == reason;
            all.into_iter().find(is_it).cloned()
        };
        let what = format!("{name} says {type_}={status}, {reason}");
        let said = eventually(&what, PATIENCE, look, |conditions| find(conditions).is_some()).await?;
        find(&said).context("a condition")
    }

    pub async fn ready(&self, name: &str) -> Result<()> {
        self.says(name, "Ready", "True", "AsExpected").await?;
        Ok(())
    }

    pub async fn hand_over(&self) -> Result<()> {
        let (kubeconfig, lease) = (self.stage.cluster.kubeconfig(), self.things.lease());
        let said = Said::by_hand_over(kubeconfig, &self.stage.namespace, &[&lease]).await?;
        ensure(said.code == Some(0), || format!("{said:?}"))
    }

    async fn value(&self, name: &str, value: &str) -> Result<DynamicObject> {
        let maps = self.maps();
        let is_so = |found: &Option<DynamicObject>| found.as_ref().is_some_and(|it| it.data["data"]["value"] == value);
        let found = eventually(&format!("{name} has {value}"), PATIENCE, || maps.get_opt(name), is_so).await?;
        found.context("it is there")
    }
}

pub async fn uid(api: &Api<DynamicObject>, name: &str) -> Result<String> {
    api.get(name).await?.uid().context("a uid")
}

pub async fn gone(api: &Api<DynamicObject>, name: &str) -> Result<()> {
    eventually(&format!("{name} is gone"), COLLECTION, || api.get_opt(name), Option::is_none).await?;
    Ok(())
}

/// Whether nothing on it says that it was ever a child.
pub fn is_released(object: &DynamicObject) -> bool {
    let metadata = serde_json::to_value(&object.metadata).unwrap_or_default();
    let marks =
        [metadata["labels"].to_string(), metadata["annotations"].to_string(), metadata["managedFields"].to_string()];
    object.owner_references().is_empty() && marks.iter().all(|part| !part.contains("leasehold"))
}

const KEPT: &str = r#"children:
- id: data
  deletion: Keep
  adopt: IfUnowned
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-data"}
    data: {value: "${parent.spec.value}"}
- id: extra
  includeWhen: ["${parent.spec.?extra.orValue(false)}"]
  deletion: "${parent.spec.?extraDeletion.orValue('Keep')}"
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-extra"}
- id: plain
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-plain"}
- id: taken
  includeWhen: ["${has(parent.spec.take)}"]
  adopt: Always
  deletion: Keep
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.spec.take}"}
    data: {value: "${parent.metadata.name}"}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_adopted_or_restored_is_never_deleted_and_never_overwritten_unannounced() -> Result<()> {
    // Apart: the policies are about the whole cluster. In the namespace of the replicas they let no children through.
    play(Stage::set_apart("kept", 1).await?, |stage| async move {
        let home = format!("{}-home", stage.namespace);
        stage.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {home}}}}}")).await?;
        let things = configured(stage, KEPT).await?;
        hold_to_policies(stage, &things).await?;
        let things = things.with(2).await?;
        let world = World { home, ..World::of(stage, &things) };
        let maps = world.maps();
        world.put("it", json!({"value": "1", "extra": true})).await?;
        world.ready("it").await?;
        let data = world.value("it-data", "1").await?;
        ensure(data.owner_references().is_empty(), || format!("no deletion may take it along: {data:?}"))?;
        ensure(!maps.get("it-plain").await?.owner_references().is_empty(), || "a common child is owned".to_owned())?;
        let precious = Patch::Merge(json!({"data": {"precious": "x"}}));
        maps.patch("it-data", &PatchParams::default(), &precious).await?;
        let (kept, extra) = (uid(&maps, "it-data").await?, uid(&maps, "it-extra").await?);

        // A child that the object does not ask for any more stays, and is no child; and a takeover makes nothing of it.
        world.put("it", json!({"value": "1", "extra": false})).await?;
        let released = |object: &DynamicObject| is_released(object);
        eventually("it is released", PATIENCE, || maps.get("it-extra"), released).await?;
        ensure(uid(&maps, "it-extra").await? == extra, || "it was replaced".to_owned())?;
        world.hand_over().await?;
        world.ready("it").await?;

        // Its object goes, in the common way and at once with all that it owns: the data stays.
        for policy in [PropagationPolicy::Background, PropagationPolicy::Foreground] {
            let parents = world.parents();
            let how = DeleteParams { propagation_policy: Some(policy.clone()), ..DeleteParams::default() };
            parents.delete("it", &how).await?;
            gone(&parents, "it").await?;
            gone(&maps, "it-plain").await?;
            let left = maps.get("it-data").await?;
            ensure(is_released(&left) && left.uid().as_ref() == Some(&kept), || format!("{policy:?}: {left:?}"))?;
            ensure(left.data["data"] == json!({"value": "1", "precious": "x"}), || format!("{left:?}"))?;
            // Its object comes back, and takes it up again, for nothing owns it.
            world.put("it", json!({"value": "1"})).await?;
            world.ready("it").await?;
            let again = maps.get("it-data").await?;
            ensure(!is_released(&again) && again.uid().as_ref() == Some(&kept), || format!("{again:?}"))?;
            ensure(again.data["data"]["precious"] == "x", || format!("{again:?}"))?;
            world.hand_over().await?;
        }

        // What a controller owns is left alone by one setting, and taken by the other, told first.
        let owner = world.map("owner", json!({}), json!({})).await?;
        let reference =
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": true}]);
        let owned = world.map("owned-data", json!({"ownerReferences": reference}), json!({"value": "theirs"})).await?;
        world.put("owned", json!({"value": "ours"})).await?;
        let said = world.says("owned", "Applied", "False", "ChildConflict").await?["message"].to_string();
        ensure(said.contains("is controlled by ConfigMap owner"), || said)?;
        world.hand_over().await?;
        ensure(maps.get("owned-data").await?.data["data"]["value"] == "theirs", || "it was overwritten".to_owned())?;
        let shared = world.map("shared", json!({"ownerReferences": reference}), json!({"own": "yes"})).await?;
        world.put("first", json!({"value": "1", "take": "shared"})).await?;
        world.ready("first").await?;
        let taken = world.value("shared", "first").await?;
        ensure(taken.uid() == Some(shared) && taken.data["data"]["own"] == "yes", || format!("{taken:?}"))?;
        ensure(taken.owner_references().is_empty(), || format!("{taken:?}"))?;

        // Another object that wants the same has to do without, whatever its setting.
        world.put("second", json!({"value": "1", "take": "shared"})).await?;
        let said = world.says("second", "Applied", "False", "ChildConflict").await?["message"].to_string();
        ensure(said.contains(&format!("belongs to {}/first", world.home)), || said)?;
        world.hand_over().await?;
        world.ready("first").await?;
        world.value("shared", "first").await?;

        // A backup: the same names and marks, other uids, and nothing that says who wrote what.
        let backup: Vec<Value> =
            { futures::future::try_join_all(["it-plain", "it-data"].map(|name| maps.get(name))).await? }
                .into_iter()
                .map(|mut object| {
                    object.metadata = kube::core::ObjectMeta {
                        name: object.metadata.name.take(),
                        namespace: object.metadata.namespace.take(),
                        labels: object.metadata.labels.take(),
                        annotations: object.metadata.annotations.take(),
                        ..Default::default()
                    };
                    let mut object = serde_json::to_value(object).unwrap_or_default();
                    object["apiVersion"] = json!("v1");
                    object["kind"] = json!("ConfigMap");
                    object
                })
                .collect();
        world.parents().delete("it", &DeleteParams::default()).await?;
        gone(&world.parents(), "it").await?;
        gone(&maps, "it-plain").await?;
        maps.delete("it-data", &DeleteParams::default()).await?;
        let before = stage.cluster.audit()?.len();
        for object in &backup {
            stage.cluster.apply(&object.to_string()).await?;
        }
        let restored = (uid(&maps, "it-plain").await?, uid(&maps, "it-data").await?);
        world.put("it", json!({"value": "1"})).await?;
        world.ready("it").await?;
        world.hand_over().await?;
        world.ready("it").await?;
        let now = (uid(&maps, "it-plain").await?, uid(&maps, "it-data").await?);
        ensure(now == restored, || format!("{restored:?} became {now:?}"))?;
        ensure(maps.get("it-data").await?.data["data"]["precious"] == "x", || "the backup was overwritten".to_owned())?;
        ensure(!maps.get("it-plain").await?.owner_references().is_empty(), || "it is owned again".to_owned())?;
        let deleted = writes(stage, before)?.into_iter().find(|event| event.verb == "delete");
        ensure(deleted.is_none(), || format!("{deleted:#?}"))?;

        judge(stage, &world.home)?;
        ensure(uid(&maps, "owned-data").await? == owned, || "it was replaced".to_owned())
    })
    .await;
    Ok(())
}

/// Nothing of value was deleted by us at any moment, or created a second time; and what was taken over was told before.
fn judge(stage: &Stage, home: &str) -> Result<()> {
    let all = writes(stage, 0)?;
    let of_value = |name: &str| ["-data", "-extra", "shared"].iter().any(|end| name.ends_with(end));
    let mut announced = Vec::new();
    let mut taken = 0;
    for event in all.iter().filter(|event| event.succeeded()) {
        let name = event.name.as_deref().unwrap_or_default();
        let body = event.request_object.clone().unwrap_or_default();
        if event.resource == "things" && event.subresource.as_deref() == Some("status") {
            let conditions = body.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let messages =
                conditions.iter().filter(|it| it["reason"] == "Adopting").filter_map(|it| it["message"].as_str());
            announced.extend(messages.map(str::to_owned));
        }
        if event.resource != "configmaps" || !of_value(name) {
            continue;
        }
        ensure(event.verb != "delete", || format!("{name} was deleted: {event:#?}"))?;
        // An apply of all of it, which is no release.
        let is_first = event.response_object.as_ref().is_some_and(|it| it.pointer("/metadata/uid").is_some());
        if event.verb == "patch"
            && body["kind"] == "ConfigMap"
            && body.pointer("/metadata/resourceVersion").is_some()
            && is_first
        {
            taken += 1;
            let of_it = |message: &&String| message.contains(&format!("{home}/{name} is there and is taken over"));
            ensure(announced.iter().any(|message| of_it(&message)), || {
                format!("{name} was taken unannounced: {announced:?}")
            })?;
        }
    }
    // Twice a kept one, one of another controller, one of a backup.
    ensure(taken >= 4, || format!("{taken} were taken over"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_object_is_left_alone_and_a_request_is_one_pass() -> Result<()> {
    play(Stage::set("paused", 1).await?, |stage| async move {
        let things = set(stage, KEPT).await?;
        let world = World::of(stage, &things);
        let maps = world.maps();
        world.put("it", json!({"value": "1"})).await?;
        world.put("other", json!({"value": "1"})).await?;
        world.ready("it").await?;
        world.annotate("it", json!({"leasehold.dev/paused": "true"})).await?;
        world.says("it", "Paused", "True", "Annotated").await?;
        world.says("it", "Ready", "Unknown", "Paused").await?;

        // Neither a new spec, nor a child that is gone, nor a takeover makes it write; others go on.
        let before = stage.cluster.audit()?.len();
        world.put("it", json!({"value": "2"})).await?;
        maps.delete("it-plain", &DeleteParams::default()).await?;
        world.hand_over().await?;
        world.put("other", json!({"value": "2"})).await?;
        world.value("other-data", "2").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let of_it = |name: &Option<String>| name.as_deref().is_some_and(|name| name.starts_with("it-"));
        let all = writes(stage, before)?;
        ensure(!all.iter().any(|event| of_it(&event.name)), || format!("{all:#?}"))?;
        let seen = world.parents().get("it").await?;
        ensure(seen.data["status"]["observedGeneration"] == 1, || format!("it was not looked at: {seen:?}"))?;

        // Its deletion waits, and so do the children that the garbage collector would take.
        world.parents().delete("it", &DeleteParams::default()).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.hand_over().await?;
        let said = world.says("it", "Paused", "True", "Annotated").await?["message"].to_string();
        ensure(said.contains("its deletion waits"), || said)?;
        maps.get("it-data").await?;
        world.annotate("it", json!({"leasehold.dev/paused": null})).await?;
        gone(&world.parents(), "it").await?;
        ensure(is_released(&maps.get("it-data").await?), || "it is kept".to_owned())?;

        // A request: one pass for each new value, which writes nothing where nothing has changed. A pass shows by the read of an
        // object that is in the way, which it looks for anew each time.
        world.map("seized", json!({}), json!({})).await?;
        world.map("seized-plain", json!({}), json!({})).await?;
        world.put("seized", json!({"value": "1"})).await?;
        world.says("seized", "Applied", "False", "ChildConflict").await?;
        maps.delete("seized-plain", &DeleteParams::default()).await?;
        let began = crate::things::now();
        world.annotate("seized", json!({"leasehold.dev/requested-at": "now"})).await?;
        world.ready("seized").await?;
        ensure(began.elapsed() < Duration::from_secs(20), || format!("it waited for {:?}", began.elapsed()))?;
        world.annotate("other", json!({"leasehold.dev/requested-at": "1"})).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = stage.cluster.audit()?.len();
        world.annotate("other", json!({"leasehold.dev/requested-at": "2"})).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let all = writes(stage, before)?;
        ensure(all.is_empty(), || format!("{all:#?}"))
    })
    .await;
    Ok(())
}

const CHANGED: &str = r#"children:
- id: fixed
  update: Recreate
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-fixed", labels: {tier: "${parent.spec.?tier.orValue('a')}"}}
    immutable: true
    data: {value: "${parent.spec.value}"}
- id: rolled
  update: OnDelete
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-rolled"}
    data: {value: "${parent.spec.value}"}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_changed_is_made_anew_only_if_the_new_one_would_be_taken() -> Result<()> {
    play(Stage::set("changed", 1).await?, |stage| async move {
        let things = set(stage, CHANGED).await?;
        let world = World::of(stage, &things);
        let maps = world.maps();
        world.put("it", json!({"value": "1"})).await?;
        world.ready("it").await?;
        let (fixed, rolled) = (uid(&maps, "it-fixed").await?, uid(&maps, "it-rolled").await?);

        world.put("it", json!({"value": "2"})).await?;
        let new = world.value("it-fixed", "2").await?;
        ensure(new.uid() != Some(fixed), || "an immutable one was changed".to_owned())?;
        // The other one waits for a deletion, and the condition says so.
        let said = world.says("it", "Applied", "True", "OnDelete").await?["message"].to_string();
        ensure(said.contains("it-rolled"), || said)?;
        world.hand_over().await?;
        world.says("it", "Ready", "True", "AsExpected").await?;
        let old = maps.get("it-rolled").await?;
        ensure(old.uid() == Some(rolled) && old.data["data"]["value"] == "1", || format!("{old:?}"))?;
        maps.delete("it-rolled", &DeleteParams::default()).await?;
        world.value("it-rolled", "2").await?;
        world.says("it", "Applied", "True", "AsExpected").await?;

        // A new one that would be refused costs the old one nothing.
        let before = stage.cluster.audit()?.len();
        world.put("it", json!({"value": "3", "tier": "no label!"})).await?;
        let said = world.says("it", "Applied", "False", "Invalid").await?["message"].to_string();
        ensure(said.contains("is not made anew") && said.contains("no label!"), || said)?;
        let deleted = writes(stage, before)?.into_iter().find(|event| event.verb == "delete");
        ensure(deleted.is_none() && maps.get("it-fixed").await?.uid() == new.uid(), || format!("{deleted:#?}"))?;
        world.put("it", json!({"value": "2"})).await?;
        world.says("it", "Applied", "True", "AsExpected").await?;

        // Half-way: the old one goes slowly, and before it is gone the API server refuses a new one. That is told, tried again by
        // the next leader, and done when it may be.
        let hold = json!({"metadata": {"finalizers": ["example.com/slow"]}});
        maps.patch("it-fixed", &PatchParams::default(), &Patch::Merge(hold)).await?;
        world.put("it", json!({"value": "4"})).await?;
        let going = |found: &DynamicObject| found.metadata.deletion_timestamp.is_some();
        eventually("the old one goes", PATIENCE, || maps.get("it-fixed"), going).await?;
        world.says("it", "Applied", "False", "ChildTerminating").await?;
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": stage.namespace}, "spec": {"hard": {"count/configmaps": "1"}}});
        stage.cluster.apply(&quota.to_string()).await?;
        let quotas = world.api("v1", "ResourceQuota");
        let counted = |quota: &DynamicObject| quota.data["status"]["used"].get("count/configmaps").is_some();
        eventually("the quota counts", PATIENCE, || quotas.get("full"), counted).await?;
        let release = json!({"metadata": {"finalizers": null}});
        maps.patch("it-fixed", &PatchParams::default(), &Patch::Merge(release)).await?;
        let said = world.says("it", "Applied", "False", "Forbidden").await?["message"].to_string();
        ensure(said.contains("exceeded quota"), || said)?;
        world.hand_over().await?;
        world.says("it", "Applied", "False", "Forbidden").await?;
        quotas.delete("full", &DeleteParams::default()).await?;
        world.value("it-fixed", "4").await?;
        world.ready("it").await
    })
    .await;
    Ok(())
}

const ORDERED: &str = r#"children:
- id: base
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-base"}
  readyWhen: ["${self.data.ready == 'yes'}"]
- id: options
  includeWhen: ["${parent.spec.?options.orValue(false)}"]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-options"}
    data: {value: x}
- id: app
  after: [{id: base, ready: true}]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-app"}
    data: {value: "${parent.spec.value}", options: "${children.?options.data.value.orValue('none')}"}
- id: aside
  forEach: "${parent.spec.?aside.orValue([])}"
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-${each}"}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_dependent_waits_until_the_other_is_ready_and_goes_before_it() -> Result<()> {
    play(Stage::set("ordered", 1).await?, |stage| async move {
        let things = set(stage, ORDERED).await?;
        let world = World::of(stage, &things);
        let maps = world.maps();
        world.put("it", json!({"value": "1", "aside": ["a", "b"]})).await?;
        let waits = world.says("it", "DependenciesReady", "Unknown", "NotReady").await?;
        ensure(waits["message"].to_string().contains("app waits until base is ready"), || waits.to_string())?;
        // Nothing else is held up, not even that what is said no longer goes; and it is told since when it waits.
        world.put("it", json!({"value": "1", "aside": ["b", "c"]})).await?;
        eventually("another child comes", PATIENCE, || maps.get_opt("it-c"), Option::is_some).await?;
        gone(&maps, "it-a").await?;
        world.hand_over().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let still = world.says("it", "DependenciesReady", "Unknown", "NotReady").await?;
        ensure(still["lastTransitionTime"] == waits["lastTransitionTime"], || format!("{waits} {still}"))?;
        ensure(maps.get_opt("it-app").await?.is_none(), || "it did not wait".to_owned())?;

        let ready = |value: &'static str| {
            let (maps, patch) = (maps.clone(), json!({"data": {"ready": value}}));
            async move { maps.patch("it-base", &PatchParams::default(), &Patch::Merge(patch)).await }
        };
        ready("yes").await?;
        let app = world.value("it-app", "1").await?;
        ensure(app.data["data"]["options"] == "none", || format!("{app:?}"))?;
        world.ready("it").await?;
        let conditions = world.parents().get("it").await?.data["status"]["conditions"].to_string();
        ensure(!conditions.contains("DependenciesReady"), || conditions)?;

        // What refers to an optional child stays, whether that is there or not.
        for (options, expected) in [(true, "x"), (false, "none")] {
            world.put("it", json!({"value": "1", "aside": ["b"], "options": options})).await?;
            let look = || maps.get("it-app");
            let is_so = |found: &DynamicObject| found.data["data"]["options"] == expected;
            let now = eventually("it follows", PATIENCE, look, is_so).await?;
            ensure(now.uid() == app.uid(), || "it was made anew".to_owned())?;
        }

        // A change waits too, and what is there stays.
        ready("no").await?;
        world.says("it", "ChildrenReady", "Unknown", "Progressing").await?;
        world.put("it", json!({"value": "2", "aside": ["b"]})).await?;
        world.says("it", "DependenciesReady", "Unknown", "NotReady").await?;
        ensure(maps.get("it-app").await?.data["data"]["value"] == "1", || "it did not wait".to_owned())?;

        // It is deleted first, and what it depends on only when it is gone, whatever leader there is.
        let hold = json!({"metadata": {"finalizers": ["example.com/slow"]}});
        maps.patch("it-app", &PatchParams::default(), &Patch::Merge(hold)).await?;
        world.parents().delete("it", &DeleteParams::default()).await?;
        let going = |found: &DynamicObject| found.metadata.deletion_timestamp.is_some();
        eventually("the dependent goes", PATIENCE, || maps.get("it-app"), going).await?;
        world.hand_over().await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let base = maps.get("it-base").await?;
        ensure(base.metadata.deletion_timestamp.is_none(), || format!("it went first: {base:?}"))?;
        maps.patch("it-app", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}}))).await?;
        gone(&world.parents(), "it").await?;
        ensure(maps.get_opt("it-base").await?.is_none(), || "it is left behind".to_owned())
    })
    .await;
    Ok(())
}

const GENERATED: &str = r#"children:
- id: keys
  deletion: Keep
  adopt: IfUnowned
  generate:
    password: {length: 40}
    key: {length: 32, characters: Bytes}
  renew: "${parent.spec.?revision.orValue(1)}"
  template:
    apiVersion: v1
    kind: Secret
    metadata: {name: "${parent.metadata.name}-keys", labels: {tier: "${parent.spec.?tier.orValue('a')}"}}
    data: {user: "${base64.encode(bytes(parent.metadata.name))}"}
- id: user
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-user"}
    data:
      secret: "${children.keys.metadata.name}"
      seen: "${json.marshal(children.keys)}"
status:
  seen: "${json.marshal(children.keys)}"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_value_stays_in_its_secret_and_is_made_anew_on_request_only() -> Result<()> {
    play(Stage::set("generated", 1).await?, |stage| async move {
        let things = set(stage, GENERATED).await?;
        let world = World::of(stage, &things);
        let secrets = world.api("v1", "Secret");
        let data = || async { anyhow::Ok(secrets.get("it-keys").await?.data["data"].clone()) };
        world.put("it", json!({})).await?;
        world.ready("it").await?;
        let first = data().await?;
        let text = |data: &Value, key: &str| {
            let bytes: k8s_openapi::ByteString = serde_json::from_value(data[key].clone())?;
            anyhow::Ok(bytes.0)
        };
        let password = text(&first, "password")?;
        ensure(password.len() == 40 && password.iter().all(u8::is_ascii_alphanumeric), || "no password".to_owned())?;
        ensure(text(&first, "key")?.len() == 32 && text(&first, "user")? == b"it", || "no key".to_owned())?;

        // Takeovers, a change of the template, a writer that takes a field and one that takes a value away.
        world.hand_over().await?;
        world.put("it", json!({"tier": "b"})).await?;
        let labelled = |secret: &DynamicObject| secret.labels().get("tier").is_some_and(|tier| tier == "b");
        eventually("the template follows", PATIENCE, || secrets.get("it-keys"), labelled).await?;
        ensure(data().await? == first, || "a value has changed".to_owned())?;
        let patch = |patch: Value| {
            let secrets = secrets.clone();
            async move { secrets.patch("it-keys", &PatchParams::default(), &Patch::Merge(patch)).await }
        };
        patch(json!({"metadata": {"labels": {"tier": "theirs"}}})).await?;
        eventually("it heals", PATIENCE, || secrets.get("it-keys"), labelled).await?;
        patch(json!({"data": {"key": null}})).await?;
        let has_key = |data: &Value| data.get("key").is_some();
        let healed = eventually("a key is made", PATIENCE, data, has_key).await?;
        ensure(healed["password"] == first["password"] && healed["key"] != first["key"], || {
            "another one was made".to_owned()
        })?;
        world.hand_over().await?;
        world.ready("it").await?;
        ensure(data().await? == healed, || "a value has changed".to_owned())?;

        // Kept, and taken up again with its values.
        world.parents().delete("it", &DeleteParams::default()).await?;
        gone(&world.parents(), "it").await?;
        ensure(data().await?["password"] == healed["password"], || "a value has changed".to_owned())?;
        world.put("it", json!({"tier": "b"})).await?;
        world.ready("it").await?;
        ensure(data().await?["password"] == healed["password"], || "a value has changed".to_owned())?;

        // On request, once.
        world.put("it", json!({"tier": "b", "revision": 2})).await?;
        let renewed =
            eventually("it is made anew", PATIENCE, data, |data| data["password"] != healed["password"]).await?;
        world.hand_over().await?;
        world.ready("it").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure(data().await? == renewed, || "it was made twice".to_owned())?;

        // It is nowhere but in the Secret: in no other object, event or log.
        let mut told = stage.log().await;
        for (version, kind) in [("v1", "ConfigMap"), ("v1", "Event"), ("events.k8s.io/v1", "Event")] {
            told += &serde_json::to_string(&world.api(version, kind).list(&Default::default()).await?.items)?;
        }
        told += &serde_json::to_string(&world.parents().get("it").await?)?;
        ensure(told.contains("leasehold.dev/generated"), || "the spies have seen the Secret".to_owned())?;
        for data in [&first, &healed, &renewed] {
            for key in ["password", "key"] {
                let stored = data[key].as_str().unwrap_or_default();
                let plain = String::from_utf8_lossy(&text(data, key)?).into_owned();
                ensure(!told.contains(stored) && !told.contains(&plain), || format!("{key} is told"))?;
            }
        }
        for event in writes(stage, 0)?.iter().filter(|event| event.resource != "secrets") {
            let body = format!("{:?}{:?}", event.request_object, event.response_object);
            let stored = [&first, &healed, &renewed].map(|data| data["password"].as_str().unwrap_or_default());
            ensure(stored.iter().all(|value| !body.contains(value)), || {
                format!("written elsewhere: {}", event.resource)
            })?;
        }
        Ok(())
    })
    .await;
    Ok(())
}
