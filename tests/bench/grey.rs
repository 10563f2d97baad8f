//! Beside a grey replica, which is alive and of no use: for which share of the time ten kinds are led and their changes
//! served, for how long they are left at the most, and how often they move. And how soon silent connections are noticed.
//!
//! What is seen is seen by watches of this program, by this machine's clock: the audit log of ten minutes would fill its memory.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::{WatchStreamExt, watcher},
};
use leasehold_cluster::{Fault, FaultProxy, Rule, eventually};
use serde_json::json;
use tokio::{process::Command, time::MissedTickBehavior};

use crate::{
    field::{BOTH, DEFAULT, Field, Fleet, GROUP as KINDS_GROUP, System, Timings, now, pod_of},
    record::millis,
    report::{Report, say},
};

const GROUP: &str = "10 kinds beside one grey replica of three (15 s Leases, a change a second of each kind)";
const SILENT: &str = "connections that go silent, and stay open (15 s Leases)";
const KINDS: usize = 10;
/// The grey replica answers late, but in time for renewals of both systems.
const TIMINGS: Timings = Timings { request: 2_000, ..DEFAULT };
/// Renewals, caches and the spread have come to rest.
const REST: Duration = Duration::from_secs(12);
const BEAT: Duration = Duration::from_secs(1);
/// A change that waits for longer is not being served. Slow is not left: a lag of 3 s alone is none of it.
const WAITING: f64 = 5.0;
/// Longer than a watch that ends by itself.
const NOTICED: Duration = Duration::from_secs(420);

/// What is wrong with a replica.
#[derive(Clone, Copy)]
pub(crate) enum Greyness {
    /// Whatever it asks for of a kind's Lease is forbidden. It joins the other two, and holds nothing.
    Refused,
    /// What its watches show is late.
    Lagging,
    /// Its watches hang, those that run and those that begin.
    Deaf,
    /// Each of its requests takes longer.
    Slow,
}

pub(crate) const ALL: [Greyness; 4] = [Greyness::Refused, Greyness::Lagging, Greyness::Deaf, Greyness::Slow];

impl Greyness {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Lagging => "lagging",
            Self::Deaf => "deaf",
            Self::Slow => "slow",
        }
    }

    const fn says(self) -> &'static str {
        match self {
            Self::Refused => "refused (403 to acquisitions)",
            Self::Lagging => "lagging (watches by 3 s)",
            Self::Deaf => "deaf (watches hang)",
            Self::Slow => "slow (requests by 1.5 s)",
        }
    }

    fn befalls(self, proxy: &FaultProxy) {
        proxy.add(match self {
            Self::Refused => Rule::new(Fault::Status { code: 403, retry_after: None })
                .verbs(&["PUT", "POST"])
                .resource("leases")
                .path(KINDS_GROUP),
            Self::Lagging => Rule::new(Fault::Lag(Duration::from_secs(3))).verbs(&["WATCH"]),
            Self::Deaf => Rule::new(Fault::BlackHole).verbs(&["WATCH"]),
            Self::Slow => Rule::new(Fault::Delay(Duration::from_millis(1_500))),
        });
    }
}

/// Measures these sorts of greyness for a time each, both systems beside each other; and `trials` silences, if it is all sorts.
///
/// # Errors
/// When a replica does not come up, or the kinds are not led before one is grey.
pub(crate) async fn measure(
    field: &Field,
    sorts: &[Greyness],
    time: Duration,
    trials: usize,
    report: &mut Report,
) -> Result<()> {
    field.kinds(KINDS).await?;
    for greyness in sorts.iter().copied() {
        let [ours, theirs] = BOTH.map(|system| beside(field, system, greyness, time));
        let (ours, theirs) = tokio::try_join!(ours, theirs)?;
        for (system, seen) in BOTH.into_iter().zip([ours, theirs]) {
            let name = system.name();
            let says = greyness.says();
            report.add(GROUP, name, format!("{says}: led, share of the time, each kind"), "%", seen.led);
            report.add(GROUP, name, format!("{says}: served, share of the time, each kind"), "%", seen.served);
            report.add(GROUP, name, format!("{says}: longest without a leader, each kind"), "s", seen.unled);
            report.add(GROUP, name, format!("{says}: longest wait of a change, each kind"), "s", seen.waited);
            report.add(GROUP, name, format!("{says}: moves, each kind"), "moves", seen.moves);
        }
    }
    if sorts.len() < ALL.len() {
        return Ok(());
    }
    let [ours, theirs] = BOTH.map(|system| silent(field, system, trials));
    let (ours, theirs) = tokio::try_join!(ours, theirs)?;
    for (system, waited) in BOTH.into_iter().zip([ours, theirs]) {
        report.add(SILENT, system.name(), "silence to the next change served", "s", waited);
    }
    Ok(())
}

/// A value of each kind.
#[derive(Default)]
struct Seen {
    led: Vec<f64>,
    served: Vec<f64>,
    unled: Vec<f64>,
    waited: Vec<f64>,
    moves: Vec<f64>,
}

async fn beside(field: &Field, system: System, greyness: Greyness, time: Duration) -> Result<Seen> {
    let joins = matches!(greyness, Greyness::Refused);
    let replicas = if joins { 2 } else { 3 };
    let name = format!("grey-{}", greyness.name());
    let fleet = field.fleet_from(0, system, &name, KINDS, replicas, TIMINGS).await?;
    for kind in 0..KINDS {
        fleet.object_of(kind).await?;
    }
    let before = fleet.running(replicas).await?;
    fleet.held("every kind is led", |_| true).await?;
    tokio::time::sleep(REST).await;
    let grey = if joins {
        fleet.kubectl(&["scale", "deployment/replica", "--replicas=3"]).await?;
        let pods = fleet.running(3).await?;
        pods.into_iter().find(|pod| !before.contains(pod)).context("a third pod")?
    } else {
        // The worst of three: the one that leads the most kinds.
        let holders = field.holders(&fleet.namespace).await?;
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        holders.values().for_each(|holder| *shares.entry(pod_of(holder)).or_default() += 1);
        let most = shares.into_iter().max_by_key(|(_, kinds)| *kinds);
        most.context("a holder")?.0.to_owned()
    };
    greyness.befalls(&field.kubelet.proxy(&fleet.namespace, &grey).context("its proxy")?);
    let (from, until) = (now(), tokio::time::sleep(time));
    let mut waits: Vec<_> = (0..KINDS).map(|_| Waits::default()).collect();
    let mut leaders = BTreeMap::new();
    tokio::select! {
        broken = try_join_all(waits.iter_mut().enumerate().map(|(kind, waits)| changes(&fleet, kind, waits))) => broken.map(drop)?,
        broken = watch_leases(&fleet, &mut leaders) => broken?,
        () = until => {}
    }
    let to = now();
    let mut seen = Seen::default();
    for waits in &mut waits {
        let (share, longest) = waits.end(from, to);
        seen.served.push(share);
        seen.waited.push(longest);
    }
    for stored in leaders.values() {
        let (share, longest, moves) = led(stored, from, to);
        seen.led.push(share);
        seen.unled.push(longest);
        seen.moves.push(moves);
    }
    say(&format!("grey, {}: {}", system.name(), greyness.name()));
    fleet.end().await?;
    Ok(seen)
}

/// The changes of one object and how long each waited.
#[derive(Default)]
struct Waits {
    /// Not served yet: its number and when it was made.
    pending: VecDeque<(i64, Timestamp)>,
    /// Times in which a change had waited too long, as seconds since a fixed moment; they may overlap.
    left: Vec<(Timestamp, Timestamp)>,
    longest: f64,
}

impl Waits {
    fn served(&mut self, upto: i64, at: Timestamp) {
        while let Some((_, made)) = self.pending.pop_front_if(|(change, _)| *change <= upto) {
            self.longest = self.longest.max(millis(made, at) / 1000.0);
            let late = made + k8s_openapi::jiff::SignedDuration::from_secs(WAITING as i64);
            if late < at {
                self.left.push((late, at));
            }
        }
    }

    /// The share of the time, in percent, in which no change had waited too long, and the longest wait in seconds.
    fn end(&mut self, from: Timestamp, to: Timestamp) -> (f64, f64) {
        self.served(i64::MAX, to);
        // In the order they were made, which is that of their beginnings.
        let (mut left, mut until) = (0.0, from);
        for (begin, end) in &self.left {
            left += millis(until.max(*begin), *end).max(0.0);
            until = until.max(*end);
        }
        (100.0 * (1.0 - left / millis(from, to)), self.longest)
    }
}

/// Changes a kind's object every second and notes when each change was served, for as long as it is polled.
async fn changes(fleet: &Fleet<'_>, kind: usize, waits: &mut Waits) -> Result<()> {
    let api = fleet.api_of(kind);
    let mut objects = watcher(api.clone(), watcher::Config::default()).default_backoff().applied_objects().boxed();
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut change = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                change += 1;
                waits.pending.push_back((change, now()));
                let patch = json!({"spec": {"change": change}});
                api.patch("object-0", &PatchParams::default(), &Patch::Merge(patch)).await.context("the writer")?;
            }
            object = objects.try_next() => {
                let seen = object.ok().flatten().and_then(|object| object.data["spec"]["seen"].as_i64());
                waits.served(seen.unwrap_or(0), now());
            }
        }
    }
}

/// A Lease as it was seen.
struct Held {
    /// Empty: free.
    holder: String,
    at: Timestamp,
}

/// Notes who holds the Leases of kinds, and each renewal, for as long as it is polled.
async fn watch_leases(fleet: &Fleet<'_>, leases: &mut BTreeMap<String, Vec<Held>>) -> Result<()> {
    let api: Api<Lease> = Api::namespaced(fleet.field.client.clone(), &fleet.namespace);
    let config = watcher::Config::default().labels("leasehold.dev/role!=replica");
    let mut events = watcher(api, config).default_backoff().applied_objects().boxed();
    loop {
        if let Ok(Some(lease)) = events.try_next().await {
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
            leases.entry(lease.name_any()).or_default().push(Held { holder, at: now() });
        }
    }
}

/// The share of the time, in percent, in which a Lease had a holder that renewed it, the longest time in seconds in which
/// it had none, and how often it changed hands.
fn led(stored: &[Held], from: Timestamp, to: Timestamp) -> (f64, f64, f64) {
    // A holder that does not renew stops its work by then.
    let deadline = k8s_openapi::jiff::SignedDuration::from_millis(TIMINGS.deadline as i64);
    let (mut unled, mut longest, mut moves) = (0.0, 0.0_f64, 0.0);
    let mut without = |since: Timestamp, until: Timestamp| {
        let gap = millis(since, until).max(0.0) / 1000.0;
        unled += gap;
        longest = longest.max(gap);
    };
    // Until when it is led unless it is renewed, and by whom.
    let (mut until, mut last) = (from + deadline, None);
    for held in stored {
        if held.holder.is_empty() {
            until = until.min(held.at);
        } else {
            without(until, held.at);
            until = held.at + deadline;
            if last.is_some_and(|last| last != &held.holder) {
                moves += 1.0;
            }
            last = Some(&held.holder);
        }
    }
    without(until, to);
    (100.0 * (1.0 - unled * 1000.0 / millis(from, to)), longest, moves)
}

/// One replica whose connections all go silent while new ones work: from then until a change made then is served. Its
/// connections are passed on unread, so that HTTP/2 and its pings are as they are without a proxy.
async fn silent(field: &Field, system: System, trials: usize) -> Result<Vec<f64>> {
    // For its namespace, rights and object; the replica is a process of its own.
    let fleet = field.fleet_from(0, system, "grey-silent", 1, 0, TIMINGS).await?;
    fleet.object_of(0).await?;
    let proxy = field.cluster.opaque_proxy().await?;
    let kubeconfig = field.cluster.service_account_kubeconfig_at(&fleet.namespace, "replica", proxy.url()).await?;
    let folder = field.cluster.directory().join(&fleet.namespace);
    std::fs::create_dir_all(&folder)?;
    let mut replica = replica(field, &fleet, &folder).await?;
    let _process = replica
        .env("KUBECONFIG", kubeconfig)
        .env("POD_NAME", "silent")
        .env("POD_NAMESPACE", &fleet.namespace)
        .envs([field.cluster.mark()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(folder.join("replica.log"))?)
        .kill_on_drop(true)
        .spawn()?;
    let api = fleet.api_of(0);
    let mut waited = Vec::new();
    for change in 1..=2 * trials {
        // Every second one, with silence before it.
        let is_silent = change % 2 == 0;
        if is_silent {
            tokio::time::sleep(REST).await;
            proxy.freeze();
        }
        let began = now();
        let patch = json!({"spec": {"change": change}});
        api.patch("object-0", &PatchParams::default(), &Patch::Merge(patch)).await?;
        let look = || async { anyhow::Ok(api.get("object-0").await?.data["spec"]["seen"].as_u64()) };
        let served = eventually("the change is served", NOTICED, look, |seen| *seen == Some(change as u64)).await;
        if is_silent {
            // Not noticed at all is a figure too.
            waited.push(millis(began, now()) / 1000.0);
            say(&format!("grey, {}: silence {} of {trials}", system.name(), change / 2));
        } else {
            served?;
        }
    }
    fleet.end().await?;
    Ok(waited)
}

async fn replica(field: &Field, fleet: &Fleet<'_>, folder: &Path) -> Result<Command> {
    let Timings { lease, deadline, retry, request, .. } = TIMINGS;
    match fleet.system {
        System::Ours | System::OursActing => {
            let config = folder.join("leasehold.yaml");
            let text = format!(
                "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n\
                 leases: {{duration: {lease}ms, renewDeadline: {deadline}ms, retryPeriod: {retry}ms, requestTimeout: {request}ms}}\n\
                 kinds:\n- {{apiVersion: {KINDS_GROUP}/v1, kind: Probe0, reconciler: {{builtin: seen}}}}\n"
            );
            std::fs::write(&config, text)?;
            let leasehold = Path::new(env!("CARGO_BIN_EXE_leasehold"));
            let mut command = Command::new(leasehold.parent().context("target folder")?.join("examples/replica"));
            command.arg(config).arg("127.0.0.1:0");
            Ok(command)
        }
        System::ClientGo => {
            let binaries = field.cluster.binaries().clone();
            let program = tokio::task::spawn_blocking(move || binaries.client_go_elector()).await??;
            let mut command = Command::new(program);
            command.args([format!("-group={KINDS_GROUP}"), "-resources=probe0s".to_owned()]);
            command.args([format!("-namespace={}", fleet.namespace), "-identity=silent".to_owned()]);
            command.args([format!("-lease-duration={lease}ms"), format!("-renew-deadline={deadline}ms")]);
            command.args([format!("-retry-period={retry}ms"), "-release-on-cancel".to_owned()]);
            Ok(command)
        }
    }
}

impl Fleet<'_> {
    /// The objects of a kind.
    fn api_of(&self, kind: usize) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(KINDS_GROUP, "v1", &format!("Probe{kind}"));
        Api::namespaced_with(self.field.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind))
    }

    async fn object_of(&self, kind: usize) -> Result<()> {
        let object = json!({
            "apiVersion": format!("{KINDS_GROUP}/v1"), "kind": format!("Probe{kind}"),
            "metadata": {"name": "object-0", "namespace": self.namespace}, "spec": {"change": 0, "seen": 0},
        });
        self.field.cluster.apply(&object.to_string()).await?;
        Ok(())
    }
}
