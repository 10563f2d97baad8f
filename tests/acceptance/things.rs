//! A composed kind of a stage, with no more rights than it needs, and replicas of the shipped binary that reconcile it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leasehold_cluster::eventually;

use crate::{
    lone::{Lone, Plan, Program, all_ready},
    stage::{PATIENCE, Stage, TIMINGS},
};

pub const COMPOSITION: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
children:
- id: child
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}"}
    data: {value: "${parent.spec.value}"}
"#;

/// The kind `Thing` of a group of the stage's own: each object has a ConfigMap of its name with its value.
pub struct Things<'a> {
    pub stage: &'a Stage,
    pub group: String,
    pub folder: tempfile::TempDir,
    pub replicas: Vec<Lone>,
}

impl<'a> Things<'a> {
    /// The kind with all rights, and this many replicas that are ready.
    pub async fn set(stage: &'a Stage, replicas: usize) -> Result<Self> {
        let things = Self::without_replicas(stage).await?;
        things.with(replicas).await
    }

    pub async fn without_replicas(stage: &'a Stage) -> Result<Self> {
        let group = format!("{}.things.example.com", stage.namespace);
        let folder = tempfile::tempdir()?;
        let config = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {0}\nleases: {{namespace: {0}, {TIMINGS}}}\n\
             placement: {{settle: 2s, grace: 1s}}\nkinds:\n- {{apiVersion: {group}/v1, kind: Thing, reconciler: {{compose: thing.yaml}}}}\n",
            stage.namespace
        );
        std::fs::write(folder.path().join("leasehold.yaml"), config)?;
        std::fs::write(folder.path().join("thing.yaml"), COMPOSITION)?;
        let things = Self { stage, group, folder, replicas: Vec::new() };
        things.install().await?;
        things.grant("[get, list, watch, update, patch]").await?;
        Ok(things)
    }

    pub async fn with(mut self, replicas: usize) -> Result<Self> {
        for number in 0..replicas {
            let name = format!("replica-{number}");
            let replica = Lone::start(self.stage, Plan::new(Program::Leasehold, &name, self.folder.path())).await?;
            self.replicas.push(replica);
        }
        all_ready(&self.replicas).await?;
        Ok(self)
    }

    /// The name that replicas call the kind by.
    pub fn kind(&self) -> String {
        format!("Thing.{}", self.group)
    }

    /// The name of its CRD, and of its resource.
    pub fn resource(&self) -> String {
        format!("things.{}", self.group)
    }

    pub fn lease(&self) -> String {
        format!("thing.{}", self.group)
    }

    pub async fn install(&self) -> Result<()> {
        let definition = CRD.replace("@GROUP@", &self.group);
        self.stage.cluster.apply(&definition).await?;
        self.stage.cluster.established(&self.resource()).await
    }

    pub async fn uninstall(&self) -> Result<()> {
        self.stage.cluster.kubectl(&["delete", "crd", &self.resource(), "--timeout=60s"]).await?;
        Ok(())
    }

    /// Grants these verbs on the objects of the kind; the rest is granted in any case.
    pub async fn grant(&self, verbs: &str) -> Result<()> {
        let rights = RIGHTS
            .replace("@NAMESPACE@", &self.stage.namespace)
            .replace("@GROUP@", &self.group)
            .replace("@VERBS@", verbs);
        self.stage.cluster.apply(&rights).await?;
        Ok(())
    }

    /// Gives a thing a value, and makes it if there is none of that name.
    pub async fn put(&self, name: &str, value: &str) -> Result<()> {
        let object = format!(
            "{{apiVersion: {}/v1, kind: Thing, metadata: {{name: {name}, namespace: {}}}, spec: {{value: \"{value}\"}}}}",
            self.group, self.stage.namespace
        );
        let put = || async { self.stage.cluster.apply(&object).await };
        eventually("a thing is stored", PATIENCE, put, |_| true).await?;
        Ok(())
    }

    /// Waits until the child of a thing has this value; how long that took.
    pub async fn served(&self, name: &str, value: &str, within: Duration) -> Result<Duration> {
        let began = now();
        let config_maps = kube::Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(
            self.stage.client.clone(),
            &self.stage.namespace,
        );
        let look = || async {
            let child = config_maps.get_opt(name).await?;
            anyhow::Ok(child.and_then(|child| child.data).and_then(|mut data| data.remove("value")))
        };
        let what = format!("the change of {name} to {value} is served");
        eventually(&what, within, look, |seen| seen.as_deref() == Some(value)).await?;
        Ok(began.elapsed())
    }

    /// Waits until the kind is held by a replica of which this is true.
    pub async fn led(&self, within: Duration, by: impl Fn(&Lone) -> bool) -> Result<&Lone> {
        let lease = self.lease();
        let holder = |holders: &std::collections::BTreeMap<String, String>| {
            let holder = holders.get(&lease)?;
            self.replicas.iter().find(|replica| replica.is(holder) && by(replica))
        };
        let look = || self.stage.holders();
        let holders = eventually("the kind is led as expected", within, look, |holders| holder(holders).is_some());
        holder(&holders.await?).context("a holder")
    }

    /// Waits until each replica says this of the kind.
    pub async fn all_say(
        &self,
        what: &str,
        within: Duration,
        is_so: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<()> {
        let look = || async {
            let rows = self.replicas.iter().map(|replica| async move { replica.shard(&self.kind()).await });
            futures::future::try_join_all(rows).await
        };
        eventually(&format!("all replicas say {what}"), within, look, |rows| rows.iter().all(&is_so)).await?;
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long something took for this test is told, and judged with seconds to spare"
)]
pub fn now() -> Instant {
    Instant::now()
}

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.@GROUP@}
spec:
  group: '@GROUP@'
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: @NAMESPACE@-things}
rules:
- {apiGroups: ['@GROUP@'], resources: [things], verbs: @VERBS@}
- {apiGroups: ['@GROUP@'], resources: [things/status, things/finalizers], verbs: [get, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: @NAMESPACE@-children}
rules:
- {apiGroups: [''], resources: [configmaps, events], verbs: ['*']}
- {apiGroups: [events.k8s.io], resources: [events], verbs: ['*']}
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@-things}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: @NAMESPACE@-things}
subjects: [{kind: ServiceAccount, name: observer, namespace: @NAMESPACE@}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@-children}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: @NAMESPACE@-children}
subjects: [{kind: ServiceAccount, name: observer, namespace: @NAMESPACE@}]
";
