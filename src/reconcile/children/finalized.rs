//! What the engine does with the finalizer of an object whose children the garbage collector does not follow.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Children, Compose, Composed, Desired, Effort, Failure, Key, Related, Type, View};
use crate::{
    config::Kind,
    reconcile::{
        fake::{Answer, Asked, Fake, list, refusal, resources},
        watches::Watches,
    },
    replica::term::Reconciler,
};

/// One ConfigMap in another namespace. Secrets are related.
struct Front;

impl Compose for Front {
    fn types(&self) -> Vec<Arc<Type>> {
        vec![Arc::new(Type::new("", "v1", "ConfigMap"))]
    }

    fn related(&self) -> BTreeMap<String, Related> {
        let of = Arc::new(Type::new("", "v1", "Secret"));
        BTreeMap::from([("keys".to_owned(), Related { of, namespace: None, name: None, labels: BTreeMap::new() })])
    }

    fn compose(&self, _: &View<'_>, _: Effort) -> Result<Option<Composed>, Failure> {
        let namespace = Some("elsewhere".to_owned());
        let key = Key { of: Arc::new(Type::new("", "v1", "ConfigMap")), namespace, name: "w".to_owned() };
        let metadata = json!({"name": "w", "namespace": "elsewhere"});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        let children = vec![Desired::new("settings", key, object)];
        Ok(Some(Composed { children, ..Composed::default() }))
    }
}

/// What stands in the way of the finalizer.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// The API server refuses to list what is related.
    is_related_refused: bool,
    /// The type of the children is served no longer.
    is_type_gone: bool,
    /// So many writes of the object come after a change by another writer.
    conflicts: usize,
}

/// The API server serves both types by plurals that English does not have.
const WIDGETS: &str = "/apis/example.com/v1/widgetry";
const WIDGET: &str = "/apis/example.com/v1/namespaces/ns/widgetry/w";
const MAPS: &str = "/api/v1/configmapses";

/// The finalizers that a term writes to the object, and the messages of its warnings.
async fn written(is_deleted: bool, trouble: Trouble) -> (Vec<Value>, Vec<String>) {
    let conflicts = AtomicUsize::new(trouble.conflicts);
    let answer = move |asked: Asked| {
        let widget = || {
            let mut metadata =
                json!({"name": "w", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "5"});
            if is_deleted {
                metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                metadata["finalizers"] = json!(["leasehold.dev/widget"]);
            }
            json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": metadata})
        };
        let answer: Answer = match (&asked.method, asked.uri.split('?').next().unwrap()) {
            _ if asked.uri.contains("watch=true") => None,
            (&Method::GET, "/apis/example.com/v1") => {
                Some((200, resources("example.com/v1", &[("widgetry", "Widget")])))
            }
            (&Method::GET, "/api/v1") => {
                Some((200, resources("v1", &[("configmapses", "ConfigMap"), ("secrets", "Secret")])))
            }
            (&Method::GET, WIDGETS) => Some((200, list(vec![widget()]))),
            (&Method::GET, WIDGET) => Some((200, widget())),
            (&Method::GET, "/api/v1/secrets") if trouble.is_related_refused => refusal(403, "Forbidden"),
            // The engine lists the children of this very object before it lets it go.
            (&Method::GET, MAPS) if trouble.is_type_gone && asked.uri.contains("owner-uid%3Du") => {
                refusal(404, "NotFound")
            }
            (&Method::GET, "/api/v1/secrets" | MAPS) => Some((200, list(vec![]))),
            (&Method::PATCH, WIDGET) => {
                let is_behind =
                    conflicts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if is_behind.is_ok() { refusal(409, "Conflict") } else { Some((200, widget())) }
            }
            _ => refusal(404, "NotFound"),
        };
        ready(answer)
    };
    let fake = Fake::of_kind(Kind { concurrency: 2, ..Kind::new("example.com", "v1", "Widget") }, 1, answer);
    let children = Children::new(fake.term.kind(), Arc::new(Front), Watches::new(fake.term.client()));
    timeout(Duration::from_secs(60), children.run(fake.term.clone())).await.expect_err("it runs until it drains");
    let asked = fake.asked();
    let patches = asked.iter().filter(|asked| asked.method == Method::PATCH && asked.uri.starts_with(WIDGET));
    let events = asked.iter().filter(|asked| asked.method == Method::POST && asked.uri.contains("/events"));
    let warnings = events.filter(|asked| asked.body["type"] == "Warning");
    (
        patches.map(|asked| asked.body["metadata"]["finalizers"].clone()).collect(),
        warnings.map(|asked| asked.body["reason"].as_str().unwrap_or_default().to_owned()).collect(),
    )
}

/// A related type that cannot be seen kept the object for ever, and nothing said so.
#[tokio::test(start_paused = true)]
async fn a_deleted_object_goes_whatever_becomes_of_its_related_objects_and_of_the_type_of_its_children() {
    for (is_related_refused, is_type_gone) in [(false, false), (true, false), (false, true)] {
        let trouble = Trouble { is_related_refused, is_type_gone, conflicts: 0 };
        let (finalizers, warnings) = written(true, trouble).await;
        assert_eq!(finalizers.first(), Some(&json!([])), "{trouble:?}");
        assert_eq!(warnings, Vec::<String>::new(), "{trouble:?}");
    }
}

/// An edit of labels makes no object due, so it rested until the resync.
#[tokio::test(start_paused = true)]
async fn an_object_that_changed_while_its_finalizer_was_written_is_read_and_due_at_once() {
    for (is_deleted, expected) in [(false, json!(["leasehold.dev/widget"])), (true, json!([]))] {
        let (finalizers, _) = written(is_deleted, Trouble { conflicts: 1, ..Trouble::default() }).await;
        assert_eq!(finalizers[..2], [expected.clone(), expected], "it is written again: {finalizers:?}");
    }
}
