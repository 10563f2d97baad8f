//! Drives one Lease: reads and writes it as its [`Election`] says, and reports where this replica stands.
//!
//! The only file that writes Leases. One request is in flight at a time, each with a timeout; while it is, what the
//! board shows and what time does to a grant are still acted on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, ResourceExt, api::PostParams};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{
    bid,
    board::{INSTANCE_LABEL, Sighting},
    clock::Clock,
    election::{Election, Intent, Observation, Proposal, Purpose, RELEASED, Standing, Step, Version},
    fence::Fence,
    moment::Moment,
    problem,
    record::{self, Lease},
};
use crate::{
    config::{Kind, Timings},
    ops::{metrics::Metrics, status::Status},
};

/// Label that tells what a Lease of ours is about.
pub const ROLE_LABEL: &str = "leasehold.dev/role";
/// Annotation with the kind of a shard's Lease, `<Kind>.<group>`, which may be too long for a label.
pub const KIND_ANNOTATION: &str = "leasehold.dev/kind";

/// The weight this replica holds or is bidding for: what makes it patient.
#[derive(Debug)]
pub struct Load {
    held: AtomicU32,
    total: u32,
}

impl Load {
    /// No load, of the given total.
    pub fn new(total: u32) -> Self {
        Self { held: AtomicU32::new(0), total }
    }
}

/// What all electors of a replica share.
#[derive(Clone)]
pub struct Shared {
    /// The client's retries are off, and it is used for nothing else: reconcile traffic cannot starve a renewal.
    pub leases: Api<Lease>,
    /// Namespace of the Leases.
    pub namespace: String,
    /// Value of the instance label.
    pub instance: String,
    /// Holder identity of this process.
    pub identity: String,
    /// Validated timings.
    pub timings: Timings,
    /// The most patience there is.
    pub grace: Duration,
    /// Counts this replica's weight.
    pub load: Arc<Load>,
    /// The process's clock.
    pub clock: Clock,
    /// What is known of each shard.
    pub status: Status,
    /// Counts and times.
    pub metrics: Metrics,
}

/// What an elector tells the supervisor, whenever one of these changes.
#[derive(Clone)]
pub struct Report {
    /// Where this replica stands.
    pub standing: Standing,
    /// The fence of the term in `standing`, opened already.
    pub fence: Option<Fence>,
    /// Nothing of ours is on the Lease or on its way there.
    pub settled: bool,
    /// The intent that the elector has taken in: what it says holds under this one.
    pub heeds: Intent,
}

/// One Lease's elector.
pub struct Elector {
    shared: Shared,
    shard: usize,
    kind: Arc<Kind>,
    election: Election,
    sightings: watch::Receiver<Sighting>,
    intents: watch::Receiver<Intent>,
    reports: mpsc::UnboundedSender<(usize, Report)>,
    heeds: Intent,
    reported: Option<Phase>,
    fence: Option<(u64, Fence)>,
    /// The objects a proposal may rest on: what the watch and what our own requests last showed.
    objects: [Option<Arc<Lease>>; 2],
    /// Our weight is counted in the load.
    counted: bool,
    free_since: Option<Moment>,
    trouble: Option<String>,
}

const FROM_WATCH: usize = 0;
const FROM_REQUEST: usize = 1;

impl Elector {
    /// An elector for one kind's Lease. `shard` marks its reports; the channel is unbounded because a report is sent on
    /// change only, and an elector must never wait for a reader.
    pub fn new(
        shared: Shared,
        shard: usize,
        kind: Arc<Kind>,
        sightings: watch::Receiver<Sighting>,
        intents: watch::Receiver<Intent>,
        reports: mpsc::UnboundedSender<(usize, Report)>,
    ) -> Self {
        let election = Election::new(shared.identity.clone(), shared.timings);
        Self {
            shared,
            shard,
            kind,
            election,
            sightings,
            intents,
            reports,
            heeds: Intent::default(),
            reported: None,
            fence: None,
            objects: [None, None],
            counted: false,
            free_since: None,
            trouble: None,
        }
    }

    /// Takes part in the election until the supervisor goes away.
    /// Dropping it leaves the Lease as it is: whoever stops a replica asks for a release first, by the intent.
    pub async fn run(mut self) {
        self.take_intent();
        self.take_sighting();
        while self.intents.has_changed().is_ok() {
            let now = self.shared.clock.now();
            let patience = self.patience();
            self.election.set_watched(self.watched());
            let step = self.election.step(now, patience);
            self.report(now);
            match step {
                Step::Wait(at) => self.rest(at).await,
                Step::Read => self.read().await,
                Step::Write(proposal) => self.write(proposal, now).await,
            }
        }
    }

    fn patience(&self) -> Duration {
        let held = self.shared.load.held.load(Ordering::Relaxed);
        let others = if self.counted { held.saturating_sub(self.kind.weight) } else { held };
        bid::patience(self.shared.grace, others, self.shared.load.total, &self.shared.identity, &self.kind.lease_name)
    }

    async fn rest(&mut self, at: Moment) {
        let at = at.min(self.election.next_change(self.shared.clock.now()));
        let clock = self.shared.clock;
        tokio::select! {
            biased;
            changed = self.intents.changed() => if changed.is_ok() { self.take_intent() },
            Ok(()) = self.sightings.changed() => self.take_sighting(),
            () = clock.sleep_until(at) => {}
        }
    }

    /// Waits for a request and for nothing else to be sent, but sees and reports what happens meanwhile.
    async fn attend<T>(&mut self, request: impl Future<Output = T>) -> T {
        tokio::pin!(request);
        let clock = self.shared.clock;
        loop {
            let change = self.election.next_change(clock.now());
            tokio::select! {
                biased;
                answer = &mut request => return answer,
                Ok(()) = self.sightings.changed() => self.take_sighting(),
                () = clock.sleep_until(change) => {}
            }
            self.report(clock.now());
        }
    }

    async fn read(&mut self) {
        let leases = self.shared.leases.clone();
        let name = self.kind.lease_name.clone();
        let timeout = self.shared.timings.request_timeout;
        let answer = self.attend(tokio::time::timeout(timeout, async move { leases.get_opt(&name).await })).await;
        let now = self.shared.clock.now();
        match answer {
            Ok(Ok(lease)) => {
                self.shared.metrics.lease_request("get", "ok");
                self.trouble(None);
                let lease = lease.map(Arc::new);
                let observation = lease.as_deref().and_then(observation);
                self.objects[FROM_REQUEST] = lease;
                self.election.read(now, observation);
            }
            Ok(Err(error)) => {
                self.shared.metrics.lease_request("get", "error");
                self.trouble(Some(problem::of_lease_request(&error, "get", &self.shared.namespace)));
                self.election.read_failed(now);
            }
            Err(_elapsed) => {
                self.shared.metrics.lease_request("get", "timeout");
                self.trouble(Some(format!("no answer to get the Lease within {timeout:?}")));
                self.election.read_failed(now);
            }
        }
    }

    async fn write(&mut self, proposal: Proposal, sent_at: Moment) {
        let verb = if proposal.purpose == Purpose::Create { "create" } else { "update" };
        let Some(lease) = self.compose(&proposal) else {
            // The object decided on is no longer at hand: a read brings it back.
            self.election.conflicted(sent_at);
            return;
        };
        if matches!(proposal.purpose, Purpose::Create | Purpose::Acquire) {
            self.count(true);
        }
        let leases = self.shared.leases.clone();
        let timeout = self.shared.timings.request_timeout;
        let create = proposal.purpose == Purpose::Create;
        let request = async move {
            let params = PostParams::default();
            match create {
                true => leases.create(&params, &lease).await,
                false => leases.replace(&lease.name_any(), &params, &lease).await,
            }
        };
        let answer = self.attend(tokio::time::timeout(timeout, request)).await;
        let now = self.shared.clock.now();
        let outcome = match answer {
            Ok(Ok(stored)) => match observation(&stored) {
                Some(what) => {
                    self.objects[FROM_REQUEST] = Some(Arc::new(stored));
                    self.election.written(now, what);
                    self.written(&proposal, sent_at, now);
                    "ok"
                }
                None => {
                    self.election.unknown(now);
                    "unknown"
                }
            },
            Ok(Err(error)) => self.failed(&error, verb, now),
            Err(_elapsed) => {
                self.trouble(Some(format!(
                    "no answer to {verb} the Lease within {timeout:?}: it may have been carried out"
                )));
                self.election.unknown(now);
                "timeout"
            }
        };
        self.shared.metrics.lease_request(verb, outcome);
        debug!(kind = self.name(), lease = self.kind.lease_name, purpose = ?proposal.purpose, outcome, "lease written");
    }

    fn written(&mut self, proposal: &Proposal, sent_at: Moment, now: Moment) {
        self.trouble(None);
        let kind = self.name();
        match proposal.purpose {
            Purpose::Renew => self.shared.metrics.renewed(&kind, now.since(sent_at)),
            Purpose::Create | Purpose::Acquire => {
                self.shared.metrics.transition(&kind);
                if let Some(free_since) = self.free_since {
                    self.shared.metrics.without_owner(&kind, now.since(free_since));
                }
            }
            Purpose::Release => {}
        }
    }

    fn failed(&mut self, error: &kube::Error, verb: &str, now: Moment) -> &'static str {
        match error {
            // Conflict; created by another meanwhile; or deleted meanwhile, but for a creation, whose 404 is about the namespace.
            kube::Error::Api(status) if status.code == 409 || (status.code == 404 && verb != "create") => {
                self.election.conflicted(now);
                "conflict"
            }
            kube::Error::Api(status) if status.code < 500 => {
                self.trouble(Some(problem::of_lease_request(error, verb, &self.shared.namespace)));
                self.election.refused(now);
                "refused"
            }
            _ => {
                self.trouble(Some(problem::of_lease_request(error, verb, &self.shared.namespace)));
                self.election.unknown(now);
                "error"
            }
        }
    }

    /// The object to write: everything that is on the stored one, with what we own changed (rule 13).
    fn compose(&self, proposal: &Proposal) -> Option<Lease> {
        let mut lease = match &proposal.basis {
            Some(basis) => {
                let stored = self.objects.iter().flatten().find(|lease| version(lease).as_ref() == Some(basis))?;
                Lease::clone(stored)
            }
            None => record::new(&self.kind.lease_name, &self.shared.namespace),
        };
        let author = Author {
            instance: &self.shared.instance,
            kind: &self.name(),
            identity: &self.shared.identity,
            duration: self.shared.timings.lease_duration,
        };
        author.sign(&mut lease, proposal, wall_clock());
        Some(lease)
    }

    fn take_intent(&mut self) {
        self.heeds = *self.intents.borrow_and_update();
        self.election.intend(self.heeds);
    }

    fn take_sighting(&mut self) {
        let sighting = self.sightings.borrow_and_update().clone();
        let never_on_the_board = sighting.lease.is_none() && self.objects[FROM_WATCH].is_none();
        // A Lease without our label, as another elector may have made it, is not on the board: that proves nothing.
        if !sighting.current || (never_on_the_board && self.election.exists()) {
            return;
        }
        let observation = sighting.lease.as_deref().and_then(observation);
        self.objects[FROM_WATCH] = sighting.lease;
        self.election.sighted(self.shared.clock.now(), observation);
    }

    /// Whether changes of this Lease will be shown by the board.
    fn watched(&self) -> bool {
        let sighting = self.sightings.borrow();
        sighting.current && (sighting.lease.is_some() || !self.election.exists())
    }

    /// Tells the supervisor what has changed, and lets the fence and the status follow every change.
    fn report(&mut self, now: Moment) {
        let standing = self.election.standing(now);
        let grant = match &standing {
            Standing::Leading(grant) | Standing::Losing(grant) => Some(grant),
            Standing::Standby => None,
        };
        match (grant, &self.fence) {
            (Some(grant), Some((term, fence))) if *term == grant.term => fence.extend(grant.valid_until),
            (Some(grant), old) => {
                if let Some((_, fence)) = old {
                    fence.close();
                }
                let (metrics, kind) = (self.shared.metrics.clone(), self.name());
                let fence = Fence::new(self.kind.lease_name.clone(), self.shared.clock, move || metrics.fenced(&kind));
                fence.extend(grant.valid_until);
                self.fence = Some((grant.term, fence));
            }
            (None, Some((_, fence))) => {
                fence.close();
                self.fence = None;
            }
            (None, None) => {}
        }
        // A write on its way counts too: kinds that bid at the same instant must know of each other.
        if grant.is_some() || self.election.settled() {
            self.count(grant.is_some());
        }
        self.free_since = match (grant, self.election.free_since(now)) {
            (Some(_), _) => None,
            (None, Some(since)) => Some(since),
            // Ours on paper by a write whose reply is still out: free until that is confirmed.
            (None, None) => self.free_since.filter(|_| self.election.holder() == Some(self.shared.identity.as_str())),
        };
        let instant = |moment: Moment| tokio_instant(self.shared.clock, moment);
        let holder = self.election.holder().map(str::to_owned);
        let (valid_until, renewed_at) = (grant.map(|g| instant(g.valid_until)), grant.map(|g| instant(g.sent_at)));
        self.shared.status.update(&self.kind.lease_name, |shard| {
            shard.holder = holder;
            shard.valid_until = valid_until.or(shard.valid_until.filter(|_| shard.running));
            shard.renewed_at = renewed_at;
        });
        let settled = self.election.settled();
        let phase = (phase_of(&standing), settled, self.heeds);
        if self.reported != Some(phase) {
            self.reported = Some(phase);
            let fence = self.fence.as_ref().map(|(_, fence)| fence.clone());
            // Nobody listens any more when the supervisor has gone; `run` notices by the intents.
            let _closed = self.reports.send((self.shard, Report { standing, fence, settled, heeds: self.heeds }));
        }
    }

    fn count(&mut self, counted: bool) {
        if counted != self.counted {
            self.counted = counted;
            let held = &self.shared.load.held;
            if counted {
                held.fetch_add(self.kind.weight, Ordering::Relaxed);
            } else {
                held.fetch_sub(self.kind.weight, Ordering::Relaxed);
            }
        }
    }

    fn trouble(&mut self, trouble: Option<String>) {
        if trouble == self.trouble {
            return;
        }
        if let Some(trouble) = &trouble {
            warn!(kind = self.name(), lease = self.kind.lease_name, holder = self.shared.identity, "{trouble}");
        }
        let shown = trouble.clone();
        self.shared.status.update(&self.kind.lease_name, |shard| shard.trouble = shown);
        self.trouble = trouble;
    }

    fn name(&self) -> String {
        self.kind.name()
    }
}

/// Who writes a Lease, and what for.
struct Author<'a> {
    instance: &'a str,
    kind: &'a str,
    identity: &'a str,
    duration: Duration,
}

impl Author<'_> {
    /// Changes what we own, and leaves all else as it is (rule 13).
    fn sign(&self, lease: &mut Lease, proposal: &Proposal, wall_clock: Timestamp) {
        lease.metadata.managed_fields = None;
        let labels = lease.metadata.labels.get_or_insert_with(BTreeMap::new);
        labels.insert(INSTANCE_LABEL.to_owned(), self.instance.to_owned());
        labels.insert(ROLE_LABEL.to_owned(), "shard".to_owned());
        let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
        annotations.insert(KIND_ANNOTATION.to_owned(), self.kind.to_owned());
        let now = Some(MicroTime(wall_clock));
        let (holder, duration) = match proposal.purpose {
            Purpose::Release => ("", RELEASED),
            Purpose::Create | Purpose::Acquire | Purpose::Renew => (self.identity, self.duration),
        };
        let spec = &mut lease.spec;
        spec.holder_identity = Some(holder.to_owned());
        spec.lease_duration_seconds = i32::try_from(duration.as_secs()).ok();
        spec.lease_transitions = Some(proposal.transitions);
        spec.renew_time.clone_from(&now);
        if proposal.purpose != Purpose::Renew {
            spec.acquire_time = now;
        }
    }
}

/// What makes a report worth sending.
type Phase = ((u8, u64), bool, Intent);

/// What of a standing the supervisor acts on: the phase and the term, not each renewal.
fn phase_of(standing: &Standing) -> (u8, u64) {
    match standing {
        Standing::Standby => (0, 0),
        Standing::Leading(grant) => (1, grant.term),
        Standing::Losing(grant) => (2, grant.term),
    }
}

fn version(lease: &Lease) -> Option<Version> {
    let metadata = &lease.metadata;
    Some(Version { uid: metadata.uid.clone()?, resource_version: metadata.resource_version.clone()? })
}

/// What an election needs of a Lease; `None` for one without uid or resourceVersion, which no API server stores.
fn observation(lease: &Lease) -> Option<Observation> {
    let spec = &lease.spec;
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    Some(Observation {
        version: version(lease)?,
        holder: spec.holder_identity.clone().filter(|holder| !holder.is_empty()),
        duration: seconds.map(Duration::from_secs),
        transitions: spec.lease_transitions.unwrap_or(0),
    })
}

/// Wall time is written on the Lease for people to read, and decides nothing.
#[expect(clippy::disallowed_methods, reason = "written for people, never read back to decide")]
fn wall_clock() -> Timestamp {
    Timestamp::now()
}

#[expect(clippy::disallowed_methods, reason = "the one place where a moment becomes an instant to sleep until")]
fn tokio_instant(clock: Clock, moment: Moment) -> tokio::time::Instant {
    let (now, instant) = (clock.now(), tokio::time::Instant::now());
    match moment >= now {
        true => instant + moment.since(now),
        false => instant.checked_sub(now.since(moment)).unwrap_or(instant),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AUTHOR: Author<'_> =
        Author { instance: "prod", kind: "Widget.example.com", identity: "pod_1", duration: Duration::from_secs(15) };

    fn stored() -> serde_json::Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "widget.example.com", "namespace": "ns", "uid": "u", "resourceVersion": "7",
                "labels": {"theirs": "stays"}, "annotations": {"theirs": "stays"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"}],
            },
            "spec": {
                "holderIdentity": "pod_0", "leaseDurationSeconds": 30, "leaseTransitions": 4,
                "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:05.000000Z",
                "preferredHolder": "somebody", "strategy": "OldestEmulationVersion", "ofTheFuture": {"a": [1]},
            },
        })
    }

    fn signed(purpose: Purpose, transitions: i32) -> serde_json::Value {
        let mut lease: Lease = serde_json::from_value(stored()).unwrap();
        let basis = version(&lease);
        AUTHOR.sign(
            &mut lease,
            &Proposal { purpose, basis, transitions },
            "2026-02-02T02:02:02.123456Z".parse().unwrap(),
        );
        serde_json::to_value(lease).unwrap()
    }

    #[test]
    fn a_write_changes_what_is_ours_and_carries_over_all_else() {
        let mut expected = stored();
        expected["metadata"]["labels"][INSTANCE_LABEL] = json!("prod");
        expected["metadata"]["labels"][ROLE_LABEL] = json!("shard");
        expected["metadata"]["annotations"][KIND_ANNOTATION] = json!("Widget.example.com");
        expected["spec"]["renewTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["holderIdentity"] = json!("pod_1");
        expected["spec"]["leaseDurationSeconds"] = json!(15);
        assert_eq!(signed(Purpose::Renew, 4), expected);

        expected["spec"]["acquireTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["leaseTransitions"] = json!(5);
        assert_eq!(signed(Purpose::Acquire, 5), expected);

        expected["spec"]["holderIdentity"] = json!("");
        expected["spec"]["leaseDurationSeconds"] = json!(1);
        assert_eq!(signed(Purpose::Release, 5), expected);
    }

    #[test]
    fn what_a_record_says_of_the_time_of_day_is_not_even_read() {
        let read = |renewed: &str| {
            let mut lease = stored();
            lease["spec"]["renewTime"] = json!(renewed);
            lease["spec"]["acquireTime"] = json!(renewed);
            observation(&serde_json::from_value(lease).unwrap())
        };
        let (past, future) = (read("1996-01-01T00:00:00.000000Z"), read("2096-01-01T00:00:00.000000Z"));
        assert!(past.is_some());
        assert_eq!(past, future);
    }

    #[test]
    fn empty_and_null_fields_are_free_and_unknown() {
        for spec in [json!({}), json!({"holderIdentity": "", "leaseDurationSeconds": null, "leaseTransitions": null})] {
            let mut lease = stored();
            lease["spec"] = spec;
            let seen = observation(&serde_json::from_value(lease).unwrap()).unwrap();
            assert_eq!((seen.holder, seen.duration, seen.transitions), (None, None, 0));
        }
    }
}
