//! The settings of a kind, said in code.

use std::time::Duration;

use kube::Resource;

use crate::config::{Escalation, Kind, Limits, LockKind, StandbyMode};

impl Kind {
    /// The kind of these objects, each setting at its default.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use k8s_openapi::api::core::v1::ConfigMap;
    /// use leasehold::Kind;
    ///
    /// let kind = Kind::of::<ConfigMap>().weight(3).resync(Duration::from_secs(300)).in_group("settings");
    /// assert_eq!(kind.name(), "ConfigMap");
    /// ```
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        let kind = Self::new(K::group(&()), K::version(&()), K::kind(&()));
        Self { plural: Some(K::plural(&()).into_owned()), ..kind }
    }

    /// Its expected load, relative to the other kinds: 1 to 1,000.
    #[must_use]
    pub fn weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// Objects that are reconciled at once: 1 to 1,000. A reconciler of your own reads it at [`Term::kind`](crate::Term::kind).
    #[must_use]
    pub fn concurrency(self, concurrency: u16) -> Self {
        Self { concurrency, ..self }
    }

    /// How often every object is reconciled at least: 1 s to a week.
    #[must_use]
    pub fn resync(self, resync: Duration) -> Self {
        Self { resync, ..self }
    }

    /// Which replicas keep a cache of it while another one leads.
    #[must_use]
    pub fn standby(self, standby: StandbyMode) -> Self {
        Self { standby, ..self }
    }

    /// Kinds of one group share a Lease: one replica leads all of them. They have the same `standby` and the same `lock`.
    #[must_use]
    pub fn in_group(self, group: impl Into<String>) -> Self {
        Self { lease_group: Some(group.into()), ..self }
    }

    /// The name of its Lease, if it is not to be `<kind>.<group>` in lower case.
    #[must_use]
    pub fn lease(self, name: impl Into<String>) -> Self {
        Self { lease_name: name.into(), ..self }
    }

    /// What its lock is; all but a Lease are for migrations.
    #[must_use]
    pub fn lock(self, lock: LockKind) -> Self {
        Self { lock, ..self }
    }

    /// What its objects may take of a replica's memory, where the children engine reconciles it.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The ServiceAccount that it acts as, by impersonation, in the namespace of the replicas.
    #[must_use]
    pub fn service_account(self, name: impl Into<String>) -> Self {
        Self { service_account: Some(name.into()), ..self }
    }

    /// Whether the authors of its objects must be allowed what these have it do, where it is composed and webhooks are served.
    #[must_use]
    pub fn escalation(self, escalation: Escalation) -> Self {
        Self { escalation, ..self }
    }
}
