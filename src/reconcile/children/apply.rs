//! Carries out what a plan says, one step after the other, and tells it what became of each.

use std::time::Duration;

use futures::future;
use kube::{Api, ResourceExt, api::ListParams};

use super::{
    Composed, Failure, Key,
    adopt::{ADOPTING, CONFLICT},
    aside,
    fights::{CONTESTED, Rival},
    observe::{Observed, UNUSABLE},
    parent::Parent,
    pass::{Error, Pass},
    plan::{self, Plan, RECREATING, Step},
    report::Done,
    write::Family,
};
use crate::{
    protocol::lease::version_number,
    reconcile::{
        controller::RequeueAfter,
        finalizer,
        stages::{End, Outcome, Trouble},
    },
};

/// How soon an object is looked at again whose children's watch fails: nothing tells when it does not any more.
const STALE: Duration = Duration::from_secs(60);
/// How soon a child that belongs to another owner is looked at again: it bears no label by which we would see it go.
const CONFLICTING: Duration = Duration::from_secs(30);
/// How soon the children of a deleted object are looked at again while they go.
const GOING: Duration = Duration::from_secs(2);
/// How soon an object is looked at again that is not as it was seen: its own watch lags.
const AT_ONCE: Duration = Duration::ZERO;
/// What is related and can be read while others wait, in bytes of text.
const BRIEF: u64 = 64 << 10;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("failed to write the finalizer")]
    WriteFinalizer(#[source] kube::Error),
    #[error("failed to read the object")]
    ReadObject(#[source] kube::Error),
    #[error("failed to list the children of a deleted object")]
    ListChildren(#[source] kube::Error),
    #[error("failed to tell what is taken over")]
    Announce(#[source] kube::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the children are not done after {} rounds", plan::ROUNDS)]
    Unfinished,
}

/// What the API server has of an object that was seen.
enum Read {
    /// The same, but for its status.
    Same,
    /// Another version, perhaps one that differs in nothing that makes it due.
    Changed,
    /// None, or another one of its name: of that the watch tells.
    Gone,
}

impl Read {
    fn requeue_after(&self) -> RequeueAfter {
        match self {
            Self::Gone => None,
            Self::Same | Self::Changed => Some(AT_ONCE),
        }
    }
}

impl Pass {
    pub(super) async fn apply(
        &self,
        observed: &Observed,
        mut plan: Plan,
    ) -> Result<(Done, RequeueAfter), End<Done, ApplyError>> {
        let (it, family) = (&self.common, observed.family());
        let outcome = loop {
            match plan.next(observed, it.now.now()) {
                Step::Compose => match self.compose(observed, &plan).await {
                    Some(composed) => plan.composed(composed),
                    // The term drains.
                    None => return Err(End::unreported(None)),
                },
                Step::Hold => {
                    let held = finalizer::add(&self.api(), &*self.object, &it.finalizer).await;
                    // Its event makes the object due again, and then the finalizer is there.
                    return Err(End::unreported(match held.map_err(ApplyError::WriteFinalizer)? {
                        finalizer::Written::Done => None,
                        _ => self.read().await?.requeue_after(),
                    }));
                }
                Step::Confirm => match self.read().await? {
                    Read::Same => plan.confirmed(),
                    other => return Err(End::unreported(other.requeue_after())),
                },
                Step::Read(keys) => family.read_each(keys, &mut plan).await,
                Step::Write(writes) => {
                    if !family.write_all(writes, &mut plan).await {
                        // The term drains. What was left out is the next leader's to find.
                        return Err(End::unreported(None));
                    }
                }
                Step::Announce(adoptions) => self.announce(&adoptions).await?,
                Step::Replace(all) => family.replace_each(all, &mut plan).await,
                Step::Delete(going) => family.delete_each(going, &mut plan).await,
                Step::Report(outcome) => break outcome,
                Step::Unfinished => return Err(ApplyError::Unfinished.into()),
            }
        };
        let (written, pruned) = plan.counts();
        self.note_events(written, pruned, &plan.take_kept());
        self.report_rivals(plan.take_rivals());
        let done = match outcome {
            Outcome::Done(done) => Done { stale: self.stale(), ..done },
            other => return Err(End::reported(other, None)),
        };
        if let Some(refused) = done.trouble.iter().find(|trouble| retries(trouble.reason)) {
            let error = ApplyError::Refused(refused.message.clone());
            return Err(End::failed(Outcome::Done(done), error));
        }
        let contested = plan.contested_until().map(|until| until.since(it.now.now()));
        let is = |reason: &str| done.trouble.iter().any(|trouble| trouble.reason == reason);
        let conflict = is(CONFLICT).then_some(CONFLICTING);
        let recreating = is(RECREATING).then_some(GOING);
        let stale = done.stale.as_ref().map(|_| STALE);
        let after = [contested, conflict, recreating, stale].into_iter().flatten().min();
        Ok((done, after))
    }

    /// What the object shall have, with what was just written. `None`: the term drains.
    async fn compose(&self, observed: &Observed, plan: &Plan) -> Option<Result<Composed, Failure>> {
        let (observed, mine) = (observed.clone(), plan.mine());
        let (is_brief, draining) = (self.related_bytes() <= BRIEF, self.common.term.draining());
        aside::compose(is_brief, draining, move |effort| observed.compose(&mine, effort).transpose()).await
    }

    /// Reads the object. What was read is seen from now on.
    async fn read(&self) -> Result<Read, ApplyError> {
        let it = &self.common;
        let (api, all) = (self.api(), Api::<Parent>::all_with(it.term.client(), &it.resource));
        let name = self.object.name_any();
        // Where the term began with a standby's cache: once a version of the kind is known, what changes later need not be read.
        let version = async {
            if it.store.has_baseline() {
                return;
            }
            let list = all.list(&ListParams::default().limit(1)).await.ok();
            let version = list.and_then(|list| list.metadata.resource_version);
            if let Some(version) = version.as_deref().and_then(version_number) {
                it.store.is_at(version);
            }
        };
        let (fresh, ()) = future::join(api.get_opt(&name), version).await;
        Ok(match fresh.map_err(ApplyError::ReadObject)? {
            Some(fresh) if fresh.metadata.uid == self.meta().uid => match it.store.read(&self.object, fresh) {
                true => Read::Same,
                false => Read::Changed,
            },
            _ => Read::Gone,
        })
    }

    /// Writes nothing but the finalizer and the status: with it, the deletion of the object waits too, and the garbage collector
    /// takes no child meanwhile.
    pub(super) async fn pause(&self) -> Result<RequeueAfter, Error> {
        let it = &self.common;
        if self.meta().deletion_timestamp.is_none() {
            let held = finalizer::add(&self.api(), &*self.object, &it.finalizer).await;
            let failed = |error| Error::Apply(ApplyError::WriteFinalizer(error));
            if held.map_err(failed)? == finalizer::Written::Changed {
                return Ok(self.read().await.map_err(Error::Apply)?.requeue_after());
            }
        }
        self.report(&Outcome::Paused).await.map_err(Error::WriteStatus)?;
        Ok(None)
    }

    /// Deletes what the garbage collector does not, then lets the object go.
    pub(super) async fn finalize(&self) -> Result<RequeueAfter, Error> {
        let it = &self.common;
        if !self.object.finalizers().contains(&it.finalizer) {
            return Ok(None);
        }
        // Related objects decide nothing any more, so a watch of those that fails does not keep the object.
        let served = match self.served() {
            Ok(served) => served,
            Err(None) => return Ok(None),
            Err(Some(why)) => {
                self.warning("FinalizeBlocked", &why);
                return Ok(Some(UNUSABLE));
            }
        };
        let stay = it.store.orphans(&self.object);
        let family = Family::new(it, &self.object, &served);
        let failed = |error| Error::Apply(ApplyError::ListChildren(error));
        if !stay && family.delete_all(&it.front.order()).await.map_err(failed)? > 0 {
            return Ok(Some(GOING));
        }
        let removed = finalizer::remove(&self.api(), &*self.object, &it.finalizer).await;
        let failed = |error| Error::Apply(ApplyError::WriteFinalizer(error));
        if removed.map_err(failed)? == finalizer::Written::Changed {
            return Ok(self.read().await.map_err(Error::Apply)?.requeue_after());
        }
        self.normal("Finalized", if stay { "the children stay, as orphans" } else { "all children are gone" });
        Ok(None)
    }

    /// Tells what is taken over, before it is.
    async fn announce(&self, adoptions: &[(Key, String)]) -> Result<(), ApplyError> {
        let messages: Vec<_> = adoptions.iter().map(|(_, message)| message.as_str()).collect();
        let message = messages.join("; ");
        let (namespace, name) = (self.object.namespace().unwrap_or_default(), self.object.name_any());
        tracing::info!(kind = self.common.resource.kind, namespace, name, "adopting: {message}");
        let outcome = Outcome::Blocked(Trouble::new(ADOPTING, message.as_str()));
        self.report(&outcome).await.map_err(ApplyError::Announce)?;
        self.normal(ADOPTING, &message);
        self.common.events.publish().await;
        Ok(())
    }

    fn note_events(&self, written: usize, pruned: usize, kept: &[Key]) {
        // Of a new object its status tells, and that is write enough.
        if written > 0 && self.object.status.is_some() {
            self.normal("Applied", &format!("{written} children written"));
        }
        if pruned > 0 {
            self.normal("Pruned", &format!("{pruned} children deleted"));
        }
        if !kept.is_empty() {
            let names: Vec<_> = kept.iter().map(Key::to_string).collect();
            self.normal("Kept", &format!("kept, and children no more: {}", names.join(", ")));
        }
        if written + pruned > 0 {
            let (namespace, name) = (self.object.namespace().unwrap_or_default(), self.object.name_any());
            tracing::info!(kind = self.common.resource.kind, namespace, name, written, pruned, "children changed");
        }
    }

    /// Logs and counts the writers that undo children, once in each round.
    fn report_rivals(&self, rivals: Vec<Rival>) {
        let it = &self.common;
        for rival in rivals {
            let (namespace, name) = (self.object.namespace().unwrap_or_default(), self.object.name_any());
            tracing::warn!(kind = it.resource.kind, namespace, name, "contested: {}", rival.message);
            match &rival.managers[..] {
                [] => it.term.meter().undone("unknown"),
                some => some.iter().for_each(|manager| it.term.meter().undone(manager)),
            }
        }
    }
}

/// Whether trying again may mend it. A conflict does not mend itself, and is looked at now and then; so is a contested child,
/// and one that goes to be made anew.
fn retries(reason: &str) -> bool {
    ![CONFLICT, CONTESTED, RECREATING].contains(&reason)
}
