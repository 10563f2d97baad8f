//! What others write on Leases and Pods: forged memberships and holders, by a ServiceAccount that may write Leases and nothing
//! else, and forged deaths.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod, events::v1::Event};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold_cluster::{cpu, eventually};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    rails::{Right, rules},
    stage::{LEASE, PATIENCE, Stage, ensure, lease_of, play, tell},
    things::now,
};

/// Memberships that are forged.
const FORGED: usize = 1500;
/// How long they are looked at.
const LOOK: Duration = Duration::from_secs(20);
/// The most CPU that a replica may spend meanwhile, of one core.
const SHARE: f64 = 0.25;
/// Lines about one sort of thing in the first minute, and some that are not about them.
const LINES: usize = 60;

impl Stage {
    /// A client of a ServiceAccount that may write the Leases of this stage and nothing else.
    async fn forger(&self) -> Result<Client> {
        self.user("{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, create, update, patch]}")
            .await
    }

    /// A client of a ServiceAccount with this rule in the namespace of this stage, and nothing else.
    async fn user(&self, rule: &str) -> Result<Client> {
        let namespace = &self.namespace;
        self.cluster
            .apply(&format!(
                "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: forger, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: forger, namespace: {namespace}}}
rules: [{rule}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: forger, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: forger}}
subjects: [{{kind: ServiceAccount, name: forger, namespace: {namespace}}}]
"
            ))
            .await?;
        let file: PathBuf = self.cluster.service_account_kubeconfig(namespace, "forger").await?;
        let kubeconfig = Kubeconfig::read_from(file)?;
        let client =
            Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?;
        // What is granted is seen by the authorizer a moment later.
        let rights = || rules(&client, namespace);
        let is_granted =
            |rights: &BTreeSet<Right>| rights.iter().any(|(_, _, resource, _)| rule.contains(&format!("[{resource}]")));
        eventually("the user may do that", PATIENCE, rights, is_granted).await?;
        Ok(client)
    }

    /// Seconds of CPU that each pod's process has spent.
    async fn cpu(&self) -> Result<BTreeMap<String, f64>> {
        let mut spent = BTreeMap::new();
        for pod in self.pods().await? {
            let pid = *self.kubelet.pids(&self.namespace, &pod.name_any()).first().context("a process")?;
            spent.insert(pod.name_any(), cpu(pid)?);
        }
        Ok(spent)
    }

    fn lines(&self, pod: &str) -> usize {
        self.kubelet.log(&self.namespace, pod).lines().count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_memberships_move_nothing_and_cost_little() -> Result<()> {
    play(Stage::set("forged", 3).await?, |stage| async move {
        stage.replicas(3).await?;
        stage.all_led().await?;
        // Until the kinds are even, and rest.
        sleep(2 * LEASE).await;
        let holders = stage.all_led().await?;
        let ours: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let members = ours.list(&ListParams::default().labels("leasehold.dev/role=replica")).await?.items;
        let real = members.first().context("a membership")?.clone();
        let theirs: Api<Lease> = Api::namespaced(stage.forger().await?, &stage.namespace);
        let pods: Vec<_> = holders.values().map(|holder| crate::stage::pod_of(holder).to_owned()).collect();
        let lines: Vec<_> = pods.iter().map(|pod| stage.lines(pod)).collect();
        let (began, before) = (now(), stage.cpu().await?);
        let forge = |number: usize| {
            let (real, theirs) = (real.clone(), theirs.clone());
            async move {
                let mut forged = Lease { spec: real.spec.clone(), ..Lease::default() };
                forged.metadata.name = Some(format!("forged-{number}"));
                forged.metadata.labels.clone_from(&real.metadata.labels);
                let profile = real.annotations().get("leasehold.dev/replica").context("a profile")?;
                let mut profile: serde_json::Value = serde_json::from_str(profile)?;
                profile["pod"] = json!(format!("forged-{number}"));
                profile["podUid"] = json!(format!("uid-{number}"));
                profile["capacity"] = json!(1_000_000);
                let profile = [("leasehold.dev/replica".to_owned(), profile.to_string())];
                forged.metadata.annotations = Some(profile.into());
                if let Some(spec) = &mut forged.spec {
                    spec.holder_identity = Some(format!("forged-{number}_0"));
                    spec.lease_duration_seconds = Some(i32::MAX);
                }
                theirs.create(&PostParams::default(), &forged).await?;
                anyhow::Ok(())
            }
        };
        stream::iter(0..FORGED).map(forge).buffer_unordered(20).try_collect::<Vec<_>>().await?;
        sleep(LOOK).await;
        let (took, after) = (began.elapsed().as_secs_f64(), stage.cpu().await?);
        let shares: Vec<_> = before.iter().map(|(pod, spent)| (after[pod] - spent) / took).collect();
        let told: Vec<_> = pods.iter().zip(&lines).map(|(pod, lines)| stage.lines(pod) - lines).collect();
        tell(&format!("{FORGED} forged memberships: {shares:.2?} of a core in {took:.0} s, {told:?} lines"));
        ensure(stage.holders().await? == holders, || "the kinds have changed hands".to_owned())?;
        ensure(shares.iter().all(|share| *share < SHARE), || format!("{shares:?} of a core"))?;
        ensure(told.iter().all(|lines| *lines < LINES), || format!("{told:?} lines"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_holds_a_kinds_lease_is_named_everywhere_and_can_be_sent_away() -> Result<()> {
    play(Stage::set("stranger", 1).await?, |stage| async move {
        stage
            .cluster
            .apply(&format!(
                "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: events, namespace: {0}}}
rules: [{{apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: events, namespace: {0}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: events}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {0}}}]
",
                stage.namespace
            ))
            .await?;
        stage.replicas(2).await?;
        stage.all_led().await?;
        let (kind, leases) = (&stage.kinds[0], Api::<Lease>::namespaced(stage.forger().await?, &stage.namespace));
        let hold = |spec: serde_json::Value| {
            let (leases, lease) = (leases.clone(), lease_of(kind));
            async move { leases.patch(&lease, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await }
        };
        hold(json!({"holderIdentity": "attacker", "leaseDurationSeconds": i32::MAX})).await?;
        for pod in stage.pods().await? {
            let log = || async { anyhow::Ok(stage.kubelet.log(&stage.namespace, &pod.name_any())) };
            let names = |log: &String| log.contains("attacker") && log.contains("is no replica of this installation");
            eventually("the log names the stranger", PATIENCE, log, names).await?;
        }
        let events: Api<Event> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let all = ListParams::default();
        let look = || events.list(&all);
        let told = |events: &kube::core::ObjectList<Event>| {
            events.items.iter().any(|event| {
                let about = event.regarding.as_ref().and_then(|about| about.name.clone());
                event.reason.as_deref() == Some("ForeignHolder")
                    && about == Some(lease_of(kind))
                    && event.note.as_deref().is_some_and(|note| note.contains("kubectl -n"))
            })
        };
        eventually("an event names it", PATIENCE, look, told).await?;
        // As the event says.
        hold(json!({"holderIdentity": "", "leaseDurationSeconds": 1})).await?;
        stage.written_by(kind, |_| true).await?;
        stage.held(kind, |holder| holder != "attacker").await?;
        Ok(())
    })
    .await;
    Ok(())
}

/// A Pod of a user who may create Pods and nothing else, under the replicas' own account, says that a live holder is dead; its
/// status is written as its kubelet would write it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_says_another_is_dead_is_not_believed() -> Result<()> {
    play(Stage::set("obituary", 1).await?, |stage| async move {
        stage.replicas(2).await?;
        let holders = stage.all_led().await?;
        let holder = holders.values().next().context("a holder")?;
        let pods: Api<Pod> = Api::namespaced(stage.client.clone(), &stage.namespace);
        // Bound to a node that no kubelet has.
        let pod = json!({
            "metadata": {"name": "obituary"},
            "spec": {
                "serviceAccountName": "observer", "nodeName": "nowhere", "containers": [{"name": "observer", "image": "observer"}],
            },
        });
        let theirs: Api<Pod> = Api::namespaced(
            stage.user("{apiGroups: [''], resources: [pods], verbs: [create]}").await?,
            &stage.namespace,
        );
        theirs.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let ended = json!({"terminated": {"exitCode": 137, "message": format!("leasehold holder {holder}\n")}});
        let status = json!({"status": {"phase": "Running", "containerStatuses": [{
            "name": "observer", "image": "observer", "imageID": "", "ready": false, "restartCount": 0, "state": ended,
        }]}});
        pods.patch_status("obituary", &PatchParams::default(), &Patch::Merge(status)).await?;
        for pod in stage.pods().await?.iter().map(ResourceExt::name_any).filter(|pod| pod != "obituary") {
            let log = || async { anyhow::Ok(stage.kubelet.log(&stage.namespace, &pod)) };
            let says = |log: &String| log.contains("it is not believed");
            eventually("each replica has read it, and says so", PATIENCE, log, says).await?;
        }
        sleep(LEASE).await;
        ensure(stage.holders().await? == holders, || format!("{holder} was succeeded"))?;
        pods.delete("obituary", &kube::api::DeleteParams::default().grace_period(0)).await?;
        Ok(())
    })
    .await;
    Ok(())
}
