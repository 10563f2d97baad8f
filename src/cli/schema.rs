//! `leasehold schema`: what the files may say, for editors.

use std::{io::Write as _, process::ExitCode};

use clap::{Args, ValueEnum};
use leasehold::{config::schema, kinds};

use super::{Failure, out::out};

#[derive(Args)]
pub(super) struct Options {
    /// Which file
    #[arg(value_enum, default_value_t = File::Configuration)]
    file: File,
}

#[derive(Clone, Copy, ValueEnum)]
enum File {
    Configuration,
    Composition,
    /// The values of the Helm chart
    Values,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let builtin: Vec<_> = kinds::builtin().iter().map(|builtin| builtin.name).collect();
    let schema = match options.file {
        File::Configuration => schema::configuration(&builtin),
        File::Composition => schema::composition(),
        File::Values => schema::values(&builtin),
    };
    writeln!(out(), "{schema:#}")?;
    Ok(ExitCode::SUCCESS)
}
