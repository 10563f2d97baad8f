//! What is deployed fits what was built: permissions, the drain, the configuration.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use leasehold::{config, kinds, protocol::slot};
use serde_json::Value;

/// The documents of a file of this repository.
fn documents(file: &str) -> Vec<Value> {
    serde_yaml::from_multiple(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn texts<'v>(value: &'v Value, field: &str) -> Vec<&'v str> {
    value[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Every (verb, group, resource) of the rules of a kind of role.
fn granted(role: &str) -> BTreeSet<(String, String, String)> {
    let mut granted = BTreeSet::new();
    let both = ["deploy/rbac.yaml", "deploy/kinds.yaml"].into_iter().flat_map(documents);
    for document in both.filter(|document| document["kind"] == role) {
        for rule in document["rules"].as_array().into_iter().flatten() {
            for group in texts(rule, "apiGroups") {
                for resource in texts(rule, "resources") {
                    for verb in texts(rule, "verbs") {
                        granted.insert((verb.to_owned(), group.to_owned(), resource.to_owned()));
                    }
                }
            }
        }
    }
    assert!(!granted.is_empty());
    granted
}

fn configuration() -> config::Configuration {
    let builtin = kinds::builtin();
    let names: Vec<_> = builtin.iter().map(|builtin| builtin.name).collect();
    config::load("config/leasehold.yaml", &text("config/leasehold.yaml"), &names).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_role_of_the_kinds_is_the_one_that_the_configuration_asks_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(["rbac", "-f"])
        .arg(folder.join("config"))
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let (file, role) = (folder.join("deploy/kinds.yaml"), String::from_utf8(said.stdout).unwrap());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &role).unwrap();
    }
    let is_committed = fs::read_to_string(&file).is_ok_and(|committed| committed == role);
    assert!(is_committed, "{} is out of date: run UPDATE=1 cargo test", file.display());
}

#[test]
fn nothing_is_granted_by_wildcard_and_leases_are_written_in_their_namespace_only() {
    for role in ["Role", "ClusterRole"] {
        for (verb, group, resource) in granted(role) {
            let parts = [&verb, &group, &resource];
            assert!(parts.iter().all(|part| !part.contains('*')), "{role}: {parts:?}");
            let ours = ["leases", "pods", "replicasets"].contains(&resource.as_str());
            assert!(ours || role == "ClusterRole", "{role}: {parts:?}");
            let reads = ["list", "watch"].contains(&verb.as_str());
            assert!(resource != "leases" || role == "Role" || reads, "{role}: {parts:?}");
            assert!(resource != "pods" || role != "Role" || verb != "delete", "Pods are the Deployment's");
        }
    }
}

#[test]
fn the_grace_period_covers_the_drain_and_the_release() {
    let [deployment] = &documents("deploy/deployment.yaml")[..] else { panic!("one document") };
    let grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    let config = configuration();
    // The release is a read and a write.
    let prepare = slot::PREPARE.min(config.drain_timeout);
    let needed = prepare + config.drain_timeout + 2 * config.timings.request_timeout;
    assert!(Duration::from_secs(grace) > needed, "{grace} s are too short for {needed:?}");
}

#[test]
fn the_leases_live_where_they_may_be_written() {
    let [kustomization] = &documents("deploy/kustomization.yaml")[..] else { panic!("one document") };
    assert_eq!(configuration().lease_namespace.as_deref(), kustomization["namespace"].as_str());
}
