//! Does what the plan says. Every write goes through the term's client and names the uid it was decided on.

use std::collections::BTreeMap;

use futures::{FutureExt, StreamExt, stream};
use kube::{
    Api, Client, Error,
    api::PropagationPolicy,
    core::{DynamicObject, TypeMeta},
};
use serde_json::{Map, Value, json};
use tracing::debug;

use super::{
    FailedReason, SourceKind,
    observe::{Owner, found, resource},
    plan::{Content, Place, Plan, Settlement, Valid, Wanted, settle},
};
use crate::{
    reconcile::apply::{Conflicts, apply, delete},
    replica::{problem::describe, term::Term},
};

/// Writes at a time for one Propagation.
const WRITES: usize = 8;

/// What became of the copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Namespaces whose copy is like the source.
    pub(super) synced: usize,
    /// Why the others have none.
    pub(super) failed: BTreeMap<String, FailedReason>,
    /// Copies written.
    pub(super) written: usize,
    /// Copies deleted.
    pub(super) pruned: usize,
    /// Copies that should have been deleted.
    pub(super) not_pruned: usize,
    /// What a policy of ours says of a namespace: names, and no values.
    pub(super) policies: BTreeMap<String, String>,
    /// The first refusal, for the log. Only its kind: a refusal may quote the values it refuses.
    pub(super) cause: Option<String>,
}

impl Copies {
    /// How much is left that trying again may mend. A conflict or a missing namespace is not: it is watched.
    pub(super) fn unfinished(&self) -> usize {
        let transient = |reason: &&FailedReason| match reason {
            FailedReason::Forbidden | FailedReason::Invalid | FailedReason::ApplyFailed => true,
            FailedReason::NamespaceNotFound | FailedReason::Conflict => false,
        };
        self.failed.values().filter(transient).count() + self.not_pruned
    }
}

/// One step of a plan.
enum Step {
    Update(String, String),
    Recreate(String, String),
    Create(String),
    Prune(Place, String),
}

/// What the API server says of a copy.
struct Refused {
    code: String,
    policy: Option<String>,
}

/// What became of one step.
enum StepResult {
    Written,
    Failed(String, FailedReason, Option<Refused>),
    /// The namespace is going away.
    Moot,
    Pruned,
    NotPruned(String),
}

/// Carries out the plan. `None`: the term drains and some of it was left out.
pub(super) async fn execute(
    client: &Client,
    owner: &Owner,
    valid: &Valid,
    wanted: &Wanted,
    plan: Plan,
    term: &Term,
) -> Option<Copies> {
    let Plan { synced, update, recreate, create, prune } = plan;
    let writer = Writer { client, owner, valid, wanted };
    let steps = prune
        .into_iter()
        .map(|(place, uid)| Step::Prune(place, uid))
        .chain(update.into_iter().map(|(namespace, uid)| Step::Update(namespace, uid)))
        .chain(recreate.into_iter().map(|(namespace, uid)| Step::Recreate(namespace, uid)))
        .chain(create.into_iter().map(Step::Create))
        .collect::<Vec<_>>();
    let draining = term.draining().shared();

    let mut copies = Copies { synced: synced.len(), ..Copies::default() };
    let mut interrupted = false;
    let mut outcomes = stream::iter(steps)
        .map(|step| {
            let drains = draining.clone().now_or_never().is_some();
            let writer = &writer;
            async move { if drains { None } else { Some(writer.take(step).await) } }
        })
        .buffer_unordered(WRITES);
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            None => interrupted = true,
            Some(StepResult::Moot) => {}
            Some(StepResult::Written) => {
                copies.written += 1;
                copies.synced += 1;
            }
            Some(StepResult::Pruned) => copies.pruned += 1,
            Some(StepResult::Failed(namespace, reason, refused)) => {
                let (code, policy) = refused.map_or((None, None), |Refused { code, policy }| (Some(code), policy));
                copies.policies.extend(policy.map(|message| (namespace.clone(), message)));
                _ = copies.failed.insert(namespace, reason);
                copies.cause = copies.cause.take().or(code);
            }
            Some(StepResult::NotPruned(cause)) => {
                copies.not_pruned += 1;
                copies.cause = copies.cause.take().or(Some(cause));
            }
        }
    }
    (!interrupted).then_some(copies)
}

struct Writer<'a> {
    client: &'a Client,
    owner: &'a Owner,
    valid: &'a Valid,
    wanted: &'a Wanted,
}

impl Writer<'_> {
    async fn take(&self, step: Step) -> StepResult {
        match step {
            Step::Prune(place, uid) => {
                let api = self.api(place.kind, &place.namespace);
                match delete(&api, &place.name, &uid, None, PropagationPolicy::Background).await {
                    Ok(_) => StepResult::Pruned,
                    Err(error) => StepResult::NotPruned(code(&error)),
                }
            }
            Step::Update(namespace, uid) => {
                let result = self.apply(&namespace, Some(uid)).await;
                self.result(namespace, result)
            }
            Step::Recreate(namespace, uid) => {
                let result = self.recreate(&namespace, &uid).await;
                self.result(namespace, result)
            }
            Step::Create(namespace) => match self.create(&namespace).await {
                Ok(None) => StepResult::Written,
                Ok(Some(reason)) => StepResult::Failed(namespace, reason, None),
                Err(error) => self.result(namespace, Err(error)),
            },
        }
    }

    /// Writes a copy where none was listed. Looks first: server-side apply would merge into whatever is there.
    /// Should something appear in between, the apply without force fails on the first field that differs.
    async fn create(&self, namespace: &str) -> Result<Option<FailedReason>, Error> {
        let Wanted::Content(wanted) = self.wanted else { return Ok(None) };
        let api = self.api(self.valid.source.kind, namespace);
        let found = found(&api, self.owner, &self.valid.source).await?;
        match settle(found.as_ref(), wanted, self.valid.on_conflict) {
            Settlement::Create => self.apply(namespace, None).await?,
            Settlement::Take(uid) => self.apply(namespace, Some(uid)).await?,
            Settlement::Replace(uid) => self.recreate(namespace, &uid).await?,
            Settlement::Wait => return Ok(Some(FailedReason::ApplyFailed)),
            Settlement::Conflict => return Ok(Some(FailedReason::Conflict)),
        }
        Ok(None)
    }

    async fn recreate(&self, namespace: &str, uid: &str) -> Result<(), Error> {
        let api = self.api(self.valid.source.kind, namespace);
        delete(&api, &self.valid.source.name, uid, None, PropagationPolicy::Background).await?;
        self.apply(namespace, None).await
    }

    /// Applies the copy: over the object with that uid, taking fields that other managers own, or where nothing is.
    async fn apply(&self, namespace: &str, uid: Option<String>) -> Result<(), Error> {
        let Wanted::Content(wanted) = self.wanted else { return Ok(()) };
        let conflicts = if uid.is_some() { Conflicts::Force } else { Conflicts::Fail };
        let copy = copy(self.valid, self.owner, wanted, namespace, uid);
        apply(&self.api(self.valid.source.kind, namespace), &self.owner.manager, &copy, conflicts).await.map(drop)
    }

    fn api(&self, kind: SourceKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    fn result(&self, namespace: String, result: Result<(), Error>) -> StepResult {
        let Err(error) = result else { return StepResult::Written };
        debug!(namespace, error = %code(&error), "copy not written");
        match refusal(&error) {
            None => StepResult::Moot,
            Some(reason) => {
                let refused = Refused { code: code(&error), policy: policy(&error) };
                StepResult::Failed(namespace, reason, Some(refused))
            }
        }
    }
}

/// Why the API server refused a copy; `None` if its namespace is going away.
fn refusal(error: &Error) -> Option<FailedReason> {
    let Error::Api(status) = error else { return Some(FailedReason::ApplyFailed) };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    if status.is_forbidden() && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") {
        return None;
    }
    Some(match status.code {
        403 => FailedReason::Forbidden,
        404 => FailedReason::NamespaceNotFound,
        409 => FailedReason::Conflict,
        422 => FailedReason::Invalid,
        _ => FailedReason::ApplyFailed,
    })
}

/// What a policy of `deploy/policies` says; others may quote the values that they refuse.
pub(super) fn policy(error: &Error) -> Option<String> {
    let Error::Api(status) = error else { return None };
    let (_, message) = status.message.split_once(" denied request: ")?;
    let message = message.strip_suffix("; see docs/security.md of Leasehold")?;
    status.is_forbidden().then(|| message.to_owned())
}

fn code(error: &Error) -> String {
    match error {
        Error::Api(status) => format!("{} {}", status.code, status.reason),
        other => describe(other),
    }
}

/// The copy, with exactly the fields that we apply.
pub(super) fn copy(
    valid: &Valid,
    owner: &Owner,
    wanted: &Content,
    namespace: &str,
    uid: Option<String>,
) -> DynamicObject {
    let resource = resource(valid.source.kind);
    let mut copy = DynamicObject::new(&valid.source.name, &resource).within(namespace);
    copy.types = Some(TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
    copy.metadata.uid = uid;
    copy.metadata.labels = Some(owner.labels.clone());
    copy.metadata.owner_references = Some(vec![owner.reference.clone()]);
    let Content { type_, data, binary_data, immutable } = wanted;
    let mut fields = Map::new();
    if let Some(type_) = type_ {
        fields.insert("type".to_owned(), json!(type_));
    }
    if !data.is_empty() {
        fields.insert("data".to_owned(), json!(data));
    }
    if !binary_data.is_empty() {
        fields.insert("binaryData".to_owned(), json!(binary_data));
    }
    if *immutable {
        fields.insert("immutable".to_owned(), json!(true));
    }
    copy.data = Value::Object(fields);
    copy
}
