//! The one shared Lease watch: every elector of the replica reads from it, so idle traffic does not grow with standbys.
//!
//! It only tells; nothing is decided or written here. A dead connection is noticed by the short watch timeout, and
//! an elector that is told the board is blind falls back to reads.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, pin_mut};
use kube::{Api, ResourceExt, runtime::watcher};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{problem::describe, record::Lease};

/// Label whose value is the installation's `instance`; the board watches by it.
pub const INSTANCE_LABEL: &str = "leasehold.dev/instance";

/// The server ends a watch after this, in seconds, so a connection that died silently is replaced 5 s later at the latest.
pub const WATCH_TIMEOUT: u32 = 15;

/// One Lease as the watch has it.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// The watch is up and its first list is complete: `lease` is current, give or take the watch's lag.
    pub current: bool,
    /// The Lease; `None`: the watch lists none of this name.
    pub lease: Option<Arc<Lease>>,
}

/// Why the board is blind; `None` while it sees.
pub type Blindness = Option<String>;

/// The board: reads the watch and posts each Lease for its elector.
pub struct Board {
    leases: Api<Lease>,
    instance: String,
    posts: HashMap<String, watch::Sender<Sighting>>,
    blindness: watch::Sender<Blindness>,
}

impl Board {
    /// A board over the Leases labelled with this instance. A read timeout of `leases` must be longer than [`WATCH_TIMEOUT`].
    pub fn new(leases: Api<Lease>, instance: String) -> Self {
        let blindness = watch::Sender::new(Some("the Lease watch has not listed yet".to_owned()));
        Self { leases, instance, posts: HashMap::new(), blindness }
    }

    /// What is seen of one Lease, from now on.
    pub fn follow(&mut self, lease: &str) -> watch::Receiver<Sighting> {
        self.posts.entry(lease.to_owned()).or_default().subscribe()
    }

    /// Whether the board sees, and why not.
    pub fn blindness(&self) -> watch::Receiver<Blindness> {
        self.blindness.subscribe()
    }

    /// Watches until dropped; never returns by itself. Cancel safe.
    pub async fn run(self) {
        let config =
            watcher::Config::default().labels(&format!("{INSTANCE_LABEL}={}", self.instance)).timeout(WATCH_TIMEOUT);
        loop {
            // Every error begins anew with a list: nothing else would tell when the watch is whole again.
            let error = self.watch(watcher(self.leases.clone(), config.clone())).await;
            self.blind(&error);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(500..1500))).await;
        }
    }

    async fn watch(&self, stream: impl Stream<Item = watcher::Result<watcher::Event<Lease>>>) -> String {
        pin_mut!(stream);
        let mut listed: HashMap<String, Arc<Lease>> = HashMap::new();
        loop {
            match stream.next().await {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(lease))) => {
                    listed.insert(lease.name_any(), Arc::new(lease));
                }
                Some(Ok(watcher::Event::InitDone)) => self.listed(&mut listed),
                Some(Ok(watcher::Event::Apply(lease))) => self.post(&lease.name_any(), Some(Arc::new(lease))),
                Some(Ok(watcher::Event::Delete(lease))) => self.post(&lease.name_any(), None),
                Some(Err(error)) => return describe(&error),
                None => return "the Lease watch has ended".to_owned(),
            }
        }
    }

    fn listed(&self, listed: &mut HashMap<String, Arc<Lease>>) {
        for (name, post) in &self.posts {
            post.send_replace(Sighting { current: true, lease: listed.remove(name) });
        }
        listed.clear();
        if self.blindness.send_replace(None).is_some() {
            debug!("the Lease watch is up");
        }
    }

    fn post(&self, name: &str, lease: Option<Arc<Lease>>) {
        if let Some(post) = self.posts.get(name) {
            post.send_replace(Sighting { current: true, lease });
        }
    }

    fn blind(&self, why: &str) {
        let blindness = Some(format!("the Lease watch is down: {why}"));
        if self.blindness.send_replace(blindness.clone()) != blindness {
            warn!(error = why, "the Lease watch is down, electors read each Lease instead");
        }
        for post in self.posts.values() {
            post.send_if_modified(|sighting| std::mem::replace(&mut sighting.current, false));
        }
    }
}
