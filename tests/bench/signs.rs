//! Five things break, one after another, on the shipped installation with its monitoring: what shows the operator the cause,
//! and after how long. The three places to look are `leasehold status`, the page of a replica, and the alerts of
//! `deploy/monitoring` in a real Prometheus that scrapes every 15 s, as the PodMonitor has it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::future::{BoxFuture, FutureExt, join3};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use leasehold_cluster::{Prometheus, Signal, eventually, get};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    field::{Field, PATIENCE, now, pod_of},
    record::millis,
    report::{Report, say},
};

const GROUP: &str = "what shows a fault, from when it begins";
const SHIPPED: &str = "leasehold-system";
/// As the PodMonitor has it.
const SCRAPE: Duration = Duration::from_secs(15);
/// An alert waits for five minutes at the most, and is evaluated after a scrape.
const ALERTED: Duration = Duration::from_secs(420);
/// Before the next thing breaks, and until an alert that should not fire had the time to.
const CALM: Duration = Duration::from_secs(60);

/// What is done to the installation, and undone.
#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Rights,
    Definition,
    Node,
    Rollout,
}

/// A fault, and how it shows.
struct Sign {
    fault: Fault,
    name: &'static str,
    /// What `status` and the page say of: a kind, or the replicas.
    of: Option<&'static str>,
    /// One of these stands there.
    words: &'static [&'static str],
    /// The alert; `None`: nobody needs to come.
    alert: Option<&'static str>,
}

const SIGNS: [Sign; 5] = [
    Sign {
        fault: Fault::Kill,
        name: "the container of a leader is killed",
        of: Some("Propagation.leasehold.dev"),
        words: &["Restarted", "ProvenDead"],
        alert: None,
    },
    Sign {
        fault: Fault::Rights,
        name: "the rights of a kind's account are taken away",
        of: Some("ExpiryPolicy.leasehold.dev"),
        words: &["not allowed to"],
        alert: Some("LeaseholdKindBlocked"),
    },
    Sign {
        fault: Fault::Definition,
        name: "the CRD of a kind is deleted",
        of: Some("ScaleSchedule.leasehold.dev"),
        words: &["does not serve"],
        alert: Some("LeaseholdKindBlocked"),
    },
    Sign {
        fault: Fault::Node,
        name: "the machine of a leader stands still",
        of: Some("WebApp.leasehold.dev"),
        words: &["Expired"],
        alert: Some("LeaseholdReplicaDown"),
    },
    Sign {
        fault: Fault::Rollout,
        name: "a rollout whose Pods do not start",
        of: None,
        words: &["CrashLoopBackOff"],
        alert: Some("LeaseholdReplicasMissing"),
    },
];

/// Measures each once.
///
/// # Errors
/// When something does not show.
pub(crate) async fn measure(field: &Field, report: &mut Report) -> Result<()> {
    field.install().await?;
    rolled_out(field).await?;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring/prometheusrule.yaml");
    let rules: Value = serde_yaml::from_str(&std::fs::read_to_string(rules)?)?;
    let prometheus =
        Arc::new(Prometheus::start(&field.cluster, &rules["spec"]["groups"], SCRAPE, targets(field).await?).await?);
    let follower = follow(field, Arc::clone(&prometheus));
    let all = async {
        for sign in &SIGNS {
            one(field, &prometheus, sign, report).await.with_context(|| sign.name)?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = all => done?,
        failed = follower => failed?,
    }
    field.cluster.kubectl(&["delete", "namespace", SHIPPED, "--wait=false"]).await?;
    Ok(())
}

async fn one(field: &Field, prometheus: &Prometheus, sign: &Sign, report: &mut Report) -> Result<()> {
    let calm = || async { anyhow::Ok((firing(prometheus).await?, status(field).await?["allLed"].clone())) };
    // An alert about the last quarter of an hour may stand from the fault before.
    let is_quiet =
        |firing: &Vec<String>| sign.alert.map_or(firing.is_empty(), |alert| !firing.iter().any(|it| it == alert));
    eventually("all is well", PATIENCE + ALERTED, calm, |(firing, led)| is_quiet(firing) && *led == true).await?;
    tokio::time::sleep(CALM).await;
    let holders = field.holders(SHIPPED).await?;
    let lease = sign.of.unwrap_or("WebApp.leasehold.dev").to_lowercase();
    let holder = pod_of(holders.get(&lease).context("a holder")?).to_owned();
    let began = now();
    begin(field, sign.fault, &holder).await?;
    let shows = |what: &'static str, look: fn(&Field, String) -> BoxFuture<'_, Result<Value>>| {
        let holder = holder.clone();
        async move {
            let said = |seen: &Value| sign.words.iter().any(|word| about(seen, sign.of).contains(word));
            eventually(what, PATIENCE, || look(field, holder.clone()), said).await?;
            anyhow::Ok(millis(began, now()) / 1000.0)
        }
    };
    let alerts = async {
        let Some(alert) = sign.alert else {
            tokio::time::sleep(CALM).await;
            let firing = firing(prometheus).await?;
            anyhow::ensure!(firing.is_empty(), "{firing:?}");
            return Ok(None);
        };
        let fires = |firing: &Vec<String>| firing.iter().any(|it| it == alert);
        eventually(alert, ALERTED, || firing(prometheus), fires).await?;
        anyhow::Ok(Some(millis(began, now()) / 1000.0))
    };
    let by_status = shows("status shows it", |field, _| status(field).boxed());
    let by_page = shows("the page shows it", |field, not| page(field, not).boxed());
    let (by_status, by_page, by_alert) = join3(by_status, by_page, alerts).await;
    let (name, system) = (sign.name, "leasehold");
    report.add(GROUP, system, format!("{name}: leasehold status"), "s", vec![by_status?]);
    report.add(GROUP, system, format!("{name}: the page"), "s", vec![by_page?]);
    let alert = sign.alert.unwrap_or("an alert (none is meant to fire)");
    report.add(GROUP, system, format!("{name}: {alert}"), "s", by_alert?.into_iter().collect());
    say(&format!("signs: {name}"));
    mend(field, sign.fault, &holder).await
}

async fn begin(field: &Field, fault: Fault, holder: &str) -> Result<()> {
    let kubectl = |arguments: &'static [&'static str]| field.cluster.kubectl(arguments);
    match fault {
        Fault::Kill => field.kubelet.signal(SHIPPED, holder, Signal::KILL)?,
        Fault::Rights => drop(kubectl(&["delete", "clusterrolebinding", "leasehold-expirypolicy"]).await?),
        Fault::Definition => drop(kubectl(&["delete", "crd", "scaleschedules.leasehold.dev"]).await?),
        Fault::Node => field.kubelet.stall(SHIPPED, holder)?,
        Fault::Rollout => {
            let bad =
                r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--no-such-flag"}]"#;
            let patch = ["-n", SHIPPED, "patch", "deployment", "leasehold", "--type=json", "-p", bad];
            field.cluster.kubectl(&patch).await?;
        }
    }
    Ok(())
}

async fn mend(field: &Field, fault: Fault, holder: &str) -> Result<()> {
    match fault {
        Fault::Kill => {}
        Fault::Rights | Fault::Definition => field.install().await?,
        Fault::Node => field.kubelet.resume(SHIPPED, holder)?,
        Fault::Rollout => {
            drop(field.cluster.kubectl(&["-n", SHIPPED, "rollout", "undo", "deployment/leasehold"]).await?)
        }
    }
    rolled_out(field).await
}

async fn rolled_out(field: &Field) -> Result<()> {
    let wait = ["-n", SHIPPED, "rollout", "status", "deployment/leasehold", "--timeout=240s"];
    field.cluster.kubectl(&wait).await?;
    Ok(())
}

/// All that is said about a kind, or about the replicas, by either of the two.
fn about(seen: &Value, kind: Option<&str>) -> String {
    let Some(kind) = kind else {
        return format!("{}{}", seen["replicas"], seen["head"]["replicas"]);
    };
    // `kinds` is a list of `status`, and a map of the page, which has the takeovers in `lanes`.
    let each = |value: &Value| match value {
        Value::Object(map) => map.values().cloned().collect(),
        Value::Array(list) => list.clone(),
        _ => Vec::new(),
    };
    let of_kind = |it: &Value| {
        it["kind"] == kind || it["kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|it| it == kind))
    };
    [&seen["kinds"], &seen["lanes"]].into_iter().flat_map(each).filter(of_kind).map(|it| it.to_string()).collect()
}

async fn status(field: &Field) -> Result<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    // The API server proxies to no loopback address, which Pods have here.
    command
        .args(["status", "-n", SHIPPED, "--via", "pod-address", "-o", "json", "--kubeconfig"])
        .arg(field.cluster.kubeconfig());
    let said = command.output().await?;
    serde_json::from_slice(&said.stdout).with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())
}

/// What the page of a replica shows, another one than this.
async fn page(field: &Field, not: String) -> Result<Value> {
    let other = targets(field).await?.into_iter().find(|(_, pod, _)| *pod != not);
    let (_, _, address) = other.context("another replica")?;
    Ok(serde_json::from_str::<Value>(&get(&address, "/page/data").await?)?["whole"].take())
}

async fn firing(prometheus: &Prometheus) -> Result<Vec<String>> {
    let answer = prometheus.get("/api/v1/alerts").await?;
    let alerts = answer["data"]["alerts"].as_array().context("alerts")?;
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
    Ok(firing.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect())
}

/// The Pods that a PodMonitor has scraped.
async fn targets(field: &Field) -> Result<Vec<(String, String, String)>> {
    let pods: Api<Pod> = Api::namespaced(field.client.clone(), SHIPPED);
    let pods = pods.list(&ListParams::default().labels("app.kubernetes.io/name=leasehold")).await?;
    let of = |pod: &Pod| {
        let address = pod.status.as_ref()?.pod_ip.clone()?;
        Some((SHIPPED.to_owned(), pod.name_any(), format!("{address}:8080")))
    };
    Ok(pods.iter().filter_map(of).collect())
}

/// Has Prometheus scrape the Pods that are there.
async fn follow(field: &Field, prometheus: Arc<Prometheus>) -> Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        prometheus.aim(targets(field).await?)?;
    }
}
