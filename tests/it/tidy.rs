//! The rules of the house that the compiler does not know.

use std::path::{Path, PathBuf};

pub(super) fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The code of a file: without comments, and without what is for tests, whether it follows `#[cfg(test)]` or has a file.
pub(super) fn code(file: &Path) -> String {
    if file.ends_with("tests.rs") {
        return String::new();
    }
    let text = std::fs::read_to_string(file).unwrap();
    // What stands in a file of its own is that file's; a block goes to the end.
    let is_block = |rest: &&str| !rest.trim_start().lines().next().is_some_and(|line| line.ends_with(';'));
    let mut parts = text.split("#[cfg(test)]");
    let before = parts.next().unwrap_or_default();
    let text = [before].into_iter().chain(parts.take_while(|rest| !is_block(rest))).collect::<String>();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn pure_files_know_no_runtime_no_cluster_and_no_clock() {
    let reconcile = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/reconcile");
    let others = ["due/queue.rs", "writes/states.rs"].map(|file| reconcile.join(file));
    for file in sources("src/protocol").into_iter().chain(sources("src/config")).chain(others) {
        let code = code(&file);
        for word in ["tokio", "kube::", "k8s_openapi", "Instant", "SystemTime", "Timestamp", "fastrand", "std::fs"] {
            assert!(!code.contains(word), "{} mentions {word}", file.display());
        }
    }
}

/// The stages of a kind that decide and that report do no IO.
#[test]
fn plans_and_reports_do_no_io() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let kinds = ["expiry", "propagation", "schedule"];
    let stages = kinds.iter().flat_map(|kind| ["plan", "report"].map(|stage| format!("kinds/{kind}/{stage}.rs")));
    let engine = ["desired", "plan", "report", "applied", "adopt", "order", "generated", "fights", "ours", "pruned"];
    let engine = engine.map(|file| format!("reconcile/children/{file}.rs"));
    for file in stages.chain(["reconcile/stages/outcome.rs".to_owned()]).chain(engine) {
        let code = code(&source.join(&file));
        assert!(!code.is_empty());
        for word in ["tokio", "async", ".await", "Client", "Api<", "Instant", "::now()", "std::fs"] {
            assert!(!code.contains(word), "{file} mentions {word}");
        }
    }
}

/// What decides which rights an object takes does no IO.
#[test]
fn what_decides_about_rights_does_no_io() {
    for file in [
        "kinds/actions.rs",
        "kinds/reach.rs",
        "kinds/compose/footprint.rs",
        "kinds/compose/outline.rs",
        "webhooks/action.rs",
        "webhooks/coverage.rs",
    ] {
        let code = code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file));
        assert!(!code.is_empty());
        for word in ["tokio", "async", ".await", "Client", "Api<", "Instant", "std::fs"] {
            assert!(!code.contains(word), "{file} mentions {word}");
        }
    }
}

#[test]
fn only_the_supervisor_spawns_tasks() {
    for file in sources("src").into_iter().filter(|file| !file.ends_with("replica/supervisor.rs")) {
        let mut code = code(&file);
        if file.ends_with("replica/connections.rs") {
            // A credentials plugin blocks, and its thread can be left to itself: it writes nothing but its answer. The
            // first one runs before there is a supervisor.
            code = code.replacen("tokio::task::spawn_blocking(", "", 1);
        }
        if file.ends_with("children/aside.rs") {
            // An expression takes the time it takes; its thread writes nothing but its answer.
            code = code.replacen("tokio::task::spawn_blocking;", "", 1).replacen("= spawn_blocking(", "", 1);
        }
        let spawns = code.matches("spawn").count();
        // The binary gives its endpoints a thread.
        let threads = usize::from(file.ends_with("cli/run.rs") && code.contains("thread::Builder"));
        assert_eq!(spawns, threads, "{} spawns", file.display());
    }
}

#[test]
fn arrows_go_one_way() {
    for (folder, others) in [
        ("src/config", vec!["protocol", "replica", "reconcile", "kinds", "webhooks", "ops", "app", "front"]),
        ("src/protocol", vec!["replica", "reconcile", "kinds", "webhooks", "ops", "app", "front"]),
        ("src/replica", vec!["reconcile", "kinds", "webhooks", "app", "front"]),
        ("src/reconcile", vec!["kinds", "webhooks", "app", "front"]),
        ("src/webhooks", vec!["protocol", "kinds", "app", "front"]),
        ("src/ops", vec!["config", "protocol", "replica", "reconcile", "kinds", "webhooks", "app", "front"]),
        ("src/kinds", vec!["app", "front"]),
    ] {
        for file in sources(folder) {
            for other in &others {
                assert!(!code(&file).contains(&format!("crate::{other}")), "{} uses {other}", file.display());
            }
        }
    }
}
