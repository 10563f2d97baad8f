//! `leasehold drain`: lets the objects of a kind go that no replica is configured for any more.
//!
//! A finalizer that no replica serves holds an object, and its namespace, for ever. This takes ours away, and nothing else.

use std::{collections::BTreeSet, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::{ApiResource, PartialObjectMeta},
    discovery,
};
use leasehold::{
    protocol::lease::Member,
    reconcile::{
        finalizer::{self, Written},
        name::Name,
    },
    replica::record::{self, INSTANCE_LABEL, KIND_ANNOTATION},
};
use serde_json::json;
use tokio::time::sleep;

use super::{Failure, Output, client, out::out, target::Target};

#[derive(Args)]
pub(super) struct Options {
    /// The kind with its group: `Widget.example.com`
    kind: String,
    /// Only say what would be let go
    #[arg(long)]
    dry_run: bool,
    /// How to print the outcome
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    target: Target,
}

/// Between two looks whether a replica is alive.
const LOOK: Duration = Duration::from_secs(1);
/// A replica whose Lease does not say for how long it counts is waited for as long as one with the default timings.
const DURATION: Duration = Duration::from_secs(15);
/// Objects in one answer.
const PAGE: u32 = 500;
/// How often an object is tried that another client writes at the same time.
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
    let config = options.target.config().await?;
    let client = client(config).await?;
    let resource = served(&client, kind, group).await?;
    no_replica_serves(options, &client).await?;

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

/// Fails if a replica is configured for the kind and alive, in whatever namespace and installation, for all of them have one
/// finalizer: by its word, that it renews its Lease while we look, and by no clock but ours.
async fn no_replica_serves(options: &Options, client: &Client) -> Result<(), Failure> {
    let suspects = configured(options, client).await?;
    if suspects.is_empty() {
        return Ok(());
    }
    let longest = suspects.iter().filter_map(|member| member.duration).max().unwrap_or(DURATION).as_secs();
    let pods: Vec<_> = suspects.iter().map(|member| member.profile.pod.as_str()).collect();
    options.output.say(&format!("looking for {longest} s whether {} is alive", pods.join(", ")))?;
    for _ in 0..=longest {
        sleep(LOOK).await;
        let now = configured(options, client).await?;
        let is_silent = |member: &Member| {
            suspects.iter().any(|before| (&before.name, &before.version) == (&member.name, &member.version))
        };
        if let Some(alive) = now.iter().find(|member| !is_silent(member)) {
            return Err(Failure::Usage(format!(
                "{} is configured for {}: take the kind out of the configuration, roll that out, and drain it then",
                alive.profile.pod, options.kind
            )));
        }
        if now.is_empty() {
            break;
        }
    }
    Ok(())
}

/// The replicas that say they are configured for the kind, by the name that its Lease has, or would have by default.
async fn configured(options: &Options, client: &Client) -> Result<Vec<Member>, Failure> {
    let ours = ListParams::default().labels(INSTANCE_LABEL);
    let all = record::all_leases(client.clone()).list(&ours).await;
    let all =
        all.context("failed to list the Leases of all namespaces, which tell whether a replica serves the kind")?;
    let of_kind = all.items.iter().filter(|lease| {
        record::annotation(lease, KIND_ANNOTATION).is_some_and(|kind| kind.eq_ignore_ascii_case(&options.kind))
    });
    let mut names: BTreeSet<String> = of_kind.filter_map(|lease| lease.metadata.name.clone()).collect();
    // A kind whose lock is a ConfigMap has no Lease.
    let locks: Api<ConfigMap> = Api::all(client.clone());
    let locks = locks.list_metadata(&ours).await;
    let locks = locks.context("failed to list the ConfigMaps of all namespaces that are locks of a kind")?;
    let is_of_kind = |lock: &PartialObjectMeta<ConfigMap>| {
        let kind = lock.metadata.annotations.as_ref().and_then(|annotations| annotations.get(KIND_ANNOTATION));
        kind.is_some_and(|kind| kind.eq_ignore_ascii_case(&options.kind))
    };
    names.extend(locks.items.into_iter().filter(is_of_kind).filter_map(|lock| lock.metadata.name));
    names.insert(options.kind.to_ascii_lowercase());
    let members = all.items.iter().filter_map(|lease| record::record(lease)?.member());
    Ok(members.filter(|member| names.iter().any(|name| member.profile.shards.contains(name))).collect())
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
    Err(anyhow!("another client writes it all the time; try again"))
}

fn report(options: &Options, finalizer: &str, released: &[Name]) -> Result<ExitCode, Failure> {
    if options.output == Output::Json {
        let objects: Vec<_> =
            released.iter().map(|it| json!({"namespace": it.namespace(), "name": it.name()})).collect();
        let document =
            json!({"kind": options.kind, "finalizer": finalizer, "dryRun": options.dry_run, "objects": objects});
        writeln!(out(), "{document:#}")?;
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
