//! Makes a bill of materials (CycloneDX 1.5, JSON) of what `cargo metadata` prints: every crate that is linked into the
//! binary, with its version, its licence, where it comes from, and what it depends on.
//!
//! `cargo metadata --locked --format-version 1 --features cli,jemalloc --filter-platform TARGET | sbom`

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
};

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let metadata: Value = serde_json::from_reader(io::stdin())?;
    serde_json::to_writer_pretty(io::stdout(), &bill(&metadata)?)?;
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn bill(metadata: &Value) -> Result<Value, Box<dyn Error>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let root =
        metadata["resolve"]["root"].as_str().ok_or("cargo metadata names no root package: run it in this folder")?;
    let packages: BTreeMap<_, _> =
        list(&metadata["packages"]).into_iter().map(|it| (text(&it, "id").to_owned(), it)).collect();
    // What is linked: neither what only tests need, nor what only build scripts and macros do by themselves.
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let linked =
            list(&node["deps"]).into_iter().filter(|dep| list(&dep["dep_kinds"]).iter().any(|it| it["kind"].is_null()));
        needs.insert(text(&node, "id").to_owned(), linked.map(|dep| text(&dep, "pkg").to_owned()).collect());
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(needs.get(&id).into_iter().flatten().cloned());
        }
    }
    let package = |id: &str| packages.get(id).ok_or_else(|| format!("cargo metadata says nothing of {id}"));
    let purl = |it: &Value| format!("pkg:cargo/{}@{}", text(it, "name"), text(it, "version"));
    let component = |it: &Value, kind: &str| {
        let mut component = json!({
            "type": kind, "bom-ref": purl(it), "name": it["name"], "version": it["version"], "purl": purl(it),
            "description": it["description"],
        });
        if let Some(licence) = it["license"].as_str() {
            // Before there were expressions, `/` was an "or".
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        if let Some(repository) = it["repository"].as_str() {
            component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
        }
        component
    };
    let (mut components, mut dependencies) = (Vec::new(), Vec::new());
    for id in &found {
        let it = package(id)?;
        if id != root {
            components.push(component(it, "library"));
        }
        let on: Result<BTreeSet<_>, String> =
            needs.get(id).into_iter().flatten().filter(|on| *on != id).map(|on| package(on).map(purl)).collect();
        dependencies.push(json!({"ref": purl(it), "dependsOn": on?}));
    }
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": component(package(root)?, "application")},
        "components": components, "dependencies": dependencies,
    }))
}
