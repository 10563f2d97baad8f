//! The examples of `config/examples`, as they are shipped, with the rights that are printed for them and Pods that run.

use std::path::Path;

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    lone::{Lone, Plan, Program, all_ready},
    program::{Said, leasehold},
    stage::{COLLECTION, ENDS, PATIENCE, SLEEPS, Stage, TIMINGS, ensure, play, tell},
    state::{gone, is_released, uid},
};

const GROUP: &str = "examples.leasehold.dev";

/// The kinds of the examples, and two replicas that reconcile them.
struct Examples<'a> {
    stage: &'a Stage,
    _replicas: Vec<Lone>,
    _folder: tempfile::TempDir,
}

impl<'a> Examples<'a> {
    async fn set(stage: &'a Stage) -> Result<Self> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
        let folder = tempfile::tempdir()?;
        for file in std::fs::read_dir(&shipped)? {
            let file = file?;
            std::fs::copy(file.path(), folder.path().join(file.file_name()))?;
        }
        let namespace = &stage.namespace;
        let config = std::fs::read_to_string(shipped.join("leasehold.yaml"))?;
        let leases = format!("instance: {namespace}\nleases: {{namespace: {namespace}, {TIMINGS}}}");
        let config = config.replace("leases: {namespace: leasehold-system}", &leases);
        ensure(config.contains(&leases), || config.clone())?;
        std::fs::write(folder.path().join("leasehold.yaml"), config)?;
        stage.cluster.apply(&std::fs::read_to_string(shipped.join("crds.yaml"))?).await?;
        for plural in ["catsets", "bluegreens", "indexedjobs", "teamdatabases", "postgresclusters", "postgresbackups"] {
            stage.cluster.established(&format!("{plural}.{GROUP}")).await?;
        }
        let mut command = leasehold();
        let name = format!("{namespace}-examples");
        command.args(["rbac", "--name", &name, "--namespace", namespace, "--service-account", "observer", "-f"]);
        stage.cluster.apply(&Said::by(command.arg(folder.path())).await?.stdout).await?;
        let mut replicas = Vec::new();
        for name in ["one", "two"] {
            replicas.push(Lone::start(stage, Plan::new(Program::Leasehold, name, folder.path())).await?);
        }
        all_ready(&replicas).await?;
        Ok(Self { stage, _replicas: replicas, _folder: folder })
    }

    fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.stage.client.clone(), &self.stage.namespace, &resource)
    }

    fn example(&self, kind: &str) -> Api<DynamicObject> {
        self.api(&format!("{GROUP}/v1"), kind)
    }

    async fn put(&self, kind: &str, name: &str, spec: Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": self.stage.namespace});
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata, "spec": spec});
        self.stage.cluster.apply(&object.to_string()).await?;
        Ok(())
    }

    async fn hand_over(&self, kind: &str) -> Result<()> {
        let lease = format!("{}.{GROUP}", kind.to_lowercase());
        let said = Said::by_hand_over(self.stage.cluster.kubeconfig(), &self.stage.namespace, &[&lease]).await?;
        ensure(said.code == Some(0), || format!("{said:?}"))
    }

    async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let api = self.example(kind);
        api.delete(name, &DeleteParams::default()).await?;
        gone(&api, name).await
    }

    /// Waits until a field of an object is so.
    async fn has(&self, api: &Api<DynamicObject>, name: &str, pointer: &str, value: Value) -> Result<DynamicObject> {
        let is_so =
            |found: &Option<DynamicObject>| found.as_ref().is_some_and(|it| it.data.pointer(pointer) == Some(&value));
        let what = format!("{name} has {pointer}: {value}");
        eventually(&what, PATIENCE, || api.get_opt(name), is_so).await?.context("it is there")
    }
}

/// A database for a team: its password is there first, what the team connects with only when the database is ready, and both
/// stay when the team goes.
#[tokio::test(flavor = "multi_thread")]
async fn the_examples_run_as_they_are_shipped() -> Result<()> {
    play(Stage::set("examples", 1).await?, |stage| async move {
        let examples = Examples::set(stage).await?;
        let all = async {
            team_database(&examples).await.context("TeamDatabase")?;
            indexed_job(&examples).await.context("IndexedJob")?;
            cat_set(&examples).await.context("CatSet")?;
            blue_green(&examples).await.context("BlueGreen")
        };
        let played = all.await;
        if played.is_err() {
            // What the nodes and the replicas say of Pods and objects.
            tell(&stage.cluster.kubectl(&["get", "events", "-n", &stage.namespace]).await?);
        }
        played
    })
    .await;
    Ok(())
}

async fn team_database(examples: &Examples<'_>) -> Result<()> {
    let (clusters, maps) = (examples.example("PostgresCluster"), examples.api("v1", "ConfigMap"));
    let secrets = examples.api("v1", "Secret");
    examples.put("TeamDatabase", "lilac", json!({"storage": "10Gi"})).await?;
    eventually("the database is asked for", PATIENCE, || clusters.get_opt("lilac"), Option::is_some).await?;
    let password = secrets.get("lilac-owner").await?.data["data"]["password"].clone();
    ensure(password.is_string(), || "there is no password".to_owned())?;
    examples.hand_over("TeamDatabase").await?;
    eventually("it waits", PATIENCE, || examples.waits("TeamDatabase", "lilac"), |waits| *waits).await?;
    ensure(maps.get_opt("lilac-connection").await?.is_none(), || "it did not wait".to_owned())?;
    let up = Patch::Merge(json!({"status": {"readyInstances": 2}}));
    clusters.patch_status("lilac", &PatchParams::default(), &up).await?;
    examples.has(&maps, "lilac-connection", "/data/backups", json!("none")).await?;
    let database = uid(&clusters, "lilac").await?;
    for _ in 0..2 {
        examples.delete("TeamDatabase", "lilac").await?;
        gone(&maps, "lilac-connection").await?;
        examples.put("TeamDatabase", "lilac", json!({"storage": "10Gi"})).await?;
        eventually("the team is back", PATIENCE, || maps.get_opt("lilac-connection"), Option::is_some).await?;
        let kept = secrets.get("lilac-owner").await?.data["data"]["password"] == password;
        ensure(kept && uid(&clusters, "lilac").await? == database, || "its data was lost".to_owned())?;
    }
    Ok(())
}

/// A Job cannot change, so another list is another Job, which runs to its end.
async fn indexed_job(examples: &Examples<'_>) -> Result<()> {
    let (jobs, parents) = (examples.api("batch/v1", "Job"), examples.example("IndexedJob"));
    examples.put("IndexedJob", "thumbnails", json!({"image": ENDS, "tasks": ["a", "b"], "parallelism": 2})).await?;
    examples.has(&parents, "thumbnails", "/status/succeeded", json!(2)).await?;
    let first = uid(&jobs, "thumbnails").await?;
    examples.put("IndexedJob", "thumbnails", json!({"image": ENDS, "tasks": ["a", "b", "c"]})).await?;
    examples.has(&parents, "thumbnails", "/status/done", json!("0-2")).await?;
    ensure(uid(&jobs, "thumbnails").await? != first, || "it is the same Job".to_owned())?;
    // Settled, the next leader runs nothing a second time.
    let second = uid(&jobs, "thumbnails").await?;
    examples.hand_over("IndexedJob").await?;
    examples.has(&parents, "thumbnails", "/status/succeeded", json!(3)).await?;
    ensure(uid(&jobs, "thumbnails").await? == second, || "it runs again".to_owned())
}

/// Pods that start one after the other; volumes that outlive them, and the set.
async fn cat_set(examples: &Examples<'_>) -> Result<()> {
    let (pods, claims) = (examples.api("v1", "Pod"), examples.api("v1", "PersistentVolumeClaim"));
    let spec = |replicas: usize, image: &str| json!({"replicas": replicas, "storage": "1Gi", "image": image});
    let ours = ListParams::default().labels("examples.leasehold.dev/catset=cats");
    examples.put("CatSet", "cats", spec(3, "missing")).await?;
    eventually("the first Pod is there", PATIENCE, || pods.get_opt("cats-0"), Option::is_some).await?;
    eventually("the volumes are there", PATIENCE, || claims.get_opt("cats-2"), Option::is_some).await?;
    examples.hand_over("CatSet").await?;
    // The first cannot start, so there is no second.
    examples.has(&pods, "cats-0", "/status/containerStatuses/0/ready", json!(false)).await?;
    ensure(pods.list(&ours).await?.items.len() == 1, || "the second did not wait".to_owned())?;
    let volumes = [uid(&claims, "cats-0").await?, uid(&claims, "cats-2").await?];

    // With an image that runs, and the first one deleted by hand, they start in their order.
    examples.put("CatSet", "cats", spec(3, SLEEPS)).await?;
    examples.has(&pods, "cats-0", "/spec/containers/0/image", json!(SLEEPS)).await?;
    pods.delete("cats-0", &DeleteParams::default()).await?;
    for name in ["cats-0", "cats-1", "cats-2"] {
        examples.has(&pods, name, "/status/phase", json!("Running")).await?;
    }
    let all = pods.list(&ours).await?.items;
    let created = |pod: &DynamicObject| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ready = |pod: &DynamicObject| {
        let conditions = pod.data["status"]["conditions"].as_array()?;
        let since = conditions.iter().find(|it| it["type"] == "Ready")?["lastTransitionTime"].as_str()?;
        since.parse().ok()
    };
    let in_order = all.windows(2).all(|pair| ready(&pair[0]).is_some() && ready(&pair[0]) <= created(&pair[1]));
    ensure(all.len() == 3 && in_order, || format!("they did not start in order: {all:#?}"))?;

    // Fewer, and none: the volumes stay, and are taken up by the set of that name.
    examples.put("CatSet", "cats", spec(1, SLEEPS)).await?;
    for name in ["cats-1", "cats-2"] {
        gone(&pods, name).await?;
    }
    examples.delete("CatSet", "cats").await?;
    gone(&pods, "cats-0").await?;
    let claim = claims.get("cats-0").await?;
    ensure(is_released(&claim) && claim.metadata.deletion_timestamp.is_none(), || format!("{claim:?}"))?;
    examples.put("CatSet", "cats", spec(3, SLEEPS)).await?;
    examples.has(&pods, "cats-2", "/status/phase", json!("Running")).await?;
    let now = [uid(&claims, "cats-0").await?, uid(&claims, "cats-2").await?];
    ensure(now == volumes, || format!("{volumes:?} became {now:?}"))?;
    examples.delete("CatSet", "cats").await
}

/// The Service turns to the other colour when all of that are available, and not before.
async fn blue_green(examples: &Examples<'_>) -> Result<()> {
    let (services, deployments) = (examples.api("v1", "Service"), examples.api("apps/v1", "Deployment"));
    let color = |color: &str| ("/spec/selector/color", json!(color));
    let side = |image: &str| json!({"image": image, "replicas": 2});
    examples.put("BlueGreen", "shop", json!({"active": "blue", "blue": side("missing")})).await?;
    eventually("blue is there", PATIENCE, || deployments.get_opt("shop-blue"), Option::is_some).await?;
    eventually("it waits", PATIENCE, || examples.waits("BlueGreen", "shop"), |waits| *waits).await?;
    ensure(services.get_opt("shop").await?.is_none(), || "the Service did not wait".to_owned())?;
    examples.put("BlueGreen", "shop", json!({"active": "blue", "blue": side(SLEEPS)})).await?;
    let (pointer, blue) = color("blue");
    let service = examples.has(&services, "shop", pointer, blue.clone()).await?;

    // Green is asked for and cannot start: the Service stays, whoever leads.
    examples
        .put("BlueGreen", "shop", json!({"active": "green", "blue": side(SLEEPS), "green": side("missing")}))
        .await?;
    eventually("green is there", PATIENCE, || deployments.get_opt("shop-green"), Option::is_some).await?;
    eventually("it waits", PATIENCE, || examples.waits("BlueGreen", "shop"), |waits| *waits).await?;
    examples.hand_over("BlueGreen").await?;
    eventually("it waits", PATIENCE, || examples.waits("BlueGreen", "shop"), |waits| *waits).await?;
    examples.has(&services, "shop", pointer, blue).await?;

    // It starts: the Service turns, and is the same.
    examples.put("BlueGreen", "shop", json!({"active": "green", "blue": side(SLEEPS), "green": side(SLEEPS)})).await?;
    let turned = examples.has(&services, "shop", pointer, color("green").1).await?;
    ensure(turned.metadata.uid == service.metadata.uid, || "the Service was made anew".to_owned())?;
    let green = deployments.get("shop-green").await?;
    ensure(green.data["status"]["availableReplicas"] == 2, || format!("it turned too early: {green:?}"))?;
    // Back to blue, which changes at the same moment to what cannot start: what was ready before it says nothing.
    examples
        .put("BlueGreen", "shop", json!({"active": "blue", "blue": side("missing"), "green": side(SLEEPS)}))
        .await?;
    eventually("it waits", PATIENCE, || examples.waits("BlueGreen", "shop"), |waits| *waits).await?;
    examples.has(&services, "shop", pointer, color("green").1).await?;
    examples.put("BlueGreen", "shop", json!({"active": "green", "green": side(SLEEPS)})).await?;
    gone(&deployments, "shop-blue").await?;
    examples.has(&examples.example("BlueGreen"), "shop", "/status/active", json!("green")).await?;
    examples.delete("BlueGreen", "shop").await?;
    eventually("its children go", COLLECTION, || deployments.get_opt("shop-green"), Option::is_none).await?;
    Ok(())
}

impl Examples<'_> {
    /// Whether a condition says that one of the children waits for another.
    async fn waits(&self, kind: &str, name: &str) -> Result<bool> {
        let object = self.example(kind).get(name).await?;
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let waits = |it: &Value| it["type"] == "DependenciesReady" && it["reason"] == "NotReady";
        Ok(conditions.iter().any(waits)
            && object.data["status"]["observedGeneration"] == json!(object.metadata.generation))
    }
}
