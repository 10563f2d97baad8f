//! Read everywhere, write by the leader: what observers see and may not do, and what becomes of statuses that are handed
//! in on several replicas while the leader changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{Signal, eventually};
use serde_json::{Value, json};

use crate::{
    lone::{Lone, Plan, Program, all_ready, example, observer},
    program::Said,
    stage::{PATIENCE, Stage, TIMINGS, ensure, name_of, not, play, plural, tell},
};

/// What a replica's observer says in its log: each version that was told of, and the objects that it was told are gone.
fn observed(replica: &Lone) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut versions, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for line in replica.log()?.lines().filter(|line| line.contains(" observed what=")) {
        let field = |name: &str| {
            let after = line.split_once(&format!("{name}=\""))?.1;
            after.split_once('"').map(|(value, _)| value.to_owned())
        };
        versions.extend(field("version"));
        gone.extend(field("name").filter(|_| line.contains("what=\"deleted\"")));
    }
    Ok((versions, gone))
}

/// Waits until this is so of each replica.
async fn all(what: &str, replicas: &[Lone], is_so: impl Fn(&Lone) -> Result<bool>) -> Result<()> {
    let look = || async { replicas.iter().map(&is_so).collect::<Result<Vec<_>>>() };
    eventually(what, PATIENCE, look, |all| all.iter().all(|it| *it)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_sees_every_change_on_every_replica_and_writes_nothing() -> Result<()> {
    let mut stage = Stage::set("observes", 1).await?;
    stage.placement = "grace: 1s, settle: 1s";
    play(stage, |stage| async move {
        let (folder, kind) = (tempfile::tempdir()?, &stage.kinds[0]);
        let config = observer(stage, folder.path(), "config", "", ", standby: All")?;
        let mut replicas = Vec::new();
        for name in ["one", "two", "three"] {
            let environment = &[("OBSERVES", "true"), ("STANDS_BY", "true"), ("NO_COLOR", "1")];
            let plan = Plan { environment, ..Plan::new(Program::Observer, name, &config) };
            replicas.push(Lone::start(stage, plan).await?);
        }
        all_ready(&replicas).await?;
        all("all observe", &replicas, |one| Ok(one.log()?.contains("observed from now on"))).await?;
        let before = stage.audit()?.len();

        // The reconciler writes all the while; others come, change and go, and the kind changes hands.
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("observer.leasehold.dev", "v1", kind));
        let objects: Api<DynamicObject> = Api::namespaced_with(stage.client.clone(), &stage.namespace, &resource);
        let apply = async |name: &str, number: usize| {
            let object = json!({
                "apiVersion": "observer.leasehold.dev/v1", "kind": kind, "metadata": {"name": name},
                "spec": {"number": number},
            });
            objects.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(object)).await
        };
        for number in 0..300 {
            apply(&format!("extra-{}", number % 7), number).await?;
            if number == 100 {
                let old = stage.held(kind, |_| true).await?;
                let other = replicas.iter().find(|one| !one.is(&old)).context("another replica")?;
                let arguments = [&name_of(kind), "--to", &other.name];
                let moved = Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &arguments).await?;
                ensure(moved.code == Some(0), || format!("{moved:?}"))?;
                stage.held(kind, |holder| other.is(holder)).await?;
            }
            if number == 200 {
                // Longer than a watch lasts: what comes next is told all the same.
                tokio::time::sleep(Duration::from_secs(16)).await;
            }
        }
        for number in 0..3 {
            objects.delete(&format!("extra-{number}"), &Default::default()).await?;
        }
        let last = apply("last", 0).await?.metadata.resource_version.context("a version")?;
        all("the last change is seen by all", &replicas, |one| Ok(observed(one)?.0.contains(&last))).await?;

        let until: u64 = last.parse()?;
        let resource = plural(kind);
        let stored: BTreeSet<String> = stage
            .audit()?
            .into_iter()
            .skip(before)
            .filter(|event| event.resource == resource && event.verb == "patch" && event.succeeded())
            .filter_map(|event| {
                Some(event.response_object.as_ref()?.pointer("/metadata/resourceVersion")?.as_str()?.to_owned())
            })
            .filter(|version| version.parse::<u64>().is_ok_and(|version| version <= until))
            .collect();
        ensure(stored.len() > 300, || format!("enough has changed: {}", stored.len()))?;
        for replica in &replicas {
            let (versions, gone) = observed(replica)?;
            let missed: Vec<_> = stored.difference(&versions).collect();
            ensure(missed.is_empty(), || format!("{} has missed {missed:?} of {}", replica.name, stored.len()))?;
            let expected = (0..3).map(|number| format!("extra-{number}")).collect();
            ensure(gone == expected, || format!("{}: gone {gone:?}", replica.name))?;
            // What it tried to write was refused, counted, and said now and then.
            let metrics = replica.get("/metrics").await?.1;
            let line = metrics.lines().find(|line| line.starts_with("leasehold_standby_writes_total{"));
            let refused: u64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).context("the metric")?;
            ensure(refused >= 2 * stored.len() as u64, || format!("{}: {refused} refused", replica.name))?;
            let lines = replica.log()?.matches("has tried to write").count();
            ensure((1..=4).contains(&lines), || format!("{}: said {lines} times", replica.name))?;
        }
        let early = stage.audit()?.into_iter().find(|event| {
            let is_early = event.request_object.as_ref().is_some_and(|body| body.pointer("/spec/early").is_some());
            is_early || (event.resource == resource && event.verb == "delete" && event.user != "admin")
        });
        ensure(early.is_none(), || format!("{early:?}"))?;
        tell(&format!("{} versions seen by each of three observers", stored.len()));
        Ok(())
    })
    .await;
    Ok(())
}

const BACKENDS: usize = 8;
const LEASE_NAME: &str = "backend.examples.leasehold.dev";

/// Replicas of the read API, and what was reported to them.
struct ReadApi<'a> {
    stage: &'a Stage,
    folder: tempfile::TempDir,
    replicas: Vec<Lone>,
    started: usize,
    number: u64,
}

impl<'a> ReadApi<'a> {
    async fn set(stage: &'a Stage) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {}\nleases: {{{TIMINGS}}}\n\
             placement: {{grace: 1s, settle: 1s}}\ndefaults: {{standby: All}}\nkinds:\n\
             - {{apiVersion: examples.leasehold.dev/v1, kind: Backend, reconciler: {{builtin: backends}}}}\n",
            stage.namespace
        );
        std::fs::write(folder.path().join("leasehold.yaml"), config)?;
        let crd = tokio::process::Command::new(example("read_api")?).arg("crd").output().await?;
        stage.cluster.apply(&String::from_utf8(crd.stdout)?).await?;
        stage.cluster.established("backends.examples.leasehold.dev").await?;
        stage.cluster.apply(&RIGHTS.replace("@NAMESPACE@", &stage.namespace)).await?;
        for number in 0..BACKENDS {
            let object = format!(
                "{{apiVersion: examples.leasehold.dev/v1, kind: Backend, metadata: {{name: b{number}, namespace: {}}}, spec: {{url: \"http://b{number}\"}}}}",
                stage.namespace
            );
            let put = || async { stage.cluster.apply(&object).await };
            eventually("a backend is stored", PATIENCE, put, |_| true).await?;
        }
        let mut this = Self { stage, folder, replicas: Vec::new(), started: 0, number: 0 };
        for _ in 0..3 {
            this.start().await?;
        }
        Ok(this)
    }

    async fn start(&mut self) -> Result<()> {
        self.started += 1;
        let (name, config) = (format!("replica-{}", self.started), self.folder.path().join("leasehold.yaml"));
        let replica = Lone::start(self.stage, Plan::new(Program::Example("read_api"), &name, &config)).await?;
        replica.answers("/readyz", 200, PATIENCE).await?;
        // Only now it knows of the backends.
        replica.answers("/backends", 200, PATIENCE).await?;
        self.replicas.push(replica);
        Ok(())
    }

    /// Reports a new number of each backend to these replicas, each in its own order.
    async fn report(&mut self, to: impl Fn(&Lone) -> bool) -> Result<()> {
        self.number += 1;
        let (number, namespace) = (self.number, &self.stage.namespace);
        for (place, replica) in self.replicas.iter().filter(|one| to(one)).enumerate() {
            for backend in 0..BACKENDS {
                let path = format!("/backends/{namespace}/b{}", (backend + 3 * place) % BACKENDS);
                let (code, said) = replica.post(&path, &json!({"number": number, "healthy": number % 2 == 0})).await?;
                ensure(code == 200, || format!("{}: {code} {said}", replica.name))?;
            }
        }
        Ok(())
    }

    async fn holder(&self, of: impl Fn(&str) -> bool) -> Result<String> {
        let held = |holders: &BTreeMap<String, String>| holders.get(LEASE_NAME).is_some_and(|holder| of(holder));
        let holders = eventually("the kind is led", PATIENCE, || self.stage.holders(), held).await?;
        Ok(holders[LEASE_NAME].clone())
    }

    fn objects(&self) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("examples.leasehold.dev", "v1", "Backend"));
        Api::namespaced_with(self.stage.client.clone(), &self.stage.namespace, &resource)
    }

    /// Waits until each status is that of this number at least.
    async fn all_say(&self, number: u64) -> Result<()> {
        let api = self.objects();
        let look = || async {
            let all = api.list(&Default::default()).await?.items;
            let reports = all.iter().map(|it| it.data.pointer("/status/report").and_then(Value::as_u64).unwrap_or(0));
            anyhow::Ok(reports.collect::<Vec<_>>())
        };
        let enough = |all: &Vec<u64>| all.len() == BACKENDS && all.iter().all(|report| *report >= number);
        eventually(&format!("each status is of report {number}"), PATIENCE, look, enough).await?;
        Ok(())
    }

    async fn hand_over(&self, to: &str) -> Result<()> {
        let arguments = ["Backend", "--to", to];
        let moved = Said::by_hand_over(self.stage.cluster.kubeconfig(), &self.stage.namespace, &arguments).await?;
        ensure(moved.code == Some(0), || format!("{moved:?}"))
    }

    /// Each status that was stored, in the server's order: when, of which backend, which report, under which token.
    fn written(&self) -> Result<Vec<Written>> {
        let mut all: Vec<_> = self
            .stage
            .audit()?
            .into_iter()
            .filter(|event| event.resource == "backends" && event.subresource.as_deref() == Some("status"))
            .filter(|event| event.is_write() && event.succeeded())
            .filter_map(|event| {
                let object = event.response_object.as_ref()?;
                Some(Written {
                    version: object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()?,
                    backend: event.name.clone()?,
                    report: object.pointer("/status/report")?.as_u64()?,
                    token: object.pointer("/status/shard/token")?.as_str()?.to_owned(),
                    at: event.stage,
                })
            })
            .collect();
        all.sort_by_key(|written| written.version);
        Ok(all)
    }

    /// From the storing of each acquisition to that of the first status of its term.
    fn first_statuses(&self) -> Result<Vec<SignedDuration>> {
        let written = self.written()?;
        let mut acquired = BTreeMap::<String, Timestamp>::new();
        for event in self.stage.audit()?.into_iter().filter(|it| it.resource == "leases" && it.succeeded()) {
            let Some(object) = &event.response_object else { continue };
            let text = |path: &str| object.pointer(path).and_then(Value::as_str);
            let transitions = object.pointer("/spec/leaseTransitions").and_then(Value::as_i64);
            if let (Some(LEASE_NAME), Some(uid), Some(transitions), Some(holder)) =
                (text("/metadata/name"), text("/metadata/uid"), transitions, text("/spec/holderIdentity"))
                && !holder.is_empty()
            {
                acquired.entry(format!("{uid}/{transitions}")).or_insert(event.stage);
            }
        }
        let first = |(token, at): (&String, &Timestamp)| {
            written.iter().find(|it| it.token == *token).map(|it| it.at.duration_since(*at))
        };
        Ok(acquired.iter().filter_map(first).collect())
    }
}

#[derive(Debug)]
struct Written {
    version: u64,
    backend: String,
    report: u64,
    token: String,
    at: Timestamp,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_status_that_any_replica_knew_is_written_and_no_older_one_after_it() -> Result<()> {
    play(Stage::set("statuses", 1).await?, |stage| async move {
        let mut api = ReadApi::set(stage).await?;
        api.holder(|_| true).await?;

        // Handed in on all, while leaders are asked away, stop, die and freeze.
        for round in 0..8 {
            for _ in 0..12 {
                api.report(|_| true).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let old = api.holder(|_| true).await?;
            let index = api.replicas.iter().position(|one| one.is(&old)).context("the holder is one of them")?;
            let knew = api.number;
            match round % 4 {
                0 => {
                    let to = api.replicas[(index + 1) % api.replicas.len()].name.clone();
                    api.hand_over(&to).await?;
                }
                disturbance @ (1 | 2) => {
                    let mut gone = api.replicas.swap_remove(index);
                    gone.signal(if disturbance == 1 { Signal::KILL } else { Signal::TERM })?;
                    gone.ends(PATIENCE).await?;
                    // What comes while no replica leads is known to the standbys alone.
                    api.report(|_| true).await?;
                    api.holder(not(&gone.name)).await?;
                    api.start().await?;
                }
                _ => {
                    let frozen = api.replicas[index].name.clone();
                    api.replicas[index].signal(Signal::STOP)?;
                    api.report(|one| one.name != frozen).await?;
                    let knew = api.number;
                    api.holder(not(&frozen)).await?;
                    api.all_say(knew).await?;
                    api.replicas[index].signal(Signal::CONT)?;
                }
            }
            api.all_say(knew).await?;
        }
        api.all_say(api.number).await?;

        // Handed in on one standby alone: kept there, and written when that one leads.
        let leader = api.holder(|_| true).await?;
        let standby = api.replicas.iter().find(|one| !one.is(&leader)).context("a standby")?.name.clone();
        let before = api.number;
        api.report(|one| one.name == standby).await?;
        let keeper = api.replicas.iter().find(|one| one.name == standby).context("the standby")?;
        let said: Value = serde_json::from_str(&keeper.answers("/backends", 200, PATIENCE).await?)?;
        ensure(said["leading"] == false && said["statuses"]["kept"] == BACKENDS, || said["statuses"].to_string())?;
        let newest = api.written()?.iter().map(|written| written.report).max();
        ensure(newest == Some(before), || format!("a standby writes nothing: {newest:?}"))?;
        api.hand_over(&standby).await?;
        api.all_say(api.number).await?;

        let mut last = BTreeMap::new();
        let written = api.written()?;
        for one in &written {
            let before = last.insert(&one.backend, one.report);
            ensure(before.is_none_or(|before| before < one.report), || format!("{before:?} and then {one:?}"))?;
        }

        // Every replica serves it.
        for replica in &api.replicas {
            let look = || replica.get("/backends");
            let number = api.number;
            let is_current = |(_, body): &(u16, String)| {
                let body: Value = serde_json::from_str(body).unwrap_or_default();
                let all = body["backends"].as_array().cloned().unwrap_or_default();
                all.len() == BACKENDS
                    && all.iter().all(|it| it["status"]["report"] == number)
                    && body["statuses"]["kept"] == 0
            };
            eventually("the replica serves the newest reports", PATIENCE, look, is_current).await?;
        }

        let tokens: BTreeSet<_> = written.iter().map(|one| &one.token).collect();
        let mut first: Vec<_> = api.first_statuses()?.iter().map(SignedDuration::as_millis).collect();
        first.sort_unstable();
        tell(&format!(
            "{} reports of {BACKENDS} backends, {} statuses in {} terms; from winning to the first status: {first:?} ms",
            api.number,
            written.len(),
            tokens.len()
        ));
        ensure(tokens.len() >= 9, || format!("many have led: {tokens:?}"))
    })
    .await;
    Ok(())
}

const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: @NAMESPACE@-backends}
rules:
- {apiGroups: [examples.leasehold.dev], resources: [backends], verbs: [get, list, watch]}
- {apiGroups: [examples.leasehold.dev], resources: [backends/status], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: @NAMESPACE@-backends}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: @NAMESPACE@-backends}
subjects: [{kind: ServiceAccount, name: observer, namespace: @NAMESPACE@}]
";
