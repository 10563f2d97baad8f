//! From the objects that were read to what a picture is made of. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use leasehold::{
    ops::{
        picture::{self, Picture, Renewal, Stored, Verdict},
        report::Report,
    },
    protocol::{
        lease::{Holding, Member, Role},
        membership::Activity,
        roster::{Roster, spec_of},
    },
    replica::{
        pods,
        record::{self, Lease},
    },
};

/// All that was read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) namespace: String,
    pub(super) leases: Vec<Lease>,
    /// `None`: they cannot be read.
    pub(super) pods: Option<Vec<Pod>>,
    /// By name of the Pod: what it says, or why it was not reached.
    pub(super) reports: BTreeMap<String, Result<Report, String>>,
    /// What else could not be read, and why.
    pub(super) problems: Vec<String>,
    /// Leases that were renewed while we looked, and those that were not for the whole of their duration.
    pub(super) renewed: BTreeSet<String>,
    pub(super) silent: BTreeSet<String>,
}

/// What Leases are about, and the members that may still be there.
pub(super) struct Installation {
    /// By name.
    pub(super) shards: BTreeMap<String, (Lease, Holding, Vec<String>)>,
    pub(super) members: Vec<Member>,
    pub(super) roster: Option<Roster>,
}

impl Installation {
    pub(super) fn of(seen: &Seen) -> Self {
        let records = seen.leases.iter().filter_map(|lease| Some((lease, record::record(lease)?)));
        let (mut shards, mut members) = (BTreeMap::new(), Vec::new());
        for (lease, record) in records {
            if record.role == Role::Shard
                && let Some(holding) = record.holding()
            {
                let kinds = if record.kinds.is_empty() { vec![record.name.clone()] } else { record.kinds.clone() };
                shards.insert(record.name.clone(), (lease.clone(), holding, kinds));
            } else if let Some(member) = record.member() {
                members.push(member);
            }
        }
        // A process that another one of its Pod has followed, and one whose Pod is gone, are there no more.
        let is_there = |member: &Member| {
            let pod = &member.profile.pod;
            match (seen.reports.get(pod), &seen.pods) {
                (Some(Ok(report)), _) => report.identity == member.identity,
                (_, Some(pods)) => {
                    let uid = member.profile.pod_uid.as_ref();
                    let is_it = |it: &&Pod| it.metadata.name.as_ref() == Some(pod);
                    pods.iter().find(is_it).is_some_and(|it| uid.is_none() || it.metadata.uid.as_ref() == uid)
                }
                _ => true,
            }
        };
        let present: Vec<_> = members.iter().filter(|member| is_there(member)).cloned().collect();
        let holdings: Vec<_> = shards
            .iter()
            .map(|(name, (_, holding, kinds))| (spec_of(name, kinds.clone(), holding), holding.clone()))
            .collect();
        let seat = present.iter().find(|member| member.profile.activity == Activity::Active).or(present.first());
        let seat = seat.map(|member| member.identity.clone());
        let roster = seat.and_then(|seat| Roster::in_the_seat_of(&seat, present, holdings, None));
        Self { shards, members, roster }
    }

    /// Whether a replica is configured for the Lease.
    fn is_wanted(&self, lease: &str) -> bool {
        self.members.is_empty() || self.members.iter().any(|member| member.profile.shards.contains(lease))
    }
}

/// What it all means.
pub(super) fn picture(seen: &Seen) -> Picture {
    let installation = Installation::of(seen);
    let counted = installation.roster.as_ref().map(|roster| roster.counted(Roster::SEATED_AT)).unwrap_or_default();
    let wanted = installation
        .shards
        .iter()
        .filter(|(lease, (_, holding, _))| holding.holder.is_some() || installation.is_wanted(lease));
    let stored = |(name, (lease, holding, kinds)): (&String, &(Lease, Holding, Vec<String>))| {
        let times = lease.spec.acquire_time.as_ref().zip(lease.spec.renew_time.as_ref());
        let renewal = match () {
            () if seen.silent.contains(name) => Renewal::Silent,
            () if seen.renewed.contains(name) => Renewal::Renewed,
            () => Renewal::Unknown,
        };
        let stored = Stored {
            kinds: kinds.clone(),
            holder: holding.holder.clone(),
            token: holding.token(),
            weight: holding.weight,
            held_seconds: times.map(|(acquired, renewed)| renewed.0.duration_since(acquired.0).as_secs_f64().max(0.0)),
            renewal,
        };
        (name.clone(), stored)
    };
    let member = |member: &Member| picture::Member {
        identity: member.identity.clone(),
        pod: member.profile.pod.clone(),
        generation: member.profile.generation.clone(),
        capacity: Some(member.profile.capacity),
        draining: member.profile.activity == Activity::Draining,
        newest: counted.get(&member.identity).copied(),
    };
    let all = picture::Seen {
        namespace: seen.namespace.clone(),
        leases: wanted.map(stored).collect(),
        members: installation.members.iter().map(member).collect(),
        pods: seen.pods.as_ref().map(|all| all.iter().map(pods::shown).collect()),
        reports: seen.reports.clone(),
        problems: seen.problems.clone(),
    };
    let mut picture = picture::picture(&all);
    // Of those that are not reached, their memberships say for how many kinds they are configured.
    let known: BTreeSet<&String> = picture.kinds.iter().map(|kind| &kind.lease).collect();
    let unreached = |member: &&Member| !matches!(seen.reports.get(&member.profile.pod), Some(Ok(_)));
    let more = |member: &Member| {
        let found = known.iter().filter(|lease| member.profile.shards.contains(lease)).count();
        (member.profile.shards.len().saturating_sub(found), member.profile.config_maps.is_empty())
    };
    let more = installation.members.iter().filter(unreached).map(more).max().unwrap_or((0, true));
    (picture.kinds_without_lease, picture.surely_not_led) = more;
    picture.all_led = picture.verdict() == Verdict::Led;
    picture
}
