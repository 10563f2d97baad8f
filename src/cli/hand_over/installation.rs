//! The Leases of one installation, as `leasehold hand-over` sees them while its request is open: what a kind is called, who holds
//! it, and which replicas could take it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use kube::runtime::watcher::Event;
use leasehold::{
    protocol::{
        lease::{Holding, Member, Record},
        membership::{Activity, Profile},
        roster,
    },
    replica::record::{self, HAND_OVER_ANNOTATION, INSTANCE_LABEL, Lease},
};
use tokio::time::Instant;

use crate::cli::Failure;

/// A replica whose Lease does not say for how long it counts is waited for as long as one with the default timings.
const DURATION: Duration = Duration::from_secs(15);

/// A Lease of kinds.
pub(super) struct Shard {
    pub(super) name: String,
    /// The one that is meant, or the first.
    pub(super) kind: String,
    pub(super) kinds: Vec<String>,
    pub(super) holding: Holding,
}

/// A Lease, and since when this version of it is known.
struct Known {
    version: Option<String>,
    kinds: Vec<String>,
    record: Option<Record>,
    since: Instant,
}

/// The Leases of one installation.
pub(super) struct Installation {
    /// Value of the label `leasehold.dev/instance`.
    pub(super) name: String,
    leases: BTreeMap<String, Known>,
    /// Holder identities of replicas whose Pod is not there any more.
    without_pod: BTreeSet<String>,
    /// Of a list that the watch begins with: what it has named so far.
    listed: Option<BTreeSet<String>>,
}

impl Installation {
    /// The only installation of a namespace, or the one of this name.
    pub(super) fn of(all: Vec<Lease>, namespace: &str, instance: Option<&str>, now: Instant) -> Result<Self, Failure> {
        let label = |lease: &Lease| lease.metadata.labels.as_ref()?.get(INSTANCE_LABEL).cloned();
        let instances: BTreeSet<_> = all.iter().filter_map(label).collect();
        let instances: Vec<_> = instances.into_iter().collect();
        match instances.as_slice() {
            [] => {
                let of = instance.map_or_else(String::new, |name| format!(" {name}"));
                Err(Failure::Usage(format!(
                    "namespace {namespace} has no Leases of an installation{of}; name theirs with --namespace"
                )))
            }
            [one] => {
                let mut installation =
                    Self { name: one.clone(), leases: BTreeMap::new(), without_pod: BTreeSet::new(), listed: None };
                all.into_iter().for_each(|lease| installation.apply(lease, now));
                Ok(installation)
            }
            several => Err(Failure::Usage(format!(
                "namespace {namespace} has several installations, {}; name one with --instance",
                several.join(", ")
            ))),
        }
    }

    /// Follows the watch.
    pub(super) fn see(&mut self, change: Event<Lease>, now: Instant) {
        match change {
            Event::Init => self.listed = Some(BTreeSet::new()),
            Event::InitApply(lease) => {
                if let (Some(listed), Some(name)) = (&mut self.listed, &lease.metadata.name) {
                    listed.insert(name.clone());
                }
                self.apply(lease, now);
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.leases.retain(|name, _| listed.contains(name));
                }
            }
            Event::Apply(lease) => self.apply(lease, now),
            Event::Delete(lease) => {
                lease.metadata.name.and_then(|name| self.leases.remove(&name));
            }
        }
    }

    /// Counts out those replicas whose Pod is not among these, which were listed after the Leases.
    pub(super) fn know_pods(&mut self, pods: &BTreeSet<String>) {
        let holders: BTreeSet<_> = self.shards().filter_map(|shard| shard.holding.holder).collect();
        let (there, gone): (Vec<_>, Vec<_>) =
            self.members().map(|(member, _)| member).partition(|member| pods.contains(&member.profile.pod));
        // Where no holder has its Pod, these are Pods of another namespace, or the replicas are no Pods.
        if there.iter().any(|member| holders.contains(&member.identity)) {
            self.without_pod = gone.into_iter().map(|member| member.identity).collect();
        }
    }

    /// A version of a Lease that the API server has answered with.
    pub(super) fn apply(&mut self, lease: Lease, now: Instant) {
        let Some(name) = lease.metadata.name.clone() else { return };
        let version = lease.metadata.resource_version.clone();
        let number = |version: &Option<String>| version.as_ref().and_then(|it| it.parse::<u64>().ok());
        // An answer to a write overtakes the watch. Versions of an API server are numbers that grow.
        let is_known = |known: &Known| known.version == version || number(&version) < number(&known.version);
        if !self.leases.get(&name).is_some_and(is_known) {
            let (kinds, record) = (record::kinds(&lease), record::record(&lease));
            self.leases.insert(name, Known { version, kinds, record, since: now });
        }
    }

    fn members(&self) -> impl Iterator<Item = (Member, Instant)> {
        self.leases.values().filter_map(|known| Some((known.record.as_ref()?.member()?, known.since)))
    }

    fn shards(&self) -> impl Iterator<Item = Shard> {
        self.leases.iter().filter_map(|(name, known)| {
            let mut kinds = known.kinds.clone();
            if kinds.is_empty() {
                kinds.push(name.clone());
            }
            let kind = kinds.first()?.clone();
            Some(Shard { name: name.clone(), kind, kinds, holding: known.record.as_ref()?.holding()? })
        })
    }

    /// What the Lease of a kind says now.
    pub(super) fn holding(&self, name: &str) -> anyhow::Result<Holding> {
        let known = self.leases.get(name).with_context(|| format!("the Lease {name} was deleted"))?;
        let holding = known.record.as_ref().and_then(Record::holding);
        holding.with_context(|| format!("{name} is no Lease of a kind any more"))
    }

    /// The Lease that is meant, with the kind of it that is.
    pub(super) fn find(&self, wanted: &str, namespace: &str) -> Result<Shard, Failure> {
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
    pub(super) fn choose(&self, shard: &Shard, from: &str, to: Option<&str>, now: Instant) -> Result<String, Failure> {
        let Shard { name: lease, kind, .. } = shard;
        let Some(to) = to else {
            let holdings: Vec<_> = self.shards().map(|shard| (shard.name, shard.holding)).collect();
            let is_there = |(member, _): &(Member, Instant)| {
                member.identity == from || self.absence(lease, &member.identity, now).is_none()
            };
            let members: Vec<_> = self.members().filter(is_there).map(|(member, _)| member).collect();
            return roster::elsewhere(lease, from, &members, &holdings)
                .ok_or_else(|| anyhow!("no other replica can run {kind} now").into());
        };
        let able = self.able(lease, from, now);
        let named: Vec<_> =
            self.members().map(|(member, _)| member).filter(|it| it.identity == to || it.profile.pod == to).collect();
        let why_not = |member: &Member| self.absence(lease, &member.identity, now);
        match named.iter().find(|member| why_not(member).is_none()) {
            Some(member) => Ok(member.identity.clone()),
            None => Err(Failure::Usage(match named.last().and_then(why_not) {
                Some(why) => format!("{to} cannot run {kind} now, for it {why}; {able}"),
                None => format!("there is no replica {to}; {able}"),
            })),
        }
    }

    /// Who else could have it, as a sentence.
    pub(super) fn able(&self, lease: &str, from: &str, now: Instant) -> String {
        let others = self.members().map(|(member, _)| member.identity).filter(|other| other != from);
        let able: Vec<_> = others.filter(|other| self.absence(lease, other, now).is_none()).collect();
        if able.is_empty() { "no other replica can".to_owned() } else { format!("{} can", able.join(", ")) }
    }

    /// Why a replica will not take a Lease, if so; what it says goes on from the replica's name.
    ///
    /// It is counted out when it misses two of the three renewals that it has time for: its holder counts it out one later. That
    /// is by our own clock, from when we first saw that version.
    pub(super) fn absence(&self, lease: &str, identity: &str, now: Instant) -> Option<String> {
        let Some((Member { profile, duration, .. }, since)) =
            self.members().find(|(member, _)| member.identity == identity)
        else {
            return Some("has gone".to_owned());
        };
        if self.without_pod.contains(identity) {
            return Some("has no Pod any more".to_owned());
        }
        let Profile { activity, blind, .. } = &profile;
        let silent = now.saturating_duration_since(since);
        if *activity == Activity::Draining {
            Some("stops".to_owned())
        } else if !profile.can_run(lease) {
            Some("says that it cannot run the kind".to_owned())
        } else if *blind {
            Some("says that it does not see the Leases".to_owned())
        } else if silent > duration.unwrap_or(DURATION).mul_f64(2.0 / 3.0) {
            Some(format!("has not renewed its own Lease for {} s", silent.as_secs()))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KIND: &str = "widget.example.com";

    fn now() -> Instant {
        super::super::now()
    }

    fn lease(name: &str, role: &str, holder: &str, version: u32, annotations: Value) -> Lease {
        serde_json::from_value(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "uid": name,
                "resourceVersion": version.to_string(),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {INSTANCE_LABEL: "leasehold", record::ROLE_LABEL: role},
                "annotations": annotations,
            },
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
        }))
        .unwrap()
    }

    fn replica(name: &str, version: u32, activity: &str) -> Lease {
        let profile = json!({"pod": name, "activity": activity, "capacity": 1, "shards": [KIND]});
        lease(
            name,
            record::REPLICA,
            &format!("{name}_1"),
            version,
            json!({record::PROFILE_ANNOTATION: profile.to_string()}),
        )
    }

    /// A holds the kind; B and C are there.
    fn installation(began: Instant) -> Installation {
        let kind = json!({record::KIND_ANNOTATION: "Widget.example.com"});
        let mut all = vec![lease(KIND, record::SHARD, "a_1", 1, kind)];
        all.extend(["a", "b", "c"].map(|name| replica(name, 1, "Active")));
        Installation::of(all, "default", None, began).unwrap_or_else(|failure| panic!("{failure}"))
    }

    fn choice(of: &Installation, to: Option<&str>, at: Instant) -> Result<String, String> {
        let shard = of.find("widget", "default").unwrap_or_else(|failure| panic!("{failure}"));
        of.choose(&shard, "a_1", to, at).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_replica_that_has_gone_stops_or_is_silent_is_not_chosen() {
        let began = now();
        let first = choice(&installation(began), None, began).unwrap();
        let (gone, other) = if first == "b_1" { ("b", "c_1") } else { ("c", "b_1") };
        let later = began + Duration::from_secs(11);

        let mut deleted = installation(began);
        deleted.see(Event::Delete(replica(gone, 2, "Active")), began);
        assert_eq!(deleted.absence(KIND, &first, began).unwrap(), "has gone");
        assert_eq!(choice(&deleted, None, began).unwrap(), other);

        let mut stops = installation(began);
        stops.see(Event::Apply(replica(gone, 2, "Draining")), began);
        assert_eq!(stops.absence(KIND, &first, began).unwrap(), "stops");
        assert_eq!(choice(&stops, None, began).unwrap(), other);
        let said = choice(&stops, Some(gone), began).unwrap_err();
        assert_eq!(said, format!("{gone} cannot run Widget.example.com now, for it stops; {other} can"));

        // The other one has renewed, and so has the holder.
        let mut silent = installation(began);
        for name in ["a", &other[..1]] {
            silent.see(Event::Apply(replica(name, 2, "Active")), began + Duration::from_secs(5));
        }
        assert!(silent.absence(KIND, &first, began + Duration::from_secs(10)).is_none());
        assert_eq!(silent.absence(KIND, &first, later).unwrap(), "has not renewed its own Lease for 11 s");
        assert_eq!(choice(&silent, None, later).unwrap(), other);
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let began = now();
        let mut seen = installation(began);
        seen.see(Event::Init, began);
        for kept in ["a", "c"] {
            seen.see(Event::InitApply(replica(kept, 1, "Active")), began);
        }
        assert!(seen.absence(KIND, "b_1", began).is_none(), "the list is not at its end");
        seen.see(Event::InitDone, began);
        assert_eq!(seen.absence(KIND, "b_1", began).unwrap(), "has gone");
        assert!(seen.holding(KIND).unwrap_err().to_string().contains("was deleted"));
    }

    #[test]
    fn an_answer_is_not_undone_by_an_older_version_from_the_watch() {
        let began = now();
        let mut seen = installation(began);
        let wanted =
            |version, wanted: &str| lease(KIND, record::SHARD, "a_1", version, json!({HAND_OVER_ANNOTATION: wanted}));
        seen.apply(wanted(10, "b_1"), began);
        seen.see(Event::Apply(wanted(9, "c_1")), began);
        assert_eq!(seen.holding(KIND).unwrap().wanted.unwrap(), "b_1");
        seen.see(Event::Apply(wanted(11, "c_1")), began);
        assert_eq!(seen.holding(KIND).unwrap().wanted.unwrap(), "c_1");
    }

    #[test]
    fn a_replica_without_a_pod_is_not_chosen_where_the_holder_has_one() {
        let began = now();
        let first = choice(&installation(began), None, began).unwrap();
        let (gone, other) = if first == "b_1" { ("b", "c") } else { ("c", "b") };
        let pods = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();

        let mut known = installation(began);
        known.know_pods(&pods(&["a", other]));
        assert_eq!(choice(&known, None, began).unwrap(), format!("{other}_1"));
        let said = choice(&known, Some(gone), began).unwrap_err();
        assert!(said.contains("for it has no Pod any more"), "{said}");

        let mut elsewhere = installation(began);
        elsewhere.know_pods(&pods(&["another"]));
        assert_eq!(choice(&elsewhere, None, began).unwrap(), first);
    }

    #[test]
    fn with_no_other_replica_there_is_no_choice() {
        let began = now();
        let mut alone = installation(began);
        for gone in ["b", "c"] {
            alone.see(Event::Delete(replica(gone, 2, "Active")), began);
        }
        assert_eq!(choice(&alone, None, began).unwrap_err(), "error: no other replica can run Widget.example.com now");
        let said = choice(&alone, Some("b"), began).unwrap_err();
        assert_eq!(said, "there is no replica b; no other replica can");
    }
}
