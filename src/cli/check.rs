//! `leasehold check`: are these files a configuration?

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use leasehold::config::{Configuration, Election, Kind, LockKind};
use serde_json::json;

use super::{Failure, Output, load::load};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file, or a folder with a leasehold.yaml
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let file = options.file.display();
    match (options.output, load(&options.file)) {
        (Output::Text, Ok(loaded)) => {
            for warning in warnings(&loaded.config) {
                writeln!(io::stderr(), "{file}: warning: {warning}")?;
            }
            let kinds = loaded.config.kinds.len();
            let leases = loaded.config.shards().len();
            let shared = if leases < kinds { format!(", {leases} Lease{}", plural(leases)) } else { String::new() };
            writeln!(io::stdout(), "{file}: ok, {kinds} kind{}{shared}", plural(kinds))?;
            Ok(ExitCode::SUCCESS)
        }
        (Output::Text, Err(bad)) => Err(Failure::Usage(bad.to_string())),
        (Output::Json, Ok(loaded)) => {
            let kinds: Vec<_> = loaded.config.kinds.iter().map(|kind| kind.name()).collect();
            let warnings = warnings(&loaded.config);
            let document = json!({"file": file.to_string(), "kinds": kinds, "errors": [], "warnings": warnings});
            writeln!(io::stdout(), "{document:#}")?;
            Ok(ExitCode::SUCCESS)
        }
        (Output::Json, Err(bad)) => {
            let document = json!({"file": file.to_string(), "kinds": [], "errors": bad.json(), "warnings": []});
            writeln!(io::stdout(), "{document:#}")?;
            Ok(ExitCode::from(2))
        }
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
