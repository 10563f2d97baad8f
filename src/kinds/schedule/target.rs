//! Reads and writes the scale of a target.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{
    Api, Client, Error,
    api::{ListParams, Patch, PatchParams},
    core::{DynamicObject, GroupVersion},
};
use serde_json::json;

use super::plan::Valid;
use crate::reconcile::{
    input::ObjectName,
    stages::{self, Trouble},
};

/// The target of a schedule.
#[derive(Debug)]
pub struct Target {
    api: Api<DynamicObject>,
    name: ObjectName,
    /// What it is, in messages.
    pub(super) what: String,
}

/// Finds the target, or says why its kind cannot be scaled.
pub(super) async fn find(client: &Client, namespace: &str, valid: &Valid) -> Result<Result<Target, Trouble>, Error> {
    let kind = &valid.target;
    let (resource, capabilities) = match stages::discover(client, kind).await? {
        Ok(found) => found,
        Err(trouble) => return Ok(Err(trouble)),
    };
    let scales =
        capabilities.subresources.iter().any(|(subresource, _)| subresource.plural.rsplit('/').next() == Some("scale"));
    if !scales {
        let message = format!("{} {} has no scale", kind.api_version(), kind.kind);
        return Ok(Err(Trouble::new("TargetFixed", message)));
    }
    let api = Api::namespaced_with(client.clone(), namespace, &resource);
    Ok(Ok(Target { api, name: valid.name.clone(), what: format!("{} {namespace}/{}", kind.kind, valid.name) }))
}

/// How many replicas the target has been asked for; `None` if it is not there.
pub(super) async fn replicas(target: &Target) -> Result<Option<i32>, Error> {
    match target.api.get_scale(&target.name).await {
        Ok(scale) => Ok(Some(scale.spec.and_then(|spec| spec.replicas).unwrap_or_default())),
        Err(Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks the target for so many replicas. Whether it is there.
pub(super) async fn scale(target: &Target, replicas: i32, manager: &str) -> Result<bool, Error> {
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    match target.api.patch_scale(&target.name, &params, &patch).await {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// An autoscaler of the same target, by name.
pub(super) async fn autoscaler(client: &Client, namespace: &str, valid: &Valid) -> Result<Option<String>, Error> {
    let (kind, name) = (&valid.target, &*valid.name);
    let all = Api::<HorizontalPodAutoscaler>::namespaced(client.clone(), namespace);
    let all = all.list(&ListParams::default()).await?;
    let is_its = |autoscaler: &HorizontalPodAutoscaler| {
        let Some(target) = autoscaler.spec.as_ref().map(|spec| &spec.scale_target_ref) else { return false };
        let group = target.api_version.as_deref().and_then(|version| version.parse::<GroupVersion>().ok());
        target.kind == kind.kind && target.name == name && group.is_none_or(|version| version.group == kind.group)
    };
    Ok(all.items.into_iter().find(is_its).and_then(|autoscaler| autoscaler.metadata.name))
}
