//! The installations by trust level, as they are shipped: two Deployments with kinds of their own, of which neither can do
//! anything with the rights of the other.

use std::{collections::BTreeSet, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt, api::ListParams};
use leasehold_cluster::{Cluster, KubeletOptions, eventually};
use serde_json::{Value, json};

use crate::{
    rails::{Attack, Right, as_account, may},
    stage::{PATIENCE, ensure},
};

/// Namespace of an installation, its accounts, and the Leases that it holds.
struct Level {
    folder: &'static str,
    namespace: &'static str,
    accounts: &'static [&'static str],
    kinds: &'static [&'static str],
}

const SYSTEM: Level = Level {
    folder: "overlays/trust-levels/system",
    namespace: "leasehold-system",
    accounts: &["leasehold-expirypolicy", "leasehold-propagation", "leasehold-scaleschedule", "leasehold-webapp"],
    kinds: &[
        "expirypolicy.leasehold.dev",
        "propagation.leasehold.dev",
        "scaleschedule.leasehold.dev",
        "webapp.leasehold.dev",
    ],
};
const TENANTS: Level = Level {
    folder: "overlays/trust-levels/tenants",
    namespace: "leasehold-tenants",
    accounts: &["leasehold-tenant"],
    kinds: &["tenant.leasehold.dev"],
};

fn path(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn installations_by_trust_level_lead_their_kinds_and_have_no_rights_of_each_other() -> Result<()> {
    let cluster = Cluster::start().await?;
    let images = [("leasehold".to_owned(), PathBuf::from(env!("CARGO_BIN_EXE_leasehold")))].into();
    let _kubelet = cluster.start_kubelet(KubeletOptions { nodes: 3, images, ..KubeletOptions::default() }).await?;
    for level in [&SYSTEM, &TENANTS] {
        level.grants_what_the_command_prints(&cluster).await?;
    }
    cluster.kubectl(&["apply", "-f", &path("crds")]).await?;
    let client = cluster.client()?;
    // From one installation to two, as docs/security.md says it.
    install(&cluster, "deploy", SYSTEM.namespace).await?;
    let has_tenant = |held: &BTreeSet<String>| held.len() == 5 && held.contains("tenant.leasehold.dev");
    eventually("all kinds are led", PATIENCE, || SYSTEM.held(&client), has_tenant).await?;
    for level in [&SYSTEM, &TENANTS] {
        install(&cluster, level.folder, level.namespace).await?;
    }
    cluster.kubectl(&["-n", SYSTEM.namespace, "delete", "serviceaccount", "leasehold-tenant"]).await?;
    for level in [&SYSTEM, &TENANTS] {
        let held = |held: &BTreeSet<String>| held.iter().map(String::as_str).eq(level.kinds.iter().copied());
        eventually(&format!("{} holds its kinds", level.namespace), PATIENCE, || level.held(&client), held).await?;
    }
    works(&cluster).await?;
    for (own, other) in [(&SYSTEM, &TENANTS), (&TENANTS, &SYSTEM)] {
        own.may_not_act_as(&cluster, other).await?;
    }
    // With every right that RBAC can give, the policies are all that stands between the two.
    for level in [&SYSTEM, &TENANTS] {
        let group = format!("--group=system:serviceaccounts:{}", level.namespace);
        let name = format!("everything-{}", level.namespace);
        cluster.kubectl(&["create", "clusterrolebinding", &name, "--clusterrole=cluster-admin", &group]).await?;
    }
    for (own, other) in [(&SYSTEM, &TENANTS), (&TENANTS, &SYSTEM)] {
        own.writes_nothing_of(&cluster, other).await?;
    }
    Ok(())
}

async fn install(cluster: &Cluster, folder: &str, namespace: &str) -> Result<()> {
    cluster.kubectl(&["apply", "-k", &path(folder)]).await?;
    cluster.kubectl(&["-n", namespace, "rollout", "status", "deployment/leasehold", "--timeout=240s"]).await?;
    Ok(())
}

impl Level {
    /// What the manifests grant is what `leasehold rbac` prints of the configuration beside them, and no other account is there.
    async fn grants_what_the_command_prints(&self, cluster: &Cluster) -> Result<()> {
        let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .args(["rbac", "--namespace", self.namespace, "-f", &path(self.folder)])
            .output()?;
        ensure(said.status.success(), || format!("{said:?}"))?;
        let said: Vec<Value> = serde_yaml::from_multiple(&String::from_utf8(said.stdout)?)?;
        let there: Vec<Value> = serde_yaml::from_multiple(&cluster.kubectl(&["kustomize", &path(self.folder)]).await?)?;
        let is = |one: &Value, other: &Value| {
            let name =
                |of: &Value| (of["kind"].clone(), of["metadata"]["name"].clone(), of["metadata"]["namespace"].clone());
            let says = |of: &Value| (of["rules"].clone(), of["roleRef"].clone(), of["subjects"].clone());
            name(one) == name(other) && says(one) == says(other)
        };
        for document in &said {
            ensure(there.iter().any(|it| is(it, document)), || format!("{} lacks {document}", self.folder))?;
        }
        let accounts: BTreeSet<_> = { there.iter().filter(|it| it["kind"] == "ServiceAccount") }
            .filter_map(|account| account["metadata"]["name"].as_str())
            .collect();
        let wanted = self.accounts.iter().copied().chain(["leasehold"]).collect();
        ensure(accounts == wanted, || format!("{}: {accounts:?}", self.folder))
    }

    async fn held(&self, client: &Client) -> Result<BTreeSet<String>> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), self.namespace);
        let all = leases.list(&ListParams::default().labels("leasehold.dev/role!=replica")).await?.items;
        let is_held = |lease: &Lease| {
            lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()).is_some_and(|holder| !holder.is_empty())
        };
        Ok(all.into_iter().filter(is_held).map(|lease| lease.name_any()).collect())
    }

    /// The replicas may act as the accounts of their own kinds, and of no other.
    async fn may_not_act_as(&self, cluster: &Cluster, other: &Self) -> Result<()> {
        let replica = as_account(cluster, self.namespace, "leasehold").await?;
        let right = |name: &str| -> Right {
            ("impersonate".to_owned(), String::new(), "serviceaccounts".to_owned(), Some(name.to_owned()))
        };
        for account in self.accounts {
            let is_so = may(&replica, self.namespace, &right(account)).await?;
            ensure(is_so, || format!("{} may not act as its {account}", self.namespace))?;
        }
        for account in other.accounts.iter().copied().chain(["leasehold"]) {
            for namespace in [self.namespace, other.namespace] {
                let is_so = may(&replica, namespace, &right(account)).await?;
                ensure(!is_so, || format!("{} may act as {account} of {namespace}", self.namespace))?;
            }
        }
        Ok(())
    }

    /// No account of this installation writes where the other one runs, whatever RBAC gives it.
    async fn writes_nothing_of(&self, cluster: &Cluster, other: &Self) -> Result<()> {
        let client = cluster.client()?;
        let configurations: Api<k8s_openapi::api::core::v1::ConfigMap> =
            Api::namespaced(client.clone(), other.namespace);
        let all = configurations.list(&ListParams::default()).await?.items;
        let name = all.iter().map(ResourceExt::name_any).find(|name| name.starts_with("leasehold-"));
        let name = name.context("the configuration of the other")?;
        let core = format!("/api/v1/namespaces/{}", other.namespace);
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", other.namespace);
        let object =
            |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        let attacks = [
            Attack::new("delete the configuration", "DELETE", format!("{core}/configmaps/{name}"), Value::Null),
            Attack::new("make a ConfigMap", "POST", format!("{core}/configmaps"), object("v1", "ConfigMap")),
            Attack::new("make a Secret", "POST", format!("{core}/secrets"), object("v1", "Secret")),
            Attack::new("make a Lease", "POST", leases.clone(), object("coordination.k8s.io/v1", "Lease")),
            Attack::new("delete a Lease", "DELETE", format!("{leases}/{}", other.kinds[0]), Value::Null),
            Attack::new(
                "give a token",
                "POST",
                format!("{core}/serviceaccounts/leasehold/token"),
                json!({
                    "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []},
                }),
            ),
            Attack::new(
                "scale the replicas",
                "PATCH",
                format!("/apis/apps/v1/namespaces/{}/deployments/leasehold/scale", other.namespace),
                json!({"spec": {"replicas": 0}}),
            ),
            Attack::new("label the namespace", "PATCH", core.clone(), json!({"metadata": {"labels": {"a": "b"}}})),
            Attack::new("delete the namespace", "DELETE", core.clone(), Value::Null),
        ];
        for account in self.accounts.iter().copied().chain(["leasehold"]) {
            let thief = as_account(cluster, self.namespace, account).await?;
            for attack in &attacks {
                // Bindings and policies take a moment to be seen.
                let says_why =
                    |said: &Option<String>| said.as_ref().is_some_and(|said| said.contains("see docs/security.md"));
                let what = format!("{account} of {} is refused to {}", self.namespace, attack.what());
                eventually(&what, PATIENCE, || attack.refused(&thief), says_why).await?;
            }
        }
        Ok(())
    }
}

/// Each installation does its work: a Tenant gets its namespace, a WebApp its Deployment.
async fn works(cluster: &Cluster) -> Result<()> {
    for sample in ["tenant.yaml", "webapp.yaml"] {
        cluster.kubectl(&["apply", "-f", &path(&format!("config/samples/{sample}"))]).await?;
    }
    let there =
        |arguments: &'static [&'static str]| async move { anyhow::Ok(cluster.kubectl(arguments).await.is_ok()) };
    let quota = &["get", "resourcequota", "-n", "lilac", "-o", "name"];
    let found = || async { anyhow::Ok(cluster.kubectl(quota).await.unwrap_or_default()) };
    eventually("the Tenant has its quota", PATIENCE, found, |said| said.contains("resourcequota/")).await?;
    let deployment = || there(&["get", "deployment", "storefront", "-n", "shop"]);
    eventually("the WebApp has its Deployment", PATIENCE, deployment, |is_there| *is_there).await?;
    Ok(())
}
