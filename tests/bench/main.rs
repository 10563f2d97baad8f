//! `make bench`: how evenly kinds spread, how fast one changes hands, what that costs, what composed kinds cost, an account
//! for each kind, and the largest objects, on a real control plane, beside replicas as people write them with client-go
//! today. And what shows an operator that something is wrong, and what becomes of kinds beside a grey replica.
//!
//! All times are the API server's own, of its audit log, except the moment of a signal, which is this machine's and so
//! by the same clock. `-o json` prints JSON instead of the table, `--json FILE` writes it to a file as well, `--only GROUP`
//! measures one group, `--quick` tries everything a few times only, `--grey deaf` is the group `grey` beside such a replica
//! only: `make bench ARGS='--quick --json figures.json'`.
#![expect(clippy::print_stdout, reason = "the output of a command")]

mod children;
mod crash;
mod field;
mod grey;
mod handover;
mod impersonation;
mod load;
mod memory;
mod placement;
mod record;
mod report;
mod signs;
mod spread;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use field::Field;
use grey::{ALL, Greyness};
use report::{Report, say};

const GROUPS: [&str; 10] =
    ["placement", "spread", "handover", "crash", "load", "children", "impersonation", "memory", "signs", "grey"];

struct Arguments {
    only_json: bool,
    file: Option<PathBuf>,
    only: Option<String>,
    grey: Vec<Greyness>,
    quick: bool,
}

impl Arguments {
    /// Nothing, unless cargo says that this is to be measured: `cargo test --all-targets` comes here too.
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut arguments, mut measure) =
            (Self { only_json: false, file: None, only: None, grey: ALL.into(), quick: false }, false);
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--bench" => measure = true,
                "--quick" => arguments.quick = true,
                "-o" if given.next().as_deref() == Some("json") => arguments.only_json = true,
                "--json" => arguments.file = Some(given.next().context("--json FILE")?.into()),
                "--only" => {
                    let group = given.next().filter(|group| GROUPS.contains(&group.as_str()));
                    arguments.only = Some(group.with_context(|| format!("--only one of {}", GROUPS.join(", ")))?);
                }
                "--grey" => {
                    let name = given.next().unwrap_or_default();
                    let one = ALL.into_iter().find(|greyness| greyness.name() == name);
                    let names = ALL.map(Greyness::name).join(", ");
                    arguments.grey = vec![one.with_context(|| format!("--grey one of {names}"))?];
                    arguments.only = Some("grey".to_owned());
                }
                _ => bail!(
                    "usage: figures [--only {}] [--grey NAME] [--quick] [-o json] [--json FILE]",
                    GROUPS.join("|")
                ),
            }
        }
        Ok(measure.then_some(arguments))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Some(arguments) = Arguments::parse(std::env::args().skip(1))? else {
        return Ok(());
    };
    let wanted = |group: &str| arguments.only.as_deref().is_none_or(|only| only == group);
    let mut report = Report::default();
    if wanted("placement") {
        placement::measure(&mut report);
    }
    if GROUPS[1..9].iter().any(|group| wanted(group)) {
        say("starting the control plane");
        let field = Field::start(wanted("children")).await?;
        if wanted("spread") {
            spread::measure(&field, if arguments.quick { 2 } else { 20 }, &mut report).await?;
        }
        if wanted("handover") {
            handover::measure(&field, if arguments.quick { 2 } else { 5 }, &mut report).await?;
        }
        if wanted("crash") {
            crash::measure(&field, if arguments.quick { 1 } else { 3 }, &mut report).await?;
        }
        if wanted("load") {
            load::measure(&field, &mut report).await?;
        }
        if wanted("children") {
            children::measure(&field, if arguments.quick { 1 } else { 3 }, &mut report).await?;
        }
        if wanted("impersonation") {
            let (trials, writes) = if arguments.quick { (1, 200) } else { (5, 500) };
            impersonation::measure(&field, trials, writes, &mut report).await?;
        }
        if wanted("memory") {
            memory::measure(&field, if arguments.quick { 100 } else { 1000 }, &mut report).await?;
        }
        if wanted("signs") {
            signs::measure(&field, &mut report).await?;
        }
    }
    if wanted("grey") {
        say("starting a control plane behind fault proxies");
        let field = Field::start_behind_proxies().await?;
        let (time, trials) = if arguments.quick { (60, 1) } else { (600, 3) };
        grey::measure(&field, &arguments.grey, Duration::from_secs(time), trials, &mut report).await?;
    }
    let json = serde_json::to_string_pretty(&report.json()?)?;
    if let Some(file) = &arguments.file {
        std::fs::write(file, &json).with_context(|| format!("failed to write {}", file.display()))?;
    }
    if arguments.only_json {
        println!("{json}");
    } else {
        println!("{}", report.table()?);
    }
    Ok(())
}
