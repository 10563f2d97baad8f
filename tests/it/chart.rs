//! What of the Helm chart is made of the rest of the repository. That it renders the same objects as the kustomization, and what
//! it does on a cluster, is in `tests/acceptance/chart.rs`: that needs helm.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use leasehold::kinds;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_yaml::from_multiple(text).unwrap();
    all.into_iter().filter(|document| !document.is_null()).collect()
}

fn leasehold(arguments: &[&str]) -> String {
    let said = Command::new(env!("CARGO_BIN_EXE_leasehold")).current_dir(root()).args(arguments).output().unwrap();
    assert!(said.status.success(), "{arguments:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap()
}

/// Files of a folder that end so, with their text.
fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return BTreeMap::new() };
    let names = entries.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().unwrap().is_file());
    let names = names.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.ends_with(ending));
    names.map(|name| (name.clone(), text(&format!("{folder}/{name}")))).collect()
}

const MADE: &str = "# Made by `UPDATE=1 cargo test`; do not edit.\n";

/// What the compiled-in kinds need, as `verb|group|resource|name`, and the CRDs that they convert.
fn builtin() -> String {
    let needs: BTreeMap<_, Vec<_>> = kinds::builtin()
        .into_iter()
        .map(|builtin| {
            let needs = builtin.reconciler.needs().into_iter();
            let text = |need: leasehold::replica::term::Access| {
                format!("{}|{}|{}|{}", need.verb, need.group, need.resource, need.name.unwrap_or_default())
            };
            (builtin.name, needs.map(text).collect::<BTreeSet<_>>().into_iter().collect())
        })
        .collect();
    let converted = kinds::webhooks().into_iter().filter(|(_, hook)| hook.converts());
    let definitions: Vec<_> = converted.map(|(of, _)| format!("{}.{}", of.plural, of.group)).collect();
    format!("{MADE}{}", serde_yaml::to_string(&json!({"needs": needs, "definitions": definitions})).unwrap())
}

/// The policies, whose expressions about accounts the chart replaces by those of its values.
fn policies() -> String {
    let all = documents(&leasehold(&["policies", "-f", "config"]));
    let policies = all.into_iter().filter(|document| document["kind"] == "ValidatingAdmissionPolicy").map(|policy| {
        let name = policy["metadata"]["name"].as_str().unwrap().strip_prefix("leasehold-").unwrap().to_owned();
        json!({"metadata": {"name": name}, "spec": policy["spec"]})
    });
    let policies: Vec<_> = policies.collect();
    let hosts = documents(&text("deploy/policies/hosts.yaml"));
    let hosts = hosts.iter().find(|document| document["kind"] == "ValidatingAdmissionPolicy").unwrap();
    format!("{MADE}{}", serde_yaml::to_string(&json!({"policies": policies, "hosts": hosts["spec"]})).unwrap())
}

/// What of `deploy/monitoring` is for the Prometheus operator.
fn monitoring() -> BTreeMap<String, String> {
    let is_for_operator = |text: &str| {
        let all = documents(text);
        let is_of = |document: &Value| {
            document["apiVersion"].as_str().is_some_and(|it| it.starts_with("monitoring.coreos.com/"))
        };
        !all.is_empty() && all.iter().all(is_of)
    };
    files("deploy/monitoring", ".yaml").into_iter().filter(|(_, text)| is_for_operator(text)).collect()
}

#[test]
fn what_the_chart_shares_with_the_rest_is_the_same() {
    let mut made = BTreeMap::new();
    let mut put = |folder: &str, files: BTreeMap<String, String>| {
        made.extend(files.into_iter().map(|(name, text)| (PathBuf::from(folder).join(name), text)));
    };
    put("deploy/chart", [("values.schema.json".to_owned(), leasehold(&["schema", "values"]))].into());
    put(
        "deploy/chart/files",
        [("builtin.yaml".to_owned(), builtin()), ("policies.yaml".to_owned(), policies())].into(),
    );
    let composed: BTreeSet<_> = ["tenant.yaml", "webapp.yaml"].map(str::to_owned).into();
    let config = files("config", ".yaml").into_iter().filter(|(name, _)| composed.contains(name)).collect();
    put("deploy/chart/files/compositions", config);
    put("deploy/chart/files/monitoring", monitoring());
    put("deploy/chart/crds", files("crds", ".yaml"));
    for (file, text) in &made {
        let path = root().join(file);
        if env::var_os("UPDATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        let is_committed = fs::read_to_string(&path).is_ok_and(|committed| committed == *text);
        assert!(is_committed, "{} is out of date: run UPDATE=1 cargo test", file.display());
    }
    for folder in
        ["deploy/chart/files", "deploy/chart/files/compositions", "deploy/chart/files/monitoring", "deploy/chart/crds"]
    {
        for name in files(folder, "").into_keys() {
            assert!(made.contains_key(&Path::new(folder).join(&name)), "{folder}/{name} is not made of anything");
        }
    }
}

#[test]
fn the_chart_is_of_the_version_of_the_program() {
    let chart: Value = serde_yaml::from_str(&text("deploy/chart/Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
}
