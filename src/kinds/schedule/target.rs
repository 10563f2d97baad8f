//! Reads and writes the scale of a target.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{
    Api, Client, Error,
    api::{ListParams, Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersion, GroupVersionKind},
    discovery,
};
use serde_json::json;

use crate::{reconcile::input::ObjectName, replica::problem::is_unserved};

/// Why a kind cannot be the target of a schedule.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) reason: &'static str,
    pub(super) words: String,
}

/// Finds the resource of a kind. Asked in each pass: a kind may come, go, or get another plural.
pub(super) async fn discover(client: &Client, kind: &GroupVersionKind) -> Result<Result<ApiResource, Unusable>, Error> {
    let name = format!("{} {}", kind.api_version(), kind.kind);
    let unknown = || Unusable { reason: "TargetUnknown", words: format!("the API server does not serve {name}") };
    let (resource, capabilities) = match discovery::pinned_kind(client, kind).await {
        Ok(found) => found,
        Err(error) if is_unserved(&error) => {
            return Ok(Err(unknown()));
        }
        Err(error) => return Err(error),
    };
    let scales =
        capabilities.subresources.iter().any(|(subresource, _)| subresource.plural.rsplit('/').next() == Some("scale"));
    if !scales {
        return Ok(Err(Unusable { reason: "TargetFixed", words: format!("{name} has no scale") }));
    }
    Ok(Ok(resource))
}

/// How many replicas the target has been asked for; `None` if it is not there.
pub(super) async fn replicas(api: &Api<DynamicObject>, name: &ObjectName) -> Result<Option<i32>, Error> {
    match api.get_scale(name).await {
        Ok(scale) => Ok(Some(scale.spec.and_then(|spec| spec.replicas).unwrap_or_default())),
        Err(Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks the target for so many replicas. Whether it is there.
pub(super) async fn scale(
    api: &Api<DynamicObject>,
    name: &ObjectName,
    replicas: i32,
    manager: &str,
) -> Result<bool, Error> {
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    match api.patch_scale(name, &params, &Patch::Merge(json!({"spec": {"replicas": replicas}}))).await {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// An autoscaler of the same target, by name.
pub(super) async fn autoscaler(
    client: &Client,
    namespace: &str,
    kind: &GroupVersionKind,
    name: &str,
) -> Result<Option<String>, Error> {
    let all = Api::<HorizontalPodAutoscaler>::namespaced(client.clone(), namespace);
    let all = all.list(&ListParams::default()).await?;
    let is_its = |autoscaler: &HorizontalPodAutoscaler| {
        let Some(target) = autoscaler.spec.as_ref().map(|spec| &spec.scale_target_ref) else { return false };
        let group = target.api_version.as_deref().and_then(|version| version.parse::<GroupVersion>().ok());
        target.kind == kind.kind && target.name == name && group.is_none_or(|version| version.group == kind.group)
    };
    Ok(all.items.into_iter().find(is_its).and_then(|autoscaler| autoscaler.metadata.name))
}
