//! What a pass rests on: the caches of the object, of its children and of what is related, and the children that are in none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use kube::{core::ApiResource, discovery::Scope};
use serde_json::Value;

use super::{
    Composed, Effort, Failure, Key, Type, View,
    generated::hide,
    parent::TooDeep,
    pass::Pass,
    plan::{Cached, Mine},
    report::Done,
    write::Family,
};
use crate::reconcile::{
    raw::DEEPEST,
    stages::{End, Outcome, Trouble},
    watches::{Objects, RELATED, Readiness},
};

/// How soon an object is looked at again whose children cannot be seen: nothing tells when they can.
pub(super) const UNUSABLE: Duration = Duration::from_secs(10);

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ObserveError {
    #[error("failed to read a child that is not kept")]
    ReadChild(#[source] kube::Error),
}

/// How each type is named in requests, and where its objects live.
pub(super) type Served = HashMap<Arc<Type>, (ApiResource, Scope)>;

/// What is there. The object and what is related are read when a front end first looks at them, on whatever thread, and once in
/// a pass.
#[derive(Clone)]
pub(super) struct Observed {
    pass: Pass,
    served: Arc<Served>,
    is_current: bool,
    /// Children that had to be read.
    read: Arc<HashMap<Key, Arc<Value>>>,
    object: Arc<OnceLock<Result<Value, TooDeep>>>,
    related: Arc<OnceLock<BTreeMap<String, Vec<Arc<Value>>>>>,
}

impl Pass {
    pub(super) async fn observe(&self) -> Result<Observed, End<Done, ObserveError>> {
        let served = match self.served().and_then(|served| all_shown(self.common.related.values()).map(|()| served)) {
            Ok(served) => Arc::new(served),
            Err(None) => return Err(End::unreported(None)),
            Err(Some(why)) => {
                return Err(End::reported(Outcome::Blocked(Trouble::new("NotSeen", why)), Some(UNUSABLE)));
            }
        };
        if let Some(trouble) = self.too_much_is_related().or_else(|| self.something_related_is_too_deep()) {
            return Err(End::reported(Outcome::Invalid(trouble), None));
        }
        let is_current = self.common.store.is_current(&self.object);
        let read = Family::new(&self.common, &self.object, &served).read_missing().await;
        Ok(Observed {
            pass: self.clone(),
            served,
            is_current,
            read: Arc::new(read.map_err(ObserveError::ReadChild)?),
            object: Arc::default(),
            related: Arc::default(),
        })
    }

    /// The types of children that are served, if the watches show all children. Else why not; `None`: they will, and the object
    /// is due then. A type that is not served has no objects that could be overlooked, and only its own children fail.
    pub(super) fn served(&self) -> Result<Served, Option<String>> {
        let children = &self.common.children;
        all_shown(children.values())?;
        let served = children.iter().filter_map(|(of, objects)| Some((Arc::clone(of), objects.served()?)));
        Ok(served.collect())
    }

    /// Which watch fails, and why: what changes meanwhile is not seen.
    pub(super) fn stale(&self) -> Option<String> {
        let it = &self.common;
        let children = it.children.iter().map(|(of, objects)| (of.to_string(), objects));
        let all = children.chain(it.related.iter().map(|(id, objects)| (id.clone(), objects)));
        all.into_iter().find_map(|(what, objects)| match objects.readiness() {
            Readiness::Stale(why) => Some(format!("the watch of {what} fails: {why}")),
            _ => None,
        })
    }

    /// How many bytes of text are related: nothing is read before that is known.
    pub(super) fn related_bytes(&self) -> u64 {
        self.common.related.values().map(Objects::bytes).fold(0, u64::saturating_add)
    }

    fn too_much_is_related(&self) -> Option<Trouble> {
        (self.related_bytes() > RELATED).then(|| {
            let count = |(id, objects): (&String, &Objects)| format!("{id} has {} MiB", objects.bytes() >> 20);
            let each: Vec<_> = self.common.related.iter().map(count).collect();
            let message = format!(
                "more is related than the {} MiB that can be looked at: {}; narrow it down in the composition",
                RELATED >> 20,
                each.join(", ")
            );
            Trouble::new("TooMuchRelated", message)
        })
    }

    fn something_related_is_too_deep(&self) -> Option<Trouble> {
        self.common.related.iter().find_map(|(id, objects)| {
            let message = format!(
                "{} is related as {id} and has more than {DEEPEST} lists and mappings in one another: flatten it, or narrow \
                down in the composition what is related",
                objects.too_deep()?
            );
            Some(Trouble::new("RelatedTooDeep", message))
        })
    }

    /// Related objects, as they were last seen.
    fn related(&self) -> BTreeMap<String, Vec<Arc<Value>>> {
        let all = |objects: &Objects| objects.all().into_iter().map(|object| hide(Arc::new(object))).collect();
        self.common.related.iter().map(|(id, objects)| (id.clone(), all(objects))).collect()
    }
}

fn all_shown<'a>(watches: impl Iterator<Item = &'a Objects>) -> Result<(), Option<String>> {
    for objects in watches {
        match objects.readiness() {
            Readiness::Ready | Readiness::Unserved | Readiness::Stale(_) => {}
            Readiness::Unlisted => return Err(None),
            Readiness::Failing(why) => return Err(Some(why)),
        }
    }
    Ok(())
}

impl Observed {
    pub(super) fn family(&self) -> Family<'_> {
        Family::new(&self.pass.common, &self.pass.object, &self.served)
    }

    /// The children that had to be read.
    pub(super) fn read(&self) -> Arc<HashMap<Key, Arc<Value>>> {
        Arc::clone(&self.read)
    }

    /// What the front end says that the object shall have.
    pub(super) fn compose(&self, mine: &Mine, effort: Effort) -> Result<Option<Composed>, Failure> {
        let tree = self.object.get_or_init(|| self.pass.object.tree());
        let Ok(parent) = tree else {
            let message = format!("the object has more than {DEEPEST} lists and mappings in one another: flatten it");
            return Err(Failure { reason: "TooDeep", message });
        };
        let related = self.related.get_or_init(|| self.pass.related());
        let family = self.family();
        let child = |key: &Key| mine.child(key, || family.cached(key));
        let is_namespaced = |of: &Type| family.is_namespaced(of);
        let view = View { parent, child: &child, related, is_namespaced: &is_namespaced };
        self.pass.common.front.compose(&view, effort)
    }
}

impl Cached for Observed {
    fn child(&self, key: &Key) -> Option<Arc<Value>> {
        self.family().cached(key)
    }

    fn children(&self) -> Vec<Key> {
        self.family().of_owner()
    }

    fn is_current(&self) -> bool {
        self.is_current
    }

    fn unserved(&self, of: &Type) -> Option<Trouble> {
        self.family().unserved(of)
    }
}
