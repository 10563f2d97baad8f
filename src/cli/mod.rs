//! The command line: what is asked for, and the exit code that answers. The work is the library's.

mod check;
mod crds;
mod defaults;
mod drain;
mod hand_over;
mod load;
mod logging;
mod out;
mod policies;
mod rbac;
mod render;
mod run;
mod schema;
mod schemas;
mod status;
mod target;
mod traces;

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use leasehold::replica::connections::{Bounds, Connections};

use self::out::out;

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
    #[command(after_help = EXIT_CODES)]
    Run(run::Options),
    /// Check a configuration and its compositions, and show all of their errors; offline, unless --cluster is given
    Check(check::Options),
    /// Show who leads what, since when, and how the replicas are
    #[command(after_help = status::EXIT_CODES)]
    Status(status::Options),
    /// Say why a kind is where it is, what placement would do next, and what stands in the way
    Explain(status::ExplainOptions),
    /// Hand a kind over to another replica, without a gap that anybody notices
    HandOver(hand_over::Options),
    /// Let the objects of a kind go that is no longer configured: remove the finalizers that its reconciler left
    Drain(drain::Options),
    /// Print the children that a composed kind would make of an object, offline
    Render(render::Options),
    /// Print the least ClusterRole that the kinds of a configuration need, as YAML
    Rbac(rbac::Options),
    /// Print the policies that the API server holds the accounts of a configuration to, as YAML
    Policies(policies::Options),
    /// Print the CRDs of the built-in kinds as YAML
    Crds(crds::Options),
    /// Print the JSON Schema of a file, for editors
    Schema(schema::Options),
    /// Print what completes this command line in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Exit code of a replica that has lost a term while the configuration says `onLoss: Exit`: `EX_TEMPFAIL` of sysexits.h, a
/// failure that a restart mends. No other end of a process has it: not an error (1), a usage (2), a panic (101), a signal
/// (128 and more).
const DEPOSED: u8 = 75;

const EXIT_CODES: &str = "Exit codes:
  0   stopped cleanly: every Lease was handed over or released
  1   an error, or a stop that was not clean
  2   the command line or the configuration is wrong
  75  a term was lost while the configuration says `onLoss: Exit`; restart it";

/// Yes or no, in an argument.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How a command prints its outcome.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Output {
    /// Tells a person what happens; a program waits for the outcome.
    fn say(self, what: &str) -> io::Result<()> {
        if self == Self::Text { writeln!(out(), "{what}") } else { Ok(()) }
    }
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
    /// The reader of our output has closed the pipe.
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

/// What kubectl calls a plugin that it runs for `kubectl leasehold`.
const PLUGIN: &str = "kubectl-leasehold";

/// The command line of this name: as a plugin of kubectl it answers to what was typed there.
fn command(program: Option<&OsString>) -> clap::Command {
    let is_plugin = program.and_then(|program| Path::new(program).file_stem()).is_some_and(|name| name == PLUGIN);
    let command = Cli::command();
    if is_plugin { command.name("kubectl leasehold").bin_name("kubectl leasehold") } else { command }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments: Vec<_> = arguments.collect();
    let matches = command(arguments.first()).try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

/// Prints why there is nothing to run: a mistake, or help or the version, which were asked for.
fn nothing_to_run(error: &clap::Error) -> Result<ExitCode, Failure> {
    let printed = error.print();
    if error.use_stderr() {
        if env::args_os().nth(1).is_some_and(|command| command == "run") {
            run::misused(&error.to_string());
        }
        return Ok(ExitCode::from(2));
    }
    printed.map_err(out::failed)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    // Two providers in one binary, or none, make the first TLS client panic: the choice is made before any.
    // An error means that the choice was made already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = parse(env::args_os()).map(|cli| match cli.command {
        Command::Run(options) => run::run(options),
        Command::Check(options) => check::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Explain(options) => status::explain(&options),
        Command::HandOver(options) => hand_over::run(&options),
        Command::Drain(options) => drain::run(&options),
        Command::Render(options) => render::run(&options),
        Command::Rbac(options) => rbac::run(&options),
        Command::Policies(options) => policies::run(&options),
        Command::Crds(options) => crds::run(&options),
        Command::Schema(options) => schema::run(&options),
        Command::Completions { shell } => completions(shell),
    });
    let outcome = outcome.unwrap_or_else(|error| nothing_to_run(&error));
    // A line that does not end is still in the buffer, and what becomes of it at the end of the process is not told.
    match outcome.and_then(|code| Ok(out().flush().map(|()| code)?)) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.is_broken_pipe() {
                // The words go to the person who ran the command, logging or not.
                logging::last_words(&failure);
            }
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Failed(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Into memory first: what writes to the output itself does not say how it went.
fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "leasehold", &mut script);
    out().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// The client of a command that is no replica.
async fn client(config: kube::Config) -> anyhow::Result<kube::Client> {
    let connections = Connections::load(config, Bounds::default()).await.context("failed to make a client")?;
    Ok(connections.client())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        command(Some(&PLUGIN.into())).debug_assert();
    }

    #[test]
    fn a_plugin_of_kubectl_is_called_what_was_typed() {
        let help = |program: &str| command(Some(&program.into())).render_help().to_string();
        for program in ["kubectl-leasehold", "/usr/local/bin/kubectl-leasehold", "kubectl-leasehold.exe"] {
            assert!(help(program).contains("Usage: kubectl leasehold <COMMAND>"), "{}", help(program));
        }
        assert!(help("/usr/local/bin/leasehold").contains("Usage: leasehold <COMMAND>"));
        let status = command(Some(&PLUGIN.into())).try_get_matches_from([PLUGIN, "status", "--help"]).unwrap_err();
        assert!(status.to_string().contains("Usage: kubectl leasehold status"), "{status}");
    }
}
