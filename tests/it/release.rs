//! The release script, dry: what it makes, and what it refuses.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

/// A copy of what the script reads, so that a test may break it.
fn workspace() -> tempfile::TempDir {
    let (home, root) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let files = ["Cargo.toml", "Cargo.lock", "CHANGELOG.md", "Makefile", "LICENSE", "README.md"];
    let folders = ["src", "otlp", "tests", "examples", "crds", "config", "deploy", "overlays", ".ci", ".cargo"];
    let status =
        Command::new("cp").arg("-R").args(files.iter().chain(&folders)).arg(home.path()).current_dir(root).status();
    assert!(status.unwrap().success());
    home
}

const DIGEST: &str = "sha256:7a227ea61f4fe3736eb4b1d9e85958e7ad2c2651453ef09318e5b4b4242253f7";

fn release(home: &Path) -> (bool, String) {
    let sbom = Path::new(env!("CARGO_BIN_EXE_leasehold")).with_file_name("examples").join("sbom");
    assert!(
        sbom.exists(),
        "cargo test builds the examples; `cargo test --test it` needs `cargo build --example sbom` first"
    );
    let said = Command::new(home.join(".ci/release"))
        .arg("--dry-run")
        .env("LEASEHOLD_SBOM", sbom)
        .env("OUT", home.join("dist"))
        .env("CARGO_NET_OFFLINE", "true")
        .env("DIGEST", DIGEST)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    (said.status.success(), text)
}

#[test]
fn a_dry_release_has_notes_manifests_checksums_and_a_bill_of_materials() {
    let home = workspace();
    let (done, said) = release(home.path());
    assert!(done, "{said}");
    let (dist, version) = (home.path().join("dist"), env!("CARGO_PKG_VERSION"));
    let read =
        |file: &str| fs::read_to_string(dist.join(file)).unwrap_or_else(|error| panic!("{file}: {error}\n{said}"));
    assert!(read("notes.md").contains("\n- "));
    let crds = read(&format!("leasehold-{version}-crds.yaml"));
    let files = fs::read_dir(home.path().join("crds")).unwrap().filter(|file| file.as_ref().unwrap().path().is_file());
    assert_eq!(crds.matches("kind: CustomResourceDefinition").count(), files.count());

    // What is released deploys its own image, and the repository a version.
    let manifests = dist.join(format!("leasehold-{version}-manifests.tar.gz"));
    let of_archive = |file: &str| {
        let said = Command::new("tar").args(["-xzOf", manifests.to_str().unwrap(), file]).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    for (file, line) in [("deploy/kustomization.yaml", "  digest: "), ("deploy/chart/values.yaml", "  digest: ")] {
        assert!(of_archive(file).contains(&format!("\n{line}{DIGEST}\n")), "{file}:\n{}", of_archive(file));
        assert!(!fs::read_to_string(home.path().join(file)).unwrap().contains(DIGEST), "{file} is as it was");
    }

    let bill: Value = serde_json::from_str(&read(&format!("leasehold-{version}.cdx.json"))).unwrap();
    assert_eq!(
        (&bill["bomFormat"], &bill["metadata"]["component"]["name"]),
        (&"CycloneDX".into(), &"leasehold".into())
    );
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<_> = components.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(["kube", "rustls", "clap", "tikv-jemallocator"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(
        ["proptest", "tempfile", "leasehold", "leasehold-cluster"].iter().all(|name| !names.contains(name)),
        "{names:?}"
    );
    let without: Vec<_> = components.iter().filter(|it| it["licenses"].is_null()).collect();
    assert!(without.is_empty(), "a licence is missing: {without:?}");

    let sums = read("SHA256SUMS");
    let (listed, made): (BTreeSet<_>, BTreeSet<_>) = (
        sums.lines().filter_map(|line| Some(line.split_once("  ")?.1.to_owned())).collect(),
        fs::read_dir(&dist).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect(),
    );
    assert_eq!(made.difference(&listed).collect::<Vec<_>>(), ["SHA256SUMS"]);
    let again = release(home.path());
    assert_eq!((again.0, read("SHA256SUMS")), (true, sums), "the same input makes the same release");
}

#[test]
fn a_release_whose_changelog_is_of_another_version_is_refused() {
    let home = workspace();
    let changelog = home.path().join("CHANGELOG.md");
    let text = fs::read_to_string(&changelog).unwrap();
    fs::write(&changelog, text.replacen(&format!("## [{}]", env!("CARGO_PKG_VERSION")), "## [9.9.9]", 1)).unwrap();
    let (done, said) = release(home.path());
    assert!(!done && said.contains("CHANGELOG.md begins with") && !home.path().join("dist").exists(), "{said}");
}
