//! What is said of an object that weighs more than its kind may: it is not reconciled, and its children stay as they are.
//!
//! The object is read for its metadata and its status, and only those are kept in memory meanwhile. A status is written with
//! nothing of the spec: the API server takes nothing else from such a write.

use http::{HeaderValue, header::ACCEPT};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::{
    Client, Error, Resource,
    api::{GetParams, PostParams},
    core::Request,
};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{name::Name, weight::shown};
use crate::{
    reconcile::{
        apply::field_manager,
        clock::{Clock, WallClock},
        conditions::{ConditionStatus, Conditions, SPEC_VALID},
        events::Events,
        status::Shard,
    },
    replica::term::Term,
};

/// The reason for an object that weighs more than it may.
const TOO_LARGE: &str = "TooLarge";

/// Asks for no more of an object than its metadata.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// An object without what it asks for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Light {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: ObjectMeta,
    #[serde(default)]
    status: Option<Map<String, Value>>,
}

/// Reads an object as it is now; `None`: it is gone.
pub(in crate::reconcile) async fn read<K: Resource, T: DeserializeOwned>(
    client: &Client,
    dyntype: &K::DynamicType,
    name: &Name,
) -> Result<Option<T>, Error> {
    let url = K::url_path(dyntype, name.namespace());
    let request = Request::new(url).get(name.name(), &GetParams::default()).map_err(Error::BuildRequest)?;
    match client.request(request).await {
        Ok(read) => Ok(Some(read)),
        Err(Error::Api(gone)) if gone.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// An object that was seen, and how much it weighs.
pub(in crate::reconcile) struct Oversized {
    pub(in crate::reconcile) bytes: u64,
    pub(in crate::reconcile) generation: Option<i64>,
}

/// Writes into the status of the object that it is too large, unless that stands there. `false`: the object has changed, and
/// is to be looked at again.
pub(in crate::reconcile) async fn say<K: Resource>(
    term: &Term,
    events: &Events,
    dyntype: &K::DynamicType,
    name: &Name,
    oversized: &Oversized,
) -> Result<bool, Error> {
    let client = term.client();
    let Some(light) = read::<K, Light>(&client, dyntype, name).await? else { return Ok(true) };
    if light.metadata.generation != oversized.generation {
        return Ok(false);
    }
    let kind = K::kind(dyntype);
    let message = format!(
        "the object weighs {} as JSON, and an object of the kind may weigh {}: it is not reconciled, and what it has made stays as it is; make it smaller, or raise `limits.object` of {kind} in the configuration of leasehold",
        shown(oversized.bytes),
        shown(term.kind().limits.object),
    );
    let Some(status) = next(light.status.unwrap_or_default(), &light.metadata, &message, term) else {
        return Ok(true);
    };
    let (api_version, url) = (K::api_version(dyntype), K::url_path(dyntype, name.namespace()));
    let meta = &light.metadata;
    let metadata = json!({
        "name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "resourceVersion": meta.resource_version,
    });
    let body = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status});
    let body = serde_json::to_vec(&body).map_err(Error::SerdeError)?;
    let params = PostParams { field_manager: Some(field_manager(&kind)), ..PostParams::default() };
    let request = Request::new(url).replace_subresource("status", name.name(), &params, body);
    let mut request = request.map_err(Error::BuildRequest)?;
    // The answer need not bring all of the object again.
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
    match client.request::<IgnoredAny>(request).await {
        Ok(_) => {}
        Err(Error::Api(refused)) if refused.is_conflict() => return Ok(false),
        // It is gone, or the kind has no status: the log says it then.
        Err(Error::Api(refused)) if refused.code == 404 => {}
        Err(error) => return Err(error),
    }
    warn!(kind = &*kind, namespace = name.namespace(), name = name.name(), "too large: {message}");
    let about = ObjectReference {
        api_version: Some(api_version.into_owned()),
        kind: Some(kind.into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    };
    events.warning(&about, TOO_LARGE, &message);
    Ok(true)
}

/// The status that says so, all else in it as it was; `None`: it says so.
fn next(mut status: Map<String, Value>, meta: &ObjectMeta, message: &str, term: &Term) -> Option<Map<String, Value>> {
    let conditions = status.get("conditions").cloned().unwrap_or_default();
    let previous: Vec<Condition> = serde_json::from_value(conditions).unwrap_or_default();
    let mut conditions = Conditions::new(&previous, meta.generation, WallClock.now());
    conditions.set(SPEC_VALID, ConditionStatus::False, TOO_LARGE, message);
    let conditions = conditions.with_ready();
    // How much it weighs changes with each status that is written, and alone is no news.
    let is_said = |next: &Condition| {
        let same = |before: &&Condition| {
            (&before.type_, &before.status, &before.reason, before.observed_generation)
                == (&next.type_, &next.status, &next.reason, next.observed_generation)
        };
        previous.iter().any(|before| same(&before))
    };
    if previous.len() == conditions.len() && conditions.iter().all(is_said) {
        return None;
    }
    status.insert("conditions".to_owned(), json!(conditions));
    if let Some(generation) = meta.generation {
        status.insert("observedGeneration".to_owned(), json!(generation));
    }
    status.insert("shard".to_owned(), json!(Shard::of(term)));
    Some(status)
}
