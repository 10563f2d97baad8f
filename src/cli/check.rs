//! `leasehold check`: are these files a configuration?

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use leasehold::{
    config::{Configuration, Election, Kind, LockKind},
    kinds::openapi::{Mistake, Schemas},
    reconcile::children::Type,
};
use serde_json::json;

use super::{
    Failure, Output,
    load::{Loaded, load},
    out::out,
    schemas,
    target::Target,
};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file, or a folder with a leasehold.yaml
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// CRDs, or OpenAPI documents of an API server, in a file or all of a folder: compositions are held to their schemas
    #[arg(long, value_name = "PATH")]
    crd: Vec<PathBuf>,
    /// Hold compositions to the schemas of the API server; --kubeconfig and --context choose the cluster, as with kubectl
    #[arg(long)]
    cluster: bool,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let file = options.file.display();
    let loaded = load(&options.file);
    let held = match &loaded {
        Ok(loaded) if options.cluster || !options.crd.is_empty() => options.held(loaded)?,
        _ => Held::default(),
    };
    match (options.output, loaded) {
        (Output::Text, Ok(_)) if !held.mistakes.is_empty() => {
            let lines: Vec<_> = { held.mistakes.iter() }
                .map(|(file, Mistake { path, message })| format!("{}: {path}: {message}\n", file.display()))
                .collect();
            let count = lines.len();
            Err(Failure::Usage(format!("{}{count} error{}", lines.concat(), plural(count))))
        }
        (Output::Text, Ok(loaded)) => {
            if let Some(note) = options.note(&held) {
                writeln!(io::stderr(), "{file}: {note}")?;
            }
            for warning in warnings(&loaded.config) {
                writeln!(io::stderr(), "{file}: warning: {warning}")?;
            }
            let kinds = loaded.config.kinds.len();
            let leases = loaded.config.shards().len();
            let shared = if leases < kinds { format!(", {leases} Lease{}", plural(leases)) } else { String::new() };
            writeln!(out(), "{file}: ok, {kinds} kind{}{shared}", plural(kinds))?;
            Ok(ExitCode::SUCCESS)
        }
        (Output::Text, Err(bad)) => Err(Failure::Usage(bad.to_string())),
        (Output::Json, Ok(loaded)) => {
            let kinds: Vec<_> = loaded.config.kinds.iter().map(|kind| kind.name()).collect();
            let warnings = warnings(&loaded.config);
            let errors: Vec<_> = { held.mistakes.iter() }
                .map(|(file, Mistake { path, message })| {
                    json!({"file": file.display().to_string(), "path": path, "message": message})
                })
                .collect();
            let warnings: Vec<_> = warnings.into_iter().chain(options.note(&held)).collect();
            let document = json!({"file": file.to_string(), "kinds": kinds, "errors": errors, "warnings": warnings});
            writeln!(out(), "{document:#}")?;
            Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
        }
        (Output::Json, Err(bad)) => {
            let document = json!({"file": file.to_string(), "kinds": [], "errors": bad.json(), "warnings": []});
            writeln!(out(), "{document:#}")?;
            Ok(ExitCode::from(2))
        }
    }
}

/// What came of holding compositions to schemas.
#[derive(Default)]
struct Held {
    /// With the file of the composition.
    mistakes: Vec<(PathBuf, Mistake)>,
    /// Types that no schema was found of.
    unknown: BTreeSet<String>,
}

impl Options {
    fn held(&self, loaded: &Loaded) -> Result<Held, Failure> {
        let composed: Vec<_> = { loaded.config.kinds.iter() }
            .filter_map(|kind| Some((Type::of_kind(kind), kind.composition.as_ref()?, loaded.composition(kind)?)))
            .collect();
        let mut types = BTreeSet::new();
        for (of, _, composition) in &composed {
            types.extend(composition.held_types());
            types.insert(of.clone());
        }
        let mut schemas: Schemas = schemas::of(&schemas::documents(&self.crd)?, &self.crd)?;
        if self.cluster {
            schemas::ask(&self.target, &types, &mut schemas)?;
        }
        let folder = if self.file.is_dir() { Some(&*self.file) } else { self.file.parent() }.unwrap_or(Path::new(""));
        let mut held = Held::default();
        for (of, name, composition) in composed {
            let mistakes = composition.held_to(&schemas, &of).into_iter();
            held.mistakes.extend(mistakes.map(|mistake| (folder.join(name), mistake)));
        }
        let unknown = types.into_iter().filter(|of| schemas.of(of).is_none());
        held.unknown = unknown.map(|of| format!("{} {}", of.api_version(), of.kind)).collect();
        Ok(held)
    }

    /// What was not looked at, and how it could be.
    fn note(&self, held: &Held) -> Option<String> {
        if held.unknown.is_empty() {
            return None;
        }
        let types: Vec<_> = held.unknown.iter().map(String::as_str).collect();
        let help = match self.cluster {
            true => "the API server does not serve them",
            false => "--cluster asks the API server for theirs",
        };
        Some(format!("not held to a schema: {}; {help}", types.join(", ")))
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// What is right and had better not stay so.
fn warnings(config: &Configuration) -> Vec<String> {
    let warning = |path: &str, who: &str, lock: LockKind| {
        let (lock, next) = match lock {
            LockKind::Lease => return None,
            LockKind::ConfigMap => ("ConfigMap", "`ConfigMapsLeases` next, and `Lease` in the end"),
            LockKind::ConfigMapsLeases => ("ConfigMapsLeases", "`Lease` next"),
        };
        Some(format!(
            "{path}: the lock of {who} is `{lock}`, which is for migrations: roll out {next}; see docs/migration.md"
        ))
    };
    if let Election::Single { lock, .. } = config.election {
        return warning("election.lock", "all kinds", lock).into_iter().collect();
    }
    let of_kind = |(index, kind): (usize, &Kind)| warning(&format!("kinds[{index}].lock"), &kind.name(), kind.lock);
    config.kinds.iter().enumerate().filter_map(of_kind).collect()
}
