//! Composed kinds of one composition with every way to go wrong, and replicas of the shipped binary that reconcile them.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{AuditEvent, eventually};
use serde_json::{Value, json};

use crate::{
    process::Replica,
    stage::{PATIENCE, Stage, ensure, is_aside},
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

pub fn thing(number: usize) -> String {
    format!("thing-{number}")
}

/// Two composed kinds of one composition, and replicas that are processes.
pub struct Rows<'a> {
    pub stage: &'a Stage,
    pub group: String,
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    pub replicas: Vec<Replica>,
}

impl<'a> Rows<'a> {
    pub async fn set(stage: &'a Stage, replicas: usize) -> Result<Self> {
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

    pub fn client(&self) -> Client {
        self.stage.client.clone()
    }

    pub fn api(&self, kind: &str) -> Api<DynamicObject> {
        Api::all_with(self.client(), &ApiResource::from_gvk(&GroupVersionKind::gvk(&self.group, "v1", kind)))
    }

    pub fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), &self.stage.namespace)
    }

    pub async fn create(&self, kind: &str, name: &str, mut spec: Value) -> Result<()> {
        spec["namespace"] = spec.get("namespace").cloned().unwrap_or_else(|| json!(self.stage.namespace));
        let object =
            json!({"apiVersion": format!("{}/v1", self.group), "kind": kind, "metadata": {"name": name}, "spec": spec});
        let object: DynamicObject = serde_json::from_value(object)?;
        self.api(kind).create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Things of these numbers, each with a child of its own name.
    pub async fn create_many(&self, count: usize) -> Result<()> {
        let create = |number: usize| async move {
            let name = thing(number);
            self.create("Thing", &name, json!({"name": name, "value": "1"})).await
        };
        let creations: Vec<_> = (0..count).map(create).collect();
        stream::iter(creations).buffer_unordered(16).try_collect().await
    }

    /// Waits until all of them are ready. None has lost its child then, and there is no other.
    pub async fn all_have_their_child(&self, count: usize) -> Result<()> {
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

    pub async fn change(&self, name: &str, spec: Value) -> Result<()> {
        self.api("Thing").patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
        Ok(())
    }

    /// Parents of this kind in a namespace.
    pub fn locals(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(&self.group, "v1", "Local"));
        Api::namespaced_with(self.client(), namespace, &resource)
    }

    /// Creates a Local in one namespace, whose child is in that of the stage: where no garbage collector follows.
    pub async fn local(&self, namespace: &str, name: &str, child: &str) -> Result<()> {
        let local = json!({
            "apiVersion": format!("{}/v1", self.group), "kind": "Local", "metadata": {"name": name, "namespace": namespace},
            "spec": {"name": child, "value": "x", "namespace": self.stage.namespace},
        });
        self.stage.cluster.apply(&local.to_string()).await?;
        Ok(())
    }

    /// Waits until a condition of the object is so; what it says.
    pub async fn says(&self, kind: &str, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
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

    pub async fn is_ready(&self, kind: &str, name: &str) -> Result<()> {
        self.says(kind, name, "Ready", "True", "AsExpected").await?;
        Ok(())
    }
}

/// Writes of objects by our processes, since an audit of that length.
pub fn writes(stage: &Stage, before: usize) -> Result<Vec<Arc<AuditEvent>>> {
    let mut all = stage.cluster.audit_from(before)?;
    let is_ours = |event: &AuditEvent| {
        let of_replicas = event.user == format!("system:serviceaccount:{}:observer", stage.namespace);
        event.is_write() && of_replicas && !is_aside(event)
    };
    all.retain(|event| is_ours(event));
    Ok(all)
}
