//! Asks the API server whether a kind can be reconciled here: its CRD is served, and every permission it needs is granted.
//!
//! Asked before this replica competes for the kind's Lease, and again from time to time: a kind that cannot be
//! reconciled must not be led (rule 10), and one that has become possible must not wait for a restart.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams, core::GroupVersion, discovery};
use tokio::sync::mpsc;

use super::{
    problem::{describe, is_unserved},
    term::Access,
};
use crate::config::Kind;

/// Between two looks at a kind that can be reconciled.
const CONFIRM: Duration = Duration::from_secs(300);
/// First and longest pause between two looks at one that cannot.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the API server says of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kind can be reconciled.
    Runnable,
    /// It cannot, and why.
    Blocked(String),
    /// The API server did not say, and why.
    Unknown(String),
}

/// Looks again and again, and sends each verdict. Ends when nobody listens. Cancel safe.
pub async fn keep_asking(
    client: Client,
    shard: usize,
    kind: Arc<Kind>,
    needs: Vec<Access>,
    verdicts: mpsc::UnboundedSender<(usize, Verdict)>,
) {
    let mut pause = RETRY.0;
    loop {
        let verdict = ask(&client, &kind, &needs).await;
        let wait = if verdict == Verdict::Runnable {
            pause = RETRY.0;
            CONFIRM
        } else {
            let wait = pause;
            pause = (pause * 2).min(RETRY.1);
            wait
        };
        if verdicts.send((shard, verdict)).is_err() {
            return;
        }
        // All kinds of one replica would otherwise ask at the same instant.
        tokio::time::sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}

async fn ask(client: &Client, kind: &Kind, needs: &[Access]) -> Verdict {
    match look(client, kind, needs).await {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Unknown(format!(
            "the API server did not say whether {} can be reconciled: {}",
            kind.name(),
            describe(&error)
        )),
    }
}

async fn look(client: &Client, kind: &Kind, needs: &[Access]) -> Result<Verdict, kube::Error> {
    let group_version = GroupVersion::gv(&kind.group, &kind.version);
    let resource = match discovery::pinned_kind(client, &group_version.clone().with_kind(&kind.kind)).await {
        Ok((resource, _)) => resource,
        Err(error) if is_unserved(&error) => {
            return Ok(Verdict::Blocked(format!(
                "the API server does not serve {} {}: install its CRD",
                group_version.api_version(),
                kind.kind
            )));
        }
        Err(error) => return Err(error),
    };
    let own = ["list", "watch"].map(|verb| Access::new(verb, kind.group.clone(), resource.plural.clone()));
    let mut denied = Vec::new();
    for access in own.iter().chain(needs) {
        if !allowed(client, access).await? {
            let Access { group, resource, name, verb } = access;
            let dot = if group.is_empty() { "" } else { "." };
            let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            denied.push(format!("{verb} {resource}{dot}{group}{name}"));
        }
    }
    if denied.is_empty() {
        return Ok(Verdict::Runnable);
    }
    Ok(Verdict::Blocked(format!(
        "not allowed to {}: grant it with a ClusterRole, as deploy/rbac.yaml does",
        denied.join(", ")
    )))
}

async fn allowed(client: &Client, access: &Access) -> Result<bool, kube::Error> {
    let (resource, subresource) = match access.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (&*access.resource, None),
    };
    let attributes = ResourceAttributes {
        verb: Some(access.verb.to_owned()),
        group: Some(access.group.to_string()),
        resource: Some(resource.to_owned()),
        subresource,
        name: access.name.as_ref().map(ToString::to_string),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..Default::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
