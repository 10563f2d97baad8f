//! What the largest object weighs that a shipped definition permits: of each kind less than the shipped limit, and as the pages
//! say it.

use std::{env, fs, path::Path};

use serde_json::{Value, json};

use super::builtin;
use crate::{config, reconcile::weight::shown};

/// What a character takes at the most: as an escape, such as \u0001.
const CHARACTER: u64 = 6;
/// What name, namespace and the marks of the API server take, and a status of ours: four conditions, some of them with a message
/// of 2 KiB, and fields.
const BESIDES: u64 = 24 << 10;

/// The most that such a value weighs as JSON.
fn most(schema: &Value, path: &str) -> u64 {
    let bound = |field: &str| schema[field].as_u64().unwrap_or_else(|| panic!("{path} has no {field}"));
    match schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type")) {
        "boolean" => 5,
        "integer" | "number" => 24,
        "string" => {
            let words = schema["enum"].as_array().map(|words| words.iter().map(|word| word.to_string().len() as u64));
            match words.and_then(Iterator::max) {
                Some(longest) => longest,
                None if schema["format"] == "date-time" => 40,
                None => bound("maxLength") * schema["pattern"].as_str().map_or(CHARACTER, character) + 2,
            }
        }
        "array" => bound("maxItems") * (most(&schema["items"], &format!("{path}[]")) + 1) + 2,
        "object" => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let fields = fields.map(|(name, field)| name.len() as u64 + 4 + most(field, &format!("{path}.{name}")));
            let fields = 2 + fields.sum::<u64>();
            let entry = &schema["additionalProperties"];
            if !entry.is_object() {
                return fields;
            }
            let entries = bound("maxProperties");
            let together = rule(schema, "self.map(key, size(key) + size(self[key])).sum() <= ");
            let each = rule(schema, "self.all(key, size(key) <= ");
            fields
                + match (together, each) {
                    (Some(characters), _) => characters * CHARACTER + entries * 6,
                    (None, Some(key)) => entries * (key * CHARACTER + 4 + most(entry, &format!("{path}{{}}"))),
                    (None, None) => panic!("{path}: no rule bounds the keys"),
                }
        }
        other => panic!("{path} is {other}"),
    }
}

/// The number of a rule that begins so.
fn rule(schema: &Value, begin: &str) -> Option<u64> {
    let rules = schema["x-kubernetes-validations"].as_array()?;
    let rest = rules.iter().find_map(|rule| rule["rule"].as_str()?.strip_prefix(begin))?;
    rest.trim_end_matches(')').parse().ok()
}

/// What a character takes where the pattern permits only some: one byte, unless it is written by what it is not.
fn character(pattern: &str) -> u64 {
    assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{pattern} is no bound");
    if pattern.contains("[^\\x00-\\x1f]") {
        // Four bytes of UTF-8.
        return 4;
    }
    assert!(!pattern.contains("[^") && !pattern.replace("\\.", "").replace("[.", "").contains("(."), "{pattern}");
    1
}

fn read(file: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn the_largest_object_that_a_definition_permits_is_within_the_limit_and_the_page_says_what_it_weighs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let builtin = builtin();
    let names: Vec<_> = builtin.iter().map(|builtin| builtin.name).collect();
    let text = fs::read_to_string(root.join("config/leasehold.yaml")).unwrap();
    let config = config::load("config/leasehold.yaml", &text, &names).unwrap();
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let files = ["crds", "crds/webhooks"].map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let crds: Vec<Value> = files
        .into_iter()
        .flatten()
        .map(|file| file.unwrap().path())
        .filter(|it| it.is_file())
        .map(|it| read(&it))
        .collect();
    for kind in &config.kinds {
        let mut largest = 0;
        for crd in crds.iter().filter(|crd| crd["spec"]["names"]["kind"] == json!(kind.kind)) {
            for version in crd["spec"]["versions"].as_array().unwrap() {
                let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
                largest = largest.max(most(spec, &format!("{} {}", kind.kind, version["name"])));
            }
        }
        assert!(largest > 0, "{} has a definition", kind.kind);
        assert!(largest + BESIDES <= kind.limits.object, "{}: {largest} of {}", kind.kind, kind.limits.object);
        let row = format!(
            "| {} | {} | {} | {} |",
            kind.kind,
            shown(largest),
            shown(kind.limits.object),
            shown(kind.limits.cache)
        );
        assert!(page.contains(&row), "docs/security.md does not say\n{row}");
    }
}

#[test]
fn a_bound_that_is_missing_is_found() {
    let string = |more: Value| {
        let mut schema = json!({"type": "string", "maxLength": 10});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        schema
    };
    assert_eq!(most(&string(json!({})), "x"), 62);
    assert_eq!(most(&string(json!({"pattern": "^[a-z]$"})), "x"), 12);
    assert_eq!(most(&json!({"type": "array", "maxItems": 3, "items": {"type": "boolean"}}), "x"), 20);
    for unbounded in [
        json!({"type": "string"}),
        json!({"type": "array", "items": {"type": "boolean"}}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
        json!({"type": "object", "maxProperties": 3, "additionalProperties": {"type": "boolean"}}),
        json!({"x-kubernetes-preserve-unknown-fields": true}),
    ] {
        assert!(std::panic::catch_unwind(|| most(&unbounded, "x")).is_err(), "{unbounded}");
    }
}
