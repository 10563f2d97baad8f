//! What is known of the whole installation: by this replica's own status, and by what the other replicas say at `/shards`.
//!
//! The others are asked while a page is open, and not otherwise, by whom it is looked at. All open pages share one answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::document::{Document, Head, Scale, document};
use crate::ops::{
    ask::ask,
    http::{now, report},
    metrics::Metrics,
    picture::{Member, Renewal, Seen, Stored, picture, pod_of},
    report::{Report, Shard},
    status::{self, Status},
    timeline::History,
};

/// What is shown is at most this old.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Replicas that are asked, and at a time.
const ASKED: usize = 64;
const AT_A_TIME: usize = 16;
/// In the cluster's network an answer takes milliseconds.
const ANSWER: Duration = Duration::from_secs(1);
/// One that did not answer is not asked again for this long: the others shall not wait for it each time.
const AGAIN: Duration = Duration::from_secs(5);
/// The most that an answer may come to: that of a thousand kinds is a tenth of it.
const BYTES: usize = 8 << 20;
/// Answers are read at this rate at the most, so that thousands of kinds make the page slower and not the replica.
const BYTES_PER_SECOND: usize = 1 << 20;

/// Makes what the page shows, whenever it is asked for.
pub(super) struct Gatherer {
    status: Status,
    metrics: Metrics,
    origin: Instant,
    state: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    /// Until then it is new enough.
    until: Option<Instant>,
    document: Arc<Document>,
    /// When the others are to be asked again.
    ask_at: Option<Instant>,
    /// By name of the Pod: what it said last, and from when on it may be asked again.
    said: BTreeMap<String, (Result<Report, String>, Instant)>,
}

impl Gatherer {
    pub(super) fn new(status: Status, metrics: Metrics) -> Self {
        Self { status, metrics, origin: now(), state: Mutex::default() }
    }

    pub(super) fn scale(&self) -> Scale {
        Scale { origin: self.origin, now: now() }
    }

    /// As it is now, or was a moment ago. Cancel safe: who asks next goes on.
    pub(super) async fn document(&self) -> Arc<Document> {
        let mut state = self.state.lock().await;
        if state.until.is_some_and(|until| now() < until) {
            return Arc::clone(&state.document);
        }
        self.ask_others(&mut state).await;
        let scale = self.scale();
        let own = report(&self.status, &self.metrics, None, scale.now);
        self.learn(scale.now, &state);
        let head = self.head(&own, scale);
        let seen = seen(own, &self.status.replica(), &state.said);
        let made = document(head, picture(&seen), self.status.timeline().all(scale.now), &state.document, scale);
        state.document = Arc::new(made);
        state.until = Some(scale.now + TICK.mul_f64(0.9));
        Arc::clone(&state.document)
    }

    fn head(&self, own: &Report, scale: Scale) -> Head {
        Head {
            served_by: pod_of(&own.identity).to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            instance: self.status.replica().instance,
            unready: own.reason.clone(),
            waits: own.waits.iter().flatten().map(|wait| wait.message.clone()).collect(),
            seen_since: self.status.timeline().seen_since().map(|since| scale.at(since)),
            ..Head::default()
        }
    }

    /// Asks those that are due.
    async fn ask_others(&self, state: &mut Gathered) {
        let replica = self.status.replica();
        let others: Vec<_> = others(&replica).take(ASKED).collect();
        let names: BTreeSet<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
        state.said.retain(|name, _| names.contains(name.as_str()));
        let began = now();
        if state.ask_at.is_some_and(|at| began < at) {
            return;
        }
        let due = |name: &str| state.said.get(name).is_none_or(|(_, again)| began >= *again);
        let due: Vec<_> = others.into_iter().filter(|(name, _)| due(name)).collect();
        let mut bytes = 0;
        let answers = due.into_iter().map(|(name, address)| async move {
            let answer = match address {
                Ok(address) => ask_one(&name, address).await,
                Err(why) => Err(why),
            };
            (name, answer)
        });
        let mut answers = futures::stream::iter(answers).buffer_unordered(AT_A_TIME);
        while let Some((name, answer)) = answers.next().await {
            let again = if answer.is_ok() { began } else { now() + AGAIN };
            let answer = answer.map(|(report, read)| {
                bytes += read;
                report
            });
            state.said.insert(name, (answer, again));
        }
        state.ask_at = Some(began + pause(bytes));
    }

    /// Of each takeover its new holder knows best for how long it was waited for.
    fn learn(&self, now: Instant, state: &Gathered) {
        let ours: BTreeSet<String> = self.status.shards().into_iter().map(|shard| shard.lease).collect();
        for (answer, _) in state.said.values() {
            let Ok(report) = answer else { continue };
            let told = report.shards.iter().filter(|shard| shard.takeovers.iter().any(|it| it.to == report.identity));
            let takeovers = told.map(|shard| (shard.lease.clone(), shard.takeovers.clone())).collect();
            let history = History { identity: report.identity.clone(), takeovers, ..History::default() };
            self.status.timeline().adopt(now, history, |lease| ours.contains(lease));
        }
    }
}

/// How long after the last time the others are asked again, by how much they had to say then.
fn pause(bytes: usize) -> Duration {
    let bytes = Duration::from_millis(u64::try_from(bytes / (BYTES_PER_SECOND / 1000)).unwrap_or(u64::MAX));
    bytes.clamp(TICK.mul_f64(0.9), Duration::from_secs(30))
}

/// The Pods of the other replicas, and where they answer.
fn others(replica: &status::Replica) -> impl Iterator<Item = (String, Result<SocketAddr, String>)> {
    let own = pod_of(&replica.identity);
    let pods = replica.pods.iter().flat_map(|pods| pods.iter()).filter(move |pod| pod.name != own);
    pods.map(|pod| (pod.name.clone(), pod.address.ok_or_else(|| "its Pod has no address yet".to_owned())))
}

async fn ask_one(name: &str, address: SocketAddr) -> Result<(Report, usize), String> {
    let answer = timeout(ANSWER, ask(address, "/shards", BYTES)).await;
    let answer = answer.map_err(|_elapsed| format!("no answer within {} s", ANSWER.as_secs()))?;
    let bytes = answer.map_err(|error| error.to_string())?;
    let report: Report = serde_json::from_slice(&bytes).map_err(|_error| "its answer is no report".to_owned())?;
    match pod_of(&report.identity) == name {
        true => Ok((report, bytes.len())),
        false => Err("another process answers at its address".to_owned()),
    }
}

/// What one replica knows by itself, and by what the others have said.
fn seen(own: Report, replica: &status::Replica, said: &BTreeMap<String, (Result<Report, String>, Instant)>) -> Seen {
    let mut reports: BTreeMap<String, Result<Report, String>> =
        said.iter().map(|(name, (answer, _))| (name.clone(), answer.clone())).collect();
    let mut problems = Vec::new();
    if replica.pods.is_none() {
        let why = "this one does not see the Pods, and so does not know where they answer";
        problems.push(format!("the other replicas: {why}"));
    }
    // Without its watch it sees no renewal.
    let is_blind = own.waits.iter().flatten().any(|wait| wait.reason == "Blind");
    let mut leases = BTreeMap::<String, Stored>::new();
    for shard in &own.shards {
        leases.entry(shard.lease.clone()).or_insert_with(|| stored(shard, is_blind)).kinds.push(shard.kind.clone());
    }
    let peer = |peer: &status::Peer| Member {
        identity: peer.identity.clone(),
        pod: pod_of(&peer.identity).to_owned(),
        generation: peer.generation.clone(),
        capacity: Some(peer.capacity),
        draining: peer.draining,
        newest: Some(peer.newest),
    };
    let mut members: Vec<Member> = replica.peers.iter().map(peer).collect();
    let told = |report: &Report| Member {
        identity: report.identity.clone(),
        pod: pod_of(&report.identity).to_owned(),
        generation: report.generation.clone().unwrap_or_default(),
        capacity: report.capacity,
        draining: report.stopping,
        newest: None,
    };
    // Those that answer are there, whatever the Leases say.
    for report in reports.values().flatten() {
        if !members.iter().any(|member| member.identity == report.identity) {
            members.push(told(report));
        }
    }
    reports.insert(pod_of(&own.identity).to_owned(), Ok(own));
    let pods = replica.pods.as_ref().map(|pods| pods.to_vec());
    Seen { namespace: replica.namespace.clone(), leases, members, pods, reports, problems }
}

fn stored(shard: &Shard, is_blind: bool) -> Stored {
    Stored {
        kinds: Vec::new(),
        holder: shard.holder.clone(),
        token: shard.token.clone().unwrap_or_default(),
        weight: shard.weight,
        held_seconds: None,
        renewal: match shard.without_leader_seconds {
            Some(_) => Renewal::Silent,
            None if is_blind => Renewal::Unknown,
            None => Renewal::Renewed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{picture::State, report::Wait};

    fn own(shards: Vec<Shard>) -> Report {
        Report { identity: "a_1".to_owned(), ready: true, waits: Some(Vec::new()), shards, ..Report::default() }
    }

    fn held(holder: &str) -> Shard {
        Shard {
            kind: "Widget.example.com".to_owned(),
            lease: "w".to_owned(),
            state: "Standby".to_owned(),
            holder: Some(holder.to_owned()),
            weight: Some(3),
            ..Shard::default()
        }
    }

    fn replica() -> status::Replica {
        let peer =
            |identity: &str, newest| status::Peer { identity: identity.to_owned(), newest, ..Default::default() };
        let pod = |name: &str| status::Pod { name: name.to_owned(), ..Default::default() };
        let crashing = status::Pod {
            condition: Some(("CrashLoopBackOff".to_owned(), Some("bad configuration".to_owned()))),
            ..pod("c")
        };
        status::Replica {
            identity: "a_1".to_owned(),
            peers: vec![peer("a_1", true), peer("b_1", false)],
            pods: Some([pod("a"), pod("b"), crashing].into()),
            ..Default::default()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the test is about no time")]
    fn said(name: &str, answer: Result<Report, String>) -> BTreeMap<String, (Result<Report, String>, Instant)> {
        [(name.to_owned(), (answer, Instant::now()))].into()
    }

    #[test]
    fn what_one_replica_sees_is_shown_when_no_other_answers() {
        let not_reached = said("b", Err("no answer within 1 s".to_owned()));
        let state = |shard: Shard, own_says: fn(&mut Report)| {
            let mut report = own(vec![shard]);
            own_says(&mut report);
            picture(&seen(report, &replica(), &not_reached)).kinds[0].state
        };
        assert_eq!(state(held("b_1"), |_| ()), State::Renewed, "its own watch sees that");
        let silent = Shard { without_leader_seconds: Some(3.0), ..held("b_1") };
        assert_eq!(state(silent, |_| ()), State::Silent);
        assert_eq!(state(held("x_1"), |_| ()), State::ForeignHolder);
        let blind = |report: &mut Report| {
            report.waits = Some(vec![Wait { reason: "Blind".to_owned(), ..Wait::default() }]);
        };
        assert_eq!(state(held("b_1"), blind), State::Held);
        let shown = picture(&seen(own(vec![held("b_1")]), &replica(), &not_reached));
        assert_eq!(shown.not_reached, ["b: no answer within 1 s"]);
        let b = &shown.replicas[1];
        assert_eq!(
            (b.pod.as_str(), b.state.as_str(), b.kinds, b.load, b.newest),
            ("b", "NotReached", 1, 3, Some(false))
        );
    }

    #[test]
    fn the_pods_of_a_bad_rollout_are_shown_with_their_last_words() {
        let asked: Vec<_> = others(&replica()).map(|(name, address)| (name, address.is_err())).collect();
        assert_eq!(asked, [("b".to_owned(), true), ("c".to_owned(), true)]);
        let shown =
            picture(&seen(own(Vec::new()), &replica(), &said("c", Err("its Pod has no address yet".to_owned()))));
        let crashing = shown.replicas.iter().find(|it| it.pod == "c").unwrap();
        assert_eq!(
            (crashing.state.as_str(), crashing.reason.as_deref()),
            ("CrashLoopBackOff", Some("bad configuration"))
        );
    }

    #[test]
    fn a_replica_that_answers_is_there_whatever_the_leases_say() {
        let other = Report { identity: "b_2".to_owned(), stopping: true, ..own(vec![held("b_2")]) };
        let shown = picture(&seen(own(vec![held("b_2")]), &replica(), &said("b", Ok(other))));
        let states: Vec<_> = shown.replicas.iter().map(|it| (it.identity.as_deref(), it.state.as_str())).collect();
        assert_eq!(states[1..], [(Some("b_1"), "Replaced"), (Some("b_2"), "Draining")]);
    }

    #[test]
    fn many_kinds_make_the_page_slower_and_not_the_replica() {
        assert_eq!(pause(3 * 5_000), TICK.mul_f64(0.9));
        assert!((Duration::from_secs(20)..Duration::from_secs(22)).contains(&pause(20 << 20)));
        assert_eq!(pause(usize::MAX), Duration::from_secs(30));
    }
}
