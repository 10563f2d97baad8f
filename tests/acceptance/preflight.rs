//! What a replica may do, as the real API server tells it.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold::{
    config::Kind,
    replica::preflight::{Obstacle, Preflight, Subject, Verdict},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::stage::{PATIENCE, Stage, ensure, play, plural};

/// Grants `list` and `watch` of the kind to the account `asker`: with a RoleBinding here, or with a ClusterRoleBinding.
fn binding(stage: &Stage, everywhere: bool) -> String {
    let namespace = &stage.namespace;
    let (kind, here) = if everywhere {
        ("ClusterRoleBinding", String::new())
    } else {
        ("RoleBinding", format!(", namespace: {namespace}"))
    };
    format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}
metadata: {{name: {namespace}-asker{here}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}-asker}}
subjects: [{{kind: ServiceAccount, name: asker, namespace: {namespace}}}]
"
    )
}

/// The next verdict that is as expected.
pub async fn verdict(
    verdicts: &mut UnboundedReceiver<(usize, Verdict)>,
    what: &str,
    is: impl Fn(&Verdict) -> bool,
) -> Result<Verdict> {
    let mut last = None;
    let next = async {
        loop {
            let (_, verdict) = verdicts.recv().await.context("the preflight has ended")?;
            if is(&verdict) {
                return anyhow::Ok(verdict);
            }
            last = Some(verdict);
        }
    };
    let found = tokio::time::timeout(PATIENCE, next).await;
    found.with_context(|| format!("{what}; the last verdict was {last:?}"))?
}

/// The first kind of the stage.
pub fn kind(stage: &Stage) -> Kind {
    Kind::new("observer.leasehold.dev", "v1", &stage.kinds[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_in_one_namespace_is_not_taken_for_one_in_all() -> Result<()> {
    play(Stage::set("preflight", 1).await?, |stage| async {
        let namespace = &stage.namespace;
        let plural = plural(&stage.kinds[0]);
        let role = format!(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: asker, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}-asker}}
rules: [{{apiGroups: [observer.leasehold.dev], resources: [{plural}], verbs: [list, watch]}}]
---{}",
            binding(stage, false)
        );
        stage.cluster.apply(&role).await?;
        let kubeconfig = stage.cluster.service_account_kubeconfig(namespace, "asker").await?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let kind = kind(stage);
        let (send, mut verdicts) = unbounded_channel();
        let subject = Subject { kind: Arc::new(kind), needs: Vec::new(), account: None };
        let (preflight, ask) = Preflight::new(Client::try_from(config)?, BTreeMap::new(), vec![subject], send);
        let denied = |verdict: &Verdict| {
            matches!(verdict, Verdict::Blocked(Obstacle::Denied { access: all, .. }) if all.iter().map(|access| access.verb).eq(["list", "watch"]))
        };
        let runnable = |verdict: &Verdict| matches!(verdict, Verdict::Runnable(_));
        let steps = async {
            let (_, first) = verdicts.recv().await.context("the preflight has ended")?;
            ensure(denied(&first), || format!("granted in {namespace} only: {first:?}"))?;
            stage.cluster.apply(&binding(stage, true)).await?;
            let found = verdict(&mut verdicts, "the grant is seen", runnable).await?;
            let Verdict::Runnable(served) = &found else { unreachable!("as expected") };
            let expected = (format!("/apis/observer.leasehold.dev/v1/{plural}"), true);
            ensure((served.path(), served.namespaced) == expected, || format!("{served:?}"))?;
            stage.cluster.kubectl(&["delete", "clusterrolebinding", &format!("{namespace}-asker")]).await?;
            ask.ask_again(0);
            verdict(&mut verdicts, "the loss is seen", denied).await?;
            anyhow::Ok(())
        };
        tokio::select! {
            () = preflight.run() => unreachable!("its verdicts are heard"),
            outcome = steps => outcome?,
        }
        let account = format!("system:serviceaccount:{namespace}:asker");
        let audit = stage.cluster.audit()?;
        let count = |resource: &str| {
            audit.iter().filter(|event| event.user == account && event.resource == resource).count()
        };
        let (rules, accesses) = (count("selfsubjectrulesreviews"), count("selfsubjectaccessreviews"));
        // Two each time that permissions are missed for the first time: the rules of this authorizer are complete.
        ensure(rules >= 3 && accesses == 4, || format!("{rules} reviews of rules, {accesses} of single permissions"))
    })
    .await;
    Ok(())
}
