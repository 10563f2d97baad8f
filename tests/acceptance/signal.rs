//! The leader signal, by the examples that show it: when it says yes and no, beside what the API server stored.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use leasehold_cluster::{Signal, eventually};
use serde_json::{Value, json};

use crate::{
    judge::{What, history},
    lone::{Lone, Plan, Program, all_ready},
    program::Said,
    stage::{LEASE, PATIENCE, Stage, TIMINGS, ensure, lease_of, name_of, not, play, tell},
};

/// A configuration of this stage's kinds for an example that calls its reconciler so.
fn configuration(stage: &Stage, folder: &Path, reconciler: &str) -> Result<()> {
    let kinds: String = stage
        .kinds
        .iter()
        .map(|kind| {
            format!(
                "- {{apiVersion: observer.leasehold.dev/v1, kind: {kind}, reconciler: {{builtin: {reconciler}}}}}\n"
            )
        })
        .collect();
    let text = format!(
        "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {}\nleases: {{{TIMINGS}}}\n\
         placement: {{grace: 1s, settle: 1s}}\nkinds:\n{kinds}",
        stage.namespace
    );
    Ok(std::fs::write(folder.join("leasehold.yaml"), text)?)
}

async fn start(stage: &Stage, folder: &Path, example: &'static str, name: &str) -> Result<Lone> {
    Lone::start(stage, Plan::new(Program::Example(example), name, &folder.join("leasehold.yaml"))).await
}

async fn start_all(stage: &Stage, folder: &Path, example: &'static str, names: &[&str]) -> Result<Vec<Lone>> {
    let mut replicas = Vec::new();
    for name in names {
        replicas.push(start(stage, folder, example, name).await?);
    }
    all_ready(&replicas).await?;
    Ok(replicas)
}

#[tokio::test(flavor = "multi_thread")]
async fn main_blocks_on_becoming_leader_and_health_is_served_before() -> Result<()> {
    play(Stage::set("elected", 1).await?, |stage| async move {
        let rights = format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: leader, namespace: {0}}}, rules: [{{apiGroups: [''], resources: [configmaps], verbs: [get, create, patch]}}]}}\n---\n\
             {{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: leader, namespace: {0}}}, roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leader}}, subjects: [{{kind: ServiceAccount, name: observer, namespace: {0}}}]}}",
            stage.namespace
        );
        stage.cluster.apply(&rights).await?;
        let folder = tempfile::tempdir()?;
        configuration(stage, folder.path(), "main")?;
        let mut replicas = start_all(stage, folder.path(), "elected", &["one", "two", "three"]).await?;
        let kind = &stage.kinds[0];
        for signal in [Signal::TERM, Signal::KILL] {
            let old = stage.held(kind, |holder| replicas.iter().any(|one| one.is(holder))).await?;
            written_by(stage, |holder| holder == old).await?;
            // Those that wait serve.
            for replica in &replicas {
                replica.answers("/livez", 200, PATIENCE).await?;
                let metrics = replica.get("/metrics").await?.1;
                ensure(metrics.contains("leasehold_leading{"), || metrics)?;
            }
            let index = replicas.iter().position(|one| one.is(&old)).context("the leader is one of them")?;
            let mut leader = replicas.swap_remove(index);
            leader.signal(signal)?;
            let ended = leader.ends(PATIENCE).await?;
            ensure(signal == Signal::KILL || ended.success(), || format!("{signal:?}: {ended}"))?;
            let new = stage.held(kind, not(&leader.name)).await?;
            written_by(stage, |holder| holder == new).await?;
        }
        // By the server's order no token comes back once another has written.
        let mut writes: Vec<_> = stage
            .audit()?
            .into_iter()
            .filter(|event| event.resource == "configmaps" && event.is_write() && event.succeeded())
            .filter_map(|event| {
                let object = event.response_object.as_ref()?;
                let version: u64 = object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()?;
                Some((version, object.pointer("/data/holder")?.as_str()?.to_owned()))
            })
            .collect();
        writes.sort();
        let mut holders: Vec<_> = writes.into_iter().map(|(_, holder)| holder).collect();
        holders.dedup();
        ensure(holders.len() == 3, || format!("three mains in turn: {holders:?}"))
    })
    .await;
    Ok(())
}

async fn written_by(stage: &Stage, by: impl Fn(&str) -> bool) -> Result<()> {
    let look = || async {
        let holder = ["get", "configmap", "leader", "-o", "jsonpath={.data.holder}", "-n", &stage.namespace];
        stage.cluster.kubectl(&holder).await
    };
    eventually("main writes who leads", PATIENCE, look, |holder: &String| by(holder.trim())).await?;
    Ok(())
}

/// When the log says that the signal changed, and to what.
fn changes(replica: &Lone) -> Result<Vec<(Timestamp, bool)>> {
    let log = replica.log()?;
    let of = |line: &str| {
        let at = line.split_whitespace().next()?.parse().ok()?;
        line.contains("the signal").then(|| (at, line.contains("leading=true")))
    };
    Ok(log.lines().filter_map(of).collect())
}

fn milliseconds(times: &[SignedDuration]) -> String {
    let mut times: Vec<_> = times.iter().map(|time| time.as_micros()).collect();
    times.sort_unstable();
    let at = |index: usize| times.get(index).map_or(0.0, |time| *time as f64 / 1000.0);
    format!("{:.1} ms ({:.1} to {:.1})", at(times.len() / 2), at(0), at(times.len().saturating_sub(1)))
}

/// How often the kind is handed over, and taken by a hand.
const ROUNDS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn the_signal_says_no_before_the_release_and_whoever_watches_it_agrees() -> Result<()> {
    play(Stage::set("watchers", 1).await?, |stage| async move {
        let folder = tempfile::tempdir()?;
        configuration(stage, folder.path(), "main")?;
        let replicas = start_all(stage, folder.path(), "watchers", &["one", "two"]).await?;
        let kind = &stage.kinds[0];
        let name = name_of(kind);
        let other = |holder: &str| replicas.iter().find(|one| !one.is(holder)).context("another replica");
        let said = |replica: &Lone, leading: bool, after: usize| {
            Ok::<_, anyhow::Error>(changes(replica)?.into_iter().skip(after).find(|(_, said)| *said == leading))
        };

        // Handed over: no before the release, yes after the acquisition.
        let mut figures = (Vec::new(), Vec::new());
        let mut old = stage.held(kind, |_| true).await?;
        for _ in 0..ROUNDS {
            let (from, to) = (replicas.iter().find(|one| one.is(&old)).context("a holder")?, other(&old)?);
            let look = || async { said(from, true, 0) };
            eventually("the leader's signal says yes", PATIENCE, look, Option::is_some).await?;
            stage.written_by(kind, |holder| holder == old).await?;
            let before = (changes(from)?.len(), changes(to)?.len(), history(stage, kind)?.len());
            let moved =
                Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&name, "--to", &to.name]).await?;
            ensure(moved.code == Some(0), || format!("{moved:?}"))?;
            let new = stage.held(kind, not(&from.name)).await?;
            let yes = || async { said(to, true, before.1) };
            let yes =
                eventually("the successor's signal says yes", PATIENCE, yes, Option::is_some).await?.context("yes")?;
            let no = said(from, false, before.0)?.context("the old leader's signal has said no")?;
            let leased = |of: &str| -> Result<_> {
                let history = history(stage, kind)?;
                let stored = history[before.2..]
                    .iter()
                    .find(|stored| matches!(&stored.what, What::Leased { holder, .. } if holder == of));
                let stored = stored.with_context(|| format!("{of:?} is on the Lease"))?;
                Ok((stored.received, stored.at))
            };
            let (released, acquired) = (leased("")?.0, leased(&new)?.0);
            ensure(no.0 < released, || format!("no at {}, and the release was received at {released}", no.0))?;
            ensure(acquired < yes.0, || format!("yes at {}, and the acquisition was received at {acquired}", yes.0))?;
            figures.0.push(released.duration_since(no.0));
            figures.1.push(yes.0.duration_since(acquired));
            for (replica, leads) in [(from, false), (to, true)] {
                let asked: Value = serde_json::from_str(&replica.answers("/leading", 200, PATIENCE).await?)?;
                ensure(asked["leading"] == leads, || format!("{}: {asked}", replica.name))?;
            }
            old = new;
        }
        tell(&format!(
            "handover: from the signal's no to the release {}, from the acquisition to the signal's yes {}",
            milliseconds(&figures.0),
            milliseconds(&figures.1)
        ));

        // A hand takes the Lease: a definite loss.
        let mut figures = Vec::new();
        for _ in 0..ROUNDS {
            let from = replicas.iter().find(|one| one.is(&old)).context("a holder")?;
            let before = (changes(from)?.len(), stage.audit()?.len());
            let patch = json!({"spec": {"holderIdentity": "a-hand"}}).to_string();
            stage
                .cluster
                .kubectl(&["patch", "lease", &lease_of(kind), "-n", &stage.namespace, "--type=merge", "-p", &patch])
                .await?;
            let no = || async { said(from, false, before.0) };
            let no = eventually("the signal says no", PATIENCE, no, Option::is_some).await?.context("no")?;
            let taken = stage.audit()?.into_iter().skip(before.1).find(|event| {
                event.resource == "leases"
                    && event.request_object.as_ref().is_some_and(|body| body.to_string().contains("a-hand"))
            });
            figures.push(no.0.duration_since(taken.context("the hand's write")?.request_received));
            old = stage.held(kind, |holder| holder != "a-hand").await?;
            let holder = old.clone();
            stage.written_by(kind, |by| by == holder).await?;
        }
        tell(&format!("loss to the signal's no: {}", milliseconds(&figures)));

        // Paused for longer than its Lease: the fence is shut when it goes on, and so says the signal.
        let from = replicas.iter().find(|one| one.is(&old)).context("a holder")?;
        let before = changes(from)?.len();
        from.signal(Signal::STOP)?;
        let new = stage.held(kind, not(&from.name)).await?;
        stage.written_by(kind, |holder| holder == new).await?;
        from.signal(Signal::CONT)?;
        let no = || async { said(from, false, before) };
        eventually("the signal of the paused replica says no", LEASE + Duration::from_secs(5), no, Option::is_some)
            .await?;
        for replica in &replicas {
            let log = replica.log()?;
            ensure(!log.contains("that the signal calls led"), || log)?;
        }
        Ok(())
    })
    .await;
    Ok(())
}
