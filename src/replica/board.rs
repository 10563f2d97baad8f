//! The one shared Lease watch: what the core learns of Leases without asking for each, so that idle traffic does not grow
//! with the number of standbys.
//!
//! It covers the Leases of all installations in all namespaces, where reading those is granted, because another one may
//! hold a kind of ours (rule 16); otherwise those of the namespace of our own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use kube::{Api, Client, ResourceExt, runtime::watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    clock::about,
    config_map::{ConfigMap, Objects},
    connections::WATCH_TIMEOUT,
    problem::describe,
    record::{Lease, ROLE_LABEL},
};

/// The pause before a watch that has failed is made anew.
const AGAIN: Duration = Duration::from_secs(1);

/// What the watch shows.
#[derive(Debug)]
pub enum Shown {
    /// These are all Leases there are.
    Listed(Vec<Arc<Lease>>),
    /// This Lease was stored.
    Stored(Arc<Lease>),
    /// This Lease was deleted, or has lost its label.
    Deleted(Arc<Lease>),
    /// The watch is down, for this reason.
    Failed(String),
    /// The objects of this lock, which is not a Lease alone, are stored so.
    Lock(String, Objects),
    /// The watch of this lock is down.
    LockFailed(String),
}

/// The Leases of our namespace, those of all namespaces, and which of the two are watched.
#[derive(Clone)]
pub struct Scope {
    own: Api<Lease>,
    all: Api<Lease>,
    wide: Arc<AtomicBool>,
}

impl Scope {
    /// All namespaces, until the API server refuses that.
    pub fn new(own: Api<Lease>, all: Api<Lease>) -> Self {
        Self { own, all, wide: Arc::new(AtomicBool::new(true)) }
    }

    /// What it is watched with.
    pub fn client(&self) -> Client {
        self.own.clone().into_client()
    }

    /// What is watched now.
    pub fn leases(&self) -> &Api<Lease> {
        if self.wide.load(Ordering::Relaxed) { &self.all } else { &self.own }
    }
}

/// The watch of Leases.
pub struct Board {
    scope: Scope,
    shown: mpsc::UnboundedSender<Shown>,
}

/// Why a watch has ended.
struct Ended {
    error: String,
    /// It had listed everything.
    listed: bool,
    /// The API server has refused to list.
    forbidden: bool,
}

impl Board {
    /// A watch of the Leases that bear our role label. What it shows is sent on an unbounded channel: its reader is the
    /// supervisor, which waits for nothing.
    pub fn new(scope: Scope) -> (Self, mpsc::UnboundedReceiver<Shown>) {
        let (shown, read) = mpsc::unbounded_channel();
        (Self { scope, shown }, read)
    }

    /// Watches until dropped; never returns by itself. Cancel safe.
    pub async fn run(self) {
        let mut said = None;
        loop {
            // Every error begins anew with a list: nothing else would tell when the watch is whole again.
            let Ended { error, listed, forbidden } = self.watch().await;
            if forbidden && self.scope.wide.swap(false, Ordering::Relaxed) {
                debug!(error, "the Leases of other namespaces are not read");
                continue;
            }
            // It may have been granted meanwhile.
            self.scope.wide.store(true, Ordering::Relaxed);
            if listed {
                said = None;
            }
            if said.as_ref() != Some(&error) {
                warn!(error, "the Lease watch is down; each Lease is read instead");
                said = Some(error.clone());
            }
            self.tell(Shown::Failed(format!("the Lease watch is down: {error}")));
            tokio::time::sleep(about(AGAIN)).await;
        }
    }

    async fn watch(&self) -> Ended {
        let config = watcher::Config::default().labels(ROLE_LABEL).timeout(WATCH_TIMEOUT);
        let stream = watcher(self.scope.leases().clone(), config);
        pin_mut!(stream);
        let mut pages: BTreeMap<(Option<String>, String), Arc<Lease>> = BTreeMap::new();
        let mut listed = false;
        loop {
            match stream.next().await {
                Some(Ok(watcher::Event::Init)) => pages.clear(),
                Some(Ok(watcher::Event::InitApply(lease))) => {
                    pages.insert((lease.namespace(), lease.name_any()), Arc::new(lease));
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    debug!("the Lease watch is up");
                    listed = true;
                    self.tell(Shown::Listed(std::mem::take(&mut pages).into_values().collect()));
                }
                Some(Ok(watcher::Event::Apply(lease))) => self.tell(Shown::Stored(Arc::new(lease))),
                Some(Ok(watcher::Event::Delete(lease))) => self.tell(Shown::Deleted(Arc::new(lease))),
                Some(Err(error)) => {
                    let refusal = match &error {
                        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
                            Some(error)
                        }
                        _ => None,
                    };
                    let forbidden = matches!(refusal, Some(kube::Error::Api(status)) if status.is_forbidden());
                    return Ended { error: describe(&error), listed, forbidden };
                }
                None => return Ended { error: "the watch has ended".to_owned(), listed, forbidden: false },
            }
        }
    }

    /// A watch of a lock of this name, whose results go where those of this one go.
    pub fn of_lock(&self, name: String, config_maps: Api<ConfigMap>, leases: Option<Api<Lease>>) -> LockWatch {
        LockWatch { name, config_maps, leases, shown: self.shown.clone() }
    }

    fn tell(&self, shown: Shown) {
        // The supervisor is gone only when this task is to end.
        let _gone = self.shown.send(shown);
    }
}

/// The watch of one lock that is not a Lease alone: of its objects by name, because a role need not allow more, and because
/// those that another elector made bear no label of ours.
pub struct LockWatch {
    name: String,
    config_maps: Api<ConfigMap>,
    /// Where its Lease is, if it has one.
    leases: Option<Api<Lease>>,
    shown: mpsc::UnboundedSender<Shown>,
}

/// An object that is watched by name.
struct Followed<K> {
    listing: Option<Arc<K>>,
    /// `None` until it was listed.
    stored: Option<Option<Arc<K>>>,
}

impl<K> Followed<K> {
    fn on(&mut self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.listing = None,
            watcher::Event::InitApply(object) => self.listing = Some(Arc::new(object)),
            watcher::Event::InitDone => self.stored = Some(self.listing.take()),
            watcher::Event::Apply(object) => self.stored = Some(Some(Arc::new(object))),
            watcher::Event::Delete(_) => self.stored = Some(None),
        }
    }
}

impl LockWatch {
    /// Watches until dropped; never returns by itself. Cancel safe.
    pub async fn run(self) {
        let mut said = None;
        loop {
            let (error, listed) = self.watch().await;
            if listed {
                said = None;
            }
            if said.as_ref() != Some(&error) {
                warn!(lock = self.name, error, "the watch of the lock is down; it is read instead");
                said = Some(error);
            }
            self.tell(Shown::LockFailed(self.name.clone()));
            tokio::time::sleep(about(AGAIN)).await;
        }
    }

    /// Until it fails; whether it had listed everything.
    async fn watch(&self) -> (String, bool) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_TIMEOUT);
        let config_maps = watcher(self.config_maps.clone(), config.clone());
        let leases = match &self.leases {
            Some(leases) => watcher(leases.clone(), config).boxed(),
            None => futures::stream::pending().boxed(),
        };
        pin_mut!(config_maps, leases);
        let mut config_map = Followed { listing: None, stored: None };
        let mut lease = Followed { listing: None, stored: self.leases.is_none().then_some(None) };
        loop {
            let seen = tokio::select! {
                Some(event) = config_maps.next() => event.map(|event| config_map.on(event)),
                Some(event) = leases.next() => event.map(|event| lease.on(event)),
                else => return ("the watch has ended".to_owned(), true),
            };
            let stored = config_map.stored.as_ref().zip(lease.stored.as_ref());
            match (seen, stored) {
                (Err(error), stored) => return (describe(&error), stored.is_some()),
                (Ok(()), Some((config_map, lease))) => {
                    let objects = Objects { config_map: config_map.clone(), lease: lease.clone() };
                    self.tell(Shown::Lock(self.name.clone(), objects));
                }
                (Ok(()), None) => {}
            }
        }
    }

    fn tell(&self, shown: Shown) {
        // The supervisor is gone only when this task is to end.
        let _gone = self.shown.send(shown);
    }
}
