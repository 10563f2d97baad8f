//! What a project that strangers join keeps in its usual place, held to the code where it could drift.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The values of a field, one a line.
fn values<'a>(text: &'a str, field: &str) -> Vec<&'a str> {
    let begin = format!("{field} = \"");
    text.lines().filter_map(|line| line.trim().strip_prefix(&begin)?.split('"').next()).collect()
}

/// Every version of a crate that is there twice, but for the newest, is listed in deny.toml, with a reason, and no other.
#[test]
fn deny_toml_lists_every_crate_that_is_there_twice() {
    let lock = read("Cargo.lock");
    let mut versions: BTreeMap<&str, Vec<Vec<u64>>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let number = |part: &str| part.parse().unwrap_or_default();
        let plain = values(package, "version")[0].split(['+', '-']).next().unwrap_or_default();
        versions.entry(values(package, "name")[0]).or_default().push(plain.split('.').map(number).collect());
    }
    let mut twice = BTreeSet::new();
    for (name, mut all) in versions {
        all.sort();
        all.pop();
        for version in all {
            let version: Vec<_> = version.iter().map(u64::to_string).collect();
            twice.insert(format!("{name}@{}", version.join(".")));
        }
    }
    let deny = read("deny.toml");
    let skip = deny.split("skip = [").nth(1).and_then(|rest| rest.split("\n]").next()).expect("deny.toml has `skip`");
    let listed: BTreeSet<String> = skip.lines().filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect();
    assert_eq!(listed, twice, "deny.toml: [bans] skip");
    assert!(skip.lines().filter(|line| line.contains("crate =")).all(|line| line.contains("reason = \"")));
    assert!(deny.contains("multiple-versions = \"deny\""));
}

/// A number there would have rustup download what a machine has as `stable`.
#[test]
fn the_toolchain_file_asks_for_no_download() {
    assert_eq!(values(&read("rust-toolchain.toml"), "channel"), ["stable"]);
    assert_eq!(values(&read("Cargo.toml"), "rust-version"), ["1.95"]);
}

/// What the pages and the public workflow call is there.
#[test]
fn the_steps_that_pages_and_workflows_name_exist() {
    let run = read(".ci/run");
    let steps: BTreeSet<_> = run.lines().filter_map(|line| line.strip_prefix("step_")?.split("()").next()).collect();
    let makefile = read("Makefile");
    let targets: BTreeSet<_> = makefile.lines().filter_map(|line| line.split_once(": ##").map(|(it, _)| it)).collect();
    let is_word = |word: &&str| !word.is_empty() && word.chars().all(|char| char.is_ascii_lowercase());
    for page in
        ["CONTRIBUTING.md", "SECURITY.md", ".github/workflows/ci.yaml", ".github/pull_request_template.md", "README.md"]
    {
        let text = read(page);
        for line in text.lines() {
            for rest in line.split(".ci/run ").skip(1) {
                let named = rest.split(['`', '#']).next().unwrap_or_default();
                for step in named.split(' ').take_while(is_word).filter(|step| *step != "help") {
                    assert!(steps.contains(step), "{page} names the step {step}");
                }
            }
            for rest in line.split("`make ").skip(1).chain(line.strip_prefix("make ")) {
                let target = rest.split(|char: char| !char.is_ascii_lowercase()).next().unwrap_or_default();
                assert!(targets.contains(target) || target == "help", "{page} names `make {target}`");
            }
        }
    }
}

/// A script that a merge has broken says so here, and not when it is needed.
#[test]
fn every_script_is_one() {
    for script in [".ci/run", ".ci/release", "deploy/image/build.sh", "tests/demo.sh", "tests/mutants.sh"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let read = Command::new("bash").arg("-n").arg(path).output().unwrap();
        assert!(read.status.success(), "{script}: {}", String::from_utf8_lossy(&read.stderr));
    }
}
