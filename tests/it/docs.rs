//! Every example of the pages is read, and does what the text beside it says.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for folder in ["docs", "docs/decisions"] {
        let files = fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap);
        let files = files.filter(|file| file.file_type().unwrap().is_file());
        pages.extend(files.map(|file| format!("{folder}/{}", file.file_name().into_string().unwrap())));
    }
    pages.sort();
    pages
}

/// The YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn yaml(page: &str, block: &str) -> Value {
    serde_yaml::from_str(block).unwrap_or_else(|error| panic!("{page}: {error}\n{block}"))
}

fn leasehold(folder: &Path, arguments: &[&str]) -> String {
    let said = Command::new(env!("CARGO_BIN_EXE_leasehold")).current_dir(folder).args(arguments).output().unwrap();
    assert!(said.status.success(), "{arguments:?}: {}{}", text(&said.stdout), text(&said.stderr));
    text(&said.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The committed definition of a kind, with webhooks or without; of this version, or of the first.
fn schema(kind: &str, version: Option<&str>) -> Option<Value> {
    let files = ["crds", "crds/webhooks"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let files = files.into_iter().flatten().map(|file| file.unwrap().path()).filter(|path| path.is_file());
    let crds = files.map(|path| serde_yaml::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap());
    let of_kind = crds.filter(|crd| crd["spec"]["names"]["kind"] == kind);
    let mut versions = of_kind.flat_map(|crd| crd["spec"]["versions"].as_array().cloned().unwrap_or_default());
    let found = versions.find(|it| version.is_none_or(|version| it["name"] == version))?;
    Some(found["schema"]["openAPIV3Schema"].clone())
}

/// Fields that the definition does not know, or has of another type.
fn unknown(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    let type_ = schema["type"].as_str();
    let fits = match value {
        Value::Object(_) => type_ == Some("object"),
        Value::Array(_) => type_ == Some("array"),
        Value::String(_) => type_ == Some("string"),
        Value::Bool(_) => type_ == Some("boolean"),
        Value::Number(_) => matches!(type_, Some("integer" | "number")),
        Value::Null => false,
    };
    if !fits && schema["x-kubernetes-int-or-string"] != true {
        return found.push(format!("{path} is {value}, and the definition has {type_:?}"));
    }
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}.{name}");
                match (schema["properties"].get(name), schema.get("additionalProperties")) {
                    (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => unknown(field, schema, &path, found),
                    _ => found.push(format!("{path} is unknown")),
                }
            }
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                unknown(item, &schema["items"], &format!("{path}[{number}]"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_object_of_a_page_fits_its_definition() {
    let mut shown = BTreeSet::new();
    for name in pages() {
        for block in blocks(&page(&name)) {
            let object = yaml(&name, &block);
            let Some(version) = object["apiVersion"].as_str().and_then(|it| it.strip_prefix("leasehold.dev/")) else {
                continue;
            };
            let kind = object["kind"].as_str().unwrap();
            if ["Composition", "Configuration"].contains(&kind) {
                continue;
            }
            let schema =
                schema(kind, Some(version)).unwrap_or_else(|| panic!("{name}: no definition of {kind} {version}"));
            let mut found = Vec::new();
            unknown(&object["spec"], &schema["properties"]["spec"], "spec", &mut found);
            assert!(found.is_empty(), "{name}: {found:?}");
            shown.insert(kind.to_owned());
        }
    }
    let all = ["ExpiryPolicy", "Propagation", "ScaleSchedule", "Tenant", "WebApp"].map(str::to_owned);
    assert_eq!(shown, BTreeSet::from(all), "each kind has an example");
}

/// Whether a block is a file of values of the chart, which `tests/acceptance/pages.rs` gives to helm.
fn is_values(block: &str) -> bool {
    block.starts_with("# values.yaml\n")
}

/// The configuration that a block is, or is a part of.
fn configuration(block: &Value) -> Option<Value> {
    let is_part = ["kinds", "leases", "webhooks"].iter().any(|section| block.get(section).is_some());
    if block["kind"] != "Configuration" && (block.get("kind").is_some() || !is_part) {
        return None;
    }
    let mut whole = block.clone();
    whole["apiVersion"] = json!("leasehold.dev/v1alpha1");
    whole["kind"] = json!("Configuration");
    if whole.get("kinds").is_none() {
        let reconciler = json!({"builtin": "propagation"});
        whole["kinds"] =
            json!([{"apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation", "reconciler": reconciler}]);
    }
    Some(whole)
}

/// A configuration that is copied from a page is right, and so is a part of one.
#[test]
fn every_configuration_of_a_page_is_right() {
    let child = json!({"id": "a", "template": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}});
    let composition = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "Composition", "children": [child]});
    let mut checked = 0;
    for name in pages() {
        for block in blocks(&page(&name)).iter().filter(|block| !is_values(block)) {
            let Some(configuration) = configuration(&yaml(&name, block)) else { continue };
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("leasehold.yaml"), configuration.to_string()).unwrap();
            for kind in configuration["kinds"].as_array().unwrap() {
                if let Some(file) = kind["reconciler"]["compose"].as_str() {
                    fs::write(folder.path().join(file), composition.to_string()).unwrap();
                }
            }
            leasehold(folder.path(), &["check", "-f", "."]);
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked}");
}

/// Each YAML is of a form that a test reads: here, beside the kind that it is about, or beside the language of expressions.
#[test]
fn every_yaml_of_a_page_is_read_by_a_test() {
    let elsewhere = [
        (
            "docs/compose.md",
            "checksum",
            "kinds/compose/cel/spec.rs: the_page_names_every_function_and_its_examples_compile",
        ),
        (
            "docs/webhooks.md",
            "admission",
            "kinds/compose/tests.rs: the_admission_of_the_page_fills_in_the_size_and_asks_for_the_class",
        ),
    ];
    for name in pages() {
        let page = page(&name);
        assert_eq!(blocks(&page).len(), page.matches("```y").count(), "{name}: another spelling of yaml is not read");
        for block in blocks(&page).iter().filter(|block| !is_values(block)).map(|block| yaml(&name, block)) {
            let is_object = block["kind"].is_string() && block["apiVersion"].is_string();
            let test = elsewhere.iter().find(|(page, field, _)| name == *page && block.get(field).is_some());
            let is_read = is_object || configuration(&block).is_some() || test.is_some();
            assert!(is_read, "{name}: no test reads {block}");
            if let Some((_, _, test)) = test {
                let (file, test) = test.split_once(": ").unwrap();
                let code = fs::read_to_string(root().join("src").join(file)).unwrap();
                assert!(code.contains(&format!("fn {test}(")), "{test}");
            }
        }
    }
}

/// The commands of a page: lines of its code, without comments and prompts, each with the lines that it goes on in.
fn commands(page: &str) -> Vec<String> {
    let code = page.split("\n```").skip(1).step_by(2).filter_map(|block| {
        let (language, code) = block.split_once('\n')?;
        ["sh", "console"].contains(&language).then(|| code.replace("\\\n", " "))
    });
    let mut all = Vec::new();
    for code in code {
        for line in code.lines().filter(|line| !line.starts_with([' ', '#'])) {
            for command in line.split(" #").next().unwrap_or_default().split(" && ") {
                all.push(command.split(" || ").next().unwrap_or_default().trim_start_matches("$ ").trim().to_owned());
            }
        }
    }
    all.retain(|command| !command.is_empty());
    all
}

/// Whether there is what a command names: our commands with their options, targets of make, and files to apply.
#[test]
fn every_command_of_a_page_is_one_that_there_is() {
    let makefile = page("Makefile");
    let steps = page(".ci/run");
    let mut checked = [0; 4];
    for name in pages() {
        for command in commands(&page(&name)) {
            let command = command.split(" > ").next().unwrap().split(" | ").next().unwrap();
            let words: Vec<_> = command.split_whitespace().collect();
            match words[..] {
                ["leasehold", ref arguments @ ..] => {
                    // It reads the arguments, and does nothing.
                    let shown = arguments.iter().map(|word| word.trim_matches(['"', '\''])).chain(["--help"]);
                    let said = Command::new(env!("CARGO_BIN_EXE_leasehold")).args(shown).output().unwrap();
                    assert!(said.status.success(), "{name}: {command}: {}", text(&said.stderr));
                    checked[0] += 1;
                }
                ["make", target, ..] => {
                    assert!(makefile.contains(&format!("\n{target}: ")), "{name}: {command}");
                    checked[1] += 1;
                }
                [".ci/run", step, ..] => {
                    assert!(steps.contains(&format!("\nstep_{step}() ")), "{name}: {command}");
                    checked[1] += 1;
                }
                ["kubectl", ref arguments @ ..] => {
                    for pair in arguments.windows(2).filter(|pair| ["-f", "-k"].contains(&pair[0])) {
                        // Others are files of the reader's.
                        let ours =
                            ["crds/", "deploy/", "overlays/", "config/"].iter().any(|it| pair[1].starts_with(it));
                        assert!(!ours || root().join(pair[1]).exists(), "{name}: {command}");
                        checked[2] += usize::from(ours);
                    }
                }
                ["helm", verb, "leasehold", chart, ..] if ["install", "upgrade", "template"].contains(&verb) => {
                    assert!(root().join(chart).join("Chart.yaml").exists(), "{name}: {command}");
                    checked[3] += 1;
                }
                _ => {}
            }
        }
    }
    assert!(checked[0] > 30 && checked[1] > 2 && checked[2] > 10 && checked[3] > 2, "{checked:?}");
}

/// The table of timings keeps the rules of the program, and says what follows from them.
#[test]
fn the_timings_of_the_page_are_valid_and_their_gaps_follow() {
    let page = page("docs/timings.md");
    let rows =
        page.lines().filter(|line| ["| quick ", "| default ", "| patient "].iter().any(|it| line.starts_with(it)));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert_eq!(rows.len(), 3);
    for row in rows {
        let [_, duration, deadline, retry, request, silent, away, renewals] = row[..] else { panic!("{row:?}") };
        let load = |deadline: &str| {
            let leases = json!({"duration": duration, "renewDeadline": deadline, "retryPeriod": retry, "requestTimeout": request});
            let configuration = configuration(&json!({"leases": leases})).unwrap();
            leasehold::config::load("timings.yaml", &configuration.to_string(), &["propagation"])
        };
        let timings = load(deadline).unwrap_or_else(|errors| panic!("{errors}")).timings;
        assert_eq!(silent, format!("{} s", timings.lease_duration.as_secs()));
        assert_eq!(away, format!("up to {} s", timings.renew_deadline.as_secs()));
        assert_eq!(renewals.parse::<f64>().unwrap(), 10.0 / timings.retry_period.as_secs_f64());
        let too_long = timings.lease_duration - timings.retry_period - timings.request_timeout;
        assert!(load(&format!("{}ms", too_long.as_millis())).is_err(), "the rule of the page");
    }
}

/// The program of the page is the one that the crate's documentation compiles.
#[test]
fn the_program_of_the_page_is_that_of_the_crate() {
    let text = page("docs/library.md");
    let shown = text.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    let mut shown = shown.lines().map(str::trim).filter(|line| !line.is_empty());
    let crate_ = page("src/lib.rs");
    let compiled = crate_.split("//! ```no_run\n").nth(1).unwrap().split("//! ```").next().unwrap();
    let compiled = compiled.lines().map(|line| line.trim_start_matches("//!").trim());
    let mut count = 0;
    for line in compiled.filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        assert!(shown.any(|it| it == line), "docs/library.md lacks, or has elsewhere: {line}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// The states of a kind are those that the program knows.
#[test]
fn the_page_of_kinds_that_are_not_led_names_each_state() {
    let source = page("src/ops/picture.rs");
    let states = source.split("enum State {").nth(1).unwrap().split("\n}").next().unwrap();
    let states = states
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .filter(|line| line.starts_with(char::is_uppercase));
    let page = page("docs/not-led.md");
    let mut count = 0;
    for state in states.filter(|state| !["Leading", "Draining"].contains(state)) {
        let is_there = page.lines().any(|line| {
            line.split(" | ").next().is_some_and(|cell| cell.starts_with('|') && cell.contains(&format!("`{state}`")))
        });
        assert!(is_there, "docs/not-led.md does not say what {state} is");
        count += 1;
    }
    assert!(count > 8, "{count}");
}

/// The examples of state are right, their samples fit their definitions, and each gets what it says.
#[test]
fn the_examples_are_right_and_their_samples_are_composed() {
    let folder = root().join("config/examples");
    leasehold(&folder, &["check", "-f", "."]);
    let crds = page("config/examples/crds.yaml");
    let crds: Vec<Value> = crds.split("---\n").map(|text| serde_yaml::from_str(text).unwrap()).collect();
    let home = tempfile::tempdir().unwrap();
    let parent = home.path().join("parent.json");
    for sample in page("config/examples/samples.yaml").split("---\n") {
        let sample: Value = serde_yaml::from_str(sample).unwrap();
        let crd = crds.iter().find(|crd| crd["spec"]["names"]["kind"] == sample["kind"]).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut found = Vec::new();
        unknown(&sample["spec"], schema, "spec", &mut found);
        assert!(found.is_empty(), "{found:?}");
        fs::write(&parent, sample.to_string()).unwrap();
        let said = leasehold(&folder, &["render", "-f", ".", "--parent", parent.to_str().unwrap(), "-o", "json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(!said["children"].as_array().unwrap().is_empty(), "{said}");
        assert!(page("docs/examples.md").contains(&format!("[{}]", sample["kind"].as_str().unwrap())));
    }
}

/// A composition that is copied from a page is right.
#[test]
fn every_composition_of_a_page_is_right() {
    let mut checked = 0;
    for name in pages() {
        for block in blocks(&page(&name)).into_iter().filter(|block| block.contains("kind: Composition")) {
            let read = leasehold::kinds::compose::Composition::read(&name, &block);
            assert!(read.is_ok(), "{name}: {:?}", read.err().map(|errors| errors.to_string()));
            checked += 1;
        }
    }
    assert!(checked > 1, "{checked}");
}

/// What the pages of the composed kinds say that their examples get.
#[test]
fn the_examples_of_composed_kinds_get_what_their_pages_say() {
    for (name, expected) in [
        ("docs/tenant.md", &["LimitRange", "Namespace", "NetworkPolicy", "ResourceQuota", "RoleBinding"][..]),
        ("docs/webapp.md", &["Deployment", "Ingress", "Service"][..]),
    ] {
        let example = yaml(name, &blocks(&page(name))[0]);
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("parent.json");
        fs::write(&parent, example.to_string()).unwrap();
        let parent = parent.to_str().unwrap();
        let said = leasehold(root(), &["render", "-f", "config", "--parent", parent, "--crd", "crds", "-o", "json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        let children = said["children"].as_array().unwrap();
        let kinds: BTreeSet<_> = children.iter().map(|child| child["object"]["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, expected.iter().copied().collect(), "{name}: {said}");
        let child = |kind: &str| children.iter().find(|child| child["object"]["kind"] == kind).map(|it| &it["object"]);
        if let Some(namespace) = child("Namespace") {
            assert_eq!(namespace["metadata"]["labels"]["tenant.leasehold.dev/team"], "lilac");
            assert_eq!(child("ResourceQuota").unwrap()["spec"]["hard"]["pods"], "20");
        } else {
            assert_eq!(child("Deployment").unwrap()["spec"]["replicas"], 2);
            assert_eq!(child("Ingress").unwrap()["spec"]["rules"][0]["host"], "shop.example.com");
        }
    }
}

/// The first column of a page's tables names fields of the spec that there are, and all of them.
#[test]
fn the_tables_of_composed_kinds_name_their_fields() {
    for (name, kind) in [("docs/tenant.md", "Tenant"), ("docs/webapp.md", "WebApp")] {
        let schema = schema(kind, None).unwrap();
        let fields: BTreeSet<_> =
            schema["properties"]["spec"]["properties"].as_object().unwrap().keys().cloned().collect();
        let page = page(name);
        let named: BTreeSet<_> =
            page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect();
        assert_eq!(named, fields, "{name}");
    }
}

/// A configuration and its composition, as a page shows them one after the other, in a folder.
fn folder(page: &str) -> tempfile::TempDir {
    let all: Vec<String> = blocks(page);
    let at = all.iter().position(|block| block.contains("reconciler: {compose: queue.yaml}")).unwrap();
    let head = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {namespace: leasehold-system}\n";
    let composition = if all[at + 1].contains("kind: Composition") {
        all[at + 1].clone()
    } else {
        format!("apiVersion: leasehold.dev/v1alpha1\nkind: Composition\n{}", all[at + 1])
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("leasehold.yaml"), format!("{head}{}", all[at])).unwrap();
    fs::write(folder.path().join("queue.yaml"), composition).unwrap();
    folder
}

/// What a Queue gets by the page, with what is there.
fn rendered(page: &str, spec: Value, there: &[Value]) -> Value {
    let folder = folder(page);
    leasehold(folder.path(), &["check", "-f", "."]);
    let metadata = json!({"name": "mail", "namespace": "post"});
    let parent = json!({"apiVersion": "example.com/v1", "kind": "Queue", "metadata": metadata, "spec": spec});
    fs::write(folder.path().join("parent.json"), parent.to_string()).unwrap();
    let there: Vec<_> = there.iter().map(|object| format!("---\n{object}\n")).collect();
    fs::write(folder.path().join("there.yaml"), there.concat()).unwrap();
    let arguments = ["render", "-f", ".", "--parent", "parent.json", "--related", "there.yaml", "-o", "json"];
    serde_json::from_str(&leasehold(folder.path(), &arguments)).unwrap()
}

#[test]
fn the_queue_of_the_readme_gets_its_settings() {
    let said = rendered(&page("README.md"), json!({"depth": 3}), &[]);
    assert_eq!(said["children"][0]["object"]["data"], json!({"depth": "3"}));
}

/// It composed nothing: its status failed as long as the workers were not there, and a status that fails held up all.
#[test]
fn the_queue_of_the_page_gets_its_workers_and_counts_them() {
    let page = page("docs/compose.md");
    let worker = |name: &str, replicas: u32| json!({"name": name, "replicas": replicas, "image": "worker:1"});
    let said = rendered(&page, json!({"depth": 3, "workers": [worker("a", 1), worker("b", 2)]}), &[]);
    let children = said["children"].as_array().unwrap();
    let names: Vec<_> = children.iter().map(|child| child["object"]["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mail-settings", "mail-a", "mail-b"]);
    assert_eq!(children[2]["object"]["spec"]["replicas"], 2, "a number stays a number");
    let container = &children[1]["object"]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["envFrom"], json!([{"configMapRef": {"name": "mail-settings"}}]));
    assert_eq!(said["status"], json!({"workers": 2}), "{said}");
    assert_eq!((&said["waiting"], &said["failed"]), (&json!([]), &json!([])));
}

/// What the page says of expressions, on the example of it.
#[test]
fn the_snippets_of_the_page_are_expressions() {
    let page = page("docs/compose.md");
    let mut checked = 0;
    for line in page.lines().filter(|line| !line.trim_start().starts_with("```")) {
        // Inline code that holds a whole expression, quoted or not.
        for code in line.split('`').skip(1).step_by(2) {
            let Some(begin) = code.find("${") else { continue };
            if !code[begin..].contains('}') || code.contains("$${") || code.contains('…') {
                continue;
            }
            let expression = &code[begin..=code.rfind('}').unwrap()];
            let composition = format!(
                "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren:\n- id: workers\n  forEach: ${{parent.spec.workers}}\n  \
                 template: {{apiVersion: v1, kind: ConfigMap, metadata: {{name: \"${{each}}\"}}, data: {{x: {}}}}}\n",
                json!(expression)
            );
            let read = leasehold::kinds::compose::Composition::read("x.yaml", &composition);
            assert!(read.is_ok(), "{line}: {:?}", read.err().map(|errors| errors.to_string()));
            checked += 1;
        }
    }
    assert!(checked > 1, "{checked}");
}

/// The code of a text: what stands between single backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.contains("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The rows of the map name files and folders that there are: relative to the folder of the last row in bold, or to the root.
/// And they name every module that a reader finds first.
#[test]
fn the_map_of_the_architecture_names_every_module_and_no_other() {
    let page = page("ARCHITECTURE.md");
    let map = page.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut folder = PathBuf::new();
    let mut named = BTreeSet::new();
    for row in map.lines().filter_map(|line| line.strip_prefix("| ")) {
        let first = row.split(" | ").next().unwrap();
        for path in spans(first) {
            let from_root = ["src/", "tests/", "examples"].iter().any(|it| path.starts_with(it));
            let path = if from_root { PathBuf::from(path) } else { folder.join(path) };
            assert!(root().join(&path).exists(), "the map names {}, which is not there", path.display());
            if first.starts_with("**") {
                folder.clone_from(&path);
            }
            named.insert(path);
        }
    }
    for folder in ["src", "src/protocol", "src/replica", "src/reconcile", "src/kinds"] {
        for entry in fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let path = Path::new(folder).join(&name);
            // The code of protocol/placement/ is its tests.
            let is_for_tests = ["fake.rs", "placement", "guard"].contains(&name.as_str());
            assert!(name == "mod.rs" || is_for_tests || named.contains(&path), "the map lacks {}", path.display());
        }
    }
}

/// All Rust files of a folder, with their text.
fn texts(folder: &str) -> Vec<(PathBuf, String)> {
    let (mut texts, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                texts.push((path, text));
            }
        }
    }
    texts
}

/// Whether there is such a function of a type or of a file, or such a variant.
fn is_in(texts: &[(PathBuf, String)], owner: &str, name: &str) -> bool {
    let has = |text: &str| ["(", "<"].iter().any(|after| text.contains(&format!("fn {name}{after}")));
    let is_word = |line: &str| line.split(|it: char| !it.is_alphanumeric() && it != '_').any(|word| word == owner);
    texts.iter().any(|(path, text)| {
        if name.starts_with(char::is_uppercase) {
            return text.contains(&format!("{owner}::{name}"));
        }
        if owner.starts_with(char::is_lowercase) {
            return path.ends_with(format!("{owner}.rs")) && has(text);
        }
        // A block ends where a line begins with its brace.
        text.split("\n}").any(|block| {
            let begin = block
                .lines()
                .position(|line| ["impl", "trait", "pub trait"].iter().any(|it| line.starts_with(it)) && is_word(line));
            begin.is_some_and(|begin| has(&block.lines().skip(begin).collect::<Vec<_>>().join("\n")))
        })
    })
}

/// Where a page says which functions something passes, each is there: one named a function that had gone.
#[test]
fn the_functions_that_the_pages_name_are_there() {
    let texts = texts("src");
    let mut checked = 0;
    for name in ["ARCHITECTURE.md", "docs/placement.md", "docs/compose.md", "docs/patterns.md"] {
        for code in spans(&page(name)) {
            let code = code.split(['(', ' ']).next().unwrap_or_default();
            let Some((owner, function)) = code.split_once("::") else { continue };
            if owner == "leasehold" || function.contains(|it: char| !it.is_alphanumeric() && it != '_') {
                continue;
            }
            assert!(is_in(&texts, owner, function), "{name}: there is no {code}");
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
    assert!(!is_in(&texts, "Supervisor", "lead") && !is_in(&texts, "Effect", "Lead"));
}

/// The names of all tests, in src and tests.
fn tests() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let mut is_test = false;
                for line in fs::read_to_string(path).unwrap().lines().map(str::trim) {
                    is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    let Some((_, rest)) = line.split_once("fn ") else { continue };
                    let name = rest.split('(').next().unwrap_or_default();
                    if std::mem::take(&mut is_test) {
                        all.insert(name.to_owned());
                    }
                }
            }
        }
    }
    all
}

/// Each promise of these pages names its tests, and each name of a test on them is that of a function that is run as one.
#[test]
fn each_promise_of_a_page_names_its_tests() {
    let tests = tests();
    assert!(tests.len() > 500, "{}", tests.len());
    let security = page("docs/security.md");
    let (promised, remains) = security.split_once("## What remains").unwrap();
    assert!(!remains.trim().is_empty());
    let safety = page("docs/safety.md");
    // What comes before is what the rules are for.
    let (_, rules) = safety.split_once("## The rules").unwrap();
    for (promised, page, least) in [(promised, &security, 50), (rules, &safety, 20)] {
        let promises: Vec<_> = promised.lines().filter(|line| line.starts_with("- ")).collect();
        assert!(promises.len() >= least, "{}", promises.len());
        for promise in promises {
            let named = promise.rsplit_once(". (`").and_then(|(_, tests)| tests.strip_suffix("`)"));
            let named = named.unwrap_or_else(|| panic!("names no test: {promise}"));
            for test in named.split("`, `") {
                assert!(tests.contains(test), "there is no test {test}: {promise}");
            }
        }
        // What is said in paragraphs and tables names tests as well.
        for code in page.split('`').skip(1).step_by(2).filter(|code| !code.starts_with("leasehold_")) {
            let is_name = code.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_');
            if is_name && code.matches('_').count() > 2 {
                assert!(tests.contains(code), "there is no test {code}");
            }
        }
    }
}

/// A rule that a comment names by number stands on the page.
#[test]
fn the_rules_that_comments_name_are_on_the_page() {
    let page = page("docs/safety.md");
    let mut named = 0;
    for (path, text) in texts("src") {
        for rest in text.split("(rule ").skip(1) {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            assert!(page.contains(&format!("- **{number}. ")), "{}: rule {number}", path.display());
            named += 1;
        }
    }
    assert!(named > 10, "{named}");
}

/// Both had grown: a README of 211 lines, and a map of 202 that is promised in less than 200.
#[test]
fn the_first_two_pages_stay_short() {
    for (name, most) in [("README.md", 110), ("ARCHITECTURE.md", 199)] {
        let lines = page(name).lines().count();
        assert!(
            lines <= most,
            "{name} has {lines} lines, and {most} at the most: what is for one task has a page of its own"
        );
    }
}
