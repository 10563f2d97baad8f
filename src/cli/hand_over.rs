//! `leasehold hand-over`: asks the holder of a kind to give it to another replica, and waits until that is done. The kinds
//! of a group move together. Without `--to`, a replica that turns out to have gone is replaced by another one.

mod installation;

use std::{io::Write as _, pin::pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    runtime::watcher,
};
use leasehold::replica::{
    connections::WATCH_TIMEOUT,
    record::{self, HAND_OVER_ANNOTATION, INSTANCE_LABEL, Lease},
};
use serde_json::json;
use tokio::time::{Instant, interval, timeout};

use self::installation::{Installation, Shard};
use super::{Failure, Output, client, out::out, target::Target};

#[derive(Args)]
pub(super) struct Options {
    /// The kind: `Widget`, `Widget.example.com`, or the name of its Lease; the kinds of a group move together
    kind: String,
    /// The replica that shall have it, by its Pod's name or its holder identity [default: where placement would put it]
    #[arg(long, value_name = "REPLICA")]
    to: Option<String>,
    /// Namespace of the Leases [default: the kubeconfig's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// The installation, if the namespace has several
    #[arg(long)]
    instance: Option<String>,
    /// How long to wait, in seconds; after that the request is taken back
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// Between two looks whether the replica that is asked for is still there.
const LOOK: Duration = Duration::from_secs(1);

/// What has become of a request.
enum Outcome {
    /// It waits.
    Open,
    /// The Lease is held by this one, as it was asked.
    Led(String),
    /// The holder is the one that was asked, and the request is not on the Lease any more.
    Forgotten,
}

/// What is asked of the holder of a Lease.
struct Request<'a> {
    leases: &'a Api<Lease>,
    installation: Installation,
    shard: Shard,
    from: String,
    /// The replica that shall have it.
    to: String,
    /// Another one may be chosen if that one has gone.
    any: bool,
    output: Output,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(hand_over(options))
}

async fn hand_over(options: &Options) -> Result<ExitCode, Failure> {
    let config = options.target.config().await?;
    let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = client(config).await?;
    let leases = record::leases(client.clone(), &namespace);
    let mut installation = read(&leases, &namespace, options.instance.as_deref()).await?;
    // Who may not list them goes by the Leases alone, which takes longer.
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    if let Ok(pods) = pods.list_metadata(&ListParams::default()).await {
        installation.know_pods(&pods.items.iter().map(|pod| pod.name_any()).collect());
    }
    let shard = installation.find(&options.kind, &namespace)?;
    let Some(from) = shard.holding.holder.clone() else {
        return Err(anyhow!(
            "no replica holds {} now, so none can hand it over; the first one that can run it takes it",
            shard.kind
        )
        .into());
    };
    let to = installation.choose(&shard, &from, options.to.as_deref(), now())?;
    if to == from {
        return report(options.output, &shard, (&from, &to), None);
    }
    let others: Vec<_> = shard.kinds.iter().filter(|other| **other != shard.kind).map(String::as_str).collect();
    if !others.is_empty() {
        let (kind, name, others) = (&shard.kind, &shard.name, others.join(", "));
        options.output.say(&format!("{kind} shares the Lease {name} with {others}: they move together"))?;
    }
    options.output.say(&format!("{}: {from} is asked to hand over to {to}", shard.kind))?;
    let began = now();
    let (any, output) = (options.to.is_none(), options.output);
    let mut request = Request { leases: &leases, installation, shard, from, to, any, output };
    request.ask().await?;
    let outcome = timeout(Duration::from_secs(options.timeout), request.until_led()).await;
    let Request { shard, from, .. } = &request;
    match outcome {
        Ok(Ok(by)) => report(options.output, shard, (from, &by), Some(began.elapsed())),
        Ok(Err(error)) => {
            take_back(&leases, &shard.name).await;
            Err(error.into())
        }
        Err(_elapsed) => {
            take_back(&leases, &shard.name).await;
            let message = format!(
                "{} was not handed over within {} s and the request is taken back; the log of {from} says why",
                shard.kind, options.timeout
            );
            Err(anyhow!(message).into())
        }
    }
}

/// The Leases of the installation that is meant.
async fn read(leases: &Api<Lease>, namespace: &str, instance: Option<&str>) -> Result<Installation, Failure> {
    let selector = instance.map_or_else(|| INSTANCE_LABEL.to_owned(), |name| format!("{INSTANCE_LABEL}={name}"));
    let all = leases.list(&ListParams::default().labels(&selector)).await;
    let all = all.with_context(|| format!("failed to list the Leases in namespace {namespace}"))?.items;
    Installation::of(all, namespace, instance, now())
}

impl Request<'_> {
    /// Waits until the Lease is held as it is asked, and says what happens on the way; returns the new holder.
    async fn until_led(&mut self) -> anyhow::Result<String> {
        let selector = format!("{INSTANCE_LABEL}={}", self.installation.name);
        let config = watcher::Config::default().labels(&selector).timeout(WATCH_TIMEOUT);
        let mut changes = pin!(watcher(self.leases.clone(), config));
        let mut look = interval(LOOK);
        let mut told = (None, None);
        loop {
            tokio::select! {
                change = changes.next() => {
                    let change = change.context("the watch of the Leases has ended")?;
                    self.installation.see(change.context("failed to watch the Leases")?, now());
                }
                _ = look.tick() => {}
            }
            match self.outcome(&mut told)? {
                Outcome::Led(holder) => return Ok(holder),
                Outcome::Forgotten => {
                    self.output.say(&format!("{} has begun another term, and is asked again", self.from))?;
                    self.ask().await?;
                }
                Outcome::Open => {}
            }
            if let Some(why) = self.installation.absence(&self.shard.name, &self.to, now()) {
                self.choose_another(&why)?;
                self.ask().await?;
            }
        }
    }

    /// Writes the request on the Lease.
    async fn ask(&mut self) -> anyhow::Result<()> {
        let name = &self.shard.name;
        let asked = ask(self.leases, name, Some(&self.to)).await;
        let asked = asked.with_context(|| format!("failed to annotate the Lease {name}"))?;
        self.installation.apply(asked, now());
        self.shard.holding = self.installation.holding(name)?;
        Ok(())
    }

    /// What the Lease says of it now.
    fn outcome(&self, told: &mut (Option<String>, Option<String>)) -> anyhow::Result<Outcome> {
        let Self { shard, from, to, .. } = self;
        let holding = self.installation.holding(&shard.name)?;
        if holding.holder.as_ref() == Some(to) {
            return Ok(Outcome::Led(to.clone()));
        }
        if holding.wanted.is_none() {
            return match holding.holder {
                // Who takes a Lease takes the request off it; a holder does so too that has given up a handover halfway.
                Some(holder) if holder == *from && holding.transitions != shard.holding.transitions => {
                    Ok(Outcome::Forgotten)
                }
                Some(holder) if holder == *from => Err(anyhow!("another client has taken the request back")),
                Some(holder) if self.any => Ok(Outcome::Led(holder)),
                holder => {
                    let holder = holder.unwrap_or_else(|| "no replica".to_owned());
                    Err(anyhow!("{holder} holds it now instead: {to} was not there to take it"))
                }
            };
        }
        let now = (holding.holder, holding.successor);
        if now != *told {
            match &now {
                (Some(holder), Some(successor)) => self.output.say(&format!("{holder} has named {successor}"))?,
                (None, _) => self.output.say("released")?,
                (Some(_), None) => {}
            }
            *told = now;
        }
        Ok(Outcome::Open)
    }

    /// The replica that was asked for does not come: another one shall have it, unless that one alone was meant.
    fn choose_another(&mut self, why: &str) -> anyhow::Result<()> {
        let Self { shard, from, to, .. } = self;
        let kind = &shard.kind;
        if !self.any {
            let able = self.installation.able(&shard.name, from, now());
            return Err(anyhow!("{to} {why}: {kind} is not handed over and the request is taken back; {able}"));
        }
        let Ok(next) = self.installation.choose(shard, from, None, now()) else {
            return Err(anyhow!("{to} {why}, and no other replica can run {kind} now; the request is taken back"));
        };
        self.output.say(&format!("{to} {why}; {from} is asked to hand over to {next} instead"))?;
        self.to = next;
        Ok(())
    }
}

/// Asks for a shard to be somewhere, or no longer.
async fn ask(leases: &Api<Lease>, name: &str, to: Option<&str>) -> kube::Result<Lease> {
    let patch = json!({"metadata": {"annotations": {HAND_OVER_ANNOTATION: to}}});
    leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn take_back(leases: &Api<Lease>, name: &str) {
    if let Err(error) = ask(leases, name, None).await {
        tracing::warn!(%error, lease = name, "failed to take the request back: remove {HAND_OVER_ANNOTATION} by hand");
    }
}

fn report(
    output: Output,
    shard: &Shard,
    (from, to): (&str, &str),
    took: Option<Duration>,
) -> Result<ExitCode, Failure> {
    let Shard { name, kind, kinds, .. } = shard;
    match (output, took) {
        (Output::Json, took) => {
            let took = took.map_or(0, |took| took.as_millis());
            let document =
                json!({"kind": kind, "kinds": kinds, "lease": name, "from": from, "to": to, "milliseconds": took});
            writeln!(out(), "{document:#}")?;
        }
        (Output::Text, Some(took)) => writeln!(out(), "{kind}: led by {to} after {} ms", took.as_millis())?,
        (Output::Text, None) => writeln!(out(), "{kind}: led by {to} already")?,
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "measures for people and decides what to ask for, not who leads")]
fn now() -> Instant {
    Instant::now()
}
