//! The only file that writes Leases, and other locks: each [`Request`] of the core, with what the stored object has besides.
//!
//! One request is one attempt: the client repeats nothing by itself, and what has no answer in time is unknown (rule 4).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::Either;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use tracing::debug;

use super::{
    board::{Board, LockWatch, Scope},
    config_map::{self, ConfigMap},
    problem::{self, CONFIG_MAP, LEASE},
    record::{self, Lease, REPLICA, ROLE_LABEL, SHARD},
};
use crate::{
    ops::metrics::Metrics,
    protocol::{
        event::{Answer, Request},
        lease::{Purpose, Record, Version},
        lock::LockKind,
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
    locks: Arc<Locks>,
}

/// The locks that are not Leases alone.
struct Locks {
    config_maps: Api<ConfigMap>,
    /// What each is, by name.
    kinds: HashMap<String, LockKind>,
    known: Mutex<HashMap<String, [config_map::Objects; 2]>>,
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
        let config_maps = config_map::config_maps(api.clone().into_client(), &namespace);
        let locks = Arc::new(Locks { config_maps, kinds: HashMap::new(), known: Mutex::default() });
        Self { api, scope, namespace, timeout, metrics, objects: Arc::default(), locks }
    }

    /// Some of what is asked for is not a Lease alone: what it is, by name.
    #[must_use]
    pub fn with_locks(mut self, kinds: HashMap<String, LockKind>) -> Self {
        let config_maps = self.locks.config_maps.clone();
        self.locks = Arc::new(Locks { config_maps, kinds, known: Mutex::default() });
        self
    }

    /// The watches that those need beside the Lease watch, on connections of their own.
    pub fn watches(&self, board: &Board) -> Vec<LockWatch> {
        let client = self.scope.client();
        let watch = |(name, kind): (&String, &LockKind)| {
            let config_maps = config_map::config_maps(client.clone(), &self.namespace);
            let leases = (*kind == LockKind::ConfigMapsLeases).then(|| record::leases(client.clone(), &self.namespace));
            board.of_lock(name.clone(), config_maps, leases)
        };
        self.locks.kinds.iter().map(watch).collect()
    }

    /// The watch of a lock shows these objects: what they say, or why they are no lock.
    pub fn saw_lock(&self, name: &str, objects: config_map::Objects) -> Result<Option<Record>, String> {
        let record = objects.record(self.kind(name));
        self.keep_lock(FROM_WATCH, name, objects);
        record
    }

    fn keep_lock(&self, from: usize, name: &str, objects: config_map::Objects) {
        self.locks.known.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default()[from] =
            objects;
    }

    fn lock_at_version(&self, name: &str, version: &Version) -> Option<config_map::Objects> {
        let kind = self.kind(name);
        let known = self.locks.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |objects: &&config_map::Objects| match objects.record(kind) {
            Ok(Some(record)) => record.version == *version,
            _ => false,
        };
        known.get(name)?.iter().find(is_it).cloned()
    }

    fn kind(&self, name: &str) -> LockKind {
        self.locks.kinds.get(name).copied().unwrap_or_default()
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
        if let Request::Get { lease: name }
        | Request::Create { record: Record { name, .. }, .. }
        | Request::Update { record: Record { name, .. }, .. }
        | Request::Delete { lease: name, .. } = &request
            && self.kind(name) != LockKind::Lease
        {
            let (mut this, kind) = (self.clone(), self.kind(name));
            if kind == LockKind::ConfigMapsLeases {
                // Its two objects together get the time of one.
                this.timeout /= 2;
            }
            return Either::Left(this.send_to_lock(kind, request));
        }
        Either::Right(match request {
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
        })
    }

    async fn send_to_lock(self, kind: LockKind, request: Request) -> Answer {
        match request {
            Request::Get { lease } => self.get_lock(kind, lease).await,
            Request::List => self.list().await,
            Request::Create { record, purpose } => {
                self.write_lock(kind, config_map::Objects::default(), record, purpose).await
            }
            Request::Update { record, purpose } => match self.lock_at_version(&record.name, &record.version) {
                Some(stored) => self.write_lock(kind, stored, record, purpose).await,
                None => Answer::Conflict,
            },
            Request::Delete { lease, version, .. } => match self.lock_at_version(&lease, &version) {
                Some(stored) => self.delete_lock(stored, lease).await,
                None => Answer::Conflict,
            },
        }
    }

    async fn get_lock(self, kind: LockKind, name: String) -> Answer {
        let leased = kind == LockKind::ConfigMapsLeases;
        let lease = async { if leased { self.attempt("get", LEASE, self.api.get_opt(&name)).await } else { Ok(None) } };
        let config_map = self.attempt("get", CONFIG_MAP, self.locks.config_maps.get_opt(&name));
        let objects = match futures::join!(config_map, lease) {
            (Ok(config_map), Ok(lease)) => {
                config_map::Objects { config_map: config_map.map(Arc::new), lease: lease.map(Arc::new) }
            }
            (Err(answer), _) | (_, Err(answer)) => return answer,
        };
        let record = objects.record(kind);
        self.keep_lock(FROM_REQUEST, &name, objects);
        match record {
            Ok(record) => Answer::Found(record),
            Err(why) => {
                self.metrics.lease_request("get", "foreign");
                Answer::Refused(why)
            }
        }
    }

    /// The ConfigMap first, and then the Lease: each by its own version that was decided on, so that neither takes what
    /// another process has written meanwhile. Only both together are a grant; what a first write has left alone names two
    /// holders, or one of which the other part says nothing, and is found by the read that follows.
    async fn write_lock(
        &self,
        kind: LockKind,
        stored: config_map::Objects,
        record: Record,
        purpose: Purpose,
    ) -> Answer {
        let (name, parameters, now) = (&record.name, PostParams::default(), record::wall_clock());
        let is_new = stored.config_map.is_none();
        let mut config_map = match stored.config_map {
            Some(config_map) => ConfigMap::clone(&config_map),
            None => config_map::new(name, &self.namespace),
        };
        if let Err(why) = config_map::sign(&mut config_map, &record, purpose, now.clone()) {
            return Answer::Refused(why);
        }
        let config_maps = &self.locks.config_maps;
        let answer = match is_new {
            true => self.attempt("create", CONFIG_MAP, config_maps.create(&parameters, &config_map)).await,
            false => self.attempt("update", CONFIG_MAP, config_maps.replace(name, &parameters, &config_map)).await,
        };
        debug!(lock = name, ?purpose, stored = answer.is_ok(), "ConfigMap written");
        let config_map = match answer {
            Ok(config_map) => Some(Arc::new(config_map)),
            Err(answer) => return answer,
        };
        let lease = match kind {
            LockKind::ConfigMapsLeases => match self.write_second(stored.lease, &record, purpose, now).await {
                Ok(lease) => Some(Arc::new(lease)),
                Err(answer) => return answer,
            },
            LockKind::ConfigMap | LockKind::Lease => None,
        };
        let objects = config_map::Objects { config_map, lease };
        let stored = objects.record(kind);
        self.keep_lock(FROM_REQUEST, name, objects);
        stored.ok().flatten().map_or_else(unreadable, Answer::Stored)
    }

    async fn write_second(
        &self,
        stored: Option<Arc<Lease>>,
        record: &Record,
        purpose: Purpose,
        now: MicroTime,
    ) -> Result<Lease, Answer> {
        let is_new = stored.is_none();
        let lease = stored.map_or_else(|| record::new(&record.name, &self.namespace), |lease| Lease::clone(&lease));
        self.put(lease, is_new, record, purpose, now).await
    }

    /// Writes the record on a Lease and stores it.
    async fn put(
        &self,
        mut lease: Lease,
        is_new: bool,
        record: &Record,
        purpose: Purpose,
        now: MicroTime,
    ) -> Result<Lease, Answer> {
        record::sign(&mut lease, record, purpose, now)
            .map_err(|error| Answer::Refused(format!("the membership cannot be written as JSON: {error}")))?;
        let parameters = PostParams::default();
        let answer = match is_new {
            true => self.attempt("create", LEASE, self.api.create(&parameters, &lease)).await,
            false => self.attempt("update", LEASE, self.api.replace(&record.name, &parameters, &lease)).await,
        };
        debug!(lease = record.name, ?purpose, stored = answer.is_ok(), "Lease written");
        answer
    }

    async fn delete_lock(&self, stored: config_map::Objects, name: String) -> Answer {
        if let Some(version) = stored.lease.as_deref().and_then(record::version)
            && let Err(answer) = self.attempt("delete", LEASE, self.api.delete(&name, &exactly(version))).await
        {
            return answer;
        }
        let Some(config_map) = stored.config_map else { return Answer::Deleted };
        let Some(version) = config_map::as_lease(&config_map).ok().as_ref().and_then(record::version) else {
            return Answer::Conflict;
        };
        let exactly = exactly(version);
        let deleted = self.locks.config_maps.delete(&name, &exactly);
        match self.attempt("delete", CONFIG_MAP, deleted).await {
            Ok(_) => Answer::Deleted,
            Err(answer) => answer,
        }
    }

    async fn get(self, name: String) -> Answer {
        match self.attempt("get", LEASE, self.api.get_opt(&name)).await {
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
        let ours = ListParams::default().labels(&format!("{ROLE_LABEL} in ({SHARD},{REPLICA})"));
        match self.attempt("list", LEASE, self.scope.leases().list(&ours)).await {
            Ok(list) => Answer::Listed(list.items.iter().filter_map(record::record).collect()),
            Err(answer) => answer,
        }
    }

    async fn write(self, stored: Option<Lease>, record: Record, purpose: Purpose) -> Answer {
        let Some(lease) = stored else { return Answer::Conflict };
        match self.put(lease, purpose == Purpose::Create, &record, purpose, record::wall_clock()).await {
            Ok(lease) => {
                let lease = Arc::new(lease);
                self.keep(FROM_REQUEST, &lease);
                record::record(&lease).map_or_else(unreadable, Answer::Stored)
            }
            Err(answer) => answer,
        }
    }

    async fn delete(self, name: String, version: Version) -> Answer {
        match self.attempt("delete", LEASE, self.api.delete(&name, &exactly(version))).await {
            Ok(_) => Answer::Deleted,
            Err(answer) => answer,
        }
    }

    async fn attempt<T>(
        &self,
        verb: &'static str,
        what: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Answer> {
        let (outcome, result) = match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(answer)) => ("ok", Ok(answer)),
            Ok(Err(error)) => {
                let answer = self.classify(&error, verb, what);
                let outcome = match &answer {
                    Answer::Conflict => "conflict",
                    Answer::Refused(_) => "refused",
                    _ => "error",
                };
                (outcome, Err(answer))
            }
            Err(_elapsed) => {
                let carried_out = if matches!(verb, "get" | "list") { "" } else { ": it may have been carried out" };
                let why = format!("no answer to {verb} the {what} within {:?}{carried_out}", self.timeout);
                ("timeout", Err(Answer::Unanswered(why)))
            }
        };
        self.metrics.lease_request(verb, outcome);
        result
    }

    fn classify(&self, error: &kube::Error, verb: &str, what: &str) -> Answer {
        let why = || problem::of_lock_request(error, verb, what, &self.namespace);
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

fn exactly(version: Version) -> DeleteParams {
    let preconditions = Preconditions { uid: Some(version.uid), resource_version: Some(version.resource_version) };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

fn unreadable() -> Answer {
    Answer::Unanswered("the API server answered with a Lease without name, uid or resourceVersion".to_owned())
}
