//! Writing a status: only when it says something new, and stamped with the term that wrote it.

use kube::{Api, Error, Resource, api::PostParams, core::object::HasStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{reconcile::apply::field_manager, sharding::term::Term};

/// The shard that wrote a status last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shard {
    /// Name of its Lease.
    pub lease: String,
    /// The fencing token of its term: uid of the Lease, a slash, `leaseTransitions`.
    /// A later term has a greater number as long as the uid stays the same.
    pub token: String,
}

impl Shard {
    /// The stamp of a term.
    pub fn of(term: &Term) -> Self {
        Self { lease: term.lease().to_owned(), token: term.token().to_string() }
    }
}

/// A status that bears a stamp.
pub trait Stamped: Clone + PartialEq {
    /// Where the stamp is.
    fn shard_mut(&mut self) -> &mut Option<Shard>;
}

/// Whether `next` says anything that `current` does not. The stamp alone is no news: otherwise each take-over would write every status.
pub fn changed<S: Stamped>(current: Option<&S>, next: &S) -> bool {
    current.is_none_or(|current| {
        let (mut current, mut next) = (current.clone(), next.clone());
        *current.shard_mut() = None;
        *next.shard_mut() = None;
        current != next
    })
}

/// The most often that a status is computed anew because somebody else wrote the object in between.
const ATTEMPTS: u32 = 4;

/// Writes the status that `next` makes of the current one, if that changes anything. Returns whether it did.
///
/// `object` may be old, as it comes from a cache: the write bears its resourceVersion, and when the API server refuses that,
/// the object is read and `next` is asked again with the status it bears now. So `next` may count on from what is there.
pub async fn write<K>(
    term: &Term,
    api: &Api<K>,
    object: &K,
    next: impl Fn(Option<&K::Status>) -> K::Status,
) -> Result<bool, Error>
where
    K: Resource<DynamicType = ()> + HasStatus + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    K::Status: Stamped,
{
    let name = object.meta().name.clone().unwrap_or_default();
    let params = PostParams { field_manager: Some(field_manager(&K::kind(&()))), ..PostParams::default() };
    let mut object = object.clone();
    for attempt in 1.. {
        let mut status = next(object.status());
        if !changed(object.status(), &status) {
            return Ok(false);
        }
        *status.shard_mut() = Some(Shard::of(term));
        *object.status_mut() = Some(status);
        match api.replace_status(&name, &params, &object).await {
            Ok(_) => return Ok(true),
            Err(Error::Api(refused)) if refused.is_conflict() && attempt < ATTEMPTS => {
                let Some(fresh) = api.get_opt(&name).await? else { return Ok(false) };
                if fresh.meta().uid != object.meta().uid {
                    return Ok(false);
                }
                object = fresh;
            }
            Err(Error::Api(gone)) if gone.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
