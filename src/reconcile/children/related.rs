//! What the engine does about related objects: how much of them it looks at, and how often they make everything due.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{Children, Compose, Composed, Effort, Failure, Related, Type, View};
use crate::{
    config::Kind,
    reconcile::{
        fake::{Fake, list, refusal, resources},
        watches::Watches,
    },
    replica::term::Reconciler,
};

/// No child; ConfigMaps are related. It counts how often it is asked.
#[derive(Default)]
struct Front(AtomicUsize);

impl Compose for Front {
    fn types(&self) -> Vec<Arc<Type>> {
        Vec::new()
    }

    fn related(&self) -> BTreeMap<String, Related> {
        let of = Arc::new(Type::new("", "v1", "ConfigMap"));
        BTreeMap::from([("maps".to_owned(), Related { of, namespace: None, name: None, labels: BTreeMap::new() })])
    }

    fn compose(&self, view: &View<'_>, _: Effort) -> Result<Option<Composed>, Failure> {
        assert_eq!(view.related["maps"].len(), 1);
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Composed::default()))
    }
}

const WIDGETS: &str = "/apis/example.com/v1/widgets";
const MAPS: &str = "/api/v1/configmaps";

fn map(version: u64, bytes: usize) -> Value {
    let metadata =
        json!({"name": format!("m-{bytes}"), "namespace": "ns", "uid": "m", "resourceVersion": version.to_string()});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": "x".repeat(bytes)}})
}

/// Runs a term with so many objects for 10 s: the front end, and the statuses that were written. `maps` are related; the API
/// server says that the first has changed every `pause`.
async fn ran(objects: usize, maps: Vec<Value>, pause: Duration) -> (Arc<Front>, Vec<Value>) {
    let version = AtomicUsize::new(10);
    let answer = move |asked: crate::reconcile::fake::Asked| {
        let widget = |number: usize| {
            let metadata = json!({
                "name": format!("w{number}"), "namespace": "ns", "uid": format!("u{number}"), "generation": 1, "resourceVersion": "5",
            });
            json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": metadata})
        };
        let path = asked.uri.split('?').next().unwrap().to_owned();
        let is_watch = asked.uri.contains("watch=true");
        let next = version.fetch_add(usize::from(is_watch && path == MAPS), Ordering::Relaxed) as u64;
        let answer = match (&asked.method, &*path) {
            (_, MAPS) if is_watch => Some((200, json!([{"type": "MODIFIED", "object": map(next, 1)}]))),
            _ if is_watch => None,
            (&Method::GET, "/apis/example.com/v1") => {
                Some((200, resources("example.com/v1", &[("widgets", "Widget")])))
            }
            (&Method::GET, "/api/v1") => Some((200, resources("v1", &[("configmaps", "ConfigMap")]))),
            (&Method::GET, WIDGETS) => Some((200, list((0..objects).map(widget).collect()))),
            (&Method::GET, MAPS) => Some((200, list(maps.clone()))),
            (&Method::PUT, _) => Some((200, asked.body.clone())),
            _ => refusal(404, "NotFound"),
        };
        async move {
            if is_watch && path == MAPS {
                sleep(pause).await;
            }
            answer
        }
    };
    let fake = Fake::of_kind(Kind { concurrency: 2, ..Kind::new("example.com", "v1", "Widget") }, 1, answer);
    let front = Arc::new(Front::default());
    let children =
        Children::new(fake.term.kind(), Arc::clone(&front) as Arc<dyn Compose>, Watches::new(fake.term.client()));
    timeout(Duration::from_secs(10), children.run(fake.term.clone())).await.expect_err("it runs until it drains");
    let statuses = fake.asked().into_iter().filter(|asked| asked.uri.contains("/status"));
    (front, statuses.map(|asked| asked.body["status"].clone()).collect())
}

/// All of it was copied before it was counted.
#[tokio::test(start_paused = true)]
async fn what_is_too_much_to_look_at_is_not_looked_at_and_each_object_says_so() {
    let maps = (0..33).map(|number| map(1, (1 << 20) + number)).collect();
    let (front, statuses) = ran(3, maps, Duration::from_secs(3600)).await;
    assert_eq!(front.0.load(Ordering::Relaxed), 0, "nothing is composed of it");
    assert_eq!(statuses.len(), 3, "{statuses:?}");
    for status in statuses {
        let text = status.to_string();
        assert!(text.contains("TooMuchRelated") && text.contains("maps has 33 MiB; narrow it down"), "{text}");
    }
}

/// A Lease that is related is renewed all the time, and each renewal made every object due.
#[tokio::test(start_paused = true)]
async fn what_changes_all_the_time_makes_everything_due_now_and_then() {
    let objects = 1000;
    let (front, _) = ran(objects, vec![map(1, 1)], Duration::from_millis(50)).await;
    let sweeps = front.0.load(Ordering::Relaxed) / objects;
    // One a second for a thousand objects, while some 200 changes come.
    assert!((8..=12).contains(&sweeps), "{sweeps} sweeps");
}
