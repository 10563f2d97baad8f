//! `leasehold hand-over`: asks the holder of a kind to give it to another replica, and waits until that is done. The kinds
//! of a group move together.

use std::{io::Write as _, pin::pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
    runtime::watcher,
};
use leasehold::{
    protocol::{
        lease::{Holding, Member},
        membership::Activity,
        roster,
    },
    replica::{
        connections::WATCH_TIMEOUT,
        record::{self, HAND_OVER_ANNOTATION, INSTANCE_LABEL, Lease},
    },
};
use serde_json::json;
use tokio::time::{Instant, timeout};

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

/// A Lease of kinds.
struct Shard {
    name: String,
    /// The one that is meant, or the first.
    kind: String,
    kinds: Vec<String>,
    holding: Holding,
}

/// The Leases of one installation.
struct Installation {
    leases: Vec<Lease>,
    members: Vec<Member>,
}

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(hand_over(options))
}

async fn hand_over(options: &Options) -> Result<ExitCode, Failure> {
    let config = options.target.config().await?;
    let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let leases = record::leases(client(config).await?, &namespace);
    let installation = Installation::read(&leases, &namespace, options.instance.as_deref()).await?;
    let Shard { name, kind, kinds, holding } = installation.find(&options.kind, &namespace)?;
    let Some(from) = holding.holder.clone() else {
        return Err(anyhow!(
            "no replica holds {kind} now, so none can hand it over; the first one that can run it takes it"
        )
        .into());
    };
    let to = installation.choose(&name, &kind, &from, options.to.as_deref())?;
    if to == from {
        return report(options.output, &kind, &kinds, &name, (&from, &to), None);
    }
    let others: Vec<_> = kinds.iter().filter(|other| **other != kind).map(String::as_str).collect();
    if !others.is_empty() {
        options
            .output
            .say(&format!("{kind} shares the Lease {name} with {}: they move together", others.join(", ")))?;
    }
    options.output.say(&format!("{kind}: {from} is asked to hand over to {to}"))?;
    let began = now();
    ask(&leases, &name, Some(&to)).await.with_context(|| format!("failed to annotate the Lease {namespace}/{name}"))?;
    match timeout(Duration::from_secs(options.timeout), until_held(&leases, &name, &to, options.output)).await {
        Ok(Ok(())) => report(options.output, &kind, &kinds, &name, (&from, &to), Some(began.elapsed())),
        Ok(Err(error)) => {
            take_back(&leases, &name).await;
            Err(error.into())
        }
        Err(_elapsed) => {
            take_back(&leases, &name).await;
            let message = format!(
                "{kind} was not handed over within {} s and the request is taken back; the log of {from} says why",
                options.timeout
            );
            Err(anyhow!(message).into())
        }
    }
}

impl Installation {
    async fn read(leases: &Api<Lease>, namespace: &str, instance: Option<&str>) -> Result<Self, Failure> {
        let selector = instance.map_or_else(|| INSTANCE_LABEL.to_owned(), |name| format!("{INSTANCE_LABEL}={name}"));
        let all = leases.list(&ListParams::default().labels(&selector)).await;
        let all = all.with_context(|| format!("failed to list the Leases in namespace {namespace}"))?.items;
        let label = |lease: &Lease| lease.metadata.labels.as_ref()?.get(INSTANCE_LABEL).cloned();
        let mut instances: Vec<_> = all.iter().filter_map(label).collect();
        instances.sort();
        instances.dedup();
        match instances.as_slice() {
            [] => {
                let of = instance.map_or_else(String::new, |name| format!(" {name}"));
                Err(Failure::Usage(format!(
                    "namespace {namespace} has no Leases of an installation{of}; name theirs with --namespace"
                )))
            }
            [_one] => {
                let members = all.iter().filter_map(|lease| record::record(lease)?.member()).collect();
                Ok(Self { leases: all, members })
            }
            several => Err(Failure::Usage(format!(
                "namespace {namespace} has several installations, {}; name one with --instance",
                several.join(", ")
            ))),
        }
    }

    fn shards(&self) -> impl Iterator<Item = Shard> {
        self.leases.iter().filter_map(|lease| {
            let name = lease.metadata.name.clone()?;
            let mut kinds = record::kinds(lease);
            if kinds.is_empty() {
                kinds.push(name.clone());
            }
            let kind = kinds.first()?.clone();
            Some(Shard { name, kind, kinds, holding: record::record(lease)?.holding()? })
        })
    }

    /// The Lease that is meant, with the kind of it that is.
    fn find(&self, wanted: &str, namespace: &str) -> Result<Shard, Failure> {
        let is_kind = |kind: &str| {
            [kind, kind.split('.').next().unwrap_or(kind)].iter().any(|it| it.eq_ignore_ascii_case(wanted))
        };
        let meant = |shard: Shard| {
            let of_that_name = shard.name.eq_ignore_ascii_case(wanted);
            let kinds = shard.kinds.iter().filter(|kind| is_kind(kind)).cloned().collect::<Vec<_>>();
            let kinds = if kinds.is_empty() && of_that_name { vec![shard.kind.clone()] } else { kinds };
            kinds.into_iter().map(move |kind| {
                let (name, kinds, holding) = (shard.name.clone(), shard.kinds.clone(), shard.holding.clone());
                Shard { name, kind, kinds, holding }
            })
        };
        let mut found: Vec<_> = self.shards().flat_map(meant).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => {
                let kinds: Vec<_> = self.shards().flat_map(|shard| shard.kinds).collect();
                Err(Failure::Usage(format!(
                    "no kind {wanted} has a Lease in namespace {namespace}; there are {}. A kind whose `lock` is ConfigMap has none: annotate its ConfigMap with {HAND_OVER_ANNOTATION}=POD",
                    kinds.join(", ")
                )))
            }
            _ => {
                let kinds: Vec<_> = found.into_iter().map(|shard| shard.kind).collect();
                Err(Failure::Usage(format!("{wanted} may mean {}; write it with its group", kinds.join(", "))))
            }
        }
    }

    /// The holder identity of the replica that shall have it.
    fn choose(&self, lease: &str, kind: &str, from: &str, to: Option<&str>) -> Result<String, Failure> {
        let takes = |member: &&Member| member.profile.activity == Activity::Active && member.profile.can_run(lease);
        let able = || {
            let able = self.members.iter().filter(takes).filter(|member| member.identity != from);
            let able: Vec<_> = able.map(|member| member.identity.as_str()).collect();
            if able.is_empty() { "no other replica can".to_owned() } else { format!("{} can", able.join(", ")) }
        };
        let Some(to) = to else {
            let holdings: Vec<_> = self.shards().map(|shard| (shard.name, shard.holding)).collect();
            return roster::elsewhere(lease, from, &self.members, &holdings)
                .ok_or_else(|| anyhow!("no other replica can run {kind} now").into());
        };
        let named: Vec<_> = self.members.iter().filter(|it| it.identity == to || it.profile.pod == to).collect();
        match named.iter().copied().find(takes) {
            Some(member) => Ok(member.identity.clone()),
            None if named.is_empty() => Err(Failure::Usage(format!("there is no replica {to}; {}", able()))),
            None => Err(Failure::Usage(format!("{to} cannot run {kind} now; {}", able()))),
        }
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

/// Waits until `to` holds the Lease, and says what happens on the way.
async fn until_held(leases: &Api<Lease>, name: &str, to: &str, output: Output) -> anyhow::Result<()> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_TIMEOUT);
    let mut seen = (None, None);
    let mut changes = pin!(watcher(leases.clone(), config).map_err(anyhow::Error::from));
    while let Some(change) = changes.next().await {
        let lease = match change.context("failed to watch the Lease")? {
            watcher::Event::Apply(lease) | watcher::Event::InitApply(lease) => lease,
            watcher::Event::Delete(_) => return Err(anyhow!("the Lease {name} was deleted")),
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        let holding = record::record(&lease)
            .and_then(|record| record.holding())
            .with_context(|| format!("{name} is no Lease of a kind any more"))?;
        if holding.holder.as_deref() == Some(to) {
            return Ok(());
        }
        if holding.wanted.is_none() {
            let holder = holding.holder.unwrap_or_else(|| "no replica".to_owned());
            return Err(anyhow!("{holder} holds it now instead: {to} was not there to take it"));
        }
        let now = (holding.holder, holding.successor);
        if now != seen {
            match &now {
                (Some(holder), Some(successor)) => output.say(&format!("{holder} has named {successor}"))?,
                (None, _) => output.say("released")?,
                (Some(_), None) => {}
            }
            seen = now;
        }
    }
    Err(anyhow!("the watch of the Lease has ended"))
}

fn report(
    output: Output,
    kind: &str,
    kinds: &[String],
    lease: &str,
    (from, to): (&str, &str),
    took: Option<Duration>,
) -> Result<ExitCode, Failure> {
    match (output, took) {
        (Output::Json, took) => {
            let took = took.map_or(0, |took| took.as_millis());
            let document =
                json!({"kind": kind, "kinds": kinds, "lease": lease, "from": from, "to": to, "milliseconds": took});
            writeln!(out(), "{document:#}")?;
        }
        (Output::Text, Some(took)) => writeln!(out(), "{kind}: led by {to} after {} ms", took.as_millis())?,
        (Output::Text, None) => writeln!(out(), "{kind}: led by {to} already")?,
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "measures for people and decides nothing")]
fn now() -> Instant {
    Instant::now()
}
