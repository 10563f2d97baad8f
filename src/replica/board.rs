//! The one shared Lease watch: every elector of the replica reads from it, so idle traffic does not grow with standbys,
//! and the supervisor learns from it who else is there.
//!
//! It only tells; nothing is decided or written here. A dead connection is noticed by its silence, and
//! an elector that is told the board is blind falls back to reads.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, pin_mut};
use kube::{Api, ResourceExt, runtime::watcher};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{
    connections::WATCH_TIMEOUT,
    problem::describe,
    record::{INSTANCE_LABEL, Lease},
};

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

/// What has happened on the board, for whoever follows all of it.
#[derive(Debug)]
pub enum Turn {
    /// These are all Leases there are.
    Listed(Vec<Arc<Lease>>),
    /// This Lease was stored.
    Stored(Arc<Lease>),
    /// This Lease was deleted.
    Deleted(Arc<Lease>),
    /// The watch is down, for this reason.
    Blind(String),
}

/// The board: reads the watch and posts each Lease for its elector.
pub struct Board {
    leases: Api<Lease>,
    instance: String,
    posts: HashMap<String, watch::Sender<Sighting>>,
    blindness: Blindness,
    turns: mpsc::UnboundedSender<Turn>,
}

impl Board {
    /// A board over the Leases labelled with this instance.
    /// The channel is unbounded: its reader is the supervisor, which waits for nothing.
    pub fn new(leases: Api<Lease>, instance: String) -> (Self, mpsc::UnboundedReceiver<Turn>) {
        let (turns, read) = mpsc::unbounded_channel();
        let blindness = Some("the Lease watch has not listed yet".to_owned());
        (Self { leases, instance, posts: HashMap::new(), blindness, turns }, read)
    }

    /// What is seen of one Lease, from now on.
    pub fn follow(&mut self, lease: &str) -> watch::Receiver<Sighting> {
        self.posts.entry(lease.to_owned()).or_default().subscribe()
    }

    /// Watches until dropped; never returns by itself. Cancel safe.
    pub async fn run(mut self) {
        let config =
            watcher::Config::default().labels(&format!("{INSTANCE_LABEL}={}", self.instance)).timeout(WATCH_TIMEOUT);
        loop {
            // Every error begins anew with a list: nothing else would tell when the watch is whole again.
            let error = self.watch(watcher(self.leases.clone(), config.clone())).await;
            self.blind(&error);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(500..1500))).await;
        }
    }

    async fn watch(&mut self, stream: impl Stream<Item = watcher::Result<watcher::Event<Lease>>>) -> String {
        pin_mut!(stream);
        let mut listed: HashMap<String, Arc<Lease>> = HashMap::new();
        loop {
            match stream.next().await {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(lease))) => {
                    listed.insert(lease.name_any(), Arc::new(lease));
                }
                Some(Ok(watcher::Event::InitDone)) => self.listed(&mut listed),
                Some(Ok(watcher::Event::Apply(lease))) => {
                    let lease = Arc::new(lease);
                    self.post(&lease.name_any(), Some(Arc::clone(&lease)));
                    self.tell(Turn::Stored(lease));
                }
                Some(Ok(watcher::Event::Delete(lease))) => {
                    self.post(&lease.name_any(), None);
                    self.tell(Turn::Deleted(Arc::new(lease)));
                }
                Some(Err(error)) => return describe(&error),
                None => return "the Lease watch has ended".to_owned(),
            }
        }
    }

    fn listed(&mut self, listed: &mut HashMap<String, Arc<Lease>>) {
        for (name, post) in &self.posts {
            post.send_replace(Sighting { current: true, lease: listed.get(name).cloned() });
        }
        self.tell(Turn::Listed(listed.drain().map(|(_, lease)| lease).collect()));
        if self.blindness.take().is_some() {
            debug!("the Lease watch is up");
        }
    }

    fn post(&self, name: &str, lease: Option<Arc<Lease>>) {
        if let Some(post) = self.posts.get(name) {
            post.send_replace(Sighting { current: true, lease });
        }
    }

    fn tell(&self, turn: Turn) {
        // The supervisor is gone only when this task is to end.
        let _ = self.turns.send(turn);
    }

    fn blind(&mut self, why: &str) {
        let blindness = format!("the Lease watch is down: {why}");
        if self.blindness.replace(blindness.clone()).as_ref() != Some(&blindness) {
            warn!(error = why, "the Lease watch is down, electors read each Lease instead");
        }
        self.tell(Turn::Blind(blindness));
        for post in self.posts.values() {
            post.send_if_modified(|sighting| std::mem::replace(&mut sighting.current, false));
        }
    }
}
