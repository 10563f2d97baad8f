//! `make bench`: how fast a kind changes hands, and what standing by costs, on a real control plane.
//!
//! All times are the API server's own, of its audit log, except the moment of a signal, which is this machine's and so
//! by the same clock. `-o json` prints JSON instead of the table, `--json FILE` writes it to a file as well:
//! `make bench ARGS='--json figures.json'`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the output of a command")]

mod field;
mod record;
mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::Signal;

use field::{Elector, Field, resident};
use record::{Handover, handover, lease_requests};
use report::Report;

const CLEAN_TRIALS: usize = 7;
const CRASH_TRIALS: usize = 3;
const REPLICAS: [usize; 3] = [2, 3, 5];

/// Our watches end by themselves after this time, so that each is counted once.
const WINDOW: Duration = Duration::from_secs(15);
/// Renewals, probes and watches have found their pace.
const SETTLE: Duration = Duration::from_secs(5);

const OURS: &str = "bench-ours";
const THEIRS: &str = "bench-client-go";
const SHIPPED: &str = "leasehold-system";

struct Arguments {
    only_json: bool,
    file: Option<PathBuf>,
}

impl Arguments {
    /// Nothing, unless cargo says that this is to be measured: `cargo test --all-targets` comes here too.
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut arguments, mut measure) = (Self { only_json: false, file: None }, false);
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--bench" => measure = true,
                "-o" if given.next().as_deref() == Some("json") => arguments.only_json = true,
                "--json" => arguments.file = Some(given.next().context("--json FILE")?.into()),
                _ => bail!("usage: figures [-o json] [--json FILE]"),
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
    say("starting the control plane");
    let field = Field::start().await?;
    let mut report = Report::default();
    ours_change_hands(&field, &mut report).await?;
    theirs_change_hands(&field, &mut report).await?;
    idle(&field, &mut report).await?;
    drop(field);
    let json = serde_json::to_string_pretty(&report.json()?)?;
    if let Some(file) = arguments.file {
        std::fs::write(&file, &json).with_context(|| format!("failed to write {}", file.display()))?;
    }
    if arguments.only_json {
        println!("{json}");
    } else {
        println!("\n{}", report.table()?);
    }
    Ok(())
}

/// Two replicas of the library, one kind whose reconciler writes every 20 ms.
async fn ours_change_hands(field: &Field, report: &mut Report) -> Result<()> {
    say("leasehold: two replicas, one kind, default timings");
    field.observers(OURS).await?;
    let mut clean = Vec::new();
    for trial in 1..=CLEAN_TRIALS {
        clean.push(ours_once(field, Signal::TERM).await?);
        say(&format!("leasehold: clean handover {trial} of {CLEAN_TRIALS}"));
    }
    clean_figures("leasehold", &clean, report)?;
    let gaps = clean.iter().map(|(_, handover)| work_gap(handover)).collect::<Result<_>>()?;
    report.add("leasehold: clean, last write of the old to first of the new", "ms", gaps);
    let mut crashes = Vec::new();
    for trial in 1..=CRASH_TRIALS {
        crashes.push(ours_once(field, Signal::KILL).await?);
        say(&format!("leasehold: crash {trial} of {CRASH_TRIALS}"));
    }
    let of_signal = |(at, handover): &(Timestamp, Handover)| millis(*at, handover.acquired) / 1000.0;
    report.add("leasehold: crash, SIGKILL to acquisition (15 s Lease)", "s", crashes.iter().map(of_signal).collect());
    let silence = |(_, handover): &(_, Handover)| millis(handover.renewed, handover.acquired) / 1000.0;
    report.add("leasehold: crash, last renewal to acquisition", "s", crashes.iter().map(silence).collect());
    let gaps = crashes.iter().map(|(_, handover)| Ok(work_gap(handover)? / 1000.0)).collect::<Result<_>>()?;
    report.add("leasehold: crash, last write of the old to first of the new", "s", gaps);
    field.cluster.kubectl(&["delete", "deployment", "observer", "-n", OURS, "--cascade=foreground"]).await?;
    Ok(())
}

async fn ours_once(field: &Field, signal: Signal) -> Result<(Timestamp, Handover)> {
    let old = field.held(OURS, 1, "").await?.remove(0);
    let pod = old.rsplit_once('_').map_or(old.as_str(), |(pod, _)| pod);
    let at = now();
    field.kubelet.signal(OURS, pod, signal)?;
    field.held(OURS, 1, &old).await?;
    field.stands_by(pod, at).await?;
    // The new one writes, and the next signal meets it at another time after its last renewal.
    tokio::time::sleep(Duration::from_millis(fastrand::u64(1000..3000))).await;
    Ok((at, handover(&field.cluster, OURS, &old)?))
}

/// Two client-go electors at the same timings, each trial with a new one for the one that was stopped.
async fn theirs_change_hands(field: &Field, report: &mut Report) -> Result<()> {
    say("client-go: two electors, one Lease, the same timings, ReleaseOnCancel");
    let create = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {THEIRS}}}}}");
    field.cluster.apply(&create).await?;
    let mut electors = vec![field.elector(THEIRS, "one", "elector-0")?];
    let mut clean = Vec::new();
    for trial in 1..=CLEAN_TRIALS {
        electors.push(field.elector(THEIRS, "one", &format!("elector-{trial}"))?);
        // Its reads have begun, and the signal comes at any time between two of them.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1000..3000))).await;
        let old = field.held(THEIRS, 1, "").await?.remove(0);
        let holder = electors.iter().position(|elector| elector.identity == old).context("the holder runs")?;
        let at = now();
        electors[holder].signal(Signal::TERM)?;
        field.held(THEIRS, 1, &old).await?;
        electors.remove(holder);
        clean.push((at, handover(&field.cluster, THEIRS, &old)?));
        say(&format!("client-go: clean handover {trial} of {CLEAN_TRIALS}"));
    }
    clean_figures("client-go", &clean, report)
}

fn clean_figures(of: &str, trials: &[(Timestamp, Handover)], report: &mut Report) -> Result<()> {
    let released = |(_, handover): &(_, Handover)| {
        let released = handover.released.context("a clean stop releases the Lease")?;
        Ok(millis(released, handover.acquired))
    };
    let release = trials.iter().map(released).collect::<Result<_>>()?;
    report.add(format!("{of}: clean, release to acquisition"), "ms", release);
    let of_signal = |(at, handover): &(Timestamp, Handover)| millis(*at, handover.acquired);
    report.add(format!("{of}: clean, SIGTERM to acquisition"), "ms", trials.iter().map(of_signal).collect());
    Ok(())
}

/// What is shipped, without objects, beside client-go electors for as many Leases: requests and memory.
async fn idle(field: &Field, report: &mut Report) -> Result<()> {
    field.install().await?;
    let mut electors: Vec<Elector> = Vec::new();
    let seconds = WINDOW.as_secs_f64();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut leading, mut standby) = (Vec::new(), Vec::new());
    let idle = format!("{THEIRS}-idle");
    field.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {idle}}}}}")).await?;
    for replicas in REPLICAS {
        say(&format!("idle: {replicas} replicas, two kinds, {} s", WINDOW.as_secs()));
        let scale = format!("--replicas={replicas}");
        field.cluster.kubectl(&["scale", "deployment/leasehold", "-n", SHIPPED, &scale]).await?;
        for replica in electors.len() / 2..replicas {
            for lease in ["one", "two"] {
                electors.push(field.elector(&idle, lease, &format!("elector-{replica}"))?);
            }
        }
        field.cluster.kubectl(&["rollout", "status", "deployment/leasehold", "-n", SHIPPED, "--timeout=90s"]).await?;
        let pods = field.running(SHIPPED, replicas).await?;
        field.held(SHIPPED, 2, "").await?;
        field.held(&idle, 2, "").await?;
        tokio::time::sleep(SETTLE).await;
        let from = now();
        tokio::time::sleep(WINDOW).await;
        let to = now();
        ours.push((replicas, f64::from(lease_requests(&field.cluster, SHIPPED, from, to)?) / seconds));
        theirs.push((replicas, f64::from(lease_requests(&field.cluster, &idle, from, to)?) / seconds));
        if Some(&replicas) == REPLICAS.last() {
            let holders = field.held(SHIPPED, 2, "").await?;
            for pod in pods {
                let pid = *field.kubelet.pids(SHIPPED, &pod).first().context("the replica runs")?;
                let leads = holders.iter().any(|holder| holder.rsplit_once('_').is_some_and(|(of, _)| of == pod));
                if leads { &mut leading } else { &mut standby }.push(resident(pid)?);
            }
        }
    }
    for (of, rates) in [("leasehold", ours), ("client-go", theirs)] {
        for (replicas, rate) in rates {
            report.add(format!("{of}: idle Lease requests, {replicas} replicas, 2 Leases"), "1/s", vec![rate]);
        }
    }
    report.add("leasehold: memory (VmRSS) of a replica standing by, as shipped", "MiB", standby);
    report.add("leasehold: memory (VmRSS) of a leading replica, no objects, as shipped", "MiB", leading);
    Ok(())
}

fn work_gap(handover: &Handover) -> Result<f64> {
    let (last, first) = handover.work.context("both holders worked")?;
    Ok(millis(last, first))
}

fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the API server's record, which is by this machine's clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}
