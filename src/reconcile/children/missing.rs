//! What the engine does with a child that there is no room for.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Children, Compose, Composed, Desired, Effort, Failure, Key, Related, Type, View};
use crate::{
    config::{Kind, Limits},
    reconcile::{
        fake::{Asked, Fake, list, refusal, resources},
        watches::Watches,
    },
    replica::term::Reconciler,
};

/// One ConfigMap of the name of the object. The status says whether it was seen.
struct Front;

impl Compose for Front {
    fn types(&self) -> Vec<Arc<Type>> {
        vec![Arc::new(Type::new("", "v1", "ConfigMap"))]
    }

    fn related(&self) -> BTreeMap<String, Related> {
        BTreeMap::new()
    }

    fn compose(&self, view: &View<'_>, _: Effort) -> Result<Option<Composed>, Failure> {
        let key = Key {
            of: Arc::new(Type::new("", "v1", "ConfigMap")),
            namespace: Some("ns".to_owned()),
            name: "w".to_owned(),
        };
        let seen = (view.child)(&key).is_some();
        let metadata = json!({"name": "w", "namespace": "ns"});
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "y".repeat(100)}});
        let children = vec![Desired::new("settings", key, object)];
        let status = Map::from_iter([("seen".to_owned(), json!(seen))]);
        Ok(Some(Composed { children, status, ..Composed::default() }))
    }
}

/// The fields of an object, as its creator owns them.
fn owned(value: &Value) -> Value {
    let Value::Object(fields) = value else { return json!({}) };
    Value::Object(fields.iter().map(|(name, value)| (format!("f:{name}"), owned(value))).collect())
}

/// One Widget, and what was created of its child.
fn fake(limits: Limits, child: &Arc<Mutex<Option<Value>>>) -> Fake {
    let child = Arc::clone(child);
    let answer = move |asked: Asked| {
        let widget = || {
            let metadata = json!({"name": "w", "namespace": "ns", "uid": "u", "generation": 1, "resourceVersion": "5"});
            json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": metadata, "spec": {"x": "y".repeat(100)}})
        };
        let mut child = child.lock().unwrap();
        let answer = match (&asked.method, asked.uri.split('?').next().unwrap()) {
            _ if asked.uri.contains("watch=true") => None,
            (&Method::GET, "/apis/example.com/v1") => {
                Some((200, resources("example.com/v1", &[("widgets", "Widget")])))
            }
            (&Method::GET, "/api/v1") => Some((200, resources("v1", &[("configmaps", "ConfigMap")]))),
            (&Method::GET, "/apis/example.com/v1/widgets") => Some((200, list(vec![widget()]))),
            (&Method::GET, "/apis/example.com/v1/namespaces/ns/widgets/w") => Some((200, widget())),
            (&Method::PUT, "/apis/example.com/v1/namespaces/ns/widgets/w/status") => Some((200, asked.body)),
            (&Method::GET, "/api/v1/configmaps") => Some((200, list(child.iter().cloned().collect()))),
            (&Method::GET, "/api/v1/namespaces/ns/configmaps/w") => match &*child {
                Some(child) => Some((200, child.clone())),
                None => refusal(404, "NotFound"),
            },
            (&Method::POST, "/api/v1/namespaces/ns/configmaps") => {
                let mut created = asked.body.clone();
                let mut fields = owned(&asked.body);
                fields["f:metadata"]["f:ownerReferences"] = json!({"k:{\"uid\":\"u\"}": {}});
                let entry = json!({"manager": "leasehold/widget", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields});
                created["metadata"]["uid"] = json!("child");
                created["metadata"]["resourceVersion"] = json!("6");
                created["metadata"]["managedFields"] = json!([entry]);
                *child = Some(created.clone());
                Some((201, created))
            }
            _ => refusal(404, "NotFound"),
        };
        ready(answer)
    };
    let kind = Kind { limits, concurrency: 2, ..Kind::new("example.com", "v1", "Widget") };
    Fake::of_kind(kind, 1, answer)
}

/// What a term asks of the object and of its child, each by its name, and what it says of the object.
async fn term(limits: Limits, child: &Arc<Mutex<Option<Value>>>) -> (Vec<String>, Value) {
    let fake = fake(limits, child);
    let children = Children::new(fake.term.kind(), Arc::new(Front), Watches::new(fake.term.client()));
    timeout(Duration::from_secs(60), children.run(fake.term.clone())).await.expect_err("it runs until it drains");
    let asked = fake.asked();
    let named = |asked: &Asked| {
        let path = asked.uri.split('?').next().unwrap().split_once("/namespaces/ns/")?.1;
        Some(format!("{} {path}", asked.method))
    };
    let requests = asked.iter().filter_map(named).filter(|it| !it.ends_with("/status")).collect();
    let said =
        asked.iter().rfind(|asked| asked.method == Method::PUT).map(|asked| asked.body["status"]["seen"].clone());
    (requests, said.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_not_kept_is_read_and_written_only_if_it_has_to_be() {
    let child = Arc::default();
    let ample = Limits::default();
    assert_eq!(term(ample, &child).await, (vec!["POST configmaps".to_owned()], json!(true)));
    assert_eq!(term(ample, &child).await, (vec![], json!(true)), "what is kept is not read");
    let none = Limits { cache: 0, ..ample };
    // Two passes, each of which reads both once: that of the sweep, which reads the object while the children are listed,
    // and that of the end of the list, which makes every object due. The first may find that they are listed only after its read.
    let (mut requests, seen) = term(none, &child).await;
    requests.dedup();
    let pass = ["GET widgets/w", "GET configmaps/w"];
    assert_eq!((requests, seen), ([pass, pass].concat().iter().map(|it| (*it).to_owned()).collect(), json!(true)));
}
