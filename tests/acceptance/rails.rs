//! What is left to a stolen token of a replica or of a kind's account, on the shipped installation: what docs/security.md lists
//! and no more, and of that nothing that the policies refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SelfSubjectRulesReview,
    SelfSubjectRulesReviewSpec,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold_cluster::{Cluster, eventually};
use serde_json::{Value, json};

use crate::{
    composed::is,
    shipped::{Installation, NAMESPACE},
    stage::{PATIENCE, ensure},
};

/// A namespace of a team that none of our kinds has made.
const TEAM: &str = "rails-team";
/// What the test gives all of our accounts, to see what the policies refuse when RBAC refuses nothing.
const GRANT: &str = "rails-everything";
const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
const SAYS_WHY: &str = "see docs/security.md";

/// Verb, group, resource with its part, and the only name.
pub type Right = (String, String, String, Option<String>);

struct Account {
    name: String,
    client: Client,
    /// Everywhere, and in our namespace besides.
    everywhere: BTreeSet<Right>,
    here: BTreeSet<Right>,
}

pub async fn shipped(installation: &Installation) -> Result<()> {
    let cluster = installation.cluster;
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}).to_string()).await?;
    policies_are_well_typed(installation).await?;
    the_overlay_does_without(installation).await?;
    let accounts = accounts(installation).await?;
    for account in &accounts {
        may_do_what_is_listed(installation, account).await?;
    }
    for account in &accounts {
        for attack in attacks() {
            let said = attack.refused(&account.client).await?;
            ensure(said.is_some(), || format!("{} was let {}", account.name, attack.what))?;
        }
    }
    by_policies_alone(installation, &accounts).await?;
    propagations_stay_out(installation, &accounts).await?;
    hosts(installation, &accounts).await?;
    cluster.kubectl(&["delete", "namespace", TEAM, "--wait=false"]).await?;
    Ok(())
}

/// The API server checks each expression against the types that it is about.
async fn policies_are_well_typed(installation: &Installation) -> Result<()> {
    let all = || installation.object(&["validatingadmissionpolicies", "-l", "app.kubernetes.io/name=leasehold"]);
    let checked = |all: &Value| {
        let items = all["items"].as_array().cloned().unwrap_or_default();
        items.len() == 6 && items.iter().all(|it| it["status"]["observedGeneration"] == it["metadata"]["generation"])
    };
    let all = eventually("the policies are checked", PATIENCE, all, checked).await?;
    for policy in all["items"].as_array().into_iter().flatten() {
        let warnings = policy.pointer("/status/typeChecking/expressionWarnings");
        ensure(warnings.is_none(), || format!("{}: {warnings:?}", policy["metadata"]["name"]))?;
    }
    Ok(())
}

/// The overlay is the installation and nothing else less.
async fn the_overlay_does_without(installation: &Installation) -> Result<()> {
    let kinds = |folder: &'static str| async move {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).display().to_string();
        let text = installation.cluster.kubectl(&["kustomize", &path]).await?;
        anyhow::Ok(text.lines().filter(|line| line.starts_with("kind: ")).map(str::to_owned).collect::<Vec<_>>())
    };
    let (mut all, rest) = (kinds("deploy").await?, kinds("overlays/without-policies").await?);
    all.retain(|kind| !kind.contains("ValidatingAdmissionPolicy"));
    ensure(all == rest, || format!("{all:?} {rest:?}"))
}

/// What docs/security.md lists, without what only the overlay of webhooks grants; and each account's own token.
async fn accounts(installation: &Installation) -> Result<Vec<Account>> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md"))?;
    let mut listed = BTreeMap::<String, (BTreeSet<Right>, BTreeSet<Right>)>::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.contains("with webhooks")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, account, place, what, verbs] = cells[..] else { continue };
        let Some(account) = account.strip_prefix('`').and_then(|account| account.strip_suffix('`')) else { continue };
        let (everywhere, here) = listed.entry(account.to_owned()).or_default();
        let rights = if place == "everywhere" { everywhere } else { here };
        let (what, names) = what.split_once(": ").map_or((what, None), |(what, names)| (what, Some(names)));
        let (of, part) =
            what.trim_matches('`').split_once('/').map_or((what.trim_matches('`'), ""), |(of, part)| (of, part));
        let (resource, group) = of.split_once('.').unwrap_or((of, ""));
        let resource = if part.is_empty() { resource.to_owned() } else { format!("{resource}/{part}") };
        let names: Vec<_> = match names {
            Some(names) => names.split(", ").map(|name| Some(name.trim_matches('`').to_owned())).collect(),
            None => vec![None],
        };
        for verb in verbs.split(' ') {
            rights.extend(names.iter().map(|name| (verb.to_owned(), group.to_owned(), resource.clone(), name.clone())));
        }
    }
    ensure(listed.len() == 6, || format!("{:?}", listed.keys()))?;
    let mut accounts = Vec::new();
    for (name, (everywhere, here)) in listed {
        let client = as_account(installation.cluster, NAMESPACE, &name).await?;
        accounts.push(Account { name, client, everywhere, here });
    }
    Ok(accounts)
}

/// A client with the account's own token.
pub async fn as_account(cluster: &Cluster, namespace: &str, name: &str) -> Result<Client> {
    let kubeconfig = cluster.service_account_kubeconfig(namespace, name).await?;
    let (kubeconfig, plain) = (Kubeconfig::read_from(kubeconfig)?, KubeConfigOptions::default());
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &plain).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// What `kubectl auth can-i --list` asks for.
pub async fn rules(client: &Client, namespace: &str) -> Result<BTreeSet<Right>> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let review = Api::<SelfSubjectRulesReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let status = review.status.context("an answer")?;
    ensure(!status.incomplete, || format!("{:?}", status.evaluation_error))?;
    let mut rights = BTreeSet::new();
    for rule in status.resource_rules {
        let names = match rule.resource_names.filter(|names| !names.is_empty()) {
            Some(names) => names.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    let right = |name: &Option<String>| (verb.clone(), group.clone(), resource.clone(), name.clone());
                    rights.extend(names.iter().map(right));
                }
            }
        }
    }
    Ok(rights)
}

/// The list of the API server is that of the page; and each verb of each type is tried, those that no account has as well.
async fn may_do_what_is_listed(installation: &Installation, account: &Account) -> Result<()> {
    let nobody = as_account(installation.cluster, NAMESPACE, "default").await?;
    let mut types: BTreeSet<(String, String)> = BTreeSet::new();
    for kind in [
        ("", "pods"),
        ("", "pods/exec"),
        ("", "secrets"),
        ("", "configmaps"),
        ("", "namespaces"),
        ("", "nodes"),
        ("", "serviceaccounts/token"),
        ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("leasehold.dev", "tenants"),
        ("leasehold.dev", "webapps"),
        ("leasehold.dev", "propagations"),
        ("leasehold.dev", "expirypolicies"),
        ("leasehold.dev", "scaleschedules"),
    ] {
        types.insert((kind.0.to_owned(), kind.1.to_owned()));
    }
    for (_, group, resource, _) in account.everywhere.union(&account.here) {
        types.insert((group.clone(), resource.clone()));
    }
    for namespace in [NAMESPACE, "kube-system", TEAM] {
        let listed: BTreeSet<_> = match namespace {
            NAMESPACE => account.everywhere.union(&account.here).cloned().collect(),
            _ => account.everywhere.clone(),
        };
        // What everybody may do who has logged in.
        let everybodys = rules(&nobody, namespace).await?;
        let told: BTreeSet<_> = rules(&account.client, namespace).await?.difference(&everybodys).cloned().collect();
        ensure(told == listed, || {
            let more: Vec<_> = told.difference(&listed).collect();
            let less: Vec<_> = listed.difference(&told).collect();
            format!("{} in {namespace}: may do {more:?}, which is not listed; and not {less:?}", account.name)
        })?;
        let cells = types.iter().flat_map(|of| VERBS.map(|verb| (of, verb)));
        let tried = stream::iter(cells).map(|((group, resource), verb)| {
            let right = (verb.to_owned(), group.clone(), resource.clone(), None);
            let is_listed = listed.contains(&right);
            async move { anyhow::Ok((may(&account.client, namespace, &right).await? == is_listed, right)) }
        });
        let tried: Vec<_> = tried.buffer_unordered(16).try_collect().await?;
        for (is_so, right) in tried {
            ensure(is_so, || format!("{} in {namespace}: {right:?} is not as listed", account.name))?;
        }
    }
    Ok(())
}

pub async fn may(client: &Client, namespace: &str, (verb, group, resource, name): &Right) -> Result<bool> {
    let (resource, part) = resource.split_once('/').map_or((resource.as_str(), None), |(of, part)| (of, Some(part)));
    let attributes = ResourceAttributes {
        verb: Some(verb.clone()),
        group: Some(group.clone()),
        resource: Some(resource.to_owned()),
        subresource: part.map(str::to_owned),
        name: name.clone(),
        namespace: Some(namespace.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let review = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(review.status.context("an answer")?.allowed)
}

/// One request of a thief.
pub struct Attack {
    what: String,
    method: &'static str,
    path: String,
    body: Value,
}

impl Attack {
    pub fn what(&self) -> &str {
        &self.what
    }

    pub fn new(what: impl Into<String>, method: &'static str, path: impl Into<String>, body: Value) -> Self {
        Self { what: what.into(), method, path: path.into(), body }
    }

    /// What the API server says; `None`: it is carried out. It is a dry run, which admission is asked about as well.
    pub async fn refused(&self, client: &Client) -> Result<Option<String>> {
        let and = if self.path.contains('?') { '&' } else { '?' };
        let content = if self.method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        // Options in the body of a DELETE would take the place of the dry run.
        let body = if self.body.is_null() { Vec::new() } else { serde_json::to_vec(&self.body)? };
        let request = http::Request::builder()
            .method(self.method)
            .uri(format!("{}{and}dryRun=All", self.path))
            .header("content-type", content)
            .body(body)?;
        match client.request::<Value>(request).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(status.message.clone())),
            Err(error) => bail!("{}: {error}", self.what),
        }
    }
}

/// What a thief of a token would try: to get the replicas, their configuration, or the rights of another account.
fn attacks() -> Vec<Attack> {
    let pod = json!({"containers": [{"name": "x", "image": "x"}]});
    let workload = |pod: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}},
        })
    };
    let object = |version: &str, kind: &str, more: Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        object.as_object_mut().into_iter().for_each(|it| it.extend(more.as_object().cloned().unwrap_or_default()));
        object
    };
    let rbac = "rbac.authorization.k8s.io";
    let binding = |kind: &str, role: &str| {
        object(
            &format!("{rbac}/v1"),
            kind,
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "apiGroup": rbac, "name": "thief"}],
            }),
        )
    };
    let mut all = Vec::new();
    for namespace in [NAMESPACE, "kube-system"] {
        let core = |plural: &str| format!("/api/v1/namespaces/{namespace}/{plural}");
        let restricted = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "x", "image": "x", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
        });
        let bindings = format!("/apis/{rbac}/v1/namespaces/{namespace}/rolebindings");
        all.extend([
            Attack::new(
                format!("create a Pod in {namespace}"),
                "POST",
                core("pods"),
                object("v1", "Pod", json!({"spec": restricted})),
            ),
            Attack::new(
                format!("create a Secret in {namespace}"),
                "POST",
                core("secrets"),
                object("v1", "Secret", json!({})),
            ),
            Attack::new(
                format!("create a ConfigMap in {namespace}"),
                "POST",
                core("configmaps"),
                object("v1", "ConfigMap", json!({})),
            ),
            Attack::new(
                format!("overwrite a ConfigMap in {namespace}"),
                "PATCH",
                core("configmaps/kube-root-ca.crt"),
                json!({"data": {"ca.crt": "x"}}),
            ),
            Attack::new(
                format!("delete a ConfigMap in {namespace}"),
                "DELETE",
                core("configmaps/kube-root-ca.crt"),
                Value::Null,
            ),
            Attack::new(
                format!("create a Service in {namespace}"),
                "POST",
                core("services"),
                object("v1", "Service", json!({"spec": {"ports": [{"port": 1}]}})),
            ),
            Attack::new(
                format!("create a Deployment in {namespace}"),
                "POST",
                format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
                workload(pod.clone()),
            ),
            Attack::new(
                format!("bind cluster-admin in {namespace}"),
                "POST",
                bindings.clone(),
                binding("RoleBinding", "cluster-admin"),
            ),
            Attack::new(format!("bind admin in {namespace}"), "POST", bindings, binding("RoleBinding", "admin")),
            Attack::new(
                format!("get a token in {namespace}"),
                "POST",
                core("serviceaccounts/default/token"),
                json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}),
            ),
            Attack::new(
                format!("label the namespace {namespace}"),
                "PATCH",
                format!("/api/v1/namespaces/{namespace}"),
                json!({
                "metadata": {"labels": {"writable.leasehold.dev/leasehold-propagation": "true"}}}),
            ),
        ]);
    }
    let own = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/leasehold");
    let team = |group: &str, plural: &str| format!("{group}/namespaces/{TEAM}/{plural}");
    let hidden = object(
        "v1",
        "Secret",
        json!({
            "type": "kubernetes.io/service-account-token",
            "metadata": {"name": "x", "annotations": {"kubernetes.io/service-account.name": "default"}},
        }),
    );
    all.extend([
        // The API server lets nobody delete kube-system.
        Attack::new("delete our namespace", "DELETE", format!("/api/v1/namespaces/{NAMESPACE}"), json!({})),
        Attack::new("scale the replicas to none", "PATCH", format!("{own}/scale"), json!({"spec": {"replicas": 0}})),
        Attack::new(
            "change the image of the replicas",
            "PATCH",
            own.clone(),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        Attack::new("delete the Deployment of the replicas", "DELETE", own, json!({})),
        Attack::new(
            "bind cluster-admin everywhere",
            "POST",
            format!("/apis/{rbac}/v1/clusterrolebindings"),
            binding("ClusterRoleBinding", "cluster-admin"),
        ),
        Attack::new(
            "bind admin everywhere",
            "POST",
            format!("/apis/{rbac}/v1/clusterrolebindings"),
            binding("ClusterRoleBinding", "admin"),
        ),
        Attack::new(
            "bind cluster-admin in another's namespace",
            "POST",
            team(&format!("/apis/{rbac}/v1"), "rolebindings"),
            binding("RoleBinding", "cluster-admin"),
        ),
        Attack::new(
            "bind edit in another's namespace",
            "POST",
            team(&format!("/apis/{rbac}/v1"), "rolebindings"),
            binding("RoleBinding", "edit"),
        ),
        Attack::new(
            "write a ClusterRole",
            "POST",
            format!("/apis/{rbac}/v1/clusterroles"),
            object(&format!("{rbac}/v1"), "ClusterRole", json!({"rules": []})),
        ),
        Attack::new(
            "write a Role",
            "POST",
            team(&format!("/apis/{rbac}/v1"), "roles"),
            object(&format!("{rbac}/v1"), "Role", json!({"rules": []})),
        ),
        Attack::new(
            "get a token in another's namespace",
            "POST",
            team("/api/v1", "serviceaccounts/default/token"),
            json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}),
        ),
        Attack::new("have a Secret filled with a token", "POST", team("/api/v1", "secrets"), hidden),
        Attack::new(
            "run Pods under another account",
            "POST",
            team("/apis/apps/v1", "deployments"),
            workload({
                let mut pod = pod.clone();
                pod["serviceAccountName"] = json!("deployer");
                pod
            }),
        ),
        Attack::new(
            "run Pods on the files of a node",
            "POST",
            team("/apis/apps/v1", "deployments"),
            workload({
                let mut pod = pod.clone();
                pod["volumes"] = json!([{"name": "node", "hostPath": {"path": "/"}}]);
                pod
            }),
        ),
        Attack::new(
            "run privileged Pods",
            "POST",
            team("/apis/apps/v1", "deployments"),
            workload({
                let mut pod = pod;
                pod["containers"][0]["securityContext"] = json!({"privileged": true});
                pod
            }),
        ),
        Attack::new(
            "write a CustomResourceDefinition",
            "PATCH",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tenants.leasehold.dev",
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        Attack::new("change a node", "PATCH", "/api/v1/nodes/node-1", json!({"metadata": {"labels": {"a": "b"}}})),
    ]);
    all
}

/// With everything granted to our accounts, what RBAC refused before is refused by a policy, which says why; and what RBAC
/// grants is let through once the policies are taken away.
async fn by_policies_alone(installation: &Installation, accounts: &[Account]) -> Result<()> {
    let cluster = installation.cluster;
    let grant = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": GRANT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": format!("system:serviceaccounts:{NAMESPACE}")}],
    });
    cluster.apply(&grant.to_string()).await?;
    let all = ("delete".to_owned(), "*".to_owned(), "*".to_owned(), None);
    let mut outcome = Ok(());
    'accounts: for account in accounts {
        eventually("everything is granted", PATIENCE, || may(&account.client, "default", &all), |may| *may).await?;
        for attack in attacks() {
            let said = attack.refused(&account.client).await?.unwrap_or_default();
            let by_policy = said.contains("ValidatingAdmissionPolicy 'leasehold-") && said.contains(SAYS_WHY);
            if !by_policy || !said.contains(&account.name) {
                outcome = Err(anyhow::anyhow!("{} was let {}: {said:?}", account.name, attack.what));
                break 'accounts;
            }
        }
    }
    cluster.kubectl(&["delete", "clusterrolebinding", GRANT]).await?;
    outcome?;

    // A composed kind writes its children and nothing of others; a binding only where its kind has made the namespace.
    let tenant = accounts.iter().find(|it| it.name == "leasehold-tenant").context("the account of Tenant")?;
    let rbac = "rbac.authorization.k8s.io";
    let bindings = format!("/apis/{rbac}/v1/namespaces/{TEAM}/rolebindings");
    let admin = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
        "metadata": {"name": "x", "labels": {"leasehold.dev/shard": "tenant.leasehold.dev"}},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "admin"}, "subjects": [],
    });
    let edit = format!("/api/v1/namespaces/{TEAM}");
    let system = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "kube-rails", "labels": {"leasehold.dev/shard": "tenant.leasehold.dev"}},
    });
    for (attack, why) in [
        (
            Attack::new("make a namespace of the system", "POST", "/api/v1/namespaces", system),
            "namespaces of the system and of the replicas",
        ),
        (Attack::new("bind admin to another's namespace", "POST", bindings, admin), "none that its kinds have made"),
        (Attack::new("delete another's namespace", "DELETE", edit.clone(), json!({})), "no child of an object"),
        (
            Attack::new(
                "take another's namespace",
                "PATCH",
                edit,
                json!({"metadata": {"labels": {"leasehold.dev/shard": "tenant.leasehold.dev"}}}),
            ),
            "no child of an object",
        ),
    ] {
        let said = attack.refused(&tenant.client).await?.unwrap_or_default();
        ensure(said.contains(why) && said.contains(SAYS_WHY), || format!("{}: {said:?}", attack.what))?;
    }

    let propagation = propagations(accounts)?;
    let write = Attack::new(
        "create a ConfigMap in kube-system",
        "POST",
        "/api/v1/namespaces/kube-system/configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}),
    );
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies").display().to_string();
    cluster.kubectl(&["delete", "-k", &policies]).await?;
    let refused = || write.refused(&propagation.client);
    eventually("without the policies RBAC lets it through", PATIENCE, refused, Option::is_none).await?;
    cluster.kubectl(&["apply", "-k", &policies]).await?;
    eventually("with them it is refused", PATIENCE, refused, Option::is_some).await?;
    Ok(())
}

fn propagations(accounts: &[Account]) -> Result<&Account> {
    accounts.iter().find(|it| it.name == "leasehold-propagation").context("the account of Propagation")
}

/// A Propagation that overwrites what is not ours in kube-system, and the configuration of the replicas.
async fn propagations_stay_out(installation: &Installation, accounts: &[Account]) -> Result<()> {
    let cluster = installation.cluster;
    let account = propagations(accounts)?;
    let maps = installation.api("v1", "ConfigMap", Some(NAMESPACE));
    let all = maps.list(&ListParams::default()).await?;
    let ours =
        all.items.iter().find(|it| it.metadata.name.as_deref().is_some_and(|name| name.starts_with("leasehold-")));
    let ours = ours.context("the configuration")?;
    ensure(ours.data["immutable"] == true, || "the configuration can be changed in place".to_owned())?;
    let name = ours.metadata.name.clone().context("a name")?;
    let theirs = installation.api("v1", "ConfigMap", Some("kube-system"));
    let map = |namespace: &str, value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": {"whose": value}});
    cluster.apply(&map("kube-system", "theirs").to_string()).await?;
    cluster.apply(&map(TEAM, "the team's").to_string()).await?;
    let propagation = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation", "metadata": {"name": "rails"},
        "spec": {
            "source": {"kind": "ConfigMap", "namespace": TEAM, "name": name},
            "targets": {"namespaces": ["kube-system", NAMESPACE]}, "onConflict": "Overwrite",
        },
    });
    cluster.apply(&propagation.to_string()).await?;
    let path = ["propagation", "rails"];
    installation.becomes("it reaches too far", &path, is("SpecValid", "False", "OutOfReach")).await?;
    // A thief of the kind's token gets no further.
    let overwrite = |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        Attack::new(
            format!("overwrite {name} in {namespace}"),
            "PATCH",
            path,
            json!({"metadata": {"labels": {"a": "b"}}}),
        )
    };
    let own = overwrite(NAMESPACE).refused(&account.client).await?.unwrap_or_default();
    ensure(own.contains("in a namespace of replicas"), || own)?;
    let label = "writable.leasehold.dev/leasehold-propagation";
    let told = overwrite("kube-system").refused(&account.client).await?.unwrap_or_default();
    ensure(told.contains(label), || format!("it says what can be done: {told}"))?;
    ensure(theirs.get(&name).await?.data["data"]["whose"] == "theirs", || "it is overwritten".to_owned())?;
    ensure(maps.get(&name).await?.metadata.uid == ours.metadata.uid, || "the configuration is another one".to_owned())?;
    // The platform says that this kind may, on that namespace.
    cluster.kubectl(&["label", "namespace", "kube-system", &format!("{label}=true")]).await?;
    let refused = || async { overwrite("kube-system").refused(&account.client).await };
    eventually("it may with the label", PATIENCE * 2, refused, Option::is_none).await?;
    cluster.kubectl(&["delete", "propagation", "rails"]).await?;
    cluster.kubectl(&["label", "namespace", "kube-system", &format!("{label}-")]).await?;
    cluster.kubectl(&["delete", "configmap", &name, "-n", "kube-system", "--ignore-not-found"]).await?;
    Ok(())
}

/// Which hosts are whose is on the namespaces, for WebApps and for what is made with a stolen token.
async fn hosts(installation: &Installation, accounts: &[Account]) -> Result<()> {
    let cluster = installation.cluster;
    let app = |host: Value| {
        json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": "WebApp", "metadata": {"name": "rails", "namespace": TEAM},
            "spec": {"image": "x", "replicas": 0, "host": host},
        })
    };
    let says = |error: anyhow::Error| format!("{error:#}");
    let refused = |host: &'static str| async move {
        cluster.apply(&app(json!(host)).to_string()).await.err().map(says).unwrap_or_default()
    };
    let ingress = |host: Option<&str>| {
        let rule = json!({"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "x", "port": {"number": 80}}}}]}});
        let mut ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "x", "labels": {"leasehold.dev/shard": "webapp.leasehold.dev"}}, "spec": {"rules": [rule]},
        });
        if let Some(host) = host {
            ingress["spec"]["rules"][0]["host"] = json!(host);
        }
        let path = format!("/apis/networking.k8s.io/v1/namespaces/{TEAM}/ingresses");
        Attack::new(format!("an Ingress for {host:?}"), "POST", path, ingress)
    };
    let web_app = accounts.iter().find(|it| it.name == "leasehold-webapp").context("the account of WebApp")?;
    let said = refused("shop.example.com").await;
    let why = "is not for the host \"shop.example.com\"; its annotation webapp.leasehold.dev/hosts says";
    ensure(said.contains(why) && said.contains("spec.host"), || said.clone())?;
    let hosts = "webapp.leasehold.dev/hosts=one.example.com, *.team.example.com";
    cluster.kubectl(&["annotate", "namespace", TEAM, hosts]).await?;
    let taken = || async { anyhow::Ok(refused("one.example.com").await) };
    eventually("a host that is said is taken", PATIENCE, taken, String::is_empty).await?;
    for host in ["a.team.example.com", "*.team.example.com", "a.b.team.example.com"] {
        let said = refused(host).await;
        ensure(said.is_empty(), || format!("{host}: {said}"))?;
        let said = ingress(Some(host)).refused(&web_app.client).await?;
        ensure(said.is_none(), || format!("{host}: {said:?}"))?;
    }
    for host in ["team.example.com", "xteam.example.com", "*.example.com", "two.example.com"] {
        let said = refused(host).await;
        ensure(said.contains("is not for the host"), || format!("{host}: {said}"))?;
        let said = ingress(Some(host)).refused(&web_app.client).await?;
        ensure(said.is_some_and(|said| said.contains("is not for the host")), || format!("an Ingress for {host}"))?;
    }
    let said = ingress(None).refused(&web_app.client).await?;
    ensure(said.is_some_and(|said| said.contains("is not for the host")), || "an Ingress for all".to_owned())?;

    // One that was stored before is not let through when its Ingress is written, and does not hold up its own deletion.
    let ingresses = installation.api("networking.k8s.io/v1", "Ingress", Some(TEAM));
    let there = || ingresses.get_opt("rails");
    eventually("the Ingress of the WebApp is there", PATIENCE, there, Option::is_some).await?;
    cluster.kubectl(&["annotate", "namespace", TEAM, "webapp.leasehold.dev/hosts-"]).await?;
    let refused = || async { ingress(Some("a.team.example.com")).refused(&web_app.client).await };
    eventually("what is said no more is refused", PATIENCE, refused, Option::is_some).await?;
    ingresses.delete("rails", &DeleteParams::default()).await?;
    let path = ["webapp", "rails", "-n", TEAM];
    let told = installation.becomes("it says why there is none", &path, is("Applied", "False", "Forbidden")).await?;
    ensure(told.to_string().contains("webapp.leasehold.dev/hosts"), || told.to_string())?;
    cluster.kubectl(&["delete", "webapp", "rails", "-n", TEAM, "--timeout=60s"]).await?;
    Ok(())
}
