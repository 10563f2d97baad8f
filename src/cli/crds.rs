//! `leasehold crds`: the definitions of the built-in kinds.

use std::{fs, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use leasehold::kinds;

use super::{Failure, out::out};

#[derive(Args)]
pub(super) struct Options {
    /// Write one file a CRD into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// With the conversion webhook behind this Service, as deploy/webhooks has it; every version is served then
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service)]
    webhooks: Option<(String, String)>,
}

fn service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => {
            Err("expected the namespace and the name of a Service, such as leasehold-system/leasehold-webhooks"
                .to_owned())
        }
    }
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let service = options.webhooks.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
    for crd in kinds::crds(service).context("the versions of a kind do not fit together")? {
        let yaml = kinds::crd_yaml(&crd).context("failed to write a CRD as YAML")?;
        match &options.dir {
            Some(dir) => {
                let file = dir.join(kinds::crd_file(&crd));
                fs::write(&file, yaml).with_context(|| format!("failed to write {}", file.display()))?;
                writeln!(out(), "{}", file.display())?;
            }
            None => write!(out(), "---\n{yaml}")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
