//! Each setting of state through what goes wrong around it: writes that are refused, a deletion and an API server that dies,
//! all of them in the middle of the work.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};

use crate::{
    rows::writes,
    stage::{COLLECTION, PATIENCE, Stage, ensure, play, tell},
    state::{World, gone, is_released, set},
};

const EVERY_SETTING: &str = r#"children:
- id: data
  deletion: Keep
  adopt: IfUnowned
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-data"}
    data: {value: "${parent.spec.value}"}
- id: taken
  deletion: Keep
  adopt: Always
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-taken"}
    data: {value: "${parent.spec.value}"}
- id: keys
  deletion: Keep
  adopt: IfUnowned
  generate: {password: {length: 32}}
  renew: "${parent.spec.value}"
  template:
    apiVersion: v1
    kind: Secret
    metadata: {name: "${parent.metadata.name}-keys"}
- id: fixed
  update: Recreate
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-fixed"}
    immutable: true
    data: {value: "${parent.spec.value}"}
- id: rolled
  update: OnDelete
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-rolled"}
    data: {value: "${parent.spec.value}"}
- id: base
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-base"}
    data: {value: "${parent.spec.value}", ready: "${parent.spec.ready}"}
  readyWhen: ["${self.data.ready == 'yes'}"]
- id: app
  after: [{id: base, ready: true}]
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: "${parent.metadata.name}-app"}
    data: {value: "${parent.spec.value}"}
"#;

/// So many that a change of all of them takes a while.
const OBJECTS: usize = 40;

/// The first of these are deleted amid the change.
const DELETED: usize = 8;

/// What people cannot lose.
const PRECIOUS: [&str; 3] = ["data", "taken", "keys"];

fn object(number: usize) -> String {
    format!("it-{number}")
}

/// All children by name.
type Children = BTreeMap<String, DynamicObject>;

async fn children(world: &World<'_>) -> Result<Children> {
    let (maps, secrets) = (world.maps(), world.api("v1", "Secret"));
    let all = ListParams::default();
    let (maps, secrets) = tokio::try_join!(maps.list(&all), secrets.list(&all))?;
    let ours = maps.items.into_iter().chain(secrets.items).filter(|it| it.name_any().starts_with("it-"));
    Ok(ours.map(|it| (it.name_any(), it)).collect())
}

/// Whether nothing says any more that it is a child. A Secret keeps what it says of the values that were made for it.
fn is_let_go(child: &DynamicObject) -> bool {
    let labels = child.labels().keys().any(|key| key.contains("leasehold"));
    is_released(child) || (child.data.get("type").is_some() && !labels && child.owner_references().is_empty())
}

async fn put_all(world: &World<'_>, numbers: std::ops::Range<usize>, spec: &Value) -> Result<()> {
    let put = |number: usize| async move { world.put(&object(number), spec.clone()).await };
    let all: Vec<_> = numbers.map(put).collect();
    stream::iter(all).buffer_unordered(8).try_collect().await
}

/// Waits until all of these say that they are as their spec of now asks for.
async fn all_ready(world: &World<'_>, numbers: std::ops::Range<usize>) -> Result<()> {
    let look = || async {
        let all = world.parents().list(&ListParams::default()).await?.items;
        let is_ready = |it: &&DynamicObject| {
            let conditions = it.data["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|is| is["type"] == "Ready" && is["status"] == "True")
                && it.data["status"]["observedGeneration"] == json!(it.metadata.generation)
        };
        anyhow::Ok(all.iter().filter(is_ready).map(ResourceExt::name_any).collect::<BTreeSet<_>>())
    };
    let wanted: BTreeSet<_> = numbers.map(object).collect();
    eventually("all are ready", 2 * PATIENCE, look, |ready| wanted.is_subset(ready)).await?;
    Ok(())
}

/// Kills the API server as soon as this many objects of that sort have the value, and starts it again.
async fn kill_amid(world: &World<'_>, what: &str, is_done: impl Fn(&Children) -> usize) -> Result<()> {
    let done = eventually(what, PATIENCE, || children(world), |children| is_done(children) > 0).await?;
    world.stage.cluster.kill_api_server().await?;
    tell(&format!("{what}: the API server is killed when {} are done", is_done(&done)));
    world.stage.cluster.start_api_server().await
}

fn with_value(end: &'static str, value: &'static str) -> impl Fn(&Children) -> usize {
    move |children| {
        let is_so = |(name, it): &(&String, &DynamicObject)| name.ends_with(end) && it.data["data"]["value"] == value;
        children.iter().filter(is_so).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_of_state_outlives_refusals_and_a_killed_api_server() -> Result<()> {
    play(Stage::set_apart("outage", 1).await?, |stage| async move {
        let things = set(stage, EVERY_SETTING).await?;
        let world = World::of(stage, &things);
        for number in 0..OBJECTS {
            let precious = json!({"precious": "x"});
            let metadata = json!({"name": format!("{}-taken", object(number)), "namespace": world.home});
            let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": precious});
            stage.cluster.apply(&theirs.to_string()).await?;
        }

        // The first pass of all, through an API server that dies.
        put_all(&world, 0..OBJECTS, &json!({"value": "1", "ready": "yes"})).await?;
        kill_amid(&world, "creations", with_value("-data", "1")).await?;
        all_ready(&world, 0..OBJECTS).await?;
        let first = children(&world).await?;
        ensure(first.len() == 7 * OBJECTS, || format!("{:?}", first.keys()))?;

        // Nothing of ours is taken any more, and everything is to change: that is told, and costs nothing.
        refuse(&world).await?;
        put_all(&world, 0..OBJECTS, &json!({"value": "2", "ready": "no"})).await?;
        for number in 0..DELETED {
            world.parents().delete(&object(number), &DeleteParams::default()).await?;
        }
        for name in [object(0), object(OBJECTS - 1)] {
            let said = world.says(&name, "Applied", "False", "Forbidden").await?["message"].to_string();
            // The kind has a Secret, so the API server's own words, which may quote one, are left out.
            ensure(said.contains("403 Forbidden") && !said.contains("not today"), || said)?;
        }
        world.hand_over().await?;
        world.says(&object(OBJECTS - 1), "Applied", "False", "Forbidden").await?;
        let held = children(&world).await?;
        let data = |it: &DynamicObject| (it.metadata.uid.clone(), it.data["data"].clone());
        for (name, it) in &first {
            ensure(held.get(name).map(data) == Some(data(it)), || {
                format!("{name}: {it:#?} became {:#?}", held.get(name))
            })?;
        }

        // They are taken again, and amid the change the API server dies.
        let before = stage.cluster.audit()?.len();
        stage.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "not-today"]).await?;
        kill_amid(&world, "changes", with_value("-fixed", "2")).await?;
        let waits = |number: usize| {
            let world = &world;
            async move { world.says(&object(number), "DependenciesReady", "Unknown", "NotReady").await }
        };
        for number in DELETED..OBJECTS {
            waits(number).await?;
        }
        put_all(&world, DELETED..OBJECTS, &json!({"value": "2", "ready": "yes"})).await?;
        all_ready(&world, DELETED..OBJECTS).await?;
        for number in 0..DELETED {
            gone(&world.parents(), &object(number)).await?;
        }
        let second = children(&world).await?;
        changed(&first, &second)?;
        once(stage, before, &first, &second)?;

        // Settled, another leader writes nothing; the same after an API server that dies with nothing to do.
        world.hand_over().await?;
        stage.cluster.kill_api_server().await?;
        stage.cluster.start_api_server().await?;
        world.put(&object(OBJECTS), json!({"value": "1", "ready": "yes"})).await?;
        all_ready(&world, DELETED..OBJECTS + 1).await?;
        let third = children(&world).await?;
        for (name, it) in &second {
            ensure(third.get(name).map(data) == Some(data(it)), || {
                format!("{name}: {it:#?} became {:#?}", third.get(name))
            })?;
        }

        // All are deleted, and amid that the API server dies: what is kept is released, the rest is gone.
        let delete = ["delete", "things", "--all", "-n", &world.home, "--wait=false"];
        stage.cluster.kubectl(&delete).await?;
        let released = |children: &Children| {
            children
                .iter()
                .filter(|(name, it)| name.ends_with("-data") && is_let_go(it))
                .count()
                .saturating_sub(DELETED)
        };
        kill_amid(&world, "deletions", released).await?;
        let parents = world.parents();
        let none = || async { anyhow::Ok(parents.list(&ListParams::default()).await?.items.len()) };
        eventually("all are gone", COLLECTION, none, |left| *left == 0).await?;
        let only_kept =
            |children: &Children| children.keys().all(|name| PRECIOUS.iter().any(|end| name.ends_with(end)));
        let last = eventually("only what is kept is left", COLLECTION, || children(&world), only_kept).await?;
        ensure(last.len() == PRECIOUS.len() * (OBJECTS + 1), || format!("{:?}", last.keys()))?;
        for (name, it) in &last {
            ensure(is_let_go(it), || format!("{name} is not released: {it:#?}"))?;
            let before = third.get(name).or(first.get(name));
            ensure(before.map(data) == Some(data(it)), || format!("{name}: {before:#?} became {it:#?}"))?;
        }
        let lost = writes(stage, 0)?.into_iter().find(|event| {
            let precious = PRECIOUS.iter().any(|end| event.name.as_deref().is_some_and(|name| name.ends_with(end)));
            event.verb == "delete" && precious
        });
        ensure(lost.is_none(), || format!("{lost:#?}"))
    })
    .await;
    Ok(())
}

/// The API server refuses all that the replicas write on children, and says why.
async fn refuse(world: &World<'_>) -> Result<()> {
    let account = format!("system:serviceaccount:{}:observer", world.stage.namespace);
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "not-today"},
        "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps", "secrets"]}]},
            "validations": [{"expression": format!("request.userInfo.username != '{account}'"), "message": "not today", "reason": "Forbidden"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "not-today"},
        "spec": {"policyName": "not-today", "validationActions": ["Deny"]},
    });
    world.stage.cluster.apply(&policy.to_string()).await?;
    world.stage.cluster.apply(&binding.to_string()).await?;
    let maps = world.maps();
    let asked = [
        "annotate",
        "configmap",
        "it-0-data",
        "-n",
        &world.home,
        "--as",
        &account,
        "--dry-run=server",
        "a=b",
        "--overwrite",
    ];
    let refused = || async {
        anyhow::Ok(
            world.stage.cluster.kubectl(&asked).await.err().map(|error| format!("{error:#}")).unwrap_or_default(),
        )
    };
    eventually("it refuses", PATIENCE, refused, |said| said.contains("not today")).await?;
    // Ours alone: the test itself may write.
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"seen": "yes"}}}));
    maps.patch("it-0-data", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// What each child is after the change of all objects, and after the deletion of some.
fn changed(first: &Children, second: &Children) -> Result<()> {
    for (name, was) in first {
        let (number, id) = name.trim_start_matches("it-").split_once('-').unwrap_or_default();
        let is = second.get(name);
        let deleted = number.parse::<usize>().is_ok_and(|number| number < DELETED);
        let same = is.is_some_and(|is| is.metadata.uid == was.metadata.uid);
        let value = is.map(|is| is.data["data"]["value"].clone());
        let wrong = || format!("{name}: {was:#?} became {is:#?}");
        if deleted {
            // Kept or gone, and never changed: its object was to be deleted when the writes were taken again.
            let kept = PRECIOUS.contains(&id);
            ensure(kept == is.is_some(), wrong)?;
            ensure(is.is_none_or(|is| same && is_let_go(is) && is.data["data"] == was.data["data"]), wrong)?;
            continue;
        }
        match id {
            "data" | "base" | "app" => ensure(same && value == Some(json!("2")), wrong)?,
            "taken" => {
                let own = is.map(|is| is.data["data"]["precious"].clone());
                ensure(same && value == Some(json!("2")) && own == Some(json!("x")), wrong)?;
            }
            "keys" => {
                let password = |it: &DynamicObject| it.data["data"]["password"].clone();
                ensure(same && is.map(password) != Some(password(was)), wrong)?;
            }
            "fixed" => ensure(!same && value == Some(json!("2")), wrong)?,
            "rolled" => ensure(same && value == Some(json!("1")), wrong)?,
            _ => ensure(false, wrong)?,
        }
    }
    ensure(second.len() == first.len() - DELETED * (7 - PRECIOUS.len()), || format!("{:?}", second.keys()))
}

/// In the writes from that place on, each immutable child went once, and each password was made once.
fn once(stage: &Stage, before: usize, first: &Children, second: &Children) -> Result<()> {
    let mut gone: BTreeMap<String, usize> = BTreeMap::new();
    let mut passwords: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for event in writes(stage, before)?.iter().filter(|event| event.succeeded()) {
        let name = event.name.clone().unwrap_or_default();
        if event.verb == "delete" && event.resource == "configmaps" && name.ends_with("-fixed") {
            *gone.entry(name.clone()).or_default() += 1;
        }
        let stored = event.response_object.as_ref().and_then(|it| it.pointer("/data/password")?.as_str());
        if let Some(password) = stored.filter(|_| event.resource == "secrets") {
            passwords.entry(name).or_default().insert(password.to_owned());
        }
    }
    let twice: Vec<_> = gone.iter().filter(|(_, times)| **times > 1).collect();
    ensure(twice.is_empty(), || format!("deleted more than once: {twice:?}"))?;
    for (name, seen) in passwords {
        let known = [first, second].map(|children| {
            children.get(&name).and_then(|it| it.data["data"]["password"].as_str()).unwrap_or_default().to_owned()
        });
        let other: Vec<_> = seen.iter().filter(|password| !known.contains(password)).collect();
        ensure(other.is_empty(), || format!("{name}: made more than once: {}", other.len()))?;
    }
    Ok(())
}
