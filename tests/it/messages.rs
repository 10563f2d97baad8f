//! docs/messages.md lists what replicas log, and what conditions and events say: all of it, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::tidy::{code, sources};

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/messages.md")).unwrap()
}

/// The rows of the tables under headings that begin so, by cells.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let sections = page.split("\n## ").skip(1).filter(|section| section.starts_with(heading));
    let rows = sections.flat_map(str::lines).filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.filter(|row| row.contains('`'));
    rows.map(|row| row.split(" | ").map(str::to_owned).collect()).collect()
}

/// What stands between backticks.
fn spans(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The first text that a macro is given itself, and not in a call inside of it; `begin` is behind its parenthesis.
fn first_text(code: &str) -> Option<String> {
    let (mut depth, mut chars) = (1, code.char_indices());
    while let Some((_, char)) = chars.next() {
        match char {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '"' => {
                let mut text = String::new();
                while let Some((_, char)) = chars.next() {
                    match char {
                        '"' => break,
                        '\\' => {
                            if let Some((_, '\n')) = chars.next() {
                                let rest = chars.as_str();
                                chars = rest.trim_start().char_indices();
                            }
                        }
                        char => text.push(char),
                    }
                }
                if depth == 1 {
                    return Some(text);
                }
            }
            _ => {}
        }
        if depth == 0 {
            return None;
        }
    }
    None
}

/// With `…` for what is filled in, and without the marks that a page cannot show inside code.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        shown.push_str(before);
        shown.push('…');
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    shown.push_str(rest);
    shown.replace('`', "")
}

/// Every line of a log as the code writes it, with its level.
fn logged() -> BTreeMap<(String, String), String> {
    let mut logged = BTreeMap::new();
    for file in sources("src") {
        let code = code(&file);
        for level in ["info", "warn", "error"] {
            for (at, found) in code.match_indices(&format!("{level}!(")) {
                if code[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_') {
                    continue;
                }
                let text = first_text(&code[at + found.len()..]).map(|text| shown(&text));
                let text = text.unwrap_or_else(|| panic!("{}: a line without a text", file.display()));
                logged.insert((level.to_owned(), text), file.display().to_string());
            }
        }
    }
    logged
}

/// Whether the fixed parts of a text stand in the code, one after the other.
fn stands_in(code: &str, text: &str) -> bool {
    let parts: Vec<_> = text.split('…').filter(|part| part.trim().len() > 2).collect();
    !parts.is_empty() && parts.iter().all(|part| code.contains(part))
}

#[test]
fn every_line_of_a_log_is_on_the_page_and_every_row_of_the_page_is_logged() {
    let page = page();
    let rows = rows(&page, "Logs");
    let listed: BTreeSet<(String, String)> = rows.iter().map(|row| (row[0].clone(), spans(&row[1]).concat())).collect();
    let logged = logged();
    assert!(logged.len() > 50, "{}", logged.len());
    for ((level, text), file) in &logged {
        // A text that is made elsewhere has no fixed part here; its own row is looked for below.
        let is_fixed = text.contains(char::is_alphabetic);
        let is_listed = listed.contains(&(level.clone(), text.clone()));
        assert!(!is_fixed || is_listed, "docs/messages.md lacks this line of {file}:\n| {level} | `{text}` | |");
    }
    let all: String = sources("src").iter().map(|file| code(file)).collect::<Vec<_>>().join("\n");
    let all = all.replace("\\\n", "").replace('`', "");
    for (level, text) in &listed {
        let is_logged = logged.contains_key(&(level.clone(), text.clone())) || stands_in(&all, text);
        assert!(is_logged, "docs/messages.md lists what is not logged: {level} {text}");
    }
    for row in &rows {
        assert!(row.len() == 3 && row[2].len() > 10, "a row says what it means: {row:?}");
    }
}

/// Words in CamelCase that are in the code and are no reason: types, choices of a field, columns, actions.
const NO_REASONS: &[&str] = &[
    "Age",
    "AlreadyExists",
    "Alphanumeric",
    "Always",
    "Apply",
    "Bytes",
    "ClusterRole",
    "ClusterRoleBinding",
    "Composition",
    "Content",
    "Create",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Delete",
    "Deleted",
    "Deployment",
    "Desired",
    "DoesNotExist",
    "Elect",
    "Exists",
    "ExpiryPolicy",
    "ExpiryPolicyStatus",
    "False",
    "FieldsV1",
    "From",
    "Hex",
    "IfUnowned",
    "In",
    "Job",
    "Keep",
    "Kind",
    "Lease",
    "Matched",
    "Namespace",
    "Never",
    "Next",
    "Node",
    "NotIn",
    "Opaque",
    "PartialEq",
    "PersistentVolume",
    "Pod",
    "Propagation",
    "PropagationStatus",
    "Reason",
    "Reconcile",
    "Recreate",
    "ReplicaSet",
    "ReplicationController",
    "Role",
    "RoleBinding",
    "Saved",
    "ScaleSchedule",
    "ScaleScheduleStatus",
    "Secret",
    "ServiceAccount",
    "Source",
    "StatefulSet",
    "StatusTree",
    "StatusWriter",
    "Synced",
    "Target",
    "Targets",
    "Tree",
    "True",
    "Unknown",
    "Update",
    "Values",
    "Webhook",
    "Window",
    "Write",
];

fn is_camel_case(word: &str) -> bool {
    word.len() > 1 && word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric) && {
        word[1..].starts_with(char::is_lowercase)
    }
}

#[test]
fn every_reason_of_a_condition_and_of_an_event_is_explained() {
    let page = page();
    let status = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status.md")).unwrap();
    let mut listed = BTreeSet::new();
    for heading in ["Conditions", "Events"] {
        for row in rows(&page, heading) {
            let cell = if heading == "Events" { &row[1] } else { &row[0] };
            listed.extend(spans(cell));
        }
    }
    let mut found = BTreeSet::new();
    let of_leases =
        ["told.rs", "announce.rs"].map(|file| Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replica").join(file));
    for file in sources("src/reconcile").into_iter().chain(sources("src/kinds")).chain(of_leases) {
        let is_language = file.components().any(|part| part.as_os_str() == "cel");
        let is_for_tests = ["fake.rs", "finalized.rs", "interleavings.rs", "maxima.rs", "missing.rs", "related.rs"];
        if is_language || is_for_tests.iter().any(|name| file.ends_with(name)) {
            continue;
        }
        let of_leases = file.ends_with("told.rs");
        for word in code(&file).split('"').skip(1).step_by(2).filter(|word| is_camel_case(word)) {
            let is_known = NO_REASONS.contains(&word) || listed.contains(word);
            let is_known = is_known || (of_leases && status.contains(&format!("`{word}`")));
            assert!(
                is_known,
                "{word} of {} is not on docs/messages.md; or it is no reason, and belongs to NO_REASONS",
                file.display()
            );
            found.insert(word.to_owned());
        }
    }
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(gone.is_empty(), "docs/messages.md explains reasons that there are not: {gone:?}");
}
