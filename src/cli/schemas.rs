//! Where `check` and `render` get the schemas of types from: files of CRDs or of OpenAPI documents, and an API server.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use leasehold::{kinds::openapi::Schemas, reconcile::children::Type};
use serde_json::Value;

use super::{Failure, client, target::Target};

/// The documents of these files, and of the YAML and JSON files of these folders.
pub(super) fn documents(paths: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        for file in files(path)? {
            let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
            let text = fs::read_to_string(&file).map_err(|error| wrong(error.to_string()))?;
            let documents: Vec<Value> =
                serde_yaml::from_multiple(&text).map_err(|error| wrong(format!("not readable as YAML: {error}")))?;
            all.extend(documents.into_iter().filter(|document| !document.is_null()));
        }
    }
    Ok(all)
}

/// The schemas of these documents.
pub(super) fn of(documents: &[Value], paths: &[PathBuf]) -> Result<Schemas, Failure> {
    let mut schemas = Schemas::default();
    let count: usize = documents.iter().map(|document| schemas.add(document.clone())).sum();
    if count == 0 && !paths.is_empty() {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        let message = format!(
            "{}: no schema of a type; expected CRDs, or OpenAPI documents as `kubectl get --raw /openapi/v3/apis/apps/v1` prints them",
            shown.join(", ")
        );
        return Err(Failure::Usage(message));
    }
    Ok(schemas)
}

/// The file itself, or the YAML and JSON files of a folder.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error: io::Error| Failure::Usage(format!("{}: {error}", path.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Adds what the API server publishes of these types.
pub(super) fn ask(target: &Target, types: &BTreeSet<Type>, schemas: &mut Schemas) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(target.config().await?).await?;
        let get = async |path: &str| -> anyhow::Result<Value> {
            let request = http::Request::get(path).body(Vec::new())?;
            client.request(request).await.with_context(|| format!("failed to read {path} of the API server"))
        };
        let index = get("/openapi/v3").await?;
        let groups: BTreeSet<_> = types.iter().map(|of| (of.group.as_str(), of.version.as_str())).collect();
        for (group, version) in groups {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            // What is not served has no schema, which is said of the type.
            if let Some(path) = index["paths"][&path]["serverRelativeURL"].as_str() {
                schemas.add(get(path).await?);
            }
        }
        Ok(())
    })
}
