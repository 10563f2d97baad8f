//! The command line: what is asked for, and the exit code that answers. The work is the library's.

mod check;
mod crds;
mod hand_over;
mod logging;
mod run;

use std::{fmt, io, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use leasehold::{
    config::{self, Configuration},
    kinds::Builtin,
};

/// Spreads Kubernetes CRD kinds over the replicas of one Deployment, one Lease a kind.
#[derive(Parser)]
#[command(name = "leasehold", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one replica: elect, reconcile, serve health and metrics
    Run(run::Options),
    /// Check a configuration file, offline, and show all of its errors
    Check(check::Options),
    /// Hand a kind over to another replica, without a gap that anybody notices
    HandOver(hand_over::Options),
    /// Print the CRDs of the built-in kinds as YAML
    Crds(crds::Options),
}

/// Why a command failed; each has an exit code of its own.
enum Failure {
    /// What was asked for cannot be done: exit 2, nothing was touched.
    Usage(String),
    /// It was tried and did not work: exit 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure {
    /// Whoever read our output has seen enough.
    fn is_broken_pipe(&self) -> bool {
        let Self::Failed(error) = self else { return false };
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            // With its causes, on one line.
            Self::Failed(error) => write!(f, "error: {error:#}"),
        }
    }
}

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    // Two providers in one binary, or none, make the first TLS client panic: the choice is made before any.
    // An error means that the choice was made already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = match Cli::parse().command {
        Command::Run(options) => run::run(options),
        Command::Check(options) => check::run(&options),
        Command::HandOver(options) => hand_over::run(&options),
        Command::Crds(options) => crds::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            if !failure.is_broken_pipe() {
                complain(&failure);
            }
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Failed(_) => ExitCode::FAILURE,
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command goes to the person who ran it, logging or not")]
fn complain(failure: &Failure) {
    eprintln!("{failure}");
}

/// A file as text and as a configuration for these reconcilers.
fn load(file: &Path, builtin: &[Builtin]) -> Result<Configuration, Bad> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => "no such file; start from config/leasehold.yaml".to_owned(),
            io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Bad::Unreadable(format!("{name}: {help}"))
    })?;
    let offers: Vec<_> = builtin
        .iter()
        .map(|builtin| config::Offer { name: builtin.name, only: Some((&builtin.group, &builtin.kind)) })
        .collect();
    config::load(&name, &text, &offers).map_err(Bad::Wrong)
}

/// Why there is no configuration.
enum Bad {
    Unreadable(String),
    Wrong(config::Errors),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(text) => f.write_str(text),
            Self::Wrong(errors) => {
                let count = errors.violations().len();
                write!(f, "{errors}\n{count} error{}", if count == 1 { "" } else { "s" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_shipped_configuration_suits_the_built_in_reconcilers() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/leasehold.yaml");
        let config = load(&file, &leasehold::kinds::builtin()).unwrap_or_else(|bad| panic!("{bad}"));
        assert_eq!(config.kinds.len(), leasehold::kinds::builtin().len(), "every built-in kind is configured");
    }

    #[test]
    fn a_missing_file_is_named() {
        let bad = load(Path::new("/nowhere/x.yaml"), &[]).unwrap_err().to_string();
        assert_eq!(bad, "/nowhere/x.yaml: no such file; start from config/leasehold.yaml");
    }
}
