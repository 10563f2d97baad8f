//! Asks the API server what the author of a request may do, and how a type is served.
//!
//! What is not answered, or may not be asked, is refused: an answer that is missing allows nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    authentication::v1::UserInfo,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{
    Api, Client,
    api::PostParams,
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Denied,
    action::{Action, Place},
};
use crate::replica::problem::{describe, is_unserved};

/// How long all questions of one request may take: less than its answer may, so that a refusal says what was not answered.
const WITHIN: Duration = Duration::from_secs(3);
/// Questions of one request at a time.
const OF_A_REQUEST: usize = 8;
/// Questions of all requests at a time: each takes a connection to the API server.
const AT_A_TIME: usize = 16;
/// The same action in more namespaces than this is asked about for all of them first.
const FEW: usize = 8;
/// So many refusals are enough: no message names more.
const ENOUGH: usize = 32;

/// How a type is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// In the plural.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

/// How types are served, by API version and kind; those that are not are not in it.
pub type Resources = BTreeMap<(String, String), Resource>;

/// Asks for all webhooks of a process; clones share the bound on questions.
#[derive(Clone, Debug)]
pub struct Asker {
    places: Arc<Semaphore>,
}

impl Default for Asker {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Asker {
    /// How these types are served.
    ///
    /// # Errors
    /// If the API server does not say.
    pub async fn resources(&self, client: &Client, types: Vec<GroupVersionKind>) -> Result<Resources, Denied> {
        let discover = |of: GroupVersionKind| async move {
            let _place = self.places.acquire().await;
            let key = (of.api_version(), of.kind.clone());
            match pinned_kind(client, &of).await {
                Ok((resource, capabilities)) => {
                    let namespaced = capabilities.scope == Scope::Namespaced;
                    Ok(Some((key, Resource { plural: resource.plural, namespaced })))
                }
                Err(error) if is_unserved(&error) => Ok(None),
                Err(error) => {
                    let why = describe(&error);
                    Err(Denied::unknown(format!(
                        "the API server did not say what it serves of {}: {why}; try again",
                        key.0
                    )))
                }
            }
        };
        let mut answers = stream::iter(types).map(discover).buffer_unordered(OF_A_REQUEST);
        let mut resources = Resources::new();
        while let Some(answer) = answers.next().await {
            resources.extend(answer?);
        }
        Ok(resources)
    }

    /// Which of these actions the user may not do, in their order; not all of them if there are many.
    ///
    /// # Errors
    /// If the API server does not say, or may not be asked.
    pub async fn missing(
        &self,
        client: &Client,
        user: &UserInfo,
        actions: BTreeSet<Action>,
    ) -> Result<Vec<Action>, Denied> {
        let (broad, mut rest) = broadened(actions);
        // All of them: what has no answer here must not pass for allowed.
        let denied = self.denied(client, user, broad.keys().cloned().collect(), usize::MAX).await?;
        rest.extend(broad.into_iter().filter(|(action, _)| denied.contains(action)).flat_map(|(_, each)| each));
        Ok(self.denied(client, user, rest, ENOUGH).await?.into_iter().collect())
    }

    /// What is denied of these actions; it stops when so many are.
    async fn denied(
        &self,
        client: &Client,
        user: &UserInfo,
        actions: BTreeSet<Action>,
        enough: usize,
    ) -> Result<BTreeSet<Action>, Denied> {
        let ask = |action: Action| async move {
            let _place = self.places.acquire().await;
            let answer = Api::all(client.clone()).create(&PostParams::default(), &review(user, &action)).await;
            match answer {
                Ok(SubjectAccessReview { status: Some(status), .. }) if status.allowed => Ok(None),
                Ok(SubjectAccessReview { status: Some(_), .. }) => Ok(Some(action)),
                Ok(_) => {
                    Err(Denied::unknown("the API server answered a SubjectAccessReview without a status; try again"))
                }
                Err(kube::Error::Api(status)) if status.is_forbidden() => Err(Denied::unknown(
                    "this replica may not ask what the author of a request may do: grant its account `create` on \
                     subjectaccessreviews in API group authorization.k8s.io, as `leasehold rbac --webhooks=on` prints it",
                )),
                Err(error) => {
                    let why = describe(&error);
                    Err(Denied::unknown(format!(
                        "the API server did not say what the author of the request may do: {why}; try again"
                    )))
                }
            }
        };
        let mut answers = stream::iter(actions).map(ask).buffer_unordered(OF_A_REQUEST);
        let mut denied = BTreeSet::new();
        while let Some(answer) = answers.next().await {
            denied.extend(answer?);
            if denied.len() >= enough {
                break;
            }
        }
        Ok(denied)
    }
}

/// Bounds the questions of one request in time.
///
/// # Errors
/// If they are not answered in time, or as `asking` does.
pub async fn in_time<T>(asking: impl Future<Output = Result<T, Denied>>) -> Result<T, Denied> {
    timeout(WITHIN, asking).await.unwrap_or_else(|_elapsed| {
        let within = WITHIN.as_secs();
        Err(Denied::unknown(format!(
            "the API server has not said within {within} s what the author of the request may do; try again"
        )))
    })
}

/// What is done in many namespaces, as the same in all of them, with what that stands for; and what is asked as it is.
/// Who may do something in all namespaces may do it in each.
fn broadened(actions: BTreeSet<Action>) -> (BTreeMap<Action, Vec<Action>>, BTreeSet<Action>) {
    let mut alike = BTreeMap::<_, Vec<Action>>::new();
    let mut rest = BTreeSet::new();
    for action in actions {
        match &action.place {
            Place::Namespace(_) => alike.entry(action.anywhere()).or_default().push(action),
            Place::Cluster | Place::Anywhere => _ = rest.insert(action),
        }
    }
    let (broad, few) = alike.into_iter().partition(|(_, each): &(_, Vec<_>)| each.len() > FEW);
    let few: BTreeMap<Action, Vec<Action>> = few;
    rest.extend(few.into_values().flatten());
    (broad, rest)
}

fn review(user: &UserInfo, action: &Action) -> SubjectAccessReview {
    let Action { place, group, version, resource, subresource, name, verb } = action;
    let namespace = match place {
        Place::Namespace(namespace) => Some(namespace.clone()),
        Place::Cluster | Place::Anywhere => None,
    };
    let attributes = ResourceAttributes {
        namespace,
        group: Some(group.clone()),
        version: Some(version.clone()),
        resource: Some(resource.clone()),
        subresource: subresource.map(str::to_owned),
        name: name.clone(),
        verb: Some((*verb).to_owned()),
        ..ResourceAttributes::default()
    };
    let UserInfo { username, groups, uid, extra } = user.clone();
    let resource_attributes = Some(attributes);
    let spec =
        SubjectAccessReviewSpec { user: username, groups, uid, extra, resource_attributes, ..Default::default() };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}
