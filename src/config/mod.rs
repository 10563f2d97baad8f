//! The configuration: one YAML file in, validated values out.
//!
//! Nothing here does IO or reads a clock. A [`Configuration`] that exists is valid: no later code checks a field again.

pub(crate) mod code;
mod duration;
mod errors;
mod groups;
mod raw;
mod read;
pub mod schema;
mod section;
mod size;
#[cfg(test)]
mod tests;

/// For other files than the configuration: YAML with positions, read field by field.
pub(crate) mod tree {
    pub(crate) use super::{
        errors::Gathered,
        raw::{Node, Position, Value, parse},
        read::{group_version, is_dns_label, kind_name},
        section::Section,
    };
}

use std::{collections::HashMap, fmt, net::IpAddr, time::Duration};

pub(crate) use read::{is_dns_label, is_subdomain};

/// The longest that a Lease may be held after a renewal. A record that says more was not written by a replica of ours.
pub const LONGEST_LEASE: Duration = Duration::from_secs(600);

pub use errors::{Errors, Violation};

/// A reconciler that a file may name.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The name, as in `builtin: NAME`.
    pub name: &'a str,
    /// Group and kind of the only kind it can reconcile, if there is only one.
    pub only: Option<(&'a str, &'a str)>,
    /// It is given in code for that kind: a file that lists the kind names no reconciler.
    pub in_code: bool,
}

impl<'a> From<&'a str> for Offer<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, only: None, in_code: false }
    }
}

/// Reads and checks one file. `file` is its name as error messages give it, `reconcilers` are those a kind may name.
///
/// # Errors
///
/// Everything that is wrong with the file, at once, in the order of the file. Text that is no YAML has one error only.
pub fn load<'a, R>(file: &str, text: &str, reconcilers: &[R]) -> Result<Configuration, Errors>
where
    R: Copy + Into<Offer<'a>>,
{
    let offers: Vec<Offer<'a>> = reconcilers.iter().map(|reconciler| (*reconciler).into()).collect();
    read::configuration(file, text, &offers)
}

/// What the objects of a kind may take of a replica's memory, in bytes as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One object: a larger one is not reconciled, and says so.
    pub object: u64,
    /// All that is kept of them, and again all that is kept of their children. What there is no room for is read each time
    /// that it is needed.
    pub cache: u64,
}

impl Default for Limits {
    fn default() -> Self {
        read::DEFAULT_LOAD.limits
    }
}

/// What one installation shards, and how.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Labels this installation's Leases; two installations never share a value in one namespace.
    pub instance: String,
    /// Where the Leases live. `None`: the namespace the replica runs in.
    pub lease_namespace: Option<String>,
    /// The four durations of an election.
    pub timings: Timings,
    /// Who shall hold what.
    pub placement: Placement,
    /// How long a drain may take before the term is aborted.
    pub drain_timeout: Duration,
    /// Which kinds share a Lease.
    pub election: Election,
    /// What follows when a running term is lost.
    pub on_loss: OnLoss,
    /// The kinds, in the order of the file.
    pub kinds: Vec<Kind>,
    /// Whether and how webhooks are served.
    pub webhooks: WebhookSettings,
    /// What objects may have a kind act on where no webhook asks what their authors may do.
    pub without_webhooks: WithoutWebhooks,
}

/// What objects may have a kind act on where no webhook asks what their authors may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithoutWebhooks {
    /// The types, in the order of the file.
    pub types: Vec<GroupKind>,
}

impl Default for WithoutWebhooks {
    fn default() -> Self {
        let of = |kind: &str, group: &str| GroupKind { group: group.to_owned(), kind: kind.to_owned() };
        Self { types: vec![of("Job", "batch"), of("Pod", ""), of("ConfigMap", "")] }
    }
}

/// A type in whatever version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKind {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind in CamelCase.
    pub kind: String,
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.kind),
            group => write!(f, "{}.{group}", self.kind),
        }
    }
}

/// Whether the author of an object must be allowed what the object has its kind do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Escalation {
    /// Webhooks ask; where the API server does not ask them, objects reach no further than [`WithoutWebhooks`] says.
    #[default]
    Check,
    /// Authors of objects have what the kind's account has, on purpose.
    Trust,
}

/// Whether and how webhooks are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Whether they are.
    pub enabled: bool,
    /// Address that they are served on.
    pub address: IpAddr,
    /// Port that they are served on.
    pub port: u16,
    /// Name of the Service, of the Secret with the serving certificate, and of the webhook configurations.
    pub name: String,
    /// How long a replica that stops still serves: until the endpoints of the Service have dropped it.
    pub shutdown_delay: Duration,
    /// How long a certificate of our own is good; it is renewed when a third of that is left.
    pub lifetime: Duration,
    /// Where the certificate comes from.
    pub certificate: Certificate,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        read::webhook_defaults(true)
    }
}

/// Where the serving certificate of webhooks comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    /// One replica makes and renews it, keeps it in the Secret, and writes its CA into the configurations.
    #[default]
    Own,
    /// Another program, such as cert-manager, keeps it in the Secret; nothing is written.
    External,
    /// The files `tls.crt` and `tls.key` of this folder; nothing is written.
    Files(String),
}

impl Configuration {
    /// The kinds of each shard, which share one Lease, in the order of the file; a kind of no group is one by itself.
    pub fn shards(&self) -> Vec<Vec<&Kind>> {
        let mut shards: Vec<Vec<&Kind>> = Vec::new();
        let mut by_lease = HashMap::new();
        for kind in &self.kinds {
            let shard = *by_lease.entry(&kind.lease_name).or_insert(shards.len());
            match shards.get_mut(shard) {
                Some(shard) => shard.push(kind),
                None => shards.push(vec![kind]),
            }
        }
        shards
    }
}

/// Which kinds share a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Election {
    /// Each kind has a Lease of its own, and each group of kinds has one.
    #[default]
    PerKind,
    /// All kinds share this one Lease: one replica leads all of them, the others stand by.
    Single {
        /// Name of the Lease.
        lease: String,
        /// What that is the name of.
        lock: LockKind,
    },
}

/// What a replica does when a term of its own ends by a loss: another replica holds the Lease, no renewal succeeded by
/// the renew deadline, or the Lease is gone. A planned handover and a stop are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLoss {
    /// It ends the term's work and takes part in the election again.
    #[default]
    Reelect,
    /// The process ends at once, without cleaning up, and is restarted by Kubernetes.
    Exit,
}

/// When kinds that are held are moved to even out the spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rebalance {
    /// Whenever replicas have come or gone.
    #[default]
    Automatic,
    /// After a rolling restart only; a replica that joins gets its share then.
    OnRestart,
    /// Never: a kind moves only when its replica stops.
    Never,
}

/// What a kind's lock is. All but the Lease are there to migrate from electors that are older than Leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// A Lease.
    #[default]
    Lease,
    /// A ConfigMap, with the record in an annotation as client-go wrote it.
    ConfigMap,
    /// A ConfigMap and a Lease, both of which the leader holds: client-go's MultiLock.
    ConfigMapsLeases,
}

/// Which replicas keep a cache of a kind that another one leads. A named successor fills one in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StandbyMode {
    /// None: a failover lists everything first.
    None,
    /// The one that is next in line.
    #[default]
    Successor,
    /// Every one.
    All,
}

/// How the kinds are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// When held kinds are moved.
    pub rebalance: Rebalance,
    /// How long the replicas must have been the same before a kind is moved for balance.
    pub settle: Duration,
    /// The longest that a replica lets others go first for a free Lease.
    pub grace: Duration,
    /// How much this replica takes, relative to the others; at least 1.
    pub capacity: u32,
}

/// The four durations of an election. They keep the timing rules (rule 8): a value of this type cannot break them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timings {
    /// Published on the Lease, in whole seconds: how long after a renewal the holder may be counted out.
    pub lease_duration: Duration,
    /// Without a successful renewal for this long, the holder stops its work.
    pub renew_deadline: Duration,
    /// Between two renewals, and between two attempts.
    pub retry_period: Duration,
    /// The most one request to the API server may take.
    pub request_timeout: Duration,
}

impl Default for Timings {
    /// 15 s, 10 s, 2 s and 2 s.
    fn default() -> Self {
        read::DEFAULT_TIMINGS
    }
}

/// One configured kind. In code, [`Kind::of`] begins with its defaults. `lease_name`, `lease_group`, `lock` and `standby` belong to its shard, and are the same for each kind of
/// that; the rest is the kind's.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// API version within the group; empty for a shard that is about no kind of the API server.
    pub version: String,
    /// Kind in CamelCase, as in `kind:` of an object.
    pub kind: String,
    /// Resource in the plural, as its CRD names it, if the file says so: offline, nothing else tells.
    pub plural: Option<String>,
    /// Name of the Lease: `<kind>.<group>` in lower case, or that of its group, unless the file says otherwise.
    pub lease_name: String,
    /// The kinds that share its Lease are called so: the file's `group`, or the Lease's name if the election is
    /// [`Single`](Election::Single). Not the API group.
    pub lease_group: Option<String>,
    /// What that is the name of.
    pub lock: LockKind,
    /// Expected load, relative to the other kinds; at least 1.
    pub weight: u32,
    /// Objects reconciled at once; at least 1.
    pub concurrency: u16,
    /// Every object is reconciled at least this often.
    pub resync: Duration,
    /// Who keeps a cache of it without leading it.
    pub standby: StandbyMode,
    /// What its objects may take of a replica's memory.
    pub limits: Limits,
    /// Name under which its reconciler is registered: that of one compiled into the binary, or of the kind if it is composed.
    pub reconciler: String,
    /// File of its composition, beside the configuration, if it is composed.
    pub composition: Option<String>,
    /// The ServiceAccount that it acts as, in the replicas' namespace; `None`: their own.
    pub service_account: Option<String>,
    /// Whether the authors of its objects must be allowed what these have it do.
    pub escalation: Escalation,
}

impl Kind {
    /// One of which the file says no more than this, each other field at its default; it has no reconciler yet.
    /// `group` is empty for the core group.
    pub fn new(group: impl Into<String>, version: impl Into<String>, kind: impl Into<String>) -> Self {
        let kind = Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: None,
            lease_name: String::new(),
            lease_group: None,
            lock: LockKind::default(),
            weight: read::DEFAULT_LOAD.weight.into(),
            concurrency: read::DEFAULT_LOAD.concurrency,
            resync: read::DEFAULT_LOAD.resync,
            standby: read::DEFAULT_LOAD.standby,
            limits: read::DEFAULT_LOAD.limits,
            reconciler: String::new(),
            composition: None,
            service_account: None,
            escalation: Escalation::default(),
        };
        Self { lease_name: kind.name().to_ascii_lowercase(), ..kind }
    }

    /// Whether it is a shard of the replicas' own, about no kind of the API server.
    pub fn is_internal(&self) -> bool {
        self.version.is_empty()
    }

    /// `<Kind>.<group>`, or just the kind for the core group: how logs, metrics and labels name it.
    pub fn name(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}
