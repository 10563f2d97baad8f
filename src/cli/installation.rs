//! What an installation's Leases say, for the commands that ask for them.

use anyhow::Context as _;
use kube::{Api, api::ListParams};
use leasehold::sharding::{
    record::{self, INSTANCE_LABEL, KIND_ANNOTATION, Lease},
    roster::{Holding, Member},
};

use super::Failure;

/// The Leases of one installation.
pub(super) struct Installation {
    leases: Vec<Lease>,
    pub(super) members: Vec<Member>,
}

impl Installation {
    /// Reads them.
    pub(super) async fn read(leases: &Api<Lease>, namespace: &str, instance: Option<&str>) -> Result<Self, Failure> {
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
                let members = all.iter().filter_map(record::member).collect();
                Ok(Self { leases: all, members })
            }
            several => Err(Failure::Usage(format!(
                "namespace {namespace} has several installations, {}; name one with --instance",
                several.join(", ")
            ))),
        }
    }

    /// Name of the Lease, kind, and who holds it, of each shard.
    pub(super) fn shards(&self) -> impl Iterator<Item = (String, String, Holding)> {
        self.leases.iter().filter_map(|lease| {
            let name = lease.metadata.name.clone()?;
            let kind = record::annotation(lease, KIND_ANNOTATION).unwrap_or(&name).to_owned();
            Some((name, kind, record::holding(lease)?))
        })
    }

    /// The Lease that is meant, with its name and its kind's.
    pub(super) fn find(&self, wanted: &str, namespace: &str) -> Result<(String, String, Holding), Failure> {
        let is_meant = |name: &str, kind: &str| {
            [name, kind, kind.split('.').next().unwrap_or(kind)].iter().any(|it| it.eq_ignore_ascii_case(wanted))
        };
        let mut found: Vec<_> = self.shards().filter(|(name, kind, _)| is_meant(name, kind)).collect();
        let kinds = |found: &mut dyn Iterator<Item = (String, String, Holding)>| {
            found.map(|(_, kind, _)| kind).collect::<Vec<_>>().join(", ")
        };
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Failure::Usage(format!(
                "no kind {wanted} has a Lease in namespace {namespace}; there are {}",
                kinds(&mut self.shards())
            ))),
            _ => Err(Failure::Usage(format!(
                "{wanted} may mean {}; write it with its group",
                kinds(&mut found.into_iter())
            ))),
        }
    }
}
