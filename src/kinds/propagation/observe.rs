//! Reads what a pass has to know. Never writes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Error, Resource, ResourceExt,
    api::ListParams,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
};

use super::{
    Propagation, SourceKind,
    plan::{Child, Content, Found, Place, Source, Valid, Wanted},
};
use crate::{
    reconcile::apply::{applied_by, applied_keys, children_of, field_manager, labels, ownership},
    replica::term::Term,
};

/// Objects a page.
const PAGE: u32 = 500;

/// The Propagation as the owner of its copies: what each of them bears.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) uid: String,
    pub(super) manager: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) reference: OwnerReference,
}

impl Owner {
    pub(super) fn of(propagation: &Propagation, term: &Term) -> Self {
        let uid = propagation.uid().unwrap_or_default();
        Self {
            manager: field_manager(&Propagation::kind(&())),
            labels: labels(term, &uid),
            // The owner is cluster-scoped, so it may own objects in any namespace. Not as their controller:
            // a copy may well have another one.
            reference: OwnerReference {
                api_version: Propagation::api_version(&()).into_owned(),
                kind: Propagation::kind(&()).into_owned(),
                name: propagation.name_any(),
                uid: uid.clone(),
                ..OwnerReference::default()
            },
            uid,
        }
    }
}

/// ConfigMaps or Secrets as an API resource: the two are alike but for a few fields.
pub(super) fn resource(kind: SourceKind) -> ApiResource {
    match kind {
        SourceKind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
        SourceKind::Secret => ApiResource::erase::<Secret>(&()),
    }
}

/// The source as it was found.
#[derive(Debug)]
pub(super) enum SourceObject {
    Missing,
    Present { content: Content, resource_version: String },
}

/// What the status says of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceState {
    Missing,
    KeysMissing(Vec<String>),
    Version(String),
}

impl SourceObject {
    /// What to say of the source, and what to make of it.
    pub(super) fn resolve(self, valid: &Valid) -> (SourceState, Wanted) {
        let Self::Present { content, resource_version } = self else { return (SourceState::Missing, Wanted::Missing) };
        match content.wanted(valid) {
            Err(missing) => (SourceState::KeysMissing(missing), Wanted::Unusable),
            Ok(content) => {
                let version = match valid.source.kind {
                    SourceKind::ConfigMap => content.digest(),
                    SourceKind::Secret => format!("resourceVersion:{resource_version}"),
                };
                (SourceState::Version(version), Wanted::Content(content))
            }
        }
    }
}

/// Reads the source. One that is being deleted counts as missing.
pub(super) async fn source(client: &Client, source: &Source) -> Result<SourceObject, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &source.namespace, &resource(source.kind));
    let Some(object) = api.get_opt(&source.name).await? else { return Ok(SourceObject::Missing) };
    if object.meta().deletion_timestamp.is_some() {
        return Ok(SourceObject::Missing);
    }
    let resource_version = object.resource_version().unwrap_or_default();
    Ok(SourceObject::Present { content: content(source.kind, &object), resource_version })
}

/// Reads all that bears the owner's marks: those of the source's kind in full, of the others the metadata,
/// for they are only there because the source was once another.
pub(super) async fn children(client: &Client, owner: &Owner, source: SourceKind) -> Result<Vec<Child>, Error> {
    let mut children = Vec::new();
    for kind in [SourceKind::ConfigMap, SourceKind::Secret] {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(kind));
        let mut params = ListParams::default().labels(&children_of(&owner.uid)).limit(PAGE);
        loop {
            let next = if kind == source {
                let page = api.list(&params).await?;
                children.extend(page.items.iter().map(|object| child(kind, owner, object.meta(), Some(object))));
                page.metadata.continue_
            } else {
                let page = api.list_metadata(&params).await?;
                let page_children = page.items.iter();
                children.extend(
                    page_children.map(|object: &PartialObjectMeta<_>| child(kind, owner, &object.metadata, None)),
                );
                page.metadata.continue_
            };
            match next.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
    }
    Ok(children)
}

/// Reads what is where a copy should be created.
pub(super) async fn found(api: &Api<DynamicObject>, owner: &Owner, source: &Source) -> Result<Option<Found>, Error> {
    let object = api.get_opt(&source.name).await?;
    Ok(object.map(|object| Found {
        uid: object.uid().unwrap_or_default(),
        ownership: ownership(object.meta(), &owner.uid),
        deleting: object.meta().deletion_timestamp.is_some(),
        content: content(source.kind, &object),
    }))
}

fn child(kind: SourceKind, owner: &Owner, meta: &ObjectMeta, object: Option<&DynamicObject>) -> Child {
    let keys = |path| applied_keys(meta, &owner.manager, path).into_iter().collect::<BTreeSet<_>>();
    Child {
        place: Place {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        },
        uid: meta.uid.clone().unwrap_or_default(),
        ownership: ownership(meta, &owner.uid),
        applied_by_us: applied_by(meta, &owner.manager),
        deleting: meta.deletion_timestamp.is_some(),
        marked: marked(meta, owner),
        content: object.map(|object| content(kind, object)),
        applied_keys: (keys("data"), keys("binaryData")),
    }
}

fn marked(meta: &ObjectMeta, owner: &Owner) -> bool {
    let labelled = |(key, value)| meta.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
    owner.labels.iter().all(labelled)
        && meta.owner_references.iter().flatten().any(|reference| reference.uid == owner.uid)
}

pub(super) fn content(kind: SourceKind, object: &DynamicObject) -> Content {
    let strings = |field: &str| {
        let entries = object.data.get(field).and_then(serde_json::Value::as_object).into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let type_ = object.data.get("type").and_then(serde_json::Value::as_str);
    Content {
        type_: (kind == SourceKind::Secret).then(|| type_.unwrap_or("Opaque").to_owned()),
        data: strings("data"),
        binary_data: strings("binaryData"),
        immutable: object.data.get("immutable").and_then(serde_json::Value::as_bool).unwrap_or_default(),
    }
}
