//! From what was read to what it means: each kind and who leads it, each replica and how it is. Pure.
//!
//! No time of another machine is compared with ours: how long a kind has been led is what its leader says, or what the two
//! times on its Lease say, which are of one clock.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use leasehold::{
    protocol::{
        lease::{Holding, Member, Role},
        membership::Activity,
        roster::{Roster, spec_of},
    },
    replica::record::{self, Lease},
};
use serde::Serialize;

use super::report::{Report, Shard, Takeover};

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

/// How a kind is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum State {
    /// One replica reconciles it.
    Leading,
    /// One replica leads it, and does not hear of changes.
    Deaf,
    /// One replica finishes what runs, and gives it away.
    Draining,
    /// A replica that was not reached renews its Lease.
    Renewed,
    /// A replica that was not reached holds its Lease: whether it renews was not looked at.
    Held,
    /// A replica holds its Lease and does not work on it yet.
    Starting,
    /// The holder of its Lease has not renewed it for as long as it counts.
    Silent,
    /// No replica holds it.
    Free,
    /// No replica can lead it.
    Blocked,
    /// No replica holds it, and one waits after a failure.
    CoolingDown,
    /// What holds its Lease is no replica of this installation.
    ForeignHolder,
    /// More than one replica says that it leads.
    SeveralLeaders,
    /// It has no Lease, and not every replica was reached.
    Unknown,
}

/// Whether a kind is led by just one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Led,
    Undecided,
    NotLed,
}

impl State {
    pub(super) fn verdict(self) -> Verdict {
        match self {
            Self::Leading | Self::Deaf | Self::Draining | Self::Renewed => Verdict::Led,
            Self::Held | Self::Unknown => Verdict::Undecided,
            _ => Verdict::NotLed,
        }
    }
}

/// One kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kind {
    pub(super) kind: String,
    pub(super) group: Option<String>,
    pub(super) lease: String,
    pub(super) state: State,
    /// The Pod that leads it, or holds its Lease.
    pub(super) leader: Option<String>,
    /// Its holder identity.
    pub(super) holder: Option<String>,
    pub(super) token: Option<String>,
    pub(super) since_seconds: Option<f64>,
    pub(super) without_leader_seconds: Option<f64>,
    pub(super) weight: Option<u32>,
    pub(super) objects: Option<u64>,
    pub(super) waiting: Option<u64>,
    pub(super) oldest_waits_seconds: Option<f64>,
    pub(super) reconciles_per_second: Option<f64>,
    /// Of the last minute, and since the term began.
    pub(super) recent_failures: Option<u64>,
    pub(super) failures: Option<u64>,
    pub(super) last_takeover: Option<Takeover>,
    /// Pods with a filled cache of it.
    pub(super) standby: Vec<String>,
    /// What stands in its way, and the Pods that say so.
    pub(super) reasons: Vec<Reason>,
}

/// What one or several replicas say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reason {
    pub(super) message: String,
    pub(super) replicas: Vec<String>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Replica {
    pub(super) pod: String,
    pub(super) identity: Option<String>,
    pub(super) generation: String,
    /// Of the newest generation; `None` where that is not known.
    pub(super) newest: Option<bool>,
    /// One word of ours or of Kubernetes.
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) kinds: usize,
    pub(super) load: u64,
    pub(super) capacity: Option<u32>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) version: Option<String>,
    pub(super) node: Option<String>,
    pub(super) reached: bool,
}

/// The whole installation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Picture {
    pub(super) namespace: String,
    /// Each kind is led by just one replica, as far as was found out.
    pub(super) all_led: bool,
    pub(super) kinds: Vec<Kind>,
    pub(super) replicas: Vec<Replica>,
    /// What could not be reached, and why.
    pub(super) not_reached: Vec<String>,
    /// Replicas that were not reached are configured for so many kinds more, which have no Lease.
    pub(super) kinds_without_lease: usize,
    #[serde(skip)]
    pub(super) surely_not_led: bool,
}

impl Picture {
    pub(super) fn led(&self) -> usize {
        self.kinds.iter().filter(|kind| kind.state.verdict() == Verdict::Led).count()
    }

    /// Whether each kind is led by just one replica.
    pub(super) fn verdict(&self) -> Verdict {
        let worst = self.kinds.iter().map(|kind| kind.state.verdict()).max();
        match worst {
            // Nothing is known of any kind.
            None => Verdict::Undecided,
            Some(worst) if self.kinds_without_lease == 0 => worst,
            Some(worst) => worst.max(if self.surely_not_led { Verdict::NotLed } else { Verdict::Undecided }),
        }
    }
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

/// The Pod that an identity is of.
pub(super) fn pod_of(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(pod, _)| pod)
}

pub(super) fn picture(seen: &Seen) -> Picture {
    let installation = Installation::of(seen);
    let reached: Vec<&Report> = seen.reports.values().filter_map(|report| report.as_ref().ok()).collect();
    let mut names = BTreeSet::new();
    for (lease, (_, holding, kinds)) in &installation.shards {
        if holding.holder.is_some() || installation.is_wanted(lease) {
            names.extend(kinds.iter().map(|kind| (kind.clone(), lease.clone())));
        }
    }
    for shard in reached.iter().flat_map(|report| &report.shards) {
        names.insert((shard.kind.clone(), shard.lease.clone()));
    }
    let known: BTreeSet<&String> = names.iter().map(|(_, lease)| lease).collect();
    let unreached = |member: &&Member| !matches!(seen.reports.get(&member.profile.pod), Some(Ok(_)));
    let more = |member: &Member| {
        let found = known.iter().filter(|lease| member.profile.shards.contains(lease)).count();
        (member.profile.shards.len().saturating_sub(found), member.profile.config_maps.is_empty())
    };
    let more = installation.members.iter().filter(unreached).map(more).max().unwrap_or((0, true));
    let kinds = names.iter().map(|(name, lease)| kind(name, lease, seen, &installation, &reached)).collect();
    let mut not_reached = seen.problems.clone();
    for (pod, report) in &seen.reports {
        if let Err(why) = report {
            not_reached.push(format!("{pod}: {why}"));
        }
    }
    let mut picture = Picture {
        namespace: seen.namespace.clone(),
        all_led: false,
        kinds,
        replicas: replicas(seen, &installation),
        not_reached,
        kinds_without_lease: more.0,
        surely_not_led: more.1,
    };
    picture.all_led = picture.verdict() == Verdict::Led;
    picture
}

fn kind(name: &str, lease: &str, seen: &Seen, installation: &Installation, reached: &[&Report]) -> Kind {
    let found =
        |report: &&Report| report.shards.iter().find(|shard| shard.kind == name && shard.lease == lease).cloned();
    let rows: Vec<(&Report, Shard)> = reached.iter().filter_map(|report| Some((*report, found(report)?))).collect();
    let stored = installation.shards.get(lease);
    // A lock that is no Lease is known from the replicas only.
    let holder = match stored {
        Some((_, holding, _)) => holding.holder.clone(),
        None => rows.iter().find(|(_, shard)| shard.leads()).map(|(report, _)| report.identity.clone()),
    };
    let leaders: Vec<_> = rows.iter().filter(|(_, shard)| shard.leads()).collect();
    let (state, leader) = stand(lease, holder.as_deref(), &leaders, &rows, seen, installation);
    let of_leader = rows.iter().find(|(report, _)| Some(&report.identity) == leader.as_ref()).map(|(_, shard)| shard);
    let work = of_leader.and_then(|shard| shard.work.as_ref());
    let on_lease = stored.filter(|_| leader.is_some()).and_then(|(lease, ..)| {
        let (acquired, renewed) = (lease.spec.acquire_time.as_ref()?, lease.spec.renew_time.as_ref()?);
        Some(renewed.0.duration_since(acquired.0).as_secs_f64().max(0.0))
    });
    let led = state.verdict() == Verdict::Led;
    let unled = rows
        .iter()
        .filter_map(|(_, shard)| shard.without_leader_seconds)
        .fold(None, |most: Option<f64>, it| Some(most.map_or(it, |most| most.max(it))));
    Kind {
        kind: name.to_owned(),
        group: rows.iter().find_map(|(_, shard)| shard.group.clone()),
        lease: lease.to_owned(),
        state,
        leader: leader.as_deref().map(|leader| pod_of(leader).to_owned()),
        token: stored.filter(|_| leader.is_some()).map(|(_, holding, _)| holding.token()),
        since_seconds: of_leader.and_then(|shard| shard.leading_for_seconds).or(on_lease),
        without_leader_seconds: unled.filter(|_| !led),
        weight: stored.and_then(|(_, holding, _)| holding.weight).or(rows.iter().find_map(|(_, shard)| shard.weight)),
        objects: work.map(|work| work.objects),
        waiting: work.map(|work| work.waiting),
        oldest_waits_seconds: work.and_then(|work| work.oldest_waits_seconds),
        reconciles_per_second: work.map(|work| work.reconciles_per_second),
        recent_failures: work.map(|work| work.recent_failures),
        failures: work.map(|work| work.failures),
        last_takeover: takeovers(&rows).pop(),
        standby: standby(&rows),
        reasons: reasons(&rows, led),
        holder: leader,
    }
}

/// How the kind is led, and by whom.
fn stand(
    lease: &str,
    holder: Option<&str>,
    leaders: &[&(&Report, Shard)],
    rows: &[(&Report, Shard)],
    seen: &Seen,
    installation: &Installation,
) -> (State, Option<String>) {
    if let [_, _, ..] = leaders {
        return (State::SeveralLeaders, holder.map(str::to_owned));
    }
    if let [(report, shard)] = leaders {
        let state = match shard.state.as_str() {
            "Deaf" => State::Deaf,
            "Draining" => State::Draining,
            _ => State::Leading,
        };
        return (state, Some(report.identity.clone()));
    }
    let Some(holder) = holder else {
        let state = |state: &str| rows.iter().any(|(_, shard)| shard.state == state);
        let all_reached = seen.reports.values().all(Result::is_ok) && !rows.is_empty();
        return match installation.shards.contains_key(lease) || all_reached {
            _ if state("CoolingDown") => (State::CoolingDown, None),
            _ if !rows.is_empty() && rows.iter().all(|(_, shard)| shard.state == "Blocked") && all_reached => {
                (State::Blocked, None)
            }
            true => (State::Free, None),
            false => (State::Unknown, None),
        };
    };
    let state = if rows.iter().any(|(report, _)| report.identity == holder) {
        State::Starting
    } else if seen.silent.contains(lease) {
        State::Silent
    } else if is_foreign(holder, seen, installation) {
        State::ForeignHolder
    } else if seen.renewed.contains(lease) {
        State::Renewed
    } else {
        State::Held
    };
    (state, Some(holder.to_owned()))
}

/// It is no replica of ours and in no Pod: of that we are sure only where Pods can be read.
fn is_foreign(holder: &str, seen: &Seen, installation: &Installation) -> bool {
    let is_member = installation.members.iter().any(|member| member.identity == holder);
    let pods = seen.pods.as_ref();
    !is_member && pods.is_some_and(|pods| !pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(pod_of(holder))))
}

/// Those that any replica has seen, each once, the last one at the end. Of one that several have seen, that of its new holder
/// counts: it knows best for how long it was waited for.
pub(super) fn takeovers(rows: &[(&Report, Shard)]) -> Vec<Takeover> {
    let mut by_token = BTreeMap::<&str, (bool, &Takeover)>::new();
    for (report, shard) in rows {
        for takeover in &shard.takeovers {
            let is_its_own = takeover.to == report.identity;
            let known = by_token.entry(&takeover.token).or_insert((is_its_own, takeover));
            if is_its_own && !known.0 {
                *known = (true, takeover);
            }
        }
    }
    let mut all: Vec<Takeover> = by_token.into_values().map(|(_, takeover)| takeover.clone()).collect();
    all.sort_by(|one, other| other.seconds_ago.total_cmp(&one.seconds_ago));
    all
}

fn standby(rows: &[(&Report, Shard)]) -> Vec<String> {
    let filled = rows.iter().filter(|(_, shard)| shard.cache.as_deref() == Some("Filled"));
    filled.map(|(report, _)| pod_of(&report.identity).to_owned()).collect()
}

/// What the replicas say stands in the way: of a kind that is led, what those say that could not follow.
pub(super) fn reasons(rows: &[(&Report, Shard)], led: bool) -> Vec<Reason> {
    let mut by_message = BTreeMap::<String, Vec<String>>::new();
    for (report, shard) in rows {
        let trouble = shard.trouble.as_deref().filter(|trouble| shard.reason.as_deref() != Some(*trouble));
        let states = !led || !["Standby", "Starting"].contains(&shard.state.as_str());
        let reason = shard.reason.as_deref().filter(|_| states).map(|why| format!("{}: {why}", shard.state));
        let trouble = trouble.map(str::to_owned);
        for message in reason.into_iter().chain(trouble).chain(shard.odd.iter().take(3).cloned()) {
            by_message.entry(message).or_default().push(pod_of(&report.identity).to_owned());
        }
    }
    by_message.into_iter().map(|(message, replicas)| Reason { message, replicas }).collect()
}

fn replicas(seen: &Seen, installation: &Installation) -> Vec<Replica> {
    let counted = installation.roster.as_ref().map(|roster| roster.counted(Roster::SEATED_AT)).unwrap_or_default();
    let pods: BTreeMap<&str, &Pod> =
        seen.pods.iter().flatten().filter_map(|pod| Some((pod.metadata.name.as_deref()?, pod))).collect();
    let mut all = Vec::new();
    let mut told = BTreeSet::new();
    for member in &installation.members {
        let name = member.profile.pod.as_str();
        let report = seen.reports.get(name).and_then(|report| report.as_ref().ok());
        let report = report.filter(|report| report.identity == member.identity);
        let is_followed = matches!(seen.reports.get(name), Some(Ok(other)) if other.identity != member.identity);
        let pod = pods.get(name).copied();
        let holds = |holding: &Holding| holding.holder.as_ref() == Some(&member.identity);
        let kinds = installation.shards.values().filter(|(_, holding, _)| holds(holding));
        let (state, reason) = match (report, pod) {
            _ if is_followed => ("Replaced".to_owned(), None),
            (Some(report), _) if report.stopping => ("Draining".to_owned(), None),
            (Some(report), _) if report.ready => ("Ready".to_owned(), None),
            (Some(report), _) => ("NotReady".to_owned(), report.reason.clone()),
            (None, _) if member.profile.activity == Activity::Draining => ("Draining".to_owned(), None),
            (None, Some(pod)) => condition(pod).unwrap_or_else(|| ("NotReached".to_owned(), None)),
            (None, None) if seen.pods.is_some() => {
                ("Gone".to_owned(), Some("there is no Pod of this name in the namespace".to_owned()))
            }
            (None, None) => ("NotReached".to_owned(), None),
        };
        told.insert(name);
        all.push(Replica {
            pod: name.to_owned(),
            identity: Some(member.identity.clone()),
            generation: member.profile.generation.clone(),
            newest: counted.get(&member.identity).copied(),
            state,
            reason,
            kinds: kinds.map(|(_, _, kinds)| kinds.len()).sum(),
            load: installation.roster.as_ref().map_or(0, |roster| roster.load_of(&member.identity)),
            capacity: Some(member.profile.capacity),
            memory_bytes: report.and_then(|report| report.memory_bytes),
            version: report.and_then(|report| report.version.clone()),
            node: pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone()),
            reached: report.is_some(),
        });
    }
    // Pods that say nothing of themselves: they have not started, or cannot.
    for (name, pod) in pods.into_iter().filter(|(name, _)| !told.contains(name) && seen.reports.contains_key(*name)) {
        let report = seen.reports.get(name).and_then(|report| report.as_ref().ok());
        let (state, reason) = match report {
            Some(report) => ("NotReady".to_owned(), report.reason.clone()),
            None => condition(pod).unwrap_or_else(|| ("NotReached".to_owned(), None)),
        };
        let labels = pod.metadata.labels.as_ref();
        all.push(Replica {
            pod: name.to_owned(),
            identity: report.map(|report| report.identity.clone()),
            generation: labels.and_then(|labels| labels.get("pod-template-hash")).cloned().unwrap_or_default(),
            newest: None,
            state,
            reason,
            kinds: 0,
            load: 0,
            capacity: None,
            memory_bytes: report.and_then(|report| report.memory_bytes),
            version: report.and_then(|report| report.version.clone()),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            reached: report.is_some(),
        });
    }
    all.sort_by(|one, other| (&one.pod, &one.identity).cmp(&(&other.pod, &other.identity)));
    all
}

/// What Kubernetes says is wrong with a Pod, as `kubectl get pods` has it.
fn condition(pod: &Pod) -> Option<(String, Option<String>)> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(("Terminating".to_owned(), None));
    }
    let status = pod.status.as_ref()?;
    let ended = |container: &ContainerStatus| {
        let of = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            let ended = state?.terminated.as_ref()?;
            let said = ended.message.as_deref().map(str::trim).filter(|message| !message.is_empty());
            Some(said.map_or_else(|| format!("exit code {}", ended.exit_code), str::to_owned))
        };
        of(container.last_state.as_ref()).or_else(|| of(container.state.as_ref()))
    };
    for container in status.container_statuses.iter().flatten() {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let word = waiting.reason.clone().unwrap_or_else(|| "Waiting".to_owned());
            return Some((word, ended(container).or_else(|| waiting.message.clone())));
        }
        if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
            return Some((terminated.reason.clone().unwrap_or_else(|| "Terminated".to_owned()), ended(container)));
        }
    }
    let phase = status.phase.as_deref()?;
    let unscheduled = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    (phase != "Running").then(|| (phase.to_owned(), unscheduled.and_then(|it| it.message.clone())))
}
