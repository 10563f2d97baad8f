//! `leasehold crds`: the definitions of the built-in kinds.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use leasehold::kinds;

use super::Failure;

#[derive(Args)]
pub(super) struct Options {
    /// Write one file a CRD into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    for crd in kinds::crds() {
        let yaml = kinds::crd_yaml(&crd).context("failed to write a CRD as YAML")?;
        match &options.dir {
            Some(dir) => {
                let file = dir.join(kinds::crd_file(&crd));
                fs::write(&file, yaml).with_context(|| format!("failed to write {}", file.display()))?;
                writeln!(io::stdout(), "{}", file.display())?;
            }
            None => write!(io::stdout(), "---\n{yaml}")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
