//! Drives one Lease: reads and writes it as its [`Election`] says, and reports where this replica stands.
//!
//! The only file that writes Leases. One request is in flight at a time, each with a timeout; while it is, what the
//! board shows and what time does to a grant are still acted on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Api, ResourceExt, api::PostParams};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{
    board::Sighting,
    clock::Clock,
    fence::{Fence, Gate},
    problem,
    record::{self, Lease, observation, version},
};
use crate::protocol::{
    election::{Election, Intent, Proposal, Purpose, RELEASED, Standing, Step},
    moment::Moment,
};
use crate::{
    config::{Kind, Timings},
    ops::{metrics::Metrics, status::Status},
};

/// What all electors of a replica share, and its membership with them.
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
    /// Uid of our Pod, if we hold its lock: whoever else gave it is dead (rule 11).
    pub pod_uid: Option<String>,
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
    /// The fence of the term in `standing`, opened already; or that of the next one, for a standby.
    pub fence: Gate,
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
    /// Holders whose process is proven dead.
    dead: watch::Receiver<Arc<BTreeSet<String>>>,
    reports: mpsc::UnboundedSender<(usize, Report)>,
    heeds: Intent,
    reported: Option<Phase>,
    fence: Fence,
    /// The term that the fence was opened for; `None`: it waits for the next one.
    fence_term: Option<u64>,
    /// The objects a proposal may rest on: what the watch and what our own requests last showed.
    objects: [Option<Arc<Lease>>; 2],
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
        dead: watch::Receiver<Arc<BTreeSet<String>>>,
        reports: mpsc::UnboundedSender<(usize, Report)>,
    ) -> Self {
        let election = Election::new(shared.identity.clone(), shared.timings);
        let fence = new_fence(&shared, &kind);
        Self {
            shared,
            shard,
            kind,
            election,
            sightings,
            intents,
            dead,
            reports,
            heeds: Intent::default(),
            reported: None,
            fence,
            fence_term: None,
            objects: [None, None],
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
            self.election.set_watched(self.watched());
            self.bury_the_dead(now);
            let step = self.election.step(now);
            self.report(now);
            match step {
                Step::Wait(at) => self.rest(at).await,
                Step::Read => self.read().await,
                Step::Write(proposal) => self.write(proposal, now).await,
            }
        }
    }

    /// A holder that is proven dead need not be waited for: by the kubelet's word, or because it was in our Pod before us.
    fn bury_the_dead(&mut self, now: Moment) {
        let Some(holder) = self.election.holder().filter(|holder| *holder != self.shared.identity) else { return };
        let before_us = || {
            let seen = self.objects.iter().flatten();
            let of_holder = seen.filter(|lease| lease.spec.holder_identity.as_deref() == Some(holder));
            let pods = of_holder.filter_map(|lease| record::holder_pod(lease));
            self.shared.pod_uid.as_deref().is_some_and(|ours| pods.into_iter().any(|pod| pod == ours))
        };
        if self.dead.borrow().contains(holder) || before_us() {
            let holder = holder.to_owned();
            self.election.bury(now, &holder);
        }
    }

    async fn rest(&mut self, at: Moment) {
        let at = at.min(self.election.next_change(self.shared.clock.now()));
        let clock = self.shared.clock;
        tokio::select! {
            biased;
            changed = self.intents.changed() => if changed.is_ok() { self.take_intent() },
            Ok(()) = self.sightings.changed() => self.take_sighting(),
            Ok(()) = self.dead.changed() => {}
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
            weight: self.kind.weight,
            identity: &self.shared.identity,
            pod_uid: self.shared.pod_uid.as_deref(),
            duration: self.shared.timings.lease_duration,
        };
        author.sign(&mut lease, proposal, record::wall_clock());
        Some(lease)
    }

    fn take_intent(&mut self) {
        self.heeds = self.intents.borrow_and_update().clone();
        self.election.intend(self.heeds.clone());
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
        match (grant, self.fence_term) {
            (Some(grant), Some(term)) if term == grant.term => self.fence.extend(grant.valid_until),
            (Some(grant), term) => {
                if term.is_some() {
                    self.renew_fence();
                }
                self.fence.extend(grant.valid_until);
                self.fence_term = Some(grant.term);
            }
            (None, Some(_)) => self.renew_fence(),
            (None, None) => {}
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
        let phase = (phase_of(&standing), settled, self.heeds.clone());
        if self.reported.as_ref() != Some(&phase) {
            self.reported = Some(phase);
            let report = Report { standing, fence: self.fence.gate(), settled, heeds: self.heeds.clone() };
            // Nobody listens any more when the supervisor has gone; `run` notices by the intents.
            let _closed = self.reports.send((self.shard, report));
        }
    }

    /// Shuts the fence of a term that is over, and has one ready for the next.
    fn renew_fence(&mut self) {
        self.fence = new_fence(&self.shared, &self.kind);
        self.fence_term = None;
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

fn new_fence(shared: &Shared, kind: &Kind) -> Fence {
    let (metrics, name) = (shared.metrics.clone(), kind.name());
    Fence::new(kind.lease_name.clone(), None, shared.clock, move || metrics.fenced(&name))
}

/// Who writes a Lease, and what for.
struct Author<'a> {
    instance: &'a str,
    kind: &'a str,
    weight: u32,
    identity: &'a str,
    pod_uid: Option<&'a str>,
    duration: Duration,
}

impl Author<'_> {
    /// Changes what we own, and leaves all else as it is (rule 13).
    fn sign(&self, lease: &mut Lease, proposal: &Proposal, wall_clock: MicroTime) {
        let about = format!(
            "The holder of this Lease is the one replica of {} that reconciles {}; an empty holder: nobody does.",
            self.instance, self.kind
        );
        record::mark(lease, self.instance, record::SHARD, about);
        let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
        annotations.insert(record::KIND_ANNOTATION.to_owned(), self.kind.to_owned());
        annotations.insert(record::WEIGHT_ANNOTATION.to_owned(), self.weight.to_string());
        let mut set = |name: &str, value: Option<String>| match value {
            Some(value) => annotations.insert(name.to_owned(), value),
            None => annotations.remove(name),
        };
        set(record::SUCCESSOR_ANNOTATION, proposal.successor.clone());
        let pod = self.pod_uid.filter(|_| proposal.purpose != Purpose::Release);
        set(record::HOLDER_POD_ANNOTATION, pod.map(|uid| format!("{uid}/{}", self.identity)));
        let takes_over = matches!(proposal.purpose, Purpose::Create | Purpose::Acquire);
        if takes_over && !annotations.get(record::HAND_OVER_ANNOTATION).is_some_and(|wanted| self.is_called(wanted)) {
            // It was asked of a replica that has not taken it: whoever asked is told by the new holder.
            annotations.remove(record::HAND_OVER_ANNOTATION);
        }
        let now = Some(wall_clock);
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

impl Author<'_> {
    /// By its identity or by the name of its Pod.
    fn is_called(&self, name: &str) -> bool {
        self.identity == name || self.identity.rsplit_once('_').is_some_and(|(pod, _)| pod == name)
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

    const AUTHOR: Author<'_> = Author {
        instance: "prod",
        kind: "Widget.example.com",
        weight: 3,
        identity: "pod_1",
        pod_uid: Some("uid-1"),
        duration: Duration::from_secs(15),
    };

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

    fn signed(purpose: Purpose, transitions: i32, change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let mut stored = stored();
        change(&mut stored);
        let mut lease: Lease = serde_json::from_value(stored).unwrap();
        let (basis, successor) = (version(&lease), (purpose == Purpose::Release).then(|| "pod_2".to_owned()));
        AUTHOR.sign(
            &mut lease,
            &Proposal { purpose, basis, transitions, successor },
            MicroTime("2026-02-02T02:02:02.123456Z".parse().unwrap()),
        );
        serde_json::to_value(lease).unwrap()
    }

    #[test]
    fn a_write_changes_what_is_ours_and_carries_over_all_else() {
        let mut expected = stored();
        let annotations = &mut expected["metadata"]["annotations"];
        annotations[record::KIND_ANNOTATION] = json!("Widget.example.com");
        annotations[record::WEIGHT_ANNOTATION] = json!("3");
        annotations[record::HOLDER_POD_ANNOTATION] = json!("uid-1/pod_1");
        annotations[record::ABOUT_ANNOTATION] = json!(
            "The holder of this Lease is the one replica of prod that reconciles Widget.example.com; an empty holder: nobody does."
        );
        expected["metadata"]["labels"][record::INSTANCE_LABEL] = json!("prod");
        expected["metadata"]["labels"][record::ROLE_LABEL] = json!("shard");
        expected["spec"]["renewTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["holderIdentity"] = json!("pod_1");
        expected["spec"]["leaseDurationSeconds"] = json!(15);
        assert_eq!(signed(Purpose::Renew, 4, |_| {}), expected);

        expected["spec"]["acquireTime"] = json!("2026-02-02T02:02:02.123456Z");
        expected["spec"]["leaseTransitions"] = json!(5);
        assert_eq!(signed(Purpose::Acquire, 5, |_| {}), expected);

        expected["spec"]["holderIdentity"] = json!("");
        expected["spec"]["leaseDurationSeconds"] = json!(1);
        let annotations = expected["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove(record::HOLDER_POD_ANNOTATION);
        annotations.insert(record::SUCCESSOR_ANNOTATION.to_owned(), json!("pod_2"));
        assert_eq!(signed(Purpose::Release, 5, |_| {}), expected);
    }

    #[test]
    fn what_was_asked_for_stays_with_whoever_it_was_asked_of() {
        let wanted = |name: &'static str, purpose| {
            let asked = |lease: &mut serde_json::Value| {
                lease["metadata"]["annotations"][record::HAND_OVER_ANNOTATION] = json!(name);
                lease["metadata"]["annotations"][record::SUCCESSOR_ANNOTATION] = json!("pod_1");
            };
            let lease = signed(purpose, 5, asked);
            assert_eq!(lease.pointer("/metadata/annotations").unwrap().get(record::SUCCESSOR_ANNOTATION), None);
            lease["metadata"]["annotations"].get(record::HAND_OVER_ANNOTATION).is_some()
        };
        assert!(wanted("pod_1", Purpose::Acquire) && wanted("pod", Purpose::Acquire));
        assert!(!wanted("pod_2", Purpose::Acquire));
        assert!(wanted("pod_2", Purpose::Renew), "the holder is about to hand it over");
    }

    #[test]
    fn a_pod_is_the_holders_only_while_its_identity_holds() {
        let mut lease = stored();
        lease["metadata"]["annotations"][record::HOLDER_POD_ANNOTATION] = json!("uid-0/pod_0");
        let pod = |lease: &serde_json::Value| {
            let lease: Lease = serde_json::from_value(lease.clone()).unwrap();
            record::holder_pod(&lease).map(str::to_owned)
        };
        assert_eq!(pod(&lease).as_deref(), Some("uid-0"));
        lease["spec"]["holderIdentity"] = json!("a client-go elector");
        assert_eq!(pod(&lease), None);
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
