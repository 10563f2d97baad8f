//! The examples that have kinds in the program: two controllers that are spread, and children.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
};
use leasehold_cluster::{Signal, eventually};
use serde_json::Value;

use crate::{
    lone::{Lone, Plan, Program, all_ready, example},
    stage::{PATIENCE, Stage, TIMINGS, ensure, play},
};

/// What the account of an example may do, beside Leases.
const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: @NAMESPACE@-example}
rules:
- {apiGroups: [examples.leasehold.dev], resources: ['*'], verbs: [get, list, watch, patch, update]}
- {apiGroups: [''], resources: [configmaps, services], verbs: [get, list, watch, create, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@-example}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: @NAMESPACE@-example}
subjects: [{kind: ServiceAccount, name: observer, namespace: @NAMESPACE@}]
";

/// Gives the example its definitions, its rights, and a file of settings.
async fn set(stage: &Stage, folder: &Path, name: &str, verb: &str, definitions: &[&str]) -> Result<()> {
    let crds = tokio::process::Command::new(example(name)?).arg(verb).output().await?;
    stage.cluster.apply(&String::from_utf8(crds.stdout)?).await?;
    for definition in definitions {
        stage.cluster.established(&format!("{definition}.examples.leasehold.dev")).await?;
    }
    stage.cluster.apply(&RIGHTS.replace("@NAMESPACE@", &stage.namespace)).await?;
    let settings = format!(
        "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {}\nleases: {{{TIMINGS}}}\n\
         placement: {{grace: 1s, settle: 1s}}\n",
        stage.namespace
    );
    Ok(std::fs::write(folder.join("leasehold.yaml"), settings)?)
}

async fn start(stage: &Stage, folder: &Path, example: &'static str, name: &str) -> Result<Lone> {
    Lone::start(stage, Plan::new(Program::Example(example), name, &folder.join("leasehold.yaml"))).await
}

async fn apply(stage: &Stage, kind: &str, name: &str, spec: &str) -> Result<()> {
    let object = format!(
        "{{apiVersion: examples.leasehold.dev/v1, kind: {kind}, metadata: {{name: {name}, namespace: {}}}, spec: {spec}}}",
        stage.namespace
    );
    let put = || async { stage.cluster.apply(&object).await };
    eventually(&format!("{kind} {name} is stored"), PATIENCE, put, |_| true).await?;
    Ok(())
}

fn objects(stage: &Stage, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
    Api::namespaced_with(stage.client.clone(), &stage.namespace, &resource)
}

/// Waits until this is so of an object; `Null` if it is not there.
async fn is(api: &Api<DynamicObject>, name: &str, what: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
    let look = || async { anyhow::Ok(api.get_opt(name).await?.map_or(Value::Null, |object| object.data)) };
    eventually(&format!("{name}: {what}"), PATIENCE, look, so).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_in_two_lines_each_are_spread_and_the_replica_that_is_left_leads_both() -> Result<()> {
    play(Stage::set("controllers", 1).await?, |stage| async move {
        let folder = tempfile::tempdir()?;
        set(stage, folder.path(), "controllers", "crds", &["books", "shelves"]).await?;
        let mut replicas = Vec::new();
        for name in ["one", "two"] {
            replicas.push(start(stage, folder.path(), "controllers", name).await?);
        }
        all_ready(&replicas).await?;
        apply(stage, "Book", "walden", "{title: walden}").await?;
        apply(stage, "Shelf", "oak", "{width: 120}").await?;
        let group = "examples.leasehold.dev";
        let (books, shelves) = (objects(stage, group, "Book", "books"), objects(stage, group, "Shelf", "shelves"));
        let by = |data: &Value| data["status"]["by"].as_str().map(str::to_owned);
        is(&books, "walden", "it is read", |data| data["status"]["is"] == "WALDEN").await?;
        is(&shelves, "oak", "it is read", |data| data["status"]["is"] == "wide").await?;
        let leases = ["book.examples.leasehold.dev", "shelf.examples.leasehold.dev"];
        let one_each = |holders: &std::collections::BTreeMap<String, String>| {
            let of: BTreeSet<_> = leases.iter().filter_map(|lease| holders.get(*lease)).collect();
            of.len() == 2
        };
        let holders = eventually("each replica leads one", PATIENCE, || stage.holders(), one_each).await?;

        let index = replicas.iter().position(|one| one.is(&holders[leases[0]])).context("a replica leads books")?;
        let mut gone = replicas.swap_remove(index);
        gone.signal(Signal::TERM)?;
        let ended = gone.ends(PATIENCE).await?;
        ensure(ended.success(), || format!("a clean stop: {ended}"))?;
        let left = replicas.first().context("one is left")?;
        apply(stage, "Book", "emma", "{title: emma}").await?;
        let read = is(&books, "emma", "it is read by the one that is left", |data| {
            by(data).is_some_and(|holder| left.is(&holder))
        });
        read.await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_children_that_a_program_says_are_made_mended_and_deleted() -> Result<()> {
    play(Stage::set("children", 1).await?, |stage| async move {
        let folder = tempfile::tempdir()?;
        set(stage, folder.path(), "children", "crd", &["sites"]).await?;
        let replica = start(stage, folder.path(), "children", "one").await?;
        replica.answers("/readyz", 200, PATIENCE).await?;
        apply(stage, "Site", "home", "{title: Hello}").await?;
        let (pages, services) =
            (objects(stage, "", "ConfigMap", "configmaps"), objects(stage, "", "Service", "services"));
        let sites = objects(stage, "examples.leasehold.dev", "Site", "sites");
        let says = |text: &'static str| move |data: &Value| data["data"]["index.html"] == text;
        is(&pages, "home", "the page is there", says("<h1>Hello</h1>")).await?;
        let ready = |data: &Value| {
            let conditions = data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
            ready && data["status"]["address"].is_string()
        };
        is(&sites, "home", "it is ready, with the address of its service", ready).await?;

        // What a person changes or deletes comes back, and a change of the object goes on.
        let patch = ["patch", "configmap", "home", "--type=merge", "-p", "{\"data\":{\"index.html\":\"no\"}}"];
        let namespace = ["-n", &stage.namespace];
        stage.cluster.kubectl(&[&patch[..], &namespace].concat()).await?;
        is(&pages, "home", "the page is mended", says("<h1>Hello</h1>")).await?;
        apply(stage, "Site", "home", "{title: Bye}").await?;
        is(&pages, "home", "the page follows", says("<h1>Bye</h1>")).await?;
        apply(stage, "Site", "home", "{title: ''}").await?;
        let refused = |data: &Value| data["status"]["conditions"].to_string().contains("NoTitle");
        is(&sites, "home", "it says what to write", refused).await?;
        is(&pages, "home", "nothing is deleted for that", says("<h1>Bye</h1>")).await?;
        stage.cluster.kubectl(&[&["delete", "site", "home", "--wait=false"][..], &namespace].concat()).await?;
        is(&services, "home", "the service is collected", Value::is_null).await?;
        Ok(())
    })
    .await;
    Ok(())
}
