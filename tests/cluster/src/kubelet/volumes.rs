//! A pod's volumes as folders, and its ServiceAccount token.
//!
//! Called again every sync period, so that a changed ConfigMap and a fresh token reach the running process.

use super::{environment::field, pod::Identity};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{
        ConfigMap, Container, KeyToPath, PersistentVolumeClaim, Pod, Secret, ServiceAccount, Volume, VolumeProjection,
    },
};
use kube::{Api, Client, api::PostParams};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where every ServiceAccount volume is mounted.
pub(crate) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The folders of one pod's volumes.
pub(crate) struct Volumes {
    client: Client,
    root: PathBuf,
    claims: PathBuf,
    identity: Identity,
    address: String,
    renew_at: BTreeMap<PathBuf, Instant>,
}

impl Volumes {
    /// `root` is the pod's own folder, `claims` what [`claims`] says of its namespace.
    pub(crate) fn new(client: Client, root: PathBuf, claims: PathBuf, identity: Identity, address: String) -> Self {
        Self { client, root, claims, identity, address, renew_at: BTreeMap::new() }
    }

    /// Writes what is missing or changed.
    pub(crate) async fn write(&mut self, pod: &Pod) -> Result<()> {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in volumes {
            self.volume(pod, volume).await.with_context(|| format!("volume {:?}", volume.name))?;
        }
        Ok(())
    }

    async fn volume(&mut self, pod: &Pod, volume: &Volume) -> Result<()> {
        let folder = folder(&self.root, &self.claims, volume);
        if let Some(host) = &volume.host_path {
            if !Path::new(&host.path).exists() {
                bail!("host path {} does not exist", host.path);
            }
            return Ok(());
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &self.identity.namespace);
            if claims.get_opt(&claim.claim_name).await?.is_none() {
                bail!("PersistentVolumeClaim {:?} not found", claim.claim_name);
            }
        }
        fs::create_dir_all(&folder)?;
        if let Some(source) = &volume.config_map {
            let files = self.config_map(&source.name, source.optional, source.items.as_deref()).await?;
            return write(&folder, files);
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            let files = self.secret(&name, source.optional, source.items.as_deref()).await?;
            return write(&folder, files);
        }
        if let Some(source) = &volume.downward_api {
            let mut files = BTreeMap::new();
            for item in source.items.iter().flatten() {
                let path = item.field_ref.as_ref().map(|reference| reference.field_path.as_str()).unwrap_or_default();
                let value = field(pod, &self.address, path).with_context(|| format!("no field {path:?}"))?;
                files.insert(item.path.clone(), value.into_bytes());
            }
            return write(&folder, files);
        }
        if let Some(source) = &volume.projected {
            for projection in source.sources.iter().flatten() {
                self.projection(pod, &folder, projection).await?;
            }
            return Ok(());
        }
        if volume.empty_dir.is_some() || volume.persistent_volume_claim.is_some() {
            return Ok(());
        }
        bail!("the process kubelet does not know this kind of volume")
    }

    async fn projection(&mut self, pod: &Pod, folder: &Path, projection: &VolumeProjection) -> Result<()> {
        if let Some(source) = &projection.config_map {
            let files = self.config_map(&source.name, source.optional, source.items.as_deref()).await?;
            return write(folder, files);
        }
        if let Some(source) = &projection.secret {
            let files = self.secret(&source.name, source.optional, source.items.as_deref()).await?;
            return write(folder, files);
        }
        if let Some(source) = &projection.downward_api {
            let mut files = BTreeMap::new();
            for item in source.items.iter().flatten() {
                let path = item.field_ref.as_ref().map(|reference| reference.field_path.as_str()).unwrap_or_default();
                let value = field(pod, &self.address, path).with_context(|| format!("no field {path:?}"))?;
                files.insert(item.path.clone(), value.into_bytes());
            }
            return write(folder, files);
        }
        if let Some(source) = &projection.service_account_token {
            let file = folder.join(&source.path);
            if self.renew_at.get(&file).is_some_and(|at| *at > Instant::now()) {
                return Ok(());
            }
            let lifetime = source.expiration_seconds.unwrap_or(3600);
            let token = self.token(pod, lifetime, source.audience.as_deref()).await?;
            write(folder, BTreeMap::from([(source.path.clone(), token.into_bytes())]))?;
            let lifetime = Duration::from_secs(u64::try_from(lifetime).unwrap_or(600));
            self.renew_at.insert(file, Instant::now() + lifetime.mul_f64(0.8));
            return Ok(());
        }
        bail!("the process kubelet does not know this kind of projection")
    }

    async fn token(&self, pod: &Pod, lifetime: i64, audience: Option<&str>) -> Result<String> {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.map(str::to_owned).into_iter().collect(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(self.identity.name.clone()),
                    uid: Some(self.identity.uid.clone()),
                }),
                expiration_seconds: Some(lifetime),
            },
            ..TokenRequest::default()
        };
        let answer = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.identity.namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("failed to request a token of ServiceAccount {account}"))?;
        Ok(answer.status.context("a token request without an answer")?.token)
    }

    async fn config_map(&self, name: &str, optional: Option<bool>, items: Option<&[KeyToPath]>) -> Result<Files> {
        let found = config_map(&self.client, &self.identity.namespace, name).await?;
        pick("ConfigMap", name, found, optional == Some(true), items)
    }

    async fn secret(&self, name: &str, optional: Option<bool>, items: Option<&[KeyToPath]>) -> Result<Files> {
        let found = secret(&self.client, &self.identity.namespace, name).await?;
        pick("Secret", name, found, optional == Some(true), items)
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// A ConfigMap's keys, or nothing when it does not exist.
pub(crate) async fn config_map(client: &Client, namespace: &str, name: &str) -> Result<Option<Files>> {
    let found = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await?;
    Ok(found.map(|found| {
        let text = found.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        let binary = found.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
        text.chain(binary).collect()
    }))
}

/// A Secret's keys, or nothing when it does not exist.
pub(crate) async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Files>> {
    let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await?;
    Ok(found.map(|found| found.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()))
}

/// Where the volumes of a namespace's claims are, below the cluster's folder: they outlive the pods.
pub(crate) fn claims(cluster: &Path, namespace: &str) -> PathBuf {
    cluster.join("claims").join(namespace)
}

/// Where a container's mounts are on this machine: (mount path, folder).
pub(crate) fn mounts(root: &Path, claims: &Path, pod: &Pod, container: &Container) -> Vec<(String, PathBuf)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    container
        .volume_mounts
        .iter()
        .flatten()
        .filter_map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name)?;
            let folder = folder(root, claims, volume);
            let folder = match &mount.sub_path {
                Some(below) => folder.join(below),
                None => folder,
            };
            let path = mount.mount_path.trim_end_matches('/').to_owned();
            (!path.is_empty()).then_some((path, folder))
        })
        .collect()
}

fn folder(root: &Path, claims: &Path, volume: &Volume) -> PathBuf {
    match (&volume.host_path, &volume.persistent_volume_claim) {
        (Some(host), _) => PathBuf::from(&host.path),
        (None, Some(claim)) => claims.join(&claim.claim_name),
        (None, None) => root.join("volumes").join(&volume.name),
    }
}

fn pick(kind: &str, name: &str, found: Option<Files>, optional: bool, items: Option<&[KeyToPath]>) -> Result<Files> {
    let Some(found) = found else {
        if optional {
            return Ok(Files::new());
        }
        bail!("{kind} {name:?} not found");
    };
    let Some(items) = items else { return Ok(found) };
    let mut picked = Files::new();
    for item in items {
        match found.get(&item.key) {
            Some(content) => {
                picked.insert(item.path.clone(), content.clone());
            }
            None if optional => {}
            None => bail!("{kind} {name:?} has no key {:?}", item.key),
        }
    }
    Ok(picked)
}

/// Writes files that differ, each atomically, so that a reader never sees half of one.
fn write(folder: &Path, files: Files) -> Result<()> {
    for (path, content) in files {
        let file = folder.join(path);
        if fs::read(&file).is_ok_and(|present| present == content) {
            continue;
        }
        let parent = file.parent().unwrap_or(folder);
        fs::create_dir_all(parent)?;
        let mut new = tempfile::NamedTempFile::new_in(parent)?;
        std::io::Write::write_all(&mut new, &content)?;
        new.persist(&file)?;
    }
    Ok(())
}
