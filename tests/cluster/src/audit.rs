//! The API server's audit log, read back.
//!
//! The server writes an event before it answers, so a write whose answer was seen is in the log.

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// One finished request (stage `ResponseComplete`), as the API server recorded it.
///
/// Writes carry both objects; reads carry none. A watch appears when it has ended.
#[derive(Debug)]
pub struct AuditEvent {
    /// What the client, or else the server, called the request: its header `Audit-ID`.
    pub id: String,
    /// `create`, `update`, `patch`, `delete`, `get`, `list`, `watch`…
    pub verb: String,
    /// The user's name, such as `system:serviceaccount:leasehold-system:leasehold`.
    pub user: String,
    /// The user that the request was treated as one of, by impersonation.
    pub acting: Option<String>,
    /// The pod whose bound token was used.
    pub pod: Option<String>,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// API group, empty for core.
    pub group: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource, such as `status`.
    pub subresource: Option<String>,
    /// Namespace; none for cluster-scoped objects.
    pub namespace: Option<String>,
    /// Object name; none for lists, and for creations without a generated name.
    pub name: Option<String>,
    /// When the server received the request.
    pub request_received: Timestamp,
    /// When the server had answered.
    pub stage: Timestamp,
    /// HTTP status answered.
    pub code: u16,
    /// The request's body, for writes; none if it is too deep to be read.
    pub request_object: Option<Value>,
    /// The answer's body, for writes; none if it is too deep to be read.
    pub response_object: Option<Value>,
    /// What authorization and admission say of it, such as the audit annotations of a `ValidatingAdmissionPolicy`.
    pub annotations: BTreeMap<String, String>,
}

impl AuditEvent {
    /// Whether the request was a create, update, patch or delete.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// Whether the server answered with success.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

pub(crate) struct AuditLog {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    offset: u64,
    events: Vec<Arc<AuditEvent>>,
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// Every event from the one with this number on. Each call reads only what was added since the last.
    pub(crate) fn events(&self, from: usize) -> Result<Vec<Arc<AuditEvent>>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("failed to open the audit log"),
        };
        file.seek(SeekFrom::Start(read.offset))?;
        let mut lines = BufReader::new(file);
        let mut line = String::new();
        loop {
            line.clear();
            let length = lines.read_line(&mut line).context("failed to read the audit log")?;
            if !line.ends_with('\n') {
                break;
            }
            read.offset += length as u64;
            let raw: Raw = serde_json::from_str(&line).context("failed to parse an audit event")?;
            if raw.stage == "ResponseComplete" {
                read.events.push(Arc::new(raw.into()));
            }
        }
        Ok(read.events.get(from..).unwrap_or_default().to_vec())
    }
}

/// The API server takes objects that are deeper than `serde_json` reads.
fn shallow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let text: Box<RawValue> = Deserialize::deserialize(deserializer)?;
    Ok(serde_json::from_str(text.get()).ok())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "auditID")]
    id: String,
    stage: String,
    verb: String,
    user: RawUser,
    impersonated_user: Option<RawUser>,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: RawReference,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
    #[serde(default)]
    response_status: RawStatus,
    #[serde(default, deserialize_with = "shallow")]
    request_object: Option<Value>,
    #[serde(default, deserialize_with = "shallow")]
    response_object: Option<Value>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawReference {
    api_group: String,
    resource: String,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    #[serde(default)]
    code: u16,
}

impl From<Raw> for AuditEvent {
    fn from(raw: Raw) -> Self {
        let pod = raw.user.extra.get("authentication.kubernetes.io/pod-name").and_then(|names| names.first()).cloned();
        Self {
            id: raw.id,
            verb: raw.verb,
            user: raw.user.username,
            acting: raw.impersonated_user.map(|user| user.username),
            pod,
            user_agent: raw.user_agent,
            group: raw.object_ref.api_group,
            resource: raw.object_ref.resource,
            subresource: raw.object_ref.subresource,
            namespace: raw.object_ref.namespace,
            name: raw.object_ref.name,
            request_received: raw.request_received_timestamp,
            stage: raw.stage_timestamp,
            code: raw.response_status.code,
            request_object: raw.request_object,
            response_object: raw.response_object,
            annotations: raw.annotations,
        }
    }
}
