//! What each account may do, as docs/security.md lists it: made of the manifests, so that the list cannot fall behind them.
//! The acceptance tests hold the API server to the same list.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
};

use leasehold::config;
use serde_json::Value;

const PAGE: &str = "docs/security.md";
const BEGIN: &str = "<!-- Made of the manifests by `UPDATE=1 cargo test`. -->\n";
const END: &str = "<!-- End of what is made. -->\n";
const VERBS: [&str; 10] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "bind", "escalate", "impersonate"];

fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(file: &str) -> Vec<Value> {
    serde_yaml::from_multiple(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn texts<'v>(value: &'v Value, field: &str) -> Vec<&'v str> {
    value[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The rules of a role; those of an aggregated one are of the roles that bear its labels.
fn rules(role: &Value, all: &[Value]) -> Vec<Value> {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
    let Some(selectors) = selectors else { return role["rules"].as_array().cloned().unwrap_or_default() };
    let wanted = selectors.iter().filter_map(|selector| selector["matchLabels"].as_object());
    let wanted: Vec<_> = wanted.flatten().collect();
    let bears = |role: &&Value| {
        wanted.iter().any(|(key, value)| role.pointer("/metadata/labels").is_some_and(|labels| labels[key] == **value))
    };
    all.iter().filter(bears).flat_map(|role| rules(role, &[])).collect()
}

/// Where, and of what: a row of the list.
type Row = (String, String);

/// Verbs by row, of one account.
fn rights(account: &str, files: &[&str]) -> BTreeMap<Row, BTreeSet<String>> {
    let all: Vec<Value> = files.iter().flat_map(|file| documents(file)).collect();
    let mut rights = BTreeMap::<Row, BTreeSet<String>>::new();
    for binding in all.iter().filter(|it| it["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding"))) {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        if !subjects.into_iter().any(|subject| subject["name"] == account) {
            continue;
        }
        let place = if binding["kind"] == "RoleBinding" { "`leasehold-system`" } else { "everywhere" };
        let of = |role: &&Value| {
            role["kind"] == binding["roleRef"]["kind"] && role["metadata"]["name"] == binding["roleRef"]["name"]
        };
        let role = all.iter().find(of).unwrap_or_else(|| panic!("{} is bound and not there", binding["roleRef"]));
        add(&mut rights, place, &rules(role, &all));
    }
    assert!(!rights.is_empty(), "{account} may do nothing");
    rights
}

/// Verbs by row, of rules that are granted in a place.
fn add(rights: &mut BTreeMap<Row, BTreeSet<String>>, place: &str, rules: &[Value]) {
    for rule in rules {
        let names = texts(rule, "resourceNames");
        let named: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let named = if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) };
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                let (resource, part) = resource.split_once('/').map_or((resource, ""), |(all, part)| (all, part));
                let part = if part.is_empty() { String::new() } else { format!("/{part}") };
                let row = (place.to_owned(), format!("`{resource}{group}{part}`{named}"));
                rights.entry(row).or_default().extend(texts(rule, "verbs").into_iter().map(str::to_owned));
            }
        }
    }
}

/// What the Role for those who look grants: it is bound to nobody.
fn of_viewers() -> BTreeMap<Row, BTreeSet<String>> {
    let all = documents("deploy/viewer.yaml");
    let [role] = &all[..] else { panic!("one Role and no binding") };
    assert_eq!((role["kind"].as_str(), role["metadata"]["name"].as_str()), (Some("Role"), Some("leasehold-viewer")));
    let mut rights = BTreeMap::new();
    add(&mut rights, "`leasehold-system`", &rules(role, &all));
    rights
}

#[test]
fn those_who_look_may_change_nothing() {
    let looks = ["get", "list", "watch"];
    for ((_, what), verbs) in of_viewers() {
        assert!(verbs.iter().all(|verb| looks.contains(&verb.as_str())), "{what}: {verbs:?}");
        assert!(!what.contains("secrets") && !what.contains("configmaps"), "{what}");
        // Of the proxy only GET: other verbs could change what a Pod serves.
        assert!(!what.contains('/') || verbs.iter().eq(["get"]), "{what}: {verbs:?}");
    }
    let [kustomization] = &documents("deploy/kustomization.yaml")[..] else { panic!("one document") };
    assert!(texts(kustomization, "resources").contains(&"viewer.yaml"), "deploy/ has it");
}

/// The list: account, place, type and verbs, a row each.
fn table() -> String {
    let builtin = leasehold::kinds::builtin();
    let names: Vec<_> = builtin.iter().map(|builtin| builtin.name).collect();
    let config = config::load("config/leasehold.yaml", &text("config/leasehold.yaml"), &names).unwrap();
    let shipped = ["deploy/rbac.yaml", "deploy/kinds.yaml"];
    let webhooks = ["deploy/webhooks/objects/rbac.yaml"];
    let mut accounts = vec![
        ("a replica".to_owned(), "leasehold".to_owned(), &shipped[..]),
        ("a replica, with webhooks also".to_owned(), "leasehold".to_owned(), &webhooks[..]),
    ];
    for kind in &config.kinds {
        let account = kind.service_account.clone().expect("each shipped kind has an account");
        accounts.push((kind.kind.clone(), account, &shipped[..]));
    }
    let mut table = "| of | account | where | what | verbs |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for (of, account, files) in accounts {
        for ((place, what), verbs) in rights(&account, files) {
            assert!(verbs.iter().all(|verb| VERBS.contains(&verb.as_str())), "{account}: {verbs:?}");
            let verbs: Vec<_> = VERBS.into_iter().filter(|verb| verbs.contains(*verb)).collect();
            table += &format!("| {of} | `{account}` | {place} | {what} | {} |\n", verbs.join(" "));
        }
    }
    for ((place, what), verbs) in of_viewers() {
        let verbs: Vec<_> = VERBS.into_iter().filter(|verb| verbs.contains(*verb)).collect();
        table += &format!("| who looks | those bound to the Role | {place} | {what} | {} |\n", verbs.join(" "));
    }
    table
}

#[test]
fn the_page_lists_what_each_account_may_do() {
    let page = text(PAGE);
    let (before, rest) = page.split_once(BEGIN).expect("where the list begins");
    let (listed, after) = rest.split_once(END).expect("where it ends");
    let table = table();
    if env::var_os("UPDATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        fs::write(path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).unwrap();
    } else {
        assert_eq!(listed.trim(), table.trim(), "{PAGE} is out of date: run UPDATE=1 cargo test");
    }
}
