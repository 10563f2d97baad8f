//! The page of metrics and what a replica registers are the same, and stay so small whatever names come from outside.
//!
//! `UPDATE=1 cargo test --test it metrics::` writes what the code says into the rows of the page.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use leasehold::ops::{
    metrics::{Metrics, Settings},
    status::{HandingOver, Status, Wait, WaitsFor},
    work::{Metered, Reconciled, WatchState},
};
use serde_json::Value;
use tokio::time::Instant;

const PAGE: &str = "docs/metrics.md";

#[expect(clippy::disallowed_methods, reason = "what is shown is as old as this test")]
fn now() -> Instant {
    Instant::now()
}

/// Metrics of which every series has been used.
fn used() -> (Metrics, Metered) {
    let status = Status::default();
    let metrics = Metrics::new(["W".to_owned()], status.clone());
    status.update("W", |shard| {
        (shard.renewed_at, shard.leading_since, shard.unled_since) = (Some(now()), Some(now()), Some(now()));
        shard.handing_over = Some(HandingOver { waits_for: WaitsFor::Drain, since: now() });
    });
    status.update_replica(|replica| {
        replica.waits = vec![Wait { reason: ("Rollout", String::new()), until: None }];
        replica.pods = Some([].into());
    });
    metrics.read_dropped_log_lines(|| 1);
    metrics.configured(&Settings {
        installation: "leasehold".to_owned(),
        generation: "7c9f".to_owned(),
        rebalance: "Automatic",
        on_loss: "Reelect",
        capacity: 1,
        lease_duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
    });
    metrics.belongs("W", "w", None);
    metrics.set_lease_weight("w", 1);
    metrics.missed("w");
    metrics.lease_request("update", "ok");
    metrics.webhook_answered("validate", "allowed", Duration::from_millis(1));
    metrics.webhook_certificate_made("Due");
    metrics.webhook_certificate_until(1);
    metrics.set_webhook_guarded("W", true);
    metrics.connection_closed("endpoints", "peer");
    metrics.request_refused("endpoints", "pace");
    let metered = metrics.work("W");
    metered.show();
    let meter = metered.meter();
    meter.heard();
    meter.listed(1, 1);
    meter.reconciled(Reconciled::Done, Duration::from_millis(1));
    meter.wrote("patch", "ok");
    meter.undone("kubectl-edit");
    meter.watch("v1 Secret", Arc::new(WatchState::default));
    (metrics, metered)
}

/// A metric as it is registered, or as the page has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    unit: String,
    labels: BTreeSet<String>,
    help: String,
}

impl Metric {
    fn row(&self, name: &str) -> String {
        let labels: Vec<_> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {} | {} | {} |", self.kind, self.unit, labels.join(", "), self.help)
    }
}

/// By the name of its series, without those endings that a histogram has.
fn registered(page: &str) -> BTreeMap<String, Metric> {
    let mut families = BTreeMap::<String, Metric>::new();
    for line in page.lines() {
        if let Some((field, rest)) = line.strip_prefix("# ").and_then(|line| line.split_once(' ')) {
            let (family, value) = rest.split_once(' ').unwrap();
            let metric = families.entry(family.to_owned()).or_default();
            match field {
                "HELP" => metric.help = value.trim_end_matches('.').to_owned(),
                "TYPE" => metric.kind = value.to_owned(),
                "UNIT" => metric.unit = value.to_owned(),
                _ => panic!("{line}"),
            }
        }
    }
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let endings = ["", "_total", "_info", "_bucket", "_sum", "_count"];
        let family =
            endings.iter().filter_map(|end| name.strip_suffix(end)).find(|family| families.contains_key(*family));
        let family = families.get_mut(family.unwrap()).unwrap();
        let labels = line.split_once('{').map(|(_, rest)| rest.rsplit_once('}').unwrap().0).unwrap_or_default();
        for label in labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label.to_owned()) {
            if label != "le" {
                family.labels.insert(label);
            }
        }
    }
    let series = |(family, metric): (String, Metric)| {
        let end = match metric.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (family + end, metric)
    };
    families.into_iter().map(series).collect()
}

fn rows(page: &str) -> BTreeMap<String, Metric> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, unit, labels, help] = cells[..] else { panic!("five cells: {row}") };
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(|it| it.trim_matches('`').to_owned());
        let (kind, unit, help) = (kind.to_owned(), unit.to_owned(), help.to_owned());
        (name.trim_matches('`').to_owned(), Metric { kind, unit, labels: labels.collect(), help })
    })
    .collect()
}

#[test]
fn the_page_lists_every_metric_as_it_is_registered_and_no_other() {
    let (metrics, _metered) = used();
    let registered = registered(&metrics.encode().unwrap());
    assert!(registered.len() > 60, "{}", registered.len());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    if env::var_os("UPDATE").is_some() {
        let known = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
        let lines: Vec<_> = page
            .lines()
            .map(|line| match known(line).and_then(|name| Some((registered.get(&name)?, name))) {
                Some((metric, name)) => metric.row(&name),
                None => line.to_owned(),
            })
            .collect();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let page = rows(&fs::read_to_string(&path).unwrap());
    for (name, metric) in &registered {
        let row = metric.row(name);
        assert!(page.contains_key(name), "{PAGE} has no row for this, in the section where it belongs:\n{row}");
        assert_eq!(page[name], *metric, "{PAGE}: UPDATE=1 writes the row\n{row}");
    }
    let others: Vec<_> = page.keys().filter(|name| !registered.contains_key(*name)).collect();
    assert!(others.is_empty(), "{PAGE} lists what no replica registers: {others:?}");
}

/// Whoever may write objects, Leases and field managers chooses those names.
#[test]
fn absurd_names_make_no_end_of_series_and_break_no_line() {
    let (metrics, metered) = used();
    let before = metrics.encode().unwrap();
    let absurd = |number: usize| format!("{number}\"}} 1\n# EOF\n\\{}", "\u{202e}é<script>".repeat(200));
    let meter = metered.meter();
    for number in 0..5000 {
        metrics.missed(&absurd(number));
        meter.undone(&absurd(number));
    }
    let after = metrics.encode().unwrap();
    let more = after.lines().count() - before.lines().count();
    assert!(more <= 22, "{more} lines more");
    assert!(after.len() < before.len() + 22 * 250, "{} bytes more", after.len() - before.len());
    // One of the ten field managers was there before.
    assert_eq!(after.matches("# EOF").count(), 1 + 9 + 10, "in the labels, as text");
    assert!(after.ends_with("\n# EOF\n"));
    for line in after.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        assert!(line.starts_with("leasehold_") || line.starts_with("process_"), "{line}");
        assert!(value.is_some(), "{line}");
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The metrics that a text of PromQL names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let is_metric = |word: &&str| ["leasehold_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    text.split(|c| !is_name(c)).filter(is_metric).collect()
}

#[test]
fn rules_and_dashboard_read_metrics_that_there_are() {
    let (metrics, _metered) = used();
    let registered = registered(&metrics.encode().unwrap());
    let rules: Value = serde_yaml::from_str(&read("deploy/monitoring/prometheusrule.yaml")).unwrap();
    let rules = each_rule(&rules).map(|rule| rule["expr"].as_str().unwrap().to_owned());
    let dashboard: Value = serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let (mut seen, mut others) = (0, BTreeSet::new());
    for expression in rules.chain(queries) {
        for name in named(&expression) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            seen += 1;
            if !registered.contains_key(family) && !registered.contains_key(name) {
                others.insert(name.to_owned());
            }
        }
    }
    assert!(seen > 100, "{seen}");
    assert!(others.is_empty(), "no replica has {others:?}");
}

fn each_rule(rules: &Value) -> impl Iterator<Item = &Value> {
    rules["spec"]["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
}

/// Who is woken at night finds the kind, the replica, the cause and the next step in the alert, and the rest on the page.
#[test]
fn each_alert_says_what_to_do_and_has_its_section() {
    let rules: Value = serde_yaml::from_str(&read("deploy/monitoring/prometheusrule.yaml")).unwrap();
    let page = read("docs/alerts.md");
    let sections: BTreeMap<&str, &str> =
        page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let alerts: Vec<_> = each_rule(&rules).filter(|rule| rule["alert"].is_string()).collect();
    let names: BTreeSet<_> = alerts.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(names, sections.keys().copied().collect(), "docs/alerts.md has a section for each alert and no other");
    for (name, section) in sections {
        for part in ["**Meaning.** ", "**Cause.** ", "**What to do.** "] {
            assert!(section.contains(part), "docs/alerts.md, {name}: {part}");
        }
    }
    for rule in alerts {
        let name = rule["alert"].as_str().unwrap();
        let text = |field: &str| rule["annotations"][field].as_str().unwrap_or_else(|| panic!("{name}: {field}"));
        assert_eq!(text("runbook_url"), format!("docs/alerts.md#{}", name.to_lowercase()));
        let (summary, description) = (text("summary"), text("description"));
        assert!(summary.ends_with('.') && summary.len() < 120, "{name}: {summary}");
        assert!(description.contains("leasehold explain"), "{name}: the next step: {description}");
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        let expression = rule["expr"].as_str().unwrap();
        // What an expression keeps is named.
        for label in ["kind", "pod", "namespace"] {
            let names = description.contains(&format!("$labels.{label} "))
                || description.contains(&format!("$labels.{label}}}"));
            let kept = !expression.starts_with("absent") && keeps(expression, label);
            assert_eq!(names, kept, "{name}: {label} in {description}");
        }
    }
}

/// Whether the series of an alert have this label, by its outermost operator and the metrics that it reads.
fn keeps(expression: &str, label: &str) -> bool {
    let of_kind = |name: &str| ["namespace_kind:", "namespace_pod_kind:"].iter().any(|it| name.starts_with(it));
    let first = expression.trim_start_matches(['(', ' ', '\n']);
    if let Some(list) = first.split_once("by (").filter(|(before, _)| ["max ", "min ", "sum "].contains(before)) {
        return list.1.split(')').next().unwrap().split(", ").any(|it| it == label);
    }
    let first = first.rsplit_once("over_time(").map_or(first, |(_, rest)| rest);
    match label {
        "pod" => !first.starts_with("namespace_kind:"),
        "kind" => {
            let of_replica = [
                "up",
                "leasehold_ready",
                "leasehold_lease_watch_up",
                "leasehold_webhook_certificate",
                "namespace_pod:",
            ];
            of_kind(first) || !of_replica.iter().any(|name| first.starts_with(name))
        }
        _ => true,
    }
}
