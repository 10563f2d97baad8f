//! A configuration from its files: the one that lists the kinds, and the compositions that it names.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kube::Client;
use leasehold::{
    config::{self, Configuration, Errors, Kind},
    kinds::{
        self, Builtin, actions::Acts, builtin, builtin_within, compose::Composition, reach::Reach, reaching::Reaching,
    },
    reconcile::{
        children::{self, Children, Compose, Type},
        watches::Watches,
    },
    replica::term::{Access, Reconciler},
    webhooks::{Of, Webhook, ask::Asker, coverage::Checked},
};

/// The file of a folder that lists the kinds.
const LIST: &str = "leasehold.yaml";

/// Everything that a configuration consists of.
pub(super) struct Loaded {
    pub(super) config: Configuration,
    builtin: Vec<Builtin>,
    /// By file, as the configuration names it.
    compositions: BTreeMap<String, Arc<Composition>>,
}

/// Reads a file, or the one of that name in a folder, and the compositions beside it.
pub(super) fn load(path: &Path) -> Result<Loaded, Bad> {
    let file = if path.is_dir() { path.join(LIST) } else { path.to_owned() };
    let builtin = builtin();
    let offers: Vec<_> = builtin
        .iter()
        .map(|builtin| config::Offer {
            name: builtin.name,
            only: Some((&builtin.group, &builtin.kind)),
            in_code: false,
        })
        .collect();
    let mut wrong = Wrong::default();
    let name = file.display().to_string();
    let config = match read(&file, "start from config/leasehold.yaml") {
        Ok(text) => config::load(&name, &text, &offers).map_err(|errors| wrong.errors.push(errors)).ok(),
        Err(unreadable) => {
            wrong.unreadable.push(unreadable);
            None
        }
    };
    let Some(config) = config else { return Err(Bad(wrong)) };
    let mut compositions = BTreeMap::new();
    for named in config.kinds.iter().filter_map(|kind| kind.composition.as_ref()) {
        if compositions.contains_key(named) {
            continue;
        }
        let beside = file.parent().unwrap_or(Path::new("")).join(named);
        match read(&beside, &format!("{name} names it")) {
            Ok(text) => match Composition::read(&beside.display().to_string(), &text) {
                Ok(composition) => _ = compositions.insert(named.clone(), Arc::new(composition)),
                Err(errors) => wrong.errors.push(errors),
            },
            Err(unreadable) => wrong.unreadable.push(unreadable),
        }
    }
    if wrong.errors.is_empty() && wrong.unreadable.is_empty() {
        Ok(Loaded { config, builtin, compositions })
    } else {
        Err(Bad(wrong))
    }
}

fn read(file: &Path, help: &str) -> Result<String, Unreadable> {
    fs::read_to_string(file).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => format!("no such file; {help}"),
            io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Unreadable { file: file.to_owned(), why }
    })
}

impl Loaded {
    /// The composition of a kind, if it is composed.
    pub(super) fn composition(&self, kind: &Kind) -> Option<&Arc<Composition>> {
        self.compositions.get(kind.composition.as_ref()?)
    }

    /// All reconcilers, by the names under which the configuration asks for them.
    /// `watches` are those that a kind shares with others.
    /// `reach` is how far the objects of a kind reach.
    pub(super) fn reconcilers(
        &self,
        reach: impl Fn(&Kind) -> Reaching,
        mut watches: impl FnMut(&Kind) -> Watches,
    ) -> Vec<(String, Arc<dyn Reconciler>)> {
        let of = |name: &str| self.config.kinds.iter().find(|kind| kind.reconciler == name).map(&reach);
        let builtin = builtin_within(|name| of(name).unwrap_or_default()).into_iter();
        let builtin = builtin.map(|builtin| (builtin.name.to_owned(), builtin.reconciler));
        let composed = self.config.kinds.iter().filter_map(|kind| {
            let front = Arc::clone(self.composition(kind)?);
            let reconciler: Arc<dyn Reconciler> = Arc::new(Children::new(kind, front, watches(kind)));
            Some((kind.reconciler.clone(), reconciler))
        });
        builtin.chain(composed).collect()
    }

    /// The webhooks of the kinds that have one: what a kind says of its objects itself, and whether their authors may do
    /// what these have it do. `client` is what that of a kind looks things up with, if that is not the replica's own.
    pub(super) fn webhooks(
        &self,
        reach: impl Fn(&Kind) -> Reach,
        client: impl Fn(&Kind) -> Option<Client>,
    ) -> Vec<(Of, Arc<dyn Webhook>)> {
        let asker = Asker::default();
        let own = kinds::webhooks();
        let hook = |kind: &Kind| {
            let own = own.iter().find(|(of, _)| of.group == kind.group && of.kind == kind.kind);
            let own = own.map(|(_, hook)| Arc::clone(hook));
            kinds::webhook(kind, self.composition(kind), own, reach(kind), &asker, client(kind))
        };
        self.config.kinds.iter().filter_map(hook).collect()
    }

    /// What the authors of a kind's objects are asked about, if they are.
    fn acts(&self, kind: &Kind) -> Option<Acts> {
        kinds::acts(kind, self.composition(kind))
    }

    /// The kinds whose authors are asked about.
    pub(super) fn checked(&self) -> Vec<Checked> {
        let kinds = self.config.kinds.iter().filter(|kind| self.acts(kind).is_some());
        kinds.map(|kind| Checked::new(kind, Type::of_kind(kind).plural)).collect()
    }

    /// Types whose plural is what English has: kinds, what they make and what they read.
    pub(super) fn guessed(&self) -> Vec<Type> {
        let mut all = Vec::new();
        for kind in &self.config.kinds {
            all.extend(kind.plural.is_none().then(|| Type::of_kind(kind)));
            let Some(composition) = self.composition(kind) else { continue };
            let read = composition.related().into_values().map(|related| related.of);
            let types = composition.types().into_iter().chain(read).chain(composition.looked_up());
            all.extend(types.map(|of| Type::clone(&of)));
        }
        all.retain(Type::is_guessed);
        all.sort();
        all.dedup();
        all
    }

    /// What each kind needs, besides `list` and `watch` of itself.
    pub(super) fn needs(&self, kind: &Kind) -> Vec<Access> {
        if let Some(composition) = self.composition(kind) {
            let mut needs = children::needs(kind, &**composition);
            // Its webhook looks things up, on every replica.
            needs.extend(composition.lookups());
            return needs;
        }
        let builtin = self.builtin.iter().find(|builtin| builtin.name == kind.reconciler);
        builtin.map(|builtin| builtin.reconciler.needs()).unwrap_or_default()
    }
}

/// Why there is no configuration.
#[derive(Debug)]
pub(super) struct Bad(Wrong);

#[derive(Debug, Default)]
struct Wrong {
    unreadable: Vec<Unreadable>,
    errors: Vec<Errors>,
}

#[derive(Debug)]
struct Unreadable {
    file: PathBuf,
    why: String,
}

impl Bad {
    /// Every error as a JSON document.
    pub(super) fn json(&self) -> Vec<serde_json::Value> {
        let unreadable = self.0.unreadable.iter();
        let unreadable =
            unreadable.map(|it| serde_json::json!({"file": it.file.display().to_string(), "message": it.why}));
        let errors = self.0.errors.iter().flat_map(|errors| {
            errors.violations().iter().map(|violation| {
                let mut value = serde_json::to_value(violation).unwrap_or_default();
                value["file"] = errors.file().into();
                value
            })
        });
        unreadable.chain(errors).collect()
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Unreadable { file, why } in &self.0.unreadable {
            writeln!(f, "{}: {why}", file.display())?;
        }
        for errors in &self.0.errors {
            writeln!(f, "{errors}")?;
        }
        let count =
            self.0.unreadable.len() + self.0.errors.iter().map(|errors| errors.violations().len()).sum::<usize>();
        write!(f, "{count} error{}", if count == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const TWO: &str = "\
apiVersion: leasehold.dev/v1alpha1
kind: Configuration
kinds:
- {apiVersion: example.com/v1, kind: Widget, reconciler: {compose: widget.yaml}}
- {apiVersion: example.com/v1, kind: Gadget, reconciler: {compose: gadget.yaml}}
";

    #[test]
    fn the_shipped_configuration_is_whole() {
        let loaded = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config")).unwrap_or_else(|bad| panic!("{bad}"));
        for builtin in builtin() {
            let is_configured = loaded.config.kinds.iter().any(|kind| kind.reconciler == builtin.name);
            assert!(is_configured, "{} is not configured", builtin.name);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let bad = load(Path::new("/nowhere/x.yaml")).err().unwrap().to_string();
        assert_eq!(bad, "/nowhere/x.yaml: no such file; start from config/leasehold.yaml\n1 error");
    }

    #[test]
    fn the_errors_of_all_files_are_shown_at_once() {
        let widget = "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren: []\nwhat: 1\n";
        let folder = folder(&[("leasehold.yaml", TWO), ("widget.yaml", widget)]);
        let bad = load(folder.path()).err().unwrap();
        let shown = bad.to_string();
        for expected in [
            "gadget.yaml: no such file;",
            "leasehold.yaml names it",
            "widget.yaml:1:1: children: missing or empty",
            "widget.yaml:4:1: what: unknown field",
            "3 errors",
        ] {
            assert!(shown.contains(expected), "{expected} in\n{shown}");
        }
        assert_eq!(bad.json().len(), 3);
    }
}
