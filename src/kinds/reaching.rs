//! How far the objects of a kind reach at the moment: where webhooks are served, further while the API server asks these about
//! every object.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};

use super::reach::{Authors, OUT_OF_REACH, Reach};
use crate::{
    config::{Configuration, Kind},
    reconcile::stages::{End, Outcome, Trouble},
    webhooks::configuration::{Coverage, Coverages},
};

/// When to look again at an object that waits until it is known how far it reaches; usually the answer makes it due before.
const AGAIN: Duration = Duration::from_secs(2);

/// How far the objects of one kind reach; clones share it.
#[derive(Clone, Debug)]
pub struct Reaching {
    /// While the API server asks about every object.
    asked: Arc<Reach>,
    /// Otherwise.
    unasked: Arc<Reach>,
    /// What tells; `None` where the two are the same.
    coverage: Option<Coverage>,
}

impl Reaching {
    /// Of a kind's objects, by what is known of the API server; without that no webhooks are served. `namespace` is that of the
    /// replicas.
    pub fn of(kind: &Kind, config: &Configuration, coverages: Option<&Coverages>, namespace: &str) -> Self {
        let reach = |authors| Reach::of(kind, config, authors, namespace);
        let Some(coverages) = coverages else { return reach(Authors::Unserved).into() };
        let (asked, unasked) = (reach(Authors::Asked), reach(Authors::Unasked));
        let coverage = (asked != unasked).then(|| coverages.of(kind.name()));
        Self { asked: Arc::new(asked), unasked: Arc::new(unasked), coverage }
    }

    /// How far they reach now; `None` as long as that is not known: then nothing is done, so that no object is told what is wrong a
    /// moment later.
    fn now(&self) -> Option<&Arc<Reach>> {
        let is_asked = self.coverage.as_ref().map_or(Some(false), Coverage::now)?;
        Some(if is_asked { &self.asked } else { &self.unasked })
    }

    /// How far they reach now, for a stage that observes.
    ///
    /// # Errors
    /// The end of a pass that comes too early, and is done again soon.
    pub(super) fn known<D, E>(&self) -> Result<&Arc<Reach>, End<D, E>> {
        self.now().ok_or_else(|| End::unreported(Some(AGAIN)))
    }

    /// Has an item whenever that may have changed.
    pub(super) fn changes(&self) -> BoxStream<'static, ()> {
        self.coverage.as_ref().map_or_else(|| stream::pending().boxed(), |coverage| coverage.changes().boxed())
    }
}

/// The end of a pass over an object that reaches too far, for this reason.
pub(super) fn out_of_reach<D, E>(why: String) -> End<D, E> {
    End::reported(Outcome::Invalid(Trouble::new(OUT_OF_REACH, why)), None)
}

impl From<Reach> for Reaching {
    /// For ever as far as this.
    fn from(reach: Reach) -> Self {
        let reach = Arc::new(reach);
        Self { asked: Arc::clone(&reach), unasked: reach, coverage: None }
    }
}

impl Default for Reaching {
    fn default() -> Self {
        Reach::default().into()
    }
}
