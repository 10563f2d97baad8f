//! From what was read to what it means: each kind and who leads it, each replica and how it is. Pure.
//!
//! No time of another machine is compared with ours: how long a kind has been led is what its leader says, or what the two
//! times on its Lease say, which are of one clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    report::{Report, Shard, Takeover},
    status::Pod,
    timeline::Source,
};

/// All that is known of an installation, from whatever it was read.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Of the Leases.
    pub namespace: String,
    /// The Leases of kinds, by name.
    pub leases: BTreeMap<String, Stored>,
    /// The replicas that say that they are there.
    pub members: Vec<Member>,
    /// `None`: they cannot be read.
    pub pods: Option<Vec<Pod>>,
    /// By name of the Pod: what it says, or why it was not reached.
    pub reports: BTreeMap<String, Result<Report, String>>,
    /// What else could not be read, and why.
    pub problems: Vec<String>,
}

/// A Lease of one kind, or of several.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// `<Kind>.<group>`; empty if they are not known.
    pub kinds: Vec<String>,
    /// Holder identity.
    pub holder: Option<String>,
    /// Names the term.
    pub token: String,
    /// Expected load.
    pub weight: Option<u32>,
    /// For how long its holder has held it, by the times on it.
    pub held_seconds: Option<f64>,
    /// Whether its holder renews it.
    pub renewal: Renewal,
}

/// Whether the holder of a Lease renews it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renewal {
    /// It was not looked at for long enough.
    #[default]
    Unknown,
    /// It was seen to.
    Renewed,
    /// It did not for the whole of the Lease's duration.
    Silent,
}

/// A replica, by its own word.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Holder identity.
    pub identity: String,
    /// Name of its Pod.
    pub pod: String,
    /// Hash of the template that its Pod was made from; empty when unknown.
    pub generation: String,
    /// How much it takes, relative to the others; `None`: not known.
    pub capacity: Option<u32>,
    /// It gives its kinds away and then ends.
    pub draining: bool,
    /// Of the newest generation; `None` where that is not known.
    pub newest: Option<bool>,
}

/// How a kind is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
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
pub enum Verdict {
    /// It is.
    Led,
    /// That was not found out.
    Undecided,
    /// It is not.
    NotLed,
}

impl State {
    /// Whether a kind that stands so is led by just one replica.
    pub fn verdict(self) -> Verdict {
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
pub struct Kind {
    /// `<Kind>.<group>`.
    pub kind: String,
    /// The kinds that it shares its Lease with are called so.
    pub group: Option<String>,
    /// Name of its Lease.
    pub lease: String,
    /// How it is led.
    pub state: State,
    /// The Pod that leads it, or holds its Lease.
    pub leader: Option<String>,
    /// Its holder identity.
    pub holder: Option<String>,
    /// Names the term.
    pub token: Option<String>,
    /// For how long it has been led.
    pub since_seconds: Option<f64>,
    /// For how long no replica has led it.
    pub without_leader_seconds: Option<f64>,
    /// Expected load, that of all kinds of its group.
    pub weight: Option<u32>,
    /// Objects in its leader's cache.
    pub objects: Option<u64>,
    /// Objects that wait for their turn.
    pub waiting: Option<u64>,
    /// For how long the first of them has.
    pub oldest_waits_seconds: Option<f64>,
    /// Of the last minute.
    pub reconciles_per_second: Option<f64>,
    /// Failed reconciliations of the last minute.
    pub recent_failures: Option<u64>,
    /// Failed reconciliations since the term began.
    pub failures: Option<u64>,
    /// When another replica became its leader, and why.
    pub last_takeover: Option<Takeover>,
    /// Pods with a filled cache of it.
    pub standby: Vec<String>,
    /// What stands in its way, and the Pods that say so.
    pub reasons: Vec<Reason>,
}

/// What one or several replicas say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// A sentence.
    pub message: String,
    /// The Pods that say it.
    pub replicas: Vec<String>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Name of its Pod.
    pub pod: String,
    /// Holder identity.
    pub identity: Option<String>,
    /// Hash of the template that its Pod was made from; empty when unknown.
    pub generation: String,
    /// Of the newest generation; `None` where that is not known.
    pub newest: Option<bool>,
    /// One word of ours or of Kubernetes.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// How many kinds it holds.
    pub kinds: usize,
    /// The weight of all that it holds.
    pub load: u64,
    /// How much it takes, relative to the others.
    pub capacity: Option<u32>,
    /// Bytes of memory that its process has in use.
    pub memory_bytes: Option<u64>,
    /// Of the program.
    pub version: Option<String>,
    /// Where its Pod is.
    pub node: Option<String>,
    /// It has answered.
    pub reached: bool,
}

/// The whole installation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// Of the Leases.
    pub namespace: String,
    /// Each kind is led by just one replica, as far as was found out.
    pub all_led: bool,
    /// By name.
    pub kinds: Vec<Kind>,
    /// By the names of their Pods.
    pub replicas: Vec<Replica>,
    /// What could not be reached, and why.
    pub not_reached: Vec<String>,
    /// Replicas that were not reached are configured for so many kinds more, which have no Lease.
    pub kinds_without_lease: usize,
    /// None of these can have a lock that is no Lease: they are surely not led.
    #[serde(skip)]
    pub surely_not_led: bool,
}

impl Picture {
    /// How many kinds are led by just one replica.
    pub fn led(&self) -> usize {
        self.kinds.iter().filter(|kind| kind.state.verdict() == Verdict::Led).count()
    }

    /// Whether each kind is led by just one replica.
    pub fn verdict(&self) -> Verdict {
        let worst = self.kinds.iter().map(|kind| kind.state.verdict()).max();
        match worst {
            // Nothing is known of any kind.
            None => Verdict::Undecided,
            Some(worst) if self.kinds_without_lease == 0 => worst,
            Some(worst) => worst.max(if self.surely_not_led { Verdict::NotLed } else { Verdict::Undecided }),
        }
    }
}

/// The Pod that an identity is of.
pub fn pod_of(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(pod, _)| pod)
}

/// What it all means.
pub fn picture(seen: &Seen) -> Picture {
    let reached: Vec<&Report> = seen.reports.values().filter_map(|report| report.as_ref().ok()).collect();
    let mut names = BTreeSet::new();
    for shard in reached.iter().flat_map(|report| &report.shards) {
        names.insert((shard.kind.clone(), shard.lease.clone()));
    }
    let told: BTreeSet<String> = names.iter().map(|(_, lease)| lease.clone()).collect();
    for (lease, Stored { kinds, .. }) in &seen.leases {
        if kinds.is_empty() && !told.contains(lease) {
            names.insert((lease.clone(), lease.clone()));
        }
        names.extend(kinds.iter().map(|kind| (kind.clone(), lease.clone())));
    }
    let kinds = names.iter().map(|(name, lease)| kind(name, lease, seen, &reached)).collect();
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
        replicas: replicas(seen),
        not_reached,
        kinds_without_lease: 0,
        surely_not_led: false,
    };
    picture.all_led = picture.verdict() == Verdict::Led;
    picture
}

fn kind(name: &str, lease: &str, seen: &Seen, reached: &[&Report]) -> Kind {
    let found =
        |report: &&Report| report.shards.iter().find(|shard| shard.kind == name && shard.lease == lease).cloned();
    let rows: Vec<(&Report, Shard)> = reached.iter().filter_map(|report| Some((*report, found(report)?))).collect();
    let stored = seen.leases.get(lease);
    // A lock that is no Lease is known from the replicas only.
    let holder = match stored {
        Some(stored) => stored.holder.clone(),
        None => rows.iter().find(|(_, shard)| shard.leads()).map(|(report, _)| report.identity.clone()),
    };
    let leaders: Vec<_> = rows.iter().filter(|(_, shard)| shard.leads()).collect();
    let (state, leader) = stand(lease, holder.as_deref(), &leaders, &rows, seen);
    let of_leader = rows.iter().find(|(report, _)| Some(&report.identity) == leader.as_ref()).map(|(_, shard)| shard);
    let work = of_leader.and_then(|shard| shard.work.as_ref());
    let on_lease = stored.filter(|_| leader.is_some()).and_then(|stored| stored.held_seconds);
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
        token: stored.filter(|_| leader.is_some()).map(|stored| stored.token.clone()),
        since_seconds: of_leader.and_then(|shard| shard.leading_for_seconds).or(on_lease),
        without_leader_seconds: unled.filter(|_| !led),
        weight: stored.and_then(|stored| stored.weight).or(rows.iter().find_map(|(_, shard)| shard.weight)),
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
        return match seen.leases.contains_key(lease) || all_reached {
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
    } else {
        let renewal = seen.leases.get(lease).map(|stored| stored.renewal).unwrap_or_default();
        match renewal {
            Renewal::Silent => State::Silent,
            _ if is_foreign(holder, seen) => State::ForeignHolder,
            Renewal::Renewed => State::Renewed,
            Renewal::Unknown => State::Held,
        }
    };
    (state, Some(holder.to_owned()))
}

/// It is no replica of ours and in no Pod: of that we are sure only where Pods can be read.
fn is_foreign(holder: &str, seen: &Seen) -> bool {
    let is_member = seen.members.iter().any(|member| member.identity == holder);
    !is_member && seen.pods.as_ref().is_some_and(|pods| !pods.iter().any(|pod| pod.name == pod_of(holder)))
}

/// Those that any replica knows of, each once, the last one at the end. Of one that several know of, that of its new holder
/// counts: it knows best for how long it was waited for. One that was merely found on the Lease counts least.
pub fn takeovers(rows: &[(&Report, Shard)]) -> Vec<Takeover> {
    let mut by_token = BTreeMap::<&str, (Source, &Takeover)>::new();
    for (report, shard) in rows {
        for takeover in &shard.takeovers {
            let source = takeover.source(&report.identity);
            let known = by_token.entry(&takeover.token).or_insert((source, takeover));
            if source > known.0 {
                *known = (source, takeover);
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
pub fn reasons(rows: &[(&Report, Shard)], led: bool) -> Vec<Reason> {
    let mut by_message = BTreeMap::<String, Vec<String>>::new();
    for (report, shard) in rows {
        let trouble = shard.trouble.as_deref().filter(|trouble| shard.reason.as_deref() != Some(*trouble));
        let states = !led || !["Standby", "Starting"].contains(&shard.state.as_str());
        let reason = shard.reason.as_deref().filter(|_| states).map(|why| format!("{}: {why}", shard.state));
        let trouble = trouble.map(str::to_owned);
        for message in
            reason.into_iter().chain(trouble).chain(shard.odd.iter().take(3).cloned()).chain(shard.progress())
        {
            by_message.entry(message).or_default().push(pod_of(&report.identity).to_owned());
        }
    }
    by_message.into_iter().map(|(message, replicas)| Reason { message, replicas }).collect()
}

fn replicas(seen: &Seen) -> Vec<Replica> {
    let pods: BTreeMap<&str, &Pod> = seen.pods.iter().flatten().map(|pod| (pod.name.as_str(), pod)).collect();
    let mut all = Vec::new();
    let mut told = BTreeSet::new();
    for member in &seen.members {
        let name = member.pod.as_str();
        let report = seen.reports.get(name).and_then(|report| report.as_ref().ok());
        let report = report.filter(|report| report.identity == member.identity);
        let is_followed = matches!(seen.reports.get(name), Some(Ok(other)) if other.identity != member.identity);
        let pod = pods.get(name).copied();
        let held = seen.leases.values().filter(|stored| stored.holder.as_ref() == Some(&member.identity));
        let (mut kinds, mut load) = (0, 0);
        for stored in held {
            kinds += stored.kinds.len().max(1);
            load += u64::from(stored.weight.unwrap_or(1));
        }
        let (state, reason) = match (report, pod) {
            _ if is_followed => ("Replaced".to_owned(), None),
            (Some(report), _) if report.stopping => ("Draining".to_owned(), None),
            (Some(report), _) if report.ready => ("Ready".to_owned(), None),
            (Some(report), _) => ("NotReady".to_owned(), report.reason.clone()),
            (None, _) if member.draining => ("Draining".to_owned(), None),
            (None, Some(pod)) => pod.condition.clone().unwrap_or_else(|| ("NotReached".to_owned(), None)),
            (None, None) if seen.pods.is_some() => {
                ("Gone".to_owned(), Some("there is no Pod of this name in the namespace".to_owned()))
            }
            (None, None) => ("NotReached".to_owned(), None),
        };
        told.insert(name);
        all.push(Replica {
            pod: name.to_owned(),
            identity: Some(member.identity.clone()),
            generation: member.generation.clone(),
            newest: member.newest,
            state,
            reason,
            kinds,
            load,
            capacity: member.capacity,
            memory_bytes: report.and_then(|report| report.memory_bytes),
            version: report.and_then(|report| report.version.clone()),
            node: pod.and_then(|pod| pod.node.clone()),
            reached: report.is_some(),
        });
    }
    // Pods that say nothing of themselves: they have not started, or cannot.
    for (name, pod) in pods.into_iter().filter(|(name, _)| !told.contains(name) && seen.reports.contains_key(*name)) {
        let report = seen.reports.get(name).and_then(|report| report.as_ref().ok());
        let (state, reason) = match report {
            Some(report) => ("NotReady".to_owned(), report.reason.clone()),
            None => pod.condition.clone().unwrap_or_else(|| ("NotReached".to_owned(), None)),
        };
        all.push(Replica {
            pod: name.to_owned(),
            identity: report.map(|report| report.identity.clone()),
            generation: pod.generation.clone(),
            newest: None,
            state,
            reason,
            kinds: 0,
            load: 0,
            capacity: None,
            memory_bytes: report.and_then(|report| report.memory_bytes),
            version: report.and_then(|report| report.version.clone()),
            node: pod.node.clone(),
            reached: report.is_some(),
        });
    }
    all.sort_by(|one, other| (&one.pod, &one.identity).cmp(&(&other.pod, &other.identity)));
    all
}
