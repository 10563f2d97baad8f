//! deploy/monitoring: its alerts on series of real failures, its dashboard on replicas that a real Prometheus scrapes, and
//! its objects on the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use kube::ResourceExt;
use leasehold_cluster::{Prometheus, eventually};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    recording::INTERVAL,
    stage::{PATIENCE, Stage, ensure, play, pod_of, tell},
    things::Things,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where recordings are.
pub fn folder() -> PathBuf {
    root().join("tests/monitoring")
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(root().join(file)).with_context(|| file.to_owned())
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_yaml::from_str(text)?)
}

fn rules() -> Result<Value> {
    yaml(&read("deploy/monitoring/prometheusrule.yaml")?)
}

fn each_rule(rules: &Value) -> impl Iterator<Item = &Value> {
    let groups = rules["spec"]["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| group["rules"].as_array().into_iter().flatten())
}

/// The metrics that the rules read.
pub fn read_by_rules() -> Result<BTreeSet<String>> {
    let rules = rules()?;
    let expressions = each_rule(&rules).filter_map(|rule| rule["expr"].as_str());
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expressions.flat_map(|expression| expression.split(move |c| !is_name(c)));
    let metrics = words.filter(|word| *word == "up" || (word.starts_with("leasehold_") && !word.contains(':')));
    Ok(metrics.map(str::to_owned).collect())
}

/// `promtool` and `prometheus`, built when they are needed first.
async fn binaries() -> Result<leasehold_cluster::PrometheusBinaries> {
    tokio::task::spawn_blocking(leasehold_cluster::prometheus).await?
}

/// An alert and the kinds that it names, separated by spaces; empty: it names none.
type Fired = (&'static str, &'static str);

/// Each recording, and all that fires at any time of it.
const RECORDED: &[(&str, &[Fired])] = &[
    ("healthy", &[]),
    ("healthy-work", &[]),
    // Of those that write once more after their term, the fence says so; which term had to be aborted is chance.
    (
        "partitioned",
        &[
            ("LeaseholdKindWithoutLeader", "Widget Gadget"),
            ("LeaseholdLeaseWatchDown", ""),
            ("LeaseholdReplicaNotReady", ""),
            ("LeaseholdTermAborted", "Gadget"),
            ("LeaseholdWritesFenced", "Widget Gadget"),
        ],
    ),
    ("late-renewals", &[("LeaseholdRenewalsLate", "Widget")]),
    ("deaf", &[("LeaseholdKindDeaf", "Thing")]),
    ("denied", &[("LeaseholdKindBlocked", "Widget"), ("LeaseholdTermAborted", "Widget")]),
    ("blocked-on-one", &[("LeaseholdKindBlockedOnReplica", "Widget Gadget Gizmo"), ("LeaseholdSpreadUneven", "")]),
    (
        "foreign-holder",
        &[
            ("LeaseholdKindWithoutLeader", "Widget"),
            ("LeaseholdForeignHolder", "Widget"),
            ("LeaseholdTermAborted", "Widget"),
        ],
    ),
    ("missed-takeovers", &[("LeaseholdTakeoversMissed", "")]),
    ("failing-term", &[("LeaseholdTermsFail", "Widget")]),
    (
        "frozen",
        &[
            ("LeaseholdRenewalsLate", "Widget Gadget"),
            ("LeaseholdTermAborted", "Widget"),
            ("LeaseholdWritesFenced", "Widget Gadget"),
        ],
    ),
    ("standby-writes", &[("LeaseholdStandbyWrites", "Widget")]),
    ("refused-writes", &[("LeaseholdReconcileErrors", "Thing"), ("LeaseholdWritesRefused", "Thing")]),
    ("unwatched-children", &[("LeaseholdWatchFailing", "Thing"), ("LeaseholdSyncStuck", "Thing")]),
    ("fight", &[("LeaseholdFight", "Thing")]),
    ("slow-work", &[("LeaseholdWorkSlow", "Thing")]),
    ("two-leaders", &[("LeaseholdTwoLeaders", "Widget")]),
    ("bad-rollout", &[("LeaseholdReplicaDown", ""), ("LeaseholdReplicasMissing", "")]),
    ("too-large", &[("LeaseholdObjectsTooLarge", "Thing")]),
    ("certificate-ends", &[("LeaseholdCertificateEnds", ""), ("LeaseholdKindUnguarded", "Thing")]),
    (
        "no-certificate",
        &[("LeaseholdReplicaNotReady", ""), ("LeaseholdCertificateUnusable", ""), ("LeaseholdKindUnguarded", "Thing")],
    ),
    ("down", &[("LeaseholdReplicaDown", ""), ("LeaseholdDown", "")]),
];

/// The alerts of a recording, as promtool writes samples.
fn expected(fired: &[Fired]) -> Vec<Value> {
    let of_alert = |(alert, kinds): &Fired| {
        let of_kind = |kind: &str| match kind {
            "" => format!("{{alertname=\"{alert}\"}}"),
            kind => format!("{{alertname=\"{alert}\", kind=\"{kind}.example.com\"}}"),
        };
        kinds.split(' ').map(|kind| json!({"labels": of_kind(kind), "value": 1})).collect::<Vec<_>>()
    };
    fired.iter().flat_map(of_alert).collect()
}

/// A recording and what promtool is to find in it.
fn test_of(name: &str, fired: &[Fired]) -> Result<Value> {
    let file = folder().join(format!("{name}.yaml"));
    let mut test = yaml(&std::fs::read_to_string(&file).with_context(|| file.display().to_string())?)?;
    let length = test["input_series"].as_array().into_iter().flatten().filter_map(|it| it["values"].as_str());
    let scrapes = length.map(scrapes).max().context("a series")?;
    let end = u64::try_from(scrapes)? * INTERVAL.as_secs();
    // Whatever fired at any time, once for each alert and kind.
    let expression = format!("group by (alertname, kind) (max_over_time(ALERTS{{alertstate=\"firing\"}}[{end}s]))");
    test["promql_expr_test"] =
        json!([{"expr": expression, "eval_time": format!("{end}s"), "exp_samples": expected(fired)}]);
    Ok(test)
}

/// How many values there are in promtool's notation.
fn scrapes(values: &str) -> usize {
    let count = |word: &str| match word.split_once('x') {
        Some(("_", count)) => count.parse().unwrap_or(0),
        Some((_, more)) => more.parse::<usize>().unwrap_or(0) + 1,
        None => 1,
    };
    values.split_whitespace().map(count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_on_its_failure_and_none_while_all_is_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let all = rules()?;
    std::fs::write(folder.path().join("rules.yaml"), json!({"groups": all["spec"]["groups"]}).to_string())?;
    let tests = RECORDED.iter().map(|(name, fired)| test_of(name, fired)).collect::<Result<Vec<_>>>()?;
    let tests = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": tests});
    std::fs::write(folder.path().join("tests.yaml"), tests.to_string())?;
    let promtool = binaries().await?.promtool;
    for arguments in [&["check", "rules", "rules.yaml"][..], &["test", "rules", "tests.yaml"]] {
        let said = Command::new(&promtool).current_dir(folder.path()).args(arguments).output().await?;
        let said = (said.status.success(), [said.stdout, said.stderr].concat());
        ensure(said.0, || format!("promtool {arguments:?}: {}", String::from_utf8_lossy(&said.1)))?;
    }
    let fired: BTreeSet<_> = RECORDED.iter().flat_map(|(_, fired)| fired.iter().map(|(alert, ..)| *alert)).collect();
    let silent: Vec<_> =
        each_rule(&all).filter_map(|rule| rule["alert"].as_str()).filter(|it| !fired.contains(it)).collect();
    ensure(silent.is_empty(), || format!("no recording has these fire: {silent:?}"))
}

/// The queries of the dashboard with the titles of their panels, as Grafana would send them.
fn queries() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&read("deploy/monitoring/dashboard.json")?)?;
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap_or_default().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().unwrap_or_default().to_owned()))
    };
    let annotations = dashboard["annotations"]["list"].as_array().into_iter().flatten();
    let annotations =
        annotations.map(|it| ("annotations".to_owned(), it["expr"].as_str().unwrap_or_default().to_owned()));
    let all = panels.flat_map(of_panel).chain(annotations);
    let variables = [("$namespace", ".*"), ("$kind", ".*"), ("$__rate_interval", "20s"), ("$__range", "5m")];
    let filled = all.map(|(title, query)| {
        let fill = |query: String, (variable, value): (&str, &str)| query.replace(variable, value);
        (title, variables.into_iter().fold(query, fill))
    });
    Ok(filled.collect())
}

/// Panels of which there is nothing to show while all is well, and what they are about.
const QUIET: [&str; 7] = [
    "Handovers that wait",
    "Why nothing moves",
    "Kinds that cannot run",
    "Watches",
    "Fights",
    "Clients turned away",
    "annotations",
];
/// Panels about webhooks, of which this test serves none.
const WEBHOOKS: [&str; 3] = ["Duration of reviews", "Reviews", "Certificate"];

#[tokio::test(flavor = "multi_thread")]
async fn each_query_of_the_dashboard_answers_and_with_data() -> Result<()> {
    let mut stage = Stage::set("dashboard", 2).await?;
    stage.stubborn = false;
    play(stage, |stage| async move {
        let things = Things::set(stage, 2).await?;
        stage.replicas(2).await?;
        stage.all_led().await?;
        let pods = stage.pods().await?.into_iter().map(|pod| {
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
            (pod.name_any(), format!("{ip}:8080"))
        });
        let processes = things.replicas.iter().map(|it| (it.name.clone(), it.address.clone()));
        let targets = pods.chain(processes).map(|(pod, address)| (stage.namespace.clone(), pod, address)).collect();
        let groups = &rules()?["spec"]["groups"];
        let prometheus = Prometheus::start(stage.cluster, groups, Duration::from_secs(1), targets).await?;
        let up = || async { prometheus.query("sum(up)").await };
        let all_up = |up: &Vec<Value>| up.first().is_some_and(|sum| sum["value"][1] == "4");
        eventually("Prometheus scrapes every replica", PATIENCE, up, all_up).await?;
        for number in 0..8 {
            things.put("it", &number.to_string()).await?;
            things.served("it", &number.to_string(), PATIENCE).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // A handover, for what shows of one.
        let holder = stage.held(&stage.kinds[0], |_| true).await?;
        stage.cluster.kubectl(&["delete", "pod", pod_of(&holder), "-n", &stage.namespace, "--wait=false"]).await?;
        stage.held(&stage.kinds[0], |it| it != holder).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;

        let (mut empty, mut counted) = (BTreeMap::<String, Vec<String>>::new(), 0);
        for (title, query) in queries()? {
            let answer = prometheus.query(&query).await.with_context(|| title.clone())?;
            counted += 1;
            let may_be_empty = QUIET.contains(&title.as_str()) || WEBHOOKS.contains(&title.as_str());
            if answer.is_empty() && !may_be_empty {
                empty.entry(title).or_default().push(query);
            }
        }
        tell(&format!("{counted} queries"));
        ensure(counted > 50 && empty.is_empty(), || format!("{counted} queries, and no data for {empty:#?}"))?;
        // What the page says is what was scraped: the types and the names are read without loss.
        let metadata = prometheus.get("/api/v1/metadata?limit_per_metric=1").await?;
        let known = metadata["data"].as_object().context("metadata")?;
        ensure(known["leasehold_reconcile_duration_seconds"][0]["type"] == "histogram", || metadata.to_string())?;
        // All rules were evaluated there, without an error.
        let groups = prometheus.get("/api/v1/rules").await?;
        let groups = groups["data"]["groups"].as_array().context("groups")?.clone();
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        let bad: Vec<_> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
        ensure(rules.len() > 30 && bad.is_empty(), || format!("{bad:#?}"))
    })
    .await;
    Ok(())
}

/// What is used of the operator's definitions, with every other field unknown.
const DEFINITIONS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com, annotations: {api-approved.kubernetes.io: 'https://example.com'}}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, plural: podmonitors, singular: podmonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [podMetricsEndpoints, selector]
            properties:
              jobLabel: {type: string}
              selector: {type: object, properties: {matchLabels: {type: object, additionalProperties: {type: string}}}}
              podMetricsEndpoints:
                type: array
                items:
                  type: object
                  properties:
                    port: {type: string}
                    path: {type: string}
                    interval: {type: string, pattern: '^(([0-9]+)s)$'}
                    scrapeTimeout: {type: string, pattern: '^(([0-9]+)s)$'}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: prometheusrules.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PrometheusRule, plural: prometheusrules, singular: prometheusrule}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              groups:
                type: array
                x-kubernetes-list-map-keys: [name]
                x-kubernetes-list-type: map
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string, minLength: 1}
                    rules:
                      type: array
                      items:
                        type: object
                        required: [expr]
                        properties:
                          alert: {type: string}
                          record: {type: string}
                          expr: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
                          for: {type: string, pattern: '^(([0-9]+)m)$'}
                          labels: {type: object, additionalProperties: {type: string}}
                          annotations: {type: object, additionalProperties: {type: string}}
";

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_is_applied_where_the_operator_is() -> Result<()> {
    play(Stage::set("monitoring", 1).await?, |stage| async move {
        stage.cluster.apply(DEFINITIONS).await?;
        for name in ["podmonitors", "prometheusrules"] {
            stage.cluster.established(&format!("{name}.monitoring.coreos.com")).await?;
        }
        // In this namespace, as a user would have it in another one than ours.
        let overlay = tempfile::tempdir()?;
        // kustomize takes no absolute path.
        let up = "../".repeat(overlay.path().canonicalize()?.components().count() - 1);
        let shipped = root().canonicalize()?.join("deploy/monitoring");
        let shipped = format!("{up}{}", shipped.strip_prefix("/")?.display());
        let kustomization = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {}\nresources: [{shipped}]\n",
            stage.namespace
        );
        std::fs::write(overlay.path().join("kustomization.yaml"), kustomization)?;
        let overlay = overlay.path().display().to_string();
        let apply = || async { stage.cluster.kubectl(&["apply", "--validate=strict", "-k", &overlay]).await };
        eventually("it is applied", PATIENCE, apply, |_| true).await?;
        let what = ["get", "podmonitor,prometheusrule,configmap", "-n", &stage.namespace, "-o", "name"];
        let found = stage.cluster.kubectl(&what).await?;
        for name in [
            "podmonitor.monitoring.coreos.com/leasehold",
            "prometheusrule.monitoring.coreos.com/leasehold",
            "configmap/leasehold-dashboard",
        ] {
            ensure(found.contains(name), || format!("{name}: {found}"))?;
        }
        let key = [
            "get",
            "configmap",
            "leasehold-dashboard",
            "-n",
            &stage.namespace,
            "-o",
            r"jsonpath={.data.leasehold\.json}",
        ];
        let dashboard: Value = serde_json::from_str(&stage.cluster.kubectl(&key).await?)?;
        ensure(dashboard["title"] == "Leasehold", || dashboard.to_string())
    })
    .await;
    Ok(())
}
