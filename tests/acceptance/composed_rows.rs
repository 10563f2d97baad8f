//! Bad input for a composed kind, row by row: each says what is wrong with its object, and costs that object only.
//! And what a handover, or a restart of the API server, must not do to many objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{AuditEvent, eventually};
use serde_json::{Value, json};

use crate::{
    process::Replica,
    stage::{COLLECTION, PATIENCE, Stage, ensure, play},
};

/// Each field of the spec is one way to go wrong.
const COMPOSITION: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
related:
- {id: settings, apiVersion: v1, kind: ConfigMap, namespace: "@NAMESPACE@", name: settings}
children:
- id: follows
  includeWhen: ["${has(parent.spec.follow)}"]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: follows, namespace: "${parent.spec.namespace}"}
    data: {value: "${related.settings[0].data.value}"}
- id: one
  includeWhen: ["${has(parent.spec.name)}"]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.spec.name}", namespace: "${parent.spec.namespace}"}
    data: {value: "${parent.spec.value}"}
- id: two
  includeWhen: ["${has(parent.spec.second)}"]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.spec.second}", namespace: "${parent.spec.namespace}"}
- id: many
  forEach: "${has(parent.spec.count) ? lists.range(parent.spec.count) : null}"
  max: 1000
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-${index}", namespace: "${parent.spec.namespace}"}
- id: large
  includeWhen: ["${has(parent.spec.large)}"]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: large, namespace: "${parent.spec.namespace}"}
    data: {value: "${parent.spec.large + parent.spec.large + parent.spec.large + parent.spec.large + parent.spec.large}"}
- id: gadget
  includeWhen: ["${has(parent.spec.gadget)}"]
  template:
    apiVersion: @GROUP@/v1
    kind: Gadget
    metadata: {name: "${parent.metadata.name}", namespace: "${parent.spec.namespace}"}
    spec: {size: "${parent.spec.gadget}"}
status: {value: "${has(parent.spec.value) ? parent.spec.value : null}"}
"#;

fn definition(group: &str, kind: &str, scope: &str) -> String {
    let plural = format!("{}s", kind.to_lowercase());
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
    .to_string()
}

fn thing(number: usize) -> String {
    format!("thing-{number}")
}

/// Two composed kinds of one composition, and replicas that are processes.
struct Rows<'a> {
    stage: &'a Stage,
    group: String,
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    replicas: Vec<Replica>,
}

impl<'a> Rows<'a> {
    async fn set(stage: &'a Stage, replicas: usize) -> Result<Self> {
        let group = format!("{}.rows.example.com", stage.namespace);
        for (kind, scope) in
            [("Thing", "Cluster"), ("Other", "Cluster"), ("Local", "Namespaced"), ("Gadget", "Namespaced")]
        {
            stage.cluster.apply(&definition(&group, kind, scope)).await?;
        }
        let folder = tempfile::tempdir()?;
        let kind =
            |kind: &str| format!("- {{apiVersion: {group}/v1, kind: {kind}, reconciler: {{compose: thing.yaml}}}}\n");
        let config = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {{namespace: {}, duration: 5s, renewDeadline: 3s, retryPeriod: 500ms, requestTimeout: 1s}}\nplacement: {{settle: 1s}}\ndefaults: {{standby: All}}\nkinds:\n{}{}{}",
            stage.namespace,
            kind("Thing"),
            kind("Other"),
            kind("Local"),
        );
        std::fs::write(folder.path().join("leasehold.yaml"), config)?;
        std::fs::write(
            folder.path().join("thing.yaml"),
            COMPOSITION.replace("@GROUP@", &group).replace("@NAMESPACE@", &stage.namespace),
        )?;
        // As somebody else than this test, so that the audit log tells who wrote what.
        let account = format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: {0}-rows}}, roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}, subjects: [{{kind: ServiceAccount, name: observer, namespace: {0}}}]}}",
            stage.namespace
        );
        stage.cluster.apply(&account).await?;
        let kubeconfig = stage.cluster.service_account_kubeconfig(&stage.namespace, "observer").await?;
        let mut rows = Self { stage, group, folder, kubeconfig, replicas: Vec::new() };
        for _ in 0..replicas {
            rows.start().await?;
        }
        Ok(rows)
    }

    async fn start(&mut self) -> Result<()> {
        self.replicas.push(Replica::start(&self.kubeconfig, self.folder.path()).await?);
        Ok(())
    }

    fn client(&self) -> Client {
        self.stage.client.clone()
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        Api::all_with(self.client(), &ApiResource::from_gvk(&GroupVersionKind::gvk(&self.group, "v1", kind)))
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), &self.stage.namespace)
    }

    async fn create(&self, kind: &str, name: &str, mut spec: Value) -> Result<()> {
        spec["namespace"] = spec.get("namespace").cloned().unwrap_or_else(|| json!(self.stage.namespace));
        let object =
            json!({"apiVersion": format!("{}/v1", self.group), "kind": kind, "metadata": {"name": name}, "spec": spec});
        let object: DynamicObject = serde_json::from_value(object)?;
        self.api(kind).create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Things of these numbers, each with a child of its own name.
    async fn create_many(&self, count: usize) -> Result<()> {
        let create = |number: usize| async move {
            let name = thing(number);
            self.create("Thing", &name, json!({"name": name, "value": "1"})).await
        };
        let creations: Vec<_> = (0..count).map(create).collect();
        stream::iter(creations).buffer_unordered(16).try_collect().await
    }

    /// Waits until all of them are ready. None has lost its child then, and there is no other.
    async fn all_have_their_child(&self, count: usize) -> Result<()> {
        let ready = || async {
            let all = self.api("Thing").list(&ListParams::default()).await?.items;
            let is_ready = |object: &&DynamicObject| {
                let conditions = object.data["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
            };
            anyhow::Ok(all.iter().filter(is_ready).count())
        };
        eventually("all are ready", PATIENCE, ready, |ready| *ready == count).await?;
        let children = self.config_maps().list(&ListParams::default().labels("leasehold.dev/owner-uid")).await?.items;
        let names: BTreeSet<_> = children.iter().map(ResourceExt::name_any).collect();
        let expected: BTreeSet<_> = (0..count).map(thing).collect();
        ensure(children.len() == count && names == expected, || format!("{} children", children.len()))
    }

    async fn change(&self, name: &str, spec: Value) -> Result<()> {
        self.api("Thing").patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
        Ok(())
    }

    /// Waits until a condition of the object is so; what it says.
    async fn says(&self, kind: &str, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
        let api = self.api(kind);
        let look = || async { anyhow::Ok(api.get(name).await?.data["status"]["conditions"].clone()) };
        let find = |conditions: &Value| {
            let all = conditions.as_array().into_iter().flatten();
            let is_it = |it: &&Value| it["type"] == type_ && it["status"] == status && it["reason"] == reason;
            all.into_iter().find(is_it).cloned()
        };
        let what = format!("{kind} {name} says {type_}={status}, {reason}");
        let said = eventually(&what, PATIENCE, look, |conditions| find(conditions).is_some()).await?;
        Ok(find(&said).unwrap_or_default()["message"].as_str().unwrap_or_default().to_owned())
    }

    async fn is_ready(&self, kind: &str, name: &str) -> Result<()> {
        self.says(kind, name, "Ready", "True", "AsExpected").await?;
        Ok(())
    }
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
        rows.create("Thing", "large", json!({"large": "x".repeat(1 << 20)})).await?;
        let said = rows.says("Thing", "large", "SpecValid", "False", "ChildTooLarge").await?;
        ensure(said.contains("5242"), || said)?;
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
        rows.change("good", json!({"value": "2", "name": "x".repeat(254)})).await?;
        let said = rows.says("Thing", "good", "Applied", "False", "Invalid").await?;
        ensure(said.contains("must be no more than 253"), || said)?;
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
        let local = json!({
            "apiVersion": format!("{}/v1", rows.group), "kind": "Local", "metadata": {"name": "local", "namespace": walled},
            "spec": {"name": "elsewhere", "value": "x", "namespace": stage.namespace},
        });
        stage.cluster.apply(&local.to_string()).await?;
        let elsewhere = || config_maps.get_opt("elsewhere");
        let child = eventually("a child in another namespace", PATIENCE, elsewhere, Option::is_some).await?.context("it")?;
        ensure(child.owner_references().is_empty(), || format!("{child:?}"))?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&rows.group, "v1", "Local"));
        let locals: Api<DynamicObject> = Api::namespaced_with(rows.client(), &walled, &resource);
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

/// Writes of objects by our processes, since an audit of that length.
fn writes(stage: &Stage, before: usize) -> Result<Vec<AuditEvent>> {
    let all = stage.cluster.audit_from(before)?;
    let is_ours = |event: &AuditEvent| {
        let of_replicas = event.user == format!("system:serviceaccount:{}:observer", stage.namespace);
        let aside = ["leases", "selfsubjectaccessreviews"].contains(&event.resource.as_str());
        event.is_write() && of_replicas && !aside
    };
    Ok(all.into_iter().filter(is_ours).collect())
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
            let said =
                crate::program::Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&lease]).await?;
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
        let said = crate::program::Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&lease]).await?;
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
