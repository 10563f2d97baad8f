//! The Helm chart by the real helm: it renders what the kustomization is, grants what `leasehold rbac` and `leasehold policies`
//! print of the same files, says which value is wrong, and installs, upgrades, rolls back and removes itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt, api::ListParams};
use leasehold::{config, kinds};
use leasehold_cluster::{Binaries, Cluster, eventually, helm};
use serde_json::{Value, json};

use crate::stage::{PATIENCE, apart, ensure};

fn path(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string()
}

/// Runs helm, with folders of its own. Blocks.
fn run(cluster: Option<&Cluster>, arguments: &[&str]) -> Result<Output> {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    let program = match HELM.get() {
        Some(program) => program,
        None => HELM.get_or_init(|| helm().unwrap_or_else(|error| panic!("{error:#}"))),
    };
    let home = tempfile::tempdir()?;
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", home.path()).env_remove("KUBECONFIG");
    if let Some(cluster) = cluster {
        command.env("KUBECONFIG", cluster.kubeconfig());
    }
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What helm prints, where it succeeds.
fn printed(cluster: Option<&Cluster>, arguments: &[&str]) -> Result<String> {
    let output = run(cluster, arguments)?;
    ensure(output.status.success(), || format!("helm {arguments:?}: {}", said(&output)))?;
    Ok(String::from_utf8(output.stdout)?)
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_yaml::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// The objects of the chart as a release `leasehold`.
fn rendered(namespace: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let chart = path("deploy/chart");
    let first = ["template", "leasehold", &chart, "--namespace", namespace, "--kube-version", "1.37.0"];
    documents(&printed(None, &[&first, arguments].concat())?)
}

fn kustomized(folder: &str) -> Result<Vec<Value>> {
    let output = Command::new(Binaries::find_or_build()?.kubectl).args(["kustomize", &path(folder)]).output()?;
    ensure(output.status.success(), || said(&output))?;
    documents(&String::from_utf8(output.stdout)?)
}

fn command(arguments: &[&str]) -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold")).args(arguments).output()?;
    ensure(output.status.success(), || format!("{arguments:?}: {}", said(&output)))?;
    documents(&String::from_utf8(output.stdout)?)
}

/// Every (group, resource, name, verb) of the rules of a role: how they are put together is not what they grant.
fn granted(rules: &Value) -> Value {
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules.as_array().into_iter().flatten() {
        let names = texts(rule, "resourceNames");
        let names = if names.is_empty() { vec![String::new()] } else { names };
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                for name in &names {
                    all.extend(
                        texts(rule, "verbs").into_iter().map(|verb| format!("{verb} {group}/{resource} {name}")),
                    );
                }
            }
        }
    }
    json!(all)
}

/// The rules of a webhook, one a resource; a chart does not know the scope of a kind.
fn asked_about(webhook: &mut Value) {
    let mut all = BTreeSet::new();
    for rule in webhook["rules"].as_array().into_iter().flatten() {
        for resource in rule["resources"].as_array().into_iter().flatten() {
            let mut one = rule.clone();
            one["resources"] = json!([resource]);
            one["scope"] = json!("*");
            all.insert(one.to_string());
        }
    }
    webhook["rules"] = json!(all);
}

/// Takes the label out by which the chart tells two releases of one namespace apart.
fn without_instance(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("app.kubernetes.io/instance");
            fields.values_mut().for_each(without_instance);
        }
        Value::Array(items) => items.iter_mut().for_each(without_instance),
        _ => {}
    }
}

/// The configuration as the program reads it.
fn configuration(text: &str) -> Result<String> {
    let builtin = kinds::builtin();
    let names: Vec<_> = builtin.iter().map(|builtin| builtin.name).collect();
    let mut config = config::load("leasehold.yaml", text, &names)?;
    config.kinds.sort_by(|one, other| one.kind.cmp(&other.kind));
    Ok(format!("{config:#?}"))
}

/// Objects by kind and name, without what a chart and a kustomization say each in its own way.
fn by_name(all: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let mut named = BTreeMap::new();
    for mut object in all {
        without_instance(&mut object);
        let kind = object["kind"].as_str().context("kind")?.to_owned();
        let mut name = object["metadata"]["name"].as_str().context("name")?.to_owned();
        if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            for label in ["app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"] {
                labels.remove(label);
            }
        }
        if kind.starts_with("ValidatingAdmissionPolicy") {
            // kustomize takes them for namespaced.
            object["metadata"].as_object_mut().context("metadata")?.remove("namespace");
        }
        match kind.as_str() {
            // A chart cannot make the namespace that it is installed in.
            "Namespace" => continue,
            "ConfigMap" => {
                // Its name ends in a hash of the text.
                name = "leasehold".to_owned();
                object["metadata"]["name"] = json!(name);
                let text = object["data"]["leasehold.yaml"].as_str().context("leasehold.yaml")?;
                object["data"]["leasehold.yaml"] = json!(configuration(text)?);
            }
            "Deployment" => {
                let config = &mut object["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"];
                ensure(config.as_str().is_some_and(|name| name.starts_with("leasehold-")), || config.to_string())?;
                *config = json!("leasehold");
            }
            _ => {}
        }
        if object.get("rules").is_some() {
            object["rules"] = granted(&object["rules"]);
        }
        for webhook in object.pointer_mut("/webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
            asked_about(webhook);
        }
        let place = object["metadata"]["namespace"].as_str().map_or_else(String::new, |space| format!(" in {space}"));
        let name = format!("{kind}/{name}{place}");
        ensure(named.insert(name.clone(), object).is_none(), || format!("{name} is there twice"))?;
    }
    Ok(named)
}

fn same(one: &BTreeMap<String, Value>, other: &BTreeMap<String, Value>) -> Result<()> {
    let names = |of: &BTreeMap<String, Value>| of.keys().cloned().collect::<BTreeSet<_>>();
    ensure(names(one) == names(other), || format!("{:#?}", names(one).symmetric_difference(&names(other))))?;
    for (name, object) in one {
        let other = &other[name];
        ensure(object == other, || format!("{name}:\n{object:#}\nis not\n{other:#}"))?;
    }
    Ok(())
}

/// Object by object, with the default values; and so with webhooks, and without policies.
#[test]
fn the_chart_renders_the_objects_of_the_kustomization() -> Result<()> {
    for (folder, arguments) in [
        ("deploy", &[][..]),
        ("overlays/webhooks", &["--set", "webhooks.enabled=true"][..]),
        ("overlays/without-policies", &["--set", "policies.enabled=false"][..]),
    ] {
        let chart = by_name(rendered("leasehold-system", arguments)?)?;
        ensure(chart.len() > 25, || format!("{folder}: {:?}", chart.keys()))?;
        same(&chart, &by_name(kustomized(folder)?)?).with_context(|| folder.to_owned())?;
    }
    Ok(())
}

/// What the chart has for the Prometheus operator: by default nothing, and else what `deploy/monitoring` has, of each release its
/// own.
#[test]
fn the_chart_renders_the_monitoring_of_the_kustomization() -> Result<()> {
    let of_operator = |all: Vec<Value>| -> Vec<Value> {
        let is = |it: &Value| it["apiVersion"].as_str().is_some_and(|it| it.starts_with("monitoring.coreos.com/"));
        all.into_iter().filter(is).collect()
    };
    ensure(of_operator(rendered("leasehold-system", &[])?).is_empty(), || "nobody asked for it".to_owned())?;
    let enabled = ["--set", "monitoring.enabled=true,monitoring.labels.release=stack"];
    let chart = of_operator(rendered("leasehold-system", &enabled)?);
    let texts = |all: &[Value], pointer: &str| -> Vec<Value> {
        all.iter().map(|object| object.pointer(pointer).cloned().unwrap_or_default()).collect()
    };
    ensure(texts(&chart, "/metadata/labels/release") == ["stack", "stack"], || format!("{chart:#?}"))?;
    let mut chart = by_name(chart)?;
    let mut kustomized = by_name(of_operator(kustomized("deploy/monitoring")?))?;
    for object in chart.values_mut().chain(kustomized.values_mut()) {
        let metadata = object["metadata"].as_object_mut().context("metadata")?;
        metadata.remove("labels");
    }
    ensure(chart.len() == 2, || format!("{:?}", chart.keys()))?;
    same(&chart, &kustomized)?;

    // Another release, elsewhere: its Pods, and what its alerts tell to type.
    let all = rendered("elsewhere", &[&enabled[..], &["--set", "fullnameOverride=other"]].concat())?;
    let deployment = all.iter().find(|object| object["kind"] == "Deployment").context("a Deployment")?;
    let pods = deployment.pointer("/spec/selector/matchLabels").context("a selector")?.clone();
    let other = of_operator(all);
    ensure(texts(&other, "/metadata/namespace") == ["elsewhere", "elsewhere"], || format!("{other:#?}"))?;
    ensure(texts(&other, "/metadata/name") == ["other", "other"], || format!("{other:#?}"))?;
    let monitor = other.iter().find(|object| object["kind"] == "PodMonitor").context("a PodMonitor")?;
    ensure(monitor.pointer("/spec/selector/matchLabels") == Some(&pods), || format!("{monitor:#} is not of {pods}"))?;
    ensure(!json!(other).to_string().contains("leasehold-system"), || format!("{other:#?}"))
}

/// A kind of every sort: plurals of English and others, roles written and given away, what is taken over, what is read, Pods with
/// and without powers, types confined to a namespace of the composition and not, one account for two kinds, a group.
const SORTS: [(&str, &str); 4] = [
    (
        "leasehold.yaml",
        r"
apiVersion: leasehold.dev/v1alpha1
kind: Configuration
leases: {namespace: locks}
kinds:
- {apiVersion: a.example.com/v1, kind: Policy, serviceAccount: one, group: a.example.com, lock: ConfigMapsLeases, reconciler: {compose: a.yaml}}
- {apiVersion: a.example.com/v1, kind: Box, serviceAccount: one, group: a.example.com, lock: ConfigMapsLeases, reconciler: {compose: b.yaml}}
- {apiVersion: example.com/v2, kind: Day, plural: dies, serviceAccount: two, lease: {name: days}, escalation: Trust, reconciler: {compose: c.yaml}}
- {apiVersion: leasehold.dev/v1alpha1, kind: Propagation, serviceAccount: three, reconciler: {builtin: propagation}}
- {apiVersion: leasehold.dev/v1alpha1, kind: ExpiryPolicy, serviceAccount: three, reconciler: {builtin: expiry}}
",
    ),
    (
        "a.yaml",
        r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
related:
- {id: classes, apiVersion: storage.k8s.io/v1, kind: StorageClass}
- {id: mice, apiVersion: example.com/v1, kind: Mouse, resource: mice}
children:
- {id: space, template: {apiVersion: v1, kind: Namespace, metadata: {name: "a-${parent.metadata.name}"}}}
- {id: quota, template: {apiVersion: v1, kind: ResourceQuota, metadata: {name: x, namespace: "a-${parent.metadata.name}"}}}
- {id: map, adopt: IfUnowned, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: "a-${parent.metadata.name}"}}}
- {id: watch, adopt: Never, template: {apiVersion: example.com/v1, kind: Watch, metadata: {name: x}}}
- {id: geese, resource: geese, template: {apiVersion: example.com/v1, kind: Goose, metadata: {name: x}}}
- {id: binding, template: {apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: x, namespace: "a-${parent.metadata.name}"}, roleRef: {kind: Role, name: reader}}}
- {id: pods, template: {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: x, namespace: y}, spec: {template: {spec: {hostNetwork: false, containers: [{name: a, image: "${parent.spec.image}"}]}}}}}
"#,
    ),
    (
        "b.yaml",
        r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
children:
- {id: map, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: y}}}
- {id: account, template: {apiVersion: v1, kind: ServiceAccount, metadata: {name: y}}}
- {id: secret, adopt: Always, template: {apiVersion: v1, kind: Secret, metadata: {name: y}}}
admission:
  defaults: {spec: {size: 1}}
  lookups: [{id: node, apiVersion: v1, kind: Node, name: "${parent.spec.node}"}]
  rules: [{rule: "${size(related.node) == 1}", message: "spec.node: there is no such node"}]
"#,
    ),
    (
        "c.yaml",
        r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
children:
- {id: role, template: {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: z}}}
- {id: binding, template: {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: z}, roleRef: {kind: ClusterRole, name: view}}}
- {id: job, template: {apiVersion: batch/v1, kind: CronJob, metadata: {name: z}, spec: {jobTemplate: {spec: {template: {spec: "${parent.spec.pod}"}}}}}}
- {id: some, includeWhen: ["${parent.spec.on}"], template: {apiVersion: v1, kind: Namespace, metadata: {name: n}}}
- {id: inside, template: {apiVersion: v1, kind: LimitRange, metadata: {name: z, namespace: n}}}
"#,
    ),
];

/// The values that say what a folder says, in JSON, which is YAML.
fn values(folder: &Path) -> Result<Value> {
    let mut configuration: Value = serde_yaml::from_str(&fs::read_to_string(folder.join("leasehold.yaml"))?)?;
    let mut listed = json!({});
    for shipped in ["propagation", "expirypolicy", "scaleschedule", "tenant", "webapp"] {
        listed[shipped] = json!({"enabled": false});
    }
    let mut compositions = json!({});
    for (index, kind) in configuration["kinds"].as_array().into_iter().flatten().enumerate() {
        if let Some(file) = kind["reconciler"]["compose"].as_str() {
            let text = fs::read_to_string(folder.join(file))?;
            // Both ways to write one.
            compositions[file.trim_end_matches(".yaml")] =
                if index % 2 == 0 { json!(text) } else { serde_yaml::from_str(&text)? };
        }
        listed[format!("k{index}")] = kind.clone();
    }
    let fields = configuration.as_object_mut().context("a mapping")?;
    for field in ["apiVersion", "kind", "kinds"] {
        fields.remove(field);
    }
    if let Some(webhooks) = configuration.pointer_mut("/webhooks").and_then(Value::as_object_mut) {
        webhooks.remove("enabled");
    }
    Ok(json!({"configuration": configuration, "kinds": listed, "compositions": compositions}))
}

/// What a user gets by values alone is what the commands print of the same files: accounts, roles, policies.
#[test]
fn the_chart_grants_what_the_commands_print_and_no_more() -> Result<()> {
    let sorts = tempfile::tempdir()?;
    for (name, text) in SORTS {
        fs::write(sorts.path().join(name), text)?;
    }
    let folders = ["config", "config/examples", "overlays/trust-levels/system", "overlays/trust-levels/tenants"];
    let folders = folders.map(|folder| PathBuf::from(path(folder)));
    for folder in folders.iter().map(PathBuf::as_path).chain([sorts.path()]) {
        // A kind without an account acts as the replicas themselves by a file, and never so by the chart.
        let copy = tempfile::tempdir()?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // Some are links to those of another folder.
            if entry.path().is_file() {
                fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
            }
        }
        let list = copy.path().join("leasehold.yaml");
        let mut config: Value = serde_yaml::from_str(&fs::read_to_string(&list)?)?;
        for (index, kind) in config["kinds"].as_array_mut().into_iter().flatten().enumerate() {
            if kind.get("serviceAccount").is_none() {
                kind["serviceAccount"] = json!(format!("leasehold-k{index}"));
            }
        }
        fs::write(&list, config.to_string())?;
        let file = copy.path().join("values.json");
        fs::write(&file, values(copy.path())?.to_string())?;

        let of = copy.path().display().to_string();
        let elsewhere = ["--namespace", "elsewhere", "-f", &of];
        let mut wanted = command(&[&["rbac", "--webhooks=on"][..], &elsewhere].concat())?;
        wanted.extend(command(&[&["policies", "--other", "theirs", "--other", "apart"][..], &elsewhere].concat())?);
        let wanted = by_name(wanted)?;
        let file = file.display().to_string();
        let more = ["-f", &file, "--set", "webhooks.enabled=true,policies.otherNamespaces={theirs,apart}"];
        let mut made = by_name(rendered("elsewhere", &more)?)?;
        for object in made.values_mut() {
            object["metadata"].as_object_mut().context("metadata")?.remove("labels");
        }
        for (name, object) in &wanted {
            let found = made.get(name).with_context(|| format!("{}: the chart lacks {name}", folder.display()))?;
            ensure(found == object, || format!("{}: {name}:\n{found:#}\nis not\n{object:#}", folder.display()))?;
        }
        // And no account, and no policy, that they do not print.
        let fixed = ["ServiceAccount/leasehold in elsewhere", "ValidatingAdmissionPolicy/leasehold-hosts"];
        let hosts = "ValidatingAdmissionPolicyBinding/leasehold-hosts";
        for name in made.keys().filter(|name| name.starts_with("ServiceAccount/") || name.starts_with("Validating")) {
            let is_known = wanted.contains_key(name) || fixed.contains(&name.as_str()) || name == hosts;
            ensure(is_known || name.ends_with("-webhooks"), || format!("{}: {name}", folder.display()))?;
        }
    }
    Ok(())
}

/// Each names the value and what is wrong with it, and nothing is rendered.
#[test]
fn values_that_are_wrong_are_refused_with_their_place() -> Result<()> {
    let compose =
        "kinds.queue.apiVersion=example.com/v1,kinds.queue.kind=Queue,kinds.queue.reconciler.compose=queue.yaml";
    let off: Vec<_> = ["propagation", "expirypolicy", "scaleschedule", "tenant", "webapp"]
        .map(|kind| format!("kinds.{kind}.enabled=false"))
        .into();
    let bad_file = format!("{compose},compositions.queue=children");
    let own = format!("{compose},kinds.queue.serviceAccount=leasehold,compositions.queue.x=1");
    let rows: [(&str, &[&str]); 13] = [
        ("replicas=many", &["/replicas", "got string, want integer"]),
        ("replica=3", &["'replica' not allowed"]),
        ("configuration.lease.duration=9s", &["/configuration", "'lease' not allowed"]),
        ("configuration.leases.duration=9", &["/configuration/leases/duration", "got number, want string"]),
        ("configuration.webhooks.enabled=true", &["/configuration/webhooks", "'enabled' not allowed"]),
        ("kinds.tenant.weight=0", &["/kinds/tenant/weight", "1"]),
        ("kinds.tenant.reconciler.builtin=tenants", &["/kinds/tenant/reconciler"]),
        ("kinds.Queue.kind=Queue", &["/kinds", "'Queue' not allowed"]),
        (compose, &["kinds.queue.reconciler.compose", "no composition \"queue.yaml\"", "compositions.queue"]),
        (&own, &["/compositions/queue", "'x' not allowed"]),
        (&bad_file, &["compositions.queue", "no list of children"]),
        (&off.join(","), &["kinds: none is left"]),
        ("monitoring.enabled=yes", &["/monitoring/enabled", "got string, want boolean"]),
    ];
    for (set, expected) in rows {
        let output = run(None, &["template", "leasehold", &path("deploy/chart"), "--set", set])?;
        let said = said(&output);
        ensure(!output.status.success() && output.stdout.is_empty(), || format!("{set}: {said}"))?;
        for text in expected {
            ensure(said.contains(text), || format!("{set}: no {text:?} in {said}"))?;
        }
    }
    let old = ["template", "leasehold", &path("deploy/chart"), "--kube-version", "1.29.0"];
    let output = run(None, &old)?;
    ensure(said(&output).contains("policies.enabled") && !output.status.success(), || said(&output))?;
    printed(None, &[&old[..], &["--set", "policies.enabled=false"]].concat())?;
    printed(None, &["lint", "--strict", &path("deploy/chart")])?;
    Ok(())
}

const CHART: &str = "deploy/chart";
const SPACE: &str = "shelf";
const CRD: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: queues.chart.example.com}
spec:
  group: chart.example.com
  names: {kind: Queue, plural: queues}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}, status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
";
const QUEUE: &str = r#"
apiVersion: leasehold.dev/v1alpha1
kind: Composition
children:
- id: settings
  template: {apiVersion: v1, kind: ConfigMap, metadata: {name: "${parent.metadata.name}-settings"}, data: {depth: "${string(parent.spec.depth)}"}}
"#;

/// Who holds which Lease of a kind.
async fn holders(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let leases: Api<Lease> = Api::namespaced(cluster.client()?, SPACE);
    let all = leases.list(&ListParams::default().labels("leasehold.dev/role=shard")).await?.items;
    let held = all.into_iter().filter_map(|lease| {
        let holder = lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())?;
        Some((lease.name_any(), holder))
    });
    Ok(held.collect())
}

/// Waits until this many kinds are led by Pods whose names begin so.
async fn led(cluster: &Cluster, kinds: usize, by: &str) -> Result<BTreeMap<String, String>> {
    let all =
        |held: &BTreeMap<String, String>| held.len() == kinds && held.values().all(|holder| holder.starts_with(by));
    eventually(&format!("{kinds} kinds are led by {by}*"), PATIENCE, || holders(cluster), all).await
}

/// What the names of the Pods of the newest ReplicaSet begin with.
async fn generation(cluster: &Cluster) -> Result<String> {
    let newest = [
        "-n",
        SPACE,
        "get",
        "pods",
        "--sort-by=.metadata.creationTimestamp",
        "-o",
        "jsonpath={.items[-1:].metadata.name}",
    ];
    let name = cluster.kubectl(&newest).await?;
    let (prefix, _) = name.rsplit_once('-').with_context(|| format!("the name of a Pod: {name:?}"))?;
    Ok(format!("{prefix}-"))
}

async fn rolled_out(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["-n", SPACE, "rollout", "status", "deployment/leasehold", "--timeout=120s"]).await?;
    Ok(())
}

/// Every object of a type that can be listed and bears the labels of the release, as `resource/name`.
async fn labelled(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let types = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await?;
    let types: Vec<_> = types.split_whitespace().filter(|of| !of.starts_with("componentstatuses")).collect();
    let arguments = [
        "get",
        &types.join(","),
        "-A",
        "-l",
        "app.kubernetes.io/instance=leasehold",
        "-o",
        "name",
        "--ignore-not-found",
    ];
    Ok(cluster.kubectl(&arguments).await?.split_whitespace().map(str::to_owned).collect())
}

/// One test and not several: each act needs what the last one left.
#[tokio::test(flavor = "multi_thread")]
async fn the_chart_installs_upgrades_rolls_back_and_leaves_nothing() -> Result<()> {
    let (cluster, _) = apart().await?;
    let chart = path(CHART);
    let helm = async |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().copied().map(str::to_owned).collect();
        tokio::task::spawn_blocking(move || {
            printed(Some(cluster), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .await?
    };
    let of = ["leasehold", &chart, "--namespace", SPACE];
    let notes = helm(&[&["install"][..], &of, &["--create-namespace", "--wait", "--timeout", "120s"]].concat()).await?;
    ensure(notes.contains("leasehold status -n shelf") && notes.contains("3 replicas share 5 kinds"), || {
        notes.clone()
    })?;
    ensure(notes.contains("kubectl label namespace shelf pod-security.kubernetes.io/enforce=restricted"), || notes)?;
    cluster.kubectl(&["label", "namespace", SPACE, "pod-security.kubernetes.io/enforce=restricted"]).await?;
    let first = generation(cluster).await?;
    let shared = led(cluster, 5, &first).await?;
    let replicas: BTreeSet<_> = shared.values().collect();
    ensure(replicas.len() == 3, || format!("5 kinds on three replicas: {shared:?}"))?;
    let before = labelled(cluster).await?;
    ensure(before.len() > 40, || format!("{before:?}"))?;

    // A kind and its composition, by values alone: its account may do what it needs, and it is led and reconciled.
    cluster.apply(CRD).await?;
    cluster.established("queues.chart.example.com").await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("queue.yaml");
    fs::write(&file, QUEUE)?;
    let queue =
        "kinds.queue.apiVersion=chart.example.com/v1,kinds.queue.kind=Queue,kinds.queue.reconciler.compose=queue.yaml";
    let set_file = format!("compositions.queue={}", file.display());
    let added = ["--set", queue, "--set-file", &set_file];
    helm(&[&["upgrade"][..], &of, &added, &["--wait", "--timeout", "120s"]].concat()).await?;
    rolled_out(cluster).await?;
    let second = generation(cluster).await?;
    ensure(first != second, || format!("another configuration rolls out: {first} {second}"))?;
    led(cluster, 6, &second).await?;
    cluster.apply("{apiVersion: chart.example.com/v1, kind: Queue, metadata: {name: mail, namespace: default}, spec: {depth: 3}}").await?;
    let depth = ["get", "configmap", "mail-settings", "-o", "jsonpath={.data.depth}"];
    let is_made = |made: &String| made == "3";
    eventually("the Queue has its settings", PATIENCE, || cluster.kubectl(&depth), is_made).await?;
    // The configuration of the generation before stays for one more.
    let maps = ["-n", SPACE, "get", "configmaps", "-l", "app.kubernetes.io/instance=leasehold", "-o", "name"];
    let kept = cluster.kubectl(&maps).await?;
    ensure(kept.lines().count() == 2, || kept)?;

    // A configuration that is refused when it is read: the new Pod does not become ready, and no kind leaves the others.
    fs::write(&file, QUEUE.replace("${string(", "${text("))?;
    let upgrade = [&["upgrade"][..], &of, &added, &["--wait", "--timeout", "15s"]].concat();
    let output = {
        let upgrade: Vec<String> = upgrade.into_iter().map(str::to_owned).collect();
        let run_it = move || run(Some(cluster), &upgrade.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run_it).await??
    };
    ensure(!output.status.success(), || said(&output))?;
    // What the rollout before left uneven may still be evened out among them.
    let held = holders(cluster).await?;
    ensure(held.len() == 6 && held.values().all(|holder| holder.starts_with(&second)), || {
        format!("{second} {held:?}")
    })?;
    helm(&["rollback", "leasehold", "2", "--namespace", SPACE, "--wait", "--timeout", "120s"]).await?;
    led(cluster, 6, &second).await?;

    // Back to the first revision: the kind and its account are gone, and the first configuration is there again.
    helm(&["rollback", "leasehold", "1", "--namespace", SPACE, "--wait", "--timeout", "120s"]).await?;
    rolled_out(cluster).await?;
    led(cluster, 5, &first).await?;
    let accounts = cluster.kubectl(&["-n", SPACE, "get", "serviceaccounts", "-o", "name"]).await?;
    ensure(!accounts.contains("leasehold-queue") && accounts.contains("leasehold-tenant"), || accounts)?;

    helm(&["uninstall", "leasehold", "--namespace", SPACE, "--wait", "--timeout", "120s"]).await?;
    let nothing = |left: &BTreeSet<String>| left.is_empty();
    eventually("nothing of the release is left", Duration::from_secs(120), || labelled(cluster), nothing).await?;
    let roles = cluster
        .kubectl(&["get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,priorityclasses", "-o", "name"])
        .await?;
    ensure(!roles.contains("leasehold"), || roles)?;
    // The CRDs stay, and with them their objects.
    ensure(cluster.kubectl(&["get", "crds", "-o", "name"]).await?.contains("tenants.leasehold.dev"), || {
        "no CRD".to_owned()
    })?;
    // So do the Leases, which no replica renews any more; the namespace takes them along.
    cluster.kubectl(&["delete", "namespace", SPACE, "--timeout=60s"]).await?;
    let leases = holders(cluster).await?;
    ensure(leases.is_empty(), || format!("{leases:?}"))?;
    Ok(())
}
