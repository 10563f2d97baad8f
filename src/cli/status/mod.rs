//! `leasehold status` and `leasehold explain`: who leads what, and why, for the person on call and for scripts.

mod explain;
mod installation;
mod reach;
mod screen;
mod show;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use leasehold::ops::picture::{Kind, Picture, State, Verdict};
use serde::Serialize;
use tokio::time::sleep;

use self::{
    explain::Explanation,
    installation::{Seen, picture},
    reach::{Looks, Reach, Via, now},
    screen::Screen,
};
use super::{Failure, out::out, target::Target};

/// How what was found is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Wide,
    Json,
    Yaml,
}

/// Which installation, and how it is read.
#[derive(Args)]
struct Of {
    /// Namespace of the Leases [default: the kubeconfig's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// The installation, if the namespace has several
    #[arg(long)]
    instance: Option<String>,
    /// How the replicas are asked
    #[arg(long, value_enum, default_value_t = Via::ApiServer)]
    via: Via,
    #[command(flatten)]
    target: Target,
}

impl Of {
    async fn open(&self) -> Result<Reach, Failure> {
        Reach::open(&self.target, self.namespace.as_deref(), self.instance.as_deref(), self.via).await
    }
}

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    of: Of,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// Look again and again; on a terminal in place, else a line for each change
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Tell by the exit code whether each kind is led by just one replica
    #[arg(long, conflicts_with = "watch")]
    check: bool,
    /// How long to wait for that, in seconds; a handover that goes on takes less than one
    #[arg(long, value_name = "SECONDS", default_value_t = 3, requires = "check")]
    timeout: u64,
}

/// What `--help` says of the exit codes.
pub(super) const EXIT_CODES: &str = "Exit codes:
  0  it was printed; with --check: each kind is led by just one replica
  1  an error; with --check: a kind is not led, or by more than one
  2  the command line is wrong, or there is no such installation; with --check: it could not be found out";

#[derive(Args)]
pub(super) struct ExplainOptions {
    /// The kind: `Widget`, `Widget.example.com`, or the name of its Lease
    kind: String,
    #[command(flatten)]
    of: Of,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// Between two looks of a check.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if options.check {
            return check(options).await;
        }
        let reach = options.of.open().await?;
        if options.watch {
            return watch(options, &reach).await;
        }
        let picture = picture(&reach.look(&mut Looks::default(), None).await?);
        print(&picture, options.output, show::status)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Whatever keeps it from being found out is exit code 2.
async fn check(options: &Options) -> Result<ExitCode, Failure> {
    let found = found_out(options).await;
    let picture = found.map_err(|failure| Failure::Usage(failure.to_string()))?;
    print(&picture, options.output, show::status)?;
    Ok(match picture.verdict() {
        Verdict::Led => ExitCode::SUCCESS,
        Verdict::NotLed => ExitCode::FAILURE,
        Verdict::Undecided => ExitCode::from(2),
    })
}

/// Looks until each kind is led, or the time is over. Whether a holder renews that was not reached shows within its Lease's
/// duration.
async fn found_out(options: &Options) -> Result<Picture, Failure> {
    let reach = options.of.open().await?;
    let mut looks = Looks::default();
    let until = now() + Duration::from_secs(options.timeout);
    loop {
        let picture = picture(&reach.look(&mut looks, None).await?);
        let looks_on = picture.kinds.iter().any(|kind| kind.state == State::Held);
        let done = match picture.verdict() {
            Verdict::Led => true,
            Verdict::NotLed => now() >= until,
            Verdict::Undecided => now() >= until && !looks_on,
        };
        if done {
            return Ok(picture);
        }
        sleep(LOOK).await;
    }
}

async fn watch(options: &Options, reach: &Reach) -> Result<ExitCode, Failure> {
    let mut signals = pin!(leasehold::shutdown_signals()?);
    let mut looks = Looks::default();
    let is_table = matches!(options.output, Form::Table | Form::Wide);
    let screen = if is_table { Screen::enter()? } else { None };
    let mut lines = Lines::default();
    let mut last = String::new();
    loop {
        let looked = tokio::select! {
            looked = reach.look(&mut looks, None) => looked,
            _ = signals.next() => break,
        };
        match (looked.map(|seen| picture(&seen)), &screen) {
            (Ok(picture), Some(screen)) => {
                last = show::status(&picture, options.output == Form::Wide);
                screen.draw(&last)?;
            }
            // What was seen last stays in sight.
            (Err(failure), Some(screen)) => {
                screen.draw(&format!("{}\n\n{last}", text::sentence(&failure.to_string())))?
            }
            (Ok(picture), None) if is_table => lines.tell(&picture)?,
            (Ok(picture), None) if options.output == Form::Json => {
                writeln!(out(), "{}", text::json(&document(&picture)?, false))?;
            }
            (Ok(picture), None) => write!(out(), "---\n{}", yaml(&picture)?)?,
            (Err(failure @ Failure::Usage(_)), None) => return Err(failure),
            (Err(failure), None) => super::logging::last_words(&failure),
        }
        tokio::select! {
            () = sleep(Duration::from_secs(options.interval)) => {}
            _ = signals.next() => break,
        }
    }
    if screen.is_some() {
        drop(screen);
        // What was seen last stays.
        write!(out(), "{last}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each kind, and later for each that has changed.
#[derive(Default)]
struct Lines(BTreeMap<(String, String), (State, Option<String>)>);

impl Lines {
    fn tell(&mut self, picture: &Picture) -> io::Result<()> {
        self.changed(picture).iter().try_for_each(|line| writeln!(out(), "{line}"))
    }

    fn changed(&mut self, picture: &Picture) -> Vec<String> {
        let mut lines = Vec::new();
        let mut now = BTreeMap::new();
        for kind in &picture.kinds {
            let called = (kind.kind.clone(), kind.lease.clone());
            let is = (kind.state, kind.holder.clone());
            if self.0.get(&called) != Some(&is) {
                lines.push(show::line(kind));
            }
            now.insert(called, is);
        }
        let gone = self.0.keys().filter(|called| !now.contains_key(called));
        lines.extend(gone.map(|(kind, _)| format!("{} is configured no more", text::name(kind))));
        self.0 = now;
        lines
    }
}

pub(super) fn explain(options: &ExplainOptions) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let reach = options.of.open().await?;
        let seen = reach.look(&mut Looks::default(), None).await?;
        let (kind, lease) = find(&picture(&seen), &options.kind)?;
        let all: Seen = reach.look(&mut Looks::default(), Some(&kind)).await?;
        let told = explain::explain(&all, &kind, &lease).or_else(|| explain::explain(&seen, &kind, &lease));
        let told = told.with_context(|| format!("{kind} has gone while it was looked at"))?;
        print(&told, options.output, |told: &Explanation, _wide| show::explanation(told))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The kind that is meant, with its Lease.
fn find(picture: &Picture, wanted: &str) -> Result<(String, String), Failure> {
    let is_meant = |kind: &Kind| {
        let short = kind.kind.split('.').next().unwrap_or(&kind.kind);
        [short, &kind.kind, &kind.lease].iter().any(|it| it.eq_ignore_ascii_case(wanted))
    };
    let found: Vec<_> = picture.kinds.iter().filter(|kind| is_meant(kind)).collect();
    let names = |kinds: &[&Kind]| {
        let names: Vec<_> = kinds.iter().map(|kind| text::name(&kind.kind)).collect();
        names.join(", ")
    };
    match found.as_slice() {
        [one] => Ok((one.kind.clone(), one.lease.clone())),
        [] => {
            let all: Vec<_> = picture.kinds.iter().collect();
            let there = if all.is_empty() { "none".to_owned() } else { names(&all) };
            Err(Failure::Usage(format!("no kind is called {wanted}; there are {there}")))
        }
        several => Err(Failure::Usage(format!("{wanted} may mean {}; write it with its group", names(several)))),
    }
}

fn document(what: &impl Serialize) -> anyhow::Result<serde_json::Value> {
    serde_json::to_value(what).context("failed to write it as JSON")
}

/// By way of JSON, whose text has no character left that a terminal acts on.
fn yaml(what: &impl Serialize) -> anyhow::Result<String> {
    let mut document = document(what)?;
    make_plain(&mut document);
    serde_yaml::to_string(&document).map_err(|error| anyhow!("failed to write it as YAML: {error}"))
}

fn make_plain(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(said) => *said = text::plain(said),
        serde_json::Value::Array(items) => items.iter_mut().for_each(make_plain),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(make_plain),
        _ => {}
    }
}

fn print<T: Serialize>(what: &T, form: Form, table: impl Fn(&T, bool) -> String) -> Result<(), Failure> {
    let shown = match form {
        Form::Table => table(what, false),
        Form::Wide => table(what, true),
        Form::Json => format!("{}\n", text::json(&document(what)?, true)),
        Form::Yaml => yaml(what)?,
    };
    write!(out(), "{shown}")?;
    Ok(())
}
