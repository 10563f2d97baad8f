//! `leasehold check`: is this file a configuration?

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Bad, Failure, load};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let file = options.file.display();
    let outcome = load(&options.file, &leasehold::kinds::builtin());
    match (options.output, outcome) {
        (Output::Text, Ok(config)) => {
            let kinds = config.kinds.len();
            writeln!(io::stdout(), "{file}: ok, {kinds} kind{}", if kinds == 1 { "" } else { "s" })?;
            Ok(ExitCode::SUCCESS)
        }
        (Output::Text, Err(bad)) => Err(Failure::Usage(bad.to_string())),
        (Output::Json, outcome) => {
            let (document, code) = match outcome {
                Ok(config) => {
                    let kinds: Vec<_> = config.kinds.iter().map(|kind| kind.name()).collect();
                    (json!({"file": file.to_string(), "kinds": kinds, "errors": []}), ExitCode::SUCCESS)
                }
                Err(Bad::Wrong(errors)) => {
                    (json!({"file": file.to_string(), "kinds": [], "errors": errors.violations()}), ExitCode::from(2))
                }
                Err(Bad::Unreadable(message)) => (
                    json!({"file": file.to_string(), "kinds": [], "errors": [{"message": message}]}),
                    ExitCode::from(2),
                ),
            };
            writeln!(io::stdout(), "{document:#}")?;
            Ok(code)
        }
    }
}
