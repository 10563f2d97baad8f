//! Kinds and settings that are given in code. They are written down as the file would have them and read with it, so that
//! the same rules hold for both and the same errors come of them.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value as Json, json};

use super::{
    Configuration, Errors, Escalation, Kind, Offer, OnLoss, duration,
    errors::Gathered,
    raw::{self, Node, Position, Value},
    read::{self, ESCALATIONS, LOCKS, STANDBYS},
    size,
};

/// What errors call it when there is no file.
const NAME: &str = "the configuration in code";

/// What is given in code.
#[derive(Clone, Debug, Default)]
pub(crate) struct InCode {
    /// Fields of the file's first level, with their values.
    pub(crate) settings: Vec<(&'static str, Json)>,
    /// The kinds.
    pub(crate) kinds: Vec<Kind>,
}

/// Reads a file, if there is one, and adds what is given in code. A field or a kind that the file has is as the file says.
pub(crate) fn assemble(
    file: Option<(&str, &str)>,
    code: &InCode,
    offers: &[Offer<'_>],
) -> Result<Configuration, Errors> {
    let mut written = String::new();
    if file.is_none() {
        written.push_str("apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n");
    }
    // Writing to a String does not fail.
    for (field, value) in &code.settings {
        let _ = writeln!(written, "{field}: {value}");
    }
    if !code.kinds.is_empty() {
        written.push_str("kinds:\n");
        for kind in &code.kinds {
            let _ = writeln!(written, "- {}", entry(kind));
        }
    }
    let Some((name, text)) = file else { return read::configuration(NAME, &written, offers) };
    let (Ok(mut root), Ok(added)) = (raw::parse(text), raw::parse(&written)) else {
        return read::configuration(name, text, offers);
    };
    // Places in what is added come after the last line of the file, and so does its text.
    let lines = text.lines().count() as u64;
    let whole = format!("{}\n{written}", text.lines().collect::<Vec<_>>().join("\n"));
    add(&mut root, added, lines);
    let mut errors = Gathered::new(name, &whole);
    let configuration = read::top(&root, offers, &mut errors);
    if errors.is_empty() { Ok(configuration) } else { Err(errors.into_errors()) }
}

fn add(root: &mut Node, added: Node, lines: u64) {
    let (Value::Map(fields), Value::Map(added)) = (&mut root.value, added.value) else { return };
    for (mut key, mut node) in added {
        key.at.line += lines;
        shift(&mut node, lines);
        match fields.iter_mut().find(|(field, _)| field.name == key.name) {
            None => fields.push((key, node)),
            Some((_, there)) if key.name == "kinds" => {
                if let (Value::List(there), Value::List(kinds)) = (&mut there.value, node.value) {
                    let is_there = |kind: &Node, there: &[Node]| there.iter().any(|it| names(it) == names(kind));
                    for kind in kinds {
                        if !is_there(&kind, there) {
                            there.push(kind);
                        }
                    }
                }
            }
            Some(_) => {}
        }
    }
}

fn shift(node: &mut Node, lines: u64) {
    let Position { line, .. } = &mut node.at;
    *line += lines;
    match &mut node.value {
        Value::List(list) => list.iter_mut().for_each(|node| shift(node, lines)),
        Value::Map(fields) => fields.iter_mut().for_each(|(key, node)| {
            key.at.line += lines;
            shift(node, lines);
        }),
        _ => {}
    }
}

/// Group and kind of an entry, whatever its version.
fn names(entry: &Node) -> Option<(&str, &str)> {
    let Value::Map(fields) = &entry.value else { return None };
    let text = |name: &str| {
        fields.iter().find_map(|(key, node)| match &node.value {
            Value::Text(text) if key.name == name => Some(text.as_str()),
            _ => None,
        })
    };
    let group = text("apiVersion")?.rsplit_once('/').map_or("", |(group, _)| group);
    Some((group, text("kind")?))
}

/// A duration as the file would have it.
pub(crate) fn duration(duration: Duration) -> String {
    duration::show(duration)
}

/// What `onLoss` says.
pub(crate) fn word(on_loss: OnLoss) -> &'static str {
    read::ON_LOSSES.iter().find(|(_, it)| *it == on_loss).map_or("", |(word, _)| word)
}

/// A kind as the file would have it.
fn entry(kind: &Kind) -> Json {
    let api_version = match kind.group.as_str() {
        "" => kind.version.clone(),
        group => format!("{group}/{}", kind.version),
    };
    let standby = STANDBYS.iter().find(|(_, standby)| *standby == kind.standby).map(|(word, _)| *word);
    let mut entry = json!({
        "apiVersion": api_version,
        "kind": kind.kind,
        "weight": kind.weight,
        "concurrency": kind.concurrency,
        "resync": duration::show(kind.resync),
        "standby": standby,
        "limits": {"object": size::show(kind.limits.object), "cache": size::show(kind.limits.cache)},
    });
    let mut set = |field: &str, value: Json| entry[field] = value;
    if let Some(plural) = &kind.plural {
        set("plural", json!(plural));
    }
    if kind.lease_name != kind.name().to_ascii_lowercase() {
        set("lease", json!({"name": kind.lease_name}));
    }
    if let Some(group) = &kind.lease_group {
        set("group", json!(group));
    }
    if let Some((word, _)) = LOCKS.iter().find(|(_, lock)| *lock == kind.lock && *lock != Default::default()) {
        set("lock", json!(word));
    }
    if let Some(account) = &kind.service_account {
        set("serviceAccount", json!(account));
    }
    if let Some((word, _)) = ESCALATIONS.iter().find(|(_, it)| *it == kind.escalation && *it != Escalation::default()) {
        set("escalation", json!(word));
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StandbyMode;

    const OFFERS: &[Offer<'static>] = &[
        Offer { name: "widgets", only: None, in_code: false },
        Offer { name: "Document.example.com", only: Some(("example.com", "Document")), in_code: true },
    ];

    fn document() -> Kind {
        Kind { weight: 3, resync: Duration::from_secs(90), ..Kind::new("example.com", "v1", "Document") }
    }

    fn code() -> InCode {
        InCode { settings: vec![("instance", json!("mine"))], kinds: vec![document()] }
    }

    #[test]
    fn kinds_in_code_need_no_file_and_are_what_was_said() {
        let config = assemble(None, &code(), OFFERS).unwrap();
        assert_eq!(config.instance, "mine");
        let kind = &config.kinds[0];
        assert_eq!(
            (kind.weight, kind.resync, kind.name()),
            (3, Duration::from_secs(90), "Document.example.com".to_owned())
        );
        assert_eq!(kind.reconciler, "Document.example.com");
        let all = Kind {
            plural: Some("docs".to_owned()),
            lease_name: "lease".to_owned(),
            standby: StandbyMode::All,
            lock: crate::config::LockKind::ConfigMap,
            service_account: Some("account".to_owned()),
            escalation: Escalation::Trust,
            concurrency: 7,
            limits: crate::config::Limits { object: 4 << 10, cache: 5 << 10 },
            ..document()
        };
        let config = assemble(None, &InCode { kinds: vec![all.clone()], ..code() }, OFFERS).unwrap();
        let expected = Kind { reconciler: "Document.example.com".to_owned(), ..all };
        assert_eq!(format!("{:?}", config.kinds), format!("{:?}", [expected]), "every field is written down");
    }

    #[test]
    fn a_file_adds_kinds_and_overrides_what_is_said_in_code() {
        let head = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n";
        let widget = "- {apiVersion: example.com/v1, kind: Widget, reconciler: {builtin: widgets}}\n";
        let read = |text: &str| assemble(Some(("f.yaml", text)), &code(), OFFERS);
        let config = read(&format!("{head}kinds:\n{widget}")).unwrap();
        let names: Vec<_> = config.kinds.iter().map(Kind::name).collect();
        assert_eq!(names, ["Widget.example.com", "Document.example.com"]);
        assert_eq!(config.kinds[1].weight, 3);
        let tuned = "- {apiVersion: example.com/v2, kind: Document, weight: 5}\n";
        let config = read(&format!("{head}instance: theirs\nkinds:\n{widget}{tuned}")).unwrap();
        assert_eq!((config.instance.as_str(), config.kinds.len()), ("theirs", 2));
        assert_eq!((config.kinds[1].weight, config.kinds[1].reconciler.as_str()), (5, "Document.example.com"));
        assert_eq!(read(&format!("{head}drainTimeout: 5s\n")).unwrap().kinds.len(), 1, "a file of settings alone");
    }

    #[test]
    fn what_is_wrong_in_code_is_said_as_of_a_file() {
        let wrong = InCode { kinds: vec![Kind { weight: 0, ..document() }, document()], ..code() };
        let said = assemble(None, &wrong, OFFERS).unwrap_err().to_string();
        assert!(said.contains("kinds[0].weight") && said.contains("stands twice"), "{said}");
        let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nkinds:\n\
                    - {apiVersion: example.com/v1, kind: Widget, reconciler: {builtin: widgets}}\n";
        let said = assemble(Some(("f.yaml", text)), &wrong, OFFERS).unwrap_err().to_string();
        assert!(said.contains("kinds[1].weight") && said.contains("\"weight\":0"), "{said}");
        let both = text.replace("Widget", "Document");
        let said = assemble(Some(("f.yaml", &both)), &code(), OFFERS).unwrap_err().to_string();
        assert!(said.contains("f.yaml:4") && said.contains("has its reconciler in code"), "{said}");
        let none = format!("{text}- {{apiVersion: example.com/v1, kind: Other}}\n");
        let said = assemble(Some(("f.yaml", &none)), &code(), OFFERS).unwrap_err().to_string();
        assert!(said.contains("kinds[1].reconciler: missing"), "{said}");
    }
}
