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
fn roles_and_policies_are_those_that_the_configuration_asks_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (system, tenants) = (
        &["--other", "leasehold-tenants"][..],
        &["--namespace", "leasehold-tenants", "--name", "leasehold-tenants", "--other", "leasehold-system"][..],
    );
    for (command, of, options, file) in [
        ("rbac", "config", &[][..], "deploy/kinds.yaml"),
        ("policies", "config", &[][..], "deploy/policies/accounts.yaml"),
        ("policies", "overlays/trust-levels/system", system, "overlays/trust-levels/system/policies.yaml"),
        ("policies", "overlays/trust-levels/tenants", tenants, "overlays/trust-levels/tenants/policies.yaml"),
    ] {
        let said = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .args([command, "-f"])
            .arg(folder.join(of))
            .args(options)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        let (file, text) = (folder.join(file), String::from_utf8(said.stdout).unwrap());
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let is_committed = fs::read_to_string(&file).is_ok_and(|committed| committed == text);
        assert!(is_committed, "{} is out of date: run UPDATE=1 cargo test", file.display());
    }
}

const POLICIES: [&str; 2] = ["deploy/policies/accounts.yaml", "deploy/policies/hosts.yaml"];

/// Together the two installations are the one that is shipped; what they leave out is the default, as it is there.
#[test]
fn installations_by_trust_level_have_the_shipped_kinds_between_them() {
    let read = |file: &str| documents(file).pop().unwrap();
    let kinds = |of: &Value| of["kinds"].as_array().unwrap().clone();
    let all = kinds(&read("config/leasehold.yaml"));
    let mut both = Vec::new();
    for (level, instance, namespace) in
        [("system", "leasehold", "leasehold-system"), ("tenants", "leasehold-tenants", "leasehold-tenants")]
    {
        let folder = format!("overlays/trust-levels/{level}");
        let config = read(&format!("{folder}/leasehold.yaml"));
        let [kustomization] = &documents(&format!("{folder}/kustomization.yaml"))[..] else { panic!("one document") };
        assert_eq!(kustomization["namespace"], namespace);
        assert_eq!((&config["instance"], &config["leases"]["namespace"]), (&instance.into(), &namespace.into()));
        both.extend(kinds(&config));
    }
    // Those that say a default say it in the shipped file only.
    for kind in &mut both {
        let shipped = all.iter().find(|it| it["kind"] == kind["kind"]).unwrap();
        let says = |field: &str| shipped.get(field).cloned().unwrap();
        for field in kind.as_object().unwrap().keys() {
            assert_eq!(kind[field], says(field), "{}", kind["kind"]);
        }
    }
    let names = |kinds: &[Value]| -> BTreeSet<String> { kinds.iter().map(|kind| kind["kind"].to_string()).collect() };
    assert_eq!((both.len(), names(&both)), (all.len(), names(&all)));
}

#[test]
fn policies_are_on_refuse_what_they_cannot_judge_and_are_about_our_accounts_only() {
    let [kustomization] = &documents("deploy/kustomization.yaml")[..] else { panic!("one document") };
    assert!(texts(kustomization, "resources").contains(&"policies"));
    let [policies] = &documents("deploy/policies/kustomization.yaml")[..] else { panic!("one document") };
    let files: Vec<_> =
        texts(policies, "resources").into_iter().map(|file| format!("deploy/policies/{file}")).collect();
    assert_eq!(files, POLICIES);
    let account = format!("startsWith('system:serviceaccount:{}:')", kustomization["namespace"].as_str().unwrap());
    let all: Vec<_> = POLICIES.into_iter().flat_map(documents).collect();
    let (policies, bindings): (Vec<_>, Vec<_>) = all.iter().partition(|it| it["kind"] == "ValidatingAdmissionPolicy");
    assert_eq!((policies.len(), bindings.len()), (6, 6));
    for policy in policies {
        let name = &policy["metadata"]["name"];
        let binding = bindings.iter().find(|binding| binding["spec"]["policyName"] == *name).unwrap();
        assert_eq!(texts(&binding["spec"], "validationActions"), ["Deny"], "{name}");
        assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{name}");
        // It stands in the way of every write of a cluster: what others write is let through before anything is judged.
        let conditions = policy["spec"]["matchConditions"].as_array().unwrap();
        let is_ours = |condition: &&Value| condition["expression"].as_str().unwrap().contains(&account);
        assert!(conditions.iter().any(|condition| is_ours(&condition)), "{name}");
        for validation in policy["spec"]["validations"].as_array().unwrap() {
            assert_eq!(validation["reason"], "Forbidden", "{name}");
            assert!(validation["messageExpression"].is_string(), "{name}: it says why");
        }
    }
}

#[test]
fn the_configuration_is_not_changed_in_place() {
    let [kustomization] = &documents("config/kustomization.yaml")[..] else { panic!("one document") };
    assert_eq!(kustomization["generatorOptions"]["immutable"], true);
    assert!(kustomization["generatorOptions"]["disableNameSuffixHash"].is_null(), "another one has another name");
}

/// A name without a registry is looked for where each node looks first.
#[test]
fn images_say_their_registry() {
    let has_registry = |image: &str| image.split_once('/').is_some_and(|(registry, _)| registry.contains('.'));
    let mut images: Vec<String> = Vec::new();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples");
    let files = fs::read_dir(samples).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        images.extend(
            text.lines()
                .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: "))
                .map(str::to_owned),
        );
    }
    assert!(images.len() > 1, "{images:?}");
    assert!(images.iter().all(|image| has_registry(image)), "{images:?}");
}

#[test]
fn nothing_is_granted_by_wildcard_and_leases_are_written_in_their_namespace_only() {
    for role in ["Role", "ClusterRole"] {
        for (verb, group, resource) in granted(role) {
            let parts = [&verb, &group, &resource];
            assert!(parts.iter().all(|part| !part.contains('*')), "{role}: {parts:?}");
            let ours = ["leases", "pods", "replicasets", "serviceaccounts", "events"].contains(&resource.as_str());
            assert!(ours || role == "ClusterRole", "{role}: {parts:?}");
            let reads = ["list", "watch"].contains(&verb.as_str());
            assert!(resource != "leases" || role == "Role" || reads, "{role}: {parts:?}");
            assert!(resource != "pods" || role != "Role" || verb != "delete", "Pods are the Deployment's");
        }
    }
}

/// What a stolen token of a replica could do of itself: nothing of what the kinds may do, except as one of their accounts.
#[test]
fn the_replicas_themselves_may_do_nothing_that_kinds_do() {
    let both = || ["deploy/rbac.yaml", "deploy/kinds.yaml"].into_iter().flat_map(documents);
    let is_replica = |binding: &Value| {
        binding["subjects"].as_array().into_iter().flatten().any(|subject| subject["name"] == "leasehold")
    };
    let bound: Vec<_> = both()
        .filter(|it| it["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding")) && is_replica(it))
        .map(|binding| binding["roleRef"].clone())
        .collect();
    assert!(!bound.is_empty());
    let accounts: BTreeSet<_> = configuration().kinds.iter().filter_map(|kind| kind.service_account.clone()).collect();
    assert_eq!(accounts.len(), configuration().kinds.len(), "each kind acts as an account of its own");
    for role in
        both().filter(|it| bound.iter().any(|of| it["kind"] == of["kind"] && it["metadata"]["name"] == of["name"]))
    {
        for rule in role["rules"].as_array().unwrap() {
            match texts(rule, "resources")[..] {
                ["leases"] | ["pods"] | ["replicasets"] | ["events"] => {}
                ["serviceaccounts"] => {
                    assert_eq!(texts(rule, "verbs"), ["get", "impersonate"]);
                    let named: BTreeSet<_> = texts(rule, "resourceNames").into_iter().map(str::to_owned).collect();
                    assert_eq!(named, accounts);
                }
                _ => panic!("{rule}"),
            }
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

const WEBHOOKS: &str = "deploy/webhooks/objects";

#[test]
fn webhooks_may_write_what_is_named_and_nothing_else() {
    for role in documents(&format!("{WEBHOOKS}/rbac.yaml")) {
        for rule in role["rules"].as_array().into_iter().flatten() {
            // To ask what others may do is a creation, which cannot be granted by name, and stores nothing.
            if texts(rule, "resources") == ["subjectaccessreviews"] {
                assert_eq!(
                    (texts(rule, "apiGroups"), texts(rule, "verbs")),
                    (vec!["authorization.k8s.io"], vec!["create"])
                );
                continue;
            }
            assert!(!texts(rule, "resourceNames").is_empty(), "{rule}: no names");
            for field in ["apiGroups", "resources", "verbs", "resourceNames"] {
                assert!(texts(rule, field).iter().all(|text| !text.contains('*')), "{rule}");
            }
            // An update of what is read, and neither a patch of what is not nor a deletion.
            let reads = ["get", "list", "watch", "update"];
            assert!(texts(rule, "verbs").iter().all(|verb| reads.contains(verb)), "{rule}");
        }
    }
}

/// What `leasehold rbac` prints besides where webhooks are served is what lies in `deploy/webhooks/`.
#[test]
fn access_reviews_are_granted_as_the_command_prints_it() {
    let rbac = |arguments: &[&str]| -> Vec<Value> {
        let said = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["rbac", "-f", "config"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        serde_yaml::from_multiple(&String::from_utf8(said.stdout).unwrap()).unwrap()
    };
    let without = rbac(&[]);
    let more: Vec<_> = rbac(&["--webhooks=on"]).into_iter().filter(|document| !without.contains(document)).collect();
    let committed = documents(&format!("{WEBHOOKS}/rbac.yaml"));
    let committed: Vec<_> =
        committed.into_iter().filter(|document| document["metadata"]["name"] == "leasehold-access-reviews").collect();
    assert_eq!(more.len(), 2);
    assert_eq!(more, committed);
}

/// Each kind that is checked has a rule by which the API server asks about it, whatever is written of it but its status.
#[test]
fn every_kind_that_is_checked_is_asked_about_and_nothing_is_stored_unasked() {
    let all = documents(&format!("{WEBHOOKS}/configurations.yaml"));
    let validating = all.iter().find(|it| it["kind"] == "ValidatingWebhookConfiguration").unwrap();
    let webhooks = validating["webhooks"].as_array().unwrap();
    let asks = webhooks.iter().find(|it| it["name"] == "escalation.leasehold.dev").unwrap();
    let rule = &asks["rules"][0];
    assert_eq!((texts(rule, "operations"), &rule["scope"]), (vec!["CREATE", "UPDATE"], &Value::from("*")));
    assert_eq!((&asks["failurePolicy"], &asks["matchPolicy"]), (&Value::from("Fail"), &Value::from("Equivalent")));
    assert!(asks["namespaceSelector"].is_null() && asks["objectSelector"].is_null(), "no object is left out");
    let kinds = configuration().kinds.into_iter().filter(|kind| kind.escalation == config::Escalation::Check);
    let checked: BTreeSet<_> = kinds.map(|kind| leasehold::reconcile::children::Type::of_kind(&kind).plural).collect();
    let named: BTreeSet<_> = texts(rule, "resources").into_iter().map(str::to_owned).collect();
    assert_eq!(named, checked);
    assert_eq!(checked.len(), 4, "and Tenants are trusted");
}

#[test]
fn the_webhook_configurations_fit_the_binary_and_each_other() {
    let settings = configuration().webhooks;
    assert!(!settings.enabled, "deploy/ serves none; the overlay switches them on");
    let [service] = &documents(&format!("{WEBHOOKS}/service.yaml"))[..] else { panic!("one document") };
    assert_eq!(service["metadata"]["name"], settings.name.as_str());
    let answer = leasehold::webhooks::server::Limits::default().answer.as_secs();
    let crds = documents("crds/webhooks/scaleschedules.leasehold.dev.yaml");
    let converts = crds.iter().map(|crd| (&crd["spec"]["conversion"]["webhook"]["clientConfig"], "/convert"));
    let mut clients: Vec<(Value, &str)> = converts.map(|(client, path)| (client.clone(), path)).collect();
    for document in documents(&format!("{WEBHOOKS}/configurations.yaml")) {
        assert_eq!(document["metadata"]["name"], settings.name.as_str());
        let path = if document["kind"] == "ValidatingWebhookConfiguration" { "/validate" } else { "/mutate" };
        for webhook in document["webhooks"].as_array().unwrap() {
            assert!(webhook["timeoutSeconds"].as_u64().unwrap() > answer, "the API server waits for a refusal");
            assert_eq!(webhook["sideEffects"], "None");
            let policy = if path == "/validate" { "Fail" } else { "Ignore" };
            assert_eq!(webhook["failurePolicy"], policy);
            clients.push((webhook["clientConfig"].clone(), path));
        }
    }
    assert_eq!(clients.len(), 4);
    for (client, path) in clients {
        let service = &client["service"];
        assert_eq!((&service["name"], &service["path"]), (&Value::from(settings.name.as_str()), &Value::from(path)));
        assert_eq!(service["namespace"], "leasehold-system");
        assert!(client["caBundle"].is_null(), "it is filled in where it runs");
    }
}

#[test]
fn the_grace_period_covers_the_shutdown_delay_of_webhooks() {
    let [deployment] = &documents("deploy/deployment.yaml")[..] else { panic!("one document") };
    let grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    let limits = leasehold::webhooks::server::Limits::default();
    let needed = configuration().webhooks.shutdown_delay + limits.end;
    assert!(Duration::from_secs(grace) > needed, "{grace} s are too short for {needed:?}");
}

#[test]
fn the_network_policy_lets_in_replicas_scrapers_and_with_webhooks_the_api_server() {
    let [kustomization] = &documents("deploy/kustomization.yaml")[..] else { panic!("one document") };
    assert!(texts(kustomization, "resources").contains(&"networkpolicy.yaml"));
    let [policy] = &documents("deploy/networkpolicy.yaml")[..] else { panic!("one document") };
    let [deployment] = &documents("deploy/deployment.yaml")[..] else { panic!("one document") };
    let selects = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert!(!selects.is_empty() && selects.iter().all(|(key, value)| labels[key] == *value), "{labels}");
    assert_eq!(texts(&policy["spec"], "policyTypes"), ["Ingress"]);
    let from = serde_json::json!([
        {"podSelector": {"matchLabels": selects}},
        {"namespaceSelector": {"matchLabels": {"metrics": "enabled"}}},
    ]);
    let rule = serde_json::json!({"from": from, "ports": [{"protocol": "TCP", "port": "http"}]});
    assert_eq!(policy["spec"]["ingress"], serde_json::json!([rule]), "nothing else is let in");

    // A port by a name that no container has lets nothing in.
    let ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == "http"));
    let [component] = &documents("deploy/webhooks/kustomization.yaml")[..] else { panic!("one document") };
    let patches = component["patches"].as_array().unwrap();
    let patch = |kind: &str| patches.iter().find(|patch| patch["target"]["kind"] == kind).unwrap()["patch"].as_str();
    assert!(patch("NetworkPolicy").unwrap().contains("[{protocol: TCP, port: webhooks}]"));
    assert!(patch("Deployment").unwrap().contains("{name: webhooks, containerPort: "));
}
