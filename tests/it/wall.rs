//! The front wall: the names that a user of the library has are those of a list, and pages and examples use no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of a `use` tree, as they are called outside.
fn names(tree: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in tree.split(['{', '}', ',']).map(str::trim).filter(|part| !part.is_empty() && !part.ends_with("::")) {
        let name = part.rsplit_once(" as ").map_or_else(|| part.rsplit("::").next().unwrap_or(part), |(_, name)| name);
        names.push(name.to_owned());
    }
    names
}

/// What lib.rs shows when `internals` is off.
fn shown() -> BTreeSet<String> {
    let lib = read("src/lib.rs");
    let code: Vec<_> = lib.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let (mut shown, mut module, mut hidden) = (BTreeSet::new(), String::new(), false);
    let mut tree: Option<String> = None;
    for line in code {
        let text = line.trim();
        if let Some(open) = &mut tree {
            open.push_str(text);
        } else if let Some(begin) = text.strip_prefix("pub use ") {
            tree = Some(begin.to_owned());
        } else if text == "#[cfg(feature = \"internals\")]" {
            hidden = true;
        } else if let Some(name) = text.strip_prefix("pub mod ") {
            if let Some(name) = name.strip_suffix(" {") {
                module = format!("{name}::");
            } else {
                assert!(hidden, "lib.rs shows the module {name} to everybody");
                hidden = false;
            }
        } else if line == "}" {
            module.clear();
        } else if text.starts_with("pub ") {
            panic!("lib.rs shows by other means than a `pub use`: {text}");
        }
        if let Some(whole) = tree.take_if(|tree| tree.ends_with(';')) {
            shown.extend(names(whole.trim_end_matches(';')).into_iter().map(|name| format!("{module}{name}")));
        }
    }
    shown
}

#[test]
fn the_public_names_are_those_of_the_list() {
    let (file, shown) = (root().join("tests/it/golden/public-names.txt"), shown());
    let text: String = shown.iter().map(|name| format!("{name}\n")).collect();
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let listed: BTreeSet<_> = fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
    let (more, less): (Vec<_>, Vec<_>) = (shown.difference(&listed).collect(), listed.difference(&shown).collect());
    assert!(
        more.is_empty() && less.is_empty(),
        "a public name is for years: {more:?} are new and {less:?} are gone; if that is meant, run UPDATE=1 cargo test"
    );
}

/// Every path that begins with `leasehold::` in a text, without what is in braces after it.
fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in text.match_indices("leasehold::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == ':') {
            continue;
        }
        let rest = &text[at + "leasehold::".len()..];
        let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_' && char != ':').unwrap_or(rest.len());
        let path = rest[..end].trim_end_matches(':').to_owned();
        if path.is_empty() && rest.starts_with('{') {
            // A tree: its first level.
            let (mut depth, mut part) = (0, String::new());
            for char in rest.chars() {
                match char {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if (char == ',' && depth == 1) || depth == 0 {
                    paths.extend(tree(part.trim().trim_start_matches('{').trim()));
                    part.clear();
                } else {
                    part.push(char);
                }
                if depth == 0 {
                    break;
                }
            }
        } else if !path.is_empty() {
            match rest[end..].strip_prefix('{') {
                Some(inner) => {
                    paths.extend(tree(&format!("{path}::{{{}}}", inner.split('}').next().unwrap_or_default())))
                }
                None => paths.push(path),
            }
        }
    }
    paths
}

/// A branch of a tree with one pair of braces at the most.
fn tree(branch: &str) -> Vec<String> {
    match branch.split_once("::{") {
        _ if branch.is_empty() => Vec::new(),
        None => vec![branch.to_owned()],
        Some((module, all)) => names(all).into_iter().map(|name| format!("{module}::{name}")).collect(),
    }
}

#[test]
fn paths_are_read_from_code() {
    let code = "use leasehold::{BoxError, settings::{Limits, Timings}, testing::Server};\n\
                leasehold::observe::Observer::<X>::new(); my_leasehold::x; use leasehold::children::{Child, Type};";
    let expected = [
        "BoxError",
        "settings::Limits",
        "settings::Timings",
        "testing::Server",
        "observe::Observer",
        "children::Child",
        "children::Type",
    ];
    assert_eq!(paths(code), expected);
}

/// The examples are built with everything, so the compiler does not tell. A page must not send its reader to what is hidden.
#[test]
fn pages_and_examples_use_public_names_only() {
    let shown = shown();
    let mut texts = BTreeMap::from([("README.md".into(), read("README.md")), ("src/lib.rs".into(), String::new())]);
    for folder in ["examples", "docs", "src/front"] {
        for file in fs::read_dir(root().join(folder)).unwrap().map(|file| file.unwrap().path()) {
            if file.is_file() {
                texts.insert(file.clone(), fs::read_to_string(&file).unwrap());
            }
        }
    }
    let lib: Vec<_> =
        read("src/lib.rs").lines().filter_map(|line| line.strip_prefix("//!").map(str::to_owned)).collect();
    texts.insert(PathBuf::from("src/lib.rs"), lib.join("\n"));
    let mut found = 0;
    for (file, text) in texts {
        // What a program prints, a backtrace for example, has names that are its own.
        let said = text.split("```text\n").skip(1).map(|rest| rest.split_once("```").map_or("", |(_, rest)| rest));
        let text: String = text.split("```text\n").take(1).chain(said).collect();
        for path in paths(&text) {
            let is_shown = shown.iter().any(|name| path == *name || path.starts_with(&format!("{name}::")));
            let is_module = shown.iter().any(|name| name.starts_with(&format!("{path}::")));
            // `internals` has its users in this repository.
            assert!(is_shown || is_module, "{} names leasehold::{path}, which no user has", file.display());
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}

/// A user who adds the library gets nothing that only the binary needs, and no version of Kubernetes.
#[test]
fn the_library_has_no_dependency_of_the_binary() {
    let manifest = read("Cargo.toml");
    let section = |name: &str| {
        let begin = format!("\n[{name}]\n");
        manifest.split(&begin).nth(1).unwrap_or_default().split("\n[").next().unwrap_or_default().to_owned()
    };
    let dependencies = section("dependencies");
    for of_the_binary in
        ["anyhow", "clap", "clap_complete", "hostname", "tikv-jemallocator", "tracing-appender", "tracing-subscriber"]
    {
        let line = dependencies.lines().find(|line| line.starts_with(&format!("{of_the_binary} ="))).unwrap();
        assert!(line.contains("optional = true"), "{line}");
    }
    let kubernetes = dependencies.lines().find(|line| line.starts_with("k8s-openapi")).unwrap();
    assert!(!kubernetes.contains("v1_") && kubernetes.contains("default-features = false"), "{kubernetes}");
    assert!(section("features").contains("\ndefault = []"), "a library has no more than it needs");
}
