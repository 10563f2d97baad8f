//! What was before this replica started: who led what, by the events on the Leases and by the other replicas.
//!
//! It is asked for once, told to people, and decides nothing. What cannot be read is left out: what the Leases themselves say
//! of their past is known in any case.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{Request, header};
use k8s_openapi::{
    List,
    api::events::v1::Event,
    jiff::{SignedDuration, Timestamp, fmt::rfc2822},
};
use kube::Client;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{announce, problem::describe, telemetry::Telemetry, term::BoxError};
use crate::ops::{
    ask::{ask, read},
    picture::pod_of,
    report::Takeover,
    timeline::History,
};

/// Events that are read: those of a thousand kinds that have moved a few times.
const EVENTS: usize = 4096;
/// How long that may take, and the most that it may come to.
const PATIENCE: Duration = Duration::from_secs(30);
const BYTES: usize = 16 << 20;

/// Between two looks for replicas that were not asked yet, and how many of them.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: usize = 120;
/// So many replicas are asked: each has asked others when it started.
const ASKED: usize = 3;
/// How long one may take, and the most that it may say.
const ANSWER: Duration = Duration::from_secs(3);
const HISTORY: usize = 4 << 20;

/// Tells what was before, as it becomes known. Never returns by itself. Cancel safe.
pub(super) async fn learn(client: Client, namespace: String, telemetry: Telemetry) {
    let events = async {
        match timeout(PATIENCE, events(&client, &namespace)).await {
            Ok(Ok(history)) => telemetry.heard(history),
            Ok(Err(error)) => debug!("the events on Leases are not read: {error}"),
            Err(_elapsed) => debug!("the events on Leases are not read in time"),
        }
    };
    tokio::join!(events, others(&telemetry));
    std::future::pending::<()>().await;
}

/// By the other replicas, as soon as they are there.
async fn others(telemetry: &Telemetry) {
    let mut asked = BTreeSet::new();
    for _ in 0..LOOKS {
        let replica = telemetry.status().replica();
        let own = pod_of(&replica.identity).to_owned();
        let pods: Vec<_> = replica.pods.iter().flat_map(|pods| pods.iter()).cloned().collect();
        for pod in pods.into_iter().filter(|pod| pod.name != own) {
            let Some(address) = pod.address.filter(|_| asked.len() < ASKED && !asked.contains(&pod.name)) else {
                continue;
            };
            let Ok(Ok(answer)) = timeout(ANSWER, ask(address, "/history", HISTORY)).await else { continue };
            match serde_json::from_slice::<History>(&answer) {
                Ok(history) => telemetry.heard(history),
                Err(error) => debug!(pod = pod.name, "its history cannot be read: {error}"),
            }
            asked.insert(pod.name);
        }
        if asked.len() >= ASKED {
            return;
        }
        sleep(LOOK).await;
    }
}

/// By the events on the Leases of this namespace.
async fn events(client: &Client, namespace: &str) -> Result<History, BoxError> {
    let mut history = History::default();
    let (mut from, mut count) = (String::new(), 0);
    loop {
        let path = format!(
            "/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldSelector=regarding.kind%3DLease%2Creason%3D{}&limit=500{from}",
            announce::ACQUIRED
        );
        let answer = client.send(Request::get(path).body(kube::client::Body::empty())?).await;
        let answer = answer.map_err(|error| describe(&error))?;
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let now = date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp());
        let list: List<Event> = serde_json::from_slice(&read(answer, BYTES).await?)?;
        count += list.items.len();
        add(&mut history.takeovers, now, &list.items);
        match list.metadata.continue_.filter(|next| !next.is_empty() && count < EVENTS) {
            Some(next) => from = format!("&continue={}", encoded(&next)),
            None => break,
        }
    }
    history.takeovers.values_mut().for_each(|all| all.sort_by(|a, b| b.seconds_ago.total_cmp(&a.seconds_ago)));
    Ok(history)
}

/// `now` is the API server's time, and so is that of an event's creation: neither is compared with a clock of ours.
fn add(takeovers: &mut BTreeMap<String, Vec<Takeover>>, now: Option<Timestamp>, events: &[Event]) {
    let Some(now) = now else { return };
    for event in events {
        let (Some(lease), Some(created)) = (&event.regarding, &event.metadata.creation_timestamp) else { continue };
        let told = event.note.as_deref().and_then(announce::read);
        let (Some(name), Some(uid), Some(told)) = (&lease.name, &lease.uid, told) else { continue };
        let ago = now.duration_since(created.0).max(SignedDuration::ZERO);
        takeovers.entry(name.clone()).or_default().push(Takeover {
            seconds_ago: ago.as_secs_f64(),
            from: told.from,
            to: told.to,
            token: format!("{uid}/{}", told.term),
            reason: event.action.clone().unwrap_or_default(),
            message: told.how,
            without_leader_seconds: told.without_leader,
        });
    }
}

/// For a query.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || [b'-', b'_', b'.'].contains(byte);
    let encode = |byte: u8| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_tell_who_led_by_the_clock_of_the_api_server_alone() {
        let event = |lease: &str, note: &str, created: &str| -> Event {
            let event = json!({
                "metadata": {"name": "e", "creationTimestamp": created}, "eventTime": "1999-01-01T00:00:00.000000Z",
                "reason": "Acquired", "action": "Expired", "note": note,
                "regarding": {"kind": "Lease", "name": lease, "uid": "u"},
            });
            serde_json::from_value(event).unwrap()
        };
        let note =
            "b_1 leads Widget.example.com after a_1: its holder fell silent; no replica led for 14.500 s; term 7";
        let events = [
            event("w", note, "2036-01-01T00:59:00Z"),
            event("w", note, "2036-01-01T09:00:00Z"),
            event("w", "somebody says something else", "2036-01-01T00:59:00Z"),
        ];
        let mut takeovers = BTreeMap::new();
        let now = rfc2822::parse("Tue, 01 Jan 2036 01:00:00 GMT").unwrap().timestamp();
        add(&mut takeovers, Some(now), &events);
        let expected = Takeover {
            seconds_ago: 60.0,
            from: Some("a_1".to_owned()),
            to: "b_1".to_owned(),
            token: "u/7".to_owned(),
            reason: "Expired".to_owned(),
            message: "its holder fell silent".to_owned(),
            without_leader_seconds: Some(14.5),
        };
        let late = Takeover { seconds_ago: 0.0, ..expected.clone() };
        assert_eq!(takeovers["w"], [expected, late]);
        let mut none = BTreeMap::new();
        add(&mut none, None, &events);
        assert!(none.is_empty(), "without its time nothing is known of theirs");
    }

    #[test]
    fn a_mark_for_the_next_page_is_a_part_of_a_query() {
        assert_eq!(encoded("eyJ2&=+/ é-_."), "eyJ2%26%3D%2B%2F%20%C3%A9-_.");
    }
}
