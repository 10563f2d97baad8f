//! This replica's own Lease: how the others learn that it is there, what it can run and what it is prepared for.
//!
//! It decides nothing and nobody waits for it: a replica whose membership cannot be written leads what the others leave.
//! The name is new for each process, so that two processes never write one membership Lease.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{
    elector::Shared,
    problem,
    record::{self, Lease},
};
use crate::protocol::{election::Version, roster::Profile};

/// A membership is renewed this many times within its duration, so that one lost renewal is not taken for a departure.
const RENEWALS: u32 = 3;

/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(5);

/// What has become of the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It was written at least once.
    pub published: bool,
    /// The last write failed, and how.
    pub trouble: Option<String>,
}

/// The membership of this process, on what its electors share.
pub struct Membership(pub Shared);

impl Membership {
    /// Publishes each profile and renews it, until a profile is `None`: then the Lease is deleted and this returns.
    /// Cancel safe; a membership that is not deleted is silent, and collected by others.
    pub async fn run(
        this: Arc<Self>,
        mut profiles: watch::Receiver<Option<Profile>>,
        standing: watch::Sender<Standing>,
    ) {
        let name = name_of(&this.0.identity);
        let mut stored: Option<Lease> = None;
        loop {
            let profile = profiles.borrow_and_update().clone();
            let Some(profile) = profile else {
                if let Some(version) = stored.as_ref().and_then(record::version) {
                    this.delete(&name, version).await;
                }
                return;
            };
            let written = this.write(stored.take(), &name, &profile).await;
            let wait = if written.is_ok() {
                this.0.timings.lease_duration / RENEWALS
            } else {
                this.0.timings.request_timeout / 2
            };
            standing.send_if_modified(|standing| {
                let new = Standing {
                    published: standing.published || written.is_ok(),
                    trouble: written.as_ref().err().cloned(),
                };
                if let (true, Some(trouble)) = (*standing != new, &new.trouble) {
                    warn!(lease = name, "the other replicas do not see this one: {trouble}");
                }
                std::mem::replace(standing, new.clone()) != new
            });
            stored = written.ok();
            let again = this.0.clock.now() + wait;
            tokio::select! {
                changed = profiles.changed() => match changed {
                    Ok(()) => tokio::time::sleep(TOGETHER).await,
                    Err(_closed) => return,
                },
                () = this.0.clock.sleep_until(again) => {}
            }
        }
    }

    /// Deletes a Lease at exactly this version; whatever else is there now stays.
    pub async fn delete(&self, name: &str, version: Version) {
        let preconditions = Preconditions { uid: Some(version.uid), resource_version: Some(version.resource_version) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted =
            tokio::time::timeout(self.0.timings.request_timeout, self.0.leases.delete(name, &parameters)).await;
        let outcome = match &deleted {
            Ok(Ok(_)) => "ok",
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => "conflict",
            Ok(Err(_)) => "error",
            Err(_elapsed) => "timeout",
        };
        self.0.metrics.lease_request("delete", outcome);
        match deleted {
            Ok(Err(error)) if outcome == "error" => {
                warn!(lease = name, "{}", problem::of_lease_request(&error, "delete", &self.0.namespace));
            }
            _ => debug!(lease = name, outcome, "lease collected"),
        }
    }

    /// Writes the profile over what we stored last; whatever is in its way is read by the next attempt.
    async fn write(&self, stored: Option<Lease>, name: &str, profile: &Profile) -> Result<Lease, String> {
        let (verb, mut lease) = match stored {
            Some(lease) => ("update", lease),
            None => match self.request("get", self.0.leases.get_opt(name)).await? {
                Some(lease) => ("update", lease),
                None => ("create", record::new(name, &self.0.namespace)),
            },
        };
        self.sign(&mut lease, profile)?;
        let parameters = PostParams::default();
        match verb {
            "create" => self.request(verb, self.0.leases.create(&parameters, &lease)).await,
            _ => self.request(verb, self.0.leases.replace(name, &parameters, &lease)).await,
        }
    }

    async fn request<T>(&self, verb: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
        let answer = tokio::time::timeout(self.0.timings.request_timeout, request).await;
        let (outcome, answer) = match answer {
            Ok(Ok(answer)) => ("ok", Ok(answer)),
            Ok(Err(error)) => ("error", Err(problem::of_lease_request(&error, verb, &self.0.namespace))),
            Err(_elapsed) => (
                "timeout",
                Err(format!("no answer to {verb} the membership Lease within {:?}", self.0.timings.request_timeout)),
            ),
        };
        self.0.metrics.lease_request(verb, outcome);
        answer
    }

    fn sign(&self, lease: &mut Lease, profile: &Profile) -> Result<(), String> {
        let text = serde_json::to_string(profile).map_err(|error| error.to_string())?;
        let about = format!(
            "The replica {} of {} is there while it renews this Lease; it is deleted when the replica ends.",
            profile.pod, self.0.instance
        );
        record::mark(lease, &self.0.instance, record::REPLICA, about);
        let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
        annotations.insert(record::PROFILE_ANNOTATION.to_owned(), text);
        let now = Some(record::wall_clock());
        lease.spec.holder_identity = Some(self.0.identity.clone());
        lease.spec.lease_duration_seconds = i32::try_from(self.0.timings.lease_duration.as_secs()).ok();
        lease.spec.acquire_time = lease.spec.acquire_time.take().or_else(|| now.clone());
        lease.spec.renew_time = now;
        Ok(())
    }
}

/// The membership Lease's name: the identity, spelt as a DNS subdomain.
fn name_of(identity: &str) -> String {
    const MOST: usize = 253;
    let name: String = identity
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    // The end is what is new for each process.
    let from = name.len().saturating_sub(MOST);
    let name = name[from..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    // A part may neither begin nor end with a hyphen.
    name.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_subdomain_and_ends_with_what_is_new() {
        for (identity, expected) in [
            ("leasehold-6d5f-abc12_00ff", "leasehold-6d5f-abc12-00ff"),
            ("My_Laptop.local_00ff", "my-laptop.local-00ff"),
            ("-x_00ff", "x-00ff"),
            ("host.-_00ff", "host.00ff"),
        ] {
            assert_eq!(name_of(identity), expected, "{identity}");
        }
        let long = name_of(&format!("{}_00ff", "a".repeat(300)));
        assert!(long.len() <= 253 && long.ends_with("a-00ff"), "{long}");
    }
}
