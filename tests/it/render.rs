//! What the shipped compositions make of the sample objects, word for word: a change of either is seen in its diff.

use std::{env, fs, path::Path, process::Command};

fn rendered(arguments: &[&str]) -> String {
    let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["render", "-f", "config"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn the_samples_make_what_is_committed() {
    for (golden, arguments) in [
        ("tenant.yaml", vec!["--parent", "config/samples/tenant.yaml"]),
        ("webapp.yaml", vec!["--parent", "config/samples/webapp.yaml"]),
        (
            "webapp-autoscaled.yaml",
            vec!["--parent", "tests/it/golden/autoscaled.yaml", "--related", "tests/it/golden/available.yaml"],
        ),
        ("webapp-defaults.yaml", vec!["--parent", "tests/it/golden/least.yaml", "--crd", "crds"]),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden").join(golden);
        let rendered = rendered(&arguments);
        if env::var_os("UPDATE").is_some() {
            fs::write(&file, &rendered).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == rendered, "{golden} is out of date: run UPDATE=1 cargo test\n{rendered}");
    }
}

#[test]
fn without_its_crd_an_object_has_no_defaults_and_that_is_said() {
    let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["render", "-f", "config", "--parent", "tests/it/golden/least.yaml", "--crd"])
        .arg("crds/tenants.leasehold.dev.yaml")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    let expected = "crds/tenants.leasehold.dev.yaml: no CRD of WebApp.leasehold.dev with a version v1alpha1";
    assert!(said.status.code() == Some(2) && words.contains(expected), "{:?} {words}", said.status);
}

#[test]
fn what_cannot_be_rendered_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("object.yaml");
    for (object, code, expected) in [
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}",
            2,
            "expected one object of a composed kind, found 0; composed are Tenant.leasehold.dev, WebApp.leasehold.dev",
        ),
        (
            "{apiVersion: leasehold.dev/v1alpha1, kind: WebApp, metadata: {name: x, namespace: shop}, spec: {}}",
            1,
            "ExpressionFailed: deployment.template.spec.template.spec.containers[0].image: there is no `image`",
        ),
        ("just text", 2, "expected objects with apiVersion, kind and metadata.name"),
        ("a: [", 2, "not readable as YAML"),
    ] {
        fs::write(&file, object).unwrap();
        let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["render", "-f", "config", "--parent"])
            .arg(&file)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(code) && words.contains(expected), "{object}: {:?} {words}", said.status);
    }
}

#[test]
fn an_object_and_its_children_are_held_to_their_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let (object, schemas) = (folder.path().join("object.yaml"), folder.path().join("apps.json"));
    // As an API server publishes it, with less in it.
    let openapi = r#"{"components": {"schemas": {"Deployment": {"type": "object",
        "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}}}}"#;
    fs::write(&schemas, openapi).unwrap();
    let render = |spec: &str, more: &[&str]| {
        let text = format!(
            "{{apiVersion: leasehold.dev/v1alpha1, kind: WebApp, metadata: {{name: x, namespace: shop}}, spec: {spec}}}"
        );
        fs::write(&object, text).unwrap();
        let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["render", "-f", "config", "--crd", "crds", "--parent"])
            .arg(&object)
            .args(more)
            .output()
            .unwrap();
        (said.status.code(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    assert_eq!(render("{image: a}", &[]), (Some(0), String::new()));
    for (spec, expected) in [
        ("{image: a, replicas: two}", "object.yaml: spec.replicas: expected a whole number, found text"),
        ("{image: a, replcas: 2}", "object.yaml: spec.replcas: the schema has no such field; did you mean `replicas`?"),
        ("{}", "object.yaml: spec.image: missing"),
    ] {
        let (code, words) = render(spec, &[]);
        assert!(code == Some(2) && words.contains(expected), "{spec}: {code:?} {words}");
    }
    let (code, words) = render("{image: a}", &["--crd", &schemas.display().to_string()]);
    let expected = "Deployment x: spec.selector: the schema has no such field";
    assert!(code == Some(1) && words.contains(expected), "{code:?} {words}");
}

#[test]
fn compositions_are_held_to_the_schemas_that_there_are() {
    let check = |folder: &Path, more: &[&str]| {
        let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["check", "-f"])
            .arg(folder)
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (said.status.code(), text(&said.stdout), text(&said.stderr))
    };
    let (code, said, note) = check(Path::new("config"), &["--crd", "crds"]);
    assert!(code == Some(0) && said.starts_with("config: ok, 5 kinds"), "{code:?} {said} {note}");
    let expected = "config: not held to a schema: apps/v1 Deployment, ";
    assert!(note.starts_with(expected) && note.contains("; --cluster asks the API server for theirs"), "{note}");

    let folder = tempfile::tempdir().unwrap();
    for file in ["leasehold.yaml", "tenant.yaml", "webapp.yaml"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)).unwrap();
        fs::write(folder.path().join(file), text.replace("parent.spec.image", "parent.spec.imge")).unwrap();
    }
    assert_eq!(check(folder.path(), &[]).0, Some(0), "offline and without a schema it may be right");
    let (code, _, words) = check(folder.path(), &["--crd", "crds"]);
    let expected = "parent.spec.imge: the schema has no such field; did you mean `image`?\n1 error";
    assert!(
        code == Some(2) && words.contains("webapp.yaml: deployment.template.") && words.contains(expected),
        "{words}"
    );
    let (code, said, _) = check(folder.path(), &["--crd", "crds", "-o", "json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, said["errors"].as_array().map(Vec::len)), (Some(2), Some(1)), "{said}");

    let nothing = folder.path().join("leasehold.yaml").display().to_string();
    let (code, _, words) = check(Path::new("config"), &["--crd", &nothing]);
    assert!(code == Some(2) && words.contains("no schema of a type; expected CRDs, or OpenAPI documents"), "{words}");
}
