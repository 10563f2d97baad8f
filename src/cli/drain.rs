//! `leasehold drain`: lets the objects of a kind go that no replica is configured for any more.
//!
//! A finalizer that nobody serves holds an object, and its namespace, for ever. This takes ours away, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::ApiResource,
    discovery,
};
use leasehold::{
    reconcile::{
        finalizer::{self, Written},
        name::Name,
    },
    sharding::{
        election::Version,
        record::{self, Lease},
    },
};
use serde_json::json;
use tokio::time::sleep;

use super::{Failure, Output, installation::Installation};

#[derive(Args)]
pub(super) struct Options {
    /// The kind with its group: `Widget.example.com`
    kind: String,
    /// Namespace of the Leases [default: the kubeconfig's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// The installation, if the namespace has several
    #[arg(long)]
    instance: Option<String>,
    /// Name of the kind's Lease, if it was configured with one of its own
    #[arg(long)]
    lease: Option<String>,
    /// Only say what would be let go
    #[arg(long)]
    dry_run: bool,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Between two looks whether a replica is alive.
const LOOK: Duration = Duration::from_secs(1);
/// A replica whose Lease does not say for how long it counts is waited for as long as one with the default timings.
const DURATION: Duration = Duration::from_secs(15);
/// Objects in one answer.
const PAGE: u32 = 500;
/// How often an object is tried that somebody else writes at the same time.
const ATTEMPTS: u32 = 5;

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(drain(options))
}

async fn drain(options: &Options) -> Result<ExitCode, Failure> {
    let Some((kind, group)) = options.kind.split_once('.') else {
        let message = format!("{} has no group; write <Kind>.<group>, such as Widget.example.com", options.kind);
        return Err(Failure::Usage(message));
    };
    let config = kube::Config::infer().await.context("no cluster to talk to: set KUBECONFIG")?;
    let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("failed to make a client")?;
    let resource = served(&client, kind, group).await?;
    let lease = options.lease.clone().unwrap_or_else(|| options.kind.to_ascii_lowercase());
    nobody_serves(options, &record::leases(client.clone(), &namespace), &namespace, &lease).await?;

    let finalizer = finalizer::name(&resource.kind);
    let mut released = Vec::new();
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = all.list(&page).await.with_context(|| format!("failed to list the objects of {}", options.kind))?;
        for object in list.items {
            if object.finalizers().contains(&finalizer) {
                let name = Name::of(&object);
                if !options.dry_run {
                    release(&client, &resource, object, &finalizer).await.with_context(|| name.to_string())?;
                }
                options.output.say(&format!("  {name}"))?;
                released.push(name);
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    report(options, &finalizer, &released)
}

/// The kind as the API server has it.
async fn served(client: &Client, kind: &str, group: &str) -> Result<ApiResource, Failure> {
    let unknown = |error: kube::Error| Failure::Usage(format!("the API server has no group {group}: {error}"));
    let found = discovery::group(client, group).await.map_err(unknown)?;
    let all: Vec<ApiResource> = found.recommended_resources().into_iter().map(|(resource, _)| resource).collect();
    let is_meant = |resource: &&ApiResource| resource.kind.eq_ignore_ascii_case(kind);
    all.iter().find(is_meant).cloned().ok_or_else(|| {
        let there: BTreeSet<_> = all.iter().map(|resource| resource.kind.as_str()).collect();
        let there: Vec<_> = there.into_iter().collect();
        Failure::Usage(format!("the group {group} has no kind {kind}; there are {}", there.join(", ")))
    })
}

/// Fails if a replica is configured for the kind and alive: by its word, that it renews its Lease while we look, and by no
/// clock but ours.
async fn nobody_serves(options: &Options, leases: &Api<Lease>, namespace: &str, lease: &str) -> Result<(), Failure> {
    let mut suspects: Option<BTreeMap<String, Version>> = None;
    let mut looks_left = 0;
    loop {
        let installation = match Installation::read(leases, namespace, options.instance.as_deref()).await {
            Ok(installation) => installation,
            // Where there is no Lease at all there is no replica.
            Err(Failure::Usage(_)) if options.instance.is_none() => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let configured: Vec<_> =
            installation.members.iter().filter(|member| member.profile.shards.contains(lease)).collect();
        let Some(suspects) = &suspects else {
            if configured.is_empty() {
                return Ok(());
            }
            let longest = configured.iter().filter_map(|member| member.duration).max().unwrap_or(DURATION);
            looks_left = longest.as_secs() + 1;
            let pods: Vec<_> = configured.iter().map(|member| member.profile.pod.as_str()).collect();
            options.output.say(&format!("looking for {} s whether {} is alive", longest.as_secs(), pods.join(", ")))?;
            let versions = configured.iter().map(|member| (member.name.clone(), member.version.clone()));
            suspects = Some(versions.collect());
            continue;
        };
        if let Some(alive) = configured.iter().find(|member| suspects.get(&member.name) != Some(&member.version)) {
            return Err(Failure::Usage(format!(
                "{} is configured for {}: take the kind out of the configuration, roll that out, and drain it then",
                alive.profile.pod, options.kind
            )));
        }
        if configured.is_empty() || looks_left == 0 {
            return Ok(());
        }
        looks_left -= 1;
        sleep(LOOK).await;
    }
}

/// Takes the finalizer away, from whatever version of the object there is.
async fn release(
    client: &Client,
    resource: &ApiResource,
    mut object: DynamicObject,
    finalizer: &str,
) -> anyhow::Result<()> {
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    for _ in 0..ATTEMPTS {
        if finalizer::remove(&api, &object, finalizer).await? == Written::Done {
            return Ok(());
        }
        match api.get_opt(&object.name_any()).await? {
            Some(now) => object = now,
            None => return Ok(()),
        }
    }
    Err(anyhow!("somebody else writes it all the time; try again"))
}

fn report(options: &Options, finalizer: &str, released: &[Name]) -> Result<ExitCode, Failure> {
    if options.output == Output::Json {
        let objects: Vec<_> =
            released.iter().map(|it| json!({"namespace": it.namespace(), "name": it.name()})).collect();
        let document =
            json!({"kind": options.kind, "finalizer": finalizer, "dryRun": options.dry_run, "objects": objects});
        writeln!(io::stdout(), "{document:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let (count, kind) = (released.len(), &options.kind);
    let what = match (count, options.dry_run) {
        (0, _) => format!("{kind}: no object bears {finalizer}"),
        (_, true) => format!("{kind}: {count} would be let go, which bear {finalizer}; nothing was written"),
        (_, false) => format!("{kind}: {count} let go, which bore {finalizer}; their children are as they were"),
    };
    options.output.say(&what)?;
    Ok(ExitCode::SUCCESS)
}
