//! Each kind acts as an account of its own: what one of them may do is of no use to another.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context as _, Result};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold::replica::{
    connections::{Account, Bounds, Connections},
    preflight::{Obstacle, Preflight, Subject, Verdict},
};
use tokio::sync::mpsc::unbounded_channel;

use crate::{
    preflight::{kind, verdict},
    shipped::{Installation, NAMESPACE},
    stage::{Stage, ensure, is_aside, play, plural},
};

/// The audit log names the account of the kind in every write.
pub async fn shipped(installation: &Installation) -> Result<()> {
    let replicas = format!("system:serviceaccount:{NAMESPACE}:leasehold");
    let prefix = format!("system:serviceaccount:{NAMESPACE}:leasehold-");
    let mut acted = BTreeSet::new();
    for event in installation.cluster.audit()? {
        if event.user == replicas && event.is_write() && !is_aside(&event) {
            let acting = event.acting.as_deref().and_then(|acting| acting.strip_prefix(&prefix));
            let acting = acting.with_context(|| format!("a write as the replicas' own account: {event:#?}"))?;
            acted.insert((acting.to_owned(), event.resource.clone()));
        }
    }
    for (account, resource) in [
        ("propagation", "configmaps"),
        ("expirypolicy", "expirypolicies"),
        ("scaleschedule", "deployments"),
        ("tenant", "namespaces"),
        ("webapp", "deployments"),
    ] {
        ensure(acted.contains(&(account.to_owned(), resource.to_owned())), || format!("{account}: {acted:?}"))?;
    }
    ensure(!acted.contains(&("tenant".to_owned(), "deployments".to_owned())), || format!("{acted:?}"))?;

    Ok(())
}

/// Each step of setting an account up is missed by name, and the next one is seen without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_missing_locked_or_without_rules_is_named() -> Result<()> {
    play(Stage::set("accounts", 1).await?, |stage| async {
        let namespace = &stage.namespace;
        let account = Account { namespace: namespace.clone(), name: "worker".to_owned() };
        let made = |kind: &str, name: &str, more: &str| {
            format!("apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{more}")
        };
        let asker = format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: replica, namespace: {namespace}}}\n");
        let see = made("Role", "see", "rules: [{apiGroups: [''], resources: [serviceaccounts], resourceNames: [worker], verbs: [get]}]\n");
        let subject = |name: &str| format!("subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]\n");
        let bind = |role: &str, kind: &str, name: &str| {
            format!("roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {role}}}\n{}", subject(name))
        };
        let seen = made("RoleBinding", "see", &bind("see", "Role", "replica"));
        stage.cluster.apply(&[asker, see, seen].join("---\n")).await?;

        let kubeconfig = stage.cluster.service_account_kubeconfig(namespace, "replica").await?;
        let (kubeconfig, plain) = (Kubeconfig::read_from(kubeconfig)?, KubeConfigOptions::default());
        let config = Config::from_custom_kubeconfig(kubeconfig, &plain).await?;
        let connections = Connections::load(config, Bounds::default()).await?;
        let (send, mut verdicts) = unbounded_channel();
        let worker = Subject { kind: Arc::new(kind(stage)), needs: Vec::new(), account: Some(account.clone()) };
        let acting = [(account.clone(), connections.client_as(Some(&account)))].into();
        let (preflight, ask) = Preflight::new(connections.client(), acting, vec![worker], send);
        let steps = async {
            let blocked = |by: Obstacle| move |verdict: &Verdict| *verdict == Verdict::Blocked(by.clone());
            verdict(&mut verdicts, "it is not there", blocked(Obstacle::NoAccount(account.clone()))).await?;
            stage.cluster.apply(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: worker, namespace: {namespace}}}\n")).await?;
            verdict(&mut verdicts, "it may not be acted as", blocked(Obstacle::NotActing(account.clone()))).await?;
            let act = made("Role", "act", "rules: [{apiGroups: [''], resources: [serviceaccounts], resourceNames: [worker], verbs: [impersonate]}]\n");
            let acts = made("RoleBinding", "act", &bind("act", "Role", "replica"));
            stage.cluster.apply(&[act, acts].join("---\n")).await?;
            let is_denied = |verdict: &Verdict| {
                matches!(verdict, Verdict::Blocked(Obstacle::Denied { account: Some(of), .. }) if *of == account)
            };
            verdict(&mut verdicts, "it has no rules", is_denied).await?;
            let name = format!("{namespace}-worker");
            let rules = format!("rules: [{{apiGroups: [observer.leasehold.dev], resources: [{}], verbs: [list, watch]}}]\n", plural(&stage.kinds[0]));
            let role = made("ClusterRole", &name, &rules);
            let granted = made("ClusterRoleBinding", &name, &bind(&name, "ClusterRole", "worker"));
            stage.cluster.apply(&[role, granted].join("---\n")).await?;
            verdict(&mut verdicts, "it is granted", |verdict| matches!(verdict, Verdict::Runnable(_))).await?;
            // The replica itself was granted nothing of it.
            stage.cluster.kubectl(&["delete", "serviceaccount", "worker", "-n", namespace]).await?;
            ask.ask_again(0);
            verdict(&mut verdicts, "it has gone", blocked(Obstacle::NoAccount(account.clone()))).await?;
            anyhow::Ok(())
        };
        tokio::select! {
            () = preflight.run() => unreachable!("its verdicts are heard"),
            outcome = steps => outcome,
        }
    })
    .await;
    Ok(())
}
