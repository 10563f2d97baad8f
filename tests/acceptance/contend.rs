//! Electors of client-go and replicas of ours contend for one lock, of each kind that there is, under injected faults: no
//! two hold it at once by the server's order.
//!
//! `TAKEOVERS` says how often the lock changes hands in each test; `make contend` has it a thousand times.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use kube::{Api, api::DynamicObject, core::ApiResource};
use leasehold_cluster::{AuditEvent, Fault, FaultProxy, Rule, Signal, eventually};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::{
    judge::{What, history},
    lone::{Lone, Plan, Program},
    stage::{PATIENCE, Stage, ensure, lease_of, play, plural, tell},
    things::now,
};

/// As short as a Lease can say.
const LEASE: Duration = Duration::from_secs(1);
const OURS: &str = "duration: 1s, renewDeadline: 600ms, retryPeriod: 100ms, requestTimeout: 250ms";
/// client-go reads times in whole seconds, so that renewals of one second look alike to it and it counts a holder out up to a
/// second too early: its duration is a second longer than ours.
const THEIRS: [&str; 6] = ["-lease-duration", "2s", "-renew-deadline", "600ms", "-retry-period", "100ms"];

/// The electors, theirs before ours.
const NAMES: [&str; 4] = ["theirs-0", "theirs-1", "ours-0", "ours-1"];

/// How long the lock may take to change hands as often as it is to, a time.
const EACH: Duration = Duration::from_secs(10);

fn takeovers() -> usize {
    std::env::var("TAKEOVERS").ok().and_then(|given| given.parse().ok()).unwrap_or(12)
}

#[tokio::test(flavor = "multi_thread")]
async fn contends_with_client_go_for_a_lease() -> Result<()> {
    play(stage("contend-lease").await?, |stage| contend(stage, "Lease", "leases")).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contends_with_client_go_for_a_config_map() -> Result<()> {
    play(stage("contend-cm").await?, |stage| contend(stage, "ConfigMap", "configmaps")).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contends_with_client_go_for_a_config_map_and_a_lease() -> Result<()> {
    play(stage("contend-both").await?, |stage| contend(stage, "ConfigMapsLeases", "configmapsleases")).await;
    Ok(())
}

async fn stage(name: &str) -> Result<Stage> {
    let mut stage = Stage::set(name, 1).await?;
    stage.judged = false;
    stage.placement = "grace: 200ms, settle: 2s";
    stage.grant_locks().await?;
    Ok(stage)
}

impl Stage {
    /// Grants the ConfigMaps that are locks, by name, as `leasehold rbac` prints it.
    pub async fn grant_locks(&self) -> Result<()> {
        let namespace = &self.namespace;
        let names: Vec<_> = self.kinds.iter().map(|kind| lease_of(kind)).collect();
        self.cluster
            .apply(&format!(
                r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: leasehold-locks, namespace: {namespace}}}
rules:
- {{apiGroups: [""], resources: [configmaps], resourceNames: [{}], verbs: [get, list, watch, update, delete]}}
- {{apiGroups: [""], resources: [configmaps], verbs: [create]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: leasehold-locks, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leasehold-locks}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {namespace}}}]
"#,
                names.join(", ")
            ))
            .await?;
        Ok(())
    }
}

/// The configuration of an observer with this lock.
pub fn observer(stage: &Stage, folder: &std::path::Path, lock: &str, timings: &str) -> Result<PathBuf> {
    let Stage { namespace, placement, kinds, .. } = stage;
    let kind = &kinds[0];
    let file = folder.join(format!("{lock}.yaml"));
    std::fs::write(
        &file,
        format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {namespace}\nleases: {{{timings}}}\n\
             placement: {{{placement}}}\ndrainTimeout: 3s\nkinds:\n\
             - {{apiVersion: observer.leasehold.dev/v1, kind: {kind}, lock: {lock}, reconciler: {{builtin: observer}}}}\n"
        ),
    )?;
    Ok(file)
}

/// An elector of an old client-go behind a proxy of its own.
pub struct Theirs {
    pub proxy: FaultProxy,
    process: Child,
}

impl Theirs {
    pub async fn start(stage: &Stage, name: &str, lock: &str, more: &[&str]) -> Result<Self> {
        let binaries = stage.cluster.binaries().clone();
        let program = tokio::task::spawn_blocking(move || binaries.old_client_go_elector()).await??;
        let proxy = stage.cluster.proxy().await?;
        let kubeconfig = stage.cluster.service_account_kubeconfig_at(&stage.namespace, "observer", proxy.url()).await?;
        let kind = &stage.kinds[0];
        let process = Command::new(program)
            .arg("-kubeconfig")
            .arg(&kubeconfig)
            .args(["-lock", lock, "-namespace", &stage.namespace, "-name", &lease_of(kind), "-identity", name])
            .args(["-resource", &plural(kind)])
            .args(more)
            .envs([stage.cluster.mark()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { proxy, process })
    }

    pub async fn stop(mut self) -> Result<()> {
        let id = self.process.id().context("it has ended")?.to_string();
        std::process::Command::new("kill").args(["-TERM", &id]).status()?;
        self.process.wait().await?;
        Ok(())
    }
}

async fn contend(stage: &'static Stage, lock: &str, theirs: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = observer(stage, folder.path(), lock, OURS)?;
    let wanted = takeovers();
    let mut give_up = THEIRS.to_vec();
    give_up.extend(["-term", "600ms", "-pause", "200ms"]);
    let electors = [
        Theirs::start(stage, NAMES[0], theirs, &give_up).await?,
        Theirs::start(stage, NAMES[1], theirs, &give_up).await?,
    ];
    let mut ours = Vec::new();
    for name in &NAMES[2..] {
        ours.push(
            Lone::start(
                stage,
                Plan { environment: &[("STUBBORN", "true")], ..Plan::new(Program::Observer, name, &file) },
            )
            .await?,
        );
    }
    let proxies: Vec<_> = electors.iter().map(|it| &it.proxy).chain(ours.iter().map(|it| &it.proxy)).collect();
    let until = now() + PATIENCE + EACH * u32::try_from(wanted)?;
    let mut locks = Locks::of(stage);
    loop {
        let holders = || locks.stored.values().flatten().filter(|write| !write.holder.is_empty());
        let both = holders().any(Write::is_ours) && holders().any(|write| !write.is_ours());
        let changes = locks.stored.values().map(|writes| takeovers_of(writes)).max().unwrap_or(0);
        if both && changes >= wanted {
            break;
        }
        ensure(now() < until, || format!("the lock has changed hands {changes} times only: {:?}", locks.stored))?;
        // What the victims send and hear is late, lost, or applied and not answered; or they stand still.
        let victims = victims(locks.holder());
        let fault = fastrand::u8(..5);
        let late = |most| Duration::from_millis(fastrand::u64(20..most));
        for proxy in victims.iter().map(|victim| proxies[*victim]) {
            match fault {
                0 => proxy.partition(),
                1 => _ = proxy.add(Rule::new(Fault::Delay(late(400)))),
                2 => _ = proxy.add(Rule::new(Fault::Lag(late(600)))),
                3 => {
                    let silence = leasehold_cluster::Silence::Close;
                    _ = proxy.add(Rule::new(Fault::AppliedButUnanswered(silence)).verbs(&["PUT", "POST"]));
                }
                _ => {}
            }
        }
        let stopped = || victims.iter().filter(|_| fault == 4).filter_map(|victim| ours.get(victim.checked_sub(2)?));
        stopped().try_for_each(|replica| replica.signal(Signal::STOP))?;
        // A side that is cut off for as long as a duration of client-go's loses the lock.
        let (before, heals) =
            (locks.holder().map(Write::is_ours), now() + Duration::from_millis(fastrand::u64(200..3000)));
        while now() < heals && locks.holder().map(Write::is_ours) == before {
            sleep(Duration::from_millis(100)).await;
            locks.read(stage)?;
        }
        stopped().try_for_each(|replica| replica.signal(Signal::CONT))?;
        for proxy in &proxies {
            proxy.heal();
            proxy.clear();
        }
        sleep(Duration::from_millis(fastrand::u64(50..400))).await;
        locks.read(stage)?;
    }
    // Nothing is written any more while it is judged.
    for replica in &ours {
        replica.signal(Signal::TERM)?;
    }
    for replica in &mut ours {
        replica.ends(PATIENCE).await?;
    }
    for elector in electors {
        elector.stop().await?;
    }
    let mut all = Vec::new();
    locks.read(stage)?;
    for (object, writes) in &locks.stored {
        let object = if lock == "ConfigMapsLeases" { format!("{object} of a pair") } else { object.clone() };
        no_two_hold(&object, writes)?;
        tell(&said(&object, writes));
        all.extend(writes);
    }
    ensure(all.iter().any(|it| it.is_ours()) && all.iter().any(|it| !it.is_ours() && !it.holder.is_empty()), || {
        "both sides have held the lock".to_owned()
    })?;
    worked_while_they_held(stage, lock, &locks.stored)
}

/// Who has trouble, theirs before ours: any one; the holder; or all of its side, so that the other side has to take over.
fn victims(holder: Option<&Write>) -> Vec<usize> {
    match (holder, fastrand::u8(..4)) {
        (Some(holder), 0) => (0..4).filter(|it| holder.holder.starts_with(NAMES[*it])).collect(),
        (Some(holder), 1 | 2) => {
            if holder.is_ours() {
                vec![2, 3]
            } else {
                vec![0, 1]
            }
        }
        _ => vec![fastrand::usize(..4)],
    }
}

/// One stored write of an object that is a lock.
#[derive(Clone, Debug)]
pub struct Write {
    version: u64,
    holder: String,
    duration: Duration,
    at: k8s_openapi::jiff::Timestamp,
    received: k8s_openapi::jiff::Timestamp,
}

impl Write {
    fn is_ours(&self) -> bool {
        self.holder.contains('_')
    }
}

/// All that was stored of the objects that are the kind's lock, in the server's order: `leases` and `configmaps`.
pub fn locks(stage: &Stage) -> Result<BTreeMap<String, Vec<Write>>> {
    let mut locks = Locks::of(stage);
    locks.read(stage)?;
    Ok(locks.stored)
}

/// What was stored of them so far, and from where the audit log is to be read on.
struct Locks {
    stored: BTreeMap<String, Vec<Write>>,
    next: usize,
}

impl Locks {
    fn of(stage: &Stage) -> Self {
        Self { stored: BTreeMap::new(), next: stage.started }
    }

    fn read(&mut self, stage: &Stage) -> Result<()> {
        let name = lease_of(&stage.kinds[0]);
        for event in stage.audit_from(&mut self.next)? {
            let is_lock = ["leases", "configmaps"].contains(&event.resource.as_str());
            if is_lock
                && event.is_write()
                && event.succeeded()
                && event.verb != "delete"
                && let Some(write) = written(&event, &name)
            {
                self.stored.entry(event.resource.clone()).or_default().push(write);
            }
        }
        self.stored.values_mut().for_each(|writes| writes.sort_by_key(|write| write.version));
        Ok(())
    }

    /// The last write of any of them, if it names a holder.
    fn holder(&self) -> Option<&Write> {
        let last = self.stored.values().filter_map(|writes| writes.last()).max_by_key(|write| write.version)?;
        (!last.holder.is_empty()).then_some(last)
    }
}

fn written(event: &AuditEvent, name: &str) -> Option<Write> {
    let object = event.response_object.as_ref()?;
    if object.pointer("/metadata/name")?.as_str()? != name {
        return None;
    }
    let record: Value = match object.get("spec") {
        Some(spec) => spec.clone(),
        None => {
            let record = object.pointer("/metadata/annotations/control-plane.alpha.kubernetes.io~1leader")?;
            serde_json::from_str(record.as_str()?).ok()?
        }
    };
    Some(Write {
        version: object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()?,
        holder: record["holderIdentity"].as_str().unwrap_or_default().to_owned(),
        duration: Duration::from_secs(record["leaseDurationSeconds"].as_u64().unwrap_or_default()),
        at: event.stage,
        received: event.request_received,
    })
}

/// How often it was taken from or by a replica of ours; what client-go's electors do between them is not counted.
fn takeovers_of(writes: &[Write]) -> usize {
    let mut holders: Vec<_> = writes.iter().filter(|write| !write.holder.is_empty()).collect();
    holders.dedup_by_key(|write| &write.holder);
    holders.windows(2).filter(|pair| pair.iter().any(|write| write.is_ours())).count()
}

/// Fails if a process has taken the object from another that had not released it, and may have counted itself its holder
/// still: each counts for its duration, from before the server has received its last renewal, and no longer.
///
/// client-go's MultiLock writes its Lease without the version that it has decided on, and so late that it may overwrite what
/// a later holder has written: of its Leases no more is asked than that of ours.
pub fn no_two_hold(object: &str, writes: &[Write]) -> Result<()> {
    // A renewal of a ConfigMap by client-go within one second changes nothing, and no other process sees it. It is sent before
    // that second is over, and client-go ends its work by its renew deadline: the two together are less than its duration.
    let mut writes = writes.to_vec();
    writes.dedup_by_key(|write| write.version);
    for (index, pair) in writes.windows(2).enumerate() {
        let [before, next] = pair else { continue };
        // What client-go's electors do to each other is their matter.
        if !before.is_ours() && !next.is_ours() {
            continue;
        }
        let by_multi_lock = object == "leases of a pair" && !next.is_ours();
        if before.holder.is_empty() || next.holder.is_empty() || before.holder == next.holder || by_multi_lock {
            continue;
        }
        let after = next.received.duration_since(before.received);
        // Ours counts from before it sends, up to a request's time before the server receives it; client-go from when a time of
        // another second was stored, which is up to a second before.
        let early = if before.is_ours() && !next.is_ours() { Duration::from_millis(250) } else { Duration::ZERO };
        if after < before.duration.saturating_sub(early).try_into()? {
            let lines: Vec<_> =
                writes[index.saturating_sub(6)..=index + 1].iter().map(|it| format!("{it:?}")).collect();
            bail!(
                "{object}: {} takes it {after:?} after {} renewed it:\n{}",
                next.holder,
                before.holder,
                lines.join("\n")
            );
        }
    }
    Ok(())
}

/// How often it changed hands, and for how long no process held it then.
pub fn said(object: &str, writes: &[Write]) -> String {
    let (mut released, mut expired) = (Vec::new(), Vec::new());
    let mut last: Option<&Write> = None;
    for write in writes {
        if let Some(last) = last.filter(|last| last.holder != write.holder && !write.holder.is_empty()) {
            let gap = write.at.duration_since(last.at).as_millis();
            if last.holder.is_empty() { released.push(gap) } else { expired.push(gap) }
        }
        last = Some(write);
    }
    let show = |gaps: &mut Vec<i128>| {
        gaps.sort_unstable();
        let at = |part: usize| gaps.get((gaps.len().saturating_sub(1)) * part / 100).copied().unwrap_or_default();
        format!("{} (ms: median {}, 90 % {}, most {})", gaps.len(), at(50), at(90), at(100))
    };
    format!(
        "{object}: {} writes, {} takeovers; after a release {}; by expiry {}",
        writes.len(),
        takeovers_of(writes),
        show(&mut released),
        show(&mut expired)
    )
}

/// Fails if a replica of ours wrote its object at a moment, by the server's order, at which the lock named another or none.
fn worked_while_they_held(stage: &Stage, lock: &str, objects: &BTreeMap<String, Vec<Write>>) -> Result<()> {
    // Of a pair the ConfigMap is judged by: see `no_two_hold`.
    let object = if lock == "Lease" { "leases" } else { "configmaps" };
    let writes = objects.get(object).context("the lock was written")?;
    let mut ours = 0;
    for stored in history(stage, &stage.kinds[0])? {
        let What::Worked { holder, .. } = &stored.what else { continue };
        if !holder.contains('_') {
            continue;
        }
        ours += 1;
        let index = writes.partition_point(|write| write.version < stored.version);
        let named = index.checked_sub(1).map(|index| &writes[index].holder);
        ensure(named == Some(holder), || {
            format!("{holder} wrote at {} while {object} named {named:?}", stored.version)
        })?;
    }
    tell(&format!("{ours} writes of ours, each while the lock named its writer"));
    ensure(ours > 0, || "ours has worked".to_owned())
}

/// An object as the API server has it.
pub fn config_maps(stage: &Stage) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
    Api::namespaced_with(stage.client.clone(), &stage.namespace, &resource)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_with_data_is_left_alone_and_named() -> Result<()> {
    play(stage("foreign-cm").await?, |stage| async {
        let (kind, namespace) = (&stage.kinds[0], &stage.namespace);
        let name = lease_of(kind);
        stage
            .cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: {namespace}}}, data: {{theirs: stays}}}}"
            ))
            .await?;
        let before = config_maps(stage).get(&name).await?;
        let folder = tempfile::tempdir()?;
        for lock in ["ConfigMap", "ConfigMapsLeases"] {
            let file = observer(stage, folder.path(), lock, OURS)?;
            let replica = Lone::start(stage, Plan::new(Program::Observer, &lock.to_lowercase(), &file)).await?;
            replica.answers("/readyz", 200, PATIENCE).await?;
            let kind = crate::stage::name_of(kind);
            let says = || replica.shard(&kind);
            let named = |row: &Value| row["trouble"].as_str().is_some_and(|why| why.contains("it carries data"));
            eventually("/shards says why", PATIENCE, says, named).await?;
            let (_, metrics) = replica.get("/metrics").await?;
            let counted = r#"leasehold_lease_requests_total{verb="get",outcome="foreign"}"#;
            ensure(metrics.contains(counted), || format!("a metric counts it: {metrics}"))?;
            sleep(2 * LEASE).await;
        }
        let after = config_maps(stage).get(&name).await?;
        ensure(before == after, || format!("it is as it was: {after:?}"))?;
        ensure(history(stage, kind)?.is_empty(), || "none has led".to_owned())
    })
    .await;
    Ok(())
}
