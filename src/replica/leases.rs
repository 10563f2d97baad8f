//! The only file that writes Leases: each [`Request`] of the core, with what the stored object has besides.
//!
//! One request is one attempt: the client repeats nothing by itself, and what has no answer in time is unknown (rule 4).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::Either;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use tracing::debug;

use super::{
    board::Scope,
    problem,
    record::{self, Lease, ROLE_LABEL, SHARD},
};
use crate::{
    ops::metrics::Metrics,
    protocol::{
        event::{Answer, Request},
        lease::{Purpose, Record, Version},
    },
};

/// The Leases of one namespace, to be read and written.
#[derive(Clone)]
pub struct Leases {
    api: Api<Lease>,
    /// What the Lease watch covers: where rivals are looked for.
    scope: Scope,
    namespace: String,
    timeout: Duration,
    metrics: Metrics,
    objects: Arc<Objects>,
}

/// The objects that a write may rest on: what the watch and what our own requests last showed, by name.
#[derive(Default)]
struct Objects(Mutex<HashMap<String, [Option<Arc<Lease>>; 2]>>);

const FROM_WATCH: usize = 0;
const FROM_REQUEST: usize = 1;

impl Leases {
    /// The Leases of this namespace. The client of `api` repeats nothing, and is used for nothing else: reconcile traffic
    /// cannot starve a renewal. Each request has `timeout` to be answered.
    pub fn new(api: Api<Lease>, scope: Scope, namespace: String, timeout: Duration, metrics: Metrics) -> Self {
        Self { api, scope, namespace, timeout, metrics, objects: Arc::default() }
    }

    /// The watch shows this object.
    pub fn saw(&self, lease: &Arc<Lease>) {
        self.keep(FROM_WATCH, lease);
    }

    /// The watch shows these objects and no others.
    pub fn saw_all(&self, leases: &[Arc<Lease>]) {
        let shown: HashMap<_, _> = leases.iter().map(|lease| (lease.name_any(), lease)).collect();
        let mut objects = self.objects.0.lock().unwrap_or_else(PoisonError::into_inner);
        objects.retain(|name, [_, from_request]| shown.contains_key(name) || from_request.is_some());
        drop(objects);
        leases.iter().for_each(|lease| self.saw(lease));
    }

    /// The watch shows that this object is gone.
    pub fn lost(&self, lease: &Lease) {
        self.objects.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease.name_any());
    }

    fn keep(&self, from: usize, lease: &Arc<Lease>) {
        // Those of other namespaces are never written.
        if lease.metadata.namespace.as_ref() == Some(&self.namespace) {
            let mut objects = self.objects.0.lock().unwrap_or_else(PoisonError::into_inner);
            objects.entry(lease.name_any()).or_default()[from] = Some(Arc::clone(lease));
        }
    }

    fn at_version(&self, name: &str, version: &Version) -> Option<Arc<Lease>> {
        let objects = self.objects.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = objects.get(name)?.iter().flatten();
        known.find(|lease| record::version(lease).as_ref() == Some(version)).cloned()
    }

    /// Carries a request out. Dropped, it may have been carried out or may yet be.
    pub fn send(&self, request: Request) -> impl Future<Output = Answer> + Send + 'static {
        match request {
            Request::Get { lease } => Either::Left(Either::Left(self.clone().get(lease))),
            Request::List => Either::Left(Either::Right(self.clone().list())),
            Request::Create { record, purpose } => {
                let blank = record::new(&record.name, &self.namespace);
                Either::Right(Either::Left(self.clone().write(Some(blank), record, purpose)))
            }
            Request::Update { record, purpose } => {
                // It may have been replaced since it was decided on: a read brings the newer one.
                let stored = self.at_version(&record.name, &record.version);
                let stored = stored.map(|lease| Lease::clone(&lease));
                Either::Right(Either::Left(self.clone().write(stored, record, purpose)))
            }
            Request::Delete { lease, version, .. } => Either::Right(Either::Right(self.clone().delete(lease, version))),
        }
    }

    async fn get(self, name: String) -> Answer {
        match self.attempt("get", self.api.get_opt(&name)).await {
            Ok(Some(lease)) => {
                let lease = Arc::new(lease);
                self.keep(FROM_REQUEST, &lease);
                record::record(&lease).map_or_else(unreadable, |record| Answer::Found(Some(record)))
            }
            Ok(None) => Answer::Found(None),
            Err(answer) => answer,
        }
    }

    async fn list(self) -> Answer {
        let shards = ListParams::default().labels(&format!("{ROLE_LABEL}={SHARD}"));
        match self.attempt("list", self.scope.leases().list(&shards)).await {
            Ok(list) => Answer::Listed(list.items.iter().filter_map(record::record).collect()),
            Err(answer) => answer,
        }
    }

    async fn write(self, stored: Option<Lease>, record: Record, purpose: Purpose) -> Answer {
        let Some(mut lease) = stored else { return Answer::Conflict };
        if let Err(error) = record::sign(&mut lease, &record, purpose, record::wall_clock()) {
            return Answer::Refused(format!("the membership cannot be written as JSON: {error}"));
        }
        let parameters = PostParams::default();
        let answer = match purpose {
            Purpose::Create => self.attempt("create", self.api.create(&parameters, &lease)).await,
            _ => self.attempt("update", self.api.replace(&record.name, &parameters, &lease)).await,
        };
        debug!(lease = record.name, ?purpose, stored = answer.is_ok(), "lease written");
        match answer {
            Ok(lease) => {
                let lease = Arc::new(lease);
                self.keep(FROM_REQUEST, &lease);
                record::record(&lease).map_or_else(unreadable, Answer::Stored)
            }
            Err(answer) => answer,
        }
    }

    async fn delete(self, name: String, version: Version) -> Answer {
        let preconditions = Preconditions { uid: Some(version.uid), resource_version: Some(version.resource_version) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.attempt("delete", self.api.delete(&name, &parameters)).await {
            Ok(_) => Answer::Deleted,
            Err(answer) => answer,
        }
    }

    async fn attempt<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Answer> {
        let (outcome, result) = match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(answer)) => ("ok", Ok(answer)),
            Ok(Err(error)) => {
                let answer = self.classify(&error, verb);
                let outcome = match &answer {
                    Answer::Conflict => "conflict",
                    Answer::Refused(_) => "refused",
                    _ => "error",
                };
                (outcome, Err(answer))
            }
            Err(_elapsed) => {
                let carried_out = if matches!(verb, "get" | "list") { "" } else { ": it may have been carried out" };
                let why = format!("no answer to {verb} the Lease within {:?}{carried_out}", self.timeout);
                ("timeout", Err(Answer::Unanswered(why)))
            }
        };
        self.metrics.lease_request(verb, outcome);
        result
    }

    fn classify(&self, error: &kube::Error, verb: &str) -> Answer {
        let why = || problem::of_lease_request(error, verb, &self.namespace);
        match error {
            // The object has changed, was created by another meanwhile, or is gone; but a creation's 404 is about the namespace.
            kube::Error::Api(status) if status.code == 409 || (status.code == 404 && verb != "create") => {
                Answer::Conflict
            }
            // It has too much to do at the moment: that says nothing of the next attempt.
            kube::Error::Api(status) if status.code == 429 => Answer::Unanswered(why()),
            kube::Error::Api(status) if status.code < 500 => Answer::Refused(why()),
            _ => Answer::Unanswered(why()),
        }
    }
}

fn unreadable() -> Answer {
    Answer::Unanswered("the API server answered with a Lease without name, uid or resourceVersion".to_owned())
}
