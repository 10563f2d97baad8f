//! A term whose API server is a function, for tests of what is asked of it. It proves nothing about a real one.

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Kind,
    ops::work::Meter,
    replica::term::{FencingToken, Promotion, Standby, Term},
};

/// One request, with its body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) body: Value,
}

/// What the API server answers: `None` is no answer, as of a watch on which nothing happens. An array is the events of a watch.
pub(crate) type Answer = Option<(u16, Value)>;

/// A term, what was asked during it, and its end.
pub(crate) struct Fake {
    pub(crate) term: Term,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    pub(crate) drain: CancellationToken,
}

impl Fake {
    /// A term of a kind, whose API server answers so.
    pub(crate) fn new(transitions: i32, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::slow(transitions, 2, move |asked| ready(answer(&asked)))
    }

    /// A term of a kind with that concurrency, whose API server takes its time.
    pub(crate) fn slow<Fut>(
        transitions: i32,
        concurrency: u16,
        answer: impl Fn(Asked) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let kind = Kind { concurrency, ..Kind::new("leasehold.dev", "v1alpha1", "Propagation") };
        Self::of_kind(kind, transitions, answer)
    }

    /// A term of that kind.
    pub(crate) fn of_kind<Fut>(
        kind: Kind,
        transitions: i32,
        answer: impl Fn(Asked) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let asked = Asked { method: head.method, uri: head.uri.to_string(), body };
                log.lock().unwrap().push(asked.clone());
                let (code, body) = match answer(asked).await {
                    None => pending().await,
                    Some((code, Value::Array(events))) => {
                        // What it is comes before of what, as the API server has it.
                        let line =
                            |event: &Value| format!("{{\"type\":{},\"object\":{}}}\n", event["type"], event["object"]);
                        let lines: Vec<_> = events.iter().map(line).collect();
                        (code, lines.concat().into_bytes())
                    }
                    Some((code, body)) => (code, serde_json::to_vec(&body).unwrap()),
                };
                Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body)).unwrap())
            }
        });
        let token = FencingToken { uid: "lease-uid".to_owned(), transitions };
        let drain = CancellationToken::new();
        let client = kube::Client::new(service, "default");
        let term = Term::new(Arc::new(kind), "replica_1".to_owned(), token, client, drain.clone(), Meter::default());
        Self { term, asked, drain }
    }

    /// A standby for this term.
    pub(crate) fn standby(&self) -> (Standby, Promotion) {
        Standby::new(Arc::new(self.term.kind().clone()), self.term.client(), self.term.meter().clone())
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// A list of these objects as the API server writes it.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})
}

/// Discovery of a group's version: of these types, each by its plural and its kind, in namespaces.
pub(crate) fn resources(version: &str, types: &[(&str, &str)]) -> Value {
    let resource = |(plural, kind): &(&str, &str)| json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get", "list", "delete"]});
    let resources: Vec<_> = types.iter().map(resource).collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

/// A refusal as the API server writes it.
pub(crate) fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {},
        "status": "Failure", "code": code, "reason": reason, "message": reason,
    });
    Some((code, status))
}
