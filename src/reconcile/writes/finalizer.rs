//! Finalizers: what has to be done before an object may go. Each write names the very object that was read, in the
//! version in which it was read, so that no other finalizer gets lost and no later object of that name gets one.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Error, Resource,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The finalizer of a kind.
pub fn name(kind: &str) -> String {
    format!("leasehold.dev/{}", kind.to_lowercase())
}

/// What the API server adds when an object is deleted with `--cascade=orphan`, until the garbage collector has taken the owner
/// references to it off.
const ORPHAN: &str = "orphan";

/// Whether the object is being deleted, and what it owns shall stay. The garbage collector is soon done, and then nothing on
/// the object says so any more.
pub fn orphans(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|it| it == ORPHAN)
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is as wanted now, or was already.
    Done,
    /// The object has changed or gone since it was read: nothing was written. Its next event is on its way.
    Changed,
}

/// Adds a finalizer to the object.
///
/// # Errors
/// If the API server refuses for another reason than that the object has changed or gone.
pub async fn add<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<Written, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    if finalizers.iter().any(|it| it == finalizer) {
        return Ok(Written::Done);
    }
    finalizers.push(finalizer.to_owned());
    write(api, object, &finalizers).await
}

/// Removes a finalizer from the object, which may go with it.
///
/// # Errors
/// As [`add`].
pub async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<Written, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|it| it == finalizer) {
        return Ok(Written::Done);
    }
    finalizers.retain(|it| it != finalizer);
    write(api, object, &finalizers).await
}

async fn write<K>(api: &Api<K>, object: &K, finalizers: &[String]) -> Result<Written, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let meta = object.meta();
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
    }});
    let name = meta.name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Written::Done),
        Err(Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(Written::Changed),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::Value;

    use super::*;
    use crate::{
        kinds::propagation::Propagation,
        reconcile::fake::{Answer, Asked, Fake, refusal},
    };

    fn object(finalizers: Value) -> Propagation {
        let spec = json!({"source": {"kind": "ConfigMap", "namespace": "ns", "name": "x"}, "targets": {}});
        let metadata = json!({"name": "p", "uid": "u", "resourceVersion": "7", "finalizers": finalizers});
        let object =
            json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation", "metadata": metadata, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    async fn written(
        finalizers: Value,
        is_added: bool,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> (Result<Written, Error>, Vec<Asked>) {
        let fake = Fake::new(1, answer);
        let api = Api::<Propagation>::all(fake.term.client());
        let object = object(finalizers);
        let result = if is_added { add(&api, &object, "mine").await } else { remove(&api, &object, "mine").await };
        (result, fake.asked())
    }

    fn accepted(_: &Asked) -> Answer {
        Some((200, serde_json::to_value(object(json!([]))).unwrap()))
    }

    #[tokio::test]
    async fn a_write_names_the_object_and_its_version_and_leaves_others_alone() {
        for (before, is_added, after) in [
            (json!([]), true, json!(["mine"])),
            (json!(["other"]), true, json!(["other", "mine"])),
            (json!(["mine", "other"]), false, json!(["other"])),
        ] {
            let (result, asked) = written(before, is_added, accepted).await;
            assert_eq!(result.unwrap(), Written::Done);
            let [patch] = &asked[..] else { panic!("{asked:?}") };
            assert_eq!(patch.method, Method::PATCH);
            let expected = json!({"uid": "u", "resourceVersion": "7", "finalizers": after});
            assert_eq!(patch.body["metadata"], expected);
        }
    }

    #[tokio::test]
    async fn what_is_as_wanted_is_not_written() {
        for (before, is_added) in [(json!(["mine"]), true), (json!(["other"]), false)] {
            let (result, asked) = written(before, is_added, accepted).await;
            assert_eq!((result.unwrap(), asked.len()), (Written::Done, 0));
        }
    }

    #[tokio::test]
    async fn an_object_that_has_changed_or_gone_is_left_to_its_next_event() {
        for (code, reason) in [(409, "Conflict"), (404, "NotFound")] {
            let (result, _) = written(json!([]), true, move |_| refusal(code, reason)).await;
            assert_eq!(result.unwrap(), Written::Changed);
        }
        let (result, _) = written(json!([]), true, |_| refusal(403, "Forbidden")).await;
        assert!(result.is_err());
    }
}
