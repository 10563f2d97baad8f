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
